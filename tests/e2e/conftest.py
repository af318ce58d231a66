"""The real server, for tests that talk to it as strangers do.

`server(...)` starts build/naru (NARU_BINARY names another one) on free loopback ports, reads the
addresses from its banner, and at the end of the test sends SIGTERM and wants exit code 0.
`module_server` is the same with a server that lives for all tests of a file.

    def test_it(server):
        s = server()                                # examples/models
        s = server("--access-log", models=["m.onnx"])
        s.url, s.http, s.grpc, s.metrics            # "http://127.0.0.1:40123", ports
        s.stop()                                    # SIGTERM, wait, check; returns the exit code
"""
import os
import re
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
PICTURES = EXAMPLES / "pictures"
NARU = os.environ.get("NARU_BINARY", str(ROOT / "build" / "naru"))

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # of ONNX Runtime in Python, which some tests compare with

LISTENING = re.compile(r"^  (\S+):(\d+)  (.+)$")
READY = re.compile(r"^ready after \d+ ms$")


class Server:
    """A running `naru serve`. Lines of its standard output are in `banner`, its log in `log()`."""

    def __init__(self, arguments, folder, env, ready_s):
        self.folder = folder
        self.log_path = folder / "stderr.log"
        self.banner, self.ports = [], {}
        self._ready = threading.Event()
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen([NARU, "serve", *map(str, arguments)], stdin=subprocess.DEVNULL,
                                            stdout=subprocess.PIPE, stderr=log, text=True, env=env)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if not self._ready.wait(ready_s) or not READY.match(self.banner[-1] if self.banner else ""):
            self.kill()
            raise AssertionError(f"naru serve {' '.join(map(str, arguments))} was not ready within {ready_s} s "
                                 f"(exit code {self.process.returncode})\n" + "\n".join(self.banner) + self.log())
        one = self.ports.get("http, grpc, metrics")
        self.http = one or self.ports.get("http")
        self.grpc = one or self.ports.get("grpc")
        self.metrics = one or self.ports.get("metrics")
        self.url = f"http://127.0.0.1:{self.http}"

    def _read(self):
        for line in self.process.stdout:
            line = line.rstrip("\n")
            self.banner.append(line)
            found = LISTENING.match(line)
            if found:
                self.ports[found.group(3)] = int(found.group(2))
            if READY.match(line):
                self._ready.set()
        self._ready.set()

    @property
    def pid(self):
        return self.process.pid

    def log(self):
        return self.log_path.read_text(errors="replace")

    def signal(self, number):
        self.process.send_signal(number)

    def stop(self, limit_s=40, expect=0):
        """SIGTERM (unless it has ended), waits, checks the exit code; None accepts any."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"naru did not end within {limit_s} s of SIGTERM\n{self.log()}") from None
        self._reader.join(5)
        assert expect is None or code == expect, f"exit code {code}, expected {expect}\n{self.log()}"
        return code

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join(5)


def _factory(base):
    """A function that starts servers, and the list of those it started."""
    started = []

    def start(*arguments, models=None, ports=True, gallery=None, env=None, ready_s=60):
        """models: paths to serve, examples/models by default. ports False: no port options are
        added. gallery: a folder; one of the test's own by default. env: changes; None takes one out."""
        if not os.path.exists(NARU):
            pytest.fail(f"{NARU} is not built: run make")
        folder = base / f"server-{len(started)}"
        folder.mkdir()
        line = list(arguments)
        if ports:
            line += ["--http-port", 0, "--grpc-port", 0, "--metrics-port", 0]
        if not {"--no-keep-gallery", "--gallery"} & set(line):
            line += ["--gallery", gallery or folder / "gallery"]
        line += models if models is not None else [EXAMPLES / "models"]
        clean = {k: v for k, v in os.environ.items() if not k.startswith("NARU_")}
        own = {**clean, "XDG_STATE_HOME": str(folder), **(env or {})}
        s = Server(line, folder, {k: v for k, v in own.items() if v is not None}, ready_s)
        started.append(s)
        return s

    return start, started


def _serve(base):
    start, started = _factory(base)
    yield start
    trouble = []
    for s in started:
        try:
            if s.process.returncode is None:
                s.stop()
        except AssertionError as e:
            trouble.append(str(e))
    assert not trouble, "\n".join(trouble)


@pytest.fixture
def server(tmp_path):
    yield from _serve(tmp_path)


@pytest.fixture(scope="module")
def module_server(tmp_path_factory):
    yield from _serve(tmp_path_factory.mktemp("servers"))


def wait_until(condition, limit_s=10, every_s=0.02, what="it"):
    """Calls condition until it is true; returns its value."""
    end = time.monotonic() + limit_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"{what} did not happen within {limit_s} s"
        time.sleep(every_s)
