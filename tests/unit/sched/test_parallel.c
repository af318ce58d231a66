/* Ways of sharing the cores on invented machines: closed loops of clients on a fake clock. */
#include "sched/parallel.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/status.h"

#define MAX_RUNS 16u
#define MAKE_NS (10 * NR_MS_NS)

struct machine {
    struct nr_parallel p;
    int64_t now_ns, busy_ns, own_ns, look_ns;
    int64_t cost_ns[2][NR_WAYS]; /* [others want the cores] for a row, with all lanes in use */
    double others;               /* cores that they use */
    unsigned clients, waiting;
    uint32_t refuses; /* forms that the plug-in does not have */
    uint32_t made;    /* as the plug-in sees it */
    unsigned n_makes, n_drops, most;
    uint32_t seed, noise_percent;
    struct {
        bool on;
        int64_t end_ns, begin_ns;
        struct nr_parallel_run run;
    } runs[MAX_RUNS];
    uint64_t done, done_by[NR_WAYS];
};

static uint32_t next_random(struct machine *m)
{
    m->seed = m->seed * 1664525u + 1013904223u;
    return m->seed >> 8;
}

static void machine_init(struct machine *m, nr_parallelism wish, unsigned cores)
{
    *m = (struct machine){.now_ns = NR_S_NS, .made = 1, .seed = 7};
    nr_parallel_init(&m->p, &(struct nr_parallel_cfg){
                                .on = true, .wish = wish, .cores = cores, .places = 2 * cores});
}

static void costs(struct machine *m, unsigned pressed, double wide, double quiet, double side,
                  double crowd)
{
    const double ms[NR_WAYS] = {wide, quiet, side, crowd};
    for (unsigned i = 0; i < NR_WAYS; i++) {
        m->cost_ns[pressed][i] = (int64_t)(ms[i] * (double)NR_MS_NS);
    }
}

static uint32_t form_of(const struct machine *m, nr_way way)
{
    uint32_t quiet = m->p.refused & (1u << NARU_FORM_QUIET) ? NARU_FORM_WIDE : NARU_FORM_QUIET;
    return way == NR_WAY_WIDE   ? (uint32_t)NARU_FORM_WIDE
           : way == NR_WAY_SIDE ? (uint32_t)NARU_FORM_NARROW
                                : quiet;
}

/* What the former does. */
static void do_jobs(struct machine *m)
{
    uint32_t form;
    bool make;
    while (nr_parallel_has_job(&m->p, m->now_ns) &&
           (form = nr_parallel_job(&m->p, m->now_ns, &make)) != 0) {
        for (unsigned i = 0; i < MAX_RUNS && !make; i++) {
            assert_false(m->runs[i].on && m->runs[i].run.form == form);
        }
        bool ok = (m->refuses & (1u << form)) == 0;
        if (make) {
            assert_false(m->made & (1u << form));
            m->made |= ok ? 1u << form : 0;
            m->n_makes++;
            nr_parallel_made(&m->p, form, ok, m->now_ns + MAKE_NS);
        } else {
            assert_true(m->made & (1u << form));
            m->made &= ~(1u << form);
            m->n_drops++;
        }
    }
}

static unsigned running(const struct machine *m)
{
    unsigned n = 0;
    for (unsigned i = 0; i < MAX_RUNS; i++) {
        n += m->runs[i].on;
    }
    return n;
}

static void start(struct machine *m)
{
    nr_way way;
    while (m->waiting > 0 &&
           (way = nr_parallel_choose(&m->p, m->waiting, m->now_ns)) != NR_WAY_NONE) {
        unsigned i = 0;
        while (m->runs[i].on) {
            assert_int_equal(m->runs[i].run.way, way); /* ways do not overlap */
            i++;
        }
        unsigned lanes = nr_parallel_lanes(&m->p, way);
        unsigned beside = NR_MIN(lanes, m->clients);
        assert_true(running(m) < lanes);
        m->runs[i].run = nr_parallel_begin(&m->p, way, m->now_ns);
        assert_int_equal(m->runs[i].run.form, form_of(m, way));
        assert_true(m->made &
                    (1u << m->runs[i].run.form)); /* nothing waits for a form, or lacks it */
        int64_t cost_ns = m->cost_ns[m->others > 0][way] * (int64_t)beside;
        int64_t span = 2 * (int64_t)m->noise_percent + 1;
        cost_ns += cost_ns *
                   ((int64_t)(next_random(m) % (uint32_t)span) - (int64_t)m->noise_percent) / 100;
        m->runs[i].on = true;
        m->runs[i].begin_ns = m->now_ns;
        m->runs[i].end_ns = m->now_ns + cost_ns;
        m->waiting--;
        m->most = NR_MAX(m->most, running(m));
    }
}

static void advance(struct machine *m, int64_t to_ns)
{
    m->busy_ns += (int64_t)((double)(to_ns - m->now_ns) * (m->others + 1.5));
    m->own_ns += (to_ns - m->now_ns) * 3 / 2;
    m->now_ns = to_ns;
}

/* For so long; clients come back at once. */
static void drive(struct machine *m, int64_t for_ns)
{
    int64_t until_ns = m->now_ns + for_ns;
    m->waiting = m->clients - running(m);
    m->done = 0;
    for (unsigned i = 0; i < NR_WAYS; i++) {
        m->done_by[i] = 0;
    }
    while (m->now_ns < until_ns) {
        unsigned first = MAX_RUNS;
        start(m);
        for (unsigned i = 0; i < MAX_RUNS; i++) {
            if (m->runs[i].on && (first == MAX_RUNS || m->runs[i].end_ns < m->runs[first].end_ns)) {
                first = i;
            }
        }
        assert_true(first < MAX_RUNS);
        advance(m, m->runs[first].end_ns);
        nr_parallel_end(&m->p, &m->runs[first].run, 1, m->now_ns - m->runs[first].begin_ns,
                        m->waiting, m->now_ns);
        m->runs[first].on = false;
        m->done++;
        m->done_by[m->runs[first].run.way]++;
        m->waiting += m->waiting + running(m) < m->clients;
        if (nr_parallel_looks(&m->p, m->now_ns)) {
            nr_parallel_look(&m->p, m->busy_ns, m->own_ns, m->now_ns);
        }
        do_jobs(m);
    }
    while (running(m) > 0) { /* all of them end, so that the number of clients may change */
        for (unsigned i = 0; i < MAX_RUNS; i++) {
            if (m->runs[i].on) {
                advance(m, NR_MAX(m->runs[i].end_ns, m->now_ns));
                nr_parallel_end(&m->p, &m->runs[i].run, 0, m->now_ns - m->runs[i].begin_ns, 0,
                                m->now_ns);
                m->runs[i].on = false;
            }
        }
    }
}

static double share(const struct machine *m, nr_way way)
{
    return (double)m->done_by[way] / (double)m->done;
}

#define EXPECT_MOSTLY(m, way) assert_true(share((m), (way)) > 0.9)

static void test_off(void **state)
{
    (void)state;
    struct nr_parallel p;
    nr_parallel_init(&p, &(struct nr_parallel_cfg){.on = false, .cores = 2, .places = 3});
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(nr_parallel_choose(&p, 5, 1), NR_WAY_WIDE);
        struct nr_parallel_run run = nr_parallel_begin(&p, NR_WAY_WIDE, 1);
        assert_int_equal(run.form, NARU_FORM_WIDE);
    }
    assert_false(nr_parallel_looks(&p, 100 * NR_S_NS));
    assert_false(nr_parallel_has_job(&p, 100 * NR_S_NS));
}

static void test_alone_one_request(void **state)
{
    (void)state;
    struct machine m;
    machine_init(&m, NR_PARALLEL_AUTO, 2);
    costs(&m, 0, 20, 5, 5, 5); /* whatever the others would cost */
    m.clients = 1;
    drive(&m, 20 * NR_S_NS);
    assert_int_equal(m.done_by[NR_WAY_WIDE], m.done);
    assert_int_equal(m.n_makes, 0);
}

static void test_alone_side_pays(void **state)
{
    (void)state;
    struct machine m;
    machine_init(&m, NR_PARALLEL_AUTO, 2);
    costs(&m, 0, 20, 21, 18, 18);
    m.clients = 4;
    drive(&m, 5 * NR_S_NS);
    assert_int_equal(nr_parallel_way(&m.p, true), NR_WAY_SIDE);
    assert_int_equal(m.made, 1u << NARU_FORM_WIDE | 1u << NARU_FORM_NARROW);
    drive(&m, 60 * NR_S_NS);
    EXPECT_MOSTLY(&m, NR_WAY_SIDE);
    assert_int_equal(m.most, 2); /* never more than cores while nobody else wants them */
}

static void test_alone_side_does_not_pay(void **state)
{
    (void)state;
    const double side[] = {19.6, 20, 30};
    for (unsigned i = 0; i < NR_COUNT(side); i++) {
        struct machine m;
        machine_init(&m, NR_PARALLEL_AUTO, 2);
        costs(&m, 0, 20, 21, side[i], side[i]);
        m.clients = 8;
        drive(&m, 120 * NR_S_NS);
        assert_int_equal(nr_parallel_way(&m.p, true), NR_WAY_WIDE);
        EXPECT_MOSTLY(&m, NR_WAY_WIDE);
        assert_in_range(m.p.n_trials, 1, 8); /* the back-off doubles */
    }
}

static void test_neighbours_one_request(void **state)
{
    (void)state;
    struct machine m;
    machine_init(&m, NR_PARALLEL_AUTO, 2);
    costs(&m, 0, 20, 21, 19, 19);
    costs(&m, 1, 45, 31, 36, 26);
    m.clients = 1;
    drive(&m, 5 * NR_S_NS);
    EXPECT_MOSTLY(&m, NR_WAY_WIDE);
    m.others = 1;
    drive(&m, 2 * NR_S_NS); /* a second to notice and to make the form */
    assert_true(m.p.pressed);
    drive(&m, 60 * NR_S_NS);
    EXPECT_MOSTLY(&m, NR_WAY_QUIET);
    m.others = 0;
    drive(&m, NR_S_NS);
    assert_false(m.p.pressed);
    drive(&m, 10 * NR_S_NS);
    assert_int_equal(m.done_by[NR_WAY_WIDE], m.done);
    assert_int_equal(m.made, 1u << NARU_FORM_WIDE); /* dropped: nobody uses it */
}

static void test_neighbours_one_request_spinning_pays(void **state)
{
    (void)state;
    struct machine m;
    machine_init(&m, NR_PARALLEL_AUTO, 2);
    costs(&m, 0, 20, 21, 19, 19);
    costs(&m, 1, 25, 31, 36, 26);
    m.clients = 1;
    m.others = 1;
    drive(&m, 6 * NR_S_NS);
    assert_int_equal(nr_parallel_way(&m.p, false), NR_WAY_WIDE);
    drive(&m, 60 * NR_S_NS);
    EXPECT_MOSTLY(&m, NR_WAY_WIDE);
}

static void test_neighbours_several_requests(void **state)
{
    (void)state;
    struct machine m;
    machine_init(&m, NR_PARALLEL_AUTO, 2);
    costs(&m, 0, 20, 21, 18, 18);
    costs(&m, 1, 45, 31, 28, 25);
    m.clients = 16;
    m.others = 2;
    drive(&m, 5 * NR_S_NS);
    drive(&m, 60 * NR_S_NS);
    EXPECT_MOSTLY(&m, NR_WAY_CROWD);
    assert_true(nr_parallel_crowds(&m.p));
    assert_int_equal(m.most, 4);
    m.others = 0;
    drive(&m, 5 * NR_S_NS);
    drive(&m, 30 * NR_S_NS);
    EXPECT_MOSTLY(&m, NR_WAY_SIDE);
    assert_false(nr_parallel_crowds(&m.p));
    m.others = 2; /* remembered: no trial is needed first */
    drive(&m, NR_S_NS);
    assert_int_equal(nr_parallel_way(&m.p, true), NR_WAY_CROWD);
}

/* A short burst of others, or a little all the time, changes nothing. */
static void test_small_neighbours(void **state)
{
    (void)state;
    struct machine m;
    machine_init(&m, NR_PARALLEL_AUTO, 2);
    costs(&m, 0, 20, 21, 19, 19);
    costs(&m, 1, 20, 21, 19, 19);
    m.clients = 1;
    m.others = 0.2;
    drive(&m, 5 * NR_S_NS);
    assert_int_equal(m.done_by[NR_WAY_WIDE], m.done);
    for (unsigned i = 0; i < 5; i++) {
        m.others = 2;
        drive(&m, 150 * NR_MS_NS);
        m.others = 0;
        drive(&m, 700 * NR_MS_NS);
        assert_false(m.p.pressed);
    }
    assert_int_equal(m.n_makes, 0);
}

static void test_of_many_cores_a_few_do_not_count(void **state)
{
    (void)state;
    struct machine m;
    machine_init(&m, NR_PARALLEL_AUTO, 8);
    costs(&m, 0, 5, 6, 5, 5);
    costs(&m, 1, 5, 6, 5, 5);
    m.clients = 1;
    m.others = 0.7;
    drive(&m, 5 * NR_S_NS);
    assert_false(m.p.pressed);
    m.others = 1.2;
    drive(&m, 5 * NR_S_NS);
    assert_true(m.p.pressed);
}

static void test_forms_that_do_not_exist(void **state)
{
    (void)state;
    struct machine m;
    machine_init(&m, NR_PARALLEL_AUTO, 2);
    costs(&m, 0, 20, 21, 18, 18);
    costs(&m, 1, 45, 31, 28, 25);
    m.refuses = 1u << NARU_FORM_QUIET | 1u << NARU_FORM_NARROW;
    m.clients = 4;
    drive(&m, 10 * NR_S_NS);
    assert_int_equal(m.done_by[NR_WAY_WIDE], m.done);
    m.others = 1;
    drive(&m, 3 * NR_S_NS);
    drive(&m, 30 * NR_S_NS);
    EXPECT_MOSTLY(&m, NR_WAY_CROWD); /* several of the form that there is */
    m.clients = 1;
    drive(&m, NR_S_NS);
    drive(&m, 10 * NR_S_NS);
    assert_int_equal(m.done_by[NR_WAY_WIDE], m.done);
    assert_int_equal(m.made, 1u << NARU_FORM_WIDE);
    assert_int_equal(m.n_makes, 2); /* asked once each */
}

static void test_few_places(void **state)
{
    (void)state;
    struct machine m;
    machine_init(&m, NR_PARALLEL_AUTO, 2);
    nr_parallel_init(&m.p, &(struct nr_parallel_cfg){.on = true, .cores = 2, .places = 1});
    costs(&m, 0, 20, 21, 18, 18);
    costs(&m, 1, 45, 31, 28, 25);
    m.clients = 4;
    m.others = 1;
    drive(&m, 20 * NR_S_NS);
    assert_int_equal(m.most, 1);
    assert_int_equal(m.done_by[NR_WAY_SIDE] + m.done_by[NR_WAY_CROWD], 0);
    EXPECT_MOSTLY(&m, NR_WAY_QUIET);
}

static void test_wishes(void **state)
{
    (void)state;
    struct machine m;
    machine_init(&m, NR_PARALLEL_WIDE, 2);
    costs(&m, 0, 20, 5, 5, 5);
    costs(&m, 1, 20, 5, 5, 5);
    m.clients = 8;
    m.others = 2;
    drive(&m, 10 * NR_S_NS);
    assert_int_equal(m.done_by[NR_WAY_WIDE], m.done);
    assert_int_equal(m.n_makes, 0);
    machine_init(&m, NR_PARALLEL_NARROW, 2);
    costs(&m, 0, 5, 5, 20, 5);
    m.clients = 8;
    drive(&m, NR_S_NS);
    drive(&m, 30 * NR_S_NS);
    assert_int_equal(m.done_by[NR_WAY_SIDE], m.done);
    assert_int_equal(m.n_drops, 0);
    m.clients = 1;
    drive(&m, 10 * NR_S_NS);
    assert_int_equal(m.done_by[NR_WAY_SIDE], m.done);
    m.now_ns += 1000 * NR_S_NS;
    do_jobs(&m);
    assert_int_equal(m.n_drops, 0); /* it would be made again for the next request */
    assert_int_equal(nr_parallel_unused_ns(&m.p), 0);
}

static void test_one_after_many(void **state)
{
    (void)state;
    struct machine m;
    machine_init(&m, NR_PARALLEL_AUTO, 2);
    costs(&m, 0, 20, 21, 15, 15);
    m.clients = 8;
    drive(&m, 10 * NR_S_NS);
    assert_int_equal(nr_parallel_way(&m.p, true), NR_WAY_SIDE);
    m.clients = 1;
    drive(&m, 10 * NR_S_NS);
    assert_true(m.done_by[NR_WAY_SIDE] <= 1); /* the first may still expect the others */
    assert_int_equal(m.made, 1u << NARU_FORM_WIDE);
    m.clients = 8;
    drive(&m, NR_S_NS); /* the form is made beside the first runs */
    assert_true(m.done_by[NR_WAY_WIDE] >= 1);
    assert_true(share(&m, NR_WAY_SIDE) > 0.8);
}

static void test_two_clients_are_several(void **state)
{
    (void)state;
    struct machine m;
    machine_init(&m, NR_PARALLEL_AUTO, 2);
    costs(&m, 0, 20, 21, 15, 15);
    m.clients = 2; /* when one's run ends the other one waits: each sees nobody else run */
    drive(&m, 5 * NR_S_NS);
    drive(&m, 20 * NR_S_NS);
    EXPECT_MOSTLY(&m, NR_WAY_SIDE);
}

static void test_conditions_change(void **state)
{
    (void)state;
    struct machine m;
    machine_init(&m, NR_PARALLEL_AUTO, 2);
    costs(&m, 0, 20, 21, 15, 15);
    m.clients = 4;
    drive(&m, 300 * NR_S_NS); /* long back-offs by now */
    assert_int_equal(nr_parallel_way(&m.p, true), NR_WAY_SIDE);
    costs(&m, 0, 20, 21, 40, 40);
    drive(&m, 4 * NR_S_NS);
    assert_int_equal(nr_parallel_way(&m.p, true), NR_WAY_WIDE);
}

static void test_idle_drops(void **state)
{
    (void)state;
    struct machine m;
    machine_init(&m, NR_PARALLEL_AUTO, 2);
    costs(&m, 0, 20, 21, 15, 15);
    m.clients = 4;
    drive(&m, 5 * NR_S_NS);
    assert_true(m.made & (1u << NARU_FORM_NARROW));
    do_jobs(&m);
    assert_true(m.made & (1u << NARU_FORM_NARROW)); /* not at once */
    assert_true(nr_parallel_unused_ns(&m.p) > m.now_ns);
    m.now_ns = nr_parallel_unused_ns(&m.p);
    do_jobs(&m);
    assert_int_equal(m.made, 1u << NARU_FORM_WIDE);
    assert_int_equal(nr_parallel_unused_ns(&m.p), 0);
    assert_false(nr_parallel_has_job(&m.p, m.now_ns));
}

/* A form that is slow to make is not dropped soon. */
static void test_slow_to_make(void **state)
{
    (void)state;
    struct nr_parallel p;
    bool make;
    nr_parallel_init(&p, &(struct nr_parallel_cfg){.on = true, .cores = 2, .places = 4});
    p.wanted = 1u << NARU_FORM_QUIET;
    assert_int_equal(nr_parallel_job(&p, NR_S_NS, &make), NARU_FORM_QUIET);
    assert_true(make);
    nr_parallel_made(&p, NARU_FORM_QUIET, true, 2 * NR_S_NS); /* took a second */
    assert_false(nr_parallel_has_job(&p, 60 * NR_S_NS));
    assert_true(nr_parallel_has_job(&p, 103 * NR_S_NS));
}

/* Whatever the costs are: what it ends with is within a few percent of the best. */
static void test_any_machine(void **state)
{
    (void)state;
    for (uint32_t seed = 1; seed <= 60; seed++) {
        struct machine m;
        machine_init(&m, NR_PARALLEL_AUTO, 2);
        m.seed = seed * 7919;
        m.noise_percent = 8;
        double ms[NR_WAYS];
        for (unsigned i = 0; i < NR_WAYS; i++) {
            ms[i] = 15 + (double)(next_random(&m) % 300) / 10;
        }
        unsigned pressed = seed % 2;
        costs(&m, 0, ms[0], ms[1], ms[2], ms[3]);
        costs(&m, 1, ms[0], ms[1], ms[2], ms[3]);
        m.others = pressed;
        m.clients = 8;
        drive(&m, 30 * NR_S_NS);
        drive(&m, 60 * NR_S_NS);
        double best = NR_MIN(ms[NR_WAY_WIDE], ms[NR_WAY_SIDE]);
        best = pressed ? NR_MIN(best, ms[NR_WAY_CROWD]) : best;
        double got = 60e3 / (double)m.done;
        if (got > 1.1 * best) {
            fail_msg("seed %u: %.1f ms a row, the best way has %.1f", seed, got, best);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_off),
        cmocka_unit_test(test_alone_one_request),
        cmocka_unit_test(test_alone_side_pays),
        cmocka_unit_test(test_alone_side_does_not_pay),
        cmocka_unit_test(test_neighbours_one_request),
        cmocka_unit_test(test_neighbours_one_request_spinning_pays),
        cmocka_unit_test(test_neighbours_several_requests),
        cmocka_unit_test(test_small_neighbours),
        cmocka_unit_test(test_of_many_cores_a_few_do_not_count),
        cmocka_unit_test(test_forms_that_do_not_exist),
        cmocka_unit_test(test_few_places),
        cmocka_unit_test(test_wishes),
        cmocka_unit_test(test_one_after_many),
        cmocka_unit_test(test_two_clients_are_several),
        cmocka_unit_test(test_conditions_change),
        cmocka_unit_test(test_idle_drops),
        cmocka_unit_test(test_slow_to_make),
        cmocka_unit_test(test_any_machine),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
