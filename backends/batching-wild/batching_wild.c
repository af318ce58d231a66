/* A strategy for tests: does what naru.batch_strategy.do says, most of which is not allowed.
 *
 *   too_many, rows, skip_first, past, forever, error   answers that break a promise
 *   skip_last    the last of the batch is left in the queue: not allowed where order is promised
 *   last_wins    the largest request of the window goes with the first one, those between wait
 *   wait         until wait_ms (a parameter) after the first request came
 *   anything else: what the server would do
 *
 * Threads: constant once read.
 */
#include <stdlib.h>

#include "naru/batching.h"
#include "naru/helper.h"

struct naru_batching_model {
    char what[32];
    int64_t wait_ms;
};

static naru_status model_open(const naru_batching_args *args, naru_batching_model **ret,
                              naru_text *err)
{
    naru_batching_model *m = calloc(1, sizeof *m);
    const char *what = naru_option_get(args->options, args->n_options, "naru.batch_strategy.do");
    if (!m) {
        return naru_fail(err, NARU_NOMEM, "no memory");
    }
    (void)snprintf(m->what, sizeof m->what, "%s", what ? what : "");
    naru_status st = naru_option_i64(args->options, args->n_options, "naru.batch_strategy.wait_ms",
                                     0, 100000000, &m->wait_ms, err);
    if (st == NARU_OK && strcmp(m->what, "refuse") == 0) {
        st = naru_fail(err, NARU_INVALID, "told to refuse");
    }
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

static int is(const naru_batching_model *m, const char *what)
{
    return strcmp(m->what, what) == 0;
}

static naru_status plan(naru_batching_model *m, const naru_window *w, naru_choice *c)
{
    c->n = w->default_n;
    c->wait_until_ns = w->default_wait_until_ns;
    if (is(m, "too_many")) {
        c->n = w->n + 1;
    } else if (is(m, "rows")) {
        c->n = w->n; /* too large only where the window is */
    } else if (is(m, "skip_first")) {
        c->n = w->n;
        c->skip[0] = 1;
    } else if (is(m, "past")) {
        c->n = 0;
        c->wait_until_ns = w->now_ns;
    } else if (is(m, "forever")) {
        c->n = 0;
        c->wait_until_ns = INT64_MAX;
    } else if (is(m, "error")) {
        return NARU_INTERNAL;
    } else if (is(m, "skip_last") && c->n > 1) {
        c->skip[c->n - 1] = 1;
    } else if (is(m, "last_wins")) {
        c->n = w->n;
        for (uint32_t i = 1; i + 1 < w->n; i++) {
            c->skip[i] = 1;
        }
    } else if (is(m, "wait") && w->now_ns - w->requests[0].queued_ns < m->wait_ms * 1000000) {
        c->n = 0;
        c->wait_until_ns = w->requests[0].queued_ns + m->wait_ms * 1000000;
    }
    return NARU_OK;
}

static const naru_batching batching = {.struct_size = sizeof batching,
                                       .abi_major = NARU_BATCHING_ABI_MAJOR,
                                       .abi_minor = NARU_BATCHING_ABI_MINOR,
                                       .name = "wild",
                                       .version = "1.0",
                                       .model_open = model_open,
                                       .model_close = model_close,
                                       .plan = plan};

NARU_EXPORT const naru_batching *naru_batching_entry(void);
const naru_batching *naru_batching_entry(void)
{
    return &batching;
}
