"""More bodies than memory: within a control group of 512 MiB, the kernel ends nobody, because the server says no
first (503); who asks for little is served all the while, and everything works afterwards."""

import os
import struct
import time
from pathlib import Path

import pytest

from conftest import wait_until
from counts import metric
from plugin_models import model, repository
from rawhttp import H1, ask, head

MIB = 1 << 20
LIMIT = 512 * MIB
BODY = 60 * MIB


def own_group():
    """The folder of this process's memory group and the name of its limit; None where there is none."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            return Path("/sys/fs/cgroup/memory" + path), "memory.limit_in_bytes"
        if controllers == "" and Path("/sys/fs/cgroup/cgroup.controllers").exists():
            return Path("/sys/fs/cgroup" + path), "memory.max"
    return None


@pytest.fixture
def group():
    """A memory group that processes started meanwhile are born in; its folder."""
    mine = own_group()
    try:
        folder = mine[0] / f"naru-test-{os.getpid()}"
        folder.mkdir()
    except (OSError, TypeError) as e:
        pytest.skip(f"no memory control group can be made here: {e}")
    try:
        try:
            (folder / mine[1]).write_text(str(LIMIT))
        except OSError as e:
            pytest.skip(f"no memory control group can be made here: {e}")
        yield folder
    finally:
        wait_until(lambda: not (folder / "cgroup.procs").read_text(), what="the group to be empty")
        folder.rmdir()


def kills(group):
    events = group / "memory.events"
    text = (events if events.exists() else group / "memory.oom_control").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("oom_kill "))


@pytest.fixture
def one(group, server, tmp_path):
    held = model("delay", [("INPUT0", "FP32", [-1])], delay_us=2000000, extra="instance_group [ { count: 32 kind: KIND_CPU } ]\n")
    quick = model("identity", [("INPUT0", "FP32", [1])])
    (group / "cgroup.procs").write_text(str(os.getpid()))
    try:
        s = server("--no-keep-gallery", models=[repository(tmp_path / "repo", held=held, quick=quick)])
    finally:
        (group.parent / "cgroup.procs").write_text(str(os.getpid()))
    assert str(s.pid) in (group / "cgroup.procs").read_text().split()
    yield s
    s.stop()


def first_bytes(c):
    try:
        return c.socket.recv(12)
    except ConnectionResetError:
        return b""  # told, and gone before the answer was read


def test_large_bodies(one, group):
    """20 x 60 MiB against 384 MiB: those for which there is room are served, the others told at once."""
    piece = b"\0" * (1 << 20)
    waiting = [H1(one.http) for _ in range(20)]
    for c in waiting:
        c.send(head("POST", "/v2/models/held/infer", "Content-Type: application/octet-stream", f"Content-Length: {BODY}"))
    alive = set(range(len(waiting)))
    slowest = 0.0
    for _ in range(BODY // len(piece)):  # all of them grow together
        for i in sorted(alive):
            if not waiting[i].try_send(piece):
                alive.discard(i)
        begin = time.monotonic()
        r = ask(one.http, "POST", "/v2/models/quick/infer", struct.pack("<f", 1.5), "Content-Type: application/octet-stream")
        slowest = max(slowest, time.monotonic() - begin)
        assert r.status in (200, 503)
    status = []
    for c in waiting:  # the head is enough: an answer has 60 MiB, too
        first = first_bytes(c)
        status.append(int(first[9:12]) if len(first) == 12 else None)
        c.abort()
    assert status.count(200) >= 2 and len(status) - status.count(200) >= 10, status
    assert status.count(503) >= 1 and set(status) <= {200, 503, None}, status
    assert kills(group) == 0
    assert slowest < 5
    wait_until(lambda: ask(one.http, "POST", "/v2/models/quick/infer", struct.pack("<f", 1.5),
                           "Content-Type: application/octet-stream").status == 200, what="the memory to come back")
    with H1(one.http) as c:
        c.send(head("POST", "/v2/models/held/infer", "Content-Type: application/octet-stream", f"Content-Length: {BODY}"))
        c.send(b"\0" * BODY)
        assert first_bytes(c) == b"HTTP/1.1 200"
        c.abort()


def test_the_budget_follows_the_group(one):
    """Three quarters of what the group may use, wherever in the tree it is."""
    assert metric(one, "naru_buffer_budget_bytes") == LIMIT // 4 * 3
