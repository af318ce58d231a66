/* Causes from invented facts, and the simulation behind predicted effects held against theory. */
#include "sched/why.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "base/clock.h"
#include "sched/why_sim.h"

/* --- simulation -------------------------------------------------------------------------------- */

static struct nr_why_setup setup_of(double run_ms, double row_ms, int64_t max_rows)
{
    return (struct nr_why_setup){.run_ns = run_ms * 1e6,
                                 .row_ns = row_ms * 1e6,
                                 .instances = 1,
                                 .rules = {.batching = max_rows > 0, .max_rows = max_rows}};
}

static double closed_rate(const struct nr_why_setup *s, unsigned clients, int64_t rows)
{
    struct nr_why_outcome o;
    nr_why_simulate(s, &(struct nr_why_load){.rows = rows, .clients = clients}, &o);
    return o.rate_per_s;
}

static void near(double got, double want, double tolerance)
{
    if (fabs(got - want) > tolerance * want) {
        fail_msg("%g, expected %g within %g %%", got, want, 100 * tolerance);
    }
}

static void test_full_batches(void **state)
{
    (void)state;
    struct nr_why_setup s = setup_of(20, 0, 4);
    near(closed_rate(&s, 32, 1), 200, 0.01);
    s.rules.max_rows = 8;
    near(closed_rate(&s, 32, 1), 400, 0.01);
    s.instances = 2;
    near(closed_rate(&s, 32, 1), 800, 0.02);
    near(closed_rate(&s, 32, 3), 200, 0.02); /* two requests of three rows fit into eight */
}

static void test_one_client_and_no_batching(void **state)
{
    (void)state;
    struct nr_why_setup s = setup_of(8, 2, 16);
    near(closed_rate(&s, 1, 1), 1000 / 10.1, 0.01); /* and 0.1 ms on the way */
    s.rules.batching = false;
    near(closed_rate(&s, 8, 1), 100, 0.01);
    near(closed_rate(&s, 8, 4), 1000 / 16.0, 0.01);
}

static void test_delay_and_preferred_sizes(void **state)
{
    (void)state;
    struct nr_why_setup s = setup_of(5, 0, 16);
    s.rules.delay_ns = 30 * NR_MS_NS;
    near(closed_rate(&s, 4, 1), 4000 / 35.1, 0.01);
    s.rules.n_preferred = 1;
    s.rules.preferred[0] = 4; /* reached, and gone at once */
    near(closed_rate(&s, 4, 1), 4000 / 5.1, 0.02);
    s.rules.preferred[0] = 8; /* never reached */
    near(closed_rate(&s, 4, 1), 4000 / 35.1, 0.01);
}

/* Without a configuration clients stay together: one batch of all, not two groups by turns. */
static void test_clients_that_come_back(void **state)
{
    (void)state;
    struct nr_why_setup s = setup_of(10, 0.5, 64);
    near(closed_rate(&s, 16, 1), 16000 / (2 * 10 + 16 * 0.5), 0.02);
    s.rules.auto_size = true;
    near(closed_rate(&s, 16, 1), 16000 / (10 + 16 * 0.5 + 0.18), 0.02);
    near(closed_rate(&s, 1, 1), 1000 / 10.6, 0.01);
}

/* M/D/1: mean wait = rho S / (2 (1 - rho)). */
static void test_open_loop_follows_theory(void **state)
{
    (void)state;
    struct nr_why_setup s = setup_of(10, 0, 0);
    struct nr_why_outcome o;
    const double rhos[] = {0.3, 0.5, 0.7};
    for (size_t i = 0; i < NR_COUNT(rhos); i++) {
        nr_why_simulate(&s, &(struct nr_why_load){.rows = 1, .rate_per_s = 100 * rhos[i]}, &o);
        assert_true(o.stable);
        near(o.latency_ns, 10e6 * (1 + rhos[i] / (2 * (1 - rhos[i]))), 0.05);
        near(o.rate_per_s, 100 * rhos[i], 0.05);
    }
    nr_why_simulate(&s, &(struct nr_why_load){.rows = 1, .rate_per_s = 200}, &o);
    assert_false(o.stable);
}

static void test_simulation_bears_anything(void **state)
{
    (void)state;
    struct nr_why_outcome o;
    struct nr_why_setup s = setup_of(0, 0, 4);
    nr_why_simulate(&s, &(struct nr_why_load){.clients = 5}, &o); /* costs nothing: not known */
    assert_true(o.rate_per_s == 0);
    s = setup_of(1, 0, INT64_MAX);
    s.instances = 1u << 30;
    nr_why_simulate(&s, &(struct nr_why_load){.rows = INT64_MAX / 2, .clients = 1u << 30}, &o);
    assert_true(o.rate_per_s > 0);
    s.instances = 0;
    nr_why_simulate(&s, &(struct nr_why_load){.rows = -5, .rate_per_s = 1e-3}, &o);
    assert_true(isfinite(o.latency_ns));
    nr_why_simulate(&s, &(struct nr_why_load){.rows = 1}, &o); /* neither clients nor a rate */
    assert_true(o.rate_per_s == 0);
}

/* --- facts ------------------------------------------------------------------------------------- */

#define SIZES 4

struct script {
    struct nr_why_facts f;
    struct nr_batch_count sizes[SIZES], ever[SIZES];
};

static void add_size(struct nr_batch_count *to, unsigned *n, uint64_t rows, uint64_t times,
                     double ms)
{
    to[(*n)++] = (struct nr_batch_count){
        .rows = rows, .executions = times, .infer_ns = (uint64_t)((double)times * ms * 1e6)};
}

/* A second of a model with one instance on a quiet machine of 4 cores. Times in ms per request. */
static void begin(struct script *s, double before, double wait, double run, uint64_t requests)
{
    *s = (struct script){.f = {.window_ns = NR_S_NS,
                               .set = {.max_batch_size = 8,
                                       .batching = true,
                                       .instances = 1,
                                       .max_queue_requests = 100},
                               .requests = requests,
                               .rows = requests,
                               .cores = 4,
                               .n_loops = 2,
                               .own_ns = NR_S_NS / 50,
                               .loops_ns = NR_S_NS / 100,
                               .loop_max_ns = NR_S_NS / 200}};
    double n = (double)requests * 1e6;
    s->f.request_ns = (uint64_t)((before + wait + run) * n);
    s->f.queue_ns = (uint64_t)(wait * n);
    s->f.run_ns = (uint64_t)(run * n);
    s->f.sizes = s->sizes;
    s->f.ever = s->ever;
}

static void ran(struct script *s, uint64_t rows, uint64_t times, double ms, nr_seal why)
{
    add_size(s->sizes, &s->f.n_sizes, rows, times, ms);
    add_size(s->ever, &s->f.n_ever, rows, times, ms);
    s->f.executions += times;
    s->f.seals[why] += times;
}

static struct nr_why_report r; /* of the test that runs; too large for a stack */

static void explain(struct script *s, nr_why_cause want)
{
    nr_why_explain(&s->f, &r);
    assert_string_equal(nr_why_cause_text(r.findings[0].cause), nr_why_cause_text(want));
    for (unsigned i = 0; i < r.n_findings; i++) {
        assert_true(r.findings[i].share > 0 && r.findings[i].share <= 1);
        assert_true(r.findings[i].text[0] != '\0' && r.findings[i].advice[0] != '\0');
        assert_true(r.findings[i].effect < (int)r.n_effects);
    }
}

static const struct nr_why_effect *effect_of(const char *setting)
{
    for (unsigned i = 0; i < r.n_effects; i++) {
        if (strcmp(r.effects[i].setting, setting) == 0) {
            return &r.effects[i];
        }
    }
    fail_msg("no effect of %s", setting);
    return NULL;
}

/* 32 clients, batches of 8 that cost 20 ms whatever their size. */
static void full_batches(struct script *s)
{
    begin(s, 0.1, 60, 20, 400);
    ran(s, 8, 50, 20, NR_SEAL_FULL);
    add_size(s->ever, &s->f.n_ever, 1, 3, 20);
    struct nr_batch_count t = s->ever[0]; /* ascending */
    s->ever[0] = s->ever[1];
    s->ever[1] = t;
}

static void test_max_batch(void **state)
{
    (void)state;
    struct script s;
    full_batches(&s);
    explain(&s, NR_WHY_MAX_BATCH);
    assert_true(r.cost_split);
    near(r.fixed_ns, 20e6, 0.01);
    near(r.in_flight, 32, 0.01);
    near(r.instance_use, 1, 0.01);
    assert_int_equal(r.findings[0].effect, effect_of("max_batch_size") - r.effects);
    near(effect_of("max_batch_size")->throughput, 2, 0.05);
    near(effect_of("max_batch_size")->requests_per_s, 800, 0.05);
    assert_string_equal(effect_of("max_batch_size")->from, "8");
    assert_string_equal(effect_of("max_batch_size")->to, "16");
    assert_true(fabs(r.model_error) < 0.05);
}

static void test_one_size_only_is_not_a_fit(void **state)
{
    (void)state;
    struct script s;
    begin(&s, 0.1, 60, 20, 400);
    ran(&s, 8, 50, 20, NR_SEAL_FULL);
    explain(&s, NR_WHY_MAX_BATCH);
    assert_false(r.cost_split);
    assert_int_equal(r.findings[0].effect, -1); /* nothing is promised */
    for (unsigned i = 0; i < r.n_effects; i++) {
        assert_string_not_equal(r.effects[i].setting, "max_batch_size");
    }
}

static void test_rows_that_do_not_get_cheaper_want_instances(void **state)
{
    (void)state;
    struct script s;
    begin(&s, 0.1, 60, 20, 400);
    ran(&s, 4, 5, 10, NR_SEAL_IDLE);
    ran(&s, 8, 48, 20, NR_SEAL_FULL);
    explain(&s, NR_WHY_INSTANCES);
    near(effect_of("instances")->throughput, 2, 0.1);
    near(effect_of("max_batch_size")->throughput, 1, 0.05);
}

static void test_no_cores_left(void **state)
{
    (void)state;
    struct script s;
    begin(&s, 0.1, 60, 20, 400);
    ran(&s, 4, 5, 10, NR_SEAL_IDLE);
    ran(&s, 8, 48, 20, NR_SEAL_FULL);
    s.f.own_ns = 4 * NR_S_NS;
    explain(&s, NR_WHY_CORES);
    assert_int_equal(r.findings[0].effect, -1); /* another instance shares the same cores */
}

static void test_sizes_by_measurement_are_not_blamed(void **state)
{
    (void)state;
    struct script s;
    full_batches(&s);
    s.f.set.auto_size = true;
    explain(&s, NR_WHY_INSTANCES);
}

static void test_delay(void **state)
{
    (void)state;
    struct script s;
    begin(&s, 0.1, 30, 5, 114);
    s.f.set.delay_ns = 30 * NR_MS_NS;
    ran(&s, 4, 28, 5, NR_SEAL_DELAY);
    add_size(s.ever, &s.f.n_ever, 8, 2, 5);
    explain(&s, NR_WHY_DELAY);
    /* 4 in flight: one alone, then three, by turns */
    near(effect_of("max_queue_delay_microseconds")->throughput, 35.1 / 10, 0.1);
    assert_true(effect_of("max_queue_delay_microseconds")->latency < 0.5);
}

static void test_preferred_size_out_of_reach(void **state)
{
    (void)state;
    struct script s;
    begin(&s, 0.1, 30, 5, 114);
    s.f.set.delay_ns = 30 * NR_MS_NS;
    s.f.set.n_preferred = 1;
    s.f.set.preferred[0] = 8;
    ran(&s, 4, 28, 5, NR_SEAL_DELAY);
    explain(&s, NR_WHY_PREFERRED);
    s.f.seals[NR_SEAL_PREFERRED] = 100; /* reached mostly: then it is the delay */
    nr_why_explain(&s.f, &r);
    for (unsigned i = 0; i < r.n_findings; i++) {
        assert_int_not_equal(r.findings[i].cause, NR_WHY_PREFERRED);
    }
}

static void test_shapes_rows_and_batching(void **state)
{
    (void)state;
    struct script s;
    begin(&s, 0.1, 60, 20, 50);
    ran(&s, 1, 50, 20, NR_SEAL_SHAPE);
    add_size(s.ever, &s.f.n_ever, 4, 2, 20);
    explain(&s, NR_WHY_SHAPES);

    begin(&s, 0.1, 60, 20, 100);
    s.f.rows = 300;
    s.f.set.max_batch_size = 4;
    ran(&s, 3, 100, 10, NR_SEAL_NEXT_TOO_BIG);
    add_size(s.ever, &s.f.n_ever, 4, 2, 10);
    explain(&s, NR_WHY_ROWS);
    assert_string_equal(effect_of("max_batch_size")->to, "9"); /* twice, and a multiple */

    begin(&s, 0.1, 60, 10, 100);
    s.f.set.batching = false;
    ran(&s, 1, 90, 10, NR_SEAL_SINGLE);
    ran(&s, 4, 10, 10, NR_SEAL_SINGLE);
    explain(&s, NR_WHY_BATCHING_OFF);
    assert_true(effect_of("dynamic_batching")->throughput > 2);

    begin(&s, 0.1, 60, 10, 100);
    ran(&s, 1, 90, 10, NR_SEAL_STRATEGY);
    ran(&s, 4, 10, 10, NR_SEAL_STRATEGY);
    explain(&s, NR_WHY_STRATEGY);
    assert_int_equal(r.findings[0].effect, -1);

    begin(&s, 0.1, 60, 10, 100); /* rows cost all: batches would gain nothing */
    s.f.set.batching = false;
    ran(&s, 1, 90, 10, NR_SEAL_SINGLE);
    ran(&s, 4, 10, 40, NR_SEAL_SINGLE);
    explain(&s, NR_WHY_INSTANCES);

    begin(&s, 0.1, 60, 10, 100); /* the model cannot batch */
    s.f.set.batching = false;
    s.f.set.max_batch_size = 0;
    ran(&s, 1, 100, 10, NR_SEAL_SINGLE);
    explain(&s, NR_WHY_INSTANCES);
}

static void test_refusals_come_first(void **state)
{
    (void)state;
    struct script s;
    full_batches(&s);
    s.f.refused_full = 40;
    explain(&s, NR_WHY_QUEUE_FULL);
    assert_int_equal(r.findings[1].cause, NR_WHY_MAX_BATCH); /* and what is behind it */
    s.f.refused_late = 80;
    explain(&s, NR_WHY_DEADLINES);
    s.f.refused_late = 0;
    s.f.refused_full = 10; /* few: by their share */
    explain(&s, NR_WHY_MAX_BATCH);
    begin(&s, 0, 0, 0, 0); /* nothing but refusals */
    s.f.refused_full = 7;
    explain(&s, NR_WHY_QUEUE_FULL);
}

static void test_neighbours_take_what_a_computing_model_needs(void **state)
{
    (void)state;
    struct script s;
    begin(&s, 0.1, 10, 10, 200);
    ran(&s, 2, 100, 10, NR_SEAL_IDLE);
    s.f.own_ns = NR_S_NS * 3 / 10;
    s.f.others_ns = NR_S_NS * 37 / 10;
    explain(&s, NR_WHY_NEIGHBOURS);
    s.f.others_ns = NR_S_NS * 2; /* two cores idle: they take nothing away */
    explain(&s, NR_WHY_INSTANCES);
    s.f.others_ns = NR_S_NS * 39 / 10;
    s.f.own_ns = NR_S_NS / 20; /* little, and always taken away */
    s.f.preempted = 60;
    s.f.waited = 40;
    explain(&s, NR_WHY_NEIGHBOURS);
    s.f.waited = 4000; /* it waits for a device: processors do not matter */
    nr_why_explain(&s.f, &r);
    for (unsigned i = 0; i < r.n_findings; i++) {
        assert_int_not_equal(r.findings[i].cause, NR_WHY_NEIGHBOURS);
    }
}

static void test_reading_requests(void **state)
{
    (void)state;
    struct script s;
    begin(&s, 20, 0.2, 1, 100);
    ran(&s, 1, 100, 1, NR_SEAL_IDLE);
    s.f.own_ns = NR_S_NS * 2;
    s.f.pool_ns = NR_S_NS * 18 / 10;
    explain(&s, NR_WHY_DECODING);
    s.f.pool_ns = 0; /* nobody works on it: it is still under way */
    s.f.own_ns = NR_S_NS / 5;
    explain(&s, NR_WHY_UPLOADS);

    begin(&s, 0.05, 0.02, 0.1, 5000);
    ran(&s, 1, 5000, 0.1, NR_SEAL_IDLE);
    s.f.own_ns = s.f.loops_ns = s.f.loop_max_ns = NR_S_NS * 97 / 100;
    s.f.n_loops = 1;
    explain(&s, NR_WHY_IO_LOOP);
    s.f.inline_executions = 5000; /* what the thread does all the time is the model itself */
    nr_why_explain(&s.f, &r);
    for (unsigned i = 0; i < r.n_findings; i++) {
        assert_int_not_equal(r.findings[i].cause, NR_WHY_IO_LOOP);
    }
}

static void test_too_little_load(void **state)
{
    (void)state;
    struct script s;
    begin(&s, 0.1, 0.05, 10, 98);
    ran(&s, 1, 98, 10, NR_SEAL_IDLE);
    add_size(s.ever, &s.f.n_ever, 4, 3, 10);
    explain(&s, NR_WHY_LOAD);
    assert_true(effect_of("requests_in_flight")->throughput > 1.5);
}

static void test_no_traffic(void **state)
{
    (void)state;
    struct script s;
    begin(&s, 0, 0, 0, 0);
    explain(&s, NR_WHY_NO_TRAFFIC);
    assert_int_equal(r.n_effects, 0);
    memset(&s.f, 0, sizeof(s.f)); /* nothing at all is no reason to fall over */
    explain(&s, NR_WHY_NO_TRAFFIC);
}

static void test_cost_agrees_with_what_is_measured_now(void **state)
{
    (void)state;
    struct script s;
    begin(&s, 0.1, 120, 40, 200);
    ran(&s, 8, 25, 40, NR_SEAL_FULL); /* twice as slow as it was … */
    s.f.n_ever = 0;
    add_size(s.ever, &s.f.n_ever, 1, 50, 6); /* … over all: 4 + 2 a row */
    add_size(s.ever, &s.f.n_ever, 8, 500, 20);
    explain(&s, NR_WHY_MAX_BATCH);
    near(r.fixed_ns + 8 * r.row_ns, 40e6, 0.01);
    near(r.fixed_ns / r.row_ns, 2, 0.01);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_full_batches),
        cmocka_unit_test(test_one_client_and_no_batching),
        cmocka_unit_test(test_delay_and_preferred_sizes),
        cmocka_unit_test(test_clients_that_come_back),
        cmocka_unit_test(test_open_loop_follows_theory),
        cmocka_unit_test(test_simulation_bears_anything),
        cmocka_unit_test(test_max_batch),
        cmocka_unit_test(test_one_size_only_is_not_a_fit),
        cmocka_unit_test(test_rows_that_do_not_get_cheaper_want_instances),
        cmocka_unit_test(test_no_cores_left),
        cmocka_unit_test(test_sizes_by_measurement_are_not_blamed),
        cmocka_unit_test(test_delay),
        cmocka_unit_test(test_preferred_size_out_of_reach),
        cmocka_unit_test(test_shapes_rows_and_batching),
        cmocka_unit_test(test_refusals_come_first),
        cmocka_unit_test(test_neighbours_take_what_a_computing_model_needs),
        cmocka_unit_test(test_reading_requests),
        cmocka_unit_test(test_too_little_load),
        cmocka_unit_test(test_no_traffic),
        cmocka_unit_test(test_cost_agrees_with_what_is_measured_now),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
