/* Sizes of tensors: see tensor.h.
 *
 * Dimensions come from clients, so every product is checked; the largest tensor that passes is one
 * that fits int64_t, and callers compare it with bytes that are really there before they allocate.
 * Pure functions, any thread.
 */
#include "codec/tensor.h"

#include <inttypes.h>
#include <stdio.h>

bool nr_tensor_elements(const int64_t *shape, uint32_t rank, int64_t *ret)
{
    if (rank > NARU_MAX_RANK) {
        return false;
    }
    int64_t elements = 1;
    bool fits = true;
    bool empty = false; /* [2^31 - 1, …, 0]: nothing, however large the others are */
    for (uint32_t i = 0; i < rank; i++) {
        if (shape[i] < 0 || shape[i] > NR_DIM_MAX) {
            return false;
        }
        empty = empty || shape[i] == 0;
        fits = fits && !__builtin_mul_overflow(elements, shape[i], &elements);
    }
    if (!fits && !empty) {
        return false;
    }
    *ret = empty ? 0 : elements;
    return true;
}

bool nr_tensor_bytes(int32_t dtype, const int64_t *shape, uint32_t rank, int64_t *ret)
{
    int64_t elements;
    int64_t size = dtype == NARU_BYTES ? 4 : naru_dtype_bytes(dtype);
    return size > 0 && nr_tensor_elements(shape, rank, &elements) &&
           !__builtin_mul_overflow(elements, size, ret);
}

int32_t nr_dtype_from_name(struct nr_str name)
{
#define IS(symbol, number, bytes, text, config)                                          \
    if (name.len == sizeof(text) - 1 && memcmp(name.ptr, text, sizeof(text) - 1) == 0) { \
        return number;                                                                   \
    }
    NARU_DTYPE_MAP(IS)
#undef IS
    return NARU_DTYPE_NONE;
}

nr_status nr_tensor_bytes_check(const uint8_t *data, size_t bytes, int64_t elements,
                                const char *what, struct nr_err *err)
{
    size_t at = 0;
    int64_t n = 0;
    while (at < bytes) {
        uint32_t len;
        if (n == elements) {
            return nr_fail(err, NARU_INVALID,
                           "%s: %zu bytes follow the %" PRId64
                           " BYTES elements that its shape says",
                           what, bytes - at, elements);
        }
        if (bytes - at < sizeof(len)) {
            return nr_fail(
                err, NARU_INVALID,
                "%s: %zu bytes at offset %zu are too few for a BYTES element, which begins "
                "with its length in 4 bytes",
                what, bytes - at, at);
        }
        memcpy(&len, data + at, sizeof(len));
        at += sizeof(len);
        if (len > bytes - at) {
            return nr_fail(err, NARU_INVALID,
                           "%s: BYTES element %" PRId64
                           " states a length of %u bytes, but only %zu follow",
                           what, n, len, bytes - at);
        }
        at += len;
        n++;
    }
    if (n != elements) {
        return nr_fail(err, NARU_INVALID,
                       "%s: shape says %" PRId64 " BYTES elements, but the data holds %" PRId64,
                       what, elements, n);
    }
    return NARU_OK;
}

const char *nr_shape_text(const int64_t *shape, uint32_t rank, char *text, size_t cap)
{
    size_t at = 0;
    for (uint32_t i = 0; i <= rank && at + 1 < cap; i++) {
        int n = i < rank ? snprintf(text + at, cap - at, "%c%" PRId64, i ? ',' : '[', shape[i])
                         : snprintf(text + at, cap - at, "%s", rank ? "]" : "[]");
        at += n > 0 ? (size_t)n : 0;
    }
    return text;
}
