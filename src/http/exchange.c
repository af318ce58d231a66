/* Exchanges: pooled, handed to the app, answered, finished.
 *
 * Invariants
 *  1. on_head is called once (nr_xp_expose), on_request at most once, on_cancel at most once and
 *     only while the app has not answered, on_done once for each exchange that was exposed.
 *  2. An exchange is finished when the app has answered (or never saw it) and its response was sent
 *     or dropped. Sessions ask nr_xp_over; nobody else recycles.
 *  3. A cancelled exchange whose peer can still read (half-close, deadline) is answered with what
 *     the app says; `dropped` marks those whose peer cannot, or was answered by the engine.
 *
 * Threads: the loop's. */
#include "http/exchange.h"

#include "base/mem.h"
#include "http/engine.h"

static void on_deadline(struct nr_timer *t)
{
    struct nr_xp *xp = nr_container_of(t, struct nr_xp, deadline);
    nr_xp_cancel(xp, NR_CANCEL_DEADLINE);
}

struct nr_xp *nr_xp_new(struct nr_conn *c, const struct nr_session_ops *ops)
{
    struct nr_engine *e = c->e;
    struct nr_list *n = nr_list_pop(&e->free_exchanges);
    struct nr_xp *xp;
    if (NR_LIKELY(n != NULL)) {
        xp = nr_container_of(n, struct nr_xp, x.node);
        e->n_free_exchanges--;
    } else {
        xp = nr_new(struct nr_xp);
        nr_arena_init(&xp->x.arena, 0);
        xp->deadline.on_timer = on_deadline;
        nr_list_init(&xp->x.node);
        nr_list_init(&xp->deadline_node);
    }
    struct nr_exchange *x = &xp->x;
    x->loop = e->loop;
    x->conn = c;
    x->ops = ops;
    x->peer = &c->peer;
    x->id = ((uint64_t)(e->index + 1) << 48) | ++e->next_id;
    x->content_length = -1;
    x->start_ns = nr_loop_now(e->loop);
    x->body_limit = e->limits->max_body_bytes;
    return xp;
}

static void arm_deadline(struct nr_xp *xp)
{
    struct nr_engine *e = xp->x.conn->e;
    if (xp->x.deadline_ns && !xp->x.responded) {
        nr_list_append(&e->fresh_deadlines, &xp->deadline_node);
        nr_engine_hook(e);
    }
}

void nr_xp_expose(struct nr_xp *xp)
{
    struct nr_engine *e = xp->x.conn->e;
    xp->exposed = true;
    xp->x.head_ns = nr_loop_now(e->loop);
    nr_count(&e->counters.requests, 1);
    e->app->on_head(e->app->ctx, &xp->x);
    if (xp->x.many_messages) { /* its time runs from the head: the request may never be complete */
        arm_deadline(xp);
    }
}

void nr_xp_request(struct nr_xp *xp)
{
    struct nr_engine *e = xp->x.conn->e;
    xp->requested = true;
    xp->x.body_ns = nr_loop_now(e->loop);
    if (!xp->x.many_messages) {
        arm_deadline(xp);
    }
    e->app->on_request(e->app->ctx, &xp->x);
}

void nr_xp_cancel(struct nr_xp *xp, nr_cancel_reason why)
{
    if (!xp->exposed || xp->x.responded || xp->cancel_told) {
        return;
    }
    const struct nr_http_app *app = xp->x.conn->e->app;
    xp->cancel_told = true;
    xp->x.cancelled = true;
    app->on_cancel(app->ctx, &xp->x, why);
}

void nr_xp_drop_parts(struct nr_xp *xp)
{
    struct nr_list *n;
    while (xp->streaming && (n = nr_list_pop(&xp->parts)) != NULL) {
        struct nr_part *p = nr_container_of(n, struct nr_part, node);
        p->done(p);
    }
}

void nr_xp_message(struct nr_xp *xp)
{
    const struct nr_http_app *app = xp->x.conn->e->app;
    app->on_message(app->ctx, &xp->x);
}

void nr_xp_drop(struct nr_xp *xp, nr_cancel_reason why)
{
    xp->dropped = true;
    nr_xp_drop_parts(xp);
    nr_xp_cancel(xp, why);
}

/* The app has given its answer: it is not cancelled any more. */
static void answered(struct nr_xp *xp)
{
    struct nr_exchange *x = &xp->x;
    NR_ASSERT(xp->exposed && !x->responded);
    x->responded = true;
    nr_list_remove(&xp->deadline_node);
    if (xp->deadline.heap_index) {
        nr_loop_timer_cancel(x->loop, &xp->deadline);
    }
}

void nr_exchange_begin(struct nr_exchange *x, const struct nr_response *r)
{
    struct nr_xp *xp = nr_xp_of(x);
    NR_ASSERT(xp->exposed && !x->responded && !xp->streaming && r->n_body == 0);
    NR_ASSERT(xp->requested || x->many_messages);
    xp->streaming = true;
    nr_list_init(&xp->parts);
    if (!xp->dropped) {
        x->ops->begin(xp, r);
    }
}

void nr_exchange_write(struct nr_exchange *x, struct nr_part *p)
{
    struct nr_xp *xp = nr_xp_of(x);
    NR_ASSERT(xp->streaming && !xp->ended);
    if (xp->dropped) {
        p->done(p);
        return;
    }
    p->at = 0;
    nr_list_init(&p->node);
    nr_list_append(&xp->parts, &p->node);
    x->response_bytes += p->len;
    x->ops->pump(xp);
}

void nr_exchange_end(struct nr_exchange *x, int grpc_status, struct nr_str grpc_message)
{
    struct nr_xp *xp = nr_xp_of(x);
    NR_ASSERT(xp->streaming && !xp->ended);
    answered(xp);
    xp->ended = true;
    if (xp->dropped) {
        nr_conn_wake(x->conn);
        return;
    }
    if (x->protocol == NR_GRPC) {
        nr_h2_end(xp, grpc_status, grpc_message);
    }
    x->ops->pump(xp);
}

void nr_exchange_respond(struct nr_exchange *x, const struct nr_response *r)
{
    struct nr_xp *xp = nr_xp_of(x);
    NR_ASSERT(!xp->streaming);
    answered(xp);
    if (xp->dropped) { /* finished at the end of the turn */
        nr_conn_wake(x->conn);
        return;
    }
    x->ops->respond(xp, r);
}

bool nr_xp_over(const struct nr_xp *xp, uint64_t out_sent)
{
    if (xp->exposed && !xp->x.responded) {
        return false;
    }
    if (xp->emitted) {
        return xp->out_end <= out_sent;
    }
    return xp->dropped && !xp->held;
}

void nr_xp_finish(struct nr_xp *xp)
{
    struct nr_engine *e = xp->x.conn->e;
    if (xp->exposed) {
        e->app->on_done(e->app->ctx, &xp->x);
    }
    nr_list_remove(&xp->x.node);
    nr_list_remove(&xp->deadline_node);
    if (xp->deadline.heap_index) {
        nr_loop_timer_cancel(e->loop, &xp->deadline);
    }
    nr_block_unref(e, xp->block);
    nr_buf_unref(xp->x.body_buf);
    nr_buf_unref(xp->x.tail_buf);
    if (e->n_free_exchanges >= 512) {
        nr_arena_done(&xp->x.arena);
        nr_free(xp);
        return;
    }
    nr_arena_clear(&xp->x.arena);
    /* Zero all but the arena, which keeps its block, and the ends that never change. */
    struct nr_arena arena = xp->x.arena;
    void (*on_timer)(struct nr_timer *) = xp->deadline.on_timer;
    *xp = (struct nr_xp){.x.arena = arena, .deadline.on_timer = on_timer};
    nr_list_init(&xp->deadline_node);
    nr_list_init(&xp->x.node);
    /* first in, last out: the warm one is taken next */
    nr_list_insert_before(e->free_exchanges.next, &xp->x.node);
    e->n_free_exchanges++;
}

/* --- bodies --------------------------------------------------------------------------------- */

/* Up to here a body of stated length gets its memory at once; beyond, only after so many bytes have
 * really come, so that nobody reserves 64 MiB by a header. */
#define BODY_TRUST_BYTES 1048576u
#define BODY_FIRST_BYTES 16384u

bool nr_xp_body_reserve(struct nr_xp *xp, uint64_t need, uint64_t final)
{
    struct nr_exchange *x = &xp->x;
    size_t have = x->body_buf ? nr_buf_bytes(x->body_buf) - xp->body_off : 0;
    if (need <= have) {
        return true;
    }
    uint64_t want;
    if (final && (final <= BODY_TRUST_BYTES || have)) {
        want = final;
    } else if (final) {
        want = BODY_TRUST_BYTES / 4;
    } else {
        want = NR_MAX(have * 2, (uint64_t)BODY_FIRST_BYTES);
    }
    want = NR_MAX(want, need);
    if (!final) {
        want = NR_MAX(need, NR_MIN(want, x->body_limit));
    }
    size_t off = (NR_BUF_ALIGN - x->body_align_at % NR_BUF_ALIGN) % NR_BUF_ALIGN, bytes;
    if (want > SIZE_MAX || !nr_add((size_t)want, off, &bytes)) {
        return false;
    }
    struct nr_buf *b = nr_buf_try_new(bytes);
    if (!b) {
        return false;
    }
    if (x->body_buf && xp->body_len) {
        memcpy(nr_buf_data(b) + off, nr_buf_data(x->body_buf) + xp->body_off, xp->body_len);
    }
    nr_buf_unref(x->body_buf);
    x->body_buf = b;
    xp->body_off = off;
    return true;
}

bool nr_xp_body_add(struct nr_xp *xp, const void *data, size_t len)
{
    if (len == 0) {
        return true; /* nothing came: there may be no buffer yet */
    }
    uint64_t need = (uint64_t)xp->body_len + len;
    if (!nr_xp_body_reserve(xp, need, 0)) {
        return false;
    }
    memcpy(nr_buf_data(xp->x.body_buf) + xp->body_off + xp->body_len, data, len);
    xp->body_len += len;
    return true;
}
