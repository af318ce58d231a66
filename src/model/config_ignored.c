/* Fields of a configuration that are accepted and have no effect.
 *
 * DESIGN. Whoever writes a field expects something of it. What would change results is refused
 * (config_check.c); what changes speed, order or labels only is served, and named here, so that the
 * banner and the log say it. Every field of Triton's message is acted upon, refused or in this file.
 * Of `optimization` the plug-in decides: it is told everything as options and says which it reads.
 *
 * INVARIANTS
 *  1. Only what the file says is looked at, before anything is completed: defaults are no wishes.
 *  2. Each name stands once, so the list has a fixed largest length.
 *
 * Threads: pure functions of the configuration.
 */
#include "base/mem.h"
#include "model/config_priv.h"

#define LIST_BYTES 2048 /* more than all names together */

struct field {
    bool there;
    const char *name;
};

static void list(struct nr_text *t, const struct field *fields, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (fields[i].there) {
            nr_text_fmt(t, "%s%s", t->len > 0 ? ", " : "", fields[i].name);
        }
    }
}

/* Triton's way to name a strategy, whose interface is another one. */
static bool has_strategy_path(const Inference__ModelConfig *pb)
{
    bool found = false;
    for (size_t i = 0; i < pb->n_parameters; i++) {
        found = found || strcmp(pb->parameters[i]->key, "TRITON_BATCH_STRATEGY_PATH") == 0;
    }
    return found;
}

static void list_model(const Inference__ModelConfig *pb, struct nr_text *t)
{
    bool cache = pb->response_cache && pb->response_cache->enable;
    const struct field fields[] = {
        {pb->n_model_warmup > 0 &&
             ((pb->model_transaction_policy && pb->model_transaction_policy->decoupled) ||
              pb->scheduling_choice_case ==
                  INFERENCE__MODEL_CONFIG__SCHEDULING_CHOICE_SEQUENCE_BATCHING ||
              pb->n_batch_input > 0),
         "model_warmup"},
        {has_strategy_path(pb), "TRITON_BATCH_STRATEGY_PATH (see naru.batch_strategy)"},
        {pb->n_metric_tags > 0, "metric_tags"},
        {pb->model_metrics, "model_metrics"},
        {pb->runtime[0] != '\0', "runtime"},
        {pb->n_cc_model_filenames > 0, "cc_model_filenames"},
        {pb->model_operations && pb->model_operations->n_op_library_filename > 0,
         "model_operations"},
        /* it would outlive a member's reload; members keep their own */
        {cache && nr_config_is_ensemble(pb), "response_cache"},
    };
    list(t, fields, NR_COUNT(fields));
}

static void list_sequences(const Inference__ModelSequenceBatching *s, struct nr_text *t)
{
    bool oldest =
        s->strategy_choice_case == INFERENCE__MODEL_SEQUENCE_BATCHING__STRATEGY_CHOICE_OLDEST;
    const struct field fields[] = {
        {oldest && s->oldest->n_preferred_batch_size > NR_CONFIG_MAX_PREFERRED,
         "preferred_batch_size above the 16 smallest"},
    };
    list(t, fields, NR_COUNT(fields));
}

static void list_batching(const Inference__ModelConfig *pb, struct nr_text *t)
{
    if (pb->scheduling_choice_case ==
        INFERENCE__MODEL_CONFIG__SCHEDULING_CHOICE_SEQUENCE_BATCHING) {
        list_sequences(pb->sequence_batching, t);
    }
    if (pb->scheduling_choice_case != INFERENCE__MODEL_CONFIG__SCHEDULING_CHOICE_DYNAMIC_BATCHING) {
        return;
    }
    const Inference__ModelDynamicBatching *d = pb->dynamic_batching;
    _Static_assert(NR_CONFIG_MAX_PREFERRED == 16, "a text below says 16");
    const struct field fields[] = {
        {d->priority_levels == 0 && d->default_priority_level > 0, "default_priority_level"},
        {d->n_preferred_batch_size > NR_CONFIG_MAX_PREFERRED,
         "preferred_batch_size above the 16 smallest"},
    };
    list(t, fields, NR_COUNT(fields));
}

/* Device of a group's instances: -1 the CPU. */
static int64_t device_of(const Inference__ModelInstanceGroup *g)
{
    bool gpu = g->kind == INFERENCE__MODEL_INSTANCE_GROUP__KIND__KIND_GPU ||
               (g->kind == INFERENCE__MODEL_INSTANCE_GROUP__KIND__KIND_AUTO && g->n_gpus > 0);
    return !gpu ? -1 : g->n_gpus > 0 ? g->gpus[0] : 0;
}

static void list_groups(const Inference__ModelConfig *pb, struct nr_text *t)
{
    bool limiter = false, secondary = false, policy = false, profile = false, several = false;
    const Inference__ModelInstanceGroup *first = NULL;
    for (size_t i = 0; i < pb->n_instance_group; i++) {
        const Inference__ModelInstanceGroup *g = pb->instance_group[i];
        limiter = limiter || g->rate_limiter;
        secondary = secondary || g->n_secondary_devices > 0;
        policy = policy || g->host_policy[0] != '\0';
        profile = profile || g->n_profile > 0;
        if (!g->passive) {
            several = several || g->n_gpus > 1 || (first && device_of(g) != device_of(first));
            first = first ? first : g;
        }
    }
    const struct field fields[] = {
        {limiter, "rate_limiter"},
        {secondary, "secondary_devices"},
        {policy, "host_policy"},
        {profile, "profile"},
        {several, "instance_group on more than one device"},
    };
    list(t, fields, NR_COUNT(fields));
}

/* `format` is not here: it tells clients how pictures lie in the input, and they are told. */
static void list_ios(const Inference__ModelConfig *pb, struct nr_text *t)
{
    bool shape_tensor = false, non_linear = false;
    for (size_t i = 0; i < pb->n_input; i++) {
        shape_tensor = shape_tensor || pb->input[i]->is_shape_tensor;
        non_linear = non_linear || pb->input[i]->is_non_linear_format_io;
    }
    for (size_t i = 0; i < pb->n_output; i++) {
        shape_tensor = shape_tensor || pb->output[i]->is_shape_tensor;
        non_linear = non_linear || pb->output[i]->is_non_linear_format_io;
    }
    const struct field fields[] = {
        {shape_tensor, "is_shape_tensor"},
        {non_linear, "is_non_linear_format_io"},
    };
    list(t, fields, NR_COUNT(fields));
}

/* --- optimization ----------------------------------------------------------------------------- */

static bool is_used(const naru_model_info *info, const char *key)
{
    const char *const *used =
        info && NARU_HAS(info, naru_model_info, used_options) ? info->used_options : NULL;
    for (; used && *used; used++) {
        struct nr_str name = nr_str_from(*used), mine = nr_str_from(key);
        if (nr_str_ends(name, NR_STR(".")) ? nr_str_starts(mine, name) : nr_str_eq(mine, name)) {
            return true;
        }
    }
    return false;
}

/* The field that an option was made of: up to the number of a list's entry. */
static struct nr_str field_of(const char *key)
{
    struct nr_str path = nr_str_from(key + sizeof NR_CONFIG_OPT_PREFIX - 1);
    for (size_t i = 0; i + 1 < path.len; i++) {
        if (path.ptr[i] == '.' && path.ptr[i + 1] >= '0' && path.ptr[i + 1] <= '9') {
            path.len = i;
        }
    }
    return path;
}

static void list_optimization(const struct nr_model_config *c, const naru_model_info *info,
                              struct nr_text *t)
{
    const Inference__ModelOptimizationPolicy *o = c->pb->optimization;
    struct nr_str last = {0};
    for (uint32_t i = 0; i < c->n_options; i++) {
        const char *key = c->options[i].key;
        if (!nr_str_starts(nr_str_from(key), NR_STR(NR_CONFIG_OPT_PREFIX)) || is_used(info, key)) {
            continue;
        }
        struct nr_str field = field_of(key); /* options of one field are neighbours */
        if (!nr_str_eq(field, last)) {
            nr_text_fmt(t, "%soptimization." NR_STR_FMT, t->len > 0 ? ", " : "", NR_STR_ARG(field));
        }
        last = field;
    }
    if (!o) {
        return;
    }
    const struct field fields[] = {
        {o->cuda && o->cuda->n_graph_spec > 0, "optimization.cuda.graph_spec"},
        {o->input_pinned_memory, "optimization.input_pinned_memory"},
        {o->output_pinned_memory, "optimization.output_pinned_memory"},
        {o->gather_kernel_buffer_threshold > 0, "optimization.gather_kernel_buffer_threshold"},
    };
    list(t, fields, NR_COUNT(fields));
}

nr_status nr_config_list_ignored(struct nr_model_config *c, const naru_model_info *info,
                                 struct nr_err *err)
{
    struct nr_text t;
    char storage[LIST_BYTES];
    nr_text_init_at(&t, storage, sizeof storage);
    list_model(c->pb, &t);
    list_batching(c->pb, &t);
    list_groups(c->pb, &t);
    list_ios(c->pb, &t);
    list_optimization(c, info, &t);
    NR_DCHECK(!t.failed);
    c->ignored = nr_config_copy(c, t.len > 0 ? storage : "");
    return c->ignored ? NARU_OK : nr_config_nomem(err);
}
