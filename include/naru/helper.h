/* Small helpers for plug-ins, header only: texts for people, options, numbers in options,
 * cancelled batches.
 *
 * Nothing here is part of the ABI; a plug-in may do without.
 */
#ifndef NARU_HELPER_H
#define NARU_HELPER_H

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "naru/backend.h"

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define NARU_PRINTF(fmt, first) __attribute__((format(printf, fmt, first)))
#else
#define NARU_PRINTF(fmt, first)
#endif

/* Writes a text into *err (which may be NULL or without room), cut at its end, and returns status:
 * return naru_fail(err, NARU_INVALID, "option \"%s\": ...", key). */
static inline naru_status naru_fail(naru_text *err, naru_status status, const char *fmt, ...)
    NARU_PRINTF(3, 4);
static inline naru_status naru_fail(naru_text *err, naru_status status, const char *fmt, ...)
{
    if (err && err->data && err->capacity > 0) {
        va_list ap;
        va_start(ap, fmt);
        (void)vsnprintf(err->data, err->capacity, fmt, ap);
        va_end(ap);
    }
    return status;
}

/* The value of `key`, or NULL. The last one wins. Borrowed. */
static inline const char *naru_option_get(const naru_option *options, uint32_t n, const char *key)
{
    const char *value = (const char *)0;
    uint32_t i;
    for (i = 0; i < n; i++) {
        if (strcmp(options[i].key, key) == 0) {
            value = options[i].value;
        }
    }
    return value;
}

/* A whole decimal number, "-" allowed; 0 when text is none or it does not fit. */
static inline int naru_parse_i64(const char *text, int64_t *ret)
{
    const int negative = text && text[0] == '-';
    const char *p = text ? text + negative : "";
    uint64_t n = 0;
    const uint64_t limit = (uint64_t)INT64_MAX + (uint64_t)negative;
    if (*p == 0) {
        return 0;
    }
    for (; *p; p++) {
        const uint64_t digit = (uint64_t)(*p - '0');
        if (*p < '0' || *p > '9' || n > (limit - digit) / 10) {
            return 0;
        }
        n = n * 10 + digit;
    }
    *ret = negative ? (int64_t)(0 - n) : (int64_t)n;
    return 1;
}

/* A number out of the options into *ret, which keeps its value when the option is absent. */
static inline naru_status naru_option_i64(const naru_option *options, uint32_t n, const char *key,
                                          int64_t low, int64_t high, int64_t *ret, naru_text *err)
{
    const char *value = naru_option_get(options, n, key);
    int64_t number;
    if (!value) {
        return NARU_OK;
    }
    if (!naru_parse_i64(value, &number) || number < low || number > high) {
        return naru_fail(err, NARU_INVALID,
                         "parameter \"%s\" is \"%.64s\"; a number from %lld to %lld is expected",
                         key, value, (long long)low, (long long)high);
    }
    *ret = number;
    return NARU_OK;
}

/* "1", "true", "on", "0", "false", "off"; *ret keeps its value when the option is absent. */
static inline naru_status naru_option_bool(const naru_option *options, uint32_t n, const char *key,
                                           int *ret, naru_text *err)
{
    const char *value = naru_option_get(options, n, key);
    if (!value) {
        return NARU_OK;
    }
    if (strcmp(value, "1") == 0 || strcmp(value, "true") == 0 || strcmp(value, "on") == 0) {
        *ret = 1;
    } else if (strcmp(value, "0") == 0 || strcmp(value, "false") == 0 ||
               strcmp(value, "off") == 0) {
        *ret = 0;
    } else {
        return naru_fail(err, NARU_INVALID,
                         "parameter \"%s\" is \"%.64s\"; \"true\" or \"false\" is expected", key,
                         value);
    }
    return NARU_OK;
}

/* 1 when nobody waits for the batch any more: every request is cancelled. While execute runs. */
static inline int naru_all_cancelled(const naru_host *host, const naru_batch *batch)
{
    uint32_t i;
    for (i = 0; i < batch->n_requests; i++) {
        if (!host->request_cancelled(batch, i)) {
            return 0;
        }
    }
    return 1;
}

#ifdef __cplusplus
}
#endif
#endif
