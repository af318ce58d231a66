/* Inside the scheduler of one version: the structs that its files share.
 *
 *   sched.c  admission, queue, executors, cancelling, life
 *   place.c  a place: filling its batch, results back to requests, completion
 *   flow.c   several responses to one request, at the pace of their reader
 *   turn.c   inline executions at the end of a loop's turn
 *   prove.c  runs on zeros before the first request: is it short?
 *   warm.c   runs before the first request, so that it finds a warm model
 *   trim.c   memory back from a model that is idle
 *   form.c   how executions use the cores: forms made, neighbours looked for
 *
 * INVARIANTS
 *  1. A request is in exactly one of: a turn's pending list, the queue, a place. Whoever removes it
 *     completes it or hands it on; so it completes exactly once.
 *  2. Requests leave the queue in its order (queue.h), but that those which fit the first one may
 *     pass others (batcher.c); with preserve_ordering in order of arrival, answers, too (order.h).
 *  3. A place is on the idle list, or owned by the thread that took it off, or by the plug-in
 *     (NARU_PENDING), which gives it back through `finished`.
 *  4. Loop-thread data of a request (counters, on_complete, timer) is touched on its loop only.
 *
 * LOCKS. s->lock, then s->finished_lock or the limiter's, then the executor's. A plug-in's cancel slot, a hint
 * that must not block, is called under s->lock; nothing else is. It may be the one that ends the run,
 * so what is called when a run ends takes finished_lock only.
 */
#ifndef NR_SCHED_SCHED_PRIV_H
#define NR_SCHED_SCHED_PRIV_H

#include <pthread.h>
#include <semaphore.h>

#include "sched/batchsize.h"
#include "sched/hold.h"
#include "sched/order.h"
#include "sched/parallel.h"
#include "sched/queue.h"
#include "sched/sched.h"

struct nr_lane { /* what runs the places of one set of executors */
    struct nr_runnable runnable;
    struct nr_sched *sched;
    struct nr_exec *exec;
};

struct nr_place {
    struct nr_sched *sched;
    struct nr_lane *lane;
    struct nr_plugin_instance *instance;
    struct nr_batch *batch;
    struct nr_list node; /* idle or finished */
    struct nr_watched watched;
    struct nr_request **taken;
    unsigned n_taken, taken_capacity;
    struct nr_batch_input *inputs; /* scratch, plug-in order */
    int64_t (*shapes)[NARU_MAX_RANK];
    uint8_t *wanted;
    int64_t rows, begin_ns, infer_begin_ns, infer_end_ns;
    int64_t wait_ns;                       /* of the first request, in the queue */
    uint64_t bytes_copied, bytes_in_place; /* of the batch, already in the scheduler's sums */
    bool is_inline;
    /* A batch that failed as a whole: its requests, run again one by one (nr_place_deliver). */
    struct nr_request **alone;
    unsigned n_alone, alone_at, alone_capacity;
    bool isolated, alone_any_ok;
    unsigned fruitless;  /* such batches one after the other of which no request succeeded */
    int64_t isolated_ns; /* the last one */
    struct nr_limit_user *limit; /* holds resources while it runs; NULL: it needs none */
    bool asked;                  /* and waits for them */
    struct nr_parallel_run run;  /* of an executor's execution … */
    int64_t beside;              /* … and how many ran on average meanwhile, in thousandths */
    sem_t *awaited;              /* a run of warm.c: told instead of the queue when it ends later */
};

struct nr_turn { /* one per loop; loop thread only */
    struct nr_sched *sched;
    struct nr_turn_hook hook;
    struct nr_list pending;
    struct nr_place *place;        /* the loop's own, or NULL */
    struct nr_placement placement; /* of the scheduler, as last seen under its lock */
};

struct nr_sched {
    struct nr_target target;
    struct nr_sched_cfg cfg;
    struct nr_batch_rules turn_rules; /* cfg.rules, but a batch is a prefix of what is pending */
    struct nr_lane *lanes;            /* [n_lanes] one at least; the first is that of cfg.exec */
    unsigned n_lanes;
    struct nr_runnable trimmer;
    struct nr_runnable former;
    struct nr_counters *counters;
    pthread_mutex_t lock;
    struct nr_queue queue;
    struct nr_admit admit;
    unsigned n_running;
    struct nr_list order; /* taken and not answered, with preserve_ordering */
    struct nr_list idle;
    pthread_mutex_t finished_lock;
    struct nr_list finished; /* places whose run ended later; under finished_lock */
    struct nr_place *places;
    unsigned n_places;
    unsigned n_asked;   /* places that wait for resources … */
    int64_t asked_ns;   /* … and since when there was nothing else to wait for; 0: not now */
    int64_t limited_ns; /* sum of such times */
    struct nr_placement placement;
    struct nr_batchsize batchsize; /* of queued batches, with rules.auto_size … */
    struct nr_batchsize side_size; /* the same while several run side by side */
    struct nr_parallel parallel;
    bool forming, looking, crowded; /* form.c */
    struct nr_hold hold;            /* … and whether they wait for clients that come back */
    _Atomic bool is_inline; /* copy of placement.is_inline that submit reads without the lock */
    uint64_t seals[NR_SEAL_COUNT];
    uint64_t refused[NR_REFUSAL_KINDS];
    uint64_t bytes_copied, bytes_in_place;
    uint64_t batch_retries;
    bool stuck; /* nr_sched_set_stuck */
    bool trim_armed;
    int64_t used_ns; /* a place was given back at */
    struct nr_turn *turns;
    pthread_mutex_t flow_lock; /* decoupled models: a leaf */
    pthread_cond_t flow_room;  /* a response was ended, or a request cancelled */
};

static inline struct nr_request *nr_request_of(struct nr_list *node)
{
    return nr_container_of(node, struct nr_request, node);
}

/* --- place.c --- */

/* on_done: of the plug-in's late completions, see nr_batch_cfg. */
nr_nodiscard nr_status nr_place_init(struct nr_place *p, struct nr_sched *s,
                                     struct nr_plugin_instance *instance,
                                     void (*on_done)(struct nr_batch *b, void *place),
                                     struct nr_err *err);
void nr_place_done(struct nr_place *p);
/* Registers it with the limiter, if there is one and the group wants anything: r will be woken. */
nr_nodiscard nr_status nr_place_limit(struct nr_place *p, const struct nr_instance_group *group,
                                      struct nr_exec *exec, struct nr_runnable *r,
                                      struct nr_err *err);
void nr_place_unlimit(struct nr_place *p);
/* Moves the first n requests of `list` into the place. A request that the batch refuses (shapes
 * that disagree with its bytes) is failed, left out and appended to *refused. */
void nr_place_fill(struct nr_place *p, struct nr_list *list, unsigned n, struct nr_list *refused);
/* One request into the place's batch. */
nr_nodiscard nr_status nr_place_add(struct nr_place *p, struct nr_request *r, struct nr_err *err);
/* Results of a finished batch to its requests: completed here and now when the place ran inline,
 * by a message to each request's loop otherwise. False: the place is empty. True (only with
 * cfg.isolate): the batch had failed as a whole, and the place holds one of its requests, to be run
 * alone and delivered in the same way. */
bool nr_place_deliver(struct nr_place *p);
/* Under the lock of whoever owns the place. True: it may run, and holds its resources. False: it waits, and
 * its lane is woken when to try again. */
nr_nodiscard bool nr_place_admit(struct nr_place *p);
void nr_place_calm(struct nr_place *p);    /* under the same lock: it has nothing to run */
void nr_place_release(struct nr_place *p); /* it has run */
/* Before a place rests: the buffers that its batch keeps for the next run go back when memory is
 * short, or a few large requests to many models would hold the budget for ever. */
void nr_place_rest(struct nr_place *p);

/* shape with another view of it (a model's reshape): the k-th open dimension takes the k-th open
 * value. Returns to_rank. */
uint32_t nr_place_map_shape(uint32_t rank, const int64_t *spec, const int64_t *value,
                            uint32_t to_rank, const int64_t *to_spec, int64_t *to);

/* Of a request that failed: why, for the counters. */
nr_fail_reason nr_request_fail_reason(const struct nr_request *r);
void nr_request_fail(struct nr_request *r, nr_status status, const char *text);
/* Loop thread. The request is the caller's again afterwards. */
void nr_request_complete(struct nr_request *r);
void nr_request_on_msg(struct nr_msg *m);
/* Loop thread. Fails and completes; retry_s 0: says nothing about trying again. */
void nr_request_refuse(struct nr_request *r, nr_status status, const char *text, unsigned retry_s);

/* --- flow.c --- */

/* nr_batch_cfg's callbacks of these names; arg is the place, user the request. */
nr_status nr_flow_on_response(void *arg, void *user, struct nr_batch_response *r);
nr_status nr_flow_on_room(void *arg, void *user, int64_t timeout_ns);
/* The request was cancelled: whoever waits for its reader looks again. */
void nr_flow_cancelled(struct nr_sched *s);
/* Loop thread, at completion. Makes a single response the request's outputs. */
void nr_flow_settle(struct nr_request *r);
extern const char nr_flow_too_many[]; /* who asked for one answer got several */

/* --- prove.c --- */

/* A request of `rows` rows of zeros for every input, in the arena. False when shapes are open, have no
 * fixed size, or an input has more than most_bytes. */
bool nr_sched_zeros(const struct nr_signature *sig, int64_t rows, uint64_t most_bytes,
                    struct nr_arena *a, struct nr_infer_request *in);

/* --- turn.c --- */

/* Runs what is pending on this loop, or hands it to the queue. The loop's turn hook. */
void nr_turn_run(struct nr_turn_hook *h);

/* --- trim.c --- */

/* Under the lock: an execution on an executor has ended. */
void nr_trim_arm(struct nr_sched *s);
bool nr_trim_run(struct nr_runnable *runnable); /* of the trimmer */

/* --- form.c --- */

/* An execution on an executor has ended; before its requests are answered, whose clients may be back at once. */
void nr_form_ended(struct nr_place *p, bool ran);
/* Under the lock: may an execution begin now for what is queued? */
bool nr_form_may_begin(struct nr_sched *s, int64_t now_ns);
/* Under the lock, which it gives up meanwhile: an execution on an executor has ended. Looks for neighbours
 * now and then, and has forms made. */
void nr_form_tend(struct nr_sched *s, int64_t now_ns);
bool nr_form_run(struct nr_runnable *runnable); /* of the former */
/* Under the lock: the model is idle, its other forms may go soon. */
void nr_form_idle(struct nr_sched *s);

/* --- sched.c --- */

/* Any thread. Answers requests that a batch took: a message to each one's loop, in their order where
 * the configuration wants that. They are their submitters' afterwards. */
void nr_sched_answer(struct nr_sched *s, struct nr_request *const *all, unsigned n);
/* Loop thread. */
void nr_sched_enqueue(struct nr_sched *s, struct nr_request *r);
/* Any thread: every lane looks for work. */
void nr_sched_wake(struct nr_sched *s);
/* Under the lock. What a finished run teaches. cpu_ns: time on the processor, -1 when it was not
 * measured. */
void nr_sched_observe(struct nr_sched *s, struct nr_place *p, int64_t cpu_ns);

#endif
