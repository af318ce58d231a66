"""Pipelines with decoupled members, asked by ModelStreamInfer with tritonclient: `repeat` in front of, behind and between
ordinary models, within another ensemble, with slow readers and with very many answers."""

import json
import queue
import threading
import time

import pytest

from conftest import wait_until
from counts import metric
from plugin_models import model, repository
from rawhttp import H2, SERVICE, ask, infer_pb

grpc = pytest.importorskip("grpc", reason="grpcio is not installed")
grpcclient = pytest.importorskip("tritonclient.grpc", reason="tritonclient is not installed")
import numpy as np  # noqa: E402
from tritonclient.grpc import service_pb2  # noqa: E402

IO = [("INPUT0", "FP32", [-1])]
DECOUPLED = "model_transaction_policy { decoupled: true }\n"


def ensemble(*steps, extra="", outputs=("OUT",)):
    """steps: (model, [tensors read], tensor written)."""
    text = 'platform: "ensemble"\ninput { name: "IN" data_type: TYPE_FP32 dims: [ -1 ] }\n'
    for name in outputs:
        text += f'output {{ name: "{name}" data_type: TYPE_FP32 dims: [ -1 ] }}\n'
    text += "ensemble_scheduling {\n"
    for name, reads, writes in steps:
        own = name.startswith("naru.") or name in ("chain", "front")
        keys = {"naru.join": ["INPUT0", "INPUT1"], "naru.if": ["CONDITION", "INPUT"]}.get(name, ["IN" if own else "INPUT0"])
        key = {"naru.join": "OUTPUT", "naru.if": "THEN"}.get(name, "OUT" if own else "OUTPUT0")
        maps = "".join(f' input_map {{ key: "{k}" value: "{v}" }}' for k, v in zip(keys, reads))
        text += f'  step {{ model_name: "{name}"{maps} output_map {{ key: "{key}" value: "{writes}" }} }}\n'
    return text + extra + "}\n"


@pytest.fixture(scope="module")
def one(module_server, tmp_path_factory):
    models = {
        "plain": model("identity", IO),
        "late": model("delay", IO, delay_us=2000, extra="instance_group [ { count: 4 kind: KIND_CPU } ]\n"),
        "many": model("repeat", IO, extra=DECOUPLED, responses=4),
        "after": model("repeat", IO, extra=DECOUPLED, responses=4, end="after"),
        "batch": model("repeat", IO, extra=DECOUPLED, responses=4, end="batch"),
        "faulty": model("fault", IO, fault="execute_error", fault_every=3),
        "front": ensemble(("many", ["IN"], "a"), ("late", ["a"], "OUT")),
        "behind": ensemble(("late", ["IN"], "a"), ("after", ["a"], "OUT")),
        "between": ensemble(("plain", ["IN"], "a"), ("batch", ["a"], "b"), ("late", ["b"], "OUT")),
        "beside": ensemble(("many", ["IN"], "a"), ("late", ["IN"], "b"), ("naru.join", ["a", "b"], "OUT"), outputs=("OUT",)),
        "both": ensemble(("many", ["IN"], "a"), ("plain", ["IN"], "SAME"), ("plain", ["a"], "OUT"), outputs=("OUT", "SAME")),
        "chain": ensemble(("many", ["IN"], "a"), ("batch", ["a"], "b"), ("late", ["b"], "OUT")),
        "nested": ensemble(("front", ["IN"], "a"), ("plain", ["a"], "OUT")),
        "deep": ensemble(("front", ["IN"], "a"), ("chain", ["a"], "OUT")),
        "breaks": ensemble(("many", ["IN"], "a"), ("faulty", ["a"], "OUT"), extra="max_inflight_requests: 1\n"),
        "wrong": ensemble(("many", ["IN"], "a"), ("after", ["IN"], "b"), ("naru.join", ["a", "b"], "OUT")),
        "sure": ensemble(("many", ["IN"], "a"), ("naru.if", ["a", "a"], "OUT"))
        + 'parameters { key: "naru.step.1.compare" value { string_value: ">" } }\n',
    }
    return module_server("--no-keep-gallery", "--io-threads", 2,
                         models=[repository(tmp_path_factory.mktemp("repo"), **models)])


def stream(s, name, inputs, empty_final=False, outputs=("OUT",), seconds=60, **parameters):
    """All answers to each of the inputs, by id: [(values of each output, final)], or the error's text last."""
    got = queue.Queue()
    client = grpcclient.InferenceServerClient(f"127.0.0.1:{s.grpc}")
    client.start_stream(lambda result, error: got.put((result, error)))
    for i, values in enumerate(inputs):
        t = grpcclient.InferInput("IN", [len(values)], "FP32")
        t.set_data_from_numpy(np.array(values, np.float32))
        client.async_stream_infer(name, [t], request_id=str(i), parameters=parameters or None,
                                  enable_empty_final_response=empty_final)
    client.stop_stream()  # returns when all has come
    answers = {str(i): [] for i in range(len(inputs))}
    while not got.empty():
        result, error = got.get()
        if error is not None:
            answers.setdefault("error", []).append(str(error))
            continue
        r = result.get_response()
        row = [result.as_numpy(o).tolist() for o in outputs if result.as_numpy(o) is not None]
        answers[r.id].append((row, r.parameters["triton_final_response"].bool_param))
    return answers


@pytest.mark.parametrize("name,times", [("front", 4), ("behind", 4), ("between", 4), ("chain", 16), ("nested", 4), ("deep", 64)])
def test_where_the_decoupled_step_stands(one, name, times):
    inputs = [[i, i + 0.5] for i in range(6)]
    answers = stream(one, name, inputs, empty_final=True)
    for i, values in enumerate(inputs):
        rows = answers[str(i)]
        full = [r for r in rows if r[0]]
        assert len(full) == times and all(r[0] == [values] for r in full)
        assert [r[1] for r in rows] == [False] * (len(rows) - 1) + [True]  # one final one, and last


def test_the_last_answer_says_so_where_it_is_known(one):
    assert [f for _, f in stream(one, "front", [[1]])["0"]] == [False] * 3 + [True]
    assert len(stream(one, "between", [[1]])["0"]) == 4  # no empty one for who did not ask


def test_a_branch_beside_is_there_for_every_answer(one):
    assert [r[0] for r in stream(one, "beside", [[1, 2]])["0"]] == [[[1, 2, 1, 2]]] * 4
    assert [r[0] for r in stream(one, "both", [[3]], outputs=("OUT", "SAME"))["0"]] == [[[3], [3]]] * 4


def test_none_and_one_and_over_methods_with_one_answer(one):
    def body(n):
        return json.dumps({"parameters": {"responses": n},
                           "inputs": [{"name": "IN", "datatype": "FP32", "shape": [2], "data": [1.5, 2]}]})

    assert stream(one, "front", [[1]], responses=0)["0"] == []
    assert stream(one, "front", [[1]], empty_final=True, responses=0)["0"] == [([], True)]
    assert ask(one.http, "POST", "/v2/models/front/infer", body(1)).json()["outputs"][0]["data"] == [1.5, 2]
    assert ask(one.http, "POST", "/v2/models/front/infer", body(0)).json()["outputs"] == []
    r = ask(one.http, "POST", "/v2/models/front/infer", body(2))
    assert r.status == 400 and "several responses" in r.error
    assert ask(one.http, "POST", "/v2/models/sure/infer", body(1)).json()["outputs"][0]["data"] == [1.5, 2]


def test_answers_that_a_condition_leaves_out(one):
    assert len(stream(one, "sure", [[1]])["0"]) == 4
    assert stream(one, "sure", [[-1]], empty_final=True)["0"] == [([], True)]


def test_a_failure_comes_in_its_turn(one):
    answers = stream(one, "breaks", [[1]], responses=50)
    assert 'step 1 (model "faulty")' in answers["error"][0] and len(answers["error"]) == 1
    assert len(answers["0"]) < 3 and all(r == ([[1]], False) for r in answers["0"])
    assert stream(one, "front", [[1]])["0"]  # and nothing is left behind


def test_configuration_says_it(one):
    """As with Triton: the members decide, whatever the ensemble's configuration says."""
    client = grpcclient.InferenceServerClient(f"127.0.0.1:{one.grpc}")
    for name, is_decoupled in (("front", True), ("deep", True), ("plain", False)):
        c = ask(one.http, "GET", f"/v2/models/{name}/config").json()
        assert c.get("model_transaction_policy", {}).get("decoupled", False) == is_decoupled
        assert client.get_model_config(name).config.model_transaction_policy.decoupled == is_decoupled
    index = {m["name"]: m for m in ask(one.http, "POST", "/v2/repository/index").json()}
    assert "both decoupled and neither reads" in index["wrong"]["reason"]


def test_ten_thousand_small_answers(one):
    rows = stream(one, "front", [[7]], responses=10000)["0"]
    assert len(rows) == 10000 and rows[0] == ([[7]], False) and rows[-1] == ([[7]], True)
    with open(f"/proc/{one.pid}/status", encoding="ascii") as f:
        peak = int(next(line for line in f if line.startswith("VmHWM")).split()[1])
    assert peak < 256 << 10


def resident(s):
    with open(f"/proc/{s.pid}/statm", encoding="ascii") as f:
        return int(f.read().split()[1]) * 4096


def running(s, name):
    stats = ask(s.http, "GET", f"/v2/models/{name}/stats").json()["model_stats"][0]
    return stats["inference_stats"]["success"]["count"]


def test_a_slow_reader_holds_the_producer(one):
    """A reader that takes nothing: the step behind the producer runs as often as the window allows, and no more. When he has
    gone, all ends."""
    before, memory = running(one, "late"), resident(one)
    data = infer_pb("front", [("IN", "FP32", [4096])], raw=[b"\1" * 16384], params=[("responses", 100000)])
    reader = H2(one.grpc, window=1024)
    reader.grpc(SERVICE + "ModelStreamInfer", data)
    wait_until(lambda: running(one, "late") > before, what="the first answer")
    seen = -1
    while running(one, "late") != seen:  # at rest when nothing comes for a while
        seen = running(one, "late")
        time.sleep(0.5)
    assert seen - before <= 64
    assert resident(one) - memory < 16 << 20  # of the 1.6 GB that the producer has to give
    reader.abort()
    wait_until(lambda: metric(one, "nv_inference_pending_request_count", model="front") == 0, what="the end of the run")
    assert stream(one, "front", [[1]])["0"]


def test_a_cancel_reaches_the_producer(one):
    from tritonclient.grpc import service_pb2_grpc

    with grpc.insecure_channel(f"127.0.0.1:{one.grpc}") as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        r = service_pb2.ModelInferRequest(model_name="front")
        r.inputs.add(name="IN", datatype="FP32", shape=[1])
        r.raw_input_contents.append(np.float32(1).tobytes())
        r.parameters["responses"].int64_param = 1000000
        done = threading.Event()

        def requests():
            yield r
            done.wait(60)

        call = stub.ModelStreamInfer(requests(), timeout=60)
        assert next(iter(call)).error_message == ""
        call.cancel()
        done.set()
    wait_until(lambda: metric(one, "nv_inference_pending_request_count", model="many") == 0
               and metric(one, "nv_inference_pending_request_count", model="front") == 0, what="the end of the run")
    assert stream(one, "front", [[1]])["0"]  # its only instance is free again
