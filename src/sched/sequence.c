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
 * Letting the version go. What holds a version alive otherwise is the snapshot that a request pins
 * on its loop; a request that was passed on from another version pins that one. So the version is
 * let go only after a message has gone round all loops: by then none is in this sequencer's code.
 *
 * Invariants and locks: sequence_priv.h.
 */
#include "sched/sequence.h"

#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "sched/sequence_priv.h"

#define MAX_ACTIVE 65536          /* sequences with a slot, where the configuration says nothing */
#define QUIET_NS (100 * NR_MS_NS) /* without sequences before a version is let go */

struct nr_sequence_book {
    pthread_mutex_t lock;
    struct nr_list all; /* nr_sequencer.node */
};

static struct nr_sequencer *sequencer_of(struct nr_list *node)
{
    return nr_container_of(node, struct nr_sequencer, node);
}

/* --- time-outs and the version; under the lock ------------------------------------------------- */

/* Sees to it that the tick runs when there will be something to do. */
static void arm(struct nr_sequencer *q, int64_t now_ns)
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

static void hold(struct nr_sequencer *q)
{
    q->quiet = false;
    if (!q->held && q->cfg.version != NULL) {
        (void)nr_version_ref(q->cfg.version); /* the request that begins the sequence pins it */
        q->held = true;
    }
}

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

/* The sequence is over. Its slot goes to the next one. */
static void drop(struct nr_sequencer *q, struct nr_seq *s)
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
        drop(q, s);
    } else {
        nr_seqtable_rest(&q->table, s, now_ns);
    }
    arm(q, now_ns);
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

static void expire(struct nr_sequencer *q, struct nr_seq *s)
{
    q->expired++;
    drop(q, s);
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
    arm(q, now_ns);
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

static void cancel(struct nr_target *t, struct nr_request *r, nr_status status, bool running_too)
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
        expire(q, old);
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
    hold(q);
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
        struct nr_sequencer *other = sequencer_of(node);
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

static void submit(struct nr_target *t, struct nr_request *r)
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
    arm(q, nr_clock_now());
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
        expire(q, s);
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
    arm(q, now_ns);
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
        drop(q, s);
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
    struct nr_batch_rules rules = {
        .max_rows = NR_MAX(most, 1), .batching = most > 1, .delay_ns = (int64_t)c->delay_ns};
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
    q->scheds = nr_new_array(struct nr_sched *, n);
    for (unsigned i = 0; i < n; i++) {
        cfg.n_instances = c->direct ? 0 : one ? base->n_instances : 1;
        cfg.instances = one ? base->instances : base->instances + i;
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
    q->target = (struct nr_target){.submit = submit, .cancel = cancel};
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
    nr_exec_retire(q->exec, &q->run);
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
    sum->is_inline = sum->is_inline || one->is_inline;
    sum->may_inline = sum->may_inline || one->may_inline;
    sum->n_promoted += one->n_promoted;
    sum->n_demoted += one->n_demoted;
    sum->row_ns = NR_MAX(sum->row_ns, one->row_ns);
    sum->bytes_copied += one->bytes_copied;
    sum->bytes_in_place += one->bytes_in_place;
    for (unsigned i = 0; i < NR_SEAL_COUNT; i++) {
        sum->seals[i] += one->seals[i];
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
