/* Signatures and requests that the tests of the inference codecs share. */
#ifndef NR_TESTS_INFER_KIT_H
#define NR_TESTS_INFER_KIT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/arena.h"
#include "base/buf.h"
#include "base/mem.h"
#include "codec/infer.h"
#include "codec/infer_json.h"
#include "codec/tensor.h"

struct kit {
    struct nr_io_spec in[4], out[4];
    struct nr_signature sig;
    struct nr_arena arena;
    struct nr_infer_request req;
    struct nr_err err;
};

/* shape: dimensions, -1 varies, ended by INT64_MIN; max_batch > 0 puts the batch dimension first. */
__attribute__((unused)) static void kit_spec(struct nr_io_spec *io, const char *name, int32_t dtype,
                                             int64_t max_batch, const int64_t *shape)
{
    *io = (struct nr_io_spec){.name = nr_str_from(name), .dtype = dtype, .row_bytes = -1};
    if (max_batch > 0) {
        io->batched = true;
        io->shape[io->rank++] = -1;
    }
    while (*shape != INT64_MIN) {
        io->shape[io->rank++] = *shape++;
    }
}
#define DIMS(...) ((const int64_t[]){__VA_ARGS__, INT64_MIN})

/* One input INPUT0 and one output OUTPUT0 of dtype and shape. */
__attribute__((unused)) static void kit_init(struct kit *k, int32_t dtype, int64_t max_batch,
                                             const int64_t *shape)
{
    memset(k, 0, sizeof(*k));
    kit_spec(&k->in[0], "INPUT0", dtype, max_batch, shape);
    kit_spec(&k->out[0], "OUTPUT0", dtype, max_batch, shape);
    k->sig = (struct nr_signature){.inputs = k->in,
                                   .outputs = k->out,
                                   .n_inputs = 1,
                                   .n_outputs = 1,
                                   .max_batch_size = max_batch};
    nr_arena_init(&k->arena, 0);
}

/* Two FP32 inputs and outputs of 16 values, batches of up to 8. */
__attribute__((unused)) static void kit_add_sub(struct kit *k)
{
    kit_init(k, NARU_FP32, 8, DIMS(16));
    kit_spec(&k->in[1], "INPUT1", NARU_FP32, 8, DIMS(16));
    kit_spec(&k->out[1], "OUTPUT1", NARU_FP32, 8, DIMS(16));
    k->sig.n_inputs = k->sig.n_outputs = 2;
}

__attribute__((unused)) static void kit_done(struct kit *k)
{
    nr_arena_done(&k->arena);
}

/* Decodes JSON followed by binary[bytes], from memory of exactly that size so that a sanitizer sees
 * every byte read beyond it. */
__attribute__((unused)) static nr_status kit_json(struct kit *k, const char *json,
                                                  const void *binary, size_t bytes)
{
    size_t len = strlen(json);
    char *body = malloc(len + bytes + (len + bytes == 0));
    assert_non_null(body);
    memcpy(body, json, len);
    memcpy(body + len, bytes ? binary : "", bytes);
    k->err = (struct nr_err){0};
    nr_arena_clear(&k->arena);
    struct nr_infer_parts parts = nr_infer_parts_of((struct nr_str){body, len + bytes}, len, NULL);
    nr_status st = nr_infer_json_decode(&k->sig, &parts, &k->arena, &k->req, &k->err);
    nr_arena_defer(&k->arena, free, body);
    assert_int_equal(st, k->err.status);
    return st;
}

/* INPUT0 with this datatype, shape and data. */
__attribute__((unused)) static nr_status kit_value(struct kit *k, const char *dtype,
                                                   const char *shape, const char *data)
{
    char *json = NULL;
    if (asprintf(
            &json,
            "{\"inputs\":[{\"name\":\"INPUT0\",\"shape\":%s,\"datatype\":\"%s\",\"data\":%s}]}",
            shape, dtype, data) < 0) {
        abort();
    }
    nr_status st = kit_json(k, json, NULL, 0);
    free(json);
    return st;
}

/* All parts as one text, NUL-terminated; caller frees. */
__attribute__((unused)) static char *kit_join(const struct nr_iov *parts, unsigned n, size_t *len)
{
    size_t total = 0;
    for (unsigned i = 0; i < n; i++) {
        total += parts[i].len;
    }
    char *text = malloc(total + 1);
    assert_non_null(text);
    size_t at = 0;
    for (unsigned i = 0; i < n; i++) {
        memcpy(text + at, parts[i].ptr, parts[i].len);
        at += parts[i].len;
    }
    text[total] = '\0';
    if (len) {
        *len = total;
    }
    return text;
}

__attribute__((unused)) static void kit_refused(struct kit *k, nr_status st, const char *says)
{
    assert_int_equal(st, NARU_INVALID);
    if (strstr(k->err.text, says) == NULL) {
        fail_msg("error text is \"%s\", expected it to say \"%s\"", k->err.text, says);
    }
}

#endif
