"""Triton's perf_analyzer against add_sub, unmodified, over both protocols.

It reads metadata, configuration and statistics with unchecked JSON access and ends with an error when
a field is missing or its counts disagree, so a run that prints figures is a test of all of these.
"""

import csv
import subprocess

import pytest

from conftest import ROOT

TOOL = ROOT / ".deps" / "perf_analyzer" / "perf_analyzer"
pytestmark = pytest.mark.skipif(not TOOL.exists(), reason="perf_analyzer does not run here (see scripts/setup)")


@pytest.fixture(scope="module")
def running(module_server):
    return module_server("--no-keep-gallery")


STREAMS = [pytest.param("grpc", more, id="grpc" + more[-1]) for more in (["--async"], ["--streaming"])]


@pytest.mark.parametrize("protocol, more", STREAMS + [
    pytest.param(protocol, more, id=f"{protocol}-{more[-1] if more else 'plain'}")
    for protocol in ("http", "grpc") for more in ([], ["-b", "4"], ["--input-tensor-format", "json"])
    if (protocol, more[-1:]) != ("grpc", ["json"])])  # gRPC has no JSON form
def test_measures_add_sub(running, tmp_path, protocol, more):
    table = tmp_path / "out.csv"
    port = running.http if protocol == "http" else running.grpc
    done = subprocess.run(
        [TOOL, "-m", "add_sub", "-u", f"127.0.0.1:{port}", "-i", protocol, "--concurrency-range", "2",
         "--measurement-mode", "count_windows", "--measurement-request-count", "200", "--max-trials", "6",
         "--stability-percentage", "999", "-f", table, *more],
        capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    row = next(csv.DictReader(table.open()))
    assert row["Concurrency"] == "2"
    assert float(row["Inferences/Second"]) > 0
    assert int(row["Server Compute Infer"]) >= 0 and int(row["p99 latency"]) > 0
