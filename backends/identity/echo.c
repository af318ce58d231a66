/* Inputs repeated as outputs: the shared part of the plug-ins that exist for tests, slots included that
 * are the same in all of them.
 *
 * Why so: names and shapes are copied at open, since arguments are borrowed for the call only. All
 * of them lie in one block whose size is computed first, so there is one thing to free.
 *
 * Threads: echo_io is read only after echo_io_init; echo_copy works on its batch alone.
 */
#include "echo.h"

#include <stdlib.h>
#include <string.h>

#define MAX_IO 64

struct spec { /* one pair of the parameter "io" */
    int32_t dtype;
    uint32_t rank;
    int64_t shape[NARU_MAX_RANK];
};

static int32_t dtype_find(const char *name, size_t len)
{
    for (int32_t d = NARU_DTYPE_NONE + 1; d < NARU_DTYPE_END; d++) {
        const char *known = naru_dtype_name(d);
        if (strlen(known) == len && memcmp(known, name, len) == 0) {
            return d;
        }
    }
    return NARU_DTYPE_NONE;
}

/* "[-1,16]" at *text into spec; moves *text behind it. 0 when it is none. */
static int shape_parse(const char **text, struct spec *spec)
{
    const char *p = *text;
    if (*p++ != '[') {
        return 0;
    }
    spec->rank = 0;
    while (*p != ']') {
        char number[24];
        size_t len = strcspn(p, ",]");
        if (spec->rank == NARU_MAX_RANK || len >= sizeof number || p[len] == 0) {
            return 0;
        }
        memcpy(number, p, len);
        number[len] = 0;
        int64_t dim;
        if (!naru_parse_i64(number, &dim) || dim < -1) {
            return 0;
        }
        spec->shape[spec->rank++] = dim;
        p += len + (p[len] == ',');
    }
    *text = p + 1;
    return 1;
}

static naru_status specs_parse(const char *text, struct spec *specs, uint32_t *n, naru_text *err)
{
    const char *p = text;
    *n = 0;
    do {
        size_t len = strcspn(p, "[");
        struct spec *s = &specs[*n];
        s->dtype = dtype_find(p, len);
        p += len;
        if (s->dtype == NARU_DTYPE_NONE || !shape_parse(&p, s) || (*p != 0 && *p != ';')) {
            return naru_fail(err, NARU_INVALID,
                             "parameter \"io\" is \"%.64s\"; \"FP32[-1,16];BYTES[1]\" is a form it "
                             "takes",
                             text);
        }
        (*n)++;
    } while (*p++ == ';' && *n < MAX_IO);
    return NARU_OK;
}

static char *put(char **at, const void *data, size_t bytes)
{
    char *to = *at;
    memcpy(to, data, bytes);
    *at += bytes;
    return to;
}

/* Copies n descriptions into `to`, shapes at *dims and names at *text. */
static void copy_io(naru_io *to, const naru_io *from, uint32_t n, char **dims, char **text)
{
    for (uint32_t i = 0; i < n; i++) {
        to[i] = from[i];
        to[i].shape =
            (const int64_t *)(const void *)put(dims, from[i].shape, from[i].rank * sizeof(int64_t));
        to[i].name = put(text, from[i].name, strlen(from[i].name) + 1);
    }
}

static size_t io_bytes(const naru_io *io, uint32_t n, size_t *names)
{
    size_t dims = 0;
    for (uint32_t i = 0; i < n; i++) {
        dims += io[i].rank * sizeof(int64_t);
        *names += strlen(io[i].name) + 1;
    }
    return dims;
}

static naru_status make(struct echo_io *io, const naru_io *in, uint32_t n_in, const naru_io *out,
                        uint32_t n_out, uint32_t flags)
{
    size_t names = 0;
    size_t lists = ((size_t)n_in + n_out) * sizeof(naru_io);
    size_t dims = io_bytes(in, n_in, &names) + io_bytes(out, n_out, &names);
    char *memory = malloc(lists + dims + names + 1);
    if (!memory) {
        return NARU_NOMEM;
    }
    char *at_dims = memory + lists, *at_names = at_dims + dims;
    io->memory = memory;
    io->inputs = (naru_io *)(void *)memory;
    io->outputs = io->inputs + n_in;
    copy_io(io->inputs, in, n_in, &at_dims, &at_names);
    copy_io(io->outputs, out, n_out, &at_dims, &at_names);
    io->info = (naru_model_info){.struct_size = sizeof io->info,
                                 .n_inputs = n_in,
                                 .n_outputs = n_out,
                                 .flags = flags,
                                 .inputs = io->inputs,
                                 .outputs = io->outputs,
                                 .platform = ""};
    return NARU_OK;
}

static naru_status from_option(struct echo_io *io, const char *text, naru_text *err)
{
    struct spec *specs = calloc(MAX_IO, sizeof *specs);
    naru_io *list = calloc(2 * (size_t)MAX_IO, sizeof *list);
    char(*names)[16] = calloc(2 * (size_t)MAX_IO, sizeof *names);
    naru_status st = NARU_NOMEM;
    if (specs && list && names) {
        uint32_t n = 0;
        st = specs_parse(text, specs, &n, err);
        for (uint32_t i = 0; i < 2 * n && st == NARU_OK; i++) {
            const struct spec *s = &specs[i % n];
            (void)snprintf(names[i], sizeof names[i], "%s%u", i < n ? "INPUT" : "OUTPUT", i % n);
            list[i] =
                (naru_io){.name = names[i], .shape = s->shape, .rank = s->rank, .dtype = s->dtype};
        }
        if (st == NARU_OK) {
            st =
                make(io, list, n, list + n, n, NARU_MODEL_STATIC_GRAPH | NARU_MODEL_SHARED_SESSION);
        }
    }
    free(specs);
    free(list);
    free(names);
    return st;
}

static naru_status io_init(struct echo_io *io, const naru_model_args *args, naru_text *err)
{
    const char *text = naru_option_get(args->options, args->n_options, "io");
    if (text) {
        return from_option(io, text, err);
    }
    if (args->n_outputs == 0 || args->n_outputs > args->n_inputs) {
        return naru_fail(err, NARU_INVALID,
                         "%u inputs and %u outputs are configured; at least one output and an "
                         "input for each is needed, or the parameter \"io\"",
                         args->n_inputs, args->n_outputs);
    }
    for (uint32_t i = 0; i < args->n_outputs; i++) {
        if (args->inputs[i].dtype != args->outputs[i].dtype ||
            args->inputs[i].rank != args->outputs[i].rank) {
            return naru_fail(err, NARU_INVALID,
                             "output \"%s\" repeats input \"%s\", so both need one datatype and "
                             "as many dimensions",
                             args->outputs[i].name, args->inputs[i].name);
        }
    }
    return make(io, args->inputs, args->n_inputs, args->outputs, args->n_outputs,
                NARU_MODEL_STATIC_GRAPH | NARU_MODEL_SHARED_SESSION | NARU_MODEL_IO_UNKNOWN);
}

/* ---- slots ------------------------------------------------------------------------------------- */

naru_status echo_lib_open(const naru_host *host, const naru_option *options, uint32_t n_options,
                          naru_backend_lib **ret, naru_text *err)
{
    (void)options;
    (void)n_options;
    (void)err;
    naru_backend_lib *lib = calloc(1, sizeof *lib);
    if (!lib) {
        return NARU_NOMEM;
    }
    lib->host = host;
    *ret = lib;
    return NARU_OK;
}

void echo_lib_close(naru_backend_lib *lib)
{
    free(lib);
}

static struct echo_model *echo_of(naru_backend_model *model)
{
    return (struct echo_model *)(void *)model;
}

naru_status echo_model_new(naru_backend_lib *lib, const char *name, const naru_model_args *args,
                           size_t bytes, naru_backend_model **ret, naru_text *err)
{
    struct echo_model *m = calloc(1, bytes);
    if (!m) {
        return NARU_NOMEM;
    }
    m->lib = lib;
    m->name = name;
    naru_status st = io_init(&m->io, args, err);
    if (st != NARU_OK) {
        free(m);
        return st;
    }
    *ret = (naru_backend_model *)(void *)m;
    return NARU_OK;
}

void echo_model_close(naru_backend_model *model)
{
    if (model) {
        free(echo_of(model)->io.memory);
        free(model);
    }
}

const naru_model_info *echo_model_info(naru_backend_model *model)
{
    return &echo_of(model)->io.info;
}

naru_status echo_instance_new(naru_backend_model *model, int32_t device, size_t bytes,
                              naru_backend_instance **ret, naru_text *err)
{
    if (device >= 0) {
        return naru_fail(err, NARU_UNSUPPORTED, "%s runs on the CPU; KIND_GPU was asked for",
                         echo_of(model)->name);
    }
    struct echo_instance *i = calloc(1, bytes);
    if (!i) {
        return NARU_NOMEM;
    }
    i->model = model;
    *ret = (naru_backend_instance *)(void *)i;
    return NARU_OK;
}

naru_status echo_instance_open(naru_backend_model *model, uint32_t index, int32_t device,
                               naru_backend_instance **ret, naru_text *err)
{
    (void)index;
    return echo_instance_new(model, device, sizeof(struct echo_instance), ret, err);
}

void echo_instance_close(naru_backend_instance *instance)
{
    free(instance);
}

/* ---- executing --------------------------------------------------------------------------------- */

naru_status echo_copy(const struct echo_model *model, naru_batch *batch, naru_text *err)
{
    const naru_host *host = model->lib->host;
    for (uint32_t o = 0; o < batch->n_outputs; o++) {
        const naru_tensor *to = &batch->outputs[o];
        const naru_tensor *from = &batch->inputs[to->index];
        if (from->n_segments == 0) {
            return naru_fail(err, NARU_INVALID,
                             "output \"%s\" was asked for, but its input \"%s\" was left out",
                             to->name, model->io.inputs[to->index].name);
        }
        if (to->n_segments == 0) {
            naru_status st = host->output_alloc(batch, o, from->dtype, from->rank, from->shape,
                                                from->bytes, &to);
            if (st != NARU_OK) {
                return naru_fail(err, st, "no memory for output \"%s\" of %llu bytes",
                                 batch->outputs[o].name, (unsigned long long)from->bytes);
            }
        }
        if (to->bytes != from->bytes) {
            return naru_fail(err, NARU_INVALID,
                             "output \"%s\" has %llu bytes, its input %llu: their shapes differ",
                             to->name, (unsigned long long)to->bytes,
                             (unsigned long long)from->bytes);
        }
        char *at = naru_tensor_data(to);
        for (uint32_t s = 0; s < from->n_segments; s++) {
            const naru_segment *seg = &from->segments[s];
            if (seg->bytes > 0) {
                memcpy(at, (const char *)seg->region->base + seg->offset, seg->bytes);
                at += seg->bytes;
            }
        }
    }
    return NARU_OK;
}
