#!/usr/bin/env python3
"""Makes the models that scripts/bench and tests/perf serve.

    tests/perf/make_models.py FOLDER

writes FOLDER/<set>/<model>/<version>/model.onnx, each <set> a model repository without any
config.pbtxt:

    tiny      linear     X [N, 16] -> Y [N, 4], one product and a bias; the batch dimension is free
    single    linear     X [16] -> Y [4], the same without a batch dimension
    five, many           5 and 33 copies of the first
    picture   identity   X [1, 3, 224, 224] -> Y
    resnet    resnet50   light_resnet50 of the onnx package as it is: [1, 3, 224, 224], weights made
                         by constants inside the graph, so that 80 kB of file do ResNet-50's work
    resnet_n  resnet50   the same graph with a free batch dimension

Needs onnx and numpy. Files are written only when they would change.
"""
import pathlib
import sys

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WIDTH_IN, WIDTH_OUT = 16, 4


def finish(graph):
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], producer_name="naru bench")
    model.ir_version = 7
    onnx.checker.check_model(model, full_check=True)
    return model


def linear(batch):
    shape = ["N"] if batch else []
    rng = np.random.default_rng(1)
    weights = rng.normal(size=(WIDTH_IN, WIDTH_OUT)).astype(np.float32)
    bias = rng.normal(size=WIDTH_OUT).astype(np.float32)
    return finish(helper.make_graph(
        [helper.make_node("MatMul", ["X", "W"], ["P"]), helper.make_node("Add", ["P", "B"], ["Y"])], "linear",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, shape + [WIDTH_IN])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, shape + [WIDTH_OUT])],
        [numpy_helper.from_array(weights, "W"), numpy_helper.from_array(bias, "B")]))


def identity(shape):
    return finish(helper.make_graph(
        [helper.make_node("Identity", ["X"], ["Y"])], "identity",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, shape)]))


def light_resnet50():
    return onnx.load(pathlib.Path(onnx.__file__).parent / "backend/test/data/light/light_resnet50.onnx")


def free_batch(model):
    """The first dimension of inputs and outputs gets a name; a Reshape that fixes it lets it through."""
    weights = {w.name for w in model.graph.initializer}
    for value in [*model.graph.input, *model.graph.output]:
        if value.name not in weights:
            value.type.tensor_type.shape.dim[0].dim_param = "N"
    del model.graph.value_info[:]
    changed = 0
    targets = {node.input[1] for node in model.graph.node if node.op_type == "Reshape"}
    for weight in model.graph.initializer:
        if weight.name in targets:
            shape = numpy_helper.to_array(weight).copy()
            assert shape[0] == 1 and -1 not in shape[1:], f"{weight.name}: {shape}"
            shape[0] = -1
            weight.CopyFrom(numpy_helper.from_array(shape, weight.name))
            changed += 1
    assert changed == len(targets), "a Reshape whose shape is no constant"
    onnx.checker.check_model(model)
    return model


def write(path, model):
    path.parent.mkdir(parents=True, exist_ok=True)
    content = model.SerializeToString(deterministic=True)
    if not path.exists() or path.read_bytes() != content:
        path.write_bytes(content)


def main():
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        print(__doc__)
        return 2
    root = pathlib.Path(sys.argv[1])
    tiny = linear(batch=True)
    models = {"tiny/linear": tiny, "single/linear": linear(batch=False),
              "picture/identity": identity([1, 3, 224, 224]),
              "resnet/resnet50": light_resnet50(), "resnet_n/resnet50": free_batch(light_resnet50())}
    models.update({f"five/linear_{i}": tiny for i in range(5)})
    models.update({f"many/linear_{i:02}": tiny for i in range(33)})
    for name, model in models.items():
        write(root / name / "1" / "model.onnx", model)
    return 0


if __name__ == "__main__":
    sys.exit(main())
