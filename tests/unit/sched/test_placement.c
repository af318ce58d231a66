/* Placement: when a model moves to the I/O thread and back. */
#include "sched/placement.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "base/clock.h"

static struct nr_placement make(bool allowed)
{
    struct nr_placement_cfg cfg;
    struct nr_placement p;
    nr_placement_cfg_default(&cfg);
    cfg.allowed = allowed;
    nr_placement_init(&p, &cfg);
    return p;
}

static int64_t feed(struct nr_placement *p, unsigned n, int64_t run_ns, int64_t now_ns)
{
    for (unsigned i = 0; i < n; i++) {
        now_ns += 1000;
        nr_placement_observe(p, 1, run_ns, run_ns, now_ns);
    }
    return now_ns;
}

static void test_short_model_is_promoted_after_proof(void **state)
{
    (void)state;
    struct nr_placement p = make(true);
    int64_t now = feed(&p, p.cfg.proof - 1, 5000, 1);
    assert_false(p.is_inline);
    feed(&p, 1, 5000, now);
    assert_true(p.is_inline);
    assert_int_equal(p.n_promoted, 1);
}

static void test_not_allowed_is_never_inline(void **state)
{
    (void)state;
    struct nr_placement p = make(false);
    feed(&p, 10000, 1000, 1);
    assert_false(p.is_inline);
}

static void test_slow_model_stays_pooled(void **state)
{
    (void)state;
    struct nr_placement p = make(true);
    feed(&p, 10000, p.cfg.short_ns + 1, 1);
    assert_false(p.is_inline);
}

static void test_one_slow_execution_demotes_at_once(void **state)
{
    (void)state;
    struct nr_placement p = make(true);
    int64_t now = feed(&p, 100, 5000, 1);
    nr_placement_observe(&p, 1, 5 * NR_MS_NS, 5 * NR_MS_NS, now);
    assert_false(p.is_inline);
    /* and it does not come back while it stays slow, however long */
    feed(&p, 100000, 5 * NR_MS_NS, now);
    assert_false(p.is_inline);
    assert_int_equal(p.n_demoted, 1);
}

static void test_back_off_doubles(void **state)
{
    (void)state;
    struct nr_placement p = make(true);
    int64_t now = feed(&p, 100, 5000, 1), first, second;
    nr_placement_observe(&p, 1, 5 * NR_MS_NS, 5 * NR_MS_NS, now);
    first = p.retry_ns - now;
    now = p.retry_ns - 1000 * 20;
    now = feed(&p, 19, 5000, now);
    assert_false(p.is_inline); /* short again, but too early */
    now = feed(&p, 2, 5000, now);
    assert_true(p.is_inline);
    nr_placement_observe(&p, 1, 5 * NR_MS_NS, 5 * NR_MS_NS, now);
    second = p.retry_ns - now;
    assert_int_equal(second, 2 * first);
}

static void test_many_slightly_long_executions_demote(void **state)
{
    (void)state;
    struct nr_placement p = make(true);
    int64_t now = feed(&p, 100, 5000, 1);
    feed(&p, 20, p.cfg.short_ns * 2, now);
    assert_false(p.is_inline);
}

static void test_too_many_long_executions_demote(void **state)
{
    (void)state;
    struct nr_placement p = make(true);
    int64_t now = feed(&p, 100, 5000, 1);
    now = feed(&p, 1, p.cfg.slow_ns / 2, now);
    assert_true(p.is_inline);
    now = feed(&p, 100, 5000, now);
    feed(&p, 1, p.cfg.slow_ns / 2, now); /* two within 1,000 */
    assert_false(p.is_inline);
}

static void test_a_rare_long_execution_is_forgiven(void **state)
{
    (void)state;
    struct nr_placement p = make(true);
    int64_t now = feed(&p, 100, 5000, 1);
    for (unsigned i = 0; i < 20; i++) { /* 1 in 2,000: below p99.9 */
        now = feed(&p, 1999, 5000, now);
        now = feed(&p, 1, p.cfg.slow_ns / 2, now);
    }
    assert_true(p.is_inline);
}

static void test_preemption_is_forgiven_blocking_is_not(void **state)
{
    (void)state;
    struct nr_placement p = make(true);
    int64_t now = feed(&p, 100, 5000, 1);
    for (unsigned i = 0; i < 5; i++) { /* long on the wall, short on the processor, now and then */
        nr_placement_observe(&p, 1, 5 * NR_MS_NS, 6000, now += 1000);
        assert_true(p.is_inline);
        now = feed(&p, 2000, 5000, now);
    }
    for (unsigned i = 0; i < 3; i++) { /* in a row: no accident */
        assert_true(p.is_inline);
        nr_placement_observe(&p, 1, 5 * NR_MS_NS, 6000, now += 1000);
    }
    assert_false(p.is_inline);
}

static void test_rows_are_allowed_for(void **state)
{
    (void)state;
    struct nr_placement p = make(true);
    int64_t now = feed(&p, 100, 5000, 1);
    for (unsigned i = 0; i < 5000; i++) {
        nr_placement_observe(&p, 32, 60 * NR_US_NS, 60 * NR_US_NS,
                             now += 1000); /* 32 rows in 60 µs are not slow */
    }
    assert_true(p.is_inline);
    int64_t expect = nr_placement_expect(&p, 32);
    assert_in_range(expect, 50 * NR_US_NS, 70 * NR_US_NS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_short_model_is_promoted_after_proof),
        cmocka_unit_test(test_not_allowed_is_never_inline),
        cmocka_unit_test(test_slow_model_stays_pooled),
        cmocka_unit_test(test_one_slow_execution_demotes_at_once),
        cmocka_unit_test(test_back_off_doubles),
        cmocka_unit_test(test_many_slightly_long_executions_demote),
        cmocka_unit_test(test_too_many_long_executions_demote),
        cmocka_unit_test(test_a_rare_long_execution_is_forgiven),
        cmocka_unit_test(test_preemption_is_forgiven_blocking_is_not),
        cmocka_unit_test(test_rows_are_allowed_for),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
