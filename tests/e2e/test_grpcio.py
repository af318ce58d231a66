"""gRPC as any client speaks it (grpcio with Triton's messages): health, status codes, deadlines,
typed contents, many calls on one channel."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import plugin_models
from counts import HOUR_US

grpc = pytest.importorskip("grpc", reason="grpcio is not installed")
pb = pytest.importorskip("tritonclient.grpc.service_pb2", reason="tritonclient is not installed")
from tritonclient.grpc import service_pb2_grpc  # noqa: E402


@pytest.fixture(scope="module")
def running(module_server, tmp_path_factory):
    repo = plugin_models.repository(
        tmp_path_factory.mktemp("repo"),
        echo=plugin_models.model("identity", [("INPUT0", "FP32", [4])], batch=8),
        numbers=plugin_models.model("identity", [("INPUT0", "INT8", [-1])]),
        texts=plugin_models.model("identity", [("INPUT0", "BYTES", [-1])]),
        slow=plugin_models.slow(HOUR_US))
    return module_server("--no-keep-gallery", models=[repo])


@pytest.fixture
def stub(running):
    with grpc.insecure_channel(f"127.0.0.1:{running.grpc}") as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def request(model, values, field="fp32_contents", dtype="FP32", shape=(1, 4)):
    r = pb.ModelInferRequest(model_name=model)
    tensor = r.inputs.add(name="INPUT0", datatype=dtype)
    tensor.shape.extend(shape)
    getattr(tensor.contents, field).extend(values)
    return r


def test_health_check(running):
    with grpc.insecure_channel(f"127.0.0.1:{running.grpc}") as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        assert check(b"") == b"\x08\x01"  # status = SERVING
        with pytest.raises(grpc.RpcError) as caught:
            check(b"\x0a\x04nope")
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_typed_contents(stub):
    got = stub.ModelInfer(request("echo", [1, 2, 3, 4]))
    np.testing.assert_array_equal(np.frombuffer(got.raw_output_contents[0], np.float32), [1, 2, 3, 4])
    got = stub.ModelInfer(request("numbers", [-128, 127], "int_contents", "INT8", (2,)))
    assert got.raw_output_contents[0] == b"\x80\x7f"
    got = stub.ModelInfer(request("texts", [b"", "나루".encode()], "bytes_contents", "BYTES", (2,)))
    assert got.raw_output_contents[0] == b"\0\0\0\0" + b"\x06\0\0\0" + "나루".encode()


def test_values_outside_of_their_type(stub):
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(request("numbers", [128], "int_contents", "INT8", (1,)))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT and "128" in caught.value.details()


def test_raw_and_typed_do_not_mix(stub):
    r = request("echo", [1, 2, 3, 4])
    r.raw_input_contents.append(b"\0" * 16)
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(r)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_unknown_method_and_service(running):
    with grpc.insecure_channel(f"127.0.0.1:{running.grpc}") as channel:
        for path in ("/inference.GRPCInferenceService/Nope", "/other.Service/Do"):
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(path)(b"")
            assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_deadline(stub):
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(pb.ModelInferRequest(model_name="nope"), timeout=60)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    with pytest.raises(grpc.RpcError) as caught:
        slow_request(stub, timeout=0.2)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED


def slow_request(stub, timeout):
    meta = stub.ModelMetadata(pb.ModelMetadataRequest(name="slow"))
    tensor = meta.inputs[0]
    r = pb.ModelInferRequest(model_name="slow")
    one = r.inputs.add(name=tensor.name, datatype=tensor.datatype)
    one.shape.extend([abs(d) for d in tensor.shape])
    sizes = {"FP32": 4, "INT32": 4, "UINT8": 1, "INT64": 8}
    r.raw_input_contents.append(b"\0" * int(np.prod(one.shape)) * sizes[tensor.datatype])
    return stub.ModelInfer(r, timeout=timeout)


def test_many_calls_on_one_channel(stub):
    def call(i):
        got = stub.ModelInfer(request("echo", [i, i + 1, i + 2, i + 3]))
        return np.frombuffer(got.raw_output_contents[0], np.float32).tolist() == [i, i + 1, i + 2, i + 3]

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(call, range(500)))


def test_statistics_and_index(stub):
    stub.ModelInfer(request("echo", [1, 2, 3, 4]))
    s = stub.ModelStatistics(pb.ModelStatisticsRequest(name="echo")).model_stats[0]
    assert s.inference_stats.success.count >= 1 and s.inference_count >= 1
    states = {m.name: m.state for m in stub.RepositoryIndex(pb.RepositoryIndexRequest()).models}
    assert states["echo"] == "READY"
