/* Token buckets for what a peer may do, but not often: resets, glitches, control frames.
 * Pure arithmetic; one bucket belongs to one connection. */
#ifndef NR_HTTP_ABUSE_H
#define NR_HTTP_ABUSE_H

#include <stdbool.h>
#include <stdint.h>

struct nr_bucket {
    uint32_t tokens; /* left now */
    uint32_t burst;
    uint32_t rate; /* tokens a second; 0: the bucket never refills */
    int64_t at_ns; /* refilled up to here */
};

void nr_bucket_init(struct nr_bucket *b, uint32_t burst, uint32_t rate, int64_t now_ns);
/* Takes n tokens; false when there are too few: the peer has gone too far. */
bool nr_bucket_take(struct nr_bucket *b, uint32_t n, int64_t now_ns);

#endif
