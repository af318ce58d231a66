/* Slots, backlog and idle times of sequences.
 *
 * DESIGN. Idle sequences stand in the order in which they became idle; since all have the same
 * limit, the head is always the next to expire and nothing is ever searched. A lane is chosen by
 * its free slots, so that instances share the work; within a lane the lowest position is taken,
 * which keeps batches of fixed positions short.
 *
 * INVARIANTS
 *  1. A sequence is in the map exactly from add to remove.
 *  2. lane >= 0: it has a slot, counts in n_active and used[lane]; else it is on the backlog.
 *  3. The backlog is empty unless every slot is taken.
 *  4. No two sequences have the same lane and position.
 */
#include "sched/seqtable.h"

#include <string.h>

#include "base/mem.h"

void nr_seq_key_make(struct nr_seq_key *key, uint64_t number, struct nr_str name)
{
    memset(key, 0, sizeof(*key));
    if (name.len > 0) {
        NR_ASSERT(name.len < NR_SEQ_KEY_MAX);
        key->bytes[0] = 's';
        memcpy(key->bytes + 1, name.ptr, name.len);
        key->len = (uint32_t)name.len + 1;
    } else {
        key->bytes[0] = 'n';
        memcpy(key->bytes + 1, &number, sizeof(number));
        key->len = 1 + sizeof(number);
    }
}

void nr_seq_key_auto(struct nr_seq_key *key, uint64_t number)
{
    nr_seq_key_make(key, number, (struct nr_str){0});
    key->bytes[0] = 'a';
}

static struct nr_str key_text(const struct nr_seq_key *k)
{
    return (struct nr_str){(const char *)k->bytes, k->len};
}

static struct nr_seq *seq_of(struct nr_list *node)
{
    return nr_container_of(node, struct nr_seq, node);
}

void nr_seqtable_init(struct nr_seqtable *t, const struct nr_seqtable_cfg *cfg)
{
    *t = (struct nr_seqtable){.cfg = *cfg};
    nr_map_init(&t->map);
    nr_list_init(&t->backlog);
    nr_list_init(&t->idle);
    t->used = nr_new_array(unsigned, NR_MAX(cfg->n_lanes, 1u));
    if (cfg->fixed) {
        t->at = nr_new_array(struct nr_seq *, (size_t)cfg->n_lanes * cfg->n_slots);
    }
}

void nr_seqtable_done(struct nr_seqtable *t)
{
    NR_ASSERT(t->n_active == 0 && t->n_backlog == 0);
    nr_map_done(&t->map);
    nr_free(t->used);
    nr_free(t->at);
}

struct nr_seq *nr_seqtable_find(const struct nr_seqtable *t, const struct nr_seq_key *key)
{
    return nr_map_get(&t->map, key_text(key));
}

/* --- slots ------------------------------------------------------------------------------------ */

/* Gives s a slot when one is free. */
static bool take_slot(struct nr_seqtable *t, struct nr_seq *s)
{
    unsigned best = 0;
    for (unsigned i = 1; i < t->cfg.n_lanes; i++) {
        best = t->used[i] < t->used[best] ? i : best;
    }
    if (t->used[best] >= t->cfg.n_slots) {
        return false;
    }
    s->lane = (int32_t)best;
    s->slot = -1;
    if (t->at != NULL) {
        struct nr_seq **at = &t->at[(size_t)best * t->cfg.n_slots];
        s->slot = 0;
        while (at[s->slot] != NULL) {
            s->slot++;
        }
        at[s->slot] = s;
    }
    t->used[best]++;
    t->n_active++;
    return true;
}

static void leave_slot(struct nr_seqtable *t, struct nr_seq *s)
{
    if (t->at != NULL) {
        t->at[(size_t)s->lane * t->cfg.n_slots + (unsigned)s->slot] = NULL;
    }
    t->used[s->lane]--;
    t->n_active--;
    s->lane = s->slot = -1;
}

/* A slot is free: for the head of the backlog. */
static struct nr_seq *promote(struct nr_seqtable *t)
{
    struct nr_list *node = nr_list_pop(&t->backlog);
    if (node == NULL) {
        return NULL;
    }
    t->n_backlog--;
    struct nr_seq *s = seq_of(node);
    NR_ASSERT(take_slot(t, s));
    return s;
}

struct nr_seq *nr_seqtable_add(struct nr_seqtable *t, const struct nr_seq_key *key)
{
    struct nr_seq *s = nr_new(struct nr_seq);
    s->key = *key;
    s->lane = s->slot = -1;
    nr_list_init(&s->node);
    nr_list_init(&s->waiting);
    if (!take_slot(t, s)) {
        if (t->n_backlog >= t->cfg.max_backlog) {
            nr_free(s);
            return NULL;
        }
        nr_list_append(&t->backlog, &s->node);
        t->n_backlog++;
    }
    (void)nr_map_put(&t->map, key_text(key), s);
    return s;
}

struct nr_seq *nr_seqtable_remove(struct nr_seqtable *t, struct nr_seq *s)
{
    struct nr_seq *next = NULL;
    nr_list_remove(&s->node);
    (void)nr_map_remove(&t->map, key_text(&s->key));
    if (s->lane >= 0) {
        leave_slot(t, s);
        next = promote(t);
    } else {
        t->n_backlog--;
    }
    nr_free(s);
    return next;
}

struct nr_seq *nr_seqtable_requeue(struct nr_seqtable *t, struct nr_seq *s)
{
    if (nr_list_empty(&t->backlog)) {
        return NULL;
    }
    leave_slot(t, s);
    struct nr_seq *next = promote(t);
    nr_list_append(&t->backlog, &s->node);
    t->n_backlog++;
    return next;
}

/* --- idle ------------------------------------------------------------------------------------- */

void nr_seqtable_rest(struct nr_seqtable *t, struct nr_seq *s, int64_t now_ns)
{
    NR_DCHECK(s->lane >= 0 && !s->idle);
    s->idle = true;
    s->idle_since_ns = now_ns;
    nr_list_append(&t->idle, &s->node);
}

void nr_seqtable_wake(struct nr_seqtable *t, struct nr_seq *s)
{
    (void)t;
    if (s->idle) {
        s->idle = false;
        nr_list_remove(&s->node);
    }
}

int64_t nr_seqtable_next_ns(const struct nr_seqtable *t)
{
    return nr_list_empty(&t->idle) ? 0 : seq_of(t->idle.next)->idle_since_ns + t->cfg.idle_ns;
}

struct nr_seq *nr_seqtable_expired(const struct nr_seqtable *t, int64_t now_ns)
{
    int64_t at_ns = nr_seqtable_next_ns(t);
    return at_ns != 0 && now_ns >= at_ns ? seq_of(t->idle.next) : NULL;
}
