/* Histograms: bucket borders, error bounds against sorted values, merging, a reading thread. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/hist.h"
#include "base/status.h"

static void test_coarse_borders(void **state)
{
    (void)state;
    assert_int_equal(nr_hist_coarse_bound(0), 1500);
    assert_int_equal(nr_hist_coarse_bound(1), 2000);
    assert_int_equal(nr_hist_coarse_bound(2), 3000);
    assert_true(nr_hist_coarse_bound(51) == UINT64_C(67108864000));
    assert_true(nr_hist_coarse_bound(52) == UINT64_MAX);
    assert_true(nr_hist_coarse_bound(1000) == UINT64_MAX);
    for (unsigned i = 0; i < NR_HIST_COARSE_BUCKETS; i++) {
        uint64_t bound = nr_hist_coarse_bound(i);
        assert_int_equal(nr_hist_coarse_index(bound), i); /* inclusive */
        if (i + 1 < NR_HIST_COARSE_BUCKETS) {
            assert_int_equal(nr_hist_coarse_index(bound + 1), i + 1);
            assert_true(nr_hist_coarse_bound(i + 1) > bound);
        }
    }
    assert_int_equal(nr_hist_coarse_index(0), 0);
    assert_int_equal(nr_hist_coarse_index(1), 0);
}

static void test_coarse_quantile(void **state)
{
    (void)state;
    struct nr_hist_coarse h = {0};
    assert_int_equal(nr_hist_coarse_quantile(&h, 0.5), 0);
    for (uint64_t us = 1; us <= 1000; us++) {
        nr_hist_coarse_add(&h, us * 1000);
    }
    assert_true(h.sum_ns == 500500000);
    for (double q = 0.01; q < 1; q += 0.01) {
        double got = (double)nr_hist_coarse_quantile(&h, q);
        double want = q * 1e6;
        assert_true(got > want * 0.66 - 1500 && got < want * 1.5 + 1500); /* one bucket */
    }
    /* Evenly spread values are found much better than a bucket, thanks to interpolation. */
    double median = (double)nr_hist_coarse_quantile(&h, 0.5);
    assert_true(fabs(median - 500000) < 5000);
    struct nr_hist_coarse top = {0};
    nr_hist_coarse_add(&top, UINT64_MAX);
    assert_true(nr_hist_coarse_quantile(&top, 0.5) == nr_hist_coarse_bound(51));
    nr_hist_coarse_merge(&h, &top);
    assert_true(nr_hist_coarse_quantile(&h, 1) == nr_hist_coarse_bound(51));
    assert_true(nr_hist_coarse_quantile(&h, -1) <= 1500);
    assert_true(nr_hist_coarse_quantile(&h, (double)NAN) <= 1500);
}

static int compare_u64(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a;
    uint64_t y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

#define N 20000

/* Log-uniform values from 1 ns to 1,000 s: each quantile lies within 1/1024 above the true one. */
static void test_fine_error_bound(void **state)
{
    (void)state;
    static uint64_t values[N];
    struct nr_hist *h = nr_hist_new();
    double sum = 0;
    srand(3);
    for (size_t i = 0; i < N; i++) {
        values[i] = (uint64_t)exp(log(1e12) * ((double)rand() / RAND_MAX));
        nr_hist_add(h, values[i], 1);
        sum += (double)values[i];
    }
    qsort(values, N, sizeof(values[0]), compare_u64);
    static const double extra[] = {0, 0.5, 0.9, 0.99, 0.999, 0.9999, 1};
    for (int i = 0; i < 1000 + (int)NR_COUNT(extra); i++) {
        double q = i < 1000 ? i / 1000.0 : extra[i - 1000];
        size_t rank = (size_t)ceil(q * N - 1e-9);
        uint64_t want = values[rank > 0 ? rank - 1 : 0];
        uint64_t got = nr_hist_quantile(h, q);
        assert_true(got >= want);
        assert_true((double)(got - want) <= (double)want / 1024);
    }
    assert_true(nr_hist_quantile(h, 1) == values[N - 1]);
    assert_true(nr_hist_max(h) == values[N - 1]);
    assert_true(nr_hist_min(h) == values[0]);
    assert_int_equal(nr_hist_count(h), N);
    assert_true(fabs(nr_hist_mean(h) - sum / N) <= 1e-9 * sum / N);
    nr_hist_free(h);
}

static void test_fine_edges(void **state)
{
    (void)state;
    nr_hist_free(NULL);
    struct nr_hist *h = nr_hist_new();
    assert_int_equal(nr_hist_quantile(h, 0.5), 0);
    assert_int_equal(nr_hist_min(h), 0);
    assert_int_equal(nr_hist_max(h), 0);
    assert_true(nr_hist_mean(h) == 0);
    nr_hist_add(h, 5, 0); /* nothing */
    assert_int_equal(nr_hist_count(h), 0);
    nr_hist_add(h, 0, 1);
    assert_int_equal(nr_hist_quantile(h, 0), 0);
    nr_hist_add(h, UINT64_MAX, 1); /* beyond the range: counted, max exact */
    assert_true(nr_hist_max(h) == UINT64_MAX);
    assert_true(nr_hist_quantile(h, 1) == UINT64_MAX);
    nr_hist_free(h);

    /* One value alone is exact at every quantile, on both sides of every power of two. */
    for (unsigned bit = 0; bit < 40; bit++) {
        for (int off = -1; off <= 1; off++) {
            uint64_t v = (UINT64_C(1) << bit) + (uint64_t)(int64_t)off;
            h = nr_hist_new();
            nr_hist_add(h, v, 3);
            for (double q = 0; q <= 1; q += 0.25) {
                assert_true(nr_hist_quantile(h, q) == v);
            }
            nr_hist_free(h);
        }
    }
}

static void test_fine_weights_and_merge(void **state)
{
    (void)state;
    struct nr_hist *a = nr_hist_new();
    struct nr_hist *b = nr_hist_new();
    nr_hist_merge(a, b); /* empty into empty */
    assert_int_equal(nr_hist_count(a), 0);
    nr_hist_add(a, 100, 99);
    nr_hist_add(b, 1000000, 1);
    nr_hist_merge(a, b);
    assert_int_equal(nr_hist_count(a), 100);
    assert_int_equal(nr_hist_quantile(a, 0.99), 100);
    assert_true(nr_hist_quantile(a, 0.991) == 1000000);
    assert_int_equal(nr_hist_min(a), 100);
    assert_true(nr_hist_mean(a) == (99 * 100 + 1000000) / 100.0);
    assert_int_equal(nr_hist_count(b), 1);
    nr_hist_free(a);
    nr_hist_free(b);
}

struct shared {
    struct nr_hist *h;
    struct nr_hist_coarse coarse;
    _Atomic bool done;
};

static void *write_values(void *arg)
{
    struct shared *s = arg;
    for (uint64_t i = 0; i < 100000; i++) {
        nr_hist_add(s->h, i * i, 1);
        nr_hist_coarse_add(&s->coarse, i * i);
    }
    atomic_store(&s->done, true);
    return NULL;
}

static void test_reader_beside_the_writer(void **state)
{
    (void)state;
    static struct shared s;
    s.h = nr_hist_new();
    pthread_t t;
    assert_int_equal(pthread_create(&t, NULL, write_values, &s), 0);
    uint64_t last = 0;
    while (!atomic_load(&s.done)) {
        uint64_t n = nr_hist_count(s.h);
        assert_true(n >= last);
        last = n;
        assert_true(nr_hist_quantile(s.h, 0.5) <= UINT64_C(100000) * 100000);
        struct nr_hist *copy = nr_hist_new();
        nr_hist_merge(copy, s.h);
        assert_true(nr_hist_count(copy) >= last);
        nr_hist_free(copy);
        (void)nr_hist_coarse_quantile(&s.coarse, 0.9);
    }
    pthread_join(t, NULL);
    assert_int_equal(nr_hist_count(s.h), 100000);
    nr_hist_free(s.h);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_coarse_borders),
        cmocka_unit_test(test_coarse_quantile),
        cmocka_unit_test(test_fine_error_bound),
        cmocka_unit_test(test_fine_edges),
        cmocka_unit_test(test_fine_weights_and_merge),
        cmocka_unit_test(test_reader_beside_the_writer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
