"""What the process holds: little after loading, no more than before after a burst or a large picture."""
import io
import os
import pathlib
import urllib.request

import numpy as np
import pytest
from PIL import Image

from conftest import NARU, ROOT, wait_until
from rawhttp import H1, ask

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
