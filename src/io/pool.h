/* Blocking pool: threads for work that may block or is long (image decoding, big JSON bodies,
 * loading models). Bounded queue; jobs run in order of submission. The pool starts threads when
 * they are first needed, up to `threads`, and lets idle ones end after 10 s. */
#ifndef NR_IO_POOL_H
#define NR_IO_POOL_H

#include "base/list.h"
#include "base/status.h"

struct nr_pool;
struct nr_job { /* in its owner's storage until `run` has returned */
    struct nr_list node;
    void (*run)(struct nr_job *j); /* on a pool thread; posts its result to a loop by itself */
};
struct nr_pool *nr_pool_new(const char *name, unsigned threads, unsigned max_queue);
void nr_pool_free(struct nr_pool *p); /* runs what is queued, joins */
/* NARU_UNAVAILABLE when the queue is full. Any thread. */
nr_nodiscard nr_status nr_pool_submit(struct nr_pool *p, struct nr_job *j);
unsigned nr_pool_depth(struct nr_pool *p);

#endif
