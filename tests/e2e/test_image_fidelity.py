"""Pictures in naru against Pillow and NumPy, byte by byte.

Runs build/tests/tools/naru-image-tool (NARU_IMAGE_TOOL names another one). Needs Pillow and NumPy;
skips without them. What each test promises:
  - PNG of every colour type and depth, interlaced or not: the same bytes as the reference;
  - lossless WebP: the same bytes; JPEG: at most 2 of 255 from Pillow (both use libjpeg-turbo with
    the accurate DCT and smooth upsampling: 0 when the versions agree);
  - EXIF orientations 1 to 8 in JPEG, PNG and WebP;
  - six resize filters over twelve sizes: at most 1 of 255 from Pillow;
  - normalisation: float32 within 1 unit in the last place of NumPy's, FP16 and BF16 the same bits;
  - padding as numpy.pad(mode="reflect"), tiles and stitching without a trace.
"""
import io
import os
import pathlib
import struct
import subprocess
import zlib

import pytest

np = pytest.importorskip("numpy")
PIL = pytest.importorskip("PIL")
Image = pytest.importorskip("PIL.Image")
ImageOps = pytest.importorskip("PIL.ImageOps")

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOOL = os.environ.get("NARU_IMAGE_TOOL", str(ROOT / "build/tests/tools/naru-image-tool"))
if not os.path.exists(TOOL):
    pytest.skip(f"{TOOL} is not built", allow_module_level=True)

SIZES = [(1, 1), (2, 3), (7, 5), (16, 16), (31, 64), (96, 61), (97, 62), (128, 96),
         (150, 40), (224, 224), (331, 200), (640, 11)]
FILTERS = {"nearest": Image.Resampling.NEAREST, "box": Image.Resampling.BOX,
           "bilinear": Image.Resampling.BILINEAR, "hamming": Image.Resampling.HAMMING,
           "bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS}


def run(*args, ok=True):
    p = subprocess.run([TOOL, *map(str, args)], capture_output=True, timeout=60, check=False)
    if ok:
        assert p.returncode == 0, p.stderr.decode()
        return p.stdout
    assert p.returncode == 1, (p.returncode, p.stderr)
    return p.stderr.decode()


def pixels(raw):
    head, data = raw.split(b"\n", 1)
    w, h, c = map(int, head.split())
    a = np.frombuffer(data, np.uint8)
    return a.reshape(h, w, c) if c == 3 else a.reshape(h, w)


def noise(w, h, channels, seed=1, smooth=True):
    """A picture with edges, ramps and noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:h, 0:w]
    planes = []
    for c in range(channels):
        base = 127 + 90 * np.sin(x / (5 + 3 * c)) * np.cos(y / (7 + c)) + 30 * ((x // 9 + y // 7) % 2)
        planes.append(base + rng.normal(0, 6 if smooth else 60, (h, w)))
    a = np.clip(np.stack(planes, -1), 0, 255).astype(np.uint8)
    return a[..., 0] if channels == 1 else a


@pytest.fixture
def put(tmp_path):
    count = [0]

    def save(data):
        count[0] += 1
        path = tmp_path / f"{count[0]}.bin"
        path.write_bytes(data)
        return path
    return save


def saved(image, fmt, **kw):
    out = io.BytesIO()
    image.save(out, fmt, **kw)
    return out.getvalue()


# --- PNG -----------------------------------------------------------------------------------------

def png_chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


ADAM7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]


def pack_rows(samples, depth):
    """(h, w, c) samples to PNG scan lines with filter 0."""
    out = b""
    for row in samples.reshape(samples.shape[0], -1):
        if depth == 16:
            line = row.astype(">u2").tobytes()
        elif depth == 8:
            line = row.astype(np.uint8).tobytes()
        else:
            bits = ((row[:, None].astype(np.uint8) >> np.arange(depth - 1, -1, -1)) & 1).reshape(-1)
            line = np.packbits(bits).tobytes()
        out += b"\0" + line
    return out


def write_png(samples, color_type, depth, interlace=False, chunks=()):
    """A PNG writer of our own, so that 16 bits, small depths and interlacing have a reference that
    is known rather than read back."""
    h, w = samples.shape[:2]
    samples = samples.reshape(h, w, -1)
    if interlace:
        raw = b"".join(pack_rows(samples[y::dy, x::dx], depth) for x, y, dx, dy in ADAM7
                       if samples[y::dy, x::dx].size)
    else:
        raw = pack_rows(samples, depth)
    return (b"\x89PNG\r\n\x1a\n"
            + png_chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, depth, color_type, 0, 0, int(interlace)))
            + b"".join(png_chunk(k, b) for k, b in chunks)
            + png_chunk(b"IDAT", zlib.compress(raw)) + png_chunk(b"IEND", b""))


def on_white(color, alpha, top):
    """Composited on white at full depth, then to 8 bits, rounded once; exact integers."""
    color, alpha = color.astype(object), alpha.astype(object)
    v = color * alpha + top * (top - alpha)
    unit = top * (top // 255)
    return ((v * 2 + unit) // (unit * 2)).astype(np.uint8)


@pytest.mark.parametrize("interlace", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (5, 3), (33, 17)])
@pytest.mark.parametrize("kind", ["L1", "L2", "L4", "L8", "L16", "LA8", "LA16", "RGB8", "RGB16",
                                  "RGBA8", "RGBA16"])
def test_png_direct(put, kind, size, interlace):
    depth = int(kind.lstrip("LARGB"))
    name = kind[:-len(str(depth))]
    color_type, channels = {"L": (0, 1), "LA": (4, 2), "RGB": (2, 3), "RGBA": (6, 4)}[name]
    w, h = size
    rng = np.random.default_rng(w * 100 + depth)
    top = 2 ** depth - 1
    s = rng.integers(0, top + 1, (h, w, channels))
    got = pixels(run("decode", put(write_png(s, color_type, depth, interlace)), "native"))
    colors = s[..., :-1] if channels in (2, 4) else s
    if channels in (2, 4):
        want = on_white(colors, s[..., -1:], top)
    else:
        want = ((colors * 510 + top) // (top * 2)).astype(np.uint8)
    want = want[..., 0] if want.shape[-1] == 1 else want
    assert got.shape == want.shape
    assert (got == want).all()


@pytest.mark.parametrize("interlace", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 4, 8])
@pytest.mark.parametrize("trns", [False, True])
def test_png_palette(put, depth, trns, interlace):
    rng = np.random.default_rng(depth)
    n = 2 ** depth
    palette = rng.integers(0, 256, (n, 3)).astype(np.uint8)
    alpha = rng.integers(0, 256, n).astype(np.uint8)
    index = rng.integers(0, n, (19, 23, 1))
    chunks = [(b"PLTE", palette.tobytes())] + ([(b"tRNS", alpha.tobytes())] if trns else [])
    path = put(write_png(index, 3, depth, interlace, chunks))
    want = palette[index[..., 0]]
    if trns:
        want = on_white(want.astype(int), alpha[index].astype(int), 255)
    got = pixels(run("decode", path, "native"))
    assert (got == want).all()
    if not trns:
        assert (got == np.asarray(Image.open(path).convert("RGB"))).all()


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("color_type", [0, 2])
def test_png_transparent_colour(put, depth, color_type):
    channels = 1 if color_type == 0 else 3
    rng = np.random.default_rng(3)
    s = rng.integers(0, 2 ** depth, (11, 13, channels))
    s[::2, ::3] = s[0, 0]
    path = put(write_png(s, color_type, depth, False, [(b"tRNS", s[0, 0].astype(">u2").tobytes())]))
    top = 2 ** depth - 1
    want = ((s * 510 + top) // (top * 2)).astype(np.uint8)
    want[(s == s[0, 0]).all(-1)] = 255
    assert (pixels(run("decode", path, "native")) == want.squeeze()).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_png_as_pillow(put, mode):
    base = Image.fromarray(noise(83, 59, 3)).convert("RGBA")
    base.putalpha(Image.fromarray(noise(83, 59, 1, seed=9)))
    image = base.convert(mode)
    path = put(saved(image, "PNG"))
    reference = Image.open(path)
    if mode in ("LA", "RGBA", "P"):
        flat = Image.new("RGB", image.size, "white")
        rgba = reference.convert("RGBA")
        flat.paste(rgba, mask=rgba.getchannel("A"))
    else:
        flat = reference.convert("RGB")
    assert (pixels(run("decode", path, "rgb")) == np.asarray(flat)).all()
    assert (pixels(run("decode", path, "gray")) == np.asarray(flat.convert("L"))).all()


# --- JPEG, WebP ----------------------------------------------------------------------------------

@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("quality", [35, 92])
def test_jpeg_as_pillow(put, subsampling, progressive, quality):
    image = Image.fromarray(noise(141, 93, 3))
    path = put(saved(image, "JPEG", subsampling=subsampling, progressive=progressive, quality=quality))
    want = np.asarray(Image.open(path)).astype(int)
    got = pixels(run("decode", path, "native")).astype(int)
    assert np.abs(got - want).max() <= 2
    gray = np.asarray(Image.open(path).convert("L")).astype(int)
    assert np.abs(pixels(run("decode", path, "gray")).astype(int) - gray).max() <= 2


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_jpeg_modes(put, mode):
    path = put(saved(Image.fromarray(noise(64, 48, 3)).convert(mode), "JPEG", quality=90))
    reference = Image.open(path)
    want = np.asarray(reference if mode == "L" else reference.convert("RGB")).astype(int)
    got = pixels(run("decode", path, "native")).astype(int)
    assert got.shape == want.shape and np.abs(got - want).max() <= 2


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_webp_lossless(put, mode):
    image = Image.fromarray(noise(77, 41, 3))
    if mode == "RGBA":
        image.putalpha(Image.fromarray(noise(77, 41, 1, seed=4)))
    path = put(saved(image, "WEBP", lossless=True, exact=True))
    flat = Image.new("RGB", image.size, "white")
    flat.paste(image, mask=image.getchannel("A") if mode == "RGBA" else None)
    assert (pixels(run("decode", path, "native")) == np.asarray(flat)).all()


def test_webp_lossy(put):
    path = put(saved(Image.fromarray(noise(90, 70, 3)), "WEBP", quality=70))
    want = np.asarray(Image.open(path).convert("RGB")).astype(int)
    assert np.abs(pixels(run("decode", path, "native")).astype(int) - want).max() <= 2


@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(put, fmt, orientation):
    image = Image.fromarray(noise(71, 38, 3))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 95}, "PNG": {}, "WEBP": {"lossless": True}}[fmt]
    path = put(saved(image, fmt, exif=exif.tobytes(), **options))
    want = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB")).astype(int)
    got = pixels(run("decode", path, "native")).astype(int)
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= (2 if fmt == "JPEG" else 0)
    assert f"orientation={orientation} " in run("probe", path).decode()


@pytest.mark.parametrize("channels", [1, 3])
def test_encode_back(put, channels):
    a = noise(67, 45, channels)
    path = put(saved(Image.fromarray(a), "PNG"))
    png = Image.open(io.BytesIO(run("encode", path, "png", 0)))
    assert (np.asarray(png) == a).all()
    rgb = np.asarray(Image.fromarray(a).convert("RGB"))
    webp = Image.open(io.BytesIO(run("encode", path, "webp", "lossless"))).convert("RGB")
    assert (np.asarray(webp) == rgb).all()
    for fmt, quality in (("jpeg", 95), ("webp", 95)):
        back = np.asarray(Image.open(io.BytesIO(run("encode", path, fmt, quality))).convert("RGB"))
        mse = ((back.astype(float) - rgb.astype(float)) ** 2).mean()
        assert 10 * np.log10(255 ** 2 / mse) > 30
    # the quality scale is libjpeg's own
    ours = run("encode", path, "jpeg", 80)
    theirs = saved(Image.fromarray(a), "JPEG", quality=80, subsampling=2)
    assert Image.open(io.BytesIO(ours)).quantization == Image.open(io.BytesIO(theirs)).quantization


# --- resizing ------------------------------------------------------------------------------------

@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", FILTERS)
def test_resize_as_pillow(put, name, channels):
    worst = 0
    for shape, smooth in (((97, 62), True), ((301, 203), False)):
        a = noise(*shape, channels, smooth=smooth)
        path = put(saved(Image.fromarray(a), "PNG"))
        for w, h in SIZES:
            if int(PIL.__version__.split(".")[0]) < 13 and shape[1] - h > max(0, 2 * (shape[0] - w)):
                continue  # the passes run in the other order there
            want = np.asarray(Image.fromarray(a).resize((w, h), FILTERS[name])).astype(int)
            got = pixels(run("resize", path, w, h, name)).astype(int)
            assert got.shape == want.shape
            worst = max(worst, np.abs(got - want).max())
    assert worst <= (0 if name == "nearest" else 1)


# --- tensors -------------------------------------------------------------------------------------

def tensor(raw, dtype):
    head, data = raw.split(b"\n", 1)
    tiles, _, *shape = map(int, head.split())
    a = np.frombuffer(data, dtype)
    return a.reshape(tiles, *shape) if tiles > 1 else a.reshape(shape)


MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
PARAMS = ["naru.image.scale=1/255", "naru.image.mean=0.485, 0.456, 0.406",
          "naru.image.std=0.229,0.224,0.225"]


def normalised(a, scale=1 / 255, mean=MEAN, std=STD):
    f = np.float32
    return ((a.astype(f) * f(scale)) - np.array(mean, f)) / np.array(std, f)


def ulps(a, b):
    ia, ib = (np.ascontiguousarray(x).view(np.int32).astype(np.int64) for x in (a, b))
    ia, ib = (np.where(x < 0, -(x & 0x7fffffff), x) for x in (ia, ib))
    return np.abs(ia - ib).max()


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("color", ["RGB", "BGR"])
def test_normalise(put, layout, color):
    # every byte value in every channel
    a = np.stack([np.arange(256), np.arange(256)[::-1], (np.arange(256) * 7) % 256], -1)
    a = a.astype(np.uint8).reshape(16, 16, 3)
    path = put(saved(Image.fromarray(a), "PNG"))
    sig = "+x,FP32,3,-1,-1" if layout == "NCHW" else "+x,FP32,-1,-1,3"
    got = tensor(run("tensor", path, sig, *PARAMS, f"naru.image.layout={layout}",
                     f"naru.image.color={color}"), np.float32)
    want = normalised(a[..., ::-1] if color == "BGR" else a)
    want = want.transpose(2, 0, 1) if layout == "NCHW" else want
    assert got.shape == (1, *want.shape)
    assert ulps(got[0], want) <= 1


def bf16(a):
    bits = np.ascontiguousarray(a).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


@pytest.mark.parametrize("dtype", ["FP16", "BF16", "UINT8", "INT8"])
@pytest.mark.parametrize("invert", [False, True])
def test_element_types(put, dtype, invert):
    a = np.arange(256, dtype=np.uint8).reshape(16, 16)
    path = put(saved(Image.fromarray(a), "PNG"))
    v = 255 - a if invert else a
    params = ["naru.image.color=GRAY", f"naru.image.invert={'true' if invert else 'false'}"]
    if dtype in ("FP16", "BF16"):
        params += ["naru.image.scale=1/255", "naru.image.mean=0.1307", "naru.image.std=0.3081"]
        f = normalised(v, mean=[0.1307], std=[0.3081])
        want = f.astype(np.float16).view(np.uint16) if dtype == "FP16" else bf16(f)
        kind = np.uint16
    elif dtype == "UINT8":
        params += ["naru.image.scale=1.5"]
        want, kind = np.clip(np.rint(v * np.float32(1.5)), 0, 255).astype(np.uint8), np.uint8
    else:
        params += ["naru.image.mean=128"]
        want, kind = (v.astype(int) - 128).astype(np.int8), np.int8
    got = tensor(run("tensor", path, f"x,{dtype},1,1,16,16", *params), kind)
    assert got.shape == (1, 1, 16, 16)
    assert (got[0, 0] == want).all()


def half_up(x):
    return int(np.floor(x + 0.5))


@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
@pytest.mark.parametrize("size", [(200, 120), (80, 300), (64, 48)])
def test_fit(put, fit, size):
    a = noise(*size, 3)
    path = put(saved(Image.fromarray(a), "PNG"))
    got = tensor(run("tensor", path, "+x,UINT8,64,48,3", f"naru.image.fit={fit}",
                     "naru.image.resize=bicubic"), np.uint8)[0]
    w, h = size
    W, H = 48, 64
    image = Image.fromarray(a)
    if fit == "stretch":
        want = np.asarray(image.resize((W, H), Image.Resampling.BICUBIC))
    elif fit == "crop":
        s = max(W / w, H / h)
        r = (max(W, half_up(w * s)), max(H, half_up(h * s)))
        x, y = (r[0] - W) // 2, (r[1] - H) // 2
        want = np.asarray(image.resize(r, Image.Resampling.BICUBIC))[y:y + H, x:x + W]
    else:
        s = min(W / w, H / h)
        r = (min(W, half_up(w * s)), min(H, half_up(h * s)))
        x, y = (W - r[0]) // 2, (H - r[1]) // 2
        want = np.zeros((H, W, 3), np.uint8)
        want[y:y + r[1], x:x + r[0]] = np.asarray(image.resize(r, Image.Resampling.BICUBIC))
    assert np.abs(got.astype(int) - want).max() <= 1


@pytest.mark.parametrize("size", [(64, 48), (61, 45), (1, 1), (3, 50), (130, 7)])
@pytest.mark.parametrize("multiple", [1, 8, 32])
def test_reflection(put, size, multiple):
    a = noise(*size, 3)
    path = put(saved(Image.fromarray(a), "PNG"))
    param = f"naru.image.multiple_of={multiple}"
    got = tensor(run("tensor", path, "x,UINT8,-1,3,-1,-1", param), np.uint8)[0]
    w, h = size
    want = np.pad(a, ((0, -h % multiple), (0, -w % multiple), (0, 0)), mode="reflect")
    assert (got == want.transpose(2, 0, 1)).all()
    assert (pixels(run("through", path, "x,UINT8,-1,3,-1,-1", param)) == a).all()


@pytest.mark.parametrize("size", [(64, 64), (65, 64), (300, 200), (127, 513), (20, 400)])
@pytest.mark.parametrize("overlap", [0, 9, 32])
@pytest.mark.parametrize("sig", ["+x,UINT8,-1,-1,3", "x,UINT8,-1,1,-1,-1"])
def test_tiles(put, size, overlap, sig):
    gray = ",1," in sig
    a = noise(*size, 1 if gray else 3)
    path = put(saved(Image.fromarray(a), "PNG"))
    params = ["naru.image.multiple_of=4", "naru.image.tile=64", f"naru.image.tile_overlap={overlap}"]
    assert (pixels(run("through", path, sig, *params)) == a).all()
    tiles = tensor(run("tensor", path, sig, *params), np.uint8)
    w, h = size
    padded = np.pad(a.reshape(h, w, -1), ((0, -h % 4), (0, -w % 4), (0, 0)), mode="reflect")
    shared = 64 - (64 - overlap) // 4 * 4

    def cuts(n):
        """(begin, end) of each tile: as few as 64 allows, and then no larger than that number needs."""
        if n <= 64:
            return [(0, n)]
        count = -(-(n - 64) // (64 - shared)) + 1
        tile = -(-(n + (count - 1) * shared) // count)
        tile += -tile % 4
        begins = [min(i * (tile - shared), n - tile) for i in range(-(-(n - tile) // (tile - shared)) + 1)]
        return [(i, i + tile) for i in begins]
    want = [padded[y:y2, x:x2] for y, y2 in cuts(padded.shape[0]) for x, x2 in cuts(padded.shape[1])]
    assert tiles.size == sum(t.size for t in want)
    for g, t in zip(tiles.reshape(len(want), -1), want):
        assert (g == (t.transpose(2, 0, 1) if gray else t).reshape(-1)).all()


def test_image_out(put):
    """1/255 in, 255 out: the same bytes; FP16 in between costs nothing at 8 bits."""
    a = np.arange(256, dtype=np.uint8).reshape(16, 16)
    a = np.stack([a, a[::-1], a.T], -1)
    path = put(saved(Image.fromarray(a), "PNG"))
    for dtype in ("FP32", "FP16"):
        assert (pixels(run("through", path, f"+x,{dtype},3,-1,-1")) == a).all()
    assert (pixels(run("through", path, "+x,FP32,3,-1,-1", "naru.image.color=BGR",
                       "naru.image.scale=1/255")) == a).all()


# --- errors --------------------------------------------------------------------------------------

@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP"])
def test_cut_short(put, fmt):
    data = saved(Image.fromarray(noise(40, 30, 3)), fmt)
    for n in list(range(12, len(data), max(1, len(data) // 60))) + [len(data) - 1]:
        assert "NARU_INVALID" in run("decode", put(data[:n]), "native", ok=False), n


@pytest.mark.parametrize("fmt", ["GIF", "BMP", "TIFF", "AVIF"])
def test_other_formats_are_named(put, fmt):
    try:
        data = saved(Image.fromarray(noise(20, 20, 3)), fmt)
    except (KeyError, OSError) as e:
        pytest.skip(f"this Pillow does not write {fmt}: {e}")
    text = run("decode", put(data), "native", ok=False)
    assert "NARU_MEDIA_TYPE" in text and fmt in text


def test_bombs(put):
    big = write_png(np.zeros((1, 1, 1), int), 0, 8)
    big = big[:16] + struct.pack(">II", 20000, 20000) + big[24:]
    assert "NARU_TOO_LARGE" in run("decode", put(big), "native", ok=False)
    jpeg = bytearray(saved(Image.fromarray(noise(16, 16, 3)), "JPEG"))
    sof = jpeg.index(b"\xff\xc0")
    jpeg[sof + 5:sof + 9] = struct.pack(">HH", 65500, 65500)
    assert "NARU_TOO_LARGE" in run("decode", put(bytes(jpeg)), "native", ok=False)
    progressive = saved(Image.fromarray(noise(16, 16, 1)), "JPEG", progressive=True)
    last = progressive.rindex(b"\xff\xda")
    scans = progressive[:-2] + progressive[last:-2] * 10000 + b"\xff\xd9"
    assert "scans" in run("decode", put(scans), "native", ok=False)
