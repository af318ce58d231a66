"""The usual way to serve a model with FastAPI: parse JSON, run, answer JSON."""
import os

import numpy as np
import onnxruntime
from fastapi import FastAPI, Request

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])
app = FastAPI()


@app.get("/v2/health/ready")
async def ready():
    return {}


@app.post("/v2/models/{name}/infer")
async def infer(name: str, request: Request):
    tensor = (await request.json())["inputs"][0]
    x = np.asarray(tensor["data"], np.float32).reshape(tensor["shape"])
    y = session.run(None, {tensor["name"]: x})[0]
    return {"model_name": name, "outputs": [{"name": session.get_outputs()[0].name, "datatype": "FP32",
                                             "shape": list(y.shape), "data": y.ravel().tolist()}]}
