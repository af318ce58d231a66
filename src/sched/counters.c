/* Per-loop counters, summed when read.
 *
 * INVARIANTS
 *  1. A set is written by one loop only; pointers to it (and to its pages) are published with
 *     release and read with acquire, and never change back while the counters live.
 *  2. Batch sizes are counted in pages of PAGE sizes, made on first use: a model with a large
 *     maximum costs memory only for the sizes it forms.
 */
#include "sched/counters.h"

#include <string.h>

#include "base/clock.h"
#include "base/mem.h"

#define PAGE 16

struct batch_cell {
    _Atomic uint64_t executions, input_ns, infer_ns, output_ns;
};

struct set {
    _Atomic uint64_t success, fail, success_ns, fail_ns, queue_ns, input_ns, infer_ns, output_ns;
    _Atomic uint64_t rows, executions, inline_executions, last_wall_ms;
    _Atomic uint64_t cache_hits, cache_hit_ns, cache_misses, cache_miss_ns;
    _Atomic uint64_t failed[NR_FAIL_COUNT];
    struct nr_hist_coarse stage[NR_STAGE_COUNT];
    struct batch_cell *_Atomic pages[];
};

struct nr_counters {
    unsigned n_loops, n_pages;
    struct set *_Atomic sets[];
};

const char *nr_fail_reason_text(nr_fail_reason r)
{
    static const char *const texts[] = {
#define NR_FAIL_TEXT(symbol, text) text,
        NR_FAIL_MAP(NR_FAIL_TEXT)
#undef NR_FAIL_TEXT
    };
    return (unsigned)r < NR_COUNT(texts) ? texts[r] : "OTHER";
}

const char *nr_stage_text(nr_stage s)
{
    static const char *const texts[] = {"request", "queue", "compute_input", "compute_infer",
                                        "compute_output"};
    return (unsigned)s < NR_COUNT(texts) ? texts[s] : "unknown";
}

/* Single writer: no locked instruction is needed. */
static void add(_Atomic uint64_t *c, uint64_t n)
{
    atomic_store_explicit(c, atomic_load_explicit(c, memory_order_relaxed) + n,
                          memory_order_relaxed);
}

static uint64_t get(const _Atomic uint64_t *c)
{
    return atomic_load_explicit(c, memory_order_relaxed);
}

struct nr_counters *nr_counters_new(unsigned n_loops, int64_t max_rows)
{
    struct nr_counters *c = nr_alloc(sizeof(*c) + n_loops * sizeof(c->sets[0]));
    c->n_loops = n_loops;
    c->n_pages = (unsigned)(NR_MAX(max_rows, 1) / PAGE + 1);
    return c;
}

void nr_counters_free(struct nr_counters *c)
{
    for (unsigned i = 0; c != NULL && i < c->n_loops; i++) {
        struct set *s = atomic_load(&c->sets[i]);
        for (unsigned p = 0; s != NULL && p < c->n_pages; p++) {
            nr_free(atomic_load(&s->pages[p]));
        }
        nr_free(s);
    }
    nr_free(c);
}

static struct set *set_of(struct nr_counters *c, unsigned loop)
{
    NR_DCHECK(loop < c->n_loops);
    struct set *s = atomic_load_explicit(&c->sets[loop], memory_order_relaxed);
    if (NR_UNLIKELY(s == NULL)) {
        s = nr_alloc(sizeof(*s) + c->n_pages * sizeof(s->pages[0]));
        atomic_store_explicit(&c->sets[loop], s,
                              memory_order_release); /* pairs with nr_counters_read */
    }
    return s;
}

static struct batch_cell *cell_of(struct nr_counters *c, struct set *s, int64_t rows)
{
    unsigned page = (unsigned)(rows / PAGE);
    if (rows < 0 || page >= c->n_pages) {
        return NULL;
    }
    struct batch_cell *cells = atomic_load_explicit(&s->pages[page], memory_order_relaxed);
    if (NR_UNLIKELY(cells == NULL)) {
        cells = nr_new_array(struct batch_cell, PAGE);
        atomic_store_explicit(&s->pages[page], cells, memory_order_release);
    }
    return &cells[rows % PAGE];
}

static uint64_t span(int64_t from_ns, int64_t to_ns)
{
    return to_ns > from_ns ? (uint64_t)(to_ns - from_ns) : 0;
}

/* One execution of the plug-in, by the request that stands for its batch. */
static void count_execution(struct nr_counters *c, struct set *s, const struct nr_request *r)
{
    add(&s->executions, 1);
    add(&s->inline_executions, r->ran_inline);
    atomic_store_explicit(&s->last_wall_ms, (uint64_t)(nr_clock_wall() / NR_MS_NS),
                          memory_order_relaxed);
    struct batch_cell *cell = cell_of(c, s, r->batch_rows);
    if (cell != NULL) {
        add(&cell->executions, 1);
        add(&cell->input_ns, span(r->begin_ns, r->infer_begin_ns));
        add(&cell->infer_ns, span(r->infer_begin_ns, r->infer_end_ns));
        add(&cell->output_ns, span(r->infer_end_ns, r->end_ns));
    }
}

void nr_counters_success(struct nr_counters *c, unsigned loop, const struct nr_request *r,
                         bool leads)
{
    struct set *s = set_of(c, loop);
    uint64_t request_ns = span(r->arrival_ns, r->end_ns),
             queue_ns = span(r->queued_ns, r->begin_ns);
    uint64_t input_ns = span(r->begin_ns, r->infer_begin_ns);
    uint64_t infer_ns = span(r->infer_begin_ns, r->infer_end_ns);
    uint64_t output_ns = span(r->infer_end_ns, r->end_ns);
    add(&s->success, 1);
    add(&s->success_ns, request_ns);
    add(&s->queue_ns, queue_ns);
    add(&s->input_ns, input_ns);
    add(&s->infer_ns, infer_ns);
    add(&s->output_ns, output_ns);
    add(&s->rows, (uint64_t)r->in->rows);
    nr_hist_coarse_add(&s->stage[NR_STAGE_REQUEST], request_ns);
    nr_hist_coarse_add(&s->stage[NR_STAGE_QUEUE], queue_ns);
    nr_hist_coarse_add(&s->stage[NR_STAGE_INPUT], input_ns);
    nr_hist_coarse_add(&s->stage[NR_STAGE_INFER], infer_ns);
    nr_hist_coarse_add(&s->stage[NR_STAGE_OUTPUT], output_ns);
    if (leads) {
        count_execution(c, s, r);
    }
}

void nr_counters_round(struct nr_counters *c, unsigned loop, const struct nr_request *r, bool leads)
{
    if (leads) {
        count_execution(c, set_of(c, loop), r);
    }
}

void nr_counters_failure(struct nr_counters *c, unsigned loop, nr_fail_reason why, int64_t took_ns)
{
    struct set *s = set_of(c, loop);
    add(&s->fail, 1);
    add(&s->fail_ns, took_ns > 0 ? (uint64_t)took_ns : 0);
    add(&s->failed[why], 1);
}

void nr_counters_cache_hit(struct nr_counters *c, unsigned loop, const struct nr_request *r,
                           int64_t took_ns)
{
    struct set *s = set_of(c, loop);
    uint64_t request_ns = span(r->arrival_ns, r->end_ns);
    add(&s->success, 1);
    add(&s->success_ns, request_ns);
    nr_hist_coarse_add(&s->stage[NR_STAGE_REQUEST], request_ns);
    add(&s->cache_hits, 1);
    add(&s->cache_hit_ns, (uint64_t)NR_MAX(took_ns, 0));
    atomic_store_explicit(&s->last_wall_ms, (uint64_t)(nr_clock_wall() / NR_MS_NS),
                          memory_order_relaxed);
}

void nr_counters_cache_miss(struct nr_counters *c, unsigned loop, int64_t took_ns)
{
    struct set *s = set_of(c, loop);
    add(&s->cache_misses, 1);
    add(&s->cache_miss_ns, (uint64_t)NR_MAX(took_ns, 0));
}

static void read_set(const struct set *s, struct nr_counts *ret)
{
    ret->success += get(&s->success);
    ret->fail += get(&s->fail);
    ret->success_ns += get(&s->success_ns);
    ret->fail_ns += get(&s->fail_ns);
    ret->queue_ns += get(&s->queue_ns);
    ret->input_ns += get(&s->input_ns);
    ret->infer_ns += get(&s->infer_ns);
    ret->output_ns += get(&s->output_ns);
    ret->rows += get(&s->rows);
    ret->executions += get(&s->executions);
    ret->inline_executions += get(&s->inline_executions);
    ret->cache_hits += get(&s->cache_hits);
    ret->cache_hit_ns += get(&s->cache_hit_ns);
    ret->cache_misses += get(&s->cache_misses);
    ret->cache_miss_ns += get(&s->cache_miss_ns);
    ret->last_wall_ms = NR_MAX(ret->last_wall_ms, get(&s->last_wall_ms));
    for (unsigned i = 0; i < NR_FAIL_COUNT; i++) {
        ret->failed[i] += get(&s->failed[i]);
    }
    for (unsigned i = 0; i < NR_STAGE_COUNT; i++) {
        nr_hist_coarse_merge(&ret->stage[i], &s->stage[i]);
    }
}

/* Sums batch size `rows` over all loops into *ret; false when it was never formed. */
static bool read_batch(const struct nr_counters *c, unsigned page, unsigned at,
                       struct nr_batch_count *ret)
{
    *ret = (struct nr_batch_count){.rows = (uint64_t)page * PAGE + at};
    for (unsigned i = 0; i < c->n_loops; i++) {
        const struct set *s = atomic_load_explicit(&c->sets[i], memory_order_acquire);
        const struct batch_cell *cells =
            s == NULL ? NULL : atomic_load_explicit(&s->pages[page], memory_order_acquire);
        if (cells != NULL) {
            ret->executions += get(&cells[at].executions);
            ret->input_ns += get(&cells[at].input_ns);
            ret->infer_ns += get(&cells[at].infer_ns);
            ret->output_ns += get(&cells[at].output_ns);
        }
    }
    return ret->executions > 0;
}

void nr_counters_read(const struct nr_counters *c, struct nr_arena *a, struct nr_counts *ret)
{
    memset(ret, 0, sizeof(*ret));
    for (unsigned i = 0; i < c->n_loops; i++) {
        const struct set *s = atomic_load_explicit(&c->sets[i], memory_order_acquire);
        if (s != NULL) {
            read_set(s, ret);
        }
    }
    struct nr_batch_count one;
    unsigned n = 0;
    for (unsigned p = 0; p < c->n_pages; p++) {
        for (unsigned at = 0; at < PAGE; at++) {
            n += read_batch(c, p, at, &one);
        }
    }
    /* A size first formed between the two passes is left out, hence the second bound. */
    ret->batches = nr_arena_alloc(a, (n + 1) * sizeof(one));
    for (unsigned p = 0; p < c->n_pages; p++) {
        for (unsigned at = 0; at < PAGE && ret->n_batches < n; at++) {
            if (read_batch(c, p, at, &one)) {
                ret->batches[ret->n_batches++] = one;
            }
        }
    }
}
