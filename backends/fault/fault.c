/* fault: identity that misbehaves on request. For tests of what the server does about it.
 *
 * The parameter "fault" of the model, or of a request (the first of a batch that has one decides):
 *   none            copies
 *   open_error      model_open fails          instance_error  instance_open fails
 *   execute_error   the batch fails           bad_status      execute returns a number that is none
 *   request_error   every second request of the batch fails, from the first
 *   wrong_shape     asks for an output of one row more than the batch has
 *   too_large       asks for an output of 2^50 rows
 *   huge_memory     holds "fault_bytes" (default 64 MiB), written, during the execution
 *   async           answers from another thread after "fault_delay_us" (default 1000)
 *   twice           the same, and answers once more
 *   never           answers only when every request of the batch is cancelled
 *   guilty_row      the batch fails with NARU_INVALID when the first element of a row of the first
 *                   input, FP32, is 13; else copies
 *   return_and_done answers from execute by both ways
 * "fault_every" N: only every N-th batch misbehaves, the others are copied.
 *
 * Why so: answers that come later come from one thread per instance, started with the first of them.
 * It waits under a condition for a job or the end, so closing an instance never leaves a thread.
 *
 * Invariants
 *  1. job.batch is set by execute and taken by the worker; in between the host waits for us.
 *  2. cancel only wakes the worker; it never answers itself.
 *
 * Threads: instance->lock covers job and stop. `batches` counts for all instances, relaxed.
 */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

#include "../identity/echo.h"

#define FAULT_MAP(X)                    \
    X(FAULT_NONE, "none")               \
    X(FAULT_OPEN, "open_error")         \
    X(FAULT_INSTANCE, "instance_error") \
    X(FAULT_EXECUTE, "execute_error")   \
    X(FAULT_STATUS, "bad_status")       \
    X(FAULT_REQUEST, "request_error")   \
    X(FAULT_SHAPE, "wrong_shape")       \
    X(FAULT_LARGE, "too_large")         \
    X(FAULT_MEMORY, "huge_memory")      \
    X(FAULT_ASYNC, "async")             \
    X(FAULT_TWICE, "twice")             \
    X(FAULT_NEVER, "never")             \
    X(FAULT_GUILTY, "guilty_row")       \
    X(FAULT_BOTH, "return_and_done")

enum fault {
#define FAULT_ENUM(symbol, text) symbol,
    FAULT_MAP(FAULT_ENUM)
#undef FAULT_ENUM
    FAULT_COUNT
};

static const char *const fault_names[] = {
#define FAULT_NAME(symbol, text) text,
    FAULT_MAP(FAULT_NAME)
#undef FAULT_NAME
};

struct naru_backend_model {
    struct echo_model echo;
    enum fault fault;
    int64_t delay_us, every, bytes;
    _Atomic int64_t batches;
};

struct naru_backend_instance {
    struct echo_instance echo;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    pthread_t thread;
    int has_thread, stop;
    struct {
        naru_batch *batch; /* NULL: none */
        enum fault fault;
    } job;
};

static naru_status fault_parse(const char *text, enum fault *ret, naru_text *err)
{
    for (int f = 0; f < FAULT_COUNT; f++) {
        if (strcmp(text, fault_names[f]) == 0) {
            *ret = (enum fault)f;
            return NARU_OK;
        }
    }
    return naru_fail(err, NARU_INVALID, "parameter \"fault\": \"%.64s\" is none of those known",
                     text);
}

static naru_status read_options(naru_backend_model *m, const naru_model_args *args, naru_text *err)
{
    m->delay_us = 1000;
    m->every = 1;
    m->bytes = INT64_C(64) << 20;
    const naru_option *o = args->options;
    uint32_t n = args->n_options;
    const char *fault = naru_option_get(o, n, "fault");
    naru_status st = fault ? fault_parse(fault, &m->fault, err) : NARU_OK;
    if (st == NARU_OK) {
        st = naru_option_i64(o, n, "fault_delay_us", 0, INT64_C(60000000), &m->delay_us, err);
    }
    if (st == NARU_OK) {
        st = naru_option_i64(o, n, "fault_every", 1, INT64_MAX, &m->every, err);
    }
    if (st == NARU_OK) {
        st = naru_option_i64(o, n, "fault_bytes", 0, INT64_C(1) << 40, &m->bytes, err);
    }
    if (st == NARU_OK && m->fault == FAULT_OPEN) {
        st = naru_fail(err, NARU_INTERNAL, "fault: the model does not open, as its parameters ask");
    }
    return st;
}

static naru_status model_open(naru_backend_lib *lib, const naru_model_args *args,
                              naru_backend_model **ret, naru_text *err)
{
    naru_backend_model *m;
    naru_status st = echo_model_new(lib, "fault", args, sizeof *m, &m, err);
    if (st != NARU_OK) {
        return st;
    }
    st = read_options(m, args, err);
    if (st != NARU_OK) {
        echo_model_close(m);
        return st;
    }
    m->echo.io.info.flags &= ~(uint32_t)NARU_MODEL_STATIC_GRAPH;
    *ret = m;
    return NARU_OK;
}

static naru_status instance_open(naru_backend_model *model, uint32_t index, int32_t device,
                                 naru_backend_instance **ret, naru_text *err)
{
    (void)index;
    if (model->fault == FAULT_INSTANCE) {
        return naru_fail(err, NARU_INTERNAL,
                         "fault: the instance does not open, as the parameters ask");
    }
    naru_backend_instance *i;
    naru_status st = echo_instance_new(model, device, sizeof *i, &i, err);
    if (st != NARU_OK) {
        return st;
    }
    pthread_mutex_init(&i->lock, NULL);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&i->wake, &attr);
    pthread_condattr_destroy(&attr);
    *ret = i;
    return NARU_OK;
}

static void instance_close(naru_backend_instance *instance)
{
    if (!instance) {
        return;
    }
    if (instance->has_thread) {
        pthread_mutex_lock(&instance->lock);
        instance->stop = 1;
        pthread_cond_signal(&instance->wake);
        pthread_mutex_unlock(&instance->lock);
        pthread_join(instance->thread, NULL);
    }
    pthread_cond_destroy(&instance->wake);
    pthread_mutex_destroy(&instance->lock);
    echo_instance_close(instance);
}

/* ---- answers from the other thread ------------------------------------------------------------- */

/* Waits up to `us` for a wake-up; under the lock. */
static void wait_us(naru_backend_instance *i, int64_t us)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    int64_t ns = t.tv_nsec + us % 1000000 * 1000;
    t.tv_sec += us / 1000000 + ns / 1000000000;
    t.tv_nsec = ns % 1000000000;
    pthread_cond_timedwait(&i->wake, &i->lock, &t);
}

static void *worker(void *arg)
{
    naru_backend_instance *i = arg;
    const naru_backend_model *m = i->echo.model;
    const naru_host *host = m->echo.lib->host;
    pthread_mutex_lock(&i->lock);
    while (!i->stop) {
        naru_batch *batch = i->job.batch;
        if (!batch) {
            pthread_cond_wait(&i->wake, &i->lock);
            continue;
        }
        if (i->job.fault == FAULT_NEVER && !naru_all_cancelled(host, batch)) {
            wait_us(i, 1000); /* flags may be set without a call of cancel */
            continue;
        }
        enum fault fault = i->job.fault;
        i->job.batch = NULL;
        pthread_mutex_unlock(&i->lock);
        if (fault == FAULT_NEVER) {
            host->batch_done(batch, NARU_CANCELLED, "cancelled, and never answered before");
        } else {
            struct timespec t = {.tv_sec = (time_t)(m->delay_us / 1000000),
                                 .tv_nsec = (long)(m->delay_us % 1000000) * 1000};
            nanosleep(&t, NULL);
            char buf[256] = "";
            naru_text text = {.struct_size = sizeof text, .capacity = sizeof buf, .data = buf};
            naru_status st = echo_copy(&m->echo, batch, &text);
            host->batch_done(batch, st, buf);
            if (fault == FAULT_TWICE) {
                host->batch_done(batch, NARU_INTERNAL, "answered twice");
            }
        }
        pthread_mutex_lock(&i->lock);
    }
    pthread_mutex_unlock(&i->lock);
    return NULL;
}

static naru_status answer_later(naru_backend_instance *i, naru_batch *batch, enum fault fault)
{
    if (!i->has_thread) {
        if (pthread_create(&i->thread, NULL, worker, i) != 0) {
            return NARU_NOMEM;
        }
        i->has_thread = 1;
    }
    pthread_mutex_lock(&i->lock);
    i->job.batch = batch;
    i->job.fault = fault;
    pthread_cond_signal(&i->wake);
    pthread_mutex_unlock(&i->lock);
    return NARU_PENDING;
}

static void cancel(naru_backend_instance *instance, naru_batch *batch, uint32_t request)
{
    (void)batch;
    (void)request;
    pthread_mutex_lock(&instance->lock);
    pthread_cond_signal(&instance->wake);
    pthread_mutex_unlock(&instance->lock);
}

/* ---- executing --------------------------------------------------------------------------------- */

/* Asks for an output of `rows` rows; gives the host's refusal on, or complains that there is none. */
static naru_status ask_wrong(const naru_host *host, naru_batch *batch, int64_t rows, naru_text *err)
{
    const naru_tensor *to = &batch->outputs[0], *got = NULL;
    int64_t shape[NARU_MAX_RANK] = {0};
    if (to->rank == 0) {
        return naru_fail(err, NARU_INVALID, "fault: a scalar has no rows to get wrong");
    }
    memcpy(shape, batch->inputs[to->index].shape, to->rank * sizeof *shape);
    shape[0] = rows;
    naru_status st = host->output_alloc(batch, 0, to->dtype, to->rank, shape, 64, &got);
    if (st == NARU_OK) {
        return naru_fail(err, NARU_INTERNAL, "fault: the host took a shape that is wrong");
    }
    return naru_fail(err, st, "fault: %lld rows in output \"%s\" of a batch of %lld",
                     (long long)rows, to->name, (long long)batch->rows);
}

#define GUILTY 13.0F

/* Fails for all what one row brought about. */
static naru_status judge_rows(const naru_batch *batch, naru_text *err)
{
    const naru_tensor *t = &batch->inputs[0];
    if (t->dtype != NARU_FP32) {
        return naru_fail(err, NARU_INVALID, "fault: guilty_row looks at FP32 only");
    }
    for (uint32_t k = 0; k < t->n_segments; k++) {
        const naru_segment *s = &t->segments[k];
        uint64_t row = batch->rows > 0 ? t->bytes / (uint64_t)batch->rows : 0;
        const char *at = (const char *)s->region->base + s->offset;
        for (uint64_t i = 0; row > 0 && i + row <= s->bytes; i += row) {
            float first;
            memcpy(&first, at + i, sizeof first);
            if (first >= GUILTY && first <= GUILTY) {
                return naru_fail(err, NARU_INVALID, "fault: a row of the batch is guilty");
            }
        }
    }
    return NARU_OK;
}

static naru_status hold_memory(size_t bytes, naru_text *err)
{
    char *p = malloc(bytes + 1);
    if (!p) {
        return naru_fail(err, NARU_NOMEM, "fault: no %zu bytes to be had", bytes);
    }
    memset(p, 1, bytes);
    __asm__ volatile("" : : "r"(p) : "memory"); /* the compiler may not drop the writing */
    free(p);
    return NARU_OK;
}

static naru_status which(naru_backend_model *m, const naru_batch *batch, enum fault *ret,
                         naru_text *err)
{
    int64_t n = atomic_fetch_add_explicit(&m->batches, 1, memory_order_relaxed);
    *ret = n % m->every == 0 ? m->fault : FAULT_NONE;
    for (uint32_t i = 0; i < batch->n_requests; i++) {
        const naru_request *r = &batch->requests[i];
        const char *text = naru_option_get(r->options, r->n_options, "fault");
        if (text) {
            return fault_parse(text, ret, err);
        }
    }
    return NARU_OK;
}

static naru_status execute(naru_backend_instance *instance, naru_batch *batch, naru_text *err)
{
    naru_backend_model *m = instance->echo.model;
    const naru_host *host = m->echo.lib->host;
    enum fault fault;
    naru_status st = which(m, batch, &fault, err);
    if (st != NARU_OK) {
        return st;
    }
    switch (fault) {
    case FAULT_EXECUTE:
        return naru_fail(err, NARU_INTERNAL, "fault: the execution fails, as the parameters ask");
    case FAULT_STATUS:
        return 7;
    case FAULT_REQUEST:
        for (uint32_t i = 0; i < batch->n_requests; i += 2) {
            host->request_fail(batch, i, NARU_INVALID, "fault: this request fails, as asked");
        }
        break;
    case FAULT_SHAPE:
        return ask_wrong(host, batch, batch->rows + 1, err);
    case FAULT_LARGE:
        return ask_wrong(host, batch, INT64_C(1) << 50, err);
    case FAULT_MEMORY:
        st = hold_memory((size_t)m->bytes, err);
        if (st != NARU_OK) {
            return st;
        }
        break;
    case FAULT_ASYNC:
    case FAULT_TWICE:
    case FAULT_NEVER:
        return answer_later(instance, batch, fault);
    case FAULT_GUILTY:
        st = judge_rows(batch, err);
        if (st != NARU_OK) {
            return st;
        }
        break;
    case FAULT_BOTH:
        st = echo_copy(&m->echo, batch, err);
        host->batch_done(batch, st, err->data);
        return st;
    default:
        break;
    }
    return echo_copy(&m->echo, batch, err);
}

static const naru_backend table = {
    .struct_size = sizeof table,
    .abi_major = NARU_ABI_MAJOR,
    .abi_minor = NARU_ABI_MINOR,
    .name = "fault",
    .version = "1.0",
    .caps = NARU_CAP_SEGMENTS | NARU_CAP_ASYNC | NARU_CAP_FORK_SAFE,
    .lib_open = echo_lib_open,
    .lib_close = echo_lib_close,
    .model_open = model_open,
    .model_close = echo_model_close,
    .model_info = echo_model_info,
    .instance_open = instance_open,
    .instance_close = instance_close,
    .execute = execute,
    .cancel = cancel,
};

NARU_EXPORT const naru_backend *naru_backend_entry(void);
const naru_backend *naru_backend_entry(void)
{
    return &table;
}
