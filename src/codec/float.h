/* Decimal text ↔ binary floating point, fast and exact.
 *
 * Reading: correctly rounded to double (ties to even) for every text. Writing: the shortest decimal
 * that reads back to the same value, the nearest one to it if there are several, in the notation of
 * RapidJSON ("1.0", "0.1", "1e21", "1.5e-7"), which Triton's clients know.
 * Sources: Clinger 1990; Lemire, "Number Parsing at a Gigabyte per Second", 2021 (Eisel-Lemire);
 * Giulietti, "The Schubfach way to render doubles", 2020. Pure, any thread.
 */
#ifndef NR_CODEC_FLOAT_H
#define NR_CODEC_FLOAT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "base/status.h"

/* Room that the writers need: the longest text is 25 characters, and they store whole words. */
#define NR_FLOAT_TEXT_MAX 40

/* Writes without a NUL, returns the end. NaN, Infinity and -Infinity as these words. out has
 * NR_FLOAT_TEXT_MAX bytes; more than the text may be overwritten. */
char *nr_float_write(float value, char *out);
char *nr_double_write(double value, char *out);
/* Decimal integers, at most 20 characters; out has 28 bytes (one more with a sign). */
char *nr_u64_write(uint64_t value, char *out);
static inline char *nr_i64_write(int64_t value, char *out)
{
    uint64_t magnitude = (uint64_t)value;
    if (value < 0) {
        *out++ = '-';
        magnitude = 0 - magnitude;
    }
    return nr_u64_write(magnitude, out);
}

/* What RFC 8259 lacks and RapidJSON and Python write: NaN, Infinity, Inf, -Infinity, -Inf. False: none of
 * them stands at *at, which is left. Else *at is behind the word. */
bool nr_nonfinite_scan(const char **at, const char *end, double *ret);
/* w * 10^exp10, correctly rounded, when it is a normal double; false for what needs the slow way
 * (subnormal, overflow, undecidable). w != 0. */
bool nr_decimal_to_double(uint64_t w, int64_t exp10, double *ret);
/* The slow way: any well-formed number; false when it is too large for a double. */
nr_nodiscard bool nr_decimal_slow(const char *text, const char *end, double *ret);

/* Eight ASCII digits at once: are they, and their value (first byte is the highest digit). */
static inline bool nr_is_8_digits(uint64_t v)
{
    return ((v & 0xf0f0f0f0f0f0f0f0u) | (((v + 0x0606060606060606u) & 0xf0f0f0f0f0f0f0f0u) >> 4)) ==
           0x3333333333333333u;
}
static inline uint32_t nr_parse_8_digits(uint64_t v)
{
    const uint64_t mask = 0x000000ff000000ffu;
    const uint64_t mul1 = 0x000f424000000064u; /* 100 + (1000000 << 32) */
    const uint64_t mul2 = 0x0000271000000001u; /* 1 + (10000 << 32) */
    v -= 0x3030303030303030u;
    v = (v * 10) + (v >> 8);
    return (uint32_t)((((v & mask) * mul1) + (((v >> 16) & mask) * mul2)) >> 32);
}

/* Appends the digits at p to *w (wrapping beyond 19 of them); returns the first non-digit. */
static inline const char *nr_digits_scan(const char *p, const char *end, uint64_t *w)
{
    uint64_t value = *w;
    while (end - p >= 8) {
        uint64_t chunk;
        memcpy(&chunk, p, sizeof(chunk));
        if (!nr_is_8_digits(chunk)) {
            break;
        }
        value = value * 100000000u + nr_parse_8_digits(chunk);
        p += 8;
    }
    while (p < end && (unsigned char)(*p - '0') < 10) {
        value = value * 10 + (unsigned char)(*p - '0');
        p++;
    }
    *w = value;
    return p;
}

typedef enum nr_scan {
    NR_SCAN_OK,
    NR_SCAN_SYNTAX,
    NR_SCAN_RANGE
} nr_scan;

/* Reads the JSON number (RFC 8259) at *at as a double and moves *at behind it, also when it is too
 * large for one (NR_SCAN_RANGE). NR_SCAN_SYNTAX: *at is where the text stops being a number. */
static inline nr_scan nr_double_scan(const char **at, const char *end, double *ret)
{
    const char *start = *at;
    const char *p = start;
    bool negative = p < end && *p == '-';
    p += negative;
    const char *digits = p;
    uint64_t w = 0;
    if (p < end && *p == '0') {
        p++;
    } else {
        /* Integer parts are short: one digit at a time. */
        while (p < end && (unsigned char)(*p - '0') < 10) {
            w = w * 10 + (unsigned char)(*p - '0');
            p++;
        }
    }
    int64_t n_digits = p - digits;
    int64_t exp10 = 0;
    if (NR_UNLIKELY(n_digits == 0)) {
        *at = p;
        return NR_SCAN_SYNTAX;
    }
    if (p < end && *p == '.') {
        const char *fraction = ++p;
        p = nr_digits_scan(p, end, &w);
        exp10 = fraction - p;
        if (NR_UNLIKELY(exp10 == 0)) {
            *at = p;
            return NR_SCAN_SYNTAX;
        }
        n_digits -= exp10;
    }
    if (p < end && (*p | 0x20) == 'e') {
        p++;
        bool minus = p < end && *p == '-';
        p += p < end && (*p == '-' || *p == '+');
        int64_t e = 0;
        const char *first = p;
        while (p < end && (unsigned char)(*p - '0') < 10) {
            e = e < 100000 ? e * 10 + (*p - '0') : e;
            p++;
        }
        if (NR_UNLIKELY(p == first)) {
            *at = p;
            return NR_SCAN_SYNTAX;
        }
        exp10 += minus ? -e : e;
    }
    if (NR_UNLIKELY(n_digits > 19)) { /* w may have wrapped: leading zeros do not count */
        const char *d = digits;
        while (*d == '0' || *d == '.') {
            n_digits -= *d == '0';
            if (++d == p) {
                break;
            }
        }
    }
    *at = p;
    double value = 0;
    if (NR_LIKELY(n_digits <= 19)) {
        if (w != 0 && NR_UNLIKELY(!nr_decimal_to_double(w, exp10, &value)) &&
            !nr_decimal_slow(digits, p, &value)) {
            return NR_SCAN_RANGE;
        }
    } else if (!nr_decimal_slow(digits, p, &value)) {
        return NR_SCAN_RANGE;
    }
    *ret = negative ? -value : value;
    return NR_SCAN_OK;
}

/* Reads a JSON integer as magnitude and sign. NR_SCAN_SYNTAX also for a number with a fraction or an
 * exponent (*at is then at it); NR_SCAN_RANGE when the magnitude exceeds 64 bits. */
static inline nr_scan nr_integer_scan(const char **at, const char *end, bool *negative,
                                      uint64_t *magnitude)
{
    const char *p = *at;
    *negative = p < end && *p == '-';
    p += *negative;
    const char *digits = p;
    uint64_t w = 0;
    if (p < end && *p == '0') {
        p++;
    } else {
        while (p < end && (unsigned char)(*p - '0') < 10) {
            unsigned digit = (unsigned char)(*p - '0');
            if (NR_UNLIKELY(p - digits >= 19) &&
                (p - digits > 19 || w > (UINT64_MAX - digit) / 10)) {
                return NR_SCAN_RANGE;
            }
            w = w * 10 + digit;
            p++;
        }
    }
    if (NR_UNLIKELY(p == digits || (p < end && (*p == '.' || (*p | 0x20) == 'e')))) {
        *at = p;
        return NR_SCAN_SYNTAX;
    }
    *magnitude = w;
    *at = p;
    return NR_SCAN_OK;
}

#endif
