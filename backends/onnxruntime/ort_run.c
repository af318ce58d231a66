/* Instances and executions.
 *
 * Why so: a run of a tiny model takes two microseconds, so everything around it is prepared. Values
 * over the host's memory are made again only when address, size or shape have changed since the last
 * run, which in steady state is rare, because the host keeps its buffers. Outputs that the host has
 * placed are written there by ONNX Runtime itself; those whose shape only the run tells are copied
 * once into memory asked for then. Everything of a run is in arrays sized at instance_open.
 *
 * Invariants
 *  1. slot->value describes exactly slot->{data, bytes, shape} of the last run, or is NULL. Its memory
 *     is not touched between runs.
 *  2. After execute no value owned by the library's allocator is left in `out_values`.
 *  3. run_options carry the terminate flag only while `terminated` is set, and execute clears both
 *     before a run.
 *
 * Threads: an instance runs one batch at a time (the host sees to that); ort_cancel may come from
 * any thread during a run, and touches nothing but `terminated` and the run options' flag, which
 * ONNX Runtime reads while it runs.
 */
#include <stdlib.h>
#include <string.h>

#include "ort.h"

struct slot { /* a tensor value over the host's memory */
    OrtValue *value;
    void *data;
    uint64_t bytes;
    int64_t shape[NARU_MAX_RANK];
};

struct naru_backend_instance {
    naru_backend_model *model;
    OrtRunOptions *run_options;
    struct slot *in_slots, *out_slots; /* by index of naru_model_info */
    const OrtValue **in_values;        /* of this run */
    const char **in_names;
    OrtValue **out_values;
    const char **out_names;
    struct ort_scratch scratch;
    _Atomic uint32_t terminated;
};

naru_status ort_instance_open(naru_backend_model *model, uint32_t index, int32_t device,
                              naru_backend_instance **ret, naru_text *err)
{
    (void)index;
    if (device != model->device) {
        return naru_fail(err, NARU_UNSUPPORTED,
                         "the model was opened for device %d; an instance on device %d would need "
                         "a session of its own",
                         model->device, device);
    }
    naru_backend_instance *i = calloc(1, sizeof *i);
    if (!i) {
        return NARU_NOMEM;
    }
    size_t n_in = (size_t)model->info.n_inputs + 1, n_out = (size_t)model->info.n_outputs + 1;
    i->model = model;
    i->in_slots = calloc(n_in, sizeof *i->in_slots);
    i->out_slots = calloc(n_out, sizeof *i->out_slots);
    i->in_values = calloc(n_in, sizeof *i->in_values);
    i->in_names = calloc(n_in, sizeof *i->in_names);
    i->out_values = calloc(n_out, sizeof *i->out_values);
    i->out_names = calloc(n_out, sizeof *i->out_names);
    naru_status st = NARU_NOMEM;
    if (i->in_slots && i->out_slots && i->in_values && i->in_names && i->out_values &&
        i->out_names) {
        const OrtApi *a = model->lib->api;
        OrtStatus *s = a->CreateRunOptions(&i->run_options);
        if (!s && model->shrink_arena) {
            s = a->AddRunConfigEntry(i->run_options, "memory.enable_memory_arena_shrinkage",
                                     model->shrink_arena);
        }
        st = ort_status(model->lib, s, NULL, 0, err);
    }
    if (st != NARU_OK) {
        ort_instance_close(i);
        return st;
    }
    *ret = i;
    return NARU_OK;
}

static void slots_free(const OrtApi *a, struct slot *slots, uint32_t n)
{
    for (uint32_t k = 0; slots && k < n; k++) {
        if (slots[k].value) {
            a->ReleaseValue(slots[k].value);
        }
    }
    free(slots);
}

void ort_instance_close(naru_backend_instance *instance)
{
    if (!instance) {
        return;
    }
    const naru_backend_model *m = instance->model;
    slots_free(m->lib->api, instance->in_slots, m->info.n_inputs);
    slots_free(m->lib->api, instance->out_slots, m->info.n_outputs);
    if (instance->run_options) {
        m->lib->api->ReleaseRunOptions(instance->run_options);
    }
    free(instance->in_values);
    free(instance->in_names);
    free(instance->out_values);
    free(instance->out_names);
    free(instance->scratch.offsets);
    free(instance);
}

/* A value over the memory of t, the last one where nothing has changed. */
static naru_status bind(const struct naru_backend_lib *lib, struct slot *slot,
                        const struct ort_value_io *io, const naru_tensor *t, naru_text *err)
{
    void *data = naru_tensor_data(t);
    size_t dims = t->rank * sizeof *t->shape;
    if (slot->value && slot->data == data && slot->bytes == t->bytes &&
        (dims == 0 || memcmp(slot->shape, t->shape, dims) == 0)) {
        return NARU_OK;
    }
    if (slot->value) {
        lib->api->ReleaseValue(slot->value);
        slot->value = NULL;
    }
    OrtStatus *s = lib->api->CreateTensorWithDataAsOrtValue(
        lib->cpu_memory, data, t->bytes, t->shape, t->rank, io->type, &slot->value);
    if (s) {
        slot->value = NULL;
        return ort_status(lib, s, NULL, 0, err);
    }
    slot->data = data;
    slot->bytes = t->bytes;
    if (dims > 0) {
        memcpy(slot->shape, t->shape, dims);
    }
    return NARU_OK;
}

static naru_status bind_inputs(naru_backend_instance *i, const naru_batch *batch, uint32_t *ret_n,
                               naru_text *err)
{
    naru_backend_model *m = i->model;
    uint32_t n = 0;
    for (uint32_t k = 0; k < batch->n_inputs; k++) {
        const naru_tensor *t = &batch->inputs[k];
        struct slot *slot = &i->in_slots[k];
        if (t->n_segments == 0) {
            continue; /* optional and left out */
        }
        naru_status st;
        if (t->dtype == NARU_BYTES) {
            if (slot->value) {
                m->lib->api->ReleaseValue(slot->value);
                slot->value = NULL;
            }
            st = ort_string_in(m->lib, t, &slot->value, err);
        } else {
            st = bind(m->lib, slot, &m->ins[k], t, err);
        }
        if (st != NARU_OK) {
            return st;
        }
        i->in_names[n] = m->ins[k].name;
        i->in_values[n++] = slot->value;
    }
    *ret_n = n;
    return NARU_OK;
}

static naru_status bind_outputs(naru_backend_instance *i, const naru_batch *batch, naru_text *err)
{
    naru_backend_model *m = i->model;
    for (uint32_t o = 0; o < batch->n_outputs; o++) {
        const naru_tensor *t = &batch->outputs[o];
        i->out_names[o] = m->outs[t->index].name;
        i->out_values[o] = NULL;
        if (t->n_segments == 1) {
            struct slot *slot = &i->out_slots[t->index];
            naru_status st = bind(m->lib, slot, &m->outs[t->index], t, err);
            if (st != NARU_OK) {
                return st;
            }
            i->out_values[o] = slot->value;
        }
    }
    return NARU_OK;
}

/* Copies one output that the library allocated into memory of the host. */
static naru_status take_output(naru_backend_instance *i, naru_batch *batch, uint32_t o,
                               naru_text *err)
{
    const struct naru_backend_lib *lib = i->model->lib;
    const OrtApi *a = lib->api;
    OrtValue *value = i->out_values[o];
    const naru_tensor *t = &batch->outputs[o];
    const int64_t *shape = NULL;
    size_t rank = 0;
    ONNXTensorElementDataType type;
    void *data = NULL;
    OrtStatus *s = a->GetTensorElementTypeAndShapeDataReference(value, &type, &shape, &rank);
    naru_status st = ort_status(lib, s, NULL, 0, err);
    if (st != NARU_OK) {
        return st;
    }
    if (t->dtype == NARU_BYTES) {
        st = ort_string_out(lib, value, batch, o, (uint32_t)rank, shape, &i->scratch, err);
    } else {
        st = lib->host->output_alloc(batch, o, t->dtype, (uint32_t)rank, shape, 0, &t);
        if (st == NARU_OK && t->bytes > 0) {
            st = ort_status(lib, a->GetTensorMutableData(value, &data), NULL, 0, err);
        }
        if (st == NARU_OK && t->bytes > 0) {
            memcpy(naru_tensor_data(t), data, t->bytes);
        }
    }
    if (st == NARU_INVALID && err->data[0] == 0) {
        char text[160] = "";
        size_t at = 0;
        for (size_t d = 0; d < rank && at < sizeof text - 24; d++) {
            at += (size_t)snprintf(text + at, sizeof text - at, "%s%lld", d ? "," : "",
                                   (long long)shape[d]);
        }
        return naru_fail(err, NARU_INTERNAL,
                         "the model computed output \"%s\" with shape [%s], which its "
                         "configuration (batches of %lld rows here) does not allow",
                         batch->outputs[o].name, text, (long long)batch->rows);
    }
    return st;
}

/* Of the form that the host wants; hosts before 1.2 know of none. */
static OrtSession *session_of(const naru_backend_model *m, const naru_batch *batch)
{
    bool says = batch->struct_size >= offsetof(naru_batch, form) + sizeof batch->form;
    OrtSession *s = says && batch->form < NARU_FORMS ? m->forms[batch->form] : NULL;
    return s ? s : m->session;
}

naru_status ort_execute(naru_backend_instance *instance, naru_batch *batch, naru_text *err)
{
    naru_backend_model *m = instance->model;
    const OrtApi *a = m->lib->api;
    uint32_t n_in = 0;
    naru_status st = bind_inputs(instance, batch, &n_in, err);
    if (st == NARU_OK) {
        st = bind_outputs(instance, batch, err);
    }
    if (st != NARU_OK || batch->n_outputs == 0) {
        return st;
    }
    if (atomic_exchange_explicit(&instance->terminated, 0, memory_order_relaxed)) {
        st = ort_status(m->lib, a->RunOptionsUnsetTerminate(instance->run_options), NULL, 0, err);
        if (st != NARU_OK) {
            return st;
        }
    }
    OrtStatus *s =
        a->Run(session_of(m, batch), instance->run_options, instance->in_names, instance->in_values,
               n_in, instance->out_names, batch->n_outputs, instance->out_values);
    if (s) {
        st = ort_run_status(m, batch, s, err);
        if (atomic_load_explicit(&instance->terminated, memory_order_relaxed)) {
            st = naru_fail(err, NARU_CANCELLED, "cancelled while it ran");
        }
    }
    for (uint32_t o = 0; o < batch->n_outputs; o++) {
        if (batch->outputs[o].n_segments == 1 &&
            instance->out_slots[batch->outputs[o].index].value == instance->out_values[o]) {
            continue; /* written where it is sent from */
        }
        if (st == NARU_OK) {
            st = take_output(instance, batch, o, err);
        }
        if (instance->out_values[o]) {
            a->ReleaseValue(instance->out_values[o]);
        }
    }
    return st;
}

void ort_cancel(naru_backend_instance *instance, naru_batch *batch, uint32_t request)
{
    (void)request;
    const struct naru_backend_lib *lib = instance->model->lib;
    if (!naru_all_cancelled(lib->host, batch)) {
        return; /* somebody still waits for this run */
    }
    atomic_store_explicit(&instance->terminated, 1, memory_order_relaxed);
    (void)ort_status(lib, lib->api->RunOptionsSetTerminate(instance->run_options), NULL, 0, NULL);
}
