"""Small ONNX models that tests make for themselves, and their plain-Python answers."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto as T
from onnx import helper as h

# KServe name -> (ONNX type, NumPy type); BF16 has no NumPy type and travels as uint16.
DTYPES = {
    "BOOL": (T.BOOL, np.bool_), "UINT8": (T.UINT8, np.uint8), "UINT16": (T.UINT16, np.uint16),
    "UINT32": (T.UINT32, np.uint32), "UINT64": (T.UINT64, np.uint64), "INT8": (T.INT8, np.int8),
    "INT16": (T.INT16, np.int16), "INT32": (T.INT32, np.int32), "INT64": (T.INT64, np.int64),
    "FP16": (T.FLOAT16, np.float16), "FP32": (T.FLOAT, np.float32), "FP64": (T.DOUBLE, np.float64),
    "BYTES": (T.STRING, np.object_),
}


def save(graph, folder, name, version=1, config=None):
    """Writes <folder>/<name>/<version>/model.onnx; returns the model's folder."""
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    where = Path(folder) / name / str(version)
    where.mkdir(parents=True)
    onnx.save(model, where / "model.onnx")
    if config is not None:
        (where.parent / "config.pbtxt").write_text(config)
    return where.parent


def identity(folder, name, dtype="FP32", dims=("batch", 16), **rest):
    kind = DTYPES[dtype][0]
    graph = h.make_graph([h.make_node("Identity", ["IN"], ["OUT"])], "identity",
                         [h.make_tensor_value_info("IN", kind, dims)],
                         [h.make_tensor_value_info("OUT", kind, dims)])
    return save(graph, folder, name, **rest)


def linear(folder, name, batch="batch", seed=1, **rest):
    """16 -> 4: a matrix product and a bias. Returns (weights, bias)."""
    rng = np.random.default_rng(seed)
    w, b = rng.normal(size=(16, 4)).astype(np.float32), rng.normal(size=4).astype(np.float32)
    shape = ([batch] if batch is not None else [])
    graph = h.make_graph(
        [h.make_node("MatMul", ["X", "W"], ["P"]), h.make_node("Add", ["P", "B"], ["Y"])], "linear",
        [h.make_tensor_value_info("X", T.FLOAT, shape + [16])],
        [h.make_tensor_value_info("Y", T.FLOAT, shape + [4])],
        [onnx.numpy_helper.from_array(w, "W"), onnx.numpy_helper.from_array(b, "B")])
    save(graph, folder, name, **rest)
    return w, b


def add_sub(folder, name="add_sub", **rest):
    info = lambda n: h.make_tensor_value_info(n, T.FLOAT, ["batch", 16])  # noqa: E731
    graph = h.make_graph([h.make_node("Add", ["INPUT0", "INPUT1"], ["OUTPUT0"]),
                          h.make_node("Sub", ["INPUT0", "INPUT1"], ["OUTPUT1"])], "add_sub",
                         [info("INPUT0"), info("INPUT1")], [info("OUTPUT0"), info("OUTPUT1")])
    return save(graph, folder, name, **rest)
