/* The page at / and what only it asks for.
 *
 * DESIGN. The files are in the binary (page_file.h) and answered from there, so the page is always
 * the one that fits the server. Every answer carries an ETag and "no-cache": a browser asks each
 * time and gets 304, and after an upgrade it has the new page at once.
 * The safety fields stand on everything that a browser might show as a document: no scripts but our
 * own files, no frames, no guessing of types, nothing for pages of other origins to embed.
 *
 * GET /naru/models tells the page in one request what Triton's routes would tell in three for each
 * model, and what they do not know: whether a model takes pictures, and what it answers.
 *
 * THREADS. Loop threads only.
 */
#include "api/page.h"

#include "api/page_file.h"
#include "api/state.h"
#include "base/clock.h"
#include "codec/image_plan.h"
#include "codec/meta.h"
#include "sched/counters.h"

#define MODELS_TEXT_MAX (16u << 20)

/* --- answers ---------------------------------------------------------------------------------- */

static const struct nr_header safety[] = {
    {NR_STR_INIT("content-security-policy"),
     NR_STR_INIT("default-src 'self'; img-src 'self' blob:; object-src 'none'; base-uri 'none'; "
                 "form-action 'none'; frame-ancestors 'none'")},
    {NR_STR_INIT("x-content-type-options"), NR_STR_INIT("nosniff")},
    {NR_STR_INIT("referrer-policy"), NR_STR_INIT("no-referrer")},
    {NR_STR_INIT("cross-origin-resource-policy"), NR_STR_INIT("same-origin")},
    {NR_STR_INIT("cross-origin-opener-policy"), NR_STR_INIT("same-origin")},
    {NR_STR_INIT("cache-control"), NR_STR_INIT("private, no-cache")},
};

/* RFC 9110 section 13.1.2: a list of tags, weakly compared, or "*". */
static bool none_match(const struct nr_exchange *x, struct nr_str etag)
{
    for (unsigned i = 0; i < x->n_headers; i++) {
        struct nr_str rest = x->headers[i].value;
        if (!nr_str_is(x->headers[i].name, "if-none-match")) {
            continue;
        }
        while (rest.ptr != NULL) {
            struct nr_str one = nr_str_trim(nr_str_cut(rest, ',', &rest));
            if (nr_str_starts(one, NR_STR("W/"))) {
                one = (struct nr_str){one.ptr + 2, one.len - 2};
            }
            if (nr_str_eq(one, etag) || nr_str_is(one, "*")) {
                return true;
            }
        }
    }
    return false;
}

void nr_page_respond(struct nr_call *c, struct nr_str type, struct nr_str etag, struct nr_str body)
{
    struct nr_header headers[NR_COUNT(safety) + 1];
    memcpy(headers, safety, sizeof(safety));
    headers[NR_COUNT(safety)] = (struct nr_header){NR_STR("etag"), etag};
    struct nr_iov part = {body.ptr, body.len};
    struct nr_response r = {.status = 200,
                            .content_type = type,
                            .headers = headers,
                            .n_headers = NR_COUNT(headers),
                            .body = &part,
                            .n_body = 1};
    if (none_match(c->x, etag)) {
        r.status = 304;
        r.content_type = (struct nr_str){0};
        r.n_body = 0;
    }
    nr_exchange_respond(c->x, &r);
}

/* --- files ------------------------------------------------------------------------------------ */

static void answer_file(struct nr_call *c, struct nr_str name)
{
    for (unsigned i = 0; i < nr_page_n_files; i++) {
        const struct nr_page_file *f = &nr_page_files[i];
        if (nr_str_eq(name, f->name)) {
            nr_page_respond(c, f->type, f->etag, (struct nr_str){(const char *)f->data, f->bytes});
            return;
        }
    }
    nr_call_fail(
        c, NARU_NOT_FOUND,
        nr_arena_fmt(&c->x->arena, "the page has no file '" NR_STR_FMT "'", NR_STR_ARG(name)), 0);
}

static void handle_index(struct nr_call *c)
{
    answer_file(c, NR_STR("index.html"));
}

static void handle_static(struct nr_call *c)
{
    answer_file(c, c->extra);
}

/* --- models ----------------------------------------------------------------------------------- */

static void write_picture(struct nr_text *t, const struct nr_version *v)
{
    const struct nr_image_plan *plan;
    struct nr_err err = {0};
    if (nr_predict_plan(v, &plan, &err) != NARU_OK) {
        nr_text_str(t, ",\"takes_picture\":false,\"why\":");
        nr_text_json(t, nr_str_from(err.text));
        return;
    }
    struct nr_text line;
    nr_text_init(&line, 4096);
    nr_image_plan_describe(plan, &line);
    nr_text_fmt(t, ",\"takes_picture\":true,\"answer\":\"%s\",\"picture\":",
                nr_image_output_name(plan->output));
    nr_text_json(t, (struct nr_str){line.data, line.len});
    nr_text_done(&line);
}

static void write_model(struct nr_call *c, struct nr_text *t, const struct nr_version *v)
{
    const struct nr_runtime *rt = nr_runtime_of(v);
    struct nr_sched_state s;
    struct nr_counts n;
    nr_runtime_state_get(rt, &s);
    nr_counters_read(rt->counters, &c->x->arena, &n);
    nr_text_str(t, "{\"name\":");
    nr_text_json(t, nr_str_from(v->name));
    nr_text_fmt(t, ",\"version\":\"%lld\",\"ready\":true", (long long)v->number);
    write_picture(t, v);
    nr_text_fmt(t, ",\"backend\":");
    nr_text_json(t, nr_str_from(v->config->ensemble != NULL ? "ensemble" : v->config->backend));
    nr_text_fmt(t,
                ",\"max_batch_size\":%lld,\"instances\":%u,\"placement\":\"%s\",\"queued\":%u,"
                "\"running\":%u,\"requests\":%llu,\"failed\":%llu,\"inferences\":%llu,"
                "\"executions\":%llu,\"mean_us\":%llu,\"memory_bytes\":%llu,\"load_ms\":%.1f}",
                (long long)rt->signature->max_batch_size, s.places, s.is_inline ? "inline" : "pool",
                s.queued, s.running, (unsigned long long)n.success, (unsigned long long)n.fail,
                (unsigned long long)n.rows, (unsigned long long)n.executions,
                (unsigned long long)(n.success > 0 ? n.success_ns / n.success / NR_US_NS : 0),
                (unsigned long long)v->memory_bytes, (double)v->load_ns / 1e6);
}

static void handle_models(struct nr_call *c)
{
    const struct nr_catalog *catalog = nr_call_catalog(c);
    struct nr_text t;
    nr_text_init(&t, MODELS_TEXT_MAX);
    nr_text_str(&t, "{\"server\":");
    nr_text_json(&t, nr_str_from(c->api->cfg.server_name));
    nr_text_str(&t, ",\"version\":");
    nr_text_json(&t, nr_str_from(c->api->cfg.server_version));
    nr_text_fmt(&t, ",\"max_body_bytes\":%llu,\"models\":[",
                (unsigned long long)c->api->cfg.max_body_bytes);
    for (uint32_t i = 0; i < catalog->n_models; i++) {
        const struct nr_catalog_model *m = &catalog->models[i];
        nr_text_str(&t, i > 0 ? "," : "");
        if (m->best != NULL) {
            write_model(c, &t, m->best);
            continue;
        }
        nr_text_str(&t, "{\"name\":");
        nr_text_json(&t, nr_str_from(m->name));
        nr_text_str(&t, ",\"ready\":false,\"why\":");
        nr_text_json(&t, nr_str_from(m->reason));
        nr_text_str(&t, "}");
    }
    nr_text_str(&t, "]}\n");
    nr_call_json(c, 200, &t);
}

#define GET (1u << NR_GET)

const struct nr_route nr_routes_page[] = {
    {"/", GET, NR_SCOPE_PAGE, NR_ROUTE_HTTP, false, handle_index, "page"},
    {"/static/{file}", GET, NR_SCOPE_PAGE, NR_ROUTE_HTTP, false, handle_static, "page"},
    {"/naru/models", GET, NR_SCOPE_METADATA, NR_ROUTE_HTTP, false, handle_models, "page_models"},
    {0},
};
