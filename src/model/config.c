/* Loading a model's configuration: from the file to a checked message, and which file to open.
 *
 * DESIGN. The message as Triton defines it stays the one truth: every step writes its results back
 * into it, so that what ModelConfig reports is what runs. Request code never reads it; it reads the
 * flat fields that config_complete.c derives.
 * Which backend opens a model is one table: Triton's platform names, default file names and file
 * endings are three views of the same row.
 *
 * INVARIANTS
 *  1. Everything a configuration points to lies in its arena, or is constant.
 *  2. File names from the configuration are relative and without "..": the plug-in opens them
 *     beneath the version's directory.
 *
 * Threads: one thread per configuration until it is complete, then read-only.
 */
#include "model/config.h"

#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/stat.h>

#include "base/mem.h"
#include "codec/pbtxt.h"
#include "codec/pbwrite.h"
#include "io/file.h"
#include "model/config_priv.h"
#include "model/ensemble.h"

/* In the order in which a directory without configuration is searched. */
static const struct backend_row {
    const char *backend;
    const char *platform; /* "" when Triton has no such name for it */
    const char *file;     /* default_model_filename */
    const char *ending;
    bool only_default; /* the ending is too common to claim any file of it */
} backend_rows[] = {
    {"tensorflow", "tensorflow_savedmodel", "model.savedmodel", ".savedmodel", false},
    {"tensorflow", "tensorflow_graphdef", "model.graphdef", ".graphdef", false},
    {"tensorrt", "tensorrt_plan", "model.plan", ".plan", false},
    {"onnxruntime", "onnxruntime_onnx", "model.onnx", ".onnx", false},
    {"openvino", "", "model.xml", ".xml", true},
    {"pytorch", "pytorch_libtorch", "model.pt", ".pt", false},
    {"pytorch", "torch_aoti", "model.pt2", ".pt2", false},
    {"python", "", "model.py", ".py", true},
};

/* --- memory ----------------------------------------------------------------------------------- */

void *nr_config_array(struct nr_model_config *c, size_t n, size_t size)
{
    return nr_arena_try_array(&c->arena, n ? n : 1, size);
}

char *nr_config_copy(struct nr_model_config *c, const char *text)
{
    size_t len = strlen(text);
    char *copy = nr_arena_try_alloc(&c->arena, len + 1);
    if (copy) {
        memcpy(copy, text, len + 1);
    }
    return copy;
}

void *nr_config_message(struct nr_model_config *c, const ProtobufCMessageDescriptor *type)
{
    ProtobufCMessage *m = nr_config_array(c, 1, type->sizeof_message);
    if (m) {
        protobuf_c_message_init(type, m);
    }
    return m;
}

nr_status nr_config_nomem(struct nr_err *err)
{
    return nr_fail(err, NARU_NOMEM, "no memory for the model's configuration (limit %u MiB)",
                   NR_CONFIG_ARENA_BYTES >> 20);
}

/* --- step 1: text → message ------------------------------------------------------------------- */

static nr_status take_name(struct nr_model_config *c, const char *name, const char *origin,
                           struct nr_err *err)
{
    c->name = nr_config_copy(c, name);
    if (!c->name) {
        return nr_config_nomem(err);
    }
    if (c->pb->name[0] != '\0' && strcmp(c->pb->name, name) != 0) {
        return nr_fail(
            err, NARU_INVALID,
            "%s says name: \"%s\", but the model's folder is \"%s\": rename one of them, "
            "or leave the name out",
            origin, c->pb->name, name);
    }
    c->pb->name = (char *)(uintptr_t)c->name;
    return NARU_OK;
}

nr_status nr_config_parse(const char *name, const char *text, size_t len, const char *origin,
                          struct nr_model_config **ret, struct nr_err *err)
{
    const ProtobufCMessageDescriptor *type = &inference__model_config__descriptor;
    struct nr_model_config *c = nr_new(struct nr_model_config);
    nr_arena_init(&c->arena, NR_CONFIG_ARENA_BYTES);
    c->backend = c->platform = c->file = "";
    c->from_file = text != NULL;
    nr_status st;
    if (text) {
        ProtobufCMessage *m = NULL;
        uint64_t given = 0;
        st = nr_pbtxt_parse(type, (struct nr_str){text, len}, origin, &c->arena, &m, &given, err);
        c->pb = (Inference__ModelConfig *)m;
        c->gave_batch = st == NARU_OK && nr_pbtxt_given(type, given, "max_batch_size");
    } else {
        c->pb = nr_config_message(c, type);
        st = c->pb ? NARU_OK : nr_config_nomem(err);
    }
    if (st == NARU_OK) {
        c->gave_input = c->pb->n_input > 0;
        c->gave_output = c->pb->n_output > 0;
        st = take_name(c, name, origin, err);
    }
    if (st == NARU_OK) {
        st = nr_config_check(c, err);
    }
    if (st == NARU_OK && nr_config_is_ensemble(c->pb)) {
        st = nr_ensemble_parse(c, err);
    }
    if (st != NARU_OK) {
        nr_config_free(c);
        return st;
    }
    *ret = c;
    return NARU_OK;
}

/* Reads `rel` beneath the model's directory; a missing file gives *ret_text NULL. */
static nr_status read_config(int model_fd, const char *rel, char **ret_text, size_t *ret_len,
                             struct nr_err *err)
{
    nr_status st = nr_file_read_at(model_fd, rel, NR_CONFIG_MAX_BYTES, ret_text, ret_len, err);
    if (st == NARU_NOT_FOUND) {
        *ret_text = NULL;
        *ret_len = 0;
        return NARU_OK;
    }
    return st;
}

nr_status nr_config_load(const struct nr_config_source *src, struct nr_model_config **ret,
                         struct nr_err *err)
{
    nr_autofree char *text = NULL;
    size_t len = 0;
    char custom[160] = "";
    const char *origin = "config.pbtxt";
    nr_status st = NARU_OK;
    if (src->model_fd >= 0 && src->config_name && src->config_name[0] != '\0') {
        if (!nr_name_valid(nr_str_from(src->config_name))) {
            return nr_fail(err, NARU_INVALID, "\"%.100s\" is no name of a configuration",
                           src->config_name);
        }
        (void)snprintf(custom, sizeof custom, "configs/%s.pbtxt", src->config_name);
        st = read_config(src->model_fd, custom, &text, &len, err);
        origin = text ? custom : origin;
    }
    if (st == NARU_OK && src->model_fd >= 0 && !text) {
        st = read_config(src->model_fd, "config.pbtxt", &text, &len, err);
    }
    if (st != NARU_OK) {
        return st;
    }
    return nr_config_parse(src->name, text, len, origin, ret, err);
}

void nr_config_free(struct nr_model_config *c)
{
    if (c) {
        nr_arena_done(&c->arena);
        nr_free(c);
    }
}

/* --- step 2: backend and file ----------------------------------------------------------------- */

static bool row_claims(const struct backend_row *row, struct nr_str file)
{
    return row->only_default ? nr_str_is(file, row->file)
                             : nr_str_ends(file, nr_str_from(row->ending));
}

static const struct backend_row *row_of_file(const char *file)
{
    for (size_t i = 0; i < NR_COUNT(backend_rows); i++) {
        if (row_claims(&backend_rows[i], nr_str_from(file))) {
            return &backend_rows[i];
        }
    }
    return NULL;
}

const char *nr_config_backend_of(const char *file)
{
    const struct backend_row *row = row_of_file(file);
    return row ? row->backend : NULL;
}

const char *nr_config_platform_backend(const char *platform)
{
    for (size_t i = 0; i < NR_COUNT(backend_rows); i++) {
        if (platform[0] != '\0' && strcmp(backend_rows[i].platform, platform) == 0) {
            return backend_rows[i].backend;
        }
    }
    return NULL;
}

/* The row of what the configuration says: platform, or backend (then the file's ending decides
 * between rows of one backend), or the file's ending alone. NULL: it says nothing that the table
 * knows. */
static const struct backend_row *row_of_config(const Inference__ModelConfig *pb)
{
    const struct backend_row *first = NULL;
    if (pb->platform[0] == '\0' && pb->backend[0] == '\0') {
        return row_of_file(pb->default_model_filename);
    }
    for (size_t i = 0; i < NR_COUNT(backend_rows); i++) {
        const struct backend_row *row = &backend_rows[i];
        if (pb->platform[0] != '\0') {
            if (strcmp(row->platform, pb->platform) == 0) {
                return row;
            }
        } else if (strcmp(row->backend, pb->backend) == 0) {
            if (row_claims(row, nr_str_from(pb->default_model_filename))) {
                return row;
            }
            first = first ? first : row;
        }
    }
    return first;
}

static bool exists(int version_fd, const char *file)
{
    int fd = -1;
    if (nr_dir_open_at(version_fd, file, O_PATH, 0, &fd, NULL) != NARU_OK) {
        return false;
    }
    nr_close(fd);
    return true;
}

/* Names in the directory for an error text: "model.pt, notes.txt". */
static void list_names(int version_fd, struct nr_text *t)
{
    struct nr_dir_entry *entries = NULL;
    size_t n = 0;
    if (nr_dir_list(version_fd, 10000, &entries, &n, NULL) != NARU_OK || n == 0) {
        nr_text_str(t, "nothing");
    }
    for (size_t i = 0; i < n && t->len < 160; i++) {
        nr_text_fmt(t, "%s%s", i ? ", " : "", entries[i].name);
    }
    nr_free(entries);
}

static nr_status fail_no_file(const char *wanted, int version_fd, struct nr_err *err)
{
    struct nr_text t;
    nr_text_init(&t, 512);
    list_names(version_fd, &t);
    nr_status st = nr_fail(err, NARU_NOT_FOUND, "the version's folder has no %s; it has: %s",
                           wanted, t.data ? t.data : "nothing");
    nr_text_done(&t);
    return st;
}

/* The one file in the directory that the row (NULL: any row) claims; NULL when there is none or
 * more than one. */
static const char *only_file(struct nr_model_config *c, int version_fd,
                             const struct backend_row *row, const struct backend_row **ret_row)
{
    struct nr_dir_entry *entries = NULL;
    size_t n = 0;
    const char *found = NULL;
    size_t n_found = 0;
    if (nr_dir_list(version_fd, 10000, &entries, &n, NULL) != NARU_OK) {
        return NULL;
    }
    for (size_t i = 0; i < n; i++) {
        const struct backend_row *its = row_of_file(entries[i].name);
        if (its && (!row || its == row)) {
            found = entries[i].name;
            *ret_row = its;
            n_found++;
        }
    }
    const char *copy = n_found == 1 ? nr_config_copy(c, found) : NULL;
    nr_free(entries);
    return copy;
}

/* No backend given: default file names first, then the only model file, then the name's ending. */
static const struct backend_row *search_files(struct nr_model_config *c, int version_fd)
{
    for (size_t i = 0; i < NR_COUNT(backend_rows); i++) {
        if (exists(version_fd, backend_rows[i].file)) {
            c->file = backend_rows[i].file;
            return &backend_rows[i];
        }
    }
    const struct backend_row *row = NULL;
    const char *file = only_file(c, version_fd, NULL, &row);
    c->file = file ? file : "";
    return file ? row : NULL;
}

static bool is_inside(const char *file)
{
    struct nr_str rest = nr_str_from(file);
    if (file[0] == '/') {
        return false;
    }
    while (rest.ptr) {
        if (nr_str_is(nr_str_cut(rest, '/', &rest), "..")) {
            return false;
        }
    }
    return true;
}

/* The backend is known: which file. */
static nr_status find_file(struct nr_model_config *c, const struct backend_row *row, int version_fd,
                           struct nr_err *err)
{
    const char *given = c->pb->default_model_filename;
    if (given[0] != '\0') {
        if (!is_inside(given)) {
            return nr_fail(err, NARU_INVALID,
                           "default_model_filename \"%.200s\" must lie within the version's folder",
                           given);
        }
        c->file = given;
    } else if (row) {
        c->file = row->file;
        /* a single file of the right ending will do under any name */
        const struct backend_row *its;
        const char *only =
            exists(version_fd, row->file) ? NULL : only_file(c, version_fd, row, &its);
        c->file = only ? only : c->file;
    }
    if (c->file[0] == '\0') {
        return NARU_OK;
    }
    int fd = -1;
    nr_status st = nr_dir_open_at(version_fd, c->file, O_PATH, 0, &fd, err);
    nr_close(fd);
    return st == NARU_NOT_FOUND ? fail_no_file(c->file, version_fd, err) : st;
}

/* "resize.identity" is opened by the backend "identity". */
static const char *backend_in_name(const char *name)
{
    const char *dot = strrchr(name, '.');
    return dot && dot != name && dot[1] != '\0' ? dot + 1 : NULL;
}

static nr_status choose(struct nr_model_config *c, int version_fd, const char *bare_file,
                        struct nr_err *err)
{
    Inference__ModelConfig *pb = c->pb;
    if (c->ensemble) { /* its files are its members' */
        c->platform = pb->platform;
        return NARU_OK;
    }
    const struct backend_row *row = row_of_config(pb);
    if (bare_file) {
        c->file = nr_config_copy(c, bare_file);
        row = row ? row : row_of_file(bare_file);
        if (!c->file) {
            return nr_config_nomem(err);
        }
    } else if (pb->backend[0] != '\0' || pb->default_model_filename[0] != '\0' || row) {
        nr_status st = find_file(c, row, version_fd, err);
        if (st != NARU_OK) {
            return st;
        }
    } else {
        row = search_files(c, version_fd);
    }
    const char *backend = pb->backend[0] != '\0' ? pb->backend
                          : row                  ? row->backend
                                                 : backend_in_name(c->name);
    if (!backend) {
        return fail_no_file("file that a backend is known for (model.onnx, model.pt, …), and "
                            "config.pbtxt names no backend",
                            version_fd, err);
    }
    c->backend = backend;
    c->platform = pb->platform[0] != '\0' ? pb->platform : row ? row->platform : "";
    return NARU_OK;
}

/* --- step 2: what the plug-in is told --------------------------------------------------------- */

struct options {
    struct nr_model_config *c;
    naru_option *at;
    size_t n, capacity;
    bool failed;
};

static void option(struct options *o, const char *value, const char *fmt, ...) nr_printf(3, 4);
static void option(struct options *o, const char *value, const char *fmt, ...)
{
    char key[512];
    va_list ap;
    va_start(ap, fmt);
    int len = vsnprintf(key, sizeof key, fmt, ap);
    va_end(ap);
    if (o->failed || len < 0 || (size_t)len >= sizeof key) {
        o->failed = true;
        return;
    }
    NR_ASSERT(o->n < o->capacity);
    char *copy = nr_config_copy(o->c, key);
    o->failed = !copy;
    o->at[o->n++] = (naru_option){.key = copy, .value = value};
}

static void
accelerators(struct options *o, const char *kind, size_t n,
             Inference__ModelOptimizationPolicy__ExecutionAccelerators__Accelerator **all)
{
    for (size_t i = 0; i < n; i++) {
        option(o, all[i]->name, "naru.opt.execution_accelerators.%s.%zu.name", kind, i);
        for (size_t k = 0; k < all[i]->n_parameters; k++) {
            option(o, all[i]->parameters[k]->value,
                   "naru.opt.execution_accelerators.%s.%zu.parameters.%s", kind, i,
                   all[i]->parameters[k]->key);
        }
    }
}

static size_t
count_accelerators(size_t n,
                   Inference__ModelOptimizationPolicy__ExecutionAccelerators__Accelerator **all)
{
    size_t sum = n;
    for (size_t i = 0; i < n; i++) {
        sum += all[i]->n_parameters;
    }
    return sum;
}

static void optimization_options(struct options *o, const Inference__ModelOptimizationPolicy *opt)
{
    if (opt->graph) {
        char level[16];
        (void)snprintf(level, sizeof level, "%d", opt->graph->level);
        char *copy = nr_config_copy(o->c, level);
        o->failed = o->failed || !copy;
        option(o, copy, "naru.opt.graph.level");
    }
    if (opt->priority != INFERENCE__MODEL_OPTIMIZATION_POLICY__MODEL_PRIORITY__PRIORITY_DEFAULT) {
        bool max =
            opt->priority == INFERENCE__MODEL_OPTIMIZATION_POLICY__MODEL_PRIORITY__PRIORITY_MAX;
        option(o, max ? "PRIORITY_MAX" : "PRIORITY_MIN", "naru.opt.priority");
    }
    if (opt->cuda && opt->cuda->graphs) {
        option(o, "true", "naru.opt.cuda.graphs");
    }
    if (opt->cuda && opt->cuda->busy_wait_events) {
        option(o, "true", "naru.opt.cuda.busy_wait_events");
    }
    if (opt->cuda && opt->cuda->output_copy_stream) {
        option(o, "true", "naru.opt.cuda.output_copy_stream");
    }
    const Inference__ModelOptimizationPolicy__ExecutionAccelerators *acc =
        opt->execution_accelerators;
    if (acc) {
        accelerators(o, "gpu_execution_accelerator", acc->n_gpu_execution_accelerator,
                     acc->gpu_execution_accelerator);
        accelerators(o, "cpu_execution_accelerator", acc->n_cpu_execution_accelerator,
                     acc->cpu_execution_accelerator);
    }
}

static nr_status make_options(struct nr_model_config *c, struct nr_err *err)
{
    const Inference__ModelConfig *pb = c->pb;
    const Inference__ModelOptimizationPolicy *opt = pb->optimization;
    struct options o = {
        .c = c, .capacity = pb->n_parameters + 6 /* decoupled, graph, priority, 3 of cuda */};
    if (opt && opt->execution_accelerators) {
        const Inference__ModelOptimizationPolicy__ExecutionAccelerators *acc =
            opt->execution_accelerators;
        o.capacity +=
            count_accelerators(acc->n_gpu_execution_accelerator, acc->gpu_execution_accelerator) +
            count_accelerators(acc->n_cpu_execution_accelerator, acc->cpu_execution_accelerator);
    }
    o.at = nr_config_array(c, o.capacity, sizeof *o.at);
    if (!o.at) {
        return nr_config_nomem(err);
    }
    for (size_t i = 0; i < pb->n_parameters; i++) {
        o.at[o.n++] = (naru_option){.key = pb->parameters[i]->key,
                                    .value = pb->parameters[i]->value->string_value};
    }
    c->decoupled = pb->model_transaction_policy && pb->model_transaction_policy->decoupled;
    if (c->decoupled) {
        o.at[o.n++] = (naru_option){.key = "naru.decoupled", .value = "true"};
    }
    if (opt) {
        optimization_options(&o, opt);
    }
    if (o.failed) {
        return nr_fail(err, NARU_INVALID,
                       "optimization: a parameter's key is longer than 400 bytes, or there is no "
                       "memory for its options");
    }
    c->options = o.at;
    c->n_options = (uint32_t)o.n;
    return NARU_OK;
}

bool nr_config_make_arg(struct nr_model_config *c, naru_io *io, const char *name, int32_t dtype,
                        size_t rank, const int64_t *dims)
{
    size_t batch = c->pb->max_batch_size > 0;
    int64_t *shape = nr_config_array(c, rank + batch, sizeof *shape);
    if (!shape) {
        return false;
    }
    shape[0] = -1;
    if (rank > 0) {
        memcpy(shape + batch, dims, rank * sizeof *dims);
    }
    *io = (naru_io){.dtype = dtype, .rank = (uint32_t)(rank + batch), .name = name, .shape = shape};
    return true;
}

/* A row of elements, or values that the host makes: open shapes without a batch dimension. */
static void make_open_arg(naru_io *io, const char *name, int32_t dtype, uint32_t rank)
{
    static const int64_t open[] = {-1, -1};
    *io = (naru_io){.dtype = dtype, .rank = rank, .name = name, .shape = open};
}

static size_t count_made(const Inference__ModelConfig *pb)
{
    size_t n = 0;
    for (size_t i = 0; i < pb->n_batch_input; i++) {
        n += pb->batch_input[i]->n_target_name;
    }
    return n;
}

static nr_status make_args(struct nr_model_config *c, struct nr_err *err)
{
    const Inference__ModelConfig *pb = c->pb;
    size_t n_in = pb->n_input, n_out = pb->n_output;
    (void)nr_config_hidden_args(c, true, NULL, &n_in);
    (void)nr_config_hidden_args(c, false, NULL, &n_out);
    naru_io *in = nr_config_array(c, n_in + count_made(pb), sizeof *in);
    naru_io *out = nr_config_array(c, n_out, sizeof *out);
    n_in = pb->n_input;
    n_out = pb->n_output;
    bool ok = in && out;
    for (size_t i = 0; i < pb->n_input && ok; i++) {
        const Inference__ModelInput *io = pb->input[i];
        const Inference__ModelTensorReshape *r = io->reshape;
        ok = nr_config_make_arg(c, &in[i], io->name, (int32_t)io->data_type,
                                r ? r->n_shape : io->n_dims, r ? r->shape : io->dims);
        if (io->allow_ragged_batch && ok) {
            make_open_arg(&in[i], io->name, (int32_t)io->data_type, 1);
        }
        in[i].optional = io->optional != 0;
    }
    for (size_t i = 0; i < pb->n_batch_input && ok; i++) {
        const Inference__BatchInput *made = pb->batch_input[i];
        for (size_t k = 0; k < made->n_target_name; k++) {
            make_open_arg(&in[n_in++], made->target_name[k], (int32_t)made->data_type,
                          nr_config_made_rank(made));
        }
    }
    for (size_t i = 0; i < pb->n_output && ok; i++) {
        const Inference__ModelOutput *io = pb->output[i];
        const Inference__ModelTensorReshape *r = io->reshape;
        ok = nr_config_make_arg(c, &out[i], io->name, (int32_t)io->data_type,
                                r ? r->n_shape : io->n_dims, r ? r->shape : io->dims);
        if (ok && nr_config_is_scattered(pb, io->name)) {
            make_open_arg(&out[i], io->name, (int32_t)io->data_type, 1);
        }
    }
    /* A configuration that leaves its lists to the model says nothing about hidden tensors either. */
    ok = ok && (pb->n_input == 0 || nr_config_hidden_args(c, true, in, &n_in)) &&
         (pb->n_output == 0 || nr_config_hidden_args(c, false, out, &n_out));
    if (!ok) {
        return nr_config_nomem(err);
    }
    c->args_inputs = in;
    c->args_outputs = out;
    c->n_args_inputs = (uint32_t)n_in;
    c->n_args_outputs = (uint32_t)n_out;
    return NARU_OK;
}

/* A pipe or a device would hold whoever opens it for ever. */
static nr_status check_file(const struct nr_model_config *c, int version_fd, struct nr_err *err)
{
    struct stat st;
    if (c->file[0] == '\0' || fstatat(version_fd, c->file, &st, 0) != 0 || S_ISREG(st.st_mode) ||
        S_ISDIR(st.st_mode)) {
        return NARU_OK; /* what is missing is the plug-in's to say */
    }
    return nr_fail(err, NARU_INVALID, "\"%.100s\" is neither a file nor a folder", c->file);
}

nr_status nr_config_files(struct nr_model_config *c, int version_fd, const char *bare_file,
                          struct nr_err *err)
{
    nr_status st = choose(c, version_fd, bare_file, err);
    if (st == NARU_OK) {
        st = check_file(c, version_fd, err);
    }
    if (st == NARU_OK) {
        st = make_options(c, err);
    }
    if (st == NARU_OK) {
        st = make_args(c, err);
    }
    if (st != NARU_OK) {
        return st;
    }
    /* what is reported; none of the three is written to */
    c->pb->backend = (char *)(uintptr_t)c->backend;
    c->pb->platform = (char *)(uintptr_t)c->platform;
    c->pb->default_model_filename = (char *)(uintptr_t)c->file;
    return NARU_OK;
}

/* --- printing --------------------------------------------------------------------------------- */

void nr_config_json(const struct nr_model_config *c, struct nr_text *out)
{
    nr_pbwrite_json(&c->pb->base, out);
}
