"""Queue policies of dynamic_batching over both protocols: priorities, time-outs that reject or delay,
sizes, order of answers; what a client is told, and what the metrics say."""

import json
import socket
import time

import pytest

from plugin_models import model, repository
from rawhttp import H1, H2, SERVICE, UNAVAILABLE, ask, infer_pb, message

INFER = SERVICE + "ModelInfer"
RUN_US = 150000


def slow(policies, batch=1, extra=""):
    return model("delay", [("INPUT0", "FP32", [1])], batch=batch, delay_us=RUN_US,
                 extra=f"dynamic_batching {{ {policies} }}\n{extra}")


@pytest.fixture(scope="module")
def one(module_server, tmp_path_factory):
    levels = "priority_levels: 3 default_priority_level: 2 "
    models = {
        "levels": slow(levels),
        "reject": slow("default_queue_policy { default_timeout_microseconds: 60000 }"),
        "own": slow("default_queue_policy { allow_timeout_override: true }"),
        "delays": slow("default_queue_policy { timeout_action: DELAY allow_timeout_override: true }"),
        "size": slow("default_queue_policy { max_queue_size: 2 }"),
        "sizes": slow(levels + "priority_queue_policy { key: 3 value { max_queue_size: 1 } }"),
        "ordered": slow("preserve_ordering: true", extra="instance_group { count: 4 }\n"),
        "unordered": slow("", extra="instance_group { count: 4 }\n"),
    }
    return module_server("--io-threads", 1, "--exec-threads", 4, "--no-keep-gallery",
                         models=[repository(tmp_path_factory.mktemp("repo"), **models)])


def body(value=0, **params):
    tensor = {"name": "INPUT0", "datatype": "FP32", "shape": [1, 1], "data": [value]}
    return json.dumps({"inputs": [tensor], "parameters": params})


def send(s, name, **params):
    """A request on a connection of its own; the server has it when this returns."""
    c = H1(s.http)
    c.send(message("POST", f"/v2/models/{name}/infer", body(**params)))
    time.sleep(0.02)
    return c


def answers(connections):
    """[(index, response)] in the order in which they came, to within a few milliseconds."""
    import selectors
    left, out = selectors.DefaultSelector(), []
    for i, c in enumerate(connections):
        left.register(c.socket, selectors.EVENT_READ, (i, c))
    while left.get_map():
        for key, _ in left.select(30) or pytest.fail("no answer"):
            i, c = key.data
            left.unregister(key.fileobj)
            out.append((i, c.response()))
    return out


def metric(s, name, **labels):
    text = ask(s.http, "GET", "/metrics").body.decode()
    want = [f'{k}="{v}"' for k, v in labels.items()]
    return sum(float(line.split()[-1]) for line in text.splitlines()
               if line.startswith(name + "{") and all(w in line for w in want))


def test_priorities(one):
    """The first runs; of those that wait the most urgent goes first; no such level: the default."""
    sent = [send(one, "levels"), send(one, "levels", priority=3), send(one, "levels"),
            send(one, "levels", priority=9), send(one, "levels", priority=1)]
    assert [metric(one, "naru_queue_requests", model="levels", level=k) for k in (1, 2, 3)] == [1, 2, 1]
    got = answers(sent)
    assert [i for i, _ in got] == [0, 4, 2, 3, 1] and all(r.status == 200 for _, r in got)


def test_priorities_grpc(one):
    sent = [send(one, "levels"), send(one, "levels", priority=2)]
    with H2(one.grpc) as c:
        data = infer_pb("levels", [("INPUT0", "FP32", [1, 1])], raw=[b"\0" * 4], params=[("priority", 1)])
        begin = time.monotonic()
        assert c.reply(c.grpc(INFER, data)).grpc == 0
        assert time.monotonic() - begin < 2.6 * RUN_US / 1e6  # second, not third
    assert all(c.response().status == 200 for c in sent)


@pytest.mark.parametrize("name, params", [("reject", {}), ("own", {"timeout": 60000})])
def test_rejected_in_time(one, name, params):
    """In time although the model is busy, in Triton's words, and without having run."""
    before = metric(one, "nv_inference_request_failure", model=name, reason="REJECTED")
    first = send(one, name)
    begin = time.monotonic()
    r = ask(one.http, "POST", f"/v2/models/{name}/infer", body(**params))
    took = time.monotonic() - begin
    assert r.status == 503 and r.error.startswith("Request timeout expired") and int(r.headers["retry-after"]) >= 1
    assert took < RUN_US / 1e6  # while the first still runs
    with H2(one.grpc) as c:
        data = infer_pb(name, [("INPUT0", "FP32", [1, 1])], raw=[b"\0" * 4], params=list(params.items()))
        reply = c.reply(c.grpc(INFER, data))
    assert first.response().status == 200
    if reply.grpc:  # else the first was through by then
        assert reply.grpc == UNAVAILABLE and reply.message.startswith("Request timeout expired")
    assert metric(one, "nv_inference_request_failure", model=name, reason="REJECTED") >= before + 1
    assert metric(one, "naru_queue_refused_total", model=name, why="timeout") >= 1


def test_a_client_cannot_prolong(one):
    first = send(one, "reject")
    r = ask(one.http, "POST", "/v2/models/reject/infer", body(timeout=10**9))
    assert r.status == 503 and first.response().status == 200


def test_delayed(one):
    """Its time-out passed: it waits behind those in time, and is answered."""
    sent = [send(one, "delays"), send(one, "delays", timeout=1000), send(one, "delays")]
    got = answers(sent)
    assert [i for i, _ in got] == [0, 2, 1] and all(r.status == 200 for _, r in got)


def test_size(one):
    sent = [send(one, "size") for _ in range(3)]  # one runs, two wait
    begin = time.monotonic()
    r = ask(one.http, "POST", "/v2/models/size/infer", body())
    assert time.monotonic() - begin < 0.1
    assert r.status == 503 and r.error.startswith("Exceeds maximum queue size")
    assert int(r.headers["retry-after"]) >= 1
    with H2(one.grpc) as c:
        reply = c.reply(c.grpc(INFER, infer_pb("size", [("INPUT0", "FP32", [1, 1])], raw=[b"\0" * 4])))
    assert reply.grpc == UNAVAILABLE and reply.message.startswith("Exceeds maximum queue size")
    assert metric(one, "naru_queue_refused_total", model="size", why="queue_size") == 2
    assert [c.response().status for c in sent] == [200] * 3


def test_size_of_a_level(one):
    sent = [send(one, "sizes"), send(one, "sizes", priority=3), send(one, "sizes", priority=1)]
    assert ask(one.http, "POST", "/v2/models/sizes/infer", body(priority=3)).status == 503
    sent.append(send(one, "sizes"))
    assert [c.response().status for c in sent] == [200] * 4


@pytest.mark.parametrize("name, order", [("ordered", [0, 1, 2]), ("unordered", [1, 2, 0])])
def test_order_of_answers(one, name, order):
    """Four instances; the first request takes the longest."""
    delays = [400000, 200000, 300000]
    sent = [send(one, name, delay_us=d) for d in delays]
    got = answers(sent)
    assert [i for i, _ in got] == order and all(r.status == 200 for _, r in got)


def test_cancelled_ones_keep_nobody_waiting(one):
    sent = [send(one, "ordered", delay_us=100000) for _ in range(6)]
    for c in sent[1:6:2]:  # some run, some wait: gone either way
        c.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        c.close()
    assert [c.response().status for c in sent[0::2]] == [200] * 3
