/* naru's own pipeline steps as a configuration sees them: names, parameters, shapes.
 *
 * DESIGN. One row per kind says its name, its tensors and which parameters it takes. Everything about
 * pictures is a plan of codec/image_plan.h: a step's parameters are given to it under the plan's own
 * keys, so sizes, filters, fits and normalisation mean the same here as in /predict, and are
 * read by the same code. Where a plan depends on what only the running tensor says (one channel or
 * three, integers or not) two are made, which costs a few kilobytes once per step.
 *
 * INVARIANTS
 *  1. A kind's plans are freed by its configuration's arena.
 *  2. Shapes given to nr_stepkind_infer begin with the batch dimension when k->batch is 1.
 *
 * Threads: pure functions.
 */
#include "model/stepkind.h"

#include <stdio.h>

#include "base/mem.h"
#include "codec/element.h"
#include "model/config_priv.h"

enum step_key {
    KEY_COLOR,
    KEY_SIZE,
    KEY_RESIZE,
    KEY_FIT,
    KEY_DTYPE,
    KEY_LAYOUT,
    KEY_SCALE,
    KEY_MEAN,
    KEY_STD,
    KEY_INVERT,
    KEY_FORMAT,
    KEY_QUALITY,
    KEY_COMPARE,
    KEY_VALUE,
    KEY_OVER,
    KEY_AXIS,
    KEY_SIZES,
    KEY_COUNT
};
static const char *const key_names[KEY_COUNT] = {
    [KEY_COLOR] = "color",     [KEY_SIZE] = "size",     [KEY_RESIZE] = "resize",
    [KEY_FIT] = "fit",         [KEY_DTYPE] = "dtype",   [KEY_LAYOUT] = "layout",
    [KEY_SCALE] = "scale",     [KEY_MEAN] = "mean",     [KEY_STD] = "std",
    [KEY_INVERT] = "invert",   [KEY_FORMAT] = "format", [KEY_QUALITY] = "quality",
    [KEY_COMPARE] = "compare", [KEY_VALUE] = "value",   [KEY_OVER] = "over",
    [KEY_AXIS] = "axis",       [KEY_SIZES] = "sizes",
};
#define BIT(key) (1u << (key))
#define KEYS_FIT (BIT(KEY_SIZE) | BIT(KEY_RESIZE) | BIT(KEY_FIT))

/* "INPUT*": INPUT0, INPUT1, … */
static const struct op_row {
    const char *name;
    const char *inputs[2], *outputs[2];
    unsigned keys;
} ops[] = {
    [NR_STEP_DECODE] = {"naru.image_decode", {"IMAGE"}, {"PIXELS"}, BIT(KEY_COLOR) | KEYS_FIT},
    [NR_STEP_RESIZE] = {"naru.image_resize", {"PIXELS"}, {"PIXELS"}, KEYS_FIT},
    [NR_STEP_NORMALIZE] = {"naru.image_normalize",
                           {"PIXELS"},
                           {"TENSOR"},
                           BIT(KEY_DTYPE) | BIT(KEY_LAYOUT) | BIT(KEY_COLOR) | BIT(KEY_SCALE) |
                               BIT(KEY_MEAN) | BIT(KEY_STD) | BIT(KEY_INVERT) | KEYS_FIT},
    [NR_STEP_ENCODE] = {"naru.image_encode",
                        {"TENSOR"},
                        {"IMAGE"},
                        BIT(KEY_FORMAT) | BIT(KEY_QUALITY) | BIT(KEY_LAYOUT) | BIT(KEY_SCALE)},
    [NR_STEP_IF] = {"naru.if",
                    {"CONDITION", "INPUT"},
                    {"THEN", "ELSE"},
                    BIT(KEY_COMPARE) | BIT(KEY_VALUE) | BIT(KEY_OVER)},
    [NR_STEP_EITHER] = {"naru.either", {"FIRST", "SECOND"}, {"OUTPUT"}, 0},
    [NR_STEP_SPLIT] = {"naru.split", {"INPUT"}, {"OUTPUT*"}, BIT(KEY_AXIS) | BIT(KEY_SIZES)},
    [NR_STEP_JOIN] = {"naru.join", {"INPUT*"}, {"OUTPUT"}, BIT(KEY_AXIS)},
};

/* --- names ------------------------------------------------------------------------------------ */

static int32_t index_of(const char *const names[2], uint32_t n_parts, struct nr_str name)
{
    for (int32_t i = 0; i < 2 && names[i] != NULL; i++) {
        struct nr_str own = nr_str_from(names[i]);
        uint64_t number;
        if (own.ptr[own.len - 1] == '*') {
            own.len--;
            struct nr_str rest = {name.ptr + own.len, name.len - NR_MIN(own.len, name.len)};
            bool same = nr_str_starts(name, own) && nr_str_to_u64(rest, &number) &&
                        number < n_parts && (rest.len == 1 || rest.ptr[0] != '0');
            return same ? (int32_t)number : -1;
        }
        if (nr_str_eq(own, name)) {
            return i;
        }
    }
    return -1;
}

static uint32_t count_of(const char *const names[2], uint32_t n_parts)
{
    return names[0][strlen(names[0]) - 1] == '*' ? n_parts : 1u + (names[1] != NULL);
}

int32_t nr_stepkind_input(const struct nr_stepkind *k, struct nr_str name)
{
    return index_of(ops[k->op].inputs, k->n_parts, name);
}

int32_t nr_stepkind_output(const struct nr_stepkind *k, struct nr_str name)
{
    return index_of(ops[k->op].outputs, k->n_parts, name);
}

uint32_t nr_stepkind_n_inputs(const struct nr_stepkind *k)
{
    return count_of(ops[k->op].inputs, k->n_parts);
}

uint32_t nr_stepkind_n_outputs(const struct nr_stepkind *k)
{
    return count_of(ops[k->op].outputs, k->n_parts);
}

const char *nr_stepkind_names(const struct nr_stepkind *k, bool outputs)
{
    switch (k->op) {
    case NR_STEP_IF:
        return outputs ? "THEN, ELSE" : "CONDITION, INPUT";
    case NR_STEP_EITHER:
        return outputs ? "OUTPUT" : "FIRST, SECOND";
    case NR_STEP_SPLIT:
        return outputs ? "OUTPUT0, OUTPUT1 and so on, one for each part" : "INPUT";
    case NR_STEP_JOIN:
        return outputs ? "OUTPUT" : "INPUT0, INPUT1 and so on";
    case NR_STEP_DECODE:
    case NR_STEP_RESIZE:
    case NR_STEP_NORMALIZE:
    case NR_STEP_ENCODE:
        break;
    }
    return outputs ? ops[k->op].outputs[0] : ops[k->op].inputs[0];
}

/* --- parameters ------------------------------------------------------------------------------- */

struct params {
    struct nr_str value[KEY_COUNT]; /* ptr NULL: not given */
};

static nr_status fail_key(const struct op_row *row, struct nr_str key, struct nr_err *err)
{
    struct nr_text t;
    char storage[256];
    nr_text_init_at(&t, storage, sizeof storage);
    for (unsigned i = 0; i < KEY_COUNT; i++) {
        if (row->keys & BIT(i)) {
            nr_text_fmt(&t, "%s%s", t.len > 0 ? ", " : "", key_names[i]);
        }
    }
    return nr_fail(err, NARU_INVALID, "%s has no parameter \"" NR_STR_FMT "\"; it takes %s",
                   row->name, NR_STR_ARG(key), t.len > 0 ? storage : "none");
}

/* The parameters of step `step` out of the ensemble's. */
static nr_status read_params(const struct nr_model_config *c, uint32_t step,
                             const struct op_row *row, struct params *ret, struct nr_err *err)
{
    char prefix[48];
    int len = snprintf(prefix, sizeof prefix, NR_STEP_PARAM_PREFIX "%u.", step);
    *ret = (struct params){0};
    for (size_t i = 0; i < c->pb->n_parameters; i++) {
        struct nr_str key = nr_str_from(c->pb->parameters[i]->key);
        if (!nr_str_starts(key, (struct nr_str){prefix, (size_t)len})) {
            continue;
        }
        key = (struct nr_str){key.ptr + len, key.len - (size_t)len};
        unsigned k = 0;
        while (k < KEY_COUNT && !((row->keys & BIT(k)) && nr_str_is(key, key_names[k]))) {
            k++;
        }
        if (k == KEY_COUNT) {
            return fail_key(row, key, err);
        }
        ret->value[k] = nr_str_trim(nr_str_from(c->pb->parameters[i]->value->string_value));
    }
    return NARU_OK;
}

static nr_status expected(struct nr_err *err, const char *key, struct nr_str value,
                          const char *what)
{
    return nr_fail(err, NARU_INVALID, "parameter %s, value \"" NR_STR_FMT "\": expected %s", key,
                   NR_STR_ARG(value), what);
}

/* The position of value in words, or -1. */
static int word_of(struct nr_str value, const char *const *words, int n)
{
    int i = 0;
    while (i < n && !nr_str_is(value, words[i])) {
        i++;
    }
    return i < n ? i : -1;
}

/* --- plans ------------------------------------------------------------------------------------ */

static void free_plan(void *plan)
{
    nr_image_plan_free(plan);
}

/* What a plan is made for: one picture tensor, and the other way round for `encode`. */
struct target {
    int32_t dtype;
    bool planar; /* channels in front */
    uint32_t channels;
    bool encode;
    const char *scale;
};

static nr_status make_plan(struct nr_model_config *c, const struct params *p,
                           const struct target *t, const struct nr_image_plan **ret,
                           struct nr_err *err)
{
    static const struct {
        unsigned key;
        struct nr_str name;
    } same[] = {{KEY_SIZE, NR_STR_INIT("naru.image.size")},
                {KEY_RESIZE, NR_STR_INIT("naru.image.resize")},
                {KEY_FIT, NR_STR_INIT("naru.image.fit")},
                {KEY_MEAN, NR_STR_INIT("naru.image.mean")},
                {KEY_STD, NR_STR_INIT("naru.image.std")},
                {KEY_INVERT, NR_STR_INIT("naru.image.invert")},
                {KEY_FORMAT, NR_STR_INIT("naru.output.format")}};
    struct nr_image_param params[NR_COUNT(same) + 4];
    size_t n = 0;
    for (size_t i = 0; i < NR_COUNT(same); i++) {
        if (p->value[same[i].key].ptr) {
            params[n++] = (struct nr_image_param){same[i].name, p->value[same[i].key]};
        }
    }
    struct nr_str scale = p->value[KEY_SCALE].ptr ? p->value[KEY_SCALE] : nr_str_from(t->scale);
    if (scale.len > 0) {
        params[n++] = (struct nr_image_param){
            t->encode ? NR_STR("naru.output.scale") : NR_STR("naru.image.scale"), scale};
    }
    params[n++] = (struct nr_image_param){NR_STR("naru.output"), NR_STR("image")};
    params[n++] = (struct nr_image_param){NR_STR("naru.image.layout"),
                                          t->planar ? NR_STR("NCHW") : NR_STR("NHWC")};
    params[n++] = (struct nr_image_param){NR_STR("naru.image.color"),
                                          t->channels == 1          ? NR_STR("GRAY")
                                          : p->value[KEY_COLOR].ptr ? p->value[KEY_COLOR]
                                                                    : NR_STR("RGB")};
    int64_t n_channels = t->channels;
    const int64_t dims[3] = {t->planar ? n_channels : -1, -1, t->planar ? -1 : n_channels};
    const struct nr_image_io io = {
        .name = NR_STR("PICTURE"), .dtype = t->dtype, .rank = 3, .dims = dims};
    const struct nr_image_signature sig = {
        .inputs = &io, .n_inputs = 1, .outputs = &io, .n_outputs = 1};
    struct nr_image_plan *plan = NULL;
    nr_status st = nr_image_plan_parse(params, n, &sig, &plan, err);
    if (st == NARU_OK) {
        nr_arena_defer(&c->arena, free_plan, plan);
        *ret = plan;
    }
    return st;
}

static nr_status make_decode(struct nr_model_config *c, const struct params *p,
                             struct nr_stepkind *k, struct nr_err *err)
{
    struct nr_str color = p->value[KEY_COLOR];
    if (color.ptr && !nr_str_is(color, "RGB") && !nr_str_is(color, "GRAY")) {
        return expected(err, "color", color, "RGB or GRAY");
    }
    struct target t = {.dtype = NARU_UINT8, .channels = nr_str_is(color, "GRAY") ? 1 : 3};
    return make_plan(c, p, &t, &k->plan, err);
}

static nr_status make_resize(struct nr_model_config *c, const struct params *p,
                             struct nr_stepkind *k, struct nr_err *err)
{
    if (!p->value[KEY_SIZE].ptr) {
        return nr_fail(err, NARU_INVALID,
                       "naru.image_resize needs parameter size, height and width as in 224x224");
    }
    struct target t = {.dtype = NARU_UINT8, .channels = 3};
    nr_status st = make_plan(c, p, &t, &k->plan, err);
    t.channels = 1;
    return st == NARU_OK ? make_plan(c, p, &t, &k->alt, err) : st;
}

static nr_status make_normalize(struct nr_model_config *c, const struct params *p,
                                struct nr_stepkind *k, struct nr_err *err)
{
    static const char *const layouts[] = {"NCHW", "NHWC"};
    struct nr_str dtype = p->value[KEY_DTYPE], layout = p->value[KEY_LAYOUT];
    struct target t = {.dtype = dtype.ptr ? nr_dtype_from_name(dtype) : NARU_FP32,
                       .planar = !layout.ptr || nr_str_is(layout, "NCHW"),
                       .channels = nr_str_is(p->value[KEY_COLOR], "GRAY") ? 1 : 3};
    if (t.dtype != NARU_FP32 && t.dtype != NARU_FP16 && t.dtype != NARU_BF16 &&
        t.dtype != NARU_UINT8 && t.dtype != NARU_INT8) {
        return expected(err, "dtype", dtype, "FP32, FP16, BF16, UINT8 or INT8");
    }
    if (layout.ptr && word_of(layout, layouts, 2) < 0) {
        return expected(err, "layout", layout, "NCHW or NHWC");
    }
    t.scale = t.dtype == NARU_UINT8 || t.dtype == NARU_INT8 ? "1" : "1/255";
    return make_plan(c, p, &t, &k->plan, err);
}

static nr_status make_encode(struct nr_model_config *c, const struct params *p,
                             struct nr_stepkind *k, struct nr_err *err)
{
    static const char *const layouts[] = {"NCHW", "NHWC"};
    struct nr_str layout = p->value[KEY_LAYOUT], quality = p->value[KEY_QUALITY];
    uint64_t q = 0;
    if (layout.ptr && word_of(layout, layouts, 2) < 0) {
        return expected(err, "layout", layout, "NCHW or NHWC");
    }
    if (quality.ptr && (!nr_str_to_u64(quality, &q) || q < 1 || q > 100)) {
        return expected(err, "quality", quality, "a whole number from 1 to 100");
    }
    struct target t = {
        .dtype = NARU_FP32, .planar = !nr_str_is(layout, "NHWC"), .channels = 3, .encode = true};
    nr_status st = make_plan(c, p, &t, &k->plan, err);
    if (st == NARU_OK) {
        t.dtype = NARU_UINT8;
        t.planar = nr_str_is(layout, "NCHW");
        st = make_plan(c, p, &t, &k->alt, err);
    }
    if (st == NARU_OK) {
        k->encode =
            (struct nr_image_encode_opts){.format = k->plan->output_format, .quality = (int)q};
    }
    return st;
}

/* --- conditions, parts ------------------------------------------------------------------------ */

static nr_status make_if(const struct params *p, struct nr_stepkind *k, struct nr_err *err)
{
    static const char *const signs[] = {
        [NR_STEP_NE] = "!=", [NR_STEP_EQ] = "==", [NR_STEP_GT] = ">",
        [NR_STEP_GE] = ">=", [NR_STEP_LT] = "<",  [NR_STEP_LE] = "<="};
    struct nr_str compare = p->value[KEY_COMPARE], value = p->value[KEY_VALUE];
    struct nr_str over = p->value[KEY_OVER];
    int sign = compare.ptr ? word_of(compare, signs, NR_COUNT(signs)) : NR_STEP_NE;
    if (sign < 0) {
        return expected(err, "compare", compare, "one of != == > >= < <=");
    }
    k->compare = (enum nr_step_compare)sign;
    if (value.ptr && !nr_str_to_double(value, &k->value)) {
        return expected(err, "value", value, "a number");
    }
    k->over_all = nr_str_is(over, "all");
    return !over.ptr || k->over_all || nr_str_is(over, "any")
               ? NARU_OK
               : expected(err, "over", over, "any or all");
}

static nr_status read_axis(const struct params *p, struct nr_stepkind *k, struct nr_err *err)
{
    uint64_t axis = 0;
    struct nr_str text = p->value[KEY_AXIS];
    if (text.ptr && (!nr_str_to_u64(text, &axis) || axis + k->batch >= NARU_MAX_RANK)) {
        return expected(err, "axis", text,
                        "the number of a dimension, from 0, the batch dimension not counted");
    }
    k->axis = (uint32_t)axis;
    return NARU_OK;
}

static nr_status make_split(struct nr_model_config *c, const struct params *p, uint32_t n_outputs,
                            struct nr_stepkind *k, struct nr_err *err)
{
    struct nr_str rest = p->value[KEY_SIZES];
    int64_t *sizes = nr_config_array(c, NR_STEP_MAX_PARTS, sizeof *sizes);
    unsigned open = 0;
    if (!sizes) {
        return nr_config_nomem(err);
    }
    k->n_parts = n_outputs;
    if (rest.ptr) {
        k->sizes = sizes;
        k->n_parts = 0;
    }
    while (rest.ptr) {
        struct nr_str one = nr_str_trim(nr_str_cut(rest, ',', &rest));
        int64_t *size = &sizes[k->n_parts++];
        if (!nr_str_to_i64(one, size) || *size == 0 || *size < -1 || *size > NR_DIM_MAX ||
            k->n_parts == NR_STEP_MAX_PARTS || (open += *size < 0) > 1) {
            return expected(err, "sizes", p->value[KEY_SIZES],
                            "numbers with commas between them, -1 at most once for what is left");
        }
    }
    return read_axis(p, k, err);
}

/* --- the kind --------------------------------------------------------------------------------- */

static const struct op_row *find_op(const char *name)
{
    for (size_t i = 0; i < NR_COUNT(ops); i++) {
        if (strcmp(ops[i].name, name) == 0) {
            return &ops[i];
        }
    }
    return NULL;
}

static nr_status fail_kind(const char *name, struct nr_err *err)
{
    struct nr_text t;
    char storage[256];
    nr_text_init_at(&t, storage, sizeof storage);
    for (size_t i = 0; i < NR_COUNT(ops); i++) {
        nr_text_fmt(&t, "%s%s", i > 0 ? ", " : "", ops[i].name);
    }
    return nr_fail(err, NARU_INVALID,
                   "\"%.100s\" is none of naru's own steps (names that begin with naru. are "
                   "kept for them): %s",
                   name, storage);
}

nr_status nr_stepkind_make(struct nr_model_config *c, uint32_t step, const char *name,
                           uint32_t n_inputs, uint32_t n_outputs, const struct nr_stepkind **ret,
                           struct nr_err *err)
{
    const struct op_row *row = find_op(name);
    struct params p;
    if (!row) {
        return fail_kind(name, err);
    }
    nr_status st = read_params(c, step, row, &p, err);
    struct nr_stepkind *k = nr_config_array(c, 1, sizeof *k);
    if (!k) {
        return nr_config_nomem(err);
    }
    k->op = (enum nr_step_op)(row - ops);
    k->name = row->name;
    k->batch = c->pb->max_batch_size > 0;
    if (n_inputs > NR_STEP_MAX_PARTS || n_outputs > NR_STEP_MAX_PARTS) {
        return nr_fail(err, NARU_INVALID, "%s takes at most %d parts", name, NR_STEP_MAX_PARTS);
    }
    if (st != NARU_OK) {
        return st;
    }
    switch (k->op) {
    case NR_STEP_DECODE:
        st = make_decode(c, &p, k, err);
        break;
    case NR_STEP_RESIZE:
        st = make_resize(c, &p, k, err);
        break;
    case NR_STEP_NORMALIZE:
        st = make_normalize(c, &p, k, err);
        break;
    case NR_STEP_ENCODE:
        st = make_encode(c, &p, k, err);
        break;
    case NR_STEP_IF:
        st = make_if(&p, k, err);
        break;
    case NR_STEP_SPLIT:
        st = make_split(c, &p, n_outputs, k, err);
        break;
    case NR_STEP_JOIN:
        k->n_parts = n_inputs;
        st = read_axis(&p, k, err);
        break;
    case NR_STEP_EITHER:
        break;
    }
    *ret = k;
    return st;
}

/* --- shapes ----------------------------------------------------------------------------------- */

static nr_status fail_spec(const struct nr_stepkind *k, const char *input,
                           const struct nr_step_spec *is, const char *wants, struct nr_err *err)
{
    return nr_fail(err, NARU_INVALID, "%s takes as %s %s, not %s %s", k->name, input, wants,
                   naru_dtype_name(is->dtype), SHAPE_TEXT(is->shape, is->rank));
}

/* Height, width and channels of pixels; the spec's shape behind the batch dimension. */
static nr_status check_pixels(const struct nr_stepkind *k, const struct nr_step_spec *in,
                              struct nr_err *err)
{
    const int64_t *dims = in->shape + k->batch;
    if (in->dtype != NARU_UINT8 || in->rank != 3 + k->batch || (dims[2] != 1 && dims[2] != 3)) {
        return fail_spec(
            k, "PIXELS", in,
            k->batch ? "UINT8 [rows,height,width,1 or 3]" : "UINT8 [height,width,1 or 3]", err);
    }
    return NARU_OK;
}

static void put_picture(const struct nr_stepkind *k, const struct nr_image_plan *plan,
                        const int64_t *dims, struct nr_step_spec *out)
{
    int64_t h = plan->height ? plan->height : dims[0], w = plan->width ? plan->width : dims[1];
    bool planar = plan->layout == NR_LAYOUT_NCHW;
    out->dtype = plan->dtype;
    out->rank = 3 + k->batch;
    int64_t *to = out->shape + k->batch;
    to[0] = planar ? plan->channels : h;
    to[1] = planar ? h : w;
    to[2] = planar ? w : plan->channels;
}

static nr_status infer_encode(const struct nr_stepkind *k, const struct nr_step_spec *in,
                              struct nr_step_spec *out, struct nr_err *err)
{
    bool whole = in->dtype == NARU_UINT8 || in->dtype == NARU_INT8;
    const struct nr_image_plan *plan = whole ? k->alt : k->plan;
    const int64_t *dims = in->shape + k->batch;
    bool planar = plan->layout == NR_LAYOUT_NCHW;
    if (!nr_element_is_number(in->dtype) || in->rank != 3 + k->batch ||
        (dims[planar ? 0 : 2] != 1 && dims[planar ? 0 : 2] != 3 && dims[planar ? 0 : 2] != -1)) {
        return fail_spec(k, "TENSOR", in,
                         planar ? "numbers [1 or 3,height,width] (parameter layout: NHWC for "
                                  "channels behind)"
                                : "numbers [height,width,1 or 3] (parameter layout: NCHW for "
                                  "channels in front)",
                         err);
    }
    out->dtype = NARU_BYTES;
    out->rank = 1 + k->batch;
    out->shape[k->batch] = 1;
    return NARU_OK;
}

static nr_status infer_decode(const struct nr_stepkind *k, const struct nr_step_spec *in,
                              struct nr_step_spec *out, struct nr_err *err)
{
    static const int64_t open[2] = {-1, -1};
    const int64_t *dims = in->shape + k->batch;
    if (in->dtype != NARU_BYTES || in->rank != 1 + k->batch || (dims[0] != 1 && dims[0] != -1)) {
        return fail_spec(k, "IMAGE", in, k->batch ? "BYTES [rows,1]" : "BYTES [1]", err);
    }
    put_picture(k, k->plan, open, out);
    return NARU_OK;
}

static nr_status infer_if(const struct nr_stepkind *k, const struct nr_step_spec *in,
                          struct nr_step_spec *out, struct nr_err *err)
{
    if (!nr_element_is_number(in[0].dtype)) {
        return fail_spec(k, "CONDITION", &in[0], "numbers or BOOL", err);
    }
    out[0] = out[1] = in[1];
    return NARU_OK;
}

static bool meet(const struct nr_step_spec *a, const struct nr_step_spec *b, uint32_t but)
{
    bool same = a->dtype == b->dtype && a->rank == b->rank;
    for (uint32_t i = 0; i < a->rank && same; i++) {
        same = i == but || a->shape[i] == b->shape[i] || a->shape[i] < 0 || b->shape[i] < 0;
    }
    return same;
}

static nr_status infer_either(const struct nr_stepkind *k, const struct nr_step_spec *in,
                              struct nr_step_spec *out, struct nr_err *err)
{
    if (!meet(&in[0], &in[1], NARU_MAX_RANK)) {
        return fail_spec(k, "SECOND", &in[1], "the datatype and shape of FIRST", err);
    }
    out[0] = in[0];
    for (uint32_t i = 0; i < in[0].rank; i++) {
        out[0].shape[i] = in[0].shape[i] == in[1].shape[i] ? in[0].shape[i] : -1;
    }
    return NARU_OK;
}

static nr_status check_axis(const struct nr_stepkind *k, const char *input,
                            const struct nr_step_spec *in, struct nr_err *err)
{
    if (naru_dtype_bytes(in->dtype) == 0) {
        return fail_spec(k, input, in, "elements of a fixed size", err);
    }
    if (k->axis + k->batch >= in->rank) {
        return nr_fail(err, NARU_INVALID,
                       "%s: axis %u does not exist in %s %s (the batch dimension is not counted)",
                       k->name, k->axis, input, SHAPE_TEXT(in->shape, in->rank));
    }
    return NARU_OK;
}

static nr_status infer_split(const struct nr_stepkind *k, const struct nr_step_spec *in,
                             struct nr_step_spec *out, struct nr_err *err)
{
    nr_status st = check_axis(k, "INPUT", in, err);
    if (st != NARU_OK) {
        return st;
    }
    uint32_t at = k->axis + k->batch;
    int64_t whole = in->shape[at], sum = 0;
    bool open = false;
    for (uint32_t i = 0; i < k->n_parts; i++) {
        out[i] = *in;
        int64_t size = k->sizes ? k->sizes[i] : whole < 0 ? -1 : whole / k->n_parts;
        open = open || size < 0;
        sum += NR_MAX(size, 1);
        out[i].shape[at] = size;
    }
    if (whole >= 0 && (open ? sum > whole : sum != whole)) {
        return nr_fail(err, NARU_INVALID,
                       "%s: dimension %u of INPUT %s cannot be split into %s%u parts", k->name,
                       k->axis, SHAPE_TEXT(in->shape, in->rank), k->sizes ? "these " : "",
                       k->n_parts);
    }
    for (uint32_t i = 0; whole >= 0 && open && i < k->n_parts; i++) {
        int64_t *size = &out[i].shape[at];
        *size = *size < 0 ? whole - (sum - 1) : *size;
    }
    return NARU_OK;
}

static nr_status infer_join(const struct nr_stepkind *k, const struct nr_step_spec *in,
                            struct nr_step_spec *out, struct nr_err *err)
{
    uint32_t at = k->axis + k->batch;
    int64_t sum = 0;
    for (uint32_t i = 0; i < k->n_parts; i++) {
        char name[16];
        (void)snprintf(name, sizeof name, "INPUT%u", i);
        nr_status st = check_axis(k, name, &in[i], err);
        if (st != NARU_OK) {
            return st;
        }
        if (!meet(&in[0], &in[i], at)) {
            return fail_spec(k, name, &in[i],
                             "the datatype and shape of INPUT0 but for the joined dimension", err);
        }
        sum = sum < 0 || in[i].shape[at] < 0 ? -1 : sum + in[i].shape[at];
    }
    out[0] = in[0];
    out[0].shape[at] = sum;
    return NARU_OK;
}

nr_status nr_stepkind_infer(const struct nr_stepkind *k, const struct nr_step_spec *in,
                            struct nr_step_spec *out, struct nr_err *err)
{
    nr_status st = NARU_OK;
    out[0] = (struct nr_step_spec){.shape = {-1}};
    switch (k->op) {
    case NR_STEP_DECODE:
        return infer_decode(k, in, out, err);
    case NR_STEP_RESIZE:
    case NR_STEP_NORMALIZE:
        st = check_pixels(k, in, err);
        if (st == NARU_OK) {
            bool gray = k->op == NR_STEP_RESIZE && in->shape[k->batch + 2] == 1;
            put_picture(k, gray ? k->alt : k->plan, in->shape + k->batch, out);
        }
        return st;
    case NR_STEP_ENCODE:
        return infer_encode(k, in, out, err);
    case NR_STEP_IF:
        return infer_if(k, in, out, err);
    case NR_STEP_EITHER:
        return infer_either(k, in, out, err);
    case NR_STEP_SPLIT:
        return infer_split(k, in, out, err);
    case NR_STEP_JOIN:
        return infer_join(k, in, out, err);
    }
    return st;
}
