"""Rain streaks and simple scenes, made from random numbers alone.

Used by train.py (to make training and test pairs) and by ../pictures/make.py
(to let it rain on the example scenes).  Only numpy is needed.

Conventions in this file: a picture is float32, shape [H, W, 3], RGB, 0..1.
A rain layer is float32, shape [H, W], 0..1: the share of light that the
streaks add at a pixel.  Every function takes a numpy Generator, so that one
seed decides everything.
"""

import numpy as np

# Ranges of the two kinds of rain.  They were set so that the pictures that
# come out are about as far from the truth as in the two best known test sets
# of the field: near 30 dB for light rain, near 15 dB for heavy rain.
#   density: streaks per pixel and layer
#   gain:    brightness of a layer's brightest streak
#   layers:  least and greatest number of layers laid over one another
KINDS = {
    "light": {"density": (0.0006, 0.0024), "gain": (0.20, 0.50), "layers": (1, 2)},
    "heavy": {"density": (0.0024, 0.0100), "gain": (0.35, 0.75), "layers": (2, 4)},
}


def line_kernel(length, angle, width, taper):
    """Draw one streak.

    length and width are in pixels, angle in degrees from the vertical; taper
    (bool) lets both ends fade out, as a short exposure does.  Points along
    the line are spread over their four neighbour pixels (bilinear splat), so
    that any angle gives an even line.  Returns [K, K], K odd, largest value 1.
    """
    half = int(np.ceil((length + width) / 2)) + 1
    size = 2 * half + 1
    kernel = np.zeros((size, size), np.float64)
    along = np.linspace(-length / 2, length / 2, int(length * 4) + 1)
    strength = np.cos(np.pi * along / (length + 1)) if taper else np.ones_like(along)
    across = np.linspace(-(width - 1) / 2, (width - 1) / 2, max(1, int(np.ceil(width * 2))))
    sine, cosine = np.sin(np.radians(angle)), np.cos(np.radians(angle))
    for shift in across:
        y = half + along * cosine - shift * sine
        x = half + along * sine + shift * cosine
        y0, x0 = np.floor(y).astype(int), np.floor(x).astype(int)
        fy, fx = y - y0, x - x0
        np.add.at(kernel, (y0, x0), strength * (1 - fy) * (1 - fx))
        np.add.at(kernel, (y0, x0 + 1), strength * (1 - fy) * fx)
        np.add.at(kernel, (y0 + 1, x0), strength * fy * (1 - fx))
        np.add.at(kernel, (y0 + 1, x0 + 1), strength * fy * fx)
    return kernel / kernel.max()


def rain_layer(rng, height, width, kind, angle=None):
    """One layer of streaks that all fall at nearly one angle: [H, W], 0..1.

    Sparse random points are convolved with a streak (by FFT, so the layer
    wraps round at its edges and can be shifted freely).  Two streak shapes
    share a layer, since drops near and far differ in length and width.
    """
    ranges = KINDS[kind]
    density = rng.uniform(*ranges["density"])
    if angle is None:
        angle = rng.uniform(-35, 35)
    layer = np.zeros((height, width), np.float64)
    for share in (0.5, 0.5):
        kernel = line_kernel(rng.uniform(9, 31), angle + rng.uniform(-3, 3), rng.uniform(1.0, 2.0), rng.random() < 0.5)
        seeds = (rng.random((height, width)) < density * share) * rng.uniform(0.6, 1.0, (height, width))
        canvas = np.zeros((height, width))
        k = kernel.shape[0]
        if k > min(height, width):
            raise ValueError(f"a rain layer must be at least {k} pixels wide and high, got {height}x{width}")
        canvas[:k, :k] = kernel
        canvas = np.roll(canvas, (-(k // 2), -(k // 2)), (0, 1))
        layer += np.fft.irfft2(np.fft.rfft2(seeds) * np.fft.rfft2(canvas), (height, width))
    return np.clip(layer, 0, 1).astype(np.float32)


def blend(picture, rain, rng):
    """Lay rain [H, W] over picture [H, W, 3]; returns the rainy picture, 0..1.

    Half of the pictures use the screen rule (bright places hide rain), half an
    additive rule; published test sets are of both sorts.
    """
    s = rain[..., None] * rng.uniform(0.92, 1.0, 3).astype(np.float32)
    if rng.random() < 0.5:
        out = 1 - (1 - picture) * (1 - s)
    else:
        out = picture + s * (1 - 0.3 * picture)
    return np.clip(out, 0, 1).astype(np.float32)


def make_rain(rng, height, width, kind):
    """A whole rain [H, W] of the given kind, drawn from scratch (slow)."""
    ranges = KINDS[kind]
    total = np.zeros((height, width), np.float32)
    angle = rng.uniform(-35, 35)
    for _ in range(rng.integers(ranges["layers"][0], ranges["layers"][1] + 1)):
        layer = rain_layer(rng, height, width, kind, angle + rng.uniform(-6, 6))
        total = 1 - (1 - total) * (1 - layer * np.float32(rng.uniform(*ranges["gain"])))
    return total


class RainBank:
    """Layers made once, then cropped, flipped and combined.

    Drawing a layer costs tens of milliseconds, a training step about a
    hundred for ten patches: without the bank most of the time would go here.
    """

    def __init__(self, rng, count=180, edge=320):
        """Draw count layers of edge x edge pixels, half light and half heavy.

        Each kind's layers are kept in order of angle, so that layers which
        fall alike are neighbours in the list.
        """
        self.edge = edge
        self.layers = {
            kind: [
                np.round(rain_layer(rng, edge, edge, kind, angle) * 255).astype(np.uint8)
                for angle in np.linspace(-35, 35, count // 2)
            ]
            for kind in KINDS
        }

    def draw(self, rng, size, kind):
        """A rain of [size, size] of the given kind; size must not exceed the bank's edge."""
        ranges, layers = KINDS[kind], self.layers[kind]
        total = np.zeros((size, size), np.float32)
        middle = rng.integers(len(layers))
        for _ in range(rng.integers(ranges["layers"][0], ranges["layers"][1] + 1)):
            layer = layers[int(np.clip(middle + rng.integers(-7, 8), 0, len(layers) - 1))]
            y, x = rng.integers(0, self.edge - size + 1, 2)
            crop = layer[y : y + size, x : x + size]
            total = 1 - (1 - total) * (1 - crop * np.float32(rng.uniform(*ranges["gain"]) / 255))
        if rng.random() < 0.5:
            total = total[:, ::-1]
        if rng.random() < 0.5:
            total = total[::-1]
        return total


def smooth_noise(rng, height, width, octaves=5, start=3):
    """Multi-octave value noise [H, W], mean 0, about -1..1."""
    out = np.zeros((height, width))
    cells, weight = start, 1.0
    for _ in range(octaves):
        grid = rng.normal(size=(cells + 2, cells + 2))
        y = np.linspace(0, cells, height)
        x = np.linspace(0, cells, width)
        y0, x0 = np.floor(y).astype(int), np.floor(x).astype(int)
        fy, fx = (y - y0)[:, None], (x - x0)[None]
        fy, fx = fy * fy * (3 - 2 * fy), fx * fx * (3 - 2 * fx)
        top = grid[y0][:, x0] * (1 - fx) + grid[y0][:, x0 + 1] * fx
        low = grid[y0 + 1][:, x0] * (1 - fx) + grid[y0 + 1][:, x0 + 1] * fx
        out += weight * (top * (1 - fy) + low * fy)
        cells, weight = cells * 2, weight * 0.55
    return out / 2.0


def scene(rng, edge=256):
    """A made-up scene [edge, edge, 3]: gradient, noise, discs, rotated boxes, bars.

    The bars matter: thin bright lines that are NOT rain (poles, window frames)
    teach the net that not every line is to be removed.
    """
    yy, xx = np.mgrid[0:edge, 0:edge].astype(np.float64)
    slope = rng.uniform(0, 2 * np.pi)
    t = (xx * np.cos(slope) + yy * np.sin(slope)) / edge
    t = (t - t.min()) / (t.max() - t.min())
    a, b = rng.random(3), rng.random(3)
    img = a * (1 - t[..., None]) + b * t[..., None]
    img += (
        rng.uniform(0.02, 0.3)
        * smooth_noise(rng, edge, edge, int(rng.integers(3, 7)))[..., None]
        * rng.uniform(0.5, 1, 3)
    )
    for _ in range(rng.integers(4, 16)):
        cy, cx = rng.uniform(0, edge, 2)
        colour = rng.random(3)
        kind = rng.random()
        turn = rng.uniform(0, np.pi) if rng.random() < 0.5 else 0.0
        u = (xx - cx) * np.cos(turn) + (yy - cy) * np.sin(turn)
        v = -(xx - cx) * np.sin(turn) + (yy - cy) * np.cos(turn)
        if kind < 0.35:
            far = np.hypot(u, v) - rng.uniform(4, edge / 5)
        elif kind < 0.75:
            far = np.maximum(np.abs(u) - rng.uniform(4, edge / 4), np.abs(v) - rng.uniform(4, edge / 4))
        else:
            far = np.maximum(np.abs(u) - rng.uniform(0.8, 3), np.abs(v) - rng.uniform(20, edge / 2))
        cover = np.clip(0.5 - far, 0, 1)[..., None]  # one pixel of anti-aliasing
        texture = 1 + rng.uniform(0, 0.4) * smooth_noise(rng, edge, edge, 4, int(rng.integers(4, 24)))[..., None]
        img = img * (1 - cover) + np.clip(colour * texture, 0, 1) * cover
    return np.clip(img, 0, 1).astype(np.float32)
