/* Load runs against a small server in this process that answers, stalls and misbehaves on order. */
#include "load/client.h"

#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/mem.h"
#include "io/sock.h"

#define CONNS_MAX 64

struct stub {
    int listen_fd;
    uint16_t port;
    pthread_t thread;
    atomic_bool stop;
    const char *answer;
    size_t answer_bytes;
    size_t request_bytes; /* a request is whole when so many bytes came */
    unsigned piece_bytes; /* > 0: the answer is written in pieces of this size */
    int64_t delay_ns;     /* before each answer; the whole server stands still meanwhile */
    unsigned close_after; /* > 0: answers of a connection, then it is closed */
    unsigned mute_every;  /* > 0: each n-th request of a connection gets no answer */
    atomic_uint n_requests, n_accepted;
};

static const char answer_ok[] = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

static void pause_ns(int64_t ns)
{
    struct timespec t = {.tv_sec = ns / NR_S_NS, .tv_nsec = ns % NR_S_NS};
    nanosleep(&t, NULL);
}

struct stub_conn {
    size_t have;
    unsigned answered, seen;
};

/* False: the connection is over. */
static bool stub_serve(struct stub *s, int fd, struct stub_conn *c)
{
    char buf[4096];
    ssize_t n = recv(fd, buf, sizeof(buf), 0);
    if (n <= 0) {
        return false;
    }
    c->have += (size_t)n;
    if (c->have < s->request_bytes) {
        return true;
    }
    assert_int_equal(c->have, s->request_bytes); /* nobody may send ahead */
    c->have = 0;
    atomic_fetch_add(&s->n_requests, 1);
    c->seen++;
    if (s->mute_every > 0 && c->seen % s->mute_every == 0) {
        return true;
    }
    if (s->delay_ns > 0) {
        pause_ns(s->delay_ns);
    }
    size_t step = s->piece_bytes > 0 ? s->piece_bytes : s->answer_bytes;
    for (size_t at = 0; at < s->answer_bytes; at += step) {
        size_t len = NR_MIN(step, s->answer_bytes - at);
        if (send(fd, s->answer + at, len, MSG_NOSIGNAL) != (ssize_t)len) {
            return false;
        }
        if (s->piece_bytes > 0) {
            pause_ns(NR_US_NS * 200);
        }
    }
    c->answered++;
    return s->close_after == 0 || c->answered < s->close_after;
}

static void *stub_run(void *arg)
{
    struct stub *s = arg;
    struct pollfd fds[CONNS_MAX + 1] = {{.fd = s->listen_fd, .events = POLLIN}};
    struct stub_conn conns[CONNS_MAX + 1] = {{0}};
    nfds_t n = 1;
    while (!atomic_load(&s->stop)) {
        if (poll(fds, n, 5) <= 0) {
            continue;
        }
        for (nfds_t i = n - 1; i > 0; i--) {
            if (fds[i].revents != 0 && !stub_serve(s, fds[i].fd, &conns[i])) {
                close(fds[i].fd);
                fds[i] = fds[n - 1];
                conns[i] = conns[n - 1];
                n--;
            }
        }
        if ((fds[0].revents & POLLIN) != 0 && n <= CONNS_MAX) {
            fds[n] = (struct pollfd){.fd = accept(s->listen_fd, NULL, NULL), .events = POLLIN};
            conns[n++] = (struct stub_conn){0};
            atomic_fetch_add(&s->n_accepted, 1);
        }
    }
    for (nfds_t i = 1; i < n; i++) {
        close(fds[i].fd);
    }
    return NULL;
}

static void stub_listen(struct stub *s)
{
    struct nr_err err = {0};
    struct nr_sock_addr a;
    struct nr_sock_listen l = {.host = NULL, .port = 0};
    assert_int_equal(nr_sock_listen(&l, &s->listen_fd, &err), NARU_OK);
    assert_int_equal(nr_sock_local(s->listen_fd, &a), NARU_OK);
    s->port = nr_sock_addr_port(&a);
    if (s->answer == NULL) {
        s->answer = answer_ok;
        s->answer_bytes = sizeof(answer_ok) - 1;
    }
}

static void target_of(struct nr_load_target *t, const struct stub *s, const char *scheme)
{
    static const char *const fields[] = {"X-Test: 1", "Content-Type:text/plain"};
    struct nr_err err = {0};
    nr_autofree char *url = nr_format("%s127.0.0.1:%u/some/path", scheme, (unsigned)s->port);
    assert_int_equal(nr_load_target_init(t, url, fields, 2, "body", 4, &err), NARU_OK);
}

/* Runs cfg against the stub; cfg->target is filled in. */
static nr_status run_against(struct stub *s, struct nr_load_cfg *cfg, struct nr_load_result *r)
{
    struct nr_load_target t;
    struct nr_err err = {0};
    stub_listen(s);
    target_of(&t, s, "http://");
    s->request_bytes = t.wire_bytes;
    cfg->target = &t;
    assert_int_equal(pthread_create(&s->thread, NULL, stub_run, s), 0);
    nr_status st = nr_load_run(cfg, r, &err);
    atomic_store(&s->stop, true);
    pthread_join(s->thread, NULL);
    close(s->listen_fd);
    nr_load_target_done(&t);
    return st;
}

static uint64_t all_outcomes(const struct nr_load_result *r)
{
    uint64_t n = 0;
    for (unsigned i = 0; i < NR_LOAD_OUTCOMES; i++) {
        n += r->outcomes[i];
    }
    return n;
}

static void test_closed_loop_counts_exactly(void **state)
{
    (void)state;
    struct stub s = {0};
    struct nr_load_cfg cfg;
    struct nr_load_result r;
    nr_load_cfg_default(&cfg);
    cfg.connections = 8;
    cfg.warm_ns = 0;
    cfg.run_ns = 20 * NR_S_NS;
    cfg.max_requests = 1003;
    assert_int_equal(run_against(&s, &cfg, &r), NARU_OK);
    assert_int_equal(atomic_load(&s.n_requests), 1003);
    assert_int_equal(atomic_load(&s.n_accepted), 8);
    assert_int_equal(r.sent, 1003);
    assert_int_equal(r.answered, 1003);
    assert_int_equal(r.outcomes[NR_LOAD_GOOD], 1003);
    assert_int_equal(all_outcomes(&r), 1003);
    assert_int_equal(nr_hist_count(r.response), 1003);
    assert_int_equal(nr_hist_max(r.send_delay), 0);
    assert_int_equal(nr_hist_max(r.response), nr_hist_max(r.service));
    assert_int_equal(r.bytes_in, 1003 * (sizeof(answer_ok) - 1));
    assert_int_equal(r.unanswered + r.reconnects, 0);
    /* Little's law: 8 connections are always busy */
    double busy = (double)r.answered_ns / (double)r.window_ns;
    assert_true(busy > 7 && busy < 8.2);
    nr_load_result_done(&r);
}

static void test_closed_loop_runs_for_its_time(void **state)
{
    (void)state;
    struct stub s = {.delay_ns = NR_MS_NS};
    struct nr_load_cfg cfg;
    struct nr_load_result r;
    nr_load_cfg_default(&cfg);
    cfg.warm_ns = 50 * NR_MS_NS;
    cfg.run_ns = 300 * NR_MS_NS;
    assert_int_equal(run_against(&s, &cfg, &r), NARU_OK);
    /* the end is planned, the opening may come late on a busy machine: the figure is the true one */
    assert_true(r.window_ns > cfg.run_ns / 4 && r.window_ns < cfg.run_ns + 5 * NR_S_NS);
    assert_true(r.sent > r.answered); /* the warm-up is not in the window */
    assert_true(nr_hist_min(r.service) >= (uint64_t)NR_MS_NS);
    assert_true(r.client_cpu_ns > 0 && r.client_cpu_ns < r.window_ns);
    nr_load_result_done(&r);
}

static void test_answers_in_pieces(void **state)
{
    (void)state;
    struct stub s = {.piece_bytes = 7};
    struct nr_load_cfg cfg;
    struct nr_load_result r;
    nr_load_cfg_default(&cfg);
    cfg.warm_ns = 0;
    cfg.run_ns = 20 * NR_S_NS;
    cfg.max_requests = 20;
    assert_int_equal(run_against(&s, &cfg, &r), NARU_OK);
    assert_int_equal(r.outcomes[NR_LOAD_GOOD], 20);
    nr_load_result_done(&r);
}

/* The server stands still at each request; a closed loop would hide the waiting of the others. */
static void test_open_loop_charges_the_stall(void **state)
{
    (void)state;
    struct stub s = {.delay_ns = 20 * NR_MS_NS};
    struct nr_load_cfg cfg;
    struct nr_load_result r;
    nr_load_cfg_default(&cfg);
    cfg.arrival = NR_ARRIVAL_CONSTANT;
    cfg.rate_per_s = 100; /* the server can do 50 */
    cfg.warm_ns = 0;
    cfg.run_ns = 500 * NR_MS_NS;
    assert_int_equal(run_against(&s, &cfg, &r), NARU_OK);
    assert_int_equal(r.planned, 49);                 /* 10 ms, 20 ms … 490 ms */
    assert_int_equal(nr_hist_count(r.response), 49); /* also those answered after the window */
    assert_int_equal(atomic_load(&s.n_requests), 49);
    assert_int_equal(r.unanswered, 0);
    /* the last one is due at 0.49 s and answered at 49 x 20 ms = 0.98 s or later */
    assert_true(nr_hist_max(r.response) >= 480u * NR_MS_NS);
    assert_true(nr_hist_quantile(r.response, 0.5) >= 200u * NR_MS_NS);
    assert_true(nr_hist_quantile(r.service, 0.5) < nr_hist_quantile(r.response, 0.5) / 2);
    assert_true(r.max_backlog >= 20);
    nr_load_result_done(&r);
}

static void test_poisson_rate(void **state)
{
    (void)state;
    struct stub s = {0};
    struct nr_load_cfg cfg;
    struct nr_load_result r;
    nr_load_cfg_default(&cfg);
    cfg.arrival = NR_ARRIVAL_POISSON;
    cfg.rate_per_s = 2000;
    cfg.seed = 3;
    cfg.connections = 4;
    cfg.max_connections = 32;
    cfg.warm_ns = 100 * NR_MS_NS;
    cfg.run_ns = 500 * NR_MS_NS;
    assert_int_equal(run_against(&s, &cfg, &r), NARU_OK);
    /* exactly what the plan says, whatever the machine did */
    struct nr_schedule plan;
    uint64_t due = 0;
    nr_schedule_init(&plan, NR_ARRIVAL_POISSON, 2000, 3);
    for (int64_t at = nr_schedule_next(&plan); at < 600 * NR_MS_NS; at = nr_schedule_next(&plan)) {
        due += at >= 100 * NR_MS_NS;
    }
    assert_int_equal(r.planned, due);
    assert_int_equal(nr_hist_count(r.response), due);
    assert_false(r.overflowed);
    nr_load_result_done(&r);
}

/* Far more is due than may be sent: exactly so many are, and the rest is not counted as planned. */
static void test_open_loop_ends_with_its_count(void **state)
{
    (void)state;
    struct stub s = {0};
    struct nr_load_cfg cfg;
    struct nr_load_result r;
    nr_load_cfg_default(&cfg);
    cfg.arrival = NR_ARRIVAL_CONSTANT;
    cfg.rate_per_s = 1e6;
    cfg.connections = 2;
    cfg.warm_ns = 0;
    cfg.run_ns = 20 * NR_S_NS;
    cfg.max_requests = 101;
    assert_int_equal(run_against(&s, &cfg, &r), NARU_OK);
    assert_int_equal(atomic_load(&s.n_requests), 101);
    assert_int_equal(r.planned, 101);
    assert_int_equal(r.outcomes[NR_LOAD_GOOD], 101);
    assert_int_equal(nr_hist_count(r.response), 101);
    nr_load_result_done(&r);
}

static void test_connections_are_opened_again(void **state)
{
    (void)state;
    struct stub s = {.close_after = 3};
    struct nr_load_cfg cfg;
    struct nr_load_result r;
    nr_load_cfg_default(&cfg);
    cfg.warm_ns = 0;
    cfg.run_ns = 20 * NR_S_NS;
    cfg.max_requests = 40;
    assert_int_equal(run_against(&s, &cfg, &r), NARU_OK);
    assert_int_equal(r.outcomes[NR_LOAD_GOOD] + r.outcomes[NR_LOAD_BROKEN], 40);
    assert_true(r.outcomes[NR_LOAD_GOOD] >= 28);
    assert_true(r.reconnects >= 9);
    nr_load_result_done(&r);
}

static void test_time_outs_stay_in_the_figures(void **state)
{
    (void)state;
    struct stub s = {.mute_every = 2};
    struct nr_load_cfg cfg;
    struct nr_load_result r;
    nr_load_cfg_default(&cfg);
    cfg.warm_ns = 0;
    cfg.run_ns = 20 * NR_S_NS;
    cfg.max_requests = 6;
    cfg.timeout_ns = 700 * NR_MS_NS; /* the others must be answered before */
    assert_int_equal(run_against(&s, &cfg, &r), NARU_OK);
    assert_int_equal(r.outcomes[NR_LOAD_TIMED_OUT], 3);
    assert_int_equal(r.outcomes[NR_LOAD_GOOD], 3);
    assert_int_equal(nr_hist_count(r.response), 6);
    assert_true(nr_hist_max(r.response) >= (uint64_t)cfg.timeout_ns);
    nr_load_result_done(&r);
}

static nr_load_outcome outcome_of(const char *answer)
{
    struct stub s = {.answer = answer, .answer_bytes = strlen(answer)};
    struct nr_load_cfg cfg;
    struct nr_load_result r;
    nr_load_outcome got = NR_LOAD_OUTCOMES;
    nr_load_cfg_default(&cfg);
    cfg.warm_ns = 0;
    cfg.run_ns = 20 * NR_S_NS;
    cfg.max_requests = 3;
    assert_int_equal(run_against(&s, &cfg, &r), NARU_OK);
    assert_int_equal(all_outcomes(&r), 3);
    for (unsigned i = 0; i < NR_LOAD_OUTCOMES; i++) {
        if (r.outcomes[i] == 3) {
            got = (nr_load_outcome)i;
        }
    }
    nr_load_result_done(&r);
    return got;
}

static void test_outcomes(void **state)
{
    (void)state;
    assert_int_equal(outcome_of("HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n"), NR_LOAD_STATUS);
    assert_int_equal(outcome_of("HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n"), NR_LOAD_REFUSED);
    assert_int_equal(outcome_of("HTTP/1.1 429 No\r\nContent-Length: 0\r\n\r\n"), NR_LOAD_REFUSED);
    assert_int_equal(outcome_of("HTTP/1.1 200 OK\r\n\r\nuntil the end"), NR_LOAD_MALFORMED);
    assert_int_equal(outcome_of("SSH-2.0-OpenSSH_9\r\n\r\n"), NR_LOAD_MALFORMED);
    assert_int_equal(outcome_of("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nok"),
                     NR_LOAD_MALFORMED);
    assert_int_equal(
        outcome_of("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"),
        NR_LOAD_GOOD);
}

static void test_nobody_listens(void **state)
{
    (void)state;
    struct stub s = {0};
    struct nr_load_target t;
    struct nr_load_cfg cfg;
    struct nr_load_result r;
    struct nr_err err = {0};
    stub_listen(&s);
    close(s.listen_fd);
    target_of(&t, &s, "http://");
    nr_load_cfg_default(&cfg);
    cfg.target = &t;
    assert_int_equal(nr_load_run(&cfg, &r, &err), NARU_UNAVAILABLE);
    assert_non_null(strstr(err.text, "127.0.0.1:"));
    nr_load_target_done(&t);
}

static void test_wrong_configurations(void **state)
{
    (void)state;
    struct stub s = {.port = 9};
    struct nr_load_target t;
    struct nr_load_cfg good, cfg;
    struct nr_load_result r;
    struct nr_err err = {0};
    target_of(&t, &s, "http://");
    nr_load_cfg_default(&good);
    good.target = &t;
    cfg = good;
    cfg.connections = 0;
    assert_int_equal(nr_load_run(&cfg, &r, &err), NARU_INVALID);
    cfg = good;
    cfg.streams = 2;
    assert_int_equal(nr_load_run(&cfg, &r, &err), NARU_INVALID);
    cfg = good;
    cfg.arrival = NR_ARRIVAL_POISSON;
    assert_int_equal(nr_load_run(&cfg, &r, &err), NARU_INVALID);
    nr_load_target_done(&t);
}

static void test_urls(void **state)
{
    (void)state;
    struct nr_load_target t;
    struct nr_err err = {0};
    static const char *const wrong[] = {"",
                                        "127.0.0.1:80/",
                                        "https://127.0.0.1:80/",
                                        "http://127.0.0.1/",
                                        "http://127.0.0.1:0/",
                                        "http://127.0.0.1:65536/",
                                        "http://:80/",
                                        "http://some.name:80/",
                                        "http://127.0.0.1:8x/"};
    for (unsigned i = 0; i < NR_COUNT(wrong); i++) {
        assert_int_equal(nr_load_target_init(&t, wrong[i], NULL, 0, NULL, 0, &err), NARU_INVALID);
    }
    assert_int_equal(nr_load_target_init(&t, "http://localhost:80", NULL, 0, NULL, 0, &err),
                     NARU_OK);
    assert_string_equal(t.wire, "GET / HTTP/1.1\r\nHost: localhost:80\r\n\r\n");
    nr_load_target_done(&t);
    assert_int_equal(nr_load_target_init(&t, "http://[::1]:8000/a?b=c/d", NULL, 0, "x", 1, &err),
                     NARU_OK);
    assert_string_equal(t.wire,
                        "POST /a?b=c/d HTTP/1.1\r\nHost: [::1]:8000\r\nContent-Length: 1\r\n\r\nx");
    nr_load_target_done(&t);
    assert_int_equal(nr_load_target_init(&t, "grpc://127.0.0.1:1/p.S/M", NULL, 0, "abc", 3, &err),
                     NARU_OK);
    assert_int_equal(t.wire_bytes, 8);
    assert_memory_equal(t.wire, "\0\0\0\0\3abc", 8);
    nr_load_target_done(&t);
    const char *const bad_field[] = {"no colon"};
    assert_int_equal(nr_load_target_init(&t, "http://127.0.0.1:1/", bad_field, 1, NULL, 0, &err),
                     NARU_INVALID);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_closed_loop_counts_exactly),
        cmocka_unit_test(test_closed_loop_runs_for_its_time),
        cmocka_unit_test(test_answers_in_pieces),
        cmocka_unit_test(test_open_loop_charges_the_stall),
        cmocka_unit_test(test_poisson_rate),
        cmocka_unit_test(test_open_loop_ends_with_its_count),
        cmocka_unit_test(test_connections_are_opened_again),
        cmocka_unit_test(test_time_outs_stay_in_the_figures),
        cmocka_unit_test(test_outcomes),
        cmocka_unit_test(test_nobody_listens),
        cmocka_unit_test(test_wrong_configurations),
        cmocka_unit_test(test_urls),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
