/* Several answers to one request: what a decoupled plug-in allocates and sends before its run ends.
 *
 * Why so: outputs of a response belong to one request, while those of naru_host::output_alloc span
 * the batch and end with it. So a response has memory of its own from the first allocation on, is
 * handed over whole, and outlives the run in the hands of whoever sends it.
 *
 * Invariants
 *  1. member->open belongs to the batch until on_response took it; NARU_AGAIN leaves it there.
 *  2. After a final response, or once the batch is answered, a request gets no other one.
 *
 * Threads: any thread of the plug-in, one at a time for a request. b->lock covers member->open; the
 * owner's callbacks are called without it.
 */
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "host/batch_priv.h"

void nr_batch_response_free(struct nr_batch_response *r)
{
    for (uint32_t i = 0; r && i < r->n_outputs; i++) {
        nr_buf_unref(r->outputs[i].buf);
    }
    nr_free(r);
}

/* Under the lock. The member that may get a response now, or NULL with the reason. */
static struct nr_batch_member *member_of(struct nr_batch *b, uint32_t request, nr_status *ret)
{
    *ret = NARU_PRECONDITION;
    if (!b->cfg.on_response) {
        *ret = NARU_UNSUPPORTED;
        return NULL;
    }
    if (request >= b->n_requests) {
        *ret = NARU_INVALID;
        return NULL;
    }
    struct nr_batch_member *m = &b->members[request];
    return m->ended || m->status != NARU_OK ? NULL : m;
}

static nr_status place(struct nr_batch *b, struct nr_batch_response *r, uint32_t output,
                       uint32_t rank, const int64_t *shape, size_t bytes,
                       struct nr_batch_response_output **ret)
{
    for (uint32_t i = 0; i < r->n_outputs; i++) {
        if (r->outputs[i].output == output) { /* the same again, or a change of mind */
            *ret = &r->outputs[i];
            return r->outputs[i].tensor.bytes == bytes &&
                           (rank == 0 ||
                            memcmp(r->outputs[i].shape, shape, rank * sizeof *shape) == 0)
                       ? NARU_OK
                       : NARU_INVALID;
        }
    }
    struct nr_buf *buf = b->cfg.alloc(b->cfg.alloc_arg, NR_MAX(bytes, (size_t)1));
    if (!buf) {
        return NARU_NOMEM;
    }
    struct nr_batch_response_output *o = &r->outputs[r->n_outputs++];
    o->output = output;
    o->buf = buf;
    if (rank > 0) {
        memcpy(o->shape, shape, rank * sizeof *shape);
    }
    o->segment = (naru_segment){.region = &buf->region, .bytes = bytes, .request = UINT32_MAX};
    o->tensor = (naru_tensor){.name = b->cfg.outputs[output].name,
                              .index = output,
                              .dtype = b->cfg.outputs[output].dtype,
                              .shape = o->shape,
                              .rank = rank,
                              .n_segments = 1,
                              .segments = &o->segment,
                              .bytes = bytes};
    *ret = o;
    return NARU_OK;
}

nr_status nr_batch_response_alloc(struct nr_batch *b, uint32_t request, uint32_t index,
                                  int32_t dtype, uint32_t rank, const int64_t *shape,
                                  uint64_t bytes, const naru_tensor **ret)
{
    nr_status st;
    struct nr_batch_member *m = member_of(b, request, &st);
    if (!m) {
        return st;
    }
    if (index >= b->n_out_tensors) {
        return NARU_INVALID;
    }
    uint32_t output = b->out_tensors[index].index;
    size_t need;
    st = nr_batch_output_check(b, &b->cfg.outputs[output], m->rows, dtype, rank, shape, bytes,
                               &need);
    if (st != NARU_OK) {
        return st;
    }
    if (!m->open) {
        m->open = nr_try_alloc(sizeof *m->open + b->cfg.n_outputs * sizeof m->open->outputs[0]);
        if (!m->open) {
            return NARU_NOMEM;
        }
    }
    struct nr_batch_response_output *o;
    st = place(b, m->open, output, rank, shape, need, &o);
    if (st == NARU_OK) {
        *ret = &o->tensor;
    }
    return st;
}

static bool is_cancelled(const struct nr_batch *b, uint32_t request)
{
    const _Atomic uint32_t *flag = b->members[request].cancelled;
    int64_t deadline = b->requests[request].deadline_ns;
    return (flag && atomic_load_explicit(flag, memory_order_relaxed) != 0) ||
           (deadline != 0 && nr_clock_now() >= deadline);
}

nr_status nr_batch_response_send(struct nr_batch *b, uint32_t request, bool final)
{
    nr_status st;
    pthread_mutex_lock(&b->lock);
    struct nr_batch_member *m = member_of(b, request, &st);
    struct nr_batch_response *r = m ? NR_TAKE(m->open) : NULL;
    if (m && !r && final) { /* nothing more to say: an empty last response */
        r = nr_try_alloc(sizeof *r);
        st = r ? NARU_OK : NARU_NOMEM;
    } else if (m && !r) {
        st = NARU_INVALID;
    }
    pthread_mutex_unlock(&b->lock);
    if (!r) {
        return st;
    }
    r->final = final;
    st = is_cancelled(b, request) ? NARU_CANCELLED
                                  : b->cfg.on_response(b->cfg.response_arg, m->user, r);
    pthread_mutex_lock(&b->lock);
    if (st == NARU_OK) {
        m->ended = final;
    } else {
        m->open = r;
        m->ended = st == NARU_CANCELLED;
    }
    pthread_mutex_unlock(&b->lock);
    return st;
}

nr_status nr_batch_response_wait(struct nr_batch *b, uint32_t request, int64_t timeout_ns)
{
    nr_status st;
    pthread_mutex_lock(&b->lock);
    struct nr_batch_member *m = member_of(b, request, &st);
    pthread_mutex_unlock(&b->lock);
    if (!m) {
        return st;
    }
    return b->cfg.on_room(b->cfg.response_arg, m->user, timeout_ns);
}
