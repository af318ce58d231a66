/* Answers as one block: what is packed comes back, and nothing else gets through. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/mem.h"
#include "sched/answer.h"

static const struct nr_io_spec specs[] = {
    {.dtype = NARU_FP32, .rank = 2, .shape = {-1, 3}, .batched = true},
    {.dtype = NARU_BYTES, .rank = 2, .shape = {-1, 1}, .batched = true},
    {.dtype = NARU_INT64, .rank = 2, .shape = {-1, -1}, .batched = true},
};
static const struct nr_signature sig = {.outputs = specs, .n_outputs = 3, .max_batch_size = 8};
static struct nr_infer_output asked[] = {{.index = 0}, {.index = 1}, {.index = 2}};
static const struct nr_infer_request in = {.rows = 2, .outputs = asked, .n_outputs = 3};

static const float floats[6] = {1, 2, 3, 4, 5, 6};
static const uint8_t strings[] = {2, 0, 0, 0, 'a', 'b', 0, 0, 0, 0};

static struct nr_buf *packed(void)
{
    static const int64_t none[1];
    const struct nr_infer_tensor all[] = {
        {.index = 0,
         .dtype = NARU_FP32,
         .rank = 2,
         .shape = {2, 3},
         .data = (const uint8_t *)floats,
         .bytes = 24},
        {.index = 1,
         .dtype = NARU_BYTES,
         .rank = 2,
         .shape = {2, 1},
         .data = strings,
         .bytes = sizeof strings},
        {.index = 2,
         .dtype = NARU_INT64,
         .rank = 2,
         .shape = {2, 0},
         .data = (const uint8_t *)none},
    };
    struct nr_buf *b = nr_answer_pack(all, 3);
    assert_non_null(b);
    return b;
}

static void test_round_trip(void **state)
{
    (void)state;
    struct nr_buf *b = packed();
    struct nr_infer_tensor out[3];
    assert_true(nr_answer_unpack(b, &sig, &in, out));
    assert_memory_equal(out[0].data, floats, sizeof floats);
    assert_memory_equal(out[1].data, strings, sizeof strings);
    assert_int_equal(out[1].elements, 2);
    assert_int_equal(out[2].bytes, 0);
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal((uintptr_t)out[i].data % 64, 0);
        assert_ptr_equal(out[i].buf, b);
    }
    nr_buf_unref(b);
}

static void test_other_requests_and_models(void **state)
{
    (void)state;
    struct nr_buf *b = packed();
    struct nr_infer_tensor out[3];
    struct nr_infer_output order[] = {{.index = 1}, {.index = 0}, {.index = 2}};
    struct nr_infer_request r = in;
    r.rows = 3;
    assert_false(nr_answer_unpack(b, &sig, &r, out));
    r = in;
    r.n_outputs = 2;
    assert_false(nr_answer_unpack(b, &sig, &r, out));
    r = in;
    r.outputs = order;
    assert_false(nr_answer_unpack(b, &sig, &r, out));
    struct nr_io_spec other[3];
    struct nr_signature changed = sig;
    changed.outputs = other;
    memcpy(other, specs, sizeof specs);
    other[0].shape[1] = 4;
    assert_false(nr_answer_unpack(b, &changed, &in, out));
    memcpy(other, specs, sizeof specs);
    other[0].dtype = NARU_INT32;
    assert_false(nr_answer_unpack(b, &changed, &in, out));
    memcpy(other, specs, sizeof specs);
    other[2].rank = 1;
    assert_false(nr_answer_unpack(b, &changed, &in, out));
    changed = sig;
    changed.n_outputs = 2;
    assert_false(nr_answer_unpack(b, &changed, &in, out));
    nr_buf_unref(b);
}

/* A shared cache that lies: cut, longer, every byte of the heads changed in every bit. What is taken is
 * within the block. */
static void test_hostile(void **state)
{
    (void)state;
    struct nr_buf *good = packed();
    struct nr_infer_tensor out[3];
    size_t len = nr_buf_bytes(good);
    for (size_t cut = 0; cut <= len + 1; cut++) {
        struct nr_buf *b = nr_buf_try_new(cut);
        memset(nr_buf_data(b), 0, cut);
        memcpy(nr_buf_data(b), nr_buf_data(good), NR_MIN(cut, len));
        assert_int_equal(nr_answer_unpack(b, &sig, &in, out), cut == len);
        nr_buf_unref(b);
    }
    for (size_t at = 0; at < 64 * 3; at++) {
        for (unsigned bit = 0; bit < 8; bit++) {
            nr_buf_data(good)[at] ^= (uint8_t)(1u << bit);
            if (nr_answer_unpack(good, &sig, &in, out)) {
                for (unsigned i = 0; i < 3; i++) {
                    assert_true(out[i].data >= nr_buf_data(good) &&
                                out[i].data + out[i].bytes <= nr_buf_data(good) + len);
                }
            }
            nr_buf_data(good)[at] ^= (uint8_t)(1u << bit);
        }
    }
    assert_true(nr_answer_unpack(good, &sig, &in, out));
    nr_buf_unref(good);
}

static void test_no_memory(void **state)
{
    (void)state;
    static uint8_t some[1];
    const struct nr_infer_tensor huge[] = {{.data = some, .bytes = SIZE_MAX - 100}};
    assert_null(nr_answer_pack(huge, 1));
    nr_buf_set_budget(1000);
    const struct nr_infer_tensor large[] = {{.data = some, .bytes = 1 << 20}};
    assert_null(nr_answer_pack(large, 1));
    nr_buf_set_budget(0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_other_requests_and_models),
        cmocka_unit_test(test_hostile),
        cmocka_unit_test(test_no_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
