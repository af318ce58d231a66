/* How large batches should be when the configuration does not say: as large as makes rows cheaper.
 *
 * A batch costs memory and makes its first request wait for its last, so a size is used only when it
 * is measurably faster per row than half of it. Sizes are powers of two, tried upwards when enough
 * rows wait. Pure logic on given times; the caller holds its lock.
 */
#ifndef NR_SCHED_BATCHSIZE_H
#define NR_SCHED_BATCHSIZE_H

#include <stdbool.h>
#include <stdint.h>

#define NR_BATCHSIZE_STEPS 17 /* 1, 2, 4 … 65,536 */

struct nr_batchsize {
    unsigned max_step; /* largest step within max_batch_size */
    unsigned step;     /* 1 << step rows are used */
    bool trying;       /* the next step is being measured */
    unsigned samples[NR_BATCHSIZE_STEPS];
    int64_t row_ns[NR_BATCHSIZE_STEPS]; /* best time per row seen lately */
    int64_t retry_ns;                   /* no attempt before */
    int64_t backoff_ns;
};
void nr_batchsize_init(struct nr_batchsize *b, int64_t max_rows);
/* Rows that the next batch may have when `waiting` rows are queued. */
int64_t nr_batchsize_limit(struct nr_batchsize *b, int64_t waiting, int64_t now_ns);
/* A batch of `rows` rows took run_ns. */
void nr_batchsize_observe(struct nr_batchsize *b, int64_t rows, int64_t run_ns, int64_t now_ns);

#endif
