/* The plug-in interface of naru, version 1.2.
 *
 * A plug-in is a shared object that exports one symbol, naru_backend_entry. It includes nothing
 * but include/naru/. Four levels: backend (the library) → model (opened files) → instance (what
 * runs one batch at a time) → batch.
 *
 * Rules for every slot
 *  - Both tables begin with struct_size, abi_major, abi_minor. Major must be equal. Slots are only
 *    appended; a slot exists when struct_size covers it and it is not NULL (NARU_HAS).
 *  - "Required" slots must be there; "optional" ones may be NULL.
 *  - Structs reached by pointer begin with struct_size and may grow at their end. Structs that come
 *    in arrays (naru_option, naru_io, naru_request, naru_tensor, naru_segment) keep their size for
 *    the whole of major 1; `reserved` members are 0 and not read.
 *  - Strings and arrays passed in are borrowed until the call returns, unless said otherwise.
 *  - On error a function leaves *ret untouched, owns nothing, and may fill *err, which is never
 *    NULL and has room for a byte at least.
 *  - Threads: the host never calls two functions on the same instance at once. Different
 *    instances and models may be called at the same time from different threads, unless the
 *    backend sets NARU_CAP_ONE_THREAD.
 *  - A plug-in must not call exit, abort, or change signal handlers, the locale or the directory.
 *
 * Completion: execute() answers a whole batch exactly once. It either returns NARU_OK or an error
 * (the batch is complete on return), or NARU_PENDING, and then calls host->batch_done exactly
 * once later, from any thread. Single requests of a batch may fail by host->request_fail before
 * completion; the others are answered normally.
 */
#ifndef NARU_BACKEND_H
#define NARU_BACKEND_H

#include <stddef.h>
#include <stdint.h>

#include "naru/plugin.h"
#include "naru/status.h"
#include "naru/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

#define NARU_ABI_MAJOR 1
#define NARU_ABI_MINOR 2
#define NARU_ENTRY_SYMBOL "naru_backend_entry"

enum naru_cap {
    NARU_CAP_SEGMENTS = 1u << 0,    /* execute accepts inputs of several segments */
    NARU_CAP_ASYNC = 1u << 1,       /* execute may return NARU_PENDING */
    NARU_CAP_ONE_THREAD = 1u << 2,  /* the library must be called from one thread at a time */
    NARU_CAP_CODE_FORMAT = 1u << 3, /* its model files are programs: a worker process by default */
    NARU_CAP_FORK_SAFE = 1u << 4,   /* may be opened in a forked child after the parent opened it */
    NARU_CAP_DECOUPLED = 1u << 5,   /* may answer a request with several responses */
    NARU_CAP_INLINE = 1u << 6 /* execute never blocks: short models may run on an I/O thread */
};

typedef struct naru_io { /* one input or output of a model */
    const char *name;
    const int64_t *shape; /* [rank], -1 for a dimension that varies; batch dimension included */
    uint32_t rank;
    int32_t dtype;     /* enum naru_dtype_code */
    uint32_t optional; /* 1: a request may leave it out */
    uint32_t reserved;
} naru_io;

typedef struct naru_model_info { /* what the files say; arrays live as long as the model */
    uint32_t struct_size;
    uint32_t n_inputs;
    uint32_t n_outputs;
    uint32_t flags; /* enum naru_model_flag */
    const naru_io *inputs;
    const naru_io *outputs;
    const char *platform;  /* Triton's name of the format, e.g. "onnxruntime_onnx" */
    uint64_t weight_bytes; /* estimate of what the opened model holds in memory */
    /* 1.1: names of dimensions that vary, [n_inputs * NARU_MAX_RANK], that of dimension d of input i at
     * i * NARU_MAX_RANK + d; NULL or "" where it has none. Within a request, dimensions of one name
     * have one size: the server refuses the others. Optional: NULL when the files do not tell. */
    const char *const *input_symbols;
    /* 1.1: which of the options naru.opt.* have an effect on this model, ended by NULL; a text that
     * ends in '.' stands for all that begin with it. The server tells the user that the others have
     * none. NULL: none has. */
    const char *const *used_options;
} naru_model_info;

enum naru_model_flag {
    NARU_MODEL_STATIC_GRAPH = 1u << 0,   /* no control flow, shapes fixed but for the batch */
    NARU_MODEL_SHARED_SESSION = 1u << 1, /* several instances may execute at once without copies */
    NARU_MODEL_IO_UNKNOWN = 1u << 2,     /* the files do not tell; io repeats the arguments */
    NARU_MODEL_ELASTIC =
        1u << 3 /* 1.2: its executions are long and use several cores: the host may vary how
                                    many run at once and, where model_form makes it, their form */
};

enum naru_form { /* 1.2: how an execution uses the cores */
    NARU_FORM_WIDE =
        0, /* several threads, the fastest way for one execution that has the cores for itself;
                            always there */
    NARU_FORM_QUIET =
        1, /* several threads that sleep whenever they wait: beside others who want the cores */
    NARU_FORM_NARROW = 2 /* the calling thread alone: several executions side by side */
};
#define NARU_FORMS 3

typedef struct naru_model_args {
    uint32_t struct_size;
    int32_t dir_fd;   /* directory of the version; open files beneath it only (openat) */
    const char *name; /* of the model */
    const char *file; /* the model's file or folder within dir_fd, e.g. "model.onnx"; "" none */
    const char *path; /* the same directory as text, for libraries that need one */
    int64_t version;
    const naru_option *options; /* config.pbtxt `parameters`, `optimization` as naru.opt.*, and
                                   naru.decoupled "true" when a request may have several responses */
    uint32_t n_options;
    int32_t threads;        /* thread budget for one execution; 0: the plug-in decides */
    int32_t device;         /* -1 CPU, else the index of the device */
    int32_t max_batch_size; /* of the configuration; -1 when it says nothing */
    const naru_io *inputs;  /* of the configuration, batch dimension included; may be empty, and a
                              hint only: naru_model_info decides the order */
    const naru_io *outputs;
    uint32_t n_inputs;
    uint32_t n_outputs;
} naru_model_args;

typedef struct naru_request {   /* one request of a batch */
    const char *id;             /* "" when the client gave none */
    int64_t deadline_ns;        /* CLOCK_MONOTONIC; 0: none */
    uint64_t sequence_id;       /* 0: none */
    const naru_option *options; /* request parameters that the server does not interpret */
    uint32_t n_options;
    uint32_t sequence_flags; /* 1 start, 2 end */
    uint32_t rows;           /* its share of the batch dimension; 1 for a model without one */
    uint32_t reserved;
} naru_request;

typedef struct naru_batch {
    uint32_t struct_size;
    uint32_t n_requests;
    uint32_t n_inputs;
    uint32_t n_outputs;
    int64_t rows; /* sum of the requests' rows; 1 for a model without a batch dimension */
    const naru_request *requests;
    const naru_tensor *inputs;  /* all of naru_model_info, in its order */
    const naru_tensor *outputs; /* those asked for, ascending by naru_tensor::index; n_segments 1
                                   where the host has placed it already (dtype, shape and bytes are
                                   final): write there */
    void *host;                 /* the host's own */
    uint32_t form;              /* 1.2: enum naru_form, one that the model has; else 0 */
    uint32_t reserved;
} naru_batch;

typedef struct naru_host {
    uint32_t struct_size;
    uint16_t abi_major;
    uint16_t abi_minor;
    /* Memory for batch->outputs[index], shape[rank] with the whole batch's rows first.
     * bytes is needed for BYTES only (the serialized size), else 0. On success *ret points to the
     * placed tensor (borrowed until completion). Errors: NARU_INVALID (shape against the
     * configuration), NARU_NOMEM, NARU_TOO_LARGE. Required. Any thread that runs the batch. */
    naru_status (*output_alloc)(naru_batch *batch, uint32_t index, int32_t dtype, uint32_t rank,
                                const int64_t *shape, uint64_t bytes, const naru_tensor **ret);
    /* Fails one request of the batch; the message is copied. Before completion only. Required. */
    void (*request_fail)(naru_batch *batch, uint32_t request, naru_status status, const char *msg);
    /* 1 when the request's client has gone or its deadline has passed. Required. Any thread. */
    int32_t (*request_cancelled)(const naru_batch *batch, uint32_t request);
    /* Completes a batch for which execute returned NARU_PENDING. Exactly once. Required. */
    void (*batch_done)(naru_batch *batch, naru_status status, const char *msg);
    /* Sends one of several responses of a decoupled model (NARU_CAP_DECOUPLED): what
     * response_alloc gave since the last one. final 1 ends the request, and may come without outputs. A request
     * that got no final response ends with its batch. NARU_AGAIN: the reader is behind and nothing
     * was sent; call again later, or after response_wait. NARU_CANCELLED: nobody reads any more.
     * NARU_INVALID: neither outputs nor final. NARU_UNSUPPORTED: the model is not configured as
     * decoupled. One thread at a time for a request. Optional. */
    naru_status (*response_send)(naru_batch *batch, uint32_t request, int32_t final);
    /* Log line at level 0 debug, 1 info, 2 warning, 3 error. Required. Any thread. */
    void (*log)(int32_t level, const char *msg);
    /* Memory for batch->outputs[index] in the next response of one request: shape[rank] with that
     * request's rows first. Otherwise as output_alloc; *ret is borrowed until the response is sent.
     * A batch is answered by these or by output_alloc, not by both. Optional. */
    naru_status (*response_alloc)(naru_batch *batch, uint32_t request, uint32_t index,
                                  int32_t dtype, uint32_t rank, const int64_t *shape,
                                  uint64_t bytes, const naru_tensor **ret);
    /* Waits until response_send would not answer NARU_AGAIN: NARU_OK, NARU_TIMEOUT after timeout_ns,
     * NARU_CANCELLED. Only where the plug-in may block. Optional. */
    naru_status (*response_wait)(naru_batch *batch, uint32_t request, int64_t timeout_ns);
    /* Asks for one more execution of a request, of a model with iterative_sequence: when this batch is
     * complete the request is not answered but comes again, START false, maybe with others, with
     * the state that this execution gave it; other outputs of this execution are dropped. Before
     * completion only. NARU_UNSUPPORTED: the model is not configured so; NARU_INVALID: no such
     * request, or the batch is over. Optional. */
    naru_status (*request_again)(naru_batch *batch, uint32_t request);
} naru_host;

typedef struct naru_backend_lib naru_backend_lib; /* the plug-in's own */
typedef struct naru_backend_model naru_backend_model;
typedef struct naru_backend_instance naru_backend_instance;

typedef struct naru_device_info {
    uint32_t struct_size;
    int32_t kind; /* 0 CPU, 1 GPU, 2 other */
    int32_t id;
    uint32_t reserved;
    uint64_t memory_bytes;
    const char *name; /* lives as long as the library state */
} naru_device_info;

typedef struct naru_backend {
    uint32_t struct_size;
    uint16_t abi_major;
    uint16_t abi_minor;
    const char *name;    /* "onnxruntime" */
    const char *version; /* of the plug-in and its library */
    uint64_t caps;       /* enum naru_cap */
    /* Opens the library once per process. `host` lives until lib_close. Required. */
    naru_status (*lib_open)(const naru_host *host, const naru_option *options, uint32_t n_options,
                            naru_backend_lib **ret, naru_text *err);
    void (*lib_close)(naru_backend_lib *lib); /* accepts NULL. Required. */
    /* Opens the model's files. May block for long. Required. */
    naru_status (*model_open)(naru_backend_lib *lib, const naru_model_args *args,
                              naru_backend_model **ret, naru_text *err);
    /* Accepts NULL; after its instances. Required. */
    void (*model_close)(naru_backend_model *model);
    /* Borrowed; constant while the model is open. Required. */
    const naru_model_info *(*model_info)(naru_backend_model *model);
    /* index: 0.. count-1. Required. */
    naru_status (*instance_open)(naru_backend_model *model, uint32_t index, int32_t device,
                                 naru_backend_instance **ret, naru_text *err);
    void (*instance_close)(naru_backend_instance *instance); /* accepts NULL. Required. */
    /* Runs the batch; see "Completion" above. Texts by request_fail, or err for the whole. Required. */
    naru_status (*execute)(naru_backend_instance *instance, naru_batch *batch, naru_text *err);
    /* Asks a running batch to stop early for a request; a hint. It returns soon and does not
     * complete the batch itself. Optional. Any thread, also while execute runs. */
    void (*cancel)(naru_backend_instance *instance, naru_batch *batch, uint32_t request);
    /* Changes the thread budget of later executions. Optional. */
    naru_status (*thread_budget)(naru_backend_model *model, int32_t threads);
    /* Devices that the library can use besides the CPU. Optional. */
    uint32_t (*device_count)(naru_backend_lib *lib);
    naru_status (*device_get)(naru_backend_lib *lib, uint32_t index, naru_device_info *ret);
    /* Memory held now by the model, in bytes; for banners and budgets. Optional. */
    uint64_t (*model_memory)(naru_backend_model *model);
    /* Gives back memory that is kept only to make the next execution faster (arenas, caches, not
     * weights). The host calls it when no execution of the model has ended for a while; one may begin
     * meanwhile. Returns the bytes given back, about; 0: nothing to speak of. Optional. */
    uint64_t (*model_trim)(naru_backend_model *model);
    /* 1.2: makes a form other than NARU_FORM_WIDE (want 1), or drops it (want 0) when no execution uses
     * it. Of a model with NARU_MODEL_ELASTIC; weights are not held twice. May block; beside executions
     * and other functions of the model, but not beside itself. NARU_UNSUPPORTED: this model has no such
     * form, and *err says why. Optional. */
    naru_status (*model_form)(naru_backend_model *model, uint32_t form, int32_t want,
                              naru_text *err);
} naru_backend;

/* The one exported symbol. Borrowed constant; never NULL. */
typedef const naru_backend *(*naru_backend_entry_fn)(void);

#ifdef __cplusplus
}
#endif
#endif
