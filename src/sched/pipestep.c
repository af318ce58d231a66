/* One step of a pipeline: a request to its model's target, or work of naru's own; then its outputs
 * to those that read them.
 *
 * DESIGN. Each step has an arena of its own, because the scheduler of its model writes results there
 * on its own thread. It is given back as soon as nobody reads what the step made, so that a long
 * pipeline holds two steps' tensors and not all of them. What deeper levels read stays until its scope
 * ends, and so does a decoupled step, since its answers refer to its request.
 *
 * A tensor is settled when its step has ended: present, or absent (an optional input that did not
 * come, the branch that naru.if did not take). A step that must have an absent tensor is skipped,
 * what it would write is absent too.
 *
 * Threads: loop of the request, but for run_on_pool.
 */
#include "base/clock.h"
#include "codec/infer_build.h"
#include "codec/tensor.h"
#include "sched/pipeline_priv.h"
#include "sched/runtime.h"
#include "sched/sched_priv.h"

/* --- steps that end --------------------------------------------------------------------------- */

void nr_pipe_cancel_steps(struct nr_pipe_scope *s, nr_status status, bool running_too)
{
    struct nr_pipe_run *run = s->run;
    bool was_busy = run->busy;
    run->busy = true; /* a step that waited in a queue completes within its cancel */
    for (uint32_t i = 0; i < run->n_steps && s->in_flight > 0; i++) {
        struct nr_pipe_child *c = s->steps[i].child;
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

/* The first failure of a scope counts. It is told when the scope's turn to answer comes, so that
 * answers before it are given. */
static void set_failure(struct nr_pipe_scope *s, uint32_t i, nr_status status, struct nr_str text,
                        nr_fail_reason reason, unsigned retry_after_s)
{
    const struct nr_ensemble_step *step = &s->run->pipeline->graph->steps[i];
    if (s->status != NARU_OK) {
        return;
    }
    s->status = status;
    s->error = nr_arena_fmt(s->run->r->arena, "step %u (%s\"%s\"): " NR_STR_FMT, i,
                            step->kind == NULL ? "model " : "", step->model,
                            NR_STR_ARG(text.len > 0 ? text : nr_str_from(nr_status_text(status))));
    s->reason = reason;
    s->retry_after_s = retry_after_s;
}

/* An ordinary step: what comes behind it cannot be. */
static void stop(struct nr_pipe_scope *s)
{
    s->stopped = true;
    nr_pipe_drop_pending(s);
    nr_pipe_cancel_steps(s, NARU_CANCELLED, true);
}

/* Whether the tensor lies in the arena of a step of this very scope; otherwise it stays. */
static bool is_own(const struct nr_pipe_scope *s, int32_t writer)
{
    return writer >= 0 && s->run->members[writer].level == s->level &&
           !s->run->members[writer].decoupled;
}

static void release(struct nr_pipe_scope *s, int32_t step)
{
    if (is_own(s, step) && --s->steps[step].holds == 0) {
        nr_arena_done(&s->steps[step].arena);
    }
}

void nr_pipe_settle(struct nr_pipe_scope *s, uint32_t tensor, const struct nr_infer_tensor *value)
{
    struct nr_pipe_run *run = s->run;
    const struct nr_ensemble_tensor *t = &run->pipeline->graph->tensors[tensor];
    s->values[tensor] = value;
    if (run->deep != NULL && run->deep[tensor]) {
        s->n_open--;
    }
    for (uint32_t k = 0; k < t->n_reads; k++) {
        uint32_t i = t->readers[k];
        if (run->plan[i].needed && run->members[i].level == s->level && --s->steps[i].waits == 0) {
            s->ready[s->n_ready++] = i;
            if (nr_list_empty(&s->ready_node)) {
                nr_list_append(&run->runnable, &s->ready_node);
            }
        }
    }
}

/* Outputs of the step, which ended well, or was skipped (c NULL), to their readers. Those of a
 * decoupled step came with its answers. */
static void settle_outputs(struct nr_pipe_scope *s, uint32_t i, const struct nr_pipe_child *c)
{
    const struct nr_pipe_run *run = s->run;
    const struct nr_ensemble_step *step = &run->pipeline->graph->steps[i];
    const struct nr_member *m = &run->members[i];
    unsigned n = 0;
    for (uint32_t k = 0; k < step->n_outputs && !m->decoupled; k++) {
        uint32_t tensor = m->outputs[k].tensor;
        const struct nr_infer_tensor *value = NULL;
        if (!run->wanted[tensor]) {
            continue;
        }
        if (c != NULL) {
            value =
                step->kind == NULL ? &c->request.outputs[n++] : &c->work.out[m->outputs[k].index];
            value = value->dtype == NARU_DTYPE_NONE ? NULL : value;
        }
        nr_pipe_settle(s, tensor, value);
    }
}

/* The inputs of a step that ended are not read by it any more. */
static void release_inputs(struct nr_pipe_scope *s, uint32_t i)
{
    const struct nr_ensemble *e = s->run->pipeline->graph;
    for (uint32_t k = 0; k < e->steps[i].n_inputs; k++) {
        release(s, e->tensors[e->steps[i].inputs[k].tensor].step);
    }
}

static void step_done(struct nr_pipe_child *c)
{
    struct nr_pipe_scope *s = c->scope;
    struct nr_pipe_run *run = s->run;
    uint32_t i = c->step;
    struct nr_request *q = &c->request;
    s->steps[i].child = NULL;
    s->in_flight--;
    run->in_flight--;
    if (q->status != NARU_OK) {
        set_failure(s, i, q->status, q->error, nr_request_fail_reason(q), q->retry_after_s);
        if (!run->members[i].decoupled) { /* else the answers before its failure are worth giving */
            stop(s);
        }
    } else if (!s->stopped && !nr_pipe_is_dead(run)) {
        settle_outputs(s, i, c);
    }
    release_inputs(s, i);
    nr_pipe_pump(run); /* may be the end of the run */
}

static void on_request_done(struct nr_request *q)
{
    step_done(nr_container_of(q, struct nr_pipe_child, request));
}

static void begin(struct nr_pipe_scope *s, uint32_t i, struct nr_pipe_child *c)
{
    s->steps[i].child = c;
    s->in_flight++;
    s->run->in_flight++;
}

/* --- naru's own steps ------------------------------------------------------------------------- */

static void do_work(struct nr_pipe_child *c)
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
    step_done(nr_container_of(q, struct nr_pipe_child, request));
}

static void run_on_pool(struct nr_job *j)
{
    struct nr_pipe_child *c = nr_container_of(j, struct nr_pipe_child, job);
    do_work(c);
    c->request.msg.run = on_work_done;
    nr_loop_post(c->request.loop, &c->request.msg);
}

static nr_status start_own(struct nr_pipe_scope *s, uint32_t i, struct nr_pipe_child *c,
                           struct nr_err *err)
{
    const struct nr_ensemble_step *step = &s->run->pipeline->graph->steps[i];
    const struct nr_member *m = &s->run->members[i];
    struct nr_arena *a = &s->steps[i].arena;
    const struct nr_infer_tensor **in = nr_arena_try_array(a, step->n_inputs, sizeof(*in));
    struct nr_infer_tensor *out =
        nr_arena_try_array(a, nr_stepkind_n_outputs(step->kind), sizeof(*out));
    if (in == NULL || out == NULL) {
        return nr_fail(err, NARU_NOMEM, "no memory for its tensors");
    }
    for (uint32_t k = 0; k < step->n_inputs; k++) {
        in[m->inputs[k].index] = s->values[m->inputs[k].tensor];
    }
    c->work = (struct nr_stepwork){.kind = step->kind,
                                   .limits = &s->run->pipeline->cfg.images,
                                   .in = in,
                                   .out = out,
                                   .arena = a};
    begin(s, i, c);
    c->job.run = run_on_pool;
    if (nr_stepwork_is_short(&c->work)) {
        do_work(c);
        step_done(c);
    } else if (nr_pool_submit(s->run->pipeline->cfg.pool, &c->job) != NARU_OK) {
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
static nr_status fill_request(struct nr_pipe_scope *s, uint32_t i, struct nr_pipe_child *c,
                              struct nr_err *err)
{
    const struct nr_ensemble_step *step = &s->run->pipeline->graph->steps[i];
    const struct nr_member *m = &s->run->members[i];
    struct nr_arena *a = &s->steps[i].arena;
    struct nr_infer_request *in = &c->in;
    int64_t rows = -1;
    *in = *s->run->r->in;
    in->n_inputs = in->n_outputs = 0;
    in->outputs_named = true;
    in->inputs = nr_arena_try_array(a, step->n_inputs, sizeof(*in->inputs));
    in->outputs = nr_arena_try_array(a, step->n_outputs, sizeof(*in->outputs));
    if (in->inputs == NULL || in->outputs == NULL) {
        return nr_fail(err, NARU_NOMEM, "no memory for its tensors");
    }
    for (uint32_t k = 0; k < step->n_inputs; k++) {
        const struct nr_infer_tensor *value = s->values[m->inputs[k].tensor];
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
    in->rows = m->sig->max_batch_size == 0 ? 1 : rows >= 0 ? rows : s->run->r->in->rows;
    for (uint32_t k = 0; k < step->n_outputs; k++) {
        if (s->run->wanted[m->outputs[k].tensor]) {
            in->outputs[in->n_outputs++] =
                (struct nr_infer_output){.index = m->outputs[k].index, .binary = true};
        }
    }
    return NARU_OK;
}

static nr_status start_model(struct nr_pipe_scope *s, uint32_t i, struct nr_pipe_child *c,
                             struct nr_err *err)
{
    nr_status st = fill_request(s, i, c, err);
    if (st != NARU_OK) {
        return st;
    }
    struct nr_request *q = &c->request;
    nr_version_used(s->run->members[i].version, nr_loop_now(q->loop)); /* it is not idle */
    q->target = nr_runtime_of(s->run->members[i].version)->target;
    q->in = &c->in;
    q->options = s->run->r->options;
    q->n_options = s->run->r->n_options;
    q->catalog = s->run->r->catalog;
    q->on_complete = on_request_done;
    q->on_answer = s->run->members[i].decoupled ? nr_pipe_on_answer : NULL;
    begin(s, i, c);
    nr_request_submit(q);
    return NARU_OK;
}

/* --- steps that begin ------------------------------------------------------------------------- */

/* Whether a tensor that the step must have is absent. */
static bool is_skipped(const struct nr_pipe_scope *s, uint32_t i)
{
    const struct nr_ensemble_step *step = &s->run->pipeline->graph->steps[i];
    const struct nr_member *m = &s->run->members[i];
    for (uint32_t k = 0; k < step->n_inputs; k++) {
        bool optional = step->kind == NULL ? m->sig->inputs[m->inputs[k].index].optional
                                           : step->kind->op == NR_STEP_EITHER;
        if (s->values[m->inputs[k].tensor] == NULL && !optional) {
            return true;
        }
    }
    return false;
}

void nr_pipe_start(struct nr_pipe_scope *s, uint32_t i)
{
    const struct nr_request *r = s->run->r;
    struct nr_arena *a = &s->steps[i].arena;
    struct nr_err err = {0};
    if (is_skipped(s, i)) {
        settle_outputs(s, i, NULL);
        release_inputs(s, i);
        return;
    }
    struct nr_pipe_child *c = nr_arena_new(a, struct nr_pipe_child);
    c->scope = s;
    c->step = i;
    c->request.loop = r->loop;
    c->request.arena = a;
    c->request.arrival_ns = nr_clock_now();
    c->request.deadline_ns = r->deadline_ns;
    c->request.client = r->client;
    nr_status st = s->run->pipeline->graph->steps[i].kind == NULL ? start_model(s, i, c, &err)
                                                                  : start_own(s, i, c, &err);
    if (st != NARU_OK) {
        set_failure(s, i, st, nr_str_from(err.text), NR_FAIL_OTHER, 0);
        stop(s);
    }
}
