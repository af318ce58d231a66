/* Inference responses as JSON with binary parts: see infer_json.h.
 *
 * JSON text is written into chunks, never twice and never moved: a first one from the arena, then
 * pooled buffers of 64 KiB, then larger ones. A tiny answer is one part without any buffer; 3 MB of
 * floats are 50 parts whose memory stays warm in the thread's pool, where one allocation of the
 * largest possible size would be mapped and faulted in for each request. Binary outputs are parts
 * that point to the tensors.
 *
 * Invariants
 *  1. begin <= p <= end of the current chunk; after room(o, n) succeeded, n bytes fit.
 *  2. parts hold all bytes before `begin`, in order; o->bytes is their sum.
 * One thread at a time.
 */
#include "codec/infer_json.h"

#include "codec/float.h"
#include "codec/tensor.h"

#define CHUNK_BYTES ((size_t)65536)
#define CHUNK_LARGE_BYTES ((size_t)1 << 20)
#define CHUNKS_SMALL 64
#define FIRST_ARENA_MAX 3072 /* what fits an arena block beside the rest of a request */
#define DIM_TEXT_MAX 21      /* of a dimension, with its comma */
#define OUTPUT_TEXT_MAX 128  /* of an output's description but for name and shape */

struct out {
    char *begin, *p, *end;
    struct nr_arena *arena;
    struct nr_iov *parts;
    unsigned n_parts, capacity, n_chunks;
    size_t bytes;
};

static bool add_part(struct out *o, const void *ptr, size_t len)
{
    if (len == 0) {
        return true;
    }
    if (o->n_parts == o->capacity) {
        unsigned capacity = o->capacity ? 2 * o->capacity : 4;
        struct nr_iov *parts = nr_arena_try_array(o->arena, capacity, sizeof(*parts));
        if (parts == NULL) {
            return false;
        }
        if (o->n_parts > 0) {
            memcpy(parts, o->parts, o->n_parts * sizeof(*parts));
        }
        o->parts = parts;
        o->capacity = capacity;
    }
    o->parts[o->n_parts++] = (struct nr_iov){ptr, len};
    o->bytes += len;
    return true;
}

static __attribute__((noinline)) bool next_chunk(struct out *o, size_t bytes)
{
    if (!add_part(o, o->begin, (size_t)(o->p - o->begin))) {
        return false;
    }
    size_t usual = o->n_chunks < CHUNKS_SMALL ? CHUNK_BYTES : CHUNK_LARGE_BYTES;
    struct nr_buf *buf = nr_buf_try_new(NR_MAX(usual, bytes));
    if (buf == NULL) {
        o->begin = o->p;
        return false;
    }
    nr_arena_link(o->arena, buf);
    o->n_chunks++;
    o->begin = o->p = (char *)nr_buf_data(buf);
    o->end = o->begin + nr_buf_bytes(buf);
    return true;
}

static inline bool room(struct out *o, size_t bytes)
{
    return NR_LIKELY((size_t)(o->end - o->p) >= bytes) || next_chunk(o, bytes);
}

static inline void put(struct out *o, const char *text, size_t len) /* after room */
{
    memcpy(o->p, text, len);
    o->p += len;
}
#define PUT(o, literal) put((o), "" literal, sizeof(literal) - 1)

/* Escapes into out, which has 6 * s.len bytes. */
static char *escape(struct nr_str s, char *out)
{
    static const char hex[] = "0123456789ABCDEF";
    for (size_t i = 0; i < s.len; i++) {
        unsigned char c = (unsigned char)s.ptr[i];
        if (NR_LIKELY(c >= 0x20 && c != '"' && c != '\\')) {
            *out++ = (char)c;
            continue;
        }
        *out++ = '\\';
        switch (c) {
        case '"':
        case '\\':
            *out++ = (char)c;
            break;
        case '\b':
            *out++ = 'b';
            break;
        case '\f':
            *out++ = 'f';
            break;
        case '\n':
            *out++ = 'n';
            break;
        case '\r':
            *out++ = 'r';
            break;
        case '\t':
            *out++ = 't';
            break;
        default:
            memcpy(out, "u00", 3);
            out[3] = hex[c >> 4];
            out[4] = hex[c & 15];
            out += 5;
        }
    }
    return out;
}

/* The bracket that ends a list, in the place of the comma that the last value left behind. */
static bool close_list(struct out *o, bool has_values)
{
    if (has_values) {
        o->p[-1] = ']'; /* no chunk begins between a value's comma and this */
        return true;
    }
    if (!room(o, 1)) {
        return false;
    }
    PUT(o, "]");
    return true;
}

/* A quoted string, in pieces so that a long one needs no huge chunk. */
static bool put_string(struct out *o, struct nr_str s)
{
    const size_t piece = 1024;
    if (!room(o, 1)) {
        return false;
    }
    PUT(o, "\"");
    for (size_t at = 0; at < s.len; at += piece) {
        struct nr_str part = {s.ptr + at, NR_MIN(s.len - at, piece)};
        if (!room(o, 6 * part.len)) {
            return false;
        }
        o->p = escape(part, o->p);
    }
    if (!room(o, 1)) {
        return false;
    }
    PUT(o, "\"");
    return true;
}

/* One value with a comma behind it; at most NR_FLOAT_TEXT_MAX + 1 bytes. */
static inline __attribute__((always_inline)) char *write_value(int32_t dtype, const uint8_t *at,
                                                               char *p)
{
    int64_t i = 0;
    uint64_t u = 0;
    switch (dtype) {
    case NARU_FP32: {
        float f;
        memcpy(&f, at, sizeof(f));
        p = nr_float_write(f, p);
        break;
    }
    case NARU_FP64: {
        double d;
        memcpy(&d, at, sizeof(d));
        p = nr_double_write(d, p);
        break;
    }
    case NARU_BOOL:
        memcpy(p, *at ? "true\0" : "false", 5);
        p += *at ? 4 : 5;
        break;
    case NARU_INT8:
        p = nr_i64_write((int8_t)*at, p);
        break;
    case NARU_INT16:
    case NARU_INT32:
    case NARU_INT64: {
        size_t bytes = naru_dtype_bytes(dtype);
        memcpy((uint8_t *)&i + sizeof(i) - bytes, at, bytes); /* to the top, then shift the sign */
        p = nr_i64_write(i >> (64 - 8 * bytes), p);
        break;
    }
    default: /* unsigned: little-endian, the low bytes */
        memcpy(&u, at, naru_dtype_bytes(dtype));
        p = nr_u64_write(u, p);
    }
    *p++ = ',';
    return p;
}

static inline __attribute__((always_inline)) bool
put_values(struct out *o, const struct nr_infer_tensor *t, int32_t dtype)
{
    const size_t widest = NR_FLOAT_TEXT_MAX + 1;
    const size_t size = naru_dtype_bytes(dtype);
    size_t left = (size_t)t->elements;
    const uint8_t *at = t->data;
    while (left > 0) {
        if (!room(o, widest)) {
            return false;
        }
        size_t n = NR_MIN(left, (size_t)(o->end - o->p) / widest);
        left -= n;
        char *p = o->p;
        for (; n > 0; n--) {
            p = write_value(dtype, at, p);
            at += size;
        }
        o->p = p;
    }
    return true;
}

static nr_status fail_output(const struct nr_signature *sig, const struct nr_infer_tensor *t,
                             const char *why, nr_status status, struct nr_err *err)
{
    return nr_fail(err, status, "output '" NR_STR_FMT "' %s",
                   NR_STR_ARG(sig->outputs[t->index].name), why);
}

static nr_status put_bytes(struct out *o, const struct nr_signature *sig,
                           const struct nr_infer_tensor *t, struct nr_err *err)
{
    if (nr_tensor_bytes_check(t->data, t->bytes, t->elements, "", NULL) != NARU_OK) {
        return fail_output(sig, t, "of the backend is no valid BYTES tensor", NARU_INTERNAL, err);
    }
    size_t at = 0;
    while (at < t->bytes) {
        struct nr_str s = nr_tensor_bytes_next(t->data, &at);
        if (!nr_str_is_utf8(s)) {
            return fail_output(
                sig, t,
                "holds bytes that are no UTF-8, which JSON cannot carry: ask for binary "
                "data (parameter binary_data)",
                NARU_INVALID, err);
        }
        if (!put_string(o, s) || !room(o, 1)) {
            return NARU_NOMEM;
        }
        PUT(o, ",");
    }
    return NARU_OK;
}

static nr_status put_data(struct out *o, const struct nr_signature *sig,
                          const struct nr_infer_tensor *t, struct nr_err *err)
{
    bool ok = true;
    uint32_t size = naru_dtype_bytes(t->dtype);
    if (size != 0 && t->bytes != (uint64_t)t->elements * size) {
        return fail_output(sig, t, "of the backend is not as long as its shape says", NARU_INTERNAL,
                           err);
    }
    if (!room(o, 16)) {
        return NARU_NOMEM;
    }
    PUT(o, "\"data\":[");
#define CASE(symbol)                   \
    case symbol:                       \
        ok = put_values(o, t, symbol); \
        break;
    switch (t->dtype) {
        CASE(NARU_BOOL)
        CASE(NARU_UINT8)
        CASE(NARU_UINT16)
        CASE(NARU_UINT32)
        CASE(NARU_UINT64)
        CASE(NARU_INT8)
        CASE(NARU_INT16)
        CASE(NARU_INT32)
        CASE(NARU_INT64)
        CASE(NARU_FP32)
        CASE(NARU_FP64)
    case NARU_BYTES: {
        nr_status st = put_bytes(o, sig, t, err);
        if (st != NARU_OK) {
            return st;
        }
        break;
    }
    default:
        return fail_output(sig, t,
                           "is FP16 or BF16, which JSON cannot carry: ask for binary data "
                           "(parameter binary_data)",
                           NARU_INVALID, err);
    }
#undef CASE
    return ok && close_list(o, t->elements > 0) ? NARU_OK : NARU_NOMEM;
}

static nr_status put_output(struct out *o, const struct nr_signature *sig,
                            const struct nr_infer_tensor *t, bool binary, struct nr_err *err)
{
    const char *dtype = naru_dtype_name(t->dtype);
    if (!room(o, 16)) {
        return NARU_NOMEM;
    }
    PUT(o, "{\"name\":");
    if (!put_string(o, sig->outputs[t->index].name) ||
        !room(o, OUTPUT_TEXT_MAX + (size_t)t->rank * DIM_TEXT_MAX)) {
        return NARU_NOMEM;
    }
    PUT(o, ",\"datatype\":\"");
    put(o, dtype, strlen(dtype));
    PUT(o, "\",\"shape\":[");
    for (uint32_t i = 0; i < t->rank; i++) {
        o->p = nr_i64_write(t->shape[i], o->p);
        *o->p++ = ',';
    }
    if (!close_list(o, t->rank > 0)) {
        return NARU_NOMEM;
    }
    PUT(o, ",");
    if (!binary) {
        nr_status st = put_data(o, sig, t, err);
        if (st != NARU_OK) {
            return st;
        }
    } else {
        PUT(o, "\"parameters\":{\"binary_data_size\":");
        o->p = nr_u64_write(t->bytes, o->p);
        PUT(o, "}");
    }
    if (!room(o, 2)) {
        return NARU_NOMEM;
    }
    PUT(o, "},");
    return NARU_OK;
}

static nr_status put_head(struct out *o, const struct nr_infer_response *r)
{
    bool ok = room(o, 64);
    if (ok && r->has_id) {
        PUT(o, "{\"id\":");
        ok = put_string(o, r->id) && room(o, 64);
    }
    if (ok) {
        put(o, r->has_id ? "," : "{", 1);
        PUT(o, "\"model_name\":");
        ok = put_string(o, r->model_name) && room(o, 64);
    }
    if (ok) {
        PUT(o, ",\"model_version\":");
        ok = put_string(o, r->model_version) && room(o, 64);
    }
    if (ok) {
        PUT(o, ",\"outputs\":[");
    }
    return ok ? NARU_OK : NARU_NOMEM;
}

/* What the JSON will take, and what room() asks for beyond that: decides whether the first chunk comes
 * from the arena. Only numbers longer than usual take a second chunk then: a tiny answer must not cost
 * a buffer. */
static size_t estimate(const struct nr_signature *sig, const struct nr_infer_response *r)
{
    size_t bytes = 256 + 6 * (r->id.len + r->model_name.len + r->model_version.len);
    for (unsigned i = 0; i < r->n_outputs && bytes <= FIRST_ARENA_MAX; i++) {
        const struct nr_infer_tensor *t = &r->outputs[i];
        bytes += 64 + 6 * sig->outputs[t->index].name.len + OUTPUT_TEXT_MAX +
                 (size_t)t->rank * DIM_TEXT_MAX;
        bytes += r->how[i].binary         ? 0
                 : t->dtype == NARU_BYTES ? 2 * t->bytes
                                          : (size_t)t->elements * 16 + NR_FLOAT_TEXT_MAX;
    }
    return bytes;
}

static nr_status encode(struct out *o, const struct nr_signature *sig,
                        const struct nr_infer_response *r, struct nr_infer_body *ret,
                        struct nr_err *err)
{
    size_t first = estimate(sig, r);
    if (first <= FIRST_ARENA_MAX) {
        o->begin = o->p = nr_arena_try_alloc(o->arena, first);
        o->end = o->begin ? o->begin + first : NULL;
    }
    nr_status st = o->begin || next_chunk(o, 0) ? put_head(o, r) : NARU_NOMEM;
    for (unsigned i = 0; st == NARU_OK && i < r->n_outputs; i++) {
        st = put_output(o, sig, &r->outputs[i], r->how[i].binary, err);
    }
    if (st != NARU_OK || !close_list(o, r->n_outputs > 0) || !room(o, 1)) {
        return st != NARU_OK ? st : NARU_NOMEM;
    }
    PUT(o, "}");
    if (!add_part(o, o->begin, (size_t)(o->p - o->begin))) {
        return NARU_NOMEM;
    }
    struct nr_infer_body body = {.json_bytes = o->bytes};
    for (unsigned i = 0; i < r->n_outputs; i++) {
        if (r->how[i].binary && !add_part(o, r->outputs[i].data, r->outputs[i].bytes)) {
            return NARU_NOMEM;
        }
    }
    body.has_binary = o->bytes > body.json_bytes;
    body.bytes = o->bytes;
    body.parts = o->parts;
    body.n_parts = o->n_parts;
    *ret = body;
    return NARU_OK;
}

nr_status nr_infer_json_encode(const struct nr_signature *sig,
                               const struct nr_infer_response *response, struct nr_arena *arena,
                               struct nr_infer_body *ret, struct nr_err *err)
{
    struct out o = {.arena = arena};
    nr_status st = encode(&o, sig, response, ret, err);
    return st == NARU_NOMEM ? nr_fail(err, NARU_NOMEM, "no memory for the response") : st;
}
