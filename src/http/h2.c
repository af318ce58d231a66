/* HTTP/2 sessions, server side: life, accounting, deadlines. nghttp2 is the protocol engine; what a
 * peer may cost us is decided here, because it must not depend on the release of a library.
 *
 * What is counted, in two token buckets of a connection (limits h2_reset_*, h2_glitch_*):
 *   resets    RST_STREAM of the peer, and ours with an error: a peer that makes the server reset
 *             (CVE-2025-8671) pays as one that resets itself (CVE-2023-44487)
 *   glitches  SETTINGS, PRIORITY, invalid frames, CONTINUATION, empty DATA, PING without data since
 *             the last one, WINDOW_UPDATE by less than 256 bytes beyond four for each message
 *             (frames of unknown types are skipped by nghttp2: they cost their bytes and leave
 *             nothing)
 * An empty bucket, or a header block of more than 64 KiB or 8 CONTINUATIONs: GOAWAY with
 * ENHANCE_YOUR_CALM, then the connection ends.
 *
 * Memory: control frames that wait (acknowledgements, resets) stop the reading of input beyond
 * h2_max_control_queue; output beyond 256 KiB does so, too. Windows: 64 KiB a stream, grown to
 * 1 MiB for one whose length is known to be larger; bodies are charged as they come.
 *
 * Stalls: a sweep, every few seconds while requests or responses are incomplete, resets streams
 * whose request makes no progress (body_idle_ns, body_min_rate_bytes) or whose peer takes no payload
 * (write_stall_ns; one-byte window updates do not help).
 *
 * Invariants
 *  1. n_open counts `open`, n_zombies those of `closed` that the app has not answered.
 *  2. nghttp2 is not called again once the connection is dead.
 *
 * Threads: the loop's. */
#include "http/h2.h"

#include "base/clock.h"
#include "base/mem.h"

#define DRAIN_NOTICE_NS (100 * NR_MS_NS) /* between "no new streams, please" and the last GOAWAY */
#define SWEEP_NS NR_S_NS

/* --- accounting ----------------------------------------------------------------------------- */

void nr_h2_terminate(struct nr_h2 *h, uint32_t error)
{
    if (!h->ended) {
        h->ended = true;
        (void)nghttp2_session_terminate_session(h->s, error);
        nr_conn_wake(h->c);
    }
}

static void abuse(struct nr_h2 *h)
{
    if (!h->ended) {
        nr_count(&h->c->e->counters.abuse_closed, 1);
        nr_h2_terminate(h, NGHTTP2_ENHANCE_YOUR_CALM);
    }
}

void nr_h2_charge_reset(struct nr_h2 *h)
{
    if (!nr_bucket_take(&h->resets, 1, nr_h2_now(h))) {
        abuse(h);
    }
}

void nr_h2_charge_glitch(struct nr_h2 *h)
{
    if (!nr_bucket_take(&h->glitches, 1, nr_h2_now(h))) {
        abuse(h);
    }
}

void nr_h2_received(struct nr_h2 *h, struct nr_xp *xp)
{
    if (!xp->stream->received) {
        xp->stream->received = true;
        h->n_receiving--;
    }
}

/* --- input and output ----------------------------------------------------------------------- */

/* Drops what is open: the peer is gone or has gone too far. */
static void drop_open(struct nr_h2 *h, nr_cancel_reason why)
{
    struct nr_conn *c = h->c;
    NR_LIST_FOREACH_SAFE (n, tmp, &h->open) {
        struct nr_xp *xp = nr_container_of(n, struct nr_xp, x.node);
        nr_h2_received(h, xp);
        xp->stream->closed = true;
        nr_list_remove(n);
        nr_list_append(&h->closed, n);
        h->n_open--;
        if (xp->stream->begun) {
            if (!xp->stream->finished) {
                h->n_sending--;
            }
            xp->emitted = true;
            xp->out_end = c->out_queued;
        }
        (void)nghttp2_session_set_stream_user_data(h->s, xp->stream->id, NULL);
        nr_xp_drop(xp, why);
        if (xp->exposed && !xp->x.responded) {
            xp->stream->zombie = true;
            h->n_zombies++;
        }
    }
}

static void feed(struct nr_conn *c, const uint8_t *data, size_t len)
{
    struct nr_h2 *h = c->h2;
    if (h->ended) {
        return;
    }
    ssize_t n = nghttp2_session_mem_recv(h->s, data, len);
    if (c->state == NR_CONN_DEAD) {
        return;
    }
    if (n < 0) {
        nr_count(&c->e->counters.parse_errors, 1);
        h->ended = true; /* nghttp2 has queued a GOAWAY where one is due */
        (void)nghttp2_session_terminate_session(
            h->s, n == NGHTTP2_ERR_FLOODED ? NGHTTP2_ENHANCE_YOUR_CALM : NGHTTP2_PROTOCOL_ERROR);
    }
    nr_conn_wake(c);
}

static void on_scratch(struct nr_conn *c, const uint8_t *data, size_t len)
{
    feed(c, data, len);
}

static void produce(struct nr_conn *c)
{
    struct nr_h2 *h = c->h2;
    if (c->state == NR_CONN_DEAD) {
        return;
    }
    if (nr_conn_pending(c) < NR_OUT_HIGH_BYTES && nghttp2_session_send(h->s) != 0) {
        c->out_failed = true;
        return;
    }
    bool over = !nghttp2_session_want_read(h->s) && !nghttp2_session_want_write(h->s);
    if (h->ended || over) {
        h->ended = true;
        if (!nghttp2_session_want_write(h->s)) {
            drop_open(h, NR_CANCEL_RESET);
            nr_conn_close_soon(c, true);
        }
    }
}

static void on_sent(struct nr_conn *c)
{
    struct nr_h2 *h = c->h2;
    NR_LIST_FOREACH_SAFE (n, tmp, &h->closed) {
        struct nr_xp *xp = nr_container_of(n, struct nr_xp, x.node);
        if (nr_xp_over(xp, c->out_sent)) {
            if (xp->stream->zombie) {
                h->n_zombies--;
            }
            nr_xp_finish(xp);
        }
    }
    /* a session that was told to go away ends with its last stream */
    if (h->goaway && h->n_open == 0 && c->state == NR_CONN_OPEN &&
        !nghttp2_session_want_write(h->s)) {
        h->ended = true;
        nr_conn_close_soon(c, true);
    }
}

/* The peer sends no more: requests that are incomplete will stay so; the others are answered. */
static void on_eof(struct nr_conn *c)
{
    struct nr_h2 *h = c->h2;
    h->goaway = true;
    NR_LIST_FOREACH_SAFE (n, tmp, &h->open) {
        struct nr_xp *xp = nr_container_of(n, struct nr_xp, x.node);
        if (!xp->stream->received) {
            nr_xp_drop(xp, NR_CANCEL_RESET);
            (void)nghttp2_submit_rst_stream(h->s, NGHTTP2_FLAG_NONE, xp->stream->id,
                                            NGHTTP2_CANCEL);
        } else if (!c->e->limits->half_close) {
            nr_xp_cancel(xp, NR_CANCEL_HALF_CLOSE);
        }
    }
    nr_conn_wake(c);
}

static bool wants_input(const struct nr_conn *c)
{
    const struct nr_h2 *h = c->h2;
    return !h->ended &&
           nghttp2_session_get_outbound_queue_size(h->s) <= c->e->limits->h2_max_control_queue;
}

/* --- deadlines ------------------------------------------------------------------------------ */

static int64_t deadline(const struct nr_conn *c)
{
    const struct nr_h2 *h = c->h2;
    const struct nr_http_limits *l = c->e->limits;
    int64_t d = NR_NEVER;
    if (h->n_receiving > 0 || h->n_sending > 0) {
        d = h->sweep_ns + SWEEP_NS;
    } else if (h->n_open == 0 && h->n_zombies == 0) {
        d = NR_MAX(c->rx_ns, c->tx_ns) + (int64_t)l->keep_alive_ns;
    }
    if (h->in_block) {
        d = NR_MIN(d, h->block_since_ns + (int64_t)l->head_timeout_ns);
    }
    if (h->draining && !h->goaway) {
        d = NR_MIN(d, h->drain_ns + DRAIN_NOTICE_NS);
    }
    return d;
}

static bool too_slow(int64_t now, int64_t since, uint64_t bytes, uint64_t rate, int64_t grace)
{
    return rate && now - since > grace && bytes / rate < (uint64_t)((now - since) / NR_S_NS);
}

/* Looks at every stream that is under way; at most h2_max_streams of them. */
static void sweep(struct nr_h2 *h, int64_t now)
{
    const struct nr_http_limits *l = h->c->e->limits;
    NR_LIST_FOREACH_SAFE (n, tmp, &h->open) {
        struct nr_xp *xp = nr_container_of(n, struct nr_xp, x.node);
        struct nr_h2_stream *st = xp->stream;
        /* between two messages of a stream the client may take its time */
        bool body_due = !st->received && !(xp->x.many_messages && st->frame.have == 0);
        if (body_due &&
            (now - st->rx_ns > (int64_t)l->body_idle_ns ||
             (!xp->x.many_messages && too_slow(now, st->rx_since_ns, st->rx_bytes,
                                               l->body_min_rate_bytes, 10 * NR_S_NS)))) {
            nr_count(&h->c->e->counters.timeouts, 1);
            nr_h2_refuse(xp, 408, NR_GRPC_DEADLINE_EXCEEDED,
                         "the request body did not arrive in time");
        }
        bool sending = st->begun && !st->finished && !st->waits;
        if (sending && l->write_stall_ns && nr_conn_pending(h->c) == 0 &&
            (now - st->tx_ns > (int64_t)l->write_stall_ns ||
             (!xp->streaming && too_slow(now, st->tx_since_ns, st->tx_bytes, l->body_min_rate_bytes,
                                         2 * (int64_t)l->write_stall_ns)))) {
            nr_count(&h->c->e->counters.timeouts, 1);
            (void)nghttp2_submit_rst_stream(h->s, NGHTTP2_FLAG_NONE, st->id, NGHTTP2_CANCEL);
        }
    }
    h->sweep_ns = now;
}

static void on_deadline(struct nr_conn *c)
{
    struct nr_h2 *h = c->h2;
    int64_t now = nr_h2_now(h);
    if (h->in_block && now - h->block_since_ns >= (int64_t)c->e->limits->head_timeout_ns) {
        nr_h2_terminate(h, NGHTTP2_ENHANCE_YOUR_CALM);
    } else if (h->draining && !h->goaway && now - h->drain_ns >= DRAIN_NOTICE_NS) {
        h->goaway = true;
        (void)nghttp2_submit_goaway(h->s, NGHTTP2_FLAG_NONE,
                                    nghttp2_session_get_last_proc_stream_id(h->s), NGHTTP2_NO_ERROR,
                                    NULL, 0);
    } else if (h->n_receiving > 0 || h->n_sending > 0) {
        sweep(h, now);
    } else if (h->n_open == 0 && h->n_zombies == 0 &&
               now - NR_MAX(c->rx_ns, c->tx_ns) >= (int64_t)c->e->limits->keep_alive_ns) {
        nr_h2_terminate(h, NGHTTP2_NO_ERROR); /* idle */
    }
    nr_conn_wake(c);
}

/* --- ends ----------------------------------------------------------------------------------- */

static void drain(struct nr_conn *c)
{
    struct nr_h2 *h = c->h2;
    if (!h->draining && !h->ended) {
        h->draining = true;
        h->drain_ns = nr_h2_now(h);
        (void)nghttp2_submit_shutdown_notice(h->s);
        nr_conn_wake(c);
    }
}

static void h2_abort(struct nr_conn *c, nr_cancel_reason why)
{
    c->h2->ended = true;
    drop_open(c->h2, why);
}

static bool quiet(const struct nr_conn *c)
{
    return nr_list_empty(&c->h2->open);
}

static bool empty(const struct nr_conn *c)
{
    return nr_list_empty(&c->h2->open) && nr_list_empty(&c->h2->closed);
}

static void done(struct nr_conn *c)
{
    nghttp2_session_del(c->h2->s);
    nr_free(c->h2);
    c->h2 = NULL;
}

static bool no_body_dest(struct nr_conn *c, uint8_t **ret, size_t *ret_len)
{
    (void)c;
    (void)ret;
    (void)ret_len;
    return false;
}

void nr_h2_start(struct nr_conn *c)
{
    struct nr_engine *e = c->e;
    const struct nr_http_limits *l = e->limits;
    if (!e->h2_pool) {
        e->h2_pool = nr_h2_pool_new();
    }
    struct nr_h2 *h = nr_new(struct nr_h2);
    h->c = c;
    nr_list_init(&h->open);
    nr_list_init(&h->closed);
    int64_t now = nr_loop_now(e->loop);
    nr_bucket_init(&h->resets, l->h2_reset_burst, l->h2_reset_rate, now);
    nr_bucket_init(&h->glitches, l->h2_glitch_burst, l->h2_glitch_rate, now);
    const nghttp2_settings_entry settings[] = {
        {NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, l->h2_max_streams},
        {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, l->h2_stream_window_bytes},
        {NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, l->max_head_bytes},
    };
    if (nghttp2_session_server_new3(&h->s, e->h2_pool->callbacks, h, e->h2_pool->option,
                                    &e->h2_pool->mem) != 0) {
        nr_free(h);
        nr_conn_kill(c, NR_CANCEL_RESET);
        return;
    }
    c->h2 = h;
    c->ops = &nr_h2_ops;
    (void)nghttp2_submit_settings(h->s, NGHTTP2_FLAG_NONE, settings, NR_COUNT(settings));
    if (l->h2_conn_window_bytes > NGHTTP2_INITIAL_CONNECTION_WINDOW_SIZE) {
        (void)nghttp2_session_set_local_window_size(h->s, NGHTTP2_FLAG_NONE, 0,
                                                    (int32_t)l->h2_conn_window_bytes);
    }
    if (e->draining) { /* accepted before the server retired, silent until now */
        drain(c);
    }
    uint32_t start = c->in_start;
    c->in_start = c->in_end;
    feed(c, c->in->data + start, c->in_end - start);
}

const struct nr_session_ops nr_h2_ops = {
    .on_scratch = on_scratch,
    .body_dest = no_body_dest,
    .on_eof = on_eof,
    .respond = nr_h2_respond,
    .begin = nr_h2_begin,
    .pump = nr_h2_pump,
    .produce = produce,
    .on_sent = on_sent,
    .wants_input = wants_input,
    .deadline = deadline,
    .on_deadline = on_deadline,
    .drain = drain,
    .abort = h2_abort,
    .quiet = quiet,
    .empty = empty,
    .done = done,
};
