/* The batcher's decision, without threads or clocks of its own: given a queue, the time and what
 * is running, how many requests form the next batch, or until when to wait.
 *
 * Pure functions over a list, so that every rule is tested on invented times.
 */
#ifndef NR_SCHED_BATCHER_H
#define NR_SCHED_BATCHER_H

#include <stdbool.h>
#include <stdint.h>

#include "sched/queue.h"

#define NR_BATCH_MAX_PREFERRED 16

struct nr_batch_rules {
    int64_t max_rows; /* max_batch_size; 1 request per execution when batching is off */
    bool batching;    /* dynamic batching is on */
    bool auto_size;   /* nobody asked for batches: sizes follow what they gain (batchsize.h) */
    bool in_order;    /* a batch is a prefix of the queue: preserve_ordering, inline turns */
    int64_t delay_ns; /* max_queue_delay_microseconds */
    const struct nr_io_spec *ragged; /* the model's inputs when some may differ in shape within a
                                        batch (allow_ragged_batch); else NULL. Borrowed */
    unsigned n_preferred;
    int64_t preferred[NR_BATCH_MAX_PREFERRED]; /* ascending, <= max_rows */
};

/* Why a batch was sealed where it was; counted for `why` and the metrics. */
#define NR_SEAL_MAP(X)                                                                          \
    X(NR_SEAL_SINGLE, "single")       /* batching is off or the model has no batch dimension */ \
    X(NR_SEAL_FULL, "full")           /* max_batch_size reached */                              \
    X(NR_SEAL_PREFERRED, "preferred") /* a preferred size reached */                            \
    X(NR_SEAL_SHAPE, "shape")         /* requests of other shapes or inputs wait, too */        \
    X(NR_SEAL_NEXT_TOO_BIG, "next")   /* the next request would exceed the maximum */           \
    X(NR_SEAL_DELAY, "delay")         /* the oldest request has waited its delay */             \
    X(NR_SEAL_IDLE, "idle")           /* an instance was idle and nothing else was queued */    \
    X(NR_SEAL_STRATEGY, "strategy")   /* the model's batching strategy decided */
typedef enum nr_seal {
#define NR_SEAL_ENUM(symbol, text) symbol,
    NR_SEAL_MAP(NR_SEAL_ENUM)
#undef NR_SEAL_ENUM
    NR_SEAL_COUNT
} nr_seal;
const char *nr_seal_text(nr_seal why);

struct nr_batch_plan {
    unsigned n_requests; /* 0: wait or nothing to do. The first of the queue and the next ones that
                            join it (nr_batcher_joins) */
    int64_t rows;
    bool scattered;        /* others stand between them */
    int64_t wait_until_ns; /* when n_requests is 0 and the queue is not empty */
    nr_seal why;
};

/* queue: struct nr_request by .node, in the order of service. */
struct nr_batch_plan nr_batcher_plan(const struct nr_batch_rules *rules,
                                     const struct nr_list *queue, int64_t now_ns);

/* Carries a plan out: its requests from the queue, unchanged since, to the end of *ret. */
void nr_batcher_take(const struct nr_batch_rules *rules, const struct nr_batch_plan *plan,
                     struct nr_queue *q, struct nr_list *ret);

/* True when b may be in one batch with a: same inputs, same shapes but for the batch dimension and
 * ragged inputs. */
bool nr_batcher_joins(const struct nr_batch_rules *rules, const struct nr_infer_request *a,
                      const struct nr_infer_request *b);

#endif
