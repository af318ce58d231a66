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

void nr_batchsize_init(struct nr_batchsize *b, int64_t max_rows, int64_t target_ns)
{
    *b = (struct nr_batchsize){.backoff_ns = BACKOFF_MIN_NS, .target_ns = target_ns};
    while (b->max_step + 1 < NR_BATCHSIZE_STEPS && (INT64_C(2) << b->max_step) <= max_rows) {
        b->max_step++;
    }
}

/* Time of a batch of `rows`, from the best runs of a step. */
static int64_t run_of(const struct nr_batchsize *b, unsigned step)
{
    return b->row_ns[step] * b->rows[step];
}

/* What does not depend on rows, from two steps; 0: not known, or nothing. */
static int64_t fixed_of(const struct nr_batchsize *b)
{
    unsigned large = b->step + (b->trying && b->samples[b->step + 1] > TRIES);
    if (large == 0 || b->samples[large - 1] < TRIES || b->rows[large] <= b->rows[large - 1]) {
        /* one step only: all of it may be fixed, and a quarter is worth a try */
        return b->samples[b->step] < TRIES || large > 0 ? 0 : run_of(b, b->step) / 4;
    }
    int64_t few = b->rows[large - 1], many = b->rows[large];
    int64_t less_ns = b->row_ns[large - 1] - b->row_ns[large];
    return less_ns <= 0 ? 0 : less_ns * few / (many - few) * many;
}

int64_t nr_batchsize_fixed(const struct nr_batchsize *b, int64_t wait_ns)
{
    int64_t fixed_ns = fixed_of(b);
    int64_t room_ns = b->target_ns - wait_ns - run_of(b, b->step);
    return room_ns > 0 ? NR_MIN(fixed_ns, 2 * room_ns) : fixed_ns; /* no target, or out of reach */
}

static void give_up(struct nr_batchsize *b, int64_t now_ns)
{
    b->trying = false;
    b->retry_ns = now_ns + b->backoff_ns;
    b->backoff_ns = NR_MIN(b->backoff_ns * 2, BACKOFF_MAX_NS);
}

/* What the target leaves of `rows`, the first of which has waited for wait_ns. */
static int64_t in_time(struct nr_batchsize *b, int64_t rows, int64_t waiting, int64_t wait_ns)
{
    int64_t fixed_ns = fixed_of(b), left_ns = b->target_ns - fixed_ns;
    int64_t row_ns = b->rows[b->step] > 0 ? b->row_ns[b->step] - fixed_ns / b->rows[b->step] : 0;
    if (row_ns <= 0 || left_ns - wait_ns < row_ns) {
        return rows; /* not known, or too late with any size */
    }
    int64_t fit = (left_ns - wait_ns) / row_ns, together = NR_MIN(waiting, rows);
    if (fit < together && b->in_time_rows >= 100 * together && left_ns / row_ns >= together) {
        b->may_be_late = true;
    }
    return b->may_be_late ? rows : NR_MIN(rows, fit);
}

int64_t nr_batchsize_limit(struct nr_batchsize *b, int64_t waiting, int64_t wait_ns, int64_t now_ns)
{
    int64_t size = INT64_C(1) << b->step;
    if (b->step < b->max_step && waiting > size && 4 * waiting >= 5 * size &&
        b->samples[b->step] >= TRIES && now_ns >= b->retry_ns) {
        if (!b->trying) {
            b->trying = true;
            b->samples[b->step + 1] = 0;
            b->row_ns[b->step + 1] = 0;
        }
        size *= 2;
    }
    return b->target_ns > 0 ? in_time(b, size, waiting, wait_ns) : size;
}

/* Is the larger of two neighbouring steps worth it? For twice the size it must be by GAIN_PERCENT,
 * for less in proportion. */
static bool pays(const struct nr_batchsize *b, unsigned smaller)
{
    int64_t few = b->rows[smaller], many = b->rows[smaller + 1];
    int64_t wanted = 100 * many - 2 * GAIN_PERCENT * (many - few);
    return many > few && b->row_ns[smaller + 1] * 100 * many <= b->row_ns[smaller] * wanted;
}

static void judge(struct nr_batchsize *b, int64_t now_ns)
{
    if (b->trying && b->samples[b->step + 1] > TRIES) { /* the first run pays for memory */
        if (pays(b, b->step)) {
            b->trying = false;
            b->step++;
            b->backoff_ns = BACKOFF_MIN_NS;
        } else {
            give_up(b, now_ns);
        }
    }
}

/* The step that a size counts for; false: between two, and says nothing exact about either. */
static bool step_of(const struct nr_batchsize *b, int64_t rows, unsigned *ret)
{
    if (rows < 1) {
        return false;
    }
    unsigned step = 63u - (unsigned)__builtin_clzll((unsigned long long)rows);
    int64_t size = INT64_C(1) << step;
    if (rows > size) {
        step++;
        if (4 * (rows - size) < size) {
            return false;
        }
    }
    *ret = step;
    return step <= b->max_step;
}

void nr_batchsize_observe(struct nr_batchsize *b, int64_t rows, int64_t run_ns, int64_t now_ns)
{
    unsigned step;
    b->in_time_rows = b->may_be_late ? 0 : b->in_time_rows + NR_MAX(rows, 0);
    b->may_be_late = false;
    if (!step_of(b, rows, &step)) {
        return;
    }
    bool attempt = b->trying && step == b->step + 1;
    int64_t row_ns = run_ns / rows, aged = b->row_ns[step] + b->row_ns[step] / 100;
    if (b->samples[step] == 0 || (attempt && b->samples[step] == 1)) {
        aged = row_ns;
    }
    if (row_ns <= aged) {
        b->rows[step] = rows;
    }
    b->row_ns[step] = NR_MIN(row_ns, aged);
    b->samples[step]++;
    judge(b, now_ns);
}
