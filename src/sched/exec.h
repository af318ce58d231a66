/* Executors: the threads that run batches which do not run on an I/O thread, shared by all models.
 *
 * A model costs no thread. As many threads as cores serve whatever is runnable, in order; when
 * they sit blocked in a plug-in (sleeping, waiting for a device) rather than computing, a spare
 * thread steps in and another spare is made, up to `max_threads`; idle extra threads end.
 */
#ifndef NR_SCHED_EXEC_H
#define NR_SCHED_EXEC_H

#include <stdbool.h>
#include <stdint.h>

#include "base/list.h"
#include "base/status.h"

struct nr_exec;

/* Something that may have work: a model's scheduler. In its owner's storage; zeroed but for run. */
struct nr_runnable {
    /* On an executor thread. Does one piece of work at most; true: call again (behind others). May
     * be called by several threads at once, and when there is nothing to do. */
    bool (*run)(struct nr_runnable *r);
    /* The executor's, under its lock. */
    struct nr_list node;
    bool queued;
    int64_t since_ns; /* queued at */
    int64_t at_ns;    /* timed wake, 0 none */
    struct nr_list timed_node;
    unsigned running; /* threads inside run */
};

/* threads: 0 means the cores this process may use. */
struct nr_exec *nr_exec_new(unsigned threads, unsigned max_threads);
void nr_exec_free(struct nr_exec *e); /* joins; nothing may be runnable any more */
void nr_exec_init(struct nr_runnable *r, bool (*run)(struct nr_runnable *r));
/* run() will be called at least once after this. Any thread. */
void nr_exec_wake(struct nr_exec *e, struct nr_runnable *r);
/* While anybody wants it, twice as many threads as usual may compute at once. Any thread. */
void nr_exec_crowd(struct nr_exec *e, bool wanted);
/* The same at a time; an earlier time replaces a later one. Any thread. */
void nr_exec_wake_at(struct nr_exec *e, struct nr_runnable *r, int64_t at_ns);
/* Returns when no thread is inside run() of r and none will enter it. Not from an executor. */
void nr_exec_retire(struct nr_exec *e, struct nr_runnable *r);
unsigned nr_exec_threads(struct nr_exec *e); /* now alive */

#endif
