/* Both histograms: index arithmetic without loops, quantiles by a walk over the counts.
 *
 * Coarse: bounds 1.5, 2, 3, 4, 6, 8 … 2^26 µs. With u = (ns - 1) / 500 a value lies at or below
 * 1.5 * 2^k µs exactly when u < 3 * 2^k, and at or below 2^(k+1) µs when u < 4 * 2^k, so the bucket
 * is the position of u's highest bit and the bit below it.
 *
 * Fine: values below 1024 have a bucket each; above, each power of two has 1024 equal buckets, so
 * a bucket is never wider than 1/1024 of its lower bound. A power of two is a chunk of 8 KiB that
 * is made when its first value comes: a latency distribution touches a handful of the 31.
 *
 * Invariants
 * 1. One thread writes a histogram; readers use relaxed loads and see each count whole. A chunk is
 *    published with release and read with acquire, so it is never seen before its zeroes.
 * 2. A quantile is never below the true one and at most one bucket above it; it lies within the
 *    exact [min, max] of the fine histogram.
 * 3. count is raised last (release) and read first (acquire), so a reader finds at least as many
 *    recorded values in the buckets as it counts.
 */
#include "base/hist.h"

#include <math.h>
#include <string.h>

#include "base/mem.h"

#define COARSE_UNIT_NS UINT64_C(500)

#define SUB_BITS 10
#define SUB_N (1u << SUB_BITS)
#define MAX_BITS 40 /* 2^40 ns = 1,099 s; longer ones count in the last bucket */
#define N_CHUNKS (MAX_BITS - SUB_BITS + 1)

struct chunk {
    _Atomic uint64_t count[SUB_N];
};

struct nr_hist {
    _Atomic uint64_t count;
    _Atomic uint64_t min_ns;
    _Atomic uint64_t max_ns;
    _Atomic double sum_ns; /* a double: 2^64 ns would be passed by 10^10 records of 2 s */
    struct chunk *_Atomic chunks[N_CHUNKS];
};

/* Single writer: a load and a store, no locked instruction. */
static void add_relaxed(_Atomic uint64_t *at, uint64_t n)
{
    atomic_store_explicit(at, atomic_load_explicit(at, memory_order_relaxed) + n,
                          memory_order_relaxed);
}

static uint64_t get(const _Atomic uint64_t *at)
{
    return atomic_load_explicit(at, memory_order_relaxed);
}

/* 1-based rank of quantile q among n > 0 values. The small subtraction takes back what rounding
 * adds to products like 0.07 * 100. */
static uint64_t rank_of(double q, uint64_t n)
{
    if (!(q > 0)) { /* NaN too */
        return 1;
    }
    if (q >= 1) {
        return n;
    }
    double rank = ceil(q * (double)n - 1e-9);
    return rank < 1 ? 1 : NR_MIN((uint64_t)rank, n);
}

unsigned nr_hist_coarse_index(uint64_t ns)
{
    uint64_t u = (ns - (ns > 0)) / COARSE_UNIT_NS;
    u = NR_MAX(u, 2);
    unsigned high = 63u - (unsigned)__builtin_clzll(u);
    unsigned index = 2 * (high - 1) + (unsigned)(u >> (high - 1) & 1);
    return NR_MIN(index, NR_HIST_COARSE_BUCKETS - 1u);
}

uint64_t nr_hist_coarse_bound(unsigned index)
{
    if (index >= NR_HIST_COARSE_BUCKETS - 1) {
        return UINT64_MAX;
    }
    return (index % 2 ? 4 * COARSE_UNIT_NS : 3 * COARSE_UNIT_NS) << (index / 2);
}

void nr_hist_coarse_merge(struct nr_hist_coarse *into, const struct nr_hist_coarse *from)
{
    for (unsigned i = 0; i < NR_HIST_COARSE_BUCKETS; i++) {
        add_relaxed(&into->count[i], get(&from->count[i]));
    }
    add_relaxed(&into->sum_ns, get(&from->sum_ns));
}

uint64_t nr_hist_coarse_quantile(const struct nr_hist_coarse *h, double q)
{
    uint64_t counts[NR_HIST_COARSE_BUCKETS]; /* one consistent copy to walk twice */
    uint64_t total = 0;
    for (unsigned i = 0; i < NR_HIST_COARSE_BUCKETS; i++) {
        counts[i] = get(&h->count[i]);
        total += counts[i];
    }
    if (total == 0) {
        return 0;
    }
    uint64_t rank = rank_of(q, total);
    unsigned i = 0;
    while (rank > counts[i]) {
        rank -= counts[i++];
    }
    if (i == NR_HIST_COARSE_BUCKETS - 1) {
        return nr_hist_coarse_bound(i - 1); /* "more than this" is all that is known */
    }
    /* Values are taken to lie evenly in (low, high]. */
    uint64_t low = i > 0 ? nr_hist_coarse_bound(i - 1) : 0;
    uint64_t width = nr_hist_coarse_bound(i) - low;
    return low + (uint64_t)((double)width * ((double)rank / (double)counts[i]));
}

struct nr_hist *nr_hist_new(void)
{
    struct nr_hist *h = nr_new(struct nr_hist);
    atomic_init(&h->min_ns, UINT64_MAX);
    return h;
}

void nr_hist_free(struct nr_hist *h)
{
    if (h != NULL) {
        for (unsigned i = 0; i < N_CHUNKS; i++) {
            nr_free(atomic_load_explicit(&h->chunks[i], memory_order_relaxed));
        }
        nr_free(h);
    }
}

static struct chunk *chunk_get(const struct nr_hist *h, unsigned i)
{
    return atomic_load_explicit(&h->chunks[i], memory_order_acquire);
}

static struct chunk *chunk_make(struct nr_hist *h, unsigned i)
{
    struct chunk *c = atomic_load_explicit(&h->chunks[i], memory_order_relaxed);
    if (NR_UNLIKELY(c == NULL)) {
        c = nr_new(struct chunk);
        atomic_store_explicit(&h->chunks[i], c, memory_order_release);
    }
    return c;
}

/* Raises the totals by what was already put into the buckets. */
static void add_totals(struct nr_hist *h, uint64_t times, double sum, uint64_t low, uint64_t high)
{
    if (low < get(&h->min_ns)) {
        atomic_store_explicit(&h->min_ns, low, memory_order_relaxed);
    }
    if (high > get(&h->max_ns)) {
        atomic_store_explicit(&h->max_ns, high, memory_order_relaxed);
    }
    double old = atomic_load_explicit(&h->sum_ns, memory_order_relaxed);
    atomic_store_explicit(&h->sum_ns, old + sum, memory_order_relaxed);
    atomic_store_explicit(&h->count, get(&h->count) + times, memory_order_release);
}

void nr_hist_add(struct nr_hist *h, uint64_t ns, uint64_t times)
{
    if (times == 0) {
        return;
    }
    uint64_t v = NR_MIN(ns, (UINT64_C(1) << MAX_BITS) - 1);
    unsigned chunk = 0;
    unsigned sub = (unsigned)v;
    if (v >= SUB_N) {
        unsigned high = 63u - (unsigned)__builtin_clzll(v);
        chunk = high - SUB_BITS + 1;
        sub = (unsigned)(v >> (high - SUB_BITS)) - SUB_N;
    }
    add_relaxed(&chunk_make(h, chunk)->count[sub], times);
    add_totals(h, times, (double)ns * (double)times, ns, ns);
}

void nr_hist_merge(struct nr_hist *into, const struct nr_hist *from)
{
    /* Totals first: counts that come in meanwhile are then in the buckets only (invariant 3). */
    uint64_t times = atomic_load_explicit(&from->count, memory_order_acquire);
    double sum = atomic_load_explicit(&from->sum_ns, memory_order_relaxed);
    uint64_t low = get(&from->min_ns);
    uint64_t high = get(&from->max_ns);
    for (unsigned i = 0; i < N_CHUNKS; i++) {
        const struct chunk *c = chunk_get(from, i);
        if (c != NULL) {
            struct chunk *target = chunk_make(into, i);
            for (unsigned j = 0; j < SUB_N; j++) {
                add_relaxed(&target->count[j], get(&c->count[j]));
            }
        }
    }
    if (times > 0) {
        add_totals(into, times, sum, low, high);
    }
}

/* The largest value of a bucket. */
static uint64_t bucket_top(unsigned chunk, unsigned sub)
{
    if (chunk == 0) {
        return sub;
    }
    return ((uint64_t)(SUB_N + sub + 1) << (chunk - 1)) - 1;
}

uint64_t nr_hist_quantile(const struct nr_hist *h, double q)
{
    uint64_t n = nr_hist_count(h);
    if (n == 0) {
        return 0;
    }
    uint64_t max = nr_hist_max(h);
    uint64_t rank = rank_of(q, n);
    if (rank == n) {
        return max;
    }
    for (unsigned i = 0; i < N_CHUNKS; i++) {
        const struct chunk *c = chunk_get(h, i);
        for (unsigned j = 0; c != NULL && j < SUB_N; j++) {
            uint64_t here = get(&c->count[j]);
            if (rank <= here) {
                uint64_t top = bucket_top(i, j);
                return NR_MIN(NR_MAX(top, nr_hist_min(h)), max);
            }
            rank -= here;
        }
    }
    return max;
}

uint64_t nr_hist_count(const struct nr_hist *h)
{
    return atomic_load_explicit(&h->count, memory_order_acquire);
}

uint64_t nr_hist_max(const struct nr_hist *h)
{
    return get(&h->max_ns);
}

uint64_t nr_hist_min(const struct nr_hist *h)
{
    uint64_t low = get(&h->min_ns);
    return low == UINT64_MAX ? 0 : low;
}

double nr_hist_mean(const struct nr_hist *h)
{
    uint64_t n = nr_hist_count(h);
    return n > 0 ? atomic_load_explicit(&h->sum_ns, memory_order_relaxed) / (double)n : 0;
}
