/* The protocol-neutral half of decoding an inference: see infer_build.h.
 *
 * Invariants
 *  1. A slot with a datatype has a shape that fits the signature and a correct element count; its
 *     data is set before nr_infer_build_done, or that refuses the request.
 *  2. Texts name the input, what came and what the model expects.
 *  3. Memory for tensor data is asked for by the caller only after it has seen that the data is
 *     there; a shape alone allocates nothing.
 * One thread at a time.
 */
#include "codec/infer_build.h"

#include <inttypes.h>
#include <stdio.h>

#include "base/buf.h"
#include "base/mem.h"
#include "codec/tensor.h"

#define SEQUENCE_NAME_MAX 128
#define PARAMS_MAX 1024

nr_status nr_infer_build_init(struct nr_infer_build *b, const struct nr_signature *sig,
                              struct nr_arena *arena, struct nr_buf *owner,
                              struct nr_infer_request *req, struct nr_err *err)
{
    *b =
        (struct nr_infer_build){.sig = sig, .arena = arena, .owner = owner, .err = err, .req = req};
    *req = (struct nr_infer_request){.rows = 1};
    /* Not zeroed: shapes make a slot large, and only those that come are filled. */
    size_t bytes;
    b->slots =
        nr_mul(sig->n_inputs, sizeof(*b->slots), &bytes) ? nr_arena_try_alloc(arena, bytes) : NULL;
    if (b->slots == NULL) {
        return nr_fail(err, NARU_NOMEM, "no memory for %u inputs", sig->n_inputs);
    }
    for (unsigned i = 0; i < sig->n_inputs; i++) {
        b->slots[i].dtype = NARU_DTYPE_NONE;
    }
    return NARU_OK;
}

const char *nr_infer_input_label(const struct nr_infer_build *b, const struct nr_infer_tensor *t,
                                 char text[128])
{
    snprintf(text, 128, "input '%.*s'", (int)NR_MIN(b->sig->inputs[t->index].name.len, 100),
             b->sig->inputs[t->index].name.ptr);
    return text;
}

/* "'A', 'B', 'C'": the names of a signature, cut when there are many. `absent` picks those of the
 * required inputs that did not come. */
static const char *list_names(const struct nr_infer_build *b, bool inputs, bool absent,
                              char text[256])
{
    const struct nr_io_spec *io = inputs ? b->sig->inputs : b->sig->outputs;
    unsigned n = inputs ? b->sig->n_inputs : b->sig->n_outputs;
    size_t at = 0;
    text[0] = '\0';
    for (unsigned i = 0; i < n; i++) {
        if (absent && (io[i].optional || b->slots[i].dtype != NARU_DTYPE_NONE)) {
            continue;
        }
        if (at > 180) {
            snprintf(text + at, 256 - at, ", …");
            break;
        }
        int len = snprintf(text + at, 256 - at, "%s'%.*s'", at ? ", " : "",
                           (int)NR_MIN(io[i].name.len, 60), io[i].name.ptr);
        at += len > 0 ? (size_t)len : 0;
    }
    return text;
}

/* Index of name in io[n], or n. `hint` is where it should be when clients keep the order. */
static unsigned find_name(const struct nr_io_spec *io, unsigned n, unsigned hint,
                          struct nr_str name)
{
    if (hint < n && nr_str_eq(io[hint].name, name)) {
        return hint;
    }
    unsigned i = 0;
    while (i < n && !nr_str_eq(io[i].name, name)) {
        i++;
    }
    return i;
}

static nr_status fail_shape(struct nr_infer_build *b, const struct nr_io_spec *spec,
                            const int64_t *shape, uint32_t rank)
{
    char got[NR_SHAPE_TEXT_MAX];
    char want[NR_SHAPE_TEXT_MAX];
    return nr_fail(b->err, NARU_INVALID,
                   "input '" NR_STR_FMT "': unexpected shape %s, the model expects %s%s",
                   NR_STR_ARG(spec->name), nr_shape_text(shape, rank, got, sizeof(got)),
                   nr_shape_text(spec->shape, spec->rank, want, sizeof(want)),
                   spec->batched && rank + 1 == spec->rank
                       ? " (the first dimension is the batch, also for a single row)"
                       : "");
}

static nr_status check_shape(struct nr_infer_build *b, const struct nr_io_spec *spec,
                             struct nr_infer_tensor *t)
{
    if (t->rank != spec->rank) {
        return fail_shape(b, spec, t->shape, t->rank);
    }
    for (uint32_t i = spec->batched; i < t->rank; i++) {
        if (t->shape[i] < 0 || t->shape[i] > NR_DIM_MAX ||
            (spec->shape[i] >= 0 && spec->shape[i] != t->shape[i])) {
            return fail_shape(b, spec, t->shape, t->rank);
        }
    }
    if (spec->batched && (t->shape[0] < 1 || t->shape[0] > b->sig->max_batch_size)) {
        return nr_fail(b->err, NARU_INVALID,
                       "input '" NR_STR_FMT "': a batch of %" PRId64
                       " rows, the model takes 1 to %" PRId64,
                       NR_STR_ARG(spec->name), t->shape[0], b->sig->max_batch_size);
    }
    int64_t bytes; /* checked here so that no later product can overflow */
    if (!nr_tensor_elements(t->shape, t->rank, &t->elements) ||
        !nr_tensor_bytes(t->dtype, t->shape, t->rank, &bytes)) {
        char got[NR_SHAPE_TEXT_MAX];
        return nr_fail(b->err, NARU_INVALID, "input '" NR_STR_FMT "': shape %s is too large",
                       NR_STR_ARG(spec->name), nr_shape_text(t->shape, t->rank, got, sizeof(got)));
    }
    return NARU_OK;
}

nr_status nr_infer_build_input(struct nr_infer_build *b, struct nr_str name, struct nr_str datatype,
                               const int64_t *shape, uint32_t rank, struct nr_infer_tensor **ret)
{
    const struct nr_signature *sig = b->sig;
    unsigned index = find_name(sig->inputs, sig->n_inputs, b->n_given, name);
    if (index == sig->n_inputs) {
        char text[256];
        return nr_fail(b->err, NARU_INVALID,
                       "unexpected input '" NR_STR_FMT "', the model's inputs are %s",
                       NR_STR_ARG(name), list_names(b, true, false, text));
    }
    struct nr_infer_tensor *t = &b->slots[index];
    const struct nr_io_spec *spec = &sig->inputs[index];
    if (t->dtype != NARU_DTYPE_NONE) {
        return nr_fail(b->err, NARU_INVALID, "input '" NR_STR_FMT "' was given twice",
                       NR_STR_ARG(name));
    }
    int32_t dtype = nr_dtype_from_name(datatype);
    if (dtype != spec->dtype) {
        return nr_fail(b->err, NARU_INVALID,
                       "input '" NR_STR_FMT "': %s '" NR_STR_FMT "', the model expects '%s'",
                       NR_STR_ARG(name), dtype ? "datatype" : "unknown datatype",
                       NR_STR_ARG(datatype), naru_dtype_name(spec->dtype));
    }
    if (rank > NARU_MAX_RANK) {
        return nr_fail(b->err, NARU_INVALID,
                       "input '" NR_STR_FMT "': a shape of %u dimensions, the limit is %d",
                       NR_STR_ARG(name), rank, NARU_MAX_RANK);
    }
    t->index = index;
    t->dtype = dtype;
    t->rank = rank;
    t->data = NULL;
    t->bytes = 0;
    t->buf = NULL;
    memcpy(t->shape, shape, rank * sizeof(*shape));
    b->n_given++;
    *ret = t;
    return check_shape(b, spec, t);
}

uint8_t *nr_infer_take(struct nr_arena *arena, size_t bytes, struct nr_buf **ret)
{
    *ret = NULL;
    if (bytes <= NR_TENSOR_ARENA_MAX) {
        return nr_arena_try_alloc(arena, bytes);
    }
    struct nr_buf *buf = nr_buf_try_new(bytes);
    if (buf == NULL) {
        return NULL;
    }
    nr_arena_link(arena, buf);
    *ret = buf;
    return nr_buf_data(buf);
}

/* Memory beside that of the other requests of its batch. NULL: the version has none for it. */
static uint8_t *take_room(struct nr_infer_build *b, struct nr_infer_tensor *t, size_t bytes)
{
    const struct nr_input_room *room = b->sig->room;
    struct nr_buf *buf = room != NULL ? room->take(room->arg, t->index, bytes) : NULL;
    if (buf == NULL) {
        return NULL;
    }
    nr_arena_link(b->arena, buf);
    t->buf = buf;
    return nr_buf_data(buf);
}

nr_status nr_infer_build_alloc(struct nr_infer_build *b, struct nr_infer_tensor *t, size_t bytes,
                               uint8_t **ret)
{
    uint8_t *data = take_room(b, t, bytes);
    if (data == NULL) {
        data = nr_infer_take(b->arena, bytes, &t->buf);
    }
    if (data == NULL) {
        char label[128];
        return nr_fail(b->err, NARU_NOMEM, "%s: no memory for %zu bytes",
                       nr_infer_input_label(b, t, label), bytes);
    }
    t->data = data;
    t->bytes = bytes;
    *ret = data;
    return NARU_OK;
}

/* Backends may read a BOOL as a C bool, for which only 0 and 1 are values. */
static nr_status normalise_bool(struct nr_infer_build *b, struct nr_infer_tensor *t)
{
    uint8_t seen = 0;
    for (size_t i = 0; i < t->bytes; i++) {
        seen |= t->data[i];
    }
    if (seen <= 1) {
        return NARU_OK;
    }
    const uint8_t *from = t->data;
    uint8_t *to;
    nr_status st = nr_infer_build_alloc(b, t, t->bytes, &to);
    for (size_t i = 0; st == NARU_OK && i < t->bytes; i++) {
        to[i] = from[i] != 0;
    }
    return st;
}

nr_status nr_infer_build_view(struct nr_infer_build *b, struct nr_infer_tensor *t,
                              const uint8_t *data, size_t bytes)
{
    char label[128];
    t->data = data ? data : (const uint8_t *)"";
    t->bytes = bytes;
    t->buf = b->owner;
    if (t->dtype == NARU_BYTES) {
        return nr_tensor_bytes_check(t->data, bytes, t->elements, nr_infer_input_label(b, t, label),
                                     b->err);
    }
    uint64_t expected = (uint64_t)t->elements * naru_dtype_bytes(t->dtype);
    if (expected != bytes) {
        char shape[NR_SHAPE_TEXT_MAX];
        return nr_fail(b->err, NARU_INVALID,
                       "%s: shape %s of %s takes %" PRIu64 " bytes, but %zu were sent",
                       nr_infer_input_label(b, t, label),
                       nr_shape_text(t->shape, t->rank, shape, sizeof(shape)),
                       naru_dtype_name(t->dtype), expected, bytes);
    }
    if (b->sig->room != NULL && b->sig->room->eager && !b->in_room) {
        uint8_t *to = take_room(b, t, bytes);
        t->data = to != NULL ? memcpy(to, t->data, bytes) : t->data;
    }
    return t->dtype == NARU_BOOL ? normalise_bool(b, t) : NARU_OK;
}

/* ---------------------------------------------------------------------------------------------
 * Parameters
 */

static bool param_u64(const struct nr_infer_param *p, uint64_t *ret)
{
    if (p->kind == NR_PARAM_UINT || (p->kind == NR_PARAM_INT && p->i >= 0)) {
        *ret = (uint64_t)p->i;
        return true;
    }
    return false;
}

static bool param_bool(const struct nr_infer_param *p, bool *ret)
{
    if (p->kind == NR_PARAM_BOOL) {
        *ret = p->b;
        return true;
    }
    return false;
}

static nr_status fail_param(struct nr_infer_build *b, struct nr_str name, const char *expected)
{
    return nr_fail(b->err, NARU_INVALID, "parameter '" NR_STR_FMT "' must be %s", NR_STR_ARG(name),
                   expected);
}

static nr_status param_sequence_id(struct nr_infer_build *b, const struct nr_infer_param *p)
{
    if (p->kind == NR_PARAM_STRING) {
        if (p->s.len > SEQUENCE_NAME_MAX) {
            return fail_param(b, p->name, "a string of at most 128 bytes or an unsigned integer");
        }
        b->req->sequence_name = p->s;
        return NARU_OK;
    }
    return param_u64(p, &b->req->sequence_id)
               ? NARU_OK
               : fail_param(b, p->name, "an unsigned integer or a string");
}

static nr_status param_keep(struct nr_infer_build *b, const struct nr_infer_param *p)
{
    struct nr_infer_request *req = b->req;
    for (unsigned i = 0; b->is_grpc && i < req->n_params; i++) {
        if (nr_str_eq(req->params[i].name, p->name)) { /* a protobuf map: the last one counts */
            req->params[i] = *p;
            return NARU_OK;
        }
    }
    if (req->n_params == PARAMS_MAX) {
        return nr_fail(b->err, NARU_INVALID, "more than %d parameters, which is the limit",
                       PARAMS_MAX);
    }
    if (req->n_params == b->params_capacity) {
        unsigned capacity = b->params_capacity ? 2 * b->params_capacity : 8;
        struct nr_infer_param *params = nr_arena_try_array(b->arena, capacity, sizeof(*params));
        if (params == NULL) {
            return nr_fail(b->err, NARU_NOMEM, "no memory for %u parameters", capacity);
        }
        if (req->n_params > 0) {
            memcpy(params, req->params, req->n_params * sizeof(*params));
        }
        req->params = params;
        b->params_capacity = capacity;
    }
    req->params[req->n_params++] = *p;
    return NARU_OK;
}

nr_status nr_infer_build_param(struct nr_infer_build *b, const struct nr_infer_param *p)
{
    static const char unsigned_text[] = "an integer from 0 to 18446744073709551615";
    static const char bool_text[] = "true or false";
    struct nr_infer_request *req = b->req;
    if (nr_str_is(p->name, "sequence_id")) {
        return param_sequence_id(b, p);
    }
    if (nr_str_is(p->name, "sequence_start")) {
        return param_bool(p, &req->sequence_start) ? NARU_OK : fail_param(b, p->name, bool_text);
    }
    if (nr_str_is(p->name, "sequence_end")) {
        return param_bool(p, &req->sequence_end) ? NARU_OK : fail_param(b, p->name, bool_text);
    }
    if (nr_str_is(p->name, "priority")) {
        return param_u64(p, &req->priority) ? NARU_OK : fail_param(b, p->name, unsigned_text);
    }
    if (nr_str_is(p->name, "timeout")) {
        return param_u64(p, &req->timeout_us) ? NARU_OK : fail_param(b, p->name, unsigned_text);
    }
    if (nr_str_is(p->name, "binary_data_output")) {
        return param_bool(p, &req->binary_default) ? NARU_OK : fail_param(b, p->name, bool_text);
    }
    if (nr_str_starts(p->name, NR_STR("triton_")) &&
        !(b->is_grpc && nr_str_is(p->name, "triton_enable_empty_final_response"))) {
        return nr_fail(b->err, NARU_INVALID,
                       "parameter '" NR_STR_FMT "': names that begin with 'triton_' are reserved",
                       NR_STR_ARG(p->name));
    }
    return param_keep(b, p);
}

/* ---------------------------------------------------------------------------------------------
 * Outputs and the end
 */

nr_status nr_infer_build_output(struct nr_infer_build *b, struct nr_str name,
                                struct nr_output_choice **ret)
{
    const struct nr_signature *sig = b->sig;
    if (b->outputs == NULL) {
        b->outputs = nr_arena_try_array(b->arena, sig->n_outputs, sizeof(*b->outputs));
        if (b->outputs == NULL) {
            return nr_fail(b->err, NARU_NOMEM, "no memory for %u outputs", sig->n_outputs);
        }
    }
    unsigned index = find_name(sig->outputs, sig->n_outputs, b->req->n_outputs, name);
    if (index == sig->n_outputs) {
        char text[256];
        return nr_fail(b->err, NARU_INVALID,
                       "unexpected output '" NR_STR_FMT "', the model's outputs are %s",
                       NR_STR_ARG(name), list_names(b, false, false, text));
    }
    struct nr_output_choice *o = &b->outputs[index];
    if (o->given) {
        return nr_fail(b->err, NARU_INVALID, "output '" NR_STR_FMT "' was asked for twice",
                       NR_STR_ARG(name));
    }
    *o = (struct nr_output_choice){.given = true, .binary = -1};
    b->req->n_outputs++;
    *ret = o;
    return NARU_OK;
}

nr_status nr_infer_build_classes(struct nr_infer_build *b, struct nr_output_choice *o,
                                 struct nr_str name, uint64_t n)
{
    if (n > UINT32_MAX) {
        return nr_fail(b->err, NARU_INVALID,
                       "output '" NR_STR_FMT "': classification of %" PRIu64
                       " is beyond what a tensor can hold",
                       NR_STR_ARG(name), n);
    }
    o->classification = (uint32_t)n;
    return NARU_OK;
}

nr_status nr_infer_no_shared_memory(struct nr_infer_build *b, struct nr_str name)
{
    return nr_fail(b->err, NARU_UNSUPPORTED,
                   "'" NR_STR_FMT
                   "' names a shared memory region, which this server does not offer; "
                   "send the data in the request",
                   NR_STR_ARG(name));
}

/* Compacts the slots to those that came, and finds the number of rows. */
static nr_status finish_inputs(struct nr_infer_build *b)
{
    struct nr_infer_request *req = b->req;
    unsigned n = 0;
    const struct nr_infer_tensor *first = NULL; /* with a batch dimension */
    for (unsigned i = 0; i < b->sig->n_inputs; i++) {
        struct nr_infer_tensor *t = &b->slots[i];
        if (t->dtype == NARU_DTYPE_NONE) {
            if (!b->sig->inputs[i].optional) {
                char text[256];
                return nr_fail(b->err, NARU_INVALID, "missing input %s",
                               list_names(b, true, true, text));
            }
            continue;
        }
        if (t->data == NULL) {
            char label[128];
            return nr_fail(b->err, NARU_INVALID, "%s came without data",
                           nr_infer_input_label(b, t, label));
        }
        if (b->sig->inputs[i].batched) {
            if (first != NULL && first->shape[0] != t->shape[0]) {
                char label[128];
                return nr_fail(b->err, NARU_INVALID,
                               "%s has a batch of %" PRId64 " rows, but input '" NR_STR_FMT
                               "' has %" PRId64,
                               nr_infer_input_label(b, t, label), t->shape[0],
                               NR_STR_ARG(b->sig->inputs[first->index].name), first->shape[0]);
            }
            first = first ? first : t;
            req->rows = t->shape[0];
        }
        if (n != i) {
            b->slots[n] = *t;
            first = first == t ? &b->slots[n] : first;
        }
        n++;
    }
    req->inputs = b->slots;
    req->n_inputs = n;
    return NARU_OK;
}

static const struct nr_infer_tensor *find_input(const struct nr_infer_tensor *inputs, unsigned n,
                                                uint32_t index)
{
    for (unsigned i = 0; i < n; i++) {
        if (inputs[i].index == index && inputs[i].dtype != NARU_DTYPE_NONE) {
            return &inputs[i];
        }
    }
    return NULL;
}

nr_status nr_infer_check_shared(const struct nr_signature *sig,
                                const struct nr_infer_tensor *inputs, unsigned n_inputs,
                                struct nr_err *err)
{
    const struct nr_infer_tensor *ref = NULL;
    uint32_t ref_dim = 0;
    for (unsigned i = 0; i < sig->n_shared; i++) {
        const struct nr_shared_dim *d = &sig->shared[i];
        const struct nr_infer_tensor *t = find_input(inputs, n_inputs, d->input);
        if (d->first) {
            ref = NULL;
        }
        if (t == NULL) {
            continue;
        }
        if (ref == NULL) {
            ref = t;
            ref_dim = d->dim;
        } else if (t->shape[d->dim] != ref->shape[ref_dim]) {
            return nr_fail(
                err, NARU_INVALID,
                "inputs '" NR_STR_FMT "' and '" NR_STR_FMT
                "' disagree: the model calls dimension %u of the one and dimension %u of "
                "the other '%.64s', so they must be equal, but they are %" PRId64 " and %" PRId64,
                NR_STR_ARG(sig->inputs[ref->index].name), NR_STR_ARG(sig->inputs[t->index].name),
                ref_dim, d->dim, d->symbol, ref->shape[ref_dim], t->shape[d->dim]);
        }
    }
    return NARU_OK;
}

nr_status nr_infer_build_done(struct nr_infer_build *b, bool binary)
{
    struct nr_infer_request *req = b->req;
    nr_status st = NR_UNLIKELY(b->sig->n_shared > 0)
                       ? nr_infer_check_shared(b->sig, b->slots, b->sig->n_inputs, b->err)
                       : NARU_OK;
    if (st == NARU_OK) {
        st = finish_inputs(b);
    }
    if (st != NARU_OK) {
        return st;
    }
    req->outputs_named = req->n_outputs > 0;
    unsigned n = req->outputs_named ? req->n_outputs : b->sig->n_outputs;
    req->outputs = nr_arena_try_array(b->arena, n, sizeof(*req->outputs));
    if (req->outputs == NULL) {
        return nr_fail(b->err, NARU_NOMEM, "no memory for %u outputs", n);
    }
    req->n_outputs = 0;
    for (unsigned i = 0; i < b->sig->n_outputs; i++) {
        struct nr_output_choice o = {.given = true, .binary = -1};
        o = req->outputs_named ? b->outputs[i] : o;
        if (o.given) {
            req->outputs[req->n_outputs++] = (struct nr_infer_output){
                .index = i,
                .binary = o.binary < 0 ? binary || req->binary_default : o.binary > 0,
                .classification = o.classification,
            };
        }
    }
    return NARU_OK;
}
