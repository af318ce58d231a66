/* The scheduler of one model version: admission, executors, cancelling.
 *
 * DESIGN. Two ways to a place. (a) Turn: requests of one loop turn wait on turn->pending, which only
 * that loop touches, and run at its end (turn.c). (b) Queue (queue.c) under the lock; an executor
 * thread takes a batch from its head (batcher.c) whenever a place is idle. Both fill a place and
 * deliver from it (place.c), so a request cannot tell them apart.
 *
 * Whoever has to leave the queue without having run (no time left, no room) is taken out under the
 * lock and answered after it: by a message to its own loop, or at once when it is the caller's.
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
    nr_admit_ran(&s->admit, rows, run_ns);
    struct nr_batch_stats stats;
    nr_batch_stats_get(p->batch, &stats);
    s->bytes_copied += stats.bytes_copied - p->bytes_copied;
    s->bytes_in_place += stats.bytes_in_place - p->bytes_in_place;
    p->bytes_copied = stats.bytes_copied;
    p->bytes_in_place = stats.bytes_in_place;
    nr_placement_observe(&s->placement, rows, run_ns, cpu_ns >= 0 ? cpu_ns : run_ns,
                         p->infer_end_ns);
    atomic_store_explicit(&s->is_inline, s->placement.is_inline, memory_order_relaxed);
    if (!p->is_inline && nr_parallel_lanes(&s->parallel, p->run.way) > 1) {
        nr_batchsize_observe(&s->side_size, rows, run_ns * 1000 / p->beside, p->infer_end_ns);
    } else if (!p->is_inline) {
        nr_batchsize_observe(&s->batchsize, rows, run_ns, p->infer_end_ns);
    }
}

void nr_sched_answer(struct nr_sched *s, struct nr_request *const *all, unsigned n)
{
    if (!s->cfg.preserve_ordering) {
        for (unsigned i = 0; i < n; i++) {
            nr_loop_post(all[i]->loop, &all[i]->msg);
        }
        return;
    }
    pthread_mutex_lock(&s->lock);
    for (unsigned i = 0; i < n; i++) {
        nr_order_answered(all[i]);
    }
    struct nr_request *r;
    while ((r = nr_order_pop(&s->order)) != NULL) { /* posted under the lock: in this order */
        nr_loop_post(r->loop, &r->msg);
    }
    pthread_mutex_unlock(&s->lock);
}

/* Requests that a batch took and did not want. */
static void answer_unfit(struct nr_sched *s, struct nr_list *unfit)
{
    struct nr_list *node;
    while ((node = nr_list_pop(unfit)) != NULL) {
        struct nr_request *r = nr_request_of(node);
        r->msg.run = nr_request_on_msg;
        atomic_store_explicit(&r->state, NR_REQUEST_DONE, memory_order_release);
        nr_sched_answer(s, &r, 1);
    }
}

/* --- leaving without having run ---------------------------------------------------------------- */

static const char *refusal_says(nr_refusal why)
{
    /* The first words of three of them are Triton's: clients look for them. */
    switch (why) {
    case NR_REFUSAL_POLICY:
        return "Exceeds maximum queue size: the model's queue is full (max_queue_size of its "
               "configuration); try again later";
    case NR_REFUSAL_COUNT:
        return "Exceeds maximum queue size: the model's queue is full; try again later";
    case NR_REFUSAL_BYTES:
        return "the model's queue holds its maximum of input bytes; try again later";
    case NR_REFUSAL_WAIT:
        return "the model's queue holds more work than it can do within its time limit; "
               "try again later";
    case NR_REFUSAL_HOPELESS:
        return "the model's queue holds more work than it can do within the request's time limit; "
               "try again later";
    case NR_REFUSAL_SHARE:
        return "the model's queue is full and this client has the most in it; try again later";
    case NR_REFUSAL_STUCK:
        return "the model is stuck: no run of it returns; try again later";
    case NR_REFUSAL_TIMEOUT:
        return "Request timeout expired: it waited in the queue for longer than its time-out";
    default:
        return "the request's time limit passed while it waited in the queue";
    }
}

static unsigned retry_s(int64_t wait_ns)
{
    return (unsigned)NR_MIN(NR_MAX(wait_ns / NR_S_NS, 1), 60);
}

/* Under the lock, r out of the queue: on its way to *gone with the reason. */
static void expel(struct nr_sched *s, struct nr_request *r, nr_refusal why, struct nr_list *gone)
{
    s->refused[why]++;
    r->status = why == NR_REFUSAL_DEADLINE ? NARU_DEADLINE : NARU_UNAVAILABLE;
    r->error = nr_str_from(refusal_says(why));
    r->retry_after_s = why == NR_REFUSAL_DEADLINE ? 0 : 1;
    r->msg.run = nr_request_on_msg;
    /* under the lock, so that a cancel never looks for it in the queue again */
    atomic_store_explicit(&r->state, NR_REQUEST_DONE, memory_order_relaxed);
    nr_list_append(gone, &r->node);
}

static void expel_expired(struct nr_sched *s, int64_t now_ns, struct nr_list *gone)
{
    struct nr_request *r;
    while ((r = nr_queue_expire(&s->queue, now_ns)) != NULL) {
        bool late = r->leaves_ns != 0 && r->leaves_ns <= now_ns;
        expel(s, r, late ? NR_REFUSAL_DEADLINE : NR_REFUSAL_TIMEOUT, gone);
    }
}

/* Without the lock. */
static void answer_gone(struct nr_list *gone)
{
    struct nr_list *node;
    while ((node = nr_list_pop(gone)) != NULL) {
        struct nr_request *r = nr_request_of(node);
        nr_loop_post(r->loop, &r->msg);
    }
}

void nr_sched_set_stuck(struct nr_sched *s, bool stuck)
{
    struct nr_list gone;
    nr_list_init(&gone);
    pthread_mutex_lock(&s->lock);
    s->stuck = stuck;
    while (stuck && s->queue.n > 0) {
        struct nr_request *r = nr_request_of(s->queue.order.next);
        nr_queue_remove(&s->queue, r);
        expel(s, r, NR_REFUSAL_STUCK, &gone);
    }
    pthread_mutex_unlock(&s->lock);
    answer_gone(&gone);
}

/* --- taking ------------------------------------------------------------------------------------ */

struct taken {
    struct nr_list batch;
    unsigned n;
    struct nr_list gone; /* left the queue without having run */
    int64_t wait_ns;     /* when to look again although nothing was taken; 0: not needed */
};

/* Under the lock: rules for a batch that is taken now, with the size that measured times suggest. */
static struct nr_batch_rules rules_now(struct nr_sched *s, nr_way way, int64_t now_ns,
                                       int64_t *ret_fixed_ns)
{
    struct nr_batch_rules rules = s->cfg.rules;
    int64_t waited_ns = now_ns - nr_request_of(s->queue.order.next)->queued_ns;
    unsigned lanes = nr_parallel_lanes(&s->parallel, way);
    *ret_fixed_ns = 0;
    if (rules.auto_size && lanes > 1) { /* others will take their part, and nobody is waited for */
        int64_t free = NR_MAX((int64_t)lanes - s->parallel.n_running, 1);
        int64_t part = (s->queue.rows + free - 1) / free;
        rules.max_rows = nr_batchsize_limit(&s->side_size, part, waited_ns, now_ns);
    } else if (rules.auto_size) {
        *ret_fixed_ns = nr_batchsize_fixed(&s->batchsize, waited_ns);
        int64_t soon = nr_hold_rows(&s->hold, s->queue.rows, *ret_fixed_ns, now_ns);
        rules.max_rows = nr_batchsize_limit(&s->batchsize, soon, waited_ns, now_ns);
    }
    return rules;
}

/* Under the lock: nothing is to run now, so nobody else shall wait for the resources of these. */
static void calm(struct nr_sched *s)
{
    if (NR_LIKELY(s->n_asked == 0)) {
        return;
    }
    for (unsigned i = 0; i < s->n_places; i++) {
        nr_place_calm(&s->places[i]);
    }
    if (s->asked_ns != 0) {
        s->limited_ns += nr_clock_now() - s->asked_ns;
        s->asked_ns = 0;
    }
}

static bool has_idle(const struct nr_sched *s, const struct nr_lane *lane)
{
    bool found = false;
    NR_LIST_FOREACH (node, &s->idle) {
        found = nr_container_of(node, struct nr_place, node)->lane == lane;
        if (found) {
            break;
        }
    }
    return found;
}

/* Under the lock: off the idle list, the first place of the lane that may run. */
static struct nr_place *take_place(struct nr_sched *s, const struct nr_lane *lane, int64_t now_ns)
{
    struct nr_place *found = NULL;
    NR_LIST_FOREACH (node, &s->idle) {
        struct nr_place *p = nr_container_of(node, struct nr_place, node);
        if (p->lane == lane && nr_place_admit(p)) {
            found = p;
            break;
        }
    }
    if (s->asked_ns != 0) {
        s->limited_ns += now_ns - s->asked_ns;
    }
    s->asked_ns = found == NULL && s->n_asked > 0 ? now_ns : 0;
    if (found != NULL) {
        nr_list_remove(&found->node);
    }
    return found;
}

/* Every lane: whichever has an idle place takes what there is. */
void nr_sched_wake(struct nr_sched *s)
{
    for (unsigned i = 0; i < s->n_lanes; i++) {
        nr_exec_wake(s->lanes[i].exec, &s->lanes[i].runnable);
    }
}

/* Under the lock: a place and a batch for it, or NULL. */
static struct nr_place *take_batch(struct nr_sched *s, const struct nr_lane *lane, struct taken *t)
{
    if (s->queue.n == 0) {
        calm(s);
        return NULL;
    }
    if (!has_idle(s, lane)) {
        return NULL;
    }
    int64_t now_ns = nr_clock_now();
    expel_expired(s, now_ns, &t->gone);
    if (s->queue.n == 0) {
        calm(s);
        return NULL;
    }
    nr_way way = nr_parallel_choose(&s->parallel, s->queue.n, now_ns);
    if (way == NR_WAY_NONE) {
        calm(s);
        return NULL; /* who ends next looks again */
    }
    struct nr_strategy *strategy = s->cfg.strategy;
    int64_t fixed_ns;
    struct nr_batch_rules rules = rules_now(s, way, now_ns, &fixed_ns);
    struct nr_batch_plan plan = NR_UNLIKELY(strategy != NULL)
                                    ? nr_strategy_plan(strategy, &rules, &s->queue.order, now_ns)
                                    : nr_batcher_plan(&rules, &s->queue.order, now_ns);
    if (rules.auto_size && plan.why == NR_SEAL_IDLE) {
        t->wait_ns = nr_hold_until(&s->hold, s->queue.rows, fixed_ns, now_ns);
        if (t->wait_ns != 0) {
            calm(s);
            return NULL;
        }
    }
    if (plan.n_requests == 0) {
        t->wait_ns = plan.wait_until_ns;
        calm(s);
        return NULL;
    }
    struct nr_place *p = take_place(s, lane, now_ns);
    if (p == NULL) {
        return NULL; /* its resources are in use: the limiter wakes the lane */
    }
    p->is_inline = false;
    p->isolated = false;
    p->begin_ns = now_ns;
    p->rows = plan.rows;
    p->run = nr_parallel_begin(&s->parallel, way, now_ns);
    s->admit.n_places = s->parallel.cfg.on ? nr_parallel_lanes(&s->parallel, way) : s->n_places;
    nr_batch_form_set(p->batch, p->run.form);
    nr_hold_took(&s->hold, plan.rows, fixed_ns, now_ns);
    if (NR_UNLIKELY(strategy != NULL)) {
        nr_strategy_take(strategy, &rules, &plan, &s->queue, &t->batch);
    } else {
        nr_batcher_take(&rules, &plan, &s->queue, &t->batch);
    }
    NR_LIST_FOREACH (node, &t->batch) {
        struct nr_request *r = nr_request_of(node);
        /* Taken under the lock, so that a cancel never looks for it in the queue again. */
        atomic_store_explicit(&r->state, NR_REQUEST_RUNNING, memory_order_relaxed);
        if (s->cfg.preserve_ordering) {
            nr_order_enter(&s->order, r);
        }
    }
    nr_admit_took(&s->admit, plan.rows, s->queue.rows, now_ns);
    s->seals[plan.why]++;
    s->n_running++;
    t->n = plan.n_requests;
    if (s->queue.n == 0) {
        calm(s);
    }
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
    int64_t now_ns = nr_clock_now();
    nr_hold_ended(&s->hold, p->rows, s->queue.rows, now_ns);
    s->n_running--;
    nr_watched_end(&p->watched);
    nr_place_release(p);
    nr_list_append(&s->idle, &p->node);
    nr_trim_arm(s);
    nr_form_tend(s, now_ns);
    pthread_mutex_unlock(&s->lock);
}

static void on_batch_done(struct nr_batch *b, void *arg)
{
    (void)b;
    struct nr_place *p = arg;
    struct nr_sched *s = p->sched;
    if (p->awaited != NULL) {
        (void)sem_post(p->awaited);
        return;
    }
    /* Not s->lock: a cancel, which holds that one, may be what ends the run. */
    pthread_mutex_lock(&s->finished_lock);
    nr_list_append(&s->finished, &p->node);
    /* before the unlock: an executor that finds the place may be the last use of the scheduler */
    nr_exec_wake(p->lane->exec, &p->lane->runnable);
    pthread_mutex_unlock(&s->finished_lock);
}

/* A run of the place has ended: results, and further runs when the batch is taken apart. False: one of
 * those goes on, and on_batch_done brings the place back. */
static bool run_rest(struct nr_place *p)
{
    for (;;) {
        p->infer_end_ns = nr_clock_now();
        show_running(p, false);
        if (NR_LIKELY(!p->isolated)) {
            nr_form_ended(p, p->n_taken > 0);
        }
        if (NR_LIKELY(!nr_place_deliver(p))) {
            return true;
        }
        show_running(p, true);
        p->infer_begin_ns = nr_clock_now();
        nr_watched_begin(&p->watched, nr_exec_self(), p->infer_begin_ns);
        if (nr_batch_run(p->batch, p->instance) == NARU_PENDING) {
            return false;
        }
    }
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
        if (run_rest(p)) {
            release_place(p, !p->isolated, -1);
        }
    }
}

static bool run_queue(struct nr_runnable *runnable)
{
    struct nr_lane *lane = nr_container_of(runnable, struct nr_lane, runnable);
    struct nr_sched *s = lane->sched;
    struct taken t = {0};
    struct nr_list unfit;
    nr_list_init(&t.batch);
    nr_list_init(&t.gone);
    nr_list_init(&unfit);
    finish_pending(s);
    pthread_mutex_lock(&s->lock);
    struct nr_place *p = take_batch(s, lane, &t);
    bool more = p != NULL && nr_form_may_begin(s, p->begin_ns);
    pthread_mutex_unlock(&s->lock);
    answer_gone(&t.gone);
    if (p == NULL) {
        if (t.wait_ns != 0) {
            nr_exec_wake_at(lane->exec, &lane->runnable, t.wait_ns);
        }
        return false;
    }
    if (more) {
        nr_sched_wake(s); /* another place is idle: another thread */
    }
    nr_place_fill(p, &t.batch, t.n, &unfit);
    answer_unfit(s, &unfit);
    show_running(p, true);
    /* Only a model that may move to the loops is asked for its time on the processor. */
    int64_t cpu_ns = s->cfg.placement.allowed ? nr_clock_thread_cpu() : -1;
    p->infer_begin_ns = nr_clock_now();
    nr_watched_begin(&p->watched, nr_exec_self(), p->infer_begin_ns);
    if (p->n_taken > 0 && nr_batch_run(p->batch, p->instance) == NARU_PENDING) {
        return true; /* on_batch_done brings the place back */
    }
    cpu_ns = cpu_ns >= 0 ? nr_clock_thread_cpu() - cpu_ns : -1;
    bool ran = p->n_taken > 0;
    if (run_rest(p)) {
        release_place(p, ran && !p->isolated, cpu_ns);
    }
    return true;
}

/* --- submitting (loop threads) ----------------------------------------------------------------- */

/* The deadline or the queue's time-out. */
static void on_time(struct nr_timer *t)
{
    struct nr_request *r = nr_container_of(t, struct nr_request, timer);
    bool late = r->deadline_ns != 0 && r->deadline_ns <= nr_clock_now();
    nr_request_cancel(r, late ? NARU_DEADLINE : NARU_UNAVAILABLE, false);
}

/* Under the lock: when r must be told, queued or not, 0 never. */
static int64_t timer_of(const struct nr_sched *s, const struct nr_request *r)
{
    if (r->expires_ns == 0 || s->queue.levels[r->level].rules.delays) {
        return r->deadline_ns;
    }
    return r->deadline_ns == 0 ? r->expires_ns : NR_MIN(r->expires_ns, r->deadline_ns);
}

/* Under the lock. */
static nr_refusal put(struct nr_sched *s, struct nr_request *r, int64_t now_ns,
                      struct nr_list *gone)
{
    struct nr_request *victim;
    if (NR_UNLIKELY(s->stuck)) {
        return NR_REFUSAL_STUCK;
    }
    nr_refusal why =
        nr_admit_put(&s->admit, &s->cfg.limits, &s->queue, r, s->n_running == 0, now_ns, &victim);
    if (victim != NULL) {
        expel(s, victim, NR_REFUSAL_SHARE, gone);
    }
    if (why != NR_REFUSAL_NONE) {
        return why;
    }
    atomic_store_explicit(&r->state, NR_REQUEST_QUEUED, memory_order_relaxed);
    int64_t timer_ns = timer_of(s, r);
    if (timer_ns != 0) {
        r->timer.on_timer = on_time;
        nr_loop_timer_set(r->loop, &r->timer, timer_ns);
    }
    return NR_REFUSAL_NONE;
}

void nr_sched_enqueue(struct nr_sched *s, struct nr_request *r)
{
    struct nr_list gone;
    nr_list_init(&gone);
    pthread_mutex_lock(&s->lock);
    int64_t now_ns = s->queue.n == 0 ? r->queued_ns : nr_clock_now();
    if (s->queue.n_heap > 0) {
        expel_expired(s, now_ns, &gone);
    }
    nr_refusal why = put(s, r, now_ns, &gone);
    bool wake = nr_form_may_begin(s, now_ns); /* else the thread that frees a place looks again */
    int64_t wait_ns = 0;
    if (why != NR_REFUSAL_NONE) {
        s->refused[why]++;
        wait_ns = nr_admit_wait(&s->admit, s->queue.rows);
    }
    pthread_mutex_unlock(&s->lock);
    answer_gone(&gone);
    if (why != NR_REFUSAL_NONE) {
        nr_request_refuse(r, NARU_UNAVAILABLE, refusal_says(why), retry_s(wait_ns));
    } else if (wake) {
        nr_sched_wake(s);
    }
}

static void prepare(struct nr_sched *s, struct nr_request *r)
{
    r->level = nr_queue_level_of(&s->queue, r->in->priority);
    int64_t timeout_ns = nr_queue_timeout(&s->queue, r->level, r->in->timeout_us);
    r->expires_ns = timeout_ns > 0 ? r->queued_ns + timeout_ns : 0;
    r->heap_at = 0;
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
    struct nr_list *at = &turn->pending; /* the more urgent ones first */
    while (at->prev != &turn->pending && nr_request_of(at->prev)->level > r->level) {
        at = at->prev;
    }
    nr_list_insert_before(at, &r->node);
    nr_loop_hook_arm(r->loop, &turn->hook);
}

/* --- cancelling (loop threads) ----------------------------------------------------------------- */

static const char *cancel_text(nr_status status)
{
    return status == NARU_DEADLINE      ? refusal_says(NR_REFUSAL_DEADLINE)
           : status == NARU_UNAVAILABLE ? refusal_says(NR_REFUSAL_TIMEOUT)
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
        if (pending) {
            nr_list_remove(&r->node);
        } else {
            nr_queue_remove(&s->queue, r);
        }
        if (s->queue.n == 0) {
            calm(s);
        }
        s->refused[NR_REFUSAL_DEADLINE] += status == NARU_DEADLINE;
        s->refused[NR_REFUSAL_TIMEOUT] += status == NARU_UNAVAILABLE;
    }
    pthread_mutex_unlock(&s->lock);
    if (waiting) {
        nr_request_refuse(r, status, cancel_text(status), status == NARU_UNAVAILABLE);
    }
}

/* --- life -------------------------------------------------------------------------------------- */

static struct nr_lane *lane_of(struct nr_sched *s, const struct nr_exec *exec)
{
    for (unsigned i = 0; i < s->n_lanes; i++) {
        if (s->lanes[i].exec == exec) {
            return &s->lanes[i];
        }
    }
    return NULL;
}

static void add_lane(struct nr_sched *s, struct nr_exec *exec)
{
    if (lane_of(s, exec) == NULL) {
        struct nr_lane *lane = &s->lanes[s->n_lanes++];
        *lane = (struct nr_lane){.sched = s, .exec = exec};
        nr_exec_init(&lane->runnable, run_queue);
        lane->runnable.share.cost = s->cfg.cost;
    }
}

static void make_lanes(struct nr_sched *s)
{
    s->lanes = nr_new_array(struct nr_lane, s->cfg.n_instances + 1);
    add_lane(s, s->cfg.exec);
    for (unsigned i = 0; i < s->cfg.n_instances && s->cfg.members != NULL; i++) {
        add_lane(s, s->cfg.members[i].exec);
    }
}

/* Nobody wakes a lane afterwards. */
static void retire(struct nr_sched *s)
{
    for (unsigned i = 0; i < s->n_lanes; i++) {
        nr_exec_retire(s->lanes[i].exec, &s->lanes[i].runnable);
    }
    pthread_mutex_lock(&s->lock);
    for (unsigned i = 0; i < s->n_places; i++) {
        nr_place_unlimit(&s->places[i]);
    }
    pthread_mutex_unlock(&s->lock);
    for (unsigned i = 0; i < s->n_lanes; i++) { /* again: the limiter may have woken one */
        nr_exec_retire(s->lanes[i].exec, &s->lanes[i].runnable);
    }
}

nr_status nr_sched_new(const struct nr_sched_cfg *cfg, struct nr_sched **ret, struct nr_err *err)
{
    struct nr_sched *s = nr_new(struct nr_sched);
    static const struct nr_queue_rules no_rules;
    s->cfg = *cfg;
    s->cfg.rules.in_order |= cfg->preserve_ordering;
    s->cfg.levels = NULL; /* the queue has a copy */
    s->turn_rules = s->cfg.rules;
    s->turn_rules.in_order = true;
    NR_ASSERT(!cfg->preserve_ordering || !cfg->placement.allowed);
    NR_ASSERT(!cfg->strategy ||
              (cfg->rules.batching && !cfg->rules.auto_size && !cfg->placement.allowed));
    s->target = (struct nr_target){.submit = submit, .cancel = cancel};
    s->n_places = cfg->n_instances;
    pthread_mutex_init(&s->lock, NULL);
    pthread_mutex_init(&s->finished_lock, NULL);
    pthread_mutex_init(&s->flow_lock, NULL);
    nr_clock_cond_init(&s->flow_room);
    nr_exec_init(&s->trimmer, nr_trim_run);
    nr_exec_init(&s->former, nr_form_run);
    nr_queue_init(&s->queue, cfg->n_levels > 0 ? cfg->levels : &no_rules, NR_MAX(cfg->n_levels, 1u),
                  cfg->default_level, cfg->preserve_ordering);
    struct nr_parallel_cfg parallel = cfg->parallel;
    parallel.places = cfg->n_instances;
    nr_parallel_init(&s->parallel, &parallel);
    nr_admit_init(&s->admit, parallel.on ? 1 : cfg->n_instances,
                  cfg->rules.batching ? cfg->rules.max_rows : 1);
    nr_list_init(&s->order);
    nr_list_init(&s->idle);
    nr_list_init(&s->finished);
    nr_placement_init(&s->placement, &cfg->placement);
    nr_batchsize_init(&s->batchsize, cfg->rules.max_rows, cfg->latency_target_ns);
    nr_batchsize_init(&s->side_size, cfg->rules.max_rows, cfg->latency_target_ns);
    nr_hold_init(&s->hold);
    s->counters = cfg->counters != NULL
                      ? cfg->counters
                      : nr_counters_new(cfg->n_loops, cfg->signature->max_batch_size);
    make_lanes(s);
    s->places = nr_new_array(struct nr_place, NR_MAX(cfg->n_instances, 1u));
    s->turns = nr_new_array(struct nr_turn, NR_MAX(cfg->n_loops, 1u));
    nr_status st = NARU_OK;
    for (unsigned i = 0; i < cfg->n_instances && st == NARU_OK; i++) {
        struct nr_place *p = &s->places[i];
        st = nr_place_init(p, s, cfg->instances[i], on_batch_done, err);
        if (cfg->watch != NULL) {
            nr_runwatch_add(cfg->watch, &p->watched, s);
        }
        nr_list_append(&s->idle, &p->node);
        if (st == NARU_OK && cfg->members != NULL) {
            p->lane = lane_of(s, cfg->members[i].exec);
            st = nr_place_limit(p, cfg->members[i].group, p->lane->exec, &p->lane->runnable, err);
        }
    }
    s->cfg.members = NULL;
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
    retire(s);                                /* their last act may be to arm this one … */
    nr_exec_retire(s->cfg.exec, &s->trimmer); /* … which wakes them for requests only */
    nr_exec_retire(s->cfg.exec, &s->former);  /* so does this one */
    if (s->crowded) {
        nr_exec_crowd(s->cfg.exec, false);
    }
    NR_ASSERT(s->queue.n == 0 && s->n_running == 0);
    for (unsigned i = 0; i < s->n_places; i++) {
        nr_place_done(&s->places[i]);
    }
    for (unsigned i = 0; i < s->cfg.n_loops; i++) {
        if (s->turns[i].place != NULL) {
            nr_place_done(s->turns[i].place);
            nr_free(s->turns[i].place);
        }
    }
    nr_queue_done(&s->queue);
    if (s->cfg.counters == NULL) {
        nr_counters_free(s->counters);
    }
    pthread_mutex_destroy(&s->lock);
    pthread_mutex_destroy(&s->finished_lock);
    pthread_mutex_destroy(&s->flow_lock);
    pthread_cond_destroy(&s->flow_room);
    nr_free(s->places);
    nr_free(s->lanes);
    nr_free(s->turns);
    nr_free(s);
}

struct nr_target *nr_sched_target(struct nr_sched *s)
{
    return &s->target;
}

struct nr_counters *nr_sched_counters(struct nr_sched *s)
{
    return s->counters;
}

void nr_sched_state_get(struct nr_sched *s, struct nr_sched_state *ret)
{
    pthread_mutex_lock(&s->lock);
    int64_t now_ns = nr_clock_now();
    *ret = (struct nr_sched_state){
        .queued = s->queue.n,
        .running = s->n_running,
        .places = s->n_places,
        .parallel = s->parallel,
        .queued_bytes = s->queue.bytes,
        .queued_rows = s->queue.rows,
        .row_limit = nr_admit_rows(&s->admit, s->cfg.limits.max_wait_ns, now_ns),
        .is_inline = s->placement.is_inline,
        .may_inline = s->placement.cfg.allowed,
        .n_promoted = s->placement.n_promoted,
        .n_demoted = s->placement.n_demoted,
        .row_ns = s->admit.row_ns,
        .limited_ns = s->limited_ns + (s->asked_ns != 0 ? now_ns - s->asked_ns : 0),
        .n_levels = s->queue.n_levels,
        .has_strategy = s->cfg.strategy != NULL,
        .strategy_refused = s->cfg.strategy ? nr_strategy_refused(s->cfg.strategy) : 0,
        .batch_retries = s->batch_retries,
        .bytes_copied = s->bytes_copied,
        .bytes_in_place = s->bytes_in_place};
    if (s->parallel.cfg.on) { /* as many as run at once now */
        ret->places = nr_parallel_lanes(&s->parallel, nr_parallel_way(&s->parallel, true));
    }
    memcpy(ret->seals, s->seals, sizeof(ret->seals));
    memcpy(ret->refused, s->refused, sizeof(ret->refused));
    for (unsigned i = 0; i < s->queue.n_levels; i++) {
        ret->levels[i] = nr_queue_waiting(&s->queue, i);
    }
    pthread_mutex_unlock(&s->lock);
}
