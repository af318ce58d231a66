/* See strategy.h.
 *
 * DESIGN. The default plan is made first: the strategy is told it, and it is what happens when the
 * answer cannot be taken. The window holds the requests that may join the first one, in the queue's order, so
 * a strategy never sees what it could not take. It ends when they have twice the rows of a batch: who
 * passes some by still has others to choose from.
 *
 * INVARIANTS
 *  1. window[i] describes requests[i]; both hold for the queue as it was when the plan was made.
 *  2. Nothing is allocated after nr_strategy_new.
 */
#include "sched/strategy.h"

#include <string.h>

#include "base/log.h"
#include "base/map.h"
#include "base/mem.h"

#define MAX_LOOKED_AT 4096 /* of the queue, under its lock */

struct nr_strategy {
    struct nr_batching batching;
    uint64_t refused;
    uint32_t n;
    naru_waiting window[NR_STRATEGY_WINDOW];
    struct nr_request *requests[NR_STRATEGY_WINDOW];
    uint8_t skip[NR_STRATEGY_WINDOW];
};

struct nr_strategy *nr_strategy_new(struct nr_batching *batching)
{
    struct nr_strategy *s = nr_new(struct nr_strategy);
    s->batching = *batching;
    *batching = (struct nr_batching){0};
    return s;
}

void nr_strategy_free(struct nr_strategy *s)
{
    if (s) {
        nr_batching_close(&s->batching);
        nr_free(s);
    }
}

uint64_t nr_strategy_refused(const struct nr_strategy *s)
{
    return s->refused;
}

static uint64_t shape_key(const struct nr_infer_request *in)
{
    uint64_t key = in->n_inputs;
    for (unsigned i = 0; i < in->n_inputs; i++) {
        const struct nr_infer_tensor *t = &in->inputs[i];
        const uint64_t parts[] = {key, t->index, (uint64_t)t->dtype, t->rank};
        key = nr_hash(parts, sizeof parts);
        if (t->rank > 1) {
            const uint64_t more[] = {key,
                                     nr_hash(t->shape + 1, (t->rank - 1) * sizeof t->shape[0])};
            key = nr_hash(more, sizeof more);
        }
    }
    return key;
}

static naru_waiting describe(const struct nr_request *r)
{
    uint64_t elements = 0;
    for (unsigned i = 0; i < r->in->n_inputs; i++) {
        elements += (uint64_t)r->in->inputs[i].elements;
    }
    return (naru_waiting){.queued_ns = r->queued_ns,
                          .deadline_ns = r->leaves_ns != 0 ? r->leaves_ns : r->deadline_ns,
                          .bytes = r->bytes,
                          .elements = elements,
                          .shape_key = shape_key(r->in),
                          .options = r->options,
                          .n_options = r->n_options,
                          .rows = (uint32_t)r->in->rows,
                          .level = r->level};
}

/* Fills the window; true when it does not hold all that waits. */
static bool look(struct nr_strategy *s, const struct nr_batch_rules *rules,
                 const struct nr_list *queue)
{
    const struct nr_infer_request *first = NULL;
    int64_t rows = 0;
    unsigned looked_at = 0;
    bool cut = false;
    s->n = 0;
    NR_LIST_FOREACH (node, queue) {
        struct nr_request *r =
            nr_container_of((struct nr_list *)(uintptr_t)node, struct nr_request, node);
        first = first ? first : r->in;
        if (s->n == NR_STRATEGY_WINDOW || rows >= 2 * rules->max_rows ||
            ++looked_at > MAX_LOOKED_AT) {
            return true;
        }
        if (!nr_batcher_joins(rules, first, r->in)) {
            cut = true;
            if (rules->in_order) {
                return true;
            }
            continue;
        }
        s->window[s->n] = describe(r);
        s->requests[s->n++] = r;
        rows += r->in->rows;
    }
    return cut;
}

struct nr_batch_plan nr_strategy_plan(struct nr_strategy *s, const struct nr_batch_rules *rules,
                                      const struct nr_list *queue, int64_t now_ns)
{
    struct nr_batch_plan plan = nr_batcher_plan(rules, queue, now_ns);
    bool cut = look(s, rules, queue);
    naru_window w = {.struct_size = sizeof w,
                     .n = s->n,
                     .requests = s->window,
                     .now_ns = now_ns,
                     .max_rows = rules->max_rows,
                     .flags = (rules->in_order ? NARU_WINDOW_IN_ORDER : 0u) |
                              (cut ? NARU_WINDOW_CUT : 0u),
                     .default_n = NR_MIN(plan.n_requests, s->n),
                     .default_wait_until_ns = plan.n_requests == 0 ? plan.wait_until_ns : 0};
    naru_choice c = {.struct_size = sizeof c, .skip = s->skip};
    memset(s->skip, 0, s->n);
    int64_t rows = 0;
    const char *breach = s->batching.api->plan(s->batching.model, &w, &c) != NARU_OK
                             ? "it failed"
                             : nr_batching_breach(&w, &c, &rows);
    if (breach != NULL) {
        s->refused++;
        nr_log(NR_LOG_DEBUG, "sched", "a batching strategy's answer was refused",
               NR_KV_TEXT("strategy", s->batching.api->name), NR_KV_TEXT("reason", breach));
        return plan;
    }
    if (c.n == 0) {
        return (struct nr_batch_plan){.wait_until_ns = c.wait_until_ns};
    }
    unsigned taken = 0;
    for (uint32_t i = 0; i < c.n; i++) {
        s->requests[taken] = s->requests[i];
        taken += s->skip[i] == 0;
    }
    return (struct nr_batch_plan){.n_requests = taken, .rows = rows, .why = NR_SEAL_STRATEGY};
}

void nr_strategy_take(struct nr_strategy *s, const struct nr_batch_rules *rules,
                      const struct nr_batch_plan *plan, struct nr_queue *q, struct nr_list *ret)
{
    if (plan->why != NR_SEAL_STRATEGY) {
        nr_batcher_take(rules, plan, q, ret);
        return;
    }
    for (unsigned i = 0; i < plan->n_requests; i++) {
        nr_queue_take(q, s->requests[i]);
        nr_list_append(ret, &s->requests[i]->node);
    }
}
