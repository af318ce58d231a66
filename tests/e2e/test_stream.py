"""ModelStreamInfer: many inferences over one gRPC call, with tritonclient and with grpcio by hand."""

import json
import queue
import time

import pytest

from conftest import wait_until
from plugin_models import model, repository
from rawhttp import ask

grpc = pytest.importorskip("grpc", reason="grpcio is not installed")
grpcclient = pytest.importorskip("tritonclient.grpc", reason="tritonclient is not installed")
import numpy as np  # noqa: E402
from tritonclient.grpc import service_pb2, service_pb2_grpc  # noqa: E402

IO = [("INPUT0", "FP32", [-1])]
DECOUPLED = "model_transaction_policy { decoupled: true }\n"
MANY = 30 * 1024 * 1024


@pytest.fixture(scope="module")
def one(module_server, tmp_path_factory):
    models = {
        "plain": model("identity", IO),
        "batched": model("identity", IO, batch=8, extra="dynamic_batching { }\n"),
        "late": model("delay", IO, delay_us=200000),
        "many": model("repeat", IO, extra=DECOUPLED),
        "after": model("repeat", IO, extra=DECOUPLED, end="after"),
        "slow_many": model("repeat", IO, extra=DECOUPLED, responses=4, delay_us=50000),
    }
    return module_server("--no-keep-gallery", "--io-threads", 2,
                         models=[repository(tmp_path_factory.mktemp("repo"), **models)])


def request(name, values, id="", **parameters):
    r = service_pb2.ModelInferRequest(model_name=name, id=id)
    t = r.inputs.add(name="INPUT0", datatype="FP32", shape=[len(values)] if name != "batched" else [1, len(values)])
    del t
    r.raw_input_contents.append(np.array(values, np.float32).tobytes())
    for k, v in parameters.items():
        if isinstance(v, bool):
            r.parameters[k].bool_param = v
        else:
            r.parameters[k].int64_param = v
    return r


def values(response):
    return np.frombuffer(response.raw_output_contents[0], np.float32).tolist()


def final(response):
    return response.parameters["triton_final_response"].bool_param


@pytest.fixture
def stub(one):
    with grpc.insecure_channel(f"127.0.0.1:{one.grpc}", options=[("grpc.max_receive_message_length", -1),
                                                                   ("grpc.max_send_message_length", -1)]) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def run(stub, requests, **how):
    return list(stub.ModelStreamInfer(iter(requests), timeout=60, **how))


def test_tritonclient(one):
    client = grpcclient.InferenceServerClient(f"127.0.0.1:{one.grpc}")
    got = queue.Queue()
    client.start_stream(lambda result, error: got.put((result, error)))
    for i in range(50):
        t = grpcclient.InferInput("INPUT0", [3], "FP32")
        t.set_data_from_numpy(np.array([i, i + 1, i + 2], np.float32))
        client.async_stream_infer("plain", [t], request_id=str(i))
    for i in range(50):
        result, error = got.get(timeout=60)
        assert error is None and result.get_response().id == str(i)
        assert result.as_numpy("OUTPUT0").tolist() == [i, i + 1, i + 2]
    client.stop_stream()
    client.close()


def test_order_of_ordinary_models(stub):
    """A slow model between fast ones: answers keep the order of the requests."""
    requests = []
    for i in range(12):
        requests.append(request(["plain", "late", "batched"][i % 3], [i], id=str(i)))
    answers = run(stub, requests)
    assert [a.infer_response.id for a in answers] == [str(i) for i in range(12)]
    assert [values(a.infer_response) for a in answers] == [[i] for i in range(12)]
    assert all(final(a.infer_response) and not a.error_message for a in answers)


def test_decoupled(stub):
    answers = [a.infer_response for a in run(stub, [request("many", [7], id="a", responses=5)])]
    assert [values(a) for a in answers] == [[7]] * 5
    assert [final(a) for a in answers] == [False] * 4 + [True]
    assert run(stub, [request("many", [7], responses=0)]) == []


def test_decoupled_interleaves_and_does_not_wait(stub):
    """Ordinary answers come while a decoupled model is still at its own."""
    answers = [a.infer_response.id for a in run(stub, [request("slow_many", [1], id="slow", delay_us=500000), request("plain", [2], id="fast")])]
    assert sorted(answers) == ["fast"] + ["slow"] * 4 and answers[-1] == "slow"
    assert answers.index("fast") < 4


@pytest.mark.parametrize("wanted", [True, False])
def test_empty_final_response(stub, wanted):
    answers = [a.infer_response for a in run(stub, [
        request("after", [1], id="x", responses=2, triton_enable_empty_final_response=wanted),
        request("many", [1], id="y", responses=0, triton_enable_empty_final_response=wanted)])]
    x = [a for a in answers if a.id == "x"]
    assert [len(a.outputs) for a in x] == ([1, 1, 0] if wanted else [1, 1])
    assert [final(a) for a in x] == ([False, False, True] if wanted else [False, False])
    y = [a for a in answers if a.id == "y"]
    assert [(len(a.outputs), final(a)) for a in y] == ([(0, True)] if wanted else [])


def test_errors_stay_in_the_stream(stub):
    answers = run(stub, [request("plain", [1], id="a"), request("no_such_model", [1], id="b"), request("plain", [2], id="c"),
                         request("many", [1], id="d", responses=-1), request("plain", [3], id="e")])
    by_id = {a.infer_response.id: a for a in answers}
    assert len(answers) == 5
    assert "no_such_model" in by_id["b"].error_message and "responses" in by_id["d"].error_message
    assert [values(by_id[i].infer_response) for i in "ace"] == [[1], [2], [3]]
    bad = request("plain", [1], id="f")
    bad.raw_input_contents[0] = b"\0" * 3
    answers = run(stub, [bad, request("plain", [4], id="g")])
    assert [a.infer_response.id for a in answers] == ["f", "g"] and answers[0].error_message


def test_errors_end_the_call_when_asked(stub):
    """triton_grpc_error: the first error is the call's status, and cancels the rest."""
    seen, asks = [], queue.Queue()
    asks.put(request("plain", [1], id="a"))
    with pytest.raises(grpc.RpcError) as e:
        for a in stub.ModelStreamInfer(iter(asks.get, None), metadata=[("triton_grpc_error", "true")], timeout=60):
            seen.append(a.infer_response.id)
            asks.put(request("no_such_model", [1], id="b"))
            asks.put(request("late", [1], id="c"))
    asks.put(None)
    assert e.value.code() == grpc.StatusCode.NOT_FOUND and "no_such_model" in e.value.details()
    assert seen == ["a"]


def test_large_messages(stub):
    big = list(range(1000000))
    answers = run(stub, [request("plain", big, id="0"), request("plain", [1], id="1"), request("plain", big, id="2")])
    assert [len(values(a.infer_response)) for a in answers] == [1000000, 1, 1000000]
    assert values(answers[2].infer_response)[-1] == 999999


def test_an_endless_client_is_served_as_it_asks(stub):
    """The client waits for each answer before it asks again: nothing is held back until it has finished."""
    asks = queue.Queue()
    asks.put(request("plain", [0]))
    n = 0
    for a in stub.ModelStreamInfer(iter(asks.get, None), timeout=60):
        assert values(a.infer_response) == [n]
        n += 1
        asks.put(request("plain", [n]) if n < 3000 else None)
    assert n == 3000  # gRPC's C core widens both windows by some bytes after each of them: no abuse


def test_many_small_answers(stub):
    assert sum(1 for _ in stub.ModelStreamInfer(iter([request("many", [1], responses=10000)]), timeout=60)) == 10000


def test_deadline(stub):
    with pytest.raises(grpc.RpcError) as e:
        list(stub.ModelStreamInfer(iter([request("many", [1], responses=1000, delay_us=10000)]), timeout=0.3))
    assert e.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED


def test_cancel_stops_the_model(one, stub):
    before = ask(one.http, "GET", "/v2/models/many/stats").json()["model_stats"][0]["inference_stats"]["fail"]["count"]
    call = stub.ModelStreamInfer(iter([request("many", [1], responses=1000000, delay_us=1000)]))
    next(call)
    call.cancel()

    def failed():
        return ask(one.http, "GET", "/v2/models/many/stats").json()["model_stats"][0]["inference_stats"]["fail"]["count"]

    wait_until(lambda: failed() > before, what="the end of the model's work")
    assert failed() == before + 1
    assert values(run(stub, [request("many", [5], responses=1)])[0].infer_response) == [5]


def rss(pid):
    with open(f"/proc/{pid}/statm", encoding="ascii") as f:
        return int(f.read().split()[1]) * 4096


def test_a_slow_reader_holds_the_model_not_the_server(one):
    """1 MB an answer, 2,000 of them, and a client that does not read: memory stays where it was, others are served."""
    big = request("many", list(range(250000)), responses=2000)
    with grpc.insecure_channel(f"127.0.0.1:{one.grpc}",
                               options=[("grpc.max_receive_message_length", -1), ("grpc.http2.bdp_probe", 0),
                                        ("grpc.http2.lookahead_bytes", 65536)]) as channel:
        slow = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        call = slow.ModelStreamInfer(iter([big]), timeout=60)
        next(call)

        def settled():
            before = rss(one.pid)
            time.sleep(1)
            return rss(one.pid) - before < 1 << 20

        wait_until(settled, what="a second in which memory does not grow")
        at = rss(one.pid)
        time.sleep(1)
        assert rss(one.pid) < at + MANY
        assert at < 300 << 20
        for _ in range(20):
            text = '{"inputs":[{"name":"INPUT0","datatype":"FP32","shape":[1],"data":[3]}]}'
            assert ask(one.http, "POST", "/v2/models/plain/infer", text).json()["outputs"][0]["data"] == [3]
        call.cancel()


def test_many_streams_at_once(one):
    client = [grpcclient.InferenceServerClient(f"127.0.0.1:{one.grpc}") for _ in range(8)]
    got = [queue.Queue() for _ in client]
    for c, q in zip(client, got):
        c.start_stream(lambda result, error, q=q: q.put((result, error)))
    for i in range(40):
        for k, c in enumerate(client):
            t = grpcclient.InferInput("INPUT0", [1, 2], "FP32")
            t.set_data_from_numpy(np.array([[i, k]], np.float32))
            c.async_stream_infer("batched", [t], request_id=f"{k}.{i}")
    for k, q in enumerate(got):
        for i in range(40):
            result, error = q.get(timeout=60)
            assert error is None and result.get_response().id == f"{k}.{i}"
            assert result.as_numpy("OUTPUT0").tolist() == [[i, k]]
    for c in client:
        c.stop_stream()
        c.close()


def test_a_message_that_fails_on_the_pool_ends_nothing(one, stub):
    """Large enough to be decoded elsewhere, and wrong; what waited behind it is answered, and the server lives."""
    bad = request("plain", [1], id="bad")
    bad.raw_input_contents[0] = b"x" * 100001
    for _ in range(10):
        answers = run(stub, [bad, request("plain", [2], id="good"), bad, request("plain", [3], id="last")])
        assert [bool(a.error_message) for a in answers] == [True, False, True, False]
    assert values(run(stub, [request("plain", [4])])[0].infer_response) == [4]


def test_what_the_engine_refuses_says_why(one, stub):
    """In the middle of a stream: the trailers carry status and reason."""
    big = request("plain", [1])
    big.raw_input_contents[0] = b"x" * (65 << 20)
    with pytest.raises(grpc.RpcError) as e:
        run(stub, [request("plain", [1]), big])
    assert e.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than the limit" in e.value.details()
    with pytest.raises(grpc.RpcError) as e:
        run(stub, [request("plain", list(range(1000)))] * 3, compression=grpc.Compression.Gzip)
    assert e.value.code() == grpc.StatusCode.UNIMPLEMENTED and "compressed" in e.value.details()
    assert values(run(stub, [request("plain", [5])])[0].infer_response) == [5]


def test_items_that_fail_are_in_the_log_by_their_id(server, tmp_path):
    repo = repository(tmp_path / "repo", plain=model("identity", IO), bad=model("fault", IO))
    s = server("--access-log", "--log-format", "json", "--io-threads", 1, models=[repo])
    with grpc.insecure_channel(f"127.0.0.1:{s.grpc}") as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        wrong = request("plain", [1], id="wrong-name")
        wrong.inputs[0].name = "nothing"
        requests = [request("plain", [1], id="fine"), wrong, request("bad", [1], id="broken"), request("bad", [1])]
        for r in requests[2:]:
            r.parameters["fault"].string_param = "execute_error"
        got = list(stub.ModelStreamInfer(iter(requests), metadata=(("x-request-id", "mine"),)))
        assert [bool(r.error_message) for r in got] == [False, True, True, True]
    wait_until(lambda: '"msg":"stream_infer"' in s.log(), what="the line of the call")
    lines = [json.loads(line) for line in s.log().splitlines() if '"module":"access"' in line]
    items = [(line["id"], line["model"], line["level"], line["grpc"]) for line in lines if line["msg"] == "stream_item"]
    assert items == [("wrong-name", "plain", "info", "INVALID_ARGUMENT"), ("broken", "bad", "warn", "INTERNAL"),
                     ("mine", "bad", "warn", "INTERNAL")]
    assert lines[-1]["id"] == "mine" and lines[-1]["grpc"] == "OK" and len({line["exchange"] for line in lines}) == 1
