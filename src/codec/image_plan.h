/* What a model wants to be done with a picture, read once from its configuration.
 *
 * The keys (config.pbtxt `parameters`, all string values):
 *   naru.image.input        input's name; default: the only one that can hold a picture
 *   naru.image.layout       NCHW | NHWC; default: seen from the dims
 *   naru.image.color        RGB | BGR | GRAY; default: by the number of channels
 *   naru.image.size         "HxW"; default: the static dims, else the picture's own size
 *   naru.image.resize       nearest | box | bilinear (default) | hamming | bicubic | lanczos
 *   naru.image.fit          stretch (default) | crop | pad (pads with 0 before normalisation)
 *   naru.image.scale        a number or a fraction, "1/255"
 *   naru.image.mean, .std   one number, or one per channel in the tensor's channel order: "0.485, 0.456, 0.406"
 *   naru.image.invert       true | false: v becomes 255 - v before all arithmetic
 *   naru.image.multiple_of  sides are padded to a multiple by reflection (right and bottom)
 *   naru.image.tile         edge of a tile in pixels; pictures larger than it are run in tiles
 *   naru.image.tile_overlap pixels shared by neighbouring tiles (default: a quarter of the tile)
 *   naru.output             image | labels | tensor; default: see nr_image_plan_parse
 *   naru.output.tensor      output's name; default: the first floating (or UINT8) one
 *   naru.output.scale       image: factor before rounding; default 255, for integer types 1
 *   naru.output.top_k       labels: how many (default 5, at most NR_LABELS_MAX)
 *   naru.output.softmax     labels: true applies softmax to the scores; default false
 *   naru.output.format      image: png (default) | jpeg | webp
 *
 * Arithmetic per element, in float32, each step rounded, as NumPy does it:
 * ((v * scale) - mean) / std. FP16 and BF16 are rounded to nearest even from that; UINT8 and INT8
 * are rounded half to even and clipped. As v has 256 values the plan holds the results in a
 * table per channel: writing a tensor is a look-up, and equal to the arithmetic bit by bit.
 *
 * A plan is made when a model is loaded, owns all it holds, and is read-only afterwards: any
 * number of threads may use it.
 */
#ifndef NR_CODEC_IMAGE_PLAN_H
#define NR_CODEC_IMAGE_PLAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "base/str.h"
#include "codec/image.h"
#include "codec/resize.h"
#include "naru/tensor.h"

enum nr_image_layout {
    NR_LAYOUT_NCHW,
    NR_LAYOUT_NHWC,
};
enum nr_image_output {
    NR_OUTPUT_IMAGE,
    NR_OUTPUT_LABELS,
    NR_OUTPUT_TENSOR,
};
const char *nr_image_output_name(enum nr_image_output kind); /* "image" */

/* One key of the configuration, and one input or output of the model; borrowed for the call. */
struct nr_image_param {
    struct nr_str key;
    struct nr_str value;
};
struct nr_image_io {
    struct nr_str name;
    int32_t dtype;
    uint32_t rank;
    const int64_t *dims; /* as in the configuration: without the batch dimension when the model
                            batches; -1 where free */
};
struct nr_image_signature {
    const struct nr_image_io *inputs;
    size_t n_inputs;
    const struct nr_image_io *outputs;
    size_t n_outputs;
    bool batches;    /* max_batch_size > 0: tensors carry a row dimension in front of dims */
    bool has_labels; /* an output has a labels file: the default of naru.output is "labels" */
};

struct nr_image_plan {
    bool
        derived; /* from the signature alone: the configuration has no naru.image.*, naru.output* */
    /* input */
    char *input; /* name */
    int32_t dtype;
    enum nr_image_layout layout;
    enum nr_image_color color; /* RGB, BGR or GRAY */
    uint32_t channels;         /* 3 or 1 */
    uint32_t height, width;    /* fixed size; 0: the picture's own */
    enum nr_resize_filter filter;
    enum nr_image_fit fit;
    uint32_t multiple_of; /* 1: none */
    uint32_t tile;        /* 0: none */
    uint32_t tile_overlap;
    bool invert;
    float scale;
    float mean[3], std[3]; /* in the tensor's channel order */
    /* shape of one row as the model declares it, free dims -1; the batch dimension left out */
    uint32_t rank;
    int64_t dims[NARU_MAX_RANK];
    int32_t axis_c, axis_h, axis_w; /* index in dims; -1: no such axis (grey HxW, flat) */
    bool batches;                   /* see nr_image_signature */
    bool unit_row;                  /* does not batch but dims[0] is a batch of one picture */
    uint8_t element_bytes;
    uint32_t table[3][256]; /* element bits per tensor channel and byte value */
    /* output */
    enum nr_image_output output;
    char *output_tensor; /* name */
    int32_t output_dtype;
    float output_scale;
    uint32_t top_k;
    bool softmax;
    enum nr_image_format output_format;
};

/* Makes a plan. Keys that do not begin with "naru." are passed over; every naru.* key must be one
 * of the table above (NARU_INVALID names the nearest), so callers leave out naru.* keys of other
 * parts (naru.opt.*).
 * Without any such key the plan is derived: exactly one input of rank 3 or 4 (rank 2 or 3 for grey
 * HxW when static) with 3 or 1 channels at a recognisable place; scale 1/255 for floating types,
 * bytes as they are for UINT8. When the signature fits no picture: NARU_PRECONDITION, "takes no
 * pictures".
 * Default of naru.output: labels when has_labels; image when the output has the layout and number
 * of channels of a picture (1, 3) and its sides are free or at least 8; else labels when it is one
 * row of 2 or more floating numbers; else tensor.
 * On success the caller owns *ret: nr_image_plan_free. */
nr_nodiscard nr_status nr_image_plan_parse(const struct nr_image_param *params, size_t n_params,
                                           const struct nr_image_signature *sig,
                                           struct nr_image_plan **ret, struct nr_err *err);
void nr_image_plan_free(struct nr_image_plan *plan); /* accepts NULL */

/* The key of the table above that is most like `key`, and how far it is (nr_str_distance; 0: this is
 * it), for who keeps naru.* keys of its own beside these. */
struct nr_str nr_image_plan_nearest(struct nr_str key, unsigned *ret_distance);

/* One line for people: "input x: NCHW FP32 3x224x224, RGB, bilinear crop, …; output y: labels". */
void nr_image_plan_describe(const struct nr_image_plan *plan, struct nr_text *out);

#endif
