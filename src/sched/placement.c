/* Placement with hysteresis; see the header for the states.
 *
 * DESIGN. Wall time is what the loop loses, but on a busy machine a preempted thread looks slow, and
 * a model must not be moved for its neighbours' sake. So what counts as slow is time on the processor;
 * an execution that was long without computing was preempted, or blocked against its promise: the
 * latter repeats itself, so three such in a row count. Single slow executions and a slow drift are
 * told apart: the former are counted against a bound far above the usual time, since a shared
 * machine inflates any time now and then; the latter shows in the smoothed time. The allowance grows
 * with the rows up to the turn's budget, so that a full batch per turn is not taken for a slow model.
 *
 * INVARIANTS
 *  1. is_inline implies cfg.allowed.
 *  2. After a demotion no promotion before retry_ns.
 */
#include "sched/placement.h"

#include "base/clock.h"
#include "base/status.h"

#define BACKOFF_MIN_NS (100 * NR_MS_NS)
#define BACKOFF_MAX_NS (60 * NR_S_NS)
#define QUIET_NS (60 * NR_S_NS)
#define WINDOW 1024
#define STALLS 3

void nr_placement_cfg_default(struct nr_placement_cfg *cfg)
{
    *cfg = (struct nr_placement_cfg){.allowed = false,
                                     .short_ns = 30 * NR_US_NS,
                                     .slow_ns = 1 * NR_MS_NS,
                                     .budget_ns = 100 * NR_US_NS,
                                     .proof = 16};
}

void nr_placement_init(struct nr_placement *p, const struct nr_placement_cfg *cfg)
{
    *p = (struct nr_placement){.cfg = *cfg, .backoff_ns = BACKOFF_MIN_NS};
}

int64_t nr_placement_expect(const struct nr_placement *p, int64_t rows)
{
    return p->run_ns + rows * p->row_ns;
}

static void smooth(struct nr_placement *p, int64_t rows, int64_t run_ns)
{
    /* Two unknowns, one sample at a time: single rows teach the fixed cost, larger batches the
     * cost per row on top of it. */
    if (rows <= 1) {
        p->run_ns = p->run_ns == 0 ? run_ns : p->run_ns + (run_ns - p->run_ns) / 16;
        return;
    }
    int64_t row_ns = NR_MAX(run_ns - p->run_ns, 0) / rows;
    p->row_ns = p->row_ns == 0 ? row_ns : p->row_ns + (row_ns - p->row_ns) / 16;
}

static void demote(struct nr_placement *p, int64_t now_ns)
{
    if (now_ns - p->demoted_ns > QUIET_NS + p->backoff_ns) {
        p->backoff_ns = NR_MAX(p->backoff_ns / 2, BACKOFF_MIN_NS);
    }
    p->is_inline = false;
    p->streak = 0;
    p->window = p->over = p->stalls = 0;
    p->demoted_ns = now_ns;
    p->retry_ns = now_ns + p->backoff_ns;
    p->backoff_ns = NR_MIN(p->backoff_ns * 2, BACKOFF_MAX_NS);
    p->n_demoted++;
}

static void observe_pooled(struct nr_placement *p, bool is_short, int64_t now_ns)
{
    p->streak = is_short ? p->streak + 1 : 0;
    if (p->cfg.allowed && p->streak >= p->cfg.proof && now_ns >= p->retry_ns) {
        p->is_inline = true;
        p->window = p->over = p->stalls = 0;
        p->n_promoted++;
    }
}

void nr_placement_observe(struct nr_placement *p, int64_t rows, int64_t run_ns, int64_t cpu_ns,
                          int64_t now_ns)
{
    int64_t allowed_ns = NR_MIN(p->cfg.short_ns * NR_MAX(rows, 1), p->cfg.budget_ns);
    if (!p->is_inline) {
        smooth(p, rows, cpu_ns);
        /* Long without computing may be a neighbour's doing, so it is no proof of a slow model, but
         * beyond `slow` it is none of a short one either. */
        observe_pooled(p, cpu_ns <= allowed_ns && run_ns <= p->cfg.slow_ns, now_ns);
        return;
    }
    smooth(p, rows, NR_MIN(cpu_ns, 4 * allowed_ns)); /* one outlier must not look like a drift */
    p->window++;
    p->over += cpu_ns > p->cfg.slow_ns / 4;
    p->stalls = run_ns > p->cfg.slow_ns && cpu_ns <= p->cfg.slow_ns ? p->stalls + 1 : 0;
    bool drifted = p->run_ns > p->cfg.short_ns;
    if (cpu_ns > p->cfg.slow_ns || p->stalls >= STALLS || p->over > 1 || drifted) {
        demote(p, now_ns);
    } else if (p->window >= WINDOW) {
        p->window = p->over = 0;
    }
}
