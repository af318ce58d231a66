/* How the executions of a model share the cores: one at a time on all of them, or several side by side with one
 * thread each. Decided from measured times under the conditions of the moment. Pure logic on given times.
 *
 *   wide   one at a time, all cores, threads that wait busily: the fastest for one that has the cores for itself
 *   quiet  one at a time, all cores, threads that sleep when they wait
 *   side   as many as there are cores, one thread each: no waiting for each other between operators
 *   crowd  twice as many: beside other processes the kernel's fair shares go to whoever has more to run
 *
 * There are two situations, since the answers differ: *lone*, where no other request waits or runs, and *many*.
 * In each one way is in use and its cost (time for a row, divided by how many ran meanwhile) is smoothed. Now and
 * then another way that comes into question is tried for some executions, and kept when it costs less. A way
 * that needs a form that the plug-in has not made yet (naru_form) asks for it and is tried when it is there, so
 * nothing waits for a form. What was learned while other processes wanted the cores (pressed) and
 * while none did is kept apart, so when they come or go the best known way is in use at once. Without them
 * nothing but wide and side comes into question: threads wait busily only while nobody else wants the cores.
 *
 * Executions of different ways do not overlap: a change waits until those that run have ended.
 *
 * The caller holds its lock.
 */
#ifndef NR_SCHED_PARALLEL_H
#define NR_SCHED_PARALLEL_H

#include <stdbool.h>
#include <stdint.h>

#include "naru/backend.h"

#define NR_WAY_MAP(X)        \
    X(NR_WAY_WIDE, "wide")   \
    X(NR_WAY_QUIET, "quiet") \
    X(NR_WAY_SIDE, "side")   \
    X(NR_WAY_CROWD, "crowd")
typedef enum nr_way {
#define NR_WAY_ENUM(symbol, text) symbol,
    NR_WAY_MAP(NR_WAY_ENUM)
#undef NR_WAY_ENUM
    NR_WAYS,
    NR_WAY_NONE = NR_WAYS
} nr_way;
const char *nr_way_text(nr_way way); /* "none" for NR_WAY_NONE */

typedef enum nr_parallelism { /* parameter naru.parallelism */
    NR_PARALLEL_AUTO,
    NR_PARALLEL_WIDE,  /* one at a time on all cores */
    NR_PARALLEL_NARROW /* as many as cores, one thread each, once that form is there */
} nr_parallelism;

struct nr_parallel_cfg {
    bool on; /* the model is elastic (NARU_MODEL_ELASTIC); else everything is wide, without
                               a limit of how many */
    nr_parallelism wish;
    unsigned cores, places; /* executions that may run at once */
};

struct nr_way_cost {
    int64_t row_ns; /* smoothed */
    unsigned n;     /* executions in it */
};

struct
    nr_parallel_side { /* what is known of a situation, with or without others who want the cores */
    nr_way home, now, trial; /* usual; in use; being tried, or NR_WAY_NONE */
    unsigned trial_n, last_candidate;
    int64_t trial_since_ns, next_ns, backoff_ns;
    int64_t judged_ns; /* cost of `now` at the last trial */
    struct nr_way_cost costs[NR_WAYS];
};

struct nr_parallel {
    struct nr_parallel_cfg cfg;
    bool pressed;
    unsigned n_pressing;                 /* looks in a row that found others */
    struct nr_parallel_side sides[2][2]; /* [many][pressed] */
    uint32_t made, wanted, refused;      /* forms, 1 << enum naru_form */
    unsigned form_running[NARU_FORMS];
    int64_t form_used_ns[NARU_FORMS];
    int64_t form_make_ns[NARU_FORMS]; /* how long it took; while it is made: since when */
    nr_way running_way;               /* of those that run */
    unsigned n_running;
    bool chose_many;             /* situation of the last nr_parallel_choose */
    int64_t demand, demand_ns;   /* requests that waited or ran when the last execution ended */
    int64_t area_ns, area_at_ns; /* sum over time of how many ran */
    int64_t look_ns, busy_ns, own_ns;
    uint64_t runs[NR_WAYS], n_trials, n_changes;
};

struct nr_parallel_run { /* of one execution; the place keeps it */
    nr_way way;
    bool many, pressed;
    uint32_t form;
    int64_t area_ns;
};

void nr_parallel_init(struct nr_parallel *p, const struct nr_parallel_cfg *cfg);
/* The way in which another execution may begin now while `waiting` requests wait (at least one);
 * NR_WAY_NONE: when one of those that run has ended. */
nr_way nr_parallel_choose(struct nr_parallel *p, unsigned waiting, int64_t now_ns);
/* An execution begins; way is what nr_parallel_choose has just said. */
struct nr_parallel_run nr_parallel_begin(struct nr_parallel *p, nr_way way, int64_t now_ns);
/* It has ended; rows 0: it teaches nothing. waiting: requests in the queue now. */
void nr_parallel_end(struct nr_parallel *p, const struct nr_parallel_run *run, int64_t rows,
                     int64_t run_ns, unsigned waiting, int64_t now_ns);
/* How many ran on average while one that began with `run` and took run_ns did; in thousandths, at least 1000. */
int64_t nr_parallel_beside(struct nr_parallel *p, const struct nr_parallel_run *run, int64_t run_ns,
                           int64_t now_ns);
unsigned nr_parallel_lanes(const struct nr_parallel *p, nr_way way);
/* Is it time for nr_parallel_look? */
bool nr_parallel_looks(const struct nr_parallel *p, int64_t now_ns);
/* Time of the cores used by everybody and by this process, as far as it can be read. */
void nr_parallel_look(struct nr_parallel *p, int64_t busy_ns, int64_t own_ns, int64_t now_ns);
/* When the last form but the first may go if nothing uses it before; 0: there is none. */
int64_t nr_parallel_unused_ns(const struct nr_parallel *p);
/* The next form to make (*ret_make) or to drop; 0: none. A form to drop is not used any more. */
uint32_t nr_parallel_job(struct nr_parallel *p, int64_t now_ns, bool *ret_make);
bool nr_parallel_has_job(const struct nr_parallel *p, int64_t now_ns);
/* What became of making it. */
void nr_parallel_made(struct nr_parallel *p, uint32_t form, bool ok, int64_t now_ns);
/* Are there to be more executions at once than cores, be it for a trial? */
bool nr_parallel_crowds(const struct nr_parallel *p);
/* The way in use in a situation now, trials aside. */
nr_way nr_parallel_way(const struct nr_parallel *p, bool many);

#endif
