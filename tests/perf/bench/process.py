"""Processes on chosen cores, and what the kernel says about them. Ends only what it started."""
import os
import pathlib
import socket
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[3]
BUILD = ROOT / "build"
WORK = BUILD / "bench"
DEPS = ROOT / ".deps"

CORES = sorted(os.sched_getaffinity(0))
SERVER_CORE, CLIENT_CORE = CORES[0], CORES[-1]


class Unavailable(Exception):
    """A peer or a tool that this machine does not have; the text says why."""


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class on_cores:
    """What is started inside runs on these cores: children inherit the affinity."""

    def __init__(self, *cores):
        self.cores = set(cores) if cores else set(CORES)

    def __enter__(self):
        os.sched_setaffinity(0, self.cores)

    def __exit__(self, *_):
        os.sched_setaffinity(0, CORES)


class apart:
    """This process and what it starts inside are a control group that counts for nearly all of the processor, so
    that they compete with each other, and others on this machine hardly matter. Needs root; `why_not` says why
    it could not be."""

    KINDS = [(pathlib.Path("/sys/fs/cgroup/cpu"), "cpu.shares", "262144"),
             (pathlib.Path("/sys/fs/cgroup"), "cpu.weight", "10000")]

    def __enter__(self):
        self.group, self.why_not = None, "no control group of its own: the machine has none for the processor"
        for root, file, weight in self.KINDS:
            group = root / f"naru-bench-{os.getpid()}"
            try:
                if not (root / "cgroup.procs").exists():
                    continue
                if file == "cpu.weight":
                    (root / "cgroup.subtree_control").write_text("+cpu")
                group.mkdir()
                (group / file).write_text(weight)
                (group / "cgroup.procs").write_text(str(os.getpid()))
                self.root, self.group, self.why_not = root, group, None
                break
            except OSError as e:
                self.why_not = f"no control group of its own: {e}"
        return self

    def __exit__(self, *_):
        if self.group:
            (self.root / "cgroup.procs").write_text(str(os.getpid()))
            self.group.rmdir()


class busy:
    """Processes that compute all the time."""

    def __init__(self, n):
        self.n = n

    def __enter__(self):
        self.all = [start([sys.executable, "-c", "while True: pass"]) for _ in range(self.n)]

    def __exit__(self, *_):
        for one in self.all:
            one.kill()
            one.wait()


def clean_env(**more):
    env = {k: v for k, v in os.environ.items() if not k.startswith("NARU_")}
    return {**env, **{k: str(v) for k, v in more.items()}}


def start(command, cores=(), log=None, **options):
    with on_cores(*cores):
        with open(log or os.devnull, "ab") as out:
            return subprocess.Popen([str(c) for c in command], stdin=subprocess.DEVNULL,
                                    stdout=options.pop("stdout", out), stderr=out, **options)


def descendants(pid):
    """The process and all below it, found through /proc."""
    parents = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat") as f:
                    parents.setdefault(int(f.read().rpartition(")")[2].split()[1]), []).append(int(entry))
            except (OSError, IndexError):
                pass
    found, todo = [], [pid]
    while todo:
        found.append(todo.pop())
        todo += parents.get(found[-1], [])
    return found


def stop(process, limit_s=20):
    """SIGTERM to the process, then, by id, the end of whatever of its children outlived it."""
    if process is None or process.poll() is not None:
        return
    below = descendants(process.pid)[1:]
    started = {pid: start_time(pid) for pid in below}
    process.terminate()
    try:
        process.wait(limit_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pid in below:
        if started[pid] is not None and start_time(pid) == started[pid]:
            try:
                os.kill(pid, 9)
            except ProcessLookupError:
                pass


def start_time(pid):
    """With the id, names a process uniquely; None when it is gone or a zombie."""
    try:
        with open(f"/proc/{pid}/stat") as f:
            fields = f.read().rpartition(")")[2].split()
        return None if fields[0] == "Z" else fields[19]
    except OSError:
        return None


def cpu_ns(pids):
    """utime + stime of the processes in ns; threads that have ended are included."""
    return sum(time.clock_gettime_ns(((~pid) << 3) | 2) for pid in pids)


def status(pid, field):
    with open(f"/proc/{pid}/status") as f:
        for line in f:
            if line.startswith(field + ":"):
                return int(line.split()[1])
    raise KeyError(field)


def rss_mb(pids):
    return sum(status(pid, "VmRSS") for pid in pids) / 1000 * 1.024


def threads(pids):
    return sum(status(pid, "Threads") for pid in pids)


def ticks():
    """(stolen, all) ticks of the machine since it started: what the host gave to others, and the sum."""
    with open("/proc/stat") as f:
        fields = [int(word) for word in f.readline().split()[1:9]]
    return fields[7], sum(fields)
