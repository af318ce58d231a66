/* The pull scanner: see json_scan.h for the contract.
 *
 * Why our own: a tree of a 3 MB body costs more than the parse, and the numbers of a tensor belong in
 * its typed array at once. Tensor data is read by infer_json.c with this scanner's position; here is
 * everything around it.
 *
 * Invariants
 *  1. start <= p <= end; p only grows.
 *  2. Every byte is looked at a bounded number of times, whatever the input: linear time.
 *  3. depth counts open containers; members[d] those of the object at depth d + 1.
 *  4. After an error the scanner is not used again.
 * One thread at a time.
 */
#include "codec/json_scan.h"

#include <stdio.h>

#include "base/map.h"
#include "codec/float.h"

void nr_json_init(struct nr_json *j, struct nr_str text, struct nr_arena *arena, struct nr_err *err)
{
    j->start = j->p = text.ptr ? text.ptr : "";
    j->end = j->start + text.len;
    j->arena = arena;
    j->err = err;
    j->depth = 0;
    j->first = false;
    j->nonfinite = false;
}

nr_status nr_json_fail_at(struct nr_json *j, const char *at, const char *expected)
{
    size_t offset = (size_t)(at - j->start);
    if (at >= j->end) {
        return nr_fail(j->err, NARU_INVALID,
                       "invalid JSON at byte %zu: expected %s, but the text ends there", offset,
                       expected);
    }
    unsigned char c = (unsigned char)*at;
    if (c < 0x20 || c >= 0x7f) {
        return nr_fail(j->err, NARU_INVALID,
                       "invalid JSON at byte %zu: expected %s, got byte 0x%02x", offset, expected,
                       c);
    }
    return nr_fail(j->err, NARU_INVALID, "invalid JSON at byte %zu: expected %s, got '%c'", offset,
                   expected, c);
}

nr_status nr_json_fail(struct nr_json *j, const char *expected)
{
    return nr_json_fail_at(j, j->p, expected);
}

static nr_status fail_depth(struct nr_json *j)
{
    return nr_fail(j->err, NARU_INVALID,
                   "invalid JSON at byte %zu: nested deeper than %d levels, which is the limit",
                   (size_t)(j->p - j->start), NR_JSON_DEPTH_MAX);
}

nr_status nr_json_object(struct nr_json *j)
{
    if (nr_json_peek(j) != '{') {
        return nr_json_fail(j, "an object");
    }
    if (j->depth == NR_JSON_DEPTH_MAX) {
        return fail_depth(j);
    }
    j->members[j->depth++] = 0;
    j->first = true;
    j->p++;
    return NARU_OK;
}

nr_status nr_json_array(struct nr_json *j)
{
    if (nr_json_peek(j) != '[') {
        return nr_json_fail(j, "an array");
    }
    if (j->depth == NR_JSON_DEPTH_MAX) {
        return fail_depth(j);
    }
    j->depth++;
    j->first = true;
    j->p++;
    return NARU_OK;
}

/* Steps behind the ',' that parts items, or leaves the object or array at its end (*more false). c is
 * the first character behind. */
static inline nr_status next_item(struct nr_json *j, char end, const char *expected, bool *more,
                                  char *c)
{
    *c = nr_json_peek(j);
    *more = *c != end;
    if (!*more) {
        j->p++;
        j->depth--;
    } else if (!j->first) {
        if (*c != ',') {
            return nr_json_fail(j, expected);
        }
        j->p++;
        *c = nr_json_peek(j);
    }
    j->first = false;
    return NARU_OK;
}

nr_status nr_json_member(struct nr_json *j, bool *more, struct nr_str *key)
{
    char c;
    nr_status st = next_item(j, '}', "',' or '}'", more, &c);
    if (st != NARU_OK || !*more) {
        return st;
    }
    if (c != '"') {
        return nr_json_fail(j, "a key in quotes");
    }
    if (++j->members[j->depth - 1] > NR_JSON_KEYS_MAX) {
        return nr_fail(
            j->err, NARU_INVALID,
            "invalid JSON at byte %zu: more than %d keys in one object, which is the limit",
            (size_t)(j->p - j->start), NR_JSON_KEYS_MAX);
    }
    st = nr_json_string(j, key);
    if (st != NARU_OK) {
        return st;
    }
    if (nr_json_peek(j) != ':') {
        return nr_json_fail(j, "':'");
    }
    j->p++;
    return NARU_OK;
}

nr_status nr_json_element(struct nr_json *j, bool *more)
{
    char c;
    bool behind = !j->first;
    nr_status st = next_item(j, ']', "',' or ']'", more, &c);
    if (st == NARU_OK && *more && behind && c == ']') {
        return nr_json_fail(j, "a value behind ','");
    }
    return st;
}

/* ---------------------------------------------------------------------------------------------
 * Strings
 */

static int hex4(const char *p, const char *end)
{
    if (end - p < 4) {
        return -1;
    }
    int value = 0;
    for (int i = 0; i < 4; i++) {
        int c = (unsigned char)p[i];
        int digit = c >= '0' && c <= '9'                     ? c - '0'
                    : (c | 0x20) >= 'a' && (c | 0x20) <= 'f' ? (c | 0x20) - 'a' + 10
                                                             : -1;
        if (digit < 0) {
            return -1;
        }
        value = value << 4 | digit;
    }
    return value;
}

/* The escape at p (the backslash): its length in the text and in UTF-8; 0 when it is none. */
static unsigned escape_scan(const char *p, const char *end, unsigned *n_utf8, uint32_t *code)
{
    *n_utf8 = 1;
    if (end - p < 2) {
        return 0;
    }
    switch (p[1]) {
    case '"':
    case '\\':
    case '/':
        *code = (unsigned char)p[1];
        return 2;
    case 'b':
        *code = '\b';
        return 2;
    case 'f':
        *code = '\f';
        return 2;
    case 'n':
        *code = '\n';
        return 2;
    case 'r':
        *code = '\r';
        return 2;
    case 't':
        *code = '\t';
        return 2;
    case 'u':
        break;
    default:
        return 0;
    }
    int unit = hex4(p + 2, end);
    if (unit < 0 || (unit >= 0xdc00 && unit <= 0xdfff)) {
        return 0;
    }
    if (unit >= 0xd800 && unit <= 0xdbff) { /* the first half of a surrogate pair */
        int low = end - p >= 12 && p[6] == '\\' && p[7] == 'u' ? hex4(p + 8, end) : -1;
        if (low < 0xdc00 || low > 0xdfff) {
            return 0;
        }
        *code = 0x10000u + (((uint32_t)unit - 0xd800u) << 10) + ((uint32_t)low - 0xdc00u);
        *n_utf8 = 4;
        return 12;
    }
    *code = (uint32_t)unit;
    *n_utf8 = unit < 0x80 ? 1 : unit < 0x800 ? 2 : 3;
    return 6;
}

/* The first byte of a string at p that needs a look: a quote, a backslash, a control character, one
 * above 0x7f, or the end. The lowest mark of a word is exact: borrows only reach upwards. */
static inline const char *find_special(const char *p, const char *end)
{
    const uint64_t ones = 0x0101010101010101u;
    const uint64_t high = 0x8080808080808080u;
    while (end - p >= 8) {
        uint64_t v;
        memcpy(&v, p, sizeof(v));
        uint64_t quote = v ^ (ones * '"');
        uint64_t slash = v ^ (ones * '\\');
        uint64_t marks = ((quote - ones) | (slash - ones) | (v - ones * 0x20) | v) & high;
        if (marks != 0) {
            return p + __builtin_ctzll(marks) / 8;
        }
        p += 8;
    }
    while (p < end && *p != '"' && *p != '\\' && (unsigned char)(*p - 0x20) < 0x60) {
        p++;
    }
    return p;
}

nr_status nr_json_string_scan(struct nr_json *j, const char **at, size_t *n_escaped)
{
    const char *begin = *at;
    const char *p = begin;
    const char *end = j->end;
    bool ascii = true;
    size_t escaped = 0;
    for (;;) {
        p = find_special(p, end);
        if (p == end) {
            return nr_json_fail_at(j, p, "'\"' at the end of a string");
        }
        unsigned char c = (unsigned char)*p;
        if (c == '"') {
            break;
        }
        if (c == '\\') {
            unsigned n_utf8;
            uint32_t code;
            unsigned n = escape_scan(p, end, &n_utf8, &code);
            if (n == 0) {
                return nr_json_fail_at(j, p, "a valid escape (no lone surrogate)");
            }
            escaped += n - n_utf8;
            p += n;
        } else if (c < 0x20) {
            return nr_json_fail_at(j, p, "control characters to be escaped");
        } else {
            ascii = false;
            while (p < end && (unsigned char)*p >= 0x80) {
                p++;
            }
        }
    }
    if (!ascii && !nr_str_is_utf8((struct nr_str){begin, (size_t)(p - begin)})) {
        return nr_json_fail_at(j, begin, "strings in valid UTF-8");
    }
    *at = p + 1;
    *n_escaped = escaped;
    return NARU_OK;
}

static char *utf8_put(uint32_t code, char *out)
{
    if (code < 0x80) {
        *out++ = (char)code;
    } else if (code < 0x800) {
        *out++ = (char)(0xc0 | code >> 6);
        *out++ = (char)(0x80 | (code & 0x3f));
    } else if (code < 0x10000) {
        *out++ = (char)(0xe0 | code >> 12);
        *out++ = (char)(0x80 | (code >> 6 & 0x3f));
        *out++ = (char)(0x80 | (code & 0x3f));
    } else {
        *out++ = (char)(0xf0 | code >> 18);
        *out++ = (char)(0x80 | (code >> 12 & 0x3f));
        *out++ = (char)(0x80 | (code >> 6 & 0x3f));
        *out++ = (char)(0x80 | (code & 0x3f));
    }
    return out;
}

char *nr_json_unescape(const char *from, const char *to, char *out)
{
    while (from < to) {
        const char *slash = memchr(from, '\\', (size_t)(to - from));
        const char *stop = slash ? slash : to;
        memcpy(out, from, (size_t)(stop - from));
        out += stop - from;
        from = stop;
        if (slash) {
            unsigned n_utf8;
            uint32_t code = 0;
            unsigned n = escape_scan(slash, to, &n_utf8, &code);
            NR_ASSERT(n > 0);
            out = utf8_put(code, out);
            from += n;
        }
    }
    return out;
}

nr_status nr_json_string(struct nr_json *j, struct nr_str *ret)
{
    if (nr_json_peek(j) != '"') {
        return nr_json_fail(j, "a string");
    }
    const char *begin = j->p + 1;
    const char *at = begin;
    size_t n_escaped = 0;
    nr_status st = nr_json_string_scan(j, &at, &n_escaped);
    if (st != NARU_OK) {
        return st;
    }
    j->p = at;
    size_t len = (size_t)(at - 1 - begin);
    *ret = (struct nr_str){begin, len};
    if (n_escaped > 0) {
        char *out = nr_arena_try_alloc(j->arena, len - n_escaped);
        if (out == NULL) {
            return nr_fail(j->err, NARU_NOMEM, "no memory for a string of %zu bytes", len);
        }
        nr_json_unescape(begin, at - 1, out);
        *ret = (struct nr_str){out, len - n_escaped};
    }
    return NARU_OK;
}

/* ---------------------------------------------------------------------------------------------
 * Numbers and words
 */

static bool take_word(struct nr_json *j, const char *word)
{
    size_t n = strlen(word);
    if ((size_t)(j->end - j->p) < n || memcmp(j->p, word, n) != 0) {
        return false;
    }
    j->p += n;
    return true;
}

nr_status nr_json_bool(struct nr_json *j, bool *ret)
{
    char c = nr_json_peek(j);
    if (c == 't' && take_word(j, "true")) {
        *ret = true;
    } else if (c == 'f' && take_word(j, "false")) {
        *ret = false;
    } else {
        return nr_json_fail(j, "true or false");
    }
    return NARU_OK;
}

nr_status nr_json_u64(struct nr_json *j, uint64_t *ret)
{
    bool negative;
    nr_json_space(j);
    const char *at = j->p;
    nr_scan r = nr_integer_scan(&at, j->end, &negative, ret);
    if (r == NR_SCAN_OK && !negative) {
        j->p = at;
        return NARU_OK;
    }
    return nr_json_fail(j, "an integer from 0 to 18446744073709551615");
}

nr_status nr_json_i64(struct nr_json *j, int64_t *ret)
{
    bool negative;
    uint64_t magnitude;
    nr_json_space(j);
    const char *at = j->p;
    nr_scan r = nr_integer_scan(&at, j->end, &negative, &magnitude);
    if (r == NR_SCAN_OK && magnitude <= (uint64_t)INT64_MAX + negative) {
        *ret = negative ? (int64_t)(0 - magnitude) : (int64_t)magnitude;
        j->p = at;
        return NARU_OK;
    }
    return nr_json_fail(j, "an integer of 64 bits");
}

nr_status nr_json_double(struct nr_json *j, double *ret)
{
    nr_json_space(j);
    const char *at = j->p;
    switch (nr_double_scan(&at, j->end, ret)) {
    case NR_SCAN_OK:
        j->p = at;
        return NARU_OK;
    case NR_SCAN_RANGE:
        return nr_json_fail(j, "a number that a double can hold");
    case NR_SCAN_SYNTAX:
        break;
    }
    return nr_json_fail_at(j, at, "a number");
}

static nr_status skip_scalar(struct nr_json *j, char c)
{
    double ignored;
    if (c == '"') {
        size_t n_escaped;
        const char *at = j->p + 1;
        nr_status st = nr_json_string_scan(j, &at, &n_escaped);
        if (st == NARU_OK) {
            j->p = at;
        }
        return st;
    }
    if (c == '-' || (c >= '0' && c <= '9')) {
        const char *at = j->p; /* a number too large for a double is still a number here */
        if (nr_double_scan(&at, j->end, &ignored) == NR_SCAN_SYNTAX) {
            if (j->nonfinite && nr_nonfinite_scan(&j->p, j->end, &ignored)) {
                return NARU_OK;
            }
            return nr_json_fail_at(j, at, "a digit");
        }
        j->p = at;
        return NARU_OK;
    }
    if ((c == 't' && take_word(j, "true")) || (c == 'f' && take_word(j, "false")) ||
        (c == 'n' && take_word(j, "null")) ||
        (j->nonfinite && nr_nonfinite_scan(&j->p, j->end, &ignored))) {
        return NARU_OK;
    }
    return nr_json_fail(j, "a value");
}

nr_status nr_json_skip(struct nr_json *j, struct nr_str *ret)
{
    nr_json_space(j);
    const char *begin = j->p;
    unsigned outer = j->depth;
    bool outer_first = j->first;
    uint64_t is_object = 0; /* bit d: the container at depth d + 1 is one */
    nr_status st = NARU_OK;
    do {
        bool more = true;
        if (j->depth > outer) {
            struct nr_str key;
            st = is_object >> (j->depth - 1) & 1 ? nr_json_member(j, &more, &key)
                                                 : nr_json_element(j, &more);
        }
        if (st != NARU_OK || !more) {
            continue;
        }
        char c = nr_json_peek(j);
        if (c == '{') {
            st = nr_json_object(j);
            is_object |= st == NARU_OK ? UINT64_C(1) << (j->depth - 1) : 0;
        } else if (c == '[') {
            st = nr_json_array(j);
            is_object &= st == NARU_OK ? ~(UINT64_C(1) << (j->depth - 1)) : UINT64_MAX;
        } else {
            st = skip_scalar(j, c);
        }
    } while (st == NARU_OK && j->depth > outer);
    j->first = outer_first;
    if (st == NARU_OK && ret) {
        *ret = (struct nr_str){begin, (size_t)(j->p - begin)};
    }
    return st;
}

nr_status nr_json_done(struct nr_json *j)
{
    nr_json_space(j);
    return j->p == j->end ? NARU_OK : nr_json_fail(j, "nothing behind the value");
}

/* ---------------------------------------------------------------------------------------------
 * Duplicate keys
 */

#define KEYS_SLOTS ((size_t)2 * NR_JSON_KEYS_MAX) /* a power of two, never more than half full */

static void slot_put(struct nr_json_keys *k, unsigned index)
{
    size_t at = nr_hash(k->keys[index].ptr, k->keys[index].len) & (KEYS_SLOTS - 1);
    while (k->slots[at] != 0) {
        at = (at + 1) & (KEYS_SLOTS - 1);
    }
    k->slots[at] = (uint16_t)(index + 1);
}

static bool has_key(const struct nr_json_keys *k, struct nr_str key)
{
    if (k->slots == NULL) {
        for (unsigned i = 0; i < k->n; i++) {
            if (nr_str_eq(k->keys[i], key)) {
                return true;
            }
        }
        return false;
    }
    for (size_t at = nr_hash(key.ptr, key.len) & (KEYS_SLOTS - 1); k->slots[at] != 0;
         at = (at + 1) & (KEYS_SLOTS - 1)) {
        if (nr_str_eq(k->keys[k->slots[at] - 1], key)) {
            return true;
        }
    }
    return false;
}

nr_status nr_json_keys_add(struct nr_json_keys *k, struct nr_json *j, struct nr_str key)
{
    if (has_key(k, key)) {
        return nr_fail(j->err, NARU_INVALID,
                       "invalid JSON at byte %zu: key \"" NR_STR_FMT
                       "\" came before in the same object",
                       (size_t)(j->p - j->start), NR_STR_ARG(key));
    }
    if (k->n == k->capacity) { /* the scanner counts the members: the table cannot overflow */
        NR_ASSERT(k->n < NR_JSON_KEYS_MAX);
        struct nr_str *keys = nr_arena_try_array(j->arena, NR_JSON_KEYS_MAX, sizeof(*keys));
        k->slots = nr_arena_try_array(j->arena, KEYS_SLOTS, sizeof(*k->slots));
        if (keys == NULL || k->slots == NULL) {
            return nr_fail(j->err, NARU_NOMEM, "no memory for the keys of an object");
        }
        memcpy(keys, k->keys, k->n * sizeof(*keys));
        k->keys = keys;
        k->capacity = NR_JSON_KEYS_MAX;
        for (unsigned i = 0; i < k->n; i++) {
            slot_put(k, i);
        }
    }
    k->keys[k->n++] = key;
    if (k->slots != NULL) {
        slot_put(k, k->n - 1);
    }
    return NARU_OK;
}
