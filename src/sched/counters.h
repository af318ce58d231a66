/* Statistics of one model version: counters and stage histograms, one set per I/O loop.
 *
 * Written only by the loop that completes a request (plain load and store of relaxed atomics: no
 * locked instruction, no shared cache line), summed by whoever reads. Memory is made when a loop
 * first completes a request of the version.
 */
#ifndef NR_SCHED_COUNTERS_H
#define NR_SCHED_COUNTERS_H

#include <stdatomic.h>
#include <stdint.h>

#include "base/hist.h"
#include "sched/request.h"

/* Why requests failed, with Triton's label values. */
#define NR_FAIL_MAP(X)              \
    X(NR_FAIL_REJECTED, "REJECTED") \
    X(NR_FAIL_CANCELED, "CANCELED") \
    X(NR_FAIL_BACKEND, "BACKEND")   \
    X(NR_FAIL_OTHER, "OTHER")
typedef enum nr_fail_reason {
#define NR_FAIL_ENUM(symbol, text) symbol,
    NR_FAIL_MAP(NR_FAIL_ENUM)
#undef NR_FAIL_ENUM
    NR_FAIL_COUNT
} nr_fail_reason;
const char *nr_fail_reason_text(nr_fail_reason r);

typedef enum nr_stage {
    NR_STAGE_REQUEST, /* first byte to completion */
    NR_STAGE_QUEUE,
    NR_STAGE_INPUT,
    NR_STAGE_INFER,
    NR_STAGE_OUTPUT,
    NR_STAGE_COUNT
} nr_stage;
const char *nr_stage_text(nr_stage s);

struct nr_batch_count { /* executions of one batch size */
    uint64_t rows, executions, input_ns, infer_ns, output_ns;
};

/* Sums over loops, made by nr_counters_read. */
struct nr_counts {
    uint64_t success, fail, success_ns, fail_ns, queue_ns, input_ns, infer_ns, output_ns;
    uint64_t rows, executions, inline_executions, last_wall_ms;
    uint64_t cache_hits, cache_hit_ns, cache_misses, cache_miss_ns; /* hits are successes, too */
    uint64_t failed[NR_FAIL_COUNT];
    struct nr_hist_coarse stage[NR_STAGE_COUNT];
    unsigned n_batches;             /* distinct batch sizes, ascending by rows */
    struct nr_batch_count *batches; /* in the arena given to nr_counters_read */
};

struct nr_counters;
struct nr_counters *nr_counters_new(unsigned n_loops, int64_t max_rows);
void nr_counters_free(struct nr_counters *c); /* accepts NULL */
/* On the loop with this index. `leads`: the request stands for its whole batch's execution. */
void nr_counters_success(struct nr_counters *c, unsigned loop, const struct nr_request *r,
                         bool leads);
/* An execution after which the request goes on (nr_request.again). */
void nr_counters_round(struct nr_counters *c, unsigned loop, const struct nr_request *r,
                       bool leads);
void nr_counters_failure(struct nr_counters *c, unsigned loop, nr_fail_reason why, int64_t took_ns);
/* An answer from the response cache: a success that nothing was executed for. took_ns: finding it. */
void nr_counters_cache_hit(struct nr_counters *c, unsigned loop, const struct nr_request *r,
                           int64_t took_ns);
/* took_ns: looking for it and storing the answer. The request itself is counted as any other. */
void nr_counters_cache_miss(struct nr_counters *c, unsigned loop, int64_t took_ns);
void nr_counters_read(const struct nr_counters *c, struct nr_arena *a,
                      struct nr_counts *ret); /* any thread */

#endif
