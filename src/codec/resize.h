/* Resizing with the filters, and the arithmetic, of the Python Imaging Library (Pillow).
 *
 * Two passes, in the order of Pillow 13 (older releases always ran the horizontal one first, which
 * differs for pictures that lose many more rows than columns); the filter's support grows with the
 * scale when shrinking; coefficients are 22-bit fixed point, each pass rounds to 8 bits. Results
 * equal Pillow's Image.resize(size, filter) within 1 of 255 (in practice they are the same bytes),
 * so a model trained with torchvision's PIL transforms sees what it was trained on.
 * Pure; any thread; work memory comes from nr_try_alloc and is freed before return.
 */
#ifndef NR_CODEC_RESIZE_H
#define NR_CODEC_RESIZE_H

#include <stdint.h>

#include "base/status.h"
#include "base/str.h"
#include "codec/image.h"

enum nr_resize_filter {
    NR_RESIZE_NEAREST,
    NR_RESIZE_BOX,
    NR_RESIZE_BILINEAR,
    NR_RESIZE_HAMMING,
    NR_RESIZE_BICUBIC,
    NR_RESIZE_LANCZOS,
};

const char *nr_resize_filter_name(enum nr_resize_filter f);               /* "bilinear" */
bool nr_resize_filter_parse(struct nr_str s, enum nr_resize_filter *ret); /* lower case names */

/* Makes a new picture of width x height (each 1..NR_IMAGE_MAX_SIDE) with img's channels. Equal
 * sizes give one more reference to the same pixels. On error *ret is {0}. */
nr_nodiscard nr_status nr_image_resize(const struct nr_image *img, uint32_t width, uint32_t height,
                                       enum nr_resize_filter filter, struct nr_image *ret,
                                       struct nr_err *err);

/* Cuts the rectangle out; it must lie inside. The whole picture gives one more reference. */
nr_nodiscard nr_status nr_image_crop(const struct nr_image *img, uint32_t x, uint32_t y,
                                     uint32_t width, uint32_t height, struct nr_image *ret,
                                     struct nr_err *err);

/* Puts img at (x, y) of a picture of width x height filled with `fill`; it must fit inside. */
nr_nodiscard nr_status nr_image_pad(const struct nr_image *img, uint32_t x, uint32_t y,
                                    uint32_t width, uint32_t height, uint8_t fill,
                                    struct nr_image *ret, struct nr_err *err);

enum nr_image_fit {
    NR_FIT_STRETCH, /* both sides as asked, the aspect ratio changes */
    NR_FIT_CROP,    /* covers the size, what stands over is cut off evenly (centre crop) */
    NR_FIT_PAD,     /* fits inside, the rest is filled evenly on both sides */
};

/* How a picture of width x height comes to want_w x want_h. */
struct nr_fit {
    uint32_t resized_w, resized_h; /* first resize to this */
    uint32_t x, y;                 /* CROP: of the rectangle in the resized picture;
                                      PAD: of the resized picture in the result; STRETCH: 0 */
    uint32_t width, height;        /* of the result */
};
/* Sizes are rounded half up, offsets down; a resized side is at least 1. CROP resizes so that the
 * shorter relative side fits exactly, as torchvision's Resize(short side) + CenterCrop for
 * square sizes. */
void nr_fit_compute(uint32_t width, uint32_t height, uint32_t want_w, uint32_t want_h,
                    enum nr_image_fit fit, struct nr_fit *ret);

#endif
