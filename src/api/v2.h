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
/* Replaces outputs asked for as classification in c->outputs (a copy, in the arena). */
nr_nodiscard nr_status nr_v2_classify(struct nr_call *c, struct nr_err *err);
struct nr_str nr_v2_version_text(const struct nr_version *v, struct nr_arena *a);
/* Of the version that ran the call's request; a sequence may live on another than was looked up. */
struct nr_str nr_v2_ran_text(const struct nr_call *c, struct nr_arena *a);

#endif
