"""Models that may answer a request several times, asked by methods that take one answer."""

import json

import pytest

from plugin_models import model, repository
from rawhttp import ask

grpcclient = pytest.importorskip("tritonclient.grpc", reason="tritonclient is not installed")
import numpy as np  # noqa: E402
from tritonclient.utils import InferenceServerException  # noqa: E402

IO = [("INPUT0", "FP32", [-1])]
DECOUPLED = "model_transaction_policy { decoupled: true }\n"


@pytest.fixture(scope="module")
def one(module_server, tmp_path_factory):
    models = {"many": model("repeat", IO, extra=DECOUPLED), "plain": model("repeat", IO),
              "wrong": model("identity", IO, extra=DECOUPLED)}
    return module_server("--no-keep-gallery", models=[repository(tmp_path_factory.mktemp("repo"), **models)])


def body(**parameters):
    return json.dumps({"parameters": parameters,
                       "inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": [2], "data": [1.5, 2]}]})


def test_the_only_answer_is_the_answer(one):
    r = ask(one.http, "POST", "/v2/models/many/infer", body(responses=1))
    assert r.status == 200 and r.json()["outputs"][0]["data"] == [1.5, 2]
    assert ask(one.http, "POST", "/v2/models/plain/infer", body()).json()["outputs"][0]["data"] == [1.5, 2]
    assert ask(one.http, "POST", "/v2/models/many/infer", body(responses=0)).json()["outputs"] == []


def test_several_are_an_error_that_says_so(one):
    r = ask(one.http, "POST", "/v2/models/many/infer", body(responses=2))
    assert r.status == 400 and "several responses" in r.error
    client = grpcclient.InferenceServerClient(f"127.0.0.1:{one.grpc}")
    t = grpcclient.InferInput("INPUT0", [2], "FP32")
    t.set_data_from_numpy(np.array([1, 2], np.float32))
    with pytest.raises(InferenceServerException, match="several responses") as e:
        client.infer("many", [t], parameters={"responses": 1000000})  # it stops early, or this would take minutes
    assert "INVALID_ARGUMENT" in e.value.status()
    assert client.infer("many", [t], parameters={"responses": 1}).as_numpy("OUTPUT0").tolist() == [1, 2]


def test_configuration_says_it(one):
    c = ask(one.http, "GET", "/v2/models/many/config").json()
    assert c["model_transaction_policy"] == {"decoupled": True}


def test_a_plugin_that_answers_once_refuses(one):
    index = {m["name"]: m for m in ask(one.http, "POST", "/v2/repository/index").json()}
    assert index["wrong"]["state"] == "UNAVAILABLE" and 'plug-in "identity" answers each request once' in index["wrong"]["reason"]
