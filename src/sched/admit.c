/* See admit.h.
 *
 * DESIGN. The pace is sampled over as many takes as there are places (two places that fall free
 * together would else look like an infinite and a halved pace in turn) and smoothed. Without rows
 * waiting there is nothing to sample; then the best that is possible is believed, full batches that
 * take no longer than the ones seen: a burst to an idle model must not be refused because batches
 * of one were all it had formed so far, and if it is slower, the first takes tell. Each run without
 * a queue draws the pace towards that, so one learned beside a busy neighbour is soon forgotten.
 * A batch that takes longer than the pace foretold shortens the limit by what it is overdue: a stall
 * passes, a model that hangs fills its queue no further. It does not make single requests hopeless:
 * their own time limit tells them soon enough, and the stall may end before.
 */
#include "sched/admit.h"

#define SMOOTH 4 /* a new sample counts one in so many */

const char *nr_refusal_text(nr_refusal why)
{
    static const char *const texts[] = {
#define NR_REFUSAL_TEXT(symbol, text) text,
        NR_REFUSAL_MAP(NR_REFUSAL_TEXT)
#undef NR_REFUSAL_TEXT
    };
    return (unsigned)why < NR_COUNT(texts) ? texts[why] : "unknown";
}

void nr_admit_init(struct nr_admit *a, unsigned n_places, int64_t max_rows)
{
    *a = (struct nr_admit){.n_places = NR_MAX(n_places, 1u), .max_rows = NR_MAX(max_rows, 1)};
}

static void draw(int64_t *value, int64_t sample, int64_t smooth)
{
    *value = *value == 0 ? sample : *value + (sample - *value) / smooth;
}

void nr_admit_took(struct nr_admit *a, int64_t rows, int64_t waiting, int64_t now_ns)
{
    if (a->took_ns != 0) {
        a->window_ns += now_ns - a->took_ns;
        a->window_rows += a->took_rows;
        if (++a->window_n >= a->n_places) {
            draw(&a->pace_ns, NR_MAX(a->window_ns / NR_MAX(a->window_rows, 1), 1), SMOOTH);
            a->window_n = 0;
        }
    }
    a->took_ns = waiting > 0 ? now_ns : 0;
    a->took_rows = NR_MAX(rows, 1);
    if (a->window_n == 0 || waiting == 0) {
        a->window_ns = a->window_rows = 0;
        a->window_n = 0;
    }
}

static int64_t best_pace(const struct nr_admit *a)
{
    return NR_MAX(NR_MIN(a->row_ns, a->run_ns / a->max_rows) / (int64_t)a->n_places, 1);
}

void nr_admit_ran(struct nr_admit *a, int64_t rows, int64_t run_ns)
{
    int64_t row_ns = NR_MAX(run_ns / NR_MAX(rows, 1), 1);
    draw(&a->run_ns, NR_MAX(run_ns, 1), 8);
    draw(&a->row_ns, row_ns, 8);
    if (a->took_ns == 0 && a->pace_ns != 0) {
        draw(&a->pace_ns, best_pace(a), SMOOTH);
    }
}

static int64_t pace(const struct nr_admit *a)
{
    return a->pace_ns == 0 && a->row_ns > 0 ? best_pace(a) : a->pace_ns;
}

/* By how much the next take is overdue; it will be for as long again, for all that is known. */
static int64_t overdue(const struct nr_admit *a, int64_t now_ns)
{
    int64_t usual_ns = 0;
    if (a->took_ns == 0 ||
        __builtin_mul_overflow(pace(a), a->took_rows * (int64_t)a->n_places, &usual_ns)) {
        return 0;
    }
    return NR_MAX(now_ns - a->took_ns - usual_ns, 0);
}

int64_t nr_admit_wait(const struct nr_admit *a, int64_t rows)
{
    int64_t wait_ns;
    return __builtin_mul_overflow(pace(a), rows, &wait_ns) ? INT64_MAX : wait_ns;
}

int64_t nr_admit_rows(const struct nr_admit *a, int64_t max_wait_ns, int64_t now_ns)
{
    int64_t pace_ns = pace(a);
    return pace_ns > 0 ? NR_MAX(max_wait_ns - overdue(a, now_ns), 0) / pace_ns : INT64_MAX;
}

/* May r join q, or could it if `without` (may be NULL) had left? */
static nr_refusal check(const struct nr_admit *a, const struct nr_sched_limits *l,
                        const struct nr_queue *q, const struct nr_request *r,
                        const struct nr_request *without, int64_t now_ns)
{
    const struct nr_queue_level *level = &q->levels[r->level];
    unsigned n = q->n - (without != NULL);
    unsigned n_level = level->n - (without != NULL && without->level == r->level);
    uint64_t bytes = q->bytes - (without != NULL ? without->bytes : 0);
    int64_t rows = q->rows - (without != NULL ? without->in->rows : 0);
    if (level->rules.max_requests > 0 && n_level >= level->rules.max_requests) {
        return NR_REFUSAL_POLICY;
    }
    if (n >= l->max_queue_requests) {
        return NR_REFUSAL_COUNT;
    }
    if (n == 0) {
        return NR_REFUSAL_NONE; /* one may always wait, however large */
    }
    if (bytes + r->bytes > l->max_queue_bytes) {
        return NR_REFUSAL_BYTES;
    }
    return rows + r->in->rows > nr_admit_rows(a, l->max_wait_ns, now_ns) ? NR_REFUSAL_WAIT
                                                                         : NR_REFUSAL_NONE;
}

/* r stands behind `rows` rows: will its time pass before it is answered? */
static bool is_hopeless(const struct nr_admit *a, const struct nr_queue *q,
                        const struct nr_request *r, int64_t rows, int64_t now_ns)
{
    int64_t wait_ns = nr_admit_wait(a, rows);
    bool leaves = r->expires_ns != 0 && !q->levels[r->level].rules.delays;
    if (leaves && wait_ns > r->expires_ns - now_ns) {
        return true;
    }
    return r->deadline_ns != 0 &&
           (wait_ns > r->deadline_ns - now_ns || a->run_ns > r->deadline_ns - now_ns - wait_ns);
}

nr_refusal nr_admit_put(const struct nr_admit *a, const struct nr_sched_limits *l,
                        struct nr_queue *q, struct nr_request *r, bool idle, int64_t now_ns,
                        struct nr_request **ret_victim)
{
    struct nr_request *victim = NULL;
    nr_refusal why = check(a, l, q, r, NULL, now_ns);
    *ret_victim = NULL;
    if (why != NR_REFUSAL_NONE) {
        victim = nr_queue_victim(q, r, why == NR_REFUSAL_POLICY);
        if (victim == NULL || check(a, l, q, r, victim, now_ns) != NR_REFUSAL_NONE) {
            return why;
        }
    }
    /* Trying one that is alone disturbs nobody and tells whether the measured times still hold. */
    bool alone = q->n == 0 && idle;
    r->leaves_ns = r->deadline_ns == 0 ? 0 : NR_MAX(r->deadline_ns - a->run_ns, 1);
    int64_t rows = nr_queue_put(q, r);
    if ((r->expires_ns | r->deadline_ns) != 0 && !alone && is_hopeless(a, q, r, rows, now_ns)) {
        nr_queue_remove(q, r);
        return NR_REFUSAL_HOPELESS;
    }
    if (victim != NULL) {
        nr_queue_remove(q, victim);
        *ret_victim = victim;
    }
    return NR_REFUSAL_NONE;
}
