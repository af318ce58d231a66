/* One inference, independent of the protocol it came by: what the JSON, binary and protobuf
 * decoders fill and the encoders read. Pure data; all memory is the request's arena, except tensor
 * bytes, which may be views on the body.
 *
 * A decoder knows the model's signature (struct nr_io_spec[]) while it decodes: names are resolved
 * to indexes, shapes and datatypes are checked, JSON numbers are parsed straight to their type.
 */
#ifndef NR_CODEC_INFER_H
#define NR_CODEC_INFER_H

#include <stdbool.h>
#include <stdint.h>

#include "base/arena.h"
#include "base/status.h"
#include "base/str.h"
#include "naru/tensor.h"

struct nr_buf;

/* One input or output of a model as clients see it. Owned by the model's configuration. */
struct nr_io_spec {
    struct nr_str name;
    int32_t dtype;
    uint32_t rank;                /* batch dimension included */
    int64_t shape[NARU_MAX_RANK]; /* -1: varies; [0] is -1 for the batch dimension */
    bool batched;                 /* shape[0] is the batch dimension */
    bool optional;
    bool ragged;
    int64_t row_bytes; /* bytes of one row (batched) or of the whole tensor when all dims
                                     are static and the datatype has a size; else -1 */
    bool reshaped;     /* the backend sees backend_shape instead of shape */
    uint32_t backend_rank;
    int64_t backend_shape[NARU_MAX_RANK];
};

/* A dimension of an input that the model gives the same name as dimensions of other inputs, "N" in
 * ONNX: all of them have one size within a request. */
struct nr_shared_dim {
    uint32_t input; /* in the signature */
    uint32_t dim;
    bool first; /* of its name; the others follow at once */
    const char *symbol;
};

/* Where the rows of inputs should lie: beside those of the requests that will be in their batch. */
struct nr_input_room {
    /* A buffer of exactly so many bytes for input `input` of the signature, one reference for the
     * caller; any thread. NULL: any memory is as good. */
    struct nr_buf *(*take)(void *arg, uint32_t input, size_t bytes);
    void *arg;
    bool eager; /* inputs that lie elsewhere are copied there when they come (eager_batching) */
};

/* What a decoder needs of a model version. */
struct nr_signature {
    const struct nr_io_spec *inputs;
    const struct nr_io_spec *outputs;
    unsigned n_inputs, n_outputs;
    int64_t max_batch_size; /* 0: no batch dimension */
    const struct nr_shared_dim *shared;
    unsigned n_shared;                /* 0 for most models */
    const struct nr_input_room *room; /* of the version that runs; NULL: none */
};

struct nr_infer_param {
    struct nr_str name;
    enum {
        NR_PARAM_BOOL,
        NR_PARAM_INT,
        NR_PARAM_UINT,
        NR_PARAM_DOUBLE,
        NR_PARAM_STRING
    } kind;
    bool b;
    int64_t i; /* NR_PARAM_UINT: the bits of a uint64_t */
    double d;
    struct nr_str s;
};

struct nr_infer_tensor {
    uint32_t index; /* in the signature */
    int32_t dtype;
    uint32_t rank;
    int64_t shape[NARU_MAX_RANK];
    int64_t elements;
    const uint8_t *data; /* serialized form of tensor.h; view or arena */
    size_t bytes;
    struct nr_buf *buf; /* owner of data, borrowed (tied to the arena), or NULL: the arena */
};

struct nr_infer_output {
    uint32_t index;          /* in the signature */
    bool binary;             /* as raw bytes behind the JSON */
    uint32_t classification; /* n best classes, 0 off */
};

struct nr_infer_request {
    struct nr_str id; /* empty when the client gave none (has_id false) */
    bool has_id;
    bool binary_default;            /* binary_data_output */
    int64_t rows;                   /* batch rows; 1 for a model without a batch dimension */
    struct nr_infer_tensor *inputs; /* [n_inputs] those that came, ascending by index */
    unsigned n_inputs;
    struct nr_infer_output *outputs; /* [n_outputs]; all of the model's when none was named */
    unsigned n_outputs;
    bool outputs_named;
    struct nr_infer_param *params; /* those the server does not interpret */
    unsigned n_params;
    uint64_t priority;   /* 0: default */
    uint64_t timeout_us; /* 0: none */
    uint64_t sequence_id;
    struct nr_str sequence_name; /* string form */
    bool sequence_start, sequence_end;
};

struct nr_infer_response {
    struct nr_str model_name, model_version, id;
    bool has_id;
    const struct nr_infer_tensor *outputs; /* index refers to the signature */
    const struct nr_infer_output *how;     /* same order */
    unsigned n_outputs;
};

#endif
