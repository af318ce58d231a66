/* repeat: gives its inputs back several times. For tests of decoupled models and slow readers.
 *
 * Parameters: "responses" how many (3), "delay_us" before each (0). A request parameter of the same
 * name replaces the model's. "end" says how a request ends: "with" its last response (default),
 * "after" it by an empty final one, "batch" by the end of the batch. "io" as in echo.h.
 *
 * When the reader is behind it waits, and stops when the client has gone. Configured as an ordinary
 * model it answers once.
 *
 * Threads: instances keep nothing.
 */
#include <errno.h>
#include <string.h>
#include <time.h>

#include "../identity/echo.h"

#define MAX_RESPONSES 1000000
#define MAX_US INT64_C(3600000000)
#define WAIT_NS INT64_C(1000000000)

enum end {
    END_WITH,
    END_AFTER,
    END_BATCH
};

struct naru_backend_model {
    struct echo_model echo;
    int64_t responses, delay_us;
    enum end end;
    int decoupled;
};

struct naru_backend_instance {
    struct echo_instance echo;
};

static naru_status read_numbers(const naru_option *o, uint32_t n, int64_t *responses,
                                int64_t *delay_us, naru_text *err)
{
    naru_status st = naru_option_i64(o, n, "responses", 0, MAX_RESPONSES, responses, err);
    return st == NARU_OK ? naru_option_i64(o, n, "delay_us", 0, MAX_US, delay_us, err) : st;
}

static naru_status read_options(naru_backend_model *m, const naru_model_args *args, naru_text *err)
{
    static const char *const ends[] = {"with", "after", "batch"};
    const char *end = naru_option_get(args->options, args->n_options, "end");
    m->responses = 3;
    while (end && strcmp(end, ends[m->end]) != 0) {
        if (m->end == END_BATCH) {
            return naru_fail(err, NARU_INVALID,
                             "parameter \"end\" is \"%.64s\"; \"with\", \"after\" or \"batch\" is "
                             "expected",
                             end);
        }
        m->end++;
    }
    naru_status st =
        naru_option_bool(args->options, args->n_options, "naru.decoupled", &m->decoupled, err);
    return st == NARU_OK
               ? read_numbers(args->options, args->n_options, &m->responses, &m->delay_us, err)
               : st;
}

static naru_status model_open(naru_backend_lib *lib, const naru_model_args *args,
                              naru_backend_model **ret, naru_text *err)
{
    naru_backend_model *m;
    naru_status st = echo_model_new(lib, "repeat", args, sizeof *m, &m, err);
    if (st != NARU_OK) {
        return st;
    }
    st = read_options(m, args, err);
    if (st != NARU_OK) {
        echo_model_close(m);
        return st;
    }
    m->echo.io.info.flags &= ~(uint32_t)NARU_MODEL_STATIC_GRAPH; /* it may sleep */
    *ret = m;
    return NARU_OK;
}

/* The share of request i of an input: a segment of its own, as NARU_CAP_SEGMENTS promises. */
static naru_status copy_output(const naru_host *host, naru_batch *batch, uint32_t i, uint32_t o)
{
    const naru_tensor *from = &batch->inputs[batch->outputs[o].index], *to;
    if (from->n_segments == 0) {
        return NARU_INVALID;
    }
    const naru_segment *share = &from->segments[batch->n_requests > 1 ? i : 0];
    int64_t shape[NARU_MAX_RANK] = {0};
    memcpy(shape, from->shape, from->rank * sizeof shape[0]);
    if (batch->n_requests > 1) {
        shape[0] = batch->requests[i].rows;
    }
    naru_status st =
        host->response_alloc(batch, i, o, from->dtype, from->rank, shape, share->bytes, &to);
    if (st == NARU_OK && share->bytes > 0) {
        memcpy(naru_tensor_data(to), (const char *)share->region->base + share->offset,
               share->bytes);
    }
    return st;
}

static naru_status send(const naru_host *host, naru_batch *batch, uint32_t i, int final)
{
    naru_status st;
    while ((st = host->response_send(batch, i, final)) == NARU_AGAIN) {
        naru_status room = host->response_wait(batch, i, WAIT_NS);
        if (room != NARU_OK && room != NARU_TIMEOUT) {
            return room;
        }
    }
    return st;
}

static naru_status repeat(const naru_backend_model *m, naru_batch *batch, uint32_t i,
                          naru_text *err)
{
    const naru_host *host = m->echo.lib->host;
    const naru_request *r = &batch->requests[i];
    int64_t n = m->responses, delay_us = m->delay_us;
    naru_status st = read_numbers(r->options, r->n_options, &n, &delay_us, err);
    for (int64_t k = 0; k < n && st == NARU_OK; k++) {
        struct timespec t = {.tv_sec = delay_us / 1000000, .tv_nsec = delay_us % 1000000 * 1000};
        while (delay_us > 0 && nanosleep(&t, &t) != 0 && errno == EINTR) {
        }
        for (uint32_t o = 0; o < batch->n_outputs && st == NARU_OK; o++) {
            st = copy_output(host, batch, i, o);
        }
        st = st == NARU_OK ? send(host, batch, i, m->end == END_WITH && k + 1 == n) : st;
    }
    if (st == NARU_OK && (m->end == END_AFTER || (m->end == END_WITH && n == 0))) {
        st = send(host, batch, i, 1);
    }
    return st;
}

static naru_status execute(naru_backend_instance *instance, naru_batch *batch, naru_text *err)
{
    const naru_backend_model *m = instance->echo.model;
    if (!m->decoupled) {
        return echo_copy(&m->echo, batch, err);
    }
    for (uint32_t i = 0; i < batch->n_requests; i++) {
        if (err->data && err->capacity > 0) {
            err->data[0] = 0;
        }
        naru_status st = repeat(m, batch, i, err);
        if (st != NARU_OK) {
            m->echo.lib->host->request_fail(batch, i, st, err->data);
        }
    }
    return NARU_OK;
}

static const naru_backend table = {
    .struct_size = sizeof table,
    .abi_major = NARU_ABI_MAJOR,
    .abi_minor = NARU_ABI_MINOR,
    .name = "repeat",
    .version = "1.0",
    .caps = NARU_CAP_SEGMENTS | NARU_CAP_DECOUPLED | NARU_CAP_FORK_SAFE,
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
