/* Pictures into tensors and tensors into pictures, by a plan.
 *
 * Going in, an element is looked up in the plan's table by channel and byte: the arithmetic of
 * normalisation was done 256 times when the model was loaded and is not done again. Going out,
 * rows are widened to float in small pieces and quantised without branches.
 *
 * INVARIANTS
 *  1. Geometry is checked once, in nr_image_job_init; what runs per pixel checks nothing.
 *  2. tiles: at(i) < at(i + 1), at(i) + tile >= at(i + 1), the last ends at the padded size; the
 *     cuts between tiles are therefore increasing, and every output pixel is written by one tile.
 * Threads: pure functions; a stitch belongs to one thread at a time.
 */
#include "codec/image_tensor.h"

#include <inttypes.h>
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "base/mem.h"
#include "codec/element.h"
#include "codec/tensor.h"

/* Output pictures: side of the encoders, and as many pixels as four inputs. */
#define OUT_MAX_SIDE 65535
#define OUT_MAX_PIXELS (UINT64_C(4) * NR_IMAGE_MAX_PIXELS)
#define PIECE 256

static uint32_t round_up(uint32_t v, uint32_t multiple)
{
    return (v + multiple - 1) / multiple * multiple;
}

/* What neighbours share: the overlap, more where the grid of multiple_of asks for it. */
static uint32_t tile_shared(const struct nr_image_plan *p)
{
    uint32_t step = p->tile - p->tile_overlap;
    return p->tile - NR_MAX(step - step % p->multiple_of, p->multiple_of);
}

static uint32_t tile_count(const struct nr_image_plan *p, uint32_t padded, uint32_t tile)
{
    uint32_t step = tile - tile_shared(p);
    return padded == tile ? 1 : (padded - tile + step - 1) / step + 1;
}

/* As few tiles as the largest size allows, of the smallest size that this number allows: with the
 * largest, the last tile would do again most of what its neighbour has done. */
static uint32_t tile_size(const struct nr_image_plan *p, uint32_t padded)
{
    if (p->tile == 0 || padded <= p->tile) {
        return padded;
    }
    uint64_t n = tile_count(p, padded, p->tile);
    return round_up((uint32_t)((padded + (n - 1) * tile_shared(p) + n - 1) / n), p->multiple_of);
}

static uint32_t tile_begin(const struct nr_image_plan *p, uint32_t index, uint32_t padded,
                           uint32_t tile)
{
    return padded == tile ? 0 : NR_MIN(index * (tile - tile_shared(p)), padded - tile);
}

/* Which output pixels (in input units) of an axis belong to tile `index`: [*lo, *hi). */
static void tile_share(const struct nr_image_plan *p, uint32_t index, uint32_t count,
                       uint32_t padded, uint32_t tile, uint32_t *lo, uint32_t *hi)
{
    uint32_t begin = tile_begin(p, index, padded, tile);
    *lo = index == 0 ? 0 : (tile_begin(p, index - 1, padded, tile) + tile + begin) / 2;
    *hi = index + 1 == count ? padded : (begin + tile + tile_begin(p, index + 1, padded, tile)) / 2;
}

static nr_status job_shape(struct nr_image_job *job, struct nr_err *err)
{
    const struct nr_image_plan *p = job->plan;
    uint32_t n = 0;
    if (p->batches) {
        job->shape[n++] = 1;
    }
    for (uint32_t i = 0; i < p->rank; i++) {
        int32_t axis = (int32_t)i;
        int64_t dim = axis == p->axis_c   ? p->channels
                      : axis == p->axis_h ? job->tile_h
                      : axis == p->axis_w ? job->tile_w
                      : p->dims[i] < 0    ? 1
                                          : p->dims[i];
        if (p->dims[i] >= 0 && p->dims[i] != dim) {
            return nr_fail(err, NARU_INVALID,
                           "the model wants %" PRId64 " as dimension %u of input \"%s\", a picture "
                           "of %u x %u pixels gives %" PRId64,
                           p->dims[i], i, p->input, job->src_w, job->src_h, dim);
        }
        job->shape[n++] = dim;
    }
    job->rank = n;
    job->tile_bytes = (size_t)job->tile_w * job->tile_h * p->channels * p->element_bytes;
    return NARU_OK;
}

nr_status nr_image_job_init(const struct nr_image_plan *plan, uint32_t width, uint32_t height,
                            struct nr_image_job *ret, struct nr_err *err)
{
    struct nr_image_job job = {.plan = plan, .src_w = width, .src_h = height};
    bool fixed = plan->height != 0;
    nr_fit_compute(width, height, fixed ? plan->width : width, fixed ? plan->height : height,
                   plan->fit, &job.fit);
    if (width == 0 || height == 0 || job.fit.resized_w > NR_IMAGE_MAX_SIDE ||
        job.fit.resized_h > NR_IMAGE_MAX_SIDE) {
        return nr_fail(err, NARU_TOO_LARGE,
                       "a picture of %u x %u pixels would become %u x %u before it is cut to %u x "
                       "%u: its shape is too extreme",
                       width, height, job.fit.resized_w, job.fit.resized_h, job.fit.width,
                       job.fit.height);
    }
    job.canvas_w = job.fit.width;
    job.canvas_h = job.fit.height;
    job.padded_w = round_up(job.canvas_w, plan->multiple_of);
    job.padded_h = round_up(job.canvas_h, plan->multiple_of);
    job.tile_w = tile_size(plan, job.padded_w);
    job.tile_h = tile_size(plan, job.padded_h);
    job.tiles_x = tile_count(plan, job.padded_w, job.tile_w);
    job.tiles_y = tile_count(plan, job.padded_h, job.tile_h);
    job.n_tiles = job.tiles_x * job.tiles_y;
    if ((uint64_t)job.tiles_x * job.tiles_y > NR_IMAGE_MAX_TILES) {
        return nr_fail(err, NARU_TOO_LARGE,
                       "a picture of %u x %u pixels makes %u x %u tiles of %u: the limit is %d",
                       width, height, job.tiles_x, job.tiles_y, plan->tile, NR_IMAGE_MAX_TILES);
    }
    nr_status st = job_shape(&job, err);
    if (st == NARU_OK) {
        *ret = job;
    }
    return st;
}

nr_status nr_image_fit(const struct nr_image_job *job, const struct nr_image *img,
                       struct nr_image *ret_canvas, struct nr_err *err)
{
    const struct nr_image_plan *p = job->plan;
    *ret_canvas = (struct nr_image){0};
    if (img->width != job->src_w || img->height != job->src_h) {
        return nr_fail(err, NARU_INTERNAL,
                       "a picture of %u x %u pixels where %u x %u was announced", img->width,
                       img->height, job->src_w, job->src_h);
    }
    nr_cleanup(nr_image_done) struct nr_image colored = {0}, resized = {0};
    nr_status st = nr_image_to_color(img, p->color, &colored, err);
    if (st != NARU_OK) {
        return st;
    }
    st =
        nr_image_resize(&colored, job->fit.resized_w, job->fit.resized_h, p->filter, &resized, err);
    if (st != NARU_OK) {
        return st;
    }
    return p->fit == NR_FIT_PAD ? nr_image_pad(&resized, job->fit.x, job->fit.y, job->canvas_w,
                                               job->canvas_h, 0, ret_canvas, err)
                                : nr_image_crop(&resized, job->fit.x, job->fit.y, job->canvas_w,
                                                job->canvas_h, ret_canvas, err);
}

void nr_image_tile_at(const struct nr_image_job *job, uint32_t tile, uint32_t *ret_x,
                      uint32_t *ret_y)
{
    *ret_x = tile_begin(job->plan, tile % job->tiles_x, job->padded_w, job->tile_w);
    *ret_y = tile_begin(job->plan, tile / job->tiles_x, job->padded_h, job->tile_h);
}

/* numpy.pad's "reflect": 0 1 2 3 2 1 0 1 ... */
static uint32_t reflect(uint32_t i, uint32_t n)
{
    if (i < n) {
        return i;
    }
    uint32_t period = n > 1 ? 2 * (n - 1) : 1;
    i %= period;
    return i < n ? i : period - i;
}

/* n elements: every src_step-th byte looked up, written every dst_step elements. `bytes` is a
 * constant where this is called, so each call site is a loop of plain loads and stores. */
__attribute__((always_inline)) static inline void put_run(const uint8_t *src, size_t src_step,
                                                          size_t n, const uint32_t *table,
                                                          uint8_t *dst, size_t dst_step,
                                                          const size_t bytes)
{
    for (size_t i = 0; i < n; i++) {
        uint32_t bits = table[src[i * src_step]];
        memcpy(dst + i * dst_step * bytes, &bits, bytes); /* little-endian: the low bytes */
    }
}

static void put(const uint8_t *src, size_t src_step, size_t n, const uint32_t *table, uint8_t *dst,
                size_t dst_step, uint8_t bytes)
{
    switch (bytes) {
    case 1:
        put_run(src, src_step, n, table, dst, dst_step, 1);
        break;
    case 2:
        put_run(src, src_step, n, table, dst, dst_step, 2);
        break;
    default:
        put_run(src, src_step, n, table, dst, dst_step, 4);
        break;
    }
}

void nr_image_tile_write(const struct nr_image_job *job, const struct nr_image *canvas,
                         uint32_t tile, void *dst)
{
    const struct nr_image_plan *p = job->plan;
    const uint32_t ch = p->channels, w = job->tile_w, h = job->tile_h;
    const uint8_t bytes = p->element_bytes;
    uint32_t x0, y0;
    nr_image_tile_at(job, tile, &x0, &y0);
    uint32_t inside = x0 >= job->canvas_w ? 0 : NR_MIN(w, job->canvas_w - x0);
    bool planes = p->layout == NR_LAYOUT_NCHW;
    size_t step = planes ? 1 : ch;
    for (uint32_t y = 0; y < h; y++) {
        const uint8_t *row =
            nr_image_data(canvas) + reflect(y0 + y, job->canvas_h) * nr_image_row_bytes(canvas);
        for (uint32_t c = 0; c < ch; c++) {
            size_t at = planes ? ((size_t)c * h + y) * w : (size_t)y * w * ch + c;
            uint8_t *out = (uint8_t *)dst + at * bytes;
            const uint8_t *src = row + (p->color == NR_IMAGE_BGR ? 2 - c : c);
            put(src + (size_t)x0 * ch, ch, inside, p->table[c], out, step, bytes);
            for (uint32_t x = inside; x < w; x++) {
                put(src + (size_t)reflect(x0 + x, job->canvas_w) * ch, ch, 1, p->table[c],
                    out + x * step * bytes, step, bytes);
            }
        }
    }
}

void nr_image_stitch_init(struct nr_image_stitch *s, const struct nr_image_job *job)
{
    *s = (struct nr_image_stitch){.job = *job};
}

void nr_image_stitch_done(struct nr_image_stitch *s)
{
    nr_image_done(&s->out);
}

/* How an output tensor lies in memory. */
struct plane {
    uint32_t channels, width, height;
    size_t step_c, step_y, step_x; /* in elements */
};

static bool plane_of(const struct nr_image_plan *p, uint32_t rank, const int64_t *shape,
                     struct plane *ret)
{
    while (rank > 3 && shape[0] == 1) {
        shape++;
        rank--;
    }
    int64_t c = 1, h, w;
    bool nchw = p->layout == NR_LAYOUT_NCHW;
    if (rank == 3) {
        /* the plan's layout, unless only the other one makes sense */
        bool front = shape[0] == 1 || shape[0] == 3, back = shape[2] == 1 || shape[2] == 3;
        if (!front && !back) {
            return false;
        }
        nchw = nchw ? front : !back;
        c = nchw ? shape[0] : shape[2];
        h = nchw ? shape[1] : shape[0];
        w = nchw ? shape[2] : shape[1];
    } else if (rank == 2) {
        h = shape[0];
        w = shape[1];
    } else {
        return false;
    }
    if (h < 1 || w < 1 || h > OUT_MAX_SIDE || w > OUT_MAX_SIDE) {
        return false;
    }
    size_t area = (size_t)h * (size_t)w;
    *ret = (struct plane){(uint32_t)c, (uint32_t)w, (uint32_t)h, 0, 0, 0};
    ret->step_c = nchw ? area : 1;
    ret->step_x = nchw ? 1 : (size_t)c;
    ret->step_y = (size_t)w * ret->step_x;
    return true;
}

/* First tile: how large the picture becomes. */
static nr_status stitch_begin(struct nr_image_stitch *s, const struct plane *t, struct nr_err *err)
{
    const struct nr_image_job *job = &s->job;
    uint32_t factor = t->width / job->tile_w;
    bool scales = factor >= 1 && factor <= 16 && t->width == factor * job->tile_w &&
                  t->height == factor * job->tile_h;
    if (!scales && job->n_tiles > 1) {
        return nr_fail(err, NARU_INVALID,
                       "the model made %u x %u pixels of a tile of %u x %u: tiles can only be put "
                       "together when the output is a whole multiple",
                       t->width, t->height, job->tile_w, job->tile_h);
    }
    s->factor = scales ? factor : 0;
    uint64_t w = scales ? (uint64_t)job->canvas_w * factor : t->width;
    uint64_t h = scales ? (uint64_t)job->canvas_h * factor : t->height;
    if (w > OUT_MAX_SIDE || h > OUT_MAX_SIDE || w * h > OUT_MAX_PIXELS) {
        return nr_fail(err, NARU_TOO_LARGE,
                       "the picture would have %" PRIu64 " x %" PRIu64 " pixels: the limit is %d a "
                       "side and %" PRIu64 " in all",
                       w, h, OUT_MAX_SIDE, OUT_MAX_PIXELS);
    }
    nr_status st = nr_image_new((uint32_t)w, (uint32_t)h, t->channels, &s->out, err);
    if (st == NARU_OK) {
        memset(nr_image_data(&s->out), 0, nr_image_row_bytes(&s->out) * s->out.height);
    }
    return st;
}

/* Round half up and clip n <= PIECE floats, both arrays having room for PIECE. Comparisons are false
 * for NaN, which gives 0. The fraction is compared rather than 0.5 added: 0.49999997 + 0.5 is 1. */
#if defined(__SSE2__)
static void quantise(const float *v, size_t n, float scale, uint8_t *out)
{
    const __m128 factor = _mm_set1_ps(scale), half = _mm_set1_ps(0.5F), top = _mm_set1_ps(255.0F);
    for (size_t i = 0; i < n; i += 8) {
        __m128i part[2];
        for (int k = 0; k < 2; k++) {
            __m128 x = _mm_mul_ps(_mm_loadu_ps(v + i + 4 * k), factor);
            x = _mm_min_ps(_mm_max_ps(x, _mm_setzero_ps()), top); /* max gives its second for NaN */
            __m128i whole = _mm_cvttps_epi32(x);
            __m128 is_up = _mm_cmpge_ps(_mm_sub_ps(x, _mm_cvtepi32_ps(whole)), half);
            part[k] = _mm_sub_epi32(whole, _mm_castps_si128(is_up)); /* true is -1 */
        }
        __m128i words = _mm_packs_epi32(part[0], part[1]);
        _mm_storel_epi64((__m128i *)(void *)(out + i), _mm_packus_epi16(words, words));
    }
}
#else
static void quantise(const float *v, size_t n, float scale, uint8_t *out)
{
    for (size_t i = 0; i < n; i++) {
        float x = v[i] * scale;
        x = x > 0.0F ? x : 0.0F;
        x = x < 255.0F ? x : 255.0F;
        int32_t whole = (int32_t)x;
        out[i] = (uint8_t)(whole + (x - (float)whole >= 0.5F ? 1 : 0));
    }
}
#endif

/* n pixels of one channel, from a tensor to interleaved bytes. */
static void put_pixels(int32_t dtype, const uint8_t *src, size_t src_step, size_t n, float scale,
                       uint8_t *dst, size_t dst_step)
{
    float v[PIECE];
    uint8_t b[PIECE] = {0};
    const size_t bytes = naru_dtype_bytes(dtype);
    for (size_t at = 0; at < n; at += PIECE) {
        size_t m = NR_MIN(n - at, (size_t)PIECE);
        if (src_step == 1) {
            nr_elements_to_float(dtype, src + at * bytes, m, v);
        } else {
            for (size_t i = 0; i < m; i++) {
                nr_elements_to_float(dtype, src + (at + i) * src_step * bytes, 1, &v[i]);
            }
        }
        quantise(v, m, scale, b);
        for (size_t i = 0; i < m; i++) {
            dst[(at + i) * dst_step] = b[i];
        }
    }
}

/* The tile's own pixels [x0, x1) x [y0, y1) of the output; (tx, ty) is where the tile begins. */
struct stitch_rect {
    uint32_t x0, x1, y0, y1, tx, ty;
};

static void stitch_rect_put(struct nr_image_stitch *s, const struct stitch_rect *r,
                            const struct plane *t, int32_t dtype, const uint8_t *data)
{
    const struct nr_image_plan *p = s->job.plan;
    const size_t bytes = naru_dtype_bytes(dtype);
    const uint32_t ch = t->channels;
    for (uint32_t y = r->y0; y < r->y1; y++) {
        for (uint32_t c = 0; c < ch; c++) {
            size_t from = c * t->step_c + (y - r->ty) * t->step_y + (r->x0 - r->tx) * t->step_x;
            uint32_t to = p->color == NR_IMAGE_BGR && ch == 3 ? 2 - c : c;
            put_pixels(dtype, data + from * bytes, t->step_x, r->x1 - r->x0, p->output_scale,
                       nr_image_data(&s->out) + ((size_t)y * s->out.width + r->x0) * ch + to, ch);
        }
    }
}

static nr_status bad_output(const struct nr_image_stitch *s, int32_t dtype, uint32_t rank,
                            const int64_t *shape, size_t bytes, struct nr_err *err)
{
    char text[NR_SHAPE_TEXT_MAX];
    const char *name = naru_dtype_name(dtype);
    return nr_fail(
        err, NARU_INVALID,
        "output \"%s\" (%s, shape %s, %zu bytes) is no picture: expected numbers with 1 or "
        "3 channels, height and width, the same for every tile",
        s->job.plan->output_tensor, name != NULL ? name : "?",
        nr_shape_text(shape, NR_MIN(rank, (uint32_t)NARU_MAX_RANK), text, sizeof(text)), bytes);
}

nr_status nr_image_stitch_add(struct nr_image_stitch *s, uint32_t tile, int32_t dtype,
                              uint32_t rank, const int64_t *shape, const void *data, size_t bytes,
                              struct nr_err *err)
{
    const struct nr_image_job *job = &s->job;
    struct plane t;
    if (tile >= job->n_tiles || !nr_element_is_number(dtype) || rank > NARU_MAX_RANK ||
        !plane_of(job->plan, rank, shape, &t) ||
        bytes != (size_t)t.width * t.height * t.channels * naru_dtype_bytes(dtype)) {
        return bad_output(s, dtype, rank, shape, bytes, err);
    }
    if (s->out.buf == NULL) {
        nr_status st = stitch_begin(s, &t, err);
        if (st != NARU_OK) {
            return st;
        }
    }
    const uint32_t f = s->factor;
    bool same = f == 0 ? t.width == s->out.width && t.height == s->out.height
                       : t.width == f * job->tile_w && t.height == f * job->tile_h;
    if (!same || t.channels != s->out.channels) {
        return bad_output(s, dtype, rank, shape, bytes, err);
    }
    struct stitch_rect r = {0, s->out.width, 0, s->out.height, 0, 0};
    if (f != 0) {
        nr_image_tile_at(job, tile, &r.tx, &r.ty);
        tile_share(job->plan, tile % job->tiles_x, job->tiles_x, job->padded_w, job->tile_w, &r.x0,
                   &r.x1);
        tile_share(job->plan, tile / job->tiles_x, job->tiles_y, job->padded_h, job->tile_h, &r.y0,
                   &r.y1);
        r = (struct stitch_rect){r.x0 * f, NR_MIN(r.x1, job->canvas_w) * f,
                                 r.y0 * f, NR_MIN(r.y1, job->canvas_h) * f,
                                 r.tx * f, r.ty * f};
    }
    /* a tile can lie in the padding alone */
    if (r.x0 < r.x1 && r.y0 < r.y1) {
        stitch_rect_put(s, &r, &t, dtype, data);
    }
    return NARU_OK;
}

nr_status nr_image_stitch_take(struct nr_image_stitch *s, struct nr_image *ret, struct nr_err *err)
{
    *ret = (struct nr_image){0};
    if (s->out.buf == NULL) {
        return nr_fail(err, NARU_INTERNAL, "no output arrived for the picture");
    }
    const struct nr_fit *fit = &s->job.fit;
    if (s->job.plan->fit == NR_FIT_PAD && s->factor != 0) {
        return nr_image_crop(&s->out, fit->x * s->factor, fit->y * s->factor,
                             fit->resized_w * s->factor, fit->resized_h * s->factor, ret, err);
    }
    *ret = s->out;
    s->out = (struct nr_image){0};
    return NARU_OK;
}
