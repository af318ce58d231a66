/* The queue and the batcher under random traffic: whatever comes in whatever order, nobody is lost
 * or served twice, batches keep their maximum, and orders that are promised are kept.
 *
 * Each run prints its seed when it fails; NARU_TEST_SEED=<n> repeats it, NARU_TEST_RUNS=<n> does more. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/str.h"
#include "sched/admit.h"
#include "sched/batcher.h"

#define MANY 512
#define STEPS 4000
#define LEVELS 4
#define CLIENTS 5

enum fate {
    FREE,
    WAITING,
    RAN,
    LEFT
};

struct world {
    struct nr_queue queue;
    struct nr_admit admit;
    struct nr_sched_limits limits;
    struct nr_batch_rules rules;
    struct nr_queue_rules levels[LEVELS];
    unsigned n_levels;
    bool one_client;
    struct nr_request requests[MANY];
    struct nr_infer_request in[MANY];
    struct nr_infer_tensor tensors[MANY];
    enum fate fate[MANY];
    uint64_t serial[MANY], next_serial;
    int64_t now_ns;
    uint64_t state; /* of the random numbers */
    uint64_t put, ran, left, refused;
};

static uint32_t any(struct world *w, uint32_t below)
{
    w->state = w->state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((w->state >> 33) % below);
}

static unsigned index_of(const struct world *w, const struct nr_request *r)
{
    return (unsigned)(r - w->requests);
}

static struct nr_request *request_of(struct nr_list *node)
{
    return nr_container_of(node, struct nr_request, node);
}

static void start(struct world *w, uint64_t seed)
{
    memset(w, 0, sizeof(*w));
    w->state = seed;
    w->n_levels = 1 + any(w, LEVELS);
    bool in_order = w->n_levels == 1 && any(w, 3) == 0;
    for (unsigned i = 0; i < w->n_levels; i++) {
        w->levels[i] = (struct nr_queue_rules){.delays = !in_order && any(w, 2) == 0,
                                               .may_override = any(w, 2) == 0,
                                               .max_requests = any(w, 3) == 0 ? 1 + any(w, 99) : 0,
                                               .timeout_ns = any(w, 2) == 0 ? 1 + any(w, 3000) : 0};
    }
    w->rules = (struct nr_batch_rules){.max_rows = 1 + any(w, 32),
                                       .batching = any(w, 5) != 0,
                                       .in_order = in_order,
                                       .delay_ns = any(w, 2) == 0 ? any(w, 200) : 0};
    if (any(w, 3) == 0) {
        w->rules.preferred[w->rules.n_preferred++] = 1 + any(w, (uint32_t)w->rules.max_rows);
    }
    w->limits = (struct nr_sched_limits){.max_queue_requests = 20 + any(w, MANY),
                                         .max_queue_bytes = 1000 + any(w, 100000),
                                         .max_wait_ns = 1000 + any(w, 100000)};
    nr_queue_init(&w->queue, w->levels, w->n_levels, any(w, w->n_levels), in_order);
    nr_admit_init(&w->admit, 1 + any(w, 3), w->rules.max_rows);
}

static void ends(struct world *w, struct nr_request *r, enum fate how)
{
    unsigned i = index_of(w, r);
    assert_int_equal(w->fate[i], WAITING);
    w->fate[i] = how;
    *(how == RAN ? &w->ran : &w->left) += 1;
}

static void expire(struct world *w)
{
    struct nr_request *r;
    while ((r = nr_queue_expire(&w->queue, w->now_ns)) != NULL) {
        bool out = r->expires_ns != 0 && r->expires_ns <= w->now_ns && !w->levels[r->level].delays;
        bool late = r->leaves_ns != 0 && r->leaves_ns <= w->now_ns;
        assert_true(out || late);
        ends(w, r, LEFT);
    }
}

static void put(struct world *w)
{
    unsigned i = any(w, MANY);
    for (unsigned k = 0; k < MANY && w->fate[i] == WAITING; k++) {
        i = (i + 1) % MANY;
    }
    if (w->fate[i] == WAITING) {
        return;
    }
    struct nr_request *r = &w->requests[i], *victim;
    int64_t rows = 1 + any(w, any(w, 4) == 0 ? (uint32_t)w->rules.max_rows : 1);
    w->tensors[i] = (struct nr_infer_tensor){
        .dtype = NARU_FP32, .rank = 2, .shape = {rows, any(w, 3) == 0 ? 1 + any(w, 3) : 1}};
    w->in[i] = (struct nr_infer_request){.rows = rows, .inputs = &w->tensors[i], .n_inputs = 1};
    *r = (struct nr_request){.in = &w->in[i],
                             .queued_ns = w->now_ns,
                             .client = !w->one_client && any(w, 3) == 0 ? any(w, CLIENTS) : 0,
                             .bytes = any(w, 2000)};
    r->level = nr_queue_level_of(&w->queue, any(w, LEVELS + 2));
    int64_t timeout_ns = nr_queue_timeout(&w->queue, r->level, any(w, 2) == 0 ? any(w, 3) : 0);
    r->expires_ns = timeout_ns > 0 ? w->now_ns + timeout_ns : 0;
    r->deadline_ns = any(w, 4) == 0 ? w->now_ns + 1 + any(w, 5000) : 0;
    expire(w);
    nr_refusal why =
        nr_admit_put(&w->admit, &w->limits, &w->queue, r, any(w, 2) == 0, w->now_ns, &victim);
    if (victim != NULL) {
        assert_true(why == NR_REFUSAL_NONE && victim->level >= r->level);
        assert_true(victim->level > r->level || victim->tag >= r->tag);
        ends(w, victim, LEFT);
    }
    if (why != NR_REFUSAL_NONE) {
        w->refused++;
        return;
    }
    w->put++;
    w->fate[i] = WAITING;
    w->serial[i] = w->next_serial++;
}

/* Of one client, level and shape nobody in time was passed by a later one that left in the batch. */
static void expect_order(struct world *w, const struct nr_request *ran)
{
    if ((ran->part & 1u) != 0) {
        return;
    }
    unsigned i = index_of(w, ran);
    NR_LIST_FOREACH (node, &w->queue.order) {
        const struct nr_request *r = request_of(node);
        unsigned k = index_of(w, r);
        if (w->rules.in_order || (r->client == ran->client && r->part == ran->part &&
                                  w->tensors[k].shape[1] == w->tensors[i].shape[1])) {
            assert_true(w->serial[k] > w->serial[i]);
        }
    }
}

static void take(struct world *w)
{
    struct nr_list batch;
    nr_list_init(&batch);
    expire(w);
    struct nr_batch_plan plan = nr_batcher_plan(&w->rules, &w->queue.order, w->now_ns);
    if (plan.n_requests == 0) {
        assert_true(w->queue.n == 0 || plan.wait_until_ns > w->now_ns);
        return;
    }
    struct nr_list *head = w->queue.order.next;
    nr_batcher_take(&w->rules, &plan, &w->queue, &batch);
    nr_admit_took(&w->admit, plan.rows, w->queue.rows, w->now_ns);
    assert_ptr_equal(batch.next, head); /* the first of the queue is always in the next batch */
    const struct nr_infer_request *first = request_of(head)->in;
    unsigned n = 0;
    int64_t rows = 0;
    struct nr_list *node;
    while ((node = nr_list_pop(&batch)) != NULL) {
        struct nr_request *r = request_of(node);
        n++;
        rows += r->in->rows;
        assert_true(nr_batcher_joins(&w->rules, first, r->in));
        expect_order(w, r);
        ends(w, r, RAN);
    }
    assert_int_equal(n, plan.n_requests);
    assert_int_equal(rows, plan.rows);
    assert_true(rows <= w->rules.max_rows || n == 1);
    w->now_ns += any(w, 50);
    nr_admit_ran(&w->admit, rows, 1 + any(w, 100));
}

static void cancel(struct world *w)
{
    unsigned i = any(w, MANY);
    if (w->fate[i] == WAITING) {
        nr_queue_remove(&w->queue, &w->requests[i]);
        ends(w, &w->requests[i], LEFT);
    }
}

/* The invariants of queue.c. */
static void expect_sound(struct world *w)
{
    const struct nr_queue *q = &w->queue;
    unsigned n = 0, part = 0, n_level[LEVELS] = {0};
    int64_t rows = 0;
    uint64_t bytes = 0, tag = 0;
    NR_LIST_FOREACH (node, &q->order) {
        const struct nr_request *r = request_of(node);
        assert_int_equal(w->fate[index_of(w, r)], WAITING);
        assert_true(r->part >= part && r->part / 2 == r->level);
        assert_true(r->part > part || r->tag >= tag);
        part = r->part;
        tag = r->tag;
        bool last = node->next == &q->order || request_of(node->next)->part != part;
        assert_true(last == (q->levels[part / 2].part[part & 1].last == node));
        n++;
        n_level[r->level]++;
        rows += r->in->rows;
        bytes += r->bytes;
        if (r->heap_at != 0) {
            assert_ptr_equal(q->heap[r->heap_at - 1], r);
            assert_true(r->heap_at == 1 || q->heap[r->heap_at / 2 - 1]->due_ns <= r->due_ns);
        }
    }
    assert_int_equal(n, q->n);
    assert_int_equal(rows, q->rows);
    assert_int_equal(bytes, q->bytes);
    assert_true(q->n_heap <= n && n <= w->limits.max_queue_requests);
    for (unsigned i = 0; i < w->n_levels; i++) {
        assert_int_equal(n_level[i], q->levels[i].n);
        assert_true(w->levels[i].max_requests == 0 || n_level[i] <= w->levels[i].max_requests);
    }
}

static uint64_t number_from(const char *name, uint64_t otherwise)
{
    const char *text = getenv(name);
    uint64_t n;
    return text != NULL && nr_str_to_u64(nr_str_from(text), &n) ? n : otherwise;
}

static struct world w;
static uint64_t seed;

static int say_seed(void **state)
{
    (void)state;
    print_message("last seed: NARU_TEST_SEED=%llu\n", (unsigned long long)seed);
    return 0;
}

static void test_random_traffic(void **state)
{
    (void)state;
    uint64_t first = number_from("NARU_TEST_SEED", (uint64_t)nr_clock_wall() >> 10);
    uint64_t runs = getenv("NARU_TEST_SEED") != NULL ? 1 : number_from("NARU_TEST_RUNS", 100);
    uint64_t ran = 0;
    for (seed = first; seed < first + runs; seed++) {
        start(&w, seed);
        unsigned busy = 1 + any(&w, 10); /* arrivals to one batch */
        for (unsigned i = 0; i < STEPS; i++) {
            uint32_t what = any(&w, busy + 3);
            if (what < busy) {
                put(&w);
            } else if (what == busy) {
                take(&w);
            } else if (what == busy + 1) {
                w.now_ns += any(&w, 300);
            } else if (any(&w, 4) == 0) {
                cancel(&w);
            }
            if (i % 16 == 0) {
                expect_sound(&w);
            }
        }
        for (unsigned i = 0; w.queue.n > 0; i++) { /* everybody ends, and soon */
            assert_true(i <= MANY);
            w.now_ns += 1000;
            take(&w);
        }
        expect_sound(&w);
        assert_int_equal(w.put, w.ran + w.left); /* each exactly once */
        ran += w.ran;
        nr_queue_done(&w.queue);
    }
    assert_true(ran > 0);
}

/* Among equals nobody waits for more batches than there were requests before him. */
static void test_nobody_starves(void **state)
{
    (void)state;
    for (seed = 1; seed <= 50; seed++) {
        start(&w, seed);
        nr_queue_done(&w.queue);
        w.rules.in_order = false;
        w.one_client = true;
        w.rules.delay_ns = 0;
        nr_queue_init(&w.queue, &(struct nr_queue_rules){0}, 1, 0, false);
        w.n_levels = 1;
        w.levels[0] = (struct nr_queue_rules){0};
        w.limits = (struct nr_sched_limits){
            .max_queue_requests = MANY, .max_queue_bytes = 1 << 30, .max_wait_ns = INT64_MAX};
        for (unsigned i = 0; i < 60; i++) {
            put(&w);
        }
        struct nr_request *r = request_of(w.queue.order.prev);
        unsigned before = w.queue.n, batches = 0;
        w.fate[index_of(&w, r)] = WAITING;
        r->deadline_ns = 0;
        while (w.fate[index_of(&w, r)] == WAITING && batches <= before) {
            for (unsigned k = 0; k < 3; k++) {
                put(&w); /* others keep coming */
            }
            take(&w);
            batches++;
        }
        assert_true(w.fate[index_of(&w, r)] != WAITING && batches <= before);
        while (w.queue.n > 0) {
            w.now_ns += 10000;
            take(&w);
        }
        nr_queue_done(&w.queue);
    }
}

/* A flood of one client and a trickle of another: the trickle waits for a batch or two. */
static void test_flood_and_trickle(void **state)
{
    (void)state;
    static struct nr_infer_request one = {.rows = 1};
    static struct nr_request flood[1000], trickle[100];
    struct nr_queue q;
    struct nr_queue_rules none = {0};
    nr_queue_init(&q, &none, 1, 0, false);
    for (unsigned i = 0; i < NR_COUNT(flood); i++) {
        flood[i] = (struct nr_request){.in = &one, .client = 7};
        (void)nr_queue_put(&q, &flood[i]);
    }
    for (unsigned i = 0; i < NR_COUNT(trickle); i++) {
        trickle[i] = (struct nr_request){.in = &one, .client = 8};
        int64_t before = nr_queue_put(&q, &trickle[i]);
        unsigned took = 0;
        for (struct nr_request *r = NULL; r != &trickle[i]; took++) {
            r = request_of(q.order.next);
            nr_queue_take(&q, r);
        }
        assert_int_equal(before + 1, took);
        assert_true(took <= (i == 0 ? NR_QUEUE_FAIR_FROM + 1 : 2));
    }
    while (q.n > 0) {
        nr_queue_take(&q, request_of(q.order.next));
    }
    nr_queue_done(&q);
}

/* Two clients that both flood get equal shares, whatever the sizes of their requests. */
static void test_equal_shares_of_rows(void **state)
{
    (void)state;
    static struct nr_infer_request small = {.rows = 1}, large = {.rows = 4};
    static struct nr_request a[800], b[200];
    struct nr_queue q;
    struct nr_queue_rules none = {0};
    nr_queue_init(&q, &none, 1, 0, false);
    for (unsigned i = 0; i < NR_COUNT(a); i++) {
        a[i] = (struct nr_request){.in = &small, .client = 1};
        (void)nr_queue_put(&q, &a[i]);
    }
    for (unsigned i = 0; i < NR_COUNT(b); i++) {
        b[i] = (struct nr_request){.in = &large, .client = 2};
        (void)nr_queue_put(&q, &b[i]);
    }
    int64_t rows[3] = {0};
    for (unsigned i = 0; i < 400; i++) {
        struct nr_request *r = request_of(q.order.next);
        rows[r->client] += r->in->rows;
        nr_queue_take(&q, r);
    }
    assert_in_range(rows[1] - rows[2] + 16, 0, 32);
    while (q.n > 0) {
        nr_queue_remove(&q, request_of(q.order.prev));
    }
    nr_queue_done(&q);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_random_traffic, say_seed),
        cmocka_unit_test_teardown(test_nobody_starves, say_seed),
        cmocka_unit_test(test_flood_and_trickle),
        cmocka_unit_test(test_equal_shares_of_rows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
