/* Statuses and error texts: the table, cutting at UTF-8 borders, prefixes, arguments that alias. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/status.h"
#include "base/str.h"

static void test_table(void **state)
{
    (void)state;
    assert_string_equal(nr_status_name(NARU_OK), "NARU_OK");
    assert_int_equal(nr_status_http(NARU_OK), 200);
    assert_int_equal(nr_status_grpc(NARU_OK), 0);
    assert_string_equal(nr_status_text(NARU_NOT_FOUND), "not found");
    assert_int_equal(nr_status_http(NARU_NOT_FOUND), 404);
    assert_int_equal(nr_status_grpc(NARU_EXHAUSTED), 8);
    /* Every row: negative, distinct, an HTTP status and a gRPC code in range. */
    static const nr_status all[] = {
#define ONE(symbol, number, http, grpc, text) symbol,
        NARU_STATUS_MAP(ONE)
#undef ONE
    };
    for (size_t i = 0; i < NR_COUNT(all); i++) {
        assert_int_equal(all[i], -(int)i);
        assert_in_range(nr_status_http(all[i]), 200, 599);
        assert_in_range(nr_status_grpc(all[i]), 0, 16);
        assert_true(strlen(nr_status_text(all[i])) > 0);
    }
}

static void test_numbers_that_are_no_status(void **state)
{
    (void)state;
    static const nr_status odd[] = {1, 7, -1000, INT32_MIN, INT32_MAX};
    for (size_t i = 0; i < NR_COUNT(odd); i++) {
        assert_string_equal(nr_status_name(odd[i]), "NARU_UNKNOWN");
        assert_int_equal(nr_status_http(odd[i]), 500);
        assert_int_equal(nr_status_grpc(odd[i]), 2);
    }
}

static void test_fail_fills_and_returns(void **state)
{
    (void)state;
    struct nr_err err = {0};
    assert_int_equal(nr_fail(&err, NARU_INVALID, "got %d, expected %s", 3, "four"), NARU_INVALID);
    assert_int_equal(err.status, NARU_INVALID);
    assert_string_equal(err.text, "got 3, expected four");
    assert_int_equal(nr_fail(NULL, NARU_IO, "nobody listens"), NARU_IO);
    errno = ENOENT;
    nr_fail(&err, NARU_IO, "open: %m");
    assert_string_equal(err.text, "open: No such file or directory");
}

static void test_arguments_may_alias(void **state)
{
    (void)state;
    struct nr_err err = {0};
    nr_fail(&err, NARU_INVALID, "inner");
    nr_fail(&err, NARU_UNKNOWN, "outer (%s)", err.text);
    assert_string_equal(err.text, "outer (inner)");
    nr_err_prefix(&err, "[%s]", err.text);
    assert_string_equal(err.text, "[outer (inner)]: outer (inner)");
    assert_int_equal(err.status, NARU_UNKNOWN);
}

/* Characters of 1 to 4 bytes at every offset around the limit: the text stays whole UTF-8. */
static void test_cut_keeps_characters_whole(void **state)
{
    (void)state;
    static const char *const characters[] = {"x", "\xc3\xa9", "\xe2\x82\xac", "\xf0\x9f\x98\x80"};
    char text[3 * NR_ERR_TEXT_MAX];
    for (size_t c = 0; c < NR_COUNT(characters); c++) {
        size_t step = strlen(characters[c]);
        for (size_t lead = 0; lead < 8; lead++) {
            memset(text, 'a', lead);
            size_t len = lead;
            while (len + step < sizeof(text)) {
                memcpy(text + len, characters[c], step);
                len += step;
            }
            text[len] = '\0';
            struct nr_err err;
            nr_fail(&err, NARU_INVALID, "%s", text);
            size_t got = strlen(err.text);
            assert_in_range(got, NR_ERR_TEXT_MAX - step, NR_ERR_TEXT_MAX - 1);
            assert_memory_equal(err.text, text, got);
            assert_true(nr_str_is_utf8(nr_str_from(err.text)));
            nr_err_prefix(&err, "p%.*s", (int)lead, "1234567");
            assert_true(strlen(err.text) < NR_ERR_TEXT_MAX);
            assert_true(nr_str_is_utf8(nr_str_from(err.text)));
        }
    }
}

static void test_prefix(void **state)
{
    (void)state;
    nr_err_prefix(NULL, "x");
    struct nr_err err = {0};
    nr_fail(&err, NARU_NOT_FOUND, "no file");
    nr_err_prefix(&err, "model '%s'", "m");
    assert_string_equal(err.text, "model 'm': no file");
    assert_int_equal(err.status, NARU_NOT_FOUND);
    char large[2000];
    memset(large, 'p', sizeof(large) - 1);
    large[sizeof(large) - 1] = '\0';
    nr_err_prefix(&err, "%s", large);
    assert_int_equal(strlen(err.text), NR_ERR_TEXT_MAX - 1);
    assert_non_null(strstr(err.text, "p: "));
}

static void test_errno(void **state)
{
    (void)state;
    assert_int_equal(nr_status_from_errno(0), NARU_OK);
    assert_int_equal(nr_status_from_errno(ENOENT), NARU_NOT_FOUND);
    assert_int_equal(nr_status_from_errno(ELOOP), NARU_DENIED);
    assert_int_equal(nr_status_from_errno(ENOSPC), NARU_EXHAUSTED);
    assert_int_equal(nr_status_from_errno(ENOMEM), NARU_NOMEM);
    assert_int_equal(nr_status_from_errno(12345), NARU_IO);
}

static void test_take_and_container(void **state)
{
    (void)state;
    int number = 7;
    int *from = &number;
    int *to = NR_TAKE(from);
    assert_null(from);
    assert_ptr_equal(to, &number);
    struct {
        char pad[3];
        int inner;
    } outer = {.inner = 5};
    int *inner = &outer.inner;
    assert_ptr_equal(nr_container_of(inner, __typeof__(outer), inner), &outer);
    assert_int_equal(NR_MIN(2, 3), 2);
    assert_int_equal(NR_MAX(2, 3), 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_table),
        cmocka_unit_test(test_numbers_that_are_no_status),
        cmocka_unit_test(test_fail_fills_and_returns),
        cmocka_unit_test(test_arguments_may_alias),
        cmocka_unit_test(test_cut_keeps_characters_whole),
        cmocka_unit_test(test_prefix),
        cmocka_unit_test(test_errno),
        cmocka_unit_test(test_take_and_container),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
