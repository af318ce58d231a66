/* The sequencer of one version: admission, order within a sequence, time-outs, other versions.
 *
 * DESIGN. A request waits here while another one of its sequence is in the model, and is then sent
 * to its own loop by a message, since only there it may be submitted further. With the strategy
 * oldest the inner target is a scheduler, which so never sees two requests of a sequence and may
 * batch whatever it has; with direct it is an instance with fixed places (seqdirect.c).
 * Whatever happens to a request, refused ones included, ends in on_complete, which is the one place
 * where a sequence goes on.
 *
 * With iterative_sequence a plug-in may ask for one more execution of a request. It then keeps its
 * place at the head of its sequence and goes through the model again, with what the last execution
 * left as its state; its small memory is cleared between executions, however many there are. A
 * request without an id is a sequence of its own.
 *
 * A first request that never ran (a full queue, a client that went away) leaves a sequence without
 * beginning: what was sent after it is refused rather than run on a state that is not there.
 *
 * Invariants and locks: sequence_priv.h.
 */
#include "sched/sequence.h"

#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "sched/sequence_priv.h"

/* --- on the way to the model; under the lock --------------------------------------------------- */

struct nr_request *nr_sequencer_pop(struct nr_sequencer *q, struct nr_seq *s)
{
    struct nr_request *r = nr_request_of(nr_list_pop(&s->waiting));
    q->n_waiting--;
    q->waiting_bytes -= r->bytes;
    s->busy = true;
    return r;
}

static void on_go(struct nr_msg *m);

/* s has a slot, is not busy, and has requests. */
static void send_next(struct nr_sequencer *q, struct nr_seq *s)
{
    if (q->cfg.config->direct) {
        nr_exec_wake(q->exec, &q->run);
        return;
    }
    struct nr_request *r = nr_sequencer_pop(q, s);
    nr_seq_item_of(r)->stage = NR_SEQ_GOING;
    r->msg.run = on_go;
    nr_loop_post(r->loop, &r->msg);
}

void nr_sequencer_drop(struct nr_sequencer *q, struct nr_seq *s)
{
    nr_seq_values_free(q, s);
    struct nr_seq *next = nr_seqtable_remove(&q->table, s);
    if (next != NULL) {
        send_next(q, next); /* whoever is in the backlog has requests */
    }
}

void nr_sequencer_advance(struct nr_sequencer *q, struct nr_seq *s, int64_t now_ns)
{
    if (!nr_list_empty(&s->waiting)) {
        if (s->lane >= 0) {
            send_next(q, s);
        }
    } else if (!s->begun) {
        nr_sequencer_drop(q, s);
    } else {
        nr_seqtable_rest(&q->table, s, now_ns);
    }
    nr_sequencer_arm(q, now_ns);
}

/* The last request of s has been answered. */
static void end(struct nr_sequencer *q, struct nr_seq *s, int64_t now_ns)
{
    q->ended++;
    s->begun = false;
    if (!nr_list_empty(&s->waiting)) { /* its id began anew already */
        struct nr_seq *next = nr_seqtable_requeue(&q->table, s);
        if (next != NULL) {
            send_next(q, next);
            return;
        }
    }
    nr_sequencer_advance(q, s, now_ns);
}

/* --- requests on their loops ------------------------------------------------------------------- */

static void refuse(struct nr_request *r, const struct nr_err *err)
{
    nr_request_refuse(r, err->status, err->text, err->status == NARU_UNAVAILABLE ? 1 : 0);
}

/* A request of a sequence that is busy with it: into the scheduler of its lane. */
static void pass(struct nr_sequencer *q, struct nr_request *r)
{
    struct nr_seq_item *item = nr_seq_item_of(r);
    struct nr_seq *s = item->seq;
    struct nr_err err = {0};
    if (!item->start && !s->begun) {
        (void)nr_fail(
            &err, NARU_INVALID,
            "the first request of the sequence did not run, so this one cannot: begin the "
            "sequence anew");
        refuse(r, &err);
        return;
    }
    s->begun = true; /* nobody else looks at it while the sequence is busy */
    nr_seq_tensors_put(q, r);
    r->target = nr_sched_target(q->scheds[s->lane]);
    nr_request_submit(r);
}

static void on_deadline(struct nr_timer *t)
{
    struct nr_request *r = nr_container_of(t, struct nr_request, timer);
    nr_request_cancel(r, NARU_DEADLINE, false);
}

/* Under the lock: r waits before `at`. */
static void put_in_line(struct nr_sequencer *q, struct nr_request *r, struct nr_list *at)
{
    nr_seq_item_of(r)->stage = NR_SEQ_WAITING;
    nr_list_insert_before(at, &r->node);
    q->n_waiting++;
    q->waiting_bytes += r->bytes;
    if (r->deadline_ns != 0) {
        r->timer.on_timer = on_deadline;
        nr_loop_timer_set(r->loop, &r->timer, r->deadline_ns);
    }
}

/* As it came. */
static void give_back(struct nr_request *r)
{
    const struct nr_seq_item *item = nr_seq_item_of(r);
    if (item->arena != NULL) {
        r->arena = item->arena; /* what lies in the other one goes with it (attach) */
        r->rounds = 0;
    }
    r->in = item->in;
    r->target = item->target;
    r->on_complete = item->on_complete;
    r->front = item->previous;
}

/* Once more, before anything else of its sequence. */
static void go_round(struct nr_sequencer *q, struct nr_request *r)
{
    struct nr_seq_item *item = nr_seq_item_of(r);
    struct nr_seq *s = item->seq;
    if (atomic_load_explicit(&r->cancelled, memory_order_acquire) != 0) {
        r->again = false;
        nr_request_refuse(r, NARU_CANCELLED, "the request was cancelled between two executions", 0);
        return;
    }
    item->start = item->tells_end = false;
    r->rounds++;
    r->again = false;
    nr_arena_clear(&item->round);
    if (!q->cfg.config->direct) {
        pass(q, r);
        return;
    }
    pthread_mutex_lock(&q->lock);
    s->busy = false;
    put_in_line(q, r, s->waiting.next);
    nr_exec_wake(q->exec, &q->run);
    pthread_mutex_unlock(&q->lock);
}

/* A sequenced request is complete, whether it ran or not: its states are kept, its sequence goes on,
 * and it is given back as it came. */
static void on_complete(struct nr_request *r)
{
    struct nr_seq_item *item = nr_seq_item_of(r);
    struct nr_sequencer *q = item->q;
    struct nr_seq *s = item->seq;
    bool ran = r->begin_ns != 0, passed = r->in == &item->ext;
    struct nr_err err = {0};
    if (r->status == NARU_OK) {
        nr_status st = nr_seq_tensors_take(q, r, &err);
        if (st == NARU_OK && r->again) {
            go_round(q, r);
            return;
        }
        if (st != NARU_OK) {
            nr_request_fail(r, st, err.text);
            r->n_outputs = 0;
            s->begun = false; /* some states are the old ones: it cannot go on */
        }
    }
    r->n_outputs = NR_MIN(r->n_outputs, item->in->n_outputs); /* the rest are states */
    pthread_mutex_lock(&q->lock);
    int64_t now_ns = nr_clock_now();
    s->busy = false;
    if (item->start && passed && !ran) {
        s->begun = false; /* the scheduler refused it */
    }
    /* A last request that was refused for want of room may come again. */
    if (item->end && s->begun && (ran || r->status != NARU_UNAVAILABLE || item->auto_id != 0)) {
        end(q, s, now_ns);
    } else {
        s->closed = s->closed && (!item->end || !nr_list_empty(&s->waiting));
        nr_sequencer_advance(q, s, now_ns);
    }
    nr_sequencer_arm(q, now_ns);
    pthread_mutex_unlock(&q->lock);
    give_back(r);
    r->on_complete(r);
}

static const char *cancel_text(nr_status status)
{
    return status == NARU_DEADLINE
               ? "the request's time limit passed while it waited for its sequence"
               : "the request was cancelled while it waited for its sequence";
}

static void on_go(struct nr_msg *m)
{
    struct nr_request *r = nr_container_of(m, struct nr_request, msg);
    struct nr_seq_item *item = nr_seq_item_of(r);
    nr_loop_timer_cancel(r->loop, &r->timer);
    if (item->cancelled != NARU_OK) {
        nr_request_refuse(r, item->cancelled, cancel_text(item->cancelled), 0);
        return;
    }
    item->stage = NR_SEQ_PASSED;
    pass(item->q, r);
}

/* Under the lock: a waiting request goes, its sequence goes on without it. */
static void leave_sequence(struct nr_sequencer *q, struct nr_request *r)
{
    struct nr_seq_item *item = nr_seq_item_of(r);
    struct nr_seq *s = item->seq;
    nr_list_remove(&r->node);
    q->n_waiting--;
    q->waiting_bytes -= r->bytes;
    s->closed = !nr_list_empty(&s->waiting) && nr_seq_item_of(nr_request_of(s->waiting.prev))->end;
    if (s->busy || !nr_list_empty(&s->waiting)) {
        return;
    }
    if (item->end && s->begun) {
        end(q, s, nr_clock_now());
    } else {
        nr_sequencer_advance(q, s, nr_clock_now());
    }
}

void nr_sequencer_cancel(struct nr_target *t, struct nr_request *r, nr_status status,
                         bool running_too)
{
    struct nr_sequencer *q = nr_container_of(t, struct nr_sequencer, target);
    struct nr_seq_item *item = nr_seq_item_of(r);
    pthread_mutex_lock(&q->lock);
    bool waiting = item->stage == NR_SEQ_WAITING;
    if (waiting) {
        leave_sequence(q, r);
    } else if (item->stage == NR_SEQ_GOING) {
        item->cancelled = status;
    } else if (running_too) { /* direct: the request is in a place of ours */
        atomic_store_explicit(&r->cancelled, true, memory_order_release);
        nr_seq_lanes_cancel(q, r);
    }
    pthread_mutex_unlock(&q->lock);
    if (waiting) {
        give_back(r);
        nr_request_refuse(r, status, cancel_text(status), 0);
    }
}

/* --- admission -------------------------------------------------------------------------------- */

static struct nr_str id_text(const struct nr_infer_request *in, char *digits, size_t cap)
{
    if (in->sequence_name.len > 0) {
        return in->sequence_name;
    }
    int n = snprintf(digits, cap, "%llu", (unsigned long long)in->sequence_id);
    return (struct nr_str){digits, (size_t)NR_MAX(n, 0)};
}

/* Rules that a request breaks by itself. */
static nr_status check(const struct nr_sequencer *q, const struct nr_infer_request *in,
                       struct nr_err *err)
{
    if (in->sequence_id == 0 && in->sequence_name.len == 0 && !q->cfg.config->iterative) {
        return nr_fail(
            err, NARU_INVALID,
            "inference request to model '%s' must specify a non-zero or non-empty "
            "correlation ID: it serves sequences, so give the parameter sequence_id (and "
            "sequence_start with the first request of a sequence)",
            q->name);
    }
    if (in->rows != 1) {
        return nr_fail(
            err, NARU_INVALID,
            "inference request to model '%s' must specify batch-size 1, because it serves "
            "sequences; found %lld",
            q->name, (long long)in->rows);
    }
    return nr_seq_check_id(q, in, err);
}

enum accepted {
    TAKEN,
    GO, /* taken, and its turn: to be passed on by the caller, after the lock */
    UNKNOWN,
    REFUSED
};

static void arena_done(void *arena)
{
    nr_arena_done(arena);
}

static void attach(struct nr_sequencer *q, struct nr_seq *s, struct nr_request *r,
                   struct nr_seq_item *item)
{
    item->q = q;
    item->seq = s;
    item->in = r->in;
    item->on_complete = r->on_complete;
    item->target = r->target;
    item->previous = r->front;
    r->front = item;
    r->on_complete = on_complete;
    if (q->cfg.config->iterative) {
        item->arena = r->arena;
        nr_arena_init(&item->round, 0);
        nr_arena_defer(item->arena, arena_done, &item->round);
        r->arena = &item->round;
    }
    r->target = &q->target;
    r->sched = q->scheds[0]; /* for the counters, until a scheduler takes it */
}

/* Nothing of the sequence is before a request that comes now. */
static bool runs_next(const struct nr_seq *s)
{
    return s->lane >= 0 && !s->busy && nr_list_empty(&s->waiting);
}

static bool too_many(const struct nr_sequencer *q, const struct nr_request *r)
{
    return q->n_waiting >= q->limits.max_queue_requests ||
           (q->n_waiting > 0 && q->waiting_bytes + r->bytes > q->limits.max_queue_bytes);
}

static enum accepted enqueue(struct nr_sequencer *q, struct nr_seq *s, struct nr_request *r,
                             struct nr_seq_item *item)
{
    bool mine = runs_next(s);
    attach(q, s, r, item);
    s->closed = item->end;
    nr_seqtable_wake(&q->table, s);
    if (mine && !q->cfg.config->direct) {
        s->busy = true;
        item->stage = NR_SEQ_PASSED;
        return GO;
    }
    put_in_line(q, r, &s->waiting);
    if (mine) {
        nr_exec_wake(q->exec, &q->run);
    }
    return TAKEN;
}

/* Under the lock. */
static enum accepted accept_request(struct nr_sequencer *q, const struct nr_seq_key *key,
                                    struct nr_request *r, struct nr_seq_item *item,
                                    struct nr_err *err)
{
    struct nr_seq *s = nr_seqtable_find(&q->table, key), *old;
    int64_t now_ns = nr_clock_now();
    while ((old = nr_seqtable_expired(&q->table, now_ns)) != NULL) {
        s = old == s ? NULL : s; /* late ticks change nothing */
        q->expired++;
        nr_sequencer_drop(q, old);
    }
    if (!item->start && (s == NULL || s->closed)) {
        return UNKNOWN;
    }
    bool is_new = s == NULL;
    s = is_new ? nr_seqtable_add(&q->table, key) : s;
    if (s == NULL) {
        (void)nr_fail(err, NARU_UNAVAILABLE,
                      "all %u sequence slots of model '%s' are taken and %u more sequences wait, "
                      "which is the maximum; try again later",
                      q->table.n_active, q->name, q->table.n_backlog);
        return REFUSED;
    }
    if (!runs_next(s) && too_many(q, r)) {
        (void)nr_fail(err, NARU_UNAVAILABLE,
                      "%u requests of model '%s' wait for their sequences, which is the maximum "
                      "(queue size); try again later",
                      q->n_waiting, q->name);
        if (is_new) {
            (void)nr_seqtable_remove(&q->table, s);
        }
        return REFUSED;
    }
    nr_sequencer_hold(q);
    q->started += item->start;
    return enqueue(q, s, r, item);
}

static bool same_io(const struct nr_io_spec *a, const struct nr_io_spec *b, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        if (!nr_str_eq(a[i].name, b[i].name) || a[i].dtype != b[i].dtype ||
            a[i].rank != b[i].rank || a[i].batched != b[i].batched ||
            memcmp(a[i].shape, b[i].shape, a[i].rank * sizeof(a[i].shape[0])) != 0) {
            return false;
        }
    }
    return true;
}

static bool same_signature(const struct nr_signature *a, const struct nr_signature *b)
{
    return a->n_inputs == b->n_inputs && a->n_outputs == b->n_outputs &&
           same_io(a->inputs, b->inputs, a->n_inputs) &&
           same_io(a->outputs, b->outputs, a->n_outputs);
}

static void unref_version(void *version)
{
    nr_version_unref(version);
}

/* What is left of a request when it is complete (answers that its client has not read, say) may
 * still lean on the version, which the request's own snapshot does not hold. */
static void hold_until_done(struct nr_version *v, struct nr_arena *a)
{
    nr_arena_defer(a, unref_version, nr_version_ref(v));
}

/* A sequence that this version does not know may live on another one of the model. *ret_at: the
 * sequencer that took the request. */
static enum accepted accept_elsewhere(struct nr_sequencer *q, const struct nr_seq_key *key,
                                      struct nr_request *r, struct nr_seq_item *item,
                                      struct nr_sequencer **ret_at, struct nr_err *err)
{
    struct nr_sequence_book *book = q->cfg.book;
    enum accepted a = UNKNOWN;
    if (book == NULL || q->cfg.version == NULL) {
        return UNKNOWN;
    }
    pthread_mutex_lock(&book->lock);
    NR_LIST_FOREACH (node, &book->all) {
        struct nr_sequencer *other = nr_container_of(node, struct nr_sequencer, node);
        if (other == q || other->cfg.version->repository != q->cfg.version->repository ||
            strcmp(other->name, q->name) != 0) {
            continue;
        }
        pthread_mutex_lock(&other->lock);
        if (nr_seqtable_find(&other->table, key) != NULL) {
            if (same_signature(other->cfg.signature, q->cfg.signature)) {
                a = accept_request(other, key, r, item, err);
                *ret_at = other;
                if (a == TAKEN || a == GO) {
                    other->forwarded++;
                    r->ran_version = other->cfg.version->number;
                    hold_until_done(other->cfg.version, item->arena ? item->arena : r->arena);
                }
            } else {
                a = REFUSED;
                (void)nr_fail(err, NARU_INVALID,
                              "the sequence began on version %lld of model '%s', whose inputs or "
                              "outputs differ from those of version %lld: begin it anew",
                              (long long)other->cfg.version->number, q->name,
                              (long long)q->cfg.version->number);
            }
        }
        pthread_mutex_unlock(&other->lock);
        if (a != UNKNOWN) {
            break;
        }
    }
    pthread_mutex_unlock(&book->lock);
    return a;
}

/* The fields that a scheduler's submit sets, for a request that may end before it gets there. */
static void prepare(struct nr_sequencer *q, struct nr_request *r)
{
    r->sched = q->scheds[0];
    r->status = NARU_OK;
    r->error = (struct nr_str){0};
    r->queued_ns = nr_clock_now();
    r->begin_ns = r->infer_begin_ns = r->infer_end_ns = r->end_ns = 0;
    r->n_outputs = 0;
    r->ran_version = 0;
    r->leads = false;
    r->again = false;
    r->rounds = 0;
    r->place = NULL;
    r->only = NULL;
    atomic_store_explicit(&r->n_answers, 0, memory_order_relaxed);
    r->too_many = false;
    nr_list_init(&r->node);
    atomic_store_explicit(&r->cancelled, false, memory_order_relaxed);
    atomic_store_explicit(&r->state, NR_REQUEST_QUEUED, memory_order_relaxed);
    r->bytes = 0;
    for (unsigned i = 0; i < r->in->n_inputs; i++) {
        r->bytes += r->in->inputs[i].bytes;
    }
}

/* A number that fits every type of correlation id. One that is still in use is passed over. */
static uint64_t next_auto_id(struct nr_sequencer *q)
{
    struct nr_seq_key key;
    do {
        q->last_auto_id = q->last_auto_id % INT32_MAX + 1;
        nr_seq_key_auto(&key, q->last_auto_id);
    } while (nr_seqtable_find(&q->table, &key) != NULL);
    return q->last_auto_id;
}

void nr_sequencer_submit(struct nr_target *t, struct nr_request *r)
{
    struct nr_sequencer *q = nr_container_of(t, struct nr_sequencer, target), *at = q;
    struct nr_err err = {0};
    struct nr_seq_key key;
    prepare(q, r);
    if (check(q, r->in, &err) != NARU_OK) {
        refuse(r, &err);
        return;
    }
    struct nr_seq_item *item = nr_arena_new(r->arena, struct nr_seq_item);
    item->start = r->in->sequence_start;
    item->end = item->tells_end = r->in->sequence_end;
    nr_seq_key_make(&key, r->in->sequence_id, r->in->sequence_name);
    pthread_mutex_lock(&q->lock);
    if (r->in->sequence_id == 0 && r->in->sequence_name.len == 0) {
        item->start = item->end = true;
        item->auto_id = next_auto_id(q);
        nr_seq_key_auto(&key, item->auto_id);
    }
    enum accepted a = accept_request(q, &key, r, item, &err);
    pthread_mutex_unlock(&q->lock);
    if (a == UNKNOWN) {
        a = accept_elsewhere(q, &key, r, item, &at, &err);
    }
    if (a == UNKNOWN) {
        char digits[24];
        struct nr_str id = id_text(r->in, digits, sizeof(digits));
        a = REFUSED;
        (void)nr_fail(&err, NARU_INVALID,
                      "inference request for sequence " NR_STR_FMT
                      " to model '%s' must specify the "
                      "START flag on the first request of the sequence: none of this id is under "
                      "way; it ended, was idle for more than %lld ms, or never began",
                      NR_STR_ARG(id), q->name, (long long)(q->table.cfg.idle_ns / NR_MS_NS));
    }
    if (a == REFUSED) {
        refuse(r, &err);
    } else if (a == GO) {
        pass(at, r);
    }
}
