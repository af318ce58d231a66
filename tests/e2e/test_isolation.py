"""A plug-in fails a whole batch because of one request: the others get their answers.

The model of the fault plug-in fails every batch in which a row begins with 13. Batches are full, or wait.
"""

import json
import threading

import pytest

from counts import metric
from plugin_models import model, repository
from rawhttp import H1, ask, message

WAITS = "dynamic_batching { max_queue_delay_microseconds: 30000000 }\n"
IO = [("INPUT0", "FP32", [2])]


@pytest.fixture
def s(server, tmp_path):
    return server("--io-threads", 1, "--no-keep-gallery", models=[repository(
        tmp_path / "repo",
        judge=model("fault", IO, batch=6, extra=WAITS, fault="guilty_row"),
        hurried=model("fault", IO, batch=6, extra=WAITS.replace("30000000", "5000"), fault="guilty_row"),
        ordered=model("fault", IO, batch=6, fault="guilty_row",
                      extra=WAITS.replace("}", "preserve_ordering: true }")),
        broken=model("fault", IO, batch=2, extra=WAITS, fault="execute_error"),
        oldest=model("fault", IO, batch=2, fault="guilty_row",
                     extra="sequence_batching { max_sequence_idle_microseconds: 60000000 oldest { "
                           "max_candidate_sequences: 4 max_queue_delay_microseconds: 30000000 } }\n"))])


def body(values, **parameters):
    return json.dumps({"inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": [len(values), 2],
                                   "data": [[v, v + 0.5] for v in values]}], "parameters": parameters})


def at_once(s, name, bodies):
    """All in one batch, each on a connection of its own; the answers in order of the requests."""
    clients = [H1(s.http) for _ in bodies]
    for c, b in zip(clients, bodies):
        c.send(message("POST", f"/v2/models/{name}/infer", b))
    answers = [c.response() for c in clients]
    for c in clients:
        c.close()
    return answers


@pytest.mark.parametrize("name", ["judge", "ordered"])
@pytest.mark.parametrize("guilty", [[0], [3], [5], [1, 4], [0, 1, 2, 3, 4, 5]])
def test_only_the_guilty_fail(s, name, guilty):
    answers = at_once(s, name, [body([13 if i in guilty else i]) for i in range(6)])
    for i, r in enumerate(answers):
        if i in guilty:
            assert r.status == 400 and "guilty" in r.error
        else:
            assert r.status == 200 and r.json()["outputs"][0]["data"] == [i, i + 0.5]
    assert metric(s, "naru_batch_retries_total", model=name) == 1
    assert metric(s, "nv_inference_request_failure", model=name, reason="BACKEND") == len(guilty)
    assert metric(s, "nv_inference_count", model=name) == 6 - len(guilty)
    assert metric(s, "nv_inference_exec_count", model=name) == 6 - len(guilty), "each ran alone"


def test_requests_of_several_rows(s):
    answers = at_once(s, "judge", [body([1, 2]), body([3, 13]), body([5, 6])])
    assert [r.status for r in answers] == [200, 400, 200]
    assert answers[2].json()["outputs"][0]["data"] == [5, 5.5, 6, 6.5]


def test_alone_is_not_run_again(s):
    r = ask(s.http, "POST", "/v2/models/judge/infer", body([1, 2, 3, 13, 5, 6]))
    assert r.status == 400
    assert metric(s, "naru_batch_retries_total", model="judge") == 0


def test_a_broken_model_is_not_run_for_ever(s):
    for _ in range(6):
        assert [r.status for r in at_once(s, "broken", [body([1]), body([2])])] == [500, 500]
    assert 3 <= metric(s, "naru_batch_retries_total", model="broken") <= 5, "three, and one a second"
    assert metric(s, "nv_inference_request_failure", model="broken", reason="BACKEND") == 12


def test_not_for_sequences(s):
    answers = at_once(s, "oldest", [body([v], sequence_id=v, sequence_start=True) for v in (1, 13)])
    assert [r.status for r in answers] == [400, 400]
    assert metric(s, "naru_batch_retries_total", model="oldest") == 0


def test_a_client_that_goes_meanwhile(s):
    """Many batches with a guilty one, and clients that leave: everybody else gets his own."""
    wrong = []

    def client(n):
        for i in range(20):
            with H1(s.http) as c:
                value = 13 if (n + i) % 5 == 0 else 100 * n + i
                c.send(message("POST", "/v2/models/hurried/infer", body([value])))
                if (n + i) % 7 == 0:
                    c.abort()
                    continue
                try:
                    r = c.response(limit_s=2)
                except TimeoutError:
                    continue  # the batch is not full: it waits, and its client leaves
                if r.status != (400 if value == 13 else 200) or \
                        (r.status == 200 and r.json()["outputs"][0]["data"][0] != value):
                    wrong.append((n, i, r))

    threads = [threading.Thread(target=client, args=(n,)) for n in range(12)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong, wrong[:3]
    assert metric(s, "naru_batch_retries_total", model="hurried") > 0
