/* naru's own pipeline steps at work.
 *
 * DESIGN. Shapes are checked by the same function that checked them when the ensemble was loaded
 * (nr_stepkind_infer), now with the tensors' real dimensions, so each worker can trust them.
 * Whatever can be passed on is passed on by reference: a tensor with a buffer gets one more
 * reference, a split along the first dimension gives pieces of the same buffer. Small tensors that
 * lie in another step's arena are copied, because that arena goes when its step's readers are done.
 *
 * INVARIANTS
 *  1. Output bytes lie in w->arena, or in a buffer of which w->arena holds a reference.
 *
 * Threads: one at a time per work; no state of its own.
 */
#include "sched/stepwork.h"

#include <string.h>

#include "base/buf.h"
#include "base/mem.h"
#include "codec/element.h"
#include "codec/image_tensor.h"
#include "codec/tensor.h"

#define SHORT_BYTES 65536
#define SHORT_ELEMENTS 16384
#define ARENA_BYTES 2048         /* larger results get a buffer of their own */
#define ENCODED_MAX (256u << 20) /* of the files of one batch */
#define PIECE 256

/* --- memory ----------------------------------------------------------------------------------- */

static uint8_t *take(const struct nr_stepwork *w, size_t bytes, struct nr_buf **ret)
{
    *ret = NULL;
    if (bytes <= ARENA_BYTES) {
        return nr_arena_alloc(w->arena, bytes);
    }
    *ret = nr_buf_try_new(bytes);
    if (*ret == NULL) {
        return NULL;
    }
    nr_arena_link(w->arena, *ret);
    return nr_buf_data(*ret);
}

static nr_status fail_memory(const struct nr_stepwork *w, size_t bytes, struct nr_err *err)
{
    return nr_fail(err, NARU_NOMEM, "%s: no memory for %zu bytes now; try again later",
                   w->kind->name, bytes);
}

/* out with the given spec, its bytes to be filled by the caller. */
static nr_status begin(const struct nr_stepwork *w, unsigned index, const struct nr_step_spec *spec,
                       uint8_t **ret, struct nr_err *err)
{
    struct nr_infer_tensor *t = &w->out[index];
    int64_t bytes;
    *t = (struct nr_infer_tensor){.index = index, .dtype = spec->dtype, .rank = spec->rank};
    memcpy(t->shape, spec->shape, spec->rank * sizeof(t->shape[0]));
    if (!nr_tensor_elements(spec->shape, spec->rank, &t->elements) ||
        !nr_tensor_bytes(spec->dtype, spec->shape, spec->rank, &bytes)) {
        return nr_fail(err, NARU_TOO_LARGE, "%s: a tensor of shape %s is too large", w->kind->name,
                       nr_shape_text(spec->shape, spec->rank, (char[NR_SHAPE_TEXT_MAX]){0},
                                     NR_SHAPE_TEXT_MAX));
    }
    t->bytes = (size_t)bytes;
    *ret = take(w, t->bytes, &t->buf);
    t->data = *ret;
    return *ret != NULL ? NARU_OK : fail_memory(w, t->bytes, err);
}

/* from[at, at + bytes) as output `index`, by reference where it has a buffer. */
static nr_status pass(const struct nr_stepwork *w, unsigned index,
                      const struct nr_infer_tensor *from, size_t at, size_t bytes,
                      struct nr_err *err)
{
    struct nr_infer_tensor *t = &w->out[index];
    *t = *from;
    t->index = index;
    t->bytes = bytes;
    if (from->buf != NULL) {
        nr_arena_link(w->arena, nr_buf_ref(from->buf));
        t->data = from->data + at;
        return NARU_OK;
    }
    uint8_t *copy = take(w, bytes, &t->buf);
    t->data = copy;
    if (copy == NULL) {
        return fail_memory(w, bytes, err);
    }
    if (bytes > 0) {
        memcpy(copy, from->data + at, bytes);
    }
    return NARU_OK;
}

/* --- pictures --------------------------------------------------------------------------------- */

static nr_status fail_row(struct nr_err *err, nr_status st, int64_t row, int64_t rows)
{
    if (rows > 1) {
        nr_err_prefix(err, "row %lld", (long long)row);
    }
    return st;
}

/* One picture into its row of the output; the first one's size is that of all. */
static nr_status write_picture(const struct nr_stepwork *w, const struct nr_image_plan *plan,
                               const struct nr_image *img, int64_t row, int64_t rows,
                               struct nr_err *err)
{
    struct nr_infer_tensor *t = &w->out[0];
    struct nr_image_job job;
    nr_cleanup(nr_image_done) struct nr_image canvas = {0};
    nr_status st = nr_image_job_init(plan, img->width, img->height, &job, err);
    if (st != NARU_OK) {
        return st;
    }
    if (row == 0) {
        struct nr_step_spec spec = {.dtype = plan->dtype, .rank = w->kind->batch + 3};
        uint8_t *data;
        spec.shape[0] = rows;
        memcpy(spec.shape + w->kind->batch, job.shape, 3 * sizeof(spec.shape[0]));
        st = begin(w, 0, &spec, &data, err);
    } else if (memcmp(t->shape + w->kind->batch, job.shape, 3 * sizeof(t->shape[0])) != 0) {
        char one[NR_SHAPE_TEXT_MAX], other[NR_SHAPE_TEXT_MAX];
        st = nr_fail(err, NARU_INVALID,
                     "%s: the first picture of the batch becomes %s, this one %s: give parameter "
                     "size, or send them one by one",
                     w->kind->name, nr_shape_text(t->shape + w->kind->batch, 3, one, sizeof(one)),
                     nr_shape_text(job.shape, 3, other, sizeof(other)));
    }
    if (st == NARU_OK) {
        st = nr_image_fit(&job, img, &canvas, err);
    }
    if (st == NARU_OK) {
        uint8_t *to = (uint8_t *)(uintptr_t)t->data;
        nr_image_tile_write(&job, &canvas, 0, to + (size_t)row * job.tile_bytes);
    }
    return st;
}

/* No rows, no pictures: what is not known becomes 0. */
static nr_status write_none(const struct nr_stepwork *w, struct nr_step_spec *spec,
                            struct nr_err *err)
{
    uint8_t *data;
    for (uint32_t i = 0; i < spec->rank; i++) {
        spec->shape[i] = NR_MAX(spec->shape[i], 0);
    }
    spec->shape[0] = 0;
    return begin(w, 0, spec, &data, err);
}

static nr_status run_decode(const struct nr_stepwork *w, struct nr_step_spec *spec, int64_t rows,
                            struct nr_err *err)
{
    const struct nr_image_plan *plan = w->kind->plan;
    size_t at = 0;
    nr_status st = rows == 0 ? write_none(w, spec, err) : NARU_OK;
    for (int64_t row = 0; row < rows && st == NARU_OK; row++) {
        nr_cleanup(nr_image_done) struct nr_image img = {0};
        struct nr_str file = nr_tensor_bytes_next(w->in[0]->data, &at);
        st = nr_image_decode(file.ptr, file.len, plan->color, w->limits, &img, err);
        if (st == NARU_OK) {
            st = write_picture(w, plan, &img, row, rows, err);
        }
        st = st == NARU_OK ? st : fail_row(err, st, row, rows);
    }
    return st;
}

static void unref_at(struct nr_buf **b)
{
    nr_buf_unref(*b);
}

static nr_status run_pixels(const struct nr_stepwork *w, struct nr_step_spec *spec, int64_t rows,
                            struct nr_err *err)
{
    const struct nr_infer_tensor *in = w->in[0];
    const int64_t *dims = in->shape + w->kind->batch;
    const struct nr_image_plan *plan =
        w->kind->op == NR_STEP_RESIZE && dims[2] == 1 ? w->kind->alt : w->kind->plan;
    nr_status st = rows == 0 ? write_none(w, spec, err) : NARU_OK;
    if (rows > 0 && (dims[0] < 1 || dims[1] < 1 || dims[0] > NR_IMAGE_MAX_SIDE ||
                     dims[1] > NR_IMAGE_MAX_SIDE)) {
        return nr_fail(err, NARU_INVALID,
                       "%s: a picture of %lld x %lld pixels; 1 to %d are allowed", w->kind->name,
                       (long long)dims[1], (long long)dims[0], NR_IMAGE_MAX_SIDE);
    }
    for (int64_t row = 0; row < rows && st == NARU_OK; row++) {
        size_t bytes = in->bytes / (size_t)rows;
        /* only read, although a buffer could be written */
        nr_cleanup(unref_at) struct nr_buf *buf = nr_buf_try_wrap(
            (uint8_t *)(uintptr_t)in->data + (size_t)row * bytes, bytes, NULL, NULL);
        if (buf == NULL) {
            return fail_memory(w, sizeof(*buf), err);
        }
        struct nr_image img = {.width = (uint32_t)dims[1],
                               .height = (uint32_t)dims[0],
                               .channels = (uint32_t)dims[2],
                               .buf = buf};
        st = write_picture(w, plan, &img, row, rows, err);
        st = st == NARU_OK ? st : fail_row(err, st, row, rows);
    }
    return st;
}

static void text_done(struct nr_text *t)
{
    nr_text_done(t);
}

static nr_status encode_row(const struct nr_stepwork *w, const struct nr_image_plan *plan,
                            size_t row, size_t bytes, struct nr_text *out, struct nr_err *err)
{
    const struct nr_infer_tensor *in = w->in[0];
    const int64_t *dims = in->shape + w->kind->batch;
    bool planar = plan->layout == NR_LAYOUT_NCHW;
    int64_t height = dims[planar ? 1 : 0], width = dims[planar ? 2 : 1];
    if (height < 1 || width < 1 || height > NR_IMAGE_MAX_SIDE || width > NR_IMAGE_MAX_SIDE) {
        return nr_fail(err, NARU_INVALID,
                       "%s: a picture of %lld x %lld pixels; 1 to %d are allowed", w->kind->name,
                       (long long)width, (long long)height, NR_IMAGE_MAX_SIDE);
    }
    struct nr_image_job job;
    nr_cleanup(nr_image_done) struct nr_image img = {0};
    nr_cleanup(nr_image_stitch_done) struct nr_image_stitch stitch = {0};
    nr_status st = nr_image_job_init(plan, (uint32_t)width, (uint32_t)height, &job, err);
    if (st == NARU_OK) {
        nr_image_stitch_init(&stitch, &job);
        st =
            nr_image_stitch_add(&stitch, 0, in->dtype, 3, dims, in->data + row * bytes, bytes, err);
    }
    if (st == NARU_OK) {
        st = nr_image_stitch_take(&stitch, &img, err);
    }
    size_t at = out->len;
    nr_text_add(out, "\0\0\0", 4);
    if (st == NARU_OK) {
        st = nr_image_encode(&img, &w->kind->encode, out, err);
    }
    if (st == NARU_OK) {
        uint32_t len = (uint32_t)(out->len - at - 4); /* ENCODED_MAX fits */
        memcpy(out->data + at, &len, sizeof(len));
    }
    return st;
}

static nr_status run_encode(const struct nr_stepwork *w, struct nr_step_spec *spec, int64_t rows,
                            struct nr_err *err)
{
    const struct nr_infer_tensor *in = w->in[0];
    bool whole = in->dtype == NARU_UINT8 || in->dtype == NARU_INT8;
    const struct nr_image_plan *plan = whole ? w->kind->alt : w->kind->plan;
    struct nr_infer_tensor *t = &w->out[0];
    nr_cleanup(text_done) struct nr_text out;
    nr_text_init(&out, ENCODED_MAX);
    for (int64_t row = 0; row < rows; row++) {
        nr_status st = encode_row(w, plan, (size_t)row, in->bytes / (size_t)rows, &out, err);
        if (st != NARU_OK) {
            return fail_row(err, st, row, rows);
        }
    }
    spec->shape[0] = w->kind->batch ? rows : 1;
    *t = (struct nr_infer_tensor){
        .dtype = NARU_BYTES, .rank = spec->rank, .elements = rows, .bytes = out.len};
    memcpy(t->shape, spec->shape, spec->rank * sizeof(t->shape[0]));
    if (out.failed) {
        return fail_memory(w, out.len, err);
    }
    char *data = nr_text_take(&out);
    nr_arena_defer(w->arena, nr_free, data);
    t->data = (const uint8_t *)data;
    return NARU_OK;
}

/* --- conditions ------------------------------------------------------------------------------- */

static bool holds(const struct nr_stepkind *k, float v)
{
    float with = (float)k->value;
    switch (k->compare) {
    case NR_STEP_EQ:
        return v == with;
    case NR_STEP_GT:
        return v > with;
    case NR_STEP_GE:
        return v >= with;
    case NR_STEP_LT:
        return v < with;
    case NR_STEP_LE:
        return v <= with;
    case NR_STEP_NE:
        break;
    }
    return v != with;
}

/* Whether the condition is true of n elements at data. */
static bool is_true(const struct nr_stepkind *k, int32_t dtype, const uint8_t *data, size_t n)
{
    float piece[PIECE];
    size_t bytes = naru_dtype_bytes(dtype);
    for (size_t at = 0; at < n; at += PIECE) {
        size_t count = NR_MIN(n - at, (size_t)PIECE);
        nr_elements_to_float(dtype, data + at * bytes, count, piece);
        for (size_t i = 0; i < count; i++) {
            if (holds(k, piece[i]) != k->over_all) {
                return !k->over_all; /* the first that decides */
            }
        }
    }
    return k->over_all;
}

static nr_status run_if(const struct nr_stepwork *w, int64_t rows, struct nr_err *err)
{
    const struct nr_infer_tensor *condition = w->in[0], *in = w->in[1];
    size_t n = rows > 0 ? (size_t)(condition->elements / rows) : 0;
    size_t bytes = n * naru_dtype_bytes(condition->dtype);
    bool yes = rows > 0 && is_true(w->kind, condition->dtype, condition->data, n);
    for (int64_t row = 1; row < rows; row++) {
        if (is_true(w->kind, condition->dtype, condition->data + (size_t)row * bytes, n) != yes) {
            return nr_fail(
                err, NARU_INVALID,
                "naru.if: the condition is %s for row 0 and %s for row %lld: rows of one "
                "request go the same way; send them one by one",
                yes ? "true" : "false", yes ? "false" : "true", (long long)row);
        }
    }
    return pass(w, yes ? 0 : 1, in, 0, in->bytes, err);
}

/* --- parts ------------------------------------------------------------------------------------ */

/* Elements before the axis, and bytes of one step along it. */
static void strides(const struct nr_infer_tensor *t, uint32_t axis, size_t *outer, size_t *inner)
{
    *outer = 1;
    *inner = naru_dtype_bytes(t->dtype);
    for (uint32_t i = 0; i < t->rank; i++) {
        *(i < axis ? outer : inner) *= i == axis ? 1 : (size_t)t->shape[i];
    }
}

static void copy_part(const uint8_t *from, size_t from_step, uint8_t *to, size_t to_step,
                      size_t bytes, size_t n)
{
    for (size_t i = 0; i < n && bytes > 0; i++) {
        memcpy(to + i * to_step, from + i * from_step, bytes);
    }
}

static nr_status run_split(const struct nr_stepwork *w, const struct nr_step_spec *specs,
                           struct nr_err *err)
{
    const struct nr_infer_tensor *in = w->in[0];
    uint32_t axis = w->kind->axis + w->kind->batch;
    size_t outer, inner, at = 0, whole;
    strides(in, axis, &outer, &inner);
    whole = (size_t)in->shape[axis] * inner;
    for (unsigned i = 0; i < w->kind->n_parts; i++) {
        size_t bytes = (size_t)specs[i].shape[axis] * inner;
        uint8_t *to;
        nr_status st;
        if (outer == 1) {
            st = pass(w, i, in, at, bytes, err);
            w->out[i].shape[axis] = specs[i].shape[axis];
            w->out[i].elements = (int64_t)(bytes / NR_MAX(naru_dtype_bytes(in->dtype), 1u));
        } else {
            st = begin(w, i, &specs[i], &to, err);
            if (st == NARU_OK) {
                copy_part(in->data + at, whole, to, bytes, bytes, outer);
            }
        }
        if (st != NARU_OK) {
            return st;
        }
        at += bytes;
    }
    return NARU_OK;
}

static nr_status run_join(const struct nr_stepwork *w, const struct nr_step_spec *spec,
                          struct nr_err *err)
{
    uint32_t axis = w->kind->axis + w->kind->batch;
    uint8_t *to;
    nr_status st = begin(w, 0, spec, &to, err);
    size_t at = 0;
    for (unsigned i = 0; i < w->kind->n_parts && st == NARU_OK; i++) {
        size_t outer, inner;
        strides(w->in[i], axis, &outer, &inner);
        size_t bytes = (size_t)w->in[i]->shape[axis] * inner;
        copy_part(w->in[i]->data, bytes, to + at, (size_t)spec->shape[axis] * inner, bytes, outer);
        at += bytes;
    }
    return st;
}

/* --- all -------------------------------------------------------------------------------------- */

bool nr_stepwork_is_short(const struct nr_stepwork *w)
{
    size_t bytes = 0;
    switch (w->kind->op) {
    case NR_STEP_IF:
        return w->in[0]->elements <= SHORT_ELEMENTS &&
               (w->in[1]->buf != NULL || w->in[1]->bytes <= SHORT_BYTES);
    case NR_STEP_EITHER:
        return true; /* what has no buffer is small, or the request's own */
    case NR_STEP_SPLIT:
    case NR_STEP_JOIN:
        for (uint32_t i = 0; i < nr_stepkind_n_inputs(w->kind); i++) {
            bytes += w->in[i]->bytes;
        }
        return bytes <= SHORT_BYTES;
    case NR_STEP_DECODE:
    case NR_STEP_RESIZE:
    case NR_STEP_NORMALIZE:
    case NR_STEP_ENCODE:
        break;
    }
    return false;
}

/* Rows of the batch: those of the first tensor; all must agree. */
static nr_status count_rows(const struct nr_stepwork *w, uint32_t n, int64_t *ret,
                            struct nr_err *err)
{
    *ret = 1;
    for (uint32_t i = 0; w->kind->batch && i < n; i++) {
        if (i > 0 && w->in[i]->shape[0] != *ret) {
            return nr_fail(err, NARU_INVALID, "%s: one input has %lld rows, another %lld",
                           w->kind->name, (long long)*ret, (long long)w->in[i]->shape[0]);
        }
        *ret = w->in[i]->shape[0];
    }
    return NARU_OK;
}

nr_status nr_stepwork_run(const struct nr_stepwork *w, struct nr_err *err)
{
    const struct nr_stepkind *k = w->kind;
    uint32_t n = nr_stepkind_n_inputs(k), n_out = nr_stepkind_n_outputs(k);
    memset(w->out, 0, n_out * sizeof(w->out[0]));
    if (k->op == NR_STEP_EITHER) {
        const struct nr_infer_tensor *in = w->in[0] != NULL ? w->in[0] : w->in[1];
        return in != NULL ? pass(w, 0, in, 0, in->bytes, err) : NARU_OK;
    }
    struct nr_step_spec *specs = nr_arena_try_array(w->arena, n + n_out, sizeof(*specs));
    if (specs == NULL) {
        return fail_memory(w, (n + n_out) * sizeof(*specs), err);
    }
    for (uint32_t i = 0; i < n; i++) {
        specs[i] = (struct nr_step_spec){.dtype = w->in[i]->dtype, .rank = w->in[i]->rank};
        memcpy(specs[i].shape, w->in[i]->shape, w->in[i]->rank * sizeof(specs[i].shape[0]));
    }
    struct nr_step_spec *out = specs + n;
    int64_t rows;
    nr_status st = nr_stepkind_infer(k, specs, out, err);
    if (st == NARU_OK) {
        st = count_rows(w, n, &rows, err);
    }
    if (st != NARU_OK) {
        return st;
    }
    switch (k->op) {
    case NR_STEP_DECODE:
        return run_decode(w, out, rows, err);
    case NR_STEP_RESIZE:
    case NR_STEP_NORMALIZE:
        return run_pixels(w, out, rows, err);
    case NR_STEP_ENCODE:
        return run_encode(w, out, rows, err);
    case NR_STEP_IF:
        return run_if(w, rows, err);
    case NR_STEP_SPLIT:
        return run_split(w, out, err);
    case NR_STEP_JOIN:
        return run_join(w, out, err);
    case NR_STEP_EITHER:
        break;
    }
    return NARU_OK;
}
