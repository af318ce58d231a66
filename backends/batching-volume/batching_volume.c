/* The strategy "volume": a batch ends where its inputs would exceed a number of bytes or elements.
 *
 *   parameters { key: "naru.batch_strategy"              value { string_value: "volume" } }
 *   parameters { key: "naru.batch_strategy.max_bytes"    value { string_value: "1048576" } }
 *   parameters { key: "naru.batch_strategy.max_elements" value { string_value: "262144" } }
 *
 * For models whose cost grows with the size of their inputs and not with their number, where rows of very
 * different sizes come (with ragged batches, or requests of many rows). MAX_BATCH_VOLUME_BYTES, as the
 * example of that kind for Triton calls it, is read as max_bytes.
 *
 * DESIGN. It only makes batches smaller than the server would, and only sooner: it takes the first requests
 * that fit, in their order, and never waits when no more would fit. A request that is too large by
 * itself goes alone.
 *
 * Threads: limits are constant once read.
 */
#include <stdlib.h>

#include "naru/batching.h"
#include "naru/helper.h"

struct naru_batching_model {
    uint64_t max_bytes, max_elements;
};

#define OWN "naru.batch_strategy."

static naru_status read_limits(naru_batching_model *m, const naru_batching_args *args,
                               naru_text *err)
{
    int64_t bytes = INT64_MAX, elements = INT64_MAX;
    const naru_option *o = args->options;
    uint32_t n = args->n_options;
    for (uint32_t i = 0; i < n; i++) {
        if (strncmp(o[i].key, OWN, sizeof OWN - 1) == 0 && strcmp(o[i].key, OWN "max_bytes") != 0 &&
            strcmp(o[i].key, OWN "max_elements") != 0) {
            return naru_fail(err, NARU_INVALID,
                             "unknown parameter \"%.200s\": " OWN "max_bytes and " OWN
                             "max_elements are known",
                             o[i].key);
        }
    }
    naru_status st = naru_option_i64(o, n, "MAX_BATCH_VOLUME_BYTES", 1, INT64_MAX, &bytes, err);
    if (st == NARU_OK) {
        st = naru_option_i64(o, n, OWN "max_bytes", 1, INT64_MAX, &bytes, err);
    }
    if (st == NARU_OK) {
        st = naru_option_i64(o, n, OWN "max_elements", 1, INT64_MAX, &elements, err);
    }
    if (st == NARU_OK && bytes == INT64_MAX && elements == INT64_MAX) {
        st = naru_fail(err, NARU_INVALID,
                       "it needs a limit: parameter " OWN "max_bytes or " OWN "max_elements");
    }
    m->max_bytes = (uint64_t)bytes;
    m->max_elements = (uint64_t)elements;
    return st;
}

static naru_status model_open(const naru_batching_args *args, naru_batching_model **ret,
                              naru_text *err)
{
    naru_batching_model *m = calloc(1, sizeof *m);
    naru_status st = m ? read_limits(m, args, err) : naru_fail(err, NARU_NOMEM, "no memory");
    if (st != NARU_OK) {
        free(m);
        return st;
    }
    *ret = m;
    return NARU_OK;
}

static void model_close(naru_batching_model *model)
{
    free(model);
}

static naru_status plan(naru_batching_model *model, const naru_window *window, naru_choice *choice)
{
    uint64_t bytes = 0, elements = 0;
    int64_t rows = 0;
    uint32_t n = 0;
    for (; n < window->n; n++) {
        const naru_waiting *r = &window->requests[n];
        /* differences, so that no sum can overflow */
        if (n > 0 &&
            (r->bytes > model->max_bytes - bytes || r->elements > model->max_elements - elements ||
             r->rows > window->max_rows - rows)) {
            break;
        }
        bytes = r->bytes < model->max_bytes - bytes ? bytes + r->bytes : model->max_bytes;
        elements = r->elements < model->max_elements - elements ? elements + r->elements
                                                                : model->max_elements;
        rows += r->rows;
    }
    int full = n < window->n || bytes == model->max_bytes || elements == model->max_elements;
    if (window->default_n == 0 && !full) {
        choice->wait_until_ns = window->default_wait_until_ns;
        return NARU_OK;
    }
    choice->n = window->default_n > 0 && window->default_n < n ? window->default_n : n;
    return NARU_OK;
}

static const naru_batching batching = {.struct_size = sizeof batching,
                                       .abi_major = NARU_BATCHING_ABI_MAJOR,
                                       .abi_minor = NARU_BATCHING_ABI_MINOR,
                                       .name = "volume",
                                       .version = "1.0",
                                       .model_open = model_open,
                                       .model_close = model_close,
                                       .plan = plan};

NARU_EXPORT const naru_batching *naru_batching_entry(void);
const naru_batching *naru_batching_entry(void)
{
    return &batching;
}
