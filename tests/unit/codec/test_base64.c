/* Base64: RFC 4648 vectors, every length and byte, strictness, decoding in place, data URLs. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "codec/base64.h"

static const char *const vectors[][2] = {
    {"", ""},
    {"f", "Zg=="},
    {"fo", "Zm8="},
    {"foo", "Zm9v"},
    {"foob", "Zm9vYg=="},
    {"fooba", "Zm9vYmE="},
    {"foobar", "Zm9vYmFy"},
};

static void test_vectors(void **state)
{
    (void)state;
    for (size_t i = 0; i < NR_COUNT(vectors); i++) {
        struct nr_str plain = nr_str_from(vectors[i][0]), text = nr_str_from(vectors[i][1]);
        char out[16] = "";
        assert_int_equal(nr_base64_encoded_len(plain.len), text.len);
        nr_base64_encode(plain.ptr, plain.len, out);
        assert_memory_equal(out, text.ptr, text.len);
        size_t len = 99;
        assert_int_equal(nr_base64_decode(text, out, sizeof(out), &len, NULL), NARU_OK);
        assert_int_equal(len, plain.len);
        assert_memory_equal(out, plain.ptr, plain.len);
    }
}

static void test_all_lengths_in_place(void **state)
{
    (void)state;
    uint8_t data[300];
    char text[404];
    for (size_t i = 0; i < sizeof(data); i++) {
        data[i] = (uint8_t)(i * 151 + 7);
    }
    for (size_t n = 0; n <= sizeof(data); n++) {
        nr_base64_encode(data, n, text);
        size_t len = 0;
        struct nr_str in = {text, nr_base64_encoded_len(n)};
        assert_true(n <= nr_base64_decoded_max(in.len));
        assert_int_equal(nr_base64_decode(in, text, n, &len, NULL), NARU_OK);
        assert_int_equal(len, n);
        assert_memory_equal(text, data, n);
    }
}

static void test_strict(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "Z",        "Zg",   "Zg=",      "Zm9vY===",  "====",        "Z===",     "=AAA",
        "Zg==Zg==", "Zm=v", "Zm 9",     "Zm9v\nZm9", "Zm9\n",       "Zm9-",     "Zm9_",
        "Zh==",     "Zm9=", "Zm9vZm9%", "\x80m9v",   "AAAA\377AAA", "AAAAA=AA", "A==A",
    };
    for (size_t i = 0; i < NR_COUNT(bad); i++) {
        char out[16];
        size_t len = 77;
        struct nr_err err = {0};
        assert_int_equal(nr_base64_decode(nr_str_from(bad[i]), out, sizeof(out), &len, &err),
                         NARU_INVALID);
        assert_int_equal(len, 77);
        assert_non_null(strstr(err.text, "base64"));
    }
    struct nr_err err = {0};
    char out[16];
    size_t len;
    assert_int_equal(nr_base64_decode(NR_STR("AAAAAA*ABBBB"), out, sizeof(out), &len, &err),
                     NARU_INVALID);
    assert_non_null(strstr(err.text, "position 6"));
}

static void test_every_character(void **state)
{
    (void)state;
    unsigned good = 0;
    for (int c = 0; c < 256; c++) {
        char text[8] = {'A', (char)c, 'A', 'A', 'A', 'A', 'A', 'A'}, out[8];
        size_t len;
        struct nr_str s = {text, 8};
        good += nr_base64_decode(s, out, sizeof(out), &len, NULL) == NARU_OK;
    }
    assert_int_equal(good, 64);
}

static void test_cap(void **state)
{
    (void)state;
    char out[4] = {0, 0, 0, 'x'};
    size_t len;
    assert_int_equal(nr_base64_decode(NR_STR("Zm9v"), out, 3, &len, NULL), NARU_OK);
    assert_int_equal(nr_base64_decode(NR_STR("Zm9v"), out, 2, &len, NULL), NARU_TOO_LARGE);
    assert_int_equal(nr_base64_decode(NR_STR("Zm8="), out, 2, &len, NULL), NARU_OK);
    assert_int_equal(out[3], 'x');
}

static void test_data_url(void **state)
{
    (void)state;
    struct nr_str payload, media;
    assert_true(nr_base64_data_url(NR_STR("data:image/png;base64,Zg=="), &payload, &media));
    assert_true(nr_str_is(payload, "Zg==") && nr_str_is(media, "image/png"));
    assert_true(nr_base64_data_url(NR_STR("DATA:image/png;name=x;BASE64,"), &payload, &media));
    assert_true(payload.len == 0 && nr_str_is(media, "image/png"));
    assert_true(nr_base64_data_url(NR_STR("data:;base64,AA=="), &payload, &media));
    assert_int_equal(media.len, 0);
    assert_false(nr_base64_data_url(NR_STR("data:image/png,abc"), &payload, &media));
    assert_false(nr_base64_data_url(NR_STR("data:image/png;base64"), &payload, &media));
    assert_false(nr_base64_data_url(NR_STR("data"), &payload, &media));
    assert_false(nr_base64_data_url(NR_STR("Zm9v"), &payload, &media));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_vectors), cmocka_unit_test(test_all_lengths_in_place),
        cmocka_unit_test(test_strict),  cmocka_unit_test(test_every_character),
        cmocka_unit_test(test_cap),     cmocka_unit_test(test_data_url),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
