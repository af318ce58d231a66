/* KServe v2 over gRPC: service inference.GRPCInferenceService and grpc.health.v1.Health/Check.
 *
 * ModelInfer is decoded and encoded by our own zero-copy code (codec/infer_pb.h); all other messages
 * by protobuf-c's generated code, with memory from the call's arena.
 */
#include <string.h>

#include "api/call.h"
#include "api/pb_arena.h"
#include "api/state.h"
#include "api/v2.h"
#include "codec/infer_pb.h"
#include "codec/meta.h"
#include "proto/grpc_service.pb-c.h"
#include "proto/health.pb-c.h"

#define SERVICE "/inference.GRPCInferenceService/"

/* The request message by its generated unpack function, or NULL after answering what is wrong. */
#define UNPACK(c, type_unpack) \
    type_unpack(nr_pb_arena(&(c)->x->arena), (c)->x->body.len, (const uint8_t *)(c)->x->body.ptr)

static bool malformed(struct nr_call *c, const void *message)
{
    if (message == NULL) {
        nr_call_fail(c, NARU_INVALID, NR_STR("the request message cannot be parsed"), 0);
    }
    return message == NULL;
}

static void answer(struct nr_call *c, const ProtobufCMessage *message)
{
    size_t bytes = protobuf_c_message_get_packed_size(message);
    uint8_t *out = nr_arena_alloc(&c->x->arena, bytes + 1);
    protobuf_c_message_pack(message, out);
    nr_call_grpc_bytes(c, (struct nr_str){(const char *)out, bytes});
}

static void answer_packed(struct nr_call *c, nr_status st, struct nr_str packed)
{
    if (st != NARU_OK) {
        nr_call_fail(c, st, NR_STR("the answer does not fit into memory"), 0);
        return;
    }
    nr_call_grpc_bytes(c, packed);
}

/* --- health and metadata ---------------------------------------------------------------------- */

static void handle_live(struct nr_call *c)
{
    Inference__ServerLiveResponse r = INFERENCE__SERVER_LIVE_RESPONSE__INIT;
    r.live = true;
    answer(c, &r.base);
}

static void handle_ready(struct nr_call *c)
{
    Inference__ServerReadyResponse r = INFERENCE__SERVER_READY_RESPONSE__INIT;
    r.ready = nr_api_ready(c->api, nr_call_catalog(c));
    answer(c, &r.base);
}

static void handle_health(struct nr_call *c)
{
    Grpc__Health__V1__HealthCheckRequest *q =
        UNPACK(c, grpc__health__v1__health_check_request__unpack);
    if (malformed(c, q)) {
        return;
    }
    Grpc__Health__V1__HealthCheckResponse r = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__INIT;
    struct nr_str service = nr_str_from(q->service);
    if (service.len > 0 && !nr_str_is(service, "inference.GRPCInferenceService")) {
        nr_call_fail(
            c, NARU_NOT_FOUND,
            nr_arena_fmt(&c->x->arena, "unknown service '" NR_STR_FMT "'", NR_STR_ARG(service)), 0);
        return;
    }
    r.status = nr_api_ready(c->api, nr_call_catalog(c))
                   ? GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVING
                   : GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__NOT_SERVING;
    answer(c, &r.base);
}

static void handle_server(struct nr_call *c)
{
    struct nr_server_view v;
    struct nr_str packed = {0};
    nr_v2_server_view(c->api, &v);
    nr_status st = nr_meta_server_pb(&c->x->arena, &v, &packed);
    answer_packed(c, st, packed);
}

/* Looks the model up or answers why not. */
static bool found(struct nr_call *c, const char *name, const char *version)
{
    struct nr_err err = {0};
    c->model_name = nr_str_from(name);
    c->version_text = nr_str_from(version);
    if (nr_call_lookup(c, c->model_name, c->version_text, &err) != NARU_OK) {
        nr_call_fail_err(c, &err);
        return false;
    }
    return true;
}

static void handle_model_ready(struct nr_call *c)
{
    Inference__ModelReadyRequest *q = UNPACK(c, inference__model_ready_request__unpack);
    if (malformed(c, q)) {
        return;
    }
    struct nr_err err = {0};
    c->model_name = nr_str_from(q->name);
    c->version_text = nr_str_from(q->version);
    nr_status st = nr_call_lookup(c, c->model_name, c->version_text, &err);
    if (st == NARU_INVALID) {
        nr_call_fail_err(c, &err);
        return;
    }
    /* not there is an answer, not an error: clients poll this */
    Inference__ModelReadyResponse r = INFERENCE__MODEL_READY_RESPONSE__INIT;
    r.ready = st == NARU_OK;
    answer(c, &r.base);
}

static void handle_model(struct nr_call *c)
{
    Inference__ModelMetadataRequest *q = UNPACK(c, inference__model_metadata_request__unpack);
    if (malformed(c, q) || !found(c, q->name, q->version)) {
        return;
    }
    struct nr_model_view v;
    struct nr_str packed = {0};
    nr_v2_model_view(c, &v);
    nr_status st = nr_meta_model_pb(&c->x->arena, &v, &packed);
    answer_packed(c, st, packed);
}

static void handle_config(struct nr_call *c)
{
    Inference__ModelConfigRequest *q = UNPACK(c, inference__model_config_request__unpack);
    if (malformed(c, q) || !found(c, q->name, q->version)) {
        return;
    }
    Inference__ModelConfigResponse r = INFERENCE__MODEL_CONFIG_RESPONSE__INIT;
    Inference__ModelConfig config;
    Inference__ModelTransactionPolicy policy;
    nr_config_view(c->version->config, nr_catalog_decoupled(c->pin->catalog, c->version), &config,
                   &policy);
    r.config = &config;
    answer(c, &r.base);
}

static void handle_stats(struct nr_call *c)
{
    Inference__ModelStatisticsRequest *q = UNPACK(c, inference__model_statistics_request__unpack);
    if (malformed(c, q)) {
        return;
    }
    const struct nr_stats_view *views;
    unsigned n;
    struct nr_err err = {0};
    struct nr_str packed = {0};
    if (nr_v2_stats_views(c, nr_str_from(q->name), nr_str_from(q->version), &views, &n, &err) !=
        NARU_OK) {
        nr_call_fail_err(c, &err);
        return;
    }
    nr_status st = nr_meta_stats_pb(&c->x->arena, views, n, &packed);
    answer_packed(c, st, packed);
}

static void handle_index(struct nr_call *c)
{
    Inference__RepositoryIndexRequest *q = UNPACK(c, inference__repository_index_request__unpack);
    if (malformed(c, q)) {
        return;
    }
    const struct nr_index_view *views;
    unsigned n;
    struct nr_str packed = {0};
    nr_v2_index_views(c, q->ready, &views, &n);
    nr_status st = nr_meta_index_pb(&c->x->arena, views, n, &packed);
    answer_packed(c, st, packed);
}

/* --- inference -------------------------------------------------------------------------------- */

static void respond_infer(struct nr_call *c)
{
    struct nr_infer_response resp;
    struct nr_infer_pb_body body;
    nr_status st = nr_v2_response(c, &resp, &c->err);
    if (st == NARU_OK) {
        st = nr_infer_pb_encode(c->runtime->signature, &resp, &c->x->arena, &body, &c->err);
    }
    if (st != NARU_OK) {
        c->err.status = st;
        nr_call_fail_err(c, &c->err);
        return;
    }
    struct nr_response r = {.status = 200, .body = body.parts, .n_body = body.n_parts};
    nr_exchange_respond(c->x, &r);
}

static void decode(struct nr_call *c)
{
    struct nr_exchange *x = c->x;
    c->err.status =
        nr_infer_pb_decode(c->runtime->signature, x->body, x->body_buf, &x->arena, &c->in, &c->err);
}

/* Messages with tensors as typed contents are work to decode; raw ones are views, however large. */
static bool is_long_work(const struct nr_call *c)
{
    return c->x->body.len > c->api->cfg.inline_json_bytes;
}

static void handle_infer(struct nr_call *c)
{
    struct nr_infer_pb_head head;
    struct nr_err err = {0};
    nr_status st = nr_infer_pb_peek(c->x->body, &head, &err);
    if (st == NARU_OK) {
        c->model_name = head.model_name;
        c->version_text = head.model_version;
        st = nr_call_lookup(c, head.model_name, head.model_version, &err);
    }
    if (st != NARU_OK) {
        err.status = st;
        nr_call_fail_err(c, &err);
        return;
    }
    nr_v2_infer(c, is_long_work(c), decode, respond_infer);
}

const struct nr_route nr_routes_v2_grpc[] = {
    {SERVICE "ModelInfer", 0, NR_SCOPE_INFER, NR_ROUTE_GRPC, false, handle_infer, "infer"},
    {SERVICE "ServerLive", 0, NR_SCOPE_HEALTH, NR_ROUTE_GRPC, false, handle_live, "live"},
    {SERVICE "ServerReady", 0, NR_SCOPE_HEALTH, NR_ROUTE_GRPC, false, handle_ready, "ready"},
    {SERVICE "ModelReady", 0, NR_SCOPE_HEALTH, NR_ROUTE_GRPC, false, handle_model_ready,
     "model_ready"},
    {SERVICE "ServerMetadata", 0, NR_SCOPE_METADATA, NR_ROUTE_GRPC, false, handle_server,
     "server_metadata"},
    {SERVICE "ModelMetadata", 0, NR_SCOPE_METADATA, NR_ROUTE_GRPC, false, handle_model,
     "model_metadata"},
    {SERVICE "ModelConfig", 0, NR_SCOPE_METADATA, NR_ROUTE_GRPC, false, handle_config,
     "model_config"},
    {SERVICE "ModelStatistics", 0, NR_SCOPE_METADATA, NR_ROUTE_GRPC, false, handle_stats, "stats"},
    {SERVICE "RepositoryIndex", 0, NR_SCOPE_METADATA, NR_ROUTE_GRPC, false, handle_index,
     "repository_index"},
    {"/grpc.health.v1.Health/Check", 0, NR_SCOPE_HEALTH, NR_ROUTE_GRPC, false, handle_health,
     "health"},
    {0},
};
