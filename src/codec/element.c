/* Conversions of tensor elements. FP16 is done in integers: no compiler's half type is needed, and
 * the result does not depend on the rounding mode.
 * Source: IEEE 754-2019, binary16. Threads: pure. */
#include "codec/element.h"

uint16_t nr_half_from_float(float v)
{
    uint32_t bits = nr_float_bits(v);
    uint32_t sign = (bits >> 16) & 0x8000u;
    uint32_t a = bits & 0x7fffffffu;
    if (a > 0x7f800000u) {
        return (uint16_t)(sign | 0x7e00u | ((a >> 13) & 0x1ffu));
    }
    if (a >= 0x477ff000u) { /* 65520 and above round to infinity */
        return (uint16_t)(sign | 0x7c00u);
    }
    if (a >= 0x38800000u) { /* normal in binary16: rebias, round at bit 13 */
        a += 0xfffu + ((a >> 13) & 1u);
        return (uint16_t)(sign | ((a - 0x38000000u) >> 13));
    }
    if (a < 0x33000000u) { /* below half of the smallest subnormal */
        return (uint16_t)sign;
    }
    uint32_t shift = 126u - (a >> 23); /* 14 to 24 */
    uint32_t m = (a & 0x7fffffu) | 0x800000u;
    uint32_t result = m >> shift, rest = m & ((1u << shift) - 1), half = 1u << (shift - 1);
    result += rest > half || (rest == half && (result & 1u)) ? 1u : 0u;
    return (uint16_t)(sign | result);
}

float nr_half_to_float(uint16_t v)
{
    uint32_t sign = (uint32_t)(v & 0x8000u) << 16;
    uint32_t exponent = (v >> 10) & 31u, m = v & 0x3ffu;
    if (exponent == 31u) {
        return nr_float_of_bits(sign | 0x7f800000u | (m << 13));
    }
    if (exponent != 0) {
        return nr_float_of_bits(sign | ((exponent + 112u) << 23) | (m << 13));
    }
    float magnitude = (float)m * 0x1p-24F; /* exact */
    return nr_float_of_bits(sign | nr_float_bits(magnitude));
}

bool nr_element_is_number(int32_t dtype)
{
    return naru_dtype_bytes(dtype) != 0;
}

#define CONVERT(type, expression)                 \
    for (size_t i = 0; i < n; i++) {              \
        type v;                                   \
        memcpy(&v, p + i * sizeof(v), sizeof(v)); \
        dst[i] = (expression);                    \
    }                                             \
    break

void nr_elements_to_float(int32_t dtype, const void *src, size_t n, float *dst)
{
    const uint8_t *p = src;
    switch (dtype) {
    case NARU_FP32:
        memcpy(dst, p, n * sizeof(float));
        break;
    case NARU_BOOL:
        CONVERT(uint8_t, v != 0 ? 1.0F : 0.0F);
    case NARU_UINT8:
        CONVERT(uint8_t, (float)v);
    case NARU_UINT16:
        CONVERT(uint16_t, (float)v);
    case NARU_UINT32:
        CONVERT(uint32_t, (float)v);
    case NARU_UINT64:
        CONVERT(uint64_t, (float)v);
    case NARU_INT8:
        CONVERT(int8_t, (float)v);
    case NARU_INT16:
        CONVERT(int16_t, (float)v);
    case NARU_INT32:
        CONVERT(int32_t, (float)v);
    case NARU_INT64:
        CONVERT(int64_t, (float)v);
    case NARU_FP16:
        CONVERT(uint16_t, nr_half_to_float(v));
    case NARU_FP64:
        CONVERT(double, (float)v);
    case NARU_BF16:
        CONVERT(uint16_t, nr_bf16_to_float(v));
    default:
        memset(dst, 0, n * sizeof(float));
        break;
    }
}
