/* The scheduler of one version with real plug-ins (delay, fault) on a loop that the test turns by
 * hand: placement, batching, limits, deadlines, cancelling, misbehaving plug-ins. */
#include "sched/sched.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/arena.h"
#include "base/buf.h"
#include "base/clock.h"
#include "base/mem.h"
#include "sched/exec.h"

#define MANY 64
#define WIDTH 4

struct one {
    struct nr_arena arena;
    struct nr_infer_request in;
    struct nr_infer_tensor input;
    struct nr_infer_output output;
    struct nr_request r;
    float data[8 * WIDTH];
    unsigned completed;
    unsigned answers, finals;   /* of a decoupled model */
    struct nr_answer *held[64]; /* not ended yet: a slow reader */
    unsigned n_held;
    bool slow;
};

struct world {
    struct nr_loop *loop;
    struct nr_exec *exec;
    struct nr_plugins *plugins;
    struct nr_plugin_model *model;
    struct nr_plugin_instance *instances[4], *own;
    unsigned n_instances;
    struct nr_io_spec in, out;
    struct nr_signature sig;
    struct nr_sched *sched;
    struct one *all;
    struct nr_infer_request next; /* priority, timeout_us of what is submitted next */
    uint64_t client;
    naru_option option;          /* of what is submitted next, when it has a key */
    unsigned order[64], n_order; /* who completed */
};

static struct world *current;

static const uint32_t identity_map[1] = {0};

struct setup {
    const char *plugin;
    const naru_option *options;
    unsigned n_options;
    unsigned instances;
    bool may_inline;
    int64_t max_rows;
    struct nr_sched_limits limits;
    const struct nr_queue_rules *levels;
    unsigned n_levels;
    bool preserve_ordering;
    bool decoupled;
    struct nr_limiter *limiter;
    const struct nr_instance_group *group; /* of all instances, for the limiter … */
    struct nr_exec *other;                 /* … and who runs those with odd numbers */
};

static void io_spec(struct nr_io_spec *io, const char *name)
{
    *io = (struct nr_io_spec){.name = nr_str_from(name),
                              .dtype = NARU_FP32,
                              .rank = 2,
                              .shape = {-1, WIDTH},
                              .batched = true,
                              .row_bytes = WIDTH * sizeof(float)};
}

static void world_init(struct world *w, const struct setup *how)
{
    struct nr_err err = {0};
    struct nr_plugin *plugin;
    static const int64_t shape[2] = {-1, WIDTH};
    const naru_io in = {.name = "IN", .shape = shape, .rank = 2, .dtype = NARU_FP32};
    const naru_io out = {.name = "OUT", .shape = shape, .rank = 2, .dtype = NARU_FP32};
    memset(w, 0, sizeof(*w));
    assert_int_equal(nr_loop_new(0, &w->loop, &err), NARU_OK);
    w->exec = nr_exec_new(2, 8);
    w->plugins = nr_plugins_new();
    nr_plugins_add_dir(w->plugins, NARU_BUILD_DIR "/backends");
    if (nr_plugin_open(w->plugins, nr_str_from(how->plugin), &plugin, &err) != NARU_OK) {
        fail_msg("%s", err.text);
    }
    naru_model_args args = {.dir_fd = -1,
                            .name = "m",
                            .file = "",
                            .path = "",
                            .version = 1,
                            .options = how->options,
                            .n_options = how->n_options,
                            .device = -1,
                            .max_batch_size = (int32_t)how->max_rows,
                            .inputs = &in,
                            .outputs = &out,
                            .n_inputs = 1,
                            .n_outputs = 1};
    if (nr_plugin_model_open(plugin, &args, &w->model, &err) != NARU_OK) {
        fail_msg("%s", err.text);
    }
    nr_plugin_unref(plugin);
    w->n_instances = how->instances;
    for (unsigned i = 0; i < how->instances; i++) {
        assert_int_equal(nr_plugin_instance_open(w->model, i, -1, &w->instances[i], &err), NARU_OK);
    }
    io_spec(&w->in, "IN");
    io_spec(&w->out, "OUT");
    w->sig = (struct nr_signature){.inputs = &w->in,
                                   .outputs = &w->out,
                                   .n_inputs = 1,
                                   .n_outputs = 1,
                                   .max_batch_size = how->max_rows};
    struct nr_sched_cfg cfg = {.name = "m",
                               .exec = w->exec,
                               .loops = &w->loop,
                               .n_loops = 1,
                               .model = w->model,
                               .instances = w->instances,
                               .n_instances = w->n_instances,
                               .signature = &w->sig,
                               .input_map = identity_map,
                               .output_map = identity_map,
                               .rules = {.max_rows = how->max_rows, .batching = true},
                               .limits = how->limits,
                               .levels = how->levels,
                               .n_levels = how->n_levels,
                               .preserve_ordering = how->preserve_ordering,
                               .decoupled = how->decoupled};
    struct nr_sched_member members[4];
    for (unsigned i = 0; i < how->instances; i++) {
        members[i].exec = i % 2 == 1 && how->other != NULL ? how->other : w->exec;
        members[i].group = how->group;
    }
    cfg.members = members;
    cfg.limiter = how->limiter;
    nr_placement_cfg_default(&cfg.placement);
    cfg.placement.allowed = how->may_inline;
    cfg.placement.short_ns =
        200 * NR_US_NS; /* a busy machine and sanitizers must not decide this */
    cfg.placement.budget_ns = 10 * NR_MS_NS;
    assert_int_equal(nr_sched_new(&cfg, &w->sched, &err), NARU_OK);
    struct nr_sched_state s = {0};
    for (int i = 0; i < 100 && !s.is_inline; i++) { /* again where neighbours stole its time */
        nr_sched_prove(w->sched);
        nr_sched_state_get(w->sched, &s);
        if (!how->may_inline) {
            break;
        }
    }
    w->all = nr_new_array(struct one, MANY);
    current = w;
}

static void world_done(struct world *w)
{
    nr_sched_free(w->sched);
    for (unsigned i = 0; i < w->n_instances; i++) {
        nr_plugin_instance_close(w->instances[i]);
    }
    nr_plugin_model_close(w->model);
    nr_plugins_free(w->plugins);
    nr_exec_free(w->exec);
    nr_loop_free(w->loop);
    nr_free(w->all);
}

static void on_complete(struct nr_request *r)
{
    struct one *o = nr_container_of(r, struct one, r);
    o->completed++;
    current->order[current->n_order++ % NR_COUNT(current->order)] = (unsigned)(o - current->all);
}

/* Options, reader and its pace are those that the caller put into all[index]. */
static struct one *submit(struct world *w, unsigned index, int64_t rows, int64_t deadline_ns)
{
    struct one *o = &w->all[index];
    nr_arena_init(&o->arena, 0);
    for (unsigned i = 0; i < rows * WIDTH; i++) {
        o->data[i] = (float)(index * 100 + i);
    }
    o->input = (struct nr_infer_tensor){.dtype = NARU_FP32,
                                        .rank = 2,
                                        .shape = {rows, WIDTH},
                                        .elements = rows * WIDTH,
                                        .data = (const uint8_t *)o->data,
                                        .bytes = (size_t)rows * WIDTH * sizeof(float)};
    o->in = (struct nr_infer_request){
        .rows = rows, .inputs = &o->input, .n_inputs = 1, .outputs = &o->output, .n_outputs = 1};
    o->in.priority = w->next.priority;
    o->in.timeout_us = w->next.timeout_us;
    o->r = (struct nr_request){.target = nr_sched_target(w->sched),
                               .loop = w->loop,
                               .arena = &o->arena,
                               .in = &o->in,
                               .arrival_ns = nr_clock_now(),
                               .deadline_ns = deadline_ns,
                               .client = w->client,
                               .options = o->r.options,
                               .n_options = o->r.n_options,
                               .on_answer = o->r.on_answer,
                               .on_complete = on_complete};
    nr_request_submit(&o->r);
    return o;
}

/* `option` is the one request parameter. */
static struct one *submit_with(struct world *w, unsigned index, int64_t rows, int64_t deadline_ns,
                               const naru_option *option)
{
    w->all[index].r.options = option;
    w->all[index].r.n_options = 1;
    return submit(w, index, rows, deadline_ns);
}

static const naru_option an_hour = {"delay_us", "3600000000"};

/* Until so many executions run. */
static void wait_running(struct world *w, unsigned n)
{
    struct nr_sched_state s = {0};
    int64_t until = nr_clock_now() + 60 * NR_S_NS;
    while (s.running < n && nr_clock_now() < until) {
        nr_sched_state_get(w->sched, &s);
    }
    assert_int_equal(s.running, n);
}

static bool turn_until(struct world *w, unsigned n, int64_t limit_ns)
{
    int64_t until = nr_clock_now() + limit_ns;
    for (;;) {
        unsigned done = 0;
        for (unsigned i = 0; i < MANY; i++) {
            done += w->all[i].completed;
        }
        if (done >= n || nr_clock_now() > until) {
            return done == n;
        }
        nr_loop_turn(w->loop, NR_MS_NS);
    }
}

static void expect_echo(struct one *o)
{
    assert_int_equal(o->completed, 1);
    if (o->r.status != NARU_OK) {
        fail_msg("%.*s", (int)o->r.error.len, o->r.error.ptr);
    }
    assert_int_equal(o->r.n_outputs, 1);
    assert_int_equal(o->r.outputs[0].bytes, o->input.bytes);
    assert_memory_equal(o->r.outputs[0].data, o->data, o->input.bytes);
    assert_int_equal(o->r.outputs[0].shape[0], o->in.rows);
}

static void finish(struct world *w, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        nr_arena_done(&w->all[i].arena);
    }
    world_done(w);
}

static struct nr_sched_limits usual(void)
{
    struct nr_sched_limits l;
    nr_sched_limits_default(&l);
    return l;
}

/* --- tests ------------------------------------------------------------------------------------ */

static void test_one_turn_is_one_batch(void **state)
{
    (void)state;
    struct world w;
    world_init(&w, &(struct setup){.plugin = "identity",
                                   .instances = 1,
                                   .may_inline = true,
                                   .max_rows = 64,
                                   .limits = usual()});
    struct nr_sched_state s;
    nr_sched_state_get(w.sched, &s);
    assert_true(s.is_inline);
    for (unsigned i = 0; i < 10; i++) {
        submit(&w, i, 1 + i % 3, 0);
        assert_int_equal(w.all[i].completed, 0); /* collected, not run */
    }
    nr_loop_turn(w.loop, 0);
    for (unsigned i = 0; i < 10; i++) {
        expect_echo(&w.all[i]);
        assert_true(w.all[i].r.ran_inline);
        assert_int_equal(w.all[i].r.batch_rows, 19);
    }
    finish(&w, 10);
}

static void test_pool_runs_at_once_and_batches_meanwhile(void **state)
{
    (void)state;
    const naru_option options[] = {{"delay_us", "1000"}}, longer = {"delay_us", "1000000"};
    struct world w;
    world_init(&w, &(struct setup){.plugin = "delay",
                                   .options = options,
                                   .n_options = 1,
                                   .instances = 1,
                                   .max_rows = 8,
                                   .limits = usual()});
    submit_with(&w, 0, 1, 0, &longer);
    wait_running(&w, 1);
    for (unsigned i = 1; i < 13; i++) {
        submit(&w, i, 1, 0);
    }
    assert_true(turn_until(&w, 13, 60 * NR_S_NS));
    for (unsigned i = 0; i < 13; i++) {
        expect_echo(&w.all[i]);
        assert_false(w.all[i].r.ran_inline);
    }
    assert_int_equal(w.all[0].r.batch_rows, 1); /* nothing to wait for: it ran alone */
    assert_int_equal(w.all[1].r.batch_rows, 8); /* full */
    assert_int_equal(w.all[12].r.batch_rows, 4);
    finish(&w, 13);
}

static void test_instances_overlap(void **state)
{
    (void)state;
    const naru_option options[] = {an_hour};
    struct world w;
    world_init(&w, &(struct setup){.plugin = "delay",
                                   .options = options,
                                   .n_options = 1,
                                   .instances = 4,
                                   .max_rows = 1,
                                   .limits = usual()});
    for (unsigned i = 0; i < 4; i++) {
        submit(&w, i, 1, 0);
    }
    wait_running(&w, 4); /* all at the same time */
    for (unsigned i = 0; i < 4; i++) {
        nr_request_cancel(&w.all[i].r, NARU_CANCELLED, true);
    }
    assert_true(turn_until(&w, 4, 60 * NR_S_NS));
    finish(&w, 4);
}

static void test_queue_limits_refuse_at_once(void **state)
{
    (void)state;
    const naru_option options[] = {{"delay_us", "1000"}};
    struct world w;
    struct nr_sched_limits l = usual();
    l.max_queue_requests = 3;
    world_init(&w, &(struct setup){.plugin = "delay",
                                   .options = options,
                                   .n_options = 1,
                                   .instances = 1,
                                   .max_rows = 1,
                                   .limits = l});
    submit_with(&w, 0, 1, 0, &an_hour);
    wait_running(&w, 1);
    for (unsigned i = 1; i < 10; i++) {
        submit(&w, i, 1, 0);
    }
    for (unsigned i = 0; i < 10; i++) {
        assert_int_equal(w.all[i].completed, i >= 4); /* one runs, three wait */
        if (w.all[i].completed) {
            assert_int_equal(w.all[i].r.status, NARU_UNAVAILABLE);
            assert_true(w.all[i].r.retry_after_s >= 1);
            assert_non_null(strstr(w.all[i].r.error.ptr, "queue"));
        }
    }
    nr_request_cancel(&w.all[0].r, NARU_CANCELLED, true);
    assert_true(turn_until(&w, 10, 60 * NR_S_NS));
    for (unsigned i = 1; i < 4; i++) {
        expect_echo(&w.all[i]);
    }
    finish(&w, 10);
}

static void test_deadline_in_the_queue(void **state)
{
    (void)state;
    const naru_option options[] = {an_hour};
    struct world w;
    world_init(&w, &(struct setup){.plugin = "delay",
                                   .options = options,
                                   .n_options = 1,
                                   .instances = 1,
                                   .max_rows = 1,
                                   .limits = usual()});
    submit(&w, 0, 1, 0);
    wait_running(&w, 1);
    submit(&w, 1, 1, nr_clock_now() + 20 * NR_MS_NS);
    submit(&w, 2, 1, nr_clock_now() - 1);
    assert_int_equal(w.all[2].completed, 1); /* too late already */
    assert_int_equal(w.all[2].r.status, NARU_DEADLINE);
    assert_true(turn_until(&w, 2, 60 * NR_S_NS)); /* while the first still runs */
    assert_int_equal(w.all[0].completed, 0);
    assert_int_equal(w.all[1].r.status, NARU_DEADLINE);
    nr_request_cancel(&w.all[0].r, NARU_CANCELLED, true);
    assert_true(turn_until(&w, 3, 60 * NR_S_NS));
    finish(&w, 3);
}

static void test_cancel_queued_and_running(void **state)
{
    (void)state;
    const naru_option options[] = {an_hour};
    struct world w;
    world_init(&w, &(struct setup){.plugin = "delay",
                                   .options = options,
                                   .n_options = 1,
                                   .instances = 1,
                                   .max_rows = 1,
                                   .limits = usual()});
    submit(&w, 0, 1, 0);
    wait_running(&w, 1);
    submit(&w, 1, 1, 0);
    nr_request_cancel(&w.all[1].r, NARU_CANCELLED, true);
    assert_int_equal(w.all[1].completed, 1);
    assert_int_equal(w.all[1].r.status, NARU_CANCELLED);
    nr_request_cancel(&w.all[1].r, NARU_CANCELLED, true);  /* again: nothing */
    nr_request_cancel(&w.all[0].r, NARU_CANCELLED, false); /* begun, and not to be disturbed */
    assert_int_equal(w.all[0].completed, 0);
    nr_request_cancel(&w.all[0].r, NARU_CANCELLED, true); /* the hour ends early */
    assert_true(turn_until(&w, 2, 60 * NR_S_NS));
    finish(&w, 2);
}

static void test_cancel_before_the_turn_ends(void **state)
{
    (void)state;
    struct world w;
    world_init(&w, &(struct setup){.plugin = "identity",
                                   .instances = 1,
                                   .may_inline = true,
                                   .max_rows = 64,
                                   .limits = usual()});
    submit(&w, 0, 1, 0);
    submit(&w, 1, 1, 0);
    nr_request_cancel(&w.all[0].r, NARU_CANCELLED, true);
    assert_int_equal(w.all[0].completed, 1);
    nr_loop_turn(w.loop, 0);
    assert_int_equal(w.all[0].completed, 1);
    expect_echo(&w.all[1]);
    finish(&w, 2);
}

static void test_model_that_becomes_slow_leaves_the_loop(void **state)
{
    (void)state;
    const naru_option options[] = {{"spin_us", "5"}}, slow = {"spin_us", "40000"};
    struct world w;
    struct nr_sched_state s;
    world_init(&w, &(struct setup){.plugin = "delay",
                                   .options = options,
                                   .n_options = 1,
                                   .instances = 1,
                                   .may_inline = true,
                                   .max_rows = 1,
                                   .limits = usual()});
    nr_sched_state_get(w.sched, &s);
    assert_true(s.is_inline);
    for (unsigned n = 0; n < 10; n++) {
        submit_with(&w, n, 1, 0, &slow);
        assert_true(turn_until(&w, n + 1, 60 * NR_S_NS));
        assert_int_equal(w.all[n].r.ran_inline, n == 0); /* the one that gave it away */
    }
    nr_sched_state_get(w.sched, &s);
    assert_false(s.is_inline);
    assert_int_equal(s.n_demoted, 1);
    finish(&w, 10);
}

static void test_faults_reach_only_their_requests(void **state)
{
    (void)state;
    static const struct {
        const char *fault;
        bool every_second;
    } cases[] = {{"execute_error", false},
                 {"bad_status", false},
                 {"request_error", true},
                 {"wrong_shape", false},
                 {"too_large", false}};
    for (unsigned c = 0; c < NR_COUNT(cases); c++) {
        const naru_option options[] = {{"fault", cases[c].fault}};
        struct world w;
        world_init(&w, &(struct setup){.plugin = "fault",
                                       .options = options,
                                       .n_options = 1,
                                       .instances = 1,
                                       .max_rows = 8,
                                       .limits = usual()});
        for (unsigned i = 0; i < 4; i++) {
            submit(&w, i, 1, 0);
        }
        assert_true(turn_until(&w, 4, 60 * NR_S_NS));
        unsigned failed = 0;
        for (unsigned i = 0; i < 4; i++) {
            failed += w.all[i].r.status != NARU_OK;
            assert_true(w.all[i].r.status == NARU_OK || w.all[i].r.error.len > 0);
        }
        if (cases[c].every_second) {
            assert_in_range(failed, 1, 4);
        } else {
            assert_int_equal(failed, 4);
        }
        finish(&w, 4);
    }
}

static void test_answers_from_other_threads(void **state)
{
    (void)state;
    static const char *const faults[] = {"async", "twice", "return_and_done"};
    for (unsigned c = 0; c < NR_COUNT(faults); c++) {
        const naru_option options[] = {{"fault", faults[c]}};
        struct world w;
        world_init(&w, &(struct setup){.plugin = "fault",
                                       .options = options,
                                       .n_options = 1,
                                       .instances = 2,
                                       .max_rows = 2,
                                       .limits = usual()});
        for (unsigned i = 0; i < 12; i++) {
            submit(&w, i, 1, 0);
        }
        assert_true(turn_until(&w, 12, 60 * NR_S_NS));
        for (unsigned i = 0; i < 12; i++) {
            assert_int_equal(w.all[i].completed, 1); /* whatever the plug-in does, exactly once */
        }
        finish(&w, 12);
    }
}

static void test_a_plug_in_that_never_answers_can_be_cancelled(void **state)
{
    (void)state;
    const naru_option options[] = {{"fault", "never"}};
    struct world w;
    world_init(&w, &(struct setup){.plugin = "fault",
                                   .options = options,
                                   .n_options = 1,
                                   .instances = 1,
                                   .max_rows = 1,
                                   .limits = usual()});
    submit(&w, 0, 1, 0);
    assert_false(turn_until(&w, 1, 100 * NR_MS_NS));
    nr_request_cancel(&w.all[0].r, NARU_CANCELLED, true);
    assert_true(turn_until(&w, 1, 60 * NR_S_NS));
    finish(&w, 1);
}

static _Atomic unsigned trims;

static uint64_t count_trim(naru_backend_model *model)
{
    (void)model;
    atomic_fetch_add(&trims, 1);
    return (uint64_t)1 << 30;
}

static bool wait_trims(unsigned n, int64_t limit_ns)
{
    int64_t until = nr_clock_now() + limit_ns;
    while (atomic_load(&trims) < n && nr_clock_now() < until) {
        usleep(1000);
    }
    return atomic_load(&trims) == n;
}

/* An idle model gives back what its batches and its plug-in keep: once, not while it is used, and it
 * runs as before afterwards. */
static void test_idle_model_is_trimmed(void **state)
{
    (void)state;
    const naru_option options[] = {{"delay_us", "1000"}};
    const int64_t idle_ns = 300 * NR_MS_NS;
    struct nr_sched_limits l = usual();
    l.idle_trim_ns = idle_ns;
    struct world w;
    world_init(&w, &(struct setup){.plugin = "delay",
                                   .options = options,
                                   .n_options = 1,
                                   .instances = 2,
                                   .max_rows = 1,
                                   .limits = l});
    const naru_backend *real = w.model->plugin->api;
    naru_backend table = *real;
    table.struct_size = sizeof(table);
    table.model_trim = count_trim;
    w.model->plugin->api = &table;
    atomic_store(&trims, 0);
    uint64_t empty = nr_buf_live_bytes();
    int64_t begin = nr_clock_now(), gap = 0;
    unsigned n = 0;
    for (; n < 20; n++) { /* 600 ms of work with pauses of 30 */
        submit(&w, n, 1, 0);
        assert_true(turn_until(&w, n + 1, 60 * NR_S_NS));
        usleep(30000);
        gap = NR_MAX(gap, nr_clock_now() - begin);
        begin = nr_clock_now();
    }
    assert_true(gap > idle_ns / 2 || atomic_load(&trims) == 0);
    assert_true(wait_trims(1, 60 * NR_S_NS) || gap > idle_ns / 2);
    usleep(700000);
    unsigned once = atomic_load(&trims);
    assert_true(once == 1 || gap > idle_ns / 2); /* idle for long: nothing more to give back */
    for (unsigned i = 0; i < n; i++) {
        expect_echo(&w.all[i]);
    }
    submit(&w, n++, 1, 0);
    assert_true(turn_until(&w, n, 60 * NR_S_NS));
    expect_echo(&w.all[n - 1]);
    assert_true(wait_trims(once + 1, 60 * NR_S_NS));
    assert_int_equal(nr_buf_live_bytes(), empty);
    submit(&w, n++, 1, 0); /* ends while the next look is arranged */
    assert_true(turn_until(&w, n, 60 * NR_S_NS));
    w.model->plugin->api = real;
    finish(&w, n);
}

static void test_urgent_ones_first(void **state)
{
    (void)state;
    const naru_option options[] = {{"delay_us", "1000"}};
    const struct nr_queue_rules levels[3] = {{0}};
    struct world w;
    world_init(&w, &(struct setup){.plugin = "delay",
                                   .options = options,
                                   .n_options = 1,
                                   .instances = 1,
                                   .max_rows = 1,
                                   .limits = usual(),
                                   .levels = levels,
                                   .n_levels = 3});
    submit_with(&w, 0, 1, 0, &an_hour);
    wait_running(&w, 1);
    static const unsigned priorities[] = {3, 2, 1, 1, 0};
    for (unsigned i = 0; i < NR_COUNT(priorities); i++) {
        w.next.priority = priorities[i];
        submit(&w, 1 + i, 1, 0);
    }
    struct nr_sched_state s;
    nr_sched_state_get(w.sched, &s);
    assert_int_equal(s.n_levels, 3);
    assert_int_equal(s.levels[0], 3); /* no priority is the default level, here the first */
    assert_int_equal(s.levels[2], 1);
    nr_request_cancel(&w.all[0].r, NARU_CANCELLED, true);
    assert_true(turn_until(&w, 6, 60 * NR_S_NS));
    static const unsigned expected[] = {0, 3, 4, 5, 2, 1};
    assert_memory_equal(w.order, expected, sizeof(expected));
    finish(&w, 6);
}

static void test_urgent_ones_first_in_a_turn(void **state)
{
    (void)state;
    const struct nr_queue_rules levels[2] = {{0}};
    struct world w;
    world_init(&w, &(struct setup){.plugin = "identity",
                                   .instances = 1,
                                   .may_inline = true,
                                   .max_rows = 64,
                                   .limits = usual(),
                                   .levels = levels,
                                   .n_levels = 2});
    for (unsigned i = 0; i < 4; i++) {
        w.next.priority = 2 - i % 2;
        submit(&w, i, 1, 0);
    }
    assert_true(turn_until(&w, 4, 60 * NR_S_NS));
    static const unsigned expected[] = {1, 3, 0, 2};
    assert_memory_equal(w.order, expected, sizeof(expected));
    finish(&w, 4);
}

/* Of four executions the first takes the longest; only order keeps the other answers back. */
static void test_answers_in_order(void **state)
{
    (void)state;
    for (unsigned ordered = 0; ordered < 2; ordered++) {
        const naru_option options[] = {{"delay_us", "1000"}};
        const naru_option longest = {"delay_us", "1000000"};
        struct world w;
        world_init(&w, &(struct setup){.plugin = "delay",
                                       .options = options,
                                       .n_options = 1,
                                       .instances = 4,
                                       .max_rows = 1,
                                       .limits = usual(),
                                       .preserve_ordering = ordered});
        submit_with(&w, 0, 1, 0, &longest);
        for (unsigned i = 1; i < 4; i++) {
            submit(&w, i, 1, 0);
        }
        assert_true(turn_until(&w, 4, 60 * NR_S_NS));
        for (unsigned i = 0; i < 4; i++) {
            expect_echo(&w.all[i]);
            assert_true(!ordered || w.order[i] == i);
        }
        assert_int_equal(w.order[ordered ? 0 : 3], 0);
        finish(&w, 4);
    }
}

static void test_answers_in_order_with_faults(void **state)
{
    (void)state;
    static const char *const faults[] = {"async", "request_error", "wrong_shape"};
    for (unsigned c = 0; c < NR_COUNT(faults); c++) {
        const naru_option options[] = {{"fault", faults[c]}};
        struct world w;
        world_init(&w, &(struct setup){.plugin = "fault",
                                       .options = options,
                                       .n_options = 1,
                                       .instances = 3,
                                       .max_rows = 2,
                                       .limits = usual(),
                                       .preserve_ordering = true});
        for (unsigned i = 0; i < 40; i++) {
            submit(&w, i, 1, 0);
            if (i % 8 == 7) {
                nr_request_cancel(&w.all[i].r, NARU_CANCELLED, true);
            }
        }
        assert_true(turn_until(&w, 40, 60 * NR_S_NS));
        unsigned last = 0;
        for (unsigned i = 0; i < 40; i++) {
            unsigned k = w.order[i];
            assert_int_equal(w.all[k].completed, 1);
            if (k % 8 != 7) { /* a cancelled one is answered at once */
                assert_true(k >= last);
                last = k;
            }
        }
        finish(&w, 40);
    }
}

static void test_time_outs_reject_and_delay(void **state)
{
    (void)state;
    for (unsigned delays = 0; delays < 2; delays++) {
        const naru_option options[] = {{"delay_us", "1000"}};
        const struct nr_queue_rules level = {
            .delays = delays, .may_override = true, .timeout_ns = 60 * NR_S_NS};
        struct world w;
        world_init(&w, &(struct setup){.plugin = "delay",
                                       .options = options,
                                       .n_options = 1,
                                       .instances = 1,
                                       .max_rows = 1,
                                       .limits = usual(),
                                       .levels = &level,
                                       .n_levels = 1});
        submit_with(&w, 0, 1, 0, &an_hour);
        wait_running(&w, 1);
        w.next.timeout_us = 20000;
        submit(&w, 1, 1, 0);
        w.next.timeout_us = 0;
        submit(&w, 2, 1, 0);
        if (delays) {
            assert_false(turn_until(&w, 1, 50 * NR_MS_NS)); /* its time passes */
            nr_request_cancel(&w.all[0].r, NARU_CANCELLED, true);
            assert_true(turn_until(&w, 3, 60 * NR_S_NS));
            assert_int_equal(w.order[1], 2);
            expect_echo(&w.all[1]);
        } else {
            assert_true(turn_until(&w, 1, 60 * NR_S_NS)); /* while the first still runs */
            assert_int_equal(w.all[1].r.status, NARU_UNAVAILABLE);
            assert_non_null(strstr(w.all[1].r.error.ptr, "Request timeout expired"));
            nr_request_cancel(&w.all[0].r, NARU_CANCELLED, true);
            assert_true(turn_until(&w, 3, 60 * NR_S_NS));
        }
        expect_echo(&w.all[2]);
        finish(&w, 3);
    }
}

/* One client fills the queue; another's requests are served nevertheless. */
static void test_flood_of_one_client(void **state)
{
    (void)state;
    const naru_option options[] = {{"delay_us", "1000"}};
    struct world w;
    struct nr_sched_limits l = usual();
    l.max_queue_requests = 30;
    world_init(&w, &(struct setup){.plugin = "delay",
                                   .options = options,
                                   .n_options = 1,
                                   .instances = 1,
                                   .max_rows = 1,
                                   .limits = l});
    w.client = 1;
    submit_with(&w, 0, 1, 0, &an_hour);
    wait_running(&w, 1);
    for (unsigned i = 1; i < 50; i++) {
        submit(&w, i, 1, 0);
    }
    w.client = 2;
    for (unsigned i = 50; i < 54; i++) {
        submit(&w, i, 1, 0);
    }
    nr_request_cancel(&w.all[0].r, NARU_CANCELLED, true);
    assert_true(turn_until(&w, 54, 60 * NR_S_NS));
    unsigned place = 0, served = 0;
    for (unsigned i = 0; i < 54; i++) {
        served += w.all[w.order[i]].r.status == NARU_OK;
        place = w.order[i] == 53 ? served : place;
    }
    for (unsigned i = 50; i < 54; i++) {
        expect_echo(&w.all[i]);
    }
    assert_in_range(place, 1, 14); /* not behind the thirty that were there */
    struct nr_sched_state s;
    nr_sched_state_get(w.sched, &s);
    assert_int_equal(s.refused[NR_REFUSAL_SHARE], 4);
    assert_int_equal(s.refused[NR_REFUSAL_COUNT], 19);
    finish(&w, 54);
}

/* Work that cannot be done in time is refused as it comes, and none is begun. */
static void test_hopeless_deadlines(void **state)
{
    (void)state;
    const naru_option options[] = {{"delay_us", "50000"}};
    struct world w;
    struct nr_sched_limits l = usual();
    l.max_wait_ns = 600 * NR_S_NS;
    world_init(&w, &(struct setup){.plugin = "delay",
                                   .options = options,
                                   .n_options = 1,
                                   .instances = 1,
                                   .max_rows = 1,
                                   .limits = l});
    submit(&w, 0, 1, 0);
    assert_true(turn_until(&w, 1, 60 * NR_S_NS));
    struct nr_sched_state s = {.running = 1};
    while (s.running > 0) { /* now it is known how long it takes */
        nr_sched_state_get(w.sched, &s);
    }
    assert_true(s.row_ns > 0);
    submit_with(&w, 1, 1, 0, &an_hour);
    wait_running(&w, 1);
    for (unsigned i = 2; i < 20; i++) { /* 900 ms of work */
        submit(&w, i, 1, 0);
    }
    submit(&w, 20, 1, nr_clock_now() + 100 * NR_MS_NS);
    assert_int_equal(w.all[20].completed, 1);
    assert_int_equal(w.all[20].r.status, NARU_UNAVAILABLE);
    assert_true(w.all[20].r.retry_after_s >= 1);
    submit(&w, 21, 1, nr_clock_now() + 60 * NR_S_NS);
    nr_request_cancel(&w.all[1].r, NARU_CANCELLED, true);
    assert_true(turn_until(&w, 22, 60 * NR_S_NS));
    expect_echo(&w.all[21]);
    finish(&w, 22);
}

/* --- several responses to one request --------------------------------------------------------- */

static void on_answer(struct nr_request *r, struct nr_answer *a)
{
    struct one *o = nr_container_of(r, struct one, r);
    assert_int_equal(o->completed, 0); /* completion comes last */
    assert_int_equal(o->finals, 0);    /* nothing follows a final one */
    o->finals += a->final;
    if (a->n_outputs > 0) {
        assert_int_equal(a->outputs[0].bytes, o->input.bytes);
        assert_memory_equal(a->outputs[0].data, o->data, o->input.bytes);
        assert_int_equal(a->outputs[0].shape[0], o->in.rows);
        o->answers++;
    }
    if (o->slow) {
        assert_true(o->n_held < NR_ANSWER_WINDOW);
        o->held[o->n_held++] = a;
    } else {
        nr_answer_done(a);
    }
}

static void repeat_init(struct world *w, const naru_option *options, unsigned n_options)
{
    world_init(w, &(struct setup){.plugin = "repeat",
                                  .options = options,
                                  .n_options = n_options,
                                  .instances = 1,
                                  .max_rows = 8,
                                  .limits = usual(),
                                  .decoupled = true});
}

/* One request; `times` of them wanted, to a reader that streams, or NULL options for the model's. */
static struct one *stream(struct world *w, unsigned index, int64_t rows, const naru_option *times,
                          bool slow)
{
    struct one *o = &w->all[index];
    o->slow = slow;
    o->r.on_answer = on_answer;
    o->r.options = times;
    o->r.n_options = times != NULL;
    return submit(w, index, rows, 0);
}

static void test_responses_in_order(void **state)
{
    (void)state;
    const char *const ends[] = {"with", "after", "batch"};
    for (unsigned e = 0; e < 3; e++) {
        const naru_option options[] = {
            {"naru.decoupled", "true"}, {"responses", "5"}, {"end", ends[e]}};
        const naru_option none = {"responses", "0"}, many = {"responses", "200"};
        struct world w;
        repeat_init(&w, options, 3);
        stream(&w, 0, 1, NULL, false);
        stream(&w, 1, 3, NULL, false);
        stream(&w, 2, 1, &none, false);
        stream(&w, 3, 2, &many, false);
        assert_true(turn_until(&w, 4, 60 * NR_S_NS));
        const unsigned expected[] = {5, 5, 0, 200};
        for (unsigned i = 0; i < 4; i++) {
            assert_int_equal(w.all[i].r.status, NARU_OK);
            assert_int_equal(w.all[i].answers, expected[i]);
            assert_int_equal(w.all[i].finals, e == 2 ? 0 : 1);
            assert_int_equal(w.all[i].r.n_outputs, 0);
        }
        finish(&w, 4);
    }
}

/* The model stops at the window, whatever it would like to produce, and goes on as it is read. */
static void test_slow_reader_holds_the_model(void **state)
{
    (void)state;
    const naru_option options[] = {{"naru.decoupled", "true"}, {"responses", "100"}};
    struct world w;
    repeat_init(&w, options, 2);
    struct one *o = stream(&w, 0, 1, NULL, true);
    unsigned read = 0;
    int64_t until = nr_clock_now() + 60 * NR_S_NS;
    while (o->completed == 0 && nr_clock_now() < until) {
        nr_loop_turn(w.loop, 5 * NR_MS_NS);
        if (o->n_held == NR_ANSWER_WINDOW || o->completed > 0 || o->finals > 0) {
            for (unsigned i = 0; i < o->n_held; i++) { /* on_answer checks that no 17th comes */
                nr_answer_done(o->held[i]);
            }
            read += o->n_held;
            o->n_held = 0;
        }
    }
    assert_int_equal(o->completed, 1);
    assert_int_equal(o->answers, 100);
    assert_int_equal(read, 100);
    finish(&w, 1);
}

/* A reader that goes while the model waits for it: the model is told at once. */
static void test_cancel_wakes_a_waiting_model(void **state)
{
    (void)state;
    const naru_option options[] = {{"naru.decoupled", "true"}, {"responses", "1000000"}};
    struct world w;
    repeat_init(&w, options, 2);
    struct one *o = stream(&w, 0, 1, NULL, true);
    int64_t until = nr_clock_now() + 60 * NR_S_NS;
    while (o->n_held < NR_ANSWER_WINDOW && nr_clock_now() < until) {
        nr_loop_turn(w.loop, 5 * NR_MS_NS);
    }
    assert_int_equal(o->n_held, NR_ANSWER_WINDOW);
    nr_request_cancel(&o->r, NARU_CANCELLED, true);
    assert_true(turn_until(&w, 1, 60 * NR_S_NS));
    assert_int_equal(o->r.status, NARU_CANCELLED);
    assert_int_equal(o->answers, NR_ANSWER_WINDOW);
    for (unsigned i = 0; i < o->n_held; i++) { /* still readable after completion */
        assert_memory_equal(o->held[i]->outputs[0].data, o->data, o->input.bytes);
        nr_answer_done(o->held[i]);
    }
    finish(&w, 1);
}

/* Who wants one answer gets the first, when it is the only one. */
static void test_one_answer_wanted(void **state)
{
    (void)state;
    const naru_option options[] = {{"naru.decoupled", "true"}};
    const naru_option one = {"responses", "1"}, two = {"responses", "2"}, none = {"responses", "0"};
    const naru_option *const times[] = {&one, &two, &none};
    struct world w;
    repeat_init(&w, options, 1);
    for (unsigned i = 0; i < 3; i++) {
        w.all[i].r.options = times[i];
        w.all[i].r.n_options = 1;
        submit(&w, i, 2, 0);
    }
    assert_true(turn_until(&w, 3, 60 * NR_S_NS));
    expect_echo(&w.all[0]);
    assert_int_equal(w.all[1].r.status, NARU_INVALID);
    assert_non_null(memmem(w.all[1].r.error.ptr, w.all[1].r.error.len, "several responses", 17));
    assert_int_equal(w.all[2].r.status, NARU_OK);
    assert_int_equal(w.all[2].r.n_outputs, 0);
    finish(&w, 3);
}

static void test_bad_option_fails_its_request_alone(void **state)
{
    (void)state;
    const naru_option options[] = {{"naru.decoupled", "true"}};
    const naru_option bad = {"responses", "many"};
    struct world w;
    repeat_init(&w, options, 1);
    stream(&w, 0, 1, &bad, false);
    stream(&w, 1, 1, NULL, false);
    assert_true(turn_until(&w, 2, 60 * NR_S_NS));
    assert_int_equal(w.all[0].r.status, NARU_INVALID);
    assert_int_equal(w.all[1].r.status, NARU_OK);
    assert_int_equal(w.all[1].answers, 3);
    finish(&w, 2);
}

/* --- resources and executors of their own --------------------------------------------------------- */

struct store { /* of the one resource there is */
    struct nr_limit_state state;
};

static void on_store(void *arg, const struct nr_limit_state *s)
{
    ((struct store *)arg)->state = *s;
}

static struct nr_limit_state store_of(struct nr_limiter *l)
{
    struct store store = {0};
    nr_limiter_read(l, on_store, &store);
    return store.state;
}

static const struct nr_instance_resource one_unit = {.name = "R", .count = 1};
static const struct nr_instance_resource two_units = {.name = "R", .count = 2};
static const struct nr_instance_group needs_one = {
    .priority = 1, .n_resources = 1, .resources = &one_unit};
static const struct nr_instance_group needs_two = {
    .priority = 2, .n_resources = 1, .resources = &two_units};

static void limited_init(struct world *w, struct nr_limiter *l, const struct nr_instance_group *g,
                         unsigned instances)
{
    static const naru_option options[] = {{"delay_us", "100"}};
    world_init(w, &(struct setup){.plugin = "delay",
                                  .options = options,
                                  .n_options = 1,
                                  .instances = instances,
                                  .max_rows = 1,
                                  .limits = usual(),
                                  .limiter = l,
                                  .group = g});
}

static struct nr_limiter *limiter_of(const char *given)
{
    struct nr_limiter *l;
    struct nr_err err = {0};
    if (nr_limiter_new(&given, 1, &l, &err) != NARU_OK) {
        fail_msg("%s", err.text);
    }
    return l;
}

static void test_resources_hold_instances_back(void **state)
{
    (void)state;
    struct nr_limiter *l = limiter_of("R:2");
    struct world w;
    struct nr_sched_state s;
    limited_init(&w, l, &needs_one, 4);
    for (unsigned i = 0; i < 5; i++) {
        submit_with(&w, i, 1, 0, &an_hour);
    }
    wait_running(&w, 2);
    for (int i = 0; i < 20; i++) {
        nr_loop_turn(w.loop, NR_MS_NS);
    }
    nr_sched_state_get(w.sched, &s);
    assert_int_equal(s.running, 2); /* of four instances, all of them wanted */
    assert_int_equal(s.queued, 3);
    assert_true(s.limited_ns > 0);
    assert_int_equal(store_of(l).in_use, 2);
    assert_int_equal(store_of(l).waiting, 2);
    /* of those that wait all go but one, then they stop waiting for resources */
    nr_request_cancel(&w.all[2].r, NARU_CANCELLED, true);
    nr_request_cancel(&w.all[3].r, NARU_CANCELLED, true);
    nr_request_cancel(&w.all[4].r, NARU_CANCELLED, true);
    assert_int_equal(store_of(l).waiting, 0);
    submit(&w, 5, 1, 0);
    nr_request_cancel(&w.all[0].r, NARU_CANCELLED, true);
    assert_true(turn_until(&w, 5, 60 * NR_S_NS));
    expect_echo(&w.all[5]);
    nr_request_cancel(&w.all[1].r, NARU_CANCELLED, true);
    assert_true(turn_until(&w, 6, 60 * NR_S_NS));
    finish(&w, 6);
    nr_limiter_free(l);
}

static void test_models_take_turns_with_a_resource(void **state)
{
    (void)state;
    struct nr_limiter *l = limiter_of("R:2");
    struct world a, b;
    limited_init(&a, l, &needs_one, 2);
    limited_init(&b, l, &needs_two, 1);
    submit_with(&a, 0, 1, 0, &an_hour);
    wait_running(&a, 1);
    submit(&b, 0, 1, 0);
    for (int i = 0; i < 1000 && store_of(l).waiting == 0; i++) {
        nr_loop_turn(b.loop, NR_MS_NS);
    }
    assert_int_equal(store_of(l).waiting, 1);
    submit(&a, 1, 1, 0); /* would fit beside the first, but the other model was there before */
    for (int i = 0; i < 20; i++) {
        nr_loop_turn(a.loop, NR_MS_NS);
    }
    assert_int_equal(a.all[1].completed, 0);
    nr_request_cancel(&a.all[0].r, NARU_CANCELLED, true);
    assert_true(turn_until(&b, 1, 60 * NR_S_NS));
    expect_echo(&b.all[0]);
    assert_true(turn_until(&a, 2, 60 * NR_S_NS));
    expect_echo(&a.all[1]);
    finish(&a, 2);
    finish(&b, 1);
    nr_limiter_free(l);
}

/* Two models, requests that come, go and run at random: each ends once, and nothing stays held. */
static void test_random_requests_under_a_limit(void **state)
{
    (void)state;
    unsigned seed = (unsigned)nr_clock_now();
    const char *given = getenv("NR_TEST_SEED");
    if (given != NULL) {
        seed = (unsigned)strtoul(given, NULL, 10);
    }
    print_message("NR_TEST_SEED=%u\n", seed);
    static const naru_option lengths[] = {
        {"delay_us", "0"}, {"delay_us", "50"}, {"delay_us", "400"}, {"spin_us", "60"}};
    struct nr_limiter *l = limiter_of("R:3");
    struct world w[2];
    limited_init(&w[0], l, &needs_one, 3);
    limited_init(&w[1], l, &needs_two, 2);
    unsigned n[2] = {0, 0};
    while (n[0] < MANY || n[1] < MANY) {
        unsigned k = (unsigned)rand_r(&seed) % 2;
        if (n[k] < MANY) {
            submit_with(&w[k], n[k]++, 1, 0, &lengths[rand_r(&seed) % 4]);
        }
        unsigned any = (unsigned)rand_r(&seed) % NR_MAX(n[k], 1u);
        if (rand_r(&seed) % 3 == 0 && n[k] > 0 && w[k].all[any].completed == 0) {
            nr_request_cancel(&w[k].all[any].r, NARU_CANCELLED, rand_r(&seed) % 2 == 0);
        }
        if (rand_r(&seed) % 4 == 0) {
            nr_loop_turn(w[0].loop, 0);
            nr_loop_turn(w[1].loop, 0);
        }
        assert_true(store_of(l).in_use <= 3);
    }
    for (unsigned k = 0; k < 2; k++) {
        assert_true(turn_until(&w[k], MANY, 60 * NR_S_NS));
        for (unsigned i = 0; i < MANY; i++) {
            assert_int_equal(w[k].all[i].completed, 1);
        }
    }
    int64_t until_ns =
        nr_clock_now() + 60 * NR_S_NS; /* the last place is given back a little later */
    while (store_of(l).in_use > 0 && nr_clock_now() < until_ns) {
    }
    assert_int_equal(store_of(l).in_use, 0);
    assert_int_equal(store_of(l).waiting, 0);
    finish(&w[0], MANY);
    finish(&w[1], MANY);
    nr_limiter_free(l);
}

static void test_instances_on_executors_of_their_own(void **state)
{
    (void)state;
    const naru_option options[] = {an_hour};
    struct nr_exec *other = nr_exec_new(2, 4);
    struct world w;
    world_init(&w, &(struct setup){.plugin = "delay",
                                   .options = options,
                                   .n_options = 1,
                                   .instances = 4,
                                   .max_rows = 1,
                                   .limits = usual(),
                                   .other = other});
    for (unsigned i = 0; i < 5; i++) {
        submit(&w, i, 1, 0);
    }
    wait_running(&w, 4); /* whichever of the two they belong to */
    const naru_option soon = {"delay_us", "1"};
    submit_with(&w, 5, 1, 0, &soon);
    nr_request_cancel(&w.all[4].r, NARU_CANCELLED, true);
    for (unsigned i = 0; i < 4;
         i++) { /* one free place after the other: each lane takes its turn */
        nr_request_cancel(&w.all[i].r, NARU_CANCELLED, true);
        assert_true(turn_until(&w, 3 + 2 * i, 60 * NR_S_NS));
        submit_with(&w, 6 + i, 1, 0, &soon);
        assert_true(turn_until(&w, 4 + 2 * i, 60 * NR_S_NS));
    }
    for (unsigned i = 5; i < 10; i++) {
        expect_echo(&w.all[i]);
    }
    finish(&w, 10);
    nr_exec_free(other);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_turn_is_one_batch),
        cmocka_unit_test(test_pool_runs_at_once_and_batches_meanwhile),
        cmocka_unit_test(test_instances_overlap),
        cmocka_unit_test(test_queue_limits_refuse_at_once),
        cmocka_unit_test(test_deadline_in_the_queue),
        cmocka_unit_test(test_cancel_queued_and_running),
        cmocka_unit_test(test_cancel_before_the_turn_ends),
        cmocka_unit_test(test_model_that_becomes_slow_leaves_the_loop),
        cmocka_unit_test(test_faults_reach_only_their_requests),
        cmocka_unit_test(test_answers_from_other_threads),
        cmocka_unit_test(test_a_plug_in_that_never_answers_can_be_cancelled),
        cmocka_unit_test(test_idle_model_is_trimmed),
        cmocka_unit_test(test_urgent_ones_first),
        cmocka_unit_test(test_urgent_ones_first_in_a_turn),
        cmocka_unit_test(test_answers_in_order),
        cmocka_unit_test(test_answers_in_order_with_faults),
        cmocka_unit_test(test_time_outs_reject_and_delay),
        cmocka_unit_test(test_flood_of_one_client),
        cmocka_unit_test(test_hopeless_deadlines),
        cmocka_unit_test(test_responses_in_order),
        cmocka_unit_test(test_slow_reader_holds_the_model),
        cmocka_unit_test(test_cancel_wakes_a_waiting_model),
        cmocka_unit_test(test_one_answer_wanted),
        cmocka_unit_test(test_bad_option_fails_its_request_alone),
        cmocka_unit_test(test_resources_hold_instances_back),
        cmocka_unit_test(test_models_take_turns_with_a_resource),
        cmocka_unit_test(test_random_requests_under_a_limit),
        cmocka_unit_test(test_instances_on_executors_of_their_own),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
