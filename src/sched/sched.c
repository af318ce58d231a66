/* The scheduler of one model version.
 *
 * DESIGN. Two ways to a place. (a) Turn: requests of one loop turn wait on turn->pending, which only
 * that loop touches, and the turn hook runs them when the placement is inline, nothing older waits
 * in the queue, a place is free and the turn's budget lasts; what does not fit goes to the queue.
 * (b) Queue: one list under the lock; an executor thread takes a prefix whenever a place is idle.
 * Both ways end in run_place(), so a request cannot tell them apart.
 *
 * INVARIANTS
 *  1. A request is in exactly one of: a turn's pending list, the queue, a place. Whoever removes it
 *     completes it or hands it on; so it completes exactly once.
 *  2. Requests leave the queue in order of arrival (deadlines and cancels aside).
 *  3. A place is on the idle list, or owned by the thread that took it off, or by the plug-in
 *     (NARU_PENDING), which gives it back through `finished`.
 *  4. Loop-thread data of a request (counters, on_complete, timer) is touched on its loop only.
 *
 * LOCKS. s->lock, then s->finished_lock, then the executor's. A plug-in's cancel slot, a hint
 * that must not block, is called under s->lock; nothing else is. It may be the one that ends the run,
 * so on_batch_done takes finished_lock only.
 */
#include "sched/sched.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/mem.h"
#include "base/reclaim.h"
#include "sched/batchsize.h"

/* Outputs up to this size are copied to the request's arena, so that the batch keeps its buffer and
 * the next round allocates nothing; larger ones are passed on by reference. */
#define COPY_OUT_BYTES 4096
#define PROVE_BYTES 65536
#define PROVE_RUNS 24
#define TRIM_HEAP_BYTES ((uint64_t)1 << 20) /* given back by a model: worth a look at the heap */

struct nr_place {
    struct nr_sched *sched;
    struct nr_plugin_instance *instance;
    struct nr_batch *batch;
    struct nr_list node; /* idle or finished */
    struct nr_request **taken;
    unsigned n_taken, taken_capacity;
    struct nr_batch_input *inputs; /* scratch, plug-in order */
    int64_t (*shapes)[NARU_MAX_RANK];
    uint8_t *wanted;
    int64_t rows, begin_ns, infer_begin_ns, infer_end_ns;
    uint64_t bytes_copied, bytes_in_place; /* of the batch, already in the scheduler's sums */
    bool is_inline;
};

struct turn { /* one per loop; loop thread only */
    struct nr_sched *sched;
    struct nr_turn_hook hook;
    struct nr_list pending;
    struct nr_place *place;        /* the loop's own, or NULL */
    struct nr_placement placement; /* of the scheduler, as last seen under its lock */
};

struct nr_sched {
    struct nr_sched_cfg cfg;
    struct nr_runnable runnable;
    struct nr_runnable trimmer; /* its timed wake is pending while trim_armed */
    struct nr_counters *counters;
    pthread_mutex_t lock;
    struct nr_list queue;
    unsigned n_queued, n_running;
    uint64_t queued_bytes;
    int64_t queued_rows;
    struct nr_list idle;
    pthread_mutex_t finished_lock;
    struct nr_list finished; /* places whose run ended later; under finished_lock */
    struct nr_place *places;
    unsigned n_places;
    struct nr_placement placement;
    struct nr_batchsize batchsize; /* of queued batches, with rules.auto_size */
    bool trim_armed;
    int64_t used_ns;        /* a place was given back at */
    _Atomic bool is_inline; /* copy of placement.is_inline that submit reads without the lock */
    int64_t row_ns;         /* smoothed service time per row, for admission */
    uint64_t seals[NR_SEAL_COUNT];
    uint64_t bytes_copied, bytes_in_place;
    struct turn *turns;
};

/* Time spent in inline executions during the current turn of the loop this thread runs. */
static _Thread_local struct {
    int64_t turn_ns; /* nr_loop_now of the turn */
    int64_t used_ns;
} budget;

void nr_sched_limits_default(struct nr_sched_limits *l)
{
    *l = (struct nr_sched_limits){.max_queue_requests = 4096,
                                  .max_queue_bytes = 256u << 20,
                                  .max_wait_ns = 5 * NR_S_NS,
                                  .idle_trim_ns = NR_S_NS};
}

static struct nr_request *request_of(struct nr_list *node)
{
    return nr_container_of(node, struct nr_request, node);
}

/* --- completion ------------------------------------------------------------------------------ */

static nr_fail_reason fail_reason(const struct nr_request *r)
{
    switch (r->status) {
    case NARU_CANCELLED:
        return NR_FAIL_CANCELED;
    case NARU_DEADLINE:
        return r->begin_ns == 0 ? NR_FAIL_REJECTED : NR_FAIL_CANCELED;
    case NARU_UNAVAILABLE:
    case NARU_EXHAUSTED:
        return r->begin_ns == 0 ? NR_FAIL_REJECTED : NR_FAIL_BACKEND;
    default:
        return r->begin_ns == 0 ? NR_FAIL_OTHER : NR_FAIL_BACKEND;
    }
}

static void fail(struct nr_request *r, nr_status status, const char *text)
{
    r->status = status;
    r->error = nr_arena_str(r->arena, nr_str_from(text));
}

/* Loop thread. The request is the caller's again afterwards. */
static void complete(struct nr_request *r)
{
    struct nr_sched *s = r->sched;
    unsigned loop = nr_loop_index(r->loop);
    nr_loop_timer_cancel(r->loop, &r->timer);
    if (r->status == NARU_CANCELLED && r->begin_ns != 0 && r->deadline_ns != 0 &&
        r->deadline_ns <= nr_clock_now()) {
        fail(r, NARU_DEADLINE, "the request's time limit passed while it ran");
    }
    atomic_store_explicit(&r->state, NR_REQUEST_DONE, memory_order_relaxed);
    if (r->status == NARU_OK) {
        nr_counters_success(s->counters, loop, r, r->leads);
    } else {
        nr_counters_failure(s->counters, loop, fail_reason(r), nr_clock_now() - r->arrival_ns);
    }
    r->on_complete(r);
}

static void on_complete_msg(struct nr_msg *m)
{
    complete(nr_container_of(m, struct nr_request, msg));
}

/* --- running one batch ------------------------------------------------------------------------ */

/* shape with the backend's view of it: the k-th open dimension takes the k-th open value. */
static uint32_t map_shape(uint32_t rank, const int64_t *spec, const int64_t *value,
                          uint32_t to_rank, const int64_t *to_spec, int64_t *to)
{
    uint32_t from = 0;
    for (uint32_t i = 0; i < to_rank; i++) {
        to[i] = to_spec[i];
        if (to_spec[i] < 0) {
            while (from < rank && spec[from] >= 0) {
                from++;
            }
            to[i] = from < rank ? value[from++] : 1;
        }
    }
    return to_rank;
}

static nr_status add_request(struct nr_place *p, struct nr_request *r, struct nr_err *err)
{
    struct nr_sched *s = p->sched;
    const struct nr_signature *sig = s->cfg.signature;
    const naru_model_info *info = s->cfg.model->info;
    memset(p->inputs, 0, info->n_inputs * sizeof(p->inputs[0]));
    for (unsigned i = 0; i < r->in->n_inputs; i++) {
        const struct nr_infer_tensor *t = &r->in->inputs[i];
        const struct nr_io_spec *spec = &sig->inputs[t->index];
        uint32_t at = s->cfg.input_map[t->index];
        p->inputs[at] = (struct nr_batch_input){.data = t->bytes > 0 ? t->data : (const void *)"",
                                                .bytes = t->bytes,
                                                .buf = t->buf,
                                                .shape = t->shape,
                                                .rank = t->rank};
        if (spec->reshaped) {
            p->inputs[at].rank = map_shape(t->rank, spec->shape, t->shape, spec->backend_rank,
                                           spec->backend_shape, p->shapes[at]);
            p->inputs[at].shape = p->shapes[at];
        }
    }
    memset(p->wanted, 0, info->n_outputs);
    for (unsigned i = 0; i < r->in->n_outputs; i++) {
        p->wanted[s->cfg.output_map[r->in->outputs[i].index]] = 1;
    }
    struct nr_batch_request q = {.inputs = p->inputs,
                                 .wanted = p->wanted,
                                 .rows = (uint32_t)r->in->rows,
                                 .id = r->in->has_id ? r->in->id.ptr : NULL,
                                 .deadline_ns = r->deadline_ns,
                                 .sequence_id = r->in->sequence_id,
                                 .sequence_flags = (r->in->sequence_start ? 1u : 0u) |
                                                   (r->in->sequence_end ? 2u : 0u),
                                 .options = r->options,
                                 .n_options = r->n_options,
                                 .cancelled = &r->cancelled,
                                 .user = r};
    return nr_batch_add(p->batch, &q, err);
}

/* Output k of request i from the batch into the request. */
static nr_status take_output(struct nr_place *p, struct nr_request *r, unsigned i, unsigned k)
{
    struct nr_sched *s = p->sched;
    uint32_t index = r->in->outputs[k].index;
    const struct nr_io_spec *spec = &s->cfg.signature->outputs[index];
    struct nr_batch_slice slice;
    nr_status st = nr_batch_output(p->batch, s->cfg.output_map[index], i, &slice);
    if (st != NARU_OK) {
        return st;
    }
    struct nr_infer_tensor *t = &r->outputs[k];
    *t = (struct nr_infer_tensor){
        .index = index, .dtype = slice.dtype, .rank = slice.rank, .bytes = slice.bytes};
    memcpy(t->shape, slice.shape, slice.rank * sizeof(t->shape[0]));
    if (spec->reshaped) {
        t->rank = map_shape(slice.rank, spec->backend_shape, slice.shape, spec->rank, spec->shape,
                            t->shape);
    }
    t->elements = 1;
    for (uint32_t d = 0; d < t->rank; d++) {
        t->elements *= t->shape[d]; /* cannot overflow: the bytes exist */
    }
    if (slice.bytes <= COPY_OUT_BYTES) {
        uint8_t *copy = nr_arena_alloc(r->arena, slice.bytes + 1);
        memcpy(copy, slice.data, slice.bytes);
        t->data = copy;
    } else {
        t->data = slice.data;
        t->buf = slice.buf;
        nr_arena_link(r->arena, nr_buf_ref(slice.buf));
    }
    return NARU_OK;
}

static void take_result(struct nr_place *p, struct nr_request *r, unsigned i)
{
    struct nr_err err = {0};
    r->begin_ns = p->begin_ns;
    r->infer_begin_ns = p->infer_begin_ns;
    r->infer_end_ns = p->infer_end_ns;
    r->ran_inline = p->is_inline;
    r->batch_rows = (uint32_t)p->rows;
    r->status = nr_batch_result(p->batch, i, &err);
    for (unsigned k = 0; k < r->in->n_outputs && r->status == NARU_OK; k++) {
        r->status = take_output(p, r, i, k);
        if (r->status != NARU_OK) {
            nr_fail(&err, r->status, "model %s gave no output '" NR_STR_FMT "'", p->sched->cfg.name,
                    NR_STR_ARG(p->sched->cfg.signature->outputs[r->in->outputs[k].index].name));
        }
    }
    if (r->status != NARU_OK) {
        r->error = nr_arena_str(r->arena, nr_str_from(err.text));
    } else {
        r->n_outputs = r->in->n_outputs;
    }
}

/* Results of a finished batch to its requests. Inline: completes them here and now. */
static void deliver(struct nr_place *p)
{
    bool leads = true;
    for (unsigned i = 0; i < p->n_taken; i++) {
        struct nr_request *r = p->taken[i];
        take_result(p, r, i);
        if (r->status == NARU_OK) {
            r->leads = leads;
            leads = false;
        }
    }
    int64_t end_ns = nr_clock_now();
    bool is_inline = p->is_inline; /* p is reused only after the caller released it */
    for (unsigned i = 0; i < p->n_taken; i++) {
        struct nr_request *r = p->taken[i];
        r->end_ns = end_ns;
        r->msg.run = on_complete_msg;
        /* From here on a cancel finds nothing to do; pairs with nr_sched_cancel. */
        atomic_store_explicit(&r->state, NR_REQUEST_DONE, memory_order_release);
        if (is_inline) {
            complete(r);
        } else {
            nr_loop_post(r->loop, &r->msg);
        }
    }
    p->n_taken = 0;
    nr_batch_clear(p->batch);
}

/* Moves the first n requests of `list` into the place. A request that the batch refuses (shapes
 * that disagree with its bytes) is left out and returned in *refused. */
static void fill_place(struct nr_place *p, struct nr_list *list, unsigned n,
                       struct nr_list *refused)
{
    if (n > p->taken_capacity) {
        p->taken_capacity = NR_MAX(n, 2 * p->taken_capacity);
        p->taken = nr_realloc(p->taken, p->taken_capacity * sizeof(struct nr_request *));
    }
    for (unsigned i = 0; i < n; i++) {
        struct nr_request *r = request_of(nr_list_pop(list));
        struct nr_err err = {0};
        nr_status st = add_request(p, r, &err);
        if (st != NARU_OK) {
            fail(r, st, err.text);
            nr_list_append(refused, &r->node);
            continue;
        }
        r->place_index = p->n_taken;
        p->taken[p->n_taken++] = r;
        atomic_store_explicit(&r->state, NR_REQUEST_RUNNING, memory_order_release);
    }
}

/* Makes the requests of a place findable for nr_sched_cancel, or hides them again before they are
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

/* --- queue and executors ---------------------------------------------------------------------- */

/* cpu_ns: time on the processor, -1 when it was not measured. */
static void observe(struct nr_sched *s, struct nr_place *p, int64_t cpu_ns)
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
        struct nr_request *r = request_of(node);
        r->msg.run = on_complete_msg;
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
    if (rules.auto_size) {
        rules.max_rows = nr_batchsize_limit(&s->batchsize, s->queued_rows, now_ns);
    }
    struct nr_batch_plan plan = nr_batcher_plan(&rules, &s->queue, now_ns);
    if (plan.n_requests == 0) {
        *ret_wait_ns = plan.wait_until_ns;
        return NULL;
    }
    struct nr_place *p = nr_container_of(nr_list_pop(&s->idle), struct nr_place, node);
    p->is_inline = false;
    p->begin_ns = now_ns;
    p->rows = plan.rows;
    for (unsigned i = 0; i < plan.n_requests; i++) {
        struct nr_request *r = request_of(nr_list_pop(&s->queue));
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

/* Before a place rests: the buffers that its batch keeps for the next run go back when memory is
 * short, or a few large requests to many models would hold the budget for ever. */
static void rest_place(struct nr_place *p)
{
    if (NR_UNLIKELY(nr_buf_scarce())) {
        nr_batch_trim(p->batch);
    }
}

static void release_place(struct nr_place *p, bool observed)
{
    struct nr_sched *s = p->sched;
    rest_place(p);
    pthread_mutex_lock(&s->lock);
    if (observed) {
        observe(s, p, -1);
    }
    s->n_running--;
    nr_list_append(&s->idle, &p->node);
    s->used_ns = nr_clock_now();
    if (!s->trim_armed && s->cfg.limits.idle_trim_ns > 0) {
        s->trim_armed = true;
        nr_exec_wake_at(s->cfg.exec, &s->trimmer, s->used_ns + s->cfg.limits.idle_trim_ns);
    }
    pthread_mutex_unlock(&s->lock);
}

/* A model that has been idle for a while: buffers of its batches and what the plug-in keeps go back.
 * Armed by an execution, at most one wake in idle_trim_ns however many there are. Models that run on
 * I/O threads are small and are left alone. */
static bool run_trim(struct nr_runnable *runnable)
{
    struct nr_sched *s = nr_container_of(runnable, struct nr_sched, trimmer);
    struct nr_list idle;
    nr_list_init(&idle);
    pthread_mutex_lock(&s->lock);
    int64_t now_ns = nr_clock_now(), due_ns = s->used_ns + s->cfg.limits.idle_trim_ns;
    if (s->n_running > 0 || now_ns < due_ns) {
        nr_exec_wake_at(s->cfg.exec, &s->trimmer,
                        NR_MAX(due_ns, now_ns + s->cfg.limits.idle_trim_ns / 2));
        pthread_mutex_unlock(&s->lock);
        return false;
    }
    s->trim_armed = false;
    nr_list_splice(&idle, &s->idle);
    pthread_mutex_unlock(&s->lock);
    uint64_t bytes = 0;
    NR_LIST_FOREACH (node, &idle) {
        bytes += nr_batch_trim(nr_container_of(node, struct nr_place, node)->batch);
    }
    pthread_mutex_lock(&s->lock);
    nr_list_splice(&s->idle, &idle);
    bool wanted = !nr_list_empty(&s->queue);
    pthread_mutex_unlock(&s->lock);
    if (wanted) {
        nr_exec_wake(s->cfg.exec, &s->runnable); /* it came while no place was idle */
    }
    bytes += nr_plugin_model_trim(s->cfg.model);
    if (bytes >= TRIM_HEAP_BYTES) {
        nr_buf_thread_done();
        nr_reclaim_heap();
    }
    return false;
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
        deliver(p);
        release_place(p, true);
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
    fill_place(p, &batch, n, &refused);
    refuse_all(&refused);
    show_running(p, true);
    p->infer_begin_ns = nr_clock_now();
    if (p->n_taken > 0 && nr_batch_run(p->batch, p->instance) == NARU_PENDING) {
        return true; /* on_batch_done brings the place back */
    }
    p->infer_end_ns = nr_clock_now();
    bool ran = p->n_taken > 0;
    show_running(p, false);
    deliver(p);
    release_place(p, ran);
    return true;
}

/* --- submitting (loop threads) ---------------------------------------------------------------- */

static void refuse(struct nr_request *r, nr_status status, const char *text, unsigned retry_s)
{
    fail(r, status, text);
    r->retry_after_s = retry_s;
    complete(r);
}

static void on_deadline(struct nr_timer *t)
{
    struct nr_request *r = nr_container_of(t, struct nr_request, timer);
    nr_sched_cancel(r, NARU_DEADLINE, false);
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

static void enqueue(struct nr_sched *s, struct nr_request *r)
{
    pthread_mutex_lock(&s->lock);
    const char *why = queue_refuses(s, r);
    if (why != NULL) {
        int64_t wait_ns = s->queued_rows * s->row_ns;
        pthread_mutex_unlock(&s->lock);
        refuse(r, NARU_UNAVAILABLE, why, (unsigned)NR_MIN(NR_MAX(wait_ns / NR_S_NS, 1), 60));
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

void nr_sched_submit(struct nr_request *r)
{
    struct nr_sched *s = r->sched;
    r->status = NARU_OK;
    r->error = (struct nr_str){0};
    r->queued_ns = nr_clock_now();
    r->begin_ns = r->infer_begin_ns = r->infer_end_ns = r->end_ns = 0;
    r->n_outputs = 0;
    r->leads = false;
    r->place = NULL;
    nr_list_init(&r->node);
    atomic_store_explicit(&r->cancelled, false, memory_order_relaxed);
    prepare(s, r);
    if (r->deadline_ns != 0 && r->deadline_ns <= r->queued_ns) {
        refuse(r, NARU_DEADLINE, "the request's deadline had passed before it could be queued", 0);
        return;
    }
    if (!atomic_load_explicit(&s->is_inline, memory_order_relaxed)) {
        enqueue(s, r);
        return;
    }
    struct turn *turn = &s->turns[nr_loop_index(r->loop)];
    atomic_store_explicit(&r->state, NR_REQUEST_QUEUED, memory_order_relaxed);
    nr_list_append(&turn->pending, &r->node);
    nr_loop_hook_arm(r->loop, &turn->hook);
}

/* --- the turn (loop threads) ------------------------------------------------------------------ */

static void flush_to_queue(struct turn *turn)
{
    struct nr_list *node;
    while ((node = nr_list_pop(&turn->pending)) != NULL) {
        enqueue(turn->sched, request_of(node));
    }
}

/* A place for an inline run: the loop's own, else an idle one. NULL: older requests wait in the
 * queue, none is idle, or the model is not inline any more. */
static struct nr_place *take_inline_place(struct turn *turn)
{
    struct nr_sched *s = turn->sched;
    struct nr_place *p = NULL;
    pthread_mutex_lock(&s->lock);
    if (s->placement.is_inline && nr_list_empty(&s->queue)) {
        if (turn->place != NULL) {
            p = turn->place;
        } else if (!nr_list_empty(&s->idle)) {
            p = nr_container_of(nr_list_pop(&s->idle), struct nr_place, node);
        }
        s->n_running += p != NULL;
    }
    turn->placement = s->placement;
    pthread_mutex_unlock(&s->lock);
    return p;
}

static void give_back_inline_place(struct turn *turn, struct nr_place *p)
{
    struct nr_sched *s = turn->sched;
    rest_place(p);
    pthread_mutex_lock(&s->lock);
    s->n_running--;
    if (p != turn->place) {
        nr_list_append(&s->idle, &p->node);
    }
    pthread_mutex_unlock(&s->lock);
}

/* The part of a plan that the rest of the turn's budget allows; n_requests 0: nothing. The first
 * batch of a turn gets one request at least, whatever is expected of it. */
static void fit_budget(const struct turn *turn, struct nr_batch_plan *plan)
{
    int64_t left_ns = turn->sched->cfg.placement.budget_ns - budget.used_ns;
    if (nr_placement_expect(&turn->placement, plan->rows) <= left_ns) {
        return;
    }
    unsigned n = 0;
    int64_t rows = 0;
    NR_LIST_FOREACH (node, &turn->pending) {
        int64_t more = rows + request_of(node)->in->rows;
        if (n == plan->n_requests || nr_placement_expect(&turn->placement, more) > left_ns) {
            break;
        }
        n++;
        rows = more;
    }
    if (n == 0 && budget.used_ns == 0) {
        n = 1;
        rows = request_of(turn->pending.next)->in->rows;
    }
    plan->n_requests = n;
    plan->rows = rows;
}

/* One batch on this thread. False when the turn's budget does not allow another. */
static bool run_inline(struct turn *turn, struct nr_place *p, int64_t now_ns)
{
    struct nr_sched *s = turn->sched;
    struct nr_batch_plan plan = nr_batcher_plan(&s->cfg.rules, &turn->pending, now_ns);
    struct nr_list refused;
    fit_budget(turn, &plan);
    if (plan.n_requests == 0) {
        return false;
    }
    nr_list_init(&refused);
    p->is_inline = true;
    p->begin_ns = now_ns;
    p->rows = plan.rows;
    fill_place(p, &turn->pending, plan.n_requests, &refused);
    struct nr_list *node;
    while ((node = nr_list_pop(&refused)) != NULL) {
        complete(request_of(node));
    }
    if (p->n_taken == 0) {
        return true;
    }
    int64_t cpu_ns = nr_clock_thread_cpu();
    p->infer_begin_ns = nr_clock_now();
    /* Inline placement requires a plug-in that never answers later (NARU_CAP_INLINE, not ASYNC). */
    nr_status st = nr_batch_run(p->batch, p->instance);
    NR_ASSERT(st != NARU_PENDING);
    p->infer_end_ns = nr_clock_now();
    int64_t run_ns = p->infer_end_ns - p->begin_ns;
    budget.used_ns += run_ns;
    /* The clock of the processor costs a system call: looked at only when it may matter. */
    cpu_ns = run_ns > s->cfg.placement.short_ns ? nr_clock_thread_cpu() - cpu_ns : run_ns;
    pthread_mutex_lock(&s->lock);
    s->seals[plan.why]++;
    observe(s, p, cpu_ns);
    turn->placement = s->placement;
    pthread_mutex_unlock(&s->lock);
    deliver(p);
    return true;
}

static void on_turn(struct nr_turn_hook *h)
{
    struct turn *turn = nr_container_of(h, struct turn, hook);
    struct nr_loop *loop = nr_loop_current();
    if (budget.turn_ns != nr_loop_now(loop)) {
        budget.turn_ns = nr_loop_now(loop);
        budget.used_ns = 0;
    }
    struct nr_place *p = take_inline_place(turn);
    bool in_budget = true;
    if (p != NULL) {
        while (!nr_list_empty(&turn->pending) && turn->placement.is_inline && in_budget) {
            in_budget = run_inline(turn, p, nr_clock_now());
        }
        give_back_inline_place(turn, p);
    }
    if (!in_budget) {
        nr_loop_hook_arm(loop,
                         &turn->hook); /* the rest runs in the next turn, after the others' I/O */
    } else {
        flush_to_queue(turn);
    }
}

/* --- cancelling (loop threads) ---------------------------------------------------------------- */

static const char *cancel_text(nr_status status)
{
    return status == NARU_DEADLINE ? "the request's time limit passed while it waited in the queue"
                                   : "the request was cancelled before it ran";
}

void nr_sched_cancel(struct nr_request *r, nr_status status, bool running_too)
{
    struct nr_sched *s = r->sched;
    pthread_mutex_lock(&s->lock);
    bool waiting = atomic_load_explicit(&r->state, memory_order_acquire) == NR_REQUEST_QUEUED;
    if (!waiting && running_too) {
        atomic_store_explicit(&r->cancelled, true, memory_order_release);
        if (r->place != NULL) {
            nr_batch_cancel(r->place->batch, r->place_index);
        }
    }
    if (waiting) {
        /* In the queue or in this loop's pending list: both are lists that forget it alike. */
        struct turn *turn = &s->turns[nr_loop_index(r->loop)];
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
        refuse(r, status, cancel_text(status), 0);
    }
}

/* --- life ------------------------------------------------------------------------------------- */

static nr_status place_init(struct nr_place *p, struct nr_sched *s,
                            struct nr_plugin_instance *instance, struct nr_err *err)
{
    const naru_model_info *info = s->cfg.model->info;
    struct nr_batch_cfg cfg = {.plugin = s->cfg.model->plugin,
                               .inputs = info->inputs,
                               .outputs = info->outputs,
                               .n_inputs = info->n_inputs,
                               .n_outputs = info->n_outputs,
                               .max_rows = (uint32_t)s->cfg.signature->max_batch_size,
                               .on_done = on_batch_done,
                               .on_done_arg = p};
    p->sched = s;
    p->instance = instance;
    nr_list_init(&p->node);
    p->inputs = nr_new_array(struct nr_batch_input, NR_MAX(info->n_inputs, 1u));
    p->shapes = nr_alloc_array(NR_MAX(info->n_inputs, 1u), sizeof(p->shapes[0]));
    p->wanted = nr_alloc(NR_MAX(info->n_outputs, 1u));
    return nr_batch_new(&cfg, &p->batch, err);
}

static void place_done(struct nr_place *p)
{
    nr_batch_free(p->batch);
    nr_free(p->inputs);
    nr_free(p->shapes);
    nr_free(p->wanted);
    nr_free(p->taken);
}

nr_status nr_sched_new(const struct nr_sched_cfg *cfg, struct nr_sched **ret, struct nr_err *err)
{
    struct nr_sched *s = nr_new(struct nr_sched);
    s->cfg = *cfg;
    s->n_places = cfg->n_instances;
    pthread_mutex_init(&s->lock, NULL);
    pthread_mutex_init(&s->finished_lock, NULL);
    nr_exec_init(&s->runnable, run_queue);
    nr_exec_init(&s->trimmer, run_trim);
    nr_list_init(&s->queue);
    nr_list_init(&s->idle);
    nr_list_init(&s->finished);
    nr_placement_init(&s->placement, &cfg->placement);
    nr_batchsize_init(&s->batchsize, cfg->rules.max_rows);
    s->counters = nr_counters_new(cfg->n_loops, cfg->signature->max_batch_size);
    s->places = nr_new_array(struct nr_place, NR_MAX(cfg->n_instances, 1u));
    s->turns = nr_new_array(struct turn, NR_MAX(cfg->n_loops, 1u));
    nr_status st = NARU_OK;
    for (unsigned i = 0; i < cfg->n_instances && st == NARU_OK; i++) {
        st = place_init(&s->places[i], s, cfg->instances[i], err);
        nr_list_append(&s->idle, &s->places[i].node);
    }
    for (unsigned i = 0; i < cfg->n_loops; i++) {
        struct turn *turn = &s->turns[i];
        turn->sched = s;
        turn->hook.on_turn = on_turn;
        nr_list_init(&turn->hook.node);
        nr_list_init(&turn->pending);
        if (cfg->loop_instances != NULL && st == NARU_OK) {
            turn->place = nr_new(struct nr_place);
            st = place_init(turn->place, s, cfg->loop_instances[i], err);
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
    nr_exec_retire(s->cfg.exec, &s->trimmer); /* it may wake the other */
    nr_exec_retire(s->cfg.exec, &s->runnable);
    NR_ASSERT(s->n_queued == 0 && s->n_running == 0);
    for (unsigned i = 0; i < s->n_places; i++) {
        place_done(&s->places[i]);
    }
    for (unsigned i = 0; i < s->cfg.n_loops; i++) {
        if (s->turns[i].place != NULL) {
            place_done(s->turns[i].place);
            nr_free(s->turns[i].place);
        }
    }
    nr_counters_free(s->counters);
    pthread_mutex_destroy(&s->lock);
    pthread_mutex_destroy(&s->finished_lock);
    nr_free(s->places);
    nr_free(s->turns);
    nr_free(s);
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

/* --- proving ---------------------------------------------------------------------------------- */

/* A request of `rows` rows of zeros for every input, in an arena. False when shapes are open, have
 * no fixed size, or are too large to be worth it. */
static bool zero_request(const struct nr_signature *sig, int64_t rows, struct nr_arena *a,
                         struct nr_infer_request *in)
{
    *in = (struct nr_infer_request){
        .rows = rows, .n_inputs = sig->n_inputs, .n_outputs = sig->n_outputs};
    in->inputs = nr_arena_zalloc(a, NR_MAX(sig->n_inputs, 1u) * sizeof(in->inputs[0]));
    in->outputs = nr_arena_zalloc(a, NR_MAX(sig->n_outputs, 1u) * sizeof(in->outputs[0]));
    for (unsigned i = 0; i < sig->n_outputs; i++) {
        in->outputs[i].index = i;
    }
    for (unsigned i = 0; i < sig->n_inputs; i++) {
        const struct nr_io_spec *spec = &sig->inputs[i];
        if (spec->row_bytes <= 0 || spec->row_bytes > PROVE_BYTES / rows) {
            return false;
        }
        struct nr_infer_tensor *t = &in->inputs[i];
        *t = (struct nr_infer_tensor){.index = i, .dtype = spec->dtype, .rank = spec->rank};
        memcpy(t->shape, spec->shape, sizeof(t->shape));
        if (spec->batched) {
            t->shape[0] = rows;
        }
        t->bytes = (size_t)(spec->row_bytes * rows);
        t->data = nr_arena_zalloc(a, t->bytes);
    }
    return true;
}

void nr_sched_prove(struct nr_sched *s)
{
    struct nr_place *p = s->turns[0].place != NULL ? s->turns[0].place : &s->places[0];
    int64_t many = NR_MIN(s->cfg.rules.batching ? s->cfg.rules.max_rows : 1, 8);
    if (!s->cfg.placement.allowed || s->n_places == 0) {
        return;
    }
    for (unsigned i = 0; i < PROVE_RUNS; i++) {
        struct nr_arena a;
        struct nr_infer_request in;
        int64_t rows = i % 4 == 3 ? many : 1;
        nr_arena_init(&a, 0);
        struct nr_request r = {.sched = s, .arena = &a, .in = &in};
        bool ok =
            zero_request(s->cfg.signature, rows, &a, &in) && add_request(p, &r, NULL) == NARU_OK;
        int64_t begin_ns = nr_clock_now();
        ok = ok && nr_batch_run(p->batch, p->instance) == NARU_OK &&
             nr_batch_result(p->batch, 0, NULL) == NARU_OK;
        int64_t end_ns = nr_clock_now();
        nr_batch_clear(p->batch);
        nr_arena_done(&a);
        if (!ok || end_ns - begin_ns > 50 * NR_MS_NS) {
            return;
        }
        if (i >= 2) { /* the first runs pay for memory and caches */
            p->begin_ns = begin_ns;
            p->infer_end_ns = end_ns;
            p->rows = rows;
            observe(s, p, -1);
        }
    }
}
