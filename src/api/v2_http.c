/* KServe v2 (Open Inference Protocol) over HTTP, as Triton speaks it.
 *
 * Differences that are deliberate (client mistakes are 4xx, never 500; texts say what was expected)
 * are listed in docs/compatibility.md.
 */
#include <string.h>

#include "api/call.h"
#include "api/state.h"
#include "api/v2.h"
#include "base/mem.h"
#include "codec/float.h"
#include "codec/infer_json.h"
#include "codec/meta.h"
#include "codec/pbwrite.h"
#include "model/config.h"

#define META_TEXT_MAX (16u << 20)
#define TAIL_MIN_BYTES \
    16384 /* smaller bodies are read where the head is, and copied into batches */

/* --- health and metadata ---------------------------------------------------------------------- */

static void handle_live(struct nr_call *c)
{
    nr_call_empty(c, 200);
}

static void handle_ready(struct nr_call *c)
{
    nr_call_empty(c, nr_api_ready(c->api, nr_call_catalog(c)) ? 200 : 400);
}

static void handle_server(struct nr_call *c)
{
    struct nr_server_view v;
    struct nr_text t;
    nr_v2_server_view(c->api, &v);
    nr_text_init(&t, META_TEXT_MAX);
    nr_meta_server_json(&t, &v);
    nr_call_json(c, 200, &t);
}

/* Finds the model or answers why not. */
static bool found(struct nr_call *c)
{
    struct nr_err err = {0};
    if (nr_call_lookup(c, c->model_name, c->version_text, &err) != NARU_OK) {
        nr_call_fail_err(c, &err);
        return false;
    }
    return true;
}

static void handle_model_ready(struct nr_call *c)
{
    if (found(c)) {
        nr_call_empty(c, 200);
    }
}

static void handle_model(struct nr_call *c)
{
    if (!found(c)) {
        return;
    }
    struct nr_model_view v;
    struct nr_text t;
    nr_v2_model_view(c, &v);
    nr_text_init(&t, META_TEXT_MAX);
    nr_meta_model_json(&t, &v);
    nr_call_json(c, 200, &t);
}

static void handle_config(struct nr_call *c)
{
    if (!found(c)) {
        return;
    }
    struct nr_text t;
    nr_text_init(&t, META_TEXT_MAX);
    Inference__ModelConfig config;
    Inference__ModelTransactionPolicy policy;
    nr_config_view(c->version->config, nr_catalog_decoupled(c->pin->catalog, c->version), &config,
                   &policy);
    nr_pbwrite_json(&config.base, &t);
    nr_call_json(c, 200, &t);
}

static void handle_stats(struct nr_call *c)
{
    const struct nr_stats_view *views;
    unsigned n;
    struct nr_err err = {0};
    if (nr_v2_stats_views(c, c->model_name, c->version_text, &views, &n, &err) != NARU_OK) {
        nr_call_fail_err(c, &err);
        return;
    }
    struct nr_text t;
    nr_text_init(&t, META_TEXT_MAX);
    nr_meta_stats_json(&t, views, n);
    nr_call_json(c, 200, &t);
}

static void handle_index(struct nr_call *c)
{
    bool ready_only;
    struct nr_err err = {0};
    if (nr_v2_index_body(c->x->body, &ready_only, &err) != NARU_OK) {
        nr_call_fail_err(c, &err);
        return;
    }
    const struct nr_index_view *views;
    unsigned n;
    nr_v2_index_views(c, ready_only, &views, &n);
    struct nr_text t;
    nr_text_init(&t, META_TEXT_MAX);
    nr_meta_index_json(&t, views, n);
    nr_call_json(c, 200, &t);
}

/* --- inference -------------------------------------------------------------------------------- */

struct encoded { /* result of encoding, made on the loop or on the pool */
    struct nr_infer_body body;
    nr_status status;
};

/* As Triton: whatever the client calls it, a body is JSON, but for bytes that are said to be bytes
 * (and for no body at all). curl -d says application/x-www-form-urlencoded. */
static bool is_raw(const struct nr_exchange *x, uint64_t body_bytes)
{
    struct nr_str rest;
    struct nr_str type = nr_str_trim(nr_str_cut(x->known.content_type, ';', &rest));
    return body_bytes == 0 || nr_str_eq_nocase(type, NR_STR("application/octet-stream"));
}

/* Bytes of JSON at the begin of a body of body_bytes; 0: a raw body. */
static nr_status json_bytes_of(const struct nr_exchange *x, size_t body_bytes, size_t *ret,
                               struct nr_err *err)
{
    struct nr_str length = x->known.inference_header_content_length;
    if (length.ptr != NULL) {
        return nr_infer_header_length(length, body_bytes, ret, err);
    }
    *ret = is_raw(x, body_bytes) ? 0 : body_bytes;
    return NARU_OK;
}

static void handle_infer(struct nr_call *c);

/* Tensors begin at an aligned address, those of the only input beside the other requests'
 * (sched/room.h). */
void nr_v2_http_place_body(const struct nr_call *c, const struct nr_signature *sig)
{
    struct nr_exchange *x = c->x;
    if (c->route->handle != handle_infer || x->content_length <= TAIL_MIN_BYTES) {
        return;
    }
    struct nr_err unused = {0}; /* decode says it, to whoever sent it */
    size_t json_bytes;
    if (json_bytes_of(x, (size_t)x->content_length, &json_bytes, &unused) != NARU_OK) {
        return;
    }
    x->body_align_at = json_bytes;
    if (sig->room != NULL && sig->n_inputs == 1 && x->protocol < NR_HTTP_2) {
        x->tail_buf = sig->room->take(sig->room->arg, 0, (size_t)x->content_length - json_bytes);
    }
}

/* Loop or pool: body → c->in. The status is in c->err. */
static void decode(struct nr_call *c)
{
    struct nr_exchange *x = c->x;
    const struct nr_signature *sig = c->runtime->signature;
    struct nr_infer_parts parts = {.json = x->body, x->tail, x->body_buf, .in_room = true};
    size_t json_bytes = x->body.len;
    nr_status st = NARU_OK;
    if (x->tail.ptr == NULL) {
        st = json_bytes_of(x, x->body.len, &json_bytes, &c->err);
        parts = nr_infer_parts_of(x->body, json_bytes, x->body_buf);
    }
    if (st == NARU_OK && json_bytes == 0) {
        st = nr_infer_raw_decode(sig, &parts, &x->arena, &c->in, &c->err);
    } else if (st == NARU_OK) {
        st = nr_infer_json_decode(sig, &parts, &x->arena, &c->in, &c->err);
    }
    c->err.status = st;
}

static void respond_encoded(struct nr_call *c)
{
    struct encoded *e = c->data;
    if (e->status != NARU_OK) {
        nr_call_fail_err(c, &c->err);
        return;
    }
    struct nr_header length = {NR_STR("inference-header-content-length"), {0}};
    struct nr_response r = {.status = 200,
                            .content_type = NR_STR("application/json"),
                            .body = e->body.parts,
                            .n_body = e->body.n_parts};
    if (e->body.has_binary) {
        char *digits = nr_arena_alloc(&c->x->arena, 24);
        length.value =
            (struct nr_str){digits, (size_t)(nr_u64_write(e->body.json_bytes, digits) - digits)};
        r.content_type = NR_STR("application/octet-stream");
        r.headers = &length;
        r.n_headers = 1;
    }
    nr_exchange_respond(c->x, &r);
}

static void encode(struct nr_call *c)
{
    struct encoded *e = c->data;
    struct nr_infer_response resp;
    e->status = nr_v2_response(c, &resp, &c->err);
    if (e->status == NARU_OK) {
        e->status =
            nr_infer_json_encode(c->runtime->signature, &resp, &c->x->arena, &e->body, &c->err);
    }
    c->err.status = e->status;
}

/* Numbers that become text here are work; many of them go to the pool. */
static size_t json_output_bytes(const struct nr_call *c)
{
    size_t bytes = 0;
    for (unsigned i = 0; i < c->in.n_outputs; i++) {
        if (!c->in.outputs[i].binary || c->in.outputs[i].classification > 0) {
            bytes += c->outputs[i].bytes;
        }
    }
    return bytes;
}

static void respond_infer(struct nr_call *c)
{
    c->data = nr_arena_new(&c->x->arena, struct encoded);
    if (json_output_bytes(c) > c->api->cfg.inline_json_bytes) {
        nr_call_offload(c, encode, respond_encoded);
        return;
    }
    encode(c);
    respond_encoded(c);
}

static void handle_infer(struct nr_call *c)
{
    if (nr_call_refuse_encoding(c) || !found(c)) {
        return;
    }
    struct nr_str length = c->x->known.inference_header_content_length;
    uint64_t json_bytes = c->x->body.len;
    if (length.ptr != NULL && !nr_str_to_u64(length, &json_bytes)) {
        json_bytes = 0; /* decode says what is wrong */
    }
    nr_v2_infer(c, json_bytes > c->api->cfg.inline_json_bytes, decode, respond_infer);
}

#define GET (1u << NR_GET)
#define POST (1u << NR_POST)

const struct nr_route nr_routes_v2_http[] = {
    /* the common ones first: the table is walked in order */
    {"/v2/models/{model}/infer", POST, NR_SCOPE_INFER, NR_ROUTE_HTTP, true, handle_infer, "infer"},
    {"/v2/models/{model}/versions/{version}/infer", POST, NR_SCOPE_INFER, NR_ROUTE_HTTP, true,
     handle_infer, "infer"},
    {"/v2/health/live", GET, NR_SCOPE_HEALTH, NR_ROUTE_HTTP, false, handle_live, "live"},
    {"/v2/health/ready", GET, NR_SCOPE_HEALTH, NR_ROUTE_HTTP, false, handle_ready, "ready"},
    {"/v2", GET, NR_SCOPE_METADATA, NR_ROUTE_HTTP, false, handle_server, "server_metadata"},
    {"/v2/models/stats", GET, NR_SCOPE_METADATA, NR_ROUTE_HTTP, false, handle_stats, "stats"},
    {"/v2/models/{model}", GET, NR_SCOPE_METADATA, NR_ROUTE_HTTP, false, handle_model,
     "model_metadata"},
    {"/v2/models/{model}/versions/{version}", GET, NR_SCOPE_METADATA, NR_ROUTE_HTTP, false,
     handle_model, "model_metadata"},
    {"/v2/models/{model}/ready", GET, NR_SCOPE_HEALTH, NR_ROUTE_HTTP, false, handle_model_ready,
     "model_ready"},
    {"/v2/models/{model}/versions/{version}/ready", GET, NR_SCOPE_HEALTH, NR_ROUTE_HTTP, false,
     handle_model_ready, "model_ready"},
    {"/v2/models/{model}/config", GET, NR_SCOPE_METADATA, NR_ROUTE_HTTP, false, handle_config,
     "model_config"},
    {"/v2/models/{model}/versions/{version}/config", GET, NR_SCOPE_METADATA, NR_ROUTE_HTTP, false,
     handle_config, "model_config"},
    {"/v2/models/{model}/stats", GET, NR_SCOPE_METADATA, NR_ROUTE_HTTP, false, handle_stats,
     "stats"},
    {"/v2/models/{model}/versions/{version}/stats", GET, NR_SCOPE_METADATA, NR_ROUTE_HTTP, false,
     handle_stats, "stats"},
    {"/v2/repository/index", POST, NR_SCOPE_METADATA, NR_ROUTE_HTTP, false, handle_index,
     "repository_index"},
    {0},
};
