"""L10: what many clients see of one server that loads, unloads and dies, is what one order of their commands explains.

The checker is history.py; its own tests are here, on histories made up to be wrong. The run is of a size that
NARU_HISTORY_OPS sets (60,000 operations by default; 200,000 is the long run) and of a seed that NARU_HISTORY_SEED
sets; the seed decides what each client does, not how fast. A history that cannot be explained is kept in a file,
which NARU_HISTORY_FILE gives to the checker again.

What outlives kill -9 in explicit mode: the files. Nothing else is kept, so the next life begins with what
--load-model names, at the newest version, and with nothing loaded besides.
"""

import os
import random
import struct
import threading
import time

import pytest
from tritonclient.grpc import service_pb2

import history
from conftest import wait_until
from history import Op
from plugin_models import model, repository
from rawhttp import H1, H2, SERVICE, WINDOW_UPDATE, frame, infer_pb
from test_reload import EXPLICIT, X, add_version

# --- the checker ----------------------------------------------------------------------------------------------------


def ops(text):
    """"load 1-4; read 2-3 7; deploy 0-1 7": operations on one model. "?" behind the times: nobody knows."""
    out = []
    for each in text.split(";"):
        kind, times, *value = each.split()
        call, ret = times.rstrip("?").split("-")
        value = None if not value or value[0] == "none" else int(value[0])
        out.append(Op("m", kind, float(call), float(ret), value, None if times.endswith("?") else True))
    return out


@pytest.mark.parametrize("text", [
    "deploy 0-1 1; load 2-3; read 4-5 1",
    "deploy 0-1 1; load 2-6; read 3-4 none; read 4.5-5 1; read 7-8 1",
    "deploy 0-1 1; load 2-6; read 3-4 none; read 3-4 1; read 3-5 none",  # overlapping readers may differ
    "deploy 0-1 1; load 2-3; deploy 4-5 2; read 6-7 1; load 8-9; read 10-11 2",
    "deploy 0-1 1; deploy 2-5 2; load 3-4; read 6-7 1",  # it came during the load: either
    "deploy 0-1 1; deploy 2-5 2; load 3-4; read 6-7 2",
    "deploy 0-1 1; load 2-3; unload 4-9; load 5-8; read 10-11 1",
    "deploy 0-1 1; load 2-3; unload 4-9; load 5-8; read 10-11 none",
    "deploy 0-1 1; load 2-3?; read 4-5 none",
    "deploy 0-1 1; load 2-3?; read 4-5 1",
    "read 1-2 none; unload 3-4; read 5-6 none",
    "deploy 0-1 1; load 2-3; load 3-4; read 4-5 1",
])
def test_histories_with_an_explanation(text):
    assert history.check(ops(text), {}) is None


@pytest.mark.parametrize("text", [
    "read 1-2 1",  # nobody loaded
    "deploy 0-1 1; read 2-3 1",
    "deploy 0-1 1; load 2-3; read 4-5 none",  # acknowledged and lost
    "deploy 0-1 1; load 2-3; unload 4-5; read 6-7 1",
    "deploy 0-1 1; load 2-3; deploy 4-5 2; load 6-7; read 8-9 1",  # the old version after the switch
    "deploy 0-1 1; load 2-3; read 4-5 2",  # a version that there is not
    "deploy 0-1 1; load 2-3; read 4-5 2; deploy 6-7 2; load 8-9",  # or not yet
    "deploy 0-1 1; load 2-3; deploy 4-5 2; load 6-20; read 8-9 2; read 10-11 1",  # back and forth
    "deploy 0-1 1; load 2-20; read 4-5 1; read 6-7 none",
    "deploy 0-1 1; load 2-3; unload 4-20; read 5-6 none; read 7-8 1",
    "deploy 0-1 1; deploy 2-3 2; load 4-5; read 6-7 1",  # a load that missed what was there
    "deploy 0-1 1; load 2-3; unload 4-5?; read 6-7 none; read 8-9 1",  # whatever happened, once
    "deploy 0-1 1; load 2-6; unload 3-5; read 7-8 1; read 9-10 none",
])
def test_histories_without(text):
    assert history.check(ops(text), {}) is not None


def made_up(seed, wrong):
    """A history of an honest server with three clients, or of one that lies once."""
    rng, now, out = random.Random(seed), 0.0, []
    serves, disk, free = None, 0, [0.0] * 3
    lie = rng.randrange(40, 100) if wrong else -1
    for i in range(120):
        client = rng.randrange(3)
        now = max(now, free[client]) + rng.random()
        before, after = rng.random() * 0.5, rng.random() * 0.5
        kind = rng.choice(["deploy", "load", "unload", "read", "read", "read", "read"])
        if i == lie:
            kind = "read"
        value = None
        if kind == "deploy":
            disk = value = disk + 1
        elif kind == "load":
            serves = disk or None
        elif kind == "unload":
            serves = None
        else:
            value = serves if i != lie else 10**6
        if kind != "load" or disk:
            out.append(Op("m", kind, now - before, now + after, value))
        free[client] = now + after
    return out


@pytest.mark.parametrize("seed", range(20))
def test_made_up_histories(seed):
    assert history.check(made_up(seed, False), {}) is None
    assert history.check(made_up(seed, True), {}).value == 10**6


def test_lives():
    h = ops("deploy 0-1 1; load 2-3; read 4-5 1; load 9-11?; read 12-13 none; deploy 9-12 2; read 8-11 1")
    first, second = history.lives(h, [10.0])
    assert [o.kind for o in first] == ["deploy", "load", "read", "load", "deploy"] and first[3].ret == 10 and first[3].ok is None
    assert [o.kind for o in second] == ["deploy", "read", "deploy"]
    assert history.check(first, {}) is None and history.check(second, {}) is None
    assert history.check(second, {"m": {1}}) is not None


# --- the run ----------------------------------------------------------------------------------------------------------

OPS = int(os.environ.get("NARU_HISTORY_OPS", "60000"))
MODELS = ("always", "m0", "m1", "m2")  # the first is in --load-model
READERS, WRITERS, LIVES = 5, 3, 3


class Client:
    """One thread: asks, and notes when and what. Its connections end with the server."""

    def __init__(self, run, name, writes):
        self.run, self.rng, self.writes, self.ops = run, random.Random(f"{run.seed}/{name}"), writes, []
        self.h1 = self.h2 = None
        self.n = self.life = 0

    def http(self, method, path, body=""):
        if self.h1 is None:
            self.h1 = H1(self.run.s.http)
        r = self.h1.ask(method, path, body)
        if r.headers.get("connection") == "close":
            self.h1.close()
            self.h1 = None
        return r

    def infer_http(self, name):
        self.n += 1
        r = self.http("POST", f"/v2/models/{name}/infer",
                      '{"inputs":[{"name":"INPUT0","datatype":"FP32","shape":[1],"data":[%d]}]}' % self.n)
        if r.status != 200:
            assert r.status in (404, 503), r
            return None
        answer = r.json()
        assert answer["outputs"][0]["data"] == [self.n], answer
        return int(answer["model_version"])

    def infer_grpc(self, name):
        self.n += 1
        if self.h2 is None:
            self.h2 = H2(self.run.s.grpc)
            self.h2.send(frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 1 << 28)))
        x = self.h2.grpc(SERVICE + "ModelInfer", infer_pb(name, X, raw=[struct.pack("<f", self.n)]))
        r = self.h2.reply(x)
        del self.h2.replies[x]
        if r.grpc is None:
            raise ConnectionError(repr(r))
        if r.grpc != 0:
            assert r.grpc in (5, 14), r
            return None
        answer = service_pb2.ModelInferResponse()
        answer.ParseFromString(r.payload)
        assert answer.raw_output_contents[0] == struct.pack("<f", self.n)
        return int(answer.model_version)

    def note(self, name, kind, call, value=None, ok=True, note=""):
        self.ops.append(Op(name, kind, call, time.monotonic(), value, ok, note))

    def read(self):
        call, name = time.monotonic(), self.rng.choice(MODELS)
        way = self.rng.choice(("http", "http", "grpc", "grpc", "index"))
        if way == "index":
            ready = {m["name"]: int(m["version"]) for m in self.http("POST", "/v2/repository/index", '{"ready": true}').json()}
            for each in MODELS:
                self.note(each, "read", call, ready.get(each), note="index")
        else:
            self.note(name, "read", call, self.infer_http(name) if way == "http" else self.infer_grpc(name), note=way)

    def write(self):
        name, what = self.rng.choice(MODELS[1:]), self.rng.random()
        if what < 0.1:
            with self.run.disk:  # versions of a model come in their order
                call = time.monotonic()
                self.run.versions[name] += 1
                add_version(self.run.repo, name, self.run.versions[name])
                self.note(name, "deploy", call, self.run.versions[name])
            return
        call, what = time.monotonic(), "load" if what < 0.6 else "unload"
        try:
            r = self.http("POST", f"/v2/repository/models/{name}/{what}")
        except (OSError, AssertionError, TimeoutError):
            self.note(name, what, call, ok=None, note="no answer")
            raise
        # A load that an unload overtook, or during which a version came: refused with a reason.
        assert r.status == 200 or (what == "load" and ("unloaded" in r.error or "changed while" in r.error)), r
        self.note(name, what, call, ok=True if r.status == 200 else None, note=str(r.status))

    def hang_up(self):
        for c in (self.h1, self.h2):
            if c:
                c.close()
        self.h1 = self.h2 = None

    def work(self):
        while self.run.left() > 0 and not self.run.wrong:
            life = self.run.life
            if life != self.life:  # connections of the last one
                self.hang_up()
                self.life = life
            try:
                (self.write if self.writes else self.read)()
                if self.writes:
                    time.sleep(self.rng.random() * 0.004)
            except (OSError, AssertionError, TimeoutError, ValueError) as e:
                self.hang_up()
                if self.run.life == life and not self.run.dying.is_set() and self.run.s.process.poll() is None:
                    self.run.wrong.append(repr(e))
                wait_until(lambda: not self.run.dying.is_set(), what="the next life")
        self.hang_up()


class Run:
    def __init__(self, server, tmp_path, seed):
        self.seed, self.life, self.wrong, self.crashes, self.starts = seed, 0, [], [], []
        self.disk, self.dying = threading.Lock(), threading.Event()
        self.repo = repository(tmp_path / "repo", **{name: model("identity", X) for name in MODELS})
        self.versions = {name: 1 for name in MODELS}
        self.start = lambda: server(*EXPLICIT, "--load-model", "always", models=[self.repo])
        self.begin = [Op(name, "deploy", 0.0, 0.0, 1) for name in MODELS]
        self.s = self.start()
        self.starts.append({"always": {1}})
        self.clients = [Client(self, i, i < WRITERS) for i in range(WRITERS + READERS)]

    def count(self):
        return sum(len(c.ops) for c in self.clients)

    def left(self):
        return OPS - self.count()

    def crash(self):
        with self.disk:  # so that the beginning of the next life is known
            self.dying.set()
            self.s.kill()  # returns when it is gone: until then it may still answer
            self.crashes.append(time.monotonic())
            self.s = self.start()
            self.starts.append({"always": {self.versions["always"]}})
            self.life += 1
        self.dying.clear()

    def go(self):
        threads = [threading.Thread(target=c.work) for c in self.clients]
        for t in threads:
            t.start()
        for n in range(1, LIVES):
            wait_until(lambda: self.count() > OPS * n // LIVES or self.wrong, limit_s=600, what="operations")
            self.crash()
        for t in threads:
            t.join(600)
        return self.begin + sorted((o for c in self.clients for o in c.ops), key=lambda o: o.call)


def explain(all_ops, crashes, starts):
    """None, or the operation that cannot be explained and its life."""
    for n, (life, start) in enumerate(zip(history.lives(all_ops, crashes), starts, strict=True)):
        bad = history.check(life, start)
        if bad is not None:
            return n, bad
    return None


@pytest.mark.timeout(1200)
def test_what_clients_see_can_be_explained(server, tmp_path):
    if "NARU_HISTORY_FILE" in os.environ:
        assert explain(*history.load(os.environ["NARU_HISTORY_FILE"])) is None
        return
    seed = int(os.environ.get("NARU_HISTORY_SEED", random.SystemRandom().randrange(1 << 32)))
    print(f"NARU_HISTORY_SEED={seed}")
    run = Run(server, tmp_path, seed)
    done = run.go()
    assert not run.wrong, run.wrong[:3]
    bad = explain(done, run.crashes, run.starts)
    if bad is not None:
        history.save(tmp_path / "history.json", done, run.crashes, run.starts)
    assert bad is None, f"NARU_HISTORY_SEED={seed} NARU_HISTORY_FILE={tmp_path / 'history.json'}: life {bad[0]}: {bad[1]}"
    kinds = [o.kind for o in done]
    seen = {o.value for o in done if o.kind == "read"}
    assert len(done) >= OPS and len(run.starts) == LIVES
    assert min(kinds.count(k) for k in ("load", "unload", "deploy", "read")) >= 10 and len(seen) > 3, "it says something"
