/* Inline executions: what was submitted during one turn of a loop runs at its end, on its thread.
 *
 * DESIGN. The turn hook runs pending requests as long as the placement is inline, nothing older
 * waits in the queue, a place is free and the turn's budget lasts. What exceeds the budget waits for
 * the next turn, so that other connections are served in between; everything else goes to the
 * queue. The budget is the thread's, not the model's: ten inline models share one turn.
 *
 * THREADS. A turn belongs to its loop; placement and idle places are read under the scheduler's lock.
 */
#include "base/clock.h"
#include "sched/sched_priv.h"

/* Time spent in inline executions during the current turn of the loop this thread runs. */
static _Thread_local struct {
    int64_t turn_ns; /* nr_loop_now of the turn */
    int64_t used_ns;
} budget;

static void flush_to_queue(struct nr_turn *turn)
{
    struct nr_list *node;
    while ((node = nr_list_pop(&turn->pending)) != NULL) {
        nr_sched_enqueue(turn->sched, nr_request_of(node));
    }
}

/* A place for an inline run: the loop's own, else an idle one. NULL: older requests wait in the
 * queue, none is idle, or the model is not inline any more. */
static struct nr_place *take_inline_place(struct nr_turn *turn)
{
    struct nr_sched *s = turn->sched;
    struct nr_place *p = NULL;
    pthread_mutex_lock(&s->lock);
    if (s->placement.is_inline && s->queue.n == 0) {
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

static void give_back_inline_place(struct nr_turn *turn, struct nr_place *p)
{
    struct nr_sched *s = turn->sched;
    nr_place_rest(p);
    pthread_mutex_lock(&s->lock);
    s->n_running--;
    if (p != turn->place) {
        nr_list_append(&s->idle, &p->node);
    }
    pthread_mutex_unlock(&s->lock);
}

/* The part of a plan that the rest of the turn's budget allows; n_requests 0: nothing. The first
 * batch of a turn gets one request at least, whatever is expected of it. */
static void fit_budget(const struct nr_turn *turn, struct nr_batch_plan *plan)
{
    int64_t left_ns = turn->sched->cfg.placement.budget_ns - budget.used_ns;
    if (nr_placement_expect(&turn->placement, plan->rows) <= left_ns) {
        return;
    }
    unsigned n = 0;
    int64_t rows = 0;
    NR_LIST_FOREACH (node, &turn->pending) {
        int64_t more = rows + nr_request_of(node)->in->rows;
        if (n == plan->n_requests || nr_placement_expect(&turn->placement, more) > left_ns) {
            break;
        }
        n++;
        rows = more;
    }
    if (n == 0 && budget.used_ns == 0) {
        n = 1;
        rows = nr_request_of(turn->pending.next)->in->rows;
    }
    plan->n_requests = n;
    plan->rows = rows;
}

/* One batch on this thread. False when the turn's budget does not allow another. */
static bool run_inline(struct nr_turn *turn, struct nr_place *p, int64_t now_ns)
{
    struct nr_sched *s = turn->sched;
    struct nr_batch_plan plan = nr_batcher_plan(&s->turn_rules, &turn->pending, now_ns);
    struct nr_list refused;
    fit_budget(turn, &plan);
    if (plan.n_requests == 0) {
        return false;
    }
    nr_list_init(&refused);
    p->is_inline = true;
    p->begin_ns = now_ns;
    p->rows = plan.rows;
    nr_place_fill(p, &turn->pending, plan.n_requests, &refused);
    struct nr_list *node;
    while ((node = nr_list_pop(&refused)) != NULL) {
        nr_request_complete(nr_request_of(node));
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
    nr_sched_observe(s, p, cpu_ns);
    turn->placement = s->placement;
    pthread_mutex_unlock(&s->lock);
    while (NR_UNLIKELY(nr_place_deliver(p))) { /* the batch had failed as a whole */
        p->infer_begin_ns = nr_clock_now();
        st = nr_batch_run(p->batch, p->instance);
        NR_ASSERT(st != NARU_PENDING);
        p->infer_end_ns = nr_clock_now();
    }
    return true;
}

void nr_turn_run(struct nr_turn_hook *h)
{
    struct nr_turn *turn = nr_container_of(h, struct nr_turn, hook);
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
