/* GPUs of this machine, asked of the CUDA driver by dlopen: the plug-in links nothing of CUDA.
 *
 * Why so: ONNX Runtime answers a missing device with an exception's text deep in a library; naru
 * wants to say "no GPU here" before it comes to that, and to name devices in its banner.
 * Source: the CUDA driver API reference (cuInit, cuDeviceGetCount, cuDeviceGetName,
 * cuDeviceTotalMem_v2; all return 0 on success).
 *
 * Threads: `once` guards the table, which is read only afterwards.
 */
#include <dlfcn.h>
#include <string.h>

#include "ort.h"

#define MAX_GPUS 64

static struct {
    pthread_once_t once;
    uint32_t n;
    struct {
        char name[128];
        uint64_t bytes;
    } gpus[MAX_GPUS];
} found = {.once = PTHREAD_ONCE_INIT};

/* A function of the driver; ISO C has no cast from object to function pointers. */
static bool symbol(void *so, const char *name, void *to)
{
    void *at = dlsym(so, name);
    memcpy(to, &at, sizeof at);
    return at != NULL;
}

static void look(void)
{
    int (*init)(unsigned), (*count)(int *), (*get)(int *, int);
    int (*name)(char *, int, int), (*memory)(size_t *, int);
    void *so = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    int n = 0;
    if (!so || !symbol(so, "cuInit", &init) || !symbol(so, "cuDeviceGetCount", &count) ||
        !symbol(so, "cuDeviceGet", &get) || !symbol(so, "cuDeviceGetName", &name) ||
        !symbol(so, "cuDeviceTotalMem_v2", &memory) || init(0) != 0 || count(&n) != 0) {
        return;
    }
    for (int i = 0; i < n && i < MAX_GPUS; i++) {
        int device;
        size_t bytes;
        if (get(&device, i) != 0 ||
            name(found.gpus[i].name, (int)sizeof found.gpus[i].name, device) != 0 ||
            memory(&bytes, device) != 0) {
            return;
        }
        found.gpus[i].bytes = bytes;
        found.n++;
    }
}

uint32_t ort_gpu_count(void)
{
    pthread_once(&found.once, look);
    return found.n;
}

naru_status ort_gpu_get(uint32_t index, naru_device_info *ret)
{
    if (index >= ort_gpu_count()) {
        return NARU_NOT_FOUND;
    }
    uint32_t size = ret->struct_size;
    *ret = (naru_device_info){.struct_size = size,
                              .kind = 1,
                              .id = (int32_t)index,
                              .memory_bytes = found.gpus[index].bytes,
                              .name = found.gpus[index].name};
    return NARU_OK;
}
