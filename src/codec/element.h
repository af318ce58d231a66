/* Single tensor elements: float ↔ FP16 and BF16, and any numeric type → float.
 * Conversions round to nearest even and keep infinities, NaN and subnormal numbers. Pure. */
#ifndef NR_CODEC_ELEMENT_H
#define NR_CODEC_ELEMENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "naru/tensor.h"

static inline uint32_t nr_float_bits(float v)
{
    uint32_t bits;
    memcpy(&bits, &v, sizeof(bits));
    return bits;
}
static inline float nr_float_of_bits(uint32_t bits)
{
    float v;
    memcpy(&v, &bits, sizeof(v));
    return v;
}

static inline uint16_t nr_bf16_from_float(float v)
{
    uint32_t bits = nr_float_bits(v);
    if ((bits & 0x7fffffffu) > 0x7f800000u) {
        return (uint16_t)((bits >> 16) | 0x40u); /* NaN stays NaN */
    }
    return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
static inline float nr_bf16_to_float(uint16_t v)
{
    return nr_float_of_bits((uint32_t)v << 16);
}

uint16_t nr_half_from_float(float v);
float nr_half_to_float(uint16_t v);

/* false for BYTES and numbers that are no datatype: their elements are no numbers. */
bool nr_element_is_number(int32_t dtype);

/* n elements of a numeric dtype at src (any alignment) as floats. BOOL gives 0 or 1; 64-bit values
 * are rounded. */
void nr_elements_to_float(int32_t dtype, const void *src, size_t n, float *dst);

#endif
