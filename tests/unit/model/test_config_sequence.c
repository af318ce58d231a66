/* sequence_batching: rules of the text, what is completed from a model, and what request code reads. */
#include "model/config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#define STATE(more) \
    "state { input_name: 'a' output_name: 'b' data_type: TYPE_FP32 dims: [ 2 ] " more " } "

static void test_rules(void **state)
{
    (void)state;
#define CONTROL(inner) "control_input { name: 'c' control { " inner " } } "
    static const struct {
        const char *text, *part; /* of sequence_batching; "" none: it is taken */
        nr_status st;
    } cases[] = {
        {"", "", NARU_OK},
        {"control_input { control { int32_false_true: [ 0, 1 ] } }", "has no name", NARU_INVALID},
        {"control_input { name: 'c' }", "\"c\" has 0 controls", NARU_INVALID},
        {"control_input { name: 'c' control { int32_false_true: [0, 1] } control { kind: "
         "CONTROL_SEQUENCE_END int32_false_true: [0, 1] } }",
         "has 2 controls", NARU_INVALID},
        {CONTROL("int32_false_true: [ 0 ]"), "\"c\" needs exactly one of", NARU_INVALID},
        {CONTROL("int32_false_true: [ 0, 1, 2 ]"), "with two values", NARU_INVALID},
        {CONTROL("int32_false_true: [ 0 ] fp32_false_true: [ 1 ]"), "exactly one", NARU_INVALID},
        {CONTROL("int32_false_true: [0, 1] bool_false_true: [false, true]"), "exactly one",
         NARU_INVALID},
        {CONTROL(""), "exactly one", NARU_INVALID},
        {CONTROL("int32_false_true: [ 0, 1 ] data_type: TYPE_INT32"), "no data_type", NARU_INVALID},
        {CONTROL("bool_false_true: [ true, false ]"), "", NARU_OK},
        {CONTROL("kind: CONTROL_SEQUENCE_CORRID"), "is a correlation id, whose data_type is",
         NARU_INVALID},
        {CONTROL("kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_FP32"), "whose data_type is",
         NARU_INVALID},
        {CONTROL("kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_INT64 int32_false_true: [ 0, 1 ]"),
         "no …_false_true", NARU_INVALID},
        {CONTROL("kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_STRING"), "", NARU_OK},
        {CONTROL("int32_false_true: [ 0, 1 ]") "control_input { name: 'd' control { "
                                               "fp32_false_true: [ 0, 1 ] } }",
         "\"d\" repeats a kind", NARU_INVALID},
        {CONTROL("int32_false_true: [ 0, 1 ]") "control_input { name: 'c' control { kind: "
                                               "CONTROL_SEQUENCE_END fp32_false_true: [ 0, 1 ] } }",
         "\"c\" is named twice", NARU_INVALID},
        {"control_input { name: 'x' control { int32_false_true: [ 0, 1 ] } }",
         "\"x\" is written by the server: leave it out of the inputs", NARU_INVALID},
        {"state { output_name: 'b' data_type: TYPE_FP32 dims: 1 }", "input_name and output_name",
         NARU_INVALID},
        {"state { input_name: 'a' output_name: 'b' dims: 1 }", "needs a data_type, and dims",
         NARU_INVALID},
        {"state { input_name: 'a' output_name: 'b' data_type: TYPE_FP32 }", "needs a data_type",
         NARU_INVALID},
        {"state { input_name: 'a' output_name: 'b' data_type: TYPE_FP32 dims: [ 2, 0 ] }",
         "dims [2,0] has 0", NARU_INVALID},
        {STATE("") "state { input_name: 'c' output_name: 'b' data_type: TYPE_FP32 dims: 1 }",
         "output \"b\" is named twice", NARU_INVALID},
        {STATE("") "state { input_name: 'a' output_name: 'd' data_type: TYPE_FP32 dims: 1 }",
         "input \"a\" is named twice", NARU_INVALID},
        {STATE("use_growable_memory: true"), "needs use_same_buffer_for_input_output",
         NARU_INVALID},
        {STATE("initial_state { name: 'i' data_type: TYPE_FP32 dims: 2 }"), "needs zero_data, or",
         NARU_INVALID},
        {STATE("initial_state { name: 'i' data_type: TYPE_FP32 dims: 3 zero_data: true }"),
         "dims within [2]", NARU_INVALID},
        {STATE("initial_state { name: 'i' data_type: TYPE_INT32 dims: 2 zero_data: true }"),
         "must have the state's data_type", NARU_INVALID},
        {STATE("initial_state { data_type: TYPE_FP32 dims: 2 data_file: '../x' }"),
         "name of a file in the model's folder initial_state", NARU_INVALID},
        {STATE("initial_state { data_type: TYPE_FP32 dims: 2 zero_data: true }"
               "initial_state { data_type: TYPE_FP32 dims: 2 zero_data: true }"),
         "has 2 initial_state, at most one", NARU_INVALID},
        {STATE("use_same_buffer_for_input_output: true use_growable_memory: true initial_state { "
               "data_type: TYPE_FP32 dims: 2 data_file: 'f.bin' }"),
         "", NARU_OK},
        {"direct { max_queue_delay_microseconds: 4000000000 }", "is above an hour", NARU_INVALID},
        {"max_sequence_idle_microseconds: 90000000000", "above a day", NARU_INVALID},
        {"direct { minimum_slot_utilization: 1.5 }", "must be from 0 to 1", NARU_INVALID},
        {"direct { minimum_slot_utilization: -0.1 }", "must be from 0 to 1", NARU_INVALID},
        {"oldest { max_candidate_sequences: -1 }", "must be 1 or more, found -1", NARU_INVALID},
        {"iterative_sequence: true", "", NARU_OK},
        {"} input { name: 'r' data_type: TYPE_FP32 dims: -1 allow_ragged_batch: true",
         "together with allow_ragged_batch", NARU_UNSUPPORTED},
        {"} batch_input { kind: BATCH_ELEMENT_COUNT target_name: 'n' data_type: TYPE_FP32 "
         "source_input: 'x'",
         "together with allow_ragged_batch", NARU_UNSUPPORTED},
    };
    for (size_t i = 0; i < NR_COUNT(cases); i++) {
        char text[1024];
        struct nr_model_config *c = NULL;
        struct nr_err err = {0};
        int len =
            snprintf(text, sizeof(text),
                     "input { name: 'x' data_type: TYPE_FP32 dims: 4 } sequence_batching { %s }",
                     cases[i].text);
        nr_status st = nr_config_parse("m", text, (size_t)len, "config.pbtxt", &c, &err);
        if (st != cases[i].st || (st != NARU_OK && strstr(err.text, cases[i].part) == NULL)) {
            fail_msg("case %zu, \"%s\": %d \"%s\"", i, cases[i].text, st, err.text);
        }
        if (st == NARU_OK) {
            nr_config_free(c);
        }
    }
}

static nr_status decoupled(const char *text)
{
    struct nr_model_config *c = NULL;
    nr_status st = nr_config_parse("m", text, strlen(text), "config.pbtxt", &c, NULL);
    if (st == NARU_OK) {
        nr_config_free(c);
    }
    return st;
}

static void test_state_of_a_decoupled_model(void **state)
{
    (void)state;
    assert_int_equal(
        decoupled("model_transaction_policy { decoupled: true } sequence_batching { }"), NARU_OK);
    assert_int_equal(
        decoupled(
            "model_transaction_policy { decoupled: true } sequence_batching { " STATE("") "}"),
        NARU_UNSUPPORTED);
}

/* --- with a model ----------------------------------------------------------------------------- */

static const int64_t free2[] = {-1, 2}, free1[] = {-1, 1}, bare[] = {-1}, open2[] = {-1, -1};
static const naru_io model_in[] = {
    {.name = "IN", .shape = open2, .rank = 2, .dtype = NARU_FP32},
    {.name = "READY", .shape = free1, .rank = 2, .dtype = NARU_FP32},
    {.name = "X", .shape = free2, .rank = 2, .dtype = NARU_FP32},
    {.name = "ID", .shape = bare, .rank = 1, .dtype = NARU_BYTES},
};
static const naru_io model_out[] = {
    {.name = "OUT", .shape = open2, .rank = 2, .dtype = NARU_FP32},
    {.name = "Y", .shape = free1, .rank = 2, .dtype = NARU_FP32},
};
static const naru_model_info model = {.struct_size = sizeof model,
                                      .n_inputs = 4,
                                      .n_outputs = 2,
                                      .inputs = model_in,
                                      .outputs = model_out,
                                      .platform = ""};

static nr_status complete(const char *text, struct nr_model_config **ret, struct nr_err *err)
{
    struct nr_config_opts opts = {.auto_complete = true};
    if (nr_config_parse("m", text, strlen(text), "config.pbtxt", ret, err) != NARU_OK) {
        fail_msg("%s", err->text);
    }
    (*ret)->backend = "onnxruntime";
    return nr_config_complete(*ret, &model, &opts, err);
}

#define HIDDEN                                                                                 \
    "control_input { name: 'READY' control { kind: CONTROL_SEQUENCE_READY fp32_false_true: [ " \
    "0.5, 2 ] } } control_input { name: 'ID' control { kind: CONTROL_SEQUENCE_CORRID "         \
    "data_type: TYPE_STRING } } state { input_name: 'IN' output_name: 'OUT' data_type: "       \
    "TYPE_FP32 dims: -1 } "

/* Clients see X and Y alone, without a list in the configuration; the model gets the rest. */
static void test_hidden_tensors(void **state)
{
    (void)state;
    struct nr_model_config *c = NULL;
    struct nr_err err = {0};
    if (complete("max_batch_size: 8 sequence_batching { " HIDDEN
                 "oldest { max_candidate_sequences: 5 "
                 "preferred_batch_size: [ 4, 2 ] max_queue_delay_microseconds: 7 } }",
                 &c, &err) != NARU_OK) {
        fail_msg("%s", err.text);
    }
    const struct nr_sequence_config *s = c->sequence;
    assert_non_null(s);
    assert_true(c->sig.n_inputs == 1 && c->sig.n_outputs == 1 && !c->dynamic_batching);
    assert_true(nr_str_is(c->sig.inputs[0].name, "X") && nr_str_is(c->sig.outputs[0].name, "Y"));
    assert_true(c->input_map[0] == 2 && c->output_map[0] == 1);
    assert_true(s->sig.n_inputs == 4 && s->sig.n_outputs == 2 && s->sig.max_batch_size == 8);
    assert_true(s->input_map[0] == 2 && s->input_map[1] == 1 && s->input_map[2] == 3 &&
                s->input_map[3] == 0 && s->output_map[1] == 0);
    assert_true(!s->direct && s->max_candidates == 5 && s->delay_ns == 7000 &&
                s->idle_ns == 1000000000 && s->n_preferred == 2 && s->preferred[0] == 2);
    float no, yes;
    memcpy(&no, s->controls[0].value[0], sizeof(no));
    memcpy(&yes, s->controls[0].value[1], sizeof(yes));
    assert_true(no == 0.5F && yes == 2.0F && s->controls[0].kind == NR_CONTROL_READY);
    assert_true(s->controls[1].dtype == NARU_BYTES &&
                s->sig.inputs[2].rank == 1); /* as the model */
    assert_true(s->states[0].first[0] == 1 && s->states[0].input == 3 && s->states[0].output == 1);
    nr_config_free(c);
}

static void test_defaults_and_visible_state(void **state)
{
    (void)state;
    struct nr_model_config *c = NULL;
    struct nr_err err = {0};
    if (complete("max_batch_size: 8 input { name: 'X' data_type: TYPE_FP32 dims: 2 } "
                 "output [ { name: 'Y' data_type: TYPE_FP32 dims: 1 },"
                 "{ name: 'OUT' data_type: TYPE_FP32 dims: -1 } ] sequence_batching { " HIDDEN " }",
                 &c, &err) != NARU_OK) {
        fail_msg("%s", err.text);
    }
    const struct nr_sequence_config *s = c->sequence;
    assert_true(s->direct && s->min_utilization == 0 && s->delay_ns == 0 && !s->iterative);
    assert_true(s->idle_ns == 1000000000 && c->pb->sequence_batching->direct != NULL &&
                c->pb->sequence_batching->max_sequence_idle_microseconds == 1000000);
    assert_true(c->sig.n_outputs == 2 && s->sig.n_outputs == 2 && s->states[0].output == 1);
    nr_config_free(c);
}

static void test_against_the_model(void **state)
{
    (void)state;
    static const struct {
        const char *text, *part;
    } cases[] = {
        {"max_batch_size: 8 sequence_batching { " HIDDEN "oldest { preferred_batch_size: 9 } }",
         "preferred_batch_size has 9"},
        {"max_batch_size: 8 sequence_batching { " HIDDEN
         "control_input { name: 'START' control { int32_false_true: [ 0, 1 ] } } }",
         "\"START\" is configured, but the model has none"},
        {"max_batch_size: 8 sequence_batching { control_input { name: 'READY' control { "
         "int32_false_true: [ 0, 1 ] } } }",
         "\"READY\" is configured as INT32"},
        {"max_batch_size: 8 sequence_batching { state { input_name: 'IN' output_name: 'Y' "
         "data_type: TYPE_FP32 dims: [ 2, 2 ] } }",
         "\"IN\" is configured as shape"},
        {"max_batch_size: 8 response_cache { enable: true } sequence_batching { " HIDDEN " }",
         "response_cache cannot be enabled"},
    };
    for (size_t i = 0; i < NR_COUNT(cases); i++) {
        struct nr_model_config *c = NULL;
        struct nr_err err = {0};
        assert_int_equal(complete(cases[i].text, &c, &err), NARU_INVALID);
        if (strstr(err.text, cases[i].part) == NULL) {
            fail_msg("case %zu: %s", i, err.text);
        }
        nr_config_free(c);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rules),
        cmocka_unit_test(test_state_of_a_decoupled_model),
        cmocka_unit_test(test_hidden_tensors),
        cmocka_unit_test(test_defaults_and_visible_state),
        cmocka_unit_test(test_against_the_model),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
