/* Infer requests and responses as JSON, with binary parts, and raw bodies. Cases and results follow a
 * recorded server's answers where naru promises the same. */
#include "unit/codec/infer_kit.h"

#include <math.h>
#include <time.h>

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

/* Dimensions that the model gives one name, over inputs of which one may be left out. */
static void test_shared_dimensions(void **state)
{
    (void)state;
    static const struct nr_shared_dim shared[] = {{0, 0, true, "N"},
                                                  {2, 1, false, "N"},
                                                  {0, 1, true, "L"},
                                                  {1, 0, false, "L"},
                                                  {2, 0, false, "L"}};
    static const struct {
        const char *a, *b, *c, *says;
    } cases[] = {
        {"[2,3]", "[3]", "[3,2]", NULL},
        {"[2,3]", NULL, "[3,2]", NULL},
        {"[1,1]", "[1]", "[1,1]", NULL},
        {"[2,3]", "[4]", "[3,2]",
         "inputs 'A' and 'B' disagree: the model calls dimension 1 of the one and dimension 0 of "
         "the other 'L', so they must be equal, but they are 3 and 4"},
        {"[2,3]", "[1]", "[3,2]", "'L', so they must be equal, but they are 3 and 1"},
        {"[2,3]", "[3]", "[4,2]", "inputs 'A' and 'C' disagree"},
        {"[2,3]", NULL, "[3,1]", "dimension 0 of the one and dimension 1 of the other 'N'"},
        {"[0,3]", NULL, "[3,1]", "but they are 0 and 1"},
        {"[2,3]", NULL, NULL, "missing input 'C'"},
    };
    struct kit k;
    kit_init(&k, NARU_INT8, 0, DIMS(-1, -1));
    kit_spec(&k.in[0], "A", NARU_INT8, 0, DIMS(-1, -1));
    kit_spec(&k.in[1], "B", NARU_INT8, 0, DIMS(-1));
    kit_spec(&k.in[2], "C", NARU_INT8, 0, DIMS(-1, -1));
    k.in[1].optional = true;
    k.sig.n_inputs = 3;
    k.sig.shared = shared;
    k.sig.n_shared = NR_COUNT(shared);
    for (size_t i = 0; i < NR_COUNT(cases); i++) {
        const char *const shapes[] = {cases[i].a, cases[i].b, cases[i].c};
        struct nr_text t;
        nr_text_init(&t, 1024);
        for (unsigned n = 0; n < 3; n++) {
            if (shapes[n] == NULL) {
                continue;
            }
            unsigned rows = (unsigned)(shapes[n][1] - '0');
            unsigned columns = shapes[n][2] == ',' ? (unsigned)(shapes[n][3] - '0') : 1;
            nr_text_fmt(&t, "%s{\"name\":\"%c\",\"datatype\":\"INT8\",\"shape\":%s,\"data\":[",
                        t.len ? "," : "{\"inputs\":[", 'A' + (char)n, shapes[n]);
            for (unsigned e = 0; e < rows * columns; e++) {
                nr_text_str(&t, e ? ",1" : "1");
            }
            nr_text_str(&t, "]}");
        }
        nr_text_str(&t, "]}");
        nr_status st = kit_json(&k, t.data, NULL, 0);
        nr_text_done(&t);
        if (cases[i].says == NULL) {
            assert_int_equal(st, NARU_OK);
        } else {
            kit_refused(&k, st, cases[i].says);
        }
    }
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

/* ---------------------------------------------------------------------------------------------
 * Values of each datatype
 */

struct value_case {
    const char *dtype;
    const char *data;   /* two elements */
    const char *answer; /* as the response writes them; NULL: refused */
    const char *says;   /* what the refusal says */
};

static const struct value_case values[] = {
    {"BOOL", "true,false", "true,false", NULL},
    {"BOOL", "1,0", NULL, "expected true or false, got '1'"},
    {"BOOL", "true,\"false\"", NULL, "expected true or false"},
    {"BOOL", "true,truE", NULL, "expected true or false"},
    {"UINT8", "0,255", "0,255", NULL},
    {"UINT8", "0,256", NULL, "expected an integer from 0 to 255 (UINT8), got '2'"},
    {"UINT8", "0,-1", NULL, "from 0 to 255"},
    {"UINT8", "0,-0", "0,0", NULL},
    {"UINT8", "0,1.0", NULL, "from 0 to 255"},
    {"UINT8", "0,1e2", NULL, "from 0 to 255"},
    {"UINT8", "0,true", NULL, "from 0 to 255"},
    {"UINT8", "0,null", NULL, "from 0 to 255"},
    {"UINT8", "0,\"1\"", NULL, "from 0 to 255"},
    {"UINT8", "0,{}", NULL, "from 0 to 255"},
    {"UINT8", "0,01", NULL, "expected ']', got '1'"},
    {"UINT16", "0,65535", "0,65535", NULL},
    {"UINT16", "0,65536", NULL, "from 0 to 65535"},
    {"UINT32", "0,4294967295", "0,4294967295", NULL},
    {"UINT32", "0,4294967296", NULL, "from 0 to 4294967295"},
    {"UINT64", "0,18446744073709551615", "0,18446744073709551615", NULL},
    {"UINT64", "0,18446744073709551616", NULL, "from 0 to 18446744073709551615"},
    {"UINT64", "0,-1", NULL, "from 0 to 18446744073709551615"},
    {"INT8", "-128,127", "-128,127", NULL},
    {"INT8", "-129,127", NULL, "from -128 to 127"},
    {"INT8", "-128,128", NULL, "from -128 to 127"},
    {"INT16", "-32768,32767", "-32768,32767", NULL},
    {"INT16", "-32769,1", NULL, "from -32768 to 32767"},
    {"INT16", "32768,1", NULL, "from -32768 to 32767"},
    {"INT32", "-2147483648,2147483647", "-2147483648,2147483647", NULL},
    {"INT32", "-2147483649,1", NULL, "from -2147483648"},
    {"INT32", "2147483648,1", NULL, "from -2147483648"},
    {"INT64", "-9223372036854775808,9223372036854775807",
     "-9223372036854775808,9223372036854775807", NULL},
    {"INT64", "-9223372036854775809,1", NULL, "from -9223372036854775808"},
    {"INT64", "9223372036854775808,1", NULL, "from -9223372036854775808"},
    {"FP32", "1,2.5", "1.0,2.5", NULL},
    {"FP32", "0.1,-1e-3", "0.1,-0.001", NULL},
    {"FP32", "1e-50,-0", "0.0,-0.0", NULL},
    {"FP32", "3.4028234663852886e38,1E5", "3.4028235e38,100000.0", NULL},
    {"FP32", "3.4028235677973366e38,1", NULL, "a number that fits the datatype"},
    {"FP32", "1e400,1", NULL, "a number that fits the datatype"},
    {"FP32", "NaN,1", NULL, "NaN and infinities only as binary data"},
    {"FP32", "1,-Infinity", NULL, "NaN and infinities only as binary data"},
    {"FP32", "\"1\",1", NULL, "expected a number"},
    {"FP32", "true,1", NULL, "expected a number"},
    {"FP32", "null,1", NULL, "expected a number"},
    {"FP32", ".5,1", NULL, "expected a number"},
    {"FP32", "+1,1", NULL, "expected a number"},
    {"FP32", "0x10,1", NULL, "expected ','"},
    {"FP64", "0.1,1.7976931348623157e308", "0.1,1.7976931348623157e308", NULL},
    {"FP64", "5e-324,123456789012345678901234567890", "5e-324,1.2345678901234568e29", NULL},
    {"FP64", "1e309,1", NULL, "a number that fits the datatype"},
    {"FP16", "1,2", NULL, "FP16 data cannot be sent as JSON, send it as binary data"},
    {"BF16", "1,2", NULL, "BF16 data cannot be sent as JSON, send it as binary data"},
    {"BYTES", "\"a\",\"\"", "\"a\",\"\"", NULL},
    {"BYTES", "\"\\u00e9\\ud83d\\ude00\",\"\\u0000\\n\\\"\\\\\\/\"",
     "\"\xc3\xa9\xf0\x9f\x98\x80\",\"\\u0000\\n\\\"\\\\/\"", NULL},
    {"BYTES", "\"\\u001f\\b\\f\\r\\t\",\"x\"", "\"\\u001F\\b\\f\\r\\t\",\"x\"", NULL},
    {"BYTES", "\"a\",null", NULL, "expected a string (BYTES)"},
    {"BYTES", "\"a\",1", NULL, "expected a string (BYTES)"},
    {"BYTES", "\"a\",\"\\ud800\"", NULL, "a valid escape"},
};

static void test_values(void **state)
{
    (void)state;
    for (size_t i = 0; i < NR_COUNT(values); i++) {
        const struct value_case *c = &values[i];
        struct kit k;
        char data[256];
        kit_init(&k, nr_dtype_from_name(nr_str_from(c->dtype)), 0, DIMS(-1));
        snprintf(data, sizeof(data), "[%s]", c->data);
        nr_status st = kit_value(&k, c->dtype, "[2]", data);
        if (c->answer == NULL) {
            kit_refused(&k, st, c->says);
            kit_done(&k);
            continue;
        }
        if (st != NARU_OK) {
            fail_msg("%s %s: %s", c->dtype, c->data, k.err.text);
        }
        struct nr_infer_body body;
        char *text = echo(&k, false, &body);
        char want[512];
        assert_non_null(text);
        snprintf(want, sizeof(want), "\"datatype\":\"%s\",\"shape\":[2],\"data\":[%s]}]}", c->dtype,
                 c->answer);
        if (strcmp(strstr(text, "\"datatype\""), want) != 0) {
            fail_msg("%s, expected %s", text, want);
        }
        free(text);
        kit_done(&k);
    }
}

/* Values follow NumPy: float32(float(text)), rounded twice. */
static void test_float_rounding(void **state)
{
    (void)state;
    static const char *const texts[] = {"0.1",
                                        "16777217",
                                        "1.00000017881393432617187499",
                                        "1.00000017881393432617187501",
                                        "7.006492321624085e-46",
                                        "7.0064923216240862e-46",
                                        "3.4028235677973362e38"};
    struct kit k;
    kit_init(&k, NARU_FP32, 0, DIMS(1));
    for (size_t i = 0; i < NR_COUNT(texts); i++) {
        char data[64];
        snprintf(data, sizeof(data), "[%s]", texts[i]);
        assert_int_equal(kit_value(&k, "FP32", "[1]", data), NARU_OK);
        float got;
        memcpy(&got, k.req.inputs[0].data, sizeof(got));
        float want = (float)strtod(texts[i], NULL);
        assert_memory_equal(&got, &want, sizeof(got));
    }
    kit_done(&k);
}

/* ---------------------------------------------------------------------------------------------
 * Shapes and nesting
 */

static void test_nesting(void **state)
{
    (void)state;
    static const struct {
        const char *shape, *data, *says; /* says NULL: accepted */
    } cases[] = {
        {"[2,3]", "[1,2,3,4,5,6]", NULL},
        {"[2,3]", " [ [1 , 2,3 ] , [4,5,6] ] ", NULL},
        {"[1,6]", "[[1,2,3,4,5,6]]", NULL},
        {"[6,1]", "[[1],[2],[3],[4],[5],[6]]", NULL},
        {"[0,3]", "[]", NULL},
        {"[2,0]", "[[],[]]", NULL},
        {"[2,0]", "[]", NULL},
        {"[0,0]", "[]", NULL},
        {"[2,3]", "[1,2,3,4,5]", "exactly 6 elements in this array, got ']'"},
        {"[2,3]", "[1,2,3,4,5,6,7]", "no more than 6 elements in this array, got ','"},
        {"[2,3]", "[[1,2,3],[4,5]]", "exactly 3 elements in this array, got ']'"},
        {"[2,3]", "[[1,2,3],[4,5,6,7]]", "no more than 3 elements in this array, got ','"},
        {"[2,3]", "[[1,2,3]]", "exactly 2 elements in this array, got ']'"},
        {"[2,3]", "[[1,2,3],[4,5,6],[]]", "no more than 2 elements in this array, got ','"},
        {"[2,3]", "[[1,2,3],4,5,6]", "an array: data is nested"},
        {"[2,3]", "[1,2,3,[4,5,6]]", "INT32"},
        {"[2,3]", "[[[1,2,3],[4,5,6]]]", "INT32"},
        {"[2,3]", "[[1,2],[3,4],[5,6]]", "exactly 3 elements"},
        {"[2,3]", "[]", "as many elements as the shape says"},
        {"[2,3]", "[[]        ]", "exactly 3 elements"},
        {"[0,3]", "[1]", "expected ']', got '1'"},
        {"[0,3]", "[[]]", "expected ']', got '['"},
        {"[2,3]", "5", "expected an array"},
        {"[2,3]", "{}", "expected an array"},
        {"[2,3]", "[1,2,3,4,5,6", "expected ']', got '}'"},
        {"[2,3]", "[1,2,3,4,5,6 7]", "expected ']'"},
        {"[2,3]", "[1,2,3,4,5,]", "exactly 6 elements"},
    };
    struct kit k;
    kit_init(&k, NARU_INT32, 0, DIMS(-1, -1));
    for (size_t i = 0; i < NR_COUNT(cases); i++) {
        nr_status st = kit_value(&k, "INT32", cases[i].shape, cases[i].data);
        if (cases[i].says != NULL) {
            kit_refused(&k, st, cases[i].says);
            continue;
        }
        if (st != NARU_OK) {
            fail_msg("%s %s: %s", cases[i].shape, cases[i].data, k.err.text);
        }
        int32_t v[6];
        size_t n = k.req.inputs[0].bytes / sizeof(v[0]);
        assert_true(n == 0 || n == 6);
        memcpy(v, k.req.inputs[0].data, k.req.inputs[0].bytes);
        for (size_t e = 0; e < n; e++) {
            assert_int_equal(v[e], (int)e + 1);
        }
    }
    kit_done(&k);
    kit_init(&k, NARU_INT32, 0, DIMS(2, 1, 2, 1));
    assert_int_equal(kit_value(&k, "INT32", "[2,1,2,1]", "[[[[1],[2]]],[[[3],[4]]]]"), NARU_OK);
    assert_int_equal(k.req.inputs[0].data[12], 4);
    kit_done(&k);
    const int64_t none[] = {INT64_MIN};
    kit_init(&k, NARU_INT32, 0, none); /* a scalar */
    assert_int_equal(kit_value(&k, "INT32", "[]", "[7]"), NARU_OK);
    assert_int_equal(k.req.inputs[0].elements, 1);
    kit_refused(&k, kit_value(&k, "INT32", "[]", "[7,8]"), "no more than 1 element in");
    kit_done(&k);
}

static void test_shapes(void **state)
{
    (void)state;
    struct kit k;
    kit_init(&k, NARU_INT8, 8, DIMS(-1, 2));
    assert_int_equal(kit_value(&k, "INT8", "[2,1,2]", "[1,2,3,4]"), NARU_OK);
    assert_int_equal(k.req.rows, 2);
    static const char *const bad[][2] = {
        {"[9,1,2]", "a batch of 9 rows, the model takes 1 to 8"},
        {"[0,1,2]", "a batch of 0 rows"},
        {"[1,2]", "unexpected shape [1,2], the model expects [-1,-1,2] (the first dimension is the "
                  "batch"},
        {"[1,1,3]", "unexpected shape [1,1,3], the model expects [-1,-1,2]"},
        {"[1,1,2,1]", "unexpected shape [1,1,2,1]"},
        {"[1,-1,2]", "a dimension from 0 to 2147483647"},
        {"[1,2147483648,2]", "a dimension from 0 to 2147483647"},
        {"[1,9223372036854775808,2]", "a dimension from 0 to 2147483647"},
        {"[1,1.0,2]", "a dimension from 0 to 2147483647"},
        {"[1,\"1\",2]", "a dimension from 0 to 2147483647"},
        {"[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]", "a shape of at most 16 dimensions"},
        {"3", "expected an array"},
        {"[1,2147483647,2]", "as many elements as the shape says, but the text ends there"},
    };
    for (size_t i = 0; i < NR_COUNT(bad); i++) {
        kit_refused(&k, kit_value(&k, "INT8", bad[i][0], "[1,2]"), bad[i][1]);
    }
    kit_refused(&k, kit_value(&k, "FP32", "[1,1,2]", "[1,2]"),
                "datatype 'FP32', the model expects 'INT8'");
    kit_refused(&k, kit_value(&k, "int8", "[1,1,2]", "[1,2]"), "unknown datatype 'int8'");
    kit_done(&k);
    kit_init(&k, NARU_FP64, 0, DIMS(-1, -1, -1));
    kit_refused(&k, kit_value(&k, "FP64", "[2147483647,2147483647,2147483647]", "[1]"),
                "shape [2147483647,2147483647,2147483647] is too large");
    kit_done(&k);
}

/* ---------------------------------------------------------------------------------------------
 * The whole request
 */

#define IN0 "{\"name\":\"INPUT0\",\"shape\":[1],\"datatype\":\"UINT8\",\"data\":[1]}"

static void test_request_errors(void **state)
{
    (void)state;
    static const char *const cases[][2] = {
        {"", "byte 0: expected an object, but the text ends there"},
        {"[]", "byte 0: expected an object, got '['"},
        {"null", "expected an object"},
        {"{}", "the request has no \"inputs\""},
        {"{\"inputs\":[]}", "missing input 'INPUT0'"},
        {"{\"inputs\":{}}", "expected an array"},
        {"{\"inputs\":[1]}", "expected an object"},
        {"{\"inputs\":[" IN0 "," IN0 "]}", "input 'INPUT0' was given twice"},
        {"{\"inputs\":[" IN0 "],\"inputs\":[]}", "key \"inputs\" came before"},
        {"{\"inputs\":[" IN0 "],\"x\":1,\"x\":2}", "key \"x\" came before"},
        {"{\"inputs\":[" IN0 "]}}", "expected nothing behind the value"},
        {"{\"inputs\":[" IN0 "],\"id\":5}", "expected a string, got '5'"},
        {"{\"inputs\":[" IN0 "],\"id\":null}", "expected a string"},
        {"{\"inputs\":[" IN0 "],\"parameters\":[]}", "expected an object"},
        {"{\"inputs\":[" IN0 "],\"outputs\":[{}]}", "output 0 has no \"name\""},
        {"{\"inputs\":[" IN0 "],\"outputs\":[{\"name\":\"Y\"}]}",
         "unexpected output 'Y', the model's outputs are 'OUTPUT0'"},
        {"{\"inputs\":[" IN0 "],\"outputs\":[{\"name\":\"OUTPUT0\"},{\"name\":\"OUTPUT0\"}]}",
         "output 'OUTPUT0' was asked for twice"},
        {"{\"inputs\":[" IN0
         "],\"outputs\":[{\"name\":\"OUTPUT0\",\"parameters\":{\"binary_data\":1}}]}",
         "expected true or false"},
        {"{\"inputs\":[" IN0
         "],\"outputs\":[{\"name\":\"OUTPUT0\",\"parameters\":{\"classification\":-1}}]}",
         "expected an integer from 0"},
        {"{\"inputs\":[" IN0
         "],\"outputs\":[{\"name\":\"OUTPUT0\",\"parameters\":{\"classification\":4294967296}}]}",
         "classification of 4294967296"},
        {"{\"inputs\":[{\"name\":\"X\",\"shape\":[1],\"datatype\":\"UINT8\",\"data\":[1]}]}",
         "unexpected input 'X', the model's inputs are 'INPUT0'"},
        {"{\"inputs\":[{\"shape\":[1],\"datatype\":\"UINT8\",\"data\":[1]}]}", "has no \"name\""},
        {"{\"inputs\":[{\"name\":\"INPUT0\",\"datatype\":\"UINT8\",\"data\":[1]}]}",
         "has no \"shape\""},
        {"{\"inputs\":[{\"name\":\"INPUT0\",\"shape\":[1],\"data\":[1]}]}", "has no \"datatype\""},
        {"{\"inputs\":[{\"name\":\"INPUT0\",\"shape\":[1],\"datatype\":\"UINT8\"}]}",
         "has neither \"data\" nor the parameter binary_data_size"},
        {"{\"inputs\":[{\"name\":\"INPUT0\",\"shape\":[1],\"datatype\":\"UINT8\",\"data\":[1],"
         "\"parameters\":{\"binary_data_size\":1}}]}",
         "has both \"data\" and binary_data_size"},
        {"{\"inputs\":[{\"name\":\"INPUT0\",\"shape\":[1],\"datatype\":\"UINT8\","
         "\"parameters\":{\"binary_data_size\":1}}]}",
         "binary_data_size is 1, but 0 bytes are left"},
        {"{\"inputs\":[{\"data\":[256],\"name\":\"INPUT0\",\"shape\":[1],\"datatype\":\"UINT8\"}]}",
         "byte 20: expected an integer from 0 to 255"},
        {"{\"inputs\":[{\"name\":\"INPUT0\",\"name\":\"INPUT0\"}]}", "key \"name\" came before"},
    };
    struct kit k;
    kit_init(&k, NARU_UINT8, 0, DIMS(1));
    for (size_t i = 0; i < NR_COUNT(cases); i++) {
        kit_refused(&k, kit_json(&k, cases[i][0], NULL, 0), cases[i][1]);
    }
    nr_status st =
        kit_json(&k,
                 "{\"inputs\":[{\"name\":\"INPUT0\",\"shape\":[1],\"datatype\":\"UINT8\","
                 "\"parameters\":{\"shared_memory_region\":\"r\"}}]}",
                 NULL, 0);
    assert_int_equal(st, NARU_UNSUPPORTED);
    kit_done(&k);
}

static nr_status with_params(struct kit *k, const char *params)
{
    char json[512];
    snprintf(json, sizeof(json), "{\"inputs\":[" IN0 "],\"parameters\":{%s}}", params);
    return kit_json(k, json, NULL, 0);
}

static void test_params(void **state)
{
    (void)state;
    struct kit k;
    kit_init(&k, NARU_UINT8, 0, DIMS(1));
    assert_int_equal(with_params(&k, "\"sequence_id\":18446744073709551615,\"sequence_start\":true,"
                                     "\"sequence_end\":false,\"priority\":3,\"timeout\":250"),
                     NARU_OK);
    assert_true(k.req.sequence_id == UINT64_MAX && k.req.sequence_start && !k.req.sequence_end);
    assert_true(k.req.priority == 3 && k.req.timeout_us == 250 && k.req.n_params == 0);
    assert_int_equal(with_params(&k, "\"sequence_id\":\"s-1\""), NARU_OK);
    assert_true(nr_str_is(k.req.sequence_name, "s-1"));
    assert_int_equal(with_params(&k, "\"a\":\"x\",\"b\":-5,\"c\":9223372036854775808,\"d\":1.5,"
                                     "\"e\":true,\"f\":18446744073709551616,\"g\":1e3,\"h\":\"\","
                                     "\"i\":-9223372036854775808,\"j\":0"),
                     NARU_OK);
    const struct nr_infer_param *p = k.req.params;
    assert_int_equal(k.req.n_params, 10);
    assert_true(p[0].kind == NR_PARAM_STRING && nr_str_is(p[0].s, "x") &&
                nr_str_is(p[0].name, "a"));
    assert_true(p[1].kind == NR_PARAM_INT && p[1].i == -5);
    assert_true(p[2].kind == NR_PARAM_UINT && (uint64_t)p[2].i == UINT64_C(9223372036854775808));
    assert_true(p[3].kind == NR_PARAM_DOUBLE && p[3].d == 1.5);
    assert_true(p[4].kind == NR_PARAM_BOOL && p[4].b);
    assert_true(p[5].kind == NR_PARAM_DOUBLE && p[5].d == 18446744073709551616.0);
    assert_true(p[6].kind == NR_PARAM_DOUBLE && p[6].d == 1000);
    assert_true(p[7].kind == NR_PARAM_STRING && p[7].s.len == 0);
    assert_true(p[8].kind == NR_PARAM_INT && p[8].i == INT64_MIN);
    assert_true(p[9].kind == NR_PARAM_INT && p[9].i == 0);
    static const char *const bad[][2] = {
        {"\"triton_x\":1", "names that begin with 'triton_' are reserved"},
        {"\"triton_enable_empty_final_response\":true", "reserved"},
        {"\"a\":[1]", "expected a string, a number, true or false"},
        {"\"a\":{}", "expected a string, a number, true or false"},
        {"\"a\":null", "expected a string, a number, true or false"},
        {"\"a\":1,\"a\":2", "key \"a\" came before"},
        {"\"priority\":-1", "parameter 'priority' must be an integer from 0"},
        {"\"priority\":true", "parameter 'priority' must be an integer from 0"},
        {"\"priority\":18446744073709551616", "parameter 'priority' must be an integer from 0"},
        {"\"timeout\":1.5", "parameter 'timeout' must be an integer from 0"},
        {"\"timeout\":\"1\"", "parameter 'timeout' must be an integer from 0"},
        {"\"sequence_id\":-1", "parameter 'sequence_id' must be an unsigned integer or a string"},
        {"\"sequence_id\":1.5", "parameter 'sequence_id' must be"},
        {"\"sequence_start\":1", "parameter 'sequence_start' must be true or false"},
        {"\"sequence_end\":\"false\"", "parameter 'sequence_end' must be true or false"},
        {"\"binary_data_output\":1", "parameter 'binary_data_output' must be true or false"},
    };
    for (size_t i = 0; i < NR_COUNT(bad); i++) {
        kit_refused(&k, with_params(&k, bad[i][0]), bad[i][1]);
    }
    char text[256] = "\"sequence_id\":\"";
    memset(text + 15, 'x', 129);
    memcpy(text + 15 + 129, "\"", 2);
    kit_refused(&k, with_params(&k, text), "at most 128 bytes");
    kit_done(&k);
}

static void test_outputs(void **state)
{
    (void)state;
    struct kit k;
    kit_add_sub(&k);
    char json[1024];
    const char *inputs = strstr(two_inputs, "\"inputs\"");
    int len = (int)strlen(inputs) - 1;
    static const struct {
        const char *more;
        unsigned n;
        bool binary[2];
    } cases[] = {
        {"", 2, {false, false}},
        {",\"outputs\":[]", 2, {false, false}},
        {",\"parameters\":{\"binary_data_output\":true}", 2, {true, true}},
        {",\"outputs\":[{\"name\":\"OUTPUT1\"},{\"parameters\":{\"binary_data\":true},\"name\":"
         "\"OUTPUT0\"}]",
         2,
         {true, false}},
        {",\"outputs\":[{\"name\":\"OUTPUT0\",\"parameters\":{\"binary_data\":false}},{\"name\":"
         "\"OUTPUT1\",\"shape\":[],\"datatype\":\"FP32\"}],\"parameters\":{\"binary_data_output\":"
         "true}",
         2,
         {false, true}},
        {",\"outputs\":[{\"name\":\"OUTPUT1\",\"parameters\":{\"x\":[]}}]", 1, {false}},
    };
    for (size_t i = 0; i < NR_COUNT(cases); i++) {
        snprintf(json, sizeof(json), "{%.*s%s}", len, inputs, cases[i].more);
        assert_int_equal(kit_json(&k, json, NULL, 0), NARU_OK);
        assert_int_equal(k.req.n_outputs, cases[i].n);
        for (unsigned o = 0; o < cases[i].n; o++) {
            assert_int_equal(k.req.outputs[o].binary, cases[i].binary[o]);
            assert_int_equal(k.req.outputs[o].index, cases[i].n == 1 ? 1 : o);
        }
    }
    snprintf(json, sizeof(json),
             "{%.*s,\"outputs\":[{\"name\":\"OUTPUT1\",\"parameters\":{\"classification\":3}}]}",
             len, inputs);
    assert_int_equal(kit_json(&k, json, NULL, 0), NARU_OK);
    assert_int_equal(k.req.outputs[0].classification, 3);
    kit_done(&k);
}

static void test_optional_and_rows(void **state)
{
    (void)state;
    struct kit k;
    kit_add_sub(&k);
    k.sig.n_inputs = 3;
    kit_spec(&k.in[2], "C", NARU_UINT8, 8, DIMS(-1));
    for (int i = 0; i < 3; i++) {
        k.in[i].optional = true;
        k.in[i].shape[1] = -1;
    }
#define INPUT(name, type, shape, data) \
    "{\"name\":\"" name "\",\"datatype\":\"" type "\",\"shape\":" shape ",\"data\":" data "}"
    assert_int_equal(kit_json(&k, "{\"inputs\":[]}", NULL, 0), NARU_OK);
    assert_int_equal(k.req.n_inputs, 0);
    assert_int_equal(k.req.rows, 1);
    assert_int_equal(kit_json(&k,
                              "{\"inputs\":[" INPUT("C", "UINT8", "[2,1]", "[1,2]") "," INPUT(
                                  "INPUT1", "FP32", "[2,1]", "[[1],[2]]") "]}",
                              NULL, 0),
                     NARU_OK);
    assert_int_equal(k.req.n_inputs, 2); /* ascending by index */
    assert_int_equal(k.req.inputs[0].index, 1);
    assert_int_equal(k.req.inputs[1].index, 2);
    assert_int_equal(k.req.rows, 2);
    kit_refused(&k,
                kit_json(&k,
                         "{\"inputs\":[" INPUT("C", "UINT8", "[2,1]", "[1,2]") "," INPUT(
                             "INPUT1", "FP32", "[1,2]", "[1,2]") "]}",
                         NULL, 0),
                "input 'C' has a batch of 2 rows, but input 'INPUT1' has 1");
    kit_done(&k);
}

/* ---------------------------------------------------------------------------------------------
 * Binary parts and raw bodies
 */

static void test_binary(void **state)
{
    (void)state;
    static const char json[] =
        "{\"inputs\":[{\"name\":\"INPUT1\",\"shape\":[1,16],\"datatype\":\"FP32\",\"parameters\":{"
        "\"binary_data_size\":64}},{\"name\":\"INPUT0\",\"parameters\":{\"binary_data_size\":64,"
        "\"x\":1"
        "},\"shape\":[1,16],\"datatype\":\"FP32\"}]} \r\n";
    uint8_t data[129];
    for (int i = 0; i < 129; i++) {
        data[i] = (uint8_t)i;
    }
    struct kit k;
    kit_add_sub(&k);
    assert_int_equal(kit_json(&k, json, data, 128), NARU_OK);
    assert_memory_equal(k.req.inputs[1].data, data, 64); /* in the order of the request */
    assert_memory_equal(k.req.inputs[0].data, data + 64, 64);
    assert_ptr_equal(k.req.inputs[0].data, k.req.inputs[1].data + 64); /* views */
    kit_refused(&k, kit_json(&k, json, data, 127),
                "input 'INPUT0': binary_data_size is 64, but 63 bytes are left");
    kit_refused(&k, kit_json(&k, json, data, 129), "1 bytes are left behind the data");
    kit_refused(&k, kit_json(&k, json, data, 0), "but 0 bytes are left behind the JSON part");
    kit_done(&k);
    kit_init(&k, NARU_FP16, 0, DIMS(2));
#define BINARY(type, shape, size)                                                \
    "{\"inputs\":[{\"name\":\"INPUT0\",\"shape\":" shape ",\"datatype\":\"" type \
    "\",\"parameters\":{\"binary_data_size\":" size "}}]}"
    assert_int_equal(kit_json(&k, BINARY("FP16", "[2]", "4"), data, 4), NARU_OK);
    kit_refused(&k, kit_json(&k, BINARY("FP16", "[2]", "3"), data, 3),
                "shape [2] of FP16 takes 4 bytes, but 3 were sent");
    kit_refused(&k, kit_json(&k, BINARY("FP16", "[2]", "\"4\""), data, 4), "an integer from 0");
    kit_refused(&k, kit_json(&k, BINARY("FP16", "[2]", "18446744073709551615"), data, 4),
                "binary_data_size is 18446744073709551615, but 4");
    struct nr_infer_body body;
    assert_int_equal(kit_json(&k, BINARY("FP16", "[2]", "4"), data, 4), NARU_OK);
    assert_null(echo(&k, false, &body));
    kit_refused(&k, k.err.status, "FP16 or BF16, which JSON cannot carry");
    kit_done(&k);
    kit_init(&k, NARU_BOOL, 0, DIMS(4));
    assert_int_equal(kit_json(&k, BINARY("BOOL", "[4]", "4"), "\0\1\2\377", 4), NARU_OK);
    assert_memory_equal(k.req.inputs[0].data, "\0\1\1\1", 4);
    kit_done(&k);
    kit_init(&k, NARU_BYTES, 0, DIMS(-1));
    assert_int_equal(kit_json(&k, BINARY("BYTES", "[2]", "9"), "\1\0\0\0a\0\0\0\0", 9), NARU_OK);
    kit_refused(&k, kit_json(&k, BINARY("BYTES", "[1]", "9"), "\1\0\0\0a\0\0\0\0", 9),
                "input 'INPUT0': 4 bytes follow the 1 BYTES elements");
    assert_int_equal(kit_json(&k, BINARY("BYTES", "[1]", "6"), "\2\0\0\0\377\376", 6), NARU_OK);
    assert_null(echo(&k, false, &body));
    kit_refused(&k, k.err.status, "holds bytes that are no UTF-8");
    assert_int_equal(kit_json(&k, BINARY("BYTES", "[0]", "0"), "", 0), NARU_OK);
    char *text = echo(&k, true, &body);
    assert_non_null(strstr(text, "\"binary_data_size\":0}}]}"));
    assert_false(body.has_binary);
    free(text);
    kit_done(&k);
}

static void test_header_length(void **state)
{
    (void)state;
    size_t n = 99;
    struct nr_err err = {0};
    assert_int_equal(nr_infer_header_length(NR_STR("0"), 10, &n, &err), NARU_OK);
    assert_int_equal(n, 0);
    assert_int_equal(nr_infer_header_length(NR_STR(" 10 "), 10, &n, &err), NARU_OK);
    assert_int_equal(n, 10);
    static const char *const bad[] = {"11",
                                      "",
                                      "abc",
                                      "1e3",
                                      "-1",
                                      "+5",
                                      "0x5",
                                      "5, 5",
                                      "4294967296",
                                      "18446744073709551616",
                                      "99999999999999999999999"};
    for (size_t i = 0; i < NR_COUNT(bad); i++) {
        assert_int_equal(nr_infer_header_length(nr_str_from(bad[i]), 10, &n, &err), NARU_INVALID);
    }
    assert_int_equal(n, 10);
}

static nr_status raw(struct kit *k, const char *body, size_t bytes)
{
    k->err = (struct nr_err){0};
    nr_arena_clear(&k->arena);
    struct nr_infer_parts parts = nr_infer_parts_of((struct nr_str){body, bytes}, 0, NULL);
    return nr_infer_raw_decode(&k->sig, &parts, &k->arena, &k->req, &k->err);
}

static void test_raw(void **state)
{
    (void)state;
    struct kit k;
    kit_init(&k, NARU_FP32, 8, DIMS(-1));
    assert_int_equal(raw(&k, "\0\0\200\77\0\0\0\100", 8), NARU_OK);
    assert_int_equal(k.req.rows, 1);
    assert_int_equal(k.req.inputs[0].shape[0], 1);
    assert_int_equal(k.req.inputs[0].shape[1], 2);
    assert_true(k.req.outputs[0].binary);
    kit_refused(&k, raw(&k, "\0\0\0\0\0\0\0", 7), "takes 4 bytes, but 7 were sent");
    assert_int_equal(raw(&k, NULL, 0), NARU_OK);
    assert_int_equal(k.req.inputs[0].shape[1], 0);
    kit_done(&k);
    kit_init(&k, NARU_FP32, 8, DIMS(2));
    kit_refused(&k, raw(&k, "0123456789012345", 16), "takes 8 bytes, but 16 were sent");
    kit_done(&k);
    kit_init(&k, NARU_FP32, 0, DIMS(-1, -1));
    kit_refused(&k, raw(&k, "0123", 4), "more than one of its dimensions varies");
    kit_done(&k);
    kit_init(&k, NARU_FP32, 0, DIMS(-1, 0));
    kit_refused(&k, raw(&k, "0123", 4), "takes 0 bytes, but 4 were sent"); /* no division by zero */
    kit_done(&k);
    kit_init(&k, NARU_BYTES, 8, DIMS(1));
    assert_int_equal(raw(&k, "hello", 5), NARU_OK);
    assert_memory_equal(k.req.inputs[0].data, "\5\0\0\0hello", 9);
    kit_done(&k);
    kit_init(&k, NARU_BYTES, 0, DIMS(2));
    kit_refused(&k, raw(&k, "hello", 5), "is one element, but its shape has more");
    kit_done(&k);
    kit_add_sub(&k);
    kit_refused(&k, raw(&k, "0123", 4), "for models with one input, this one has 2");
    kit_done(&k);
}

/* ---------------------------------------------------------------------------------------------
 * Classification
 */

static void classify(struct kit *k, const char *dtype, const char *shape, const char *data,
                     bool batched, uint32_t n, const char *want)
{
    static const struct nr_str labels[] = {NR_STR_INIT("zero"), NR_STR_INIT(""),
                                           NR_STR_INIT("two")};
    struct nr_infer_tensor t;
    k->in[0].dtype = k->out[0].dtype = nr_dtype_from_name(nr_str_from(dtype));
    if (kit_value(k, dtype, shape, data) != NARU_OK) {
        fail_msg("%s", k->err.text);
    }
    assert_int_equal(
        nr_infer_classify(&k->req.inputs[0], batched, n, labels, 3, &k->arena, &t, &k->err),
        NARU_OK);
    k->req.inputs[0] = t;
    struct nr_infer_body body;
    char *text = echo(k, false, &body);
    assert_non_null(text);
    if (strstr(text, want) == NULL) {
        fail_msg("%s, expected %s", text, want);
    }
    free(text);
}

static void test_classification(void **state)
{
    (void)state;
    struct kit k;
    kit_init(&k, NARU_FP32, 0, DIMS(-1, -1));
    classify(&k, "FP32", "[2,3]", "[1,3,2,9,-1,9]", true, 2,
             "\"shape\":[2,2],\"data\":[\"3.000000:1\",\"2.000000:2:two\",\"9.000000:0:zero\","
             "\"9.000000:2:two\"]");
    classify(&k, "FP64", "[1,4]", "[0.1,1e300,-0.0,0]", false, 9,
             ":1\",\"0.100000:0:zero\",\"-0.000000:2:two\",\"0.000000:3\"]");
    classify(&k, "INT64", "[1,3]", "[9007199254740993,9007199254740992,-1]", true, 3,
             "[\"9007199254740993:0:zero\",\"9007199254740992:1\",\"-1:2:two\"]");
    classify(&k, "UINT64", "[1,2]", "[1,18446744073709551615]", true, 1,
             "[\"18446744073709551615:1\"]");
    classify(&k, "INT8", "[1,3]", "[-128,127,0]", true, 3,
             "[\"127:1\",\"0:2:two\",\"-128:0:zero\"]");
    classify(&k, "UINT8", "[2,0]", "[]", true, 3, "\"shape\":[2,0],\"data\":[]");
    classify(&k, "UINT8", "[2,2]", "[3,9,9,1]", false, 2,
             "\"shape\":[2],\"data\":[\"9:1\",\"9:2:two\"]");
    struct nr_infer_tensor t;
    assert_int_equal(kit_value(&k, "UINT8", "[1,1]", "[1]"), NARU_OK);
    k.req.inputs[0].dtype = NARU_FP16;
    kit_refused(&k, nr_infer_classify(&k.req.inputs[0], true, 1, NULL, 0, &k.arena, &t, &k.err),
                "classification is not defined for datatype FP16");
    float nans[4] = {NAN, 1, INFINITY, -INFINITY};
    struct nr_infer_tensor scores = {.dtype = NARU_FP32,
                                     .rank = 1,
                                     .shape = {4},
                                     .elements = 4,
                                     .data = (const uint8_t *)nans,
                                     .bytes = sizeof(nans)};
    assert_int_equal(nr_infer_classify(&scores, false, 4, NULL, 0, &k.arena, &t, &k.err), NARU_OK);
    size_t at = 0;
    assert_true(nr_str_is(nr_tensor_bytes_next(t.data, &at), "inf:2"));
    assert_true(nr_str_is(nr_tensor_bytes_next(t.data, &at), "1.000000:1"));
    assert_true(nr_str_is(nr_tensor_bytes_next(t.data, &at), "-inf:3"));
    assert_true(nr_str_ends(nr_tensor_bytes_next(t.data, &at), NR_STR(":0")));
    kit_done(&k);
}

/* ---------------------------------------------------------------------------------------------
 * Size, memory, time
 */

/* {"inputs":[{… "data":[piece × n, last]}]}; caller frees. */
static char *big_request(const char *dtype, size_t elements, const char *piece, const char *last)
{
    size_t each = strlen(piece);
    size_t cap = 256 + elements * each + strlen(last);
    char *json = malloc(cap);
    assert_non_null(json);
    int n =
        snprintf(json, cap,
                 "{\"inputs\":[{\"name\":\"INPUT0\",\"shape\":[%zu],\"datatype\":\"%s\",\"data\":[",
                 elements, dtype);
    char *p = json + n;
    for (size_t i = 0; i + 1 < elements; i++, p += each) {
        memcpy(p, piece, each);
    }
    snprintf(p, cap - (size_t)(p - json), "%s]}]}", last);
    return json;
}

/* Answers of more than one chunk, in all types, and tensors of more than the arena holds. */
static void test_large(void **state)
{
    (void)state;
    static const struct {
        const char *dtype, *piece, *last;
    } cases[] = {{"FP32", "0.123456789,", "-1.5"},
                 {"FP64", "1.2345678901234567e-100,", "0"},
                 {"INT8", "-128,", "127"},
                 {"BOOL", "false,", "true"},
                 {"BYTES", "\"\\u0001ab\",", "\"\\u0002\""},
                 {"UINT64", "18446744073709551615,", "0"}};
    for (size_t i = 0; i < NR_COUNT(cases); i++) {
        struct kit k;
        kit_init(&k, nr_dtype_from_name(nr_str_from(cases[i].dtype)), 0, DIMS(-1));
        char *json = big_request(cases[i].dtype, 50000, cases[i].piece, cases[i].last);
        assert_int_equal(kit_json(&k, json, NULL, 0), NARU_OK);
        size_t bytes = k.req.inputs[0].bytes;
        assert_true((k.req.inputs[0].buf != NULL) == (bytes > 65536));
        assert_true(k.req.inputs[0].buf == NULL || (uintptr_t)k.req.inputs[0].data % 64 == 0);
        uint8_t *copy = malloc(bytes);
        memcpy(copy, k.req.inputs[0].data, bytes);
        struct nr_infer_body body;
        char *text = echo(&k, false, &body);
        assert_non_null(text);
        assert_true(body.n_parts > 1);
        char *list = strstr(text, "\"outputs\":[");
        memcpy(list, "{\"inputs\":", 10); /* as long: the answer becomes a request */
        assert_int_equal(kit_json(&k, list, NULL, 0),
                         NARU_INVALID); /* outputs are named otherwise */
        k.in[0].name = NR_STR("OUTPUT0");
        assert_int_equal(kit_json(&k, list, NULL, 0), NARU_OK);
        assert_int_equal(k.req.inputs[0].bytes, bytes);
        assert_memory_equal(k.req.inputs[0].data, copy, bytes);
        free(copy);
        free(text);
        free(json);
        kit_done(&k);
    }
}

/* A tiny answer lies in the request's arena, whatever the names: a buffer for each of the requests of
 * one turn would cost memory, and malloc where the pool is at its bound. */
static void test_tiny_answers_take_no_buffer(void **state)
{
    (void)state;
    static const struct {
        const char *id, *dtype;
        unsigned name_len;
    } cases[] = {{"", "FP32", 1},
                 {"0123456789abcdef0123456789abcdef0123", "FP64", 64},
                 {"\\u0001\\u0002\\u0003\\u0004", "INT64", 64},
                 {"1", "BOOL", 1}};
    for (size_t i = 0; i < NR_COUNT(cases); i++) {
        struct kit k;
        char name[80], json[400];
        kit_init(&k, nr_dtype_from_name(nr_str_from(cases[i].dtype)), 0, DIMS(-1, -1));
        memset(name, 'n', cases[i].name_len);
        name[cases[i].name_len] = '\0';
        k.in[0].name = k.out[0].name = nr_str_from(name);
        const char *one = strcmp(cases[i].dtype, "BOOL") == 0 ? "true" : "1";
        (void)snprintf(json, sizeof(json),
                       "{\"id\":\"%s\",\"inputs\":[{\"name\":\"%s\",\"datatype\":\"%s\",\"shape\":"
                       "[1,4],\"data\":[%s,%s,%s,%s]}]}",
                       cases[i].id, name, cases[i].dtype, one, one, one, one);
        assert_int_equal(kit_json(&k, json, NULL, 0), NARU_OK);
        for (int binary = 0; binary <= 1; binary++) {
            struct nr_infer_body body;
            uint64_t live = nr_buf_live_bytes();
            free(echo(&k, binary, &body));
            assert_int_equal(nr_buf_live_bytes(), live);
            assert_int_equal(body.n_parts, 1 + binary);
        }
        kit_done(&k);
    }
}

/* A shape that promises more than the text holds takes no memory for it. */
static void test_no_memory_for_promises(void **state)
{
    (void)state;
    struct kit k;
    for (int32_t dtype = 1; dtype < NARU_DTYPE_END; dtype++) {
        kit_init(&k, dtype, 0, DIMS(-1, -1));
        uint64_t live = nr_buf_live_bytes();
        assert_int_equal(kit_value(&k, naru_dtype_name(dtype), "[2147483647,1024]", "[1]"),
                         NARU_INVALID);
        assert_true(nr_buf_live_bytes() - live < 65536 && k.arena.total_bytes < 65536);
        kit_done(&k);
    }
}

static double seconds_of(struct kit *k, const char *json)
{
    double least = 1e9;
    for (int i = 0; i < 3; i++) {
        struct timespec a;
        struct timespec b;
        size_t len = strlen(json);
        nr_arena_clear(&k->arena);
        (void)clock_gettime(CLOCK_THREAD_CPUTIME_ID, &a);
        struct nr_infer_parts parts = {.json = {json, len}};
        nr_status st = nr_infer_json_decode(&k->sig, &parts, &k->arena, &k->req, &k->err);
        (void)clock_gettime(CLOCK_THREAD_CPUTIME_ID, &b);
        assert_true(st == NARU_OK || st == NARU_INVALID);
        double took = (double)(b.tv_sec - a.tv_sec) + (double)(b.tv_nsec - a.tv_nsec) * 1e-9;
        least = took < least ? took : least;
    }
    return least;
}

/* Hostile bodies of n and 4n bytes: about four times as long, where quadratic work takes sixteen. */
static void test_linear_time(void **state)
{
    (void)state;
    static const struct {
        const char *dtype, *piece, *last;
    } cases[] = {{"FP32", "0,", "0"},
                 {"BYTES", "\"\",", "\"\""},
                 {"BYTES", "\"\\u0041\",", "\"\""},
                 {"FP64", "  \n 123456789012345678901234567890e-10,", "0"},
                 {"UINT8", "0,", "256"}};
    for (size_t i = 0; i < NR_COUNT(cases); i++) {
        double took[2];
        for (int scale = 0; scale < 2; scale++) {
            struct kit k;
            kit_init(&k, nr_dtype_from_name(nr_str_from(cases[i].dtype)), 0, DIMS(-1));
            char *json =
                big_request(cases[i].dtype, scale ? 400000 : 100000, cases[i].piece, cases[i].last);
            took[scale] = seconds_of(&k, json);
            free(json);
            kit_done(&k);
        }
        if (took[1] > 10 * took[0] + 0.003) {
            fail_msg("%s: %.2f ms, four times as much %.2f ms", cases[i].dtype, took[0] * 1e3,
                     took[1] * 1e3);
        }
    }
}

/* Each allocation of a decode and encode fails in turn: always NARU_NOMEM with a text, no leak, and
 * when none fails any more, success. */
static void test_out_of_memory(void **state)
{
    (void)state;
    char params[4096] = "";
    size_t at = 0;
    for (int i = 0; i < 40; i++) {
        at += (size_t)snprintf(params + at, sizeof(params) - at, "%s\"p%d\":\"\\u00e9%d\"",
                               i ? "," : "", i, i);
    }
    char *inputs = big_request("FP32", 30000, "0.5,", "1");
    size_t len = strlen(inputs);
    char *json = malloc(len + at + 64);
    snprintf(json, len + at + 64, "%.*s,\"parameters\":{%s}}", (int)len - 1, inputs, params);
    struct kit k;
    kit_init(&k, NARU_FP32, 0, DIMS(-1));
    unsigned failures = 0;
    for (uint64_t n = 1;; n++) {
        struct nr_infer_body body;
        nr_arena_done(&k.arena);
        nr_arena_thread_done();
        nr_buf_thread_done();
        nr_arena_init(&k.arena, 0);
        k.err = (struct nr_err){0};
        len = strlen(json);
        nr_mem_fail_after(n, n % 2 == 0);
        struct nr_infer_parts parts = {.json = {json, len}};
        nr_status st = nr_infer_json_decode(&k.sig, &parts, &k.arena, &k.req, &k.err);
        char *text = st == NARU_OK ? echo(&k, false, &body) : NULL;
        nr_mem_fail_after(0, false);
        if (text != NULL) {
            free(text);
            break;
        }
        assert_int_equal(k.err.status, NARU_NOMEM);
        assert_true(k.err.text[0] != '\0');
        failures++;
        assert_true(n < 1000);
    }
    assert_true(failures >= 5);
    free(inputs);
    free(json);
    kit_done(&k);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shared_dimensions),
        cmocka_unit_test(test_two_inputs),
        cmocka_unit_test(test_key_order),
        cmocka_unit_test(test_answer),
        cmocka_unit_test(test_values),
        cmocka_unit_test(test_float_rounding),
        cmocka_unit_test(test_nesting),
        cmocka_unit_test(test_shapes),
        cmocka_unit_test(test_request_errors),
        cmocka_unit_test(test_params),
        cmocka_unit_test(test_outputs),
        cmocka_unit_test(test_optional_and_rows),
        cmocka_unit_test(test_binary),
        cmocka_unit_test(test_header_length),
        cmocka_unit_test(test_raw),
        cmocka_unit_test(test_classification),
        cmocka_unit_test(test_large),
        cmocka_unit_test(test_tiny_answers_take_no_buffer),
        cmocka_unit_test(test_no_memory_for_promises),
        cmocka_unit_test(test_linear_time),
        cmocka_unit_test(test_out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
