/* Who gets an executor next: shares by time and by cost, on invented times. */
#include "sched/fair.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/status.h"

#define MOST 8

struct model {
    struct nr_share share;
    int64_t run_ns;   /* of its next run */
    int64_t cpu_ns;   /* of that on the processor; 0: all */
    unsigned at_once; /* runs at the same time, at most */
    /* … */
    bool wants;
    unsigned running;
    int64_t used_ns, runs, since_ns, longest_wait_ns;
};

struct thread {
    struct model *model;
    int64_t end_ns, charged_ns;
};

struct world {
    struct nr_fair fair;
    struct model m[MOST];
    struct thread t[MOST];
    unsigned n, threads;
    int64_t now_ns;
};

static void start(struct world *w)
{
    for (unsigned i = 0; i < w->threads; i++) {
        struct model *best = NULL;
        if (w->t[i].model != NULL) {
            continue;
        }
        for (unsigned k = 0; k < w->n; k++) {
            struct model *m = &w->m[k];
            if (m->wants && m->running < m->at_once &&
                (best == NULL || nr_fair_before(&m->share, &best->share))) {
                best = m;
            }
        }
        if (best == NULL) {
            return;
        }
        w->t[i] = (struct thread){.model = best, .end_ns = w->now_ns + best->run_ns};
        w->t[i].charged_ns = nr_fair_begin(&w->fair, &best->share);
        best->running++;
        best->longest_wait_ns = NR_MAX(best->longest_wait_ns, w->now_ns - best->since_ns);
        best->since_ns = w->now_ns;
    }
}

/* Until the time, everyone who wants wanting again at once. */
static void run_until(struct world *w, int64_t end_ns)
{
    for (;;) {
        struct thread *next = NULL;
        start(w);
        for (unsigned i = 0; i < w->threads; i++) {
            struct thread *t = &w->t[i];
            if (t->model != NULL && (next == NULL || t->end_ns < next->end_ns)) {
                next = t;
            }
        }
        if (next == NULL || next->end_ns > end_ns) {
            w->now_ns = end_ns;
            return;
        }
        struct model *m = next->model;
        w->now_ns = next->end_ns;
        int64_t used_ns = m->cpu_ns > 0 ? m->cpu_ns : m->run_ns;
        nr_fair_end(&m->share, next->charged_ns, used_ns);
        m->used_ns += used_ns;
        m->runs++;
        m->running--;
        next->model = NULL;
    }
}

static struct model *add(struct world *w, int64_t run_ms, unsigned at_once, uint32_t cost)
{
    struct model *m = &w->m[w->n++];
    *m = (struct model){.run_ns = run_ms * NR_MS_NS, .at_once = at_once, .wants = true};
    m->share.cost = cost;
    nr_fair_arrive(&w->fair, &m->share);
    m->since_ns = w->now_ns;
    return m;
}

static double share_of(const struct model *m, const struct model *of)
{
    return (double)m->used_ns / (double)NR_MAX(of->used_ns, 1);
}

static void near(double is, double want, double off)
{
    if (is < want * (1 - off) || is > want * (1 + off)) {
        fail_msg("%f, expected %f", is, want);
    }
}

static void test_short_and_long_runs_share_by_time(void **state)
{
    (void)state;
    for (unsigned threads = 1; threads <= 4; threads++) {
        struct world w = {.threads = threads};
        struct model *quick = add(&w, 5, 4, 0), *slow = add(&w, 100, 4, 0);
        run_until(&w, 20 * NR_S_NS);
        near(share_of(quick, slow), 1, 0.05);
        /* it never waits for more than the runs that were going on, and one more */
        assert_true(quick->longest_wait_ns <= 2 * slow->run_ns);
    }
}

static void test_costs_are_inverse_weights(void **state)
{
    (void)state;
    struct world w = {.threads = 1};
    struct model *one = add(&w, 3, 1, NR_FAIR_ONE), *two = add(&w, 7, 1, 2 * NR_FAIR_ONE),
                 *four = add(&w, 11, 1, 4 * NR_FAIR_ONE), *usual = add(&w, 2, 1, 0);
    run_until(&w, 60 * NR_S_NS);
    near(share_of(one, two), 2, 0.02);
    near(share_of(one, four), 4, 0.02);
    near(share_of(one, usual), 1, 0.02);
}

static void test_nobody_starves(void **state)
{
    (void)state;
    struct world w = {.threads = 2};
    struct model *last = add(&w, 10, 1, 100 * NR_FAIR_ONE);
    for (unsigned i = 0; i < 5; i++) {
        add(&w, 10, 2, NR_FAIR_ONE / 10);
    }
    run_until(&w, 600 * NR_S_NS);
    assert_true(last->runs > 5);
}

static void test_idle_saves_nothing(void **state)
{
    (void)state;
    struct world w = {.threads = 1};
    struct model *busy = add(&w, 5, 1, 0), *back = add(&w, 5, 1, 0);
    back->wants = false;
    run_until(&w, 10 * NR_S_NS);
    back->wants = true;
    back->since_ns = w.now_ns;
    nr_fair_arrive(&w.fair, &back->share);
    int64_t before_ns = busy->used_ns;
    run_until(&w, 11 * NR_S_NS);
    near((double)back->used_ns, (double)(busy->used_ns - before_ns), 0.05);
    assert_true(back->longest_wait_ns <= 10 * NR_MS_NS); /* nor does it pay for the others */
}

static void test_waiting_elsewhere_is_free(void **state)
{
    (void)state;
    struct world w = {.threads = 2};
    struct model *sleeps = add(&w, 50, 1, 0), *computes = add(&w, 50, 2, 0);
    sleeps->cpu_ns = 1000;
    run_until(&w, 10 * NR_S_NS);
    assert_true(sleeps->runs >= 199); /* as if it were alone */
    assert_true(computes->runs >= 199);
}

static void test_a_run_that_goes_on_counts(void **state)
{
    (void)state;
    struct world w = {.threads = 2};
    struct model *slow = add(&w, 100, 2, 0), *quick = add(&w, 5, 1, 0);
    run_until(&w, 2 * NR_S_NS);
    /* Of two threads a model that has all it wants of one leaves the other one to the rest. */
    near(share_of(quick, slow), 1, 0.1);
    assert_true(quick->longest_wait_ns <= slow->run_ns);
}

/* Random loads: shares by cost among all that always want, whatever their runs. */
static void test_random_models_get_their_shares(void **state)
{
    (void)state;
    const char *given = getenv("NR_TEST_SEED");
    unsigned seed = (unsigned)time(NULL);
    if (given != NULL) {
        seed = (unsigned)strtoul(given, NULL, 10);
    }
    print_message("NR_TEST_SEED=%u\n", seed);
    for (unsigned round = 0; round < 50; round++) {
        struct world w = {.threads = 1};
        unsigned n = 2 + (unsigned)rand_r(&seed) % (MOST - 2);
        for (unsigned i = 0; i < n; i++) {
            add(&w, 1 + rand_r(&seed) % 40, 1, (1 + (unsigned)rand_r(&seed) % 8) * NR_FAIR_ONE);
        }
        int64_t end_ns = 0, last = -1;
        while (end_ns < 120 * NR_S_NS) {
            end_ns += NR_S_NS;
            run_until(&w, end_ns);
            assert_true(w.fair.now >= last);
            last = w.fair.now;
            for (unsigned i = 0; i < n; i++) { /* lengths change, too */
                w.m[i].run_ns = (1 + rand_r(&seed) % 40) * NR_MS_NS;
            }
        }
        for (unsigned i = 1; i < n; i++) {
            double want = (double)w.m[0].share.cost / (double)w.m[i].share.cost;
            near(share_of(&w.m[i], &w.m[0]), want, 0.1);
        }
    }
}

static void test_large_numbers(void **state)
{
    (void)state;
    struct nr_fair f = {0};
    struct nr_share s = {.cost = UINT32_MAX};
    nr_fair_arrive(&f, &s);
    int64_t charged = nr_fair_begin(&f, &s);
    nr_fair_end(&s, charged, 3600 * NR_S_NS); /* an hour, at a thousand times the cost */
    assert_true(s.at == 3600 * NR_S_NS * (NR_FAIR_MOST / NR_FAIR_ONE));
    charged = nr_fair_begin(&f, &s);
    nr_fair_end(&s, charged, -5); /* a clock that went back */
    assert_true(s.at == 3600 * NR_S_NS * (NR_FAIR_MOST / NR_FAIR_ONE));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_short_and_long_runs_share_by_time),
        cmocka_unit_test(test_costs_are_inverse_weights),
        cmocka_unit_test(test_nobody_starves),
        cmocka_unit_test(test_idle_saves_nothing),
        cmocka_unit_test(test_waiting_elsewhere_is_free),
        cmocka_unit_test(test_a_run_that_goes_on_counts),
        cmocka_unit_test(test_random_models_get_their_shares),
        cmocka_unit_test(test_large_numbers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
