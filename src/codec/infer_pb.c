/* Reads inference.ModelInferRequest from the wire: see infer_pb.h.
 *
 * Why by hand: generated code copies every tensor and allocates for every field; here raw tensors stay
 * where they arrived and typed ones are written once, to their final place. There is no recursion:
 * the schema nests four deep (request, input, contents or parameter, value) and unknown fields are
 * skipped by length, so nesting inside them costs nothing.
 *
 * The outermost fields are walked three times (count, raw contents, the rest), which is cheap
 * because length-delimited fields are stepped over: raw contents usually come behind the inputs that
 * they belong to.
 *
 * Invariants
 *  1. A cursor never passes the end of its message; lengths are compared with what is left, never
 *     added first.
 *  2. Repeated occurrences of a string or number: the last one counts; of a message in an input
 *     (contents): they merge, as the encoding demands.
 *  3. Memory for typed contents is taken after their elements were counted on the wire.
 *  4. Groups, field number 0, varints beyond 64 bits, tags and lengths of more than 5 bytes and wrong
 *     wire types are malformed.
 * One thread at a time.
 */
#include "codec/infer_pb.h"

#include <inttypes.h>

#include "codec/infer_build.h"
#include "codec/tensor.h"

enum wire {
    WIRE_VARINT = 0,
    WIRE_64 = 1,
    WIRE_BYTES = 2,
    WIRE_32 = 5
};

#define VARINT_32_MAX 5 /* bytes of a tag or a length, even an overlong one */

struct cursor {
    const uint8_t *p, *end;
};

struct field {
    uint32_t number;
    uint32_t wire;
    uint64_t value;      /* WIRE_VARINT, WIRE_64, WIRE_32 */
    struct nr_str bytes; /* WIRE_BYTES */
};

struct decoder {
    struct nr_infer_build b;
    const char *start; /* of the message, for positions in errors */
    struct nr_str *raws;
    unsigned n_raws, n_inputs, next_input;
};

static struct cursor cursor_of(struct nr_str s)
{
    const uint8_t *p = s.ptr ? (const uint8_t *)s.ptr : (const uint8_t *)"";
    return (struct cursor){p, p + s.len};
}

/* The varint at p: returns the byte behind it, or NULL. (By value, not through a cursor: locals whose
 * address is taken cost a stack guard and a trip through memory.) */
static inline const uint8_t *varint_at(const uint8_t *p, const uint8_t *end, uint64_t *ret)
{
    if (NR_LIKELY(p < end && *p < 0x80)) {
        *ret = *p;
        return p + 1;
    }
    uint64_t value = 0;
    for (unsigned shift = 0; shift < 70 && p < end; shift += 7) {
        uint8_t byte = *p++;
        if (shift == 63 && byte > 1) {
            return NULL;
        }
        value |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80) {
            *ret = value;
            return p;
        }
    }
    return NULL;
}

static bool read_varint(struct cursor *c, uint64_t *ret)
{
    const uint8_t *p = varint_at(c->p, c->end, ret);
    c->p = p ? p : c->p;
    return p != NULL;
}

/* The next field; false at the end or when malformed (then c->p < c->end still). */
static inline bool next_field(struct cursor *c, struct field *f)
{
    const uint8_t *p = c->p;
    const uint8_t *end = c->end;
    if (p == end) {
        return false;
    }
    p = varint_at(p, end, &f->value);
    if (p == NULL || f->value >> 3 == 0 || f->value > UINT32_MAX || p - c->p > VARINT_32_MAX) {
        return false;
    }
    f->number = (uint32_t)(f->value >> 3);
    f->wire = f->value & 7;
    if (f->wire == WIRE_VARINT || f->wire == WIRE_BYTES) {
        const uint8_t *number = p;
        p = varint_at(p, end, &f->value);
        if (p == NULL) {
            return false;
        }
        if (f->wire == WIRE_BYTES) {
            if (f->value > (uint64_t)(end - p) || p - number > VARINT_32_MAX) {
                return false;
            }
            f->bytes = (struct nr_str){(const char *)p, (size_t)f->value};
            p += f->value;
        }
    } else if (f->wire == WIRE_64 && end - p >= 8) {
        memcpy(&f->value, p, 8);
        p += 8;
    } else if (f->wire == WIRE_32 && end - p >= 4) {
        f->value = 0;
        memcpy(&f->value, p, 4);
        p += 4;
    } else {
        return false;
    }
    c->p = p;
    return true;
}

static __attribute__((noinline, cold)) nr_status fail_wire(struct nr_err *err, const char *start,
                                                           const void *at, const char *what)
{
    return nr_fail(err, NARU_INVALID, "malformed ModelInferRequest at byte %zu: expected %s",
                   (size_t)((const char *)at - start), what);
}

/* After a loop over next_field: was all of the message read? */
static nr_status check_end(struct nr_err *err, const char *start, const struct cursor *c)
{
    return c->p == c->end
               ? NARU_OK
               : fail_wire(err, start, c->p, "a field that ends within its message (no groups)");
}

/* Field f is a string: valid UTF-8. */
static nr_status take_string(struct nr_err *err, const char *start, const struct cursor *c,
                             const struct field *f, struct nr_str *ret)
{
    if (f->wire != WIRE_BYTES) {
        return fail_wire(err, start, c->p, "a string");
    }
    if (!nr_str_is_utf8(f->bytes)) {
        return fail_wire(err, start, f->bytes.ptr, "a string in valid UTF-8");
    }
    *ret = f->bytes;
    return NARU_OK;
}

static nr_status take_message(struct decoder *d, const struct cursor *c, const struct field *f)
{
    return f->wire == WIRE_BYTES ? NARU_OK : fail_wire(d->b.err, d->start, c->p, "a message");
}

nr_status nr_infer_pb_peek(struct nr_str message, struct nr_infer_pb_head *ret, struct nr_err *err)
{
    struct nr_infer_pb_head head = {{"", 0}, {"", 0}, {"", 0}};
    struct cursor c = cursor_of(message);
    struct field f;
    nr_status st = NARU_OK;
    while (st == NARU_OK && next_field(&c, &f)) {
        struct nr_str *to = f.number == 1   ? &head.model_name
                            : f.number == 2 ? &head.model_version
                            : f.number == 3 ? &head.id
                                            : NULL;
        st = to ? take_string(err, message.ptr, &c, &f, to) : NARU_OK;
    }
    st = st == NARU_OK ? check_end(err, message.ptr, &c) : st;
    if (st == NARU_OK) {
        *ret = head;
    }
    return st;
}

/* ---------------------------------------------------------------------------------------------
 * Parameters: map<string, InferParameter>, an entry is {1: key, 2: InferParameter}
 */

static nr_status read_value(struct decoder *d, struct nr_str message, struct nr_infer_param *p,
                            bool *has_value)
{
    struct cursor c = cursor_of(message);
    struct field f;
    nr_status st = NARU_OK;
    while (st == NARU_OK && next_field(&c, &f)) {
        uint32_t wire = f.number == 3 ? WIRE_BYTES : f.number == 4 ? WIRE_64 : WIRE_VARINT;
        if (f.number > 5) {
            continue;
        }
        if (f.wire != wire) {
            return fail_wire(d->b.err, d->start, c.p, "the value of a parameter");
        }
        *has_value = true;
        switch (f.number) {
        case 1:
            p->kind = NR_PARAM_BOOL;
            p->b = f.value != 0;
            break;
        case 2:
            p->kind = NR_PARAM_INT;
            p->i = (int64_t)f.value;
            break;
        case 3:
            p->kind = NR_PARAM_STRING;
            st = take_string(d->b.err, d->start, &c, &f, &p->s);
            break;
        case 4:
            p->kind = NR_PARAM_DOUBLE;
            memcpy(&p->d, &f.value, sizeof(p->d));
            break;
        default:
            p->kind = f.value > INT64_MAX ? NR_PARAM_UINT : NR_PARAM_INT;
            p->i = (int64_t)f.value;
        }
    }
    return st == NARU_OK ? check_end(d->b.err, d->start, &c) : st;
}

static nr_status read_param(struct decoder *d, const struct cursor *outer,
                            const struct field *entry, struct nr_infer_param *p)
{
    *p = (struct nr_infer_param){.name = {"", 0}};
    bool has_value = false;
    nr_status st = take_message(d, outer, entry);
    if (st != NARU_OK) {
        return st;
    }
    struct cursor c = cursor_of(entry->bytes);
    struct field f;
    while (st == NARU_OK && next_field(&c, &f)) {
        if (f.number == 1) {
            st = take_string(d->b.err, d->start, &c, &f, &p->name);
        } else if (f.number == 2) {
            st = take_message(d, &c, &f);
            st = st == NARU_OK ? read_value(d, f.bytes, p, &has_value) : st;
        }
    }
    st = st == NARU_OK ? check_end(d->b.err, d->start, &c) : st;
    if (st == NARU_OK && !has_value) {
        st = nr_fail(d->b.err, NARU_INVALID, "parameter '" NR_STR_FMT "' has no value",
                     NR_STR_ARG(p->name));
    }
    return st;
}

/* ---------------------------------------------------------------------------------------------
 * Typed contents
 */

enum {
    BOOLS = 1,
    INTS,
    INT64S,
    UINTS,
    UINT64S,
    FP32S,
    FP64S,
    BYTESS
};

static const char *const content_names[] = {
    "",
    "bool_contents",
    "int_contents",
    "int64_contents",
    "uint_contents",
    "uint64_contents",
    "fp32_contents",
    "fp64_contents",
    "bytes_contents",
};

/* The field of InferTensorContents that carries a datatype; 0: none. */
static uint32_t content_of(int32_t dtype)
{
    static const uint8_t numbers[NARU_DTYPE_END] = {
        [NARU_BOOL] = BOOLS,     [NARU_UINT8] = UINTS, [NARU_UINT16] = UINTS, [NARU_UINT32] = UINTS,
        [NARU_UINT64] = UINT64S, [NARU_INT8] = INTS,   [NARU_INT16] = INTS,   [NARU_INT32] = INTS,
        [NARU_INT64] = INT64S,   [NARU_FP32] = FP32S,  [NARU_FP64] = FP64S,   [NARU_BYTES] = BYTESS,
    };
    return numbers[dtype];
}

/* What one field of contents holds: elements, and bytes of BYTES in serialized form. */
static bool count_field(const struct field *f, uint32_t number, size_t *elements, size_t *bytes)
{
    uint32_t one = number == FP32S ? WIRE_32 : number == FP64S ? WIRE_64 : WIRE_VARINT;
    if (number == BYTESS) {
        *elements += f->wire == WIRE_BYTES;
        *bytes += 4 + f->bytes.len;
        return f->wire == WIRE_BYTES;
    }
    if (f->wire == one) {
        ++*elements;
        return true;
    }
    if (f->wire != WIRE_BYTES) {
        return false;
    }
    if (one != WIRE_VARINT) { /* packed */
        size_t size = one == WIRE_32 ? 4 : 8;
        *elements += f->bytes.len / size;
        return f->bytes.len % size == 0;
    }
    for (size_t i = 0; i < f->bytes.len; i++) { /* a varint ends with the byte below 0x80 */
        *elements += (uint8_t)f->bytes.ptr[i] < 0x80;
    }
    return f->bytes.len == 0 || (uint8_t)f->bytes.ptr[f->bytes.len - 1] < 0x80;
}

/* One varint into the tensor; false when it does not fit the datatype. As protobuf has it, fields of
 * 32 bits take the low 32 bits of the varint. */
static bool store_varint(int32_t dtype, uint64_t value, uint8_t *out)
{
    int32_t i = (int32_t)(uint32_t)value;
    uint32_t u = (uint32_t)value;
    switch (dtype) {
    case NARU_BOOL:
        *out = value != 0;
        return true;
    case NARU_INT8:
        *out = (uint8_t)i;
        return i >= INT8_MIN && i <= INT8_MAX;
    case NARU_INT16:
        memcpy(out, &u, 2);
        return i >= INT16_MIN && i <= INT16_MAX;
    case NARU_UINT8:
        *out = (uint8_t)u;
        return u <= UINT8_MAX;
    case NARU_UINT16:
        memcpy(out, &u, 2);
        return u <= UINT16_MAX;
    case NARU_INT32:
    case NARU_UINT32:
        memcpy(out, &u, 4);
        return true;
    default:
        memcpy(out, &value, 8);
        return true;
    }
}

/* One field of contents to *out, which has room (counted before). */
static nr_status store_field(struct decoder *d, const struct nr_infer_tensor *t,
                             const struct field *f, uint8_t **out)
{
    uint32_t size = naru_dtype_bytes(t->dtype);
    if (t->dtype == NARU_BYTES) {
        if (f->bytes.len > UINT32_MAX) {
            return fail_wire(d->b.err, d->start, f->bytes.ptr, "an element of less than 4 GiB");
        }
        uint32_t len = (uint32_t)f->bytes.len;
        memcpy(*out, &len, sizeof(len));
        memcpy(*out + sizeof(len), f->bytes.ptr, f->bytes.len);
        *out += sizeof(len) + f->bytes.len;
        return NARU_OK;
    }
    if (f->wire == WIRE_BYTES && (t->dtype == NARU_FP32 || t->dtype == NARU_FP64)) {
        memcpy(*out, f->bytes.ptr, f->bytes.len);
        *out += f->bytes.len;
        return NARU_OK;
    }
    if (f->wire != WIRE_BYTES && f->wire != WIRE_VARINT) {
        memcpy(*out, &f->value, size);
        *out += size;
        return NARU_OK;
    }
    struct cursor c = f->wire == WIRE_BYTES ? cursor_of(f->bytes) : (struct cursor){NULL, NULL};
    uint64_t value = f->value;
    bool single = f->wire == WIRE_VARINT;
    while (single || c.p < c.end) {
        if (!single && !read_varint(&c, &value)) {
            return fail_wire(d->b.err, d->start, c.p, "a varint of at most 64 bits");
        }
        if (!store_varint(t->dtype, value, *out)) {
            char label[128];
            return nr_fail(d->b.err, NARU_INVALID, "%s: the value %" PRId32 " does not fit %s",
                           nr_infer_input_label(&d->b, t, label), (int32_t)(uint32_t)value,
                           naru_dtype_name(t->dtype));
        }
        *out += size;
        single = false;
    }
    return NARU_OK;
}

/* What all contents messages of an input hold. Fails when a field other than `number` has values. */
static nr_status count_contents(struct decoder *d, const struct nr_infer_tensor *t,
                                struct nr_str contents, size_t *elements, size_t *bytes)
{
    uint32_t number = content_of(t->dtype);
    struct cursor c = cursor_of(contents);
    struct field f;
    while (next_field(&c, &f)) {
        size_t n = 0;
        if (f.number < BOOLS || f.number > BYTESS) {
            continue;
        }
        if (!count_field(&f, f.number, &n, bytes)) {
            return fail_wire(d->b.err, d->start, c.p, "elements of the field's type");
        }
        if (f.number != number && n > 0) {
            char label[128];
            return nr_fail(d->b.err, NARU_INVALID, "%s: %s cannot carry datatype %s, expected %s",
                           nr_infer_input_label(&d->b, t, label), content_names[f.number],
                           naru_dtype_name(t->dtype),
                           number ? content_names[number] : "raw_input_contents");
        }
        *elements += n;
    }
    return check_end(d->b.err, d->start, &c);
}

/* All contents of `input` (there may be several, they merge) into the tensor. */
static nr_status read_contents(struct decoder *d, struct nr_str input, struct nr_infer_tensor *t)
{
    struct field f;
    size_t elements = 0;
    size_t bytes = 0;
    nr_status st = NARU_OK;
    struct cursor c = cursor_of(input);
    while (st == NARU_OK && next_field(&c, &f)) {
        st = f.number == 5 ? count_contents(d, t, f.bytes, &elements, &bytes) : NARU_OK;
    }
    if (st != NARU_OK) {
        return st;
    }
    if ((uint64_t)t->elements != elements) {
        char label[128];
        char shape[NR_SHAPE_TEXT_MAX];
        return nr_fail(d->b.err, NARU_INVALID, "%s: shape %s takes %" PRId64 " elements, %zu came",
                       nr_infer_input_label(&d->b, t, label),
                       nr_shape_text(t->shape, t->rank, shape, sizeof(shape)), t->elements,
                       elements);
    }
    uint8_t *out = NULL;
    if (t->dtype != NARU_BYTES) {
        bytes = elements * naru_dtype_bytes(t->dtype);
    }
    st = nr_infer_build_alloc(&d->b, t, bytes, &out);
    c = cursor_of(input);
    uint32_t number = content_of(t->dtype);
    while (st == NARU_OK && next_field(&c, &f)) {
        struct cursor inner = f.number == 5 ? cursor_of(f.bytes) : (struct cursor){NULL, NULL};
        struct field g;
        while (st == NARU_OK && inner.p < inner.end && next_field(&inner, &g)) {
            st = g.number == number ? store_field(d, t, &g, &out) : NARU_OK;
        }
    }
    return st;
}

/* ---------------------------------------------------------------------------------------------
 * Inputs and outputs
 */

struct input {
    struct nr_str name, datatype;
    uint32_t rank;
    int64_t shape[NARU_MAX_RANK];
    bool has_contents;
};

static void add_dim(struct input *in, uint64_t dim)
{
    if (in->rank < NARU_MAX_RANK) {
        in->shape[in->rank] = (int64_t)dim;
    }
    in->rank += in->rank <= NARU_MAX_RANK; /* one more than the limit says "too many" */
}

static nr_status read_shape(struct decoder *d, const struct cursor *outer, const struct field *f,
                            struct input *in)
{
    if (f->wire == WIRE_VARINT) {
        add_dim(in, f->value);
        return NARU_OK;
    }
    if (f->wire != WIRE_BYTES) {
        return fail_wire(d->b.err, d->start, outer->p, "a shape");
    }
    struct cursor c = cursor_of(f->bytes);
    uint64_t dim;
    while (c.p < c.end) {
        if (!read_varint(&c, &dim)) {
            return fail_wire(d->b.err, d->start, c.p, "a varint of at most 64 bits");
        }
        add_dim(in, dim);
    }
    return NARU_OK;
}

static nr_status read_input_fields(struct decoder *d, struct nr_str message, struct input *in)
{
    struct cursor c = cursor_of(message);
    struct field f;
    struct nr_infer_param p;
    nr_status st = NARU_OK;
    in->name = in->datatype = (struct nr_str){"", 0};
    in->rank = 0;
    in->has_contents = false;
    while (st == NARU_OK && next_field(&c, &f)) {
        switch (f.number) {
        case 1:
            st = take_string(d->b.err, d->start, &c, &f, &in->name);
            break;
        case 2:
            st = take_string(d->b.err, d->start, &c, &f, &in->datatype);
            break;
        case 3:
            st = read_shape(d, &c, &f, in);
            break;
        case 4:
            st = read_param(d, &c, &f, &p);
            if (st == NARU_OK && nr_str_starts(p.name, NR_STR("shared_memory_"))) {
                st = nr_infer_no_shared_memory(&d->b, in->name);
            }
            break;
        case 5:
            in->has_contents = true;
            st = take_message(d, &c, &f);
            break;
        default:
            break;
        }
    }
    return st == NARU_OK ? check_end(d->b.err, d->start, &c) : st;
}

static nr_status read_input(struct decoder *d, const struct cursor *outer, const struct field *f)
{
    nr_uninit struct input in;
    struct nr_infer_tensor *t = NULL;
    unsigned index = d->next_input++;
    nr_status st = take_message(d, outer, f);
    st = st == NARU_OK ? read_input_fields(d, f->bytes, &in) : st;
    st = st == NARU_OK ? nr_infer_build_input(&d->b, in.name, in.datatype, in.shape, in.rank, &t)
                       : st;
    if (st != NARU_OK) {
        return st;
    }
    if (d->n_raws == 0) {
        return read_contents(d, f->bytes, t);
    }
    if (in.has_contents) {
        char label[128];
        return nr_fail(d->b.err, NARU_INVALID,
                       "%s has contents, but the request has raw_input_contents as well: expected "
                       "one of the two for all inputs",
                       nr_infer_input_label(&d->b, t, label));
    }
    return nr_infer_build_view(&d->b, t, (const uint8_t *)d->raws[index].ptr, d->raws[index].len);
}

static nr_status read_output(struct decoder *d, const struct cursor *outer, const struct field *f)
{
    struct nr_str name = {"", 0};
    struct nr_output_choice choice = {.given = true, .binary = -1};
    struct nr_infer_param p;
    struct field g;
    nr_status st = take_message(d, outer, f);
    if (st != NARU_OK) {
        return st;
    }
    struct cursor c = cursor_of(f->bytes);
    while (st == NARU_OK && next_field(&c, &g)) {
        if (g.number == 1) {
            st = take_string(d->b.err, d->start, &c, &g, &name);
        } else if (g.number == 2) {
            st = read_param(d, &c, &g, &p);
            if (st == NARU_OK && nr_str_is(p.name, "classification")) {
                bool is_count = p.kind == NR_PARAM_UINT || (p.kind == NR_PARAM_INT && p.i >= 0);
                st = is_count
                         ? nr_infer_build_classes(&d->b, &choice, name, (uint64_t)p.i)
                         : nr_fail(d->b.err, NARU_INVALID,
                                   "output parameter 'classification' must be an integer from 0");
            } else if (st == NARU_OK && nr_str_starts(p.name, NR_STR("shared_memory_"))) {
                st = nr_infer_no_shared_memory(&d->b, name);
            }
        }
    }
    st = st == NARU_OK ? check_end(d->b.err, d->start, &c) : st;
    struct nr_output_choice *o = NULL;
    st = st == NARU_OK ? nr_infer_build_output(&d->b, name, &o) : st;
    if (st == NARU_OK) {
        *o = choice;
    }
    return st;
}

/* How many inputs and raw contents there are, and where the latter lie. */
static nr_status find_raws(struct decoder *d, struct nr_str message)
{
    struct cursor c = cursor_of(message);
    struct field f;
    while (next_field(&c, &f)) {
        d->n_inputs += f.number == 5;
        d->n_raws += f.number == 7;
        if (f.number == 7 && f.wire != WIRE_BYTES) {
            return fail_wire(d->b.err, d->start, c.p, "bytes");
        }
    }
    nr_status st = check_end(d->b.err, d->start, &c);
    if (st != NARU_OK) {
        return st;
    }
    if (d->n_inputs > d->b.sig->n_inputs) {
        return nr_fail(d->b.err, NARU_INVALID, "the request has %u inputs, the model takes %u",
                       d->n_inputs, d->b.sig->n_inputs);
    }
    if (d->n_raws == 0) {
        return NARU_OK;
    }
    if (d->n_raws != d->n_inputs) {
        return nr_fail(d->b.err, NARU_INVALID,
                       "the request has %u raw_input_contents for %u inputs, expected one for each",
                       d->n_raws, d->n_inputs);
    }
    d->raws = nr_arena_try_array(d->b.arena, d->n_raws, sizeof(*d->raws));
    if (d->raws == NULL) {
        return nr_fail(d->b.err, NARU_NOMEM, "no memory for %u inputs", d->n_raws);
    }
    unsigned n = 0;
    for (c = cursor_of(message); next_field(&c, &f);) {
        if (f.number == 7) {
            d->raws[n++] = f.bytes;
        }
    }
    return NARU_OK;
}

static nr_status read_request(struct decoder *d, struct nr_str message)
{
    struct cursor c = cursor_of(message);
    struct field f;
    struct nr_infer_param p;
    nr_status st = find_raws(d, message);
    while (st == NARU_OK && next_field(&c, &f)) {
        struct nr_str ignored;
        switch (f.number) {
        case 1:
        case 2: /* nr_infer_pb_peek gave them to the caller */
            st = take_string(d->b.err, d->start, &c, &f, &ignored);
            break;
        case 3:
            st = take_string(d->b.err, d->start, &c, &f, &d->b.req->id);
            d->b.req->has_id = d->b.req->id.len > 0;
            break;
        case 4:
            st = read_param(d, &c, &f, &p);
            st = st == NARU_OK ? nr_infer_build_param(&d->b, &p) : st;
            break;
        case 5:
            st = read_input(d, &c, &f);
            break;
        case 6:
            st = read_output(d, &c, &f);
            break;
        default:
            break;
        }
    }
    return st;
}

nr_status nr_infer_pb_decode(const struct nr_signature *sig, struct nr_str message,
                             struct nr_buf *owner, struct nr_arena *arena,
                             struct nr_infer_request *ret, struct nr_err *err)
{
    struct decoder d = {.start = message.ptr};
    nr_uninit struct nr_infer_request req;
    nr_status st = nr_infer_build_init(&d.b, sig, arena, owner, &req, err);
    if (st != NARU_OK) {
        return st;
    }
    d.b.is_grpc = true;
    st = read_request(&d, message);
    st = st == NARU_OK ? nr_infer_build_done(&d.b, true) : st;
    if (st == NARU_OK) {
        *ret = req;
    }
    return st;
}
