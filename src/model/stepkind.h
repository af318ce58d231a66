/* naru's own pipeline steps: what stands in `model_name` of an ensemble's step instead of a model.
 *
 *   model_name           reads                writes            parameters
 *   naru.image_decode    IMAGE                PIXELS            color, size, resize, fit
 *   naru.image_resize    PIXELS               PIXELS            size, resize, fit
 *   naru.image_normalize PIXELS               TENSOR            dtype, layout, color, scale, mean, std,
 *                                                               invert, size, resize, fit
 *   naru.image_encode    TENSOR               IMAGE             format, quality, layout, scale
 *   naru.if              CONDITION, INPUT     THEN, ELSE        compare, value, over
 *   naru.either          FIRST, SECOND        OUTPUT            -
 *   naru.split           INPUT                OUTPUT0, …        axis, sizes
 *   naru.join            INPUT0, …            OUTPUT            axis
 *
 * Parameters of step i (from 0, as configured) stand in the ensemble's `parameters` under
 * naru.step.<i>.<name>, so that the file stays one that Triton's tools can read. docs/pipelines.md
 * says what each does.
 *
 * This file knows names, parameters and shapes; sched/stepwork.h does the work.
 * A kind is read-only once it is made. Any thread.
 */
#ifndef NR_MODEL_STEPKIND_H
#define NR_MODEL_STEPKIND_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "codec/image.h"
#include "codec/image_plan.h"
#include "codec/infer.h"

struct nr_model_config;

#define NR_STEP_PREFIX "naru."            /* of model_name */
#define NR_STEP_PARAM_PREFIX "naru.step." /* of parameters */
#define NR_STEP_MAX_PARTS 256             /* of split and join */

enum nr_step_op {
    NR_STEP_DECODE,
    NR_STEP_RESIZE,
    NR_STEP_NORMALIZE,
    NR_STEP_ENCODE,
    NR_STEP_IF,
    NR_STEP_EITHER,
    NR_STEP_SPLIT,
    NR_STEP_JOIN
};
enum nr_step_compare {
    NR_STEP_NE,
    NR_STEP_EQ,
    NR_STEP_GT,
    NR_STEP_GE,
    NR_STEP_LT,
    NR_STEP_LE
};

struct nr_stepkind {
    enum nr_step_op op;
    const char *name;
    uint32_t batch; /* 1: the ensemble batches, tensors have the batch dimension in front */
    /* pictures: how they become tensors, or tensors them. alt: the same plan for pictures of one
     * channel (resize) or for tensors of integers (encode). Freed with the configuration. */
    const struct nr_image_plan *plan, *alt;
    struct nr_image_encode_opts encode;
    /* if */
    enum nr_step_compare compare;
    double value;
    bool over_all;
    /* split, join */
    uint32_t axis; /* without the batch dimension */
    uint32_t n_parts;
    const int64_t *sizes; /* split: [n_parts], -1 at most once: what is left; NULL: equal parts */
};

/* Tensors that a kind has, as far as they are known when the ensemble is loaded; names and order are
 * those of the table above. */
struct nr_step_spec {
    int32_t dtype; /* NARU_DTYPE_NONE: not mapped */
    uint32_t rank;
    int64_t shape[NARU_MAX_RANK];
};

/* Makes the kind of step `step`, whose name begins with NR_STEP_PREFIX, in c's memory. n_outputs: how
 * many it writes to. NARU_INVALID: no such kind, a parameter that it does not have, a bad value. */
nr_nodiscard nr_status nr_stepkind_make(struct nr_model_config *c, uint32_t step, const char *name,
                                        uint32_t n_inputs, uint32_t n_outputs,
                                        const struct nr_stepkind **ret, struct nr_err *err);
/* Index of an input or output by name, -1: it has none of that name. */
int32_t nr_stepkind_input(const struct nr_stepkind *k, struct nr_str name);
int32_t nr_stepkind_output(const struct nr_stepkind *k, struct nr_str name);
uint32_t nr_stepkind_n_inputs(const struct nr_stepkind *k);
uint32_t nr_stepkind_n_outputs(const struct nr_stepkind *k);
const char *nr_stepkind_names(const struct nr_stepkind *k, bool outputs); /* "CONDITION, INPUT" */
/* Checks what comes in (all inputs of the kind, those of `either` too) and says what goes out. */
nr_nodiscard nr_status nr_stepkind_infer(const struct nr_stepkind *k, const struct nr_step_spec *in,
                                         struct nr_step_spec *out, struct nr_err *err);

#endif
