/* What is asked, and of whom: an address, a protocol and one request that is sent again and again.
 *
 * URLs: http://HOST:PORT/PATH (HTTP/1.1), h2c://… (HTTP/2 with prior knowledge, RFC 9113 section
 * 3.3), grpc://HOST:PORT/package.Service/Method (a unary call; the body is the message, its five
 * byte prefix is added here). HOST is a numeric address or "localhost".
 */
#ifndef NR_LOAD_TARGET_H
#define NR_LOAD_TARGET_H

#include "base/status.h"
#include "base/str.h"
#include "io/sock.h"

typedef enum nr_load_proto {
    NR_LOAD_HTTP1,
    NR_LOAD_HTTP2, /* an answer counts as good by its HTTP status */
    NR_LOAD_GRPC,  /* … and by grpc-status 0 */
} nr_load_proto;

#define NR_LOAD_FIELDS_MAX 32

struct nr_load_field {
    struct nr_str name, value;
};

struct nr_load_target {
    nr_load_proto proto;
    struct nr_sock_addr addr;
    struct nr_str method;    /* "GET" without a body, "POST" with one */
    struct nr_str authority; /* "127.0.0.1:8000"; with path, in `text` */
    struct nr_str path;
    unsigned n_fields;
    struct nr_load_field fields[NR_LOAD_FIELDS_MAX];
    char *text;
    char *wire; /* HTTP/1.1: the whole request; otherwise: the body as it is framed */
    size_t wire_bytes;
};

/* fields: "Name: value" texts, borrowed for the target's life; body: copied, may be empty for a
 * GET. On success nr_load_target_done is the caller's duty; on error nothing is held. */
nr_nodiscard nr_status nr_load_target_init(struct nr_load_target *t, const char *url,
                                           const char *const *fields, unsigned n_fields,
                                           const void *body, size_t body_bytes, struct nr_err *err);
void nr_load_target_done(struct nr_load_target *t); /* a zeroed one is fine */

#endif
