"""Sequences through the real server: tritonclient over HTTP and gRPC against NumPy, order, slots, idle
times, bad use, metrics, and perf_analyzer in its sequence mode."""

import csv
import json
import random
import re
import shlex
import subprocess
import threading
import time

import numpy as np
import pytest

import sequence_models as sm
from conftest import ROOT
from rawhttp import H2, SERVICE, ask

grpcclient = pytest.importorskip("tritonclient.grpc", reason="tritonclient is not installed")
httpclient = pytest.importorskip("tritonclient.http", reason="tritonclient is not installed")
from tritonclient.grpc import service_pb2  # noqa: E402
from tritonclient.utils import InferenceServerException  # noqa: E402

TOOL = ROOT / ".deps" / "perf_analyzer" / "perf_analyzer"
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
DIRECT = "direct { }"
CHAIN = """platform: "ensemble" max_batch_size: 8
input [ { name: "X" data_type: TYPE_INT64 dims: [ 2 ] } ] output [ { name: "Y" data_type: TYPE_INT64 dims: [ 2 ] } ]
ensemble_scheduling { step [
  { model_name: "oldest" model_version: -1 input_map { key: "X" value: "X" } output_map { key: "Y" value: "middle" } },
  { model_name: "direct" model_version: -1 input_map { key: "X" value: "middle" } output_map { key: "Y" value: "Y" } } ] }
"""


@pytest.fixture(scope="module")
def running(module_server, tmp_path_factory):
    repo = tmp_path_factory.mktemp("repo")
    sm.horner(repo, "oldest")
    sm.horner(repo, "direct", strategy=DIRECT, batch=32)
    sm.horner(repo, "unbatched", strategy=DIRECT, batch=0, extra="instance_group [ { count: 3 } ]")
    sm.horner(repo, "same", state_more="use_same_buffer_for_input_output: true")
    sm.horner(repo, "narrow", strategy="oldest { max_candidate_sequences: 2 }", idle_us=300_000)
    where = sm.horner(repo, "seven",
                      initial='initial_state [ { name: "i" data_type: TYPE_INT64 dims: [ 2 ] data_file: "seven" } ]')
    (where / "initial_state").mkdir()
    (where / "initial_state" / "seven").write_bytes(np.array([7, 7], np.int64).tobytes())
    sm.growing(repo)
    sm.growing(repo, "replaced", more="")
    (repo / "chain" / "1").mkdir(parents=True)
    (repo / "chain" / "config.pbtxt").write_text(CHAIN)
    for kind in sm.ID_TYPES:
        sm.controls(repo, f"controls_{kind.lower()}", id_type=kind)
    sm.controls(repo, "controls_oldest", sm.OLDEST)
    sm.rows(repo)
    return module_server(models=[repo])


class Client:
    """One connection; infer() gives the answer of one request of a sequence as arrays."""

    def __init__(self, server, protocol):
        self.lib = httpclient if protocol == "http" else grpcclient
        self.api = self.lib.InferenceServerClient(f"127.0.0.1:{server.http if protocol == 'http' else server.grpc}")

    def infer(self, model, x, sequence, start=False, end=False, outputs=None, **more):
        x = np.asarray(x, np.int64)
        t = self.lib.InferInput("X", list(x.shape), "INT64")
        t.set_data_from_numpy(x)
        if outputs:
            more["outputs"] = [self.lib.InferRequestedOutput(o) for o in outputs]
        return self.api.infer(model, [t], sequence_id=sequence, sequence_start=start, sequence_end=end, **more)

    def close(self):
        self.api.close()


@pytest.fixture(params=["http", "grpc"])
def client(request, running):
    c = Client(running, request.param)
    yield c
    c.close()


def metric(server, name, model):
    text = ask(server.metrics, "GET", "/metrics").body.decode()
    found = re.search(rf'^naru_sequence_{name}{{model="{model}",version="1"}} (\d+)$', text, re.M)
    return int(found.group(1))


def test_metadata_shows_what_clients_send(client):
    more = {} if client.lib is httpclient else {"as_json": True}
    meta = client.api.get_model_metadata("oldest", **more)
    assert [t["name"] for t in meta["inputs"]] == ["X"] and [t["name"] for t in meta["outputs"]] == ["Y"]
    config = client.api.get_model_config("oldest", **more)
    config = config.get("config", config)
    assert config["sequence_batching"]["state"][0]["input_name"] == "S_IN"
    assert "sequence" in client.api.get_server_metadata(**more)["extensions"]


@pytest.mark.parametrize("model", ["oldest", "direct", "unbatched", "same"])
@pytest.mark.parametrize("sequence", [4711, "a name"], ids=["number", "text"])
def test_state_from_request_to_request(client, model, sequence):
    xs = [np.array([i, -i]) for i in range(1, 9)]
    got = []
    for i, x in enumerate(xs):
        row = x if model == "unbatched" else x[None]
        got.append(client.infer(model, row, sequence, i == 0, i + 1 == len(xs)).as_numpy("Y").reshape(2))
    assert np.array_equal(got, sm.horner_answers(xs))


def test_members_of_an_ensemble(client):
    """Both steps keep a state of their own; the ensemble's request says which sequence it is."""
    xs = [np.array([i, 7]) for i in range(6)]
    got = [client.infer("chain", x[None], "c", i == 0, i == 5).as_numpy("Y")[0] for i, x in enumerate(xs)]
    assert np.array_equal(got, sm.horner_answers(sm.horner_answers(xs)))
    assert "START flag" in refused(client, 400, "chain", [[1, 1]], "c")


def test_initial_state_from_a_file(client):
    xs = [np.array([1, 2]), np.array([3, 4])]
    got = [client.infer("seven", x[None], 5, i == 0, i == 1).as_numpy("Y")[0] for i, x in enumerate(xs)]
    assert np.array_equal(got, sm.horner_answers(xs, first=7))


@pytest.mark.parametrize("model", ["growing", "replaced"])
def test_state_that_grows(client, model):
    """Every request adds as many values as it has; sequences of different lengths side by side."""
    total = {}
    for step in range(1, 30):
        for k in (1, 2, 3):
            x = np.arange(step * k, dtype=np.int64)[None]
            total[k] = total.get(k, 0) + int(x.sum())
            got = client.infer(model, x, f"{model}{k}", step == 1, step == 29).as_numpy("Y")
            assert got.tolist() == [[total[k]]]


@pytest.mark.parametrize("kind", sorted(sm.ID_TYPES))
def test_control_tensors(client, kind):
    """START int32 1/2, READY fp32 0/1.5 (seen doubled), END bool; and the id in the model's own type."""
    sequence = "päö 1" if kind == "STRING" else 2_000_000_000
    model = f"controls_{kind.lower()}"
    for step, (start, end) in enumerate([(True, False), (False, False), (False, True), (True, True)]):
        r = client.infer(model, [[step]], sequence, start, end)
        assert r.as_numpy("SEEN").tolist() == [[step, 2 if start else 1, 3, int(end)]]
        seen = r.as_numpy("ID").reshape(-1)[0]
        assert (seen.decode() if kind == "STRING" else seen) == sequence


def test_numbers_for_a_model_that_takes_texts(client):
    assert client.infer("controls_string", [[1]], 77, True, True).as_numpy("ID").reshape(-1)[0] == b"77"


@pytest.mark.parametrize("model", ["oldest", "direct", "unbatched", "same"])
def test_twenty_sequences_from_many_connections(running, model):
    """Each thread has connections of its own, and a request of a sequence may come from any of them."""
    rng = random.Random(20)
    errors = []

    def walk(number):
        clients = [Client(running, p) for p in ("http", "grpc")]
        try:
            for life in range(3):
                sequence = f"s{number}" if number % 2 else number + 1
                xs = [np.array([rng.randrange(1000), number]) for _ in range(rng.randrange(1, 9))]
                got = []
                for i, x in enumerate(xs):
                    row = x if model == "unbatched" else x[None]
                    r = rng.choice(clients).infer(model, row, sequence, i == 0, i + 1 == len(xs))
                    got.append(r.as_numpy("Y").reshape(2))
                assert np.array_equal(got, sm.horner_answers(xs)), (number, life)
        except Exception as e:  # noqa: BLE001
            errors.append(e)
        finally:
            for c in clients:
                c.close()

    threads = [threading.Thread(target=walk, args=(k,)) for k in range(20)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    assert not errors, errors[:3]
    assert metric(running, "active", model) == 0 and metric(running, "waiting_requests", model) == 0
    assert metric(running, "started_total", model) >= 60


@pytest.mark.parametrize("model", ["oldest", "direct"])
def test_requests_sent_without_waiting_stay_in_order(running, model):
    """One HTTP/2 connection, all requests of a sequence written before any answer is read."""
    def message(i):
        q = service_pb2.ModelInferRequest(model_name=model, raw_input_contents=[xs[i].tobytes()])
        q.inputs.add(name="X", datatype="INT64", shape=[1, 2])
        q.parameters["sequence_id"].int64_param = 99
        q.parameters["sequence_start"].bool_param = i == 0
        q.parameters["sequence_end"].bool_param = i + 1 == len(xs)
        return q.SerializeToString()

    xs = [np.array([k, 1], np.int64) for k in range(20)]
    with H2(running.grpc) as c:
        streams = [c.grpc(SERVICE + "ModelInfer", message(i)) for i in range(len(xs))]
        answers = []
        for s in streams:
            r = service_pb2.ModelInferResponse.FromString(c.reply(s).body[5:])
            answers.append(np.frombuffer(r.raw_output_contents[0], np.int64))
    assert np.array_equal(answers, sm.horner_answers(xs))


def test_a_stream(running):
    """ModelStreamInfer: two sequences mixed on one stream, nothing waited for."""
    answers, done = {1: [], 2: []}, threading.Event()

    def heard(result, error):
        if error is None:
            answers[int(result.get_response().id)].append(result.as_numpy("Y")[0])
        if error is not None or sum(map(len, answers.values())) == 40:
            done.set()

    xs = [np.array([k, 1]) for k in range(20)]
    with grpcclient.InferenceServerClient(f"127.0.0.1:{running.grpc}") as api:
        api.start_stream(heard)
        for i, x in enumerate(xs):
            for sequence in (1, 2):
                t = grpcclient.InferInput("X", [1, 2], "INT64")
                t.set_data_from_numpy(x[None] * sequence)
                api.async_stream_infer("oldest", [t], request_id=str(sequence), sequence_id=sequence,
                                       sequence_start=i == 0, sequence_end=i + 1 == len(xs))
        assert done.wait(20), answers
        api.stop_stream()
    for sequence in (1, 2):
        assert np.array_equal(answers[sequence], sm.horner_answers([x * sequence for x in xs]))


def test_places_in_the_batch_do_not_move(client):
    """The third of three sequences alone: two rows in front of it are fillings that are not READY."""
    for k in range(3):
        assert client.infer("rows", [[0]], k + 1, True).as_numpy("MAP").tolist() == [[100 ** k]]
    assert client.infer("rows", [[0]], 1, end=True).as_numpy("MAP").tolist() == [[1]]
    assert client.infer("rows", [[0]], 3).as_numpy("MAP").tolist() == [[10000]]
    assert client.infer("rows", [[0]], 4, True, True).as_numpy("MAP").tolist() == [[1]]  # the lowest free one
    for k in (2, 3):
        client.infer("rows", [[0]], k, end=True)


def refused(client, status, *args, **more):
    with pytest.raises(InferenceServerException) as e:
        client.infer(*args, **more)
    want = {400: "StatusCode.INVALID_ARGUMENT", 503: "StatusCode.UNAVAILABLE"}[status]
    assert e.value.status() in (str(status), want)
    return e.value.message()


def test_bad_use(client):
    x = [[1, 2]]
    assert "must specify a non-zero or non-empty correlation ID" in refused(client, 400, "oldest", x, 0, start=True)
    assert "must specify a non-zero or non-empty correlation ID" in refused(client, 400, "oldest", x, "")
    said = refused(client, 400, "oldest", x, 123456)
    assert "sequence 123456 to model 'oldest' must specify the START flag on the first request of the sequence" in said
    assert "must specify batch-size 1" in refused(client, 400, "oldest", [[1, 2], [3, 4]], 8, start=True)
    assert "ids that are numbers" in refused(client, 400, "controls_int32", [[1]], "x", start=True)
    assert "2147483647" in refused(client, 400, "controls_int32", [[1]], 2 ** 31, start=True)
    client.infer("oldest", x, 8, True, True)
    assert "START flag" in refused(client, 400, "oldest", x, 8, end=True)
    assert "START flag" in refused(client, 400, "oldest", x, "8", end=True)


def test_begin_anew_without_an_end(client):
    for _ in range(2):
        assert client.infer("oldest", [[5, 5]], "twice", True).as_numpy("Y").tolist() == [[5, 5]]
        assert client.infer("oldest", [[5, 5]], "twice").as_numpy("Y").tolist() == [[20, 20]]
    client.infer("oldest", [[5, 5]], "twice", end=True)


def test_hidden_tensors_are_not_for_clients(running):
    body = json.dumps({"inputs": [{"name": n, "datatype": "INT64", "shape": [1, 2], "data": [1, 2]} for n in ("X", "S_IN")],
                       "parameters": {"sequence_id": 3, "sequence_start": True}})
    r = ask(running.http, "POST", "/v2/models/oldest/infer", body)
    assert r.status == 400 and "S_IN" in r.error
    body = json.dumps({"inputs": [{"name": "X", "datatype": "INT64", "shape": [1, 2], "data": [1, 2]}],
                       "outputs": [{"name": "S_OUT"}], "parameters": {"sequence_id": 3, "sequence_start": True}})
    r = ask(running.http, "POST", "/v2/models/oldest/infer", body)
    assert r.status == 400 and "S_OUT" in r.error


def test_slots_backlog_and_idle_time(running):
    """Two slots, both taken and idle: the third sequence waits until one of them has been idle for 0.3 s."""
    a, b = Client(running, "http"), Client(running, "grpc")
    expired = metric(running, "expired_total", "narrow")
    for sequence in (1, 2):
        a.infer("narrow", [[1, 1]], sequence, True)
    begin = time.monotonic()
    assert b.infer("narrow", [[4, 4]], 3, True).as_numpy("Y").tolist() == [[4, 4]]
    assert time.monotonic() - begin > 0.1
    assert metric(running, "expired_total", "narrow") > expired
    assert "idle for more than 300 ms" in refused(a, 400, "narrow", [[1, 1]], 1)
    b.infer("narrow", [[4, 4]], 3, end=True)
    a.close()
    b.close()


def test_backlog_is_bounded(server, tmp_path):
    sm.horner(tmp_path / "repo", "one", strategy="oldest { max_candidate_sequences: 1 }")
    s = server("--queue-max-requests", 2, models=[tmp_path / "repo"])
    a = Client(s, "http")
    a.infer("one", [[1, 1]], 1, True)
    waiting = [threading.Thread(target=lambda k=k: Client(s, "http").infer("one", [[1, 1]], k, True, True))
               for k in (2, 3)]
    for t in waiting:
        t.start()
    while metric(s, "backlog", "one") < 2:
        time.sleep(0.01)
    assert "2 more sequences wait, which is the maximum" in refused(a, 503, "one", [[1, 1]], 4, start=True)
    assert a.infer("one", [[1, 1]], 1, end=True).as_numpy("Y").tolist() == [[4, 4]]
    for t in waiting:
        t.join(20)
    assert metric(s, "backlog", "one") == 0 and metric(s, "ended_total", "one") == 3


@pytest.mark.skipif(not TOOL.exists(), reason="perf_analyzer does not run here (see scripts/setup)")
@pytest.mark.parametrize("model", ["oldest", "direct"])
@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_perf_analyzer(running, tmp_path, protocol, model):
    table = tmp_path / "out.csv"
    port = running.http if protocol == "http" else running.grpc
    done = subprocess.run(
        [TOOL, "-m", model, "-u", f"127.0.0.1:{port}", "-i", protocol, "--concurrency-range", "4", "--sequence-length", "5",
         "--measurement-mode", "count_windows", "--measurement-request-count", "200", "--max-trials", "6",
         "--stability-percentage", "999", "-f", table],
        capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    row = next(csv.DictReader(table.open()))
    assert float(row["Inferences/Second"]) > 0
    assert metric(running, "started_total", model) > 40


def test_the_document(server, tmp_path, monkeypatch):
    """The model, the configuration and the curl lines of docs/sequences.md, as they stand there."""
    text = (ROOT / "docs" / "sequences.md").read_text()
    block = lambda kind: re.search(rf"```{kind}\n(.*?)```", text, re.S).group(1)  # noqa: E731
    folder = tmp_path / "models" / "running_sum"
    (folder / "1").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    exec(compile(block("python"), "docs/sequences.md", "exec"), {})  # noqa: S102
    (folder / "config.pbtxt").write_text(block("pbtxt"))
    s = server(models=[tmp_path / "models"])
    got = []
    for line in block("console").splitlines():
        words = shlex.split(line.replace("http://127.0.0.1:8000", s.url))
        assert words[0] == "curl"
        done = subprocess.run(["curl", "-sS", "--fail-with-body", *words[1:]], capture_output=True, timeout=60, check=False)
        assert done.returncode == 0, (line, done.stdout, done.stderr)
        answer = json.loads(done.stdout)
        assert [o["name"] for o in answer["outputs"]] == ["SUM"]
        got += answer["outputs"][0]["data"]
    assert f"answers {got[0]:.0f}, {got[1]:.0f} and {got[2]:.0f}" in text


def test_the_documents_metrics(running):
    """docs/sequences.md lists exactly the metrics of sequences."""
    text = ask(running.metrics, "GET", "/metrics").body.decode()
    there = set(re.findall(r"^# TYPE (naru_sequence_\w+)", text, re.M))
    assert there == set(re.findall(r"`(naru_sequence_\w+)`", (ROOT / "docs" / "sequences.md").read_text()))
