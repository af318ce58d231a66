/* delay: identity that takes a stated time. For tests of queues, deadlines, placement and fairness.
 *
 * Parameters (microseconds): "delay_us" sleeps, "spin_us" computes (time on the processor, so that
 * neighbours of the machine change nothing about it); "per" says "batch" (default) or "row";
 * "row_us" sleeps for each row besides. "after_requests" N with "spin_us_after" / "delay_us_after":
 * the first N requests of the model take the first figures, later ones these, all at once (for the
 * test that a model which becomes slow leaves the I/O thread). "load_us": opening the model takes that long. A request parameter "delay_us" or
 * "spin_us" replaces the model's for its batch. "io" as in echo.h.
 *
 * "rounds" N (iterative sequences): the last output, INT64 with one element a row, is its input plus
 * one, and a request whose element is below N then asks to be run again.
 *
 * A sleep ends early when every request of the batch is cancelled, unless "deaf" is 1, of the model or
 * of a request: then nothing ends it. A model that may sleep is not
 * marked as a static graph, since a sleeping execution must not run on an I/O thread.
 *
 * Threads: `seen` counts requests of all instances, relaxed: its order against others is no matter.
 */
#include <errno.h>
#include <stdatomic.h>
#include <time.h>

#include "../identity/echo.h"

#define MAX_US INT64_C(3600000000)

struct naru_backend_model {
    struct echo_model echo;
    int64_t rounds;
    int64_t delay_us[2], spin_us[2]; /* before and after the change */
    int64_t after_requests, row_us, deaf, load_us;
    int per_row;
    _Atomic int64_t seen;
};

struct naru_backend_instance {
    struct echo_instance echo;
};

static naru_status read_options(naru_backend_model *m, const naru_model_args *args, naru_text *err)
{
    const naru_option *o = args->options;
    uint32_t n = args->n_options;
    const struct {
        const char *key;
        int64_t high, *ret;
    } numbers[] = {{"delay_us", MAX_US, &m->delay_us[0]},
                   {"spin_us", MAX_US, &m->spin_us[0]},
                   {"delay_us_after", MAX_US, &m->delay_us[1]},
                   {"spin_us_after", MAX_US, &m->spin_us[1]},
                   {"row_us", MAX_US, &m->row_us},
                   {"rounds", INT64_MAX, &m->rounds},
                   {"deaf", 1, &m->deaf},
                   {"load_us", MAX_US, &m->load_us},
                   {"after_requests", INT64_MAX, &m->after_requests}};
    m->after_requests = INT64_MAX;
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
        naru_status st =
            naru_option_i64(o, n, numbers[i].key, 0, numbers[i].high, numbers[i].ret, err);
        if (st != NARU_OK) {
            return st;
        }
    }
    const char *per = naru_option_get(o, n, "per");
    if (per && strcmp(per, "row") != 0 && strcmp(per, "batch") != 0) {
        return naru_fail(err, NARU_INVALID,
                         "parameter \"per\" is \"%.64s\"; \"row\" or \"batch\" is expected", per);
    }
    m->per_row = per && strcmp(per, "row") == 0;
    return NARU_OK;
}

static naru_status model_open(naru_backend_lib *lib, const naru_model_args *args,
                              naru_backend_model **ret, naru_text *err)
{
    naru_backend_model *m;
    naru_status st = echo_model_new(lib, "delay", args, sizeof *m, &m, err);
    if (st != NARU_OK) {
        return st;
    }
    st = read_options(m, args, err);
    if (st != NARU_OK) {
        echo_model_close(m);
        return st;
    }
    const naru_io *last = &m->echo.io.outputs[m->echo.io.info.n_outputs - 1];
    if (m->rounds > 0 && last->dtype != NARU_INT64) {
        echo_model_close(m);
        return naru_fail(err, NARU_INVALID,
                         "\"rounds\" counts in the last output, \"%s\", which "
                         "must be INT64",
                         last->name);
    }
    struct timespec opening = {m->load_us / 1000000, (long)(m->load_us % 1000000) * 1000};
    while (nanosleep(&opening, &opening) != 0 && errno == EINTR) {
    }
    if (m->delay_us[0] > 0 || m->delay_us[1] > 0 || m->row_us > 0) {
        m->echo.io.info.flags &= ~(uint32_t)NARU_MODEL_STATIC_GRAPH;
    }
    *ret = m;
    return NARU_OK;
}

static int64_t now_us(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

/* Sleeps until `end`, looking for cancellation every millisecond, or never. */
static naru_status sleep_until(const naru_host *host, const naru_batch *batch, int64_t end,
                               int64_t deaf, naru_text *err)
{
    for (int64_t left; (left = end - now_us(CLOCK_MONOTONIC)) > 0;) {
        if (!deaf && naru_all_cancelled(host, batch)) {
            return naru_fail(err, NARU_CANCELLED, "cancelled while it slept");
        }
        int64_t nap = left < 1000 ? left : 1000;
        struct timespec t = {.tv_sec = 0, .tv_nsec = (long)nap * 1000};
        while (nanosleep(&t, &t) != 0 && errno == EINTR) {
        }
    }
    return NARU_OK;
}

/* Adds one to the last output of each request, and asks for those that are not done. */
static naru_status count_rounds(const naru_backend_model *m, naru_batch *batch)
{
    const naru_tensor *t = NULL;
    for (uint32_t i = 0; i < batch->n_outputs; i++) {
        if (batch->outputs[i].index == m->echo.io.info.n_outputs - 1) {
            t = &batch->outputs[i];
        }
    }
    if (!t || t->n_segments != 1 || t->bytes != (uint64_t)batch->rows * sizeof(int64_t)) {
        return NARU_OK;
    }
    const naru_segment *s = &t->segments[0];
    int64_t *value = (int64_t *)(void *)((char *)s->region->base + s->offset);
    naru_status st = NARU_OK;
    for (uint32_t i = 0; i < batch->n_requests && st == NARU_OK; i++) {
        if (++*value < m->rounds) {
            st = NARU_HAS(m->echo.lib->host, naru_host, request_again)
                     ? m->echo.lib->host->request_again(batch, i)
                     : NARU_UNSUPPORTED;
        }
        value += batch->requests[i].rows;
    }
    return st;
}

static naru_status execute(naru_backend_instance *instance, naru_batch *batch, naru_text *err)
{
    naru_backend_model *m = instance->echo.model;
    const naru_host *host = m->echo.lib->host;
    int64_t seen = atomic_fetch_add_explicit(&m->seen, batch->n_requests, memory_order_relaxed);
    int later = seen >= m->after_requests;
    int64_t delay = m->delay_us[later], spin = m->spin_us[later], deaf = m->deaf;
    for (uint32_t i = 0; i < batch->n_requests; i++) {
        const naru_request *r = &batch->requests[i];
        naru_status st =
            naru_option_i64(r->options, r->n_options, "delay_us", 0, MAX_US, &delay, err);
        if (st == NARU_OK) {
            st = naru_option_i64(r->options, r->n_options, "spin_us", 0, MAX_US, &spin, err);
        }
        if (st == NARU_OK) {
            st = naru_option_i64(r->options, r->n_options, "deaf", 0, 1, &deaf, err);
        }
        if (st != NARU_OK) {
            host->request_fail(batch, i, st, err->data);
        }
    }
    int64_t times = m->per_row ? batch->rows : 1;
    int64_t sleep_us = delay * times + m->row_us * batch->rows;
    if (sleep_us > 0) {
        int64_t end = now_us(CLOCK_MONOTONIC) + sleep_us;
        naru_status st = sleep_until(host, batch, end, deaf, err);
        if (st != NARU_OK) {
            return st;
        }
    }
    if (spin > 0) {
        int64_t end = now_us(CLOCK_THREAD_CPUTIME_ID) + spin * times;
        while (now_us(CLOCK_THREAD_CPUTIME_ID) < end) {
        }
    }
    naru_status st = echo_copy(&m->echo, batch, err);
    return st == NARU_OK && m->rounds > 0 ? count_rounds(m, batch) : st;
}

static const naru_backend table = {
    .struct_size = sizeof table,
    .abi_major = NARU_ABI_MAJOR,
    .abi_minor = NARU_ABI_MINOR,
    .name = "delay",
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
