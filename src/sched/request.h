/* One request on its way through the scheduler: submit → complete, asynchronous, exactly once.
 *
 * States, and who moves them (one atomic; the loop that submitted owns the memory):
 *
 *   NEW ──submit──▶ QUEUED ──taken into a batch──▶ RUNNING ──▶ DONE ──on_complete (loop)
 *                      └──cancel / deadline / refused──────────▶ DONE
 *
 * A model version is a target: its scheduler (sched.h), or what stands in front or instead of one.
 * Where a request runs (on the I/O thread that read it, or on an executor thread) is a placement
 * behind the target; callers cannot tell but by the timestamps.
 */
#ifndef NR_SCHED_REQUEST_H
#define NR_SCHED_REQUEST_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/arena.h"
#include "base/list.h"
#include "codec/infer.h"
#include "io/loop.h"
#include "naru/backend.h"

struct nr_catalog;
struct nr_sched;
struct nr_place;

typedef enum nr_request_state {
    NR_REQUEST_NEW,
    NR_REQUEST_QUEUED,
    NR_REQUEST_RUNNING,
    NR_REQUEST_DONE
} nr_request_state;

struct nr_request;

/* What takes requests. In its owner's storage, as the first member or by nr_container_of. */
struct nr_target {
    void (*submit)(struct nr_target *t, struct nr_request *r);
    void (*cancel)(struct nr_target *t, struct nr_request *r, nr_status status, bool running_too);
};

/* One of several answers of a decoupled model or pipeline, on its way to the client. */
struct nr_answer {
    void (*done)(struct nr_answer *answer); /* nr_answer_done: the maker's */
    struct nr_request *request;
    struct nr_infer_tensor *outputs; /* index refers to the signature; [n_outputs], maybe none */
    unsigned n_outputs;
    bool final;          /* no other one follows */
    struct nr_list node; /* the consumer's */
    /* The scheduler's. */
    struct nr_msg msg;
    struct nr_batch_response *memory;
};

struct nr_request {
    /* The submitter's: filled before nr_request_submit. A target that passes the request on to
     * another one sets `target` (a cancel goes there then); the rest is untouched. */
    struct nr_target *target;
    struct nr_loop *loop;   /* on_complete runs here */
    struct nr_arena *arena; /* lent to the scheduler until on_complete */
    const struct nr_infer_request *in;
    /* the snapshot in which the target's version was found, pinned until on_complete: a pipeline
     * finds its members there. May be NULL for a target that is no pipeline. */
    const struct nr_catalog *catalog;
    int64_t arrival_ns;  /* first byte seen; for statistics */
    int64_t deadline_ns; /* CLOCK_MONOTONIC, 0 none; a queued request is refused when it passes */
    uint64_t client;     /* who asks: requests of one client share his part of a full queue */
    const naru_option *options; /* request parameters for the plug-in, as text; may be NULL */
    unsigned n_options;
    void (*on_complete)(struct nr_request *r); /* exactly once; may be before submit returns */
    /* Decoupled models: each response in order, on the loop, before on_complete; the consumer ends
     * each with nr_answer_done, before the request's memory and the pin of its version go. While
     * NR_ANSWER_WINDOW of them are not ended the model waits. NULL: one answer is wanted; a model that gives a second one
     * fails the request. */
    void (*on_answer)(struct nr_request *r, struct nr_answer *answer);

    /* Results, valid in on_complete. Tensor bytes are tied to the arena. */
    nr_status status;
    struct nr_str error; /* text for people when status is not NARU_OK */
    bool abandoned; /* the submitter has answered for it while it ran: counted as a failure. Loop */
    unsigned retry_after_s;          /* with NARU_UNAVAILABLE: 0 means "do not say" */
    struct nr_infer_tensor *outputs; /* in the order of in->outputs */
    unsigned n_outputs;
    bool ran_inline;
    int64_t ran_version; /* of the model, where it is not the one submitted to; else 0 */
    uint32_t batch_rows; /* of the batch it ran in */
    int64_t queued_ns, begin_ns, infer_begin_ns, infer_end_ns, end_ns; /* stage times, monotonic */

    /* Of a target that passes the request on and waits for its completion (it replaces on_complete,
     * and puts both back before it completes the request). */
    void *front;

    void *at_target; /* a pipeline's own state of the request, while it has it */

    /* The scheduler's. */
    struct nr_sched *sched;
    _Atomic uint32_t state;
    _Atomic uint32_t cancelled; /* read by host->request_cancelled while running */
    bool again;                 /* of NARU_OK: not answered, the model wants another execution */
    uint32_t rounds;            /* executions before this one; 0 but with iterative sequences */
    struct nr_answer *only;     /* the first response, when on_answer is NULL */
    _Atomic uint32_t n_answers; /* given to the consumer and not ended */
    bool too_many;              /* more than one, when on_answer is NULL */
    bool leads;                 /* stands for its batch in the counters */
    struct nr_place
        *place;           /* under the scheduler's lock, while a plug-in that can cancel runs it */
    uint32_t place_index; /* its number in the batch */
    struct nr_list node;  /* queue or turn list */
    struct nr_msg msg;
    struct nr_timer timer;
    size_t bytes; /* charged to the queue */
    /* The queue's (queue.h). */
    unsigned level, part, heap_at;
    uint64_t tag;
    int64_t expires_ns; /* the queue's time-out, 0 none */
    int64_t leaves_ns;  /* last moment to begin and still meet deadline_ns, 0 none */
    int64_t due_ns;
    /* Answers in order of requests (order.h); under the scheduler's lock. */
    struct nr_list order_node;
    bool answered;
};

/* Loop thread. Takes over r until on_complete. */
static inline void nr_request_submit(struct nr_request *r)
{
    r->target->submit(r->target, r);
}

#define NR_ANSWER_WINDOW 16
/* Loop thread. The response was sent, or nobody wants it: frees it, and lets the model go on. */
static inline void nr_answer_done(struct nr_answer *answer)
{
    answer->done(answer);
}

/* Loop thread. A queued request completes with NARU_CANCELLED (or `status`) before this returns; a
 * running one is told to the plug-in when `running_too`, and completes when its batch does.
 * Does nothing when it has completed already. */
static inline void nr_request_cancel(struct nr_request *r, nr_status status, bool running_too)
{
    r->target->cancel(r->target, r, status, running_too);
}

#endif
