"""Pipelines through Triton's own clients: ensembles of ONNX models and of naru's own steps, against NumPy and Pillow;
the configurations and commands of docs/pipelines.md."""

import io
import json
import re
import shutil
import subprocess
import threading
import time

import numpy as np
import pytest
from PIL import Image

import models
import plugin_models
import sequence_models
from conftest import EXAMPLES, PICTURES, ROOT
from rawhttp import ask

grpcclient = pytest.importorskip("tritonclient.grpc", reason="tritonclient is not installed")
httpclient = pytest.importorskip("tritonclient.http", reason="tritonclient is not installed")
from tritonclient.utils import InferenceServerException  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
DOC = (ROOT / "docs" / "pipelines.md").read_text()


def step(model, inputs, outputs):
    maps = "".join(f'input_map {{ key: "{k}" value: "{v}" }} ' for k, v in inputs.items())
    maps += "".join(f'output_map {{ key: "{k}" value: "{v}" }} ' for k, v in outputs.items())
    return f'step {{ model_name: "{model}" model_version: -1 {maps}}}\n'


def ensemble(inputs, outputs, steps, batch=8, **parameters):
    """inputs, outputs: (name, datatype, dims). parameters: step1__size="8x8"."""
    side = lambda kind, ios: "".join(  # noqa: E731
        f'{kind} {{ name: "{n}" data_type: TYPE_{"STRING" if t == "BYTES" else t} dims: {list(d)} }}\n' for n, t, d in ios)
    text = f'platform: "ensemble"\nmax_batch_size: {batch}\n' + side("input", inputs) + side("output", outputs)
    for key, value in parameters.items():
        number, name = re.fullmatch(r"step(\d+)__(\w+)", key).groups()
        text += f'parameters {{ key: "naru.step.{number}.{name}" value {{ string_value: "{value}" }} }}\n'
    return text + "ensemble_scheduling {\n" + "".join(steps) + "}\n"


def write(repo, name, text, version="1"):
    (repo / name / version).mkdir(parents=True)
    (repo / name / "config.pbtxt").write_text(text)


AB = [("A", "FP32", [16]), ("B", "FP32", [16])]
FILE = [("FILE", "BYTES", [1])]


@pytest.fixture(scope="module")
def running(module_server, tmp_path_factory):
    repo = tmp_path_factory.mktemp("repo")
    models.add_sub(repo)
    weights = models.linear(repo, "linear")
    models.identity(repo, "words", "BYTES", dims=("batch", 4))
    write(repo, "twice", ensemble(AB, [("X", "FP32", [16]), ("Y", "FP32", [16])], [
        step("add_sub", {"INPUT0": "A", "INPUT1": "B"}, {"OUTPUT0": "sum", "OUTPUT1": "difference"}),
        step("add_sub", {"INPUT0": "sum", "INPUT1": "difference"}, {"OUTPUT0": "X", "OUTPUT1": "Y"})]))
    write(repo, "mixed", ensemble(AB, [("L", "FP32", [4]), ("R", "FP32", [4])], [
        step("linear", {"X": "difference"}, {"Y": "R"}),
        step("linear", {"X": "sum"}, {"Y": "L"}),
        step("add_sub", {"INPUT0": "A", "INPUT1": "B"}, {"OUTPUT0": "sum", "OUTPUT1": "difference"})]))
    write(repo, "nested", ensemble(AB, [("X", "FP32", [16])], [
        step("twice", {"A": "A", "B": "B"}, {"X": "a", "Y": "b"}), step("twice", {"A": "a", "B": "b"}, {"X": "X"})]))
    write(repo, "talk", ensemble([("W", "BYTES", [4])], [("V", "BYTES", [4])], [
        step("words", {"IN": "W"}, {"OUT": "u"}), step("words", {"IN": "u"}, {"OUT": "V"})]))
    write(repo, "picture", ensemble(FILE, [("T", "FP32", [3, 48, 64]), ("PNG", "BYTES", [1])], [
        step("naru.image_decode", {"IMAGE": "FILE"}, {"PIXELS": "all"}),
        step("naru.image_resize", {"PIXELS": "all"}, {"PIXELS": "small"}),
        step("naru.image_normalize", {"PIXELS": "small"}, {"TENSOR": "T"}),
        step("naru.image_encode", {"TENSOR": "small"}, {"IMAGE": "PNG"})],
        step1__size="48x64", step1__resize="bicubic", step2__mean="0.485, 0.456, 0.406", step2__std="0.229, 0.224, 0.225"))
    write(repo, "each_size", ensemble(FILE, [("P", "UINT8", [-1, -1, 3])], [
        step("naru.image_decode", {"IMAGE": "FILE"}, {"PIXELS": "P"})]))
    write(repo, "parts", ensemble([("IN", "INT32", [2, 7])], [("OUT", "INT32", [2, 7]), ("MID", "INT32", [2, 3])], [
        step("naru.split", {"INPUT": "IN"}, {"OUTPUT0": "a", "OUTPUT1": "MID", "OUTPUT2": "c"}),
        step("naru.join", {"INPUT0": "c", "INPUT1": "MID", "INPUT2": "a"}, {"OUTPUT": "OUT"})],
        step0__axis=1, step0__sizes="2,3,-1", step1__axis=1))
    plugin_models.repository(repo, broken=plugin_models.model(
        "fault", [("INPUT0", "FP32", [16])], batch=8, fault="execute_error"))
    write(repo, "fails", ensemble(AB, [("X", "FP32", [16])], [
        step("add_sub", {"INPUT0": "A", "INPUT1": "B"}, {"OUTPUT0": "sum"}), step("broken", {"INPUT0": "sum"}, {"OUTPUT0": "X"})]))
    write(repo, "misfit", ensemble(AB, [("X", "FP32", [16])], [
        step("linear", {"X": "A"}, {"Y": "four"}), step("add_sub", {"INPUT0": "four", "INPUT1": "B"}, {"OUTPUT0": "X"})]))
    sequence_models.horner(repo, "inner")
    sequence_models.horner(repo, "outer", strategy="direct { }")
    write(repo, "sequence", ensemble([("IN", "INT64", [2])], [("OUT", "INT64", [2])], [
        step("inner", {"X": "IN"}, {"Y": "y"}), step("outer", {"X": "y"}, {"Y": "OUT"})]))
    for name, member in (("egg", "hen"), ("hen", "egg")):
        write(repo, name, ensemble(AB[:1], [("X", "FP32", [16])], [step(member, {"A": "A"}, {"X": "X"})]))
    s = module_server(models=[repo])
    s.linear = weights
    return s


@pytest.fixture(params=["http", "grpc"])
def api(request, running):
    lib = httpclient if request.param == "http" else grpcclient
    client = lib.InferenceServerClient(f"127.0.0.1:{running.http if request.param == 'http' else running.grpc}")
    yield lib, client
    client.close()


def infer(api, model, outputs=None, **inputs):
    lib, client = api
    tensors = []
    for name, array in inputs.items():
        if name in ("request_id", "client_timeout"):
            continue
        dtype = {"O": "BYTES", "f": "FP32", "i": "INT32", "u": "UINT8"}[array.dtype.kind]
        tensors.append(lib.InferInput(name, list(array.shape), dtype))
        tensors[-1].set_data_from_numpy(array)
    rest = {k: v for k, v in inputs.items() if k in ("request_id", "client_timeout")}
    asked = [lib.InferRequestedOutput(o) for o in outputs] if outputs else None
    return client.infer(model, tensors, outputs=asked, **rest)


def random(seed, rows=3):
    return np.random.default_rng(seed).normal(size=(rows, 16)).astype(np.float32)


def pictures(*names):
    files = [(PICTURES / n).read_bytes() for n in names]
    return files, np.array(files, dtype=object).reshape(-1, 1)


def counts(client, lib, model):
    s = client.get_inference_statistics(model, **({"as_json": True} if lib is grpcclient else {}))["model_stats"][0]
    return int(s.get("inference_count", 0)), int(s["inference_stats"]["success"].get("count", 0))


def test_add_sub_twice(api):
    lib, client = api
    a, b = random(1), random(2)
    before = {m: counts(client, lib, m) for m in ("twice", "add_sub")}
    r = infer(api, "twice", A=a, B=b, request_id="seven")
    s, d = a + b, a - b
    np.testing.assert_array_equal(r.as_numpy("X"), s + d)
    np.testing.assert_array_equal(r.as_numpy("Y"), s - d)
    answer = r.get_response(**({"as_json": True} if lib is grpcclient else {}))
    assert answer["id"] == "seven" and answer["model_name"] == "twice"
    after = {m: counts(client, lib, m) for m in ("twice", "add_sub")}
    grown = {m: tuple(y - x for x, y in zip(before[m], after[m])) for m in after}
    assert grown == {"twice": (3, 1), "add_sub": (6, 2)}  # rows, requests


def test_over_a_stream(running):
    """ModelStreamInfer: pipelines answer in order, a failing one does not end the stream."""
    client, got = grpcclient.InferenceServerClient(f"127.0.0.1:{running.grpc}"), []
    done = threading.Event()

    def take(result, error):
        got.append(error or result)
        if len(got) == 9:
            done.set()

    client.start_stream(take)
    arrays = [random(20 + i, rows=1) for i in range(9)]
    for i, a in enumerate(arrays):
        tensors = [grpcclient.InferInput(n, [1, 16], "FP32") for n in "AB"]
        for t in tensors:
            t.set_data_from_numpy(a)
        client.async_stream_infer("fails" if i == 4 else "twice", tensors, request_id=str(i))
    assert done.wait(20)
    client.stop_stream()
    for i, a in enumerate(arrays):
        if i == 4:
            assert 'step 1 (model "broken")' in str(got[4])
        else:
            assert got[i].get_response().id == str(i)
            np.testing.assert_array_equal(got[i].as_numpy("X"), a + a)


def test_branches_side_by_side_and_any_order_of_steps(api, running):
    w, c = running.linear
    a, b = random(3), random(4)
    r = infer(api, "mixed", A=a, B=b)
    np.testing.assert_allclose(r.as_numpy("L"), (a + b) @ w + c, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(r.as_numpy("R"), (a - b) @ w + c, rtol=1e-5, atol=1e-5)


def test_only_what_is_asked_for(api):
    lib, client = api
    before = counts(client, lib, "linear")
    r = infer(api, "mixed", outputs=["L"], A=random(5), B=random(6))
    assert r.as_numpy("L").shape == (3, 4) and r.as_numpy("R") is None
    assert counts(client, lib, "linear")[1] - before[1] == 1


def test_nested(api):
    a, b = random(7), random(8)
    np.testing.assert_allclose(infer(api, "nested", A=a, B=b).as_numpy("X"), 4 * a, rtol=1e-6, atol=1e-5)


def test_strings(api):
    words = np.array([[b"one", b"", b"three" * 5000, b"\xff"]], dtype=object)
    assert infer(api, "talk", W=words).as_numpy("V").tolist() == words.tolist()


def test_many_rows_and_too_many(api):
    a = random(9, rows=8)
    np.testing.assert_allclose(infer(api, "twice", A=a, B=a).as_numpy("X"), 2 * a, rtol=1e-6)
    with pytest.raises(InferenceServerException, match="8"):
        infer(api, "twice", A=random(9, rows=9), B=random(9, rows=9))


def test_image_chain_equals_pillow(api):
    files, tensor = pictures("rainy.jpg", "downpour.jpg")
    r = infer(api, "picture", FILE=tensor)
    assert r.as_numpy("T").shape == (2, 3, 48, 64)
    for i, data in enumerate(files):
        small = Image.open(io.BytesIO(data)).convert("RGB").resize((64, 48), Image.BICUBIC)
        x = np.asarray(small).astype(np.float32).transpose(2, 0, 1) * np.float32(1 / 255)
        mean, std = (np.array(v, np.float32).reshape(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
        np.testing.assert_allclose(r.as_numpy("T")[i], (x - mean) / std, atol=2.5 / 255 / 0.22)
        assert np.abs(r.as_numpy("T")[i] - (x - mean) / std).mean() < 1e-3
        back = np.asarray(Image.open(io.BytesIO(r.as_numpy("PNG")[i, 0])))
        assert np.abs(back.astype(int) - np.asarray(small).astype(int)).max() <= 2


def test_pictures_of_one_size_only(api):
    files, tensor = pictures("rainy.jpg")
    r = infer(api, "each_size", FILE=tensor).as_numpy("P")
    assert np.abs(r[0].astype(int) - np.asarray(Image.open(io.BytesIO(files[0])).convert("RGB")).astype(int)).max() <= 2
    with pytest.raises(InferenceServerException, match=r"step 0 \(\"naru.image_decode\"\): row 1: .*give parameter size"):
        infer(api, "each_size", FILE=pictures("rainy.jpg", "digit.png")[1])
    with pytest.raises(InferenceServerException, match=r"step 0 \(\"naru.image_decode\"\): "):
        infer(api, "each_size", FILE=np.array([[b"no picture"]], dtype=object))


def test_members_with_sequences(api):
    """Both members get the correlation id and the flags, so each keeps its state of each sequence."""
    lib, client = api
    xs = {7: np.arange(8).reshape(4, 2), 8: np.arange(8, 16).reshape(4, 2)}
    got = {7: [], 8: []}
    for i in range(4):
        for sequence, x in xs.items():
            t = lib.InferInput("IN", [1, 2], "INT64")
            t.set_data_from_numpy(x[i:i + 1])
            r = client.infer("sequence", [t], sequence_id=sequence, sequence_start=i == 0, sequence_end=i == 3)
            got[sequence].append(r.as_numpy("OUT")[0])
    for sequence, x in xs.items():
        want = sequence_models.horner_answers(sequence_models.horner_answers(x))
        np.testing.assert_array_equal(got[sequence], want)


def test_parts(api):
    x = np.arange(28, dtype=np.int32).reshape(2, 2, 7)
    r = infer(api, "parts", IN=x)
    np.testing.assert_array_equal(r.as_numpy("MID"), x[:, :, 2:5])
    np.testing.assert_array_equal(r.as_numpy("OUT"), np.concatenate([x[:, :, 5:], x[:, :, 2:5], x[:, :, :2]], axis=2))


def test_a_failing_step_is_named(api):
    with pytest.raises(InferenceServerException, match=r"step 1 \(model \"broken\"\): "):
        infer(api, "fails", A=random(1), B=random(2))


def test_metadata_and_config(api):
    lib, client = api
    how = {"as_json": True} if lib is grpcclient else {}
    assert client.get_model_metadata("twice", **how)["platform"] == "ensemble"
    config = client.get_model_config("twice", **how)
    config = config.get("config", config)
    steps = config["ensemble_scheduling"]["step"]
    assert [s["model_name"] for s in steps] == ["add_sub", "add_sub"] and int(steps[0]["model_version"]) == -1
    assert not config.get("instance_group") and not config.get("backend")


def test_what_does_not_fit_is_not_served(running):
    index = {m["name"]: m for m in ask(running.http, "POST", "/v2/repository/index").json()}
    assert index["misfit"]["state"] == "UNAVAILABLE"
    assert index["misfit"]["reason"] == ('step 1 (model "add_sub"): input "INPUT0" is FP32 [-1,16], but tensor "four" is '
                                         'FP32 [-1,4] (step 0 writes it as)')
    assert index["egg"]["reason"] == "it contains itself: egg → hen → egg"
    r = ask(running.http, "POST", "/v2/models/egg/infer", "{}")
    assert r.status == 404 and "it contains itself" in r.error
    assert any("misfit version 1: NOT ready" in line for line in running.banner)
    assert any("twice version 1: ready" in line and "ensemble" in line for line in running.banner)


def test_metrics_and_page(running):
    text = ask(running.http, "GET", "/metrics").body.decode()
    assert 'nv_inference_request_success{model="twice",version="1"}' in text
    page = {m["name"]: m for m in ask(running.http, "GET", "/naru/models").json()["models"]}
    assert page["twice"]["backend"] == "ensemble" and not page["egg"]["ready"]
    why = ask(running.http, "GET", "/v2/models/twice/why")
    assert why.status == 400 and "ask the models of its steps: add_sub, add_sub" in why.error


# --- members that come and go ------------------------------------------------------------------------------------------

ECHO = ensemble([("IN", "FP32", [4])], [("OUT", "FP32", [4])], [step("member", {"INPUT0": "IN"}, {"OUTPUT0": "OUT"})])
OUTER = ensemble([("IN", "FP32", [4])], [("OUT", "FP32", [4])], [step("echo", {"IN": "IN"}, {"OUT": "OUT"})])


def test_a_member_is_unloaded_and_reloaded(server, tmp_path):
    """In explicit mode: unready with its member and ready again; a member that does not fit any more; a reload is seen by
    the next request, while one under way ends with the old one."""
    member = lambda dims, us=0: plugin_models.model(  # noqa: E731
        "delay", [("INPUT0", "FP32", dims)], batch=8, delay_us=us)
    write(tmp_path, "echo", ECHO)
    write(tmp_path, "outer", OUTER)
    plugin_models.repository(tmp_path, member=member([4]))
    s = server("--model-control-mode", "explicit", "--load-model", "*", models=[tmp_path])
    client = httpclient.InferenceServerClient(f"127.0.0.1:{s.http}", concurrency=2)
    index = lambda: {m["name"]: (m["state"], m.get("reason", "")) for m in client.get_model_repository_index()}  # noqa: E731
    x = np.arange(4, dtype=np.float32).reshape(1, 4)
    ask_outer = lambda: infer((httpclient, client), "outer", IN=x).as_numpy("OUT")  # noqa: E731
    np.testing.assert_array_equal(ask_outer(), x)

    client.unload_model("member")
    assert not client.is_model_ready("echo") and not client.is_model_ready("outer") and not client.is_server_ready()
    assert index()["echo"] == ("UNAVAILABLE", 'step 0 needs model "member", which is not ready: unloaded')
    with pytest.raises(InferenceServerException, match='step 0 needs model "echo"'):
        ask_outer()
    client.unload_model("outer")
    with pytest.raises(InferenceServerException, match='step 0 needs model "echo".*becomes ready with its members'):
        client.load_model("outer")
    client.load_model("member")
    assert client.is_model_ready("echo") and client.is_model_ready("outer")
    np.testing.assert_array_equal(ask_outer(), x)

    (tmp_path / "member" / "config.pbtxt").write_text(member([5]))
    client.load_model("member")
    state, reason = index()["outer"]
    assert state == "UNAVAILABLE" and "needs model" in reason and "FP32 [-1,5]" in reason

    (tmp_path / "member" / "config.pbtxt").write_text(member([4], us=3000000))
    client.load_model("member")
    assert client.is_model_ready("outer")
    slow = client.async_infer("outer", [tensor_of("IN", x)])
    page = lambda: {m["name"]: m for m in ask(s.http, "GET", "/naru/models").json()["models"]}  # noqa: E731
    while page()["member"]["running"] == 0:
        pass
    (tmp_path / "member" / "config.pbtxt").write_text(member([4]) + "# changed\n")
    client.load_model("member")  # returns when the new one serves
    np.testing.assert_array_equal(ask_outer(), x)
    np.testing.assert_array_equal(slow.get_result().as_numpy("OUT"), x)
    client.close()


def tensor_of(name, array):
    t = httpclient.InferInput(name, list(array.shape), "FP32")
    t.set_data_from_numpy(array)
    return t


def test_members_are_loaded_on_demand(server, tmp_path):
    """With a budget nothing is loaded at the start: a pipeline gets its members, one after the other."""
    for name in "abcd":
        models.add_sub(tmp_path, name, config="max_batch_size: 8\n")
    for x, y in ("ab", "cd"):
        write(tmp_path, x + y, ensemble([("A", "FP32", [16])], [("X", "FP32", [16])], [
            step(x, {"INPUT0": "A", "INPUT1": "A"}, {"OUTPUT0": "t"}),
            step(y, {"INPUT0": "t", "INPUT1": "t"}, {"OUTPUT0": "X"})]))
    s = server("--model-memory-budget", "3MiB", "--model-resident-min", "50ms", models=[tmp_path])
    wrong = []
    pages = {m["name"]: m for m in ask(s.http, "GET", "/naru/models").json()["models"]}
    assert not any(pages[n]["ready"] for n in "abcd")

    def ask_both(first):
        client = httpclient.InferenceServerClient(f"127.0.0.1:{s.http}")
        for k in range(8):
            try:
                r = infer((httpclient, client), ("ab", "cd")[(k // 4 + first) % 2], A=np.ones((1, 16), np.float32))
                if r.as_numpy("X")[0, 0] != 4:
                    wrong.append(k)
            except Exception as e:  # noqa: BLE001 - threads do not fail tests by themselves
                wrong.append(e)
        client.close()

    threads = [threading.Thread(target=ask_both, args=(i,)) for i in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_pipelines_that_do_not_fit_together(server, tmp_path):
    """A load takes longer than a model is sure to stay: the older request gets all its members, then the other one."""
    slow_load = ('parameters { key: "delay_us" value { string_value: "100000" } }\n'
                 'model_warmup [ { name: "w" batch_size: 0 inputs { key: "INPUT0" value { data_type: TYPE_FP32 dims: [ 1 ] '
                 'zero_data: true } } } ]\n')
    for name in "abcdef":
        write(tmp_path, name, 'backend: "delay"\nmax_batch_size: 0\ninput [ { name: "INPUT0" data_type: TYPE_FP32 dims: [ 1 ] } ]\n'
              'output [ { name: "OUTPUT0" data_type: TYPE_FP32 dims: [ 1 ] } ]\n' + slow_load)
    for names in ("abc", "def"):
        t = ["A", "t", "u", "X"]
        write(tmp_path, names, ensemble([("A", "FP32", [1])], [("X", "FP32", [1])], [
            step(n, {"INPUT0": t[i]}, {"OUTPUT0": t[i + 1]}) for i, n in enumerate(names)], batch=0))
    s = server("--model-memory-budget", "3MiB", "--model-resident-min", "10ms", "--no-warm-up", models=[tmp_path])
    wrong, body = [], json.dumps({"inputs": [{"name": "A", "datatype": "FP32", "shape": [1], "data": [7]}]})

    def ask_for(name):
        for _ in range(3):
            r = ask(s.http, "POST", f"/v2/models/{name}/infer", body)
            if r.status != 200 or r.json()["outputs"][0]["data"] != [7]:
                wrong.append(r.body[:200])

    threads = [threading.Thread(target=ask_for, args=(n,)) for n in ("abc", "def", "def", "abc")]
    begin = time.monotonic()
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong
    assert time.monotonic() - begin < 25


# --- docs/pipelines.md ------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def documented(module_server, tmp_path_factory):
    repo = tmp_path_factory.mktemp("docs")
    for name in ("digits", "derain"):
        shutil.copytree(EXAMPLES / "models" / name, repo / name)
    large = (repo / "digits" / "config.pbtxt").read_text().replace('name: "digits"', "")
    shutil.copytree(repo / "digits", repo / "large_digits")
    (repo / "large_digits" / "config.pbtxt").write_text(large)
    blocks = re.findall(r"```\n# (\S+)/config.pbtxt\n(.*?)```", DOC, re.S)
    assert [name for name, _ in blocks] == ["read_digit", "clean_picture", "cascade"]
    for name, text in blocks:
        (repo / name).mkdir()
        (repo / name / "config.pbtxt").write_text(text)
    return module_server(models=[repo])


def test_documented_command(documented, tmp_path):
    command = re.search(r"```console\n(curl -T digit.png .*)\n```", DOC).group(1)
    command = command.replace("http://127.0.0.1:8000", documented.url) + " -s"
    out = subprocess.run(["bash", "-c", command], cwd=PICTURES, capture_output=True, check=True).stdout
    length = int(re.search(rb'"binary_data_size":(\d+)', out).group(1))
    ours = np.frombuffer(out[-length:], np.float32)
    shown = ask(documented.http, "POST", "/v2/models/digits/predict", (PICTURES / "digit.png").read_bytes()).json()["labels"]
    np.testing.assert_allclose(ours[[v["index"] for v in shown]], [v["probability"] for v in shown], atol=1e-5)


def test_documented_picture(documented):
    client = httpclient.InferenceServerClient(f"127.0.0.1:{documented.http}")
    _, tensor = pictures("rainy.jpg")
    png = infer((httpclient, client), "clean_picture", file=tensor).as_numpy("png")[0, 0]
    want = ask(documented.http, "POST", "/v2/models/derain/predict", (PICTURES / "rainy.jpg").read_bytes()).body
    a, b = (np.asarray(Image.open(io.BytesIO(v))).astype(int) for v in (png, want))
    assert np.abs(a - b).max() <= 1
    client.close()


def test_documented_cascade(documented):
    client = httpclient.InferenceServerClient(f"127.0.0.1:{documented.http}")
    asked = lambda: counts(client, httpclient, "large_digits")[1]  # noqa: E731
    sure, unsure = np.zeros((1, 1, 8, 8), np.float32), np.full((1, 1, 8, 8), 3, np.float32)
    small = {}
    for name, x in (("sure", sure), ("unsure", unsure)):
        small[name] = infer((httpclient, client), "digits", image=x).as_numpy("probabilities").max()
    for name, x in (("sure", sure), ("unsure", unsure)):
        before = asked()
        r = infer((httpclient, client), "cascade", image=x).as_numpy("answer")
        assert r.shape == (1, 10) and asked() - before == (small[name] < 0.9)
    client.close()
