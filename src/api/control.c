/* The control plane: loading and unloading models, and what became of each (KServe v2's model
 * repository extension over HTTP and gRPC, and naru's /v2/health/models).
 *
 * An operation may take minutes. Its nr_op lies in the call's arena, which lives until the call is
 * answered; `done` comes on a loading thread and goes back to the loop as a message.
 *
 * A configuration or files in the request (`config`, `file:…`) are refused, not passed over: serving
 * something else than what was sent would be worse.
 */
#include <string.h>
#include <yyjson.h>

#include "api/call.h"
#include "api/pb_arena.h"
#include "api/state.h"
#include "base/clock.h"
#include "base/mem.h"
#include "proto/grpc_service.pb-c.h"

#define SERVICE "/inference.GRPCInferenceService/"
#define MODELS_TEXT_MAX (16u << 20)

struct operation {
    struct nr_op op;
    struct nr_msg msg;
    struct nr_call *call;
};

static void answer_done(struct nr_call *c, enum nr_op_kind kind)
{
    if (c->x->protocol != NR_GRPC) {
        nr_call_empty(c, 200);
        return;
    }
    (void)kind; /* both answers are messages without fields */
    nr_call_grpc_bytes(c, (struct nr_str){0});
}

/* On the loop again. */
static void ended(struct nr_msg *m)
{
    struct operation *o = nr_container_of(m, struct operation, msg);
    struct nr_call *c = o->call;
    if (o->op.err.status == NARU_OK) {
        answer_done(c, o->op.kind);
        return;
    }
    if (o->op.kind == NR_OP_LOAD && o->op.err.status != NARU_UNAVAILABLE) {
        nr_call_fail(c, o->op.err.status,
                     nr_arena_fmt(&c->x->arena, "failed to load '" NR_STR_FMT "': %s",
                                  NR_STR_ARG(c->model_name), o->op.err.text),
                     0);
        return;
    }
    nr_call_fail_err(c, &o->op.err);
}

static void on_op_done(struct nr_op *op)
{
    struct operation *o = nr_container_of(op, struct operation, op);
    o->msg.run = ended;
    nr_loop_post(o->call->x->loop, &o->msg);
}

static void begin(struct nr_call *c, enum nr_op_kind kind)
{
    struct operation *o = nr_arena_new(&c->x->arena, struct operation);
    o->call = c;
    o->op.kind = kind;
    o->op.done = on_op_done;
    nr_repository_submit(c->api->cfg.repository, c->model_name, &o->op);
}

/* --- HTTP ------------------------------------------------------------------------------------- */

/* {"parameters": {…}} or nothing. Parameters that would change what is loaded are refused. */
static nr_status check_body(struct nr_str body, struct nr_err *err)
{
    yyjson_read_err why;
    if (body.len == 0) {
        return NARU_OK;
    }
    yyjson_doc *doc = yyjson_read_opts((char *)(uintptr_t)body.ptr, body.len, 0, NULL, &why);
    if (doc == NULL) {
        return nr_fail(err, NARU_INVALID, "the body is no JSON: %s at byte %zu", why.msg, why.pos);
    }
    yyjson_val *root = yyjson_doc_get_root(doc), *parameters = yyjson_obj_get(root, "parameters");
    nr_status st = NARU_OK;
    if (!yyjson_is_obj(root) || (parameters != NULL && !yyjson_is_obj(parameters))) {
        st = nr_fail(err, NARU_INVALID,
                     "the body must be a JSON object like {\"parameters\": {}}, or empty");
    }
    size_t i, n;
    yyjson_val *key, *value;
    yyjson_obj_foreach(parameters, i, n, key, value)
    {
        if (st == NARU_OK && !yyjson_equals_str(key, "unload_dependents")) {
            st = nr_fail(err, NARU_UNSUPPORTED,
                         "parameter '%.100s': models are loaded from the repository as they lie "
                         "there; change the files, then load",
                         yyjson_get_str(key));
        }
    }
    yyjson_doc_free(doc);
    return st;
}

static void handle_http(struct nr_call *c, enum nr_op_kind kind)
{
    struct nr_err err = {0};
    if (nr_call_refuse_encoding(c)) {
        return;
    }
    if (check_body(c->x->body, &err) != NARU_OK) {
        nr_call_fail_err(c, &err);
        return;
    }
    begin(c, kind);
}

static void handle_load(struct nr_call *c)
{
    handle_http(c, NR_OP_LOAD);
}

static void handle_unload(struct nr_call *c)
{
    handle_http(c, NR_OP_UNLOAD);
}

/* --- gRPC ------------------------------------------------------------------------------------- */

static bool malformed(struct nr_call *c, const void *message)
{
    if (message == NULL) {
        nr_call_fail(c, NARU_INVALID, NR_STR("the request message cannot be parsed"), 0);
    }
    return message == NULL;
}

static void handle_grpc_load(struct nr_call *c)
{
    Inference__RepositoryModelLoadRequest *q = inference__repository_model_load_request__unpack(
        nr_pb_arena(&c->x->arena), c->x->body.len, (const uint8_t *)c->x->body.ptr);
    if (malformed(c, q)) {
        return;
    }
    if (q->n_parameters > 0) {
        nr_call_fail(c, NARU_UNSUPPORTED,
                     NR_STR("parameters of a load: models are loaded from the repository as they "
                            "lie there; change the files, then load"),
                     0);
        return;
    }
    c->model_name = nr_str_from(q->model_name);
    begin(c, NR_OP_LOAD);
}

static void handle_grpc_unload(struct nr_call *c)
{
    Inference__RepositoryModelUnloadRequest *q = inference__repository_model_unload_request__unpack(
        nr_pb_arena(&c->x->arena), c->x->body.len, (const uint8_t *)c->x->body.ptr);
    if (malformed(c, q)) {
        return;
    }
    c->model_name = nr_str_from(q->model_name);
    begin(c, NR_OP_UNLOAD);
}

/* --- health of each model ----------------------------------------------------------------------- */

static void write_entry(struct nr_text *t, const struct nr_index_entry *e)
{
    char since[25];
    nr_text_str(t, "{\"name\":");
    nr_text_json(t, nr_str_from(e->name));
    if (e->version >= 0) {
        nr_text_fmt(t, ",\"version\":\"%lld\"", (long long)e->version);
    }
    nr_text_fmt(t, ",\"state\":\"%s\",\"ready\":%s,\"reason\":", nr_version_state_text(e->state),
                e->state == NR_VERSION_READY ? "true" : "false");
    nr_text_json(t, nr_str_from(e->reason));
    if (e->since_wall_ns > 0) {
        nr_clock_format(e->since_wall_ns, since);
        nr_text_fmt(t, ",\"since\":\"%s\"", since);
    }
    if (e->state == NR_VERSION_READY) {
        nr_text_fmt(t, ",\"load_ms\":%.3f,\"memory_bytes\":%llu", (double)e->load_ns / 1e6,
                    (unsigned long long)e->memory_bytes);
    }
    nr_text_str(t, "}");
}

static void handle_models(struct nr_call *c)
{
    const struct nr_index_entry *entries;
    uint32_t n;
    struct nr_text t;
    nr_repository_index(c->api->cfg.repository, false, &c->x->arena, &entries, &n);
    nr_text_init(&t, MODELS_TEXT_MAX);
    nr_text_fmt(&t, "{\"ready\":%s,\"troubles\":[",
                nr_api_ready(c->api, nr_call_catalog(c)) ? "true" : "false");
    struct nr_troubles troubles;
    const char *comma = "";
    nr_api_troubles(c->api, &troubles);
    for (unsigned i = 0; i < NR_TROUBLES; i++) {
        if (troubles.text[i][0] != '\0') {
            nr_text_str(&t, comma);
            nr_text_json(&t, nr_str_from(troubles.text[i]));
            comma = ",";
        }
    }
    nr_text_str(&t, "],\"models\":[");
    for (uint32_t i = 0; i < n; i++) {
        nr_text_str(&t, i > 0 ? "," : "");
        write_entry(&t, &entries[i]);
    }
    nr_text_str(&t, "]}");
    nr_call_json(c, 200, &t);
}

const struct nr_route nr_routes_control[] = {
    {"/v2/repository/models/{model}/load", 1u << NR_POST, NR_SCOPE_CONTROL, false, false,
     handle_load, "model_load"},
    {"/v2/repository/models/{model}/unload", 1u << NR_POST, NR_SCOPE_CONTROL, false, false,
     handle_unload, "model_unload"},
    {"/v2/health/models", 1u << NR_GET, NR_SCOPE_HEALTH, false, false, handle_models,
     "models_health"},
    {SERVICE "RepositoryModelLoad", 0, NR_SCOPE_CONTROL, true, false, handle_grpc_load,
     "model_load"},
    {SERVICE "RepositoryModelUnload", 0, NR_SCOPE_CONTROL, true, false, handle_grpc_unload,
     "model_unload"},
    {0},
};
