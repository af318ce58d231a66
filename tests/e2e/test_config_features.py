"""What a configuration asks for and this version does not do: refused where results would differ,
else served, with a line in the banner and in the log that names it (docs/compatibility.md)."""

import json
import re

import pytest

import models
from conftest import ROOT
from plugin_models import model, repository
from rawhttp import H2, SERVICE, ask, field

IO = [("INPUT0", "FP32", [1])]
GOOD = json.dumps({"inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": [1], "data": [3]}]})

REFUSED = {
    "ragged": (model("identity", IO, batch=4, extra='batch_output [ { target_name: "OUTPUT0" source_input: "INPUT0" } ]\n')
               .replace("dims: [1] }", "dims: [1] reshape { shape: [1] } allow_ragged_batch: true }", 1),
               "allow_ragged_batch"),
}
IGNORED = {
    "rate": ('instance_group [ { rate_limiter { resources [ { name: "R" count: 4 } ] priority: 2 } } ]\n', "rate_limiter"),
    "policy": ('instance_group [ { host_policy: "numa_0" } ]\n', "host_policy"),
    "strategy": ('parameters { key: "TRITON_BATCH_STRATEGY_PATH" value { string_value: "b.so" } }\n',
                 "TRITON_BATCH_STRATEGY_PATH (see naru.batch_strategy)"),
    "tags": ('metric_tags { key: "team" value: "a" }\n', "metric_tags"),
    "runtime": ('runtime: "librt.so"\n', "runtime"),
    "files": ('cc_model_filenames { key: "8.6" value: "a" }\n', "cc_model_filenames"),
    "operations": ('model_operations { op_library_filename: "ops.so" }\n', "model_operations"),
    "default_level": ("dynamic_batching { default_priority_level: 2 }\n", "default_priority_level"),
    "profile": ('instance_group [ { profile: "1" } ]\n', "profile"),
    "devices": ("instance_group [ { secondary_devices { kind: KIND_NVDLA device_id: 0 } } ]\n", "secondary_devices"),
    "metrics": ("model_metrics { }\n", "model_metrics"),
    "pinned": ("optimization { input_pinned_memory { enable: true } output_pinned_memory { enable: true } }\n",
               "optimization.input_pinned_memory, optimization.output_pinned_memory"),
    "buffers": ("optimization { gather_kernel_buffer_threshold: 4 eager_batching: true }\n",
                "optimization.gather_kernel_buffer_threshold"),
    "max": ("optimization { priority: PRIORITY_MAX }\n", "optimization.priority"),
    "graph": ("optimization { graph { level: 1 } }\n", "optimization.graph.level"),
    "cuda": ("optimization { cuda { graphs: true busy_wait_events: true output_copy_stream: true graph_spec { } } }\n",
             "optimization.cuda.graphs, optimization.cuda.busy_wait_events, optimization.cuda.output_copy_stream, "
             "optimization.cuda.graph_spec"),
    "accelerators": ('optimization { execution_accelerators { gpu_execution_accelerator [ { name: "tensorrt" parameters '
                     '{ key: "precision_mode" value: "FP16" } } ] cpu_execution_accelerator [ { name: "openvino" } ] } }\n',
                     "optimization.execution_accelerators.gpu_execution_accelerator, "
                     "optimization.execution_accelerators.cpu_execution_accelerator"),
    "several": ('optimization { gather_kernel_buffer_threshold: 4 }\nmetric_tags { key: "team" value: "a" }\n',
                "metric_tags, optimization.gather_kernel_buffer_threshold"),
}


@pytest.fixture(scope="module")
def one(module_server, tmp_path_factory):
    models = {k: v for k, (v, _) in REFUSED.items()}
    models |= {k: model("identity", IO, extra=v) for k, (v, _) in IGNORED.items()}
    return module_server("--no-keep-gallery", models=[repository(tmp_path_factory.mktemp("repo"), **models)])


@pytest.mark.parametrize("name", REFUSED)
def test_refused(one, name):
    """The reason is in the banner, the log, the index and the answer, on both protocols."""
    said = REFUSED[name][1]
    index = {m["name"]: m for m in ask(one.http, "POST", "/v2/repository/index").json()}
    assert index[name]["state"] == "UNAVAILABLE" and said in index[name]["reason"]
    assert "this version of naru" in index[name]["reason"]
    r = ask(one.http, "POST", f"/v2/models/{name}/infer", GOOD)
    assert r.status == 404 and said in r.error
    with H2(one.grpc) as c:
        r = c.reply(c.grpc(SERVICE + "ModelMetadata", field(1, name)))
        assert r.grpc == 5 and said in r.message
    assert any("NOT ready" in line and said in line and name in line for line in one.banner)
    assert any(f"model={name}" in line and said in line for line in one.log().splitlines())


@pytest.mark.parametrize("name", IGNORED)
def test_served_and_named(one, name):
    fields = IGNORED[name][1]
    batch = "dynamic_batching" in IGNORED[name][0]
    r = ask(one.http, "POST", f"/v2/models/{name}/infer", GOOD)
    assert r.status == 200 and r.json()["outputs"][0]["data"] == [3], (batch, r)
    at = next(i for i, line in enumerate(one.banner) if line.startswith(f"  {name} version 1: ready"))
    assert f"      ignored: {fields}" in one.banner[at : at + 4]
    lines = [line for line in one.log().splitlines() if "without effect" in line and f"model={name} " in line]
    assert len(lines) == 1 and "level=warn" in lines[0] and fields in lines[0]


PICTURE = [("INPUT0", "FP32", [3, 8, 8])]
# parameters → words of the reason
WRONG = {
    "seize": ({"naru.image.seize": "8x8"}, 'unknown parameter "naru.image.seize": did you mean "naru.image.size"?'),
    "case": ({"naru.Image.size": "8x8"}, 'did you mean "naru.image.size"?'),
    "bare": ({"naru.": "1"}, 'unknown parameter "naru.": did you mean "naru.'),
    "long": ({"naru." + "x" * 300: "1"}, 'unknown parameter "naru.xxx'),
    "symbol": ({"naru.check_symbol": "false"}, 'did you mean "naru.check_symbols"?'),
    "symbols": ({"naru.check_symbols": "maybe"}, 'parameter "naru.check_symbols" is "maybe"; "true" or "false"'),
    "opt": ({"naru.opt.graph.level": "1"}, 'are reserved; say it by optimization'),
    "size": ({"naru.image.size": "big"}, 'parameter "naru.image.size": value "big": expected height and width in pixels'),
    "scale": ({"naru.image.scale": "1/zero"}, 'expected a number or a fraction'),
    "mean": ({"naru.image.mean": "0.1,0.2,0.3,0.4"}, 'parameter "naru.image.mean"'),
    "means": ({"naru.image.mean": "0.1,0.2"}, "expected 1 or one for each of the 3 channels"),
    "std": ({"naru.image.std": "0"}, "numbers other than 0"),
    "layout": ({"naru.image.layout": "NCWH"}, "expected NCHW or NHWC"),
    "resize": ({"naru.image.resize": "cubic"}, "expected nearest, box, bilinear, hamming, bicubic or lanczos"),
    "top_k": ({"naru.output.top_k": "0"}, "expected a whole number from 1"),
    "output": ({"naru.output": "picture"}, "expected image, labels or tensor"),
    "softmax": ({"naru.output.softmax": "yes"}, "expected true or false"),
    "tensor": ({"naru.output.tensor": "OUTPUT9"}, 'names "OUTPUT9", which is no output of the model'),
    "input": ({"naru.image.input": "INPUT9"}, 'names "INPUT9", which is no input of the model'),
    "overlap": ({"naru.image.tile_overlap": "4"}, "no meaning without naru.image.tile"),
    "no_picture": ({"naru.image.scale": "1"}, "has no place for height, width"),
    "good": ({"naru.image.scale": "1/255", "naru.check_symbols": "false", "other": "x"}, None),
    "plain": ({"other.naru.x": "1"}, None),
}


@pytest.fixture(scope="module")
def wrong(module_server, tmp_path_factory):
    models = {k: model("identity", IO if k in ("no_picture", "plain") else PICTURE,
                       extra="".join(f'parameters {{ key: "{n}" value {{ string_value: "{v}" }} }}\n' for n, v in p.items()))
              for k, (p, _) in WRONG.items()}
    return module_server("--no-keep-gallery", "--no-strict-readiness",
                         models=[repository(tmp_path_factory.mktemp("wrong"), **models)])


@pytest.mark.parametrize("name", WRONG)
def test_wrong_parameters_are_refused_at_load(wrong, name):
    """Not by the first picture: in the banner, the log and the index; nearest name, expected words."""
    says = WRONG[name][1]
    index = {m["name"]: m for m in ask(wrong.http, "POST", "/v2/repository/index").json()}
    if says is None:
        assert index[name]["state"] == "READY", index[name]
        return
    assert index[name]["state"] == "UNAVAILABLE" and says in index[name]["reason"], index[name]
    assert any(re.match(f"  {name}( version 1)?: NOT ready", line) and says in line for line in wrong.banner)
    assert ask(wrong.http, "POST", f"/v2/models/{name}/predict", b"x").status == 404


def test_of_optimization_the_backend_decides(server, tmp_path):
    """ONNX Runtime reads the graph level; accelerators of GPUs have no effect on the CPU. The log has a
    line for every model, however many load at once."""
    config = ('optimization { graph { level: 1 } execution_accelerators { gpu_execution_accelerator [ { name: "tensorrt" '
              '} ] } }\n')
    for i in range(150):
        models.identity(tmp_path / "repo", f"m{i}", config=config)
    s = server("--no-keep-gallery", models=[tmp_path / "repo"])
    field = "optimization.execution_accelerators.gpu_execution_accelerator"
    assert sum(line == f"      ignored: {field}" for line in s.banner) == 150
    named = {re.search(r" model=(m\d+) ", line).group(1) for line in s.log().splitlines()
             if "without effect" in line and f"ignored={field}" in line}
    assert len(named) == 150


def test_the_page_names_them_all():
    text = (ROOT / "docs" / "compatibility.md").read_text()
    for _, said in REFUSED.values():
        assert said in text, said
    for _, fields in IGNORED.values():
        for name in fields.split(", "):
            assert f"`{name}`" in text, name
