/* The cold answers as protobuf messages: see meta.h. The generated structs are filled in the arena
 * and packed into it; everything goes when the request does.
 *
 * Invariant: after a failed allocation `failed` is set and nothing of the message is used. Pure, any
 * thread that owns the arena.
 */
#include "codec/meta.h"

#include "proto/grpc_service.pb-c.h"

struct packer {
    struct nr_arena *a;
    bool failed;
};

/* Zeroed memory for n things; NULL sets failed. */
static void *take(struct packer *p, size_t n, size_t size)
{
    void *memory = p->failed ? NULL : nr_arena_try_array(p->a, n, size);
    p->failed = memory == NULL;
    return memory;
}

static char *text(struct packer *p, struct nr_str s)
{
    char *z = take(p, s.len + 1, 1);
    if (z == NULL) {
        return (char *)(uintptr_t)protobuf_c_empty_string; /* the type generated code wants */
    }
    memcpy(z, s.ptr ? s.ptr : "", s.len);
    return z;
}

/* An array of n pointers to n zeroed structs of `size` bytes; NULL when out of memory. */
static void **take_all(struct packer *p, size_t n, size_t size)
{
    void **pointers = take(p, n, sizeof(*pointers));
    char *structs = take(p, n, size);
    for (size_t i = 0; i < n && !p->failed; i++) {
        pointers[i] = structs + i * size;
    }
    return p->failed ? NULL : pointers;
}
#define TAKE_ALL(p, n, type) ((type **)(void *)take_all((p), (n), sizeof(type)))

static nr_status pack(struct packer *p, const ProtobufCMessage *message, struct nr_str *ret)
{
    size_t len = p->failed ? 0 : protobuf_c_message_get_packed_size(message);
    uint8_t *data = take(p, len, 1);
    if (data == NULL) {
        return NARU_NOMEM;
    }
    protobuf_c_message_pack(message, data);
    *ret = (struct nr_str){(const char *)data, len};
    return NARU_OK;
}

static char **texts(struct packer *p, const struct nr_str *s, unsigned n)
{
    char **list = take(p, n, sizeof(*list));
    for (unsigned i = 0; i < n && !p->failed; i++) {
        list[i] = text(p, s[i]);
    }
    return list;
}

nr_status nr_meta_server_pb(struct nr_arena *a, const struct nr_server_view *v, struct nr_str *ret)
{
    struct packer p = {.a = a};
    Inference__ServerMetadataResponse m;
    inference__server_metadata_response__init(&m);
    m.name = text(&p, v->name);
    m.version = text(&p, v->version);
    m.n_extensions = v->n_extensions;
    m.extensions = texts(&p, v->extensions, v->n_extensions);
    return pack(&p, &m.base, ret);
}

typedef Inference__ModelMetadataResponse__TensorMetadata tensor_metadata;

static tensor_metadata **tensors(struct packer *p, const struct nr_io_spec *io, unsigned n)
{
    tensor_metadata **list = TAKE_ALL(p, n, tensor_metadata);
    for (unsigned i = 0; i < n && !p->failed; i++) {
        tensor_metadata *t = list[i];
        inference__model_metadata_response__tensor_metadata__init(t);
        t->name = text(p, io[i].name);
        t->datatype = text(p, nr_str_from(naru_dtype_name(io[i].dtype)));
        t->n_shape = io[i].rank;
        t->shape = take(p, io[i].rank, sizeof(*t->shape));
        if (!p->failed) {
            memcpy(t->shape, io[i].shape, io[i].rank * sizeof(*t->shape));
        }
    }
    return list;
}

nr_status nr_meta_model_pb(struct nr_arena *a, const struct nr_model_view *v, struct nr_str *ret)
{
    struct packer p = {.a = a};
    Inference__ModelMetadataResponse m;
    inference__model_metadata_response__init(&m);
    m.name = text(&p, v->name);
    m.platform = text(&p, v->platform);
    m.n_versions = v->n_versions;
    m.versions = texts(&p, v->versions, v->n_versions);
    m.n_inputs = v->sig->n_inputs;
    m.inputs = tensors(&p, v->sig->inputs, v->sig->n_inputs);
    m.n_outputs = v->sig->n_outputs;
    m.outputs = tensors(&p, v->sig->outputs, v->sig->n_outputs);
    return pack(&p, &m.base, ret);
}

static Inference__StatisticDuration *duration(struct packer *p, struct nr_duration_view d)
{
    Inference__StatisticDuration *m = take(p, 1, sizeof(*m));
    if (m != NULL) {
        inference__statistic_duration__init(m);
        m->count = d.count;
        m->ns = d.ns;
    }
    return m;
}

static Inference__InferStatistics *inference_stats(struct packer *p, const struct nr_stats_view *v)
{
    Inference__InferStatistics *m = take(p, 1, sizeof(*m));
    if (m != NULL) {
        inference__infer_statistics__init(m);
        m->success = duration(p, v->success);
        m->fail = duration(p, v->fail);
        m->queue = duration(p, v->queue);
        m->compute_input = duration(p, v->compute_input);
        m->compute_infer = duration(p, v->compute_infer);
        m->compute_output = duration(p, v->compute_output);
        m->cache_hit = duration(p, v->cache_hit);
        m->cache_miss = duration(p, v->cache_miss);
    }
    return m;
}

static Inference__InferBatchStatistics **batch_stats(struct packer *p,
                                                     const struct nr_stats_view *v)
{
    Inference__InferBatchStatistics **list =
        TAKE_ALL(p, v->n_batches, Inference__InferBatchStatistics);
    for (unsigned i = 0; i < v->n_batches && !p->failed; i++) {
        inference__infer_batch_statistics__init(list[i]);
        list[i]->batch_size = v->batches[i].batch_size;
        list[i]->compute_input = duration(p, v->batches[i].compute_input);
        list[i]->compute_infer = duration(p, v->batches[i].compute_infer);
        list[i]->compute_output = duration(p, v->batches[i].compute_output);
    }
    return list;
}

typedef Inference__ModelStatistics__ResponseStatsEntry response_entry;

static response_entry **response_stats(struct packer *p, const struct nr_stats_view *v)
{
    response_entry **list = TAKE_ALL(p, v->n_responses, response_entry);
    for (unsigned i = 0; i < v->n_responses && !p->failed; i++) {
        const struct nr_response_stats_view *r = &v->responses[i];
        Inference__InferResponseStatistics *m = take(p, 1, sizeof(*m));
        inference__model_statistics__response_stats_entry__init(list[i]);
        list[i]->key = text(p, r->index);
        list[i]->value = m;
        if (m != NULL) {
            inference__infer_response_statistics__init(m);
            m->compute_infer = duration(p, r->compute_infer);
            m->compute_output = duration(p, r->compute_output);
            m->success = duration(p, r->success);
            m->fail = duration(p, r->fail);
            m->empty_response = duration(p, r->empty_response);
            m->cancel = duration(p, r->cancel);
        }
    }
    return list;
}

static Inference__MemoryUsage **memory_usage(struct packer *p, const struct nr_stats_view *v)
{
    Inference__MemoryUsage **list = TAKE_ALL(p, v->n_memory, Inference__MemoryUsage);
    for (unsigned i = 0; i < v->n_memory && !p->failed; i++) {
        inference__memory_usage__init(list[i]);
        list[i]->type = text(p, v->memory[i].type);
        list[i]->id = v->memory[i].id;
        list[i]->byte_size = v->memory[i].byte_size;
    }
    return list;
}

nr_status nr_meta_stats_pb(struct nr_arena *a, const struct nr_stats_view *v, unsigned n,
                           struct nr_str *ret)
{
    struct packer p = {.a = a};
    Inference__ModelStatisticsResponse m;
    inference__model_statistics_response__init(&m);
    m.n_model_stats = n;
    m.model_stats = TAKE_ALL(&p, n, Inference__ModelStatistics);
    for (unsigned i = 0; i < n && !p.failed; i++) {
        Inference__ModelStatistics *s = m.model_stats[i];
        inference__model_statistics__init(s);
        s->name = text(&p, v[i].name);
        s->version = text(&p, v[i].version);
        s->last_inference = v[i].last_inference_ms;
        s->inference_count = v[i].inference_count;
        s->execution_count = v[i].execution_count;
        s->inference_stats = inference_stats(&p, &v[i]);
        s->n_batch_stats = v[i].n_batches;
        s->batch_stats = batch_stats(&p, &v[i]);
        s->n_memory_usage = v[i].n_memory;
        s->memory_usage = memory_usage(&p, &v[i]);
        s->n_response_stats = v[i].n_responses;
        s->response_stats = response_stats(&p, &v[i]);
    }
    return pack(&p, &m.base, ret);
}

nr_status nr_meta_index_pb(struct nr_arena *a, const struct nr_index_view *v, unsigned n,
                           struct nr_str *ret)
{
    struct packer p = {.a = a};
    Inference__RepositoryIndexResponse m;
    inference__repository_index_response__init(&m);
    m.n_models = n;
    m.models = TAKE_ALL(&p, n, Inference__RepositoryIndexResponse__ModelIndex);
    for (unsigned i = 0; i < n && !p.failed; i++) {
        inference__repository_index_response__model_index__init(m.models[i]);
        m.models[i]->name = text(&p, v[i].name);
        m.models[i]->version = text(&p, v[i].version);
        m.models[i]->state = text(&p, v[i].state);
        m.models[i]->reason = text(&p, v[i].reason);
    }
    return pack(&p, &m.base, ret);
}
