"""The truth about readiness: every row of the table in docs/health.md is brought about and ended, and all ways to ask must
say what the table says within a second of both.

    c.within("M's plug-in hangs", began)     # every column is as the row says, a second after `began` at most
"""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from PIL import Image

from conftest import ROOT, wait_until
from counts import metric
from plugin_models import model, repository
from rawhttp import H1, H2, SERVICE, message

pytestmark = pytest.mark.timing
IO = [("INPUT0", "FP32", [1])]
POLL = ("--model-control-mode", "poll", "--repository-poll-secs", "100ms", "--repository-quiet", "200ms")
QUIET_S = 0.9  # of POLL, at most: files at rest, and the looks around that
BODY = json.dumps({"inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": [1, 1], "data": [7]}]})


def table():
    text = (ROOT / "docs" / "health.md").read_text().split("## What is said when")[1].split("\n## ")[0]
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")]
    return {r[0]: [int(c) for c in r[1:5]] for r in rows if re.fullmatch(r"\d+", r[1])}


TABLE = table()


class Clients:
    """One connection for each way to ask, opened while the server took new ones."""

    def __init__(self, s):
        self.s, self.h1, self.h2 = s, [H1(s.http) for _ in range(6)], H2(s.grpc)

    def get(self, i, path):
        return self.h1[i].ask("GET", path)

    def health(self):
        return self.get(4, "/v2/health/models").json()

    def columns(self):
        self.h1[3].send(message("POST", "/v2/models/m/infer", BODY))
        return [self.get(0, "/v2/health/live").status, self.get(1, "/v2/health/ready").status,
                self.get(2, "/v2/models/m/ready").status, self.h1[3].response().status]

    def grpc(self):
        """The same without the request, as what HTTP says."""
        said = []
        for name, body in (("ServerLive", b""), ("ServerReady", b""), ("ModelReady", b"\n\x01m")):
            r = self.h2.reply(self.h2.grpc(SERVICE + name, body))
            said.append(r.grpc == 0 and r.body[5:] == b"\x08\x01")
        return said

    def entry(self):
        return next((m for m in self.health()["models"] if m["name"] == "m"), None)

    def trouble(self, what):
        text = self.get(5, "/metrics").body.decode()
        return int(re.search(rf'^naru_trouble{{what="{what}"}} (\d)$', text, re.M)[1])

    def within(self, row, since, limit_s=1.0):
        """Waits until everything is as the row says; no longer than the limit after `since`."""
        while (said := self.columns()) != TABLE[row]:
            assert time.monotonic() < since + limit_s, f"{row}: {said}, not {TABLE[row]}, after {limit_s} s"
            time.sleep(0.01)
        assert self.grpc() == [c == 200 for c in TABLE[row][:3]]

    def close(self):
        for c in self.h1 + [self.h2]:
            c.close()


def eventually(condition, since, limit_s=1.0, what="it"):
    while not condition():
        assert time.monotonic() < since + limit_s, f"{what} was not so within {limit_s} s"
        time.sleep(0.01)


@pytest.fixture
def start(server, tmp_path):
    made = []

    def run(*options, gallery=None, ready=True, **models):
        repo = repository(tmp_path / "repo", **models)
        own = () if gallery else ("--no-keep-gallery",)
        s = server("--io-threads", 2, *own, *options, models=[repo], gallery=gallery)
        made.append(Clients(s))
        if ready:
            made[-1].within("all is well", time.monotonic())
        return s, made[-1], repo

    yield run
    for c in made:
        c.close()


def test_loading(start):
    s, c, _ = start("--model-control-mode", "explicit", ready=False, m=model("delay", IO, batch=1, delay_us=1, load_us=1500000))
    loads = H1(s.http)
    began = time.monotonic()
    loads.send(message("POST", "/v2/repository/models/m/load", ""))
    c.within("M is being loaded", began)
    assert c.entry()["state"] == "LOADING" and not c.entry()["ready"]
    assert loads.response().status == 200
    c.within("all is well", time.monotonic())


def test_plugin_does_not_open(start):
    good = model("fault", IO, batch=1)
    s, c, repo = start(*POLL, m=good)
    (repo / "m" / "config.pbtxt").write_text(model("fault", IO, batch=1, fault="open_error"))
    time.sleep(QUIET_S)
    assert c.columns() == TABLE["all is well"], "what served before serves on"
    assert "does not open" in c.entry()["reason"]
    shutil.rmtree(repo / "m")
    c.within("M's folder is gone (poll mode)", time.monotonic(), QUIET_S + 1)
    repository(repo, m=model("fault", IO, batch=1, fault="open_error"))
    c.within("M's plug-in does not open it", time.monotonic(), QUIET_S + 1)
    assert c.entry()["state"] == "UNAVAILABLE" and "does not open" in c.entry()["reason"]
    (repo / "m" / "config.pbtxt").write_text(good)
    c.within("all is well", time.monotonic(), QUIET_S + 1)


def test_plugin_hangs(start):
    s, c, _ = start(m=model("delay", IO, batch=1, delay_us=1, deaf=1, **{"naru.watchdog_ms": 300}))
    with H1(s.http) as hangs:
        began = time.monotonic()
        hangs.send(message("POST", "/v2/models/m/infer", BODY[:-1] + ', "parameters": {"delay_us": 2500000}}'))
        c.within("M's plug-in hangs", began, 0.3 + 1)
        assert c.entry()["state"] == "UNAVAILABLE" and c.entry()["reason"].startswith("stuck: ")
        assert hangs.response().status == 200
        c.within("all is well", time.monotonic())


def test_model_gone(start):
    s, c, repo = start(*POLL, m=model("identity", IO, batch=1))
    os.rename(repo / "m", repo / ".m")
    c.within("M's folder is gone (poll mode)", time.monotonic(), QUIET_S + 1)
    assert c.entry() is None
    os.rename(repo / ".m", repo / "m")
    c.within("all is well", time.monotonic(), QUIET_S + 1)


@pytest.mark.parametrize("removed", [False, True])
def test_repository_gone(start, tmp_path, removed):
    """Its models serve on; another folder of the name is taken up."""
    s, c, repo = start(*POLL, m=model("identity", IO, batch=1))
    aside = tmp_path / "aside"
    os.rename(repo, aside)
    if removed:
        shutil.rmtree(aside)
    gone = time.monotonic()
    eventually(lambda: c.trouble("repository") == 1, gone, what="the trouble")
    c.within("the repository is gone (poll mode)", gone)
    assert "cannot be read" in c.health()["troubles"][0] and str(tmp_path) not in json.dumps(c.health())
    time.sleep(QUIET_S)
    assert c.columns() == TABLE["all is well"], "still, after some looks"
    if removed:
        repository(repo, m=model("identity", IO, batch=1), more=model("identity", IO, batch=1))
    else:
        os.rename(aside, repo)
    back = time.monotonic()
    eventually(lambda: c.health()["troubles"] == [], back, what="the end of it")
    c.within("all is well", back)
    if removed:
        eventually(lambda: any(m["name"] == "more" and m["ready"] for m in c.health()["models"]), back, QUIET_S + 1)


@pytest.fixture
def small_disk(tmp_path):
    """A folder, and a way to make it full: a file system of 256 KiB where one may be mounted, else one that may not be
    written to."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = os.geteuid() == 0 and subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k,mode=700", "tmpfs", folder],
                                                   capture_output=True).returncode == 0

    def fill(full):
        if not mounted:
            os.chmod(folder / "gallery", 0o500 if full else 0o700)
        elif full:
            with open(folder / "filler", "wb", buffering=0) as f:
                try:
                    while True:
                        f.write(bytes(4096))
                except OSError:
                    pass
        else:
            os.unlink(folder / "filler")

    yield folder / "gallery", fill
    if mounted:
        subprocess.run(["umount", "-l", folder], check=True)


def test_disk_full(start, small_disk):
    gallery, fill = small_disk
    s, c, _ = start(gallery=gallery, m=model("identity", IO, batch=1),
                    eyes=model("identity", [("INPUT0", "FP32", [3, 8, 8])], batch=1))
    png = io.BytesIO()
    Image.new("RGB", (8, 8), (1, 2, 3)).save(png, "PNG")

    def picture():
        with H1(s.http) as client:
            r = client.ask("POST", "/v2/models/eyes/predict?keep=1", png.getvalue())
        assert r.status == 200, r
        return "naru-gallery-id" in r.headers

    assert picture() and c.health()["troubles"] == []
    fill(True)
    assert not picture(), "it is answered, and not kept"
    full = time.monotonic()
    eventually(lambda: c.trouble("gallery") == 1, full, what="the trouble")
    c.within("the disk of the gallery is full", full)
    assert "not kept" in c.health()["troubles"][0]
    fill(False)
    room = time.monotonic()
    eventually(lambda: c.health()["troubles"] == [], room, what="the end of it")
    assert c.trouble("gallery") == 0
    c.within("all is well", room)
    assert picture()


def test_draining(start):
    s, c, _ = start(m=model("identity", IO, batch=1), slow=model("delay", IO, batch=1, delay_us=1500000))
    paths = ["/v2/health/live", "/v2/health/ready", "/v2/models/m/ready"]
    asks = H2(s.http)  # a connection that is idle ends; this one has a request under way beside what it asks
    x = asks.request("POST", "/v2/models/slow/infer", BODY.encode())
    wait_until(lambda: metric(s, "naru_batches_sealed_total", model="slow") >= 1, what="a run")
    s.signal(signal.SIGTERM)
    told = time.monotonic()
    said = []
    while not said or said[1] != 400:
        assert time.monotonic() < told + 1, said
        said = [asks.reply(asks.request("GET", p)).status for p in paths]
        said.append(asks.reply(asks.request("POST", "/v2/models/m/infer", BODY.encode())).status)
    assert said == TABLE["the server drains"]
    health = asks.reply(asks.request("GET", "/v2/health/models"))
    assert json.loads(health.body)["troubles"] == ["the server is draining"]
    assert asks.reply(x).status == 200
    asks.close()
    s.stop()


def test_every_row_has_a_test():
    source = Path(__file__).read_text()
    assert len(TABLE) == 8 and [row for row in TABLE if f'"{row}"' not in source] == []
