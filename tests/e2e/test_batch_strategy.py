"""Batching strategies as plug-ins: the batches that a running server forms under them, counted by its own statistics."""

import pytest

from conftest import wait_until
from counts import Held, metric, one, waiting
from plugin_models import model, repository, slow
from rawhttp import H1, ask, message

ROW = [("INPUT0", "FP32", [1])]


def strategy(name, **more):
    text = f'parameters {{ key: "naru.batch_strategy" value {{ string_value: "{name}" }} }}\n'
    for key, value in more.items():
        text += f'parameters {{ key: "naru.batch_strategy.{key}" value {{ string_value: "{value}" }} }}\n'
    return text


def batches(s, name="slow"):
    """Executions by their size: {size: count}."""
    stats = ask(s.http, "GET", f"/v2/models/{name}/stats").json()["model_stats"][0]
    return {b["batch_size"]: b["compute_infer"]["count"] for b in stats["batch_stats"]}


def run(server, folder, text, rows, batching="dynamic_batching { }\n"):
    """Requests of so many rows wait behind one that runs, then go as the strategy has it. The server and its batches."""
    s = server("--no-keep-gallery", models=[repository(folder, slow=slow(1, batch=8, extra=batching + text))])
    clients = []
    with Held(s, shape=(1, 1)):
        for i, n in enumerate(rows):
            c = H1(s.http)
            c.send(message("POST", "/v2/models/slow/infer", one(i, shape=(n, 1))))
            clients.append(c)
            wait_until(lambda i=i: waiting(s) == i + 1)
    for i, c in enumerate(clients):
        r = c.response()
        assert r.status == 200 and r.json()["outputs"][0]["data"] == [i] * rows[i]
        c.close()
    return s, batches(s)


def test_without_one_they_share_a_batch(server, tmp_path):
    s, got = run(server, tmp_path / "r", "", [1] * 8)
    assert got == {8: 1}
    assert "naru_batch_strategy_refused_total{" not in ask(s.metrics, "GET", "/metrics").body.decode()


def test_single(server, tmp_path):
    s, got = run(server, tmp_path / "r", strategy("single"), [1, 2, 1, 3])
    assert got == {1: 2, 2: 1, 3: 1}
    assert metric(s, "naru_batches_sealed_total", model="slow", why="strategy") == 5
    assert metric(s, "naru_batch_strategy_refused_total", model="slow") == 0


def test_volume(server, tmp_path):
    _, got = run(server, tmp_path / "r", strategy("volume", max_bytes=12), [1, 1, 1, 1, 2, 2, 5])
    # rows of 4 bytes: 1+1+1, 1+2, 2, and 5 alone although it is too large
    assert got == {3: 2, 2: 1, 5: 1}


def test_volume_under_tritons_name(server, tmp_path):
    text = strategy("volume") + 'parameters { key: "MAX_BATCH_VOLUME_BYTES" value { string_value: "8" } }\n'
    _, got = run(server, tmp_path / "r", text, [1] * 5)
    assert got == {2: 2, 1: 1}


def test_volume_does_not_wait_for_what_would_not_fit(server, tmp_path):
    batching = "dynamic_batching { max_queue_delay_microseconds: 3600000000 }\n"
    text = strategy("volume", max_bytes=8)
    s = server("--no-keep-gallery", models=[repository(tmp_path / "r", slow=slow(1, batch=8, extra=batching + text))])
    with H1(s.http) as a, H1(s.http) as b:
        a.send(message("POST", "/v2/models/slow/infer", one(1, shape=(1, 1))))
        wait_until(lambda: waiting(s) == 1)
        b.send(message("POST", "/v2/models/slow/infer", one(2, shape=(1, 1))))  # 8 bytes: an hour is not waited
        assert a.response().status == 200 and b.response().status == 200
    assert batches(s) == {2: 1}


@pytest.mark.parametrize("wild", ["too_many", "rows", "skip_first", "past", "forever", "error"])
def test_answers_that_break_a_promise(server, tmp_path, wild):
    """Everybody is answered as without a strategy, and the refusals are counted."""
    s, got = run(server, tmp_path / "r", strategy("wild", do=wild), [3, 3, 3, 3, 1])
    assert got == ({6: 1, 7: 1})
    refused = metric(s, "naru_batch_strategy_refused_total", model="slow")
    assert refused >= (1 if wild == "rows" else 3)
    assert metric(s, "naru_batches_sealed_total", model="slow") == 3


def test_order_that_is_promised(server, tmp_path):
    s, got = run(server, tmp_path / "r", strategy("wild", do="skip_last"), [1] * 4,
                 batching="dynamic_batching { preserve_ordering: true }\n")
    assert got == {4: 1}
    assert metric(s, "naru_batch_strategy_refused_total", model="slow") == 1
    _, got = run(server, tmp_path / "q", strategy("wild", do="skip_last"), [1] * 4)
    assert got == {3: 1, 1: 1}


def test_configurations_that_are_wrong(server, tmp_path):
    plain = "dynamic_batching { }\n"
    sequence = ("sequence_batching { control_input [ { name: \"START\" control [ { kind: CONTROL_SEQUENCE_START "
                "int32_false_true: [ 0, 1 ] } ] } ] }\n")
    wrong = {
        "unknown": (plain + strategy("nobody"), 'no batching strategy "nobody"'),
        "evil": (plain + strategy("../volume"), "is no name of a batching strategy"),
        "limit": (plain + strategy("volume"), "it needs a limit"),
        "zero": (plain + strategy("volume", max_bytes=0), "a number from 1 to"),
        "key": (plain + strategy("volume", max_byte=4), "unknown parameter"),
        "refuses": (plain + strategy("wild", do="refuse"), "batching strategy wild: told to refuse"),
        "sequence": (sequence + strategy("single"), "excludes sequence_batching"),
        "nobody": (plain + strategy("single").replace("batch_strategy", "batch_strategy.x"), "name it by parameter"),
        "misspelt": (plain + strategy("single").replace("batch_strategy", "batch_strateg"), "did you mean"),
    }
    repo = repository(tmp_path / "r", **{n: model("identity", ROW, batch=4, extra=text) for n, (text, _) in wrong.items()},
                      nobatch=model("identity", ROW, extra=strategy("single")))
    s = server("--no-keep-gallery", models=[repo])
    index = {m["name"]: m for m in ask(s.http, "POST", "/v2/repository/index").json()}
    for name, (_, part) in wrong.items():
        assert index[name]["state"] == "UNAVAILABLE" and part in index[name]["reason"], index[name]
    assert "needs dynamic_batching" in index["nobatch"]["reason"]


def test_a_folder_of_ones_own(server, tmp_path):
    s = server("--no-keep-gallery", "--batching-directory", tmp_path / "empty",
               models=[repository(tmp_path / "r", m=model("identity", ROW, batch=4, extra="dynamic_batching { }\n" + strategy("single")))])
    body = one(5, shape=(1, 1))
    assert ask(s.http, "POST", "/v2/models/m/infer", body).json()["outputs"][0]["data"] == [5]
    assert metric(s, "naru_batches_sealed_total", model="m", why="strategy") == 1  # never inline, past the strategy
