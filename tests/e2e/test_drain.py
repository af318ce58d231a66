"""SIGTERM: what runs is answered, what is new is refused, nothing is lost; a second one ends at once."""

import os
import signal
import socket
import struct
import subprocess
import threading
import time

import pytest

from conftest import NARU, wait_until
from counts import SLOW, Held, begun, metric, one, waiting
from plugin_models import model, repository, slow
from rawhttp import GOAWAY, H1, H2, LIMIT_S, SERVICE, WINDOW_UPDATE, ask, frame, infer_pb, message, prefixed

ONE = one(7)
A_WHILE = one(7, delay_us=2000000)  # for what has to be answered in the end
PB = infer_pb("slow", [("INPUT0", "FP32", [1])], raw=[struct.pack("<f", 7)])
DEFAULT_S = 25  # whoever waits for longer waits for the default of --exit-timeout, 30 s


@pytest.fixture
def start(server, tmp_path):
    def run(*options, delay_us=1000):
        repo = repository(tmp_path / "repo", slow=slow(delay_us), id=model("identity", [("INPUT0", "FP32", [1])]))
        return server("--no-keep-gallery", *options, models=[repo])

    return run


def refused(port):
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except ConnectionRefusedError:
        return True
    return False


def ends(s, limit_s=DEFAULT_S):
    return s.process.wait(limit_s)


def quiet(c):
    """Nothing has come that is not read yet."""
    return c.data == b"" and c.open_now(wait_s=0.001)


def test_running_requests_are_answered(start):
    s = start("--io-threads", 2)
    with H1(s.http) as a, H1(s.http) as b, H2(s.grpc) as c, H1(s.http) as idle:
        assert idle.ask("GET", "/v2/health/ready").status == 200
        a.send(message("POST", SLOW, A_WHILE))
        wait_until(lambda: begun(s) == 1, what="the first one")
        b.send(message("POST", SLOW, ONE))
        x = c.grpc(SERVICE + "ModelInfer", PB)
        assert c.ping()
        wait_until(lambda: waiting(s) == 2, what="two in the queue")
        s.signal(signal.SIGTERM)
        assert idle.closed(), "an idle connection ends at once"
        wait_until(lambda: refused(s.http) and refused(s.grpc) and refused(s.metrics), what="no new connections")
        assert quiet(a) and quiet(b), "all this before the first one ends"
        for each in (a, b):
            r = each.response()
            assert r.status == 200 and r.headers["connection"] == "close"
            assert r.json()["outputs"][0]["data"] == [7]
            assert each.closed()
        assert c.reply(x).grpc == 0
        c.drain()
        assert c.goaways[0] == (2**31 - 1, 0) and c.goaways[-1] == (x, 0), c.goaways
    assert ends(s) == 0


def test_not_ready_while_it_drains(start):
    """A connection that is busy may still ask; readiness is what turns load balancers away."""
    s = start(delay_us=2000000)
    with H1(s.http) as c, H2(s.http) as h2:
        x = h2.request("POST", SLOW, ONE.encode())
        wait_until(lambda: begun(s) == 1, what="the execution")
        s.signal(signal.SIGTERM)
        while h2.one(time.monotonic() + LIMIT_S)[0] != GOAWAY:
            pass
        # Between the first GOAWAY and the last, 100 ms, streams are still taken; later ones are ignored.
        ready = h2.request("GET", "/v2/health/ready")
        assert h2.reply(x).status == 200
        r = h2.replies[ready]
        assert r.status == 400 or r.reset is not None or h2.drain().goaway[0] < ready, r
        assert c.closed()
    assert ends(s) == 0


def test_second_signal_ends_it(start):
    s = start("--exit-timeout", "1h")
    with Held(s) as busy:
        s.signal(signal.SIGTERM)
        time.sleep(0.2)
        assert s.process.poll() is None, "it waits for the request"
        s.signal(signal.SIGTERM)
        assert ends(s) == 0
        assert busy.connection.closed()


@pytest.mark.timing
def test_second_signal_ends_it_at_once(start):
    s = start("--exit-timeout", "1h")
    with Held(s):
        s.signal(signal.SIGTERM)
        wait_until(lambda: refused(s.http), what="the first signal")
        s.signal(signal.SIGTERM)
        begin = time.monotonic()
        assert ends(s) == 0 and time.monotonic() - begin < 0.3


def test_exit_timeout(start):
    s = start("--exit-timeout", "300ms")
    with Held(s):
        begin = time.monotonic()
        s.signal(signal.SIGTERM)
        assert ends(s) == 0 and time.monotonic() - begin >= 0.3
    assert "not all requests were answered" in s.log()


@pytest.mark.parametrize("data", [b"", b"GE", message("POST", SLOW, ONE)[:-4], b"PRI * HTTP/2.0\r\n"])
def test_silent_clients_do_not_hold_it(start, data):
    """Connections that never finish a request are bounded by the exit time-out, not by their patience."""
    s = start("--exit-timeout", "1s")
    with H1(s.http) as c:
        c.send(data)
        wait_until(lambda: metric(s, "naru_http_connections") == 2, what="the connection, and the one that asks")
        s.signal(signal.SIGTERM)
        assert ends(s) == 0


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_no_request_is_lost(start, protocol):
    """8 clients ask until they are turned away; SIGTERM in the middle: each request is answered right, or
    its connection was refused or closed before a byte of an answer, and was never run."""
    s = start("--io-threads", 2, delay_us=3000)
    answered, turned_away, wrong = [], [], []
    half, told = threading.Event(), threading.Event()

    def turn_away(what):
        (turned_away if told.is_set() else wrong).append(what)

    def over_http(n):
        c = None
        while not wrong:
            try:
                c = c or H1(s.http)
                c.send(message("POST", SLOW, ONE))
                r = c.response()
                (answered if r.status == 200 and r.json()["outputs"][0]["data"] == [7] else wrong).append(n)
                c = None if r.headers.get("connection") == "close" else c
            except (ConnectionError, AssertionError) as e:  # an AssertionError: it ended before or inside a head
                wrong.append(c.data) if c is not None and c.data else turn_away(repr(e))
                return
            if len(answered) >= 80:
                half.set()

    def over_grpc(n):
        c = None
        while not wrong:
            try:
                c = c if c is not None and not c.goaway else H2(s.grpc)
                x = c.grpc(SERVICE + "ModelInfer", PB)
                r = c.reply(x)
                if r.grpc == 0 and r.payload.endswith(struct.pack("<f", 7)):
                    answered.append(n)
                elif r.headers is None and (r.reset == 7 or (c.goaway and c.goaway[0] < x) or not c.settings):
                    turn_away(repr(r))
                    return
                else:
                    wrong.append(r)
            except ConnectionError as e:
                turn_away(repr(e))
                return
            if len(answered) >= 80:
                half.set()

    clients = [threading.Thread(target=over_http if protocol == "http" else over_grpc, args=(n,)) for n in range(8)]
    for t in clients:
        t.start()
    assert half.wait(LIMIT_S) or wrong, "80 answers"
    told.set()
    s.signal(signal.SIGTERM)
    for t in clients:
        t.join(LIMIT_S)
    assert not wrong, wrong
    assert len(answered) >= 80 and len(turned_away) == 8
    assert ends(s) == 0


# --- with a balancer that looks at readiness (L4) -----------------------------------------------------------------------

ROUNDS = int(os.environ.get("NARU_DRAIN_ROUNDS", "4"))
PIPE = ('platform: "ensemble"\ninput [ { name: "INPUT0" data_type: TYPE_FP32 dims: [1] } ]\n'
        'output [ { name: "OUTPUT0" data_type: TYPE_FP32 dims: [1] } ]\n'
        'ensemble_scheduling { step [\n'
        '  { model_name: "slow" model_version: -1 input_map { key: "INPUT0" value: "INPUT0" } output_map { key: "OUTPUT0" value: "a" } },\n'
        '  { model_name: "slow" model_version: -1 input_map { key: "INPUT0" value: "a" } output_map { key: "OUTPUT0" value: "OUTPUT0" } } ] }\n')


class Behind:
    """Clients behind a balancer: they ask as long as it finds the server ready. 500 requests a second: HTTP/1.1 on
    new and on kept connections, gRPC, messages of one stream; of a model, and of one that calls another."""

    def __init__(self, s):
        self.s, self.not_ready, self.wrong, self.lock = s, threading.Event(), [], threading.Lock()
        self.sent = self.answered = 0
        self.goaways = {}
        kinds = [self.fresh, self.kept, self.kept, self.grpc, self.stream]
        self.period = len(kinds) / 500
        self.threads = [threading.Thread(target=self.run, args=(k,)) for k in kinds]
        self.threads.append(threading.Thread(target=self.balance))
        for t in self.threads:
            t.start()

    def balance(self):
        with H1(self.s.http) as c:
            while not self.not_ready.is_set():
                if c.ask("GET", "/v2/health/ready").status != 200:
                    self.not_ready.set()
                time.sleep(0.01)

    def each(self, ask_one):
        n, due = 0, time.monotonic()
        while not self.not_ready.is_set():
            time.sleep(max(0, due - time.monotonic()))
            due, n = due + self.period, n + 1
            with self.lock:
                self.sent += 1
            ask_one(("slow", "pipe")[n % 2])
            with self.lock:
                self.answered += 1

    def run(self, kind):
        try:
            kind()
        except (OSError, AssertionError, TimeoutError) as e:
            self.wrong.append((kind.__name__, repr(e)))
            self.not_ready.set()

    @staticmethod
    def over_http(c, name):
        r = c.ask("POST", f"/v2/models/{name}/infer", ONE)
        assert r.status == 200 and r.json()["outputs"][0]["data"] == [7] and "connection" not in r.headers, r

    def fresh(self):
        def one_of(name):
            with H1(self.s.http) as c:
                self.over_http(c, name)
        self.each(one_of)

    def kept(self):
        with H1(self.s.http) as c:
            self.each(lambda name: self.over_http(c, name))
            assert c.closed()  # when the lame duck is over

    def grpc(self):
        with H2(self.s.grpc) as c:
            c.send(frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 1 << 28)))

            def one_of(name):
                x = c.grpc(SERVICE + "ModelInfer", infer_pb(name, [("INPUT0", "FP32", [1])], raw=[struct.pack("<f", 7)]))
                assert c.reply(x).grpc == 0

            self.each(one_of)
            c.drain()
            self.goaways["grpc"] = (c.goaways, c.next - 2)

    def stream(self):
        """It stays open over the whole drain, and has its last answer then."""
        with H2(self.s.grpc) as c:
            pb = prefixed(infer_pb("slow", [("INPUT0", "FP32", [1])], raw=[struct.pack("<f", 7)]))
            x = c.grpc(SERVICE + "ModelStreamInfer", pb, raw=True, end=False)
            n = 1

            def wait():
                while c.replies[x].body.count(struct.pack("<f", 7)) < n:
                    assert not c.replies[x].ended and c.one(time.monotonic() + LIMIT_S) is not None

            def one_of(_):
                nonlocal n
                wait()
                c.body(x, pb, end=False)
                n += 1
                wait()

            self.each(one_of)
            while not c.goaways:
                assert c.one(time.monotonic() + LIMIT_S) is not None
            c.body(x, pb, end=True)
            n += 1
            r = c.reply(x)
            wait()
            assert r.grpc == 0
            c.drain()
            self.goaways["stream"] = (c.goaways, x)


def test_a_lame_duck_loses_nothing(server, tmp_path):
    """Not ready first, and serving; then two GOAWAYs, the rest is answered, and the end is 0: round after round."""
    repo = repository(tmp_path / "models", slow=slow(500), pipe=PIPE)
    for _ in range(ROUNDS):
        s = server("--no-keep-gallery", "--lame-duck", "500ms", "--io-threads", 2, models=[repo])
        b = Behind(s)
        wait_until(lambda: b.answered > 200 or b.wrong, what="load")
        s.signal(signal.SIGTERM)
        assert ends(s) == 0
        for t in b.threads:
            t.join(LIMIT_S)
        assert not b.wrong and b.sent == b.answered > 200, (b.wrong, b.sent, b.answered)
        for goaways, last in b.goaways.values():
            assert goaways[0] == (2**31 - 1, 0) and goaways[-1] == (last, 0), goaways
        assert len(b.goaways) == 2 and "not all requests were answered" not in s.log()


def test_a_second_signal_ends_a_lame_duck(start):
    s = start("--lame-duck", "1h")
    s.signal(signal.SIGTERM)
    wait_until(lambda: ask(s.http, "GET", "/v2/health/ready").status != 200, what="not ready")
    assert ask(s.http, "POST", SLOW, ONE).status == 200, "and still it serves"
    s.signal(signal.SIGTERM)
    assert ends(s) == 0


def test_sigint_is_the_same(start):
    s = start(delay_us=500000)
    with H1(s.http) as c:
        c.send(message("POST", SLOW, ONE))
        wait_until(lambda: begun(s) == 1, what="the execution")
        s.signal(signal.SIGINT)
        assert c.response().status == 200
    assert ends(s) == 0


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
        wait_until(lambda: begun(s, "never") == 1, what="the execution")
        s.stop(expect=None)


def blocks(pid, number):
    with open(f"/proc/{pid}/status", encoding="ascii") as f:
        mask = next(int(line.split()[1], 16) for line in f if line.startswith("SigBlk:"))
    return mask >> (number - 1) & 1


def test_signals_are_heard_while_models_load(tmp_path):
    """A first one begins the end, a second one is the end, though the model warms up for an hour."""
    warmup = 'model_warmup [ { name: "w" inputs { key: "INPUT0" value { data_type: TYPE_FP32 dims: 1 zero_data: true } } } ]\n'
    repo = repository(tmp_path / "repo", m=model("delay", [("INPUT0", "FP32", [1])], delay_us=3600000000, extra=warmup))
    with subprocess.Popen([NARU, "serve", "--no-keep-gallery", "--http-port", "0", "--grpc-port", "0", "--metrics-port", "0", str(repo)],
                          stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as p:
        wait_until(lambda: blocks(p.pid, signal.SIGTERM), what="a server that reads its signals itself")
        p.send_signal(signal.SIGTERM)
        for line in p.stderr:
            if "draining" in line:
                break
        p.send_signal(signal.SIGTERM)
        assert p.wait(DEFAULT_S) == 0


def test_a_pipe_is_no_model(server, tmp_path):
    """Opening it would wait for ever."""
    repo = tmp_path / "repo"
    (repo / "m" / "1").mkdir(parents=True)
    os.mkfifo(repo / "m" / "1" / "model.onnx")
    s = server("--no-keep-gallery", models=[repo])
    assert "neither a file nor a folder" in ask(s.http, "POST", "/v2/repository/index").json()[0]["reason"]
