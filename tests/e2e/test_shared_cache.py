"""The response cache shared through Redis: servers answer with what others computed, and lose nothing but that when the
Redis server is slow, away, full of nonsense or asks for a password."""

import json
import shutil
import socket
import subprocess
import threading
import time

import pytest

import models
from conftest import wait_until
from counts import metric
from rawhttp import H1, ask, message

PROGRAM = shutil.which("redis-server") or shutil.which("redis-check-rdb")  # the same program by its first argument
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Redis here (Debian's redis-tools)")
BODY = {"inputs": [{"name": "X", "datatype": "FP32", "shape": [1, 16], "data": [1.0] * 16}]}


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Redis:
    def __init__(self, folder, *more):
        self.port, self.folder, self.more = free_port(), folder, more
        self.start()

    def start(self):
        self.process = subprocess.Popen(
            ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no",
             "--dir", str(self.folder), *self.more], executable=PROGRAM, stdout=subprocess.DEVNULL)
        wait_until(lambda: self.do("PING") is not None, what="Redis")

    def do(self, *words, password=None):
        """The first line of the answer to a command; None when nobody listens."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), 5) as s:
                for command in ([["AUTH", password]] if password else []) + [words]:
                    parts = [w if isinstance(w, bytes) else w.encode() for w in command]
                    s.sendall(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(p), p) for p in parts))
                    answer = s.recv(1 << 16)
                return answer
        except OSError:
            return None

    def keys(self):
        return [k for k in self.do("KEYS", "naru:1:*").split(b"\r\n") if k.startswith(b"naru:1:")]

    def stop(self):
        self.process.terminate()
        self.process.wait()


@pytest.fixture
def redis(tmp_path):
    r = Redis(tmp_path)
    yield r
    r.stop()


@pytest.fixture
def start(server, tmp_path):
    def run(*options, name="repo", seed=1, env=None):
        folder = tmp_path / name
        if not folder.exists():
            models.linear(folder, "m", seed=seed, config="response_cache { enable: true }\n")
        return server("--no-keep-gallery", *options, models=[folder], env=env)

    return run


def shared(r, *more):
    return ["--cache-config", "redis,host=127.0.0.1", "--cache-config", f"redis,port={r.port}",
            *(word for key in more for word in ("--cache-config", f"redis,{key}"))]


def infer(s, value=1.0):
    body = json.loads(json.dumps(BODY))
    body["inputs"][0]["data"] = [value] * 16
    r = ask(s.http, "POST", "/v2/models/m/infer", json.dumps(body))
    assert r.status == 200, r.body
    return r.json()["outputs"][0]["data"]


def executed(s):
    return metric(s, "nv_inference_exec_count", model="m")


def up(s):
    wait_until(lambda: metric(s, "naru_shared_cache_up") == 1, what="the shared cache")


def test_one_computes_for_all(redis, start):
    a, b = start(*shared(redis)), start(*shared(redis))
    up(a)
    up(b)
    ran = executed(b)
    answers = [infer(a, v) for v in range(20)]
    wait_until(lambda: metric(a, "naru_shared_cache_stored_total") == 20, what="what is stored")
    assert [infer(b, v) for v in range(20)] == answers
    assert executed(b) == ran and metric(b, "naru_shared_cache_hits_total") == 20
    assert [infer(b, v) for v in range(20)] == answers  # its own by now
    assert metric(b, "naru_shared_cache_hits_total") == 20
    assert b"ttl" not in redis.do("TTL", redis.keys()[0]) and int(redis.do("TTL", redis.keys()[0])[1:].strip()) > 86000
    a.stop()
    c = start(*shared(redis), "--cache-size", 0)  # a new server, without a memory of its own
    up(c)
    ran = executed(c)
    assert [infer(c, v) for v in range(20)] == answers and executed(c) == ran


def test_other_weights_are_another_model(redis, start):
    a, b = start(*shared(redis)), start(*shared(redis), name="other", seed=2)
    up(a)
    up(b)
    one = infer(a)
    wait_until(lambda: metric(a, "naru_shared_cache_stored_total") == 1, what="what is stored")
    assert infer(b) != one and metric(b, "naru_shared_cache_hits_total") == 0


def test_the_server_is_away_and_comes_back(redis, start):
    s = start(*shared(redis))
    up(s)
    infer(s, 1)
    redis.stop()
    begin = time.monotonic()
    for v in range(200):
        infer(s, 1000 + v)
    assert time.monotonic() - begin < 20
    assert metric(s, "naru_shared_cache_up") == 0
    assert metric(s, "naru_shared_cache_errors_total") < 30  # not one for each request
    redis.start()

    def stores():
        infer(s, time.monotonic() % 1000)
        return redis.keys()

    wait_until(stores, what="the shared cache to be used again")
    up(s)


def test_nobody_listens_at_first(start, tmp_path):
    port = free_port()
    s = start("--cache-config", "redis,host=127.0.0.1", "--cache-config", f"redis,port={port}")
    assert infer(s) == infer(s)
    assert metric(s, "naru_shared_cache_up") == 0


def test_a_server_that_does_not_answer(start):
    """It takes connections and says nothing: a request waits for one time-out at most, then nobody does."""
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(64)
        s = start("--cache-config", "redis,host=127.0.0.1", "--cache-config", f"redis,port={deaf.getsockname()[1]}")
        wait_until(lambda: metric(s, "naru_shared_cache_errors_total") >= 1, what="the first time-out")
        begin = time.monotonic()
        for v in range(100):
            infer(s, v)
        assert time.monotonic() - begin < 5


def test_nonsense_is_a_miss(redis, start):
    a = start(*shared(redis))
    up(a)
    right = infer(a)
    wait_until(redis.keys, what="what is stored")
    (key,) = redis.keys()
    whole = redis.do("GET", key).split(b"\r\n", 1)[1][:-2]
    for wrong in (b"", b"x", whole[:-1], whole + b"\0", b"\0" * len(whole), whole[:16] + b"\xff" * 40 + whole[56:]):
        redis.do("SET", key, wrong)
        b = start(*shared(redis))
        up(b)
        assert infer(b) == right
        b.stop()


def test_another_type_under_the_key(redis, start):
    a = start(*shared(redis))
    up(a)
    right = infer(a)
    wait_until(redis.keys, what="what is stored")
    (key,) = redis.keys()
    redis.do("DEL", key)
    redis.do("LPUSH", key, "x")
    b = start(*shared(redis))
    up(b)
    assert infer(b) == right


def test_password(tmp_path, start):
    r = Redis(tmp_path, "--requirepass", "s3cret,with=both")
    try:
        s = start(*shared(r, "password=s3cret,with=both"))
        up(s)
        infer(s)
        wait_until(lambda: metric(s, "naru_shared_cache_stored_total") == 1, what="what is stored")
        up(start(*shared(r), env={"NARU_REDIS_PASSWORD": "s3cret,with=both"}))
        w = start(*shared(r), env={"NARU_REDIS_PASSWORD": "wrong"})
        assert infer(w) == infer(s)
        assert metric(w, "naru_shared_cache_up") == 0
    finally:
        r.stop()


def test_clients_that_leave_while_it_is_looked_up(start):
    """Lookups that hang: their clients go, the server stays, and ends without a leak."""
    with socket.socket() as half:
        half.bind(("127.0.0.1", 0))
        half.listen(64)
        stop, conns = threading.Event(), []

        def greet():
            """Says what the start needs to hear, and nothing afterwards."""
            half.settimeout(0.2)
            while not stop.is_set():
                try:
                    c, _ = half.accept()
                except TimeoutError:
                    continue
                conns.append(c)
                threading.Thread(target=answer, args=(c,), daemon=True).start()

        def answer(c):
            try:
                while data := c.recv(1 << 16):
                    if b"NX" in data:
                        c.sendall(b"+OK\r\n")
                    elif b"naru:secret" in data:
                        c.sendall(b"$192\r\n" + b"k" * 192 + b"\r\n")
            except OSError:
                pass

        t = threading.Thread(target=greet)
        t.start()
        s = start("--cache-config", "redis,host=127.0.0.1", "--cache-config", f"redis,port={half.getsockname()[1]}",
                  "--cache-config", "redis,socket_timeout=1000")
        up(s)
        for i in range(20):
            c = H1(s.http)
            body = json.loads(json.dumps(BODY))
            body["inputs"][0]["data"] = [float(i)] * 16
            c.send(message("POST", "/v2/models/m/infer", json.dumps(body)))
            time.sleep(0.01)
            c.abort()
        assert ask(s.http, "GET", "/v2/health/ready").status == 200
        wait_until(lambda: metric(s, "nv_inference_request_failure", model="m") >= 1, what="a cancelled request")
        stop.set()
        t.join()
        s.stop()
        for c in conns:
            c.close()


@pytest.mark.parametrize("options, text", [
    (["redis,port=1"], "needs either host=NAME or unix=PATH"),
    (["redis,host=a", "redis,unix=/b"], "needs either host=NAME or unix=PATH"),
    (["redis,host=a", "redis,port=0"], "from 1 to 65535"),
    (["redis,host=a", "redis,pool_size=100"], "from 1 to 64"),
    (["redis,host="], "needs a value"),
    (["redis,host=a", "redis,tls=1"], "'tls' is unknown"),
    (["disk,path=/x"], 'there are "local,size=BYTES" and "redis,host=NAME"'),
    (["local,sizes=1"], "expected local,size=BYTES"),
])
def test_wrong_options(tmp_path, options, text):
    from conftest import NARU
    line = [NARU, "serve", str(tmp_path)] + [w for o in options for w in ("--cache-config", o)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 78
    assert text in done.stderr
