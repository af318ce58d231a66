/* What identity, delay and fault have in common: a model without files whose i-th output repeats
 * its i-th input.
 *
 * Inputs and outputs come from the configuration, or, to try auto-completion, from the parameter
 * "io", a list of datatype and shape for one pair each: "FP32[-1,16];BYTES[-1,1]" gives INPUT0,
 * INPUT1 and OUTPUT0, OUTPUT1.
 */
#ifndef NR_BACKENDS_IDENTITY_ECHO_H
#define NR_BACKENDS_IDENTITY_ECHO_H

#include "naru/backend.h"
#include "naru/helper.h"

struct echo_io {
    naru_model_info info;
    naru_io *inputs, *outputs;
    void *memory; /* of all names and shapes */
};

/* Fills *io from args. On error nothing is owned. Errors: NARU_INVALID with a text, NARU_NOMEM. */
naru_status echo_io_init(struct echo_io *io, const naru_model_args *args, naru_text *err);
void echo_io_done(struct echo_io *io);

/* Copies every input that an output is asked for. What may go wrong is the memory of an output, and
 * an output whose optional input was left out. */
naru_status echo_copy(const naru_host *host, const struct echo_io *io, naru_batch *batch,
                      naru_text *err);

#endif
