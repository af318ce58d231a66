/* The response cache before a target that the test plays: keys, hits, failures, eviction, admission. */
#include "sched/cache.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include "base/buf.h"
#include "base/mem.h"

struct inner {
    struct nr_target target;
    unsigned asked;
    nr_status status;
    size_t out_bytes;
};

struct world {
    struct nr_loop *loop;
    struct nr_cache *cache;
    struct nr_counters *counters;
    struct inner inner;
    struct nr_cached *front;
};

static unsigned completed;

/* Answers with the input's first byte, repeated. */
static void inner_submit(struct nr_target *t, struct nr_request *r)
{
    struct inner *in = nr_container_of(t, struct inner, target);
    in->asked++;
    r->status = in->status;
    r->n_outputs = 0;
    if (in->status == NARU_OK) {
        uint8_t *data = nr_arena_alloc(r->arena, in->out_bytes + 1);
        memset(data, r->in->inputs[0].data[0], in->out_bytes);
        r->outputs = nr_arena_new(r->arena, struct nr_infer_tensor);
        r->outputs[0] =
            (struct nr_infer_tensor){.index = r->in->n_outputs > 0 ? r->in->outputs[0].index : 0,
                                     .dtype = NARU_UINT8,
                                     .rank = 1,
                                     .shape = {(int64_t)in->out_bytes},
                                     .data = data,
                                     .bytes = in->out_bytes};
        r->n_outputs = 1;
    }
    r->on_complete(r);
}

static void on_complete(struct nr_request *r)
{
    assert_ptr_equal(r->front, &completed); /* as it was submitted */
    completed++;
}

static struct nr_cached *front_of(struct world *w, struct nr_redis *redis)
{
    static const struct nr_io_spec outputs[] = {{.dtype = NARU_UINT8, .rank = 1, .shape = {-1}},
                                                {.dtype = NARU_UINT8, .rank = 1, .shape = {-1}}};
    static const struct nr_signature sig = {.outputs = outputs, .n_outputs = 2};
    const struct nr_cached_cfg cfg = {.cache = w->cache,
                                      .inner = &w->inner.target,
                                      .counters = w->counters,
                                      .signature = &sig,
                                      .redis = redis,
                                      .fingerprint = {1, 2}};
    return nr_cached_new(&cfg);
}

static void world_init(struct world *w, uint64_t max_bytes)
{
    struct nr_err err = {0};
    *w = (struct world){.inner = {.target.submit = inner_submit, .out_bytes = 100}};
    assert_int_equal(nr_loop_new(0, &w->loop, &err), NARU_OK);
    w->cache = nr_cache_new(max_bytes);
    w->counters = nr_counters_new(1, 1);
    w->front = front_of(w, NULL);
}

static void world_done(struct world *w)
{
    nr_cached_free(w->front);
    nr_cache_free(w->cache);
    nr_counters_free(w->counters);
    nr_loop_free(w->loop);
}

struct ask {
    uint8_t data[64];
    size_t bytes;
    int64_t shape[2];
    uint32_t rank, output;
    int32_t dtype;
    const naru_option *options;
    unsigned n_options;
};

static struct ask ask_of(uint8_t value)
{
    struct ask a = {.bytes = 8, .shape = {8, 1}, .rank = 1, .dtype = NARU_UINT8};
    memset(a.data, value, sizeof(a.data));
    return a;
}

/* Submits, checks the answer; true when the inner target was asked. */
static bool goes_in(struct world *w, const struct ask *a)
{
    struct nr_arena arena;
    nr_arena_init(&arena, 0);
    struct nr_infer_tensor input = {
        .dtype = a->dtype, .rank = a->rank, .data = a->data, .bytes = a->bytes};
    memcpy(input.shape, a->shape, sizeof(a->shape));
    struct nr_infer_output output = {.index = a->output};
    struct nr_infer_request in = {
        .rows = 1, .inputs = &input, .n_inputs = 1, .outputs = &output, .n_outputs = 1};
    struct nr_request r = {.target = nr_cached_target(w->front),
                           .loop = w->loop,
                           .arena = &arena,
                           .in = &in,
                           .options = a->options,
                           .n_options = a->n_options,
                           .front = &completed,
                           .on_complete = on_complete};
    unsigned before = w->inner.asked, done = completed;
    nr_request_submit(&r);
    assert_int_equal(completed, done + 1);
    assert_int_equal(r.status, w->inner.status);
    if (r.status == NARU_OK) {
        assert_int_equal(r.n_outputs, 1);
        assert_int_equal(r.outputs[0].bytes, r.outputs[0].shape[0]);
        for (size_t i = 0; i < r.outputs[0].bytes; i++) {
            assert_int_equal(r.outputs[0].data[i], a->data[0]);
        }
    }
    nr_arena_done(&arena);
    return w->inner.asked != before;
}

static struct nr_cache_stats stats(struct world *w)
{
    struct nr_cache_stats s;
    nr_cache_stats_get(w->cache, &s);
    return s;
}

static void test_hit(void **state)
{
    (void)state;
    struct world w;
    world_init(&w, 1 << 20);
    struct ask a = ask_of(7), b = ask_of(8);
    assert_true(goes_in(&w, &a));
    assert_false(goes_in(&w, &a));
    assert_true(goes_in(&w, &b));
    assert_false(goes_in(&w, &a));
    struct nr_cache_stats s = stats(&w);
    assert_int_equal(s.hits, 2);
    assert_int_equal(s.misses, 2);
    assert_int_equal(s.entries, 2);
    struct nr_arena arena;
    struct nr_counts n;
    nr_arena_init(&arena, 0);
    nr_counters_read(w.counters, &arena, &n);
    assert_int_equal(n.cache_hits, 2);
    assert_int_equal(n.cache_misses, 2);
    assert_int_equal(n.success, 2); /* the played target counts none */
    assert_int_equal(n.rows, 0);
    nr_arena_done(&arena);
    world_done(&w);
}

/* Whatever could change the answer is part of the key. */
static void test_key(void **state)
{
    (void)state;
    struct world w;
    world_init(&w, 1 << 20);
    const naru_option one = {"k", "v"}, other = {"k", "w"}, glued = {"kv", ""};
    struct ask base = ask_of(1), variants[7];
    for (unsigned i = 0; i < NR_COUNT(variants); i++) {
        variants[i] = base;
    }
    variants[0].data[7] = 2;
    variants[1].dtype = NARU_INT8;
    variants[2].rank = 2;
    variants[3].output = 1;
    variants[4].options = &one, variants[4].n_options = 1;
    variants[5].options = &other, variants[5].n_options = 1;
    variants[6].options = &glued, variants[6].n_options = 1;
    assert_true(goes_in(&w, &base));
    for (unsigned i = 0; i < NR_COUNT(variants); i++) {
        assert_true(goes_in(&w, &variants[i]));
    }
    for (unsigned i = 0; i < NR_COUNT(variants); i++) {
        assert_false(goes_in(&w, &variants[i]));
    }
    assert_false(goes_in(&w, &base));
    world_done(&w);
}

/* Another version of the model shares the cache, not the answers; what is closed is forgotten. */
static void test_versions(void **state)
{
    (void)state;
    struct world w;
    world_init(&w, 1 << 20);
    struct nr_cached *first = w.front;
    struct ask a = ask_of(3);
    assert_true(goes_in(&w, &a));
    w.front = front_of(&w, NULL);
    assert_true(goes_in(&w, &a));
    assert_int_equal(stats(&w).entries, 2);
    nr_cached_free(first);
    assert_int_equal(stats(&w).entries, 1);
    assert_false(goes_in(&w, &a));
    world_done(&w);
}

static void test_failures_are_not_kept(void **state)
{
    (void)state;
    struct world w;
    world_init(&w, 1 << 20);
    struct ask a = ask_of(4);
    w.inner.status = NARU_UNAVAILABLE;
    assert_true(goes_in(&w, &a));
    assert_true(goes_in(&w, &a));
    w.inner.status = NARU_OK;
    assert_true(goes_in(&w, &a));
    assert_false(goes_in(&w, &a));
    world_done(&w);
}

static void test_large_inputs_pass_by(void **state)
{
    (void)state;
    struct world w;
    world_init(&w, 1 << 20);
    struct ask a = ask_of(5);
    a.bytes = NR_CACHE_MAX_INPUT_BYTES + 1;
    uint8_t *large = nr_alloc(a.bytes);
    struct nr_arena arena;
    nr_arena_init(&arena, 0);
    struct nr_infer_tensor input = {.dtype = NARU_UINT8, .data = large, .bytes = a.bytes};
    struct nr_infer_request in = {.rows = 1, .inputs = &input, .n_inputs = 1};
    for (unsigned i = 0; i < 2; i++) {
        struct nr_request r = {.target = nr_cached_target(w.front),
                               .loop = w.loop,
                               .arena = &arena,
                               .in = &in,
                               .front = &completed,
                               .on_complete = on_complete};
        nr_request_submit(&r);
        assert_int_equal(w.inner.asked, i + 1);
    }
    assert_int_equal(stats(&w).misses, 0);
    nr_arena_done(&arena);
    nr_free(large);
    world_done(&w);
}

/* Bounded by bytes; the least recently used goes. */
static void test_bound(void **state)
{
    (void)state;
    struct world w;
    world_init(&w, 16 << 10);
    w.inner.out_bytes = 1000;
    for (unsigned i = 0; i < 64; i++) {
        struct ask a = ask_of((uint8_t)i);
        assert_true(goes_in(&w, &a));
        struct nr_cache_stats s = stats(&w);
        assert_true(s.bytes <= 16 << 10);
    }
    struct nr_cache_stats s = stats(&w);
    assert_true(s.entries > 4 && s.entries < 16);
    assert_int_equal(s.evicted + s.entries + s.turned_away, 64);
    struct ask last = ask_of(63), first = ask_of(0);
    assert_false(goes_in(&w, &last));
    assert_true(goes_in(&w, &first));
    /* an answer larger than the whole cache is given, but not kept */
    w.inner.out_bytes = 17 << 10;
    struct ask huge = ask_of(200);
    assert_true(goes_in(&w, &huge));
    assert_true(goes_in(&w, &huge));
    assert_true(stats(&w).bytes <= 16 << 10);
    world_done(&w);
}

/* What is asked for often survives a scan of inputs that come once. */
static void test_scan(void **state)
{
    (void)state;
    struct world w;
    world_init(&w, 16 << 10);
    w.inner.out_bytes = 1000;
    for (unsigned round = 0; round < 4; round++) {
        for (uint8_t hot = 0; hot < 6; hot++) {
            struct ask a = ask_of(hot);
            (void)goes_in(&w, &a);
        }
    }
    for (unsigned i = 6; i < 256; i++) {
        struct ask a = ask_of((uint8_t)i);
        (void)goes_in(&w, &a);
    }
    unsigned again = 0;
    for (uint8_t hot = 0; hot < 6; hot++) {
        struct ask a = ask_of(hot);
        again += !goes_in(&w, &a);
    }
    assert_int_equal(again, 6);
    assert_true(stats(&w).turned_away > 100);
    world_done(&w);
}

/* An answer that is being sent outlives its entry. */
static void test_answer_outlives_entry(void **state)
{
    (void)state;
    struct world w;
    world_init(&w, 1 << 20);
    struct ask a = ask_of(9);
    assert_true(goes_in(&w, &a));
    struct nr_arena arena;
    nr_arena_init(&arena, 0);
    struct nr_infer_tensor input = {
        .dtype = a.dtype, .rank = 1, .shape = {8, 1}, .data = a.data, .bytes = a.bytes};
    struct nr_infer_output output = {.index = 0};
    struct nr_infer_request in = {
        .rows = 1, .inputs = &input, .n_inputs = 1, .outputs = &output, .n_outputs = 1};
    struct nr_request r = {.target = nr_cached_target(w.front),
                           .loop = w.loop,
                           .arena = &arena,
                           .in = &in,
                           .front = &completed,
                           .on_complete = on_complete};
    nr_request_submit(&r);
    assert_int_equal(w.inner.asked, 1);
    nr_cached_free(w.front);
    w.front = NULL;
    assert_int_equal(stats(&w).entries, 0);
    assert_int_equal(r.outputs[0].data[99], 9);
    nr_arena_done(&arena);
    world_done(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_hit),
        cmocka_unit_test(test_key),
        cmocka_unit_test(test_versions),
        cmocka_unit_test(test_failures_are_not_kept),
        cmocka_unit_test(test_large_inputs_pass_by),
        cmocka_unit_test(test_bound),
        cmocka_unit_test(test_scan),
        cmocka_unit_test(test_answer_outlives_entry),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
