/* The engine of one loop: memory pools, the wheel of connection deadlines, and the work at the end
 * of a turn.
 *
 * Why pools: a request in steady state must not call malloc. Connections, exchanges and 16 KiB
 * blocks go back to free lists; the lists are bounded, so a burst does not keep its memory. A loop that
 * had nothing to do for a second frees them, with the thread's pools of arenas and buffers: some
 * microseconds for the next request, some megabytes for everybody else. While there is work the timer
 * for it looks once a second, and when there is none it is not armed.
 * Why a wheel: a heap of timers costs several cache lines per request. A connection only writes
 * down what it waits for; the wheel visits it at the earliest deadline it ever had and puts it back
 * at the present one.
 *
 * Invariants
 *  1. Output is sent at the end of a turn by a late hook, that is behind all other hooks of the
 *     same turn: what the app answers in its own hook (batch per turn) leaves in the same turn, and
 *     all answers of a connection in a turn share one send.
 *  2. Exchanges are finished and connections recycled only here or in a flush, never inside
 *     nr_exchange_respond or another call of the app: the app's pointers stay good.
 *  3. A connection is in at most one slot; armed_ns is that slot's time.
 *
 * Threads: the loop's, but for nr_engine_init/_done (before and after the loop) and the counters. */
#include "http/engine.h"

#include "base/clock.h"
#include "base/mem.h"

#define FREE_BLOCKS_MAX 256u
#define FREE_CONNS_MAX 256u
#define FREE_EXCHANGES_MAX 512u

/* --- blocks --------------------------------------------------------------------------------- */

struct nr_block *nr_block_try_new(struct nr_engine *e, uint32_t cap)
{
    struct nr_block *b;
    if (NR_LIKELY(cap <= NR_BLOCK_CAP)) {
        b = e->free_blocks;
        if (NR_LIKELY(b != NULL)) {
            e->free_blocks = b->next;
            e->n_free_blocks--;
            b->refs = 1;
            return b;
        }
        cap = NR_BLOCK_CAP;
    }
    b = nr_try_alloc_aligned(64, sizeof(*b) + (size_t)cap);
    if (b) {
        *b = (struct nr_block){.refs = 1, .cap = cap};
    }
    return b;
}

void nr_block_unref(struct nr_engine *e, struct nr_block *b)
{
    if (!b || --b->refs > 0) {
        return;
    }
    if (b->cap == NR_BLOCK_CAP && e->n_free_blocks < FREE_BLOCKS_MAX) {
        b->next = e->free_blocks;
        e->free_blocks = b;
        e->n_free_blocks++;
    } else {
        nr_free(b);
    }
}

/* --- date ----------------------------------------------------------------------------------- */

const char *nr_engine_date(struct nr_engine *e, uint32_t *ret_len)
{
    int64_t s = nr_loop_now(e->loop) / NR_S_NS;
    if (NR_UNLIKELY(s != e->date_s || e->date_len == 0)) {
        e->date_s = s;
        int64_t wall = nr_clock_wall();
        nr_date_line(wall > 0 ? wall / NR_S_NS : 0, e->date);
        e->date_len = NR_DATE_LINE_BYTES;
    }
    *ret_len = e->date_len;
    return e->date;
}

/* --- wheel ---------------------------------------------------------------------------------- */

static void wheel_set_timer(struct nr_engine *e)
{
    struct nr_wheel *w = &e->wheel;
    for (int64_t i = 1; i <= NR_WHEEL_SLOTS; i++) {
        if (!nr_list_empty(&w->slot[(w->tick + i) % NR_WHEEL_SLOTS])) {
            nr_loop_timer_set(e->loop, &w->timer, (w->tick + i) * NR_WHEEL_TICK_NS);
            return;
        }
    }
}

static void wheel_on_timer(struct nr_timer *t)
{
    struct nr_engine *e = nr_container_of(t, struct nr_engine, wheel.timer);
    struct nr_wheel *w = &e->wheel;
    int64_t now = nr_loop_now(e->loop), upto = now / NR_WHEEL_TICK_NS;
    struct nr_list due;
    nr_list_init(&due);
    for (int64_t tick = NR_MAX(w->tick, upto - NR_WHEEL_SLOTS) + 1; tick <= upto; tick++) {
        nr_list_splice(&due, &w->slot[tick % NR_WHEEL_SLOTS]);
    }
    w->tick = upto;
    for (struct nr_list *n; (n = nr_list_pop(&due)) != NULL;) {
        struct nr_conn *c = nr_container_of(n, struct nr_conn, wheel_node);
        c->armed_ns = NR_NEVER;
        nr_conn_on_wheel(c, now);
    }
    wheel_set_timer(e);
}

void nr_wheel_arm(struct nr_engine *e, struct nr_conn *c, int64_t deadline_ns)
{
    struct nr_wheel *w = &e->wheel;
    if (NR_LIKELY(deadline_ns >= c->armed_ns) || deadline_ns == NR_NEVER) {
        return;
    }
    if (!w->timer.heap_index) { /* nothing was armed: the wheel stood still */
        w->tick = nr_loop_now(e->loop) / NR_WHEEL_TICK_NS;
    }
    /* rounded up: a visit is never early; what lies beyond the horizon is looked at on the way */
    int64_t tick = deadline_ns / NR_WHEEL_TICK_NS + 1;
    tick = NR_MAX(w->tick + 1, NR_MIN(tick, w->tick + NR_WHEEL_SLOTS - 1));
    nr_list_remove(&c->wheel_node);
    nr_list_append(&w->slot[tick % NR_WHEEL_SLOTS], &c->wheel_node);
    c->armed_ns = deadline_ns;
    if (!w->timer.heap_index || tick * NR_WHEEL_TICK_NS < w->timer.deadline_ns) {
        nr_loop_timer_set(e->loop, &w->timer, tick * NR_WHEEL_TICK_NS);
    }
}

/* --- end of a turn -------------------------------------------------------------------------- */

void nr_engine_hook(struct nr_engine *e)
{
    if (!e->hook.armed) {
        nr_loop_hook_arm(e->loop, &e->hook);
    }
}

/* Exchanges that were not answered in their own turn get a timer; the others never touch one. */
static void arm_deadlines(struct nr_engine *e)
{
    for (struct nr_list *n; (n = nr_list_pop(&e->fresh_deadlines)) != NULL;) {
        struct nr_xp *xp = nr_container_of(n, struct nr_xp, deadline_node);
        nr_loop_timer_set(e->loop, &xp->deadline, xp->x.deadline_ns);
    }
}

/* Frees what the pools hold. */
static void free_pools(struct nr_engine *e)
{
    for (struct nr_list *n; (n = nr_list_pop(&e->free_conns)) != NULL;) {
        nr_free(nr_container_of(n, struct nr_conn, node));
    }
    for (struct nr_list *n; (n = nr_list_pop(&e->free_exchanges)) != NULL;) {
        struct nr_xp *xp = nr_container_of(n, struct nr_xp, x.node);
        nr_arena_done(&xp->x.arena);
        nr_free(xp);
    }
    while (e->free_blocks) {
        struct nr_block *b = e->free_blocks;
        e->free_blocks = b->next;
        nr_free(b);
    }
    e->n_free_conns = e->n_free_exchanges = e->n_free_blocks = 0;
    (void)nr_h2_pool_trim(e->h2_pool);
}

static void on_idle_timer(struct nr_timer *t)
{
    struct nr_engine *e = nr_container_of(t, struct nr_engine, idle_timer);
    if (e->worked) {
        e->worked = false;
        nr_loop_timer_set(e->loop, t, nr_loop_now(e->loop) + (int64_t)e->limits->idle_trim_ns);
        return;
    }
    free_pools(e);
    nr_arena_thread_done();
    nr_buf_thread_done();
    if (e->app->on_idle) {
        e->app->on_idle(e->app->ctx);
    }
}

static void note_work(struct nr_engine *e)
{
    e->worked = true;
    if (!e->idle_timer.heap_index && e->limits->idle_trim_ns > 0) {
        nr_loop_timer_set(e->loop, &e->idle_timer,
                          nr_loop_now(e->loop) + (int64_t)e->limits->idle_trim_ns);
    }
}

static void on_turn(struct nr_turn_hook *h)
{
    struct nr_engine *e = nr_container_of(h, struct nr_engine, hook);
    if (NR_UNLIKELY(!e->worked)) {
        note_work(e);
    }
    arm_deadlines(e);
    /* What a flush sets off (an on_done that answers another exchange) is for the next round. */
    struct nr_list now;
    nr_list_init(&now);
    nr_list_splice(&now, &e->flush);
    for (struct nr_list *n; (n = nr_list_pop(&now)) != NULL;) {
        struct nr_conn *c = nr_container_of(n, struct nr_conn, flush_node);
        if (c->state != NR_CONN_DEAD) {
            nr_conn_flush(c);
            nr_conn_settle(c);
        }
    }
    nr_list_splice(&now, &e->reap);
    for (struct nr_list *n; (n = nr_list_pop(&now)) != NULL;) {
        (void)nr_conn_reap(nr_container_of(n, struct nr_conn, reap_node));
    }
    if (!nr_list_empty(&e->flush) || !nr_list_empty(&e->reap)) {
        nr_engine_hook(e);
    }
}

static void on_resume(struct nr_msg *m)
{
    struct nr_engine *e = nr_container_of(m, struct nr_engine, resume_msg);
    e->resume_posted = false;
    struct nr_list now;
    nr_list_init(&now);
    nr_list_splice(&now, &e->resume);
    for (struct nr_list *n; (n = nr_list_pop(&now)) != NULL;) {
        struct nr_conn *c = nr_container_of(n, struct nr_conn, resume_node);
        if (c->state == NR_CONN_OPEN && c->ops->resume) {
            c->ops->resume(c);
            nr_conn_settle(c);
        }
    }
}

/* HTTP/2 can say which requests it will not take any more; HTTP/1.1 can only say so with an answer. */
void nr_engine_retire(struct nr_engine *e)
{
    e->draining = true;
    NR_LIST_FOREACH_SAFE (n, tmp, &e->conns) {
        struct nr_conn *c = nr_container_of(n, struct nr_conn, node);
        if (c->state == NR_CONN_OPEN && c->ops == &nr_h2_ops) {
            c->ops->drain(c);
            nr_conn_settle(c);
        }
    }
}

void nr_engine_drain(struct nr_engine *e)
{
    e->draining = true;
    NR_LIST_FOREACH_SAFE (n, tmp, &e->conns) {
        struct nr_conn *c = nr_container_of(n, struct nr_conn, node);
        if (c->state != NR_CONN_OPEN) {
            continue;
        }
        if (c->ops) {
            c->ops->drain(c);
        } else {
            nr_conn_close_soon(c, false);
        }
        nr_conn_settle(c);
    }
}

void nr_engine_abort(struct nr_engine *e)
{
    NR_LIST_FOREACH_SAFE (n, tmp, &e->conns) {
        nr_conn_kill(nr_container_of(n, struct nr_conn, node), NR_CANCEL_SHUTDOWN);
    }
}

/* --- life ----------------------------------------------------------------------------------- */

void nr_engine_init(struct nr_engine *e, struct nr_loop *loop, const struct nr_http_limits *limits,
                    const struct nr_http_app *app, unsigned index)
{
    *e = (struct nr_engine){.loop = loop, .limits = limits, .app = app, .index = index};
    e->hook.on_turn = on_turn;
    e->hook.late = true;
    e->resume_msg.run = on_resume;
    e->wheel.timer.on_timer = wheel_on_timer;
    e->idle_timer.on_timer = on_idle_timer;
    struct nr_list *lists[] = {&e->conns, &e->free_conns,      &e->flush,         &e->resume,
                               &e->reap,  &e->fresh_deadlines, &e->free_exchanges};
    for (size_t i = 0; i < NR_COUNT(lists); i++) {
        nr_list_init(lists[i]);
    }
    nr_list_init(&e->hook.node);
    for (size_t i = 0; i < NR_WHEEL_SLOTS; i++) {
        nr_list_init(&e->wheel.slot[i]);
    }
    e->scratch = nr_try_alloc_aligned(64, NR_SCRATCH_BYTES);
    NR_ASSERT(e->scratch != NULL);
}

/* Only what is in the pools: whoever ends a loop has seen nr_server_connections reach 0, or
 * accepts that the process ends with what its connections hold. */
void nr_engine_done(struct nr_engine *e)
{
    nr_loop_timer_cancel(e->loop, &e->wheel.timer); /* connections may be left */
    if (e->idle_timer.heap_index) { /* a loop that was freed before has forgotten it */
        nr_loop_timer_cancel(e->loop, &e->idle_timer);
    }
    free_pools(e);
    nr_h2_pool_free(e->h2_pool);
    nr_free(e->scratch);
    e->scratch = NULL;
    e->h2_pool = NULL;
}
