/* Where a model's executions run: on the I/O thread that read the request (inline), or on an
 * executor thread. Decided from measured times, with hysteresis. Pure logic on given times.
 *
 *          N executions in a row within budget, and not before `retry`
 *   POOLED ────────────────────────────────────────────────────────────▶ INLINE
 *          ◀────────────────────────────────────────────────────────────
 *          one execution that computed longer than `slow`, or three in a row that merely took
 *          longer; more than 1 in 1,000 that computed longer than a quarter of it; or the smoothed
 *          time of an execution beyond `short`
 *          (retry = now + back-off; the back-off doubles, and halves after a quiet minute)
 *
 * A slow execution on an I/O thread delays everybody on its loop, hence at most once per back-off.
 */
#ifndef NR_SCHED_PLACEMENT_H
#define NR_SCHED_PLACEMENT_H

#include <stdbool.h>
#include <stdint.h>

struct nr_placement_cfg {
    bool allowed;      /* the model qualifies: static graph, one-thread session, never blocks */
    int64_t short_ns;  /* an execution shorter than this may run inline (a thread hop) */
    int64_t slow_ns;   /* longer than this once: back to the pool at once */
    int64_t budget_ns; /* of executions per loop turn */
    unsigned proof;    /* executions in a row that must be short */
};
void nr_placement_cfg_default(struct nr_placement_cfg *cfg);

struct nr_placement {
    struct nr_placement_cfg cfg;
    bool is_inline;
    unsigned streak;  /* short executions in a row while pooled */
    unsigned window;  /* executions of the current window of 1,024 … */
    unsigned over;    /* … of them those that computed longer than short_ns */
    unsigned stalls;  /* executions in a row that took longer than slow_ns without computing */
    int64_t retry_ns; /* not inline before */
    int64_t backoff_ns;
    int64_t demoted_ns;
    int64_t run_ns; /* smoothed fixed cost of an execution */
    int64_t row_ns; /* smoothed cost per row */
    uint64_t n_promoted, n_demoted;
};
void nr_placement_init(struct nr_placement *p, const struct nr_placement_cfg *cfg);
/* One execution of `rows` rows took run_ns, of which cpu_ns on the processor (run_ns where that was
 * not measured). */
void nr_placement_observe(struct nr_placement *p, int64_t rows, int64_t run_ns, int64_t cpu_ns,
                          int64_t now_ns);
/* Expected time of a batch of `rows`. */
int64_t nr_placement_expect(const struct nr_placement *p, int64_t rows);

#endif
