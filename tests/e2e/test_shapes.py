"""Shapes that do not go together are the client's mistake, and said so before the model runs where the
model's own names of its dimensions tell; the same through JSON, binary tensors, gRPC and predict.
What ONNX Runtime says is one line of bounded length."""

import io
import json
import re

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper as h
from PIL import Image

import models
from rawhttp import H2, INVALID, SERVICE, ask, infer_pb

ONNX = {"FP32": T.FLOAT, "INT64": T.INT64}
NUMPY = {"FP32": np.float32, "INT64": np.int64}
ALONE = "max_batch_size: 0\n"
EVEN = """max_batch_size: 4
input { name: "A" data_type: TYPE_FP32 dims: [3, -1, -1] } output { name: "Y" data_type: TYPE_FP32 dims: [12, -1, -1] }
parameters { key: "naru.image.multiple_of" value { string_value: "2" } }
parameters { key: "naru.output" value { string_value: "tensor" } }
"""
FIELD = "Inference-Header-Content-Length"


def f32(*dims):
    return "FP32", list(dims)


def make(folder, name, op, ins, out, config=ALONE, constants=(), order=None, **attributes):
    """One node. ins: name -> (datatype, dims); order: of the node's inputs, when constants are not last."""
    order = order or [*ins, *(n for n, _ in constants)]
    graph = h.make_graph([h.make_node(op, order, ["Y"], **attributes)], "g",
                         [h.make_tensor_value_info(n, ONNX[t], dims) for n, (t, dims) in ins.items()],
                         [h.make_tensor_value_info("Y", T.FLOAT, out)],
                         [onnx.numpy_helper.from_array(v, n) for n, v in constants])
    models.save(graph, folder, name, config=config)


@pytest.fixture(scope="module")
def one(module_server, tmp_path_factory):
    folder = tmp_path_factory.mktemp("repo")
    make(folder, "batched", "Add", {"A": f32("b", "L"), "B": f32("b", "L")}, ["b", "L"], None)
    make(folder, "alone", "Add", {"A": f32("N", 4), "B": f32("N", 4)}, ["N", 4])
    make(folder, "loose", "Add", {"A": f32("N", 4), "B": f32("N", 4)}, ["N", 4],
         ALONE + 'parameters { key: "naru.check_symbols" value { string_value: "false" } }')
    make(folder, "three", "Sum", {"A": f32("K", 1, "L"), "B": f32(1, "M", "L"), "C": f32("K", "M", 1)}, ["K", "M", "L"])
    make(folder, "matmul", "MatMul", {"A": f32("L", "K"), "B": f32("K", "M")}, ["L", "M"])
    # what only the operators see: other names, or none that means anything, or values
    make(folder, "unnamed", "Add", {"A": f32(None, 4), "B": f32(None, 4)}, [None, 4])
    make(folder, "question", "Add", {"A": f32("?", 4), "B": f32("?", 4)}, ["?", 4])
    make(folder, "matmul2", "MatMul", {"A": f32("L", "K"), "B": f32("K2", "M")}, ["L", "M"])
    make(folder, "concat", "Concat", {"A": f32("n", 4), "B": f32("m", 4)}, ["n", 8], axis=1)
    make(folder, "reshape", "Reshape", {"A": f32("n"), "S": ("INT64", [2])}, ["a", "b"])
    make(folder, "gather", "Gather", {"I": ("INT64", ["n"])}, ["n"], order=["D", "I"],
         constants=[("D", np.arange(4, dtype=np.float32))])
    many = {f"a_rather_long_name_of_an_input_{i:02}": f32(None, 4) for i in range(30)}
    make(folder, "many", "Sum", many, [None, 4])
    make(folder, "halves", "SpaceToDepth", {"A": f32("b", 3, "h", "w")}, ["b", 12, "h2", "w2"], EVEN, blocksize=2)
    make(folder, "conv", "Conv", {"A": f32("b", 1, "h", "w")}, ["b", 1, "h2", "w2"], None,
         constants=[("W", np.ones((1, 1, 5, 5), np.float32))])
    return module_server("--no-keep-gallery", models=[folder])


def everywhere(server, model, ins):
    """(status, text) by JSON, binary tensors and gRPC, which must agree. ins: name -> array."""
    kinds = {np.dtype(v): k for k, v in NUMPY.items()}
    heads = [{"name": n, "datatype": kinds[a.dtype], "shape": list(a.shape)} for n, a in ins.items()]
    path, raw = f"/v2/models/{model}/infer", [a.tobytes() for a in ins.values()]
    text = json.dumps({"inputs": [{**t, "data": a.ravel().tolist()} for t, a in zip(heads, ins.values())]})
    mixed = json.dumps({"inputs": [{**t, "parameters": {"binary_data_size": len(r)}} for t, r in zip(heads, raw)]})
    said = [ask(server.http, "POST", path, text),
            ask(server.http, "POST", path, mixed.encode() + b"".join(raw), f"{FIELD}: {len(mixed)}")]
    with H2(server.grpc) as c:
        message = infer_pb(model, [(t["name"], t["datatype"], t["shape"]) for t in heads], raw=raw)
        r = c.reply(c.grpc(SERVICE + "ModelInfer", message))
    assert said[0].status == said[1].status and (said[0].status, r.grpc) in {(200, 0), (400, INVALID)}, (said, r)
    if said[0].status == 400:
        assert said[0].error == said[1].error == r.message
        assert not re.search(r"\w\.(h|cc):\d|::|\w/\w", r.message), "places in the library are no client's business"
        assert "\n" not in r.message and r.message == r.message.strip() and len(r.message) < 512
    return said[0].status, said[0].error


def ones(*shape):
    return np.ones(shape, np.float32)


NAMED = [
    ("batched", {"A": ones(1, 3), "B": ones(1, 4)},
     "inputs 'A' and 'B' disagree: the model calls dimension 1 of the one and dimension 1 of the other 'L', so they "
     "must be equal, but they are 3 and 4"),
    ("batched", {"B": ones(2, 1), "A": ones(2, 4)}, "'L', so they must be equal, but they are 4 and 1"),
    ("batched", {"A": ones(2, 3), "B": ones(1, 3)}, "has a batch of 1 rows, but input 'A' has 2"),
    ("alone", {"A": ones(3, 4), "B": ones(2, 4)}, "'N', so they must be equal, but they are 3 and 2"),
    ("three", {"A": ones(2, 1, 5), "B": ones(1, 3, 4), "C": ones(2, 3, 1)}, "inputs 'A' and 'B' disagree: the model calls "
     "dimension 2 of the one and dimension 2 of the other 'L'"),
    ("three", {"A": ones(2, 1, 5), "B": ones(1, 3, 5), "C": ones(7, 3, 1)}, "inputs 'A' and 'C' disagree"),
    ("three", {"A": ones(2, 1, 5), "B": ones(1, 3, 5), "C": ones(2, 4, 1)}, "inputs 'B' and 'C' disagree"),
    ("matmul", {"A": ones(2, 3), "B": ones(4, 5)}, "dimension 1 of the one and dimension 0 of the other 'K', so they "
     "must be equal, but they are 3 and 4"),
]


@pytest.mark.parametrize("model, ins, says", NAMED)
def test_dimensions_of_one_name(one, model, ins, says):
    status, text = everywhere(one, model, ins)
    assert status == 400 and says in text


@pytest.mark.parametrize("model, ins, says", [
    ("unnamed", {"A": ones(3, 4), "B": ones(2, 4)}, "axis"),
    ("loose", {"A": ones(3, 4), "B": ones(2, 4)}, "axis"),
    ("question", {"A": ones(3, 4), "B": ones(2, 4)}, "axis"),
    ("matmul2", {"A": ones(2, 3), "B": ones(4, 5)}, "dimension mismatch"),
    ("concat", {"A": ones(3, 4), "B": ones(2, 4)}, "must match"),
    ("reshape", {"A": ones(6), "S": np.array([4, 2])}, "cannot be reshaped"),
    ("reshape", {"A": ones(6), "S": np.array([-4, 2])}, "cannot be less than -1"),
    ("gather", {"I": np.array([0, 9])}, "out of data bounds"),
    ("conv", {"A": ones(1, 1, 3, 3)}, "Invalid input shape"),
])
def test_what_operators_refuse(one, model, ins, says):
    """What came is named by the server; the operator's own words are behind it, without the library's frame."""
    status, text = everywhere(one, model, ins)
    came = ", ".join(f'"{name}" {list(a.shape)}' for name, a in sorted(ins.items())).replace(" ", "").replace(",\"", ", \"")
    assert status == 400 and says in text
    assert text.startswith("the model cannot run with input " + came.replace('"[', '" [') + ": "), text
    assert "Non-zero status" not in text and "Status Message" not in text and "onnxruntime" not in text


@pytest.mark.parametrize("model, ins", [
    ("batched", {"A": ones(2, 3), "B": ones(2, 3)}), ("alone", {"A": ones(3, 4), "B": ones(3, 4)}),
    ("three", {"A": ones(2, 1, 5), "B": ones(1, 3, 5), "C": ones(2, 3, 1)}), ("matmul", {"A": ones(2, 3), "B": ones(3, 5)}),
    ("unnamed", {"A": ones(3, 4), "B": ones(1, 4)}), ("loose", {"A": ones(3, 4), "B": ones(1, 4)}), ("question", {"A": ones(3, 4), "B": ones(1, 4)}),
    ("concat", {"A": ones(3, 4), "B": ones(3, 4)}), ("reshape", {"A": ones(6), "S": np.array([3, 2])}),
    ("gather", {"I": np.array([0, 3])}), ("conv", {"A": ones(1, 1, 5, 5)})])
def test_good_ones_run(one, model, ins):
    assert everywhere(one, model, ins)[0] == 200


@pytest.mark.parametrize("height, width", [(5, 4), (4, 5), (1, 1), (7, 3), (4, 4), (2, 6)])
def test_sides_that_a_picture_must_have(one, height, width):
    """The configuration says what sides the model works on (predict pads to them): a tensor that has others is told."""
    status, text = everywhere(one, "halves", {"A": ones(2, 3, height, width)})
    if height % 2 == 0 and width % 2 == 0:
        assert status == 200
        return
    assert status == 400 and text.startswith(
        f"input 'A' is {height} high and {width} wide; this model takes multiples of 2 for both"), text
    assert f'with input "A" [2,3,{height},{width}]: SpaceToDepth ' in text and "multiple of block_size" in text


def test_many_inputs_stay_within_bounds(one):
    ins = {f"a_rather_long_name_of_an_input_{i:02}": ones(2 if i else 3, 4) for i in range(30)}
    status, text = everywhere(one, "many", ins)
    assert status == 400 and text.startswith('the model cannot run with input "a_rather_long_name_of_an_input_00" [3,4], ')
    assert "…" in text


def test_a_picture_too_small_for_the_model(one):
    with io.BytesIO() as f:
        Image.new("L", (3, 3)).save(f, "PNG")
        r = ask(one.http, "POST", "/v2/models/conv/predict", f.getvalue())
    assert r.status == 400 and "Invalid input shape" in r.error
