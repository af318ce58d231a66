/* multipart/form-data: framing, headers, limits, hostile bodies, every cut. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>

#include "codec/multipart.h"

#define BODY                                                                             \
    "preamble\r\n--XyZ\r\n"                                                              \
    "Content-Disposition: form-data; name=\"note\"\r\n\r\n"                              \
    "hello\r\n--Xy not a delimiter\r\nmore\r\n--XyZ  \t\r\n"                             \
    "content-disposition: Form-Data; filename=\"a \\\"b\\\".png\"; name=\"image\"\r\n"   \
    "X-Other: 1\r\nContent-Type: image/png\r\nContent-Transfer-Encoding: binary\r\n\r\n" \
    "\x89PNG\r\n\0\r\n--XyZa\r\n\r\n--XyZ--\r\nepilogue"

static struct nr_multipart m;

static nr_status parse(struct nr_str body, const char *boundary, struct nr_err *err)
{
    /* an exact copy on the heap, so that the sanitizer sees a read past its end */
    char *copy = malloc(body.len + 1);
    assert_non_null(copy);
    char *exact = realloc(copy, body.len > 0 ? body.len : 1);
    assert_non_null(exact);
    memcpy(exact, body.ptr, body.len);
    nr_status st =
        nr_multipart_parse((struct nr_str){exact, body.len}, nr_str_from(boundary), &m, err);
    for (size_t i = 0; i < m.n_parts; i++) {
        assert_true(m.parts[i].data.ptr >= exact &&
                    m.parts[i].data.ptr + m.parts[i].data.len <= exact + body.len);
    }
    free(exact);
    return st;
}

static void test_parts(void **state)
{
    (void)state;
    struct nr_str body = NR_STR(BODY);
    assert_int_equal(nr_multipart_parse(body, NR_STR("XyZ"), &m, NULL), NARU_OK);
    assert_int_equal(m.n_parts, 2);
    assert_true(nr_str_is(m.parts[0].name, "note"));
    assert_null(m.parts[0].filename.ptr);
    assert_int_equal(m.parts[0].type.len, 0);
    assert_true(nr_str_is(m.parts[0].data, "hello\r\n--Xy not a delimiter\r\nmore"));
    assert_true(nr_str_is(m.parts[1].name, "image"));
    assert_true(nr_str_is(m.parts[1].filename, "a \\\"b\\\".png"));
    assert_true(nr_str_is(m.parts[1].type, "image/png"));
    assert_true(nr_str_eq(m.parts[1].data, NR_STR("\x89PNG\r\n\0\r\n--XyZa\r\n")));
    assert_ptr_equal(nr_multipart_file(&m), &m.parts[1]);
    assert_true(nr_str_is(m.parts[0].name, "note"));
}

static void test_no_parts_and_empty_data(void **state)
{
    (void)state;
    assert_int_equal(parse(NR_STR("--b--"), "b", NULL), NARU_OK);
    assert_int_equal(m.n_parts, 0);
    assert_null(nr_multipart_file(&m));
    assert_int_equal(parse(NR_STR("--b\r\n\r\n\r\n--b--"), "b", NULL), NARU_OK);
    assert_int_equal(m.n_parts, 1);
    assert_int_equal(m.parts[0].data.len, 0);
    /* no file name, but a picture */
    struct nr_str body = NR_STR("--b\r\nContent-Type: Image/webp\r\n\r\nx\r\n--b--\r\n");
    assert_int_equal(nr_multipart_parse(body, NR_STR("b"), &m, NULL), NARU_OK);
    assert_ptr_equal(nr_multipart_file(&m), &m.parts[0]);
}

static void test_hostile(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "",
        "no boundary at all",
        "--b",
        "--b\r\n",
        "--b\r\n--b--",
        "--b\r\n\r\n--b",
        "--b\r\nA: 1\r\n--b--",
        "--b\r\nno colon\r\n\r\nx\r\n--b--",
        "--b\r\n: empty\r\n\r\nx\r\n--b--",
        "--b\r\nContent-Disposition: form-data; name=\"open\r\n\r\nx\r\n--b--",
        "--b\r\nContent-Disposition: form-data; name=\"open\\\"\r\n\r\nx\r\n--b--",
        "--b\r\nContent-Disposition: attachment; name=\"a\"\r\n\r\nx\r\n--b--",
        "--b\r\nContent-Transfer-Encoding: base64\r\n\r\nx\r\n--b--",
        "--b\n\nx\n--b--",
        "x--b\r\n\r\nx\r\n--b--x",
    };
    for (size_t i = 0; i < NR_COUNT(bad); i++) {
        struct nr_err err = {0};
        if (parse(nr_str_from(bad[i]), "b", &err) != NARU_INVALID) {
            fail_msg("accepted: %s", bad[i]);
        }
        assert_true(err.text[0] != '\0');
    }
}

static void test_every_cut_is_an_error(void **state)
{
    (void)state;
    struct nr_str body = NR_STR(BODY);
    size_t whole = body.len - strlen("\r\nepilogue");
    for (size_t n = 0; n < whole; n++) {
        assert_int_equal(parse((struct nr_str){body.ptr, n}, "XyZ", NULL), NARU_INVALID);
    }
    for (size_t n = whole; n <= body.len; n++) {
        assert_int_equal(parse((struct nr_str){body.ptr, n}, "XyZ", NULL), NARU_OK);
    }
}

static void test_limits(void **state)
{
    (void)state;
    struct nr_text t;
    nr_text_init(&t, 1 << 20);
    for (int i = 0; i < NR_MULTIPART_MAX_PARTS; i++) {
        nr_text_str(&t, "--b\r\n\r\nx\r\n");
    }
    size_t fits = t.len;
    nr_text_str(&t, "--b--");
    assert_int_equal(parse((struct nr_str){t.data, t.len}, "b", NULL), NARU_OK);
    assert_int_equal(m.n_parts, NR_MULTIPART_MAX_PARTS);
    t.len = fits;
    nr_text_str(&t, "--b\r\n\r\nx\r\n--b--");
    assert_int_equal(parse((struct nr_str){t.data, t.len}, "b", NULL), NARU_TOO_LARGE);
    /* headers of exactly the limit, and one byte more */
    for (int extra = 0; extra <= 1; extra++) {
        nr_text_clear(&t);
        nr_text_str(&t, "--b\r\nX: ");
        for (int i = 0; i < NR_MULTIPART_MAX_HEADER_BYTES - 7 + extra; i++) {
            nr_text_str(&t, "a");
        }
        nr_text_str(&t, "\r\n\r\ndata\r\n--b--");
        assert_int_equal(parse((struct nr_str){t.data, t.len}, "b", NULL),
                         extra ? NARU_TOO_LARGE : NARU_OK);
    }
    nr_text_done(&t);
}

static void test_boundary(void **state)
{
    (void)state;
    static const char *const good[][2] = {
        {"multipart/form-data; boundary=abc", "abc"},
        {"Multipart/Form-Data;charset=utf-8; BOUNDARY=\"a b'()+_,-./:=?c\" ; x",
         "a b'()+_,-./:=?c"},
        {"multipart/form-data;boundary=----WebKitFormBoundary7MA4YWxkTrZu0gW",
         "----WebKitFormBoundary7MA4YWxkTrZu0gW"},
    };
    struct nr_str b;
    for (size_t i = 0; i < NR_COUNT(good); i++) {
        assert_int_equal(nr_multipart_boundary(nr_str_from(good[i][0]), &b, NULL), NARU_OK);
        assert_true(nr_str_is(b, good[i][1]));
    }
    static const char *const bad[] = {
        "multipart/form-data",
        "multipart/form-data; boundary=",
        "multipart/form-data; boundary",
        "multipart/form-data; boundary=\"open",
        "multipart/form-data; boundary=\"a \"",
        "multipart/form-data; boundary=a\"b",
        "multipart/form-data; boundary=a\x80",
        "multipart/form-data; "
        "boundary=aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
        "aaaaaaaa",
    };
    for (size_t i = 0; i < NR_COUNT(bad); i++) {
        assert_int_equal(nr_multipart_boundary(nr_str_from(bad[i]), &b, NULL), NARU_INVALID);
    }
    assert_int_equal(nr_multipart_boundary(NR_STR("image/png"), &b, NULL), NARU_MEDIA_TYPE);
    assert_int_equal(nr_multipart_boundary(NR_STR(""), &b, NULL), NARU_MEDIA_TYPE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_parts),   cmocka_unit_test(test_no_parts_and_empty_data),
        cmocka_unit_test(test_hostile), cmocka_unit_test(test_every_cut_is_an_error),
        cmocka_unit_test(test_limits),  cmocka_unit_test(test_boundary),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
