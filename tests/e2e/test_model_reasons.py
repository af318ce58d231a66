"""Why a model is not served, in ONNX Runtime's words: one line of bounded length wherever it is read.
And what the banner says of a model's size is in units that say something."""

import re

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper as h

from rawhttp import H2, SERVICE, ask, field


def write(folder, name, change, op="Identity", label="n"):
    graph = h.make_graph([h.make_node(op, ["X"], ["Y"], name=label)], "g",
                         [h.make_tensor_value_info("X", T.FLOAT, [1])], [h.make_tensor_value_info("Y", T.FLOAT, [1])])
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8)
    change(model)
    where = folder / name / "1"
    where.mkdir(parents=True)
    onnx.save(model, where / "model.onnx")


BROKEN = {
    "no_opset": dict(change=lambda m: m.ClearField("opset_import")),
    "no_ir": dict(change=lambda m: m.ClearField("ir_version")),
    "neither": dict(change=lambda m: (m.ClearField("opset_import"), m.ClearField("ir_version"))),
    "new_opset": dict(change=lambda m: setattr(m.opset_import[0], "version", 9999)),
    "no_operator": dict(change=lambda m: None, op="NoSuchOperator"),
    "long_name": dict(change=lambda m: None, op="No" + "ä" * 5000, label="ö" * 5000),
    "lines": dict(change=lambda m: None, op="No\n\nSuch\r\nOperator", label="a\nb\n"),
}


@pytest.fixture(scope="module")
def one(module_server, tmp_path_factory):
    folder = tmp_path_factory.mktemp("repo")
    for name, how in BROKEN.items():
        write(folder, name, **how)
    return module_server("--no-keep-gallery", "--no-strict-readiness", models=[folder])


@pytest.mark.parametrize("name", BROKEN)
def test_reasons(one, name):
    index = {m["name"]: m for m in ask(one.http, "POST", "/v2/repository/index").json()}
    if index[name]["state"] == "READY":
        pytest.skip("this ONNX Runtime opens it")
    texts = [index[name]["reason"], ask(one.http, "GET", f"/v2/models/{name}").error]
    with H2(one.grpc) as c:
        texts.append(c.reply(c.grpc(SERVICE + "ModelMetadata", field(1, name))).message)
    for text in texts:
        assert "onnxruntime: " in text and len(text.encode()) < 512
        assert not re.search(r"\w\.(h|cc):\d|::\w+\(|/tmp/", text), text
        assert text == text.strip() and not re.search(r"[\x00-\x1f\x7f\ufffd]|  ", text), text
    if name == "long_name":
        assert texts[0].endswith("…")
    said = [line for line in one.banner if line.startswith(f"  {name} version 1: NOT ready")]
    assert len(said) == 1 and texts[0] in said[0]
    logged = [line for line in one.log().splitlines() if f"model={name} " in line and "not loaded" in line]
    assert len(logged) == 1 and "\\n" not in logged[0]


def test_sizes_in_the_banner(server, tmp_path):
    """Models that load at the same time show the size of their weights, here 20 bytes."""
    for i in range(12):
        graph = h.make_graph([h.make_node("Add", ["X", "W"], ["Y"])], "g",
                             [h.make_tensor_value_info("X", T.FLOAT, [5])], [h.make_tensor_value_info("Y", T.FLOAT, [5])],
                             [onnx.numpy_helper.from_array(np.ones(5, np.float32), "W")])
        where = tmp_path / "repo" / f"m{i}" / "1"
        where.mkdir(parents=True)
        onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8), where / "model.onnx")
    s = server("--no-keep-gallery", "--model-load-thread-count", 8, models=[tmp_path / "repo"])
    sizes = [found.group(1) for line in s.banner if (found := re.match(r"  m\d+ version 1: ready in .*, onnxruntime, (.*)", line))]
    assert sizes
    for size in sizes:
        assert re.fullmatch(r"\d+ bytes|[1-9]\d{0,3}\.\d [KMG]iB", size), sizes
