/* Plans: every key, every default, signatures that hold pictures and those that do not, errors that
 * say what to do. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>

#include "base/mem.h"
#include "codec/image_plan.h"
#include "codec/labels.h"

#define DIMS(...) ((const int64_t[]){__VA_ARGS__})
#define IO(n, t, ...) \
    {NR_STR_INIT(n), t, sizeof(DIMS(__VA_ARGS__)) / sizeof(int64_t), DIMS(__VA_ARGS__)}

static const struct nr_image_io chw = IO("x", NARU_FP32, 3, 224, 224);
static const struct nr_image_io hwc = IO("x", NARU_UINT8, -1, -1, 3);
static const struct nr_image_io free_chw = IO("x", NARU_FP32, 3, -1, -1);
static const struct nr_image_io classes = IO("y", NARU_FP32, 1000);

static struct nr_image_plan *plan;
static struct nr_err err;

/* params: "key=value" strings, NULL at the end */
static nr_status parse(const struct nr_image_io *in, const struct nr_image_io *out, bool batches,
                       const char *const *params)
{
    struct nr_image_param p[24];
    size_t n = 0;
    for (; params != NULL && params[n] != NULL; n++) {
        p[n].key = nr_str_cut(nr_str_from(params[n]), '=', &p[n].value);
    }
    struct nr_image_signature sig = {in, 1, out, 1, batches, false};
    nr_image_plan_free(plan);
    err = (struct nr_err){0};
    return nr_image_plan_parse(p, n, &sig, &plan, &err);
}
#define PARSE(in, out, batches, ...) \
    parse(in, out, batches, (const char *const[]){__VA_ARGS__, NULL})

static void test_derived(void **state)
{
    (void)state;
    assert_int_equal(parse(&chw, &classes, true, NULL), NARU_OK);
    assert_true(plan->derived && plan->batches && !plan->unit_row);
    assert_true(plan->layout == NR_LAYOUT_NCHW && plan->color == NR_IMAGE_RGB &&
                plan->channels == 3);
    assert_true(plan->height == 224 && plan->width == 224);
    assert_true(plan->filter == NR_RESIZE_BILINEAR && plan->fit == NR_FIT_STRETCH);
    assert_true(plan->scale == 1.0F / 255.0F);
    assert_true(plan->output == NR_OUTPUT_LABELS && plan->top_k == 5 && !plan->softmax);
    assert_string_equal(plan->input, "x");
    assert_string_equal(plan->output_tensor, "y");

    assert_int_equal(parse(&hwc, &hwc, true, NULL), NARU_OK);
    assert_true(plan->layout == NR_LAYOUT_NHWC && plan->scale == 1.0F && plan->height == 0);
    assert_true(plan->output == NR_OUTPUT_IMAGE && plan->output_scale == 1.0F);
    assert_int_equal(plan->output_format, NR_IMAGE_PNG);

    /* any other naru key: nothing is assumed about values */
    assert_int_equal(PARSE(&chw, &classes, true, "naru.image.color=RGB", "other.key=1"), NARU_OK);
    assert_true(!plan->derived && plan->scale == 1.0F);
    assert_int_equal(PARSE(&chw, &classes, true, "other.key=1"), NARU_OK);
    assert_true(plan->derived);
}

static void test_axes(void **state)
{
    (void)state;
    const struct {
        struct nr_image_io io;
        bool batches;
        nr_status status;
        int32_t c, h, w;
        bool unit;
    } cases[] = {
        {IO("a", NARU_FP32, 1, 3, -1, -1), false, NARU_OK, 1, 2, 3, true},
        {IO("a", NARU_FP32, -1, 3, 64, 64), false, NARU_OK, 1, 2, 3, true},
        {IO("a", NARU_FP32, -1, 64, 64, 3), false, NARU_OK, 3, 1, 2, true},
        {IO("a", NARU_FP16, 1, 28, 28), true, NARU_OK, 0, 1, 2, false},
        {IO("a", NARU_FP32, 1, 28, 28), false, NARU_OK, 0, 1, 2, false},
        {IO("a", NARU_FP32, -1, 28, 28), false, NARU_OK, -1, 1, 2, true},
        {IO("a", NARU_FP32, 28, 28), true, NARU_OK, -1, 0, 1, false},
        {IO("a", NARU_FP32, 3, 640, 3), true, NARU_PRECONDITION, 0, 0, 0, false},
        {IO("a", NARU_FP32, -1, 4), false, NARU_PRECONDITION, 0, 0, 0, false},
        {IO("a", NARU_FP32, -1, 16), false, NARU_PRECONDITION, 0, 0, 0, false},
        {IO("a", NARU_FP32, 16), true, NARU_PRECONDITION, 0, 0, 0, false},
        {IO("a", NARU_FP32, 1, 3, 224, 224), true, NARU_PRECONDITION, 0, 0, 0, false},
        {IO("a", NARU_FP32, 4, 224, 224), true, NARU_PRECONDITION, 0, 0, 0, false},
        {IO("a", NARU_FP32, 2, 3, 224, 224), false, NARU_PRECONDITION, 0, 0, 0, false},
        {IO("a", NARU_INT64, 3, 224, 224), true, NARU_PRECONDITION, 0, 0, 0, false},
        {IO("a", NARU_BYTES, 3, 224, 224), true, NARU_PRECONDITION, 0, 0, 0, false},
    };
    for (size_t i = 0; i < NR_COUNT(cases); i++) {
        assert_int_equal(parse(&cases[i].io, &classes, cases[i].batches, NULL), cases[i].status);
        if (cases[i].status != NARU_OK) {
            assert_null(plan);
            assert_non_null(strstr(err.text, "takes no pictures"));
            continue;
        }
        assert_int_equal(plan->axis_c, cases[i].c);
        assert_int_equal(plan->axis_h, cases[i].h);
        assert_int_equal(plan->axis_w, cases[i].w);
        assert_int_equal(plan->unit_row, cases[i].unit);
    }
    /* a flat input, described by keys */
    const struct nr_image_io flat = IO("a", NARU_FP32, -1, 784);
    assert_int_equal(
        PARSE(&flat, &classes, false, "naru.image.size=28x28", "naru.image.color=GRAY"), NARU_OK);
    assert_true(plan->axis_h == -1 && plan->height == 28 && plan->channels == 1);
    assert_int_equal(
        PARSE(&flat, &classes, false, "naru.image.size=28x27", "naru.image.color=GRAY"),
        NARU_INVALID);
    /* both ends look like channels, sides small: keys decide */
    const struct nr_image_io odd = IO("a", NARU_FP32, 3, 4, 3);
    assert_int_equal(parse(&odd, &classes, true, NULL), NARU_PRECONDITION);
    assert_int_equal(PARSE(&odd, &classes, true, "naru.image.layout=NHWC"), NARU_OK);
    assert_true(plan->height == 3 && plan->width == 4);
}

static void test_keys(void **state)
{
    (void)state;
    assert_int_equal(
        PARSE(&free_chw, &free_chw, true, "naru.image.input=x", "naru.image.layout=nchw",
              "naru.image.color=BGR", "naru.image.size=64x96", "naru.image.resize=lanczos",
              "naru.image.fit=pad", "naru.image.scale= 1 / 255 ", "naru.image.mean=0.5,0.25, 1",
              "naru.image.std=2", "naru.image.invert=true", "naru.image.multiple_of=32",
              "naru.output=image", "naru.output.tensor=x", "naru.output.scale=128",
              "naru.output.top_k=7", "naru.output.softmax=true", "naru.output.format=webp"),
        NARU_OK);
    assert_true(plan->color == NR_IMAGE_BGR && plan->height == 64 && plan->width == 96);
    assert_true(plan->filter == NR_RESIZE_LANCZOS && plan->fit == NR_FIT_PAD);
    assert_true(plan->scale == (float)(1.0 / 255.0));
    assert_true(plan->mean[0] == 0.5F && plan->mean[1] == 0.25F && plan->mean[2] == 1.0F);
    assert_true(plan->std[0] == 2.0F && plan->std[2] == 2.0F);
    assert_true(plan->invert && plan->multiple_of == 32);
    assert_true(plan->output_scale == 128.0F && plan->top_k == 7 && plan->softmax);
    assert_int_equal(plan->output_format, NR_IMAGE_WEBP);
    struct nr_text t;
    nr_text_init(&t, 1000);
    nr_image_plan_describe(plan, &t);
    assert_string_equal(t.data,
                        "input x: FP32 BGR NCHW 64x96 by lanczos pad, sides multiples of 32; "
                        "output x: image");
    nr_text_done(&t);
    assert_int_equal(PARSE(&free_chw, &free_chw, true, "naru.image.tile=512"), NARU_OK);
    assert_true(plan->tile == 512 && plan->tile_overlap == 128);
}

static void test_bad_values(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "naru.image.layout=CHW",    "naru.image.color=RGBA",     "naru.image.size=224",
        "naru.image.size=0x5",      "naru.image.size=5x",        "naru.image.size=5x5x5",
        "naru.image.size=99999x5",  "naru.image.resize=cubic",   "naru.image.fit=cover",
        "naru.image.scale=",        "naru.image.scale=1/0",      "naru.image.scale=nan",
        "naru.image.scale=1e999",   "naru.image.scale=1/255/2",  "naru.image.mean=1,2",
        "naru.image.mean=1,2,3,4",  "naru.image.mean=1,,3",      "naru.image.mean=",
        "naru.image.std=0",         "naru.image.std=1,0,1",      "naru.image.invert=yes",
        "naru.image.multiple_of=0", "naru.image.multiple_of=-1", "naru.image.multiple_of=5000",
        "naru.image.tile=8",        "naru.image.tile_overlap=4", "naru.output=picture",
        "naru.output.top_k=0",      "naru.output.top_k=1001",    "naru.output.softmax=1",
        "naru.output.format=gif",   "naru.image.input=z",        "naru.output.tensor=z",
        "naru.image.color=GRAY",
    };
    for (size_t i = 0; i < NR_COUNT(bad); i++) {
        if (PARSE(&free_chw, &free_chw, true, "naru.image.layout=NCHW", bad[i]) != NARU_INVALID) {
            fail_msg("accepted: %s", bad[i]);
        }
        assert_null(plan);
        assert_true(strlen(err.text) > 20);
    }
}

static void test_contradictions(void **state)
{
    (void)state;
    assert_int_equal(PARSE(&chw, &classes, true, "naru.image.size=200x224"), NARU_INVALID);
    assert_non_null(strstr(err.text, "224x224"));
    assert_int_equal(PARSE(&chw, &classes, true, "naru.image.multiple_of=48"), NARU_INVALID);
    assert_int_equal(PARSE(&chw, &chw, true, "naru.image.tile=64"), NARU_INVALID);
    assert_int_equal(PARSE(&free_chw, &classes, true, "naru.image.tile=64"), NARU_INVALID);
    assert_int_equal(
        PARSE(&free_chw, &free_chw, true, "naru.image.tile=64", "naru.image.tile_overlap=33"),
        NARU_INVALID);
    assert_int_equal(
        PARSE(&free_chw, &free_chw, true, "naru.image.tile=60", "naru.image.multiple_of=8"),
        NARU_INVALID);
    assert_int_equal(PARSE(&chw, &classes, true, "naru.image.fit=crop", "naru.image.fit=pad"),
                     NARU_INVALID);
    assert_non_null(strstr(err.text, "twice"));
    const struct nr_image_io half = IO("x", NARU_FP32, 3, -1, 64);
    assert_int_equal(parse(&half, &classes, true, NULL), NARU_INVALID);
    assert_int_equal(PARSE(&half, &classes, true, "naru.image.size=32x64"), NARU_OK);
    const struct nr_image_io huge = IO("x", NARU_FP32, 3, 99999, 64);
    assert_int_equal(parse(&huge, &classes, true, NULL), NARU_INVALID);
    const struct nr_image_io words = IO("y", NARU_BYTES, 5);
    assert_int_equal(PARSE(&chw, &words, true, "naru.output=labels"), NARU_INVALID);
    assert_int_equal(PARSE(&chw, &words, true, "naru.output=tensor"), NARU_OK);
}

static void test_did_you_mean(void **state)
{
    (void)state;
    static const char *const typos[][2] = {
        {"naru.image.colour=RGB", "naru.image.color"},
        {"naru.image.resise=box", "naru.image.resize"},
        {"naru.image.tile_overlapp=1", "naru.image.tile_overlap"},
        {"naru.output.topk=1", "naru.output.top_k"},
        {"naru.imge.size=1x1", "naru.image.size"},
        {"naru.Image.mean=1", "naru.image.mean"},
    };
    for (size_t i = 0; i < NR_COUNT(typos); i++) {
        assert_int_equal(PARSE(&chw, &classes, true, typos[i][0]), NARU_INVALID);
        char want[80];
        (void)snprintf(want, sizeof(want), "did you mean \"%s\"", typos[i][1]);
        assert_non_null(strstr(err.text, want));
    }
}

static void test_choosing(void **state)
{
    (void)state;
    const struct nr_image_io two[2] = {IO("image", NARU_FP32, 3, 64, 64),
                                       IO("size", NARU_INT64, 2)};
    const struct nr_image_io alike[2] = {IO("a", NARU_FP32, 3, 64, 64),
                                         IO("b", NARU_FP32, 3, 64, 64)};
    const struct nr_image_io outs[3] = {IO("label", NARU_INT64, 1), IO("prob", NARU_FP32, 10),
                                        IO("mask", NARU_FP32, 1, 64, 64)};
    struct nr_image_signature sig = {two, 2, outs, 3, true, false};
    nr_image_plan_free(plan);
    /* a second input that nothing would fill */
    assert_int_equal(nr_image_plan_parse(NULL, 0, &sig, &plan, &err), NARU_PRECONDITION);
    struct nr_image_param p[2] = {{NR_STR("naru.image.input"), NR_STR("image")},
                                  {NR_STR("naru.output.tensor"), NR_STR("mask")}};
    assert_int_equal(nr_image_plan_parse(p, 1, &sig, &plan, &err), NARU_OK);
    assert_string_equal(plan->output_tensor, "prob");
    assert_int_equal(plan->output, NR_OUTPUT_LABELS);
    nr_image_plan_free(plan);
    assert_int_equal(nr_image_plan_parse(p, 2, &sig, &plan, &err), NARU_OK);
    assert_int_equal(plan->output, NR_OUTPUT_IMAGE);
    nr_image_plan_free(plan);
    sig = (struct nr_image_signature){alike, 2, outs, 3, true, true};
    assert_int_equal(nr_image_plan_parse(NULL, 0, &sig, &plan, &err), NARU_PRECONDITION);
    assert_non_null(strstr(err.text, "naru.image.input"));
    sig = (struct nr_image_signature){alike, 1, outs, 3, true, true};
    assert_int_equal(nr_image_plan_parse(NULL, 0, &sig, &plan, &err), NARU_OK);
    assert_int_equal(plan->output, NR_OUTPUT_LABELS);
    nr_image_plan_free(plan);
    sig = (struct nr_image_signature){alike, 1, NULL, 0, true, true};
    assert_int_equal(nr_image_plan_parse(NULL, 0, &sig, &plan, &err), NARU_PRECONDITION);
    sig = (struct nr_image_signature){NULL, 0, outs, 1, true, true};
    assert_int_equal(nr_image_plan_parse(NULL, 0, &sig, &plan, &err), NARU_PRECONDITION);
    assert_null(plan);
}

static int done(void **state)
{
    (void)state;
    nr_image_plan_free(plan);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_derived),        cmocka_unit_test(test_axes),
        cmocka_unit_test(test_keys),           cmocka_unit_test(test_bad_values),
        cmocka_unit_test(test_contradictions), cmocka_unit_test(test_did_you_mean),
        cmocka_unit_test(test_choosing),
    };
    return cmocka_run_group_tests(tests, NULL, done);
}
