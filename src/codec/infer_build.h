/* What the decoders of JSON, raw bodies and protobuf share: names to indexes, datatypes and shapes
 * against the signature, the meaning of parameters, completeness. One decoder fills one
 * nr_infer_build; all memory is the arena's. One thread at a time.
 */
#ifndef NR_CODEC_INFER_BUILD_H
#define NR_CODEC_INFER_BUILD_H

#include <stdbool.h>
#include <stdint.h>

#include "base/arena.h"
#include "base/status.h"
#include "base/str.h"
#include "codec/infer.h"

#define NR_TENSOR_ARENA_MAX ((size_t)65536) /* larger tensors get a buffer of their own */

struct nr_output_choice {
    bool given;
    int8_t binary; /* -1: as binary_data_output says */
    uint32_t classification;
};

struct nr_infer_build {
    const struct nr_signature *sig;
    struct nr_arena *arena;
    struct nr_buf *owner; /* of the body, or NULL */
    bool in_room;         /* views on it lie in the version's room */
    struct nr_err *err;
    struct nr_infer_request *req;
    struct nr_infer_tensor *slots;    /* [sig->n_inputs]; dtype NARU_DTYPE_NONE: absent */
    struct nr_output_choice *outputs; /* [sig->n_outputs], NULL until one is named */
    unsigned n_given;                 /* inputs so far */
    unsigned params_capacity;
    bool is_grpc; /* parameters are a map (the last counts) and may hold
                     triton_enable_empty_final_response */
};

/* *req is filled step by step and complete after nr_infer_build_done. */
nr_nodiscard nr_status nr_infer_build_init(struct nr_infer_build *b, const struct nr_signature *sig,
                                           struct nr_arena *arena, struct nr_buf *owner,
                                           struct nr_infer_request *req, struct nr_err *err);
/* Opens the input `name`: refuses unknown ones and those that came. Sets datatype, shape and
 * element count after checking them. */
nr_nodiscard nr_status nr_infer_build_input(struct nr_infer_build *b, struct nr_str name,
                                            struct nr_str datatype, const int64_t *shape,
                                            uint32_t rank, struct nr_infer_tensor **ret);
/* Memory of the arena, or, beyond NR_TENSOR_ARENA_MAX, a buffer tied to it (*ret); NULL without. */
uint8_t *nr_infer_take(struct nr_arena *arena, size_t bytes, struct nr_buf **ret);
/* Memory for the input's data: arena or buffer. Sets data and bytes; NARU_NOMEM. */
nr_nodiscard nr_status nr_infer_build_alloc(struct nr_infer_build *b, struct nr_infer_tensor *t,
                                            size_t bytes, uint8_t **ret);
/* The input's data is data[bytes] in serialized form: checks it; copies only BOOL bytes that are
 * neither 0 nor 1, and what the version wants in its room at once. */
nr_nodiscard nr_status nr_infer_build_view(struct nr_infer_build *b, struct nr_infer_tensor *t,
                                           const uint8_t *data, size_t bytes);
/* A parameter of the request: takes those with a meaning, keeps the others. */
nr_nodiscard nr_status nr_infer_build_param(struct nr_infer_build *b,
                                            const struct nr_infer_param *p);
/* Names an output. */
nr_nodiscard nr_status nr_infer_build_output(struct nr_infer_build *b, struct nr_str name,
                                             struct nr_output_choice **ret);
/* The value of `classification` into the choice. */
nr_nodiscard nr_status nr_infer_build_classes(struct nr_infer_build *b, struct nr_output_choice *o,
                                              struct nr_str name, uint64_t n);
/* Everything was read: required inputs, equal rows, shared dimensions, outputs. binary: outputs that do not say
 * otherwise are binary. */
nr_nodiscard nr_status nr_infer_build_done(struct nr_infer_build *b, bool binary);

/* Dimensions of one name have one size. Inputs that did not come (absent, or of dtype
 * NARU_DTYPE_NONE) are left out. */
nr_nodiscard nr_status nr_infer_check_shared(const struct nr_signature *sig,
                                             const struct nr_infer_tensor *inputs,
                                             unsigned n_inputs, struct nr_err *err);

/* "input 'NAME'", for errors. */
const char *nr_infer_input_label(const struct nr_infer_build *b, const struct nr_infer_tensor *t,
                                 char text[128]);
nr_nodiscard nr_status nr_infer_no_shared_memory(struct nr_infer_build *b, struct nr_str name);

#endif
