"""REST and gRPC are one server: the same bad request gets the same class of error through both."""

import json
import struct
from contextlib import nullcontext

import pytest

from counts import Held
from plugin_models import model, repository, slow
from rawhttp import DEADLINE, EXHAUSTED, H2, INVALID, NOT_FOUND, SERVICE, UNAVAILABLE, UNIMPLEMENTED, ask, field, infer_pb

# HTTP status → gRPC codes of the same class
SAME = {200: {0}, 400: {INVALID, 9}, 404: {NOT_FOUND}, 413: {EXHAUSTED}, 501: {UNIMPLEMENTED}, 503: {UNAVAILABLE},
        504: {DEADLINE}}
FOUR = struct.pack("<4f", 1, 2, 3, 4)
ONE = struct.pack("<i", 1)


@pytest.fixture(scope="module")
def one(module_server, tmp_path_factory):
    repo = repository(
        tmp_path_factory.mktemp("repo"),
        id=model("identity", [("INPUT0", "FP32", [4])], batch=8),
        open=model("identity", [("INPUT0", "FP32", [-1])], batch=8),
        deep=model("identity", [("INPUT0", "FP32", [-1] * 15)]),
        two=model("identity", [("INPUT0", "INT32", [1]), ("INPUT1", "INT32", [1])]),
        text=model("identity", [("INPUT0", "BYTES", [-1])]),
        small=model("identity", [("INPUT0", "UINT8", [-1])]),
        fails=model("fault", [("INPUT0", "FP32", [1])], fault="open_error"),
        slow=slow(1000, extra="dynamic_batching { default_queue_policy { allow_timeout_override: true } }\n", batch=1))
    return module_server("--io-threads", 1, "--no-keep-gallery", "--max-body", "1MiB", models=[repo])


def case(target, *inputs, outputs=(), params=(), version="", raw=None, classes=None):
    """One request in both forms. inputs: (name, datatype, shape, data as a list, its raw bytes)."""
    tensors = [{"name": n, "datatype": t, "shape": shape, "data": data} for n, t, shape, data, _ in inputs]
    value = {"inputs": tensors}
    if outputs:
        value["outputs"] = [{"name": n, **({"parameters": {"classification": classes}} if classes is not None else {})}
                            for n in outputs]
    if params:
        value["parameters"] = dict(params)
    path = f"/v2/models/{target}" + (f"/versions/{version}" if version else "") + "/infer"
    asked = [n if classes is None else field(1, n) + field(2, field(1, "classification") + field(2, field(2, classes)))
             for n in outputs]
    data = infer_pb(target, [(n, t, shape) for n, t, shape, _, _ in inputs], asked,
                    raw if raw is not None else [r for *_, r in inputs], version, params)
    return path, json.dumps(value), data


def x(name="INPUT0", datatype="FP32", shape=(1, 4), data=(1, 2, 3, 4), raw=FOUR):
    return name, datatype, list(shape), list(data), raw


def i32(name="INPUT0", shape=(1,), raw=ONE):
    return name, "INT32", list(shape), [1], raw


CASES = {
    "good": (200, case("id", x())),
    "good_output": (200, case("id", x(), outputs=["OUTPUT0"])),
    "good_classes": (200, case("id", x(), outputs=["OUTPUT0"], classes=2)),
    "unknown_model": (404, case("none", x())),
    "unknown_version": (404, case("id", x(), version="7")),
    "version_2_63": (400, case("id", x(), version=str(2**63))),
    "model_not_loaded": (404, case("fails", x())),
    "no_input": (400, case("id")),
    "unknown_input": (400, case("id", x("X"))),
    "extra_input": (400, case("id", x(), x("X"))),
    "input_twice": (400, case("two", i32(), i32())),
    "missing_input": (400, case("two", i32())),
    "wrong_type": (400, case("id", x(datatype="INT32"))),
    "unknown_type": (400, case("id", x(datatype="FLOAT"))),
    "no_type": (400, case("id", x(datatype=""))),
    "no_batch_dim": (400, case("id", x(shape=[4]))),
    "extra_dim": (400, case("id", x(shape=[1, 4, 1]))),
    "empty_shape": (400, case("id", x(shape=[]))),
    "zero_rows": (400, case("id", x(shape=[0, 4], data=[], raw=b""))),
    "nine_rows": (400, case("id", x(shape=[9, 4], data=[0] * 36, raw=FOUR * 9))),
    "wrong_dim": (400, case("id", x(shape=[2, 2]))),
    "negative_dim": (400, case("id", x(shape=[1, -4]))),
    "negative_batch": (400, case("id", x(shape=[-1, 4]))),
    "dim_2_31": (400, case("open", x(shape=[1, 2**31]))),
    "dim_2_62": (400, case("open", x(shape=[1, 2**62]))),
    "product_overflow": (400, case("deep", x(shape=[2**31 - 1] * 15))),
    "rank_17": (400, case("id", x(shape=[1] * 17))),
    "data_short": (400, case("id", x(data=[1, 2, 3], raw=FOUR[:12]))),
    "data_long": (400, case("id", x(data=[1] * 5, raw=FOUR + FOUR[:4]))),
    "data_empty": (400, case("id", x(data=[], raw=b""))),
    "rows_disagree": (400, case("two", i32(), i32("INPUT1", (2,), ONE * 2))),
    "unknown_output": (400, case("id", x(), outputs=["X"])),
    "output_twice": (400, case("id", x(), outputs=["OUTPUT0", "OUTPUT0"])),
    "classes_of_a_name": (400, case("id", x(), outputs=["X"], classes=1)),
    "param_reserved": (400, case("id", x(), params=[("triton_x", 1)])),
    "timeout_text": (400, case("id", x(), params=[("timeout", "soon")])),
    "timeout_negative": (400, case("id", x(), params=[("timeout", -1)])),
    "priority_text": (400, case("id", x(), params=[("priority", "high")])),
    "sequence_start_number": (400, case("id", x(), params=[("sequence_start", 1)])),
    "too_large": (413, case("open", x(shape=[1, 300000], data=[0] * 600000, raw=b"\0" * 1200000))),
    "model_timeout": (503, case("slow", x(shape=[1, 1], data=[1], raw=FOUR[:4]), params=[("timeout", 50000)])),
}


@pytest.mark.parametrize("name", CASES)
def test_same_class(one, name):
    status, (path, text, data) = CASES[name]
    with Held(one, shape=(1, 1)) if name == "model_timeout" else nullcontext():  # something must run for it to wait
        rest = ask(one.http, "POST", path, text)
        with H2(one.grpc) as c:
            r = c.reply(c.grpc(SERVICE + "ModelInfer", data))
    assert rest.status == status, rest
    assert r.grpc in SAME[status], r
    if status != 200:
        assert len(rest.error) > 10 and len(r.message) > 10


@pytest.mark.parametrize("path, method, data, status", [
    ("/v2/models/none", "ModelMetadata", field(1, "none"), 404),
    ("/v2/models/id", "ModelMetadata", field(1, "id"), 200),
    ("/v2/models/id/versions/9", "ModelMetadata", field(1, "id") + field(2, "9"), 404),
    ("/v2/models/none/config", "ModelConfig", field(1, "none"), 404),
    ("/v2/models/fails/config", "ModelConfig", field(1, "fails"), 404),
    ("/v2/models/none/stats", "ModelStatistics", field(1, "none"), 404),
    ("/v2/models/id/versions/9/stats", "ModelStatistics", field(1, "id") + field(2, "9"), 404),
    ("/v2/models/id/stats", "ModelStatistics", field(1, "id"), 200)])
def test_same_class_of_metadata(one, path, method, data, status):
    rest = ask(one.http, "GET", path)
    with H2(one.grpc) as c:
        r = c.reply(c.grpc(SERVICE + method, data))
    assert rest.status == status and r.grpc in SAME[status], (rest, r)
    if status != 200:
        assert rest.error == r.message


@pytest.mark.parametrize("name", ["none", "fails", "id"])
def test_ready_is_an_answer_over_grpc(one, name):
    """Not ready is an error status over REST and `ready: false` over gRPC, as Triton has it."""
    rest = ask(one.http, "GET", f"/v2/models/{name}/ready")
    with H2(one.grpc) as c:
        r = c.reply(c.grpc(SERVICE + "ModelReady", field(1, name)))
    assert r.grpc == 0 and (r.payload == b"\x08\x01") == (rest.status == 200) == (name == "id"), (rest, r)
