/* The cold answers: JSON letter by letter as clients know it, protobuf read back by protobuf-c. */
#include "unit/codec/infer_kit.h"

#include "codec/meta.h"
#include "proto/grpc_service.pb-c.h"

static void expect(struct nr_text *t, const char *want)
{
    assert_false(t->failed);
    assert_string_equal(t->data, want);
    nr_text_done(t);
}

static const struct nr_str extensions[] = {NR_STR_INIT("classification"),
                                           NR_STR_INIT("statistics")};
static const struct nr_server_view server = {NR_STR_INIT("naru"), NR_STR_INIT("0.1"), extensions,
                                             2};

static void model(struct kit *k, struct nr_model_view *v)
{
    static const struct nr_str versions[] = {NR_STR_INIT("1"), NR_STR_INIT("3")};
    kit_add_sub(k);
    k->in[1].dtype = NARU_BYTES;
    k->sig.n_outputs = 1;
    *v = (struct nr_model_view){NR_STR("add \"sub\""), NR_STR("onnxruntime_onnx"), versions, 2,
                                &k->sig};
}

static const struct nr_batch_stats_view batches[] = {{1, {2, 20}, {2, 30}, {2, 40}},
                                                     {8, {1, 50}, {1, 60}, {1, 70}}};
static const struct nr_response_stats_view responses[] = {
    {NR_STR_INIT("0"), {1, 2}, {3, 4}, {5, 6}, {7, 8}, {9, 10}, {11, 12}}};
static const struct nr_memory_view memory[] = {{NR_STR_INIT("CPU"), 0, UINT64_MAX}};
static const struct nr_stats_view stats[] = {
    {.name = NR_STR_INIT("m"), .version = NR_STR_INIT("1")},
    {.name = NR_STR_INIT("m"),
     .version = NR_STR_INIT("3"),
     .last_inference_ms = 1700000000000,
     .inference_count = 10,
     .execution_count = 3,
     .success = {10, 1},
     .fail = {1, 2},
     .queue = {10, 3},
     .compute_input = {10, 4},
     .compute_infer = {10, 5},
     .compute_output = {10, 6},
     .cache_hit = {0, 7},
     .cache_miss = {0, 8},
     .responses = responses,
     .n_responses = 1,
     .batches = batches,
     .n_batches = 2,
     .memory = memory,
     .n_memory = 1}};
static const struct nr_index_view index_views[] = {
    {.name = NR_STR_INIT("a"), .version = NR_STR_INIT("1"), .state = NR_STR_INIT("READY")},
    {.name = NR_STR_INIT("never loaded")},
    {.name = NR_STR_INIT("b"),
     .version = NR_STR_INIT("2"),
     .state = NR_STR_INIT("UNAVAILABLE"),
     .reason = NR_STR_INIT("line\n\"quoted\"")}};

static void test_json(void **state)
{
    (void)state;
    struct kit k;
    struct nr_model_view v;
    struct nr_text t;
    nr_text_init(&t, 1 << 16);
    nr_meta_server_json(&t, &server);
    expect(&t, "{\"name\":\"naru\",\"version\":\"0.1\",\"extensions\":[\"classification\","
               "\"statistics\"]}");
    model(&k, &v);
    nr_text_init(&t, 1 << 16);
    nr_meta_model_json(&t, &v);
    expect(&t,
           "{\"name\":\"add \\\"sub\\\"\",\"versions\":[\"1\",\"3\"],\"platform\":"
           "\"onnxruntime_onnx\",\"inputs\":[{\"name\":\"INPUT0\",\"datatype\":\"FP32\",\"shape\":"
           "[-1,16]},{\"name\":\"INPUT1\",\"datatype\":\"BYTES\",\"shape\":[-1,16]}],\"outputs\":[{"
           "\"name\":\"OUTPUT0\",\"datatype\":\"FP32\",\"shape\":[-1,16]}]}");
    nr_text_init(&t, 1 << 16);
    nr_meta_index_json(&t, index_views, 3);
    expect(&t,
           "[{\"name\":\"a\",\"version\":\"1\",\"state\":\"READY\"},{\"name\":\"never loaded\"},{"
           "\"name\":\"b\",\"version\":\"2\",\"state\":\"UNAVAILABLE\",\"reason\":\"line\\n"
           "\\\"quoted\\\"\"}]");
    nr_text_init(&t, 1 << 16);
    nr_meta_index_json(&t, NULL, 0);
    expect(&t, "[]");
    nr_text_init(&t, 1 << 16);
    nr_meta_stats_json(&t, stats, 2);
    expect(
        &t,
        "{\"model_stats\":[{\"name\":\"m\",\"version\":\"1\",\"last_inference\":0,\"inference_"
        "count\":0"
        ",\"execution_count\":0,\"inference_stats\":{\"success\":{\"count\":0,\"ns\":0},\"fail\":{"
        "\"count\":0,\"ns\":0},\"queue\":{\"count\":0,\"ns\":0},\"compute_input\":{\"count\":0,"
        "\"ns\":0"
        "},\"compute_infer\":{\"count\":0,\"ns\":0},\"compute_output\":{\"count\":0,\"ns\":0},"
        "\"cache_hit\":{\"count\":0,\"ns\":0},\"cache_miss\":{\"count\":0,\"ns\":0}},\"response_"
        "stats"
        "\":{},\"batch_stats\":[],\"memory_usage\":[]},{\"name\":\"m\",\"version\":\"3\","
        "\"last_inference\":1700000000000,\"inference_count\":10,\"execution_count\":3,"
        "\"inference_stats\":{\"success\":{\"count\":10,\"ns\":1},\"fail\":{\"count\":1,\"ns\":2},"
        "\"queue\":{\"count\":10,\"ns\":3},\"compute_input\":{\"count\":10,\"ns\":4},\"compute_"
        "infer\":{"
        "\"count\":10,\"ns\":5},\"compute_output\":{\"count\":10,\"ns\":6},\"cache_hit\":{"
        "\"count\":0,"
        "\"ns\":7},\"cache_miss\":{\"count\":0,\"ns\":8}},\"response_stats\":{\"0\":{\"compute_"
        "infer\":{"
        "\"count\":1,\"ns\":2},\"compute_output\":{\"count\":3,\"ns\":4},\"success\":{\"count\":5,"
        "\"ns"
        "\":6},\"fail\":{\"count\":7,\"ns\":8},\"empty_response\":{\"count\":9,\"ns\":10},"
        "\"cancel\":{"
        "\"count\":11,\"ns\":12}}},\"batch_stats\":[{\"batch_size\":1,\"compute_input\":{\"count\":"
        "2,"
        "\"ns\":20},\"compute_infer\":{\"count\":2,\"ns\":30},\"compute_output\":{\"count\":2,"
        "\"ns\":40}"
        "},{\"batch_size\":8,\"compute_input\":{\"count\":1,\"ns\":50},\"compute_infer\":{"
        "\"count\":1,"
        "\"ns\":60},\"compute_output\":{\"count\":1,\"ns\":70}}],\"memory_usage\":[{\"type\":"
        "\"CPU\","
        "\"id\":0,\"byte_size\":18446744073709551615}]}]}");
    kit_done(&k);
}

static void test_protobuf(void **state)
{
    (void)state;
    struct kit k;
    struct nr_model_view v;
    struct nr_str bytes;
    model(&k, &v);
    assert_int_equal(nr_meta_server_pb(&k.arena, &server, &bytes), NARU_OK);
    Inference__ServerMetadataResponse *s =
        inference__server_metadata_response__unpack(NULL, bytes.len, (const uint8_t *)bytes.ptr);
    assert_string_equal(s->name, "naru");
    assert_string_equal(s->version, "0.1");
    assert_int_equal(s->n_extensions, 2);
    assert_string_equal(s->extensions[1], "statistics");
    inference__server_metadata_response__free_unpacked(s, NULL);

    assert_int_equal(nr_meta_model_pb(&k.arena, &v, &bytes), NARU_OK);
    Inference__ModelMetadataResponse *m =
        inference__model_metadata_response__unpack(NULL, bytes.len, (const uint8_t *)bytes.ptr);
    assert_string_equal(m->name, "add \"sub\"");
    assert_string_equal(m->platform, "onnxruntime_onnx");
    assert_true(m->n_versions == 2 && m->n_inputs == 2 && m->n_outputs == 1);
    assert_string_equal(m->versions[1], "3");
    assert_string_equal(m->inputs[1]->name, "INPUT1");
    assert_string_equal(m->inputs[1]->datatype, "BYTES");
    assert_true(m->inputs[1]->n_shape == 2 && m->inputs[1]->shape[0] == -1 &&
                m->inputs[1]->shape[1] == 16);
    inference__model_metadata_response__free_unpacked(m, NULL);

    assert_int_equal(nr_meta_stats_pb(&k.arena, stats, 2, &bytes), NARU_OK);
    Inference__ModelStatisticsResponse *r =
        inference__model_statistics_response__unpack(NULL, bytes.len, (const uint8_t *)bytes.ptr);
    assert_int_equal(r->n_model_stats, 2);
    assert_non_null(r->model_stats[0]->inference_stats->cache_miss); /* there even when all is 0 */
    Inference__ModelStatistics *b = r->model_stats[1];
    assert_string_equal(b->version, "3");
    assert_true(b->last_inference == 1700000000000 && b->inference_count == 10 &&
                b->execution_count == 3);
    assert_true(b->inference_stats->success->count == 10 && b->inference_stats->success->ns == 1);
    assert_true(b->inference_stats->cache_miss->ns == 8 && b->inference_stats->queue->ns == 3);
    assert_true(b->n_batch_stats == 2 && b->batch_stats[1]->batch_size == 8 &&
                b->batch_stats[1]->compute_output->ns == 70);
    assert_true(b->n_memory_usage == 1 && b->memory_usage[0]->byte_size == UINT64_MAX);
    assert_true(b->n_response_stats == 1 && b->response_stats[0]->value->cancel->ns == 12);
    assert_string_equal(b->response_stats[0]->key, "0");
    inference__model_statistics_response__free_unpacked(r, NULL);

    assert_int_equal(nr_meta_index_pb(&k.arena, index_views, 3, &bytes), NARU_OK);
    Inference__RepositoryIndexResponse *i =
        inference__repository_index_response__unpack(NULL, bytes.len, (const uint8_t *)bytes.ptr);
    assert_int_equal(i->n_models, 3);
    assert_string_equal(i->models[1]->state, "");
    assert_string_equal(i->models[2]->reason, "line\n\"quoted\"");
    inference__repository_index_response__free_unpacked(i, NULL);
    kit_done(&k);
}

/* Every allocation fails once: NARU_NOMEM, never a half-made message. */
static void test_out_of_memory(void **state)
{
    (void)state;
    static char long_name[9000];
    struct nr_stats_view big = stats[1];
    memset(long_name, 'x', sizeof(long_name)); /* does not fit an arena block */
    big.name = (struct nr_str){long_name, sizeof(long_name)};
    unsigned failures = 0;
    nr_status st = NARU_NOMEM;
    for (uint64_t n = 1; st != NARU_OK; n++) {
        struct nr_arena arena;
        struct nr_str bytes = {NULL, 0};
        nr_arena_thread_done();
        nr_arena_init(&arena, 0);
        nr_mem_fail_after(n, false);
        st = nr_meta_stats_pb(&arena, &big, 1, &bytes);
        nr_mem_fail_after(0, false);
        assert_true(st == NARU_OK ? bytes.len > sizeof(long_name) : st == NARU_NOMEM);
        failures += st != NARU_OK;
        nr_arena_done(&arena);
        assert_true(n < 100);
    }
    assert_true(failures >= 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_json),
        cmocka_unit_test(test_protobuf),
        cmocka_unit_test(test_out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
