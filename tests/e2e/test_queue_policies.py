"""Queue policies of dynamic_batching over both protocols: priorities, time-outs that reject or delay,
sizes, order of answers; what a client is told, and what the metrics say."""

import json
import time

import pytest

from conftest import wait_until
from counts import Held, metric, waiting
from plugin_models import model, repository
from rawhttp import H1, H2, LIMIT_S, SERVICE, UNAVAILABLE, ask, infer_pb, message

INFER = SERVICE + "ModelInfer"


def slow(policies, batch=1, extra=""):
    return model("delay", [("INPUT0", "FP32", [1])], batch=batch, delay_us=1000,
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


def path(name):
    return f"/v2/models/{name}/infer"


def held(s, name):
    """A request that runs until it is released: whatever comes meanwhile waits."""
    return Held(s, model=name, shape=(1, 1))


class Sender:
    """Requests on one connection of HTTP/2, where the order of the answers can be seen."""

    def __init__(self, s):
        self.s, self.connection, self.streams = s, H2(s.grpc), []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.connection.close()

    def send(self, name, grpc=None, waits=True, **params):
        """The server has it, and lets it wait, when this returns."""
        c, before = self.connection, waiting(self.s, name)
        if grpc:
            data = infer_pb(name, [("INPUT0", "FP32", [1, 1])], raw=[b"\0" * 4], params=list(params.items()))
            self.streams.append(c.grpc(INFER, data))
        else:
            self.streams.append(c.request("POST", path(name), body(**params).encode()))
        if waits:
            wait_until(lambda: waiting(self.s, name) == before + 1, what="a request that waits")

    def order(self):
        """Indices of the requests in the order of their answers, which are all good."""
        c, got, deadline = self.connection, [], time.monotonic() + LIMIT_S
        while len(got) < len(self.streams):
            stream = c.one(deadline)[2]
            if stream in self.streams and c.replies[stream].ended:
                assert c.replies[stream].status == 200 and c.replies[stream].grpc in (None, 0), c.replies[stream]
                got.append(self.streams.index(stream))
        return got


def test_priorities(one):
    """Of those that wait the most urgent goes first; no such level: the default."""
    with held(one, "levels") as first, Sender(one) as c:
        for params in ({"priority": 3}, {}, {"priority": 9}, {"priority": 1}):
            c.send("levels", **params)
        assert [metric(one, "naru_queue_requests", model="levels", level=k) for k in (1, 2, 3)] == [1, 2, 1]
        first.release()
        assert c.order() == [3, 1, 2, 0]


def test_priorities_grpc(one):
    with held(one, "levels") as first, Sender(one) as c:
        c.send("levels", priority=2)
        c.send("levels", grpc=True, priority=1)
        first.release()
        assert c.order() == [1, 0]


@pytest.mark.parametrize("name, params", [("reject", {}), ("own", {"timeout": 60000})])
def test_rejected_in_time(one, name, params):
    """In time although the model is busy, in Triton's words, and without having run."""
    before = metric(one, "nv_inference_request_failure", model=name, reason="REJECTED")
    with held(one, name):
        r = ask(one.http, "POST", path(name), body(**params))
        assert r.status == 503 and r.error.startswith("Request timeout expired") and int(r.headers["retry-after"]) >= 1
        with H2(one.grpc) as c:
            data = infer_pb(name, [("INPUT0", "FP32", [1, 1])], raw=[b"\0" * 4], params=list(params.items()))
            reply = c.reply(c.grpc(INFER, data))
        assert reply.grpc == UNAVAILABLE and reply.message.startswith("Request timeout expired")
    assert metric(one, "nv_inference_request_failure", model=name, reason="REJECTED") == before + 2
    assert metric(one, "naru_queue_refused_total", model=name, why="timeout") >= 1


def test_a_client_cannot_prolong(one):
    with held(one, "reject"):
        assert ask(one.http, "POST", path("reject"), body(timeout=10**9)).status == 503


def test_delayed(one):
    """Its time-out passed: it waits behind those in time, and is answered."""
    with held(one, "delays") as first, Sender(one) as c:
        c.send("delays", timeout=1000)
        time.sleep(0.05)
        c.send("delays")
        first.release()
        assert c.order() == [1, 0]


def test_size(one):
    with held(one, "size") as first, Sender(one) as c:
        for _ in range(2):
            c.send("size")
        r = ask(one.http, "POST", path("size"), body())
        assert r.status == 503 and r.error.startswith("Exceeds maximum queue size")
        assert int(r.headers["retry-after"]) >= 1
        with H2(one.grpc) as other:
            reply = other.reply(other.grpc(INFER, infer_pb("size", [("INPUT0", "FP32", [1, 1])], raw=[b"\0" * 4])))
        assert reply.grpc == UNAVAILABLE and reply.message.startswith("Exceeds maximum queue size")
        assert metric(one, "naru_queue_refused_total", model="size", why="queue_size") == 2
        first.release()
        assert c.order() == [0, 1]


def test_size_of_a_level(one):
    with held(one, "sizes") as first, Sender(one) as c:
        c.send("sizes", priority=3)
        c.send("sizes", priority=1)
        assert ask(one.http, "POST", path("sizes"), body(priority=3)).status == 503
        c.send("sizes")
        first.release()
        assert c.order() == [1, 2, 0]


def test_order_of_answers(one):
    """Four instances; the first request takes the longest, and only order keeps the others back."""
    with Sender(one) as c:
        for us in (1000000, 1000, 200000):
            c.send("ordered", waits=False, delay_us=us)
        assert c.order() == [0, 1, 2]
    with held(one, "unordered"), Sender(one) as c:
        for us in (200000, 1000):
            c.send("unordered", waits=False, delay_us=us)
        assert sorted(c.order()) == [0, 1]  # although an earlier one runs for an hour


def test_cancelled_ones_keep_nobody_waiting(one):
    sent = [H1(one.http) for _ in range(6)]
    for c in sent:
        c.send(message("POST", path("ordered"), body(delay_us=100000)))
    for c in sent[1:6:2]:  # some run, some wait: gone either way
        c.abort()
    assert [c.response().status for c in sent[0::2]] == [200] * 3
