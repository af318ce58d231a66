"""The real server, for tests that talk to it as strangers do.

`server(...)` starts build/naru (NARU_BINARY names another one) on free loopback ports, reads the
addresses from its banner, and at the end of the test sends SIGTERM and wants exit code 0.
`module_server` is the same with a server that lives for all tests of a file.

    def test_it(server):
        s = server()                                # examples/models
        s = server("--access-log", models=["m.onnx"])
        s.url, s.http, s.grpc, s.metrics            # "http://127.0.0.1:40123", ports
        s.stop()                                    # SIGTERM, wait, check; returns the exit code

A server that ends without having been told to fails its test, whatever its exit code; the report of a
failed test says how each such server ended, with the end of its log.

Tests share their machine with others, so they wait for conditions (`wait_until`), never for a while, and
compare counts, not times. Where a time is what is promised, the test carries the marker `timing`: when
it fails, it is run again up to two times on fresh servers, and the summary names every test that needed
it, with its first failure. All other tests have one try.
"""
import os
import re
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
from _pytest.runner import runtestprotocol

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
PICTURES = EXAMPLES / "pictures"
NARU = os.environ.get("NARU_BINARY", str(ROOT / "build" / "naru"))

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # of ONNX Runtime in Python, which some tests compare with

LISTENING = re.compile(r"^  (\S+):(\d+)  (.+)$")
READY = re.compile(r"^ready after \d+ ms$")

# --- servers ------------------------------------------------------------------------------------

_running = []  # every Server that nobody has waited for yet


class Server:
    """A running `naru serve`. Lines of its standard output are in `banner`, its log in `log()`."""

    def __init__(self, arguments, folder, env, ready_s):
        self.folder = folder
        self.log_path = folder / "stderr.log"
        self.banner, self.ports, self.told = [], {}, False
        self._ready = threading.Event()
        with open(self.log_path, "ab") as log:  # other processes of the same service may add to it
            self.process = subprocess.Popen([NARU, "serve", *map(str, arguments)], stdin=subprocess.DEVNULL,
                                            stdout=subprocess.PIPE, stderr=log, text=True, env=env)
        _running.append(self)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if not self._ready.wait(ready_s) or not READY.match(self.banner[-1] if self.banner else ""):
            self.kill()
            raise AssertionError(f"naru serve {' '.join(map(str, arguments))} was not ready within {ready_s} s "
                                 f"({self.how_it_ended()})\n" + "\n".join(self.banner) + "\n" + self.end_of_log())
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

    def end_of_log(self, lines=40):
        return "\n".join(self.log().splitlines()[-lines:])

    def how_it_ended(self):
        code = self.process.poll()
        if code is None:
            return "it runs"
        return f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def gone(self):
        """It has ended, and not because a test told it to."""
        return self.process.poll() is not None and not self.told

    def signal(self, number):
        self.told = self.told or number in (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)
        self.process.send_signal(number)

    def stop(self, limit_s=40, expect=0):
        """SIGTERM (unless it has ended), waits, checks the exit code; None accepts any."""
        assert not self.gone(), f"naru ended by itself, {self.how_it_ended()}\n{self.end_of_log()}"
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
        try:
            code = self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"naru did not end within {limit_s} s of SIGTERM\n{self.end_of_log()}") from None
        self._over()
        assert expect is None or code == expect, f"{self.how_it_ended()}, expected {expect}\n{self.end_of_log()}"
        return code

    def kill(self):
        if self.process.poll() is None:
            self.told = True
            self.process.kill()
        self.process.wait()
        self._over()

    def _over(self):
        self._reader.join(5)
        if self in _running:
            _running.remove(self)


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
            if s in _running:
                s.stop()
        except AssertionError as e:
            s.kill()
            trouble.append(str(e))
    assert not trouble, "\n".join(trouble)


@pytest.fixture
def server(tmp_path):
    yield from _serve(tmp_path)


@pytest.fixture(scope="module")
def module_server(tmp_path_factory):
    yield from _serve(tmp_path_factory.mktemp("servers"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.failed:
        report.sections += [(f"server {s.pid} is gone: {s.how_it_ended()}", s.end_of_log()) for s in _running if s.gone()]
    return report


def wait_until(condition, limit_s=60, every_s=0.02, what="it"):
    """Calls condition until it is true; returns its value."""
    end = time.monotonic() + limit_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"{what} did not happen within {limit_s} s"
        time.sleep(every_s)


# --- tests about time ----------------------------------------------------------------------------

TRIES = 3
_retried = []  # lines of the summary


def pytest_configure(config):
    config.addinivalue_line("markers", "timing: promises a time; if it fails it is run again, up to "
                                       f"{TRIES - 1} times on fresh servers, and the summary tells")


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("timing"):
            assert "module_server" not in item.fixturenames, f"{item.nodeid}: the next try needs a fresh server"
            item.add_marker(pytest.mark.timeout(TRIES * 180))  # for all tries


def _in_short(report):
    text = getattr(getattr(report.longrepr, "reprcrash", None), "message", None) or report.longreprtext
    return " ".join(text.split())[:400]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item, nextitem):
    if item.get_closest_marker("timing") is None:
        return None  # pytest's own
    name = item.nodeid.rsplit("/", 1)[-1]
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    failures = []
    for n in range(1, TRIES + 1):
        reports = runtestprotocol(item, nextitem=nextitem, log=False)
        failed = [r for r in reports if r.failed]
        if not failed:
            break
        failures.append(_in_short(failed[0]))
    if failures and not failed:
        line = f"{name} passed at the {('2nd', '3rd')[n - 2]} try: first failure: {failures[0]}"
        _retried.append(line)
        for report in reports:  # where scripts/run-tests finds it
            report.user_properties.append(("timing", line))
    elif failures:
        failed[0].sections += [(f"try {i + 1} of {TRIES}", text) for i, text in enumerate(failures)]
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def pytest_terminal_summary(terminalreporter):
    if _retried:
        terminalreporter.section("tests about time that were tried again")
        for line in _retried:
            terminalreporter.line(f"timing: {line}")
