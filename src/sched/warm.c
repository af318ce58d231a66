/* Runs before a version serves: those that its configuration asks for (model_warmup), or a few of its
 * own where the first runs of a model cost more than later ones.
 *
 * DESIGN. A framework chooses kernels, packs weights and grows its arenas when it first sees a batch
 * size; the first clients would pay for that. Configured runs are done as written, on every place,
 * and a failure fails the load. Without any, a model of fixed shapes that was not proved to be
 * short (prove.c) runs on zeros: one row twice, and when the first run cost clearly more than the
 * second, the batch sizes that the batcher will form, doubling, as far as the budget of time
 * lasts. Whoever gains nothing from it loses one run.
 *
 * A plug-in may answer later. The place is not yet known to the queue then, so `awaited` tells the
 * completion where to go.
 *
 * THREADS. The loading thread, before the first request.
 */
#include <errno.h>
#include <semaphore.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "io/file.h"
#include "sched/sched_priv.h"

#define WARM_MOST_BYTES ((size_t)1 << 30)    /* of one input of a configured run */
#define WARM_PATIENCE_NS (60 * NR_S_NS)      /* of one run, before it is cancelled */
#define AUTO_MOST_BYTES ((uint64_t)64 << 20) /* of the inputs of a run of our own */
#define AUTO_BUDGET_NS (300 * NR_MS_NS)      /* of all runs of our own */
#define AUTO_GAIN_NS NR_MS_NS                /* less is not worth it */

/* --- one run ---------------------------------------------------------------------------------- */

static void await(struct nr_place *p, struct nr_request *r, sem_t *done, int64_t patience_ns)
{
    int64_t until_ns = nr_clock_now() + patience_ns;
    struct timespec ts = {.tv_sec = until_ns / NR_S_NS, .tv_nsec = until_ns % NR_S_NS};
    int rc;
    do {
        rc = sem_clockwait(done, CLOCK_MONOTONIC, &ts);
    } while (rc != 0 && errno == EINTR);
    if (rc == 0) {
        return;
    }
    atomic_store_explicit(&r->cancelled, true, memory_order_release);
    nr_batch_cancel(p->batch, 0); /* a hint; nothing can be freed before it answers */
    while (sem_wait(done) != 0) {
    }
}

/* `in` on one place; limited: a run of our own. The batch is empty again afterwards. */
static nr_status run_on(struct nr_place *p, const struct nr_infer_request *in, bool limited,
                        struct nr_err *err)
{
    int64_t patience_ns = limited ? AUTO_BUDGET_NS : WARM_PATIENCE_NS;
    struct nr_arena a;
    sem_t done;
    nr_arena_init(&a, 0);
    NR_ASSERT(sem_init(&done, 0, 0) == 0);
    struct nr_request r = {.sched = p->sched, .arena = &a, .in = in};
    r.deadline_ns = limited ? nr_clock_now() + AUTO_BUDGET_NS : 0; /* plug-ins may ask for it */
    p->awaited = &done;
    p->rows = in->rows;
    nr_status st = nr_place_add(p, &r, err);
    if (st == NARU_OK) {
        p->begin_ns = nr_clock_now();
        if (nr_batch_run(p->batch, p->instance) == NARU_PENDING) {
            await(p, &r, &done, patience_ns);
        }
        p->infer_end_ns = nr_clock_now();
        st = nr_batch_result(p->batch, 0, err);
    }
    p->awaited = NULL;
    nr_batch_clear(p->batch);
    (void)sem_destroy(&done);
    nr_arena_done(&a);
    return st;
}

/* The k-th place: executors' first, then those of the loops. NULL: there are no more. */
static struct nr_place *place_at(struct nr_sched *s, unsigned k)
{
    unsigned n = s->parallel.cfg.on ? NR_MIN(s->n_places, 1u) : s->n_places; /* more share all */
    if (k < n) {
        return &s->places[k];
    }
    k -= n;
    return k < s->cfg.n_loops ? s->turns[k].place : NULL;
}

/* --- what the configuration asks for -------------------------------------------------------------- */

static uint64_t next_random(uint64_t *state) /* xorshift64* (Vigna, 2016) */
{
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return *state * UINT64_C(2685821657736338717);
}

/* Random values that every datatype can stand: small numbers instead of random bits, which would be
 * NaN, infinite or slow for floats and far out of range for indices. */
static void fill_random(int32_t dtype, uint8_t *to, size_t elements, uint64_t *state)
{
    uint32_t size = naru_dtype_bytes(dtype);
    for (size_t i = 0; i < elements; i++) {
        uint64_t x = next_random(state);
        float f32 = (float)(x >> 40) / (float)(1u << 24);
        double f64 = (double)f32;
        uint32_t bits;
        memcpy(&bits, &f32, sizeof(bits));
        uint16_t b16 = (uint16_t)(bits >> 16), f16 = (uint16_t)(0x3800u | (x & 0x3ffu));
        uint64_t small = x >> 63;  /* 0 or 1: any index, any flag */
        const void *from = &small; /* little endian: its first bytes are the number */
        if (dtype == NARU_FP32) {
            from = &f32;
        } else if (dtype == NARU_FP64) {
            from = &f64;
        } else if (dtype == NARU_BF16) {
            from = &b16;
        } else if (dtype == NARU_FP16) {
            from = &f16; /* 0.5 to 1 */
        }
        memcpy(to + i * size, from, size);
    }
}

struct sample { /* the data of one configured run */
    struct nr_infer_request in;
    void **data; /* [in.n_inputs] */
};

static void sample_done(struct sample *sample)
{
    for (unsigned i = 0; i < sample->in.n_inputs && sample->data != NULL; i++) {
        nr_free(sample->data[i]);
    }
    nr_free(sample->data);
    nr_free(sample->in.inputs);
    nr_free(sample->in.outputs);
}

static nr_status elements_of(const int64_t *dims, size_t n, uint32_t size, size_t *ret)
{
    *ret = 1;
    for (size_t i = 0; i < n; i++) {
        if (__builtin_mul_overflow(*ret, (size_t)dims[i], ret)) {
            return NARU_TOO_LARGE;
        }
    }
    size_t bytes;
    return __builtin_mul_overflow(*ret, (size_t)size, &bytes) || bytes > WARM_MOST_BYTES
               ? NARU_TOO_LARGE
               : NARU_OK;
}

/* The file holds one row or all of them; one is repeated. */
static nr_status read_rows(int model_fd, const char *file, size_t want_bytes, int64_t rows,
                           void **ret, size_t *ret_bytes, struct nr_err *err)
{
    nr_autofree char *path = nr_format("warmup/%s", file);
    nr_autofree char *text = NULL;
    size_t len = 0;
    struct nr_err why = {0};
    nr_status st = model_fd < 0
                       ? nr_fail(&why, NARU_INVALID, "a bare file has no folder of data")
                       : nr_file_read_at(model_fd, path, WARM_MOST_BYTES, &text, &len, &why);
    if (st != NARU_OK) {
        return nr_fail(err, st, "input_data_file: %.300s", why.text);
    }
    size_t times = want_bytes == 0 || len == want_bytes / (size_t)rows ? (size_t)rows : 1;
    if (want_bytes != 0 && len * times != want_bytes) {
        return nr_fail(err, NARU_INVALID, "input_data_file \"%.100s\" has %zu bytes, a row has %zu",
                       file, len, want_bytes / (size_t)rows);
    }
    size_t bytes;
    uint8_t *to =
        nr_mul(len, times, &bytes) && bytes <= WARM_MOST_BYTES ? nr_try_alloc(bytes + 1) : NULL;
    if (to == NULL) {
        return nr_fail(err, NARU_NOMEM, "no memory for the data of \"%.100s\"", file);
    }
    for (size_t i = 0; i < times; i++) {
        memcpy(to + i * len, text, len);
    }
    *ret = to;
    *ret_bytes = bytes;
    return NARU_OK;
}

/* Data of one input: `t` has its shape. */
static nr_status fill_input(const Inference__ModelWarmup__Input *from, int model_fd, int64_t rows,
                            struct nr_infer_tensor *t, void **ret, struct nr_err *err)
{
    uint32_t size = naru_dtype_bytes(t->dtype); /* 0: BYTES, whose zero is an empty string */
    size_t elements;
    nr_status st = elements_of(t->shape, t->rank, size > 0 ? size : 4, &elements);
    if (st != NARU_OK) {
        return nr_fail(err, st, "the tensor has more than %zu bytes", WARM_MOST_BYTES);
    }
    t->elements = (int64_t)elements;
    t->bytes = elements * (size > 0 ? size : 4);
    if (from->input_data_type_case ==
        INFERENCE__MODEL_WARMUP__INPUT__INPUT_DATA_TYPE_INPUT_DATA_FILE) {
        st = read_rows(model_fd, from->input_data_file, size > 0 ? t->bytes : 0, rows, ret,
                       &t->bytes, err);
    } else {
        *ret = nr_try_alloc(t->bytes + 1);
        st = *ret != NULL ? NARU_OK : nr_fail(err, NARU_NOMEM, "no memory for the data");
    }
    if (st == NARU_OK && size > 0 &&
        from->input_data_type_case == INFERENCE__MODEL_WARMUP__INPUT__INPUT_DATA_TYPE_RANDOM_DATA) {
        uint64_t state = UINT64_C(0x9e3779b97f4a7c15);
        fill_random(t->dtype, *ret, elements, &state);
    }
    t->data = *ret;
    return st;
}

static nr_status sample_make(const struct nr_sched *s, const Inference__ModelWarmup *w,
                             int model_fd, struct sample *ret, struct nr_err *err)
{
    const struct nr_signature *sig = s->cfg.signature;
    int64_t rows = NR_MAX((int64_t)w->batch_size, 1);
    ret->in = (struct nr_infer_request){.rows = rows, .n_outputs = sig->n_outputs};
    ret->in.inputs = nr_new_array(struct nr_infer_tensor, w->n_inputs + 1);
    ret->in.outputs = nr_alloc_array(sig->n_outputs + 1, sizeof(ret->in.outputs[0]));
    ret->data = nr_new_array(void *, w->n_inputs + 1);
    for (unsigned i = 0; i < sig->n_outputs; i++) {
        ret->in.outputs[i].index = i;
    }
    nr_status st = NARU_OK;
    for (unsigned i = 0; i < sig->n_inputs && st == NARU_OK; i++) { /* in the signature's order */
        const struct nr_io_spec *spec = &sig->inputs[i];
        for (size_t k = 0; k < w->n_inputs && st == NARU_OK; k++) {
            const Inference__ModelWarmup__Input *from = w->inputs[k]->value;
            if (!nr_str_is(spec->name, w->inputs[k]->key)) {
                continue;
            }
            struct nr_infer_tensor *t = &ret->in.inputs[ret->in.n_inputs];
            *t = (struct nr_infer_tensor){.index = i, .dtype = spec->dtype, .rank = spec->rank};
            t->shape[0] = rows; /* the configuration check has compared the dims */
            memcpy(t->shape + spec->batched, from->dims, from->n_dims * sizeof(t->shape[0]));
            struct nr_err why = {0};
            st = fill_input(from, model_fd, spec->batched ? rows : 1, t,
                            &ret->data[ret->in.n_inputs++], &why);
            if (st != NARU_OK) {
                (void)nr_fail(err, st, "input \"%.100s\": %.350s", w->inputs[k]->key, why.text);
            }
        }
    }
    return st;
}

nr_status nr_sched_warm(struct nr_sched *s, const Inference__ModelWarmup *w, int model_fd,
                        struct nr_err *err)
{
    struct sample sample = {0};
    struct nr_err why = {0};
    struct nr_place *p;
    nr_status st = sample_make(s, w, model_fd, &sample, &why);
    for (unsigned k = 0; st == NARU_OK && (p = place_at(s, k)) != NULL; k++) {
        for (uint32_t i = 0; i < NR_MAX(w->count, 1u) && st == NARU_OK; i++) {
            st = run_on(p, &sample.in, false, &why);
        }
    }
    sample_done(&sample);
    return st == NARU_OK ? st
                         : nr_fail(err, st, "model_warmup \"%.60s\": %.400s", w->name, why.text);
}

/* --- what pays by itself ------------------------------------------------------------------------ */

/* How long one run of `rows` rows of zeros takes; -1: it cannot be tried. */
static int64_t time_zeros(struct nr_sched *s, struct nr_place *p, int64_t rows)
{
    struct nr_arena a;
    struct nr_infer_request in;
    nr_arena_init(&a, 0);
    bool ok = nr_sched_zeros(s->cfg.signature, rows, AUTO_MOST_BYTES, &a, &in) &&
              run_on(p, &in, true, NULL) == NARU_OK;
    nr_arena_done(&a);
    return ok ? p->infer_end_ns - p->begin_ns : -1;
}

void nr_sched_warm_auto(struct nr_sched *s)
{
    struct nr_place *p = place_at(s, 0);
    int64_t begin_ns = nr_clock_now();
    if (p == NULL || s->cfg.decoupled || s->placement.is_inline) {
        return;
    }
    int64_t first_ns = time_zeros(s, p, 1);
    if (first_ns < AUTO_GAIN_NS || first_ns > AUTO_BUDGET_NS) {
        return; /* too short to matter, or all there is time for */
    }
    int64_t second_ns = time_zeros(s, p, 1);
    if (first_ns - second_ns < AUTO_GAIN_NS) {
        return; /* as fast at once as later */
    }
    for (unsigned k = 1; (p = place_at(s, k)) != NULL; k++) {
        if (nr_clock_now() - begin_ns + first_ns > AUTO_BUDGET_NS || time_zeros(s, p, 1) < 0) {
            return;
        }
    }
    int64_t most = s->cfg.rules.batching ? s->cfg.rules.max_rows : 1;
    int64_t took_ns = second_ns;
    for (int64_t rows = 2; rows <= most; rows *= 2) {
        /* twice the rows take about twice the time, and the first time more */
        if (nr_clock_now() - begin_ns + 3 * took_ns > AUTO_BUDGET_NS) {
            return;
        }
        took_ns = time_zeros(s, place_at(s, 0), rows);
        if (took_ns < 0) {
            return;
        }
    }
}
