/* The strategy "single": every request runs alone, at once, however many rows it has.
 *
 *   parameters { key: "naru.batch_strategy" value { string_value: "single" } }
 *
 * For a model that takes batches from clients but gains nothing, or loses exactness, when rows of different
 * requests share one. The shortest strategy there can be, to begin others from.
 *
 * Threads: no state.
 */
#include "naru/batching.h"
#include "naru/helper.h"

static naru_status model_open(const naru_batching_args *args, naru_batching_model **ret,
                              naru_text *err)
{
    static const char own[] = "naru.batch_strategy.";
    for (uint32_t i = 0; i < args->n_options; i++) {
        if (strncmp(args->options[i].key, own, sizeof own - 1) == 0) {
            return naru_fail(err, NARU_INVALID, "unknown parameter \"%.200s\": it takes none",
                             args->options[i].key);
        }
    }
    *ret = NULL; /* nothing to keep */
    return NARU_OK;
}

static void model_close(naru_batching_model *model)
{
    (void)model;
}

static naru_status plan(naru_batching_model *model, const naru_window *window, naru_choice *choice)
{
    (void)model;
    (void)window;
    choice->n = 1;
    return NARU_OK;
}

static const naru_batching batching = {.struct_size = sizeof batching,
                                       .abi_major = NARU_BATCHING_ABI_MAJOR,
                                       .abi_minor = NARU_BATCHING_ABI_MINOR,
                                       .name = "single",
                                       .version = "1.0",
                                       .model_open = model_open,
                                       .model_close = model_close,
                                       .plan = plan};

NARU_EXPORT const naru_batching *naru_batching_entry(void);
const naru_batching *naru_batching_entry(void)
{
    return &batching;
}
