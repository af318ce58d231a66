/* The life of a call: head → checks → body → handler → (pool) → scheduler → answer → log.
 *
 * DESIGN. Everything before the handler is the same for every route and done once, here: browser
 * safety, route and method, scope, body limit. Handlers of the adapters never see a request that
 * fails these.
 *
 * INVARIANTS
 *  1. Every exchange that reached on_head is answered exactly once: each path below ends in one
 *     nr_exchange_respond, and a call whose work or inference is under way is answered by it, even
 *     when the client has gone (the engine drops the answer).
 *  2. A call's model is pinned exactly while c->pin is set, and released in on_done.
 *  3. While c->away the loop touches nothing of the call but cancelled, cancel_status, grace and
 *     abandoned.
 *  4. A call that was cancelled is answered after CANCEL_GRACE_NS at the latest, whatever has it: its
 *     exchange is then held until it comes back (nr_call_abandon).
 *
 * THREADS. Loop threads, but for `work`.
 */
#include "api/api.h"

#include <stdio.h>
#include <string.h>

#include "api/call.h"
#include "api/shadow.h"
#include "api/state.h"
#include "api/v2.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/reclaim.h"
#include "http/grpc.h"
#include "store/gallery.h"

#define GALLERY_CHECK_NS (250 * NR_MS_NS)

/* For a plug-in to heed a cancel: what it says is better than what we can say without it. */
#define CANCEL_GRACE_NS (10 * NR_MS_NS)

/* --- answers ---------------------------------------------------------------------------------- */

static struct nr_str json_type(void)
{
    return NR_STR("application/json");
}

void nr_call_bytes(struct nr_call *c, int status, struct nr_str type, struct nr_str body)
{
    struct nr_iov part = {body.ptr, body.len};
    struct nr_response r = {
        .status = status, .content_type = type, .body = &part, .n_body = body.len > 0};
    nr_exchange_respond(c->x, &r);
}

void nr_call_json(struct nr_call *c, int status, struct nr_text *t)
{
    if (t->failed) {
        nr_text_done(t);
        nr_call_fail(c, NARU_NOMEM, NR_STR("the answer does not fit into memory"), 0);
        return;
    }
    struct nr_str body = {t->data, t->len};
    nr_arena_defer(&c->x->arena, nr_free, nr_text_take(t));
    nr_call_bytes(c, status, json_type(), body);
}

void nr_call_empty(struct nr_call *c, int status)
{
    struct nr_response r = {.status = status};
    nr_exchange_respond(c->x, &r);
}

void nr_call_grpc_bytes(struct nr_call *c, struct nr_str message)
{
    struct nr_iov part = {message.ptr, message.len};
    struct nr_response r = {.status = 200, .body = &part, .n_body = message.len > 0};
    nr_exchange_respond(c->x, &r);
}

/* "GET, HEAD, DELETE" */
static struct nr_str allowed_methods(struct nr_call *c)
{
    static const struct {
        unsigned bit;
        const char *text;
    } names[] = {{1u << NR_GET, "GET, HEAD"},
                 {1u << NR_POST, "POST"},
                 {1u << NR_PUT, "PUT"},
                 {1u << NR_DELETE, "DELETE"}};
    struct nr_text t;
    char storage[64];
    nr_text_init_at(&t, storage, sizeof(storage));
    for (unsigned i = 0; i < NR_COUNT(names); i++) {
        if (c->allowed_methods & names[i].bit) {
            nr_text_fmt(&t, "%s%s", t.len > 0 ? ", " : "", names[i].text);
        }
    }
    return nr_arena_str(&c->x->arena, (struct nr_str){storage, t.len});
}

/* Failures of the server or of a model. Not: what clients bring about (an unknown method is 501) or
 * what is counted in the metrics and may come in floods (a full queue, a passed deadline). */
static bool is_ours(nr_status st)
{
    return st == NARU_NOMEM || nr_status_http(st) == 500;
}

static bool logs_all(const struct nr_api *a)
{
    return atomic_load_explicit(&a->access_log, memory_order_relaxed);
}

/* The log needs the client's name of the request when the body is gone. */
static void keep_id(struct nr_call *c)
{
    bool logged = logs_all(c->api) || is_ours(c->err.status);
    if (!logged || !c->begun || c->stream != NULL || c->route->scope != NR_SCOPE_INFER) {
        return;
    }
    c->in.has_id = c->in.has_id || nr_v2_request_id(c, &c->in.id);
    if (c->in.has_id) {
        c->in.id = nr_arena_str(&c->x->arena, c->in.id);
    }
}

/* The answer; touches nothing that belongs to whom has the call. */
static void respond_error(struct nr_call *c, nr_status status, struct nr_str text,
                          unsigned retry_after_s)
{
    struct nr_arena *a = nr_exchange_arena(c->x);
    if (c->x->protocol == NR_GRPC) {
        struct nr_response r = {.status = 200,
                                .grpc_status = nr_status_grpc(status),
                                .grpc_message = nr_arena_str(a, text)};
        nr_exchange_respond(c->x, &r);
        return;
    }
    struct nr_text t;
    nr_text_init(&t, 8 * NR_ERR_TEXT_MAX);
    nr_text_str(&t, "{\"error\":");
    nr_text_json(&t, text);
    nr_text_str(&t, "}");
    struct nr_str body = nr_arena_str(a, (struct nr_str){t.data, t.len});
    nr_text_done(&t);
    struct nr_iov part = {body.ptr, body.len};
    struct nr_header more = {{0}, {0}};
    struct nr_response r = {
        .status = nr_status_http(status), .content_type = json_type(), .body = &part, .n_body = 1};
    if (retry_after_s > 0) {
        more = (struct nr_header){NR_STR("retry-after"), nr_arena_fmt(a, "%u", retry_after_s)};
    } else if (status == NARU_METHOD) { /* RFC 9110 section 15.5.6 */
        more = (struct nr_header){NR_STR("allow"), allowed_methods(c)};
    }
    r.headers = &more;
    r.n_headers = more.name.len > 0;
    nr_exchange_respond(c->x, &r);
}

void nr_call_fail(struct nr_call *c, nr_status status, struct nr_str text, unsigned retry_after_s)
{
    c->err.status = status;
    keep_id(c);
    if (text.ptr != c->err.text) { /* for the access log */
        snprintf(c->err.text, sizeof(c->err.text), NR_STR_FMT, NR_STR_ARG(text));
    }
    respond_error(c, status, text, retry_after_s);
}

void nr_call_fail_err(struct nr_call *c, const struct nr_err *err)
{
    struct nr_str text = nr_str_from(err->text);
    nr_call_fail(c, err->status, text.len > 0 ? text : nr_str_from(nr_status_text(err->status)), 0);
}

bool nr_call_refuse_encoding(struct nr_call *c)
{
    struct nr_str encoding = c->x->known.content_encoding;
    if (encoding.len == 0 || nr_str_eq_nocase(encoding, NR_STR("identity"))) {
        return false;
    }
    nr_call_fail(c, NARU_MEDIA_TYPE,
                 nr_arena_fmt(&c->x->arena,
                              "content-encoding '" NR_STR_FMT
                              "' is not supported; send the body without compression",
                              NR_STR_ARG(encoding)),
                 0);
    return true;
}

/* --- browser safety --------------------------------------------------------------------------- */

/* A name that the operator gave with --allow-host. */
static bool host_named(const struct nr_api *a, struct nr_str name)
{
    for (unsigned i = 0; a->cfg.allowed_hosts != NULL && a->cfg.allowed_hosts[i] != NULL; i++) {
        if (nr_str_eq_nocase(name, nr_str_from(a->cfg.allowed_hosts[i]))) {
            return true;
        }
    }
    return false;
}

/* 127.0.0.0/8 as numbers, also short ("127.1"): no page has such a name, however its DNS answers. */
static bool loopback_number(struct nr_str name)
{
    unsigned parts = 0;
    for (struct nr_str rest = name; rest.ptr != NULL; parts++) {
        struct nr_str part = nr_str_cut(rest, '.', &rest);
        uint64_t n;
        if (!nr_str_to_u64(part, &n) || n > 255) {
            return false;
        }
    }
    return parts >= 2 && parts <= 4 && nr_str_starts(name, NR_STR("127."));
}

static bool host_allowed(const struct nr_api *a, struct nr_str name)
{
    return nr_str_eq_nocase(name, NR_STR("localhost")) || nr_str_is(name, "[::1]") ||
           loopback_number(name) || host_named(a, name);
}

static bool check_host(const struct nr_api *a, struct nr_str authority, struct nr_err *err)
{
    /* The last one that was allowed: a client says the same in every request. */
    static _Thread_local struct {
        const struct nr_api *api;
        char text[64];
        size_t len;
    } last;
    struct nr_str host = authority;
    if (authority.len == last.len && last.api == a &&
        memcmp(authority.ptr, last.text, last.len) == 0) {
        return true;
    }
    /* the engine has refused what is no host and port */
    if (!nr_host_split(authority, &host) || (host.len > 0 && !host_allowed(a, host))) {
        (void)nr_fail(err, NARU_DENIED,
                      "host '" NR_STR_FMT "' is not a name of this server on loopback; use "
                      "localhost, or start it with --allow-host " NR_STR_FMT,
                      NR_STR_ARG(host), NR_STR_ARG(host));
        return false;
    }
    if (authority.len > 0 && authority.len <= sizeof(last.text)) {
        memcpy(last.text, authority.ptr, authority.len);
        last.len = authority.len;
        last.api = a;
    }
    return true;
}

/* scheme "://" host [":" port] of a page that is this server's own, or of a name given with --allow-host.
 * "null" (a sandboxed frame, a file) names no place and is refused like any other. */
static bool origin_allowed(const struct nr_api *a, struct nr_str origin, struct nr_str host)
{
    static const char *const schemes[] = {"http://", "https://"};
    struct nr_str authority = {NULL, 0}, name;
    for (unsigned i = 0; i < NR_COUNT(schemes); i++) {
        struct nr_str scheme = nr_str_from(schemes[i]);
        if (origin.len > scheme.len &&
            nr_str_eq_nocase((struct nr_str){origin.ptr, scheme.len}, scheme)) {
            authority = (struct nr_str){origin.ptr + scheme.len, origin.len - scheme.len};
        }
    }
    return authority.len > 0 && nr_host_split(authority, &name) &&
           (nr_str_eq_nocase(authority, host) || host_named(a, name));
}

/* A page of another site must not reach a server on loopback: by a name that it has pointed here
 * (Host), or by a form or script of its own (Origin, or Sec-Fetch-Site where a browser sends no
 * Origin; a link that a person follows is a GET and may come from anywhere). Programs send no Origin and a plain Host. A
 * page of this machine on another port is another site too: it may be another person's. */
static nr_status check_browser(struct nr_api *a, struct nr_exchange *x, struct nr_err *err)
{
    if (!a->cfg.check_browser || !x->peer->loopback) {
        return NARU_OK;
    }
    if (!check_host(a, x->known.host, err)) {
        return err->status;
    }
    struct nr_str origin = x->known.origin;
    if (origin.len == 0) {
        struct nr_str site = x->known.sec_fetch_site;
        bool reads = x->method == NR_GET || x->method == NR_HEAD;
        bool other = nr_str_is(site, "cross-site") || nr_str_is(site, "same-site");
        return reads || !other ? NARU_OK
                               : nr_fail(err, NARU_DENIED,
                                         "requests from pages of other sites are refused "
                                         "(Sec-Fetch-Site: " NR_STR_FMT ")",
                                         NR_STR_ARG(site));
    }
    if (!origin_allowed(a, origin, x->known.host)) {
        return nr_fail(err, NARU_DENIED, "requests from pages of '" NR_STR_FMT "' are refused",
                       NR_STR_ARG(origin));
    }
    return NARU_OK;
}

/* --- head ------------------------------------------------------------------------------------- */

const struct nr_catalog *nr_call_catalog(struct nr_call *c)
{
    return nr_catalog_get(&c->api->readers[nr_loop_index(c->x->loop)]);
}

/* What an inference of this model can need at most: its tensors as JSON text (32 bytes an element
 * is more than any number takes), times the batch. 0: the signature does not say. */
static uint64_t body_limit_of(const struct nr_signature *sig)
{
    uint64_t bytes = 64u << 10;
    for (unsigned i = 0; i < sig->n_inputs; i++) {
        const struct nr_io_spec *io = &sig->inputs[i];
        uint32_t size = naru_dtype_bytes(io->dtype);
        if (io->row_bytes < 0 || size == 0) {
            return 0;
        }
        uint64_t rows = (uint64_t)NR_MAX(sig->max_batch_size, 1), all;
        if (__builtin_mul_overflow((uint64_t)io->row_bytes / size * 32, rows, &all) ||
            __builtin_add_overflow(bytes, all, &bytes)) {
            return 0;
        }
    }
    return bytes;
}

/* How large the body may be, and where it should lie. */
static void prepare_body(struct nr_api *a, struct nr_call *c)
{
    struct nr_exchange *x = c->x;
    x->body_limit = a->cfg.max_body_bytes;
    struct nr_version *v;
    if (c->route->wants_model && c->model_name.len > 0 &&
        nr_catalog_lookup(nr_call_catalog(c), c->model_name, c->version_text, &v, NULL) ==
            NARU_OK) {
        const struct nr_signature *sig = nr_runtime_of(v)->signature;
        uint64_t own = body_limit_of(sig);
        x->body_limit = own > 0 ? NR_MIN(own, x->body_limit) : x->body_limit;
        if (x->content_length > 0 && (uint64_t)x->content_length <= x->body_limit) {
            nr_v2_http_place_body(c, sig);
        }
    }
}

static void refuse_unrouted(struct nr_call *c, nr_status st)
{
    struct nr_exchange *x = c->x;
    if (x->protocol == NR_GRPC) {
        nr_call_fail(c, NARU_UNSUPPORTED,
                     nr_arena_fmt(&x->arena, "unknown method " NR_STR_FMT, NR_STR_ARG(x->path)), 0);
    } else if (st == NARU_METHOD) {
        nr_call_fail(c, st,
                     nr_arena_fmt(&x->arena, "method " NR_STR_FMT " is not allowed for " NR_STR_FMT,
                                  NR_STR_ARG(x->method_text), NR_STR_ARG(x->path)),
                     0);
    } else {
        nr_call_fail(c, NARU_NOT_FOUND,
                     nr_arena_fmt(&x->arena, "no such path: " NR_STR_FMT, NR_STR_ARG(x->path)), 0);
    }
}

static void on_head(void *ctx, struct nr_exchange *x)
{
    struct nr_api *a = ctx;
    struct nr_call *c = nr_arena_new(&x->arena, struct nr_call);
    c->api = a;
    c->x = x;
    x->app = c;
    if (check_browser(a, x, &c->err) != NARU_OK) {
        nr_call_fail_err(c, &c->err);
        return;
    }
    nr_status st = nr_router_match(a->router, c);
    if (st != NARU_OK) {
        refuse_unrouted(c, st);
        return;
    }
    prepare_body(a, c);
    if (c->route->kind == NR_ROUTE_GRPC_STREAM) {
        x->many_messages = true;
        c->begun = true;
        c->route->handle(c);
    }
}

static void on_message(void *ctx, struct nr_exchange *x)
{
    (void)ctx;
    struct nr_call *c = x->app;
    c->stream->message(c);
}

static void on_request(void *ctx, struct nr_exchange *x)
{
    (void)ctx;
    struct nr_call *c = x->app;
    c->begun = true;
    if (c->stream != NULL) {
        c->stream->last(c);
    } else if (NR_LIKELY(!c->api->cfg.on_demand) || !nr_call_demand(c)) {
        c->route->handle(c);
    }
}

/* --- inference -------------------------------------------------------------------------------- */

nr_status nr_call_lookup(struct nr_call *c, struct nr_str model, struct nr_str version,
                         struct nr_err *err)
{
    struct nr_catalog_reader *reader = &c->api->readers[nr_loop_index(c->x->loop)];
    const struct nr_catalog *catalog = nr_catalog_get(reader);
    nr_status st =
        c->route->scope == NR_SCOPE_INFER
            ? nr_catalog_route(reader, model, version, &c->version, &c->wants_shadow, err)
            : nr_catalog_lookup(catalog, model, version, &c->version, err);
    if (st == NARU_OK) {
        c->pin = nr_catalog_pin(reader, c->version);
        c->runtime = nr_runtime_of(c->version);
        if (NR_UNLIKELY(c->api->cfg.on_demand)) {
            nr_version_used(c->version, nr_loop_now(c->x->loop));
        }
    }
    return st;
}

const struct nr_infer_output *nr_call_match_outputs(const struct nr_infer_request *in,
                                                    const struct nr_infer_tensor *outputs,
                                                    unsigned n, struct nr_arena *a)
{
    struct nr_infer_output *how = nr_arena_zalloc(a, (n + 1) * sizeof(*how));
    for (unsigned i = 0; i < n; i++) {
        for (unsigned k = 0; k < in->n_outputs; k++) {
            if (in->outputs[k].index == outputs[i].index) {
                how[i] = in->outputs[k];
            }
        }
    }
    return how;
}

static void on_complete(struct nr_request *r)
{
    struct nr_call *c = nr_container_of(r, struct nr_call, request);
    c->completed = true;
    c->away = false;
    if (NR_UNLIKELY(c->abandoned)) {
        nr_call_let_go(c, 1);
        return;
    }
    c->outputs = r->outputs;
    if (r->status == NARU_OK && nr_catalog_decoupled(r->catalog, c->version)) {
        c->in.outputs = (struct nr_infer_output *)(uintptr_t)nr_call_match_outputs(
            &c->in, r->outputs, r->n_outputs, r->arena);
        c->in.n_outputs = r->n_outputs;
    }
    if (c->cancelled && r->status == NARU_CANCELLED && c->cancel_status == NARU_DEADLINE) {
        r->status = NARU_DEADLINE; /* the plug-in stopped because we asked it to: say why */
        r->error = NR_STR("the request's time limit passed while it ran");
    }
    if (r->status != NARU_OK) {
        nr_call_fail(c, r->status,
                     nr_v2_run_error(c->version, &c->in, r->status, r->error, &c->x->arena),
                     r->retry_after_s);
        return;
    }
    c->respond(c);
}

void nr_call_options(const struct nr_infer_request *in, struct nr_arena *a, struct nr_request *r)
{
    unsigned n = in->n_params;
    if (n == 0) {
        return;
    }
    naru_option *options = nr_arena_alloc(a, n * sizeof(*options));
    for (unsigned i = 0; i < n; i++) {
        const struct nr_infer_param *p = &in->params[i];
        struct nr_str text = p->kind == NR_PARAM_STRING ? nr_arena_str(a, p->s)
                             : p->kind == NR_PARAM_BOOL ? nr_str_from(p->b ? "true" : "false")
                             : p->kind == NR_PARAM_DOUBLE
                                 ? nr_arena_fmt(a, "%.17g", p->d)
                                 : nr_arena_fmt(a, p->kind == NR_PARAM_UINT ? "%llu" : "%lld",
                                                (unsigned long long)p->i);
        options[i] = (naru_option){nr_arena_strz(a, p->name), text.ptr};
    }
    r->options = options;
    r->n_options = n;
}

static struct nr_str cancel_text(nr_status why)
{
    return why == NARU_DEADLINE ? NR_STR("the request's time limit passed before it ran")
                                : NR_STR("the client has gone");
}

void nr_call_submit(struct nr_call *c)
{
    nr_call_submit_in(c, &c->x->arena);
}

void nr_call_submit_in(struct nr_call *c, struct nr_arena *arena)
{
    struct nr_exchange *x = c->x;
    c->request.target = c->runtime->target;
    c->request.loop = x->loop;
    c->request.arena = arena;
    c->request.in = &c->in;
    c->request.arrival_ns = x->start_ns;
    c->request.deadline_ns = x->deadline_ns;
    c->request.catalog = c->pin->catalog;
    c->request.client = x->peer->client;
    c->request.on_complete = on_complete;
    nr_call_options(&c->in, &x->arena, &c->request);
    if (c->in.has_id) { /* the log needs it when the body is gone */
        c->in.id = nr_arena_str(&x->arena, c->in.id);
    }
    if (c->cancelled) { /* the client went while the body was decoded on the pool */
        nr_call_fail(c, c->cancel_status, cancel_text(c->cancel_status), 0);
        return;
    }
    c->submitted = c->away = true;
    if (NR_UNLIKELY(c->wants_shadow)) {
        nr_shadow_send(c);
    }
    nr_request_submit(&c->request);
}

/* --- the pool --------------------------------------------------------------------------------- */

static void after_job(struct nr_msg *m)
{
    struct nr_call *c = nr_container_of(m, struct nr_call, msg);
    c->away = false;
    if (NR_UNLIKELY(c->abandoned)) {
        nr_call_let_go(c, 1);
        return;
    }
    c->after(c);
}

static void run_job(struct nr_job *j)
{
    struct nr_call *c = nr_container_of(j, struct nr_call, job);
    c->work(c);
    c->msg.run = after_job;
    nr_loop_post(c->x->loop, &c->msg);
}

void nr_call_offload(struct nr_call *c, void (*work)(struct nr_call *),
                     void (*after)(struct nr_call *))
{
    c->work = work;
    c->after = after;
    c->job.run = run_job;
    c->away = true;
    if (nr_pool_submit(c->api->cfg.pool, &c->job) != NARU_OK) {
        c->away = false;
        nr_call_fail(c, NARU_UNAVAILABLE,
                     NR_STR("too many large requests are being decoded; try again later"), 1);
    }
}

/* --- end -------------------------------------------------------------------------------------- */

void nr_call_abandon(struct nr_call *c, unsigned n)
{
    c->abandoned = true;
    atomic_fetch_add_explicit(&c->api->n_abandoned, n, memory_order_relaxed);
    atomic_fetch_add_explicit(&c->api->abandoned, n, memory_order_relaxed);
    nr_exchange_hold(c->x);
}

void nr_call_let_go(struct nr_call *c, unsigned n)
{
    struct nr_api *a = c->api;
    c->err.status = c->cancel_status; /* for the access log, which comes with on_done */
    snprintf(c->err.text, sizeof(c->err.text), "answered before its work had ended");
    nr_exchange_release(c->x);
    atomic_fetch_sub_explicit(&a->n_abandoned, n, memory_order_release);
}

/* A cancelled call has had its time. */
static void on_grace(struct nr_timer *t)
{
    struct nr_call *c = nr_container_of(t, struct nr_call, grace);
    if (c->x->responded) {
        return;
    }
    if (c->stream != NULL) {
        c->stream->abandon(c);
    } else if (c->away) {
        bool late = c->cancel_status == NARU_DEADLINE;
        c->request.abandoned = true;
        nr_call_abandon(c, 1);
        respond_error(c, c->cancel_status,
                      late ? NR_STR("the request's time limit passed while it ran; it has been "
                                    "told to stop and has not yet")
                           : NR_STR("the client has gone"),
                      0);
    }
}

static void on_cancel(void *ctx, struct nr_exchange *x, nr_cancel_reason why)
{
    (void)ctx;
    struct nr_call *c = x->app;
    nr_status st = why == NR_CANCEL_DEADLINE ? NARU_DEADLINE : NARU_CANCELLED;
    c->cancelled = true;
    c->cancel_status = st;
    if (c->stream != NULL) {
        c->stream->cancel(c, st);
    } else if (!c->begun) { /* the body never came: nobody else will answer */
        nr_call_fail(c, st, NR_STR("the request ended before its body was complete"), 0);
    } else if (c->submitted && !c->completed) {
        nr_request_cancel(&c->request, st, why != NR_CANCEL_HALF_CLOSE);
    }
    if (why != NR_CANCEL_HALF_CLOSE && !x->responded) {
        c->grace.on_timer = on_grace;
        nr_loop_timer_set(x->loop, &c->grace, nr_loop_now(x->loop) + CANCEL_GRACE_NS);
    }
}

/* id: what the client calls its request, in the body or else in X-Request-Id; if it does not say, what we do. */
static void access_log(struct nr_call *c)
{
    struct nr_exchange *x = c->x;
    struct nr_str sent = x->known.request_id;
    bool ours = is_ours(c->err.status);
    nr_log_level level = ours ? NR_LOG_WARN : NR_LOG_INFO;
    char id[17];
    if (!nr_log_on(level)) {
        return;
    }
    snprintf(id, sizeof(id), "%016llx", (unsigned long long)x->id);
    struct nr_kv kvs[13];
    unsigned n = 0;
    kvs[n++] = NR_KV_STR("id", c->in.has_id ? c->in.id : sent.len > 0 ? sent : nr_str_from(id));
    if (sent.len > 0) {
        kvs[n++] = NR_KV_STR("request_id", sent);
    }
    kvs[n++] = NR_KV_TEXT("exchange", id);
    kvs[n++] = NR_KV_TEXT("peer", x->peer->text);
    kvs[n++] = NR_KV_STR("method", x->method_text);
    kvs[n++] = NR_KV_STR("path", x->path);
    kvs[n++] = x->protocol == NR_GRPC ? NR_KV_TEXT("grpc", nr_grpc_status_name(x->response_status))
                                      : NR_KV_INT("status", x->response_status);
    kvs[n++] = NR_KV_INT("in", x->body.len + x->tail.len);
    kvs[n++] = NR_KV_INT("out", x->response_bytes);
    kvs[n++] = NR_KV_INT("us", (nr_clock_now() - x->start_ns) / NR_US_NS);
    kvs[n++] = NR_KV_TEXT("error", c->err.status != NARU_OK ? c->err.text : "");
    kvs[n] = (struct nr_kv){.kind = NR_KV_END};
    nr_log_write_each(level, "access", c->route != NULL ? c->route->action : "request", kvs);
}

void nr_call_log_item(const struct nr_call *c, struct nr_str id, struct nr_str model,
                      nr_status status, struct nr_str text)
{
    bool ours = is_ours(status);
    nr_log_level level = ours ? NR_LOG_WARN : NR_LOG_INFO;
    if ((!ours && !logs_all(c->api)) || !nr_log_on(level)) {
        return;
    }
    struct nr_str sent = c->x->known.request_id;
    char exchange[17];
    snprintf(exchange, sizeof(exchange), "%016llx", (unsigned long long)c->x->id);
    const struct nr_kv kvs[] = {
        NR_KV_STR("id", id.len > 0     ? id
                        : sent.len > 0 ? sent
                                       : nr_str_from(exchange)),
        NR_KV_TEXT("exchange", exchange),
        NR_KV_TEXT("peer", c->x->peer->text),
        NR_KV_STR("model", model),
        NR_KV_TEXT("grpc", nr_grpc_status_name(nr_status_grpc(status))),
        NR_KV_STR("error", text),
        {.kind = NR_KV_END},
    };
    nr_log_write_each(level, "access", "stream_item", kvs);
}

static void on_done(void *ctx, struct nr_exchange *x)
{
    struct nr_api *a = ctx;
    struct nr_call *c = x->app;
    if (c == NULL) {
        return;
    }
    if (NR_UNLIKELY(c->grace.heap_index)) {
        nr_loop_timer_cancel(x->loop, &c->grace);
    }
    if (logs_all(a) || is_ours(c->err.status)) { /* an error of ours is always worth its line */
        access_log(c);
    }
    if (c->pin != NULL) {
        nr_catalog_unpin(c->pin, c->version);
        c->pin = NULL;
    }
}

/* --- the catalog ------------------------------------------------------------------------------ */

static void refresh_reader(struct nr_msg *m)
{
    struct nr_catalog_msg *cm = nr_container_of(m, struct nr_catalog_msg, msg);
    atomic_store_explicit(&cm->posted, false, memory_order_release); /* before the look, so that a
                                                   change during it posts again */
    nr_catalog_refresh(&cm->api->readers[cm->loop]);
}

void nr_api_catalog_changed(struct nr_api *a)
{
    for (unsigned i = 0; i < a->cfg.n_loops; i++) {
        struct nr_catalog_msg *cm = &a->catalog_msgs[i];
        if (!atomic_exchange(&cm->posted, true)) {
            cm->msg.run = refresh_reader;
            nr_loop_post(a->cfg.loops[i], &cm->msg);
        }
    }
}

/* Pool: the loops free into the heap; this gives it back to the system. */
static void run_trim(struct nr_job *j)
{
    struct nr_api *a = nr_container_of(j, struct nr_api, trim);
    atomic_store(&a->trim_queued, false);
    nr_reclaim_heap();
}

static void on_idle(void *ctx)
{
    struct nr_api *a = ctx;
    if (atomic_exchange(&a->trim_queued, true)) {
        return;
    }
    a->trim.run = run_trim;
    if (nr_pool_submit(a->cfg.pool, &a->trim) != NARU_OK) {
        atomic_store(&a->trim_queued, false); /* the pool is full, so this is not the time for it */
    }
}

bool nr_api_ready(struct nr_api *a, const struct nr_catalog *catalog)
{
    if (atomic_load_explicit(&a->draining, memory_order_relaxed)) {
        return false;
    }
    return !a->cfg.strict_readiness || catalog->all_ready;
}

/* Pool. */
static void run_gallery_check(struct nr_job *j)
{
    struct nr_api *a = nr_container_of(j, struct nr_api, gallery_check);
    nr_gallery_check(a->cfg.gallery);
    atomic_store(&a->gallery_checked_ns, nr_clock_now());
    atomic_store(&a->gallery_checks, false);
}

/* Whoever asks about it sets off the next look, so that good news need no new picture. */
static void check_gallery(struct nr_api *a)
{
    bool late = nr_clock_now() - atomic_load(&a->gallery_checked_ns) >= GALLERY_CHECK_NS;
    if (!late || atomic_exchange(&a->gallery_checks, true)) {
        return;
    }
    a->gallery_check.run = run_gallery_check;
    if (nr_pool_submit(a->cfg.pool, &a->gallery_check) != NARU_OK) {
        atomic_store(&a->gallery_checks, false);
    }
}

void nr_api_troubles(struct nr_api *a, struct nr_troubles *ret)
{
    for (unsigned i = 0; i < NR_TROUBLES; i++) {
        ret->text[i][0] = '\0';
    }
    if (atomic_load_explicit(&a->draining, memory_order_relaxed)) {
        snprintf(ret->text[NR_TROUBLE_DRAINING], NR_ERR_TEXT_MAX, "the server is draining");
    }
    (void)nr_repository_trouble(a->cfg.repository, ret->text[NR_TROUBLE_REPOSITORY],
                                NR_ERR_TEXT_MAX);
    char text[NR_ERR_TEXT_MAX];
    if (a->cfg.gallery != NULL && nr_gallery_trouble(a->cfg.gallery, text, sizeof(text))) {
        snprintf(ret->text[NR_TROUBLE_GALLERY], NR_ERR_TEXT_MAX, "pictures are not kept: %.*s",
                 NR_ERR_TEXT_MAX - 32, text);
        check_gallery(a);
    }
}

void nr_api_set_access_log(struct nr_api *a, bool on)
{
    atomic_store(&a->access_log, on);
}

void nr_api_set_draining(struct nr_api *a)
{
    atomic_store(&a->draining, true);
}

unsigned nr_api_shadows(const struct nr_api *a)
{
    return atomic_load_explicit(&a->n_shadows, memory_order_acquire);
}

unsigned nr_api_abandoned(const struct nr_api *a)
{
    return atomic_load_explicit(&a->n_abandoned, memory_order_acquire);
}

void nr_api_set_server(struct nr_api *a, struct nr_server *server)
{
    a->server = server;
}

/* --- life ------------------------------------------------------------------------------------- */

nr_status nr_api_new(const struct nr_api_cfg *cfg, struct nr_api **ret, struct nr_err *err)
{
    struct nr_api *a = nr_new(struct nr_api);
    a->cfg = *cfg;
    nr_api_set_access_log(a, cfg->access_log);
    a->start_wall_ns = nr_clock_wall();
    a->app = (struct nr_http_app){.ctx = a,
                                  .on_head = on_head,
                                  .on_request = on_request,
                                  .on_cancel = on_cancel,
                                  .on_done = on_done,
                                  .on_message = on_message,
                                  .on_idle = on_idle};
    nr_status st = nr_router_new(&a->router, err);
    if (st != NARU_OK) {
        nr_free(a);
        return st;
    }
    a->readers = nr_new_array(struct nr_catalog_reader, cfg->n_loops);
    a->catalog_msgs = nr_new_array(struct nr_catalog_msg, cfg->n_loops);
    for (unsigned i = 0; i < cfg->n_loops; i++) {
        nr_catalog_reader_init(&a->readers[i], cfg->repository);
        a->readers[i].slot = i;
        a->catalog_msgs[i].api = a;
        a->catalog_msgs[i].loop = i;
    }
    *ret = a;
    return NARU_OK;
}

void nr_api_readers_done(struct nr_api *a)
{
    for (unsigned i = 0; a != NULL && i < a->cfg.n_loops; i++) {
        nr_catalog_reader_done(&a->readers[i]);
    }
}

void nr_api_free(struct nr_api *a)
{
    if (a == NULL) {
        return;
    }
    nr_router_free(a->router);
    nr_free(a->readers);
    nr_free(a->catalog_msgs);
    nr_free(a);
}

const struct nr_http_app *nr_api_app(struct nr_api *a)
{
    return &a->app;
}
