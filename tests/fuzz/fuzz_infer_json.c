/* JSON infer requests: the decoder takes or refuses anything; what it took is encoded and, unless the
 * datatype forbids JSON, decoded again to the same bytes. Byte 0 picks the datatype and whether the
 * model batches, bytes 1 and 2 how much of the rest is JSON. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "codec/infer_json.h"

#define CHECK(cond)    \
    do {               \
        if (!(cond)) { \
            abort();   \
        }              \
    } while (0)

static void signature(struct nr_io_spec *in, struct nr_io_spec *out, unsigned pick,
                      struct nr_signature *sig)
{
    bool batched = (pick & 0x80) != 0;
    memset(in, 0, 2 * sizeof(*in));
    in[0].name = NR_STR("A");
    in[0].dtype = (int32_t)(1 + pick % 14);
    in[1].name = NR_STR("B");
    in[1].dtype = NARU_FP32;
    in[1].optional = true;
    for (int i = 0; i < 2; i++) {
        in[i].batched = batched;
        in[i].rank = 2;
        in[i].shape[0] = -1;
        in[i].shape[1] = -1;
    }
    memcpy(out, in, 2 * sizeof(*in));
    *sig = (struct nr_signature){.inputs = in,
                                 .outputs = out,
                                 .n_inputs = 2,
                                 .n_outputs = 2,
                                 .max_batch_size = batched ? 8 : 0};
}

static char *join(const struct nr_infer_body *b)
{
    char *text = malloc(b->bytes + 1);
    CHECK(text != NULL);
    size_t at = 0;
    for (unsigned i = 0; i < b->n_parts; i++) {
        memcpy(text + at, b->parts[i].ptr, b->parts[i].len);
        at += b->parts[i].len;
    }
    CHECK(at == b->bytes);
    text[at] = '\0';
    return text;
}

static void round_trip(const struct nr_signature *sig, const struct nr_infer_request *req,
                       struct nr_arena *arena)
{
    struct nr_infer_output how[2] = {{.index = 0}, {.index = 1}};
    struct nr_infer_response r = {.model_name = NR_STR("m"),
                                  .model_version = NR_STR("1"),
                                  .id = req->id,
                                  .has_id = req->has_id,
                                  .outputs = req->inputs,
                                  .how = how,
                                  .n_outputs = req->n_inputs};
    struct nr_infer_body body;
    struct nr_err err = {0};
    if (nr_infer_json_encode(sig, &r, arena, &body, &err) != NARU_OK) {
        CHECK(err.text[0] != '\0');
        return;
    }
    char *text = join(&body);
    char *list = strstr(text, "\"outputs\":[");
    if (strstr(text, "NaN") == NULL && strstr(text, "Infinity") == NULL && list != NULL) {
        struct nr_infer_request again;
        size_t len = 1 + strlen(list);
        char *request = malloc(len);
        CHECK(request != NULL);
        request[0] = '{'; /* the list of outputs is a list of inputs, too */
        memcpy(request + 1, list, len - 1);
        memcpy(request + 1, "\"inputs\" ", 9);
        struct nr_infer_parts parts = {.json = {request, len}};
        CHECK(nr_infer_json_decode(sig, &parts, arena, &again, &err) == NARU_OK);
        CHECK(again.n_inputs == req->n_inputs);
        for (unsigned i = 0; i < again.n_inputs; i++) {
            CHECK(again.inputs[i].bytes == req->inputs[i].bytes);
            CHECK(memcmp(again.inputs[i].data, req->inputs[i].data, again.inputs[i].bytes) == 0);
        }
        free(request);
    }
    free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct nr_io_spec in[2];
    struct nr_io_spec out[2];
    struct nr_signature sig;
    struct nr_arena arena;
    struct nr_infer_request req;
    struct nr_err err = {0};
    if (size < 3) {
        return 0;
    }
    signature(in, out, data[0], &sig);
    size_t binary = data[1] | (size_t)data[2] << 8;
    struct nr_str body = {(const char *)data + 3, size - 3};
    binary = binary < body.len ? binary : 0;
    nr_arena_init(&arena, (size_t)64 << 20);
    struct nr_infer_parts parts = nr_infer_parts_of(body, body.len - binary, NULL);
    nr_status st = nr_infer_json_decode(&sig, &parts, &arena, &req, &err);
    CHECK((st == NARU_OK) == (err.text[0] == '\0'));
    if (st == NARU_OK) {
        round_trip(&sig, &req, &arena);
    }
    sig.n_inputs = 1;
    parts = nr_infer_parts_of(body, 0, NULL);
    st = nr_infer_raw_decode(&sig, &parts, &arena, &req, &err);
    CHECK(st != NARU_OK || req.n_inputs == 1);
    nr_arena_done(&arena);
    return 0;
}
