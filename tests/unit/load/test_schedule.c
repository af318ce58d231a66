/* Arrival schedules: the distribution of the gaps, the rate, and that plans can be repeated. */
#include "load/schedule.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#include "base/mem.h"

#define SEEDS 20
#define GAPS 20000

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Kolmogorov-Smirnov distance from the exponential distribution of mean 1. */
static double ks_distance(double *gaps, size_t n)
{
    double worst = 0;
    qsort(gaps, n, sizeof(gaps[0]), by_value);
    for (size_t i = 0; i < n; i++) {
        double f = 1 - exp(-gaps[i]);
        worst = fmax(worst, fmax((double)(i + 1) / (double)n - f, f - (double)i / (double)n));
    }
    return worst;
}

static void test_gaps_are_exponential(void **state)
{
    (void)state;
    double *gaps = nr_new_array(double, GAPS);
    double limit = 1.628 / sqrt(GAPS); /* of Kolmogorov's distribution, 1 % */
    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        for (uint64_t i = 0; i < GAPS; i++) {
            gaps[i] = nr_schedule_gap(seed, i);
            assert_true(gaps[i] > 0 && gaps[i] < 37);
        }
        double d = ks_distance(gaps, GAPS);
        if (d > limit) {
            fail_msg("seed %llu: distance %.5f, limit %.5f", (unsigned long long)seed, d, limit);
        }
    }
    nr_free(gaps);
}

/* Arrivals in windows of equal length must be Poisson counts: variance equal to the mean (index of
 * dispersion), which a generator with correlated gaps fails though each gap is exponential. */
static void test_counts_are_poisson(void **state)
{
    (void)state;
    enum {
        WINDOWS = 2000
    };
    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        struct nr_schedule s;
        unsigned counts[WINDOWS] = {0};
        double mean = 0, chi = 0;
        nr_schedule_init(&s, NR_ARRIVAL_POISSON, 10000, seed); /* 10 in a window of 1 ms */
        for (;;) {
            int64_t window = nr_schedule_next(&s) / 1000000;
            if (window >= WINDOWS) {
                break;
            }
            counts[window]++;
        }
        for (unsigned i = 0; i < WINDOWS; i++) {
            mean += counts[i];
        }
        mean /= (double)WINDOWS;
        for (unsigned i = 0; i < WINDOWS; i++) {
            chi += (counts[i] - mean) * (counts[i] - mean) / mean;
        }
        /* chi-square with WINDOWS - 1 degrees of freedom, normal for so many; 1 %, two-sided */
        double z = (chi - (WINDOWS - 1)) / sqrt(2.0 * (WINDOWS - 1));
        if (fabs(z) > 2.576) {
            fail_msg("seed %llu: z = %.3f", (unsigned long long)seed, z);
        }
    }
}

static void test_rate_is_kept(void **state)
{
    (void)state;
    enum {
        N = 1000000
    };
    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        struct nr_schedule s;
        int64_t last = 0;
        nr_schedule_init(&s, NR_ARRIVAL_POISSON, 25000, seed);
        for (unsigned i = 0; i < N; i++) {
            int64_t at = nr_schedule_next(&s);
            assert_true(at >= last);
            last = at;
        }
        double rate = (double)N / ((double)last / 1e9);
        assert_true(fabs(rate / 25000 - 1) < 0.005);
    }
}

static void test_constant_does_not_drift(void **state)
{
    (void)state;
    struct nr_schedule s;
    int64_t at = 0;
    nr_schedule_init(&s, NR_ARRIVAL_CONSTANT, 3, 0); /* a gap that no number of ns is */
    assert_int_equal(nr_schedule_next(&s), 333333333);
    for (unsigned i = 1; i < 3000000; i++) {
        at = nr_schedule_next(&s);
    }
    assert_in_range((uint64_t)at, UINT64_C(999999999999999), UINT64_C(1000000000000001));
}

static void test_same_seed_same_plan(void **state)
{
    (void)state;
    struct nr_schedule a, b, c;
    unsigned equal = 0;
    nr_schedule_init(&a, NR_ARRIVAL_POISSON, 1000, 7);
    nr_schedule_init(&b, NR_ARRIVAL_POISSON, 1000, 7);
    nr_schedule_init(&c, NR_ARRIVAL_POISSON, 1000, 8);
    for (unsigned i = 0; i < 1000; i++) {
        int64_t at = nr_schedule_next(&a);
        assert_int_equal(at, nr_schedule_next(&b));
        equal += at == nr_schedule_next(&c);
    }
    assert_int_equal(equal, 0);
}

/* Seeds that differ by one must not give one sequence, moved. */
static void test_seeds_are_not_shifts(void **state)
{
    (void)state;
    const uint64_t step = UINT64_C(0x9e3779b97f4a7c15); /* of the generator */
    for (uint64_t i = 0; i < 1000; i++) {
        assert_true(nr_schedule_gap(1, i + 1) != nr_schedule_gap(2, i));
        assert_true(nr_schedule_gap(1, i + 1) != nr_schedule_gap(1 + step, i));
    }
}

static void test_extreme_rates(void **state)
{
    (void)state;
    struct nr_schedule s;
    nr_schedule_init(&s, NR_ARRIVAL_POISSON, 1e9, 1);
    for (unsigned i = 0; i < 1000; i++) {
        assert_true(nr_schedule_next(&s) < 2000);
    }
    nr_schedule_init(&s, NR_ARRIVAL_CONSTANT, 0.001, 1);
    assert_int_equal(nr_schedule_next(&s), INT64_C(1000000000000));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gaps_are_exponential), cmocka_unit_test(test_counts_are_poisson),
        cmocka_unit_test(test_rate_is_kept),         cmocka_unit_test(test_constant_does_not_drift),
        cmocka_unit_test(test_same_seed_same_plan),  cmocka_unit_test(test_seeds_are_not_shifts),
        cmocka_unit_test(test_extreme_rates),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
