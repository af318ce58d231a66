/* The cold answers as JSON: see meta.h. Field names and order are those that Triton's clients read;
 * perf_analyzer reads statistics without looking whether a field is there, so all of them always
 * are. Pure, any thread.
 */
#include "codec/meta.h"

#include <inttypes.h>

/* Writes ',' in front of all but the first of a list. */
static void separate(struct nr_text *t, unsigned i)
{
    if (i > 0) {
        nr_text_str(t, ",");
    }
}

static void add_names(struct nr_text *t, const struct nr_str *names, unsigned n)
{
    nr_text_str(t, "[");
    for (unsigned i = 0; i < n; i++) {
        separate(t, i);
        nr_text_json(t, names[i]);
    }
    nr_text_str(t, "]");
}

void nr_meta_server_json(struct nr_text *t, const struct nr_server_view *v)
{
    nr_text_str(t, "{\"name\":");
    nr_text_json(t, v->name);
    nr_text_str(t, ",\"version\":");
    nr_text_json(t, v->version);
    nr_text_str(t, ",\"extensions\":");
    add_names(t, v->extensions, v->n_extensions);
    nr_text_str(t, "}");
}

static void add_tensors(struct nr_text *t, const struct nr_io_spec *io, unsigned n)
{
    nr_text_str(t, "[");
    for (unsigned i = 0; i < n; i++) {
        separate(t, i);
        nr_text_str(t, "{\"name\":");
        nr_text_json(t, io[i].name);
        nr_text_fmt(t, ",\"datatype\":\"%s\",\"shape\":[", naru_dtype_name(io[i].dtype));
        for (uint32_t d = 0; d < io[i].rank; d++) {
            separate(t, d);
            nr_text_fmt(t, "%" PRId64, io[i].shape[d]);
        }
        nr_text_str(t, "]}");
    }
    nr_text_str(t, "]");
}

void nr_meta_model_json(struct nr_text *t, const struct nr_model_view *v)
{
    nr_text_str(t, "{\"name\":");
    nr_text_json(t, v->name);
    nr_text_str(t, ",\"versions\":");
    add_names(t, v->versions, v->n_versions);
    nr_text_str(t, ",\"platform\":");
    nr_text_json(t, v->platform);
    nr_text_str(t, ",\"inputs\":");
    add_tensors(t, v->sig->inputs, v->sig->n_inputs);
    nr_text_str(t, ",\"outputs\":");
    add_tensors(t, v->sig->outputs, v->sig->n_outputs);
    nr_text_str(t, "}");
}

static void add_duration(struct nr_text *t, const char *name, struct nr_duration_view d)
{
    nr_text_fmt(t, "\"%s\":{\"count\":%" PRIu64 ",\"ns\":%" PRIu64 "}", name, d.count, d.ns);
}

struct named_duration {
    const char *name;
    struct nr_duration_view duration;
};

static void add_durations(struct nr_text *t, const struct named_duration *d, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        separate(t, i);
        add_duration(t, d[i].name, d[i].duration);
    }
}
#define ADD_DURATIONS(t, ...)                                        \
    add_durations((t), (const struct named_duration[]){__VA_ARGS__}, \
                  NR_COUNT(((const struct named_duration[]){__VA_ARGS__})))

static void add_stats(struct nr_text *t, const struct nr_stats_view *v)
{
    nr_text_str(t, "{\"name\":");
    nr_text_json(t, v->name);
    nr_text_str(t, ",\"version\":");
    nr_text_json(t, v->version);
    nr_text_fmt(t,
                ",\"last_inference\":%" PRIu64 ",\"inference_count\":%" PRIu64
                ",\"execution_count\":%" PRIu64 ",\"inference_stats\":{",
                v->last_inference_ms, v->inference_count, v->execution_count);
    ADD_DURATIONS(t, {"success", v->success}, {"fail", v->fail}, {"queue", v->queue},
                  {"compute_input", v->compute_input}, {"compute_infer", v->compute_infer},
                  {"compute_output", v->compute_output}, {"cache_hit", v->cache_hit},
                  {"cache_miss", v->cache_miss});
    nr_text_str(t, "},\"response_stats\":{");
    for (unsigned i = 0; i < v->n_responses; i++) {
        const struct nr_response_stats_view *r = &v->responses[i];
        separate(t, i);
        nr_text_json(t, r->index);
        nr_text_str(t, ":{");
        ADD_DURATIONS(t, {"compute_infer", r->compute_infer}, {"compute_output", r->compute_output},
                      {"success", r->success}, {"fail", r->fail},
                      {"empty_response", r->empty_response}, {"cancel", r->cancel});
        nr_text_str(t, "}");
    }
    nr_text_str(t, "},\"batch_stats\":[");
    for (unsigned i = 0; i < v->n_batches; i++) {
        const struct nr_batch_stats_view *b = &v->batches[i];
        separate(t, i);
        nr_text_fmt(t, "{\"batch_size\":%" PRIu64 ",", b->batch_size);
        ADD_DURATIONS(t, {"compute_input", b->compute_input}, {"compute_infer", b->compute_infer},
                      {"compute_output", b->compute_output});
        nr_text_str(t, "}");
    }
    nr_text_str(t, "],\"memory_usage\":[");
    for (unsigned i = 0; i < v->n_memory; i++) {
        const struct nr_memory_view *m = &v->memory[i];
        separate(t, i);
        nr_text_str(t, "{\"type\":");
        nr_text_json(t, m->type);
        nr_text_fmt(t, ",\"id\":%" PRId64 ",\"byte_size\":%" PRIu64 "}", m->id, m->byte_size);
    }
    nr_text_str(t, "]}");
}

void nr_meta_stats_json(struct nr_text *t, const struct nr_stats_view *v, unsigned n)
{
    nr_text_str(t, "{\"model_stats\":[");
    for (unsigned i = 0; i < n; i++) {
        separate(t, i);
        add_stats(t, &v[i]);
    }
    nr_text_str(t, "]}");
}

static void add_if_set(struct nr_text *t, const char *key, struct nr_str value)
{
    if (value.len > 0) {
        nr_text_fmt(t, ",\"%s\":", key);
        nr_text_json(t, value);
    }
}

void nr_meta_index_json(struct nr_text *t, const struct nr_index_view *v, unsigned n)
{
    nr_text_str(t, "[");
    for (unsigned i = 0; i < n; i++) {
        separate(t, i);
        nr_text_str(t, "{\"name\":");
        nr_text_json(t, v[i].name);
        add_if_set(t, "version", v[i].version);
        add_if_set(t, "state", v[i].state);
        add_if_set(t, "reason", v[i].reason);
        nr_text_str(t, "}");
    }
    nr_text_str(t, "]");
}
