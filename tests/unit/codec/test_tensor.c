/* Shapes to sizes without overflow, names of datatypes, and the serialized form of BYTES. */
#include "unit/codec/infer_kit.h"

static void test_sizes(void **state)
{
    (void)state;
    const int64_t big = NR_DIM_MAX;
    static const struct {
        int64_t shape[6];
        uint32_t rank;
        int64_t elements;
    } good[] = {
        {{0}, 0, 1},        {{5}, 1, 5},
        {{2, 3, 4}, 3, 24}, {{0}, 1, 0},
        {{7, 0, 9}, 3, 0},  {{NR_DIM_MAX, NR_DIM_MAX, NR_DIM_MAX, 0}, 4, 0},
        {{1}, 1, 1},        {{NR_DIM_MAX}, 1, NR_DIM_MAX},
    };
    for (size_t i = 0; i < NR_COUNT(good); i++) {
        int64_t n = -1;
        int64_t bytes = -1;
        assert_true(nr_tensor_elements(good[i].shape, good[i].rank, &n));
        assert_int_equal(n, good[i].elements);
        assert_true(nr_tensor_bytes(NARU_FP64, good[i].shape, good[i].rank, &bytes));
        assert_int_equal(bytes, 8 * n);
        assert_true(nr_tensor_bytes(NARU_BYTES, good[i].shape, good[i].rank, &bytes));
        assert_int_equal(bytes, 4 * n);
    }
    int64_t n = -1;
    assert_false(nr_tensor_elements((int64_t[]){-1}, 1, &n));
    assert_false(nr_tensor_elements((int64_t[]){INT64_MAX}, 1, &n));
    assert_false(nr_tensor_elements((int64_t[]){INT64_MIN}, 1, &n));
    assert_false(nr_tensor_elements((int64_t[]){big + 1}, 1, &n));
    assert_false(nr_tensor_elements((int64_t[]){big, big, big}, 3, &n));
    assert_false(nr_tensor_elements((int64_t[]){0, -1}, 2, &n));
    int64_t ones[NARU_MAX_RANK + 1];
    for (int i = 0; i <= NARU_MAX_RANK; i++) {
        ones[i] = 1;
    }
    assert_true(nr_tensor_elements(ones, NARU_MAX_RANK, &n));
    assert_false(nr_tensor_elements(ones, NARU_MAX_RANK + 1, &n));
    assert_int_equal(n, 1);
    /* 2^31-1 squared fits 63 bits as elements, but not as bytes of FP64 */
    assert_true(nr_tensor_elements((int64_t[]){big, big}, 2, &n));
    assert_false(nr_tensor_bytes(NARU_FP64, (int64_t[]){big, big}, 2, &n));
    assert_true(nr_tensor_bytes(NARU_UINT8, (int64_t[]){big, big}, 2, &n));
    assert_false(nr_tensor_bytes(NARU_DTYPE_NONE, (int64_t[]){1}, 1, &n));
    assert_false(nr_tensor_bytes(99, (int64_t[]){1}, 1, &n));
}

static void test_names(void **state)
{
    (void)state;
    for (int32_t i = 1; i < NARU_DTYPE_END; i++) {
        assert_int_equal(nr_dtype_from_name(nr_str_from(naru_dtype_name(i))), i);
    }
    static const char *const bad[] = {"", "fp32", "FP3", "FP321", "STRING", "TYPE_FP32", "FP32 "};
    for (size_t i = 0; i < NR_COUNT(bad); i++) {
        assert_int_equal(nr_dtype_from_name(nr_str_from(bad[i])), NARU_DTYPE_NONE);
    }
}

static void test_shape_text(void **state)
{
    (void)state;
    char text[NR_SHAPE_TEXT_MAX];
    assert_string_equal(nr_shape_text((int64_t[]){1, -1, 224}, 3, text, sizeof(text)),
                        "[1,-1,224]");
    assert_string_equal(nr_shape_text(NULL, 0, text, sizeof(text)), "[]");
    int64_t wide[NARU_MAX_RANK];
    for (int i = 0; i < NARU_MAX_RANK; i++) {
        wide[i] = INT64_MIN;
    }
    assert_true(strlen(nr_shape_text(wide, NARU_MAX_RANK, text, sizeof(text))) < sizeof(text));
}

static nr_status check(const char *data, size_t bytes, int64_t elements, struct nr_err *err)
{
    uint8_t *copy = malloc(bytes + (bytes == 0));
    memcpy(copy, data, bytes);
    *err = (struct nr_err){0};
    nr_status st = nr_tensor_bytes_check(copy, bytes, elements, "input 'X'", err);
    free(copy);
    return st;
}

static void test_bytes(void **state)
{
    (void)state;
    struct nr_err err;
    assert_int_equal(check("", 0, 0, &err), NARU_OK);
    assert_int_equal(check("\1\0\0\0a\0\0\0\0\2\0\0\0bc", 15, 3, &err), NARU_OK);
    assert_int_equal(check("", 0, 1, &err), NARU_INVALID);
    assert_non_null(strstr(err.text, "shape says 1 BYTES elements, but the data holds 0"));
    assert_int_equal(check("\1\0\0\0a", 5, 0, &err), NARU_INVALID);
    assert_int_equal(check("\1\0\0\0a\0\0", 7, 2, &err), NARU_INVALID);
    assert_non_null(strstr(err.text, "too few"));
    assert_int_equal(check("\5\0\0\0abc", 7, 1, &err), NARU_INVALID);
    assert_non_null(strstr(err.text, "states a length of 5 bytes, but only 3 follow"));
    assert_int_equal(check("\377\377\377\377a", 5, 1, &err), NARU_INVALID);
    assert_int_equal(check("\0\0\0\0\0\0\0\0", 8, 1, &err), NARU_INVALID);
    assert_non_null(strstr(err.text, "4 bytes follow the 1 BYTES elements"));
    size_t at = 0;
    const uint8_t data[] = "\1\0\0\0a\0\0\0\0\2\0\0\0bc";
    assert_true(nr_str_is(nr_tensor_bytes_next(data, &at), "a"));
    assert_true(nr_str_is(nr_tensor_bytes_next(data, &at), ""));
    assert_true(nr_str_is(nr_tensor_bytes_next(data, &at), "bc"));
    assert_int_equal(at, 15);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_shape_text),
        cmocka_unit_test(test_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
