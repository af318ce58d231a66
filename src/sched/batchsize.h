/* How large batches should be when the configuration does not say: as large as makes rows cheaper.
 *
 * A batch costs memory and makes its first request wait for its last, so a size is used only when it
 * is measurably faster per row than half of it. Steps are powers of two, tried upwards when enough
 * rows wait; a size in between counts as the next step when it is a quarter above the last one.
 *
 * With a latency target (wait and run of the 99th of a hundred requests) a step is taken only if its
 * runs kept the target. Where it is missed already throughput alone decides, since larger batches are
 * what shortens a queue. The slowest request of each batch is looked at, which is a little stricter
 * than the 99th of a hundred.
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
    int64_t target_ns; /* the 99th of a hundred requests should be answered within it; 0 none */
    int64_t worst_ns;  /* of the oldest request of a batch, wait and run; fades */
    int64_t trial_ns;  /* the same of the batches of an attempt */
};
void nr_batchsize_init(struct nr_batchsize *b, int64_t max_rows, int64_t target_ns);
/* Rows that the next batch may have when `waiting` rows are queued. */
int64_t nr_batchsize_limit(struct nr_batchsize *b, int64_t waiting, int64_t now_ns);
/* A batch of `rows` rows took run_ns, and its oldest request had waited wait_ns before. */
void nr_batchsize_observe(struct nr_batchsize *b, int64_t rows, int64_t run_ns, int64_t wait_ns,
                          int64_t now_ns);
/* The part of a batch's time that does not depend on its rows, as far as it is known, and no more
 * than twice what the target leaves room to wait for (hold.h waits half of it at most). */
int64_t nr_batchsize_fixed(const struct nr_batchsize *b);

#endif
