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
#include "model/repository_priv.h"

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
    return st;
}

void nr_version_clear(struct nr_version *v)
{
    for (uint32_t i = 0; v->labels && i < v->config->sig.n_outputs; i++) {
        nr_labels_done(&v->labels[i]);
    }
    nr_free(v->labels);
    v->labels = NULL;
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
