/* Infer requests and responses as JSON, with binary parts, and raw bodies. Cases and results follow a
 * recorded server's answers where naru promises the same. */
#include "unit/codec/infer_kit.h"

#include <math.h>

static const char two_inputs[] =
    "{\"id\":\"abc\",\"inputs\":[{\"name\":\"INPUT0\",\"shape\":[1,16],\"datatype\":\"FP32\","
    "\"data\":"
    "[0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15]},{\"name\":\"INPUT1\",\"shape\":[1,16],\"datatype\":"
    "\"FP32\",\"data\":[[1.0, 1.0, 1.0, 1.0, 1,1,1,1,1,1,1,1,1,1,1,1.5e0]]}]}";

static void test_two_inputs(void **state)
{
    (void)state;
    struct kit k;
    kit_add_sub(&k);
    assert_int_equal(kit_json(&k, two_inputs, NULL, 0), NARU_OK);
    assert_true(k.req.has_id && nr_str_is(k.req.id, "abc"));
    assert_int_equal(k.req.rows, 1);
    assert_int_equal(k.req.n_inputs, 2);
    assert_int_equal(k.req.n_outputs, 2);
    assert_false(k.req.outputs_named || k.req.outputs[0].binary);
    float values[16];
    assert_int_equal(k.req.inputs[0].bytes, sizeof(values));
    memcpy(values, k.req.inputs[0].data, sizeof(values));
    for (int i = 0; i < 16; i++) {
        assert_true(values[i] == (float)i);
    }
    memcpy(values, k.req.inputs[1].data, sizeof(values));
    assert_true(values[0] == 1 && values[15] == 1.5f);
    kit_done(&k);
}

/* Keys in every order give the same request; so do escapes in keys. */
static void test_key_order(void **state)
{
    (void)state;
    static const char *const fields[] = {"\"name\":\"INPUT0\"", "\"shape\" : [2,2]",
                                         "\"d\\u0061tatype\":\"INT32\"", "\"data\":[[1,-2],[3,4]]"};
    struct kit k;
    kit_init(&k, NARU_INT32, 0, DIMS(2, 2));
    unsigned count = 0;
    for (unsigned code = 0; code < 256; code++) {
        unsigned order[4] = {code & 3, code >> 2 & 3, code >> 4 & 3, code >> 6};
        unsigned seen = 0;
        for (int i = 0; i < 4; i++) {
            seen |= 1u << order[i];
        }
        if (seen != 15) {
            continue;
        }
        char json[512];
        snprintf(json, sizeof(json), "{\"x\":[{}],\"inputs\":[{%s,%s,%s,%s}],\"y\":null}",
                 fields[order[0]], fields[order[1]], fields[order[2]], fields[order[3]]);
        assert_int_equal(kit_json(&k, json, NULL, 0), NARU_OK);
        int32_t v[4];
        assert_int_equal(k.req.inputs[0].bytes, sizeof(v));
        memcpy(v, k.req.inputs[0].data, sizeof(v));
        assert_true(v[0] == 1 && v[1] == -2 && v[2] == 3 && v[3] == 4);
        count++;
    }
    assert_int_equal(count, 24);
    kit_done(&k);
}

/* The inputs of the last request answered as outputs. */
static char *echo(struct kit *k, bool binary, struct nr_infer_body *body)
{
    struct nr_infer_output how[4];
    for (unsigned i = 0; i < k->req.n_inputs; i++) {
        how[i] = (struct nr_infer_output){.index = i, .binary = binary};
    }
    struct nr_infer_response r = {.model_name = NR_STR("m"),
                                  .model_version = NR_STR("1"),
                                  .id = k->req.id,
                                  .has_id = k->req.has_id,
                                  .outputs = k->req.inputs,
                                  .how = how,
                                  .n_outputs = k->req.n_inputs};
    k->err = (struct nr_err){0};
    if (nr_infer_json_encode(&k->sig, &r, &k->arena, body, &k->err) != NARU_OK) {
        return NULL;
    }
    size_t len;
    char *text = kit_join(body->parts, body->n_parts, &len);
    assert_int_equal(len, body->bytes);
    return text;
}

static void test_answer(void **state)
{
    (void)state;
    struct kit k;
    struct nr_infer_body body;
    kit_add_sub(&k);
    assert_int_equal(kit_json(&k, two_inputs, NULL, 0), NARU_OK);
    char *text = echo(&k, false, &body);
    assert_non_null(text);
    assert_string_equal(
        text,
        "{\"id\":\"abc\",\"model_name\":\"m\",\"model_version\":\"1\",\"outputs\":[{\"name\":"
        "\"OUTPUT0\",\"datatype\":\"FP32\",\"shape\":[1,16],\"data\":[0.0,1.0,2.0,3.0,4.0,5.0,6.0,"
        "7.0,8.0,9.0,10.0,11.0,12.0,13.0,14.0,15.0]},{\"name\":\"OUTPUT1\",\"datatype\":\"FP32\","
        "\"shape\":[1,16],\"data\":[1.0,1.0,1.0,1.0,1.0,1.0,1.0,1.0,1.0,1.0,1.0,1.0,1.0,1.0,1.0,1."
        "5]}]}");
    assert_int_equal(body.n_parts, 1);
    assert_false(body.has_binary);
    free(text);
    text = echo(&k, true, &body);
    assert_non_null(text);
    assert_true(body.has_binary);
    assert_int_equal(body.bytes, body.json_bytes + 128);
    assert_memory_equal(text + body.json_bytes, k.req.inputs[0].data, 64);
    assert_memory_equal(text + body.json_bytes + 64, k.req.inputs[1].data, 64);
    text[body.json_bytes] = '\0';
    assert_string_equal(
        text, "{\"id\":\"abc\",\"model_name\":\"m\",\"model_version\":\"1\",\"outputs\":[{"
              "\"name\":\"OUTPUT0\",\"datatype\":\"FP32\",\"shape\":[1,16],\"parameters\":{"
              "\"binary_data_size\":64}},{\"name\":\"OUTPUT1\",\"datatype\":\"FP32\",\"shape"
              "\":[1,16],\"parameters\":{\"binary_data_size\":64}}]}");
    free(text);
    kit_done(&k);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_two_inputs),
        cmocka_unit_test(test_key_order),
        cmocka_unit_test(test_answer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
