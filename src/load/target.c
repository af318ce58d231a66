/* Targets: the request is built once, so that sending is one system call on ready bytes. */
#include "load/target.h"

#include "base/mem.h"

#define BODY_MAX ((size_t)1 << 30)
#define HEAD_MAX 65536

static nr_status parse_url(struct nr_load_target *t, const char *url, struct nr_err *err)
{
    static const struct {
        struct nr_str scheme;
        nr_load_proto proto;
    } schemes[] = {{NR_STR_INIT("http://"), NR_LOAD_HTTP1},
                   {NR_STR_INIT("h2c://"), NR_LOAD_HTTP2},
                   {NR_STR_INIT("grpc://"), NR_LOAD_GRPC}};
    struct nr_str s = nr_str_from(url), rest = {0};
    for (unsigned i = 0; i < NR_COUNT(schemes) && rest.ptr == NULL; i++) {
        if (nr_str_starts(s, schemes[i].scheme)) {
            t->proto = schemes[i].proto;
            rest = (struct nr_str){s.ptr + schemes[i].scheme.len, s.len - schemes[i].scheme.len};
        }
    }
    if (rest.ptr == NULL) {
        return nr_fail(err, NARU_INVALID, "'%s' begins with neither http:// nor h2c:// nor grpc://",
                       url);
    }
    t->text = nr_format("%.*s%s", (int)NR_MIN(rest.len, (size_t)HEAD_MAX), rest.ptr,
                        nr_str_find(rest, '/') < 0 ? "/" : "");
    s = nr_str_from(t->text);
    int64_t slash = nr_str_find(s, '/');
    t->authority = (struct nr_str){s.ptr, (size_t)slash};
    t->path = (struct nr_str){s.ptr + slash, s.len - (size_t)slash};

    size_t colon = t->authority.len;
    while (colon > 0 && t->authority.ptr[colon - 1] != ':') {
        colon--;
    }
    uint64_t port = 0;
    struct nr_str digits = {t->authority.ptr + colon, t->authority.len - colon};
    if (colon < 2 || !nr_str_to_u64(digits, &port) || port == 0 || port > 65535) {
        return nr_fail(err, NARU_INVALID, "'%s' names no port; expected http://127.0.0.1:8000/…",
                       url);
    }
    nr_autofree char *host = nr_format("%.*s", (int)(colon - 1), t->authority.ptr);
    return nr_sock_addr_parse(host, (uint16_t)port, &t->addr, err);
}

static nr_status take_fields(struct nr_load_target *t, const char *const *fields, unsigned n,
                             struct nr_err *err)
{
    if (n > NR_LOAD_FIELDS_MAX) {
        return nr_fail(err, NARU_INVALID, "%u header fields; at most %d are possible", n,
                       NR_LOAD_FIELDS_MAX);
    }
    for (unsigned i = 0; i < n; i++) {
        struct nr_str value, name = nr_str_cut(nr_str_from(fields[i]), ':', &value);
        if (value.ptr == NULL || name.len == 0) {
            return nr_fail(err, NARU_INVALID, "'%s' is no header field; expected 'Name: value'",
                           fields[i]);
        }
        t->fields[i] = (struct nr_load_field){name, nr_str_trim(value)};
    }
    t->n_fields = n;
    return NARU_OK;
}

static nr_status build_wire(struct nr_load_target *t, const void *body, size_t body_bytes,
                            struct nr_err *err)
{
    struct nr_text w;
    nr_text_init(&w, HEAD_MAX + BODY_MAX);
    if (t->proto == NR_LOAD_HTTP1) {
        nr_text_fmt(&w, NR_STR_FMT " ", NR_STR_ARG(t->method));
        nr_text_add(&w, t->path.ptr, t->path.len);
        nr_text_fmt(&w, " HTTP/1.1\r\nHost: " NR_STR_FMT "\r\n", NR_STR_ARG(t->authority));
        for (unsigned i = 0; i < t->n_fields; i++) {
            nr_text_add(&w, t->fields[i].name.ptr, t->fields[i].name.len);
            nr_text_str(&w, ": ");
            nr_text_add(&w, t->fields[i].value.ptr, t->fields[i].value.len);
            nr_text_str(&w, "\r\n");
        }
        if (body_bytes > 0) {
            nr_text_fmt(&w, "Content-Length: %zu\r\n", body_bytes);
        }
        nr_text_str(&w, "\r\n");
    } else if (t->proto == NR_LOAD_GRPC) {
        const unsigned char prefix[5] = {
            0, (unsigned char)(body_bytes >> 24), (unsigned char)(body_bytes >> 16),
            (unsigned char)(body_bytes >> 8), (unsigned char)body_bytes};
        nr_text_add(&w, prefix, sizeof(prefix));
    }
    nr_text_add(&w, body, body_bytes);
    if (w.failed) {
        nr_text_done(&w);
        return nr_fail(err, NARU_NOMEM, "no memory for a request of %zu bytes", body_bytes);
    }
    t->wire_bytes = w.len;
    t->wire = nr_text_take(&w);
    return NARU_OK;
}

nr_status nr_load_target_init(struct nr_load_target *t, const char *url, const char *const *fields,
                              unsigned n_fields, const void *body, size_t body_bytes,
                              struct nr_err *err)
{
    *t = (struct nr_load_target){0};
    nr_status st = parse_url(t, url, err);
    if (st == NARU_OK) {
        st = take_fields(t, fields, n_fields, err);
    }
    if (st == NARU_OK && body_bytes > BODY_MAX) {
        st = nr_fail(err, NARU_TOO_LARGE, "a body of %zu bytes; at most %zu are possible",
                     body_bytes, BODY_MAX);
    }
    t->method = body_bytes > 0 || t->proto == NR_LOAD_GRPC ? NR_STR("POST") : NR_STR("GET");
    if (st == NARU_OK) {
        st = build_wire(t, body, body_bytes, err);
    }
    if (st != NARU_OK) {
        nr_load_target_done(t);
    }
    return st;
}

void nr_load_target_done(struct nr_load_target *t)
{
    nr_free(t->text);
    nr_free(t->wire);
    *t = (struct nr_load_target){0};
}
