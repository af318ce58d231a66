"""O8: 200 clients who read a kilobyte a second what a model produces by the gigabyte. The producers pause, memory stays,
nobody else notices, and when the readers have gone all is as before."""

import struct
import time

import pytest

import priority
from conftest import wait_until
from counts import metric
from plugin_models import model, repository
from rawhttp import H2, SERVICE, ask, frame, infer_pb

IO = [("INPUT0", "FP32", [-1])]
READERS, RUNNING = 200, 32
WINDOW_UPDATE = 8
PIECE = 16 << 10  # bytes of an answer


@pytest.fixture
def one(server, tmp_path):
    models = {"plain": model("identity", IO),
              "many": model("repeat", IO, responses=100000,
                            extra="model_transaction_policy { decoupled: true }\n"
                                  f"instance_group [ {{ count: {RUNNING} kind: KIND_CPU }} ]\n")}
    s = server("--no-keep-gallery", "--io-threads", 1, "--max-connections-per-address", 512,
               models=[repository(tmp_path / "repo", **models)])
    priority.serve_first(s.pid, children=True)
    with priority.me_first():
        yield s


def resident(s):
    with open(f"/proc/{s.pid}/statm", encoding="ascii") as f:
        return int(f.read().split()[1]) * 4096


def times_ms(s, seconds, meanwhile=lambda: None):
    """How long a small inference takes, again and again."""
    text, took, end = '{"inputs":[{"name":"INPUT0","datatype":"FP32","shape":[1],"data":[3]}]}', [], time.monotonic() + seconds
    while time.monotonic() < end:
        begin = time.monotonic()
        assert ask(s.http, "POST", "/v2/models/plain/infer", text).status == 200
        took.append((time.monotonic() - begin) * 1000)
        meanwhile()
        time.sleep(0.005)
    return sorted(took)


@pytest.mark.timing
def test_slow_readers(one):
    quiet = times_ms(one, 1)
    data = infer_pb("many", [("INPUT0", "FP32", [PIECE // 4])], raw=[b"\1" * PIECE])
    readers = [H2(one.grpc, window=1024) for _ in range(READERS)]
    streams = [r.grpc(SERVICE + "ModelStreamInfer", data) for r in readers]
    wait_until(lambda: metric(one, "nv_inference_pending_request_count", model="many") >= READERS - RUNNING,
               what="as many to run as there are instances")
    last = time.monotonic()

    def take_a_kilobyte():
        nonlocal last
        if time.monotonic() - last > 1:
            last = time.monotonic()
            for r, stream in zip(readers, streams):
                r.try_send(frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", 1024)))

    times_ms(one, 1.5, take_a_kilobyte)
    settled = resident(one)
    beside = times_ms(one, 5, take_a_kilobyte)
    assert resident(one) - settled < 4 << 20  # the producers are paused
    assert settled < 128 << 20
    taken = [r.ping() and len(r.replies[stream].body) for r, stream in zip(readers, streams)]
    assert sum(n > 2048 for n in taken) >= RUNNING and max(taken) < 16 << 10, taken  # but not stopped
    assert beside[len(beside) // 2] <= 2 * quiet[len(quiet) // 2] + 0.5
    assert beside[int(len(beside) * 0.99)] <= 2 * quiet[int(len(quiet) * 0.99)] + 5
    for r in readers:
        r.abort()
    wait_until(lambda: metric(one, "nv_inference_pending_request_count", model="many") == 0, what="the queue to be empty")
    times_ms(one, 0.2)
