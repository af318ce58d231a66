/* Control tensors into a request of a sequence, states into it and out of it.
 *
 * DESIGN. The request is run with a copy of its description that has the hidden tensors behind its
 * own (nr_sequence_config.sig), so that places and batches treat them as any other tensor. A state
 * is read where the last execution left it: a large output that was alone in its batch is kept by
 * reference, anything else is copied to a buffer of the sequence, which is used over and over. With
 * use_same_buffer_for_input_output there is that buffer only; with use_growable_memory it at least
 * doubles when it must grow, so that a state that gets longer with each request is copied rarely.
 *
 * INVARIANTS
 *  1. A value's bytes do not change while its sequence is busy.
 *  2. Initial states are shared by all sequences and never written.
 */
#include <stdio.h>
#include <string.h>

#include "base/buf.h"
#include "codec/tensor.h"
#include "io/file.h"
#include "sched/sequence_priv.h"

#define FIRST_MAX_BYTES (1u << 30)

/* --- initial states --------------------------------------------------------------------------- */

static nr_status load_first(struct nr_sequencer *q, const struct nr_sequence_state *s,
                            struct nr_seq_first *f, struct nr_err *err)
{
    int64_t bytes = 0, elements = 0;
    char path[300], *text = NULL;
    struct nr_err why = {0};
    if (!nr_tensor_bytes(s->dtype, s->first, s->rank, &bytes) ||
        !nr_tensor_elements(s->first, s->rank, &elements) || bytes > FIRST_MAX_BYTES) {
        return nr_fail(err, NARU_TOO_LARGE, "state \"%.100s\": its initial value is too large",
                       s->input_name);
    }
    if (s->file == NULL) { /* of BYTES: empty elements, whose lengths are zeros */
        f->bytes = (size_t)bytes;
        f->data = nr_try_alloc(f->bytes);
        return f->data != NULL
                   ? NARU_OK
                   : nr_fail(err, NARU_NOMEM, "no memory for state \"%.100s\"", s->input_name);
    }
    (void)snprintf(path, sizeof(path), "initial_state/%s", s->file);
    nr_status st =
        q->cfg.model_fd < 0
            ? nr_fail(&why, NARU_INVALID, "a bare file has no folder of initial states")
            : nr_file_read_at(q->cfg.model_fd, path, FIRST_MAX_BYTES, &text, &f->bytes, &why);
    f->data = (uint8_t *)text;
    if (st == NARU_OK && s->dtype == NARU_BYTES) {
        st = nr_tensor_bytes_check(f->data, f->bytes, elements, "the file", &why);
    } else if (st == NARU_OK && f->bytes != (size_t)bytes) {
        st = nr_fail(&why, NARU_INVALID, "it has %zu bytes, the state %lld", f->bytes,
                     (long long)bytes);
    }
    return st == NARU_OK ? NARU_OK
                         : nr_fail(err, st, "initial_state of \"%.100s\", %.150s: %.200s",
                                   s->input_name, path, why.text);
}

nr_status nr_seq_firsts_load(struct nr_sequencer *q, struct nr_err *err)
{
    const struct nr_sequence_config *c = q->cfg.config;
    nr_status st = NARU_OK;
    q->first = nr_new_array(struct nr_seq_first, NR_MAX(c->n_states, 1u));
    for (uint32_t i = 0; i < c->n_states && st == NARU_OK; i++) {
        st = load_first(q, &c->states[i], &q->first[i], err);
    }
    return st;
}

void nr_seq_firsts_free(struct nr_sequencer *q)
{
    for (uint32_t i = 0; q->first != NULL && i < q->cfg.config->n_states; i++) {
        nr_free(q->first[i].data);
    }
    nr_free(q->first);
}

void nr_seq_values_free(struct nr_sequencer *q, struct nr_seq *s)
{
    struct nr_seq_value *v = s->user;
    for (uint32_t i = 0; v != NULL && i < q->cfg.config->n_states; i++) {
        nr_buf_unref(v[i].buf);
    }
    nr_free(v);
    s->user = NULL;
}

/* The sequence begins: every state is its initial one. Buffers of a former life stay for use. */
static void reset(struct nr_sequencer *q, struct nr_seq *s)
{
    const struct nr_sequence_config *c = q->cfg.config;
    if (c->n_states > 0 && s->user == NULL) {
        s->user = nr_new_array(struct nr_seq_value, c->n_states);
    }
    struct nr_seq_value *v = s->user;
    for (uint32_t i = 0; i < c->n_states; i++) {
        v[i].data = q->first[i].data;
        v[i].bytes = q->first[i].bytes;
        memcpy(v[i].dims, c->states[i].first, c->states[i].rank * sizeof(v[i].dims[0]));
    }
}

/* Dims of state k as the request will be run with. */
static const int64_t *dims_of(const struct nr_sequencer *q, const struct nr_request *r, uint32_t k)
{
    const struct nr_seq_item *item = nr_seq_item_of(r);
    const struct nr_seq_value *v = item->seq->user;
    return item->start || v == NULL ? q->cfg.config->states[k].first : v[k].dims;
}

bool nr_seq_states_alike(const struct nr_sequencer *q, const struct nr_request *a,
                         const struct nr_request *b)
{
    const struct nr_sequence_config *c = q->cfg.config;
    for (uint32_t k = 0; k < c->n_states; k++) {
        if (memcmp(dims_of(q, a, k), dims_of(q, b, k), c->states[k].rank * sizeof(int64_t)) != 0) {
            return false;
        }
    }
    return true;
}

/* --- control tensors -------------------------------------------------------------------------- */

nr_status nr_seq_check_id(const struct nr_sequencer *q, const struct nr_infer_request *in,
                          struct nr_err *err)
{
    const struct nr_sequence_config *c = q->cfg.config;
    for (uint32_t i = 0; i < c->n_controls; i++) {
        if (c->controls[i].kind != NR_CONTROL_CORRID || c->controls[i].dtype == NARU_BYTES) {
            continue;
        }
        uint64_t most = c->controls[i].dtype == NARU_UINT64   ? UINT64_MAX
                        : c->controls[i].dtype == NARU_INT64  ? INT64_MAX
                        : c->controls[i].dtype == NARU_UINT32 ? UINT32_MAX
                                                              : INT32_MAX;
        if (in->sequence_name.len > 0) {
            return nr_fail(err, NARU_INVALID,
                           "model '%s' takes sequence ids that are numbers (%s), not texts",
                           q->name, naru_dtype_name(c->controls[i].dtype));
        }
        if (in->sequence_id > most) {
            return nr_fail(err, NARU_INVALID,
                           "sequence id %llu does not fit the model's %s, whose maximum is %llu",
                           (unsigned long long)in->sequence_id,
                           naru_dtype_name(c->controls[i].dtype), (unsigned long long)most);
        }
    }
    return NARU_OK;
}

static uint8_t *put_id(const struct nr_sequence_control *c, const struct nr_infer_request *in,
                       struct nr_arena *a, size_t *ret_bytes)
{
    uint64_t number = in != NULL ? in->sequence_id : 0;
    if (c->dtype != NARU_BYTES) {
        *ret_bytes = naru_dtype_bytes(c->dtype);
        uint8_t *data = nr_arena_alloc(a, sizeof(number));
        memcpy(data, &number, sizeof(number)); /* little-endian: the low bytes are in front */
        return data;
    }
    char digits[24] = "";
    struct nr_str text = {digits, 0};
    if (in != NULL && in->sequence_name.len > 0) {
        text = in->sequence_name;
    } else if (in != NULL) {
        text.len = (size_t)snprintf(digits, sizeof(digits), "%llu", (unsigned long long)number);
    }
    uint32_t len = (uint32_t)text.len;
    uint8_t *data = nr_arena_alloc(a, sizeof(len) + len);
    memcpy(data, &len, sizeof(len));
    memcpy(data + sizeof(len), text.ptr, len);
    *ret_bytes = sizeof(len) + len;
    return data;
}

/* One element, in the shape that the model's input has. */
static void put_control(const struct nr_sequencer *q, const struct nr_sequence_control *c,
                        const struct nr_infer_request *in, bool yes, struct nr_arena *a,
                        struct nr_infer_tensor *t)
{
    const struct nr_io_spec *spec = &q->cfg.config->sig.inputs[c->input];
    *t = (struct nr_infer_tensor){
        .index = c->input, .dtype = c->dtype, .rank = spec->rank, .elements = 1};
    for (uint32_t d = 0; d < spec->rank; d++) {
        t->shape[d] = 1;
    }
    if (c->kind == NR_CONTROL_CORRID) {
        t->data = put_id(c, in, a, &t->bytes);
        return;
    }
    uint8_t *data = nr_arena_alloc(a, sizeof(c->value[0]));
    memcpy(data, c->value[yes], sizeof(c->value[0]));
    t->data = data;
    t->bytes = naru_dtype_bytes(c->dtype);
}

static void put_state(const struct nr_sequencer *q, const struct nr_sequence_state *s,
                      const struct nr_seq_value *v, struct nr_infer_tensor *t)
{
    uint32_t batch = q->cfg.config->sig.inputs[s->input].batched;
    *t = (struct nr_infer_tensor){.index = s->input,
                                  .dtype = s->dtype,
                                  .rank = s->rank + batch,
                                  .data = v->data,
                                  .bytes = v->bytes,
                                  .buf = v->buf != NULL && v->data == nr_buf_data(v->buf) ? v->buf
                                                                                          : NULL};
    t->shape[0] = 1;
    memcpy(t->shape + batch, v->dims, s->rank * sizeof(v->dims[0]));
    t->elements = 1;
    for (uint32_t d = 0; d < t->rank; d++) {
        t->elements *= t->shape[d]; /* cannot overflow: the bytes exist */
    }
}

void nr_seq_tensors_put(struct nr_sequencer *q, struct nr_request *r)
{
    struct nr_seq_item *item = nr_seq_item_of(r);
    const struct nr_sequence_config *c = q->cfg.config;
    const struct nr_infer_request *in = item->in;
    if (item->start) {
        reset(q, item->seq);
    }
    item->ext = *in;
    if (item->auto_id != 0) {
        item->ext.sequence_id = item->auto_id;
    }
    struct nr_infer_tensor *t =
        nr_arena_alloc(r->arena, (in->n_inputs + c->n_controls + c->n_states + 1) * sizeof(*t));
    if (in->n_inputs > 0) {
        memcpy(t, in->inputs, in->n_inputs * sizeof(*t));
    }
    item->ext.inputs = t;
    for (uint32_t i = 0; i < c->n_controls; i++) {
        enum nr_control_kind kind = c->controls[i].kind;
        bool yes = kind == NR_CONTROL_READY || (kind == NR_CONTROL_START && item->start) ||
                   (kind == NR_CONTROL_END && item->tells_end);
        put_control(q, &c->controls[i], &item->ext, yes, r->arena, &t[item->ext.n_inputs++]);
    }
    const struct nr_seq_value *v = item->seq->user;
    for (uint32_t i = 0; i < c->n_states; i++) {
        put_state(q, &c->states[i], &v[i], &t[item->ext.n_inputs++]);
    }
    struct nr_infer_output *o =
        nr_arena_alloc(r->arena, (in->n_outputs + c->n_states + 1) * sizeof(*o));
    if (in->n_outputs > 0) {
        memcpy(o, in->outputs, in->n_outputs * sizeof(*o));
    }
    item->ext.outputs = o;
    for (uint32_t i = 0; i < c->n_states; i++) {
        o[item->ext.n_outputs++] =
            (struct nr_infer_output){.index = c->states[i].output, .binary = true};
    }
    r->in = &item->ext;
}

void nr_seq_tensors_pad(struct nr_sequencer *q, const struct nr_request *lead,
                        struct nr_infer_request *ret)
{
    const struct nr_sequence_config *c = q->cfg.config;
    const struct nr_seq_item *item = nr_seq_item_of(lead);
    *ret = item->ext;
    ret->n_outputs = 0;
    ret->inputs = nr_arena_alloc(lead->arena, (ret->n_inputs + 1) * sizeof(ret->inputs[0]));
    memcpy(ret->inputs, item->ext.inputs, ret->n_inputs * sizeof(ret->inputs[0]));
    for (uint32_t i = 0; i < c->n_controls; i++) {
        put_control(q, &c->controls[i], NULL, false, lead->arena,
                    &ret->inputs[item->in->n_inputs + i]);
    }
}

/* --- states out ------------------------------------------------------------------------------- */

static void set_value(const struct nr_sequence_state *s, const struct nr_infer_tensor *t,
                      bool batched, const uint8_t *data, struct nr_seq_value *v)
{
    v->data = data;
    v->bytes = t->bytes;
    for (uint32_t d = 0; d < s->rank; d++) {
        v->dims[d] = t->shape[d + batched];
    }
}

static nr_status take_value(const struct nr_sequence_state *s, const struct nr_infer_tensor *t,
                            bool batched, bool alone, struct nr_seq_value *v, struct nr_err *err)
{
    if (t->rank != s->rank + batched) {
        return nr_fail(err, NARU_INTERNAL,
                       "the model gave state \"%.100s\" with %u dimensions, expected %u",
                       s->output_name, t->rank, s->rank + batched);
    }
    if (t->buf != NULL && alone && !s->same_buffer) {
        nr_buf_unref(v->buf);
        v->buf = nr_buf_ref(t->buf);
        v->own = false;
        set_value(s, t, batched, t->data, v);
        return NARU_OK;
    }
    if (v->buf == NULL || !v->own || nr_buf_bytes(v->buf) < t->bytes) {
        size_t want = t->bytes;
        if (s->growable && v->buf != NULL && nr_buf_bytes(v->buf) < SIZE_MAX / 2) {
            want = NR_MAX(want, 2 * nr_buf_bytes(v->buf));
        }
        struct nr_buf *buf = nr_buf_try_new(want);
        if (buf == NULL) {
            return nr_fail(err, NARU_NOMEM, "no memory for state \"%.100s\" of %zu bytes",
                           s->output_name, t->bytes);
        }
        nr_buf_unref(v->buf);
        v->buf = buf;
        v->own = true;
    }
    memcpy(nr_buf_data(v->buf), t->data, t->bytes);
    set_value(s, t, batched, nr_buf_data(v->buf), v);
    return NARU_OK;
}

nr_status nr_seq_tensors_take(struct nr_sequencer *q, struct nr_request *r, struct nr_err *err)
{
    const struct nr_seq_item *item = nr_seq_item_of(r);
    const struct nr_sequence_config *c = q->cfg.config;
    struct nr_seq_value *v = item->seq->user;
    nr_status st = NARU_OK;
    for (uint32_t i = 0; i < c->n_states && st == NARU_OK; i++) {
        st = take_value(&c->states[i], &r->outputs[item->in->n_outputs + i],
                        c->sig.max_batch_size > 0, r->batch_rows <= 1, &v[i], err);
    }
    return st;
}
