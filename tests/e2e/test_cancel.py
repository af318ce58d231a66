"""A client that goes away frees what it asked for: at once where it waits, never a wrong answer elsewhere.

One I/O thread and one model that sleeps, so that the first request runs and all others wait.
"""

import json
import struct
import threading
import time

import pytest

from conftest import wait_until
from plugin_models import model, repository, slow
from rawhttp import DEADLINE, H1, H2, SERVICE, ask, infer_pb, message

ONE = json.dumps({"inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": [1], "data": [7]}]})
PB = infer_pb("slow", [("INPUT0", "FP32", [1])], raw=[struct.pack("<f", 7)])
PATH = "/v2/models/slow/infer"
MODEL_INFER = SERVICE + "ModelInfer"


def read(s, name, reason=None):
    text = ask(s.metrics, "GET", "/metrics").body.decode()
    for line in text.splitlines():
        if line.startswith(name + "{") and 'model="slow"' in line and (reason is None or f'reason="{reason}"' in line):
            return int(float(line.split()[-1]))
    raise AssertionError(name)


def waiting(s):
    return read(s, "nv_inference_pending_request_count")


def failures(s, reason):
    return read(s, "nv_inference_request_failure", reason)


@pytest.fixture
def start(server, tmp_path):
    def run(*options, delay_us=1000000):
        return server("--io-threads", 1, "--no-keep-gallery", *options,
                      models=[repository(tmp_path / "repo", slow=slow(delay_us))])

    return run


def running(s):
    """A request that runs, on a connection of its own."""
    c = H1(s.http)
    c.send(message("POST", PATH, ONE))
    time.sleep(0.1)
    return c


def test_reset_frees_the_queue(start):
    s = start()
    first = running(s)
    others = [H1(s.http) for _ in range(20)]
    for c in others:
        c.send(message("POST", PATH, ONE))
    wait_until(lambda: waiting(s) == 20, what="20 that wait")
    begin = time.monotonic()
    for c in others:
        c.abort()
    wait_until(lambda: waiting(s) == 0, limit_s=0.5, every_s=0.005, what="an empty queue")
    assert time.monotonic() - begin < 0.5
    assert failures(s, "CANCELED") == 20 and failures(s, "REJECTED") == 0
    assert first.response().json()["outputs"][0]["data"] == [7]
    assert read(s, "nv_inference_exec_count") == 1, "none of the cancelled ran"


def test_rst_stream_frees_the_queue(start):
    s = start()
    first = running(s)
    with H2(s.grpc) as c:
        streams = [c.grpc(MODEL_INFER, PB) for _ in range(10)] + \
                  [c.request("POST", PATH, ONE.encode()) for _ in range(10)]
        assert c.ping()
        wait_until(lambda: waiting(s) == 20, what="20 that wait")
        for x in streams:
            c.cancel(x)
        assert c.ping()
        wait_until(lambda: waiting(s) == 0, limit_s=0.5, every_s=0.005, what="an empty queue")
        assert failures(s, "CANCELED") == 20
        assert first.response().status == 200
        r = c.reply(c.grpc(MODEL_INFER, PB))
        assert r.grpc == 0 and r.payload.endswith(struct.pack("<f", 7))
    assert read(s, "nv_inference_exec_count") == 2


def test_reset_of_the_running_request_ends_it(start):
    """The plug-in is told; the next request does not wait for the rest of a sleep that nobody wants."""
    s = start(delay_us=5000000)
    first = running(s)
    first.abort()
    begin = time.monotonic()
    wait_until(lambda: failures(s, "CANCELED") + failures(s, "BACKEND") == 1, limit_s=2, what="the end of it")
    assert time.monotonic() - begin < 2
    asked = json.loads(ONE)
    asked["parameters"] = {"delay_us": 1000}
    assert ask(s.http, "POST", PATH, json.dumps(asked)).status == 200


def test_fin_cancels_what_has_not_begun(start):
    s = start()
    with H1(s.http) as c:
        c.send(message("POST", PATH, ONE) * 4)
        wait_until(lambda: waiting(s) == 3, what="3 that wait")
        c.finish()
        wait_until(lambda: waiting(s) == 0, limit_s=0.5, every_s=0.005, what="an empty queue")
        got = [c.response() for _ in range(4)]
        assert [r.status for r in got] == [200, 499, 499, 499], got
        assert "cancelled" in got[1].error and c.closed()
    assert failures(s, "CANCELED") == 3 and read(s, "nv_inference_exec_count") == 1


def test_fin_on_http2(start):
    s = start()
    with H2(s.grpc) as c:
        streams = [c.grpc(MODEL_INFER, PB) for _ in range(4)]
        assert c.ping()
        wait_until(lambda: waiting(s) == 3, what="3 that wait")
        c.finish()
        got = [c.reply(x).grpc for x in streams]
        assert got == [0, 1, 1, 1], got
        c.drain()
    assert failures(s, "CANCELED") == 3


def test_half_close_keeps_them(start):
    s = start("--half-close", delay_us=200000)
    with H1(s.http) as c, H2(s.grpc) as h2:
        c.send(message("POST", PATH, ONE) * 3)
        c.finish()
        assert [c.response().status for _ in range(3)] == [200] * 3
        assert c.closed()
        streams = [h2.grpc(MODEL_INFER, PB) for _ in range(3)]
        h2.finish()
        assert [h2.reply(x).grpc for x in streams] == [0] * 3
    assert failures(s, "CANCELED") == 0


def test_fin_inside_a_request(start):
    s = start()
    with H1(s.http) as c:
        c.send(message("POST", PATH, ONE)[:-5])
        c.finish()
        r = c.response()
        assert r.status == 400 and "ended" in r.error and c.closed()
    assert waiting(s) == 0 and read(s, "nv_inference_exec_count") == 0


def test_grpc_timeout_while_it_waits(start):
    s = start(delay_us=1500000)
    first = running(s)
    with H2(s.grpc) as c:
        begin = time.monotonic()
        r = c.reply(c.grpc(MODEL_INFER, PB, fields=[("grpc-timeout", "200m")]))
        passed = time.monotonic() - begin
        assert r.grpc == DEADLINE and 0.19 < passed < 0.6, (r, passed)
        assert "time limit" in r.message
        assert waiting(s) == 0 and failures(s, "REJECTED") == 1
        # passed before it came: never queued
        r = c.reply(c.grpc(MODEL_INFER, PB, fields=[("grpc-timeout", "1n")]))
        assert r.grpc == DEADLINE
        for bad in ("", "5", "m", "-1m", "1x", "123456789m", "1.5S"):
            r = c.reply(c.grpc(MODEL_INFER, PB, fields=[("grpc-timeout", bad)]))
            assert r.grpc not in (None, 0, DEADLINE) and "grpc-timeout" in r.message, (bad, r)
    assert first.response().status == 200
    assert read(s, "nv_inference_exec_count") == 1


def test_grpc_timeout_while_it_runs(start):
    """Told to the plug-in, and answered in time although the model is still busy or has just stopped."""
    s = start(delay_us=5000000)
    with H2(s.grpc) as c:
        begin = time.monotonic()
        r = c.reply(c.grpc(MODEL_INFER, PB, fields=[("grpc-timeout", "300m")]))
        assert r.grpc == DEADLINE and time.monotonic() - begin < 1.5, r


def test_others_of_a_batch_are_answered(server, tmp_path):
    """Half of the members of a running batch go away; the other half gets its own rows."""
    s = server("--io-threads", 1, "--no-keep-gallery", models=[repository(tmp_path / "repo", slow=slow(
        300000, batch=16, extra="dynamic_batching { }\n"))])
    text = json.dumps({"inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": [1, 1], "data": [0]}]})
    first = H1(s.http)
    first.send(message("POST", PATH, text))
    time.sleep(0.1)
    some = [H1(s.http) for _ in range(10)]
    for i, c in enumerate(some):
        c.send(message("POST", PATH, text.replace("[0]", f"[{i + 1}]")))
    assert first.response().status == 200
    time.sleep(0.1)  # the ten run together now
    for c in some[::2]:
        c.abort()
    for i, c in list(enumerate(some))[1::2]:
        assert c.response().json()["outputs"][0]["data"] == [i + 1]
    assert read(s, "nv_inference_exec_count") == 2


def test_cancel_storm(start):
    """300 requests that end in every way at random moments (R17); the queue empties, the next is right."""
    s = start(delay_us=2000)

    def storm(seed):
        state = seed
        for i in range(50):
            state = (state * 1103515245 + 12345) % 2**31
            pause = state % 5 / 1000
            if i % 3 == 0:
                with H2(s.grpc) as c:
                    x = c.grpc(MODEL_INFER, PB)
                    time.sleep(pause)
                    c.cancel(x)
                    if i % 2:
                        c.abort()
            else:
                c = H1(s.http)
                c.send(message("POST", PATH, ONE) * (i % 4 + 1))
                time.sleep(pause)
                c.abort() if i % 2 else c.close()

    all_of_them = [threading.Thread(target=storm, args=(n,)) for n in range(6)]
    for t in all_of_them:
        t.start()
    for t in all_of_them:
        t.join()
    wait_until(lambda: waiting(s) == 0, limit_s=2, what="an empty queue")
    assert ask(s.http, "POST", PATH, ONE).json()["outputs"][0]["data"] == [7]
    assert s.process.poll() is None and " level=error" not in s.log()


def test_slow_upload_holds_nothing(server, tmp_path):
    """A body that comes slowly waits in its own buffer: requests behind it run at once."""
    s = server("--io-threads", 1, "--no-keep-gallery", models=[repository(tmp_path / "repo", slow=model(
        "delay", [("INPUT0", "FP32", [-1])], batch=8, delay_us=1000, extra="dynamic_batching { }\n"))])
    text = json.dumps({"inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": [1, 1], "data": [7]}]})
    with H1(s.http) as late:
        late.send(message("POST", PATH, text)[:-3])
        begin = time.monotonic()
        for _ in range(20):
            assert ask(s.http, "POST", PATH, text).status == 200
        assert time.monotonic() - begin < 3
        late.send(text[-3:].encode())
        assert late.response().status == 200
