/* Counters of a model: sums over loops, batch sizes, reasons of failure. */
#include "sched/counters.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

static void record(struct nr_counters *c, unsigned loop, int64_t rows, uint32_t batch_rows,
                   bool leads)
{
    struct nr_infer_request in = {.rows = rows};
    struct nr_request r = {.in = &in,
                           .arrival_ns = 1000,
                           .queued_ns = 2000,
                           .begin_ns = 5000,
                           .infer_begin_ns = 6000,
                           .infer_end_ns = 26000,
                           .end_ns = 28000,
                           .batch_rows = batch_rows};
    nr_counters_success(c, loop, &r, leads);
}

static void test_sums_over_loops(void **state)
{
    (void)state;
    struct nr_counters *c = nr_counters_new(3, 64);
    struct nr_counts n;
    struct nr_arena a;
    nr_arena_init(&a, 0);
    record(c, 0, 2, 3, true);
    record(c, 2, 1, 3, false);
    record(c, 2, 33, 33, true);
    record(c, 1, 64, 64, true);
    nr_counters_failure(c, 1, NR_FAIL_REJECTED, 500);
    nr_counters_read(c, &a, &n);
    assert_int_equal(n.success, 4);
    assert_int_equal(n.rows, 100);
    assert_int_equal(n.executions, 3);
    assert_int_equal(n.success_ns, 4 * 27000);
    assert_int_equal(n.queue_ns, 4 * 3000);
    assert_int_equal(n.infer_ns, 4 * 20000);
    assert_int_equal(n.fail, 1);
    assert_int_equal(n.failed[NR_FAIL_REJECTED], 1);
    assert_int_equal(n.n_batches, 3);
    assert_int_equal(n.batches[0].rows, 3);
    assert_int_equal(n.batches[1].rows, 33);
    assert_int_equal(n.batches[2].rows, 64);
    assert_int_equal(n.batches[2].infer_ns, 20000);
    nr_arena_done(&a);
    nr_counters_free(c);
}

static void test_nothing_recorded(void **state)
{
    (void)state;
    struct nr_counters *c = nr_counters_new(2, 0);
    struct nr_counts n;
    struct nr_arena a;
    nr_arena_init(&a, 0);
    nr_counters_read(c, &a, &n);
    assert_int_equal(n.success, 0);
    assert_int_equal(n.n_batches, 0);
    record(c, 0, 1, 1000, true); /* a batch larger than the maximum is left out of the sizes */
    nr_counters_read(c, &a, &n);
    assert_int_equal(n.n_batches, 0);
    assert_int_equal(n.executions, 1);
    nr_arena_done(&a);
    nr_counters_free(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sums_over_loops),
        cmocka_unit_test(test_nothing_recorded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
