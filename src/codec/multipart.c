/* multipart/form-data over a body that is all in memory: parts are found, not copied.
 *
 * A delimiter is CR LF "--" boundary, then optional blanks and CR LF, or "--" at the very end
 * (RFC 2046 5.1.1). The first one may begin the body without its CR LF; what stands in front of it
 * and behind the closing one is passed over. A run of characters that begins like a delimiter but
 * goes on otherwise belongs to the data (boundary "a" inside "ab").
 *
 * INVARIANTS
 *  1. `pos` only grows and stays within the body; finding all delimiters is one pass by memmem.
 *  2. Views lie within the body (or the header line that they were cut from, which does too).
 * Threads: pure functions.
 */
#include "codec/multipart.h"

static bool is_blank(char c)
{
    return c == ' ' || c == '\t';
}

static struct nr_str sub(struct nr_str s, size_t from, size_t to)
{
    return (struct nr_str){s.ptr + from, to - from};
}

/* One "; name=value" of a header value. s begins at or before the ';'. Quoted values lose their
 * quotes; a backslash keeps the quote behind it from ending the value (and stays in it).
 * 1: found, 0: end, -1: broken. */
static int next_parameter(struct nr_str *s, struct nr_str *name, struct nr_str *value)
{
    size_t i = 0;
    while (i < s->len && (is_blank(s->ptr[i]) || s->ptr[i] == ';')) {
        i++;
    }
    if (i == s->len) {
        return 0;
    }
    size_t start = i;
    while (i < s->len && s->ptr[i] != '=' && s->ptr[i] != ';') {
        i++;
    }
    *name = nr_str_trim(sub(*s, start, i));
    *value = (struct nr_str){"", 0};
    if (i == s->len || s->ptr[i] == ';') {
        *s = sub(*s, i, s->len);
        return 1;
    }
    i++;
    while (i < s->len && is_blank(s->ptr[i])) {
        i++;
    }
    start = i;
    if (i < s->len && s->ptr[i] == '"') {
        start = ++i;
        while (i < s->len && s->ptr[i] != '"') {
            i += s->ptr[i] == '\\' && i + 1 < s->len ? 2 : 1;
        }
        if (i >= s->len) {
            return -1;
        }
        *value = sub(*s, start, i++);
    } else {
        while (i < s->len && s->ptr[i] != ';') {
            i++;
        }
        *value = nr_str_trim(sub(*s, start, i));
    }
    *s = sub(*s, i, s->len);
    return 1;
}

static bool is_boundary_char(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
           (c != '\0' && strchr("'()+_,-./:=? ", c) != NULL);
}

nr_status nr_multipart_boundary(struct nr_str content_type, struct nr_str *ret, struct nr_err *err)
{
    struct nr_str rest;
    struct nr_str type = nr_str_trim(nr_str_cut(content_type, ';', &rest));
    if (!nr_str_eq_nocase(type, NR_STR("multipart/form-data"))) {
        return nr_fail(err, NARU_MEDIA_TYPE,
                       "content type \"" NR_STR_FMT "\": expected multipart/form-data",
                       NR_STR_ARG(type));
    }
    struct nr_str name, value;
    int more = 0;
    while (rest.ptr != NULL && (more = next_parameter(&rest, &name, &value)) == 1) {
        if (!nr_str_eq_nocase(name, NR_STR("boundary"))) {
            continue;
        }
        bool good = value.len >= 1 && value.len <= NR_MULTIPART_MAX_BOUNDARY &&
                    value.ptr[value.len - 1] != ' ';
        for (size_t i = 0; i < value.len; i++) {
            good = good && is_boundary_char(value.ptr[i]);
        }
        if (!good) {
            return nr_fail(err, NARU_INVALID,
                           "multipart boundary of %zu characters: expected 1 to %d of RFC 2046's "
                           "set",
                           value.len, NR_MULTIPART_MAX_BOUNDARY);
        }
        *ret = value;
        return NARU_OK;
    }
    return nr_fail(err, NARU_INVALID,
                   more < 0 ? "content type with a quote that does not end"
                            : "multipart/form-data without a boundary");
}

/* Finds the next delimiter at or behind `from`: *at is where its CR LF begins (or 0 at the start of
 * the body), *after where the part's headers begin; *closing for the last one. */
static bool find_delimiter(struct nr_str body, struct nr_str dash_boundary, size_t from, size_t *at,
                           size_t *after, bool *closing)
{
    while (from < body.len) {
        const char *hit =
            memmem(body.ptr + from, body.len - from, dash_boundary.ptr, dash_boundary.len);
        if (hit == NULL) {
            return false;
        }
        size_t begin = (size_t)(hit - body.ptr);
        size_t end = begin + dash_boundary.len;
        from = begin + 1;
        bool line_start = begin == 0 || (begin >= 2 && memcmp(hit - 2, "\r\n", 2) == 0);
        if (!line_start) {
            continue;
        }
        *at = begin == 0 ? 0 : begin - 2;
        *closing = body.len - end >= 2 && memcmp(body.ptr + end, "--", 2) == 0;
        if (*closing) {
            *after = end + 2;
            if (*after == body.len || is_blank(body.ptr[*after]) || body.ptr[*after] == '\r') {
                return true;
            }
            continue; /* "--boundary--and more" is data */
        }
        while (end < body.len && is_blank(body.ptr[end])) {
            end++;
        }
        if (body.len - end >= 2 && memcmp(body.ptr + end, "\r\n", 2) == 0) {
            *after = end + 2;
            return true;
        }
    }
    return false;
}

static nr_status read_disposition(struct nr_str value, struct nr_multipart_part *part,
                                  struct nr_err *err)
{
    struct nr_str rest;
    struct nr_str kind = nr_str_trim(nr_str_cut(value, ';', &rest));
    if (!nr_str_eq_nocase(kind, NR_STR("form-data"))) {
        return nr_fail(err, NARU_INVALID,
                       "part with Content-Disposition \"" NR_STR_FMT "\": expected form-data",
                       NR_STR_ARG(kind));
    }
    struct nr_str name, text;
    int more = 0;
    while (rest.ptr != NULL && (more = next_parameter(&rest, &name, &text)) == 1) {
        if (nr_str_eq_nocase(name, NR_STR("name"))) {
            part->name = text;
        } else if (nr_str_eq_nocase(name, NR_STR("filename"))) {
            part->filename = text;
        }
    }
    return more < 0 ? nr_fail(err, NARU_INVALID,
                              "part with a Content-Disposition whose quote does not end")
                    : NARU_OK;
}

static nr_status read_header(struct nr_str line, struct nr_multipart_part *part, struct nr_err *err)
{
    struct nr_str value;
    struct nr_str name = nr_str_cut(line, ':', &value);
    if (value.ptr == NULL || name.len == 0) {
        return nr_fail(err, NARU_INVALID, "part with a header line without a name and a colon");
    }
    value = nr_str_trim(value);
    if (nr_str_eq_nocase(name, NR_STR("Content-Disposition"))) {
        return read_disposition(value, part, err);
    }
    if (nr_str_eq_nocase(name, NR_STR("Content-Type"))) {
        part->type = value;
    } else if (nr_str_eq_nocase(name, NR_STR("Content-Transfer-Encoding")) &&
               !nr_str_eq_nocase(value, NR_STR("binary")) &&
               !nr_str_eq_nocase(value, NR_STR("8bit")) &&
               !nr_str_eq_nocase(value, NR_STR("7bit"))) {
        return nr_fail(err, NARU_INVALID,
                       "part with Content-Transfer-Encoding \"" NR_STR_FMT
                       "\": send it as binary (RFC 7578 section 4.7)",
                       NR_STR_ARG(value));
    }
    return NARU_OK;
}

/* Headers up to the empty line; raw is all between two delimiters. */
static nr_status read_part(struct nr_str raw, struct nr_multipart_part *part, struct nr_err *err)
{
    *part = (struct nr_multipart_part){.name = {"", 0}, .type = {"", 0}};
    size_t pos = 0;
    for (;;) {
        struct nr_str window = sub(raw, pos, NR_MIN(raw.len, NR_MULTIPART_MAX_HEADER_BYTES));
        const char *end = window.len > 0 ? memmem(window.ptr, window.len, "\r\n", 2) : NULL;
        if (end == NULL) {
            return raw.len > NR_MULTIPART_MAX_HEADER_BYTES
                       ? nr_fail(err, NARU_TOO_LARGE, "part with more than %d bytes of headers",
                                 NR_MULTIPART_MAX_HEADER_BYTES)
                       : nr_fail(err, NARU_INVALID,
                                 "part without the empty line that ends its headers");
        }
        struct nr_str line = {window.ptr, (size_t)(end - window.ptr)};
        pos += line.len + 2;
        if (line.len == 0) {
            part->data = sub(raw, pos, raw.len);
            return NARU_OK;
        }
        nr_status st = read_header(line, part, err);
        if (st != NARU_OK) {
            return st;
        }
    }
}

nr_status nr_multipart_parse(struct nr_str body, struct nr_str boundary, struct nr_multipart *ret,
                             struct nr_err *err)
{
    ret->n_parts = 0;
    char text[2 + NR_MULTIPART_MAX_BOUNDARY] = "--";
    NR_ASSERT(boundary.len >= 1 && boundary.len <= NR_MULTIPART_MAX_BOUNDARY);
    memcpy(text + 2, boundary.ptr, boundary.len);
    struct nr_str dash_boundary = {text, boundary.len + 2};

    size_t at, begin;
    bool closing;
    if (!find_delimiter(body, dash_boundary, 0, &at, &begin, &closing)) {
        return nr_fail(err, NARU_INVALID,
                       "multipart body of %zu bytes without the boundary of its Content-Type",
                       body.len);
    }
    while (!closing) {
        if (ret->n_parts == NR_MULTIPART_MAX_PARTS) {
            return nr_fail(err, NARU_TOO_LARGE, "multipart body with more than %d parts",
                           NR_MULTIPART_MAX_PARTS);
        }
        size_t next;
        if (!find_delimiter(body, dash_boundary, begin, &at, &next, &closing)) {
            return nr_fail(err, NARU_INVALID,
                           "multipart body cut short: part %zu has no closing boundary",
                           ret->n_parts + 1);
        }
        nr_status st =
            read_part(sub(body, begin, NR_MAX(at, begin)), &ret->parts[ret->n_parts], err);
        if (st != NARU_OK) {
            nr_err_prefix(err, "multipart part %zu", ret->n_parts + 1);
            return st;
        }
        ret->n_parts++;
        begin = next;
    }
    return NARU_OK;
}

const struct nr_multipart_part *nr_multipart_file(const struct nr_multipart *m)
{
    for (size_t i = 0; i < m->n_parts; i++) {
        if (m->parts[i].filename.ptr != NULL) {
            return &m->parts[i];
        }
    }
    for (size_t i = 0; i < m->n_parts; i++) {
        struct nr_str type = m->parts[i].type;
        if (type.len > 6 && nr_str_eq_nocase((struct nr_str){type.ptr, 6}, NR_STR("image/"))) {
            return &m->parts[i];
        }
    }
    return NULL;
}
