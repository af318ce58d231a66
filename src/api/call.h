/* What protocol adapters share: a call is an exchange with its route and, for inference, its model
 * version and scheduler request.
 *
 * A call lives in the exchange's arena. Its model version is pinned (nr_catalog_pin) from lookup to
 * on_done. Handlers run on the loop; work that is long goes to the pool through nr_call_offload,
 * during which the loop touches neither the call nor its arena.
 */
#ifndef NR_API_CALL_H
#define NR_API_CALL_H

#include "api/api.h"
#include "codec/infer.h"
#include "sched/request.h"

/* Who may use a route. Checked for every route of the table in one place; with authentication (a
 * later issue) a key carries scopes. */
typedef enum nr_scope {
    NR_SCOPE_NONE, /* not a scope: a route that has it does not start */
    NR_SCOPE_HEALTH,
    NR_SCOPE_METADATA,
    NR_SCOPE_INFER,
    NR_SCOPE_METRICS,
    NR_SCOPE_CONTROL,
    NR_SCOPE_PAGE
} nr_scope;

struct nr_call;

typedef enum nr_route_kind {
    NR_ROUTE_HTTP,
    NR_ROUTE_GRPC,       /* one message */
    NR_ROUTE_GRPC_STREAM /* many: handle comes with the head, and sets c->stream */
} nr_route_kind;

/* A call of many messages. Loop. */
struct nr_stream_ops {
    void (*message)(struct nr_call *c); /* one is in c->x->body */
    void (*last)(struct nr_call *c);    /* the client has sent its last */
    void (*cancel)(struct nr_call *c, nr_status why);
};

struct nr_route {
    const char
        *pattern;     /* "/v2/models/{model}/versions/{version}/infer"; gRPC: "/pkg.Svc/Method" */
    unsigned methods; /* 1u << NR_GET | … */
    nr_scope scope;
    nr_route_kind kind;
    bool wants_model;                  /* {model} is looked up for the body limit */
    void (*handle)(struct nr_call *c); /* body complete, but for streams; loop */
    const char *action;                /* for logs: "infer" */
};

struct nr_call {
    struct nr_api *api;
    struct nr_exchange *x;
    const struct nr_route *route;
    unsigned allowed_methods; /* 1u << NR_GET | …: of the path, when the method was another one */
    struct nr_str model_name, version_text, extra; /* path parameters; {path} is extra */
    struct nr_catalog_view *pin;
    struct nr_version *version;
    struct nr_runtime *runtime;
    struct nr_infer_request in;
    struct nr_request request;
    struct nr_waiter waiter; /* demand.c: the model is being loaded */
    bool wants_shadow;       /* the model's shadow shall have a copy */
    bool begun;              /* the body is complete and the handler was called */
    bool submitted, completed, cancelled;
    nr_status cancel_status; /* why, when cancelled */
    struct nr_err err;
    /* offloaded work */
    struct nr_job job;
    struct nr_msg msg;
    void (*work)(struct nr_call *c);  /* pool thread */
    void (*after)(struct nr_call *c); /* loop thread, when work is done */
    void *data;                       /* the adapter's */
    const struct nr_stream_ops *stream;
    struct nr_infer_tensor *outputs;    /* what is encoded: the request's, or classified ones */
    void (*respond)(struct nr_call *c); /* loop: the request has succeeded; failures are answered */
};

/* Pins the current catalog and finds the version; errors as nr_catalog_lookup. Loop. */
nr_nodiscard nr_status nr_call_lookup(struct nr_call *c, struct nr_str model, struct nr_str version,
                                      struct nr_err *err);
/* Submits c->in to the version's scheduler; c->respond follows, or the answer why it failed, maybe before
 * this returns. Loop. */
void nr_call_submit(struct nr_call *c);
/* The same with another arena for the results (several requests of one call, one after another). */
void nr_call_submit_in(struct nr_call *c, struct nr_arena *arena);
/* Parameters that the server does not interpret, as text for the plug-in, into r. Arena: a. */
void nr_call_options(const struct nr_infer_request *in, struct nr_arena *a, struct nr_request *r);
/* A decoupled model may answer with some of the outputs, in its own order: what was asked about each
 * of them, in that order. Arena: a. */
const struct nr_infer_output *nr_call_match_outputs(const struct nr_infer_request *in,
                                                    const struct nr_infer_tensor *outputs,
                                                    unsigned n, struct nr_arena *a);
/* Runs work on the pool, then after on the loop. Refuses with 503 when the pool is full. Loop. */
void nr_call_offload(struct nr_call *c, void (*work)(struct nr_call *),
                     void (*after)(struct nr_call *));

/* --- answers (loop) --- */
void nr_call_json(struct nr_call *c, int status, struct nr_text *t); /* takes t's memory over */
void nr_call_bytes(struct nr_call *c, int status, struct nr_str type,
                   struct nr_str body); /* body: arena or constant */
void nr_call_empty(struct nr_call *c, int status);
/* {"error": text} with the HTTP status, or the gRPC status with the message. retry_after_s 0: none. */
void nr_call_fail(struct nr_call *c, nr_status status, struct nr_str text, unsigned retry_after_s);
void nr_call_fail_err(struct nr_call *c, const struct nr_err *err);
/* Whether Accept (RFC 9110 section 12.5.1) takes the type: the most specific range decides. */
bool nr_call_accepts(struct nr_str accept, const char *type);
/* Answers 415 and returns true when the body is compressed, which no route reads yet. */
bool nr_call_refuse_encoding(struct nr_call *c);
void nr_call_grpc_bytes(struct nr_call *c, struct nr_str message); /* message: arena */

/* One request of a stream has failed: its line in the log, as the access log has it for a call. Loop. */
void nr_call_log_item(const struct nr_call *c, struct nr_str id, struct nr_str model,
                      nr_status status, struct nr_str text);

const struct nr_catalog *nr_call_catalog(struct nr_call *c); /* newest; for this turn only */
bool nr_api_ready(struct nr_api *a, const struct nr_catalog *catalog);

/* --- adapters' route tables, joined by route.c; each ends with pattern NULL --- */
extern const struct nr_route nr_routes_v2_http[];
extern const struct nr_route nr_routes_v2_grpc[];
extern const struct nr_route nr_routes_v2_stream[];
extern const struct nr_route nr_routes_predict[];
extern const struct nr_route nr_routes_metrics[];
extern const struct nr_route nr_routes_page[];
extern const struct nr_route nr_routes_gallery[];
extern const struct nr_route nr_routes_why[];
extern const struct nr_route nr_routes_control[];
extern const struct nr_route nr_routes_labels[];

/* predict.c: what a ready version does with pictures; the version's. NARU_PRECONDITION: the model takes
 * none, and why. Any thread. */
nr_nodiscard nr_status nr_predict_plan(const struct nr_version *v, const struct nr_image_plan **ret,
                                       struct nr_err *err);

/* demand.c: true when the call waits for its model to be loaded, or was refused; then its handler is
 * called later, or never. Loop. */
bool nr_call_demand(struct nr_call *c);
/* Loop. True: the model is not loaded, and w->done will be called when it is, or will not be. False: go
 * on, or, with a status in *err, say that. */
bool nr_demand_model(struct nr_api *a, const struct nr_catalog *catalog, struct nr_str name,
                     struct nr_waiter *w, struct nr_err *err);

/* --- route.c --- */
struct nr_router;
nr_nodiscard nr_status nr_router_new(struct nr_router **ret, struct nr_err *err);
void nr_router_free(struct nr_router *r);
/* NARU_NOT_FOUND: no pattern matches; NARU_METHOD: one does, but not for this method
 * (allowed_methods says for which). Fills the call's path parameters (views on the path, percent-decoded into the arena where needed). */
nr_nodiscard nr_status nr_router_match(const struct nr_router *r, struct nr_call *c);

#endif
