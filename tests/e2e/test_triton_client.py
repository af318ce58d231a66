"""Triton's own Python clients against naru, over HTTP and gRPC, unmodified."""

import numpy as np
import pytest

import models

grpcclient = pytest.importorskip("tritonclient.grpc", reason="tritonclient is not installed")
httpclient = pytest.importorskip("tritonclient.http", reason="tritonclient is not installed")
from tritonclient.utils import InferenceServerException  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def running(module_server, tmp_path_factory):
    repo = tmp_path_factory.mktemp("repo")
    models.add_sub(repo)
    for dtype in models.DTYPES:
        models.identity(repo, f"id_{dtype.lower()}", dtype)
    models.identity(repo, "fixed", "FP32", dims=(2, 3))
    models.identity(repo, "free", "FP32", dims=("n", "h", "w"))
    weights = models.linear(repo, "linear")
    s = module_server(models=[repo])
    s.linear = weights
    return s


@pytest.fixture
def http(running):
    client = httpclient.InferenceServerClient(f"127.0.0.1:{running.http}", concurrency=4)
    yield httpclient, client
    client.close()


@pytest.fixture
def grpc(running):
    client = grpcclient.InferenceServerClient(f"127.0.0.1:{running.grpc}")
    yield grpcclient, client
    client.close()


@pytest.fixture(params=["http", "grpc"])
def api(request):
    return request.getfixturevalue(request.param)


def tensor(lib, name, array, dtype, **how):
    t = lib.InferInput(name, list(array.shape), dtype)
    t.set_data_from_numpy(array, **how)
    return t


def test_health_and_metadata(api):
    lib, client = api
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("add_sub") and client.is_model_ready("add_sub", "1")
    assert not client.is_model_ready("add_sub", "7") and not client.is_model_ready("no_such_model")
    meta = client.get_server_metadata(**({"as_json": True} if lib is grpcclient else {}))
    assert meta["name"] == "naru" and "statistics" in meta["extensions"]
    model = client.get_model_metadata("add_sub", **({"as_json": True} if lib is grpcclient else {}))
    assert model["platform"] == "onnxruntime_onnx" and model["versions"] == ["1"]
    assert [t["name"] for t in model["inputs"]] == ["INPUT0", "INPUT1"]
    assert [int(d) for d in model["inputs"][0]["shape"]] == [-1, 16]


def test_config(api):
    lib, client = api
    got = client.get_model_config("add_sub", **({"as_json": True} if lib is grpcclient else {}))
    config = got["config"] if lib is grpcclient else got
    assert config["max_batch_size"] == 64 and "dynamic_batching" in config
    assert [int(d) for d in config["input"][0]["dims"]] == [16]


@pytest.mark.parametrize("protocol, binary", [("http", True), ("http", False), ("grpc", True)])  # gRPC has no JSON form
@pytest.mark.parametrize("rows", [1, 3, 64])
def test_add_sub(request, protocol, binary, rows):
    lib, client = request.getfixturevalue(protocol)
    how = {"binary_data": binary} if lib is httpclient else {}
    a = np.random.default_rng(rows).normal(size=(rows, 16)).astype(np.float32)
    b = np.arange(rows * 16, dtype=np.float32).reshape(rows, 16)
    outputs = [lib.InferRequestedOutput(n, **how) for n in ("OUTPUT0", "OUTPUT1")]
    got = client.infer("add_sub", [tensor(lib, "INPUT0", a, "FP32", **how), tensor(lib, "INPUT1", b, "FP32", **how)],
                       outputs=outputs, request_id="r-1")
    np.testing.assert_array_equal(got.as_numpy("OUTPUT0"), a + b)
    np.testing.assert_array_equal(got.as_numpy("OUTPUT1"), a - b)
    response = got.get_response(**({"as_json": True} if lib is grpcclient else {}))
    assert response["id"] == "r-1" and response["model_version"] == "1"


def test_linear_agrees_with_numpy(api, running):
    lib, client = api
    w, b = running.linear
    x = np.random.default_rng(5).normal(size=(7, 16)).astype(np.float32)
    got = client.infer("linear", [tensor(lib, "X", x, "FP32")]).as_numpy("Y")
    np.testing.assert_allclose(got, x @ w + b, rtol=1e-5, atol=1e-5)


def values(dtype, rows):
    rng = np.random.default_rng(3)
    if dtype == "BYTES":
        texts = [b"", "나루".encode(), b"\x00\xff\xfe", b"x" * 300, b'"quoted\\"']
        return np.array([texts[i % len(texts)] for i in range(rows * 16)], dtype=np.object_).reshape(rows, 16)
    kind = models.DTYPES[dtype][1]
    if dtype == "BOOL":
        return rng.integers(0, 2, (rows, 16)).astype(bool)
    if dtype.startswith("FP"):
        x = rng.normal(size=(rows, 16)).astype(kind)
        x[0, :4] = [np.inf, -np.inf, 0.0, np.finfo(kind).tiny]
        return x
    info = np.iinfo(kind)
    x = rng.integers(info.min, info.max, (rows, 16), dtype=kind, endpoint=True)
    x[0, :2] = [info.min, info.max]
    return x


@pytest.mark.parametrize("dtype", list(models.DTYPES))
def test_every_datatype_comes_back(api, dtype):
    lib, client = api
    x = values(dtype, 3)
    got = client.infer(f"id_{dtype.lower()}", [tensor(lib, "IN", x, dtype)]).as_numpy("OUT")
    np.testing.assert_array_equal(got, x)


@pytest.mark.parametrize("dtype", [d for d in models.DTYPES if d != "FP16"])
def test_every_datatype_as_json(running, dtype):
    client = httpclient.InferenceServerClient(f"127.0.0.1:{running.http}")
    x = values(dtype, 2)
    if dtype == "BYTES":
        x = np.array([["", "나루", "a\"b\\c\n"] + ["x"] * 13] * 2, dtype=np.object_)
    if dtype.startswith("FP"):
        x[0, :2] = [1.5, -2.5]  # JSON requests have no infinities
    got = client.infer(f"id_{dtype.lower()}", [tensor(httpclient, "IN", x, dtype, binary_data=False)],
                       outputs=[httpclient.InferRequestedOutput("OUT", binary_data=False)]).as_numpy("OUT")
    if dtype == "BYTES":
        assert [[v if isinstance(v, str) else v.decode() for v in row] for row in got] == x.tolist()
    else:
        np.testing.assert_array_equal(got, x)
    client.close()


@pytest.mark.parametrize("shape", [(1, 1, 1), (4, 5, 6), (2, 1, 300)])
def test_free_shapes(api, shape):
    lib, client = api
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    np.testing.assert_array_equal(client.infer("free", [tensor(lib, "IN", x, "FP32")]).as_numpy("OUT"), x)


def test_model_without_a_batch_dimension(api):
    lib, client = api
    x = np.ones((2, 3), np.float32)
    np.testing.assert_array_equal(client.infer("fixed", [tensor(lib, "IN", x, "FP32")]).as_numpy("OUT"), x)
    config = client.get_model_config("fixed", **({"as_json": True} if lib is grpcclient else {}))
    assert (config["config"] if lib is grpcclient else config).get("max_batch_size", 0) == 0


@pytest.mark.parametrize(
    "model, inputs, words, status",
    [
        ("nope", [("INPUT0", (1, 16), "FP32")], ["nope"], ("404", "StatusCode.NOT_FOUND")),
        ("add_sub", [("INPUT0", (1, 16), "FP32")], ["INPUT1"], ("400", "StatusCode.INVALID_ARGUMENT")),
        ("add_sub", [("INPUT0", (1, 16), "FP32"), ("OTHER", (1, 16), "FP32")], ["OTHER"],
         ("400", "StatusCode.INVALID_ARGUMENT")),
        ("add_sub", [("INPUT0", (1, 15), "FP32"), ("INPUT1", (1, 16), "FP32")], ["INPUT0", "[1,15]"],
         ("400", "StatusCode.INVALID_ARGUMENT")),
        ("add_sub", [("INPUT0", (1, 16), "FP32"), ("INPUT1", (1, 16), "FP64")], ["FP64", "FP32"],
         ("400", "StatusCode.INVALID_ARGUMENT")),
        ("add_sub", [("INPUT0", (65, 16), "FP32"), ("INPUT1", (65, 16), "FP32")], ["65", "64"],
         ("400", "StatusCode.INVALID_ARGUMENT")),
        ("add_sub", [("INPUT0", (2, 16), "FP32"), ("INPUT1", (3, 16), "FP32")], [],
         ("400", "StatusCode.INVALID_ARGUMENT")),
    ],
)
def test_mistakes_are_the_clients(api, model, inputs, words, status):
    lib, client = api
    tensors = [tensor(lib, n, np.zeros(s, models.DTYPES[d][1]), d) for n, s, d in inputs]
    with pytest.raises(InferenceServerException) as caught:
        client.infer(model, tensors)
    assert caught.value.status() == status[lib is grpcclient]
    for word in words:
        assert word in caught.value.message()
    assert client.is_server_live()


def test_unknown_output(api):
    lib, client = api
    x = np.zeros((1, 16), np.float32)
    with pytest.raises(InferenceServerException) as caught:
        client.infer("add_sub", [tensor(lib, "INPUT0", x, "FP32"), tensor(lib, "INPUT1", x, "FP32")],
                     outputs=[lib.InferRequestedOutput("OUTPUT7")])
    assert "OUTPUT7" in caught.value.message()


def test_classification(api):
    lib, client = api
    x = np.arange(16, dtype=np.float32).reshape(1, 16)
    got = client.infer("id_fp32", [tensor(lib, "IN", x, "FP32")],
                       outputs=[lib.InferRequestedOutput("OUT", class_count=2)]).as_numpy("OUT")
    assert [v.decode() for v in got.reshape(-1)] == ["15.000000:15", "14.000000:14"]


def test_statistics_count(api):
    lib, client = api

    def read():
        kw = {"as_json": True} if lib is grpcclient else {}
        s = client.get_inference_statistics("linear", **kw)["model_stats"][0]
        return int(s.get("inference_count", 0)), int(s["inference_stats"]["success"].get("count", 0))

    rows, requests = read()
    for _ in range(5):
        client.infer("linear", [tensor(lib, "X", np.zeros((3, 16), np.float32), "FP32")])
    assert read() == (rows + 15, requests + 5)


def test_repository_index(api):
    lib, client = api
    index = client.get_model_repository_index(**({"as_json": True} if lib is grpcclient else {}))
    entries = index["models"] if lib is grpcclient else index
    assert {e["name"] for e in entries} >= {"add_sub", "linear", "free"}
    assert all(e["state"] == "READY" for e in entries)


def test_asynchronous_requests(api):
    lib, client = api
    x = [np.full((1, 16), i, np.float32) for i in range(64)]
    if lib is httpclient:
        handles = [client.async_infer("id_fp32", [tensor(lib, "IN", v, "FP32")]) for v in x]
        answers = [h.get_result() for h in handles]
    else:
        import queue

        done = queue.Queue()
        for i, v in enumerate(x):
            client.async_infer("id_fp32", [tensor(lib, "IN", v, "FP32")],
                               callback=lambda result, error, i=i: done.put((i, result, error)))
        got = [done.get(timeout=60) for _ in x]
        assert all(error is None for _, _, error in got)
        answers = [r for _, r, _ in sorted(got, key=lambda g: g[0])]
    for v, a in zip(x, answers):
        np.testing.assert_array_equal(a.as_numpy("OUT"), v)
