"""Models that come, change and go while clients ask: reload, explicit control, polling.

Every request of the oracle loads is counted: sent, answered, by which version, and which version was
the newest when it was sent.
"""

import json
import os
import shutil
import struct
import threading
import time

import pytest
from tritonclient.grpc import service_pb2

from conftest import wait_until
from counts import begun, one
from models import identity, linear
from plugin_models import model, repository, slow
from rawhttp import H1, H2, SERVICE, WINDOW_UPDATE, frame, infer_pb, message, prefixed

X = [("INPUT0", "FP32", [1])]
BODY = json.dumps({"inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": [1], "data": [7]}]})
EXPLICIT = ("--no-keep-gallery", "--model-control-mode", "explicit")


def ask(s, method, path, body=""):
    with H1(s.http) as c:
        return c.ask(method, path, body)


def control(s, name, what, expect=200):
    r = ask(s, "POST", f"/v2/repository/models/{name}/{what}")
    assert r.status == expect, (name, what, r.status, r.body)
    return r


def index(s):
    return {(m["name"], m.get("version")): (m.get("state"), m.get("reason", ""))
            for m in ask(s, "POST", "/v2/repository/index").json()}


def infer(s, name="m", version=""):
    return ask(s, "POST", f"/v2/models/{name}{f'/versions/{version}' if version else ''}/infer", BODY)


def add_version(repo, name, number):
    """A version appears whole, as a careful copier makes it."""
    temporary = repo / name / f".{number}"
    temporary.mkdir()
    os.rename(temporary, repo / name / str(number))


# --- explicit mode ------------------------------------------------------------------------------------------------


def test_explicit_load_and_unload(server, tmp_path):
    repo = repository(tmp_path / "repo", m=model("identity", X), other=model("identity", X))
    s = server(*EXPLICIT, models=[repo])
    assert index(s) == {("m", "1"): (None, ""), ("other", "1"): (None, "")}
    assert infer(s).status == 404
    assert ask(s, "GET", "/v2/health/ready").status == 200
    control(s, "m", "load")
    assert index(s)[("m", "1")] == ("READY", "")
    assert infer(s).json()["outputs"][0]["data"] == [7]
    control(s, "m", "load")  # nothing has changed: nothing happens
    control(s, "m", "unload")
    assert index(s)[("m", "1")] == ("UNAVAILABLE", "unloaded")
    assert infer(s).status == 404
    assert ask(s, "GET", "/v2/health/ready").status == 200
    control(s, "m", "unload")
    control(s, "nobody", "unload")
    r = control(s, "nobody", "load", 404)
    assert "failed to load 'nobody'" in r.json()["error"]
    assert ask(s, "POST", "/v2/repository/models/..%2Fx/load").status == 404
    assert ask(s, "POST", "/v2/repository/models/.x/load").status == 400
    r = ask(s, "POST", "/v2/repository/models/m/load", json.dumps({"parameters": {"config": "{}"}}))
    assert r.status == 501 and "config" in r.json()["error"]


def test_load_model_option(server, tmp_path):
    repo = repository(tmp_path / "repo", a=model("identity", X), b=model("identity", X), c=model("identity", X))
    s = server(*EXPLICIT, "--load-model", "a", "--load-model", "c", models=[repo])
    assert {k[0] for k, v in index(s).items() if v[0] == "READY"} == {"a", "c"}
    s = server(*EXPLICIT, "--load-model", "*", models=[repo])
    assert {k[0] for k, v in index(s).items() if v[0] == "READY"} == {"a", "b", "c"}


def test_a_model_that_appears_can_be_loaded(server, tmp_path):
    repo = repository(tmp_path / "repo", m=model("identity", X))
    s = server(*EXPLICIT, models=[repo])
    repository(repo, new=model("identity", X))
    control(s, "new", "load")
    assert infer(s, "new").status == 200
    shutil.rmtree(repo / "new")
    control(s, "new", "load", 404)
    assert infer(s, "new").status == 200, "what serves goes on"
    control(s, "new", "unload")
    assert infer(s, "new").status == 404


def test_control_is_refused_in_other_modes(server, tmp_path):
    s = server("--no-keep-gallery", models=[repository(tmp_path / "repo", m=model("identity", X))])
    r = control(s, "m", "load", 503)
    assert "explicit model load / unload is not allowed" in r.json()["error"]
    control(s, "m", "unload", 503)
    assert infer(s).status == 200


def test_tritonclient_control(server, tmp_path):
    import tritonclient.grpc as grpc
    import tritonclient.http as http
    repo = repository(tmp_path / "repo", m=model("identity", X))
    s = server(*EXPLICIT, models=[repo])
    for client in (http.InferenceServerClient(f"127.0.0.1:{s.http}"),
                   grpc.InferenceServerClient(f"127.0.0.1:{s.grpc}")):
        client.load_model("m")
        assert client.is_model_ready("m")
        client.unload_model("m")
        assert not client.is_model_ready("m")
        with pytest.raises(Exception, match="nobody"):
            client.load_model("nobody")
        with pytest.raises(Exception, match="from the repository as they lie"):
            client.load_model("m", config="{}")


# --- reload -------------------------------------------------------------------------------------------------------


class Oracle:
    """Clients that ask at a steady rate and note for each request what was newest when it was sent."""

    def __init__(self, s, name, clients, rate, grpc=False, stream=False):
        grpc = grpc or stream
        self.port, self.name, self.period, self.grpc = s.grpc if grpc else s.http, name, clients / rate, grpc
        self.stream = stream  # all requests of a client on one ModelStreamInfer
        self.one = self.one_of_stream if stream else self.one_grpc if grpc else self.one_http
        self.newest = 1  # raised by the test after a load was answered
        self.sent = self.answered = 0
        self.wrong, self.errors, self.times = [], [], []
        self.lock, self.stop = threading.Lock(), threading.Event()
        self.threads = [threading.Thread(target=self.run, args=(i,)) for i in range(clients)]
        for t in self.threads:
            t.start()

    def one_http(self, c):
        r = c.ask("POST", f"/v2/models/{self.name}/infer", BODY)
        return int(r.json()["model_version"]) if r.status == 200 else r.body

    def one_grpc(self, c):
        r = c.reply(c.grpc(SERVICE + "ModelInfer", infer_pb(self.name, X, raw=[struct.pack("<f", 7)])))
        if r.grpc != 0:
            return r
        answer = service_pb2.ModelInferResponse()
        answer.ParseFromString(r.payload)
        return int(answer.model_version)

    def one_of_stream(self, c):
        pb = infer_pb(self.name, X, raw=[struct.pack("<f", 7)])
        if not c.replies:
            c.grpc(SERVICE + "ModelStreamInfer", prefixed(pb), raw=True, end=False)
        else:
            c.body(1, prefixed(pb), end=False)
        r, deadline = c.replies[1], time.monotonic() + 60
        while len(r.body) < 5 or len(r.body) < 5 + int.from_bytes(r.body[1:5], "big"):
            if r.ended or c.one(deadline) is None:
                raise ConnectionError(repr(r))
        size = 5 + int.from_bytes(r.body[1:5], "big")
        answer = service_pb2.ModelStreamInferResponse()
        answer.ParseFromString(r.body[5:size])
        r.body = r.body[size:]
        if r.body or answer.error_message:
            return repr((answer.error_message, r.body))  # an answer too many is one, too
        return int(answer.infer_response.model_version)

    def run(self, i):
        with (H2 if self.grpc else H1)(self.port) as c:
            if self.grpc:  # room for all answers of the connection
                c.send(frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 1 << 28)))
            due = time.monotonic() + self.period * i / len(self.threads)
            while not self.stop.is_set():
                time.sleep(max(0, due - time.monotonic()))
                due += self.period
                newest, begin = self.newest, time.monotonic()
                try:
                    got = self.one(c)
                except OSError as e:
                    got = repr(e)
                    self.stop.set()
                took = time.monotonic() - begin
                with self.lock:
                    self.sent += 1
                    self.times.append(took)
                    if not isinstance(got, int):
                        self.errors.append(got)
                    else:
                        self.answered += 1
                        if got < newest:
                            self.wrong.append((got, newest))

    def end(self):
        self.stop.set()
        for t in self.threads:
            t.join(60)
        return self


def test_hundred_reloads_under_load(server, tmp_path):
    """L1: none lost, none answered twice (each connection would desynchronise), none by an old version."""
    repo = repository(tmp_path / "repo", m=model("identity", X))
    s = server(*EXPLICIT, "--load-model", "m", models=[repo])
    loads = [Oracle(s, "m", 2, 200), Oracle(s, "m", 2, 200, grpc=True), Oracle(s, "m", 1, 100, stream=True)]
    time.sleep(0.5)
    for number in range(2, 102):
        add_version(repo, "m", number)
        control(s, "m", "load")
        for o in loads:
            o.newest = number
        time.sleep(0.03)
    wait_until(lambda: sum(o.sent for o in loads) > 1000 and all(o.sent > 100 for o in loads), what="requests enough")
    total = 0
    for o in loads:
        o.end()
        assert not o.errors and not o.wrong, (o.errors[:3], o.wrong[:3])
        assert o.sent == o.answered > 100
        total += o.sent
    stats = ask(s, "GET", "/v2/models/stats").json()["model_stats"]
    assert [m["version"] for m in stats] == ["101"], "only the newest is left"
    assert index(s) == {("m", "101"): ("READY", "")}
    assert total > 1000


def p99(times):
    return sorted(times)[len(times) * 99 // 100]


@pytest.mark.timing
def test_latency_while_models_are_reloaded(server, tmp_path):
    """L1: a p99 of at most 1.5 times the steady one, measured before and after on the same connections."""
    repo = repository(tmp_path / "repo", m=model("identity", X))
    s = server(*EXPLICIT, "--load-model", "m", models=[repo])
    loads = [Oracle(s, "m", 2, 200), Oracle(s, "m", 2, 200, grpc=True), Oracle(s, "m", 1, 100, stream=True)]

    def mark():
        return [len(o.times) for o in loads]

    marks = [mark()]
    time.sleep(3)
    marks.append(mark())
    for number in range(2, 102):
        add_version(repo, "m", number)
        control(s, "m", "load")
        time.sleep(0.03)
    marks.append(mark())
    time.sleep(3)
    marks.append(mark())
    for o in loads:
        o.end()
        assert not o.errors and o.sent == o.answered
    steady, busy = [], []
    for i, o in enumerate(loads):
        steady += o.times[marks[0][i] + 5:marks[1][i]] + o.times[marks[2][i]:marks[3][i]]
        busy += o.times[marks[1][i]:marks[2][i]]
    assert len(steady) > 2000 and len(busy) > 1000
    print(f"p99 steady {p99(steady) * 1e6:.0f} us, while reloading {p99(busy) * 1e6:.0f} us")
    # 0.5 ms: one turn of the clients' own scheduler, which is what is measured when all is quiet.
    assert p99(busy) <= 1.5 * p99(steady) + 0.0005, (p99(busy), p99(steady))


def test_reload_to_a_broken_model_keeps_the_old_one(server, tmp_path):
    """L2: whatever is wrong with the new files, the old version serves every request."""
    repo = repository(tmp_path / "repo", m=model("identity", X))
    s = server(*EXPLICIT, "--load-model", "m", models=[repo])
    good = (repo / "m" / "config.pbtxt").read_text()
    broken = ["no_such_field: 1", 'name: "other"', 'backend: "nobody"', "max_batch_size: -1", "input [",
              good.replace("FP32", "FP99"), good + "version_policy { specific { versions: [ 9 ] } }",
              good + "instance_group { count: 9999 }", good + "ensemble_scheduling { }",
              good.replace('"identity"', '"onnxruntime"'), "\x00\x01\x02",
              good.replace('"identity"', '"fault"') + 'parameters { key: "fault" value { string_value: "open_error" } }',
              good.replace('"identity"', '"fault"') +
              'parameters { key: "fault" value { string_value: "instance_error" } }']
    o = Oracle(s, "m", 2, 200)
    for text in broken:
        (repo / "m" / "config.pbtxt").write_text(text)
        time.sleep(0.02)
        r = ask(s, "POST", "/v2/repository/models/m/load")
        assert r.status >= 400, (text, r.body)
        assert "failed to load 'm'" in r.json()["error"], r.body
        state, reason = index(s)[("m", "1")]
        assert state == "READY" and "the last load failed" in reason, (text, reason)
    (repo / "m" / "config.pbtxt").write_text(good)
    control(s, "m", "load")
    assert index(s)[("m", "1")] == ("READY", "")
    o.end()
    assert not o.errors and o.sent == o.answered > 20
    assert "not loaded" in s.log()


def test_running_requests_finish_on_the_old_version(server, tmp_path):
    repo = repository(tmp_path / "repo", m=slow(1000))
    s = server(*EXPLICIT, "--no-warm-up", "--load-model", "m", models=[repo])
    with H1(s.http) as c:
        c.send(message("POST", "/v2/models/m/infer", one(7, delay_us=3000000)))
        wait_until(lambda: begun(s, "m") == 1, what="the execution")
        add_version(repo, "m", 2)
        control(s, "m", "load")
        assert c.open_now(wait_s=0.001), "a load does not wait for the old version to drain"
        assert c.response().json()["model_version"] == "1"
    assert infer(s).json()["model_version"] == "2"


def test_configuration_and_instances_change(server, tmp_path):
    repo = repository(tmp_path / "repo", m=model("identity", X, batch=4))
    s = server(*EXPLICIT, "--load-model", "m", models=[repo])
    text = (repo / "m" / "config.pbtxt").read_text()
    (repo / "m" / "config.pbtxt").write_text(text.replace("max_batch_size: 4", "max_batch_size: 8") +
                                             "instance_group { count: 3 }")
    control(s, "m", "load")
    config = ask(s, "GET", "/v2/models/m/config").json()
    assert config["max_batch_size"] == 8 and config["instance_group"][0]["count"] == 3


def test_onnx_weights_change(server, tmp_path):
    """A file replaced under its name: new answers, and the old memory goes."""
    import numpy as np
    repo = tmp_path / "repo"
    old = linear(repo, "m", seed=1)
    s = server(*EXPLICIT, "--load-model", "m", models=[repo])
    x = np.arange(16, dtype=np.float32)[None]
    body = json.dumps({"inputs": [{"name": "X", "datatype": "FP32", "shape": [1, 16], "data": x.ravel().tolist()}]})

    def answer():
        r = ask(s, "POST", "/v2/models/m/infer", body)
        return np.array(r.json()["outputs"][0]["data"], np.float32)

    assert np.allclose(answer(), x @ old[0] + old[1], rtol=1e-4)
    new = linear(tmp_path / "new", "m", seed=2)
    os.replace(tmp_path / "new/m/1/model.onnx", repo / "m/1/model.onnx")
    control(s, "m", "load")
    assert np.allclose(answer(), x @ new[0] + new[1], rtol=1e-4)


# --- life under load ----------------------------------------------------------------------------------------------


def rss_kib(s):
    with open(f"/proc/{s.pid}/smaps_rollup") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("Rss:"))


def counts(s):
    with open(f"/proc/{s.pid}/maps") as f:
        maps = sum(1 for _ in f)
    return len(os.listdir(f"/proc/{s.pid}/fd")), len(os.listdir(f"/proc/{s.pid}/task")), maps


def test_memory_after_five_hundred_loads(server, tmp_path):
    """L7: a slope of at most 4 KiB a cycle, and back within 5 % of the start."""
    repo = tmp_path / "repo"
    linear(repo, "m")
    s = server(*EXPLICIT, models=[repo])
    with H1(s.http) as c:

        def cycle():
            assert c.ask("POST", "/v2/repository/models/m/load").status == 200
            assert c.ask("POST", "/v2/repository/models/m/unload").status == 200

        for _ in range(200):  # until the heap has its shape
            cycle()
        fds, _, maps = counts(s)
        start, marks = rss_kib(s), []
        for i in range(500):
            cycle()
            if i % 50 == 49:
                marks.append(rss_kib(s))
        end_fds, _, end_maps = counts(s)
    assert end_fds == fds
    assert abs(end_maps - maps) <= 12, (maps, end_maps)
    n = len(marks)
    mean_x, mean_y = (n - 1) / 2, sum(marks) / n
    slope = sum((i - mean_x) * (y - mean_y) for i, y in enumerate(marks)) / sum((i - mean_x) ** 2 for i in range(n))
    assert slope / 50 <= 4, (start, " ".join(map(str, marks)))
    assert marks[-1] <= start * 1.05, (start, marks)


def test_commands_from_many_clients(server, tmp_path):
    """L8: loads, unloads, requests and listings at once; the last command of each model decides."""
    repo = repository(tmp_path / "repo", **{f"m{i}": model("identity", X) for i in range(4)})
    s = server(*EXPLICIT, models=[repo])
    stop, trouble = threading.Event(), []

    def work(i):
        with H1(s.http) as c:
            for k in range(60):
                name = f"m{i % 4}"
                what = ("load", "unload", "infer", "index")[(i + k) % 4] if i < 4 else ("infer", "index")[k % 2]
                if what == "index":
                    r = c.ask("POST", "/v2/repository/index")
                    ok = r.status == 200
                elif what == "infer":
                    r = c.ask("POST", f"/v2/models/{name}/infer", BODY)
                    ok = r.status in (200, 404, 503)
                else:
                    r = c.ask("POST", f"/v2/repository/models/{name}/{what}")
                    ok = r.status == 200
                if not ok:
                    trouble.append((what, r.status, r.body))
            if i < 4:
                last = "load" if i % 2 else "unload"
                assert c.ask("POST", f"/v2/repository/models/m{i}/{last}").status == 200

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    stop.set()
    assert not trouble, trouble[:3]
    assert {k[0] for k, v in index(s).items() if v[0] == "READY"} == {"m1", "m3"}


def test_sigterm_while_loading_and_draining(server, tmp_path):
    repo = repository(tmp_path / "repo", m=slow(300000))
    s = server(*EXPLICIT, "--load-model", "m", models=[repo])
    with H1(s.http) as c:
        c.send(message("POST", "/v2/models/m/infer", BODY))
        wait_until(lambda: begun(s, "m") == 1, what="the execution")
        add_version(repo, "m", 2)
        control(s, "m", "load")
        s.stop()
        assert c.response().status == 200


# --- polling ------------------------------------------------------------------------------------------------------

POLL = ("--no-keep-gallery", "--model-control-mode", "poll", "--repository-poll-secs", "200ms",
        "--repository-quiet", "400ms")


def test_poll_takes_new_changed_and_gone_models(server, tmp_path):
    repo = repository(tmp_path / "repo", m=model("identity", X))
    s = server(*POLL, models=[repo])
    repository(repo, new=model("identity", X))
    wait_until(lambda: infer(s, "new").status == 200, what="a new model")
    add_version(repo, "m", 2)
    wait_until(lambda: infer(s).json()["model_version"] == "2", what="a new version")
    shutil.rmtree(repo / "m" / "2")
    wait_until(lambda: infer(s).json()["model_version"] == "1", what="the version before")
    shutil.rmtree(repo / "new")
    wait_until(lambda: infer(s, "new").status == 404, what="a model that is gone")
    assert ("new", "1") not in index(s)
    (repo / "m" / "config.pbtxt").write_text("no_such_field: 1")
    wait_until(lambda: "no_such_field" in index(s)[("m", "1")][1], what="the reason")
    assert infer(s).status == 200
    control(s, "m", "load", 503)


def test_poll_never_takes_half_a_model(server, tmp_path):
    """L3: a copier that writes 1 KiB every 30 ms, longer than a folder must be quiet; no load is tried before
    it has ended."""
    repo = tmp_path / "repo"
    repo.mkdir()
    identity(tmp_path / "made", "m", config='max_batch_size: 4\n' + "# " + "x" * 100 + "\n")
    whole = (tmp_path / "made/m/1/model.onnx").read_bytes()
    import onnx
    big = onnx.load_from_string(whole)
    big.doc_string = "x" * 120000
    whole = big.SerializeToString()
    s = server(*POLL, "--repository-quiet", "1500ms", models=[repo])
    (repo / "m" / "1").mkdir(parents=True)
    seen = []
    with open(repo / "m" / "1" / "model.onnx", "wb") as f:
        for at in range(0, len(whole), 1024):
            f.write(whole[at:at + 1024])
            f.flush()
            time.sleep(0.03)
            if at % (20 * 1024) == 0:
                seen += [k for k in index(s) if k[0] == "m"]
                assert ask(s, "GET", "/v2/health/ready").status == 200
    assert not seen, seen
    wait_until(lambda: ask(s, "GET", "/v2/models/m/ready").status == 200, what="the whole model")
    assert "not loaded" not in s.log()


def test_poll_replaces_a_folder(server, tmp_path):
    """A model's folder moved away and another put in its place under the same name."""
    repo = repository(tmp_path / "repo", m=model("identity", X))
    s = server(*POLL, models=[repo])
    o = Oracle(s, "m", 2, 100)
    other = repository(tmp_path / "other", m=model("identity", X))
    add_version(other, "m", 5)
    os.rename(repo / "m", tmp_path / "old")
    os.rename(other / "m", repo / "m")
    wait_until(lambda: infer(s).json()["model_version"] == "5", what="the other folder's version")
    o.end()
    assert not o.errors and o.sent == o.answered


def test_health_of_models(server, tmp_path):
    repo = repository(tmp_path / "repo", m=model("identity", X), broken="no_such_field: 1")
    s = server("--no-keep-gallery", models=[repo])
    r = ask(s, "GET", "/v2/health/models").json()
    assert r["ready"] is False
    by_name = {m["name"]: m for m in r["models"]}
    assert by_name["m"]["ready"] and by_name["m"]["state"] == "READY" and by_name["m"]["since"].endswith("Z")
    assert not by_name["broken"]["ready"] and "no_such_field" in by_name["broken"]["reason"]
