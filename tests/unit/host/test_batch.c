/* Batches: forming, memory, completion. The plug-in is a table in this file that does what the
 * test in hand asks for, so that every order of events can be brought about. */
#include "host/batch.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/mem.h"
#include "host/plugin.h"

/* ---- a plug-in that the tests steer -------------------------------------------------------------- */

static struct {
    naru_status (*execute)(naru_batch *b, naru_text *err);
    naru_batch *batch; /* of the last execution */
    unsigned cancels;
    uint32_t cancelled_request;
} fake;

static naru_status fake_execute(naru_backend_instance *i, naru_batch *b, naru_text *err)
{
    (void)i;
    fake.batch = b;
    return fake.execute(b, err);
}

static void fake_cancel(naru_backend_instance *i, naru_batch *b, uint32_t request)
{
    (void)i;
    assert_ptr_equal(b, fake.batch);
    fake.cancels++;
    fake.cancelled_request = request;
}

static const naru_backend fake_table = {
    .struct_size = sizeof fake_table,
    .abi_major = NARU_ABI_MAJOR,
    .name = "fake",
    .version = "1",
    .execute = fake_execute,
    .cancel = fake_cancel,
};
static struct nr_plugin plugin = {.api = &fake_table, .name = "fake"};
static struct nr_plugin_model model = {.plugin = &plugin, .name = "m"};
static struct nr_plugin_instance instance = {.model = &model};

static const naru_host *const host = &nr_host_table;

/* Output o repeats input o, whether it is placed or not. */
static naru_status copy(naru_batch *b, naru_text *err)
{
    (void)err;
    assert_int_equal(b->struct_size, sizeof *b);
    for (uint32_t o = 0; o < b->n_outputs; o++) {
        const naru_tensor *to = &b->outputs[o], *from = &b->inputs[to->index];
        if (to->n_segments == 0) {
            naru_status st =
                host->output_alloc(b, o, from->dtype, from->rank, from->shape, from->bytes, &to);
            if (st != NARU_OK) {
                return st;
            }
        }
        assert_int_equal(to->bytes, from->bytes);
        assert_int_equal((uintptr_t)naru_tensor_data(to) % 64, 0);
        uint8_t *at = naru_tensor_data(to);
        for (uint32_t s = 0; s < from->n_segments; s++) {
            memcpy(at, (uint8_t *)from->segments[s].region->base + from->segments[s].offset,
                   from->segments[s].bytes);
            at += from->segments[s].bytes;
        }
    }
    return NARU_OK;
}

static const int64_t dims_4[] = {-1, 4}, dims_any[] = {-1, -1}, dims_23[] = {2, 3};
static const naru_io fp32_4 = {.name = "x", .shape = dims_4, .rank = 2, .dtype = NARU_FP32};
static const naru_io fp32_any = {.name = "x", .shape = dims_any, .rank = 2, .dtype = NARU_FP32};
static const naru_io fp32_fixed = {.name = "x", .shape = dims_23, .rank = 2, .dtype = NARU_FP32};
static const naru_io bytes_any = {.name = "s", .shape = dims_any, .rank = 2, .dtype = NARU_BYTES};

static struct nr_batch *batch_of(const naru_io *io, uint32_t n, uint32_t max_rows)
{
    struct nr_batch_cfg cfg = {.plugin = &plugin,
                               .inputs = io,
                               .outputs = io,
                               .n_inputs = n,
                               .n_outputs = n,
                               .max_rows = max_rows};
    struct nr_batch *b = NULL;
    assert_int_equal(nr_batch_new(&cfg, &b, NULL), NARU_OK);
    fake.execute = copy;
    return b;
}

/* Adds a request of one input. */
static nr_status add(struct nr_batch *b, const void *data, size_t bytes, uint32_t rows, int64_t dim,
                     struct nr_err *err)
{
    int64_t shape[] = {rows, dim};
    struct nr_batch_input in = {.data = data, .bytes = bytes, .shape = shape, .rank = 2};
    struct nr_batch_request r = {.inputs = &in, .rows = rows, .id = "r"};
    return nr_batch_add(b, &r, err);
}

static void check_slice(struct nr_batch *b, uint32_t request, const void *data, size_t bytes,
                        int64_t rows)
{
    struct nr_batch_slice s;
    struct nr_err err = {0};
    if (nr_batch_result(b, request, &err) != NARU_OK) {
        fail_msg("request %u: %s", request, err.text);
    }
    assert_int_equal(nr_batch_output(b, 0, request, &s), NARU_OK);
    assert_int_equal(s.bytes, bytes);
    assert_int_equal(s.shape[0], rows);
    if (bytes > 0) {
        assert_memory_equal(s.data, data, bytes);
    }
}

static struct nr_batch_stats stats_of(struct nr_batch *b)
{
    struct nr_batch_stats s;
    nr_batch_stats_get(b, &s);
    return s;
}

_Alignas(64) static float rows_a[8] = {1, 2, 3, 4, 5, 6, 7, 8}, rows_b[4] = {9, 10, 11, 12};

/* ---- memory ------------------------------------------------------------------------------------- */

static void test_one_request_is_not_copied(void **state)
{
    (void)state;
    struct nr_batch *b = batch_of(&fp32_4, 1, 8);
    assert_int_equal(add(b, rows_a, 32, 2, 4, NULL), NARU_OK);
    assert_int_equal(nr_batch_run(b, &instance), NARU_OK);
    assert_ptr_equal(naru_tensor_data(&fake.batch->inputs[0]), rows_a);
    assert_int_equal(fake.batch->rows, 2);
    assert_int_equal(fake.batch->requests[0].rows, 2);
    assert_string_equal(fake.batch->requests[0].id, "r");
    assert_string_equal(fake.batch->inputs[0].name, "x");
    check_slice(b, 0, rows_a, 32, 2);
    assert_int_equal(stats_of(b).bytes_copied, 0);
    assert_int_equal(stats_of(b).bytes_in_place, 32);
    nr_batch_clear(b);

    /* inside a buffer: the plug-in sees its region */
    struct nr_buf *buf = nr_buf_try_new(64);
    memcpy(nr_buf_data(buf) + 16, rows_b, 16);
    int64_t shape[] = {1, 4};
    struct nr_batch_input in = {
        .data = nr_buf_data(buf) + 16, .bytes = 16, .buf = buf, .shape = shape, .rank = 2};
    struct nr_batch_request r = {.inputs = &in, .rows = 1};
    assert_int_equal(nr_batch_add(b, &r, NULL), NARU_OK);
    assert_int_equal(nr_batch_run(b, &instance), NARU_OK);
    assert_ptr_equal(fake.batch->inputs[0].segments[0].region, &buf->region);
    assert_int_equal(fake.batch->inputs[0].segments[0].offset, 16);
    assert_string_equal(fake.batch->requests[0].id, "");
    check_slice(b, 0, rows_b, 16, 1);
    nr_batch_clear(b);
    nr_buf_unref(buf);

    /* not at a multiple of its elements: copied once */
    char odd[20];
    memcpy(odd + 1, rows_b, 16);
    assert_int_equal(add(b, odd + 1, 16, 1, 4, NULL), NARU_OK);
    assert_int_equal(nr_batch_run(b, &instance), NARU_OK);
    assert_int_equal((uintptr_t)naru_tensor_data(&fake.batch->inputs[0]) % 64, 0);
    check_slice(b, 0, rows_b, 16, 1);
    assert_int_equal(stats_of(b).bytes_copied, 16);
    nr_batch_free(b);
}

static void test_several_are_gathered(void **state)
{
    (void)state;
    struct nr_batch *b = batch_of(&fp32_4, 1, 8);
    assert_int_equal(add(b, rows_a, 32, 2, 4, NULL), NARU_OK);
    assert_int_equal(add(b, rows_b, 16, 1, 4, NULL), NARU_OK);
    assert_int_equal(nr_batch_requests(b), 2);
    assert_int_equal(nr_batch_run(b, &instance), NARU_OK);
    assert_int_equal(fake.batch->inputs[0].n_segments, 1);
    assert_int_equal(fake.batch->inputs[0].shape[0], 3);
    assert_int_equal(fake.batch->inputs[0].bytes, 48);
    check_slice(b, 0, rows_a, 32, 2);
    check_slice(b, 1, rows_b, 16, 1);
    assert_int_equal(stats_of(b).bytes_copied, 48);
    nr_batch_clear(b);
    nr_batch_trim(b);
    nr_batch_free(b);
}

static void test_segments_are_not_gathered(void **state)
{
    (void)state;
    plugin.caps = NARU_CAP_SEGMENTS;
    struct nr_batch *b = batch_of(&fp32_4, 1, 64);
    for (int i = 0; i < 40; i++) { /* over several growths of the arrays */
        assert_int_equal(add(b, i % 2 ? rows_a : rows_b, 16, 1, 4, NULL), NARU_OK);
    }
    assert_int_equal(nr_batch_run(b, &instance), NARU_OK);
    assert_int_equal(fake.batch->inputs[0].n_segments, 40);
    for (uint32_t i = 0; i < 40; i++) {
        assert_int_equal(fake.batch->inputs[0].segments[i].request, i);
        check_slice(b, i, i % 2 ? rows_a : rows_b, 16, 1);
    }
    assert_int_equal(stats_of(b).bytes_copied, 0);
    nr_batch_free(b);
    plugin.caps = 0;
}

/* What lies side by side is not copied; one stranger among it, and all of it is. */
static void test_adjacent(void **state)
{
    (void)state;
    struct nr_batch *b = batch_of(&fp32_4, 1, 64);
    float rows[20][4];
    for (uint32_t i = 0; i < 20; i++) {
        for (uint32_t k = 0; k < 4; k++) {
            rows[i][k] = (float)(100 * i + k);
        }
    }
    const struct {
        uint32_t strange; /* the request whose bytes come from elsewhere; 20: none */
        uint64_t copied;
    } cases[] = {{20, 0}, {7, 20 * 16}, {0, 20 * 16}, {19, 20 * 16}, {20, 0}};
    for (unsigned c = 0; c < NR_COUNT(cases); c++) {
        for (uint32_t i = 0; i < 20; i++) {
            const float *at = i == cases[c].strange ? rows_b : rows[i];
            assert_int_equal(add(b, at, 16, 1, 4, NULL), NARU_OK);
        }
        uint64_t before = stats_of(b).bytes_copied;
        assert_int_equal(nr_batch_run(b, &instance), NARU_OK);
        assert_int_equal(stats_of(b).bytes_copied - before, cases[c].copied);
        for (uint32_t i = 0; i < 20; i++) {
            check_slice(b, i, i == cases[c].strange ? rows_b : rows[i], 16, 1);
        }
        nr_batch_clear(b);
    }
    nr_batch_free(b);
}

/* Adjacent bytes that begin at an odd address are gathered to where elements may be read. */
static void test_adjacent_unaligned(void **state)
{
    (void)state;
    struct nr_batch *b = batch_of(&fp32_4, 1, 64);
    uint8_t *raw = nr_alloc(1 + 32);
    memcpy(raw + 1, rows_b, 16);
    memcpy(raw + 17, rows_b, 16);
    assert_int_equal(add(b, raw + 1, 16, 1, 4, NULL), NARU_OK);
    assert_int_equal(add(b, raw + 17, 16, 1, 4, NULL), NARU_OK);
    assert_int_equal(nr_batch_run(b, &instance), NARU_OK);
    assert_int_equal(stats_of(b).bytes_copied, 32);
    check_slice(b, 1, rows_b, 16, 1);
    nr_batch_free(b);
    nr_free(raw);
}

static void test_output_buffers(void **state)
{
    (void)state;
    struct nr_batch *b = batch_of(&fp32_4, 1, 8);
    struct nr_batch_slice s;
    struct nr_buf *held[6];
    for (int i = 0; i < 6; i++) { /* somebody still reads every one of them */
        rows_b[0] = (float)i;
        assert_int_equal(add(b, rows_b, 16, 1, 4, NULL), NARU_OK);
        assert_int_equal(nr_batch_run(b, &instance), NARU_OK);
        assert_int_equal(nr_batch_output(b, 0, 0, &s), NARU_OK);
        held[i] = nr_buf_ref(s.buf);
        nr_batch_clear(b);
    }
    for (int i = 0; i < 6; i++) {
        float first;
        memcpy(&first, nr_buf_data(held[i]), sizeof first);
        assert_true(first == (float)i);
        for (int k = 0; k < i; k++) {
            assert_ptr_not_equal(held[i], held[k]);
        }
        nr_buf_unref(held[i]);
    }
    rows_b[0] = 9;
    uint64_t made = stats_of(b).buffers_made;
    for (int i = 0; i < 100; i++) {
        assert_int_equal(add(b, rows_b, 16, 1, 4, NULL), NARU_OK);
        assert_int_equal(nr_batch_run(b, &instance), NARU_OK);
        nr_batch_clear(b);
    }
    assert_int_equal(stats_of(b).buffers_made, made);
    nr_batch_free(b);
}

static void test_steady_state_allocates_nothing(void **state)
{
    (void)state;
    static const naru_io io[2] = {fp32_4,
                                  {.name = "s", .shape = dims_any, .rank = 2, .dtype = NARU_BYTES}};
    struct nr_batch *b = batch_of(io, 2, 64);
    uint64_t before = 0;
    int64_t s4[] = {1, 4}, s1[] = {1, 1};
    struct nr_batch_input in[] = {{.data = rows_a, .bytes = 16, .shape = s4, .rank = 2},
                                  {.data = "\3\0\0\0abc", .bytes = 7, .shape = s1, .rank = 2}};
    struct nr_batch_request r = {.inputs = in, .rows = 1};
    for (int round = 0; round < 300; round++) {
        if (round == 100) {
            before = nr_mem_allocs();
        }
        for (int i = 0; i < 1 + round % 64; i++) {
            assert_int_equal(nr_batch_add(b, &r, NULL), NARU_OK);
        }
        assert_int_equal(nr_batch_run(b, &instance), NARU_OK);
        struct nr_batch_slice s;
        assert_int_equal(nr_batch_output(b, 1, 0, &s), NARU_OK);
        assert_int_equal(s.bytes, 7);
        nr_batch_clear(b);
    }
    assert_int_equal(nr_mem_allocs(), before);
    nr_batch_free(b);
}

/* ---- shapes -------------------------------------------------------------------------------------- */

static void check_add(struct nr_batch *b, size_t bytes, uint32_t rows, int64_t dim,
                      const char *says)
{
    struct nr_err err = {0};
    assert_int_equal(add(b, rows_a, bytes, rows, dim, &err), NARU_INVALID);
    if (!strstr(err.text, says)) {
        fail_msg("\"%s\" does not say %s", err.text, says);
    }
}

static void test_what_does_not_fit(void **state)
{
    (void)state;
    struct nr_batch *b = batch_of(&fp32_4, 1, 4);
    check_add(b, 16, 1, 5, "dimension 1 is 5, expected 4");
    check_add(b, 12, 1, 4, "12 bytes");
    check_add(b, 80, 5, 4, "at most 4");
    int64_t shape[] = {2, 4};
    struct nr_batch_input in = {.data = rows_a, .bytes = 16, .shape = shape, .rank = 2};
    struct nr_batch_request r = {.inputs = &in, .rows = 1};
    struct nr_err err = {0};
    assert_int_equal(nr_batch_add(b, &r, &err), NARU_INVALID); /* rows against shape */
    in.rank = 1;
    assert_int_equal(nr_batch_add(b, &r, &err), NARU_INVALID);
    in = (struct nr_batch_input){0};
    assert_int_equal(nr_batch_add(b, &r, &err), NARU_INVALID);
    assert_non_null(strstr(err.text, "\"x\" is missing"));
    assert_int_equal(nr_batch_requests(b), 0);

    assert_int_equal(add(b, rows_a, 32, 2, 4, NULL), NARU_OK);
    assert_int_equal(add(b, rows_b, 16, 1, 4, NULL), NARU_OK);
    check_add(b, 32, 2, 4, "does not fit");
    assert_int_equal(add(b, rows_b, 16, 1, 4, NULL), NARU_OK);
    check_add(b, 16, 1, 4, "does not fit");
    assert_int_equal(nr_batch_run(b, &instance), NARU_OK); /* refused ones left nothing behind */
    check_slice(b, 2, rows_b, 16, 1);
    nr_batch_free(b);

    b = batch_of(&fp32_any, 1, 4); /* other shapes go to another batch */
    assert_int_equal(add(b, rows_a, 16, 1, 4, NULL), NARU_OK);
    check_add(b, 20, 1, 5, "shapes differ");
    check_add(b, 16, 1, -4, "dimension 1 is -4");
    check_add(b, 16, 1, INT64_MAX, "do not fill");
    nr_batch_free(b);
}

static void test_without_batch_dimension(void **state)
{
    (void)state;
    struct nr_batch *b = batch_of(&fp32_fixed, 1, 0);
    int64_t shape[] = {2, 3};
    struct nr_batch_input in = {.data = rows_a, .bytes = 24, .shape = shape, .rank = 2};
    struct nr_batch_request r = {.inputs = &in, .rows = 1};
    assert_int_equal(nr_batch_add(b, &r, NULL), NARU_OK);
    assert_false(nr_batch_fits(b, &r));
    assert_int_equal(nr_batch_add(b, &r, NULL), NARU_INVALID);
    assert_int_equal(nr_batch_run(b, &instance), NARU_OK);
    assert_int_equal(fake.batch->rows, 1);
    check_slice(b, 0, rows_a, 24, 2); /* shape[0] is its own */
    nr_batch_clear(b);
    r.rows = 2;
    assert_int_equal(nr_batch_add(b, &r, NULL), NARU_INVALID);
    nr_batch_free(b);
}

static void test_zero_rows(void **state)
{
    (void)state;
    struct nr_batch *b = batch_of(&fp32_4, 1, 4);
    assert_int_equal(add(b, rows_a, 0, 0, 4, NULL), NARU_OK);
    assert_int_equal(add(b, rows_b, 16, 1, 4, NULL), NARU_OK);
    assert_int_equal(add(b, rows_a, 0, 0, 4, NULL), NARU_OK);
    assert_int_equal(nr_batch_run(b, &instance), NARU_OK);
    check_slice(b, 0, NULL, 0, 0);
    check_slice(b, 1, rows_b, 16, 1);
    check_slice(b, 2, NULL, 0, 0);
    nr_batch_clear(b);
    assert_int_equal(add(b, rows_a, 0, 0, 4, NULL), NARU_OK); /* nothing but nothing */
    assert_int_equal(nr_batch_run(b, &instance), NARU_OK);
    check_slice(b, 0, NULL, 0, 0);
    nr_batch_free(b);
}

static void test_optional_inputs(void **state)
{
    (void)state;
    static const naru_io io[2] = {
        fp32_4, {.name = "o", .shape = dims_4, .rank = 2, .dtype = NARU_FP32, .optional = 1}};
    struct nr_batch *b = batch_of(io, 2, 4);
    int64_t shape[] = {1, 4};
    struct nr_batch_input in[] = {{.data = rows_a, .bytes = 16, .shape = shape, .rank = 2},
                                  {.data = NULL}};
    static const uint8_t wanted[] = {1, 0};
    struct nr_batch_request r = {.inputs = in, .rows = 1, .wanted = wanted};
    assert_int_equal(nr_batch_add(b, &r, NULL), NARU_OK);
    in[1] = in[0];
    assert_false(nr_batch_fits(b, &r)); /* another set of inputs */
    in[1].data = NULL;
    assert_true(nr_batch_fits(b, &r));
    assert_int_equal(nr_batch_add(b, &r, NULL), NARU_OK);
    assert_int_equal(nr_batch_run(b, &instance), NARU_OK);
    assert_int_equal(fake.batch->inputs[1].n_segments, 0);
    assert_int_equal(fake.batch->n_outputs, 1); /* those asked for */
    struct nr_batch_slice s;
    assert_int_equal(nr_batch_output(b, 1, 0, &s), NARU_NOT_FOUND);
    check_slice(b, 1, rows_a, 16, 1);
    nr_batch_free(b);
}

/* ---- outputs --------------------------------------------------------------------------------------- */

static naru_status ask(naru_batch *b, naru_text *err)
{
    (void)err;
    static const int64_t good[] = {2, 4}, rows[] = {3, 4}, dim[] = {2, 5}, below[] = {2, -1},
                         huge[] = {2, INT64_C(1) << 40};
    const naru_tensor *t = NULL;
    assert_int_equal(b->outputs[0].n_segments, 0);
    assert_int_equal(host->output_alloc(b, 7, NARU_FP32, 2, good, 0, &t), NARU_INVALID);
    assert_int_equal(host->output_alloc(b, 0, NARU_FP64, 2, good, 0, &t), NARU_INVALID);
    assert_int_equal(host->output_alloc(b, 0, NARU_FP32, 1, good, 0, &t), NARU_INVALID);
    assert_int_equal(host->output_alloc(b, 0, NARU_FP32, 2, NULL, 0, &t), NARU_INVALID);
    assert_int_equal(host->output_alloc(b, 0, NARU_FP32, 2, rows, 0, &t), NARU_INVALID);
    assert_int_equal(host->output_alloc(b, 0, NARU_FP32, 2, below, 0, &t), NARU_INVALID);
    assert_int_equal(host->output_alloc(b, 0, NARU_FP32, 2, huge, 0, &t), NARU_TOO_LARGE);
    assert_null(t);
    assert_int_equal(host->output_alloc(b, 0, NARU_FP32, 2, good, 0, &t), NARU_OK);
    assert_ptr_equal(t, &b->outputs[0]);
    assert_int_equal(t->bytes, 32);
    const naru_tensor *again = NULL;
    assert_int_equal(host->output_alloc(b, 0, NARU_FP32, 2, good, 0, &again), NARU_OK);
    assert_ptr_equal(again, t);
    assert_int_equal(host->output_alloc(b, 0, NARU_FP32, 2, dim, 0, &again), NARU_INVALID);
    memcpy(naru_tensor_data(t), rows_a, 32);
    return NARU_OK;
}

static void test_output_alloc(void **state)
{
    (void)state;
    struct nr_batch *b = batch_of(&fp32_any, 1, 8);
    fake.execute = ask;
    assert_int_equal(add(b, rows_a, 16, 1, 4, NULL), NARU_OK);
    assert_int_equal(add(b, rows_b, 16, 1, 4, NULL), NARU_OK);
    assert_int_equal(nr_batch_run(b, &instance), NARU_OK);
    check_slice(b, 0, rows_a, 16, 1);
    check_slice(b, 1, rows_a + 4, 16, 1);
    nr_batch_free(b);
}

static naru_status nothing(naru_batch *b, naru_text *err)
{
    (void)b;
    (void)err;
    return NARU_OK;
}

static void test_output_left_out(void **state)
{
    (void)state;
    struct nr_batch *b = batch_of(&fp32_any, 1, 8);
    fake.execute = nothing;
    assert_int_equal(add(b, rows_a, 16, 1, 4, NULL), NARU_OK);
    assert_int_equal(nr_batch_run(b, &instance), NARU_OK);
    struct nr_err err = {0};
    assert_int_equal(nr_batch_result(b, 0, &err), NARU_INTERNAL);
    assert_non_null(strstr(err.text, "did not produce output \"x\""));
    nr_batch_free(b);
}

static struct nr_buf *no_memory(void *arg, size_t bytes)
{
    (void)arg;
    (void)bytes;
    return NULL;
}

static void test_no_memory(void **state)
{
    (void)state;
    const naru_io *const all[] = {&fp32_4, &fp32_any};
    for (int i = 0; i < 2; i++) {
        struct nr_batch_cfg cfg = {.plugin = &plugin,
                                   .inputs = all[i],
                                   .outputs = all[i],
                                   .n_inputs = 1,
                                   .n_outputs = 1,
                                   .max_rows = 4,
                                   .alloc = no_memory};
        struct nr_batch *b = NULL;
        assert_int_equal(nr_batch_new(&cfg, &b, NULL), NARU_OK);
        fake.execute = copy;
        for (uint32_t n = 1; n <= 2; n++) { /* outputs, then also gathering */
            for (uint32_t k = 0; k < n; k++) {
                assert_int_equal(add(b, rows_a, 16, 1, 4, NULL), NARU_OK);
            }
            assert_int_equal(nr_batch_run(b, &instance), NARU_OK);
            struct nr_err err = {0};
            assert_int_equal(nr_batch_result(b, n - 1, &err), NARU_NOMEM);
            assert_true(err.text[0] != 0);
            nr_batch_clear(b);
        }
        nr_batch_free(b);
    }
}

/* Every allocation of a whole round fails once; nothing leaks (run under ASan), nothing crashes. */
static void test_failing_allocations(void **state)
{
    (void)state;
    for (uint64_t n = 1; n < 40; n++) {
        fake.execute = copy;
        struct nr_batch_cfg cfg = {.plugin = &plugin,
                                   .inputs = &bytes_any,
                                   .outputs = &bytes_any,
                                   .n_inputs = 1,
                                   .n_outputs = 1,
                                   .max_rows = 16};
        struct nr_batch *b = NULL;
        nr_mem_fail_after(n, false);
        nr_status st = nr_batch_new(&cfg, &b, NULL);
        for (int i = 0; i < 9 && st == NARU_OK; i++) {
            st = add(b, "\1\0\0\0a", 5, 1, 1, NULL);
        }
        if (st == NARU_OK && nr_batch_run(b, &instance) == NARU_OK) {
            st = nr_batch_result(b, 0, NULL);
        }
        struct nr_batch_slice s;
        if (st == NARU_OK) {
            st = nr_batch_output(b, 0, 1, &s);
        }
        nr_mem_fail_after(0, false);
        assert_true(st == NARU_OK || st == NARU_NOMEM || st == NARU_INTERNAL);
        nr_batch_free(b);
    }
}

static void test_strings(void **state)
{
    (void)state;
    struct nr_batch *b = batch_of(&bytes_any, 1, 8);
    static const char one[] = "\1\0\0\0a\0\0\0\0",
                      two[] = "\3\0\0\0bcd\2\0\0\0\0e\0\0\0\0\1\0\0\0f";
    assert_int_equal(add(b, one, 9, 1, 2, NULL), NARU_OK);
    assert_int_equal(add(b, two, 22, 2, 2, NULL), NARU_OK);
    assert_int_equal(add(b, one, 9, 1, 2, NULL), NARU_OK);
    assert_int_equal(nr_batch_run(b, &instance), NARU_OK);
    check_slice(b, 2, one, 9, 1);
    check_slice(b, 0, one, 9, 1);
    check_slice(b, 1, two, 22, 2);
    nr_batch_clear(b);
    /* what a plug-in writes may be wrong: lengths over the end, too few, too many elements */
    static const struct {
        const char *data;
        size_t bytes;
    } bad[] = {{"\377\377\377\377a", 5}, {"\1\0\0", 3}, {"\1\0\0\0a\0\0\0\0\0\0\0\0", 13}};
    for (size_t i = 0; i < NR_COUNT(bad); i++) {
        assert_int_equal(add(b, bad[i].data, bad[i].bytes, 1, 1, NULL), NARU_OK);
        assert_int_equal(add(b, "", 0, 0, 1, NULL), NARU_OK);
        assert_int_equal(nr_batch_run(b, &instance), NARU_OK);
        struct nr_batch_slice s;
        assert_int_equal(nr_batch_output(b, 0, 0, &s), NARU_INTERNAL);
        nr_batch_clear(b);
    }
    nr_batch_free(b);
}

/* ---- failing ----------------------------------------------------------------------------------------- */

static naru_status fail_some(naru_batch *b, naru_text *err)
{
    host->request_fail(b, 1, NARU_INVALID, "first reason");
    host->request_fail(b, 1, NARU_INTERNAL, "second reason");
    host->request_fail(b, 2, 5, NULL); /* no status, no text */
    host->request_fail(b, 99, NARU_INVALID, "nobody");
    return copy(b, err);
}

static void test_single_requests_fail(void **state)
{
    (void)state;
    struct nr_batch *b = batch_of(&fp32_4, 1, 8);
    for (int round = 0; round < 2; round++) {
        fake.execute = round == 0 ? fail_some : copy;
        for (int i = 0; i < 3; i++) {
            assert_int_equal(add(b, rows_b, 16, 1, 4, NULL), NARU_OK);
        }
        uint64_t late = nr_batch_late();
        assert_int_equal(nr_batch_run(b, &instance), NARU_OK);
        check_slice(b, 0, rows_b, 16, 1);
        struct nr_err err = {0};
        if (round == 0) {
            assert_int_equal(nr_batch_late(), late + 1);
            assert_int_equal(nr_batch_result(b, 1, &err), NARU_INVALID);
            assert_string_equal(err.text, "first reason");
            assert_int_equal(nr_batch_result(b, 2, &err), NARU_INTERNAL);
            assert_string_equal(err.text, nr_status_text(NARU_INTERNAL));
        } else { /* forgotten with the round */
            assert_int_equal(nr_batch_result(b, 1, &err), NARU_OK);
        }
        nr_batch_clear(b);
    }
    nr_batch_free(b);
}

static naru_status result;
static const char *result_text;
static naru_status give(naru_batch *b, naru_text *err)
{
    (void)b;
    snprintf(err->data, err->capacity, "%s", result_text);
    return result;
}

static void test_whole_batch_fails(void **state)
{
    (void)state;
    static const struct {
        naru_status gives, is;
        const char *text, *says;
    } cases[] = {{NARU_INVALID, NARU_INVALID, "bad axis", "bad axis"},
                 {NARU_NOMEM, NARU_NOMEM, "", "out of memory"},
                 {7, NARU_INTERNAL, "odd", "odd"},
                 {-1000, NARU_INTERNAL, "", "internal error"}};
    struct nr_batch *b = batch_of(&fp32_4, 1, 8);
    for (size_t i = 0; i < NR_COUNT(cases); i++) {
        fake.execute = give;
        result = cases[i].gives;
        result_text = cases[i].text;
        assert_int_equal(add(b, rows_b, 16, 1, 4, NULL), NARU_OK);
        assert_int_equal(nr_batch_run(b, &instance), NARU_OK);
        struct nr_err err = {0};
        assert_int_equal(nr_batch_result(b, 0, &err), cases[i].is);
        assert_string_equal(err.text, cases[i].says);
        nr_batch_clear(b);
    }
    nr_batch_free(b);
}

/* ---- completing ---------------------------------------------------------------------------------------- */

static struct {
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t cond;
    int done;
    unsigned delay_us, answers;
} async = {.lock = PTHREAD_MUTEX_INITIALIZER, .cond = PTHREAD_COND_INITIALIZER};

static void on_done(struct nr_batch *b, void *arg)
{
    (void)b;
    assert_ptr_equal(arg, &async);
    pthread_mutex_lock(&async.lock);
    async.done++;
    pthread_cond_signal(&async.cond);
    pthread_mutex_unlock(&async.lock);
}

static void *answer_thread(void *arg)
{
    naru_batch *b = arg;
    usleep(async.delay_us);
    naru_text none = {0};
    naru_status st = copy(b, &none);
    for (unsigned i = 0; i < async.answers; i++) {
        host->batch_done(b, st, i == 0 ? NULL : "again");
    }
    return NULL;
}

static naru_status answer_later(naru_batch *b, naru_text *err)
{
    (void)err;
    assert_int_equal(pthread_create(&async.thread, NULL, answer_thread, b), 0);
    if (async.delay_us == 0) {
        usleep(300); /* the answer may come before execute returns */
    }
    return NARU_PENDING;
}

static struct nr_batch *async_batch(bool notified)
{
    struct nr_batch_cfg cfg = {.plugin = &plugin,
                               .inputs = &fp32_4,
                               .outputs = &fp32_4,
                               .n_inputs = 1,
                               .n_outputs = 1,
                               .max_rows = 8,
                               .on_done = notified ? on_done : NULL,
                               .on_done_arg = &async};
    struct nr_batch *b = NULL;
    assert_int_equal(nr_batch_new(&cfg, &b, NULL), NARU_OK);
    fake.execute = answer_later;
    async.answers = 1;
    return b;
}

/* One run whose answer comes from another thread; checks that it was told exactly once. */
static void run_async(struct nr_batch *b)
{
    async.done = 0;
    assert_int_equal(add(b, rows_b, 16, 1, 4, NULL), NARU_OK);
    nr_status st = nr_batch_run(b, &instance);
    if (st == NARU_PENDING) {
        pthread_mutex_lock(&async.lock);
        while (async.done == 0) {
            pthread_cond_wait(&async.cond, &async.lock);
        }
        pthread_mutex_unlock(&async.lock);
    } else {
        assert_int_equal(st, NARU_OK);
        assert_int_equal(async.done, 0); /* over on return: nobody is told besides */
    }
    check_slice(b, 0, rows_b, 16, 1);
    pthread_join(async.thread, NULL);
    assert_int_equal(async.done, st == NARU_PENDING);
    nr_batch_clear(b);
}

static void test_asynchronous(void **state)
{
    (void)state;
    for (int notified = 0; notified < 2; notified++) {
        struct nr_batch *b = async_batch(notified);
        for (unsigned i = 0; i < 200; i++) {
            async.delay_us = i % 4 == 0 ? 500 : 0;
            run_async(b);
        }
        nr_batch_free(b);
    }
}

static void test_answered_twice(void **state)
{
    (void)state;
    struct nr_batch *b = async_batch(true);
    async.answers = 3;
    for (unsigned i = 0; i < 50; i++) {
        uint64_t late = nr_batch_late();
        async.delay_us = i % 2 ? 0 : 200;
        run_async(b);
        assert_int_equal(nr_batch_late(), late + 2);
    }
    nr_batch_free(b);
}

static naru_status done_and_return(naru_batch *b, naru_text *err)
{
    naru_status st = copy(b, err);
    host->batch_done(b, st, NULL);
    return result;
}

static void test_answered_inside(void **state)
{
    (void)state;
    struct nr_batch *b = async_batch(true);
    async.done = 0;
    fake.execute = done_and_return;
    static const naru_status returns[] = {NARU_PENDING, NARU_OK, NARU_INTERNAL};
    for (size_t i = 0; i < NR_COUNT(returns); i++) {
        result = returns[i];
        uint64_t late = nr_batch_late();
        assert_int_equal(add(b, rows_b, 16, 1, 4, NULL), NARU_OK);
        assert_int_equal(nr_batch_run(b, &instance), NARU_OK);
        check_slice(b, 0, rows_b, 16, 1); /* the first answer counts */
        assert_int_equal(nr_batch_late() - late, i == 0 ? 0 : 1);
        nr_batch_clear(b);
    }
    assert_int_equal(async.done, 0);
    nr_batch_free(b);
}

/* Calls for a batch that is over, cleared, running again, or freed. */
static void stale_calls(naru_batch *old)
{
    uint64_t late = nr_batch_late();
    static const int64_t shape[] = {1, 4};
    const naru_tensor *t = NULL;
    host->batch_done(old, NARU_OK, NULL);
    host->request_fail(old, 0, NARU_INVALID, "stale");
    assert_int_equal(host->output_alloc(old, 0, NARU_FP32, 2, shape, 0, &t), NARU_PRECONDITION);
    assert_int_equal(host->request_cancelled(old, 0), 1);
    assert_null(t);
    assert_int_equal(nr_batch_late(), late + 4);
}

static naru_batch *old_batch;
static naru_status copy_with_stale_calls(naru_batch *b, naru_text *err)
{
    if (old_batch) {
        assert_ptr_not_equal(old_batch, b);
        stale_calls(old_batch);
    }
    return copy(b, err);
}

static void test_stale_calls(void **state)
{
    (void)state;
    struct nr_batch *b = batch_of(&fp32_4, 1, 8);
    fake.execute = copy_with_stale_calls;
    old_batch = NULL;
    for (int i = 0; i < 3; i++) {
        assert_int_equal(add(b, rows_b, 16, 1, 4, NULL), NARU_OK);
        assert_int_equal(nr_batch_run(b, &instance), NARU_OK);
        check_slice(b, 0, rows_b, 16, 1);
        stale_calls(fake.batch);
        check_slice(b, 0, rows_b, 16, 1);
        nr_batch_clear(b);
        stale_calls(fake.batch);
        old_batch = old_batch ? old_batch : fake.batch;
    }
    nr_batch_free(b);
    stale_calls(old_batch);
}

static naru_status look_cancelled(naru_batch *b, naru_text *err)
{
    assert_int_equal(host->request_cancelled(b, 0), 0);
    assert_int_equal(host->request_cancelled(b, 1), 1); /* its flag */
    assert_int_equal(host->request_cancelled(b, 2), 0);
    nr_clock_fake_advance(60);
    assert_int_equal(host->request_cancelled(b, 2), 1); /* its deadline */
    assert_int_equal(host->request_cancelled(b, 3), 1); /* nobody */
    return copy(b, err);
}

static void test_cancelled(void **state)
{
    (void)state;
    nr_clock_fake(true, 1000);
    struct nr_batch *b = batch_of(&fp32_4, 1, 8);
    fake.execute = look_cancelled;
    _Atomic uint32_t flag = 1, unset = 0;
    int64_t shape[] = {1, 4};
    struct nr_batch_input in = {.data = rows_a, .bytes = 16, .shape = shape, .rank = 2};
    struct nr_batch_request r = {.inputs = &in, .rows = 1, .cancelled = &unset, .user = &in};
    assert_int_equal(nr_batch_add(b, &r, NULL), NARU_OK);
    r.cancelled = &flag;
    assert_int_equal(nr_batch_add(b, &r, NULL), NARU_OK);
    r.cancelled = NULL;
    r.deadline_ns = 1050;
    assert_int_equal(nr_batch_add(b, &r, NULL), NARU_OK);
    fake.cancels = 0;
    nr_batch_cancel(b, 1); /* not running yet */
    assert_int_equal(nr_batch_run(b, &instance), NARU_OK);
    nr_batch_cancel(b, 1); /* nor any more */
    assert_int_equal(fake.cancels, 0);
    nr_batch_free(b);
    nr_clock_fake(false, 0);
}

static void test_cancel_reaches_the_plugin(void **state)
{
    (void)state;
    struct nr_batch *b = async_batch(true);
    async.delay_us = 20000;
    async.done = 0;
    fake.cancels = 0;
    assert_int_equal(add(b, rows_b, 16, 1, 4, NULL), NARU_OK);
    assert_int_equal(nr_batch_run(b, &instance), NARU_PENDING);
    nr_batch_cancel(b, 0);
    nr_batch_cancel(b, 5); /* nobody */
    assert_int_equal(fake.cancels, 1);
    assert_int_equal(fake.cancelled_request, 0);
    pthread_mutex_lock(&async.lock);
    while (async.done == 0) {
        pthread_cond_wait(&async.cond, &async.lock);
    }
    pthread_mutex_unlock(&async.lock);
    pthread_join(async.thread, NULL);
    nr_batch_free(b);
}

/* Cancels from one thread while runs end on another: for the sanitizers. */
static struct {
    struct nr_batch *batch;
    _Atomic bool stop;
} race;

static void *cancel_loop(void *arg)
{
    (void)arg;
    while (!atomic_load(&race.stop)) {
        nr_batch_cancel(race.batch, 0);
    }
    return NULL;
}

static void ignore_cancel(naru_backend_instance *i, naru_batch *b, uint32_t request)
{
    (void)i;
    assert_int_equal(host->request_cancelled(b, request), 0);
}

static void test_cancel_races(void **state)
{
    (void)state;
    naru_backend quiet = fake_table;
    quiet.cancel = ignore_cancel;
    plugin.api = &quiet;
    struct nr_batch *b = batch_of(&fp32_4, 1, 8); /* without on_done: run waits */
    race.batch = b;
    atomic_store(&race.stop, false);
    pthread_t t;
    assert_int_equal(pthread_create(&t, NULL, cancel_loop, NULL), 0);
    for (int i = 0; i < 2000; i++) {
        assert_int_equal(add(b, rows_b, 16, 1, 4, NULL), NARU_OK);
        assert_int_equal(nr_batch_run(b, &instance), NARU_OK);
        check_slice(b, 0, rows_b, 16, 1);
        nr_batch_clear(b);
    }
    atomic_store(&race.stop, true);
    pthread_join(t, NULL);
    nr_batch_free(b);
    plugin.api = &fake_table;
}

/* ---- ragged ------------------------------------------------------------------------------------- */

static const int64_t dims_open[] = {-1, -1}, dims_share[] = {-1, -1, 2};
enum {
    MADE = 6
};
static const naru_io ragged_inputs[1 + MADE] = {
    {.name = "x", .shape = dims_open, .rank = 1, .dtype = NARU_FP32},
    {.name = "elements", .shape = dims_open, .rank = 1, .dtype = NARU_INT32},
    {.name = "ends", .shape = dims_open, .rank = 1, .dtype = NARU_FP32},
    {.name = "bounds", .shape = dims_open, .rank = 1, .dtype = NARU_INT32},
    {.name = "largest", .shape = dims_open, .rank = 1, .dtype = NARU_INT32},
    {.name = "shapes", .shape = dims_open, .rank = 2, .dtype = NARU_INT32},
    {.name = "flat", .shape = dims_open, .rank = 1, .dtype = NARU_FP32}};
static const naru_io ragged_output = {
    .name = "y", .shape = dims_open, .rank = 1, .dtype = NARU_FP32};

static struct nr_batch *ragged_batch(uint32_t max_rows)
{
    static const bool inputs[1 + MADE] = {true};
    static const struct nr_batch_made made[MADE] = {
        {1, 0, NR_MADE_ELEMENTS}, {2, 0, NR_MADE_ENDS},   {3, 0, NR_MADE_BOUNDS},
        {4, 0, NR_MADE_LARGEST},  {5, 0, NR_MADE_SHAPES}, {6, 0, NR_MADE_SHAPES_FLAT}};
    static const struct nr_batch_scatter scatter = {
        .on = true, .source = 0, .rank = 3, .shape = dims_share};
    static const struct nr_batch_ragged ragged = {
        .inputs = inputs, .n_made = MADE, .made = made, .outputs = &scatter};
    struct nr_batch_cfg cfg = {.plugin = &plugin,
                               .inputs = ragged_inputs,
                               .outputs = &ragged_output,
                               .n_inputs = 1 + MADE,
                               .n_outputs = 1,
                               .ragged = &ragged,
                               .max_rows = max_rows};
    struct nr_batch *b = NULL;
    assert_int_equal(nr_batch_new(&cfg, &b, NULL), NARU_OK);
    fake.execute = copy;
    return b;
}

/* shape must live until the batch is cleared. */
static nr_status add_ragged(struct nr_batch *b, const float *data, const int64_t shape[3],
                            struct nr_err *err)
{
    struct nr_batch_input in[1 + MADE] = {
        {.data = data,
         .bytes = (size_t)(shape[0] * shape[1] * shape[2]) * sizeof *data,
         .shape = shape,
         .rank = 3}};
    struct nr_batch_request r = {.inputs = in, .rows = (uint32_t)shape[0]};
    return nr_batch_add(b, &r, err);
}

static void expect_made(uint32_t k, const int32_t *values, uint32_t n)
{
    const naru_tensor *t = &fake.batch->inputs[k];
    assert_int_equal(t->n_segments, 1);
    assert_int_equal(t->bytes, n * sizeof *values);
    for (uint32_t i = 0; i < n; i++) {
        const uint8_t *at = (const uint8_t *)naru_tensor_data(t) + i * sizeof *values;
        float real;
        int32_t whole;
        memcpy(&real, at, sizeof real);
        memcpy(&whole, at, sizeof whole);
        assert_int_equal(t->dtype == NARU_FP32 ? (int32_t)real : whole, values[i]);
    }
}

static void test_ragged_batch(void **state)
{
    (void)state;
    static const int64_t a[] = {1, 2, 2}, c[] = {2, 1, 2}, e[] = {1, 0, 2}, wrong[] = {1, 2, 3};
    struct nr_batch *b = ragged_batch(8);
    struct nr_err err = {0};
    for (unsigned round = 0; round < 3; round++) {
        assert_int_equal(add_ragged(b, rows_a, a, NULL), NARU_OK);
        assert_int_equal(add_ragged(b, rows_b, c, NULL), NARU_OK);
        assert_int_equal(add_ragged(b, rows_b, e, NULL), NARU_OK);
        assert_int_equal(nr_batch_run(b, &instance), NARU_OK);
        const naru_tensor *x = &fake.batch->inputs[0];
        assert_int_equal(x->rank, 1);
        assert_int_equal(x->shape[0], 8);
        assert_memory_equal(naru_tensor_data(x), rows_a, 16);
        assert_memory_equal((const uint8_t *)naru_tensor_data(x) + 16, rows_b, 16);
        assert_int_equal(fake.batch->rows, 4);
        expect_made(1, (int32_t[]){4, 4, 0}, 3);
        expect_made(2, (int32_t[]){4, 8, 8}, 3);
        expect_made(3, (int32_t[]){0, 4, 8, 8}, 4);
        expect_made(4, (int32_t[]){0, 0, 0, 0}, 4);
        expect_made(5, (int32_t[]){2, 2, 1, 2, 1, 2, 0, 2}, 8);
        assert_int_equal(fake.batch->inputs[5].shape[0], 4);
        assert_int_equal(fake.batch->inputs[5].shape[1], 2);
        expect_made(6, (int32_t[]){2, 2, 1, 2, 1, 2, 0, 2}, 8);
        struct nr_batch_slice s;
        assert_int_equal(nr_batch_output(b, 0, 1, &s), NARU_OK);
        assert_int_equal(s.rank, 3);
        assert_int_equal(s.shape[0], 2);
        assert_int_equal(s.shape[1], 1);
        assert_int_equal(s.shape[2], 2);
        assert_memory_equal(s.data, rows_b, 16);
        assert_int_equal(nr_batch_output(b, 0, 0, &s), NARU_OK);
        assert_memory_equal(s.data, rows_a, 16);
        assert_int_equal(s.shape[1], 2);
        assert_int_equal(nr_batch_output(b, 0, 2, &s), NARU_OK);
        assert_int_equal(s.bytes, 0);
        nr_batch_clear(b);
    }
    /* one request alone is not copied */
    assert_int_equal(add_ragged(b, rows_a, a, NULL), NARU_OK);
    assert_int_equal(nr_batch_run(b, &instance), NARU_OK);
    assert_ptr_equal(naru_tensor_data(&fake.batch->inputs[0]), rows_a);
    expect_made(3, (int32_t[]){0, 4}, 2);
    nr_batch_clear(b);
    /* shares that do not add up: shapes of 6 elements, cut as [1, 2, 2] */
    assert_int_equal(add_ragged(b, rows_a, wrong, NULL), NARU_OK);
    assert_int_equal(nr_batch_run(b, &instance), NARU_OK);
    struct nr_batch_slice s;
    assert_int_equal(nr_batch_output(b, 0, 0, &s), NARU_INTERNAL);
    nr_batch_clear(b);
    /* made inputs are not the client's, bytes must fill the shape */
    struct nr_batch_input in[1 + MADE] = {{.data = rows_a, .bytes = 12, .shape = a, .rank = 3}};
    struct nr_batch_request r = {.inputs = in, .rows = 1};
    assert_int_equal(nr_batch_add(b, &r, &err), NARU_INVALID);
    nr_batch_free(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ragged_batch),
        cmocka_unit_test(test_one_request_is_not_copied),
        cmocka_unit_test(test_several_are_gathered),
        cmocka_unit_test(test_segments_are_not_gathered),
        cmocka_unit_test(test_adjacent),
        cmocka_unit_test(test_adjacent_unaligned),
        cmocka_unit_test(test_output_buffers),
        cmocka_unit_test(test_steady_state_allocates_nothing),
        cmocka_unit_test(test_what_does_not_fit),
        cmocka_unit_test(test_without_batch_dimension),
        cmocka_unit_test(test_zero_rows),
        cmocka_unit_test(test_optional_inputs),
        cmocka_unit_test(test_output_alloc),
        cmocka_unit_test(test_output_left_out),
        cmocka_unit_test(test_no_memory),
        cmocka_unit_test(test_failing_allocations),
        cmocka_unit_test(test_strings),
        cmocka_unit_test(test_single_requests_fail),
        cmocka_unit_test(test_whole_batch_fails),
        cmocka_unit_test(test_asynchronous),
        cmocka_unit_test(test_answered_twice),
        cmocka_unit_test(test_answered_inside),
        cmocka_unit_test(test_stale_calls),
        cmocka_unit_test(test_cancelled),
        cmocka_unit_test(test_cancel_reaches_the_plugin),
        cmocka_unit_test(test_cancel_races),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
