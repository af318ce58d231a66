/* HTTP/1.1, server side: writing responses in the order of the requests.
 *
 * A head is put together from constant pieces and copies, without printf, straight into the output
 * block; a body of up to 8 KiB is copied behind it, so that a small response is one piece of memory
 * and one send. Larger bodies are referred to where they lie (invariant 2 of exchange.h).
 *
 * Invariants
 *  1. A response enters the output queue only when all before it have: `next_emit` says whose turn
 *     it is. One that comes early is built into its own arena (xp->held).
 *  2. The response that says "connection: close" is the last one: later exchanges are dropped.
 *  3. Control characters in fields that the app gives become blanks: no response splitting.
 *
 * Threads: the loop's. */
#include "http/h1.h"

/* Most bytes that the fixed parts of a head take: status line, date, length, connection. */
#define HEAD_FIXED_BYTES 192u

static char *put(char *at, const void *data, size_t len)
{
    memcpy(at, data, len);
    return at + len;
}
#define PUT(at, lit) put((at), "" lit, sizeof(lit) - 1)

static char *put_number(char *at, uint64_t n)
{
    char digits[20];
    size_t i = sizeof(digits);
    do {
        digits[--i] = (char)('0' + n % 10);
        n /= 10;
    } while (n);
    return put(at, digits + i, sizeof(digits) - i);
}

static char *put_value(char *at, struct nr_str s)
{
    for (size_t i = 0; i < s.len; i++) {
        unsigned char ch = (unsigned char)s.ptr[i];
        *at++ = ch < 0x20 || ch == 0x7f ? ' ' : (char)ch;
    }
    return at;
}

static size_t head_bound(const struct nr_xp *xp, const struct nr_response *r)
{
    size_t n = HEAD_FIXED_BYTES + r->content_type.len + sizeof("content-type: \r\n") +
               xp->x.known.request_id.len + sizeof("x-request-id: \r\n");
    for (unsigned i = 0; i < r->n_headers; i++) {
        n += r->headers[i].name.len + r->headers[i].value.len + 4;
    }
    return n;
}

struct shape {
    uint64_t total; /* bytes of the body, whether sent or not */
    bool chunked;   /* parts follow */
    bool has_body;  /* they follow */
    bool has_length;
    bool close;
};

static struct shape shape_of(const struct nr_xp *xp, const struct nr_response *r, bool close)
{
    struct shape s = {.close = close, .has_body = true, .has_length = true};
    for (unsigned i = 0; i < r->n_body; i++) {
        s.total += r->body[i].len;
    }
    if (r->status == 204 || r->status == 304 || r->status < 200) {
        s.has_body = s.has_length = false;
    } else if (xp->x.method == NR_HEAD) {
        s.has_body = false;
        s.has_length = s.total > 0; /* 0 might not be what a GET would get */
    }
    return s;
}

static char *put_head(char *at, struct nr_xp *xp, const struct nr_response *r,
                      const struct shape *s)
{
    if (NR_LIKELY(r->status == 200)) {
        at = PUT(at, "HTTP/1.1 200 OK\r\n");
    } else {
        at = put_number(PUT(at, "HTTP/1.1 "), (uint64_t)r->status);
        const char *reason = nr_reason(r->status);
        *at++ = ' ';
        at = PUT(put(at, reason, strlen(reason)), "\r\n");
    }
    uint32_t date_len;
    const char *date = nr_engine_date(xp->x.conn->e, &date_len);
    at = put(at, date, date_len);
    if (r->content_type.len) {
        at = PUT(put_value(PUT(at, "content-type: "), r->content_type), "\r\n");
    }
    if (s->chunked) {
        at = PUT(at, "transfer-encoding: chunked\r\n");
    }
    if (s->has_length) {
        at = PUT(put_number(PUT(at, "content-length: "), s->total), "\r\n");
    }
    if (s->close) {
        at = PUT(at, "connection: close\r\n");
    } else if (xp->x.protocol == NR_HTTP_1_0) {
        at = PUT(at, "connection: keep-alive\r\n");
    }
    if (NR_UNLIKELY(xp->x.known.request_id.len > 0)) {
        at = PUT(put_value(PUT(at, "x-request-id: "), xp->x.known.request_id), "\r\n");
    }
    for (unsigned i = 0; i < r->n_headers; i++) {
        at = PUT(put_value(at, r->headers[i].name), ": ");
        at = PUT(put_value(at, r->headers[i].value), "\r\n");
    }
    return PUT(at, "\r\n");
}

static void queued_whole(struct nr_conn *c, struct nr_xp *xp)
{
    xp->emitted = true;
    xp->out_end = c->out_queued;
    c->h1.next_emit = xp->x.node.next;
}

static bool write_head(struct nr_conn *c, struct nr_xp *xp, const struct nr_response *r,
                       const struct shape *s)
{
    size_t bound = head_bound(xp, r);
    if (NR_LIKELY(bound <= NR_BLOCK_CAP)) {
        char *at = (char *)nr_conn_out_room(c, bound);
        if (!at) {
            return false; /* the connection is about to be killed, which drops the exchange */
        }
        nr_conn_out_commit(c, (size_t)(put_head(at, xp, r, s) - at));
    } else {
        char *at = nr_arena_alloc(&xp->x.arena, bound);
        nr_conn_out_ref(c, at, (size_t)(put_head(at, xp, r, s) - at));
    }
    return true;
}

static void write_now(struct nr_conn *c, struct nr_xp *xp, const struct nr_response *r,
                      const struct shape *s)
{
    if (!write_head(c, xp, r, s)) {
        return;
    }
    if (s->has_body) {
        nr_conn_out_iov(c, r->body, r->n_body, s->total);
    }
    queued_whole(c, xp);
}

static void hold(struct nr_xp *xp, const struct nr_response *r, const struct shape *s)
{
    struct nr_arena *a = &xp->x.arena;
    unsigned n = s->has_body ? r->n_body : 0;
    char *at = nr_arena_alloc(a, head_bound(xp, r));
    xp->held = nr_arena_alloc(a, (n + 1) * sizeof(xp->held[0]));
    xp->held[0] = (struct nr_iov){at, (size_t)(put_head(at, xp, r, s) - at)};
    if (n) {
        memcpy(xp->held + 1, r->body, n * sizeof(xp->held[0]));
    }
    xp->n_held = n + 1;
    xp->held_close = s->close;
}

/* The response just queued was the last one of this connection. */
static void end_after(struct nr_conn *c, struct nr_xp *xp)
{
    struct nr_h1 *h = &c->h1;
    bool unread = h->cur != NULL || c->in_end > c->in_start || xp->dropped;
    h->phase = H1_END;
    h->cur = NULL;
    c->in_start = c->in_end;
    for (struct nr_list *n = xp->x.node.next, *next; n != &h->pipeline; n = next) {
        next = n->next;
        struct nr_xp *later = nr_container_of(n, struct nr_xp, x.node);
        later->held = NULL;
        h->has_dropped = true;
        nr_xp_drop(later, NR_CANCEL_REFUSED);
    }
    h->next_emit = &h->pipeline;
    nr_conn_close_soon(c, unread);
}

/* --- parts ---------------------------------------------------------------------------------- */

static void put_part(struct nr_conn *c, const struct nr_xp *xp, const struct nr_part *p)
{
    if (xp->x.protocol == NR_HTTP_1_0 || xp->no_body) {
        nr_conn_out_copy(c, p->data, xp->no_body ? 0 : p->len);
        return;
    }
    char head[20];
    static const char hex[] = "0123456789abcdef";
    size_t n = sizeof(head);
    head[--n] = '\n';
    head[--n] = '\r';
    for (size_t left = p->len; left > 0; left >>= 4) {
        head[--n] = hex[left & 15];
    }
    nr_conn_out_copy(c, head + n, sizeof(head) - n);
    nr_conn_out_copy(c, p->data, p->len);
    nr_conn_out_copy(c, "\r\n", 2);
}

/* Moves parts into the output queue while there is room. True: the response is whole. */
static bool pump_parts(struct nr_conn *c, struct nr_xp *xp)
{
    while (nr_conn_pending(c) < NR_OUT_HIGH_BYTES && c->state != NR_CONN_DEAD && !xp->dropped) {
        struct nr_list *n = nr_list_pop(&xp->parts);
        if (n == NULL) {
            break;
        }
        struct nr_part *p = nr_container_of(n, struct nr_part, node);
        if (p->len > 0) { /* a chunk of no bytes would be the last one */
            put_part(c, xp, p);
        }
        xp->pumping = true;
        p->done(p);
        xp->pumping = false;
    }
    if (!xp->ended || xp->dropped || !nr_list_empty(&xp->parts)) {
        return false;
    }
    if (xp->x.protocol != NR_HTTP_1_0 && !xp->no_body) {
        nr_conn_out_copy(c, "0\r\n\r\n", 5);
    }
    return true;
}

/* next_emit is xp, whose head is in the queue. */
static bool stream_on(struct nr_conn *c, struct nr_xp *xp)
{
    if (!pump_parts(c, xp)) {
        return false;
    }
    queued_whole(c, xp);
    if (xp->close_after) {
        end_after(c, xp);
    }
    return true;
}

static void write_held(struct nr_conn *c)
{
    struct nr_h1 *h = &c->h1;
    while (h->next_emit != &h->pipeline) {
        struct nr_xp *xp = nr_container_of(h->next_emit, struct nr_xp, x.node);
        if (!xp->held) {
            break;
        }
        nr_conn_out_iov(c, xp->held, xp->n_held, xp->x.response_bytes);
        xp->held = NULL;
        if (xp->streaming) {
            xp->open = true;
            if (!stream_on(c, xp)) {
                break;
            }
            continue;
        }
        queued_whole(c, xp);
        if (xp->held_close) {
            end_after(c, xp);
        }
    }
}

/* Whether the connection can go on although the app answered before the body was read. */
static bool can_skip_body(const struct nr_h1 *h, const struct nr_xp *xp)
{
    if (h->phase != H1_HEAD || xp->expect) {
        return false;
    }
    return !(h->parser.flags & F_CHUNKED) && h->body_left <= NR_DRAIN_MAX_BYTES;
}

static bool closes_after(const struct nr_xp *xp, const struct nr_response *r)
{
    const struct nr_conn *c = xp->x.conn;
    const struct nr_h1 *h = &c->h1;
    bool last = xp->x.node.next == &h->pipeline; /* of the requests that were read */
    return r->close || !xp->keep_alive || c->state != NR_CONN_OPEN ||
           (last && (c->e->draining || c->eof)) || (h->cur == xp && !can_skip_body(h, xp));
}

void nr_h1_begin(struct nr_xp *xp, const struct nr_response *r)
{
    struct nr_conn *c = xp->x.conn;
    struct nr_h1 *h = &c->h1;
    bool old = xp->x.protocol == NR_HTTP_1_0;
    xp->close_after = closes_after(xp, r) || old;
    struct shape s = {.close = xp->close_after, .chunked = !old};
    xp->no_body = xp->x.method == NR_HEAD;
    xp->x.response_status = r->status;
    if (h->next_emit != &xp->x.node) {
        hold(xp, r, &s);
        return;
    }
    write_head(c, xp, r, &s);
    xp->open = true;
    nr_conn_wake(c);
}

void nr_h1_pump(struct nr_xp *xp)
{
    struct nr_conn *c = xp->x.conn;
    if (!xp->open || xp->pumping || c->h1.next_emit != &xp->x.node) {
        return;
    }
    if (stream_on(c, xp) && !xp->close_after) {
        write_held(c);
        nr_h1_continue(c);
    }
    nr_conn_wake(c);
}

void nr_h1_emit(struct nr_xp *xp, const struct nr_response *r)
{
    struct nr_conn *c = xp->x.conn;
    struct nr_h1 *h = &c->h1;
    bool close = closes_after(xp, r);
    struct shape s = shape_of(xp, r, close);
    xp->x.response_status = r->status;
    xp->x.response_bytes = s.has_body ? s.total : 0;
    if (NR_UNLIKELY(h->next_emit != &xp->x.node)) {
        hold(xp, r, &s);
        if (close && h->cur == xp) { /* nothing behind it will be read */
            h->phase = H1_END;
            h->cur = NULL;
            c->in_start = c->in_end;
        }
        return;
    }
    write_now(c, xp, r, &s);
    if (close) {
        end_after(c, xp);
    } else {
        write_held(c);
        nr_h1_continue(c);
    }
    nr_conn_wake(c);
}

void nr_h1_continue(struct nr_conn *c)
{
    static const char text[] = "HTTP/1.1 100 Continue\r\n\r\n";
    struct nr_h1 *h = &c->h1;
    bool body = h->phase == H1_VIEW || h->phase == H1_BUF || h->phase == H1_CHUNKED;
    if (body && h->cur->expect && h->next_emit == &h->cur->x.node) {
        h->cur->expect = false;
        nr_conn_out_copy(c, text, sizeof(text) - 1);
        nr_conn_wake(c);
    }
}

void nr_h1_sent(struct nr_conn *c)
{
    struct nr_h1 *h = &c->h1;
    NR_LIST_FOREACH_SAFE (n, tmp, &h->pipeline) {
        struct nr_xp *xp = nr_container_of(n, struct nr_xp, x.node);
        if (xp != h->cur && nr_xp_over(xp, c->out_sent)) {
            if (h->next_emit == n) { /* dropped before its turn came */
                h->next_emit = n->next;
            }
            h->n_pipeline--;
            nr_xp_finish(xp);
        } else if (!h->has_dropped) {
            break;
        }
    }
    if (h->next_emit != &h->pipeline) { /* there is room for more of a response in parts */
        struct nr_xp *xp = nr_container_of(h->next_emit, struct nr_xp, x.node);
        if (xp->streaming && !nr_list_empty(&xp->parts)) {
            nr_h1_pump(xp);
        }
    }
    if (c->eof && h->n_pipeline == 0) {
        nr_conn_close_soon(c, false);
    } else if (h->paused && h->n_pipeline < c->e->limits->max_pipelined &&
               nr_conn_pending(c) < NR_OUT_HIGH_BYTES && c->state == NR_CONN_OPEN) {
        nr_conn_resume(c);
    }
}
