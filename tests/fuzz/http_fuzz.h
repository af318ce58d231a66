/* A connection of the HTTP engine in memory for fuzzing: the input is received in pieces, the app
 * answers at once, later or never before the hang-up, as the first two bytes say. After each run
 * nothing may be left: every exchange answered and done, every byte of body memory given back. */
#ifndef NR_TESTS_HTTP_FUZZ_H
#define NR_TESTS_HTTP_FUZZ_H

#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>

#include "base/clock.h"
#include "base/mem.h"
#include "http/engine.h"

#define FUZZ_MAX_OPEN 512u

static struct {
    struct nr_loop *loop;
    struct nr_http_limits limits;
    struct nr_http_app app;
    struct nr_engine e;
    struct nr_conn *c;
    const uint8_t *in;
    size_t len, at, piece;
    bool closed, fin;
    uint32_t events;
    unsigned mode; /* bits: 1 answer later, 2 answer in on_head, 4 large answer, 8 slow reader */
    struct nr_exchange *open[FUZZ_MAX_OPEN];
    unsigned n_open;
    uint64_t told, done;
} fz;

static void fz_answer(struct nr_exchange *x)
{
    static char big[100000];
    const struct nr_iov body = {big, (fz.mode & 4) ? sizeof(big) : 5};
    const struct nr_response r = {.status = 200,
                                  .content_type = NR_STR_INIT("text/plain"),
                                  .body = &body,
                                  .n_body = 1,
                                  .grpc_status = (fz.mode & 16) ? 3 : 0};
    nr_exchange_respond(x, &r);
}

static void fz_remove(const struct nr_exchange *x)
{
    for (unsigned i = 0; i < fz.n_open; i++) {
        if (fz.open[i] == x) {
            fz.open[i] = fz.open[--fz.n_open];
            return;
        }
    }
    abort();
}

static void fz_on_head(void *ctx, struct nr_exchange *x)
{
    (void)ctx;
    fz.told++;
    x->body_limit = 1 << 16;
    x->body_align_at = fz.told % 100;
    NR_ASSERT(x->path.len > 0 && x->n_headers <= fz.limits.max_fields);
    for (unsigned i = 0; i < x->n_headers; i++) {
        for (size_t k = 0; k < x->headers[i].name.len; k++) {
            char ch = x->headers[i].name.ptr[k];
            NR_ASSERT(ch > 0x20 && !(ch >= 'A' && ch <= 'Z'));
        }
        for (size_t k = 0; k < x->headers[i].value.len; k++) {
            char ch = x->headers[i].value.ptr[k];
            NR_ASSERT(ch != '\0' && ch != '\r' && ch != '\n');
        }
    }
    if (fz.mode & 2) {
        fz_answer(x);
    } else {
        NR_ASSERT(fz.n_open < FUZZ_MAX_OPEN);
        fz.open[fz.n_open++] = x;
    }
}

static void fz_on_request(void *ctx, struct nr_exchange *x)
{
    (void)ctx;
    NR_ASSERT(x->body.len <= x->body_limit);
    static volatile unsigned sum;
    for (size_t i = 0; i < x->body.len; i++) { /* every byte is readable */
        sum += (uint8_t)x->body.ptr[i];
    }
    if (!x->responded && !(fz.mode & 1)) {
        fz_remove(x);
        fz_answer(x);
    }
}

static void fz_on_cancel(void *ctx, struct nr_exchange *x, nr_cancel_reason why)
{
    (void)ctx;
    (void)why;
    if (!(fz.mode & 1)) {
        fz_remove(x);
        fz_answer(x);
    }
}

static void fz_on_done(void *ctx, struct nr_exchange *x)
{
    (void)ctx;
    NR_ASSERT(x->responded);
    fz.done++;
}

static ssize_t fz_recv(struct nr_conn *c, void *buf, size_t len)
{
    (void)c;
    size_t n = NR_MIN(NR_MIN(fz.len - fz.at, len), fz.piece);
    if (n == 0) {
        errno = EAGAIN;
        return fz.fin ? 0 : -1;
    }
    memcpy(buf, fz.in + fz.at, n);
    fz.at += n;
    return (ssize_t)n;
}

static ssize_t fz_sendv(struct nr_conn *c, const struct iovec *iov, unsigned n)
{
    (void)c;
    static volatile unsigned sum;
    size_t sent = 0, most = (fz.mode & 8) ? 1000 : SIZE_MAX;
    for (unsigned i = 0; i < n && sent < most; i++) {
        size_t k = NR_MIN(iov[i].iov_len, most - sent);
        for (size_t b = 0; b < k; b += 64) { /* what is sent is alive */
            sum += ((const uint8_t *)iov[i].iov_base)[b];
        }
        sent += k;
    }
    return (ssize_t)sent;
}

static void fz_watch(struct nr_conn *c, uint32_t events)
{
    (void)c;
    fz.events = events;
}

static void fz_shut(struct nr_conn *c)
{
    (void)c;
}

static void fz_close(struct nr_conn *c)
{
    (void)c;
    NR_ASSERT(!fz.closed);
    fz.closed = true;
    fz.events = 0;
}

static const struct nr_transport fz_transport = {fz_recv, fz_sendv, fz_watch, fz_shut, fz_close};

static void fz_step(void)
{
    if (!fz.closed && (fz.events & EPOLLIN) && (fz.at < fz.len || fz.fin)) {
        nr_conn_on_event(fz.c, EPOLLIN);
    }
    if (!fz.closed && (fz.events & EPOLLOUT)) {
        nr_conn_on_event(fz.c, EPOLLOUT);
    }
    (void)nr_loop_turn(fz.loop, 0);
}

static void fz_answer_all(void)
{
    while (fz.n_open > 0) {
        fz_answer(fz.open[--fz.n_open]);
    }
}

/* data[0]: mode, data[1]: size of the pieces; the rest is what the client sends. */
static int fz_run(const uint8_t *data, size_t size)
{
    if (size < 2) {
        return 0;
    }
    if (!fz.loop) {
        nr_clock_fake(true, 1000 * NR_S_NS);
        NR_ASSERT(nr_loop_new(0, &fz.loop, NULL) == NARU_OK);
        nr_http_limits_default(&fz.limits);
        fz.app = (struct nr_http_app){.on_head = fz_on_head,
                                      .on_request = fz_on_request,
                                      .on_cancel = fz_on_cancel,
                                      .on_done = fz_on_done};
        nr_engine_init(&fz.e, fz.loop, &fz.limits, &fz.app, 0);
    }
    const struct nr_peer peer = {.text = "fuzz"};
    fz.mode = data[0];
    fz.piece = data[1] ? data[1] : SIZE_MAX;
    fz.in = data + 2;
    fz.len = size - 2;
    fz.at = 0;
    fz.closed = fz.fin = false;
    atomic_fetch_add(&fz.e.open, 1);
    fz.c = nr_conn_open(&fz.e, &fz_transport, NULL, -1, &peer);
    for (size_t i = 0; i < size / NR_MIN(fz.piece, size) + 4 && !fz.closed; i++) {
        fz_step();
        if (i % 7 == 6) {
            fz_answer_all();
        }
    }
    nr_clock_fake_advance((int64_t)(fz.mode >> 5) * 5 * NR_S_NS);
    fz_step();
    fz.fin = true;
    fz_step();
    if (!fz.closed) {
        nr_conn_on_event(fz.c, EPOLLERR | EPOLLHUP);
    }
    fz_step();
    fz_answer_all();
    fz_step();
    fz_step();
    NR_ASSERT(atomic_load(&fz.e.open) == 0 && fz.told == fz.done);
    NR_ASSERT(nr_buf_live_bytes() == 0);
    return 0;
}

#endif
