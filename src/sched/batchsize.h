/* How large batches should be when the configuration does not say: as large as makes rows cheaper.
 *
 * A batch costs memory and makes its first request wait for its last, so a size is used only when it
 * is measurably faster per row than half of it. Steps are powers of two, tried upwards when enough
 * rows wait; a size in between counts as the next step when it is a quarter above the last one.
 *
 * With a latency target a batch grows only while its first request is answered in time, wait and run
 * together. Where that request is too late with any size, the target is lost in a queue, and throughput
 * decides, since larger batches are what shortens it. One row in a hundred may be late, so now and then
 * a batch may grow beyond: clients that wait by turns for each other's batches come together by that,
 * and stay in time from then on.
 *
 * Pure logic on given times; the caller holds its lock.
 */
#ifndef NR_SCHED_BATCHSIZE_H
#define NR_SCHED_BATCHSIZE_H

#include <stdbool.h>
#include <stdint.h>

#define NR_BATCHSIZE_STEPS 17 /* 1, 2, 4 … 65,536 */

struct nr_batchsize {
    unsigned max_step; /* largest step within max_batch_size */
    unsigned step;     /* up to 1 << step rows are used */
    bool trying;       /* the next step is being measured */
    unsigned samples[NR_BATCHSIZE_STEPS];
    int64_t row_ns[NR_BATCHSIZE_STEPS]; /* best time per row seen lately … */
    int64_t rows[NR_BATCHSIZE_STEPS];   /* … and the size that it was seen with */
    int64_t retry_ns;                   /* no attempt before */
    int64_t backoff_ns;
    int64_t target_ns;    /* for wait and run of a request; 0 none */
    int64_t in_time_rows; /* since the last batch that was allowed to be late */
    bool may_be_late;     /* the next batch is such a one */
};
void nr_batchsize_init(struct nr_batchsize *b, int64_t max_rows, int64_t target_ns);
/* Rows that the next batch may have when `waiting` rows are queued, the first for wait_ns. */
int64_t nr_batchsize_limit(struct nr_batchsize *b, int64_t waiting, int64_t wait_ns,
                           int64_t now_ns);
/* A batch of `rows` rows took run_ns. */
void nr_batchsize_observe(struct nr_batchsize *b, int64_t rows, int64_t run_ns, int64_t now_ns);
/* The part of a batch's time that does not depend on its rows, as far as it is known, and no more
 * than twice what the target leaves the first request to wait for (hold.h waits half of it at most). */
int64_t nr_batchsize_fixed(const struct nr_batchsize *b, int64_t wait_ns);

#endif
