/* Configuration of one model version: config.pbtxt parsed, checked, completed from the model's own
 * files, and laid out for request code.
 *
 * A configuration lives in three steps, in this order, on one thread:
 *   1. nr_config_load     text → message (or an empty message when there is no file), static checks
 *   2. nr_config_files    which backend and which file, from the configuration and the directory
 *      (the host opens the model: naru_model_info)
 *   3. nr_config_complete missing parts from the model, defaults, checks against the model, and the
 *                         derived fields below
 * After step 3 it is immutable and may be read by any thread. All memory, strings and messages
 * included, belongs to its arena; pointers live until nr_config_free.
 *
 * Errors: NARU_INVALID for a configuration that is wrong, NARU_UNSUPPORTED for a feature that this
 * version does not serve, NARU_NOT_FOUND for a missing model file, NARU_TOO_LARGE, NARU_NOMEM. The
 * text names the field, what it says and what is allowed. On error the caller still frees the
 * configuration it was given.
 *
 * Meaning of the fields: Triton's model configuration. Deviations: without any configuration
 * max_batch_size becomes 64 (Triton: 4), KIND_CPU gets one instance (Triton: 2 for some backends).
 */
#ifndef NR_MODEL_CONFIG_H
#define NR_MODEL_CONFIG_H

#include <stdbool.h>
#include <stdint.h>

#include "base/arena.h"
#include "base/status.h"
#include "base/str.h"
#include "codec/infer.h"
#include "host/batch.h"
#include "naru/backend.h"
#include "proto/model_config.pb-c.h"

#define NR_CONFIG_MAX_BYTES (4u << 20)    /* of config.pbtxt */
#define NR_CONFIG_ARENA_BYTES (64u << 20) /* of everything made from it */
#define NR_CONFIG_MAX_BATCH 65536         /* largest max_batch_size taken */
#define NR_CONFIG_MAX_LEVELS 256          /* priority_levels of a queue */
#define NR_CONFIG_MAX_INSTANCES 1024      /* over all groups of a model */
#define NR_CONFIG_MAX_PREFERRED 16        /* preferred batch sizes, smallest first, that count */
#define NR_CONFIG_DEFAULT_BATCH 64        /* no configuration, batchable model */
#define NR_CONFIG_DEFAULT_BATCH_TRITON 4  /* a configuration that leaves it open */
/* Inputs and outputs of one batch of the default size take at most this; else it is halved. */
#define NR_CONFIG_DEFAULT_BATCH_BYTES (UINT64_C(256) << 20)

struct nr_ensemble;

struct nr_queue_policy {
    bool allow_override;         /* a client may shorten the time-out */
    bool delays;                 /* timeout_action DELAY */
    uint32_t max_queue_size;     /* 0: the server's default limit */
    uint64_t default_timeout_ns; /* 0: none */
};

enum nr_instance_kind {
    NR_INSTANCE_CPU,
    NR_INSTANCE_GPU,
    NR_INSTANCE_MODEL
};

struct nr_instance_resource { /* what the rate limiter gives an instance while it runs */
    const char *name;
    bool global; /* one store for all devices; else one for each */
    uint32_t count;
};

struct nr_instance_group {
    const char *name;
    enum nr_instance_kind kind;
    uint32_t count;  /* per device */
    uint32_t n_gpus; /* KIND_GPU: 1 at least */
    const int32_t *gpus;
    bool passive;            /* opened, but never given work */
    const char *host_policy; /* "" when the file names none */
    uint32_t priority;       /* of the rate limiter: one with 2 runs half as often as one with 1 */
    uint32_t n_resources;
    const struct nr_instance_resource *resources;
};

#define NR_CONFIG_PRIORITY "naru.priority"
#define NR_CONFIG_PRIORITY_ONE 1000 /* priority 1 in nr_model_config.priority */

enum nr_control_kind {
    NR_CONTROL_START,
    NR_CONTROL_READY,
    NR_CONTROL_END,
    NR_CONTROL_CORRID
};
struct nr_sequence_control { /* one input that the server writes */
    enum nr_control_kind kind;
    const char *name;
    int32_t dtype;
    uint8_t value[2][4]; /* little-endian elements for false and true; not of CORRID */
    uint32_t input;      /* in sequence->sig.inputs */
};
struct nr_sequence_state { /* one output that is the next request's input */
    const char *input_name, *output_name;
    int32_t dtype;
    uint32_t rank;        /* without the batch dimension */
    const int64_t *dims;  /* -1: varies */
    const int64_t *first; /* dims of the initial state, all known */
    const char *file;     /* its bytes, under initial_state/; NULL: zeros */
    bool same_buffer, growable;
    uint32_t input, output; /* in sequence->sig */
};
struct nr_sequence_config {
    bool direct;            /* else oldest */
    bool preserve_ordering; /* oldest */
    bool iterative;         /* the model may ask for a request again; ids may be left out */
    uint64_t idle_ns;
    uint64_t delay_ns;
    uint32_t max_candidates; /* oldest, per instance; 0: what the server allows */
    float min_utilization;   /* direct */
    uint32_t n_preferred;
    const int32_t *preferred; /* ascending */
    uint32_t n_controls, n_states;
    const struct nr_sequence_control *controls;
    const struct nr_sequence_state *states;
    /* The clients' signature, then control and state tensors: what the model is run with. Maps as
     * those of the configuration, for this signature. */
    struct nr_signature sig;
    const uint32_t *input_map, *output_map;
};

struct nr_model_config {
    struct nr_arena arena;
    Inference__ModelConfig *pb;   /* what ModelConfig reports; complete after step 3 */
    bool from_file;               /* there was a configuration file */
    bool gave_batch;              /* it says max_batch_size, be it 0 */
    bool gave_input, gave_output; /* it lists them: their order and types are the user's */
    const struct nr_ensemble
        *ensemble; /* from step 1: it runs other models (ensemble.h); or NULL */

    /* from step 2 */
    const char *name;
    const char *backend;  /* "onnxruntime" */
    const char *platform; /* "onnxruntime_onnx"; "" when the backend has no such name */
    const char *file;     /* within the version directory; "" when the backend needs none */

    /* from step 3 */
    int32_t max_batch_size; /* 0: the model does not batch */
    bool batched;           /* max_batch_size > 0: shapes begin with the batch dimension */
    const char *ignored; /* "model_warmup, rate_limiter": fields that change speed or order only and
                               have no effect, in this version or on this device; "" none */
    struct nr_signature sig;        /* inputs and outputs as clients see them */
    const char *const *label_files; /* [sig.n_outputs]; "" none */
    /* plug-in order (that of naru_model_info, or the configuration's where the model knows none):
     * input_map[i] is the plug-in's index of sig.inputs[i] */
    const uint32_t *input_map, *output_map;
    const struct nr_batch_ragged *ragged; /* NULL: every batch has one shape */
    uint32_t n_groups;
    const struct nr_instance_group *groups;
    uint32_t n_instances; /* over all groups and their devices, without the passive ones */
    uint32_t priority;    /* parameter naru.priority, in thousandths; 0: it is not given */

    bool decoupled;      /* 0 to many answers to a request; known after step 2 */
    bool response_cache; /* answers may be kept and given again */
    bool dynamic_batching;
    bool preserve_ordering;
    bool eager_batching; /* optimization: inputs are put into their batch when they come */
    uint32_t n_preferred;
    const int32_t *preferred; /* ascending, each in 1..max_batch_size */
    uint64_t max_queue_delay_ns;
    enum nr_config_parallelism {
        NR_CONFIG_PARALLEL_AUTO,
        NR_CONFIG_PARALLEL_WIDE,
        NR_CONFIG_PARALLEL_NARROW
    } parallelism;              /* parameter naru.parallelism */
    int64_t latency_target_ns;  /* parameter naru.latency_target_ms; 0: none */
    const char *batch_strategy; /* parameter naru.batch_strategy; NULL: the server's own */
    int64_t watchdog_ns;        /* parameter naru.watchdog_ms; 0: not watched; -1: the server's */
    uint32_t n_levels;          /* of priority, 1 at least; 1 without dynamic batching */
    uint32_t default_level;     /* from 0 */
    const struct nr_queue_policy *levels;      /* [n_levels] level 1, the most urgent, first */
    const struct nr_sequence_config *sequence; /* NULL: requests do not belong together */

    /* For naru_model_args, ready after step 2: `parameters` in file order, then what `optimization`
     * says, by path within the configuration: naru.opt.graph.level, naru.opt.priority,
     * naru.opt.cuda.graphs, naru.opt.cuda.busy_wait_events, naru.opt.cuda.output_copy_stream,
     * naru.opt.execution_accelerators.gpu_execution_accelerator.<i>.name (and, for cpu_…, likewise;
     * i from 0), ….<i>.parameters.<key>. Booleans are "true". */
    uint32_t n_options;
    const naru_option *options;
    /* shapes of the configuration for naru_model_args, batch dimension included, a ragged input as
     * [-1], inputs that the host makes (batch_input) behind the others; empty when it lists none. Ready after step 2. */
    uint32_t n_args_inputs, n_args_outputs;
    const naru_io *args_inputs, *args_outputs;
};

struct nr_config_source {
    const char *name;        /* of the model: the directory's */
    int model_fd;            /* directory that holds config.pbtxt; -1: there is no configuration */
    const char *config_name; /* --model-config-name: configs/<it>.pbtxt first; NULL or "" none */
};

/* Step 1. *ret is the caller's; nr_config_free. */
nr_nodiscard nr_status nr_config_load(const struct nr_config_source *src,
                                      struct nr_model_config **ret, struct nr_err *err);
/* Step 1 from memory; text NULL means "no configuration". `origin` stands in error texts. */
nr_nodiscard nr_status nr_config_parse(const char *name, const char *text, size_t len,
                                       const char *origin, struct nr_model_config **ret,
                                       struct nr_err *err);
/* Step 2. version_fd: directory of the version. bare_file: the model file when it is known already
 * (a file given on the command line), else NULL. */
nr_nodiscard nr_status nr_config_files(struct nr_model_config *c, int version_fd,
                                       const char *bare_file, struct nr_err *err);

/* Between steps 2 and 3: KIND_AUTO becomes KIND_GPU or KIND_CPU, and KIND_GPU without gpus gets all of
 * `gpus`, the numbers of what the backend can use. NARU_INVALID when a group wants another one;
 * where there is none at all, the backend is left to say so. */
nr_nodiscard nr_status nr_config_resolve_kinds(struct nr_model_config *c, const int32_t *gpus,
                                               unsigned n_gpus, struct nr_err *err);

struct nr_config_opts {
    bool auto_complete; /* false: inputs, outputs and max_batch_size are taken as configured */
    /* max_batch_size of a batchable model that says none; 0: the default above, -1: no batching.
     * Without any configuration, and with one that leaves it open: */
    int32_t default_batch;
    int32_t default_batch_open;
};
/* Step 3. info: borrowed for the call; NULL when the backend knows nothing of its model. */
nr_nodiscard nr_status nr_config_complete(struct nr_model_config *c, const naru_model_info *info,
                                          const struct nr_config_opts *opts, struct nr_err *err);
void nr_config_free(struct nr_model_config *c); /* accepts NULL */

/* Backend that opens files of this name ("model.onnx" → "onnxruntime"), NULL when none does. */
const char *nr_config_backend_of(const char *file);

/* As clients see it: completed; an ensemble is decoupled as its members are. Borrows from c and
 * *policy. */
void nr_config_view(const struct nr_model_config *c, bool decoupled, Inference__ModelConfig *ret,
                    Inference__ModelTransactionPolicy *policy);
void nr_config_json(const struct nr_model_config *c, struct nr_text *out);

#endif
