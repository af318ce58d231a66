/* Pipelines over a real repository with the plug-ins for tests (identity, delay, fault): results,
 * batches and references at each step, steps side by side, failing, cancelled, expired, skipped; how
 * ensembles follow their members. The loop is turned by hand. */
#include "sched/pipeline.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/mem.h"
#include "codec/image.h"
#include "model/ensemble.h"
#include "model/repository.h"
#include "sched/runtime.h"

#define MANY 16
#define WIDTH 4

struct one {
    struct nr_arena arena;
    struct nr_infer_request in;
    struct nr_infer_tensor inputs[2];
    struct nr_infer_output outputs[4];
    struct nr_request r;
    float data[8 * WIDTH];
    unsigned completed;
};

struct world {
    char root[64];
    struct nr_loop *loop;
    struct nr_exec *exec;
    struct nr_plugins *plugins;
    struct nr_pool *pool;
    struct nr_runtime_host host;
    struct nr_repository *repository;
    struct nr_catalog_reader reader;
    struct one all[MANY];
    char states[8192]; /* "name STATE reason\n" as on_state told them */
};

/* --- the repository --------------------------------------------------------------------------- */

static void put(struct world *w, const char *model, const char *text)
{
    char path[256];
    (void)snprintf(path, sizeof path, "%s/%s", w->root, model);
    assert_int_equal(mkdir(path, 0700), 0);
    (void)snprintf(path, sizeof path, "%s/%s/1", w->root, model);
    assert_int_equal(mkdir(path, 0700), 0);
    (void)snprintf(path, sizeof path, "%s/%s/config.pbtxt", w->root, model);
    int fd = open(path, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0600);
    assert_int_equal(write(fd, text, strlen(text)), (ssize_t)strlen(text));
    (void)close(fd);
}

#define IO(kind, name, type, dims) \
    kind " { name: '" name "' data_type: TYPE_" type " dims: " dims " } "
#define IN IO("input", "in", "FP32", "-1")
#define OUT IO("output", "out", "FP32", "-1")
#define MODEL(backend)                                                          \
    "backend: '" backend "' max_batch_size: 64 " IO("input", "x", "FP32", "-1") \
        IO("output", "y", "FP32", "-1") "instance_group { count: 1 } dynamic_batching { } "
/* of fixed shape: runs on the loop */
#define FIXED                                                               \
    "backend: 'identity' max_batch_size: 64 " IO("input", "x", "FP32", "4") \
        IO("output", "y", "FP32", "4") "dynamic_batching { } "
#define SLOW(us) MODEL("delay") "parameters { key: 'delay_us' value { string_value: '" us "' } } "
#define HEAD "platform: 'ensemble' max_batch_size: 64 " IN
#define STEP(model, from, to)                                           \
    "step { model_name: '" model "' input_map { key: 'x' value: '" from \
    "' } output_map { key: 'y' value: '" to "' } } "
#define JOIN(a, b, to)                                                      \
    "step { model_name: 'naru.join' input_map [ { key: 'INPUT0' value: '" a \
    "' }, { key: 'INPUT1' value: '" b "' } ] output_map { key: 'OUTPUT' value: '" to "' } } "
#define STEPS(steps) "ensemble_scheduling { " steps "} "

static void on_state(void *ctx, const struct nr_version *v, nr_version_state state,
                     const char *reason)
{
    struct world *w = ctx;
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    pthread_mutex_lock(&lock);
    size_t len = strlen(w->states);
    (void)snprintf(w->states + len, sizeof w->states - len, "%s %s %s\n", v->name,
                   nr_version_state_text(state), reason);
    pthread_mutex_unlock(&lock);
}

static void world_begin(struct world *w)
{
    struct nr_err err = {0};
    memset(w, 0, sizeof(*w));
    (void)snprintf(w->root, sizeof w->root, "/tmp/naru-pipeline-XXXXXX");
    assert_non_null(mkdtemp(w->root));
    assert_int_equal(nr_loop_new(0, &w->loop, &err), NARU_OK);
    w->exec = nr_exec_new(4, 8);
    w->pool = nr_pool_new("test", 2, 64);
    w->plugins = nr_plugins_new();
    nr_plugins_add_dir(w->plugins, NARU_BUILD_DIR "/backends");
    w->host = (struct nr_runtime_host){.plugins = w->plugins,
                                       .exec = w->exec,
                                       .loops = &w->loop,
                                       .n_loops = 1,
                                       .pool = w->pool,
                                       .images = NR_IMAGE_LIMITS_DEFAULT,
                                       .max_instances = 8};
    nr_sched_limits_default(&w->host.limits);
    nr_placement_cfg_default(&w->host.placement);
    w->host.placement.allowed = true;
    /* a busy machine and sanitizers must not decide this */
    w->host.placement.short_ns = 200 * NR_US_NS;
    w->host.placement.budget_ns = 10 * NR_MS_NS;
}

static void world_load(struct world *w)
{
    struct nr_err err = {0};
    const char *path = w->root;
    struct nr_repository_cfg cfg = {.paths = &path,
                                    .n_paths = 1,
                                    .config = {.auto_complete = true},
                                    .ops = nr_runtime_ops,
                                    .ops_ctx = &w->host,
                                    .on_state = on_state,
                                    .event_ctx = w};
    assert_int_equal(nr_repository_new(&cfg, &w->repository, &err), NARU_OK);
    nr_repository_load_all(w->repository);
    assert_true(nr_repository_wait(w->repository, 0));
    nr_catalog_reader_init(&w->reader, w->repository);
}

static void world_end(struct world *w)
{
    char command[128];
    for (unsigned i = 0; i < MANY; i++) {
        nr_arena_done(&w->all[i].arena);
    }
    nr_catalog_reader_done(&w->reader);
    nr_repository_free(w->repository);
    nr_pool_free(w->pool);
    nr_plugins_free(w->plugins);
    nr_exec_free(w->exec);
    nr_loop_free(w->loop);
    /* the folder has a model's folder, its version and its configuration each */
    (void)snprintf(command, sizeof command, "rm -r '%s'", w->root);
    assert_int_equal(system(command), 0);
}

/* --- requests --------------------------------------------------------------------------------- */

static void on_complete(struct nr_request *r)
{
    nr_container_of(r, struct one, r)->completed++;
}

static struct nr_version *find(struct world *w, const char *model)
{
    struct nr_err err = {0};
    struct nr_version *v = NULL;
    if (nr_catalog_lookup(nr_catalog_get(&w->reader), nr_str_from(model), NR_STR(""), &v, &err) !=
        NARU_OK) {
        fail_msg("%s: %s", model, err.text);
    }
    return v;
}

/* One input of rows x WIDTH, the first n_outputs outputs from first_output on asked for. */
static struct one *ask(struct world *w, unsigned index, const char *model, int64_t rows,
                       unsigned first_output, unsigned n_outputs, int64_t deadline_ns)
{
    struct one *o = &w->all[index];
    struct nr_version *v = find(w, model);
    nr_arena_init(&o->arena, 0);
    for (unsigned i = 0; i < rows * WIDTH; i++) {
        o->data[i] = (float)(index * 100 + i + 1);
    }
    o->inputs[0] = (struct nr_infer_tensor){.dtype = NARU_FP32,
                                            .rank = 2,
                                            .shape = {rows, WIDTH},
                                            .elements = rows * WIDTH,
                                            .data = (const uint8_t *)o->data,
                                            .bytes = (size_t)rows * WIDTH * sizeof(float)};
    for (unsigned i = 0; i < n_outputs; i++) {
        o->outputs[i] = (struct nr_infer_output){.index = first_output + i};
    }
    o->in = (struct nr_infer_request){.rows = rows,
                                      .inputs = o->inputs,
                                      .n_inputs = 1,
                                      .outputs = o->outputs,
                                      .n_outputs = n_outputs};
    o->r = (struct nr_request){.target = nr_runtime_of(v)->target,
                               .loop = w->loop,
                               .arena = &o->arena,
                               .in = &o->in,
                               .catalog = nr_catalog_get(&w->reader),
                               .arrival_ns = nr_clock_now(),
                               .deadline_ns = deadline_ns,
                               .on_complete = on_complete};
    o->completed = 0;
    return o;
}

static struct one *submit(struct world *w, unsigned index, const char *model, int64_t rows)
{
    struct one *o = ask(w, index, model, rows, 0, 1, 0);
    nr_request_submit(&o->r);
    return o;
}

static void wait_for(struct world *w, struct one *o)
{
    int64_t until = nr_clock_now() + 60 * NR_S_NS;
    while (o->completed == 0 && nr_clock_now() < until) {
        nr_loop_turn(w->loop, NR_MS_NS);
    }
    assert_int_equal(o->completed, 1);
}

static void expect_ok(const struct one *o)
{
    if (o->r.status != NARU_OK) {
        fail_msg("%.*s", (int)o->r.error.len, o->r.error.ptr);
    }
    assert_int_equal(o->r.n_outputs, o->in.n_outputs);
}

static void expect_error(const struct one *o, nr_status status, const char *part)
{
    char text[600];
    (void)snprintf(text, sizeof text, NR_STR_FMT, NR_STR_ARG(o->r.error));
    if (o->r.status != status || strstr(text, part) == NULL) {
        fail_msg("%d \"%s\", not %d \"%s\"", o->r.status, text, status, part);
    }
}

static const struct nr_counts *counts(struct world *w, const char *model)
{
    struct nr_arena a;
    static struct nr_counts n; /* until the next call */
    nr_arena_init(&a, 0);
    nr_counters_read(nr_runtime_of(find(w, model))->counters, &a, &n);
    nr_arena_done(&a);
    return &n;
}

static unsigned running(struct world *w, const char *model)
{
    struct nr_sched_state s;
    nr_runtime_state_get(nr_runtime_of(find(w, model)), &s);
    return s.running;
}

/* --- tests ------------------------------------------------------------------------------------ */

/* A chain gives what its steps give; ensemble and members count; requests of one turn are one batch
 * at each step; a member within a member works; in steady state nothing is allocated. */
static void test_chain(void **state)
{
    (void)state;
    static struct world w;
    world_begin(&w);
    put(&w, "a", FIXED);
    put(&w, "b", FIXED);
    put(&w, "chain",
        HEAD OUT STEPS(STEP("a", "in", "t") STEP("b", "t", "u") STEP("a", "u", "out")));
    put(&w, "outer",
        HEAD OUT STEPS(
            "step { model_name: 'chain' input_map { key: 'in' value: 'in' } output_map { "
            "key: 'out' value: 't' } } " STEP("b", "t", "out")));
    world_load(&w);
    for (unsigned i = 0; i < 8; i++) {
        submit(&w, i, "chain", 1 + i % 3);
    }
    for (unsigned i = 0; i < 8; i++) {
        wait_for(&w, &w.all[i]);
        expect_ok(&w.all[i]);
        assert_int_equal(w.all[i].r.outputs[0].index, 0);
        assert_int_equal(w.all[i].r.outputs[0].shape[0], 1 + i % 3);
        assert_memory_equal(w.all[i].r.outputs[0].data, w.all[i].data, w.all[i].inputs[0].bytes);
    }
    assert_int_equal(counts(&w, "chain")->success, 8);
    assert_int_equal(counts(&w, "chain")->rows, 15);
    assert_int_equal(counts(&w, "b")->success, 8);
    assert_int_equal(counts(&w, "b")->rows, 15);
    assert_true(counts(&w, "b")->executions <= 2); /* 1, if the loop was never held up */
    assert_int_equal(counts(&w, "a")->success, 16);
    wait_for(&w, submit(&w, 8, "outer", 2));
    expect_ok(&w.all[8]);
    assert_memory_equal(w.all[8].r.outputs[0].data, w.all[8].data, w.all[8].inputs[0].bytes);
    assert_int_equal(counts(&w, "chain")->success, 9);
    assert_int_equal(counts(&w, "outer")->success, 1);
    for (unsigned i = 0; i < 100; i++) { /* the free lists fill */
        wait_for(&w, submit(&w, 9, "outer", 1));
        nr_arena_done(&w.all[9].arena);
    }
    uint64_t before = nr_mem_allocs();
    for (unsigned i = 0; i < 100; i++) {
        wait_for(&w, submit(&w, 9, "outer", 1));
        nr_arena_done(&w.all[9].arena);
    }
    assert_int_equal(nr_mem_allocs() - before, 0);
    /* a hop costs a turn that does not wait; four steps, best of many (a model that was slow for
     * once may sit on an executor for a while) */
    unsigned fewest = UINT_MAX;
    for (unsigned i = 0; i < 1000 && fewest > 4; i++) {
        struct one *o = submit(&w, 9, "outer", 1);
        unsigned turns = 0;
        for (; o->completed == 0; turns++) {
            nr_loop_turn(w.loop, 0);
        }
        fewest = NR_MIN(fewest, turns);
        nr_arena_done(&o->arena);
    }
    assert_in_range(fewest, 1, 4);
    world_end(&w);
}

/* Both arms of a diamond run at the same time; the joined answer has both. */
static void test_diamond(void **state)
{
    (void)state;
    static struct world w;
    world_begin(&w);
    put(&w, "left", SLOW("100000"));
    put(&w, "right", SLOW("100000"));
    put(&w, "diamond",
        HEAD OUT STEPS(STEP("left", "in", "l") STEP("right", "in", "r") JOIN("l", "r", "out")));
    world_load(&w);
    struct one *o = submit(&w, 0, "diamond", 2);
    bool both = false;
    while (o->completed == 0) {
        both = both || (running(&w, "left") == 1 && running(&w, "right") == 1);
        nr_loop_turn(w.loop, NR_MS_NS);
    }
    expect_ok(o);
    assert_true(both);
    assert_int_equal(o->r.outputs[0].shape[1], 2 * WIDTH);
    for (unsigned row = 0; row < 2; row++) {
        for (unsigned half = 0; half < 2; half++) {
            assert_memory_equal(o->r.outputs[0].data + (row * 2 + half) * WIDTH * sizeof(float),
                                o->data + (size_t)row * WIDTH, WIDTH * sizeof(float));
        }
    }
    world_end(&w);
}

/* The first failure ends the request: steps under way are told, later ones do not begin. */
static void test_error_in_a_step(void **state)
{
    (void)state;
    static struct world w;
    world_begin(&w);
    put(&w, "good", MODEL("identity"));
    put(&w, "bad",
        MODEL("fault") "parameters { key: 'fault' value { string_value: "
                       "'execute_error' } } ");
    put(&w, "hour", SLOW("3600000000"));
    put(&w, "broken",
        HEAD OUT STEPS(STEP("good", "in", "t") STEP("bad", "t", "u") STEP("good", "u", "out")));
    put(&w, "arms",
        HEAD OUT STEPS(STEP("hour", "in", "l") STEP("bad", "in", "r") JOIN("l", "r", "out")));
    world_load(&w);
    struct one *o = submit(&w, 0, "broken", 1);
    wait_for(&w, o);
    expect_error(o, counts(&w, "bad")->fail == 1 ? o->r.status : NARU_OK,
                 "step 1 (model \"bad\"): ");
    assert_int_not_equal(o->r.status, NARU_OK);
    assert_int_equal(counts(&w, "good")->success, 1);
    assert_int_equal(counts(&w, "broken")->fail, 1);
    assert_int_equal(counts(&w, "broken")->failed[NR_FAIL_BACKEND], 1);
    o = submit(&w, 1, "arms", 1);
    wait_for(&w, o); /* not an hour */
    expect_error(o, o->r.status, "step 1 (model \"bad\"): ");
    world_end(&w);
}

static void wait_running(struct world *w, const char *model)
{
    int64_t until = nr_clock_now() + 60 * NR_S_NS;
    while (running(w, model) == 0 && nr_clock_now() < until) {
        nr_loop_turn(w->loop, NR_MS_NS);
    }
    assert_int_equal(running(w, model), 1);
}

static void test_cancel_in_the_middle(void **state)
{
    (void)state;
    static struct world w;
    world_begin(&w);
    put(&w, "first", MODEL("identity"));
    put(&w, "hour", SLOW("3600000000"));
    put(&w, "last", MODEL("identity"));
    put(&w, "chain",
        HEAD OUT STEPS(STEP("first", "in", "t") STEP("hour", "t", "u") STEP("last", "u", "out")));
    world_load(&w);
    struct one *o = submit(&w, 0, "chain", 1);
    wait_running(&w, "hour");
    struct one *waiting = submit(&w, 1, "chain", 1);
    struct nr_sched_state hour = {0};
    while (hour.queued == 0) {
        nr_loop_turn(w.loop, NR_MS_NS);
        nr_runtime_state_get(nr_runtime_of(find(&w, "hour")), &hour);
    }
    nr_request_cancel(&waiting->r, NARU_CANCELLED, false);
    assert_int_equal(waiting->completed, 1); /* it had not begun */
    nr_request_cancel(&o->r, NARU_CANCELLED, true);
    nr_request_cancel(&o->r, NARU_CANCELLED, true); /* twice does no harm */
    wait_for(&w, o);
    expect_error(o, NARU_CANCELLED, "step 1 (model \"hour\"): ");
    assert_int_equal(waiting->r.status, NARU_CANCELLED);
    assert_int_equal(counts(&w, "last")->success, 0);
    assert_int_equal(counts(&w, "chain")->failed[NR_FAIL_CANCELED], 2);
    nr_request_cancel(&o->r, NARU_CANCELLED, true); /* it is over */
    world_end(&w);
}

static void test_deadline(void **state)
{
    (void)state;
    static struct world w;
    world_begin(&w);
    put(&w, "slow", SLOW("1000000"));
    put(&w, "last", MODEL("identity"));
    put(&w, "chain", HEAD OUT STEPS(STEP("slow", "in", "t") STEP("last", "t", "out")));
    world_load(&w);
    int64_t now_ns = nr_clock_now();
    struct one *o = ask(&w, 0, "chain", 1, 0, 1, now_ns - 1);
    nr_request_submit(&o->r);
    assert_int_equal(o->completed, 1);
    expect_error(o, NARU_DEADLINE, "before its first step");
    /* it passes while the first step runs: the second one is not begun */
    o = ask(&w, 1, "chain", 1, 0, 1, nr_clock_now() + 300 * NR_MS_NS);
    nr_request_submit(&o->r);
    /* and while this one waits for its first step */
    struct one *queued = ask(&w, 2, "chain", 1, 0, 1, nr_clock_now() + 300 * NR_MS_NS);
    wait_running(&w, "slow");
    nr_request_submit(&queued->r);
    wait_for(&w, queued);
    wait_for(&w, o);
    assert_int_equal(o->r.status, NARU_DEADLINE);
    assert_int_equal(queued->r.status, NARU_DEADLINE);
    assert_int_equal(counts(&w, "last")->success, 0);
    assert_int_equal(counts(&w, "chain")->fail, 3);
    world_end(&w);
}

/* Steps that only other outputs need do not run. */
static void test_only_what_is_asked_for(void **state)
{
    (void)state;
    static struct world w;
    world_begin(&w);
    put(&w, "a", MODEL("identity"));
    put(&w, "b", MODEL("identity"));
    put(&w, "fork",
        HEAD OUT IO("output", "out2", "FP32", "-1")
            STEPS(STEP("a", "in", "out") STEP("b", "in", "out2")));
    world_load(&w);
    struct one *o = ask(&w, 0, "fork", 1, 1, 1, 0);
    nr_request_submit(&o->r);
    wait_for(&w, o);
    expect_ok(o);
    assert_int_equal(o->r.outputs[0].index, 1);
    assert_int_equal(counts(&w, "a")->success, 0);
    assert_int_equal(counts(&w, "b")->success, 1);
    o = ask(&w, 1, "fork", 1, 0, 2, 0);
    nr_request_submit(&o->r);
    wait_for(&w, o);
    expect_ok(o);
    assert_int_equal(counts(&w, "a")->success, 1);
    assert_int_equal(counts(&w, "b")->success, 2);
    world_end(&w);
}

#define IF                                                                                     \
    "step { model_name: 'naru.if' input_map [ { key: 'CONDITION' value: 'in' }, { key: "       \
    "'INPUT' value: 'in' } ] output_map [ { key: 'THEN' value: 'yes' }, { key: 'ELSE' value: " \
    "'no' } ] } "
#define EITHER                                                                          \
    "step { model_name: 'naru.either' input_map [ { key: 'FIRST' value: 'p' }, { key: " \
    "'SECOND' value: 'q' } ] output_map { key: 'OUTPUT' value: 'out' } } "
#define WHEN(compare, value)                                                  \
    "parameters { key: 'naru.step.0.compare' value { string_value: '" compare \
    "' } } parameters { key: 'naru.step.0.value' value { string_value: '" value "' } } "

static void test_branches(void **state)
{
    (void)state;
    static struct world w;
    world_begin(&w);
    put(&w, "a", MODEL("identity"));
    put(&w, "b", MODEL("identity"));
    put(&w, "choose",
        HEAD OUT STEPS(IF STEP("a", "yes", "p") STEP("b", "no", "q") EITHER) WHEN(">", "100"));
    put(&w, "gate",
        HEAD OUT STEPS(IF STEP("a", "yes", "out") STEP("b", "no", "other"))
            IO("output", "other", "FP32", "-1") WHEN(">", "100"));
    world_load(&w);
    wait_for(&w, submit(&w, 0, "choose", 1)); /* 1 … 4 */
    expect_ok(&w.all[0]);
    assert_int_equal(counts(&w, "a")->success, 0);
    assert_int_equal(counts(&w, "b")->success, 1);
    wait_for(&w, submit(&w, 1, "choose", 1)); /* 101 … 104 */
    expect_ok(&w.all[1]);
    assert_memory_equal(w.all[1].r.outputs[0].data, w.all[1].data, w.all[1].inputs[0].bytes);
    assert_int_equal(counts(&w, "a")->success, 1);
    assert_int_equal(counts(&w, "b")->success, 1);
    /* rows that disagree: the first row stays below, a later one does not */
    struct one *o = ask(&w, 2, "choose", 2, 0, 1, 0);
    memset(o->data, 0, WIDTH * sizeof(float));
    nr_request_submit(&o->r);
    wait_for(&w, o);
    expect_error(o, NARU_INVALID,
                 "step 0 (\"naru.if\"): naru.if: the condition is false for row 0");
    wait_for(&w, submit(&w, 0, "gate", 1));
    expect_error(&w.all[0], NARU_PRECONDITION, "output \"out\" was not made");
    world_end(&w);
}

/* A large tensor goes through steps without a copy: the answer lies in the buffer that the first
 * model wrote, and the second model read it there. */
static void test_by_reference(void **state)
{
    (void)state;
    static struct world w;
    world_begin(&w);
    put(&w, "a", SLOW("0"));
    put(&w, "b", SLOW("0"));
    put(&w, "through",
        HEAD OUT IO("output", "same", "FP32", "-1")
            STEPS("step { model_name: 'naru.if' input_map [ { key: 'CONDITION' value: "
                  "'in' }, { key: 'INPUT' value: 't' } ] output_map { key: 'THEN' "
                  "value: 'same' } } " STEP("a", "in", "t") STEP("b", "same", "out")));
    world_load(&w);
    struct one *o = ask(&w, 0, "through", 1, 0, 2, 0);
    struct nr_buf *buf = nr_buf_try_new(1u << 20);
    memset(nr_buf_data(buf), 1, 1u << 20);
    o->inputs[0].shape[1] = o->inputs[0].elements = 1 << 18;
    o->inputs[0].bytes = 1u << 20;
    o->inputs[0].data = nr_buf_data(buf);
    o->inputs[0].buf = buf;
    nr_request_submit(&o->r);
    wait_for(&w, o);
    /* a condition of 2^18 elements is looked at on the pool */
    expect_ok(o);
    assert_int_equal(o->r.outputs[1].bytes, 1u << 20);
    assert_non_null(o->r.outputs[1].buf);
    struct nr_sched_state s;
    while (running(&w, "b") > 0) { /* figures come with the end of the run */
        nr_loop_turn(w.loop, NR_MS_NS);
    }
    nr_runtime_state_get(nr_runtime_of(find(&w, "b")), &s);
    assert_int_equal(s.bytes_copied, 0);
    assert_int_equal(s.bytes_in_place, 1u << 20);
    nr_arena_done(&o->arena);
    nr_buf_unref(buf);
    world_end(&w);
}

/* A step's tensors go when its last reader has ended, not with the request. */
static void test_memory_goes_early(void **state)
{
    (void)state;
    static struct world w;
    world_begin(&w);
    put(&w, "a", SLOW("0"));
    put(&w, "hour", SLOW("3600000000"));
    put(&w, "chain",
        HEAD OUT STEPS(STEP("a", "in", "t") STEP("a", "t", "u") STEP("a", "u", "v")
                           STEP("hour", "v", "out")));
    world_load(&w);
    struct nr_buf *buf = nr_buf_try_new(8u << 20);
    memset(nr_buf_data(buf), 1, 8u << 20);
    uint64_t before = nr_buf_live_bytes();
    struct one *o = ask(&w, 0, "chain", 1, 0, 1, 0);
    o->inputs[0].shape[1] = o->inputs[0].elements = 2 << 20;
    o->inputs[0].bytes = 8u << 20;
    o->inputs[0].data = nr_buf_data(buf);
    o->inputs[0].buf = buf;
    nr_request_submit(&o->r);
    wait_running(&w, "hour");
    /* v, and what `hour` is writing to; perhaps one that model a keeps for its next run */
    assert_true(nr_buf_live_bytes() - before <= 3 * (8u << 20) + (1u << 20));
    nr_request_cancel(&o->r, NARU_CANCELLED, true);
    wait_for(&w, o);
    nr_arena_done(&o->arena);
    nr_buf_unref(buf);
    world_end(&w);
}

/* What naru's own steps refuse at run time is named like a model's failure. */
static void test_broken_picture(void **state)
{
    (void)state;
    static struct world w;
    world_begin(&w);
    put(&w, "decode",
        "platform: 'ensemble' max_batch_size: 4 " IO("input", "file", "STRING",
                                                     "1") IO("output", "px", "UINT8", "[-1,-1,3]")
            STEPS("step { model_name: 'naru.image_decode' input_map { key: 'IMAGE' value: 'file' } "
                  "output_map { key: 'PIXELS' value: 'px' } } "));
    world_load(&w);
    struct one *o = ask(&w, 0, "decode", 1, 0, 1, 0);
    static const uint8_t text[] = "\x07\0\0\0no PNG!";
    o->inputs[0] = (struct nr_infer_tensor){
        .dtype = NARU_BYTES, .rank = 2, .shape = {1, 1}, .elements = 1, .data = text, .bytes = 11};
    nr_request_submit(&o->r);
    wait_for(&w, o);
    expect_error(o, NARU_MEDIA_TYPE, "step 0 (\"naru.image_decode\"): ");
    /* cancelled while the pool has it: answered all the same, once */
    nr_arena_done(&o->arena);
    struct nr_infer_tensor picture = o->inputs[0];
    o = ask(&w, 1, "decode", 1, 0, 1, 0);
    o->inputs[0] = picture;
    nr_request_submit(&o->r);
    nr_request_cancel(&o->r, NARU_CANCELLED, true);
    wait_for(&w, o);
    assert_int_not_equal(o->r.status, NARU_OK);
    world_end(&w);
}

/* --- how ensembles follow their members ------------------------------------------------------- */

static const struct nr_catalog_version *entry(struct world *w, const char *model)
{
    const struct nr_catalog_version *v =
        nr_catalog_version(nr_catalog_get(&w->reader), nr_str_from(model), 1);
    assert_non_null(v);
    return v;
}

static void test_members_come_and_go(void **state)
{
    (void)state;
    static struct world w;
    struct nr_err err = {0};
    world_begin(&w);
    put(&w, "z", MODEL("identity")); /* by name behind its users */
    put(&w, "mid", HEAD OUT STEPS(STEP("z", "in", "out")));
    put(&w, "top",
        HEAD OUT STEPS("step { model_name: 'mid' input_map { key: 'in' value: 'in' } "
                       "output_map { key: 'out' value: 'out' } } "));
    put(&w, "lost", HEAD OUT STEPS(STEP("nobody", "in", "out")));
    put(&w, "old",
        HEAD OUT STEPS("step { model_name: 'z' model_version: 7 input_map { key: 'x' "
                       "value: 'in' } output_map { key: 'y' value: 'out' } } "));
    put(&w, "wrong",
        "platform: 'ensemble' max_batch_size: 4 " IO("input", "in", "INT8", "4")
            OUT STEPS(STEP("z", "in", "out")));
    put(&w, "many", MODEL("repeat") "model_transaction_policy { decoupled: true } ");
    put(&w, "flood", HEAD OUT STEPS(STEP("many", "in", "out")));
    put(&w, "kept",
        HEAD OUT "response_cache { enable: true } " STEPS(
            "step { model_name: 'flood' input_map { key: 'in' value: 'in' } "
            "output_map { key: 'out' value: 'out' } } "));
#define LOOP(to)                                                                    \
    HEAD OUT STEPS("step { model_name: '" to                                        \
                   "' input_map { key: 'in' value: 'in' } output_map { key: 'out' " \
                   "value: 'out' } } ")
    put(&w, "self", LOOP("self"));
    put(&w, "p", LOOP("q"));
    put(&w, "q", LOOP("p"));
    put(&w, "user", LOOP("p"));
    put(&w, "n9", LOOP("mid")); /* mid 1, n9 2, … n2 9 */
    put(&w, "n8", LOOP("n9"));
    put(&w, "n7", LOOP("n8"));
    put(&w, "n6", LOOP("n7"));
    put(&w, "n5", LOOP("n6"));
    put(&w, "n4", LOOP("n5"));
    put(&w, "n3", LOOP("n4"));
    put(&w, "n2", LOOP("n3"));
    world_load(&w);
    static const struct {
        const char *model, *reason; /* NULL: ready */
    } cases[] = {
        {"mid", NULL},
        {"top", NULL},
        {"n3", NULL},
        {"n2", "ensembles are nested 9 deep, at most 8 are allowed"},
        {"lost", "step 0 needs model \"nobody\", which does not exist"},
        {"old", "step 0 needs model \"z\" version 7, which does not exist"},
        {"wrong", "step 0 (model \"z\"): input \"x\" is FP32 [-1,-1], but tensor \"in\" is INT8"},
        {"self", "it contains itself: self → self"},
        {"p", "it contains itself: p → q → p"},
        {"q", "it contains itself: q → p → q"},
        {"user", "which contains itself"},
        {"flood", NULL},
        {"kept", "response_cache cannot be enabled for an ensemble with step 0 (model \"flood\")"},
    };
    for (size_t i = 0; i < NR_COUNT(cases); i++) {
        const struct nr_catalog_version *v = entry(&w, cases[i].model);
        bool right = cases[i].reason == NULL
                         ? v->version != NULL && v->state == NR_VERSION_READY
                         : v->version == NULL && v->state == NR_VERSION_UNAVAILABLE &&
                               strstr(v->reason, cases[i].reason) != NULL;
        if (!right) {
            fail_msg("%s: %d %s", cases[i].model, v->state, v->reason);
        }
    }
    /* an ensemble is what its members are, whatever its own configuration says */
    assert_true(entry(&w, "many")->decoupled && entry(&w, "flood")->decoupled);
    assert_false(entry(&w, "top")->decoupled);
    assert_true(nr_catalog_decoupled(nr_catalog_get(&w.reader), entry(&w, "flood")->version));
    struct nr_repository_counts n = nr_repository_count(w.repository);
    assert_int_equal(n.unavailable, 9);
    assert_non_null(strstr(w.states, "top READY"));
    assert_non_null(strstr(w.states, "lost UNAVAILABLE step 0 needs"));
    assert_null(strstr(w.states, "self READY"));

    struct nr_version *top = entry(&w, "top")->version;
    struct nr_catalog_view *pin = nr_catalog_pin(&w.reader, top);
    struct one *o = ask(&w, 0, "top", 1, 0, 1, 0);
    assert_int_equal(nr_repository_unload(w.repository, "z", &err), NARU_OK);
    nr_request_submit(&o->r); /* it came before: its snapshot has the member */
    wait_for(&w, o);
    expect_ok(o);
    nr_arena_done(&o->arena);
    nr_catalog_refresh(&w.reader);
    nr_catalog_unpin(pin, top);
    assert_true(nr_repository_wait(w.repository, 0));
    assert_null(entry(&w, "mid")->version);
    assert_non_null(
        strstr(entry(&w, "mid")->reason, "step 0 needs model \"z\", which is not ready"));
    assert_non_null(strstr(entry(&w, "top")->reason, "step 0 needs model \"mid\""));
    assert_non_null(strstr(w.states, "mid UNAVAILABLE step 0 needs model \"z\""));
    assert_int_equal(nr_repository_count(w.repository).ready, 2); /* many, flood */
    world_end(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_chain),
        cmocka_unit_test(test_diamond),
        cmocka_unit_test(test_error_in_a_step),
        cmocka_unit_test(test_cancel_in_the_middle),
        cmocka_unit_test(test_deadline),
        cmocka_unit_test(test_only_what_is_asked_for),
        cmocka_unit_test(test_branches),
        cmocka_unit_test(test_by_reference),
        cmocka_unit_test(test_memory_goes_early),
        cmocka_unit_test(test_broken_picture),
        cmocka_unit_test(test_members_come_and_go),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
