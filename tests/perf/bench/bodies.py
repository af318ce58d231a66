"""Requests as clients write them, for every protocol measured; made before the clock starts."""
import json
import random
import struct

PICTURE = (1, 3, 224, 224)


def numbers(n, seed=1):
    """float32 values, written with the digits that a float32 needs to be read back."""
    rng = random.Random(seed)
    return [float(f"{rng.uniform(-1, 1):.8g}") for _ in range(n)]


def json_tensor(name, shape, values, binary_output=None):
    head = {"inputs": [{"name": name, "shape": list(shape), "datatype": "FP32", "data": values}]}
    if binary_output is not None:
        head["parameters"] = {"binary_data_output": binary_output}
    return json.dumps(head, separators=(",", ":")).encode()


def binary_tensor(name, shape, values):
    """(header fields, body): the binary tensor data extension, both ways."""
    data = struct.pack(f"<{len(values)}f", *values)
    head = json.dumps({"inputs": [{"name": name, "shape": list(shape), "datatype": "FP32",
                                   "parameters": {"binary_data_size": len(data)}}],
                       "parameters": {"binary_data_output": True}}, separators=(",", ":")).encode()
    return [f"Inference-Header-Content-Length: {len(head)}", "Content-Type: application/octet-stream"], head + data


def _varint(n):
    out = b""
    while n > 0x7F:
        out += bytes([n & 0x7F | 0x80])
        n >>= 7
    return out + bytes([n])


def _field(number, payload):
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload


def grpc_message(model, name, shape, values):
    """inference.ModelInferRequest with raw_input_contents."""
    tensor = (_field(1, name.encode()) + _field(2, b"FP32") +
              _field(3, b"".join(_varint(d) for d in shape)))
    return (_field(1, model.encode()) + _field(5, tensor) +
            _field(7, struct.pack(f"<{len(values)}f", *values)))


def grpc_frame(message):
    return b"\0" + struct.pack(">I", len(message)) + message


def grpc_answer_bytes(model, name, rank, values):
    """Length of the framed ModelInferResponse that a server gives with one raw FP32 output."""
    tensor = len(_field(1, name.encode()) + _field(2, b"FP32") + _field(3, b"\1" * rank))
    return 5 + len(_field(1, model.encode()) + _field(2, b"1")) + 2 + tensor + 2 + 4 * values
