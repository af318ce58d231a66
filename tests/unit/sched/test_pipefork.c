/* Pipelines with decoupled steps on played targets: this test is every member, and the client. It
 * answers in orders of its own, reads late or not at all, fails and cancels in each state. Random
 * graphs are compared with what a sequential walk of the graph gives; seeds are printed, and
 * NARU_TEST_SEED runs one of them again. */
#include "sched/pipeline.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>
#include <stdlib.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/mem.h"
#include "model/config.h"
#include "model/ensemble.h"
#include "model/repository.h"
#include "sched/runtime.h"

#define MAX_STEPS 10
#define MAX_IO 4
#define MAX_INFLIGHT_REQUESTS 4096
#define MAX_ANSWERS 4096

struct world;

/* A member: its target keeps what comes until the test answers it. */
struct model {
    struct nr_target target;
    struct nr_runtime runtime;
    struct nr_version version;
    struct nr_signature sig;
    struct nr_io_spec in[MAX_IO], out[MAX_IO];
    struct world *w;
    bool decoupled;
    unsigned in_flight, most_in_flight;
};

/* A request at a member. */
struct played {
    struct nr_request *q;
    struct model *m;
    unsigned given, out; /* answers so far; of them not ended */
    bool ended;          /* goes with the last of them */
};

struct played_answer {
    struct nr_answer a;
    struct played *from;
    struct world *w;
    struct nr_infer_tensor tensors[MAX_IO];
    int64_t values[MAX_IO];
};

struct world {
    struct nr_loop *loop;
    struct nr_model_config *config;
    struct nr_version version; /* of the pipeline */
    struct model models[MAX_STEPS];
    unsigned n_models;
    struct nr_member members[MAX_STEPS];
    struct nr_arena arena;
    struct nr_catalog catalog;
    struct nr_catalog_model catalog_model;
    struct nr_catalog_version entry;
    struct nr_pipeline *pipeline;
    /* the client */
    struct nr_arena request_arena;
    struct nr_request r;
    struct nr_infer_request in;
    struct nr_infer_tensor input;
    struct nr_infer_output outputs[MAX_IO * MAX_STEPS];
    int64_t value;
    unsigned completed, most_held;
    bool reads; /* ends each answer as it comes */
    struct nr_answer *held[MAX_ANSWERS];
    unsigned n_held;
    int64_t got[MAX_ANSWERS]; /* the first output of each answer */
    unsigned n_got, n_final;
    int64_t got_all[MAX_ANSWERS][MAX_IO * MAX_STEPS];
    /* members */
    struct played *at[MAX_INFLIGHT_REQUESTS];
    unsigned n_at;
    unsigned answers_out; /* of members: not ended by the pipeline */
};

/* --- members ---------------------------------------------------------------------------------- */

static void on_submit(struct nr_target *t, struct nr_request *q)
{
    struct model *m = nr_container_of(t, struct model, target);
    struct played *p = nr_new(struct played);
    p->q = q;
    p->m = m;
    q->status = NARU_OK;
    q->begin_ns = 1;
    atomic_store(&q->cancelled, false);
    assert_true(m->w->n_at < MAX_INFLIGHT_REQUESTS);
    m->w->at[m->w->n_at++] = p;
    m->in_flight++;
    m->most_in_flight = NR_MAX(m->most_in_flight, m->in_flight);
}

static void on_cancel(struct nr_target *t, struct nr_request *q, nr_status status, bool running_too)
{
    (void)t;
    (void)status;
    if (running_too) {
        atomic_store(&q->cancelled, true);
    }
}

static void forget(struct played *p)
{
    if (--p->out == 0 && p->ended) {
        nr_free(p);
    }
}

static void on_done(struct nr_answer *a)
{
    struct played_answer *pa = nr_container_of(a, struct played_answer, a);
    pa->w->answers_out--;
    nr_list_remove(&pa->a.node);
    forget(pa->from);
    nr_free(pa);
}

/* The request's member has answered for the last time. */
static void end(struct world *w, unsigned index, nr_status status, const char *error)
{
    struct played *p = w->at[index];
    struct nr_request *q = p->q;
    w->at[index] = w->at[--w->n_at];
    p->m->in_flight--;
    q->status = status;
    q->error = error != NULL ? nr_arena_str(q->arena, nr_str_from(error)) : (struct nr_str){0};
    p->ended = true;
    p->out++; /* for the time of this function */
    q->on_complete(q);
    forget(p);
}

static uint64_t mix(uint64_t a, uint64_t b)
{
    uint64_t h = a * 0x9e3779b97f4a7c15u + b + 1;
    h = (h ^ (h >> 30)) * 0xbf58476d1ce4e5b9u;
    return h ^ (h >> 29);
}

/* What step `step` writes from its inputs: in its k-th answer, as output o. */
static int64_t compute(unsigned step, const int64_t *in, unsigned n, unsigned k, unsigned o)
{
    uint64_t h = mix(step + 1, (uint64_t)k << 8 | o);
    for (unsigned i = 0; i < n; i++) {
        h = mix(h, (uint64_t)in[i]);
    }
    return (int64_t)(h >> 1);
}

/* How many answers it gives. */
static unsigned count_of(unsigned step, const int64_t *in, unsigned n)
{
    uint64_t h = mix(step + 77, 0);
    for (unsigned i = 0; i < n; i++) {
        h = mix(h, (uint64_t)in[i]);
    }
    return (unsigned)(h % 5);
}

static unsigned inputs_of(const struct played *p, int64_t *v)
{
    for (unsigned i = 0; i < p->q->in->n_inputs; i++) {
        memcpy(&v[i], p->q->in->inputs[i].data, sizeof v[i]);
        assert_int_equal(p->q->in->inputs[i].index, i);
    }
    return p->q->in->n_inputs;
}

static void put_tensor(struct nr_infer_tensor *t, unsigned index, const int64_t *value)
{
    *t = (struct nr_infer_tensor){.index = index,
                                  .dtype = NARU_INT64,
                                  .rank = 1,
                                  .shape = {1},
                                  .elements = 1,
                                  .data = (const uint8_t *)value,
                                  .bytes = sizeof *value};
}

/* One more answer of a decoupled member. */
static void give(struct world *w, struct played *p, const int64_t *values, bool final)
{
    struct played_answer *pa = nr_new(struct played_answer);
    unsigned n = values != NULL ? p->q->in->n_outputs : 0;
    assert_true(p->out < NR_ANSWER_WINDOW);
    for (unsigned o = 0; o < n; o++) {
        pa->values[o] = values[o];
        put_tensor(&pa->tensors[o], p->q->in->outputs[o].index, &pa->values[o]);
    }
    pa->a = (struct nr_answer){
        .done = on_done, .request = p->q, .outputs = pa->tensors, .n_outputs = n, .final = final};
    nr_list_init(&pa->a.node);
    pa->from = p;
    pa->w = w;
    p->given++;
    p->out++;
    w->answers_out++;
    p->q->on_answer(p->q, &pa->a);
}

/* What the member would do by itself: its next answer, or its end. */
static void play(struct world *w, unsigned index)
{
    struct played *p = w->at[index];
    unsigned step = (unsigned)(p->m - w->models);
    int64_t in[MAX_IO], values[MAX_IO];
    unsigned n = inputs_of(p, in);
    if (atomic_load(&p->q->cancelled)) {
        end(w, index, NARU_CANCELLED, "stopped");
        return;
    }
    for (unsigned o = 0; o < p->q->in->n_outputs; o++) {
        values[o] = compute(step, in, n, p->given, p->q->in->outputs[o].index);
    }
    if (!p->m->decoupled) {
        struct nr_request *q = p->q;
        q->outputs = nr_arena_zalloc(q->arena, MAX_IO * sizeof *q->outputs);
        int64_t *kept = nr_arena_alloc(q->arena, sizeof values);
        memcpy(kept, values, sizeof values);
        for (unsigned o = 0; o < q->in->n_outputs; o++) {
            put_tensor(&q->outputs[o], q->in->outputs[o].index, &kept[o]);
        }
        q->n_outputs = q->in->n_outputs;
        end(w, index, NARU_OK, NULL);
    } else if (p->given < count_of(step, in, n)) {
        if (p->out < NR_ANSWER_WINDOW) {
            give(w, p, values, false);
        }
    } else {
        end(w, index, NARU_OK, NULL);
    }
}

static unsigned at(const struct world *w, unsigned model)
{
    for (unsigned i = 0; i < w->n_at; i++) {
        if (w->at[i]->m == &w->models[model]) {
            return i;
        }
    }
    fail_msg("nothing is at model %u", model);
    return 0;
}

static unsigned n_at(const struct world *w, unsigned model)
{
    return w->models[model].in_flight;
}

/* --- the pipeline ----------------------------------------------------------------------------- */

/* One member for each step, by the maps of the configuration: inputs x0…, outputs y0…. */
static void make_members(struct world *w, const bool *decoupled)
{
    static const char *const names[2][MAX_IO] = {{"x0", "x1", "x2", "x3"},
                                                 {"y0", "y1", "y2", "y3"}};
    const struct nr_ensemble *e = w->config->ensemble;
    w->n_models = e->n_steps;
    for (unsigned i = 0; i < e->n_steps; i++) {
        struct model *m = &w->models[i];
        m->w = w;
        m->target = (struct nr_target){on_submit, on_cancel};
        m->decoupled = decoupled[i];
        m->runtime.target = &m->target;
        m->version = (struct nr_version){.name = "m", .number = 1, .runtime = &m->runtime};
        for (unsigned k = 0; k < MAX_IO; k++) {
            m->in[k] = (struct nr_io_spec){.name = nr_str_from(names[0][k]),
                                           .dtype = NARU_INT64,
                                           .rank = 1,
                                           .shape = {1},
                                           .row_bytes = 8};
            m->out[k] = m->in[k];
            m->out[k].name = nr_str_from(names[1][k]);
        }
        m->sig.inputs = m->in;
        m->sig.outputs = m->out;
        m->sig.n_inputs = e->steps[i].n_inputs;
        m->sig.n_outputs = MAX_IO;
        if (e->steps[i].kind == NULL) {
            w->members[i] = (struct nr_member){
                .version = &m->version, .sig = &m->sig, .decoupled = decoupled[i]};
            w->entry.decoupled = w->entry.decoupled || decoupled[i];
        }
    }
}

/* False: the graph is not allowed, *err says why. */
static bool world_begin(struct world *w, const char *text, const bool *decoupled,
                        struct nr_err *err)
{
    const struct nr_config_opts opts = {0};
    memset(w, 0, sizeof *w);
    nr_arena_init(&w->arena, 0);
    if (nr_config_parse("p", text, strlen(text), "config.pbtxt", &w->config, err) != NARU_OK ||
        nr_config_complete(w->config, NULL, &opts, err) != NARU_OK) {
        fail_msg("%s: %s", text, err->text);
    }
    make_members(w, decoupled);
    if (nr_ensemble_bind(w->config, &w->arena, w->members, err) != NARU_OK) {
        nr_arena_done(&w->arena);
        nr_config_free(w->config);
        return false;
    }
    assert_int_equal(nr_loop_new(0, &w->loop, err), NARU_OK);
    w->version = (struct nr_version){.name = "p", .number = 1, .config = w->config};
    w->entry.number = 1;
    w->entry.version = &w->version;
    w->entry.members = w->members;
    w->catalog_model =
        (struct nr_catalog_model){.name = "p", .n_versions = 1, .versions = &w->entry};
    w->catalog = (struct nr_catalog){.n_models = 1, .models = &w->catalog_model};
    nr_map_init(&w->catalog.by_name);
    (void)nr_map_put(&w->catalog.by_name, NR_STR("p"), &w->catalog_model);
    const struct nr_pipeline_cfg cfg = {
        .version = &w->version, .images = NR_IMAGE_LIMITS_DEFAULT, .n_loops = 1};
    w->pipeline = nr_pipeline_new(&cfg);
    w->reads = true;
    return true;
}

static void world_end(struct world *w)
{
    assert_int_equal(w->completed, 1);
    assert_int_equal(w->n_held, 0);
    nr_arena_done(&w->request_arena);
    assert_int_equal(w->n_at, 0);
    assert_int_equal(w->answers_out, 0);
    assert_int_equal(nr_pipeline_running(w->pipeline), 0);
    nr_pipeline_free(w->pipeline);
    nr_map_done(&w->catalog.by_name);
    nr_loop_free(w->loop);
    nr_config_free(w->config);
    nr_arena_done(&w->arena);
}

/* --- the client ------------------------------------------------------------------------------- */

static void on_answer(struct nr_request *r, struct nr_answer *a)
{
    struct world *w = nr_container_of(r, struct world, r);
    assert_int_equal(w->completed, 0);
    assert_true(w->n_got < MAX_ANSWERS && a->n_outputs > 0);
    assert_int_equal(w->n_final, 0); /* nothing behind the final one */
    for (unsigned i = 0; i < a->n_outputs; i++) {
        memcpy(&w->got_all[w->n_got][a->outputs[i].index], a->outputs[i].data, sizeof(int64_t));
    }
    memcpy(&w->got[w->n_got++], a->outputs[0].data, sizeof(int64_t));
    w->n_final += a->final;
    w->held[w->n_held++] = a;
    w->most_held = NR_MAX(w->most_held, w->n_held);
    if (w->reads) {
        w->n_held--;
        nr_answer_done(a);
    }
}

static void on_complete(struct nr_request *r)
{
    nr_container_of(r, struct world, r)->completed++;
}

static void ask(struct world *w, int64_t value)
{
    w->value = value;
    put_tensor(&w->input, 0, &w->value);
    unsigned n = w->config->sig.n_outputs;
    for (unsigned i = 0; i < n; i++) {
        w->outputs[i] = (struct nr_infer_output){.index = i};
    }
    w->in = (struct nr_infer_request){
        .rows = 1, .inputs = &w->input, .n_inputs = 1, .outputs = w->outputs, .n_outputs = n};
    nr_arena_init(&w->request_arena, 0);
    w->r = (struct nr_request){.target = nr_pipeline_target(w->pipeline),
                               .loop = w->loop,
                               .arena = &w->request_arena,
                               .in = &w->in,
                               .catalog = &w->catalog,
                               .arrival_ns = nr_clock_now(),
                               .on_complete = on_complete,
                               .on_answer = on_answer};
}

/* Reads the oldest answer that is held. */
static void read_one(struct world *w)
{
    struct nr_answer *a = w->held[0];
    memmove(w->held, w->held + 1, --w->n_held * sizeof w->held[0]);
    nr_answer_done(a);
}

static void turn(struct world *w)
{
    nr_loop_turn(w->loop, 0);
}

static void expect_error(const struct world *w, nr_status status, const char *part)
{
    char text[300];
    (void)snprintf(text, sizeof text, NR_STR_FMT, NR_STR_ARG(w->r.error));
    if (w->completed != 1 || w->r.status != status || strstr(text, part) == NULL) {
        fail_msg("%u times %d \"%s\", not %d \"%s\"", w->completed, w->r.status, text, status,
                 part);
    }
}

#define HEAD                                                                   \
    "platform: 'ensemble' input { name: 'in' data_type: TYPE_INT64 dims: 1 } " \
    "output { name: 'out' data_type: TYPE_INT64 dims: 1 } "
#define MAP(kind, key, value) kind " { key: '" key "' value: '" value "' } "
#define STEP(from, to) \
    "step { model_name: 'm' " MAP("input_map", "x0", from) MAP("output_map", "y0", to) "} "
#define STEP2(a, b, to)                                                           \
    "step { model_name: 'm' " MAP("input_map", "x0", a) MAP("input_map", "x1", b) \
        MAP("output_map", "y0", to) "} "
#define STEPS(steps) "ensemble_scheduling { " steps "} "

static struct world w;

static void begin(const char *text, const bool *decoupled)
{
    struct nr_err err = {0};
    if (!world_begin(&w, text, decoupled, &err)) {
        fail_msg("%s", err.text);
    }
    ask(&w, 1);
}

/* --- scripted --------------------------------------------------------------------------------- */

/* What runs ahead waits for its turn: answers leave in the order of the decoupled step's. */
static void test_order(void **state)
{
    (void)state;
    begin(HEAD STEPS(STEP("in", "many") STEP("many", "out")), (bool[]){true, false});
    w.reads = false;
    nr_request_submit(&w.r);
    int64_t v[3] = {10, 20, 30};
    struct played *p = w.at[at(&w, 0)];
    for (unsigned i = 0; i < 3; i++) {
        give(&w, p, &v[i], i == 2);
    }
    assert_int_equal(n_at(&w, 1), 3); /* all at once */
    play(&w, 3);                      /* the last one first */
    assert_int_equal(w.n_got, 0);
    play(&w, 1);
    assert_int_equal(w.n_got, 1);
    assert_int_equal(w.got[0], compute(1, &v[0], 1, 0, 0));
    play(&w, at(&w, 1));
    assert_int_equal(w.n_got, 3);
    assert_int_equal(w.got[1], compute(1, &v[1], 1, 0, 0));
    assert_int_equal(w.got[2], compute(1, &v[2], 1, 0, 0));
    assert_int_equal(w.n_final, 1); /* the step said so, before it completed */
    assert_int_equal(w.completed, 0);
    end(&w, at(&w, 0), NARU_OK, NULL);
    assert_int_equal(w.completed, 1); /* it does not wait for a reader */
    assert_int_equal(w.r.status, NARU_OK);
    assert_int_equal(w.answers_out, 3); /* what the answers refer to is still there */
    while (w.n_held > 0) {
        read_one(&w);
    }
    assert_int_equal(w.answers_out, 0);
    world_end(&w);
}

/* None at all, and empty ones. */
static void test_zero_answers(void **state)
{
    (void)state;
    begin(HEAD STEPS(STEP("in", "many") STEP("many", "out")), (bool[]){true, false});
    nr_request_submit(&w.r);
    give(&w, w.at[0], NULL, false);
    give(&w, w.at[0], NULL, true);
    end(&w, 0, NARU_OK, NULL);
    assert_int_equal(w.r.status, NARU_OK);
    assert_int_equal(w.n_got, 0);
    world_end(&w);
}

/* A reader that does not read: so many forks, so many answers out, and the rest waits; each answer that
 * he takes lets one more go on, with the next turn and not in the midst of his work. */
static void slow_reader(const char *text, unsigned window)
{
    int64_t v = 5;
    begin(text, (bool[]){true, false});
    w.reads = false;
    nr_request_submit(&w.r);
    struct played *p = w.at[0];
    for (unsigned i = 0; i < NR_ANSWER_WINDOW; i++) {
        give(&w, p, &v, false);
    }
    while (n_at(&w, 1) > 0) {
        play(&w, at(&w, 1));
    }
    assert_int_equal(w.n_got, window);
    assert_int_equal(p->out, NR_ANSWER_WINDOW); /* nobody has read: the producer waits */
    assert_int_equal(w.models[1].most_in_flight, window);
    for (unsigned i = 0; i < NR_ANSWER_WINDOW - window; i++) {
        read_one(&w);
        assert_int_equal(n_at(&w, 1), 0);
        turn(&w);
        assert_int_equal(n_at(&w, 1), 1);
        play(&w, at(&w, 1));
        assert_int_equal(w.n_held, window);
        assert_int_equal(p->out, NR_ANSWER_WINDOW - 1 - i);
    }
    end(&w, at(&w, 0), NARU_OK, NULL);
    assert_int_equal(w.completed, 1);
    while (w.n_held > 0) {
        read_one(&w);
    }
    turn(&w);
    assert_int_equal(w.n_got, NR_ANSWER_WINDOW);
    world_end(&w);
}

static void test_slow_reader(void **state)
{
    (void)state;
#define CHAIN STEP("in", "many") STEP("many", "out")
    slow_reader(HEAD STEPS(CHAIN), 16);
    slow_reader(HEAD STEPS(CHAIN "max_inflight_requests: 3 "), 3);
    slow_reader(HEAD STEPS(CHAIN "max_inflight_requests: 1 "), 1);
    slow_reader(HEAD STEPS(CHAIN "max_inflight_requests: 1000 "), 16);
}

/* A tensor from beside: forks wait for it, and all of them read it. */
static void test_waits_for_a_branch(void **state)
{
    (void)state;
    begin(HEAD STEPS(STEP("in", "many") STEP("in", "one") STEP2("many", "one", "out")),
          (bool[]){true, false, false});
    nr_request_submit(&w.r);
    int64_t v[2] = {3, 4}, one = compute(1, &w.value, 1, 0, 0);
    give(&w, w.at[at(&w, 0)], &v[0], false);
    give(&w, w.at[at(&w, 0)], &v[1], false);
    assert_int_equal(n_at(&w, 2), 0);
    play(&w, at(&w, 1));
    assert_int_equal(n_at(&w, 2), 2);
    play(&w, at(&w, 2));
    play(&w, at(&w, 2));
    end(&w, at(&w, 0), NARU_OK, NULL);
    assert_int_equal(w.n_got, 2);
    assert_int_equal(w.got[1], compute(2, (int64_t[]){v[1], one}, 2, 0, 0));
    world_end(&w);
    /* the branch fails: nothing is answered, the producer is told */
    begin(HEAD STEPS(STEP("in", "many") STEP("in", "one") STEP2("many", "one", "out")),
          (bool[]){true, false, false});
    nr_request_submit(&w.r);
    give(&w, w.at[at(&w, 0)], &v[0], false);
    end(&w, at(&w, 1), NARU_INVALID, "no");
    assert_int_equal(w.answers_out, 0);
    assert_true(atomic_load(&w.at[at(&w, 0)]->q->cancelled));
    give(&w, w.at[at(&w, 0)], &v[0], false); /* it comes too late */
    assert_int_equal(w.answers_out, 0);
    end(&w, at(&w, 0), NARU_CANCELLED, "stopped");
    expect_error(&w, NARU_INVALID, "step 1 (model \"m\"): no");
    assert_int_equal(w.n_got, 0);
    world_end(&w);
}

/* A failure takes its place in the order of the answers. */
static void test_failures(void **state)
{
    (void)state;
    int64_t v[4] = {1, 2, 3, 4};
    begin(HEAD STEPS(CHAIN), (bool[]){true, false});
    nr_request_submit(&w.r);
    for (unsigned i = 0; i < 4; i++) {
        give(&w, w.at[0], &v[i], false);
    }
    end(&w, 2, NARU_INTERNAL, "broken"); /* that of answer 1, before that of answer 0 */
    assert_int_equal(w.n_got, 0);
    assert_int_equal(w.completed, 0);
    play(&w, 1);
    assert_int_equal(w.n_got, 1); /* the one before it is given, then it ends */
    while (w.n_at > 0) {
        assert_true(atomic_load(&w.at[0]->q->cancelled));
        play(&w, 0);
    }
    expect_error(&w, NARU_INTERNAL, "step 1 (model \"m\"): broken");
    assert_int_equal(w.n_got, 1);
    world_end(&w);
    /* the decoupled step itself, after two answers: both are given */
    begin(HEAD STEPS(CHAIN), (bool[]){true, false});
    nr_request_submit(&w.r);
    give(&w, w.at[0], &v[0], false);
    give(&w, w.at[0], &v[1], false);
    end(&w, at(&w, 0), NARU_UNAVAILABLE, "gone");
    play(&w, at(&w, 1));
    assert_int_equal(w.completed, 0);
    play(&w, at(&w, 1));
    expect_error(&w, NARU_UNAVAILABLE, "step 0 (model \"m\"): gone");
    assert_int_equal(w.n_got, 2);
    assert_int_equal(w.n_final, 0);
    world_end(&w);
}

/* Cancelled in each state of a run of two answers: it ends once, with nothing left. */
static void test_cancel_everywhere(void **state)
{
    (void)state;
    int64_t v = 9;
    for (unsigned when = 0; when < 8; when++) {
        begin(HEAD STEPS(CHAIN "max_inflight_requests: 1 "), (bool[]){true, false});
        w.reads = false;
        unsigned step = 0;
        nr_request_submit(&w.r);
#define NOW()                                          \
    if (step++ == when) {                              \
        nr_request_cancel(&w.r, NARU_CANCELLED, true); \
    }
        NOW();
        if (!atomic_load(&w.at[0]->q->cancelled)) {
            give(&w, w.at[0], &v, false);
        }
        NOW();
        if (!atomic_load(&w.at[0]->q->cancelled)) {
            give(&w, w.at[0], &v, false); /* waits for its fork */
        }
        NOW();
        if (n_at(&w, 1) > 0) {
            play(&w, at(&w, 1));
        }
        NOW();
        if (w.n_held > 0) {
            read_one(&w); /* the second fork is on its way through the loop */
        }
        NOW();
        turn(&w);
        NOW();
        if (n_at(&w, 1) > 0) {
            play(&w, at(&w, 1));
        }
        NOW();
        while (w.n_at > 0) {
            play(&w, at(&w, 0));
        }
        NOW();
        turn(&w);
        while (w.n_held > 0) {
            read_one(&w);
        }
        turn(&w);
        if (when == 7) {
            assert_int_equal(w.r.status, NARU_OK); /* it was over */
        } else {
            expect_error(&w, NARU_CANCELLED, "");
        }
        assert_true(w.n_got <= 2);
        world_end(&w);
    }
}

/* Who asks for one answer gets it; a second one is an error; none is no output. */
static void test_unary(void **state)
{
    (void)state;
    int64_t v = 8;
    for (unsigned n = 0; n < 3; n++) {
        begin(HEAD STEPS(CHAIN), (bool[]){true, false});
        w.r.on_answer = NULL;
        nr_request_submit(&w.r);
        for (unsigned i = 0; i < n; i++) {
            give(&w, w.at[at(&w, 0)], &v, false);
        }
        while (w.n_at > 0 && w.completed == 0) {
            if (n_at(&w, 1) > 0) {
                play(&w, at(&w, 1));
            } else {
                end(&w, at(&w, 0), NARU_OK, NULL);
            }
        }
        assert_int_equal(w.completed, 1);
        if (n < 2) {
            int64_t is = 0;
            assert_int_equal(w.r.status, NARU_OK);
            assert_int_equal(w.r.n_outputs, n);
            memcpy(&is, n > 0 ? w.r.outputs[0].data : (const uint8_t *)&is, sizeof is);
            assert_int_equal(is, n > 0 ? compute(1, &v, 1, 0, 0) : 0);
        } else {
            expect_error(&w, NARU_INVALID, "use a method that streams");
        }
        assert_int_equal(w.answers_out, 0);
        world_end(&w);
    }
}

/* Steps that are decoupled, one behind the other: the answers of the second one, of each of the first. */
static void test_nested(void **state)
{
    (void)state;
    begin(HEAD STEPS(STEP("in", "a") STEP("a", "b") STEP("b", "out") "max_inflight_requests: 2 "),
          (bool[]){true, true, false});
    nr_request_submit(&w.r);
    int64_t v[2] = {1, 2}, x = 7;
    give(&w, w.at[0], &v[0], false);
    give(&w, w.at[0], &v[1], true);
    end(&w, at(&w, 0), NARU_OK, NULL);
    assert_int_equal(n_at(&w, 1), 2);
    struct played *first = w.at[0], *second = w.at[1];
    int64_t in = 0;
    (void)inputs_of(first, &in);
    if (in != v[0]) { /* the order of this test's list says nothing */
        first = w.at[1];
        second = w.at[0];
    }
    give(&w, second, &x, false); /* one place of two is kept for what must come first … */
    give(&w, second, &x, true);
    assert_int_equal(n_at(&w, 2), 1);
    give(&w, first, &x, true); /* … which is here */
    assert_int_equal(n_at(&w, 2), 2);
    play(&w, at(&w, 2));
    play(&w, at(&w, 2));
    assert_int_equal(w.n_got, 1); /* the first one may have more, for all we know */
    end(&w, at(&w, 1), NARU_OK, NULL);
    end(&w, at(&w, 1), NARU_OK, NULL);
    turn(&w);
    while (w.n_at > 0) {
        play(&w, 0);
    }
    assert_int_equal(w.n_got, 3);
    assert_int_equal(w.n_final, 1);
    assert_int_equal(w.completed, 1);
    world_end(&w);
}

/* Scopes come and go out of the loop's free lists. */
static void test_no_malloc(void **state)
{
    (void)state;
    int64_t v = 5;
    begin(HEAD STEPS(CHAIN), (bool[]){true, false});
    nr_request_submit(&w.r);
    struct played *p = w.at[0];
    uint64_t base = 0;
    for (unsigned i = 0; i < 200; i++) {
        if (i == 100) {
            base = nr_mem_allocs();
        }
        give(&w, p, &v, false);
        play(&w, at(&w, 1));
    }
    /* this test's own: an answer and a request each */
    assert_int_equal(nr_mem_allocs() - base, 200);
    assert_int_equal(w.n_got, 200);
    end(&w, 0, NARU_OK, NULL);
    world_end(&w);
}

/* Answers of steps side by side do not belong together. */
static void test_refused(void **state)
{
    (void)state;
    struct nr_err err = {0};
    assert_false(world_begin(&w, HEAD STEPS(STEP("in", "a") STEP("in", "b") STEP2("a", "b", "out")),
                             (bool[]){true, true, false}, &err));
    assert_non_null(
        strstr(err.text, "step 0 (model \"m\") and step 1 (model \"m\") are both decoupled"));
    assert_false(world_begin(&w, HEAD "response_cache { enable: true } " STEPS(CHAIN),
                             (bool[]){true, false}, &err));
    assert_non_null(
        strstr(err.text, "response_cache cannot be enabled for an ensemble with step 0"));
}

/* --- random ----------------------------------------------------------------------------------- */

static uint64_t random_state;

static unsigned draw(unsigned n)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (unsigned)((random_state >> 33) % n);
}

struct drawn {
    unsigned n_steps, n_in[MAX_STEPS], n_out[MAX_STEPS];
    unsigned in[MAX_STEPS][MAX_IO]; /* tensors: 0 the client's, then 1 + step * MAX_IO + output */
    bool decoupled[MAX_STEPS];
    bool read[1 + MAX_STEPS * MAX_IO];
    unsigned outputs[MAX_STEPS * MAX_IO], n_outputs; /* tensors */
    char text[8192];
};

static void draw_graph(struct drawn *d)
{
    struct nr_text t;
    *d = (struct drawn){.n_steps = 1 + draw(7)};
    for (unsigned i = 0; i < d->n_steps; i++) {
        d->decoupled[i] = draw(3) == 0;
        d->n_out[i] = 1 + draw(2);
        d->n_in[i] = 1 + draw(3);
        for (unsigned k = 0; k < d->n_in[i]; k++) {
            /* near ones more often: chains */
            unsigned from = i > 0 && draw(4) > 0 ? i - 1 - draw(NR_MIN(i, 2u)) : MAX_STEPS;
            d->in[i][k] = from < MAX_STEPS ? 1 + from * MAX_IO + draw(d->n_out[from]) : 0;
            d->read[d->in[i][k]] = true;
        }
    }
    d->in[0][0] = 0;
    d->read[0] = true;
    nr_text_init_at(&t, d->text, sizeof d->text);
    nr_text_fmt(&t, "platform: 'ensemble' input { name: 't0' data_type: TYPE_INT64 dims: 1 } ");
    for (unsigned i = 0; i < d->n_steps; i++) {
        for (unsigned o = 0; o < d->n_out[i]; o++) {
            unsigned tensor = 1 + i * MAX_IO + o;
            if (!d->read[tensor] || draw(6) == 0) {
                d->outputs[d->n_outputs++] = tensor;
                nr_text_fmt(&t, "output { name: 't%u' data_type: TYPE_INT64 dims: 1 } ", tensor);
            }
        }
    }
    nr_text_fmt(&t, "ensemble_scheduling { max_inflight_requests: %u ", draw(6));
    for (unsigned i = 0; i < d->n_steps; i++) {
        nr_text_fmt(&t, "step { model_name: 'm' ");
        for (unsigned k = 0; k < d->n_in[i]; k++) {
            nr_text_fmt(&t, "input_map { key: 'x%u' value: 't%u' } ", k, d->in[i][k]);
        }
        for (unsigned o = 0; o < d->n_out[i]; o++) {
            nr_text_fmt(&t, "output_map { key: 'y%u' value: 't%u' } ", o, 1 + i * MAX_IO + o);
        }
        nr_text_fmt(&t, "} ");
    }
    nr_text_fmt(&t, "} ");
}

/* Step after step, and for each answer of a decoupled one all that comes behind it: steps are in an
 * order in which each reads from earlier ones, but of a level are all those below the decoupled
 * step only, so values of other ones are simply written again. */
static void walk(const struct drawn *d, unsigned step, int64_t *values,
                 int64_t (*want)[MAX_ANSWERS], unsigned *n)
{
    for (unsigned i = step; i < d->n_steps; i++) {
        int64_t in[MAX_IO];
        for (unsigned k = 0; k < d->n_in[i]; k++) {
            in[k] = values[d->in[i][k]];
        }
        unsigned many = d->decoupled[i] ? count_of(i, in, d->n_in[i]) : 1;
        for (unsigned a = 0; a < many; a++) {
            for (unsigned o = 0; o < d->n_out[i]; o++) {
                values[1 + i * MAX_IO + o] = compute(i, in, d->n_in[i], a, o);
            }
            if (d->decoupled[i]) {
                walk(d, i + 1, values, want, n);
            }
        }
        if (d->decoupled[i]) {
            return;
        }
    }
    for (unsigned o = 0; o < d->n_outputs && *n < MAX_ANSWERS; o++) {
        want[o][*n] = values[d->outputs[o]];
    }
    *n += 1;
}

static int64_t want[MAX_STEPS * MAX_IO][MAX_ANSWERS];

/* One graph, answered in a random order by members and read at random by the client. what: 0 to its
 * end, 1 a step fails, 2 it is cancelled. */
static bool run_random(uint64_t seed, unsigned what)
{
    static struct drawn d;
    struct nr_err err = {0};
    int64_t values[1 + MAX_STEPS * MAX_IO] = {0};
    unsigned n_want = 0, budget = 200000, at_move = draw(60);
    draw_graph(&d);
    values[0] = (int64_t)(seed & 1023);
    walk(&d, 0, values, want, &n_want);
    if (n_want > 1000) {
        return false; /* takes too long */
    }
    if (!world_begin(&w, d.text, d.decoupled, &err)) {
        assert_non_null(strstr(err.text, "are both decoupled"));
        return false;
    }
    ask(&w, values[0]);
    w.reads = draw(2) == 0;
    bool failed = false;
    nr_request_submit(&w.r);
    for (unsigned move = 0; w.n_at > 0 || w.n_held > 0 || w.completed == 0; move++) {
        assert_true(budget-- > 0);
        unsigned kind = draw(8);
        if (what == 2 && move == at_move) {
            nr_request_cancel(&w.r, NARU_CANCELLED, true);
        } else if (what == 1 && !failed && move >= at_move && w.n_at > 0) {
            end(&w, draw(w.n_at), NARU_INTERNAL, "drawn");
            failed = true;
        } else if (kind < 2 && w.n_held > 0) {
            read_one(&w);
        } else if (kind == 2 || w.n_at == 0) {
            turn(&w);
        } else {
            play(&w, draw(w.n_at));
        }
        assert_true(w.n_held <= NR_ANSWER_WINDOW);
    }
    uint32_t max = w.config->ensemble->max_inflight;
    for (unsigned i = 0; i < d.n_steps && max > 0; i++) {
        assert_true(w.models[i].most_in_flight <= max);
    }
    if (what == 0 || (what == 1 && !failed)) {
        assert_int_equal(w.r.status, NARU_OK);
        if (w.entry.decoupled) {
            assert_int_equal(w.n_got, n_want);
        }
    } else if (what == 1) {
        expect_error(&w, NARU_INTERNAL, "drawn");
    }
    assert_true(w.n_got <= n_want);
    for (unsigned i = 0; i < w.n_got; i++) {
        for (unsigned o = 0; o < d.n_outputs; o++) {
            assert_int_equal(w.got_all[i][o], want[o][i]);
        }
    }
    world_end(&w);
    return true;
}

static uint64_t seed_now; /* 0: all went well */

static void test_random(void **state)
{
    (void)state;
    const char *given = getenv("NARU_TEST_SEED");
    uint64_t seed = (uint64_t)nr_clock_wall(), n = 3000;
    unsigned ran = 0;
    if (given != NULL && nr_str_to_u64(nr_str_from(given), &seed)) {
        n = 1;
    }
    for (uint64_t i = 0; i < n; i++) {
        random_state = seed_now = seed + i;
        (void)draw(2);
        unsigned what = draw(3);
        ran += run_random(seed_now, what);
    }
    seed_now = 0;
    assert_true(given != NULL || ran > n / 4);
}

static int tell_seed(void **state)
{
    (void)state;
    if (seed_now != 0) {
        print_message("it failed with NARU_TEST_SEED=%llu\n", (unsigned long long)seed_now);
    }
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_order),
        cmocka_unit_test(test_zero_answers),
        cmocka_unit_test(test_slow_reader),
        cmocka_unit_test(test_waits_for_a_branch),
        cmocka_unit_test(test_failures),
        cmocka_unit_test(test_cancel_everywhere),
        cmocka_unit_test(test_unary),
        cmocka_unit_test(test_nested),
        cmocka_unit_test(test_no_malloc),
        cmocka_unit_test(test_refused),
        cmocka_unit_test_teardown(test_random, tell_seed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
