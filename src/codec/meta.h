/* The cold answers: server and model metadata, statistics, repository index, errors; as JSON for
 * HTTP and as protobuf messages for gRPC. The caller fills plain views; all strings are borrowed
 * for the call.
 *
 * JSON goes to a struct nr_text of the caller's (check .failed once at the end); protobuf messages
 * go to the arena. Pure, any thread.
 */
#ifndef NR_CODEC_META_H
#define NR_CODEC_META_H

#include <stdbool.h>
#include <stdint.h>

#include "base/arena.h"
#include "base/status.h"
#include "base/str.h"
#include "codec/infer.h"

struct nr_server_view {
    struct nr_str name, version;
    const struct nr_str *extensions;
    unsigned n_extensions;
};

struct nr_model_view {
    struct nr_str name, platform;
    const struct nr_str *versions; /* ready ones, or the one that was asked for */
    unsigned n_versions;
    const struct nr_signature *sig;
};

struct nr_duration_view {
    uint64_t count, ns;
};

struct nr_batch_stats_view {
    uint64_t batch_size;
    struct nr_duration_view compute_input, compute_infer, compute_output;
};

struct nr_response_stats_view { /* decoupled models: one per index of a response */
    struct nr_str index;
    struct nr_duration_view compute_infer, compute_output, success, fail, empty_response, cancel;
};

struct nr_memory_view {
    struct nr_str type; /* "CPU", "GPU" */
    int64_t id;
    uint64_t byte_size;
};

/* One version of one model. */
struct nr_stats_view {
    struct nr_str name, version;
    uint64_t last_inference_ms; /* since 1970; 0 never */
    uint64_t inference_count, execution_count;
    struct nr_duration_view success, fail, queue, compute_input, compute_infer, compute_output;
    struct nr_duration_view cache_hit, cache_miss;
    const struct nr_response_stats_view *responses;
    unsigned n_responses;
    const struct nr_batch_stats_view *batches;
    unsigned n_batches;
    const struct nr_memory_view *memory;
    unsigned n_memory;
};

struct nr_index_view {
    struct nr_str name;
    struct nr_str version, state, reason; /* empty: left out */
};

void nr_meta_server_json(struct nr_text *t, const struct nr_server_view *v);
void nr_meta_model_json(struct nr_text *t, const struct nr_model_view *v);
void nr_meta_stats_json(struct nr_text *t, const struct nr_stats_view *v, unsigned n);
void nr_meta_index_json(struct nr_text *t, const struct nr_index_view *v, unsigned n);

/* Serialized messages of package inference; NARU_NOMEM is the only error. */
nr_nodiscard nr_status nr_meta_server_pb(struct nr_arena *a, const struct nr_server_view *v,
                                         struct nr_str *ret);
nr_nodiscard nr_status nr_meta_model_pb(struct nr_arena *a, const struct nr_model_view *v,
                                        struct nr_str *ret);
nr_nodiscard nr_status nr_meta_stats_pb(struct nr_arena *a, const struct nr_stats_view *v,
                                        unsigned n, struct nr_str *ret);
nr_nodiscard nr_status nr_meta_index_pb(struct nr_arena *a, const struct nr_index_view *v,
                                        unsigned n, struct nr_str *ret);

#endif
