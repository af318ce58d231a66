"""model.py of Triton's Python backend: a whole batch in one run of ONNX Runtime."""
import os

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb


class TritonPythonModel:
    def initialize(self, args):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        path = os.path.join(args["model_repository"], args["model_version"], "model.onnx")
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def execute(self, requests):
        inputs = [pb.get_input_tensor_by_name(r, "X").as_numpy() for r in requests]
        y = self.session.run(None, {"X": np.concatenate(inputs)})[0]
        answers, row = [], 0
        for x in inputs:
            answers.append(pb.InferenceResponse([pb.Tensor("Y", y[row:row + len(x)])]))
            row += len(x)
        return answers
