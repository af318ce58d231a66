"""What one request costs in naru's own code may not grow by more than 3 % without anybody noticing:
instructions (callgrind), system calls (strace), allocations (a preloaded counter), copied bytes
(naru's own counters), for tiny JSON, binary and gRPC requests, one after the other on one connection
and 32 that become readable in one turn of the loop.

The counts are compared with tests/perf/baseline.json, one set per compiler. When a change is worth its
cost: scripts/perf-baseline, and say why in the commit. NARU_PERF_BUILDS=build,build-clang measures
other builds too.
"""
import os
import subprocess
import sys

import pytest

sys.path.insert(0, os.path.dirname(__file__))
from bench import counts, process, rows  # noqa: E402

FIGURES = ("instructions", "system calls", "allocations", "bytes copied")
BUILDS = os.environ.get("NARU_PERF_BUILDS", "build").split(",")
TOOL_OF = {"instructions": "Callgrind", "system calls": "Strace", "allocations": "Malloc", "bytes copied": "Plain"}
measured = {}


def counts_of(build):
    """Measured once for all tests of a build."""
    if build not in measured:
        folder = process.ROOT / build
        if not (folder / "naru").exists():
            measured[build] = None
        else:
            process.WORK.mkdir(parents=True, exist_ok=True)
            measured[build] = counts.measure_all(folder)
    return measured[build]


@pytest.mark.parametrize("figure", FIGURES)
@pytest.mark.parametrize("scenario", counts.SCENARIOS)
@pytest.mark.parametrize("build", BUILDS)
def test_cost(build, scenario, figure):
    result = counts_of(build)
    if result is None:
        pytest.skip(f"{build}/naru is not built")
    figures, reasons = result
    if figure not in figures[scenario]:
        pytest.skip(f"{figure} cannot be counted here: {reasons[TOOL_OF[figure]]}")
    compiler = counts.compiler(process.ROOT / build)
    baseline = counts.read_baseline().get(compiler)
    if baseline is None:
        if figure == "instructions":
            pytest.skip(f"no baseline for {compiler}; scripts/perf-baseline makes one")
        baseline = next(iter(counts.read_baseline().values()))  # other counts do not depend on the compiler
    value, limit = figures[scenario][figure], baseline[scenario][figure]
    assert not counts.worse(figure, value, limit), (
        f"{scenario}: {value:.2f} {figure} per request, the baseline of {compiler} is {limit:.2f} "
        f"({100 * (value / limit - 1) if limit else 100:+.1f} %); if it is worth it: scripts/perf-baseline")


@pytest.fixture(scope="module")
def context():
    """For rows of the bench that are gates as well: they measure build/ under the generator's load."""
    if not rows.LOAD.exists():
        pytest.skip(f"{rows.LOAD} is not built")
    if not (process.BUILD / "backends" / "naru-onnxruntime.so").exists():
        pytest.skip("the onnxruntime plug-in is not built")
    process.WORK.mkdir(parents=True, exist_ok=True)
    made = subprocess.run([sys.executable, process.ROOT / "tests" / "perf" / "make_models.py", process.WORK / "models"],
                          capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no models: {made.stderr.strip().splitlines()[-1]}")
    return rows.Context(1, 1.0, lambda text: None)


@pytest.mark.parametrize("case", rows.MALLOC_CASES)
def test_no_malloc_under_load(context, case):
    """Requests as they come from a busy client, on every loop: memory for them is there after the first."""
    try:
        per = rows.count_mallocs(context, *rows.MALLOC_CASES[case], requests=4096, tries=6)
    except process.Unavailable as e:
        pytest.skip(str(e))
    assert per.own + per.library < 0.001, per


@pytest.mark.parametrize("title, ratio", [("one tiny model", 0.85), ("33 tiny models", 0.9)])
def test_memory_beside_the_bare_runtime(context, title, ratio):
    """A server at work takes less than a process that holds ONNX Runtime and the sessions and nothing else.
    Beside it, because how much of a library counts as resident depends on the page cache (4 MB here)."""
    if not os.access("/proc/self/pagemap", os.R_OK):
        pytest.skip("without /proc/self/pagemap the code of loading is not unmapped")
    try:
        held = rows.tiny_memory(context, title, seconds=0.05)
    except process.Unavailable as e:
        pytest.skip(str(e))
    assert held.used <= ratio * held.bare, held
    assert held.used <= rows.TINY_MODELS[title][2], held
    assert held.threads <= 16, held


def test_a_regression_is_seen():
    assert counts.worse("instructions", 20700, 20000)
    assert not counts.worse("instructions", 20500, 20000)
    assert counts.worse("allocations", 0.02, 0)
    assert not counts.worse("allocations", 0.001, 0)
    assert counts.worse("system calls", 4.2, 4)
    assert counts.worse("bytes copied", 64, 0)


CALLGRIND = """version: 1
events: Ir

ob=(1) /somewhere/build/naru
fl=(1) a.c
fn=(1) first
10 100
+1 5
cob=(2) /lib/libc.so.6
cfn=(2) memcpy
calls=3 7
* 9000
ob=(2)
fn=(2)
1 9000

ob=(3) /somewhere/build/backends/naru-identity.so
fn=(3) execute
-2 7
ob=(1)
fn=(1)
12 1
totals: 9113
"""


def test_only_own_instructions_count(tmp_path):
    file = tmp_path / "out"
    file.write_text(CALLGRIND)
    assert counts.own_instructions(file) == {"first": 106, "execute": 7}
