/* GET /metrics: Prometheus text, Triton's names first, then what Triton lacks.
 *
 * DESIGN. Nothing is kept for this page: it reads the per-loop counters of each ready version, sums
 * them and writes text, so a scrape costs a few microseconds per model and serving costs nothing
 * more. All families of one name stand together, as the format demands, hence the table of families
 * walked outside and the models inside.
 *
 * Names: Triton's metrics (triton.md section 4); naru_* for our own. Units: Triton's _us counters
 * are microseconds; ours are seconds, as Prometheus advises.
 */
#include <string.h>
#include <sys/resource.h>

#include "api/call.h"
#include "api/state.h"
#include "api/v2.h"
#include "base/buf.h"
#include "base/clock.h"
#include "base/footprint.h"
#include "base/mem.h"
#include "sched/counters.h"

#define METRICS_MAX (64u << 20)

struct row { /* one version that is ready, or would be if it were not stuck */
    const struct nr_version *version;
    struct nr_str labels; /* model="…",version="…" */
    struct nr_counts counts;
    struct nr_sched_state state;
    bool has_sequences;
    struct nr_sequencer_state sequences;
};

/* Counters that are one number of struct nr_counts. */
struct family {
    const char *name, *help;
    size_t offset;
    uint64_t divide;
};
#define AT(field) offsetof(struct nr_counts, field)
static const struct family families[] = {
    {"nv_inference_request_success", "Number of successful inference requests, all batch sizes",
     AT(success), 1},
    {"nv_inference_count", "Number of inferences performed (does not include cached requests)",
     AT(rows), 1},
    {"nv_inference_exec_count",
     "Number of model executions performed (does not include cached requests)", AT(executions), 1},
    {"nv_inference_request_duration_us",
     "Cumulative inference request duration in microseconds (includes cached requests)",
     AT(success_ns), 1000},
    {"nv_inference_queue_duration_us",
     "Cumulative inference queuing duration in microseconds (includes cached requests)",
     AT(queue_ns), 1000},
    {"nv_inference_compute_input_duration_us",
     "Cumulative compute input duration in microseconds (does not include cached requests)",
     AT(input_ns), 1000},
    {"nv_inference_compute_infer_duration_us",
     "Cumulative compute inference duration in microseconds (does not include cached requests)",
     AT(infer_ns), 1000},
    {"nv_inference_compute_output_duration_us",
     "Cumulative inference compute output duration in microseconds (does not include cached "
     "requests)",
     AT(output_ns), 1000},
    {"nv_cache_num_hits_per_model", "Number of cache hits per model", AT(cache_hits), 1},
    {"nv_cache_num_misses_per_model", "Number of cache misses per model", AT(cache_misses), 1},
    {"nv_cache_hit_duration_per_model", "Total cache hit duration per model, in microseconds",
     AT(cache_hit_ns), 1000},
    {"nv_cache_miss_duration_per_model",
     "Total cache miss (insert+lookup) duration per model, in microseconds", AT(cache_miss_ns),
     1000},
    {"naru_inline_executions_total", "Executions that ran on the I/O thread which read the request",
     AT(inline_executions), 1},
};

static void head(struct nr_text *t, const char *name, const char *type, const char *help)
{
    nr_text_fmt(t, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

static void write_number(struct nr_text *t, const char *name, const char *type, const char *help,
                         uint64_t value)
{
    head(t, name, type, help);
    nr_text_fmt(t, "%s %llu\n", name, (unsigned long long)value);
}

struct figure {
    const char *name, *type, *help;
    uint64_t value;
};

static void write_figures(struct nr_text *t, const struct figure *all, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        write_number(t, all[i].name, all[i].type, all[i].help, all[i].value);
    }
}

static void write_counters(struct nr_text *t, const struct row *rows, unsigned n)
{
    for (unsigned f = 0; f < NR_COUNT(families); f++) {
        head(t, families[f].name, "counter", families[f].help);
        for (unsigned i = 0; i < n; i++) {
            uint64_t value;
            memcpy(&value, (const char *)&rows[i].counts + families[f].offset, sizeof(value));
            nr_text_fmt(t, "%s{" NR_STR_FMT "} %llu\n", families[f].name,
                        NR_STR_ARG(rows[i].labels),
                        (unsigned long long)(value / families[f].divide));
        }
    }
}

static void write_failures(struct nr_text *t, const struct row *rows, unsigned n)
{
    head(t, "nv_inference_request_failure", "counter",
         "Number of failed inference requests, all batch sizes");
    for (unsigned i = 0; i < n; i++) {
        for (unsigned k = 0; k < NR_FAIL_COUNT; k++) {
            nr_text_fmt(t, "nv_inference_request_failure{" NR_STR_FMT ",reason=\"%s\"} %llu\n",
                        NR_STR_ARG(rows[i].labels), nr_fail_reason_text((nr_fail_reason)k),
                        (unsigned long long)rows[i].counts.failed[k]);
        }
    }
}

static void write_gauges(struct nr_text *t, const struct row *rows, unsigned n)
{
    head(t, "nv_inference_pending_request_count", "gauge",
         "Instantaneous number of pending requests awaiting execution per-model.");
    for (unsigned i = 0; i < n; i++) {
        nr_text_fmt(t, "nv_inference_pending_request_count{" NR_STR_FMT "} %u\n",
                    NR_STR_ARG(rows[i].labels), rows[i].state.queued);
    }
    head(t, "nv_model_load_duration_secs", "gauge", "Model load time in seconds");
    for (unsigned i = 0; i < n; i++) {
        nr_text_fmt(t, "nv_model_load_duration_secs{" NR_STR_FMT "} %.6f\n",
                    NR_STR_ARG(rows[i].labels), (double)rows[i].version->load_ns / 1e9);
    }
    head(t, "naru_model_inline", "gauge", "1 when executions run on the I/O thread now");
    for (unsigned i = 0; i < n; i++) {
        nr_text_fmt(t, "naru_model_inline{" NR_STR_FMT "} %d\n", NR_STR_ARG(rows[i].labels),
                    rows[i].state.is_inline);
    }
    head(t, "naru_placement_changes_total", "counter",
         "Moves of a model to the I/O thread and back to the executors");
    for (unsigned i = 0; i < n; i++) {
        nr_text_fmt(t,
                    "naru_placement_changes_total{" NR_STR_FMT
                    ",to=\"inline\"} %llu\nnaru_placement_changes_total{" NR_STR_FMT
                    ",to=\"pool\"} %llu\n",
                    NR_STR_ARG(rows[i].labels), (unsigned long long)rows[i].state.n_promoted,
                    NR_STR_ARG(rows[i].labels), (unsigned long long)rows[i].state.n_demoted);
    }
    head(t, "naru_executions_by_way_total", "counter",
         "Executions on executors by how they used the cores; docs/why.md");
    for (unsigned i = 0; i < n; i++) {
        const struct nr_parallel *p = &rows[i].state.parallel;
        for (unsigned k = 0; k < NR_WAYS && p->cfg.on; k++) {
            nr_text_fmt(t, "naru_executions_by_way_total{" NR_STR_FMT ",way=\"%s\"} %llu\n",
                        NR_STR_ARG(rows[i].labels), nr_way_text((nr_way)k),
                        (unsigned long long)p->runs[k]);
        }
    }
    head(t, "naru_input_bytes_total", "counter",
         "Bytes of inputs that were copied into a batch, or used where they arrived");
    for (unsigned i = 0; i < n; i++) {
        nr_text_fmt(t,
                    "naru_input_bytes_total{" NR_STR_FMT
                    ",how=\"copied\"} %llu\nnaru_input_bytes_total{" NR_STR_FMT
                    ",how=\"in_place\"} %llu\n",
                    NR_STR_ARG(rows[i].labels), (unsigned long long)rows[i].state.bytes_copied,
                    NR_STR_ARG(rows[i].labels), (unsigned long long)rows[i].state.bytes_in_place);
    }
    head(t, "naru_batch_strategy_refused_total", "counter",
         "Answers of a model's batching strategy that broke a promise of the server's");
    for (unsigned i = 0; i < n; i++) {
        if (rows[i].state.has_strategy) {
            nr_text_fmt(t, "naru_batch_strategy_refused_total{" NR_STR_FMT "} %llu\n",
                        NR_STR_ARG(rows[i].labels),
                        (unsigned long long)rows[i].state.strategy_refused);
        }
    }
    head(t, "naru_batches_sealed_total", "counter",
         "Batches by the reason that ended their forming");
    for (unsigned i = 0; i < n; i++) {
        for (unsigned k = 0; k < NR_SEAL_COUNT; k++) {
            nr_text_fmt(t, "naru_batches_sealed_total{" NR_STR_FMT ",why=\"%s\"} %llu\n",
                        NR_STR_ARG(rows[i].labels), nr_seal_text((nr_seal)k),
                        (unsigned long long)rows[i].state.seals[k]);
        }
    }
    head(t, "naru_model_stuck", "gauge", "Instances with a run that does not return");
    for (unsigned i = 0; i < n; i++) {
        nr_text_fmt(t, "naru_model_stuck{" NR_STR_FMT "} %u\n", NR_STR_ARG(rows[i].labels),
                    rows[i].state.stuck);
    }
    head(t, "naru_batch_retries_total", "counter",
         "Batches that failed as a whole and whose requests ran again, one by one");
    for (unsigned i = 0; i < n; i++) {
        nr_text_fmt(t, "naru_batch_retries_total{" NR_STR_FMT "} %llu\n",
                    NR_STR_ARG(rows[i].labels), (unsigned long long)rows[i].state.batch_retries);
    }
}

/* Of models that serve sequences. */
static void write_sequences(struct nr_text *t, const struct row *rows, unsigned n)
{
#define IN_STATE(field) \
    offsetof(struct nr_sequencer_state, field), sizeof(((struct nr_sequencer_state *)0)->field)
    static const struct {
        const char *name, *type, *help;
        size_t offset, bytes;
    } all[] = {
        {"naru_sequence_active", "gauge", "Sequences that have a slot", IN_STATE(active)},
        {"naru_sequence_slots", "gauge", "Slots for sequences", IN_STATE(slots)},
        {"naru_sequence_backlog", "gauge", "Sequences that wait for a slot", IN_STATE(backlog)},
        {"naru_sequence_waiting_requests", "gauge",
         "Requests that wait for an earlier one of their sequence, or for a slot",
         IN_STATE(waiting)},
        {"naru_sequence_started_total", "counter", "Requests that began a sequence",
         IN_STATE(started)},
        {"naru_sequence_ended_total", "counter", "Sequences ended by their last request",
         IN_STATE(ended)},
        {"naru_sequence_expired_total", "counter",
         "Sequences that were idle for too long and lost their slot", IN_STATE(expired)},
        {"naru_sequence_forwarded_total", "counter",
         "Requests that another version passed on to this one, where their sequence lives",
         IN_STATE(forwarded)},
    };
#undef IN_STATE
    for (unsigned k = 0; k < NR_COUNT(all); k++) {
        bool begun = false;
        for (unsigned i = 0; i < n; i++) {
            if (!rows[i].has_sequences) {
                continue;
            }
            uint64_t value = 0; /* little-endian: the low bytes are in front */
            memcpy(&value, (const char *)&rows[i].sequences + all[k].offset, all[k].bytes);
            if (!begun) {
                head(t, all[k].name, all[k].type, all[k].help);
                begun = true;
            }
            nr_text_fmt(t, "%s{" NR_STR_FMT "} %llu\n", all[k].name, NR_STR_ARG(rows[i].labels),
                        (unsigned long long)value);
        }
    }
}

/* Queues: who waits, what the limit of time is worth now, who was turned away and why. */
static void write_queues(struct nr_text *t, const struct row *rows, unsigned n)
{
    head(t, "naru_queue_requests", "gauge", "Requests that wait, by level of priority");
    for (unsigned i = 0; i < n; i++) {
        for (unsigned k = 0; k < rows[i].state.n_levels; k++) {
            nr_text_fmt(t, "naru_queue_requests{" NR_STR_FMT ",level=\"%u\"} %u\n",
                        NR_STR_ARG(rows[i].labels), k + 1, rows[i].state.levels[k]);
        }
    }
    head(t, "naru_queue_bytes", "gauge", "Bytes of inputs that wait");
    for (unsigned i = 0; i < n; i++) {
        nr_text_fmt(t, "naru_queue_bytes{" NR_STR_FMT "} %llu\n", NR_STR_ARG(rows[i].labels),
                    (unsigned long long)rows[i].state.queued_bytes);
    }
    head(t, "naru_queue_rows", "gauge", "Rows that wait");
    for (unsigned i = 0; i < n; i++) {
        nr_text_fmt(t, "naru_queue_rows{" NR_STR_FMT "} %lld\n", NR_STR_ARG(rows[i].labels),
                    (long long)rows[i].state.queued_rows);
    }
    head(t, "naru_queue_rows_limit", "gauge",
         "Rows that may wait at the pace measured now (--queue-max-wait); +Inf before the first "
         "execution");
    for (unsigned i = 0; i < n; i++) {
        int64_t limit = rows[i].state.row_limit;
        nr_text_fmt(t, "naru_queue_rows_limit{" NR_STR_FMT "} ", NR_STR_ARG(rows[i].labels));
        if (limit == INT64_MAX) {
            nr_text_str(t, "+Inf\n");
        } else {
            nr_text_fmt(t, "%lld\n", (long long)limit);
        }
    }
    head(t, "naru_queue_refused_total", "counter",
         "Requests that left the queue, or never entered it, without having run");
    for (unsigned i = 0; i < n; i++) {
        for (unsigned k = NR_REFUSAL_NONE + 1; k < NR_REFUSAL_KINDS; k++) {
            nr_text_fmt(t, "naru_queue_refused_total{" NR_STR_FMT ",why=\"%s\"} %llu\n",
                        NR_STR_ARG(rows[i].labels), nr_refusal_text((nr_refusal)k),
                        (unsigned long long)rows[i].state.refused[k]);
        }
    }
}

/* One histogram of each stage. Buckets without a new count are left out but for +Inf: cumulative
 * counts stay right, and a quiet model costs two lines. */
static void write_stage(struct nr_text *t, const struct row *r, nr_stage stage)
{
    const struct nr_hist_coarse *h = &r->counts.stage[stage];
    uint64_t sum = 0;
    for (unsigned b = 0; b < NR_HIST_COARSE_BUCKETS; b++) {
        uint64_t count = atomic_load_explicit(&h->count[b], memory_order_relaxed);
        sum += count;
        bool last = b + 1 == NR_HIST_COARSE_BUCKETS;
        if (count == 0 || last) {
            continue;
        }
        nr_text_fmt(
            t, "naru_stage_duration_seconds_bucket{" NR_STR_FMT ",stage=\"%s\",le=\"%.9g\"} %llu\n",
            NR_STR_ARG(r->labels), nr_stage_text(stage), (double)nr_hist_coarse_bound(b) / 1e9,
            (unsigned long long)sum);
    }
    nr_text_fmt(t,
                "naru_stage_duration_seconds_bucket{" NR_STR_FMT ",stage=\"%s\",le=\"+Inf\"} %llu\n"
                "naru_stage_duration_seconds_sum{" NR_STR_FMT ",stage=\"%s\"} %.9f\n"
                "naru_stage_duration_seconds_count{" NR_STR_FMT ",stage=\"%s\"} %llu\n",
                NR_STR_ARG(r->labels), nr_stage_text(stage), (unsigned long long)sum,
                NR_STR_ARG(r->labels), nr_stage_text(stage),
                (double)atomic_load_explicit(&h->sum_ns, memory_order_relaxed) / 1e9,
                NR_STR_ARG(r->labels), nr_stage_text(stage), (unsigned long long)sum);
}

static void write_process(struct nr_text *t, struct nr_api *a)
{
    struct rusage u;
    struct nr_footprint memory;
    nr_footprint_get(&memory);
    getrusage(RUSAGE_SELF, &u);
    head(t, "process_cpu_seconds_total", "counter", "Processor time used");
    nr_text_fmt(t, "process_cpu_seconds_total %.6f\n",
                (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
                    (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6);
    head(t, "process_resident_memory_bytes", "gauge", "Resident memory");
    nr_text_fmt(t, "process_resident_memory_bytes %llu\n",
                (unsigned long long)memory.resident_bytes);
    head(t, "process_start_time_seconds", "gauge", "Start, seconds since 1970");
    nr_text_fmt(t, "process_start_time_seconds %.3f\n", (double)a->start_wall_ns / 1e9);
    head(t, "naru_buffer_bytes", "gauge", "Bytes of live tensor and body buffers");
    nr_text_fmt(t, "naru_buffer_bytes %llu\n", (unsigned long long)nr_buf_live_bytes());
    head(t, "naru_buffer_budget_bytes", "gauge", "What they may use (--memory-budget)");
    nr_text_fmt(t, "naru_buffer_budget_bytes %llu\n", (unsigned long long)nr_buf_budget());
}

static void write_http(struct nr_text *t, struct nr_api *a)
{
    struct nr_http_stats s;
    if (a->server == NULL) {
        return;
    }
    nr_server_stats(a->server, &s);
    const struct figure rows[] = {
        {"naru_http_connections", "gauge", "Open connections", s.open},
        {"naru_http_connections_accepted_total", "counter", "Connections accepted", s.accepted},
        {"naru_http_connections_refused_total", "counter", "Connections refused over a limit",
         s.refused},
        {"naru_http_requests_total", "counter", "Requests whose head was read", s.requests},
        {"naru_http_received_bytes_total", "counter", "Bytes read from clients", s.bytes_in},
        {"naru_http_sent_bytes_total", "counter", "Bytes written to clients", s.bytes_out},
        {"naru_http_parse_errors_total", "counter", "Requests that were no valid HTTP",
         s.parse_errors},
        {"naru_http_timeouts_total", "counter", "Connections closed for slowness", s.timeouts},
        {"naru_http_abuse_closed_total", "counter", "Connections closed for abuse of the protocol",
         s.abuse_closed},
    };
    write_figures(t, rows, NR_COUNT(rows));
    write_number(t, "naru_requests_abandoned", "gauge",
                 "Requests that were answered at their deadline, or whose client went, and which a "
                 "plug-in still runs",
                 nr_api_abandoned(a));
    write_number(t, "naru_requests_abandoned_total", "counter", "Such requests since the start",
                 atomic_load_explicit(&a->abandoned, memory_order_relaxed));
}

static void write_troubles(struct nr_text *t, struct nr_api *a)
{
    static const char *const names[NR_TROUBLES] = {"draining", "repository", "gallery"};
    struct nr_troubles troubles;
    nr_api_troubles(a, &troubles);
    head(t, "naru_trouble", "gauge", "1 while this is so; /v2/health/models says why");
    for (unsigned i = 0; i < NR_TROUBLES; i++) {
        nr_text_fmt(t, "naru_trouble{what=\"%s\"} %d\n", names[i], troubles.text[i][0] != '\0');
    }
}

static void write_shared_cache(struct nr_text *t, struct nr_redis *redis)
{
    struct nr_redis_stats s;
    nr_redis_stats_get(redis, &s);
    const struct figure rows[] = {
        {"naru_shared_cache_up", "gauge", "1 while the Redis server answers", s.up},
        {"naru_shared_cache_hits_total", "counter", "Answers found there", s.hits},
        {"naru_shared_cache_misses_total", "counter", "Answers looked up and not found", s.misses},
        {"naru_shared_cache_stored_total", "counter", "Answers stored there", s.stored},
        {"naru_shared_cache_errors_total", "counter",
         "Commands that failed or took too long; nothing is asked for a while then", s.errors},
        {"naru_shared_cache_dropped_total", "counter",
         "Lookups and stores left out because too many waited", s.dropped},
    };
    write_figures(t, rows, NR_COUNT(rows));
}

static void write_cache(struct nr_text *t, struct nr_api *a)
{
    struct nr_cache_stats s;
    nr_cache_stats_get(a->cfg.runtime->cache, &s);
    const struct figure rows[] = {
        {"naru_cache_bytes", "gauge", "Bytes that the response cache holds", s.bytes},
        {"naru_cache_max_bytes", "gauge", "Bytes that it may hold", s.max_bytes},
        {"naru_cache_entries", "gauge", "Answers that it holds", s.entries},
        {"naru_cache_evicted_total", "counter", "Answers that made room for others", s.evicted},
        {"naru_cache_turned_away_total", "counter",
         "Answers not taken in: too large, or asked for too rarely", s.turned_away},
    };
    write_figures(t, rows, NR_COUNT(rows));
    if (a->cfg.runtime->redis != NULL) {
        write_shared_cache(t, a->cfg.runtime->redis);
    }
}

/* Of the snapshot, so that no model's state is touched. */
static void write_labels(struct nr_text *t, const struct nr_catalog *catalog)
{
    static const struct {
        nr_label_event event;
        const char *name, *help;
    } rows[] = {
        {NR_LABEL_REQUESTS, "naru_label_requests_total",
         "Requests that were addressed to a label, or got by its weight"},
        {NR_LABEL_SHADOWS, "naru_label_shadows_total", "Copies of requests sent to a label"},
        {NR_LABEL_SHADOW_FAILED, "naru_label_shadow_failures_total",
         "Copies that were not answered well"},
        {NR_LABEL_SHADOW_SKIPPED, "naru_label_shadow_skipped_total", "Copies that were not sent"}};
    for (unsigned r = 0; r < NR_COUNT(rows); r++) {
        head(t, rows[r].name, "counter", rows[r].help);
        for (uint32_t i = 0; i < catalog->n_models; i++) {
            const struct nr_catalog_model *m = &catalog->models[i];
            for (uint32_t k = 0; k < m->n_labels; k++) {
                uint64_t n = nr_label_count(m->labels[k].label, rows[r].event);
                nr_text_fmt(t, "%s{model=\"%s\",label=\"%s\"} %llu\n", rows[r].name, m->name,
                            m->labels[k].label->name, (unsigned long long)n);
            }
        }
    }
}

enum limit_figure {
    LIMIT_IN_USE,
    LIMIT_UNITS,
    LIMIT_WAITING
};
struct limit_family {
    struct nr_text *t;
    const char *name;
    enum limit_figure figure;
};

static void write_limit(void *arg, const struct nr_limit_state *s)
{
    const struct limit_family *f = arg;
    nr_text_fmt(f->t, "%s{resource=", f->name);
    nr_text_json(f->t, nr_str_from(s->name)); /* a name has nothing that would be escaped */
    if (s->device == NR_LIMIT_GLOBAL) {
        nr_text_str(f->t, ",device=\"global\"} ");
    } else {
        nr_text_fmt(f->t, ",device=\"%d\"} ", s->device);
    }
    nr_text_fmt(f->t, "%llu\n",
                (unsigned long long)(f->figure == LIMIT_IN_USE  ? s->in_use
                                     : f->figure == LIMIT_UNITS ? s->units
                                                                : s->waiting));
}

/* Only with --rate-limit=execution_count. */
static void write_limits(struct nr_text *t, struct nr_api *a)
{
    static const struct {
        const char *name, *help;
        enum limit_figure figure;
    } rows[] = {
        {"naru_rate_limit_in_use", "Units of a resource that running instances hold", LIMIT_IN_USE},
        {"naru_rate_limit_units", "Units of it that there are", LIMIT_UNITS},
        {"naru_rate_limit_waiting_instances", "Instances that have work and wait for it",
         LIMIT_WAITING},
    };
    for (unsigned i = 0; i < NR_COUNT(rows) && a->cfg.runtime->limiter != NULL; i++) {
        struct limit_family f = {t, rows[i].name, rows[i].figure};
        head(t, rows[i].name, "gauge", rows[i].help);
        nr_limiter_read(a->cfg.runtime->limiter, write_limit, &f);
    }
}

/* Only where there is a budget. */
static void write_residency(struct nr_text *t, struct nr_api *a)
{
    struct nr_residency s;
    if (!a->cfg.on_demand) {
        return;
    }
    nr_repository_residency(a->cfg.repository, &s);
    const struct figure rows[] = {
        {"naru_model_memory_budget_bytes", "gauge", "Memory that loaded models may use",
         s.budget_bytes},
        {"naru_model_memory_used_bytes", "gauge", "Memory of models that are open", s.used_bytes},
        {"naru_model_demand_loads_total", "counter", "Loads because a request asked for the model",
         s.loads},
        {"naru_model_evictions_total", "counter", "Models closed to make room", s.evictions},
        {"naru_model_demand_waiting", "gauge", "Requests that wait for their model to be loaded",
         s.waiters},
    };
    write_figures(t, rows, NR_COUNT(rows));
}

static unsigned collect(struct nr_call *c, struct row **ret)
{
    struct nr_arena *a = &c->x->arena;
    const struct nr_catalog *catalog = nr_call_catalog(c);
    unsigned most = 0, n = 0;
    for (uint32_t i = 0; i < catalog->n_models; i++) {
        most += catalog->models[i].n_versions;
    }
    struct row *rows = nr_arena_zalloc(a, (most + 1) * sizeof(*rows));
    for (uint32_t i = 0; i < catalog->n_models; i++) {
        for (uint32_t k = 0; k < catalog->models[i].n_versions; k++) {
            const struct nr_catalog_version *seen = &catalog->models[i].versions[k];
            const struct nr_version *v = seen->version != NULL ? seen->version : seen->stuck;
            if (v == NULL) {
                continue;
            }
            /* model names are [A-Za-z0-9._-]: nothing to escape */
            rows[n].version = v;
            rows[n].labels =
                nr_arena_fmt(a, "model=\"%s\",version=\"%lld\"", v->name, (long long)v->number);
            nr_counters_read(nr_runtime_of(v)->counters, a, &rows[n].counts);
            nr_runtime_state_get(nr_runtime_of(v), &rows[n].state);
            rows[n].has_sequences = nr_runtime_sequences_get(nr_runtime_of(v), &rows[n].sequences);
            n++;
        }
    }
    *ret = rows;
    return n;
}

static void handle_metrics(struct nr_call *c)
{
    struct row *rows;
    struct nr_text t;
    unsigned n = collect(c, &rows);
    nr_text_init(&t, METRICS_MAX);
    write_counters(&t, rows, n);
    write_failures(&t, rows, n);
    write_gauges(&t, rows, n);
    write_sequences(&t, rows, n);
    write_queues(&t, rows, n);
    head(&t, "naru_stage_duration_seconds", "histogram", "Time of successful requests by stage");
    for (unsigned i = 0; i < n; i++) {
        for (unsigned s = 0; s < NR_STAGE_COUNT; s++) {
            write_stage(&t, &rows[i], (nr_stage)s);
        }
    }
    write_labels(&t, nr_call_catalog(c));
    write_residency(&t, c->api);
    write_limits(&t, c->api);
    write_http(&t, c->api);
    write_cache(&t, c->api);
    write_troubles(&t, c->api);
    write_process(&t, c->api);
    if (t.failed) {
        nr_text_done(&t);
        nr_call_fail(c, NARU_NOMEM, NR_STR("the metrics do not fit into memory"), 0);
        return;
    }
    struct nr_str body = {t.data, t.len};
    nr_arena_defer(&c->x->arena, nr_free, nr_text_take(&t));
    nr_call_bytes(c, 200, NR_STR("text/plain; charset=utf-8"), body);
}

const struct nr_route nr_routes_metrics[] = {
    {"/metrics", 1u << NR_GET, NR_SCOPE_METRICS, NR_ROUTE_HTTP, false, handle_metrics, "metrics"},
    {0},
};
