/* identity: every output repeats its input. The smallest complete plug-in, and the yardstick of what
 * the server itself costs.
 *
 * Takes inputs in segments, so what it shows is one copy from where the requests lie to the response.
 * Parameters: "io" (echo.h).
 *
 * Threads: no state but the model's description.
 */
#include <stdlib.h>

#include "echo.h"

struct naru_backend_lib {
    const naru_host *host;
};

struct naru_backend_model {
    struct naru_backend_lib *lib;
    struct echo_io io;
};

struct naru_backend_instance {
    struct naru_backend_model *model;
};

static naru_status lib_open(const naru_host *host, const naru_option *options, uint32_t n_options,
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

static void lib_close(naru_backend_lib *lib)
{
    free(lib);
}

static naru_status model_open(naru_backend_lib *lib, const naru_model_args *args,
                              naru_backend_model **ret, naru_text *err)
{
    naru_backend_model *m = calloc(1, sizeof *m);
    if (!m) {
        return NARU_NOMEM;
    }
    m->lib = lib;
    naru_status st = echo_io_init(&m->io, args, err);
    if (st != NARU_OK) {
        free(m);
        return st;
    }
    *ret = m;
    return NARU_OK;
}

static void model_close(naru_backend_model *model)
{
    if (model) {
        echo_io_done(&model->io);
        free(model);
    }
}

static const naru_model_info *model_info(naru_backend_model *model)
{
    return &model->io.info;
}

static naru_status instance_open(naru_backend_model *model, uint32_t index, int32_t device,
                                 naru_backend_instance **ret, naru_text *err)
{
    (void)index;
    if (device >= 0) {
        return naru_fail(err, NARU_UNSUPPORTED, "identity runs on the CPU; KIND_GPU was asked for");
    }
    naru_backend_instance *i = calloc(1, sizeof *i);
    if (!i) {
        return NARU_NOMEM;
    }
    i->model = model;
    *ret = i;
    return NARU_OK;
}

static void instance_close(naru_backend_instance *instance)
{
    free(instance);
}

static naru_status execute(naru_backend_instance *instance, naru_batch *batch, naru_text *err)
{
    return echo_copy(instance->model->lib->host, &instance->model->io, batch, err);
}

static const naru_backend table = {
    .struct_size = sizeof table,
    .abi_major = NARU_ABI_MAJOR,
    .abi_minor = NARU_ABI_MINOR,
    .name = "identity",
    .version = "1.0",
    .caps = NARU_CAP_SEGMENTS | NARU_CAP_INLINE | NARU_CAP_FORK_SAFE,
    .lib_open = lib_open,
    .lib_close = lib_close,
    .model_open = model_open,
    .model_close = model_close,
    .model_info = model_info,
    .instance_open = instance_open,
    .instance_close = instance_close,
    .execute = execute,
};

NARU_EXPORT const naru_backend *naru_backend_entry(void);
const naru_backend *naru_backend_entry(void)
{
    return &table;
}
