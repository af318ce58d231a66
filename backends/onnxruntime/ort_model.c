/* A model: one session, shared by all instances, and its inputs and outputs as the host sees them.
 *
 * Why so: the session is made exactly once, also when the configuration is completed from it.
 * The file is opened beneath the directory descriptor that the host gave (/proc/self/fd/N/…), so
 * that a directory that is swapped meanwhile cannot lead elsewhere, and weights in files beside the
 * model are found by ONNX Runtime relative to it. Outputs that are no tensors (maps of scikit-learn
 * classifiers) are left out, as long as one tensor remains.
 *
 * Invariants
 *  1. info.inputs and info.outputs are in the order of ins and outs; tensors of a batch refer to
 *     them by naru_tensor::index.
 *  2. A model that fails to open gives back its charge of pool threads.
 *
 * Threads: read only after ort_model_open, but for forms (ort_forms.c). Several models may be opened at once.
 */
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ort.h"

#define MAX_IO 4096

static int32_t dtype_of(ONNXTensorElementDataType type)
{
    switch (type) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT:
        return NARU_FP32;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8:
        return NARU_UINT8;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8:
        return NARU_INT8;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT16:
        return NARU_UINT16;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT16:
        return NARU_INT16;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32:
        return NARU_INT32;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64:
        return NARU_INT64;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_STRING:
        return NARU_BYTES;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL:
        return NARU_BOOL;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16:
        return NARU_FP16;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE:
        return NARU_FP64;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT32:
        return NARU_UINT32;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT64:
        return NARU_UINT64;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16:
        return NARU_BF16;
    default:
        return NARU_DTYPE_NONE;
    }
}

/* Exporters write "?", "-1" or "None" where they have no name: nothing follows from two of those. */
static bool is_symbol(const char *name)
{
    const char *p = name;
    while (*p && *p != '_' && !(*p >= 'a' && *p <= 'z') && !(*p >= 'A' && *p <= 'Z')) {
        p++;
    }
    return *p && strcmp(name, "None") != 0;
}

/* Names of the dimensions of an input that vary, into symbols[rank]. */
static naru_status read_symbols(const struct naru_backend_lib *lib,
                                const OrtTensorTypeAndShapeInfo *tensor, size_t rank,
                                const int64_t *dims, char **symbols, naru_text *err)
{
    const char *names[NARU_MAX_RANK] = {0};
    naru_status st =
        ort_status(lib, lib->api->GetSymbolicDimensions(tensor, names, rank), NULL, 0, err);
    for (size_t d = 0; d < rank && st == NARU_OK; d++) {
        if (dims[d] < 0 && names[d] && is_symbol(names[d])) {
            symbols[d] = strdup(names[d]);
            st = symbols[d] ? NARU_OK : NARU_NOMEM;
        }
    }
    return st;
}

/* Name, type and shape of one input or output. *skip is set for an output that is no tensor, and for a weight
 * among the inputs. */
static naru_status read_io(naru_backend_model *m, bool input, size_t i, struct ort_value_io *io,
                           int64_t *dims, bool *skip, naru_text *err)
{
    const struct naru_backend_lib *lib = m->lib;
    const OrtApi *a = lib->api;
    char *name = NULL;
    OrtStatus *s = input ? a->SessionGetInputName(m->session, i, lib->allocator, &name)
                         : a->SessionGetOutputName(m->session, i, lib->allocator, &name);
    if (s) {
        return ort_status(lib, s, NULL, 0, err);
    }
    io->name = name; /* the library's memory, given back by io_release */
    if (input && m->store && !ort_store_has_input(m->store, name)) {
        *skip = true;
        return NARU_OK;
    }
    OrtTypeInfo *info = NULL;
    s = input ? a->SessionGetInputTypeInfo(m->session, i, &info)
              : a->SessionGetOutputTypeInfo(m->session, i, &info);
    const OrtTensorTypeAndShapeInfo *tensor = NULL;
    size_t rank = 0;
    s = s ? s : a->CastTypeInfoToTensorInfo(info, &tensor);
    if (!s && tensor) {
        s = a->GetTensorElementType(tensor, &io->type);
        s = s ? s : a->GetDimensionsCount(tensor, &rank);
        if (!s && rank <= NARU_MAX_RANK) {
            s = a->GetDimensions(tensor, dims, rank);
        }
    }
    naru_status st = ort_status(lib, s, NULL, 0, err);
    if (st == NARU_OK && tensor && input && rank <= NARU_MAX_RANK) {
        st = read_symbols(lib, tensor, rank, dims, m->symbols + (io - m->ins) * NARU_MAX_RANK, err);
    }
    if (info) {
        a->ReleaseTypeInfo(info);
    }
    io->dtype = tensor ? dtype_of(io->type) : NARU_DTYPE_NONE;
    io->rank = (uint32_t)rank;
    if (st != NARU_OK) {
        return st;
    }
    if (!tensor && !input) {
        *skip = true;
        return NARU_OK;
    }
    if (io->dtype == NARU_DTYPE_NONE || rank > NARU_MAX_RANK) {
        return naru_fail(err, NARU_UNSUPPORTED,
                         tensor ? "%s \"%s\" has element type %d and %zu dimensions; this server "
                                  "has no such tensors"
                                : "%s \"%s\" is a sequence, map or optional value; only tensors "
                                  "are served",
                         input ? "input" : "output", name, (int)io->type, rank);
    }
    for (size_t d = 0; d < rank; d++) {
        dims[d] = dims[d] < 0 ? -1 : dims[d];
    }
    return NARU_OK;
}

static void io_release(naru_backend_model *m, struct ort_value_io *list, uint32_t n)
{
    for (uint32_t i = 0; list && i < n; i++) {
        OrtStatus *s = list[i].name ? m->lib->api->AllocatorFree(m->lib->allocator,
                                                                 (void *)(uintptr_t)list[i].name)
                                    : NULL;
        (void)ort_status(m->lib, s, NULL, 0, NULL);
    }
    free(list);
}

/* Fills `n` descriptions from the session; *ret_n are kept. */
static naru_status read_list(naru_backend_model *m, bool input, size_t n, struct ort_value_io *list,
                             naru_io *ios, int64_t *dims, uint32_t *ret_n, naru_text *err)
{
    for (size_t i = 0; i < n; i++) {
        struct ort_value_io *io = &list[*ret_n];
        bool skip = false;
        *io = (struct ort_value_io){0};
        int64_t *shape = dims + (size_t)*ret_n * NARU_MAX_RANK;
        naru_status st = read_io(m, input, i, io, shape, &skip, err);
        if (skip && !input) {
            char text[256];
            (void)snprintf(text, sizeof text,
                           "output \"%s\" is no tensor (a sequence or map) and is left out",
                           io->name);
            m->lib->host->log(2, text);
        }
        if (skip) {
            OrtStatus *s =
                m->lib->api->AllocatorFree(m->lib->allocator, (void *)(uintptr_t)io->name);
            (void)ort_status(m->lib, s, NULL, 0, NULL);
            *io = (struct ort_value_io){0};
            continue;
        }
        (*ret_n)++; /* also on error: its name is to be given back */
        if (st != NARU_OK) {
            return st;
        }
        ios[*ret_n - 1] =
            (naru_io){.name = io->name, .shape = shape, .rank = io->rank, .dtype = io->dtype};
    }
    return NARU_OK;
}

static naru_status read_info(naru_backend_model *m, const struct ort_graph *graph, naru_text *err)
{
    const OrtApi *a = m->lib->api;
    size_t n_in = 0, n_out = 0;
    OrtStatus *s = a->SessionGetInputCount(m->session, &n_in);
    s = s ? s : a->SessionGetOutputCount(m->session, &n_out);
    naru_status st = ort_status(m->lib, s, NULL, 0, err);
    if (st != NARU_OK) {
        return st;
    }
    if (n_in > MAX_IO || n_out > MAX_IO) {
        return naru_fail(err, NARU_UNSUPPORTED, "%zu inputs and %zu outputs; at most %d are served",
                         n_in, n_out, MAX_IO);
    }
    m->ins = calloc(n_in + 1, sizeof *m->ins);
    m->outs = calloc(n_out + 1, sizeof *m->outs);
    m->ios = calloc(n_in + n_out + 1, sizeof *m->ios);
    m->dims = calloc((n_in + n_out + 1) * NARU_MAX_RANK, sizeof *m->dims);
    m->symbols = calloc((n_in + 1) * NARU_MAX_RANK, sizeof *m->symbols);
    if (!m->ins || !m->outs || !m->ios || !m->dims || !m->symbols) {
        return NARU_NOMEM;
    }
    m->info = (naru_model_info){.struct_size = sizeof m->info,
                                .inputs = m->ios,
                                .outputs = m->ios + n_in,
                                .platform = "onnxruntime_onnx",
                                .weight_bytes = graph->weight_bytes,
                                .input_symbols = (const char *const *)m->symbols};
    st = read_list(m, true, n_in, m->ins, m->ios, m->dims, &m->info.n_inputs, err);
    if (st == NARU_OK) {
        st = read_list(m, false, n_out, m->outs, m->ios + n_in, m->dims + n_in * NARU_MAX_RANK,
                       &m->info.n_outputs, err);
    }
    if (st == NARU_OK && m->info.n_outputs == 0) {
        return naru_fail(err, NARU_UNSUPPORTED, "the model has no output that is a tensor");
    }
    return st;
}

/* Inputs, then outputs. */
static const naru_io *io_at(const naru_backend_model *m, uint32_t i)
{
    return i < m->info.n_inputs ? &m->info.inputs[i] : &m->info.outputs[i - m->info.n_inputs];
}

/* No control flow, and nothing varies but the first dimension: then one row takes one time. */
static bool is_static(const naru_backend_model *m, const struct ort_graph *graph)
{
    if (!graph->known || graph->control_flow) {
        return false;
    }
    for (uint32_t i = 0; i < m->info.n_inputs + m->info.n_outputs; i++) {
        const naru_io *io = io_at(m, i);
        for (uint32_t d = 1; d < io->rank; d++) {
            if (io->shape[d] < 0) {
                return false;
            }
        }
    }
    return true;
}

/* Whether requests may bring shapes of their own: a dimension of an input varies that is not the
 * batch's, which the server checks. Batching is taken for likely unless ruled out. */
static bool has_open_shapes(const naru_backend_model *m, int32_t max_batch_size)
{
    bool batched = max_batch_size != 0;
    for (uint32_t i = 0; i < m->info.n_inputs + m->info.n_outputs; i++) {
        const naru_io *io = io_at(m, i);
        batched = batched && io->rank > 0 && io->shape[0] < 0;
    }
    for (uint32_t i = 0; i < m->info.n_inputs; i++) {
        for (uint32_t d = batched; d < m->ios[i].rank; d++) {
            if (m->ios[i].shape[d] < 0) {
                return true;
            }
        }
    }
    return false;
}

/* The usual way: a session of the file. */
static naru_status make_session(naru_backend_model *m, const naru_model_args *args,
                                const struct ort_graph *graph, const char *path,
                                const char *const *hide, unsigned n_hide, naru_text *err)
{
    struct naru_backend_lib *lib = m->lib;
    OrtSessionOptions *so = NULL;
    naru_status st = ort_options_plain(lib, args, true, &so, err);
    if (st == NARU_OK) {
        st = ort_options_threads(lib, args, graph, so, &m->threads, err);
    }
    if (st == NARU_OK) {
        st = ort_status(lib, ort_books_create(m, path, so, graph->external_bytes), hide, n_hide,
                        err);
    }
    if (so) {
        lib->api->ReleaseSessionOptions(so);
    }
    return st;
}

/* A session whose weights others can share. False: this model's cannot be, or it is not worth it, and nothing
 * is left of the attempt; if the file is to blame, the usual way says so. */
static bool make_shared(naru_backend_model *m, const naru_model_args *args,
                        const struct ort_graph *graph, const char *path)
{
    struct naru_backend_lib *lib = m->lib;
    char text[ORT_MAX_TEXT];
    naru_text err = {.struct_size = sizeof err, .capacity = sizeof text, .data = text};
    OrtSessionOptions *so = NULL;
    naru_status st = ort_store_open(lib, args, path, &m->store, &err);
    if (st == NARU_OK) {
        st = ort_status(lib, ort_store_options(lib, m->store, &so), NULL, 0, &err);
    }
    if (st == NARU_OK) {
        st = ort_options_threads(lib, args, graph, so, &m->threads, &err);
    }
    if (st == NARU_OK) {
        st = ort_status(lib, ort_books_create(m, path, so, 0), NULL, 0, &err);
    }
    if (so) {
        lib->api->ReleaseSessionOptions(so);
    }
    if (st == NARU_OK && ort_store_shares(m, ort_arena_get(m).used)) {
        return true;
    }
    ort_books_remove(m);
    if (m->session) {
        lib->api->ReleaseSession(m->session);
        m->session = NULL;
    }
    ort_store_free(lib, m->store);
    m->store = NULL;
    atomic_fetch_sub_explicit(&lib->pool_threads, m->threads.charged, memory_order_relaxed);
    m->threads = (struct ort_threads){0};
    return false;
}

/* The file to open: args->file, or model.onnx within it when it is a folder. */
static naru_status find_file(const naru_model_args *args, char *file, size_t size, naru_text *err)
{
    struct stat st;
    int n = snprintf(file, size, "%s", args->file);
    if (n <= 0 || (size_t)n >= size) {
        return naru_fail(err, NARU_INVALID, "no model file is named");
    }
    if (fstatat(args->dir_fd, file, &st, 0) != 0) {
        return naru_fail(err, NARU_NOT_FOUND, "there is no file \"%s\"", file);
    }
    if (S_ISDIR(st.st_mode)) {
        n = snprintf(file, size, "%s/model.onnx", args->file);
        if (n <= 0 || (size_t)n >= size || fstatat(args->dir_fd, file, &st, 0) != 0) {
            return naru_fail(err, NARU_NOT_FOUND, "there is no file \"model.onnx\" in \"%s\"",
                             args->file);
        }
    }
    if (faccessat(args->dir_fd, file, R_OK, AT_EACCESS) != 0) { /* the library says a number only */
        return naru_fail(err, NARU_DENIED, "the file \"%s\" cannot be read: %s", file,
                         strerrordesc_np(errno));
    }
    return NARU_OK;
}

static naru_status open_file(naru_backend_model *m, const naru_model_args *args, naru_text *err)
{
    char file[1024], dir[64], path[sizeof dir + sizeof file], real[ORT_MAX_PATH];
    naru_status st = find_file(args, file, sizeof file, err);
    if (st != NARU_OK) {
        return st;
    }
    (void)snprintf(dir, sizeof dir, "/proc/self/fd/%d", args->dir_fd);
    (void)snprintf(path, sizeof path, "%s/%s", dir, file);
    ssize_t len = readlink(dir, real, sizeof real - 1);
    real[len > 0 ? len : 0] = 0;
    const char *const hide[] = {dir, real, args->path};

    struct ort_graph graph;
    ort_graph_read(args->dir_fd, file, &graph);
    m->info.weight_bytes = graph.weight_bytes;
    if (!ort_store_wanted(m->lib, args, &graph) || !make_shared(m, args, &graph, path)) {
        st = make_session(m, args, &graph, path, hide, 3, err);
    }
    m->forms[NARU_FORM_WIDE] = m->session;
    if (st == NARU_OK) {
        st = read_info(m, &graph, err);
    }
    if (st == NARU_OK) {
        m->open_shapes = has_open_shapes(m, args->max_batch_size);
        m->info.used_options = ort_options_used(args);
        m->info.flags = NARU_MODEL_SHARED_SESSION |
                        (is_static(m, &graph) ? (uint32_t)NARU_MODEL_STATIC_GRAPH : 0u) |
                        (m->threads.elastic ? (uint32_t)NARU_MODEL_ELASTIC : 0u);
    }
    return st;
}

naru_status ort_model_open(naru_backend_lib *lib, const naru_model_args *args,
                           naru_backend_model **ret, naru_text *err)
{
    naru_backend_model *m = calloc(1, sizeof *m);
    if (!m) {
        return NARU_NOMEM;
    }
    m->lib = lib;
    m->device = args->device;
    const char *shrink =
        naru_option_get(args->options, args->n_options, "memory.enable_memory_arena_shrinkage");
    m->shrink_arena = shrink ? strdup(shrink) : NULL;
    naru_status st = shrink && !m->shrink_arena ? NARU_NOMEM : open_file(m, args, err);
    if (st != NARU_OK) {
        ort_model_close(m);
        return st;
    }
    *ret = m;
    return NARU_OK;
}

void ort_model_close(naru_backend_model *model)
{
    if (!model) {
        return;
    }
    struct naru_backend_lib *lib = model->lib;
    io_release(model, model->ins, model->info.n_inputs);
    io_release(model, model->outs, model->info.n_outputs);
    ort_books_remove(model);
    for (uint32_t f = 0; f < NARU_FORMS; f++) {
        if (model->forms[f]) {
            lib->api->ReleaseSession(model->forms[f]);
        }
    }
    ort_store_free(lib, model->store);
    atomic_fetch_sub_explicit(&lib->pool_threads, model->threads.charged, memory_order_relaxed);
    for (size_t i = 0; model->symbols && i < (size_t)model->info.n_inputs * NARU_MAX_RANK; i++) {
        free(model->symbols[i]);
    }
    free(model->symbols);
    free(model->ios);
    free(model->dims);
    free(model->shrink_arena);
    free(model);
    malloc_trim(0); /* weights are big, and a closed model should be seen in the process's size */
}

const naru_model_info *ort_model_info(naru_backend_model *model)
{
    return &model->info;
}
