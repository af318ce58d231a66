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
        int64_t rows = nr_batchsize_limit(b, 1000, now_ns), run_ns = cost(rows);
        now_ns += run_ns;
        *ret_most = rows > *ret_most ? rows : *ret_most;
        nr_batchsize_observe(b, rows, run_ns, 0, now_ns);
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
    assert_int_equal(nr_batchsize_limit(&b, 1000, now), 1);
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
        assert_int_equal(nr_batchsize_limit(&b, 1, 1), 1);
        nr_batchsize_observe(&b, 1, 1000, 0, 1);
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
        int64_t rows = nr_batchsize_limit(&b, 1000, now), run_ns = rows * 10 * NR_MS_NS;
        seed = seed * 1103515245u + 12345u;
        run_ns += (seed >> 16) % 3 == 0 ? run_ns * (int64_t)((seed >> 20) % 100) / 100 : 0;
        now += run_ns;
        nr_batchsize_observe(&b, rows, run_ns, 0, now);
    }
    assert_int_equal(b.step, 0);
}

/* Four rows in 20 ms; eight pay, and their slowest request takes trial_ms. */
static unsigned grown_to(int64_t target_ms, int64_t worst_ms, int64_t trial_ms)
{
    struct nr_batchsize b;
    nr_batchsize_init(&b, 64, target_ms * NR_MS_NS);
    for (unsigned step = 0; step < 2; step++) { /* up to four */
        for (unsigned i = 0; i < 20 && b.step < 2; i++) {
            int64_t rows = nr_batchsize_limit(&b, 4, 1);
            nr_batchsize_observe(&b, rows, 20 * NR_MS_NS, 0, 1);
        }
    }
    assert_int_equal(b.step, 2);
    for (unsigned i = 0; i < 200; i++) { /* what it was before fades */
        nr_batchsize_observe(&b, 4, 20 * NR_MS_NS, (worst_ms - 20) * NR_MS_NS, 1);
    }
    for (unsigned i = 0; i < 6; i++) {
        int64_t rows = nr_batchsize_limit(&b, 8, 1);
        int64_t took_ms = rows == 8 ? trial_ms : worst_ms;
        nr_batchsize_observe(&b, rows, 20 * NR_MS_NS, (took_ms - 20) * NR_MS_NS, 1);
    }
    return 1u << b.step;
}

static void test_latency_target(void **state)
{
    (void)state;
    assert_int_equal(grown_to(0, 20, 500), 8); /* there is none */
    assert_int_equal(grown_to(25, 21, 24), 8); /* kept */
    assert_int_equal(grown_to(25, 21, 30), 4); /* kept before, missed with eight */
    assert_int_equal(grown_to(25, 60, 50), 8); /* missed before: throughput decides */
}

static void test_sizes_between_two_steps(void **state)
{
    (void)state;
    struct nr_batchsize b;
    nr_batchsize_init(&b, 64, 0);
    for (unsigned i = 0; i < 100; i++) { /* six clients that wait for each other */
        int64_t rows = nr_batchsize_limit(&b, 6, 1);
        rows = rows < 6 ? rows : 6;
        nr_batchsize_observe(&b, rows, (10 + rows) * NR_MS_NS, 0, 1);
    }
    assert_int_equal(1 << b.step, 8);
    assert_true(llabs(nr_batchsize_fixed(&b) - 10 * NR_MS_NS) < NR_MS_NS);
    nr_batchsize_init(&b, 64, 0);
    for (unsigned i = 0; i < 100; i++) {
        int64_t rows = nr_batchsize_limit(&b, 6, 1);
        rows = rows < 6 ? rows : 6;
        nr_batchsize_observe(&b, rows, rows * NR_MS_NS, 0, 1);
    }
    assert_int_equal(b.step, 0); /* rows cost what they cost */
    assert_int_equal(nr_batchsize_fixed(&b), NR_MS_NS / 4);
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
