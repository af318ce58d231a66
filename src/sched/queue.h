/* The queue of one model version: priority levels, time-outs, fairness among clients.
 *
 * One list in the order of service, so that a batch is planned by walking it (batcher.h):
 *
 *   level 1 in time │ level 1 delayed │ level 2 in time │ level 2 delayed │ …
 *
 * Within "in time" a request stands by its start tag (fair queueing, below); "delayed" holds those
 * whose time-out passed under a policy with DELAY, in the order in which it did. With one level and
 * one client that is a plain FIFO, and putting one at the end is all that happens.
 *
 * Fairness. Start-time fair queueing (Goyal, Vin, Cheng, SIGCOMM 1996), stochastic as McKenney's
 * (1990): a client's tag grows by the rows it queues, and lower tags go first, so a flood of one
 * client stands behind the first request of another. Clients share NR_QUEUE_CLIENTS slots by hash.
 * The last of the list is thus the newest request of whoever is furthest over his share.
 *
 * Pure logic on given times; the caller holds its lock. A request is in one queue at most, by .node.
 */
#ifndef NR_SCHED_QUEUE_H
#define NR_SCHED_QUEUE_H

#include <stdbool.h>
#include <stdint.h>

#include "sched/request.h"

#define NR_QUEUE_MAX_LEVELS 256
#define NR_QUEUE_CLIENTS 256
#define NR_QUEUE_FAIR_FROM 8 /* waiting requests; a shorter queue is first come, first served */

/* Triton's ModelQueuePolicy, of one level. */
struct nr_queue_rules {
    bool delays;           /* timeout_action DELAY, else REJECT */
    bool may_override;     /* a request's own timeout may shorten it */
    unsigned max_requests; /* max_queue_size, delayed ones included; 0 no limit of its own */
    int64_t timeout_ns;    /* 0 none */
};

struct nr_queue_level {
    struct nr_queue_rules rules;
    unsigned n; /* waiting, delayed included */
    struct {
        struct nr_list *last; /* NULL: empty */
        int64_t rows;
    } part[2]; /* in time, delayed */
};

struct nr_queue {
    struct nr_list order;
    unsigned n;
    int64_t rows;
    uint64_t bytes;
    unsigned n_levels, default_level; /* indexes from 0: Triton's level 1 is 0 */
    struct nr_queue_level *levels;
    bool in_order;   /* first come, first served, whoever comes */
    uint64_t now;    /* virtual time: the tag of the request taken last */
    uint64_t newest; /* the largest tag ever given */
    uint64_t *tags;  /* [NR_QUEUE_CLIENTS] next tag of a client; NULL until the queue grows */
    struct nr_request **heap; /* by due_ns; those without time limits are not in it */
    unsigned n_heap, heap_capacity;
};

/* rules: [n_levels], copied; n_levels from 1 to NR_QUEUE_MAX_LEVELS. default_level from 0. */
void nr_queue_init(struct nr_queue *q, const struct nr_queue_rules *rules, unsigned n_levels,
                   unsigned default_level, bool in_order);
void nr_queue_done(struct nr_queue *q); /* empty */

/* Level (from 0) of a request by its `priority` parameter: what is no level gets the default one. */
unsigned nr_queue_level_of(const struct nr_queue *q, uint64_t priority);
/* The time-out that applies to a request, 0 none: a client may shorten, never prolong. */
int64_t nr_queue_timeout(const struct nr_queue *q, unsigned level, uint64_t own_us);

/* Puts r in its place; reads r->level, client, in->rows, bytes, expires_ns, leaves_ns. Returns the
 * rows that stand before it. */
int64_t nr_queue_put(struct nr_queue *q, struct nr_request *r);
void nr_queue_remove(struct nr_queue *q, struct nr_request *r);
/* The same when it is removed to be run: moves the virtual time. */
void nr_queue_take(struct nr_queue *q, struct nr_request *r);
/* Who would have to leave for r: the last of r's level (`of_level`) or of the queue, when it stands
 * behind the place that r would get. NULL: r itself is the one too many. */
struct nr_request *nr_queue_victim(const struct nr_queue *q, const struct nr_request *r,
                                   bool of_level);
/* Handles what is due at now_ns: a time-out under DELAY moves its request to the delayed part; the
 * next request that has to leave is removed and returned. NULL: no more. The only request waiting
 * may stay until its deadline itself has passed, since nothing else is delayed by trying it. */
struct nr_request *nr_queue_expire(struct nr_queue *q, int64_t now_ns);
/* Waiting requests of a level. */
static inline unsigned nr_queue_waiting(const struct nr_queue *q, unsigned level)
{
    return q->levels[level].n;
}

#endif
