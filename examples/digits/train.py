#!/usr/bin/env python3
"""Train, measure and export the example model "digits": which digit 0-9 is drawn?

What it makes
    ../models/digits/1/model.onnx   a 64-96-32-10 perceptron with softmax, 40 kB
    metrics.json                    its accuracy on the test part of the data

Data: the 1,797 digits that scikit-learn carries, 8x8 grey, 0 = paper and
16 = full ink (each value counts the inked dots in a 4x4 box of a 32x32 scan).
A quarter, stratified and fixed by the seed, is kept for the test and never
trained on.  The rest is varied: bolder and finer strokes, turned, shifted,
shrunk and slanted, so that digits drawn by hand in a browser are known too.

Needs numpy, scipy, scikit-learn, onnx and onnxruntime; takes about ten seconds.
"""

import argparse
import json
import pathlib
import sys
import time

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
MODEL = HERE.parent / "models" / "digits" / "1" / "model.onnx"
METRICS = HERE / "metrics.json"
LAYERS = (96, 32)
BAR = 0.96


def data(seed):
    """Split of scikit-learn's digits: (train x, train y, test x, test y); x is float32 [n, 8, 8], 0..16."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    x_train, x_test, y_train, y_test = train_test_split(
        digits.images.astype(np.float32), digits.target, test_size=0.25, random_state=seed, stratify=digits.target
    )
    return x_train, y_train, x_test, y_test


def vary(picture, rng):
    """A digit as another hand would have drawn it: [8, 8] -> [8, 8], 0..16.

    The 8x8 picture is brought back to a 32x32 scan, cut at a random ink level
    (which makes strokes bolder or finer), moved by a random affine map about
    its centre and counted into 4x4 boxes again, as the data set was made.
    """
    from scipy import ndimage

    big = ndimage.zoom(picture, 4, order=1, grid_mode=True, mode="nearest")
    sharp = np.clip((big - rng.uniform(3.5, 9.0)) / 2 + 0.5, 0, 1)
    turn, slant = np.radians(rng.uniform(-14, 14)), rng.uniform(-0.2, 0.2)
    tall, wide = 1 / rng.uniform(0.7, 1.08, 2)
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn) + slant, np.cos(turn)]]) * np.array(
        [[tall], [wide]]
    )
    centre = np.array([15.5, 15.5])
    moved = ndimage.affine_transform(sharp, matrix, centre - matrix @ (centre + rng.uniform(-2.5, 2.5, 2)), order=1)
    return moved.reshape(8, 4, 8, 4).mean((1, 3)).astype(np.float32) * 16


def train(seed, copies):
    """Fit the perceptron; returns (classifier on 0..1 input, facts)."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    warnings.simplefilter("ignore", ConvergenceWarning)  # the number of epochs is chosen, not a failure
    x, y, _, _ = data(seed)
    rng = np.random.default_rng(seed)
    varied = np.concatenate([x] * 3 + [np.stack([vary(p, rng) for p in x]) for _ in range(copies)])
    labels = np.concatenate([y] * (3 + copies))
    start = time.monotonic()
    net = MLPClassifier(
        LAYERS,
        alpha=1e-4,
        batch_size=256,
        learning_rate_init=2e-3,
        max_iter=40,
        random_state=seed,
        early_stopping=False,
        n_iter_no_change=40,
    )
    net.fit(varied.reshape(len(varied), 64) / 16, labels)
    return net, {
        "training_pictures": len(x),
        "varied_pictures": len(varied),
        "seconds": round(time.monotonic() - start, 1),
        "seed": seed,
        "layers": [64, *LAYERS, 10],
    }


def export(net, path):
    """Write the classifier as ONNX (opset 13): image [N, 1, 8, 8] 0..16 -> probabilities [N, 10].

    The division by 16 is folded into the first layer's weights.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes = [helper.make_node("Flatten", ["image"], ["h0"], axis=1)]
    weights = []
    last = len(net.coefs_) - 1
    for i, (w, b) in enumerate(zip(net.coefs_, net.intercepts_)):
        w = w / 16 if i == 0 else w
        weights += [
            numpy_helper.from_array(w.astype(np.float32), f"w{i}"),
            numpy_helper.from_array(b.astype(np.float32), f"b{i}"),
        ]
        nodes.append(helper.make_node("Gemm", [f"h{i}", f"w{i}", f"b{i}"], ["scores" if i == last else f"z{i}"]))
        if i != last:
            nodes.append(helper.make_node("Relu", [f"z{i}"], [f"h{i + 1}"]))
    nodes.append(helper.make_node("Softmax", ["scores"], ["probabilities"], axis=1))
    body = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, 8, 8])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 10])],
        weights,
    )
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 13)], producer_name="naru examples")
    model.ir_version = 7
    onnx.checker.check_model(model, full_check=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString(deterministic=True))


def evaluate(path, seed):
    """Accuracy of the ONNX file on the test part, and on one varied copy of it."""
    import onnxruntime

    run = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    _, _, x, y = data(seed)
    rng = np.random.default_rng([seed, 1])

    def accuracy(pictures):
        return float(np.mean(run.run(["probabilities"], {"image": pictures[:, None]})[0].argmax(1) == y))

    result = {
        "test_pictures": len(x),
        "accuracy": round(accuracy(x), 4),
        "accuracy_on_varied_pictures": round(accuracy(np.stack([vary(p, rng) for p in x])), 4),
        "bar": BAR,
    }
    result["passed"] = result["accuracy"] >= BAR
    return result


def main(argv=None):
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(
        description="Train, measure and export the example model that reads a digit.",
        epilog="Exit status: 0 when the accuracy bar is reached, 3 when not.",
    )
    parser.add_argument(
        "--seed", type=int, default=7, help="decides the split, the variations and the weights (default 7)"
    )
    parser.add_argument("--copies", type=int, default=24, help="varied copies of each training picture (default 24)")
    parser.add_argument(
        "--model", type=pathlib.Path, default=MODEL, help="ONNX file to write, or to measure with --eval-only"
    )
    parser.add_argument("--metrics", type=pathlib.Path, default=METRICS, help="JSON file for the figures")
    parser.add_argument("--eval-only", action="store_true", help="measure the ONNX file again; writes nothing")
    args = parser.parse_args(argv)
    if args.eval_only:
        result = evaluate(args.model, args.seed)
    else:
        net, facts = train(args.seed, args.copies)
        export(net, args.model)
        facts["onnx_bytes"] = args.model.stat().st_size
        result = evaluate(args.model, args.seed)
        about = "Figures of the example model digits, written by train.py."
        args.metrics.write_text(json.dumps({"about": about, "training": facts, "evaluation": result}, indent=2) + "\n")
    print(
        f"{result['test_pictures']} test pictures: accuracy {100 * result['accuracy']:.1f} % "
        f"(bar {100 * BAR:.0f} %), varied by hand-like changes {100 * result['accuracy_on_varied_pictures']:.1f} %"
    )
    return 0 if result["passed"] else 3


if __name__ == "__main__":
    sys.exit(main())
