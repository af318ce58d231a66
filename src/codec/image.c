/* Pictures: telling formats apart, limits, uprightness and colour; the formats themselves are in
 * image_jpeg.c, image_png.c and image_webp.c, their headers in image_probe.c.
 *
 * Why a header walk of our own before any library sees the file: the limits must hold before a
 * library allocates (a 50 kB PNG may declare 20,000 x 20,000 pixels, a JPEG 10,000 scans), and
 * EXIF orientation must be known to name the size of the answer.
 *
 * INVARIANTS
 *  1. nr_image_probe succeeds before a decoder runs; decoders may rely on its numbers and check
 *     that their library reads the same size.
 *  2. width * height * 4 fits in size_t and was checked against max_pixels, so sizes computed from
 *     an info or an image cannot overflow.
 *  3. On error the out-parameter is {0}: nothing to free.
 * Threads: pure functions, no state.
 */
#include "codec/image.h"

#include "base/mem.h"
#include "codec/image_priv.h"

static const struct {
    const char *name;
    const char *media;
    const char *word; /* of configuration and flags; NULL: not readable */
} formats[] = {
    [NR_IMAGE_UNKNOWN] = {"unknown", NULL, NULL},
    [NR_IMAGE_JPEG] = {"JPEG", "image/jpeg", "jpeg"},
    [NR_IMAGE_PNG] = {"PNG", "image/png", "png"},
    [NR_IMAGE_WEBP] = {"WebP", "image/webp", "webp"},
    [NR_IMAGE_GIF] = {"GIF", "image/gif", NULL},
    [NR_IMAGE_BMP] = {"BMP", "image/bmp", NULL},
    [NR_IMAGE_TIFF] = {"TIFF", "image/tiff", NULL},
    [NR_IMAGE_HEIC] = {"HEIC", "image/heic", NULL},
    [NR_IMAGE_AVIF] = {"AVIF", "image/avif", NULL},
};

/* ISO base media files name their brand at byte 8. */
static enum nr_image_format sniff_brand(struct nr_str s)
{
    static const struct {
        const char brand[5];
        enum nr_image_format format;
    } brands[] = {
        {"heic", NR_IMAGE_HEIC}, {"heix", NR_IMAGE_HEIC}, {"hevc", NR_IMAGE_HEIC},
        {"heim", NR_IMAGE_HEIC}, {"mif1", NR_IMAGE_HEIC}, {"msf1", NR_IMAGE_HEIC},
        {"avif", NR_IMAGE_AVIF}, {"avis", NR_IMAGE_AVIF},
    };
    if (s.len < 12 || memcmp(s.ptr + 4, "ftyp", 4) != 0) {
        return NR_IMAGE_UNKNOWN;
    }
    for (size_t i = 0; i < NR_COUNT(brands); i++) {
        if (memcmp(s.ptr + 8, brands[i].brand, 4) == 0) {
            return brands[i].format;
        }
    }
    return NR_IMAGE_UNKNOWN;
}

enum nr_image_format nr_image_sniff(const void *data, size_t len)
{
    struct nr_str s = {data, len};
    if (nr_str_starts(s, NR_STR("\xff\xd8\xff"))) {
        return NR_IMAGE_JPEG;
    }
    if (nr_str_starts(s, NR_STR("\x89PNG\r\n\x1a\n"))) {
        return NR_IMAGE_PNG;
    }
    if (len >= 12 && memcmp(s.ptr, "RIFF", 4) == 0 && memcmp(s.ptr + 8, "WEBP", 4) == 0) {
        return NR_IMAGE_WEBP;
    }
    if (nr_str_starts(s, NR_STR("GIF87a")) || nr_str_starts(s, NR_STR("GIF89a"))) {
        return NR_IMAGE_GIF;
    }
    if (nr_str_starts(s, NR_STR("II*\0")) || nr_str_starts(s, NR_STR("MM\0*"))) {
        return NR_IMAGE_TIFF;
    }
    /* "BM" alone is common in other data: the reserved bytes 6-9 of a BMP are zero */
    if (len >= 10 && nr_str_starts(s, NR_STR("BM")) && memcmp(s.ptr + 6, "\0\0\0\0", 4) == 0) {
        return NR_IMAGE_BMP;
    }
    return sniff_brand(s);
}

const char *nr_image_format_name(enum nr_image_format format)
{
    return formats[format].name;
}

const char *nr_image_format_media(enum nr_image_format format)
{
    return formats[format].media;
}

bool nr_image_format_parse(struct nr_str s, enum nr_image_format *ret)
{
    for (size_t i = 0; i < NR_COUNT(formats); i++) {
        if (formats[i].word != NULL && (nr_str_eq_nocase(s, nr_str_from(formats[i].word)) ||
                                        nr_str_eq_nocase(s, nr_str_from(formats[i].media)))) {
            *ret = (enum nr_image_format)i;
            return true;
        }
    }
    if (nr_str_eq_nocase(s, NR_STR("jpg"))) {
        *ret = NR_IMAGE_JPEG;
        return true;
    }
    return false;
}

static nr_status limits_check(const struct nr_image_info *info,
                              const struct nr_image_limits *limits, struct nr_err *err)
{
    const char *name = nr_image_format_name(info->format);
    if (info->stored_width == 0 || info->stored_height == 0) {
        return nr_fail(err, NARU_INVALID, "%s picture of %u x %u pixels: a side is 0", name,
                       info->stored_width, info->stored_height);
    }
    if (info->stored_width > limits->max_side || info->stored_height > limits->max_side) {
        return nr_fail(err, NARU_TOO_LARGE,
                       "%s picture of %u x %u pixels: a side may have at most %u pixels; send a "
                       "smaller picture",
                       name, info->stored_width, info->stored_height, limits->max_side);
    }
    uint64_t pixels = (uint64_t)info->stored_width * info->stored_height;
    if (pixels > limits->max_pixels || pixels > SIZE_MAX / 16) {
        return nr_fail(err, NARU_TOO_LARGE,
                       "%s picture of %u x %u pixels: %.1f megapixels, the limit is %.1f; send a "
                       "smaller picture",
                       name, info->stored_width, info->stored_height, (double)pixels / 1e6,
                       (double)limits->max_pixels / 1e6);
    }
    if (info->scans > limits->max_scans) {
        return nr_fail(err, NARU_TOO_LARGE,
                       "JPEG picture with %u scans, the limit is %u (progressive pictures have "
                       "about 10)",
                       info->scans, limits->max_scans);
    }
    return NARU_OK;
}

/* Upper estimate: the result, a second copy while it is turned or composited, what the library
 * holds (coefficients of a progressive JPEG, ARGB of a lossless WebP, 64-bit pixels of PNG). */
static uint64_t work_estimate(const struct nr_image_info *info)
{
    uint64_t pixels = (uint64_t)info->stored_width * info->stored_height;
    uint64_t per_pixel = info->channels;
    if (info->orientation > 1) {
        per_pixel += info->channels;
    }
    switch (info->format) {
    case NR_IMAGE_JPEG:
        per_pixel += info->components == 4 ? 4 : 0;
        per_pixel += info->progressive ? 2 * (uint64_t)info->components : 0;
        break;
    case NR_IMAGE_PNG:
        per_pixel +=
            info->progressive ? (uint64_t)info->components * (info->bit_depth > 8 ? 2 : 1) : 0;
        break;
    default:
        per_pixel += info->has_alpha ? 8U : 4U;
        break;
    }
    return pixels * per_pixel + 1024 * 1024;
}

nr_status nr_image_probe(const void *data, size_t len, const struct nr_image_limits *limits,
                         struct nr_image_info *ret, struct nr_err *err)
{
    static nr_status (*const probes[])(struct nr_str, struct nr_image_info *, struct nr_err *) = {
        [NR_IMAGE_JPEG] = nr_jpeg_probe,
        [NR_IMAGE_PNG] = nr_png_probe,
        [NR_IMAGE_WEBP] = nr_webp_probe,
    };
    *ret = (struct nr_image_info){.format = nr_image_sniff(data, len), .orientation = 1};
    if (ret->format == NR_IMAGE_UNKNOWN) {
        return nr_fail(err, NARU_MEDIA_TYPE,
                       "the %zu bytes received do not begin like a picture: expected JPEG, PNG or "
                       "WebP",
                       len);
    }
    if (formats[ret->format].word == NULL) {
        return nr_fail(err, NARU_MEDIA_TYPE,
                       "%s pictures are not read: send the picture as JPEG, PNG or WebP",
                       nr_image_format_name(ret->format));
    }
    struct nr_image_info info = *ret;
    NR_ASSERT((size_t)info.format < NR_COUNT(probes));
    nr_status st = probes[info.format]((struct nr_str){data, len}, &info, err);
    if (st != NARU_OK) {
        return st;
    }
    const struct nr_image_limits defaults = NR_IMAGE_LIMITS_DEFAULT;
    st = limits_check(&info, limits != NULL ? limits : &defaults, err);
    if (st != NARU_OK) {
        return st;
    }
    bool turned = info.orientation >= 5;
    info.width = turned ? info.stored_height : info.stored_width;
    info.height = turned ? info.stored_width : info.stored_height;
    info.work_bytes = work_estimate(&info);
    *ret = info;
    return NARU_OK;
}

nr_status nr_image_new(uint32_t width, uint32_t height, uint32_t channels, struct nr_image *ret,
                       struct nr_err *err)
{
    *ret = (struct nr_image){0};
    NR_ASSERT(channels == 1 || channels == 3);
    size_t row, bytes;
    if (width == 0 || height == 0 || !nr_mul(width, channels, &row) ||
        !nr_mul(row, height, &bytes)) {
        return nr_fail(err, NARU_INVALID, "a picture of %u x %u pixels cannot be made", width,
                       height);
    }
    struct nr_buf *buf = nr_buf_try_new(bytes);
    if (buf == NULL) {
        return nr_fail(err, NARU_NOMEM, "no memory for a picture of %u x %u pixels (%zu bytes)",
                       width, height, bytes);
    }
    *ret = (struct nr_image){width, height, channels, buf};
    return NARU_OK;
}

void nr_image_done(struct nr_image *img)
{
    nr_buf_unref(img->buf);
    *img = (struct nr_image){0};
}

uint8_t *nr_image_data(const struct nr_image *img)
{
    return nr_buf_data(img->buf);
}

/* Turning: the pixel (x, y) of the result comes from origin + x * step_x + y * step_y of the
 * stored picture, in pixels. */
struct turn {
    ptrdiff_t origin, step_x, step_y;
};

static struct turn turn_of(uint8_t orientation, ptrdiff_t w, ptrdiff_t h)
{
    switch (orientation) {
    case 2: /* mirrored left-right */
        return (struct turn){w - 1, -1, w};
    case 3: /* upside down */
        return (struct turn){h * w - 1, -1, -w};
    case 4: /* mirrored top-bottom */
        return (struct turn){(h - 1) * w, 1, -w};
    case 5: /* transposed */
        return (struct turn){0, w, 1};
    case 6: /* to be turned clockwise */
        return (struct turn){(h - 1) * w, -w, 1};
    case 7: /* transposed over the other diagonal */
        return (struct turn){h * w - 1, -w, -1};
    case 8: /* to be turned counter-clockwise */
        return (struct turn){w - 1, w, -1};
    default:
        return (struct turn){0, 1, w};
    }
}

static void turn_block(const uint8_t *src, uint8_t *dst, ptrdiff_t step, size_t n, uint32_t ch)
{
    if (ch == 1) {
        for (size_t i = 0; i < n; i++, src += step) {
            dst[i] = *src;
        }
        return;
    }
    for (size_t i = 0; i < n; i++, src += step, dst += 3) {
        dst[0] = src[0];
        dst[1] = src[1];
        dst[2] = src[2];
    }
}

/* In blocks of 32 x 32, so that turned columns stay in the cache. */
static nr_status make_upright(const struct nr_image *in, const struct nr_image_info *info,
                              struct nr_image *ret, struct nr_err *err)
{
    nr_status st = nr_image_new(info->width, info->height, in->channels, ret, err);
    if (st != NARU_OK) {
        return st;
    }
    const struct turn t = turn_of(info->orientation, in->width, in->height);
    const uint32_t ch = in->channels;
    const uint8_t *src = nr_image_data(in);
    uint8_t *dst = nr_image_data(ret);
    for (uint32_t y0 = 0; y0 < ret->height; y0 += 32) {
        uint32_t y1 = NR_MIN(y0 + 32, ret->height);
        for (uint32_t x0 = 0; x0 < ret->width; x0 += 32) {
            uint32_t n = NR_MIN(32U, ret->width - x0);
            for (uint32_t y = y0; y < y1; y++) {
                ptrdiff_t from = t.origin + (ptrdiff_t)x0 * t.step_x + (ptrdiff_t)y * t.step_y;
                turn_block(src + from * (ptrdiff_t)ch, dst + ((size_t)y * ret->width + x0) * ch,
                           t.step_x * (ptrdiff_t)ch, n, ch);
            }
        }
    }
    return NARU_OK;
}

nr_status nr_image_decode(const void *data, size_t len, enum nr_image_color color,
                          const struct nr_image_limits *limits, struct nr_image *ret,
                          struct nr_err *err)
{
    static nr_status (*const decoders[])(struct nr_str, const struct nr_image_info *,
                                         struct nr_image *, struct nr_err *) = {
        [NR_IMAGE_JPEG] = nr_jpeg_decode,
        [NR_IMAGE_PNG] = nr_png_decode,
        [NR_IMAGE_WEBP] = nr_webp_decode,
    };
    *ret = (struct nr_image){0};
    struct nr_image_info info;
    nr_status st = nr_image_probe(data, len, limits, &info, err);
    if (st != NARU_OK) {
        return st;
    }
    nr_cleanup(nr_image_done) struct nr_image img = {0};
    NR_ASSERT((size_t)info.format < NR_COUNT(decoders));
    st = decoders[info.format]((struct nr_str){data, len}, &info, &img, err);
    if (st != NARU_OK) {
        return st;
    }
    if (info.orientation > 1) {
        struct nr_image upright;
        st = make_upright(&img, &info, &upright, err);
        if (st != NARU_OK) {
            return st;
        }
        nr_image_done(&img);
        img = upright;
    }
    return nr_image_to_color(&img, color, ret, err);
}

static void gray_from_rgb(const uint8_t *restrict src, uint8_t *restrict dst, size_t n)
{
    for (size_t i = 0; i < n; i++, src += 3) {
        dst[i] = (uint8_t)((19595U * src[0] + 38470U * src[1] + 7471U * src[2] + 32768U) >> 16);
    }
}

static void rgb_from_gray(const uint8_t *restrict src, uint8_t *restrict dst, size_t n)
{
    for (size_t i = 0; i < n; i++, dst += 3) {
        dst[0] = dst[1] = dst[2] = src[i];
    }
}

nr_status nr_image_to_color(const struct nr_image *img, enum nr_image_color color,
                            struct nr_image *ret, struct nr_err *err)
{
    *ret = (struct nr_image){0};
    uint32_t want = color == NR_IMAGE_NATIVE ? img->channels : color == NR_IMAGE_GRAY ? 1 : 3;
    if (want == img->channels) {
        *ret = *img;
        nr_buf_ref(ret->buf);
        return NARU_OK;
    }
    nr_status st = nr_image_new(img->width, img->height, want, ret, err);
    if (st != NARU_OK) {
        return st;
    }
    (want == 1 ? gray_from_rgb : rgb_from_gray)(nr_image_data(img), nr_image_data(ret),
                                                (size_t)img->width * img->height);
    return NARU_OK;
}

void nr_image_on_white(const uint8_t *src, size_t n, uint32_t channels, uint8_t *dst)
{
    for (size_t i = 0; i < n; i++, src += channels + 1, dst += channels) {
        uint32_t a = src[channels];
        for (uint32_t c = 0; c < channels; c++) {
            /* one rounding for the sum: src * a + 255 * (255 - a) stays below 2^16 */
            uint32_t t = src[c] * a + 255 * (255 - a) + 128;
            dst[c] = (uint8_t)((t + (t >> 8)) >> 8);
        }
    }
}

nr_status nr_image_emit(struct nr_text *out, const void *data, size_t len, struct nr_err *err)
{
    if (out->cap < out->len || len > out->cap - out->len) {
        return nr_fail(err, NARU_TOO_LARGE, "the encoded picture has more than %zu bytes",
                       out->cap);
    }
    nr_text_add(out, data, len);
    if (out->failed) {
        return nr_fail(err, NARU_NOMEM, "no memory for the encoded picture");
    }
    return NARU_OK;
}

nr_status nr_image_encode(const struct nr_image *img, const struct nr_image_encode_opts *opts,
                          struct nr_text *out, struct nr_err *err)
{
    if (opts->quality < 0 || opts->quality > 100) {
        return nr_fail(err, NARU_INVALID, "quality %d: expected 1 to 100", opts->quality);
    }
    switch (opts->format) {
    case NR_IMAGE_JPEG:
        return nr_jpeg_encode(img, opts, out, err);
    case NR_IMAGE_PNG:
        return nr_png_encode(img, opts, out, err);
    case NR_IMAGE_WEBP:
        return nr_webp_encode(img, opts, out, err);
    default:
        return nr_fail(err, NARU_NOT_ACCEPTABLE,
                       "%s pictures are not written: ask for png, jpeg or webp",
                       nr_image_format_name(opts->format));
    }
}
