/* The scheduler of one model version: admission, queue, batching, places, inline execution.
 *
 * A place is an instance of the plug-in together with the batch that runs in it. Requests come from
 * I/O loops (nr_request_submit). A version whose placement is inline collects what was
 * submitted during one loop turn and runs it at the turn's end on the loop's thread, as one batch
 * where the model can batch; everything else goes through the queue to the executor threads.
 *
 * Locks: sched.lock guards queue, idle places, placement. It is held for list work only, never
 * while a plug-in runs or a callback of a request is called.
 */
#ifndef NR_SCHED_SCHED_H
#define NR_SCHED_SCHED_H

#include "base/status.h"
#include "host/batch.h"
#include "host/plugin.h"
#include "proto/model_config.pb-c.h"
#include "sched/admit.h"
#include "sched/batcher.h"
#include "sched/counters.h"
#include "sched/exec.h"
#include "sched/limiter.h"
#include "sched/parallel.h"
#include "sched/placement.h"
#include "sched/request.h"
#include "sched/room.h"
#include "sched/strategy.h"
#include "sched/watchdog.h"

void nr_sched_limits_default(struct nr_sched_limits *l);

struct nr_sched_member {                   /* of an instance, beside its plug-in handle */
    struct nr_exec *exec;                  /* runs it */
    const struct nr_instance_group *group; /* for cfg.limiter; borrowed */
};

struct nr_sched_cfg {
    const char *name; /* of the model, for texts; borrowed for the scheduler's life */
    struct nr_exec *exec;
    struct nr_loop *const *loops; /* borrowed array of the process's loops */
    unsigned n_loops;
    struct nr_plugin_model *model; /* borrowed */
    struct nr_plugin_instance *const
        *instances; /* [n_instances] work for the executors; borrowed */
    unsigned n_instances;
    const struct nr_sched_member
        *members;               /* [n_instances], borrowed for nr_sched_new; NULL: all run
                                              on exec, and none needs resources */
    struct nr_limiter *limiter; /* NULL: --rate-limit=off */
    uint32_t cost;              /* of its time on executors, see fair.h; 0: the usual one */
    struct nr_plugin_instance *const *loop_instances; /* [n_loops] or NULL: inline executions take
                                                         an idle instance of the above */
    const struct nr_signature *signature;             /* borrowed */
    const uint32_t *input_map, *output_map; /* signature index → plug-in index; borrowed */
    const struct nr_batch_ragged *ragged;   /* of the batches; borrowed, NULL none */
    struct nr_room *room;                   /* of the inputs; borrowed, NULL none */
    struct nr_batch_rules rules;
    struct nr_placement_cfg placement;
    struct nr_sched_limits limits;
    struct nr_parallel_cfg parallel; /* .places is set by the scheduler */
    int64_t latency_target_ns;       /* naru.latency_target_ms; 0 none. With rules.auto_size */
    struct nr_runwatch *watch;       /* gets the lanes of executors; borrowed, NULL: none */
    struct nr_counters *counters; /* borrowed, for schedulers that count together; NULL: its own */
    bool iterative; /* a model may ask for another execution of a request (nr_request.again) */
    const struct nr_queue_rules *levels; /* [n_levels] the most urgent first; copied */
    unsigned n_levels;                   /* 0: one, without rules of its own */
    unsigned default_level;              /* from 0 */
    bool preserve_ordering;       /* answers in the order of requests; rules.in_order, not inline */
    bool decoupled;               /* a request may get several responses */
    struct nr_strategy *strategy; /* plans the batches of the queue, with rules.batching and without
                                     auto_size or inline; borrowed, NULL none */
    bool isolate; /* when a batch fails as a whole, its requests run again, one by one. Not with
                     decoupled, nor where a run changes a state */
};

nr_nodiscard nr_status nr_sched_new(const struct nr_sched_cfg *cfg, struct nr_sched **ret,
                                    struct nr_err *err);
/* No request may be in flight and no loop may run its hook any more. Accepts NULL. */
void nr_sched_free(struct nr_sched *s);
/* Runs the model with zeros until its placement is known; only for small fixed shapes. Loading
 * thread, before the first request. */
void nr_sched_prove(struct nr_sched *s);

/* One entry of model_warmup, on every place. model_fd: of input_data_file, beneath warmup/. On a
 * loading thread, before the first request; not for decoupled models. */
nr_nodiscard nr_status nr_sched_warm(struct nr_sched *s, const Inference__ModelWarmup *w,
                                     int model_fd, struct nr_err *err);
/* A few runs on zeros where they make later ones faster; bounded in time. Loading thread, after
 * nr_sched_prove. */
void nr_sched_warm_auto(struct nr_sched *s);

/* The watchdog's: none of its lanes returns. Who waits is refused, who comes, too, until it is false. */
void nr_sched_set_stuck(struct nr_sched *s, bool stuck);

/* Where its requests go; lives as long as the scheduler. */
struct nr_target *nr_sched_target(struct nr_sched *s);
struct nr_counters *nr_sched_counters(struct nr_sched *s);

/* What is going on now. Any thread. */
struct nr_sched_state {
    unsigned queued, running, places;
    unsigned stuck; /* of those that run, as nr_runtime_state_get says */
    uint64_t queued_bytes;
    int64_t queued_rows, row_limit; /* and what the queue may hold at the measured pace */
    bool is_inline, may_inline;
    uint64_t n_promoted, n_demoted;
    int64_t row_ns;     /* smoothed service time per row */
    int64_t limited_ns; /* time in which requests and an idle place waited for resources only */
    struct nr_parallel parallel; /* as it is now; .cfg.on false: nothing is chosen there */
    uint64_t seals[NR_SEAL_COUNT];
    uint64_t refused[NR_REFUSAL_KINDS];
    unsigned n_levels;
    unsigned levels[NR_QUEUE_MAX_LEVELS]; /* requests that wait, by level */
    bool has_strategy;
    uint64_t strategy_refused;             /* answers of a batching strategy */
    uint64_t batch_retries;                /* batches that failed and whose requests ran alone */
    uint64_t bytes_copied, bytes_in_place; /* of inputs: gathered into a batch, or read where they
                                              lay by the plug-in; of finished executions */
};
void nr_sched_state_get(struct nr_sched *s, struct nr_sched_state *ret);

#endif
