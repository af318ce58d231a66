/* Histograms of durations: logarithmic buckets, one relaxed store to record, merged when read.
 *
 * Two sizes: `coarse` (2 buckets per power of two: 1.5, 2, 3, 4, 6, 8 µs … 67 s, for the server's
 * metrics, 0.4 KB, zeroed memory is an empty one) and `fine` (3 significant digits, HDR layout,
 * for measurements; 8 KiB per power of two that has values, made by the writer when the first one
 * comes).
 * A histogram belongs to one writing thread; readers may read at any time (relaxed atomics), and
 * see counts that are at most a moment old. `into` of a merge is written, `from` is read.
 */
#ifndef NR_BASE_HIST_H
#define NR_BASE_HIST_H

#include <stdatomic.h>
#include <stdint.h>

#define NR_HIST_COARSE_BUCKETS 53

struct nr_hist_coarse {
    _Atomic uint64_t count[NR_HIST_COARSE_BUCKETS]; /* last: above the largest bound */
    _Atomic uint64_t sum_ns;
};
unsigned nr_hist_coarse_index(uint64_t ns);
uint64_t
nr_hist_coarse_bound(unsigned index); /* upper bound in ns, inclusive; UINT64_MAX for the last */
static inline void nr_hist_coarse_add(struct nr_hist_coarse *h, uint64_t ns)
{
    _Atomic uint64_t *c = &h->count[nr_hist_coarse_index(ns)];
    /* single writer: a load and a store are enough, no locked instruction */
    atomic_store_explicit(c, atomic_load_explicit(c, memory_order_relaxed) + 1,
                          memory_order_relaxed);
    atomic_store_explicit(&h->sum_ns, atomic_load_explicit(&h->sum_ns, memory_order_relaxed) + ns,
                          memory_order_relaxed);
}
void nr_hist_coarse_merge(struct nr_hist_coarse *into, const struct nr_hist_coarse *from);
uint64_t nr_hist_coarse_quantile(const struct nr_hist_coarse *h, double q); /* ns, linear within
                                           a bucket; 0 when empty; 67 s for all that is above */

/* Fine histogram: values 0 … ~1100 s (longer ones count at the top, but max, min and mean are
 * exact). A quantile is never below the true one and at most 1/1024 above it. Empty: all 0. */
struct nr_hist;
struct nr_hist *nr_hist_new(void);
void nr_hist_free(struct nr_hist *h); /* accepts NULL */
void nr_hist_add(struct nr_hist *h, uint64_t ns, uint64_t times);
void nr_hist_merge(struct nr_hist *into, const struct nr_hist *from);
uint64_t nr_hist_quantile(const struct nr_hist *h,
                          double q); /* q in 0..1; 1 is the exact maximum */
uint64_t nr_hist_count(const struct nr_hist *h);
uint64_t nr_hist_max(const struct nr_hist *h);
uint64_t nr_hist_min(const struct nr_hist *h);
double nr_hist_mean(const struct nr_hist *h);

#endif
