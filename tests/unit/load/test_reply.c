/* Answers of HTTP/1.1 servers: whole, cut at every place, and wrong. */
#include "load/reply.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "base/mem.h"

static const char whole[] = "HTTP/1.1 200 OK\r\nServer: x\r\nContent-Length: 5\r\n\r\nhello";

static nr_status feed_text(struct nr_reply *r, const char *text, size_t *ret_used)
{
    nr_reply_reset(r);
    *ret_used = 0;
    return nr_reply_feed(r, text, strlen(text), ret_used);
}

static void test_whole(void **state)
{
    (void)state;
    struct nr_reply r;
    size_t used;
    assert_int_equal(feed_text(&r, whole, &used), NARU_OK);
    assert_int_equal(used, sizeof(whole) - 1);
    assert_int_equal(r.status, 200);
    assert_int_equal(r.body_bytes, 5);
    assert_false(r.closes);
}

static void test_cut_anywhere(void **state)
{
    (void)state;
    struct nr_reply r;
    size_t n = sizeof(whole) - 1;
    for (size_t a = 0; a <= n; a++) {
        for (size_t b = a; b <= n; b++) {
            const size_t ends[] = {a, b, n};
            size_t from = 0, used;
            nr_reply_reset(&r);
            for (unsigned i = 0; i < 3; i++) {
                nr_status st = nr_reply_feed(&r, whole + from, ends[i] - from, &used);
                assert_int_equal(used, ends[i] - from);
                assert_int_equal(st, ends[i] == n ? NARU_OK : NARU_AGAIN);
                if (st == NARU_OK) {
                    break;
                }
                from = ends[i];
            }
            assert_int_equal(r.status, 200);
        }
    }
}

static void test_stops_at_the_end(void **state)
{
    (void)state;
    struct nr_reply r;
    size_t used;
    const char two[] = "HTTP/1.1 404 Not Found\r\ncontent-length:0\r\n\r\nHTTP/1.1 200 OK\r\n";
    assert_int_equal(feed_text(&r, two, &used), NARU_OK);
    assert_int_equal(used, strlen(two) - 17);
    assert_int_equal(r.status, 404);
}

static void test_interim_answers_are_skipped(void **state)
{
    (void)state;
    struct nr_reply r;
    size_t used;
    const char text[] = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nX: y\r\n\r\n"
                        "HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\nok";
    assert_int_equal(feed_text(&r, text, &used), NARU_OK);
    assert_int_equal(used, strlen(text));
    assert_int_equal(r.status, 201);
}

static void test_answers_without_a_body(void **state)
{
    (void)state;
    struct nr_reply r;
    size_t used;
    assert_int_equal(feed_text(&r, "HTTP/1.1 204 No Content\r\n\r\n", &used), NARU_OK);
    assert_int_equal(feed_text(&r, "HTTP/1.1 304 x\r\nContent-Length: 900\r\n\r\n", &used),
                     NARU_OK);
    assert_int_equal(r.left_bytes, 0);
}

static void test_connection_close(void **state)
{
    (void)state;
    struct nr_reply r;
    size_t used;
    const char text[] = "HTTP/1.1 200 OK\r\nconnection: Close\r\nContent-Length: 0\r\n\r\n";
    assert_int_equal(feed_text(&r, text, &used), NARU_OK);
    assert_true(r.closes);
    assert_int_equal(feed_text(&r, "HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", &used), NARU_OK);
    assert_true(r.closes);
}

static void test_wrong_answers(void **state)
{
    (void)state;
    static const char *const wrong[] = {
        "hello there, how are you\r\n\r\n",
        "HTTP/1.1 2x0 OK\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 600 OK\r\nContent-Length: 0\r\n\r\n",
        "HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 20\r\n\r\n",
        "\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    };
    struct nr_reply r;
    size_t used;
    for (unsigned i = 0; i < NR_COUNT(wrong); i++) {
        assert_int_equal(feed_text(&r, wrong[i], &used), NARU_INVALID);
    }
    assert_int_equal(feed_text(&r, "HTTP/1.1 200 OK\r\n\r\n", &used), NARU_UNSUPPORTED);
    assert_int_equal(
        feed_text(&r, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", &used),
        NARU_UNSUPPORTED);
}

static void test_head_without_end(void **state)
{
    (void)state;
    struct nr_reply r;
    size_t used;
    char line[64] = "HTTP/1.1 200 OK\r\n";
    nr_reply_reset(&r);
    nr_status st = nr_reply_feed(&r, line, strlen(line), &used);
    memset(line, 'a', sizeof(line));
    for (unsigned i = 0; i < NR_REPLY_HEAD_MAX / sizeof(line) - 1; i++) {
        assert_int_equal(st, NARU_AGAIN);
        st = nr_reply_feed(&r, line, sizeof(line), &used);
    }
    assert_int_equal(st, NARU_AGAIN);
    assert_int_equal(nr_reply_feed(&r, line, sizeof(line), &used), NARU_TOO_LARGE);
}

/* A large body passes through without being kept. */
static void test_large_body(void **state)
{
    (void)state;
    struct nr_reply r;
    size_t used;
    char piece[1024] = {0};
    assert_int_equal(feed_text(&r, "HTTP/1.1 200 OK\r\nContent-Length: 5000000000\r\n\r\n", &used),
                     NARU_AGAIN);
    for (uint64_t at = 0; at + sizeof(piece) < UINT64_C(5000000000); at += sizeof(piece)) {
        if (nr_reply_feed(&r, piece, sizeof(piece), &used) != NARU_AGAIN) {
            fail_msg("ended at %llu", (unsigned long long)at);
        }
    }
    assert_int_equal(nr_reply_feed(&r, piece, sizeof(piece), &used), NARU_OK);
    assert_int_equal(used, UINT64_C(5000000000) % sizeof(piece));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_whole),
        cmocka_unit_test(test_cut_anywhere),
        cmocka_unit_test(test_stops_at_the_end),
        cmocka_unit_test(test_interim_answers_are_skipped),
        cmocka_unit_test(test_answers_without_a_body),
        cmocka_unit_test(test_connection_close),
        cmocka_unit_test(test_wrong_answers),
        cmocka_unit_test(test_head_without_end),
        cmocka_unit_test(test_large_body),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
