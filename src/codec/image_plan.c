/* Plans: reads naru.image.* and naru.output.* of a model's configuration, fills in what they leave
 * open from the model's signature, and computes the tables that turn a byte into an element.
 *
 * Keys live in one table (key, function), so that reading, "unknown key" and "did you mean" agree.
 * Values are checked where they are read; what depends on several keys or on the signature is
 * checked by the resolve_* functions afterwards, input first, output then.
 *
 * INVARIANTS
 *  1. A plan that is handed out is complete: channels, axes, tables, names; nothing is looked up
 *     again while requests run.
 *  2. Every axis number is an index < rank or -1.
 * Threads: parsing is pure; a finished plan is only read.
 */
#include "codec/image_plan.h"

#include <inttypes.h>
#include <math.h>

#include "base/mem.h"
#include "codec/element.h"
#include "codec/labels.h"

/* What the keys said; the plan takes it over once the signature is known. */
struct draft {
    struct nr_image_plan *plan;
    struct nr_str input, output_tensor;
    bool has_layout, has_color, has_size, has_output, has_scale, has_overlap, has_output_scale;
    float mean[3], std[3];
    uint32_t n_mean, n_std;
    uint64_t seen; /* bit per key of the table */
};

/* Reads one value; the error says what was expected. */
typedef nr_status (*read_fn)(struct draft *d, struct nr_str value, struct nr_err *err);

static nr_status expected(struct nr_err *err, struct nr_str value, const char *what)
{
    return nr_fail(err, NARU_INVALID, "value \"" NR_STR_FMT "\": expected %s", NR_STR_ARG(value),
                   what);
}

static nr_status read_word(struct nr_str value, const char *const *words, size_t n, int *ret,
                           const char *what, struct nr_err *err)
{
    for (size_t i = 0; i < n; i++) {
        if (nr_str_eq_nocase(value, nr_str_from(words[i]))) {
            *ret = (int)i;
            return NARU_OK;
        }
    }
    return expected(err, value, what);
}

static nr_status read_bool(struct nr_str value, bool *ret, struct nr_err *err)
{
    static const char *const words[] = {"false", "true"};
    int i = 0;
    nr_status st = read_word(value, words, NR_COUNT(words), &i, "true or false", err);
    *ret = i == 1;
    return st;
}

static nr_status read_u32(struct nr_str value, uint32_t lo, uint32_t hi, uint32_t *ret,
                          struct nr_err *err)
{
    uint64_t v;
    if (!nr_str_to_u64(value, &v) || v < lo || v > hi) {
        return nr_fail(err, NARU_INVALID,
                       "value \"" NR_STR_FMT "\": expected a whole number from %u to %u",
                       NR_STR_ARG(value), lo, hi);
    }
    *ret = (uint32_t)v;
    return NARU_OK;
}

/* A number or a fraction of two, rounded to float once. */
static bool to_float(struct nr_str s, float *ret)
{
    struct nr_str below;
    struct nr_str above = nr_str_trim(nr_str_cut(s, '/', &below));
    double a, b = 1.0;
    if (!nr_str_to_double(above, &a) ||
        (below.ptr != NULL && (!nr_str_to_double(nr_str_trim(below), &b) || b == 0.0))) {
        return false;
    }
    *ret = (float)(a / b);
    return isfinite(*ret);
}

static nr_status read_floats(struct nr_str value, float out[3], uint32_t *ret_n, struct nr_err *err)
{
    *ret_n = 0;
    struct nr_str rest = value;
    while (rest.ptr != NULL) {
        struct nr_str item = nr_str_trim(nr_str_cut(rest, ',', &rest));
        if (*ret_n == 3 || !to_float(item, &out[*ret_n])) {
            return expected(err, value, "one to three numbers with commas between them");
        }
        ++*ret_n;
    }
    return NARU_OK;
}

static nr_status read_input(struct draft *d, struct nr_str value, struct nr_err *err)
{
    (void)err;
    d->input = value;
    return NARU_OK;
}

static nr_status read_layout(struct draft *d, struct nr_str value, struct nr_err *err)
{
    static const char *const words[] = {[NR_LAYOUT_NCHW] = "NCHW", [NR_LAYOUT_NHWC] = "NHWC"};
    int i = 0;
    nr_status st = read_word(value, words, NR_COUNT(words), &i, "NCHW or NHWC", err);
    d->plan->layout = (enum nr_image_layout)i;
    d->has_layout = true;
    return st;
}

static nr_status read_color(struct draft *d, struct nr_str value, struct nr_err *err)
{
    static const char *const words[] = {"RGB", "BGR", "GRAY"};
    static const enum nr_image_color colors[] = {NR_IMAGE_RGB, NR_IMAGE_BGR, NR_IMAGE_GRAY};
    int i = 0;
    nr_status st = read_word(value, words, NR_COUNT(words), &i, "RGB, BGR or GRAY", err);
    d->plan->color = colors[i];
    d->has_color = true;
    return st;
}

static nr_status read_size(struct draft *d, struct nr_str value, struct nr_err *err)
{
    struct nr_str right;
    struct nr_str left = nr_str_cut(value, 'x', &right);
    if (right.ptr == NULL ||
        read_u32(left, 1, NR_IMAGE_MAX_SIDE, &d->plan->height, NULL) != NARU_OK ||
        read_u32(right, 1, NR_IMAGE_MAX_SIDE, &d->plan->width, NULL) != NARU_OK) {
        return expected(err, value, "height and width in pixels, as in 224x224");
    }
    d->has_size = true;
    return NARU_OK;
}

static nr_status read_resize(struct draft *d, struct nr_str value, struct nr_err *err)
{
    if (!nr_resize_filter_parse(value, &d->plan->filter)) {
        return expected(err, value, "nearest, box, bilinear, hamming, bicubic or lanczos");
    }
    return NARU_OK;
}

static nr_status read_fit(struct draft *d, struct nr_str value, struct nr_err *err)
{
    static const char *const words[] = {"stretch", "crop", "pad"};
    int i = 0;
    nr_status st = read_word(value, words, NR_COUNT(words), &i, "stretch, crop or pad", err);
    d->plan->fit = (enum nr_image_fit)i;
    return st;
}

static nr_status read_scale(struct draft *d, struct nr_str value, struct nr_err *err)
{
    d->has_scale = true;
    return to_float(value, &d->plan->scale) ? NARU_OK
                                            : expected(err, value, "a number or a fraction");
}

static nr_status read_mean(struct draft *d, struct nr_str value, struct nr_err *err)
{
    return read_floats(value, d->mean, &d->n_mean, err);
}

static nr_status read_std(struct draft *d, struct nr_str value, struct nr_err *err)
{
    nr_status st = read_floats(value, d->std, &d->n_std, err);
    for (uint32_t i = 0; st == NARU_OK && i < d->n_std; i++) {
        if (d->std[i] == 0.0F) {
            st = expected(err, value, "numbers other than 0 (values are divided by them)");
        }
    }
    return st;
}

static nr_status read_invert(struct draft *d, struct nr_str value, struct nr_err *err)
{
    return read_bool(value, &d->plan->invert, err);
}

static nr_status read_multiple(struct draft *d, struct nr_str value, struct nr_err *err)
{
    return read_u32(value, 1, 4096, &d->plan->multiple_of, err);
}

static nr_status read_tile(struct draft *d, struct nr_str value, struct nr_err *err)
{
    return read_u32(value, 16, NR_IMAGE_MAX_SIDE, &d->plan->tile, err);
}

static nr_status read_overlap(struct draft *d, struct nr_str value, struct nr_err *err)
{
    d->has_overlap = true;
    return read_u32(value, 0, NR_IMAGE_MAX_SIDE, &d->plan->tile_overlap, err);
}

static nr_status read_output(struct draft *d, struct nr_str value, struct nr_err *err)
{
    static const char *const words[] = {"image", "labels", "tensor"};
    int i = 0;
    nr_status st = read_word(value, words, NR_COUNT(words), &i, "image, labels or tensor", err);
    d->plan->output = (enum nr_image_output)i;
    d->has_output = true;
    return st;
}

static nr_status read_output_tensor(struct draft *d, struct nr_str value, struct nr_err *err)
{
    (void)err;
    d->output_tensor = value;
    return NARU_OK;
}

static nr_status read_output_scale(struct draft *d, struct nr_str value, struct nr_err *err)
{
    d->has_output_scale = true;
    return to_float(value, &d->plan->output_scale) ? NARU_OK
                                                   : expected(err, value, "a number or a fraction");
}

static nr_status read_top_k(struct draft *d, struct nr_str value, struct nr_err *err)
{
    return read_u32(value, 1, NR_LABELS_MAX, &d->plan->top_k, err);
}

static nr_status read_softmax(struct draft *d, struct nr_str value, struct nr_err *err)
{
    return read_bool(value, &d->plan->softmax, err);
}

static nr_status read_format(struct draft *d, struct nr_str value, struct nr_err *err)
{
    return nr_image_format_parse(value, &d->plan->output_format)
               ? NARU_OK
               : expected(err, value, "png, jpeg or webp");
}

static const struct {
    struct nr_str key;
    read_fn read;
} keys[] = {
    {NR_STR_INIT("naru.image.input"), read_input},
    {NR_STR_INIT("naru.image.layout"), read_layout},
    {NR_STR_INIT("naru.image.color"), read_color},
    {NR_STR_INIT("naru.image.size"), read_size},
    {NR_STR_INIT("naru.image.resize"), read_resize},
    {NR_STR_INIT("naru.image.fit"), read_fit},
    {NR_STR_INIT("naru.image.scale"), read_scale},
    {NR_STR_INIT("naru.image.mean"), read_mean},
    {NR_STR_INIT("naru.image.std"), read_std},
    {NR_STR_INIT("naru.image.invert"), read_invert},
    {NR_STR_INIT("naru.image.multiple_of"), read_multiple},
    {NR_STR_INIT("naru.image.tile"), read_tile},
    {NR_STR_INIT("naru.image.tile_overlap"), read_overlap},
    {NR_STR_INIT("naru.output"), read_output},
    {NR_STR_INIT("naru.output.tensor"), read_output_tensor},
    {NR_STR_INIT("naru.output.scale"), read_output_scale},
    {NR_STR_INIT("naru.output.top_k"), read_top_k},
    {NR_STR_INIT("naru.output.softmax"), read_softmax},
    {NR_STR_INIT("naru.output.format"), read_format},
};
_Static_assert(NR_COUNT(keys) <= 64, "draft.seen has a bit per key");

struct nr_str nr_image_plan_nearest(struct nr_str key, unsigned *ret_distance)
{
    size_t best = 0;
    *ret_distance = UINT32_MAX;
    for (size_t i = 0; i < NR_COUNT(keys); i++) {
        unsigned distance = nr_str_distance(key, keys[i].key);
        if (distance < *ret_distance) {
            *ret_distance = distance;
            best = i;
        }
    }
    return keys[best].key;
}

static nr_status unknown_key(struct nr_str key, struct nr_err *err)
{
    unsigned distance;
    struct nr_str best = nr_image_plan_nearest(key, &distance);
    return nr_fail(err, NARU_INVALID,
                   "unknown parameter \"%.*s\": did you mean \"" NR_STR_FMT "\"?",
                   (int)NR_MIN(key.len, 200), key.ptr, NR_STR_ARG(best));
}

static nr_status read_param(struct draft *d, const struct nr_image_param *p, struct nr_err *err)
{
    for (size_t i = 0; i < NR_COUNT(keys); i++) {
        if (!nr_str_eq(p->key, keys[i].key)) {
            continue;
        }
        if ((d->seen >> i) & 1) {
            return nr_fail(err, NARU_INVALID, "parameter \"" NR_STR_FMT "\" is given twice",
                           NR_STR_ARG(p->key));
        }
        d->seen |= UINT64_C(1) << i;
        nr_status st = keys[i].read(d, nr_str_trim(p->value), err);
        if (st != NARU_OK) {
            nr_err_prefix(err, "parameter \"" NR_STR_FMT "\"", NR_STR_ARG(p->key));
        }
        return st;
    }
    return unknown_key(p->key, err);
}

/* Where a picture's axes lie in dims. */
struct axes {
    int32_t c, h, w;
    bool unit_row;
};

static bool is_channels(int64_t dim)
{
    return dim == 1 || dim == 3;
}

/* A side that could be a picture's: free, or not so small that it must mean something else. When
 * keys describe the picture any side will do. */
static bool is_side(int64_t dim, const struct draft *d)
{
    return dim < 0 || dim >= 8 || d->has_layout || d->has_color || d->has_size;
}

/* Finds the axes in the dims of one row, `skip` leading dims being a batch of one. Rank 3 has the
 * channels in front or behind (in front, when both could be), rank 2 is grey. want: number of
 * channels, 0 for any. */
static bool find_axes_at(const struct nr_image_io *io, uint32_t skip, const struct draft *d,
                         uint32_t want, struct axes *ret)
{
    const int64_t *dims = io->dims + skip;
    int32_t at = (int32_t)skip;
    uint32_t rank = io->rank - skip;
    if (rank == 2) {
        /* [rows, features] looks the same: only static sides, unless grey is asked for */
        *ret = (struct axes){-1, at, at + 1, skip != 0};
        if (d->has_size && ((dims[0] > 0 && dims[0] != d->plan->height) ||
                            (dims[1] > 0 && dims[1] != d->plan->width))) {
            return false; /* flat, perhaps */
        }
        return want == 1 || (want == 0 && dims[0] > 0 && dims[1] > 0 && is_side(dims[0], d) &&
                             is_side(dims[1], d));
    }
    if (rank != 3) {
        return false;
    }
    bool first = is_channels(dims[0]) && (want == 0 || dims[0] == want);
    bool last = is_channels(dims[2]) && (want == 0 || dims[2] == want);
    if (d->has_layout) {
        /* said by the configuration: a free dimension will do */
        bool nchw = d->plan->layout == NR_LAYOUT_NCHW;
        first = nchw && (first || dims[0] < 0);
        last = !nchw && (last || dims[2] < 0);
    }
    first = first && is_side(dims[1], d) && is_side(dims[2], d);
    last = last && is_side(dims[0], d) && is_side(dims[1], d);
    if (first) {
        *ret = (struct axes){at, at + 1, at + 2, skip != 0};
    } else if (last) {
        *ret = (struct axes){at + 2, at, at + 1, skip != 0};
    }
    return first || last;
}

/* A model that does not batch often has a batch dimension all the same: 1 or free. */
static bool find_axes(const struct nr_image_io *io, bool batches, const struct draft *d,
                      uint32_t want, struct axes *ret)
{
    if (io->rank < 2 || io->rank > 4) {
        return false;
    }
    bool unit = !batches && io->rank >= 3 && (io->dims[0] == 1 || io->dims[0] < 0);
    return find_axes_at(io, 0, d, want, ret) || (unit && find_axes_at(io, 1, d, want, ret));
}

static bool dtype_takes_pictures(int32_t dtype)
{
    return dtype == NARU_FP32 || dtype == NARU_FP16 || dtype == NARU_BF16 || dtype == NARU_UINT8 ||
           dtype == NARU_INT8;
}

static bool dtype_is_float(int32_t dtype)
{
    return dtype == NARU_FP32 || dtype == NARU_FP16 || dtype == NARU_BF16 || dtype == NARU_FP64;
}

static const struct nr_image_io *io_by_name(const struct nr_image_io *ios, size_t n,
                                            struct nr_str name)
{
    for (size_t i = 0; i < n; i++) {
        if (nr_str_eq(ios[i].name, name)) {
            return &ios[i];
        }
    }
    return NULL;
}

static uint32_t wanted_channels(const struct draft *d)
{
    return !d->has_color ? 0 : d->plan->color == NR_IMAGE_GRAY ? 1 : 3;
}

/* Flat inputs ([784]) can be named by size and color: all dims static, product right. */
static bool is_flat(const struct nr_image_io *io, const struct draft *d)
{
    if (!d->has_size || !d->has_color || io->rank == 0 || io->rank > NARU_MAX_RANK) {
        return false;
    }
    uint64_t want = (uint64_t)d->plan->height * d->plan->width * wanted_channels(d), have = 1;
    for (uint32_t i = 0; i < io->rank; i++) {
        int64_t dim = i == 0 && io->dims[0] < 0 && io->rank > 1 ? 1 : io->dims[i];
        if (dim <= 0 || (uint64_t)dim > want || (have *= (uint64_t)dim) > want) {
            return false;
        }
    }
    return have == want;
}

static nr_status choose_input(const struct draft *d, const struct nr_image_signature *sig,
                              const struct nr_image_io **ret, struct nr_err *err)
{
    if (d->input.ptr != NULL) {
        *ret = io_by_name(sig->inputs, sig->n_inputs, d->input);
        return *ret != NULL
                   ? NARU_OK
                   : nr_fail(err, NARU_INVALID,
                             "naru.image.input names \"" NR_STR_FMT "\", which is no input of the "
                             "model",
                             NR_STR_ARG(d->input));
    }
    *ret = NULL;
    for (size_t i = 0; i < sig->n_inputs; i++) {
        struct axes axes;
        const struct nr_image_io *io = &sig->inputs[i];
        if (!dtype_takes_pictures(io->dtype) ||
            (!find_axes(io, sig->batches, d, wanted_channels(d), &axes) && !is_flat(io, d))) {
            continue;
        }
        if (*ret != NULL) {
            return nr_fail(err, NARU_PRECONDITION,
                           "inputs \"" NR_STR_FMT "\" and \"" NR_STR_FMT "\" could both take the "
                           "picture: say which by parameter naru.image.input",
                           NR_STR_ARG((*ret)->name), NR_STR_ARG(io->name));
        }
        *ret = io;
    }
    if (*ret == NULL && sig->n_inputs == 1 && !d->plan->derived) {
        *ret = sig->inputs; /* meant to be a picture: resolve_input says what does not fit */
    }
    if (*ret == NULL || sig->n_inputs > 1) {
        return nr_fail(err, NARU_PRECONDITION,
                       "this model takes no pictures: it needs exactly one input, with 3 or 1 "
                       "channels in front of or behind height and width (FP32, FP16, BF16, UINT8 "
                       "or INT8); parameters naru.image.* in config.pbtxt can say more");
    }
    return NARU_OK;
}

static nr_status bad_input(const struct nr_image_io *io, const char *why, struct nr_err *err)
{
    return nr_fail(err, NARU_INVALID, "input \"" NR_STR_FMT "\" (%s, rank %u) %s",
                   NR_STR_ARG(io->name),
                   naru_dtype_name(io->dtype) ? naru_dtype_name(io->dtype) : "?", io->rank, why);
}

/* Static sides of the input decide the size when no key does, and must agree with one that does. */
static nr_status resolve_size(struct draft *d, const struct nr_image_io *io, struct nr_err *err)
{
    struct nr_image_plan *p = d->plan;
    int64_t h = p->axis_h >= 0 ? p->dims[p->axis_h] : -1;
    int64_t w = p->axis_w >= 0 ? p->dims[p->axis_w] : -1;
    if (h > NR_IMAGE_MAX_SIDE || w > NR_IMAGE_MAX_SIDE || h == 0 || w == 0) {
        return bad_input(io, "has a side outside 1 to 16384", err);
    }
    if (d->has_size) {
        if ((h > 0 && h != p->height) || (w > 0 && w != p->width)) {
            return nr_fail(err, NARU_INVALID,
                           "naru.image.size is %ux%u, but input \"" NR_STR_FMT "\" has %" PRId64
                           "x%" PRId64,
                           p->height, p->width, NR_STR_ARG(io->name), h, w);
        }
    } else if (p->tile != 0 && (h > 0 || w > 0)) {
        return nr_fail(err, NARU_INVALID,
                       "naru.image.tile needs an input with free height and width, \"" NR_STR_FMT
                       "\" has %" PRId64 "x%" PRId64,
                       NR_STR_ARG(io->name), h, w);
    } else if (h > 0 && w > 0) {
        p->height = (uint32_t)h;
        p->width = (uint32_t)w;
    } else if (h > 0 || w > 0) {
        return bad_input(io, "has one static and one free side: say both by naru.image.size", err);
    }
    if (p->height % p->multiple_of != 0 || p->width % p->multiple_of != 0) {
        return nr_fail(err, NARU_INVALID, "size %ux%u is no multiple of naru.image.multiple_of %u",
                       p->height, p->width, p->multiple_of);
    }
    return NARU_OK;
}

static nr_status resolve_tiles(struct draft *d, struct nr_err *err)
{
    struct nr_image_plan *p = d->plan;
    if (p->tile == 0) {
        return d->has_overlap ? nr_fail(err, NARU_INVALID,
                                        "naru.image.tile_overlap has no meaning without "
                                        "naru.image.tile")
                              : NARU_OK;
    }
    if (!d->has_overlap) {
        p->tile_overlap = p->tile / 4;
    }
    if (p->tile % p->multiple_of != 0) {
        return nr_fail(err, NARU_INVALID,
                       "naru.image.tile %u is no multiple of naru.image.multiple_of %u", p->tile,
                       p->multiple_of);
    }
    if (p->tile_overlap * 2 > p->tile) {
        return nr_fail(err, NARU_INVALID,
                       "naru.image.tile_overlap %u is more than half of naru.image.tile %u",
                       p->tile_overlap, p->tile);
    }
    return NARU_OK;
}

static nr_status resolve_channels(struct draft *d, const struct nr_image_io *io, struct nr_err *err)
{
    struct nr_image_plan *p = d->plan;
    int64_t have = p->axis_c >= 0 ? p->dims[p->axis_c] : -1;
    if (d->has_color) {
        p->channels = wanted_channels(d);
    } else {
        p->channels = p->axis_c < 0 ? 1 : have > 0 ? (uint32_t)have : 3;
        p->color = p->channels == 1 ? NR_IMAGE_GRAY : NR_IMAGE_RGB;
    }
    if (have > 0 && have != p->channels) {
        return nr_fail(err, NARU_INVALID,
                       "naru.image.color asks for %u channels, input \"" NR_STR_FMT
                       "\" has %" PRId64,
                       p->channels, NR_STR_ARG(io->name), have);
    }
    if ((d->n_mean != 0 && d->n_mean != 1 && d->n_mean != p->channels) ||
        (d->n_std != 0 && d->n_std != 1 && d->n_std != p->channels)) {
        return nr_fail(
            err, NARU_INVALID,
            "naru.image.mean has %u and naru.image.std %u numbers: expected 1 or one for "
            "each of the %u channels",
            d->n_mean, d->n_std, p->channels);
    }
    for (uint32_t c = 0; c < 3; c++) {
        p->mean[c] = d->n_mean == 0 ? 0.0F : d->mean[d->n_mean == 1 ? 0 : c];
        p->std[c] = d->n_std == 0 ? 1.0F : d->std[d->n_std == 1 ? 0 : c];
    }
    return NARU_OK;
}

static nr_status resolve_input(struct draft *d, const struct nr_image_signature *sig,
                               struct nr_err *err)
{
    struct nr_image_plan *p = d->plan;
    const struct nr_image_io *io = NULL;
    nr_status st = choose_input(d, sig, &io, err);
    if (st != NARU_OK) {
        return st;
    }
    if (!dtype_takes_pictures(io->dtype)) {
        return bad_input(io, "cannot hold a picture: expected FP32, FP16, BF16, UINT8 or INT8",
                         err);
    }
    struct axes axes;
    if (find_axes(io, sig->batches, d, wanted_channels(d), &axes) ||
        (!is_flat(io, d) && find_axes(io, sig->batches, d, 0, &axes))) {
        p->unit_row = axes.unit_row;
    } else if (is_flat(io, d)) {
        axes = (struct axes){-1, -1, -1, false};
    } else {
        return bad_input(
            io,
            "has no place for height, width and 1 or 3 channels: say naru.image.layout "
            "and naru.image.color",
            err);
    }
    p->dtype = io->dtype;
    p->element_bytes = (uint8_t)naru_dtype_bytes(io->dtype);
    p->batches = sig->batches;
    p->rank = io->rank;
    memcpy(p->dims, io->dims, io->rank * sizeof *p->dims);
    p->axis_c = axes.c;
    p->axis_h = axes.h;
    p->axis_w = axes.w;
    if (!d->has_layout && axes.c >= 0) {
        p->layout = axes.c < axes.h ? NR_LAYOUT_NCHW : NR_LAYOUT_NHWC;
    }
    p->input = nr_format(NR_STR_FMT, NR_STR_ARG(io->name));
    if ((st = resolve_channels(d, io, err)) != NARU_OK ||
        (st = resolve_size(d, io, err)) != NARU_OK) {
        return st;
    }
    if (!d->has_scale) {
        /* keys without a scale mean bytes as they are; nothing at all means the usual 0..1 */
        p->scale = p->derived && dtype_is_float(p->dtype) ? 1.0F / 255.0F : 1.0F;
    }
    return resolve_tiles(d, err);
}

static bool output_is_picture(const struct draft *d, const struct nr_image_io *io, bool batches)
{
    struct axes axes;
    if (!dtype_is_float(io->dtype) && io->dtype != NARU_UINT8) {
        return false;
    }
    struct draft as_input = {.plan = d->plan, .has_layout = d->plan->axis_c >= 0};
    if (!find_axes(io, batches, &as_input, 0, &axes)) {
        return false;
    }
    int64_t h = io->dims[axes.h], w = io->dims[axes.w];
    return (h < 0 || h >= 8) && (w < 0 || w >= 8);
}

static bool output_is_scores(const struct nr_image_io *io, bool batches)
{
    uint32_t skip = !batches && io->rank > 1 ? 1 : 0;
    int64_t n = 1;
    for (uint32_t i = skip; i < io->rank && i < NARU_MAX_RANK; i++) {
        if (io->dims[i] <= 0 || __builtin_mul_overflow(n, io->dims[i], &n)) {
            return false;
        }
    }
    return dtype_is_float(io->dtype) && n >= 2 && io->rank - skip == 1;
}

static nr_status choose_output(const struct draft *d, const struct nr_image_signature *sig,
                               const struct nr_image_io **ret, struct nr_err *err)
{
    if (d->output_tensor.ptr != NULL) {
        *ret = io_by_name(sig->outputs, sig->n_outputs, d->output_tensor);
        return *ret != NULL
                   ? NARU_OK
                   : nr_fail(err, NARU_INVALID,
                             "naru.output.tensor names \"" NR_STR_FMT "\", which is no output of "
                             "the model",
                             NR_STR_ARG(d->output_tensor));
    }
    if (sig->n_outputs == 0) {
        return nr_fail(err, NARU_PRECONDITION, "the model has no outputs");
    }
    *ret = &sig->outputs[0];
    for (size_t i = 0; i < sig->n_outputs; i++) {
        if (dtype_is_float(sig->outputs[i].dtype) || sig->outputs[i].dtype == NARU_UINT8) {
            *ret = &sig->outputs[i];
            break;
        }
    }
    return NARU_OK;
}

static nr_status resolve_output(struct draft *d, const struct nr_image_signature *sig,
                                struct nr_err *err)
{
    struct nr_image_plan *p = d->plan;
    const struct nr_image_io *io = NULL;
    nr_status st = choose_output(d, sig, &io, err);
    if (st != NARU_OK) {
        return st;
    }
    if (!d->has_output) {
        p->output = sig->has_labels                          ? NR_OUTPUT_LABELS
                    : output_is_picture(d, io, sig->batches) ? NR_OUTPUT_IMAGE
                    : output_is_scores(io, sig->batches)     ? NR_OUTPUT_LABELS
                                                             : NR_OUTPUT_TENSOR;
    }
    if (p->output == NR_OUTPUT_LABELS && (io->dtype == NARU_BYTES || io->dtype == NARU_BOOL)) {
        return nr_fail(err, NARU_INVALID,
                       "naru.output is labels, but output \"" NR_STR_FMT "\" holds no scores",
                       NR_STR_ARG(io->name));
    }
    if (p->tile != 0 && p->output != NR_OUTPUT_IMAGE) {
        return nr_fail(err, NARU_INVALID,
                       "naru.image.tile needs naru.output image: %s cannot be put together from "
                       "tiles",
                       nr_image_output_name(p->output));
    }
    p->output_tensor = nr_format(NR_STR_FMT, NR_STR_ARG(io->name));
    p->output_dtype = io->dtype;
    if (!d->has_output_scale) {
        p->output_scale = dtype_is_float(io->dtype) ? 255.0F : 1.0F;
    }
    return NARU_OK;
}

static uint32_t element_bits(int32_t dtype, float v)
{
    switch (dtype) {
    case NARU_FP16:
        return nr_half_from_float(v);
    case NARU_BF16:
        return nr_bf16_from_float(v);
    case NARU_UINT8:
        v = rintf(v);
        return (uint8_t)(v < 0.0F ? 0.0F : v > 255.0F ? 255.0F : v);
    case NARU_INT8:
        v = rintf(v);
        return (uint8_t)(int8_t)(v < -128.0F ? -128.0F : v > 127.0F ? 127.0F : v);
    default:
        return nr_float_bits(v);
    }
}

/* volatile keeps each step a float32 of its own: no fused multiply-add, no wider registers */
static void fill_tables(struct nr_image_plan *p)
{
    for (uint32_t c = 0; c < 3; c++) {
        for (uint32_t v = 0; v < 256; v++) {
            volatile float x = (float)(p->invert ? 255 - v : v);
            x = x * p->scale;
            x = x - p->mean[c];
            x = x / p->std[c];
            p->table[c][v] = element_bits(p->dtype, x);
        }
    }
}

nr_status nr_image_plan_parse(const struct nr_image_param *params, size_t n_params,
                              const struct nr_image_signature *sig, struct nr_image_plan **ret,
                              struct nr_err *err)
{
    *ret = NULL;
    struct nr_image_plan *p = nr_new(struct nr_image_plan);
    *p = (struct nr_image_plan){
        .derived = true,
        .filter = NR_RESIZE_BILINEAR,
        .multiple_of = 1,
        .top_k = 5,
        .output_format = NR_IMAGE_PNG,
        .scale = 1.0F,
    };
    struct draft d = {.plan = p};
    nr_status st = NARU_OK;
    for (size_t i = 0; i < n_params && st == NARU_OK; i++) {
        if (nr_str_starts(params[i].key, NR_STR("naru."))) {
            st = read_param(&d, &params[i], err);
            p->derived = false;
        }
    }
    if (st == NARU_OK) {
        st = resolve_input(&d, sig, err);
    }
    if (st == NARU_OK) {
        st = resolve_output(&d, sig, err);
    }
    if (st != NARU_OK) {
        nr_image_plan_free(p);
        return st;
    }
    fill_tables(p);
    *ret = p;
    return NARU_OK;
}

void nr_image_plan_free(struct nr_image_plan *plan)
{
    if (plan != NULL) {
        nr_free(plan->input);
        nr_free(plan->output_tensor);
        nr_free(plan);
    }
}

const char *nr_image_output_name(enum nr_image_output kind)
{
    static const char *const names[] = {"image", "labels", "tensor"};
    return names[kind];
}

void nr_image_plan_describe(const struct nr_image_plan *p, struct nr_text *out)
{
    static const char *const fits[] = {"stretch", "crop", "pad"};
    static const char *const colors[] = {
        [NR_IMAGE_RGB] = "RGB", [NR_IMAGE_GRAY] = "grey", [NR_IMAGE_BGR] = "BGR"};
    nr_text_fmt(out, "input %s: %s %s %s", p->input, naru_dtype_name(p->dtype), colors[p->color],
                p->layout == NR_LAYOUT_NCHW ? "NCHW" : "NHWC");
    if (p->height != 0) {
        nr_text_fmt(out, " %ux%u by %s %s", p->height, p->width, nr_resize_filter_name(p->filter),
                    fits[p->fit]);
    } else {
        nr_text_str(out, " of the picture's own size");
    }
    if (p->multiple_of > 1) {
        nr_text_fmt(out, ", sides multiples of %u", p->multiple_of);
    }
    if (p->tile != 0) {
        nr_text_fmt(out, ", tiles of %u overlapping by %u", p->tile, p->tile_overlap);
    }
    nr_text_fmt(out, "; output %s: %s", p->output_tensor, nr_image_output_name(p->output));
}
