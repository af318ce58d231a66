/* Tensors from pictures and back: shapes, tiles, stitching, rounding, odd outputs. Values against
 * NumPy are in tests/e2e/test_image_fidelity.py. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>

#include "base/buf.h"
#include "base/mem.h"
#include "codec/element.h"
#include "codec/image_tensor.h"

#define DIMS(...) ((const int64_t[]){__VA_ARGS__})
#define IO(n, t, ...) \
    {NR_STR_INIT(n), t, sizeof(DIMS(__VA_ARGS__)) / sizeof(int64_t), DIMS(__VA_ARGS__)}

static struct nr_image_plan *make_plan(const struct nr_image_io *io, bool batches,
                                       const char *const *params)
{
    struct nr_image_param p[24];
    size_t n = 0;
    for (; params != NULL && params[n] != NULL; n++) {
        p[n].key = nr_str_cut(nr_str_from(params[n]), '=', &p[n].value);
    }
    struct nr_image_signature sig = {io, 1, io, 1, batches, false};
    struct nr_image_plan *plan;
    struct nr_err err;
    if (nr_image_plan_parse(p, n, &sig, &plan, &err) != NARU_OK) {
        fail_msg("%s", err.text);
    }
    return plan;
}
#define PLAN(io, batches, ...) make_plan(io, batches, (const char *const[]){__VA_ARGS__, NULL})

static void shape_is(const struct nr_image_job *job, const int64_t *shape, uint32_t rank)
{
    assert_int_equal(job->rank, rank);
    assert_memory_equal(job->shape, shape, rank * sizeof(*shape));
}
#define SHAPE_IS(job, ...) \
    shape_is(job, DIMS(__VA_ARGS__), sizeof(DIMS(__VA_ARGS__)) / sizeof(int64_t))

static void test_shapes(void **state)
{
    (void)state;
    const struct nr_image_io chw = IO("x", NARU_FP32, 3, -1, -1);
    const struct nr_image_io nhwc = IO("x", NARU_FP16, -1, -1, -1, 3);
    const struct nr_image_io gray = IO("x", NARU_UINT8, -1, 28, 28);
    const struct nr_image_io flat = IO("x", NARU_FP32, -1, 784);
    struct nr_image_job job;
    struct nr_image_plan *p = PLAN(&chw, true, "naru.image.multiple_of=32");
    assert_int_equal(nr_image_job_init(p, 100, 65, &job, NULL), NARU_OK);
    SHAPE_IS(&job, 1, 3, 96, 128);
    assert_int_equal(job.tile_bytes, 3 * 96 * 128 * 4);
    assert_int_equal(job.n_tiles, 1);
    assert_int_equal(nr_image_job_init(p, 0, 65, &job, NULL), NARU_TOO_LARGE);
    nr_image_plan_free(p);
    p = PLAN(&nhwc, false, "x=y");
    assert_int_equal(nr_image_job_init(p, 31, 17, &job, NULL), NARU_OK);
    SHAPE_IS(&job, 1, 17, 31, 3);
    assert_int_equal(job.tile_bytes, 17 * 31 * 3 * 2);
    nr_image_plan_free(p);
    p = PLAN(&gray, false, "naru.image.fit=crop");
    assert_int_equal(nr_image_job_init(p, 100, 100, &job, NULL), NARU_OK);
    SHAPE_IS(&job, 1, 28, 28);
    /* 20,000 times wider than high cannot be cropped to a square */
    struct nr_err err = {0};
    assert_int_equal(nr_image_job_init(p, 16384, 1, &job, &err), NARU_TOO_LARGE);
    assert_non_null(strstr(err.text, "too extreme"));
    nr_image_plan_free(p);
    p = PLAN(&flat, false, "naru.image.size=28x28", "naru.image.color=GRAY", "naru.output=tensor");
    assert_int_equal(nr_image_job_init(p, 9, 9, &job, NULL), NARU_OK);
    SHAPE_IS(&job, 1, 784);
    assert_int_equal(job.tile_bytes, 784 * 4);
    nr_image_plan_free(p);
}

/* Every pixel of the canvas is covered, in order, and tiles end with it. */
static void test_tile_positions(void **state)
{
    (void)state;
    const struct nr_image_io io = IO("x", NARU_UINT8, 3, -1, -1);
    struct nr_image_plan *p = PLAN(&io, true, "naru.image.tile=64", "naru.image.tile_overlap=20",
                                   "naru.image.multiple_of=8");
    for (uint32_t w = 1; w < 400; w++) {
        struct nr_image_job job;
        assert_int_equal(nr_image_job_init(p, w, 64, &job, NULL), NARU_OK);
        assert_int_equal(job.tiles_y, 1);
        uint32_t last = 0, x, y, n = w <= 64 ? 1 : (job.padded_w - 64 + 39) / 40 + 1;
        assert_int_equal(job.n_tiles, n); /* no more than tiles of the full size would be */
        assert_true(job.tile_w % 8 == 0 && job.tile_w <= 64);
        assert_true(job.tile_w * n - 24 * (n - 1) < job.padded_w + 8 * n); /* and no larger */
        for (uint32_t i = 0; i < job.n_tiles; i++) {
            nr_image_tile_at(&job, i, &x, &y);
            assert_int_equal(x % 8, 0);
            assert_true(i == 0 ? x == 0 : x > last && x + 20 <= last + job.tile_w);
            last = x;
        }
        assert_int_equal(last + job.tile_w, job.padded_w);
        assert_true(job.padded_w >= w && job.padded_w < w + 8);
    }
    struct nr_image_job job;
    nr_image_plan_free(p);
    p = PLAN(&io, true, "naru.image.tile=16", "naru.image.tile_overlap=8");
    assert_int_equal(nr_image_job_init(p, 16384, 3000, &job, NULL), NARU_TOO_LARGE);
    nr_image_plan_free(p);
}

/* A "model" that doubles the picture, tile by tile: the result must be as of one piece, since it
 * looks at no neighbours. */
static void test_super_resolution(void **state)
{
    (void)state;
    const struct nr_image_io io = IO("x", NARU_UINT8, 1, -1, -1);
    struct nr_image_plan *p = PLAN(&io, true, "naru.image.tile=32", "naru.image.multiple_of=4");
    struct nr_image img, out, canvas;
    assert_int_equal(nr_image_new(75, 50, 1, &img, NULL), NARU_OK);
    for (size_t i = 0; i < 75 * 50; i++) {
        nr_image_data(&img)[i] = (uint8_t)(i * 7 % 253);
    }
    struct nr_image_job job;
    assert_int_equal(nr_image_job_init(p, 75, 50, &job, NULL), NARU_OK);
    assert_int_equal(nr_image_fit(&job, &img, &canvas, NULL), NARU_OK);
    assert_ptr_equal(canvas.buf, img.buf);
    struct nr_image_stitch s;
    nr_image_stitch_init(&s, &job);
    static uint8_t in[32 * 32];
    static float big[64 * 64];
    p->output_scale = 1.0F;
    for (uint32_t i = 0; i < job.n_tiles; i++) {
        nr_image_tile_write(&job, &canvas, i, in);
        for (size_t y = 0; y < 64; y++) {
            for (size_t x = 0; x < 64; x++) {
                big[y * 64 + x] = in[y / 2 * 32 + x / 2];
            }
        }
        assert_int_equal(
            nr_image_stitch_add(&s, i, NARU_FP32, 4, DIMS(1, 1, 64, 64), big, sizeof(big), NULL),
            NARU_OK);
    }
    assert_int_equal(nr_image_stitch_take(&s, &out, NULL), NARU_OK);
    assert_true(out.width == 150 && out.height == 100);
    for (size_t y = 0; y < 100; y++) {
        for (size_t x = 0; x < 150; x++) {
            assert_int_equal(nr_image_data(&out)[y * 150 + x],
                             nr_image_data(&img)[y / 2 * 75 + x / 2]);
        }
    }
    nr_image_stitch_done(&s);
    nr_image_done(&canvas);
    nr_image_done(&out);
    nr_image_done(&img);
    nr_image_plan_free(p);
}

static void test_rounding(void **state)
{
    (void)state;
    const struct nr_image_io io = IO("x", NARU_FP32, 1, -1, -1);
    static const struct {
        float in;
        uint8_t out;
    } cases[] = {
        {0.0F, 0},       {0.5F, 1},         {0.49999997F, 0}, {1.5F, 2},      {2.5F, 3},
        {254.5F, 255},   {254.49998F, 254}, {255.0F, 255},    {255.4F, 255},  {1e30F, 255},
        {INFINITY, 255}, {-0.4F, 0},        {-7.0F, 0},       {-INFINITY, 0}, {NAN, 0},
    };
    float row[16] = {0};
    for (size_t i = 0; i < NR_COUNT(cases); i++) {
        row[i] = cases[i].in;
    }
    struct nr_image_plan *p = PLAN(&io, true, "naru.output.scale=1");
    struct nr_image_job job;
    assert_int_equal(nr_image_job_init(p, 16, 1, &job, NULL), NARU_OK);
    struct nr_image_stitch s;
    struct nr_image out;
    nr_image_stitch_init(&s, &job);
    assert_int_equal(
        nr_image_stitch_add(&s, 0, NARU_FP32, 4, DIMS(1, 1, 1, 16), row, sizeof(row), NULL),
        NARU_OK);
    assert_int_equal(nr_image_stitch_take(&s, &out, NULL), NARU_OK);
    for (size_t i = 0; i < NR_COUNT(cases); i++) {
        assert_int_equal(nr_image_data(&out)[i], cases[i].out);
    }
    nr_image_done(&out);
    nr_image_plan_free(p);
}

static void test_outputs_of_any_form(void **state)
{
    (void)state;
    const struct nr_image_io io = IO("x", NARU_FP32, 3, -1, -1);
    static const uint8_t data[2 * 4 * 3] = {0};
    static const struct {
        int32_t dtype;
        uint32_t rank;
        int64_t shape[5];
        size_t bytes;
        nr_status status;
        uint32_t w, h, ch;
    } cases[] = {
        {NARU_UINT8, 4, {1, 3, 2, 4}, 24, NARU_OK, 4, 2, 3},
        {NARU_UINT8, 3, {3, 2, 4}, 24, NARU_OK, 4, 2, 3},
        {NARU_UINT8, 3, {2, 4, 3}, 24, NARU_OK, 4, 2, 3},
        {NARU_UINT8, 5, {1, 1, 1, 2, 4}, 8, NARU_OK, 4, 2, 1},
        {NARU_UINT8, 2, {2, 4}, 8, NARU_OK, 4, 2, 1},
        {NARU_FP16, 3, {1, 2, 4}, 16, NARU_OK, 4, 2, 1},
        {NARU_UINT8, 3, {3, 8, 1}, 24, NARU_OK, 1, 8, 3}, /* not the input's size: taken as it is */
        {NARU_UINT8, 3, {3, 2, 4}, 23, NARU_INVALID, 0, 0, 0},
        {NARU_UINT8, 3, {3, 2, -4}, 24, NARU_INVALID, 0, 0, 0},
        {NARU_UINT8, 3, {3, 0, 4}, 0, NARU_INVALID, 0, 0, 0},
        {NARU_UINT8, 3, {2, 3, 4}, 24, NARU_INVALID, 0, 0, 0},
        {NARU_UINT8, 4, {2, 3, 2, 2}, 24, NARU_INVALID, 0, 0, 0},
        {NARU_UINT8, 1, {24}, 24, NARU_INVALID, 0, 0, 0},
        {NARU_UINT8, 0, {0}, 1, NARU_INVALID, 0, 0, 0},
        {NARU_UINT8, 99, {3, 2, 4}, 24, NARU_INVALID, 0, 0, 0},
        {NARU_BYTES, 3, {3, 2, 4}, 24, NARU_INVALID, 0, 0, 0},
        {NARU_UINT8, 3, {3, INT64_MAX, 2}, 24, NARU_INVALID, 0, 0, 0},
    };
    struct nr_image_plan *p = PLAN(&io, true, "x=y");
    struct nr_image_job job;
    assert_int_equal(nr_image_job_init(p, 4, 2, &job, NULL), NARU_OK);
    for (size_t i = 0; i < NR_COUNT(cases); i++) {
        struct nr_image_stitch s;
        struct nr_image out;
        struct nr_err err = {0};
        nr_image_stitch_init(&s, &job);
        assert_int_equal(nr_image_stitch_take(&s, &out, &err), NARU_INTERNAL);
        assert_int_equal(nr_image_stitch_add(&s, 0, cases[i].dtype, cases[i].rank, cases[i].shape,
                                             data, cases[i].bytes, &err),
                         cases[i].status);
        if (cases[i].status == NARU_OK) {
            assert_int_equal(nr_image_stitch_take(&s, &out, NULL), NARU_OK);
            assert_true(out.width == cases[i].w && out.height == cases[i].h &&
                        out.channels == cases[i].ch);
            nr_image_done(&out);
        }
        nr_image_stitch_done(&s);
    }
    nr_image_plan_free(p);
}

static void test_tiles_must_agree(void **state)
{
    (void)state;
    const struct nr_image_io io = IO("x", NARU_UINT8, 1, -1, -1);
    static const uint8_t data[64 * 64] = {0};
    struct nr_image_plan *p = PLAN(&io, true, "naru.image.tile=32");
    struct nr_image_job job;
    assert_int_equal(nr_image_job_init(p, 104, 56, &job, NULL), NARU_OK);
    struct nr_image_stitch s;
    nr_image_stitch_init(&s, &job);
    assert_int_equal(
        nr_image_stitch_add(&s, 0, NARU_UINT8, 3, DIMS(1, 31, 32), data, 31 * 32, NULL),
        NARU_INVALID);
    assert_int_equal(nr_image_stitch_add(&s, 0, NARU_UINT8, 3, DIMS(1, 32, 32), data, 1024, NULL),
                     NARU_OK);
    assert_int_equal(nr_image_stitch_add(&s, 1, NARU_UINT8, 3, DIMS(1, 64, 64), data, 4096, NULL),
                     NARU_INVALID);
    assert_int_equal(
        nr_image_stitch_add(&s, job.n_tiles, NARU_UINT8, 3, DIMS(1, 32, 32), data, 1024, NULL),
        NARU_INVALID);
    nr_image_stitch_done(&s);
    nr_image_plan_free(p);
}

static void test_bars_are_cut_off(void **state)
{
    (void)state;
    const struct nr_image_io io = IO("x", NARU_UINT8, 1, 32, 32);
    struct nr_image_plan *p = PLAN(&io, true, "naru.image.fit=pad");
    struct nr_image img, canvas, out;
    assert_int_equal(nr_image_new(64, 16, 3, &img, NULL), NARU_OK);
    memset(nr_image_data(&img), 100, 64 * 16 * 3);
    struct nr_image_job job;
    assert_int_equal(nr_image_job_init(p, 64, 16, &job, NULL), NARU_OK);
    assert_int_equal(nr_image_fit(&job, &img, &canvas, NULL), NARU_OK);
    assert_true(canvas.width == 32 && canvas.height == 32 && canvas.channels == 1);
    uint8_t row[32 * 32];
    nr_image_tile_write(&job, &canvas, 0, row);
    assert_true(row[0] == 0 && row[12 * 32] == 100 && row[19 * 32 + 31] == 100 &&
                row[20 * 32] == 0);
    struct nr_image_stitch s;
    nr_image_stitch_init(&s, &job);
    assert_int_equal(
        nr_image_stitch_add(&s, 0, NARU_UINT8, job.rank, job.shape, row, sizeof(row), NULL),
        NARU_OK);
    assert_int_equal(nr_image_stitch_take(&s, &out, NULL), NARU_OK);
    nr_image_stitch_done(&s);
    assert_true(out.width == 32 && out.height == 8);
    for (size_t i = 0; i < 32 * 8; i++) {
        assert_int_equal(nr_image_data(&out)[i], 100);
    }
    /* a picture of another size than announced is refused, not read */
    struct nr_image_job other;
    assert_int_equal(nr_image_job_init(p, 65, 16, &other, NULL), NARU_OK);
    struct nr_image none;
    assert_int_equal(nr_image_fit(&other, &img, &none, NULL), NARU_INTERNAL);
    nr_image_done(&out);
    nr_image_done(&canvas);
    nr_image_done(&img);
    nr_image_plan_free(p);
}

static void test_memory_fails(void **state)
{
    (void)state;
    const struct nr_image_io io = IO("x", NARU_UINT8, 1, 32, 32);
    struct nr_image_plan *p = PLAN(&io, true, "naru.image.fit=crop");
    struct nr_image img, canvas;
    assert_int_equal(nr_image_new(64, 16, 3, &img, NULL), NARU_OK);
    memset(nr_image_data(&img), 1, 64 * 16 * 3);
    uint64_t before = nr_buf_live_bytes();
    struct nr_image_job job;
    assert_int_equal(nr_image_job_init(p, 64, 16, &job, NULL), NARU_OK);
    nr_status st = NARU_NOMEM;
    for (uint64_t n = 1; n < 50 && st != NARU_OK; n++) {
        nr_mem_fail_after(n, false);
        st = nr_image_fit(&job, &img, &canvas, NULL);
        nr_mem_fail_after(0, false);
        assert_true(st == NARU_OK || (st == NARU_NOMEM && canvas.buf == NULL));
        nr_image_done(&canvas);
        assert_int_equal(nr_buf_live_bytes(), before);
    }
    assert_int_equal(st, NARU_OK);
    nr_image_done(&img);
    nr_image_plan_free(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shapes),
        cmocka_unit_test(test_tile_positions),
        cmocka_unit_test(test_super_resolution),
        cmocka_unit_test(test_rounding),
        cmocka_unit_test(test_outputs_of_any_form),
        cmocka_unit_test(test_tiles_must_agree),
        cmocka_unit_test(test_bars_are_cut_off),
        cmocka_unit_test(test_memory_fails),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
