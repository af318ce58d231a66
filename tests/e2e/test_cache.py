"""The response cache: what was answered before is answered again without the model, whatever protocol asks."""

import json
import threading

import numpy as np
import pytest

import models as onnx_models
from plugin_models import model, repository
from rawhttp import ask

grpcclient = pytest.importorskip("tritonclient.grpc", reason="tritonclient is not installed")
httpclient = pytest.importorskip("tritonclient.http", reason="tritonclient is not installed")

IO = [("INPUT0", "FP32", [-1])]
KEPT = "response_cache { enable: true }\n"


@pytest.fixture(scope="module")
def one(module_server, tmp_path_factory):
    models = {
        "kept": model("identity", IO, extra=KEPT),
        "open": model("identity", IO),
        "batched": model("identity", IO, batch=8, extra=KEPT + "dynamic_batching { }\n"),
        "failing": model("fault", IO, fault="execute_error", extra=KEPT),
    }
    return module_server("--no-keep-gallery", models=[repository(tmp_path_factory.mktemp("repo"), **models)])


def client_of(lib, s):
    return lib.InferenceServerClient(f"127.0.0.1:{s.http if lib is httpclient else s.grpc}")


def infer(lib, client, name, values, batch=False, **how):
    data = np.array([values] if batch else values, dtype=np.float32)
    t = lib.InferInput("INPUT0", list(data.shape), "FP32")
    t.set_data_from_numpy(data)
    return client.infer(name, [t], **how).as_numpy("OUTPUT0").flatten().tolist()


def stats(s, name):
    return ask(s.http, "GET", f"/v2/models/{name}/stats").json()["model_stats"][0]


@pytest.mark.parametrize("lib", [httpclient, grpcclient], ids=["http", "grpc"])
def test_hits_do_not_execute(one, lib):
    client = client_of(lib, one)
    values = [1.5, 2.5, float(lib is grpcclient)]
    before = stats(one, "kept")
    for _ in range(5):
        assert infer(lib, client, "kept", values, request_id="x") == values
    after = stats(one, "kept")
    grown = {k: after["inference_stats"][k]["count"] - before["inference_stats"][k]["count"] for k in after["inference_stats"]}
    assert grown["cache_hit"] == 4 and grown["cache_miss"] == 1 and grown["success"] == 5
    assert grown["queue"] == grown["compute_infer"] == 1
    assert after["execution_count"] - before["execution_count"] == 1
    assert after["inference_count"] - before["inference_count"] == 1


def test_protocols_share_answers(one):
    """The key is made of tensors, not of the bytes that carried them."""
    text = json.dumps({"inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": [3], "data": [7, 8, 9.25]}]})
    assert ask(one.http, "POST", "/v2/models/kept/infer", text).json()["outputs"][0]["data"] == [7, 8, 9.25]
    before = stats(one, "kept")["inference_stats"]["cache_hit"]["count"]
    assert infer(httpclient, client_of(httpclient, one), "kept", [7, 8, 9.25]) == [7, 8, 9.25]
    assert infer(grpcclient, client_of(grpcclient, one), "kept", [7, 8, 9.25]) == [7, 8, 9.25]
    assert stats(one, "kept")["inference_stats"]["cache_hit"]["count"] - before == 2


def test_only_where_asked_for(one):
    client = client_of(httpclient, one)
    for _ in range(3):
        infer(httpclient, client, "open", [1, 2])
    s = stats(one, "open")
    assert s["execution_count"] == 3
    assert s["inference_stats"]["cache_hit"]["count"] == s["inference_stats"]["cache_miss"]["count"] == 0


def test_failures_are_asked_again(one):
    text = json.dumps({"inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": [1], "data": [1]}]})
    for _ in range(3):
        assert ask(one.http, "POST", "/v2/models/failing/infer", text).status >= 400
    assert stats(one, "failing")["inference_stats"]["cache_hit"]["count"] == 0


def test_many_at_once(one):
    """Hits and misses from several connections and both loops: every answer is its question's."""
    wrong = []

    def work(lib, seed):
        client = client_of(lib, one)
        rng = np.random.default_rng(seed)
        for _ in range(150):
            values = [float(rng.integers(20))] * 5
            if infer(lib, client, "batched", values, batch=True) != values:
                wrong.append(values)

    all_of_them = [threading.Thread(target=work, args=(lib, i)) for i in range(3) for lib in (httpclient, grpcclient)]
    for t in all_of_them:
        t.start()
    for t in all_of_them:
        t.join()
    s = stats(one, "batched")["inference_stats"]
    assert not wrong and s["success"]["count"] == 900
    assert s["cache_hit"]["count"] + s["cache_miss"]["count"] == 900 and s["cache_hit"]["count"] > 700


@pytest.mark.parametrize("extra,said", [("sequence_batching { }\n", "sequence_batching"),
                                        ("model_transaction_policy { decoupled: true }\n", "decoupled")])
def test_refused_where_answers_depend_on_more(server, tmp_path, extra, said):
    s = server("--no-keep-gallery", models=[repository(tmp_path / "repo", m=model("identity", IO, extra=KEPT + extra))])
    reason = ask(s.http, "POST", "/v2/repository/index").json()[0]["reason"]
    assert said in reason


def test_triton_words(server, tmp_path):
    s = server("--no-keep-gallery", "--cache-config", "local,size=65536",
               models=[repository(tmp_path / "repo", kept=model("identity", IO, extra=KEPT))])
    text = ask(s.http, "GET", "/metrics").body.decode()
    assert "naru_cache_max_bytes 65536\n" in text


def test_a_pipeline_forgets_with_its_members(server, tmp_path):
    """The answer of an ensemble is kept, and never outlives what made it: a member that is reloaded, also one of an
    ensemble within it."""
    repo = tmp_path / "repo"
    around = lambda inner, x, y: (  # noqa: E731
        'platform: "ensemble"\nmax_batch_size: 8\n' + KEPT
        + 'input { name: "X" data_type: TYPE_FP32 dims: 16 }\noutput { name: "Y" data_type: TYPE_FP32 dims: 4 }\n'
        f'ensemble_scheduling {{ step {{ model_name: "{inner}" input_map {{ key: "{x}" value: "X" }} '
        f'output_map {{ key: "{y}" value: "Y" }} }} }}\n')
    repository(repo, inner=around("member", "X", "Y"), outer=around("inner", "X", "Y"))
    weights = [onnx_models.linear(repo, "member", seed=1)]
    s = server("--no-keep-gallery", "--model-control-mode", "explicit", "--load-model", "*", models=[repo])
    x = np.random.default_rng(5).normal(size=(2, 16)).astype(np.float32)
    text = json.dumps({"inputs": [{"name": "X", "datatype": "FP32", "shape": [2, 16], "data": x.flatten().tolist()}]})

    def check(name, hits):
        before = stats(s, name)["inference_stats"]["cache_hit"]["count"]
        y = ask(s.http, "POST", f"/v2/models/{name}/infer", text).json()["outputs"][0]["data"]
        w, b = weights[-1]
        np.testing.assert_allclose(np.array(y).reshape(2, 4), x @ w + b, rtol=1e-4, atol=1e-4)
        assert stats(s, name)["inference_stats"]["cache_hit"]["count"] - before == hits

    for version in (2, 3):
        for name in ("inner", "outer"):
            check(name, 0)
            check(name, 1)
        assert stats(s, "member")["inference_stats"]["success"]["count"] == 1  # outer's miss was inner's hit
        weights.append(onnx_models.linear(repo, "member", seed=version, version=str(version)))
        assert ask(s.http, "POST", "/v2/repository/models/member/load").status == 200
    check("outer", 0)
    check("inner", 1)


def test_an_ensemble_that_cannot_be_kept(server, tmp_path):
    ensemble = (
        'platform: "ensemble"\n' + KEPT + 'input { name: "X" data_type: TYPE_FP32 dims: -1 }\n'
        'output { name: "Y" data_type: TYPE_FP32 dims: -1 }\nensemble_scheduling { step { model_name: "many" '
        'input_map { key: "INPUT0" value: "X" } output_map { key: "OUTPUT0" value: "Y" } } }\n')
    many = model("repeat", IO, extra="model_transaction_policy { decoupled: true }\n")
    s = server("--no-keep-gallery", models=[repository(tmp_path / "repo", many=many, e=ensemble)])
    index = {m["name"]: m for m in ask(s.http, "POST", "/v2/repository/index").json()}
    assert index["many"]["state"] == "READY"
    assert "response_cache cannot be enabled for an ensemble" in index["e"]["reason"]
