/* HTTP/2 and gRPC on a connection in memory, against a client made of raw frames: requests whole
 * and byte by byte, limits, refusals, deadlines, and the floods that a server must survive
 * (rapid reset, MadeYouReset, CONTINUATION, PING, SETTINGS, empty DATA, window drips). */
#include "http_harness.h"

#include <nghttp2/nghttp2.h>

#include "http/h2.h"

enum {
    DATA,
    HEADERS,
    PRIORITY,
    RST,
    SETTINGS,
    PUSH,
    PING,
    GOAWAY,
    WINDOW,
    CONTINUATION
};
#define END_STREAM 1
#define ACK 1
#define END_HEADERS 4
#define PADDED 8

static const char preface[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

static void frame(struct fix *f, unsigned type, unsigned flags, uint32_t id, const void *data,
                  size_t len)
{
    uint8_t head[9] = {(uint8_t)(len >> 16), (uint8_t)(len >> 8), (uint8_t)len,
                       (uint8_t)type,        (uint8_t)flags,      (uint8_t)(id >> 24),
                       (uint8_t)(id >> 16),  (uint8_t)(id >> 8),  (uint8_t)id};
    feed(f, head, 9);
    if (len) {
        feed(f, data, len);
    }
}

static void frame32(struct fix *f, unsigned type, uint32_t id, uint32_t value)
{
    uint8_t v[4] = {(uint8_t)(value >> 24), (uint8_t)(value >> 16), (uint8_t)(value >> 8),
                    (uint8_t)value};
    frame(f, type, 0, id, v, 4);
}

/* HPACK without tables or Huffman: literal, never indexed, new name (RFC 7541 section 6.2.2). */
static void literal(struct nr_text *t, const char *name, const char *value)
{
    const char *parts[] = {name, value};
    nr_text_add(t, "\0", 1);
    for (size_t i = 0; i < 2; i++) {
        size_t n = strlen(parts[i]);
        if (n < 127) {
            uint8_t b = (uint8_t)n;
            nr_text_add(t, &b, 1);
        } else {
            uint8_t b = 127;
            nr_text_add(t, &b, 1);
            for (n -= 127; n >= 128; n >>= 7) {
                b = (uint8_t)(n | 128);
                nr_text_add(t, &b, 1);
            }
            b = (uint8_t)n;
            nr_text_add(t, &b, 1);
        }
        nr_text_str(t, parts[i]);
    }
}

static struct nr_text block;

static void request(const char *method, const char *path)
{
    nr_text_clear(&block);
    literal(&block, ":method", method);
    literal(&block, ":scheme", "http");
    literal(&block, ":path", path);
    literal(&block, ":authority", "a");
}

static void request_grpc(const char *path)
{
    request("POST", path);
    literal(&block, "content-type", "application/grpc");
    literal(&block, "te", "trailers");
}

static void send_headers(struct fix *f, uint32_t id, unsigned flags)
{
    frame(f, HEADERS, END_HEADERS | flags, id, block.data, block.len);
}

static void connect_h2(struct fix *f)
{
    fix_connect(f);
    feedz(f, preface);
    frame(f, SETTINGS, 0, 0, NULL, 0);
}

/* What the server said: decoded from the output. */
struct reply {
    char status[8];
    char grpc_status[8];
    char grpc_message[256];
    char headers[2048];
    struct nr_text body;
    bool end;
    uint32_t reset; /* error + 1 */
    bool any;
};
static struct reply replies[512];
static uint32_t goaway; /* error + 1 */
static unsigned n_acks, n_goaways;
static nghttp2_hd_inflater *inflater;
static size_t parsed_to;

static void parse_block(struct reply *r, const uint8_t *p, size_t len)
{
    for (;;) {
        nghttp2_nv nv;
        int flags = 0;
        ssize_t n = nghttp2_hd_inflate_hd2(inflater, &nv, &flags, p, len, 1);
        assert_true(n >= 0);
        p += n;
        len -= (size_t)n;
        if (flags & NGHTTP2_HD_INFLATE_EMIT) {
            struct nr_str name = {(const char *)nv.name, nv.namelen};
            struct nr_str value = {(const char *)nv.value, nv.valuelen};
            size_t at = strlen(r->headers);
            (void)snprintf(r->headers + at, sizeof(r->headers) - at,
                           NR_STR_FMT ": " NR_STR_FMT "\n", NR_STR_ARG(name), NR_STR_ARG(value));
            if (nr_str_is(name, ":status")) {
                keep(r->status, sizeof(r->status), value);
            } else if (nr_str_is(name, "grpc-status")) {
                keep(r->grpc_status, sizeof(r->grpc_status), value);
            } else if (nr_str_is(name, "grpc-message")) {
                keep(r->grpc_message, sizeof(r->grpc_message), value);
            }
        }
        if (flags & NGHTTP2_HD_INFLATE_FINAL) {
            assert_int_equal(nghttp2_hd_inflate_end_headers(inflater), 0);
            return;
        }
    }
}

static uint32_t be32(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

/* Reads whole frames that came since the last call. */
static void parse_output(struct fix *f)
{
    while (parsed_to + 9 <= f->out.len) {
        const uint8_t *p = (const uint8_t *)f->out.data + parsed_to;
        size_t len = (size_t)p[0] << 16 | (size_t)p[1] << 8 | p[2];
        if (parsed_to + 9 + len > f->out.len) {
            return;
        }
        unsigned type = p[3], flags = p[4];
        uint32_t id = be32(p + 5);
        p += 9;
        parsed_to += 9 + len;
        struct reply *r = &replies[id / 2 % NR_COUNT(replies)];
        switch (type) {
        case DATA:
            nr_text_add(&r->body, p, len);
            break;
        case HEADERS:
            assert_true(flags & END_HEADERS);
            parse_block(r, p, len);
            break;
        case RST:
            r->reset = be32(p) + 1;
            break;
        case GOAWAY:
            goaway = be32(p + 4) + 1;
            n_goaways++;
            break;
        case PING:
        case SETTINGS:
            n_acks += flags & ACK;
            break;
        default:
            break;
        }
        if (id) {
            r->any = true;
            if ((type == DATA || type == HEADERS) && (flags & END_STREAM)) {
                assert_false(r->end);
                r->end = true;
            }
        }
    }
}

static void forget(void)
{
    for (size_t i = 0; i < NR_COUNT(replies); i++) {
        nr_text_done(&replies[i].body);
        replies[i] = (struct reply){0};
        nr_text_init(&replies[i].body, 64 << 20);
    }
    goaway = n_acks = n_goaways = 0;
    parsed_to = 0;
    if (inflater) {
        nghttp2_hd_inflate_del(inflater);
    }
    assert_int_equal(nghttp2_hd_inflate_new(&inflater), 0);
}

static void run(struct fix *f)
{
    pump(f);
    parse_output(f);
}

static struct reply *reply(uint32_t id)
{
    return &replies[id / 2];
}

static void again(struct fix *f)
{
    fix_hangup(f);
    forget();
    connect_h2(f);
}

static int setup(void **state)
{
    struct fix *f = fix_new();
    *state = f;
    nr_text_init(&block, 1 << 20);
    forget();
    again(f);
    return 0;
}

static int teardown(void **state)
{
    forget();
    nghttp2_hd_inflate_del(inflater);
    inflater = NULL;
    nr_text_done(&block);
    fix_free(*state);
    return 0;
}

static void message(struct fix *f, uint32_t id, unsigned flags, const char *text)
{
    size_t n = strlen(text);
    char wire_form[2048] = {0, 0, 0, (char)(n >> 8), (char)n};
    memcpy(wire_form + 5, text, n);
    frame(f, DATA, flags, id, wire_form, n + 5);
}

static void test_get(void **state)
{
    struct fix *f = *state;
    request("GET", "/x?y");
    literal(&block, "user-agent", "t");
    send_headers(f, 1, END_STREAM);
    run(f);
    assert_string_equal(reply(1)->status, "200");
    assert_string_equal(reply(1)->body.data, "ok");
    assert_non_null(strstr(reply(1)->headers, "content-type: text/plain\n"));
    assert_non_null(strstr(reply(1)->headers, "content-length: 2\n"));
    assert_non_null(strstr(reply(1)->headers, "date: "));
    assert_true(reply(1)->end);
    assert_int_equal(reply(1)->reset, 0);
    assert_string_equal(f->seen[0].path, "/x");
    assert_int_equal(f->seen[0].n_headers, 1);
    assert_int_equal(f->n_done, 1);
    assert_int_equal(f->seen[0].status, 200);
    assert_int_equal(f->sends, 1); /* settings, acknowledgement, head, body: one send */
    assert_false(f->closed);

    request("HEAD", "/");
    send_headers(f, 3, END_STREAM);
    run(f);
    assert_true(reply(3)->end);
    assert_int_equal(reply(3)->body.len, 0);
    assert_non_null(strstr(reply(3)->headers, "content-length: 2\n"));
}

static void test_every_split(void **state)
{
    struct fix *f = *state;
    struct nr_text all;
    nr_text_init(&all, 1 << 20);
    request_grpc("/s/M");
    send_headers(f, 1, 0);
    message(f, 1, END_STREAM, "hello");
    request("POST", "/p");
    send_headers(f, 3, 0);
    frame(f, DATA, END_STREAM, 3, "abc", 3);
    frame(f, PING, 0, 0, "12345678", 8);
    nr_text_add(&all, f->in.data, f->in.len);
    f->mode = ANSWER_HOOK;
    for (size_t split = 0; split <= all.len; split++) {
        fix_hangup(f);
        forget();
        fix_connect(f);
        f->piece = split == 0 ? 1 : SIZE_MAX;
        feed(f, all.data, split);
        run(f);
        feed(f, all.data + split, all.len - split);
        run(f);
        assert_string_equal(reply(1)->grpc_status, "0");
        assert_int_equal(reply(1)->body.len, 7);
        assert_memory_equal(reply(1)->body.data, "\0\0\0\0\2ok", 7);
        assert_string_equal(reply(3)->status, "200");
        assert_int_equal(f->n_done, 2);
        assert_int_equal(f->seen[0].body.len, 5);
        assert_memory_equal(f->seen[0].body.data, "hello", 5);
        assert_memory_equal(f->seen[1].body.data, "abc", 3);
        assert_int_equal(n_acks, 2);
        assert_false(f->closed);
    }
    nr_text_done(&all);
}

static void test_grpc(void **state)
{
    struct fix *f = *state;
    request_grpc("/inference.GRPCInferenceService/ModelInfer");
    send_headers(f, 1, 0);
    message(f, 1, END_STREAM, "hello");
    run(f);
    assert_string_equal(reply(1)->headers, ":status: 200\ncontent-type: application/grpc\n"
                                           "grpc-status: 0\ngrpc-message: said 100%25 so%0A\n");
    assert_true(reply(1)->end);
    assert_int_equal(f->sends, 1);
    assert_int_equal(f->seen[0].status, NR_GRPC_OK);

    f->reply_grpc = NR_GRPC_INVALID_ARGUMENT; /* an error: trailers only */
    request_grpc("/s/M");
    send_headers(f, 3, 0);
    message(f, 3, END_STREAM, "hello");
    run(f);
    assert_string_equal(reply(3)->grpc_status, "3");
    assert_string_equal(reply(3)->grpc_message, "said 100%25 so%0A");
    assert_int_equal(reply(3)->body.len, 0);
    assert_int_equal(f->seen[1].status, NR_GRPC_INVALID_ARGUMENT);

    f->reply_grpc = 0; /* an empty message, and an empty answer */
    f->reply.len = 0;
    request_grpc("/s/M");
    send_headers(f, 5, 0);
    message(f, 5, END_STREAM, "");
    run(f);
    assert_string_equal(reply(5)->grpc_status, "0");
    assert_int_equal(reply(5)->body.len, 5);
}

static void test_grpc_framing(void **state)
{
    struct fix *f = *state;
    static const struct {
        const char *name, *bytes;
        size_t len;
        const char *status, *message;
    } forms[] = {
        {"none", "", 0, "12", "a unary call takes exactly one message"},
        {"half a prefix", "\0\0\0", 3, "13", "the call ended inside a message"},
        {"half a message", "\0\0\0\0\5hel", 8, "13", "the call ended inside a message"},
        {"two", "\0\0\0\0\1a\0\0\0\0\1b", 12, "12", "a unary call takes exactly one message"},
        {"compressed", "\1\0\0\0\1a", 6, "12",
         "compressed messages are not supported: send identity encoding"},
        {"flag", "\7\0\0\0\1a", 6, "13", "malformed gRPC message prefix"},
        {"4 GiB",
         "\0\xff\xff\xff\xff"
         "a",
         6, "8", "message is larger than the limit of 67108864 bytes"},
    };
    uint64_t live = nr_buf_live_bytes();
    for (size_t i = 0; i < NR_COUNT(forms); i++) {
        for (unsigned end = 0; end < 2; end++) { /* END_STREAM with the data, or behind it */
            again(f);
            request_grpc("/s/M");
            send_headers(f, 1, 0);
            frame(f, DATA, end ? END_STREAM : 0, 1, forms[i].bytes, forms[i].len);
            run(f);
            if (!end) {
                frame(f, DATA, END_STREAM, 1, NULL, 0);
                run(f);
            }
            assert_string_equal(reply(1)->status, "200");
            assert_string_equal(reply(1)->grpc_status, forms[i].status);
            assert_string_equal(reply(1)->grpc_message, forms[i].message);
            assert_false(f->seen[0].requested);
            assert_true(f->seen[0].cancelled);
            assert_int_equal(f->seen[0].why, NR_CANCEL_REFUSED);
            assert_int_equal(f->n_done, 1);
            assert_false(f->closed);
            assert_true(nr_buf_live_bytes() == live);
        }
    }
    again(f);
    request_grpc("/s/M");
    send_headers(f, 1, 0);
    frame(f, DATA, 0, 1, "\1\0\0\0\1a", 6);
    run(f);
    assert_non_null(strstr(reply(1)->headers, "grpc-accept-encoding: identity\n"));
    assert_true(reply(1)->end);
    assert_int_equal(reply(1)->reset, NGHTTP2_NO_ERROR + 1); /* the rest is not wanted */
}

static void test_grpc_deadline(void **state)
{
    struct fix *f = *state;
    f->mode = ANSWER_LATER;
    f->reply_grpc = NR_GRPC_DEADLINE_EXCEEDED;
    request_grpc("/s/M");
    literal(&block, "grpc-timeout", "50m");
    send_headers(f, 1, 0);
    message(f, 1, END_STREAM, "hello");
    run(f);
    wait_ns(f, 49 * NR_MS_NS);
    assert_int_equal(f->n_cancel, 0);
    wait_ns(f, 2 * NR_MS_NS);
    parse_output(f);
    assert_int_equal(f->n_cancel, 1);
    assert_int_equal(f->seen[0].why, NR_CANCEL_DEADLINE);
    assert_string_equal(reply(1)->grpc_status, "4");

    request_grpc("/s/M");
    literal(&block, "grpc-timeout", "soon");
    send_headers(f, 3, 0);
    run(f);
    assert_string_equal(reply(3)->grpc_status, "13");
    assert_string_equal(reply(3)->grpc_message, "malformed grpc-timeout");
    assert_int_equal(f->n_seen, 1);
}

static void test_head_limits(void **state)
{
    struct fix *f = *state;
    char value[9000];
    for (unsigned more = 0; more < 2; more++) { /* count */
        again(f);
        request("GET", "/");
        for (unsigned i = 0; i < f->limits.max_fields + more; i++) {
            literal(&block, "cookie", "c"); /* crumbs count one by one */
        }
        send_headers(f, 1, END_STREAM);
        run(f);
        assert_string_equal(reply(1)->status, more ? "431" : "200");
        assert_int_equal(f->n_seen, 1 - more);
        assert_false(f->closed);
    }
    for (unsigned more = 0; more < 2; more++) { /* one field */
        again(f);
        memset(value, 'v', sizeof(value));
        value[f->limits.max_field_bytes - 1 + more] = '\0';
        request("GET", "/");
        literal(&block, "x", value);
        send_headers(f, 1, END_STREAM);
        run(f);
        assert_string_equal(reply(1)->status, more ? "431" : "200");
    }
    for (unsigned more = 0; more < 2; more++) { /* all fields: 32 of 1,024 bytes with their 32 */
        again(f);
        request("GET", "/");
        memset(value, 'v', sizeof(value));
        for (unsigned i = 0; i < 32; i++) {
            value[1024 - 33 + (i == 31 ? more : 0)] = '\0';
            literal(&block, "x", value);
            value[1024 - 33] = 'v';
        }
        frame(f, HEADERS, END_STREAM, 1, block.data, 16384);
        frame(f, CONTINUATION, 0, 1, block.data + 16384, 10000);
        frame(f, CONTINUATION, END_HEADERS, 1, block.data + 26384, block.len - 26384);
        run(f);
        assert_string_equal(reply(1)->status, more ? "431" : "200");
    }
    for (unsigned more = 0; more < 2; more++) { /* target */
        again(f);
        memset(value, 'p', sizeof(value));
        value[0] = '/';
        value[f->limits.max_request_line_bytes - 5 + more] = '\0';
        f->limits.max_field_bytes = f->limits.max_request_line_bytes;
        request("GET", value);
        send_headers(f, 1, END_STREAM);
        run(f);
        assert_string_equal(reply(1)->status, more ? "414" : "200");
    }
}

static void test_bad_heads(void **state)
{
    struct fix *f = *state;
    static const struct {
        const char *name, *value, *status;
    } forms[] = {
        {"content-type", "b", "400"},  {"host", "b", "400"},
        {"authorization", "x", "400"}, {"inference-header-content-length", "1", "400"},
        {"accept", "x", "200"},
    };
    for (size_t i = 0; i < NR_COUNT(forms); i++) {
        again(f);
        request("GET", "/");
        literal(&block, "content-type", "a");
        literal(&block, "authorization", "a");
        literal(&block, "accept", "a");
        literal(&block, "inference-header-content-length", "1");
        literal(&block, forms[i].name, forms[i].value);
        send_headers(f, 1, END_STREAM);
        run(f);
        assert_string_equal(reply(1)->status, forms[i].status);
    }
    static const char *const targets[] = {"/a#b", "/\x7f", "x", "//a", "/%2e%2e"};
    for (size_t i = 0; i < NR_COUNT(targets); i++) {
        again(f);
        request("GET", targets[i]);
        send_headers(f, 1, END_STREAM);
        run(f);
        if (i < 3) { /* by us or, where nghttp2 knows better, by a reset */
            assert_int_equal(f->n_seen, 0);
            assert_true(reply(1)->reset || strcmp(reply(1)->status, "400") == 0);
        } else {
            assert_string_equal(f->seen[0].path, targets[i]);
        }
    }
    static const char *const hop[] = {"connection", "keep-alive", "proxy-connection",
                                      "transfer-encoding", "upgrade"};
    for (size_t i = 0; i < NR_COUNT(hop); i++) {
        again(f);
        request("GET", "/");
        literal(&block, hop[i], "chunked");
        send_headers(f, 1, END_STREAM);
        run(f);
        assert_int_equal(f->n_seen, 0);
        assert_int_equal(reply(1)->reset, NGHTTP2_PROTOCOL_ERROR + 1);
    }
}

static void test_body_limits(void **state)
{
    struct fix *f = *state;
    static char body[1001];
    f->body_limit = 1000;
    for (unsigned more = 0; more < 2; more++) {
        for (unsigned stated = 0; stated < 2; stated++) {
            again(f);
            request("POST", "/");
            if (stated) {
                literal(&block, "content-length", more ? "1001" : "1000");
            }
            send_headers(f, 1, 0);
            frame(f, DATA, END_STREAM, 1, body, 1000 + more);
            run(f);
            assert_string_equal(reply(1)->status, more ? "413" : "200");
            assert_int_equal(f->n_cancel, more);
        }
    }
    again(f); /* wrong content-length: nghttp2 resets, the app hears of it once */
    request("POST", "/");
    literal(&block, "content-length", "5");
    send_headers(f, 1, 0);
    frame(f, DATA, END_STREAM, 1, "abc", 3);
    run(f);
    assert_int_equal(reply(1)->reset, NGHTTP2_PROTOCOL_ERROR + 1);
    assert_int_equal(f->seen[0].why, NR_CANCEL_RESET);
    assert_false(f->seen[0].requested);
}

/* 3 MiB up and down through 64 KiB windows, with a reader that takes it in small pieces. */
static void test_large(void **state)
{
    struct fix *f = *state;
    const size_t size = 3 << 20;
    char *big = nr_alloc(size + 5);
    for (size_t i = 0; i < size; i++) {
        big[i + 5] = (char)(i % 251);
    }
    big[2] = (char)(size >> 16);
    f->reply = (struct nr_iov){big + 5, size};
    f->align_at = 13;
    f->room = 100000;
    request_grpc("/s/M");
    send_headers(f, 1, 0);
    for (size_t at = 0; at < size + 5; at += 16384) {
        size_t n = NR_MIN((size_t)16384, size + 5 - at);
        frame(f, DATA, at + n == size + 5 ? END_STREAM : 0, 1, big + at, n);
        if (at % (1 << 20) == 0) {
            run(f);
        }
    }
    run(f);
    assert_true(f->seen[0].requested);
    assert_int_equal(f->seen[0].body_misalign, 0);
    assert_int_equal(f->seen[0].body.len, size);
    assert_memory_equal(f->seen[0].body.data, big + 5, size);
    for (unsigned i = 0; i < 2000 && !reply(1)->end; i++) {
        f->room = 50000;
        if (i % 2) {
            frame32(f, WINDOW, 0, 40000);
            frame32(f, WINDOW, 1, 40000);
        }
        run(f);
        assert_true(nr_conn_pending(f->c) < 2 * NR_OUT_HIGH_BYTES);
    }
    assert_true(reply(1)->end);
    assert_int_equal(reply(1)->body.len, size + 5);
    assert_memory_equal(reply(1)->body.data + 5, big + 5, size);
    assert_string_equal(reply(1)->grpc_status, "0");
    assert_int_equal(f->n_done, 1);
    nr_free(big);
}

static void test_concurrency(void **state)
{
    struct fix *f = *state;
    f->mode = ANSWER_LATER;
    f->cancel_leaves_open = true;
    request("GET", "/");
    for (uint32_t i = 0; i < 101; i++) {
        send_headers(f, 2 * i + 1, END_STREAM);
    }
    run(f);
    assert_int_equal(f->n_seen, 100);
    assert_int_equal(reply(201)->reset, NGHTTP2_REFUSED_STREAM + 1);
    /* reset streams still occupy the app: they count until it answers */
    for (uint32_t i = 0; i < 50; i++) {
        frame32(f, RST, 2 * i + 1, NGHTTP2_CANCEL);
    }
    for (uint32_t i = 101; i < 111; i++) {
        send_headers(f, 2 * i + 1, END_STREAM);
    }
    run(f);
    assert_int_equal(f->n_cancel, 50);
    assert_int_equal(f->n_seen, 100);
    for (unsigned i = 0; i < 20; i++) {
        answer(f, f->seen[i].x);
    }
    run(f);
    assert_int_equal(f->n_done, 20);
    for (uint32_t i = 111; i < 141; i++) {
        send_headers(f, 2 * i + 1, END_STREAM);
    }
    run(f);
    assert_int_equal(f->n_seen, 120);
    assert_false(f->closed);
}

static void assert_cut(struct fix *f)
{
    parse_output(f);
    assert_int_equal(goaway, NGHTTP2_ENHANCE_YOUR_CALM + 1);
    assert_true(f->shut || f->closed);
    assert_int_equal(atomic_load(&f->e.counters.abuse_closed), 1);
    atomic_store(&f->e.counters.abuse_closed, 0);
}

/* CVE-2023-44487: HEADERS and RST_STREAM, as fast as they go. */
static void test_rapid_reset(void **state)
{
    struct fix *f = *state;
    f->mode = ANSWER_LATER;
    request("GET", "/");
    unsigned n = 0;
    for (; n < 250 && !f->shut && !f->closed; n++) {
        send_headers(f, 2 * n + 1, END_STREAM);
        frame32(f, RST, 2 * n + 1, NGHTTP2_CANCEL);
        run(f);
    }
    assert_cut(f);
    assert_int_equal(n, f->limits.h2_reset_burst + 1);
    assert_int_equal(f->n_done, f->n_seen);
}

/* A peer that cancels 20 a second, for ever, is a client. */
static void test_slow_resets(void **state)
{
    struct fix *f = *state;
    request("GET", "/");
    f->limits.keep_alive_ns = 3600 * (uint64_t)NR_S_NS;
    f->mode = ANSWER_LATER;
    for (unsigned n = 0; n < 290; n++) {
        send_headers(f, 2 * n + 1, END_STREAM);
        frame32(f, RST, 2 * n + 1, NGHTTP2_CANCEL);
        wait_ns(f, NR_S_NS / 19);
    }
    parse_output(f);
    assert_int_equal(goaway, 0);
    assert_false(f->closed);
}

/* CVE-2025-8671: make the server reset. Every primitive is charged, whatever frame it is. */
static void test_made_you_reset(void **state)
{
    struct fix *f = *state;
    f->mode = ANSWER_LATER;
    for (unsigned kind = 0; kind < 5; kind++) {
        again(f);
        unsigned n = 0;
        for (; n < 260 && !f->shut && !f->closed; n++) {
            uint32_t id = 2 * n + 1;
            request("POST", "/");
            if (kind == 3) {
                literal(&block, "content-length", "7");
            }
            send_headers(f, id, kind == 4 ? END_STREAM : 0);
            switch (kind) {
            case 0:
                frame32(f, WINDOW, id, 0);
                break;
            case 1:
                frame32(f, WINDOW, id, 0x7fffffff);
                break;
            case 2:
                frame(f, PRIORITY, 0, id, "123", 3); /* wrong length */
                break;
            case 3:
                frame(f, DATA, END_STREAM, id, "abc", 3); /* not what content-length said */
                break;
            default:
                frame(f, DATA, END_STREAM, id, "abc", 3); /* behind END_STREAM */
                break;
            }
            run(f);
        }
        assert_true(f->shut || f->closed);
        assert_true(goaway);
        assert_true(n <= f->limits.h2_reset_burst + 1);
        atomic_store(&f->e.counters.abuse_closed, 0);
    }
}

static void test_continuation_flood(void **state)
{
    struct fix *f = *state;
    static char bytes[16384];
    for (unsigned kind = 0; kind < 3; kind++) {
        again(f);
        request("GET", "/");
        frame(f, HEADERS, END_STREAM, 1, block.data, block.len);
        size_t sent = 0;
        nr_text_clear(&block);
        literal(&block, "x", "y");
        memset(bytes, 0, sizeof(bytes));
        for (unsigned i = 0; i < 200 && !f->shut && !f->closed; i++) {
            if (kind == 0) { /* empty ones */
                frame(f, CONTINUATION, 0, 1, NULL, 0);
                sent += 9;
            } else if (kind == 1) { /* small ones */
                frame(f, CONTINUATION, 0, 1, block.data, block.len);
                sent += 9 + block.len;
            } else { /* full ones: a literal whose value never ends */
                memcpy(bytes, "\0\1x\x7f\xff\xff\xff\x0f", i == 0 ? 8 : 0);
                frame(f, CONTINUATION, 0, 1, bytes, sizeof(bytes));
                sent += sizeof(bytes);
            }
            run(f);
        }
        assert_true(f->shut || f->closed);
        assert_true(goaway);
        assert_true(sent <= 80000);
        assert_int_equal(f->n_seen, 0);
        atomic_store(&f->e.counters.abuse_closed, 0);
    }
}

static void flood(struct fix *f, unsigned type, unsigned flags, uint32_t id, const void *data,
                  size_t len, unsigned expected)
{
    unsigned n = 0;
    for (; n < 5000 && !f->shut && !f->closed; n++) {
        frame(f, type, flags, id, data, len);
        run(f);
    }
    if (n > expected + 2 || !(f->shut || f->closed)) {
        print_error("frame type %u: %u sent\n", type, n);
    }
    assert_cut(f);
    assert_true(n <= expected + 2);
    assert_true(n > expected / 2); /* and not at the first one */
}

static void test_floods(void **state)
{
    struct fix *f = *state;
    const unsigned burst = f->limits.h2_glitch_burst;
    flood(f, PING, 0, 0, "12345678", 8, burst);
    again(f);
    flood(f, SETTINGS, 0, 0, NULL, 0, burst);
    again(f);
    flood(f, PRIORITY, 0, 3, "\0\0\0\0\1", 5, burst);
    again(f);
    f->mode = ANSWER_LATER;
    request("POST", "/");
    send_headers(f, 1, 0);
    flood(f, DATA, 0, 1, NULL, 0, burst);
    again(f);
    send_headers(f, 1, 0);
    flood(f, WINDOW, 0, 1, "\0\0\0\1", 4, burst + 4); /* four come with the request */
}

/* gRPC clients measure bandwidth with a PING for every piece of data: no flood. */
static void test_pings_with_data(void **state)
{
    struct fix *f = *state;
    for (unsigned i = 0; i < 290; i++) {
        request_grpc("/s/M");
        send_headers(f, 2 * i + 1, 0);
        message(f, 2 * i + 1, END_STREAM, "x");
        frame(f, PING, 0, 0, "12345678", 8);
        run(f);
    }
    for (unsigned i = 0; i < 900; i++) { /* still within the bucket */
        frame(f, PING, 0, 0, "12345678", 8);
    }
    run(f);
    assert_int_equal(goaway, 0);
    assert_false(f->closed);
}

/* gRPC's C core widens its window by the 5 bytes of a prefix, twice for each message: no flood. */
static void test_small_window_updates_of_messages(void **state)
{
    struct fix *f = *state;
    f->limits.h2_glitch_burst = 20;
    again(f);
    for (unsigned i = 0; i < 290; i++) {
        request_grpc("/s/M");
        send_headers(f, 2 * i + 1, 0);
        message(f, 2 * i + 1, END_STREAM, "x");
        frame32(f, WINDOW, 0, 5);
        frame32(f, WINDOW, 2 * i + 1, 5);
        run(f);
    }
    run(f);
    assert_int_equal(goaway, 0);
    assert_false(f->closed);
}

/* The peer sends and never reads: what waits is bounded, reading stops. */
static void test_not_reading(void **state)
{
    struct fix *f = *state;
    f->limits.h2_glitch_burst = 1000000;
    again(f);
    f->room = 0;
    for (unsigned i = 0; i < 200000; i++) {
        frame(f, PING, 0, 0, "12345678", 8);
    }
    run(f);
    assert_true(nr_conn_pending(f->c) <= NR_OUT_HIGH_BYTES + 17 * NR_SCRATCH_BYTES / 17);
    assert_true(f->shut || f->closed || !(f->events & EPOLLIN));
    wait_ns(f, 31 * NR_S_NS);
    assert_true(f->closed);
}

/* A zero window and one byte now and then: bounded in time, and nothing is copied meanwhile. */
static void test_window_drip(void **state)
{
    struct fix *f = *state;
    const size_t size = 4 << 20;
    char *big = nr_alloc(size);
    f->reply = (struct nr_iov){big, size};
    f->limits.h2_glitch_burst = 100000;
    again(f);
    request("GET", "/");
    for (unsigned i = 0; i < 50; i++) {
        send_headers(f, 2 * i + 1, END_STREAM);
    }
    run(f);
    assert_int_equal(f->n_seen, 50);
    assert_int_equal(f->n_done, 0);
    assert_int_equal(nr_conn_pending(f->c), 0);
    unsigned waited = 0;
    for (; waited < 70 && f->n_done < 50; waited++) {
        frame32(f, WINDOW, 0, 1);
        frame32(f, WINDOW, 1, 1);
        wait_ns(f, NR_S_NS);
    }
    assert_int_equal(f->n_done, 50);
    assert_true(waited >= 29 && waited <= 63);
    nr_free(big);
}

static void test_timeouts(void **state)
{
    struct fix *f = *state;
    request("POST", "/");
    send_headers(f, 1, 0);
    frame(f, DATA, 0, 1, "abc", 3);
    run(f);
    wait_ns(f, 9 * NR_S_NS);
    assert_int_equal(f->n_cancel, 0);
    wait_ns(f, 3 * NR_S_NS);
    parse_output(f);
    assert_string_equal(reply(1)->status, "408");
    assert_false(f->closed);

    again(f); /* a header block that does not end */
    request("GET", "/");
    frame(f, HEADERS, END_STREAM, 1, block.data, 10);
    run(f);
    wait_ns(f, 11 * NR_S_NS);
    assert_true(f->shut);

    again(f); /* idle */
    run(f);
    wait_ns(f, 59 * NR_S_NS);
    assert_false(f->shut);
    wait_ns(f, 2 * NR_S_NS);
    parse_output(f);
    assert_int_equal(goaway, NGHTTP2_NO_ERROR + 1);
    assert_true(f->shut);

    fix_hangup(f); /* half a preface */
    forget();
    fix_connect(f);
    feed(f, preface, 10);
    pump(f);
    wait_ns(f, 11 * NR_S_NS);
    assert_true(f->closed);
}

static void test_drain(void **state)
{
    struct fix *f = *state;
    f->mode = ANSWER_LATER;
    request("GET", "/");
    send_headers(f, 1, END_STREAM);
    run(f);
    nr_engine_drain(&f->e);
    run(f);
    assert_int_equal(n_goaways, 1); /* the notice */
    send_headers(f, 3, END_STREAM); /* was under way: still served */
    run(f);
    wait_ns(f, 400 * NR_MS_NS);
    parse_output(f);
    assert_int_equal(n_goaways, 2);
    assert_false(f->shut);
    answer(f, f->seen[0].x);
    answer(f, f->seen[1].x);
    run(f);
    assert_string_equal(reply(1)->status, "200");
    assert_string_equal(reply(3)->status, "200");
    assert_true(f->shut);
    f->e.draining = false;
}

static void test_half_close(void **state)
{
    struct fix *f = *state;
    f->mode = ANSWER_LATER;
    f->cancel_leaves_open = true;
    request("POST", "/");
    send_headers(f, 1, END_STREAM);
    send_headers(f, 3, 0);
    f->fin = true;
    run(f);
    assert_int_equal(f->n_cancel, 2);
    assert_int_equal(f->seen[0].why, NR_CANCEL_HALF_CLOSE);
    assert_int_equal(f->seen[1].why, NR_CANCEL_RESET);
    assert_false(f->closed);
    answer(f, f->seen[0].x);
    run(f);
    assert_string_equal(reply(1)->status, "200");
    assert_true(f->closed);
    answer(f, f->seen[1].x);
    run(f);
}

static void test_refused_by_app(void **state)
{
    struct fix *f = *state;
    f->mode = ANSWER_IN_HEAD;
    f->reply_status = 404;
    request("POST", "/");
    send_headers(f, 1, 0);
    run(f);
    assert_string_equal(reply(1)->status, "404");
    assert_true(reply(1)->end);
    assert_int_equal(reply(1)->reset, NGHTTP2_NO_ERROR + 1);
    frame(f, DATA, END_STREAM, 1, "late", 4); /* crossed the reset on its way */
    f->mode = ANSWER_NOW;
    f->reply_status = 200;
    request("GET", "/");
    send_headers(f, 3, END_STREAM);
    run(f);
    assert_string_equal(reply(3)->status, "200");
    assert_false(f->closed);

    request("POST", "/");
    literal(&block, "expect", "100-continue");
    send_headers(f, 5, 0);
    run(f);
    assert_string_equal(reply(5)->status, "100");
    frame(f, DATA, END_STREAM, 5, "x", 1);
    run(f);
    assert_string_equal(reply(5)->status, "200");
}

static void test_stream_numbers(void **state)
{
    struct fix *f = *state;
    request("GET", "/");
    send_headers(f, 5, END_STREAM);
    run(f);
    assert_string_equal(reply(5)->status, "200");
    send_headers(f, 3, END_STREAM); /* skipped: closed by the use of 5 */
    run(f);
    assert_int_equal(goaway, NGHTTP2_PROTOCOL_ERROR + 1);
    assert_true(f->shut);
    assert_int_equal(f->n_seen, 1);

    again(f);
    request("GET", "/");
    send_headers(f, 1, END_STREAM);
    run(f);
    assert_string_equal(reply(1)->status, "200");
    send_headers(f, 1, END_STREAM); /* it had said that nothing would follow */
    run(f);
    assert_int_equal(goaway, NGHTTP2_STREAM_CLOSED + 1);
    assert_true(f->shut);
    assert_int_equal(f->n_seen, 1);
}

/* Trailers of a stream that the server has reset meanwhile are passed over, and what came between
 * does not matter; of a stream that is long forgotten they are an error. */
static void test_late_trailers(void **state)
{
    struct fix *f = *state;
    f->mode = ANSWER_IN_HEAD;
    f->reply_status = 404;
    request("POST", "/");
    send_headers(f, 1, 0);
    run(f);
    assert_int_equal(reply(1)->reset, NGHTTP2_NO_ERROR + 1);
    f->mode = ANSWER_NOW;
    f->reply_status = 200;
    for (uint32_t i = 1; i < NR_H2_ENDED; i++) {
        request("GET", "/");
        send_headers(f, 2 * i + 1, END_STREAM);
        run(f);
        assert_string_equal(reply(2 * i + 1)->status, "200");
    }
    nr_text_clear(&block);
    literal(&block, "x-checksum", "1");
    send_headers(f, 1, END_STREAM);
    run(f);
    assert_false(f->closed);
    assert_int_equal(goaway, 0);
    request("GET", "/");
    send_headers(f, 2 * NR_H2_ENDED + 1, END_STREAM);
    run(f);
    assert_string_equal(reply(2 * NR_H2_ENDED + 1)->status, "200");
    nr_text_clear(&block);
    literal(&block, "x-checksum", "1");
    send_headers(f, 1, END_STREAM);
    run(f);
    assert_int_equal(goaway, NGHTTP2_PROTOCOL_ERROR + 1);
}

/* What a connection holds does not grow with the streams that it has had. */
static void test_ended_streams_hold_nothing(void **state)
{
    struct fix *f = *state;
    f->mode = ANSWER_NOW;
    uint64_t before = 0;
    for (uint32_t i = 0; i < 90; i++) {
        if (i == 10) {
            before = nr_mem_allocs();
        }
        request("GET", "/");
        send_headers(f, 2 * i + 1, END_STREAM);
        run(f);
        assert_string_equal(reply(2 * i + 1)->status, "200");
    }
    assert_true(nr_mem_allocs() - before <
                100); /* one each is the harness's; a kept stream has more */
    assert_true(f->e.h2_pool->held_bytes > 0);
    assert_true(nr_h2_pool_trim(f->e.h2_pool) > 0);
    assert_int_equal(f->e.h2_pool->held_bytes, 0);
    request("GET", "/");
    send_headers(f, 201, END_STREAM);
    run(f);
    assert_string_equal(reply(201)->status, "200");
}

static void test_no_allocation(void **state)
{
    struct fix *f = *state;
    f->mode = ANSWER_HOOK;
    uint64_t before = 0;
    pump(f); /* preface */
    for (unsigned i = 0; i < 250; i++) {
        if (i == 100) {
            before = nr_mem_allocs();
        }
        nr_text_clear(&f->in);
        f->in_at = 0;
        request_grpc("/inference.GRPCInferenceService/ModelInfer");
        send_headers(f, 2 * i + 1, 0);
        message(f, 2 * i + 1, END_STREAM, "hello");
        pump(f);
        assert_int_equal(f->n_done, i + 1);
        nr_text_clear(&f->out);
    }
    assert_true(nr_mem_allocs() - before <= 150); /* the harness's copies of the bodies */
}

static void test_failing_memory(void **state)
{
    struct fix *f = *state;
    static char body[20000];
    for (uint64_t n = 1; n < 60; n++) {
        again(f);
        if (f->e.h2_pool) { /* fresh pool: every piece is a new one */
            fix_hangup(f);
            nr_h2_pool_free(f->e.h2_pool);
            f->e.h2_pool = NULL;
            forget();
            fix_connect(f);
            feedz(f, preface);
            frame(f, SETTINGS, 0, 0, NULL, 0);
        }
        request_grpc("/s/M");
        send_headers(f, 1, 0);
        message(f, 1, END_STREAM, "hello");
        request("POST", "/p");
        send_headers(f, 3, 0);
        frame(f, DATA, 0, 3, body, 10000);
        frame(f, DATA, END_STREAM, 3, body, 10000);
        nr_buf_thread_done();
        nr_mem_fail_after(n, n % 2 == 0);
        for (int i = 0; i < 20 && !f->closed; i++) {
            if ((f->events & EPOLLIN) && f->in_at < f->in.len) {
                nr_conn_on_event(f->c, EPOLLIN);
            }
            (void)nr_loop_turn(f->loop, 0);
        }
        nr_mem_fail_after(0, false);
        pump(f);
    }
    again(f);
    request("GET", "/");
    send_headers(f, 1, END_STREAM);
    run(f);
    assert_string_equal(reply(1)->status, "200");
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_get),
        TEST(test_every_split),
        TEST(test_grpc),
        TEST(test_grpc_framing),
        TEST(test_grpc_deadline),
        TEST(test_head_limits),
        TEST(test_bad_heads),
        TEST(test_body_limits),
        TEST(test_large),
        TEST(test_concurrency),
        TEST(test_rapid_reset),
        TEST(test_slow_resets),
        TEST(test_made_you_reset),
        TEST(test_continuation_flood),
        TEST(test_floods),
        TEST(test_pings_with_data),
        TEST(test_small_window_updates_of_messages),
        TEST(test_not_reading),
        TEST(test_window_drip),
        TEST(test_timeouts),
        TEST(test_drain),
        TEST(test_half_close),
        TEST(test_refused_by_app),
        TEST(test_stream_numbers),
        TEST(test_late_trailers),
        TEST(test_ended_streams_hold_nothing),
        TEST(test_no_allocation),
        TEST(test_failing_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
