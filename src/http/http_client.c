/* Blocking client: connect, send, read; llhttp (response mode, strict) frames the answer.
 *
 * DESIGN. One deadline covers all: each wait is a poll for what is left of it. The request asks the
 * server to close, so nothing of a connection is kept. An answer may come before the request was sent
 * whole (413): sending stops then and the answer counts.
 *
 * INVARIANTS
 *  1. Nothing that a peer sends makes more than max_head_bytes + max_body_bytes of memory.
 *  2. Fields that we write hold no CR, LF or NUL, so a value cannot become another field.
 *
 * THREADS. No state; blocks the caller, so never on a loop.
 */
#include "http/http_client.h"

#include <errno.h>
#include <netdb.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include <llhttp.h>

#include "base/clock.h"
#include "io/file.h"
#include "io/sock.h"

#define TIMEOUT_NS (30 * NR_S_NS)
#define HEAD_BYTES ((size_t)64 << 10)
#define BODY_BYTES ((size_t)64 << 20)
#define MAX_FIELDS 128u
#define READ_BYTES 8192u

/* --- URLs -------------------------------------------------------------------------------------- */

static nr_status parse_authority(struct nr_http_url *u, struct nr_err *err)
{
    struct nr_str host = u->authority, digits = {0};
    size_t end = host.len;
    if (host.len > 0 && host.ptr[0] == '[') {
        int64_t close = nr_str_find(host, ']');
        end = close < 0 ? 0 : (size_t)close + 1;
    } else {
        int64_t colon = nr_str_find(host, ':');
        end = colon < 0 ? host.len : (size_t)colon;
    }
    uint64_t port = 80;
    digits = (struct nr_str){host.ptr + end, host.len - end};
    host.len = end;
    if (host.len > 1 && host.ptr[0] == '[') {
        host = (struct nr_str){host.ptr + 1, host.len - 2};
    }
    if (digits.len > 0 && (digits.ptr[0] != ':' ||
                           !nr_str_to_u64((struct nr_str){digits.ptr + 1, digits.len - 1}, &port) ||
                           port == 0 || port > 65535)) {
        return nr_fail(err, NARU_INVALID, "'" NR_STR_FMT "' is no host with a port from 1 to 65535",
                       NR_STR_ARG(u->authority));
    }
    if (host.len == 0 || host.len >= sizeof(u->host) || nr_str_find(host, '@') >= 0) {
        return nr_fail(err, NARU_INVALID, "'" NR_STR_FMT "' is no host name or address",
                       NR_STR_ARG(u->authority));
    }
    memcpy(u->host, host.ptr, host.len);
    u->host[host.len] = '\0';
    u->port = (uint16_t)port;
    return NARU_OK;
}

nr_status nr_http_url_parse(struct nr_str text, struct nr_http_url *ret, struct nr_err *err)
{
    struct nr_str scheme = NR_STR("http://"), rest;
    *ret = (struct nr_http_url){.target = NR_STR("/")};
    for (size_t i = 0; i < text.len; i++) {
        unsigned char c = (unsigned char)text.ptr[i];
        if (c <= ' ' || c >= 0x7f || c == '#') {
            return nr_fail(err, NARU_INVALID,
                           "'" NR_STR_FMT
                           "' is no URL: spaces and the like must be percent-encoded",
                           NR_STR_ARG(text));
        }
    }
    if (!nr_str_starts(text, scheme)) {
        return nr_fail(err, NARU_UNSUPPORTED,
                       "'" NR_STR_FMT "' does not begin with http://; expected something like "
                       "http://127.0.0.1:8000",
                       NR_STR_ARG(text));
    }
    rest = (struct nr_str){text.ptr + scheme.len, text.len - scheme.len};
    size_t at = 0;
    while (at < rest.len && rest.ptr[at] != '/' && rest.ptr[at] != '?') {
        at++;
    }
    ret->authority = (struct nr_str){rest.ptr, at};
    if (at < rest.len) {
        ret->target = (struct nr_str){rest.ptr + at, rest.len - at};
    }
    return parse_authority(ret, err);
}

/* --- the answer -------------------------------------------------------------------------------- */

struct span {
    size_t name, name_len, value, value_len; /* offsets into the text of the head */
};

struct reader {
    llhttp_t parser;
    const struct nr_http_ask *ask;
    struct nr_text head, body;
    struct span spans[MAX_FIELDS];
    unsigned n_spans;
    bool in_value, done;
};

static struct reader *reader_of(llhttp_t *p)
{
    return p->data;
}

static int on_begin(llhttp_t *p)
{
    struct reader *r = reader_of(p);
    nr_text_clear(&r->head);
    nr_text_clear(&r->body);
    r->n_spans = 0;
    r->in_value = true; /* the next piece of a name begins a field */
    return 0;
}

static int on_field(llhttp_t *p, const char *at, size_t len)
{
    struct reader *r = reader_of(p);
    if (r->in_value) {
        if (r->n_spans == MAX_FIELDS) {
            r->head.failed = true;
            return -1;
        }
        r->spans[r->n_spans++] = (struct span){.name = r->head.len};
        r->in_value = false;
    }
    nr_text_add(&r->head, at, len);
    r->spans[r->n_spans - 1].name_len += len;
    return r->head.failed ? -1 : 0;
}

static int on_value(llhttp_t *p, const char *at, size_t len)
{
    struct reader *r = reader_of(p);
    struct span *s = &r->spans[r->n_spans - 1];
    if (!r->in_value) {
        s->value = r->head.len;
        r->in_value = true;
    }
    nr_text_add(&r->head, at, len);
    s->value_len += len;
    return r->head.failed ? -1 : 0;
}

static int on_status(llhttp_t *p, const char *at, size_t len)
{
    struct reader *r = reader_of(p);
    (void)at;
    /* The phrase is not kept, but bounded as what is. */
    if (len > r->head.cap) {
        r->head.failed = true;
    }
    return r->head.failed ? -1 : 0;
}

static int on_headers_complete(llhttp_t *p)
{
    struct reader *r = reader_of(p);
    return nr_str_is(r->ask->method, "HEAD") ? 1 : 0;
}

static int on_body(llhttp_t *p, const char *at, size_t len)
{
    struct reader *r = reader_of(p);
    nr_text_add(&r->body, at, len);
    return r->body.failed ? -1 : 0;
}

static int on_complete(llhttp_t *p)
{
    struct reader *r = reader_of(p);
    if (p->status_code < 200) {
        return 0; /* 100 Continue and its like: the answer follows */
    }
    r->done = true;
    return HPE_PAUSED;
}

static const llhttp_settings_t settings = {.on_message_begin = on_begin,
                                           .on_status = on_status,
                                           .on_header_field = on_field,
                                           .on_header_value = on_value,
                                           .on_headers_complete = on_headers_complete,
                                           .on_body = on_body,
                                           .on_message_complete = on_complete};

static nr_status why_not(const struct reader *r, llhttp_errno_t e, struct nr_err *err)
{
    if (r->head.failed) {
        return nr_fail(err, NARU_TOO_LARGE, "the head of the answer is larger than %zu bytes",
                       r->head.cap);
    }
    if (r->body.failed) {
        return nr_fail(err, NARU_TOO_LARGE, "the answer is larger than %zu bytes", r->body.cap);
    }
    return nr_fail(err, NARU_INVALID, "what answers there does not speak HTTP/1.1 (%s)",
                   llhttp_errno_name(e));
}

/* len 0: the connection has ended. */
static nr_status take_bytes(struct reader *r, const char *data, size_t len, struct nr_err *err)
{
    llhttp_errno_t e = len > 0 ? llhttp_execute(&r->parser, data, len) : llhttp_finish(&r->parser);
    if (r->done) {
        return NARU_OK;
    }
    if (e == HPE_PAUSED_UPGRADE || (e == HPE_OK && r->parser.status_code == 101)) {
        return nr_fail(err, NARU_INVALID, "the server changed to another protocol unasked");
    }
    if (e != HPE_OK && len > 0) {
        return why_not(r, e, err);
    }
    return len > 0 ? NARU_AGAIN
                   : nr_fail(err, NARU_IO, "the connection ended before the answer was complete");
}

static void give_answer(struct reader *r, struct nr_arena *a, struct nr_http_answer *ret)
{
    struct nr_header *fields = nr_arena_alloc(a, (r->n_spans + 1) * sizeof(*fields));
    size_t body_bytes = r->body.len;
    *ret = (struct nr_http_answer){
        .status = (unsigned)r->parser.status_code, .headers = fields, .n_headers = r->n_spans};
    char *head = nr_text_take(&r->head), *body = nr_text_take(&r->body);
    nr_arena_defer(a, nr_free, head);
    nr_arena_defer(a, nr_free, body);
    for (unsigned i = 0; i < r->n_spans; i++) {
        const struct span *s = &r->spans[i];
        for (size_t k = 0; k < s->name_len; k++) {
            char c = head[s->name + k];
            head[s->name + k] = (char)(c >= 'A' && c <= 'Z' ? c + 32 : c);
        }
        fields[i] = (struct nr_header){{head + s->name, s->name_len},
                                       nr_str_trim((struct nr_str){head + s->value, s->value_len})};
    }
    ret->body = (struct nr_str){body, body_bytes};
    ret->content_type = nr_http_answer_field(ret, "content-type");
}

/* --- the connection ---------------------------------------------------------------------------- */

/* Waits until fd is ready for `events` or the deadline passed. */
static nr_status wait_for(int fd, short events, int64_t until_ns, struct nr_err *err)
{
    for (;;) {
        int64_t left_ns = until_ns - nr_clock_now();
        if (left_ns <= 0) {
            return nr_fail(err, NARU_DEADLINE, "no answer in time");
        }
        struct pollfd p = {.fd = fd, .events = events};
        int n = poll(&p, 1, (int)NR_MIN((left_ns + NR_MS_NS - 1) / NR_MS_NS, INT64_C(60000)));
        if (n > 0) {
            return NARU_OK;
        }
        if (n < 0 && errno != EINTR) {
            return nr_fail(err, NARU_IO, "waiting for the connection failed (errno %d)", errno);
        }
    }
}

static nr_status connect_to(const struct nr_sock_addr *to, int64_t until_ns, int *ret_fd,
                            struct nr_err *err)
{
    int type = SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, failed = 0;
    nr_autoclose int fd = socket(to->addr.ss_family, type, 0);
    socklen_t len = sizeof(failed);
    if (fd < 0) {
        return nr_fail(err, NARU_IO, "no socket can be made (errno %d)", errno);
    }
    if (connect(fd, (const struct sockaddr *)&to->addr, to->len) != 0) {
        failed = errno;
        if (failed == EINPROGRESS) {
            nr_status st = wait_for(fd, POLLOUT, until_ns, err);
            if (st != NARU_OK) {
                return st;
            }
            if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &failed, &len) != 0) {
                failed = errno;
            }
        }
    }
    if (failed != 0) {
        char where[NR_SOCK_TEXT_MAX];
        nr_sock_addr_format(to, where);
        return nr_fail(err, NARU_UNAVAILABLE,
                       failed == ECONNREFUSED ? "nobody listens at %s"
                                              : "%s cannot be reached (errno %d)",
                       where, failed);
    }
    *ret_fd = fd;
    fd = -1; /* the caller's */
    return NARU_OK;
}

/* The first address of the name that takes the connection. */
static nr_status connect_by_name(const struct nr_http_url *u, int64_t until_ns, int *ret_fd,
                                 struct nr_err *err)
{
    struct nr_sock_addr to;
    if (strcmp(u->host, "*") != 0 && nr_sock_addr_parse(u->host, u->port, &to, NULL) == NARU_OK) {
        return connect_to(&to, until_ns, ret_fd, err);
    }
    struct addrinfo *found = NULL;
    const struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV};
    char port[8];
    snprintf(port, sizeof(port), "%u", u->port);
    int rc = getaddrinfo(u->host, port, &hints, &found);
    if (rc != 0) {
        return nr_fail(err, NARU_UNAVAILABLE, "host '%s' is not known (%s)", u->host,
                       gai_strerror(rc));
    }
    nr_status st = NARU_UNAVAILABLE;
    for (const struct addrinfo *i = found; i != NULL && st != NARU_OK; i = i->ai_next) {
        to = (struct nr_sock_addr){.len = i->ai_addrlen};
        memcpy(&to.addr, i->ai_addr, NR_MIN((size_t)i->ai_addrlen, sizeof(to.addr)));
        st = connect_to(&to, until_ns, ret_fd, err);
    }
    freeaddrinfo(found);
    return st;
}

/* Sends what is not sent yet; an answer that comes earlier ends it. */
static nr_status send_all(int fd, struct nr_str wire, int64_t until_ns, struct nr_err *err)
{
    while (wire.len > 0) {
        ssize_t n = send(fd, wire.ptr, wire.len, MSG_NOSIGNAL);
        if (n > 0) {
            wire = (struct nr_str){wire.ptr + n, wire.len - (size_t)n};
            continue;
        }
        if (n < 0 && (errno == EPIPE || errno == ECONNRESET)) {
            return NARU_OK; /* the answer, if there is one, says why */
        }
        if (n < 0 && errno != EAGAIN && errno != EINTR) {
            return nr_fail(err, NARU_IO, "sending failed (errno %d)", errno);
        }
        struct pollfd p = {.fd = fd, .events = POLLIN};
        if (poll(&p, 1, 0) > 0) {
            return NARU_OK;
        }
        nr_status st = wait_for(fd, POLLOUT | POLLIN, until_ns, err);
        if (st != NARU_OK) {
            return st;
        }
    }
    return NARU_OK;
}

static nr_status receive(int fd, struct reader *r, int64_t until_ns, struct nr_err *err)
{
    char data[READ_BYTES];
    nr_status st = NARU_AGAIN;
    while (st == NARU_AGAIN) {
        ssize_t n = recv(fd, data, sizeof(data), 0);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0 && errno == EAGAIN) {
            st = wait_for(fd, POLLIN, until_ns, err);
            st = st == NARU_OK ? NARU_AGAIN : st;
            continue;
        }
        st = take_bytes(r, data, n > 0 ? (size_t)n : 0, err);
    }
    return st;
}

/* --- the request ------------------------------------------------------------------------------- */

static bool clean(struct nr_str s)
{
    for (size_t i = 0; i < s.len; i++) {
        if (s.ptr[i] == '\r' || s.ptr[i] == '\n' || s.ptr[i] == '\0') {
            return false;
        }
    }
    return true;
}

static nr_status write_request(const struct nr_http_ask *ask, struct nr_text *t, struct nr_err *err)
{
    struct nr_str method = ask->method.len > 0 ? ask->method : NR_STR("GET");
    nr_text_add(t, method.ptr, method.len);
    nr_text_str(t, ask->url.target.ptr[0] == '?' ? " /" : " ");
    nr_text_add(t, ask->url.target.ptr, ask->url.target.len);
    nr_text_str(t, " HTTP/1.1\r\nHost: ");
    nr_text_add(t, ask->url.authority.ptr, ask->url.authority.len);
    nr_text_str(t, "\r\nConnection: close\r\n");
    for (unsigned i = 0; i < ask->n_headers; i++) {
        const struct nr_header *h = &ask->headers[i];
        if (!clean(h->name) || !clean(h->value) || h->name.len == 0) {
            return nr_fail(err, NARU_INVALID, "a header field of the request holds a line end");
        }
        nr_text_add(t, h->name.ptr, h->name.len);
        nr_text_str(t, ": ");
        nr_text_add(t, h->value.ptr, h->value.len);
        nr_text_str(t, "\r\n");
    }
    if (ask->body.len > 0 || nr_str_is(method, "POST") || nr_str_is(method, "PUT")) {
        nr_text_fmt(t, "Content-Length: %zu\r\n", ask->body.len);
    }
    nr_text_str(t, "\r\n");
    nr_text_add(t, ask->body.ptr, ask->body.len);
    return t->failed
               ? nr_fail(err, NARU_NOMEM, "no memory for a request of %zu bytes", ask->body.len)
               : NARU_OK;
}

nr_status nr_http_fetch(const struct nr_http_ask *ask, struct nr_arena *a,
                        struct nr_http_answer *ret, struct nr_err *err)
{
    int64_t until_ns = nr_clock_now() + (ask->timeout_ns > 0 ? ask->timeout_ns : TIMEOUT_NS);
    nr_autoclose int fd = -1;
    nr_cleanup(nr_text_done) struct nr_text wire = {0};
    nr_text_init(&wire, SIZE_MAX / 2);
    nr_status st = write_request(ask, &wire, err);
    if (st == NARU_OK) {
        st = connect_by_name(&ask->url, until_ns, &fd, err);
    }
    if (st == NARU_OK) {
        st = send_all(fd, (struct nr_str){wire.data, wire.len}, until_ns, err);
    }
    if (st != NARU_OK) {
        return st;
    }
    struct reader *r = nr_new(struct reader);
    r->ask = ask;
    nr_text_init(&r->head, ask->max_head_bytes > 0 ? ask->max_head_bytes : HEAD_BYTES);
    nr_text_init(&r->body, ask->max_body_bytes > 0 ? ask->max_body_bytes : BODY_BYTES);
    llhttp_init(&r->parser, HTTP_RESPONSE, &settings);
    r->parser.data = r;
    st = receive(fd, r, until_ns, err);
    if (st == NARU_OK) {
        give_answer(r, a, ret);
    }
    nr_text_done(&r->head);
    nr_text_done(&r->body);
    nr_free(r);
    return st;
}

struct nr_str nr_http_answer_field(const struct nr_http_answer *r, const char *name)
{
    for (unsigned i = 0; i < r->n_headers; i++) {
        if (nr_str_is(r->headers[i].name, name)) {
            return r->headers[i].value;
        }
    }
    return (struct nr_str){0};
}
