/* The host's side of struct naru_batch: requests in, one execution, slices of the outputs out.
 *
 * One nr_batch belongs to one running place (an instance, or an instance and the batch formed
 * while it runs: then two) and is used over and over; after the first rounds nothing here
 * allocates with malloc.
 *
 *   nr_batch_new(&cfg, &b, &err);
 *   for each request: if (nr_batch_fits(b, &req)) nr_batch_add(b, &req, &err);
 *   if (nr_batch_run(b, instance) == NARU_PENDING) { wait for cfg.on_done } 
 *   for each request i: nr_batch_result(b, i, &err) → nr_batch_output(b, o, i, &slice) …
 *   nr_batch_clear(b);
 *
 * Memory. Input bytes are borrowed from nr_batch_add until nr_batch_clear. They are handed to the
 * plug-in where they lie when the batch has one request or the requests' bytes are adjacent (slots.h;
 * and the first byte is aligned to the size of an element) or when the plug-in takes segments; otherwise they are gathered once into a buffer
 * of the batch. Outputs are reference-counted buffers, 64-byte aligned: placed before the execution
 * when their shape is known from the rows, else when the plug-in asks. A slice is valid until
 * nr_batch_clear; who needs it longer (a response being sent) takes nr_buf_ref(slice.buf). A
 * buffer that somebody still holds is not written again: the next run gets another.
 *
 * Threads: a batch has one owner at a time; nr_batch_run passes it to the plug-in until completion.
 * Only nr_batch_cancel and nr_batch_late may be called by others meanwhile.
 * Completion is delivered exactly once per run. A plug-in that completes a batch a second time, or
 * calls into one that is over, is ignored, counted (nr_batch_late) and logged at debug level.
 */
#ifndef NR_HOST_BATCH_H
#define NR_HOST_BATCH_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/status.h"
#include "naru/backend.h"

struct nr_batch;
struct nr_plugin;
struct nr_plugin_instance;

/* The functions that plug-ins are given. One table for the process. */
extern const naru_host nr_host_table;

struct nr_batch_response_output {
    uint32_t output; /* index of nr_batch_cfg.outputs */
    struct nr_buf *buf;
    naru_tensor tensor; /* shape and segments point into this struct */
    naru_segment segment;
    int64_t shape[NARU_MAX_RANK];
};
struct nr_batch_response { /* of one request; outputs in the order in which they were allocated */
    bool final;
    uint32_t n_outputs;
    struct nr_batch_response_output outputs[];
};
void nr_batch_response_free(struct nr_batch_response *r); /* accepts NULL; any thread */

/* Ragged batches, Triton's allow_ragged_batch, batch_input and batch_output: requests of different
 * shapes in one batch, their inputs in one row of elements. All indexes are those of nr_batch_cfg;
 * the input that a source names is one of the requests'. Of their tensors the shapes, too, are
 * borrowed until nr_batch_clear. Needs a batch dimension. */
enum nr_batch_made_kind { /* values, INT32 or FP32, in the order of requests */
    NR_MADE_ELEMENTS,     /* [requests] elements of the source */
    NR_MADE_ENDS,         /* [requests] their running sum */
    NR_MADE_BOUNDS,       /* [requests + 1] the same with a 0 in front */
    NR_MADE_LARGEST,    /* [n] zeros: n is the largest number of elements, a shape with no values */
    NR_MADE_SHAPES,     /* [rows, rank - 1] shape behind the batch dimension, for each row */
    NR_MADE_SHAPES_FLAT /* [rows * (rank - 1)] the same */
};
struct nr_batch_made { /* an input that no request brings */
    uint32_t input, source;
    enum nr_batch_made_kind kind;
};
struct nr_batch_scatter { /* an output that is cut by the shapes of an input */
    bool on;
    uint32_t source, rank;
    const int64_t *shape; /* [rank] rows first; each -1 behind them becomes that of the source */
};
struct nr_batch_ragged {
    const bool *inputs; /* [n_inputs] true: elements in a row, whatever the shapes of requests */
    uint32_t n_made;
    const struct nr_batch_made *made;
    const struct nr_batch_scatter *outputs; /* [n_outputs] */
};

struct nr_batch_cfg {
    const struct nr_plugin *plugin; /* must outlive the batch */
    const naru_io *inputs; /* as naru_model_info has them; arrays borrowed for the batch's life */
    const naru_io *outputs;
    uint32_t n_inputs, n_outputs;
    const struct nr_batch_ragged *ragged; /* borrowed; NULL: nothing of the kind */
    uint32_t max_rows;                    /* 0: no batch dimension, one request per batch */
    uint64_t max_output_bytes;            /* per output and run; 0: 1 GiB */
    /* Memory for gathered inputs and for outputs; NULL: nr_buf_try_new. For shared memory, tests. */
    struct nr_buf *(*alloc)(void *arg, size_t bytes);
    void *alloc_arg;
    /* Called when a run that returned NARU_PENDING is over, on a thread of the plug-in or that of
     * nr_batch_cancel: it only passes a message on, and takes no lock that is held around
     * nr_batch_cancel. NULL: nr_batch_run waits until it is over. */
    void (*on_done)(struct nr_batch *b, void *arg);
    void *on_done_arg;
    /* Decoupled models: one of several responses of a request, on a thread of the plug-in; takes
     * *r over (nr_batch_response_free). NARU_AGAIN: its reader is behind; any other error likewise
     * leaves *r to the batch. NULL: the plug-in's responses are refused. */
    nr_status (*on_response)(void *arg, void *user, struct nr_batch_response *r);
    /* Waits until on_response would take one: NARU_OK, NARU_TIMEOUT, NARU_CANCELLED. */
    nr_status (*on_room)(void *arg, void *user, int64_t timeout_ns);
    void *response_arg;
    bool may_repeat; /* requests may ask for another execution (nr_batch_again) */
};

struct nr_batch_input { /* one input of one request */
    const void *data;   /* serialized form of naru/tensor.h; NULL: left out (optional ones only) */
    size_t bytes;       /* of data */
    struct nr_buf *buf; /* borrowed buffer that data lies in; NULL: other memory of the caller */
    const int64_t *shape; /* [rank] as the backend sees it, rows first where there is a batch */
    uint32_t rank;
};

struct nr_batch_request {
    const struct nr_batch_input *inputs; /* [n_inputs of cfg]; copied, the bytes are borrowed */
    const uint8_t *wanted;               /* [n_outputs of cfg] 1: asked for; NULL: all. Copied */
    uint32_t rows;                       /* 1 without a batch dimension; 0 is allowed */
    uint32_t n_options;
    const naru_option *options; /* borrowed */
    const char *id;             /* borrowed; NULL: none */
    int64_t deadline_ns;        /* 0: none */
    uint64_t sequence_id;
    uint32_t sequence_flags;
    const _Atomic uint32_t *cancelled; /* borrowed, not 0 once the client has gone; NULL: never */
    void *user;                        /* given to cfg.on_response */
};

struct nr_batch_slice { /* one output of one request; all borrowed until nr_batch_clear */
    const uint8_t *data;
    size_t bytes;
    struct nr_buf *buf; /* nr_buf_ref it to keep data */
    int32_t dtype;
    uint32_t rank;
    int64_t shape[NARU_MAX_RANK]; /* rows of this request first */
};

/* Counters since nr_batch_new, for metrics and tests. Read by the owner. */
struct nr_batch_stats {
    uint64_t runs;
    uint64_t bytes_copied;   /* gathered inputs */
    uint64_t bytes_in_place; /* inputs that the plug-in read where they lay */
    uint64_t buffers_made;   /* output and gather buffers asked from the allocator */
};

nr_nodiscard nr_status nr_batch_new(const struct nr_batch_cfg *cfg, struct nr_batch **ret,
                                    struct nr_err *err);
void nr_batch_free(struct nr_batch *b); /* accepts NULL; not while running */

/* True when the request can join: room for its rows, same shapes behind the batch dimension, same
 * set of optional inputs as those before it. Always true for the first. */
bool nr_batch_fits(const struct nr_batch *b, const struct nr_batch_request *r);
/* Appends. NARU_INVALID: does not fit, or bytes and shape disagree (the text says which input);
 * NARU_NOMEM. On error the batch is as before. */
nr_nodiscard nr_status nr_batch_add(struct nr_batch *b, const struct nr_batch_request *r,
                                    struct nr_err *err);
uint32_t nr_batch_requests(const struct nr_batch *b);

/* How the next runs use the cores (enum naru_form); at first NARU_FORM_WIDE. */
void nr_batch_form_set(struct nr_batch *b, uint32_t form);
/* Executes. NARU_OK: it is over, results can be read (each request may have failed by itself).
 * NARU_PENDING: cfg.on_done will be called. Nothing else is returned; a batch that could not run
 * at all is over with every request failed. instance must be of cfg.plugin and idle. */
nr_nodiscard nr_status nr_batch_run(struct nr_batch *b, struct nr_plugin_instance *instance);
/* Tells the plug-in that a request of the running batch is not wanted any more (a hint). Any thread;
 * does nothing when the run is over. The request's `cancelled` flag should be set before. */
void nr_batch_cancel(struct nr_batch *b, uint32_t request);

/* Result of one request after completion; *err gets the text when it failed. */
nr_status nr_batch_result(const struct nr_batch *b, uint32_t request, struct nr_err *err);
/* The status with which the plug-in failed all requests of the run that is over; NARU_OK: it did not. */
nr_status nr_batch_failed(const struct nr_batch *b);
/* Slice of output `output` (index of cfg.outputs) for a request whose result is NARU_OK.
 * NARU_NOT_FOUND: no request of the batch asked for it; NARU_INTERNAL: a BYTES output whose lengths
 * do not add up. */
nr_nodiscard nr_status nr_batch_output(struct nr_batch *b, uint32_t output, uint32_t request,
                                       struct nr_batch_slice *ret);
/* The plug-in asked for another execution of a request whose result is NARU_OK. */
bool nr_batch_again(const struct nr_batch *b, uint32_t request);
/* False: a decoupled model answered by responses, or not at all; there are no outputs to read. */
bool nr_batch_has_outputs(const struct nr_batch *b);
/* Ready for the next round: forgets requests and results, keeps memory. */
void nr_batch_clear(struct nr_batch *b);
/* Gives buffers back that are only kept for the next round (idle models), and returns their bytes. Not
 * while running. */
size_t nr_batch_trim(struct nr_batch *b);

void nr_batch_stats_get(const struct nr_batch *b, struct nr_batch_stats *ret);
/* Completions and calls of plug-ins that came for batches already over; process-wide. */
uint64_t nr_batch_late(void);

#endif
