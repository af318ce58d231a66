/* The heap layer: zeroing, overflow, failure injection, counting, thread-end hooks. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "base/mem.h"

static bool is_zero(const void *p, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (((const char *)p)[i] != 0) {
            return false;
        }
    }
    return true;
}

static void test_alloc(void **state)
{
    (void)state;
    nr_autofree char *a = nr_alloc(1000);
    assert_true(is_zero(a, 1000));
    nr_autofree char *none = nr_alloc(0);
    assert_non_null(none);
    nr_autofree char *tried = nr_try_alloc(0);
    assert_non_null(tried);
    nr_autofree uint64_t *array = nr_new_array(uint64_t, 100);
    assert_true(is_zero(array, 800));
    nr_autofree char *aligned = nr_try_alloc_aligned(4096, 10);
    assert_int_equal((uintptr_t)aligned % 4096, 0);
    nr_autofree char *text = nr_format("%d-%s", 5, "x");
    assert_string_equal(text, "5-x");
    nr_autofree char *copy = nr_strdup("copy");
    assert_string_equal(copy, "copy");
    copy = nr_realloc(copy, 4000);
    assert_string_equal(copy, "copy");
    nr_free(NULL);
}

static void test_too_large_is_null(void **state)
{
    (void)state;
    volatile size_t huge = SIZE_MAX / 2; /* volatile: the compiler warns of such constants */
    assert_null(nr_try_alloc(huge));
    nr_autofree char *p = nr_try_alloc(10);
    p[0] = 'k';
    assert_null(nr_try_realloc(p, huge));
    assert_int_equal(p[0], 'k');
    assert_null(nr_try_alloc_aligned(64, huge));
}

static void test_checked_arithmetic(void **state)
{
    (void)state;
    size_t r = 1;
    assert_true(nr_mul(SIZE_MAX, 1, &r));
    assert_true(r == SIZE_MAX);
    assert_false(nr_mul(SIZE_MAX / 2 + 1, 2, &r));
    assert_true(nr_mul(0, SIZE_MAX, &r));
    assert_true(nr_add(SIZE_MAX, 0, &r));
    assert_false(nr_add(SIZE_MAX, 1, &r));
}

static void test_fail_once(void **state)
{
    (void)state;
    nr_mem_fail_after(3, false);
    void *p[4];
    for (int i = 0; i < 4; i++) {
        p[i] = nr_try_alloc(8);
    }
    nr_mem_fail_after(0, false);
    assert_non_null(p[0]);
    assert_non_null(p[1]);
    assert_null(p[2]);
    assert_non_null(p[3]);
    for (int i = 0; i < 4; i++) {
        nr_free(p[i]);
    }
}

static void test_fail_for_ever(void **state)
{
    (void)state;
    nr_autofree char *kept = nr_try_alloc(8);
    nr_mem_fail_after(2, true);
    nr_autofree void *first = nr_try_alloc(8);
    assert_non_null(first);
    for (int i = 0; i < 5; i++) {
        assert_null(nr_try_alloc(8));
        assert_null(nr_try_realloc(kept, 100));
        assert_null(nr_try_alloc_aligned(64, 8));
    }
    /* Fixed-size allocations are not concerned. */
    nr_autofree void *fixed = nr_alloc(8);
    assert_non_null(fixed);
    nr_mem_fail_after(0, true);
    nr_autofree void *again = nr_try_alloc(8);
    assert_non_null(again);
}

static void test_counts(void **state)
{
    (void)state;
    uint64_t before = nr_mem_allocs();
    nr_free(nr_alloc(1));
    nr_free(nr_try_alloc(1));
    nr_free(nr_strdup("x"));
    nr_free(nr_format("x"));
    nr_free(nr_realloc(NULL, 5));
    nr_free(nr_try_alloc_aligned(64, 5));
    assert_int_equal(nr_mem_allocs() - before, 6);
}

static _Atomic int hook_runs;
static void on_end(void)
{
    atomic_fetch_add(&hook_runs, 1);
}
static void on_end_again(void)
{
    /* Registering while hooks run: runs in a later round. */
    if (atomic_fetch_add(&hook_runs, 10) < 10) {
        nr_mem_at_thread_end(on_end_again);
    }
}

static void *run_thread(void *arg)
{
    (void)arg;
    for (int i = 0; i < 3; i++) {
        nr_mem_at_thread_end(on_end);
        nr_mem_at_thread_end(on_end_again);
    }
    return NULL;
}

static void test_thread_end(void **state)
{
    (void)state;
    pthread_t t;
    assert_int_equal(pthread_create(&t, NULL, run_thread, NULL), 0);
    pthread_join(t, NULL);
    assert_int_equal(atomic_load(&hook_runs), 21);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_alloc),      cmocka_unit_test(test_too_large_is_null),
        cmocka_unit_test(test_fail_once),  cmocka_unit_test(test_checked_arithmetic),
        cmocka_unit_test(test_counts),     cmocka_unit_test(test_fail_for_ever),
        cmocka_unit_test(test_thread_end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
