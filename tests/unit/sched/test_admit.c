/* The limit that adapts, against a model of a server on invented time: it must find what the server
 * can do, follow when that changes, and not swing. */
#include "sched/admit.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include "base/clock.h"

#define WAIT_NS (500 * NR_MS_NS)

/* A server that is never idle: n places, batches of `rows`, each run takes run_ns. */
struct server {
    struct nr_admit admit;
    unsigned n_places, next;
    int64_t now_ns, rows, run_ns, until_ns[8];
    int64_t lowest, highest; /* of the limit since the last reset */
};

static void start(struct server *s, unsigned n_places, int64_t rows, int64_t run_ns)
{
    *s = (struct server){.n_places = n_places, .rows = rows, .run_ns = run_ns, .now_ns = NR_S_NS};
    nr_admit_init(&s->admit, n_places, 64);
    s->lowest = INT64_MAX;
}

static int64_t limit(const struct server *s)
{
    return nr_admit_rows(&s->admit, WAIT_NS, s->now_ns);
}

static int64_t ideal(const struct server *s)
{
    return WAIT_NS / (s->run_ns / s->rows / s->n_places);
}

/* Runs until `for_ns` have passed; the limit's range is taken from `settled_ns` on. */
static void serve(struct server *s, int64_t for_ns, int64_t settled_ns)
{
    int64_t begin_ns = s->now_ns;
    while (s->now_ns < begin_ns + for_ns) {
        unsigned p = 0;
        for (unsigned i = 1; i < s->n_places; i++) {
            p = s->until_ns[i] < s->until_ns[p] ? i : p;
        }
        s->now_ns = NR_MAX(s->now_ns, s->until_ns[p]);
        if (s->until_ns[p] != 0) {
            nr_admit_ran(&s->admit, s->rows, s->run_ns);
        }
        nr_admit_took(&s->admit, s->rows, 1000, s->now_ns);
        s->until_ns[p] = s->now_ns + s->run_ns;
        if (s->now_ns >= begin_ns + settled_ns) {
            s->lowest = NR_MIN(s->lowest, limit(s));
            s->highest = NR_MAX(s->highest, limit(s));
        }
    }
}

static void expect_settled(struct server *s)
{
    assert_in_range(s->lowest, ideal(s) * 8 / 10, ideal(s) * 12 / 10);
    assert_in_range(s->highest, ideal(s) * 8 / 10, ideal(s) * 12 / 10);
    assert_true(s->highest <= 2 * s->lowest);
    s->lowest = INT64_MAX;
    s->highest = 0;
}

/* Test O5: the service time doubles, then halves. Within five seconds the limit is within a fifth
 * of the ideal one and stays there. */
static void test_limit_follows_the_service_time(void **state)
{
    (void)state;
    static const struct {
        unsigned places;
        int64_t rows, run_ns;
    } cases[] = {{1, 1, 10 * NR_MS_NS},   {1, 8, 40 * NR_MS_NS}, {2, 1, 10 * NR_MS_NS},
                 {4, 16, 100 * NR_MS_NS}, {8, 1, NR_MS_NS},      {1, 1, 200 * NR_MS_NS}};
    for (unsigned i = 0; i < NR_COUNT(cases); i++) {
        struct server s;
        start(&s, cases[i].places, cases[i].rows, cases[i].run_ns);
        serve(&s, 10 * NR_S_NS, 5 * NR_S_NS);
        expect_settled(&s);
        s.run_ns *= 2;
        serve(&s, 15 * NR_S_NS, 5 * NR_S_NS);
        expect_settled(&s);
        s.run_ns /= 2;
        serve(&s, 15 * NR_S_NS, 5 * NR_S_NS);
        expect_settled(&s);
    }
}

/* Runs that jitter by a half move the limit by less. */
static void test_limit_is_steady(void **state)
{
    (void)state;
    struct server s;
    uint64_t random = 1;
    start(&s, 1, 1, 10 * NR_MS_NS);
    for (unsigned i = 0; i < 2000; i++) {
        random = random * 6364136223846793005u + 1442695040888963407u;
        s.run_ns = 10 * NR_MS_NS * (int64_t)(750 + (random >> 33) % 500) / 1000;
        serve(&s, 1, i > 100 ? 0 : NR_S_NS);
    }
    assert_true(s.highest < 2 * s.lowest);
    assert_in_range(s.lowest, 35, 50);
    assert_in_range(s.highest, 50, 65);
}

static void test_nothing_known(void **state)
{
    (void)state;
    struct nr_admit a;
    nr_admit_init(&a, 1, 1);
    assert_true(nr_admit_rows(&a, WAIT_NS, 5) == INT64_MAX);
    assert_int_equal(nr_admit_wait(&a, INT64_MAX), 0);
    nr_admit_ran(&a, 1, 10 * NR_MS_NS);
    assert_int_equal(nr_admit_rows(&a, WAIT_NS, 5), 50);
    assert_true(nr_admit_wait(&a, INT64_MAX / 2) == INT64_MAX); /* no overflow */
}

/* A pace learned beside a neighbour is forgotten when he is gone, though nobody queues any more. */
static void test_old_pace_is_forgotten(void **state)
{
    (void)state;
    struct server s;
    start(&s, 1, 1, NR_S_NS);
    serve(&s, 20 * NR_S_NS, 0);
    assert_in_range(nr_admit_wait(&s.admit, 1), NR_S_NS * 9 / 10, NR_S_NS * 11 / 10);
    for (unsigned i = 0; i < 30; i++) {
        s.now_ns += NR_S_NS;
        nr_admit_took(&s.admit, 1, 0, s.now_ns);
        nr_admit_ran(&s.admit, 1, NR_MS_NS);
    }
    assert_true(nr_admit_wait(&s.admit, 1) < 50 * NR_MS_NS);
}

/* One that hangs: what waits behind it waits at least as long as it has hung. */
static void test_hanging_model(void **state)
{
    (void)state;
    struct server s;
    start(&s, 1, 1, 10 * NR_MS_NS);
    serve(&s, NR_S_NS, 0);
    assert_true(limit(&s) >= 40);
    s.now_ns += 300 * NR_MS_NS;
    assert_in_range(limit(&s), 15, 25); /* 500 less 300 milliseconds, at 10 */
    s.now_ns += 10 * NR_S_NS;
    assert_int_equal(limit(&s), 0);
}

/* A burst to an idle model of batches is not judged by the batches of one that it ran before. */
static void test_first_burst_is_not_refused(void **state)
{
    (void)state;
    struct nr_admit a;
    nr_admit_init(&a, 1, 64);
    for (unsigned i = 0; i < 20; i++) {
        nr_admit_took(&a, 1, 0, i * NR_S_NS);
        nr_admit_ran(&a, 1, 100 * NR_MS_NS);
    }
    assert_true(nr_admit_wait(&a, 63) <= 100 * NR_MS_NS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_limit_follows_the_service_time),
        cmocka_unit_test(test_limit_is_steady),
        cmocka_unit_test(test_nothing_known),
        cmocka_unit_test(test_old_pace_is_forgotten),
        cmocka_unit_test(test_hanging_model),
        cmocka_unit_test(test_first_burst_is_not_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
