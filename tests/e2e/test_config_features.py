"""What a configuration asks for and this version does not do: refused where results would differ,
else served, with a line in the banner and in the log that names it (docs/compatibility.md)."""

import json

import pytest

from conftest import ROOT
from plugin_models import model, repository
from rawhttp import H2, SERVICE, ask, field

IO = [("INPUT0", "FP32", [1])]
GOOD = json.dumps({"inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": [1], "data": [3]}]})

REFUSED = {
    "sequence": (model("identity", IO, extra="sequence_batching { }\n"), "sequence_batching"),
    "ensemble": ('platform: "ensemble"\n' + model("identity", IO).replace('backend: "identity"\n', "") +
                 'ensemble_scheduling { step [ { model_name: "x" model_version: -1 } ] }\n', "ensembles"),
    "agents": (model("identity", IO, extra='model_repository_agents { agents [ { name: "checksum" } ] }\n'),
               "model_repository_agents"),
}
WARMUP = ('model_warmup [ { name: "w" inputs { key: "INPUT0" value { data_type: TYPE_FP32 dims: 1 zero_data: true } } } ]\n')
IGNORED = {
    "warmup": (WARMUP, "model_warmup"),
    "eager": ("optimization { eager_batching: true }\n", "eager_batching"),
    "rate": ('instance_group [ { rate_limiter { resources [ { name: "R" count: 4 } ] priority: 2 } } ]\n', "rate_limiter"),
    "policy": ('instance_group [ { host_policy: "numa_0" } ]\n', "host_policy"),
    "tags": ('metric_tags { key: "team" value: "a" }\n', "metric_tags"),
    "several": (WARMUP + "optimization { eager_batching: true }\n", "model_warmup, eager_batching"),
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


def test_the_page_names_them_all():
    text = (ROOT / "docs" / "compatibility.md").read_text()
    for _, said in REFUSED.values():
        assert said in text, said
    for _, fields in IGNORED.values():
        for name in fields.split(", "):
            assert f"`{name}`" in text, name
