/* A version's own parts: configuration steps, labels, reference count.
 *
 * DESIGN. Every version has a configuration of its own, since auto-complete reads the version's own
 * files: two versions of a model may differ in shapes. Label files belong to the model, are small,
 * and are read per version for the same reason.
 *
 * INVARIANTS
 *  1. refs is 0 outside READY and UNLOADING; it becomes 1 before anyone can see READY.
 *  2. Who drops refs to 0 hands the version to the repository, which closes it.
 */
#include "model/version.h"

#include "base/mem.h"
#include "io/file.h"
#include "model/config_priv.h"
#include "model/repository_priv.h"
#include "model/stepkind.h"

#define LABELS_MAX_BYTES (64u << 20)

nr_status nr_version_prepare(struct nr_version *v, const char *config_name, struct nr_err *err)
{
    struct nr_config_source src = {
        .name = v->name, .model_fd = v->model_fd, .config_name = config_name};
    nr_status st = nr_config_load(&src, &v->config, err);
    return st == NARU_OK ? nr_config_files(v->config, v->dir_fd, v->bare_file, err) : st;
}

static nr_status load_labels(struct nr_version *v, uint32_t output, struct nr_err *err)
{
    const char *file = v->config->label_files[output];
    nr_autofree char *text = NULL;
    size_t len = 0;
    if (file[0] == '\0') {
        return NARU_OK;
    }
    struct nr_err why = {0};
    nr_status st = v->model_fd < 0
                       ? nr_fail(&why, NARU_INVALID, "a bare file has no folder of labels")
                       : nr_file_read_at(v->model_fd, file, LABELS_MAX_BYTES, &text, &len, &why);
    if (st == NARU_OK) {
        st = nr_labels_parse((struct nr_str){text, len}, &v->labels[output], &why);
    }
    if (st != NARU_OK) {
        return nr_fail(err, st, "label_filename \"%.150s\" of output \"" NR_STR_FMT "\": %.250s",
                       file, NR_STR_ARG(v->config->sig.outputs[output].name), why.text);
    }
    return NARU_OK;
}

/* --- pictures --------------------------------------------------------------------------------- */

static struct nr_image_io *describe_io(const struct nr_io_spec *specs, unsigned n)
{
    struct nr_image_io *io = nr_try_alloc(NR_MAX(n, 1u) * sizeof *io);
    for (unsigned i = 0; i < n && io; i++) {
        unsigned skip = specs[i].batched;
        io[i] = (struct nr_image_io){.name = specs[i].name,
                                     .dtype = specs[i].dtype,
                                     .rank = specs[i].rank - skip,
                                     .dims = specs[i].shape + skip};
    }
    return io;
}

/* Parameters of other parts; one that ends in '.' is a beginning that stands for many. */
static const char *const own_keys[] = {NR_CONFIG_CHECK_SYMBOLS,
                                       NR_CONFIG_LATENCY_TARGET,
                                       NR_CONFIG_PARALLELISM,
                                       NR_CONFIG_BATCH_STRATEGY,
                                       NR_CONFIG_BATCH_STRATEGY_PREFIX,
                                       NR_CONFIG_WATCHDOG,
                                       NR_CONFIG_PRIORITY,
                                       "naru.pin",
                                       "naru.traffic",
                                       "naru.shadow",
                                       "naru.label."};

static bool is_own(struct nr_str key)
{
    bool own = false;
    for (size_t i = 0; i < NR_COUNT(own_keys) && !own; i++) {
        struct nr_str mine = nr_str_from(own_keys[i]);
        own = nr_str_ends(mine, NR_STR(".")) ? nr_str_starts(key, mine) : nr_str_eq(key, mine);
    }
    return own;
}

static const char *nearest_own(struct nr_str key, unsigned *ret_distance)
{
    const char *best = own_keys[0];
    *ret_distance = UINT32_MAX;
    for (size_t i = 0; i < NR_COUNT(own_keys); i++) {
        unsigned distance = nr_str_distance(key, nr_str_from(own_keys[i]));
        if (distance < *ret_distance) {
            *ret_distance = distance;
            best = own_keys[i];
        }
    }
    return best;
}

/* The parameters naru.*, but for those of other parts: a misspelt one of those is refused here, all
 * others by the plan. */
static nr_status list_params(const struct nr_model_config *c, struct nr_image_param *params,
                             size_t *ret_n, struct nr_err *err)
{
    const Inference__ModelConfig *pb = c->pb;
    *ret_n = 0;
    for (size_t i = 0; i < pb->n_parameters; i++) {
        struct nr_str key = nr_str_from(pb->parameters[i]->key);
        if (!nr_str_starts(key, NR_STR("naru.")) || is_own(key) ||
            (c->ensemble && nr_str_starts(key, NR_STR(NR_STEP_PARAM_PREFIX)))) {
            continue;
        }
        unsigned theirs, mine;
        const char *best = nearest_own(key, &mine);
        (void)nr_image_plan_nearest(key, &theirs);
        if (mine < theirs) {
            return nr_fail(err, NARU_INVALID, "unknown parameter \"%.200s\": did you mean \"%s\"?",
                           key.ptr, best);
        }
        params[(*ret_n)++] =
            (struct nr_image_param){key, nr_str_from(pb->parameters[i]->value->string_value)};
    }
    return NARU_OK;
}

/* What the model does with a picture. Parameters that say so must be right; a model without any need
 * not take pictures at all. */
static nr_status plan_picture(struct nr_version *v, struct nr_err *err)
{
    const struct nr_model_config *c = v->config;
    nr_autofree struct nr_image_io *in = describe_io(c->sig.inputs, c->sig.n_inputs);
    nr_autofree struct nr_image_io *out = describe_io(c->sig.outputs, c->sig.n_outputs);
    nr_autofree struct nr_image_param *params =
        nr_try_alloc(NR_MAX(c->pb->n_parameters, (size_t)1) * sizeof *params);
    if (!in || !out || !params) {
        return nr_config_nomem(err);
    }
    struct nr_image_signature sig = {.inputs = in,
                                     .outputs = out,
                                     .n_inputs = c->sig.n_inputs,
                                     .n_outputs = c->sig.n_outputs,
                                     .batches = c->batched};
    for (unsigned i = 0; i < c->sig.n_outputs; i++) {
        sig.has_labels = sig.has_labels || v->labels[i].n_items > 0;
    }
    size_t n = 0;
    nr_status st = list_params(c, params, &n, err);
    struct nr_err why = {0};
    if (st != NARU_OK) {
        return st;
    }
    st = nr_image_plan_parse(params, n, &sig, &v->picture, &why);
    if (st != NARU_OK && n > 0) {
        return nr_fail(err, NARU_INVALID, "%s", why.text);
    }
    if (st != NARU_OK) {
        v->no_picture = nr_config_copy(v->config, why.text);
        return v->no_picture ? NARU_OK : nr_config_nomem(err);
    }
    return NARU_OK;
}

nr_status nr_version_complete(struct nr_version *v, const naru_model_info *info, struct nr_err *err)
{
    nr_status st = nr_config_complete(v->config, info, &v->repository->cfg.config, err);
    if (st != NARU_OK) {
        return st;
    }
    v->labels = nr_try_alloc(NR_MAX(v->config->sig.n_outputs, 1u) * sizeof *v->labels);
    if (!v->labels) {
        return nr_fail(err, NARU_NOMEM, "no memory for the labels");
    }
    for (uint32_t i = 0; i < v->config->sig.n_outputs && st == NARU_OK; i++) {
        st = load_labels(v, i, err);
    }
    return st == NARU_OK ? plan_picture(v, err) : st;
}

void nr_version_clear(struct nr_version *v)
{
    for (uint32_t i = 0; v->labels && i < v->config->sig.n_outputs; i++) {
        nr_labels_done(&v->labels[i]);
    }
    nr_free(v->labels);
    v->labels = NULL;
    nr_image_plan_free(v->picture);
    v->picture = NULL;
    v->no_picture = NULL;
    nr_config_free(v->config);
    v->config = NULL;
    nr_close(v->dir_fd);
    nr_close(v->model_fd);
    v->dir_fd = v->model_fd = -1;
    v->memory_bytes = 0;
}

struct nr_version *nr_version_ref(struct nr_version *v)
{
    /* relaxed: the caller holds one already, so nothing is published by this */
    uint32_t old = atomic_fetch_add_explicit(&v->refs, 1, memory_order_relaxed);
    NR_ASSERT(old > 0);
    return v;
}

void nr_version_unref(struct nr_version *v)
{
    /* release: our use ends before; acquire by the last one: all uses ended before the close */
    if (v && atomic_fetch_sub_explicit(&v->refs, 1, memory_order_acq_rel) == 1) {
        nr_repository_version_idle(v);
    }
}

const char *nr_version_state_text(nr_version_state s)
{
    switch (s) {
    case NR_VERSION_LOADING:
        return "LOADING";
    case NR_VERSION_READY:
        return "READY";
    case NR_VERSION_UNLOADING:
        return "UNLOADING";
    case NR_VERSION_UNAVAILABLE:
        return "UNAVAILABLE";
    case NR_VERSION_UNKNOWN:
        break;
    }
    return "UNKNOWN";
}
