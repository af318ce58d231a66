/* The server on real sockets: spreading over loops, limits on connections, resets, half-close,
 * running out of descriptors, drain, abort. Two loops on their own threads, loopback only. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/mem.h"
#include "base/str.h"
#include "http/listen.h"
#include "http/server.h"

#define N_LOOPS 2u

static struct nr_loop *loops[N_LOOPS];
static pthread_t threads[N_LOOPS];
static struct nr_server *server;
static uint16_t port;
static _Atomic unsigned per_loop[N_LOOPS], n_cancel[5], n_done, n_later;
static _Atomic(struct nr_exchange *) waiting;
static _Atomic(struct nr_engine *) an_engine;

static void respond(struct nr_exchange *x)
{
    static const struct nr_iov body = {"ok", 2};
    struct nr_response r = {.status = 200, .body = &body, .n_body = 1};
    nr_exchange_respond(x, &r);
}

static void on_head(void *ctx, struct nr_exchange *x)
{
    (void)ctx;
    assert_ptr_equal(nr_loop_current(), x->loop);
    atomic_fetch_add(&per_loop[nr_loop_index(x->loop)], 1);
    atomic_store(&an_engine, x->conn->e);
}

static void on_request(void *ctx, struct nr_exchange *x)
{
    (void)ctx;
    if (nr_str_is(x->path, "/later")) {
        atomic_fetch_add(&n_later, 1);
        atomic_store(&waiting, x);
    } else {
        respond(x);
    }
}

static void on_cancel(void *ctx, struct nr_exchange *x, nr_cancel_reason why)
{
    (void)ctx;
    atomic_fetch_add(&n_cancel[why], 1);
    if (why != NR_CANCEL_HALF_CLOSE) {
        respond(x);
    }
}

static void on_done(void *ctx, struct nr_exchange *x)
{
    (void)ctx;
    (void)x;
    atomic_fetch_add(&n_done, 1);
}

static void *loop_thread(void *arg)
{
    nr_loop_run(arg);
    nr_arena_thread_done();
    nr_buf_thread_done();
    return NULL;
}

static struct nr_http_limits limits;

static void start(void)
{
    struct nr_err err = {0};
    const struct nr_http_app app = {
        .on_head = on_head, .on_request = on_request, .on_cancel = on_cancel, .on_done = on_done};
    for (unsigned i = 0; i < N_LOOPS; i++) {
        assert_int_equal(nr_loop_new(i, &loops[i], &err), NARU_OK);
        atomic_store(&per_loop[i], 0);
    }
    for (unsigned i = 0; i < NR_COUNT(n_cancel); i++) {
        atomic_store(&n_cancel[i], 0);
    }
    atomic_store(&n_done, 0);
    atomic_store(&n_later, 0);
    assert_int_equal(nr_server_new(loops, N_LOOPS, &limits, &app, &server), NARU_OK);
    assert_int_equal(nr_server_listen(server, "127.0.0.1", 0, 7, &port, &err), NARU_OK);
    assert_int_equal(nr_server_start(server, &err), NARU_OK);
    for (unsigned i = 0; i < N_LOOPS; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, loop_thread, loops[i]), 0);
    }
}

static void pause_ms(long ms)
{
    const struct timespec t = {ms / 1000, ms % 1000 * 1000000};
    (void)nanosleep(&t, NULL);
}

#define wait_until(cond)                      \
    do {                                      \
        int tries_ = 0;                       \
        while (!(cond) && tries_++ < 60000) { \
            pause_ms(1);                      \
        }                                     \
        assert_true(cond);                    \
    } while (0)

static void stop(void)
{
    nr_server_abort(server);
    wait_until(nr_server_connections(server) == 0);
    for (unsigned i = 0; i < N_LOOPS; i++) {
        nr_loop_stop(loops[i]);
        (void)pthread_join(threads[i], NULL);
    }
    nr_server_free(server);
    for (unsigned i = 0; i < N_LOOPS; i++) {
        nr_loop_free(loops[i]);
    }
}

static int setup(void **state)
{
    (void)state;
    nr_http_limits_default(&limits);
    return 0;
}

static int dial(void)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    struct sockaddr_in sa = {.sin_family = AF_INET, .sin_port = htons(port)};
    sa.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    assert_int_equal(connect(fd, (struct sockaddr *)&sa, sizeof(sa)), 0);
    const struct timeval t = {60, 0};
    assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof(t)), 0);
    return fd;
}

static void say(int fd, const char *text)
{
    assert_int_equal(send(fd, text, strlen(text), MSG_NOSIGNAL), strlen(text));
}

/* One response with a body of two bytes. */
static void hear(int fd)
{
    char buf[1024];
    size_t n = 0;
    while (n < 6 || memcmp(buf + n - 6, "\r\n\r\nok", 6) != 0) {
        ssize_t got = recv(fd, buf + n, sizeof(buf) - n, 0);
        assert_true(got > 0);
        n += (size_t)got;
    }
    assert_memory_equal(buf, "HTTP/1.1 200 OK\r\n", 17);
}

static bool ended(int fd)
{
    char c;
    ssize_t n = recv(fd, &c, 1, 0);
    return n == 0 || (n < 0 && errno == ECONNRESET);
}

#define GET "GET / HTTP/1.1\r\nHost: a\r\n\r\n"
#define LATER "GET /later HTTP/1.1\r\nHost: a\r\n\r\n"

static void test_spread(void **state)
{
    (void)state;
    start();
    int fds[40];
    for (size_t i = 0; i < NR_COUNT(fds); i++) {
        fds[i] = dial();
    }
    for (size_t i = 0; i < NR_COUNT(fds); i++) {
        say(fds[i], GET);
        hear(fds[i]);
    }
    for (unsigned i = 0; i < N_LOOPS; i++) {
        assert_int_equal(atomic_load(&per_loop[i]), NR_COUNT(fds) / N_LOOPS);
    }
    assert_int_equal(nr_server_connections(server), NR_COUNT(fds));
    struct nr_http_stats s;
    nr_server_stats(server, &s);
    assert_int_equal(s.accepted, NR_COUNT(fds));
    assert_int_equal(s.requests, NR_COUNT(fds));
    assert_int_equal(s.bytes_in, NR_COUNT(fds) * strlen(GET));
    assert_true(s.bytes_out > NR_COUNT(fds) * 20);
    for (size_t i = 0; i < NR_COUNT(fds); i++) {
        (void)close(fds[i]);
    }
    wait_until(nr_server_connections(server) == 0);
    stop();
}

static void test_max_connections(void **state)
{
    (void)state;
    limits.max_connections = 3;
    start();
    int fds[3];
    for (size_t i = 0; i < 3; i++) {
        fds[i] = dial();
        say(fds[i], GET);
        hear(fds[i]);
    }
    int more = dial();
    assert_true(ended(more));
    (void)close(more);
    (void)close(fds[0]);
    wait_until(nr_server_connections(server) == 2);
    fds[0] = dial();
    say(fds[0], GET);
    hear(fds[0]);
    struct nr_http_stats s;
    nr_server_stats(server, &s);
    assert_int_equal(s.refused, 1);
    for (size_t i = 0; i < 3; i++) {
        (void)close(fds[i]);
    }
    stop();
}

/* A connection as if it came from another machine. */
struct foreign {
    struct nr_msg msg;
    struct nr_engine *e;
    int fd;
    uint8_t last; /* byte of the address */
};

static void on_foreign(struct nr_msg *m)
{
    const struct foreign *f = nr_container_of(m, struct foreign, msg);
    const struct nr_peer peer = {.text = "192.0.2.1:1"};
    uint8_t key[16] = {[10] = 0xff, [11] = 0xff, [12] = 192, [14] = 2, [15] = f->last};
    nr_server_accepted(f->e, f->fd, &peer, key);
}

static int dial_from(struct nr_engine *e, uint8_t last)
{
    static struct foreign all[16]; /* one each: the loop may still hold the one before */
    static unsigned n;
    struct foreign *f = &all[n++];
    int pair[2];
    assert_true(n <= NR_COUNT(all));
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    assert_int_equal(fcntl(pair[0], F_SETFL, O_NONBLOCK), 0);
    struct nr_http_stats before, now;
    nr_server_stats(server, &before);
    *f = (struct foreign){.msg.run = on_foreign, .e = e, .fd = pair[0], .last = last};
    nr_loop_post(e->loop, &f->msg);
    wait_until((nr_server_stats(server, &now),
                now.accepted + now.refused == before.accepted + before.refused + 1));
    return pair[1];
}

static void test_max_per_address(void **state)
{
    (void)state;
    limits.max_connections_per_addr = 2;
    start();
    int own[4];
    for (size_t i = 0; i < 4; i++) { /* loopback is left out */
        own[i] = dial();
        say(own[i], GET);
        hear(own[i]);
    }
    struct nr_engine *e = atomic_load(&an_engine);
    int a = dial_from(e, 1), b = dial_from(e, 1), c = dial_from(e, 1), other = dial_from(e, 2);
    assert_true(ended(c));
    const int served[] = {a, b, other};
    for (size_t i = 0; i < NR_COUNT(served); i++) {
        say(served[i], GET);
        hear(served[i]);
    }
    (void)close(a);
    wait_until(nr_server_connections(server) == 6);
    a = dial_from(e, 1);
    say(a, GET);
    hear(a);
    struct nr_http_stats s;
    nr_server_stats(server, &s);
    assert_int_equal(s.refused, 1);
    const int all[] = {a, b, c, other, own[0], own[1], own[2], own[3]};
    for (size_t i = 0; i < NR_COUNT(all); i++) {
        (void)close(all[i]);
    }
    stop();
}

static void test_reset_cancels(void **state)
{
    (void)state;
    start();
    int fd = dial();
    say(fd, LATER);
    wait_until(atomic_load(&n_later) == 1);
    const struct linger now = {1, 0};
    assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof(now)), 0);
    (void)close(fd);
    wait_until(atomic_load(&n_cancel[NR_CANCEL_RESET]) == 1);
    wait_until(nr_server_connections(server) == 0);
    assert_int_equal(atomic_load(&n_done), 1);
    stop();
}

struct post {
    struct nr_msg msg;
    struct nr_exchange *x;
};

static void on_post(struct nr_msg *m)
{
    respond(nr_container_of(m, struct post, msg)->x);
}

/* A FIN cancels what has not begun, but what runs is answered. */
static void test_half_close(void **state)
{
    (void)state;
    start();
    int fd = dial();
    say(fd, LATER);
    assert_int_equal(shutdown(fd, SHUT_WR), 0);
    wait_until(atomic_load(&n_cancel[NR_CANCEL_HALF_CLOSE]) == 1);
    struct post p = {.msg.run = on_post, .x = atomic_load(&waiting)};
    nr_loop_post(p.x->loop, &p.msg); /* from another thread, as an instance would */
    hear(fd);
    assert_true(ended(fd));
    (void)close(fd);
    wait_until(nr_server_connections(server) == 0);
    stop();
}

/* An error before the body was read reaches the client although it goes on sending. */
static void test_error_survives(void **state)
{
    (void)state;
    limits.max_body_bytes = 1000;
    start();
    int fd = dial();
    say(fd, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 800000\r\n\r\n");
    char *body = nr_alloc(800000);
    assert_int_equal(send(fd, body, 800000, MSG_NOSIGNAL), 800000);
    nr_free(body);
    pause_ms(20);
    char buf[512];
    ssize_t n = recv(fd, buf, sizeof(buf), 0);
    assert_true(n > 20);
    assert_memory_equal(buf, "HTTP/1.1 413 ", 13);
    (void)close(fd);
    stop();
}

static double cpu_s(void)
{
    struct rusage u;
    (void)getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
           (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

/* Out of descriptors: no spinning, and service again when there are some. */
/* Returns the limit to go back to. */
static struct rlimit no_more_descriptors(void)
{
    struct rlimit old, low;
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &old), 0);
    low = old;
    int top = dup(0);
    assert_true(top >= 0);
    low.rlim_cur = (rlim_t)top;
    (void)close(top);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &low), 0);
    return old;
}

static void test_no_descriptors(void **state)
{
    (void)state;
    start();
    int fds[8], spare[8];
    for (size_t i = 0; i < NR_COUNT(spare); i++) {
        spare[i] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    }
    struct rlimit old = no_more_descriptors();
    struct sockaddr_in sa = {.sin_family = AF_INET, .sin_port = htons(port)};
    sa.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    for (size_t i = 0; i < NR_COUNT(spare); i++) {
        assert_int_equal(connect(spare[i], (struct sockaddr *)&sa, sizeof(sa)), 0);
    }
    double before = cpu_s();
    pause_ms(500);
    assert_true(cpu_s() - before < 0.1);
    for (size_t i = 0; i < NR_COUNT(spare); i++) {
        (void)close(spare[i]);
    }
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &old), 0);
    pause_ms(250);
    for (size_t i = 0; i < NR_COUNT(fds); i++) {
        fds[i] = dial();
        say(fds[i], GET);
        hear(fds[i]);
    }
    for (size_t i = 0; i < NR_COUNT(fds); i++) {
        (void)close(fds[i]);
    }
    stop();
}

static void test_drain(void **state)
{
    (void)state;
    start();
    int idle = dial(), busy = dial();
    say(idle, GET);
    hear(idle);
    say(busy, LATER);
    wait_until(atomic_load(&n_later) == 1);
    nr_server_drain(server);
    nr_server_drain(server);
    assert_true(ended(idle));
    wait_until(nr_server_connections(server) == 1);
    int fresh = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in sa = {.sin_family = AF_INET, .sin_port = htons(port)};
    sa.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    assert_int_equal(connect(fresh, (struct sockaddr *)&sa, sizeof(sa)), -1);
    assert_int_equal(errno, ECONNREFUSED);
    (void)close(fresh);
    struct post p = {.msg.run = on_post, .x = atomic_load(&waiting)};
    nr_loop_post(p.x->loop, &p.msg);
    hear(busy);
    assert_true(ended(busy));
    wait_until(nr_server_connections(server) == 0);
    (void)close(idle);
    (void)close(busy);
    stop();
}

/* Two servers on one socket, as two processes have it: the first retires, nobody is turned away. */
static void test_retire(void **state)
{
    (void)state;
    struct nr_server *next = NULL;
    struct nr_err err = {0};
    const struct nr_http_app app = {
        .on_head = on_head, .on_request = on_request, .on_cancel = on_cancel, .on_done = on_done};
    start();
    int idle = dial(), silent = dial(), forgotten = dial(), busy = dial();
    say(idle, GET);
    hear(idle);
    say(busy, LATER);
    wait_until(atomic_load(&n_later) == 1 && nr_server_connections(server) == 4);
    int fd = fcntl(nr_server_listener(server, 0), F_DUPFD_CLOEXEC, 0);
    nr_server_retire(server);
    nr_server_retire(server);
    wait_until(!nr_server_accepts(server));
    int waits = dial(); /* nobody accepts, and nobody refuses */
    say(waits, GET);
    say(idle, GET);
    hear(idle);
    assert_true(ended(idle));
    say(silent, GET); /* connected before, asks only now */
    hear(silent);
    assert_true(ended(silent));

    uint16_t same = 0;
    assert_int_equal(nr_server_new(loops, N_LOOPS, &limits, &app, &next), NARU_OK);
    assert_int_equal(nr_server_adopt(next, fd, 7, &same, &err), NARU_OK);
    assert_int_equal(same, port);
    assert_int_equal(nr_server_start(next, &err), NARU_OK);
    nr_server_look(next);
    hear(waits);
    nr_server_drain(server); /* not the socket, which is another's */
    assert_true(ended(forgotten));
    int fresh = dial();
    say(fresh, GET);
    hear(fresh);
    struct post p = {.msg.run = on_post, .x = atomic_load(&waiting)};
    nr_loop_post(p.x->loop, &p.msg);
    hear(busy);
    assert_true(ended(busy));
    wait_until(nr_server_connections(server) == 0);

    nr_server_own(next);
    nr_server_abort(next); /* ours alone now: shut */
    wait_until(nr_server_connections(next) == 0);
    const int fds[] = {idle, silent, forgotten, busy, waits, fresh};
    for (size_t i = 0; i < NR_COUNT(fds); i++) {
        (void)close(fds[i]);
    }
    for (unsigned i = 0; i < N_LOOPS; i++) {
        nr_loop_stop(loops[i]);
        (void)pthread_join(threads[i], NULL);
    }
    nr_server_free(next);
    nr_server_free(server);
    for (unsigned i = 0; i < N_LOOPS; i++) {
        nr_loop_free(loops[i]);
    }
}

static void test_abort(void **state)
{
    (void)state;
    start();
    int fd = dial();
    say(fd, LATER);
    wait_until(atomic_load(&n_later) == 1);
    nr_server_abort(server);
    wait_until(atomic_load(&n_cancel[NR_CANCEL_SHUTDOWN]) == 1);
    assert_true(ended(fd));
    (void)close(fd);
    stop();
}

/* A loop may stop before it has read the messages that end its part: a listener that rests there must
 * not outlive the server. (A sanitizer sees the write into freed memory.) */
static void test_free_while_a_listener_rests(void **state)
{
    (void)state;
    start();
    int spare = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct rlimit old = no_more_descriptors();
    struct sockaddr_in sa = {.sin_family = AF_INET, .sin_port = htons(port)};
    sa.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    assert_int_equal(connect(spare, (struct sockaddr *)&sa, sizeof(sa)), 0);
    struct nr_http_stats stats = {0};
    wait_until((nr_server_stats(server, &stats), stats.refused > 0));
    for (unsigned i = 0; i < N_LOOPS; i++) {
        nr_loop_stop(loops[i]);
        (void)pthread_join(threads[i], NULL);
    }
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &old), 0);
    nr_server_free(server);
    for (unsigned i = 0; i < N_LOOPS; i++) {
        nr_loop_free(loops[i]);
    }
    (void)close(spare);
}

static void test_bad_address(void **state)
{
    (void)state;
    start();
    struct nr_err err = {0};
    uint16_t got;
    assert_int_not_equal(nr_server_listen(server, "not an address", 0, 0, &got, &err), NARU_OK);
    assert_true(strlen(err.text) > 20);
    assert_int_equal(nr_server_listen(server, "127.0.0.1", port, 0, &got, &err), NARU_EXISTS);
    assert_int_equal(nr_server_start(server, &err), NARU_PRECONDITION);
    stop();
}

int main(void)
{
    (void)signal(SIGPIPE, SIG_IGN);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_spread, setup),
        cmocka_unit_test_setup(test_max_connections, setup),
        cmocka_unit_test_setup(test_max_per_address, setup),
        cmocka_unit_test_setup(test_reset_cancels, setup),
        cmocka_unit_test_setup(test_half_close, setup),
        cmocka_unit_test_setup(test_error_survives, setup),
        cmocka_unit_test_setup(test_no_descriptors, setup),
        cmocka_unit_test_setup(test_drain, setup),
        cmocka_unit_test_setup(test_retire, setup),
        cmocka_unit_test_setup(test_abort, setup),
        cmocka_unit_test_setup(test_free_while_a_listener_rests, setup),
        cmocka_unit_test_setup(test_bad_address, setup),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
