/* HTTP/1.1 answers: resumable, without a copy when a head arrives whole.
 *
 * DESIGN. Answers of a server under load arrive whole in one read almost always, so the head is
 * looked for where it lies. Only a cut head is gathered in r->head, and then parsed from there.
 * The body is only counted.
 *
 * INVARIANTS
 * 1. in_body false: head_len bytes of an incomplete head are kept, left_bytes is 0.
 * 2. in_body true: the answer is whole exactly when left_bytes is 0.
 */
#include "load/reply.h"

#include <string.h>

#include "base/str.h"

void nr_reply_reset(struct nr_reply *r)
{
    r->status = 0;
    r->closes = false;
    r->in_body = false;
    r->body_bytes = 0;
    r->left_bytes = 0;
    r->head_len = 0;
}

/* One header field; `line` is without its end. */
static nr_status take_field(struct nr_reply *r, struct nr_str line, bool *has_length)
{
    struct nr_str value, name = nr_str_cut(line, ':', &value);
    switch (name.len) { /* most fields are told apart by their length alone */
    case sizeof("content-length") - 1:
        if (nr_str_eq_nocase(name, NR_STR("content-length"))) {
            uint64_t bytes;
            if (value.ptr == NULL || !nr_str_to_u64(nr_str_trim(value), &bytes) ||
                (*has_length && bytes != r->body_bytes)) {
                return NARU_INVALID;
            }
            r->body_bytes = bytes;
            *has_length = true;
        }
        return NARU_OK;
    case sizeof("connection") - 1:
        if (nr_str_eq_nocase(name, NR_STR("connection")) &&
            nr_str_eq_nocase(nr_str_trim(value), NR_STR("close"))) {
            r->closes = true;
        }
        return NARU_OK;
    case sizeof("transfer-encoding") - 1:
        return nr_str_eq_nocase(name, NR_STR("transfer-encoding")) ? NARU_UNSUPPORTED : NARU_OK;
    default:
        return NARU_OK;
    }
}

/* head: all lines with their ends, without the empty line. */
static nr_status take_head(struct nr_reply *r, struct nr_str head)
{
    struct nr_str rest, line = nr_str_cut(head, '\n', &rest);
    bool has_length = false;
    const char *d = line.ptr + 9; /* behind "HTTP/1.1 " */
    if (line.len < 12 || memcmp(line.ptr, "HTTP/1.", 7) != 0 || line.ptr[8] != ' ' || d[0] < '1' ||
        d[0] > '5' || d[1] < '0' || d[1] > '9' || d[2] < '0' || d[2] > '9') {
        return NARU_INVALID;
    }
    r->status = (unsigned)(d[0] - '0') * 100 + (unsigned)(d[1] - '0') * 10 + (unsigned)(d[2] - '0');
    r->closes = line.ptr[7] == '0';
    while (rest.ptr != NULL && rest.len > 0) {
        line = nr_str_cut(rest, '\n', &rest);
        if (line.len > 0 && line.ptr[line.len - 1] == '\r') {
            line.len--;
        }
        nr_status st = take_field(r, line, &has_length);
        if (st != NARU_OK) {
            return st;
        }
    }
    if (r->status < 200 || r->status == 204 || r->status == 304) {
        r->body_bytes = 0;
    } else if (!has_length) {
        return NARU_UNSUPPORTED; /* ends with the connection */
    }
    r->left_bytes = r->body_bytes;
    r->in_body = true;
    return NARU_OK;
}

/* Finds the end of a head in data; with a kept part, joins first. *ret_used: bytes of data that
 * belong to the head. */
static nr_status feed_head(struct nr_reply *r, const char *data, size_t len, size_t *ret_used)
{
    const char *from = data, *end;
    size_t have = len, kept = r->head_len;
    if (kept > 0) {
        size_t take = NR_MIN(len, sizeof(r->head) - kept);
        memcpy(r->head + kept, data, take);
        from = r->head;
        have = kept + take;
    }
    end = memmem(from, have, "\r\n\r\n", 4);
    if (end != NULL) {
        *ret_used = (size_t)(end - from) + 4 - kept;
        r->head_len = 0;
        return take_head(r, (struct nr_str){from, (size_t)(end - from) + 2});
    }
    if (have >= sizeof(r->head)) {
        return NARU_TOO_LARGE;
    }
    if (kept == 0) {
        memcpy(r->head, data, len);
    }
    r->head_len = have;
    *ret_used = len;
    return NARU_AGAIN;
}

nr_status nr_reply_feed(struct nr_reply *r, const char *data, size_t len, size_t *ret_used)
{
    size_t used = 0;
    while (!r->in_body) {
        size_t of_head = 0;
        nr_status st = feed_head(r, data + used, len - used, &of_head);
        used += of_head;
        if (st != NARU_OK) {
            *ret_used = used;
            return st;
        }
        if (r->status < 200) {
            nr_reply_reset(r);
        }
    }
    size_t body = (size_t)NR_MIN((uint64_t)(len - used), r->left_bytes);
    r->left_bytes -= body;
    *ret_used = used + body;
    return r->left_bytes == 0 ? NARU_OK : NARU_AGAIN;
}
