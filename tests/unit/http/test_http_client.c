/* The client against servers that answer, dribble and misbehave on order. */
#include "http/http_client.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "io/file.h"
#include "io/sock.h"

/* One connection: reads a head (and what else comes with it), writes the answer in pieces, closes. */
struct stub {
    int listen_fd;
    struct nr_sock_addr at;
    pthread_t thread;
    const char *answer;
    size_t answer_bytes, piece_bytes; /* 0: all at once */
    bool silent;                      /* reads and does not answer until the client goes */
    char seen[4096];
    size_t n_seen;
};

static void *serve(void *arg)
{
    struct stub *s = arg;
    int fd = -1;
    while (fd < 0) {
        fd = accept(s->listen_fd, NULL, NULL);
        if (fd < 0) {
            usleep(1000);
        }
    }
    int flags = 0;
    while (s->n_seen + 1 < sizeof(s->seen) && memmem(s->seen, s->n_seen, "\r\n\r\n", 4) == NULL) {
        ssize_t n = recv(fd, s->seen + s->n_seen, sizeof(s->seen) - 1 - s->n_seen, flags);
        if (n <= 0) {
            break;
        }
        s->n_seen += (size_t)n;
    }
    char rest[256];
    while (s->silent && recv(fd, rest, sizeof(rest), 0) > 0) {
    }
    size_t piece = s->piece_bytes > 0 ? s->piece_bytes : s->answer_bytes;
    for (size_t at = 0; at < s->answer_bytes && !s->silent; at += piece) {
        if (send(fd, s->answer + at, NR_MIN(piece, s->answer_bytes - at), MSG_NOSIGNAL) < 0) {
            break;
        }
    }
    shutdown(fd, SHUT_WR);
    close(fd);
    return NULL;
}

static void start(struct stub *s, const char *answer, size_t piece_bytes)
{
    struct nr_sock_listen cfg = {0};
    *s = (struct stub){.answer = answer,
                       .answer_bytes = answer != NULL ? strlen(answer) : 0,
                       .piece_bytes = piece_bytes,
                       .silent = answer == NULL};
    assert_int_equal(nr_sock_listen(&cfg, &s->listen_fd, NULL), NARU_OK);
    assert_int_equal(nr_sock_local(s->listen_fd, &s->at), NARU_OK);
    assert_int_equal(pthread_create(&s->thread, NULL, serve, s), 0);
}

static void stop(struct stub *s)
{
    pthread_join(s->thread, NULL);
    nr_close(s->listen_fd);
}

struct fixture {
    struct stub stub;
    struct nr_arena arena;
    struct nr_http_answer answer;
    struct nr_http_ask ask;
    struct nr_err err;
    char url[64];
};

/* One request of f->ask against a stub that gives this answer. */
static nr_status fetch(struct fixture *f, const char *answer, size_t piece_bytes)
{
    start(&f->stub, answer, piece_bytes);
    snprintf(f->url, sizeof(f->url), "http://127.0.0.1:%u/a?b=c", nr_sock_addr_port(&f->stub.at));
    assert_int_equal(nr_http_url_parse(nr_str_from(f->url), &f->ask.url, NULL), NARU_OK);
    f->err = (struct nr_err){0};
    nr_status st = nr_http_fetch(&f->ask, &f->arena, &f->answer, &f->err);
    stop(&f->stub);
    return st;
}

static int set_up(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    nr_arena_init(&f->arena, 0);
    f->ask.timeout_ns = 20 * NR_S_NS;
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;
    nr_arena_done(&f->arena);
    free(f);
    return 0;
}

static void test_url(void **state)
{
    (void)state;
    static const struct {
        const char *text, *host;
        uint16_t port;
        const char *target;
    } good[] = {{"http://127.0.0.1:8000", "127.0.0.1", 8000, "/"},
                {"http://a.example/x/y?z=1", "a.example", 80, "/x/y?z=1"},
                {"http://[::1]:9/", "::1", 9, "/"},
                {"http://[::1]", "::1", 80, "/"},
                {"http://h?q", "h", 80, "?q"}};
    struct nr_http_url u;
    for (size_t i = 0; i < NR_COUNT(good); i++) {
        assert_int_equal(nr_http_url_parse(nr_str_from(good[i].text), &u, NULL), NARU_OK);
        assert_string_equal(u.host, good[i].host);
        assert_int_equal(u.port, good[i].port);
        assert_true(nr_str_is(u.target, good[i].target));
    }
    static const char *const bad[] = {
        "http://",        "http://:80",    "http://a:0",       "http://a:65536", "http://a:8x",
        "http://[::1",    "http://[::1]x", "http://u:p@h/",    "http://u@h/",    "http://a/b c",
        "http://a/b\r\n", "http://a/#f",   "http://a/\x7f\xc3"};
    for (size_t i = 0; i < NR_COUNT(bad); i++) {
        assert_int_equal(nr_http_url_parse(nr_str_from(bad[i]), &u, NULL), NARU_INVALID);
    }
    assert_int_equal(nr_http_url_parse(NR_STR("https://a/"), &u, NULL), NARU_UNSUPPORTED);
    assert_int_equal(nr_http_url_parse(NR_STR("a:80"), &u, NULL), NARU_UNSUPPORTED);
}

static void test_length_in_any_pieces(void **state)
{
    struct fixture *f = *state;
    static const char text[] =
        "HTTP/1.1 404 Not Found\r\nContent-Type:  text/plain \r\nX-Empty:\r\n"
        "content-LENGTH: 5\r\n\r\nhello";
    for (size_t piece = 0; piece < 8; piece++) {
        assert_int_equal(fetch(f, text, piece), NARU_OK);
        assert_int_equal(f->answer.status, 404);
        assert_true(nr_str_is(f->answer.body, "hello"));
        assert_true(nr_str_is(f->answer.content_type, "text/plain"));
        assert_true(nr_str_is(nr_http_answer_field(&f->answer, "content-length"), "5"));
        assert_int_equal(nr_http_answer_field(&f->answer, "x-empty").len, 0);
        assert_int_equal(nr_http_answer_field(&f->answer, "x-none").len, 0);
    }
    assert_non_null(strstr(f->stub.seen, "GET /a?b=c HTTP/1.1\r\nHost: 127.0.0.1:"));
    assert_non_null(strstr(f->stub.seen, "\r\nConnection: close\r\n"));
    assert_null(strstr(f->stub.seen, "Content-Length"));
}

static void test_chunked_until_end_and_without_body(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(fetch(f,
                           "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
                           "4\r\nabcd\r\n2;x=y\r\nef\r\n0\r\n\r\n",
                           3),
                     NARU_OK);
    assert_true(nr_str_is(f->answer.body, "abcdef"));
    assert_int_equal(fetch(f, "HTTP/1.1 200 OK\r\n\r\nto the end", 4), NARU_OK);
    assert_true(nr_str_is(f->answer.body, "to the end"));
    assert_int_equal(fetch(f, "HTTP/1.1 204 No Content\r\n\r\n", 0), NARU_OK);
    assert_int_equal(f->answer.body.len, 0);
    f->ask.method = NR_STR("HEAD");
    assert_int_equal(fetch(f, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n", 0), NARU_OK);
    assert_int_equal(f->answer.body.len, 0);
    assert_non_null(strstr(f->stub.seen, "HEAD /a"));
}

static void test_informational_answers_are_passed_over(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(fetch(f,
                           "HTTP/1.1 100 Continue\r\nA: 1\r\n\r\nHTTP/1.1 200 OK\r\nB: 2\r\n"
                           "Content-Length: 2\r\n\r\nok",
                           7),
                     NARU_OK);
    assert_int_equal(f->answer.status, 200);
    assert_int_equal(f->answer.n_headers, 2);
    assert_true(nr_str_is(f->answer.body, "ok"));
}

static void test_body_and_fields_are_sent(void **state)
{
    struct fixture *f = *state;
    const struct nr_header fields[] = {{NR_STR("Accept"), NR_STR("text/plain")}};
    f->ask.method = NR_STR("POST");
    f->ask.headers = fields;
    f->ask.n_headers = 1;
    f->ask.body = NR_STR("xyz");
    assert_int_equal(fetch(f, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 0), NARU_OK);
    assert_non_null(strstr(f->stub.seen, "Accept: text/plain\r\nContent-Length: 3\r\n\r\n"));
}

static void test_line_ends_in_fields_are_refused(void **state)
{
    struct fixture *f = *state;
    const struct nr_header field = {NR_STR("X"), NR_STR("a\r\nY: b")};
    assert_int_equal(nr_http_url_parse(NR_STR("http://127.0.0.1:1/"), &f->ask.url, NULL), NARU_OK);
    f->ask.headers = &field;
    f->ask.n_headers = 1;
    assert_int_equal(nr_http_fetch(&f->ask, &f->arena, &f->answer, NULL), NARU_INVALID);
}

static void test_what_is_no_answer(void **state)
{
    struct fixture *f = *state;
    static const struct {
        const char *text;
        nr_status want;
    } cases[] = {
        {"", NARU_IO},
        {"SSH-2.0-OpenSSH_9\r\n", NARU_INVALID},
        {"HTTP/1.1 abc OK\r\n\r\n", NARU_INVALID},
        {"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel", NARU_IO},
        {"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", NARU_INVALID},
        {"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n", NARU_INVALID},
        {"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\na", NARU_INVALID},
        {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", NARU_INVALID},
        {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nab", NARU_IO},
        {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n",
         NARU_INVALID},
        {"HTTP/1.1 200 OK\r\nA b: c\r\n\r\n", NARU_INVALID},
        {"HTTP/1.1 100 Continue\r\n\r\n", NARU_IO},
        {"HTTP/1.1 200", NARU_IO},
    };
    for (size_t i = 0; i < NR_COUNT(cases); i++) {
        nr_status st = fetch(f, cases[i].text, 0);
        if (st != cases[i].want) {
            fail_msg("case %zu: %d, expected %d (%s)", i, st, cases[i].want, f->err.text);
        }
        assert_true(f->err.text[0] != '\0');
    }
}

static void test_limits(void **state)
{
    struct fixture *f = *state;
    f->ask.max_body_bytes = 4;
    assert_int_equal(fetch(f, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabcd", 0), NARU_OK);
    assert_int_equal(fetch(f, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabcde", 0),
                     NARU_TOO_LARGE);
    assert_int_equal(
        fetch(f, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n", 0),
        NARU_TOO_LARGE);
    f->ask.max_head_bytes = 16;
    assert_int_equal(
        fetch(f, "HTTP/1.1 200 OK\r\nX: 0123456789012345\r\nContent-Length: 0\r\n\r\n", 0),
        NARU_TOO_LARGE);
    f->ask.max_head_bytes = 0;
    char many[8192] = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n";
    size_t at = strlen(many);
    for (unsigned i = 0; i < 128; i++) { /* with the first one: 129 fields */
        at += (size_t)snprintf(many + at, sizeof(many) - at, "A%u: b\r\n", i);
    }
    snprintf(many + at, sizeof(many) - at, "\r\n");
    assert_int_equal(fetch(f, many, 0), NARU_TOO_LARGE);
}

static void test_time_and_nobody_there(void **state)
{
    struct fixture *f = *state;
    f->ask.timeout_ns = 50 * NR_MS_NS;
    int64_t begin_ns = nr_clock_now();
    assert_int_equal(fetch(f, NULL, 0), NARU_DEADLINE);
    assert_true(nr_clock_now() - begin_ns >= 50 * NR_MS_NS);
    /* the port of the stub that is gone */
    assert_int_equal(nr_http_fetch(&f->ask, &f->arena, &f->answer, &f->err), NARU_UNAVAILABLE);
    assert_non_null(strstr(f->err.text, "nobody listens at 127.0.0.1:"));
    assert_int_equal(nr_http_url_parse(NR_STR("http://name.invalid:1/"), &f->ask.url, NULL),
                     NARU_OK);
    assert_int_equal(nr_http_fetch(&f->ask, &f->arena, &f->answer, &f->err), NARU_UNAVAILABLE);
}

int main(void)
{
#define TEST(fn) cmocka_unit_test_setup_teardown(fn, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_url),
        TEST(test_length_in_any_pieces),
        TEST(test_chunked_until_end_and_without_body),
        TEST(test_informational_answers_are_passed_over),
        TEST(test_body_and_fields_are_sent),
        TEST(test_line_ends_in_fields_are_refused),
        TEST(test_what_is_no_answer),
        TEST(test_limits),
        TEST(test_time_and_nobody_there),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
