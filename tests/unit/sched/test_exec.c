/* Executor threads: no wake is lost, blocked work does not stop others, retiring waits. */
#include "sched/exec.h"

#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <time.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/status.h"

struct work {
    struct nr_runnable runnable;
    struct nr_exec *exec;
    _Atomic int todo, done, inside, most_inside;
    int64_t block_ns;
};

static void nap(int64_t ns)
{
    struct timespec ts = {ns / NR_S_NS, ns % NR_S_NS};
    nanosleep(&ts, NULL);
}

static bool run(struct nr_runnable *r)
{
    struct work *w = nr_container_of(r, struct work, runnable);
    int inside = atomic_fetch_add(&w->inside, 1) + 1;
    int most = atomic_load(&w->most_inside);
    while (inside > most && !atomic_compare_exchange_weak(&w->most_inside, &most, inside)) {
    }
    bool more = false;
    int left = atomic_load(&w->todo);
    while (left > 0 && !atomic_compare_exchange_weak(&w->todo, &left, left - 1)) {
    }
    if (left > 0) {
        if (left > 1) {
            nr_exec_wake(w->exec, r);
        }
        if (w->block_ns > 0) {
            nap(w->block_ns);
        }
        atomic_fetch_add(&w->done, 1);
        more = atomic_load(&w->todo) > 0;
    }
    atomic_fetch_sub(&w->inside, 1);
    return more;
}

static void start(struct work *w, struct nr_exec *e, int64_t block_ns)
{
    *w = (struct work){.exec = e, .block_ns = block_ns};
    nr_exec_init(&w->runnable, run);
}

static bool wait_done(struct work *w, int n)
{
    int64_t until = nr_clock_now() + 10 * NR_S_NS;
    while (atomic_load(&w->done) < n && nr_clock_now() < until) {
        nap(100 * NR_US_NS);
    }
    return atomic_load(&w->done) == n;
}

static void test_no_wake_is_lost(void **state)
{
    (void)state;
    struct nr_exec *e = nr_exec_new(2, 4);
    struct work w;
    start(&w, e, 0);
    for (int i = 0; i < 20000; i++) {
        atomic_fetch_add(&w.todo, 1);
        nr_exec_wake(e, &w.runnable);
    }
    assert_true(wait_done(&w, 20000));
    nr_exec_retire(e, &w.runnable);
    nr_exec_free(e);
}

static void test_blocked_threads_are_replaced(void **state)
{
    (void)state;
    struct nr_exec *e = nr_exec_new(1, 8);
    struct work slow, quick;
    start(&slow, e, 400 * NR_MS_NS);
    start(&quick, e, 0);
    atomic_store(&slow.todo, 2);
    nr_exec_wake(e, &slow.runnable);
    nap(20 * NR_MS_NS);
    int64_t begin = nr_clock_now();
    atomic_store(&quick.todo, 1);
    nr_exec_wake(e, &quick.runnable);
    assert_true(wait_done(&quick, 1));
    assert_true(nr_clock_now() - begin < 300 * NR_MS_NS); /* not behind the sleepers */
    assert_true(wait_done(&slow, 2));
    assert_true(nr_exec_threads(e) <= 8);
    nr_exec_retire(e, &slow.runnable);
    nr_exec_retire(e, &quick.runnable);
    nr_exec_free(e);
}

static void test_idle_workers_take_work_at_once(void **state)
{
    (void)state;
    struct nr_exec *e = nr_exec_new(2, 4);
    struct work w;
    start(&w, e, 0);
    unsigned quick = 0;
    for (int i = 0; i < 50; i++) {
        nap(2 * NR_MS_NS); /* so that they are idle, not still awake */
        int64_t begin = nr_clock_now();
        atomic_fetch_add(&w.todo, 1);
        nr_exec_wake(e, &w.runnable);
        while (atomic_load(&w.done) <= i && nr_clock_now() - begin < NR_S_NS) {
            sched_yield();
        }
        quick += nr_clock_now() - begin < 3 * NR_MS_NS;
    }
    assert_int_equal(atomic_load(&w.done), 50);
    assert_true(quick > 25); /* the spare's patience of 5 ms is not part of the way */
    nr_exec_retire(e, &w.runnable);
    nr_exec_free(e);
}

static void test_timed_wake(void **state)
{
    (void)state;
    struct nr_exec *e = nr_exec_new(2, 4);
    struct work w;
    start(&w, e, 0);
    atomic_store(&w.todo, 1);
    int64_t begin = nr_clock_now();
    nr_exec_wake_at(e, &w.runnable, begin + 30 * NR_MS_NS);
    nr_exec_wake_at(e, &w.runnable, begin + 900 * NR_MS_NS); /* a later time changes nothing */
    assert_true(wait_done(&w, 1));
    int64_t took = nr_clock_now() - begin;
    assert_true(took >= 30 * NR_MS_NS);
    assert_true(took < 800 * NR_MS_NS);
    nr_exec_retire(e, &w.runnable);
    nr_exec_free(e);
}

static void test_retire_waits_for_what_runs(void **state)
{
    (void)state;
    struct nr_exec *e = nr_exec_new(2, 4);
    struct work w;
    start(&w, e, 50 * NR_MS_NS);
    atomic_store(&w.todo, 1);
    nr_exec_wake(e, &w.runnable);
    nap(10 * NR_MS_NS);
    nr_exec_retire(e, &w.runnable);
    assert_int_equal(atomic_load(&w.inside), 0);
    nr_exec_free(e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_no_wake_is_lost),
        cmocka_unit_test(test_blocked_threads_are_replaced),
        cmocka_unit_test(test_idle_workers_take_work_at_once),
        cmocka_unit_test(test_timed_wake),
        cmocka_unit_test(test_retire_waits_for_what_runs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
