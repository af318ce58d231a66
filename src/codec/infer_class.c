/* The classification extension: scores → "value:index[:label]" texts. See infer_json.h.
 *
 * Values of every type become 64-bit keys whose unsigned order is the order of the values, so one
 * selection serves all types exactly (INT64 and FP64 included). Selection keeps the n best of a row
 * in a heap whose root is the worst of them: values * log n steps, whatever n a client asks for.
 * Pure, any thread that owns the arena.
 */
#include <inttypes.h>
#include <stdio.h>

#include "base/mem.h"
#include "codec/float.h"
#include "codec/infer_build.h"
#include "codec/infer_json.h"
#include "codec/tensor.h"

#define VALUE_TEXT_MAX 328 /* "%f" of the largest double: sign, 309 digits, point, 6 digits */

struct ranked {
    uint64_t key;
    uint32_t index;
};

static uint64_t key_of_double(double d)
{
    uint64_t bits;
    if (d != d) {
        return 0; /* NaN last */
    }
    d = d == 0 ? 0 : d; /* both zeros are equal */
    memcpy(&bits, &d, sizeof(bits));
    return bits >> 63 ? ~bits : bits | UINT64_C(1) << 63;
}

static uint64_t key_of(int32_t dtype, const uint8_t *at)
{
    uint32_t size = naru_dtype_bytes(dtype);
    uint64_t u = 0;
    if (dtype == NARU_FP32) {
        float f;
        memcpy(&f, at, sizeof(f));
        return key_of_double((double)f);
    }
    if (dtype == NARU_FP64) {
        double d;
        memcpy(&d, at, sizeof(d));
        return key_of_double(d);
    }
    memcpy(&u, at, size);
    if (dtype >= NARU_INT8 && dtype <= NARU_INT64) {
        u <<= 64 - 8 * size; /* the sign to the top: order is all that counts */
        u ^= UINT64_C(1) << 63;
    }
    return u;
}

static bool is_better(struct ranked a, struct ranked b)
{
    return a.key > b.key || (a.key == b.key && a.index < b.index);
}

/* Sinks heap[at] until no child is worse than it. */
static void sift_down(struct ranked *heap, uint32_t n, uint32_t at)
{
    struct ranked moving = heap[at];
    for (;;) {
        size_t child = (size_t)2 * at + 1;
        if (child >= n) {
            break;
        }
        child += child + 1 < n && is_better(heap[child], heap[child + 1]);
        if (!is_better(moving, heap[child])) {
            break;
        }
        heap[at] = heap[child];
        at = (uint32_t)child;
    }
    heap[at] = moving;
}

/* The n best of row[count] into best[n], best first. 1 <= n <= count. */
static void select_best(int32_t dtype, const uint8_t *row, uint32_t count, struct ranked *best,
                        uint32_t n)
{
    uint32_t size = naru_dtype_bytes(dtype);
    for (uint32_t i = 0; i < n; i++) {
        best[i] = (struct ranked){key_of(dtype, row + (size_t)i * size), i};
    }
    for (uint32_t i = n / 2; i-- > 0;) {
        sift_down(best, n, i);
    }
    for (uint32_t i = n; i < count; i++) {
        struct ranked r = {key_of(dtype, row + (size_t)i * size), i};
        if (is_better(r, best[0])) {
            best[0] = r;
            sift_down(best, n, 0);
        }
    }
    for (uint32_t left = n; left > 1; left--) { /* the worst goes to the end */
        struct ranked worst = best[0];
        best[0] = best[left - 1];
        best[left - 1] = worst;
        sift_down(best, left - 1, 0);
    }
}

static size_t write_value(int32_t dtype, const uint8_t *at, char text[VALUE_TEXT_MAX])
{
    double d = 0;
    if (dtype == NARU_FP32) {
        float f;
        memcpy(&f, at, sizeof(f));
        d = (double)f;
    } else if (dtype == NARU_FP64) {
        memcpy(&d, at, sizeof(d));
    } else {
        NR_ASSERT(naru_dtype_bytes(dtype) > 0);
        uint64_t key = key_of(dtype, at);
        uint32_t size = naru_dtype_bytes(dtype);
        NR_ASSERT(size > 0);
        bool is_signed = dtype >= NARU_INT8 && dtype <= NARU_INT64;
        int64_t i = (int64_t)(key ^ UINT64_C(1) << 63) >> (64 - 8 * size);
        return (size_t)((is_signed ? nr_i64_write(i, text) : nr_u64_write(key, text)) - text);
    }
    int n = snprintf(text, VALUE_TEXT_MAX, "%f", d);
    return n > 0 ? (size_t)n : 0;
}

/* One BYTES element at out; returns its end. */
static uint8_t *write_element(int32_t dtype, const uint8_t *row, uint32_t index,
                              struct nr_str label, uint8_t *out)
{
    char text[VALUE_TEXT_MAX + 16];
    size_t len = write_value(dtype, row + (size_t)index * naru_dtype_bytes(dtype), text);
    text[len++] = ':';
    len = (size_t)(nr_u64_write(index, text + len) - text);
    if (label.len > 0) {
        text[len++] = ':';
    }
    uint32_t prefix = (uint32_t)(len + label.len);
    memcpy(out, &prefix, sizeof(prefix));
    memcpy(out + sizeof(prefix), text, len);
    memcpy(out + sizeof(prefix) + len, label.ptr ? label.ptr : "", label.len);
    return out + sizeof(prefix) + prefix;
}

nr_status nr_infer_classify(const struct nr_infer_tensor *scores, bool batched, uint32_t n,
                            const struct nr_str *labels, size_t n_labels, struct nr_arena *arena,
                            struct nr_infer_tensor *ret, struct nr_err *err)
{
    int32_t dtype = scores->dtype;
    if (dtype == NARU_BOOL || dtype == NARU_FP16 || dtype == NARU_BF16 || dtype == NARU_BYTES) {
        return nr_fail(err, NARU_INVALID, "classification is not defined for datatype %s",
                       naru_dtype_name(dtype));
    }
    int64_t rows = batched && scores->rank > 0 ? scores->shape[0] : 1;
    int64_t count = rows > 0 ? scores->elements / rows : 0;
    if (count > UINT32_MAX) {
        return nr_fail(err, NARU_INVALID, "classification of %" PRId64 " values in one row", count);
    }
    n = NR_MIN(n, (uint32_t)count);
    size_t longest_label = 0;
    for (size_t i = 0; i < n_labels && i < (size_t)count; i++) {
        longest_label = NR_MAX(longest_label, labels[i].len);
    }
    size_t widest = 4 + (dtype == NARU_FP64 ? (size_t)VALUE_TEXT_MAX : 64) + 12 + longest_label;
    size_t elements = (size_t)rows * n; /* <= the elements of the scores */
    size_t bytes;
    struct nr_infer_tensor t = {.index = scores->index, .dtype = NARU_BYTES};
    struct ranked *best = nr_arena_try_array(arena, n, sizeof(*best));
    uint8_t *out = nr_mul(elements, widest, &bytes) ? nr_infer_take(arena, bytes, &t.buf) : NULL;
    if (best == NULL || out == NULL) {
        return nr_fail(err, NARU_NOMEM, "no memory for a classification of %zu values", elements);
    }
    t.data = out;
    for (int64_t r = 0; r < rows && n > 0; r++) {
        const uint8_t *row = scores->data + (size_t)r * (size_t)count * naru_dtype_bytes(dtype);
        select_best(dtype, row, (uint32_t)count, best, n);
        for (uint32_t i = 0; i < n; i++) {
            uint32_t index = best[i].index;
            struct nr_str label = index < n_labels ? labels[index] : (struct nr_str){NULL, 0};
            out = write_element(dtype, row, index, label, out);
        }
    }
    t.rank = batched ? 2 : 1;
    t.shape[0] = batched ? rows : n;
    t.shape[1] = batched ? n : 0;
    t.elements = (int64_t)elements;
    t.bytes = (size_t)(out - t.data);
    *ret = t;
    return NARU_OK;
}
