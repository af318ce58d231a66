/* Inside a pipeline: the structs that its files share.
 *
 *   pipeline.c  a request: what it needs, its beginning and its end
 *   pipestep.c  one step: starting it, what it made to its readers
 *   pipefork.c  decoupled steps: a scope for each answer, answers to the client in order
 *
 * Words. A run serves one request. A scope is everything of one level (ensemble.h) that belongs to
 * one answer of each decoupled step above it; the root, level 0, is the whole of a run without
 * decoupled steps. A leaf is a scope of the run's deepest level: it becomes one answer.
 *
 * INVARIANTS
 *  1. Each step is in its scope's ready list at most once, and only when all that it reads is settled.
 *     As the graph has no circle (ensemble.c), a scope with nothing ready, nothing in flight and no
 *     answer to fork is at rest.
 *  2. A step's arena is touched by nobody else between its submission and its completion.
 *  3. run->busy keeps a run from ending below functions that still use it: completions and answers of
 *     steps may come from within a submission or a cancel.
 *  4. A scope lives until it has left the order of answers, its own answer was ended, and the scopes
 *     below it are gone. So whatever a leaf's answer refers to, of any level, is there as long as
 *     the answer is.
 *  5. A scope has forks only when all of its tensors that deeper levels read are settled: they take
 *     a copy of its values.
 *
 * Threads: loop of the request, but for steps of naru's own that run on the pool.
 */
#ifndef NR_SCHED_PIPELINE_PRIV_H
#define NR_SCHED_PIPELINE_PRIV_H

#include "model/ensemble.h"
#include "sched/pipeline.h"
#include "sched/stepwork.h"

struct nr_pipe_loop_count {                /* alone in its cache line */
    _Alignas(64) _Atomic unsigned running; /* written by its loop, partner: nr_pipeline_running */
};

struct nr_pipeline {
    struct nr_target target;
    struct nr_pipeline_cfg cfg;
    const struct nr_ensemble *graph;
    struct nr_counters *counters;
    struct nr_pipe_loop_count *loops;
    uint32_t max_forks; /* scopes of one level of a run */
};

struct
    nr_pipe_child { /* a step under way, or done while somebody reads its outputs; in its arena */
    struct nr_pipe_scope *scope;
    uint32_t step;
    struct nr_request request; /* of naru's own steps only msg, status, error, cancelled are used */
    struct nr_infer_request in;
    struct nr_stepwork work;
    struct nr_job job;
};

struct nr_pipe_step {
    struct nr_arena arena;
    struct nr_pipe_child *child; /* while it is in flight */
    uint32_t waits;              /* entries of its input map that are not settled */
    uint32_t holds;              /* readers of its outputs that have not ended, and the answer */
};

struct nr_pipe_scope {
    struct nr_pipe_run *run;
    struct nr_pipe_scope *up;   /* NULL: the root */
    struct nr_arena arena;      /* of all but the root: holds this struct and its arrays */
    struct nr_pipe_step *steps; /* [n_steps], those of this level are used */
    const struct nr_infer_tensor **values; /* [n_tensors] NULL: not settled, or absent */
    uint32_t *ready;                       /* each step once */
    uint32_t level, n_ready, n_started, in_flight;
    uint32_t n_open;           /* of its tensors that deeper levels read: not settled */
    struct nr_list node;       /* run->scopes: those above it come first */
    struct nr_list ready_node; /* run->runnable: has steps to start */
    struct nr_list wait_node;  /* run->waiting: has answers in `pending` */
    struct nr_list order_node; /* up->subs, until it is given */
    struct nr_list subs;       /* in the order of the decoupled step's answers */
    struct nr_list pending;    /* answers of the decoupled step, not forked yet */
    uint32_t n_subs;           /* alive, given or not */
    bool last_seen;            /* the decoupled step said that it gives no more */
    bool stopped;              /* a step failed: nothing is started or forked */
    bool given;                /* has left the order: answered, or nothing to answer */
    bool held;                 /* its answer was not ended */
    nr_status status;          /* of the first step that failed; told when its turn comes */
    nr_fail_reason reason;
    unsigned retry_after_s;
    struct nr_str error;
    struct nr_answer *from; /* what it was forked for */
    struct nr_answer answer;
};

struct nr_pipe_plan { /* of one step, for the outputs that are asked for */
    uint32_t waits, holds;
    bool needed;
};

struct nr_pipe_run {
    struct nr_pipeline *pipeline;
    struct nr_request *r;
    const struct nr_member *members;
    uint32_t n_steps; /* the pipeline may be gone when the arena is cleared */
    uint32_t depth;   /* level of the answer; 0: there is one answer */
    struct nr_pipe_plan *plan;
    bool *wanted; /* [n_tensors] */
    /* With decoupled members only. */
    bool *deep;                   /* [n_tensors] made by an ordinary step, read in a deeper level */
    uint32_t *n_deep;             /* [levels] how many of them */
    uint32_t *n_alive;            /* [levels] scopes */
    const uint32_t *decoupled_at; /* [levels] the decoupled step */

    struct nr_pipe_scope root;
    struct nr_list scopes, runnable, waiting;
    uint32_t in_flight; /* steps, of all scopes */
    bool busy;
    bool over;           /* completed: only answers are still out */
    bool posted;         /* msg is on its way to the loop */
    bool has_only;       /* r->on_answer is NULL: r->outputs has the first answer */
    struct nr_msg msg;   /* there may be room for a fork */
    nr_status cancelled; /* why, NARU_OK: it is not */
    nr_fail_reason reason;
};

/* Nothing more is started, forked or answered. */
static inline bool nr_pipe_is_dead(const struct nr_pipe_run *run)
{
    return run->r->status != NARU_OK || run->cancelled != NARU_OK;
}
/* What a step of this level reads there: settled in each scope anew. */
static inline uint32_t nr_pipe_tensor_level(const struct nr_member *writer)
{
    return writer->level + writer->decoupled;
}

/* --- pipeline.c --- */

/* Starts what is ready, forks and answers what can be; ends the run when nothing is left. */
void nr_pipe_pump(struct nr_pipe_run *run);
/* The request fails: the steps under way are told, answers that wait are ended. Its status counts if
 * it is the first one. */
void nr_pipe_fail(struct nr_pipe_run *run, nr_status status, struct nr_str error,
                  nr_fail_reason reason);

/* --- pipestep.c --- */

/* A step whose inputs are settled. */
void nr_pipe_start(struct nr_pipe_scope *s, uint32_t step);
/* The tensor is there, or will never be (value NULL): who waited for it? */
void nr_pipe_settle(struct nr_pipe_scope *s, uint32_t tensor, const struct nr_infer_tensor *value);
/* Asks the steps of the scope that are under way to stop. */
void nr_pipe_cancel_steps(struct nr_pipe_scope *s, nr_status status, bool running_too);

/* --- pipefork.c --- */

/* Lists and steps of a scope whose arrays are there. */
void nr_pipe_scope_init(struct nr_pipe_scope *s, struct nr_pipe_run *run, struct nr_pipe_scope *up);
/* nr_request.on_answer of a decoupled step. */
void nr_pipe_on_answer(struct nr_request *q, struct nr_answer *answer);
/* False: nothing could be forked. */
bool nr_pipe_fork(struct nr_pipe_run *run);
/* Gives answers whose turn it is. False: none was. */
bool nr_pipe_give(struct nr_pipe_run *run);
/* Ends the answers that wait for their fork. */
void nr_pipe_drop_pending(struct nr_pipe_scope *s);
/* The run is over: scopes that gave no answer go. */
void nr_pipe_drop_scopes(struct nr_pipe_run *run);

#endif
