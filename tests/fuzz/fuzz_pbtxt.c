/* config.pbtxt: the parser takes or refuses anything; what it took is written as text and read back
 * to the same message, and written as JSON. The same bytes then go through the configuration's
 * rules and completion, with and without a model's own view. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "codec/pbtxt.h"
#include "codec/pbwrite.h"
#include "model/config.h"

#define CHECK(cond)    \
    do {               \
        if (!(cond)) { \
            abort();   \
        }              \
    } while (0)

static uint8_t *pack(const ProtobufCMessage *m, size_t *ret_len)
{
    *ret_len = protobuf_c_message_get_packed_size(m);
    uint8_t *data = malloc(*ret_len + 1);
    CHECK(data != NULL);
    CHECK(protobuf_c_message_pack(m, data) == *ret_len);
    return data;
}

static void round_trip(const ProtobufCMessage *m, struct nr_arena *a)
{
    struct nr_text text, json;
    struct nr_err err;
    ProtobufCMessage *again = NULL;
    nr_text_init(&text, 64u << 20);
    nr_text_init(&json, 64u << 20);
    nr_pbwrite_text(m, &text);
    nr_pbwrite_json(m, &json);
    CHECK(!text.failed && !json.failed && json.data[0] == '{');
    struct nr_str s = {text.data ? text.data : "", text.len};
    CHECK(nr_pbtxt_parse(m->descriptor, s, "again", a, &again, NULL, &err) == NARU_OK);
    size_t len, again_len;
    uint8_t *x = pack(m, &len), *y = pack(again, &again_len);
    CHECK(len == again_len && memcmp(x, y, len) == 0);
    free(x);
    free(y);
    nr_text_done(&text);
    nr_text_done(&json);
}

static void complete(const uint8_t *data, size_t size, const naru_model_info *info)
{
    static const struct nr_config_opts opts = {.auto_complete = true};
    struct nr_model_config *c = NULL;
    struct nr_err err = {0};
    if (nr_config_parse("m", (const char *)data, size, "t", &c, &err) != NARU_OK) {
        CHECK(c == NULL && err.text[0] != '\0');
        return;
    }
    if (nr_config_complete(c, info, &opts, &err) == NARU_OK) {
        CHECK(c->sig.n_inputs == c->pb->n_input && c->n_groups > 0);
        CHECK(!c->batched || c->sig.n_inputs == 0 || c->sig.inputs[0].shape[0] == -1);
        struct nr_text json;
        nr_text_init(&json, 64u << 20);
        nr_config_json(c, &json);
        CHECK(!json.failed);
        nr_text_done(&json);
    } else {
        CHECK(err.text[0] != '\0');
    }
    nr_config_free(c);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const int64_t shape[] = {-1, 3, 224, 224};
    static const naru_io ios[] = {
        {.name = "image", .dtype = NARU_FP32, .rank = 4, .shape = shape},
        {.name = "ids", .dtype = NARU_INT64, .rank = 1, .shape = shape, .optional = 1},
        {.name = "scores", .dtype = NARU_FP32, .rank = 2, .shape = shape},
    };
    static const naru_model_info info = {.struct_size = sizeof info,
                                         .n_inputs = 2,
                                         .n_outputs = 1,
                                         .inputs = ios,
                                         .outputs = ios + 2,
                                         .platform = ""};
    struct nr_arena a;
    struct nr_err err = {0};
    ProtobufCMessage *m = NULL;
    nr_arena_init(&a, 64u << 20);
    struct nr_str text = {(const char *)data, size};
    if (nr_pbtxt_parse(&inference__model_config__descriptor, text, "t", &a, &m, NULL, &err) ==
        NARU_OK) {
        round_trip(m, &a);
    } else {
        CHECK(m == NULL && strncmp(err.text, "t:", 2) == 0);
    }
    nr_arena_done(&a);
    complete(data, size, NULL);
    complete(data, size, &info);
    return 0;
}
