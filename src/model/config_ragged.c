/* Ragged batches of a configuration: allow_ragged_batch, batch_input, batch_output, checked and laid
 * out by the plug-in's indexes for host/batch.h.
 *
 * A ragged input reaches the model as one row of elements, so the model's own input has one dimension
 * of any size. Targets of batch_input are inputs of the model that the configuration does not list
 * and no client sends; targets of batch_output are outputs cut by the shapes of an input.
 *
 * Threads: pure functions of the configuration, on the thread that completes it.
 */
#include "model/config_priv.h"

static unsigned find(const struct nr_io_spec *io, unsigned n, const char *name)
{
    unsigned i = 0;
    while (i < n && !nr_str_is(io[i].name, name)) {
        i++;
    }
    return i;
}

bool nr_config_is_made(const Inference__ModelConfig *pb, const char *name)
{
    for (size_t i = 0; i < pb->n_batch_input; i++) {
        for (size_t k = 0; k < pb->batch_input[i]->n_target_name; k++) {
            if (strcmp(pb->batch_input[i]->target_name[k], name) == 0) {
                return true;
            }
        }
    }
    return false;
}

bool nr_config_is_scattered(const Inference__ModelConfig *pb, const char *name)
{
    for (size_t i = 0; i < pb->n_batch_output; i++) {
        for (size_t k = 0; k < pb->batch_output[i]->n_target_name; k++) {
            if (strcmp(pb->batch_output[i]->target_name[k], name) == 0) {
                return true;
            }
        }
    }
    return false;
}

uint32_t nr_config_made_rank(const Inference__BatchInput *in)
{
    return in->kind == INFERENCE__BATCH_INPUT__KIND__BATCH_ITEM_SHAPE ? 2 : 1;
}

/* The one source of a batch_input or batch_output. */
static nr_status find_source(const struct nr_model_config *c, const char *field, size_t n_targets,
                             size_t n_sources, char *const *sources, unsigned *ret,
                             struct nr_err *err)
{
    if (n_targets == 0 || n_sources != 1) {
        return nr_fail(err, NARU_INVALID,
                       "%s needs a target_name and exactly one source_input, found %zu and %zu",
                       field, n_targets, n_sources);
    }
    unsigned source = find(c->sig.inputs, c->sig.n_inputs, sources[0]);
    if (source == c->sig.n_inputs) {
        return nr_fail(err, NARU_INVALID, "%s: source_input \"%.100s\" is no input of the model",
                       field, sources[0]);
    }
    if (c->sig.inputs[source].reshaped) {
        return nr_fail(err, NARU_UNSUPPORTED,
                       "%s: source_input \"%.100s\" has a reshape, which is not served together "
                       "with ragged batches by this version of naru",
                       field, sources[0]);
    }
    *ret = source;
    return NARU_OK;
}

static nr_status check_inputs(const struct nr_model_config *c, const naru_model_info *info,
                              struct nr_err *err)
{
    for (unsigned i = 0; i < c->sig.n_inputs; i++) {
        const struct nr_io_spec *s = &c->sig.inputs[i];
        if (!s->ragged) {
            continue;
        }
        if (s->reshaped) {
            return nr_fail(err, NARU_UNSUPPORTED,
                           "input \"%.100s\": allow_ragged_batch with a reshape is not served by "
                           "this version of naru",
                           s->name.ptr);
        }
        const naru_io *io = info ? &info->inputs[c->input_map[i]] : NULL;
        if (io && (io->rank != 1 || io->shape[0] != -1)) {
            return nr_fail(err, NARU_INVALID,
                           "input \"%.100s\": allow_ragged_batch puts the elements of all requests "
                           "in a row, so the model's input must have the shape [-1]; it has %s",
                           s->name.ptr, SHAPE_TEXT(io->shape, io->rank));
        }
    }
    return NARU_OK;
}

/* Index of a made input in the plug-in's order; at: its number among those that are made. */
static nr_status find_made(const struct nr_model_config *c, const naru_model_info *info,
                           const Inference__BatchInput *in, const char *name, uint32_t at,
                           uint32_t *ret, struct nr_err *err)
{
    if (find(c->sig.inputs, c->sig.n_inputs, name) < c->sig.n_inputs) {
        return nr_fail(err, NARU_INVALID,
                       "batch_input: target_name \"%.100s\" is listed as an input, too; the server "
                       "makes it, no client sends it",
                       name);
    }
    if (!info) {
        *ret = c->sig.n_inputs + at;
        return NARU_OK;
    }
    uint32_t i = 0;
    while (i < info->n_inputs && strcmp(info->inputs[i].name, name) != 0) {
        i++;
    }
    if (i == info->n_inputs) {
        return nr_fail(err, NARU_INVALID, "batch_input: the model has no input \"%.100s\"", name);
    }
    const naru_io *io = &info->inputs[i];
    if (io->dtype != (int32_t)in->data_type || io->rank != nr_config_made_rank(in)) {
        return nr_fail(err, NARU_INVALID,
                       "batch_input: \"%.100s\" is made as %s of %u dimensions, the model takes %s "
                       "of shape %s",
                       name, naru_dtype_name((int32_t)in->data_type), nr_config_made_rank(in),
                       naru_dtype_name(io->dtype), SHAPE_TEXT(io->shape, io->rank));
    }
    *ret = i;
    return NARU_OK;
}

static nr_status lay_out_inputs(struct nr_model_config *c, const naru_model_info *info,
                                struct nr_batch_ragged *r, struct nr_err *err)
{
    static const enum nr_batch_made_kind kinds[] = {
        [INFERENCE__BATCH_INPUT__KIND__BATCH_ELEMENT_COUNT] = NR_MADE_ELEMENTS,
        [INFERENCE__BATCH_INPUT__KIND__BATCH_ACCUMULATED_ELEMENT_COUNT] = NR_MADE_ENDS,
        [INFERENCE__BATCH_INPUT__KIND__BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO] = NR_MADE_BOUNDS,
        [INFERENCE__BATCH_INPUT__KIND__BATCH_MAX_ELEMENT_COUNT_AS_SHAPE] = NR_MADE_LARGEST,
        [INFERENCE__BATCH_INPUT__KIND__BATCH_ITEM_SHAPE] = NR_MADE_SHAPES,
        [INFERENCE__BATCH_INPUT__KIND__BATCH_ITEM_SHAPE_FLATTEN] = NR_MADE_SHAPES_FLAT,
    };
    const Inference__ModelConfig *pb = c->pb;
    size_t n = 0;
    for (size_t i = 0; i < pb->n_batch_input; i++) {
        n += pb->batch_input[i]->n_target_name;
    }
    struct nr_batch_made *made = nr_config_array(c, n, sizeof *made);
    if (!made) {
        return nr_config_nomem(err);
    }
    r->made = made;
    for (size_t i = 0; i < pb->n_batch_input; i++) {
        const Inference__BatchInput *in = pb->batch_input[i];
        unsigned source;
        nr_status st = find_source(c, "batch_input", in->n_target_name, in->n_source_input,
                                   in->source_input, &source, err);
        if (st == NARU_OK && ((size_t)in->kind >= NR_COUNT(kinds) ||
                              (in->data_type != INFERENCE__DATA_TYPE__TYPE_INT32 &&
                               in->data_type != INFERENCE__DATA_TYPE__TYPE_FP32))) {
            st = nr_fail(err, NARU_INVALID,
                         "batch_input \"%.100s\": data_type must be TYPE_INT32 or TYPE_FP32",
                         in->target_name[0]);
        }
        for (size_t k = 0; k < in->n_target_name && st == NARU_OK; k++) {
            struct nr_batch_made *m = &made[r->n_made];
            m->source = c->input_map[source];
            m->kind = kinds[in->kind];
            st = find_made(c, info, in, in->target_name[k], r->n_made, &m->input, err);
            for (uint32_t o = 0; o < r->n_made && st == NARU_OK; o++) {
                if (made[o].input == m->input) {
                    st = nr_fail(err, NARU_INVALID, "batch_input: \"%.100s\" is made twice",
                                 in->target_name[k]);
                }
            }
            r->n_made++;
        }
        if (st != NARU_OK) {
            return st;
        }
    }
    return NARU_OK;
}

static nr_status lay_out_output(struct nr_model_config *c, const char *name, unsigned source,
                                struct nr_batch_scatter *all, struct nr_err *err)
{
    unsigned o = find(c->sig.outputs, c->sig.n_outputs, name);
    if (o == c->sig.n_outputs) {
        return nr_fail(err, NARU_INVALID,
                       "batch_output: target_name \"%.100s\" is no output of the model", name);
    }
    const struct nr_io_spec *s = &c->sig.outputs[o];
    const struct nr_io_spec *in = &c->sig.inputs[source];
    for (uint32_t d = 1; d < s->rank; d++) {
        if (s->reshaped || (s->shape[d] < 0 && d >= in->rank)) {
            return nr_fail(err, NARU_INVALID, "batch_output: output \"%.100s\" has %s", name,
                           s->reshaped ? "a reshape, which excludes being scattered"
                                       : "an open dimension where its source_input has none");
        }
    }
    all[c->output_map[o]] = (struct nr_batch_scatter){
        .on = true, .source = c->input_map[source], .rank = s->rank, .shape = s->shape};
    return NARU_OK;
}

static nr_status lay_out_outputs(struct nr_model_config *c, struct nr_batch_scatter *all,
                                 struct nr_err *err)
{
    for (size_t i = 0; i < c->pb->n_batch_output; i++) {
        const Inference__BatchOutput *out = c->pb->batch_output[i];
        unsigned source;
        nr_status st = find_source(c, "batch_output", out->n_target_name, out->n_source_input,
                                   out->source_input, &source, err);
        for (size_t k = 0; k < out->n_target_name && st == NARU_OK; k++) {
            st = lay_out_output(c, out->target_name[k], source, all, err);
        }
        if (st != NARU_OK) {
            return st;
        }
    }
    return NARU_OK;
}

nr_status nr_config_ragged(struct nr_model_config *c, const naru_model_info *info,
                           struct nr_err *err)
{
    bool any = c->pb->n_batch_input > 0 || c->pb->n_batch_output > 0;
    for (unsigned i = 0; i < c->sig.n_inputs; i++) {
        any = any || c->sig.inputs[i].ragged;
    }
    if (!any) {
        return NARU_OK;
    }
    if (!c->batched) {
        return nr_fail(err, NARU_INVALID,
                       "allow_ragged_batch, batch_input and batch_output need batches: "
                       "max_batch_size is 0");
    }
    if (c->pb->n_batch_output > 0 && c->pb->model_transaction_policy &&
        c->pb->model_transaction_policy->decoupled) {
        return nr_fail(
            err, NARU_INVALID,
            "batch_output excludes decoupled: each response of a decoupled model belongs "
            "to one request already");
    }
    size_t n_in = info ? info->n_inputs : c->n_args_inputs;
    size_t n_out = info ? info->n_outputs : c->sig.n_outputs;
    struct nr_batch_ragged *r = nr_config_array(c, 1, sizeof *r);
    bool *inputs = nr_config_array(c, n_in, sizeof *inputs);
    struct nr_batch_scatter *outputs = nr_config_array(c, n_out, sizeof *outputs);
    if (!r || !inputs || !outputs) {
        return nr_config_nomem(err);
    }
    nr_status st = check_inputs(c, info, err);
    for (unsigned i = 0; i < c->sig.n_inputs && st == NARU_OK; i++) {
        inputs[c->input_map[i]] = c->sig.inputs[i].ragged;
    }
    r->inputs = inputs;
    r->outputs = outputs;
    if (st == NARU_OK) {
        st = lay_out_inputs(c, info, r, err);
    }
    if (st == NARU_OK) {
        st = lay_out_outputs(c, outputs, err);
    }
    c->ragged = r;
    return st;
}
