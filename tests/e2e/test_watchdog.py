"""The watchdog: a run that does not return makes its instance stuck, and a model without another one not ready.

The models sleep (or compute) for as long as a request says, and hear nothing ("deaf"). Times are the model's own:
naru.watchdog_ms is 200 ms, a stuck run lasts for 2.5 s or until the test's end.
"""

import json
import signal
import struct
import time

import pytest

from conftest import wait_until
from counts import SLOW, begun, metric, waiting
from plugin_models import model, repository
from rawhttp import H1, H2, SERVICE, UNAVAILABLE, ask, infer_pb, message
from test_pipelines import ensemble, step

IO = [("INPUT0", "FP32", [1])]
A_WHILE = 2500000
TWO = "instance_group [ { count: 2 } ]\n"


def watched(ms=200, batch=4, extra="", **parameters):
    return model("delay", IO, batch=batch, extra=extra, **{"delay_us": 1, "deaf": 1, "naru.watchdog_ms": ms, **parameters})


@pytest.fixture
def start(server, tmp_path):
    def run(*options, **models):
        models = models or {"slow": watched(), "quick": model("identity", IO, batch=4)}
        return server("--io-threads", 1, "--no-keep-gallery", *options,
                      models=[repository(tmp_path / f"repo{len(list(tmp_path.iterdir()))}", **models)])

    return run


def body(value=7, delay_us=0, **parameters):
    return json.dumps({"inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": [1, 1], "data": [value]}],
                       "parameters": {"delay_us": delay_us, **parameters}})


def run_for(s, name="slow", delay_us=A_WHILE, **parameters):
    """A run that is under way, and its client."""
    before = begun(s, name)
    c = H1(s.http)
    c.send(message("POST", f"/v2/models/{name}/infer", body(1, delay_us, **parameters)))
    wait_until(lambda: begun(s, name) == before + 1, every_s=0.005, what="the run")
    return c


def stuck(s, name="slow"):
    return metric(s, "naru_model_stuck", model=name)


def infer(s, name="slow", value=7):
    return ask(s.http, "POST", f"/v2/models/{name}/infer", body(value))


def health(s, name="slow"):
    entries = ask(s.http, "GET", "/v2/health/models").json()["models"]
    return next(e for e in entries if e["name"] == name)


def ready(s, name="slow"):
    """What the three ways to ask say; they must agree (in the end: it may change between two of them)."""
    for _ in range(3):
        http = ask(s.http, "GET", f"/v2/models/{name}/ready").status
        with H2(s.grpc) as c:
            r = c.reply(c.grpc(SERVICE + "ModelReady", b"\n" + bytes([len(name)]) + name.encode()))
            grpc = r.grpc == 0 and r.body[5:] == b"\x08\x01"
        if (http == 200) == grpc == health(s, name)["ready"]:
            return http
    raise AssertionError((http, r, health(s, name)))


def server_ready(s):
    return ask(s.http, "GET", "/v2/health/ready").status


@pytest.mark.timing
def test_not_ready_and_ready_again(start):
    s = start()
    assert ready(s) == 200 and server_ready(s) == 200
    began = time.monotonic()
    c = run_for(s)
    wait_until(lambda: server_ready(s) == 400, every_s=0.01, what="not ready")
    assert 0.15 < time.monotonic() - began < 1.2
    assert ready(s) == 503 and stuck(s) == 1
    now = health(s)
    assert now["state"] == "UNAVAILABLE" and now["reason"].startswith("stuck: 1 of 1 instances") and now["since"]
    index = ask(s.http, "POST", "/v2/repository/index").json()
    assert [e["reason"] for e in index if e["name"] == "slow"] == [now["reason"]]
    assert ask(s.http, "POST", "/v2/repository/index", '{"ready": true}').body.count(b'"name"') == 1
    r = infer(s)
    assert r.status == 503 and "stuck" in r.error
    assert infer(s, "quick").status == 200
    assert metric(s, "nv_inference_request_success", model="slow") == 0, "its figures are still there"
    assert c.response().json()["outputs"][0]["data"] == [1], "it came after all"
    back = time.monotonic()
    wait_until(lambda: server_ready(s) == 200, every_s=0.01, what="ready again")
    assert time.monotonic() - back < 1
    assert ready(s) == 200 and stuck(s) == 0 and health(s)["reason"] == ""
    assert infer(s).json()["outputs"][0]["data"] == [7]
    assert [line for line in s.log().splitlines() if "ready again" in line]


def test_who_waits_is_answered(start):
    s = start(slow=watched(ms=1000))
    with run_for(s), H1(s.http) as c, H2(s.grpc) as h2:
        c.send(message("POST", SLOW, body(2)))
        x = h2.grpc(SERVICE + "ModelInfer", infer_pb("slow", [("INPUT0", "FP32", [1, 1])], raw=[struct.pack("<f", 7)]))
        assert h2.ping()
        wait_until(lambda: waiting(s) == 2, what="two that wait")
        r = c.response()
        assert r.status == 503 and "stuck" in r.error and r.headers["retry-after"]
        assert h2.reply(x).grpc == UNAVAILABLE
        assert begun(s) == 1 and stuck(s) == 1
    assert metric(s, "naru_queue_refused_total", model="slow", why="stuck") == 2


def test_lenient_readiness(start):
    s = start("--strict-readiness=false")
    with run_for(s):
        wait_until(lambda: ready(s) == 503, what="a stuck model")
        assert server_ready(s) == 200


def test_other_instances_go_on(start):
    s = start(slow=watched(extra=TWO))
    with run_for(s):
        wait_until(lambda: stuck(s) == 1, what="a stuck instance")
        assert ready(s) == 200 and server_ready(s) == 200
        assert health(s)["state"] == "READY" and health(s)["reason"].startswith("stuck: 1 of 2 instances")
        for value in range(10):
            assert infer(s, value=value).json()["outputs"][0]["data"] == [value]
        with run_for(s):
            wait_until(lambda: ready(s) == 503, what="two stuck instances")
            assert health(s)["reason"].startswith("stuck: 2 of 2") and infer(s).status == 503
    wait_until(lambda: stuck(s) == 0, what="both back")
    assert ready(s) == 200 and health(s)["reason"] == ""


def test_the_servers_limit_follows_the_model(start):
    """100 ms, but a run of this model takes 60 ms: some times that is no sign of anything. Ten times the limit is."""
    s = start("--watchdog-timeout", "100ms", slow=model("delay", IO, batch=4, delay_us=60000, deaf=1))
    for _ in range(5):
        assert ask(s.http, "POST", SLOW, body(1, 60000)).status == 200
    with run_for(s, delay_us=700000) as c:
        while c.open_now(0.02):
            assert stuck(s) == 0
        assert c.response().status == 200
    with run_for(s, delay_us=4000000):
        wait_until(lambda: stuck(s) == 1, limit_s=3.9, what="a stuck model")


def test_a_plugin_that_answers_later(start):
    """A run whose thread is the plug-in's own; it ends when its client goes."""
    s = start("--warm-up=false", never=model("fault", IO, batch=4, fault="never", **{"naru.watchdog_ms": 200}))
    c = H1(s.http)
    c.send(message("POST", "/v2/models/never/infer", body()))
    wait_until(lambda: ready(s, "never") == 503, what="a stuck model")
    c.abort()
    wait_until(lambda: ready(s, "never") == 200, what="its return")


@pytest.mark.parametrize("strategy", ["direct { }", "oldest { max_candidate_sequences: 2 }"])
def test_sequences(start, strategy):
    extra = f"sequence_batching {{ max_sequence_idle_microseconds: 60000000 {strategy} }}\n"
    s = start(slow=watched(extra=extra))
    c = H1(s.http)
    c.send(message("POST", SLOW, body(1, A_WHILE, sequence_id=3, sequence_start=True)))
    wait_until(lambda: ready(s) == 503, what="a stuck model")
    r = ask(s.http, "POST", SLOW, body(2, sequence_id=4, sequence_start=True, sequence_end=True))
    assert r.status == 503
    assert c.response().status == 200
    wait_until(lambda: ready(s) == 200, what="its return")
    assert ask(s.http, "POST", SLOW, body(2, sequence_id=3, sequence_end=True)).status == 200


def test_pipelines_follow_their_members(start):
    chain = ensemble([("A", "FP32", [1])], [("C", "FP32", [1])],
                     [step("quick", {"INPUT0": "A"}, {"OUTPUT0": "B"}), step("slow", {"INPUT0": "B"}, {"OUTPUT0": "C"})],
                     batch=4)
    s = start(slow=watched(), quick=model("identity", IO, batch=4), chain=chain)
    with run_for(s):
        wait_until(lambda: ready(s, "chain") == 503, what="a pipeline without its member")
        assert "slow" in health(s, "chain")["reason"] and "stuck" in health(s, "chain")["reason"]
    wait_until(lambda: ready(s, "chain") == 200, what="its return")


def test_label_of_a_stuck_version(start):
    s = start(slow=watched(**{"naru.label.stable": 1}))
    assert ask(s.http, "GET", "/v2/models/slow/versions/stable/ready").status == 200
    with run_for(s):
        wait_until(lambda: ready(s) == 503, what="a stuck model")
        assert ask(s.http, "GET", "/v2/models/slow/versions/stable/ready").status == 503
        assert ask(s.http, "GET", "/v2/models/slow/versions/1/ready").status == 503


def test_neighbours_keep_a_core(start):
    """The only executor computes for ever: when it is written off, another thread takes its place."""
    s = start("--exec-threads", 1, slow=watched(ms=300), next=model("delay", IO, batch=4, delay_us=1))
    c = run_for(s, delay_us=0, spin_us=A_WHILE)
    assert infer(s, "next").status == 200
    assert c.open_now(0.001), "before it ends"
    wait_until(lambda: stuck(s) == 1, what="a stuck model")
    assert infer(s, "next").status == 200
    assert c.response().status == 200


def test_more_stuck_runs_than_threads(start):
    models = {f"m{i}": watched() for i in range(4)}
    s = start("--exec-threads", 1, "--max-exec-threads", 2, **models, next=model("delay", IO, batch=4, delay_us=1))
    clients = [H1(s.http) for _ in models]
    for name, c in zip(models, clients):
        c.send(message("POST", f"/v2/models/{name}/infer", body(1, A_WHILE)))
    wait_until(lambda: sum(stuck(s, name) for name in models) == 4, what="four stuck models")
    assert infer(s, "next").status == 200
    assert all(c.response().status == 200 for c in clients)
    wait_until(lambda: server_ready(s) == 200, what="all back")


def test_unload_does_not_wait(start):
    s = start("--model-control-mode", "explicit", "--load-model", "*")
    c = run_for(s)
    wait_until(lambda: ready(s) == 503, what="a stuck model")
    assert ask(s.http, "POST", "/v2/repository/models/slow/unload").status == 200
    assert c.open_now(0.001), "long before it ends"
    assert health(s)["state"] == "UNLOADING" and "not returned" in health(s)["reason"]
    assert ask(s.http, "POST", "/v2/repository/models/slow/load").status == 200
    assert infer(s).json()["outputs"][0]["data"] == [7], "a new one serves"
    assert c.response().json()["outputs"][0]["data"] == [1], "the old one's answer"
    wait_until(lambda: ready(s) == 200 and server_ready(s) == 200, what="ready")


@pytest.mark.parametrize("connected", [True, False])
def test_the_process_ends(start, connected):
    s = start("--exit-timeout", "1s")
    c = run_for(s, delay_us=60000000)
    wait_until(lambda: ready(s) == 503, what="a stuck model")
    if not connected:
        c.abort()
    s.signal(signal.SIGTERM)
    assert s.process.wait(6) == 1
    assert "did not return" in s.log() and "model slow version 1" in s.log()
    s.stop(expect=1)


def test_the_process_ends_before_anything_is_stuck(start):
    s = start("--exit-timeout", "300ms", slow=watched(ms=0))
    run_for(s, delay_us=60000000)
    s.signal(signal.SIGTERM)
    assert s.process.wait(12) == 1
    assert "model slow version 1" in s.log()
    s.stop(expect=1)


@pytest.mark.parametrize("text", ["soon", "-1", "86400001"])
def test_bad_parameter(start, text):
    s = start(slow=watched(ms=text), quick=model("identity", IO, batch=4))
    assert "naru.watchdog_ms" in health(s)["reason"]
