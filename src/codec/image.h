/* Pictures: JPEG, PNG and WebP bytes ↔ interleaved 8-bit pixels.
 *
 * What a decoded picture is, whatever its file was:
 *   - 8 bits per channel, interleaved, rows dense, RGB (3 channels) or grey (1 channel);
 *   - 16-bit PNG samples scaled by 255/65535 with correct rounding; 1, 2, 4 bits by 255/(2^n - 1);
 *   - alpha (and PNG tRNS) composited on white: round((c * a + 255 * (255 - a)) / 255); 16-bit
 *     samples are composited before they are scaled;
 *   - CMYK and YCCK JPEG converted as Pillow does: inverted inks, (255 - k) * (255 - c) / 255;
 *   - upright: EXIF orientation 1-8 of JPEG, PNG (eXIf) and WebP applied;
 *   - colour profiles and gamma are ignored, as Pillow and OpenCV ignore them;
 *   - grey from RGB is (19595 R + 38470 G + 7471 B + 32768) >> 16, Pillow's "L".
 *
 * Functions are pure and may run on any thread; decoding blocks for milliseconds (the pool's work).
 * Pixels live in a struct nr_buf, so they count against the process's budget. The libraries' own
 * working memory does not; nr_image_info.work_bytes is an upper estimate of it.
 * Errors: NARU_INVALID (broken, truncated), NARU_MEDIA_TYPE (a format that is not read),
 * NARU_TOO_LARGE (limits), NARU_NOMEM. Sources: ITU T.81, PNG 3rd edition, RFC 9649, EXIF 2.32.
 */
#ifndef NR_CODEC_IMAGE_H
#define NR_CODEC_IMAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "base/str.h"

struct nr_buf;

enum nr_image_format {
    NR_IMAGE_UNKNOWN,
    NR_IMAGE_JPEG,
    NR_IMAGE_PNG,
    NR_IMAGE_WEBP,
    /* recognised for the sake of the error text, never decoded */
    NR_IMAGE_GIF,
    NR_IMAGE_BMP,
    NR_IMAGE_TIFF,
    NR_IMAGE_HEIC,
    NR_IMAGE_AVIF,
};

enum nr_image_color {
    NR_IMAGE_NATIVE, /* decoding: grey files stay grey, all others become RGB */
    NR_IMAGE_RGB,
    NR_IMAGE_GRAY,
    NR_IMAGE_BGR, /* of tensors only (image_plan.h); decoding treats it as RGB */
};

struct nr_image_limits {
    uint64_t max_pixels; /* width * height */
    uint32_t max_side;   /* pixels, each side */
    uint32_t max_scans;  /* of a JPEG; a progressive picture has about 10 */
};
#define NR_IMAGE_MAX_PIXELS 50000000
#define NR_IMAGE_MAX_SIDE 16384
#define NR_IMAGE_MAX_SCANS 64
#define NR_IMAGE_LIMITS_DEFAULT \
    ((struct nr_image_limits){NR_IMAGE_MAX_PIXELS, NR_IMAGE_MAX_SIDE, NR_IMAGE_MAX_SCANS})

/* What the header says, before anything is decoded. */
struct nr_image_info {
    enum nr_image_format format;
    uint32_t stored_width; /* in the file */
    uint32_t stored_height;
    uint32_t width; /* upright: swapped for orientations 5-8 */
    uint32_t height;
    uint32_t channels;   /* of the decoded native picture: 1 or 3 */
    uint32_t components; /* in the file, palettes counted as they expand: 1, 2, 3, 4 */
    uint32_t bit_depth;  /* bits per sample in the file */
    uint8_t orientation; /* 1-8; 1 when the file says nothing */
    bool has_alpha;
    bool progressive;    /* progressive JPEG, interlaced PNG */
    bool lossless;       /* PNG and lossless WebP */
    uint32_t scans;      /* JPEG; else 0 */
    uint64_t work_bytes; /* upper estimate of memory while decoding, result included */
};

/* A decoded picture. {0} is "none". Owns one reference of buf. */
struct nr_image {
    uint32_t width;
    uint32_t height;
    uint32_t channels; /* 1 or 3; a row has width * channels bytes, rows follow without gaps */
    struct nr_buf *buf;
};

/* By the first bytes (12 suffice). NR_IMAGE_UNKNOWN when they are no picture known here. */
enum nr_image_format nr_image_sniff(const void *data, size_t len);
const char *nr_image_format_name(enum nr_image_format format);  /* "JPEG"; "unknown" */
const char *nr_image_format_media(enum nr_image_format format); /* "image/jpeg"; NULL if unknown */
/* "png", "jpeg" or "jpg", "webp" (any case) or such a media type; false for others. */
bool nr_image_format_parse(struct nr_str s, enum nr_image_format *ret);

/* Reads the header and walks the file's blocks; no pixel is decoded and nothing is allocated.
 * limits may be NULL: the defaults. Over a limit: NARU_TOO_LARGE. */
nr_nodiscard nr_status nr_image_probe(const void *data, size_t len,
                                      const struct nr_image_limits *limits,
                                      struct nr_image_info *ret, struct nr_err *err);

/* Probes and decodes. On success *ret owns its pixels (nr_image_done); on error it is {0}. */
nr_nodiscard nr_status nr_image_decode(const void *data, size_t len, enum nr_image_color color,
                                       const struct nr_image_limits *limits, struct nr_image *ret,
                                       struct nr_err *err);

/* An image with undefined pixels. channels 1 or 3. */
nr_nodiscard nr_status nr_image_new(uint32_t width, uint32_t height, uint32_t channels,
                                    struct nr_image *ret, struct nr_err *err);
void nr_image_done(struct nr_image *img); /* leaves {0}; accepts {0} */
uint8_t *nr_image_data(const struct nr_image *img);
static inline size_t nr_image_row_bytes(const struct nr_image *img)
{
    return (size_t)img->width * img->channels;
}

/* A picture in the wanted colour: the same pixels (one more reference) when nothing changes. */
nr_nodiscard nr_status nr_image_to_color(const struct nr_image *img, enum nr_image_color color,
                                         struct nr_image *ret, struct nr_err *err);

struct nr_image_encode_opts {
    enum nr_image_format format;
    int quality;   /* JPEG and WebP, 1-100; 0: NR_IMAGE_QUALITY. PNG does not lose anything */
    bool lossless; /* WebP */
    int effort;    /* PNG: zlib level 1-9; WebP: method 1-6; 0: a fast default */
};
#define NR_IMAGE_QUALITY 90

/* Appends the file to out (caller's, initialised with a cap; over the cap: NARU_TOO_LARGE). On
 * error out may hold a part. JPEG is written 4:4:4 from quality 95 on, else 4:2:0. */
nr_nodiscard nr_status nr_image_encode(const struct nr_image *img,
                                       const struct nr_image_encode_opts *opts, struct nr_text *out,
                                       struct nr_err *err);

#endif
