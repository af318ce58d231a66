"""Small ONNX models with state and control tensors, their configurations, and their answers in NumPy."""

import numpy as np
from onnx import TensorProto as T
from onnx import helper as h

import models

OLDEST = "oldest { max_candidate_sequences: 64 }"


def _io(names, dims, kind="TYPE_INT64"):
    return ", ".join(f'{{ name: "{n}" data_type: {kind} dims: [ {dims} ] }}' for n in names)


def config(inputs, outputs, batch=8, strategy=OLDEST, controls="", state="", idle_us=20_000_000, extra=""):
    return (f"max_batch_size: {batch}\ninput [ {inputs} ]\noutput [ {outputs} ]\n"
            f"sequence_batching {{ max_sequence_idle_microseconds: {idle_us} {strategy}\n{controls}\n{state} }}\n{extra}\n")


def control(name, kind, how):
    return f'control_input [ {{ name: "{name}" control [ {{ kind: CONTROL_SEQUENCE_{kind} {how} }} ] }} ]'


def value(name, dims=(2,), kind=T.INT64):
    return h.make_tensor_value_info(name, kind, ["batch", *dims])


def horner(folder, name="horner", batch=8, strategy=OLDEST, initial="", state_more="", idle_us=20_000_000, extra="", **rest):
    """Y = 3 * state + X; the state is the last Y. What comes out depends on every X and their order."""
    three = models.onnx.numpy_helper.from_array(np.array(3, np.int64), "three")
    batched = batch > 0
    info = (lambda n: value(n)) if batched else (lambda n: h.make_tensor_value_info(n, T.INT64, [2]))
    graph = h.make_graph(
        [h.make_node("Mul", ["S_IN", "three"], ["M"]), h.make_node("Add", ["M", "X"], ["Y"]),
         h.make_node("Identity", ["Y"], ["S_OUT"])],
        name, [info("X"), info("S_IN")], [info("Y"), info("S_OUT")], [three])
    state = f'state [ {{ input_name: "S_IN" output_name: "S_OUT" data_type: TYPE_INT64 dims: [ 2 ] {initial} {state_more} }} ]'
    return models.save(graph, folder, name,
                       config=config(_io(["X"], 2), _io(["Y"], 2), batch, strategy, state=state, idle_us=idle_us,
                                     extra=extra), **rest)


def horner_answers(xs, first=0):
    y, out = np.full(2, first, np.int64), []
    for x in xs:
        y = 3 * y + x
        out.append(y)
    return out


def growing(folder, name="growing", more="use_same_buffer_for_input_output: true use_growable_memory: true", **rest):
    """The state is the list of all X so far (it begins with one 0); Y is their sum."""
    axes = models.onnx.numpy_helper.from_array(np.array([1], np.int64), "axes")
    graph = h.make_graph(
        [h.make_node("Concat", ["S_IN", "X"], ["S_OUT"], axis=1),
         h.make_node("ReduceSum", ["S_OUT", "axes"], ["Y"], keepdims=1)],
        name, [value("X", ["k"]), value("S_IN", ["n"])], [value("Y", [1]), value("S_OUT", ["m"])], [axes])
    state = f'state [ {{ input_name: "S_IN" output_name: "S_OUT" data_type: TYPE_INT64 dims: [ -1 ] {more} }} ]'
    return models.save(graph, folder, name, config=config(_io(["X"], -1), _io(["Y"], 1), state=state), **rest)


ID_TYPES = {"UINT64": T.UINT64, "INT64": T.INT64, "UINT32": T.UINT32, "INT32": T.INT32, "STRING": T.STRING}


def controls(folder, name="controls", strategy="direct { }", id_type="UINT64", batch=4, idle_us=20_000_000, **rest):
    """SEEN: X and the three flags as they came (int32 1/2, fp32 0/1.5 times two, bool); ID: the correlation id."""
    kind = ID_TYPES[id_type]
    nodes = [h.make_node("Cast", ["START"], ["a"], to=T.INT64), h.make_node("Add", ["READY", "READY"], ["r2"]),
             h.make_node("Cast", ["r2"], ["b"], to=T.INT64), h.make_node("Cast", ["END"], ["c"], to=T.INT64),
             h.make_node("Concat", ["X", "a", "b", "c"], ["SEEN"], axis=1), h.make_node("Identity", ["CORR"], ["ID"])]
    graph = h.make_graph(
        nodes, name,
        [value("X", [1]), value("START", [1], T.INT32), value("READY", [1], T.FLOAT), value("END", [1], T.BOOL),
         value("CORR", [1], kind)],
        [value("SEEN", [4]), value("ID", [1], kind)])
    tensors = "\n".join([control("START", "START", "int32_false_true: [ 1, 2 ]"),
                         control("READY", "READY", "fp32_false_true: [ 0.0, 1.5 ]"),
                         control("END", "END", "bool_false_true: [ false, true ]"),
                         control("CORR", "CORRID", f"data_type: TYPE_{id_type}")])
    return models.save(graph, folder, name,
                       config=config(_io(["X"], 1), _io(["SEEN"], 4) + ", " + _io(["ID"], 1, f"TYPE_{id_type}"),
                                     batch, strategy, tensors, idle_us=idle_us), **rest)


def rows(folder, name="rows", batch=4, strategy="direct { }", **rest):
    """What the whole batch looked like, in every answer: each row sees the sum over rows of
    (READY ? 100^row : 0), which only a model with fixed places could use."""
    base = models.onnx.numpy_helper.from_array(np.array([100 ** k for k in range(8)], np.int64).reshape(-1, 1), "base")
    zero, one = (models.onnx.numpy_helper.from_array(np.array([v], np.int64), n) for v, n in ((0, "zero"), (1, "one")))
    nodes = [h.make_node("Shape", ["X"], ["shape"]), h.make_node("Slice", ["shape", "zero", "one", "zero"], ["n"]),
             h.make_node("Slice", ["base", "zero", "n", "zero"], ["powers"]),
             h.make_node("Cast", ["READY"], ["ready"], to=T.INT64), h.make_node("Mul", ["ready", "powers"], ["p"]),
             h.make_node("ReduceSum", ["p", "zero"], ["sum"], keepdims=1),
             h.make_node("Sub", ["X", "X"], ["nought"]), h.make_node("Add", ["nought", "sum"], ["MAP"])]
    graph = h.make_graph(nodes, name, [value("X", [1]), value("READY", [1], T.INT32)], [value("MAP", [1])],
                         [base, zero, one])
    return models.save(graph, folder, name,
                       config=config(_io(["X"], 1), _io(["MAP"], 1), batch, strategy,
                                     control("READY", "READY", "int32_false_true: [ 0, 1 ]")), **rest)
