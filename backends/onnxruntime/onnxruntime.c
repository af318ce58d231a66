/* onnxruntime: models in ONNX format, on ONNX Runtime through its C API.
 *
 * The library is found at run time, so that the server starts without it, in this order:
 *   option "library" (--backend-config=onnxruntime,library=/path), environment NARU_ONNXRUNTIME,
 *   beside this plug-in, ../onnxruntime (installed), ../../.deps/onnxruntime/lib (build tree),
 *   a directory given at build time, the system's libonnxruntime.so.1.
 * Further options of the backend: "threads" (of the pool; default: the cores this process may use),
 * "spin_us" (how long pool threads wait busily within a run), "shared_arena" (0, 1: one arena for all
 * sessions, for several large models that seldom run at once; it keeps memory when one is closed).
 *
 * Why so (figures in docs/decisions/0007-threads-of-onnx-runtime.md): one environment with one pool of threads
 * for all sessions, since a pool per session costs cores - 1 threads for every model. Models that
 * compute for long get a pool of their own, whose threads may spin while a run lasts and stop with
 * it; there are few of those, and lib->pool_threads bounds them.
 *
 * Telemetry: builds of ONNX Runtime since 1.31 keep a database in the user's cache directory, start
 * a thread and send what they gather over the network, unless ORT_DISABLE_TELEMETRY says no. A server
 * does nothing of the kind unasked, so it is set before the library is loaded (an operator's own value
 * stays). DisableTelemetryEvents comes too late: the database is open by then.
 *
 * Invariants
 *  1. `table.version` is written by lib_open only, which the host calls under a lock, once.
 *  2. Every OrtStatus goes through ort_status, which releases it.
 *
 * Threads: lib is read only after lib_open, but for its atomics. ONNX Runtime's sessions may be
 * opened and run from several threads at once.
 */
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ort.h"

#define DEFAULT_SPIN_US 200
#define OF_LIBRARY "onnxruntime: " /* before its own words */

static char version_text[64] = "1.0";

/* One line, and not too long: words of the library end in newlines, and names that a model chooses can
 * be of any length. In place. */
static void tidy(char *text)
{
    static const char more[] = "…";
    size_t n = 0;
    for (const char *p = text; *p; p++) {
        bool space = (unsigned char)*p <= ' ' || *p == 0x7f;
        if (!space) {
            text[n++] = *p;
        } else if (n > 0 && text[n - 1] != ' ') {
            text[n++] = ' ';
        }
    }
    while (n > 0 && text[n - 1] == ' ') {
        n--;
    }
    text[n] = 0;
    if (n > ORT_MAX_TEXT) {
        n = ORT_MAX_TEXT - sizeof more + 1;
        while (n > 0 && ((unsigned char)text[n] & 0xc0) == 0x80) {
            n--; /* not within a character */
        }
        memcpy(text + n, more, sizeof more);
    }
}

/* The end of a C++ signature that begins at p ("void ns::C::f(int, g(x)) const "), p when there is
 * none. */
static const char *after_signature(const char *p)
{
    const char *open = strchr(p, '(');
    const char *scope = strstr(p, "::");
    int depth = 0;
    if (!open || !scope || scope > open) {
        return p;
    }
    for (const char *at = open; *at; at++) {
        depth += (*at == '(') - (*at == ')');
        if (depth == 0) {
            at++;
            at += strncmp(at, " const", 6) == 0 ? 6 : 0;
            return at + (*at == ' ');
        }
    }
    return p;
}

/* Takes "core/some/file.h:123 " and the signature behind it out of text: where in the library an error
 * was found is nothing to a client. */
static void cut_places(char *text)
{
    static const char *const endings[] = {".h:", ".cc:", ".cpp:", ".hpp:", ".cuh:", ".cu:"};
    for (size_t i = 0; i < sizeof endings / sizeof endings[0]; i++) {
        for (char *at = text; (at = strstr(at, endings[i])) != NULL;) {
            char *end = at + strlen(endings[i]), *begin = at;
            size_t digits = strspn(end, "0123456789");
            while (begin > text && begin[-1] != ' ') {
                begin--;
            }
            if (digits == 0 || end[digits] != ' ') {
                at = end;
                continue;
            }
            const char *rest = after_signature(end + digits + 1);
            memmove(begin, rest, strlen(rest) + 1);
            at = begin;
        }
    }
}

static void on_log(void *param, OrtLoggingLevel severity, const char *category, const char *logid,
                   const char *location, const char *message)
{
    (void)category;
    (void)logid;
    (void)location;
    const naru_host *host = param;
    /* Errors come back as statuses as well, and reach whom they concern; here they are detail. */
    char *copy = strdup(message);
    if (copy) {
        tidy(copy);
        host->log(severity >= ORT_LOGGING_LEVEL_FATAL ? 3 : 0, copy);
        free(copy);
    }
}

bool ort_has_provider(const struct naru_backend_lib *lib, const char *name)
{
    for (int i = 0; i < lib->n_providers; i++) {
        if (strcmp(lib->providers[i], name) == 0) {
            return true;
        }
    }
    return false;
}

/* Takes every occurrence of `part` out of text. */
static void cut_out(char *text, const char *part)
{
    size_t len = part ? strlen(part) : 0;
    if (len < 2) {
        return;
    }
    for (char *at = text; (at = strstr(at, part)) != NULL;) {
        size_t skip = len + (at[len] == '/');
        memmove(at, at + skip, strlen(at + skip) + 1);
    }
}

static naru_status code_of(OrtErrorCode code, const char *text)
{
    if (strstr(text, "Failed to allocate memory") || strstr(text, "std::bad_alloc")) {
        return NARU_NOMEM;
    }
    if (strstr(text, "The output OrtValue provided for output")) {
        return NARU_INTERNAL; /* an output that has not the batch's rows: not the client's mistake */
    }
    switch (code) {
    case ORT_OK:
        return NARU_OK;
    case ORT_INVALID_ARGUMENT:
    case ORT_INVALID_PROTOBUF:
    case ORT_INVALID_GRAPH:
        return NARU_INVALID;
    case ORT_NO_SUCHFILE:
    case ORT_NO_MODEL:
    case ORT_NOT_FOUND:
        return NARU_NOT_FOUND;
    case ORT_NOT_IMPLEMENTED:
        return NARU_UNSUPPORTED;
    default:
        return NARU_INTERNAL;
    }
}

/* What operators say when sizes do not go together. The library has no code for it: some of them say
 * "invalid argument", most "runtime exception". */
static bool is_about_shapes(const char *text)
{
    static const char *const parts[] = {"broadcast an axis",
                                        "imension mismatch", /* with and without a capital */
                                        "ismatched dimensions",
                                        "ncompatible dimensions",
                                        "dimensions must match",
                                        "cannot be reshaped",
                                        "A dimension cannot be less than -1",
                                        "nvalid input shape",
                                        "hape mismatch attempting to re-use buffer"};
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        if (strstr(text, parts[i])) {
            return true;
        }
    }
    return false;
}

/* "Non-zero status code returned while running Conv node. Name:'x' Status Message: text" → "Conv 'x':
 * text". In place. */
static void cut_preamble(char *text)
{
    static const char before[] = "Non-zero status code returned while running ";
    static const char name[] = " node. Name:", message[] = " Status Message: ";
    char *op = strncmp(text, before, sizeof before - 1) == 0 ? text + sizeof before - 1 : NULL;
    char *at = op ? strstr(op, name) : NULL;
    char *said = at ? strstr(at, message) : NULL;
    if (!said) {
        return;
    }
    size_t op_len = (size_t)(at - op), name_len = (size_t)(said - at) - (sizeof name - 1);
    memmove(text, op, op_len);
    text[op_len] = ' ';
    memmove(text + op_len + 1, at + sizeof name - 1, name_len);
    char *end = text + op_len + 1 + name_len;
    memmove(end, ": ", 2);
    said += sizeof message - 1;
    memmove(end + 2, said, strlen(said) + 1);
}

/* "image" [2,3,5,4], "mask" [2,5,4]: what the batch has, rows of all its requests together. */
static void describe_inputs(const naru_batch *batch, char *text, size_t size)
{
    size_t at = 0;
    for (uint32_t i = 0; i < batch->n_inputs; i++) {
        const naru_tensor *in = &batch->inputs[i];
        char shape[24 * NARU_MAX_RANK] = "";
        size_t len = 0;
        for (uint32_t d = 0; d < in->rank && len < sizeof shape - 24; d++) {
            len += (size_t)snprintf(shape + len, sizeof shape - len, "%s%lld", d ? "," : "",
                                    (long long)in->shape[d]);
        }
        int n = snprintf(text + at, size - at, "%s\"%.64s\" [%s]", i ? ", " : "", in->name, shape);
        if (n < 0 || (size_t)n >= size - at - 4) { /* room is left for the dots */
            memcpy(text + at, " …", 5);
            return;
        }
        at += (size_t)n;
    }
}

naru_status ort_run_status(const naru_backend_model *m, const naru_batch *batch, OrtStatus *st,
                           naru_text *err)
{
    bool shapes = m->open_shapes && is_about_shapes(m->lib->api->GetErrorMessage(st));
    naru_status code = ort_status(m->lib, st, NULL, 0, err);
    code = code == NARU_INTERNAL && shapes ? NARU_INVALID : code;
    char *said = code == NARU_INVALID && m->open_shapes && err ? strdup(err->data) : NULL;
    if (said) {
        char inputs[200] = "";
        describe_inputs(batch, inputs, sizeof inputs);
        (void)naru_fail(err, code, "the model cannot run with input %s: %s", inputs,
                        strncmp(said, OF_LIBRARY, sizeof OF_LIBRARY - 1) == 0
                            ? said + sizeof OF_LIBRARY - 1
                            : said);
        free(said);
    }
    return code;
}

naru_status ort_status(const struct naru_backend_lib *lib, OrtStatus *st, const char *const *hide,
                       unsigned n_hide, naru_text *err)
{
    if (!st) {
        return NARU_OK;
    }
    const char *text = lib->api->GetErrorMessage(st);
    naru_status code = code_of(lib->api->GetErrorCode(st), text);
    char *copy = strdup(text);
    for (unsigned i = 0; copy && i < n_hide; i++) {
        cut_out(copy, hide[i]);
    }
    if (copy) {
        char *resolved = strstr(copy, " resolved path:"); /* where this machine keeps things */
        if (resolved) {
            *resolved = 0;
        }
        cut_places(copy);
        cut_preamble(copy);
        tidy(copy);
    }
    (void)naru_fail(err, code, OF_LIBRARY "%s", copy ? copy : "out of memory");
    free(copy);
    lib->api->ReleaseStatus(st);
    return code;
}

/* ---- finding the library ----------------------------------------------------------------------- */

/* The library in `dir`, whatever version its name carries, into path[PATH_MAX]. */
static bool find_in(const char *dir, char *path)
{
    static const char stem[] = "libonnxruntime.so";
    char best[NAME_MAX + 1] = "";
    DIR *d = opendir(dir);
    if (!d) {
        return false;
    }
    for (struct dirent *e; (e = readdir(d)) != NULL;) {
        const char *rest = e->d_name + sizeof stem - 1;
        if (strncmp(e->d_name, stem, sizeof stem - 1) == 0 && (*rest == 0 || *rest == '.') &&
            strcmp(e->d_name, best) > 0) {
            (void)snprintf(best, sizeof best, "%s", e->d_name);
        }
    }
    closedir(d);
    int n = snprintf(path, PATH_MAX, "%s/%s", dir, best);
    return best[0] && n > 0 && n < PATH_MAX;
}

/* The directory of this plug-in with `rest` behind it, into dir[PATH_MAX]. */
static bool beside(const char *rest, char *dir)
{
    Dl_info info;
    if (!dladdr(version_text, &info) || !info.dli_fname) {
        return false;
    }
    const char *slash = strrchr(info.dli_fname, '/');
    int n = slash ? snprintf(dir, PATH_MAX, "%.*s%s", (int)(slash - info.dli_fname), info.dli_fname,
                             rest)
                  : -1;
    return n > 0 && n < PATH_MAX;
}

static void *open_default(char *path)
{
    static const char *const places[] = {"", "/../onnxruntime", "/../../.deps/onnxruntime/lib"};
    char dir[PATH_MAX];
    for (size_t i = 0; i < sizeof places / sizeof places[0]; i++) {
        if (beside(places[i], dir) && find_in(dir, path)) {
            return dlopen(path, RTLD_NOW | RTLD_LOCAL);
        }
    }
#ifdef NARU_ORT_LIBRARY_DIR
    if (find_in(NARU_ORT_LIBRARY_DIR, path)) {
        return dlopen(path, RTLD_NOW | RTLD_LOCAL);
    }
#endif
    (void)snprintf(path, PATH_MAX, "libonnxruntime.so.1");
    return dlopen(path, RTLD_NOW | RTLD_LOCAL);
}

static naru_status load(const naru_option *options, uint32_t n, const OrtApiBase **ret,
                        naru_text *err)
{
    char path[PATH_MAX];
    /* The first change of the environment in this process: threads that read it meanwhile see the old
     * array, which stays. The library reads it in the next call. */
    if (setenv("ORT_DISABLE_TELEMETRY", "1", 0) != 0) {
        return NARU_NOMEM;
    }
    const char *given = naru_option_get(options, n, "library");
    if (!given) {
        given = getenv("NARU_ONNXRUNTIME");
    }
    void *so;
    if (given && given[0]) {
        if (given[0] != '/') {
            return naru_fail(err, NARU_INVALID,
                             "library \"%.256s\" of onnxruntime: an absolute path is expected",
                             given);
        }
        (void)snprintf(path, sizeof path, "%s", given);
        so = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    } else {
        so = open_default(path);
    }
    if (!so) {
        const char *why = dlerror();
        return naru_fail(err, NARU_UNAVAILABLE,
                         "cannot open the ONNX Runtime library: %.300s; run scripts/setup, or name "
                         "it: --backend-config=onnxruntime,library=/path/libonnxruntime.so",
                         why ? why : path);
    }
    void *symbol = dlsym(so, "OrtGetApiBase");
    if (!symbol) {
        dlclose(so);
        return naru_fail(err, NARU_UNSUPPORTED, "%.300s is no ONNX Runtime library", path);
    }
    const OrtApiBase *(*base)(void);
    memcpy(&base, &symbol, sizeof base);
    *ret = base(); /* stays mapped for ever: it leaves threads and exit handlers behind */
    return *ret ? NARU_OK : naru_fail(err, NARU_UNSUPPORTED, "%.300s gives no interface", path);
}

/* ---- opening ----------------------------------------------------------------------------------- */

/* Whole cores that the control group's quota allows ("200000 100000" in cpu.max), or INT_MAX. */
static int quota_cores(void)
{
    char text[64];
    int fd = open("/sys/fs/cgroup/cpu.max", O_RDONLY | O_CLOEXEC);
    ssize_t n = fd >= 0 ? read(fd, text, sizeof text - 1) : -1;
    if (fd >= 0) {
        close(fd);
    }
    text[n > 0 ? n : 0] = 0;
    text[strcspn(text, "\n")] = 0;
    char *space = strchr(text, ' ');
    int64_t quota, period;
    if (!space) {
        return INT_MAX;
    }
    *space = 0;
    if (!naru_parse_i64(text, &quota) || !naru_parse_i64(space + 1, &period) || quota <= 0 ||
        period <= 0 || quota / period >= INT_MAX) {
        return INT_MAX; /* "max" is no number: there is no quota */
    }
    return (int)((quota - 1) / period + 1);
}

/* Cores this process may use: its affinity, and the quota of its control group. */
static int count_cores(void)
{
    cpu_set_t set;
    int cores = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
    int quota = quota_cores();
    cores = quota < cores ? quota : cores;
    return cores > 0 ? cores : 1;
}

static naru_status make_env(struct naru_backend_lib *lib, naru_text *err)
{
    const OrtApi *a = lib->api;
    OrtThreadingOptions *t = NULL;
    naru_status st = ort_status(lib, a->CreateThreadingOptions(&t), NULL, 0, err);
    if (st != NARU_OK) {
        return st;
    }
    OrtStatus *s = a->SetGlobalIntraOpNumThreads(t, lib->cores);
    s = s ? s : a->SetGlobalInterOpNumThreads(t, 1);
    s = s ? s : a->SetGlobalSpinControl(t, 0); /* idle threads must cost nothing */
    s = s ? s
          : a->CreateEnvWithCustomLoggerAndGlobalThreadPools(on_log, (void *)(uintptr_t)lib->host,
                                                             ORT_LOGGING_LEVEL_ERROR, "naru", t,
                                                             &lib->env);
    s = s ? s : a->DisableTelemetryEvents(lib->env);
    s = s ? s : a->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &lib->cpu_memory);
    s = s ? s : a->GetAllocatorWithDefaultOptions(&lib->allocator);
    s = s ? s : a->GetAvailableProviders(&lib->providers, &lib->n_providers);
    if (!s && lib->shared_arena) {
        /* One arena that grows by what is asked, instead of one per session that doubles. */
        OrtArenaCfg *cfg = NULL;
        static const char *const keys[] = {"max_mem", "arena_extend_strategy"};
        const size_t values[] = {0, 1};
        s = a->CreateArenaCfgV2(keys, values, 2, &cfg);
        s = s ? s : a->CreateAndRegisterAllocator(lib->env, lib->cpu_memory, cfg);
        if (cfg) {
            a->ReleaseArenaCfg(cfg);
        }
    }
    a->ReleaseThreadingOptions(t);
    return ort_status(lib, s, NULL, 0, err);
}

static void lib_close(naru_backend_lib *lib)
{
    if (!lib) {
        return;
    }
    const OrtApi *a = lib->api;
    if (lib->providers) {
        OrtStatus *s = a->ReleaseAvailableProviders(lib->providers, lib->n_providers);
        (void)ort_status(lib, s, NULL, 0, NULL);
    }
    if (lib->cpu_memory) {
        a->ReleaseMemoryInfo(lib->cpu_memory);
    }
    if (lib->env) {
        a->ReleaseEnv(lib->env);
    }
    ort_spawner_free(lib->spawner);
    ort_books_free(lib->books);
    free(lib);
}

static naru_status read_lib_options(struct naru_backend_lib *lib, const naru_option *options,
                                    uint32_t n, naru_text *err)
{
    int64_t threads = count_cores(), spin = DEFAULT_SPIN_US;
    int shared = 0;
    naru_status st = naru_option_i64(options, n, "threads", 1, 1024, &threads, err);
    if (st == NARU_OK) {
        st = naru_option_i64(options, n, "spin_us", 0, 1000000, &spin, err);
    }
    if (st == NARU_OK) {
        st = naru_option_bool(options, n, "shared_arena", &shared, err);
    }
    lib->cores = (int)threads;
    lib->spin_us = (int)spin;
    lib->shared_arena = shared != 0;
    return st;
}

static naru_status lib_open(const naru_host *host, const naru_option *options, uint32_t n_options,
                            naru_backend_lib **ret, naru_text *err)
{
    const OrtApiBase *base = NULL;
    naru_status st = load(options, n_options, &base, err);
    if (st != NARU_OK || !base) {
        return st;
    }
    naru_backend_lib *lib = calloc(1, sizeof *lib);
    if (!lib) {
        return NARU_NOMEM;
    }
    lib->host = host;
    lib->api = base->GetApi(ORT_API_VERSION);
    (void)snprintf(lib->version, sizeof lib->version, "%s", base->GetVersionString());
    if (!lib->api) {
        st = naru_fail(err, NARU_UNSUPPORTED,
                       "ONNX Runtime %s is older than this plug-in, which needs 1.%d or later",
                       lib->version, ORT_API_VERSION);
        free(lib);
        return st;
    }
    st = read_lib_options(lib, options, n_options, err);
    if (st == NARU_OK) {
        lib->spawner = ort_spawner_new();
        lib->books = ort_books_new();
        st = lib->books ? make_env(lib, err) : NARU_NOMEM;
    }
    if (st == NARU_OK) {
        st = ort_books_prime(lib, err);
    }
    if (st != NARU_OK) {
        lib_close(lib);
        return st;
    }
    (void)snprintf(version_text, sizeof version_text, "1.0 (ONNX Runtime %s)", lib->version);
    *ret = lib;
    return NARU_OK;
}

static uint32_t device_count(naru_backend_lib *lib)
{
    return ort_has_provider(lib, "CUDAExecutionProvider") ? ort_gpu_count() : 0;
}

static naru_status device_get(naru_backend_lib *lib, uint32_t index, naru_device_info *ret)
{
    (void)lib;
    return ort_gpu_get(index, ret);
}

static const naru_backend table = {
    .struct_size = sizeof table,
    .abi_major = NARU_ABI_MAJOR,
    .abi_minor = NARU_ABI_MINOR,
    .name = "onnxruntime",
    .version = version_text,
    .caps = NARU_CAP_INLINE,
    .lib_open = lib_open,
    .lib_close = lib_close,
    .model_open = ort_model_open,
    .model_close = ort_model_close,
    .model_info = ort_model_info,
    .instance_open = ort_instance_open,
    .instance_close = ort_instance_close,
    .execute = ort_execute,
    .cancel = ort_cancel,
    .device_count = device_count,
    .device_get = device_get,
    .model_memory = ort_model_memory,
    .model_trim = ort_model_trim,
    .model_form = ort_model_form,
};

NARU_EXPORT const naru_backend *naru_backend_entry(void);
const naru_backend *naru_backend_entry(void)
{
    return &table;
}
