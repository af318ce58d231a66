"""Bad input of every kind: a clear error at once, and nobody else notices.

One server with one I/O thread, so that every attacker shares its thread with the healthy client.
After each test the healthy client's connection still answers, correctly, in the same process; at the
end of the file no connection is left and the memory is back.
"""

import json
import os
import struct
import time
import zlib

import pytest

from conftest import wait_until
from counts import metric
from plugin_models import model, repository, slow
from rawhttp import (CANCEL, EXHAUSTED, H1, H2, INTERNAL, INVALID, NOT_FOUND, SERVICE, UNIMPLEMENTED, ask, field, head,
                     infer_pb, literal, message, prefixed, varint)

INFER = "/v2/models/id/infer"
MODEL_INFER = SERVICE + "ModelInfer"
GOOD = '{"inputs":[{"name":"INPUT0","datatype":"FP32","shape":[1,4],"data":[1,2,3,4]}]}'
FLOATS = struct.pack("<4f", 1, 2, 3, 4)


def cpu_s(pid):
    """Time that all threads of a process computed."""
    total = 0
    for task in os.listdir(f"/proc/{pid}/task"):
        try:
            with open(f"/proc/{pid}/task/{task}/schedstat", encoding="ascii") as f:
                total += int(f.read().split()[0])
        except FileNotFoundError:  # it has ended meanwhile
            pass
    return total / 1e9


def resident(pid):
    with open(f"/proc/{pid}/statm", encoding="ascii") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGESIZE")


@pytest.fixture(scope="module")
def one(module_server, tmp_path_factory):
    picture = {"naru__output": "image", "naru__output__scale": 1}
    repo = repository(
        tmp_path_factory.mktemp("repo"),
        id=model("identity", [("INPUT0", "FP32", [4])], batch=8),
        open=model("identity", [("INPUT0", "FP32", [-1])], batch=8),
        deep=model("identity", [("INPUT0", "FP32", [-1] * 15)]),
        two=model("identity", [("INPUT0", "INT32", [2]), ("INPUT1", "INT32", [2])]),
        text=model("identity", [("INPUT0", "BYTES", [-1])]),
        small=model("identity", [("INPUT0", "UINT8", [-1])]),
        flag=model("identity", [("INPUT0", "BOOL", [-1])]),
        long=model("identity", [("INPUT0", "INT64", [-1])]),
        pic=model("identity", [("INPUT0", "UINT8", [3, -1, -1])], **picture),
        slow=slow(50000))
    s = module_server("--io-threads", 1, "--no-keep-gallery", "--access-log", models=[repo])
    with H1(s.http) as healthy:
        assert healthy.ask("POST", INFER, GOOD).status == 200
        s.healthy, s.start_bytes = healthy, None
        yield s
    wait_until(lambda: metric(s, "naru_http_connections") == 1, what="0 connections but the asking one")
    assert metric(s, "naru_buffer_bytes") < 16 << 20  # what batches keep for the next run
    with open(f"/proc/{s.pid}/maps", encoding="utf-8") as f:
        keeps_freed = "libasan" in f.read()  # AddressSanitizer holds on to what was freed
    assert keeps_freed or resident(s.pid) < s.start_bytes + (48 << 20), "memory of hostile requests is not given back"


@pytest.fixture(autouse=True)
def others_do_not_suffer(one):
    one.start_bytes = one.start_bytes or resident(one.pid)
    yield
    assert one.process.poll() is None, one.log()
    begin = time.monotonic()
    r = one.healthy.ask("POST", INFER, GOOD)
    assert r.status == 200 and r.json()["outputs"][0]["data"] == [1, 2, 3, 4]
    assert time.monotonic() - begin < 2


# --- HTTP/1.1 that two parsers could read differently (P3) ---------------------------------------

POST = "POST " + INFER + " HTTP/1.1\r\nHost: localhost\r\n"


def lines(*rows, body=""):
    return (POST + "".join(row + "\r\n" for row in rows) + "\r\n" + body).encode("latin-1")


CHUNKED = "Transfer-Encoding: chunked"
MALFORMED = {
    # lengths
    "cl_te": (lines("Content-Length: 3", CHUNKED, body="0\r\n\r\n"), 400),
    "te_cl": (lines(CHUNKED, "Content-Length: 3", body="0\r\n\r\n"), 400),
    "two_cl_differ": (lines("Content-Length: 3", "Content-Length: 4", body="abcd"), 400),
    "two_cl_agree": (lines("Content-Length: 3", "Content-Length: 3", body="abc"), 400),
    "cl_list": (lines("Content-Length: 3, 3", body="abc"), 400),
    "cl_plus": (lines("Content-Length: +3", body="abc"), 400),
    "cl_minus": (lines("Content-Length: -3", body="abc"), 400),
    "cl_hex": (lines("Content-Length: 0x3", body="abc"), 400),
    "cl_underscore": (lines("Content-Length: 1_0", body="abcdefghij"), 400),
    "cl_empty": (lines("Content-Length:", body=""), 400),
    "cl_space_inside": (lines("Content-Length: 1 0", body="abcdefghij"), 400),
    "cl_overflow": (lines("Content-Length: 18446744073709551616", body=""), 400),
    "cl_2_63": (lines("Content-Length: 9223372036854775808", body=""), 413),
    "te_http10": (f"POST {INFER} HTTP/1.0\r\nHost: localhost\r\n{CHUNKED}\r\n\r\n0\r\n\r\n".encode(), 400),
    "te_twice": (lines(CHUNKED, CHUNKED, body="0\r\n\r\n"), 400),
    "te_chunked_chunked": (lines("Transfer-Encoding: chunked, chunked", body="0\r\n\r\n"), 400),
    "te_chunked_first": (lines("Transfer-Encoding: chunked, identity", body="0\r\n\r\n"), 400),
    "te_quoted": (lines('Transfer-Encoding: "chunked"', body="0\r\n\r\n"), 400),
    "te_vt": (lines("Transfer-Encoding: \x0bchunked", body="0\r\n\r\n"), 400),
    "te_gzip": (lines("Transfer-Encoding: gzip, chunked", body="0\r\n\r\n"), 501),
    "te_unknown": (lines("Transfer-Encoding: xchunked", body="0\r\n\r\n"), 400),
    "te_space_before_colon": (lines("Transfer-Encoding : chunked", body="0\r\n\r\n"), 400),
    # chunks
    "chunk_hex_prefix": (lines(CHUNKED, body="0x3\r\nabc\r\n0\r\n\r\n"), 400),
    "chunk_plus": (lines(CHUNKED, body="+3\r\nabc\r\n0\r\n\r\n"), 400),
    "chunk_minus": (lines(CHUNKED, body="-1\r\nabc\r\n0\r\n\r\n"), 400),
    "chunk_underscore": (lines(CHUNKED, body="1_0\r\nabcdefghijklmnop\r\n0\r\n\r\n"), 400),
    "chunk_empty_size": (lines(CHUNKED, body="\r\nabc\r\n0\r\n\r\n"), 400),
    "chunk_space_size": (lines(CHUNKED, body=" 3\r\nabc\r\n0\r\n\r\n"), 400),
    "chunk_overflow": (lines(CHUNKED, body="FFFFFFFFFFFFFFFFF\r\nabc\r\n0\r\n\r\n"), 400),
    "chunk_too_long": (lines(CHUNKED, body="FFFFFFFFFFFFFFF0\r\nabc"), 413),
    "chunk_bare_lf": (lines(CHUNKED, body="3\nabc\n0\n\n"), 400),
    "chunk_bare_cr": (lines(CHUNKED, body="3\rabc\r\n0\r\n\r\n"), 400),
    "chunk_data_longer": (lines(CHUNKED, body="3\r\nabcd\r\n0\r\n\r\n"), 400),
    "chunk_no_crlf": (lines(CHUNKED, body="3\r\nabc0\r\n\r\n"), 400),
    "chunk_nul_size": (lines(CHUNKED, body="3\0\r\nabc\r\n0\r\n\r\n"), 400),
    "chunk_ext_nul": (lines(CHUNKED, body="3;a=\0\r\nabc\r\n0\r\n\r\n"), 400),
    "chunk_ext_lf": (lines(CHUNKED, body="3;a\nabc\r\n0\r\n\r\n"), 400),
    "trailer_no_colon": (lines(CHUNKED, body="0\r\nbad\r\n\r\n"), 400),
    "trailer_fold": (lines(CHUNKED, body="0\r\na: b\r\n c\r\n\r\n"), 400),
    # fields
    "obs_fold": (lines("X-A: b", " c", "Content-Length: 0"), 400),
    "leading_space": (b"GET /v2 HTTP/1.1\r\n Host: localhost\r\n\r\n", 400),
    "space_before_colon": (lines("Content-Length : 0"), 400),
    "tab_before_colon": (lines("Content-Length\t: 0"), 400),
    "no_colon": (lines("Content-Length 0"), 400),
    "empty_name": (lines(": x"), 400),
    "name_with_space": (lines("X A: b"), 400),
    "name_nul": (lines("X\0A: b"), 400),
    "name_utf8": (lines("X-\xe9: b"), 400),
    "value_nul": (lines("X-A: b\0c"), 400),
    "value_cr": (lines("X-A: b\rc"), 400),
    "value_lf": (lines("X-A: b\nc"), 400),
    "value_escape": (lines("X-A: b\x1b[2J"), 400),
    "no_host": (b"GET /v2 HTTP/1.1\r\n\r\n", 400),
    "two_hosts": (b"GET /v2 HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", 400),
    "host_space": (b"GET /v2 HTTP/1.1\r\nHost: local host\r\n\r\n", 400),
    "host_list": (b"GET /v2 HTTP/1.1\r\nHost: localhost, evil\r\n\r\n", 400),
    "host_path": (b"GET /v2 HTTP/1.1\r\nHost: localhost/evil\r\n\r\n", 400),
    "host_user": (b"GET /v2 HTTP/1.1\r\nHost: a@localhost\r\n\r\n", 400),
    "two_content_types": (lines("Content-Type: a/b", "Content-Type: a/c", "Content-Length: 0"), 400),
    "two_inference_lengths": (lines("Inference-Header-Content-Length: 1", "Inference-Header-Content-Length: 2",
                                    "Content-Length: 0"), 400),
    "bare_lf_lines": (b"GET /v2 HTTP/1.1\nHost: localhost\n\n", 400),
    "bare_lf_end": (b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\n", 400),
    "bare_cr_lines": (b"GET /v2 HTTP/1.1\rHost: localhost\r\r", 400),
    "expect_other": (lines("Expect: 200-ok", "Content-Length: 0"), 417),
    # request line
    "no_version": (b"GET /v2\r\n\r\n", 400),
    "version_1_32": (b"GET /v2 HTTP/1.32\r\nHost: localhost\r\n\r\n", 400),
    "version_lower": (b"GET /v2 http/1.1\r\nHost: localhost\r\n\r\n", 400),
    "version_2": (b"GET /v2 HTTP/2.0\r\nHost: localhost\r\n\r\n", {400, 505}),
    "version_9": (b"GET /v2 HTTP/9.9\r\nHost: localhost\r\n\r\n", {400, 505}),
    "two_spaces": (b"GET  /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    "tab": (b"GET\t/v2 HTTP/1.1\r\nHost: localhost\r\n\r\n", {400, 501}),
    "space_at_end": (b"GET /v2 HTTP/1.1 \r\nHost: localhost\r\n\r\n", 400),
    "leading_blank": (b" GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    "target_space": (b"GET /v2 x HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    "target_nul": (b"GET /v2\0 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    "target_no_slash": (b"GET v2 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    "target_fragment": (b"GET /v2#x HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    "target_star": (b"GET * HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    "method_lower": (b"get /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n", {400, 501}),
    "method_unknown": (b"BREW /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n", 501),
    "method_prefix": (b"GETX /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n", {400, 501}),
    "method_parens": (b"G(T /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n", {400, 501}),
    "connect": (b"CONNECT localhost:1 HTTP/1.1\r\nHost: localhost:1\r\n\r\n", {400, 501}),
    "rubbish": (bytes(range(1, 64)), 400),
    "nuls": (b"\0" * 100, 400),
    "tls_hello": (bytes.fromhex("16030100c8010000c40303") + b"x" * 100, 400),
    "two_empty_lines": (b"\r\n\r\nGET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_http1(one, name):
    """The status, a JSON text, then the connection ends: nothing behind it is read as a request."""
    data, status = MALFORMED[name]
    with H1(one.http) as c:
        c.try_send(data + b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        r = c.response()
        assert r.status in (status if isinstance(status, set) else {status}), r
        assert r.headers.get("connection") == "close" and len(r.error) > 5, r
        assert c.closed(), f"a second answer: {c.data!r}"


@pytest.mark.parametrize("name", ["cl_te", "obs_fold", "chunk_hex_prefix", "chunk_bare_lf", "value_nul", "no_host"])
def test_malformed_http1_byte_by_byte(one, name):
    data, status = MALFORMED[name]
    with H1(one.http) as c:
        for at in range(len(data)):
            if not c.try_send(data[at : at + 1]):
                break
        c.finish()
        assert c.response().status == status
        assert c.closed()


def test_smuggled_request_is_body(one):
    """Content-Length counts: what looks like a request inside a body is none."""
    inner = "GET /v2/models/two HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with H1(one.http) as c:
        c.send(message("POST", INFER, inner) + message("GET", "/v2/health/live"))
        assert c.response().status == 400  # no JSON
        assert c.response().status == 200
        assert c.open_now()


def test_good_forms_stay_good(one):
    """The strict parser still takes what it must."""
    for data in (b"\r\nGET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n",
                 b"GET http://localhost/v2/health/live HTTP/1.1\r\nHost: other\r\n\r\n",
                 b"GET /v2/health/live HTTP/1.1\r\nhOsT:localhost\r\nX-Empty:\r\nX-A: \t b \t\r\n\r\n",
                 b"GET /v2/health/live?x=1&y=%00 HTTP/1.1\r\nHost: LOCALHOST:8000\r\n\r\n",
                 b"GET /v2/health/live HTTP/1.1\r\nHost: [::1]\r\n\r\n",
                 b"GET /v2/health/live HTTP/1.1\r\nHost: 127.3.2.1:80\r\n\r\n",
                 b"GET /v2/health/live HTTP/1.0\r\n\r\n"):
        with H1(one.http) as c:
            c.send(data)
            assert c.response().status == 200, data
    with H1(one.http) as c:
        pieces = "".join(f"{len(p):x};ext=1\r\n{p}\r\n" for p in (GOOD[:10], GOOD[10:11], GOOD[11:]))
        c.send(lines(CHUNKED, body=pieces + "0\r\nX-Trailer: 1\r\n\r\n"))
        assert c.response().status == 200
        c.send(lines(f"Content-Length: {len(GOOD)}", "Expect: 100-continue"))
        while b"\r\n\r\n" not in c.data:
            assert c.more(time.monotonic() + 60)
        c.send(GOOD.encode())
        assert c.response().status == 200 and c.interim == [100]


# --- JSON ---------------------------------------------------------------------------------------


def tensor(**over):
    base = {"name": "INPUT0", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}
    base.update(over)
    return {k: v for k, v in base.items() if v is not None}


def body(*tensors, **rest):
    return json.dumps({"inputs": list(tensors), **rest})


def raw_data(text, datatype="FP32", shape="[1,4]"):
    return f'{{"inputs":[{{"name":"INPUT0","datatype":"{datatype}","shape":{shape},"data":{text}}}]}}'


BAD_JSON = {
    # what is no JSON
    "empty_object": ("id", "{}", "inputs"),
    "array": ("id", "[]", "expected"),
    "number": ("id", "1", "expected"),
    "null": ("id", "null", "expected"),
    "truncated": ("id", GOOD[:-3], "expected"),
    "trailing": ("id", GOOD + "x", "nothing behind"),
    "second_document": ("id", GOOD + GOOD, "nothing behind"),
    "bom": ("id", "\ufeff" + GOOD, "expected"),
    "single_quotes": ("id", GOOD.replace('"', "'"), "expected"),
    "comment": ("id", GOOD.replace("[1,4]", "[1,/*x*/4]"), "expected"),
    "trailing_comma": ("id", GOOD.replace("3,4]", "3,4,]"), "expected"),
    "no_comma": ("id", GOOD.replace("3,4]", "3 4]"), "expected"),
    "leading_zero": ("id", raw_data("[01,2,3,4]"), "expected"),
    "plus": ("id", raw_data("[+1,2,3,4]"), "expected"),
    "hex": ("id", raw_data("[0x1,2,3,4]"), "expected"),
    "dot": ("id", raw_data("[1.,2,3,4]"), "expected"),
    "half_exponent": ("id", raw_data("[1e,2,3,4]"), "expected"),
    "control_in_string": ("id", body(tensor()).replace("INPUT0", "INP\tUT0"), "expected"),
    "bad_escape": ("id", body(tensor()).replace("INPUT0", "INP\\x41"), "expected"),
    "lone_surrogate": ("id", body(tensor(), id="@").replace("@", "\\ud800"), "surrogate"),
    "swapped_surrogates": ("text", raw_data('["\\udc00\\ud800"]', "BYTES", "[1]"), "surrogate"),
    "nul_inside": ("id", GOOD.replace(":", ":\0", 1), "expected"),
    "depth_250000": ("id", "[" * 250000, "expected"),
    "depth_in_unknown": ("id", '{"x":' + "[" * 100000 + "]" * 100000 + "," + GOOD[1:], "64"),
    "depth_objects": ("id", '{"parameters":' + '{"a":' * 5000, "expected"),
    "depth_in_data": ("open", raw_data("[" * 5000 + "1" + "]" * 5000, shape="[1,1]"), "expected"),
    # keys
    "no_inputs": ("id", '{"id":"x"}', "inputs"),
    "inputs_object": ("id", '{"inputs":{}}', "expected"),
    "inputs_twice": ("id", GOOD[:-1] + "," + GOOD[1:], "came before"),
    "data_twice": ("id", GOOD.replace('"data"', '"data":[1,2,3,4],"data"'), "came before"),
    "name_twice": ("id", GOOD.replace('"name"', '"name":"INPUT0","name"'), "came before"),
    "escaped_twin": ("id", GOOD.replace('"name"', '"name":"INPUT0","n\\u0061me"'), "came before"),
    "keys_1m": ("id", "{" + ",".join(f'"k{i}":0' for i in range(100000)) + "}", "1024"),
    "params_1m": ("id", body(tensor(), parameters={f"k{i}": 0 for i in range(2000)}), "1024"),
    "id_number": ("id", body(tensor(), id=7), "expected"),
    "params_list": ("id", body(tensor(), parameters=[]), "expected"),
    "param_null": ("id", body(tensor(), parameters={"a": None}), "expected"),
    "param_object": ("id", body(tensor(), parameters={"a": {}}), "expected"),
    "param_reserved": ("id", body(tensor(), parameters={"triton_x": 1}), "reserved"),
    "param_timeout": ("id", body(tensor(), parameters={"timeout": -1}), "timeout"),
    "param_priority": ("id", body(tensor(), parameters={"priority": "high"}), "priority"),
    # tensors
    "no_name": ("id", body(tensor(name=None)), "name"),
    "no_shape": ("id", body(tensor(shape=None)), "shape"),
    "no_datatype": ("id", body(tensor(datatype=None)), "datatype"),
    "no_data": ("id", body(tensor(data=None)), "data"),
    "unknown_input": ("id", body(tensor(name="X")), "'INPUT0'"),
    "input_twice": ("id", body(tensor(), tensor()), "twice"),
    "input_missing": ("two", body(tensor(datatype="INT32", shape=[2], data=[1, 2])), "INPUT1"),
    "no_tensors": ("two", body(), "INPUT1"),
    "wrong_type": ("id", body(tensor(datatype="INT32")), "FP32"),
    "unknown_type": ("id", body(tensor(datatype="FLOAT")), "FP32"),
    "lower_type": ("id", body(tensor(datatype="fp32")), "FP32"),
    "shape_text": ("id", body(tensor(shape="4")), "expected"),
    "shape_float": ("id", body(tensor(shape=[1, 4.0])), "dimension"),
    "shape_negative": ("id", body(tensor(shape=[1, -4])), "dimension"),
    "shape_minus_1": ("id", body(tensor(shape=[-1, 4])), "dimension"),
    "shape_2_31": ("open", body(tensor(shape=[1, 2**31])), "dimension"),
    "shape_2_63": ("open", body(tensor(shape=[1, 2**63])), "dimension"),
    "shape_2_64": ("open", body(tensor(shape=[1, 2**64])), "dimension"),
    "shape_1e99": ("open", raw_data("[1]", shape="[1,1e99]"), "dimension"),
    "shape_overflow": ("deep", body(tensor(shape=[2**31 - 1] * 15)), "too large"),
    "shape_zero": ("id", body(tensor(shape=[0, 4], data=[])), "1 to 8"),
    "rank_0": ("id", body(tensor(shape=[])), "[-1,4]"),
    "rank_1": ("id", body(tensor(shape=[4])), "batch"),
    "rank_17": ("id", body(tensor(shape=[1] * 17)), "16"),
    "rank_1e5": ("id", body(tensor(shape=[1] * 10000)), "16"),
    "batch_9": ("id", body(tensor(shape=[9, 4], data=[0] * 36)), "1 to 8"),
    "too_few": ("id", body(tensor(data=[1, 2, 3])), "4"),
    "too_many": ("id", body(tensor(data=[1, 2, 3, 4, 5])), "4"),
    "nesting_wrong": ("id", body(tensor(data=[[1, 2], [3, 4]])), "expected"),
    "nesting_mixed": ("id", body(tensor(data=[[1, 2, 3], 4])), "expected"),
    "data_text": ("id", body(tensor(data="1234")), "expected"),
    "data_null": ("id", raw_data("[1,2,null,4]"), "expected"),
    "data_bool": ("id", raw_data("[1,2,true,4]"), "expected"),
    "number_too_large": ("id", raw_data("[1e999,2,3,4]"), "expected"),
    "uint8_256": ("small", raw_data("[256]", "UINT8", "[1]"), "255"),
    "uint8_minus": ("small", raw_data("[-1]", "UINT8", "[1]"), "255"),
    "uint8_half": ("small", raw_data("[0.5]", "UINT8", "[1]"), "expected"),
    "int64_2_63": ("long", raw_data("[9223372036854775808]", "INT64", "[1]"), "9223372036854775807"),
    "int64_huge": ("long", raw_data("[" + "9" * 100000 + "]", "INT64", "[1]"), "9223372036854775807"),
    "bool_2": ("flag", raw_data("[2]", "BOOL", "[1]"), "expected"),
    "bool_text": ("flag", raw_data('["true"]', "BOOL", "[1]"), "expected"),
    "bytes_number": ("text", raw_data("[1]", "BYTES", "[1]"), "expected"),
    # outputs
    "unknown_output": ("id", body(tensor(), outputs=[{"name": "X"}]), "'OUTPUT0'"),
    "output_twice": ("id", body(tensor(), outputs=[{"name": "OUTPUT0"}] * 2), "twice"),
    "outputs_many": ("id", body(tensor(), outputs=[{"name": "OUTPUT0"}] * 1500), "twice"),
    "output_no_name": ("id", body(tensor(), outputs=[{}]), "name"),
    "outputs_object": ("id", body(tensor(), outputs={}), "expected"),
    "class_negative": ("id", body(tensor(), outputs=[{"name": "OUTPUT0", "parameters": {"classification": -1}}]), ""),
    "class_2_40": ("id", body(tensor(), outputs=[{"name": "OUTPUT0", "parameters": {"classification": 2**40}}]), ""),
    "class_text": ("id", body(tensor(), outputs=[{"name": "OUTPUT0", "parameters": {"classification": "a"}}]), ""),
    "shared_memory": ("id", body(tensor(data=None, parameters={"shared_memory_region": "r"})), "shared memory"),
}


@pytest.mark.parametrize("name", BAD_JSON)
def test_bad_json(one, name):
    """4xx with a text that says what was expected; the connection goes on."""
    target, text, said = BAD_JSON[name]
    with H1(one.http) as c:
        c.send(message("POST", f"/v2/models/{target}/infer", text))
        r = c.response()
        too_long = len(text) > 66000 and r.status == 413  # bytes are refused before they are read
        assert r.status == (501 if name == "shared_memory" else 400) or too_long, r
        assert said in r.error or too_long, r.error
        assert len(r.error) < 600
        if not too_long:
            assert c.ask("POST", INFER, GOOD).status == 200


def test_large_bad_json_off_the_loop(one):
    """The same for bodies that are read on the pool: 4 MiB with the mistake at the very end."""
    text = raw_data("[" + ",".join(["0"] * (2 << 20)) + "x]", shape=f"[1,{2 << 20}]")
    r = ask(one.http, "POST", "/v2/models/open/infer", text)
    assert r.status == 400 and "expected" in r.error, r


def test_json_time_is_linear(one):
    """Twice the bytes take about twice the computing (R13), on the forms that tend to be quadratic."""
    for make in (lambda n: raw_data("[" + "0," * n + "0]", shape=f"[1,{n + 1}]"),
                 lambda n: '{"a":"' + "\\u0041" * n + '",' + GOOD[1:],
                 lambda n: '{"a":[' + "{}," * n + "{}]," + GOOD[1:]):
        took = []
        for n in (100000, 400000):
            text, best = make(n), 9.0
            for _ in range(3):
                before = cpu_s(one.pid)
                ask(one.http, "POST", "/v2/models/open/infer", text)
                best = min(best, cpu_s(one.pid) - before)
            took.append(best)
        assert took[1] < 12 * took[0] + 0.05, took


@pytest.mark.parametrize("text, said", [("{", "JSON"), ("[]", "object"), ('{"ready":1}', "true or false"),
                                        ("[" * 250000, "JSON"), ('{"ready":true}x', "JSON")])
def test_bad_index_body(one, text, said):
    r = ask(one.http, "POST", "/v2/repository/index", text)
    assert r.status == 400 and said in r.error, r


# --- the binary extension and raw bodies ---------------------------------------------------------


def binary(json_text, tail, length=None, *more, target="id"):
    data = json_text.encode() + tail
    return message("POST", f"/v2/models/{target}/infer", data,
                   f"Inference-Header-Content-Length: {len(json_text) if length is None else length}", *more)


def sized(n, **over):
    return body(tensor(data=None, parameters={"binary_data_size": n}, **over))


BAD_BINARY = {
    "length_beyond_body": (binary(sized(16), FLOATS, 10000), "Inference-Header-Content-Length"),
    "length_negative": (binary(sized(16), FLOATS, "-1"), "Inference-Header-Content-Length"),
    "length_text": (binary(sized(16), FLOATS, "abc"), "Inference-Header-Content-Length"),
    "length_2_64": (binary(sized(16), FLOATS, 2**64), "Inference-Header-Content-Length"),
    "length_2_31": (binary(sized(16), FLOATS, 2**31), "Inference-Header-Content-Length"),
    "length_empty": (binary(sized(16), FLOATS, ""), ""),
    "length_inside": (binary(sized(16), FLOATS, 20), "expected"),
    "length_too_long": (binary(sized(16), FLOATS, len(sized(16)) + 4), ""),
    "size_short": (binary(sized(12), FLOATS), "16 bytes"),
    "size_long": (binary(sized(20), FLOATS), "16 bytes"),
    "size_2_63": (binary(sized(2**63), FLOATS), ""),
    "size_negative": (binary(sized(-16), FLOATS), "expected"),
    "size_text": (binary(sized("16"), FLOATS), "expected"),
    "size_null": (binary(sized(None), FLOATS), "expected"),
    "bytes_left": (binary(sized(16), FLOATS + b"x"), "left"),
    "bytes_missing": (binary(sized(16), FLOATS[:-1]), ""),
    "size_wrong_shape": (binary(sized(32), FLOATS * 2), "16 bytes"),
    "both": (binary(body(tensor(parameters={"binary_data_size": 16})), FLOATS), "both"),
    "strings_truncated": (binary(sized(6, datatype="BYTES", shape=[1]), b"\x08\0\0\0ab", None, target="text"), ""),
    "strings_length": (binary(sized(6, datatype="BYTES", shape=[1]), b"\xff\xff\xff\xffab", None, target="text"), ""),
    "strings_too_few": (binary(sized(6, datatype="BYTES", shape=[2]), b"\x02\0\0\0ab", None, target="text"), ""),
    "strings_too_many": (binary(sized(12, datatype="BYTES", shape=[1]), b"\x02\0\0\0ab" * 2, None, target="text"), ""),
    "raw_short": (message("POST", INFER, FLOATS[:15], "Content-Type: application/octet-stream"), "bytes"),
    "raw_long": (message("POST", INFER, FLOATS * 9, "Content-Type: application/octet-stream"), "bytes"),
    "raw_odd": (message("POST", INFER, FLOATS + b"x", "Content-Type: application/octet-stream"), "bytes"),
    "raw_two_inputs": (message("POST", "/v2/models/two/infer", FLOATS, "Inference-Header-Content-Length: 0"), "one"),
    "raw_empty": (message("POST", INFER, b"", "Inference-Header-Content-Length: 0"), ""),
    "no_body": (message("POST", INFER, b""), ""),
}


@pytest.mark.parametrize("name", BAD_BINARY)
def test_bad_binary(one, name):
    data, said = BAD_BINARY[name]
    with H1(one.http) as c:
        c.send(data)
        r = c.response()
        assert r.status == 400 and said in r.error and len(r.error) > 10, r
        assert c.ask("POST", INFER, GOOD).status == 200


def test_good_binary(one):
    with H1(one.http) as c:
        c.send(binary(sized(16), FLOATS))
        assert c.response().json()["outputs"][0]["data"] == [1, 2, 3, 4]
        c.send(message("POST", INFER, FLOATS, "Inference-Header-Content-Length: 0"))
        r = c.response()
        assert r.body.endswith(FLOATS) and "inference-header-content-length" in r.headers


@pytest.mark.parametrize("coding, status", [("gzip", 415), ("br", 415), ("zstd", 415), ("x", 415), ("identity", 200)])
def test_content_encoding(one, coding, status):
    r = ask(one.http, "POST", INFER, GOOD, f"Content-Encoding: {coding}")
    assert r.status == status and (status == 200 or "compress" in r.error)


# --- names, versions, routes (P9) ---------------------------------------------------------------


@pytest.mark.parametrize("path", [
    "/v2/models/none/infer", "/v2/models/id/versions/2/infer", "/v2/models/id/versions/99999999999999999999/infer",
    "/v2/models/id/versions/x/infer", "/v2/models/id/versions/-1/infer", "/v2/models/id/versions//infer",
    "/v2/models//infer", "/v2/models/./infer", "/v2/models/../infer", "/v2/models/%2e%2e/infer",
    "/v2/models/..%2fid/infer", "/v2/models/id%00/infer", "/v2/models/id%0a/infer", "/v2/models/id%/infer",
    "/v2/models/id%4/infer", "/v2/models/id%zz/infer", "/v2/models/ID/infer", "/v2/models/id;x/infer",
    "/v2/models/id/infer/", "/v2/models/id/infer/x", "/v2/models/" + "a" * 4000 + "/infer"])
def test_unknown_names(one, path):
    r = ask(one.http, "POST", path, GOOD)
    assert r.status in (400, 404) and len(r.error) > 10, r
    assert len(r.error) < 600 and "/tmp" not in r.error


ROUTES = ["/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/id", "/v2/models/id/config", "/v2/models/id/stats",
          "/v2/models/stats", "/v2/models/id/versions/1", "/v2/models/id/ready", "/metrics", "/naru/models",
          "/naru/gallery"]


def spellings(path):
    a, b = path.rsplit("/", 1)
    yield from (path + "/", "/" + path, a + "//" + b, a + "/./" + b, a + "/x/../" + b, "/." + path, "/.." + path,
                "/%2e" + path, "/v2/.." + path, path + "%20", path + ";x=1", path + "%00", path + "%2f", path + "/.",
                path + "/..", path.upper(), path.replace("/", "\\"), path.replace("/", "%2f"), "/%2f" + path[1:],
                path[:1] + f"%{ord(path[1]):02x}" + path[2:], path + "%23", path + "\x7f")


@pytest.mark.parametrize("path", ROUTES)
def test_spellings_reach_nothing(one, path):
    """Only the canonical spelling reaches a handler; every other is 404 or 400, on both protocols."""
    assert ask(one.http, "GET", path).status == 200
    with H2(one.http) as h2:
        assert h2.ask("GET", path).status == 200
        for other in spellings(path):
            with H1(one.http) as c:
                c.send(head("GET", other))
                r = c.response()
            assert r.status in (400, 404), (other, r)
            got = h2.ask("GET", other)
            assert got.reset is not None or got.status in (400, 404), (other, got)


def test_wrong_methods_say_allow(one):
    for path, method, allow in [("/v2", "POST", "GET, HEAD"), (INFER, "GET", "POST"), (INFER, "DELETE", "POST"),
                                ("/v2/models/id/predict", "GET", "POST, PUT"), ("/metrics", "OPTIONS", "GET, HEAD"),
                                ("/v2/repository/index", "PATCH", "POST")]:
        r = ask(one.http, method, path)
        assert r.status == 405 and r.headers["allow"] == allow and method in r.error, r


# --- HTTP/2 and gRPC ----------------------------------------------------------------------------

GOOD_PB = infer_pb("id", [("INPUT0", "FP32", [1, 4])], raw=[FLOATS])


def call(one, data, path=MODEL_INFER, **kwargs):
    with H2(one.grpc) as c:
        return c.reply(c.grpc(path, data, **kwargs))


BAD_FRAMING = {  # body bytes, code
    "nothing": (b"", UNIMPLEMENTED),
    "half_prefix": (b"\0\0\0", INTERNAL),
    "truncated": (prefixed(GOOD_PB)[:-1], INTERNAL),
    "compressed_flag": (prefixed(GOOD_PB, 1), UNIMPLEMENTED),
    "bad_flag": (prefixed(GOOD_PB, 2), INTERNAL),
    "flag_255": (prefixed(GOOD_PB, 255), INTERNAL),
    "two_messages": (prefixed(GOOD_PB) * 2, UNIMPLEMENTED),
    "trailing_byte": (prefixed(GOOD_PB) + b"x", UNIMPLEMENTED),
    "length_short": (prefixed(GOOD_PB, length=3), UNIMPLEMENTED),
    "length_4g": (prefixed(GOOD_PB, length=2**32 - 1), EXHAUSTED),
    "length_65m": (prefixed(b"", length=65 << 20), EXHAUSTED),
    "many_empty": (prefixed(b"") * 1000, UNIMPLEMENTED),
}


@pytest.mark.parametrize("name", BAD_FRAMING)
def test_bad_grpc_framing(one, name):
    data, code = BAD_FRAMING[name]
    r = call(one, data, raw=True)
    assert r.grpc == code and r.status == 200 and len(r.message) > 5, r


def test_length_of_4_gib_then_silence_costs_nothing(one):
    """The prefix alone is answered, and reserves nothing (R15)."""
    before = resident(one.pid)
    with H2(one.grpc) as c:
        streams = [c.grpc(MODEL_INFER, prefixed(b"", length=2**32 - 1), raw=True, end=False) for _ in range(50)]
        assert all(c.reply(s).grpc == EXHAUSTED for s in streams)
        # within the limit: waits for its bytes, but holds none of them yet
        waiting = [c.grpc(MODEL_INFER, prefixed(b"", length=60 << 20) + b"x" * 100, raw=True, end=False)
                   for _ in range(20)]
        assert c.ping()
        assert resident(one.pid) < before + (20 << 20)
        for s in waiting:
            c.cancel(s)
        assert c.reply(c.grpc(MODEL_INFER, GOOD_PB)).grpc == 0


def nested(n):
    data = b""
    for _ in range(n):
        data = field(5, field(4, field(2, data)))
    return data


BAD_PB = {
    "random": (bytes(range(256)) * 3, "malformed"),
    "truncated": (GOOD_PB[:-1], "malformed"),
    "group": (b"\x0b\x0c" + GOOD_PB, "malformed"),
    "field_0": (b"\x00\x01" + GOOD_PB, "malformed"),
    "wire_type_7": (b"\x0f" + GOOD_PB, "malformed"),
    "varint_11_bytes": (b"\x10" + b"\xff" * 10 + b"\x01" + GOOD_PB, "malformed"),
    "length_beyond": (b"\x0a\xff\xff\xff\x7f", "malformed"),
    "length_2_63": (b"\x0a" + b"\xff" * 9 + b"\x01", "malformed"),
    "name_not_utf8": (field(1, b"\xff\xfe"), ""),
    "nested_30000": (GOOD_PB + nested(3000), ""),
    "empty": (b"", "model"),
    "no_inputs": (infer_pb("id"), "INPUT0"),
    "unknown_input": (infer_pb("id", [("X", "FP32", [1, 4])], raw=[FLOATS]), "INPUT0"),
    "inputs_many": (infer_pb("id", [("INPUT0", "FP32", [1, 4])] * 2, raw=[FLOATS] * 2), "the model takes 1"),
    "input_twice": (infer_pb("two", [("INPUT0", "INT32", [2])] * 2, raw=[FLOATS[:8]] * 2), "twice"),
    "raw_missing": (infer_pb("id", [("INPUT0", "FP32", [1, 4])]), ""),
    "raw_too_many": (infer_pb("id", [("INPUT0", "FP32", [1, 4])], raw=[FLOATS] * 2), "raw"),
    "raw_short": (infer_pb("id", [("INPUT0", "FP32", [1, 4])], raw=[FLOATS[:-1]]), "16 bytes"),
    "raw_and_contents": (infer_pb("id", [("INPUT0", "FP32", [1, 4], field(6, FLOATS))], raw=[FLOATS]), ""),
    "contents_wrong_kind": (infer_pb("id", [("INPUT0", "FP32", [1, 4], field(2, b"\x01\x02\x03\x04"))]), ""),
    "contents_short": (infer_pb("id", [("INPUT0", "FP32", [1, 4], field(6, FLOATS[:12]))]), "4"),
    "contents_unaligned": (infer_pb("id", [("INPUT0", "FP32", [1, 4], field(6, FLOATS[:13]))]), ""),
    "dim_negative": (infer_pb("id", [("INPUT0", "FP32", [1, -4])], raw=[FLOATS]), "[-1,4]"),
    "dim_min": (infer_pb("open", [("INPUT0", "FP32", [1, -(2**63)])], raw=[FLOATS]), "shape"),
    "dim_2_63": (infer_pb("open", [("INPUT0", "FP32", [1, 2**63 - 1])], raw=[FLOATS]), "shape"),
    "dim_overflow": (infer_pb("deep", [("INPUT0", "FP32", [2**31 - 1] * 15)], raw=[FLOATS]), "too large"),
    "rank_17": (infer_pb("id", [("INPUT0", "FP32", [1] * 17)], raw=[FLOATS]), "16"),
    "rank_100000": (infer_pb("id", [("INPUT0", "FP32", [1] * 60000)], raw=[FLOATS]), "16"),
    "outputs_twice": (infer_pb("id", [("INPUT0", "FP32", [1, 4])], ["OUTPUT0"] * 2, [FLOATS]), "twice"),
    "outputs_100000": (infer_pb("id", [("INPUT0", "FP32", [1, 4])], ["OUTPUT0"] * 100000, [FLOATS]), "twice"),
    "unknown_output": (infer_pb("id", [("INPUT0", "FP32", [1, 4])], ["X"], [FLOATS]), "OUTPUT0"),
    "param_reserved": (infer_pb("id", [("INPUT0", "FP32", [1, 4])], raw=[FLOATS], params=[("triton_x", 1)]), "reserved"),
    "params_5000": (infer_pb("id", [("INPUT0", "FP32", [1, 4])], raw=[FLOATS],
                             params=[(f"k{i}", 1) for i in range(5000)]), "1024"),
}


@pytest.mark.parametrize("name", BAD_PB)
def test_bad_protobuf(one, name):
    data, said = BAD_PB[name]
    r = call(one, data)
    assert r.grpc in ({NOT_FOUND, INVALID} if name in ("empty", "name_not_utf8") else {INVALID}), r
    assert said.lower() in r.message.lower() and len(r.message) < 600, r.message


def test_unknown_fields_are_skipped(one):
    extra = b"".join(field(1000 + i % 50, i) for i in range(200000))
    r = call(one, GOOD_PB + extra)
    assert r.grpc == 0 and r.payload.endswith(FLOATS)


@pytest.mark.parametrize("path, code", [
    (SERVICE + "Nope", UNIMPLEMENTED), ("/inference.GRPCInferenceService", UNIMPLEMENTED),
    ("/Nope/ModelInfer", UNIMPLEMENTED), ("/inference.GRPCInferenceService//ModelInfer", UNIMPLEMENTED),
    (SERVICE + "modelinfer", UNIMPLEMENTED), (SERVICE + "ModelInfer/", UNIMPLEMENTED),
    (SERVICE + "%4dodelInfer", UNIMPLEMENTED), (SERVICE + "ModelStreamInfe", UNIMPLEMENTED),
    ("/v2", UNIMPLEMENTED), (INFER, UNIMPLEMENTED)])
def test_unknown_grpc_methods(one, path, code):
    r = call(one, GOOD_PB, path=path)
    assert r.grpc == code and r.status == 200, r


@pytest.mark.parametrize("method", ["ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics", "RepositoryIndex"])
def test_garbage_for_every_grpc_method(one, method):
    for data in (b"\xff" * 50, field(1, b"\xff\xfe\xfd"), b"\x0a\xff\xff\xff\xff\x0f", varint(2**63)):
        r = call(one, data, path=SERVICE + method)
        assert r.grpc in (INVALID, NOT_FOUND, 0), (method, r)


@pytest.mark.parametrize("kind", ["application/json", "text/plain", "", "application/grpcx", "application/grpc-web"])
def test_wrong_content_type_on_grpc_path(one, kind):
    """Not gRPC, so an ordinary HTTP request for a path that does not exist."""
    with H2(one.grpc) as c:
        r = c.reply(c.request("POST", MODEL_INFER, prefixed(GOOD_PB), [("content-type", kind)] if kind else []))
        assert r.status in (404, 415) and r.grpc is None, r


BAD_H2_HEADS = {
    "no_method": [(":path", "/v2"), (":scheme", "http"), (":authority", "localhost")],
    "no_path": [(":method", "GET"), (":scheme", "http"), (":authority", "localhost")],
    "empty_path": [(":method", "GET"), (":path", ""), (":scheme", "http"), (":authority", "localhost")],
    "path_twice": [(":method", "GET"), (":path", "/v2"), (":path", "/v2"), (":scheme", "http")],
    "pseudo_late": [(":method", "GET"), (":path", "/v2"), ("a", "b"), (":scheme", "http")],
    "pseudo_unknown": [(":method", "GET"), (":path", "/v2"), (":scheme", "http"), (":x", "y")],
    "upper_case": [(":method", "GET"), (":path", "/v2"), (":scheme", "http"), ("X-A", "b")],
    "connection": [(":method", "GET"), (":path", "/v2"), (":scheme", "http"), ("connection", "close")],
    "te_gzip": [(":method", "GET"), (":path", "/v2"), (":scheme", "http"), ("te", "gzip")],
    "value_lf": [(":method", "GET"), (":path", "/v2"), (":scheme", "http"), ("a", "b\nc: d")],
    "value_nul": [(":method", "GET"), (":path", "/v2"), (":scheme", "http"), ("a", "b\0c")],
    "host_differs": [(":method", "GET"), (":path", "/v2"), (":scheme", "http"), (":authority", "localhost"),
                     ("host", "evil")],
    "path_no_slash": [(":method", "GET"), (":path", "v2"), (":scheme", "http"), (":authority", "localhost")],
    "no_authority_at_all": [(":method", "GET"), (":path", "/v2"), (":scheme", "http"), (":authority", "")],
    "length_twice": [(":method", "GET"), (":path", "/v2"), (":scheme", "http"), ("content-length", "0"),
                     ("content-length", "1")],
    "length_text": [(":method", "GET"), (":path", "/v2"), (":scheme", "http"), ("content-length", "x")],
    "two_content_types": [(":method", "GET"), (":path", "/v2"), (":scheme", "http"), (":authority", "localhost"),
                          ("content-type", "a/b"), ("content-type", "a/c")],
    "connect": [(":method", "CONNECT"), (":authority", "localhost")],
}


@pytest.mark.parametrize("name", BAD_H2_HEADS)
def test_bad_h2_heads(one, name):
    """Reset or 4xx; never an answer as if nothing were wrong. The connection may go on or end."""
    with H2(one.http) as c:
        r = c.reply(c.open(BAD_H2_HEADS[name]))
        assert r.reset is not None or c.goaway or r.status in (400, 421, 501), r


def test_length_differs_from_data(one):
    with H2(one.http) as c:
        for stated in (len(GOOD) - 1, len(GOOD) + 1):
            r = c.reply(c.request("POST", INFER, GOOD.encode(), [("content-length", str(stated))]))
            assert r.reset is not None or r.status == 400, r
        assert c.ask("POST", INFER, GOOD.encode()).status == 200


@pytest.mark.parametrize("name, data", [
    ("data_on_0", b"\0\0\1\0\0\0\0\0\0x"), ("data_idle", b"\0\0\1\0\0\0\0\0\7x"),
    ("headers_even", b"\0\0\1\1\5\0\0\0\2\x82"), ("settings_5", b"\0\0\5\4\0\0\0\0\0aaaaa"),
    ("ping_7", b"\0\0\7\6\0\0\0\0\0aaaaaaa"), ("frame_16m", b"\xff\xff\xff\0\0\0\0\0\1"),
    ("continuation", b"\0\0\1\x09\4\0\0\0\1\x82"), ("push", b"\0\0\5\5\4\0\0\0\1\0\0\0\2\x82"),
    ("window_0", b"\0\0\4\x08\0\0\0\0\0\0\0\0\0"), ("hpack_bomb", b"\0\0\3\1\5\0\0\0\1\xff\xff\xff")])
def test_bad_h2_frames(one, name, data):
    with H2(one.http) as c:
        assert c.ping()
        c.try_send(data)
        c.drain()
        assert c.goaway and c.goaway[1] != 0, name


def test_bad_preface(one):
    with H1(one.http) as c:
        c.send(b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n")
        assert c.response().status in (400, 505) and c.closed()
    with H2(one.http, greet=False) as c:
        c.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0" * 50)
        assert c.drain().goaway


# --- pictures -----------------------------------------------------------------------------------

PNG = b"\x89PNG\r\n\x1a\n"


def png(width, height):
    data = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [data, b"IDAT" + zlib.compress(b"\0" * 31), b"IEND"]
    return PNG + b"".join(struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks)


BAD_PICTURES = {
    "empty": (b"", (), 400, "picture"),
    "text": (b"hello", (), {400, 415}, ""),
    "elf": (b"\x7fELF" + b"\0" * 100, (), {400, 415}, ""),
    "gif": (b"GIF89a" + b"\0" * 30, (), {400, 415}, ""),
    "png_magic_only": (PNG, (), 400, ""),
    "png_short_data": (png(10, 10), (), 400, ""),
    "png_bomb": (png(20000, 20000), (), 413, "16384"),
    "png_pixels": (png(10000, 10000), (), 413, "the limit is 50"),
    "png_zero": (png(0, 10), (), 400, ""),
    "png_2_31": (png(2**31, 2**31), (), {400, 413}, ""),
    "jpeg_magic_only": (b"\xff\xd8\xff\xe0", (), 400, ""),
    "jpeg_garbage": (b"\xff\xd8\xff" + b"\xa5" * 5000, (), 400, ""),
    "webp_garbage": (b"RIFF\x20\0\0\0WEBPVP8 " + b"\0" * 30, (), 400, ""),
    "json_no_image": (b"{}", ("Content-Type: application/json",), 400, "base64"),
    "json_number": (b'{"image":1}', ("Content-Type: application/json",), 400, "base64"),
    "json_not_base64": (b'{"image":"***"}', ("Content-Type: application/json",), 400, "base64"),
    "json_broken": (b'{"image', ("Content-Type: application/json",), 400, "base64"),
    "json_deep": (b'{"a":' * 100000, ("Content-Type: application/json",), 400, "base64"),
    "form_no_boundary": (b"x", ("Content-Type: multipart/form-data",), 400, "boundary"),
    "form_no_parts": (b"x", ("Content-Type: multipart/form-data; boundary=b",), 400, ""),
    "form_no_file": (b"--b\r\nContent-Disposition: form-data; name=a\r\n\r\nx\r\n--b--\r\n",
                     ("Content-Type: multipart/form-data; boundary=b",), 400, ""),
    "form_truncated": (b"--b\r\nContent-Disposition: form-data; name=a; filename=f\r\n\r\nxyz",
                       ("Content-Type: multipart/form-data; boundary=b",), 400, ""),
}


@pytest.mark.parametrize("name", BAD_PICTURES)
def test_bad_pictures(one, name):
    data, fields, status, said = BAD_PICTURES[name]
    r = ask(one.http, "POST", "/v2/models/pic/predict", data, *fields)
    assert r.status in (status if isinstance(status, set) else {status}), r
    assert said in r.error and len(r.error) > 10, r


def test_predict_without_a_picture_model(one):
    r = ask(one.http, "POST", "/v2/models/text/predict", png(4, 4))
    assert r.status == 400 and len(r.error) > 10
    r = ask(one.http, "POST", "/v2/models/none/predict", png(4, 4))
    assert r.status == 404


# --- many at once -------------------------------------------------------------------------------


def test_storm_of_bad_and_broken_requests(one):
    """A few hundred of everything at once, half of them cut in the middle, healthy requests between."""
    rows = [data for data, _ in MALFORMED.values()]
    rows += [message("POST", f"/v2/models/{t}/infer", text) for t, text, _ in BAD_JSON.values() if len(text) < 5000]
    rows += [data for data, _ in BAD_BINARY.values()]
    for at, data in enumerate(rows):
        with H1(one.http) as c:
            c.try_send(data[: len(data) // 2] if at % 2 else data)
            if at % 3 == 0:
                c.abort()
        if at % 10 == 0:
            r = one.healthy.ask("POST", INFER, GOOD)
            assert r.status == 200 and r.json()["outputs"][0]["data"] == [1, 2, 3, 4]
    with H2(one.http) as c:
        for at, (data, _) in enumerate(BAD_PB.values()):
            s = c.grpc(MODEL_INFER, data[:20000], end=at % 2 == 0)
            if at % 2:
                c.cancel(s, CANCEL)
        assert c.reply(c.grpc(MODEL_INFER, GOOD_PB)).grpc == 0


def test_no_server_errors_were_logged(one):
    """Mistakes of clients are not failures of the server: nothing at error level, no 500."""
    log = one.log()
    assert " level=error" not in log
    assert not [line for line in log.splitlines() if " status=500 " in line][:3]
    assert not [line for line in log.splitlines() if " level=warn" in line and "module=access" in line][:3]


def test_headers_split_at_every_byte(one):
    """A good request in two pieces, cut at every byte, is the same request."""
    data = message("POST", INFER, GOOD, "X-A: b")
    for at in range(1, len(data), 7):
        with H1(one.http) as c:
            c.send(data[:at])
            time.sleep(0.001)
            c.send(data[at:])
            assert c.response().status == 200, at


def test_answers_carry_no_internals(one):
    """Error texts name what the client sent and what was expected, no paths and no addresses (D5)."""
    texts = [ask(one.http, "POST", f"/v2/models/{t}/infer", text).error for t, text, _ in BAD_JSON.values()]
    for text in texts:
        assert "/tmp" not in text and "0x7f" not in text and ".c:" not in text, text


def test_field_bytes_never_reach_the_answer_raw(one):
    """Control bytes and quotes of names come back escaped: no header, log or JSON injection."""
    r = ask(one.http, "POST", "/v2/models/a%22%7d%0d%0aX-Evil:1/infer", GOOD)
    assert r.status == 404 and "x-evil" not in r.headers and r.json()["error"]
    name = 'x"}\\u0000\\r\\nX-Evil: 1'
    r = ask(one.http, "POST", INFER, body(tensor()).replace("INPUT0", name.replace('"', '\\"')))
    assert r.status == 400 and b"\r" not in r.body and r.json()["error"]
    r = call(one, infer_pb("a\r\nx-evil: 1"))
    assert r.grpc in (INVALID, NOT_FOUND) and set(r.headers) <= {":status", "content-type", "grpc-status", "grpc-message"}


assert literal("a", "b") == b"\x00\x01a\x01b"
