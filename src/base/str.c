/* String views, number parsers, UTF-8, and the growable text.
 *
 * The parsers accept one exact grammar and nothing around it: configuration, headers and query
 * parts come from people and peers, and strtol's "skip blanks, take what looks like a number,
 * wrap around" has no place there. strtod_l is used once, behind a grammar check and with the C
 * locale, because it rounds correctly and this parser is for configuration only (tensors in JSON
 * have a fast one in codec).
 *
 * Invariants
 * 1. A view with len 0 may have a NULL ptr; no function dereferences or memcmp's it then.
 * 2. A parser writes its result on success only.
 * 3. nr_text: len <= cap, and capacity > len whenever data is not NULL (room for the NUL).
 * Threads: no state but the C locale object, made once.
 */
#include "base/str.h"

#include <limits.h>
#include <locale.h>
#include <math.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>

#include "base/mem.h"

/* ASCII only, whatever the locale: protocol names are ASCII. */
static char lower(char c)
{
    return c >= 'A' && c <= 'Z' ? (char)(c + ('a' - 'A')) : c;
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

bool nr_str_eq_nocase(struct nr_str a, struct nr_str b)
{
    if (a.len != b.len) {
        return false;
    }
    for (size_t i = 0; i < a.len; i++) {
        if (lower(a.ptr[i]) != lower(b.ptr[i])) {
            return false;
        }
    }
    return true;
}

bool nr_str_starts(struct nr_str s, struct nr_str prefix)
{
    return s.len >= prefix.len && nr_str_eq((struct nr_str){s.ptr, prefix.len}, prefix);
}

bool nr_str_ends(struct nr_str s, struct nr_str suffix)
{
    if (s.len < suffix.len || suffix.len == 0) {
        return suffix.len == 0;
    }
    return memcmp(s.ptr + s.len - suffix.len, suffix.ptr, suffix.len) == 0;
}

struct nr_str nr_str_trim(struct nr_str s)
{
    while (s.len > 0 && (s.ptr[0] == ' ' || s.ptr[0] == '\t')) {
        s.ptr++;
        s.len--;
    }
    while (s.len > 0 && (s.ptr[s.len - 1] == ' ' || s.ptr[s.len - 1] == '\t')) {
        s.len--;
    }
    return s;
}

int64_t nr_str_find(struct nr_str s, char c)
{
    const char *at = s.len > 0 ? memchr(s.ptr, c, s.len) : NULL;
    return at != NULL ? at - s.ptr : -1;
}

struct nr_str nr_str_cut(struct nr_str s, char sep, struct nr_str *rest)
{
    int64_t at = nr_str_find(s, sep);
    if (at < 0) {
        *rest = (struct nr_str){NULL, 0};
        return s;
    }
    *rest = (struct nr_str){s.ptr + at + 1, s.len - (size_t)at - 1};
    return (struct nr_str){s.ptr, (size_t)at};
}

bool nr_str_to_u64(struct nr_str s, uint64_t *ret)
{
    uint64_t value = 0;
    if (s.len == 0) {
        return false;
    }
    for (size_t i = 0; i < s.len; i++) {
        if (!is_digit(s.ptr[i]) || __builtin_mul_overflow(value, 10, &value) ||
            __builtin_add_overflow(value, (uint64_t)(s.ptr[i] - '0'), &value)) {
            return false;
        }
    }
    *ret = value;
    return true;
}

bool nr_str_to_i64(struct nr_str s, int64_t *ret)
{
    bool is_negative = s.len > 0 && s.ptr[0] == '-';
    if (is_negative) {
        s.ptr++;
        s.len--;
    }
    uint64_t magnitude;
    if (!nr_str_to_u64(s, &magnitude) || magnitude > (uint64_t)INT64_MAX + is_negative) {
        return false;
    }
    /* Unsigned negation, so that INT64_MIN needs no case of its own. */
    *ret = (int64_t)(is_negative ? 0 - magnitude : magnitude);
    return true;
}

/* Index behind the digits that begin at `at`. */
static size_t skip_digits(struct nr_str s, size_t at)
{
    while (at < s.len && is_digit(s.ptr[at])) {
        at++;
    }
    return at;
}

/* What strtod takes beyond this (blanks, hexadecimal, "inf", "nan", "1e" read as 1) is refused
 * here, so that a typing error in a configuration is one. */
static bool has_double_grammar(struct nr_str s)
{
    size_t at = s.len > 0 && s.ptr[0] == '-' ? 1 : 0;
    size_t whole = at;
    at = skip_digits(s, at);
    size_t n_digits = at - whole;
    if (at < s.len && s.ptr[at] == '.') {
        size_t fraction = at + 1;
        at = skip_digits(s, fraction);
        n_digits += at - fraction;
    }
    if (n_digits == 0) {
        return false;
    }
    if (at < s.len && lower(s.ptr[at]) == 'e') {
        at++;
        if (at < s.len && (s.ptr[at] == '+' || s.ptr[at] == '-')) {
            at++;
        }
        size_t exponent = at;
        at = skip_digits(s, at);
        if (at == exponent) {
            return false;
        }
    }
    return at == s.len;
}

static locale_t c_locale;
static pthread_once_t c_locale_once = PTHREAD_ONCE_INIT;

static void make_c_locale(void)
{
    c_locale = newlocale(LC_ALL_MASK, "C", (locale_t)0);
    NR_ASSERT(c_locale != (locale_t)0);
}

bool nr_str_to_double(struct nr_str s, double *ret)
{
    nr_uninit char text[1024];
    if (s.len >= sizeof(text) || !has_double_grammar(s)) {
        return false;
    }
    memcpy(text, s.ptr, s.len);
    text[s.len] = '\0';
    pthread_once(&c_locale_once, make_c_locale);
    char *end;
    double value = strtod_l(text, &end, c_locale); /* lint: allow strtod */
    if (end != text + s.len || !isfinite(value)) {
        return false;
    }
    *ret = value;
    return true;
}

struct unit {
    const char *name;
    uint64_t factor;
};

/* digits[.digits]unit, in whole base units, rounded down. The fraction is exact for up to 18
 * digits (10^18 * factor fits 128 bits); more are refused rather than rounded. */
static bool parse_scaled(struct nr_str s, const struct unit *units, size_t n_units,
                         uint64_t bare_factor, uint64_t *ret)
{
    size_t whole_end = skip_digits(s, 0);
    size_t end = whole_end;
    uint64_t fraction = 0;
    uint64_t fraction_scale = 1;
    if (end < s.len && s.ptr[end] == '.') {
        end = skip_digits(s, end + 1);
        size_t n = end - whole_end - 1;
        if (n > 18 || !nr_str_to_u64((struct nr_str){s.ptr + whole_end + 1, n}, &fraction)) {
            return false;
        }
        for (size_t i = 0; i < n; i++) {
            fraction_scale *= 10;
        }
    }
    uint64_t whole;
    if (!nr_str_to_u64((struct nr_str){s.ptr, whole_end}, &whole)) {
        return false;
    }
    struct nr_str name = {s.ptr + end, s.len - end};
    uint64_t factor = name.len == 0 && end == whole_end ? bare_factor : 0;
    for (size_t i = 0; i < n_units && factor == 0; i++) {
        if (nr_str_eq_nocase(name, nr_str_from(units[i].name))) {
            factor = units[i].factor;
        }
    }
    uint64_t value;
    uint64_t more = (uint64_t)((unsigned __int128)fraction * factor / fraction_scale);
    if (factor == 0 || __builtin_mul_overflow(whole, factor, &value) ||
        __builtin_add_overflow(value, more, &value)) {
        return false;
    }
    *ret = value;
    return true;
}

bool nr_str_to_bytes(struct nr_str s, uint64_t *ret)
{
    static const struct unit units[] = {
        {"b", 1},
        {"k", UINT64_C(1000)},
        {"kb", UINT64_C(1000)},
        {"m", UINT64_C(1000000)},
        {"mb", UINT64_C(1000000)},
        {"g", UINT64_C(1000000000)},
        {"gb", UINT64_C(1000000000)},
        {"t", UINT64_C(1000000000000)},
        {"tb", UINT64_C(1000000000000)},
        {"ki", UINT64_C(1) << 10},
        {"kib", UINT64_C(1) << 10},
        {"mi", UINT64_C(1) << 20},
        {"mib", UINT64_C(1) << 20},
        {"gi", UINT64_C(1) << 30},
        {"gib", UINT64_C(1) << 30},
        {"ti", UINT64_C(1) << 40},
        {"tib", UINT64_C(1) << 40},
    };
    return parse_scaled(s, units, NR_COUNT(units), 1, ret);
}

bool nr_str_to_duration(struct nr_str s, uint64_t unit_ns, uint64_t *ret_ns)
{
    static const struct unit units[] = {
        {"ns", 1},
        {"us", UINT64_C(1000)},
        {"ms", UINT64_C(1000000)},
        {"s", UINT64_C(1000000000)},
        {"m", UINT64_C(60000000000)},
        {"min", UINT64_C(60000000000)},
        {"h", UINT64_C(3600000000000)},
        {"d", UINT64_C(86400000000000)},
    };
    return parse_scaled(s, units, NR_COUNT(units), unit_ns, ret_ns);
}

/* Looks at one character that begins at p with left > 0 bytes. Returns its length when it is
 * well-formed (RFC 3629, Unicode table 3-7); otherwise 0, with the number of bytes to skip (the
 * "maximal subpart", so that one broken character becomes one U+FFFD) in *skip. */
static size_t utf8_char(const unsigned char *p, size_t left, size_t *skip)
{
    *skip = 1;
    if (p[0] < 0x80) {
        return 1;
    }
    size_t need;
    unsigned char low = 0x80;
    unsigned char high = 0xbf;
    if (p[0] >= 0xc2 && p[0] <= 0xdf) {
        need = 2;
    } else if (p[0] >= 0xe0 && p[0] <= 0xef) {
        need = 3;
        low = p[0] == 0xe0 ? 0xa0 : 0x80;  /* overlong */
        high = p[0] == 0xed ? 0x9f : 0xbf; /* surrogates */
    } else if (p[0] >= 0xf0 && p[0] <= 0xf4) {
        need = 4;
        low = p[0] == 0xf0 ? 0x90 : 0x80;
        high = p[0] == 0xf4 ? 0x8f : 0xbf; /* above U+10FFFF */
    } else {
        return 0;
    }
    for (size_t i = 1; i < need; i++) {
        if (i >= left || p[i] < low || p[i] > high) {
            *skip = i;
            return 0;
        }
        low = 0x80;
        high = 0xbf;
    }
    return need;
}

bool nr_str_is_utf8(struct nr_str s)
{
    const unsigned char *p = (const unsigned char *)s.ptr;
    size_t at = 0;
    while (at < s.len) {
        /* Eight ASCII bytes at a time: nearly all text that comes here is. */
        uint64_t word;
        if (s.len - at >= sizeof(word)) {
            memcpy(&word, p + at, sizeof(word));
            if ((word & UINT64_C(0x8080808080808080)) == 0) {
                at += sizeof(word);
                continue;
            }
        }
        size_t skip;
        size_t n = utf8_char(p + at, s.len - at, &skip);
        if (n == 0) {
            return false;
        }
        at += n;
    }
    return true;
}

size_t nr_str_utf8_fit(struct nr_str s, size_t max_bytes)
{
    if (s.len <= max_bytes) {
        return s.len;
    }
    const unsigned char *p = (const unsigned char *)s.ptr;
    /* The character across the cut, if any, begins at most 3 bytes before it. */
    for (size_t back = 1; back <= 3 && back <= max_bytes; back++) {
        size_t start = max_bytes - back;
        if ((p[start] & 0xc0) != 0x80) {
            size_t skip;
            return utf8_char(p + start, s.len - start, &skip) > back ? start : max_bytes;
        }
    }
    return max_bytes;
}

unsigned nr_str_distance(struct nr_str a, struct nr_str b)
{
    /* Wagner and Fischer's table, one row of it kept. */
    unsigned char row[64]; /* distances of a[..i] to each b[..j]; at most 63 */
    if (a.len >= sizeof(row) || b.len >= sizeof(row)) {
        return UINT_MAX;
    }
    for (size_t j = 0; j <= b.len; j++) {
        row[j] = (unsigned char)j;
    }
    for (size_t i = 0; i < a.len; i++) {
        unsigned diagonal = row[0];
        row[0] = (unsigned char)(i + 1);
        for (size_t j = 0; j < b.len; j++) {
            unsigned change = diagonal + (a.ptr[i] != b.ptr[j]);
            unsigned gap = 1u + NR_MIN(row[j], row[j + 1]);
            diagonal = row[j + 1];
            row[j + 1] = (unsigned char)NR_MIN(change, gap);
        }
    }
    return row[b.len];
}

void nr_text_init(struct nr_text *t, size_t cap_bytes)
{
    /* One less than the largest size, for the NUL. */
    *t = (struct nr_text){.cap = NR_MIN(cap_bytes, SIZE_MAX - 1)};
}

void nr_text_init_at(struct nr_text *t, char *storage, size_t bytes)
{
    NR_ASSERT(bytes > 0);
    storage[0] = '\0';
    *t = (struct nr_text){.data = storage, .capacity = bytes, .cap = bytes - 1};
}

void nr_text_done(struct nr_text *t)
{
    nr_free(t->data);
    *t = (struct nr_text){.cap = t->cap};
}

void nr_text_clear(struct nr_text *t)
{
    t->len = 0;
    t->failed = false;
    if (t->data != NULL) {
        t->data[0] = '\0';
    }
}

bool nr_text_reserve(struct nr_text *t, size_t more_bytes)
{
    if (t->failed || more_bytes > t->cap - t->len) {
        t->failed = true;
        return false;
    }
    size_t need = t->len + more_bytes + 1;
    if (need <= t->capacity) {
        return true;
    }
    size_t capacity = t->capacity < 64 ? 64 : t->capacity;
    while (capacity < need) {
        capacity = capacity > SIZE_MAX / 2 ? need : capacity * 2;
    }
    capacity = NR_MIN(capacity, t->cap + 1); /* the cap is on memory, too */
    char *data = nr_try_realloc(t->data, capacity);
    if (data == NULL) {
        t->failed = true;
        return false;
    }
    t->data = data;
    t->capacity = capacity;
    t->data[t->len] = '\0';
    return true;
}

void nr_text_add(struct nr_text *t, const void *data, size_t len)
{
    if (len > 0 && nr_text_reserve(t, len)) {
        memcpy(t->data + t->len, data, len);
        t->len += len;
        t->data[t->len] = '\0';
    }
}

void nr_text_str(struct nr_text *t, const char *text)
{
    nr_text_add(t, text, strlen(text));
}

void nr_text_fmt(struct nr_text *t, const char *fmt, ...)
{
    if (!nr_text_reserve(t, 0)) {
        return;
    }
    /* First into the room there is, which mostly suffices; else once more with enough. */
    size_t room = t->capacity - t->len;
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(t->data + t->len, room, fmt, args);
    va_end(args);
    if (n >= 0 && (size_t)n < room) {
        t->len += (size_t)n;
        return;
    }
    t->data[t->len] = '\0'; /* nothing half-written stays */
    if (n < 0) {
        t->failed = true;
        return;
    }
    if (nr_text_reserve(t, (size_t)n)) {
        va_start(args, fmt);
        n = vsnprintf(t->data + t->len, (size_t)n + 1, fmt, args);
        va_end(args);
        t->len += (size_t)n;
    }
}

/* The escape of a character, or "" when it stands for itself. */
static void json_escape(const unsigned char *p, size_t n, char out[8])
{
    static const char hex[] = "0123456789abcdef";
    unsigned code;
    out[0] = '\0';
    if (n == 1 && (p[0] < 0x20 || p[0] == 0x7f || p[0] == '"' || p[0] == '\\')) {
        static const char letters[][2] = {{'\b', 'b'}, {'\f', 'f'}, {'\n', 'n'}, {'\r', 'r'},
                                          {'\t', 't'}, {'"', '"'},  {'\\', '\\'}};
        for (size_t i = 0; i < NR_COUNT(letters); i++) {
            if (p[0] == (unsigned char)letters[i][0]) {
                memcpy(out, (char[]){'\\', letters[i][1], '\0'}, 3);
                return;
            }
        }
        code = p[0];
    } else if (n == 2 && p[0] == 0xc2 && p[1] < 0xa0) {
        code = p[1]; /* C1: terminals obey some of them */
    } else if (n == 3 && p[0] == 0xe2 && p[1] == 0x80 && (p[2] & 0xfe) == 0xa8) {
        code = 0x2000u + (p[2] & 0x3fu); /* U+2028 and U+2029: line ends in JavaScript */
    } else {
        return;
    }
    memcpy(out,
           (char[]){'\\', 'u', hex[code >> 12], hex[code >> 8 & 15], hex[code >> 4 & 15],
                    hex[code & 15], '\0'},
           7);
}

void nr_text_json(struct nr_text *t, struct nr_str s)
{
    const unsigned char *p = (const unsigned char *)s.ptr;
    size_t plain = 0; /* what lies between here and `at` is copied as it is */
    size_t at = 0;
    nr_text_add(t, "\"", 1);
    while (at < s.len) {
        size_t skip;
        size_t n = utf8_char(p + at, s.len - at, &skip);
        char escape[8] = "\xef\xbf\xbd"; /* U+FFFD */
        if (n > 0) {
            json_escape(p + at, n, escape);
        }
        size_t step = n > 0 ? n : skip;
        if (escape[0] != '\0') {
            nr_text_add(t, p + plain, at - plain);
            nr_text_str(t, escape);
            plain = at + step;
        }
        at += step;
    }
    if (at > plain) {
        nr_text_add(t, p + plain, at - plain);
    }
    nr_text_add(t, "\"", 1);
}

char *nr_text_take(struct nr_text *t)
{
    char *text = t->data != NULL ? t->data : nr_strdup("");
    *t = (struct nr_text){.cap = t->cap};
    return text;
}
