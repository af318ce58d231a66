#!/usr/bin/env python3
"""Train, measure and export the example model "derain": a small net that takes rain out of a picture.

What it makes
    ../models/derain/1/model.onnx   the net, one file of about 0.73 MB
    metrics.json                    what it reaches on pictures it has never seen

The net predicts the rain and subtracts it: clean = image - R(image).  R works
at half resolution: SpaceToDepth x2, 40 channels, 6 residual blocks of two 3x3
convolutions with dilation, DepthToSpace x2; 182 thousand weights.
Its last layer starts at zero, so training starts from "change nothing".  The
loss is Charbonnier's, sqrt(d^2 + eps^2), because plain L1 has a kink exactly
at that start and would never leave it.  In its later part the training puts
weight on dry pictures, which must come out as they went in (PHASES).

Data: photographs inside the installed packages scikit-image and scikit-learn,
any further folder given with --photos, and made-up scenes; rain is made-up
(synth.py).  Pictures are split whole: those in HELD_OUT are never trained on.
No picture is copied anywhere.

    train.py --minutes 25            train, measure, export
    train.py --eval-only             measure the exported model again (no torch)
    train.py --resume --minutes 40   go on from the last checkpoint

Shapes: [N, 3, H, W] float32 RGB 0..1 in torch and ONNX, [H, W, 3] in numpy.
"""

import argparse
import json
import math
import os
import pathlib
import sys
import tempfile
import time

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import synth  # noqa: E402  (the neighbour file, found through the line above)

HERE = pathlib.Path(__file__).resolve().parent
MODEL = HERE.parent / "models" / "derain" / "1" / "model.onnx"
METRICS = HERE / "metrics.json"

CHANNELS = 40
DILATIONS = (1, 2, 4, 8, 4, 2)  # of the first convolution of each block; the second has 1
CHARBONNIER = 0.03
# The training's phases: from this share of the budget on, patch edge in pixels,
# patches per step, share of patches with (light, heavy, no) rain, weight of the
# loss on patches without rain.  The first phase learns to remove rain; the
# later ones put weight on leaving dry pictures alone, whose thin bright lines
# (rims, wires, glints) look most like rain; the last shows more surroundings.
PHASES = (
    (0.00, 64, 10, (0.45, 0.35, 0.20), 1.0),
    (0.40, 64, 10, (0.35, 0.30, 0.35), 2.0),
    (0.60, 112, 4, (0.35, 0.30, 0.35), 2.0),
)
PROCEDURAL_SHARE = 0.3  # of the patches come from made-up scenes
HELD_OUT = ("astronaut", "coffee", "flower")  # never trained on
BARS = {"heavy_gain_db": 8.0, "light_gain_db": 2.0, "clean_db": 38.0}


def receptive_radius():
    """How far, in full-resolution pixels, an input can move an output.

    Each 3x3 convolution adds its dilation at half resolution (times two); the
    pixel's place inside its 2x2 cell adds one more.
    """
    half = 1 + sum(d + 1 for d in DILATIONS) + 1
    return 2 * half + 1


# ---------------------------------------------------------------- pictures


def shrink(picture, short_side):
    """Scale a Pillow image down to the given short side; float32 [H, W, 3], even H and W."""
    from PIL import Image

    factor = min(1.0, short_side / min(picture.size))
    size = [max(2, int(round(s * factor)) // 2 * 2) for s in picture.size]
    small = picture.convert("RGB")
    if tuple(size) != small.size:
        small = small.resize(size, Image.Resampling.LANCZOS)
    return np.asarray(small, np.float32) / 255


def package_photos():
    """Photographs of the installed packages, by name (Pillow images); some are grey."""
    import skimage
    import sklearn
    from PIL import Image

    folders = (
        pathlib.Path(skimage.__file__).parent / "data",
        pathlib.Path(sklearn.__file__).parent / "datasets" / "images",
    )
    wanted = (
        "astronaut.png",
        "chelsea.png",
        "coffee.png",
        "motorcycle_left.png",
        "motorcycle_right.png",
        "rocket.jpg",
        "retina.jpg",
        "ihc.png",
        "hubble_deep_field.jpg",
        "china.jpg",
        "flower.jpg",
        "brick.png",
        "camera.png",
        "clock_motion.png",
        "coins.png",
        "grass.png",
        "gravel.png",
        "moon.png",
        "page.png",
        "text.png",
    )
    found = {}
    for folder in folders:
        for name in wanted:
            if (folder / name).is_file():
                found[pathlib.Path(name).stem] = Image.open(folder / name)
    missing = [n for n in HELD_OUT if n not in found]
    if missing:
        raise SystemExit(
            f"the installed scikit-image and scikit-learn lack {', '.join(missing)}; "
            "install the versions that examples/derain/README.md names"
        )
    return found


def training_pictures(folders, rng):
    """All training pictures (list of [H, W, 3] float32) and the names of their sources.

    Each photograph comes at two scales: the same grass is fine grain at one
    and blades at the other.
    """
    from PIL import Image

    sources = {n: p for n, p in package_photos().items() if n not in HELD_OUT}
    for folder in folders:
        for path in sorted(pathlib.Path(folder).rglob("*")):
            if path.suffix.lower() in (".jpg", ".jpeg", ".png") and path.stem not in HELD_OUT:
                sources[path.stem] = Image.open(path)
    photos = [shrink(p, side) for p in sources.values() for side in (360, 640)]
    scenes = [synth.scene(rng) for _ in range(60)]
    return photos, scenes, sorted(sources)


class Patches:
    """Makes training pairs: rainy and clean [N, 3, S, S], from pictures and a rain bank."""

    def __init__(self, folders, rng):
        """folders: further folders of photographs; rng decides every draw."""
        self.rng = rng
        self.photos, self.scenes, self.names = training_pictures(folders, rng)
        self.bank = synth.RainBank(rng)

    def clean_patch(self, size):
        """One clean patch [S, S, 3], flipped, turned and slightly recoloured."""
        rng = self.rng
        pool = self.scenes if rng.random() < PROCEDURAL_SHARE else self.photos
        picture = pool[rng.integers(len(pool))]
        y = rng.integers(0, picture.shape[0] - size + 1)
        x = rng.integers(0, picture.shape[1] - size + 1)
        patch = picture[y : y + size, x : x + size]
        if rng.random() < 0.5:
            patch = patch[:, ::-1]
        patch = np.rot90(patch, rng.integers(4))
        if rng.random() < 0.3:
            patch = patch[..., rng.permutation(3)]
        gain = rng.uniform(0.7, 1.1)
        return np.clip(patch * gain, 0, 1).astype(np.float32)

    def batch(self, size, count, mix):
        """count pairs; returns (rainy, clean, dry): float32 [N, 3, S, S] twice, bool [N] (no rain)."""
        rng = self.rng
        kinds = rng.choice(["light", "heavy", "none"], count, p=mix)
        rainy = np.empty((count, size, size, 3), np.float32)
        clean = np.empty_like(rainy)
        for i, kind in enumerate(kinds):
            clean[i] = self.clean_patch(size)
            rainy[i] = clean[i] if kind == "none" else synth.blend(clean[i], self.bank.draw(rng, size, kind), rng)
        # A served picture has 8 bits per channel: train on what will be sent.
        rainy = np.round(rainy * 255) / np.float32(255)
        return (
            np.ascontiguousarray(rainy.transpose(0, 3, 1, 2)),
            np.ascontiguousarray(clean.transpose(0, 3, 1, 2)),
            kinds == "none",
        )


# --------------------------------------------------------------------- net


def build_net():
    """The net R as a torch module: [N, 3, H, W] -> clean picture of the same shape, not clipped."""
    import torch
    from torch import nn

    class Block(nn.Module):
        """Two 3x3 convolutions beside a shortcut; the first one dilated."""

        def __init__(self, dilation):
            super().__init__()
            self.a = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=dilation, dilation=dilation)
            self.b = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)

        def forward(self, x):
            return x + self.b(torch.relu(self.a(x)))

    class Derain(nn.Module):
        """clean = image - R(image)."""

        def __init__(self):
            super().__init__()
            self.head = nn.Conv2d(12, CHANNELS, 3, padding=1)
            self.blocks = nn.ModuleList(Block(d) for d in DILATIONS)
            self.tail = nn.Conv2d(CHANNELS, 12, 3, padding=1)
            nn.init.zeros_(self.tail.weight)
            nn.init.zeros_(self.tail.bias)

        def forward(self, image):
            x = torch.relu(self.head(nn.functional.pixel_unshuffle(image, 2)))
            for block in self.blocks:
                x = block(x)
            return image - nn.functional.pixel_shuffle(self.tail(torch.relu(x)), 2)

    return Derain()


def loss_of(out, clean, weights, ssim_share):
    """Charbonnier loss, [N] weighted by picture, plus a share of 1 - SSIM (7x7 boxes on luma, cheap on a CPU)."""
    import torch
    from torch.nn.functional import avg_pool2d

    pixel = torch.sqrt((out - clean) ** 2 + CHARBONNIER**2).mean((1, 2, 3)) - CHARBONNIER
    loss = (pixel * weights).mean()
    if ssim_share > 0:
        luma_weights = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
        a, b = (out * luma_weights).sum(1, keepdim=True), (clean * luma_weights).sum(1, keepdim=True)
        mean_a, mean_b, mean_aa, mean_bb, mean_ab = avg_pool2d(torch.cat([a, b, a * a, b * b, a * b], 1), 7, 2).split(
            1, 1
        )
        c1, c2 = 0.01**2, 0.03**2
        ssim = (
            (2 * mean_a * mean_b + c1)
            * (2 * (mean_ab - mean_a * mean_b) + c2)
            / ((mean_a**2 + mean_b**2 + c1) * ((mean_aa - mean_a**2) + (mean_bb - mean_b**2) + c2))
        )
        loss = loss + ssim_share * (1 - ssim.mean())
    return loss


def default_checkpoint():
    """Where a half-done training is kept: outside the source tree."""
    return pathlib.Path(tempfile.gettempdir()) / f"derain-{os.getuid()}" / "checkpoint.pt"


def train(args):
    """Train within the time or iteration budget; returns (net, facts for metrics.json).

    The learning rate follows half a cosine over whichever budget is nearer to
    its end.  With --iterations alone the run can be repeated exactly; with
    --minutes the number of steps depends on the machine.
    """
    import torch

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    print(f"preparing pictures and the rain bank (seed {args.seed})", flush=True)
    patches = Patches(args.photos, rng)
    print(
        f"{len(patches.photos)} photographs (two scales each of {len(patches.names)}), {len(patches.scenes)} scenes",
        flush=True,
    )
    net = build_net().to(memory_format=torch.channels_last)
    weights = sum(p.numel() for p in net.parameters())
    optimiser = torch.optim.Adam(net.parameters(), lr=args.lr)
    step, before = 0, 0.0
    if args.resume and args.checkpoint.is_file():
        state = torch.load(args.checkpoint, weights_only=True)
        net.load_state_dict(state["net"])
        optimiser.load_state_dict(state["optimiser"])
        step, before = state["step"], state["seconds"]
        # The draws already used cannot be had again cheaply: go on with new ones.
        patches.rng = np.random.default_rng([args.seed, step])
        print(f"resumed at step {step}, {before:.0f} s of training done", flush=True)
    args.checkpoint.parent.mkdir(parents=True, exist_ok=True)

    def save():
        """Write the checkpoint so that a kill at any moment leaves a whole file."""
        part = args.checkpoint.with_suffix(".part")
        torch.save(
            {
                "net": net.state_dict(),
                "optimiser": optimiser.state_dict(),
                "step": step,
                "seconds": before + time.monotonic() - start,
            },
            part,
        )
        part.replace(args.checkpoint)

    start, saved, told, recent = time.monotonic(), time.monotonic(), 0.0, []
    cpu = time.process_time()
    while True:
        seconds = before + time.monotonic() - start
        done = max(
            seconds / (60 * args.minutes) if args.minutes else 0.0, step / args.iterations if args.iterations else 0.0
        )
        if done >= 1:
            break
        rate = args.lr * 0.5 * (1 + math.cos(math.pi * done)) * min(1.0, (step + 1) / 50)
        for group in optimiser.param_groups:
            group["lr"] = rate
        _, size, count, mix, dry_weight = [p for p in PHASES if done >= p[0]][-1]
        rainy, clean, dry = (torch.from_numpy(a) for a in patches.batch(size, count, mix))
        rainy, clean = (a.contiguous(memory_format=torch.channels_last) for a in (rainy, clean))
        loss = loss_of(net(rainy), clean, 1 + (dry_weight - 1) * dry.float(), args.ssim_share)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        step += 1
        recent = (recent + [loss.item()])[-100:]
        if time.monotonic() - told > 15:
            told = time.monotonic()
            left = seconds / done * (1 - done) if done > 0 else float("nan")
            print(
                f"{100 * done:5.1f} %  step {step:6d}  loss {np.mean(recent):.5f}  lr {rate:.2e}  "
                f"{seconds:5.0f} s done, about {left:.0f} s left",
                flush=True,
            )
        if time.monotonic() - saved > 60:
            saved = time.monotonic()
            save()
    save()
    facts = {
        "iterations": step,
        "wall_seconds": round(before + time.monotonic() - start, 1),
        "cpu_seconds_of_this_run": round(time.process_time() - cpu, 1),
        "threads": args.threads,
        "seed": args.seed,
        "learning_rate": args.lr,
        "weights": weights,
        "torch": torch.__version__,
        "training_pictures": patches.names,
        "procedural_scenes": len(patches.scenes),
    }
    return net, facts


# ------------------------------------------------------------------ export


def export(net, path):
    """Write the net as ONNX (opset 13, IR 7, fp32, free N, H, W).

    The graph is put together here rather than traced: this yields the plain
    operators SpaceToDepth and DepthToSpace, which every runtime knows and can
    fuse, where a trace yields Reshape/Transpose chains.  ONNX orders
    SpaceToDepth's channels by place first, torch's pixel_unshuffle by colour
    first, so the head's input channels are reordered to fit.  The result is
    clipped to 0..1 inside the graph.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    state = {k: v.detach().cpu().contiguous().numpy().astype(np.float32) for k, v in net.state_dict().items()}
    # onnx channel p * 3 + c  <-  torch channel c * 4 + p   (p: place in the 2x2 cell)
    state["head.weight"] = state["head.weight"][:, [c * 4 + p for p in range(4) for c in range(3)]]
    nodes = []

    def conv(source, name, dilation, result):
        nodes.append(
            helper.make_node(
                "Conv",
                [source, f"{name}.weight", f"{name}.bias"],
                [result],
                name=name,
                kernel_shape=[3, 3],
                pads=[dilation] * 4,
                dilations=[dilation] * 2,
            )
        )

    def plain(operator, inputs, result, **attributes):
        nodes.append(helper.make_node(operator, inputs, [result], name=result, **attributes))

    plain("SpaceToDepth", ["image"], "half", blocksize=2)
    conv("half", "head", 1, "head_out")
    plain("Relu", ["head_out"], "x0")
    for i, dilation in enumerate(DILATIONS):
        conv(f"x{i}", f"blocks.{i}.a", dilation, f"a{i}")
        plain("Relu", [f"a{i}"], f"r{i}")
        conv(f"r{i}", f"blocks.{i}.b", 1, f"b{i}")
        plain("Add", [f"x{i}", f"b{i}"], f"x{i + 1}")
    plain("Relu", [f"x{len(DILATIONS)}"], "last")
    conv("last", "tail", 1, "rain_half")
    plain("DepthToSpace", ["rain_half"], "rain", blocksize=2, mode="CRD")
    plain("Sub", ["image", "rain"], "unclipped")
    plain("Clip", ["unclipped", "zero", "one"], "clean")
    shape = ["N", 3, "H", "W"]
    weights = [numpy_helper.from_array(v, k) for k, v in state.items()]
    weights += [numpy_helper.from_array(np.float32(v), k) for k, v in (("zero", 0), ("one", 1))]
    graph = helper.make_graph(
        nodes,
        "derain",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("clean", TensorProto.FLOAT, shape)],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], producer_name="naru examples")
    model.ir_version = 7
    onnx.checker.check_model(model, full_check=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())


def check_export(net, path):
    """Largest difference between torch and ONNX Runtime on a random picture; fails above 1e-4."""
    import torch

    picture = np.random.default_rng(0).random((2, 3, 48, 66), np.float32)
    with torch.no_grad():
        ours = net(torch.from_numpy(picture)).clamp(0, 1).numpy()
    apart = float(np.abs(ours - session(path).run(["clean"], {"image": picture})[0]).max())
    if apart > 1e-4:
        raise SystemExit(f"the exported model differs from torch's by {apart:.2e} (at most 1e-4 allowed)")
    return apart


# ------------------------------------------------------------- measurement


def session(path):
    """ONNX Runtime session for the model, one thread (so that results do not hang on the machine's cores)."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def derain(run, picture):
    """Run the model on one picture [H, W, 3]; pads to even sizes by reflection; 8-bit in, 8-bit out."""
    h, w = picture.shape[:2]
    padded = np.pad(picture, ((0, h % 2), (0, w % 2), (0, 0)), mode="reflect")
    padded = np.round(padded * 255) / np.float32(255)
    out = run.run(["clean"], {"image": np.ascontiguousarray(padded.transpose(2, 0, 1)[None])})[0][0]
    return (np.round(out.transpose(1, 2, 0) * 255) / 255)[:h, :w]


def luma(picture):
    """Y of BT.601, full range: [H, W, 3] -> [H, W]."""
    return picture @ np.array([0.299, 0.587, 0.114], picture.dtype)


def psnr(a, b):
    """Peak signal-to-noise ratio in dB; 99 for equal pictures, so that means stay finite."""
    error = float(np.mean((a.astype(np.float64) - b) ** 2))
    return 99.0 if error < 1e-10 else -10 * math.log10(error)


def scores(picture, truth):
    """The three figures of a picture: PSNR over RGB, PSNR on Y, SSIM on Y (Gaussian windows, sigma 1.5)."""
    from skimage.metrics import structural_similarity

    y, y_truth = luma(picture).astype(np.float64), luma(truth).astype(np.float64)
    ssim = structural_similarity(
        y, y_truth, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    return np.array([psnr(picture, truth), psnr(y, y_truth), ssim])


def evaluate(path, seed, draws=4):
    """Measure the model on the held-out photographs; returns the part "evaluation" of metrics.json.

    Rain is drawn from scratch (not from the training's bank), with its own
    seed; each picture gets `draws` light and `draws` heavy rains.  The gains
    are means over all draws; for dry input the worst picture counts, since a
    mean would be flattered by pictures that come out unchanged.
    """
    run = session(path)
    photos = package_photos()
    rng = np.random.default_rng([seed, 77])
    table, per_picture = {k: [] for k in ("light", "heavy", "none")}, {}
    for name in HELD_OUT:
        truth = np.round(shrink(photos[name], 400) * 255) / np.float32(255)
        for kind in table:
            rows = []
            for _ in range(1 if kind == "none" else draws):
                rainy = truth
                if kind != "none":
                    rainy = synth.blend(truth, synth.make_rain(rng, *truth.shape[:2], kind), rng)
                    rainy = np.round(rainy * 255) / np.float32(255)
                rows.append(np.concatenate([scores(rainy, truth), scores(derain(run, rainy), truth)]))
            table[kind] += rows
            per_picture.setdefault(name, {})[kind] = [round(float(v), 3) for v in np.mean(rows, 0)]
    names = ("psnr_rgb_in", "psnr_y_in", "ssim_y_in", "psnr_rgb_out", "psnr_y_out", "ssim_y_out")
    result = {kind: {n: round(float(v), 4) for n, v in zip(names, np.mean(rows, 0))} for kind, rows in table.items()}
    for kind in ("light", "heavy"):
        result[kind]["gain_rgb_db"] = round(result[kind]["psnr_rgb_out"] - result[kind]["psnr_rgb_in"], 3)
        result[kind]["gain_y_db"] = round(result[kind]["psnr_y_out"] - result[kind]["psnr_y_in"], 3)
    reached = {
        "heavy_gain_db": min(result["heavy"]["gain_rgb_db"], result["heavy"]["gain_y_db"]),
        "light_gain_db": min(result["light"]["gain_rgb_db"], result["light"]["gain_y_db"]),
        "clean_db": min(min(p["none"][3], p["none"][4]) for p in per_picture.values()),
    }
    return {
        "pictures": list(HELD_OUT),
        "draws_per_picture": draws,
        "seed": seed,
        "columns": list(names),
        "mean": result,
        "per_picture": per_picture,
        "bars": BARS,
        "reached": reached,
        "passed": all(reached[k] >= BARS[k] for k in BARS),
    }


def report(evaluation):
    """Print the evaluation as a table for people."""
    print(f"\nheld-out pictures: {', '.join(evaluation['pictures'])}")
    print("rain    PSNR RGB         PSNR Y           SSIM Y")
    for kind, row in evaluation["mean"].items():
        print(
            f"{kind:6s}  {row['psnr_rgb_in']:5.2f} -> {row['psnr_rgb_out']:5.2f}   "
            f"{row['psnr_y_in']:5.2f} -> {row['psnr_y_out']:5.2f}   {row['ssim_y_in']:.4f} -> {row['ssim_y_out']:.4f}"
        )
    for key, bar in evaluation["bars"].items():
        value = evaluation["reached"][key]
        print(f"{key:15s} {value:6.2f}  (bar {bar:g})  {'reached' if value >= bar else 'NOT reached'}")


# --------------------------------------------------------------------- main


def arguments(argv):
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description="Train, measure and export the example model that removes rain from pictures.",
        epilog="Exit status: 0 when every quality bar is reached, 3 when one is not.",
    )
    parser.add_argument("--minutes", type=float, default=25, help="time budget of the training; 0: none (default 25)")
    parser.add_argument(
        "--iterations", type=int, default=0, help="step budget; 0: none. With --minutes 0 a run repeats exactly"
    )
    parser.add_argument(
        "--seed", type=int, default=20, help="decides weights, patches, rain and test rain (default 20)"
    )
    parser.add_argument("--lr", type=float, default=1.5e-3, help="first learning rate of the cosine (default 1.5e-3)")
    parser.add_argument(
        "--ssim-share",
        type=float,
        default=0.0,
        help="share of (1 - SSIM) in the loss (default 0; 0.2 gained SSIM but removed more of what is not rain)",
    )
    parser.add_argument("--threads", type=int, default=1, help="threads for torch (default 1)")
    parser.add_argument(
        "--photos",
        type=pathlib.Path,
        action="append",
        default=[],
        metavar="DIR",
        help="a further folder of photographs, used for training only; may be repeated",
    )
    parser.add_argument(
        "--checkpoint", type=pathlib.Path, default=default_checkpoint(), help="checkpoint file (default %(default)s)"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint")
    parser.add_argument(
        "--model", type=pathlib.Path, default=MODEL, help="ONNX file to write, or to measure with --eval-only"
    )
    parser.add_argument("--metrics", type=pathlib.Path, default=METRICS, help="JSON file for the figures")
    parser.add_argument("--eval-only", action="store_true", help="measure the ONNX file again; writes nothing")
    args = parser.parse_args(argv)
    if not args.minutes and not args.iterations and not args.eval_only:
        parser.error("give --minutes or --iterations: without a budget the training would not end")
    for folder in args.photos:
        if not folder.is_dir():
            parser.error(f"--photos {folder}: no such folder")
    return args


def main(argv=None):
    """Entry point; returns the exit status."""
    args = arguments(argv)
    if args.eval_only:
        evaluation = evaluate(args.model, args.seed)
    else:
        net, facts = train(args)
        export(net, args.model)
        facts["torch_onnx_max_abs_difference"] = check_export(net, args.model)
        facts["onnx_bytes"] = args.model.stat().st_size
        facts["receptive_radius_pixels"] = receptive_radius()
        evaluation = evaluate(args.model, args.seed)
        about = "Figures of the example model derain, written by train.py."
        args.metrics.write_text(
            json.dumps({"about": about, "training": facts, "evaluation": evaluation}, indent=2) + "\n"
        )
    report(evaluation)
    return 0 if evaluation["passed"] else 3


if __name__ == "__main__":
    sys.exit(main())
