/* Status codes shared by the server, its plug-ins and embedding programs.
 *
 * One table: symbol, number, HTTP status, gRPC code, short text. A status is 0 (NARU_OK) or a
 * negative number; positive values are never statuses, so a function may return a count or a
 * status. Numbers are part of the ABI: append only.
 * Sources: RFC 9110 section 15 (HTTP), gRPC's status code list.
 */
#ifndef NARU_STATUS_H
#define NARU_STATUS_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* symbol, number, HTTP, gRPC, text */
#define NARU_STATUS_MAP(X)                                            \
    X(NARU_OK, 0, 200, 0, "ok")                                       \
    X(NARU_INVALID, -1, 400, 3, "invalid argument")                   \
    X(NARU_NOT_FOUND, -2, 404, 5, "not found")                        \
    X(NARU_EXISTS, -3, 409, 6, "already exists")                      \
    X(NARU_DENIED, -4, 403, 7, "permission denied")                   \
    X(NARU_UNAUTHENTICATED, -5, 401, 16, "unauthenticated")           \
    X(NARU_UNSUPPORTED, -6, 501, 12, "unsupported")                   \
    X(NARU_UNAVAILABLE, -7, 503, 14, "unavailable")                   \
    X(NARU_EXHAUSTED, -8, 429, 8, "resource exhausted")               \
    X(NARU_TOO_LARGE, -9, 413, 8, "too large")                        \
    X(NARU_DEADLINE, -10, 504, 4, "deadline exceeded")                \
    X(NARU_CANCELLED, -11, 499, 1, "cancelled")                       \
    X(NARU_INTERNAL, -12, 500, 13, "internal error")                  \
    X(NARU_UNKNOWN, -13, 500, 2, "unknown error")                     \
    X(NARU_NOMEM, -14, 503, 8, "out of memory")                       \
    X(NARU_IO, -15, 500, 13, "input/output error")                    \
    X(NARU_AGAIN, -16, 503, 14, "try again")                          \
    X(NARU_METHOD, -17, 405, 12, "method not allowed")                \
    X(NARU_MEDIA_TYPE, -18, 415, 3, "unsupported media type")         \
    X(NARU_TIMEOUT, -19, 408, 4, "request timeout")                   \
    X(NARU_HEADERS_TOO_LARGE, -20, 431, 8, "header fields too large") \
    X(NARU_PENDING, -21, 500, 13, "pending")                          \
    X(NARU_PRECONDITION, -22, 400, 9, "failed precondition")          \
    X(NARU_NOT_ACCEPTABLE, -23, 406, 3, "not acceptable")

enum naru_status_code {
#define NARU_STATUS_ENUM(symbol, number, http, grpc, text) symbol = (number),
    NARU_STATUS_MAP(NARU_STATUS_ENUM)
#undef NARU_STATUS_ENUM
};

/* Kept as a fixed-width integer: enums have no ABI size of their own. */
typedef int32_t naru_status;

#ifdef __cplusplus
}
#endif
#endif
