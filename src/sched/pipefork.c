/* Decoupled steps of a pipeline: a scope for each of their answers, and answers to the client.
 *
 * DESIGN. Each answer of a decoupled step forks its scope: a scope of the next level with a copy of the
 * values so far (pointers) and the answer's tensors runs what comes behind. Scopes below one scope are
 * kept in the order of the answers that they were forked for, and a tree of lists gives the order for
 * the client: always the first scope of the first scope …, down to a leaf. A failure takes its place
 * in that order, too: answers before it are given, nothing behind it.
 *
 * Back-pressure. A scope holds the answer that it was forked for until its own answers have been ended
 * by the client's reader, and at most max_forks scopes of a level are alive. So a reader that is slow holds
 * the forks, those hold the answers, and the scheduler of the decoupled model makes it wait. Answers
 * that came and were not forked are as many as that scheduler's window for each request, at most.
 * One place of each level is kept for the scopes whose turn it is (the first of the first …): what
 * runs ahead can never keep what must come first from running, however deep the levels are.
 *
 * Invariants, words: pipeline_priv.h. Threads: loop of the request.
 */
#include <string.h>

#include "base/buf.h"
#include "sched/pipeline_priv.h"
#include "sched/sched_priv.h"

/* --- a scope's life --------------------------------------------------------------------------- */

static struct nr_pipe_scope *in_order(struct nr_list *node)
{
    return nr_container_of(node, struct nr_pipe_scope, order_node);
}

void nr_pipe_scope_init(struct nr_pipe_scope *s, struct nr_pipe_run *run, struct nr_pipe_scope *up)
{
    s->run = run;
    s->up = up;
    s->level = up != NULL ? up->level + 1 : 0;
    s->n_open = run->n_deep != NULL ? run->n_deep[s->level] : 0;
    nr_list_init(&s->ready_node);
    nr_list_init(&s->wait_node);
    nr_list_init(&s->order_node);
    nr_list_init(&s->subs);
    nr_list_init(&s->pending);
    nr_list_append(&run->scopes, &s->node);
    for (uint32_t i = 0; i < run->n_steps; i++) {
        nr_arena_init(&s->steps[i].arena, 0);
        s->steps[i].waits = run->plan[i].waits;
        s->steps[i].holds = run->plan[i].holds;
    }
}

static struct nr_pipe_scope *scope_new(struct nr_pipe_scope *up)
{
    struct nr_pipe_run *run = up->run;
    uint32_t n_tensors = run->pipeline->graph->n_tensors;
    struct nr_arena a;
    nr_arena_init(&a, 0);
    struct nr_pipe_scope *s = nr_arena_new(&a, struct nr_pipe_scope);
    s->steps = nr_arena_zalloc(&a, run->n_steps * sizeof(*s->steps));
    s->ready = nr_arena_alloc(&a, run->n_steps * sizeof(*s->ready));
    s->values = nr_arena_alloc(&a, n_tensors * sizeof(*s->values));
    memcpy(s->values, up->values, n_tensors * sizeof(*s->values));
    s->arena = a;
    nr_pipe_scope_init(s, run, up);
    nr_list_append(&up->subs, &s->order_node);
    up->n_subs++;
    run->n_alive[s->level]++;
    return s;
}

/* Invariant 4: s, and then those above it that waited for it only. */
static void try_free(struct nr_pipe_scope *s)
{
    while (s->up != NULL && s->given && !s->held && s->n_subs == 0) {
        struct nr_pipe_scope *up = s->up;
        struct nr_pipe_run *run = s->run;
        nr_list_remove(&s->node);
        nr_list_remove(&s->ready_node);
        nr_list_remove(&s->wait_node);
        for (uint32_t i = 0; i < run->n_steps; i++) {
            nr_arena_done(&s->steps[i].arena);
        }
        run->n_alive[s->level]--;
        up->n_subs--;
        struct nr_answer *from = s->from;
        struct nr_arena a = s->arena;
        nr_arena_done(&a); /* s is gone */
        nr_answer_done(from);
        s = up;
    }
}

void nr_pipe_drop_pending(struct nr_pipe_scope *s)
{
    struct nr_list *n;
    nr_list_remove(&s->wait_node);
    while ((n = nr_list_pop(&s->pending)) != NULL) {
        nr_answer_done(nr_container_of(n, struct nr_answer, node));
    }
}

void nr_pipe_drop_scopes(struct nr_pipe_run *run)
{
    /* From the end: a scope above s comes later, and is not given yet. */
    for (struct nr_list *n = run->scopes.prev, *prev = n->prev; n != &run->scopes;
         n = prev, prev = n->prev) {
        struct nr_pipe_scope *s = nr_container_of(n, struct nr_pipe_scope, node);
        nr_pipe_drop_pending(s);
        if (!s->given && s->up != NULL) {
            s->given = true;
            nr_list_remove(&s->order_node);
            try_free(s);
        }
    }
}

/* --- forks ------------------------------------------------------------------------------------ */

/* Whether its leaves are the next to answer. */
static bool is_first(const struct nr_pipe_scope *s)
{
    while (s->up != NULL && s->up->subs.next == &s->order_node) {
        s = s->up;
    }
    return s->up == NULL;
}

static bool may_fork(const struct nr_pipe_scope *s)
{
    const struct nr_pipe_run *run = s->run;
    uint32_t n = run->n_alive[s->level + 1], max = run->pipeline->max_forks;
    return !nr_pipe_is_dead(run) && !s->stopped && s->n_open == 0 &&
           (n + 1 < max || (n < max && is_first(s)));
}

static const struct nr_infer_tensor *output_of(const struct nr_answer *a, uint32_t index)
{
    for (unsigned k = 0; k < a->n_outputs; k++) {
        if (a->outputs[k].index == index) {
            return &a->outputs[k];
        }
    }
    return NULL;
}

static void fork_one(struct nr_pipe_scope *up)
{
    struct nr_pipe_run *run = up->run;
    uint32_t step = run->decoupled_at[up->level];
    const struct nr_member *m = &run->members[step];
    struct nr_pipe_scope *s = scope_new(up);
    s->from = nr_container_of(nr_list_pop(&up->pending), struct nr_answer, node);
    for (uint32_t k = 0; k < run->pipeline->graph->steps[step].n_outputs; k++) {
        if (run->wanted[m->outputs[k].tensor]) {
            nr_pipe_settle(s, m->outputs[k].tensor, output_of(s->from, m->outputs[k].index));
        }
    }
}

bool nr_pipe_fork(struct nr_pipe_run *run)
{
    bool any = false;
    NR_LIST_FOREACH_SAFE (n, next, &run->waiting) {
        struct nr_pipe_scope *s = nr_container_of(n, struct nr_pipe_scope, wait_node);
        while (!nr_list_empty(&s->pending) && may_fork(s)) {
            fork_one(s);
            any = true;
        }
        if (nr_list_empty(&s->pending)) {
            nr_list_remove(&s->wait_node);
        }
    }
    return any;
}

void nr_pipe_on_answer(struct nr_request *q, struct nr_answer *answer)
{
    struct nr_pipe_scope *s = nr_container_of(q, struct nr_pipe_child, request)->scope;
    struct nr_pipe_run *run = s->run;
    s->last_seen = s->last_seen || answer->final;
    if (answer->n_outputs == 0 || s->stopped || nr_pipe_is_dead(run)) {
        nr_answer_done(answer);
        return;
    }
    nr_list_append(&s->pending, &answer->node);
    if (nr_list_empty(&s->wait_node)) {
        nr_list_append(&run->waiting, &s->wait_node);
    }
    nr_pipe_pump(run);
}

/* --- answers ---------------------------------------------------------------------------------- */

static void on_room(struct nr_msg *m)
{
    struct nr_pipe_run *run = nr_container_of(m, struct nr_pipe_run, msg);
    run->posted = false;
    nr_pipe_pump(run);
}

/* The reader is in the midst of its own work: what can go on now goes on with the next turn. */
static void answer_done(struct nr_answer *answer)
{
    struct nr_pipe_scope *s = nr_container_of(answer, struct nr_pipe_scope, answer);
    struct nr_pipe_run *run = s->run;
    s->held = false;
    try_free(s);
    if (!run->over && !run->busy && !run->posted && !nr_list_empty(&run->waiting)) {
        run->posted = true;
        run->msg.run = on_room;
        nr_loop_post(run->r->loop, &run->msg);
    }
}

/* Whether no scope will come behind s, which has left the order. */
static bool is_last(const struct nr_pipe_scope *s)
{
    const struct nr_list *self = NULL;
    for (s = s->up; s != NULL; s = s->up) {
        const struct nr_list *first = s->subs.next;
        bool alone = self == NULL ? first == &s->subs : first == self && self->next == &s->subs;
        if (!alone || !nr_list_empty(&s->pending) || s->status != NARU_OK ||
            (s->in_flight > 0 && !s->last_seen)) {
            return false;
        }
        self = &s->order_node;
    }
    return true;
}

/* Of a leaf: the outputs asked for that it has, under the pipeline's indexes. */
static struct nr_infer_tensor *outputs_of(struct nr_pipe_scope *s, unsigned *ret_n)
{
    const struct nr_infer_request *in = s->run->r->in;
    const struct nr_ensemble *e = s->run->pipeline->graph;
    struct nr_infer_tensor *out = nr_arena_alloc(&s->arena, in->n_outputs * sizeof(*out));
    unsigned n = 0;
    for (unsigned i = 0; i < in->n_outputs; i++) {
        uint32_t index = in->outputs[i].index;
        const struct nr_infer_tensor *value = s->values[e->outputs[index]];
        if (value != NULL) {
            out[n] = *value;
            out[n++].index = index;
        }
    }
    *ret_n = n;
    return out;
}

/* For who asked for one answer: it is the request's, whose arena gets the bytes. */
static void take_only(struct nr_pipe_scope *s, const struct nr_infer_tensor *outputs, unsigned n)
{
    struct nr_pipe_run *run = s->run;
    struct nr_request *r = run->r;
    if (run->has_only) {
        nr_pipe_fail(run, NARU_INVALID, nr_str_from(nr_flow_too_many), NR_FAIL_OTHER);
        return;
    }
    run->has_only = true;
    for (unsigned i = 0; i < n; i++) {
        struct nr_infer_tensor *to = &r->outputs[i];
        *to = outputs[i];
        if (to->buf != NULL) {
            nr_arena_link(r->arena, nr_buf_ref(to->buf));
            continue;
        }
        uint8_t *copy = nr_arena_try_alloc(r->arena, to->bytes);
        if (copy == NULL) {
            nr_pipe_fail(run, NARU_NOMEM, NR_STR("no memory for the answer"), NR_FAIL_OTHER);
            return;
        }
        if (to->bytes > 0) {
            memcpy(copy, to->data, to->bytes);
        }
        to->data = copy;
    }
    r->n_outputs = n;
}

/* A leaf whose turn it is. Where naru.if left nothing of what was asked for there is no answer. */
static void answer(struct nr_pipe_scope *s)
{
    struct nr_request *r = s->run->r;
    unsigned n;
    struct nr_infer_tensor *outputs = outputs_of(s, &n);
    if (n > 0 && r->on_answer != NULL) {
        s->held = true;
        s->answer = (struct nr_answer){.done = answer_done,
                                       .request = r,
                                       .outputs = outputs,
                                       .n_outputs = n,
                                       .final = is_last(s)};
        nr_list_init(&s->answer.node);
        r->on_answer(r, &s->answer); /* s may be gone */
        return;
    }
    if (n > 0) {
        take_only(s, outputs, n);
    }
    try_free(s);
}

static bool is_at_rest(const struct nr_pipe_scope *s)
{
    return s->in_flight == 0 && nr_list_empty(&s->pending) &&
           (s->stopped || s->n_started == s->n_ready);
}

bool nr_pipe_give(struct nr_pipe_run *run)
{
    bool any = false;
    while (!nr_pipe_is_dead(run)) {
        struct nr_pipe_scope *s = &run->root;
        while (!nr_list_empty(&s->subs)) {
            s = in_order(s->subs.next);
        }
        if (!is_at_rest(s)) {
            break;
        }
        if (s->status != NARU_OK) {
            run->r->retry_after_s = s->retry_after_s;
            nr_pipe_fail(run, s->status, s->error, s->reason);
            break;
        }
        if (s->up == NULL) {
            break;
        }
        any = true;
        s->given = true;
        nr_list_remove(&s->order_node);
        if (s->level == run->depth) {
            answer(s);
        } else {
            try_free(s);
        }
    }
    return any;
}
