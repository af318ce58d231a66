/* Rules of a configuration, with texts that say which field is wrong and what is allowed.
 *
 * DESIGN. Two passes: what the text alone can break is refused before any file is opened
 * (nr_config_check); what depends on the completed configuration comes after
 * (nr_config_check_final). Features that would change results if they were passed over are refused
 * as unsupported; those that only change speed or order are accepted, have no effect, and are listed
 * (config_ignored.c).
 *
 * Threads: pure functions of the configuration.
 */
#include "model/config_priv.h"

#include "host/agent.h"
#include "io/file.h"
#include "naru/tensor.h"

/* One input or output, whichever: the two message types have the checked fields in common. */
struct io_view {
    const char *kind; /* "input" */
    size_t index;
    const char *name;
    int32_t dtype;
    size_t rank;
    const int64_t *dims;
    const Inference__ModelTensorReshape *reshape;
};

static struct io_view view_input(const Inference__ModelConfig *pb, size_t i)
{
    const Inference__ModelInput *io = pb->input[i];
    return (struct io_view){"input",    i,        io->name,   (int32_t)io->data_type,
                            io->n_dims, io->dims, io->reshape};
}

static struct io_view view_output(const Inference__ModelConfig *pb, size_t i)
{
    const Inference__ModelOutput *io = pb->output[i];
    return (struct io_view){"output",   i,        io->name,   (int32_t)io->data_type,
                            io->n_dims, io->dims, io->reshape};
}

static nr_status check_dims(const struct io_view *v, const char *field, const int64_t *dims,
                            size_t rank, struct nr_err *err)
{
    if (rank > NARU_MAX_RANK - 1) {
        return nr_fail(err, NARU_INVALID,
                       "%s \"%.100s\": %s has %zu entries, at most %d are allowed", v->kind,
                       v->name, field, rank, NARU_MAX_RANK - 1);
    }
    for (size_t i = 0; i < rank; i++) {
        if ((dims[i] < 1 && dims[i] != -1) || dims[i] > NR_DIM_MAX) {
            return nr_fail(err, NARU_INVALID,
                           "%s \"%.100s\": %s %s has %lld: a dimension is from 1 to %d, or -1 for "
                           "any size",
                           v->kind, v->name, field, SHAPE_TEXT(dims, rank), (long long)dims[i],
                           NR_DIM_MAX);
        }
    }
    return NARU_OK;
}

/* Product of the run of known entries that starts at *i; leaves *i at a -1 or at the end.
 * UINT64_MAX on overflow. */
static uint64_t segment(const int64_t *dims, size_t rank, size_t *i)
{
    uint64_t product = 1;
    for (; *i < rank && dims[*i] != -1; (*i)++) {
        if (__builtin_mul_overflow(product, (uint64_t)dims[*i], &product)) {
            product = UINT64_MAX;
        }
    }
    return product;
}

/* Same element count: equally many wildcards, and equal products between them. */
static bool same_elements(const int64_t *a, size_t a_rank, const int64_t *b, size_t b_rank)
{
    size_t i = 0, k = 0;
    for (;;) {
        uint64_t x = segment(a, a_rank, &i);
        uint64_t y = segment(b, b_rank, &k);
        if (x != y || x == UINT64_MAX || (i < a_rank) != (k < b_rank)) {
            return false;
        }
        if (i == a_rank) {
            return true;
        }
        i++;
        k++;
    }
}

static nr_status check_io(const struct nr_model_config *c, const struct io_view *v,
                          struct nr_err *err)
{
    if (v->name[0] == '\0') {
        return nr_fail(err, NARU_INVALID, "%s number %zu has no name", v->kind, v->index + 1);
    }
    if (v->dtype == NARU_DTYPE_NONE) {
        return nr_fail(err, NARU_INVALID, "%s \"%.100s\" has no data_type: give one, as TYPE_FP32",
                       v->kind, v->name);
    }
    if (v->rank == 0) {
        return nr_fail(err, NARU_INVALID,
                       "%s \"%.100s\" has no dims: give its shape%s, as dims: [ 3, -1 ]", v->kind,
                       v->name, c->pb->max_batch_size > 0 ? " without the batch dimension" : "");
    }
    nr_status st = check_dims(v, "dims", v->dims, v->rank, err);
    const Inference__ModelTensorReshape *r = v->reshape;
    if (st != NARU_OK || !r) {
        return st;
    }
    st = check_dims(v, "reshape", r->shape, r->n_shape, err);
    if (st != NARU_OK) {
        return st;
    }
    if (!same_elements(v->dims, v->rank, r->shape, r->n_shape)) {
        return nr_fail(err, NARU_INVALID,
                       "%s \"%.100s\": reshape %s does not hold as many elements as dims %s",
                       v->kind, v->name, SHAPE_TEXT(r->shape, r->n_shape),
                       SHAPE_TEXT(v->dims, v->rank));
    }
    if (r->n_shape == 0 && c->gave_batch && c->pb->max_batch_size == 0) {
        return nr_fail(
            err, NARU_INVALID,
            "%s \"%.100s\": an empty reshape needs a batch dimension, but max_batch_size "
            "is 0",
            v->kind, v->name);
    }
    return NARU_OK;
}

static nr_status check_all_io(const struct nr_model_config *c, struct nr_err *err)
{
    const Inference__ModelConfig *pb = c->pb;
    for (int side = 0; side < 2; side++) {
        size_t n = side ? pb->n_output : pb->n_input;
        if (n > 4096) {
            return nr_fail(err, NARU_TOO_LARGE, "%zu %s are listed, at most 4096 are allowed", n,
                           side ? "outputs" : "inputs");
        }
        for (size_t i = 0; i < n; i++) {
            struct io_view v = side ? view_output(pb, i) : view_input(pb, i);
            nr_status st = check_io(c, &v, err);
            if (st != NARU_OK) {
                return st;
            }
            for (size_t k = 0; k < i; k++) {
                struct io_view w = side ? view_output(pb, k) : view_input(pb, k);
                if (strcmp(v.name, w.name) == 0) {
                    return nr_fail(err, NARU_INVALID, "%s \"%.100s\" is listed twice", v.kind,
                                   v.name);
                }
            }
        }
    }
    return NARU_OK;
}

/* --- features --------------------------------------------------------------------------------- */

/* The names become parts of file names, naru-agent-<name>.so. */
static nr_status check_agents(const Inference__ModelConfig *pb, struct nr_err *err)
{
    const Inference__ModelRepositoryAgents *list = pb->model_repository_agents;
    size_t n = list ? list->n_agents : 0;
    if (n > NR_AGENTS_MAX_CHAIN) {
        return nr_fail(err, NARU_INVALID,
                       "model_repository_agents lists %zu agents, at most %d are allowed", n,
                       NR_AGENTS_MAX_CHAIN);
    }
    for (size_t i = 0; i < n; i++) {
        const Inference__ModelRepositoryAgents__Agent *a = list->agents[i];
        if (!nr_name_valid(nr_str_from(a->name))) {
            return nr_fail(err, NARU_INVALID,
                           "model_repository_agents: \"%.100s\" is no name of an agent: letters, "
                           "digits, '.', '_' and '-' are allowed",
                           a->name);
        }
        if (a->n_parameters > NR_AGENTS_MAX_OPTIONS) {
            return nr_fail(err, NARU_INVALID,
                           "model_repository_agents: agent \"%s\" has %zu parameters, at most %d "
                           "are allowed",
                           a->name, a->n_parameters, NR_AGENTS_MAX_OPTIONS);
        }
    }
    return NARU_OK;
}

static nr_status check_platform(const Inference__ModelConfig *pb, struct nr_err *err)
{
    bool ensemble = strcmp(pb->platform, "ensemble") == 0;
    if (ensemble != nr_config_is_ensemble(pb)) {
        return ensemble
                   ? nr_fail(err, NARU_INVALID,
                             "platform \"ensemble\" needs ensemble_scheduling with its steps")
                   : nr_fail(err, NARU_INVALID, "ensemble_scheduling needs platform: \"ensemble\"");
    }
    if (ensemble || pb->platform[0] == '\0') {
        return NARU_OK;
    }
    const char *backend = nr_config_platform_backend(pb->platform);
    if (!backend) {
        return nr_fail(err, NARU_INVALID,
                       "unknown platform \"%.100s\": leave it out and give backend instead "
                       "(\"onnxruntime\", …)",
                       pb->platform);
    }
    if (pb->backend[0] != '\0' && strcmp(pb->backend, backend) != 0) {
        return nr_fail(err, NARU_INVALID,
                       "platform \"%s\" belongs to backend \"%s\", but backend says \"%.100s\": "
                       "leave one of them out",
                       pb->platform, backend, pb->backend);
    }
    return NARU_OK;
}

static nr_status check_groups(const Inference__ModelConfig *pb, struct nr_err *err)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < pb->n_instance_group; i++) {
        const Inference__ModelInstanceGroup *g = pb->instance_group[i];
        if (g->count < 0) {
            return nr_fail(err, NARU_INVALID, "instance_group: count must be 1 or more, found %d",
                           g->count);
        }
        if (g->kind == INFERENCE__MODEL_INSTANCE_GROUP__KIND__KIND_CPU && g->n_gpus > 0) {
            return nr_fail(err, NARU_INVALID, "instance_group: KIND_CPU takes no gpus");
        }
        for (size_t k = 0; k < g->n_gpus; k++) {
            if (g->gpus[k] < 0) {
                return nr_fail(err, NARU_INVALID, "instance_group: gpus has %d", g->gpus[k]);
            }
        }
        sum += (uint64_t)NR_MAX(g->count, 1) * NR_MAX(g->n_gpus, (size_t)1);
    }
    if (sum > NR_CONFIG_MAX_INSTANCES) {
        return nr_fail(err, NARU_INVALID,
                       "instance_group asks for %llu instances, at most %d are allowed",
                       (unsigned long long)sum, NR_CONFIG_MAX_INSTANCES);
    }
    return NARU_OK;
}

static nr_status check_parameters(const Inference__ModelConfig *pb, struct nr_err *err)
{
    for (size_t i = 0; i < pb->n_parameters; i++) {
        if (nr_str_starts(nr_str_from(pb->parameters[i]->key), NR_STR(NR_CONFIG_OPT_PREFIX))) {
            return nr_fail(err, NARU_INVALID,
                           "parameter \"%.200s\": names that begin with \"" NR_CONFIG_OPT_PREFIX
                           "\" are reserved; say it by optimization { … }",
                           pb->parameters[i]->key);
        }
    }
    return NARU_OK;
}

static nr_status check_versions(const Inference__ModelVersionPolicy *policy, struct nr_err *err)
{
    if (!policy) {
        return NARU_OK;
    }
    if (policy->policy_choice_case == INFERENCE__MODEL_VERSION_POLICY__POLICY_CHOICE_LATEST &&
        policy->latest->num_versions == 0) {
        return nr_fail(err, NARU_INVALID, "version_policy: latest needs num_versions of 1 or more");
    }
    if (policy->policy_choice_case == INFERENCE__MODEL_VERSION_POLICY__POLICY_CHOICE_SPECIFIC) {
        if (policy->specific->n_versions == 0) {
            return nr_fail(err, NARU_INVALID, "version_policy: specific lists no versions");
        }
        for (size_t i = 0; i < policy->specific->n_versions; i++) {
            if (policy->specific->versions[i] < 1) {
                return nr_fail(err, NARU_INVALID,
                               "version_policy: specific has %lld, versions are numbers from 1 on",
                               (long long)policy->specific->versions[i]);
            }
        }
    }
    return NARU_OK;
}

nr_status nr_config_check(const struct nr_model_config *c, struct nr_err *err)
{
    const Inference__ModelConfig *pb = c->pb;
    if (pb->max_batch_size < 0 || pb->max_batch_size > NR_CONFIG_MAX_BATCH) {
        return nr_fail(err, NARU_INVALID, "max_batch_size must be from 0 to %d, found %d",
                       NR_CONFIG_MAX_BATCH, pb->max_batch_size);
    }
    nr_status st = check_agents(pb, err);
    if (st == NARU_OK) {
        st = check_platform(pb, err);
    }
    /* the backend becomes part of a file name, naru-<backend>.so */
    if (st == NARU_OK && pb->backend[0] != '\0' && !nr_name_valid(nr_str_from(pb->backend))) {
        st = nr_fail(err, NARU_INVALID,
                     "backend \"%.100s\" is no name: letters, digits, '.', '_' and '-' are allowed",
                     pb->backend);
    }
    if (st == NARU_OK) {
        st = check_all_io(c, err);
    }
    if (st == NARU_OK) {
        st = check_groups(pb, err);
    }
    if (st == NARU_OK) {
        st = check_parameters(pb, err);
    }
    if (st == NARU_OK) {
        st = nr_config_check_sequence(c, err);
    }
    return st == NARU_OK ? check_versions(pb->version_policy, err) : st;
}

/* --- after completion ------------------------------------------------------------------------- */

static bool delays(const Inference__ModelQueuePolicy *q)
{
    return q && q->timeout_action == INFERENCE__MODEL_QUEUE_POLICY__TIMEOUT_ACTION__DELAY;
}

static nr_status check_levels(const Inference__ModelDynamicBatching *d, struct nr_err *err)
{
    if (d->priority_levels > 0 &&
        (d->default_priority_level < 1 || d->default_priority_level > d->priority_levels)) {
        return nr_fail(
            err, NARU_INVALID,
            "dynamic_batching: default_priority_level must be from 1 to priority_levels, "
            "which is %llu; found %llu",
            (unsigned long long)d->priority_levels, (unsigned long long)d->default_priority_level);
    }
    bool delay = delays(d->default_queue_policy);
    for (size_t i = 0; i < d->n_priority_queue_policy; i++) {
        uint64_t level = d->priority_queue_policy[i]->key;
        if (level < 1 || level > d->priority_levels) {
            return nr_fail(err, NARU_INVALID,
                           "dynamic_batching: priority_queue_policy is for level %llu, but "
                           "priority_levels is %llu",
                           (unsigned long long)level, (unsigned long long)d->priority_levels);
        }
        delay = delay || delays(d->priority_queue_policy[i]->value);
    }
    if (d->preserve_ordering && (d->priority_levels > 1 || delay)) {
        return nr_fail(err, NARU_INVALID, "dynamic_batching: preserve_ordering excludes %s",
                       delay ? "timeout_action DELAY" : "more than one priority level");
    }
    return NARU_OK;
}

static nr_status check_batching(const Inference__ModelConfig *pb, struct nr_err *err)
{
    if (pb->scheduling_choice_case != INFERENCE__MODEL_CONFIG__SCHEDULING_CHOICE_DYNAMIC_BATCHING) {
        return NARU_OK;
    }
    const Inference__ModelDynamicBatching *d = pb->dynamic_batching;
    for (size_t i = 0; i < d->n_preferred_batch_size; i++) {
        int32_t size = d->preferred_batch_size[i];
        if (size < 1 || size > pb->max_batch_size) {
            return nr_fail(err, NARU_INVALID,
                           "dynamic_batching: preferred_batch_size has %d, allowed is 1 to "
                           "max_batch_size, which is %d",
                           size, pb->max_batch_size);
        }
    }
    if (d->max_queue_delay_microseconds > UINT64_C(3600) * 1000000) {
        return nr_fail(err, NARU_INVALID,
                       "dynamic_batching: max_queue_delay_microseconds is above an hour");
    }
    if (d->preserve_ordering && pb->model_transaction_policy &&
        pb->model_transaction_policy->decoupled) {
        return nr_fail(err, NARU_INVALID,
                       "dynamic_batching: preserve_ordering excludes decoupled: the responses of a "
                       "decoupled model leave as they are made");
    }
    return check_levels(d, err);
}

static nr_status check_warmup_input(const struct nr_model_config *c,
                                    const Inference__ModelWarmup *w, const char *name,
                                    const Inference__ModelWarmup__Input *in, struct nr_err *err)
{
    const struct nr_io_spec *spec = NULL;
    for (unsigned i = 0; i < c->sig.n_inputs && !spec; i++) {
        spec = nr_str_is(c->sig.inputs[i].name, name) ? &c->sig.inputs[i] : NULL;
    }
    if (!spec) {
        return nr_fail(err, NARU_INVALID,
                       "model_warmup \"%.60s\": the model has no input \"%.100s\"", w->name, name);
    }
    if ((int32_t)in->data_type != spec->dtype) {
        return nr_fail(err, NARU_INVALID, "model_warmup \"%.60s\": input \"%.100s\" is %s", w->name,
                       name, naru_dtype_name(spec->dtype));
    }
    const int64_t *dims = spec->shape + spec->batched;
    size_t rank = spec->rank - spec->batched;
    bool fits = in->n_dims == rank;
    for (size_t i = 0; i < rank && fits; i++) {
        fits = in->dims[i] >= 1 && (dims[i] == -1 || dims[i] == in->dims[i]);
    }
    if (!fits) {
        return nr_fail(err, NARU_INVALID,
                       "model_warmup \"%.60s\": input \"%.100s\" has dims %s, the model takes %s",
                       w->name, name, SHAPE_TEXT(in->dims, in->n_dims), SHAPE_TEXT(dims, rank));
    }
    if (in->input_data_type_case == INFERENCE__MODEL_WARMUP__INPUT__INPUT_DATA_TYPE__NOT_SET) {
        return nr_fail(err, NARU_INVALID,
                       "model_warmup \"%.60s\": input \"%.100s\" needs zero_data, random_data or "
                       "input_data_file",
                       w->name, name);
    }
    return NARU_OK;
}

static nr_status check_warmup(const struct nr_model_config *c, const Inference__ModelWarmup *w,
                              struct nr_err *err)
{
    if (w->name[0] == '\0') {
        return nr_fail(err, NARU_INVALID, "a model_warmup has no name");
    }
    if (w->batch_size > (uint32_t)NR_MAX(c->pb->max_batch_size, 1)) {
        return nr_fail(err, NARU_INVALID, "model_warmup \"%.60s\": batch_size %u is above %d",
                       w->name, w->batch_size, NR_MAX(c->pb->max_batch_size, 1));
    }
    for (size_t i = 0; i < w->n_inputs; i++) {
        nr_status st = check_warmup_input(c, w, w->inputs[i]->key, w->inputs[i]->value, err);
        if (st != NARU_OK) {
            return st;
        }
    }
    for (unsigned i = 0; i < c->sig.n_inputs; i++) {
        bool there = c->sig.inputs[i].optional;
        for (size_t k = 0; k < w->n_inputs && !there; k++) {
            there = nr_str_is(c->sig.inputs[i].name, w->inputs[k]->key);
        }
        if (!there) {
            return nr_fail(err, NARU_INVALID,
                           "model_warmup \"%.60s\": input \"" NR_STR_FMT "\" is missing", w->name,
                           NR_STR_ARG(c->sig.inputs[i].name));
        }
    }
    return NARU_OK;
}

nr_status nr_config_check_final(const struct nr_model_config *c, struct nr_err *err)
{
    const Inference__ModelConfig *pb = c->pb;
    bool sequence =
        pb->scheduling_choice_case == INFERENCE__MODEL_CONFIG__SCHEDULING_CHOICE_SEQUENCE_BATCHING;
    if (pb->response_cache && pb->response_cache->enable && (sequence || c->decoupled)) {
        return nr_fail(
            err, NARU_INVALID,
            "response_cache cannot be enabled for a model with %s: its answers depend on "
            "more than the inputs",
            sequence ? "sequence_batching" : "decoupled responses");
    }
    nr_status st = check_batching(c->pb, err);
    for (size_t i = 0; i < c->pb->n_model_warmup && st == NARU_OK; i++) {
        st = check_warmup(c, c->pb->model_warmup[i], err);
    }
    return st;
}
