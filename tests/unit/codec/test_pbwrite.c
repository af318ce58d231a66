/* JSON as Triton prints a configuration, text form, and their edges. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/arena.h"
#include "base/mem.h"
#include "codec/pbfield.h"
#include "codec/pbtxt.h"
#include "codec/pbwrite.h"
#include "proto/grpc_service.pb-c.h"

static struct nr_arena arena;
static struct nr_text out;

static int setup(void **state)
{
    (void)state;
    nr_arena_init(&arena, 0);
    nr_text_init(&out, 1 << 20);
    return 0;
}
static int teardown(void **state)
{
    (void)state;
    nr_mem_fail_after(0, false);
    nr_text_done(&out);
    nr_arena_done(&arena);
    return 0;
}

static const ProtobufCMessage *parse(const ProtobufCMessageDescriptor *type, const char *text)
{
    ProtobufCMessage *m = NULL;
    struct nr_err err = {0};
    if (nr_pbtxt_parse(type, nr_str_from(text), "t", &arena, &m, NULL, &err) != NARU_OK) {
        print_message("%s\n", err.text);
        fail();
    }
    return m;
}
static const char *json(const ProtobufCMessageDescriptor *type, const char *text)
{
    nr_text_clear(&out);
    nr_pbwrite_json(parse(type, text), &out);
    assert_false(out.failed);
    return out.data;
}

#define CONFIG (&inference__model_config__descriptor)

static void test_config_json(void **state)
{
    (void)state;
    assert_string_equal(
        json(CONFIG, ""),
        "{\"name\":\"\",\"platform\":\"\",\"backend\":\"\",\"runtime\":\"\",\"max_batch_size\":0,"
        "\"input\":[],\"output\":[],\"batch_input\":[],\"batch_output\":[],\"instance_group\":[],"
        "\"default_model_filename\":\"\",\"cc_model_filenames\":{},\"metric_tags\":{},"
        "\"parameters\":{},\"model_warmup\":[]}");
    assert_string_equal(
        json(CONFIG,
             "input { name: 'a' data_type: TYPE_FP32 dims: [ -1, 3 ] reshape { } } "
             "dynamic_batching { max_queue_delay_microseconds: 18446744073709551615 "
             "priority_queue_policy { key: 2 value { } } } "
             "instance_group { kind: KIND_CPU } version_policy { all { } } "
             "parameters { key: 'k\"' value { string_value: 'v\\n' } } metric_tags { key: 'a' "
             "value: 'b' } optimization { } "),
        "{\"name\":\"\",\"platform\":\"\",\"backend\":\"\",\"runtime\":\"\","
        "\"version_policy\":{\"all\":{}},\"max_batch_size\":0,"
        "\"input\":[{\"name\":\"a\",\"data_type\":\"TYPE_FP32\",\"format\":\"FORMAT_NONE\","
        "\"dims\":[-1,3],\"reshape\":{\"shape\":[]},\"is_shape_tensor\":false,"
        "\"allow_ragged_batch\":false,\"optional\":false,\"is_non_linear_format_io\":false}],"
        "\"output\":[],\"batch_input\":[],\"batch_output\":[],"
        "\"optimization\":{\"priority\":\"PRIORITY_DEFAULT\",\"gather_kernel_buffer_threshold\":0,"
        "\"eager_batching\":false},"
        "\"dynamic_batching\":{\"preferred_batch_size\":[],"
        "\"max_queue_delay_microseconds\":18446744073709551615,\"preserve_ordering\":false,"
        "\"priority_levels\":0,\"default_priority_level\":0,"
        "\"priority_queue_policy\":{\"2\":{\"timeout_action\":\"REJECT\","
        "\"default_timeout_microseconds\":0,\"allow_timeout_override\":false,"
        "\"max_queue_size\":0}}},"
        "\"instance_group\":[{\"name\":\"\",\"kind\":\"KIND_CPU\",\"count\":0,\"gpus\":[],"
        "\"secondary_devices\":[],\"profile\":[],\"passive\":false,\"host_policy\":\"\"}],"
        "\"default_model_filename\":\"\",\"cc_model_filenames\":{},\"metric_tags\":{\"a\":\"b\"},"
        "\"parameters\":{\"k\\\"\":{\"string_value\":\"v\\n\"}},\"model_warmup\":[]}");
}

/* A oneof stands where the .proto declares it, and a scalar member shows only when chosen. */
static void test_oneof_places(void **state)
{
    (void)state;
    assert_string_equal(json(&inference__model_sequence_batching__descriptor, "direct { }"),
                        "{\"direct\":{\"max_queue_delay_microseconds\":0,"
                        "\"minimum_slot_utilization\":0},\"max_sequence_idle_microseconds\":0,"
                        "\"control_input\":[],\"state\":[],\"iterative_sequence\":false}");
    const ProtobufCMessageDescriptor *initial =
        &inference__model_sequence_batching__initial_state__descriptor;
    assert_string_equal(json(initial, "zero_data: false name: 'n'"),
                        "{\"data_type\":\"TYPE_INVALID\",\"dims\":[],\"zero_data\":false,"
                        "\"name\":\"n\"}");
    assert_string_equal(json(&inference__model_warmup__input__descriptor, "input_data_file: ''"),
                        "{\"data_type\":\"TYPE_INVALID\",\"dims\":[],\"input_data_file\":\"\"}");
    assert_string_equal(json(&inference__model_warmup__input__descriptor, ""),
                        "{\"data_type\":\"TYPE_INVALID\",\"dims\":[]}");
}

/* Every message of ours: the order is a permutation, and rising by place but for oneofs. */
static void test_order(void **state)
{
    (void)state;
    const ProtobufCMessageDescriptor *const types[] = {
        CONFIG, &inference__model_infer_request__descriptor,
        &inference__model_sequence_batching__descriptor, &inference__infer_parameter__descriptor,
        &inference__server_live_request__descriptor};
    for (size_t t = 0; t < NR_COUNT(types); t++) {
        uint8_t order[NR_PBFIELD_MAX];
        uint64_t seen = 0;
        nr_pbfield_order(types[t], order);
        for (unsigned i = 0; i < types[t]->n_fields; i++) {
            seen |= UINT64_C(1) << order[i];
        }
        assert_true(seen == (types[t]->n_fields ? UINT64_MAX >> (64 - types[t]->n_fields) : 0));
    }
}

static void test_floats(void **state)
{
    (void)state;
    const ProtobufCMessageDescriptor *type = &inference__infer_tensor_contents__descriptor;
    assert_string_equal(json(type,
                             "fp32_contents: [0.1, 16777217, 1e-45, 3.4028235e38, -0.0, inf, nan]"
                             " fp64_contents: [0.1, 1e300, 0.30000000000000004, -inf]"),
                        "{\"bool_contents\":[],\"int_contents\":[],\"int64_contents\":[],"
                        "\"uint_contents\":[],\"uint64_contents\":[],"
                        "\"fp32_contents\":[0.1,16777216,1.4013e-45,3.4028235e+38,-0,"
                        "\"Infinity\",\"NaN\"],"
                        "\"fp64_contents\":[0.1,1e+300,0.30000000000000004,\"-Infinity\"],"
                        "\"bytes_contents\":[]}");
    nr_text_clear(&out);
    nr_pbwrite_text(parse(type, "fp32_contents: [1.5, inf, nan] fp64_contents: -inf"), &out);
    assert_string_equal(out.data, "fp32_contents: [1.5, inf, nan]\nfp64_contents: [-inf]\n");
}

static void test_bytes(void **state)
{
    (void)state;
    const ProtobufCMessageDescriptor *type = &inference__infer_tensor_contents__descriptor;
    const char *text = json(type, "bytes_contents: ['', 'a', 'ab', '\\000\\377c']");
    assert_non_null(strstr(text, "\"bytes_contents\":[\"\",\"YQ==\",\"YWI=\",\"AP9j\"]"));
    nr_text_clear(&out);
    nr_pbwrite_text(parse(type, "bytes_contents: '\\000\\377\"\\\\'"), &out);
    assert_string_equal(out.data, "bytes_contents: [\"\\000\\377\\\"\\\\\"]\n");
}

static void test_text(void **state)
{
    (void)state;
    nr_pbwrite_text(parse(CONFIG, "name: 'a\\n\\t\\'\\\"\xc3\xa9' input { dims: [1,2] } input { } "
                                  "version_policy { latest { } } max_batch_size: 0 "
                                  "parameters { key: 'k' value { string_value: 'v' } }"),
                    &out);
    assert_string_equal(out.data, "name: \"a\\n\\011'\\\"\xc3\xa9\"\n"
                                  "version_policy {\n  latest {\n  }\n}\n"
                                  "input {\n  dims: [1, 2]\n}\ninput {\n}\n"
                                  "parameters {\n  key: \"k\"\n  value {\n    string_value: \"v\"\n"
                                  "  }\n}\n");
    nr_text_clear(&out);
    nr_pbwrite_text(parse(CONFIG, ""), &out);
    assert_int_equal(out.len, 0);
}

/* An enum number that the table does not know (from the wire) is printed as a number. */
static void test_unknown_enum(void **state)
{
    (void)state;
    Inference__ModelInput in = INFERENCE__MODEL_INPUT__INIT;
    in.data_type = (Inference__DataType)77;
    nr_pbwrite_json(&in.base, &out);
    assert_non_null(strstr(out.data, "\"data_type\":77,"));
}

/* A map entry off the wire may lack its value. */
static void test_map_without_value(void **state)
{
    (void)state;
    Inference__ModelConfig c = INFERENCE__MODEL_CONFIG__INIT;
    Inference__ModelConfig__ParametersEntry e = INFERENCE__MODEL_CONFIG__PARAMETERS_ENTRY__INIT;
    Inference__ModelConfig__ParametersEntry *all[] = {&e};
    e.key = (char *)(uintptr_t)"k";
    c.n_parameters = 1;
    c.parameters = all;
    nr_pbwrite_json(&c.base, &out);
    assert_non_null(strstr(out.data, "\"parameters\":{\"k\":{}}"));
}

static void test_cap_and_memory(void **state)
{
    (void)state;
    const ProtobufCMessage *m =
        parse(CONFIG, "name: 'x' input { dims: [1,2,3] } parameters { key: 'k' }");
    struct nr_text small;
    nr_text_init(&small, 0);
    nr_pbwrite_json(m, &out);
    size_t need = out.len;
    for (size_t cap = 1; cap < need; cap++) {
        nr_text_done(&small);
        nr_text_init(&small, cap);
        nr_pbwrite_json(m, &small);
        assert_true(small.failed);
    }
    for (uint64_t n = 1; n < 8; n++) { /* must end, whatever fails */
        nr_text_done(&small);
        nr_text_init(&small, 1 << 20);
        nr_mem_fail_after(n, true);
        nr_pbwrite_json(m, &small);
        nr_pbwrite_text(m, &small);
        nr_mem_fail_after(0, false);
    }
    nr_text_done(&small);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_config_json, setup, teardown),
        cmocka_unit_test_setup_teardown(test_oneof_places, setup, teardown),
        cmocka_unit_test_setup_teardown(test_order, setup, teardown),
        cmocka_unit_test_setup_teardown(test_floats, setup, teardown),
        cmocka_unit_test_setup_teardown(test_bytes, setup, teardown),
        cmocka_unit_test_setup_teardown(test_text, setup, teardown),
        cmocka_unit_test_setup_teardown(test_unknown_enum, setup, teardown),
        cmocka_unit_test_setup_teardown(test_map_without_value, setup, teardown),
        cmocka_unit_test_setup_teardown(test_cap_and_memory, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
