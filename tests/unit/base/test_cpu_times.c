/* Processor times of this process and its threads, as the kernel counts them. */
#include "base/cpu_times.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "base/clock.h"

static atomic_bool over;

static void *spin(void *arg)
{
    (void)arg;
    while (!atomic_load(&over)) {
    }
    return NULL;
}

static const struct nr_cpu_thread *thread_named(const struct nr_cpu_times *t, const char *name)
{
    for (unsigned i = 0; i < t->n_threads; i++) {
        if (strcmp(t->threads[i].name, name) == 0) {
            return &t->threads[i];
        }
    }
    return NULL;
}

static void test_a_thread_that_computes(void **state)
{
    (void)state;
    struct nr_arena a;
    struct nr_cpu_times first, last;
    pthread_t thread;
    nr_arena_init(&a, 0);
    assert_int_equal(pthread_create(&thread, NULL, spin, NULL), 0);
    pthread_setname_np(thread, "spin) S 1 (2"); /* a name that looks like the line's own words */
    nr_cpu_times_read(&a, &first);
    const struct nr_cpu_thread *before = thread_named(&first, "spin) S 1 (2");
    assert_non_null(before);
    /* until the kernel has given it 100 ms, which may take longer on a busy machine */
    const struct nr_cpu_thread *now = before;
    int64_t begin_ns = nr_clock_now();
    do {
        nr_cpu_times_read(&a, &last);
        now = thread_named(&last, "spin) S 1 (2");
        assert_non_null(now);
        assert_true(nr_clock_now() - begin_ns < 60 * NR_S_NS);
    } while (now->ns - before->ns < 100 * NR_MS_NS);
    assert_int_equal(now->id, before->id);
    assert_true(now->preempted >= before->preempted && now->waited >= before->waited);
    assert_true(last.at_ns > first.at_ns);
    assert_true(last.own_ns - first.own_ns >= 90 * NR_MS_NS); /* ticks of 10 ms */
    assert_true(last.busy_ns >= first.busy_ns);
    assert_true(last.cores >= 1);
    int64_t sum_ns = 0;
    for (unsigned i = 0; i < last.n_threads; i++) {
        sum_ns += last.threads[i].ns;
    }
    assert_true(sum_ns <= last.own_ns + 200 * NR_MS_NS);
    atomic_store(&over, true);
    pthread_join(thread, NULL);
    nr_arena_done(&a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_a_thread_that_computes)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
