/* Text-format protobuf: everything that is accepted, everything that is refused and where, and that
 * no bytes whatever make it read or write where it should not. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>
#include <math.h>

#include "base/arena.h"
#include "base/mem.h"
#include "codec/pbtxt.h"
#include "codec/pbwrite.h"
#include "proto/grpc_service.pb-c.h"
#include "proto/model_config.pb-c.h"

#define TYPE (&inference__model_config__descriptor)

static struct nr_arena arena;
static struct nr_err err;

static int setup(void **state)
{
    (void)state;
    nr_arena_init(&arena, 64u << 20);
    memset(&err, 0, sizeof err);
    return 0;
}
static int teardown(void **state)
{
    (void)state;
    nr_mem_fail_after(0, false);
    nr_arena_done(&arena);
    nr_arena_thread_done();
    return 0;
}

/* From a block of exactly this size, so that a sanitizer sees any byte read behind it. */
static nr_status parse_type(const ProtobufCMessageDescriptor *type, const void *text, size_t len,
                            ProtobufCMessage **ret, uint64_t *given)
{
    char *exact = malloc(len ? len : 1);
    assert_non_null(exact);
    memcpy(exact, text, len);
    nr_status st = nr_pbtxt_parse(type, (struct nr_str){exact, len}, "t", &arena, ret, given, &err);
    free(exact);
    return st;
}
static Inference__ModelConfig *parse(const char *text)
{
    ProtobufCMessage *m = NULL;
    memset(&err, 0, sizeof err);
    if (parse_type(TYPE, text, strlen(text), &m, NULL) != NARU_OK) {
        print_message("unexpected: %s\n", err.text);
        fail();
    }
    return (Inference__ModelConfig *)m;
}
static void refuse(const char *text, const char *part)
{
    ProtobufCMessage *m = NULL;
    memset(&err, 0, sizeof err);
    assert_int_not_equal(parse_type(TYPE, text, strlen(text), &m, NULL), NARU_OK);
    assert_null(m);
    if (!strstr(err.text, part)) {
        print_message("for: %s\n got: %s\nwant: %s\n", text, err.text, part);
        fail();
    }
}

static char *read_data(const char *name, size_t *ret_len)
{
    char path[512];
    (void)snprintf(path, sizeof path, "%s/tests/data/%s", NARU_SOURCE_DIR, name);
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    char *text = malloc(1 << 20);
    assert_non_null(text);
    *ret_len = fread(text, 1, (1 << 20) - 1, f);
    text[*ret_len] = '\0';
    (void)fclose(f);
    return text;
}

static void assert_same(const ProtobufCMessage *a, const ProtobufCMessage *b)
{
    size_t n = protobuf_c_message_get_packed_size(a);
    assert_int_equal(n, protobuf_c_message_get_packed_size(b));
    uint8_t *x = malloc(n + 1), *y = malloc(n + 1);
    assert_true(x && y);
    (void)protobuf_c_message_pack(a, x);
    (void)protobuf_c_message_pack(b, y);
    assert_memory_equal(x, y, n);
    free(x);
    free(y);
}

/* --- accepted --------------------------------------------------------------------------------- */

static void test_every_field(void **state)
{
    (void)state;
    size_t len;
    char *text = read_data("all_fields.pbtxt", &len);
    ProtobufCMessage *m = NULL;
    uint64_t given = 0;
    assert_int_equal(parse_type(TYPE, text, len, &m, &given), NARU_OK);
    const Inference__ModelConfig *c = (const Inference__ModelConfig *)m;
    free(text);
    for (unsigned i = 0; i < TYPE->n_fields; i++) {
        bool other_scheduler = strcmp(TYPE->fields[i].name, "sequence_batching") == 0 ||
                               strcmp(TYPE->fields[i].name, "ensemble_scheduling") == 0;
        assert_int_equal(nr_pbtxt_given(TYPE, given, TYPE->fields[i].name), !other_scheduler);
    }
    assert_string_equal(c->name, "all_fields");
    assert_int_equal(c->n_input, 2);
    assert_int_equal(c->input[0]->n_dims, 3);
    assert_int_equal(c->input[0]->reshape->shape[0], 150528);
    assert_int_equal(c->input[1]->dims[0], -1);
    assert_int_equal(c->input[1]->dims[1], 2);
    assert_int_equal(c->output[0]->data_type, INFERENCE__DATA_TYPE__TYPE_FP32);
    assert_int_equal(c->output[0]->dims[0], 1000);
    assert_int_equal(c->optimization->graph->level, -1);
    assert_string_equal(
        c->optimization->execution_accelerators->gpu_execution_accelerator[0]->parameters[0]->value,
        "FP16");
    assert_int_equal(c->dynamic_batching->priority_queue_policy[0]->key, 2);
    assert_int_equal(c->n_parameters, 2);
    assert_string_equal(c->parameters[1]->value->string_value, "0");
    assert_int_equal(c->model_warmup[0]->inputs[1]->value->input_data_type_case,
                     INFERENCE__MODEL_WARMUP__INPUT__INPUT_DATA_TYPE_INPUT_DATA_FILE);
    assert_true(isinf(c->model_metrics->metric_control[0]->histogram_options->buckets[3]));
    assert_int_equal(c->version_policy->specific->versions[1], 3);
}

/* What the text writer prints reads back to the same message. */
static void test_round_trip(void **state)
{
    (void)state;
    static const char *const files[] = {"all_fields.pbtxt", "sequence.pbtxt", "ensemble.pbtxt"};
    for (size_t i = 0; i < NR_COUNT(files); i++) {
        size_t len;
        char *text = read_data(files[i], &len);
        ProtobufCMessage *a = NULL, *b = NULL;
        assert_int_equal(parse_type(TYPE, text, len, &a, NULL), NARU_OK);
        struct nr_text out;
        nr_text_init(&out, 1 << 20);
        nr_pbwrite_text(a, &out);
        assert_false(out.failed);
        if (parse_type(TYPE, out.data, out.len, &b, NULL) != NARU_OK) {
            print_message("%s\n%s\n", err.text, out.data);
            fail();
        }
        assert_same(a, b);
        nr_text_done(&out);
        free(text);
    }
}

static void test_empty(void **state)
{
    (void)state;
    assert_int_equal(parse("")->n_input, 0);
    assert_int_equal(parse(" \t\r\n# only a comment")->n_input, 0);
    assert_int_equal(parse("input: []")->n_input, 0);
    assert_int_equal(parse("input [] output []")->n_output, 0);
    assert_int_equal(parse("input {}")->n_input, 1);
    assert_string_equal(parse("")->name, "");
}

static void test_punctuation(void **state)
{
    (void)state;
    static const char *const same[] = {
        "input { name: \"a\" dims: 1 dims: 2 } max_batch_size: 3",
        "input: { name: \"a\" dims: [1, 2] } max_batch_size: 3",
        "input < name: \"a\"; dims: [1,2]; >; max_batch_size: 3;",
        "input:<name:'a',dims:[1],dims:[2],>,max_batch_size:3,",
        "input [ { name: \"a\" dims: 1, dims: 2 } ] max_batch_size: 3",
        "input: [ < name: \"a\" dims: [ 1 ] dims: 2 > ];\nmax_batch_size: 3 # end",
        "#x\ninput{#y\nname#z\n:#\n\"a\"dims:[#\n1#,\n,2]}max_batch_size:3",
        "max_batch_size: 0x3 input { dims: 01 dims: 02 name: \"\" \"a\" '' }",
    };
    Inference__ModelConfig *first = parse(same[0]);
    assert_int_equal(first->input[0]->n_dims, 2);
    for (size_t i = 1; i < NR_COUNT(same); i++) {
        assert_same(&first->base, &parse(same[i])->base);
    }
}

static void test_strings(void **state)
{
    (void)state;
    static const struct {
        const char *text, *want;
    } cases[] = {
        {"name: 'it\"s'", "it\"s"},
        {"name: \"a\\n\\t\\r\\\\\\\"\\'\\?\"", "a\n\t\r\\\"'?"},
        {"name: \"\\a\\b\\f\\v\"", "\a\b\f\v"},
        {"name: \"\\101\\x42\\X43\\1234\"", "ABCS4"},
        {"name: \"\\u00e9\\U0001F600\"", "\xc3\xa9\xf0\x9f\x98\x80"},
        {"name: \"\\303\\251\"", "\xc3\xa9"},
        {"name: \"\xc3\xa9\"", "\xc3\xa9"},
        {"name: \"one\" 'two'\n# between\n\"three\"", "onetwothree"},
        {"name: \"a#b\"", "a#b"},
        {"name: \"\"", ""},
    };
    for (size_t i = 0; i < NR_COUNT(cases); i++) {
        assert_string_equal(parse(cases[i].text)->name, cases[i].want);
    }
}

static void test_numbers(void **state)
{
    (void)state;
    assert_int_equal(parse("max_batch_size: 2147483647")->max_batch_size, INT32_MAX);
    assert_int_equal(parse("max_batch_size: -2147483648")->max_batch_size, INT32_MIN);
    assert_int_equal(parse("max_batch_size: - 5")->max_batch_size, -5);
    assert_int_equal(parse("max_batch_size: -0")->max_batch_size, 0);
    assert_int_equal(parse("input{dims:-9223372036854775808}")->input[0]->dims[0], INT64_MIN);
    assert_int_equal(parse("input{dims:0x7fffffffffffffff}")->input[0]->dims[0], INT64_MAX);
    assert_true(parse("dynamic_batching{priority_levels:18446744073709551615}")
                    ->dynamic_batching->priority_levels == UINT64_MAX);
    Inference__ModelConfig *c = parse("model_metrics{metric_control{histogram_options{buckets:["
                                      "1, -2.5, .5, 1e-3, 2f, 3.5F, inf, -Infinity, nan, 1E+2]}}}");
    const double *b = c->model_metrics->metric_control[0]->histogram_options->buckets;
    const double want[] = {1, -2.5, .5, 1e-3, 2, 3.5};
    for (size_t i = 0; i < NR_COUNT(want); i++) {
        assert_true(b[i] == want[i]);
    }
    assert_true(isinf(b[6]) && b[6] > 0 && isinf(b[7]) && b[7] < 0 && isnan(b[8]) && b[9] == 100);
    assert_true(parse("response_cache{enable:t}")->response_cache->enable);
    assert_true(parse("response_cache{enable:True}")->response_cache->enable);
    assert_true(parse("response_cache{enable:1}")->response_cache->enable);
    assert_false(parse("response_cache{enable:False}")->response_cache->enable);
    assert_false(parse("response_cache{enable:0}")->response_cache->enable);
}

static void test_repeated_growth(void **state)
{
    (void)state;
    struct nr_text t;
    nr_text_init(&t, 1 << 20);
    nr_text_str(&t, "input { dims: [0");
    for (int i = 1; i < 1000; i++) {
        nr_text_fmt(&t, ",%d", i);
    }
    nr_text_str(&t, "]");
    for (int i = 1000; i < 1033; i++) {
        nr_text_fmt(&t, " dims:%d", i);
    }
    nr_text_str(&t, "}");
    Inference__ModelConfig *c = parse(t.data);
    assert_int_equal(c->input[0]->n_dims, 1033);
    for (int i = 0; i < 1033; i++) {
        assert_int_equal(c->input[0]->dims[i], i);
    }
    nr_text_done(&t);
}

static void test_maps(void **state)
{
    (void)state;
    Inference__ModelConfig *c = parse(
        "metric_tags [ { key: 'a' value: '1' }, { key: 'b' value: '2' }, { value: '3' key: 'a' } ]"
        "parameters { key: 'empty' } dynamic_batching { priority_queue_policy [ { key: 1 "
        "value { max_queue_size: 1 } }, { key: 1 value { max_queue_size: 2 } } ] }");
    assert_int_equal(c->n_metric_tags, 2);
    assert_string_equal(c->metric_tags[0]->value, "3");
    assert_string_equal(c->metric_tags[1]->value, "2");
    assert_non_null(c->parameters[0]->value); /* an entry without a value has an empty one */
    assert_string_equal(c->parameters[0]->value->string_value, "");
    assert_int_equal(c->dynamic_batching->n_priority_queue_policy, 1);
    assert_int_equal(c->dynamic_batching->priority_queue_policy[0]->value->max_queue_size, 2);

    struct nr_text t;
    nr_text_init(&t, 1 << 20);
    for (int i = 0; i < NR_PBTXT_MAX_MAP; i++) { /* the same five keys again and again */
        nr_text_fmt(&t, "metric_tags{key:'%d' value:'%d'}", i % 5, i);
    }
    c = parse(t.data);
    assert_int_equal(c->n_metric_tags, 5);
    assert_string_equal(c->metric_tags[3]->value, "1023");
    nr_text_clear(&t);
    for (int i = 0; i <= NR_PBTXT_MAX_MAP; i++) {
        nr_text_fmt(&t, "metric_tags{key:'%d'}", i);
    }
    refuse(t.data, "more than 1024 entries");
    nr_text_done(&t);
}

static void test_bytes(void **state)
{
    (void)state;
    const char text[] = "raw_input_contents: '\\000\\xff' 'z' raw_input_contents: ''";
    ProtobufCMessage *m = NULL;
    assert_int_equal(
        parse_type(&inference__model_infer_request__descriptor, text, sizeof text - 1, &m, NULL),
        NARU_OK);
    const Inference__ModelInferRequest *r = (const Inference__ModelInferRequest *)m;
    assert_int_equal(r->n_raw_input_contents, 2);
    assert_int_equal(r->raw_input_contents[0].len, 3);
    assert_memory_equal(r->raw_input_contents[0].data, "\0\xffz", 3);
    assert_int_equal(r->raw_input_contents[1].len, 0);
}

/* --- refused ---------------------------------------------------------------------------------- */

static void test_refused(void **state)
{
    (void)state;
    static const struct {
        const char *text, *part;
    } cases[] = {
        {"no_such_field: 1", "t:1:1: ModelConfig has no field 'no_such_field'; its fields: name, "},
        {"\n  max_batchsize: 1", "t:2:3: ModelConfig has no field 'max_batchsize': did you mean "
                                 "'max_batch_size'?"},
        {"input {\n  nam: \"x\" }", "t:2:3: ModelInput has no field 'nam': did you mean 'name'?"},
        {"name: \"a\" name: \"b\"", "t:1:11: name is given twice in this ModelConfig"},
        {"optimization{} optimization{}", "t:1:16: optimization is given twice"},
        {"dynamic_batching{} sequence_batching{}",
         "t:1:20: sequence_batching and dynamic_batching exclude each other"},
        {"model_warmup{inputs{value{zero_data:true random_data:true}}}", "exclude each other"},
        {"max_batch_size 4", "t:1:16: expected ':' after max_batch_size, found '4'"},
        {"max_batch_size: four", "whole number from -2147483648 to 2147483647, found 'four'"},
        {"max_batch_size: 2147483648", "max_batch_size must be a whole number"},
        {"max_batch_size: -2147483649", "max_batch_size must be a whole number"},
        {"max_batch_size: 99999999999999999999999999", "whole number"},
        {"max_batch_size: 0x1ffffffffffffffff", "whole number"},
        {"max_batch_size: 09", "whole number"},
        {"max_batch_size: 0x", "whole number"},
        {"max_batch_size: 1.5", "found '1.5'"},
        {"max_batch_size: 12ab", "found '12ab'"},
        {"max_batch_size: \"1\"", "whole number"},
        {"max_batch_size: [1]", "takes one value, not a list"},
        {"dynamic_batching{priority_levels:-1}", "from 0 to 18446744073709551615, found -'1'"},
        {"max_batch_size:", "found the end of the file"},
        {"model_metrics{metric_control{histogram_options{buckets: 1e999}}}", "must be a number"},
        {"model_metrics{metric_control{histogram_options{buckets: .}}}", "byte 0x2e"},
        {"input { data_type: TYPE_FP3 }", "t:1:20: 'TYPE_FP3' is no value of data_type: did you "
                                          "mean TYPE_FP32?"},
        {"input { data_type: 99 }", "expected TYPE_INVALID … TYPE_BF16"},
        {"input { data_type: \"TYPE_FP32\" }", "is no value of data_type"},
        {"response_cache { enable: yes }", "enable must be true or false, found 'yes'"},
        {"response_cache { enable: \"true\" }", "must be true or false"},
        {"name: unquoted", "is a string and needs quotes"},
        {"name: \"open", "t:1:7: this string has no closing \" on its line"},
        {"name: \"open\\\"", "no closing"},
        {"name: \"a\nb\"", "no closing"},
        {"name: \"\\q\"", "an escape that is none of"},
        {"name: \"\\x\"", "an escape"},
        {"name: \"\\ud800\"", "an escape"},
        {"name: \"\\U00110000\"", "an escape"},
        {"name: \"\\777\"", "an escape"},
        {"name: \"\\u12\"", "an escape"},
        {"name: \"a\\000b\"", "must not contain a NUL"},
        {"name: \"\\xff\"", "not valid UTF-8"},
        {"name: \"\xc3\"", "not valid UTF-8"},
        {"input {", "t:1:7: the '{' of input is never closed"},
        {"input <", "the '<' of input is never closed"},
        {"input { >", "expected a field's name, found '>'"},
        {"input < }", "expected a field's name, found '}'"},
        {"}", "expected a field's name, found '}'"},
        {"]", "expected a field's name"},
        {"input 5", "input is a group of fields: expected '{', found '5'"},
        {"input: [ { }", "t:1:13: expected ',' or ']' in the list of input, found the end"},
        {"input: [ { }, ]", "expected '{', found ']'"},
        {"input: [ 1 ]", "expected '{'"},
        {"optimization: [ {} ]", "takes one value, not a list"},
        {"input { dims: [ 1 2 ] }", "expected ',' or ']' in the list of dims, found '2'"},
        {"input { dims: [ 1, ] }", "whole number"},
        {"input { dims: [ 1", "expected ',' or ']'"},
        {"name: \"a\";;", "expected a field's name, found ';'"},
        {", name: \"a\"", "expected a field's name, found ','"},
        {"[type.googleapis.com/x] {}", "extensions and Any"},
        {"1: 2", "expected a field's name, found '1'"},
        {"\xef\xbb\xbfname: 'x'", "byte 0xef means nothing here"},
        {"name: 'x' @", "t:1:11: byte 0x40"},
    };
    for (size_t i = 0; i < NR_COUNT(cases); i++) {
        refuse(cases[i].text, cases[i].part);
    }
}

static void test_nul_bytes(void **state)
{
    (void)state;
    ProtobufCMessage *m = NULL;
    assert_int_equal(parse_type(TYPE, "name: 'x'\0name", 14, &m, NULL), NARU_INVALID);
    assert_non_null(strstr(err.text, "byte 0x00"));
    assert_int_equal(parse_type(TYPE, "name: 'x\0y'", 11, &m, NULL), NARU_INVALID);
    assert_non_null(strstr(err.text, "NUL"));
    assert_int_equal(parse_type(TYPE, "name: 'x\\\0'", 11, &m, NULL), NARU_INVALID);
}

/* A message type that contains itself, which no .proto of ours does. */
struct nest {
    ProtobufCMessage base;
    struct nest *child;
};
extern const ProtobufCMessageDescriptor nest_type;
static const ProtobufCFieldDescriptor nest_fields[] = {
    {"child", 1, PROTOBUF_C_LABEL_NONE, PROTOBUF_C_TYPE_MESSAGE, 0, offsetof(struct nest, child),
     &nest_type, NULL, 0, 0, NULL, NULL}};
static const unsigned nest_names[] = {0};
static const ProtobufCIntRange nest_ranges[] = {{1, 0}, {0, 1}};
static void nest_init(ProtobufCMessage *m)
{
    *(struct nest *)m = (struct nest){.base = {.descriptor = &nest_type}};
}
const ProtobufCMessageDescriptor nest_type = {PROTOBUF_C__MESSAGE_DESCRIPTOR_MAGIC,
                                              "test.Nest",
                                              "Nest",
                                              "Nest",
                                              "test",
                                              sizeof(struct nest),
                                              1,
                                              nest_fields,
                                              nest_names,
                                              1,
                                              nest_ranges,
                                              nest_init,
                                              NULL,
                                              NULL,
                                              NULL};

static void test_depth(void **state)
{
    (void)state;
    ProtobufCMessage *m = NULL;
    for (int depth = NR_PBTXT_MAX_DEPTH - 2; depth <= NR_PBTXT_MAX_DEPTH + 1; depth++) {
        struct nr_text t;
        nr_text_init(&t, 1 << 16);
        for (int i = 0; i < depth; i++) {
            nr_text_str(&t, "child{");
        }
        for (int i = 0; i < depth; i++) {
            nr_text_str(&t, "}");
        }
        nr_status st = parse_type(&nest_type, t.data, t.len, &m, NULL);
        assert_int_equal(st, depth < NR_PBTXT_MAX_DEPTH ? NARU_OK : NARU_TOO_LARGE);
        nr_text_done(&t);
    }
    assert_non_null(strstr(err.text, "nested deeper than 64 levels"));
}

static void test_heaps_of_junk(void **state)
{
    (void)state;
    static const char units[][16] = {"{",      "}",        "<",      "[",       "\"",   "'",
                                     "\\",     "#",        "a",      "1",       "-",    ":",
                                     "input{", "input:[{", "input[", "name:",   "\"\"", "\xff",
                                     ",",      "0x",       "1e",     "input{}", "dims:"};
    size_t len = 1 << 20;
    char *text = malloc(len);
    assert_non_null(text);
    for (size_t u = 0; u < NR_COUNT(units); u++) {
        size_t n = strlen(units[u]);
        for (size_t i = 0; i < len; i++) {
            text[i] = units[u][i % n];
        }
        ProtobufCMessage *m = NULL;
        nr_arena_clear(&arena);
        nr_status st = parse_type(TYPE, text, len, &m, NULL);
        /* a comment of a MiB is fine, and so are 150,000 empty inputs; all else is not */
        bool fine = strcmp(units[u], "#") == 0;
        assert_true(fine ? st == NARU_OK : st != NARU_OK || strcmp(units[u], "input{}") == 0);
    }
    free(text);
}

/* Every prefix of a good file, and every file with one byte changed: any answer, no accident. */
static void test_prefixes_and_flips(void **state)
{
    (void)state;
    size_t len;
    char *text = read_data("all_fields.pbtxt", &len);
    ProtobufCMessage *m = NULL;
    for (size_t n = 0; n < len; n++) {
        nr_arena_clear(&arena);
        (void)!parse_type(TYPE, text, n, &m, NULL);
    }
    static const char bytes[] = {'\0', '"', '{', '}', '[', ':', '-', '9', 'a', '\xff', '\\', '#'};
    for (size_t i = 0; i < len; i += 3) {
        char old = text[i];
        text[i] = bytes[i % sizeof bytes];
        nr_arena_clear(&arena);
        (void)!parse_type(TYPE, text, len, &m, NULL);
        text[i] = old;
    }
    free(text);
}

static void test_no_memory(void **state)
{
    (void)state;
    size_t len;
    char *text = read_data("all_fields.pbtxt", &len);
    ProtobufCMessage *m = NULL;
    nr_status st = NARU_NOMEM;
    unsigned failures = 0;
    for (uint64_t n = 1; st != NARU_OK; n++) {
        nr_arena_done(&arena);
        nr_arena_thread_done();
        nr_arena_init(&arena, 0);
        nr_mem_fail_after(n, true);
        st = parse_type(TYPE, text, len, &m, NULL);
        nr_mem_fail_after(0, false);
        assert_true(st == NARU_OK || st == NARU_NOMEM);
        failures += st == NARU_NOMEM;
        assert_true(n < 1000);
    }
    assert_true(failures > 0);
    /* the same by the arena's limit */
    nr_arena_done(&arena);
    nr_arena_init(&arena, 4096);
    assert_int_equal(parse_type(TYPE, text, len, &m, NULL), NARU_NOMEM);
    assert_non_null(strstr(err.text, "more memory than is allowed"));
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_every_field, setup, teardown),
        cmocka_unit_test_setup_teardown(test_round_trip, setup, teardown),
        cmocka_unit_test_setup_teardown(test_empty, setup, teardown),
        cmocka_unit_test_setup_teardown(test_punctuation, setup, teardown),
        cmocka_unit_test_setup_teardown(test_strings, setup, teardown),
        cmocka_unit_test_setup_teardown(test_numbers, setup, teardown),
        cmocka_unit_test_setup_teardown(test_repeated_growth, setup, teardown),
        cmocka_unit_test_setup_teardown(test_maps, setup, teardown),
        cmocka_unit_test_setup_teardown(test_bytes, setup, teardown),
        cmocka_unit_test_setup_teardown(test_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(test_nul_bytes, setup, teardown),
        cmocka_unit_test_setup_teardown(test_depth, setup, teardown),
        cmocka_unit_test_setup_teardown(test_heaps_of_junk, setup, teardown),
        cmocka_unit_test_setup_teardown(test_prefixes_and_flips, setup, teardown),
        cmocka_unit_test_setup_teardown(test_no_memory, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
