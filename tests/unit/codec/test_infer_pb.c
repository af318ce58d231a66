/* ModelInferRequest and ModelInferResponse on the wire, against protobuf-c and against hostile bytes. */
#include "unit/codec/infer_kit.h"

#include "fuzz/infer_pb_check.h"

/* ---------------------------------------------------------------------------------------------
 * Messages made by protobuf-c
 */

typedef Inference__ModelInferRequest pb_request;

struct builder {
    pb_request m;
    pb_input inputs[NARU_DTYPE_END];
    pb_input *input_list[NARU_DTYPE_END];
    Inference__InferTensorContents contents[NARU_DTYPE_END];
    ProtobufCBinaryData raws[NARU_DTYPE_END];
    int64_t shape[2];
};

static void build(struct builder *b, int64_t rows, int64_t columns)
{
    inference__model_infer_request__init(&b->m);
    b->m.model_name = (char *)(uintptr_t)"model";
    b->m.id = (char *)(uintptr_t)"request-1";
    b->m.inputs = b->input_list;
    b->m.raw_input_contents = b->raws;
    b->shape[0] = rows;
    b->shape[1] = columns;
}

static Inference__InferTensorContents *add(struct builder *b, int32_t dtype)
{
    size_t i = b->m.n_inputs++;
    pb_input *in = &b->inputs[i];
    inference__model_infer_request__infer_input_tensor__init(in);
    inference__infer_tensor_contents__init(&b->contents[i]);
    in->name = in->datatype = (char *)(uintptr_t)naru_dtype_name(dtype);
    in->shape = b->shape;
    in->n_shape = 2;
    b->input_list[i] = in;
    return &b->contents[i];
}

static uint8_t *pack(const pb_request *m, size_t *size)
{
    *size = inference__model_infer_request__get_packed_size(m);
    uint8_t *bytes = malloc(*size + 1);
    assert_non_null(bytes);
    inference__model_infer_request__pack(m, bytes);
    return bytes;
}

/* Every datatype with typed contents, extremes included. */
static void build_typed(struct builder *b)
{
    static protobuf_c_boolean bools[] = {1, 0, 1, 1};
    static int32_t ints8[] = {-128, 127, 0, -1};
    static int32_t ints16[] = {-32768, 32767, 0, -1};
    static int32_t ints32[] = {INT32_MIN, INT32_MAX, 0, -1};
    static int64_t ints64[] = {INT64_MIN, INT64_MAX, 0, -1};
    static uint32_t uints8[] = {0, 255, 1, 128};
    static uint32_t uints16[] = {0, 65535, 1, 128};
    static uint32_t uints32[] = {0, UINT32_MAX, 1, 128};
    static uint64_t uints64[] = {0, UINT64_MAX, 1, 128};
    static float floats[] = {-0.0f, 1.5f, 3.4028235e38f, 1e-45f};
    static double doubles[] = {-0.0, 1.5, 1.7976931348623157e308, 5e-324};
    static uint8_t text[] = {'a', 0, 0xff, 'b'};
    static ProtobufCBinaryData strings[] = {{4, text}, {0, text}, {1, text}, {2, text}};
    memset(b, 0, sizeof(*b));
    build(b, 2, 2);
#define TYPED(dtype, field, values)                        \
    do {                                                   \
        Inference__InferTensorContents *c = add(b, dtype); \
        c->n_##field = 4;                                  \
        c->field = values;                                 \
        b->inputs[b->m.n_inputs - 1].contents = c;         \
    } while (0)
    TYPED(NARU_BOOL, bool_contents, bools);
    TYPED(NARU_INT8, int_contents, ints8);
    TYPED(NARU_INT16, int_contents, ints16);
    TYPED(NARU_INT32, int_contents, ints32);
    TYPED(NARU_INT64, int64_contents, ints64);
    TYPED(NARU_UINT8, uint_contents, uints8);
    TYPED(NARU_UINT16, uint_contents, uints16);
    TYPED(NARU_UINT32, uint_contents, uints32);
    TYPED(NARU_UINT64, uint64_contents, uints64);
    TYPED(NARU_FP32, fp32_contents, floats);
    TYPED(NARU_FP64, fp64_contents, doubles);
    TYPED(NARU_BYTES, bytes_contents, strings);
#undef TYPED
}

static void test_typed(void **state)
{
    (void)state;
    struct builder b;
    size_t size;
    build_typed(&b);
    uint8_t *bytes = pack(&b.m, &size);
    assert_true(pb_check(bytes, size));
    free(bytes);
}

/* Every datatype raw, FP16 and BF16 included, one of them larger than what is copied inline. */
static void build_raw(struct builder *b, uint8_t *data, int64_t columns)
{
    memset(b, 0, sizeof(*b));
    build(b, 1, columns);
    for (int32_t dtype = 1; dtype < NARU_DTYPE_END; dtype++) {
        (void)add(b, dtype);
        size_t size = dtype == NARU_BYTES ? 4 : naru_dtype_bytes(dtype);
        b->raws[b->m.n_raw_input_contents++] = (ProtobufCBinaryData){(size_t)columns * size, data};
    }
}

static void test_raw(void **state)
{
    (void)state;
    static uint8_t zeros[8 * 1000]; /* as BYTES: empty elements */
    struct builder b;
    size_t size;
    for (int64_t columns = 0; columns <= 1000; columns += 250) {
        build_raw(&b, zeros, columns);
        uint8_t *bytes = pack(&b.m, &size);
        assert_true(pb_check(bytes, size));
        free(bytes);
    }
}

/* Raw tensors are views: no copy, and the owner is recorded. */
static void test_zero_copy(void **state)
{
    (void)state;
    static float data[2000];
    struct builder b = {0};
    struct kit k;
    size_t size;
    kit_init(&k, NARU_FP32, 4, DIMS(-1));
    build(&b, 2, 1000);
    (void)add(&b, NARU_FP32);
    b.inputs[0].name = (char *)(uintptr_t)"INPUT0";
    b.raws[0] = (ProtobufCBinaryData){sizeof(data), (uint8_t *)data};
    b.m.n_raw_input_contents = 1;
    uint8_t *bytes = pack(&b.m, &size);
    struct nr_buf *owner = nr_buf_try_new(64);
    assert_int_equal(nr_infer_pb_decode(&k.sig, (struct nr_str){(char *)bytes, size}, owner,
                                        &k.arena, &k.req, &k.err),
                     NARU_OK);
    assert_int_equal(k.req.rows, 2);
    assert_true(k.req.inputs[0].data > bytes && k.req.inputs[0].data < bytes + size);
    assert_ptr_equal(k.req.inputs[0].buf, owner);
    assert_true(k.req.outputs[0].binary);
    struct nr_infer_pb_body body;
    struct nr_infer_response r = {
        .outputs = k.req.inputs, .how = k.req.outputs, .n_outputs = 1, .model_name = NR_STR("m")};
    assert_int_equal(nr_infer_pb_encode(&k.sig, &r, &k.arena, &body, &k.err), NARU_OK);
    assert_int_equal(body.n_parts, 2);
    assert_ptr_equal(body.parts[1].ptr, k.req.inputs[0].data);
    nr_buf_unref(owner);
    free(bytes);
    kit_done(&k);
}

/* ---------------------------------------------------------------------------------------------
 * Refusals
 */

static nr_status decode(struct kit *k, const pb_request *m)
{
    size_t size;
    uint8_t *bytes = pack(m, &size);
    k->err = (struct nr_err){0};
    nr_status st = nr_infer_pb_decode(&k->sig, (struct nr_str){(char *)bytes, size}, NULL,
                                      &k->arena, &k->req, &k->err);
    free(bytes);
    return st;
}

static void test_refused(void **state)
{
    (void)state;
    static float floats[4] = {1, 2, 3, 4};
    static double doubles[4] = {1, 2, 3, 4};
    static int32_t ints[4] = {1, 2, 300, 4};
    struct builder b = {0};
    struct kit k;
    kit_init(&k, NARU_FP32, 0, DIMS(2, 2));
    build(&b, 2, 2);
    Inference__InferTensorContents *c = add(&b, NARU_FP32);
    b.inputs[0].name = (char *)(uintptr_t)"INPUT0";
    kit_refused(&k, decode(&k, &b.m), "takes 4 elements, 0 came");
    b.inputs[0].contents = c;
    c->fp32_contents = floats;
    c->n_fp32_contents = 3;
    kit_refused(&k, decode(&k, &b.m), "takes 4 elements, 3 came");
    c->n_fp32_contents = 4;
    assert_int_equal(decode(&k, &b.m), NARU_OK);
    b.raws[0] = (ProtobufCBinaryData){16, (uint8_t *)floats};
    b.m.n_raw_input_contents = 1;
    kit_refused(&k, decode(&k, &b.m), "raw_input_contents as well");
    b.inputs[0].contents = NULL;
    assert_int_equal(decode(&k, &b.m), NARU_OK);
    b.raws[0].len = 15;
    kit_refused(&k, decode(&k, &b.m), "takes 16 bytes, but 15 were sent");
    b.m.n_raw_input_contents = 2;
    kit_refused(&k, decode(&k, &b.m), "2 raw_input_contents for 1 inputs");
    b.m.n_raw_input_contents = 0;
    b.inputs[0].contents = c;
    c->n_fp32_contents = 0;
    c->n_fp64_contents = 4;
    c->fp64_contents = doubles;
    kit_refused(&k, decode(&k, &b.m), "fp64_contents cannot carry datatype FP32");
    c->n_fp64_contents = 0;
    c->n_int_contents = 4;
    c->int_contents = ints;
    k.in[0].dtype = NARU_INT8;
    kit_refused(&k, decode(&k, &b.m), "datatype 'FP32', the model expects 'INT8'");
    b.inputs[0].datatype = (char *)(uintptr_t)"INT8";
    kit_refused(&k, decode(&k, &b.m), "the value 300 does not fit INT8");
    ints[2] = -128;
    assert_int_equal(decode(&k, &b.m), NARU_OK);
    b.shape[0] = -2;
    kit_refused(&k, decode(&k, &b.m), "unexpected shape [-2,2], the model expects [2,2]");
    b.inputs[0].name = (char *)(uintptr_t)"X";
    kit_refused(&k, decode(&k, &b.m), "unexpected input 'X', the model's inputs are 'INPUT0'");
    b.m.n_inputs = 0;
    kit_refused(&k, decode(&k, &b.m), "missing input 'INPUT0'");
    kit_done(&k);
}

/* As in JSON: dimensions that the model gives one name have one size. */
static void test_shared_dimensions(void **state)
{
    (void)state;
    static const struct nr_shared_dim shared[] = {{0, 1, true, "L"}, {1, 1, false, "L"}};
    static uint8_t zeros[64];
    struct kit k;
    kit_init(&k, NARU_UINT8, 8, DIMS(-1));
    kit_spec(&k.in[0], "UINT8", NARU_UINT8, 8, DIMS(-1));
    kit_spec(&k.in[1], "INT8", NARU_INT8, 8, DIMS(-1));
    k.sig.n_inputs = 2;
    k.sig.shared = shared;
    k.sig.n_shared = 2;
    for (int64_t columns = 3; columns <= 4; columns++) {
        struct builder b;
        size_t size;
        memset(&b, 0, sizeof(b));
        build(&b, 2, 4);
        (void)add(&b, NARU_INT8);
        (void)add(&b, NARU_UINT8);
        int64_t own[2] = {2, columns};
        b.inputs[1].shape = own;
        b.raws[0] = (ProtobufCBinaryData){8, zeros};
        b.raws[1] = (ProtobufCBinaryData){(size_t)(2 * columns), zeros};
        b.m.n_raw_input_contents = 2;
        uint8_t *bytes = pack(&b.m, &size);
        struct nr_str message = {(const char *)bytes, size};
        nr_status st = nr_infer_pb_decode(&k.sig, message, NULL, &k.arena, &k.req, &k.err);
        if (columns == 4) {
            assert_int_equal(st, NARU_OK);
        } else {
            kit_refused(&k, st, "inputs 'UINT8' and 'INT8' disagree");
            kit_refused(&k, st, "'L', so they must be equal, but they are 3 and 4");
        }
        nr_arena_clear(&k.arena);
        free(bytes);
    }
    kit_done(&k);
}

static void test_params(void **state)
{
    (void)state;
    typedef Inference__ModelInferRequest__ParametersEntry entry;
    static int32_t zeros[4];
    struct builder b = {0};
    struct kit k;
    entry entries[8];
    entry *list[8];
    Inference__InferParameter values[8];
    kit_init(&k, NARU_INT32, 0, DIMS(2, 2));
    build(&b, 2, 2);
    (void)add(&b, NARU_INT32);
    b.inputs[0].name = (char *)(uintptr_t)"INPUT0";
    b.raws[0] = (ProtobufCBinaryData){16, (uint8_t *)zeros};
    b.m.n_raw_input_contents = 1;
    for (int i = 0; i < 8; i++) {
        inference__model_infer_request__parameters_entry__init(&entries[i]);
        inference__infer_parameter__init(&values[i]);
        entries[i].value = &values[i];
        list[i] = &entries[i];
    }
    b.m.parameters = list;
    b.m.n_parameters = 7;
    static const char *const names[] = {"sequence_id",
                                        "priority",
                                        "timeout",
                                        "x",
                                        "x",
                                        "sequence_start",
                                        "triton_enable_empty_final_response"};
    for (int i = 0; i < 7; i++) {
        entries[i].key = (char *)(uintptr_t)names[i];
    }
    values[0].parameter_choice_case = INFERENCE__INFER_PARAMETER__PARAMETER_CHOICE_STRING_PARAM;
    values[0].string_param = (char *)(uintptr_t)"seq";
    values[1].parameter_choice_case = INFERENCE__INFER_PARAMETER__PARAMETER_CHOICE_UINT64_PARAM;
    values[1].uint64_param = UINT64_MAX;
    values[2].parameter_choice_case = INFERENCE__INFER_PARAMETER__PARAMETER_CHOICE_INT64_PARAM;
    values[2].int64_param = 7;
    values[3] = values[2];
    values[4].parameter_choice_case = INFERENCE__INFER_PARAMETER__PARAMETER_CHOICE_DOUBLE_PARAM;
    values[4].double_param = 2.5;
    values[5].parameter_choice_case = INFERENCE__INFER_PARAMETER__PARAMETER_CHOICE_BOOL_PARAM;
    values[5].bool_param = 1;
    values[6] = values[5];
    size_t size;
    uint8_t *bytes = pack(&b.m, &size);
    assert_int_equal(nr_infer_pb_decode(&k.sig, (struct nr_str){(char *)bytes, size}, NULL,
                                        &k.arena, &k.req, &k.err),
                     NARU_OK);
    assert_true(nr_str_is(k.req.sequence_name, "seq") && k.req.sequence_start);
    assert_true(k.req.priority == UINT64_MAX && k.req.timeout_us == 7);
    assert_int_equal(k.req.n_params, 2); /* "x" came twice: a map, the last one counts */
    assert_true(k.req.params[0].kind == NR_PARAM_DOUBLE && k.req.params[0].d == 2.5);
    free(bytes);
    entries[6].key = (char *)(uintptr_t)"triton_other";
    kit_refused(&k, decode(&k, &b.m), "'triton_' are reserved");
    b.m.n_parameters = 2;
    values[1].parameter_choice_case = INFERENCE__INFER_PARAMETER__PARAMETER_CHOICE__NOT_SET;
    kit_refused(&k, decode(&k, &b.m), "parameter 'priority' has no value");
    values[1].parameter_choice_case = INFERENCE__INFER_PARAMETER__PARAMETER_CHOICE_INT64_PARAM;
    values[1].int64_param = -1;
    kit_refused(&k, decode(&k, &b.m), "parameter 'priority' must be an integer from 0");
    kit_done(&k);
}

/* Bytes that no serializer writes. */
static void test_hostile(void **state)
{
    (void)state;
    struct nr_infer_pb_head head;
    struct nr_err err;
    static const struct {
        const char *bytes;
        size_t len;
    } bad[] = {
        {"\x0a", 1}, /* no length */
        {"\x0a\x05"
         "ab",
         4},                                                      /* length beyond the end */
        {"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", 11},     /* 2^64 - 1 */
        {"\x0a\x02\xc3\x28", 4},                                  /* invalid UTF-8 */
        {"\x08\x01", 2},                                          /* model_name as a number */
        {"\x00\x01", 2},                                          /* field number 0 */
        {"\x7b\x7c", 2},                                          /* a group */
        {"\x7e", 1},                                              /* wire type 6 */
        {"\x78\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01", 12}, /* a varint of 11 bytes */
        {"\x78\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02", 11},     /* more than 64 bits */
        {"\xf8\xff\xff\xff\xff\x0f\x01", 7},                      /* a tag beyond 32 bits */
        {"\x79\x01\x02", 3},                                      /* a fixed64 of 2 bytes */
        {"\xf8\x80\x80\x80\x80\x00\x01", 7},                      /* a tag of 6 bytes */
        {"\x7a\x80\x80\x80\x80\x80\x00", 7},                      /* a length of 6 bytes */
    };
    for (size_t i = 0; i < NR_COUNT(bad); i++) {
        char *copy = malloc(bad[i].len);
        memcpy(copy, bad[i].bytes, bad[i].len);
        err = (struct nr_err){0};
        assert_int_equal(nr_infer_pb_peek((struct nr_str){copy, bad[i].len}, &head, &err),
                         NARU_INVALID);
        assert_non_null(strstr(err.text, "malformed ModelInferRequest at byte"));
        assert_false(pb_check((const uint8_t *)copy, bad[i].len));
        free(copy);
    }
    assert_int_equal(nr_infer_pb_peek((struct nr_str){NULL, 0}, &head, NULL), NARU_OK);
    assert_int_equal(head.model_name.len, 0);
}

/* Every cut and thousands of mutations of good messages: never a crash, never more than protobuf-c
 * takes, and the same values where both take it. */
static void test_mutations(void **state)
{
    (void)state;
    static uint8_t zeros[64];
    struct builder b;
    uint64_t random = 88172645463325252u;
    unsigned taken = 0;
    for (int kind = 0; kind < 2; kind++) {
        size_t size;
        kind == 0 ? build_typed(&b) : build_raw(&b, zeros, 3);
        uint8_t *bytes = pack(&b.m, &size);
        for (size_t cut = 0; cut < size; cut++) {
            taken += pb_check(bytes, cut);
        }
        uint8_t *copy = malloc(size);
        for (int i = 0; i < 30000; i++) {
            memcpy(copy, bytes, size);
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            for (uint64_t n = 0; n <= (random >> 60) % 3; n++) {
                copy[(random >> (8 * n)) % size] ^= (uint8_t)(1u << (random >> (40 + 3 * n)) % 8);
            }
            taken += pb_check(copy, size);
        }
        free(copy);
        free(bytes);
    }
    assert_true(taken > 5000); /* the comparison did run */
}

/* Two million unknown fields, and packed data, take time in proportion; nothing is allocated for
 * fields that are skipped. */
static void test_many_fields(void **state)
{
    (void)state;
    size_t n = 2000000;
    char *bytes = malloc(2 * n);
    for (size_t i = 0; i < n; i++) {
        bytes[2 * i] = 0x78; /* field 15, a varint */
        bytes[2 * i + 1] = 1;
    }
    struct kit k;
    kit_init(&k, NARU_FP32, 0, DIMS(1));
    k.in[0].optional = true;
    uint64_t before = nr_mem_allocs();
    assert_int_equal(
        nr_infer_pb_decode(&k.sig, (struct nr_str){bytes, 2 * n}, NULL, &k.arena, &k.req, &k.err),
        NARU_OK);
    assert_true(nr_mem_allocs() - before <= 2);
    free(bytes);
    kit_done(&k);
}

/* A request refused for want of memory at each allocation in turn, until none fails. */
static void test_out_of_memory(void **state)
{
    (void)state;
    static uint8_t big[300000];
    struct builder b = {0};
    struct kit k;
    size_t size;
    kit_init(&k, NARU_BOOL, 0, DIMS(-1, -1));
    build(&b, 1, sizeof(big));
    (void)add(&b, NARU_BOOL);
    memset(big, 2, sizeof(big)); /* must be copied to become 0 and 1 */
    b.inputs[0].name = (char *)(uintptr_t)"INPUT0";
    b.raws[0] = (ProtobufCBinaryData){sizeof(big), big};
    b.m.n_raw_input_contents = 1;
    uint8_t *bytes = pack(&b.m, &size);
    unsigned failures = 0;
    nr_status st = NARU_NOMEM;
    for (uint64_t n = 1; st != NARU_OK; n++) {
        nr_arena_done(&k.arena);
        nr_arena_init(&k.arena, 0);
        nr_arena_thread_done();
        nr_buf_thread_done();
        struct nr_infer_pb_body body;
        nr_mem_fail_after(n, false);
        st = nr_infer_pb_decode(&k.sig, (struct nr_str){(char *)bytes, size}, NULL, &k.arena,
                                &k.req, &k.err);
        if (st == NARU_OK) {
            struct nr_infer_response r = {
                .outputs = k.req.inputs, .how = k.req.outputs, .n_outputs = 1};
            st = nr_infer_pb_encode(&k.sig, &r, &k.arena, &body, &k.err);
        }
        nr_mem_fail_after(0, false);
        assert_true(st == NARU_OK || st == NARU_NOMEM);
        failures += st == NARU_NOMEM;
        assert_true(n < 100);
    }
    assert_true(failures >= 2);
    assert_int_equal(k.req.inputs[0].data[sizeof(big) - 1], 1);
    free(bytes);
    kit_done(&k);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_typed),         cmocka_unit_test(test_raw),
        cmocka_unit_test(test_zero_copy),     cmocka_unit_test(test_refused),
        cmocka_unit_test(test_params),        cmocka_unit_test(test_hostile),
        cmocka_unit_test(test_mutations),     cmocka_unit_test(test_many_fields),
        cmocka_unit_test(test_out_of_memory), cmocka_unit_test(test_shared_dimensions),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
