/* A fixed reply on the naru HTTP engine, for comparing its cost with nginx (wrk) and nghttpd
 * (h2load): http_echo PORT [LOOPS] [BODY_BYTES]. Answers every request with 200 and a JSON body
 * (gRPC: one message of the same size), batch-wise in a turn hook when ECHO_BATCH is set, as the
 * scheduler does. Ends on SIGTERM or SIGINT and prints its CPU time per request. */
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>

#include "base/mem.h"
#include "base/str.h"
#include "http/server.h"

#define MAX_LOOPS 64u

struct echo_loop {
    struct nr_turn_hook hook;
    struct nr_exchange **waiting;
    unsigned n, cap;
};
static struct nr_loop *loops[MAX_LOOPS];
static struct echo_loop echo_loops[MAX_LOOPS];
static struct nr_iov body;
static bool batch;

static void answer(struct nr_exchange *x)
{
    struct nr_response r = {
        .status = 200, .content_type = NR_STR_INIT("application/json"), .body = &body, .n_body = 1};
    nr_exchange_respond(x, &r);
}

static void on_turn(struct nr_turn_hook *h)
{
    struct echo_loop *l = nr_container_of(h, struct echo_loop, hook);
    for (unsigned i = 0; i < l->n; i++) {
        answer(l->waiting[i]);
    }
    l->n = 0;
}

static void on_head(void *ctx, struct nr_exchange *x)
{
    (void)ctx;
    (void)x;
}

static void on_request(void *ctx, struct nr_exchange *x)
{
    (void)ctx;
    if (!batch) {
        answer(x);
        return;
    }
    struct echo_loop *l = &echo_loops[nr_loop_index(x->loop)];
    if (l->n == l->cap) {
        l->cap = l->cap ? l->cap * 2 : 64;
        l->waiting = nr_realloc(l->waiting, l->cap * sizeof(l->waiting[0]));
    }
    l->waiting[l->n++] = x;
    nr_loop_hook_arm(x->loop, &l->hook);
}

static void on_cancel(void *ctx, struct nr_exchange *x, nr_cancel_reason why)
{
    (void)ctx;
    (void)why;
    if (!x->body_ns) { /* never handed over: nobody else will answer */
        answer(x);
    }
}

static void on_done(void *ctx, struct nr_exchange *x)
{
    (void)ctx;
    (void)x;
}

static void *run(void *loop)
{
    nr_loop_run(loop);
    return NULL;
}

int main(int argc, char **argv)
{
    uint64_t port = 0, n = 1, bytes = 27;
    if ((argc > 1 && !nr_str_to_u64(nr_str_from(argv[1]), &port)) || port > 65535 ||
        (argc > 2 && !nr_str_to_u64(nr_str_from(argv[2]), &n)) || n < 1 || n > MAX_LOOPS ||
        (argc > 3 && !nr_str_to_u64(nr_str_from(argv[3]), &bytes))) {
        (void)fprintf(stderr, "usage: http_echo PORT [LOOPS] [BODY_BYTES]\n");
        return 2;
    }
    (void)signal(SIGPIPE, SIG_IGN);
    sigset_t set;
    (void)sigemptyset(&set);
    (void)sigaddset(&set, SIGTERM);
    (void)sigaddset(&set, SIGINT);
    (void)pthread_sigmask(SIG_BLOCK, &set, NULL);
    batch = getenv("ECHO_BATCH") != NULL;
    char *text = nr_alloc(bytes + 1);
    memset(text, ' ', bytes);
    body = (struct nr_iov){text, bytes};

    struct nr_err err = {0};
    struct nr_http_limits limits;
    nr_http_limits_default(&limits);
    struct nr_http_app app = {
        .on_head = on_head, .on_request = on_request, .on_cancel = on_cancel, .on_done = on_done};
    struct nr_server *server;
    uint16_t got = 0;
    for (unsigned i = 0; i < n; i++) {
        echo_loops[i].hook.on_turn = on_turn;
        if (nr_loop_new(i, &loops[i], &err) != NARU_OK) {
            (void)fprintf(stderr, "http_echo: %s\n", err.text);
            return 1;
        }
    }
    if (nr_server_new(loops, (unsigned)n, &limits, &app, &server) != NARU_OK ||
        nr_server_listen(server, "127.0.0.1", (uint16_t)port, 0, &got, &err) != NARU_OK ||
        nr_server_start(server, &err) != NARU_OK) {
        (void)fprintf(stderr, "http_echo: %s\n", err.text);
        return 1;
    }
    (void)printf("http_echo: port %u, %llu loops\n", (unsigned)got, (unsigned long long)n);
    (void)fflush(stdout);
    pthread_t threads[MAX_LOOPS];
    for (unsigned i = 0; i < n; i++) {
        NR_ASSERT(pthread_create(&threads[i], NULL, run, loops[i]) == 0);
    }
    int sig;
    (void)sigwait(&set, &sig);
    struct nr_http_stats s;
    nr_server_stats(server, &s);
    for (unsigned i = 0; i < n; i++) {
        nr_loop_stop(loops[i]);
        (void)pthread_join(threads[i], NULL);
    }
    struct rusage u;
    (void)getrusage(RUSAGE_SELF, &u);
    double cpu = (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) * 1e6 +
                 (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec);
    (void)printf("http_echo: %llu requests, %.3f us of CPU each, %llu connections\n",
                 (unsigned long long)s.requests, s.requests ? cpu / (double)s.requests : 0,
                 (unsigned long long)s.accepted);
    nr_server_free(server);
    for (unsigned i = 0; i < n; i++) {
        nr_loop_free(loops[i]);
        nr_free(echo_loops[i].waiting);
    }
    nr_free(text);
    return 0;
}
