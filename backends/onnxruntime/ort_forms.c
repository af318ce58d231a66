/* One model in several forms (naru_form) over one copy of its weights.
 *
 * Why so: threads and spinning of a session cannot be changed once it is made, and what is fastest depends on
 * who else wants the cores: spinning threads when the model has them for itself, sleeping ones beside others,
 * single-threaded runs side by side with a queue (figures in docs/decisions/0011-adaptive-parallelism.md).
 * So there are several sessions. Their weights would be there several times, since each one optimises the graph
 * for itself, which makes new weights (blocks of convolutions, folded constants). Hence the graph is optimised
 * once, by a session that only writes what it made into memory: the graph in one file, the weights in another.
 * Both are anonymous files that have a name only through /proc/self/fd; the folder of the weights is the one of
 * the graph there, so the name of the second is a number. All sessions that run are made from these files without
 * further optimisation, which takes a hundredth of a second, and read the weights where they lie.
 *
 * What the library copies all the same: operators with a layout of their own (MatMul, Gemm, recurrent ones) pack
 * their weights per session. Where that is more than OWN_PERCENT of the model, and for models without
 * convolutions it is nearly all of it, the model gets one session, made in the usual way.
 *
 * Invariants
 *  1. forms[NARU_FORM_WIDE] is m->session, and there as long as the model.
 *  2. The memory of the store outlives every session that was made from it.
 *
 * Threads: ort_store_open within model_open. ort_model_form one call at a time for a model, beside executions of
 * other forms: the host orders it before and after those of the form itself.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ort.h"

#define OWN_PERCENT 20
#define MAX_WEIGHTS (UINT64_C(2) << 30)
#define NAME_BYTES 16

struct ort_store {
    OrtSessionOptions *options; /* of every session that is made from it, but for threads */
    void *graph, *weights;      /* mapped, read only */
    size_t graph_bytes, weights_bytes;
    char **inputs; /* [n_inputs] of the model as it was */
    size_t n_inputs;
};

/* Models of an old format (IR version 3) list their weights among their inputs. The library leaves them out as
 * long as they have values; optimised away, they are in what it writes as inputs without any. Nobody reads them. */
bool ort_store_has_input(const struct ort_store *s, const char *name)
{
    for (size_t i = 0; i < s->n_inputs; i++) {
        if (strcmp(s->inputs[i], name) == 0) {
            return true;
        }
    }
    return false;
}

static OrtStatus *note_inputs(const struct naru_backend_lib *lib, struct ort_store *store,
                              const OrtSession *session)
{
    const OrtApi *a = lib->api;
    size_t n = 0;
    OrtStatus *s = a->SessionGetInputCount(session, &n);
    store->inputs = s ? NULL : calloc(n + 1, sizeof *store->inputs);
    while (!s && store->inputs && store->n_inputs < n) {
        char *name = NULL;
        s = a->SessionGetInputName(session, store->n_inputs, lib->allocator, &name);
        char *copy = s ? NULL : strdup(name);
        s = s ? s : a->AllocatorFree(lib->allocator, name);
        if (!copy) {
            break; /* an input that is missing is found out by the caller */
        }
        store->inputs[store->n_inputs++] = copy;
    }
    if (!s && store->n_inputs < n) {
        s = a->CreateStatus(ORT_FAIL, "out of memory");
    }
    return s;
}

bool ort_store_wanted(const struct naru_backend_lib *lib, const naru_model_args *args,
                      const struct ort_graph *graph)
{
    int on = 1;
    char none[1];
    naru_text err = {.struct_size = sizeof err, .capacity = sizeof none, .data = none};
    if (!ort_options_elastic(lib, args, graph) || !graph->known || graph->control_flow ||
        !graph->convolves || graph->weight_bytes > MAX_WEIGHTS || lib->shared_arena) {
        return false;
    }
    naru_status st =
        naru_option_bool(args->options, args->n_options, "enable_mem_arena", &on, &err);
    return st == NARU_OK && on; /* without an arena nobody can tell what a session copies */
}

void ort_store_free(const struct naru_backend_lib *lib, struct ort_store *s)
{
    if (!s) {
        return;
    }
    if (s->options) {
        lib->api->ReleaseSessionOptions(s->options);
    }
    for (size_t i = 0; i < s->n_inputs; i++) {
        free(s->inputs[i]);
    }
    free(s->inputs);
    if (s->graph) {
        munmap(s->graph, s->graph_bytes);
    }
    if (s->weights) {
        munmap(s->weights, s->weights_bytes);
    }
    free(s);
}

uint64_t ort_store_bytes(const struct ort_store *s)
{
    return s ? s->graph_bytes + s->weights_bytes : 0;
}

/* Takes the file over: it lives as long as the mapping. NULL, *bytes 0: it is empty, or there is no room. */
static void *map_file(int fd, size_t *bytes)
{
    struct stat st;
    void *at = MAP_FAILED;
    *bytes = 0;
    if (fstat(fd, &st) == 0 && st.st_size > 0) {
        at = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0);
    }
    if (at == MAP_FAILED) {
        return NULL;
    }
    *bytes = (size_t)st.st_size;
    return at;
}

/* A session that optimises the model and writes it down; it never runs. */
static OrtStatus *save(struct naru_backend_lib *lib, struct ort_store *store, const char *path,
                       OrtSessionOptions *so, int graph_fd, const char *weights_name)
{
    const OrtApi *a = lib->api;
    char graph[64];
    OrtSession *session = NULL;
    (void)snprintf(graph, sizeof graph, "/proc/self/fd/%d", graph_fd);
    OrtStatus *s = a->DisablePerSessionThreads(so);
    s = s ? s : a->SetOptimizedModelFilePath(so, graph);
    s = s ? s
          : a->AddSessionConfigEntry(so, "session.optimized_model_external_initializers_file_name",
                                     weights_name);
    s = s ? s : a->AddSessionConfigEntry(so, "session.disable_prepacking", "1");
    s = s ? s : a->CreateSession(lib->env, path, so, &session);
    s = s ? s : note_inputs(lib, store, session);
    if (session) {
        a->ReleaseSession(session);
    }
    return s;
}

static naru_status make_options(struct naru_backend_lib *lib, const naru_model_args *args,
                                struct ort_store *store, const char *weights_name, naru_text *err)
{
    const OrtApi *a = lib->api;
    const char *names[] = {weights_name};
    char *buffers[] = {store->weights};
    const size_t bytes[] = {store->weights_bytes};
    naru_status st = ort_options_plain(lib, args, false, &store->options, err);
    if (st != NARU_OK) {
        return st;
    }
    OrtStatus *s = a->AddSessionConfigEntry(
        store->options, "session.use_external_initializer_file_buffers_directly", "1");
    if (!s && store->weights) {
        s = a->AddExternalInitializersFromFilesInMemory(store->options, names, buffers, bytes, 1);
    }
    return ort_status(lib, s, NULL, 0, err);
}

naru_status ort_store_open(struct naru_backend_lib *lib, const naru_model_args *args,
                           const char *path, struct ort_store **ret, naru_text *err)
{
    struct ort_store *store = calloc(1, sizeof *store);
    OrtSessionOptions *so = NULL;
    char name[NAME_BYTES];
    int graph = memfd_create("naru-graph", MFD_CLOEXEC);
    int weights = memfd_create("naru-weights", MFD_CLOEXEC);
    naru_status st = store && graph >= 0 && weights >= 0 ? NARU_OK : NARU_NOMEM;
    (void)snprintf(name, sizeof name, "%d", weights);
    if (st == NARU_OK) {
        st = ort_options_plain(lib, args, true, &so, err);
    }
    if (st == NARU_OK) {
        ort_books_begin(lib->books);
        st = ort_status(lib, save(lib, store, path, so, graph, name), NULL, 0, err);
        ort_books_end(lib->books);
    }
    if (st == NARU_OK) {
        store->graph = map_file(graph, &store->graph_bytes);
        store->weights = map_file(weights, &store->weights_bytes);
        st = store->graph ? make_options(lib, args, store, name, err) : NARU_NOMEM;
    }
    if (so) {
        lib->api->ReleaseSessionOptions(so);
    }
    if (graph >= 0) {
        close(graph);
    }
    if (weights >= 0) {
        close(weights);
    }
    if (st != NARU_OK) {
        ort_store_free(lib, store);
        return st;
    }
    *ret = store;
    return NARU_OK;
}

OrtStatus *ort_store_options(const struct naru_backend_lib *lib, const struct ort_store *store,
                             OrtSessionOptions **ret)
{
    return lib->api->CloneSessionOptions(store->options, ret);
}

OrtStatus *ort_store_session(const struct naru_backend_lib *lib, const struct ort_store *store,
                             const OrtSessionOptions *so, OrtSession **ret)
{
    return lib->api->CreateSessionFromArray(lib->env, store->graph, store->graph_bytes, so, ret);
}

bool ort_store_shares(const naru_backend_model *m, uint64_t own_bytes)
{
    uint64_t all = ort_store_bytes(m->store) + own_bytes;
    return own_bytes <= all * OWN_PERCENT / 100;
}

/* Threads that sleep when they wait, and twice as many as cores: the kernel shares the cores by threads that want
 * them, so beside others more threads get more, and who waits for one that was interrupted has others. */
static OrtStatus *set_quiet(struct naru_backend_lib *lib, OrtSessionOptions *so)
{
    const OrtApi *a = lib->api;
    OrtStatus *s = a->SetIntraOpNumThreads(so, 2 * lib->cores);
    s = s ? s : a->AddSessionConfigEntry(so, "session.intra_op.allow_spinning", "0");
    return s ? s : ort_spawner_use(lib->spawner, a, so);
}

naru_status ort_model_form(naru_backend_model *model, uint32_t form, int32_t want, naru_text *err)
{
    struct naru_backend_lib *lib = model->lib;
    const OrtApi *a = lib->api;
    if (form == NARU_FORM_WIDE || form >= NARU_FORMS) {
        return naru_fail(err, NARU_INVALID, "form %u can neither be made nor dropped", form);
    }
    if (!want) {
        ort_books_form_remove(model, form);
        return NARU_OK;
    }
    if (!model->store) {
        return naru_fail(
            err, NARU_UNSUPPORTED,
            model->threads.elastic
                ? "its operators pack their weights in each session: another session "
                  "would hold them once more"
                : "its threads are fixed, by its configuration or since it computes too little");
    }
    if (model->forms[form]) {
        return NARU_OK;
    }
    OrtSessionOptions *so = NULL;
    OrtStatus *s = ort_store_options(lib, model->store, &so);
    s = s ? s : (form == NARU_FORM_QUIET ? set_quiet(lib, so) : a->SetIntraOpNumThreads(so, 1));
    s = s ? s : ort_books_form_create(model, form, so);
    if (so) {
        a->ReleaseSessionOptions(so);
    }
    return ort_status(lib, s, NULL, 0, err);
}
