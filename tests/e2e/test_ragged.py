"""Ragged batches (Triton's allow_ragged_batch, batch_input, batch_output): requests of different shapes
in one execution of a real ONNX model, which is told by made inputs where each of them begins."""

import json

import numpy as np
import pytest
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper

import models
from plugin_models import repository
from rawhttp import H1, ask, message

KINDS = {"COUNT": "BATCH_ELEMENT_COUNT", "ENDS": "BATCH_ACCUMULATED_ELEMENT_COUNT",
         "BOUNDS": "BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO", "LARGEST": "BATCH_MAX_ELEMENT_COUNT_AS_SHAPE",
         "SHAPES": "BATCH_ITEM_SHAPE", "FLAT": "BATCH_ITEM_SHAPE_FLATTEN"}
IDENTITY = """backend: "identity"
max_batch_size: 8
input [ { name: "INPUT0" data_type: TYPE_STRING dims: [ -1 ] allow_ragged_batch: true } ]
output [ { name: "OUTPUT0" data_type: TYPE_STRING dims: [ -1 ] } ]
batch_output [ { target_name: "OUTPUT0" kind: BATCH_SCATTER_WITH_INPUT_SHAPE source_input: "INPUT0" } ]
dynamic_batching { max_queue_delay_microseconds: 30000000 preferred_batch_size: [ 3 ] }
"""


def config(made_type):
    outputs = {"SUM": "TYPE_FP32", "LAST": "TYPE_INT64", "WIDTH": "TYPE_INT64", "FIRST": "TYPE_INT64", "MOST": "TYPE_INT64",
               "N": "TYPE_INT64"}
    text = 'backend: "onnxruntime"\nmax_batch_size: 8\n'
    text += 'input [ { name: "X" data_type: TYPE_FP32 dims: [ -1 ] allow_ragged_batch: true } ]\n'
    text += 'output [ { name: "TWICE" data_type: TYPE_FP32 dims: [ -1 ] }'
    for name, kind in outputs.items():
        text += f', {{ name: "{name}" data_type: {kind} dims: [ 1 ] reshape {{ shape: [ ] }} }}'
    text += " ]\n"
    for name, kind in KINDS.items():
        text += f'batch_input [ {{ kind: {kind} target_name: "{name}" data_type: {made_type} source_input: "X" }} ]\n'
    text += 'batch_output [ { target_name: "TWICE" kind: BATCH_SCATTER_WITH_INPUT_SHAPE source_input: "X" } ]\n'
    return text + "dynamic_batching { max_queue_delay_microseconds: 30000000 preferred_batch_size: [ 3 ] }\n"


def ragged_model(folder, name, made_type):
    """TWICE = 2 x, row by row of all; SUM of each request by the bounds; the other made inputs as they came."""
    kind = T.INT32 if made_type == "TYPE_INT32" else T.FLOAT
    one = [numpy_helper.from_array(np.array(v, np.int64), n) for n, v in
           {"zero": [0], "one": [1], "minus": [-1], "end": [1 << 40], "axis": 0}.items()]
    one += [numpy_helper.from_array(np.array([0], np.float32), "none"),
            numpy_helper.from_array(np.array([2], np.float32), "two")]
    node = h.make_node
    nodes = [node("Mul", ["X", "two"], ["TWICE"]),
             node("CumSum", ["X", "axis"], ["sums"]), node("Concat", ["none", "sums"], ["all"], axis=0),
             node("Cast", ["BOUNDS"], ["b"], to=T.INT64),
             node("Slice", ["b", "one", "end", "zero"], ["to"]), node("Slice", ["b", "zero", "minus", "zero"], ["from"]),
             node("Gather", ["all", "to"], ["upper"]), node("Gather", ["all", "from"], ["lower"]),
             node("Sub", ["upper", "lower"], ["SUM"]),
             node("Cast", ["ENDS"], ["LAST"], to=T.INT64), node("Cast", ["COUNT"], ["N"], to=T.INT64),
             node("Cast", ["FLAT"], ["WIDTH"], to=T.INT64),
             node("Cast", ["SHAPES"], ["s"], to=T.INT64), node("Squeeze", ["s", "one"], ["FIRST"]),
             node("Shape", ["LARGEST"], ["most"]), node("Shape", ["COUNT"], ["n"]), node("Expand", ["most", "n"], ["MOST"])]
    made = [h.make_tensor_value_info(n, kind, ["r", 1] if n == "SHAPES" else [f"{n}_n"]) for n in KINDS]
    outs = [h.make_tensor_value_info("TWICE", T.FLOAT, ["total"]), h.make_tensor_value_info("SUM", T.FLOAT, ["n1"])]
    outs += [h.make_tensor_value_info(n, T.INT64, [f"{n}_o"]) for n in ("LAST", "WIDTH", "FIRST", "MOST", "N")]
    graph = h.make_graph(nodes, "ragged", [h.make_tensor_value_info("X", T.FLOAT, ["elements"])] + made, outs, one)
    models.save(graph, folder, name, config=config(made_type))


@pytest.fixture(scope="module")
def one(module_server, tmp_path_factory):
    folder = tmp_path_factory.mktemp("repo")
    repository(folder, strings=IDENTITY)
    ragged_model(folder, "int32", "TYPE_INT32")
    ragged_model(folder, "fp32", "TYPE_FP32")
    return module_server("--no-keep-gallery", models=[folder])


def infer_all(s, name, bodies):
    """All of them wait for each other: a batch of three."""
    sent = []
    for body in bodies:
        c = H1(s.http)
        c.send(message("POST", f"/v2/models/{name}/infer", json.dumps(body)))
        sent.append(c)
    out = []
    for c in sent:
        r = c.response()
        assert r.status == 200, r
        out.append({o["name"]: o for o in r.json()["outputs"]})
    return out


@pytest.mark.parametrize("name", ["int32", "fp32"])
def test_onnx(one, name):
    rows = [[1, 2, 3], [10], [5, 5, 5, 5, 5]]
    before = ask(one.http, "GET", f"/v2/models/{name}/stats").json()["model_stats"][0]["execution_count"]
    bodies = [{"inputs": [{"name": "X", "datatype": "FP32", "shape": [1, len(r)], "data": r}]} for r in rows]
    got = infer_all(one, name, bodies)
    ends, order = set(), []
    for r, out in zip(rows, got):
        assert out["TWICE"]["data"] == [2 * v for v in r] and out["TWICE"]["shape"] == [1, len(r)]
        assert out["SUM"]["data"] == [sum(r)] and out["SUM"]["shape"] == [1, 1]
        assert out["N"]["data"] == out["WIDTH"]["data"] == out["FIRST"]["data"] == [len(r)]
        assert out["MOST"]["data"] == [5]
        order.append((out["LAST"]["data"][0], len(r)))
    total = 0
    for end, n in sorted(order):  # whatever the order in which the server read them
        total += n
        assert end == total
    stats = ask(one.http, "GET", f"/v2/models/{name}/stats").json()["model_stats"][0]
    assert stats["execution_count"] == before + 1


def test_strings(one):
    rows = [["a", "bb"], [""], ["x", "yyyy", "z" * 300, "é"]]
    got = infer_all(one, "strings", [{"inputs": [{"name": "INPUT0", "datatype": "BYTES", "shape": [1, len(r)], "data": r}]}
                                     for r in rows])
    for r, out in zip(rows, got):
        assert out["OUTPUT0"]["data"] == r and out["OUTPUT0"]["shape"] == [1, len(r)]


def test_a_request_of_several_rows_and_an_empty_one(one):
    bodies = [{"inputs": [{"name": "INPUT0", "datatype": "BYTES", "shape": [2, 2], "data": ["a", "b", "c", "d"]}]},
              {"inputs": [{"name": "INPUT0", "datatype": "BYTES", "shape": [1, 0], "data": []}]}]
    got = infer_all(one, "strings", bodies)
    assert got[0]["OUTPUT0"]["data"] == ["a", "b", "c", "d"] and got[0]["OUTPUT0"]["shape"] == [2, 2]
    assert got[1]["OUTPUT0"]["data"] == [] and got[1]["OUTPUT0"]["shape"] == [1, 0]


def test_configuration_is_checked(module_server, tmp_path_factory):
    cases = {
        "none": (IDENTITY.replace("max_batch_size: 8", "max_batch_size: 0").split("dynamic")[0], "max_batch_size is 0"),
        "source": (IDENTITY.replace('source_input: "INPUT0"', 'source_input: "Y"'), "no input of the model"),
        "sources": (IDENTITY.replace('source_input: "INPUT0"', ""), "exactly one source_input"),
        "target": (IDENTITY + 'batch_output [ { target_name: "Y" source_input: "INPUT0" } ]\n', "no output of the model"),
        "type": (IDENTITY + 'batch_input [ { target_name: "N" data_type: TYPE_INT64 source_input: "INPUT0" } ]\n',
                 "TYPE_INT32 or TYPE_FP32"),
        "reshape": (IDENTITY.replace("allow_ragged_batch: true", "allow_ragged_batch: true reshape { shape: [ -1, 1 ] }"),
                    "reshape"),
        "open": (IDENTITY.replace('"OUTPUT0" data_type: TYPE_STRING dims: [ -1 ]',
                                  '"OUTPUT0" data_type: TYPE_STRING dims: [ 1, -1 ]'), "open dimension"),
    }
    folder = tmp_path_factory.mktemp("bad")
    repository(folder, **{k: v for k, (v, _) in cases.items()})
    # a model whose input has a batch dimension cannot take a row of elements
    config = """max_batch_size: 8
input [ { name: "IN" data_type: TYPE_FP32 dims: [ -1 ] allow_ragged_batch: true } ]
output [ { name: "OUT" data_type: TYPE_FP32 dims: [ -1 ] } ]
batch_output [ { target_name: "OUT" source_input: "IN" } ]
"""
    models.identity(folder, "batched", dims=("batch", "n"), config=config)
    made = 'batch_input [ { target_name: "%s" data_type: TYPE_FP32 source_input: "IN" } ]'
    models.identity(folder, "made", dims=("n",), config=config + made % "IN")
    models.identity(folder, "unknown", dims=("n",), config=config + made % "N")
    models.save(h.make_graph([h.make_node("Identity", ["IN"], ["OUT"])], "two", [
        h.make_tensor_value_info(n, T.FLOAT, [n]) for n in ("IN", "N")], [h.make_tensor_value_info("OUT", T.FLOAT, ["IN"])]),
        folder, "twice", config=config + (made % "N").replace('"N"', '["N", "N"]'))
    s = module_server("--no-keep-gallery", models=[folder])
    index = {m["name"]: m for m in ask(s.http, "POST", "/v2/repository/index").json()}
    own = {"twice": "made twice", "batched": "must have the shape [-1]", "made": "listed as an input, too",
           "unknown": 'the model has no input "N"'}
    for name, said in {**{k: said for k, (_, said) in cases.items()}, **own}.items():
        assert index[name]["state"] == "UNAVAILABLE" and said in index[name]["reason"], (name, index[name])
