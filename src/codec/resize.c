/* Resizing as Pillow does it, so that a served model sees the pixels it was trained with.
 *
 * A filter gives each output pixel weights over a window of input pixels. Weights are computed in
 * double, normalised to a sum of 1 and turned into 22-bit fixed point; an output is the weighted
 * sum plus one half, shifted down and clipped to 8 bits. This is Pillow's arithmetic to the bit,
 * the order of the two passes included.
 *
 * Speed: both passes are the same loop, "sum of weight * row of bytes". The vertical pass is that by
 * nature. For the horizontal pass STRIP rows are first transposed, so that neighbouring bytes belong
 * to different rows and share their weight; results are transposed back. Weights are split into a
 * high and a low part of 16 bits, because multiplying 16-bit pairs and adding them is the one fast
 * vector multiplication of every x86-64; the parts are added up apart and joined at the end, modulo
 * 2^32, which gives the same bits as 32-bit arithmetic.
 *
 * INVARIANTS
 *  1. A window lies within the input: first >= 0, first + n <= size, 1 <= n <= taps.
 *  2. Sums fit in 32 bits: weights add up to 2^22 and Lanczos, the worst, to less than 1.5 times
 *     that in absolute value; times 255 this is below 2^31.
 * Threads: pure functions.
 */
#include "codec/resize.h"

#include <math.h>
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "base/buf.h"
#include "base/mem.h"

#define WEIGHT_BITS 22
#define LOW_BITS 11
#define STRIP 16 /* rows of a strip: cells of 16 or 48 bytes */
#define BLOCK 16 /* bytes that are made at once */

static double filter_box(double x)
{
    return x > -0.5 && x <= 0.5 ? 1.0 : 0.0;
}

static double filter_bilinear(double x)
{
    x = fabs(x);
    return x < 1.0 ? 1.0 - x : 0.0;
}

static double filter_hamming(double x)
{
    x = fabs(x);
    if (x == 0.0) {
        return 1.0;
    }
    if (x >= 1.0) {
        return 0.0;
    }
    x *= M_PI;
    return sin(x) / x * (0.54 + 0.46 * cos(x));
}

/* Keys' cubic with a = -0.5 */
static double filter_bicubic(double x)
{
    const double a = -0.5;
    x = fabs(x);
    if (x < 1.0) {
        return ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0;
    }
    if (x < 2.0) {
        return (((x - 5.0) * x + 8.0) * x - 4.0) * a;
    }
    return 0.0;
}

static double sinc(double x)
{
    return x == 0.0 ? 1.0 : sin(x * M_PI) / (x * M_PI);
}

static double filter_lanczos(double x)
{
    return x >= -3.0 && x < 3.0 ? sinc(x) * sinc(x / 3.0) : 0.0;
}

static const struct {
    const char *name;
    double support; /* half the window at scale 1 */
    double (*weight)(double x);
} filters[] = {
    [NR_RESIZE_NEAREST] = {"nearest", 0, NULL},
    [NR_RESIZE_BOX] = {"box", 0.5, filter_box},
    [NR_RESIZE_BILINEAR] = {"bilinear", 1, filter_bilinear},
    [NR_RESIZE_HAMMING] = {"hamming", 1, filter_hamming},
    [NR_RESIZE_BICUBIC] = {"bicubic", 2, filter_bicubic},
    [NR_RESIZE_LANCZOS] = {"lanczos", 3, filter_lanczos},
};

const char *nr_resize_filter_name(enum nr_resize_filter f)
{
    return filters[f].name;
}

bool nr_resize_filter_parse(struct nr_str s, enum nr_resize_filter *ret)
{
    for (size_t i = 0; i < NR_COUNT(filters); i++) {
        if (nr_str_is(s, filters[i].name)) {
            *ret = (enum nr_resize_filter)i;
            return true;
        }
    }
    return false;
}

/* Weights of two neighbouring taps, each high * 2^LOW_BITS + low with low >= 0: the first tap's
 * part in the lower 16 bits. */
struct pair {
    uint32_t high, low;
};

/* Windows and weights of one axis. */
struct axis {
    uint32_t pairs;    /* stored per output pixel */
    uint32_t *window;  /* [size][2]: first input pixel, count */
    struct pair *pair; /* [size][pairs]; taps beyond the count weigh 0 */
};

static void axis_done(struct axis *a)
{
    nr_free(a->window);
    nr_free(a->pair);
}

static void pair_set(struct pair *p, uint32_t tap, int32_t w)
{
    uint32_t low = (uint32_t)w & ((1U << LOW_BITS) - 1);
    uint32_t high = (uint32_t)(w >> LOW_BITS) & 0xffffU;
    p[tap / 2].high |= high << (tap % 2 * 16);
    p[tap / 2].low |= low << (tap % 2 * 16);
}

static int32_t pair_get(const struct pair *p, uint32_t tap)
{
    int32_t high = (int16_t)(p[tap / 2].high >> (tap % 2 * 16));
    int32_t low = (int16_t)(p[tap / 2].low >> (tap % 2 * 16));
    return high * (1 << LOW_BITS) + low;
}

static void axis_weights(struct axis *a, uint32_t i, double centre, double step,
                         double (*weight)(double x), double *work)
{
    double sum = 0;
    uint32_t first = a->window[(size_t)2 * i], n = a->window[(size_t)2 * i + 1];
    for (uint32_t k = 0; k < n; k++) {
        work[k] = weight(((double)k + (double)first - centre + 0.5) * step);
        sum += work[k];
    }
    for (uint32_t k = 0; k < n; k++) {
        double w = sum != 0.0 ? work[k] / sum : work[k];
        w *= (double)(1 << WEIGHT_BITS);
        pair_set(a->pair + (size_t)i * a->pairs, k, (int32_t)(w < 0 ? w - 0.5 : w + 0.5));
    }
}

static nr_status axis_init(struct axis *a, uint32_t in, uint32_t out, enum nr_resize_filter f,
                           struct nr_err *err)
{
    double scale = (double)in / out;
    double stretch = NR_MAX(scale, 1.0);
    double support = filters[f].support * stretch;
    uint32_t taps = (uint32_t)ceil(support) * 2 + 1;
    size_t n_pairs;
    a->pairs = taps / 2 + 1;
    nr_autofree double *work = nr_try_alloc(taps * sizeof *work);
    a->window = nr_try_alloc((size_t)out * 2 * sizeof *a->window);
    a->pair = nr_mul(out, a->pairs, &n_pairs) && n_pairs <= SIZE_MAX / sizeof *a->pair
                  ? nr_try_alloc(n_pairs * sizeof *a->pair)
                  : NULL;
    if (work == NULL || a->window == NULL || a->pair == NULL) {
        return nr_fail(err, NARU_NOMEM, "no memory to resize %u to %u pixels", in, out);
    }
    for (uint32_t i = 0; i < out; i++) {
        double centre = (i + 0.5) * scale;
        double lo = centre - support + 0.5, hi = centre + support + 0.5;
        uint32_t first = lo > 0 ? (uint32_t)lo : 0;
        uint32_t end = NR_MIN((uint32_t)hi, in);
        a->window[(size_t)2 * i] = first;
        a->window[(size_t)2 * i + 1] = end - first;
        axis_weights(a, i, centre, 1.0 / stretch, filters[f].weight, work);
    }
    return NARU_OK;
}

static uint8_t weigh_one(const uint8_t *src, size_t stride, const struct pair *pair, uint32_t taps)
{
    int32_t sum = 1 << (WEIGHT_BITS - 1);
    for (uint32_t k = 0; k < taps; k++, src += stride) {
        sum += pair_get(pair, k) * *src;
    }
    sum >>= WEIGHT_BITS;
    return (uint8_t)(sum < 0 ? 0 : sum > 255 ? 255 : sum);
}

/* BLOCK results: dst[i] = round(sum over k of weight k * src[k * stride + i]). */
#if defined(__SSE2__)
static void weigh_block(const uint8_t *src, size_t stride, const struct pair *pair, uint32_t taps,
                        uint8_t *dst)
{
    const __m128i zero = _mm_setzero_si128();
    __m128i high[4] = {zero, zero, zero, zero}, low[4];
    low[0] = low[1] = low[2] = low[3] = _mm_set1_epi32(1 << (WEIGHT_BITS - 1));
    for (uint32_t k = 0; k < taps; k += 2, src += 2 * stride, pair++) {
        __m128i a = _mm_loadu_si128((const __m128i *)(const void *)src), b = zero;
        if (k + 1 < taps) {
            b = _mm_loadu_si128((const __m128i *)(const void *)(src + stride));
        }
        /* words a0 b0 a1 b1 …, as the pairs of weights lie */
        __m128i ab = _mm_unpacklo_epi8(a, b), cd = _mm_unpackhi_epi8(a, b);
        __m128i words[4] = {_mm_unpacklo_epi8(ab, zero), _mm_unpackhi_epi8(ab, zero),
                            _mm_unpacklo_epi8(cd, zero), _mm_unpackhi_epi8(cd, zero)};
        __m128i h = _mm_set1_epi32((int32_t)pair->high), l = _mm_set1_epi32((int32_t)pair->low);
        for (int i = 0; i < 4; i++) {
            high[i] = _mm_add_epi32(high[i], _mm_madd_epi16(words[i], h));
            low[i] = _mm_add_epi32(low[i], _mm_madd_epi16(words[i], l));
        }
    }
    for (int i = 0; i < 4; i++) {
        low[i] = _mm_add_epi32(_mm_slli_epi32(high[i], LOW_BITS), low[i]);
        low[i] = _mm_srai_epi32(low[i], WEIGHT_BITS);
    }
    /* packing saturates, which is the clipping */
    __m128i bytes =
        _mm_packus_epi16(_mm_packs_epi32(low[0], low[1]), _mm_packs_epi32(low[2], low[3]));
    _mm_storeu_si128((__m128i *)(void *)dst, bytes);
}
#else
static void weigh_block(const uint8_t *src, size_t stride, const struct pair *pair, uint32_t taps,
                        uint8_t *dst)
{
    int32_t sum[BLOCK];
    for (int i = 0; i < BLOCK; i++) {
        sum[i] = 1 << (WEIGHT_BITS - 1);
    }
    for (uint32_t k = 0; k < taps; k++, src += stride) {
        int32_t w = pair_get(pair, k);
        for (int i = 0; i < BLOCK; i++) {
            sum[i] += w * src[i];
        }
    }
    for (int i = 0; i < BLOCK; i++) {
        int32_t v = sum[i] >> WEIGHT_BITS;
        dst[i] = (uint8_t)(v < 0 ? 0 : v > 255 ? 255 : v);
    }
}
#endif

/* n results from rows `stride` apart. */
static void weigh(const uint8_t *src, size_t stride, const struct pair *pair, uint32_t taps,
                  uint8_t *dst, size_t n)
{
    if (n < BLOCK) {
        for (size_t i = 0; i < n; i++) {
            dst[i] = weigh_one(src + i, stride, pair, taps);
        }
        return;
    }
    for (size_t i = 0; i < n; i += BLOCK) {
        /* the last block may overlap the one before: the same bytes are written again */
        i = NR_MIN(i, n - BLOCK);
        weigh_block(src + i, stride, pair, taps, dst + i);
    }
}

__attribute__((always_inline)) static inline void copy_pixel(const uint8_t *s, uint8_t *d,
                                                             uint32_t ch, bool is_inner)
{
    if (ch == 1) {
        *d = *s;
    } else if (is_inner) {
        memcpy(d, s, 4); /* one move; the byte too many is written again by the next pixel */
    } else {
        memcpy(d, s, 3);
    }
}

/* rows x cols pixels of `ch` bytes: dst[c][r] = src[r][c], strides in bytes. In blocks of columns,
 * so that what is written stays in the nearest cache. */
static void transpose(const uint8_t *src, size_t src_stride, size_t rows, size_t cols, uint32_t ch,
                      uint8_t *dst, size_t dst_stride)
{
    for (size_t c0 = 0; c0 < cols; c0 += 64) {
        size_t c1 = NR_MIN(c0 + 64, cols);
        for (size_t r = 0; r < rows; r++) {
            const uint8_t *s = src + r * src_stride;
            uint8_t *d = dst + r * ch;
            /* in the last row or column a fourth byte would lie outside */
            size_t inner = r + 1 < rows ? NR_MIN(c1, cols - 1) : c0;
            size_t c = c0;
            for (; c < inner; c++) {
                copy_pixel(s + c * ch, d + c * dst_stride, ch, true);
            }
            for (; c < c1; c++) {
                copy_pixel(s + c * ch, d + c * dst_stride, ch, false);
            }
        }
    }
}

/* Rows [y0, y1) of img to width pixels each; the result has y1 - y0 rows. */
static nr_status pass_horizontal(const struct nr_image *img, uint32_t y0, uint32_t y1,
                                 uint32_t width, const struct axis *a, struct nr_image *ret,
                                 struct nr_err *err)
{
    const uint32_t ch = img->channels;
    const size_t cell = (size_t)STRIP * ch; /* one column of a strip */
    nr_autofree uint8_t *columns = nr_try_alloc(cell * ((size_t)img->width + width));
    if (columns == NULL) {
        return nr_fail(err, NARU_NOMEM, "no memory to resize a picture %u pixels wide", img->width);
    }
    nr_status st = nr_image_new(width, y1 - y0, ch, ret, err);
    if (st != NARU_OK) {
        return st;
    }
    uint8_t *results = columns + cell * img->width;
    const size_t in_stride = nr_image_row_bytes(img), out_stride = nr_image_row_bytes(ret);
    for (uint32_t y = y0; y < y1; y += STRIP) {
        uint32_t rows = NR_MIN((uint32_t)STRIP, y1 - y);
        transpose(nr_image_data(img) + y * in_stride, in_stride, rows, img->width, ch, columns,
                  cell);
        for (size_t x = 0; x < width; x++) {
            weigh(columns + a->window[2 * x] * cell, cell, a->pair + x * a->pairs,
                  a->window[2 * x + 1], results + x * cell, cell);
        }
        transpose(results, cell, width, rows, ch, nr_image_data(ret) + (y - y0) * out_stride,
                  out_stride);
    }
    return NARU_OK;
}

/* img begins at row y0 of the picture that the axis was computed for. */
static nr_status pass_vertical(const struct nr_image *img, uint32_t y0, uint32_t height,
                               const struct axis *a, struct nr_image *ret, struct nr_err *err)
{
    nr_status st = nr_image_new(img->width, height, img->channels, ret, err);
    if (st != NARU_OK) {
        return st;
    }
    const size_t stride = nr_image_row_bytes(img);
    for (uint32_t y = 0; y < height; y++) {
        const uint8_t *src = nr_image_data(img) + (a->window[(size_t)2 * y] - y0) * stride;
        uint8_t *dst = nr_image_data(ret) + y * stride;
        weigh(src, stride, a->pair + (size_t)y * a->pairs, a->window[(size_t)2 * y + 1], dst,
              stride);
    }
    return NARU_OK;
}

/* Pillow adds the step up from pixel to pixel, and so do we: rounding errors included. */
static void nearest_table(uint32_t in, uint32_t out, uint32_t *table)
{
    double step = (double)in / out, at = step * 0.5;
    for (uint32_t i = 0; i < out; i++) {
        table[i] = NR_MIN((uint32_t)at, in - 1);
        at += step;
    }
}

static nr_status resize_nearest(const struct nr_image *img, uint32_t width, uint32_t height,
                                struct nr_image *ret, struct nr_err *err)
{
    nr_autofree uint32_t *table = nr_try_alloc(((size_t)width + height) * sizeof *table);
    if (table == NULL) {
        return nr_fail(err, NARU_NOMEM, "no memory to resize to %u x %u pixels", width, height);
    }
    nr_status st = nr_image_new(width, height, img->channels, ret, err);
    if (st != NARU_OK) {
        return st;
    }
    nearest_table(img->width, width, table);
    nearest_table(img->height, height, table + width);
    const uint32_t ch = img->channels;
    uint8_t *dst = nr_image_data(ret);
    for (uint32_t y = 0; y < height; y++) {
        const uint8_t *row = nr_image_data(img) + table[width + y] * nr_image_row_bytes(img);
        for (uint32_t x = 0; x < width; x++, dst += ch) {
            memcpy(dst, row + (size_t)table[x] * ch, ch);
        }
    }
    return NARU_OK;
}

static nr_status share(const struct nr_image *img, struct nr_image *ret)
{
    *ret = *img;
    nr_buf_ref(ret->buf);
    return NARU_OK;
}

/* Which pass runs first decides how intermediate values are rounded and clipped. Pillow: the
 * horizontal one, but (since release 13) the vertical one when it takes away more than twice as
 * many rows as the other one takes away columns. */
static bool is_vertical_first(const struct nr_image *img, uint32_t width, uint32_t height)
{
    int64_t rows = (int64_t)img->height - height, columns = (int64_t)img->width - width;
    return rows > 0 && rows > 2 * columns;
}

static nr_status resize_both(const struct nr_image *img, const struct axis *across,
                             const struct axis *down, uint32_t width, uint32_t height,
                             struct nr_image *ret, struct nr_err *err)
{
    nr_cleanup(nr_image_done) struct nr_image half = {0};
    nr_status st;
    if (is_vertical_first(img, width, height)) {
        st = pass_vertical(img, 0, height, down, &half, err);
        return st == NARU_OK ? pass_horizontal(&half, 0, height, width, across, ret, err) : st;
    }
    /* only the rows that the vertical pass reads */
    uint32_t y0 = down->window[0];
    uint32_t y1 = down->window[(size_t)2 * height - 2] + down->window[(size_t)2 * height - 1];
    st = pass_horizontal(img, y0, y1, width, across, &half, err);
    return st == NARU_OK ? pass_vertical(&half, y0, height, down, ret, err) : st;
}

static nr_status resize_filtered(const struct nr_image *img, uint32_t width, uint32_t height,
                                 enum nr_resize_filter filter, struct nr_image *ret,
                                 struct nr_err *err)
{
    nr_cleanup(axis_done) struct axis across = {0};
    nr_cleanup(axis_done) struct axis down = {0};
    nr_status st = NARU_OK;
    if (width != img->width) {
        st = axis_init(&across, img->width, width, filter, err);
    }
    if (st == NARU_OK && height != img->height) {
        st = axis_init(&down, img->height, height, filter, err);
    }
    if (st != NARU_OK) {
        return st;
    }
    if (height == img->height) {
        return pass_horizontal(img, 0, height, width, &across, ret, err);
    }
    if (width == img->width) {
        return pass_vertical(img, 0, height, &down, ret, err);
    }
    return resize_both(img, &across, &down, width, height, ret, err);
}

nr_status nr_image_resize(const struct nr_image *img, uint32_t width, uint32_t height,
                          enum nr_resize_filter filter, struct nr_image *ret, struct nr_err *err)
{
    *ret = (struct nr_image){0};
    if (width == 0 || height == 0 || width > NR_IMAGE_MAX_SIDE || height > NR_IMAGE_MAX_SIDE) {
        return nr_fail(err, NARU_TOO_LARGE,
                       "a picture of %u x %u pixels cannot become %u x %u: sides are 1 to %d",
                       img->width, img->height, width, height, NR_IMAGE_MAX_SIDE);
    }
    if (width == img->width && height == img->height) {
        return share(img, ret);
    }
    return filter == NR_RESIZE_NEAREST ? resize_nearest(img, width, height, ret, err)
                                       : resize_filtered(img, width, height, filter, ret, err);
}

static void copy_rows(const uint8_t *src, size_t src_stride, uint8_t *dst, size_t dst_stride,
                      size_t row_bytes, uint32_t rows)
{
    for (uint32_t y = 0; y < rows; y++, src += src_stride, dst += dst_stride) {
        memcpy(dst, src, row_bytes);
    }
}

nr_status nr_image_crop(const struct nr_image *img, uint32_t x, uint32_t y, uint32_t width,
                        uint32_t height, struct nr_image *ret, struct nr_err *err)
{
    *ret = (struct nr_image){0};
    if (x > img->width || width > img->width - x || y > img->height || height > img->height - y) {
        return nr_fail(err, NARU_INVALID, "%u x %u pixels at (%u, %u) do not lie in %u x %u", width,
                       height, x, y, img->width, img->height);
    }
    if (width == img->width && height == img->height) {
        return share(img, ret);
    }
    nr_status st = nr_image_new(width, height, img->channels, ret, err);
    if (st != NARU_OK) {
        return st;
    }
    copy_rows(nr_image_data(img) + y * nr_image_row_bytes(img) + (size_t)x * img->channels,
              nr_image_row_bytes(img), nr_image_data(ret), nr_image_row_bytes(ret),
              nr_image_row_bytes(ret), height);
    return NARU_OK;
}

nr_status nr_image_pad(const struct nr_image *img, uint32_t x, uint32_t y, uint32_t width,
                       uint32_t height, uint8_t fill, struct nr_image *ret, struct nr_err *err)
{
    *ret = (struct nr_image){0};
    if (x > width || img->width > width - x || y > height || img->height > height - y) {
        return nr_fail(err, NARU_INVALID, "%u x %u pixels at (%u, %u) do not fit in %u x %u",
                       img->width, img->height, x, y, width, height);
    }
    if (width == img->width && height == img->height) {
        return share(img, ret);
    }
    nr_status st = nr_image_new(width, height, img->channels, ret, err);
    if (st != NARU_OK) {
        return st;
    }
    memset(nr_image_data(ret), fill, nr_image_row_bytes(ret) * height);
    copy_rows(nr_image_data(img), nr_image_row_bytes(img),
              nr_image_data(ret) + y * nr_image_row_bytes(ret) + (size_t)x * img->channels,
              nr_image_row_bytes(ret), nr_image_row_bytes(img), img->height);
    return NARU_OK;
}

/* a * b / c, rounded half up, at least 1; all below 2^32 */
static uint32_t scaled(uint32_t a, uint32_t b, uint32_t c)
{
    uint64_t v = ((uint64_t)a * b * 2 + c) / ((uint64_t)c * 2);
    return v == 0 ? 1 : (uint32_t)NR_MIN(v, UINT32_MAX);
}

void nr_fit_compute(uint32_t width, uint32_t height, uint32_t want_w, uint32_t want_h,
                    enum nr_image_fit fit, struct nr_fit *ret)
{
    *ret = (struct nr_fit){want_w, want_h, 0, 0, want_w, want_h};
    if (fit == NR_FIT_STRETCH) {
        return;
    }
    /* wider: the picture is wider, relative to its height, than what is wanted */
    bool wider = (uint64_t)width * want_h > (uint64_t)height * want_w;
    if (wider == (fit == NR_FIT_CROP)) {
        ret->resized_w = scaled(width, want_h, height);
    } else {
        ret->resized_h = scaled(height, want_w, width);
    }
    if (fit == NR_FIT_CROP) {
        ret->resized_w = NR_MAX(ret->resized_w, want_w);
        ret->resized_h = NR_MAX(ret->resized_h, want_h);
        ret->x = (ret->resized_w - want_w) / 2;
        ret->y = (ret->resized_h - want_h) / 2;
    } else {
        ret->resized_w = NR_MIN(ret->resized_w, want_w);
        ret->resized_h = NR_MIN(ret->resized_h, want_h);
        ret->x = (want_w - ret->resized_w) / 2;
        ret->y = (want_h - ret->resized_h) / 2;
    }
}
