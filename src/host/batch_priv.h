/* Shared by batch.c (forming batches, reading results) and batch_run.c (the run and the table of
 * functions that plug-ins call). Nobody else includes it. */
#ifndef NR_HOST_BATCH_PRIV_H
#define NR_HOST_BATCH_PRIV_H

#include <pthread.h>

#include "base/arena.h"
#include "host/batch.h"
#include "host/plugin.h"

#define NR_BATCH_VIEWS 4 /* runs for which a stale call of a plug-in is recognised */
#define NR_BATCH_KEEP 4  /* output buffers kept for the next runs */

/* What a plug-in holds of one run. Views are type-stable: their memory is never given back to the
 * system and rests in a queue before another batch gets it, so a plug-in that calls after the end
 * of a run reads a view that says "over" instead of freed memory. */
struct nr_batch_view {
    naru_batch abi; /* first: naru_batch * and the view are the same address; abi.host too */
    struct nr_batch *owner;
    /* 0: over. While running: 1 for execute(), 1 for the answer, 1 for each call that is inside
     * the host or a cancel. Who takes it to 0 ends the run. */
    _Atomic uint32_t holds;
    _Atomic uint32_t answered; /* 0 until the first completion of this run */
    struct nr_batch_view *next;
};

struct nr_batch_member { /* one request of the batch */
    nr_status status;
    uint32_t rows;
    int64_t row0;
    struct nr_str text; /* in b->arena, when status is an error */
    const _Atomic uint32_t *cancelled;
    void *user;
    struct nr_batch_response *open; /* being filled by a decoupled plug-in; under lock */
    bool again;                     /* wants another execution; under lock */
    bool ended;                     /* got its final response, or its client has gone */
};

struct nr_batch_in { /* one input of the whole batch */
    int64_t shape[NARU_MAX_RANK];
    struct nr_buf *gather; /* kept over runs; NULL until needed */
    size_t bytes;          /* of the requests so far */
    bool present;
    naru_region region; /* around memory that is in no nr_buf */
    naru_segment segment;
};

struct nr_batch_out { /* one output of the whole batch; indexed as in cfg */
    int64_t shape[NARU_MAX_RANK];
    struct nr_buf *buf; /* of this run; a reference that one of `kept` holds */
    struct nr_buf *kept[NR_BATCH_KEEP];
    uint32_t at; /* its place in abi.outputs */
    bool wanted;
    uint64_t *ends; /* [n_requests] BYTES only: end of each request's share; made when read */
    naru_segment segment;
};

struct nr_batch {
    struct nr_batch_cfg cfg;
    struct nr_plugin_instance *instance; /* of the run */
    struct nr_batch_view *views[NR_BATCH_VIEWS];
    _Atomic(struct nr_batch_view *) view; /* of the run, NULL between runs */
    unsigned next_view;
    uint32_t form; /* of the next run */

    uint32_t n_requests, capacity; /* of the four arrays below */
    naru_request *requests;
    struct nr_batch_member *members;
    struct nr_batch_input *refs; /* [capacity * n_inputs], request by request */
    naru_region *regions;        /* [capacity * n_inputs], input by input; segments only */
    naru_segment *segments;      /* the same */
    int64_t rows;

    struct nr_batch_in *ins;
    struct nr_batch_out *outs;
    naru_tensor *in_tensors, *out_tensors;
    uint32_t n_out_tensors;

    /* Written by the thread that answers, under lock; read by the owner after the end. */
    pthread_mutex_t lock;
    pthread_cond_t ended; /* for owners without on_done */
    bool over;
    nr_status status;
    char text[NR_ERR_TEXT_MAX];
    struct nr_arena arena; /* texts of failed requests, offsets of BYTES outputs */
    struct nr_batch_stats stats;
};

/* bytes of a tensor of known datatype size; false: overflow or a negative dimension. */
bool nr_batch_shape_bytes(int32_t dtype, uint32_t rank, const int64_t *shape, size_t *ret);
/* Memory of `bytes` for an output of this run; NULL: no memory. Under the lock or by the owner. */
struct nr_buf *nr_batch_out_buf(struct nr_batch *b, struct nr_batch_out *out, size_t bytes);
/* Points tensor `out->at` at out->buf with the shape in out->shape. */
void nr_batch_out_place(struct nr_batch *b, struct nr_batch_out *out, uint32_t rank, size_t bytes);
/* ragged.c. Elements of a shape that is known to fit into memory. */
size_t nr_batch_elements(const struct nr_batch_input *in);
bool nr_batch_is_ragged(const struct nr_batch *b, uint32_t input);
bool nr_batch_is_made(const struct nr_batch *b, uint32_t input);
/* NULL: the output is cut by rows. */
const struct nr_batch_scatter *nr_batch_scatter_of(const struct nr_batch *b, uint32_t output);
/* Makes the inputs that no request brought. NARU_NOMEM, NARU_TOO_LARGE. */
nr_nodiscard nr_status nr_batch_made_seal(struct nr_batch *b, const struct nr_batch_made *made);
/* nr_batch_output of such an output. NARU_INTERNAL: its size is not the sum of the shares. */
nr_nodiscard nr_status nr_batch_scatter_cut(struct nr_batch *b,
                                            const struct nr_batch_scatter *scatter,
                                            struct nr_batch_out *out, uint32_t request,
                                            struct nr_batch_slice *ret);
/* Room for `need` bytes in the gather buffer of input k. False: no memory. */
bool nr_batch_gather_reserve(struct nr_batch *b, uint32_t k, size_t need);
/* Shape and bytes of an output of `rows` rows against the configuration; *ret: its bytes. */
nr_status nr_batch_output_check(const struct nr_batch *b, const naru_io *io, int64_t rows,
                                int32_t dtype, uint32_t rank, const int64_t *shape, uint64_t bytes,
                                size_t *ret);
/* response.c: what naru_host's slots of the same names do, on a run that is held. alloc is called
 * under the lock. */
nr_status nr_batch_response_alloc(struct nr_batch *b, uint32_t request, uint32_t index,
                                  int32_t dtype, uint32_t rank, const int64_t *shape,
                                  uint64_t bytes, const naru_tensor **ret);
nr_status nr_batch_response_send(struct nr_batch *b, uint32_t request, bool final);
nr_status nr_batch_response_wait(struct nr_batch *b, uint32_t request, int64_t timeout_ns);
/* Fills in_tensors, out_tensors and the view; NARU_NOMEM, NARU_TOO_LARGE with b->text set. */
nr_status nr_batch_seal(struct nr_batch *b, struct nr_batch_view *view);
struct nr_batch_view *nr_batch_view_new(struct nr_batch *owner);
void nr_batch_view_retire(struct nr_batch_view *view);

#endif
