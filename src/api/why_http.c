/* GET /v2/models/M/why: what the batcher did within a window, and what would change it.
 *
 * DESIGN. Nothing is recorded for this route. Two readings of what is counted anyway (counters,
 * scheduler, processor times of threads and machine), a window apart, are compared. Reading files of
 * /proc, the comparison and its simulations run on the pool; in between a timer of the loop waits,
 * which looks now and then whether somebody still wants the answer. The version is pinned for that
 * long, so an unloading waits for at most 60 s.
 *
 * JSON by default; Accept: text/plain gives sentences. docs/why.md describes both.
 */
#include <math.h>
#include <string.h>

#include "api/call.h"
#include "api/state.h"
#include "api/v2.h"
#include "base/clock.h"
#include "base/cpu_times.h"
#include "base/mem.h"
#include "model/config.h"
#include "model/ensemble.h"
#include "sched/why.h"

#define NOTES_BYTES 2048
#define MIN_S 0.1
#define MAX_S 60.0
#define LOOK_NS (100 * NR_MS_NS)
#define TEXT_MAX (1u << 20)

struct reading {
    struct nr_counts counts;
    struct nr_sched_state state;
    struct nr_cpu_times cpu;
};

struct why {
    struct nr_call *call;
    struct nr_timer timer;
    int64_t window_ns, end_ns;
    bool plain; /* sentences are wanted */
    struct reading first, last;
    struct nr_why_facts facts;
    struct nr_why_report report;
    struct nr_text text; /* the answer */
};

/* --- readings to facts ------------------------------------------------------------------------- */

static void read_all(struct nr_call *c, struct reading *ret)
{
    struct nr_arena *a = &c->x->arena;
    nr_cpu_times_read(a, &ret->cpu);
    nr_counters_read(c->runtime->counters, a, &ret->counts);
    nr_runtime_state_get(c->runtime, &ret->state);
}

/* Sizes formed in between. */
static void subtract_sizes(struct nr_arena *a, const struct reading *first,
                           const struct reading *last, struct nr_why_facts *f)
{
    const struct nr_counts *old = &first->counts, *now = &last->counts;
    struct nr_batch_count *sizes = nr_arena_alloc(a, (now->n_batches + 1) * sizeof(*sizes));
    unsigned at = 0;
    f->ever = now->batches;
    f->n_ever = now->n_batches;
    f->sizes = sizes;
    for (unsigned i = 0; i < now->n_batches; i++) {
        struct nr_batch_count b = now->batches[i];
        while (at < old->n_batches && old->batches[at].rows < b.rows) {
            at++;
        }
        if (at < old->n_batches && old->batches[at].rows == b.rows) {
            b.executions -= old->batches[at].executions;
            b.input_ns -= old->batches[at].input_ns;
            b.infer_ns -= old->batches[at].infer_ns;
            b.output_ns -= old->batches[at].output_ns;
        }
        if (b.executions > 0) {
            sizes[f->n_sizes++] = b;
        }
    }
}

static int64_t quantile(const struct why *w, nr_stage stage, double q)
{
    struct nr_hist_coarse h = {0};
    const struct nr_hist_coarse *old = &w->first.counts.stage[stage];
    nr_hist_coarse_merge(&h, &w->last.counts.stage[stage]);
    for (unsigned i = 0; i < NR_HIST_COARSE_BUCKETS; i++) {
        atomic_store_explicit(&h.count[i],
                              atomic_load_explicit(&h.count[i], memory_order_relaxed) -
                                  atomic_load_explicit(&old->count[i], memory_order_relaxed),
                              memory_order_relaxed);
    }
    return (int64_t)nr_hist_coarse_quantile(&h, q);
}

static void subtract_counts(const struct why *w, struct nr_why_facts *f)
{
    const struct nr_counts *a = &w->first.counts, *b = &w->last.counts;
    f->requests = b->success - a->success - (b->cache_hits - a->cache_hits);
    f->rows = b->rows - a->rows;
    f->executions = b->executions - a->executions;
    f->inline_executions = b->inline_executions - a->inline_executions;
    f->request_ns = b->success_ns - a->success_ns;
    f->queue_ns = b->queue_ns - a->queue_ns;
    f->run_ns = b->input_ns - a->input_ns + b->infer_ns - a->infer_ns + b->output_ns - a->output_ns;
    f->total_p50_ns = quantile(w, NR_STAGE_REQUEST, 0.5);
    f->total_p99_ns = quantile(w, NR_STAGE_REQUEST, 0.99);
    f->wait_p50_ns = quantile(w, NR_STAGE_QUEUE, 0.5);
    f->wait_p99_ns = quantile(w, NR_STAGE_QUEUE, 0.99);
    for (unsigned i = 0; i < NR_SEAL_COUNT; i++) {
        f->seals[i] = w->last.state.seals[i] - w->first.state.seals[i];
    }
    for (unsigned i = 0; i < NR_REFUSAL_KINDS; i++) {
        bool late = i == NR_REFUSAL_HOPELESS || i == NR_REFUSAL_TIMEOUT || i == NR_REFUSAL_DEADLINE;
        uint64_t n = w->last.state.refused[i] - w->first.state.refused[i];
        *(late ? &f->refused_late : &f->refused_full) += n;
    }
    f->limited_ns = w->last.state.limited_ns - w->first.state.limited_ns;
    f->cancelled = b->failed[NR_FAIL_CANCELED] - a->failed[NR_FAIL_CANCELED];
    f->failed = b->failed[NR_FAIL_BACKEND] - a->failed[NR_FAIL_BACKEND] + b->failed[NR_FAIL_OTHER] -
                a->failed[NR_FAIL_OTHER];
}

/* What one thread used in between; all of it when it began in between. */
static struct nr_cpu_thread used_by(const struct nr_cpu_thread *t,
                                    const struct nr_cpu_times *before)
{
    struct nr_cpu_thread used = *t;
    for (unsigned i = 0; i < before->n_threads; i++) {
        const struct nr_cpu_thread *old = &before->threads[i];
        if (old->id == t->id) {
            used.ns = NR_MAX(t->ns - old->ns, 0);
            used.preempted -= NR_MIN(old->preempted, used.preempted);
            used.waited -= NR_MIN(old->waited, used.waited);
        }
    }
    return used;
}

static void subtract_times(const struct why *w, struct nr_why_facts *f)
{
    const struct nr_cpu_times *a = &w->first.cpu, *b = &w->last.cpu;
    f->window_ns = b->at_ns - a->at_ns;
    f->cores = b->cores;
    f->own_ns = b->own_ns - a->own_ns;
    f->others_ns = NR_MAX(b->busy_ns - a->busy_ns - f->own_ns, 0);
    for (unsigned i = 0; i < b->n_threads; i++) {
        struct nr_str name = nr_str_from(b->threads[i].name);
        struct nr_cpu_thread used = used_by(&b->threads[i], a);
        if (nr_str_starts(name, NR_STR("naru-io-"))) {
            f->loops_ns += used.ns;
            f->loop_max_ns = NR_MAX(f->loop_max_ns, used.ns);
        } else if (nr_str_starts(name, NR_STR("naru-pool"))) {
            f->pool_ns += used.ns;
        } else {
            f->preempted += used.preempted;
            f->waited += used.waited;
        }
    }
}

static void read_settings(const struct nr_call *c, const struct reading *last,
                          struct nr_why_facts *f)
{
    const struct nr_model_config *config = c->version->config;
    struct nr_why_settings *set = &f->set;
    f->n_loops = c->api->cfg.n_loops;
    set->max_batch_size = config->max_batch_size;
    set->batching = config->batched && config->dynamic_batching;
    set->auto_size = set->batching && (!c->runtime->says_batching || config->latency_target_ns > 0);
    set->delay_ns = (int64_t)config->max_queue_delay_ns;
    for (uint32_t i = 0; i < config->n_preferred && i < NR_BATCH_MAX_PREFERRED; i++) {
        set->preferred[set->n_preferred++] = config->preferred[i];
    }
    if (set->n_preferred == 1 && set->preferred[0] == set->max_batch_size) {
        set->n_preferred = 0; /* what is completed where nobody asked for sizes */
    }
    set->instances = last->state.is_inline ? f->n_loops : last->state.places;
    uint32_t own = config->levels[config->default_level].max_queue_size;
    set->max_queue_requests = own > 0 ? own : c->api->cfg.runtime->limits.max_queue_requests;
}

/* --- JSON -------------------------------------------------------------------------------------- */

/* ,"name":value; a figure that is not known is null. */
static void number(struct nr_text *t, const char *name, double value)
{
    nr_text_fmt(t, isfinite(value) ? ",\"%s\":%.6g" : ",\"%s\":null", name, value);
}

static void count(struct nr_text *t, const char *name, uint64_t value)
{
    nr_text_fmt(t, ",\"%s\":%llu", name, (unsigned long long)value);
}

static double or_null(double value)
{
    return value > 0 ? value : NAN;
}

static void json_traffic(struct nr_text *t, const struct nr_why_facts *f,
                         const struct nr_why_report *r)
{
    nr_text_fmt(t, ",\"traffic\":{\"requests\":%llu", (unsigned long long)f->requests);
    count(t, "rows", f->rows);
    number(t, "requests_per_s", r->rate_per_s);
    number(t, "rows_per_request", r->request_rows);
    number(t, "in_flight", r->in_flight);
    nr_text_fmt(t, ",\"refused\":{\"queue_full\":%llu,\"deadline\":%llu}",
                (unsigned long long)f->refused_full, (unsigned long long)f->refused_late);
    count(t, "cancelled", f->cancelled);
    count(t, "failed", f->failed);
    nr_text_fmt(t,
                "},\"time_ms\":{\"request\":{\"mean\":%.6g,\"p50\":%.6g,\"p99\":%.6g},"
                "\"before_queue\":{\"mean\":%.6g},"
                "\"waiting\":{\"mean\":%.6g,\"p50\":%.6g,\"p99\":%.6g},"
                "\"running\":{\"mean\":%.6g}}",
                r->mean_ns / 1e6, (double)f->total_p50_ns / 1e6, (double)f->total_p99_ns / 1e6,
                r->before_ns / 1e6, r->wait_ns / 1e6, (double)f->wait_p50_ns / 1e6,
                (double)f->wait_p99_ns / 1e6, r->run_ns / 1e6);
}

static double size_ms(const struct nr_batch_count *b)
{
    return (double)(b->input_ns + b->infer_ns + b->output_ns) / (double)b->executions / 1e6;
}

static void json_batches(struct nr_text *t, const struct nr_why_facts *f,
                         const struct nr_why_report *r)
{
    nr_text_fmt(t, ",\"batches\":{\"executions\":%llu", (unsigned long long)f->executions);
    count(t, "on_io_threads", f->inline_executions);
    number(t, "mean_rows", f->executions > 0 ? (double)f->rows / (double)f->executions : NAN);
    nr_text_str(t, ",\"sizes\":[");
    for (unsigned i = 0; i < f->n_sizes; i++) {
        nr_text_fmt(t, "%s{\"rows\":%llu,\"executions\":%llu,\"mean_ms\":%.6g}", i > 0 ? "," : "",
                    (unsigned long long)f->sizes[i].rows,
                    (unsigned long long)f->sizes[i].executions, size_ms(&f->sizes[i]));
    }
    nr_text_str(t, "],\"sealed\":{");
    for (unsigned i = 0; i < NR_SEAL_COUNT; i++) {
        nr_text_fmt(t, "%s\"%s\":%llu", i > 0 ? "," : "", nr_seal_text((nr_seal)i),
                    (unsigned long long)f->seals[i]);
    }
    nr_text_str(t, "},\"cost\":");
    if (!r->cost_known) {
        nr_text_str(t, "null}");
        return;
    }
    nr_text_fmt(t, "{\"fixed_ms\":%.6g,\"per_row_ms\":%.6g,\"several_sizes_seen\":%s}}",
                r->fixed_ns / 1e6, r->row_ns / 1e6, r->cost_split ? "true" : "false");
}

static void json_use(struct nr_text *t, const struct nr_why_facts *f, const struct nr_why_report *r)
{
    double window_ns = (double)NR_MAX(f->window_ns, 1);
    nr_text_fmt(t, ",\"use\":{\"instances\":%.6g,\"io_threads\":%.6g,\"busiest_io_thread\":%.6g",
                r->instance_use, r->loop_use, r->loop_max_use);
    count(t, "cores", f->cores);
    number(t, "cores_of_this_server", (double)f->own_ns / window_ns);
    number(t, "cores_of_io_threads", (double)f->loops_ns / window_ns);
    number(t, "cores_of_decoding", (double)f->pool_ns / window_ns);
    number(t, "cores_of_others", (double)f->others_ns / window_ns);
    nr_text_str(t, "}");
}

static void json_settings(struct nr_text *t, const struct nr_why_settings *s, bool is_inline)
{
    nr_text_fmt(t,
                ",\"settings\":{\"max_batch_size\":%lld,\"dynamic_batching\":%s,"
                "\"size_chosen_by_measurement\":%s,\"max_queue_delay_microseconds\":%lld,"
                "\"preferred_batch_size\":[",
                (long long)s->max_batch_size, s->batching ? "true" : "false",
                s->auto_size ? "true" : "false", (long long)(s->delay_ns / NR_US_NS));
    for (unsigned i = 0; i < s->n_preferred; i++) {
        nr_text_fmt(t, "%s%lld", i > 0 ? "," : "", (long long)s->preferred[i]);
    }
    nr_text_fmt(t, "],\"instances\":%u,\"max_queue_size\":%u,\"placement\":\"%s\"}", s->instances,
                s->max_queue_requests, is_inline ? "io_threads" : "executors");
}

/* ms a row that each way takes, as far as it was tried with the neighbours of now. */
static void json_situation(struct nr_text *t, const char *name, const struct nr_parallel *p,
                           bool many)
{
    const struct nr_parallel_side *s = &p->sides[many][p->pressed];
    bool first = true;
    nr_text_fmt(t, ",\"%s\":{\"way\":\"%s\",\"trying\":\"%s\",\"ms_per_row\":{", name,
                nr_way_text(s->now), nr_way_text(s->trial));
    for (unsigned i = 0; i < NR_WAYS; i++) {
        if (s->costs[i].n > 0) {
            nr_text_fmt(t, "%s\"%s\":%.6g", first ? "" : ",", nr_way_text((nr_way)i),
                        (double)s->costs[i].row_ns / 1e6);
            first = false;
        }
    }
    nr_text_str(t, "}}");
}

static void json_parallelism(struct nr_text *t, const struct nr_parallel *p,
                             const struct nr_parallel *before)
{
    static const char *const wishes[] = {
        [NR_PARALLEL_AUTO] = "auto", [NR_PARALLEL_WIDE] = "wide", [NR_PARALLEL_NARROW] = "narrow"};
    static const char *const forms[NARU_FORMS] = {"wide", "quiet", "narrow"};
    if (!p->cfg.on) {
        nr_text_str(t, ",\"parallelism\":null");
        return;
    }
    nr_text_fmt(t, ",\"parallelism\":{\"setting\":\"%s\",\"others_want_the_cores\":%s",
                wishes[p->cfg.wish], p->pressed ? "true" : "false");
    json_situation(t, "one_request", p, false);
    json_situation(t, "several_requests", p, true);
    nr_text_str(t, ",\"executions\":{");
    for (unsigned i = 0; i < NR_WAYS; i++) {
        nr_text_fmt(t, "%s\"%s\":%llu", i > 0 ? "," : "", nr_way_text((nr_way)i),
                    (unsigned long long)(p->runs[i] - before->runs[i]));
    }
    nr_text_str(t, "},\"forms\":{");
    for (unsigned i = 0; i < NARU_FORMS; i++) {
        nr_text_fmt(t, "%s\"%s\":\"%s\"", i > 0 ? "," : "", forms[i],
                    p->made & (1u << i)      ? "made"
                    : p->refused & (1u << i) ? "not_for_this_model"
                                             : "not_needed");
    }
    nr_text_str(t, "}");
    count(t, "trials", p->n_trials);
    count(t, "changes", p->n_changes);
    nr_text_str(t, "}");
}

static void json_effect(struct nr_text *t, const struct nr_why_effect *e)
{
    nr_text_fmt(t, "{\"setting\":\"%s\",\"from\":\"%s\",\"to\":\"%s\"", e->setting, e->from, e->to);
    number(t, "throughput_factor", or_null(e->throughput));
    number(t, "requests_per_s", or_null(e->requests_per_s));
    number(t, "latency_factor", or_null(e->latency));
    number(t, "latency_ms", or_null(e->latency_ns / 1e6));
    nr_text_str(t, "}");
}

static void json_findings(struct nr_text *t, const struct nr_why_report *r)
{
    nr_text_str(t, ",\"findings\":[");
    for (unsigned i = 0; i < r->n_findings; i++) {
        const struct nr_why_finding *n = &r->findings[i];
        nr_text_fmt(t, "%s{\"cause\":\"%s\",\"share\":%.3f,\"text\":", i > 0 ? "," : "",
                    nr_why_cause_text(n->cause), n->share);
        nr_text_json(t, nr_str_from(n->text));
        nr_text_str(t, ",\"advice\":");
        nr_text_json(t, nr_str_from(n->advice));
        if (n->effect >= 0) {
            nr_text_str(t, ",\"effect\":");
            json_effect(t, &r->effects[n->effect]);
        }
        nr_text_str(t, "}");
    }
    nr_text_str(t, "],\"what_if\":[");
    for (unsigned i = 0; i < r->n_effects; i++) {
        nr_text_str(t, i > 0 ? "," : "");
        json_effect(t, &r->effects[i]);
    }
    nr_text_str(t, "]");
}

/* Settings that do not do what they say; "" when all do. */
static struct nr_str notes_of(const struct nr_call *c)
{
    struct nr_text t;
    char *storage = nr_arena_alloc(&c->x->arena, NOTES_BYTES);
    nr_text_init_at(&t, storage, NOTES_BYTES);
    nr_runtime_notes(c->runtime, &t);
    return (struct nr_str){storage, t.len};
}

static void write_json(struct why *w, struct nr_text *t)
{
    struct nr_call *c = w->call;
    const struct nr_why_facts *f = &w->facts;
    const struct nr_why_report *r = &w->report;
    nr_text_fmt(t, "{\"model\":\"%s\",\"version\":\"%lld\",\"window_s\":%.3f", c->version->name,
                (long long)c->version->number, (double)f->window_ns / 1e9);
    json_findings(t, r);
    json_traffic(t, f, r);
    json_batches(t, f, r);
    json_use(t, f, r);
    json_settings(t, &f->set, w->last.state.is_inline);
    struct nr_str notes = notes_of(c);
    if (notes.len > 0) {
        nr_text_str(t, ",\"note\":");
        nr_text_json(t, notes);
    }
    json_parallelism(t, &w->last.state.parallel, &w->first.state.parallel);
    number(t, "model_error", f->requests > 0 && r->cost_known ? r->model_error : NAN);
    nr_text_str(t, "}\n");
}

/* --- sentences --------------------------------------------------------------------------------- */

static void plain_effect(struct nr_text *t, const char *indent, const struct nr_why_effect *e)
{
    nr_text_fmt(t, "%s%s %s -> %s:", indent, e->setting, e->from, e->to);
    if (e->throughput > 0) {
        nr_text_fmt(t, " throughput x %.2f (%.1f requests/s)", e->throughput, e->requests_per_s);
    }
    if (e->latency > 0) {
        nr_text_fmt(t, "%s at the same rate, mean time x %.2f (%.2f ms)",
                    e->throughput > 0 ? ";" : "", e->latency, e->latency_ns / 1e6);
    }
    if (e->throughput <= 0 && e->latency <= 0) {
        nr_text_str(t, " not known");
    }
    nr_text_str(t, "\n");
}

static void plain_situation(struct nr_text *t, const char *name, const struct nr_parallel *p,
                            bool many)
{
    const struct nr_parallel_side *s = &p->sides[many][p->pressed];
    nr_text_fmt(t, "%s %s (", name, nr_way_text(s->now));
    bool first = true;
    for (unsigned i = 0; i < NR_WAYS; i++) {
        if (s->costs[i].n > 0) {
            nr_text_fmt(t, "%s%s %.2f", first ? "ms a row: " : ", ", nr_way_text((nr_way)i),
                        (double)s->costs[i].row_ns / 1e6);
            first = false;
        }
    }
    nr_text_str(t, first ? "not measured)" : ")");
}

static void plain_parallelism(struct nr_text *t, const struct nr_parallel *p)
{
    if (!p->cfg.on) {
        return;
    }
    nr_text_fmt(t, "cores     %s by other processes;", p->pressed ? "wanted" : "not wanted");
    plain_situation(t, " one request:", p, false);
    plain_situation(t, "; several:", p, true);
    nr_text_str(t, "\n");
}

static void write_plain(struct why *w, struct nr_text *t)
{
    const struct nr_why_facts *f = &w->facts;
    const struct nr_why_report *r = &w->report;
    double window_ns = (double)NR_MAX(f->window_ns, 1);
    nr_text_fmt(t, "%s version %lld, %.1f s\n", w->call->version->name,
                (long long)w->call->version->number, window_ns / 1e9);
    for (unsigned i = 0; i < r->n_findings; i++) {
        const struct nr_why_finding *n = &r->findings[i];
        nr_text_fmt(t, "\n%u. %s (%.0f %%): %s\n   try: %s\n", i + 1, nr_why_cause_text(n->cause),
                    100 * n->share, n->text, n->advice);
        if (n->effect >= 0) {
            plain_effect(t, "   ", &r->effects[n->effect]);
        }
    }
    nr_text_fmt(t,
                "\nrequests  %llu (%.1f/s), %.2f rows each, %.1f in flight; refused: %llu queue "
                "full, %llu too late\n",
                (unsigned long long)f->requests, r->rate_per_s, r->request_rows, r->in_flight,
                (unsigned long long)f->refused_full, (unsigned long long)f->refused_late);
    nr_text_fmt(t,
                "time      mean %.2f ms: %.2f before the queue, %.2f waiting (p50 %.2f, p99 %.2f), "
                "%.2f running\n",
                r->mean_ns / 1e6, r->before_ns / 1e6, r->wait_ns / 1e6,
                (double)f->wait_p50_ns / 1e6, (double)f->wait_p99_ns / 1e6, r->run_ns / 1e6);
    nr_text_fmt(t, "batches   %llu of", (unsigned long long)f->executions);
    for (unsigned i = 0; i < f->n_sizes; i++) {
        nr_text_fmt(t, "%s %llu (%llu times, %.2f ms)", i > 0 ? "," : "",
                    (unsigned long long)f->sizes[i].rows,
                    (unsigned long long)f->sizes[i].executions, size_ms(&f->sizes[i]));
    }
    nr_text_str(t, " rows; sealed:");
    for (unsigned i = 0; i < NR_SEAL_COUNT; i++) {
        if (f->seals[i] > 0) {
            nr_text_fmt(t, " %s %llu", nr_seal_text((nr_seal)i), (unsigned long long)f->seals[i]);
        }
    }
    if (r->cost_split) {
        nr_text_fmt(t, "\ncost      %.3f ms a batch + %.3f ms a row", r->fixed_ns / 1e6,
                    r->row_ns / 1e6);
    }
    nr_text_fmt(t,
                "\nin use    instances %.0f %%, I/O threads %.0f %%; of %u cores this server %.2f, "
                "others %.2f\n",
                100 * r->instance_use, 100 * r->loop_use, f->cores, (double)f->own_ns / window_ns,
                (double)f->others_ns / window_ns);
    struct nr_str notes = notes_of(w->call);
    if (notes.len > 0) {
        nr_text_fmt(t, "note      " NR_STR_FMT "\n", NR_STR_ARG(notes));
    }
    plain_parallelism(t, &w->last.state.parallel);
    nr_text_str(t, r->n_effects > 0 ? "what if\n" : "");
    for (unsigned i = 0; i < r->n_effects; i++) {
        plain_effect(t, "  ", &r->effects[i]);
    }
}

/* --- the call ---------------------------------------------------------------------------------- */

static void respond(struct nr_call *c)
{
    struct why *w = c->data;
    if (!w->plain || w->text.failed) {
        nr_call_json(c, 200, &w->text);
        return;
    }
    struct nr_str body = {w->text.data, w->text.len};
    nr_arena_defer(&c->x->arena, nr_free, nr_text_take(&w->text));
    nr_call_bytes(c, 200, NR_STR("text/plain; charset=utf-8"), body);
}

/* Pool. */
static void finish(struct nr_call *c)
{
    struct why *w = c->data;
    read_all(c, &w->last);
    read_settings(c, &w->last, &w->facts);
    subtract_times(w, &w->facts);
    subtract_counts(w, &w->facts);
    subtract_sizes(&c->x->arena, &w->first, &w->last, &w->facts);
    nr_why_explain(&w->facts, &w->report);
    nr_text_init(&w->text, TEXT_MAX);
    if (w->plain) {
        write_plain(w, &w->text);
    } else {
        write_json(w, &w->text);
    }
}

static void on_timer(struct nr_timer *timer)
{
    struct why *w = nr_container_of(timer, struct why, timer);
    struct nr_call *c = w->call;
    int64_t now_ns = nr_clock_now();
    bool draining = atomic_load_explicit(&c->api->draining, memory_order_relaxed);
    if (c->cancelled) {
        nr_call_fail(c, NARU_CANCELLED, NR_STR("the client has gone"), 0);
    } else if (now_ns >= w->end_ns || draining) { /* a shorter window is better than none */
        nr_call_offload(c, finish, respond);
    } else {
        nr_loop_timer_set(c->x->loop, timer, NR_MIN(now_ns + LOOK_NS, w->end_ns));
    }
}

/* Pool. */
static void begin(struct nr_call *c)
{
    struct why *w = c->data;
    read_all(c, &w->first);
}

static void wait_for_end(struct nr_call *c)
{
    struct why *w = c->data;
    w->end_ns = nr_clock_now() + w->window_ns;
    on_timer(&w->timer);
}

/* seconds=S of the query; other words are left alone. */
static nr_status read_query(struct nr_call *c, int64_t *ret_ns, struct nr_err *err)
{
    struct nr_str rest = c->x->query;
    *ret_ns = NR_S_NS;
    while (rest.ptr != NULL) {
        double s;
        struct nr_str value, word = nr_str_cut(rest, '&', &rest);
        if (!nr_str_is(nr_str_cut(word, '=', &value), "seconds")) {
            continue;
        }
        if (value.ptr == NULL || !nr_str_to_double(value, &s) || s < MIN_S || s > MAX_S) {
            return nr_fail(err, NARU_INVALID,
                           "seconds='" NR_STR_FMT "' is no number from 0.1 to 60",
                           NR_STR_ARG(value));
        }
        *ret_ns = (int64_t)(s * 1e9);
    }
    return NARU_OK;
}

/* An ensemble forms no batches: its members do. */
static nr_status refuse_ensemble(const struct nr_call *c, struct nr_err *err)
{
    const struct nr_ensemble *e = c->version->config->ensemble;
    struct nr_text t;
    char storage[300];
    nr_text_init_at(&t, storage, sizeof(storage));
    for (uint32_t i = 0; e != NULL && i < e->n_steps && t.len < 150; i++) {
        if (e->steps[i].kind == NULL) {
            nr_text_fmt(&t, "%s%.100s", t.len > 0 ? ", " : "", e->steps[i].model);
        }
    }
    return e == NULL ? NARU_OK
                     : nr_fail(err, NARU_PRECONDITION,
                               "\"%s\" is an ensemble and forms no batches; ask the models of its "
                               "steps: %s",
                               c->version->name, t.len > 0 ? storage : "(none, only naru's own)");
}

static void handle_why(struct nr_call *c)
{
    struct nr_str accept = c->x->known.accept;
    struct why *w = nr_arena_new(&c->x->arena, struct why);
    struct nr_err err = {0};
    w->call = c;
    w->timer.on_timer = on_timer;
    w->plain = accept.len > 0 && nr_call_accepts(accept, "text/plain") &&
               !nr_call_accepts(accept, "application/json");
    c->data = w;
    if (read_query(c, &w->window_ns, &err) != NARU_OK ||
        nr_call_lookup(c, c->model_name, c->version_text, &err) != NARU_OK ||
        refuse_ensemble(c, &err) != NARU_OK) {
        nr_call_fail_err(c, &err);
        return;
    }
    nr_call_offload(c, begin, wait_for_end);
}

#define GET (1u << NR_GET)

const struct nr_route nr_routes_why[] = {
    {"/v2/models/{model}/why", GET, NR_SCOPE_METADATA, false, false, handle_why, "why"},
    {"/v2/models/{model}/versions/{version}/why", GET, NR_SCOPE_METADATA, false, false, handle_why,
     "why"},
    {0},
};
