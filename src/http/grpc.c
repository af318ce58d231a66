/* gRPC framing (see grpc.h). Why by hand: a unary call is one prefix of five bytes; the reader never
 * buffers the message, it says which bytes belong to it, so the session can put them where the app
 * wants them, and a stated length of 4 GiB costs nothing until its bytes come.
 *
 * Invariants: left <= len; once complete every further byte is NR_GRPC_SECOND. */
#include "http/grpc.h"

bool nr_grpc_is(struct nr_str s)
{
    static const struct nr_str type = NR_STR_INIT("application/grpc");
    return s.len >= type.len && nr_str_eq_nocase((struct nr_str){s.ptr, type.len}, type) &&
           (s.len == type.len || s.ptr[type.len] == '+' || s.ptr[type.len] == ';');
}

bool nr_grpc_timeout(struct nr_str s, int64_t *ret_ns)
{
    if (s.len < 2 || s.len > 9) {
        return false;
    }
    int64_t unit;
    switch (s.ptr[s.len - 1]) {
    case 'H':
        unit = INT64_C(3600000000000);
        break;
    case 'M':
        unit = INT64_C(60000000000);
        break;
    case 'S':
        unit = INT64_C(1000000000);
        break;
    case 'm':
        unit = 1000000;
        break;
    case 'u':
        unit = 1000;
        break;
    case 'n':
        unit = 1;
        break;
    default:
        return false;
    }
    uint64_t n;
    if (!nr_str_to_u64((struct nr_str){s.ptr, s.len - 1}, &n)) {
        return false;
    }
    if (__builtin_mul_overflow((int64_t)n, unit, ret_ns)) {
        *ret_ns = INT64_MAX; /* 99999999H is longer than the clock */
    }
    return true;
}

enum nr_grpc_event nr_grpc_read(struct nr_grpc_reader *r, const void *data, size_t len,
                                uint64_t limit, struct nr_str *ret)
{
    const uint8_t *p = data;
    *ret = (struct nr_str){NULL, 0};
    if (r->have < NR_GRPC_PREFIX_BYTES) {
        while (len > 0 && r->have < NR_GRPC_PREFIX_BYTES) {
            r->prefix[r->have++] = *p++;
            len--;
        }
        if (r->have < NR_GRPC_PREFIX_BYTES) {
            return NR_GRPC_MORE;
        }
        if (r->prefix[0] != 0) {
            return r->prefix[0] == 1 ? NR_GRPC_COMPRESSED : NR_GRPC_BAD_FLAG;
        }
        r->len = (uint32_t)r->prefix[1] << 24 | (uint32_t)r->prefix[2] << 16 |
                 (uint32_t)r->prefix[3] << 8 | r->prefix[4];
        if (r->len > limit) {
            return NR_GRPC_TOO_LARGE;
        }
        r->left = r->len;
    }
    size_t n = len < r->left ? len : r->left;
    *ret = (struct nr_str){(const char *)p, n};
    r->left -= (uint32_t)n;
    return n < len ? NR_GRPC_SECOND : NR_GRPC_MORE;
}

size_t nr_grpc_message(char *out, struct nr_str s)
{
    static const char hex[] = "0123456789ABCDEF";
    size_t n = 0;
    for (size_t i = 0; i < s.len; i++) {
        unsigned char ch = (unsigned char)s.ptr[i];
        if (ch >= 0x20 && ch < 0x7f && ch != '%') {
            out[n++] = (char)ch;
        } else {
            out[n++] = '%';
            out[n++] = hex[ch >> 4];
            out[n++] = hex[ch & 15];
        }
    }
    return n;
}

const char *nr_grpc_status_name(int status)
{
    static const char *const names[] = {"OK",
                                        "CANCELLED",
                                        "UNKNOWN",
                                        "INVALID_ARGUMENT",
                                        "DEADLINE_EXCEEDED",
                                        "NOT_FOUND",
                                        "ALREADY_EXISTS",
                                        "PERMISSION_DENIED",
                                        "RESOURCE_EXHAUSTED",
                                        "FAILED_PRECONDITION",
                                        "ABORTED",
                                        "OUT_OF_RANGE",
                                        "UNIMPLEMENTED",
                                        "INTERNAL",
                                        "UNAVAILABLE",
                                        "DATA_LOSS",
                                        "UNAUTHENTICATED"};
    return names[status >= 0 && (size_t)status < NR_COUNT(names) ? status : NR_GRPC_UNKNOWN];
}
