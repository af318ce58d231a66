/* The load generator against the project's own HTTP server in this process, over every protocol. */
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "base/mem.h"
#include "http/server.h"
#include "load/client.h"

#define BODY_BYTES 300000u

struct world {
    struct nr_loop *loop;
    struct nr_server *server;
    pthread_t thread;
    uint16_t port;
    int status, grpc_status;
    atomic_uint n_requests;
    atomic_ullong body_bytes;
    char *answer;
    size_t answer_bytes;
};
static struct world w;

static void on_head(void *ctx, struct nr_exchange *x)
{
    (void)ctx;
    (void)x;
}

static void on_request(void *ctx, struct nr_exchange *x)
{
    (void)ctx;
    const struct nr_iov body = {w.answer, w.answer_bytes};
    struct nr_response r = {.status = w.status,
                            .content_type = NR_STR_INIT("text/plain"),
                            .body = &body,
                            .n_body = 1,
                            .grpc_status = w.grpc_status};
    atomic_fetch_add(&w.n_requests, 1);
    atomic_fetch_add(&w.body_bytes, x->body.len);
    nr_exchange_respond(x, &r);
}

static void on_cancel(void *ctx, struct nr_exchange *x, nr_cancel_reason why)
{
    (void)ctx;
    (void)why;
    if (!x->responded) {
        nr_exchange_respond(x, &(struct nr_response){.status = 499});
    }
}

static void on_done(void *ctx, struct nr_exchange *x)
{
    (void)ctx;
    (void)x;
}

static void *run_loop(void *loop)
{
    nr_loop_run(loop);
    return NULL;
}

static int start(void **state)
{
    static const struct nr_http_app app = {
        .on_head = on_head, .on_request = on_request, .on_cancel = on_cancel, .on_done = on_done};
    struct nr_http_limits limits;
    struct nr_err err = {0};
    (void)state;
    w = (struct world){.status = 200};
    w.answer_bytes = 100;
    w.answer = nr_alloc(BODY_BYTES);
    nr_http_limits_default(&limits);
    assert_int_equal(nr_loop_new(0, &w.loop, &err), NARU_OK);
    assert_int_equal(nr_server_new(&w.loop, 1, &limits, &app, &w.server), NARU_OK);
    assert_int_equal(nr_server_listen(w.server, "127.0.0.1", 0, 0, &w.port, &err), NARU_OK);
    assert_int_equal(nr_server_start(w.server, &err), NARU_OK);
    assert_int_equal(pthread_create(&w.thread, NULL, run_loop, w.loop), 0);
    return 0;
}

/* Sends n requests with a body of body_bytes over `connections` x `streams`. */
static struct nr_load_result ask(const char *scheme, unsigned connections, unsigned streams,
                                 uint64_t n, size_t body_bytes)
{
    static const char *const fields[] = {"x-request: 1"};
    struct nr_load_target t;
    struct nr_load_cfg cfg;
    struct nr_load_result r;
    struct nr_err err = {0};
    nr_autofree char *url = nr_format("%s127.0.0.1:%u/a.B/C", scheme, (unsigned)w.port);
    nr_autofree char *body = nr_alloc(body_bytes + 1);
    assert_int_equal(nr_load_target_init(&t, url, fields, 1, body, body_bytes, &err), NARU_OK);
    nr_load_cfg_default(&cfg);
    cfg.target = &t;
    cfg.connections = connections;
    cfg.streams = streams;
    cfg.warm_ns = 0;
    cfg.run_ns = 60 * INT64_C(1000000000);
    cfg.max_requests = n;
    nr_status st = nr_load_run(&cfg, &r, &err);
    if (st != NARU_OK) {
        fail_msg("%s", err.text);
    }
    nr_load_target_done(&t);
    assert_int_equal(r.sent, n);
    assert_int_equal(r.unanswered, 0);
    return r;
}

static void expect(const char *scheme, unsigned connections, unsigned streams, uint64_t n,
                   size_t body_bytes, nr_load_outcome outcome)
{
    atomic_store(&w.n_requests, 0);
    atomic_store(&w.body_bytes, 0);
    struct nr_load_result r = ask(scheme, connections, streams, n, body_bytes);
    assert_int_equal(r.outcomes[outcome], n);
    assert_int_equal(atomic_load(&w.n_requests), n);
    assert_int_equal(atomic_load(&w.body_bytes), n * body_bytes);
    assert_int_equal(r.reconnects, 0);
    assert_int_equal(nr_hist_count(r.response), outcome == NR_LOAD_GOOD ? n : 0);
    nr_load_result_done(&r);
}

static void test_small_requests(void **state)
{
    (void)state;
    expect("http://", 8, 1, 2000, 50, NR_LOAD_GOOD);
    expect("http://", 3, 1, 300, 0, NR_LOAD_GOOD);
    expect("h2c://", 8, 1, 2000, 50, NR_LOAD_GOOD);
    expect("h2c://", 3, 10, 2003, 50, NR_LOAD_GOOD);
    expect("h2c://", 1, 4, 100, 0, NR_LOAD_GOOD);
    expect("grpc://", 8, 1, 2000, 50, NR_LOAD_GOOD);
    expect("grpc://", 3, 10, 2003, 50, NR_LOAD_GOOD);
}

/* Larger than windows, frames and socket buffers: sending and reading stop and go on. */
static void test_large_bodies(void **state)
{
    (void)state;
    w.answer_bytes = BODY_BYTES;
    expect("http://", 4, 1, 60, BODY_BYTES, NR_LOAD_GOOD);
    expect("h2c://", 2, 5, 60, BODY_BYTES, NR_LOAD_GOOD);
    expect("grpc://", 2, 5, 60, BODY_BYTES, NR_LOAD_GOOD);
    w.answer_bytes = 100;
}

static void test_refusals(void **state)
{
    (void)state;
    w.status = 404;
    expect("http://", 2, 1, 50, 10, NR_LOAD_STATUS);
    expect("h2c://", 2, 3, 50, 10, NR_LOAD_STATUS);
    w.status = 503;
    expect("http://", 2, 1, 50, 10, NR_LOAD_REFUSED);
    expect("h2c://", 2, 3, 50, 10, NR_LOAD_REFUSED);
    w.status = 200;
    w.grpc_status = 5;
    expect("grpc://", 2, 3, 50, 10, NR_LOAD_STATUS);
    w.grpc_status = 8;
    expect("grpc://", 2, 3, 50, 10, NR_LOAD_REFUSED);
    w.grpc_status = 0;
}

static int stop(void **state)
{
    (void)state;
    nr_server_abort(w.server);
    while (nr_server_connections(w.server) > 0) {
        sched_yield();
    }
    nr_loop_stop(w.loop);
    pthread_join(w.thread, NULL);
    nr_server_free(w.server);
    nr_loop_free(w.loop);
    nr_free(w.answer);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_small_requests),
        cmocka_unit_test(test_large_bodies),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, start, stop);
}
