"""SIGTERM: what runs is answered, what is new is refused, nothing is lost; a second one ends at once."""

import json
import signal
import socket
import struct
import threading
import time

import pytest

from plugin_models import model, repository, slow
from rawhttp import H1, H2, SERVICE, ask, infer_pb, message

ONE = json.dumps({"inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": [1], "data": [7]}]})
PB = infer_pb("slow", [("INPUT0", "FP32", [1])], raw=[struct.pack("<f", 7)])
PATH = "/v2/models/slow/infer"


@pytest.fixture
def start(server, tmp_path):
    def run(*options, delay_us=1000000):
        repo = repository(tmp_path / "repo", slow=slow(delay_us), id=model("identity", [("INPUT0", "FP32", [1])]))
        return server("--no-keep-gallery", *options, models=[repo])

    return run


def refused(port):
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except ConnectionRefusedError:
        return True
    return False


def ends(s, limit_s):
    begin = time.monotonic()
    code = s.process.wait(limit_s)
    return code, time.monotonic() - begin


def test_running_requests_are_answered(start):
    s = start("--io-threads", 2)
    with H1(s.http) as a, H1(s.http) as b, H2(s.grpc) as c, H1(s.http) as idle:
        assert idle.ask("GET", "/v2/health/ready").status == 200
        a.send(message("POST", PATH, ONE))
        time.sleep(0.1)
        b.send(message("POST", PATH, ONE))  # waits in the queue
        x = c.grpc(SERVICE + "ModelInfer", PB)
        assert c.ping()
        s.signal(signal.SIGTERM)
        assert idle.closed(2), "an idle connection ends at once"
        assert refused(s.http) and refused(s.grpc) and refused(s.metrics)
        for one in (a, b):
            r = one.response()
            assert r.status == 200 and r.headers["connection"] == "close"
            assert r.json()["outputs"][0]["data"] == [7]
            assert one.closed()
        assert c.reply(x).grpc == 0
        c.drain()
        assert c.goaways[0] == (2**31 - 1, 0) and c.goaways[-1] == (x, 0), c.goaways
    assert ends(s, 5)[0] == 0


def test_not_ready_while_it_drains(start):
    """A connection that is busy may still ask; readiness is what turns load balancers away."""
    s = start()
    with H1(s.http) as c, H2(s.http) as h2:
        x = h2.request("POST", PATH, ONE.encode())
        assert h2.ping()
        s.signal(signal.SIGTERM)
        time.sleep(0.03)  # between the first GOAWAY and the last, streams are still taken
        r = h2.ask("GET", "/v2/health/ready")
        assert r.status == 400 or r.reset is not None, r
        assert h2.reply(x).status == 200
        assert c.closed()
    assert ends(s, 5)[0] == 0


def test_second_signal_ends_at_once(start):
    s = start(delay_us=8000000)
    with H1(s.http) as c:
        c.send(message("POST", PATH, ONE))
        time.sleep(0.1)
        s.signal(signal.SIGTERM)
        time.sleep(0.2)
        assert s.process.poll() is None, "it waits for the request"
        s.signal(signal.SIGTERM)
        code, passed = ends(s, 2)
        assert code == 0 and passed < 0.2 + 0.3, passed  # 200 ms, and what a loaded machine takes
        assert c.closed()


def test_exit_timeout(start):
    s = start("--exit-timeout", "300ms", delay_us=8000000)
    with H1(s.http) as c:
        c.send(message("POST", PATH, ONE))
        time.sleep(0.1)
        s.signal(signal.SIGTERM)
        code, passed = ends(s, 8)
        assert code == 0 and 0.25 < passed < 3, passed
    assert "not all requests were answered" in s.log()


@pytest.mark.parametrize("data", [b"", b"GE", message("POST", PATH, ONE)[:-4], b"PRI * HTTP/2.0\r\n"])
def test_silent_clients_do_not_hold_it(start, data):
    """Connections that never finish a request are bounded by the exit time-out, not by their patience."""
    s = start("--exit-timeout", "1s")
    with H1(s.http) as c:
        c.send(data)
        time.sleep(0.05)
        s.signal(signal.SIGTERM)
        code, passed = ends(s, 8)
        assert code == 0 and passed < 4


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_no_request_is_lost(start, protocol):
    """200 requests from 8 clients, SIGTERM in the middle: each is answered right, or its connection was
    refused or closed before a byte of an answer, and was never run."""
    s = start("--io-threads", 2, delay_us=3000)
    answered, turned_away, wrong = [], [], []
    half = threading.Event()

    def over_http(n):
        c = None
        for _ in range(25):
            try:
                c = c or H1(s.http)
                c.send(message("POST", PATH, ONE))
                r = c.response()
                (answered if r.status == 200 and r.json()["outputs"][0]["data"] == [7] else wrong).append(n)
                c = None if r.headers.get("connection") == "close" else c
            except (ConnectionError, AssertionError):  # an AssertionError: it ended before or inside a head
                (wrong if c is not None and c.data else turned_away).append(n)
                c = None
            if len(answered) >= 80:
                half.set()

    def over_grpc(n):
        c = None
        for _ in range(25):
            try:
                c = c if c is not None and not c.goaway else H2(s.grpc)
                x = c.grpc(SERVICE + "ModelInfer", PB)
                r = c.reply(x)
                if r.grpc == 0 and r.payload.endswith(struct.pack("<f", 7)):
                    answered.append(n)
                elif r.headers is None and (r.reset == 7 or (c.goaway and c.goaway[0] < x) or not c.settings):
                    turned_away.append(n)
                    c = None
                else:
                    wrong.append(r)
                    c = None
            except ConnectionError:
                turned_away.append(n)
                c = None
            if len(answered) >= 80:
                half.set()

    clients = [threading.Thread(target=over_http if protocol == "http" else over_grpc, args=(n,)) for n in range(8)]
    for t in clients:
        t.start()
    half.wait(20)
    s.signal(signal.SIGTERM)
    for t in clients:
        t.join(30)
    assert not wrong, wrong
    assert len(answered) + len(turned_away) == 200 and len(answered) >= 80 and turned_away
    assert ends(s, 10)[0] == 0


def test_sigint_is_the_same(start):
    s = start(delay_us=300000)
    with H1(s.http) as c:
        c.send(message("POST", PATH, ONE))
        time.sleep(0.1)
        s.signal(signal.SIGINT)
        assert c.response().status == 200
    assert ends(s, 5)[0] == 0


def test_start_again_on_the_same_port(start, server, tmp_path):
    s = start()
    port = s.http
    with H1(port) as c:
        assert c.ask("GET", "/v2").status == 200
        s.stop()
    again = server("--port", port, "--no-keep-gallery", models=[tmp_path / "repo"], ports=False)
    assert ask(again.http, "GET", "/v2").status == 200 and again.http == port


def test_a_plug_in_that_never_answers_does_not_keep_the_process(server, tmp_path):
    """The drain's limit passes, taking apart waits in vain, and the process ends all the same."""
    repo = repository(tmp_path / "models",
                      never=model("fault", [("INPUT0", "FP32", [1])], fault="never"))
    s = server("--exit-timeout", "200ms", "--no-keep-gallery", models=[repo])
    body = b'{"inputs":[{"name":"INPUT0","shape":[1],"datatype":"FP32","data":[1]}]}'
    with socket.create_connection(("127.0.0.1", s.http)) as c:
        c.sendall(b"POST /v2/models/never/infer HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        time.sleep(0.3)
        begin = time.monotonic()
        s.stop(limit_s=30, expect=None)
        assert time.monotonic() - begin < 20
