/* What both KServe v2 adapters (HTTP and gRPC) do alike: views for the metadata encoders, the
 * classification extension, small texts. */
#ifndef NR_API_V2_H
#define NR_API_V2_H

#include "api/call.h"
#include "codec/meta.h"

void nr_v2_server_view(struct nr_api *a,
                       struct nr_server_view *ret); /* constants and cfg strings */
/* Of the version that c has looked up. Versions: the one asked for, or all that are ready. Arena. */
void nr_v2_model_view(struct nr_call *c, struct nr_model_view *ret);
/* Statistics of ready versions: of all models (model empty), of one, or of one version. Arena.
 * NARU_NOT_FOUND as nr_catalog_lookup. */
nr_nodiscard nr_status nr_v2_stats_views(struct nr_call *c, struct nr_str model,
                                         struct nr_str version, const struct nr_stats_view **ret,
                                         unsigned *ret_n, struct nr_err *err);
void nr_v2_index_views(struct nr_call *c, bool ready_only, const struct nr_index_view **ret,
                       unsigned *ret_n);
/* {"ready": bool}, or nothing. */
nr_nodiscard nr_status nr_v2_index_body(struct nr_str body, bool *ret_ready_only,
                                        struct nr_err *err);
/* One result of an inference, and where to put what its answer needs. */
struct nr_v2_result {
    const struct nr_version *version;
    int64_t ran_version; /* nr_request.ran_version */
    const struct nr_infer_request *in;
    const struct nr_infer_output *how; /* [n_outputs] */
    const struct nr_infer_tensor *outputs;
    unsigned n_outputs;
    struct nr_arena *arena;
};
nr_nodiscard nr_status nr_v2_response_of(const struct nr_v2_result *w,
                                         struct nr_infer_response *ret, struct nr_err *err);
/* What both encoders are given: names, id and outputs of c, classified where that was asked for (which
 * may fail: *err). Arena. */
nr_nodiscard nr_status nr_v2_response(struct nr_call *c, struct nr_infer_response *ret,
                                      struct nr_err *err);
/* An inference from its body on: decode (its status in c->err) here, or on the pool when it is long
 * work; then submitted, and c->respond set to respond; or the answer what is wrong. Loop. */
void nr_v2_infer(struct nr_call *c, bool long_work, void (*decode)(struct nr_call *),
                 void (*respond)(struct nr_call *));
/* The text of a request that failed, with what a picture's sides must be in front where the model's
 * configuration says (naru.image.multiple_of) and the request's tensor is not so. Arena: a. */
struct nr_str nr_v2_run_error(const struct nr_version *v, const struct nr_infer_request *in,
                              nr_status status, struct nr_str text, struct nr_arena *a);
/* The id of an inference's body that was not decoded, for the log: looked for in its first
 * --inline-json bytes. False: there is none. Loop, before the answer. */
bool nr_v2_request_id(struct nr_call *c, struct nr_str *ret);
/* The head of a request to a model has come: where the body of an inference should lie. */
void nr_v2_http_place_body(const struct nr_call *c, const struct nr_signature *sig);
struct nr_str nr_v2_version_text(const struct nr_version *v, struct nr_arena *a);

#endif
