/* Pictures: probing and decoding take or refuse anything. What is decoded has the probed size and
 * channels, and can be resized and written as PNG and read back to the same pixels. Small limits keep
 * one input fast; what they refuse is the same code as with large ones. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "codec/image.h"
#include "codec/resize.h"

#define CHECK(cond)    \
    do {               \
        if (!(cond)) { \
            abort();   \
        }              \
    } while (0)

static void check_png_keeps(const struct nr_image *img)
{
    struct nr_text file;
    nr_text_init(&file, 1 << 24);
    const struct nr_image_encode_opts opts = {.format = NR_IMAGE_PNG, .effort = 1};
    struct nr_image back;
    CHECK(nr_image_encode(img, &opts, &file, NULL) == NARU_OK);
    CHECK(nr_image_decode(file.data, file.len, NR_IMAGE_NATIVE, NULL, &back, NULL) == NARU_OK);
    CHECK(back.width == img->width && back.height == img->height && back.channels == img->channels);
    CHECK(memcmp(nr_image_data(&back), nr_image_data(img), nr_image_row_bytes(img) * img->height) ==
          0);
    nr_image_done(&back);
    nr_text_done(&file);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const struct nr_image_limits limits = {.max_pixels = 16384, .max_side = 512, .max_scans = 8};
    struct nr_image_info info;
    struct nr_image img, small;
    struct nr_err err = {0};
    nr_status probed = nr_image_probe(data, size, &limits, &info, &err);
    CHECK(probed == NARU_OK || err.text[0] != '\0');
    nr_status st = nr_image_decode(data, size, NR_IMAGE_NATIVE, &limits, &img, &err);
    CHECK(probed == NARU_OK || st == probed);
    CHECK((st == NARU_OK) == (img.buf != NULL));
    if (st != NARU_OK) {
        return 0;
    }
    CHECK(img.width == info.width && img.height == info.height && img.channels == info.channels);
    check_png_keeps(&img);
    enum nr_resize_filter filter = (enum nr_resize_filter)(size % (NR_RESIZE_LANCZOS + 1));
    CHECK(nr_image_resize(&img, 1 + (uint32_t)(size % 67), 1 + (uint32_t)(size % 41), filter,
                          &small, NULL) == NARU_OK);
    nr_image_done(&small);
    nr_image_done(&img);
    return 0;
}
