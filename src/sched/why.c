/* Facts to findings; the parts of a request's time are in the header.
 *
 * DESIGN. Waiting is split by how batches were sealed, because the seal says what a longer batch
 * would have needed: more room (full), other shapes (shape), smaller requests (next), batching at all
 * (single), or nothing, when the queue was empty and only a busy instance was in the way (idle). Each
 * of the first four counts only where the simulation says that larger batches would pay by PAYS;
 * otherwise the time is that of too few instances, or of too few cores.
 *
 * Other processes count only when the machine has no idle time and the model computes: a model that
 * waits for a device loses nothing to them.
 *
 * INVARIANTS
 *  1. There is at least one finding, and they are ordered: refusals first, then by share.
 *  2. Factors of throughput come from two simulations of the same model, so what the model leaves out
 *     cancels. Times at a rate are simulated as they are: today's, near saturation, has no limit.
 */
#include "sched/why.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "sched/why_sim.h"

#define PAYS 1.08         /* a larger batch is worth naming from here on */
#define SMALL 0.02        /* shares below it are not named */
#define REFUSED 0.05      /* refusals above it come first */
#define BUSY_LOOP 0.85    /* of an I/O thread */
#define FULL_MACHINE 0.90 /* of all cores */
#define COMPUTES 0.15     /* processor time in the time of executions: else it waits */
#define STARVED 0.25      /* switches that were no thread's own wish */
#define MANY_NEIGHBOURS 0.25

const char *nr_why_cause_text(nr_why_cause c)
{
    static const char *const texts[] = {
#define NR_WHY_NAME(symbol, name) name,
        NR_WHY_MAP(NR_WHY_NAME)
#undef NR_WHY_NAME
    };
    return (unsigned)c < NR_COUNT(texts) ? texts[c] : "unknown";
}

struct work { /* what the steps below share */
    const struct nr_why_facts *f;
    struct nr_why_report *r;
    struct nr_why_setup now;
    struct nr_why_load closed, open;
    struct nr_why_outcome closed_now;
    double wait, run, before; /* shares of a request's time */
    double computes;          /* processor time per time of executions */
    double stolen;            /* part that other processes take */
    bool is_bound;            /* the model computes, rather than to wait for something */
    bool full_machine;
    uint64_t executions; /* sealed */
};

/* --- what a batch costs ------------------------------------------------------------------------ */

static double mean_ns(const struct nr_batch_count *b)
{
    return (double)(b->input_ns + b->infer_ns + b->output_ns) / (double)b->executions;
}

/* Least squares over batch sizes. A size counts by its executions up to a bound, so that one size
 * that is run all the time does not make the others vanish. False: there is one size only. */
static bool fit(const struct nr_batch_count *sizes, unsigned n, double *ret_fixed, double *ret_row)
{
    double w = 0, x = 0, y = 0, xx = 0, xy = 0;
    for (unsigned i = 0; i < n; i++) {
        double k = (double)NR_MIN(sizes[i].executions, (uint64_t)64), rows = (double)sizes[i].rows;
        double ns = sizes[i].executions > 0 ? mean_ns(&sizes[i]) : 0;
        w += k;
        x += k * rows;
        y += k * ns;
        xx += k * rows * rows;
        xy += k * rows * ns;
    }
    double spread = w * xx - x * x;
    if (w <= 0 || spread <= 1e-6 * w * w) {
        return false;
    }
    double row = (w * xy - x * y) / spread;
    double fixed = (y - row * x) / w;
    if (row < 0) { /* noise: all of it is fixed, or all of it is rows */
        row = 0;
        fixed = y / w;
    } else if (fixed < 0) {
        fixed = 0;
        row = xy / xx;
    }
    *ret_fixed = fixed;
    *ret_row = row;
    return true;
}

static void learn_cost(struct work *w)
{
    const struct nr_why_facts *f = w->f;
    struct nr_why_report *r = w->r;
    double busy_ns = 0, rows = 0, n = 0;
    for (unsigned i = 0; i < f->n_sizes; i++) {
        busy_ns += mean_ns(&f->sizes[i]) * (double)f->sizes[i].executions;
        rows += (double)(f->sizes[i].rows * f->sizes[i].executions);
        n += (double)f->sizes[i].executions;
    }
    if (n == 0) {
        return;
    }
    r->cost_known = true;
    r->instance_use = busy_ns / ((double)f->window_ns * NR_MAX(f->set.instances, 1u));
    r->cost_split = fit(f->sizes, f->n_sizes, &r->fixed_ns, &r->row_ns) ||
                    fit(f->ever, f->n_ever, &r->fixed_ns, &r->row_ns);
    if (!r->cost_split) {
        r->fixed_ns = 0;
        r->row_ns = busy_ns / rows;
        return;
    }
    /* What was learnt on other sizes, or earlier, must agree with what is measured now. */
    double expected_ns = r->fixed_ns * n + r->row_ns * rows;
    if (expected_ns > 0) {
        r->fixed_ns *= busy_ns / expected_ns;
        r->row_ns *= busy_ns / expected_ns;
    }
}

/* --- other settings ---------------------------------------------------------------------------- */

static struct nr_why_effect *add_effect(struct work *w, const char *setting,
                                        const struct nr_why_setup *then,
                                        const struct nr_why_load *closed)
{
    struct nr_why_report *r = w->r;
    if (r->n_effects == NR_WHY_MAX_EFFECTS) {
        return NULL;
    }
    struct nr_why_effect *e = &r->effects[r->n_effects++];
    struct nr_why_outcome a, b;
    nr_why_simulate(then, closed, &a);
    nr_why_simulate(then, &w->open, &b);
    *e = (struct nr_why_effect){.setting = setting};
    if (w->closed_now.rate_per_s > 0) {
        e->throughput = a.rate_per_s / w->closed_now.rate_per_s;
        e->requests_per_s = e->throughput * r->rate_per_s;
    }
    if (b.stable && b.latency_ns > 0) {
        e->latency_ns = r->before_ns + b.latency_ns;
        e->latency = e->latency_ns / r->mean_ns;
    }
    return e;
}

static void name_number(struct nr_why_effect *e, int64_t from, int64_t to)
{
    if (e != NULL) {
        snprintf(e->from, sizeof(e->from), "%" PRId64, from);
        snprintf(e->to, sizeof(e->to), "%" PRId64, to);
    }
}

static void name_text(struct nr_why_effect *e, const char *from, const char *to)
{
    if (e != NULL) {
        snprintf(e->from, sizeof(e->from), "%s", from);
        snprintf(e->to, sizeof(e->to), "%s", to);
    }
}

static int64_t larger_batch(const struct work *w)
{
    int64_t max = NR_MAX(w->f->set.max_batch_size, 1), rows = w->closed.rows;
    int64_t twice = 2 * max;
    return rows > 1 && max % rows != 0 ? (twice + rows - 1) / rows * rows : twice;
}

/* The settings that one would try, each on its own. */
static void try_settings(struct work *w)
{
    const struct nr_why_settings *set = &w->f->set;
    struct nr_why_setup then = w->now;
    if (set->max_batch_size > 0 && set->batching && w->r->cost_split) {
        then.rules.max_rows = larger_batch(w);
        name_number(add_effect(w, "max_batch_size", &then, &w->closed), set->max_batch_size,
                    then.rules.max_rows);
    }
    then = w->now;
    then.instances = set->instances + 1;
    name_number(add_effect(w, "instances", &then, &w->closed), set->instances, then.instances);
    then = w->now;
    if (set->delay_ns > 0) {
        then.rules.delay_ns = 0;
        name_number(add_effect(w, "max_queue_delay_microseconds", &then, &w->closed),
                    set->delay_ns / NR_US_NS, 0);
        then = w->now;
    }
    if (set->n_preferred > 0) {
        then.rules.n_preferred = 0;
        then.rules.delay_ns = 0;
        name_text(add_effect(w, "preferred_batch_size", &then, &w->closed), "given",
                  "none, no delay");
        then = w->now;
    }
    if (set->max_batch_size > 1 && !set->batching && w->r->cost_split) {
        then.rules.batching = true;
        then.rules.max_rows = set->max_batch_size;
        name_text(add_effect(w, "dynamic_batching", &then, &w->closed), "off", "on");
        then = w->now;
    }
    struct nr_why_load more = w->closed;
    more.clients = 4 * w->closed.clients;
    struct nr_why_effect *e = add_effect(w, "requests_in_flight", &then, &more);
    name_number(e, w->closed.clients, more.clients);
    if (e != NULL) {
        e->latency = e->latency_ns = 0; /* the question makes sense for the other figure only */
    }
}

static int effect_of(const struct work *w, const char *setting)
{
    for (unsigned i = 0; i < w->r->n_effects; i++) {
        if (strcmp(w->r->effects[i].setting, setting) == 0) {
            return (int)i;
        }
    }
    return -1;
}

static double gain_of(const struct work *w, const char *setting)
{
    int i = effect_of(w, setting);
    return i >= 0 ? w->r->effects[i].throughput : 0;
}

/* --- findings ---------------------------------------------------------------------------------- */

static struct nr_why_finding *find(struct work *w, nr_why_cause cause, double share,
                                   const char *setting)
{
    struct nr_why_report *r = w->r;
    if (share < SMALL || r->n_findings == NR_WHY_CAUSES) {
        return NULL;
    }
    struct nr_why_finding *n = &r->findings[r->n_findings++];
    *n = (struct nr_why_finding){.cause = cause,
                                 .share = NR_MIN(share, 1.0),
                                 .effect = setting != NULL ? effect_of(w, setting) : -1};
    return n;
}

static void nr_printf(2, 3) text(struct nr_why_finding *n, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    vsnprintf(n->text, sizeof(n->text), fmt, args);
    va_end(args);
}

static void nr_printf(2, 3) advise(struct nr_why_finding *n, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    vsnprintf(n->advice, sizeof(n->advice), fmt, args);
    va_end(args);
}

static double ms(double ns)
{
    return ns / 1e6;
}

static void find_refusals(struct work *w)
{
    const struct nr_why_facts *f = w->f;
    double all = (double)(f->requests + f->refused_full + f->refused_late);
    struct nr_why_finding *n;
    if (all == 0) {
        return;
    }
    if ((n = find(w, NR_WHY_QUEUE_FULL, (double)f->refused_full / all, "instances")) != NULL) {
        text(n, "%.0f %% of the requests were refused because the queue was full (%u may wait)",
             100 * n->share, f->set.max_queue_requests);
        advise(n, "more comes in than the model can do: the findings below say what makes it "
                  "faster; a longer queue (max_queue_size, --queue-max-requests) only makes "
                  "requests wait longer");
    }
    if ((n = find(w, NR_WHY_DEADLINES, (double)f->refused_late / all, "instances")) != NULL) {
        text(n,
             "the time limit of %.0f %% of the requests passed while they waited (p99 of those "
             "that were answered: %.1f ms)",
             100 * n->share, ms((double)f->wait_p99_ns));
        advise(n, "allow them more time than the wait, or let them wait less: the findings below "
                  "say what makes the model faster");
    }
}

static void find_before(struct work *w)
{
    const struct nr_why_facts *f = w->f;
    struct nr_why_report *r = w->r;
    struct nr_why_finding *n;
    double codec_ns = (double)(f->pool_ns + f->loops_ns);
    bool computes = codec_ns > 0.3 * (double)f->window_ns || codec_ns > 0.5 * (double)f->own_ns;
    if (computes && (n = find(w, NR_WHY_DECODING, w->before, NULL)) != NULL) {
        text(n,
             "%.0f %% of a request's time (%.1f ms) is reading it; I/O and decoding threads use "
             "%.1f cores",
             100 * w->before, ms(r->before_ns), codec_ns / (double)f->window_ns);
        advise(n, "send tensors as bytes (binary tensor data extension, or gRPC with "
                  "raw_input_contents) instead of JSON, and ask for binary outputs");
    } else if (!computes && (n = find(w, NR_WHY_UPLOADS, w->before, NULL)) != NULL) {
        text(n, "%.0f %% of a request's time (%.1f ms) is waiting for its body to arrive",
             100 * w->before, ms(r->before_ns));
        advise(n, "the network or the client is slow; smaller or binary bodies help");
    }
    bool is_inline = 2 * f->inline_executions > f->executions;
    if (!is_inline && r->loop_max_use > BUSY_LOOP &&
        (n = find(w, NR_WHY_IO_LOOP, r->loop_max_use * (1 - w->before), NULL)) != NULL) {
        text(n,
             "an I/O thread is busy %.0f %% of the time: requests wait in the sockets before "
             "they are seen",
             100 * r->loop_max_use);
        advise(n, "use more connections where one thread has most of the work, more I/O threads "
                  "(--io-threads) where cores are free, and binary tensors instead of JSON");
    }
}

static double sealed(const struct work *w, nr_seal why)
{
    return w->executions > 0 ? (double)w->f->seals[why] / (double)w->executions : 0;
}

/* Waiting that a hold-back explains. Returns its share of the waiting. */
static double find_delays(struct work *w, double wait)
{
    const struct nr_why_facts *f = w->f;
    const struct nr_why_settings *set = &f->set;
    struct nr_why_finding *n;
    double by_delay = sealed(w, NR_SEAL_DELAY);
    double mean_rows = (double)f->rows / NR_MAX((double)f->executions, 1.0);
    bool misses = set->n_preferred > 0 && f->seals[NR_SEAL_PREFERRED] < f->seals[NR_SEAL_DELAY];
    const char *setting = misses ? "preferred_batch_size" : "max_queue_delay_microseconds";
    if ((n = find(w, misses ? NR_WHY_PREFERRED : NR_WHY_DELAY, wait * by_delay, setting)) == NULL) {
        return by_delay;
    }
    if (misses) {
        text(n,
             "%.0f %% of the batches waited their delay of %.1f ms for a preferred size that "
             "did not come: %.1f rows on average",
             100 * by_delay, ms((double)set->delay_ns), mean_rows);
        advise(n, "leave preferred_batch_size out, or name sizes that the load reaches");
    } else {
        text(n,
             "%.0f %% of the batches were held back until max_queue_delay_microseconds (%.1f "
             "ms) had passed, with %.1f rows on average; instances are busy %.0f %% of the time",
             100 * by_delay, ms((double)set->delay_ns), mean_rows, 100 * w->r->instance_use);
        advise(n, "lower max_queue_delay_microseconds; without it, batches form while an instance "
                  "is busy and an idle one never waits");
    }
    return by_delay;
}

/* Waiting because batches could not become larger, where that would pay. Returns the share of the
 * waiting that is explained. */
static double find_sizes(struct work *w, double wait)
{
    const struct nr_why_facts *f = w->f;
    const struct nr_why_settings *set = &f->set;
    struct nr_why_finding *n;
    double full = sealed(w, NR_SEAL_FULL), shape = sealed(w, NR_SEAL_SHAPE);
    double next = sealed(w, NR_SEAL_NEXT_TOO_BIG), single = sealed(w, NR_SEAL_SINGLE), used = 0;
    double gain = gain_of(w, "max_batch_size"), cost = w->r->fixed_ns, row = w->r->row_ns;
    /* Without sizes to compare it is not known whether a larger one pays: then it is worth a try. */
    bool unknown = w->r->cost_known && !w->r->cost_split;
    bool cheaper = unknown || cost > (PAYS - 1) * (cost + row * (double)w->closed.rows);
    if (!set->auto_size && (gain >= PAYS || unknown) &&
        (n = find(w, NR_WHY_MAX_BATCH, wait * full, "max_batch_size")) != NULL) {
        used += full;
        text(n,
             "%.0f %% of the batches were full at max_batch_size %" PRId64
             " while more requests waited; a batch takes %.2f ms + %.2f ms per row",
             100 * full, set->max_batch_size, ms(cost), ms(row));
        advise(n, "raise max_batch_size");
    }
    if (cheaper && (n = find(w, NR_WHY_SHAPES, wait * shape, NULL)) != NULL) {
        used += shape;
        text(n,
             "%.0f %% of the batches ended because other shapes or inputs were waiting: %.1f "
             "rows on average of %" PRId64,
             100 * shape, (double)f->rows / NR_MAX((double)f->executions, 1.0),
             set->max_batch_size);
        advise(n, "send fewer different shapes (pad to a few sizes), or allow ragged batches where "
                  "the model can take them");
    }
    if (cheaper && (n = find(w, NR_WHY_ROWS, wait * next, "max_batch_size")) != NULL) {
        used += next;
        text(n,
             "%.0f %% of the batches ended because the next request (%.1f rows on average) "
             "would have exceeded max_batch_size %" PRId64,
             100 * next, w->r->request_rows, set->max_batch_size);
        advise(n, "make max_batch_size a multiple of the usual number of rows, or split requests");
    }
    if (set->max_batch_size > 1 && !set->batching && cheaper &&
        (n = find(w, NR_WHY_BATCHING_OFF, wait * single, "dynamic_batching")) != NULL) {
        used += single;
        text(n,
             "every request runs alone, although a batch takes %.2f ms + %.2f ms per row and up "
             "to %" PRId64 " rows are allowed",
             ms(cost), ms(row), set->max_batch_size);
        advise(n, "add \"dynamic_batching { }\" to config.pbtxt");
    }
    double rows = (double)f->rows / NR_MAX((double)f->executions, 1.0);
    double room = 1 - rows / NR_MAX((double)set->max_batch_size, 1.0);
    double chosen = sealed(w, NR_SEAL_STRATEGY) * NR_MAX(room, 0.0);
    if (cheaper && (n = find(w, NR_WHY_STRATEGY, wait * chosen, NULL)) != NULL) {
        used += chosen;
        text(n,
             "%.0f %% of the batches are as the model's batching strategy wants them: %.1f rows on "
             "average of %" PRId64 "; a batch takes %.2f ms + %.2f ms per row",
             100 * sealed(w, NR_SEAL_STRATEGY), rows, set->max_batch_size, ms(cost), ms(row));
        advise(n, "change the parameters naru.batch_strategy.*, or leave naru.batch_strategy out; "
                  "what other settings would do is said for the server's own batches");
    }
    return used;
}

/* What is left of the waiting: an instance was busy. */
static void find_busy(struct work *w, double wait)
{
    const struct nr_why_facts *f = w->f;
    struct nr_why_finding *n;
    bool cores = w->full_machine && w->is_bound;
    if ((n = find(w, cores ? NR_WHY_CORES : NR_WHY_INSTANCES, wait, "instances")) == NULL) {
        return;
    }
    text(n,
         "requests wait for a busy instance: %u instance%s busy %.0f %% of the time, %.2f ms an "
         "execution",
         f->set.instances, f->set.instances == 1 ? " is" : "s are", 100 * w->r->instance_use,
         ms(w->r->run_ns));
    if (cores) {
        n->effect = -1; /* another instance would share the same cores */
        advise(n, "all %u cores are in use: a faster model (quantised, smaller) or more cores",
               f->cores);
    } else {
        advise(n, "add an instance: instance_group { count: %u }", f->set.instances + 1);
    }
}

/* share: of a request's time, what it took because others had the cores. */
static void find_neighbours(struct work *w, double share)
{
    const struct nr_why_facts *f = w->f;
    struct nr_why_finding *n = find(w, NR_WHY_NEIGHBOURS, share, NULL);
    if (n != NULL) {
        text(n, "other processes use %.1f of %u cores and none is idle; this server gets %.1f",
             (double)f->others_ns / (double)f->window_ns, f->cores,
             (double)f->own_ns / (double)f->window_ns);
        advise(n, "move them, or give this server cores of its own (taskset, cpusets, nice)");
    }
}

static void find_load(struct work *w)
{
    struct nr_why_report *r = w->r;
    struct nr_why_finding *n;
    double share = w->run * (1 - w->stolen);
    /* All that is seen is little; sockets may hold more when the threads that read them are busy. */
    if (r->loop_max_use > BUSY_LOOP || w->wait > 0.4 ||
        (n = find(w, NR_WHY_LOAD, share, "requests_in_flight")) == NULL) {
        return;
    }
    text(n,
         "requests hardly wait: %.0f %% of their time is the model's own, with %.1f of them in "
         "the server at a time and instances busy %.0f %%",
         100 * w->run, r->in_flight, 100 * r->instance_use);
    advise(n, "more requests at a time raise throughput (several connections or HTTP/2 streams, or "
              "more rows in a request); a single one gets faster with a faster model only");
}

static void order(struct nr_why_report *r)
{
    for (unsigned i = 1; i < r->n_findings; i++) {
        for (unsigned k = i; k > 0; k--) {
            struct nr_why_finding *a = &r->findings[k - 1], *b = &r->findings[k];
            bool urgent_a = (a->cause == NR_WHY_QUEUE_FULL || a->cause == NR_WHY_DEADLINES) &&
                            a->share > REFUSED;
            bool urgent_b = (b->cause == NR_WHY_QUEUE_FULL || b->cause == NR_WHY_DEADLINES) &&
                            b->share > REFUSED;
            if (urgent_a > urgent_b || (urgent_a == urgent_b && a->share >= b->share)) {
                break;
            }
            struct nr_why_finding t = *a;
            *a = *b;
            *b = t;
        }
    }
}

/* --- all of it --------------------------------------------------------------------------------- */

static void describe(struct work *w)
{
    const struct nr_why_facts *f = w->f;
    struct nr_why_report *r = w->r;
    double n = (double)f->requests, window_ns = (double)NR_MAX(f->window_ns, 1);
    r->loop_use = (double)f->loops_ns / (window_ns * NR_MAX(f->n_loops, 1u));
    r->loop_max_use = (double)f->loop_max_ns / window_ns;
    for (unsigned i = 0; i < NR_SEAL_COUNT; i++) {
        w->executions += f->seals[i];
    }
    if (f->requests == 0) {
        return;
    }
    r->rate_per_s = n / window_ns * 1e9;
    r->in_flight = (double)f->request_ns / window_ns;
    r->request_rows = (double)f->rows / n;
    r->mean_ns = (double)f->request_ns / n;
    r->wait_ns = (double)f->queue_ns / n;
    r->run_ns = (double)f->run_ns / n;
    r->before_ns = NR_MAX(r->mean_ns - r->wait_ns - r->run_ns, 0.0);
    double all_ns = NR_MAX(r->mean_ns, 1.0);
    w->wait = r->wait_ns / all_ns;
    w->run = r->run_ns / all_ns;
    w->before = r->before_ns / all_ns;
    double machine_ns = window_ns * NR_MAX(f->cores, 1u);
    double model_ns = (double)(f->own_ns - f->loops_ns - f->pool_ns);
    double busy_ns = r->instance_use * window_ns * NR_MAX(f->set.instances, 1u);
    double own_ns = (double)f->own_ns, others_ns = (double)f->others_ns;
    w->computes = busy_ns > 0 ? NR_MAX(model_ns, 0.0) / busy_ns : 0;
    /* Where many want the cores, a model that computes gets little of them: then it loses them often. */
    bool starved = (double)f->preempted > STARVED * (double)(f->preempted + f->waited);
    w->is_bound = w->computes > COMPUTES || (w->computes > COMPUTES / 10 && starved);
    w->full_machine = own_ns + others_ns > FULL_MACHINE * machine_ns;
    if (w->full_machine && w->is_bound && others_ns > MANY_NEIGHBOURS * machine_ns) {
        w->stolen = others_ns / (own_ns + others_ns);
    }
}

static void set_up_simulation(struct work *w)
{
    const struct nr_why_settings *set = &w->f->set;
    const struct nr_why_report *r = w->r;
    w->now = (struct nr_why_setup){.run_ns = r->fixed_ns,
                                   .row_ns = r->row_ns,
                                   .instances = set->instances,
                                   .rules = {.max_rows = NR_MAX(set->max_batch_size, 1),
                                             .batching = set->batching,
                                             .auto_size = set->auto_size,
                                             .delay_ns = set->delay_ns,
                                             .n_preferred = set->n_preferred}};
    memcpy(w->now.rules.preferred, set->preferred, sizeof(set->preferred));
    int64_t rows = (int64_t)(r->request_rows + 0.5);
    w->closed = (struct nr_why_load){.rows = NR_MAX(rows, 1),
                                     .clients = (unsigned)NR_MAX(r->in_flight + 0.5, 1.0)};
    w->open = (struct nr_why_load){.rows = w->closed.rows, .rate_per_s = r->rate_per_s};
    nr_why_simulate(&w->now, &w->closed, &w->closed_now);
}

void nr_why_explain(const struct nr_why_facts *f, struct nr_why_report *ret)
{
    *ret = (struct nr_why_report){0};
    struct work w = {.f = f, .r = ret};
    learn_cost(&w);
    describe(&w);
    if (ret->cost_known && f->requests > 0) {
        set_up_simulation(&w);
        ret->model_error = w.closed_now.rate_per_s / ret->rate_per_s - 1;
        try_settings(&w);
    }
    find_refusals(&w);
    if (f->requests > 0) {
        find_before(&w);
        double held = find_delays(&w, w.wait);
        find_neighbours(&w, w.stolen * (w.run + w.wait * (1 - held)));
        double wait = w.wait * (1 - w.stolen);
        double used = held + find_sizes(&w, wait);
        find_busy(&w, wait * NR_MAX(1 - used, 0.0));
        find_load(&w);
        order(ret);
    }
    if (ret->n_findings == 0) {
        struct nr_why_finding *n = &ret->findings[ret->n_findings++];
        *n = (struct nr_why_finding){.cause = NR_WHY_NO_TRAFFIC, .share = 1, .effect = -1};
        text(n, "no request of this version was answered within %.1f s",
             (double)f->window_ns / 1e9);
        advise(n, "ask again while there is load, or for a longer time (seconds=10)");
    }
}
