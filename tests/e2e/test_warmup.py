"""model_warmup: on every instance before READY, from zeros, random values or files; a failure fails the load."""

import json
import struct
import time

import pytest

from models import linear
from plugin_models import model, repository
from rawhttp import H1

X = [("INPUT0", "FP32", [2])]


def ask(s, method, path, body=""):
    with H1(s.http) as c:
        return c.ask(method, path, body)


def warm(data, name="w", batch=0, count=0, dims="[ 2 ]", dtype="FP32", key="INPUT0"):
    return (f'model_warmup {{ name: "{name}" batch_size: {batch} count: {count} inputs {{ key: "{key}" value {{ '
            f'data_type: TYPE_{dtype} dims: {dims} {data} }} }} }}\n')


def took(s, body):
    begin = time.monotonic()
    assert ask(s, "POST", "/v2/models/m/infer", body).status == 200
    return time.monotonic() - begin


def reason(s, name="m"):
    for m in ask(s, "POST", "/v2/repository/index").json():
        if m["name"] == name:
            return m["state"], m.get("reason", "")


@pytest.mark.parametrize("data", ["zero_data: true", "random_data: true", 'input_data_file: "x"'])
@pytest.mark.parametrize("batch", [0, 4])
def test_data(server, tmp_path, data, batch):
    repo = repository(tmp_path / "repo", m=model("identity", X, batch=batch) + warm(data, batch=batch, count=3))
    (repo / "m/warmup").mkdir()
    (repo / "m/warmup/x").write_bytes(struct.pack("<2f", 1, 2))
    s = server("--no-keep-gallery", models=[repo])
    assert reason(s) == ("READY", "")
    stats = ask(s, "GET", "/v2/models/m/stats").json()["model_stats"][0]
    assert stats["inference_count"] == 0, "warm-up is no traffic"


@pytest.mark.parametrize("dtype", ["BOOL", "UINT8", "INT8", "UINT16", "INT32", "UINT64", "INT64", "FP16", "BF16",
                                   "FP64", "STRING"])
def test_datatypes(server, tmp_path, dtype):
    spec = [("INPUT0", "BYTES" if dtype == "STRING" else dtype, [2])]
    repo = repository(tmp_path / "repo", m=model("identity", spec, batch=2) +
                      warm("random_data: true", batch=2, dtype=dtype) + warm("zero_data: true", batch=1, dtype=dtype))
    assert reason(server("--no-keep-gallery", models=[repo])) == ("READY", "")


@pytest.mark.parametrize("data,why", [
    ('input_data_file: "none"', "cannot open 'warmup/none'"), ('input_data_file: "short"', "has 3 bytes, a row has 8"),
    ('input_data_file: "../config.pbtxt"', "contains '..'"), ('input_data_file: "/etc/passwd"', "input_data_file"),
])
def test_bad_files_fail_the_load(server, tmp_path, data, why):
    repo = repository(tmp_path / "repo", m=model("identity", X) + warm(data))
    (repo / "m/warmup").mkdir()
    (repo / "m/warmup/short").write_bytes(b"123")
    state, text = reason(server("--no-keep-gallery", models=[repo]))
    assert state == "UNAVAILABLE" and 'model_warmup "w"' in text and why in text, text


def test_too_large(server, tmp_path):
    spec = [("INPUT0", "FP32", [-1, -1])]
    repo = repository(tmp_path / "repo", m=model("identity", spec) +
                      warm("zero_data: true", dims="[ 2000000, 2000000 ]"))
    state, text = reason(server("--no-keep-gallery", models=[repo]))
    assert state == "UNAVAILABLE" and "bytes" in text, text


@pytest.mark.parametrize("fault,ready", [("execute_error", False), ("async", True), ("none", True),
                                         ("bad_status", False)])
def test_execution(server, tmp_path, fault, ready):
    """A run that fails fails the load, and the text is the plug-in's; one that answers later is waited for."""
    repo = repository(tmp_path / "repo", m=model("fault", X, fault=fault, fault_delay_us=50000) +
                      warm("zero_data: true", count=2))
    s = server("--no-keep-gallery", models=[repo])
    state, text = reason(s)
    assert (state == "READY") == ready, text
    assert ready or 'model_warmup "w"' in text, text
    if ready:
        body = json.dumps({"inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": [2], "data": [7, 8]}]})
        assert ask(s, "POST", "/v2/models/m/infer", body).json()["outputs"][0]["data"] == [7, 8]


def test_every_instance(server, tmp_path):
    """The plug-in counts requests of all instances: two instances, three runs each."""
    text = model("delay", X, after_requests=6, spin_us=0, delay_us_after=300000) + \
        "instance_group { count: 2 }\n" + warm("zero_data: true", count=3)
    s = server("--no-keep-gallery", models=[repository(tmp_path / "repo", m=text)])
    body = json.dumps({"inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": [2], "data": [7, 8]}]})
    assert took(s, body) > 0.25, "the seventh request of the model is the first of a client"


@pytest.mark.parametrize("option,slow", [("--warm-up", False), ("--no-warm-up", True)])
def test_without_configuration(server, tmp_path, option, slow):
    """A model whose first run takes long is run before it serves, without being told to."""
    text = model("delay", X, batch=4, after_requests=1, delay_us=2000000, delay_us_after=1)
    s = server("--no-keep-gallery", option, models=[repository(tmp_path / "repo", m=text)])
    body = json.dumps({"inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": [1, 2], "data": [7, 8]}]})
    assert (took(s, body) > 1.9) == slow


def test_onnx_with_file(server, tmp_path):
    repo = tmp_path / "repo"
    linear(repo, "m", config="max_batch_size: 8\n" + warm('input_data_file: "x"', batch=8, dims="[ 16 ]", key="X"))
    (repo / "m/warmup").mkdir()
    (repo / "m/warmup/x").write_bytes(struct.pack("<16f", *range(16)))
    assert reason(server("--no-keep-gallery", models=[repo])) == ("READY", "")
