/* Executors: the threads that run batches which do not run on an I/O thread, shared by all models.
 *
 * A model costs no thread. As many threads as cores serve whatever is runnable, fairly by the time that
 * each has used (fair.h); when they sit blocked in a plug-in (sleeping, waiting for a device) rather than computing, a spare
 * thread steps in and another spare is made, up to `max_threads`; idle extra threads end.
 */
#ifndef NR_SCHED_EXEC_H
#define NR_SCHED_EXEC_H

#include <stdbool.h>
#include <stdint.h>

#include "base/cpu.h"
#include "base/list.h"
#include "base/status.h"
#include "sched/fair.h"

struct nr_exec;

/* Something that may have work: a model's scheduler. In its owner's storage. */
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
    struct nr_share share;
};

/* threads: 0 means the cores this process may use. */
struct nr_exec *nr_exec_new(unsigned threads, unsigned max_threads);

struct nr_exec_binding { /* where threads run, and their memory comes from */
    const char *name;    /* in the threads' names, cut; copied */
    bool bound;
    struct nr_cpu_set cores; /* when bound */
    int node;                /* -1 any */
};
/* The same with threads that are bound. */
struct nr_exec *nr_exec_new_bound(unsigned threads, unsigned max_threads,
                                  const struct nr_exec_binding *binding);
void nr_exec_free(struct nr_exec *e); /* joins; nothing may be runnable any more */
/* Its share is the usual one; before the first wake r->share.cost may be set. */
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
/* The calling thread, when it is an executor; else NULL. Only for: */
const void *nr_exec_self(void);
/* The run() that `thread` began before since_ns may never return: until it does, the thread counts
 * neither as one that computes nor against max_threads. Any thread. */
void nr_exec_give_up(struct nr_exec *e, const void *thread, int64_t since_ns);

#endif
