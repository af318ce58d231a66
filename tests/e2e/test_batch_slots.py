"""Inputs lie in their batch when it is formed (host/slots.h): requests of every kind that wait for each other are
answered right, and naru_input_bytes_total says whether anything was copied to make them one batch."""

import json
import threading

import grpc
import numpy as np
import pytest

import models
from conftest import wait_until
from counts import metric
from rawhttp import H1, head, infer_pb

WIDTH = 16384  # floats: rows of 64 KiB, far more than what is read together with the head
BATCH = 4
WAITS = f"dynamic_batching {{ preferred_batch_size: [ {BATCH} ] max_queue_delay_microseconds: 20000000 }}\n"
TEXT = f"max_batch_size: 16\n{WAITS}"


@pytest.fixture(scope="module")
def one(module_server, tmp_path_factory):
    folder = tmp_path_factory.mktemp("repo")
    models.identity(folder, "rows", dims=("batch", WIDTH), config=TEXT)
    models.identity(folder, "eager", dims=("batch", WIDTH),
                    config=TEXT + "optimization { eager_batching: true }\n")
    models.identity(folder, "small", dims=("batch", 16), config=TEXT)
    return module_server("--no-keep-gallery", models=[folder])


def values(i, rows=1, width=WIDTH):
    return (np.arange(rows * width, dtype=np.float32) + 1000003.0 * i).reshape(rows, width)


def binary(model, x):
    """A request with a binary input and a binary output."""
    text = json.dumps({"inputs": [{"name": "IN", "datatype": "FP32", "shape": x.shape,
                                   "parameters": {"binary_data_size": x.nbytes}}],
                       "outputs": [{"name": "OUT", "parameters": {"binary_data": True}}]}).encode()
    return head("POST", f"/v2/models/{model}/infer", f"Inference-Header-Content-Length: {len(text)}",
                f"Content-Length: {len(text) + x.nbytes}") + text + x.tobytes()


def raw(model, x):
    return head("POST", f"/v2/models/{model}/infer", "Content-Type: application/octet-stream",
                f"Content-Length: {x.nbytes}") + x.tobytes()


def as_json(model, x):
    text = json.dumps({"inputs": [{"name": "IN", "datatype": "FP32", "shape": x.shape, "data": x.ravel().tolist()}],
                       "outputs": [{"name": "OUT", "parameters": {"binary_data": True}}]}).encode()
    return head("POST", f"/v2/models/{model}/infer", f"Content-Length: {len(text)}") + text


def check(connection, x):
    r = connection.response()
    assert r.status == 200, r.body[:300]
    at = int(r.headers.get("inference-header-content-length", 0))
    assert np.array_equal(np.frombuffer(r.body[at:], np.float32), x.ravel())


def copied(s, model):
    return metric(s, "naru_input_bytes_total", model=model, how="copied")


def in_place(s, model):
    return metric(s, "naru_input_bytes_total", model=model, how="in_place")


def together(s, model, requests, inputs, order=None):
    """Sends all of them in two halves, the second ones in `order`; checks the answers."""
    all_of = [H1(s.http) for _ in requests]
    for c, r in zip(all_of, requests):
        c.send(r[:len(r) // 2])
    for i in order or range(len(requests)):
        all_of[i].send(requests[i][len(requests[i]) // 2:])
    for c, x in zip(all_of, inputs):
        check(c, x)
        c.close()


@pytest.mark.parametrize("kind", [binary, raw, as_json])
def test_a_batch_is_not_gathered(one, kind):
    def rounds(n):
        for _ in range(n):
            inputs = [values(i) for i in range(BATCH)]
            together(one, "rows", [kind("rows", x) for x in inputs], inputs)

    rounds(1)  # the runs that proved the model are counted with it
    before, there = copied(one, "rows"), in_place(one, "rows")
    rounds(5)
    assert copied(one, "rows") == before
    wait_until(lambda: in_place(one, "rows") - there >= 5 * BATCH * WIDTH * 4, what="the last batch to be counted")
    assert in_place(one, "rows") - there <= 6 * BATCH * WIDTH * 4


def test_bodies_that_end_in_another_order(one):
    before = copied(one, "rows")
    inputs = [values(i) for i in range(BATCH)]
    together(one, "rows", [binary("rows", x) for x in inputs], inputs, order=[2, 0, 3, 1])
    assert copied(one, "rows") == before


def test_several_rows_each(one):
    before = copied(one, "rows")
    inputs = [values(i, rows) for i, rows in enumerate((1, 2, 1))]
    together(one, "rows", [binary("rows", x) for x in inputs], inputs)
    assert copied(one, "rows") == before


def test_a_slow_uploader_holds_nobody(one):
    """Its row is left out; the others are one batch as they lie. Then it is served, too."""
    slow, x = H1(one.http), values(77)
    text = binary("rows", x)
    slow.send(text[:1000])
    before = copied(one, "rows")
    for _ in range(3):
        inputs = [values(i) for i in range(BATCH)]
        together(one, "rows", [binary("rows", x) for x in inputs], inputs)
    assert copied(one, "rows") == before
    inputs = [values(i) for i in range(BATCH - 1)]
    rest = [H1(one.http) for _ in inputs]
    for c, y in zip(rest, inputs):
        c.send(binary("rows", y))
    slow.send(text[1000:])
    check(slow, x)
    for c, y in zip(rest, inputs):
        check(c, y)
        c.close()
    slow.close()


def test_gone_in_the_middle(one):
    """A client that leaves in the middle of its body leaves a hole, and nothing else."""
    for i in range(6):
        lost = H1(one.http)
        lost.send(binary("rows", values(i))[:5000])
        inputs = [values(k) for k in range(BATCH)]
        requests = [binary("rows", x) for x in inputs]
        (lost.abort if i % 2 else lost.close)()
        together(one, "rows", requests, inputs)


def grpc_infer(s, model, x):
    with grpc.insecure_channel(f"127.0.0.1:{s.grpc}", options=[("grpc.max_receive_message_length", -1)]) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        return call(infer_pb(model, [("IN", "FP32", list(x.shape))], raw=[x.tobytes()]), timeout=60)


@pytest.mark.parametrize("model, gathered", [("rows", BATCH * WIDTH * 4), ("eager", 0)])
def test_grpc(one, model, gathered):
    """A gRPC message is one piece: its tensors are copied when the batch is formed, or, with eager_batching, at once."""
    before = copied(one, model)
    inputs, answers = [values(i) for i in range(BATCH)], [None] * BATCH

    def ask(i):
        answers[i] = grpc_infer(one, model, inputs[i])

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(BATCH)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert copied(one, model) - before == gathered
    for x, a in zip(inputs, answers):
        assert x.tobytes() in a


def test_eager_is_known(one):
    assert "eager_batching" not in one.log()
    inputs = [values(i) for i in range(BATCH)]
    before = copied(one, "eager")
    together(one, "eager", [binary("eager", x) for x in inputs], inputs)
    assert copied(one, "eager") == before


def test_small_rows_are_gathered(one):
    before = copied(one, "small")
    inputs = [values(i, width=16) for i in range(BATCH)]
    together(one, "small", [binary("small", x) for x in inputs], inputs)
    assert copied(one, "small") - before == BATCH * 64


@pytest.mark.parametrize("length", [0, 5, 10 ** 6])
def test_a_wrong_header_length(one, length):
    """The place of the tensor is taken from a header that the body does not keep: 400, and the next one is served."""
    x = values(1)
    request = binary("rows", x)
    at = request.index(b"\r\n\r\n") + 4
    body = request[at:]
    c = H1(one.http)
    c.send(head("POST", "/v2/models/rows/infer", f"Inference-Header-Content-Length: {length}",
                f"Content-Length: {len(body)}") + body)
    assert c.response().status == 400
    c.close()
    inputs = [values(i) for i in range(BATCH)]
    together(one, "rows", [binary("rows", x) for x in inputs], inputs)
