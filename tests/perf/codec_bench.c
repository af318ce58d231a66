/* Micro-benchmark of the inference codecs: ns per operation and MB/s, the least of several rounds.
 * Not a test: figures depend on the machine. Run it alone: build/tests/perf/codec_bench [rounds]. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/arena.h"
#include "base/buf.h"
#include "base/mem.h"
#include "base/str.h"
#include "codec/float.h"
#include "codec/infer_json.h"
#include "codec/infer_pb.h"

static uint64_t random_state = 88172645463325252u;

static uint64_t random_next(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

static double now(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

struct job {
    struct nr_io_spec in[2], out[2];
    struct nr_signature sig;
    struct nr_arena arena;
    struct nr_str body; /* request */
    size_t json_bytes;
    struct nr_infer_request req;
    bool binary; /* answer */
    size_t answer_bytes;
};

static void fail(const char *what, const struct nr_err *err)
{
    fprintf(stderr, "%s: %s\n", what, err->text);
    exit(1);
}

static void decode_json(struct job *j)
{
    struct nr_err err = {0};
    nr_arena_clear(&j->arena);
    struct nr_infer_parts parts = nr_infer_parts_of(j->body, j->json_bytes, NULL);
    if (nr_infer_json_decode(&j->sig, &parts, &j->arena, &j->req, &err) != NARU_OK) {
        fail("decode", &err);
    }
}

static struct nr_infer_response response(const struct job *j, struct nr_infer_output how[2])
{
    how[0] = (struct nr_infer_output){.index = 0, .binary = j->binary};
    how[1] = (struct nr_infer_output){.index = 1, .binary = j->binary};
    return (struct nr_infer_response){.model_name = NR_STR("model"),
                                      .model_version = NR_STR("1"),
                                      .outputs = j->req.inputs,
                                      .how = how,
                                      .n_outputs = j->req.n_inputs};
}

/* The inputs stay in j->arena; the answer has an arena of its own, as a request has. */
static void encode_json(struct job *j)
{
    static struct nr_arena arena;
    struct nr_infer_output how[2];
    struct nr_infer_response r = response(j, how);
    struct nr_infer_body body;
    struct nr_err err = {0};
    nr_arena_clear(&arena);
    if (nr_infer_json_encode(&j->sig, &r, &arena, &body, &err) != NARU_OK) {
        fail("encode", &err);
    }
    j->answer_bytes = body.bytes;
}

static void decode_pb(struct job *j)
{
    struct nr_err err = {0};
    struct nr_infer_pb_head head;
    nr_arena_clear(&j->arena);
    if (nr_infer_pb_peek(j->body, &head, &err) != NARU_OK ||
        nr_infer_pb_decode(&j->sig, j->body, NULL, &j->arena, &j->req, &err) != NARU_OK) {
        fail("decode", &err);
    }
}

static void encode_pb(struct job *j)
{
    static struct nr_arena arena;
    struct nr_infer_output how[2];
    struct nr_infer_response r = response(j, how);
    struct nr_infer_pb_body body;
    struct nr_err err = {0};
    nr_arena_clear(&arena);
    if (nr_infer_pb_encode(&j->sig, &r, &arena, &body, &err) != NARU_OK) {
        fail("encode", &err);
    }
    j->answer_bytes = body.bytes;
}

static void measure(const char *name, void (*run)(struct job *), struct job *j, bool is_answer,
                    int rounds)
{
    double least = 1e9;
    run(j);
    size_t bytes = is_answer ? j->answer_bytes : j->body.len;
    int n = bytes > 100000 ? 3 : 20000;
    uint64_t allocs = nr_mem_allocs();
    for (int round = 0; round < rounds; round++) {
        double begin = now();
        for (int i = 0; i < n; i++) {
            run(j);
        }
        double took = (now() - begin) / n;
        least = took < least ? took : least;
    }
    printf("%-36s %12.0f ns %9zu bytes %8.0f MB/s %6.2f allocs\n", name, least * 1e9, bytes,
           (double)bytes / least / 1e6, (double)(nr_mem_allocs() - allocs) / (rounds * n));
}

static void init(struct job *j, const int64_t *shape, uint32_t rank, unsigned n_inputs)
{
    memset(j, 0, sizeof(*j));
    for (unsigned i = 0; i < n_inputs; i++) {
        j->in[i].name = i ? NR_STR("INPUT1") : NR_STR("INPUT0");
        j->in[i].dtype = NARU_FP32;
        j->in[i].batched = true;
        j->in[i].rank = rank;
        memcpy(j->in[i].shape, shape, rank * sizeof(*shape));
        j->in[i].shape[0] = -1;
        j->out[i] = j->in[i];
        j->out[i].name = i ? NR_STR("OUTPUT1") : NR_STR("OUTPUT0");
    }
    j->sig = (struct nr_signature){.inputs = j->in,
                                   .outputs = j->out,
                                   .n_inputs = n_inputs,
                                   .n_outputs = n_inputs,
                                   .max_batch_size = 64};
    nr_arena_init(&j->arena, 0);
}

/* A request like Python's json.dumps of float32 values writes it: 17 digits and ", ". */
static void image_text(struct job *j, struct nr_text *t, bool nested, bool short_digits)
{
    nr_text_init(t, (size_t)64 << 20);
    nr_text_str(t,
                "{\"inputs\": [{\"name\": \"INPUT0\", \"shape\": [1, 3, 224, 224], \"datatype\": "
                "\"FP32\", \"data\": [");
    nr_text_str(t, nested ? "[[" : "");
    for (int i = 0; i < 3 * 224 * 224; i++) {
        bool row = nested && i % 224 == 0;
        bool plane = nested && i % (224 * 224) == 0;
        nr_text_str(t, i == 0 ? (row ? "[" : "") : plane ? "]], [[" : row ? "], [" : ", ");
        double v = (double)(float)((double)(random_next() >> 11) * 0x1p-53);
        nr_text_fmt(t, short_digits ? "%.4f" : "%.17g", v);
    }
    nr_text_str(t, nested ? "]]]" : "");
    nr_text_str(t, "]}]}");
    j->body = (struct nr_str){t->data, t->len};
    j->json_bytes = t->len;
}

int main(int argc, char **argv)
{
    uint64_t rounds = 20;
    if (argc > 1 && !nr_str_to_u64(nr_str_from(argv[1]), &rounds)) {
        return 1;
    }
    struct job j;
    struct nr_text t;
    init(&j, (const int64_t[]){-1, 16}, 2, 1);
    j.body = NR_STR(
        "{\"inputs\":[{\"name\":\"INPUT0\",\"shape\":[1,16],\"datatype\":\"FP32\",\"data\":[0."
        "1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9,1.0,1.1,1.2,1.3,1.4,1.5,1.6]}]}");
    j.json_bytes = j.body.len;
    measure("json tiny decode (16 floats)", decode_json, &j, false, (int)rounds);
    measure("json tiny encode", encode_json, &j, true, (int)rounds);
    char binary[256];
    int len = snprintf(binary, sizeof(binary) - 64,
                       "{\"inputs\":[{\"name\":\"INPUT0\",\"shape\":[1,16],\"datatype\":\"FP32\","
                       "\"parameters\":{\"binary_data_size\":64}}]}");
    memset(binary + len, 0, 64);
    j.body = (struct nr_str){binary, (size_t)len + 64};
    j.json_bytes = (size_t)len;
    j.binary = true;
    measure("binary tiny decode", decode_json, &j, false, (int)rounds);
    measure("binary tiny encode", encode_json, &j, true, (int)rounds);
    static const char wire[] = "\x0a\x05model\x2a\x12\x0a\x06INPUT0\x12\x04"
                               "FP32\x1a\x02\x01\x10:\x40";
    memset(binary, 0, sizeof(binary));
    memcpy(binary, wire, sizeof(wire) - 1);
    j.body = (struct nr_str){binary, sizeof(wire) - 1 + 64};
    measure("protobuf tiny decode", decode_pb, &j, false, (int)rounds);
    measure("protobuf tiny encode", encode_pb, &j, true, (int)rounds);
    init(&j, (const int64_t[]){-1, 3, 224, 224}, 4, 1);
    image_text(&j, &t, false, false);
    measure("json 1x3x224x224 decode, 17 digits", decode_json, &j, false, (int)rounds);
    measure("json 1x3x224x224 encode", encode_json, &j, true, (int)rounds);
    nr_text_done(&t);
    image_text(&j, &t, true, false);
    measure("json 1x3x224x224 decode, nested", decode_json, &j, false, (int)rounds);
    nr_text_done(&t);
    image_text(&j, &t, false, true);
    measure("json 1x3x224x224 decode, 4 digits", decode_json, &j, false, (int)rounds);
    nr_text_done(&t);
    return 0;
}
