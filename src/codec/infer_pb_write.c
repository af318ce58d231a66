/* Writes inference.ModelInferResponse: see infer_pb.h.
 *
 * Everything but the tensors goes into one block of the arena whose size is known beforehand; each
 * large tensor is a part of its own between pieces of that block. Small tensors are copied into the
 * block: a part costs more than 512 bytes do.
 *
 * Invariants
 *  1. bound() is never less than what write() puts into the block.
 *  2. Lengths fit 31 bits, the limit of a gRPC message (checked first).
 * One thread at a time.
 */
#include "codec/infer_pb.h"

#include "base/mem.h"

#define INLINE_BYTES 512
#define MESSAGE_MAX INT32_MAX
#define VARINT_MAX 10

enum tag { /* field number << 3 | wire type 2 */
    TAG_MODEL_NAME = 0x0a,
    TAG_MODEL_VERSION = 0x12,
    TAG_ID = 0x1a,
    TAG_OUTPUT = 0x2a,
    TAG_RAW = 0x32,
    TAG_NAME = 0x0a,
    TAG_DATATYPE = 0x12,
    TAG_SHAPE = 0x1a
};

static size_t varint_bytes(uint64_t v)
{
    return 1 + (63 - (size_t)__builtin_clzll(v | 1)) / 7;
}

static uint8_t *put_varint(uint8_t *p, uint64_t v)
{
    while (v >= 0x80) {
        *p++ = (uint8_t)(v | 0x80);
        v >>= 7;
    }
    *p++ = (uint8_t)v;
    return p;
}

static uint8_t *put_prefix(uint8_t *p, enum tag tag, size_t len)
{
    *p++ = (uint8_t)tag;
    return put_varint(p, len);
}

/* Proto3: an empty string is the default and left out. */
static uint8_t *put_string(uint8_t *p, enum tag tag, struct nr_str s)
{
    if (s.len == 0) {
        return p;
    }
    p = put_prefix(p, tag, s.len);
    memcpy(p, s.ptr, s.len);
    return p + s.len;
}

static size_t string_bytes(struct nr_str s)
{
    return s.len ? 1 + varint_bytes(s.len) + s.len : 0;
}

static size_t shape_bytes(const struct nr_infer_tensor *t)
{
    size_t bytes = 0;
    for (uint32_t i = 0; i < t->rank; i++) {
        bytes += varint_bytes((uint64_t)t->shape[i]);
    }
    return bytes;
}

static uint8_t *put_output(uint8_t *p, struct nr_str name, const struct nr_infer_tensor *t)
{
    struct nr_str dtype = nr_str_from(naru_dtype_name(t->dtype));
    size_t shape = shape_bytes(t);
    size_t shape_field = shape ? 1 + varint_bytes(shape) + shape : 0;
    p = put_prefix(p, TAG_OUTPUT, string_bytes(name) + string_bytes(dtype) + shape_field);
    p = put_string(p, TAG_NAME, name);
    p = put_string(p, TAG_DATATYPE, dtype);
    if (shape > 0) {
        p = put_prefix(p, TAG_SHAPE, shape);
        for (uint32_t i = 0; i < t->rank; i++) {
            p = put_varint(p, (uint64_t)t->shape[i]);
        }
    }
    return p;
}

/* Bytes of the block at most; false when the message is too large for gRPC. */
static bool bound(const struct nr_signature *sig, const struct nr_infer_response *r, size_t *ret)
{
    size_t bytes = 3 * (1 + VARINT_MAX);
    size_t data = 0;
    bool fits = nr_add(bytes, r->model_name.len, &bytes) &&
                nr_add(bytes, r->model_version.len, &bytes) && nr_add(bytes, r->id.len, &bytes);
    for (unsigned i = 0; i < r->n_outputs && fits; i++) {
        const struct nr_infer_tensor *t = &r->outputs[i];
        size_t output = 5 * (1 + VARINT_MAX) + 8 + VARINT_MAX * (size_t)t->rank +
                        (t->bytes <= INLINE_BYTES ? t->bytes : 0);
        fits = nr_add(bytes, output, &bytes) &&
               nr_add(bytes, sig->outputs[t->index].name.len, &bytes) &&
               nr_add(data, t->bytes, &data);
    }
    *ret = bytes;
    return fits && nr_add(data, bytes, &data) && data <= MESSAGE_MAX;
}

nr_status nr_infer_pb_encode(const struct nr_signature *sig,
                             const struct nr_infer_response *response, struct nr_arena *arena,
                             struct nr_infer_pb_body *ret, struct nr_err *err)
{
    const struct nr_infer_response *r = response;
    size_t bytes;
    if (!bound(sig, r, &bytes)) {
        return nr_fail(err, NARU_TOO_LARGE,
                       "the response is larger than a gRPC message can be (2 GiB)");
    }
    uint8_t *block = nr_arena_try_alloc(arena, bytes);
    struct nr_iov *parts = nr_arena_try_array(arena, 1 + 2 * (size_t)r->n_outputs, sizeof(*parts));
    if (block == NULL || parts == NULL) {
        return nr_fail(err, NARU_NOMEM, "no memory for the response");
    }
    struct nr_infer_pb_body body = {.parts = parts};
    uint8_t *p = block;
    p = put_string(p, TAG_MODEL_NAME, r->model_name);
    p = put_string(p, TAG_MODEL_VERSION, r->model_version);
    p = put_string(p, TAG_ID, r->has_id ? r->id : (struct nr_str){NULL, 0});
    for (unsigned i = 0; i < r->n_outputs; i++) {
        p = put_output(p, sig->outputs[r->outputs[i].index].name, &r->outputs[i]);
    }
    for (unsigned i = 0; i < r->n_outputs; i++) {
        const struct nr_infer_tensor *t = &r->outputs[i];
        p = put_prefix(p, TAG_RAW, t->bytes);
        if (t->bytes <= INLINE_BYTES) {
            memcpy(p, t->bytes ? t->data : block, t->bytes);
            p += t->bytes;
            continue;
        }
        parts[body.n_parts++] = (struct nr_iov){block, (size_t)(p - block)};
        parts[body.n_parts++] = (struct nr_iov){t->data, t->bytes};
        body.bytes += (size_t)(p - block) + t->bytes;
        block = p;
    }
    if (p > block) {
        parts[body.n_parts++] = (struct nr_iov){block, (size_t)(p - block)};
        body.bytes += (size_t)(p - block);
    }
    *ret = body;
    return NARU_OK;
}
