"""A client that goes away frees what it asked for: at once where it waits, never a wrong answer elsewhere.

One I/O thread and one model that sleeps, so that the first request runs and all others wait. "At once"
is not measured: it is before the first one ends.
"""

import struct
import threading
import time

import pytest

from conftest import wait_until
from counts import HOUR_US, SLOW, Held, begun, metric, one, waiting
from plugin_models import repository, slow
from rawhttp import DEADLINE, H1, H2, SERVICE, ask, infer_pb, message

ONE = one(7)
A_WHILE = one(7, delay_us=2000000)  # for what has to be answered in the end
PB = infer_pb("slow", [("INPUT0", "FP32", [1])], raw=[struct.pack("<f", 7)])
MODEL_INFER = SERVICE + "ModelInfer"


def ended(s):
    """Executions that have ended well."""
    return metric(s, "nv_inference_exec_count", model="slow")


def failures(s, reason):
    return metric(s, "nv_inference_request_failure", model="slow", reason=reason)


@pytest.fixture
def start(server, tmp_path):
    def run(*options, delay_us=1000):
        return server("--io-threads", 1, "--no-keep-gallery", *options,
                      models=[repository(tmp_path / f"repo{len(list(tmp_path.iterdir()))}", slow=slow(delay_us))])

    return run


def running(s):
    """A request that runs for a while, on a connection of its own."""
    c = H1(s.http)
    c.send(message("POST", SLOW, A_WHILE))
    wait_until(lambda: begun(s) == 1, what="the first execution")
    return c


def empty_before_it_ends(s):
    """The queue is empty, and the first execution still runs."""
    wait_until(lambda: waiting(s) == 0, every_s=0.005, what="an empty queue")
    return ended(s) == 0 and begun(s) == 1


def test_reset_frees_the_queue(start):
    s = start()
    first = running(s)
    others = [H1(s.http) for _ in range(20)]
    for c in others:
        c.send(message("POST", SLOW, ONE))
    wait_until(lambda: waiting(s) == 20, what="20 that wait")
    for c in others:
        c.abort()
    assert empty_before_it_ends(s)
    assert failures(s, "CANCELED") == 20 and failures(s, "REJECTED") == 0
    assert first.response().json()["outputs"][0]["data"] == [7]
    assert ended(s) == begun(s) == 1, "none of the cancelled ran"


def test_rst_stream_frees_the_queue(start):
    s = start()
    first = running(s)
    with H2(s.grpc) as c:
        streams = [c.grpc(MODEL_INFER, PB) for _ in range(10)] + \
                  [c.request("POST", SLOW, ONE.encode()) for _ in range(10)]
        assert c.ping()
        wait_until(lambda: waiting(s) == 20, what="20 that wait")
        for x in streams:
            c.cancel(x)
        assert c.ping()
        assert empty_before_it_ends(s)
        assert failures(s, "CANCELED") == 20
        assert first.response().status == 200
        r = c.reply(c.grpc(MODEL_INFER, PB))
        assert r.grpc == 0 and r.payload.endswith(struct.pack("<f", 7))
    assert ended(s) == begun(s) == 2


def test_reset_of_the_running_request_ends_it(start):
    """The plug-in is told; the next request does not wait for the rest of a sleep that nobody wants."""
    s = start()
    Held(s).release()
    wait_until(lambda: failures(s, "CANCELED") + failures(s, "BACKEND") == 1, what="the end of an hour")
    assert ask(s.http, "POST", SLOW, ONE).status == 200


def test_fin_cancels_what_has_not_begun(start):
    s = start()
    with H1(s.http) as c:
        c.send(message("POST", SLOW, A_WHILE) + message("POST", SLOW, ONE) * 3)
        wait_until(lambda: begun(s) == 1 and waiting(s) == 3, what="3 that wait")
        c.finish()
        assert empty_before_it_ends(s)
        got = [c.response() for _ in range(4)]
        assert [r.status for r in got] == [200, 499, 499, 499], got
        assert "cancelled" in got[1].error and c.closed()
    assert failures(s, "CANCELED") == 3 and ended(s) == begun(s) == 1


def test_fin_on_http2(start):
    s = start(delay_us=2000000)
    with H2(s.grpc) as c:
        streams = [c.grpc(MODEL_INFER, PB) for _ in range(4)]
        assert c.ping()
        wait_until(lambda: begun(s) == 1 and waiting(s) == 3, what="3 that wait")
        c.finish()
        assert empty_before_it_ends(s)
        got = [c.reply(x).grpc for x in streams]
        assert got == [0, 1, 1, 1], got
        c.drain()
    assert failures(s, "CANCELED") == 3


def test_half_close_keeps_them(start):
    s = start("--half-close", delay_us=200000)
    with H1(s.http) as c, H2(s.grpc) as h2:
        c.send(message("POST", SLOW, ONE) * 3)
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
        c.send(message("POST", SLOW, ONE)[:-5])
        c.finish()
        r = c.response()
        assert r.status == 400 and "ended" in r.error and c.closed()
    assert waiting(s) == 0 and begun(s) == 0


def test_grpc_timeout_while_it_waits(start):
    s = start()
    with H2(s.grpc) as c, Held(s):
        begin = time.monotonic()
        r = c.reply(c.grpc(MODEL_INFER, PB, fields=[("grpc-timeout", "200m")]))
        assert r.grpc == DEADLINE and time.monotonic() - begin >= 0.2, r
        assert "time limit" in r.message
        assert waiting(s) == 0 and failures(s, "REJECTED") == 1
        # passed before it came: never queued
        r = c.reply(c.grpc(MODEL_INFER, PB, fields=[("grpc-timeout", "1n")]))
        assert r.grpc == DEADLINE
        for bad in ("", "5", "m", "-1m", "1x", "123456789m", "1.5S"):
            r = c.reply(c.grpc(MODEL_INFER, PB, fields=[("grpc-timeout", bad)]))
            assert r.grpc not in (None, 0, DEADLINE) and "grpc-timeout" in r.message, (bad, r)
        assert begun(s) == 1


def test_grpc_timeout_while_it_runs(start):
    """Told to the plug-in, and answered although the model is still busy or has just stopped."""
    s = start(delay_us=HOUR_US)
    with H2(s.grpc) as c:
        r = c.reply(c.grpc(MODEL_INFER, PB, fields=[("grpc-timeout", "300m")]))
        assert r.grpc == DEADLINE, r


@pytest.mark.timing
def test_grpc_timeout_is_punctual(start):
    """Answered within 100 ms of its limit, waiting and running."""
    s = start(delay_us=HOUR_US)
    with H2(s.grpc) as c:
        for _ in range(2):  # the first one runs … and is ended; so does the second
            begin = time.monotonic()
            assert c.reply(c.grpc(MODEL_INFER, PB, fields=[("grpc-timeout", "300m")])).grpc == DEADLINE
            assert time.monotonic() - begin < 0.4
    s = start(delay_us=HOUR_US)  # another one: that has learnt how long it takes, and would refuse at once
    with Held(s), H2(s.grpc) as c:
        begin = time.monotonic()
        assert c.reply(c.grpc(MODEL_INFER, PB, fields=[("grpc-timeout", "300m")])).grpc == DEADLINE
        assert time.monotonic() - begin < 0.4


def test_others_of_a_batch_are_answered(server, tmp_path):
    """Half of the members of a running batch go away; the other half gets its own rows."""
    s = server("--io-threads", 1, "--no-keep-gallery", models=[repository(tmp_path / "repo", slow=slow(
        1500000, batch=16, extra="dynamic_batching { }\n"))])
    with Held(s, shape=(1, 1)):
        some = [H1(s.http) for _ in range(10)]
        for i, c in enumerate(some):
            c.send(message("POST", SLOW, one(i + 1, shape=(1, 1))))
        wait_until(lambda: waiting(s) == 10, what="10 that wait")
    wait_until(lambda: begun(s) == 2, what="the ten together")
    for c in some[::2]:
        c.abort()
    for i, c in list(enumerate(some))[1::2]:
        assert c.response().json()["outputs"][0]["data"] == [i + 1]
    assert begun(s) == 2


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
                c.send(message("POST", SLOW, ONE) * (i % 4 + 1))
                time.sleep(pause)
                c.abort() if i % 2 else c.close()

    all_of_them = [threading.Thread(target=storm, args=(n,)) for n in range(6)]
    for t in all_of_them:
        t.start()
    for t in all_of_them:
        t.join()
    wait_until(lambda: waiting(s) == 0, what="an empty queue")
    assert ask(s.http, "POST", SLOW, ONE).json()["outputs"][0]["data"] == [7]
    assert s.process.poll() is None and " level=error" not in s.log()


def test_slow_upload_holds_nothing(server, tmp_path):
    """A body that comes slowly waits in its own buffer: requests behind it run at once."""
    s = server("--io-threads", 1, "--no-keep-gallery", "--body-timeout", "1h", models=[repository(
        tmp_path / "repo", slow=slow(1000, batch=8, extra="dynamic_batching { }\n"))])
    text = one(7, shape=(1, 1))
    with H1(s.http) as late:
        late.send(message("POST", SLOW, text)[:-3])
        for _ in range(20):
            assert ask(s.http, "POST", SLOW, text).status == 200
        late.send(text[-3:].encode())
        assert late.response().status == 200
