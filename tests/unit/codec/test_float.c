/* Reading and writing floats: against the C library, for round trips, for shortness, and the table of
 * powers against long arithmetic. */
#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/str.h"
#include "codec/float.h"
#include "codec/pow10.h"

static uint64_t random_state = 88172645463325252u;

static uint64_t random_next(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

/* Significant digits of a number's text. */
static int count_digits(const char *text)
{
    char digits[64];
    int n = 0;
    for (; *text != '\0' && *text != 'e'; text++) {
        if (*text >= '0' && *text <= '9' && (n > 0 || *text != '0')) {
            digits[n++] = *text;
        }
    }
    while (n > 0 && digits[n - 1] == '0') {
        n--;
    }
    return n;
}

static double read_back(const char *text, const char *end)
{
    double d = 0;
    const char *p = text;
    assert_int_equal(nr_double_scan(&p, end, &d), NR_SCAN_OK);
    assert_ptr_equal(p, end);
    return d;
}

/* Ten million bit patterns of float32: each reads back to the same bits. A part of them is compared
 * with the shortest text that the C library finds by trying every precision. */
static void test_float_round_trip(void **state)
{
    (void)state;
    for (int i = 0; i < 10000000; i++) {
        uint32_t bits = (uint32_t)random_next();
        float f;
        memcpy(&f, &bits, sizeof(f));
        if (!isfinite(f)) {
            continue;
        }
        char text[NR_FLOAT_TEXT_MAX + 1];
        char *end = nr_float_write(f, text);
        *end = '\0';
        float back = (float)read_back(text, end);
        if (memcmp(&back, &f, sizeof(f)) != 0) {
            fail_msg("%a became %s", (double)f, text);
        }
        for (int digits = 1; i % 100 == 0 && digits <= 9; digits++) {
            char other[64];
            snprintf(other, sizeof(other), "%.*e", digits - 1, (double)f);
            if (strtof(other, NULL) == f) {
                if (count_digits(text) > digits) {
                    fail_msg("%s is longer than %s", text, other);
                }
                break;
            }
        }
    }
}

static void test_double_round_trip(void **state)
{
    (void)state;
    for (int i = 0; i < 2000000; i++) {
        uint64_t bits = random_next();
        double d;
        memcpy(&d, &bits, sizeof(d));
        if (!isfinite(d)) {
            continue;
        }
        char text[NR_FLOAT_TEXT_MAX + 1];
        char *end = nr_double_write(d, text);
        *end = '\0';
        double back = read_back(text, end);
        if (memcmp(&back, &d, sizeof(d)) != 0 || strtod(text, NULL) != d) {
            fail_msg("%a became %s", d, text);
        }
        if (i % 50 == 0) {
            char other[64];
            snprintf(other, sizeof(other), "%.15e", d); /* 16 digits */
            assert_true(count_digits(text) <= 17);
            if (strtod(other, NULL) == d) {
                assert_true(count_digits(text) <= 16);
            }
        }
    }
}

/* Texts of every length, with and without point and exponent, against strtod. */
static void test_parse_random(void **state)
{
    (void)state;
    for (int i = 0; i < 2000000; i++) {
        char text[96];
        int n = 0;
        int digits = 1 + (int)(random_next() % 24);
        int point = (int)(random_next() % (uint64_t)(digits + 1));
        if (random_next() & 1) {
            text[n++] = '-';
        }
        if (point == 0) {
            text[n++] = '0';
            text[n++] = '.';
        }
        for (int k = 0; k < digits; k++) {
            if (k == point && point > 0) {
                text[n++] = '.';
            }
            text[n++] =
                (char)(k == 0 && point > 0 ? '1' + random_next() % 9 : '0' + random_next() % 10);
        }
        if (random_next() % 2 == 0) {
            n += snprintf(text + n, sizeof(text) - (size_t)n, "%s%d", random_next() & 1 ? "e" : "E",
                          (int)(random_next() % 700) - 360);
        }
        text[n] = '\0';
        double want = strtod(text, NULL);
        double got = 0;
        const char *p = text;
        nr_scan scan = nr_double_scan(&p, text + n, &got);
        if (isinf(want) ? scan != NR_SCAN_RANGE
                        : scan != NR_SCAN_OK || memcmp(&got, &want, sizeof(got)) != 0) {
            fail_msg("%s: %a, expected %a", text, got, want);
        }
        assert_ptr_equal(p, text + n);
    }
}

/* Numbers on the edge between two doubles, and long ones. */
static void test_parse_hard(void **state)
{
    (void)state;
    static const char *const texts[] = {
        "9007199254740993",
        "9007199254740992.99999999999999999999999999",
        "5e-324",
        "2.5e-324",
        "2.4703282292062327e-324",
        "2.4703282292062328e-324",
        "2.2250738585072011e-308",
        "2.2250738585072014e-308",
        "1.7976931348623157e308",
        "1.7976931348623158e308",
        "0.1",
        "1e22",
        "1e23",
        "8.5e22",
        "123456789012345678901234567890",
        "0e999999999999",
        "0.000000000000000000000000000000000000000000000000000000000001",
        "-0",
        "-0.0e5",
        "7.2057594037927933e16",
        "1.00000000000000011102230246251565404236316680908203125",
        "1.00000000000000011102230246251565404236316680908203124",
        "1.00000000000000011102230246251565404236316680908203126",
        "6929495644600919.5e0"};
    for (size_t i = 0; i < NR_COUNT(texts); i++) {
        double want = strtod(texts[i], NULL);
        double got = read_back(texts[i], texts[i] + strlen(texts[i]));
        if (memcmp(&got, &want, sizeof(got)) != 0) {
            fail_msg("%s: %a, expected %a", texts[i], got, want);
        }
    }
    /* Half way between 1 and its neighbour, decided by a digit 20,000 places behind. */
    char *text = malloc(20100);
    int n = snprintf(text, 100, "%s", texts[20]);
    memset(text + n, '0', 20000);
    text[n + 20000] = '1';
    assert_true(read_back(text, text + n + 20000) == 1.0);
    assert_true(read_back(text, text + n + 20001) == 1.0000000000000002);
    memset(text, '0', 20000);
    text[1] = '.';
    n = 20000 + snprintf(text + 20000, 100, "25e20000");
    assert_true(read_back(text, text + n) == strtod(text, NULL));
    free(text);
}

static void test_syntax(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        int at;
    } bad[] = {{"", 0},    {"-", 1},   {".5", 0},  {"+1", 0},   {"1.", 2},  {"1.e5", 2}, {"1e", 2},
               {"1e+", 3}, {"NaN", 0}, {"Inf", 0}, {"-Inf", 1}, {"-.5", 1}, {"e5", 0},   {" 1", 0}};
    for (size_t i = 0; i < NR_COUNT(bad); i++) {
        char *copy = strdup(bad[i].text);
        const char *p = copy;
        double d;
        assert_int_equal(nr_double_scan(&p, copy + strlen(copy), &d), NR_SCAN_SYNTAX);
        assert_int_equal(p - copy, bad[i].at);
        free(copy);
    }
    /* What is no part of the number is left to the caller: 01, 0x10, 1.5.2 */
    static const char *const stops[] = {"01", "0x10", "1.5.2", "2-"};
    static const int ends[] = {1, 1, 3, 1};
    for (size_t i = 0; i < NR_COUNT(stops); i++) {
        const char *p = stops[i];
        double d;
        assert_int_equal(nr_double_scan(&p, stops[i] + strlen(stops[i]), &d), NR_SCAN_OK);
        assert_int_equal(p - stops[i], ends[i]);
    }
    static const struct {
        const char *text;
        nr_scan scan;
    } integers[] = {{"0", NR_SCAN_OK},
                    {"-0", NR_SCAN_OK},
                    {"18446744073709551615", NR_SCAN_OK},
                    {"18446744073709551616", NR_SCAN_RANGE},
                    {"99999999999999999999", NR_SCAN_RANGE},
                    {"100000000000000000000", NR_SCAN_RANGE},
                    {"1.0", NR_SCAN_SYNTAX},
                    {"1e3", NR_SCAN_SYNTAX},
                    {"-", NR_SCAN_SYNTAX},
                    {"", NR_SCAN_SYNTAX}};
    for (size_t i = 0; i < NR_COUNT(integers); i++) {
        const char *p = integers[i].text;
        bool negative;
        uint64_t magnitude;
        assert_int_equal(nr_integer_scan(&p, p + strlen(p), &negative, &magnitude),
                         integers[i].scan);
    }
}

/* The notation that Triton's clients know. */
static void test_notation(void **state)
{
    (void)state;
    static const struct {
        double value;
        const char *text;
    } cases[] = {{0.0, "0.0"},
                 {-0.0, "-0.0"},
                 {1.0, "1.0"},
                 {100.0, "100.0"},
                 {0.1, "0.1"},
                 {-1.5, "-1.5"},
                 {123456.789, "123456.789"},
                 {9007199254740994.0, "9007199254740994.0"},
                 {1e20, "100000000000000000000.0"},
                 {1e21, "1e21"},
                 {1.25e22, "1.25e22"},
                 {123456789012345678.0, "123456789012345680.0"},
                 {0.00001, "0.00001"},
                 {0.000001, "0.000001"},
                 {0.0000012345678901234567, "0.0000012345678901234567"},
                 {0.0000001, "1e-7"},
                 {1.5e-7, "1.5e-7"},
                 {1.7976931348623157e308, "1.7976931348623157e308"},
                 {-2.2250738585072014e-308, "-2.2250738585072014e-308"},
                 {5e-324, "5e-324"},
                 {0.3, "0.3"},
                 {2.0 / 3, "0.6666666666666666"},
                 {INFINITY, "Infinity"},
                 {-INFINITY, "-Infinity"},
                 {NAN, "NaN"}};
    char text[NR_FLOAT_TEXT_MAX + 1];
    for (size_t i = 0; i < NR_COUNT(cases); i++) {
        *nr_double_write(cases[i].value, text) = '\0';
        assert_string_equal(text, cases[i].text);
    }
    static const struct {
        float value;
        const char *text;
    } floats[] = {{0.1f, "0.1"},
                  {16777216.0f, "16777216.0"},
                  {3.4028235e38f, "3.4028235e38"},
                  {1e-45f, "1e-45"},
                  {123456.79f, "123456.79"},
                  {1e20f, "100000000000000000000.0"},
                  {1e10f, "10000000000.0"},
                  {0.00012345678f, "0.00012345678"},
                  {-9.8765432e-6f, "-0.000009876543"},
                  {8388608.5f, "8388608.0"},
                  {-INFINITY, "-Infinity"},
                  {NAN, "NaN"}};
    for (size_t i = 0; i < NR_COUNT(floats); i++) {
        *nr_float_write(floats[i].value, text) = '\0';
        assert_string_equal(text, floats[i].text);
    }
}

static void test_integers(void **state)
{
    (void)state;
    char text[48];
    char want[48];
    for (int i = 0; i < 300000; i++) {
        uint64_t v = random_next() >> (random_next() % 64);
        v = i < 64 ? (UINT64_C(1) << i) - (uint64_t)(i & 1) : v;
        *nr_u64_write(v, text) = '\0';
        snprintf(want, sizeof(want), "%llu", (unsigned long long)v);
        assert_string_equal(text, want);
        *nr_i64_write((int64_t)v, text) = '\0';
        snprintf(want, sizeof(want), "%lld", (long long)v);
        assert_string_equal(text, want);
    }
    uint64_t power = 1;
    for (int i = 0; i < 20; i++, power *= 10) {
        for (uint64_t v = power - 1; v != power + 2; v++) {
            *nr_u64_write(v, text) = '\0';
            snprintf(want, sizeof(want), "%llu", (unsigned long long)v);
            assert_string_equal(text, want);
        }
    }
    *nr_i64_write(INT64_MIN, text) = '\0';
    assert_string_equal(text, "-9223372036854775808");
}

/* ---------------------------------------------------------------------------------------------
 * The table, by long arithmetic: numbers of 40 words, least significant first
 */

#define WORDS 40

static unsigned bit_length(const uint32_t *a)
{
    for (int i = WORDS - 1; i >= 0; i--) {
        if (a[i] != 0) {
            return (unsigned)i * 32 + 32 - (unsigned)__builtin_clz(a[i]);
        }
    }
    return 0;
}

static void multiply_10(uint32_t *a)
{
    uint64_t carry = 0;
    for (int i = 0; i < WORDS; i++) {
        carry += (uint64_t)a[i] * 10;
        a[i] = (uint32_t)carry;
        carry >>= 32;
    }
    assert_int_equal(carry, 0);
}

static bool has_bit(const uint32_t *a, unsigned bit)
{
    return a[bit / 32] >> bit % 32 & 1;
}

/* 10^q for q >= 0: its top 128 bits, cut off. */
static void test_table_positive(void **state)
{
    (void)state;
    uint32_t a[WORDS] = {1};
    for (int q = 0; q <= NR_POW10_MAX; q++) {
        unsigned bits = bit_length(a);
        unsigned __int128 top = 0;
        for (unsigned i = 0; i < 128; i++) {
            top = top << 1 | (i < bits && has_bit(a, bits - 1 - i));
        }
        const struct nr_pow10 *p = &nr_pow10[q - NR_POW10_MIN];
        assert_true(p->hi == (uint64_t)(top >> 64) && p->lo == (uint64_t)top);
        if (q < NR_POW10_MAX) {
            multiply_10(a);
        }
    }
}

/* 10^-n: g * 10^n must reach a power of two and (g - 1) * 10^n must not: g is rounded up. */
static void test_table_negative(void **state)
{
    (void)state;
    uint32_t a[WORDS] = {1};
    for (int n = 1; n <= -NR_POW10_MIN; n++) {
        multiply_10(a);
        const struct nr_pow10 *p = &nr_pow10[-n - NR_POW10_MIN];
        uint32_t g[4] = {(uint32_t)p->lo, (uint32_t)(p->lo >> 32), (uint32_t)p->hi,
                         (uint32_t)(p->hi >> 32)};
        assert_true(p->hi >> 63 == 1);
        uint32_t product[WORDS + 4] = {0};
        for (int i = 0; i < 4; i++) {
            uint64_t carry = 0;
            for (int k = 0; k < WORDS; k++) {
                carry += (uint64_t)g[i] * a[k] + product[i + k];
                product[i + k] = (uint32_t)carry;
                carry >>= 32;
            }
            product[i + WORDS] = (uint32_t)carry;
        }
        /* product = 2^e + rest with rest < 10^n, e = bits of the product - 1 */
        unsigned e = 0;
        for (unsigned i = 0; i < (WORDS + 4) * 32; i++) {
            e = product[i / 32] >> i % 32 & 1 ? i : e;
        }
        assert_int_equal(e, 127 + bit_length(a));
        product[e / 32] &= ~(1u << e % 32);
        int compare = 0;
        for (int i = WORDS - 1; i >= 0 && compare == 0; i--) {
            compare = product[i] < a[i] ? -1 : product[i] > a[i];
        }
        assert_int_equal(compare, -1);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_float_round_trip), cmocka_unit_test(test_double_round_trip),
        cmocka_unit_test(test_parse_random),     cmocka_unit_test(test_parse_hard),
        cmocka_unit_test(test_syntax),           cmocka_unit_test(test_notation),
        cmocka_unit_test(test_integers),         cmocka_unit_test(test_table_positive),
        cmocka_unit_test(test_table_negative),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
