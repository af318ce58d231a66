/* The scheduler of one model version: admission, the queue, executors, cancelling.
 *
 * DESIGN. Two ways to a place. (a) Turn: requests of one loop turn wait on turn->pending, which only
 * that loop touches, and run at its end (turn.c). (b) Queue: one list under the lock; an executor
 * thread takes a prefix whenever a place is idle. Both fill a place and deliver from it (place.c), so
 * a request cannot tell them apart.
 *
 * Invariants and lock order: sched_priv.h.
 */
#include "sched/sched.h"

#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "sched/sched_priv.h"

void nr_sched_limits_default(struct nr_sched_limits *l)
{
    *l = (struct nr_sched_limits){.max_queue_requests = 4096,
                                  .max_queue_bytes = 256u << 20,
                                  .max_wait_ns = 5 * NR_S_NS,
                                  .idle_trim_ns = NR_S_NS};
}

/* --- queue and executors ----------------------------------------------------------------------- */

/* Makes the requests of a place findable for a cancel, or hides them again before they are
 * handed back; only for plug-ins that can be told. */
static void show_running(struct nr_place *p, bool shown)
{
    struct nr_sched *s = p->sched;
    if (!NARU_HAS(s->cfg.model->plugin->api, naru_backend, cancel)) {
        return;
    }
    pthread_mutex_lock(&s->lock);
    for (unsigned i = 0; i < p->n_taken; i++) {
        p->taken[i]->place = shown ? p : NULL;
    }
    pthread_mutex_unlock(&s->lock);
}

void nr_sched_observe(struct nr_sched *s, struct nr_place *p, int64_t cpu_ns)
{
    int64_t run_ns = p->infer_end_ns - p->begin_ns, rows = NR_MAX(p->rows, 1);
    int64_t row_ns = run_ns / rows;
    s->row_ns = s->row_ns == 0 ? row_ns : s->row_ns + (row_ns - s->row_ns) / 8;
    struct nr_batch_stats stats;
    nr_batch_stats_get(p->batch, &stats);
    s->bytes_copied += stats.bytes_copied - p->bytes_copied;
    s->bytes_in_place += stats.bytes_in_place - p->bytes_in_place;
    p->bytes_copied = stats.bytes_copied;
    p->bytes_in_place = stats.bytes_in_place;
    nr_placement_observe(&s->placement, rows, run_ns, cpu_ns >= 0 ? cpu_ns : run_ns,
                         p->infer_end_ns);
    atomic_store_explicit(&s->is_inline, s->placement.is_inline, memory_order_relaxed);
    if (!p->is_inline) {
        nr_batchsize_observe(&s->batchsize, rows, run_ns, p->infer_end_ns);
    }
}

static void refuse_all(struct nr_list *refused)
{
    struct nr_list *node;
    while ((node = nr_list_pop(refused)) != NULL) {
        struct nr_request *r = nr_request_of(node);
        r->msg.run = nr_request_on_msg;
        atomic_store_explicit(&r->state, NR_REQUEST_DONE, memory_order_release);
        nr_loop_post(r->loop, &r->msg);
    }
}

/* Under the lock: a place and the head of the queue for it, or NULL. *ret_wait_ns: when to look
 * again although nothing was taken (0: not needed). */
static struct nr_place *take_batch(struct nr_sched *s, struct nr_list *ret_batch, unsigned *ret_n,
                                   int64_t *ret_wait_ns)
{
    *ret_wait_ns = 0;
    if (nr_list_empty(&s->queue) || nr_list_empty(&s->idle)) {
        return NULL;
    }
    int64_t now_ns = nr_clock_now();
    struct nr_batch_rules rules = s->cfg.rules;
    int64_t fixed_ns = 0;
    if (rules.auto_size) {
        int64_t waited_ns = now_ns - nr_request_of(s->queue.next)->queued_ns;
        fixed_ns = nr_batchsize_fixed(&s->batchsize, waited_ns);
        int64_t soon = nr_hold_rows(&s->hold, s->queued_rows, fixed_ns, now_ns);
        rules.max_rows = nr_batchsize_limit(&s->batchsize, soon, waited_ns, now_ns);
    }
    struct nr_batch_plan plan = nr_batcher_plan(&rules, &s->queue, now_ns);
    if (rules.auto_size && plan.why == NR_SEAL_IDLE) {
        *ret_wait_ns = nr_hold_until(&s->hold, s->queued_rows, fixed_ns, now_ns);
        if (*ret_wait_ns != 0) {
            return NULL;
        }
    }
    if (plan.n_requests == 0) {
        *ret_wait_ns = plan.wait_until_ns;
        return NULL;
    }
    struct nr_place *p = nr_container_of(nr_list_pop(&s->idle), struct nr_place, node);
    p->is_inline = false;
    p->begin_ns = now_ns;
    p->rows = plan.rows;
    nr_hold_took(&s->hold, plan.rows, fixed_ns, now_ns);
    for (unsigned i = 0; i < plan.n_requests; i++) {
        struct nr_request *r = nr_request_of(nr_list_pop(&s->queue));
        s->n_queued--;
        s->queued_bytes -= r->bytes;
        s->queued_rows -= r->in->rows;
        /* Taken under the lock, so that a cancel never looks for it in the queue again. */
        atomic_store_explicit(&r->state, NR_REQUEST_RUNNING, memory_order_relaxed);
        nr_list_append(ret_batch, &r->node);
    }
    s->seals[plan.why]++;
    s->n_running++;
    *ret_n = plan.n_requests;
    return p;
}

/* cpu_ns as in nr_sched_observe. */
static void release_place(struct nr_place *p, bool observed, int64_t cpu_ns)
{
    struct nr_sched *s = p->sched;
    nr_place_rest(p);
    pthread_mutex_lock(&s->lock);
    if (observed) {
        nr_sched_observe(s, p, cpu_ns);
    }
    nr_hold_ended(&s->hold, p->rows, s->queued_rows, nr_clock_now());
    s->n_running--;
    nr_list_append(&s->idle, &p->node);
    nr_trim_arm(s);
    pthread_mutex_unlock(&s->lock);
}

static void on_batch_done(struct nr_batch *b, void *arg)
{
    (void)b;
    struct nr_place *p = arg;
    struct nr_sched *s = p->sched;
    /* Not s->lock: a cancel, which holds that one, may be what ends the run. */
    pthread_mutex_lock(&s->finished_lock);
    nr_list_append(&s->finished, &p->node);
    /* before the unlock: an executor that finds the place may be the last use of the scheduler */
    nr_exec_wake(s->cfg.exec, &s->runnable);
    pthread_mutex_unlock(&s->finished_lock);
}

static void finish_pending(struct nr_sched *s)
{
    for (;;) {
        pthread_mutex_lock(&s->finished_lock);
        struct nr_list *node = nr_list_pop(&s->finished);
        pthread_mutex_unlock(&s->finished_lock);
        if (node == NULL) {
            return;
        }
        struct nr_place *p = nr_container_of(node, struct nr_place, node);
        p->infer_end_ns = nr_clock_now();
        show_running(p, false);
        nr_place_deliver(p);
        release_place(p, true, -1);
    }
}

static bool run_queue(struct nr_runnable *runnable)
{
    struct nr_sched *s = nr_container_of(runnable, struct nr_sched, runnable);
    struct nr_list batch, refused;
    unsigned n = 0;
    int64_t wait_ns;
    nr_list_init(&batch);
    nr_list_init(&refused);
    finish_pending(s);
    pthread_mutex_lock(&s->lock);
    struct nr_place *p = take_batch(s, &batch, &n, &wait_ns);
    bool more = p != NULL && !nr_list_empty(&s->queue) && !nr_list_empty(&s->idle);
    pthread_mutex_unlock(&s->lock);
    if (p == NULL) {
        if (wait_ns != 0) {
            nr_exec_wake_at(s->cfg.exec, &s->runnable, wait_ns);
        }
        return false;
    }
    if (more) {
        nr_exec_wake(s->cfg.exec, &s->runnable); /* another place is idle: another thread */
    }
    nr_place_fill(p, &batch, n, &refused);
    refuse_all(&refused);
    show_running(p, true);
    /* Only a model that may move to the loops is asked for its time on the processor. */
    int64_t cpu_ns = s->cfg.placement.allowed ? nr_clock_thread_cpu() : -1;
    p->infer_begin_ns = nr_clock_now();
    if (p->n_taken > 0 && nr_batch_run(p->batch, p->instance) == NARU_PENDING) {
        return true; /* on_batch_done brings the place back */
    }
    p->infer_end_ns = nr_clock_now();
    cpu_ns = cpu_ns >= 0 ? nr_clock_thread_cpu() - cpu_ns : -1;
    bool ran = p->n_taken > 0;
    show_running(p, false);
    nr_place_deliver(p);
    release_place(p, ran, cpu_ns);
    return true;
}

/* --- submitting (loop threads) ----------------------------------------------------------------- */

static void on_deadline(struct nr_timer *t)
{
    struct nr_request *r = nr_container_of(t, struct nr_request, timer);
    nr_request_cancel(r, NARU_DEADLINE, false);
}

/* Under the lock: NULL when the queue takes it, else why not. */
static const char *queue_refuses(const struct nr_sched *s, const struct nr_request *r)
{
    const struct nr_sched_limits *l = &s->cfg.limits;
    if (s->n_queued >= l->max_queue_requests) {
        return "the model's queue is full (maximum queue size); try again later";
    }
    if (s->queued_bytes + r->bytes > l->max_queue_bytes && s->n_queued > 0) {
        return "the model's queue holds its maximum of input bytes; try again later";
    }
    int64_t rows = s->queued_rows + r->in->rows;
    if (s->n_queued > 0 && s->row_ns > 0 &&
        rows > l->max_wait_ns / s->row_ns * (int64_t)NR_MAX(s->n_places, 1u)) {
        return "the model's queue holds more work than it can do within its time limit; "
               "try again later";
    }
    return NULL;
}

void nr_sched_enqueue(struct nr_sched *s, struct nr_request *r)
{
    pthread_mutex_lock(&s->lock);
    const char *why = queue_refuses(s, r);
    if (why != NULL) {
        int64_t wait_ns = s->queued_rows * s->row_ns;
        pthread_mutex_unlock(&s->lock);
        nr_request_refuse(r, NARU_UNAVAILABLE, why,
                          (unsigned)NR_MIN(NR_MAX(wait_ns / NR_S_NS, 1), 60));
        return;
    }
    atomic_store_explicit(&r->state, NR_REQUEST_QUEUED, memory_order_relaxed);
    nr_list_append(&s->queue, &r->node);
    s->n_queued++;
    s->queued_bytes += r->bytes;
    s->queued_rows += r->in->rows;
    bool wake = !nr_list_empty(&s->idle); /* else the thread that frees a place looks again */
    if (r->deadline_ns != 0) {
        r->timer.on_timer = on_deadline;
        nr_loop_timer_set(r->loop, &r->timer, r->deadline_ns);
    }
    pthread_mutex_unlock(&s->lock);
    if (wake) {
        nr_exec_wake(s->cfg.exec, &s->runnable);
    }
}

static void prepare(struct nr_sched *s, struct nr_request *r)
{
    const struct nr_sched_limits *l = &s->cfg.limits;
    int64_t timeout_ns = l->default_timeout_ns;
    if (l->allow_timeout_override && r->in->timeout_us > 0 &&
        r->in->timeout_us < INT64_MAX / 1000) {
        int64_t own_ns = (int64_t)r->in->timeout_us * 1000;
        timeout_ns = timeout_ns == 0 ? own_ns : NR_MIN(timeout_ns, own_ns);
    }
    if (timeout_ns > 0) {
        int64_t at_ns = r->queued_ns + timeout_ns;
        r->deadline_ns = r->deadline_ns == 0 ? at_ns : NR_MIN(r->deadline_ns, at_ns);
    }
    r->bytes = 0;
    for (unsigned i = 0; i < r->in->n_inputs; i++) {
        r->bytes += r->in->inputs[i].bytes;
    }
    r->outputs = nr_arena_zalloc(r->arena, NR_MAX(r->in->n_outputs, 1u) * sizeof(*r->outputs));
}

static void submit(struct nr_target *t, struct nr_request *r)
{
    struct nr_sched *s = nr_container_of(t, struct nr_sched, target);
    r->sched = s;
    r->status = NARU_OK;
    r->error = (struct nr_str){0};
    r->queued_ns = nr_clock_now();
    r->begin_ns = r->infer_begin_ns = r->infer_end_ns = r->end_ns = 0;
    r->n_outputs = 0;
    r->leads = false;
    r->place = NULL;
    r->again = false;
    if (r->rounds == 0) { /* else answers of earlier rounds may be on their way */
        r->only = NULL;
        atomic_store_explicit(&r->n_answers, 0, memory_order_relaxed);
        r->too_many = false;
    }
    nr_list_init(&r->node);
    atomic_store_explicit(&r->cancelled, false, memory_order_relaxed);
    prepare(s, r);
    if (r->deadline_ns != 0 && r->deadline_ns <= r->queued_ns) {
        nr_request_refuse(r, NARU_DEADLINE,
                          "the request's deadline had passed before it could be queued", 0);
        return;
    }
    if (!atomic_load_explicit(&s->is_inline, memory_order_relaxed)) {
        nr_sched_enqueue(s, r);
        return;
    }
    struct nr_turn *turn = &s->turns[nr_loop_index(r->loop)];
    atomic_store_explicit(&r->state, NR_REQUEST_QUEUED, memory_order_relaxed);
    nr_list_append(&turn->pending, &r->node);
    nr_loop_hook_arm(r->loop, &turn->hook);
}

/* --- cancelling (loop threads) ----------------------------------------------------------------- */

static const char *cancel_text(nr_status status)
{
    return status == NARU_DEADLINE ? "the request's time limit passed while it waited in the queue"
                                   : "the request was cancelled before it ran";
}

static void cancel(struct nr_target *t, struct nr_request *r, nr_status status, bool running_too)
{
    struct nr_sched *s = nr_container_of(t, struct nr_sched, target);
    pthread_mutex_lock(&s->lock);
    bool waiting = atomic_load_explicit(&r->state, memory_order_acquire) == NR_REQUEST_QUEUED;
    if (!waiting && running_too) {
        atomic_store_explicit(&r->cancelled, true, memory_order_release);
        if (r->place != NULL) {
            nr_batch_cancel(r->place->batch, r->place_index);
        }
        if (s->cfg.decoupled) {
            nr_flow_cancelled(s);
        }
    }
    if (waiting) {
        /* In the queue or in this loop's pending list: both are lists that forget it alike. */
        struct nr_turn *turn = &s->turns[nr_loop_index(r->loop)];
        bool pending = false;
        NR_LIST_FOREACH (node, &turn->pending) {
            pending = pending || node == &r->node;
        }
        nr_list_remove(&r->node);
        if (!pending) {
            s->n_queued--;
            s->queued_bytes -= r->bytes;
            s->queued_rows -= r->in->rows;
        }
    }
    pthread_mutex_unlock(&s->lock);
    if (waiting) {
        nr_request_refuse(r, status, cancel_text(status), 0);
    }
}

/* --- life -------------------------------------------------------------------------------------- */

nr_status nr_sched_new(const struct nr_sched_cfg *cfg, struct nr_sched **ret, struct nr_err *err)
{
    struct nr_sched *s = nr_new(struct nr_sched);
    s->cfg = *cfg;
    s->target = (struct nr_target){.submit = submit, .cancel = cancel};
    s->n_places = cfg->n_instances;
    pthread_mutex_init(&s->lock, NULL);
    pthread_mutex_init(&s->finished_lock, NULL);
    pthread_mutex_init(&s->flow_lock, NULL);
    nr_clock_cond_init(&s->flow_room);
    nr_exec_init(&s->runnable, run_queue);
    nr_exec_init(&s->trimmer, nr_trim_run);
    nr_list_init(&s->queue);
    nr_list_init(&s->idle);
    nr_list_init(&s->finished);
    nr_placement_init(&s->placement, &cfg->placement);
    nr_batchsize_init(&s->batchsize, cfg->rules.max_rows, cfg->latency_target_ns);
    nr_hold_init(&s->hold);
    s->counters = cfg->counters != NULL
                      ? cfg->counters
                      : nr_counters_new(cfg->n_loops, cfg->signature->max_batch_size);
    s->places = nr_new_array(struct nr_place, NR_MAX(cfg->n_instances, 1u));
    s->turns = nr_new_array(struct nr_turn, NR_MAX(cfg->n_loops, 1u));
    nr_status st = NARU_OK;
    for (unsigned i = 0; i < cfg->n_instances && st == NARU_OK; i++) {
        st = nr_place_init(&s->places[i], s, cfg->instances[i], on_batch_done, err);
        nr_list_append(&s->idle, &s->places[i].node);
    }
    for (unsigned i = 0; i < cfg->n_loops; i++) {
        struct nr_turn *turn = &s->turns[i];
        turn->sched = s;
        turn->hook.on_turn = nr_turn_run;
        nr_list_init(&turn->hook.node);
        nr_list_init(&turn->pending);
        if (cfg->loop_instances != NULL && st == NARU_OK) {
            turn->place = nr_new(struct nr_place);
            st = nr_place_init(turn->place, s, cfg->loop_instances[i], on_batch_done, err);
        }
    }
    if (st != NARU_OK) {
        nr_sched_free(s);
        return st;
    }
    *ret = s;
    return NARU_OK;
}

void nr_sched_free(struct nr_sched *s)
{
    if (s == NULL) {
        return;
    }
    nr_exec_retire(s->cfg.exec, &s->runnable); /* its last act may be to arm the other … */
    nr_exec_retire(s->cfg.exec, &s->trimmer);  /* … which wakes it for requests only */
    NR_ASSERT(s->n_queued == 0 && s->n_running == 0);
    for (unsigned i = 0; i < s->n_places; i++) {
        nr_place_done(&s->places[i]);
    }
    for (unsigned i = 0; i < s->cfg.n_loops; i++) {
        if (s->turns[i].place != NULL) {
            nr_place_done(s->turns[i].place);
            nr_free(s->turns[i].place);
        }
    }
    if (s->cfg.counters == NULL) {
        nr_counters_free(s->counters);
    }
    pthread_mutex_destroy(&s->lock);
    pthread_mutex_destroy(&s->finished_lock);
    pthread_mutex_destroy(&s->flow_lock);
    pthread_cond_destroy(&s->flow_room);
    nr_free(s->places);
    nr_free(s->turns);
    nr_free(s);
}

struct nr_target *nr_sched_target(struct nr_sched *s)
{
    return &s->target;
}

const struct nr_signature *nr_sched_signature(const struct nr_sched *s)
{
    return s->cfg.signature;
}

struct nr_counters *nr_sched_counters(struct nr_sched *s)
{
    return s->counters;
}

void nr_sched_state_get(struct nr_sched *s, struct nr_sched_state *ret)
{
    pthread_mutex_lock(&s->lock);
    *ret = (struct nr_sched_state){.queued = s->n_queued,
                                   .running = s->n_running,
                                   .places = s->n_places,
                                   .queued_bytes = s->queued_bytes,
                                   .is_inline = s->placement.is_inline,
                                   .may_inline = s->placement.cfg.allowed,
                                   .n_promoted = s->placement.n_promoted,
                                   .n_demoted = s->placement.n_demoted,
                                   .row_ns = s->row_ns,
                                   .bytes_copied = s->bytes_copied,
                                   .bytes_in_place = s->bytes_in_place};
    memcpy(ret->seals, s->seals, sizeof(ret->seals));
    pthread_mutex_unlock(&s->lock);
}
