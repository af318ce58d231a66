/* Blocking pool: threads for work that may block or is long (image decoding, big JSON bodies,
 * loading models). Bounded queue; jobs are started in order of submission. The pool starts threads
 * when they are first needed, up to `threads`, and lets idle ones end after 10 s. Its threads
 * block all signals. Functions may be called by any thread, nr_pool_free by one only. */
#ifndef NR_IO_POOL_H
#define NR_IO_POOL_H

#include <stdint.h>

#include "base/list.h"
#include "base/status.h"

struct nr_pool;
struct nr_job { /* in its owner's storage until `run` begins, which may free it */
    struct nr_list node;
    void (*run)(struct nr_job *j); /* on a pool thread; posts its result to a loop by itself */
};
/* name (at most 10 bytes are used) shows in ps and in debuggers. Aborts without memory. */
struct nr_pool *nr_pool_new(const char *name, unsigned threads, unsigned max_queue);
/* Runs what is queued, joins; accepts NULL. Nothing may be submitted any more, not by jobs either. */
void nr_pool_free(struct nr_pool *p);
/* NARU_UNAVAILABLE when the queue is full, NARU_EXHAUSTED when no thread can be started and none
 * runs: the job is then still the caller's and was not run. */
nr_nodiscard nr_status nr_pool_submit(struct nr_pool *p, struct nr_job *j);
unsigned nr_pool_depth(struct nr_pool *p);   /* jobs that wait, without those that run */
unsigned nr_pool_threads(struct nr_pool *p); /* threads there are now */
void nr_pool_set_idle(struct nr_pool *p, int64_t idle_ns); /* instead of 10 s */

#endif
