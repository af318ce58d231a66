/* Hill climbing over powers of two.
 *
 * DESIGN. Of several runs of one size the fastest counts: neighbours on the machine only ever make
 * a run longer. The remembered best ages by 1 % with every run, so that a model that became slower
 * is noticed. A size that did not pay is tried again later, with a back-off, since the first runs
 * of a size also pay for its memory.
 *
 * INVARIANTS
 *  1. step <= max_step, and trying implies step < max_step.
 *  2. A step is taken only after TRIES runs of each of the two sizes.
 */
#include "sched/batchsize.h"

#include "base/clock.h"
#include "base/status.h"

#define TRIES 4
#define GAIN_PERCENT 3
#define BACKOFF_MIN_NS (10 * NR_S_NS)
#define BACKOFF_MAX_NS (600 * NR_S_NS)

void nr_batchsize_init(struct nr_batchsize *b, int64_t max_rows)
{
    *b = (struct nr_batchsize){.backoff_ns = BACKOFF_MIN_NS};
    while (b->max_step + 1 < NR_BATCHSIZE_STEPS && (INT64_C(2) << b->max_step) <= max_rows) {
        b->max_step++;
    }
}

int64_t nr_batchsize_limit(struct nr_batchsize *b, int64_t waiting, int64_t now_ns)
{
    int64_t next = INT64_C(2) << b->step;
    if (b->step < b->max_step && waiting >= next && b->samples[b->step] >= TRIES &&
        now_ns >= b->retry_ns) {
        if (!b->trying) {
            b->trying = true;
            b->samples[b->step + 1] = 0;
            b->row_ns[b->step + 1] = 0;
        }
        return next;
    }
    return INT64_C(1) << b->step;
}

/* Is the larger of two neighbouring steps worth it? */
static bool pays(const struct nr_batchsize *b, unsigned smaller)
{
    return b->row_ns[smaller + 1] * 100 <= b->row_ns[smaller] * (100 - GAIN_PERCENT);
}

static void judge(struct nr_batchsize *b, int64_t now_ns)
{
    if (b->trying && b->samples[b->step + 1] > TRIES) { /* the first run pays for memory */
        b->trying = false;
        if (pays(b, b->step)) {
            b->step++;
            b->backoff_ns = BACKOFF_MIN_NS;
        } else {
            b->retry_ns = now_ns + b->backoff_ns;
            b->backoff_ns = NR_MIN(b->backoff_ns * 2, BACKOFF_MAX_NS);
        }
    }
}

void nr_batchsize_observe(struct nr_batchsize *b, int64_t rows, int64_t run_ns, int64_t now_ns)
{
    if (rows < 1 || (rows & (rows - 1)) != 0) {
        return; /* between two sizes: says nothing exact about either */
    }
    unsigned step = (unsigned)__builtin_ctzll((unsigned long long)rows);
    if (step > b->max_step) {
        return;
    }
    int64_t row_ns = run_ns / rows, aged = b->row_ns[step] + b->row_ns[step] / 100;
    if (b->samples[step] == 0 || (b->trying && step == b->step + 1 && b->samples[step] == 1)) {
        aged = row_ns;
    }
    b->row_ns[step] = NR_MIN(row_ns, aged);
    b->samples[step]++;
    judge(b, now_ns);
}
