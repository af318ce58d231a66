/* Elements: FP16 and BF16 in both directions, every value; other types to float. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>

#include "base/status.h"
#include "codec/element.h"

/* The value of a binary16 by its definition. */
static double half_value(uint16_t v)
{
    int e = (v >> 10) & 31, m = v & 0x3ff;
    double x = e == 0 ? ldexp(m, -24) : ldexp(m + 1024, e - 25);
    return (v & 0x8000) != 0 ? -x : x;
}

static void test_every_half(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 0x10000; i++) {
        uint16_t v = (uint16_t)i;
        float f = nr_half_to_float(v);
        if ((v & 0x7c00) == 0x7c00) {
            assert_true((v & 0x3ff) != 0 ? isnan(f) : isinf(f) && (signbit(f) != 0) == (v >> 15));
            assert_true((v & 0x3ff) == 0 || isnan(nr_half_to_float(nr_half_from_float(f))));
            continue;
        }
        assert_true((double)f == half_value(v));
        assert_int_equal(nr_half_from_float(f), v);
    }
}

/* Between any two neighbours: the middle goes to the even one, a hair beside it to the nearer. */
static void test_half_rounding(void **state)
{
    (void)state;
    for (uint16_t v = 0; v < 0x7bff; v++) {
        float lo = nr_half_to_float(v), hi = nr_half_to_float((uint16_t)(v + 1));
        float middle = (lo + hi) / 2; /* exact */
        uint16_t even = (v & 1) == 0 ? v : (uint16_t)(v + 1);
        assert_int_equal(nr_half_from_float(middle), even);
        assert_int_equal(nr_half_from_float(-middle), even | 0x8000);
        assert_int_equal(nr_half_from_float(nextafterf(middle, 0.0F)), v);
        assert_int_equal(nr_half_from_float(nextafterf(middle, INFINITY)), v + 1);
    }
    assert_int_equal(nr_half_from_float(65504.0F), 0x7bff);
    assert_int_equal(nr_half_from_float(65519.996F), 0x7bff);
    assert_int_equal(nr_half_from_float(65520.0F), 0x7c00);
    assert_int_equal(nr_half_from_float(-INFINITY), 0xfc00);
    assert_int_equal(nr_half_from_float(1e-30F), 0);
    assert_int_equal(nr_half_from_float(0x1p-25F), 0);
    assert_int_equal(nr_half_from_float(0x1.000002p-25F), 1);
}

static void test_bf16(void **state)
{
    (void)state;
    assert_int_equal(nr_bf16_from_float(1.0F), 0x3f80);
    assert_int_equal(nr_bf16_from_float(nr_float_of_bits(0x3f808000)), 0x3f80); /* tie to even */
    assert_int_equal(nr_bf16_from_float(nr_float_of_bits(0x3f818000)), 0x3f82);
    assert_int_equal(nr_bf16_from_float(nr_float_of_bits(0x3f808001)), 0x3f81);
    assert_int_equal(nr_bf16_from_float(INFINITY), 0x7f80);
    assert_int_equal(nr_bf16_from_float(nr_float_of_bits(0x7f7fffff)), 0x7f80);
    assert_true(isnan(nr_bf16_to_float(nr_bf16_from_float(nr_float_of_bits(0x7f800001)))));
    for (uint32_t i = 0; i < 0x10000; i++) {
        float f = nr_bf16_to_float((uint16_t)i);
        assert_true(isnan(f) || nr_bf16_from_float(f) == i);
    }
}

static void check(int32_t dtype, const void *src, float a, float b)
{
    float out[2];
    uint8_t moved[17];
    memcpy(moved + 1, src, 2 * naru_dtype_bytes(dtype)); /* odd address */
    nr_elements_to_float(dtype, moved + 1, 2, out);
    assert_true(out[0] == a && out[1] == b);
}

static void test_types(void **state)
{
    (void)state;
    check(NARU_BOOL, (uint8_t[]){0, 2}, 0, 1);
    check(NARU_UINT8, (uint8_t[]){0, 255}, 0, 255);
    check(NARU_INT8, (int8_t[]){-128, 127}, -128, 127);
    check(NARU_UINT16, (uint16_t[]){1, 65535}, 1, 65535);
    check(NARU_INT16, (int16_t[]){-32768, 5}, -32768, 5);
    check(NARU_UINT32, (uint32_t[]){1, 1u << 31}, 1, 0x1p31F);
    check(NARU_INT32, (int32_t[]){-7, INT32_MIN}, -7, -0x1p31F);
    check(NARU_UINT64, (uint64_t[]){3, UINT64_C(1) << 63}, 3, 0x1p63F);
    check(NARU_INT64, (int64_t[]){-3, INT64_MIN}, -3, -0x1p63F);
    check(NARU_FP16, (uint16_t[]){0x3c00, 0xc000}, 1, -2);
    check(NARU_BF16, (uint16_t[]){0x3f80, 0xc000}, 1, -2);
    check(NARU_FP32, (float[]){0.1F, -2.5F}, 0.1F, -2.5F);
    check(NARU_FP64, (double[]){0.1, -2.5}, 0.1F, -2.5F);
    assert_false(nr_element_is_number(NARU_BYTES));
    assert_false(nr_element_is_number(0));
    assert_false(nr_element_is_number(99));
    assert_true(nr_element_is_number(NARU_BF16));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_half),
        cmocka_unit_test(test_half_rounding),
        cmocka_unit_test(test_bf16),
        cmocka_unit_test(test_types),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
