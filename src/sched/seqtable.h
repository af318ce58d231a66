/* Which sequences there are, which of them have a slot, and which time out when: no threads, no
 * clock of its own, so that every rule is tested on invented times.
 *
 *            a slot is free                      nothing pending
 *   add ────────────────────▶ in a slot, busy ◀────────────────▶ in a slot, idle ──idle_ns──▶ expired
 *    └──▶ backlog (in order) ──a slot is freed──▶┘
 *
 * A lane is a model instance (or all of them, where instances keep no state); a sequence stays in
 * its lane. With `fixed` a slot is a position of the batch as well.
 * The caller's lock guards a table.
 */
#ifndef NR_SCHED_SEQTABLE_H
#define NR_SCHED_SEQTABLE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/list.h"
#include "base/map.h"

#define NR_SEQ_KEY_MAX 132 /* a kind byte, and the id: 8 bytes, or a name of at most 128 */

struct nr_seq_key {
    uint8_t bytes[NR_SEQ_KEY_MAX];
    uint32_t len;
};
/* Numbers and names never meet: 5 is not "5". name.len 0: the number counts. */
void nr_seq_key_make(struct nr_seq_key *key, uint64_t number, struct nr_str name);

/* Of a request without an id, which is a sequence by itself; meets none of a client. */
void nr_seq_key_auto(struct nr_seq_key *key, uint64_t number);

struct nr_seq {
    /* The table's; lane, slot and the key may be read. */
    struct nr_list node; /* backlog or idle */
    struct nr_seq_key key;
    int32_t lane, slot; /* lane -1: in the backlog; slot -1 where slots have no position */
    bool idle;
    int64_t idle_since_ns;
    /* The caller's. */
    struct nr_list waiting; /* requests that have come and do not run yet; oldest first */
    bool busy;              /* one of its requests is on its way through the model */
    bool begun;             /* a first request has been passed on, and no last one has ended */
    bool closed;            /* the newest request that came is its last */
    void *user;
};

struct nr_seqtable_cfg {
    unsigned n_lanes, n_slots; /* slots per lane */
    bool fixed;
    unsigned max_backlog;
    int64_t idle_ns;
};

struct nr_seqtable {
    struct nr_seqtable_cfg cfg;
    struct nr_map map;
    struct nr_list backlog;
    struct nr_list idle; /* the one that has been idle longest first */
    unsigned *used;      /* [n_lanes] slots taken */
    struct nr_seq **at;  /* [n_lanes * n_slots] with fixed; else NULL */
    unsigned n_active, n_backlog;
};

void nr_seqtable_init(struct nr_seqtable *t, const struct nr_seqtable_cfg *cfg);
void nr_seqtable_done(struct nr_seqtable *t); /* must be empty */

struct nr_seq *nr_seqtable_find(const struct nr_seqtable *t, const struct nr_seq_key *key);
/* A new sequence, busy for the table: in the lane with most free slots, or in the backlog. NULL:
 * both are full. The key must not be there. */
struct nr_seq *nr_seqtable_add(struct nr_seqtable *t, const struct nr_seq_key *key);
/* Forgets and frees s; user is the caller's. Its slot goes to the head of the backlog, which is
 * returned and has its lane and slot now; NULL: nobody waited. */
struct nr_seq *nr_seqtable_remove(struct nr_seqtable *t, struct nr_seq *s);
/* s ended, but its id is in use again: it goes behind the backlog, whose head is returned as above;
 * NULL: nobody waited, s keeps its slot. */
struct nr_seq *nr_seqtable_requeue(struct nr_seqtable *t, struct nr_seq *s);
/* Nothing of s is pending from now on; s has a slot. */
void nr_seqtable_rest(struct nr_seqtable *t, struct nr_seq *s, int64_t now_ns);
void nr_seqtable_wake(struct nr_seqtable *t, struct nr_seq *s); /* no-op when not idle */
/* The sequence that has been idle longest, when that is too long; NULL none. */
struct nr_seq *nr_seqtable_expired(const struct nr_seqtable *t, int64_t now_ns);
int64_t nr_seqtable_next_ns(const struct nr_seqtable *t); /* when the next one expires; 0 none */
/* With fixed: who is there; NULL nobody. */
static inline struct nr_seq *nr_seqtable_at(const struct nr_seqtable *t, unsigned lane,
                                            unsigned slot)
{
    return t->at[(size_t)lane * t->cfg.n_slots + slot];
}

#endif
