/* Decimal text ↔ binary floating point: the parts that are not inlined into parsers.
 *
 * Why our own: JSON tensors are 10^5 numbers per request. strtod takes 60-100 ns and snprintf 250 ns
 * each and both obey the locale; these take about 10 ns.
 *
 * Reading, three steps of rising cost: up to 2^53 and 10^22 one exact multiplication or division
 * (Clinger); up to 19 digits a 64 x 128 bit product whose upper bits decide the rounding
 * (Eisel-Lemire); otherwise nr_str_to_double.
 * Writing: Schubfach. The value and the two ends of its rounding interval are scaled by one power of
 * ten, rounded to odd (so that comparing with the truncated values is exact), and among the multiples
 * of 10 and 1 inside the interval the shortest, then the nearest, is taken.
 *
 * Invariants
 *  1. Doubles are evaluated as doubles (FLT_EVAL_METHOD 0), or step one would round twice.
 *  2. A result of nr_decimal_to_double is correctly rounded; where that cannot be shown it is false.
 * No state; any thread.
 */
#include "codec/float.h"

#include <float.h>
#include <math.h>

#include "base/str.h"
#include "codec/pow10.h"

_Static_assert(FLT_EVAL_METHOD == 0, "the exact path needs arithmetic in double precision");

typedef unsigned __int128 u128;

static const double exact_pow10[] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,
                                     1e8,  1e9,  1e10, 1e11, 1e12, 1e13, 1e14, 1e15,
                                     1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};

static inline const struct nr_pow10 *pow10_at(int64_t q)
{
    return &nr_pow10[q - NR_POW10_MIN];
}

bool nr_decimal_to_double(uint64_t w, int64_t q, double *ret)
{
    if (w <= (UINT64_C(1) << 53) && q >= -22 && q <= 22) {
        *ret = q < 0 ? (double)w / exact_pow10[-q] : (double)w * exact_pow10[q];
        return true;
    }
    if (q < NR_POW10_MIN || q > 308) {
        return false;
    }
    int lz = __builtin_clzll(w);
    uint64_t m = w << lz;
    const struct nr_pow10 *pow = pow10_at(q);
    u128 product = (u128)m * pow->hi;
    uint64_t high = (uint64_t)(product >> 64);
    uint64_t low = (uint64_t)product;
    if ((high & 0x1ff) == 0x1ff) { /* the low half of the power may carry into the kept bits */
        uint64_t more = (uint64_t)(((u128)m * pow->lo) >> 64);
        low += more;
        high += low < more;
        if (low == UINT64_MAX && (q < -27 || q > 55)) {
            return false;
        }
    }
    unsigned upper = (unsigned)(high >> 63);
    uint64_t mantissa = high >> (upper + 9); /* 54 bits: one more than kept */
    int64_t power = (((152170 + 65536) * q) >> 16) + 63 + upper - lz + 1023;
    if (power <= 0 || power >= 2046) { /* subnormal, or near enough to overflow to be careful */
        return false;
    }
    /* Exactly half way between two doubles, which only small powers can be: round to even. */
    if (low <= 1 && q >= -4 && q <= 23 && (mantissa & 3) == 1 && mantissa << (upper + 9) == high) {
        mantissa &= ~UINT64_C(1);
    }
    mantissa = (mantissa + (mantissa & 1)) >> 1;
    if (mantissa >> 53) {
        mantissa >>= 1;
        power++;
    }
    uint64_t bits = (mantissa & ((UINT64_C(1) << 52) - 1)) | ((uint64_t)power << 52);
    memcpy(ret, &bits, sizeof(bits));
    return true;
}

/* A number of this many digits or more is cut: no double needs more than 768 to be told apart from
 * its neighbours, as long as it stays known that something followed. */
#define SLOW_DIGITS 800

/* text without sign → "ddd…[1]e±x", SLOW_DIGITS significant digits at most and a 1 for the rest. */
static struct nr_str shorten(const char *text, const char *end, char *out)
{
    char *o = out;
    int64_t exp10 = 0;
    bool fraction = false;
    bool rest = false;
    const char *p = text;
    for (; p < end && (*p | 0x20) != 'e'; p++) {
        if (*p == '.') {
            fraction = true;
            continue;
        }
        exp10 -= fraction;
        if (o == out && *p == '0') {
            continue;
        }
        if (o - out < SLOW_DIGITS) {
            *o++ = *p;
        } else {
            rest = rest || *p != '0';
            exp10++;
        }
    }
    if (o == out) {
        *o++ = '0';
    }
    if (rest) {
        *o++ = '1';
        exp10--;
    }
    bool minus = end - p > 1 && p[1] == '-';
    int64_t stated = 0;
    for (p += p < end; p < end; p++) {
        if (*p != '-' && *p != '+' && stated < INT32_MAX) {
            stated = stated * 10 + (*p - '0');
        }
    }
    exp10 += minus ? -stated : stated;
    *o++ = 'e';
    o = nr_i64_write(exp10, o);
    return (struct nr_str){out, (size_t)(o - out)};
}

bool nr_decimal_slow(const char *text, const char *end, double *ret)
{
    char out[SLOW_DIGITS + 32];
    return nr_str_to_double(shorten(text, end, out), ret);
}

/* ---------------------------------------------------------------------------------------------
 * Writing
 */

struct decimal {
    uint64_t digits; /* value = digits * 10^exp10 */
    int exp10;
};

static inline int floor_log10_pow2(int e, bool three_quarters) /* log10(3/4 * 2^e) if so */
{
    return (e * 1262611 - (three_quarters ? 524031 : 0)) >> 22;
}

static inline int floor_log2_pow10(int e)
{
    return (e * 1741647) >> 19;
}

/* 10^q rounded up to 128 bits: invariant 2 of pow10.c. */
static inline struct nr_pow10 pow10_up(int q)
{
    struct nr_pow10 g = *pow10_at(q);
    if (q > 55) {
        g.lo += 1;
        g.hi += g.lo == 0;
    }
    return g;
}

/* The integer part of g * c / 2^128, its last bit set as well when anything was cut off. */
static inline uint64_t round_to_odd(struct nr_pow10 g, uint64_t c)
{
    u128 x = (u128)g.lo * c;
    u128 y = (u128)g.hi * c + (uint64_t)(x >> 64);
    return (uint64_t)(y >> 64) | ((uint64_t)y > 1);
}

static inline uint32_t round_to_odd_32(uint64_t g, uint32_t c)
{
    u128 p = (u128)g * c;
    return (uint32_t)(p >> 64) | ((uint32_t)(p >> 32) > 1);
}

/* c * 2^q with its rounding interval → the shortest decimal in it. Both widths share the choice. It is
 * made by arithmetic, for real data makes every branch here a coin toss: of two neighbours (multiples
 * of 10, else of 1) take the one inside the interval; when both or none are, the nearer. */
static inline __attribute__((always_inline)) struct decimal choose(uint64_t lower, uint64_t value,
                                                                   uint64_t upper, int k)
{
    uint64_t s = value / 4;
    uint64_t tens = s / 10;
    uint64_t tens_down = lower <= 40 * tens;
    uint64_t tens_up = 40 * tens + 40 <= upper;
    uint64_t use_tens = (tens_down ^ tens_up) & (s >= 10);
    uint64_t down = lower <= 4 * s;
    uint64_t up = 4 * s + 4 <= upper;
    uint64_t nearer = value + (s & 1) > 4 * s + 2; /* half way: to the even one */
    uint64_t one = down ^ up ? up : nearer;
    uint64_t digits = use_tens ? tens + tens_up : s + one;
    return (struct decimal){digits, k + (int)use_tens};
}

static struct decimal decimal_from_double(uint64_t fraction, int exponent)
{
    uint64_t c = exponent ? fraction | (UINT64_C(1) << 52) : fraction;
    int q = (exponent ? exponent : 1) - 1075;
    if (q <= 0 && q > -53 && (c & ((UINT64_C(1) << -q) - 1)) == 0) {
        return (struct decimal){c >> -q, 0}; /* an integer */
    }
    bool odd = (c & 1) != 0; /* the interval's ends round to an even value only */
    bool closer = fraction == 0 && exponent > 1;
    int k = floor_log10_pow2(q, closer);
    int h = q + floor_log2_pow10(-k) + 1;
    struct nr_pow10 g = pow10_up(-k);
    uint64_t lower = round_to_odd(g, (4 * c - 2 + closer) << h) + odd;
    uint64_t value = round_to_odd(g, (4 * c) << h);
    uint64_t upper = round_to_odd(g, (4 * c + 2) << h) - odd;
    return choose(lower, value, upper, k);
}

static struct decimal decimal_from_float(uint32_t fraction, int exponent)
{
    uint32_t c = exponent ? fraction | (1u << 23) : fraction;
    int q = (exponent ? exponent : 1) - 150;
    if (q <= 0 && q > -24 && (c & ((1u << -q) - 1)) == 0) {
        return (struct decimal){c >> -q, 0};
    }
    bool odd = (c & 1) != 0;
    bool closer = fraction == 0 && exponent > 1;
    int k = floor_log10_pow2(q, closer);
    int h = q + floor_log2_pow10(-k) + 1;
    const struct nr_pow10 *pow = pow10_at(-k);
    uint64_t g = pow->hi + (pow->lo != 0);
    uint32_t lower = round_to_odd_32(g, (4 * c - 2 + closer) << h) + odd;
    uint32_t value = round_to_odd_32(g, (4 * c) << h);
    uint32_t upper = round_to_odd_32(g, (4 * c + 2) << h) - odd;
    return choose(lower, value, upper, k);
}

/* ---------------------------------------------------------------------------------------------
 * Digits: eight at a time in a 64-bit word, the first one in the lowest byte, so that a store writes
 * them in reading order and zeros at either end are counted by one instruction.
 */

#define ASCII_ZEROS UINT64_C(0x3030303030303030)
#define LAST_DIGIT (UINT64_C(1) << 56) /* bounds the count of leading zeros of an empty word */

/* v < 10^8 as eight digit values 0..9. Divisions by constants, two and four at once. */
static inline uint64_t digits_8(uint32_t v)
{
    uint64_t fours = (v / 10000) | (uint64_t)(v % 10000) << 32;
    uint64_t high = ((fours * 10486) >> 20) & 0x0000007f0000007fu; /* each / 100 */
    uint64_t twos = high | (fours - high * 100) << 16;
    uint64_t tens = ((twos * 103) >> 10) & 0x000f000f000f000fu; /* each / 10 */
    return tens | (twos - tens * 10) << 8;
}

static inline void store_8(char *out, uint64_t digits)
{
    digits |= ASCII_ZEROS;
    memcpy(out, &digits, sizeof(digits));
}

char *nr_u64_write(uint64_t v, char *out)
{
    if (v < 10) {
        *out = (char)('0' + v);
        return out + 1;
    }
    uint64_t parts[3]; /* of eight digits, the last first */
    unsigned n = 0;
    for (; v >= 100000000u; v /= 100000000u) {
        parts[n++] = digits_8((uint32_t)(v % 100000000u));
    }
    uint64_t first = digits_8((uint32_t)v);
    unsigned zeros = (unsigned)__builtin_ctzll(first) / 8;
    store_8(out, first >> (8 * zeros));
    out += 8 - zeros;
    while (n > 0) {
        store_8(out, parts[--n]);
        out += 8;
    }
    return out;
}

/* Digits in reading order: the first in the lowest byte of `low`. Floats need the low word only; the
 * flag is_double is a constant wherever these functions are expanded. */
struct words {
    uint64_t low, high;
};

static inline __attribute__((always_inline)) struct words drop(struct words w, unsigned n,
                                                               bool is_double)
{
    if (!is_double) {
        return (struct words){w.low >> (8 * n), 0};
    }
    u128 both = ((u128)w.high << 64 | w.low) >> (8 * n);
    return (struct words){(uint64_t)both, (uint64_t)(both >> 64)};
}

static inline __attribute__((always_inline)) void store(char *out, struct words w, bool is_double)
{
    store_8(out, w.low);
    if (is_double) {
        store_8(out + 8, w.high);
    }
}

/* A decimal ready to be laid out: n digits without zeros at either end; the first apart, because
 * nine or seventeen are one more than the words hold. */
struct digits {
    struct words rest; /* digits 2, 3, …; zero above the last */
    unsigned first;
    int n;
    int exp10;
};

static inline __attribute__((always_inline)) struct digits split(struct decimal d, bool is_double)
{
    struct words w;
    unsigned top;
    int leading;
    int trailing;
    int width;
    if (is_double) {
        top = (unsigned)(d.digits / UINT64_C(10000000000000000));
        d.digits %= UINT64_C(10000000000000000);
        w.low = digits_8((uint32_t)(d.digits / 100000000u));
        w.high = digits_8((uint32_t)(d.digits % 100000000u));
        width = 16;
        leading = w.low ? __builtin_ctzll(w.low) : 64 + __builtin_ctzll(w.high | LAST_DIGIT);
        trailing = w.high ? __builtin_clzll(w.high) : 64 + (w.low ? __builtin_clzll(w.low) : 64);
    } else {
        uint32_t digits = (uint32_t)d.digits;
        top = digits / 100000000u;
        w.low = digits_8(digits % 100000000u);
        w.high = 0;
        width = 8;
        leading = __builtin_ctzll(w.low | LAST_DIGIT);
        trailing = w.low ? __builtin_clzll(w.low) : 64;
    }
    leading /= 8;
    trailing /= 8;
    if (top == 0) { /* not all are zero: a decimal is never 0 */
        w = drop(w, (unsigned)leading, is_double);
        top = (unsigned)(w.low & 0xff);
        w = drop(w, 1, is_double);
        width -= leading + 1;
    }
    return (struct digits){w, top, 1 + width - trailing, d.exp10 + trailing};
}

/* The notation of RapidJSON: plain between 1e-6 and 1e21, else d.ddde±x. Writes beyond the text, but
 * within NR_FLOAT_TEXT_MAX. */
static inline __attribute__((always_inline)) char *lay_out(struct decimal decimal, char *out,
                                                           bool is_double)
{
    struct digits d = split(decimal, is_double);
    int point = d.n + d.exp10; /* digits in front of the decimal point */
    char first = (char)('0' + d.first);
    if (point > -6 && point <= 0) {
        memcpy(out, "0.000000", 8);
        out += 2 - point;
        *out = first;
        store(out + 1, d.rest, is_double);
        return out + d.n;
    }
    if (point > 0 && point <= 21) {
        *out = first;
        store(out + 1, d.rest, is_double);
        if (point < d.n) {
            out[point] = '.';
            store(out + point + 1, drop(d.rest, (unsigned)point - 1, is_double), is_double);
            return out + d.n + 1;
        }
        if (is_double) {
            memset(out + 17, '0', 4);
        } else {
            store_8(out + 9, 0);
            memset(out + 17, '0', 4);
        }
        memcpy(out + point, ".0", 2);
        return out + point + 2;
    }
    *out++ = first;
    if (d.n > 1) {
        *out++ = '.';
        store(out, d.rest, is_double);
        out += d.n - 1;
    }
    *out++ = 'e';
    return nr_i64_write(point - 1, out);
}

static char *write_word(const char *word, char *out)
{
    size_t len = strlen(word);
    memcpy(out, word, len);
    return out + len;
}

char *nr_double_write(double value, char *out)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof(bits));
    uint64_t fraction = bits & ((UINT64_C(1) << 52) - 1);
    int exponent = (int)(bits >> 52) & 0x7ff;
    if (exponent == 0x7ff) {
        return write_word(fraction ? "NaN" : bits >> 63 ? "-Infinity" : "Infinity", out);
    }
    *out = '-';
    out += bits >> 63;
    if ((bits << 1) == 0) {
        return write_word("0.0", out);
    }
    return lay_out(decimal_from_double(fraction, exponent), out, true);
}

char *nr_float_write(float value, char *out)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    uint32_t fraction = bits & ((1u << 23) - 1);
    int exponent = (int)(bits >> 23) & 0xff;
    if (exponent == 0xff) {
        return write_word(fraction ? "NaN" : bits >> 31 ? "-Infinity" : "Infinity", out);
    }
    *out = '-';
    out += bits >> 31;
    if ((bits << 1) == 0) {
        return write_word("0.0", out);
    }
    return lay_out(decimal_from_float(fraction, exponent), out, false);
}

bool nr_nonfinite_scan(const char **at, const char *end, double *ret)
{
    static const struct {
        const char *word;
        double value;
    } words[] = {{"NaN", (double)NAN},
                 {"Infinity", (double)INFINITY},
                 {"Inf", (double)INFINITY},
                 {"-Infinity", -(double)INFINITY},
                 {"-Inf", -(double)INFINITY}};
    for (size_t i = 0; i < NR_COUNT(words); i++) {
        size_t len = strlen(words[i].word);
        if ((size_t)(end - *at) >= len && memcmp(*at, words[i].word, len) == 0) {
            *at += len;
            *ret = words[i].value;
            return true;
        }
    }
    return false;
}
