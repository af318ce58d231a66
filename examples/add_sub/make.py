#!/usr/bin/env python3
"""Make the example model "add_sub": OUTPUT0 = INPUT0 + INPUT1, OUTPUT1 = INPUT0 - INPUT1.

Writes ../models/add_sub/1/model.onnx and, where onnxruntime is installed,
runs it once against numpy.  All four tensors are FP32 [N, 16] with a free
batch dimension N.  The same file comes out at every run.
"""

import argparse
import pathlib

import numpy as np
import onnx
from onnx import TensorProto, helper

MODEL = pathlib.Path(__file__).resolve().parent.parent / "models" / "add_sub" / "1" / "model.onnx"
WIDTH = 16


def graph():
    """The model: two nodes, opset 13, so that old runtimes read it too."""

    def tensor(name):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", WIDTH])

    nodes = [
        helper.make_node("Add", ["INPUT0", "INPUT1"], ["OUTPUT0"], name="sum"),
        helper.make_node("Sub", ["INPUT0", "INPUT1"], ["OUTPUT1"], name="difference"),
    ]
    body = helper.make_graph(
        nodes, "add_sub", [tensor("INPUT0"), tensor("INPUT1")], [tensor("OUTPUT0"), tensor("OUTPUT1")]
    )
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 13)], producer_name="naru examples")
    model.ir_version = 7
    onnx.checker.check_model(model, full_check=True)
    return model


def check(path):
    """Run the file on batches of 1 and 3; returns False where onnxruntime is missing."""
    try:
        import onnxruntime
    except ImportError:
        return False
    run = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    for batch in (1, 3):
        a, b = rng.normal(size=(2, batch, WIDTH)).astype(np.float32)
        total, difference = run.run(["OUTPUT0", "OUTPUT1"], {"INPUT0": a, "INPUT1": b})
        if not (np.array_equal(total, a + b) and np.array_equal(difference, a - b)):
            raise SystemExit(f"{path} does not compute sum and difference for a batch of {batch}")
    return True


def main():
    """Write the file, check it, say so."""
    parser = argparse.ArgumentParser(
        description="Make the example model add_sub (sum and difference of two FP32 vectors of 16)."
    )
    parser.add_argument("--model", type=pathlib.Path, default=MODEL, help="file to write (default %(default)s)")
    path = parser.parse_args().model
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(graph().SerializeToString(deterministic=True))
    checked = "checked with onnxruntime" if check(path) else "not run: onnxruntime is not installed"
    print(f"{path}: {path.stat().st_size} bytes, {checked}")


if __name__ == "__main__":
    main()
