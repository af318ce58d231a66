/* A connection: input block, output queue, closing, deadlines. Knows no protocol.
 *
 * Why one recv and one send: in steady state a readable socket costs one recv (a short read means
 * drained, the level-triggered loop tells when there is more), and everything queued in a turn
 * leaves with one sendmsg at its end.
 *
 *            ┌────────── nr_conn_close_soon ──────────┐
 *   OPEN ────┤                                        ▼
 *     │      └ peer error ─┐      CLOSING ─ output sent ─▶ (linger?) LINGER ─ FIN, time ─┐
 *     │                    ▼                     │ no                                    ▼
 *     └─ nr_conn_kill ──▶ DEAD ◀─────────────────┴───────────────────────────────────────┘
 *                           └─ last exchange over: nr_conn_reap, back to the pool
 *
 * Invariants
 *  1. nr_conn_kill closes the transport at once but frees nothing; memory goes back in nr_conn_reap
 *     at the end of a turn, when no exchange is left. So every function may be called on a
 *     connection that died a moment ago, and looks at c->state.
 *  2. out_queued - out_sent is the sum of all segments from seg_head on.
 *  3. A block is referenced by the connection that receives into it, by every exchange that looks
 *     into it and by every segment that points to it; bytes that anybody looks at never move.
 *  4. What was received but not consumed is [in_start, in_end) of c->in; its start may move to
 *     another block between two calls of a session, sessions keep offsets from in_start.
 *
 * Threads: the loop's. */
#include <errno.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "http/engine.h"

#define SEND_IOV 64u
#define IN_ROOM_MIN 2048u /* less free space than this is not worth a recv */

static int64_t now_ns(const struct nr_conn *c)
{
    return nr_loop_now(c->e->loop);
}

/* --- plain transport ------------------------------------------------------------------------ */

static ssize_t plain_recv(struct nr_conn *c, void *buf, size_t len)
{
    return recv(c->watch.fd, buf, len, 0);
}

static ssize_t plain_sendv(struct nr_conn *c, const struct iovec *iov, unsigned n)
{
    if (n == 1) {
        return send(c->watch.fd, iov->iov_base, iov->iov_len, MSG_NOSIGNAL);
    }
    struct msghdr msg = {.msg_iov = (struct iovec *)(uintptr_t)iov, .msg_iovlen = n};
    return sendmsg(c->watch.fd, &msg, MSG_NOSIGNAL);
}

static void plain_watch(struct nr_conn *c, uint32_t events)
{
    nr_loop_rewatch(c->e->loop, &c->watch, events);
}

static void plain_shut(struct nr_conn *c)
{
    (void)shutdown(c->watch.fd, SHUT_WR); /* ENOTCONN: the peer was faster */
}

static void plain_close(struct nr_conn *c)
{
    nr_loop_unwatch(c->e->loop, &c->watch);
    (void)close(c->watch.fd);
    c->watch.fd = -1;
}

const struct nr_transport nr_transport_plain = {
    .recv = plain_recv,
    .sendv = plain_sendv,
    .watch = plain_watch,
    .shut = plain_shut,
    .close = plain_close,
};

static void on_watch(struct nr_watch *w, uint32_t events)
{
    nr_conn_on_event(nr_container_of(w, struct nr_conn, watch), events);
}

/* --- life ----------------------------------------------------------------------------------- */

struct nr_conn *nr_conn_open(struct nr_engine *e, const struct nr_transport *t, void *t_ctx, int fd,
                             const struct nr_peer *peer)
{
    struct nr_list *n = nr_list_pop(&e->free_conns);
    struct nr_conn *c;
    if (n) {
        c = nr_container_of(n, struct nr_conn, node);
        e->n_free_conns--;
    } else {
        c = nr_new(struct nr_conn);
    }
    int64_t now = nr_loop_now(e->loop);
    *c = (struct nr_conn){.watch = {.fd = fd, .on_event = on_watch},
                          .e = e,
                          .t = t,
                          .t_ctx = t_ctx,
                          .armed_ns = NR_NEVER,
                          .segs = c->seg_inline,
                          .seg_cap = NR_COUNT(c->seg_inline),
                          .accepted_ns = now,
                          .rx_ns = now,
                          .tx_ns = now,
                          .peer = *peer};
    nr_list_init(&c->flush_node);
    nr_list_init(&c->resume_node);
    nr_list_init(&c->wheel_node);
    nr_list_init(&c->reap_node);
    nr_list_append(&e->conns, &c->node);
    if (fd >= 0 && nr_loop_watch(e->loop, &c->watch, EPOLLIN) != NARU_OK) {
        nr_conn_kill(c, NR_CANCEL_RESET);
        return NULL;
    }
    nr_conn_settle(c);
    return c;
}

static void out_clear(struct nr_conn *c)
{
    for (uint32_t i = 0; i < c->seg_n; i++) {
        nr_block_unref(c->e, c->segs[c->seg_head + i].block);
    }
    c->seg_head = c->seg_n = 0;
    if (c->segs != c->seg_inline) {
        nr_free(c->segs);
        c->segs = c->seg_inline;
        c->seg_cap = NR_COUNT(c->seg_inline);
    }
    nr_block_unref(c->e, c->out);
    c->out = NULL;
}

void nr_conn_kill(struct nr_conn *c, nr_cancel_reason why)
{
    if (c->state == NR_CONN_DEAD) {
        return;
    }
    c->state = NR_CONN_DEAD;
    c->t->close(c);
    nr_list_remove(&c->flush_node);
    nr_list_remove(&c->resume_node);
    nr_list_remove(&c->wheel_node);
    c->armed_ns = NR_NEVER;
    c->out_sent = c->out_queued; /* nothing refers to the exchanges' memory any more */
    out_clear(c);
    if (c->ops) {
        c->ops->abort(c, why);
    }
    if (nr_list_empty(&c->reap_node)) {
        nr_list_append(&c->e->reap, &c->reap_node);
    }
    nr_engine_hook(c->e);
}

bool nr_conn_reap(struct nr_conn *c)
{
    struct nr_engine *e = c->e;
    if (c->ops) {
        c->ops->on_sent(c);
        if (!c->ops->empty(c)) {
            return false; /* nr_conn_wake brings it back when the app answers */
        }
        c->ops->done(c);
        c->ops = NULL;
    }
    nr_block_unref(e, c->in);
    c->in = NULL;
    nr_server_conn_gone(c);
    nr_list_remove(&c->node);
    if (nr_list_empty(&e->conns)) {
        nr_loop_timer_cancel(e->loop, &e->wheel.timer);
    }
    if (e->n_free_conns < 256) {
        nr_list_insert_before(e->free_conns.next, &c->node);
        e->n_free_conns++;
    } else {
        nr_free(c);
    }
    atomic_fetch_sub_explicit(&e->open, 1, memory_order_relaxed);
    return true;
}

void nr_conn_wake(struct nr_conn *c)
{
    struct nr_list *node = &c->flush_node, *list = &c->e->flush;
    if (NR_UNLIKELY(c->state == NR_CONN_DEAD)) {
        node = &c->reap_node;
        list = &c->e->reap;
    }
    if (nr_list_empty(node)) {
        nr_list_append(list, node);
        nr_engine_hook(c->e);
    }
}

void nr_conn_resume(struct nr_conn *c)
{
    struct nr_engine *e = c->e;
    if (nr_list_empty(&c->resume_node)) {
        nr_list_append(&e->resume, &c->resume_node);
    }
    if (!e->resume_posted) {
        e->resume_posted = true;
        nr_loop_post(e->loop, &e->resume_msg);
    }
}

/* --- output queue --------------------------------------------------------------------------- */

static struct nr_seg *seg_push(struct nr_conn *c)
{
    if (c->seg_head + c->seg_n == c->seg_cap) {
        if (c->seg_head > 0 && c->seg_head >= c->seg_cap / 2) {
            memmove(c->segs, c->segs + c->seg_head, c->seg_n * sizeof(c->segs[0]));
            c->seg_head = 0;
        } else {
            struct nr_seg *more = nr_new_array(struct nr_seg, (size_t)c->seg_cap * 2);
            memcpy(more, c->segs + c->seg_head, c->seg_n * sizeof(more[0]));
            if (c->segs != c->seg_inline) {
                nr_free(c->segs);
            }
            c->segs = more;
            c->seg_head = 0;
            c->seg_cap *= 2;
        }
    }
    return &c->segs[c->seg_head + c->seg_n++];
}

static void queued(struct nr_conn *c, size_t len)
{
    if (c->out_queued == c->out_sent) { /* the stall clock starts with the first unsent byte */
        c->out_since_ns = c->tx_ns = now_ns(c);
        c->out_since_sent = c->out_sent;
    }
    c->out_queued += len;
}

uint8_t *nr_conn_out_room(struct nr_conn *c, size_t n)
{
    if (NR_UNLIKELY(c->state == NR_CONN_DEAD)) {
        return NULL;
    }
    if (c->out && c->out->cap - c->out_pos >= n) {
        return c->out->data + c->out_pos;
    }
    struct nr_block *b = nr_block_try_new(c->e, (uint32_t)n);
    if (!b) {
        c->out_failed = true;
        nr_conn_wake(c);
        return NULL;
    }
    nr_block_unref(c->e, c->out);
    c->out = b;
    c->out_pos = 0;
    return b->data;
}

void nr_conn_out_commit(struct nr_conn *c, size_t n)
{
    const uint8_t *at = c->out->data + c->out_pos;
    queued(c, n);
    c->out_pos += (uint32_t)n;
    if (c->seg_n > 0) {
        struct nr_seg *last = &c->segs[c->seg_head + c->seg_n - 1];
        if (last->block == c->out && last->ptr + last->len == at) {
            last->len += n;
            return;
        }
    }
    c->out->refs++;
    *seg_push(c) = (struct nr_seg){at, n, c->out};
}

void nr_conn_out_copy(struct nr_conn *c, const void *data, size_t len)
{
    const uint8_t *from = data;
    while (len > 0) {
        uint8_t *to = nr_conn_out_room(c, 1);
        if (!to) {
            return;
        }
        size_t n = NR_MIN(len, (size_t)(c->out->cap - c->out_pos));
        memcpy(to, from, n);
        nr_conn_out_commit(c, n);
        from += n;
        len -= n;
    }
}

void nr_conn_out_ref(struct nr_conn *c, const void *data, size_t len)
{
    if (len > 0 && c->state != NR_CONN_DEAD) {
        queued(c, len);
        *seg_push(c) = (struct nr_seg){data, len, NULL};
    }
}

void nr_conn_out_iov(struct nr_conn *c, const struct nr_iov *iov, unsigned n, uint64_t total)
{
    for (unsigned i = 0; i < n; i++) {
        if (total <= NR_COPY_MAX_BYTES || iov[i].len < 512) {
            nr_conn_out_copy(c, iov[i].ptr, iov[i].len);
        } else {
            nr_conn_out_ref(c, iov[i].ptr, iov[i].len);
        }
    }
}

/* Takes `sent` bytes off the queue. */
static void out_consume(struct nr_conn *c, size_t sent)
{
    c->out_sent += sent;
    while (sent > 0) {
        struct nr_seg *s = &c->segs[c->seg_head];
        if (sent < s->len) {
            s->ptr += sent;
            s->len -= sent;
            return;
        }
        sent -= s->len;
        nr_block_unref(c->e, s->block);
        c->seg_head++;
        c->seg_n--;
    }
    if (c->seg_n == 0) {
        c->seg_head = 0;
    }
}

/* One sendmsg of at most NR_TURN_SEND_BYTES; false: the socket is full or the connection died. */
static bool send_some(struct nr_conn *c, size_t *left)
{
    struct iovec iov[SEND_IOV] __attribute__((uninitialized)); /* 1 KiB that nobody needs zeroed */
    unsigned n = 0;
    size_t bytes = 0;
    for (; n < c->seg_n && n < SEND_IOV && bytes < *left; n++) {
        const struct nr_seg *s = &c->segs[c->seg_head + n];
        size_t len = NR_MIN(s->len, *left - bytes);
        iov[n] = (struct iovec){.iov_base = (void *)(uintptr_t)s->ptr, .iov_len = len};
        bytes += len;
    }
    ssize_t sent = c->t->sendv(c, iov, n);
    if (sent < 0) {
        if (errno != EAGAIN && errno != EINTR) {
            nr_conn_kill(c, NR_CANCEL_RESET);
        }
        return false;
    }
    if (sent > 0) {
        c->tx_ns = now_ns(c);
        nr_count(&c->e->counters.bytes_out, (uint64_t)sent);
        out_consume(c, (size_t)sent);
        *left -= (size_t)sent;
    }
    return (size_t)sent == bytes;
}

/* Output is gone: a closing connection ends here. */
static void closing_sent(struct nr_conn *c)
{
    if (c->linger && !c->eof) {
        c->state = NR_CONN_LINGER;
        c->closing_ns = now_ns(c);
        nr_block_unref(c->e, c->in);
        c->in = NULL;
        c->in_start = c->in_end = 0;
        c->t->shut(c);
    } else {
        nr_conn_kill(c, NR_CANCEL_RESET);
    }
}

void nr_conn_flush(struct nr_conn *c)
{
    size_t left = NR_TURN_SEND_BYTES;
    for (;;) {
        if (c->ops && c->ops->produce) {
            c->ops->produce(c);
        }
        if (c->out_failed) {
            nr_conn_kill(c, NR_CANCEL_RESET);
        }
        if (c->state == NR_CONN_DEAD || c->seg_n == 0) {
            break;
        }
        if (left == 0 || !send_some(c, &left)) {
            break;
        }
    }
    if (c->state == NR_CONN_DEAD) {
        return;
    }
    c->blocked = c->seg_n > 0;
    if (left == 0 && !c->blocked) { /* a session may have more to queue: next turn */
        nr_conn_wake(c);
    }
    if (!c->blocked && c->out) {
        nr_block_unref(c->e, c->out);
        c->out = NULL;
    }
    if (c->ops) {
        c->ops->on_sent(c);
    }
    if (c->state == NR_CONN_CLOSING && c->seg_n == 0 && (!c->ops || c->ops->quiet(c))) {
        closing_sent(c);
    }
}

void nr_conn_close_soon(struct nr_conn *c, bool linger)
{
    if (c->state != NR_CONN_OPEN) {
        return;
    }
    c->state = NR_CONN_CLOSING;
    c->linger = linger;
    c->closing_ns = now_ns(c);
    nr_conn_wake(c);
}

/* --- input ---------------------------------------------------------------------------------- */

/* Makes room behind in_end, keeping what is not consumed. False: no memory, or the session holds
 * more than any head may be. */
static bool in_reserve(struct nr_conn *c)
{
    uint32_t keep = c->in_end - c->in_start;
    uint32_t want = c->in_want ? NR_MIN(c->in_want, IN_ROOM_MIN) : IN_ROOM_MIN;
    if (c->in) {
        if (keep == 0 && c->in->refs == 1) {
            c->in_start = c->in_end = 0;
        }
        if (c->in->cap - c->in_end >= want) {
            return true;
        }
        if (c->in->refs == 1 && c->in->cap - keep >= want) {
            memmove(c->in->data, c->in->data + c->in_start, keep);
            c->in_start = 0;
            c->in_end = keep;
            return true;
        }
    }
    const struct nr_http_limits *l = c->e->limits;
    size_t big = (size_t)l->max_request_line_bytes + l->max_head_bytes + 2 * IN_ROOM_MIN +
                 8 * (size_t)l->max_fields;
    uint32_t cap = keep + IN_ROOM_MIN <= NR_BLOCK_CAP ? NR_BLOCK_CAP : (uint32_t)big;
    if (keep + 1 > cap) {
        return false;
    }
    struct nr_block *b = nr_block_try_new(c->e, cap);
    if (!b) {
        return false;
    }
    if (c->in) {
        memcpy(b->data, c->in->data + c->in_start, keep);
        nr_block_unref(c->e, c->in);
    }
    c->in = b;
    c->in_start = 0;
    c->in_end = keep;
    return true;
}

/* Between requests no memory is held. */
static void in_release(struct nr_conn *c)
{
    if (c->in && c->in_start == c->in_end) {
        nr_block_unref(c->e, c->in);
        c->in = NULL;
        c->in_start = c->in_end = 0;
    }
}

static void received_nothing(struct nr_conn *c, ssize_t n)
{
    if (n == 0) {
        c->eof = true;
        if (c->state != NR_CONN_OPEN || !c->ops) {
            nr_conn_kill(c, NR_CANCEL_RESET);
        } else {
            c->ops->on_eof(c);
        }
    } else if (errno != EAGAIN && errno != EINTR) {
        nr_conn_kill(c, NR_CANCEL_RESET);
    }
}

static void received(struct nr_conn *c, ssize_t n)
{
    c->rx_ns = now_ns(c);
    if (c->first_byte_ns == 0) {
        c->first_byte_ns = c->rx_ns;
    }
    nr_count(&c->e->counters.bytes_in, (uint64_t)n);
}

static void read_discard(struct nr_conn *c)
{
    ssize_t n = c->t->recv(c, c->e->scratch, NR_SCRATCH_BYTES);
    if (n <= 0) {
        received_nothing(c, n);
        return;
    }
    c->linger_bytes += (uint64_t)n;
    if (c->linger_bytes > (c->h2 ? NR_LINGER_H2_MAX_BYTES : NR_LINGER_MAX_BYTES)) {
        nr_conn_kill(c, NR_CANCEL_RESET);
    }
}

static void on_readable(struct nr_conn *c)
{
    uint8_t *dest;
    size_t len;
    ssize_t n;
    if (c->state != NR_CONN_OPEN) {
        if (c->state == NR_CONN_LINGER) {
            read_discard(c);
        }
        return;
    }
    if (c->ops && c->ops->on_scratch) {
        n = c->t->recv(c, c->e->scratch, NR_SCRATCH_BYTES);
        if (n > 0) {
            received(c, n);
            c->ops->on_scratch(c, c->e->scratch, (size_t)n);
            return;
        }
    } else if (c->ops && c->ops->body_dest(c, &dest, &len)) {
        n = c->t->recv(c, dest, NR_MIN(len, NR_TURN_BODY_BYTES));
        if (n > 0) {
            received(c, n);
            c->ops->on_body(c, (size_t)n);
            return;
        }
    } else {
        if (!in_reserve(c)) {
            nr_conn_kill(c, NR_CANCEL_RESET);
            return;
        }
        n = c->t->recv(c, c->in->data + c->in_end, c->in->cap - c->in_end);
        if (n > 0) {
            received(c, n);
            c->in_end += (uint32_t)n;
            if (NR_LIKELY(c->ops != NULL)) {
                c->ops->on_input(c);
            } else {
                nr_detect(c);
            }
            in_release(c);
            return;
        }
        in_release(c);
    }
    received_nothing(c, n);
}

void nr_conn_on_event(struct nr_conn *c, uint32_t events)
{
    if (events & (EPOLLERR | EPOLLHUP)) {
        /* both directions are gone; a FIN alone is EPOLLIN | EPOLLRDHUP */
        nr_conn_kill(c, NR_CANCEL_RESET);
        return;
    }
    if (events & EPOLLOUT) {
        nr_conn_flush(c);
    }
    if ((events & EPOLLIN) && c->state != NR_CONN_DEAD) {
        on_readable(c);
    } else if ((events & EPOLLRDHUP) && c->state == NR_CONN_OPEN && !c->eof) {
        received_nothing(c, 0);
    }
    nr_conn_settle(c);
}

/* --- interest and deadlines ----------------------------------------------------------------- */

/* Unsent output must move: 30 s without a byte taken, and beyond twice that time an average below
 * body_min_rate counts as none (one byte now and then keeps nobody's memory). */
static int64_t stall_deadline(const struct nr_conn *c)
{
    const struct nr_http_limits *l = c->e->limits;
    int64_t d = c->tx_ns + (int64_t)l->write_stall_ns;
    if (l->body_min_rate_bytes) {
        uint64_t taken = c->out_sent - c->out_since_sent;
        int64_t fair = (int64_t)NR_MIN(taken / l->body_min_rate_bytes, UINT64_C(1) << 31) * NR_S_NS;
        d = NR_MIN(d, c->out_since_ns + NR_MAX(2 * (int64_t)l->write_stall_ns, fair + NR_S_NS));
    }
    return d;
}

static int64_t conn_deadline(const struct nr_conn *c)
{
    int64_t d = NR_NEVER;
    if (c->seg_n > 0 && c->e->limits->write_stall_ns) {
        d = stall_deadline(c);
    }
    switch (c->state) {
    case NR_CONN_OPEN: {
        int64_t own;
        if (c->ops) {
            own = c->ops->deadline(c);
        } else if (c->first_byte_ns) {
            own = c->first_byte_ns + (int64_t)c->e->limits->head_timeout_ns;
        } else {
            own = c->accepted_ns + (int64_t)c->e->limits->detect_timeout_ns;
        }
        return NR_MIN(d, own);
    }
    case NR_CONN_LINGER:
        return c->closing_ns + NR_LINGER_NS;
    default:
        return d;
    }
}

void nr_conn_on_wheel(struct nr_conn *c, int64_t now)
{
    if (conn_deadline(c) <= now) {
        if (c->state != NR_CONN_LINGER) {
            nr_count(&c->e->counters.timeouts, 1);
        }
        bool stalled = c->seg_n > 0 && c->e->limits->write_stall_ns && stall_deadline(c) <= now;
        if (stalled || c->state != NR_CONN_OPEN || !c->ops) {
            nr_conn_kill(c, NR_CANCEL_RESET);
        } else {
            c->ops->on_deadline(c);
        }
    }
    nr_conn_settle(c);
}

void nr_conn_settle(struct nr_conn *c)
{
    if (c->state == NR_CONN_DEAD) {
        return;
    }
    uint32_t events = c->blocked ? EPOLLOUT : 0;
    if (!c->eof) {
        bool in = c->state == NR_CONN_LINGER ||
                  (c->state == NR_CONN_OPEN && nr_conn_pending(c) < NR_OUT_HIGH_BYTES &&
                   (!c->ops || c->ops->wants_input(c)));
        events |= in ? EPOLLIN : c->state == NR_CONN_OPEN ? EPOLLRDHUP : 0;
    }
    c->t->watch(c, events);
    nr_wheel_arm(c->e, c, conn_deadline(c));
}
