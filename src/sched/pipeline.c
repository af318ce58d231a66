/* Ensembles at run time: one request to the pipeline, one request to each step's model.
 *
 * DESIGN. A run lives in the arena of the request that it serves. Everything happens on the request's
 * loop, without locks:
 *
 *   submit ─▶ ready ─▶ start ─▶ (its model's target, or the pool, or here) ─▶ step_done
 *               ▲                                                               │ tensors are settled
 *               └───────────── steps for which all tensors are settled ◀────────┘
 *
 * Where not all outputs are asked for, steps that only the others need do not run. Answers of
 * decoupled steps fork the run: pipefork.c. Words and invariants: pipeline_priv.h.
 *
 * THREADS. Loop thread of the request, but for steps on the pool. No malloc in steady state: arenas'
 * blocks come from the loop's free list.
 */
#include "sched/pipeline.h"

#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "model/repository.h"
#include "sched/pipeline_priv.h"

/* --- the end ---------------------------------------------------------------------------------- */

static void count_running(struct nr_pipeline *p, const struct nr_loop *loop, int by)
{
    _Atomic unsigned *n = &p->loops[nr_loop_index(loop)].running;
    atomic_store_explicit(n, atomic_load_explicit(n, memory_order_relaxed) + (unsigned)by,
                          memory_order_relaxed);
}

/* The answer's tensors: those of the steps, under the ensemble's indexes. */
static void take_outputs(struct nr_pipe_run *run)
{
    struct nr_request *r = run->r;
    const struct nr_ensemble *e = run->pipeline->graph;
    for (unsigned i = 0; i < r->in->n_outputs; i++) {
        uint32_t index = r->in->outputs[i].index, tensor = e->outputs[index];
        if (run->root.values[tensor] == NULL) {
            r->status = NARU_PRECONDITION;
            r->error = nr_arena_fmt(r->arena,
                                    "output \"%.100s\" was not made: the branch that makes it was "
                                    "not taken; naru.either gives an output in both cases",
                                    e->tensors[tensor].name);
            return;
        }
        r->outputs[i] = *run->root.values[tensor];
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

static void keep_answer(struct nr_answer *answer)
{
    (void)answer; /* it goes with the request's arena */
}

/* The one answer of a run without decoupled steps, to who takes answers one by one: a pipeline may be
 * decoupled, and the outputs asked for be of those before its decoupled step. */
static void give_root(struct nr_request *r)
{
    struct nr_answer *a = nr_arena_new(r->arena, struct nr_answer);
    *a = (struct nr_answer){.done = keep_answer,
                            .request = r,
                            .outputs = r->outputs,
                            .n_outputs = r->n_outputs,
                            .final = true};
    nr_list_init(&a->node);
    r->on_answer(r, a);
}

static void finish(struct nr_pipe_run *run)
{
    struct nr_pipeline *p = run->pipeline;
    struct nr_request *r = run->r;
    run->over = true;
    nr_pipe_drop_scopes(run);
    if (r->status == NARU_OK && run->root.status != NARU_OK) { /* what a cancel led to */
        nr_pipe_fail(run, run->root.status, run->root.error, run->root.reason);
    } else if (r->status == NARU_OK && run->cancelled != NARU_OK) {
        nr_pipe_fail(run, run->cancelled,
                     nr_str_from(run->cancelled == NARU_DEADLINE
                                     ? "the request's time limit passed between two steps"
                                     : "the request was cancelled between two steps"),
                     NR_FAIL_CANCELED);
    }
    if (r->status == NARU_OK && run->depth == 0) {
        take_outputs(run);
        run->reason = NR_FAIL_OTHER;
        if (r->status == NARU_OK && r->on_answer != NULL) {
            give_root(r);
        }
    }
    count_running(p, r->loop, -1);
    r->at_target = NULL;
    complete(p, r, run->reason); /* the run may be gone */
}

/* With the request's arena: results may be read until then. */
static void run_done(void *arg)
{
    struct nr_pipe_run *run = arg;
    NR_ASSERT(run->root.n_subs == 0); /* answers are ended before the request's memory goes */
    for (uint32_t i = 0; i < run->n_steps; i++) {
        nr_arena_done(&run->root.steps[i].arena);
    }
}

static void cancel_scopes(struct nr_pipe_run *run, nr_status status, bool running_too)
{
    bool was_busy = run->busy;
    run->busy = true; /* no scope goes while we walk along them */
    NR_LIST_FOREACH (n, &run->scopes) {
        struct nr_pipe_scope *s = nr_container_of(n, struct nr_pipe_scope, node);
        nr_pipe_drop_pending(s);
        nr_pipe_cancel_steps(s, status, running_too);
    }
    run->busy = was_busy;
}

void nr_pipe_fail(struct nr_pipe_run *run, nr_status status, struct nr_str error,
                  nr_fail_reason reason)
{
    struct nr_request *r = run->r;
    if (r->status == NARU_OK) {
        r->status = status;
        r->error = error;
        run->reason = reason;
    }
    cancel_scopes(run, NARU_CANCELLED, true);
}

/* --- going on --------------------------------------------------------------------------------- */

static void start_ready(struct nr_pipe_run *run)
{
    struct nr_list *n;
    while ((n = nr_list_pop(&run->runnable)) != NULL) {
        struct nr_pipe_scope *s = nr_container_of(n, struct nr_pipe_scope, ready_node);
        while (s->n_started < s->n_ready && !s->stopped && !nr_pipe_is_dead(run)) {
            nr_pipe_start(s, s->ready[s->n_started++]);
        }
    }
}

/* A run without forks passes each line once. */
void nr_pipe_pump(struct nr_pipe_run *run)
{
    if (run->busy || run->over) {
        return;
    }
    run->busy = true;
    bool more = true;
    while (more) {
        start_ready(run);
        more = nr_pipe_give(run);
        more = nr_pipe_fork(run) || more || !nr_list_empty(&run->runnable);
    }
    run->busy = false;
    const struct nr_pipe_scope *root = &run->root;
    if (run->in_flight == 0 && !run->posted &&
        (nr_pipe_is_dead(run) || (nr_list_empty(&root->subs) && nr_list_empty(&root->pending)))) {
        finish(run);
    }
}

/* --- submitting ------------------------------------------------------------------------------- */

/* The tensor is read in that level: it is wanted, and stays as long as somebody there needs it.
 * True: who reads it waits for it there. */
static bool mark_read(struct nr_pipe_run *run, uint32_t tensor, uint32_t level)
{
    int32_t from = run->pipeline->graph->tensors[tensor].step;
    run->wanted[tensor] = true;
    if (from < 0) {
        return false;
    }
    const struct nr_member *m = &run->members[from];
    run->plan[from].holds++;
    if (nr_pipe_tensor_level(m) == level) {
        return true;
    }
    if (!m->decoupled && !run->deep[tensor]) {
        run->deep[tensor] = true;
        run->n_deep[m->level]++;
    }
    return false;
}

/* Which tensors and steps the request needs, backwards from the outputs that it asks for. */
static void mark_needed(struct nr_pipe_run *run)
{
    const struct nr_ensemble *e = run->pipeline->graph;
    const struct nr_infer_request *in = run->r->in;
    for (unsigned i = 0; i < in->n_outputs; i++) {
        int32_t from = e->tensors[e->outputs[in->outputs[i].index]].step;
        run->depth = NR_MAX(run->depth, nr_pipe_tensor_level(&run->members[from]));
    }
    for (unsigned i = 0; i < in->n_outputs; i++) {
        (void)mark_read(run, e->outputs[in->outputs[i].index], run->depth);
    }
    for (uint32_t n = e->n_steps; n > 0; n--) {
        uint32_t i = e->order[n - 1];
        const struct nr_ensemble_step *s = &e->steps[i];
        struct nr_pipe_plan *plan = &run->plan[i];
        for (uint32_t k = 0; k < s->n_outputs && !plan->needed; k++) {
            plan->needed = run->wanted[s->outputs[k].tensor];
        }
        for (uint32_t k = 0; k < s->n_inputs && plan->needed; k++) {
            plan->waits += mark_read(run, s->inputs[k].tensor, run->members[i].level);
        }
    }
}

/* What a run with decoupled members keeps of each level. */
static void make_levels(struct nr_pipe_run *run)
{
    struct nr_arena *a = run->r->arena;
    uint32_t n = run->n_steps;
    uint32_t *at = nr_arena_zalloc(a, n * sizeof(*at));
    for (uint32_t i = 0; i < n; i++) {
        if (run->members[i].decoupled) {
            at[run->members[i].level] = i;
        }
    }
    run->decoupled_at = at;
    run->deep = nr_arena_zalloc(a, run->pipeline->graph->n_tensors * sizeof(*run->deep));
    run->n_deep = nr_arena_zalloc(a, (n + 1) * sizeof(*run->n_deep));
    run->n_alive = nr_arena_zalloc(a, (n + 1) * sizeof(*run->n_alive));
}

static struct nr_pipe_run *new_run(struct nr_pipeline *p, struct nr_request *r,
                                   const struct nr_catalog_version *entry)
{
    const struct nr_ensemble *e = p->graph;
    struct nr_pipe_run *run = nr_arena_new(r->arena, struct nr_pipe_run);
    struct nr_pipe_scope *root = &run->root;
    run->pipeline = p;
    run->r = r;
    run->members = entry->members;
    run->n_steps = e->n_steps;
    run->plan = nr_arena_zalloc(r->arena, e->n_steps * sizeof(*run->plan));
    run->wanted = nr_arena_zalloc(r->arena, e->n_tensors * sizeof(*run->wanted));
    nr_list_init(&run->scopes);
    nr_list_init(&run->runnable);
    nr_list_init(&run->waiting);
    if (entry->decoupled) {
        make_levels(run);
    }
    mark_needed(run);
    root->steps = nr_arena_zalloc(r->arena, e->n_steps * sizeof(*root->steps));
    root->values = nr_arena_zalloc(r->arena, e->n_tensors * sizeof(*root->values));
    root->ready = nr_arena_alloc(r->arena, e->n_steps * sizeof(*root->ready));
    nr_pipe_scope_init(root, run, NULL);
    for (uint32_t n = 0; n < e->n_steps; n++) {
        const struct nr_pipe_plan *plan = &run->plan[e->order[n]];
        if (plan->needed && plan->waits == 0) {
            root->ready[root->n_ready++] = e->order[n];
        }
    }
    nr_list_append(&run->runnable, &root->ready_node);
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
    struct nr_pipe_run *run = new_run(p, r, entry);
    r->at_target = run;
    atomic_store_explicit(&r->state, NR_REQUEST_RUNNING, memory_order_relaxed);
    count_running(p, r->loop, 1);
    for (unsigned i = 0; i < r->in->n_inputs; i++) {
        run->root.values[r->in->inputs[i].index] = &r->in->inputs[i];
    }
    nr_pipe_pump(run);
}

static void cancel(struct nr_target *t, struct nr_request *r, nr_status status, bool running_too)
{
    (void)t;
    struct nr_pipe_run *run = r->at_target;
    if (run == NULL) {
        return;
    }
    run->cancelled = run->cancelled == NARU_OK ? status : run->cancelled;
    cancel_scopes(run, status, running_too);
    nr_pipe_pump(run);
}

/* --- life ------------------------------------------------------------------------------------- */

struct nr_pipeline *nr_pipeline_new(const struct nr_pipeline_cfg *cfg)
{
    struct nr_pipeline *p = nr_new(struct nr_pipeline);
    p->cfg = *cfg;
    p->target = (struct nr_target){.submit = submit, .cancel = cancel};
    p->graph = cfg->version->config->ensemble;
    p->max_forks = p->graph->max_inflight > 0 ? NR_MIN(p->graph->max_inflight, NR_ANSWER_WINDOW)
                                              : NR_ANSWER_WINDOW;
    p->counters = nr_counters_new(cfg->n_loops, cfg->version->config->sig.max_batch_size);
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
