"""Pictures through /v2/models/M/predict: curl's lines of docs/predict.md, every way to send one, every
form of answer, every refusal; and the numbers, against NumPy, Pillow and ONNX Runtime."""
import base64
import http.client
import io
import json
import re
import shlex
import signal
import socket
import struct
import subprocess
import time
import zlib

import pytest
from conftest import EXAMPLES, PICTURES, ROOT, wait_until
from counts import metric

np = pytest.importorskip("numpy")
Image = pytest.importorskip("PIL.Image")
ort = pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def examples(module_server):
    return module_server()


TENSOR = """
name: "%s"
backend: "identity"
max_batch_size: 8
input [ { name: "x" data_type: TYPE_%s dims: [ %s ] } ]
output [ { name: "y" data_type: TYPE_%s dims: [ %s ] %s } ]
"""


def identity_model(repository, name, dtype="FP32", dims="3, -1, -1", labels=None, **keys):
    """A model that answers its input tensor; keys: naru.* parameters with _ for the dots."""
    folder = repository / name
    (folder / "1").mkdir(parents=True)
    text = TENSOR % (name, dtype, dims, dtype, dims, 'label_filename: "labels.txt"' if labels else "")
    for key, value in keys.items():
        text += f'parameters {{ key: "naru.{key.replace("__", ".")}" value {{ string_value: "{value}" }} }}\n'
    (folder / "config.pbtxt").write_text(text)
    if labels:
        (folder / "labels.txt").write_text("\n".join(labels))


@pytest.fixture(scope="module")
def mirrors(module_server, tmp_path_factory):
    """Models made of the identity plug-in: what they answer shows exactly what they were given."""
    r = tmp_path_factory.mktemp("mirrors")
    identity_model(r, "picture")
    identity_model(r, "jpeg", output__format="jpeg")
    identity_model(r, "bytes", "UINT8", output="image")
    identity_model(r, "tiled", image__scale="1/255", image__multiple_of=2, image__tile=64, image__tile_overlap=16,
                   output="image")
    identity_model(r, "tensor", image__size="4x6", image__resize="nearest", image__scale="1/127.5", image__mean="1",
                   output="tensor")
    identity_model(r, "half", "FP16", image__size="4x6", image__resize="box", output="tensor")
    identity_model(r, "scores", dims="1, 2, 2", image__layout="NCHW", image__color="GRAY", image__scale="1", output="labels", labels=["a", "b \"c\"", "", "<d>"],
                   output__top_k="3")
    identity_model(r, "softmax", dims="1, 2, 2", image__layout="NCHW", image__color="GRAY", image__scale="1/64", output="labels", output__softmax="true")
    identity_model(r, "vector", dims="16")
    return module_server(models=[r])


def curl(*arguments):
    done = subprocess.run(["curl", "-sS", "--fail-with-body", "--max-time", "60", *map(str, arguments)], capture_output=True, timeout=90,
                          check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def send(server, path, body, method="POST", **headers):
    c = http.client.HTTPConnection("127.0.0.1", server.http, timeout=60)
    c.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()},
              encode_chunked="transfer_encoding" in headers)
    r = c.getresponse()
    data = r.read()
    c.close()
    return r.status, {k.lower(): v for k, v in r.getheaders()}, data


def refused(server, path, body, status, *words, method="POST", **headers):
    got, fields, data = send(server, path, body, method, **headers)
    text = json.loads(data)["error"]
    assert got == status, (got, text)
    assert fields["content-type"] == "application/json"
    for word in words:
        assert word in text, text
    return text


def png(a):
    out = io.BytesIO()
    Image.fromarray(a).save(out, "PNG")
    return out.getvalue()


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)))


def noise(height, width, seed=3):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


# --- curl, as people type it -------------------------------------------------------------------

def test_curl_t_makes_a_clean_picture(examples, tmp_path):
    out = tmp_path / "clean.png"
    curl("-T", PICTURES / "rainy.jpg", f"{examples.url}/v2/models/derain/predict", "-o", out)
    truth = np.asarray(Image.open(PICTURES / "rainy_truth.jpg"), np.float64)
    rainy = np.asarray(Image.open(PICTURES / "rainy.jpg"), np.float64)
    clean = np.asarray(Image.open(out), np.float64)
    psnr = [10 * np.log10(255 ** 2 / np.mean((x - truth) ** 2)) for x in (rainy, clean)]
    assert Image.open(out).format == "PNG"
    assert psnr[1] > psnr[0] + 4, psnr


@pytest.mark.parametrize("digit", ["2", "7"])
def test_curl_t_names_the_digit(examples, digit):
    answer = json.loads(curl("-T", PICTURES / f"digit_{digit}.png", f"{examples.url}/v2/models/digits/predict"))
    assert answer["model_name"] == "digits" and answer["model_version"] == "1"
    assert answer["labels"][0]["label"] == digit and answer["labels"][0]["index"] == int(digit)
    p = [x["probability"] for x in answer["labels"]]
    assert len(p) == 10 and p == sorted(p, reverse=True) and abs(sum(p) - 1) < 1e-3 and p[0] > 0.8


def test_curl_in_other_ways(examples, tmp_path):
    url = f"{examples.url}/v2/models/derain/predict"
    rainy = PICTURES / "rainy.jpg"
    want = curl("-T", rainy, url)
    assert curl("--data-binary", f"@{rainy}", "-H", "Content-Type: image/jpeg", url) == want
    assert curl("--data-binary", f"@{rainy}", url) == want # says it is a form; the first bytes say more
    assert curl("-F", f"image=@{rainy}", url) == want
    assert curl("--http2-prior-knowledge", "-T", rainy, url) == want
    assert curl("-T", rainy, f"{examples.url}/v2/models/derain/versions/1/predict") == want
    body = tmp_path / "body.json"
    body.write_text(json.dumps({"image": base64.b64encode(rainy.read_bytes()).decode()}))
    assert curl("-H", "Content-Type: application/json", "--data-binary", f"@{body}", url) == want
    for form, ending in (("image/jpeg", "JPEG"), ("image/webp", "WEBP")):
        assert Image.open(io.BytesIO(curl("-T", rainy, "-H", f"Accept: {form}", url))).format == ending


def test_the_documents_lines(examples, tmp_path):
    """Every curl line of docs/predict.md, as it stands there."""
    text = (ROOT / "docs" / "predict.md").read_text()
    lines = [line for block in re.findall(r"```console\n(.*?)```", text, re.S) for line in block.splitlines()]
    assert len(lines) >= 4
    for name in ("rainy.jpg", "digit.png"):
        (tmp_path / name).write_bytes((PICTURES / name).read_bytes())
    for line in lines:
        words = shlex.split(line.replace("http://127.0.0.1:8000", examples.url))
        assert words[0] == "curl"
        done = subprocess.run(["curl", "-sS", "--fail-with-body", *words[1:]], cwd=tmp_path, capture_output=True,
                              timeout=60, check=False)
        assert done.returncode == 0, (line, done.stdout, done.stderr)
        if "-o" in words:
            out = tmp_path / words[words.index("-o") + 1]
            assert Image.open(out).size == (480, 320) and Image.open(out).format.lower() == out.suffix[1:]
            out.unlink()
        else:
            assert json.loads(done.stdout)["labels"]


def test_the_documents_keys():
    """docs/predict.md lists exactly the keys that the header of the plan describes."""
    described = (ROOT / "src" / "codec" / "image_plan.h").read_text().split("Arithmetic per element")[0]
    keys = set(re.findall(r"^ \*   (naru\.\S+)", described, re.M))
    keys = {k.rstrip(",") for k in keys} | {"naru.image.std"} # "naru.image.mean, .std"
    documented = set(re.findall(r"^\| `(naru\.[^`]+)` \|", (ROOT / "docs" / "predict.md").read_text(), re.M))
    assert documented == keys


# --- ways in -----------------------------------------------------------------------------------

PHOTO = png(noise(9, 7))


def test_every_way_in_is_the_same(mirrors):
    path = "/v2/models/picture/predict"
    text = base64.b64encode(PHOTO).decode()
    edge = b"--b\r\ncontent-disposition: form-data; name=\"note\"\r\n\r\nhello\r\n--b\r\ncontent-disposition: " \
           b"form-data; name=\"f\"; filename=\"x.png\"\r\ncontent-type: image/png\r\n\r\n" + PHOTO + b"\r\n--b--\r\n"
    ways = [
        send(mirrors, path, PHOTO, "PUT"),
        send(mirrors, path, PHOTO),
        send(mirrors, path, PHOTO, content_type="image/jpeg"), # not so: the bytes decide
        send(mirrors, path, PHOTO, content_type="application/json"),
        send(mirrors, path, json.dumps({"image": text})), # no type at all
        send(mirrors, path, json.dumps({"image": text}), content_type="application/json; charset=utf-8"),
        send(mirrors, path, json.dumps({"image": "data:image/png;base64," + text}), content_type="application/json"),
        send(mirrors, path, edge, content_type="multipart/form-data; boundary=b"),
        send(mirrors, path, iter([PHOTO[:40], PHOTO[40:]]), transfer_encoding="chunked"),
    ]
    for status, fields, data in ways:
        assert status == 200, data
        assert fields["content-type"] == "image/png"
        assert fields["server-timing"].startswith("infer;dur=")
        assert np.array_equal(pixels(data), noise(9, 7))


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (63, 65), (64, 64), (100, 200), (131, 77)])
def test_tiles_leave_no_trace(mirrors, size):
    a = noise(*size)
    assert np.array_equal(pixels(send(mirrors, "/v2/models/tiled/predict", png(a))[2]), a)
    assert np.array_equal(pixels(send(mirrors, "/v2/models/bytes/predict", png(a))[2]), a)


# --- answers -----------------------------------------------------------------------------------

@pytest.mark.parametrize("accept, form", [
    (None, "image/png"), ("*/*", "image/png"), ("image/*", "image/png"), ("image/webp", "image/webp"),
    ("IMAGE/JPEG", "image/jpeg"), ("image/jpeg;q=0.9, image/png;q=0.1", "image/png"),
    ("image/png;q=0, image/*", "image/jpeg"), ("image/png;level=1;q=0.000, image/webp", "image/webp"),
    ("*/*, image/png;q=0", "image/jpeg"), ("text/html, application/json", "application/json"),
    ("image/avif,image/webp,image/apng,*/*;q=0.8", "image/png"),
])
def test_accept(mirrors, accept, form):
    status, fields, data = send(mirrors, "/v2/models/picture/predict", PHOTO, **({"accept": accept} if accept else {}))
    assert (status, fields["content-type"]) == (200, form)
    if form == "application/json":
        answer = json.loads(data)
        assert answer["model_name"] == "picture" and answer["image"]["type"] == "image/png"
        data = base64.b64decode(answer["image"]["data"])
    picture = Image.open(io.BytesIO(data))
    assert picture.size == (7, 9)
    assert form == "application/json" or Image.MIME[picture.format] == form


def test_accept_that_leaves_nothing(mirrors, examples):
    refused(mirrors, "/v2/models/picture/predict", PHOTO, 406, "answers image/png, image/jpeg, image/webp or application/json;",
            "text/plain", accept="text/plain")
    refused(mirrors, "/v2/models/tensor/predict", PHOTO, 406, "application/json or application/octet-stream", accept="a/b")
    refused(mirrors, "/v2/models/picture/predict", PHOTO, 406, accept="*/*;q=0")
    refused(examples, "/v2/models/digits/predict", PHOTO, 406, "application/json", accept="image/png")


def test_declared_format(mirrors):
    assert send(mirrors, "/v2/models/jpeg/predict", PHOTO)[1]["content-type"] == "image/jpeg"
    assert send(mirrors, "/v2/models/jpeg/predict", PHOTO, accept="image/png")[1]["content-type"] == "image/png"


def test_tensor(mirrors):
    a = noise(8, 12)
    nearest = np.asarray(Image.fromarray(a).resize((6, 4), Image.Resampling.NEAREST))
    want = (nearest.astype(np.float32) * np.float32(1 / 127.5) - np.float32(1)).transpose(2, 0, 1)[None]
    status, fields, data = send(mirrors, "/v2/models/tensor/predict", png(a))
    assert (status, fields["content-type"]) == (200, "application/json")
    answer = json.loads(data)
    out = answer["outputs"][0]
    assert (out["name"], out["datatype"], out["shape"]) == ("y", "FP32", [1, 3, 4, 6])
    assert np.array_equal(np.array(out["data"], np.float32).reshape(1, 3, 4, 6), want)
    status, fields, data = send(mirrors, "/v2/models/tensor/predict", png(a), accept="application/octet-stream")
    assert (status, fields["content-type"]) == (200, "application/octet-stream")
    assert np.array_equal(np.frombuffer(data, np.float32).reshape(1, 3, 4, 6), want)


def test_half_precision_tensor(mirrors):
    a = noise(16, 24)
    box = np.asarray(Image.fromarray(a).resize((6, 4), Image.Resampling.BOX)).transpose(2, 0, 1)[None]
    data = send(mirrors, "/v2/models/half/predict", png(a), accept="application/octet-stream")[2]
    got = np.frombuffer(data, np.float16).reshape(1, 3, 4, 6)
    assert np.abs(got.astype(np.int32) - box).max() <= 1 # Pillow's box within one step


def test_scores_are_no_probabilities(mirrors):
    grey = np.array([[10, 200], [30, 200]], np.uint8)
    status, fields, data = send(mirrors, "/v2/models/scores/predict", png(grey))
    assert (status, fields["content-type"]) == (200, "application/json")
    assert json.loads(data)["labels"] == [{"label": 'b "c"', "index": 1, "score": 200},
                                          {"label": "<d>", "index": 3, "score": 200},
                                          {"label": "2", "index": 2, "score": 30}]
    labels = json.loads(send(mirrors, "/v2/models/softmax/predict", png(grey))[2])["labels"]
    x = np.exp((grey.reshape(-1) / 64).astype(np.float64))
    assert [entry["index"] for entry in labels] == [1, 3, 2, 0]
    assert np.allclose([entry["probability"] for entry in labels], np.sort(x / x.sum())[::-1], rtol=1e-4)


# --- refusals ----------------------------------------------------------------------------------

def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def huge_png(width, height):
    """A header only: the size must be refused before anything is decoded."""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) \
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


def test_no_picture(mirrors):
    path = "/v2/models/picture/predict"
    refused(mirrors, path, b"", 400, "no picture", "curl -T")
    refused(mirrors, path, b"", 400, "no picture", method="PUT")
    refused(mirrors, path, b"hello, world", 415, "JPEG")
    refused(mirrors, path, b"\0" * 100000, 415)
    refused(mirrors, path, b"GIF89a" + b"\0" * 30, 415, "GIF")
    refused(mirrors, path, b"BM" + b"\0" * 60, 415)
    refused(mirrors, path, b"\x1f\x8b" + PHOTO, 415, "gzip", content_encoding="gzip")


def test_broken_pictures(mirrors):
    path = "/v2/models/picture/predict"
    rainy = (PICTURES / "rainy.jpg").read_bytes()
    refused(mirrors, path, rainy[:3000], 400)
    refused(mirrors, path, rainy[:2], 415)
    refused(mirrors, path, PHOTO[:-20], 400)
    damaged = bytearray(PHOTO)
    damaged[60] ^= 0xff
    refused(mirrors, path, bytes(damaged), 400)
    refused(mirrors, path, huge_png(10000, 6000), 413, "10000")
    refused(mirrors, path, huge_png(20000, 2), 413, "20000")
    refused(mirrors, path, huge_png(0x7fffffff, 0x7fffffff), 413)
    refused(mirrors, path, huge_png(0, 5), 400)
    assert send(mirrors, path, PHOTO)[0] == 200


def test_broken_wrappings(mirrors):
    path = "/v2/models/picture/predict"
    for body in (b"{", b"[]", b"{}", b'{"image": 7}', b'{"image": null}', b'{"picture": "x"}'):
        refused(mirrors, path, body, 400, '{"image"', content_type="application/json")
    refused(mirrors, path, b'{"image": "%%%"}', 400, content_type="application/json")
    refused(mirrors, path, b'{"image": ""}', 400, "no picture", content_type="application/json")
    refused(mirrors, path, b'{"image": "aGVsbG8="}', 415, content_type="application/json")
    form = "multipart/form-data; boundary=b"
    refused(mirrors, path, b"--b\r\n", 400, content_type=form)
    refused(mirrors, path, b"x", 400, content_type="multipart/form-data")
    refused(mirrors, path, b'--b\r\ncontent-disposition: form-data; name="a"\r\n\r\nx\r\n--b--\r\n', 400, "no file",
            content_type=form)


def test_models_that_cannot(mirrors, examples):
    refused(mirrors, "/v2/models/nobody/predict", PHOTO, 404, "nobody")
    refused(mirrors, "/v2/models/picture/versions/9/predict", PHOTO, 404)
    refused(mirrors, "/v2/models/vector/predict", PHOTO, 400, "takes no pictures")
    refused(examples, "/v2/models/add_sub/predict", PHOTO, 400, "takes no pictures")
    refused(mirrors, "/v2/models/picture/predict", None, 405, method="GET")
    refused(mirrors, "/v2/models/picture/predict", None, 405, method="DELETE")


def test_too_large_a_body(server):
    s = server("--max-body", "100k")
    refused(s, "/v2/models/derain/predict", b"\xff\xd8\xff" + b"\0" * 200000, 413)
    assert send(s, "/v2/models/derain/predict", (PICTURES / "rainy.jpg").read_bytes())[0] == 200


def test_pixel_limit_is_an_option(server):
    s = server("--max-image-pixels", "60", "--no-keep-gallery")
    refused(s, "/v2/models/derain/predict", PHOTO, 413)
    assert send(s, "/v2/models/derain/predict", png(noise(6, 10)))[0] == 200


@pytest.mark.parametrize("end", ["close", "half", "reset", "malformed", "stay"])
def test_a_body_that_never_ends_holds_nothing(server, tmp_path, end):
    """A client that leaves, or goes wrong, in the middle of its body: the server ends at once."""
    identity_model(tmp_path / "r", "picture")
    s = server(models=[tmp_path / "r"])
    c = socket.create_connection(("127.0.0.1", s.http), 60)
    c.sendall(b"PUT /v2/models/picture/predict HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n"
              b"expect: 100-continue\r\n\r\n")
    assert c.recv(1000).startswith(b"HTTP/1.1 100 ")
    c.sendall(b"5\r\nab")
    if end == "close":
        c.close()
    elif end == "half":
        c.shutdown(socket.SHUT_WR)
    elif end == "reset":
        c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        c.close()
    elif end == "malformed":
        c.sendall(b"cdeXX")
        assert c.recv(1000).startswith(b"HTTP/1.1 400 ")
    if end == "stay":
        s.signal(signal.SIGTERM)
        time.sleep(0.1)
        assert s.process.poll() is None # it waits for the body, up to --exit-timeout
    else:
        wait_until(lambda: metric(s, "naru_http_connections") == 1, what="the end of the connection")
    s.stop(limit_s=20) # to the one that stays the second signal; --exit-timeout is 30 s
    c.close()


# --- what is kept, and who may ask ---------------------------------------------------------------

def test_keep(module_server, examples):
    path = "/v2/models/derain/predict"
    assert "naru-gallery-id" not in send(examples, path, PHOTO)[1]
    fields = send(examples, path + "?keep=1", PHOTO)[1]
    key = fields["naru-gallery-id"]
    for side, want in (("input", PHOTO), ("output", None)):
        status, fields, data = send(examples, f"/naru/gallery/{key}/{side}", None, "GET")
        assert status == 200 and fields["content-type"] == "image/png" and (want is None or data == want)
        assert fields["x-content-type-options"] == "nosniff" and "default-src 'self'" in fields["content-security-policy"]
        assert send(examples, f"/naru/gallery/{key}/{side}", None, "GET", if_none_match=fields["etag"])[0::2] == (304, b"")
    listed = json.loads(send(examples, "/naru/gallery?limit=1", None, "GET")[2])
    assert listed["enabled"] and listed["entries"][0]["id"] == key and listed["entries"][0]["model"] == "derain"
    assert listed["entries"][0]["input"] == {"type": "image/png", "bytes": len(PHOTO)}
    refused(examples, "/naru/gallery?limit=-1", None, 400, "limit", method="GET")
    refused(examples, "/naru/gallery?limit=x", None, 400, "limit", method="GET")
    assert send(examples, f"/naru/gallery/{key}", None, "DELETE")[0] == 204
    refused(examples, f"/naru/gallery/{key}", None, 404, key, method="DELETE")
    refused(examples, f"/naru/gallery/{key}/input", None, 404, method="GET")
    refused(examples, "/naru/gallery/..%2f..%2fetc%2fpasswd/input", None, 404, method="GET")
    # labels and tensors are not kept, and another site's page may not fill the disk
    assert "naru-gallery-id" not in send(examples, "/v2/models/digits/predict?keep=1", PHOTO)[1]
    assert "naru-gallery-id" not in send(examples, path + "?keep=1", PHOTO, sec_fetch_site="cross-site")[1]


def test_nothing_is_kept(server):
    s = server("--no-keep-gallery")
    status, fields, _ = send(s, "/v2/models/derain/predict?keep=1", PHOTO)
    assert status == 200 and "naru-gallery-id" not in fields
    assert json.loads(send(s, "/naru/gallery", None, "GET")[2]) == {"enabled": False, "entries": []}
    refused(s, "/naru/gallery/0123456789abcdef/input", None, 404, "--gallery", method="GET")
    refused(s, "/naru/gallery/0123456789abcdef", None, 404, method="DELETE")


def test_a_full_disk_does_not_stop_answers(server, tmp_path):
    gallery = tmp_path / "gallery"
    s = server(gallery=gallery)
    for f in gallery.iterdir():
        f.unlink()
    gallery.rmdir() # nothing can be written there any more
    status, fields, data = send(s, "/v2/models/derain/predict?keep=1", PHOTO)
    assert status == 200 and fields["content-type"] == "image/png" and "naru-gallery-id" not in fields
    assert "a picture is not kept" in s.log()


def test_one_gallery_is_not_shared(server, tmp_path):
    first = server(gallery=tmp_path / "g")
    with pytest.raises(AssertionError, match="in use by another process"):
        server(gallery=tmp_path / "g")
    assert send(first, "/naru/gallery", None, "GET")[0] == 200


def test_other_sites(mirrors):
    path = "/v2/models/picture/predict"
    port = mirrors.http
    refused(mirrors, path, PHOTO, 403, "evil.example", host="evil.example")
    for origin in ("http://evil.example", "null", f"http://127.0.0.1:{port + 1}", "http://localhost.evil.example",
                   f"http://evil.example/127.0.0.1:{port}", "127.0.0.1"):
        refused(mirrors, path, PHOTO, 403, origin, origin=origin)
    for name in (f"127.0.0.1:{port}", f"localhost:{port}", f"LOCALHOST:{port}"):
        assert send(mirrors, path, PHOTO, host=name, origin=f"http://{name}")[0] == 200


def test_allowed_host(server, tmp_path):
    identity_model(tmp_path / "r", "picture")
    s = server("--allow-host", "box.lan", models=[tmp_path / "r"])
    path = "/v2/models/picture/predict"
    assert send(s, path, PHOTO, host=f"box.lan:{s.http}", origin="https://box.lan")[0] == 200
    refused(s, path, PHOTO, 403, host="other.lan")
    identity = server("--no-check-browser", models=[tmp_path / "r"])
    assert send(identity, path, PHOTO, host="other.lan", origin="https://other.lan")[0] == 200


# --- numbers -----------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def sessions():
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return {name: ort.InferenceSession(str(EXAMPLES / "models" / name / "1" / "model.onnx"), options,
                                       providers=["CPUExecutionProvider"]) for name in ("derain", "digits")}


def derain_reference(session, picture):
    h, w = picture.shape[:2]
    x = picture.astype(np.float32) * np.float32(0.00392156862745098)
    x = np.pad(x, ((0, h % 2), (0, w % 2), (0, 0)), mode="reflect" if min(h, w) > 1 else "edge")
    y = session.run(["clean"], {"image": np.ascontiguousarray(x.transpose(2, 0, 1)[None])})[0][0]
    return np.clip(np.floor(y.transpose(1, 2, 0)[:h, :w] * np.float32(255) + np.float32(0.5)), 0, 255).astype(np.uint8)


def difference(a, b):
    assert a.shape == b.shape
    return np.abs(a.astype(np.int16) - b.astype(np.int16)).max()


@pytest.mark.parametrize("name", ["rainy.jpg", "downpour.jpg"])
def test_derain_is_the_reference(examples, sessions, name):
    picture = np.asarray(Image.open(PICTURES / name).convert("RGB"))
    got = pixels(send(examples, "/v2/models/derain/predict", png(picture))[2])
    assert difference(got, derain_reference(sessions["derain"], picture)) <= 1
    from_jpeg = pixels(send(examples, "/v2/models/derain/predict", (PICTURES / name).read_bytes())[2])
    assert difference(from_jpeg, got) <= 2 # two builds of libjpeg-turbo between them


@pytest.mark.parametrize("size", [(97, 151), (2, 2), (33, 48), (512, 16)])
def test_derain_of_any_size(examples, sessions, size):
    rainy = np.asarray(Image.open(PICTURES / "rainy.jpg").resize((size[1], size[0])))
    got = pixels(send(examples, "/v2/models/derain/predict", png(rainy))[2])
    assert difference(got, derain_reference(sessions["derain"], rainy)) <= 1


def test_tiled_equals_untiled(examples, sessions):
    """1500x1100 goes through the model in four tiles; the reference is one run of the whole picture."""
    rainy = np.asarray(Image.open(PICTURES / "downpour.jpg").resize((1500, 1100), Image.Resampling.LANCZOS))
    got = pixels(send(examples, "/v2/models/derain/predict", png(rainy))[2])
    assert difference(got, derain_reference(sessions["derain"], rainy)) <= 1


@pytest.mark.parametrize("name", ["digit.png", "digit_2.png", "digit_7.png"])
def test_digits_are_the_reference(examples, sessions, name):
    grey = Image.open(PICTURES / name).convert("RGB").convert("L").resize((8, 8), Image.Resampling.BOX)
    x = (np.float32(255) - np.asarray(grey, np.float32)) * np.float32(0.06274509803921569)
    want = sessions["digits"].run(None, {"image": x[None, None]})[0][0]
    labels = json.loads(send(examples, "/v2/models/digits/predict", (PICTURES / name).read_bytes())[2])["labels"]
    got = np.zeros(10)
    for entry in labels:
        assert entry["label"] == str(entry["index"])
        got[entry["index"]] = entry["probability"]
    assert np.abs(got - want).max() < 1e-3
    assert labels[0]["index"] == int(np.argmax(want))


def test_models_route(examples):
    status, fields, data = send(examples, "/naru/models", None, "GET")
    assert (status, fields["content-type"]) == (200, "application/json")
    models = {m["name"]: m for m in json.loads(data)["models"]}
    assert set(models) == {"derain", "digits", "add_sub"}
    assert models["derain"]["takes_picture"] and models["derain"]["answer"] == "image"
    assert models["digits"]["takes_picture"] and models["digits"]["answer"] == "labels"
    assert not models["add_sub"]["takes_picture"] and "takes no pictures" in models["add_sub"]["why"]
    assert models["derain"]["max_batch_size"] == 2 and models["derain"]["ready"] and models["derain"]["version"] == "1"
