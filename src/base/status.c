/* Status table look-ups and the error text.
 *
 * All look-ups go through one switch made from NARU_STATUS_MAP, so a new status needs one line in
 * the public header and nothing here. A number that is no status (a plug-in's mistake) reads as
 * NARU_UNKNOWN rather than as success.
 *
 * Invariants
 * 1. err->text is NUL-terminated and never ends in the middle of a UTF-8 character that was whole.
 * 2. The text is formatted aside first: arguments may point into the err that is being filled.
 * Threads: no state; an nr_err belongs to one thread at a time.
 */
#include "base/status.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/str.h"

struct status_row {
    const char *name;
    const char *text;
    int http;
    int grpc;
};

static struct status_row row_of(nr_status status)
{
    switch (status) {
#define STATUS_CASE(symbol, number, http, grpc, text) \
    case number:                                      \
        return (struct status_row){#symbol, text, http, grpc};
        NARU_STATUS_MAP(STATUS_CASE)
#undef STATUS_CASE
    default:
        return row_of(NARU_UNKNOWN);
    }
}

/* Copies `text` into the error, cut to what fits. */
static void set_text(struct nr_err *err, const char *text, size_t len)
{
    size_t fit = nr_str_utf8_fit((struct nr_str){text, len}, NR_ERR_TEXT_MAX - 1);
    memcpy(err->text, text, fit);
    err->text[fit] = '\0';
}

nr_status(nr_fail)(struct nr_err *err, nr_status status, const char *fmt, ...)
{
    if (err == NULL) {
        return status;
    }
    /* Four bytes more than fits, so that the cut sees the whole last character. */
    nr_uninit char text[NR_ERR_TEXT_MAX + 4];
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    if (n < 0) {
        text[0] = '\0';
    }
    set_text(err, text, strlen(text));
    err->status = status;
    return status;
}

void nr_err_prefix(struct nr_err *err, const char *fmt, ...)
{
    if (err == NULL) {
        return;
    }
    nr_uninit char text[2 * NR_ERR_TEXT_MAX];
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(text, NR_ERR_TEXT_MAX, fmt, args);
    va_end(args);
    if (n < 0) {
        text[0] = '\0';
    }
    size_t len = nr_str_utf8_fit((struct nr_str){text, strlen(text)}, NR_ERR_TEXT_MAX - 3);
    memcpy(text + len, ": ", 2);
    len += 2;
    size_t old = strnlen(err->text, NR_ERR_TEXT_MAX - 1);
    memcpy(text + len, err->text, old);
    set_text(err, text, len + old);
}

const char *nr_status_text(nr_status status)
{
    return row_of(status).text;
}

const char *nr_status_name(nr_status status)
{
    return row_of(status).name;
}

int nr_status_http(nr_status status)
{
    return row_of(status).http;
}

int nr_status_grpc(nr_status status)
{
    return row_of(status).grpc;
}

nr_status nr_status_from_errno(int error)
{
    switch (error) {
    case 0:
        return NARU_OK;
    case ENOENT:
    case ENOTDIR:
        return NARU_NOT_FOUND;
    case EEXIST:
        return NARU_EXISTS;
    case EACCES:
    case EPERM:
    case EROFS:
    case ELOOP: /* a symbolic link where none is allowed */
    case EXDEV: /* openat2: the path leaves its root */
        return NARU_DENIED;
    case EINVAL:
    case EISDIR:
    case ENAMETOOLONG:
        return NARU_INVALID;
    case ENOMEM:
    case ENOBUFS:
        return NARU_NOMEM;
    case EMFILE:
    case ENFILE:
    case ENOSPC:
    case EDQUOT:
        return NARU_EXHAUSTED;
    case EFBIG:
        return NARU_TOO_LARGE;
    case EAGAIN:
        return NARU_AGAIN;
    case ETIMEDOUT:
        return NARU_TIMEOUT;
    case ENOSYS:
    case EOPNOTSUPP:
        return NARU_UNSUPPORTED;
    case ECONNREFUSED:
    case ECONNRESET:
    case ENETUNREACH:
    case EHOSTUNREACH:
        return NARU_UNAVAILABLE;
    default:
        return NARU_IO;
    }
}

void nr_assert_failed(const char *cond, const char *file, int line)
{
    fprintf(stderr, "naru: %s:%d: this must hold but does not: %s\n", file, line, cond);
    abort();
}
