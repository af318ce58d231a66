/* JSON arrays → tensor data: the loop that large JSON requests spend their time in.
 *
 * One reader per datatype is stamped out of read_run by constant propagation, so that the inner loop
 * holds no switch. A row (the innermost dimension, or all elements of flat data) is one run; nested
 * data is a small state machine around runs, with a count per level instead of recursion.
 *
 * Invariants
 *  1. Nothing is written beyond the elements that the shape says: a run counts before it reads.
 *  2. A value is stored exactly or refused: integers within their datatype, floats rounded once to
 *     double and then to the datatype (as NumPy's float32(float(text))), finite.
 *  3. Memory is taken after the remaining text was seen to hold room for the elements, so 64 MiB of
 *     text cannot ask for more than a small multiple of itself.
 * One thread at a time.
 */
#include "codec/tensor_json.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>

#include "codec/float.h"
#include "codec/tensor.h"

struct reader {
    struct nr_json *j;
    struct nr_infer_build *b;
    struct nr_infer_tensor *t;
    uint8_t *out; /* the next element's place */
};

typedef nr_status (*run_fn)(struct reader *r, int64_t n);

static inline const char *skip_space(const char *p, const char *end)
{
    while (p < end && (unsigned char)*p <= ' ' &&
           (*p == ' ' || *p == '\n' || *p == '\r' || *p == '\t')) {
        p++;
    }
    return p;
}

/* The position is told by nr_json_fail_at, the tensor by the prefix. */
static __attribute__((noinline, cold)) nr_status fail(struct reader *r, const char *at,
                                                      const char *expected)
{
    char label[128];
    char shape[NR_SHAPE_TEXT_MAX];
    nr_status st = nr_json_fail_at(r->j, at, expected);
    nr_err_prefix(r->b->err, "%s of shape %s", nr_infer_input_label(r->b, r->t, label),
                  nr_shape_text(r->t->shape, r->t->rank, shape, sizeof(shape)));
    return st;
}

static __attribute__((noinline, cold)) nr_status fail_count(struct reader *r, const char *at,
                                                            int64_t n, bool too_many)
{
    char expected[96];
    snprintf(expected, sizeof(expected), "%s %" PRId64 " element%s in this array",
             too_many ? "no more than" : "exactly", n, n == 1 ? "" : "s");
    return fail(r, at, expected);
}

static const char *expected_value(int32_t dtype, bool range)
{
    switch (dtype) {
    case NARU_BOOL:
        return "true or false";
    case NARU_UINT8:
        return "an integer from 0 to 255 (UINT8)";
    case NARU_UINT16:
        return "an integer from 0 to 65535 (UINT16)";
    case NARU_UINT32:
        return "an integer from 0 to 4294967295 (UINT32)";
    case NARU_UINT64:
        return "an integer from 0 to 18446744073709551615 (UINT64)";
    case NARU_INT8:
        return "an integer from -128 to 127 (INT8)";
    case NARU_INT16:
        return "an integer from -32768 to 32767 (INT16)";
    case NARU_INT32:
        return "an integer from -2147483648 to 2147483647 (INT32)";
    case NARU_INT64:
        return "an integer from -9223372036854775808 to 9223372036854775807 (INT64)";
    case NARU_BYTES:
        return "a string (BYTES)";
    default:
        return range ? "a number that fits the datatype (larger ones only as binary data)"
                     : "a number";
    }
}

static inline __attribute__((always_inline)) nr_scan read_integer(const char **at, const char *end,
                                                                  int32_t dtype, uint8_t *out)
{
    bool negative;
    uint64_t magnitude;
    nr_scan scan = nr_integer_scan(at, end, &negative, &magnitude);
    if (scan != NR_SCAN_OK) {
        return scan;
    }
    unsigned bits = 8 * naru_dtype_bytes(dtype);
    bool is_signed = dtype >= NARU_INT8 && dtype <= NARU_INT64;
    uint64_t max = is_signed    ? (UINT64_C(1) << (bits - 1)) - !negative
                   : bits == 64 ? UINT64_MAX
                                : (UINT64_C(1) << bits) - 1;
    if (magnitude > max || (negative && !is_signed && magnitude != 0)) {
        return NR_SCAN_RANGE;
    }
    uint64_t value = negative ? 0 - magnitude : magnitude;
    memcpy(out, &value, bits / 8); /* little-endian: the low bytes come first */
    return NR_SCAN_OK;
}

/* The words for NaN and infinities; apart, for they are rare. */
static __attribute__((noinline, cold)) nr_scan read_nonfinite(const char **at, const char *end,
                                                              int32_t dtype, uint8_t *out)
{
    double d;
    if ((dtype != NARU_FP32 && dtype != NARU_FP64) || !nr_nonfinite_scan(at, end, &d)) {
        return NR_SCAN_SYNTAX;
    }
    float f = (float)d;
    memcpy(out, dtype == NARU_FP64 ? (void *)&d : (void *)&f, naru_dtype_bytes(dtype));
    return NR_SCAN_OK;
}

static inline __attribute__((always_inline)) nr_scan read_value(const char **at, const char *end,
                                                                int32_t dtype, uint8_t *out)
{
    if (dtype == NARU_FP32 || dtype == NARU_FP64) {
        double d;
        nr_scan scan = nr_double_scan(at, end, &d);
        if (scan != NR_SCAN_OK) {
            return scan;
        }
        if (dtype == NARU_FP64) {
            memcpy(out, &d, sizeof(d));
            return NR_SCAN_OK;
        }
        float f = (float)d;
        memcpy(out, &f, sizeof(f));
        return isinf(f) ? NR_SCAN_RANGE : NR_SCAN_OK;
    }
    if (dtype == NARU_BOOL) {
        const char *p = *at;
        bool yes = end - p >= 4 && memcmp(p, "true", 4) == 0;
        if (!yes && !(end - p >= 5 && memcmp(p, "false", 5) == 0)) {
            return NR_SCAN_SYNTAX;
        }
        *out = yes;
        *at = p + (yes ? 4 : 5);
        return NR_SCAN_OK;
    }
    return read_integer(at, end, dtype, out);
}

/* n values and the closing bracket; stands behind the opening one. */
static inline __attribute__((always_inline)) nr_status read_run(struct reader *r, int64_t n,
                                                                int32_t dtype)
{
    const char *p = r->j->p;
    const char *const end = r->j->end;
    uint8_t *out = r->out;
    for (int64_t i = 0; i < n; i++) {
        p = skip_space(p, end);
        const char *begin = p;
        nr_scan scan = read_value(&p, end, dtype, out);
        if (NR_UNLIKELY(scan == NR_SCAN_SYNTAX)) {
            p = begin;
            scan = read_nonfinite(&p, end, dtype, out);
        }
        if (NR_UNLIKELY(scan != NR_SCAN_OK)) {
            return begin < end && *begin == ']'
                       ? fail_count(r, begin, n, false)
                       : fail(r, begin, expected_value(dtype, scan == NR_SCAN_RANGE));
        }
        out += naru_dtype_bytes(dtype);
        p = skip_space(p, end);
        if (i + 1 < n) {
            if (NR_UNLIKELY(p == end || *p != ',')) {
                return p < end && *p == ']' ? fail_count(r, p, n, false) : fail(r, p, "','");
            }
            p++;
        }
    }
    p = skip_space(p, end);
    if (NR_UNLIKELY(p == end || *p != ']')) {
        return p < end && *p == ',' ? fail_count(r, p, n, true) : fail(r, p, "']'");
    }
    r->j->p = p + 1;
    r->out = out;
    return NARU_OK;
}

#define RUN(name, dtype)                                     \
    static nr_status run_##name(struct reader *r, int64_t n) \
    {                                                        \
        return read_run(r, n, dtype);                        \
    }
RUN(bool, NARU_BOOL)
RUN(uint8, NARU_UINT8)
RUN(uint16, NARU_UINT16)
RUN(uint32, NARU_UINT32)
RUN(uint64, NARU_UINT64)
RUN(int8, NARU_INT8)
RUN(int16, NARU_INT16)
RUN(int32, NARU_INT32)
RUN(int64, NARU_INT64)
RUN(fp32, NARU_FP32)
RUN(fp64, NARU_FP64)
#undef RUN

static nr_status run_bytes(struct reader *r, int64_t n)
{
    struct nr_json *j = r->j;
    for (int64_t i = 0; i < n; i++) {
        if (nr_json_peek(j) != '"') {
            return nr_json_peek(j) == ']' ? fail_count(r, j->p, n, false)
                                          : fail(r, j->p, expected_value(NARU_BYTES, false));
        }
        const char *begin = j->p + 1;
        const char *at = begin;
        size_t n_escaped;
        nr_status st = nr_json_string_scan(j, &at, &n_escaped);
        if (st != NARU_OK) {
            return st;
        }
        size_t len = (size_t)(at - 1 - begin) - n_escaped;
        if (len > UINT32_MAX) {
            return fail(r, begin, "a string of less than 4 GiB");
        }
        uint32_t prefix = (uint32_t)len;
        memcpy(r->out, &prefix, sizeof(prefix));
        nr_json_unescape(begin, at - 1, (char *)r->out + sizeof(prefix));
        r->out += sizeof(prefix) + len;
        j->p = at;
        char c = nr_json_peek(j);
        if (i + 1 < n && c != ',') {
            return c == ']' ? fail_count(r, j->p, n, false) : fail(r, j->p, "','");
        }
        j->p += i + 1 < n;
    }
    char c = nr_json_peek(j);
    if (c != ']') {
        return c == ',' ? fail_count(r, j->p, n, true) : fail(r, j->p, "']'");
    }
    j->p++;
    return NARU_OK;
}

/* Data that nests as the shape says (rank >= 2), behind its first bracket. */
static nr_status read_nested(struct reader *r, run_fn run)
{
    struct nr_json *j = r->j;
    const int64_t *shape = r->t->shape;
    uint32_t level = 0;          /* of the open array */
    int64_t left[NARU_MAX_RANK]; /* arrays to come in it */
    left[0] = shape[0];
    for (;;) {
        char c = nr_json_peek(j);
        if (left[level] == 0) {
            if (c != ']') {
                return c == ',' ? fail_count(r, j->p, shape[level], true) : fail(r, j->p, "']'");
            }
            j->p++;
            if (level == 0) {
                return NARU_OK;
            }
            level--;
            left[level]--;
            continue;
        }
        if (left[level] < shape[level]) {
            if (c != ',') {
                return c == ']' ? fail_count(r, j->p, shape[level], false) : fail(r, j->p, "','");
            }
            j->p++;
            c = nr_json_peek(j);
        }
        if (c != '[') {
            return fail(r, j->p, "an array: data is nested, so every dimension must be");
        }
        j->p++;
        if (level + 2 == r->t->rank) {
            nr_status st = run(r, shape[level + 1]);
            if (st != NARU_OK) {
                return st;
            }
            left[level]--;
        } else {
            level++;
            left[level] = shape[level];
        }
    }
}

/* How the elements are read, by datatype; NULL: not as JSON. */
static run_fn run_of(int32_t dtype)
{
    static const run_fn runs[NARU_DTYPE_END] = {
        [NARU_BOOL] = run_bool,     [NARU_UINT8] = run_uint8,   [NARU_UINT16] = run_uint16,
        [NARU_UINT32] = run_uint32, [NARU_UINT64] = run_uint64, [NARU_INT8] = run_int8,
        [NARU_INT16] = run_int16,   [NARU_INT32] = run_int32,   [NARU_INT64] = run_int64,
        [NARU_FP32] = run_fp32,     [NARU_FP64] = run_fp64,     [NARU_BYTES] = run_bytes,
    };
    return runs[dtype];
}

/* Bytes to take for the data; an error when the text is too short for it anyway. */
static nr_status measure(struct reader *r, size_t *ret)
{
    struct nr_json *j = r->j;
    size_t elements = (size_t)r->t->elements;
    if (elements > (size_t)(j->end - j->p) / 2 + 1) { /* "0," is the shortest element */
        return fail(r, j->end, "as many elements as the shape says");
    }
    if (r->t->dtype != NARU_BYTES) {
        *ret = elements * naru_dtype_bytes(r->t->dtype);
        return NARU_OK;
    }
    /* Characters never take more bytes than their text; each element adds a length of 4. */
    struct nr_json ahead = *j;
    struct nr_str span;
    nr_status st = nr_json_skip(&ahead, &span);
    *ret = 4 * elements + (st == NARU_OK ? span.len : 0);
    return st;
}

nr_status nr_tensor_json_read(struct nr_json *j, struct nr_infer_build *b,
                              struct nr_infer_tensor *t)
{
    struct reader r = {.j = j, .b = b, .t = t};
    run_fn run = run_of(t->dtype);
    char label[128];
    if (run == NULL) {
        return nr_fail(b->err, NARU_INVALID,
                       "%s: %s data cannot be sent as JSON, send it as binary data "
                       "(parameter binary_data_size)",
                       nr_infer_input_label(b, t, label), naru_dtype_name(t->dtype));
    }
    if (nr_json_peek(j) != '[') {
        return fail(&r, j->p, "an array");
    }
    size_t bytes = 0;
    nr_status st = measure(&r, &bytes);
    if (st == NARU_OK) {
        st = nr_infer_build_alloc(b, t, bytes, &r.out);
    }
    if (st != NARU_OK) {
        return st;
    }
    j->p++;
    st = nr_json_peek(j) == '[' && t->rank >= 2 ? read_nested(&r, run) : run(&r, t->elements);
    if (st == NARU_OK) {
        t->bytes = (size_t)(r.out - t->data);
    }
    return st;
}
