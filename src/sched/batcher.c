/* How the next batch is formed.
 *
 * DESIGN. The plan is made only when an instance is free, so "run at once when idle, form batches
 * while others run" needs no rule of its own: with no delay configured, whatever is queued at that
 * moment goes. A delay or preferred sizes, where the configuration asks for them, hold a batch back
 * as Triton does (model_config.proto, ModelDynamicBatching): a preferred size is sealed as soon as
 * it is reached, anything else when the oldest request has waited the delay.
 *
 * Requests of other shapes or with other optional inputs do not end a batch: those behind them that
 * fit join it. The first of the queue is always in the next batch, so everybody who is passed by
 * waits for those before him at most: each batch takes one of them away. A request of the same
 * shapes that is too large does end it, else small ones would pass it although it came first.
 * While others wait, a batch is not held back for its delay: they could use the time.
 *
 * INVARIANTS
 *  1. The first request of the queue is in the batch, and requests that fit together keep their
 *     order; with in_order a batch is a prefix of the queue.
 *  2. A plan never holds more than max_rows rows, and always at least one request when it holds
 *     any (a single request larger than max_rows was refused at decoding).
 *  3. A batch holds compatible requests only.
 */
#include "sched/batcher.h"

#include <string.h>

#include "base/status.h"

/* Requests of other shapes that a plan looks at: it is made under the scheduler's lock. */
#define MAX_PASSED 64

const char *nr_seal_text(nr_seal why)
{
    static const char *const texts[] = {
#define NR_SEAL_TEXT(symbol, text) text,
        NR_SEAL_MAP(NR_SEAL_TEXT)
#undef NR_SEAL_TEXT
    };
    return (unsigned)why < NR_COUNT(texts) ? texts[why] : "unknown";
}

bool nr_batcher_joins(const struct nr_batch_rules *rules, const struct nr_infer_request *a,
                      const struct nr_infer_request *b)
{
    if (a->n_inputs != b->n_inputs) {
        return false;
    }
    for (unsigned i = 0; i < a->n_inputs; i++) {
        const struct nr_infer_tensor *ta = &a->inputs[i];
        const struct nr_infer_tensor *tb = &b->inputs[i];
        if (ta->index != tb->index || ta->dtype != tb->dtype || ta->rank != tb->rank) {
            return false;
        }
        if (ta->rank > 1 && (rules->ragged == NULL || !rules->ragged[ta->index].ragged) &&
            memcmp(ta->shape + 1, tb->shape + 1, (ta->rank - 1) * sizeof(ta->shape[0])) != 0) {
            return false;
        }
    }
    return true;
}

static const struct nr_request *request_of(const struct nr_list *node)
{
    return nr_container_of_const(node, struct nr_request, node);
}

/* The most that may run together, and what ended it. NR_SEAL_IDLE: the queue did. */
struct group {
    unsigned n;
    int64_t rows;
    unsigned n_preferred; /* the part of it that makes the largest preferred size, 0: none */
    int64_t rows_preferred;
    int64_t oldest_ns; /* when the first of them was queued */
    bool scattered;
    nr_seal end;
};

static bool is_preferred(const struct nr_batch_rules *rules, int64_t rows)
{
    for (unsigned i = 0; i < rules->n_preferred; i++) {
        if (rules->preferred[i] == rows) {
            return true;
        }
    }
    return false;
}

static struct group largest_group(const struct nr_batch_rules *rules, const struct nr_list *queue)
{
    struct group g = {.oldest_ns = INT64_MAX, .end = NR_SEAL_IDLE};
    const struct nr_request *first = request_of(queue->next);
    unsigned passed = 0;
    NR_LIST_FOREACH (node, queue) {
        const struct nr_request *r = request_of(node);
        if (g.n > 0 && g.rows >= rules->max_rows) {
            g.end = NR_SEAL_FULL;
            return g;
        }
        if (g.n > 0 && !nr_batcher_joins(rules, first->in, r->in)) {
            g.end = NR_SEAL_SHAPE;
            if (rules->in_order || ++passed > MAX_PASSED) {
                return g;
            }
            continue;
        }
        if (g.n > 0 && g.rows + r->in->rows > rules->max_rows) {
            g.end = NR_SEAL_NEXT_TOO_BIG;
            return g;
        }
        g.n++;
        g.rows += r->in->rows;
        g.scattered = passed > 0;
        g.oldest_ns = NR_MIN(g.oldest_ns, r->queued_ns);
        if (is_preferred(rules, g.rows)) {
            g.n_preferred = g.n;
            g.rows_preferred = g.rows;
        }
    }
    if (g.rows >= rules->max_rows) {
        g.end = NR_SEAL_FULL;
    }
    return g;
}

struct nr_batch_plan nr_batcher_plan(const struct nr_batch_rules *rules,
                                     const struct nr_list *queue, int64_t now_ns)
{
    struct nr_batch_plan plan = {0};
    if (nr_list_empty(queue)) {
        return plan;
    }
    if (!rules->batching) {
        return (struct nr_batch_plan){
            .n_requests = 1, .rows = request_of(queue->next)->in->rows, .why = NR_SEAL_SINGLE};
    }
    struct group g = largest_group(rules, queue);
    struct nr_batch_plan all = {
        .n_requests = g.n, .rows = g.rows, .scattered = g.scattered, .why = g.end};
    /* One that cannot grow is not held back; else the largest preferred size goes at once. */
    if (g.end != NR_SEAL_IDLE) {
        return all;
    }
    if (g.n_preferred > 0) {
        return (struct nr_batch_plan){.n_requests = g.n_preferred,
                                      .rows = g.rows_preferred,
                                      .scattered = g.scattered,
                                      .why = NR_SEAL_PREFERRED};
    }
    if (rules->delay_ns == 0) {
        return all;
    }
    int64_t due_ns = g.oldest_ns + rules->delay_ns;
    if (now_ns >= due_ns) {
        all.why = NR_SEAL_DELAY;
        return all;
    }
    plan.wait_until_ns = due_ns;
    return plan;
}

void nr_batcher_take(const struct nr_batch_rules *rules, const struct nr_batch_plan *plan,
                     struct nr_queue *q, struct nr_list *ret)
{
    struct nr_list *node = q->order.next;
    const struct nr_infer_request *first = request_of(node)->in;
    for (unsigned n = 0; n < plan->n_requests;) {
        struct nr_request *r = nr_container_of(node, struct nr_request, node);
        node = node->next;
        if (plan->scattered && !nr_batcher_joins(rules, first, r->in)) {
            continue;
        }
        nr_queue_take(q, r);
        nr_list_append(ret, &r->node);
        n++;
    }
}
