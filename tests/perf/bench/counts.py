"""Counts that do not depend on how busy the machine is: instructions, system calls, allocations and
copied bytes per request of a running server.

Each is the difference of two readings around a known number of requests, sent by a client whose bytes
never vary (wire.py), to a server with one I/O thread. What is counted is naru's own: instructions in
the program and its plug-ins, allocations that ONNX Runtime did not make.
"""
import collections
import json
import os
import pathlib
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass

from . import bodies, process, servers, wire
from .process import BUILD, WORK, Unavailable

CONFIG = """backend: "identity"
max_batch_size: 64 dynamic_batching {}
input [ { name: "X" data_type: TYPE_FP32 dims: [ 16 ] } ]
output [ { name: "Y" data_type: TYPE_FP32 dims: [ 16 ] } ]
"""
# One loop, and a model that stays on it however slow the tools make it.
FLAGS = ("--io-threads", 1, "--exec-threads", 1, "--inline-short", "60s", "--inline-slow", "600s",
         "--inline-budget", "60s", "--keep-alive", "1h", "--idle-trim", "0s")
CONNECTIONS = (1, 32)
WARM = 128  # rounds before counting: nghttp2 keeps the last 100 streams of a connection and reuses none before
CHUNKS, PAUSE_S = 3, 0.002
KINDS = ("json", "binary", "grpc")
SCENARIOS = [f"{kind}, {n} connection{'s' * (n > 1)}" for kind in KINDS for n in CONNECTIONS]


def own(name):
    """Objects and files that count as naru's: the program and its plug-ins."""
    return pathlib.Path(name).name.startswith("naru")


def repository():
    where = WORK / "echo" / Counted.model
    (where / "1").mkdir(parents=True, exist_ok=True)
    (where / "config.pbtxt").write_text(CONFIG)
    return where.parent


class Counted(servers.Naru):
    """naru under a tool. read() gives running totals."""

    tool = None  # what must be installed
    model = "echo"

    def __init__(self, build=BUILD, wrap=(), env=None, flags=FLAGS, models=None):
        if self.tool and not shutil.which(self.tool):
            raise Unavailable(f"{self.tool} is not installed")
        super().__init__(models or repository(), cores=(), name=f"naru-{type(self).__name__.lower()}", wrap=wrap,
                         env=env, flags=flags, ready_s=120, binary=build / "naru")
        self.pid = self.find()

    def find(self):
        """The server's own process, which may be a child of the tool."""
        return self.process.pid

    def pids(self):
        return [self.pid]

    def stop(self):
        if self.pid != self.process.pid and self.process.poll() is None:
            os.kill(self.pid, signal.SIGTERM)  # strace does not pass it on, and ends with its child
            self.process.wait(60)
        process.stop(self.process, 60)

    def read(self):
        raise NotImplementedError

    def per_request(self, readings, n):
        """The least of the chunks: what a busy machine does to a count (a turn split in two, a timer)
        only ever adds."""
        return {key: min(b[key] - a[key] for a, b in zip(readings, readings[1:])) / n for key in readings[0]}

    def metric(self, name, **labels):
        with urllib.request.urlopen(self.url("/metrics"), timeout=60) as answer:
            text = answer.read().decode()
        wanted = [f'{k}="{v}"' for k, v in labels.items()]
        return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines()
                   if re.match(rf"{name}[{{ ]", line) and all(w in line for w in wanted))


class Plain(Counted):
    """Bytes of tensors that were copied on their way to a model that wants its batch in one piece (ONNX
    Runtime does; identity takes pieces), and those used where they arrived."""

    model = "linear"

    def __init__(self, build=BUILD):
        if not (build / "backends" / "naru-onnxruntime.so").exists():
            raise Unavailable("the onnxruntime plug-in is not built")
        made = subprocess.run([sys.executable, process.ROOT / "tests" / "perf" / "make_models.py", WORK / "models"],
                              capture_output=True, text=True)
        if made.returncode:
            raise Unavailable(f"no models: {made.stderr.strip().splitlines()[-1]}")
        super().__init__(build, models=WORK / "models" / "tiny")

    def read(self):
        return {"bytes copied": self.metric("naru_input_bytes_total", how="copied"),
                "bytes in place": self.metric("naru_input_bytes_total", how="in_place")}


@dataclass
class Mallocs:
    """Calls of malloc, calloc, realloc and the aligned ones (see malloc_count.c)."""
    own: float
    library: float
    runtime: float
    freed: float


class Malloc(Counted):
    def __init__(self, build=BUILD, flags=FLAGS, models=None):
        library = build / "tests" / "perf" / "malloc_count.so"
        if not library.exists():
            raise Unavailable(f"{library} is not built")
        self.counts_at = WORK / "malloc.counts"
        self.counts_at.unlink(missing_ok=True)
        super().__init__(build, env={"LD_PRELOAD": library, "NARU_MALLOC_COUNT": self.counts_at}, flags=flags,
                         models=models)

    def mallocs(self):
        return Mallocs(*struct.unpack("<4Q", self.counts_at.read_bytes()[:32]))

    def read(self):
        m = self.mallocs()
        return {"allocations": m.own + m.library}

    def per_request(self, readings, n):
        """The mean: one in every hundred requests is one too many."""
        return {key: (readings[-1][key] - readings[0][key]) / n / (len(readings) - 1) for key in readings[0]}


class Strace(Counted):
    """System calls of all threads, read from strace's log as it grows."""

    tool = "strace"
    CALL = re.compile(rb"^\d+ +(\w+)\(", re.M)

    def __init__(self, build=BUILD):
        self.trace_at = WORK / "strace.log"
        self.trace_at.unlink(missing_ok=True)
        self.at, self.calls = 0, collections.Counter()
        super().__init__(build, wrap=("strace", "-f", "-qq", "-s", 0, "-o", self.trace_at))

    def find(self):
        below = process.descendants(self.process.pid)[1:]
        if not below:
            raise Unavailable("strace may not trace here")
        return below[0]

    def read(self):
        time.sleep(0.05)  # the last call of the turn
        with open(self.trace_at, "rb") as f:
            f.seek(self.at)
            text = f.read()
        whole = text.rfind(b"\n") + 1
        self.at += whole
        self.calls.update(name.decode() for name in self.CALL.findall(text[:whole]))
        return {"system calls": self.calls.total()}


def without_debug(build):
    """A copy of the program and its plug-ins with symbols but no debug information: older valgrinds end
    at the sight of what newer compilers write."""
    where = WORK / "stripped"
    shutil.rmtree(where, ignore_errors=True)
    (where / "backends").mkdir(parents=True)
    for file in [build / "naru", *sorted((build / "backends").glob("naru-*.so"))]:
        done = subprocess.run(["strip", "--strip-debug", "-o", where / file.relative_to(build), file],
                              capture_output=True, text=True)
        if done.returncode:
            raise Unavailable(f"strip: {done.stderr.strip()}")
    return where


class Callgrind(Counted):
    """Instructions, from a dump that callgrind writes on command."""

    tool = "valgrind"

    def __init__(self, build=BUILD):
        self.out = WORK / "callgrind.out"
        for old in WORK.glob("callgrind.out*"):
            old.unlink()
        self.functions = collections.Counter()
        super().__init__(without_debug(build), wrap=("valgrind", "-q", "--tool=callgrind", f"--callgrind-out-file={self.out}"))
        self.total, self.dumps = 0, 0

    def read(self):
        """A dump resets callgrind's counts, so the total is kept here."""
        time.sleep(0.05)
        done = subprocess.run(["callgrind_control", "-d", "counts", str(self.pid)], capture_output=True, text=True)
        self.dumps += 1
        file = pathlib.Path(f"{self.out}.{self.dumps}")
        end = time.monotonic() + 60
        while not file.exists() or b"\ntotals:" not in file.read_bytes():
            if time.monotonic() > end or done.returncode:
                raise Unavailable(f"callgrind_control does not reach the server: {done.stdout[-200:]}{done.stderr[-200:]}")
            time.sleep(0.01)
        self.functions = own_instructions(file)
        file.unlink()
        self.total += self.functions.total()
        return {"instructions": self.total}


NAME = re.compile(r"^(c?ob|c?fn)=\((\d+)\)(?: (.*))?$")


def own_instructions(file):
    """Self cost by function, of naru's own objects. The format: the manual's "Callgrind Format"."""
    names, costs = {}, collections.Counter()
    at_object = at_function = ""
    skip = False
    for line in file.read_text().splitlines():
        found = NAME.match(line)
        if found:
            kind, number, text = found.groups()
            key = (kind[-2:], number)
            if text is not None:
                names[key] = text
            if kind == "ob":
                at_object = names[key]
            elif kind == "fn":
                at_function = names[key]
        elif line.startswith("calls="):
            skip = True  # the next line is the callee's cost
        elif line and (line[0].isdigit() or line[0] in "+-*"):
            if not skip and own(at_object):
                costs[at_function] += int(line.split()[1])
            skip = False
    return costs


def connect(server, kind, n):
    values = bodies.numbers(16)
    if kind == "grpc":
        message = bodies.grpc_message(server.model, "X", (1, 16), values)
        return [wire.Grpc(server.grpc, "/inference.GRPCInferenceService/ModelInfer", message) for _ in range(n)]
    if kind == "json":
        fields, body = ["Content-Type: application/json"], bodies.json_tensor("X", (1, 16), values)
    else:
        fields, body = bodies.binary_tensor("X", (1, 16), values)
    return [wire.Http1(server.http, f"/v2/models/{server.model}/infer", fields, body) for _ in range(n)]


def measure(server, scenarios=None, rounds=(128, 12), on_scenario=None):
    """scenario -> figure -> count per request."""
    result = {}
    for kind in KINDS:
        for n, times in zip(CONNECTIONS, rounds):
            name = f"{kind}, {n} connection{'s' * (n > 1)}"
            if scenarios and name not in scenarios:
                continue
            connections = connect(server, kind, n)
            wire.exchange(server.pid, connections, WARM)
            if server.metric("naru_model_inline", model=server.model) != 1:
                raise Unavailable("the model does not run on the I/O thread")
            readings = [server.read()]
            for _ in range(CHUNKS):
                wire.exchange(server.pid, connections, times, PAUSE_S)
                readings.append(server.read())
            for c in connections:
                c.close()
            result[name] = server.per_request(readings, times * n)
            if on_scenario:
                on_scenario(name, server, times * n)
    return result


def measure_all(build=BUILD, say=lambda text: None):
    """Everything; what the machine lacks the tool for is missing. Returns (figures, reasons)."""
    figures, reasons = {name: {} for name in SCENARIOS}, {}
    for tool in (Plain, Malloc, Strace, Callgrind):
        say(tool.__name__.lower())
        try:
            with tool(build) as server:
                for name, counts in measure(server).items():
                    figures[name].update(counts)
        except Unavailable as e:
            reasons[tool.__name__] = str(e)
    return figures, reasons


# ---------------------------------------------------------------- baselines

BASELINE = process.ROOT / "tests" / "perf" / "baseline.json"


def compiler(build=BUILD):
    """"gcc 12 RelWithDebInfo": what a baseline of instructions holds for."""
    cache = (build / "CMakeCache.txt").read_text()
    path = re.search(r"^CMAKE_C_COMPILER:\w+=(.+)$", cache, re.M).group(1)
    kind = re.search(r"^CMAKE_BUILD_TYPE:\w+=(.*)$", cache, re.M).group(1)
    version = subprocess.run([path, "--version"], capture_output=True, text=True).stdout
    major = re.search(r"(\d+)\.\d+\.\d+", version).group(1)
    return f"{'clang' if 'clang' in version else 'gcc'} {major} {kind}"


def read_baseline():
    return json.loads(BASELINE.read_text()) if BASELINE.exists() else {}


ALLOWED = 1.03
SLACK = {"allocations": 0.01, "instructions": 20, "system calls": 0.02, "bytes copied": 0.5, "bytes in place": None}


def worse(figure, value, baseline):
    """True when a count exceeds its baseline by more than 3 % (and by more than its grain)."""
    slack = SLACK[figure]
    return slack is not None and value > max(baseline * ALLOWED, baseline + slack)


def mallocs_per_request(models, send, n=4096, tries=1):
    """Of any repository under the generator's load: send(server, n) and send(server, 3 n) do the same
    around their requests, so what differs is 2 n requests. Connections fall on the loops by chance, and a loop
    that gets more than ever before fills its pools: with more tries the best counts."""
    found = []
    with Malloc(flags=("--idle-trim", "0s"), models=models) as server:  # a busy machine makes pauses
        for _ in range(3):  # pools of every loop are filled, placement is proven
            send(server, n)
        while len(found) < tries and not any(m.own + m.library == 0 for m in found):
            spent = []
            for times in (1, 3):
                before = server.mallocs()
                send(server, times * n)
                after = server.mallocs()
                spent.append([b - a for a, b in zip(vars(before).values(), vars(after).values())])
            found.append(Mallocs(*(max(0, b - a) / (2 * n) for a, b in zip(*spent))))
    return min(found, key=lambda m: m.own + m.library)
