/* identity: every output repeats its input. The smallest complete plug-in, and the yardstick of what
 * the server itself costs.
 *
 * Takes inputs in segments, so what it shows is one copy from where the requests lie to the response.
 * Parameters: "io" (echo.h).
 *
 * Threads: no state but the model's description.
 */
#include "echo.h"

struct naru_backend_model {
    struct echo_model echo;
};

struct naru_backend_instance {
    struct echo_instance echo;
};

static naru_status model_open(naru_backend_lib *lib, const naru_model_args *args,
                              naru_backend_model **ret, naru_text *err)
{
    return echo_model_new(lib, "identity", args, sizeof **ret, ret, err);
}

static naru_status execute(naru_backend_instance *instance, naru_batch *batch, naru_text *err)
{
    return echo_copy(&instance->echo.model->echo, batch, err);
}

static const naru_backend table = {
    .struct_size = sizeof table,
    .abi_major = NARU_ABI_MAJOR,
    .abi_minor = NARU_ABI_MINOR,
    .name = "identity",
    .version = "1.0",
    .caps = NARU_CAP_SEGMENTS | NARU_CAP_INLINE | NARU_CAP_FORK_SAFE,
    .lib_open = echo_lib_open,
    .lib_close = echo_lib_close,
    .model_open = model_open,
    .model_close = echo_model_close,
    .model_info = echo_model_info,
    .instance_open = echo_instance_open,
    .instance_close = echo_instance_close,
    .execute = execute,
};

NARU_EXPORT const naru_backend *naru_backend_entry(void);
const naru_backend *naru_backend_entry(void)
{
    return &table;
}
