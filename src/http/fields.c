/* Header fields that the engine knows, request targets, reason phrases: what HTTP/1.1 and HTTP/2
 * share. Pure functions.
 *
 * Names are found by length first, then one memcmp: no hash, no table to build, and an unknown name
 * of a length that nobody has costs one branch. */
#include "http/engine.h"

#define IS(lit) (memcmp(n.ptr, "" lit, sizeof(lit) - 1) == 0)

enum nr_field nr_field_find(struct nr_str n)
{
    switch (n.len) {
    case 2:
        return IS("te") ? NR_FIELD_TE : NR_FIELD_OTHER;
    case 4:
        return IS("host") ? NR_FIELD_HOST : NR_FIELD_OTHER;
    case 6:
        return IS("accept")   ? NR_FIELD_ACCEPT
               : IS("origin") ? NR_FIELD_ORIGIN
               : IS("expect") ? NR_FIELD_EXPECT
               : IS("cookie") ? NR_FIELD_COOKIE
                              : NR_FIELD_OTHER;
    case 7:
        return IS("upgrade") ? NR_FIELD_HOP : NR_FIELD_OTHER;
    case 10:
        return IS("user-agent")   ? NR_FIELD_USER_AGENT
               : IS("connection") ? NR_FIELD_HOP
               : IS("keep-alive") ? NR_FIELD_HOP
                                  : NR_FIELD_OTHER;
    case 11:
        return IS("traceparent") ? NR_FIELD_TRACEPARENT : NR_FIELD_OTHER;
    case 12:
        return IS("content-type")   ? NR_FIELD_CONTENT_TYPE
               : IS("x-request-id") ? NR_FIELD_REQUEST_ID
               : IS("grpc-timeout") ? NR_FIELD_GRPC_TIMEOUT
                                    : NR_FIELD_OTHER;
    case 13:
        return IS("authorization")   ? NR_FIELD_AUTHORIZATION
               : IS("grpc-encoding") ? NR_FIELD_GRPC_ENCODING
                                     : NR_FIELD_OTHER;
    case 14:
        return IS("content-length")   ? NR_FIELD_CONTENT_LENGTH
               : IS("sec-fetch-site") ? NR_FIELD_SEC_FETCH_SITE
                                      : NR_FIELD_OTHER;
    case 15:
        return IS("accept-encoding") ? NR_FIELD_ACCEPT_ENCODING : NR_FIELD_OTHER;
    case 16:
        return IS("content-encoding")   ? NR_FIELD_CONTENT_ENCODING
               : IS("proxy-connection") ? NR_FIELD_HOP
                                        : NR_FIELD_OTHER;
    case 17:
        return IS("transfer-encoding") ? NR_FIELD_TRANSFER_ENCODING : NR_FIELD_OTHER;
    case 31:
        return IS("inference-header-content-length") ? NR_FIELD_INFERENCE_LENGTH : NR_FIELD_OTHER;
    default:
        return NR_FIELD_OTHER;
    }
}

/* What a client calls its request goes into logs and back to it: short and printable, or nobody's. */
static bool request_id_ok(struct nr_str s)
{
    for (size_t i = 0; i < s.len; i++) {
        if (s.ptr[i] < 0x20 || s.ptr[i] > 0x7e) {
            return false;
        }
    }
    return s.len > 0 && s.len <= NR_REQUEST_ID_MAX;
}

bool nr_field_known(struct nr_exchange *x, enum nr_field f, struct nr_str value)
{
    struct nr_known_headers *k = &x->known;
    if (f == NR_FIELD_REQUEST_ID && !request_id_ok(value)) {
        return true;
    }
    struct nr_str *slots[] = {
        &k->content_type,
        &k->content_encoding,
        &k->accept,
        &k->accept_encoding,
        &k->host,
        &k->origin,
        &k->inference_header_content_length,
        &k->authorization,
        &k->traceparent,
        &k->request_id,
        &k->user_agent,
        &k->sec_fetch_site,
    };
    struct nr_str *slot = slots[f - NR_FIELD_KNOWN_FIRST];
    if (!slot->ptr) {
        *slot = value;
        return true;
    }
    switch (f) {
    case NR_FIELD_ACCEPT: /* lists: the lines are one list (RFC 9110 section 5.3) */
    case NR_FIELD_ACCEPT_ENCODING:
    case NR_FIELD_CONTENT_ENCODING: {
        size_t len = slot->len + 2 + value.len;
        char *both = nr_arena_alloc(&x->arena, len);
        memcpy(both, slot->ptr, slot->len);
        memcpy(both + slot->len, ", ", 2);
        memcpy(both + slot->len + 2, value.ptr, value.len);
        *slot = (struct nr_str){both, len};
        return true;
    }
    case NR_FIELD_USER_AGENT: /* for logs only: the first one stands */
    case NR_FIELD_TRACEPARENT:
    case NR_FIELD_REQUEST_ID:
        return true;
    default:
        return false;
    }
}

bool nr_token_char(uint8_t ch)
{
    return (ch >= '0' && ch <= '9') || ((ch | 0x20) >= 'a' && (ch | 0x20) <= 'z') ||
           (ch && memchr("!#$%&'*+-.^_`|~", ch, 15));
}

nr_method nr_method_find(struct nr_str n)
{
    switch (n.len) {
    case 3:
        return IS("GET") ? NR_GET : IS("PUT") ? NR_PUT : NR_METHOD_OTHER;
    case 4:
        return IS("POST") ? NR_POST : IS("HEAD") ? NR_HEAD : NR_METHOD_OTHER;
    case 5:
        return IS("PATCH") ? NR_PATCH : NR_METHOD_OTHER;
    case 6:
        return IS("DELETE") ? NR_DELETE : NR_METHOD_OTHER;
    case 7:
        return IS("OPTIONS") ? NR_OPTIONS : NR_METHOD_OTHER;
    default:
        return NR_METHOD_OTHER;
    }
}

/* A byte of a name or an IPv4 address: unreserved, sub-delims, percent (RFC 3986 section 3.2.2). */
static bool name_char(unsigned char ch)
{
    bool alnum = (ch >= '0' && ch <= '9') || ((ch | 0x20) >= 'a' && (ch | 0x20) <= 'z');
    return alnum || (ch != 0 && memchr("-._~!$&'()*+,;=%", ch, 16));
}

/* "::1", "fe80::1%25eth0": what may stand between brackets. */
static bool address_bytes_ok(struct nr_str s)
{
    bool zone = false;
    for (size_t i = 0; i < s.len; i++) {
        unsigned char ch = (unsigned char)s.ptr[i];
        bool hex = (ch >= '0' && ch <= '9') || ((ch | 0x20) >= 'a' && (ch | 0x20) <= 'f');
        zone = zone || ch == '%';
        if (zone ? !name_char(ch) : !hex && ch != ':' && ch != '.') {
            return false;
        }
    }
    return s.len >= 2; /* "::" is the shortest */
}

bool nr_host_split(struct nr_str host, struct nr_str *ret_name)
{
    size_t end = 0;
    if (host.len > 0 && host.ptr[0] == '[') {
        int64_t close = nr_str_find(host, ']');
        if (close < 0 || !address_bytes_ok((struct nr_str){host.ptr + 1, (size_t)close - 1})) {
            return false;
        }
        end = (size_t)close + 1;
    } else {
        while (end < host.len && name_char((unsigned char)host.ptr[end])) {
            end++;
        }
    }
    *ret_name = (struct nr_str){host.ptr, end};
    if (end == host.len) {
        return true;
    }
    unsigned port = 0;
    if (host.ptr[end] != ':' || end == 0) {
        return false;
    }
    for (size_t i = end + 1; i < host.len; i++) {
        if (host.ptr[i] < '0' || host.ptr[i] > '9') {
            return false;
        }
        port = port * 10 + (unsigned)(host.ptr[i] - '0');
        if (port > UINT16_MAX) {
            return false;
        }
    }
    return true;
}

bool nr_host_valid(struct nr_str host)
{
    /* The last one that was valid: a client says the same in every request. */
    static _Thread_local struct {
        char text[64];
        size_t len;
    } last;
    struct nr_str name;
    if (host.len > 0 && host.len == last.len && memcmp(host.ptr, last.text, host.len) == 0) {
        return true;
    }
    if (!nr_host_split(host, &name)) {
        return false;
    }
    if (host.len > 0 && host.len <= sizeof(last.text)) {
        memcpy(last.text, host.ptr, host.len);
        last.len = host.len;
    }
    return true;
}

/* Whether every byte is one that a target may have: above the space, below DEL, no '#'. Eight at a time
 * (the usual tricks on the high bit of each byte), since this looks at every request. */
static bool target_bytes_ok(struct nr_str s)
{
    const uint64_t ones = UINT64_MAX / 255, high = ones * 0x80;
    uint64_t bad = 0;
    size_t i = 0;
    for (; s.len - i >= 8; i += 8) {
        uint64_t v;
        memcpy(&v, s.ptr + i, 8);
        uint64_t hash = v ^ (ones * '#');
        bad |= (v - ones * 0x21) & ~v; /* below 0x21 */
        bad |= (v + ones) | v;         /* above 0x7e */
        bad |= (hash - ones) & ~hash;  /* zero where '#' was */
    }
    for (; i < s.len; i++) {
        unsigned char ch = (unsigned char)s.ptr[i];
        bad |= ch <= 0x20 || ch >= 0x7f || ch == '#' ? high : 0;
    }
    return (bad & high) == 0;
}

bool nr_target_split(struct nr_str target, nr_method method, struct nr_str *ret_path,
                     struct nr_str *ret_query)
{
    *ret_query = (struct nr_str){NULL, 0};
    if (target.len == 1 && target.ptr[0] == '*') {
        *ret_path = target;
        return method == NR_OPTIONS;
    }
    if (target.len == 0 || target.ptr[0] != '/' || !target_bytes_ok(target)) {
        return false;
    }
    const char *mark = memchr(target.ptr, '?', target.len);
    size_t query = mark ? (size_t)(mark - target.ptr) : target.len;
    *ret_path = (struct nr_str){target.ptr, query};
    if (query < target.len) {
        *ret_query = (struct nr_str){target.ptr + query + 1, target.len - query - 1};
    }
    return true;
}

const char *nr_reason(int status)
{
    static const struct {
        int status;
        const char *text;
    } table[] = {
        {200, "OK"},
        {201, "Created"},
        {202, "Accepted"},
        {204, "No Content"},
        {206, "Partial Content"},
        {301, "Moved Permanently"},
        {302, "Found"},
        {303, "See Other"},
        {304, "Not Modified"},
        {307, "Temporary Redirect"},
        {308, "Permanent Redirect"},
        {400, "Bad Request"},
        {401, "Unauthorized"},
        {403, "Forbidden"},
        {404, "Not Found"},
        {405, "Method Not Allowed"},
        {406, "Not Acceptable"},
        {408, "Request Timeout"},
        {409, "Conflict"},
        {411, "Length Required"},
        {412, "Precondition Failed"},
        {413, "Content Too Large"},
        {414, "URI Too Long"},
        {415, "Unsupported Media Type"},
        {416, "Range Not Satisfiable"},
        {417, "Expectation Failed"},
        {421, "Misdirected Request"},
        {422, "Unprocessable Content"},
        {429, "Too Many Requests"},
        {431, "Request Header Fields Too Large"},
        {499, "Client Closed Request"},
        {500, "Internal Server Error"},
        {501, "Not Implemented"},
        {502, "Bad Gateway"},
        {503, "Service Unavailable"},
        {504, "Gateway Timeout"},
        {505, "HTTP Version Not Supported"},
        {507, "Insufficient Storage"},
    };
    for (size_t i = 0; i < NR_COUNT(table); i++) {
        if (table[i].status == status) {
            return table[i].text;
        }
    }
    return ""; /* the phrase is optional (RFC 9112 section 4) */
}

struct nr_str nr_error_body(struct nr_arena *a, const char *text)
{
    return nr_arena_fmt(a, "{\"error\":\"%s\"}", text);
}

static void put2(char *at, int n)
{
    at[0] = (char)('0' + n / 10 % 10);
    at[1] = (char)('0' + n % 10);
}

/* "date: Sun, 06 Nov 1994 08:49:37 GMT\r\n" (RFC 9110 section 5.6.7), renewed once a second. Civil
 * date from days after H. Hinnant, "chrono-compatible low-level date algorithms". */
void nr_date_line(int64_t wall_s, char out[NR_DATE_LINE_BYTES])
{
    static const char days[] = "ThuFriSatSunMonTueWed";
    static const char months[] = "JanFebMarAprMayJunJulAugSepOctNovDec";
    int64_t day = wall_s / 86400, sec = wall_s % 86400;
    int64_t z = day + 719468, era = z / 146097, doe = z % 146097;
    int64_t yoe = (doe - doe / 1460 + doe / 36524 - doe / 146096) / 365;
    int64_t doy = doe - (365 * yoe + yoe / 4 - yoe / 100), mp = (5 * doy + 2) / 153;
    int dom = (int)(doy - (153 * mp + 2) / 5 + 1), month = (int)(mp < 10 ? mp + 3 : mp - 9);
    int year = (int)(yoe + era * 400 + (month <= 2));
    char *d = out;
    memcpy(d, "date: Thu, 01 Jan 1970 00:00:00 GMT\r\n", NR_DATE_LINE_BYTES);
    memcpy(d + 6, days + 3 * (day % 7), 3);
    put2(d + 11, dom);
    memcpy(d + 14, months + 3 * (month - 1), 3);
    put2(d + 18, year / 100);
    put2(d + 20, year % 100);
    put2(d + 23, (int)(sec / 3600));
    put2(d + 26, (int)(sec / 60 % 60));
    put2(d + 29, (int)(sec % 60));
}
