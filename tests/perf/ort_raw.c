/* Raw ONNX Runtime through the C API: the limit that the plug-in is measured against.
 *
 *   ort_raw --library L --model M [--threads N] [--pool session|global] [--spin 0|1] [--stop 0|1]
 *           [--batch N] [--seconds S] [--sessions N] [--callers N] [--config key=value] [--idle MS]
 *
 * Runs the model on zeros (dimensions that vary are the batch first, then 1) from --callers threads
 * and prints one line of JSON: runs, rows and nanoseconds per run (median and mean), CPU time per
 * run, CPU time used in the idle time after the runs (spinning), resident memory, threads.
 * Everything is prepared before the loop (values, names), so that the loop is Run alone.
 */
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <onnxruntime_c_api.h>

#include "base/clock.h"
#include "base/hist.h"
#include "base/mem.h"
#include "base/str.h"

#define MAX_IO 16
#define MAX_CONFIG 16

static struct {
    const char *library, *model, *pool;
    const char *config[MAX_CONFIG];
    unsigned n_config;
    uint64_t threads, spin, stop, batch, seconds, sessions, callers, idle_ms, arena;
} opt = {.pool = "session",
         .spin = 1,
         .batch = 1,
         .seconds = 3,
         .sessions = 1,
         .callers = 1,
         .idle_ms = 200,
         .arena = 1};

static const OrtApi *api;
static OrtMemoryInfo *cpu;
static OrtSession *session;
static const char *in_names[MAX_IO], *out_names[MAX_IO];
static size_t n_in, n_out;

static void check(OrtStatus *st)
{
    if (st) {
        fprintf(stderr, "%s\n", api->GetErrorMessage(st));
        exit(1);
    }
}

static int64_t process_cpu(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (int64_t)t.tv_sec * NR_S_NS + t.tv_nsec;
}

static int64_t status_line(const char *key)
{
    FILE *f = fopen("/proc/self/status", "re");
    char line[256];
    int64_t value = -1;
    while (f && fgets(line, sizeof line, f)) {
        struct nr_str s = nr_str_from(line), rest;
        struct nr_str name = nr_str_cut(s, ':', &rest);
        if (nr_str_is(name, key)) {
            struct nr_str digits = nr_str_trim(rest);
            digits.len = strspn(digits.ptr, "0123456789");
            if (!nr_str_to_i64(digits, &value)) {
                value = -1;
            }
        }
    }
    if (f) {
        fclose(f);
    }
    return value;
}

static OrtValue *zeros(size_t index)
{
    OrtTypeInfo *type;
    check(api->SessionGetInputTypeInfo(session, index, &type));
    const OrtTensorTypeAndShapeInfo *info;
    check(api->CastTypeInfoToTensorInfo(type, &info));
    ONNXTensorElementDataType dtype;
    size_t rank;
    int64_t shape[16];
    check(api->GetTensorElementType(info, &dtype));
    check(api->GetDimensionsCount(info, &rank));
    check(api->GetDimensions(info, shape, rank));
    size_t bytes = 8;
    for (size_t d = 0; d < rank; d++) {
        if (shape[d] < 0) {
            shape[d] = d == 0 ? (int64_t)opt.batch : 1;
        }
        bytes *= (size_t)shape[d];
    }
    size_t element = dtype == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT ? 4 : 8;
    void *data = aligned_alloc(64, (bytes + 63) & ~(size_t)63);
    memset(data, 0, bytes);
    OrtValue *v;
    check(api->CreateTensorWithDataAsOrtValue(cpu, data, bytes / 8 * element, shape, rank, dtype,
                                              &v));
    api->ReleaseTypeInfo(type);
    return v;
}

struct caller {
    pthread_t thread;
    struct nr_hist *hist;
};

static pthread_barrier_t warm; /* all callers have made their first runs */
static int64_t begin_ns, until_ns;

static void *run_loop(void *arg)
{
    struct caller *c = arg;
    const OrtValue *in[MAX_IO];
    OrtValue *out[MAX_IO] = {0};
    for (size_t i = 0; i < n_in; i++) {
        in[i] = zeros(i);
    }
    for (int i = 0; i < 2; i++) { /* the first runs plan memory; their outputs are used again */
        check(api->Run(session, NULL, in_names, in, n_in, out_names, n_out, out));
    }
    pthread_barrier_wait(&warm);
    pthread_barrier_wait(&warm); /* the times are set */
    for (int64_t now = nr_clock_now(); now < until_ns;) {
        check(api->Run(session, NULL, in_names, in, n_in, out_names, n_out, out));
        int64_t end = nr_clock_now();
        nr_hist_add(c->hist, (uint64_t)(end - now), 1);
        now = end;
    }
    return NULL;
}

static void read_args(int argc, char **argv)
{
    const struct {
        const char *name;
        const char **text;
        uint64_t *number;
    } all[] = {{"--library", &opt.library, NULL},   {"--model", &opt.model, NULL},
               {"--pool", &opt.pool, NULL},         {"--threads", NULL, &opt.threads},
               {"--spin", NULL, &opt.spin},         {"--stop", NULL, &opt.stop},
               {"--batch", NULL, &opt.batch},       {"--seconds", NULL, &opt.seconds},
               {"--sessions", NULL, &opt.sessions}, {"--callers", NULL, &opt.callers},
               {"--idle", NULL, &opt.idle_ms},      {"--arena", NULL, &opt.arena}};
    for (int i = 1; i + 1 < argc; i += 2) {
        bool known = false;
        if (strcmp(argv[i], "--config") == 0 && opt.n_config < MAX_CONFIG) {
            opt.config[opt.n_config++] = argv[i + 1];
            known = true;
        }
        for (size_t k = 0; k < NR_COUNT(all); k++) {
            if (strcmp(argv[i], all[k].name) == 0) {
                known = all[k].text || nr_str_to_u64(nr_str_from(argv[i + 1]), all[k].number);
                if (all[k].text) {
                    *all[k].text = argv[i + 1];
                }
            }
        }
        if (!known) {
            fprintf(stderr, "what is %s %s?\n", argv[i], argv[i + 1]);
            exit(2);
        }
    }
    if (!opt.library || !opt.model) {
        fprintf(stderr, "--library and --model are needed\n");
        exit(2);
    }
}

static OrtEnv *make_env(void)
{
    OrtEnv *env;
    if (strcmp(opt.pool, "global") == 0) {
        OrtThreadingOptions *t;
        check(api->CreateThreadingOptions(&t));
        check(api->SetGlobalIntraOpNumThreads(t, (int)opt.threads));
        check(api->SetGlobalInterOpNumThreads(t, 1));
        check(api->SetGlobalSpinControl(t, opt.spin != 0));
        check(api->CreateEnvWithGlobalThreadPools(ORT_LOGGING_LEVEL_ERROR, "raw", t, &env));
    } else {
        check(api->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "raw", &env));
    }
    return env;
}

static void open_session(OrtEnv *env)
{
    OrtSessionOptions *so;
    check(api->CreateSessionOptions(&so));
    if (strcmp(opt.pool, "global") == 0) {
        check(api->DisablePerSessionThreads(so));
    } else {
        check(api->SetIntraOpNumThreads(so, (int)opt.threads));
        check(api->AddSessionConfigEntry(so, "session.intra_op.allow_spinning",
                                         opt.spin ? "1" : "0"));
        check(api->AddSessionConfigEntry(so, "session.force_spinning_stop", opt.stop ? "1" : "0"));
    }
    if (!opt.arena) {
        check(api->DisableCpuMemArena(so));
    }
    for (unsigned i = 0; i < opt.n_config; i++) {
        struct nr_str value, key = nr_str_cut(nr_str_from(opt.config[i]), '=', &value);
        nr_autofree char *k = nr_format(NR_STR_FMT, NR_STR_ARG(key));
        check(api->AddSessionConfigEntry(so, k, value.ptr ? value.ptr : ""));
    }
    check(api->CreateSession(env, opt.model, so, &session));
    api->ReleaseSessionOptions(so);
}

int main(int argc, char **argv)
{
    read_args(argc, argv);
    if (setenv("ORT_DISABLE_TELEMETRY", "1", 0) != 0) { /* as the plug-in does */
        return 1;
    }
    void *so = dlopen(opt.library, RTLD_NOW | RTLD_LOCAL);
    void *symbol = so ? dlsym(so, "OrtGetApiBase") : NULL;
    if (!symbol) {
        fprintf(stderr, "%s\n", dlerror());
        return 1;
    }
    const OrtApiBase *(*base)(void);
    memcpy(&base, &symbol, sizeof base);
    api = base()->GetApi(ORT_API_VERSION);
    OrtEnv *env = make_env();
    check(api->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &cpu));
    for (uint64_t i = 0; i < opt.sessions; i++) {
        open_session(env);
    }
    OrtAllocator *alloc;
    check(api->GetAllocatorWithDefaultOptions(&alloc));
    check(api->SessionGetInputCount(session, &n_in));
    check(api->SessionGetOutputCount(session, &n_out));
    for (size_t i = 0; i < n_in && i < MAX_IO; i++) {
        char *name;
        check(api->SessionGetInputName(session, i, alloc, &name));
        in_names[i] = name;
    }
    for (size_t i = 0; i < n_out && i < MAX_IO; i++) {
        char *name;
        check(api->SessionGetOutputName(session, i, alloc, &name));
        out_names[i] = name;
    }
    struct caller callers[64] = {0};
    uint64_t n = NR_MIN(opt.callers, (uint64_t)64);
    pthread_barrier_init(&warm, NULL, (unsigned)n + 1);
    for (uint64_t i = 0; i < n; i++) {
        callers[i].hist = nr_hist_new();
        pthread_create(&callers[i].thread, NULL, run_loop, &callers[i]);
    }
    pthread_barrier_wait(&warm);
    int64_t cpu0 = process_cpu();
    begin_ns = nr_clock_now();
    until_ns = begin_ns + (int64_t)opt.seconds * NR_S_NS;
    pthread_barrier_wait(&warm);
    for (uint64_t i = 0; i < n; i++) {
        pthread_join(callers[i].thread, NULL);
        if (i > 0) {
            nr_hist_merge(callers[0].hist, callers[i].hist);
        }
    }
    int64_t wall = nr_clock_now() - begin_ns, cpu1 = process_cpu();
    usleep((useconds_t)opt.idle_ms * 1000);
    int64_t idle = process_cpu() - cpu1;
    uint64_t runs = nr_hist_count(callers[0].hist);
    printf("{\"runs\":%llu,\"rows_per_s\":%.2f,\"p50_ns\":%llu,\"mean_ns\":%.0f,\"cpu_ns_per_run\":"
           "%.0f,\"idle_cpu_us\":%lld,\"rss_kb\":%lld,\"peak_kb\":%lld,\"threads\":%lld}\n",
           (unsigned long long)runs, (double)(runs * opt.batch) * 1e9 / (double)wall,
           (unsigned long long)nr_hist_quantile(callers[0].hist, 0.5),
           nr_hist_mean(callers[0].hist), (double)(cpu1 - cpu0) / (double)(runs ? runs : 1),
           (long long)(idle / 1000), (long long)status_line("VmRSS"),
           (long long)status_line("VmHWM"), (long long)status_line("Threads"));
    return 0;
}
