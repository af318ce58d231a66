/* Inside the sequencer: what its files share.
 *
 *   seqtable.c   which sequences there are, slots, backlog, idle times
 *   sequence.c   admission, order within a sequence, other versions
 *   seqlife.c    time-outs, the version that is held, the book, life
 *   seqdirect.c  executions with fixed places in the batch
 *   seqtensor.c  control and state tensors
 *
 * INVARIANTS
 *  1. A request is in exactly one of: seq->waiting (WAITING), on its way to its loop (GOING), in the
 *     model (PASSED). While it is GOING or PASSED its sequence is busy, and no other request of the
 *     sequence is either; so order within a sequence is the order of arrival.
 *  2. States of a sequence are touched only by whoever made it busy.
 *  3. A sequence that is neither busy nor has waiting requests is idle in the table, or gone.
 *  4. The version is held from the first sequence on, and let go when there has been none for a
 *     while and every loop has left the code of this sequencer since.
 *
 * LOCKS. book->lock, then q->lock, then the executor's. Neither is held while a scheduler's function,
 * a plug-in or a callback is called, but for a plug-in's cancel slot (as sched.c).
 */
#ifndef NR_SCHED_SEQUENCE_PRIV_H
#define NR_SCHED_SEQUENCE_PRIV_H

#include <pthread.h>

#include "sched/sched_priv.h"
#include "sched/seqtable.h"
#include "sched/sequence.h"

typedef enum nr_seq_stage {
    NR_SEQ_WAITING,
    NR_SEQ_GOING,
    NR_SEQ_PASSED
} nr_seq_stage;

struct nr_sequence_book {
    pthread_mutex_t lock;
    struct nr_list all; /* nr_sequencer.node */
};

struct nr_seq_item { /* a request of a sequence; in its arena, found by r->front */
    struct nr_sequencer *q;
    struct nr_seq *seq;
    nr_seq_stage stage;  /* under q->lock */
    nr_status cancelled; /* while it was GOING; the request's loop */
    bool start, end;
    bool tells_end;         /* END of the next execution; as start, of a request's first one only */
    uint64_t auto_id;       /* of a request that is a sequence by itself; 0: the client's id */
    struct nr_arena round;  /* iterative: r->arena while the request runs, cleared between */
    struct nr_arena *arena; /* the request's own then; else NULL */
    struct nr_infer_request ext; /* `in` with control and state tensors */
    /* What is put back before the request completes. */
    const struct nr_infer_request *in;
    void (*on_complete)(struct nr_request *r);
    struct nr_target *target;
    void *previous;
};

struct nr_seq_value {   /* one state of one sequence */
    struct nr_buf *buf; /* owns data; NULL: the initial state, which the sequencer owns */
    bool own;           /* nobody else has the buffer: it may be written again */
    const uint8_t *data;
    size_t bytes;
    int64_t dims[NARU_MAX_RANK]; /* without the batch dimension */
};

struct nr_seq_first { /* initial bytes of one state */
    uint8_t *data;
    size_t bytes;
};

struct nr_seq_lane { /* one instance, with direct */
    struct nr_place place;
    bool busy;                 /* under q->lock */
    struct nr_request **taken; /* [n_slots] by position; NULL: nothing to run */
    unsigned reach;            /* of taken */
    struct nr_request pad;     /* what stands at such a position */
    struct nr_infer_request pad_in;
};

struct nr_sequencer {
    struct nr_target target;
    struct nr_sequencer_cfg cfg;
    struct nr_list node; /* of the book */
    const char *name;
    struct nr_exec *exec;
    struct nr_loop *const *loops;
    unsigned n_loops;
    struct nr_sched_limits limits;
    struct nr_sched **scheds; /* oldest: one per lane; direct: one that runs nothing by itself */
    unsigned n_scheds;
    struct nr_counters *counters;
    struct nr_seq_first *first; /* [n_states] */
    pthread_mutex_t lock;
    struct nr_seqtable table;
    unsigned n_waiting;
    uint64_t waiting_bytes;
    uint64_t started, ended, expired, forwarded;
    struct nr_runnable tick; /* time-outs */
    int64_t tick_ns;         /* armed for; 0 not */
    uint64_t last_auto_id;
    bool held;    /* the version is */
    bool quiet;   /* there was no sequence at the last tick, and none since */
    bool hopping; /* hop is on its way round the loops */
    struct nr_msg hop;
    unsigned hop_at;
    /* direct */
    struct nr_seq_lane *lanes;
    unsigned n_lanes;
    struct nr_runnable run;
};

static inline struct nr_seq_item *nr_seq_item_of(const struct nr_request *r)
{
    return r->front;
}

/* --- sequence.c --- */

/* Under the lock: what became possible for s, which is not busy: its next request is sent on its way,
 * it rests, or it is gone. */
void nr_sequencer_advance(struct nr_sequencer *q, struct nr_seq *s, int64_t now_ns);
/* Under the lock: the next request of s, which becomes busy. */
struct nr_request *nr_sequencer_pop(struct nr_sequencer *q, struct nr_seq *s);
/* Under the lock: the sequence is over; it has no requests. Its slot goes to the next one. */
void nr_sequencer_drop(struct nr_sequencer *q, struct nr_seq *s);
/* Of the target. */
void nr_sequencer_submit(struct nr_target *t, struct nr_request *r);
void nr_sequencer_cancel(struct nr_target *t, struct nr_request *r, nr_status status,
                         bool running_too);

/* --- seqlife.c --- */

/* Under the lock: sees to it that the tick runs when there will be something to do. */
void nr_sequencer_arm(struct nr_sequencer *q, int64_t now_ns);
/* Under the lock: a request came, so the version is needed. */
void nr_sequencer_hold(struct nr_sequencer *q);

/* --- seqtensor.c --- */

nr_nodiscard nr_status nr_seq_firsts_load(struct nr_sequencer *q, struct nr_err *err);
void nr_seq_firsts_free(struct nr_sequencer *q);
void nr_seq_values_free(struct nr_sequencer *q, struct nr_seq *s);
/* Whether the model can be told the request's id. */
nr_nodiscard nr_status nr_seq_check_id(const struct nr_sequencer *q,
                                       const struct nr_infer_request *in, struct nr_err *err);
/* Fills the item's ext from the request and its sequence. By who made the sequence busy. */
void nr_seq_tensors_put(struct nr_sequencer *q, struct nr_request *r);
/* The same with nothing ready: for places of a batch that nobody uses now. */
void nr_seq_tensors_pad(struct nr_sequencer *q, const struct nr_request *lead,
                        struct nr_infer_request *ret);
/* Whether states have the same shapes for both, so that one batch may hold them. Under the lock;
 * neither sequence is busy. */
bool nr_seq_states_alike(const struct nr_sequencer *q, const struct nr_request *a,
                         const struct nr_request *b);
/* Takes the states of a request that ran. */
nr_nodiscard nr_status nr_seq_tensors_take(struct nr_sequencer *q, struct nr_request *r,
                                           struct nr_err *err);

/* --- seqdirect.c --- */

nr_nodiscard nr_status nr_seq_lanes_open(struct nr_sequencer *q, const struct nr_sched_cfg *base,
                                         struct nr_err *err);
/* Nothing runs afterwards, and nobody wakes q->run. */
void nr_seq_lanes_end(struct nr_sequencer *q);
void nr_seq_lanes_close(struct nr_sequencer *q);
/* q->run */
bool nr_seq_lanes_run(struct nr_runnable *runnable);
/* Under the lock: the plug-in is told that a request that may run is not wanted any more. */
void nr_seq_lanes_cancel(struct nr_sequencer *q, struct nr_request *r);

#endif
