"""A running server gives its sockets to a new process (docs/upgrade.md): nobody is refused, nothing is lost (L5).

The processes of one service are a Chain: the first is started by the fixture `server`, each next one by the one
before it or by --upgrade-from. What they log goes to one file.
"""

import array
import collections
import ctypes
import json
import os
import re
import signal
import socket
import struct
import subprocess
import threading
import time

import pytest

import conftest
from conftest import LISTENING, wait_until
from counts import SLOW, begun, one
from models import linear
from plugin_models import model, repository, slow
from rawhttp import H1, H2, SERVICE, WINDOW_UPDATE, ask, field, frame, infer_pb, message, prefixed

X = [("INPUT0", "FP32", [1])]
ANY_PORT = ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0")
libc = ctypes.CDLL(None, use_errno=True)


class Chain:
    """Successive processes of one service. `pid` is the one that serves."""

    def __init__(self, s):
        libc.prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: successors can be waited for
        self.s, self.pid, self.done = s, s.pid, 0

    def said(self, text):
        return [line for line in self.s.log().splitlines() if text in line]

    def begin(self):
        os.kill(self.pid, signal.SIGUSR2)

    def finish(self, pid=None):
        """The next upgrade has been done; the old process has ended well."""
        wait_until(lambda: len(self.said("another process serves")) > self.done, what="the new process")
        old, self.done = self.pid, self.done + 1
        self.pid = int(re.search(r"\bpid=(\d+)", self.said("another process serves")[-1]).group(1))
        assert pid in (None, self.pid)
        self.ended(old)
        return self.pid

    def upgrade(self):
        self.begin()
        return self.finish()

    def failed(self, reason):
        """The upgrade that was begun has failed, with this reason, and the old process is as it was."""
        before = getattr(self, "failures", 0)
        wait_until(lambda: len(self.said("this server goes on")) > before, what="a failed upgrade")
        self.failures = before + 1
        line = self.said("this server goes on")[-1]
        assert re.search(reason, line), line
        assert ask(self.s.http, "GET", "/v2/health/ready").status == 200
        assert os.path.exists(f"/proc/{self.pid}")

    def ended(self, pid, code=0):
        if pid == self.s.pid:
            self.s.told = True
            assert self.s.process.wait(60) == code
        else:
            end = time.monotonic() + 60
            while (found := os.waitpid(pid, os.WNOHANG)) == (0, 0):
                assert time.monotonic() < end, "the old process did not end"
                time.sleep(0.02)
            assert os.waitstatus_to_exitcode(found[1]) == code

    def stop(self):
        if self.pid != self.s.pid:
            os.kill(self.pid, signal.SIGTERM)
            self.ended(self.pid)
            self.pid = self.s.pid


@pytest.fixture
def chain(server, tmp_path):
    chains = []

    def start(*options, models=None, **kwargs):
        models = models or [repository(tmp_path / "repo", slow=slow(1000), m=model("identity", X))]
        chains.append(Chain(server("--no-keep-gallery", *options, models=models, **kwargs)))
        return chains[-1]

    yield start
    for c in chains:
        try:
            c.stop()
        except (OSError, AssertionError):
            pass  # the test has failed before
        if c.pid != c.s.pid:
            try:
                os.kill(c.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass


def take_from(chain, *options, models, expect=None, user=None):
    """A new process with --upgrade-from; what it wrote is appended to the service's log."""
    def become():
        if user is not None:
            os.setgroups([])
            os.setgid(user)
            os.setuid(user)

    with open(chain.s.log_path, "ab") as log:
        p = subprocess.Popen([conftest.NARU, "serve", "--no-keep-gallery", "--upgrade-from", str(chain.pid), *map(str, options),
                              *map(str, models)], stdout=subprocess.PIPE, stderr=log, text=True, preexec_fn=become)
    if expect is not None:
        assert p.wait(60) == expect, chain.s.end_of_log()
    return p


# --- the load -----------------------------------------------------------------------------------------------------


class Load:
    """Clients at a steady rate. Each request has a number of its own, which is its id and its only input; the answer
    must have it. A connection that says that it ends is replaced; one that ends otherwise is an error."""

    def __init__(self, s, rate):
        self.s, self.lock, self.stop = s, threading.Lock(), threading.Event()
        self.numbers, self.sent, self.wrong, self.again = iter(range(1, 1 << 24)), 0, [], 0
        self.answered = collections.Counter()
        kinds = [self.fresh_http, self.fresh_http, self.kept_http, self.kept_http, self.fresh_grpc, self.kept_grpc]
        self.period = len(kinds) / rate
        self.threads = [threading.Thread(target=self.run, args=(k, i)) for i, k in enumerate(kinds)]
        for t in self.threads:
            t.start()

    def run(self, kind, i):
        state = {"c": None}
        due = time.monotonic() + self.period * i / len(self.threads)
        while not self.stop.is_set() and len(self.wrong) < 5:
            time.sleep(max(0, due - time.monotonic()))
            due += self.period
            with self.lock:
                number = next(self.numbers)
                self.sent += 1
            try:
                kind(state, number)
                with self.lock:
                    self.answered[number] += 1
            except (OSError, AssertionError, TimeoutError) as e:
                self.wrong.append((kind.__name__, number, repr(e)))
                state["c"] = None

    @staticmethod
    def over_http(c, number):
        body = json.dumps({"id": f"r{number}", "inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": [1], "data": [number]}]})
        c.send(message("POST", "/v2/models/m/infer", body))
        r = c.response()
        assert r.status == 200 and r.json()["outputs"][0]["data"] == [number] and r.json()["id"] == f"r{number}", r
        return r.headers.get("connection") == "close"

    def fresh_http(self, state, number):
        with H1(self.s.http) as c:
            self.over_http(c, number)

    def kept_http(self, state, number):
        state["c"] = state["c"] or H1(self.s.http)
        if self.over_http(state["c"], number):
            assert state["c"].closed()
            state["c"] = None

    def over_grpc(self, c, number):
        """False: the connection took no more (GOAWAY), so the request was not even looked at."""
        x = c.grpc(SERVICE + "ModelInfer", infer_pb("m", X, raw=[struct.pack("<f", number)], request_id=f"r{number}"))
        r = c.reply(x)
        if r.headers is None and c.goaway and c.goaway[0] < x:
            return False
        assert r.grpc == 0 and r.payload.endswith(struct.pack("<f", number)), r
        return True

    def fresh_grpc(self, state, number):
        with H2(self.s.grpc) as c:
            while not self.over_grpc(c, number):
                self.again += 1
                c = H2(self.s.grpc)

    def kept_grpc(self, state, number):
        while True:
            if state["c"] is None or state["c"].goaway:
                state["c"] = H2(self.s.grpc)
                state["c"].send(frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 1 << 28)))
            if self.over_grpc(state["c"], number):
                return
            self.again += 1

    def end(self):
        self.stop.set()
        for t in self.threads:
            t.join(60)


def test_three_upgrades_under_load(chain):
    """500 requests a second on new and on kept connections, HTTP/1.1 and gRPC, while the service is replaced three
    times: none refused, none lost, none run twice."""
    c = chain("--access-log", "--log-level", "info")
    load = Load(c.s, 500)
    wait_until(lambda: load.sent > 200 or load.wrong, what="load")
    pids = [c.pid]
    for _ in range(3):
        pids.append(c.upgrade())
        goal = load.sent + 200
        wait_until(lambda: load.sent > goal or load.wrong, what="load after an upgrade")
    load.end()
    assert not load.wrong, load.wrong
    assert len(set(pids)) == 4
    assert load.sent == len(load.answered) > 800 and set(load.answered.values()) == {1}
    c.stop()
    ran = collections.Counter(re.findall(r"\bid=(r\d+) ", c.s.log()))
    assert len(ran) == load.sent and set(ran.values()) == {1}, [k for k, n in ran.items() if n != 1][:5]


def test_grpcio_and_tritonclient_notice_nothing(chain):
    """Libraries that other people wrote, on connections of their own management."""
    import numpy as np
    import tritonclient.grpc as grpc
    import tritonclient.http as http
    c = chain()
    clients = [(grpc, grpc.InferenceServerClient(f"127.0.0.1:{c.s.grpc}")), (http, http.InferenceServerClient(f"127.0.0.1:{c.s.http}"))]
    stop, wrong, counts = threading.Event(), [], [0, 0]

    def run(i):
        kind, client = clients[i]
        while not stop.is_set():
            counts[i] += 1
            x = kind.InferInput("INPUT0", [1], "FP32")
            x.set_data_from_numpy(np.array([counts[i]], np.float32))
            try:
                if client.infer("m", [x]).as_numpy("OUTPUT0")[0] != counts[i]:
                    wrong.append(counts[i])
            except Exception as e:  # noqa: BLE001 - whatever the library raises is what its user would see
                wrong.append(repr(e))

    def upgrade():
        for _ in range(2):
            goal = [n + 50 for n in counts]
            wait_until(lambda: all(n > g for n, g in zip(counts, goal)) or wrong, what="requests")
            c.upgrade()
        stop.set()

    helper = threading.Thread(target=upgrade)
    grpc_thread = threading.Thread(target=run, args=(0,))
    helper.start()
    grpc_thread.start()
    run(1)  # gevent's clients stay on the thread that made them
    helper.join(60)
    grpc_thread.join(60)
    assert not wrong and min(counts) > 100, (wrong[:3], counts)


# --- what runs ----------------------------------------------------------------------------------------------------


def test_the_old_process_answers_what_it_has(chain):
    c = chain("--io-threads", 2)
    old = c.pid
    stream_pb = infer_pb("slow", X, raw=[struct.pack("<f", 7)])
    with H1(c.s.http) as running, H1(c.s.http) as idle, H1(c.s.http) as silent, H2(c.s.grpc) as h2:
        assert idle.ask("GET", "/v2/health/ready").status == 200
        x = h2.grpc(SERVICE + "ModelStreamInfer", prefixed(stream_pb), raw=True, end=False)
        wait_until(lambda: begun(c.s) == 1, what="the stream's first execution")
        running.send(message("POST", SLOW, one(7, delay_us=1500000)))
        wait_until(lambda: begun(c.s) == 2, what="the execution")
        c.begin()
        wait_until(lambda: c.said("another process serves"), what="the new process")
        # The service is ready, whoever of the two is asked; whoever gets an answer is told to come anew.
        r = idle.ask("GET", "/v2/health/ready")
        assert r.status == 200 and r.headers["connection"] == "close" and idle.closed()
        r = silent.ask("GET", "/v2/health/ready")  # connected before, and asks only now
        assert r.status == 200 and r.headers["connection"] == "close" and silent.closed()
        assert ask(c.s.http, "GET", "/v2/health/ready").status == 200
        h2.body(x, prefixed(stream_pb), end=True)  # a stream goes on where it was
        r = h2.reply(x)
        assert r.grpc == 0 and r.body.count(struct.pack("<f", 7)) == 2
        h2.drain()
        assert h2.goaways[0] == (2**31 - 1, 0) and h2.goaways[-1] == (x, 0)
        r = running.response()
        assert r.status == 200 and r.headers["connection"] == "close" and r.json()["outputs"][0]["data"] == [7]
    c.finish()
    assert c.pid != old


def test_idle_connections_are_closed_after_a_while(chain):
    c = chain("--upgrade-linger", "300ms")
    with H1(c.s.http) as idle, H1(c.s.http) as silent:
        assert idle.ask("GET", "/v2").status == 200
        c.begin()
        assert idle.closed() and silent.closed()
    c.finish()


def descriptors(pid):
    """What is open, and how many of each."""
    found = collections.Counter()
    for n in os.listdir(f"/proc/{pid}/fd"):
        try:
            found[re.sub(r"\d+", "N", os.readlink(f"/proc/{pid}/fd/{n}"))] += 1
        except FileNotFoundError:
            pass
    return found


def test_descriptors_do_not_grow(chain):
    c = chain()
    wait_until(lambda: "anon_inode:[signalfd]" in descriptors(c.pid), what="a server that waits for signals")
    before = descriptors(c.pid)
    for _ in range(2):
        c.upgrade()
        wait_until(lambda: not descriptors(c.pid) - before, limit_s=10,
                   what=f"no more descriptors than {before}, but {descriptors(c.pid) - before} more,")


# --- when it does not work ----------------------------------------------------------------------------------------


def works(c, value=3):
    r = ask(c.s.http, "POST", "/v2/models/m/infer", json.dumps(
        {"inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": [1], "data": [value]}]}))
    return r.status == 200 and r.json()["outputs"][0]["data"] == [value]


def test_a_new_one_that_does_not_start_changes_nothing(chain, tmp_path, monkeypatch):
    """The program is replaced by what cannot serve; load goes on, and a good program takes over in the end."""
    binary = tmp_path / "bin" / "naru"
    binary.parent.mkdir()
    os.symlink(conftest.NARU, binary)
    real, config = conftest.NARU, tmp_path / "naru.yaml"
    monkeypatch.setattr(conftest, "NARU", str(binary))
    config.write_text("upgrade-timeout: 60s\n")
    repo = repository(tmp_path / "repo", m=model("identity", X))
    good = (repo / "m" / "config.pbtxt").read_text()
    c = chain("--config", config, models=[repo], env={"NARU_BACKEND_DIRECTORY": os.path.join(os.path.dirname(real), "backends")})
    load = Load(c.s, 100)

    def script(text):
        binary.unlink()
        binary.write_text("#!/bin/sh\n" + text + "\n")
        binary.chmod(0o755)

    for text, reason in (("exit 3", "exit code 3"), ("kill -9 $$", "signal 9 .KILL"), ("kill -SEGV $$", "signal 11 .SEGV")):
        script(text)
        c.begin()
        c.failed(reason)
    binary.chmod(0o644)
    c.begin()
    c.failed("cannot start .*Permission denied")
    binary.unlink()
    c.begin()
    c.failed("cannot start .*No such file")
    os.symlink(real, binary)
    config.write_text("no-such-option: 1\n")
    c.begin()
    c.failed("exit code 2")
    config.write_text("exit-on-error: true\n")
    repository(repo, broken="no_such_field: 1")
    c.begin()
    c.failed("1 of 2 models did not load .--exit-on-error")
    config.write_text("")
    (repo / "m" / "config.pbtxt").write_text("no_such_field: 2")
    c.begin()
    c.failed("model 'm' is served by process .* did not load here: .*no_such_field")
    load.end()
    assert not load.wrong and set(load.answered.values()) == {1} and len(load.answered) == load.sent
    assert not os.path.exists(f"/proc/{c.pid}/task/{c.pid}/children") or not open(f"/proc/{c.pid}/task/{c.pid}/children").read()
    (repo / "m" / "config.pbtxt").write_text(good)
    c.upgrade()
    assert works(c)


def test_a_new_one_that_hangs_is_ended(chain, tmp_path):
    """Its model warms up for an hour."""
    warmup = 'model_warmup [ { name: "w" inputs { key: "INPUT0" value { data_type: TYPE_FP32 dims: 1 zero_data: true } } } ]\n'
    repo = repository(tmp_path / "repo", m=model("identity", X))
    c = chain("--upgrade-timeout", "1s", models=[repo])
    repository(repo, late=model("delay", X, delay_us=3600000000, extra=warmup))
    c.begin()
    wait_until(lambda: c.said("upgrade begins"), what="the beginning")
    child = int(re.search(r"\bpid=(\d+)", c.said("upgrade begins")[-1]).group(1))
    c.begin()
    c.failed("another upgrade is under way")
    c.failed("--upgrade-timeout")
    assert not os.path.exists(f"/proc/{child}"), "ended, and waited for"
    assert works(c)


def test_sigterm_in_between_ends_both(chain, tmp_path):
    warmup = 'model_warmup [ { name: "w" inputs { key: "INPUT0" value { data_type: TYPE_FP32 dims: 1 zero_data: true } } } ]\n'
    repo = repository(tmp_path / "repo", m=model("identity", X))
    c = chain(models=[repo])
    repository(repo, late=model("delay", X, delay_us=3600000000, extra=warmup))
    c.begin()
    wait_until(lambda: c.said("upgrade begins"), what="the beginning")
    child = int(re.search(r"\bpid=(\d+)", c.said("upgrade begins")[-1]).group(1))
    c.s.stop()
    wait_until(lambda: not os.path.exists(f"/proc/{child}"), what="the end of the new one")


def test_the_old_one_dies_in_between(chain, tmp_path):
    """The sockets are open in the new process: it serves, and who connected meanwhile has waited."""
    warmup = 'model_warmup [ { name: "w" inputs { key: "INPUT0" value { data_type: TYPE_FP32 dims: 1 zero_data: true } } } ]\n'
    repo = repository(tmp_path / "repo", m=model("identity", X))
    c = chain(models=[repo])
    repository(repo, late=model("delay", X, delay_us=2000000, extra=warmup))
    c.begin()
    # The one that waits for its models has the sockets when it has read them: give it until its first load.
    child = int(re.search(r"\bpid=(\d+)", wait_until(lambda: c.said("upgrade begins"), what="the beginning")[-1]).group(1))
    wait_until(lambda: len(os.listdir(f"/proc/{child}/task")) > 2, what="its threads, which start behind that")
    c.s.kill()
    assert works(c), "a request that came while nobody listened is answered in the end"
    c.pid = child


def test_not_while_models_are_loaded(chain, tmp_path):
    repo = repository(tmp_path / "repo", m=model("identity", X))
    first = chain(models=[repo])
    warmup = 'model_warmup [ { name: "w" inputs { key: "INPUT0" value { data_type: TYPE_FP32 dims: 1 zero_data: true } } } ]\n'
    late = repository(tmp_path / "late", late=model("delay", X, delay_us=3600000000, extra=warmup))
    with open(tmp_path / "log", "wb") as log, subprocess.Popen([conftest.NARU, "serve", "--no-keep-gallery", *ANY_PORT, str(late)],
                                                               stdout=subprocess.DEVNULL, stderr=log) as p:
        wait_until(lambda: len(os.listdir(f"/proc/{p.pid}/task")) > 2, what="a server that loads")
        p.send_signal(signal.SIGUSR2)
        wait_until(lambda: "models are still being loaded" in (tmp_path / "log").read_text(), what="its refusal")
        first.pid, kept = p.pid, first.pid
        try:
            take_from(first, *ANY_PORT, models=[repo], expect=1)
            assert first.said(f"process {p.pid} goes on serving: models are still being loaded")
        finally:
            first.pid = kept
            p.kill()


# --- from outside -------------------------------------------------------------------------------------------------


def ports_of(p):
    ports = {}
    for line in p.stdout:
        found = LISTENING.match(line.rstrip("\n"))
        if found:
            ports[found.group(3)] = int(found.group(2))
        if line.startswith("ready after"):
            break
    return ports


def test_upgrade_from_with_another_command_line(chain, tmp_path):
    """Ports that both want are handed over, others opened; what is not wanted any more is closed with the old one."""
    repo = repository(tmp_path / "repo", m=model("identity", X))
    c = chain(models=[repo])
    with socket.create_server(("127.0.0.1", 0)) as free:
        extra = free.getsockname()[1]
    p = take_from(c, "--http-port", c.s.http, "--grpc-port", extra, "--metrics-port", c.s.metrics, models=[repo])
    assert ports_of(p) == {"http": c.s.http, "grpc": extra, "metrics": c.s.metrics}
    c.finish(p.pid)
    assert works(c) and ask(extra, "GET", "/v2").status == 200
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", c.s.grpc), 5).close()
    p.terminate()
    assert p.wait(60) == 0
    c.pid = c.s.pid


def test_upgrade_of_an_upgrade_from(chain, tmp_path):
    """SIGUSR2 to a process whose own command line says --upgrade-from: the successor takes over from it, not from
    the one of long ago."""
    repo = repository(tmp_path / "repo", m=model("identity", X))
    c = chain(models=[repo])
    p = take_from(c, *ANY_PORT, models=[repo])
    assert ports_of(p)["http"] == c.s.http
    c.finish(p.pid)
    c.begin()
    wait_until(lambda: len(c.said("another process serves")) == 2, what="the second upgrade")
    assert p.wait(60) == 0
    c.pid = int(re.search(r"\bpid=(\d+)", c.said("another process serves")[-1]).group(1))
    assert works(c)


@pytest.mark.parametrize("whom,reason", [("nobody", "there is no process"), ("python", "is no naru server")])
def test_nobody_to_take_over_from(chain, tmp_path, whom, reason):
    """A process that is not naru would die of the signal: it is not sent."""
    c = chain()
    with subprocess.Popen(["sleep", "1000"]) as p:
        if whom == "nobody":
            p.kill()
            p.wait()
        c.pid, kept = p.pid, c.pid
        try:
            take_from(c, *ANY_PORT, models=[tmp_path / "repo"], expect=1)
        finally:
            c.pid = kept
        assert c.said(reason)
        assert whom == "nobody" or p.poll() is None
        p.kill()


@pytest.mark.skipif(os.getuid() != 0, reason="needs another user's process")
def test_other_users_get_nothing(chain, tmp_path):
    c = chain()
    repo = repository(tmp_path / "other", m=model("identity", X))
    for folder in (repo, *repo.rglob("*"), *repo.parents[:2]):
        if folder.stat().st_uid == os.getuid() and folder.is_dir():
            folder.chmod(folder.stat().st_mode | 0o055)
    take_from(c, *ANY_PORT, models=[repo], expect=78, user=65534)
    assert c.said("is not this user's")
    # One who may signal (root here), on behalf of somebody who may not have the sockets.
    name = 0x1122334455667788
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:
        os.setuid(65534)
        door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        door.bind(b"\0naru-upgrade-%016x" % name)
        door.listen(1)
        os.write(tell, b"x")
        peer, _ = door.accept()
        got = peer.recv(100)
        os._exit(0 if got == b"" else 1)
    assert os.read(ready, 1) == b"x"
    info = array.array("i", [signal.SIGUSR2, 0, -1, 0, os.getpid(), 0] + [0] * 26)  # siginfo_t: signo, errno, SI_QUEUE, pid, uid
    struct.pack_into("=Q", info, 24, name)
    pidfd = os.pidfd_open(c.pid)
    assert libc.syscall(424, pidfd, signal.SIGUSR2, ctypes.c_char_p(info.tobytes()), 0) == 0  # pidfd_send_signal
    os.close(pidfd)
    c.failed("belongs to user 65534")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, "it was sent nothing"


# --- supervisors --------------------------------------------------------------------------------------------------


def test_what_systemd_is_told(chain, tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(tmp_path / "notify"))
        notify.settimeout(60)
        c = chain(env={"NOTIFY_SOCKET": str(tmp_path / "notify")})
        assert notify.recv(1000) == b"READY=1"
        old = c.pid
        new = c.upgrade()
        assert re.fullmatch(rb"RELOADING=1\nMONOTONIC_USEC=\d+", notify.recv(1000))
        rest = {notify.recv(1000), notify.recv(1000)}  # of two processes
        assert rest == {b"MAINPID=%d\nREADY=1" % new, b"READY=1"} and new != old
        (tmp_path / "repo" / "m" / "config.pbtxt").write_text("no_such_field: 1")
        c.begin()
        c.failed("no_such_field")
        assert notify.recv(1000).startswith(b"RELOADING=1") and notify.recv(1000) == b"READY=1"
        c.stop()
        assert notify.recv(1000) == b"STOPPING=1"


def activated(tmp_path, sockets, *options, names=None):
    """A server that gets these sockets as systemd gives them, from descriptor 3 on."""
    repo = tmp_path / "repo"
    if not repo.exists():
        repository(repo, m=model("identity", X))

    def place():
        high = [os.dup2(x.fileno(), 100 + i) for i, x in enumerate(sockets)]
        for i, fd in enumerate(high):
            os.dup2(fd, 3 + i, inheritable=True)

    script = f'LISTEN_PID=$$ LISTEN_FDS={len(sockets)} exec "$@"'
    env = {**os.environ, **({"LISTEN_FDNAMES": names} if names else {})}
    return subprocess.Popen(["sh", "-c", script, "sh", conftest.NARU, "serve", "--no-keep-gallery", *options, str(repo)],
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, preexec_fn=place, close_fds=False)


def test_socket_activation(tmp_path):
    """The sockets are the listeners, whatever the port options say; SIGUSR2 hands them on."""
    libc.prctl(36, 1, 0, 0, 0)
    with socket.create_server(("127.0.0.1", 0)) as a, socket.create_server(("127.0.0.1", 0)) as b:
        want = {"http": a.getsockname()[1], "http, grpc, metrics": b.getsockname()[1]}
        early = socket.create_connection(a.getsockname())  # the client that starts the service
        early.sendall(b"GET /v2 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        p = activated(tmp_path, [a, b], "--http-port", "1", names="http:other")
        assert ports_of(p) == want
        with early:
            early.settimeout(60)
            assert early.recv(12) == b"HTTP/1.1 200"
        env = open(f"/proc/{p.pid}/environ").read()
        assert "LISTEN_FDS=2" in env
        p.send_signal(signal.SIGUSR2)
        assert ports_of(p) == want, "the new process's banner"
        assert p.wait(60) == 0
        new = int(re.search(r"another process serves\" pid=(\d+)", p.stderr.readline() + p.stderr.readline() + p.stderr.readline()).group(1))
        assert "LISTEN_" not in open(f"/proc/{new}/environ").read()
        assert ask(a.getsockname()[1], "GET", "/v2").status == 200
        os.kill(new, signal.SIGTERM)
        assert os.waitpid(new, 0)[1] == 0
        p.stdout.close()
        p.stderr.close()


@pytest.mark.parametrize("kind,reason", [("remote", "can be reached from other machines"), ("udp", "no TCP socket that listens"),
                                         ("unix", "no TCP socket that listens"), ("quiet", "no TCP socket that listens")])
def test_sockets_that_are_not_taken(tmp_path, kind, reason):
    if kind == "remote":
        s = socket.create_server(("0.0.0.0", 0))
    elif kind == "unix":
        s = socket.socket(socket.AF_UNIX)
        s.bind(str(tmp_path / "socket"))
        s.listen()
    else:
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM)
        s.bind(("127.0.0.1", 0))
    with s:
        p = activated(tmp_path, [s])
        _, said = p.communicate(timeout=60)
        assert p.returncode in (1, 78) and reason in said, said


# --- what belongs to the service, not to the process --------------------------------------------------------------


def states(s):
    return {(m["name"], m.get("version")): m.get("state") for m in ask(s.http, "POST", "/v2/repository/index").json()}


def test_what_was_loaded_by_hand_is_loaded_again(chain, tmp_path):
    repo = repository(tmp_path / "repo", a=model("identity", X), b=model("identity", X), c=model("identity", X))
    c = chain("--model-control-mode", "explicit", "--load-model", "a", models=[repo])
    for name, what in (("b", "load"), ("c", "load"), ("c", "unload")):
        assert ask(c.s.http, "POST", f"/v2/repository/models/{name}/{what}").status == 200
    c.upgrade()
    assert {k[0] for k, v in states(c.s).items() if v == "READY"} == {"a", "b"}
    (repo / "b").rename(tmp_path / "away")
    c.begin()
    c.failed(r'there is no model ."b." to be loaded')
    assert {k[0] for k, v in states(c.s).items() if v == "READY"} == {"a", "b"}
    assert ask(c.s.http, "POST", "/v2/repository/models/b/unload").status == 200
    c.upgrade()
    assert {k[0] for k, v in states(c.s).items() if v == "READY"} == {"a"}


def test_labels_that_were_moved_stay_where_they_are(chain, tmp_path):
    extra = ('version_policy { all {} } parameters { key: "naru.label.stable" value { string_value: "1" } }\n'
             'parameters { key: "naru.label.gone" value { string_value: "1" } }\n')
    repo = repository(tmp_path / "repo", m=model("identity", X, extra=extra), n=model("identity", X, extra=extra))
    (repo / "m" / "2").mkdir()
    c = chain(models=[repo])
    path = "/v2/repository/models/m/labels"
    r = ask(c.s.http, "POST", path, json.dumps({"labels": {"stable": "2", "next": "2", "gone": None},
                                                "traffic": {"stable": 3, "next": 1}, "shadow": {"next": 10}}))
    assert r.status == 200, r
    plain = lambda: {k: v for k, v in ask(c.s.http, "GET", path).json().items() if k in ("labels", "traffic", "shadow")}  # noqa: E731
    before = plain()
    assert "gone" not in json.dumps(before) and "stable" in json.dumps(before)
    config = (repo / "n" / "config.pbtxt")
    config.write_text(config.read_text().replace("naru.label.gone", "naru.label.new"))
    c.upgrade()
    assert plain() == before
    other = json.dumps(ask(c.s.http, "GET", "/v2/repository/models/n/labels").json())
    assert "new" in other and "gone" not in other, "what nobody moved is as the configuration says now"


def test_pictures_stay(server, tmp_path):
    """The gallery belongs to one process at a time: the new one has it when the old one has ended."""
    picture = (conftest.PICTURES / sorted(os.listdir(conftest.PICTURES))[0])
    repo = repository(tmp_path / "repo", pic=model("identity", [("INPUT0", "UINT8", [3, -1, -1])], naru__output="image", naru__output__scale=1))
    c = Chain(server("--gallery", tmp_path / "gallery", models=[repo]))
    keep = lambda: ask(c.s.http, "POST", "/v2/models/pic/predict", picture.read_bytes()).status  # noqa: E731
    shown = lambda: len(ask(c.s.http, "GET", "/naru/gallery").json()["entries"])  # noqa: E731
    try:
        assert keep() == 200
        n = shown()
        c.upgrade()
        assert shown() == n
        assert keep() == 200 and shown() == 2 * n
    finally:
        c.stop()
