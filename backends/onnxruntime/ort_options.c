/* config.pbtxt → session options, with Triton's names.
 *
 * parameters: intra_op_thread_count, inter_op_thread_count, execution_mode (0 sequential, 1
 * parallel), enable_mem_arena, enable_mem_pattern (0, 1), and any key that begins with "session.",
 * "optimization.", "mlas." or "ep.", which goes to ONNX Runtime as it is.
 * memory.enable_memory_arena_shrinkage is an option of runs (ort_model.c).
 * optimization: graph.level (-1 basic, 1 extended, 2 none, else all), execution_accelerators
 * (gpu_execution_accelerator: tensorrt, cuda, with their parameters).
 *
 * Threads of a session. An explicit count makes a pool of its own. Else a model that computes for
 * long (convolutions, recurrent layers, or 4 MiB of weights) gets a pool while few others have one,
 * and everything else uses the pool of the environment, which small operators never enter.
 *
 * A model that computes for long, and of which nobody said how many threads it has, is elastic: the host may
 * have it run otherwise (ort_forms.c).
 *
 * Threads: lib->pool_threads is the only thing shared; it is charged here and given back by
 * ort_model_close.
 */
#include <stdlib.h>
#include <string.h>

#include "ort.h"

#define HEAVY_BYTES (UINT64_C(4) << 20)
#define MAX_THREADS 1024
#define MAX_EP_OPTIONS 32
#define ACCELERATOR "naru.opt.execution_accelerators.gpu_execution_accelerator."

/* Tries to take an own pool of lib->cores threads out of the bound, four per core but at least 8. */
static int charge_pool(struct naru_backend_lib *lib)
{
    int more = lib->cores - 1;
    int bound = 4 * lib->cores > 8 ? 4 * lib->cores : 8;
    int now = atomic_load_explicit(&lib->pool_threads, memory_order_relaxed);
    do {
        if (more <= 0 || now + more > bound) {
            return 0;
        }
    } while (!atomic_compare_exchange_weak_explicit(&lib->pool_threads, &now, now + more,
                                                    memory_order_relaxed, memory_order_relaxed));
    return more;
}

static OrtStatus *set_spin(struct naru_backend_lib *lib, OrtSessionOptions *so)
{
    const OrtApi *a = lib->api;
    if (lib->spin_us == 0) {
        return a->AddSessionConfigEntry(so, "session.intra_op.allow_spinning", "0");
    }
    char us[16];
    (void)snprintf(us, sizeof us, "%d", lib->spin_us);
    /* Within a run the gaps between operators are short, so waiting busily pays; between runs the
     * cores belong to others. */
    OrtStatus *s = a->AddSessionConfigEntry(so, "session.force_spinning_stop", "1");
    return s ? s : a->AddSessionConfigEntry(so, "session.intra_op.spin_duration_us", us);
}

/* Does the configuration say something of threads, or hand the library a wish that other sessions of the
 * same model might contradict? */
static bool is_fixed(const naru_model_args *args)
{
    static const char *const keys[] = {"intra_op_thread_count", "inter_op_thread_count",
                                       "execution_mode"};
    for (uint32_t i = 0; i < args->n_options; i++) {
        const char *key = args->options[i].key;
        bool fixed = strncmp(key, "session.", 8) == 0 || strncmp(key, "ep.", 3) == 0;
        for (size_t k = 0; k < sizeof keys / sizeof keys[0]; k++) {
            fixed = fixed || strcmp(key, keys[k]) == 0;
        }
        if (fixed) {
            return true;
        }
    }
    return args->threads > 0 || args->device >= 0;
}

static bool is_heavy(const struct ort_graph *graph)
{
    return graph->n_convolutions > 0 || graph->weight_bytes >= HEAVY_BYTES;
}

bool ort_options_elastic(const struct naru_backend_lib *lib, const naru_model_args *args,
                         const struct ort_graph *graph)
{
    return is_heavy(graph) && lib->cores > 1 && !is_fixed(args);
}

naru_status ort_options_threads(struct naru_backend_lib *lib, const naru_model_args *args,
                                const struct ort_graph *graph, OrtSessionOptions *so,
                                struct ort_threads *ret, naru_text *err)
{
    const OrtApi *a = lib->api;
    int64_t intra = args->threads, inter = 0, mode = 0;
    naru_status st = naru_option_i64(args->options, args->n_options, "intra_op_thread_count", 0,
                                     MAX_THREADS, &intra, err);
    if (st == NARU_OK) {
        st = naru_option_i64(args->options, args->n_options, "inter_op_thread_count", 0,
                             MAX_THREADS, &inter, err);
    }
    if (st == NARU_OK) {
        st = naru_option_i64(args->options, args->n_options, "execution_mode", 0, 1, &mode, err);
    }
    if (st != NARU_OK) {
        return st;
    }
    *ret = (struct ort_threads){.intra = (int)intra};
    OrtStatus *s = NULL;
    if (mode == 1) {
        s = a->SetSessionExecutionMode(so, ORT_PARALLEL);
    }
    ret->elastic = ort_options_elastic(lib, args, graph);
    if (intra == 0 && is_heavy(graph) && args->device < 0) {
        ret->charged = charge_pool(lib);
        ret->intra = ret->charged > 0 ? ret->charged + 1 : 0;
    }
    /* Parallel execution needs a pool between operators, which the environment's does not have. */
    if (ret->intra == 0 && mode == 0 && inter == 0) {
        s = s ? s : a->DisablePerSessionThreads(so);
    } else {
        s = s ? s : a->SetIntraOpNumThreads(so, ret->intra > 0 ? ret->intra : lib->cores);
        s = s ? s : a->SetInterOpNumThreads(so, inter > 0 ? (int)inter : mode ? lib->cores : 1);
        s = s ? s : set_spin(lib, so);
        s = s ? s : ort_spawner_use(lib->spawner, a, so);
    }
    return ort_status(lib, s, NULL, 0, err);
}

static naru_status set_graph_level(struct naru_backend_lib *lib, const naru_model_args *args,
                                   OrtSessionOptions *so, naru_text *err)
{
    int64_t level = 0;
    naru_status st = naru_option_i64(args->options, args->n_options, "naru.opt.graph.level", -2,
                                     100, &level, err);
    if (st != NARU_OK) {
        return st;
    }
    GraphOptimizationLevel to = level == -1  ? ORT_ENABLE_BASIC
                                : level == 1 ? ORT_ENABLE_EXTENDED
                                : level == 2 ? ORT_DISABLE_ALL
                                             : ORT_ENABLE_ALL;
    return ort_status(lib, lib->api->SetSessionGraphOptimizationLevel(so, to), NULL, 0, err);
}

static naru_status set_memory(struct naru_backend_lib *lib, const naru_model_args *args,
                              OrtSessionOptions *so, naru_text *err)
{
    const OrtApi *a = lib->api;
    int arena = 1, pattern = 1;
    naru_status st =
        naru_option_bool(args->options, args->n_options, "enable_mem_arena", &arena, err);
    if (st == NARU_OK) {
        st = naru_option_bool(args->options, args->n_options, "enable_mem_pattern", &pattern, err);
    }
    if (st != NARU_OK) {
        return st;
    }
    OrtStatus *s = NULL;
    if (!arena) {
        s = a->DisableCpuMemArena(so);
    } else if (lib->shared_arena && args->device < 0) {
        s = a->AddSessionConfigEntry(so, "session.use_env_allocators", "1");
    }
    if (!pattern) {
        s = s ? s : a->DisableMemPattern(so);
    }
    return ort_status(lib, s, NULL, 0, err);
}

static naru_status pass_through(struct naru_backend_lib *lib, const naru_model_args *args,
                                OrtSessionOptions *so, naru_text *err)
{
    static const char *const prefixes[] = {"session.", "optimization.", "mlas.", "ep."};
    for (uint32_t i = 0; i < args->n_options; i++) {
        const naru_option *o = &args->options[i];
        for (size_t k = 0; k < sizeof prefixes / sizeof prefixes[0]; k++) {
            if (strncmp(o->key, prefixes[k], strlen(prefixes[k])) != 0) {
                continue;
            }
            naru_status st = ort_status(lib, lib->api->AddSessionConfigEntry(so, o->key, o->value),
                                        NULL, 0, err);
            if (st != NARU_OK) {
                return st;
            }
        }
    }
    return NARU_OK;
}

/* Parameters of the accelerator `index` of the configuration, and the device. Returns their number. */
static size_t ep_options(const naru_model_args *args, int index, const char *device,
                         const char **keys, const char **values)
{
    size_t n = 0;
    char prefix[128];
    int len = snprintf(prefix, sizeof prefix, ACCELERATOR "%d.parameters.", index);
    keys[n] = "device_id";
    values[n++] = device;
    for (uint32_t i = 0; index >= 0 && i < args->n_options && n < MAX_EP_OPTIONS; i++) {
        if (strncmp(args->options[i].key, prefix, (size_t)len) == 0) {
            keys[n] = args->options[i].key + len;
            values[n++] = args->options[i].value;
        }
    }
    return n;
}

static OrtStatus *append_tensorrt(const OrtApi *a, OrtSessionOptions *so, const char **keys,
                                  const char **values, size_t n)
{
    OrtTensorRTProviderOptionsV2 *o = NULL;
    OrtStatus *s = a->CreateTensorRTProviderOptions(&o);
    s = s ? s : a->UpdateTensorRTProviderOptions(o, keys, values, n);
    s = s ? s : a->SessionOptionsAppendExecutionProvider_TensorRT_V2(so, o);
    if (o) {
        a->ReleaseTensorRTProviderOptions(o);
    }
    return s;
}

static OrtStatus *append_cuda(const OrtApi *a, OrtSessionOptions *so, const char **keys,
                              const char **values, size_t n)
{
    OrtCUDAProviderOptionsV2 *o = NULL;
    OrtStatus *s = a->CreateCUDAProviderOptions(&o);
    s = s ? s : a->UpdateCUDAProviderOptions(o, keys, values, n);
    s = s ? s : a->SessionOptionsAppendExecutionProvider_CUDA_V2(so, o);
    if (o) {
        a->ReleaseCUDAProviderOptions(o);
    }
    return s;
}

/* KIND_GPU: the accelerators named by the configuration, then CUDA for what they leave. */
static naru_status set_device(struct naru_backend_lib *lib, const naru_model_args *args,
                              OrtSessionOptions *so, naru_text *err)
{
    if (args->device < 0) {
        return NARU_OK;
    }
    if (!ort_has_provider(lib, "CUDAExecutionProvider")) {
        return naru_fail(err, NARU_UNSUPPORTED,
                         "KIND_GPU: this ONNX Runtime %s is built for the CPU; name one with CUDA "
                         "(--backend-config=onnxruntime,library=…) or use KIND_CPU",
                         lib->version);
    }
    if ((uint32_t)args->device >= ort_gpu_count()) {
        return naru_fail(err, NARU_UNAVAILABLE,
                         "KIND_GPU: GPU %d was asked for, this machine has %u; use KIND_CPU or "
                         "another of its numbers",
                         args->device, ort_gpu_count());
    }
    const char *keys[MAX_EP_OPTIONS], *values[MAX_EP_OPTIONS];
    char device[16], key[128];
    (void)snprintf(device, sizeof device, "%d", args->device);
    int cuda = -1;
    OrtStatus *s = NULL;
    for (int i = 0; i < 8 && !s; i++) {
        (void)snprintf(key, sizeof key, ACCELERATOR "%d.name", i);
        const char *name = naru_option_get(args->options, args->n_options, key);
        if (!name) {
            break;
        }
        if (strcmp(name, "cuda") == 0) {
            cuda = i;
        } else if (strcmp(name, "tensorrt") == 0 &&
                   ort_has_provider(lib, "TensorrtExecutionProvider")) {
            s = append_tensorrt(lib->api, so, keys, values,
                                ep_options(args, i, device, keys, values));
        } else {
            return naru_fail(err, NARU_UNSUPPORTED,
                             "gpu_execution_accelerator \"%.64s\" is not part of this ONNX "
                             "Runtime; \"tensorrt\" and \"cuda\" are known",
                             name);
        }
    }
    s = s ? s
          : append_cuda(lib->api, so, keys, values, ep_options(args, cuda, device, keys, values));
    return ort_status(lib, s, NULL, 0, err);
}

const char *const *ort_options_used(const naru_model_args *args)
{
    static const char *const all[] = {"naru.opt.graph.level", ACCELERATOR, NULL};
    static const char *const on_cpu[] = {"naru.opt.graph.level", NULL};
    return args->device < 0 ? on_cpu : all;
}

naru_status ort_options_plain(struct naru_backend_lib *lib, const naru_model_args *args,
                              bool optimise, OrtSessionOptions **ret, naru_text *err)
{
    OrtSessionOptions *so = NULL;
    naru_status st = ort_status(lib, lib->api->CreateSessionOptions(&so), NULL, 0, err);
    if (st == NARU_OK && optimise) {
        st = set_graph_level(lib, args, so, err);
    } else if (st == NARU_OK) {
        OrtStatus *s = lib->api->SetSessionGraphOptimizationLevel(so, ORT_DISABLE_ALL);
        st = ort_status(lib, s, NULL, 0, err);
    }
    if (st == NARU_OK) {
        st = set_memory(lib, args, so, err);
    }
    if (st == NARU_OK) {
        st = pass_through(lib, args, so, err);
    }
    if (st == NARU_OK) {
        st = set_device(lib, args, so, err);
    }
    if (st != NARU_OK) {
        if (so) {
            lib->api->ReleaseSessionOptions(so);
        }
        return st;
    }
    *ret = so;
    return NARU_OK;
}
