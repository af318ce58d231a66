/* Pictures: telling formats apart, headers, limits, hostile files, cut files, orientation, memory
 * that fails. Fidelity against other implementations is tests/e2e/test_image_fidelity.py. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>

#include "base/buf.h"
#include "base/mem.h"
#include "codec/image.h"

#define W 37
#define H 23

/* A picture with a different value at every pixel of a small area. */
static void make(struct nr_image *img, uint32_t channels)
{
    assert_int_equal(nr_image_new(W, H, channels, img, NULL), NARU_OK);
    uint8_t *p = nr_image_data(img);
    for (size_t i = 0; i < (size_t)W * H * channels; i++) {
        p[i] = (uint8_t)(i * 31 + i / 100);
    }
}

static void encode(enum nr_image_format format, bool lossless, uint32_t channels,
                   struct nr_text *out)
{
    struct nr_image img;
    make(&img, channels);
    nr_text_init(out, 1 << 20);
    struct nr_image_encode_opts opts = {.format = format, .lossless = lossless};
    assert_int_equal(nr_image_encode(&img, &opts, out, NULL), NARU_OK);
    nr_image_done(&img);
}

/* Decodes a copy that ends where its memory ends, so that the sanitizer sees every overrun. */
static nr_status decode(const char *data, size_t len, struct nr_image *ret, struct nr_err *err)
{
    char *copy = malloc(len > 0 ? len : 1);
    assert_non_null(copy);
    memcpy(copy, data, len);
    nr_status st = nr_image_decode(copy, len, NR_IMAGE_NATIVE, NULL, ret, err);
    free(copy);
    return st;
}

static void test_sniff(void **state)
{
    (void)state;
    static const struct {
        struct nr_str head;
        enum nr_image_format format;
    } cases[] = {
        {NR_STR_INIT("\xff\xd8\xff\xe0"), NR_IMAGE_JPEG},
        {NR_STR_INIT("\xff\xd8"), NR_IMAGE_UNKNOWN},
        {NR_STR_INIT("\x89PNG\r\n\x1a\n"), NR_IMAGE_PNG},
        {NR_STR_INIT("\x89PNG\r\n\x1a"), NR_IMAGE_UNKNOWN},
        {NR_STR_INIT("RIFF\1\2\3\4WEBP"), NR_IMAGE_WEBP},
        {NR_STR_INIT("RIFF\1\2\3\4WAVE"), NR_IMAGE_UNKNOWN},
        {NR_STR_INIT("GIF89a"), NR_IMAGE_GIF},
        {NR_STR_INIT("BM\1\2\3\4\0\0\0\0"), NR_IMAGE_BMP},
        {NR_STR_INIT("BM: a text"), NR_IMAGE_UNKNOWN},
        {NR_STR_INIT("II*\0"), NR_IMAGE_TIFF},
        {NR_STR_INIT("MM\0*"), NR_IMAGE_TIFF},
        {NR_STR_INIT("\0\0\0\x18"
                     "ftypheic"),
         NR_IMAGE_HEIC},
        {NR_STR_INIT("\0\0\0\x18"
                     "ftypavif"),
         NR_IMAGE_AVIF},
        {NR_STR_INIT("\0\0\0\x18"
                     "ftypisom"),
         NR_IMAGE_UNKNOWN},
        {NR_STR_INIT("{\"inputs\":[]}"), NR_IMAGE_UNKNOWN},
        {NR_STR_INIT(""), NR_IMAGE_UNKNOWN},
    };
    for (size_t i = 0; i < NR_COUNT(cases); i++) {
        assert_int_equal(nr_image_sniff(cases[i].head.ptr, cases[i].head.len), cases[i].format);
        struct nr_image_info info;
        struct nr_err err = {0};
        nr_status st = nr_image_probe(cases[i].head.ptr, cases[i].head.len, NULL, &info, &err);
        if (cases[i].format != NR_IMAGE_JPEG && cases[i].format != NR_IMAGE_PNG &&
            cases[i].format != NR_IMAGE_WEBP) {
            assert_int_equal(st, NARU_MEDIA_TYPE);
            assert_non_null(strstr(err.text, "JPEG, PNG or WebP"));
        } else {
            assert_int_equal(st, NARU_INVALID); /* a head alone is a cut file */
        }
    }
    assert_int_equal(nr_image_sniff(NULL, 0), NR_IMAGE_UNKNOWN);
}

static void test_names(void **state)
{
    (void)state;
    enum nr_image_format f;
    assert_true(nr_image_format_parse(NR_STR("PNG"), &f) && f == NR_IMAGE_PNG);
    assert_true(nr_image_format_parse(NR_STR("jpg"), &f) && f == NR_IMAGE_JPEG);
    assert_true(nr_image_format_parse(NR_STR("image/WebP"), &f) && f == NR_IMAGE_WEBP);
    assert_false(nr_image_format_parse(NR_STR("gif"), &f));
    assert_false(nr_image_format_parse(NR_STR(""), &f));
    assert_string_equal(nr_image_format_media(NR_IMAGE_JPEG), "image/jpeg");
    assert_null(nr_image_format_media(NR_IMAGE_UNKNOWN));
}

static void test_round_trip(void **state)
{
    (void)state;
    static const struct {
        enum nr_image_format format;
        bool lossless;
        uint32_t channels, back;
    } cases[] = {
        {NR_IMAGE_PNG, false, 1, 1},  {NR_IMAGE_PNG, false, 3, 3},  {NR_IMAGE_WEBP, true, 3, 3},
        {NR_IMAGE_WEBP, true, 1, 3},  {NR_IMAGE_WEBP, false, 3, 3}, {NR_IMAGE_JPEG, false, 1, 1},
        {NR_IMAGE_JPEG, false, 3, 3},
    };
    for (size_t i = 0; i < NR_COUNT(cases); i++) {
        struct nr_text file;
        encode(cases[i].format, cases[i].lossless, cases[i].channels, &file);
        struct nr_image_info info;
        assert_int_equal(nr_image_probe(file.data, file.len, NULL, &info, NULL), NARU_OK);
        assert_int_equal(info.format, cases[i].format);
        assert_int_equal(info.width, W);
        assert_int_equal(info.height, H);
        assert_int_equal(info.channels, cases[i].back);
        struct nr_image img, again;
        assert_int_equal(decode(file.data, file.len, &img, NULL), NARU_OK);
        assert_true(img.width == W && img.height == H && img.channels == cases[i].back);
        if (cases[i].format == NR_IMAGE_PNG || cases[i].lossless) {
            struct nr_image original, same;
            make(&original, cases[i].channels);
            assert_int_equal(nr_image_to_color(&original,
                                               cases[i].back == 1 ? NR_IMAGE_GRAY : NR_IMAGE_RGB,
                                               &same, NULL),
                             NARU_OK);
            assert_memory_equal(nr_image_data(&img), nr_image_data(&same),
                                nr_image_row_bytes(&img) * H);
            nr_image_done(&original);
            nr_image_done(&same);
        }
        /* asking for what it is costs no copy */
        assert_int_equal(nr_image_to_color(&img, NR_IMAGE_NATIVE, &again, NULL), NARU_OK);
        assert_ptr_equal(img.buf, again.buf);
        nr_image_done(&again);
        nr_image_done(&img);
        nr_text_done(&file);
    }
}

static void test_every_cut_is_an_error(void **state)
{
    (void)state;
    static const enum nr_image_format list[] = {NR_IMAGE_PNG, NR_IMAGE_JPEG, NR_IMAGE_WEBP};
    for (size_t i = 0; i < NR_COUNT(list); i++) {
        struct nr_text file;
        encode(list[i], true, 3, &file);
        for (size_t n = 0; n < file.len; n++) {
            struct nr_image img;
            struct nr_err err = {0};
            nr_status st = decode(file.data, n, &img, &err);
            assert_true(st == NARU_INVALID || (n < 12 && st == NARU_MEDIA_TYPE));
            assert_null(img.buf);
            assert_true(err.text[0] != '\0');
        }
        nr_text_done(&file);
    }
}

/* Every byte changed in a few ways: never a crash, and on success a picture of the probed size. */
static void test_every_byte_changed(void **state)
{
    (void)state;
    static const enum nr_image_format list[] = {NR_IMAGE_PNG, NR_IMAGE_JPEG, NR_IMAGE_WEBP};
    static const uint8_t changes[] = {0x01, 0x80, 0xff};
    const struct nr_image_limits limits = {100000, 2000, 8};
    for (size_t i = 0; i < NR_COUNT(list); i++) {
        struct nr_text file;
        encode(list[i], true, 3, &file);
        for (size_t n = 0; n < file.len; n++) {
            for (size_t k = 0; k < NR_COUNT(changes); k++) {
                file.data[n] = (char)((uint8_t)file.data[n] ^ changes[k]);
                struct nr_image img;
                struct nr_image_info info;
                nr_status st =
                    nr_image_decode(file.data, file.len, NR_IMAGE_RGB, &limits, &img, NULL);
                if (st == NARU_OK) {
                    assert_int_equal(nr_image_probe(file.data, file.len, &limits, &info, NULL),
                                     NARU_OK);
                    assert_true(img.width == info.width && img.height == info.height);
                }
                nr_image_done(&img);
                file.data[n] = (char)((uint8_t)file.data[n] ^ changes[k]);
            }
        }
        nr_text_done(&file);
    }
}

static void test_limits(void **state)
{
    (void)state;
    struct nr_text file;
    encode(NR_IMAGE_PNG, false, 3, &file);
    struct nr_image_info info;
    struct nr_image_limits l = {W * H, W, 1};
    struct nr_err err = {0};
    assert_int_equal(nr_image_probe(file.data, file.len, &l, &info, NULL), NARU_OK);
    l.max_pixels--;
    assert_int_equal(nr_image_probe(file.data, file.len, &l, &info, &err), NARU_TOO_LARGE);
    assert_non_null(strstr(err.text, "37 x 23"));
    l = (struct nr_image_limits){W * H, W - 1, 1};
    assert_int_equal(nr_image_probe(file.data, file.len, &l, &info, &err), NARU_TOO_LARGE);
    /* a small file that declares a huge picture */
    memcpy(file.data + 16, "\0\0\x4e\x20\0\0\x4e\x20", 8);
    uint64_t before = nr_buf_live_bytes();
    struct nr_image img;
    assert_int_equal(decode(file.data, file.len, &img, &err), NARU_TOO_LARGE);
    assert_int_equal(nr_buf_live_bytes(), before);
    memcpy(file.data + 16, "\0\0\0\0\0\0\0\x01", 8);
    assert_int_equal(decode(file.data, file.len, &img, &err), NARU_INVALID);
    nr_text_done(&file);
}

/* Inserts an APP1 segment with an EXIF block behind SOI. */
static void add_exif(struct nr_text *out, const struct nr_text *jpeg, struct nr_str tiff)
{
    nr_text_init(out, 1 << 20);
    nr_text_add(out, jpeg->data, 2);
    size_t len = 2 + 6 + tiff.len;
    const uint8_t head[4] = {0xff, 0xe1, (uint8_t)(len >> 8), (uint8_t)len};
    nr_text_add(out, head, sizeof(head));
    nr_text_add(out, "Exif\0\0", 6);
    nr_text_add(out, tiff.ptr, tiff.len);
    nr_text_add(out, jpeg->data + 2, jpeg->len - 2);
}

#define TIFF_BE(value) \
    "MM\0*\0\0\0\x08\0\x02\x01\0\0\x03\0\0\0\x01\0\x09\0\0\x01\x12\0\x03\0\0\0\x01\0" value "\0\0"
#define TIFF_LE(value) "II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0" value "\0\0\0"

static void test_exif(void **state)
{
    (void)state;
    static const struct {
        struct nr_str tiff;
        uint8_t orientation;
    } cases[] = {
        {NR_STR_INIT(TIFF_BE("\x06")), 6},
        {NR_STR_INIT(TIFF_LE("\x08")), 8},
        {NR_STR_INIT(TIFF_LE("\x00")), 1},
        {NR_STR_INIT(TIFF_LE("\x09")), 1},
        {NR_STR_INIT("II*\0\x08\0\0\0\xff\xff\x12\x01\x03\0\x01\0\0\0\x05\0\0\0"),
         5}, /* says 65535 entries */
        {NR_STR_INIT("II*\0\x08\0\0\0\xff\xff"), 1},
        {NR_STR_INIT("II*\0\xff\xff\xff\xff\0\0\0\0\0\0"), 1},
        {NR_STR_INIT("II*\0\x0d\0\0\0\0\0\0\0\0\0"), 1},
        {NR_STR_INIT("IM*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x05\0\0\0"), 1},
        {NR_STR_INIT("XX"), 1},
        {NR_STR_INIT(""), 1},
    };
    struct nr_text jpeg;
    encode(NR_IMAGE_JPEG, false, 1, &jpeg);
    for (size_t i = 0; i < NR_COUNT(cases); i++) {
        struct nr_text file;
        add_exif(&file, &jpeg, cases[i].tiff);
        struct nr_image img;
        struct nr_image_info info;
        assert_int_equal(nr_image_probe(file.data, file.len, NULL, &info, NULL), NARU_OK);
        assert_int_equal(info.orientation, cases[i].orientation);
        assert_int_equal(decode(file.data, file.len, &img, NULL), NARU_OK);
        assert_int_equal(img.width, cases[i].orientation >= 5 ? H : W);
        assert_int_equal(img.height, cases[i].orientation >= 5 ? W : H);
        nr_image_done(&img);
        nr_text_done(&file);
    }
    nr_text_done(&jpeg);
}

static void test_jpeg_walk(void **state)
{
    (void)state;
    struct nr_text jpeg, file;
    encode(NR_IMAGE_JPEG, false, 3, &jpeg);
    struct nr_image img;
    struct nr_err err = {0};
    /* bytes behind the end (other pictures of a phone's file) are none of ours */
    nr_text_str(&jpeg, "trailing bytes");
    assert_int_equal(decode(jpeg.data, jpeg.len, &img, &err), NARU_OK);
    nr_image_done(&img);
    /* a second frame header, and a coding process that nobody reads */
    nr_text_init(&file, 1 << 20);
    nr_text_add(&file, jpeg.data, 2);
    nr_text_add(&file, "\xff\xc3\0\x0b\x08\0\x10\0\x10\x01\x01\x11\0", 13);
    nr_text_add(&file, jpeg.data + 2, jpeg.len - 2);
    assert_int_equal(decode(file.data, file.len, &img, &err), NARU_MEDIA_TYPE);
    file.data[3] = (char)0xc0;
    assert_int_equal(decode(file.data, file.len, &img, &err), NARU_INVALID);
    assert_non_null(strstr(err.text, "two frame headers"));
    /* a segment of impossible length */
    file.data[3] = (char)0xe5;
    file.data[5] = 1;
    assert_int_equal(decode(file.data, file.len, &img, &err), NARU_INVALID);
    /* header, then the end */
    const char empty[] = "\xff\xd8\xff\xd9";
    assert_int_equal(decode(empty, 4, &img, &err), NARU_INVALID);
    nr_text_done(&file);
    nr_text_done(&jpeg);
}

static void test_memory_fails(void **state)
{
    (void)state;
    static const enum nr_image_format list[] = {NR_IMAGE_PNG, NR_IMAGE_JPEG, NR_IMAGE_WEBP};
    for (size_t i = 0; i < NR_COUNT(list); i++) {
        struct nr_text file;
        encode(list[i], true, 3, &file);
        uint64_t before = nr_buf_live_bytes();
        nr_status st = NARU_NOMEM;
        for (uint64_t n = 1; n < 50 && st != NARU_OK; n++) {
            struct nr_image img;
            nr_mem_fail_after(n, false);
            st = nr_image_decode(file.data, file.len, NR_IMAGE_GRAY, NULL, &img, NULL);
            nr_mem_fail_after(0, false);
            assert_true(st == NARU_OK || st == NARU_NOMEM);
            assert_true((st == NARU_OK) == (img.buf != NULL));
            nr_image_done(&img);
        }
        assert_int_equal(st, NARU_OK);
        assert_int_equal(nr_buf_live_bytes(), before);
        nr_text_done(&file);
    }
}

static void test_encode_errors(void **state)
{
    (void)state;
    static const enum nr_image_format list[] = {NR_IMAGE_PNG, NR_IMAGE_JPEG, NR_IMAGE_WEBP};
    struct nr_image img;
    make(&img, 3);
    struct nr_err err = {0};
    for (size_t i = 0; i < NR_COUNT(list); i++) {
        struct nr_text out;
        nr_text_init(&out, 100);
        struct nr_image_encode_opts opts = {.format = list[i]};
        assert_int_equal(nr_image_encode(&img, &opts, &out, &err), NARU_TOO_LARGE);
        opts.quality = 101;
        assert_int_equal(nr_image_encode(&img, &opts, &out, &err), NARU_INVALID);
        opts = (struct nr_image_encode_opts){.format = NR_IMAGE_GIF};
        assert_int_equal(nr_image_encode(&img, &opts, &out, &err), NARU_NOT_ACCEPTABLE);
        nr_text_done(&out);
    }
    nr_image_done(&img);
}

static void test_quality_orders_sizes(void **state)
{
    (void)state;
    struct nr_image img;
    make(&img, 3);
    static const enum nr_image_format list[] = {NR_IMAGE_JPEG, NR_IMAGE_WEBP};
    for (size_t i = 0; i < NR_COUNT(list); i++) {
        size_t last = 0;
        for (int q = 10; q <= 90; q += 40) {
            struct nr_text out;
            nr_text_init(&out, 1 << 20);
            struct nr_image_encode_opts opts = {.format = list[i], .quality = q};
            assert_int_equal(nr_image_encode(&img, &opts, &out, NULL), NARU_OK);
            assert_true(out.len > last);
            last = out.len;
            nr_text_done(&out);
        }
    }
    nr_image_done(&img);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sniff),
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_every_cut_is_an_error),
        cmocka_unit_test(test_every_byte_changed),
        cmocka_unit_test(test_limits),
        cmocka_unit_test(test_exif),
        cmocka_unit_test(test_jpeg_walk),
        cmocka_unit_test(test_memory_fails),
        cmocka_unit_test(test_encode_errors),
        cmocka_unit_test(test_quality_orders_sizes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
