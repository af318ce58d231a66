/* HTTP/2, receiving: frames → requests.
 *
 * nghttp2 checks what RFC 9113 says about single frames, states and header fields; this file
 * counts what they cost, builds exchanges out of them and takes gRPC messages out of DATA.
 *
 * Invariants
 *  1. An exchange is the user data of its stream from HEADERS until the stream closes.
 *  2. A head that breaks a limit is still decoded to its end (HPACK state is shared by all streams)
 *     but nothing of it is kept beyond the limit; it is answered when it is complete.
 *  3. Callbacks never send: frames leave in produce, at the end of the turn.
 *  4. At most h2_max_streams exchanges of a connection are with the app, closed streams included: a
 *     peer that resets its streams gains nothing.
 *
 * Threads: the loop's. */
#include "http/h2.h"

#include "base/clock.h"

#define SMALL_BODY_BYTES 2048u
#define BLOCK_FRAMES_MAX 8u
#define BLOCK_BYTES_MAX 65536u
#define DRIP_BYTES 256      /* a smaller WINDOW_UPDATE is a drip … */
#define DRIPS_PER_MESSAGE 4 /* … and these many of them come with every message */
#define DRIP_CREDIT_MAX 400

static struct nr_xp *stream_xp(nghttp2_session *s, int32_t id)
{
    return nghttp2_session_get_stream_user_data(s, id);
}

/* --- accounting of frames ------------------------------------------------------------------- */

static void remember_ended(nghttp2_session *s, struct nr_h2 *h, int32_t id)
{
    bool whole = nghttp2_session_get_stream_remote_close(s, id) == 1;
    h->ended_ids[h->n_ended++ % NR_H2_ENDED] = whole ? id : -id;
}

/* HEADERS on a stream below the highest that is not open (RFC 9113 section 5.1 and 5.1.1). After a
 * reset they may have been under way: nghttp2 passes over them, and so do we. On a stream that the
 * peer had finished, or whose number was skipped or is long gone, they are an error of the connection.
 * Returns that error, or NGHTTP2_NO_ERROR. */
static uint32_t reuse_error(nghttp2_session *s, struct nr_h2 *h, int32_t id)
{
    if (id > h->highest_id) {
        h->highest_id = id;
        return NGHTTP2_NO_ERROR;
    }
    if (nghttp2_session_find_stream(s, id) != NULL) {
        return NGHTTP2_NO_ERROR;
    }
    for (unsigned i = 0; i < NR_H2_ENDED; i++) {
        if (h->ended_ids[i] == id) {
            return NGHTTP2_STREAM_CLOSED;
        }
        if (h->ended_ids[i] == -id) {
            return NGHTTP2_NO_ERROR;
        }
    }
    return NGHTTP2_PROTOCOL_ERROR;
}

static int on_begin_frame(nghttp2_session *s, const nghttp2_frame_hd *hd, void *user)
{
    struct nr_h2 *h = user;
    uint32_t error;
    switch (hd->type) {
    case NGHTTP2_HEADERS:
        error = reuse_error(s, h, hd->stream_id);
        if (error != NGHTTP2_NO_ERROR) {
            nr_h2_terminate(h, error);
        }
        __attribute__((fallthrough));
    case NGHTTP2_PUSH_PROMISE:
        h->block_bytes = 0;
        h->block_frames = 0;
        __attribute__((fallthrough));
    case NGHTTP2_CONTINUATION:
        if (hd->type == NGHTTP2_CONTINUATION) {
            h->block_frames++;
            nr_h2_charge_glitch(h);
        }
        if (!h->in_block) {
            h->block_since_ns = nr_h2_now(h);
        }
        h->in_block = (hd->flags & NGHTTP2_FLAG_END_HEADERS) == 0;
        h->block_bytes += (uint32_t)hd->length;
        if (h->block_frames > BLOCK_FRAMES_MAX || h->block_bytes > BLOCK_BYTES_MAX) {
            nr_count(&h->c->e->counters.abuse_closed, 1);
            nr_h2_terminate(h, NGHTTP2_ENHANCE_YOUR_CALM);
        }
        break;
    case NGHTTP2_DATA:
        if (hd->length == 0 && !(hd->flags & NGHTTP2_FLAG_END_STREAM)) {
            nr_h2_charge_glitch(h);
        }
        break;
    case NGHTTP2_PING:
        /* gRPC clients measure their bandwidth with PINGs while data flows: those are fine */
        if (!h->ping_credit && !(hd->flags & NGHTTP2_FLAG_ACK)) {
            nr_h2_charge_glitch(h);
        }
        h->ping_credit = false;
        break;
    case NGHTTP2_RST_STREAM:
        nr_h2_charge_reset(h);
        break;
    case NGHTTP2_WINDOW_UPDATE: /* by its increment, in on_frame_recv */
    case NGHTTP2_GOAWAY:
        break;
    default: /* SETTINGS, PRIORITY */
        nr_h2_charge_glitch(h);
        break;
    }
    return 0;
}

/* --- heads ---------------------------------------------------------------------------------- */

void nr_h2_credit_message(struct nr_h2 *h)
{
    h->drip_credit = NR_MIN(h->drip_credit + DRIPS_PER_MESSAGE, DRIP_CREDIT_MAX);
}

static int on_begin_headers(nghttp2_session *s, const nghttp2_frame *frame, void *user)
{
    struct nr_h2 *h = user;
    if (frame->hd.type != NGHTTP2_HEADERS || frame->headers.cat != NGHTTP2_HCAT_REQUEST) {
        return 0;
    }
    const struct nr_http_limits *l = h->c->e->limits;
    if (h->ended || h->goaway || h->n_open + h->n_zombies >= l->h2_max_streams) {
        (void)nghttp2_submit_rst_stream(s, NGHTTP2_FLAG_NONE, frame->hd.stream_id,
                                        NGHTTP2_REFUSED_STREAM);
        return 0;
    }
    struct nr_xp *xp = nr_xp_new(h->c, &nr_h2_ops);
    struct nr_h2_stream *st = nr_arena_new(&xp->x.arena, struct nr_h2_stream);
    st->id = frame->hd.stream_id;
    st->cap_headers = 16;
    xp->stream = st;
    xp->x.headers = nr_arena_alloc(&xp->x.arena, st->cap_headers * sizeof(xp->x.headers[0]));
    xp->x.protocol = NR_HTTP_2;
    xp->keep_alive = true;
    nr_list_append(&h->open, &xp->x.node);
    h->n_open++;
    h->n_receiving++;
    nr_h2_credit_message(h);
    st->rx_ns = st->rx_since_ns = nr_h2_now(h);
    (void)nghttp2_session_set_stream_user_data(s, st->id, xp);
    return 0;
}

static void refuse_later(struct nr_h2_stream *st, int status, const char *text)
{
    if (!st->refuse_status) {
        st->refuse_status = status;
        st->refuse_text = text;
    }
}

static struct nr_str copy(struct nr_exchange *x, const uint8_t *p, size_t len)
{
    char *to = nr_arena_alloc(&x->arena, len + 1);
    memcpy(to, p, len);
    to[len] = '\0';
    return (struct nr_str){to, len};
}

static void pseudo(struct nr_xp *xp, struct nr_str name, const uint8_t *value, size_t len)
{
    struct nr_exchange *x = &xp->x;
    struct nr_h2_stream *st = xp->stream;
    if (nr_str_is(name, ":path")) {
        if (len > x->conn->e->limits->max_request_line_bytes) {
            refuse_later(st, 414, "request target too long");
            return;
        }
        x->path = copy(x, value, len);
    } else if (nr_str_is(name, ":method")) {
        x->method_text = copy(x, value, len);
        x->method = nr_method_find(x->method_text);
    } else if (nr_str_is(name, ":authority")) {
        st->authority = copy(x, value, len);
    }
}

static void add_field(struct nr_xp *xp, struct nr_str name, const uint8_t *value, size_t len)
{
    struct nr_exchange *x = &xp->x;
    struct nr_h2_stream *st = xp->stream;
    if (x->n_headers == st->cap_headers) {
        unsigned cap = st->cap_headers * 2;
        struct nr_header *more = nr_arena_alloc(&x->arena, cap * sizeof(*more));
        memcpy(more, x->headers, x->n_headers * sizeof(*more));
        x->headers = more;
        st->cap_headers = cap;
    }
    struct nr_header *f = &x->headers[x->n_headers++];
    *f = (struct nr_header){copy(x, (const uint8_t *)name.ptr, name.len), copy(x, value, len)};
    enum nr_field id = nr_field_find(f->name);
    int64_t timeout;
    switch (id) {
    case NR_FIELD_CONTENT_LENGTH:
        if (!nr_str_to_i64(f->value, &x->content_length) || x->content_length < 0) {
            refuse_later(st, 400, "malformed content-length");
        }
        break;
    case NR_FIELD_GRPC_TIMEOUT:
        if (!nr_grpc_timeout(f->value, &timeout)) {
            refuse_later(st, 400, "malformed grpc-timeout");
        } else if (__builtin_add_overflow(x->start_ns, timeout, &x->deadline_ns)) {
            x->deadline_ns = 0; /* beyond the end of the clock: none */
        }
        break;
    case NR_FIELD_EXPECT:
        xp->expect = nr_str_eq_nocase(f->value, NR_STR("100-continue"));
        break;
    case NR_FIELD_OTHER:
        break;
    default:
        if (id <= NR_FIELD_KNOWN_LAST && !nr_field_known(x, id, f->value)) {
            refuse_later(st, 400, "a header field came twice that may come only once");
        }
    }
}

static int on_header(nghttp2_session *s, const nghttp2_frame *frame, const uint8_t *name,
                     size_t name_len, const uint8_t *value, size_t value_len, uint8_t flags,
                     void *user)
{
    (void)flags;
    struct nr_h2 *h = user;
    struct nr_xp *xp = stream_xp(s, frame->hd.stream_id);
    if (!xp || frame->hd.type != NGHTTP2_HEADERS) {
        return 0;
    }
    const struct nr_http_limits *l = h->c->e->limits;
    struct nr_h2_stream *st = xp->stream;
    if (frame->headers.cat != NGHTTP2_HCAT_REQUEST) {
        /* trailers: counted like a head, then forgotten */
        if (++st->n_fields > l->max_fields) {
            nr_h2_charge_glitch(h);
        }
        return 0;
    }
    struct nr_str n = {(const char *)name, name_len};
    bool is_pseudo = name_len > 0 && name[0] == ':';
    uint64_t bytes = (uint64_t)name_len + value_len;
    if (!is_pseudo && ++st->n_fields > l->max_fields) {
        refuse_later(st, 431, "too many header fields");
    } else if (bytes > l->max_field_bytes) {
        refuse_later(st, is_pseudo ? 414 : 431, "header field too large");
    } else if (!is_pseudo && st->head_bytes + bytes + 32 > l->max_head_bytes) {
        refuse_later(st, 431, "header fields too large");
    }
    if (st->refuse_status) {
        return 0;
    }
    if (is_pseudo) {
        pseudo(xp, n, value, value_len);
    } else {
        st->head_bytes += (uint32_t)bytes + 32;
        add_field(xp, n, value, value_len);
    }
    return 0;
}

/* Checks that nghttp2 leaves to us. */
static void check_head(struct nr_xp *xp)
{
    struct nr_exchange *x = &xp->x;
    struct nr_h2_stream *st = xp->stream;
    struct nr_str target = x->path;
    if (st->authority.ptr) {
        if (x->known.host.ptr && !nr_str_eq(x->known.host, st->authority)) {
            refuse_later(st, 400, "host differs from :authority");
        }
        x->known.host = st->authority;
    }
    if (st->refuse_status) {
        return;
    }
    if (!nr_host_valid(x->known.host)) {
        refuse_later(st, 400, "malformed authority");
    } else if (nr_str_is(x->method_text, "CONNECT")) {
        refuse_later(st, 501, "CONNECT is not implemented");
    } else if (!nr_target_split(target, x->method, &x->path, &x->query)) {
        refuse_later(st, 400, "malformed request target");
    }
}

static int grpc_of_http(int status)
{
    switch (status) {
    case 431:
    case 414:
        return NR_GRPC_RESOURCE_EXHAUSTED;
    case 501:
        return NR_GRPC_UNIMPLEMENTED;
    default:
        return NR_GRPC_INTERNAL;
    }
}

static void head_complete(struct nr_h2 *h, struct nr_xp *xp)
{
    struct nr_exchange *x = &xp->x;
    struct nr_h2_stream *st = xp->stream;
    check_head(xp);
    st->grpc = x->method == NR_POST && nr_grpc_is(x->known.content_type);
    if (st->grpc) {
        x->protocol = NR_GRPC;
    }
    if (st->refuse_status) {
        nr_count(&h->c->e->counters.parse_errors, 1);
        nr_h2_refuse(xp, st->refuse_status, grpc_of_http(st->refuse_status), st->refuse_text);
        return;
    }
    nr_xp_expose(xp);
    if (x->responded || xp->dropped || st->grpc) {
        return;
    }
    if (x->content_length > 0 && (uint64_t)x->content_length > x->body_limit) {
        nr_h2_refuse(xp, 413, NR_GRPC_RESOURCE_EXHAUSTED,
                     nr_arena_fmt(&x->arena, "request body is larger than the limit of %llu bytes",
                                  (unsigned long long)x->body_limit)
                         .ptr);
    } else if (xp->expect) {
        const nghttp2_nv nv = {(uint8_t *)(uintptr_t)":status", (uint8_t *)(uintptr_t)"100", 7, 3,
                               NGHTTP2_NV_FLAG_NONE};
        (void)nghttp2_submit_headers(h->s, NGHTTP2_FLAG_NONE, st->id, NULL, &nv, 1, NULL);
    }
}

/* --- bodies --------------------------------------------------------------------------------- */

/* The stream may send more at once when its length is known to be large: 64 KiB a round trip would
 * make tensors slow. */
static void widen_window(struct nr_h2 *h, const struct nr_h2_stream *st, uint64_t expected)
{
    const unsigned most = 1u << 20;
    if (expected > h->c->e->limits->h2_stream_window_bytes) {
        (void)nghttp2_session_set_local_window_size(h->s, NGHTTP2_FLAG_NONE, st->id,
                                                    (int32_t)NR_MIN(expected, (uint64_t)most));
    }
}

/* False: refused, out of memory. `expected` is the whole length when it is known, else 0. */
static bool add_body(struct nr_h2 *h, struct nr_xp *xp, struct nr_str part, uint64_t expected)
{
    struct nr_h2_stream *st = xp->stream;
    if (xp->body_len == 0 && part.len > 0) { /* the first bytes decide where the body goes */
        st->small = expected > 0 && expected <= SMALL_BODY_BYTES && !xp->x.many_messages;
        if (st->small) {
            st->small_body = nr_arena_alloc(&xp->x.arena, (size_t)expected);
        }
        widen_window(h, st, expected);
    }
    if (st->small) {
        memcpy(st->small_body + xp->body_len, part.ptr, part.len);
        xp->body_len += part.len;
        return true;
    }
    if ((expected && !nr_xp_body_reserve(xp, xp->body_len + part.len, expected)) ||
        !nr_xp_body_add(xp, part.ptr, part.len)) {
        nr_h2_refuse(xp, 503, NR_GRPC_RESOURCE_EXHAUSTED, "out of memory for the request body");
        return false;
    }
    return true;
}

/* False: the call is refused. */
static bool grpc_event(struct nr_h2 *h, struct nr_xp *xp, enum nr_grpc_event event)
{
    (void)h;
    switch (event) {
    case NR_GRPC_MORE:
        return true;
    case NR_GRPC_COMPRESSED:
        nr_h2_refuse(xp, 415, NR_GRPC_UNIMPLEMENTED,
                     "compressed messages are not supported: send identity encoding");
        return false;
    case NR_GRPC_TOO_LARGE:
        nr_h2_refuse(xp, 413, NR_GRPC_RESOURCE_EXHAUSTED,
                     nr_arena_fmt(&xp->x.arena, "message is larger than the limit of %llu bytes",
                                  (unsigned long long)xp->x.body_limit)
                         .ptr);
        return false;
    case NR_GRPC_SECOND:
        if (xp->x.many_messages) {
            return true;
        }
        nr_h2_refuse(xp, 400, NR_GRPC_UNIMPLEMENTED, "a unary call takes exactly one message");
        return false;
    case NR_GRPC_BAD_FLAG:
        nr_h2_refuse(xp, 400, NR_GRPC_INTERNAL, "malformed gRPC message prefix");
        return false;
    }
    return false;
}

/* A message of a streaming call is whole. What is kept of it is the app's. */
static void give_message(struct nr_xp *xp)
{
    struct nr_exchange *x = &xp->x;
    x->body = (struct nr_str){NULL, 0};
    if (x->body_buf) {
        x->body =
            (struct nr_str){(const char *)nr_buf_data(x->body_buf) + xp->body_off, xp->body_len};
    }
    xp->stream->frame = (struct nr_grpc_reader){.have = 0};
    nr_h2_credit_message(x->conn->h2);
    nr_xp_message(xp);
    nr_buf_unref(NR_TAKE(x->body_buf));
    x->body = (struct nr_str){NULL, 0};
    xp->body_len = 0;
}

static void grpc_data(struct nr_h2 *h, struct nr_xp *xp, const uint8_t *data, size_t len)
{
    struct nr_h2_stream *st = xp->stream;
    while (len > 0 && !st->received && !xp->dropped) {
        struct nr_str part;
        uint8_t had = st->frame.have;
        enum nr_grpc_event event = nr_grpc_read(&st->frame, data, len, xp->x.body_limit, &part);
        if (!grpc_event(h, xp, event) || (part.len > 0 && !add_body(h, xp, part, st->frame.len)) ||
            !xp->x.many_messages) {
            return;
        }
        size_t used = (size_t)(st->frame.have - had) + part.len;
        data += used;
        len -= used;
        if (nr_grpc_complete(&st->frame)) {
            give_message(xp);
        }
    }
}

static int on_data(nghttp2_session *s, uint8_t flags, int32_t id, const uint8_t *data, size_t len,
                   void *user)
{
    (void)flags;
    struct nr_h2 *h = user;
    struct nr_xp *xp = stream_xp(s, id);
    if (!xp || xp->stream->received || len == 0) {
        return 0; /* answered before its body was read: what still comes is dropped */
    }
    struct nr_exchange *x = &xp->x;
    struct nr_h2_stream *st = xp->stream;
    st->rx_ns = nr_h2_now(h);
    st->rx_bytes += len;
    if (st->grpc) {
        grpc_data(h, xp, data, len);
        return 0;
    }
    if (len > x->body_limit || xp->body_len > x->body_limit - len) {
        nr_h2_refuse(xp, 413, NR_GRPC_RESOURCE_EXHAUSTED,
                     nr_arena_fmt(&x->arena, "request body is larger than the limit of %llu bytes",
                                  (unsigned long long)x->body_limit)
                         .ptr);
        return 0;
    }
    /* nghttp2 holds the peer to its content-length */
    (void)add_body(h, xp, (struct nr_str){(const char *)data, len},
                   x->content_length > 0 ? (uint64_t)x->content_length : 0);
    return 0;
}

static void request_complete(struct nr_h2 *h, struct nr_xp *xp)
{
    struct nr_exchange *x = &xp->x;
    struct nr_h2_stream *st = xp->stream;
    if (st->received) {
        return;
    }
    if (xp->x.many_messages && st->frame.have == 0) {
        nr_h2_received(h, xp);
        nr_xp_request(xp);
        return;
    }
    if (st->grpc && !nr_grpc_complete(&st->frame)) {
        nr_h2_refuse(xp, 400, st->frame.have ? NR_GRPC_INTERNAL : NR_GRPC_UNIMPLEMENTED,
                     st->frame.have ? "the call ended inside a message"
                                    : "a unary call takes exactly one message");
        return;
    }
    nr_h2_received(h, xp);
    if (st->small) {
        x->body = (struct nr_str){st->small_body, xp->body_len};
    } else if (x->body_buf) {
        x->body =
            (struct nr_str){(const char *)nr_buf_data(x->body_buf) + xp->body_off, xp->body_len};
    }
    nr_xp_request(xp);
}

/* --- frames --------------------------------------------------------------------------------- */

static int on_frame_recv(nghttp2_session *s, const nghttp2_frame *frame, void *user)
{
    struct nr_h2 *h = user;
    if (h->ended) {
        return 0;
    }
    if (frame->hd.type == NGHTTP2_WINDOW_UPDATE) {
        if (frame->window_update.window_size_increment >= DRIP_BYTES) {
            return 0;
        }
        if (h->drip_credit > 0) {
            h->drip_credit--;
        } else {
            nr_h2_charge_glitch(h);
        }
        return 0;
    }
    if (frame->hd.type != NGHTTP2_HEADERS && frame->hd.type != NGHTTP2_DATA) {
        return 0;
    }
    struct nr_xp *xp = stream_xp(s, frame->hd.stream_id);
    if (!xp) {
        return 0;
    }
    if (frame->hd.type == NGHTTP2_HEADERS && frame->headers.cat == NGHTTP2_HCAT_REQUEST) {
        head_complete(h, xp);
    }
    if (frame->hd.flags & NGHTTP2_FLAG_END_STREAM) {
        request_complete(h, xp);
    }
    return 0;
}

static int on_invalid_frame(nghttp2_session *s, const nghttp2_frame *frame, int error, void *user)
{
    (void)s;
    (void)frame;
    (void)error;
    nr_h2_charge_glitch(user);
    return 0;
}

static int on_stream_close(nghttp2_session *s, int32_t id, uint32_t error, void *user)
{
    (void)error;
    struct nr_h2 *h = user;
    struct nr_xp *xp = stream_xp(s, id);
    remember_ended(s, h, id);
    if (!xp) {
        return 0;
    }
    struct nr_h2_stream *st = xp->stream;
    nr_h2_received(h, xp);
    st->closed = true;
    nr_list_remove(&xp->x.node);
    nr_list_append(&h->closed, &xp->x.node);
    h->n_open--;
    if (st->begun) {
        if (!st->finished) {
            h->n_sending--;
        }
        /* bytes in the output queue may still point into the exchange */
        xp->emitted = true;
        xp->out_end = h->c->out_queued;
    }
    if (!st->finished) {
        nr_xp_drop(xp, h->ended ? NR_CANCEL_SHUTDOWN : NR_CANCEL_RESET);
    }
    if (xp->exposed && !xp->x.responded) {
        st->zombie = true;
        h->n_zombies++;
    }
    nr_conn_wake(h->c);
    return 0;
}

void nr_h2_recv_callbacks(nghttp2_session_callbacks *cb)
{
    nghttp2_session_callbacks_set_on_begin_frame_callback(cb, on_begin_frame);
    nghttp2_session_callbacks_set_on_begin_headers_callback(cb, on_begin_headers);
    nghttp2_session_callbacks_set_on_header_callback(cb, on_header);
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(cb, on_data);
    nghttp2_session_callbacks_set_on_frame_recv_callback(cb, on_frame_recv);
    nghttp2_session_callbacks_set_on_invalid_frame_recv_callback(cb, on_invalid_frame);
    nghttp2_session_callbacks_set_on_stream_close_callback(cb, on_stream_close);
}
