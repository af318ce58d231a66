"""Labels of versions: addressed as a version, moved as a whole, weighted, rolled back."""

import json
import struct
import threading
import time

import pytest
from tritonclient.grpc import service_pb2

from conftest import wait_until
from plugin_models import model, repository
from rawhttp import H1, H2, SERVICE, field, infer_pb

X = [("INPUT0", "FP32", [1])]
BODY = json.dumps({"inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": [1], "data": [7]}]})
ALL = "version_policy { all { } }\n"
LABELS = "/v2/repository/models/m/labels"


def ask(s, method, path, body=""):
    with H1(s.http) as c:
        return c.ask(method, path, body)


def labels(s, body=None, expect=200):
    r = ask(s, "GET", LABELS) if body is None else ask(s, "POST", LABELS, json.dumps(body))
    assert r.status == expect, r.body
    return r.json()["labels"] if expect == 200 else r.json()["error"]


def version_of(s, label=""):
    r = ask(s, "POST", "/v2/models/m" + (f"/versions/{label}" if label else "") + "/infer", BODY)
    return r.json()["model_version"] if r.status == 200 else r.status


@pytest.fixture
def start(server, tmp_path):
    def run(*options, extra="", versions=3):
        repo = repository(tmp_path / "repo", m=model("identity", X, extra=ALL + extra))
        for i in range(2, versions + 1):
            (repo / "m" / str(i)).mkdir()
        return server("--no-keep-gallery", *options, models=[repo])

    return run


def test_labels_are_versions(start):
    s = start()
    assert labels(s) == {}
    assert version_of(s, "stable") == 404
    set_ = labels(s, {"labels": {"stable": "1", "canary": 2}})
    assert {k: v["version"] for k, v in set_.items()} == {"stable": "1", "canary": "2"}
    assert (version_of(s, "stable"), version_of(s, "canary"), version_of(s)) == ("1", "2", "3")
    for path in ("", "/config", "/ready", "/stats"):
        assert ask(s, "GET", f"/v2/models/m/versions/stable{path}").status == 200, path
    with H2(s.grpc) as c:
        pb = infer_pb("m", X, raw=[struct.pack("<f", 7)], version="canary")
        answer = service_pb2.ModelInferResponse()
        answer.ParseFromString(c.reply(c.grpc(SERVICE + "ModelInfer", pb)).payload)
        assert answer.model_version == "2"
        assert c.reply(c.grpc(SERVICE + "ModelReady", field(1, "m") + field(2, "stable"))).grpc == 0
    labels(s, {"labels": {"stable": "2", "canary": None}})
    assert (version_of(s, "stable"), version_of(s, "canary")) == ("2", 404)


def test_refusals_change_nothing(start):
    s = start()
    labels(s, {"labels": {"stable": "1"}})
    for body, why in [({"labels": {"stable": "2", "1x": "1"}}, "cannot be a label"),
                      ({"labels": {"stable": "9"}}, "version 9 of model \"m\" is not ready"),
                      ({"labels": {"stable": "2"}, "traffic": {"nobody": 1}}, "has no label \"nobody\""),
                      ({"labels": {"stable": "2", "other": None}}, "has no label \"other\""),
                      ({"labels": {"stable": "x"}}, "must be a version"), ({"labels": {"stable": -1}}, "must be a version"),
                      ({"traffic": {"stable": -5}}, "must be a whole number"), ({"labels": []}, "must be an object"),
                      ({"shadow": {"stable": 101}}, "must be a percentage"), ({"shadow": {"nobody": 1}}, "has no label"),
                      ({"labels": {"b": "2"}, "shadow": {"stable": 1, "b": 1}}, "2 labels have a shadow"),
                      ({"traffic": {"stable": 10**9}}, "must be a whole number"), ([], "must be a JSON object"),
                      ({"traffic": {"stable": 0}}, "all weights are 0"),
                      ({"labels": {"b": "2"}, "traffic": {"stable": 0, "b": 0}}, "all weights are 0"),
                      ({"label": {}}, "'labels', 'traffic' and 'shadow' only"),
                      ({"labels": {f"l{i}": "1" for i in range(17)}}, "labels at most"),
                      ({"labels": {f"l{i}": "1" for i in range(40)}}, "labels at most")]:
        r = ask(s, "POST", LABELS, json.dumps(body))
        assert r.status in (400, 404) and why in r.json()["error"], (body, r.body)
        assert version_of(s, "stable") == "1"
    assert ask(s, "POST", LABELS, "{").status == 400
    assert ask(s, "GET", "/v2/repository/models/nobody/labels").status == 404
    assert ask(s, "POST", "/v2/repository/models/nobody/labels/rollback").status == 404


@pytest.mark.parametrize("threads", [1, 2])
def test_split_is_exact_within_one_percent(start, threads):
    s = start("--io-threads", threads)
    labels(s, {"labels": {"stable": "1", "canary": "2"}, "traffic": {"stable": 95, "canary": 5}})
    seen, lock = {"1": 0, "2": 0, "3": 0}, threading.Lock()

    def work():
        with H1(s.http) as c:
            for _ in range(500):
                version = c.ask("POST", "/v2/models/m/infer", BODY).json()["model_version"]
                with lock:
                    seen[version] += 1

    workers = [threading.Thread(target=work) for _ in range(4)]
    for t in workers:
        t.start()
    for t in workers:
        t.join()
    assert seen["3"] == 0 and abs(seen["2"] - 100) <= 20, seen
    counted = labels(s)
    assert counted["canary"]["requests"] == seen["2"] and counted["stable"]["requests"] == seen["1"]
    text = ask(s, "GET", "/metrics").body.decode()
    assert f'naru_label_requests_total{{model="m",label="canary"}} {seen["2"]}' in text
    assert version_of(s, "3") == "3", "a version that is named is not split"
    labels(s, {"traffic": None})
    assert version_of(s) == "3"


def test_metadata_does_not_take_a_turn(start):
    s = start("--io-threads", 1)
    labels(s, {"labels": {"a": "1"}, "traffic": {"a": 1}})
    for path in ("", "/ready", "/config", "/stats"):
        ask(s, "GET", "/v2/models/m" + path)
    assert labels(s)["a"]["requests"] == 0


def test_rollback(start):
    s = start()
    assert ask(s, "POST", LABELS + "/rollback").status == 400
    labels(s, {"labels": {"stable": "1"}, "traffic": {"stable": 1}})
    labels(s, {"labels": {"stable": "2", "next": "3"}, "traffic": {"stable": 1, "next": 1}})
    assert version_of(s, "stable") == "2"
    r = ask(s, "POST", LABELS + "/rollback")
    assert r.status == 200
    assert version_of(s, "stable") == "1" and version_of(s) == "1" and version_of(s, "next") == 404
    ask(s, "POST", LABELS + "/rollback")
    assert version_of(s, "stable") == "2"


def test_moves_are_atomic(start):
    """Two labels that always point to one version: no request ever sees them apart."""
    s = start()
    labels(s, {"labels": {"a": "1", "b": "1"}, "traffic": {"a": 1, "b": 1}})
    stop, wrong = threading.Event(), []
    moved = ["1"]

    def work():
        with H1(s.http) as c:
            while not stop.is_set():
                low = int(moved[0])
                got = [c.ask("POST", f"/v2/models/m{p}/infer", BODY).json()["model_version"]
                       for p in ("/versions/a", "", "/versions/b")]
                if not low <= int(got[0]) <= int(got[1]) <= int(got[2]):
                    wrong.append((low, got))

    workers = [threading.Thread(target=work) for _ in range(3)]
    for t in workers:
        t.start()
    for number in ("2", "3"):
        time.sleep(0.2)
        labels(s, {"labels": {"a": number, "b": number}})
        moved[0] = number
    time.sleep(0.2)
    stop.set()
    for t in workers:
        t.join()
    assert not wrong, wrong[:3]


def runs(s, version):
    stats = ask(s, "GET", f"/v2/models/m/versions/{version}/stats").json()["model_stats"][0]
    return stats["inference_stats"]["success"]["count"]


def test_shadow(start):
    s = start("--io-threads", 1)
    labels(s, {"labels": {"next": "2"}, "shadow": {"next": 25}})
    with H1(s.http) as c:
        for _ in range(400):
            assert c.ask("POST", "/v2/models/m/infer", BODY).json()["model_version"] == "3"
        for _ in range(50):
            c.ask("POST", "/v2/models/m/versions/1/infer", BODY)
    wait_until(lambda: runs(s, 2) == labels(s)["next"]["shadows"], what="the shadows")
    got = labels(s)["next"]
    assert abs(got["shadows"] - 100) <= 4 and got["shadow_failed"] == got["shadow_skipped"] == got["requests"] == 0
    assert runs(s, 1) == 50 and runs(s, 3) == 400
    assert f'naru_label_shadows_total{{model="m",label="next"}} {got["shadows"]}' in \
        ask(s, "GET", "/metrics").body.decode()
    labels(s, {"shadow": None})
    assert version_of(s) == "3" and labels(s)["next"]["shadows"] == got["shadows"]


def test_shadow_neither_delays_nor_fails_anybody(server, tmp_path):
    """The shadow's version is slow, then failing; clients see nothing, and SIGTERM waits for it."""
    repo = tmp_path / "repo"
    for number, text in (("1", model("delay", X, delay_us=500000)), ("2", model("identity", X))):
        (repo / "m" / number).mkdir(parents=True)
    # one configuration serves both versions, so slowness comes with a parameter of the model
    (repo / "m/config.pbtxt").write_text(model("delay", X, extra=ALL, after_requests=1, delay_us=0, delay_us_after=1000000))
    s = server("--no-keep-gallery", "--no-warm-up", models=[repo])
    labels(s, {"labels": {"next": "1"}, "shadow": {"next": 100}})
    begin = time.monotonic()
    assert version_of(s) == "2"
    assert time.monotonic() - begin < 1
    assert ask(s, "POST", "/v2/models/m/versions/1/infer", BODY).status == 200  # its next run is slow now
    begin = time.monotonic()
    assert ask(s, "POST", "/v2/models/m/infer", BODY).status == 200
    s.stop()


def test_shadow_that_does_not_fit_is_skipped(start):
    s = start()
    labels(s, {"labels": {"same": "3"}, "shadow": {"same": 100}})
    assert version_of(s) == "3"
    assert labels(s)["same"]["shadow_skipped"] == 1, "a version is no shadow of itself"


CONFIGURED = ('parameters { key: "naru.label.stable" value { string_value: "1" } }\n'
              'parameters { key: "naru.label.canary" value { string_value: "2" } }\n'
              'parameters { key: "naru.traffic" value { string_value: "stable=1,canary=1" } }\n')


def test_configuration(start, tmp_path):
    s = start("--model-control-mode", "explicit", "--load-model", "m", extra=CONFIGURED)
    assert {version_of(s) for _ in range(20)} == {"1", "2"}
    labels(s, {"labels": {"stable": "3"}})
    path = tmp_path / "repo/m/config.pbtxt"
    text = path.read_text()
    path.write_text(text + "# a comment\n")
    assert ask(s, "POST", "/v2/repository/models/m/load").status == 200
    assert version_of(s, "stable") == "3", "a reload does not undo what was moved"
    path.write_text(text.replace('string_value: "1"', 'string_value: "2"'))
    assert ask(s, "POST", "/v2/repository/models/m/load").status == 200
    assert version_of(s, "stable") == "2", "a configuration that says something new does"


def test_bad_configuration(start):
    s = start(extra='parameters { key: "naru.label.1x" value { string_value: "1" } }\n')
    (m,) = ask(s, "POST", "/v2/repository/index").json()
    assert m["state"] == "UNAVAILABLE" and "naru.label.1x" in m["reason"]


def test_a_label_whose_version_goes(start, tmp_path):
    import shutil
    s = start("--model-control-mode", "explicit", "--load-model", "m")
    labels(s, {"labels": {"old": "1"}, "traffic": {"old": 1}})
    assert version_of(s) == "1"
    shutil.rmtree(tmp_path / "repo/m/1")
    assert ask(s, "POST", "/v2/repository/models/m/load").status == 200
    r = ask(s, "POST", "/v2/models/m/versions/old/infer", BODY)
    assert r.status == 404 and "move the label" in r.json()["error"]
    assert version_of(s) == "3", "its share goes to the default"
