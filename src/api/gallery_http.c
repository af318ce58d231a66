/* The gallery over HTTP: what the page lists, shows and deletes.
 *
 *   GET    /naru/gallery?limit=N        {"enabled": bool, "entries": [newest first], quota}
 *   GET    /naru/gallery/{id}/input     the picture that came
 *   GET    /naru/gallery/{id}/output    the picture that was made of it
 *   DELETE /naru/gallery/{id}           204
 *
 * DESIGN. Every call into the gallery blocks on files, so it runs on the pool; the answer is given
 * on the loop. A picture never changes under its id, so id and side are its ETag; it is read even
 * for a 304, since it may have been deleted meanwhile.
 *
 * THREADS. handle_* and answer_* on the loop, work_* on the pool (call.h says who may touch what).
 */
#include "api/page.h"
#include "api/state.h"
#include "base/clock.h"
#include "store/gallery.h"

#define LIST_DEFAULT 60
#define LIST_MAX 1000
#define LIST_TEXT_MAX (4u << 20)

struct gallery_call {
    unsigned limit;
    bool input;
    const struct nr_gallery_entry *entries;
    unsigned n;
    struct nr_gallery_usage usage;
    struct nr_str body, type;
    nr_status status;
};

static bool enabled(struct nr_call *c)
{
    if (c->api->cfg.gallery == NULL) {
        nr_call_fail(c, NARU_NOT_FOUND, NR_STR("this server keeps no pictures (--gallery DIR)"), 0);
        return false;
    }
    return true;
}

/* Loop: answers a failure, or says that there was none. */
static bool succeeded(struct nr_call *c)
{
    const struct gallery_call *g = c->data;
    if (g->status != NARU_OK) {
        nr_call_fail_err(c, &c->err);
        return false;
    }
    return true;
}

/* --- list ------------------------------------------------------------------------------------- */

static void write_entry(struct nr_text *t, const struct nr_gallery_entry *e)
{
    char when[25];
    nr_clock_format(e->wall_ns, when);
    nr_text_fmt(t, "{\"id\":\"%s\",\"model\":", e->id);
    nr_text_json(t, e->model);
    nr_text_fmt(t, ",\"time\":\"%s\",\"took_ms\":%.1f,\"input\":{\"type\":", when,
                (double)e->took_us / 1e3);
    nr_text_json(t, e->in_type);
    nr_text_fmt(t, ",\"bytes\":%llu},\"output\":{\"type\":", (unsigned long long)e->in_bytes);
    nr_text_json(t, e->out_type);
    nr_text_fmt(t, ",\"bytes\":%llu}}", (unsigned long long)e->out_bytes);
}

static void work_list(struct nr_call *c)
{
    struct gallery_call *g = c->data;
    g->status =
        nr_gallery_list(c->api->cfg.gallery, &c->x->arena, g->limit, &g->entries, &g->n, &c->err);
    nr_gallery_usage(c->api->cfg.gallery, &g->usage);
}

static void answer_list(struct nr_call *c)
{
    const struct gallery_call *g = c->data;
    struct nr_text t;
    if (!succeeded(c)) {
        return;
    }
    nr_text_init(&t, LIST_TEXT_MAX);
    nr_text_str(&t, "{\"enabled\":true,\"entries\":[");
    for (unsigned i = 0; i < g->n; i++) {
        nr_text_str(&t, i > 0 ? "," : "");
        write_entry(&t, &g->entries[i]);
    }
    nr_text_fmt(
        &t,
        "],\"count\":%u,\"max_entries\":%u,\"bytes\":%llu,\"max_bytes\":%llu,\"max_age_s\":%lld}\n",
        g->usage.entries, g->usage.max_entries, (unsigned long long)g->usage.bytes,
        (unsigned long long)g->usage.max_bytes, (long long)(g->usage.max_age_ns / NR_S_NS));
    nr_call_json(c, 200, &t);
}

/* limit=N of the query; false when it is no number. */
static bool read_limit(const struct nr_call *c, unsigned *ret)
{
    struct nr_str rest = c->x->query;
    *ret = LIST_DEFAULT;
    while (rest.ptr != NULL) {
        struct nr_str value, one = nr_str_cut(rest, '&', &rest);
        uint64_t n;
        if (!nr_str_is(nr_str_cut(one, '=', &value), "limit")) {
            continue;
        }
        if (value.ptr == NULL || !nr_str_to_u64(value, &n)) {
            return false;
        }
        *ret = (unsigned)NR_MIN(n, (uint64_t)LIST_MAX);
    }
    return true;
}

static void handle_list(struct nr_call *c)
{
    struct gallery_call *g = nr_arena_new(&c->x->arena, struct gallery_call);
    c->data = g;
    if (!read_limit(c, &g->limit)) {
        nr_call_fail(c, NARU_INVALID, NR_STR("limit must be a number, e.g. ?limit=60"), 0);
    } else if (c->api->cfg.gallery == NULL) {
        nr_call_bytes(c, 200, NR_STR("application/json"),
                      NR_STR("{\"enabled\":false,\"entries\":[]}\n"));
    } else {
        nr_call_offload(c, work_list, answer_list);
    }
}

/* --- one entry -------------------------------------------------------------------------------- */

static void work_read(struct nr_call *c)
{
    struct gallery_call *g = c->data;
    g->status = nr_gallery_read(c->api->cfg.gallery, &c->x->arena, c->extra, g->input, &g->body,
                                &g->type, &c->err);
}

static void answer_read(struct nr_call *c)
{
    const struct gallery_call *g = c->data;
    if (succeeded(c)) {
        nr_page_respond(c, g->type,
                        nr_arena_fmt(&c->x->arena, "\"" NR_STR_FMT "-%s\"", NR_STR_ARG(c->extra),
                                     g->input ? "in" : "out"),
                        g->body);
    }
}

static void read_side(struct nr_call *c, bool input)
{
    struct gallery_call *g = nr_arena_new(&c->x->arena, struct gallery_call);
    g->input = input;
    c->data = g;
    if (enabled(c)) {
        nr_call_offload(c, work_read, answer_read);
    }
}

static void handle_input(struct nr_call *c)
{
    read_side(c, true);
}

static void handle_output(struct nr_call *c)
{
    read_side(c, false);
}

static void work_remove(struct nr_call *c)
{
    struct gallery_call *g = c->data;
    g->status = nr_gallery_remove(c->api->cfg.gallery, c->extra, &c->err);
}

static void answer_remove(struct nr_call *c)
{
    if (succeeded(c)) {
        nr_call_empty(c, 204);
    }
}

static void handle_remove(struct nr_call *c)
{
    c->data = nr_arena_new(&c->x->arena, struct gallery_call);
    if (enabled(c)) {
        nr_call_offload(c, work_remove, answer_remove);
    }
}

const struct nr_route nr_routes_gallery[] = {
    {"/naru/gallery", 1u << NR_GET, NR_SCOPE_PAGE, NR_ROUTE_HTTP, false, handle_list,
     "gallery_list"},
    {"/naru/gallery/{id}/input", 1u << NR_GET, NR_SCOPE_PAGE, NR_ROUTE_HTTP, false, handle_input,
     "gallery_input"},
    {"/naru/gallery/{id}/output", 1u << NR_GET, NR_SCOPE_PAGE, NR_ROUTE_HTTP, false, handle_output,
     "gallery_output"},
    {"/naru/gallery/{id}", 1u << NR_DELETE, NR_SCOPE_PAGE, NR_ROUTE_HTTP, false, handle_remove,
     "gallery_remove"},
    {0},
};
