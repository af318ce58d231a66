/* Sets of cores from text, and binding a thread to them. */
#include "base/cpu.h"

#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

static void test_texts(void **state)
{
    (void)state;
    struct nr_cpu_set s;
    assert_true(nr_cpu_parse(NR_STR("0-2,8,63-64,1023"), &s));
    assert_int_equal(nr_cpu_count(&s), 7);
    assert_true(nr_cpu_has(&s, 0));
    assert_true(nr_cpu_has(&s, 2));
    assert_false(nr_cpu_has(&s, 3));
    assert_true(nr_cpu_has(&s, 8));
    assert_true(nr_cpu_has(&s, 63));
    assert_true(nr_cpu_has(&s, 64));
    assert_true(nr_cpu_has(&s, 1023));
    assert_false(nr_cpu_has(&s, 1024));
    assert_true(nr_cpu_parse(NR_STR("5-5,5"), &s));
    assert_int_equal(nr_cpu_count(&s), 1);
    static const char *const wrong[] = {
        "",     "-",      "a",    "1-",  "-1", "1,",    ",1",   "2-1",
        "1024", "0-1024", "1--2", "0x1", "1 ", "1-2-3", "0,,1", "18446744073709551616"};
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        s = (struct nr_cpu_set){{7}};
        if (nr_cpu_parse(nr_str_from(wrong[i]), &s)) {
            fail_msg("\"%s\" was taken", wrong[i]);
        }
        assert_int_equal(s.bits[0], 7); /* untouched */
    }
}

static void *bind_to_one(void *arg)
{
    struct nr_cpu_set all, one = {{0}}, now;
    bool *ok = arg;
    nr_cpu_allowed(&all);
    unsigned core = 0;
    while (!nr_cpu_has(&all, core)) {
        core++;
    }
    one.bits[core / 64] = UINT64_C(1) << (core % 64);
    *ok = nr_cpu_bind(&one);
    nr_cpu_allowed(&now);
    *ok = *ok && memcmp(&now, &one, sizeof(now)) == 0 && nr_cpu_usable() == 1 &&
          sched_getcpu() == (int)core;
    *ok = *ok && !nr_cpu_bind(&(struct nr_cpu_set){{0}}); /* no core at all is refused */
    nr_cpu_allowed(&now);
    *ok = *ok && memcmp(&now, &one, sizeof(now)) == 0;
    return NULL;
}

static void test_binding_is_the_threads_own(void **state)
{
    (void)state;
    pthread_t t;
    bool ok = false;
    struct nr_cpu_set before, after;
    nr_cpu_allowed(&before);
    assert_int_equal(nr_cpu_count(&before), nr_cpu_usable());
    assert_int_equal(pthread_create(&t, NULL, bind_to_one, &ok), 0);
    pthread_join(t, NULL);
    assert_true(ok);
    nr_cpu_allowed(&after);
    assert_memory_equal(&before, &after, sizeof(before));
}

static void test_memory_nodes(void **state)
{
    (void)state;
    struct nr_cpu_set nodes;
    (void)nr_cpu_nodes(&nodes);
    assert_true(nr_cpu_count(&nodes) >= 1);
    /* A container may forbid the call; then it says so. A node beyond all is never taken. */
    assert_false(nr_cpu_prefer_node(NR_CPU_MAX));
    if (nr_cpu_prefer_node(0)) {
        assert_true(nr_cpu_prefer_node(-1));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_texts),
        cmocka_unit_test(test_binding_is_the_threads_own),
        cmocka_unit_test(test_memory_nodes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
