/* Sizes of tensors, and the serialized form of BYTES: the one place where shapes become bytes.
 *
 * Every size that a peer states goes through nr_tensor_bytes; nothing else multiplies dimensions.
 * All functions are pure and may be called from any thread.
 */
#ifndef NR_CODEC_TENSOR_H
#define NR_CODEC_TENSOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "base/str.h"
#include "naru/tensor.h"

#define NR_DIM_MAX INT32_MAX /* largest single dimension that is accepted */

/* Product of shape[rank] (1 for rank 0). False when a dimension is negative or above NR_DIM_MAX,
 * rank exceeds NARU_MAX_RANK, or the product does not fit int64_t; *ret is then untouched. */
nr_nodiscard bool nr_tensor_elements(const int64_t *shape, uint32_t rank, int64_t *ret);

/* Bytes of a dense tensor. For BYTES, whose elements have no fixed size, the least it can take:
 * four bytes (the length) per element. False as nr_tensor_elements, when the size does not fit
 * int64_t, or when dtype is no datatype. */
nr_nodiscard bool nr_tensor_bytes(int32_t dtype, const int64_t *shape, uint32_t rank, int64_t *ret);

/* KServe name ("FP32") → enum naru_dtype_code; NARU_DTYPE_NONE for anything else. */
int32_t nr_dtype_from_name(struct nr_str name);

/* Is data[bytes] exactly `elements` BYTES elements? Otherwise fills *err with what is wrong;
 * `what` ("input 'X'") begins the text. */
nr_nodiscard nr_status nr_tensor_bytes_check(const uint8_t *data, size_t bytes, int64_t elements,
                                             const char *what, struct nr_err *err);

/* Reads the next BYTES element of checked data: moves *at behind it. */
static inline struct nr_str nr_tensor_bytes_next(const uint8_t *data, size_t *at)
{
    uint32_t len = 0;
    memcpy(&len, data + *at, sizeof(len));
    struct nr_str s = {(const char *)data + *at + sizeof(len), len};
    *at += sizeof(len) + len;
    return s;
}

/* "[1,3,-1]" into text[cap]; cut at the end. Returns text. */
#define NR_SHAPE_TEXT_MAX 128
const char *nr_shape_text(const int64_t *shape, uint32_t rank, char *text, size_t cap);

#endif
