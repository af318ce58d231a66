/* Giving back what a session keeps between runs.
 *
 * Why so: a session's arena grows to what its largest run needed and stays there; after some tiles of
 * a picture that is half a gigabyte. The C API can shrink an arena only at the end of a run (run option
 * memory.enable_memory_arena_shrinkage), and shrinking after every large run would fault the same pages
 * in again for the next. So the host says when a model is idle, and then a run is made that does
 * nothing: its terminate flag is set, so that ONNX Runtime stops before the first operator, and shrinks
 * on its way out. The inputs must pass its checks of shape and type, but are never read; they lie in
 * address space without memory behind it.
 *
 * Arenas with less than TRIM_BYTES unused are left alone: faulting that in again costs some
 * milliseconds, which would be seen in a run of twenty.
 *
 * Threads: any, also while the session runs; nothing of the model is written.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "ort.h"

#define TRIM_BYTES (UINT64_C(32) << 20)
/* A model with other forms runs in those, likely, and holds more memory anyway. */
#define TRIM_BESIDE_BYTES (UINT64_C(4) << 20)
#define MAX_STRINGS 4096 /* each is an object of the library's */

/* Bytes that the session's arena holds and nobody uses. */
static uint64_t unused_bytes(const naru_backend_model *m)
{
    struct ort_arena a = ort_arena_get(m);
    return a.held > a.used ? a.held - a.used : 0;
}

struct probe { /* the inputs of a run that ends before it begins */
    const char **names;
    OrtValue **values;
    void **memory;
    size_t *bytes;
    uint32_t n;
};

/* Input i of the smallest shape that it may have. */
static bool probe_input(const naru_backend_model *m, uint32_t i, struct probe *p)
{
    const OrtApi *a = m->lib->api;
    const naru_io *io = &m->info.inputs[i];
    int64_t shape[NARU_MAX_RANK];
    size_t n = 1, bytes;
    for (uint32_t d = 0; d < io->rank; d++) {
        shape[d] = io->shape[d] < 0 ? 1 : io->shape[d];
        if (__builtin_mul_overflow(n, (size_t)shape[d], &n)) {
            return false;
        }
    }
    OrtStatus *s = NULL;
    if (io->dtype == NARU_BYTES) {
        if (n > MAX_STRINGS) {
            return false;
        }
        s = a->CreateTensorAsOrtValue(m->lib->allocator, shape, io->rank, m->ins[i].type,
                                      &p->values[i]);
    } else {
        if (__builtin_mul_overflow(n, naru_dtype_bytes(io->dtype), &bytes)) {
            return false;
        }
        p->bytes[i] = bytes > 0 ? bytes : 1;
        void *at = mmap(NULL, p->bytes[i], PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (at == MAP_FAILED) {
            return false;
        }
        p->memory[i] = at;
        s = a->CreateTensorWithDataAsOrtValue(m->lib->cpu_memory, at, bytes, shape, io->rank,
                                              m->ins[i].type, &p->values[i]);
    }
    p->names[i] = m->ins[i].name;
    return ort_status(m->lib, s, NULL, 0, NULL) == NARU_OK;
}

static void probe_done(const naru_backend_model *m, struct probe *p)
{
    for (uint32_t i = 0; i < p->n; i++) {
        if (p->values && p->values[i]) {
            m->lib->api->ReleaseValue(p->values[i]);
        }
        if (p->memory && p->memory[i]) {
            munmap(p->memory[i], p->bytes[i]);
        }
    }
    free(p->names);
    free(p->values);
    free(p->memory);
    free(p->bytes);
}

static bool probe_init(const naru_backend_model *m, struct probe *p)
{
    size_t n = (size_t)m->info.n_inputs + 1;
    *p = (struct probe){.names = calloc(n, sizeof *p->names),
                        .values = calloc(n, sizeof *p->values),
                        .memory = calloc(n, sizeof *p->memory),
                        .bytes = calloc(n, sizeof *p->bytes)};
    if (!p->names || !p->values || !p->memory || !p->bytes) {
        return false;
    }
    for (p->n = 0; p->n < m->info.n_inputs;) {
        if (!probe_input(m, p->n++, p)) {
            return false;
        }
    }
    return true;
}

/* The run that only shrinks. What it answers does not matter. */
static void shrink(const naru_backend_model *m, const struct probe *p)
{
    const OrtApi *a = m->lib->api;
    OrtRunOptions *options = NULL;
    OrtValue *out = NULL;
    OrtStatus *s = a->CreateRunOptions(&options);
    s = s ? s : a->AddRunConfigEntry(options, "memory.enable_memory_arena_shrinkage", "cpu:0");
    s = s ? s : a->RunOptionsSetTerminate(options);
    s = s ? s
          : a->Run(m->session, options, p->names, (const OrtValue *const *)p->values, p->n,
                   &m->outs[0].name, 1, &out);
    if (out) {
        a->ReleaseValue(out);
    }
    if (options) {
        a->ReleaseRunOptions(options);
    }
    (void)ort_status(m->lib, s, NULL, 0, NULL);
}

uint64_t ort_model_trim(naru_backend_model *model)
{
    struct probe p;
    uint64_t before = model->device < 0 ? unused_bytes(model) : 0, after = before;
    bool has_forms = model->forms[NARU_FORM_QUIET] || model->forms[NARU_FORM_NARROW];
    if (before < (has_forms ? TRIM_BESIDE_BYTES : TRIM_BYTES)) {
        return 0;
    }
    if (probe_init(model, &p)) {
        shrink(model, &p);
        after = unused_bytes(model);
    }
    probe_done(model, &p);
    return before > after ? before - after : 0;
}
