/* One connection of the HTTP engine in memory, with a scripted client on the other side.
 *
 * The transport is a pair of byte queues: what the test feeds is received in pieces of at most
 * `piece` bytes; what the engine sends is taken while `room` lasts. The app records what it was
 * told, and answers at once, in a turn hook, or when the test says so. No sockets, no threads. */
#ifndef NR_TESTS_HTTP_HARNESS_H
#define NR_TESTS_HTTP_HARNESS_H

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/epoll.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/mem.h"
#include "http/engine.h"

#define SEEN_MAX 300u

enum answer_mode {
    ANSWER_NOW,
    ANSWER_HOOK,
    ANSWER_LATER,
    ANSWER_IN_HEAD
};

struct seen {
    struct nr_exchange *x; /* while unanswered */
    char method[16];
    char path[64];
    struct nr_text body;
    unsigned n_headers;
    bool requested, cancelled, done;
    bool body_in_place;
    size_t body_misalign; /* of body + body_align_at */
    nr_cancel_reason why;
    int status;
};

struct fix {
    struct nr_loop *loop;
    struct nr_http_limits limits;
    struct nr_http_app app;
    struct nr_engine e;
    struct nr_conn *c;
    /* wire */
    struct nr_text in;
    size_t in_at;
    bool fin, closed, shut;
    size_t piece, room;
    uint32_t events;
    struct nr_text out;
    unsigned recvs, sends;
    /* app */
    enum answer_mode mode;
    struct nr_turn_hook hook;
    struct seen seen[SEEN_MAX];
    unsigned n_seen, n_done, n_cancel, n_idle;
    bool cancel_leaves_open; /* on_cancel does not answer */
    struct nr_iov reply;
    int reply_status, reply_grpc;
    bool reply_close;
    uint64_t body_limit; /* 0: the server's */
    size_t align_at;
    const struct nr_header *reply_headers;
    unsigned n_reply_headers;
};

static inline void answer(struct fix *f, struct nr_exchange *x)
{
    struct nr_response r = {.status = f->reply_status,
                            .content_type = NR_STR_INIT("text/plain"),
                            .headers = f->reply_headers,
                            .n_headers = f->n_reply_headers,
                            .body = &f->reply,
                            .n_body = f->reply.len ? 1 : 0,
                            .close = f->reply_close,
                            .grpc_status = f->reply_grpc,
                            .grpc_message = NR_STR_INIT("said 100% so\n")};
    ((struct seen *)x->app)->x = NULL;
    nr_exchange_respond(x, &r);
}

static inline void fix_on_turn(struct nr_turn_hook *h)
{
    struct fix *f = nr_container_of(h, struct fix, hook);
    for (unsigned i = 0; i < f->n_seen; i++) {
        if (f->seen[i].x && f->seen[i].requested) {
            answer(f, f->seen[i].x);
        }
    }
}

static inline void keep(char *to, size_t size, struct nr_str s)
{
    size_t n = NR_MIN(s.len, size - 1);
    memcpy(to, s.ptr, n);
    to[n] = '\0';
}

static inline void fix_on_head(void *ctx, struct nr_exchange *x)
{
    struct fix *f = ctx;
    assert_true(f->n_seen < SEEN_MAX);
    struct seen *s = &f->seen[f->n_seen++];
    *s = (struct seen){.x = x, .n_headers = x->n_headers};
    nr_text_init(&s->body, 64 << 20);
    keep(s->method, sizeof(s->method), x->method_text);
    keep(s->path, sizeof(s->path), x->path);
    x->app = s;
    if (f->body_limit) {
        x->body_limit = f->body_limit;
    }
    x->body_align_at = f->align_at;
    if (f->mode == ANSWER_IN_HEAD) {
        answer(f, x);
    }
}

static inline void fix_on_request(void *ctx, struct nr_exchange *x)
{
    struct fix *f = ctx;
    struct seen *s = x->app;
    assert_false(s->requested);
    s->requested = true;
    s->body_in_place = x->body_buf == NULL;
    s->body_misalign = ((uintptr_t)x->body.ptr + x->body_align_at) % 64;
    nr_text_add(&s->body, x->body.ptr, x->body.len);
    if (!s->x) {
        return; /* answered in on_head */
    }
    if (f->mode == ANSWER_NOW) {
        answer(f, x);
    } else if (f->mode == ANSWER_HOOK) {
        nr_loop_hook_arm(f->loop, &f->hook);
    }
}

static inline void fix_on_cancel(void *ctx, struct nr_exchange *x, nr_cancel_reason why)
{
    struct fix *f = ctx;
    struct seen *s = x->app;
    assert_non_null(s->x); /* never after the answer */
    /* once, but that a half-close may be followed by another reason */
    assert_true(!s->cancelled || (s->why == NR_CANCEL_HALF_CLOSE && why != s->why));
    s->cancelled = true;
    s->why = why;
    f->n_cancel++;
    if (!f->cancel_leaves_open) {
        answer(f, x);
    }
}

static inline void fix_on_done(void *ctx, struct nr_exchange *x)
{
    struct fix *f = ctx;
    struct seen *s = x->app;
    assert_null(s->x); /* only after the answer */
    assert_false(s->done);
    s->done = true;
    s->status = x->response_status;
    f->n_done++;
}

static inline ssize_t wire_recv(struct nr_conn *c, void *buf, size_t len)
{
    struct fix *f = c->t_ctx;
    f->recvs++;
    size_t have = f->in.len - f->in_at;
    if (have == 0) {
        if (f->fin) {
            return 0;
        }
        errno = EAGAIN;
        return -1;
    }
    size_t n = NR_MIN(NR_MIN(have, len), f->piece);
    memcpy(buf, f->in.data + f->in_at, n);
    f->in_at += n;
    return (ssize_t)n;
}

static inline ssize_t wire_sendv(struct nr_conn *c, const struct iovec *iov, unsigned n)
{
    struct fix *f = c->t_ctx;
    size_t sent = 0;
    f->sends++;
    assert_false(f->shut);
    for (unsigned i = 0; i < n && f->room > 0; i++) {
        size_t k = NR_MIN(iov[i].iov_len, f->room);
        nr_text_add(&f->out, iov[i].iov_base, k);
        f->room -= k;
        sent += k;
    }
    if (sent == 0) {
        errno = EAGAIN;
        return -1;
    }
    return (ssize_t)sent;
}

static inline void wire_watch(struct nr_conn *c, uint32_t events)
{
    struct fix *f = c->t_ctx;
    assert_false(f->closed);
    f->events = events;
}

static inline void wire_shut(struct nr_conn *c)
{
    ((struct fix *)c->t_ctx)->shut = true;
}

static inline void wire_close(struct nr_conn *c)
{
    struct fix *f = c->t_ctx;
    assert_false(f->closed);
    f->closed = true;
    f->events = 0;
}

static const struct nr_transport wire = {wire_recv, wire_sendv, wire_watch, wire_shut, wire_close};

/* A fresh connection; what was seen and sent before is forgotten. */
static inline void fix_connect(struct fix *f)
{
    for (unsigned i = 0; i < f->n_seen; i++) {
        nr_text_done(&f->seen[i].body);
    }
    f->n_seen = f->n_done = f->n_cancel = 0;
    nr_text_clear(&f->in);
    nr_text_clear(&f->out);
    f->in_at = 0;
    f->fin = f->closed = f->shut = false;
    f->piece = f->room = SIZE_MAX;
    f->recvs = f->sends = 0;
    const struct nr_peer peer = {.text = "memory"};
    atomic_fetch_add(&f->e.open, 1);
    f->c = nr_conn_open(&f->e, &wire, f, -1, &peer);
    assert_non_null(f->c);
}

static inline void fix_on_idle(void *ctx)
{
    struct fix *f = ctx;
    f->n_idle++;
}

static inline struct fix *fix_new(void)
{
    struct fix *f = nr_new(struct fix);
    nr_clock_fake(true, 1000 * NR_S_NS);
    assert_int_equal(nr_loop_new(0, &f->loop, NULL), NARU_OK);
    nr_http_limits_default(&f->limits);
    f->app = (struct nr_http_app){.ctx = f,
                                  .on_head = fix_on_head,
                                  .on_request = fix_on_request,
                                  .on_cancel = fix_on_cancel,
                                  .on_done = fix_on_done,
                                  .on_idle = fix_on_idle};
    nr_engine_init(&f->e, f->loop, &f->limits, &f->app, 0);
    f->hook.on_turn = fix_on_turn;
    f->reply = (struct nr_iov){"ok", 2};
    f->reply_status = 200;
    nr_text_init(&f->in, 512 << 20);
    nr_text_init(&f->out, 512 << 20);
    fix_connect(f);
    return f;
}

/* Everything that can happen now happens. */
static inline void pump(struct fix *f)
{
    for (int idle = 0; idle < 3;) {
        bool did = false;
        if (!f->closed && (f->events & EPOLLIN) && (f->in_at < f->in.len || f->fin)) {
            nr_conn_on_event(f->c, EPOLLIN);
            did = true;
        } else if (!f->closed && (f->events & EPOLLRDHUP) && f->fin && f->in_at == f->in.len) {
            nr_conn_on_event(f->c, EPOLLRDHUP);
            did = true;
        }
        if (!f->closed && (f->events & EPOLLOUT) && f->room > 0) {
            nr_conn_on_event(f->c, EPOLLOUT);
            did = true;
        }
        (void)nr_loop_turn(f->loop, 0);
        idle = did ? 0 : idle + 1;
    }
}

static inline void feed(struct fix *f, const void *data, size_t len)
{
    nr_text_add(&f->in, data, len);
    assert_false(f->in.failed);
}

static inline void feedz(struct fix *f, const char *text)
{
    feed(f, text, strlen(text));
}

static inline void wait_ns(struct fix *f, int64_t ns)
{
    nr_clock_fake_advance(ns);
    pump(f);
}

static inline void fix_hangup(struct fix *f)
{
    if (!f->closed) {
        nr_conn_on_event(f->c, EPOLLERR | EPOLLHUP);
    }
    pump(f);
    for (unsigned i = 0; i < f->n_seen; i++) {
        if (f->seen[i].x) {
            answer(f, f->seen[i].x);
        }
    }
    pump(f);
    assert_int_equal(f->n_done, f->n_seen);
    assert_int_equal(atomic_load(&f->e.open), 0);
}

static inline void fix_free(struct fix *f)
{
    fix_hangup(f);
    for (unsigned i = 0; i < f->n_seen; i++) {
        nr_text_done(&f->seen[i].body);
    }
    nr_text_done(&f->in);
    nr_text_done(&f->out);
    nr_engine_done(&f->e);
    nr_loop_free(f->loop);
    nr_arena_thread_done();
    nr_buf_thread_done();
    nr_clock_fake(false, 0);
    nr_free(f);
}

/* Status codes of the HTTP/1.1 responses in the output, in order, "200 404 "; bodies by length. */
static inline void statuses(struct fix *f, char *out, size_t size)
{
    size_t at = 0, n = 0;
    out[0] = '\0';
    while (at + 12 <= f->out.len && n + 5 < size) {
        const char *p = f->out.data + at;
        assert_memory_equal(p, "HTTP/1.1 ", 9);
        memcpy(out + n, p + 9, 3);
        out[n + 3] = ' ';
        out[n + 4] = '\0';
        n += 4;
        const char *end = strstr(p, "\r\n\r\n");
        assert_non_null(end);
        const char *cl = strstr(p, "content-length: ");
        uint64_t len = 0;
        if (cl && cl < end) {
            const char *eol = strchr(cl, '\r');
            assert_true(nr_str_to_u64((struct nr_str){cl + 16, (size_t)(eol - cl - 16)}, &len));
        }
        at = (size_t)(end + 4 - f->out.data) + (size_t)len;
    }
    assert_true(at >= f->out.len || f->out.len == 0);
}

#define assert_statuses(f, expected)         \
    do {                                     \
        char got_[512];                      \
        statuses((f), got_, sizeof(got_));   \
        assert_string_equal(got_, expected); \
    } while (0)

#endif
