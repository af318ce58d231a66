/* The batcher's rules on invented times and queues. */
#include "sched/batcher.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#define N 16

struct fixture {
    struct nr_list queue;
    struct nr_request requests[N];
    struct nr_infer_request in[N];
    struct nr_infer_tensor tensors[N];
    unsigned n;
};

static void start(struct fixture *f)
{
    memset(f, 0, sizeof(*f));
    nr_list_init(&f->queue);
}

static void push(struct fixture *f, int64_t rows, int64_t width, int64_t queued_ns)
{
    unsigned i = f->n++;
    f->tensors[i] = (struct nr_infer_tensor){.dtype = NARU_FP32, .rank = 2, .shape = {rows, width}};
    f->in[i] = (struct nr_infer_request){.rows = rows, .inputs = &f->tensors[i], .n_inputs = 1};
    f->requests[i] = (struct nr_request){.in = &f->in[i], .queued_ns = queued_ns};
    nr_list_append(&f->queue, &f->requests[i].node);
}

static void expect(struct fixture *f, const struct nr_batch_rules *rules, int64_t now_ns,
                   unsigned n, int64_t rows, nr_seal why)
{
    struct nr_batch_plan p = nr_batcher_plan(rules, &f->queue, now_ns);
    assert_int_equal(p.n_requests, n);
    assert_int_equal(p.rows, rows);
    assert_string_equal(nr_seal_text(p.why), nr_seal_text(why));
}

static void test_empty_queue(void **state)
{
    (void)state;
    struct fixture f;
    start(&f);
    struct nr_batch_plan p =
        nr_batcher_plan(&(struct nr_batch_rules){.batching = true, .max_rows = 8}, &f.queue, 5);
    assert_int_equal(p.n_requests, 0);
    assert_int_equal(p.wait_until_ns, 0);
}

static void test_without_batching_one_at_a_time(void **state)
{
    (void)state;
    struct fixture f;
    start(&f);
    push(&f, 3, 4, 0);
    push(&f, 1, 4, 0);
    expect(&f, &(struct nr_batch_rules){.max_rows = 8}, 1, 1, 3, NR_SEAL_SINGLE);
}

static void test_no_delay_takes_all_that_waits(void **state)
{
    (void)state;
    struct fixture f;
    struct nr_batch_rules rules = {.batching = true, .max_rows = 8};
    start(&f);
    push(&f, 1, 4, 0);
    expect(&f, &rules, 0, 1, 1, NR_SEAL_IDLE);
    push(&f, 2, 4, 0);
    expect(&f, &rules, 0, 2, 3, NR_SEAL_IDLE);
}

static void test_maximum_is_never_exceeded(void **state)
{
    (void)state;
    struct fixture f;
    struct nr_batch_rules rules = {.batching = true, .max_rows = 4};
    start(&f);
    push(&f, 2, 4, 0);
    push(&f, 2, 4, 0);
    push(&f, 1, 4, 0);
    expect(&f, &rules, 0, 2, 4, NR_SEAL_FULL);
    start(&f);
    push(&f, 3, 4, 0);
    push(&f, 2, 4, 0);
    expect(&f, &rules, 0, 1, 3, NR_SEAL_NEXT_TOO_BIG);
}

static void test_shapes_are_not_mixed(void **state)
{
    (void)state;
    struct fixture f;
    struct nr_batch_rules rules = {.batching = true, .max_rows = 8, .delay_ns = 1000};
    start(&f);
    push(&f, 1, 4, 0);
    push(&f, 1, 4, 0);
    push(&f, 1, 5, 0);
    push(&f, 1, 4, 0);
    /* others wait, so it does not wait for its delay; who fits joins it past the other */
    expect(&f, &rules, 1, 3, 3, NR_SEAL_SHAPE);
    assert_true(nr_batcher_plan(&rules, &f.queue, 1).scattered);
    rules.in_order = true;
    expect(&f, &rules, 1, 2, 2, NR_SEAL_SHAPE);
}

static void test_different_inputs_are_not_mixed(void **state)
{
    (void)state;
    struct fixture f;
    start(&f);
    push(&f, 1, 4, 0);
    push(&f, 1, 4, 0);
    struct nr_batch_rules rules = {.batching = true, .max_rows = 8};
    f.tensors[1].index = 1;
    assert_false(nr_batcher_joins(&rules, &f.in[0], &f.in[1]));
    f.tensors[1].index = 0;
    f.tensors[1].dtype = NARU_FP64;
    assert_false(nr_batcher_joins(&rules, &f.in[0], &f.in[1]));
    f.tensors[1].dtype = NARU_FP32;
    assert_true(nr_batcher_joins(&rules, &f.in[0], &f.in[1]));
    f.in[1].n_inputs = 0;
    assert_false(nr_batcher_joins(&rules, &f.in[0], &f.in[1]));
}

static void test_delay_holds_and_lets_go(void **state)
{
    (void)state;
    struct fixture f;
    struct nr_batch_rules rules = {.batching = true, .max_rows = 8, .delay_ns = 1000};
    start(&f);
    push(&f, 1, 4, 500);
    push(&f, 1, 4, 900);
    struct nr_batch_plan p = nr_batcher_plan(&rules, &f.queue, 1499);
    assert_int_equal(p.n_requests, 0);
    assert_int_equal(p.wait_until_ns, 1500); /* the oldest decides */
    expect(&f, &rules, 1500, 2, 2, NR_SEAL_DELAY);
}

static void test_full_batch_does_not_wait(void **state)
{
    (void)state;
    struct fixture f;
    start(&f);
    push(&f, 4, 4, 0);
    push(&f, 4, 4, 0);
    expect(&f, &(struct nr_batch_rules){.batching = true, .max_rows = 8, .delay_ns = 1000}, 1, 2, 8,
           NR_SEAL_FULL);
}

static void test_largest_preferred_size(void **state)
{
    (void)state;
    struct fixture f;
    struct nr_batch_rules rules = {
        .batching = true, .max_rows = 16, .delay_ns = 1000, .n_preferred = 2, .preferred = {2, 4}};
    start(&f);
    push(&f, 1, 4, 0);
    assert_int_equal(nr_batcher_plan(&rules, &f.queue, 1).n_requests, 0);
    push(&f, 1, 4, 0);
    expect(&f, &rules, 1, 2, 2, NR_SEAL_PREFERRED);
    push(&f, 1, 4, 0);
    expect(&f, &rules, 1, 2, 2, NR_SEAL_PREFERRED);
    push(&f, 1, 4, 0);
    push(&f, 1, 4, 0);
    expect(&f, &rules, 1, 4, 4, NR_SEAL_PREFERRED);
    rules.delay_ns = 0;
    expect(&f, &rules, 1, 4, 4, NR_SEAL_PREFERRED);
}

static void test_request_larger_than_maximum_still_leaves(void **state)
{
    (void)state;
    struct fixture f;
    start(&f);
    push(&f, 9, 4, 0); /* refused at decoding; if one comes, it must not block the queue */
    expect(&f, &(struct nr_batch_rules){.batching = true, .max_rows = 8, .delay_ns = 10}, 0, 1, 9,
           NR_SEAL_FULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_empty_queue),
        cmocka_unit_test(test_without_batching_one_at_a_time),
        cmocka_unit_test(test_no_delay_takes_all_that_waits),
        cmocka_unit_test(test_maximum_is_never_exceeded),
        cmocka_unit_test(test_shapes_are_not_mixed),
        cmocka_unit_test(test_different_inputs_are_not_mixed),
        cmocka_unit_test(test_delay_holds_and_lets_go),
        cmocka_unit_test(test_full_batch_does_not_wait),
        cmocka_unit_test(test_largest_preferred_size),
        cmocka_unit_test(test_request_larger_than_maximum_still_leaves),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
