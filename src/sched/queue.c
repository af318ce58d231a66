/* See queue.h for what the order means.
 *
 * DESIGN. A part of the list (a level, in time or delayed) is known by its last node only: the node
 * before its first one is the last of the nearest part before it that is not empty. So putting,
 * taking and removing touch neighbours and one pointer, and nobody who walks the list needs to know
 * about parts. A place in the middle of a part is searched from the end that is nearer by tags.
 *
 * INVARIANTS
 *  1. Parts stand in the order of their numbers; within part 2k tags do not fall.
 *  2. part[p].last is the last node whose request has r->part == p, NULL when there is none.
 *  3. A request is in the heap iff it has a time limit that is still ahead of it, at heap[heap_at - 1].
 *  4. Of one client and level, requests in time stand in the order in which they were put.
 */
#include "sched/queue.h"

#include <string.h>

#include "base/mem.h"

static struct nr_request *request_of(struct nr_list *node)
{
    return nr_container_of(node, struct nr_request, node);
}

static bool is_delayed(const struct nr_request *r)
{
    return (r->part & 1u) != 0;
}

void nr_queue_init(struct nr_queue *q, const struct nr_queue_rules *rules, unsigned n_levels,
                   unsigned default_level, bool in_order)
{
    NR_ASSERT(n_levels >= 1 && n_levels <= NR_QUEUE_MAX_LEVELS && default_level < n_levels);
    *q = (struct nr_queue){
        .n_levels = n_levels, .default_level = default_level, .in_order = in_order};
    nr_list_init(&q->order);
    q->levels = nr_new_array(struct nr_queue_level, n_levels);
    for (unsigned i = 0; i < n_levels; i++) {
        q->levels[i].rules = rules[i];
    }
}

void nr_queue_done(struct nr_queue *q)
{
    NR_ASSERT(q->n == 0);
    nr_free(q->levels);
    nr_free(q->tags);
    nr_free(q->heap);
}

unsigned nr_queue_level_of(const struct nr_queue *q, uint64_t priority)
{
    return priority >= 1 && priority <= q->n_levels ? (unsigned)(priority - 1) : q->default_level;
}

int64_t nr_queue_timeout(const struct nr_queue *q, unsigned level, uint64_t own_us)
{
    const struct nr_queue_rules *rules = &q->levels[level].rules;
    int64_t timeout_ns = rules->timeout_ns;
    if (rules->may_override && own_us > 0 && own_us < INT64_MAX / 1000) {
        int64_t own_ns = (int64_t)own_us * 1000;
        timeout_ns = timeout_ns == 0 ? own_ns : NR_MIN(timeout_ns, own_ns);
    }
    return timeout_ns;
}

/* --- what is due, and when --------------------------------------------------------------------- */

static void heap_set(struct nr_queue *q, unsigned i, struct nr_request *r)
{
    q->heap[i] = r;
    r->heap_at = i + 1;
}

static void heap_up(struct nr_queue *q, unsigned i, struct nr_request *r)
{
    while (i > 0 && q->heap[(i - 1) / 2]->due_ns > r->due_ns) {
        heap_set(q, i, q->heap[(i - 1) / 2]);
        i = (i - 1) / 2;
    }
    heap_set(q, i, r);
}

static void heap_down(struct nr_queue *q, unsigned i, struct nr_request *r)
{
    for (;;) {
        unsigned child = 2 * i + 1;
        if (child + 1 < q->n_heap && q->heap[child + 1]->due_ns < q->heap[child]->due_ns) {
            child++;
        }
        if (child >= q->n_heap || q->heap[child]->due_ns >= r->due_ns) {
            heap_set(q, i, r);
            return;
        }
        heap_set(q, i, q->heap[child]);
        i = child;
    }
}

static void heap_push(struct nr_queue *q, struct nr_request *r, int64_t due_ns)
{
    if (q->n_heap == q->heap_capacity) {
        q->heap_capacity = NR_MAX(2 * q->heap_capacity, 16u);
        q->heap = nr_realloc(q->heap, q->heap_capacity * sizeof(struct nr_request *));
    }
    r->due_ns = due_ns;
    heap_up(q, q->n_heap++, r);
}

static void heap_remove(struct nr_queue *q, struct nr_request *r)
{
    if (r->heap_at == 0) {
        return;
    }
    unsigned i = r->heap_at - 1;
    struct nr_request *moved = q->heap[--q->n_heap];
    r->heap_at = 0;
    if (moved != r && i > 0 && q->heap[(i - 1) / 2]->due_ns > moved->due_ns) {
        heap_up(q, i, moved);
    } else if (moved != r) {
        heap_down(q, i, moved);
    }
}

/* When the queue has to look at r, 0 never: its time-out, while that still matters, or the last
 * moment at which it can begin and meet its deadline. */
static int64_t due_of(const struct nr_request *r)
{
    if (r->expires_ns == 0 || is_delayed(r)) {
        return r->leaves_ns;
    }
    return r->leaves_ns == 0 ? r->expires_ns : NR_MIN(r->expires_ns, r->leaves_ns);
}

/* --- the list ---------------------------------------------------------------------------------- */

static struct nr_list **last_of(struct nr_queue *q, unsigned part)
{
    return &q->levels[part / 2].part[part & 1u].last;
}

/* The node behind which part `part` begins. */
static struct nr_list *before(struct nr_queue *q, unsigned part)
{
    while (part-- > 0) {
        struct nr_list *last = *last_of(q, part);
        if (last != NULL) {
            return last;
        }
    }
    return &q->order;
}

/* Behind which node of its part r belongs, part not empty; the rows between the part's begin and
 * that place are added to *rows. */
static struct nr_list *find_place(struct nr_queue *q, const struct nr_request *r, int64_t *rows)
{
    struct nr_list *begin = before(q, r->part), *last = *last_of(q, r->part);
    uint64_t first_tag = request_of(begin->next)->tag, last_tag = request_of(last)->tag;
    if (last_tag <= r->tag) {
        *rows += q->levels[r->part / 2].part[r->part & 1u].rows;
        return last;
    }
    struct nr_list *at;
    if (r->tag < first_tag || r->tag - first_tag <= last_tag - r->tag) {
        for (at = begin; request_of(at->next)->tag <= r->tag; at = at->next) {
            *rows += request_of(at->next)->in->rows;
        }
        return at;
    }
    *rows += q->levels[r->part / 2].part[r->part & 1u].rows;
    for (at = last; request_of(at)->tag > r->tag; at = at->prev) {
        *rows -= request_of(at)->in->rows;
    }
    return at;
}

static int64_t insert(struct nr_queue *q, struct nr_request *r)
{
    struct nr_list **last = last_of(q, r->part);
    int64_t rows = 0;
    for (unsigned p = 0; p < r->part; p++) {
        rows += q->levels[p / 2].part[p & 1u].rows;
    }
    struct nr_list *at = *last == NULL ? before(q, r->part) : find_place(q, r, &rows);
    nr_list_insert_before(at->next, &r->node);
    if (*last == NULL || *last == at) {
        *last = &r->node;
    }
    q->levels[r->part / 2].part[r->part & 1u].rows += r->in->rows;
    return rows;
}

static void take_out(struct nr_queue *q, struct nr_request *r)
{
    struct nr_list **last = last_of(q, r->part);
    if (*last == &r->node) {
        struct nr_list *prev = r->node.prev;
        *last = prev != &q->order && request_of(prev)->part == r->part ? prev : NULL;
    }
    nr_list_remove(&r->node);
    q->levels[r->part / 2].part[r->part & 1u].rows -= r->in->rows;
}

/* --- tags -------------------------------------------------------------------------------------- */

/* The tag that r would get now. A client's tags grow by his rows, whatever else: invariant 4. */
static uint64_t tag_of(const struct nr_queue *q, const struct nr_request *r)
{
    uint64_t begin = q->tags == NULL || q->n < NR_QUEUE_FAIR_FROM ? q->newest : q->now;
    return q->tags == NULL ? begin : NR_MAX(begin, q->tags[r->client % NR_QUEUE_CLIENTS]);
}

static void give_tag(struct nr_queue *q, struct nr_request *r)
{
    if (!q->in_order && q->tags == NULL && q->n >= NR_QUEUE_FAIR_FROM) {
        q->tags = nr_new_array(uint64_t, NR_QUEUE_CLIENTS);
        NR_LIST_FOREACH (node, &q->order) { /* they keep their places, and count */
            const struct nr_request *w = request_of(node);
            uint64_t *next = &q->tags[w->client % NR_QUEUE_CLIENTS];
            *next = NR_MAX(*next, q->newest) + (uint64_t)NR_MAX(w->in->rows, 1);
        }
    }
    r->tag = tag_of(q, r);
    q->newest = NR_MAX(q->newest, r->tag);
    if (q->tags != NULL) {
        q->tags[r->client % NR_QUEUE_CLIENTS] = r->tag + (uint64_t)NR_MAX(r->in->rows, 1);
    }
}

/* --- the functions of the header --------------------------------------------------------------- */

int64_t nr_queue_put(struct nr_queue *q, struct nr_request *r)
{
    r->part = 2 * r->level;
    r->heap_at = 0;
    give_tag(q, r);
    int64_t rows = insert(q, r);
    q->levels[r->level].n++;
    q->n++;
    q->rows += r->in->rows;
    q->bytes += r->bytes;
    int64_t due_ns = due_of(r);
    if (due_ns != 0) {
        heap_push(q, r, due_ns);
    }
    return rows;
}

static void leave(struct nr_queue *q, struct nr_request *r)
{
    heap_remove(q, r);
    take_out(q, r);
    q->levels[r->level].n--;
    q->n--;
    q->rows -= r->in->rows;
    q->bytes -= r->bytes;
    if (q->n == 0) {
        q->now = q->newest; /* nobody waits: nobody owes anything */
    }
}

void nr_queue_remove(struct nr_queue *q, struct nr_request *r)
{
    uint64_t *next = q->tags != NULL ? &q->tags[r->client % NR_QUEUE_CLIENTS] : NULL;
    if (next != NULL && !is_delayed(r) && *next == r->tag + (uint64_t)NR_MAX(r->in->rows, 1)) {
        *next = r->tag; /* his newest: it was not served, and does not count against him */
    }
    leave(q, r);
}

void nr_queue_take(struct nr_queue *q, struct nr_request *r)
{
    q->now = NR_MAX(q->now, r->tag);
    leave(q, r);
}

struct nr_request *nr_queue_victim(const struct nr_queue *q, const struct nr_request *r,
                                   bool of_level)
{
    const struct nr_queue_level *l = &q->levels[r->level];
    struct nr_list *last = of_level ? l->part[1].last : q->order.prev;
    if (of_level && last == NULL) {
        last = l->part[0].last;
    }
    if (q->in_order || last == NULL || last == &q->order) {
        return NULL;
    }
    struct nr_request *v = request_of(last);
    if (v->level == r->level) { /* who was delayed has waited long enough to stay */
        return !is_delayed(v) && v->tag > tag_of(q, r) ? v : NULL;
    }
    return v->level > r->level ? v : NULL;
}

/* Its time-out passed under DELAY: behind the others of its level, and no time-out any more. */
static void delay(struct nr_queue *q, struct nr_request *r)
{
    heap_remove(q, r);
    take_out(q, r);
    r->part++;
    r->tag = q->newest;
    (void)insert(q, r);
    if (r->leaves_ns != 0) {
        heap_push(q, r, r->leaves_ns);
    }
}

struct nr_request *nr_queue_expire(struct nr_queue *q, int64_t now_ns)
{
    while (q->n_heap > 0 && q->heap[0]->due_ns <= now_ns) {
        struct nr_request *r = q->heap[0];
        bool timed_out = !is_delayed(r) && r->expires_ns != 0 && r->expires_ns <= now_ns;
        bool leaves = r->leaves_ns != 0 && r->leaves_ns <= now_ns;
        if (leaves && !timed_out && q->n == 1 && r->deadline_ns > now_ns) {
            heap_remove(q, r);
            r->leaves_ns = r->deadline_ns;
            heap_push(q, r, r->deadline_ns);
        } else if (leaves || !q->levels[r->level].rules.delays) {
            nr_queue_remove(q, r);
            return r;
        } else {
            delay(q, r);
        }
    }
    return NULL;
}
