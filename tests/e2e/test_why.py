"""GET /v2/models/M/why: it names the cause of each of twelve situations, made for real with the delay and
identity plug-ins, and what it says a change would bring is what the change brings.

A situation is a model, a server's options and loads of naru-load that run beside each other; the
question is asked while they run. The rates of changes are measured by the load generator, before and
after on fresh servers, so the prediction is held against what clients see.
"""
import contextlib
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
from conftest import ROOT
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


def start(s, folder, load, seconds, warm=0.4):
    line = [LOAD, "--json", "--url", f"{s.url}/v2/models/m/infer", "--connections", load.connections, "--seconds", seconds,
            "--warm", warm, "--timeout", 60, "--body", body(folder, load.rows, load.width),
            "--header", "Content-Type: application/json"]
    if load.rate is not None:
        line += ["--rate", load.rate, "--max-connections", 512]
    return subprocess.Popen([str(word) for word in line], stdout=subprocess.PIPE, text=True)


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


def explain(server, folder, text, loads, options=(), neighbours=0):
    """What `why` says while the loads run, and the rate of good answers that clients saw."""
    folder.mkdir(exist_ok=True)
    s = server("--port", 0, *options, ports=False, models=[repository(folder, m=text)])
    with busy_processes(neighbours):
        # alone and one after the other first, as any service sees it: single rows are known, too
        for load in loads[:1]:
            first = start(s, folder, Load(1, load.rows, load.width), 0.3, warm=0)
            first.communicate(timeout=60)
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
                   ("--no-inline",), 6),
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
    "dynamic_batching": (delay(16, 10 * MS, extra=""), delay(16, 10 * MS), [Load(8), Load(1, rows=2)]),
    "requests_in_flight": (delay(16, 10 * MS, per="row"), None, Load(2)),
}


@pytest.mark.parametrize("setting", CHANGES)
def test_a_predicted_effect_is_the_measured_one(server, tmp_path, setting):
    """Within 15 % of what clients get from a new server with that setting."""
    before, after, load = CHANGES[setting]
    loads = load if isinstance(load, list) else [load]
    answer, _ = explain(server, tmp_path / "before", before, loads)
    effect = next(e for e in answer["what_if"] if e["setting"] == setting)
    if after is None:
        loads = [Load(int(effect["to"]))]
    _, results = explain(server, tmp_path / "after", after or before, loads)
    rate = sum(r["rate"] for r in results)
    assert effect["requests_per_s"] == pytest.approx(rate, rel=0.15), (effect, results)
