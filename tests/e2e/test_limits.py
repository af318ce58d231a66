"""Every limit of `naru serve` that input can meet: what happens at it, and one beyond.

LIMITS names a test for every option of the groups below; a new option without one fails
test_every_option_has_a_test, one that docs/limits.md lacks fails test_page. Defaults are compared
with the modules' own.
"""

import json
import os
import re
import struct
import subprocess
import threading
import time
import zlib

import pytest

from conftest import NARU, ROOT, wait_until
from counts import SLOW, Held, begun, metric, one, waiting
from plugin_models import model, repository, slow
from rawhttp import (CONTINUATION, DATA, ENHANCE_YOUR_CALM, EXHAUSTED, H1, H2, HEADERS, LIMIT_S, PING, PRIORITY,
                     REFUSED_STREAM, SERVICE, UNAVAILABLE, WINDOW_UPDATE, ask, field, frame, head, infer_pb, literal, message, prefixed)

GROUPS = ("Threads and memory", "Scheduling", "Limits")
LIVE = "/v2/health/live"
OPEN = "/v2/models/open/infer"


@pytest.fixture
def start(server, tmp_path):
    """start("--max-body", 2000, id=model(...)): a server with one I/O thread and these models."""

    def run(*options, **models):
        models = models or {"open": model("identity", [("INPUT0", "FP32", [-1])])}
        repo = repository(tmp_path / f"repo{len(list(tmp_path.iterdir()))}", **models)
        own = () if "--io-threads" in options else ("--io-threads", 1)
        return server(*own, *options, "--no-keep-gallery", models=[repo])

    return run


def floats(n):
    return json.dumps({"inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": [n], "data": [0] * n}]})


def padded(size):
    text = floats(1)
    return text + " " * (size - len(text))


def threads(s, name=""):
    every = []
    for task in os.listdir(f"/proc/{s.pid}/task"):
        try:
            with open(f"/proc/{s.pid}/task/{task}/comm", encoding="ascii") as f:
                every.append(f.read())
        except FileNotFoundError:  # it has ended meanwhile
            pass
    return sum(t.startswith(name) for t in every)


def resident(s):
    """Bytes of memory that are the process's own."""
    with open(f"/proc/{s.pid}/status", encoding="ascii") as f:
        return next(int(line.split()[1]) << 10 for line in f if line.startswith("RssAnon:"))


def together(n, work):
    """Results of n calls at once."""
    results = [None] * n

    def one(i):
        results[i] = work(i)

    all_of_them = [threading.Thread(target=one, args=(i,)) for i in range(n)]
    for t in all_of_them:
        t.start()
    for t in all_of_them:
        t.join()
    return results


# --- the head -----------------------------------------------------------------------------------


def test_max_request_line(start):
    s = start("--max-request-line", 256)
    for extra, status in ((0, 200), (1, 414)):
        target = LIVE + "?" + "x" * (256 - len(f"GET {LIVE}? HTTP/1.1") + extra)
        with H1(s.http) as c:
            c.send(head("GET", target))
            r = c.response()
            assert r.status == status
            assert c.open_now() if extra == 0 else c.closed() and "too long" in r.error
    with H2(s.http) as c:
        assert c.ask("GET", LIVE + "?" + "x" * (256 - len(LIVE) - 1)).status == 200
        assert c.ask("GET", LIVE + "?" + "x" * (256 - len(LIVE))).status == 414
        assert c.ask("GET", LIVE).status == 200


def test_max_header_field(start):
    s = start("--max-header-field", 256)
    for n, status in ((256, 200), (257, 431)):
        with H1(s.http) as c:
            c.send(head("GET", LIVE, "X-Field: " + "v" * (n - len("X-Field"))))
            r = c.response()
            assert r.status == status and (status == 200 or c.closed())
        with H2(s.http) as c:
            assert c.ask("GET", LIVE, fields=[("x-field", "v" * (n - 7))]).status == status
            assert c.ask("GET", LIVE).status == 200


def test_max_header(start):
    s = start("--max-header", 1024)
    own = len("hostlocalhost") + 32
    for n, status in ((1024, 200), (1025, 431)):
        sizes = [500 - 32 - 1, n - own - 500 - 32 - 1]
        with H1(s.http) as c:
            c.send(head("GET", LIVE, *(f"{k}: " + "v" * size for k, size in zip("ab", sizes))))
            r = c.response()
            assert r.status == status, r
            assert status == 200 or (c.closed() and "too large" in r.error)
        with H2(s.http) as c:
            sizes[1] += own  # :authority does not count
            assert c.ask("GET", LIVE, fields=[(k, "v" * size) for k, size in zip("ab", sizes)]).status == status
            assert c.ask("GET", LIVE).status == 200


def test_max_header_fields(start):
    s = start("--max-header-fields", 8)
    for n, status in ((8, 200), (9, 431)):
        with H1(s.http) as c:
            c.send(head("GET", LIVE, *(f"X-{i}: v" for i in range(n - 1))))
            assert c.response().status == status
        with H2(s.http) as c:
            assert c.ask("GET", LIVE, fields=[(f"x-{i}", "v") for i in range(n)]).status == status
            # a cookie that came in crumbs is so many fields
            assert c.ask("GET", LIVE, fields=[("cookie", "a=b")] * n).status == status


DEFAULT_S = 8  # a limit that took longer was not the one of the option: the defaults are 10 s and more


def test_header_timeout(start):
    s = start("--header-timeout", "400ms")
    for sent in (b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n", b"G", b"PRI * HT"):
        begin = time.monotonic()
        with H1(s.http) as c:
            c.send(sent)
            if sent[:1] == b"G" and len(sent) > 1:
                assert c.response().status == 408
            c.closed()
            assert 0.4 <= time.monotonic() - begin < DEFAULT_S
    with H1(s.http) as c:  # one byte now and then does not help
        c.send(b"GET " + LIVE.encode() + b" HTTP/1.1\r\nHost: localhost\r\nX-A: ")
        begin = time.monotonic()
        while c.try_send(b"b"):
            assert time.monotonic() - begin < DEFAULT_S
            time.sleep(0.02)
    with H2(s.http) as c:
        assert c.ping()
        c.open([(":method", "GET")], flags=0)
        assert c.drain().goaway[1] == ENHANCE_YOUR_CALM
    with H1(s.http) as c:  # a head in time is served however long the connection lives
        for _ in range(3):
            assert c.ask("GET", LIVE).status == 200
            time.sleep(0.25)


def test_first_byte_timeout(start):
    s = start("--first-byte-timeout", "300ms")
    begin = time.monotonic()
    with H1(s.http) as c:
        assert c.closed()
        assert 0.3 <= time.monotonic() - begin < DEFAULT_S


# --- bodies -------------------------------------------------------------------------------------


def chunked(target, pieces):
    body = b"".join(f"{len(p):x}\r\n".encode() + p + b"\r\n" for p in pieces)
    return head("POST", target, "Transfer-Encoding: chunked") + body + b"0\r\n\r\n"


def test_max_body(start):
    s = start("--max-body", 2000, open=model("identity", [("INPUT0", "FP32", [-1])]),
              fixed=model("identity", [("INPUT0", "FP32", [4])]))
    assert ask(s.http, "POST", OPEN, padded(2000)).status == 200
    with H1(s.http) as c:
        c.send(head("POST", OPEN, "Content-Length: 2001", "Expect: 100-continue"))
        r = c.response()
        assert r.status == 413 and "2000" in r.error and c.interim == []
    for n, status in ((2000, 200), (2001, 413)):
        with H1(s.http) as c:
            text = padded(n).encode()
            c.send(chunked(OPEN, [text[:1000], text[1000:]]))
            assert c.response().status == status
            assert status == 200 or c.closed()
        with H2(s.http) as c:
            assert c.ask("POST", OPEN, padded(n).encode()).status == status
            assert c.ask("POST", OPEN, padded(n).encode(), [("content-length", str(n))]).status == status
            assert c.ask("GET", LIVE).status == 200
    # gRPC: the message
    small = infer_pb("open", [("INPUT0", "FP32", [1])], raw=[b"\0" * 4])
    exact = small + field(1000, b"x" * (2000 - len(small) - 4))
    assert len(exact) == 2000
    with H2(s.grpc) as c:
        assert c.reply(c.grpc(SERVICE + "ModelInfer", exact)).grpc == 0
        r = c.reply(c.grpc(SERVICE + "ModelInfer", exact + b"\0"))
        assert r.grpc == EXHAUSTED and "2000" in r.message


def test_refused_body_that_is_sent_all_the_same(start):
    """A client that does not wait for 100-continue can still read why, however much it sends."""
    s = start("--max-body", 2000)
    for request in (message("POST", OPEN, b" " * (20 << 20)), chunked(OPEN, [b" " * (1 << 20)] * 20)):
        with H1(s.http) as c:
            c.send(request)
            r = c.response()
            assert r.status == 413 and "2000" in r.error and c.closed() and not c.was_reset


def test_body_of_a_model_with_fixed_shapes(start):
    """64 KiB + 32 bytes an element, whatever --max-body says above that."""
    s = start(fixed=model("identity", [("INPUT0", "FP32", [1000])]))
    limit = 65536 + 32 * 1000
    text = floats(1000)
    for n, status in ((limit, 200), (limit + 1, 413)):
        r = ask(s.http, "POST", "/v2/models/fixed/infer", text + " " * (n - len(text)))
        assert r.status == status and (status == 200 or str(limit) in r.error)


def test_body_timeout(start):
    s = start("--body-timeout", "1500ms")
    with H1(s.http) as c:
        begin = time.monotonic()
        c.send(head("POST", OPEN, "Content-Length: 100") + b"x" * 50)
        assert c.response().status == 408
        assert c.closed() and 1.5 <= time.monotonic() - begin < DEFAULT_S
    with H1(s.http) as c:  # slow, but moving: longer than the limit in all
        text = floats(1).encode()
        c.send(head("POST", OPEN, f"Content-Length: {len(text)}"))
        begin = time.monotonic()
        for at in range(0, len(text), 4):
            c.send(text[at : at + 4])
            time.sleep(0.1)
        assert time.monotonic() - begin > 1.5
        assert c.response().status == 200
    with H2(s.grpc) as c:
        begin = time.monotonic()
        stream = c.grpc(SERVICE + "ModelInfer", prefixed(b"x" * 10, length=100), raw=True, end=False)
        r = c.reply(stream)
        assert r.grpc == 4 and 1.5 <= time.monotonic() - begin < DEFAULT_S, r
        assert c.reply(c.grpc(SERVICE + "ServerLive", b"")).grpc == 0


def test_body_min_rate(start):
    """Below the rate when 10 s have passed; the arithmetic at other times is unit tested."""
    s = start("--body-min-rate", 1000)
    with H1(s.http) as slow_one, H1(s.http) as fast:
        for c, n in ((slow_one, 50), (fast, 40000)):
            c.send(head("POST", OPEN, "Content-Length: 60000") + b" " * n)
        begin = time.monotonic()
        while slow_one.open_now(wait_s=0.4):  # both move: it is not the limit of those who stand still
            assert time.monotonic() - begin < 25
            for c in (slow_one, fast):
                c.try_send(b" " * 25)
        assert slow_one.response().status == 408
        assert time.monotonic() - begin > 9.9
        assert fast.open_now()


def test_max_chunks(start):
    s = start("--max-chunks", 16)
    text = floats(1).encode()
    for n, status in ((16, 200), (17, 413)):
        with H1(s.http) as c:
            c.send(chunked(OPEN, [text[i : i + 1] for i in range(n - 1)] + [text[n - 1 :]]))
            r = c.response()
            assert r.status == status and (status == 200 or c.closed())


def test_inline_json(start):
    """Where JSON is read changes nothing that a client sees."""
    s = start("--inline-json", 500)
    for n in (1, 100, 150, 5000):
        r = ask(s.http, "POST", OPEN, floats(n))
        assert r.status == 200 and r.json()["outputs"][0]["shape"] == [n]
    assert ask(s.http, "POST", OPEN, padded(500)[:-1]).status == 200
    for size in (499, 500, 501, 3000):
        r = ask(s.http, "POST", OPEN, padded(size)[:-1] + "x")
        assert r.status == 400 and f"byte {size - 1}" in r.error


# --- connections --------------------------------------------------------------------------------


def test_max_connections(start):
    s = start("--max-connections", 4)
    open_ones = [H1(s.http) for _ in range(4)]
    assert all(c.ask("GET", LIVE).status == 200 for c in open_ones)
    with H1(s.http) as fifth:
        assert fifth.closed()
    assert all(c.ask("GET", LIVE).status == 200 for c in open_ones)
    open_ones.pop().close()

    def served():
        with H1(s.http) as c:
            c.try_send(message("GET", LIVE))
            return c.more(time.monotonic() + LIMIT_S) and c.data.startswith(b"HTTP/1.1 200")

    wait_until(served, what="a place for another connection")
    for c in open_ones:
        c.close()


def test_max_connections_per_address(start):
    """Loopback is left out; addresses are counted in tests/unit/http/test_server.c."""
    s = start("--max-connections-per-address", 1)
    with H1(s.http) as a, H1(s.http) as b:
        assert a.ask("GET", LIVE).status == 200 and b.ask("GET", LIVE).status == 200


def test_keep_alive(start):
    s = start("--keep-alive", "800ms", slow=slow(1600000))
    for kind in (H1, H2):
        begin = time.monotonic()
        with kind(s.http) as c:
            assert c.ask("GET", LIVE).status == 200
            assert c.closed() if kind is H1 else c.drain().goaway[1] == 0
            assert 0.8 <= time.monotonic() - begin < 30, "the default is a minute"
    with H1(s.http) as c:  # not idle while a request runs
        assert c.ask("POST", "/v2/models/slow/infer", floats(1)).status == 200


def test_write_timeout(start):
    s = start("--write-timeout", "2s")
    n = 2 << 20
    asked = {"inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": [n], "parameters": {"binary_data_size": 4 * n}}],
             "parameters": {"binary_data_output": True}}
    text = json.dumps(asked)
    request = message("POST", OPEN, text.encode() + b"\0" * (4 * n), f"Inference-Header-Content-Length: {len(text)}")
    with H1(s.http, receive_bytes=4096) as c:
        c.send(request)
        wait_until(lambda: metric(s, "naru_http_timeouts_total") >= 1, limit_s=20, what="the cut")
        wait_until(lambda: metric(s, "naru_http_connections") == 1, what="the end of the connection")
    with H2(s.http, window=1000) as c:  # nor does a window that never opens keep the answer
        stream = c.request("POST", OPEN, floats(2000).encode())
        assert c.reply(stream, limit_s=20).reset is not None
    with H1(s.http, receive_bytes=1 << 16) as c:  # a reader that is slow, but reads: longer than the limit in all
        c.send(request)
        pieces, got, begin = [], 0, time.monotonic()
        while got < 4 * n and c.more(time.monotonic() + LIMIT_S):
            pieces.append(c.data[:20])
            got, c.data = got + len(c.data), b""
            time.sleep(min(0.02, max(0, 2.5 * got / (4 * n) - (time.monotonic() - begin))))
        assert b"200 OK" in pieces[0] and got >= 4 * n


def test_max_pipelined(start):
    s = start("--max-pipelined", 2, slow=slow(1000))
    with H1(s.http) as c:
        c.send(message("POST", SLOW, one(delay_us=2000000)) + message("POST", SLOW, one()) * 3 + message("GET", LIVE))
        wait_until(lambda: begun(s) == 1 and waiting(s) == 1, what="the two of the pipeline")
        time.sleep(0.1)
        seen = metric(s, "naru_http_requests_total"), metric(s, "naru_http_requests_total")
        assert seen[1] - seen[0] == 1 and begun(s) == 1 and waiting(s) == 1, "the third is not even read"
        assert [c.response().status for _ in range(5)] == [200] * 5


def test_half_close(start):
    """See test_cancel.py for what happens to each request."""
    for option, answers in (("--half-close", 2), ("--no-half-close", 1)):
        s = start(option, slow=slow(1500000))
        with H1(s.http) as c:
            c.send(message("POST", SLOW, one()) + message("POST", SLOW, one(delay_us=1000)))
            wait_until(lambda s=s: begun(s) == 1 and waiting(s) == 1, what="the first runs, the second waits")
            c.finish()
            got = [c.response().status for _ in range(2)]
            assert got.count(200) == answers, got
        s.stop()


# --- HTTP/2 -------------------------------------------------------------------------------------


def test_h2_max_streams(start):
    s = start("--h2-max-streams", 2, slow=slow(1000))
    with H2(s.http) as c, Held(s) as busy:
        streams = [c.request("POST", SLOW, one().encode()) for _ in range(3)]
        assert c.reply(streams[2]).reset == REFUSED_STREAM
        busy.release()
        assert [c.reply(x).status for x in streams[:2]] == [200, 200]
        assert c.settings[3] == 2
        assert c.ask("GET", LIVE).status == 200


def test_h2_windows(start):
    s = start("--h2-stream-window", 70000, "--h2-connection-window", 200000)
    with H2(s.http) as c:
        grown = 0
        deadline = time.monotonic() + LIMIT_S
        c.send(frame(PING, payload=b"12345678"))
        while c.pings == 0 or not grown:
            kind, _, stream, payload = c.one(deadline)
            if kind == WINDOW_UPDATE and stream == 0:
                grown += struct.unpack(">I", payload)[0]
        assert c.settings[4] == 70000 and grown == 200000 - 65535
        stream = c.request("POST", OPEN, end=False)
        c.send(b"".join(frame(DATA, 0, stream, b" " * 16384) for _ in range(4)))
        assert c.ping() and c.replies[stream].reset is None


def test_h2_resets(start):
    s = start("--h2-resets", 5, "--h2-reset-rate", 0, slow=slow(60000000))
    with H2(s.http) as c:
        for n in range(6):
            c.cancel(c.request("POST", SLOW, one().encode()))
            if n == 4:
                assert c.ping() and c.goaway is None
        c.drain()
        assert c.goaway[1] == ENHANCE_YOUR_CALM
    # made by the server, they count the same (CVE-2025-8671)
    with H2(s.http) as c:
        for n in range(6):
            c.request("POST", OPEN, b"xx", [("content-length", "1")])
            if n == 4:
                assert c.ping() and c.goaway is None
        assert c.drain().goaway[1] == ENHANCE_YOUR_CALM
    assert metric(s, "naru_http_abuse_closed_total") == 2


def test_h2_reset_rate(start):
    s = start("--h2-resets", 2, "--h2-reset-rate", 100)
    with H2(s.http) as c:
        for _ in range(15):
            c.cancel(c.request("POST", OPEN, b"", end=False))
            assert c.ping() and c.goaway is None  # it was counted before the pause begins
            time.sleep(0.03)


def test_h2_glitches(start):
    s = start("--h2-glitches", 10, "--h2-glitch-rate", 0)
    with H2(s.http) as c:
        assert c.ping()  # so far SETTINGS, its acknowledgement and this PING
        for n in range(8):
            c.try_send(frame(PRIORITY, 0, 99, struct.pack(">IB", 0, 10)))
            if n == 5:
                time.sleep(0.1)
                assert c.open_now() and c.goaway is None
        c.drain()
        assert c.goaway[1] == ENHANCE_YOUR_CALM


def test_h2_glitch_rate(start):
    s = start("--h2-glitches", 5, "--h2-glitch-rate", 200)
    with H2(s.http) as c:
        for _ in range(30):
            c.send(frame(PRIORITY, 0, 99, struct.pack(">IB", 0, 10)))
            assert c.ping() and c.goaway is None  # counted, both, before the pause begins
            time.sleep(0.02)


def test_h2_control_queue(start):
    """PINGs of a client that does not read: acknowledgements stop being made, memory stays."""
    s = start("--h2-control-queue", 16, "--h2-glitches", 100000000, "--h2-glitch-rate", 100000000)
    with H2(s.http, receive_bytes=4096) as c:
        assert c.ping()
        before = metric(s, "process_resident_memory_bytes")
        flood = frame(PING, payload=b"abcdefgh") * 4096
        c.socket.settimeout(1)
        sent = 0
        try:
            while sent < 64 << 20:
                c.socket.sendall(flood)
                sent += len(flood)
        except (TimeoutError, ConnectionError):
            pass
        assert sent < 64 << 20, "the server reads on although its answers are not taken"
        assert ask(s.http, "GET", LIVE).status == 200
        assert metric(s, "process_resident_memory_bytes") - before < 4 << 20


def test_h2_fixed_limits(start):
    """8 CONTINUATIONs, 64 KiB of a header block: constants, see docs/limits.md."""
    s = start()
    with H2(s.http) as c:
        c.open(literal(":method", "GET") + literal(":path", LIVE) + literal(":scheme", "http"), flags=0)
        for n in range(9):
            c.try_send(frame(CONTINUATION, 0, 1, literal("x", "y" * 100)))
        assert c.drain().goaway[1] != 0
    with H2(s.http) as c:
        block = literal(":method", "GET") + literal(":path", LIVE) + literal(":scheme", "http")
        c.send(frame(HEADERS, 1, 1, block) + b"".join(frame(CONTINUATION, 4 if n == 7 else 0, 1, literal("x", "y"))
                                                      for n in range(8)))
        assert c.ping() and c.goaway is None


# --- pictures -----------------------------------------------------------------------------------


def png(width, height):
    rows = b"".join(b"\0" + b"\x80" * (3 * width) for _ in range(height))
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(rows), b"IEND"]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks)


def picture_model():
    return model("identity", [("INPUT0", "UINT8", [3, -1, -1])], naru__output="image", naru__output__scale=1)


@pytest.mark.parametrize("option, at, beyond", [("--max-image-pixels", (40, 50), (41, 49)),
                                                ("--max-image-side", (2000, 1), (1, 2001))])
def test_max_image(start, option, at, beyond):
    s = start(option, 2000, pic=picture_model())
    r = ask(s.http, "POST", "/v2/models/pic/predict", png(*at))
    assert r.status == 200 and r.headers["content-type"] == "image/png", r
    r = ask(s.http, "POST", "/v2/models/pic/predict", png(*beyond))
    assert r.status == 413 and re.search("limit|at most", r.error), r


# --- queues -------------------------------------------------------------------------------------


def refused(r):
    return r.status == 503 and int(r.headers["retry-after"]) >= 1 and "try again" in r.error


def line_up(s, n, text=None):
    """n requests of the model slow on connections of their own, one behind the other in its queue."""
    open_ones = []
    for i in range(n):
        c = H1(s.http)
        c.send(message("POST", SLOW, text or one()))
        open_ones.append(c)
        wait_until(lambda i=i: waiting(s) == i + 1, what=f"{i + 1} that wait")
    return open_ones


def test_queue_max_requests(start):
    s = start("--queue-max-requests", 2, slow=slow(1000))
    with Held(s) as busy:
        open_ones = line_up(s, 2)
        assert refused(ask(s.http, "POST", SLOW, one()))  # at once: the first one runs for an hour
        with H2(s.grpc) as c:
            data = infer_pb("slow", [("INPUT0", "FP32", [1])], raw=[b"\0" * 4])
            assert c.reply(c.grpc(SERVICE + "ModelInfer", data)).grpc == UNAVAILABLE
        assert waiting(s) == 2
        busy.release()
        assert [c.response().status for c in open_ones] == [200] * 2
    assert metric(s, "nv_inference_request_failure", model="slow", reason="REJECTED") == 2
    assert ask(s.http, "POST", SLOW, one()).status == 200


def test_queue_max_bytes(start):
    s = start("--queue-max-bytes", 800, slow=model("delay", [("INPUT0", "FP32", [-1])], delay_us=1000))
    with Held(s, shape=(100,)) as busy:
        open_ones = line_up(s, 2, text=floats(100))  # 400 bytes each
        assert refused(ask(s.http, "POST", SLOW, floats(1)))
        busy.release()
        assert [c.response().status for c in open_ones] == [200] * 2
    with Held(s) as busy:  # a request larger than the whole limit is not refused for ever: it waits alone
        open_ones = line_up(s, 1, text=floats(1000))
        assert refused(ask(s.http, "POST", SLOW, floats(1)))
        busy.release()
        assert open_ones[0].response().status == 200


def test_queue_max_wait(start):
    s = start("--queue-max-wait", "2900ms", slow=slow(1000))
    assert ask(s.http, "POST", SLOW, one(delay_us=1000000)).status == 200  # now it is known
    with Held(s) as busy:
        open_ones = line_up(s, 2)  # of 1 s each as far as is known: two may wait
        assert refused(ask(s.http, "POST", SLOW, one()))
        busy.release()
        assert [c.response().status for c in open_ones] == [200] * 2


def test_pool_queue(start):
    """Twelve at once, until one came while one was parsed and one waited; none of them is lost."""
    s = start("--pool-queue", 1, "--pool-threads", 1)
    text = floats(300000)
    seen = set()

    def both_kinds():
        got = together(12, lambda i: ask(s.http, "POST", OPEN, text))
        assert all(r.status == 200 or refused(r) for r in got), got
        seen.update(r.status for r in got)
        return seen == {200, 503}

    wait_until(both_kinds, what="an answer and a refusal")
    assert ask(s.http, "POST", OPEN, text).status == 200


def test_memory_budget(start):
    s = start("--memory-budget", "8MiB")
    for _ in range(2):
        r = ask(s.http, "POST", OPEN, " " * (10 << 20))
        assert r.status == 503 and "memory" in r.error, r
        assert ask(s.http, "POST", OPEN, floats(100000)).status == 200
    with H2(s.grpc) as c:
        r = c.reply(c.grpc(SERVICE + "ModelInfer", b"\0" * (10 << 20)))
        assert r.grpc == EXHAUSTED and "memory" in r.message
        assert c.reply(c.grpc(SERVICE + "ServerLive", b"")).grpc == 0


def test_memory_is_not_held_for_the_next_run(start):
    """What batches keep between runs goes back when it would be missing elsewhere."""
    models = {f"m{i}": model("identity", [("INPUT0", "UINT8", [-1])]) for i in range(6)}
    s = start("--memory-budget", "8MiB", **models)
    for _ in range(2):
        for name in models:
            r = ask(s.http, "POST", f"/v2/models/{name}/infer", b"\1" * (5 << 19), "Inference-Header-Content-Length: 0")
            assert r.status == 200 and r.body.endswith(b"\1" * (5 << 19)), r


def test_idle_trim(start):
    """What is kept for the next run goes back after that long without one, and not at all with 0."""
    models = {f"m{i}": model("identity", [("INPUT0", "UINT8", [-1])]) for i in range(4)}
    kept = {}
    for after in ("200ms", "0s"):
        s = start("--idle-trim", after, **models)
        before = resident(s)
        for name in models:
            r = ask(s.http, "POST", f"/v2/models/{name}/infer", b"\1" * (8 << 20), "Inference-Header-Content-Length: 0")
            assert r.status == 200
        if after == "200ms":
            wait_until(lambda s=s, before=before: resident(s) < before + (6 << 20), what="the memory of idle models")
        else:
            time.sleep(1)
        kept[after] = resident(s) - before
        assert ask(s.http, "POST", "/v2/models/m0/infer", b"\1" * 100, "Inference-Header-Content-Length: 0").status == 200
    assert kept["0s"] > (24 << 20), kept


def test_cache_size(start):
    """An answer of 4,000 bytes is kept in 64 KiB, not in 1 KiB, and not without a cache."""
    for size, hits in (("64KiB", 1), ("1KiB", 0), (0, 0)):
        s = start("--cache-size", size, kept=model("identity", [("INPUT0", "FP32", [-1])],
                                                   extra="response_cache { enable: true }\n"))
        for _ in range(2):
            assert ask(s.http, "POST", "/v2/models/kept/infer", floats(1000)).status == 200
        assert metric(s, "nv_cache_num_hits_per_model", model="kept") == hits


# --- threads, instances, placement ---------------------------------------------------------------


def test_io_threads(start):
    for n in (1, 3):
        s = start("--io-threads", n)
        wait_until(lambda s=s, n=n: threads(s, "naru-io") == n, what=f"{n} threads")


def test_exec_threads(start):
    few, many = start("--exec-threads", 1), start("--exec-threads", 5)
    wait_until(lambda: threads(many) - threads(few) == 4, what="four threads more")


def test_pool_threads(start):
    """Threads come with work, up to the limit."""
    few, many = start("--pool-threads", 1), start("--pool-threads", 4)
    most = {}
    for s, enough in ((few, 1), (many, 2)):
        def grown(s=s, enough=enough):
            together(8, lambda i: ask(s.http, "POST", OPEN, floats(100000)))
            most[s] = max(most.get(s, 0), threads(s, "naru-pool"))
            return most[s] >= enough
        wait_until(grown, what=f"{enough} threads of the pool")
    assert most[few] == 1 and 2 <= most[many] <= 4, most


def test_max_exec_threads(start):
    """Models that block get more threads up to the limit; the others wait, and are answered."""
    models = {f"m{i}": slow(1000) for i in range(4)}
    for most in (2, 8):  # one more than --exec-threads is the least
        s = start("--exec-threads", 1, "--max-exec-threads", most, **models)
        held = [Held(s, model=f"m{i}") for i in range(2)]
        others = [H1(s.http) for _ in range(2)]
        for i, c in enumerate(others):
            c.send(message("POST", f"/v2/models/m{i + 2}/infer", one()))
        if most == 2:
            wait_until(lambda s=s: [waiting(s, "m2"), waiting(s, "m3")] == [1, 1], what="two that wait")
            time.sleep(0.3)
            assert [begun(s, "m2"), begun(s, "m3")] == [0, 0], "two threads, and both are taken for an hour"
            for h in held:
                h.release()
        assert [c.response().status for c in others] == [200] * 2
        for h in held:
            h.release()
        s.stop()


def test_max_instances(start):
    group = "instance_group [ { count: %d kind: KIND_CPU } ]\n"
    s = start("--max-instances", 2, fits=slow(1, extra=group % 2), many=slow(1, extra=group % 3))
    assert ask(s.http, "GET", "/v2/models/fits/ready").status == 200
    index = ask(s.http, "POST", "/v2/repository/index").json()
    many = next(m for m in index if m["name"] == "many")
    assert many["state"] == "UNAVAILABLE" and "2" in many["reason"] and "--max-instances" in many["reason"], many
    r = ask(s.http, "POST", "/v2/models/many/infer", floats(1))
    assert r.status == 404 and "--max-instances" in r.error


def spinning(us, **more):
    return model("delay", [("INPUT0", "FP32", [1])], spin_us=us, **more)


def runs_inline(s, n=400):
    """Whether the model id is, or within n requests comes, onto the I/O thread. What could not be proved
    while it was loaded, because the machine was busy elsewhere, traffic proves."""
    with H1(s.http) as c:
        for i in range(n):
            if i % 20 == 0 and metric(s, "naru_model_inline", model="id") == 1:
                return True
            assert c.ask("POST", "/v2/models/id/infer", floats(1)).status == 200
    return False


def test_inline(start):
    assert runs_inline(start(id=spinning(1)))
    s = start("--no-inline", id=spinning(1))
    assert not runs_inline(s) and metric(s, "naru_inline_executions_total", model="id") == 0


def test_inline_short(start):
    for option, inline in (("5ms", True), ("50us", False)):
        s = start("--inline-short", option, "--inline-budget", "1s", "--inline-slow", "1s", id=spinning(100))
        assert runs_inline(s) == inline


def test_inline_slow(start):
    """One execution over the limit is enough; below it the mean decides, much later."""
    for option, stays in (("3ms", 0), ("5s", 1)):
        s = start("--inline-slow", option, "--inline-short", "2ms", "--inline-budget", "1s", id=spinning(100))
        assert runs_inline(s)
        once = json.loads(floats(1)) | {"parameters": {"spin_us": 20000}}
        assert ask(s.http, "POST", "/v2/models/id/infer", json.dumps(once)).status == 200
        assert metric(s, "naru_model_inline", model="id") == stays
        assert metric(s, "naru_placement_changes_total", model="id", to="pool") >= 1 - stays


def test_inline_budget(start):
    for budget, inline in (("1us", False), ("1s", True)):
        s = start("--inline-budget", budget, "--inline-short", "5ms", "--inline-slow", "1s", id=spinning(100))
        assert runs_inline(s) == inline
        before = metric(s, "naru_inline_executions_total", model="id")
        with H1(s.http) as c:
            c.send(message("POST", "/v2/models/id/infer", floats(1)) * 20)
            assert [c.response().status for _ in range(20)] == [200] * 20
        ran = metric(s, "naru_inline_executions_total", model="id") - before
        assert 0 < ran <= 20 if inline else before == ran == 0


def test_watchdog_timeout(start):
    for limit, stuck in (("300ms", True), ("1h", False), ("0", False)):
        s = start("--watchdog-timeout", limit, slow=slow(1000))
        with Held(s):
            if stuck:
                wait_until(lambda: metric(s, "naru_model_stuck", model="slow") == 1, what="a stuck model")
                assert ask(s.http, "POST", SLOW, one()).status == 503
            else:
                time.sleep(0.7)  # it would be by now
                assert metric(s, "naru_model_stuck", model="slow") == 0
        wait_until(lambda: ask(s.http, "POST", SLOW, one()).status == 200, what="the end of the run")


# --- the table ----------------------------------------------------------------------------------

LIMITS = {
    "io-threads": test_io_threads,
    "exec-threads": test_exec_threads,
    "max-exec-threads": test_max_exec_threads,
    "pool-threads": test_pool_threads,
    "pool-queue": test_pool_queue,
    "max-instances": test_max_instances,
    "memory-budget": test_memory_budget,
    "idle-trim": test_idle_trim,
    "cache-size": test_cache_size,
    "queue-max-requests": test_queue_max_requests,
    "queue-max-bytes": test_queue_max_bytes,
    "queue-max-wait": test_queue_max_wait,
    "watchdog-timeout": test_watchdog_timeout,
    "inline": test_inline,
    "inline-short": test_inline_short,
    "inline-slow": test_inline_slow,
    "inline-budget": test_inline_budget,
    "max-body": test_max_body,
    "max-connections": test_max_connections,
    "max-connections-per-address": test_max_connections_per_address,
    "max-request-line": test_max_request_line,
    "max-header-field": test_max_header_field,
    "max-header": test_max_header,
    "max-header-fields": test_max_header_fields,
    "header-timeout": test_header_timeout,
    "body-timeout": test_body_timeout,
    "body-min-rate": test_body_min_rate,
    "write-timeout": test_write_timeout,
    "keep-alive": test_keep_alive,
    "first-byte-timeout": test_first_byte_timeout,
    "max-chunks": test_max_chunks,
    "max-pipelined": test_max_pipelined,
    "half-close": test_half_close,
    "h2-max-streams": test_h2_max_streams,
    "h2-stream-window": test_h2_windows,
    "h2-connection-window": test_h2_windows,
    "h2-resets": test_h2_resets,
    "h2-reset-rate": test_h2_reset_rate,
    "h2-glitches": test_h2_glitches,
    "h2-glitch-rate": test_h2_glitch_rate,
    "h2-control-queue": test_h2_control_queue,
    "inline-json": test_inline_json,
    "max-image-pixels": test_max_image,
    "max-image-side": test_max_image,
}


def serve(*options):
    return subprocess.run([NARU, "serve", *options], capture_output=True, text=True, timeout=20, check=True).stdout


def options_of_help():
    """{option: default as --help prints it} of the groups above."""
    found, group, name = {}, "", None
    for line in serve("--help").splitlines():
        option = re.match(r"  --([a-z0-9-]+)", line)
        if line and line[0] != " ":
            group, name = line.split(" (")[0], None
        elif option and group in GROUPS:
            name = option[1]
            found[name] = ""
        if name:
            found[name] += " " + line.strip()
    defaults = {k: re.search(r"\[([^\[\]]*)\]\s*$", v) for k, v in found.items()}
    assert all(defaults.values()), [k for k, v in defaults.items() if not v]
    return {k: v[1] for k, v in defaults.items()}


def test_every_option_has_a_test():
    assert set(options_of_help()) == set(LIMITS)


def test_page():
    """docs/limits.md: option, default as --help says it, and the test's name, for every one."""
    text = (ROOT / "docs" / "limits.md").read_text()
    rows = {}
    for line in text.splitlines():
        cells = [c.strip() for c in line.strip("|").split("|")]
        option = re.match(r"`--([a-z0-9-]+)`$", cells[1]) if line.startswith("|") and len(cells) == 5 else None
        if option:
            rows[option[1]] = cells
    expected = options_of_help()
    assert set(rows) == set(expected)
    for option, default in expected.items():
        assert rows[option][2] == default, (option, rows[option][2], default)
        assert rows[option][4] == LIMITS[option].__name__, option


def nanoseconds(text):
    n, unit = re.match(r"(\d+)(us|ms|s)$", text).groups()
    return int(n) * {"us": 1000, "ms": 1000000, "s": 1000000000}[unit]


def test_defaults_are_the_modules_own():
    tool = ROOT / "build" / "tests" / "tools" / "naru-default-limits"
    if not tool.exists():
        pytest.skip(f"{tool} is not built")
    own = dict(line.split(": ") for line in subprocess.run([tool], capture_output=True, text=True, check=True)
               .stdout.splitlines())
    shown = dict(re.findall(r"^([a-z0-9-]+): (.*?)  # default$", serve("--print-config"), re.M))
    assert set(own) >= set(LIMITS)
    for option, value in own.items():
        text = shown[option]
        said = {"true": 1, "false": 0}.get(text)
        if said is None:
            said = int(text) if text.isdigit() else nanoseconds(text)
        assert said == int(value), (option, text, value)
