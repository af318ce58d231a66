#!/usr/bin/env python3
"""Draw the example pictures: two rainy scenes with their dry truth, and three digits.

    rainy.jpg     a lake in light rain         rainy_truth.jpg     the same, dry
    downpour.jpg  a street in heavy rain       downpour_truth.jpg  the same, dry
    digit.png, digit_2.png, digit_7.png        drawn digits 3, 2 and 7

Everything is computed here with numpy and Pillow from one seed; no photograph
is involved, so the pictures are as free as the rest of this tree.  The scenes
are not among those that the deraining model was trained on; the rain comes
from the same generator (../derain/synth.py) with another seed.

    make.py                draw all pictures into this folder
    make.py --check        also run both example models on them (needs onnxruntime)

Scenes are drawn at three times their size and scaled down, which gives smooth
edges.  Numpy pictures are float32 [H, W, 3], RGB, 0..1, unless said otherwise.
"""

import argparse
import io
import math
import pathlib
import sys

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "derain"))
import synth  # noqa: E402  (found through the line above)

WIDTH, HEIGHT = 480, 320
OVER = 3  # supersampling
W, H = WIDTH * OVER, HEIGHT * OVER
QUALITY = 92  # of the JPEG files


# ------------------------------------------------------------------ helpers


def gradient(stops):
    """Vertical gradient as a Pillow image of W x H; stops: [(place 0..1, (r, g, b) 0..255), ...]."""
    at = np.linspace(0, 1, H)
    columns = [np.interp(at, [s[0] for s in stops], [s[1][c] for s in stops]) for c in range(3)]
    return Image.fromarray(np.repeat(np.stack(columns, -1)[:, None], W, 1).round().astype(np.uint8))


def texture(image, rng, amount, start=8, octaves=6, mask=None, stretch=(1, 1)):
    """Multiply an image by smooth noise of the given strength, where mask (Pillow L image) allows it.

    stretch: (vertical, horizontal) size of the grain, for streaky grounds.
    """
    noise = synth.smooth_noise(rng, max(2, H // stretch[0]), max(2, W // stretch[1]), octaves, start)
    if stretch != (1, 1):
        noise = np.asarray(Image.fromarray(noise.astype(np.float32)).resize((W, H), Image.Resampling.BICUBIC))
    allowed = 1.0 if mask is None else np.asarray(mask, np.float32) / 255
    out = np.asarray(image, np.float32) * (1 + amount * noise * allowed)[..., None]
    return Image.fromarray(np.clip(out, 0, 255).round().astype(np.uint8))


def glow(image, places):
    """Add soft light: places is [(x, y, radius, (r, g, b), strength), ...] in drawn pixels."""
    out = np.asarray(image, np.float32) / 255
    yy, xx = np.mgrid[0:H, 0:W].astype(np.float32)
    for x, y, radius, colour, strength in places:
        fall = strength * np.exp(-((xx - x) ** 2 + (yy - y) ** 2) / (2 * radius**2))
        light = fall[..., None] * (np.array(colour, np.float32) / 255)
        out = 1 - (1 - out) * (1 - np.clip(light, 0, 1))
    return Image.fromarray((np.clip(out, 0, 1) * 255).round().astype(np.uint8))


def ridge(rng, base, swing, roughness=0.55):
    """Heights (screen y of W + 1 columns) of a mountain line by midpoint displacement."""
    points = np.array([base + rng.normal() * swing * 0.4, base + rng.normal() * swing * 0.4])
    step = swing
    while len(points) < 257:
        middle = (points[:-1] + points[1:]) / 2 + rng.normal(size=len(points) - 1) * step * 0.5
        wider = np.empty(len(points) * 2 - 1)
        wider[0::2], wider[1::2] = points, middle
        points, step = wider, step * roughness
    return np.interp(np.arange(W + 1), np.linspace(0, W, len(points)), points)


def below(line):
    """Mask (Pillow L image) of everything below a line of heights."""
    mask = Image.new("L", (W, H), 0)
    ImageDraw.Draw(mask).polygon([(0, H)] + list(enumerate(line.tolist())) + [(W, H)], fill=255)
    return mask


def shade(colour, factor):
    """A colour made lighter or darker, as a tuple of ints."""
    return tuple(int(max(0, min(255, c * factor))) for c in colour)


def finish(image, rng):
    """Scale down to WIDTH x HEIGHT and add the faint grain of a camera; returns float32."""
    small = np.asarray(image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS), np.float32) / 255
    grain = rng.normal(0, 0.006, (HEIGHT, WIDTH, 1)) + rng.normal(0, 0.003, (HEIGHT, WIDTH, 3))
    return np.clip(small + grain, 0, 1).astype(np.float32)


# --------------------------------------------------------------------- lake


def pine(draw, x, foot, tall, colour, rng):
    """One pine: a trunk and ragged tiers of branches, lit from the left."""
    draw.rectangle([x - tall * 0.02, foot - tall * 0.12, x + tall * 0.02, foot], fill=shade((74, 58, 46), 0.9))
    tiers = 9
    for i in range(tiers):
        t = i / tiers
        top, low = foot - tall * (1 - t * 0.88), foot - tall * (0.80 - t * 0.72)
        wide = tall * (0.05 + 0.17 * t) * rng.uniform(0.9, 1.1)
        for side, light in ((-1, 1.12), (1, 0.82)):
            edge = [(x, top)]
            for k in range(1, 6):
                reach = wide * k / 5
                edge += [
                    (x + side * reach, top + (low - top) * k / 5 + rng.uniform(0, tall * 0.015)),
                    (x + side * reach * 0.86, top + (low - top) * k / 5 + tall * 0.012),
                ]
            draw.polygon(edge + [(x, low)], fill=shade(colour, light * rng.uniform(0.92, 1.08)))


def cottage(draw, x, y, s):
    """A red wooden house with its lower left corner at x, y and a width of 2.6 s."""
    wall, side = (156, 62, 48), (122, 46, 38)
    draw.polygon([(x, y), (x, y - s), (x + 0.55 * s, y - 1.62 * s), (x + 1.1 * s, y - s), (x + 1.1 * s, y)], fill=side)
    draw.rectangle([x + 1.1 * s, y - s, x + 2.6 * s, y], fill=wall)
    for i in range(1, 15):
        px = x + 1.1 * s + i * 0.1 * s
        draw.line([(px, y - s), (px, y)], fill=shade(wall, 0.88), width=2)
    draw.polygon(
        [
            (x + 0.49 * s, y - 1.72 * s),
            (x + 2.12 * s, y - 1.72 * s),
            (x + 2.72 * s, y - 0.93 * s),
            (x + 1.12 * s, y - 0.93 * s),
        ],
        fill=(78, 74, 80),
    )
    draw.line(
        [(x - 0.06 * s, y - 0.93 * s), (x + 0.52 * s, y - 1.70 * s), (x + 1.12 * s, y - 0.93 * s)],
        fill=(226, 220, 208),
        width=int(0.07 * s),
        joint="curve",
    )
    draw.rectangle([x + 1.62 * s, y - 2.02 * s, x + 1.84 * s, y - 1.5 * s], fill=(120, 84, 72))
    draw.rectangle([x + 1.59 * s, y - 2.07 * s, x + 1.87 * s, y - 2.0 * s], fill=(150, 110, 96))
    for wx, ww in ((x + 0.36 * s, 0.36), (x + 1.3 * s, 0.36), (x + 2.1 * s, 0.32)):
        draw.rectangle([wx - 0.05 * s, y - 0.77 * s, wx + (ww + 0.05) * s, y - 0.30 * s], fill=(232, 226, 214))
        draw.rectangle([wx, y - 0.72 * s, wx + ww * s, y - 0.35 * s], fill=(250, 208, 122))
        draw.line([(wx + ww * s / 2, y - 0.72 * s), (wx + ww * s / 2, y - 0.35 * s)], fill=(232, 226, 214), width=4)
        draw.line([(wx, y - 0.54 * s), (wx + ww * s, y - 0.54 * s)], fill=(232, 226, 214), width=4)
    draw.rectangle([x + 1.76 * s, y - 0.72 * s, x + 2.0 * s, y], fill=(70, 50, 44))


def lake(rng):
    """The first scene: mountains, a lake that mirrors them, a cottage, pines and a fence."""
    shore = int(H * 0.60)
    image = gradient([(0, (104, 128, 158)), (0.25, (158, 176, 192)), (0.45, (216, 214, 206)), (1, (216, 214, 206))])
    clouds = synth.smooth_noise(rng, H, W, 6, 3)
    cover = np.clip((clouds + 0.1) * 0.9, 0, 0.75)[..., None] * np.linspace(1, 0.2, H)[:, None, None]
    image = Image.fromarray(
        (np.asarray(image) * (1 - cover) + np.array([226, 228, 230]) * cover).round().astype(np.uint8)
    )
    layers = (
        (0.30, 0.26, (146, 162, 180)),
        (0.39, 0.22, (108, 130, 146)),
        (0.47, 0.16, (76, 104, 102)),
        (0.545, 0.07, (54, 84, 68)),
    )
    for number, (base, swing, colour) in enumerate(layers):
        mask = below(ridge(rng, H * base, H * swing, 0.5 + 0.03 * number))
        slope = texture(Image.new("RGB", (W, H), colour), rng, 0.22, 14, 6)
        image.paste(slope, (0, 0), mask)
        if number == 0:  # snow on the far tops
            snow = ImageChops.subtract(mask, ImageChops.offset(mask, 0, int(H * 0.035)))
            rough = Image.fromarray(((synth.smooth_noise(rng, H, W, 5, 24) > -0.15) * 255).astype(np.uint8))
            image.paste((222, 228, 234), (0, 0), ImageChops.multiply(snow, rough))
    draw = ImageDraw.Draw(image)
    for x in sorted(rng.uniform(0, W, 90), key=lambda v: abs(v - W / 2)):  # the far wood
        pine(
            draw,
            x,
            shore + rng.uniform(-4, 2),
            H * rng.uniform(0.05, 0.10),
            shade((44, 74, 58), rng.uniform(0.85, 1.15)),
            rng,
        )
    # The water mirrors what is above the shore line; ripples push it sideways.
    above = np.asarray(image, np.float32)[:shore]
    depth = H - shore
    rows = np.clip(shore - 1 - (np.arange(depth) * 1.15).astype(int), 0, shore - 1)
    mirror = above[rows]
    ripple = synth.smooth_noise(rng, depth, W, 6, 6)
    push = (ripple * np.linspace(4, 34, depth)[:, None] + 3 * np.sin(np.arange(depth) ** 1.25 * 0.16)[:, None]).astype(
        int
    )
    columns = np.clip(np.arange(W)[None] + push, 0, W - 1)
    mirror = np.take_along_axis(mirror, np.repeat(columns[..., None], 3, 2), 1)
    fade = np.linspace(0.80, 0.55, depth)[:, None, None]
    water = mirror * fade + np.array([92, 118, 138]) * (1 - fade) + 14 * np.clip(ripple - 0.35, 0, 1)[..., None]
    image.paste(Image.fromarray(np.clip(water, 0, 255).round().astype(np.uint8)), (0, shore))
    # Near shore: a meadow that rises to the left and carries the cottage.
    columns = np.arange(W + 1)
    bank = H * (
        0.80 - 0.20 * np.exp(-(((columns - W * 0.20) / (W * 0.26)) ** 2)) + 0.03 * np.sin(columns / W * 9)
    ) + 3 * np.sin(columns / 17)
    meadow = below(bank)
    image.paste(texture(gradient([(0.5, (112, 138, 72)), (1, (66, 92, 46))]), rng, 0.22, 10, 7), (0, 0), meadow)
    draw = ImageDraw.Draw(image)
    pine(draw, W * 0.045, bank[int(W * 0.045)] + 8, H * 0.52, (42, 76, 52), rng)
    pine(draw, W * 0.115, bank[int(W * 0.115)] + 14, H * 0.40, (48, 84, 56), rng)
    cottage(draw, W * 0.175, bank[int(W * 0.27)] + 20, H * 0.135)
    pine(draw, W * 0.455, bank[int(W * 0.455)] + 16, H * 0.30, (50, 88, 58), rng)
    for _ in range(5200):  # grass
        x = rng.uniform(0, W)
        y = rng.uniform(bank[int(x)] + 4, H + 10)
        near = (y - H * 0.6) / (H * 0.4)
        tone = shade((104, 132, 62), rng.uniform(0.62, 1.32))
        draw.line(
            [(x, y), (x + rng.normal() * 6, y - (6 + 22 * near) * rng.uniform(0.5, 1))],
            fill=tone,
            width=2 + int(near * 2),
        )
    for _ in range(170):  # flowers
        x = rng.uniform(0, W)
        y = rng.uniform(bank[int(x)] + 50, H)
        r = rng.uniform(3, 6)
        tone = [(236, 226, 150), (232, 236, 240), (214, 120, 130)][rng.integers(3)]
        draw.ellipse([x - r, y - r, x + r, y + r], fill=tone)
    posts = np.linspace(W * 0.50, W * 1.02, 7)  # the fence
    tops = [(x, bank[min(int(x), W)] + 44 + 30 * (x / W - 0.5)) for x in posts]
    for rail in (20, 52):
        draw.line([(x, y + rail - 74) for x, y in tops], fill=(142, 116, 88), width=10)
        draw.line([(x, y + rail - 69) for x, y in tops], fill=(100, 80, 62), width=3)
    for x, y in tops:
        draw.rectangle([x - 9, y - 92, x + 9, y + 10], fill=(122, 98, 74))
        draw.rectangle([x + 3, y - 92, x + 9, y + 10], fill=(92, 74, 58))
    x, y = W * 0.70, shore + H * 0.115  # a rowing boat
    draw.polygon([(x, y), (x + 190, y), (x + 160, y + 36), (x + 34, y + 36)], fill=(112, 70, 50))
    draw.polygon([(x, y), (x + 190, y), (x + 182, y + 10), (x + 8, y + 10)], fill=(198, 170, 132))
    draw.polygon([(x + 30, y + 38), (x + 164, y + 38), (x + 150, y + 58), (x + 46, y + 58)], fill=(74, 76, 78))
    image = glow(
        image,
        [
            (W * 0.175 + H * 0.135 * 0.55, bank[int(W * 0.27)] - 52, 60, (255, 200, 120), 0.25),
            (W * 0.175 + H * 0.135 * 1.5, bank[int(W * 0.27)] - 52, 70, (255, 200, 120), 0.25),
        ],
    )
    return finish(image, rng)


# ------------------------------------------------------------------- street


class Street:
    """One-point perspective: turns (side, depth, height) into screen points.

    The walls stand at x = 0 (side -1) and x = W (side 1) of the nearest plane;
    scale 1 is that plane, 0 the vanishing point.
    """

    METRE = 150.0  # pixels of the nearest plane

    def __init__(self):
        """Place the vanishing point and the eye, 2.4 m above the road."""
        self.vx, self.vy = W * 0.52, H * 0.54
        self.eye = 2.4

    def at(self, across, scale, height):
        """Screen point: across -1..1 from wall to wall, height in metres above the road."""
        half = self.vx if across < 0 else W - self.vx
        return (self.vx + across * half * scale, self.vy + (self.eye - height) * self.METRE * scale)

    def quad(self, across, near, far, low, high):
        """Corners of an upright rectangle that runs along the street."""
        return [
            self.at(across, near, low),
            self.at(across, near, high),
            self.at(across, far, high),
            self.at(across, far, low),
        ]


def fog(colour, scale):
    """Far things take on the evening's haze."""
    share = 0.75 * (1 - min(1.0, scale)) ** 1.6
    return tuple(int(c * (1 - share) + h * share) for c, h in zip(colour, (150, 136, 150)))


def facade(draw, street, rng, side, near, far, floors, colour):
    """One house front between two depths: a shop, above it rows of windows (some lit), a cornice."""
    across = side * 1.0
    ground, storey = 3.4, 2.9  # metres
    high = ground + floors * storey
    middle = (near + far) / 2
    draw.polygon(street.quad(across, near, far, 0, high), fill=fog(colour, middle))
    draw.polygon(street.quad(across, near, far, high, high + 0.35), fill=fog(shade(colour, 1.3), middle))
    draw.polygon(street.quad(across, near, far, ground - 0.1, ground + 0.12), fill=fog(shade(colour, 0.7), middle))
    draw.line(
        [street.at(across, near, 0), street.at(across, near, high)],
        fill=fog(shade(colour, 0.6), near),
        width=max(2, int(7 * near)),
    )

    def depth(t):
        """Even steps along the wall: 1/scale is linear in distance."""
        return 1 / ((1 - t) / near + t / far)

    bays = 3
    for i in range(bays):
        left, bar, right = (depth((i + p) / bays) for p in (0.26, 0.5, 0.74))
        scale = (left + right) / 2
        for j in range(floors):
            low = ground + j * storey + 0.75
            up = low + 1.65
            lit = rng.random() < 0.45
            glass = (255, int(rng.uniform(196, 226)), int(rng.uniform(120, 165))) if lit else (58, 66, 88)
            draw.polygon(
                street.quad(across, left * 1.015, right / 1.015, low - 0.1, up + 0.1),
                fill=fog(shade(colour, 1.35), scale),
            )
            draw.polygon(
                street.quad(across, left, right, low, up), fill=fog(glass, min(1, scale + (0.35 if lit else 0)))
            )
            thin = max(2, int(8 * scale))
            draw.line(
                [street.at(across, bar, low), street.at(across, bar, up)],
                fill=fog(shade(colour, 0.8), scale),
                width=thin,
            )
            draw.line(
                [street.at(across, left, low + 1.1), street.at(across, right, low + 1.1)],
                fill=fog(shade(colour, 0.8), scale),
                width=thin,
            )
            draw.polygon(
                street.quad(across, left * 1.03, right / 1.03, low - 0.22, low - 0.08),
                fill=fog(shade(colour, 1.45), scale),
            )
    left, right = depth(0.08), depth(0.92)
    open_late = rng.random() < 0.7
    draw.polygon(
        street.quad(across, left, right, 0.5, 2.7),
        fill=fog((252, 216, 148) if open_late else (70, 66, 80), min(1, middle + 0.35)),
    )
    for t in np.linspace(0.08, 0.92, 5):
        draw.line(
            [street.at(across, depth(t), 0.5), street.at(across, depth(t), 2.7)],
            fill=fog((58, 48, 48), middle),
            width=max(2, int(10 * depth(t))),
        )
    for t in rng.uniform(0.12, 0.88, 8):  # goods in the window
        tall = rng.uniform(0.3, 0.9)
        draw.polygon(
            street.quad(across, depth(t), depth(t + 0.04), 0.5, 0.5 + tall),
            fill=fog(tuple(int(v) for v in rng.uniform(70, 190, 3)), min(1, middle + 0.2)),
        )
    awning = [(150, 52, 50), (52, 92, 88), (176, 132, 58), (70, 74, 120)][int(rng.integers(4))]
    stripes = 10
    for k in range(stripes):
        a, b = depth(0.04 + 0.92 * k / stripes), depth(0.04 + 0.92 * (k + 1) / stripes)
        draw.polygon(
            [
                street.at(across, a, 3.2),
                street.at(across, b, 3.2),
                street.at(across * 0.86, b, 2.55),
                street.at(across * 0.86, a, 2.55),
            ],
            fill=fog(awning if k % 2 else shade(awning, 1.5), middle),
        )


def lamp(draw, street, across, scale, lights):
    """A street lamp; its light is noted in lights for the glow."""
    foot, top = street.at(across, scale, 0), street.at(across, scale, 4.6)
    head = street.at(across * 0.84, scale, 4.6)
    draw.line([foot, top], fill=fog((44, 44, 52), scale), width=max(3, int(16 * scale)))
    draw.line([top, head], fill=fog((44, 44, 52), scale), width=max(3, int(11 * scale)))
    r = 20 * scale
    draw.ellipse([head[0] - 1.6 * r, head[1] - 0.5 * r, head[0] + 1.6 * r, head[1] + 0.9 * r], fill=(255, 238, 196))
    lights.append((head[0], head[1], 105 * scale + 12, (255, 206, 128), 0.85))


def car(draw, x, y, s, lights):
    """A car seen from behind, standing at x, y (middle of its foot), s pixels wide."""
    draw.ellipse([x - 0.58 * s, y - 0.06 * s, x + 0.58 * s, y + 0.07 * s], fill=(38, 38, 46))
    for wheel in (-0.40, 0.26):
        draw.rectangle([x + wheel * s, y - 0.16 * s, x + (wheel + 0.14) * s, y + 0.02 * s], fill=(24, 24, 28))
    body = (38, 92, 122)
    draw.rounded_rectangle([x - 0.5 * s, y - 0.46 * s, x + 0.5 * s, y - 0.08 * s], radius=int(0.09 * s), fill=body)
    draw.polygon(
        [
            (x - 0.41 * s, y - 0.44 * s),
            (x - 0.30 * s, y - 0.74 * s),
            (x + 0.30 * s, y - 0.74 * s),
            (x + 0.41 * s, y - 0.44 * s),
        ],
        fill=shade(body, 0.85),
    )
    draw.polygon(
        [
            (x - 0.34 * s, y - 0.46 * s),
            (x - 0.26 * s, y - 0.69 * s),
            (x + 0.26 * s, y - 0.69 * s),
            (x + 0.34 * s, y - 0.46 * s),
        ],
        fill=(120, 140, 160),
    )
    draw.rectangle([x - 0.49 * s, y - 0.16 * s, x + 0.49 * s, y - 0.09 * s], fill=shade(body, 0.6))
    draw.rectangle([x - 0.13 * s, y - 0.28 * s, x + 0.13 * s, y - 0.19 * s], fill=(226, 222, 206))
    for side in (-1, 1):
        draw.rounded_rectangle(
            [x + side * 0.37 * s - 0.09 * s, y - 0.38 * s, x + side * 0.37 * s + 0.09 * s, y - 0.27 * s],
            radius=6,
            fill=(240, 60, 50),
        )
        lights.append((x + side * 0.37 * s, y - 0.32 * s, 0.13 * s, (255, 60, 40), 0.55))


def walker(draw, x, y, s, coat, umbrella):
    """Someone under an umbrella; x, y is the foot, s the height in pixels."""
    for leg in (-0.06, 0.05):
        draw.line([(x, y - 0.42 * s), (x + leg * s, y)], fill=(40, 40, 54), width=int(0.075 * s))
    draw.polygon(
        [
            (x - 0.12 * s, y - 0.34 * s),
            (x - 0.085 * s, y - 0.76 * s),
            (x + 0.085 * s, y - 0.76 * s),
            (x + 0.12 * s, y - 0.34 * s),
        ],
        fill=coat,
    )
    draw.ellipse([x - 0.07 * s, y - 0.92 * s, x + 0.07 * s, y - 0.77 * s], fill=(206, 166, 140))
    draw.pieslice([x - 0.075 * s, y - 0.93 * s, x + 0.075 * s, y - 0.78 * s], 180, 360, fill=(70, 52, 44))
    draw.line(
        [(x + 0.07 * s, y - 0.60 * s), (x + 0.07 * s, y - 1.12 * s)], fill=(50, 46, 50), width=max(3, int(0.022 * s))
    )
    cx, cy, r = x + 0.07 * s, y - 0.94 * s, 0.40 * s
    draw.pieslice([cx - r, cy - 0.36 * s, cx + r, cy + 0.36 * s], 180, 360, fill=umbrella)
    for k in range(4):
        left = cx - r + k * r / 2
        draw.pieslice([left, cy - 0.05 * s, left + r / 2, cy + 0.05 * s], 180, 360, fill=shade(umbrella, 0.6))
    draw.pieslice([cx - r * 0.45, cy - 0.36 * s, cx + r * 0.45, cy + 0.36 * s], 180, 360, fill=shade(umbrella, 1.18))


def wet(image, view, rng):
    """Make the ground wet: what stands above is mirrored and smeared downward, more so in puddles."""
    ground = Image.new("L", (W, H), 0)
    ImageDraw.Draw(ground).polygon(
        [view.at(-1, 0.05, 0), view.at(-1, 1.6, 0), view.at(1, 1.6, 0), view.at(1, 0.05, 0)], fill=255
    )
    dry = np.asarray(image, np.float32)
    horizon = int(view.vy + 8)
    mirror = dry.copy()
    mirror[horizon:] = dry[np.clip(horizon - (np.arange(H - horizon) * 1.1).astype(int), 0, H - 1)]
    smear = Image.fromarray(mirror.round().astype(np.uint8)).resize((W, H // 10), Image.Resampling.BOX)
    smear = np.asarray(smear.resize((W, H), Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(4)), np.float32)
    puddle = (
        np.clip(0.42 + 0.42 * synth.smooth_noise(rng, H, W, 5, 6), 0.16, 0.78) * np.asarray(ground, np.float32) / 255
    )
    image = Image.fromarray((dry * (1 - puddle[..., None]) + smear * puddle[..., None]).round().astype(np.uint8))
    return texture(image, rng, 0.14, 40, 5, mask=ground)


def street(rng):
    """The second scene: a wet shopping street at dusk."""
    view = Street()
    image = gradient(
        [
            (0, (64, 74, 120)),
            (0.24, (132, 116, 150)),
            (0.42, (240, 172, 136)),
            (0.54, (252, 212, 164)),
            (1, (252, 212, 164)),
        ]
    )
    image = texture(image, rng, 0.14, 3, 5, stretch=(2, 1))
    draw = ImageDraw.Draw(image)
    lights = []
    x = W * 0.36
    while x < W * 0.68:  # the far town
        wide, tall = rng.uniform(26, 60), rng.uniform(50, 150)
        draw.rectangle([x, view.vy - tall, x + wide, view.vy + 12], fill=(146, 124, 148))
        for _ in range(7):
            px, py = x + rng.uniform(4, wide - 8), view.vy - rng.uniform(8, tall - 8)
            draw.rectangle([px, py, px + 4, py + 6], fill=(255, 220, 160))
        x += wide * rng.uniform(0.7, 1.1)
    cx = view.vx  # a church tower closes the street
    draw.rectangle([cx - 22, view.vy - 230, cx + 22, view.vy + 10], fill=(118, 98, 128))
    draw.polygon([(cx - 27, view.vy - 230), (cx, view.vy - 345), (cx + 27, view.vy - 230)], fill=(90, 80, 112))
    draw.ellipse([cx - 11, view.vy - 212, cx + 11, view.vy - 190], fill=(255, 232, 180))
    # Ground: road and pavements, before the houses that stand on them.
    draw.polygon(
        [view.at(-1, 1.6, 0), view.at(1, 1.6, 0), view.at(1, 0.05, 0), view.at(-1, 0.05, 0)], fill=(84, 82, 94)
    )
    for side in (-1, 1):
        draw.polygon(
            [view.at(side, 1.6, 0), view.at(side, 0.05, 0), view.at(side * 0.6, 0.05, 0), view.at(side * 0.6, 1.6, 0)],
            fill=(132, 124, 126),
        )
        for joint in 1 / np.linspace(1 / 1.6, 1 / 0.07, 44):
            draw.line(
                [view.at(side, joint, 0), view.at(side * 0.61, joint, 0)],
                fill=(104, 98, 102),
                width=max(1, int(4 * joint)),
            )
        draw.line([view.at(side * 0.8, 1.6, 0), view.at(side * 0.8, 0.05, 0)], fill=(108, 102, 106), width=3)
        draw.line([view.at(side * 0.6, 1.6, 0), view.at(side * 0.6, 0.05, 0)], fill=(170, 162, 158), width=8)
    edges = 1 / np.linspace(1 / 1.5, 1 / 0.06, 26)
    for a, b in zip(edges[0::2], edges[1::2]):  # lane marks
        draw.polygon(
            [view.at(-0.014, a, 0), view.at(0.014, a, 0), view.at(0.014, b, 0), view.at(-0.014, b, 0)],
            fill=(226, 222, 210),
        )
    colours = ((156, 96, 82), (176, 152, 112), (104, 114, 136), (162, 118, 94), (124, 100, 112), (182, 164, 136))
    for side in (-1, 1):
        cuts = [1.5, 0.74, 0.50, 0.36, 0.27, 0.20, 0.145, 0.10, 0.06]
        for k in reversed(range(len(cuts) - 1)):
            facade(
                draw,
                view,
                rng,
                side,
                cuts[k],
                cuts[k + 1],
                int(rng.integers(2, 4)),
                colours[(k * 2 + 3 * (side > 0)) % len(colours)],
            )
    for scale in (0.10, 0.15, 0.23, 0.36, 0.60):
        for side in (-1, 1):
            lamp(draw, view, side * 0.66, scale * (1.0 if side > 0 else 1.13), lights)
    image = glow(image, [(view.vx, view.vy - 20, 170, (255, 200, 140), 0.35)])
    image = wet(glow(image, lights), view, rng)
    # People and cars come after the wet ground: they stand in front of it.
    draw, lights = ImageDraw.Draw(image), []
    x, y = view.at(-0.26, 0.20, 0)
    draw.rounded_rectangle([x - 42, y - 44, x + 42, y - 4], radius=9, fill=(54, 56, 74))
    draw.rounded_rectangle([x - 32, y - 64, x + 32, y - 38], radius=7, fill=(84, 92, 112))
    for side in (-1, 1):  # an oncoming car: two lamps
        draw.ellipse([x + side * 28 - 8, y - 31, x + side * 28 + 8, y - 15], fill=(255, 250, 230))
        lights.append((x + side * 28, y - 23, 26, (255, 244, 214), 0.8))
    x, y = view.at(0.27, 0.50, 0)
    car(draw, x, y, 215, lights)
    for across, scale, coat, umbrella in (
        (-0.72, 0.30, (84, 96, 84), (66, 110, 140)),
        (0.78, 0.40, (116, 84, 70), (226, 172, 62)),
        (-0.78, 0.78, (62, 72, 116), (200, 54, 54)),
    ):
        x, y = view.at(across, scale, 0)
        tall = 1.72 * view.METRE * scale
        draw.ellipse(
            [x - 0.22 * tall, y - 0.03 * tall, x + 0.22 * tall, y + 0.04 * tall], fill=shade((84, 82, 94), 0.6)
        )
        walker(draw, x, y, tall, coat, umbrella)
    return finish(texture(glow(image, lights), rng, 0.05, 30, 5), rng)


# ------------------------------------------------------------------- digits


def curve(points, steps=24):
    """A smooth line (Catmull-Rom) through the given points."""
    p = np.array([points[0], *points, points[-1]], float)
    t = np.linspace(0, 1, steps, endpoint=False)[:, None]
    out = [
        0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
        for a, b, c, d in zip(p[:-3], p[1:-2], p[2:-1], p[3:])
    ]
    return np.concatenate(out + [p[-1:]])


# Strokes of a digit in a unit square, y downward.
STROKES = {
    2: [
        curve([(0.24, 0.26), (0.38, 0.10), (0.62, 0.10), (0.72, 0.30), (0.58, 0.54), (0.36, 0.76), (0.24, 0.90)]),
        curve([(0.24, 0.90), (0.50, 0.89), (0.78, 0.90)]),
    ],
    3: [
        curve([(0.26, 0.17), (0.46, 0.08), (0.68, 0.15), (0.70, 0.34), (0.46, 0.47)]),
        curve([(0.46, 0.47), (0.70, 0.56), (0.74, 0.76), (0.56, 0.92), (0.34, 0.90), (0.23, 0.81)]),
    ],
    7: [
        curve([(0.20, 0.12), (0.48, 0.11), (0.78, 0.11)]),
        curve([(0.78, 0.11), (0.62, 0.40), (0.48, 0.66), (0.42, 0.92)]),
    ],
}


def digit(number, rng, edge=256):
    """A digit as if written with a felt pen on paper; Pillow image RGB, edge x edge.

    Dark ink on light paper, filling the sheet but for a margin: the
    convention of the model digits.
    """
    big = edge * OVER
    paper = np.array([246, 243, 235]) * (1 + 0.012 * synth.smooth_noise(rng, big, big, 6, 16))[..., None]
    image = Image.fromarray(np.clip(paper, 0, 255).round().astype(np.uint8))
    ink = Image.new("L", (big, big), 0)
    draw = ImageDraw.Draw(ink)
    for stroke in STROKES[number]:
        for i, (x, y) in enumerate(stroke):
            r = big * (0.052 + 0.006 * math.sin(i * 0.11 + number))
            draw.ellipse([x * big - r, y * big - r, x * big + r, y * big + r], fill=255)
    shading = 1 + 0.10 * synth.smooth_noise(rng, big, big, 5, 8)
    pen = Image.fromarray(np.clip(np.array([30, 38, 92]) * shading[..., None], 0, 255).round().astype(np.uint8))
    image.paste(pen, (0, 0), ink.filter(ImageFilter.GaussianBlur(1.5)))
    return image.resize((edge, edge), Image.Resampling.LANCZOS)


# --------------------------------------------------------------------- main


def to_image(picture):
    """float32 [H, W, 3] 0..1 -> Pillow image."""
    return Image.fromarray((np.clip(picture, 0, 1) * 255).round().astype(np.uint8))


def save(image, path):
    """Write a picture (JPEG without chroma subsampling, or PNG) and say how large it is."""
    part = io.BytesIO()
    if path.suffix == ".jpg":
        image.save(part, "JPEG", quality=QUALITY, subsampling=0, optimize=True)
    else:
        image.save(part, "PNG", optimize=True)
    path.write_bytes(part.getvalue())
    print(f"{path.name}: {image.width}x{image.height}, {len(part.getvalue()) / 1000:.0f} kB")


def draw_all(folder, seed):
    """Draw every picture into folder."""
    for name, scene, kind, number in (("rainy", lake, "light", 1), ("downpour", street, "heavy", 2)):
        rng = np.random.default_rng([seed, number])
        truth = scene(rng)
        rainy = synth.blend(truth, synth.make_rain(rng, HEIGHT, WIDTH, kind), rng)
        save(to_image(truth), folder / f"{name}_truth.jpg")
        save(to_image(rainy), folder / f"{name}.jpg")
    for name, number in (("digit", 3), ("digit_2", 2), ("digit_7", 7)):
        save(digit(number, np.random.default_rng([seed, 10 + number])), folder / f"{name}.png")


def check(folder):
    """Run the example models on the pictures as the server would; returns whether all is well."""
    import train as derain

    well = True
    run = derain.session(derain.MODEL)
    for name, bar in (("rainy", 2.0), ("downpour", 8.0)):
        rainy, truth = (np.asarray(Image.open(folder / f"{name}{s}.jpg"), np.float32) / 255 for s in ("", "_truth"))
        before, after = derain.scores(rainy, truth), derain.scores(derain.derain(run, rainy), truth)
        print(
            f"{name}.jpg: PSNR {before[0]:.2f} -> {after[0]:.2f} dB "
            f"(gain {after[0] - before[0]:.2f}, expected at least {bar:g}), "
            f"on Y {before[1]:.2f} -> {after[1]:.2f} dB, SSIM {before[2]:.3f} -> {after[2]:.3f}"
        )
        well &= after[0] - before[0] >= bar
    run = derain.session(HERE.parent / "models" / "digits" / "1" / "model.onnx")
    for name, number in (("digit", 3), ("digit_2", 2), ("digit_7", 7)):
        grey = Image.open(folder / f"{name}.png").convert("L").resize((8, 8), Image.Resampling.BOX)
        ink = (255 - np.asarray(grey, np.float32)) * np.float32(16 / 255)
        chance = run.run(["probabilities"], {"image": ink[None, None]})[0][0]
        print(f"{name}.png: {int(chance.argmax())} with probability {chance.max():.3f} (drawn as {number})")
        well &= int(chance.argmax()) == number
    return bool(well)


def main():
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(
        description="Draw the example pictures: two rainy scenes with their truth, and three digits."
    )
    parser.add_argument("--seed", type=int, default=5, help="decides every scene and its rain (default 5)")
    parser.add_argument("--out", type=pathlib.Path, default=HERE, help="folder to write into (default: this one)")
    parser.add_argument(
        "--check", action="store_true", help="also run the example models on the pictures; exit status 3 if they fail"
    )
    parser.add_argument(
        "--check-only", action="store_true", help="draw nothing, only check the pictures that are there"
    )
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if not args.check_only:
        draw_all(args.out, args.seed)
    return 0 if not (args.check or args.check_only) or check(args.out) else 3


if __name__ == "__main__":
    sys.exit(main())
