/* From a decoded picture to tensor bytes and back, as a plan says.
 *
 * In:  nr_image_job_init (geometry only, no pixels) → the caller makes room for
 *      job.tile_bytes, or job.tile_bytes * job.n_tiles → nr_image_fit (resize, crop, pad: the
 *      canvas) → nr_image_tile_write for each tile.
 * Out: nr_image_stitch_add for each tile's output → nr_image_stitch_take: the picture.
 *
 * Padding by reflection goes to the right and the bottom, as numpy.pad(mode="reflect") does: the
 * edge itself is not repeated. It happens while a tensor is written; no padded picture exists.
 * Tiles of a picture all have the same size: the plan's, or less where the same number of smaller ones
 * covers the picture. They begin every (size - overlap) pixels, on a grid of multiple_of, so that networks
 * with strides see the same grid as in the whole picture; the last of a row or column is moved back so
 * that it ends with the padded canvas. Where two tiles overlap the output
 * is cut in the middle of what they share: for a network whose receptive field reaches no farther
 * than overlap / 2 the result is, bit by bit, that of the whole picture.
 * Everything is pure; a job is a plain value. Any thread.
 */
#ifndef NR_CODEC_IMAGE_TENSOR_H
#define NR_CODEC_IMAGE_TENSOR_H

#include "codec/image_plan.h"

#define NR_IMAGE_MAX_TILES 65536

struct nr_image_job {
    const struct nr_image_plan *plan; /* borrowed */
    uint32_t src_w, src_h;            /* the picture's size */
    struct nr_fit fit;                /* how the picture becomes the canvas */
    uint32_t canvas_w, canvas_h;      /* pixels before padding by reflection */
    uint32_t padded_w, padded_h;      /* after it */
    uint32_t tile_w, tile_h;          /* what the model sees; the padded canvas without tiling */
    uint32_t tiles_x, tiles_y;
    uint32_t n_tiles;  /* tiles_x * tiles_y */
    size_t tile_bytes; /* one tile's tensor row */
    uint32_t rank;     /* shape of a tensor with one tile, row dimension included */
    int64_t
        shape[NARU_MAX_RANK + 1]; /* when plan->batches shape[0] is 1: set it to the rows sent */
};

/* Geometry of a picture of that (upright) size. Errors: NARU_TOO_LARGE (padded size over the
 * limits, too many tiles), NARU_INVALID (the size does not suit the model's fixed dims). */
nr_nodiscard nr_status nr_image_job_init(const struct nr_image_plan *plan, uint32_t width,
                                         uint32_t height, struct nr_image_job *ret,
                                         struct nr_err *err);

/* The canvas: img in the plan's colour, resized, cropped or padded. One more reference to img's
 * pixels when nothing changes. img must have the job's size. */
nr_nodiscard nr_status nr_image_fit(const struct nr_image_job *job, const struct nr_image *img,
                                    struct nr_image *ret_canvas, struct nr_err *err);

/* Position of a tile (row by row) in the padded canvas. */
void nr_image_tile_at(const struct nr_image_job *job, uint32_t tile, uint32_t *ret_x,
                      uint32_t *ret_y);

/* Writes the tile's tensor row, exactly job->tile_bytes, to dst (any alignment). */
void nr_image_tile_write(const struct nr_image_job *job, const struct nr_image *canvas,
                         uint32_t tile, void *dst);

/* Collects outputs of tiles into one picture. {0} before use. */
struct nr_image_stitch {
    struct nr_image_job job;
    struct nr_image out; /* {0} before the first tile */
    uint32_t factor;     /* output pixels per input pixel; 0: the output's size has nothing to do
                            with the input's, and is taken as it is */
};
void nr_image_stitch_init(struct nr_image_stitch *s, const struct nr_image_job *job);

/* Adds one tile's output: one row of the plan's output tensor, shape[rank] with or without leading
 * dimensions of 1; layout as the plan's, 1 or 3 channels. Values are multiplied by output_scale,
 * rounded half up (floor(x + 0.5)) and clipped to 0..255; NaN gives 0. BGR plans give BGR outputs.
 * The tensor may be larger than the tile by a whole factor of up to 16 (super resolution). NARU_INVALID when
 * shape, dtype or byte count do not fit. Data may have any alignment. */
nr_nodiscard nr_status nr_image_stitch_add(struct nr_image_stitch *s, uint32_t tile, int32_t dtype,
                                           uint32_t rank, const int64_t *shape, const void *data,
                                           size_t bytes, struct nr_err *err);

/* Hands the picture over: padding by reflection cut off, and with fit = pad the bars too. Adding
 * every tile before is the caller's duty (what was not added is black). */
nr_nodiscard nr_status nr_image_stitch_take(struct nr_image_stitch *s, struct nr_image *ret,
                                            struct nr_err *err);
void nr_image_stitch_done(struct nr_image_stitch *s); /* after take, or to give up */

#endif
