/* The clock: fake time, and dates compared with the C library's calendar. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"

static void test_fake(void **state)
{
    (void)state;
    int64_t real = nr_clock_now();
    assert_true(nr_clock_now() >= real);
    assert_false(nr_clock_is_fake());
    nr_clock_fake(true, 1000);
    assert_true(nr_clock_is_fake());
    assert_int_equal(nr_clock_now(), 1000);
    nr_clock_fake_advance(5 * NR_S_NS);
    assert_true(nr_clock_now() == 1000 + 5 * NR_S_NS);
    nr_clock_fake(false, 0);
    assert_true(nr_clock_now() >= real);
}

static void test_wall_and_cpu(void **state)
{
    (void)state;
    assert_true(nr_clock_wall() / NR_S_NS >= 1700000000);
    int64_t cpu = nr_clock_thread_cpu();
    volatile unsigned sum = 0;
    for (unsigned i = 0; i < 1000000; i++) {
        sum += i;
    }
    assert_true(nr_clock_thread_cpu() > cpu);
}

static void check_date(int64_t wall_ns)
{
    char got[25];
    char want[64];
    time_t s = (time_t)(wall_ns / NR_S_NS);
    struct tm tm;
    gmtime_r(&s, &tm);
    snprintf(want, sizeof(want), "%04d-%02d-%02dT%02d:%02d:%02d.%03dZ", tm.tm_year + 1900,
             tm.tm_mon + 1, tm.tm_mday, tm.tm_hour, tm.tm_min, tm.tm_sec,
             (int)(wall_ns / NR_MS_NS % 1000));
    nr_clock_format(wall_ns, got);
    assert_string_equal(got, want);
}

static void test_dates(void **state)
{
    (void)state;
    char text[25];
    nr_clock_format(INT64_C(1795253400123456789), text);
    assert_string_equal(text, "2026-11-21T09:30:00.123Z");
    nr_clock_format(0, text);
    assert_string_equal(text, "1970-01-01T00:00:00.000Z");
    nr_clock_format(-5, text);
    assert_string_equal(text, "1970-01-01T00:00:00.000Z");
    /* Both sides of midnight of every day up to 2262, where int64 nanoseconds end. */
    for (int64_t day = 1; day < 106751; day++) {
        check_date(day * 86400 * NR_S_NS);
        check_date(day * 86400 * NR_S_NS - 1);
    }
    check_date(INT64_MAX);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fake),
        cmocka_unit_test(test_wall_and_cpu),
        cmocka_unit_test(test_dates),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
