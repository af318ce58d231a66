/* Strings: number grammars with their edges, units, UTF-8, distances, and the growable text. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <float.h>
#include <limits.h>
#include <locale.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/mem.h"
#include "base/str.h"

static const struct nr_str nothing = {NULL, 0};

static void test_views(void **state)
{
    (void)state;
    assert_true(nr_str_eq(nothing, NR_STR("")));
    assert_true(nr_str_is(nothing, ""));
    assert_int_equal(nr_str_from(NULL).len, 0);
    assert_false(nr_str_eq(NR_STR("a\0b"), NR_STR("a\0c")));
    assert_true(nr_str_eq_nocase(NR_STR("Content-LENGTH"), NR_STR("content-length")));
    assert_false(nr_str_eq_nocase(NR_STR("[a"), NR_STR("{a"))); /* only letters fold */
    assert_false(nr_str_eq_nocase(NR_STR("a"), NR_STR("ab")));
    assert_true(nr_str_starts(NR_STR("model.onnx"), NR_STR("model")));
    assert_true(nr_str_starts(NR_STR("x"), nothing));
    assert_false(nr_str_starts(NR_STR("mo"), NR_STR("model")));
    assert_true(nr_str_ends(NR_STR("model.onnx"), NR_STR(".onnx")));
    assert_true(nr_str_ends(nothing, nothing));
    assert_false(nr_str_ends(NR_STR("onnx"), NR_STR(".onnx")));
    assert_true(nr_str_is(nr_str_trim(NR_STR(" \t a b\t ")), "a b"));
    assert_int_equal(nr_str_trim(NR_STR(" \t ")).len, 0);
    assert_int_equal(nr_str_trim(nothing).len, 0);
    assert_int_equal(nr_str_find(NR_STR("abc"), 'c'), 2);
    assert_int_equal(nr_str_find(nothing, 'c'), -1);
}

static void test_cut(void **state)
{
    (void)state;
    struct nr_str rest;
    assert_true(nr_str_is(nr_str_cut(NR_STR("a,b,c"), ',', &rest), "a"));
    assert_true(nr_str_is(rest, "b,c"));
    assert_true(nr_str_is(nr_str_cut(NR_STR("a,"), ',', &rest), "a"));
    assert_non_null(rest.ptr); /* there was a separator: an empty part follows */
    assert_int_equal(rest.len, 0);
    assert_true(nr_str_is(nr_str_cut(NR_STR("abc"), ',', &rest), "abc"));
    assert_null(rest.ptr);
    /* rest may be the string itself */
    struct nr_str s = NR_STR("x=y");
    struct nr_str key = nr_str_cut(s, '=', &s);
    assert_true(nr_str_is(key, "x") && nr_str_is(s, "y"));
    nr_str_cut(nothing, ',', &rest);
    assert_null(rest.ptr);
}

static void test_u64(void **state)
{
    (void)state;
    uint64_t v = 77;
    assert_true(nr_str_to_u64(NR_STR("18446744073709551615"), &v));
    assert_true(v == UINT64_MAX);
    assert_true(nr_str_to_u64(NR_STR("000"), &v));
    assert_int_equal(v, 0);
    v = 77;
    static const char *const bad[] = {"",
                                      "18446744073709551616",
                                      "99999999999999999999999",
                                      "-1",
                                      "+1",
                                      " 1",
                                      "1 ",
                                      "1a",
                                      "0x10",
                                      "1.",
                                      "1e3"};
    for (size_t i = 0; i < NR_COUNT(bad); i++) {
        assert_false(nr_str_to_u64(nr_str_from(bad[i]), &v));
    }
    assert_false(nr_str_to_u64(NR_STR("1\0"), &v));
    assert_false(nr_str_to_u64(nothing, &v));
    assert_int_equal(v, 77); /* written on success only */
}

static void test_i64(void **state)
{
    (void)state;
    int64_t v = 77;
    assert_true(nr_str_to_i64(NR_STR("-9223372036854775808"), &v));
    assert_true(v == INT64_MIN);
    assert_true(nr_str_to_i64(NR_STR("9223372036854775807"), &v));
    assert_true(v == INT64_MAX);
    assert_true(nr_str_to_i64(NR_STR("-0"), &v));
    assert_int_equal(v, 0);
    v = 77;
    static const char *const bad[] = {
        "", "-", "--1", "+1", "9223372036854775808", "-9223372036854775809", "- 1", "1-"};
    for (size_t i = 0; i < NR_COUNT(bad); i++) {
        assert_false(nr_str_to_i64(nr_str_from(bad[i]), &v));
    }
    assert_int_equal(v, 77);
}

static void test_double(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        double value;
    } good[] = {
        {"0", 0.0},
        {"-0.0", -0.0},
        {"1.", 1.0},
        {".5", 0.5},
        {"-1.5e+3", -1500.0},
        {"1E-2", 0.01},
        {"0.1", 0x1.999999999999ap-4},
        {"9007199254740993", 0x1p53}, /* halfway, ties to even */
        {"9007199254740993.0000000000000000000000001", 0x1.0000000000001p53},
        {"1.7976931348623157e308", DBL_MAX},
        {"5e-324", 0x1p-1074},
        {"2.4703282292062327208e-324", 0.0}, /* just below half the least one */
        {"2.4703282292062328e-324", 0x1p-1074},
        {"1e-999", 0.0},
        {"2.2250738585072011e-308", 0x0.fffffffffffffp-1022},
    };
    for (size_t i = 0; i < NR_COUNT(good); i++) {
        double v = 77;
        assert_true(nr_str_to_double(nr_str_from(good[i].text), &v));
        assert_memory_equal(&v, &good[i].value, sizeof(v)); /* -0.0 too */
    }
    static const char *const bad[] = {"",      ".",   "-",   "-.",    "e5",  "1e",    "1e+",
                                      "+1",    " 1",  "1 ",  "inf",   "nan", "-inf",  "0x1p3",
                                      "1e309", "1,5", "1_0", "1.2.3", "1f",  "1e5.5", "infinity"};
    double v = 77;
    for (size_t i = 0; i < NR_COUNT(bad); i++) {
        assert_false(nr_str_to_double(nr_str_from(bad[i]), &v));
    }
    assert_false(nr_str_to_double(nothing, &v));
    assert_false(nr_str_to_double(NR_STR("1\0002"), &v));
    char longest[1024];
    memset(longest, '0', sizeof(longest));
    assert_false(nr_str_to_double((struct nr_str){longest, 1024}, &v));
    assert_true(v == 77);
    assert_true(nr_str_to_double((struct nr_str){longest, 1023}, &v));
    assert_true(v == 0);
}

static void test_double_ignores_locale(void **state)
{
    (void)state;
    static const char *const names[] = {"de_DE.UTF-8", "de_DE.utf8", "fr_FR.UTF-8"};
    for (size_t i = 0; i < NR_COUNT(names); i++) {
        (void)setlocale(LC_ALL, names[i]); /* where installed */
    }
    double v;
    assert_true(nr_str_to_double(NR_STR("1.5"), &v));
    assert_true(v == 1.5);
    assert_false(nr_str_to_double(NR_STR("1,5"), &v));
    setlocale(LC_ALL, "C");
}

static void test_bytes(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        uint64_t value;
    } good[] = {
        {"0", 0},
        {"4096", 4096},
        {"64MiB", UINT64_C(64) << 20},
        {"64mi", UINT64_C(64) << 20},
        {"10k", 10000},
        {"10KB", 10000},
        {"1.5GB", 1500000000},
        {"1.5GiB", UINT64_C(3) << 29},
        {"7b", 7},
        {"0.5KiB", 512},
        {"1.0009k", 1000}, /* rounded down */
        {"18446744073709551615", UINT64_MAX},
        {"16777215TiB", UINT64_C(16777215) << 40},
        {"18446744073709.551615M", UINT64_C(18446744073709551615)},
    };
    for (size_t i = 0; i < NR_COUNT(good); i++) {
        uint64_t v = 77;
        assert_true(nr_str_to_bytes(nr_str_from(good[i].text), &v));
        assert_true(v == good[i].value);
    }
    static const char *const bad[] = {"",
                                      "k",
                                      "MiB",
                                      "-1",
                                      "1.5",
                                      "1.",
                                      "1.k",
                                      ".5k",
                                      "1 k",
                                      "1kk",
                                      "1x",
                                      "18446744073709551616",
                                      "16777216TiB",
                                      "20000000TB",
                                      "1.0000000000000000001k",
                                      "18446744073709.551616M",
                                      "1e3"};
    uint64_t v = 77;
    for (size_t i = 0; i < NR_COUNT(bad); i++) {
        assert_false(nr_str_to_bytes(nr_str_from(bad[i]), &v));
    }
    assert_int_equal(v, 77);
}

static void test_duration(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        uint64_t value;
    } good[] = {
        {"5s", UINT64_C(5000000000)},
        {"250ms", 250000000},
        {"100us", 100000},
        {"1h", UINT64_C(3600000000000)},
        {"2m", UINT64_C(120000000000)},
        {"2min", UINT64_C(120000000000)},
        {"1.5s", 1500000000},
        {"7ns", 7},
        {"1d", UINT64_C(86400000000000)},
        {"12", 12000},
        {"0", 0},
        {"0.0000000015s", 1},
    };
    for (size_t i = 0; i < NR_COUNT(good); i++) {
        uint64_t v = 77;
        assert_true(nr_str_to_duration(nr_str_from(good[i].text), 1000, &v));
        assert_true(v == good[i].value);
    }
    uint64_t v = 77;
    static const char *const bad[] = {"", "s", "-5s", "5 s", "5x", "1.5", "213504d", "5s5"};
    for (size_t i = 0; i < NR_COUNT(bad); i++) {
        assert_false(nr_str_to_duration(nr_str_from(bad[i]), 1000, &v));
    }
    assert_int_equal(v, 77);
    assert_true(nr_str_to_duration(NR_STR("213503d"), 1000, &v));
}

static void test_utf8(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        size_t len;
        bool is_valid;
    } cases[] = {
        {"", 0, true},
        {"plain ascii, longer than a word", 31, true},
        {"\xc3\xa9", 2, true},
        {"\xe2\x82\xac", 3, true},
        {"\xf0\x9f\x98\x80", 4, true},
        {"\xef\xbf\xbf", 3, true},
        {"\xf4\x8f\xbf\xbf", 4, true},
        {"\xed\x9f\xbf", 3, true},
        {"\xee\x80\x80", 3, true},
        {"a\0b", 3, true},
        {"\x80", 1, false}, /* lone continuation */
        {"\xc3", 1, false}, /* ends early */
        {"\xe2\x82", 2, false},
        {"\xf0\x9f\x98", 3, false},
        {"\xc0\x80", 2, false}, /* overlong */
        {"\xc1\xbf", 2, false},
        {"\xe0\x9f\xbf", 3, false},
        {"\xf0\x8f\xbf\xbf", 4, false},
        {"\xed\xa0\x80", 3, false},     /* surrogate */
        {"\xf4\x90\x80\x80", 4, false}, /* above U+10FFFF */
        {"\xf5\x80\x80\x80", 4, false},
        {"\xff", 1, false},
        {"\xc3\x28", 2, false},
        {"abcdefgh\xff", 9, false}, /* behind the word-wise part */
        {"abcdefg\xc3\xa9hijklmn\xc3", 17, false},
    };
    for (size_t i = 0; i < NR_COUNT(cases); i++) {
        assert_int_equal(nr_str_is_utf8((struct nr_str){cases[i].text, cases[i].len}),
                         cases[i].is_valid);
    }
    assert_true(nr_str_is_utf8(nothing));
}

static void test_utf8_fit(void **state)
{
    (void)state;
    struct nr_str s = NR_STR("a\xe2\x82\xac\xf0\x9f\x98\x80z"); /* 1 + 3 + 4 + 1 */
    static const size_t want[] = {0, 1, 1, 1, 4, 4, 4, 4, 8, 9, 9};
    for (size_t max = 0; max < NR_COUNT(want); max++) {
        assert_int_equal(nr_str_utf8_fit(s, max), want[max]);
    }
    /* Bytes that are no UTF-8 are cut anywhere, never read past the start. */
    assert_int_equal(nr_str_utf8_fit(NR_STR("\x80\x80\x80\x80\x80\x80"), 5), 5);
    assert_int_equal(nr_str_utf8_fit(NR_STR("\x80\x80\x80"), 1), 1);
    assert_int_equal(nr_str_utf8_fit(nothing, 0), 0);
}

static void test_distance(void **state)
{
    (void)state;
    assert_int_equal(nr_str_distance(NR_STR("kitten"), NR_STR("sitting")), 3);
    assert_int_equal(nr_str_distance(NR_STR(""), NR_STR("abc")), 3);
    assert_int_equal(nr_str_distance(NR_STR("abc"), nothing), 3);
    assert_int_equal(nr_str_distance(NR_STR("--http-prot"), NR_STR("--http-port")), 2);
    assert_int_equal(nr_str_distance(NR_STR("same"), NR_STR("same")), 0);
    char a[64];
    char b[64];
    memset(a, 'a', sizeof(a));
    memset(b, 'b', sizeof(b));
    assert_int_equal(nr_str_distance((struct nr_str){a, 63}, (struct nr_str){b, 63}), 63);
    assert_int_equal(nr_str_distance((struct nr_str){a, 64}, (struct nr_str){b, 1}), UINT_MAX);
}

static void test_text(void **state)
{
    (void)state;
    struct nr_text t;
    nr_text_init(&t, 1 << 20);
    assert_null(t.data);
    nr_text_add(&t, NULL, 0);
    for (int i = 0; i < 1000; i++) {
        nr_text_fmt(&t, "%d,", i);
    }
    assert_false(t.failed);
    assert_int_equal(t.len, 3890);
    assert_int_equal(strlen(t.data), 3890);
    nr_text_clear(&t);
    assert_int_equal(t.len, 0);
    nr_text_str(&t, "again");
    char *taken = nr_text_take(&t);
    assert_string_equal(taken, "again");
    nr_free(taken);
    taken = nr_text_take(&t);
    assert_string_equal(taken, "");
    nr_free(taken);
    nr_text_str(&t, "x"); /* usable after take, with the same cap */
    assert_int_equal(t.cap, 1 << 20);
    nr_text_done(&t);
}

static void test_text_cap(void **state)
{
    (void)state;
    struct nr_text t;
    nr_text_init(&t, 10);
    nr_text_str(&t, "0123456789"); /* exactly the cap */
    assert_false(t.failed);
    nr_text_str(&t, "x");
    assert_true(t.failed);
    assert_string_equal(t.data, "0123456789");
    nr_text_clear(&t);
    nr_text_str(&t, "abc");
    nr_text_fmt(&t, "%s", "01234567"); /* one too many: nothing of it stays */
    assert_true(t.failed);
    assert_string_equal(t.data, "abc");
    nr_text_str(&t, "d"); /* would fit, but failed is sticky */
    assert_string_equal(t.data, "abc");
    assert_false(nr_text_reserve(&t, 0));
    nr_text_done(&t);
    nr_text_init(&t, SIZE_MAX);
    nr_text_str(&t, "a");
    assert_false(nr_text_reserve(&t, SIZE_MAX - 2));
    assert_true(t.failed);
    nr_text_done(&t);
    nr_text_init(&t, 0);
    nr_text_json(&t, NR_STR("x"));
    assert_true(t.failed);
    nr_text_done(&t);
}

static void test_text_without_memory(void **state)
{
    (void)state;
    for (uint64_t n = 1;; n++) {
        struct nr_text t;
        nr_text_init(&t, 1 << 20);
        nr_mem_fail_after(n, false);
        for (int i = 0; i < 500; i++) {
            nr_text_fmt(&t, "%d ", i);
            nr_text_json(&t, NR_STR("\n"));
        }
        nr_mem_fail_after(0, false);
        bool failed = t.failed;
        assert_true(t.len <= t.cap);
        nr_text_done(&t);
        if (!failed) {
            assert_true(n > 3); /* several points could fail, and did */
            break;
        }
    }
}

static void test_text_at(void **state)
{
    (void)state;
    char storage[8];
    struct nr_text t;
    nr_text_init_at(&t, storage, sizeof(storage));
    uint64_t before = nr_mem_allocs();
    nr_text_str(&t, "1234567");
    assert_false(t.failed);
    nr_text_fmt(&t, "%d", 8);
    assert_true(t.failed);
    assert_string_equal(storage, "1234567");
    assert_int_equal(nr_mem_allocs(), before);
}

static void test_json(void **state)
{
    (void)state;
    static const struct {
        struct nr_str in;
        const char *out;
    } cases[] = {
        {NR_STR_INIT(""), "\"\""},
        {NR_STR_INIT("plain"), "\"plain\""},
        {NR_STR_INIT("q\"b\\s/"), "\"q\\\"b\\\\s/\""},
        {NR_STR_INIT("\b\f\n\r\t"), "\"\\b\\f\\n\\r\\t\""},
        {NR_STR_INIT("\0\x01\x1f\x7f"), "\"\\u0000\\u0001\\u001f\\u007f\""},
        {NR_STR_INIT("\xc2\x85\xc2\x9f\xc2\xa0"), "\"\\u0085\\u009f\xc2\xa0\""},
        {NR_STR_INIT("\xe2\x80\xa8\xe2\x80\xa9\xe2\x80\xa7"), "\"\\u2028\\u2029\xe2\x80\xa7\""},
        {NR_STR_INIT("\xf0\x9f\x98\x80"), "\"\xf0\x9f\x98\x80\""},
        {NR_STR_INIT("a\xff"
                     "b"),
         "\"a\xef\xbf\xbd"
         "b\""},
        {NR_STR_INIT("\xe2\x82"), "\"\xef\xbf\xbd\""}, /* one broken character, one mark */
        {NR_STR_INIT("\xe2\x82"
                     "A"),
         "\"\xef\xbf\xbd"
         "A\""},
        {NR_STR_INIT("\xed\xa0\x80"), "\"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\""},
        {NR_STR_INIT("\xf0\x9f\x98\n"), "\"\xef\xbf\xbd\\n\""},
    };
    struct nr_text t;
    nr_text_init(&t, 1 << 16);
    for (size_t i = 0; i < NR_COUNT(cases); i++) {
        nr_text_clear(&t);
        nr_text_json(&t, cases[i].in);
        assert_string_equal(t.data, cases[i].out);
    }
    nr_text_clear(&t);
    nr_text_json(&t, nothing);
    assert_string_equal(t.data, "\"\"");
    /* Any bytes give valid UTF-8 without control characters. */
    srand(7);
    for (int round = 0; round < 2000; round++) {
        char bytes[24];
        for (size_t i = 0; i < sizeof(bytes); i++) {
            bytes[i] = (char)(rand() >> 7);
        }
        nr_text_clear(&t);
        nr_text_json(&t, (struct nr_str){bytes, (size_t)rand() % (sizeof(bytes) + 1)});
        assert_true(nr_str_is_utf8((struct nr_str){t.data, t.len}));
        for (size_t i = 0; i < t.len; i++) {
            assert_true((unsigned char)t.data[i] >= 0x20);
        }
    }
    nr_text_done(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_views),    cmocka_unit_test(test_cut),
        cmocka_unit_test(test_u64),      cmocka_unit_test(test_i64),
        cmocka_unit_test(test_double),   cmocka_unit_test(test_double_ignores_locale),
        cmocka_unit_test(test_bytes),    cmocka_unit_test(test_duration),
        cmocka_unit_test(test_utf8),     cmocka_unit_test(test_utf8_fit),
        cmocka_unit_test(test_distance), cmocka_unit_test(test_text),
        cmocka_unit_test(test_text_cap), cmocka_unit_test(test_text_without_memory),
        cmocka_unit_test(test_text_at),  cmocka_unit_test(test_json),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
