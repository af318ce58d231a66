"""Instances, the rate limiter, host policies, threads and priorities, on the real server (docs/instances.md).

Models are those of the delay plug-in: `delay_us` sleeps, so that executions of an unlimited model overlap
whatever this machine does; `spin_us` uses processor time, so that shares of it can be counted in executions.
"""

import contextlib
import http.client
import json
import os
import re
import shlex
import subprocess
import threading
import time
from pathlib import Path

import pytest

from conftest import NARU, ROOT, wait_until
from counts import Held, metric, one, waiting
from plugin_models import model, repository, slow
from rawhttp import ask

IO = [("INPUT0", "FP32", [1])]
TEXT = (ROOT / "docs" / "instances.md").read_text()
LIMIT = ("--rate-limit", "execution_count")


def group(*fields):
    return "instance_group [ " + ", ".join("{ " + f + " }" for f in fields) + " ]\n"


def resources(*needs, priority=1):
    each = ", ".join(f'{{ name: "{n}" count: {c} {"global: true" if g else ""} }}' for n, c, g in needs)
    return f"rate_limiter {{ priority: {priority} resources [ {each} ] }}"


def reason(s, name):
    index = {m["name"]: m for m in ask(s.http, "POST", "/v2/repository/index").json()}
    return index[name]["reason"]


def banner_of(s, name):
    at = next(i for i, line in enumerate(s.banner) if line.startswith(f"  {name} version 1: ready"))
    return "\n".join(s.banner[at : at + 5])


class Clients:
    """n of them ask each model again and again until the end of the block."""

    def __init__(self, s, names, n=4):
        self.stop, self.errors, self.threads = False, [], []
        for name in names:
            for _ in range(n):
                self.threads.append(threading.Thread(target=self._run, args=(s, name)))

    def _run(self, s, name):
        c = http.client.HTTPConnection("127.0.0.1", s.http, timeout=60)
        body = one(3)
        while not self.stop:
            c.request("POST", f"/v2/models/{name}/infer", body)
            r = c.getresponse()
            text = r.read()
            if r.status != 200:
                self.errors.append(text)
        c.close()

    def __enter__(self):
        for t in self.threads:
            t.start()
        return self

    def __exit__(self, *_):
        self.stop = True
        for t in self.threads:
            t.join()
        assert not self.errors, self.errors[0]


def executions(s, *names):
    return [metric(s, "nv_inference_exec_count", model=n) for n in names]


def counted(s, names, until, n=4):
    """Executions of each model, all of them asked all the time, while until(them) is false."""
    with Clients(s, names, n):
        before = executions(s, *names)
        wait_until(lambda: min(executions(s, *names)) > min(before) + 2, what="executions")
        before = executions(s, *names)

        def done():
            now = [b - a for a, b in zip(before, executions(s, *names))]
            return now if until(now) else None

        return wait_until(done, limit_s=120, what="enough executions")


# --- instance_group ------------------------------------------------------------------------------


def test_groups_add_up_and_passive_ones_never_run(server, tmp_path):
    s = server(models=[repository(
        tmp_path / "m", slow=slow(1000, group("count: 2", 'name: "more" count: 1 kind: KIND_CPU', "count: 3 passive: true",
                                              "kind: KIND_MODEL")))])
    assert "; 4 instances" in banner_of(s, "slow")
    held = [Held(s) for _ in range(4)]
    extra = Held_waits(s)
    assert waiting(s) == 1  # the fifth: the passive ones are no help
    for h in held:
        h.release()
    assert extra.finish().status == 200
    config = ask(s.http, "GET", "/v2/models/slow/config").json()["instance_group"]
    assert [g["count"] for g in config] == [2, 1, 3, 1]
    assert [g["kind"] for g in config] == ["KIND_CPU", "KIND_CPU", "KIND_CPU", "KIND_MODEL"]
    assert [g["name"] for g in config] == ["slow_0", "more", "slow_2", "slow_3"]


class Held_waits:
    """A request that has to wait; finish() waits for its answer."""

    def __init__(self, s, name="slow"):
        before = waiting(s, name)
        self.reply = None
        self.thread = threading.Thread(target=self._run, args=(s, name))
        self.thread.start()
        wait_until(lambda: waiting(s, name) == before + 1, what="a waiting request")

    def _run(self, s, name):
        self.reply = ask(s.http, "POST", f"/v2/models/{name}/infer", one(1, delay_us=1))

    def finish(self):
        self.thread.join(60)
        return self.reply


WRONG = {
    "gpu": (group("kind: KIND_GPU"), 'KIND_GPU, but plug-in "delay" runs on the CPU only'),
    "gpus": (group("gpus: [ 0 ]"), "the backend can use no GPU here"),
    "cpu": (group("kind: KIND_CPU gpus: [ 0 ]"), "KIND_CPU takes no gpus"),
    "model": (group("kind: KIND_MODEL gpus: [ 0 ]"), "KIND_MODEL takes no gpus"),
    "passive": (group("passive: true"), "every group is passive"),
    "profile": (group('profile: "0"'), "profile is for TensorRT plans"),
    "policy": (group('host_policy: "none"'), 'there is no host policy "none": the server was started with here'),
    "many": (group("count: 60", "count: 5 passive: true"), "asks for 65 instances, this server allows 64"),
    "units": (group(resources(("R", 9, False))), 'needs 9 of resource "R" on device 0, and there are 4'),
    "unknown": (group(resources(("S", 1, True))), "--rate-limit-resource does not name it"),
    "both": (group(resources(("R", 1, True))), "is global in one configuration and of a device in another"),
    "priority": ('parameters { key: "naru.priority" value { string_value: "most" } }\n', 'parameter "naru.priority" is "most"'),
}


def test_what_cannot_be_had_is_said_at_the_load(server, tmp_path):
    texts = {k: slow(1, extra) for k, (extra, _) in WRONG.items()}
    texts["a"] = slow(1, group(resources(("R", 4, False))))
    s = server(*LIMIT, "--rate-limit-resource", "R:4", "--host-policy", "here,numa-node=0", "--model-load-thread-count", 1,
               models=[repository(tmp_path / "m", **texts)])
    for name, (_, says) in WRONG.items():
        assert says in reason(s, name), (name, reason(s, name))
    assert ask(s.http, "POST", "/v2/models/a/infer", one(2)).status == 200


@pytest.mark.parametrize("options, says", [
    (("--rate-limit", "sometimes"), "off"),
    (("--rate-limit-resource", "R:1"), "needs --rate-limit=execution_count"),
    ((*LIMIT, "--rate-limit-resource", "R"), "expected NAME:COUNT"),
    (("--host-policy", "a"), "expected NAME,cpu-cores"),
    (("--host-policy", "a,cpu-cores=1000"), "core 1000 is none that this process may use"),
    (("--host-policy", "a,numa-node=900"), "no memory node 900"),
])
def test_wrong_options(options, says, tmp_path):
    r = subprocess.run([NARU, "serve", *map(str, options), str(repository(tmp_path / "m", slow=slow(1)))], capture_output=True,
                       text=True, timeout=60, check=False)
    assert r.returncode in (2, 78) and says in r.stderr, r


# --- rate limiter --------------------------------------------------------------------------------


def test_one_runs_at_a_time_and_priorities_are_weights(server, tmp_path):
    """Two models of 10 ms that need the one unit there is; b has priority 2. Both always wait."""
    delay_s = 0.010
    s = server(*LIMIT, models=[repository(
        tmp_path / "m", a=slow(int(delay_s * 1e6), group("count: 2 " + resources(("R", 1, False)))),
        b=slow(int(delay_s * 1e6), group("count: 2 " + resources(("R", 1, False), priority=2))),
        free=slow(1, group("count: 1")))])
    assert metric(s, "naru_rate_limit_units", resource="R", device="0") == 1
    assert metric(s, "naru_rate_limit_in_use", resource="R") == 0
    begin = time.monotonic()
    a, b = counted(s, ["a", "b"], lambda n: sum(n) >= 150)
    assert (a + b) * delay_s <= time.monotonic() - begin, "two ran at once"
    assert 1.8 <= a / b <= 2.2, (a, b)
    assert ask(s.http, "POST", "/v2/models/free/infer", one()).status == 200
    wait_until(lambda: metric(s, "naru_rate_limit_in_use", resource="R") == 0, what="all given back")
    assert metric(s, "naru_rate_limit_waiting_instances", resource="R") == 0


def test_who_waits_for_resources_is_told_so(server, tmp_path):
    s = server(*LIMIT, "--rate-limit-resource", "R:1", "--rate-limit-resource", "G:1",
               models=[repository(tmp_path / "m", a=slow(20000, group(resources(("R", 1, False), ("G", 1, True)))),
                                  b=slow(1000, group(resources(("G", 1, True)))))])
    with Clients(s, ["a"], 2), Clients(s, ["b"], 2):
        causes = [f["cause"] for f in ask(s.http, "GET", "/v2/models/b/why?seconds=1").json()["findings"]]
        assert causes[0] == "resources", causes
    assert metric(s, "naru_rate_limit_units", resource="G", device="global") == 1


def test_held_by_one_freed_by_its_end(server, tmp_path):
    s = server(*LIMIT, "--rate-limit-resource", "R:3",
               models=[repository(tmp_path / "m", slow=slow(1, group("count: 4 " + resources(("R", 1, False)))),
                                  wide=slow(1, group(resources(("R", 3, False)))))])
    held = [Held(s) for _ in range(3)]
    assert metric(s, "naru_rate_limit_in_use", resource="R") == 3
    fourth = Held_waits(s)  # an instance is idle, but there is no unit
    wide = Held_waits(s, "wide")
    wait_until(lambda: metric(s, "naru_rate_limit_waiting_instances", resource="R") == 2, what="two that wait for units")
    for h in held:
        h.release()
    assert fourth.finish().status == 200 and wide.finish().status == 200
    wait_until(lambda: metric(s, "naru_rate_limit_in_use", resource="R") == 0, what="all given back")


def test_sequences_hold_resources_too(server, tmp_path):
    """One unit, two instances with places of their own: executions do not overlap, every answer comes."""
    for strategy in ("direct { }", "oldest { max_candidate_sequences: 4 }"):
        folder = tmp_path / strategy.split()[0]
        extra = (f"sequence_batching {{ {strategy} control_input [ {{ name: \"START\" control [ {{ kind: CONTROL_SEQUENCE_START "
                 "fp32_false_true: [ 0, 1 ] } ] } ] }\n" + group("count: 2 " + resources(("R", 1, False))))
        text = model("delay", IO, batch=2, delay_us=5000, extra=extra)
        s = server(*LIMIT, models=[repository(folder, seq=text)])
        replies = []

        def run(number, server_=s, replies_=replies):
            for i in range(6):
                body = json.dumps({"inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": [1, 1], "data": [i]}],
                                   "parameters": {"sequence_id": number, "sequence_start": i == 0, "sequence_end": i == 5}})
                replies_.append(ask(server_.http, "POST", "/v2/models/seq/infer", body).status)

        threads = [threading.Thread(target=run, args=(n,)) for n in range(1, 7)]
        begin = time.monotonic()
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert replies == [200] * 36, strategy
        assert executions(s, "seq")[0] * 0.005 <= time.monotonic() - begin, strategy
        wait_until(lambda s=s: metric(s, "naru_rate_limit_in_use", resource="R") == 0, what="all given back")


def test_loads_and_unloads_change_what_there_is(server, tmp_path):
    s = server(*LIMIT, "--model-control-mode", "explicit", "--load-model", "*",
               models=[repository(tmp_path / "m", small=slow(1, group(resources(("R", 2, False)))),
                                  large=slow(1, group(resources(("R", 7, False)))))])
    assert metric(s, "naru_rate_limit_units", resource="R") == 7
    assert ask(s.http, "POST", "/v2/repository/models/large/unload").status == 200
    wait_until(lambda: metric(s, "naru_rate_limit_units", resource="R") == 2, what="fewer units")
    assert ask(s.http, "POST", "/v2/repository/models/large/load").status == 200
    assert metric(s, "naru_rate_limit_units", resource="R") == 7
    assert ask(s.http, "POST", "/v2/models/large/infer", one()).status == 200


def test_a_limiter_that_is_off_is_named(server, tmp_path):
    s = server(models=[repository(tmp_path / "m", slow=slow(1, group(resources(("R", 1, False)))), plain=slow(1))])
    said = "its rate_limiter has no effect: --rate-limit=execution_count switches it on"
    assert f"note: {said}" in banner_of(s, "slow") and "note:" not in banner_of(s, "plain")
    assert [line for line in s.log().splitlines() if said in line and "model=slow" in line]
    assert ask(s.http, "GET", "/v2/models/slow/why?seconds=0.1").json()["note"] == said
    assert "note" not in ask(s.http, "GET", "/v2/models/plain/why?seconds=0.1").json()
    assert "naru_rate_limit" not in ask(s.metrics, "GET", "/metrics").body.decode()


# --- host policies -------------------------------------------------------------------------------


def threads_of(s, name):
    """Affinity and processor time (ticks) of the server's threads of this name."""
    found = []
    for task in os.listdir(f"/proc/{s.pid}/task"):
        folder = Path(f"/proc/{s.pid}/task/{task}")
        with contextlib.suppress(FileNotFoundError):
            if (folder / "comm").read_text().strip() == name:
                allowed = re.search(r"Cpus_allowed_list:\s*(\S+)", (folder / "status").read_text()).group(1)
                fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
                found.append((allowed, int(fields[11]) + int(fields[12])))
    return found


def test_instances_of_a_policy_run_on_its_cores(server, tmp_path):
    core = max(os.sched_getaffinity(0))
    s = server("--host-policy", f"last,cpu-cores={core}", "--host-policy", "last,numa-node=0", "--no-inline",
               models=[repository(tmp_path / "m", bound=model("delay", IO, spin_us=2000, extra=group('host_policy: "last"')),
                                  free=model("delay", IO, spin_us=2000))])
    mine, others = threads_of(s, "naru-exec:last"), threads_of(s, "naru-exec")
    assert {a for a, _ in mine} == {str(core)}, mine
    assert all(a != str(core) for a, _ in others) or len(os.sched_getaffinity(0)) == 1
    counted(s, ["bound"], lambda n: n[0] >= 100, n=2)
    used = sum(t for _, t in threads_of(s, "naru-exec:last")) - sum(t for _, t in mine)
    elsewhere = sum(t for _, t in threads_of(s, "naru-exec")) - sum(t for _, t in others)
    assert used >= 15 and elsewhere <= 2, (used, elsewhere)  # 100 executions of 2 ms are 20 ticks
    before = sum(t for _, t in threads_of(s, "naru-exec"))
    counted(s, ["free"], lambda n: n[0] >= 100, n=2)
    assert sum(t for _, t in threads_of(s, "naru-exec")) - before >= 15
    if not Path("/sys/devices/system/node/node1").exists():
        assert "numa-node of its host policy has no effect: this machine has one memory node" in banner_of(s, "bound")
    assert "note:" not in banner_of(s, "free")


def test_the_policy_named_cpu_is_everyones(server, tmp_path):
    core = max(os.sched_getaffinity(0))
    mixed = group("count: 1", 'host_policy: "other" count: 1')
    s = server("--host-policy", f"cpu,cpu-cores={core}", "--host-policy", f"other,cpu-cores={min(os.sched_getaffinity(0))}",
               models=[repository(tmp_path / "m", slow=slow(1, mixed))])
    held = [Held(s), Held(s)]  # one on each
    for h in held:
        h.release()
    for _ in range(20):
        assert ask(s.http, "POST", "/v2/models/slow/infer", one(7)).json()["outputs"][0]["data"] == [7]
    assert threads_of(s, "naru-exec:cpu") and threads_of(s, "naru-exec:other")


# --- threads -------------------------------------------------------------------------------------


def test_configured_threads_beyond_the_cores_are_told_with_numbers(server, tmp_path):
    cores = len(os.sched_getaffinity(0))
    many = 2 * cores
    s = server(models=[repository(tmp_path / "m", wide=model("identity", IO, extra=group("count: 2"), intra_op_thread_count=many),
                                  plain=model("identity", IO, extra=group(f"count: {4 * cores}")))])
    said = re.search(r"note: (\d+) threads may compute at once \(2 instances, intra_op_thread_count (\d+)\) on (\d+) core",
                     banner_of(s, "wide"))
    assert said, banner_of(s, "wide")
    assert int(said.group(1)) > cores and (int(said.group(2)), int(said.group(3))) == (many, cores)
    assert "note:" not in banner_of(s, "plain")
    assert "intra_op_thread_count" in ask(s.http, "GET", "/v2/models/wide/why?seconds=0.1").json()["note"]
    text = ask(s.http, "GET", "/v2/models/wide/why?seconds=0.1", b"", "Accept: text/plain").body.decode()
    assert "\nnote      " in text
    assert [line for line in s.log().splitlines() if "level=warn" in line and "model=wide" in line and f"on {cores} core" in line]


# --- priorities between models -------------------------------------------------------------------


def spin(ms, **more):
    """Instances enough for every executor, should the spare step in."""
    return model("delay", IO, spin_us=ms * 1000, extra=group("count: 4"), **more)


def test_models_share_executors_by_time(server, tmp_path):
    """A model of 2 ms and one of 20 ms, six clients each, one executor: as much time for the one as for the other."""
    s = server("--exec-threads", 1, "--no-inline", models=[repository(tmp_path / "m", quick=spin(2), long=spin(20))])
    quick, long = counted(s, ["quick", "long"], lambda n: n[1] >= 25, n=6)
    assert 0.75 <= 2 * quick / (20 * long) <= 1.35, (quick, long)


def test_priority_is_a_share_of_the_time(server, tmp_path):
    """The same with priority 4 for the quick one: a quarter of the time of the other."""
    s = server("--exec-threads", 1, "--no-inline",
               models=[repository(tmp_path / "m", quick=spin(2, naru__priority=2), long=spin(20, naru__priority=0.5))])
    quick, long = counted(s, ["quick", "long"], lambda n: n[1] >= 40, n=6)
    assert len(threads_of(s, "naru-exec")) <= 4  # one, and the spare, which has no reason to step in; once they were a dozen
    assert 0.17 <= 2 * quick / (20 * long) <= 0.37, (quick, long)


# --- the page ------------------------------------------------------------------------------------


def test_the_documents_configurations_load(server, tmp_path):
    """Every ```pbtxt block of the page is a model's instance_group, and the console line starts the server."""
    blocks = re.findall(r"```pbtxt\n(.*?)```", TEXT, re.S)
    lines = [line for block in re.findall(r"```console\n(.*?)```", TEXT, re.S) for line in block.splitlines()]
    assert len(blocks) >= 4 and len(lines) == 1
    folder = repository(tmp_path / "models", **{f"m{i}": slow(1, text) for i, text in enumerate(blocks)})
    words = shlex.split(lines[0])
    assert words[:3] == ["naru", "serve", "models"]
    s = server(*words[3:], models=[folder])
    for i in range(len(blocks)):
        assert ask(s.http, "POST", f"/v2/models/m{i}/infer", one(5)).status == 200, reason(s, f"m{i}")
        assert "ignored:" not in banner_of(s, f"m{i}")


def test_options_are_in_help():
    help_text = subprocess.run([NARU, "serve", "--help"], capture_output=True, text=True, check=True).stdout
    for option in set(re.findall(r"`--([a-z-]+)", TEXT)):
        assert f"--{option}" in help_text, option
