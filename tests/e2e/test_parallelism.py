"""How executions of a model that computes for long share the cores: chosen by measurement, over one copy of the
weights, and visible in metrics and `why`.

What is fastest on a machine is for scripts/bench to show (row busy); here it is held that several ways are taken
where they come into question and only there, that they answer alike, and what they cost in memory.
"""
import concurrent.futures
import json
import os
import re
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import NARU, wait_until

PLUGIN = Path(NARU).parent / "backends" / "naru-onnxruntime.so"
LIGHT = Path(onnx.__file__).parent / "backend/test/data/light/light_resnet50.onnx"
INPUT = "gpu_0/data_0"
SHAPE = [1, 3, 224, 224]
WAYS = ("wide", "quiet", "side", "crowd")

pytestmark = [pytest.mark.skipif(not PLUGIN.exists(), reason="the onnxruntime plug-in is not built"),
              pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core: there is nothing to share"),
              pytest.mark.skipif(not LIGHT.exists(), reason="this onnx package has no light_resnet50")]


def config(**parameters):
    return 'backend: "onnxruntime"\n' + "".join(
        f'parameters {{ key: "{k}" value {{ string_value: "{v}" }} }}\n' for k, v in parameters.items())


def resnet(folder, **models):
    folder.mkdir()
    for name, text in models.items():
        where = folder / name / "1"
        where.mkdir(parents=True)
        (where / "model.onnx").write_bytes(LIGHT.read_bytes())
        (where.parent / "config.pbtxt").write_text(text)
    return folder


def infer(s, model, seed=1):
    data = np.random.default_rng(seed).random(SHAPE, np.float32).tobytes()
    head = json.dumps({"inputs": [{"name": INPUT, "shape": SHAPE, "datatype": "FP32",
                                   "parameters": {"binary_data_size": len(data)}}],
                       "parameters": {"binary_data_output": True}}).encode()
    request = urllib.request.Request(f"{s.url}/v2/models/{model}/infer", head + data, method="POST", headers={
        "Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))})
    try:
        answer = urllib.request.urlopen(request, timeout=120)
    except urllib.error.HTTPError as e:
        raise AssertionError(f"{e.code} {e.read().decode()}") from None
    with answer:
        head = int(answer.headers["Inference-Header-Content-Length"])
        return np.frombuffer(answer.read()[head:], np.float32)


def several(s, model, clients, requests):
    """Answers to so many requests of each client; all of them ask the same."""
    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        return list(pool.map(lambda _: infer(s, model), range(clients * requests)))


def executions(s, model):
    with urllib.request.urlopen(s.metrics_url if hasattr(s, "metrics_url") else s.url + "/metrics", timeout=20) as answer:
        text = answer.read().decode()
    found = re.findall(r'^naru_executions_by_way_total\{model="%s",version="1",way="(\w+)"\} (\d+)$' % model, text, re.M)
    return {way: int(n) for way, n in found}


def why(s, model):
    with urllib.request.urlopen(f"{s.url}/v2/models/{model}/why?seconds=0.1", timeout=20) as answer:
        return json.load(answer)["parallelism"]


def held(s):
    text = Path(f"/proc/{s.pid}/status").read_text(encoding="ascii")
    return sum(int(re.search(rf"^{field}:\s+(\d+)", text, re.M)[1]) << 10 for field in ("RssAnon", "RssShmem"))


def test_wishes(server, tmp_path):
    """naru.parallelism fixes the way, an explicit number of threads the session; the answers are the same."""
    s = server("--no-keep-gallery", models=[resnet(
        tmp_path / "m", auto=config(), wide=config(**{"naru.parallelism": "wide"}),
        narrow=config(**{"naru.parallelism": "narrow"}), two=config(intra_op_thread_count="2"))])
    want = infer(s, "auto")
    for model in ("wide", "narrow", "two"):
        assert all(np.array_equal(want, got) for got in several(s, model, 4, 4))
    n = executions(s, "wide")
    assert n["wide"] == 16 and sum(n.values()) == 16
    n = executions(s, "narrow")
    assert n["side"] > 0 and n["quiet"] == n["crowd"] == 0  # wide until the form is there
    assert executions(s, "two") == {}
    assert why(s, "two") is None
    assert why(s, "wide")["setting"] == "wide"
    assert why(s, "narrow")["forms"] == {"wide": "made", "quiet": "not_needed", "narrow": "made"}


def test_one_request_has_all_cores(server, tmp_path):
    """One at a time is never narrow; with a queue the narrow form is made and tried, and the answers stay."""
    s = server("--no-keep-gallery", "--idle-trim", "0s", models=[resnet(tmp_path / "m", r=config())])
    want = [infer(s, "r", seed) for seed in range(20)]
    n = executions(s, "r")
    assert n["wide"] + n["quiet"] == 20 and n["side"] == n["crowd"] == 0
    wait_until(lambda: (several(s, "r", 8, 4), executions(s, "r"))[1]["side"] + executions(s, "r")["crowd"] > 0,
               what="executions side by side")
    for seed, expected in enumerate(want):
        assert np.array_equal(infer(s, "r", seed), expected)
    answer = why(s, "r")
    assert answer["setting"] == "auto" and answer["several_requests"]["way"] in WAYS


def test_neighbours_have_spinning_stopped(server, tmp_path):
    """While another process computes all the time, threads that wait sleep; some moments later they are back."""
    s = server("--no-keep-gallery", "--idle-trim", "0s", models=[resnet(tmp_path / "m", r=config())])
    infer(s, "r")
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        wait_until(lambda: (infer(s, "r"), executions(s, "r"))[1]["quiet"] > 0, what="an execution that does not spin")
        assert why(s, "r")["others_want_the_cores"]
    finally:
        for one in busy:
            one.kill()
            one.wait()


def test_memory(server, tmp_path):
    """With the forms that several requests need a model holds at most 1.3 times what one session does."""
    one = server("--no-keep-gallery", models=[resnet(tmp_path / "one", r=config(intra_op_thread_count="2"))])
    side = server("--no-keep-gallery", models=[resnet(tmp_path / "side", r=config(**{"naru.parallelism": "narrow"}))])
    for s in (one, side):
        several(s, "r", 8, 6)
        wait_until(lambda s=s: executions(s, "r").get("side", 1) > 0, what="the narrow form")
        several(s, "r", 8, 6)
    # what loading took from the heap goes back within a second; the narrow form stays, since it is asked for
    wait_until(lambda: held(side) <= 1.3 * held(one), limit_s=10, what="at most 1.3 of the memory")
    print("memory:", held(side) / held(one))


def test_forms_are_given_back(server, tmp_path):
    """An idle model keeps its first form only, and makes others again when they are wanted."""
    s = server("--no-keep-gallery", models=[resnet(tmp_path / "m", r=config())])
    for _ in range(2):
        wait_until(lambda: (several(s, "r", 8, 4), why(s, "r"))[1]["forms"]["narrow"] == "made" or
                   why(s, "r")["forms"]["quiet"] == "made", what="another form")
        wait_until(lambda: "made" not in (why(s, "r")["forms"]["narrow"], why(s, "r")["forms"]["quiet"]),
                   what="the other forms gone")
    assert infer(s, "r").shape == (1000,)


def test_load_beside_changes(server, tmp_path):
    """Unloading while executions of several ways run and forms are made: every request is answered."""
    s = server("--no-keep-gallery", "--model-control-mode", "explicit", "--load-model", "r",
               models=[resnet(tmp_path / "m", r=config())])
    stop, failed = threading.Event(), []

    def control(verb):
        request = urllib.request.Request(f"{s.url}/v2/repository/models/r/{verb}", b"{}", method="POST")
        with urllib.request.urlopen(request, timeout=60) as answer:
            answer.read()

    def ask():
        while not stop.is_set() and not failed:
            try:
                infer(s, "r")
            except Exception as e:  # noqa: BLE001
                failed.append(str(e))
    clients = [threading.Thread(target=ask) for _ in range(4)]
    for one in clients:
        one.start()
    try:
        for _ in range(4):
            control("load")
            stop.wait(1)
    finally:
        stop.set()
        for one in clients:
            one.join()
    assert not failed


def test_refused(server, tmp_path):
    s = server("--no-keep-gallery", "--no-exit-on-error", models=[resnet(tmp_path / "m", r=config(**{"naru.parallelism": "both"}))])
    request = urllib.request.Request(f"{s.url}/v2/repository/index", b"{}", method="POST")
    with urllib.request.urlopen(request, timeout=20) as answer:
        reason = json.load(answer)[0]["reason"]
    assert 'naru.parallelism" is "both"; expected auto, wide or narrow' in reason
