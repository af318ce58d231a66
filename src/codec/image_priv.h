/* Between the image_*.c files only: the three formats behind nr_image_probe, _decode, _encode.
 *
 * Probes fill everything of *ret that they know (the caller has zeroed it) and check blocks up to
 * the end of the file. Decoders get a probed info whose limits were checked, make `img` (native
 * colour, as stored: not upright) and leave {0} on error. Encoders append to out.
 */
#ifndef NR_CODEC_IMAGE_PRIV_H
#define NR_CODEC_IMAGE_PRIV_H

#include "base/buf.h"
#include "codec/image.h"

nr_nodiscard nr_status nr_jpeg_probe(struct nr_str file, struct nr_image_info *ret,
                                     struct nr_err *err);
nr_nodiscard nr_status nr_png_probe(struct nr_str file, struct nr_image_info *ret,
                                    struct nr_err *err);
nr_nodiscard nr_status nr_webp_probe(struct nr_str file, struct nr_image_info *ret,
                                     struct nr_err *err);

nr_nodiscard nr_status nr_jpeg_decode(struct nr_str file, const struct nr_image_info *info,
                                      struct nr_image *img, struct nr_err *err);
nr_nodiscard nr_status nr_png_decode(struct nr_str file, const struct nr_image_info *info,
                                     struct nr_image *img, struct nr_err *err);
nr_nodiscard nr_status nr_webp_decode(struct nr_str file, const struct nr_image_info *info,
                                      struct nr_image *img, struct nr_err *err);

nr_nodiscard nr_status nr_jpeg_encode(const struct nr_image *img,
                                      const struct nr_image_encode_opts *opts, struct nr_text *out,
                                      struct nr_err *err);
nr_nodiscard nr_status nr_png_encode(const struct nr_image *img,
                                     const struct nr_image_encode_opts *opts, struct nr_text *out,
                                     struct nr_err *err);
nr_nodiscard nr_status nr_webp_encode(const struct nr_image *img,
                                      const struct nr_image_encode_opts *opts, struct nr_text *out,
                                      struct nr_err *err);

/* Orientation of a TIFF structure, with or without "Exif\0\0" in front; 1 when it says none or is
 * broken (a broken EXIF block is no reason to refuse a good picture). */
uint8_t nr_exif_orientation(struct nr_str block);

/* n pixels of 8-bit grey + alpha (channels 1) or RGBA (3) composited on white. */
void nr_image_on_white(const uint8_t *src, size_t n, uint32_t channels, uint8_t *dst);

/* Appends to out; the status says whether the cap or the memory ended. */
nr_nodiscard nr_status nr_image_emit(struct nr_text *out, const void *data, size_t len,
                                     struct nr_err *err);

/* For nr_cleanup on work buffers. */
static inline void nr_image_buf_done(struct nr_buf **b)
{
    nr_buf_unref(*b);
}

/* a * b / 255, correctly rounded, for a, b in 0..255 */
static inline uint8_t nr_mul255(uint32_t a, uint32_t b)
{
    uint32_t t = a * b + 128;
    return (uint8_t)((t + (t >> 8)) >> 8);
}

#endif
