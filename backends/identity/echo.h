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

struct naru_backend_lib {
    const naru_host *host;
};

struct echo_io {
    naru_model_info info;
    naru_io *inputs, *outputs;
    void *memory; /* of all names and shapes */
};

/* The models of these plug-ins begin with this, their instances with echo_instance: the functions
 * below find them there. */
struct echo_model {
    naru_backend_lib *lib;
    const char *name; /* of the plug-in, constant */
    struct echo_io io;
};

struct echo_instance {
    naru_backend_model *model;
};

/* A zeroed model of `bytes` with its echo_model filled from args; closed by echo_model_close. On
 * error nothing is owned. Errors: NARU_INVALID with a text, NARU_NOMEM. */
naru_status echo_model_new(naru_backend_lib *lib, const char *name, const naru_model_args *args,
                           size_t bytes, naru_backend_model **ret, naru_text *err);
/* The same of an instance. NARU_UNSUPPORTED for any device but the CPU. */
naru_status echo_instance_new(naru_backend_model *model, int32_t device, size_t bytes,
                              naru_backend_instance **ret, naru_text *err);

/* Slots of the table. */
naru_status echo_lib_open(const naru_host *host, const naru_option *options, uint32_t n_options,
                          naru_backend_lib **ret, naru_text *err);
void echo_lib_close(naru_backend_lib *lib);
void echo_model_close(naru_backend_model *model);
const naru_model_info *echo_model_info(naru_backend_model *model);
naru_status echo_instance_open(naru_backend_model *model, uint32_t index, int32_t device,
                               naru_backend_instance **ret, naru_text *err);
void echo_instance_close(naru_backend_instance *instance);

/* Copies every input that an output is asked for. What may go wrong is the memory of an output, and
 * an output whose optional input was left out. */
naru_status echo_copy(const struct echo_model *model, naru_batch *batch, naru_text *err);

#endif
