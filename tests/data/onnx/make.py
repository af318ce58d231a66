#!/usr/bin/env python3
"""Makes the small models that the tests of the onnxruntime plug-in open. Needs the onnx package.

Every file is a model directory's version folder in miniature, under 2 KB; the results are committed,
so tests need nothing of Python. Run it again after a change: the output is deterministic.
"""
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HERE = Path(__file__).resolve().parent
OPSET = [helper.make_opsetid("", 17)]
TYPES = {
    "bool": TensorProto.BOOL, "uint8": TensorProto.UINT8, "uint16": TensorProto.UINT16,
    "uint32": TensorProto.UINT32, "uint64": TensorProto.UINT64, "int8": TensorProto.INT8,
    "int16": TensorProto.INT16, "int32": TensorProto.INT32, "int64": TensorProto.INT64,
    "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16, "fp32": TensorProto.FLOAT,
    "fp64": TensorProto.DOUBLE, "bytes": TensorProto.STRING,
}


def info(name, dtype, shape):
    return helper.make_tensor_value_info(name, dtype, shape)


def save(name, nodes, inputs, outputs, weights=(), **more):
    graph = helper.make_graph(list(nodes), name, inputs, outputs, list(weights))
    model = helper.make_model(graph, opset_imports=OPSET, ir_version=8, producer_name="naru", **more)
    onnx.checker.check_model(model)
    path = HERE / f"{name}.onnx"
    onnx.save(model, path)
    return model


def main():
    f = TensorProto.FLOAT
    node = helper.make_node
    save("add_sub",
         [node("Add", ["INPUT0", "INPUT1"], ["OUTPUT0"]), node("Sub", ["INPUT0", "INPUT1"], ["OUTPUT1"])],
         [info("INPUT0", f, ["N", 16]), info("INPUT1", f, ["N", 16])],
         [info("OUTPUT0", f, ["N", 16]), info("OUTPUT1", f, ["N", 16])])
    for name, dtype in TYPES.items():
        save(f"identity_{name}", [node("Identity", ["INPUT0"], ["OUTPUT0"])],
             [info("INPUT0", dtype, ["N", "M"])], [info("OUTPUT0", dtype, ["N", "M"])])
    # A shape that only the run knows.
    save("nonzero", [node("NonZero", ["X"], ["T"]), node("Transpose", ["T"], ["Y"])],
         [info("X", f, ["N"])], [info("Y", TensorProto.INT64, ["K", 1])])
    # No batch dimension at all.
    save("fixed", [node("Mul", ["X", "X"], ["Y"])], [info("X", f, [2, 3])], [info("Y", f, [2, 3])])
    # Control flow.
    then = helper.make_graph([node("Neg", ["X"], ["T"])], "then", [], [info("T", f, ["N", 4])])
    other = helper.make_graph([node("Identity", ["X"], ["E"])], "other", [], [info("E", f, ["N", 4])])
    save("branch",
         [node("ReduceSum", ["X"], ["S"], keepdims=0), node("Less", ["S", "zero"], ["C"]),
          node("If", ["C"], ["Y"], then_branch=then, else_branch=other)],
         [info("X", f, ["N", 4])], [info("Y", f, ["N", 4])],
         [numpy_helper.from_array(np.zeros((), np.float32), "zero")])
    # Weights in a file of their own, and an error of the runtime that a client can bring about.
    weights = np.arange(64, dtype=np.float32).reshape(16, 4)
    model = save("external", [node("MatMul", ["X", "W"], ["Y"])], [info("X", f, ["N", 16])],
                 [info("Y", f, ["N", 4])], [numpy_helper.from_array(weights, "W")])
    for part in ("external.onnx", "external.weights"):
        (HERE / part).unlink(missing_ok=True)
    onnx.save(model, HERE / "external.onnx", save_as_external_data=True, all_tensors_to_one_file=True,
              location="external.weights", size_threshold=0)
    save("gather", [node("Gather", ["table", "I"], ["Y"])], [info("I", TensorProto.INT64, ["N", 1])],
         [info("Y", f, ["N", 1, 2])], [numpy_helper.from_array(np.array([[1, 2], [3, 4]], np.float32), "table")])
    # One output that is no tensor, as exporters of classifiers make them.
    i64 = TensorProto.INT64
    save("horner", [node("Mul", ["S_IN", "three"], ["M"]), node("Add", ["M", "X"], ["Y"]),
                    node("Identity", ["Y"], ["S_OUT"])],
         [info("X", i64, ["N", 1]), info("S_IN", i64, ["N", 1])], [info("Y", i64, ["N", 1]), info("S_OUT", i64, ["N", 1])],
         [numpy_helper.from_array(np.array(3, np.int64), "three")])
    save("sequence", [node("Identity", ["X"], ["Y"]), node("SequenceConstruct", ["X"], ["Z"])],
         [info("X", f, ["N", 2])],
         [info("Y", f, ["N", 2]), helper.make_tensor_sequence_value_info("Z", f, None)])
    # A convolution: enough to be given a pool of threads.
    save("conv", [node("Conv", ["X", "W"], ["Y"], pads=[1, 1, 1, 1])], [info("X", f, ["N", 1, 8, 8])],
         [info("Y", f, ["N", 1, 8, 8])], [numpy_helper.from_array(np.ones((1, 1, 3, 3), np.float32), "W")])
    (HERE / "broken.onnx").write_bytes(b"\x08\x08this is no model\xff\xff\xff\xff")


if __name__ == "__main__":
    main()
