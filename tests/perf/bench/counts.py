"""Counts that do not depend on how busy the machine is: allocations, by caller, of a running server."""
import struct
from dataclasses import dataclass

from . import process, servers
from .process import BUILD, WORK


@dataclass
class Mallocs:
    """Calls of malloc, calloc, realloc and the aligned ones (see malloc_count.c)."""
    own: float
    library: float
    runtime: float
    freed: float


def read_mallocs(path):
    return Mallocs(*struct.unpack("<4Q", path.read_bytes()[:32]))


class MallocServer(servers.Naru):
    """naru with the counter preloaded."""

    def __init__(self, repository, flags=()):
        library = BUILD / "tests" / "perf" / "malloc_count.so"
        if not library.exists():
            raise process.Unavailable(f"{library} is not built")
        self.counts_at = WORK / "malloc.counts"
        self.counts_at.unlink(missing_ok=True)
        super().__init__(repository, cores=(), name="naru-mallocs", flags=flags,
                         env={"LD_PRELOAD": library, "NARU_MALLOC_COUNT": self.counts_at})

    def mallocs(self):
        return read_mallocs(self.counts_at)


def mallocs_of(server, send, n):
    """Per request: send(n) and send(3n) do the same around their requests, so what differs is 2n requests."""
    spent = []
    for times in (1, 3):
        before = server.mallocs()
        send(server, times * n)
        after = server.mallocs()
        spent.append([b - a for a, b in zip(vars(before).values(), vars(after).values())])
    return Mallocs(*(max(0, b - a) / (2 * n) for a, b in zip(*spent)))


def mallocs_per_request(repository, send, n=4096):
    with MallocServer(repository) as server:
        for _ in range(3):  # pools of every loop are filled, placement is proven
            send(server, n)
        return mallocs_of(server, send, n)
