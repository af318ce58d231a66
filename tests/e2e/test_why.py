"""GET /v2/models/M/why: it names the cause of each of twelve situations, made for real with the delay and
identity plug-ins, and what it says a change would bring is what the change brings.

A situation is a model, a server's options and loads of naru-load that run beside each other; the
question is asked while they run. The rates of changes are measured by the load generator, before and
after on fresh servers, so the prediction is held against what clients see.
"""
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import priority
import pytest
from conftest import NARU, ROOT
from plugin_models import model, repository

LOAD = ROOT / "build" / "tests" / "perf" / "naru-load"
SECONDS = 1.5

pytestmark = pytest.mark.skipif(not LOAD.exists(), reason=f"{LOAD} is not built")


def body(folder, rows=1, width=1):
    path = folder / f"body-{rows}-{width}"
    row = ",".join(["0.12345"] * width * rows)
    path.write_text('{"inputs":[{"name":"INPUT0","shape":[%d,%d],"datatype":"FP32","data":[%s]}]}' % (rows, width, row))
    return path


def delay(batch, us, width=1, extra="dynamic_batching { }", **more):
    return model("delay", [("INPUT0", "FP32", [width])], batch=batch, delay_us=us, extra=extra, **more)


def instances(n):
    return f"instance_group [ {{ count: {n} kind: KIND_CPU }} ]\n"


class Load:
    """connections that each wait for their answer, all asking the same."""

    def __init__(self, connections, rows=1, width=1, rate=None, headers=()):
        self.connections, self.rows, self.width, self.rate = connections, rows, width, rate
        self.headers = headers


def start(s, folder, load, seconds, warm=0.4, name="m"):
    line = [LOAD, "--json", "--url", f"{s.url}/v2/models/{name}/infer", "--connections", load.connections, "--seconds", seconds,
            "--warm", warm, "--timeout", 60, "--body", body(folder, load.rows, load.width),
            "--header", "Content-Type: application/json"]
    if load.rate is not None:
        line += ["--rate", load.rate, "--max-connections", 512]
    run = subprocess.Popen([str(word) for word in line], stdout=subprocess.PIPE, text=True)
    priority.serve_first(run.pid, children=True)
    return run


def ask(s, seconds=1.0, accept=None, path="m"):
    request = urllib.request.Request(f"{s.url}/v2/models/{path}/why?seconds={seconds}", headers={"Accept": accept} if accept else {})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer) if accept is None else answer.read().decode()


@contextlib.contextmanager
def busy_processes(n):
    spin = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n)]
    try:
        yield
    finally:
        for p in spin:
            p.kill()
            p.wait()


def explain(server, folder, text, loads, options=(), neighbours=0, teach=()):
    """What `why` says while the loads run, and the rate of good answers that clients saw. The server and its
    clients are served before others on this machine, but for neighbours that are wanted."""
    folder.mkdir(exist_ok=True)
    s = server(*options, models=[repository(folder, m=text)])
    if not neighbours:
        priority.serve_first(s.pid, children=True)
    with busy_processes(neighbours):
        # alone and one after the other first, as any service sees it: single rows are known, too
        for load in [Load(1, loads[0].rows, loads[0].width), *teach]:
            start(s, folder, load, 0.3, warm=0).communicate(timeout=60)
        runs = [start(s, folder, load, SECONDS + 1) for load in loads]
        time.sleep(0.8)
        answer = ask(s, SECONDS)
        results = [json.loads(run.communicate(timeout=120)[0]) for run in runs]
    s.stop()
    return answer, results


MS = 1000
SITUATIONS = {
    "max_batch_size": (delay(4, 20 * MS), [Load(32)], (), 0),
    "delay": (delay(16, 2 * MS, extra="dynamic_batching { max_queue_delay_microseconds: 30000 }"), [Load(4)], (), 0),
    "shapes": (delay(16, 20 * MS, width=-1), [Load(8, width=w) for w in (1, 2, 3, 4)], (), 0),
    "instances": (delay(4, 10 * MS, per="row"), [Load(12)], (), 0),
    "neighbours": (model("delay", [("INPUT0", "FP32", [1])], batch=8, spin_us=3000, extra="dynamic_batching { }"), [Load(3)],
                   ("--no-inline",), (os.cpu_count() or 1) + 1),
    "queue_full": (delay(2, 20 * MS, extra="dynamic_batching { default_queue_policy { max_queue_size: 3 } }"), [Load(16)], (), 0),
    "preferred_size": (delay(32, 2 * MS, extra="dynamic_batching { preferred_batch_size: [16, 32] "
                                               "max_queue_delay_microseconds: 40000 }"), [Load(6)], (), 0),
    "rows": (delay(4, 20 * MS), [Load(24, rows=3)], (), 0),
    "batching_off": (delay(16, 10 * MS, extra=""), [Load(8), Load(2, rows=8)], (), 0),
    "deadlines": (delay(2, 30 * MS, extra="dynamic_batching { default_queue_policy { default_timeout_microseconds: 60000 } }"),
                  [Load(16)], (), 0),
    "load": (delay(16, 10 * MS), [Load(1)], (), 0),
    "decoding": (model("identity", [("INPUT0", "FP32", [-1])], batch=8, extra="dynamic_batching { }"), [Load(4, width=100_000)],
                 (), 0),
}


@pytest.mark.timing
@pytest.mark.parametrize("cause", SITUATIONS)
def test_the_first_cause_is_the_true_one(server, tmp_path, cause):
    text, loads, options, neighbours = SITUATIONS[cause]
    answer, _ = explain(server, tmp_path, text, loads, options, neighbours)
    assert answer["findings"][0]["cause"] == cause, json.dumps(answer, indent=1)


BATCHED = "dynamic_batching { }"
CHANGES = {
    "max_batch_size": (delay(4, 20 * MS), delay(8, 20 * MS), Load(32)),
    "max_queue_delay_microseconds": (delay(16, 5 * MS, extra="dynamic_batching { max_queue_delay_microseconds: 30000 }"),
                                     delay(16, 5 * MS), Load(4)),
    "instances": (delay(4, 10 * MS, per="row"), delay(4, 10 * MS, per="row", extra=BATCHED + instances(2)), Load(12)),
    "preferred_batch_size": (delay(32, 5 * MS, extra="dynamic_batching { preferred_batch_size: [16, 32] "
                                                     "max_queue_delay_microseconds: 40000 }"), delay(32, 5 * MS), Load(6)),
    "dynamic_batching": (delay(16, 10 * MS, extra=""), delay(16, 10 * MS), Load(8)),
    "requests_in_flight": (delay(16, 10 * MS, per="row"), None, Load(2)),
}


@pytest.mark.timing
@pytest.mark.parametrize("setting", CHANGES)
def test_a_predicted_effect_is_the_measured_one(server, tmp_path, setting):
    """Within 15 % of what clients get from a new server with that setting."""
    before, after, load = CHANGES[setting]
    loads = [load]
    # while batching is off, only requests of several rows tell what rows cost
    teach = [Load(1, rows=2)] if setting == "dynamic_batching" else []
    answer, _ = explain(server, tmp_path / "before", before, loads, teach=teach)
    effect = next(e for e in answer["what_if"] if e["setting"] == setting)
    if after is None:
        loads = [Load(int(effect["to"]))]
    _, results = explain(server, tmp_path / "after", after or before, loads)
    rate = sum(r["rate"] for r in results)
    assert effect["requests_per_s"] == pytest.approx(rate, rel=0.15), (effect, results)


@pytest.mark.timing
def test_a_model_without_settings_tunes_itself(server, tmp_path):
    """16 clients end up in one batch (two groups by turns would get half of it), nothing is said against sizes
    that nobody set, and the simulation knows how that works."""
    text = 'backend: "delay"' + "".join(f' parameters {{ key: "{k}" value {{ string_value: "{v}" }} }}' for k, v in (
        ("io", "FP32[-1,1]"), ("delay_us", 10 * MS), ("row_us", 500), ("naru.latency_target_ms", 50)))
    answer, results = explain(server, tmp_path, text, [Load(16)], ("--backend-config", "default-max-batch-size=64"))
    assert answer["settings"]["size_chosen_by_measurement"]
    assert max(answer["batches"]["sizes"], key=lambda size: size["executions"])["rows"] == 16, answer["batches"]
    assert abs(answer["model_error"]) < 0.15, answer
    assert answer["findings"][0]["cause"] in ("load", "instances"), answer["findings"]
    assert results[0]["rate"] > 0.8 * 16 / 0.0185


@pytest.mark.parametrize("value", ["0", "-5", "soon", "", "1e9", "10ms"])
def test_a_wrong_latency_target_is_said_at_load(server, tmp_path, value):
    s = server("--no-strict-readiness",
               models=[repository(tmp_path / "models", m=model("identity", [("INPUT0", "FP32", [1])], naru__latency_target_ms=value))])
    assert any("naru.latency_target_ms" in line and "NOT ready" in line for line in s.banner), s.banner


# --- the route and the command ---

ECHO = model("identity", [("INPUT0", "FP32", [1])], batch=8, extra=BATCHED)


def naru_why(*words):
    return subprocess.run([NARU, "why", *map(str, words)], capture_output=True, text=True, timeout=60, check=False)


def test_answers_have_their_fields(server, tmp_path):
    """Every field of docs/why.md is there, with and without traffic, for a version, too."""
    s = server(models=[repository(tmp_path / "models", m=ECHO)])
    quiet = ask(s, 0.1)
    assert [f["cause"] for f in quiet["findings"]] == ["no_traffic"]
    run = start(s, tmp_path, Load(2), 4)
    time.sleep(0.5)
    busy = ask(s, 0.5, path="m/versions/1")
    run.communicate(timeout=60)
    for answer in (quiet, busy):
        assert set(answer) == {"model", "version", "window_s", "findings", "what_if", "traffic", "time_ms", "batches", "use",
                               "settings", "parallelism", "model_error"}
        assert (answer["model"], answer["version"]) == ("m", "1")
    assert 0.45 < busy["window_s"] < 5
    n = busy["traffic"]["requests"]
    assert n > 10 and busy["traffic"]["rows"] == n
    assert sum(size["executions"] for size in busy["batches"]["sizes"]) == busy["batches"]["executions"] > 0
    parts = busy["time_ms"]
    assert parts["request"]["mean"] == pytest.approx(
        sum(parts[k]["mean"] for k in ("before_queue", "waiting", "running")), rel=0.01)
    assert sum(f["share"] for f in busy["findings"]) > 0 and all(f["text"] and f["advice"] for f in busy["findings"])


@pytest.mark.parametrize("path,status", [("nope", 404), ("m/versions/7", 404)])
def test_unknown_models_are_404(server, tmp_path, path, status):
    s = server(models=[repository(tmp_path / "models", m=ECHO)])
    with pytest.raises(urllib.error.HTTPError) as e:
        ask(s, path=path)
    assert e.value.code == status


def test_an_ensemble_points_to_its_models(server, tmp_path):
    whole = ('platform: "ensemble" max_batch_size: 8 input { name: "I" data_type: TYPE_FP32 dims: [1] } '
             'output { name: "O" data_type: TYPE_FP32 dims: [1] } ensemble_scheduling { step { model_name: "m" '
             'model_version: -1 input_map { key: "INPUT0" value: "I" } output_map { key: "OUTPUT0" value: "O" } } }')
    s = server(models=[repository(tmp_path / "models", m=ECHO, whole=whole)])
    with pytest.raises(urllib.error.HTTPError) as e:
        ask(s, path="whole")
    assert e.value.code == 400 and "ask the models of its steps: m" in e.value.read().decode()


def test_windows_out_of_range_are_refused(server, tmp_path):
    s = server(models=[repository(tmp_path / "models", m=ECHO)])
    for text in ("0", "0.05", "61", "-1", "x", "", "nan", "1e9"):
        with pytest.raises(urllib.error.HTTPError) as e:
            ask(s, text)
        assert e.value.code == 400 and "0.1 to 60" in e.value.read().decode()


def test_a_client_that_goes_and_a_drain_end_the_window(server, tmp_path):
    """Neither keeps the server: 60 s of watching are given up at once, or answered with what there is."""
    s = server(models=[repository(tmp_path / "models", m=ECHO)])
    gone = [socket.create_connection(("127.0.0.1", s.http), 10) for _ in range(5)]
    for c in gone:
        c.sendall(b"GET /v2/models/m/why?seconds=60 HTTP/1.1\r\nHost: localhost\r\n\r\n")
    time.sleep(0.3)
    for c in gone:
        c.close()
    with socket.create_connection(("127.0.0.1", s.http), 30) as c:
        c.sendall(b"GET /v2/models/m/why?seconds=60 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        time.sleep(0.3)
        began = time.monotonic()
        s.signal(signal.SIGTERM)
        assert c.recv(65536).startswith(b"HTTP/1.1 200")
        assert time.monotonic() - began < 25, "--exit-timeout is 30 s"
    s.stop()


def test_the_command_prints_what_the_server_says(server, tmp_path):
    s = server(models=[repository(tmp_path / "models", m=ECHO)])
    done = naru_why("m", "--url", s.url, "--seconds", "0.2")
    assert done.returncode == 0 and done.stdout.startswith("m version 1, 0."), done
    assert "1. no_traffic (100 %): no request" in done.stdout and "   try: " in done.stdout
    done = naru_why("m", "--url", s.url + "/", "--seconds", "200ms", "--json", "--model-version", 1)
    assert json.loads(done.stdout)["findings"][0]["cause"] == "no_traffic"


def test_the_command_says_what_is_wrong(server, tmp_path):
    s = server(models=[repository(tmp_path / "models", m=ECHO)])
    done = naru_why("nope", "--url", s.url)
    assert done.returncode == 1 and "404" in done.stderr and "unknown model" in done.stderr
    done = naru_why("../m?x", "--url", s.url)  # stays one segment of the path
    assert done.returncode == 1 and "404" in done.stderr
    s.stop()
    done = naru_why("m", "--url", s.url)
    assert done.returncode == 1 and f"nobody listens at 127.0.0.1:{s.http}" in done.stderr
    assert "naru serve" in done.stderr and "--url" in done.stderr
    for words in ([], ["a", "b"], ["m", "--seconds", "0"], ["m", "--seconds", "61"], ["m", "--seconds", "x"],
                  ["m", "--url", "ftp://x"], ["m", "--url", "http://x:0"], ["m", "--sekonds", "1"]):
        done = naru_why(*words)
        assert done.returncode in (1, 2) and done.stderr.startswith("naru why: ") and done.stdout == "", words
    assert "did you mean 'seconds'" in done.stderr


def test_the_command_is_in_help_man_and_completion():
    def run(*words):
        return subprocess.run([NARU, *words], capture_output=True, text=True, timeout=60, check=True).stdout
    assert "why" in run("--help") and "--seconds" in run("why", "--help")
    assert ".TH" in run("why", "--print-man")
    assert "seconds" in run("completion", "bash") and "seconds" in run("completion", "zsh")


# --- docs/why.md ---

@pytest.mark.timing
def test_the_page_names_every_cause_and_its_example_is_true(server, tmp_path):
    page = (ROOT / "docs" / "why.md").read_text()
    code = (ROOT / "src" / "sched" / "why.h").read_text()
    causes = re.findall(r'X\(NR_WHY_\w+, "(\w+)"\)', code)
    assert len(causes) >= 16 and set(SITUATIONS) <= set(causes)
    assert sorted(re.findall(r"^\| `(\w+)` \|", page, re.M)) == sorted(causes)
    config, text = (re.search(rf"```{kind}\n(.*?)```", page, re.S)[1] for kind in ("pbtxt", "text"))
    s = server(models=[repository(tmp_path / "models", slow=config)])
    priority.serve_first(s.pid, children=True)
    start(s, tmp_path, Load(1), 0.3, warm=0, name="slow").communicate(timeout=60)
    run = start(s, tmp_path, Load(32), 3, name="slow")
    time.sleep(1)
    said = naru_why("slow", "--url", s.url).stdout
    run.communicate(timeout=60)

    def words(line):
        return re.sub(r"[\d.]+", "N", line)
    assert [words(line) for line in said.splitlines()[:4]] == [words(line) for line in text.splitlines()[:4]]
    names = [line.split(" ")[0] for line in said.splitlines() if line[:1].isalpha()]
    assert names == [line.split(" ")[0] for line in text.splitlines() if line[:1].isalpha()]
    answer = ask(s, 0.1, path="slow")
    for field in answer:
        assert f"`{field}`" in page or field in ("model", "version", "window_s"), field
