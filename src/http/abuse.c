/* Token buckets (see abuse.h). Why our own: the limits of nghttp2 differ from release to release
 * and count one direction only; what a peer may cost us must not depend on the distribution.
 *
 * Invariants: 0 <= tokens <= burst; at_ns advances only by the time that whole tokens account for,
 * so a fraction of a token is never lost. */
#include "http/abuse.h"

#define NS_PER_S INT64_C(1000000000)

void nr_bucket_init(struct nr_bucket *b, uint32_t burst, uint32_t rate, int64_t now_ns)
{
    *b = (struct nr_bucket){.tokens = burst, .burst = burst, .rate = rate, .at_ns = now_ns};
}

bool nr_bucket_take(struct nr_bucket *b, uint32_t n, int64_t now_ns)
{
    int64_t passed = now_ns - b->at_ns;
    if (passed >= NS_PER_S || (b->tokens < n && passed > 0)) {
        /* 128 bits: limits are an operator's and may be large */
        unsigned __int128 fresh = (unsigned __int128)passed * b->rate / NS_PER_S;
        if (fresh + b->tokens >= b->burst) {
            b->tokens = b->burst;
            b->at_ns = now_ns;
        } else if (fresh > 0) {
            b->tokens += (uint32_t)fresh;
            b->at_ns += (int64_t)(fresh * NS_PER_S / b->rate);
        }
    }
    if (b->tokens < n) {
        return false;
    }
    b->tokens -= n;
    return true;
}
