/* How the next batch is formed.
 *
 * DESIGN. The plan is made only when an instance is free, so "run at once when idle, form batches
 * while others run" needs no rule of its own: with no delay configured, whatever is queued at that
 * moment goes. A delay or preferred sizes, where the configuration asks for them, hold a batch back
 * as Triton does (model_config.proto, ModelDynamicBatching): a preferred size is sealed as soon as
 * it is reached, anything else when the oldest request has waited the delay.
 *
 * INVARIANTS
 *  1. The order of requests is kept: a batch is always a prefix of the queue.
 *  2. A plan never holds more than max_rows rows, and always at least one request when it holds
 *     any (a single request larger than max_rows was refused at decoding).
 *  3. A batch holds compatible requests only.
 */
#include "sched/batcher.h"

#include <string.h>

#include "base/status.h"

const char *nr_seal_text(nr_seal why)
{
    static const char *const texts[] = {
#define NR_SEAL_TEXT(symbol, text) text,
        NR_SEAL_MAP(NR_SEAL_TEXT)
#undef NR_SEAL_TEXT
    };
    return (unsigned)why < NR_COUNT(texts) ? texts[why] : "unknown";
}

bool nr_batcher_compatible(const struct nr_infer_request *a, const struct nr_infer_request *b)
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
        if (ta->rank > 1 &&
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

/* The longest prefix that may run together, and what ended it. NR_SEAL_IDLE: the queue did. */
struct prefix {
    unsigned n;
    int64_t rows;
    unsigned n_preferred; /* the part of it that makes the largest preferred size, 0: none */
    int64_t rows_preferred;
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

static struct prefix longest_prefix(const struct nr_batch_rules *rules, const struct nr_list *queue)
{
    struct prefix p = {.end = NR_SEAL_IDLE};
    const struct nr_request *first = request_of(queue->next);
    NR_LIST_FOREACH (node, queue) {
        const struct nr_request *r = request_of(node);
        if (p.n > 0 && p.rows + r->in->rows > rules->max_rows) {
            p.end = p.rows == rules->max_rows ? NR_SEAL_FULL : NR_SEAL_NEXT_TOO_BIG;
            return p;
        }
        if (p.n > 0 && !nr_batcher_compatible(first->in, r->in)) {
            p.end = NR_SEAL_SHAPE;
            return p;
        }
        p.n++;
        p.rows += r->in->rows;
        if (is_preferred(rules, p.rows)) {
            p.n_preferred = p.n;
            p.rows_preferred = p.rows;
        }
    }
    if (p.rows >= rules->max_rows) {
        p.end = NR_SEAL_FULL;
    }
    return p;
}

struct nr_batch_plan nr_batcher_plan(const struct nr_batch_rules *rules,
                                     const struct nr_list *queue, int64_t now_ns)
{
    struct nr_batch_plan plan = {0};
    if (nr_list_empty(queue)) {
        return plan;
    }
    const struct nr_request *first = request_of(queue->next);
    if (!rules->batching) {
        return (struct nr_batch_plan){
            .n_requests = 1, .rows = first->in->rows, .why = NR_SEAL_SINGLE};
    }
    struct prefix p = longest_prefix(rules, queue);
    struct nr_batch_plan all = {.n_requests = p.n, .rows = p.rows, .why = p.end};
    int64_t due_ns = first->queued_ns + rules->delay_ns;
    /* A prefix that cannot grow is not held back; else the largest preferred size goes at once. */
    if (p.end != NR_SEAL_IDLE) {
        return all;
    }
    if (p.n_preferred > 0) {
        return (struct nr_batch_plan){
            .n_requests = p.n_preferred, .rows = p.rows_preferred, .why = NR_SEAL_PREFERRED};
    }
    if (rules->delay_ns == 0) {
        return all;
    }
    if (now_ns >= due_ns) {
        all.why = NR_SEAL_DELAY;
        return all;
    }
    plan.wait_until_ns = due_ns;
    return plan;
}
