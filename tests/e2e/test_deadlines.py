"""Deadlines that pass while a plug-in runs and does not listen: the client is answered, the plug-in is not waited for.

The model sleeps for as long as a request says ("delay_us") and ignores its cancel ("deaf"). What such a request
uses stays until the plug-in has returned; everybody else goes on.
"""

import json
import struct
import threading
import time

import pytest

from conftest import wait_until
from counts import SLOW, begun, metric
from plugin_models import model, repository
from rawhttp import DEADLINE, H1, H2, SERVICE, ask, infer_pb, message, prefixed
from test_pipelines import ensemble, step

LONG_US = 1500000
SEQUENCE = "sequence_batching { max_sequence_idle_microseconds: 60000000 %s }\n"
PICTURE = [("INPUT0", "FP32", [3, 8, 8])]


@pytest.fixture
def s(server, tmp_path):
    io = [("INPUT0", "FP32", [1])]
    repo = repository(
        tmp_path / "repo",
        slow=model("delay", io, batch=4, delay_us=1, extra="instance_group [ { count: 2 } ]\n"),
        direct=model("delay", io, batch=4, delay_us=1, extra=SEQUENCE % "direct { }"),
        oldest=model("delay", io, batch=4, delay_us=1, extra=SEQUENCE % "oldest { max_candidate_sequences: 4 }"),
        quick=model("identity", io, batch=4),
        eyes=model("delay", PICTURE, batch=1, delay_us=LONG_US, deaf=1),
        chain=ensemble([("A", "FP32", [1])], [("C", "FP32", [1])],
                       [step("waits", {"INPUT0": "A"}, {"OUTPUT0": "B"}),
                        step("quick", {"INPUT0": "B"}, {"OUTPUT0": "C"})], batch=4),
        waits=model("delay", io, batch=4, delay_us=LONG_US, deaf=1))
    (repo / "chain").mkdir(exist_ok=True)
    return server("--io-threads", 1, "--no-keep-gallery", models=[repo])


def body(value=7, delay_us=LONG_US, name="INPUT0", **parameters):
    return json.dumps({"inputs": [{"name": name, "datatype": "FP32", "shape": [1, 1], "data": [value]}],
                       "parameters": {"delay_us": delay_us, "deaf": 1, **parameters}})


def pb(model="slow", delay_us=LONG_US):
    return infer_pb(model, [("INPUT0", "FP32", [1, 1])], raw=[struct.pack("<f", 7)],
                    params=[("delay_us", delay_us), ("deaf", 1)])


def abandoned(s):
    return metric(s, "naru_requests_abandoned")


def returned(s):
    """Waits until every plug-in has."""
    wait_until(lambda: abandoned(s) == 0, what="the plug-in's return")


def in_time(began, deadline_s=0.1):
    took = time.monotonic() - began
    assert deadline_s <= took < deadline_s + 0.02, f"{took * 1000:.1f} ms"


@pytest.mark.timing
def test_http1_keeps_its_connection(s):
    with H1(s.http) as c:
        began = time.monotonic()
        c.send(message("POST", SLOW, body(), "grpc-timeout: 100m"))
        r = c.response()
        in_time(began)
        assert r.status == 504 and "time limit" in r.error
        assert abandoned(s) == 1
        assert c.ask("POST", "/v2/models/quick/infer", body(3)).json()["outputs"][0]["data"] == [3]
        assert c.ask("POST", SLOW, body(4, 0)).json()["outputs"][0]["data"] == [4], "the other instance"
        assert abandoned(s) == 1 and metric(s, "naru_requests_abandoned_total") == 1
        returned(s)
        assert metric(s, "nv_inference_request_failure", model="slow", reason="CANCELED") == 1
        assert metric(s, "nv_inference_request_success", model="slow") == 1
        for value in range(8):
            assert c.ask("POST", SLOW, body(value, 0)).json()["outputs"][0]["data"] == [value]


@pytest.mark.timing
def test_http2_streams(s):
    with H2(s.grpc) as c:
        began = time.monotonic()
        unary = c.grpc(SERVICE + "ModelInfer", pb(), fields=[("grpc-timeout", "100m")])
        plain = c.request("POST", SLOW, body().encode(), fields=[("grpc-timeout", "100m")])
        r, p = c.reply(unary), c.reply(plain)
        in_time(began)
        assert r.grpc == DEADLINE and "time limit" in r.message
        assert p.status == 504
        assert abandoned(s) == 2
        assert c.reply(c.grpc(SERVICE + "ModelInfer", pb("quick", 0))).grpc == 0
    returned(s)


@pytest.mark.timing
def test_stream_of_inferences(s):
    """Ends with DEADLINE_EXCEEDED; what was answered before the deaf one was answered, what came behind is not."""
    with H2(s.grpc) as c:
        began = time.monotonic()
        calls = b"".join(prefixed(p) for p in (pb("quick", 0), pb(), pb("quick", 0)))
        x = c.grpc(SERVICE + "ModelStreamInfer", calls, fields=[("grpc-timeout", "100m")], raw=True, end=False)
        r = c.reply(x)
        in_time(began)
        assert r.grpc == DEADLINE and r.body.count(b"OUTPUT0") == 1, r
        assert abandoned(s) == 1
        assert c.reply(c.grpc(SERVICE + "ModelInfer", pb("quick", 0))).grpc == 0
    returned(s)
    assert metric(s, "naru_requests_abandoned_total") == 1


@pytest.mark.timing
@pytest.mark.parametrize("name", ["direct", "oldest"])
def test_sequence_waits_for_the_plugin(s, name):
    """The next request of the sequence begins when the run of the abandoned one has ended: state is one run's."""
    path = f"/v2/models/{name}/infer"
    with H1(s.http) as c, H1(s.http) as other:
        began = time.monotonic()
        c.send(message("POST", path, body(sequence_id=5, sequence_start=True), "grpc-timeout: 100m"))
        assert c.response().status == 504
        in_time(began)
        assert c.ask("POST", path, body(2, 0, sequence_id=5, sequence_end=True)).status == 200
        assert time.monotonic() - began > LONG_US / 1e6 - 0.05
        assert other.ask("POST", path, body(2, 0, sequence_id=6, sequence_start=True, sequence_end=True)).status == 200
    returned(s)


@pytest.mark.timing
def test_pipeline(s):
    with H1(s.http) as c:
        began = time.monotonic()
        c.send(message("POST", "/v2/models/chain/infer", body(name="A"), "grpc-timeout: 100m"))
        assert c.response().status == 504
        in_time(began)
        assert abandoned(s) == 1
        returned(s)
        assert begun(s, "quick") == 0, "no further step"
        assert metric(s, "nv_inference_request_success", model="chain") == 0


@pytest.mark.timing
def test_predict(s):
    import io

    from PIL import Image
    png = io.BytesIO()
    Image.new("RGB", (8, 8), (1, 2, 3)).save(png, "PNG")
    with H1(s.http) as c:
        began = time.monotonic()
        c.send(message("POST", "/v2/models/eyes/predict", png.getvalue(), "grpc-timeout: 100m"))
        r = c.response()
        assert r.status == 504, r
        in_time(began)
        assert abandoned(s) == 1
    returned(s)


def test_clients_that_go(s):
    """Their connections are free long before the plug-in returns."""
    with H2(s.grpc) as c:
        x = c.grpc(SERVICE + "ModelInfer", pb(delay_us=3000000))
        wait_until(lambda: begun(s) == 1, what="the first execution")
        first = H1(s.http)
        first.send(message("POST", SLOW, body(delay_us=3000000)))
        wait_until(lambda: begun(s) == 2, what="the second execution")
        c.cancel(x)
        first.abort()
        wait_until(lambda: abandoned(s) == 2, every_s=0.005, what="both abandoned")
        # the connection that asks, and the HTTP/2 one
        wait_until(lambda: metric(s, "naru_http_connections") == 2, every_s=0.005, what="a free connection")
        assert abandoned(s) == 2
        assert c.reply(c.grpc(SERVICE + "ModelInfer", pb("quick", 0))).grpc == 0
    returned(s)
    assert ask(s.http, "POST", SLOW, body(9, 0)).status == 200


def test_many_at_once(s):
    """Deadlines, resets and answers in every order; each client gets its own answer, memory comes back."""
    wrong = []

    def client(n):
        for i in range(6):
            with H1(s.http) as c:
                value, deadline_ms = n * 100 + i, [5, 30, 60000][(n + i) % 3]
                c.send(message("POST", SLOW, body(value, 15000), f"grpc-timeout: {deadline_ms}m"))
                if i % 2:
                    time.sleep(0.001 * n)
                    c.abort()
                    continue
                r = c.response()
                fine = r.status in {5: (503, 504), 30: (200, 503, 504), 60000: (200,)}[deadline_ms]  # 503: hopeless
                if not fine or (r.status == 200 and r.json()["outputs"][0]["data"] != [value]):
                    wrong.append((n, i, r))

    threads = [threading.Thread(target=client, args=(n,)) for n in range(12)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong, wrong[:3]
    returned(s)
    assert ask(s.http, "POST", SLOW, body(9, 0)).status == 200


def test_drain_waits_for_what_was_abandoned(s):
    with H1(s.http) as c:
        c.send(message("POST", SLOW, body(), "grpc-timeout: 50m"))
        assert c.response().status == 504
    assert abandoned(s) == 1
    s.stop()


