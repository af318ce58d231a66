"""What a server that was only given models exposes: loopback, private files, no secrets in sight (D1)."""

import os
import stat
import struct
import time

from conftest import wait_until
from plugin_models import model, repository
from rawhttp import H1, ask


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
    assert stat.S_IMODE(log.stat().st_mode) & 0o137 == 0
    gallery = s.folder / "gallery"
    assert stat.S_IMODE(gallery.stat().st_mode) == 0o700
    for root, folders, files in os.walk(gallery):
        for name in folders + files:
            assert stat.S_IMODE(os.stat(os.path.join(root, name)).st_mode) & 0o077 == 0, name


def test_no_privileges_are_needed(server, tmp_path):
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
