/* Reading HTTP/1.1 answers as fast as a load generator must: status, length, and nothing else.
 *
 * Not a general client parser: it trusts no length without checking it, but it does not look at
 * header fields beyond Content-Length, Connection and Transfer-Encoding, and it refuses what it
 * cannot frame (chunked answers, answers that end with the connection) instead of guessing.
 * Source: RFC 9112 sections 2, 4, 6.
 */
#ifndef NR_LOAD_REPLY_H
#define NR_LOAD_REPLY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

#define NR_REPLY_HEAD_MAX 8192

struct nr_reply {
    unsigned status;     /* 200 … once the head was read */
    bool closes;         /* Connection: close */
    bool in_body;        /* the head was read */
    uint64_t body_bytes; /* Content-Length */
    uint64_t left_bytes; /* of the body, still to come */
    size_t head_len;
    char head[NR_REPLY_HEAD_MAX]; /* what came of a head that is not whole yet */
};

/* Makes r ready for the next answer of the connection. */
void nr_reply_reset(struct nr_reply *r);
/* Takes what the socket gave. NARU_OK: the answer is whole, *ret_used bytes belonged to it.
 * NARU_AGAIN: all of data was used, more must come. NARU_INVALID, NARU_TOO_LARGE (head),
 * NARU_UNSUPPORTED (framing): the connection is of no use any more. An answer 1xx is skipped. */
nr_nodiscard nr_status nr_reply_feed(struct nr_reply *r, const char *data, size_t len,
                                     size_t *ret_used);

#endif
