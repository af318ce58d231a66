/* Runs on zeros before the first request, so that a short model starts on the I/O threads.
 *
 * DESIGN. Only models of small fixed shapes are tried. A run that was preempted or that paid for a
 * cold cache proves nothing, so runs go on until the placement has seen enough short ones in a row
 * or the tries are used up; what cannot be proved here, traffic will prove.
 */
#include <string.h>

#include "base/clock.h"
#include "sched/sched_priv.h"

#define PROVE_BYTES 65536
#define PROVE_RUNS 24  /* at least: the cost of a run and of a row are learnt, too */
#define PROVE_MOST 256 /* at most */
#define PROVE_COLD 2   /* the first runs pay for memory and caches */
#define PROVE_CPU_NS (10 * NR_MS_NS)
#define PROVE_WALL_NS (100 * NR_MS_NS)

bool nr_sched_zeros(const struct nr_signature *sig, int64_t rows, uint64_t most_bytes,
                    struct nr_arena *a, struct nr_infer_request *in)
{
    *in = (struct nr_infer_request){
        .rows = rows, .n_inputs = sig->n_inputs, .n_outputs = sig->n_outputs};
    in->inputs = nr_arena_zalloc(a, NR_MAX(sig->n_inputs, 1u) * sizeof(in->inputs[0]));
    in->outputs = nr_arena_zalloc(a, NR_MAX(sig->n_outputs, 1u) * sizeof(in->outputs[0]));
    for (unsigned i = 0; i < sig->n_outputs; i++) {
        in->outputs[i].index = i;
    }
    for (unsigned i = 0; i < sig->n_inputs; i++) {
        const struct nr_io_spec *spec = &sig->inputs[i];
        if (spec->row_bytes <= 0 || (uint64_t)spec->row_bytes > most_bytes / (uint64_t)rows) {
            return false;
        }
        struct nr_infer_tensor *t = &in->inputs[i];
        *t = (struct nr_infer_tensor){.index = i, .dtype = spec->dtype, .rank = spec->rank};
        memcpy(t->shape, spec->shape, sizeof(t->shape));
        if (spec->batched) {
            t->shape[0] = rows;
        }
        t->bytes = (size_t)(spec->row_bytes * rows);
        t->data = nr_arena_try_alloc(a, t->bytes);
        if (t->data == NULL) {
            return false;
        }
        memset((void *)(uintptr_t)t->data, 0, t->bytes);
    }
    return true;
}

/* One run on `rows` rows of zeros, as the placement will see it. False: the model cannot be tried. */
static bool prove_once(struct nr_sched *s, struct nr_place *p, int64_t rows, bool counts)
{
    struct nr_arena a;
    struct nr_infer_request in;
    nr_arena_init(&a, 0);
    struct nr_request r = {.sched = s, .arena = &a, .in = &in};
    bool ok = nr_sched_zeros(s->cfg.signature, rows, PROVE_BYTES, &a, &in) &&
              nr_place_add(p, &r, NULL) == NARU_OK;
    int64_t cpu_ns = nr_clock_thread_cpu();
    p->begin_ns = nr_clock_now();
    ok = ok && nr_batch_run(p->batch, p->instance) == NARU_OK &&
         nr_batch_result(p->batch, 0, NULL) == NARU_OK;
    p->infer_end_ns = nr_clock_now();
    cpu_ns = nr_clock_thread_cpu() - cpu_ns;
    p->rows = rows;
    nr_batch_clear(p->batch);
    nr_arena_done(&a);
    if (ok && counts) {
        nr_sched_observe(s, p, NR_MIN(cpu_ns, p->infer_end_ns - p->begin_ns));
    }
    return ok;
}

void nr_sched_prove(struct nr_sched *s)
{
    struct nr_place *p = s->turns[0].place != NULL ? s->turns[0].place : &s->places[0];
    int64_t many = NR_MIN(s->cfg.rules.batching ? s->cfg.rules.max_rows : 1, 8);
    int64_t cpu_ns = nr_clock_thread_cpu(), wall_ns = nr_clock_now();
    if (!s->cfg.placement.allowed || s->n_places == 0) {
        return;
    }
    for (unsigned i = 0; i < PROVE_MOST && (i < PROVE_RUNS || !s->placement.is_inline); i++) {
        int64_t rows = i % 4 == 3 ? many : 1;
        if (!prove_once(s, p, rows, i >= PROVE_COLD) ||
            nr_clock_thread_cpu() - cpu_ns > PROVE_CPU_NS ||
            nr_clock_now() - wall_ns > PROVE_WALL_NS) {
            return;
        }
    }
}
