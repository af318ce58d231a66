/* The client side of HTTP: one request, one answer.
 *
 * For commands: it blocks, opens a connection for each request and speaks HTTP/1.1 without TLS
 * (RFC 9110, RFC 9112). Answers may have a Content-Length, be chunked, or end with the connection.
 * Strict as the server side: what two parsers could read differently is refused.
 */
#ifndef NR_HTTP_HTTP_CLIENT_H
#define NR_HTTP_HTTP_CLIENT_H

#include "base/arena.h"
#include "http/exchange.h"

#define NR_URL_HOST_MAX 256

struct nr_http_url {
    char host[NR_URL_HOST_MAX]; /* "127.0.0.1", "::1", "host.example"; without brackets */
    uint16_t port;              /* 80 when the URL names none */
    struct nr_str authority;    /* host and port as written, for the Host field */
    struct nr_str target;       /* path and query; "/" when there is none */
};
/* "http://host[:port][/path][?query]"; the views point into text. NARU_UNSUPPORTED: another scheme;
 * NARU_INVALID: user names, fragments, spaces and control characters among others. */
nr_nodiscard nr_status nr_http_url_parse(struct nr_str text, struct nr_http_url *ret,
                                         struct nr_err *err);

struct nr_http_ask {
    struct nr_http_url url;
    struct nr_str method;            /* "GET" when empty */
    const struct nr_header *headers; /* beside Host, Connection, Content-Length; borrowed */
    unsigned n_headers;
    struct nr_str body;
    int64_t timeout_ns;    /* for all of it but the look-up of a name; 0: 30 s */
    size_t max_head_bytes; /* 0: 64 KiB */
    size_t max_body_bytes; /* 0: 64 MiB */
};

struct nr_http_answer { /* strings are in the arena */
    unsigned status;
    const struct nr_header *headers; /* names in lower case, at most 128 */
    unsigned n_headers;
    struct nr_str content_type;
    struct nr_str body; /* NUL-terminated as well */
};

/* Blocks. *ret is written on NARU_OK, whatever the status of the answer is. NARU_UNAVAILABLE: nobody
 * listens there, or the name is not known; NARU_DEADLINE; NARU_TOO_LARGE: the answer; NARU_INVALID:
 * the request or the answer is no HTTP; NARU_IO: the connection ended before the answer did. */
nr_nodiscard nr_status nr_http_fetch(const struct nr_http_ask *ask, struct nr_arena *a,
                                     struct nr_http_answer *ret, struct nr_err *err);

/* Value of a field (name in lower case); empty when it is not there. */
struct nr_str nr_http_answer_field(const struct nr_http_answer *r, const char *name);

#endif
