/* HTTP/1.1 and 1.0, server side: reading requests. Writing responses is in h1_write.c.
 *
 * llhttp (strict, no lenient flag) parses heads and chunked framing; everything that llhttp lets
 * pass but that two parsers could read differently is refused here, with 400 and a close: more than
 * one space in the request line, a Host that is missing, repeated or malformed, any transfer coding
 * but one "chunked", Transfer-Encoding in HTTP/1.0, repeated fields of which only one can count
 * (RFC 9112 sections 3, 6, 11). Bodies of stated length never pass through the parser: they are a
 * view on the receive block, or are received into their own buffer.
 *
 *   IDLE ──first byte──▶ HEAD ──on_head──┬─▶ VIEW ────┐
 *    ▲                                   ├─▶ BUF ─────┤ complete: on_request
 *    │                                   ├─▶ CHUNKED ─┤
 *    │                                   └─▶ SKIP ────┤ (answered in on_head)
 *    └────────────────────────────────────────────────┘     any error: answer, then END
 *
 * Invariants
 *  1. `cur` is the message being read and the last of `pipeline`; NULL exactly in IDLE and END.
 *  2. While cur is in HEAD or VIEW, c->in_start is the first byte of its head, and the spans are
 *     offsets from there, so a move of the bytes to another block needs no new parse.
 *  3. Responses enter the output queue in the order of `pipeline`; next_emit is the first that did
 *     not. A later one waits in its exchange (xp->held).
 *  4. The parser is reset for every message and never sees a byte behind it.
 *
 * Limits: request line 414, one field, all fields (+32 each), count, raw bytes of the head 431;
 * body 413; chunks 413; framing around chunks 400.
 * Threads: the loop's. */
#include "http/h1.h"

#include "base/clock.h"

#define SPANS_FIRST 24u
#define CHUNKS_FREE 1024u  /* so many chunks of any size … */
#define CHUNK_MEAN_MIN 64u /* … then their mean must be at least this */
#define FRAMING_FREE_BYTES 16384u
#define FRAMING_PER_CHUNK 24u

/* --- parser callbacks ----------------------------------------------------------------------- */

static int refuse(struct nr_h1 *h, int status, const char *text)
{
    h->error = status;
    h->error_text = text;
    return -1;
}

static uint32_t offset_of(const struct nr_conn *c, const char *at)
{
    return (uint32_t)((const uint8_t *)at - c->in->data) - c->in_start;
}

static int on_url(llhttp_t *p, const char *at, size_t len)
{
    struct nr_conn *c = p->data;
    struct nr_h1 *h = &c->h1;
    if (h->url_len == 0) {
        h->url_off = offset_of(c, at);
    }
    h->url_len += (uint32_t)len;
    /* the rest of the line is " HTTP/1.1" */
    if (h->url_off + h->url_len + 9 > c->e->limits->max_request_line_bytes) {
        return refuse(h, 414, "request line too long");
    }
    return 0;
}

static struct nr_span *new_span(struct nr_conn *c)
{
    struct nr_xp *xp = c->h1.cur;
    unsigned max = c->e->limits->max_fields;
    if (xp->n_spans == xp->cap_spans) {
        unsigned cap = NR_MIN(NR_MAX(xp->cap_spans * 2, SPANS_FIRST), max);
        struct nr_span *more = nr_arena_alloc(&xp->x.arena, cap * sizeof(*more));
        if (xp->n_spans) {
            memcpy(more, xp->spans, xp->n_spans * sizeof(*more));
        }
        xp->spans = more;
        xp->cap_spans = cap;
    }
    return &xp->spans[xp->n_spans];
}

static int check_field(struct nr_conn *c, uint32_t bytes)
{
    const struct nr_http_limits *l = c->e->limits;
    if (bytes > l->max_field_bytes) {
        return refuse(&c->h1, 431, "header field too large");
    }
    if (c->h1.head_bytes + bytes + 32 > l->max_head_bytes) {
        return refuse(&c->h1, 431, "header fields too large");
    }
    return 0;
}

static int on_field(llhttp_t *p, const char *at, size_t len)
{
    struct nr_conn *c = p->data;
    struct nr_h1 *h = &c->h1;
    struct nr_xp *xp = h->cur;
    if (!h->in_field) {
        if (xp->n_spans >= c->e->limits->max_fields) {
            return refuse(h, 431, "too many header fields");
        }
        h->in_field = true;
        *new_span(c) = (struct nr_span){.name = offset_of(c, at)};
    }
    struct nr_span *s = &xp->spans[xp->n_spans];
    s->name_len += (uint32_t)len;
    return check_field(c, s->name_len);
}

static int on_value(llhttp_t *p, const char *at, size_t len)
{
    struct nr_conn *c = p->data;
    struct nr_h1 *h = &c->h1;
    struct nr_span *s = &h->cur->spans[h->cur->n_spans];
    if (!h->in_value) {
        h->in_value = true;
        s->value = offset_of(c, at);
    }
    s->value_len += (uint32_t)len;
    return check_field(c, s->name_len + s->value_len);
}

static int on_value_complete(llhttp_t *p)
{
    struct nr_conn *c = p->data;
    struct nr_h1 *h = &c->h1;
    struct nr_span *s = &h->cur->spans[h->cur->n_spans++];
    h->head_bytes += s->name_len + s->value_len + 32;
    h->in_field = h->in_value = false;
    return 0;
}

static int on_headers_complete(llhttp_t *p)
{
    (void)p;
    return HPE_PAUSED;
}

static int on_chunk_header(llhttp_t *p)
{
    struct nr_conn *c = p->data;
    struct nr_h1 *h = &c->h1;
    const struct nr_http_limits *l = c->e->limits;
    uint64_t size = p->content_length;
    if (size == 0) {
        return 0;
    }
    h->chunks++;
    if (h->chunks > l->max_chunks ||
        (h->chunks > CHUNKS_FREE && (h->body_got + size) / h->chunks < CHUNK_MEAN_MIN)) {
        return refuse(h, 413, "too many small chunks");
    }
    uint64_t limit = h->cur->x.body_limit;
    if (size > limit || h->body_got > limit - size) {
        return refuse(h, 413, NULL);
    }
    return 0;
}

static int on_chunk_body(llhttp_t *p, const char *at, size_t len)
{
    struct nr_conn *c = p->data;
    struct nr_h1 *h = &c->h1;
    h->body_got += len;
    if (h->phase != H1_SKIP && !nr_xp_body_add(h->cur, at, len)) {
        return refuse(h, 503, "out of memory for the request body");
    }
    return 0;
}

static int on_message_complete(llhttp_t *p)
{
    (void)p;
    return HPE_PAUSED;
}

/* Heads and trailers. Fields of trailers are counted against the same limits and then forgotten. */
static const llhttp_settings_t settings = {
    .on_url = on_url,
    .on_header_field = on_field,
    .on_header_value = on_value,
    .on_header_value_complete = on_value_complete,
    .on_headers_complete = on_headers_complete,
    .on_chunk_header = on_chunk_header,
    .on_body = on_chunk_body,
    .on_message_complete = on_message_complete,
};

/* --- errors --------------------------------------------------------------------------------- */

/* Ends the connection with an answer of the engine to the message being read. */
void nr_h1_refuse(struct nr_conn *c, int status, const char *text)
{
    struct nr_h1 *h = &c->h1;
    struct nr_xp *xp = h->cur;
    nr_count(&c->e->counters.parse_errors, 1);
    bool answered = xp->x.responded;
    h->phase = H1_END;
    h->cur = NULL;
    c->in_start = c->in_end;
    if (answered) {
        nr_conn_close_soon(c, true);
        return;
    }
    nr_xp_drop(xp, NR_CANCEL_REFUSED);
    h->has_dropped = true;
    struct nr_str body = nr_error_body(&xp->x.arena, text);
    struct nr_iov iov = {body.ptr, body.len};
    struct nr_response r = {.status = status,
                            .content_type = NR_STR_INIT("application/json"),
                            .body = &iov,
                            .n_body = 1,
                            .close = true};
    nr_h1_emit(xp, &r);
}

static void refuse_body_size(struct nr_conn *c)
{
    struct nr_xp *xp = c->h1.cur;
    struct nr_str text =
        nr_arena_fmt(&xp->x.arena, "request body is larger than the limit of %llu bytes",
                     (unsigned long long)xp->x.body_limit);
    nr_h1_refuse(c, 413, text.ptr);
}

/* The parser knows a fixed set of methods; another token is a method that we do not implement. */
static bool unknown_method(const struct nr_conn *c)
{
    const uint8_t *p = c->in->data + c->in_start;
    size_t len = c->in_end - c->in_start, i = 0;
    while (i < len && nr_token_char(p[i])) {
        i++;
    }
    return i > 0 && i < len && p[i] == ' ' && i <= 32;
}

/* "HTTP/2.7" is a version that we do not speak; "HTTP/1.32" and "http/1.1" are nonsense. */
static bool unknown_version(const struct nr_conn *c)
{
    const uint8_t *end = c->in->data + c->in_end;
    const uint8_t *p = c->in->data + c->in_start + c->h1.url_off + c->h1.url_len;
    return end - p >= 11 && memcmp(p, " HTTP/", 6) == 0 && p[6] >= '0' && p[6] <= '9' &&
           p[7] == '.' && p[8] >= '0' && p[8] <= '9' && p[9] == '\r' && p[10] == '\n';
}

static void refuse_parse(struct nr_conn *c, llhttp_errno_t err)
{
    struct nr_h1 *h = &c->h1;
    if (h->error) {
        if (h->error == 413 && !h->error_text) {
            refuse_body_size(c);
        } else {
            nr_h1_refuse(c, h->error, h->error_text);
        }
        return;
    }
    switch (err) {
    case HPE_INVALID_METHOD:
        if (unknown_method(c)) {
            nr_h1_refuse(c, 501, "method not implemented");
            return;
        }
        break;
    case HPE_INVALID_VERSION:
        if (unknown_version(c)) {
            nr_h1_refuse(c, 505, "HTTP version not supported: use HTTP/1.1, HTTP/1.0 or HTTP/2");
            return;
        }
        break;
    default:
        break;
    }
    nr_h1_refuse(
        c, 400,
        nr_arena_fmt(&h->cur->x.arena, "malformed HTTP message (%s)", llhttp_errno_name(err) + 4)
            .ptr);
}

/* --- body begins ---------------------------------------------------------------------------- */

/* The part of the body in front of the tail came with the head and stays in the receive block; the
 * rest goes where the app wants it. False: it has not come, or nothing is wanted. */
static bool begin_tail(struct nr_conn *c, uint32_t head_len, uint32_t have)
{
    struct nr_h1 *h = &c->h1;
    struct nr_exchange *x = &h->cur->x;
    struct nr_buf *to = NR_TAKE(x->tail_buf);
    size_t front = x->body_align_at;
    if (to == NULL || have < front || nr_buf_bytes(to) != h->body_left - front) {
        nr_buf_unref(to);
        return false;
    }
    const char *body = (const char *)c->in->data + c->in_start + head_len;
    x->body = (struct nr_str){body, front};
    x->tail = (struct nr_str){(const char *)nr_buf_data(to), nr_buf_bytes(to)};
    x->body_buf = to;
    h->cur->body_off = 0;
    h->cur->body_len = have - front;
    memcpy(nr_buf_data(to), body + front, have - front);
    return true;
}

/* Where the body goes. The head is complete, the app has seen it and has not answered. */
static void begin_body(struct nr_conn *c, uint32_t head_len)
{
    struct nr_h1 *h = &c->h1;
    struct nr_xp *xp = h->cur;
    h->body_start_ns = nr_loop_now(c->e->loop);
    if (h->parser.flags & F_CHUNKED) {
        c->in_start += head_len;
        h->phase = H1_CHUNKED;
        llhttp_resume(&h->parser);
        return;
    }
    uint32_t have = c->in_end - c->in_start - head_len;
    if (h->body_left > xp->x.body_limit) {
        refuse_body_size(c);
        return;
    }
    if (h->body_left <= c->in->cap - c->in_start - head_len) {
        nr_buf_unref(NR_TAKE(xp->x.tail_buf));
        h->phase = H1_VIEW;
        return;
    }
    /* `have` is less than the body: the body does not fit in the block, what came does */
    if (!begin_tail(c, head_len, have)) {
        if (!nr_xp_body_reserve(xp, NR_MAX(have, 1u), h->body_left)) {
            nr_h1_refuse(c, 503, "out of memory for the request body");
            return;
        }
        memcpy(nr_buf_data(xp->x.body_buf) + xp->body_off, c->in->data + c->in_start + head_len,
               have);
        xp->body_len = have;
    }
    h->body_got = have;
    h->body_left -= have;
    c->in_start += head_len + have;
    h->phase = H1_BUF;
}

/* The app answered in on_head and the connection goes on: reads past the small body. */
static void begin_skip(struct nr_conn *c, uint32_t head_len)
{
    c->in_start += head_len;
    c->h1.body_start_ns = nr_loop_now(c->e->loop);
    c->h1.phase = H1_SKIP;
}

static void on_head_complete(struct nr_conn *c)
{
    struct nr_h1 *h = &c->h1;
    struct nr_xp *xp = h->cur;
    struct nr_exchange *x = &xp->x;
    uint32_t head_len = h->parsed;
    xp->block = c->in;
    c->in->refs++;
    if (nr_h1_refuse_head(c, xp)) {
        return;
    }
    bool chunked = (h->parser.flags & F_CHUNKED) != 0;
    h->body_left = chunked ? 0 : h->parser.content_length;
    if (h->body_left > (uint64_t)INT64_MAX) {
        refuse_body_size(c);
        return;
    }
    x->content_length = chunked ? -1 : (int64_t)h->body_left;
    xp->keep_alive = llhttp_should_keep_alive(&h->parser) != 0;
    xp->expect = xp->expect && x->protocol == NR_HTTP_1_1 && (chunked || h->body_left > 0) &&
                 c->in_end == c->in_start + head_len;
    nr_xp_expose(xp);
    if (h->cur != xp) { /* answered, and the connection ends with that */
        return;
    }
    if (x->responded) {
        begin_skip(c, head_len);
        return;
    }
    begin_body(c, head_len);
    if (h->cur == xp) {
        nr_h1_continue(c);
    }
}

/* --- messages ------------------------------------------------------------------------------- */

static bool begin_message(struct nr_conn *c)
{
    struct nr_h1 *h = &c->h1;
    const uint8_t *p = c->in->data + c->in_start;
    uint32_t have = c->in_end - c->in_start;
    if (have == 0) {
        return false;
    }
    if (h->n_pipeline >= c->e->limits->max_pipelined || nr_conn_pending(c) >= NR_OUT_HIGH_BYTES) {
        h->paused = true;
        return false;
    }
    if (p[0] == '\r' && !h->crlf_skipped) {
        /* one empty line before a request is ignored (RFC 9112 section 2.2) */
        if (have == 1) {
            return false;
        }
        if (p[1] == '\n') {
            h->crlf_skipped = true;
            c->in_start += 2;
            return true;
        }
    }
    struct nr_xp *xp = nr_xp_new(c, &nr_h1_ops);
    nr_list_append(&h->pipeline, &xp->x.node);
    if (h->next_emit == &h->pipeline) {
        h->next_emit = &xp->x.node;
    }
    h->n_pipeline++;
    h->cur = xp;
    llhttp_reset(&h->parser);
    h->phase = H1_HEAD;
    h->parsed = h->url_off = h->url_len = h->head_bytes = 0;
    h->in_field = h->in_value = h->crlf_skipped = false;
    h->error = 0;
    h->body_left = h->body_got = h->chunks = h->framing_bytes = 0;
    if (p[0] == '\r' || p[0] == '\n') {
        nr_h1_refuse(c, 400, "malformed request line");
        return false;
    }
    return true;
}

static bool parse_head(struct nr_conn *c)
{
    struct nr_h1 *h = &c->h1;
    const struct nr_http_limits *l = c->e->limits;
    const char *p = (const char *)c->in->data + c->in_start + h->parsed;
    size_t len = c->in_end - c->in_start - h->parsed;
    if (len == 0) {
        return false;
    }
    llhttp_errno_t err = llhttp_execute(&h->parser, p, len);
    if (NR_LIKELY(err == HPE_PAUSED)) {
        h->parsed += (uint32_t)(llhttp_get_error_pos(&h->parser) - p);
        on_head_complete(c);
        return true;
    }
    if (err != HPE_OK) {
        refuse_parse(c, err);
        return false;
    }
    h->parsed += (uint32_t)len;
    /* blanks around values and the like are not fields, but memory all the same */
    if (h->parsed > (size_t)l->max_request_line_bytes + l->max_head_bytes + 8 * l->max_fields) {
        nr_h1_refuse(c, 431, "request head too large");
    }
    return false;
}

static bool body_complete(struct nr_conn *c)
{
    struct nr_h1 *h = &c->h1;
    struct nr_xp *xp = h->cur;
    bool skipped = h->phase == H1_SKIP;
    h->phase = xp->keep_alive ? H1_IDLE : H1_END;
    h->cur = NULL;
    c->in_want = 0;
    if (skipped) {
        nr_conn_wake(c); /* its response may have been sent long ago */
    } else {
        nr_xp_request(xp);
    }
    return c->state == NR_CONN_OPEN;
}

static bool view_body(struct nr_conn *c)
{
    struct nr_h1 *h = &c->h1;
    struct nr_exchange *x = &h->cur->x;
    uint64_t have = c->in_end - c->in_start - h->parsed;
    h->body_got = have;
    if (have < h->body_left) {
        c->in_want = (uint32_t)(h->body_left - have);
        return false;
    }
    x->body =
        (struct nr_str){(const char *)c->in->data + c->in_start + h->parsed, (size_t)h->body_left};
    c->in_start += h->parsed + (uint32_t)h->body_left;
    return body_complete(c);
}

static bool skip_body(struct nr_conn *c)
{
    struct nr_h1 *h = &c->h1;
    uint64_t n = NR_MIN((uint64_t)(c->in_end - c->in_start), h->body_left);
    c->in_start += (uint32_t)n;
    h->body_left -= n;
    h->body_got += n;
    return h->body_left == 0 ? body_complete(c) : false;
}

static bool chunked_body(struct nr_conn *c)
{
    struct nr_h1 *h = &c->h1;
    struct nr_xp *xp = h->cur;
    const char *p = (const char *)c->in->data + c->in_start;
    size_t len = c->in_end - c->in_start;
    if (len == 0) {
        return false;
    }
    uint64_t before = h->body_got;
    llhttp_errno_t err = llhttp_execute(&h->parser, p, len);
    if (err == HPE_PAUSED) {
        len = (size_t)(llhttp_get_error_pos(&h->parser) - p);
    } else if (err != HPE_OK) {
        refuse_parse(c, err);
        return false;
    }
    c->in_start += (uint32_t)len;
    h->framing_bytes += len - (h->body_got - before);
    if (h->framing_bytes >
        FRAMING_FREE_BYTES + c->e->limits->max_head_bytes + h->chunks * FRAMING_PER_CHUNK) {
        nr_h1_refuse(c, 400, "too many bytes around the chunks of the body");
        return false;
    }
    if (err == HPE_OK) {
        return false;
    }
    if (xp->x.body_buf) {
        xp->x.body =
            (struct nr_str){(const char *)nr_buf_data(xp->x.body_buf) + xp->body_off, xp->body_len};
    }
    return body_complete(c);
}

static void on_input(struct nr_conn *c)
{
    struct nr_h1 *h = &c->h1;
    bool more = true;
    while (more && c->state == NR_CONN_OPEN) {
        switch (h->phase) {
        case H1_IDLE:
            more = begin_message(c);
            break;
        case H1_HEAD:
            more = parse_head(c);
            break;
        case H1_VIEW:
            more = view_body(c);
            break;
        case H1_CHUNKED:
            more = chunked_body(c);
            break;
        case H1_SKIP:
            more = skip_body(c);
            break;
        default:
            more = false;
        }
    }
}

static bool body_dest(struct nr_conn *c, uint8_t **ret, size_t *ret_len)
{
    struct nr_h1 *h = &c->h1;
    if (h->phase != H1_BUF) {
        return false;
    }
    struct nr_xp *xp = h->cur;
    uint64_t room = nr_buf_bytes(xp->x.body_buf) - xp->body_off - xp->body_len;
    *ret = nr_buf_data(xp->x.body_buf) + xp->body_off + xp->body_len;
    *ret_len = (size_t)NR_MIN(room, h->body_left);
    return true;
}

static void on_body(struct nr_conn *c, size_t len)
{
    struct nr_h1 *h = &c->h1;
    struct nr_xp *xp = h->cur;
    xp->body_len += len;
    h->body_got += len;
    h->body_left -= len;
    if (h->body_left == 0) {
        if (xp->x.tail.ptr == NULL) {
            xp->x.body = (struct nr_str){(const char *)nr_buf_data(xp->x.body_buf) + xp->body_off,
                                         xp->body_len};
        }
        (void)body_complete(c);
        return;
    }
    if (!nr_xp_body_reserve(xp, xp->body_len + 1, xp->body_len + h->body_left)) {
        nr_h1_refuse(c, 503, "out of memory for the request body");
    }
}

/* --- ends ----------------------------------------------------------------------------------- */

static void on_eof(struct nr_conn *c)
{
    struct nr_h1 *h = &c->h1;
    if (h->cur) {
        nr_h1_refuse(c, 400, "the connection ended inside the request");
    }
    h->phase = H1_END;
    if (!c->e->limits->half_close) {
        NR_LIST_FOREACH_SAFE (n, tmp, &h->pipeline) {
            nr_xp_cancel(nr_container_of(n, struct nr_xp, x.node), NR_CANCEL_HALF_CLOSE);
        }
    }
    nr_conn_wake(c); /* nr_h1_sent ends the connection behind the last answer */
}

static bool wants_input(const struct nr_conn *c)
{
    return !c->h1.paused && c->h1.phase != H1_END;
}

static bool empty(const struct nr_conn *c)
{
    return nr_list_empty(&c->h1.pipeline);
}

static bool quiet(const struct nr_conn *c)
{
    return c->h1.next_emit == &c->h1.pipeline && !c->h1.cur;
}

static int64_t body_deadline(const struct nr_conn *c)
{
    const struct nr_h1 *h = &c->h1;
    const struct nr_http_limits *l = c->e->limits;
    int64_t d = c->rx_ns + (int64_t)l->body_idle_ns;
    if (l->body_min_rate_bytes) {
        int64_t fair =
            (int64_t)NR_MIN(h->body_got / l->body_min_rate_bytes, UINT64_C(1) << 31) * NR_S_NS;
        d = NR_MIN(d, h->body_start_ns + NR_MAX(10 * NR_S_NS, fair + NR_S_NS));
    }
    return d;
}

static int64_t deadline(const struct nr_conn *c)
{
    const struct nr_h1 *h = &c->h1;
    switch (h->phase) {
    case H1_IDLE:
        return empty(c) ? NR_MAX(c->rx_ns, c->tx_ns) + (int64_t)c->e->limits->keep_alive_ns
                        : NR_NEVER;
    case H1_HEAD:
        return h->cur->x.start_ns + (int64_t)c->e->limits->head_timeout_ns;
    case H1_END:
        return NR_NEVER;
    default:
        return body_deadline(c);
    }
}

static void on_deadline(struct nr_conn *c)
{
    struct nr_h1 *h = &c->h1;
    if (h->cur) {
        nr_h1_refuse(c, 408,
                     h->phase == H1_HEAD ? "the request head did not arrive in time"
                                         : "the request body did not arrive in time");
    } else {
        nr_conn_close_soon(c, false);
    }
}

static void resume(struct nr_conn *c)
{
    c->h1.paused = false;
    if (c->in) {
        on_input(c);
    }
}

static void drain(struct nr_conn *c)
{
    if (c->h1.phase == H1_IDLE && empty(c)) {
        nr_conn_close_soon(c, false);
    }
}

static void h1_abort(struct nr_conn *c, nr_cancel_reason why)
{
    struct nr_h1 *h = &c->h1;
    h->phase = H1_END;
    h->cur = NULL;
    h->has_dropped = true;
    /* the app may answer inside on_cancel; that only marks, so the list stays as it is */
    NR_LIST_FOREACH_SAFE (n, tmp, &h->pipeline) {
        struct nr_xp *xp = nr_container_of(n, struct nr_xp, x.node);
        xp->held = NULL;
        nr_xp_drop(xp, why);
    }
}

static void done(struct nr_conn *c)
{
    (void)c;
}

void nr_h1_start(struct nr_conn *c)
{
    struct nr_h1 *h = &c->h1;
    nr_list_init(&h->pipeline);
    h->next_emit = &h->pipeline;
    llhttp_init(&h->parser, HTTP_REQUEST, &settings);
    h->parser.data = c;
    c->ops = &nr_h1_ops;
}

const struct nr_session_ops nr_h1_ops = {
    .on_input = on_input,
    .body_dest = body_dest,
    .on_body = on_body,
    .on_eof = on_eof,
    .respond = nr_h1_emit,
    .begin = nr_h1_begin,
    .pump = nr_h1_pump,
    .on_sent = nr_h1_sent,
    .wants_input = wants_input,
    .deadline = deadline,
    .on_deadline = on_deadline,
    .resume = resume,
    .drain = drain,
    .abort = h1_abort,
    .quiet = quiet,
    .empty = empty,
    .done = done,
};
