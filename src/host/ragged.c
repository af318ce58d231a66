/* Ragged batches: inputs made of the requests' shapes, outputs cut by them. See batch.h.
 *
 * Why so: a ragged input is gathered like any other, since requests' bytes stand one behind the
 * other either way; only its shape is a count of elements instead of rows. What is particular
 * is here: the inputs that tell the model where each request begins, and outputs whose shares follow
 * from shapes instead of rows.
 *
 * Invariants
 *  1. A made input lies in the gather buffer of its own index; no request has a reference there.
 *  2. Shares of a scattered output follow each other in the order of requests and fill it exactly.
 *
 * Threads: the batch's owner.
 */
#include <string.h>

#include "base/mem.h"
#include "host/batch_priv.h"

size_t nr_batch_elements(const struct nr_batch_input *in)
{
    size_t n = 1;
    for (uint32_t d = 0; d < in->rank; d++) {
        n *= (size_t)in->shape[d]; /* its bytes exist: no overflow, unless it is empty */
    }
    return n;
}

bool nr_batch_is_ragged(const struct nr_batch *b, uint32_t input)
{
    return b->cfg.ragged && b->cfg.ragged->inputs[input];
}

bool nr_batch_is_made(const struct nr_batch *b, uint32_t input)
{
    for (uint32_t i = 0; b->cfg.ragged && i < b->cfg.ragged->n_made; i++) {
        if (b->cfg.ragged->made[i].input == input) {
            return true;
        }
    }
    return false;
}

const struct nr_batch_scatter *nr_batch_scatter_of(const struct nr_batch *b, uint32_t output)
{
    return b->cfg.ragged && b->cfg.ragged->outputs[output].on ? &b->cfg.ragged->outputs[output]
                                                              : NULL;
}

static const struct nr_batch_input *ref_of(const struct nr_batch *b, uint32_t request,
                                           uint32_t input)
{
    return &b->refs[(size_t)request * b->cfg.n_inputs + input];
}

/* ---- made inputs ------------------------------------------------------------------------------- */

struct values {
    uint8_t *at;
    int32_t dtype;
    bool too_large;
};

static void put(struct values *v, size_t value)
{
    int32_t whole = (int32_t)value;
    float real = (float)value;
    v->too_large = v->too_large || value > INT32_MAX;
    memcpy(v->at, v->dtype == NARU_FP32 ? (const void *)&real : (const void *)&whole, 4);
    v->at += 4;
}

/* How many values it has; *shape gets the tensor's. */
static size_t count_values(const struct nr_batch *b, const struct nr_batch_made *made,
                           int64_t *shape)
{
    size_t dims = ref_of(b, 0, made->source)->rank - 1, largest = 0;
    shape[0] = b->n_requests;
    switch (made->kind) {
    case NR_MADE_ELEMENTS:
    case NR_MADE_ENDS:
        break;
    case NR_MADE_BOUNDS:
        shape[0]++;
        break;
    case NR_MADE_LARGEST:
        for (uint32_t i = 0; i < b->n_requests; i++) {
            largest = NR_MAX(largest, nr_batch_elements(ref_of(b, i, made->source)));
        }
        shape[0] = (int64_t)largest;
        break;
    case NR_MADE_SHAPES:
        shape[0] = b->rows;
        shape[1] = (int64_t)dims;
        return (size_t)b->rows * dims;
    case NR_MADE_SHAPES_FLAT:
        shape[0] = b->rows * (int64_t)dims;
        break;
    }
    return (size_t)shape[0];
}

static void fill(const struct nr_batch *b, const struct nr_batch_made *made, struct values *v)
{
    size_t sum = 0;
    if (made->kind == NR_MADE_BOUNDS) {
        put(v, 0);
    }
    for (uint32_t i = 0; i < b->n_requests; i++) {
        const struct nr_batch_input *ref = ref_of(b, i, made->source);
        size_t elements = nr_batch_elements(ref);
        sum += elements;
        if (made->kind == NR_MADE_ELEMENTS) {
            put(v, elements);
        } else if (made->kind == NR_MADE_ENDS || made->kind == NR_MADE_BOUNDS) {
            put(v, sum);
        } else {
            for (uint32_t row = 0; row < b->members[i].rows; row++) {
                for (uint32_t d = 1; d < ref->rank; d++) {
                    put(v, (size_t)ref->shape[d]);
                }
            }
        }
    }
}

nr_status nr_batch_made_seal(struct nr_batch *b, const struct nr_batch_made *made)
{
    struct nr_batch_in *in = &b->ins[made->input];
    naru_tensor *t = &b->in_tensors[made->input];
    if (!b->ins[made->source].present) {
        return NARU_OK; /* an optional source that nobody brought: neither is this */
    }
    size_t bytes;
    if (!nr_mul(count_values(b, made, in->shape), sizeof(int32_t), &bytes)) {
        return NARU_TOO_LARGE;
    }
    if (!nr_batch_gather_reserve(b, made->input, NR_MAX(bytes, (size_t)1))) {
        return NARU_NOMEM;
    }
    struct values v = {.at = nr_buf_data(in->gather), .dtype = t->dtype};
    if (made->kind == NR_MADE_LARGEST) {
        memset(v.at, 0, bytes);
    } else {
        fill(b, made, &v);
    }
    in->segment =
        (naru_segment){.region = &in->gather->region, .bytes = bytes, .request = UINT32_MAX};
    t->bytes = bytes;
    t->n_segments = 1;
    t->segments = &in->segment;
    return v.too_large ? NARU_TOO_LARGE : NARU_OK;
}

/* ---- scattered outputs ------------------------------------------------------------------------- */

/* The shape of one request's share. False: there is none, for the source was left out. */
static bool share_shape(const struct nr_batch *b, const struct nr_batch_scatter *s,
                        uint32_t request, int64_t *shape)
{
    const struct nr_batch_input *ref = ref_of(b, request, s->source);
    if (!ref->data) {
        return false;
    }
    shape[0] = b->members[request].rows;
    for (uint32_t d = 1; d < s->rank; d++) {
        if (s->shape[d] < 0 && d >= ref->rank) {
            return false;
        }
        shape[d] = s->shape[d] < 0 ? ref->shape[d] : s->shape[d];
    }
    return true;
}

/* *at behind `elements` strings. False: they end before that. */
static bool skip_strings(const uint8_t *data, uint64_t bytes, size_t elements, uint64_t *at)
{
    for (size_t e = 0; e < elements; e++) {
        uint32_t len;
        if (bytes - *at < sizeof len) {
            return false;
        }
        memcpy(&len, data + *at, sizeof len);
        *at += sizeof len;
        if (bytes - *at < len) {
            return false;
        }
        *at += len;
    }
    return true;
}

/* Ends of the shares, made once for a run. NULL: they do not add up to the output, or no memory. */
static const uint64_t *share_ends(struct nr_batch *b, const struct nr_batch_scatter *s,
                                  struct nr_batch_out *out)
{
    const naru_tensor *t = &b->out_tensors[out->at];
    uint64_t *ends =
        out->ends ? out->ends : nr_arena_try_array(&b->arena, b->n_requests, sizeof *ends);
    if (out->ends || !ends) {
        return ends;
    }
    uint64_t at = 0;
    uint32_t element = naru_dtype_bytes(t->dtype);
    for (uint32_t i = 0; i < b->n_requests; i++) {
        int64_t shape[NARU_MAX_RANK];
        size_t elements;
        if (!share_shape(b, s, i, shape) ||
            !nr_batch_shape_bytes(NARU_UINT8, s->rank, shape, &elements)) {
            return NULL;
        }
        uint64_t bytes;
        if (t->dtype == NARU_BYTES) {
            if (!skip_strings(nr_buf_data(out->buf), t->bytes, elements, &at)) {
                return NULL;
            }
        } else if (__builtin_mul_overflow((uint64_t)elements, element, &bytes) ||
                   bytes > t->bytes - at) {
            return NULL;
        } else {
            at += bytes;
        }
        ends[i] = at;
    }
    out->ends = at == t->bytes ? ends : NULL;
    return out->ends;
}

nr_status nr_batch_scatter_cut(struct nr_batch *b, const struct nr_batch_scatter *scatter,
                               struct nr_batch_out *out, uint32_t request,
                               struct nr_batch_slice *ret)
{
    const uint64_t *ends = share_ends(b, scatter, out);
    if (!ends) {
        return NARU_INTERNAL;
    }
    uint64_t begin = request == 0 ? 0 : ends[request - 1];
    ret->data = nr_buf_data(out->buf) + begin;
    ret->bytes = ends[request] - begin;
    ret->buf = out->buf;
    ret->dtype = b->out_tensors[out->at].dtype;
    ret->rank = scatter->rank;
    return share_shape(b, scatter, request, ret->shape) ? NARU_OK : NARU_INTERNAL;
}
