/* Views of models, statistics and the index for the v2 adapters.
 *
 * All memory is the call's arena; catalog strings are read from the snapshot of this turn, or from
 * the pinned one.
 */
#include "api/v2.h"

#include <stdio.h>
#include <string.h>
#include <yyjson.h>

#include "api/state.h"
#include "codec/image_plan.h"
#include "codec/infer_json.h"
#include "codec/infer_pb.h"
#include "sched/counters.h"

/* perf_analyzer looks for `statistics`; the others say what this server answers. */
static const struct nr_str extensions[] = {
    NR_STR_INIT("classification"),     NR_STR_INIT("model_repository"),
    NR_STR_INIT("schedule_policy"),    NR_STR_INIT("model_configuration"),
    NR_STR_INIT("binary_tensor_data"), NR_STR_INIT("parameters"),
    NR_STR_INIT("statistics"),         NR_STR_INIT("sequence"),
};

void nr_v2_server_view(struct nr_api *a, struct nr_server_view *ret)
{
    *ret = (struct nr_server_view){.name = nr_str_from(a->cfg.server_name),
                                   .version = nr_str_from(a->cfg.server_version),
                                   .extensions = extensions,
                                   .n_extensions = NR_COUNT(extensions)};
}

struct nr_str nr_v2_version_text(const struct nr_version *v, struct nr_arena *a)
{
    static const struct nr_str one = NR_STR_INIT("1");
    return v->number == 1 ? one : nr_arena_fmt(a, "%lld", (long long)v->number);
}

void nr_v2_model_view(struct nr_call *c, struct nr_model_view *ret)
{
    struct nr_arena *a = &c->x->arena;
    const struct nr_model_config *config = c->version->config;
    /* the snapshot of now: the model may be gone since c was looked up, and c's version with it */
    const struct nr_catalog_model *m =
        nr_catalog_find(nr_call_catalog(c), nr_str_from(c->version->name));
    uint32_t n = m ? m->n_versions : 0;
    *ret = (struct nr_model_view){
        .name = nr_str_from(c->version->name),
        .platform = nr_str_from(config->platform[0] != '\0' ? config->platform : config->backend),
        .sig = &config->sig};
    struct nr_str *versions = nr_arena_zalloc(a, (n + 1) * sizeof(*versions));
    ret->versions = versions;
    if (c->version_text.len > 0 || n == 0) {
        versions[ret->n_versions++] = nr_v2_version_text(c->version, a);
        return;
    }
    for (uint32_t i = 0; i < n; i++) {
        if (m->versions[i].version != NULL) {
            versions[ret->n_versions++] = nr_v2_version_text(m->versions[i].version, a);
        }
    }
}

static void stats_view(struct nr_arena *a, const struct nr_version *v, struct nr_stats_view *s)
{
    struct nr_counts n;
    nr_counters_read(nr_runtime_of(v)->counters, a, &n);
    uint64_t executed = n.success - NR_MIN(n.cache_hits, n.success);
    *s = (struct nr_stats_view){.name = nr_str_from(v->name),
                                .version = nr_v2_version_text(v, a),
                                .last_inference_ms = n.last_wall_ms,
                                .inference_count = n.rows,
                                .execution_count = n.executions,
                                .success = {n.success, n.success_ns},
                                .fail = {n.fail, n.fail_ns},
                                .queue = {executed, n.queue_ns},
                                .compute_input = {executed, n.input_ns},
                                .compute_infer = {executed, n.infer_ns},
                                .compute_output = {executed, n.output_ns},
                                .cache_hit = {n.cache_hits, n.cache_hit_ns},
                                .cache_miss = {n.cache_misses, n.cache_miss_ns}};
    struct nr_batch_stats_view *batches = nr_arena_zalloc(a, (n.n_batches + 1) * sizeof(*batches));
    for (unsigned i = 0; i < n.n_batches; i++) {
        const struct nr_batch_count *b = &n.batches[i];
        batches[i] = (struct nr_batch_stats_view){.batch_size = b->rows,
                                                  .compute_input = {b->executions, b->input_ns},
                                                  .compute_infer = {b->executions, b->infer_ns},
                                                  .compute_output = {b->executions, b->output_ns}};
    }
    s->batches = batches;
    s->n_batches = n.n_batches;
    if (v->memory_bytes > 0) {
        struct nr_memory_view *memory = nr_arena_new(a, struct nr_memory_view);
        *memory = (struct nr_memory_view){.type = NR_STR("CPU"), .byte_size = v->memory_bytes};
        s->memory = memory;
        s->n_memory = 1;
    }
}

nr_status nr_v2_stats_views(struct nr_call *c, struct nr_str model, struct nr_str version,
                            const struct nr_stats_view **ret, unsigned *ret_n, struct nr_err *err)
{
    struct nr_arena *a = &c->x->arena;
    const struct nr_catalog *catalog = nr_call_catalog(c);
    if (model.len > 0) {
        struct nr_version *v;
        nr_status st = nr_catalog_lookup(catalog, model, version, &v, err);
        if (st != NARU_OK) {
            return st;
        }
    }
    unsigned n = 0;
    for (uint32_t i = 0; i < catalog->n_models; i++) {
        n += catalog->models[i].n_versions;
    }
    struct nr_stats_view *views = nr_arena_zalloc(a, (n + 1) * sizeof(*views));
    *ret_n = 0;
    for (uint32_t i = 0; i < catalog->n_models; i++) {
        const struct nr_catalog_model *m = &catalog->models[i];
        if (model.len > 0 && !nr_str_is(model, m->name)) {
            continue;
        }
        for (uint32_t k = 0; k < m->n_versions; k++) {
            const struct nr_version *v = m->versions[k].version;
            int64_t wanted = v != NULL ? v->number : 0;
            if (v != NULL &&
                (version.len == 0 || (nr_str_to_i64(version, &wanted) && wanted == v->number))) {
                stats_view(a, v, &views[(*ret_n)++]);
            }
        }
    }
    *ret = views;
    return NARU_OK;
}

void nr_v2_index_views(struct nr_call *c, bool ready_only, const struct nr_index_view **ret,
                       unsigned *ret_n)
{
    struct nr_arena *a = &c->x->arena;
    const struct nr_index_entry *entries;
    uint32_t n;
    nr_repository_index(c->api->cfg.repository, ready_only, a, &entries, &n);
    struct nr_index_view *views = nr_arena_zalloc(a, (n + 1) * sizeof(*views));
    for (uint32_t i = 0; i < n; i++) {
        views[i].name = nr_str_from(entries[i].name);
        if (entries[i].version >= 0) {
            views[i].version = nr_arena_fmt(a, "%lld", (long long)entries[i].version);
        }
        /* A model that was never loaded appears with its name only. */
        if (entries[i].state != NR_VERSION_UNKNOWN) {
            views[i].state = nr_str_from(nr_version_state_text(entries[i].state));
            views[i].reason = nr_str_from(entries[i].reason);
        }
    }
    *ret = views;
    *ret_n = n;
}

nr_status nr_v2_index_body(struct nr_str body, bool *ret_ready_only, struct nr_err *err)
{
    *ret_ready_only = false;
    if (body.len == 0) {
        return NARU_OK;
    }
    yyjson_read_err why;
    yyjson_doc *doc = yyjson_read_opts((char *)(uintptr_t)body.ptr, body.len, 0, NULL, &why);
    if (doc == NULL) {
        return nr_fail(err, NARU_INVALID, "the body is no JSON: %s at byte %zu", why.msg, why.pos);
    }
    yyjson_val *root = yyjson_doc_get_root(doc);
    yyjson_val *ready = yyjson_obj_get(root, "ready");
    nr_status st = NARU_OK;
    if (!yyjson_is_obj(root)) {
        st = nr_fail(err, NARU_INVALID, "the body must be a JSON object like {\"ready\": true}");
    } else if (ready != NULL && !yyjson_is_bool(ready)) {
        st = nr_fail(err, NARU_INVALID, "'ready' must be true or false");
    } else {
        *ret_ready_only = yyjson_get_bool(ready);
    }
    yyjson_doc_free(doc);
    return st;
}

/* Outputs asked for as classification are replaced (a copy, in the arena). */
static nr_status classify(const struct nr_v2_result *w, const struct nr_infer_tensor **ret,
                          struct nr_err *err)
{
    bool any = false;
    *ret = w->outputs;
    for (unsigned i = 0; i < w->n_outputs; i++) {
        any = any || w->how[i].classification > 0;
    }
    if (!any) {
        return NARU_OK;
    }
    struct nr_infer_tensor *outputs = nr_arena_alloc(w->arena, w->n_outputs * sizeof(*outputs));
    memcpy(outputs, w->outputs, w->n_outputs * sizeof(*outputs));
    for (unsigned i = 0; i < w->n_outputs; i++) {
        uint32_t best = w->how[i].classification, index = w->how[i].index;
        if (best == 0) {
            continue;
        }
        const struct nr_labels *labels = &w->version->labels[index];
        bool batched = w->version->config->sig.outputs[index].batched;
        nr_status st = nr_infer_classify(&w->outputs[i], batched, best, labels->items,
                                         labels->n_items, w->arena, &outputs[i], err);
        if (st != NARU_OK) {
            return st;
        }
        outputs[i].index = index;
    }
    *ret = outputs;
    return NARU_OK;
}

/* A sequence may live on another version than was looked up. */
static struct nr_str ran_text(const struct nr_v2_result *w)
{
    return w->ran_version == 0 ? nr_v2_version_text(w->version, w->arena)
                               : nr_arena_fmt(w->arena, "%lld", (long long)w->ran_version);
}

nr_status nr_v2_response_of(const struct nr_v2_result *w, struct nr_infer_response *ret,
                            struct nr_err *err)
{
    const struct nr_infer_tensor *outputs;
    nr_status st = classify(w, &outputs, err);
    *ret = (struct nr_infer_response){.model_name = nr_str_from(w->version->name),
                                      .model_version = ran_text(w),
                                      .id = w->in->id,
                                      .has_id = w->in->has_id,
                                      .outputs = outputs,
                                      .how = w->how,
                                      .n_outputs = w->n_outputs};
    return st;
}

nr_status nr_v2_response(struct nr_call *c, struct nr_infer_response *ret, struct nr_err *err)
{
    const struct nr_v2_result w = {.version = c->version,
                                   .ran_version = c->request.ran_version,
                                   .in = &c->in,
                                   .how = c->in.outputs,
                                   .outputs = c->outputs,
                                   .n_outputs = c->in.n_outputs,
                                   .arena = &c->x->arena};
    return nr_v2_response_of(&w, ret, err);
}

static void submit_decoded(struct nr_call *c)
{
    if (c->err.status != NARU_OK) {
        nr_call_fail_err(c, &c->err);
        return;
    }
    nr_call_submit(c);
}

void nr_v2_infer(struct nr_call *c, bool long_work, void (*decode)(struct nr_call *),
                 void (*respond)(struct nr_call *))
{
    c->respond = respond;
    if (long_work) {
        nr_call_offload(c, decode, submit_decoded);
        return;
    }
    decode(c);
    submit_decoded(c);
}

bool nr_v2_request_id(struct nr_call *c, struct nr_str *ret)
{
    struct nr_str body = c->x->body;
    struct nr_infer_pb_head head;
    struct nr_err err;
    if (c->x->protocol != NR_GRPC) {
        body.len = NR_MIN(body.len, c->api->cfg.inline_json_bytes);
        return nr_infer_json_id(body, &c->x->arena, ret);
    }
    if (nr_infer_pb_peek(body, &head, &err) != NARU_OK) {
        return false;
    }
    *ret = head.id;
    return head.id.len > 0;
}

struct nr_str nr_v2_run_error(const struct nr_version *v, const struct nr_infer_request *in,
                              nr_status status, struct nr_str text, struct nr_arena *a)
{
    const struct nr_image_plan *plan = v->picture;
    if (status != NARU_INVALID || plan == NULL || plan->multiple_of < 2 || plan->axis_h < 0 ||
        plan->axis_w < 0) {
        return text;
    }
    const struct nr_signature *sig = &v->config->sig;
    for (unsigned i = 0; i < in->n_inputs; i++) {
        const struct nr_infer_tensor *t = &in->inputs[i];
        const int64_t *row = t->shape + plan->batches;
        int64_t m = plan->multiple_of;
        if (nr_str_is(sig->inputs[t->index].name, plan->input) &&
            t->rank == plan->rank + plan->batches &&
            (row[plan->axis_h] % m != 0 || row[plan->axis_w] % m != 0)) {
            return nr_arena_fmt(a,
                                "input '%s' is %lld high and %lld wide; this model takes multiples "
                                "of %lld for both (predict pads pictures by itself); " NR_STR_FMT,
                                plan->input, (long long)row[plan->axis_h],
                                (long long)row[plan->axis_w], (long long)m, NR_STR_ARG(text));
        }
    }
    return text;
}
