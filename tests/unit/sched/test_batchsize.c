/* Batch sizes chosen from times per row, on invented models. */
#include "sched/batchsize.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#include "base/clock.h"

/* Runs a queue that never empties for n batches; cost(rows) says how long a batch takes. */
static int64_t drive(struct nr_batchsize *b, unsigned n, int64_t (*cost)(int64_t rows),
                     int64_t now_ns, int64_t *ret_most)
{
    for (unsigned i = 0; i < n; i++) {
        int64_t rows = nr_batchsize_limit(b, 1000, 0, now_ns), run_ns = cost(rows);
        now_ns += run_ns;
        *ret_most = rows > *ret_most ? rows : *ret_most;
        nr_batchsize_observe(b, rows, run_ns, now_ns);
    }
    return now_ns;
}

static int64_t linear(int64_t rows)
{
    return rows * 45 * NR_MS_NS; /* nothing gained */
}

static int64_t overhead(int64_t rows)
{
    return 20 * NR_US_NS + rows * NR_US_NS; /* every doubling pays for long */
}

static int64_t cliff(int64_t rows)
{
    return rows <= 8 ? NR_MS_NS + rows * 100 * NR_US_NS : rows * NR_MS_NS; /* caches end at 8 */
}

static void test_no_gain_no_batches(void **state)
{
    (void)state;
    struct nr_batchsize b;
    int64_t most = 0;
    nr_batchsize_init(&b, 64, 0);
    int64_t now = drive(&b, 100, linear, 1, &most);
    assert_int_equal(b.step, 0);
    assert_int_equal(most, 2); /* tried, and given up */
    assert_int_equal(nr_batchsize_limit(&b, 1000, 0, now), 1);
}

static void test_overhead_is_shared(void **state)
{
    (void)state;
    struct nr_batchsize b;
    int64_t most = 0;
    nr_batchsize_init(&b, 64, 0);
    drive(&b, 200, overhead, 1, &most);
    assert_int_equal(most, 64);
    assert_int_equal(1 << b.step, 64);
}

static void test_stops_at_the_cliff(void **state)
{
    (void)state;
    struct nr_batchsize b;
    int64_t most = 0;
    nr_batchsize_init(&b, 64, 0);
    drive(&b, 300, cliff, 1, &most);
    assert_int_equal(1 << b.step, 8);
    assert_int_equal(most, 16);
}

static void test_maximum_need_not_be_a_power(void **state)
{
    (void)state;
    struct nr_batchsize b;
    int64_t most = 0;
    nr_batchsize_init(&b, 6, 0);
    drive(&b, 200, overhead, 1, &most);
    assert_int_equal(most, 4);
    nr_batchsize_init(&b, 1, 0);
    most = 0;
    drive(&b, 50, overhead, 1, &most);
    assert_int_equal(most, 1);
}

static void test_short_queues_are_not_made_to_wait(void **state)
{
    (void)state;
    struct nr_batchsize b;
    nr_batchsize_init(&b, 64, 0);
    for (unsigned i = 0; i < 20; i++) {
        assert_int_equal(nr_batchsize_limit(&b, 1, 0, 1), 1);
        nr_batchsize_observe(&b, 1, 1000, 1);
    }
}

static void test_noise_only_slows(void **state)
{
    (void)state;
    struct nr_batchsize b;
    nr_batchsize_init(&b, 64, 0);
    int64_t now = 1;
    unsigned seed = 7;
    for (unsigned i = 0; i < 400;
         i++) { /* one run in three is disturbed by up to a factor of two */
        int64_t rows = nr_batchsize_limit(&b, 1000, 0, now), run_ns = rows * 10 * NR_MS_NS;
        seed = seed * 1103515245u + 12345u;
        run_ns += (seed >> 16) % 3 == 0 ? run_ns * (int64_t)((seed >> 20) % 100) / 100 : 0;
        now += run_ns;
        nr_batchsize_observe(&b, rows, run_ns, now);
    }
    assert_int_equal(b.step, 0);
}

/* Batches of 10 ms and 1 ms a row, up to 16 rows. */
static void learn(struct nr_batchsize *b)
{
    nr_batchsize_init(b, 16, 0);
    for (unsigned i = 0; i < 100; i++) {
        int64_t rows = nr_batchsize_limit(b, 100, 0, 1);
        nr_batchsize_observe(b, rows, (10 + rows) * NR_MS_NS, 1);
    }
    assert_int_equal(1 << b->step, 16);
}

static void test_latency_target(void **state)
{
    (void)state;
    struct nr_batchsize b;
    learn(&b);
    b.target_ns = 20 * NR_MS_NS + 1000;
    assert_int_equal(nr_batchsize_limit(&b, 100, 0, 1), 10);           /* 10 + 10 */
    assert_int_equal(nr_batchsize_limit(&b, 100, 5 * NR_MS_NS, 1), 5); /* 5 + 10 + 5 */
    assert_int_equal(nr_batchsize_limit(&b, 100, 9 * NR_MS_NS, 1), 1);
    assert_int_equal(nr_batchsize_limit(&b, 100, 10 * NR_MS_NS, 1), 16); /* too late anyway */
    b.target_ns = NR_S_NS;
    assert_int_equal(nr_batchsize_limit(&b, 100, 0, 1), 16);
    /* and what may be waited for */
    assert_true(llabs(nr_batchsize_fixed(&b, 0) - 10 * NR_MS_NS) < NR_MS_NS);
    b.target_ns = 28 * NR_MS_NS; /* 26 are the batch's */
    assert_true(llabs(nr_batchsize_fixed(&b, 0) - 4 * NR_MS_NS) < NR_MS_NS);
    nr_batchsize_init(&b, 16, NR_MS_NS); /* nothing is known yet */
    assert_int_equal(nr_batchsize_limit(&b, 100, 0, 1), 1);
}

static void test_sizes_between_two_steps(void **state)
{
    (void)state;
    struct nr_batchsize b;
    nr_batchsize_init(&b, 64, 0);
    for (unsigned i = 0; i < 100; i++) { /* six clients that wait for each other */
        int64_t rows = nr_batchsize_limit(&b, 6, 0, 1);
        rows = rows < 6 ? rows : 6;
        nr_batchsize_observe(&b, rows, (10 + rows) * NR_MS_NS, 1);
    }
    assert_int_equal(1 << b.step, 8);
    assert_true(llabs(nr_batchsize_fixed(&b, 0) - 10 * NR_MS_NS) < NR_MS_NS);
    nr_batchsize_init(&b, 64, 0);
    for (unsigned i = 0; i < 100; i++) {
        int64_t rows = nr_batchsize_limit(&b, 6, 0, 1);
        rows = rows < 6 ? rows : 6;
        nr_batchsize_observe(&b, rows, rows * NR_MS_NS, 1);
    }
    assert_int_equal(b.step, 0); /* rows cost what they cost */
    assert_int_equal(nr_batchsize_fixed(&b, 0), NR_MS_NS / 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_no_gain_no_batches),
        cmocka_unit_test(test_overhead_is_shared),
        cmocka_unit_test(test_stops_at_the_cliff),
        cmocka_unit_test(test_maximum_need_not_be_a_power),
        cmocka_unit_test(test_short_queues_are_not_made_to_wait),
        cmocka_unit_test(test_noise_only_slows),
        cmocka_unit_test(test_latency_target),
        cmocka_unit_test(test_sizes_between_two_steps),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
