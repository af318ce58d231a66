#!/usr/bin/env python3
"""Make derain_golden.npz: a fixed input of the example model derain and its reference output.

Arrays in the file, all float32 [1, 3, 32, 48], RGB, 0..1:
    image   a made-up rainy picture, in steps of 1/255
    clean   what ONNX Runtime on one CPU thread answers
    truth   the same picture without rain
and the scalar psnr_db of clean against truth (float64).

A server's answer must lie within 1e-4 of clean in every element and within
0.01 dB of psnr_db.  The weights are the committed ones: run this again after
training anew (needs numpy and onnxruntime).
"""

import argparse
import pathlib
import sys

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
EXAMPLES = HERE.parent.parent / "examples"
sys.path.insert(0, str(EXAMPLES / "derain"))
import synth  # noqa: E402  (found through the line above)


def pictures(seed):
    """A made-up scene and its rainy twin: (image, truth), float32 [1, 3, 32, 48]."""
    rng = np.random.default_rng(seed)
    truth = synth.scene(rng, 96)[20:52, 24:72]
    image = synth.blend(truth, synth.make_rain(rng, 96, 96, "heavy")[20:52, 24:72], rng)
    eight_bit = [np.round(p * 255) / np.float32(255) for p in (image, truth)]
    return [np.ascontiguousarray(p.transpose(2, 0, 1)[None], np.float32) for p in eight_bit]


def main():
    """Write the file, then read it back and show what it holds."""
    parser = argparse.ArgumentParser(description="Make the golden input and output of the example model derain.")
    parser.add_argument("--model", type=pathlib.Path, default=EXAMPLES / "models" / "derain" / "1" / "model.onnx")
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "derain_golden.npz")
    parser.add_argument("--seed", type=int, default=11)
    args = parser.parse_args()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    run = onnxruntime.InferenceSession(str(args.model), options, providers=["CPUExecutionProvider"])
    image, truth = pictures(args.seed)
    clean = run.run(["clean"], {"image": image})[0]
    psnr = -10 * np.log10(np.mean((clean.astype(np.float64) - truth) ** 2))
    before = -10 * np.log10(np.mean((image.astype(np.float64) - truth) ** 2))
    if psnr <= before:
        raise SystemExit(
            f"the model does not improve this input ({before:.2f} -> {psnr:.2f} dB): choose another --seed"
        )
    np.savez(args.out, image=image, clean=clean, truth=truth, psnr_db=psnr)
    print(
        f"{args.out}: {args.out.stat().st_size} bytes, {before:.2f} -> {psnr:.2f} dB, "
        f"clean between {clean.min():.3f} and {clean.max():.3f}"
    )


if __name__ == "__main__":
    main()
