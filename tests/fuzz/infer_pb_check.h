/* The comparison of our ModelInferRequest reader with protobuf-c's, for the fuzz target and the unit
 * test: what ours takes, protobuf-c takes too, and finds the same tensors; what protobuf-c refuses,
 * ours refuses. (Ours refuses more: it knows the model, and strings must be UTF-8.) */
#ifndef NR_TESTS_INFER_PB_CHECK_H
#define NR_TESTS_INFER_PB_CHECK_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "codec/infer_pb.h"
#include "proto/grpc_service.pb-c.h"

#define PB_CHECK(cond) \
    do {               \
        if (!(cond)) { \
            abort();   \
        }              \
    } while (0)

typedef Inference__ModelInferRequest__InferInputTensor pb_input;

/* All 14 datatypes as optional inputs of two varying dimensions, and as outputs. */
static struct nr_signature pb_signature(struct nr_io_spec io[NARU_DTYPE_END])
{
    memset(io, 0, NARU_DTYPE_END * sizeof(*io));
    for (int i = 0; i < NARU_DTYPE_END - 1; i++) {
        io[i].dtype = i + 1;
        io[i].name = nr_str_from(naru_dtype_name(i + 1));
        io[i].optional = true;
        io[i].rank = 2;
        io[i].shape[0] = io[i].shape[1] = -1;
    }
    return (struct nr_signature){.inputs = io,
                                 .outputs = io,
                                 .n_inputs = NARU_DTYPE_END - 1,
                                 .n_outputs = NARU_DTYPE_END - 1};
}

/* Value k of typed contents, as the tensor stores it. */
static void pb_value(const Inference__InferTensorContents *c, int32_t dtype, size_t k, uint8_t *out)
{
    switch (dtype) {
    case NARU_BOOL:
        *out = c->bool_contents[k] != 0;
        break;
    case NARU_INT8:
    case NARU_INT16:
    case NARU_INT32:
        memcpy(out, &c->int_contents[k], naru_dtype_bytes(dtype));
        break;
    case NARU_UINT8:
    case NARU_UINT16:
    case NARU_UINT32:
        memcpy(out, &c->uint_contents[k], naru_dtype_bytes(dtype));
        break;
    case NARU_INT64:
        memcpy(out, &c->int64_contents[k], 8);
        break;
    case NARU_UINT64:
        memcpy(out, &c->uint64_contents[k], 8);
        break;
    case NARU_FP32:
        memcpy(out, &c->fp32_contents[k], 4);
        break;
    case NARU_FP64:
        memcpy(out, &c->fp64_contents[k], 8);
        break;
    default:
        abort();
    }
}

static void pb_compare_typed(const struct nr_infer_tensor *t, const pb_input *in)
{
    const Inference__InferTensorContents *c = in->contents;
    const uint8_t *at = t->data;
    for (int64_t k = 0; k < t->elements; k++) {
        PB_CHECK(c != NULL);
        if (t->dtype == NARU_BYTES) {
            ProtobufCBinaryData b = c->bytes_contents[k];
            uint32_t len;
            memcpy(&len, at, 4);
            PB_CHECK((size_t)k < c->n_bytes_contents && len == b.len);
            PB_CHECK(len == 0 || memcmp(at + 4, b.data, len) == 0);
            at += 4 + len;
            continue;
        }
        uint8_t value[8];
        pb_value(c, t->dtype, (size_t)k, value);
        PB_CHECK(memcmp(at, value, naru_dtype_bytes(t->dtype)) == 0);
        at += naru_dtype_bytes(t->dtype);
    }
    PB_CHECK(at == t->data + t->bytes);
}

static void pb_compare(const struct nr_infer_request *req, const Inference__ModelInferRequest *m)
{
    PB_CHECK(req->n_inputs == m->n_inputs);
    PB_CHECK(req->has_id == (m->id[0] != '\0' || req->id.len > 0));
    PB_CHECK(strncmp(m->id, req->id.ptr ? req->id.ptr : "", req->id.len) == 0);
    for (size_t i = 0; i < m->n_inputs; i++) {
        const pb_input *in = m->inputs[i];
        const struct nr_infer_tensor *t = NULL;
        for (unsigned k = 0; k < req->n_inputs; k++) {
            t = strcmp(naru_dtype_name(req->inputs[k].dtype), in->name) == 0 ? &req->inputs[k] : t;
        }
        PB_CHECK(t != NULL && strcmp(in->datatype, in->name) == 0);
        PB_CHECK(t->rank == in->n_shape);
        PB_CHECK(memcmp(t->shape, in->shape, t->rank * sizeof(*t->shape)) == 0);
        if (m->n_raw_input_contents == 0) {
            pb_compare_typed(t, in);
            continue;
        }
        PB_CHECK(m->n_raw_input_contents == m->n_inputs && in->contents == NULL);
        ProtobufCBinaryData raw = m->raw_input_contents[i];
        PB_CHECK(t->bytes == raw.len);
        for (size_t k = 0; k < raw.len; k++) {
            PB_CHECK(t->data[k] == (t->dtype == NARU_BOOL ? raw.data[k] != 0 : raw.data[k]));
        }
    }
}

/* The inputs as outputs, written by us and read by protobuf-c. */
static void pb_check_response(const struct nr_signature *sig, const struct nr_infer_request *req,
                              struct nr_arena *arena)
{
    struct nr_infer_pb_body body;
    struct nr_infer_response r = {.model_name = NR_STR("m"),
                                  .model_version = NR_STR("1"),
                                  .id = req->id,
                                  .has_id = req->has_id,
                                  .outputs = req->inputs,
                                  .how = req->outputs,
                                  .n_outputs = req->n_inputs};
    PB_CHECK(nr_infer_pb_encode(sig, &r, arena, &body, NULL) == NARU_OK);
    uint8_t *bytes = malloc(body.bytes + 1);
    PB_CHECK(bytes != NULL);
    size_t at = 0;
    for (unsigned i = 0; i < body.n_parts; i++) {
        memcpy(bytes + at, body.parts[i].ptr, body.parts[i].len);
        at += body.parts[i].len;
    }
    PB_CHECK(at == body.bytes);
    Inference__ModelInferResponse *m =
        inference__model_infer_response__unpack(NULL, body.bytes, bytes);
    PB_CHECK(m != NULL && strcmp(m->model_name, "m") == 0 && strcmp(m->model_version, "1") == 0);
    PB_CHECK(m->n_outputs == req->n_inputs && m->n_raw_output_contents == req->n_inputs);
    for (size_t i = 0; i < m->n_outputs; i++) {
        const struct nr_infer_tensor *t = &req->inputs[i];
        PB_CHECK(strcmp(m->outputs[i]->datatype, naru_dtype_name(t->dtype)) == 0);
        PB_CHECK(strcmp(m->outputs[i]->name, naru_dtype_name(t->dtype)) == 0);
        PB_CHECK(m->outputs[i]->n_shape == t->rank);
        PB_CHECK(memcmp(m->outputs[i]->shape, t->shape, t->rank * sizeof(*t->shape)) == 0);
        PB_CHECK(m->raw_output_contents[i].len == t->bytes);
        PB_CHECK(t->bytes == 0 || memcmp(m->raw_output_contents[i].data, t->data, t->bytes) == 0);
    }
    if (strlen(m->id) == req->id.len) { /* protobuf-c ends strings at a NUL */
        PB_CHECK(inference__model_infer_response__get_packed_size(m) == body.bytes);
    }
    inference__model_infer_response__free_unpacked(m, NULL);
    free(bytes);
}

/* True when ours took the message. */
static bool pb_check(const uint8_t *data, size_t size)
{
    struct nr_io_spec io[NARU_DTYPE_END];
    struct nr_signature sig = pb_signature(io);
    struct nr_str message = {(const char *)data, size};
    struct nr_arena arena;
    struct nr_infer_pb_head head;
    struct nr_infer_request req;
    struct nr_err err = {0};
    nr_arena_init(&arena, (size_t)64 << 20);
    nr_status peek = nr_infer_pb_peek(message, &head, NULL);
    nr_status st = nr_infer_pb_decode(&sig, message, NULL, &arena, &req, &err);
    PB_CHECK((st == NARU_OK) == (err.text[0] == '\0'));
    PB_CHECK(st != NARU_OK || peek == NARU_OK);
    if (st == NARU_OK) {
        Inference__ModelInferRequest *m = inference__model_infer_request__unpack(NULL, size, data);
        PB_CHECK(m != NULL);
        PB_CHECK(strncmp(m->model_name, head.model_name.ptr, head.model_name.len) == 0);
        pb_compare(&req, m);
        pb_check_response(&sig, &req, &arena);
        inference__model_infer_request__free_unpacked(m, NULL);
    }
    nr_arena_done(&arena);
    return st == NARU_OK;
}

#endif
