/* Inference requests as JSON, JSON with a binary part, or raw bytes: see infer_json.h.
 *
 * Keys may come in any order. `data` is read where it stands when name, datatype and shape came
 * before it (every client we know); otherwise it is skipped, checked, and read at the end of its
 * object. Tensors of the binary part are views, not copies.
 *
 * Invariants
 *  1. Every byte of JSON is scanned at most three times (BYTES, skipped first), so time is linear.
 *  2. The binary part is consumed exactly: sizes are checked against what is left, and nothing may
 *     remain.
 *  3. Duplicate keys are refused in every object that has a meaning.
 * One thread at a time.
 */
#include "codec/infer_json.h"

#include <inttypes.h>

#include "codec/float.h"
#include "codec/infer_build.h"
#include "codec/json_scan.h"
#include "codec/tensor.h"
#include "codec/tensor_json.h"

struct decoder {
    struct nr_json j;
    struct nr_infer_build b;
    const uint8_t *binary; /* what is left of the binary part */
    size_t binary_bytes;
};

/* One element of `inputs` while it is read. */
struct input {
    struct nr_str name, datatype;
    bool has_name, has_datatype, has_shape, has_data, has_binary;
    uint32_t rank;
    int64_t shape[NARU_MAX_RANK];
    uint64_t binary_bytes;
    const char *data; /* where data begins when it could not be read yet */
    struct nr_infer_tensor *tensor;
};

nr_status nr_infer_header_length(struct nr_str value, size_t body_bytes, size_t *ret,
                                 struct nr_err *err)
{
    uint64_t n;
    if (!nr_str_to_u64(nr_str_trim(value), &n) || n > body_bytes) {
        return nr_fail(err, NARU_INVALID,
                       "Inference-Header-Content-Length is '" NR_STR_FMT
                       "', expected the length of the JSON part: 0 to %zu, the length of the body",
                       NR_STR_ARG(value), body_bytes);
    }
    *ret = (size_t)n;
    return NARU_OK;
}

/* A parameter's value: string, integer, number or bool. */
static nr_status read_param(struct nr_json *j, struct nr_infer_param *p)
{
    char c = nr_json_peek(j);
    if (c == '"') {
        p->kind = NR_PARAM_STRING;
        return nr_json_string(j, &p->s);
    }
    if (c == 't' || c == 'f') {
        p->kind = NR_PARAM_BOOL;
        return nr_json_bool(j, &p->b);
    }
    if (c != '-' && !(c >= '0' && c <= '9')) {
        return nr_json_fail(j, "a string, a number, true or false");
    }
    bool negative;
    uint64_t magnitude;
    const char *at = j->p;
    if (nr_integer_scan(&at, j->end, &negative, &magnitude) == NR_SCAN_OK &&
        (!negative || magnitude <= (uint64_t)INT64_MAX + 1)) {
        p->kind = magnitude > INT64_MAX && !negative ? NR_PARAM_UINT : NR_PARAM_INT;
        p->i = (int64_t)(negative ? 0 - magnitude : magnitude);
        j->p = at;
        return NARU_OK;
    }
    p->kind = NR_PARAM_DOUBLE;
    return nr_json_double(j, &p->d);
}

static nr_status read_request_params(struct decoder *d)
{
    nr_uninit struct nr_json_members m;
    struct nr_infer_param p = {.name = {NULL, 0}};
    nr_status st = nr_json_members_begin(&m, &d->j);
    while (nr_json_members_next(&m, &d->j, &st)) {
        p.name = m.key;
        st = read_param(&d->j, &p);
        st = st == NARU_OK ? nr_infer_build_param(&d->b, &p) : st;
    }
    return st;
}

/* Parameters of an input; those without a meaning are checked and ignored, as Triton does. */
static nr_status read_input_params(struct decoder *d, struct input *in)
{
    nr_uninit struct nr_json_members m;
    nr_status st = nr_json_members_begin(&m, &d->j);
    while (nr_json_members_next(&m, &d->j, &st)) {
        if (nr_str_is(m.key, "binary_data_size")) {
            in->has_binary = true;
            st = nr_json_u64(&d->j, &in->binary_bytes);
        } else if (nr_str_starts(m.key, NR_STR("shared_memory_"))) {
            st = nr_infer_no_shared_memory(&d->b, in->name);
        } else {
            st = nr_json_skip(&d->j, NULL);
        }
    }
    return st;
}

static nr_status read_shape(struct decoder *d, struct input *in)
{
    bool more = false;
    nr_status st = nr_json_array(&d->j);
    in->rank = 0;
    in->has_shape = true;
    while (st == NARU_OK && (st = nr_json_element(&d->j, &more)) == NARU_OK && more) {
        if (in->rank == NARU_MAX_RANK) {
            return nr_json_fail(&d->j, "a shape of at most 16 dimensions");
        }
        int64_t dim = -1;
        nr_json_space(&d->j);
        const char *at = d->j.p;
        st = nr_json_i64(&d->j, &dim);
        if (st != NARU_OK || dim < 0 || dim > NR_DIM_MAX) {
            return nr_json_fail_at(&d->j, at, "a dimension from 0 to 2147483647");
        }
        in->shape[in->rank++] = dim;
    }
    return st;
}

/* Name, datatype and shape are there: finds the tensor. */
static nr_status open_tensor(struct decoder *d, struct input *in)
{
    if (in->tensor != NULL) {
        return NARU_OK;
    }
    const char *missing = !in->has_name       ? "name"
                          : !in->has_shape    ? "shape"
                          : !in->has_datatype ? "datatype"
                                              : NULL;
    if (missing != NULL) {
        return nr_fail(d->b.err, NARU_INVALID, "input %u ('" NR_STR_FMT "') has no \"%s\"",
                       d->b.n_given, NR_STR_ARG(in->name), missing);
    }
    return nr_infer_build_input(&d->b, in->name, in->datatype, in->shape, in->rank, &in->tensor);
}

static nr_status read_data(struct decoder *d, struct input *in)
{
    in->has_data = true;
    if (!in->has_name || !in->has_shape || !in->has_datatype) {
        nr_json_space(&d->j);
        in->data = d->j.p;
        return nr_json_skip(&d->j, NULL);
    }
    nr_status st = open_tensor(d, in);
    return st == NARU_OK ? nr_tensor_json_read(&d->j, &d->b, in->tensor) : st;
}

/* The object is complete: data that was put off, or the binary part. */
static nr_status close_input(struct decoder *d, struct input *in)
{
    nr_status st = open_tensor(d, in);
    if (st != NARU_OK) {
        return st;
    }
    char label[128];
    if (in->has_data == in->has_binary) {
        return nr_fail(d->b.err, NARU_INVALID,
                       in->has_data ? "%s has both \"data\" and binary_data_size, expected one"
                                    : "%s has neither \"data\" nor the parameter binary_data_size",
                       nr_infer_input_label(&d->b, in->tensor, label));
    }
    if (in->has_binary) {
        if (in->binary_bytes > d->binary_bytes) {
            return nr_fail(d->b.err, NARU_INVALID,
                           "%s: binary_data_size is %" PRIu64
                           ", but %zu bytes are left behind the JSON part (its length must be "
                           "stated in Inference-Header-Content-Length)",
                           nr_infer_input_label(&d->b, in->tensor, label), in->binary_bytes,
                           d->binary_bytes);
        }
        size_t bytes = (size_t)in->binary_bytes;
        const uint8_t *data = d->binary;
        d->binary += bytes;
        d->binary_bytes -= bytes;
        return nr_infer_build_view(&d->b, in->tensor, data, bytes);
    }
    if (in->data != NULL) {
        struct nr_json put_off = d->j;
        put_off.p = in->data;
        return nr_tensor_json_read(&put_off, &d->b, in->tensor);
    }
    return NARU_OK;
}

static nr_status read_input(struct decoder *d)
{
    nr_uninit struct input in;
    memset(&in, 0, offsetof(struct input, shape)); /* the shape is filled up to its rank */
    in.binary_bytes = 0;
    in.data = NULL;
    in.tensor = NULL;
    nr_uninit struct nr_json_members m;
    nr_status st = nr_json_members_begin(&m, &d->j);
    while (nr_json_members_next(&m, &d->j, &st)) {
        if (nr_str_is(m.key, "name")) {
            in.has_name = true;
            st = nr_json_string(&d->j, &in.name);
        } else if (nr_str_is(m.key, "shape")) {
            st = read_shape(d, &in);
        } else if (nr_str_is(m.key, "datatype")) {
            in.has_datatype = true;
            st = nr_json_string(&d->j, &in.datatype);
        } else if (nr_str_is(m.key, "data")) {
            st = read_data(d, &in);
        } else if (nr_str_is(m.key, "parameters")) {
            st = read_input_params(d, &in);
        } else {
            st = nr_json_skip(&d->j, NULL);
        }
    }
    return st == NARU_OK ? close_input(d, &in) : st;
}

static nr_status read_output_params(struct decoder *d, struct nr_output_choice *o,
                                    struct nr_str name)
{
    nr_uninit struct nr_json_members m;
    nr_status st = nr_json_members_begin(&m, &d->j);
    while (nr_json_members_next(&m, &d->j, &st)) {
        if (nr_str_is(m.key, "binary_data")) {
            bool yes = false;
            st = nr_json_bool(&d->j, &yes);
            o->binary = yes;
        } else if (nr_str_is(m.key, "classification")) {
            uint64_t n = 0;
            st = nr_json_u64(&d->j, &n);
            st = st == NARU_OK ? nr_infer_build_classes(&d->b, o, name, n) : st;
        } else if (nr_str_starts(m.key, NR_STR("shared_memory_"))) {
            st = nr_infer_no_shared_memory(&d->b, name);
        } else {
            st = nr_json_skip(&d->j, NULL);
        }
    }
    return st;
}

static nr_status read_output(struct decoder *d)
{
    nr_uninit struct nr_json_members m;
    struct nr_str name = {NULL, 0};
    struct nr_output_choice choice = {.binary = -1};
    nr_status st = nr_json_members_begin(&m, &d->j);
    while (nr_json_members_next(&m, &d->j, &st)) {
        if (nr_str_is(m.key, "name")) {
            st = nr_json_string(&d->j, &name);
        } else if (nr_str_is(m.key, "parameters")) {
            st = read_output_params(d, &choice, name);
        } else {
            st = nr_json_skip(&d->j, NULL);
        }
    }
    if (st == NARU_OK && name.ptr == NULL) {
        st = nr_fail(d->b.err, NARU_INVALID, "output %u has no \"name\"", d->b.req->n_outputs);
    }
    struct nr_output_choice *o = NULL;
    st = st == NARU_OK ? nr_infer_build_output(&d->b, name, &o) : st;
    if (st == NARU_OK) {
        choice.given = true;
        *o = choice;
    }
    return st;
}

static nr_status read_list(struct decoder *d, nr_status (*read)(struct decoder *))
{
    bool more = false;
    nr_status st = nr_json_array(&d->j);
    while (st == NARU_OK && (st = nr_json_element(&d->j, &more)) == NARU_OK && more) {
        st = read(d);
    }
    return st;
}

static nr_status read_request(struct decoder *d)
{
    struct nr_infer_request *req = d->b.req;
    nr_uninit struct nr_json_members m;
    bool has_inputs = false;
    nr_status st = nr_json_members_begin(&m, &d->j);
    while (nr_json_members_next(&m, &d->j, &st)) {
        if (nr_str_is(m.key, "inputs")) {
            has_inputs = true;
            st = read_list(d, read_input);
        } else if (nr_str_is(m.key, "outputs")) {
            st = read_list(d, read_output);
        } else if (nr_str_is(m.key, "id")) {
            req->has_id = true;
            st = nr_json_string(&d->j, &req->id);
        } else if (nr_str_is(m.key, "parameters")) {
            st = read_request_params(d);
        } else {
            st = nr_json_skip(&d->j, NULL);
        }
    }
    st = st == NARU_OK ? nr_json_done(&d->j) : st;
    if (st == NARU_OK && !has_inputs) {
        st = nr_fail(d->b.err, NARU_INVALID, "the request has no \"inputs\"");
    }
    return st;
}

nr_status nr_infer_json_decode(const struct nr_signature *sig, const struct nr_infer_parts *parts,
                               struct nr_arena *arena, struct nr_infer_request *ret,
                               struct nr_err *err)
{
    nr_uninit struct decoder d;
    nr_uninit struct nr_infer_request req;
    nr_status st = nr_infer_build_init(&d.b, sig, arena, parts->owner, &req, err);
    if (st != NARU_OK) {
        return st;
    }
    d.b.in_room = parts->in_room;
    nr_json_init(&d.j, parts->json, arena, err);
    d.binary = (const uint8_t *)parts->binary.ptr;
    d.binary_bytes = parts->binary.len;
    st = read_request(&d);
    if (st == NARU_OK && d.binary_bytes > 0) {
        st = nr_fail(err, NARU_INVALID, "%zu bytes are left behind the data of the inputs",
                     d.binary_bytes);
    }
    st = st == NARU_OK ? nr_infer_build_done(&d.b, false) : st;
    if (st == NARU_OK) {
        *ret = req;
    }
    return st;
}

bool nr_infer_json_id(struct nr_str json, struct nr_arena *arena, struct nr_str *ret)
{
    struct nr_json j;
    struct nr_err err;
    struct nr_str key;
    bool more = false;
    nr_json_init(&j, json, arena, &err);
    nr_status st = nr_json_object(&j);
    while (st == NARU_OK && (st = nr_json_member(&j, &more, &key)) == NARU_OK && more) {
        if (nr_str_is(key, "id")) {
            return nr_json_string(&j, ret) == NARU_OK;
        }
        st = nr_json_skip(&j, NULL);
    }
    return false;
}

/* The shape of a raw body: 1 for the batch, the configured dimensions, and what the size says for
 * one that varies. */
static nr_status raw_shape(const struct nr_io_spec *spec, size_t bytes, int64_t *shape,
                           struct nr_err *err)
{
    int64_t known = 1;
    int varies = -1;
    for (uint32_t i = 0; i < spec->rank; i++) {
        bool batch = i == 0 && spec->batched;
        shape[i] = batch ? 1 : spec->shape[i];
        if (shape[i] < 0 && varies >= 0) {
            return nr_fail(err, NARU_INVALID,
                           "a raw body cannot be used for input '" NR_STR_FMT
                           "': more than one of its dimensions varies",
                           NR_STR_ARG(spec->name));
        }
        if (shape[i] < 0) {
            varies = (int)i;
        } else if (__builtin_mul_overflow(known, shape[i], &known)) {
            return nr_fail(err, NARU_INVALID, "input '" NR_STR_FMT "': its shape is too large",
                           NR_STR_ARG(spec->name));
        }
    }
    if (spec->dtype == NARU_BYTES) {
        if (varies >= 0) {
            shape[varies] = 1;
        }
        if (known != 1) {
            return nr_fail(err, NARU_INVALID,
                           "a raw body for BYTES input '" NR_STR_FMT
                           "' is one element, but its shape has more",
                           NR_STR_ARG(spec->name));
        }
        return NARU_OK;
    }
    int64_t row;
    if (__builtin_mul_overflow(known, (int64_t)naru_dtype_bytes(spec->dtype), &row)) {
        return nr_fail(err, NARU_INVALID, "input '" NR_STR_FMT "': its shape is too large",
                       NR_STR_ARG(spec->name));
    }
    if (varies >= 0) { /* a size that does not divide is refused by the check of the view */
        shape[varies] = row > 0 ? (int64_t)bytes / row : 0;
    }
    return NARU_OK;
}

nr_status nr_infer_raw_decode(const struct nr_signature *sig, const struct nr_infer_parts *parts,
                              struct nr_arena *arena, struct nr_infer_request *ret,
                              struct nr_err *err)
{
    struct nr_infer_build b;
    struct nr_infer_request req;
    const struct nr_str body = parts->binary;
    if (sig->n_inputs != 1) {
        return nr_fail(err, NARU_INVALID,
                       "a raw binary body is for models with one input, this one has %u; send JSON "
                       "with Inference-Header-Content-Length instead",
                       sig->n_inputs);
    }
    const struct nr_io_spec *spec = &sig->inputs[0];
    int64_t shape[NARU_MAX_RANK];
    struct nr_infer_tensor *t = NULL;
    nr_status st = nr_infer_build_init(&b, sig, arena, parts->owner, &req, err);
    b.in_room = parts->in_room;
    st = st == NARU_OK ? raw_shape(spec, body.len, shape, err) : st;
    st = st == NARU_OK
             ? nr_infer_build_input(&b, spec->name, nr_str_from(naru_dtype_name(spec->dtype)),
                                    shape, spec->rank, &t)
             : st;
    if (st != NARU_OK) {
        return st;
    }
    if (spec->dtype != NARU_BYTES) {
        st = nr_infer_build_view(&b, t, (const uint8_t *)body.ptr, body.len);
    } else if (body.len > UINT32_MAX) {
        st = nr_fail(err, NARU_INVALID,
                     "a BYTES element holds less than 4 GiB, the body has %zu bytes", body.len);
    } else { /* the one copy: an element begins with its length */
        uint8_t *data = NULL;
        uint32_t len = (uint32_t)body.len;
        st = nr_infer_build_alloc(&b, t, sizeof(len) + body.len, &data);
        if (st == NARU_OK) {
            memcpy(data, &len, sizeof(len));
            memcpy(data + sizeof(len), body.ptr ? body.ptr : "", body.len);
        }
    }
    st = st == NARU_OK ? nr_infer_build_done(&b, true) : st;
    if (st == NARU_OK) {
        *ret = req;
    }
    return st;
}
