/* Ensembles at run time: one request to the pipeline, one request to each step's model.
 *
 * DESIGN. A run lives in the arena of the request that it serves; each step has an arena of its own,
 * because the scheduler of its model writes results there on its own thread. A step's arena is given
 * back as soon as nobody reads what it made, so that a long pipeline holds two steps' tensors and not
 * all of them. Everything else happens on the request's loop, without locks:
 *
 *   submit ─▶ ready ─▶ start ─▶ (its model's target, or the pool, or here) ─▶ step_done
 *               ▲                                                               │ tensors are settled
 *               └───────────── steps for which all tensors are settled ◀────────┘
 *
 * A tensor is settled when its step has ended: present, or absent (an optional input that did not
 * come, the branch that naru.if did not take). A step that must have an absent tensor is skipped,
 * what it would write is absent too.
 * Where not all outputs are asked for, steps that only the others need do not run.
 *
 * INVARIANTS
 *  1. Each step is in the ready list at most once, and only when all that it reads is settled. As the
 *     graph has no circle (ensemble.c), a run with nothing ready and nothing in flight is over.
 *  2. A step's arena is touched by nobody else between its submission and its completion.
 *  3. run->busy keeps a run from ending below functions that still use it: completions of steps may
 *     come from within a submission or a cancel.
 *
 * THREADS. Loop thread of the request, but for run_on_pool. No malloc in steady state: arenas' blocks
 * come from the loop's free list.
 */
#include "sched/pipeline.h"

#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "codec/infer_build.h"
#include "codec/tensor.h"
#include "model/ensemble.h"
#include "model/repository.h"
#include "sched/runtime.h"
#include "sched/sched_priv.h"
#include "sched/stepwork.h"

struct loop_count {                        /* alone in its cache line */
    _Alignas(64) _Atomic unsigned running; /* written by its loop, partner: nr_pipeline_running */
};

struct nr_pipeline {
    struct nr_target target;
    struct nr_pipeline_cfg cfg;
    const struct nr_ensemble *graph;
    const struct nr_signature *sig;
    struct nr_counters *counters;
    struct loop_count *loops;
};

struct child { /* a step under way, or done while somebody reads its outputs; in its own arena */
    struct run *run;
    uint32_t step;
    struct nr_request request; /* of naru's own steps only msg, status, error, cancelled are used */
    struct nr_infer_request in;
    struct nr_stepwork work;
    struct nr_job job;
};

struct step_run {
    struct nr_arena arena;
    struct child *child; /* while it is in flight */
    uint32_t waits;      /* entries of its input map that are not settled */
    uint32_t holds;      /* readers of its outputs that have not ended, and the answer */
    bool needed;
};

struct run {
    struct nr_pipeline *pipeline;
    struct nr_request *r;
    const struct nr_member *members;
    struct step_run *steps;
    uint32_t n_steps;                      /* the pipeline may be gone when the arena is cleared */
    const struct nr_infer_tensor **values; /* [n_tensors] NULL: not settled, or absent */
    bool *wanted;                          /* [n_tensors] */
    uint32_t *ready;                       /* each step once */
    uint32_t n_ready, n_started, in_flight;
    bool busy;
    nr_status cancelled; /* why, NARU_OK: it is not */
    nr_fail_reason reason;
};

/* --- the end ---------------------------------------------------------------------------------- */

static void count_running(struct nr_pipeline *p, const struct nr_loop *loop, int by)
{
    _Atomic unsigned *n = &p->loops[nr_loop_index(loop)].running;
    atomic_store_explicit(n, atomic_load_explicit(n, memory_order_relaxed) + (unsigned)by,
                          memory_order_relaxed);
}

/* The answer's tensors: those of the steps, under the ensemble's indexes. */
static void take_outputs(struct run *run)
{
    struct nr_request *r = run->r;
    const struct nr_ensemble *e = run->pipeline->graph;
    for (unsigned i = 0; i < r->in->n_outputs; i++) {
        uint32_t index = r->in->outputs[i].index, tensor = e->outputs[index];
        if (run->values[tensor] == NULL) {
            r->status = NARU_PRECONDITION;
            r->error = nr_arena_fmt(r->arena,
                                    "output \"%.100s\" was not made: the branch that makes it was "
                                    "not taken; naru.either gives an output in both cases",
                                    e->tensors[tensor].name);
            return;
        }
        r->outputs[i] = *run->values[tensor];
        r->outputs[i].index = index;
    }
    r->n_outputs = r->in->n_outputs;
}

static void complete(struct nr_pipeline *p, struct nr_request *r, nr_fail_reason reason)
{
    unsigned loop = nr_loop_index(r->loop);
    r->end_ns = nr_clock_now();
    r->infer_end_ns = r->end_ns;
    atomic_store_explicit(&r->state, NR_REQUEST_DONE, memory_order_relaxed);
    if (r->status == NARU_OK && !r->abandoned) {
        nr_counters_success(p->counters, loop, r, true);
    } else {
        reason = r->abandoned ? NR_FAIL_CANCELED : reason;
        nr_counters_failure(p->counters, loop, reason, r->end_ns - r->arrival_ns);
    }
    r->on_complete(r);
}

static void finish(struct run *run)
{
    struct nr_pipeline *p = run->pipeline;
    struct nr_request *r = run->r;
    if (r->status == NARU_OK && run->cancelled != NARU_OK) {
        r->status = run->cancelled;
        r->error = nr_str_from(run->cancelled == NARU_DEADLINE
                                   ? "the request's time limit passed between two steps"
                                   : "the request was cancelled between two steps");
        run->reason = NR_FAIL_CANCELED;
    }
    if (r->status == NARU_OK) {
        take_outputs(run);
        run->reason = NR_FAIL_OTHER;
    }
    count_running(p, r->loop, -1);
    r->at_target = NULL;
    complete(p, r, run->reason); /* the run may be gone */
}

/* With the request's arena: results may be read until then. */
static void run_done(void *arg)
{
    struct run *run = arg;
    for (uint32_t i = 0; i < run->n_steps; i++) {
        nr_arena_done(&run->steps[i].arena);
    }
}

/* --- steps that end --------------------------------------------------------------------------- */

static void cancel_steps(struct run *run, nr_status status, bool running_too)
{
    bool was_busy = run->busy;
    run->busy = true; /* a step that waited in a queue completes within its cancel */
    for (uint32_t i = 0; i < run->pipeline->graph->n_steps; i++) {
        struct child *c = run->steps[i].child;
        if (c == NULL) {
            continue;
        }
        if (run->pipeline->graph->steps[i].kind == NULL) {
            nr_request_cancel(&c->request, status, running_too);
        } else {
            atomic_store_explicit(&c->request.cancelled, true, memory_order_relaxed);
        }
    }
    run->busy = was_busy;
}

static void fail_step(struct run *run, uint32_t i, nr_status status, struct nr_str text,
                      nr_fail_reason reason)
{
    struct nr_request *r = run->r;
    const struct nr_ensemble_step *s = &run->pipeline->graph->steps[i];
    if (r->status != NARU_OK) {
        return; /* the first one counts */
    }
    r->status = status;
    r->error = nr_arena_fmt(r->arena, "step %u (%s\"%s\"): " NR_STR_FMT, i,
                            s->kind == NULL ? "model " : "", s->model,
                            NR_STR_ARG(text.len > 0 ? text : nr_str_from(nr_status_text(status))));
    run->reason = reason;
    cancel_steps(run, NARU_CANCELLED, true);
}

static void release(struct run *run, int32_t step)
{
    if (step >= 0 && --run->steps[step].holds == 0) {
        nr_arena_done(&run->steps[step].arena);
    }
}

/* The tensor is there, or will never be (value NULL): who waited for it? */
static void settle(struct run *run, uint32_t tensor, const struct nr_infer_tensor *value)
{
    const struct nr_ensemble_tensor *t = &run->pipeline->graph->tensors[tensor];
    run->values[tensor] = value;
    for (uint32_t k = 0; k < t->n_reads; k++) {
        struct step_run *reader = &run->steps[t->readers[k]];
        if (reader->needed && --reader->waits == 0) {
            run->ready[run->n_ready++] = t->readers[k];
        }
    }
}

/* Outputs of the step, which ended well, or was skipped (c NULL), to their readers. */
static void settle_outputs(struct run *run, uint32_t i, const struct child *c)
{
    const struct nr_ensemble_step *s = &run->pipeline->graph->steps[i];
    const struct nr_member *m = &run->members[i];
    unsigned n = 0;
    for (uint32_t k = 0; k < s->n_outputs; k++) {
        uint32_t tensor = m->outputs[k].tensor;
        const struct nr_infer_tensor *value = NULL;
        if (!run->wanted[tensor]) {
            continue;
        }
        if (c != NULL) {
            value = s->kind == NULL ? &c->request.outputs[n++] : &c->work.out[m->outputs[k].index];
            value = value->dtype == NARU_DTYPE_NONE ? NULL : value;
        }
        settle(run, tensor, value);
    }
}

/* The inputs of a step that ended are not read by it any more. */
static void release_inputs(struct run *run, uint32_t i)
{
    const struct nr_ensemble *e = run->pipeline->graph;
    for (uint32_t k = 0; k < e->steps[i].n_inputs; k++) {
        release(run, e->tensors[e->steps[i].inputs[k].tensor].step);
    }
}

static void pump(struct run *run);

static void step_done(struct child *c)
{
    struct run *run = c->run;
    uint32_t i = c->step;
    struct nr_request *q = &c->request;
    run->steps[i].child = NULL;
    run->in_flight--;
    if (q->status == NARU_OK && run->r->status == NARU_OK) {
        settle_outputs(run, i, c);
    } else if (q->status != NARU_OK) {
        run->r->retry_after_s = run->r->status == NARU_OK ? q->retry_after_s : 0;
        fail_step(run, i, q->status, q->error, nr_request_fail_reason(q));
    }
    release_inputs(run, i);
    pump(run); /* may be the end of the run */
}

static void on_request_done(struct nr_request *q)
{
    step_done(nr_container_of(q, struct child, request));
}

/* --- naru's own steps ------------------------------------------------------------------------- */

static void do_work(struct child *c)
{
    struct nr_err err = {0};
    struct nr_request *q = &c->request;
    q->begin_ns = nr_clock_now();
    if (atomic_load_explicit(&q->cancelled, memory_order_relaxed)) {
        q->status = nr_fail(&err, NARU_CANCELLED, "the request was cancelled before it ran");
    } else if (q->deadline_ns != 0 && q->deadline_ns <= q->begin_ns) {
        q->status = nr_fail(&err, NARU_DEADLINE, "the request's time limit passed before it ran");
    } else {
        q->status = nr_stepwork_run(&c->work, &err);
    }
    if (q->status != NARU_OK) {
        q->error = nr_arena_str(c->work.arena, nr_str_from(err.text));
    }
}

static void on_work_done(struct nr_msg *m)
{
    struct nr_request *q = nr_container_of(m, struct nr_request, msg);
    step_done(nr_container_of(q, struct child, request));
}

static void run_on_pool(struct nr_job *j)
{
    struct child *c = nr_container_of(j, struct child, job);
    do_work(c);
    c->request.msg.run = on_work_done;
    nr_loop_post(c->request.loop, &c->request.msg);
}

static nr_status start_own(struct run *run, uint32_t i, struct child *c, struct nr_err *err)
{
    const struct nr_ensemble_step *s = &run->pipeline->graph->steps[i];
    const struct nr_member *m = &run->members[i];
    struct nr_arena *a = &run->steps[i].arena;
    const struct nr_infer_tensor **in = nr_arena_try_array(a, s->n_inputs, sizeof(*in));
    struct nr_infer_tensor *out =
        nr_arena_try_array(a, nr_stepkind_n_outputs(s->kind), sizeof(*out));
    if (in == NULL || out == NULL) {
        return nr_fail(err, NARU_NOMEM, "no memory for its tensors");
    }
    for (uint32_t k = 0; k < s->n_inputs; k++) {
        in[m->inputs[k].index] = run->values[m->inputs[k].tensor];
    }
    c->work = (struct nr_stepwork){
        .kind = s->kind, .limits = &run->pipeline->cfg.images, .in = in, .out = out, .arena = a};
    run->steps[i].child = c;
    run->in_flight++;
    c->job.run = run_on_pool;
    if (nr_stepwork_is_short(&c->work)) {
        do_work(c);
        step_done(c);
    } else if (nr_pool_submit(run->pipeline->cfg.pool, &c->job) != NARU_OK) {
        c->request.status = NARU_UNAVAILABLE;
        c->request.error = NR_STR("too much work waits for the pool; try again later");
        c->request.retry_after_s = 1;
        step_done(c);
    }
    return NARU_OK;
}

/* --- steps that run models -------------------------------------------------------------------- */

/* What the protocols' decoders check of a client's tensors, of a step's: the signature leaves
 * dimensions open that the running tensor has closed. */
static nr_status check_input(const struct nr_signature *sig, const struct nr_infer_tensor *t,
                             int64_t *rows, struct nr_err *err)
{
    const struct nr_io_spec *spec = &sig->inputs[t->index];
    bool fits = t->dtype == spec->dtype && t->rank == spec->rank;
    for (uint32_t d = 0; d < spec->rank && fits; d++) {
        fits = spec->shape[d] < 0 || spec->shape[d] == t->shape[d];
    }
    char is[NR_SHAPE_TEXT_MAX], wants[NR_SHAPE_TEXT_MAX];
    if (!fits) {
        return nr_fail(err, NARU_INVALID,
                       "input \"" NR_STR_FMT "\" came with shape %s, the model takes %s",
                       NR_STR_ARG(spec->name), nr_shape_text(t->shape, t->rank, is, sizeof(is)),
                       nr_shape_text(spec->shape, spec->rank, wants, sizeof(wants)));
    }
    if (!spec->batched) {
        return NARU_OK;
    }
    if (*rows >= 0 && t->shape[0] != *rows) {
        return nr_fail(err, NARU_INVALID,
                       "input \"" NR_STR_FMT "\" has %lld rows, another input has %lld",
                       NR_STR_ARG(spec->name), (long long)t->shape[0], (long long)*rows);
    }
    *rows = t->shape[0];
    return *rows <= sig->max_batch_size
               ? NARU_OK
               : nr_fail(err, NARU_INVALID, "a batch of %lld rows came, the model takes %lld",
                         (long long)*rows, (long long)sig->max_batch_size);
}

/* The step's request: what is there of its inputs, what is wanted of its outputs. */
static nr_status fill_request(struct run *run, uint32_t i, struct child *c, struct nr_err *err)
{
    const struct nr_ensemble_step *s = &run->pipeline->graph->steps[i];
    const struct nr_member *m = &run->members[i];
    struct nr_arena *a = &run->steps[i].arena;
    struct nr_infer_request *in = &c->in;
    int64_t rows = -1;
    *in = *run->r->in;
    in->n_inputs = in->n_outputs = 0;
    in->outputs_named = true;
    in->inputs = nr_arena_try_array(a, s->n_inputs, sizeof(*in->inputs));
    in->outputs = nr_arena_try_array(a, s->n_outputs, sizeof(*in->outputs));
    if (in->inputs == NULL || in->outputs == NULL) {
        return nr_fail(err, NARU_NOMEM, "no memory for its tensors");
    }
    for (uint32_t k = 0; k < s->n_inputs; k++) {
        const struct nr_infer_tensor *value = run->values[m->inputs[k].tensor];
        if (value == NULL) {
            continue; /* optional, or the step would have been skipped */
        }
        struct nr_infer_tensor *t = &in->inputs[in->n_inputs++];
        *t = *value;
        t->index = m->inputs[k].index;
        nr_status st = check_input(m->sig, t, &rows, err);
        if (st != NARU_OK) {
            return st;
        }
    }
    nr_status shared = nr_infer_check_shared(m->sig, in->inputs, in->n_inputs, err);
    if (shared != NARU_OK) {
        return shared;
    }
    in->rows = m->sig->max_batch_size == 0 ? 1 : rows >= 0 ? rows : run->r->in->rows;
    for (uint32_t k = 0; k < s->n_outputs; k++) {
        if (run->wanted[m->outputs[k].tensor]) {
            in->outputs[in->n_outputs++] =
                (struct nr_infer_output){.index = m->outputs[k].index, .binary = true};
        }
    }
    return NARU_OK;
}

static nr_status start_model(struct run *run, uint32_t i, struct child *c, struct nr_err *err)
{
    nr_status st = fill_request(run, i, c, err);
    if (st != NARU_OK) {
        return st;
    }
    struct nr_request *q = &c->request;
    nr_version_used(run->members[i].version, nr_loop_now(q->loop)); /* it is not idle */
    q->target = nr_runtime_of(run->members[i].version)->target;
    q->in = &c->in;
    q->options = run->r->options;
    q->n_options = run->r->n_options;
    q->catalog = run->r->catalog;
    q->on_complete = on_request_done;
    run->steps[i].child = c;
    run->in_flight++;
    nr_request_submit(q);
    return NARU_OK;
}

/* --- steps that begin ------------------------------------------------------------------------- */

/* Whether a tensor that the step must have is absent. */
static bool is_skipped(const struct run *run, uint32_t i)
{
    const struct nr_ensemble_step *s = &run->pipeline->graph->steps[i];
    const struct nr_member *m = &run->members[i];
    for (uint32_t k = 0; k < s->n_inputs; k++) {
        bool optional = s->kind == NULL ? m->sig->inputs[m->inputs[k].index].optional
                                        : s->kind->op == NR_STEP_EITHER;
        if (run->values[m->inputs[k].tensor] == NULL && !optional) {
            return true;
        }
    }
    return false;
}

static void start(struct run *run, uint32_t i)
{
    struct step_run *s = &run->steps[i];
    struct nr_err err = {0};
    if (is_skipped(run, i)) {
        settle_outputs(run, i, NULL);
        release_inputs(run, i);
        return;
    }
    struct child *c = nr_arena_new(&s->arena, struct child);
    c->run = run;
    c->step = i;
    c->request.loop = run->r->loop;
    c->request.arena = &s->arena;
    c->request.arrival_ns = nr_clock_now();
    c->request.deadline_ns = run->r->deadline_ns;
    c->request.client = run->r->client;
    nr_status st = run->pipeline->graph->steps[i].kind == NULL ? start_model(run, i, c, &err)
                                                               : start_own(run, i, c, &err);
    if (st != NARU_OK) {
        fail_step(run, i, st, nr_str_from(err.text), NR_FAIL_OTHER);
    }
}

/* Starts what is ready; ends the run when nothing is left. */
static void pump(struct run *run)
{
    if (run->busy) {
        return;
    }
    run->busy = true;
    while (run->n_started < run->n_ready && run->r->status == NARU_OK &&
           run->cancelled == NARU_OK) {
        start(run, run->ready[run->n_started++]);
    }
    run->busy = false;
    if (run->in_flight == 0) {
        finish(run);
    }
}

/* --- submitting ------------------------------------------------------------------------------- */

/* Which tensors and steps the request needs, backwards from the outputs that it asks for. */
static void mark_needed(struct run *run)
{
    const struct nr_ensemble *e = run->pipeline->graph;
    const struct nr_infer_request *in = run->r->in;
    for (unsigned i = 0; i < in->n_outputs; i++) {
        uint32_t tensor = e->outputs[in->outputs[i].index];
        run->wanted[tensor] = true;
        run->steps[e->tensors[tensor].step].holds++;
    }
    for (uint32_t n = e->n_steps; n > 0; n--) {
        uint32_t i = e->order[n - 1];
        const struct nr_ensemble_step *s = &e->steps[i];
        struct step_run *sr = &run->steps[i];
        for (uint32_t k = 0; k < s->n_outputs && !sr->needed; k++) {
            sr->needed = run->wanted[s->outputs[k].tensor];
        }
        for (uint32_t k = 0; k < s->n_inputs && sr->needed; k++) {
            int32_t from = e->tensors[s->inputs[k].tensor].step;
            run->wanted[s->inputs[k].tensor] = true;
            if (from >= 0) {
                sr->waits++;
                run->steps[from].holds++;
            }
        }
    }
    for (uint32_t n = 0; n < e->n_steps; n++) {
        const struct step_run *sr = &run->steps[e->order[n]];
        if (sr->needed && sr->waits == 0) {
            run->ready[run->n_ready++] = e->order[n];
        }
    }
}

static struct run *new_run(struct nr_pipeline *p, struct nr_request *r)
{
    const struct nr_ensemble *e = p->graph;
    struct run *run = nr_arena_new(r->arena, struct run);
    run->pipeline = p;
    run->r = r;
    run->n_steps = e->n_steps;
    run->steps = nr_arena_zalloc(r->arena, e->n_steps * sizeof(*run->steps));
    run->values = nr_arena_zalloc(r->arena, e->n_tensors * sizeof(*run->values));
    run->wanted = nr_arena_zalloc(r->arena, e->n_tensors * sizeof(*run->wanted));
    run->ready = nr_arena_zalloc(r->arena, e->n_steps * sizeof(*run->ready));
    for (uint32_t i = 0; i < e->n_steps; i++) {
        nr_arena_init(&run->steps[i].arena, 0);
    }
    nr_arena_defer(r->arena, run_done, run);
    return run;
}

static void submit(struct nr_target *t, struct nr_request *r)
{
    struct nr_pipeline *p = nr_container_of(t, struct nr_pipeline, target);
    r->status = NARU_OK;
    r->error = (struct nr_str){0};
    r->n_outputs = 0;
    r->queued_ns = r->begin_ns = r->infer_begin_ns = nr_clock_now();
    r->infer_end_ns = r->end_ns = 0;
    r->ran_inline = false;
    r->batch_rows = (uint32_t)r->in->rows;
    r->at_target = NULL;
    if (r->deadline_ns != 0 && r->deadline_ns <= r->queued_ns) {
        r->status = NARU_DEADLINE;
        r->error = NR_STR("the request's deadline had passed before its first step");
        complete(p, r, NR_FAIL_REJECTED);
        return;
    }
    const struct nr_catalog_version *entry =
        nr_catalog_version(r->catalog, nr_str_from(p->cfg.version->name), p->cfg.version->number);
    NR_ASSERT(entry != NULL && entry->members != NULL); /* it was found there */
    r->outputs = nr_arena_zalloc(r->arena, NR_MAX(r->in->n_outputs, 1u) * sizeof(*r->outputs));
    struct run *run = new_run(p, r);
    run->members = entry->members;
    r->at_target = run;
    atomic_store_explicit(&r->state, NR_REQUEST_RUNNING, memory_order_relaxed);
    count_running(p, r->loop, 1);
    for (unsigned i = 0; i < r->in->n_inputs; i++) {
        run->values[r->in->inputs[i].index] = &r->in->inputs[i];
    }
    mark_needed(run);
    pump(run);
}

static void cancel(struct nr_target *t, struct nr_request *r, nr_status status, bool running_too)
{
    (void)t;
    struct run *run = r->at_target;
    if (run == NULL) {
        return;
    }
    run->cancelled = run->cancelled == NARU_OK ? status : run->cancelled;
    cancel_steps(run, status, running_too);
    pump(run);
}

/* --- life ------------------------------------------------------------------------------------- */

struct nr_pipeline *nr_pipeline_new(const struct nr_pipeline_cfg *cfg)
{
    struct nr_pipeline *p = nr_new(struct nr_pipeline);
    p->cfg = *cfg;
    p->target = (struct nr_target){.submit = submit, .cancel = cancel};
    p->graph = cfg->version->config->ensemble;
    p->sig = &cfg->version->config->sig;
    p->counters = nr_counters_new(cfg->n_loops, p->sig->max_batch_size);
    p->loops = nr_try_alloc_aligned(64, NR_MAX(cfg->n_loops, 1u) * sizeof(*p->loops));
    NR_ASSERT(p->loops != NULL);
    memset(p->loops, 0, NR_MAX(cfg->n_loops, 1u) * sizeof(*p->loops));
    return p;
}

void nr_pipeline_free(struct nr_pipeline *p)
{
    if (p == NULL) {
        return;
    }
    NR_ASSERT(nr_pipeline_running(p) == 0);
    nr_counters_free(p->counters);
    nr_free(p->loops);
    nr_free(p);
}

struct nr_target *nr_pipeline_target(struct nr_pipeline *p)
{
    return &p->target;
}

struct nr_counters *nr_pipeline_counters(struct nr_pipeline *p)
{
    return p->counters;
}

unsigned nr_pipeline_running(const struct nr_pipeline *p)
{
    unsigned n = 0;
    for (unsigned i = 0; i < p->cfg.n_loops; i++) {
        n += atomic_load_explicit(&p->loops[i].running, memory_order_relaxed);
    }
    return n;
}
