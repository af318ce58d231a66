/* A batching strategy in front of the batcher: the queue as a window for the plug-in, and its answer as a
 * plan.
 *
 * Only for models that name one (naru.batch_strategy); the others' batches are planned by batcher.h
 * alone. All memory is made with the strategy. Pure but for the plug-in's own state; the caller holds
 * the scheduler's lock.
 */
#ifndef NR_SCHED_STRATEGY_H
#define NR_SCHED_STRATEGY_H

#include "host/batching.h"
#include "sched/batcher.h"

#define NR_STRATEGY_WINDOW 1024 /* requests that a strategy sees at most */

struct nr_strategy;
/* Takes batching over. */
struct nr_strategy *nr_strategy_new(struct nr_batching *batching);
void nr_strategy_free(struct nr_strategy *s); /* accepts NULL */
/* As nr_batcher_plan, with why NR_SEAL_STRATEGY where the strategy decided. queue is not empty. */
struct nr_batch_plan nr_strategy_plan(struct nr_strategy *s, const struct nr_batch_rules *rules,
                                      const struct nr_list *queue, int64_t now_ns);
/* Carries out the plan that nr_strategy_plan made last: as nr_batcher_take. */
void nr_strategy_take(struct nr_strategy *s, const struct nr_batch_rules *rules,
                      const struct nr_batch_plan *plan, struct nr_queue *q, struct nr_list *ret);
uint64_t nr_strategy_refused(const struct nr_strategy *s); /* answers that broke a promise */

#endif
