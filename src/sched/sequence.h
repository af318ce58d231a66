/* Sequences: requests that belong together reach the model in order, with its control tensors and
 * the state that it keeps from one to the next (Triton's sequence_batching; docs/sequences.md).
 *
 * A sequencer is the target of a version whose configuration asks for it. A request names its
 * sequence (sequence_id, a number above 0 or a text), begins it (sequence_start) and ends it
 * (sequence_end). At most one request of a sequence runs at a time; the others of it wait here.
 *   oldest  requests go to a scheduler (sched.h) that batches those of different sequences
 *   direct  a sequence has a place in the batch of an instance for as long as it lives; places that
 *           have no request now are filled up with READY false
 * A sequence whose requests have all been answered gives its slot up after the idle time.
 *
 * A version stays alive while it has sequences. A request for a sequence that began on another
 * version of the model (before a reload, say) is passed on to that one: the book lists all
 * sequencers of the process for this.
 *
 * Threads: submit and cancel as every target; the rest as it says.
 */
#ifndef NR_SCHED_SEQUENCE_H
#define NR_SCHED_SEQUENCE_H

#include "model/version.h"
#include "sched/sched.h"

struct nr_sequencer;
struct nr_sequence_book;

struct nr_sequence_book *nr_sequence_book_new(void);
void nr_sequence_book_free(struct nr_sequence_book *b); /* accepts NULL; no sequencer is left */
/* All sequences end now, and their versions are let go: before a process unloads what it serves. No
 * request is in flight and the loops run no more. Accepts NULL. */
void nr_sequence_book_end(struct nr_sequence_book *b);

struct nr_sequencer_cfg {
    const struct nr_sequence_config *config; /* borrowed */
    const struct nr_signature *signature;    /* what clients see; borrowed */
    struct nr_version *version;    /* held while sequences live; NULL in tests: nothing is held */
    int model_fd;                  /* folder that has initial_state/; -1 none */
    bool shared;                   /* instances keep nothing between executions */
    struct nr_sequence_book *book; /* NULL: other versions are not looked at */
};
/* base: of the schedulers within, complete but for signature, maps and rules, which follow from the
 * configuration; its placement.allowed is taken only where instances are shared.
 * Errors: NARU_INVALID, NARU_NOT_FOUND (a file of initial state), NARU_NOMEM. */
nr_nodiscard nr_status nr_sequencer_new(const struct nr_sched_cfg *base,
                                        const struct nr_sequencer_cfg *cfg,
                                        struct nr_sequencer **ret, struct nr_err *err);
/* No request may be in flight. Accepts NULL. */
void nr_sequencer_free(struct nr_sequencer *q);
/* As nr_sched_prove. */
void nr_sequencer_prove(struct nr_sequencer *q);

struct nr_target *nr_sequencer_target(struct nr_sequencer *q);
struct nr_counters *nr_sequencer_counters(struct nr_sequencer *q);
/* The first of the schedulers within; lives as long as the sequencer. With direct it has no places. */
struct nr_sched *nr_sequencer_sched(struct nr_sequencer *q);

struct nr_sequencer_state {
    unsigned active, backlog; /* sequences with and without a slot */
    unsigned waiting;         /* requests that have not been passed on */
    unsigned slots;
    uint64_t started, ended, expired;
    uint64_t forwarded; /* requests passed on to another version */
};
/* sched: sums over the schedulers within, what waits here added to `queued`. Any thread. */
void nr_sequencer_state_get(struct nr_sequencer *q, struct nr_sequencer_state *ret,
                            struct nr_sched_state *sched);

#endif
