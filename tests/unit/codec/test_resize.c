/* Resizing, cropping, padding and the geometry of fitting. Values against Pillow itself are in
 * tests/e2e/test_image_fidelity.py; here is what must hold without it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/buf.h"
#include "base/mem.h"
#include "codec/resize.h"

static void make(struct nr_image *img, uint32_t w, uint32_t h, uint32_t ch, int fill)
{
    assert_int_equal(nr_image_new(w, h, ch, img, NULL), NARU_OK);
    uint8_t *p = nr_image_data(img);
    for (size_t i = 0; i < (size_t)w * h * ch; i++) {
        p[i] = (uint8_t)(fill >= 0 ? fill : (int)(i * 37 % 251));
    }
}

/* A flat picture stays flat under every filter and size: weights add up to exactly 1. */
static void test_flat(void **state)
{
    (void)state;
    static const uint32_t sizes[] = {1, 2, 3, 17, 50, 64, 200};
    for (int f = NR_RESIZE_NEAREST; f <= NR_RESIZE_LANCZOS; f++) {
        for (size_t i = 0; i < NR_COUNT(sizes) * NR_COUNT(sizes); i++) {
            struct nr_image img, out;
            make(&img, 50, 31, 1 + 2 * (uint32_t)(i % 2), 200);
            uint32_t w = sizes[i % NR_COUNT(sizes)], h = sizes[i / NR_COUNT(sizes)];
            assert_int_equal(nr_image_resize(&img, w, h, (enum nr_resize_filter)f, &out, NULL),
                             NARU_OK);
            assert_true(out.width == w && out.height == h && out.channels == img.channels);
            for (size_t k = 0; k < nr_image_row_bytes(&out) * h; k++) {
                assert_int_equal(nr_image_data(&out)[k], 200);
            }
            nr_image_done(&img);
            nr_image_done(&out);
        }
    }
}

static void test_known_values(void **state)
{
    (void)state;
    struct nr_image img, out;
    make(&img, 4, 1, 1, 0);
    memcpy(nr_image_data(&img), "\x00\x64\xc8\xff", 4);
    /* box to half: means of pairs, rounded half up */
    assert_int_equal(nr_image_resize(&img, 2, 1, NR_RESIZE_BOX, &out, NULL), NARU_OK);
    assert_int_equal(nr_image_data(&out)[0], 50);
    assert_int_equal(nr_image_data(&out)[1], 228); /* 227.5 */
    nr_image_done(&out);
    /* nearest takes the pixel under the centre */
    assert_int_equal(nr_image_resize(&img, 2, 1, NR_RESIZE_NEAREST, &out, NULL), NARU_OK);
    assert_memory_equal(nr_image_data(&out), "\x64\xff", 2);
    nr_image_done(&out);
    /* bilinear to twice: 3/4 and 1/4 of the neighbours */
    assert_int_equal(nr_image_resize(&img, 8, 1, NR_RESIZE_BILINEAR, &out, NULL), NARU_OK);
    assert_memory_equal(nr_image_data(&out), "\x00\x19\x4b\x7d\xaf\xd6\xf1\xff", 8);
    nr_image_done(&out);
    /* cubic overshoots beside an edge and is clipped, not wrapped */
    memcpy(nr_image_data(&img), "\x00\x00\xff\xff", 4);
    assert_int_equal(nr_image_resize(&img, 8, 1, NR_RESIZE_BICUBIC, &out, NULL), NARU_OK);
    assert_int_equal(nr_image_data(&out)[2], 0);
    assert_int_equal(nr_image_data(&out)[5], 255);
    nr_image_done(&out);
    nr_image_done(&img);
}

static void test_same_size_shares(void **state)
{
    (void)state;
    struct nr_image img, out;
    make(&img, 9, 7, 3, -1);
    assert_int_equal(nr_image_resize(&img, 9, 7, NR_RESIZE_LANCZOS, &out, NULL), NARU_OK);
    assert_ptr_equal(img.buf, out.buf);
    nr_image_done(&out);
    assert_int_equal(nr_image_resize(&img, 0, 7, NR_RESIZE_BOX, &out, NULL), NARU_TOO_LARGE);
    assert_int_equal(nr_image_resize(&img, 9, 16385, NR_RESIZE_BOX, &out, NULL), NARU_TOO_LARGE);
    assert_null(out.buf);
    nr_image_done(&img);
}

static void test_crop_and_pad(void **state)
{
    (void)state;
    struct nr_image img, out, back;
    make(&img, 9, 7, 3, -1);
    assert_int_equal(nr_image_pad(&img, 2, 3, 14, 11, 5, &out, NULL), NARU_OK);
    assert_int_equal(nr_image_data(&out)[0], 5);
    assert_int_equal(nr_image_crop(&out, 2, 3, 9, 7, &back, NULL), NARU_OK);
    assert_memory_equal(nr_image_data(&back), nr_image_data(&img), 9 * 7 * 3);
    nr_image_done(&back);
    assert_int_equal(nr_image_crop(&out, 6, 0, 9, 7, &back, NULL), NARU_INVALID);
    assert_int_equal(nr_image_crop(&out, UINT32_MAX, 0, 2, 7, &back, NULL), NARU_INVALID);
    assert_int_equal(nr_image_pad(&img, 6, 0, 14, 11, 0, &back, NULL), NARU_INVALID);
    assert_null(back.buf);
    nr_image_done(&out);
    nr_image_done(&img);
}

static void fit_is(uint32_t w, uint32_t h, enum nr_image_fit fit, struct nr_fit want)
{
    struct nr_fit f;
    nr_fit_compute(w, h, 224, 224, fit, &f);
    assert_memory_equal(&f, &want, sizeof(f));
}

static void test_fit(void **state)
{
    (void)state;
    fit_is(640, 480, NR_FIT_STRETCH, (struct nr_fit){224, 224, 0, 0, 224, 224});
    fit_is(640, 480, NR_FIT_CROP, (struct nr_fit){299, 224, 37, 0, 224, 224});
    fit_is(480, 640, NR_FIT_CROP, (struct nr_fit){224, 299, 0, 37, 224, 224});
    fit_is(640, 480, NR_FIT_PAD, (struct nr_fit){224, 168, 0, 28, 224, 224});
    fit_is(480, 640, NR_FIT_PAD, (struct nr_fit){168, 224, 28, 0, 224, 224});
    fit_is(100, 100, NR_FIT_CROP, (struct nr_fit){224, 224, 0, 0, 224, 224});
    fit_is(10000, 1, NR_FIT_PAD, (struct nr_fit){224, 1, 0, 111, 224, 224});
    /* always inside, for odd shapes */
    for (uint32_t w = 1; w < 400; w += 13) {
        for (uint32_t h = 1; h < 400; h += 11) {
            struct nr_fit f;
            nr_fit_compute(w, h, 97, 41, NR_FIT_CROP, &f);
            assert_true(f.x + 97 <= f.resized_w && f.y + 41 <= f.resized_h);
            assert_true(f.resized_w == 97 || f.resized_h == 41);
            nr_fit_compute(w, h, 97, 41, NR_FIT_PAD, &f);
            assert_true(f.x + f.resized_w <= 97 && f.y + f.resized_h <= 41);
            assert_true(f.resized_w == 97 || f.resized_h == 41);
        }
    }
}

static void test_names(void **state)
{
    (void)state;
    for (int i = NR_RESIZE_NEAREST; i <= NR_RESIZE_LANCZOS; i++) {
        enum nr_resize_filter f;
        assert_true(nr_resize_filter_parse(
            nr_str_from(nr_resize_filter_name((enum nr_resize_filter)i)), &f));
        assert_int_equal(f, i);
    }
    enum nr_resize_filter f;
    assert_false(nr_resize_filter_parse(NR_STR("cubic"), &f));
    assert_false(nr_resize_filter_parse(NR_STR("Bilinear"), &f));
}

static void test_memory_fails(void **state)
{
    (void)state;
    struct nr_image img, out;
    make(&img, 90, 70, 3, -1);
    uint64_t before = nr_buf_live_bytes();
    static const uint32_t sizes[][2] = {{40, 30}, {200, 30}, {40, 70}, {90, 10}};
    for (size_t i = 0; i < NR_COUNT(sizes); i++) {
        for (int f = NR_RESIZE_NEAREST; f <= NR_RESIZE_LANCZOS; f += 5) {
            nr_status st = NARU_NOMEM;
            for (uint64_t n = 1; n < 50 && st != NARU_OK; n++) {
                nr_mem_fail_after(n, false);
                st = nr_image_resize(&img, sizes[i][0], sizes[i][1], (enum nr_resize_filter)f, &out,
                                     NULL);
                nr_mem_fail_after(0, false);
                assert_true(st == NARU_OK || st == NARU_NOMEM);
                nr_image_done(&out);
            }
            assert_int_equal(st, NARU_OK);
            assert_int_equal(nr_buf_live_bytes(), before);
        }
    }
    nr_image_done(&img);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_flat),
        cmocka_unit_test(test_known_values),
        cmocka_unit_test(test_same_size_shares),
        cmocka_unit_test(test_crop_and_pad),
        cmocka_unit_test(test_fit),
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_memory_fails),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
