/* Packing and checked unpacking of outputs. Pure functions; any thread. */
#include "sched/answer.h"

#include <string.h>

#include "base/mem.h"
#include "codec/tensor.h"

#define MAGIC UINT32_C(0x3143524e) /* "NRC1" */
#define ALIGN ((size_t)64)

struct head {
    uint32_t magic, n_outputs;
    uint64_t bytes;
};

struct output { /* its shape follows */
    uint32_t index;
    int32_t dtype;
    uint32_t rank, zero;
    uint64_t bytes;
};

static bool align_up(size_t *at)
{
    return nr_add(*at, ALIGN - 1, at) && (*at &= ~(ALIGN - 1), true);
}

struct nr_buf *nr_answer_pack(const struct nr_infer_tensor *outputs, unsigned n)
{
    size_t heads = sizeof(struct head), all;
    for (unsigned i = 0; i < n; i++) {
        heads += sizeof(struct output) + outputs[i].rank * sizeof(int64_t);
    }
    all = heads;
    for (unsigned i = 0; i < n; i++) {
        if (!align_up(&all) || !nr_add(all, outputs[i].bytes, &all)) {
            return NULL;
        }
    }
    struct nr_buf *block = nr_buf_try_new(all);
    if (block == NULL) {
        return NULL;
    }
    uint8_t *base = nr_buf_data(block), *to = base;
    size_t at = heads;
    to = (uint8_t *)memcpy(to, &(struct head){MAGIC, n, all}, sizeof(struct head)) +
         sizeof(struct head);
    for (unsigned i = 0; i < n; i++) {
        const struct nr_infer_tensor *t = &outputs[i];
        struct output o = {
            .index = t->index, .dtype = t->dtype, .rank = t->rank, .bytes = t->bytes};
        memcpy(to, &o, sizeof o);
        memcpy(to + sizeof o, t->shape, t->rank * sizeof(int64_t));
        to += sizeof o + t->rank * sizeof(int64_t);
        size_t before = at;
        (void)align_up(&at);
        memset(base + before, 0, at - before);
        memcpy(base + at, t->data, t->bytes);
        at += t->bytes;
    }
    return block;
}

/* Shape and datatype are what the model may answer to so many rows, and the bytes fill them. */
static bool fits(const struct nr_io_spec *spec, int64_t rows, struct nr_infer_tensor *t)
{
    if (t->dtype != spec->dtype || t->rank != spec->rank) {
        return false;
    }
    t->elements = 1;
    for (uint32_t d = 0; d < t->rank; d++) {
        bool is_rows = d == 0 && spec->batched;
        int64_t wanted = is_rows ? rows : spec->shape[d];
        if (t->shape[d] < 0 || (wanted >= 0 && t->shape[d] != wanted) ||
            __builtin_mul_overflow(t->elements, t->shape[d], &t->elements)) {
            return false;
        }
    }
    if (t->dtype == NARU_BYTES) {
        struct nr_err unused = {0};
        return nr_tensor_bytes_check(t->data, t->bytes, t->elements, "output", &unused) == NARU_OK;
    }
    size_t need;
    return nr_mul((size_t)t->elements, naru_dtype_bytes(t->dtype), &need) && need == t->bytes;
}

bool nr_answer_unpack(struct nr_buf *block, const struct nr_signature *sig,
                      const struct nr_infer_request *in, struct nr_infer_tensor *ret)
{
    const uint8_t *base = nr_buf_data(block);
    size_t len = nr_buf_bytes(block), from = sizeof(struct head), at;
    struct head h;
    if (len < sizeof h) {
        return false;
    }
    memcpy(&h, base, sizeof h);
    if (h.magic != MAGIC || h.bytes != len || h.n_outputs != in->n_outputs) {
        return false;
    }
    for (unsigned i = 0; i < in->n_outputs; i++) {
        struct output o;
        if (len - from < sizeof o) {
            return false;
        }
        memcpy(&o, base + from, sizeof o);
        from += sizeof o;
        if (o.rank > NARU_MAX_RANK || (len - from) / sizeof(int64_t) < o.rank ||
            o.index != in->outputs[i].index || o.index >= sig->n_outputs) {
            return false;
        }
        ret[i] = (struct nr_infer_tensor){.index = o.index,
                                          .dtype = o.dtype,
                                          .rank = o.rank,
                                          .bytes = (size_t)o.bytes,
                                          .buf = block};
        memcpy(ret[i].shape, base + from, o.rank * sizeof(int64_t));
        from += o.rank * sizeof(int64_t);
    }
    at = from;
    for (unsigned i = 0; i < in->n_outputs; i++) {
        if (!align_up(&at) || at > len || len - at < ret[i].bytes) {
            return false;
        }
        ret[i].data = base + at;
        at += ret[i].bytes;
        if (!fits(&sig->outputs[ret[i].index], in->rows, &ret[i])) {
            return false;
        }
    }
    return at == len;
}
