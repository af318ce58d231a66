/* gRPC over HTTP/2, the parts that are pure bytes: message framing, timeouts, status texts.
 * Source: the gRPC project's PROTOCOL-HTTP2 and status code documents. No I/O, fuzzed. */
#ifndef NR_HTTP_GRPC_H
#define NR_HTTP_GRPC_H

#include <stdbool.h>
#include <stdint.h>

#include "base/str.h"

enum { /* gRPC status codes that the engine itself uses */
    NR_GRPC_OK = 0,
    NR_GRPC_UNKNOWN = 2,
    NR_GRPC_INVALID_ARGUMENT = 3,
    NR_GRPC_DEADLINE_EXCEEDED = 4,
    NR_GRPC_RESOURCE_EXHAUSTED = 8,
    NR_GRPC_UNIMPLEMENTED = 12,
    NR_GRPC_INTERNAL = 13,
    NR_GRPC_UNAVAILABLE = 14
};

#define NR_GRPC_PREFIX_BYTES 5u

/* "INVALID_ARGUMENT", as the gRPC documents write them; "UNKNOWN" for numbers that they do not have. */
const char *nr_grpc_status_name(int status);

/* "application/grpc", alone or with "+proto", ";…". */
bool nr_grpc_is(struct nr_str content_type);
/* grpc-timeout: 1 to 8 digits and a unit (H M S m u n). */
nr_nodiscard bool nr_grpc_timeout(struct nr_str text, int64_t *ret_ns);

enum nr_grpc_event {
    NR_GRPC_MORE,       /* fine so far */
    NR_GRPC_COMPRESSED, /* a message with the compressed flag */
    NR_GRPC_BAD_FLAG,   /* neither 0 nor 1 */
    NR_GRPC_TOO_LARGE,  /* the prefix states more than the limit */
    NR_GRPC_SECOND      /* bytes behind the one message of a unary call */
};

/* Takes the one message of a unary call out of its frame. {0} is a fresh reader. */
struct nr_grpc_reader {
    uint8_t prefix[NR_GRPC_PREFIX_BYTES];
    uint8_t have;  /* of the prefix */
    uint32_t len;  /* of the message, once have == 5 */
    uint32_t left; /* of the message, not seen yet */
};
/* Reads len bytes. *ret is the part of them that belongs to the message (may be empty). */
enum nr_grpc_event nr_grpc_read(struct nr_grpc_reader *r, const void *data, size_t len,
                                uint64_t limit, struct nr_str *ret);
static inline bool nr_grpc_complete(const struct nr_grpc_reader *r)
{
    return r->have == NR_GRPC_PREFIX_BYTES && r->left == 0;
}
static inline void nr_grpc_prefix(uint8_t out[NR_GRPC_PREFIX_BYTES], uint32_t len)
{
    out[0] = 0;
    out[1] = (uint8_t)(len >> 24);
    out[2] = (uint8_t)(len >> 16);
    out[3] = (uint8_t)(len >> 8);
    out[4] = (uint8_t)len;
}

/* Percent-encodes a grpc-message: all but printable ASCII, and '%'. out holds 3 * s.len bytes;
 * returns how many were used. */
size_t nr_grpc_message(char *out, struct nr_str s);

#endif
