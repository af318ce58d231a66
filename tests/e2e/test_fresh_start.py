"""What a server that was only given models exposes: loopback, private files, no secrets in sight (D1)."""

import json
import os
import stat
import struct
import subprocess
import time

import pytest

from conftest import NARU, wait_until
from plugin_models import model, repository, slow
from rawhttp import H1, ask


GOOD = json.dumps({"inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": [1], "data": [1]}]})


def sockets(pid):
    """Addresses that the process listens on, from /proc."""
    inodes = set()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            link = os.readlink(f"/proc/{pid}/fd/{fd}")
        except FileNotFoundError:
            continue
        if link.startswith("socket:["):
            inodes.add(link[8:-1])
    found = []
    for name in ("tcp", "tcp6"):
        with open(f"/proc/{pid}/net/{name}", encoding="ascii") as f:
            for row in f.readlines()[1:]:
                cells = row.split()
                if cells[3] == "0A" and cells[9] in inodes:
                    found.append((name, cells[1].split(":")[0]))
    return found


def test_loopback_only(server, tmp_path):
    s = server(models=[repository(tmp_path / "repo", id=model("identity", [("INPUT0", "FP32", [1])]))])
    local = f"{struct.unpack('=I', bytes([127, 0, 0, 1]))[0]:08X}"
    found = sockets(s.pid)
    assert len(found) == 3 and all(row == ("tcp", local) for row in found), found


def test_files_are_private(server, tmp_path):
    """A gallery of photographs and a log are nobody else's, whatever the umask."""
    log = tmp_path / "naru.log"
    before = os.umask(0)
    try:
        s = server("--log-file", log, models=[repository(tmp_path / "repo", pic=model(
            "identity", [("INPUT0", "UINT8", [3, -1, -1])], naru__output="image", naru__output__scale=1))])
    finally:
        os.umask(before)
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    gallery = s.folder / "gallery"
    assert stat.S_IMODE(gallery.stat().st_mode) == 0o700
    for root, folders, files in os.walk(gallery):
        for name in folders + files:
            assert stat.S_IMODE(os.stat(os.path.join(root, name)).st_mode) & 0o077 == 0, name


def test_no_privileges_are_kept(server, tmp_path):
    """Every thread, those of models and of the pool included, once the ports are bound."""
    s = server(models=[repository(tmp_path / "repo", slow=slow(1000), pic=model(
        "identity", [("INPUT0", "UINT8", [3, -1, -1])], naru__output="image", naru__output__scale=1))])
    for path in ("slow/infer", "pic/predict"):
        ask(s.http, "POST", f"/v2/models/{path}", GOOD)
    threads = os.listdir(f"/proc/{s.pid}/task")
    assert len(threads) >= 4
    for thread in threads:
        with open(f"/proc/{s.pid}/task/{thread}/status", encoding="ascii") as f:
            said = dict(line.rstrip("\n").split(":\t", 1) for line in f if ":\t" in line)
        assert {said[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {"0" * 16}, said["Name"]
        assert said["NoNewPrivs"] == "1", said["Name"]


@pytest.mark.parametrize("options", [
    ["--address", "0.0.0.0"], ["--address", "*"], ["--address", "::"], ["--http-address", "10.1.2.3"],
    ["--grpc-address", "0.0.0.0"], ["--metrics-address", "192.168.0.1"], ["--port", "0", "--http-address", "::"],
    ["--address", "not an address"], ["--backend-config", "nonsense"], ["--no-allow-http", "--no-allow-grpc",
                                                                        "--no-allow-metrics"]])
def test_what_is_refused_ends_with_78(tmp_path, options):
    """D2: a supervisor sees that trying again is of no use; nothing was listened on."""
    done = subprocess.run([NARU, "serve", tmp_path, *options], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == os.EX_CONFIG == 78 and done.stdout == ""
    assert done.stderr.startswith("naru serve: ") and done.stderr.count("\n") == 1


def test_no_descriptor_leaks_and_idle_costs_nothing(server, tmp_path):
    """No descriptor leaks into what the server could start, and an idle server uses no processor time."""
    s = server(models=[repository(tmp_path / "repo", id=model("identity", [("INPUT0", "FP32", [1])]))])
    with H1(s.http) as c:
        assert c.ask("GET", "/v2").status == 200
        for fd in os.listdir(f"/proc/{s.pid}/fdinfo"):
            if int(fd) > 2:
                with open(f"/proc/{s.pid}/fdinfo/{fd}", encoding="ascii") as f:
                    flags = int(next(line for line in f if line.startswith("flags:")).split()[1], 8)
                assert flags & os.O_CLOEXEC, (fd, os.readlink(f"/proc/{s.pid}/fd/{fd}"))

        def used():
            with open(f"/proc/{s.pid}/stat", encoding="ascii") as f:
                cells = f.read().rsplit(")", 1)[1].split()
            return int(cells[11]) + int(cells[12])

        def rests():
            """Ticks of 10 ms in a second; a server that polls has many in every second."""
            before = used()
            time.sleep(1)
            return used() - before <= 2

        wait_until(rests, limit_s=10, what="a second without work")


def test_answers_show_nothing_of_the_machine(server, tmp_path):
    repo = repository(tmp_path / "repo", id=model("identity", [("INPUT0", "FP32", [1])]))
    s = server(models=[repo])
    for method, path in [("GET", "/v2"), ("GET", "/v2/models/id"), ("GET", "/v2/models/id/config"), ("GET", "/none"),
                         ("POST", "/v2/repository/index"), ("GET", "/naru/models"), ("POST", "/v2/models/id/infer")]:
        r = ask(s.http, method, path, "")
        assert str(tmp_path).encode() not in r.body and "server" not in r.headers, (path, r)
