/* Sequences with fixed places in the batch of an instance (strategy direct).
 *
 * DESIGN. A lane is an instance with its batch; slot k of the lane is row k of every batch that it
 * runs, so that a model may keep the state of row k to itself. A batch reaches up to the highest
 * slot that has a request; slots below it that have none are filled with a copy of another request's
 * inputs whose control tensors all say false (READY above all), and what the model answers there is
 * nobody's. A batch waits for more slots to become ready only while minimum_slot_utilization is not
 * reached and the oldest request's max_queue_delay has not passed.
 *
 * INVARIANTS
 *  1. Row k of a batch of lane i is the sequence at (i, k), or a filling.
 *  2. lane->taken, pad and place belong to the thread that set lane->busy.
 *
 * Threads: executor threads; several at once, for different lanes.
 */
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "sched/sequence_priv.h"

/* --- which slots run; under the lock ----------------------------------------------------------- */

static struct nr_request *head_of(const struct nr_seq *s)
{
    return s != NULL && !s->busy && !nr_list_empty(&s->waiting) ? nr_request_of(s->waiting.next)
                                                                : NULL;
}

struct plan {
    unsigned reach; /* slots from here on are free */
    unsigned n_ready;
    const struct nr_request *oldest;
    int64_t wait_until_ns; /* not now; 0: now, when anything is ready */
    nr_seal why;
};

static struct plan plan_lane(const struct nr_sequencer *q, unsigned lane, int64_t now_ns)
{
    const struct nr_sequence_config *c = q->cfg.config;
    struct plan p = {.why = NR_SEAL_IDLE};
    for (unsigned seen = 0; seen < q->table.used[lane]; p.reach++) {
        const struct nr_seq *s = nr_seqtable_at(&q->table, lane, p.reach);
        const struct nr_request *r = head_of(s);
        seen += s != NULL;
        if (r != NULL) {
            p.n_ready++;
            p.oldest = p.oldest == NULL || r->queued_ns < p.oldest->queued_ns ? r : p.oldest;
        }
    }
    if (p.n_ready == q->table.cfg.n_slots) {
        p.why = c->sig.max_batch_size > 1 ? NR_SEAL_FULL : NR_SEAL_SINGLE;
    } else if (p.n_ready > 0 && c->delay_ns > 0 &&
               (float)p.n_ready < c->min_utilization * (float)q->table.cfg.n_slots) {
        int64_t due_ns = p.oldest->queued_ns + (int64_t)c->delay_ns;
        p.why = NR_SEAL_DELAY;
        p.wait_until_ns = now_ns < due_ns ? due_ns : 0;
    }
    return p;
}

/* Takes what may run together with the oldest request. */
static void take(struct nr_sequencer *q, unsigned lane, const struct plan *p)
{
    static const struct nr_batch_rules alike = {.ragged =
                                                    NULL}; /* slots are rows: none is ragged */
    struct nr_seq_lane *l = &q->lanes[lane];
    const struct nr_request *oldest = p->oldest;
    l->reach = p->reach;
    for (unsigned i = 0; i < l->reach; i++) {
        struct nr_seq *s = nr_seqtable_at(&q->table, lane, i);
        const struct nr_request *r = head_of(s);
        l->taken[i] = NULL;
        if (r == oldest ||
            (r != NULL &&
             nr_batcher_joins(&alike, nr_seq_item_of(oldest)->in, nr_seq_item_of(r)->in) &&
             nr_seq_states_alike(q, oldest, r))) {
            l->taken[i] = nr_sequencer_pop(q, s);
            nr_seq_item_of(r)->stage = NR_SEQ_PASSED;
            atomic_store_explicit(&l->taken[i]->state, NR_REQUEST_RUNNING, memory_order_relaxed);
        }
    }
    l->busy = true;
}

/* A lane with work, taken; NULL: none. *ret_more: another one has some as well. */
static struct nr_seq_lane *take_lane(struct nr_sequencer *q, bool *ret_more, nr_seal *ret_why,
                                     int64_t *ret_wait_ns)
{
    struct nr_seq_lane *found = NULL;
    int64_t now_ns = nr_clock_now();
    *ret_more = false;
    *ret_wait_ns = 0;
    for (unsigned i = 0; i < q->n_lanes; i++) {
        if (q->lanes[i].busy) {
            continue;
        }
        struct plan p = plan_lane(q, i, now_ns);
        if (p.wait_until_ns != 0 || p.n_ready == 0) {
            nr_place_calm(&q->lanes[i].place);
        }
        if (p.wait_until_ns != 0) {
            *ret_wait_ns =
                *ret_wait_ns == 0 ? p.wait_until_ns : NR_MIN(*ret_wait_ns, p.wait_until_ns);
        } else if (p.n_ready > 0 && found != NULL) {
            *ret_more = true;
            break;
        } else if (p.n_ready > 0 && nr_place_admit(&q->lanes[i].place)) {
            found = &q->lanes[i];
            *ret_why = p.why;
            take(q, i, &p);
        }
    }
    return found;
}

/* --- one batch ---------------------------------------------------------------------------------- */

/* A request that will not run, to its loop. */
static void give_up(struct nr_request *r, nr_status status, const char *text)
{
    nr_request_fail(r, status, text);
    r->msg.run = nr_request_on_msg;
    atomic_store_explicit(&r->state, NR_REQUEST_DONE, memory_order_release);
    nr_loop_post(r->loop, &r->msg);
}

/* Requests get their hidden tensors; the first that can run, or NULL. */
static struct nr_request *dress(struct nr_sequencer *q, struct nr_seq_lane *l, unsigned *ret_last)
{
    struct nr_request *lead = NULL;
    for (unsigned i = 0; i < l->reach; i++) {
        struct nr_request *r = l->taken[i];
        if (r == NULL) {
            continue;
        }
        struct nr_seq_item *item = nr_seq_item_of(r);
        if (!item->start && !item->seq->begun) {
            l->taken[i] = NULL;
            give_up(r, NARU_INVALID,
                    "the first request of the sequence did not run, so this one cannot: begin the "
                    "sequence anew");
            continue;
        }
        item->seq->begun = true;
        nr_seq_tensors_put(q, r);
        r->outputs = nr_arena_zalloc(r->arena, NR_MAX(r->in->n_outputs, 1u) * sizeof(*r->outputs));
        lead = lead == NULL ? r : lead;
        *ret_last = i;
    }
    return lead;
}

/* One row that nobody looks at. */
static nr_status add_pad(struct nr_sequencer *q, struct nr_seq_lane *l,
                         const struct nr_request *lead, struct nr_err *err)
{
    if (l->pad.in == NULL) {
        nr_seq_tensors_pad(q, lead, &l->pad_in);
        l->pad.in = &l->pad_in;
        l->pad.arena = lead->arena;
    }
    return nr_place_add(&l->place, &l->pad, err);
}

/* Rows 0 to last. A request that the batch refuses leaves its row to a filling; when that is
 * refused as well, positions cannot be kept and nothing runs. */
static void fill(struct nr_sequencer *q, struct nr_seq_lane *l, const struct nr_request *lead,
                 unsigned last)
{
    nr_status st = NARU_OK;
    struct nr_err err = {0};
    l->pad.in = NULL;
    for (unsigned i = 0; i <= last; i++) {
        struct nr_request *r = l->taken[i];
        if (r != NULL && st == NARU_OK) {
            struct nr_list one, refused;
            nr_list_init(&one);
            nr_list_init(&refused);
            nr_list_append(&one, &r->node);
            nr_place_fill(&l->place, &one, 1, &refused);
            if (nr_list_empty(&refused)) {
                continue;
            }
            (void)nr_list_pop(&refused);
            give_up(r, r->status, nr_arena_strz(r->arena, r->error));
        } else if (r != NULL) {
            give_up(r, st, err.text);
            continue;
        }
        st = st == NARU_OK ? add_pad(q, l, lead, &err) : st;
    }
    for (unsigned i = 0; st != NARU_OK && i < l->place.n_taken; i++) {
        give_up(l->place.taken[i], st, err.text);
    }
    if (st != NARU_OK) {
        l->place.n_taken = 0;
        nr_batch_clear(l->place.batch);
    }
}

static void show_running(struct nr_sequencer *q, struct nr_seq_lane *l, bool shown)
{
    pthread_mutex_lock(&q->lock);
    for (unsigned i = 0; i < l->place.n_taken; i++) {
        l->place.taken[i]->place = shown ? &l->place : NULL;
    }
    pthread_mutex_unlock(&q->lock);
}

static void run_lane(struct nr_sequencer *q, struct nr_seq_lane *l, nr_seal why)
{
    struct nr_place *p = &l->place;
    struct nr_sched *s = p->sched;
    unsigned last = 0;
    p->is_inline = false;
    p->begin_ns = nr_clock_now();
    const struct nr_request *lead = dress(q, l, &last);
    if (lead != NULL) {
        fill(q, l, lead, last);
    }
    if (p->n_taken == 0) {
        return;
    }
    p->rows = p->n_taken;
    show_running(q, l, true);
    p->infer_begin_ns = nr_clock_now();
    nr_watched_begin(&p->watched, nr_exec_self(), p->infer_begin_ns);
    /* Without on_done it waits, so it is over on return. */
    nr_status st = nr_batch_run(p->batch, p->instance);
    NR_ASSERT(st != NARU_PENDING);
    p->infer_end_ns = nr_clock_now();
    nr_watched_end(&p->watched);
    show_running(q, l, false);
    pthread_mutex_lock(&s->lock);
    s->seals[why]++;
    nr_sched_observe(s, p, -1);
    nr_trim_arm(s); /* of the plug-in's memory */
    pthread_mutex_unlock(&s->lock);
    (void)nr_place_deliver(p); /* cfg.isolate is not set */
    nr_place_rest(p);
}

bool nr_seq_lanes_run(struct nr_runnable *runnable)
{
    struct nr_sequencer *q = nr_container_of(runnable, struct nr_sequencer, run);
    bool more;
    nr_seal why = NR_SEAL_IDLE;
    int64_t wait_ns;
    pthread_mutex_lock(&q->lock);
    struct nr_seq_lane *l = take_lane(q, &more, &why, &wait_ns);
    pthread_mutex_unlock(&q->lock);
    if (wait_ns != 0) {
        nr_exec_wake_at(q->exec, &q->run, wait_ns);
    }
    if (l == NULL) {
        return false;
    }
    if (more) {
        nr_exec_wake(q->exec, &q->run);
    }
    run_lane(q, l, why);
    pthread_mutex_lock(&q->lock);
    nr_place_release(&l->place);
    l->busy = false;
    pthread_mutex_unlock(&q->lock);
    return true;
}

void nr_seq_lanes_cancel(struct nr_sequencer *q, struct nr_request *r)
{
    if (r->place != NULL) {
        nr_batch_cancel(r->place->batch, r->place_index);
    }
    if (q->scheds[0]->cfg.decoupled) {
        nr_flow_cancelled(q->scheds[0]);
    }
}

/* --- life ------------------------------------------------------------------------------------- */

nr_status nr_seq_lanes_open(struct nr_sequencer *q, const struct nr_sched_cfg *base,
                            struct nr_err *err)
{
    nr_status st = NARU_OK;
    q->lanes = nr_new_array(struct nr_seq_lane, NR_MAX(base->n_instances, 1u));
    for (unsigned i = 0; i < base->n_instances && st == NARU_OK; i++) {
        struct nr_seq_lane *l = &q->lanes[i];
        l->taken = nr_new_array(struct nr_request *, q->table.cfg.n_slots);
        q->n_lanes++;
        st = nr_place_init(&l->place, q->scheds[0], base->instances[i], NULL, err);
        if (base->watch != NULL) {
            nr_runwatch_add(base->watch, &l->place.watched, q->scheds[0]);
        }
        if (st == NARU_OK && base->members != NULL) {
            st = nr_place_limit(&l->place, base->members[i].group, q->exec, &q->run, err);
        }
    }
    return st;
}

void nr_seq_lanes_end(struct nr_sequencer *q)
{
    nr_exec_retire(q->exec, &q->run);
    pthread_mutex_lock(&q->lock);
    for (unsigned i = 0; i < q->n_lanes; i++) {
        nr_place_unlimit(&q->lanes[i].place);
    }
    pthread_mutex_unlock(&q->lock);
    nr_exec_retire(q->exec, &q->run); /* again: the limiter may have woken it */
}

void nr_seq_lanes_close(struct nr_sequencer *q)
{
    for (unsigned i = 0; i < q->n_lanes; i++) {
        nr_place_done(&q->lanes[i].place);
        nr_free(q->lanes[i].taken);
    }
    nr_free(q->lanes);
}
