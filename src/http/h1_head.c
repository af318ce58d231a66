/* HTTP/1.1, server side: judging a head that the parser took.
 *
 * llhttp says where the pieces are; here they become an exchange (method, target, fields, known
 * fields) or a refusal. Everything that llhttp lets pass but that two parsers could read differently
 * ends the connection (RFC 9112 sections 3, 6, 11).
 *
 * Invariants: reads only the head, [in_start, in_start + parsed); changes nothing of it but the case
 * of field names; strings of the exchange point into it or into the arena.
 * Threads: the loop's. */
#include "http/grpc.h"
#include "http/h1.h"

static void lower(char *p, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        unsigned char ch = (unsigned char)p[i];
        p[i] = (char)(ch | (unsigned char)((unsigned)(ch - 'A') < 26u) << 5);
    }
}

/* Trailing blanks are not part of a value (RFC 9110 section 5.5); the parser took leading ones. */
static struct nr_str value_of(const char *head, const struct nr_span *s)
{
    struct nr_str v = {head + s->value, s->value_len};
    while (v.len > 0 && (v.ptr[v.len - 1] == ' ' || v.ptr[v.len - 1] == '\t')) {
        v.len--;
    }
    return v;
}

struct head_seen {
    unsigned hosts, codings;
    bool chunked_only, chunked_last, expect_other;
};

/* "gzip, chunked" is a coding that we lack; "chunked, chunked", "chunked, gzip" and what is no list
 * of tokens leave the end of the body in doubt. */
static void look_at_codings(struct nr_str list, struct head_seen *seen)
{
    unsigned chunked = 0;
    bool tokens = true, last = false;
    seen->chunked_only = nr_str_eq_nocase(list, NR_STR("chunked"));
    while (list.ptr) {
        struct nr_str one = nr_str_trim(nr_str_cut(list, ',', &list));
        last = nr_str_eq_nocase(one, NR_STR("chunked"));
        chunked += last;
        for (size_t i = 0; i < one.len; i++) {
            tokens = tokens && nr_token_char((uint8_t)one.ptr[i]);
        }
        tokens = tokens && one.len > 0;
    }
    seen->chunked_last = tokens && last && chunked == 1;
}

/* Builds x->headers and x->known. Returns a text when a field makes the message ambiguous. */
static const char *collect_fields(struct nr_conn *c, struct nr_xp *xp, struct head_seen *seen)
{
    struct nr_exchange *x = &xp->x;
    int64_t timeout;
    char *head = (char *)c->in->data + c->in_start;
    x->headers = nr_arena_alloc(&x->arena, (xp->n_spans + 1) * sizeof(x->headers[0]));
    x->n_headers = xp->n_spans;
    for (unsigned i = 0; i < xp->n_spans; i++) {
        const struct nr_span *s = &xp->spans[i];
        lower(head + s->name, s->name_len);
        struct nr_header *f = &x->headers[i];
        *f = (struct nr_header){{head + s->name, s->name_len}, value_of(head, s)};
        enum nr_field id = nr_field_find(f->name);
        switch (id) {
        case NR_FIELD_OTHER:
            break;
        case NR_FIELD_TRANSFER_ENCODING:
            seen->codings++;
            look_at_codings(f->value, seen);
            break;
        case NR_FIELD_GRPC_TIMEOUT:
            if (!nr_grpc_timeout(f->value, &timeout)) {
                return "malformed grpc-timeout";
            }
            if (__builtin_add_overflow(x->start_ns, timeout, &x->deadline_ns)) {
                x->deadline_ns = 0; /* beyond the end of the clock: none */
            }
            break;
        case NR_FIELD_EXPECT:
            xp->expect = nr_str_eq_nocase(f->value, NR_STR("100-continue"));
            seen->expect_other = !xp->expect;
            break;
        case NR_FIELD_HOST:
            seen->hosts++;
            if (!nr_host_valid(f->value)) {
                return "malformed Host field";
            }
            __attribute__((fallthrough));
        default:
            if (id <= NR_FIELD_KNOWN_LAST && !nr_field_known(x, id, f->value)) {
                return "a header field came twice that may come only once";
            }
        }
    }
    return NULL;
}

/* Target in absolute form: the authority replaces Host (RFC 9112 section 3.2.2). */
static bool split_target(struct nr_exchange *x, struct nr_str target)
{
    if (target.len > 0 && target.ptr[0] != '/' && target.ptr[0] != '*') {
        struct nr_str scheme = NR_STR("http://");
        if (target.len < scheme.len ||
            !nr_str_eq_nocase((struct nr_str){target.ptr, scheme.len}, scheme)) {
            return false;
        }
        size_t end = scheme.len;
        while (end < target.len && target.ptr[end] != '/' && target.ptr[end] != '?') {
            end++;
        }
        struct nr_str host = {target.ptr + scheme.len, end - scheme.len};
        if (host.len == 0 || !nr_host_valid(host)) {
            return false;
        }
        x->known.host = host;
        size_t rest = target.len - end;
        if (rest == 0 || target.ptr[end] == '?') { /* an empty path is "/" */
            char *slash = nr_arena_alloc(&x->arena, rest + 1);
            slash[0] = '/';
            memcpy(slash + 1, target.ptr + end, rest);
            return nr_target_split((struct nr_str){slash, rest + 1}, x->method, &x->path,
                                   &x->query);
        }
        target = (struct nr_str){target.ptr + end, target.len - end};
    }
    return nr_target_split(target, x->method, &x->path, &x->query);
}

/* What the parser accepts but we do not. Returns true when the message was refused. */
bool nr_h1_refuse_head(struct nr_conn *c, struct nr_xp *xp)
{
    struct nr_h1 *h = &c->h1;
    struct nr_exchange *x = &xp->x;
    const char *head = (const char *)c->in->data + c->in_start;
    const char *method = llhttp_method_name((llhttp_method_t)h->parser.method);
    size_t method_len = strlen(method), url_end = (size_t)h->url_off + h->url_len;
    x->method_text = (struct nr_str){head, method_len};
    x->method = nr_method_find(x->method_text);
    x->protocol = h->parser.http_minor == 0 ? NR_HTTP_1_0 : NR_HTTP_1_1;
    /* exactly one space on both sides of the target, the line ends behind the version */
    if (memcmp(head, method, method_len) != 0 || h->url_off != method_len + 1 ||
        memcmp(head + url_end, " HTTP/", 6) != 0 || memcmp(head + url_end + 9, "\r\n", 2) != 0) {
        nr_h1_refuse(c, 400, "malformed request line");
        return true;
    }
    if (h->parser.http_major != 1) {
        nr_h1_refuse(c, 505, "HTTP version not supported: use HTTP/1.1, HTTP/1.0 or HTTP/2");
        return true;
    }
    struct head_seen seen = {0};
    const char *text = collect_fields(c, xp, &seen);
    if (text) {
        nr_h1_refuse(c, 400, text);
        return true;
    }
    if (h->parser.method == HTTP_CONNECT) {
        nr_h1_refuse(c, 501, "CONNECT is not implemented");
        return true;
    }
    if (seen.hosts > 1 || (seen.hosts == 0 && x->protocol == NR_HTTP_1_1)) {
        nr_h1_refuse(c, 400, "HTTP/1.1 requests need exactly one Host field");
        return true;
    }
    if (!split_target(x, (struct nr_str){head + h->url_off, h->url_len})) {
        nr_h1_refuse(c, 400, "malformed request target");
        return true;
    }
    if (seen.codings) {
        if (x->protocol == NR_HTTP_1_0 || (h->parser.flags & F_CONTENT_LENGTH) ||
            seen.codings > 1) {
            nr_h1_refuse(c, 400, "ambiguous length of the request body");
            return true;
        }
        if (!seen.chunked_last) {
            nr_h1_refuse(c, 400, "malformed Transfer-Encoding: chunked must be the last coding");
            return true;
        }
        if (!seen.chunked_only) {
            nr_h1_refuse(c, 501, "transfer coding not implemented: use chunked alone");
            return true;
        }
    }
    if (seen.expect_other) {
        nr_h1_refuse(c, 417, "unknown expectation: only 100-continue is known");
        return true;
    }
    return false;
}
