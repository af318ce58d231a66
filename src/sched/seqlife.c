/* The life of a sequencer: making and freeing it, time-outs, the version that it holds, the book.
 *
 * DESIGN. One timed wake serves all sequences, since the one that has been idle longest is the next to
 * expire (seqtable.c).
 *
 * Letting the version go. What holds a version alive otherwise is the snapshot that a request pins
 * on its loop; a request that was passed on from another version pins that one. So the version is
 * let go only after a message has gone round all loops: by then none is in this sequencer's code.
 *
 * Invariants and locks: sequence_priv.h.
 */
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "sched/sequence_priv.h"

#define MAX_ACTIVE 65536          /* sequences with a slot, where the configuration says nothing */
#define QUIET_NS (100 * NR_MS_NS) /* without sequences before a version is let go */

static struct nr_sequencer *sequencer_of(struct nr_list *node)
{
    return nr_container_of(node, struct nr_sequencer, node);
}

/* --- time-outs and the version; under the lock ------------------------------------------------- */

void nr_sequencer_arm(struct nr_sequencer *q, int64_t now_ns)
{
    int64_t next_ns = nr_seqtable_next_ns(&q->table);
    if (q->held && !q->hopping && q->table.n_active == 0) {
        next_ns = now_ns + QUIET_NS;
    }
    if (next_ns != 0 && (q->tick_ns == 0 || next_ns < q->tick_ns)) {
        q->tick_ns = next_ns;
        nr_exec_wake_at(q->exec, &q->tick, next_ns);
    }
}

void nr_sequencer_hold(struct nr_sequencer *q)
{
    q->quiet = false;
    if (!q->held && q->cfg.version != NULL) {
        (void)nr_version_ref(q->cfg.version); /* the request that begins the sequence pins it */
        q->held = true;
    }
}

/* --- the tick (executor threads) --------------------------------------------------------------- */

/* On each loop in turn; behind the last one nobody is in this sequencer any more who was when no
 * sequence was left. */
static void on_hop(struct nr_msg *m)
{
    struct nr_sequencer *q = nr_container_of(m, struct nr_sequencer, hop);
    if (++q->hop_at < q->n_loops) {
        nr_loop_post(q->loops[q->hop_at], &q->hop);
        return;
    }
    struct nr_version *v = q->cfg.version;
    pthread_mutex_lock(&q->lock);
    q->hopping = false;
    bool release = q->held && q->table.n_active == 0 && q->quiet;
    q->held = q->held && !release;
    nr_sequencer_arm(q, nr_clock_now());
    pthread_mutex_unlock(&q->lock);
    if (release) {
        nr_version_unref(v); /* q may be gone from here on */
    }
}

static bool on_tick(struct nr_runnable *runnable)
{
    struct nr_sequencer *q = nr_container_of(runnable, struct nr_sequencer, tick);
    struct nr_seq *s;
    pthread_mutex_lock(&q->lock);
    int64_t now_ns = nr_clock_now();
    q->tick_ns = 0;
    while ((s = nr_seqtable_expired(&q->table, now_ns)) != NULL) {
        q->expired++;
        nr_sequencer_drop(q, s);
    }
    if (q->held && !q->hopping && q->table.n_active == 0) {
        if (q->quiet) {
            q->hopping = true;
            q->hop_at = 0;
            q->hop.run = on_hop;
            nr_loop_post(q->loops[0], &q->hop);
        }
        q->quiet = true;
    }
    nr_sequencer_arm(q, now_ns);
    pthread_mutex_unlock(&q->lock);
    return false;
}

/* --- the book --------------------------------------------------------------------------------- */

struct nr_sequence_book *nr_sequence_book_new(void)
{
    struct nr_sequence_book *b = nr_new(struct nr_sequence_book);
    pthread_mutex_init(&b->lock, NULL);
    nr_list_init(&b->all);
    return b;
}

void nr_sequence_book_free(struct nr_sequence_book *b)
{
    if (b == NULL) {
        return;
    }
    NR_ASSERT(nr_list_empty(&b->all));
    pthread_mutex_destroy(&b->lock);
    nr_free(b);
}

static void drop_all(struct nr_sequencer *q)
{
    struct nr_seq *s;
    while ((s = nr_seqtable_expired(&q->table, INT64_MAX)) != NULL) {
        nr_sequencer_drop(q, s);
    }
}

void nr_sequence_book_end(struct nr_sequence_book *b)
{
    struct nr_version *held = NULL;
    do {
        nr_version_unref(held); /* without locks: it may close the version here and now */
        held = NULL;
        if (b == NULL) {
            return;
        }
        pthread_mutex_lock(&b->lock);
        NR_LIST_FOREACH (node, &b->all) {
            struct nr_sequencer *q = sequencer_of(node);
            pthread_mutex_lock(&q->lock);
            drop_all(q);
            if (q->held) {
                q->held = false;
                held = q->cfg.version;
            }
            pthread_mutex_unlock(&q->lock);
            if (held != NULL) {
                break;
            }
        }
        pthread_mutex_unlock(&b->lock);
    } while (held != NULL);
}

static void enter(struct nr_sequencer *q)
{
    struct nr_sequence_book *book = q->cfg.book;
    if (book != NULL) {
        pthread_mutex_lock(&book->lock);
        nr_list_append(&book->all, &q->node);
        pthread_mutex_unlock(&book->lock);
    }
}

static void leave(struct nr_sequencer *q)
{
    struct nr_sequence_book *book = q->cfg.book;
    if (book != NULL) {
        pthread_mutex_lock(&book->lock);
        nr_list_remove(&q->node);
        pthread_mutex_unlock(&book->lock);
    }
}

/* --- life ------------------------------------------------------------------------------------- */

static struct nr_batch_rules rules_of(const struct nr_sequence_config *c)
{
    int64_t most = c->sig.max_batch_size;
    struct nr_batch_rules rules = {.max_rows = NR_MAX(most, 1),
                                   .batching = most > 1,
                                   .in_order = c->preserve_ordering,
                                   .delay_ns = (int64_t)c->delay_ns};
    for (uint32_t i = 0; i < c->n_preferred && rules.n_preferred < NR_BATCH_MAX_PREFERRED; i++) {
        rules.preferred[rules.n_preferred++] = c->preferred[i];
    }
    return rules;
}

/* One scheduler for all instances where they are alike, one each where a sequence must stay with
 * its instance; direct needs one only for what its places read of it. */
static nr_status open_scheds(struct nr_sequencer *q, const struct nr_sched_cfg *base,
                             struct nr_err *err)
{
    const struct nr_sequence_config *c = q->cfg.config;
    bool one = c->direct || q->cfg.shared;
    struct nr_sched_cfg cfg = *base;
    unsigned n = one ? 1 : NR_MAX(base->n_instances, 1u);
    cfg.signature = &c->sig;
    cfg.input_map = c->input_map;
    cfg.output_map = c->output_map;
    cfg.rules = rules_of(c);
    cfg.placement.allowed = base->placement.allowed && q->cfg.shared && !c->direct;
    cfg.loop_instances = cfg.placement.allowed ? base->loop_instances : NULL;
    cfg.counters = q->counters;
    cfg.iterative = c->iterative;
    cfg.preserve_ordering = c->preserve_ordering;
    q->scheds = nr_new_array(struct nr_sched *, n);
    for (unsigned i = 0; i < n; i++) {
        cfg.n_instances = c->direct ? 0 : one ? base->n_instances : 1;
        cfg.instances = one ? base->instances : base->instances + i;
        cfg.members = one || base->members == NULL ? base->members : base->members + i;
        nr_status st = nr_sched_new(&cfg, &q->scheds[i], err);
        if (st != NARU_OK) {
            return st;
        }
        q->n_scheds++;
    }
    return NARU_OK;
}

static void open_table(struct nr_sequencer *q, const struct nr_sched_cfg *base)
{
    const struct nr_sequence_config *c = q->cfg.config;
    uint64_t slots = (uint64_t)NR_MAX(c->sig.max_batch_size, 1);
    unsigned lanes = NR_MAX(base->n_instances, 1u);
    if (!c->direct) {
        slots = c->max_candidates > 0 ? c->max_candidates : MAX_ACTIVE;
        if (q->cfg.shared) {
            slots *= lanes;
            lanes = 1;
        }
        slots = NR_MIN(slots, (uint64_t)MAX_ACTIVE);
    }
    struct nr_seqtable_cfg cfg = {.n_lanes = lanes,
                                  .n_slots = (unsigned)slots,
                                  .fixed = c->direct,
                                  .max_backlog = q->limits.max_queue_requests,
                                  .idle_ns = (int64_t)c->idle_ns};
    nr_seqtable_init(&q->table, &cfg);
}

nr_status nr_sequencer_new(const struct nr_sched_cfg *base, const struct nr_sequencer_cfg *cfg,
                           struct nr_sequencer **ret, struct nr_err *err)
{
    struct nr_sequencer *q = nr_new(struct nr_sequencer);
    q->cfg = *cfg;
    q->target = (struct nr_target){.submit = nr_sequencer_submit, .cancel = nr_sequencer_cancel};
    q->name = base->name;
    q->exec = base->exec;
    q->loops = base->loops;
    q->n_loops = base->n_loops;
    q->limits = base->limits;
    q->counters = nr_counters_new(base->n_loops, cfg->config->sig.max_batch_size);
    pthread_mutex_init(&q->lock, NULL);
    nr_list_init(&q->node);
    nr_exec_init(&q->tick, on_tick);
    nr_exec_init(&q->run, nr_seq_lanes_run);
    q->run.share.cost = base->cost;
    open_table(q, base);
    nr_status st = open_scheds(q, base, err);
    if (st == NARU_OK && cfg->config->direct) {
        st = nr_seq_lanes_open(q, base, err);
    }
    if (st == NARU_OK) {
        st = nr_seq_firsts_load(q, err);
    }
    enter(q);
    if (st != NARU_OK) {
        nr_sequencer_free(q);
        return st;
    }
    *ret = q;
    return NARU_OK;
}

void nr_sequencer_free(struct nr_sequencer *q)
{
    if (q == NULL) {
        return;
    }
    leave(q);
    nr_exec_retire(q->exec, &q->tick);
    nr_seq_lanes_end(q);
    drop_all(q);
    NR_ASSERT(q->n_waiting == 0);
    nr_seqtable_done(&q->table);
    nr_seq_lanes_close(q);
    for (unsigned i = 0; i < q->n_scheds; i++) {
        nr_sched_free(q->scheds[i]);
    }
    nr_seq_firsts_free(q);
    nr_counters_free(q->counters);
    pthread_mutex_destroy(&q->lock);
    nr_free(q->scheds);
    nr_free(q);
}

void nr_sequencer_prove(struct nr_sequencer *q)
{
    for (unsigned i = 0; i < q->n_scheds; i++) {
        nr_sched_prove(q->scheds[i]);
    }
}

struct nr_target *nr_sequencer_target(struct nr_sequencer *q)
{
    return &q->target;
}

struct nr_sched *nr_sequencer_sched(struct nr_sequencer *q)
{
    return q->scheds[0];
}

struct nr_counters *nr_sequencer_counters(struct nr_sequencer *q)
{
    return q->counters;
}

static void add_sched(struct nr_sched_state *sum, const struct nr_sched_state *one)
{
    sum->queued += one->queued;
    sum->running += one->running;
    sum->places += one->places;
    sum->queued_bytes += one->queued_bytes;
    sum->queued_rows += one->queued_rows;
    sum->row_limit += one->row_limit;
    sum->n_levels = NR_MAX(sum->n_levels, one->n_levels);
    sum->is_inline = sum->is_inline || one->is_inline;
    sum->may_inline = sum->may_inline || one->may_inline;
    sum->limited_ns += one->limited_ns;
    sum->n_promoted += one->n_promoted;
    sum->n_demoted += one->n_demoted;
    sum->row_ns = NR_MAX(sum->row_ns, one->row_ns);
    sum->bytes_copied += one->bytes_copied;
    sum->bytes_in_place += one->bytes_in_place;
    for (unsigned i = 0; i < NR_SEAL_COUNT; i++) {
        sum->seals[i] += one->seals[i];
    }
    for (unsigned i = 0; i < NR_REFUSAL_KINDS; i++) {
        sum->refused[i] += one->refused[i];
    }
    for (unsigned i = 0; i < one->n_levels; i++) {
        sum->levels[i] += one->levels[i];
    }
}

void nr_sequencer_state_get(struct nr_sequencer *q, struct nr_sequencer_state *ret,
                            struct nr_sched_state *sched)
{
    *sched = (struct nr_sched_state){0};
    for (unsigned i = 0; i < q->n_scheds; i++) {
        struct nr_sched_state one;
        nr_sched_state_get(q->scheds[i], &one);
        add_sched(sched, &one);
    }
    pthread_mutex_lock(&q->lock);
    *ret = (struct nr_sequencer_state){.active = q->table.n_active,
                                       .backlog = q->table.n_backlog,
                                       .waiting = q->n_waiting,
                                       .slots = q->table.cfg.n_lanes * q->table.cfg.n_slots,
                                       .started = q->started,
                                       .ended = q->ended,
                                       .expired = q->expired,
                                       .forwarded = q->forwarded};
    for (unsigned i = 0; i < q->n_lanes; i++) {
        sched->running += q->lanes[i].busy;
        sched->places++;
    }
    sched->queued += q->n_waiting;
    sched->queued_bytes += q->waiting_bytes;
    pthread_mutex_unlock(&q->lock);
}
