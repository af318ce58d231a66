/* Sequences of a version that a repository loaded, with real plug-ins, on two loops that the test
 * turns by hand: order, state, control tensors, slots, idle times, cancels, other versions, unloading.
 * "horner" (ONNX: Y = 3 * state + X, the state is the last Y) gives an answer that depends on every
 * request before it; the plug-ins "identity" and "delay" repeat inputs as outputs, control tensors
 * included. NARU_TEST_SEED=<number> repeats a random run. */
#include "sched/sequence.h"

#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/mem.h"
#include "model/repository.h"
#include "sched/runtime.h"

#define LOOPS 2
#define MANY 512

struct one {
    struct nr_arena arena;
    struct nr_infer_request in;
    struct nr_infer_tensor input;
    struct nr_infer_output outputs[6];
    struct nr_request r;
    int64_t x;
    unsigned completed;
    uint64_t when; /* rank of its completion */
};

struct world {
    char root[64];
    struct nr_loop *loops[LOOPS];
    struct nr_plugins *plugins;
    struct nr_runtime_host host;
    struct nr_repository *repository;
    struct nr_catalog_reader reader;
    struct one *all;
    unsigned n;
    uint64_t n_completed;
};
static struct world w;

/* --- world ------------------------------------------------------------------------------------ */

static void put_file(const char *rel, const void *data, size_t bytes)
{
    char path[256];
    snprintf(path, sizeof(path), "%s/%s", w.root, rel);
    FILE *f = fopen(path, "we");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, bytes, f), bytes);
    assert_int_equal(fclose(f), 0);
}

static void make_dir(const char *rel)
{
    char path[256];
    snprintf(path, sizeof(path), "%s/%s", w.root, rel);
    assert_true(mkdir(path, 0700) == 0);
}

static bool has_onnx(void)
{
    return access(NARU_BUILD_DIR "/backends/naru-onnxruntime.so", R_OK) == 0;
}

static void world_init(const char *config, unsigned versions, bool may_inline)
{
    struct nr_err err = {0};
    memset(&w, 0, sizeof(w));
    snprintf(w.root, sizeof(w.root), "/tmp/naru-seq-XXXXXX");
    assert_non_null(mkdtemp(w.root));
    make_dir("m");
    put_file("m/config.pbtxt", config, strlen(config));
    if (strstr(config, "initial_state") != NULL) {
        int64_t first = 7;
        make_dir("m/initial_state");
        put_file("m/initial_state/seven.bin", &first, sizeof(first));
        put_file("m/initial_state/short.bin", &first, 3);
    }
    FILE *f = fopen(NARU_SOURCE_DIR "/tests/data/onnx/horner.onnx", "re");
    assert_non_null(f);
    char *model = nr_alloc(8192);
    size_t len = fread(model, 1, 8192, f);
    fclose(f);
    for (unsigned v = 1; v <= versions; v++) {
        char rel[64];
        snprintf(rel, sizeof(rel), "m/%u", v);
        make_dir(rel);
        snprintf(rel, sizeof(rel), "m/%u/model.onnx", v);
        put_file(rel, model, len);
    }
    nr_free(model);
    for (unsigned i = 0; i < LOOPS; i++) {
        assert_int_equal(nr_loop_new(i, &w.loops[i], &err), NARU_OK);
    }
    w.plugins = nr_plugins_new();
    nr_plugins_add_dir(w.plugins, NARU_BUILD_DIR "/backends");
    w.host = (struct nr_runtime_host){.plugins = w.plugins,
                                      .exec = nr_exec_new(2, 8),
                                      .loops = w.loops,
                                      .n_loops = LOOPS,
                                      .max_instances = 8,
                                      .sequences = nr_sequence_book_new()};
    nr_sched_limits_default(&w.host.limits);
    nr_placement_cfg_default(&w.host.placement);
    w.host.placement.allowed = may_inline;
    w.host.placement.short_ns = NR_MS_NS;
    w.host.placement.budget_ns = 10 * NR_MS_NS;
    w.all = nr_new_array(struct one, MANY);
}

/* False: the model could not be loaded; *reason (borrowed) says why. */
static bool load(const char **reason)
{
    struct nr_err err = {0};
    const char *path = w.root;
    struct nr_repository_cfg cfg = {.paths = &path,
                                    .n_paths = 1,
                                    .config = {.auto_complete = true},
                                    .ops = nr_runtime_ops,
                                    .ops_ctx = &w.host};
    if (nr_repository_new(&cfg, &w.repository, &err) != NARU_OK) {
        fail_msg("%s", err.text);
    }
    nr_repository_load_all(w.repository);
    assert_true(nr_repository_wait(w.repository, nr_clock_now() + 60 * NR_S_NS));
    nr_catalog_reader_init(&w.reader, w.repository);
    const struct nr_catalog_model *m = nr_catalog_find(nr_catalog_get(&w.reader), NR_STR("m"));
    assert_non_null(m);
    *reason = m->reason;
    return m->best != NULL;
}

static void world_init_loaded(const char *config, unsigned versions, bool may_inline)
{
    const char *reason;
    world_init(config, versions, may_inline);
    if (!load(&reason)) {
        fail_msg("%s", reason);
    }
}

static void turn(void)
{
    for (unsigned i = 0; i < LOOPS; i++) {
        nr_loop_turn(w.loops[i], 100 * NR_US_NS);
    }
}

static void remove_tree(const char *path)
{
    char line[256];
    static const char *const names[] = {"m/config.pbtxt",
                                        "m/1/model.onnx",
                                        "m/2/model.onnx",
                                        "m/initial_state/seven.bin",
                                        "m/initial_state/short.bin",
                                        "m/1",
                                        "m/2",
                                        "m/initial_state",
                                        "m",
                                        ""};
    for (unsigned i = 0; i < NR_COUNT(names); i++) {
        snprintf(line, sizeof(line), "%s/%s", path, names[i]);
        (void)remove(line);
    }
}

static void world_done(void)
{
    for (unsigned i = 0; i < w.n; i++) {
        nr_arena_done(&w.all[i].arena);
    }
    nr_sequence_book_end(w.host.sequences);
    nr_catalog_reader_done(&w.reader);
    nr_repository_free(w.repository);
    nr_sequence_book_free(w.host.sequences);
    nr_exec_free(w.host.exec);
    nr_plugins_free(w.plugins);
    for (unsigned i = 0; i < LOOPS; i++) {
        nr_loop_free(w.loops[i]);
    }
    nr_free(w.all);
    remove_tree(w.root);
}

static struct nr_runtime *runtime(int64_t version)
{
    const struct nr_catalog_model *m = nr_catalog_find(nr_catalog_get(&w.reader), NR_STR("m"));
    for (uint32_t i = 0; i < m->n_versions; i++) {
        if (m->versions[i].number == version) {
            assert_non_null(m->versions[i].version);
            return nr_runtime_of(m->versions[i].version);
        }
    }
    fail();
    return NULL;
}

static struct nr_sequencer_state state_of(int64_t version)
{
    struct nr_sequencer_state s;
    assert_true(nr_runtime_sequences_get(runtime(version), &s));
    return s;
}

/* --- requests --------------------------------------------------------------------------------- */

enum {
    START = 1,
    END = 2
};

static void on_complete(struct nr_request *r)
{
    struct one *o = nr_container_of(r, struct one, r);
    o->completed++;
    o->when = ++w.n_completed;
}

struct how {
    int64_t x;
    uint64_t id;
    const char *name;
    unsigned flags, loop;
    int64_t version, deadline_ns;
    int64_t rows;
    const naru_option *option;
};

static struct one *send_one(const struct how *how)
{
    assert_true(w.n < MANY);
    struct one *o = &w.all[w.n++];
    struct nr_runtime *rt = runtime(how->version == 0 ? 1 : how->version);
    int64_t rows = how->rows == 0 ? 1 : how->rows;
    nr_arena_init(&o->arena, 0);
    o->x = how->x;
    const struct nr_io_spec *spec = &rt->signature->inputs[0];
    o->input = (struct nr_infer_tensor){.dtype = NARU_INT64,
                                        .rank = spec->rank,
                                        .shape = {rows, 1},
                                        .elements = rows,
                                        .data = (const uint8_t *)&o->x,
                                        .bytes = 8};
    unsigned n = rt->signature->n_outputs;
    for (unsigned i = 0; i < n; i++) {
        o->outputs[i] = (struct nr_infer_output){.index = i, .binary = true};
    }
    o->in = (struct nr_infer_request){.rows = rows,
                                      .inputs = &o->input,
                                      .n_inputs = 1,
                                      .outputs = o->outputs,
                                      .n_outputs = n,
                                      .sequence_id = how->id,
                                      .sequence_start = (how->flags & START) != 0,
                                      .sequence_end = (how->flags & END) != 0};
    if (how->name != NULL) {
        o->in.sequence_name = nr_str_from(how->name);
    }
    o->r = (struct nr_request){.target = rt->target,
                               .loop = w.loops[how->loop],
                               .arena = &o->arena,
                               .in = &o->in,
                               .arrival_ns = nr_clock_now(),
                               .deadline_ns = how->deadline_ns,
                               .options = how->option,
                               .n_options = how->option != NULL,
                               .on_complete = on_complete};
    nr_loop_turn(w.loops[how->loop], 0); /* this thread is that loop's for now */
    nr_request_submit(&o->r);
    return o;
}
#define SEND(...) send_one(&(struct how){__VA_ARGS__})

/* Real time, whatever the clock says: the fake one stands still. */
static void wait_for(const struct one *o)
{
    for (unsigned i = 0; i < 50000 && o->completed == 0; i++) {
        turn();
    }
    assert_int_equal(o->completed, 1);
}

static void expect_ok(struct one *o)
{
    wait_for(o);
    if (o->r.status != NARU_OK) {
        fail_msg("%.*s", (int)o->r.error.len, o->r.error.ptr);
    }
    assert_int_equal(o->r.n_outputs, o->in.n_outputs);
    assert_ptr_equal(o->r.in, &o->in); /* given back as it came */
    assert_ptr_equal(o->r.on_complete, on_complete);
}

static void expect_fail(struct one *o, nr_status status, const char *part)
{
    wait_for(o);
    assert_int_equal(o->r.status, status);
    char text[NR_ERR_TEXT_MAX] = "";
    snprintf(text, sizeof(text), "%.*s", (int)o->r.error.len, o->r.error.ptr);
    if (strstr(text, part) == NULL) {
        fail_msg("'%s' does not say '%s'", text, part);
    }
    assert_ptr_equal(o->r.in, &o->in);
    assert_ptr_equal(o->r.on_complete, on_complete);
}

static int64_t answer(const struct one *o)
{
    int64_t y;
    assert_int_equal(o->r.outputs[0].bytes, sizeof(y));
    memcpy(&y, o->r.outputs[0].data, sizeof(y));
    return y;
}

/* --- models ----------------------------------------------------------------------------------- */

#define STATE \
    "state [ { input_name: \"S_IN\" output_name: \"S_OUT\" data_type: TYPE_INT64 dims: [1]"
#define HORNER(batch, sequence)                                                      \
    "backend: \"onnxruntime\" max_batch_size: " #batch " version_policy { all { } }" \
    "input [ { name: \"X\" data_type: TYPE_INT64 dims: [1] } ]"                      \
    "output [ { name: \"Y\" data_type: TYPE_INT64 dims: [1] } ]"                     \
    "sequence_batching { max_sequence_idle_microseconds: 60000000 " sequence " }"
#define CONTROLS(plugin, batch, more, sequence)                                                    \
    "backend: \"" plugin "\" max_batch_size: " #batch " " more                                     \
    " input [ { name: \"X\" data_type: TYPE_INT64 dims: [1] } ]"                                   \
    "output [ { name: \"Y\" data_type: TYPE_INT64 dims: [1] },"                                    \
    "{ name: \"S\" data_type: TYPE_INT32 dims: [1] }, { name: \"R\" data_type: TYPE_FP32 dims: "   \
    "[1] },"                                                                                       \
    "{ name: \"E\" data_type: TYPE_BOOL dims: [1] }, { name: \"C\" data_type: TYPE_UINT32 dims: "  \
    "[1] } ]"                                                                                      \
    "sequence_batching { " sequence " control_input ["                                             \
    "{ name: \"s\" control [ { kind: CONTROL_SEQUENCE_START int32_false_true: [ 5, 6 ] } ] },"     \
    "{ name: \"r\" control [ { kind: CONTROL_SEQUENCE_READY fp32_false_true: [ 0, 1.5 ] } ] },"    \
    "{ name: \"e\" control [ { kind: CONTROL_SEQUENCE_END bool_false_true: [ false, true ] } ] }," \
    "{ name: \"c\" control [ { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT32 } ] } ] }"

static void expect_controls(struct one *o, int32_t start, uint8_t end, uint32_t id)
{
    expect_ok(o);
    int32_t s;
    float r;
    uint32_t c;
    memcpy(&s, o->r.outputs[1].data, sizeof(s));
    memcpy(&r, o->r.outputs[2].data, sizeof(r));
    memcpy(&c, o->r.outputs[4].data, sizeof(c));
    assert_int_equal(answer(o), o->x);
    assert_int_equal(s, start);
    assert_true(r == 1.5F);
    assert_int_equal(o->r.outputs[3].data[0], end);
    assert_int_equal(c, id);
}

static void controls_of(const char *config)
{
    world_init_loaded(config, 1, true);
    expect_controls(SEND(.x = 1, .id = 9, .flags = START), 6, 0, 9);
    expect_controls(SEND(.x = 2, .id = 9), 5, 0, 9);
    expect_controls(SEND(.x = 3, .id = 4294967295, .flags = START | END, .loop = 1), 6, 1,
                    4294967295);
    expect_controls(SEND(.x = 4, .id = 9, .flags = END, .loop = 1), 5, 1, 9);
    struct nr_sequencer_state s = state_of(1);
    assert_true(s.active == 0 && s.started == 2 && s.ended == 2 && s.expired == 0);
    expect_fail(SEND(.id = 9), NARU_INVALID, "must specify the START flag");
    world_done();
}

static void test_control_tensors(void **state)
{
    (void)state;
    controls_of(CONTROLS("identity", 4, "", "oldest { max_candidate_sequences: 4 }"));
    controls_of(CONTROLS("identity", 4, "", "direct { }"));
    controls_of(CONTROLS("identity", 0, "instance_group [ { count: 2 } ]", ""));
}

static void test_what_requests_must_say(void **state)
{
    (void)state;
    world_init_loaded(CONTROLS("identity", 4, "", "direct { }"), 1, true);
    expect_fail(SEND(.id = 0, .flags = START), NARU_INVALID,
                "non-zero or non-empty correlation ID");
    expect_fail(SEND(.id = 1), NARU_INVALID, "sequence 1 to model 'm' must specify the START flag");
    expect_fail(SEND(.name = "five", .flags = START), NARU_INVALID,
                "ids that are numbers (UINT32)");
    expect_fail(SEND(.id = UINT64_C(1) << 32, .flags = START), NARU_INVALID, "4294967295");
    struct one *two = SEND(.id = 3, .flags = START, .rows = 2);
    expect_fail(two, NARU_INVALID, "must specify batch-size 1");
    assert_int_equal(state_of(1).active, 0);
    world_done();
}

/* --- order and state -------------------------------------------------------------------------- */

static uint64_t rng;
static unsigned pick(unsigned n)
{
    rng ^= rng << 13;
    rng ^= rng >> 7;
    rng ^= rng << 17;
    return (unsigned)(rng % n);
}

#define SEQUENCES 20
#define LENGTH 12

/* Requests of many sequences in a random mix, many of one sequence at once, from both loops; some
 * begin anew without an end. Every answer must be the one of its sequence in order. */
static void mix(uint64_t seed)
{
    struct {
        int64_t y;
        struct one *sent[LENGTH + 1];
        int64_t want[LENGTH + 1];
        unsigned n;
        bool begun;
    } seq[SEQUENCES] = {0};
    rng = seed * UINT64_C(0x9E3779B97F4A7C15) + 1;
    for (unsigned i = 0; i < SEQUENCES * LENGTH; i++) {
        unsigned k = pick(SEQUENCES);
        if (seq[k].n == LENGTH) {
            continue;
        }
        bool start = !seq[k].begun || pick(10) == 0, end = pick(6) == 0;
        int64_t x = pick(1000);
        seq[k].y = (start ? 0 : 3 * seq[k].y) + x;
        seq[k].begun = !end;
        seq[k].want[seq[k].n] = seq[k].y;
        seq[k].sent[seq[k].n++] = SEND(.x = x, .id = k + 1, .loop = pick(LOOPS),
                                       .flags = (start ? START : 0u) | (end ? END : 0u));
        for (unsigned t = pick(3); t > 0; t--) {
            turn();
        }
    }
    for (unsigned k = 0; k < SEQUENCES; k++) {
        if (seq[k].begun) {
            seq[k].want[seq[k].n] = 3 * seq[k].y;
            seq[k].sent[seq[k].n++] = SEND(.id = k + 1, .flags = END);
        }
    }
    for (unsigned k = 0; k < SEQUENCES; k++) {
        for (unsigned i = 0; i < seq[k].n; i++) {
            expect_ok(seq[k].sent[i]);
            assert_int_equal(answer(seq[k].sent[i]), seq[k].want[i]);
            assert_true(i == 0 || seq[k].sent[i]->when > seq[k].sent[i - 1]->when);
        }
    }
    struct nr_sequencer_state s = state_of(1);
    assert_true(s.active == 0 && s.backlog == 0 && s.waiting == 0 && s.expired == 0);
}

static void mix_all(const char *config, bool may_inline)
{
    const char *given = getenv("NARU_TEST_SEED");
    uint64_t seed = 0;
    bool one = given != NULL && nr_str_to_u64(nr_str_from(given), &seed);
    for (uint64_t i = one ? seed : 1; i <= (one ? seed : 4); i++) {
        print_message("seed %" PRIu64 "\n", i); /* the last one printed is the one that failed */
        world_init_loaded(config, 1, may_inline);
        mix(i);
        world_done();
    }
}

static void test_mixed_sequences(void **state)
{
    (void)state;
    if (!has_onnx()) {
        skip();
    }
    mix_all(HORNER(8, "oldest { max_candidate_sequences: 30 }" STATE " } ]"), false);
    mix_all(HORNER(8, "oldest { max_candidate_sequences: 30 }" STATE " } ]"), true);
    mix_all(HORNER(8, "oldest { max_candidate_sequences: 3 preferred_batch_size: 4 "
                      "max_queue_delay_microseconds: 200 }" STATE
                      " use_same_buffer_for_input_output: true } ]"),
            true);
    mix_all(HORNER(8, "direct { }" STATE " } ]"), true);
    mix_all(HORNER(4, "direct { minimum_slot_utilization: 0.8 max_queue_delay_microseconds: 300 "
                      "}" STATE " use_same_buffer_for_input_output: true use_growable_memory: true "
                      "} ]") "instance_group [ { count: 2 } ]",
            false);
}

static void test_initial_state(void **state)
{
    (void)state;
    const char *reason;
    if (!has_onnx()) {
        skip();
    }
#define FIRST(file)                                                                                \
    HORNER(8, "oldest { }" STATE " initial_state [ { name: \"f\" data_type: TYPE_INT64 dims: [1] " \
              "data_file: \"" file "\" } ] } ]")
    world_init_loaded(FIRST("seven.bin"), 1, true);
    struct one *a = SEND(.x = 1, .name = "a", .flags = START);
    expect_ok(a);
    assert_int_equal(answer(a), 22);
    struct one *b = SEND(.x = 1, .name = "a");
    expect_ok(b);
    assert_int_equal(answer(b), 67);
    world_done();
    world_init(FIRST("short.bin"), 1, true);
    assert_false(load(&reason));
    assert_non_null(strstr(reason, "it has 3 bytes, the state 8"));
    world_done();
    world_init(FIRST("none.bin"), 1, true);
    assert_false(load(&reason));
    assert_non_null(strstr(reason, "initial_state/none.bin"));
    world_done();
}

/* --- slots ------------------------------------------------------------------------------------ */

static void test_backlog(void **state)
{
    (void)state;
    world_init(CONTROLS("delay", 4, "", "oldest { max_candidate_sequences: 1 }"), 1, false);
    w.host.limits.max_queue_requests = 3;
    const char *reason;
    assert_true(load(&reason));
    struct one *a = SEND(.id = 1, .flags = START);
    expect_ok(a);
    struct one *b = SEND(.id = 2, .flags = START, .loop = 1), *b2 = SEND(.id = 2, .loop = 1);
    struct one *c = SEND(.id = 3, .flags = START);
    struct one *full = SEND(.id = 4, .flags = START);
    expect_fail(full, NARU_UNAVAILABLE, "3 requests of model 'm' wait");
    assert_true(full->r.retry_after_s > 0);
    struct nr_sequencer_state s = state_of(1);
    assert_true(s.active == 1 && s.backlog == 2 && s.waiting == 3);
    turn();
    assert_true(b->completed == 0 && c->completed == 0);
    expect_controls(SEND(.id = 1, .flags = END), 5, 1, 1);
    expect_controls(b, 6, 0, 2);
    expect_controls(b2, 5, 0, 2);
    assert_int_equal(c->completed, 0);
    expect_controls(SEND(.id = 2, .flags = END, .loop = 1), 5, 1, 2);
    expect_controls(c, 6, 0, 3);
    world_done();
}

static void test_end_and_begin_anew(void **state)
{
    (void)state;
    world_init_loaded(CONTROLS("delay", 4,
                               "parameters { key: \"delay_us\" value { string_value: \"50000\" } }",
                               "oldest { max_candidate_sequences: 1 }"),
                      1, false);
    struct one *a = SEND(.id = 1, .flags = START), *b = SEND(.id = 1, .flags = END);
    struct one *again = SEND(.id = 1, .flags = START), *other = SEND(.id = 2, .flags = START | END);
    struct one *late = SEND(.id = 1, .flags = END);
    expect_fail(SEND(.id = 1), NARU_INVALID, "must specify the START flag"); /* behind its end */
    expect_controls(late, 5, 1, 1);
    expect_controls(a, 6, 0, 1);
    expect_controls(b, 5, 1, 1);
    expect_controls(again, 6, 0, 1);
    expect_controls(other, 6, 1, 2);
    assert_true(a->when < b->when && b->when < other->when && other->when < again->when &&
                again->when <
                    late->when); /* who waits for a slot comes before an id's second life */
    world_done();
}

static void test_idle_time(void **state)
{
    (void)state;
    world_init_loaded(CONTROLS("identity", 4, "",
                               "max_sequence_idle_microseconds: 500000 "
                               "oldest { max_candidate_sequences: 1 }"),
                      1, true);
    nr_clock_fake(true, nr_clock_now());
    expect_controls(SEND(.id = 1, .flags = START), 6, 0, 1);
    nr_clock_fake_advance(499 * NR_MS_NS);
    expect_controls(SEND(.id = 1), 5, 0, 1);
    struct one *waiting = SEND(.id = 2, .flags = START);
    turn();
    assert_int_equal(waiting->completed, 0);
    nr_clock_fake_advance(500 * NR_MS_NS);
    expect_fail(SEND(.id = 1), NARU_INVALID, "idle for more than 500 ms");
    expect_controls(waiting, 6, 0, 2);
    assert_int_equal(state_of(1).expired, 1);
    nr_clock_fake(false, 0);
    world_done();
}

/* The slot of an idle sequence is given up without anybody asking. */
static void test_idle_time_by_itself(void **state)
{
    (void)state;
    world_init_loaded(CONTROLS("identity", 4, "",
                               "max_sequence_idle_microseconds: 30000 "
                               "oldest { max_candidate_sequences: 1 }"),
                      1, true);
    expect_controls(SEND(.id = 1, .flags = START), 6, 0, 1);
    struct one *waiting = SEND(.id = 2, .flags = START);
    expect_controls(waiting, 6, 0, 2);
    assert_true(waiting->r.end_ns - w.all[0].r.end_ns >= 30 * NR_MS_NS);
    for (unsigned i = 0; i < 50000 && state_of(1).active > 0; i++) {
        turn();
    }
    assert_int_equal(state_of(1).expired, 2);
    world_done();
}

/* --- cancels and time limits ------------------------------------------------------------------ */

static void cancels_of(const char *config)
{
    world_init_loaded(config, 1, false);
    struct one *a = SEND(.id = 1, .flags = START), *b = SEND(.id = 1), *c = SEND(.id = 1);
    nr_request_cancel(&b->r, NARU_CANCELLED, true);
    expect_fail(b, NARU_CANCELLED, "while it waited for its sequence");
    expect_controls(c, 5, 0, 1);
    expect_controls(a, 6, 0, 1);
    /* a first request that never runs takes those behind it along */
    struct one *d = SEND(.id = 2, .flags = START), *e = SEND(.id = 3, .flags = START);
    struct one *f = SEND(.id = 3, .flags = END);
    assert_int_equal(state_of(1).backlog, 2);
    nr_request_cancel(&e->r, NARU_CANCELLED, true);
    expect_fail(e, NARU_CANCELLED, "while it waited");
    nr_request_cancel(&d->r, NARU_CANCELLED, true);
    assert_int_equal(state_of(1).backlog, 1); /* nothing of sequence 2 was left */
    expect_controls(SEND(.id = 1, .flags = END), 5, 1, 1);
    expect_fail(f, NARU_INVALID, "the first request of the sequence did not run");
    assert_int_equal(state_of(1).active, 0);
    struct one *slow = SEND(.id = 1, .flags = START);
    struct one *late = SEND(.id = 1, .deadline_ns = nr_clock_now() + NR_MS_NS);
    expect_fail(late, NARU_DEADLINE, "time limit passed while it waited for its sequence");
    expect_controls(slow, 6, 0, 1);
    struct nr_sequencer_state s = state_of(1);
    assert_true(s.active == 1 && s.waiting == 0 && s.backlog == 0);
    world_done();
}

static void test_cancels(void **state)
{
    (void)state;
    cancels_of(CONTROLS("delay", 4,
                        "parameters { key: \"delay_us\" value { string_value: \"20000\" } }",
                        "oldest { max_candidate_sequences: 1 }"));
    cancels_of(CONTROLS("delay", 0,
                        "parameters { key: \"delay_us\" value { string_value: \"20000\" } }",
                        "direct { }"));
}

/* --- order of answers across sequences ---------------------------------------------------------- */

static bool slow_one_is_first(const char *config)
{
    static const naru_option slow = {"delay_us", "60000"};
    world_init_loaded(config, 1, false);
    struct one *a = SEND(.id = 1, .flags = START, .option = &slow);
    struct one *b =
        SEND(.id = 2, .flags = START); /* the same loop: between loops there is no order */
    expect_controls(b, 6, 0, 2);
    expect_controls(a, 6, 0, 1);
    bool first = a->r.end_ns != 0 && a->when < b->when;
    world_done();
    return first;
}

static void test_preserve_ordering(void **state)
{
    (void)state;
    assert_false(
        slow_one_is_first(CONTROLS("delay", 0, "instance_group [ { count: 2 } ]", "oldest { }")));
    assert_true(slow_one_is_first(CONTROLS("delay", 0, "instance_group [ { count: 2 } ]",
                                           "oldest { preserve_ordering: true }")));
}

/* --- direct ----------------------------------------------------------------------------------- */

static void test_direct_waits_for_slots(void **state)
{
    (void)state;
    world_init_loaded(CONTROLS("identity", 2, "",
                               "direct { minimum_slot_utilization: 1 "
                               "max_queue_delay_microseconds: 3000000000 }"),
                      1, true);
    struct one *a = SEND(.id = 1, .flags = START);
    for (unsigned i = 0; i < 50; i++) {
        turn();
    }
    assert_int_equal(a->completed, 0);
    struct one *b = SEND(.id = 2, .flags = START, .loop = 1);
    expect_controls(a, 6, 0, 1);
    expect_controls(b, 6, 0, 2);
    assert_true(a->r.batch_rows == 2 && b->r.batch_rows == 2);
    world_done();
}

/* --- iterative -------------------------------------------------------------------------------- */

#define ROUNDS(batch, strategy, more)                                                          \
    "backend: \"delay\" max_batch_size: " #batch                                               \
    " input [ { name: \"X\" data_type: TYPE_INT64 dims: [1] } ]"                               \
    "output [ { name: \"Y\" data_type: TYPE_INT64 dims: [1] },"                                \
    "{ name: \"S\" data_type: TYPE_INT32 dims: [1] },"                                         \
    "{ name: \"C\" data_type: TYPE_INT32 dims: [1] } ]"                                        \
    "parameters [ { key: \"rounds\" value { string_value: \"5\" } }" more " ]"                 \
    "sequence_batching { iterative_sequence: true " strategy " control_input ["                \
    "{ name: \"s\" control [ { kind: CONTROL_SEQUENCE_START int32_false_true: [ 0, 1 ] } ] }," \
    "{ name: \"c\" control [ { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_INT32 } ] } ]"    \
    "state [ { input_name: \"N_IN\" output_name: \"N\" data_type: TYPE_INT64 dims: [1] } ] }"

/* Every request runs five times before it is answered; START only the first time. */
static void rounds_of(const char *config, unsigned executions)
{
    world_init_loaded(config, 1, true);
    struct one *all[12];
    for (unsigned i = 0; i < NR_COUNT(all); i++) { /* no ids: each is a sequence of its own */
        all[i] = SEND(.x = 100 + i, .loop = i % LOOPS);
    }
    for (unsigned i = 0; i < NR_COUNT(all); i++) {
        int32_t id, start;
        expect_ok(all[i]);
        assert_int_equal(answer(all[i]), 100 + i);
        assert_int_equal(all[i]->r.n_outputs, 3);
        memcpy(&start, all[i]->r.outputs[1].data, sizeof(start));
        memcpy(&id, all[i]->r.outputs[2].data, sizeof(id));
        assert_int_equal(start, 0);
        assert_int_equal(id, i + 1);
        assert_int_equal(all[i]->r.rounds, 0);
        assert_ptr_equal(all[i]->r.arena, &all[i]->arena);
    }
    struct nr_sequencer_state s = state_of(1);
    assert_true(s.active == 0 && s.waiting == 0 && s.ended == NR_COUNT(all));
    struct nr_arena a;
    struct nr_counts counts;
    nr_arena_init(&a, 0);
    nr_counters_read(runtime(1)->counters, &a, &counts);
    assert_int_equal(counts.success, NR_COUNT(all));
    assert_true(counts.executions >= 5 && counts.executions <= executions);
    nr_arena_done(&a);
    /* A sequence of a client's keeps its state, which is at 5: the next request needs one round. */
    expect_ok(SEND(.x = 1, .id = 7, .flags = START));
    struct one *b = SEND(.x = 2, .id = 7), *c = SEND(.x = 3, .id = 7, .flags = END);
    expect_ok(c);
    expect_ok(b);
    assert_true(b->when < c->when);
    world_done();
}

static void test_iterative(void **state)
{
    (void)state;
    rounds_of(ROUNDS(4, "oldest { max_candidate_sequences: 3 }", ""), 60);
    rounds_of(ROUNDS(4, "direct { }", ""), 60);
    rounds_of(ROUNDS(0, "direct { }", ""), 60);
    /* cancelled in the middle: it ends between two executions */
    world_init_loaded(
        ROUNDS(4, "oldest { }", ", { key: \"delay_us\" value { string_value: \"20000\" } }"), 1,
        false);
    struct one *a = SEND(.x = 1);
    while (a->r.rounds < 1) {
        turn();
    }
    nr_request_cancel(&a->r, NARU_CANCELLED, true);
    expect_fail(a, NARU_CANCELLED, "cancelled");
    assert_int_equal(state_of(1).active, 0);
    world_done();
    /* a plug-in may ask only where the configuration says so */
    world_init_loaded(
        "backend: \"delay\" max_batch_size: 4 parameters { key: \"rounds\" value { "
        "string_value: \"5\" } } input { name: \"X\" data_type: TYPE_INT64 dims: [1] } "
        "output { name: \"Y\" data_type: TYPE_INT64 dims: [1] }",
        1, false);
    struct one *b = SEND(.x = 3);
    wait_for(b);
    assert_int_equal(b->r.status, NARU_UNSUPPORTED);
    struct one *c = SEND(.x = 5); /* above what it counts to: does not ask */
    expect_ok(c);
    assert_int_equal(answer(c), 6);
    world_done();
}

/* --- versions --------------------------------------------------------------------------------- */

static void test_other_version(void **state)
{
    (void)state;
    if (!has_onnx()) {
        skip();
    }
    world_init_loaded(HORNER(8, "oldest { }" STATE " } ]"), 2, true);
    struct one *a = SEND(.x = 1, .id = 1, .flags = START, .version = 1);
    struct one *b = SEND(.x = 1, .id = 1, .version = 2, .loop = 1); /* it lives on version 1 */
    struct one *c = SEND(.x = 1, .id = 1, .version = 2, .flags = END);
    expect_ok(a);
    expect_ok(b);
    expect_ok(c);
    assert_true(answer(a) == 1 && answer(b) == 4 && answer(c) == 13);
    assert_true(a->r.ran_version == 0 && b->r.ran_version == 1 && c->r.ran_version == 1);
    assert_int_equal(state_of(1).forwarded, 2);
    expect_fail(SEND(.id = 1, .version = 2), NARU_INVALID, "must specify the START flag");
    struct one *d = SEND(.x = 5, .id = 1, .version = 2, .flags = START);
    expect_ok(d);
    assert_true(d->r.ran_version == 0 && answer(d) == 5 && state_of(2).active == 1);
    world_done();
}

static nr_version_state version_state(int64_t number)
{
    struct nr_arena a;
    const struct nr_index_entry *all;
    uint32_t n;
    nr_version_state state = NR_VERSION_UNKNOWN;
    nr_arena_init(&a, 0);
    nr_repository_index(w.repository, false, &a, &all, &n);
    for (uint32_t i = 0; i < n; i++) {
        state = all[i].version == number ? all[i].state : state;
    }
    nr_arena_done(&a);
    return state;
}

/* A version that is being unloaded lives until its sequences end. */
static void test_held_while_sequences_live(void **state)
{
    (void)state;
    world_init_loaded(CONTROLS("identity", 4, "", "max_sequence_idle_microseconds: 60000000"), 1,
                      true);
    struct nr_target *target = runtime(1)->target;
    expect_controls(SEND(.id = 1, .flags = START), 6, 0, 1);
    struct one *last = SEND(.id = 1); /* its memory is used for one more request below */
    expect_controls(last, 5, 0, 1);
    assert_int_equal(nr_repository_unload(w.repository, "m", NULL), NARU_OK);
    nr_catalog_refresh(&w.reader);
    for (unsigned i = 0; i < 100; i++) {
        turn();
    }
    usleep(300000); /* longer than it takes to let a version without sequences go */
    turn();
    assert_int_equal(version_state(1), NR_VERSION_UNLOADING);
    last->completed = 0;
    last->in.sequence_end = true;
    assert_ptr_equal(last->r.target, target);
    nr_request_submit(&last->r);
    expect_controls(last, 5, 1, 1);
    for (unsigned i = 0; i < 50000 && version_state(1) == NR_VERSION_UNLOADING; i++) {
        turn();
    }
    assert_int_equal(version_state(1), NR_VERSION_UNAVAILABLE);
    world_done();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_control_tensors),
        cmocka_unit_test(test_what_requests_must_say),
        cmocka_unit_test(test_mixed_sequences),
        cmocka_unit_test(test_initial_state),
        cmocka_unit_test(test_backlog),
        cmocka_unit_test(test_end_and_begin_anew),
        cmocka_unit_test(test_idle_time),
        cmocka_unit_test(test_idle_time_by_itself),
        cmocka_unit_test(test_cancels),
        cmocka_unit_test(test_preserve_ordering),
        cmocka_unit_test(test_direct_waits_for_slots),
        cmocka_unit_test(test_iterative),
        cmocka_unit_test(test_other_version),
        cmocka_unit_test(test_held_while_sequences_live),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
