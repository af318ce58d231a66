/* Labels: the file, the best k against sorting, softmax, odd values. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdlib.h>

#include "base/mem.h"
#include "codec/labels.h"
#include "naru/tensor.h"

static void test_file(void **state)
{
    (void)state;
    struct nr_labels l;
    assert_int_equal(nr_labels_parse(NR_STR("\xef\xbb\xbf"
                                            "cat\r\n dog \n\nna\xc3\xafve\n\r\n \n"),
                                     &l, NULL),
                     NARU_OK);
    assert_int_equal(l.n_items, 4);
    assert_true(nr_str_is(nr_labels_get(&l, 0), "cat"));
    assert_true(nr_str_is(nr_labels_get(&l, 1), "dog"));
    assert_int_equal(nr_labels_get(&l, 2).len, 0);
    assert_true(nr_str_is(nr_labels_get(&l, 3), "na\xc3\xafve"));
    assert_int_equal(nr_labels_get(&l, 4).len, 0);
    assert_int_equal(nr_labels_get(NULL, 0).len, 0);
    nr_labels_done(&l);
    assert_int_equal(nr_labels_parse(NR_STR(""), &l, NULL), NARU_OK);
    assert_int_equal(l.n_items, 0);
    nr_labels_done(&l);
    assert_int_equal(nr_labels_parse(NR_STR("a\xff\n"), &l, NULL), NARU_INVALID);
    for (uint64_t n = 1; n <= 2; n++) {
        nr_mem_fail_after(n, false);
        assert_int_equal(nr_labels_parse(NR_STR("a\nb"), &l, NULL), NARU_NOMEM);
        nr_mem_fail_after(0, false);
        assert_null(l.items);
    }
}

static int by_score(const void *a, const void *b)
{
    const struct nr_label_score *x = a, *y = b;
    if (x->score != y->score) {
        return x->score < y->score ? 1 : -1;
    }
    return x->index < y->index ? -1 : 1;
}

static void test_against_sorting(void **state)
{
    (void)state;
    static float scores[1000];
    static struct nr_label_score sorted[1000], top[1000];
    uint32_t seed = 1;
    for (uint32_t i = 0; i < 1000; i++) {
        seed = seed * 1664525 + 1013904223;
        scores[i] = (float)(seed >> 24) / 16.0F - 5.0F; /* many ties */
        sorted[i] = (struct nr_label_score){i, scores[i]};
    }
    qsort(sorted, 1000, sizeof(*sorted), by_score);
    static const uint32_t ks[] = {1, 2, 5, 255, 999, 1000};
    for (size_t i = 0; i < NR_COUNT(ks); i++) {
        uint32_t n = 0;
        assert_int_equal(
            nr_labels_top(NARU_FP32, scores, sizeof(scores), false, ks[i], top, &n, NULL), NARU_OK);
        assert_int_equal(n, ks[i]);
        assert_memory_equal(top, sorted, n * sizeof(*top));
    }
}

static void test_softmax(void **state)
{
    (void)state;
    struct nr_label_score top[4];
    uint32_t n;
    float scores[4] = {1000.0F, 1002.0F, 999.0F, -INFINITY};
    assert_int_equal(nr_labels_top(NARU_FP32, scores, sizeof(scores), true, 9, top, &n, NULL),
                     NARU_OK);
    assert_int_equal(n, 4);
    double sum = 1 + exp(-2) + exp(-3);
    assert_int_equal(top[0].index, 1);
    assert_true(fabs(top[0].score - 1 / sum) < 1e-7);
    assert_true(fabs(top[1].score - exp(-2) / sum) < 1e-7);
    assert_true(fabs(top[2].score - exp(-3) / sum) < 1e-7);
    assert_true(top[3].score == 0.0F);
    float same[2] = {INFINITY, INFINITY};
    assert_int_equal(nr_labels_top(NARU_FP32, same, sizeof(same), true, 2, top, &n, NULL), NARU_OK);
    assert_true(top[0].score == 0.5F && top[1].score == 0.5F && top[0].index == 0);
}

static void test_odd_values(void **state)
{
    (void)state;
    struct nr_label_score top[4];
    uint32_t n;
    float scores[4] = {NAN, -1.0F, NAN, 3.0F};
    assert_int_equal(nr_labels_top(NARU_FP32, scores, sizeof(scores), false, 4, top, &n, NULL),
                     NARU_OK);
    assert_int_equal(top[0].index, 3);
    assert_int_equal(top[1].index, 1);
    assert_int_equal(top[2].index, 0);
    assert_int_equal(top[3].index, 2);
    assert_int_equal(nr_labels_top(NARU_FP32, NULL, 0, true, 4, top, &n, NULL), NARU_OK);
    assert_int_equal(n, 0);
    assert_int_equal(nr_labels_top(NARU_FP32, scores, 7, false, 1, top, &n, NULL), NARU_INVALID);
    assert_int_equal(nr_labels_top(NARU_BYTES, scores, 4, false, 1, top, &n, NULL), NARU_INVALID);
    int64_t counts[3] = {5, 900, 6};
    assert_int_equal(nr_labels_top(NARU_INT64, counts, sizeof(counts), false, 1, top, &n, NULL),
                     NARU_OK);
    assert_true(n == 1 && top[0].index == 1 && top[0].score == 900.0F);
    assert_int_equal(nr_labels_top(NARU_INT64, counts, sizeof(counts), false, 0, top, &n, NULL),
                     NARU_OK);
    assert_int_equal(n, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_file),
        cmocka_unit_test(test_against_sorting),
        cmocka_unit_test(test_softmax),
        cmocka_unit_test(test_odd_values),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
