/* Completing a configuration from what the opened model says, and deriving what request code reads.
 *
 * DESIGN. Follows Triton's auto-complete for ONNX models, applied to every backend that knows its
 * inputs and outputs: nothing is filled in when the configuration lists inputs and outputs; else
 * batching is inferred when every input and output has a free first dimension, and lists that are
 * missing are taken from the model without that dimension. A rank that would become zero is
 * written as dims [1] with an empty reshape, because dims cannot be empty.
 * Deviations: see config.h; and an explicit max_batch_size: 0 is kept, where Triton cannot tell it
 * from "not given".
 * Whatever is configured is then compared with the model: a wrong name or shape is found at load,
 * with the model's own list in the text, not by the first client.
 *
 * INVARIANTS
 *  1. Order: batch size → inputs, outputs → defaults → derived fields → comparison → final rules.
 *     Each step reads only what earlier ones wrote.
 *  2. After nr_config_complete the message and the derived fields say the same.
 *
 * Threads: as config.c.
 */
#include "model/config_priv.h"

#include <stdio.h>
#include <stdlib.h>

/* --- what the model says, for error texts ----------------------------------------------------- */

static void describe(struct nr_text *t, const naru_io *ios, uint32_t n)
{
    for (uint32_t i = 0; i < n && t->len < 320; i++) {
        const char *type = naru_dtype_name(ios[i].dtype);
        nr_text_fmt(t, "%s\"%.64s\" %s %s", i ? ", " : "", ios[i].name, type ? type : "?",
                    SHAPE_TEXT(ios[i].shape, ios[i].rank));
    }
    nr_text_str(t, n == 0 ? "none" : "");
}

/* `what` and the list of the model's inputs or outputs. */
static nr_status fail_listing(struct nr_err *err, const char *what, const char *kind,
                              const naru_io *ios, uint32_t n)
{
    struct nr_text t;
    nr_text_init(&t, 1024);
    describe(&t, ios, n);
    nr_status st =
        nr_fail(err, NARU_INVALID, "%s; the model's %ss: %s", what, kind, t.data ? t.data : "");
    nr_text_done(&t);
    return st;
}

/* --- auto-complete ---------------------------------------------------------------------------- */

/* The first tensor whose first dimension is not free, NULL when the model can batch. */
static const naru_io *not_batchable(const naru_io *ios, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        if (ios[i].rank == 0 || ios[i].shape[0] != -1) {
            return &ios[i];
        }
    }
    return NULL;
}

/* Bytes of one row of these tensors, as far as their sizes are known. */
static uint64_t row_bytes(const naru_io *ios, uint32_t n)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < n; i++) {
        int64_t bytes;
        uint32_t rank = ios[i].rank - 1;
        bool known = naru_dtype_bytes(ios[i].dtype) > 0;
        for (uint32_t k = 1; k <= rank && known; k++) {
            known = ios[i].shape[k] >= 0;
        }
        if (!known) {
            continue;
        }
        if (!nr_tensor_bytes(ios[i].dtype, ios[i].shape + 1, rank, &bytes) ||
            __builtin_add_overflow(sum, (uint64_t)bytes, &sum)) {
            return UINT64_MAX;
        }
    }
    return sum;
}

static int32_t default_batch(const struct nr_model_config *c, const naru_model_info *info,
                             const struct nr_config_opts *opts)
{
    int32_t wanted = c->from_file ? opts->default_batch_open : opts->default_batch;
    if (wanted < 0) {
        return 0;
    }
    if (wanted > 0) {
        return NR_MIN(wanted, NR_CONFIG_MAX_BATCH);
    }
    if (c->from_file) {
        return NR_CONFIG_DEFAULT_BATCH_TRITON;
    }
    uint64_t in = row_bytes(info->inputs, info->n_inputs);
    uint64_t out = row_bytes(info->outputs, info->n_outputs);
    uint64_t row;
    if (__builtin_add_overflow(in, out, &row)) {
        row = UINT64_MAX;
    }
    int32_t batch = NR_CONFIG_DEFAULT_BATCH;
    while (batch > 1 && row > NR_CONFIG_DEFAULT_BATCH_BYTES / (uint64_t)batch) {
        batch /= 2;
    }
    return batch;
}

static nr_status complete_batch(struct nr_model_config *c, const naru_model_info *info,
                                const struct nr_config_opts *opts, struct nr_err *err)
{
    Inference__ModelConfig *pb = c->pb;
    const naru_io *in = not_batchable(info->inputs, info->n_inputs);
    const naru_io *out = not_batchable(info->outputs, info->n_outputs);
    if (in || out) {
        if (pb->max_batch_size == 0) {
            return NARU_OK;
        }
        char what[256];
        (void)snprintf(what, sizeof what,
                       "max_batch_size is %d, but the model does not batch: the first dimension of "
                       "\"%.64s\" is not free. Set max_batch_size: 0",
                       pb->max_batch_size, in ? in->name : out->name);
        return fail_listing(err, what, in ? "input" : "output", in ? info->inputs : info->outputs,
                            in ? info->n_inputs : info->n_outputs);
    }
    if (pb->max_batch_size > 0 || c->gave_batch) {
        return NARU_OK;
    }
    pb->max_batch_size = default_batch(c, info, opts);
    if (pb->max_batch_size > 1 &&
        pb->scheduling_choice_case == INFERENCE__MODEL_CONFIG__SCHEDULING_CHOICE__NOT_SET) {
        pb->dynamic_batching = nr_config_message(c, &inference__model_dynamic_batching__descriptor);
        if (!pb->dynamic_batching) {
            return nr_config_nomem(err);
        }
        pb->scheduling_choice_case = INFERENCE__MODEL_CONFIG__SCHEDULING_CHOICE_DYNAMIC_BATCHING;
    }
    return NARU_OK;
}

/* dims (and the empty reshape, if needed) of a tensor of the model; false: no memory. */
static bool model_dims(struct nr_model_config *c, const naru_io *io, size_t *ret_n, int64_t **ret,
                       Inference__ModelTensorReshape **ret_reshape)
{
    size_t skip = c->pb->max_batch_size > 0;
    size_t n = io->rank - skip;
    int64_t *dims = nr_config_array(c, n, sizeof *dims);
    if (!dims) {
        return false;
    }
    if (n > 0) {
        memcpy(dims, io->shape + skip, n * sizeof *dims);
    } else {
        dims[0] = 1;
        *ret_reshape = nr_config_message(c, &inference__model_tensor_reshape__descriptor);
    }
    *ret = dims;
    *ret_n = NR_MAX(n, (size_t)1);
    return n > 0 || *ret_reshape;
}

static nr_status complete_inputs(struct nr_model_config *c, const naru_model_info *info,
                                 struct nr_err *err)
{
    Inference__ModelConfig *pb = c->pb;
    pb->input = nr_config_array(c, info->n_inputs, sizeof *pb->input);
    for (uint32_t i = 0; i < info->n_inputs && pb->input; i++) {
        const naru_io *from = &info->inputs[i];
        if (nr_config_is_hidden(pb, from->name, true)) {
            continue;
        }
        Inference__ModelInput *io = nr_config_message(c, &inference__model_input__descriptor);
        if (!io || !(io->name = nr_config_copy(c, from->name)) ||
            !model_dims(c, from, &io->n_dims, &io->dims, &io->reshape)) {
            return nr_config_nomem(err);
        }
        io->data_type = (Inference__DataType)from->dtype;
        io->optional = from->optional != 0;
        pb->input[pb->n_input++] = io;
    }
    return pb->input ? NARU_OK : nr_config_nomem(err);
}

static nr_status complete_outputs(struct nr_model_config *c, const naru_model_info *info,
                                  struct nr_err *err)
{
    Inference__ModelConfig *pb = c->pb;
    pb->output = nr_config_array(c, info->n_outputs, sizeof *pb->output);
    for (uint32_t i = 0; i < info->n_outputs && pb->output; i++) {
        const naru_io *from = &info->outputs[i];
        if (nr_config_is_hidden(pb, from->name, false)) {
            continue;
        }
        Inference__ModelOutput *io = nr_config_message(c, &inference__model_output__descriptor);
        if (!io || !(io->name = nr_config_copy(c, from->name)) ||
            !model_dims(c, from, &io->n_dims, &io->dims, &io->reshape)) {
            return nr_config_nomem(err);
        }
        io->data_type = (Inference__DataType)from->dtype;
        pb->output[pb->n_output++] = io;
    }
    return pb->output ? NARU_OK : nr_config_nomem(err);
}

static nr_status auto_complete(struct nr_model_config *c, const naru_model_info *info,
                               const struct nr_config_opts *opts, struct nr_err *err)
{
    nr_status st = complete_batch(c, info, opts, err);
    if (st == NARU_OK && c->pb->n_input == 0) {
        st = complete_inputs(c, info, err);
    }
    if (st == NARU_OK && c->pb->n_output == 0) {
        st = complete_outputs(c, info, err);
    }
    return st;
}

/* --- defaults --------------------------------------------------------------------------------- */

static bool default_versions(struct nr_model_config *c)
{
    Inference__ModelConfig *pb = c->pb;
    if (!pb->version_policy) {
        pb->version_policy = nr_config_message(c, &inference__model_version_policy__descriptor);
    }
    Inference__ModelVersionPolicy *p = pb->version_policy;
    if (p && p->policy_choice_case == INFERENCE__MODEL_VERSION_POLICY__POLICY_CHOICE__NOT_SET) {
        p->latest = nr_config_message(c, &inference__model_version_policy__latest__descriptor);
        if (!p->latest) {
            return false;
        }
        p->latest->num_versions = 1;
        p->policy_choice_case = INFERENCE__MODEL_VERSION_POLICY__POLICY_CHOICE_LATEST;
    }
    return p != NULL;
}

static bool default_pinned(struct nr_model_config *c,
                           Inference__ModelOptimizationPolicy__PinnedMemoryBuffer **at)
{
    if (!*at) {
        *at = nr_config_message(
            c, &inference__model_optimization_policy__pinned_memory_buffer__descriptor);
        if (*at) {
            (*at)->enable = 1;
        }
    }
    return *at != NULL;
}

static bool default_optimization(struct nr_model_config *c)
{
    Inference__ModelConfig *pb = c->pb;
    if (!pb->optimization) {
        pb->optimization = nr_config_message(c, &inference__model_optimization_policy__descriptor);
    }
    return pb->optimization && default_pinned(c, &pb->optimization->input_pinned_memory) &&
           default_pinned(c, &pb->optimization->output_pinned_memory);
}

static nr_status set_defaults(struct nr_model_config *c, struct nr_err *err)
{
    Inference__ModelConfig *pb = c->pb;
    if (pb->scheduling_choice_case == INFERENCE__MODEL_CONFIG__SCHEDULING_CHOICE_DYNAMIC_BATCHING &&
        pb->dynamic_batching->n_preferred_batch_size == 0 && pb->max_batch_size > 0) {
        int32_t *size = nr_config_array(c, 1, sizeof *size);
        if (!size) {
            return nr_config_nomem(err);
        }
        *size = pb->max_batch_size;
        pb->dynamic_batching->preferred_batch_size = size;
        pb->dynamic_batching->n_preferred_batch_size = 1;
    }
    if (!default_versions(c) || (!c->ensemble && !default_optimization(c)) ||
        !nr_config_default_sequence(c)) {
        return nr_config_nomem(err);
    }
    return c->ensemble ? NARU_OK : nr_config_default_groups(c, err);
}

/* --- derived fields --------------------------------------------------------------------------- */

nr_status nr_config_derive_io(const struct nr_model_config *c, struct nr_io_spec *s,
                              const char *name, int32_t dtype, size_t n_dims, const int64_t *dims,
                              const Inference__ModelTensorReshape *reshape, struct nr_err *err)
{
    uint32_t batch = c->batched;
    s->name = nr_str_from(name);
    s->dtype = dtype;
    s->batched = c->batched;
    s->reshaped = reshape != NULL;
    s->shape[0] = s->backend_shape[0] = -1;
    size_t n_backend = reshape ? reshape->n_shape : n_dims;
    if (n_dims + batch > NARU_MAX_RANK || n_backend + batch > NARU_MAX_RANK) {
        return nr_fail(err, NARU_INVALID, "\"%.100s\" has more than %d dimensions", name,
                       NARU_MAX_RANK);
    }
    s->rank = (uint32_t)n_dims + batch;
    s->backend_rank = (uint32_t)n_backend + batch;
    if (n_dims > 0) {
        memcpy(s->shape + batch, dims, n_dims * sizeof *dims);
    }
    if (n_backend > 0) {
        memcpy(s->backend_shape + batch, reshape ? reshape->shape : dims, n_backend * sizeof *dims);
    }
    bool known = naru_dtype_bytes(dtype) > 0;
    for (size_t i = 0; i < n_dims && known; i++) {
        known = dims[i] >= 0;
    }
    s->row_bytes = -1;
    if (known && !nr_tensor_bytes(dtype, dims, (uint32_t)n_dims, &s->row_bytes)) {
        return nr_fail(err, NARU_TOO_LARGE, "\"%.100s\" of shape %s holds more than 2^63 bytes",
                       name, SHAPE_TEXT(dims, n_dims));
    }
    return NARU_OK;
}

static nr_status derive_sig(struct nr_model_config *c, struct nr_err *err)
{
    const Inference__ModelConfig *pb = c->pb;
    struct nr_io_spec *in = nr_config_array(c, pb->n_input, sizeof *in);
    struct nr_io_spec *out = nr_config_array(c, pb->n_output, sizeof *out);
    const char **labels = nr_config_array(c, pb->n_output, sizeof *labels);
    if (!in || !out || !labels) {
        return nr_config_nomem(err);
    }
    nr_status st = NARU_OK;
    for (size_t i = 0; i < pb->n_input && st == NARU_OK; i++) {
        const Inference__ModelInput *io = pb->input[i];
        in[i].optional = io->optional != 0;
        in[i].ragged = io->allow_ragged_batch != 0;
        st = nr_config_derive_io(c, &in[i], io->name, (int32_t)io->data_type, io->n_dims, io->dims,
                                 io->reshape, err);
    }
    for (size_t i = 0; i < pb->n_output && st == NARU_OK; i++) {
        const Inference__ModelOutput *io = pb->output[i];
        labels[i] = io->label_filename;
        st = nr_config_derive_io(c, &out[i], io->name, (int32_t)io->data_type, io->n_dims, io->dims,
                                 io->reshape, err);
    }
    c->label_files = labels;
    c->sig = (struct nr_signature){.inputs = in,
                                   .outputs = out,
                                   .n_inputs = (unsigned)pb->n_input,
                                   .n_outputs = (unsigned)pb->n_output,
                                   .max_batch_size = pb->max_batch_size};
    return st;
}

static int by_size(const void *a, const void *b)
{
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return (x > y) - (x < y);
}

/* What wait and run of a request should take together. */
static nr_status derive_target(struct nr_model_config *c, struct nr_err *err)
{
    for (uint32_t i = 0; i < c->n_options; i++) {
        const char *text = c->options[i].value;
        double ms;
        if (strcmp(c->options[i].key, NR_CONFIG_LATENCY_TARGET) != 0) {
            continue;
        }
        if (!nr_str_to_double(nr_str_trim(nr_str_from(text)), &ms) || ms < 0.1 || ms > 3.6e6) {
            return nr_fail(err, NARU_INVALID,
                           "parameter \"" NR_CONFIG_LATENCY_TARGET "\" is \"%.64s\"; expected "
                           "milliseconds from 0.1 to 3600000",
                           text);
        }
        c->latency_target_ns = (int64_t)(ms * 1e6);
    }
    return NARU_OK;
}

/* How long a run may last before it counts as stuck. */
static nr_status derive_watchdog(struct nr_model_config *c, struct nr_err *err)
{
    c->watchdog_ns = -1;
    for (uint32_t i = 0; i < c->n_options; i++) {
        const char *text = c->options[i].value;
        uint64_t ms;
        if (strcmp(c->options[i].key, NR_CONFIG_WATCHDOG) != 0) {
            continue;
        }
        if (!nr_str_to_u64(nr_str_trim(nr_str_from(text)), &ms) || ms > 86400000) {
            return nr_fail(err, NARU_INVALID,
                           "parameter \"" NR_CONFIG_WATCHDOG "\" is \"%.64s\"; expected "
                           "milliseconds up to 86400000, 0 for no watchdog",
                           text);
        }
        c->watchdog_ns = (int64_t)ms * INT64_C(1000000);
    }
    return NARU_OK;
}

/* How executions share the cores. */
static nr_status derive_parallelism(struct nr_model_config *c, struct nr_err *err)
{
    static const char *const words[] = {[NR_CONFIG_PARALLEL_AUTO] = "auto",
                                        [NR_CONFIG_PARALLEL_WIDE] = "wide",
                                        [NR_CONFIG_PARALLEL_NARROW] = "narrow"};
    for (uint32_t i = 0; i < c->n_options; i++) {
        const char *text = c->options[i].value;
        unsigned k = 0;
        if (strcmp(c->options[i].key, NR_CONFIG_PARALLELISM) != 0) {
            continue;
        }
        while (k < NR_COUNT(words) && strcmp(words[k], text) != 0) {
            k++;
        }
        if (k == NR_COUNT(words)) {
            return nr_fail(err, NARU_INVALID,
                           "parameter \"" NR_CONFIG_PARALLELISM "\" is \"%.64s\"; expected auto, "
                           "wide or narrow",
                           text);
        }
        c->parallelism = (enum nr_config_parallelism)k;
    }
    return NARU_OK;
}

const int32_t *nr_config_sorted(struct nr_model_config *c, const int32_t *sizes, size_t n)
{
    int32_t *copy = nr_config_array(c, n, sizeof *copy);
    if (copy && n > 0) {
        memcpy(copy, sizes, n * sizeof *copy);
        qsort(copy, n, sizeof *copy, by_size);
    }
    return copy;
}

static struct nr_queue_policy policy_of(const Inference__ModelQueuePolicy *q)
{
    if (!q) {
        return (struct nr_queue_policy){0};
    }
    return (struct nr_queue_policy){
        .allow_override = q->allow_timeout_override != 0,
        .delays = q->timeout_action == INFERENCE__MODEL_QUEUE_POLICY__TIMEOUT_ACTION__DELAY,
        .max_queue_size = q->max_queue_size,
        .default_timeout_ns = nr_config_ns_of_us(q->default_timeout_microseconds)};
}

/* d: NULL without dynamic batching, which alone has policies. */
static nr_status derive_levels(struct nr_model_config *c, const Inference__ModelDynamicBatching *d,
                               struct nr_err *err)
{
    uint64_t n = d ? NR_MAX(d->priority_levels, UINT64_C(1)) : 1;
    if (n > NR_CONFIG_MAX_LEVELS) {
        return nr_fail(err, NARU_INVALID,
                       "dynamic_batching: priority_levels is %llu, at most %d are allowed",
                       (unsigned long long)n, NR_CONFIG_MAX_LEVELS);
    }
    struct nr_queue_policy *levels = nr_config_array(c, n, sizeof *levels);
    if (!levels) {
        return nr_config_nomem(err);
    }
    for (uint64_t i = 0; d && i < n; i++) {
        levels[i] = policy_of(d->default_queue_policy);
    }
    for (size_t i = 0; d && i < d->n_priority_queue_policy; i++) {
        uint64_t level = d->priority_queue_policy[i]->key;
        if (level >= 1 && level <= n) { /* another one is refused by nr_config_check_final */
            levels[level - 1] = policy_of(d->priority_queue_policy[i]->value);
        }
    }
    c->levels = levels;
    c->n_levels = (uint32_t)n;
    c->default_level = d && d->default_priority_level >= 1 && d->default_priority_level <= n
                           ? (uint32_t)d->default_priority_level - 1
                           : 0;
    return NARU_OK;
}

static nr_status derive_batching(struct nr_model_config *c, struct nr_err *err)
{
    const Inference__ModelConfig *pb = c->pb;
    c->response_cache = pb->response_cache && pb->response_cache->enable;
    const Inference__ModelDynamicBatching *d =
        pb->scheduling_choice_case == INFERENCE__MODEL_CONFIG__SCHEDULING_CHOICE_DYNAMIC_BATCHING
            ? pb->dynamic_batching
            : NULL;
    nr_status st = derive_levels(c, d, err);
    if (st != NARU_OK || !d) {
        return st;
    }
    c->dynamic_batching = c->batched;
    c->preserve_ordering = d->preserve_ordering != 0;
    c->eager_batching = c->pb->optimization != NULL && c->pb->optimization->eager_batching;
    c->max_queue_delay_ns = nr_config_ns_of_us(d->max_queue_delay_microseconds);
    c->n_preferred = (uint32_t)NR_MIN(d->n_preferred_batch_size, (size_t)NR_CONFIG_MAX_PREFERRED);
    c->preferred = nr_config_sorted(c, d->preferred_batch_size, d->n_preferred_batch_size);
    return c->preferred ? NARU_OK : nr_config_nomem(err);
}

/* After derive_batching. */
static nr_status derive_strategy(struct nr_model_config *c, struct nr_err *err)
{
    const char *own = NULL;
    for (uint32_t i = 0; i < c->n_options; i++) {
        struct nr_str key = nr_str_from(c->options[i].key);
        if (nr_str_is(key, NR_CONFIG_BATCH_STRATEGY)) {
            c->batch_strategy = c->options[i].value;
        } else if (nr_str_starts(key, NR_STR(NR_CONFIG_BATCH_STRATEGY_PREFIX))) {
            own = key.ptr;
        }
    }
    if (!c->batch_strategy) {
        return own ? nr_fail(err, NARU_INVALID,
                             "parameter \"%.200s\" is for a batching strategy: name it by "
                             "parameter \"" NR_CONFIG_BATCH_STRATEGY "\"",
                             own)
                   : NARU_OK;
    }
    if (!c->dynamic_batching || c->sequence) {
        return nr_fail(err, NARU_INVALID, "parameter \"" NR_CONFIG_BATCH_STRATEGY "\" %s",
                       c->sequence ? "excludes sequence_batching, which forms its own batches"
                                   : "needs dynamic_batching and a max_batch_size above 0");
    }
    return NARU_OK;
}

static nr_status derive(struct nr_model_config *c, const naru_model_info *info, struct nr_err *err)
{
    c->max_batch_size = c->pb->max_batch_size;
    c->batched = c->max_batch_size > 0;
    nr_status st = derive_sig(c, err);
    if (st == NARU_OK) {
        st = nr_config_derive_groups(c, err);
    }
    if (st == NARU_OK) {
        st = derive_target(c, err);
    }
    if (st == NARU_OK) {
        st = derive_watchdog(c, err);
    }
    if (st == NARU_OK) {
        st = derive_parallelism(c, err);
    }
    if (st == NARU_OK) {
        st = nr_config_derive_sequence(c, info, err);
    }
    if (st == NARU_OK) {
        st = derive_batching(c, err);
    }
    return st == NARU_OK ? derive_strategy(c, err) : st;
}

/* --- comparison with the model ---------------------------------------------------------------- */

/* What the plug-in will be given must be what the model takes: equal sizes wherever the model's
 * are fixed. */
static bool fits(const struct nr_io_spec *s, const naru_io *io)
{
    if (s->backend_rank != io->rank) {
        return false;
    }
    for (uint32_t i = 0; i < io->rank; i++) {
        if (io->shape[i] != -1 && io->shape[i] != s->backend_shape[i]) {
            return false;
        }
    }
    return true;
}

static nr_status compare_one(const struct nr_io_spec *s, const char *kind, bool scattered,
                             const naru_io *ios, uint32_t n, uint32_t *ret_index,
                             struct nr_err *err)
{
    char what[400];
    uint32_t at = 0;
    while (at < n && !nr_str_is(s->name, ios[at].name)) {
        at++;
    }
    if (at == n) {
        (void)snprintf(what, sizeof what,
                       "%s \"%.100s\" is configured, but the model has none of "
                       "that name",
                       kind, s->name.ptr);
        return fail_listing(err, what, kind, ios, n);
    }
    if (ios[at].dtype != s->dtype) {
        (void)snprintf(what, sizeof what,
                       "%s \"%.100s\" is configured as %s, but is another type in "
                       "the model",
                       kind, s->name.ptr, naru_dtype_name(s->dtype));
        return fail_listing(err, what, kind, ios, n);
    }
    if (!s->ragged && !scattered && !fits(s, &ios[at])) {
        (void)snprintf(
            what, sizeof what, "%s \"%.100s\" is configured as shape %s%s%s, which does not fit",
            kind, s->name.ptr, SHAPE_TEXT(s->backend_shape, s->backend_rank),
            s->batched ? " (batch dimension in front, for max_batch_size is above 0)" : "",
            s->reshaped ? " after reshape" : "");
        return fail_listing(err, what, kind, ios, n);
    }
    *ret_index = at;
    return NARU_OK;
}

static nr_status compare(struct nr_model_config *c, const naru_model_info *info, struct nr_err *err)
{
    /* Hidden tensors stand behind the clients', so the maps' beginnings are those of sig-> */
    struct nr_sequence_config *seq = (struct nr_sequence_config *)(uintptr_t)c->sequence;
    const struct nr_signature *sig = seq ? &seq->sig : &c->sig;
    uint32_t *in = nr_config_array(c, sig->n_inputs, sizeof *in);
    uint32_t *out = nr_config_array(c, sig->n_outputs, sizeof *out);
    bool *given = nr_config_array(c, info ? info->n_inputs : 0, sizeof *given);
    if (!in || !out || !given) {
        return nr_config_nomem(err);
    }
    nr_status st = NARU_OK;
    for (uint32_t i = 0; i < sig->n_inputs && st == NARU_OK; i++) {
        in[i] = i;
        if (info) {
            st = compare_one(&sig->inputs[i], "input", false, info->inputs, info->n_inputs, &in[i],
                             err);
            if (st == NARU_OK) { /* else in[i] need not be one of the model's */
                given[in[i]] = true;
            }
        }
    }
    for (uint32_t i = 0; i < sig->n_outputs && st == NARU_OK; i++) {
        out[i] = i;
        if (info) {
            st = compare_one(&sig->outputs[i], "output",
                             nr_config_is_scattered(c->pb, sig->outputs[i].name.ptr), info->outputs,
                             info->n_outputs, &out[i], err);
        }
    }
    for (uint32_t i = 0; info && i < info->n_inputs && st == NARU_OK; i++) {
        if (!given[i] && !info->inputs[i].optional &&
            !nr_config_is_made(c->pb, info->inputs[i].name)) {
            char what[256];
            (void)snprintf(what, sizeof what, "input \"%.100s\" of the model is not configured",
                           info->inputs[i].name);
            st = fail_listing(err, what, "input", info->inputs, info->n_inputs);
        }
    }
    c->input_map = in;
    c->output_map = out;
    if (seq) {
        seq->input_map = in;
        seq->output_map = out;
    }
    return st;
}

/* --- the step --------------------------------------------------------------------------------- */

nr_status nr_config_complete(struct nr_model_config *c, const naru_model_info *info,
                             const struct nr_config_opts *opts, struct nr_err *err)
{
    Inference__ModelConfig *pb = c->pb;
    nr_status st = nr_config_list_ignored(c, info, err);
    if (info && (info->flags & NARU_MODEL_IO_UNKNOWN) != 0) {
        info = NULL;
    }
    bool open = pb->n_input == 0 || pb->n_output == 0;
    if (st != NARU_OK) {
        return st;
    }
    if (open && info && opts->auto_complete) {
        st = auto_complete(c, info, opts, err);
    } else if (open &&
               !(info && info->n_inputs == pb->n_input && info->n_outputs == pb->n_output)) {
        st = nr_fail(err, NARU_INVALID,
                     "the configuration lists no %s, and %s: list them, as "
                     "%s [ { name: \"x\" data_type: TYPE_FP32 dims: [ 3 ] } ]",
                     pb->n_input == 0 ? "inputs" : "outputs",
                     info ? "completing it from the model is switched off"
                          : "the backend cannot tell them from the model",
                     pb->n_input == 0 ? "input" : "output");
    }
    if (st == NARU_OK) {
        st = set_defaults(c, err);
    }
    if (st == NARU_OK) {
        st = derive(c, info, err);
    }
    if (st == NARU_OK) {
        st = compare(c, info, err);
    }
    if (st == NARU_OK) {
        st = nr_config_ragged(c, info, err);
    }
    if (st == NARU_OK) {
        st = nr_config_derive_shared(c, info, err);
    }
    if (st == NARU_OK) {
        st = nr_config_check_final(c, err);
    }
    return st;
}
