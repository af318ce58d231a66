/* Runs that do not return: noticed, told, and cleared when they do.
 *
 * A lane is where one run at a time is under way: a place of a scheduler, or of a sequencer. Whoever
 * begins and ends a run says so in the lane, by one plain store each. One thread looks at all lanes:
 * a run that has lasted longer than its limit makes its lane stuck. When all lanes of a scheduler are
 * stuck, its queue is refused, and the version is not READY until one of them returns (within
 * LOOK_STUCK_NS of that). The executor thread of a stuck run is not counted on any more.
 *
 * The limit: of a configuration (naru.watchdog_ms) it is taken as it is; the server's
 * (--watchdog-timeout) is raised to 20 times the 99.9th percentile that was measured, but not beyond
 * 10 times itself. 0: none.
 *
 * Executions on I/O threads are not watched, nor are those of a load (the version is LOADING then).
 *
 * Order of a version's life: nr_runwatch_new, its schedulers with nr_runwatch_add, nr_runwatch_start …
 * nr_runwatch_free before the schedulers are freed.
 */
#ifndef NR_SCHED_WATCHDOG_H
#define NR_SCHED_WATCHDOG_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/list.h"
#include "base/status.h"
#include "base/str.h"

struct nr_counters;
struct nr_exec;
struct nr_sched;
struct nr_version;
struct nr_runwatch;
struct nr_watchdog;

struct nr_watched {               /* in its owner's storage, zeroed */
    _Atomic int64_t since_ns;     /* the run began at; 0: none. Written by whoever runs */
    _Atomic(const void *) thread; /* nr_exec_self() of the run */
    struct nr_list node;
    struct nr_sched *sched;
    bool stuck; /* the watchdog's */
};

static inline void nr_watched_begin(struct nr_watched *l, const void *thread, int64_t now_ns)
{
    atomic_store_explicit(&l->thread, thread, memory_order_relaxed);
    atomic_store_explicit(&l->since_ns, now_ns, memory_order_release);
}
static inline void nr_watched_end(struct nr_watched *l)
{
    atomic_store_explicit(&l->since_ns, 0, memory_order_relaxed);
}

struct nr_watchdog *nr_watchdog_new(void);
/* Starts the thread; exec: whose threads run. False: no thread can be had. */
bool nr_watchdog_start(struct nr_watchdog *d, struct nr_exec *exec);
/* Ends the thread; accepts NULL and one that was not started. No watch may be left. */
void nr_watchdog_free(struct nr_watchdog *d);
/* What the thread does: looks at everything once. Returns when to look again, INT64_MAX: when there is
 * something. For tests, without the thread. */
int64_t nr_watchdog_look(struct nr_watchdog *d, int64_t now_ns);
/* Lanes that are stuck now. Any thread. */
unsigned nr_watchdog_stuck(const struct nr_watchdog *d);
/* Appends "model M version V" of each version with a run that began before since_ns, comma between;
 * the number of those versions. Any thread. */
unsigned nr_watchdog_names(struct nr_watchdog *d, int64_t since_ns, struct nr_text *t);

/* limit_ns 0: nothing is watched. exact: see above. d may be NULL: then nothing is, either. */
struct nr_runwatch *nr_runwatch_new(struct nr_watchdog *d, struct nr_version *v, int64_t limit_ns,
                                    bool exact);
void nr_runwatch_add(struct nr_runwatch *w, struct nr_watched *l, struct nr_sched *s);
/* counters: of the measured times. */
void nr_runwatch_start(struct nr_runwatch *w, const struct nr_counters *counters);
/* Returns when the watchdog is not at it. Accepts NULL. */
void nr_runwatch_free(struct nr_runwatch *w);
unsigned nr_runwatch_stuck(const struct nr_runwatch *w); /* lanes; accepts NULL; any thread */

#endif
