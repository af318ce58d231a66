/* The one table of routes.
 *
 * DESIGN. Patterns are literal segments and {parameters}, one segment each ({path} takes the rest).
 * There are a few dozen routes, so a match walks those whose first literal bytes agree; the common
 * inference routes stand first. Matching is exact: a trailing slash, a doubled slash, "." and ".."
 * segments or an encoded slash match nothing, so no spelling reaches a handler past its scope.
 *
 * INVARIANTS
 *  1. Every route has a scope and a handler; nr_router_new refuses a table that breaks this.
 *  2. A parameter is never empty, and never "." or "..".
 */
#include <string.h>

#include "api/call.h"
#include "base/mem.h"

struct entry {
    const struct nr_route *route;
    struct nr_str literal; /* the pattern up to its first parameter */
    size_t pattern_len;
    bool whole; /* there is no parameter */
};

struct nr_router {
    struct entry *entries; /* gRPC's first, then HTTP's */
    unsigned n_grpc, n;
};

static const struct nr_route *const tables[] = {
    nr_routes_v2_http, nr_routes_v2_grpc, nr_routes_v2_stream, nr_routes_predict, nr_routes_metrics,
    nr_routes_page,    nr_routes_gallery, nr_routes_control,   nr_routes_labels,  nr_routes_why};

static void add_all(struct nr_router *router, bool grpc)
{
    for (unsigned t = 0; t < NR_COUNT(tables); t++) {
        for (const struct nr_route *r = tables[t]; r->pattern != NULL; r++) {
            struct nr_str pattern = nr_str_from(r->pattern), rest;
            struct nr_str literal = nr_str_cut(pattern, '{', &rest);
            if ((r->kind != NR_ROUTE_HTTP) == grpc) {
                router->entries[router->n++] = (struct entry){.route = r,
                                                              .literal = literal,
                                                              .pattern_len = pattern.len,
                                                              .whole = literal.len == pattern.len};
            }
        }
    }
}

nr_status nr_router_new(struct nr_router **ret, struct nr_err *err)
{
    unsigned n = 0;
    for (unsigned t = 0; t < NR_COUNT(tables); t++) {
        for (const struct nr_route *r = tables[t]; r->pattern != NULL; r++) {
            if (r->scope == NR_SCOPE_NONE || r->handle == NULL ||
                (r->methods == 0 && r->kind == NR_ROUTE_HTTP)) {
                return nr_fail(err, NARU_INTERNAL, "route %s has no scope, handler or method",
                               r->pattern);
            }
            n++;
        }
    }
    struct nr_router *router = nr_new(struct nr_router);
    router->entries = nr_new_array(struct entry, n);
    add_all(router, true);
    router->n_grpc = router->n;
    add_all(router, false);
    *ret = router;
    return NARU_OK;
}

void nr_router_free(struct nr_router *r)
{
    if (r != NULL) {
        nr_free(r->entries);
        nr_free(r);
    }
}

static int hex(char c)
{
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                  : -1;
}

/* Percent-decodes one segment; false for what must not be in a name. */
static bool decode_segment(struct nr_arena *a, struct nr_str s, struct nr_str *ret)
{
    if (s.len == 0 || nr_str_is(s, ".") || nr_str_is(s, "..")) {
        return false;
    }
    if (nr_str_find(s, '%') < 0) {
        *ret = s;
        return true;
    }
    char *out = nr_arena_alloc(a, s.len + 1);
    size_t n = 0;
    for (size_t i = 0; i < s.len; i++) {
        char c = s.ptr[i];
        if (c == '%') {
            int hi = i + 2 < s.len ? hex(s.ptr[i + 1]) : -1;
            int lo = i + 2 < s.len ? hex(s.ptr[i + 2]) : -1;
            if (hi < 0 || lo < 0) {
                return false;
            }
            c = (char)(hi * 16 + lo);
            i += 2;
        }
        if (c == '/' || c == '\0') {
            return false;
        }
        out[n++] = c;
    }
    out[n] = '\0';
    *ret = (struct nr_str){out, n};
    return n > 0 && !nr_str_is(*ret, ".") && !nr_str_is(*ret, "..");
}

static struct nr_str *parameter(struct nr_call *c, struct nr_str name)
{
    if (nr_str_is(name, "model")) {
        return &c->model_name;
    }
    return nr_str_is(name, "version") ? &c->version_text : &c->extra;
}

/* A number, or what may be a label of one. */
static bool is_version(struct nr_str s)
{
    if (nr_label_valid(s)) {
        return true;
    }
    for (size_t i = 0; i < s.len; i++) {
        if (s.ptr[i] < '0' || s.ptr[i] > '9') {
            return false;
        }
    }
    return s.len > 0;
}

/* pattern: from its first parameter on; path: what is behind the literal part. */
static bool match_segments(struct nr_str pattern, struct nr_str path, struct nr_call *c)
{
    while (pattern.ptr != NULL && path.ptr != NULL) {
        struct nr_str want_rest, have_rest;
        struct nr_str want = nr_str_cut(pattern, '/', &want_rest);
        struct nr_str have = nr_str_cut(path, '/', &have_rest);
        if (want.len > 2 && want.ptr[0] == '{') {
            struct nr_str name = {want.ptr + 1, want.len - 2};
            struct nr_str value;
            if (!decode_segment(&c->x->arena, have, &value) ||
                (nr_str_is(name, "version") && !is_version(value))) {
                return false;
            }
            *parameter(c, name) = value;
        } else if (!nr_str_eq(want, have)) {
            return false;
        }
        pattern = want_rest;
        path = have_rest;
    }
    return pattern.ptr == NULL && path.ptr == NULL;
}

static bool matches(const struct entry *e, struct nr_call *c)
{
    struct nr_str path = c->x->path;
    /* of a route that was tried before */
    c->model_name = c->version_text = c->extra = (struct nr_str){0};
    if (e->whole) {
        return nr_str_eq(path, e->literal);
    }
    size_t n = e->literal.len; /* ends with '/': a parameter is a whole segment */
    return nr_str_starts(path, e->literal) &&
           match_segments((struct nr_str){e->literal.ptr + n, e->pattern_len - n},
                          (struct nr_str){path.ptr + n, path.len - n}, c);
}

nr_status nr_router_match(const struct nr_router *router, struct nr_call *c)
{
    bool grpc = c->x->protocol == NR_GRPC;
    unsigned end = grpc ? router->n_grpc : router->n;
    for (unsigned i = grpc ? 0 : router->n_grpc; i < end; i++) {
        if (!matches(&router->entries[i], c)) {
            continue;
        }
        const struct nr_route *r = router->entries[i].route;
        /* gRPC is always POST; HEAD is GET without the body. */
        unsigned bit = 1u << (c->x->method == NR_HEAD ? NR_GET : c->x->method);
        if (grpc || (r->methods & bit) != 0) {
            c->route = r;
            return NARU_OK;
        }
        c->allowed_methods |= r->methods;
    }
    return c->allowed_methods != 0 ? NARU_METHOD : NARU_NOT_FOUND;
}
