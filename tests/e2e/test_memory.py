"""What the process holds: little after loading, no more than before after a burst or a large picture."""
import io
import json
import os
import pathlib
import re
import urllib.request

import numpy as np
import pytest
from PIL import Image

import models

from conftest import NARU, ROOT, wait_until
from rawhttp import H1, ask

onnx = models.onnx
h = models.h

PICTURE = ROOT / "examples" / "pictures" / "rainy.jpg"
PLUGIN = pathlib.Path(NARU).parent / "backends" / "naru-onnxruntime.so"
MIB = 1 << 20


def held(s, field="VmRSS"):
    with open(f"/proc/{s.pid}/status", encoding="ascii") as f:
        return next(int(line.split()[1]) << 10 for line in f if line.startswith(field + ":"))


@pytest.fixture
def examples(server):
    if not PLUGIN.exists():
        pytest.skip("the onnxruntime plug-in is not built")
    return lambda *options: server(*options, "--no-keep-gallery", models=[ROOT / "examples" / "models"])


def large(width, height):
    data = io.BytesIO()
    Image.open(PICTURE).convert("RGB").resize((width, height)).save(data, "JPEG", quality=85)
    return data.getvalue()


def derain(s, picture, limit_s=300):
    request = urllib.request.Request(s.url + "/v2/models/derain/predict", picture, {"Content-Type": "image/jpeg"},
                                     method="POST")
    with urllib.request.urlopen(request, timeout=limit_s) as answer:
        return Image.open(io.BytesIO(answer.read()))


def test_a_large_picture_leaves_nothing(examples):
    """ONNX Runtime's arena grows to hundreds of megabytes for it; two seconds later they are back."""
    s = examples()
    idle = held(s)
    for _ in range(2):
        pathlib.Path(f"/proc/{s.pid}/clear_refs").write_text("5")  # VmHWM begins again
        assert derain(s, large(2400, 1600)).size == (2400, 1600)
        assert held(s, "VmHWM") > idle + 150 * MIB, "the test's picture is too small to show anything"
        wait_until(lambda: held(s) < idle + 80 * MIB, what="the memory of the picture")
    assert derain(s, large(320, 200)).size == (320, 200)


def test_small_pictures_pay_nothing(examples):
    """Below 32 MiB an arena stays, so that a model that is used now and then stays fast."""
    s = examples()
    assert derain(s, large(160, 120)).size == (160, 120)
    wait_until(lambda: held(s, "VmHWM") > 0, what="the figures")
    sizes = []
    for _ in range(3):
        before = held(s, "RssAnon")
        derain(s, large(160, 120))
        sizes.append(held(s, "RssAnon") - before)
    assert max(sizes[1:]) < 16 * MIB, sizes


def test_code_of_loading_is_given_back(examples):
    """Serving needs a fraction of the code that opening models runs through."""
    if not os.access("/proc/self/pagemap", os.R_OK):
        pytest.skip("/proc/self/pagemap cannot be read here")
    kept, given = examples("--idle-trim", "0s"), examples()
    wait_until(lambda: held(given, "RssFile") < held(kept, "RssFile") / 2, what="the code of loading")
    picture = large(64, 48)
    assert np.array_equal(np.asarray(derain(kept, picture)), np.asarray(derain(given, picture)))
    assert held(given, "RssFile") < held(kept, "RssFile")


def test_a_burst_of_connections_leaves_little(examples):
    s = examples("--io-threads", 1)
    body = b'{"inputs":[{"name":"image","datatype":"FP32","shape":[1,1,8,8],"data":[' + b"0," * 63 + b"0]}]}"
    for _ in range(3):  # allocators and placement settle
        assert ask(s.http, "POST", "/v2/models/digits/infer", body).status == 200
    idle = held(s, "RssAnon")
    connections = [H1(s.http) for _ in range(400)]
    for c in connections:
        c.send(b"POST /v2/models/digits/infer HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
    for c in connections:
        assert c.response().status == 200
        c.close()
    wait_until(lambda: held(s, "RssAnon") < idle + MIB, what="the memory of 400 connections")


def test_no_telemetry(server, tmp_path):
    """Builds of ONNX Runtime that gather telemetry are told not to: no file, no thread, no connection."""
    if not PLUGIN.exists():
        pytest.skip("the onnxruntime plug-in is not built")
    home = tmp_path / "home"
    home.mkdir()
    s = server("--no-keep-gallery", models=[ROOT / "examples" / "models"],
               env={"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), "ORT_DISABLE_TELEMETRY": None})
    derain(s, large(64, 48))
    assert list(home.rglob("*")) == []
    opened = [os.readlink(f"/proc/{s.pid}/fd/{n}") for n in os.listdir(f"/proc/{s.pid}/fd")]
    assert not [name for name in opened if "onnxruntime" in name], opened


# --- what each model is said to hold --------------------------------------------------------------

SAID = re.compile(r"^  (\w+) version 1: ready in [0-9.]+ ms, onnxruntime, ([0-9.]+) (bytes?|KiB|MiB|GiB)$")
UNITS = {"byte": 1, "bytes": 1, "KiB": 1 << 10, "MiB": MIB, "GiB": 1 << 30}


def size(text):
    number, unit = text.split()
    return float(number) * UNITS[unit]


def said(s):
    """What the banner says, and that /naru/models says the same."""
    found = {m[1]: size(f"{m[2]} {m[3]}") for m in map(SAID.match, s.banner) if m}
    listed = json.loads(urllib.request.urlopen(s.url + "/naru/models", timeout=60).read())
    for entry in listed["models"]:
        assert entry["memory_bytes"] == pytest.approx(found[entry["name"]], rel=0.06), entry
    return found


def filled(folder, name, mib, stored):
    """x + w, whose w of so many MiB is in the file, or made from nothing by an operator."""
    n = mib * MIB // 4
    if stored:
        nodes, weights = [], [onnx.numpy_helper.from_array(np.ones(n, np.float32), "W")]
    else:
        value = onnx.numpy_helper.from_array(np.array([1], np.float32))
        nodes = [h.make_node("ConstantOfShape", ["N"], ["W"], value=value)]
        weights = [onnx.numpy_helper.from_array(np.array([n], np.int64), "N")]
    graph = h.make_graph(nodes + [h.make_node("ReduceMax", ["W"], ["M"], keepdims=0), h.make_node("Add", ["X", "W"], ["S"]),
                                  h.make_node("ReduceMin", ["S"], ["Y"], keepdims=1)], "filled",
                         [h.make_tensor_value_info("X", onnx.TensorProto.FLOAT, [1])],
                         [h.make_tensor_value_info("Y", onnx.TensorProto.FLOAT, [1])], weights)
    return models.save(graph, folder, name)


def beside(part, folder, name):
    """The same model with its weights in a file beside it."""
    where = folder / name / "1"
    where.mkdir(parents=True)
    onnx.save(onnx.load(part / "1" / "model.onnx"), where / "model.onnx", save_as_external_data=True, location="weights")
    assert (where / "model.onnx").stat().st_size < 4096
    return where.parent


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Folders of single models: three of the examples, and three of 24 MiB, two of them in files of 300 bytes."""
    if not PLUGIN.exists():
        pytest.skip("the onnxruntime plug-in is not built")
    folder = tmp_path_factory.mktemp("parts")
    examples = [ROOT / "examples" / "models" / name for name in ("add_sub", "digits", "derain")]
    stored = filled(folder, "stored", 24, True)
    return examples + [stored, filled(folder, "made", 24, False), beside(stored, folder, "mapped")]


def test_memory_of_a_model_does_not_depend_on_the_others(server, parts):
    """Alone, first or last, one by one or at once: what is said of a model is what it holds."""
    options = ["--no-keep-gallery", "--no-warm-up"]
    alone = {}
    for part in parts:
        alone.update(said(server(*options, models=[part])))
    assert set(alone) == {"add_sub", "digits", "derain", "stored", "made", "mapped"}
    assert alone["add_sub"] < MIB / 4, "the library's own memory is in the first model's figure"
    for name in ("stored", "made", "mapped"):
        assert 24 * MIB <= alone[name] < 60 * MIB, name
    for threads in (1, 4):
        for order in (parts, parts[::-1]):
            got = said(server(*options, "--model-load-thread-count", threads, models=order))
            for name, bytes_alone in alone.items():
                # what others freed may be used again: some hundred KiB
                assert abs(got[name] - bytes_alone) < 384 * 1024 + bytes_alone * 0.1, (name, threads, alone, got)


def test_the_banner_names_what_the_process_takes(server, parts):
    s = server("--no-keep-gallery", "--no-warm-up", models=parts[:3])  # larger arenas are held before they are touched
    at = s.banner.index("memory")
    process = re.match(r"  process ([0-9.]+ \w+) resident \(([0-9.]+ \w+) where pages shared", s.banner[at + 1])
    rest = re.match(r"  models ([0-9.]+ \w+); ([0-9.]+ \w+) once for onnxruntime .*, whatever its models$", s.banner[at + 2])
    models_bytes, once = size(rest[1]), size(rest[2])
    assert models_bytes == pytest.approx(sum(said(s).values()), rel=0.05)
    assert MIB < once < 64 * MIB
    assert size(process[2]) <= size(process[1]) * 1.02
    # nothing large is left out: the parts add up to the whole, but for naru's own and mapped files
    assert models_bytes + once < size(process[1]) + 2 * MIB
    assert size(process[1]) < models_bytes + once + 48 * MIB
