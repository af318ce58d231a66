/* Shadow traffic: a share of a model's requests also runs on another version, to see how it bears the
 * real load before it gets any.
 *
 * DESIGN. A shadow has memory of its own (one copy of the inputs, from the budget of buffers), so the
 * client's request is neither delayed nor held by it: it is answered, and its connection may be gone,
 * while the shadow still runs. Nobody sees the shadow's answer; what is counted is how many were
 * sent, failed, and were skipped. It is skipped, never queued for later, when there are too many
 * already, when memory is short, when the two versions do not take the same inputs, or when the
 * request carries state or parameters (a sequence must not be fed twice).
 *
 * INVARIANT. a->n_shadows counts shadows that have not completed; the process is not taken apart
 * before it is 0 (node.c).
 *
 * THREADS. All on the loop of the call.
 */
#include "api/shadow.h"

#include <string.h>

#include "api/state.h"
#include "base/buf.h"
#include "base/clock.h"
#include "base/mem.h"

#define SHADOWS_AT_ONCE 128 /* of the process */

struct shadow {
    struct nr_request request;
    struct nr_infer_request in;
    struct nr_arena arena;
    struct nr_api *api;
    struct nr_catalog_view *pin;
    struct nr_version *version;
    struct nr_label *label;
    struct nr_buf *data; /* of all inputs */
    unsigned slot;
};

static void done(struct nr_request *r)
{
    struct shadow *s = nr_container_of(r, struct shadow, request);
    if (r->status != NARU_OK) {
        nr_label_add(s->label, NR_LABEL_SHADOW_FAILED, s->slot);
    }
    nr_catalog_unpin(s->pin, s->version);
    nr_arena_done(&s->arena);
    nr_buf_unref(s->data);
    atomic_fetch_sub_explicit(&s->api->n_shadows, 1, memory_order_release);
    nr_free(s);
}

static bool same_io(const struct nr_io_spec *a, const struct nr_io_spec *b, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        if (!nr_str_eq(a[i].name, b[i].name) || a[i].dtype != b[i].dtype ||
            a[i].rank != b[i].rank || a[i].batched != b[i].batched ||
            memcmp(a[i].shape, b[i].shape, a[i].rank * sizeof(a[i].shape[0])) != 0) {
            return false;
        }
    }
    return true;
}

/* What was decoded for one version means the same to the other. */
static bool takes(const struct nr_signature *a, const struct nr_signature *b, int64_t rows)
{
    return a->n_inputs == b->n_inputs && a->n_outputs == b->n_outputs &&
           same_io(a->inputs, b->inputs, a->n_inputs) &&
           same_io(a->outputs, b->outputs, a->n_outputs) && rows <= NR_MAX(b->max_batch_size, 1);
}

/* Inputs and outputs of the call into the shadow's own memory; false: not enough of it. */
static bool copy(struct shadow *s, const struct nr_infer_request *from)
{
    size_t bytes = 0;
    for (unsigned i = 0; i < from->n_inputs; i++) {
        bytes += (from->inputs[i].bytes + 63) & ~(size_t)63; /* exists in memory: no overflow */
    }
    s->data = nr_buf_try_new(bytes);
    if (s->data == NULL) {
        return false;
    }
    s->in = (struct nr_infer_request){.rows = from->rows,
                                      .n_inputs = from->n_inputs,
                                      .n_outputs = from->n_outputs,
                                      .priority = from->priority};
    s->in.inputs = nr_arena_alloc(&s->arena, (from->n_inputs + 1) * sizeof(s->in.inputs[0]));
    s->in.outputs = nr_arena_alloc(&s->arena, (from->n_outputs + 1) * sizeof(s->in.outputs[0]));
    memcpy(s->in.inputs, from->inputs, from->n_inputs * sizeof(s->in.inputs[0]));
    memcpy(s->in.outputs, from->outputs, from->n_outputs * sizeof(s->in.outputs[0]));
    uint8_t *to = nr_buf_data(s->data);
    for (unsigned i = 0; i < from->n_inputs; i++) {
        struct nr_infer_tensor *t = &s->in.inputs[i];
        memcpy(to, t->data, t->bytes);
        t->data = to;
        t->buf = s->data;
        to += (t->bytes + 63) & ~(size_t)63;
    }
    return true;
}

static bool has_state(const struct nr_infer_request *in)
{
    return in->n_params > 0 || in->sequence_id != 0 || in->sequence_name.len > 0;
}

/* Sends it; false: skipped. */
static bool send_to(struct nr_call *c, const struct nr_catalog_label *l)
{
    struct nr_api *a = c->api;
    unsigned loop = nr_loop_index(c->x->loop);
    if (l->version == NULL || l->version == c->version || has_state(&c->in) ||
        atomic_load_explicit(&a->n_shadows, memory_order_relaxed) >= SHADOWS_AT_ONCE ||
        !takes(c->runtime->signature, nr_runtime_of(l->version)->signature, c->in.rows)) {
        return false;
    }
    struct shadow *s = nr_new(struct shadow);
    nr_arena_init(&s->arena, 0);
    if (!copy(s, &c->in)) {
        nr_arena_done(&s->arena);
        nr_free(s);
        return false;
    }
    s->api = a;
    s->version = l->version;
    s->label = l->label;
    s->slot = loop;
    s->pin = nr_catalog_pin(&a->readers[loop], l->version);
    s->request = (struct nr_request){.target = nr_runtime_of(l->version)->target,
                                     .loop = c->x->loop,
                                     .arena = &s->arena,
                                     .in = &s->in,
                                     .catalog = s->pin->catalog,
                                     .arrival_ns = nr_clock_now(),
                                     .deadline_ns = c->x->deadline_ns,
                                     .on_complete = done};
    atomic_fetch_add_explicit(&a->n_shadows, 1, memory_order_relaxed);
    nr_request_submit(&s->request);
    return true;
}

void nr_shadow_send(struct nr_call *c)
{
    const struct nr_catalog *catalog = nr_call_catalog(c);
    const struct nr_catalog_model *m = nr_catalog_find(catalog, nr_str_from(c->version->name));
    if (m == NULL || m->shadow == NULL) {
        return; /* switched off since the request was routed */
    }
    const struct nr_catalog_label *l = m->shadow;
    nr_label_add(l->label, send_to(c, l) ? NR_LABEL_SHADOWS : NR_LABEL_SHADOW_SKIPPED,
                 nr_loop_index(c->x->loop));
}
