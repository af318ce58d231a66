/* HTTP/2, sending: responses → frames.
 *
 * nghttp2 packs head, DATA and trailers; its bytes are copied into the connection's output block,
 * so a unary answer is one piece of memory and, with all others of the turn, one send. Payload of
 * large bodies is not copied: send_data writes the frame header and refers to the body.
 *
 * Invariants
 *  1. Frames are written only in produce (nghttp2_session_send), never inside a callback of input.
 *  2. Names and values given to nghttp2 without copying live in the exchange's arena, or are
 *     constant; the exchange outlives its stream.
 *  3. Output stops when NR_OUT_HIGH_BYTES wait: nghttp2 keeps the rest as frames not yet packed.
 *
 * Threads: the loop's. */
#include "http/h2.h"

#define NV_MAX_FIXED 7u
#define NO_COPY (NGHTTP2_NV_FLAG_NO_COPY_NAME | NGHTTP2_NV_FLAG_NO_COPY_VALUE)

static nghttp2_nv field(struct nr_str name, struct nr_str value)
{
    return (nghttp2_nv){(uint8_t *)(uintptr_t)name.ptr, (uint8_t *)(uintptr_t)value.ptr, name.len,
                        value.len, NO_COPY};
}

/* Decimal text in the arena. */
static struct nr_str number(struct nr_arena *a, uint64_t n)
{
    char *to = nr_arena_alloc(a, 20);
    size_t i = 20;
    do {
        to[--i] = (char)('0' + n % 10);
        n /= 10;
    } while (n);
    return (struct nr_str){to + i, 20 - i};
}

/* A field value: control characters become blanks, which no frame may carry (RFC 9113 8.2.1). */
static struct nr_str clean(struct nr_arena *a, struct nr_str s)
{
    char *to = nr_arena_alloc(a, s.len + 1);
    for (size_t i = 0; i < s.len; i++) {
        unsigned char ch = (unsigned char)s.ptr[i];
        to[i] = ch < 0x20 || ch == 0x7f ? ' ' : (char)ch;
    }
    return nr_str_trim((struct nr_str){to, s.len});
}

/* --- data ----------------------------------------------------------------------------------- */

static bool submit_trailers(nghttp2_session *s, struct nr_xp *xp)
{
    struct nr_h2_stream *st = xp->stream;
    nghttp2_nv nv[2];
    size_t n = 0;
    nv[n++] = field(NR_STR("grpc-status"), number(&xp->x.arena, (uint64_t)st->grpc_status));
    if (st->grpc_message.len) {
        nv[n++] = field(NR_STR("grpc-message"), st->grpc_message);
    }
    return nghttp2_submit_trailer(s, st->id, nv, n) == 0;
}

/* Bytes of parts, gRPC prefixes in front, copied into nghttp2's buffer. */
static ssize_t read_parts(nghttp2_session *s, int32_t id, uint8_t *buf, size_t len, uint32_t *flags,
                          nghttp2_data_source *source, void *user)
{
    (void)id;
    struct nr_h2 *h = user;
    struct nr_xp *xp = source->ptr;
    struct nr_h2_stream *st = xp->stream;
    size_t n = 0;
    xp->pumping = true; /* parts that `done` writes are found by this loop */
    while (n < len && !nr_list_empty(&xp->parts)) {
        struct nr_part *p = nr_container_of(xp->parts.next, struct nr_part, node);
        size_t head = st->grpc ? NR_GRPC_PREFIX_BYTES : 0, left = head + p->len - p->at;
        size_t take = NR_MIN(len - n, left),
               in_head = p->at < head ? NR_MIN(take, head - p->at) : 0;
        memcpy(buf + n, p->prefix + p->at, in_head);
        if (take > in_head) {
            memcpy(buf + n + in_head, (const uint8_t *)p->data + (p->at + in_head - head),
                   take - in_head);
        }
        n += take;
        p->at += take;
        if (take == left) {
            nr_list_remove(&p->node);
            nr_h2_credit_message(h);
            p->done(p);
        }
    }
    xp->pumping = false;
    st->tx_bytes += n;
    st->tx_ns = nr_h2_now(h);
    if ((xp->ended || st->cut) && nr_list_empty(&xp->parts)) {
        *flags |= NGHTTP2_DATA_FLAG_EOF;
        if (st->grpc) {
            *flags |= NGHTTP2_DATA_FLAG_NO_END_STREAM;
            if (!submit_trailers(s, xp)) {
                return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
            }
        }
    } else if (n == 0) {
        st->waits = true; /* for the app; pump goes on */
        return NGHTTP2_ERR_DEFERRED;
    }
    return (ssize_t)n;
}

static ssize_t read_data(nghttp2_session *s, int32_t id, uint8_t *buf, size_t len, uint32_t *flags,
                         nghttp2_data_source *source, void *user)
{
    (void)id;
    (void)buf;
    (void)user;
    struct nr_xp *xp = source->ptr;
    struct nr_h2_stream *st = xp->stream;
    size_t n = (size_t)NR_MIN((uint64_t)len, st->left);
    *flags |= NGHTTP2_DATA_FLAG_NO_COPY;
    if (n == st->left) {
        *flags |= NGHTTP2_DATA_FLAG_EOF;
        if (st->trailers) {
            *flags |= NGHTTP2_DATA_FLAG_NO_END_STREAM;
            if (!submit_trailers(s, xp)) {
                return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
            }
        }
    }
    return (ssize_t)n;
}

/* Larger frames than 16 KiB when the peer takes them: fewer headers and calls for tensors. */
static ssize_t frame_length(nghttp2_session *s, uint8_t type, int32_t id, int32_t conn_window,
                            int32_t stream_window, uint32_t max_frame, void *user)
{
    (void)s;
    (void)type;
    (void)id;
    (void)user;
    int32_t n = NR_MIN(NR_MIN(conn_window, stream_window), 1 << 16);
    return NR_MIN(n, (int32_t)NR_MIN(max_frame, (uint32_t)1 << 16));
}

static int send_data(nghttp2_session *s, nghttp2_frame *frame, const uint8_t *head, size_t len,
                     nghttp2_data_source *source, void *user)
{
    (void)s;
    (void)frame; /* padding is never asked for */
    struct nr_h2 *h = user;
    struct nr_conn *c = h->c;
    struct nr_xp *xp = source->ptr;
    struct nr_h2_stream *st = xp->stream;
    if (nr_conn_pending(c) >= NR_OUT_HIGH_BYTES) {
        return NGHTTP2_ERR_WOULDBLOCK;
    }
    nr_conn_out_copy(c, head, 9);
    st->left -= len;
    st->tx_bytes += len;
    st->tx_ns = nr_h2_now(h);
    while (len > 0) {
        const struct nr_iov *v = st->iov;
        size_t n = NR_MIN(len, v->len - st->iov_off);
        const uint8_t *from = (const uint8_t *)v->ptr + st->iov_off;
        if (n <= 2048) {
            nr_conn_out_copy(c, from, n);
        } else {
            nr_conn_out_ref(c, from, n);
        }
        st->iov_off += n;
        len -= n;
        if (st->iov_off == v->len) {
            st->iov++;
            st->iov_off = 0;
        }
    }
    return 0;
}

static ssize_t send_bytes(nghttp2_session *s, const uint8_t *data, size_t len, int flags,
                          void *user)
{
    (void)s;
    (void)flags;
    struct nr_h2 *h = user;
    if (nr_conn_pending(h->c) >= NR_OUT_HIGH_BYTES) {
        return NGHTTP2_ERR_WOULDBLOCK;
    }
    nr_conn_out_copy(h->c, data, len);
    return (ssize_t)len;
}

static int on_frame_send(nghttp2_session *s, const nghttp2_frame *frame, void *user)
{
    struct nr_h2 *h = user;
    if (frame->hd.type == NGHTTP2_RST_STREAM) {
        /* resets that the peer provoked cost as much as those it sends (CVE-2025-8671) */
        if (frame->rst_stream.error_code != NGHTTP2_NO_ERROR) {
            nr_h2_charge_reset(h);
        }
        return 0;
    }
    if (frame->hd.type != NGHTTP2_HEADERS && frame->hd.type != NGHTTP2_DATA) {
        return 0;
    }
    h->ping_credit = true;
    if (!(frame->hd.flags & NGHTTP2_FLAG_END_STREAM)) {
        return 0;
    }
    struct nr_xp *xp = nghttp2_session_get_stream_user_data(s, frame->hd.stream_id);
    if (xp && xp->stream->begun && !xp->stream->finished) {
        xp->stream->finished = true;
        h->n_sending--;
        if (nghttp2_session_get_stream_remote_close(s, frame->hd.stream_id) == 0) {
            /* answered before the request was complete: the rest is not wanted (RFC 9113 8.1) */
            (void)nghttp2_submit_rst_stream(s, NGHTTP2_FLAG_NONE, frame->hd.stream_id,
                                            NGHTTP2_NO_ERROR);
        }
    }
    return 0;
}

void nr_h2_send_callbacks(nghttp2_session_callbacks *cb)
{
    nghttp2_session_callbacks_set_send_callback(cb, send_bytes);
    nghttp2_session_callbacks_set_send_data_callback(cb, send_data);
    nghttp2_session_callbacks_set_data_source_read_length_callback(cb, frame_length);
    nghttp2_session_callbacks_set_on_frame_send_callback(cb, on_frame_send);
}

/* --- responses ------------------------------------------------------------------------------ */

/* read: where the body comes from, NULL none. */
static void submit(struct nr_xp *xp, const nghttp2_nv *nv, size_t n,
                   nghttp2_data_source_read_callback read)
{
    struct nr_h2 *h = xp->x.conn->h2;
    struct nr_h2_stream *st = xp->stream;
    nghttp2_data_provider provider = {.source.ptr = xp, .read_callback = read};
    st->begun = true;
    st->tx_ns = st->tx_since_ns = nr_h2_now(h);
    h->n_sending++;
    int rc = nghttp2_submit_response(h->s, st->id, nv, n, read ? &provider : NULL);
    if (rc != 0) { /* out of memory: the stream cannot be answered */
        (void)nghttp2_submit_rst_stream(h->s, NGHTTP2_FLAG_NONE, st->id, NGHTTP2_INTERNAL_ERROR);
    }
    nr_conn_wake(h->c);
}

/* The parts of a body, kept for as long as frames are made of them. */
static void keep_body(struct nr_xp *xp, const struct nr_response *r, bool prefix)
{
    struct nr_h2_stream *st = xp->stream;
    struct nr_iov *iov = nr_arena_alloc(&xp->x.arena, (r->n_body + 1) * sizeof(*iov));
    unsigned n = 0;
    uint64_t total = 0;
    if (prefix) {
        iov[n++] = (struct nr_iov){st->prefix, NR_GRPC_PREFIX_BYTES};
    }
    for (unsigned i = 0; i < r->n_body; i++) {
        if (r->body[i].len) {
            iov[n++] = r->body[i];
            total += r->body[i].len;
        }
    }
    st->iov = iov;
    st->n_iov = n;
    st->iov_off = 0;
    st->left = total + (prefix ? NR_GRPC_PREFIX_BYTES : 0);
    xp->x.response_bytes = total;
}

/* What the app adds, and the client's own name of the request. */
static size_t put_more(nghttp2_nv *nv, size_t n, struct nr_exchange *x, const struct nr_response *r)
{
    struct nr_arena *a = &x->arena;
    if (NR_UNLIKELY(x->known.request_id.len > 0)) { /* checked as it came, and kept until on_done */
        nv[n++] = field(NR_STR("x-request-id"), x->known.request_id);
    }
    for (unsigned i = 0; i < r->n_headers; i++) {
        nv[n++] = field(clean(a, r->headers[i].name), clean(a, r->headers[i].value));
    }
    return n;
}

static void respond_http(struct nr_xp *xp, const struct nr_response *r)
{
    struct nr_exchange *x = &xp->x;
    struct nr_arena *a = &x->arena;
    nghttp2_nv *nv = nr_arena_alloc(a, (NV_MAX_FIXED + r->n_headers) * sizeof(*nv));
    size_t n = 0;
    keep_body(xp, r, false);
    uint64_t total = x->response_bytes;
    bool no_content = r->status == 204 || r->status == 304 || r->status < 200;
    bool body = !no_content && x->method != NR_HEAD && total > 0;
    uint32_t date_len;
    const char *date = nr_engine_date(x->conn->e, &date_len);
    nv[n++] =
        field(NR_STR(":status"), r->status == 200 ? NR_STR("200") : number(a, (uint64_t)r->status));
    /* "date: …\r\n" */
    nv[n++] = field(NR_STR("date"), nr_arena_str(a, (struct nr_str){date + 6, date_len - 8}));
    if (r->content_type.len) {
        nv[n++] = field(NR_STR("content-type"), clean(a, r->content_type));
    }
    if (!no_content && (x->method != NR_HEAD || total > 0)) {
        nv[n++] = field(NR_STR("content-length"), number(a, total));
    }
    n = put_more(nv, n, x, r);
    if (!body) {
        x->response_bytes = 0;
    }
    x->response_status = r->status;
    submit(xp, nv, n, body ? read_data : NULL);
}

static struct nr_str grpc_message(struct nr_arena *a, struct nr_str s)
{
    if (s.len == 0) {
        return (struct nr_str){NULL, 0};
    }
    s.len =
        NR_MIN(s.len, (size_t)2048); /* three times this fits in what clients take as metadata */
    char *to = nr_arena_alloc(a, 3 * s.len);
    return (struct nr_str){to, nr_grpc_message(to, s)};
}

static void respond_grpc(struct nr_xp *xp, const struct nr_response *r)
{
    struct nr_exchange *x = &xp->x;
    struct nr_arena *a = &x->arena;
    struct nr_h2_stream *st = xp->stream;
    nghttp2_nv *nv = nr_arena_alloc(a, (NV_MAX_FIXED + r->n_headers) * sizeof(*nv));
    size_t n = 0;
    nv[n++] = field(NR_STR(":status"), NR_STR("200"));
    nv[n++] = field(NR_STR("content-type"), NR_STR("application/grpc"));
    n = put_more(nv, n, x, r);
    st->grpc_status = r->grpc_status;
    st->grpc_message = grpc_message(a, r->grpc_message);
    x->response_status = r->grpc_status;
    if (r->grpc_status == NR_GRPC_OK) {
        uint64_t total = 0;
        for (unsigned i = 0; i < r->n_body; i++) {
            total += r->body[i].len;
        }
        if (total <= UINT32_MAX) {
            nr_grpc_prefix(st->prefix, (uint32_t)total);
            keep_body(xp, r, true);
            st->trailers = true;
            submit(xp, nv, n, read_data);
            return;
        }
        st->grpc_status = NR_GRPC_RESOURCE_EXHAUSTED; /* no frame can carry it */
        st->grpc_message = NR_STR("response is larger than a gRPC message may be");
        x->response_status = st->grpc_status;
    }
    /* trailers only */
    nv[n++] = field(NR_STR("grpc-status"), number(a, (uint64_t)st->grpc_status));
    if (st->grpc_message.len) {
        nv[n++] = field(NR_STR("grpc-message"), st->grpc_message);
    }
    submit(xp, nv, n, NULL);
}

void nr_h2_respond(struct nr_xp *xp, const struct nr_response *r)
{
    struct nr_h2_stream *st = xp->stream;
    nr_h2_received(xp->x.conn->h2, xp); /* what still comes of the request is not wanted */
    if (st->grpc) {
        respond_grpc(xp, r);
    } else {
        respond_http(xp, r);
    }
}

/* --- responses in parts --------------------------------------------------------------------- */

void nr_h2_begin(struct nr_xp *xp, const struct nr_response *r)
{
    struct nr_exchange *x = &xp->x;
    struct nr_arena *a = &x->arena;
    struct nr_h2_stream *st = xp->stream;
    nghttp2_nv *nv = nr_arena_alloc(a, (NV_MAX_FIXED + r->n_headers) * sizeof(*nv));
    size_t n = 0;
    struct nr_str type = st->grpc ? NR_STR("application/grpc") : clean(a, r->content_type);
    nv[n++] = field(NR_STR(":status"),
                    st->grpc || r->status == 200 ? NR_STR("200") : number(a, (uint64_t)r->status));
    if (!st->grpc) {
        uint32_t date_len;
        const char *date = nr_engine_date(x->conn->e, &date_len);
        nv[n++] = field(NR_STR("date"), nr_arena_str(a, (struct nr_str){date + 6, date_len - 8}));
    }
    if (type.len) {
        nv[n++] = field(NR_STR("content-type"), type);
    }
    n = put_more(nv, n, x, r);
    if (!x->many_messages) {
        nr_h2_received(x->conn->h2, xp);
    }
    x->response_status = st->grpc ? NR_GRPC_OK : r->status;
    if (x->method == NR_HEAD) {
        xp->no_body = true;
        submit(xp, nv, n, NULL);
    } else {
        submit(xp, nv, n, read_parts);
    }
}

void nr_h2_pump(struct nr_xp *xp)
{
    struct nr_h2_stream *st = xp->stream;
    struct nr_h2 *h = xp->x.conn->h2;
    if (st->grpc && !nr_list_empty(&xp->parts)) {
        struct nr_part *p = nr_container_of(xp->parts.prev, struct nr_part, node);
        nr_grpc_prefix(p->prefix, (uint32_t)p->len);
    }
    if (xp->no_body) {
        nr_xp_drop_parts(xp);
    }
    if (st->waits && !xp->pumping) {
        st->waits = false;
        st->tx_ns = nr_h2_now(h); /* from now on it is the peer who keeps us waiting */
        (void)nghttp2_session_resume_data(h->s, st->id);
    }
    nr_conn_wake(xp->x.conn);
}

void nr_h2_end(struct nr_xp *xp, int grpc_status, struct nr_str message)
{
    struct nr_h2_stream *st = xp->stream;
    nr_h2_received(xp->x.conn->h2, xp);
    st->grpc_status = grpc_status;
    st->grpc_message = grpc_message(&xp->x.arena, message);
    xp->x.response_status = grpc_status;
}

void nr_h2_refuse(struct nr_xp *xp, int http_status, int grpc_status, const char *text)
{
    static const struct nr_header identity = {NR_STR_INIT("grpc-accept-encoding"),
                                              NR_STR_INIT("identity")};
    struct nr_h2_stream *st = xp->stream;
    if (st->begun && xp->streaming && !xp->ended) {
        nr_xp_drop(xp, NR_CANCEL_REFUSED);
        if (st->grpc) { /* trailers can still say why */
            nr_h2_end(xp, grpc_status, nr_str_from(text));
            st->cut = true;
            nr_h2_pump(xp);
        } else {
            (void)nghttp2_submit_rst_stream(xp->x.conn->h2->s, NGHTTP2_FLAG_NONE, st->id,
                                            NGHTTP2_INTERNAL_ERROR);
        }
        return;
    }
    if (st->begun) {
        return; /* the app has answered already */
    }
    nr_xp_drop(xp, NR_CANCEL_REFUSED);
    struct nr_str body = nr_error_body(&xp->x.arena, text);
    struct nr_iov iov = {body.ptr, body.len};
    struct nr_response r = {.status = http_status,
                            .content_type = NR_STR_INIT("application/json"),
                            .body = &iov,
                            .n_body = 1,
                            .grpc_status = grpc_status,
                            .grpc_message = nr_str_from(text)};
    if (grpc_status == NR_GRPC_UNIMPLEMENTED && http_status == 415) {
        r.headers = &identity;
        r.n_headers = 1;
    }
    nr_h2_respond(xp, &r);
}
