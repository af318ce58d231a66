/* Base64: whole groups of four characters by table, the last group by hand.
 *
 * A table entry is the value of a character, or 0x80 for "no character of the alphabet"; the four
 * entries of a group are or-ed, so one test per group finds any bad character. Results are written
 * behind where characters were read, so decoding in place is safe.
 *
 * INVARIANT: out never passes 3/4 of the characters read.
 * Threads: pure functions. Source: RFC 4648 section 4; RFC 2397 for data URLs.
 */
#include "codec/base64.h"

static const char alphabet[65] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

#define X 0x80
static const uint8_t values[256] = {
    X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,
    X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  62, X,  X,  X,  63,
    52, 53, 54, 55, 56, 57, 58, 59, 60, 61, X,  X,  X,  X,  X,  X,  X,  0,  1,  2,  3,  4,  5,  6,
    7,  8,  9,  10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, X,  X,  X,  X,  X,
    X,  26, 27, 28, 29, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 44, 45, 46, 47, 48,
    49, 50, 51, X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,
    X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,
    X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,
    X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,
    X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,
    X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,
};
#undef X

void nr_base64_encode(const void *data, size_t len, char *out)
{
    const uint8_t *p = data;
    for (; len >= 3; len -= 3, p += 3, out += 4) {
        uint32_t v = ((uint32_t)p[0] << 16) | ((uint32_t)p[1] << 8) | p[2];
        out[0] = alphabet[v >> 18];
        out[1] = alphabet[(v >> 12) & 63];
        out[2] = alphabet[(v >> 6) & 63];
        out[3] = alphabet[v & 63];
    }
    if (len > 0) {
        uint32_t v = ((uint32_t)p[0] << 16) | (len > 1 ? (uint32_t)p[1] << 8 : 0);
        out[0] = alphabet[v >> 18];
        out[1] = alphabet[(v >> 12) & 63];
        out[2] = len > 1 ? alphabet[(v >> 6) & 63] : '=';
        out[3] = '=';
    }
}

static nr_status bad_character(const uint8_t *p, size_t at, struct nr_err *err)
{
    for (int i = 0; i < 4; i++, at++) {
        if (values[p[i]] == 0x80) {
            break;
        }
    }
    return nr_fail(err, NARU_INVALID,
                   "base64: unexpected character at position %zu (RFC 4648 alphabet, no white "
                   "space, \"=\" only at the end)",
                   at);
}

/* The last group, which may end in one or two "=". Returns the bytes written, 0 when broken. */
static size_t last_group(const uint8_t *p, uint8_t *out)
{
    size_t n = p[3] != '=' ? 3 : p[2] != '=' ? 2 : 1;
    uint8_t a = values[p[0]], b = values[p[1]];
    uint8_t c = n > 1 ? values[p[2]] : 0, d = n > 2 ? values[p[3]] : 0;
    if (((a | b | c | d) & 0x80) != 0) {
        return 0;
    }
    uint32_t v = ((uint32_t)a << 18) | ((uint32_t)b << 12) | ((uint32_t)c << 6) | d;
    if ((v & (n == 1 ? 0xffffU : n == 2 ? 0xffU : 0U)) != 0) {
        return 0; /* bits behind the last byte */
    }
    out[0] = (uint8_t)(v >> 16);
    if (n > 1) {
        out[1] = (uint8_t)(v >> 8);
    }
    if (n > 2) {
        out[2] = (uint8_t)v;
    }
    return n;
}

nr_status nr_base64_decode(struct nr_str text, void *out, size_t cap, size_t *ret_len,
                           struct nr_err *err)
{
    if (text.len % 4 != 0) {
        return nr_fail(err, NARU_INVALID,
                       "base64: %zu characters, expected a multiple of 4 (padded with \"=\")",
                       text.len);
    }
    if (text.len == 0) {
        *ret_len = 0;
        return NARU_OK;
    }
    const uint8_t *start = (const uint8_t *)text.ptr, *p = start;
    const uint8_t *last = start + text.len - 4;
    size_t padding = last[3] != '=' ? 0 : last[2] != '=' ? 1 : 2;
    size_t len = nr_base64_decoded_max(text.len) - padding;
    if (len > cap) {
        return nr_fail(err, NARU_TOO_LARGE, "base64: %zu bytes, the limit is %zu", len, cap);
    }
    uint8_t *o = out;
    for (; p < last; p += 4, o += 3) {
        uint8_t a = values[p[0]], b = values[p[1]], c = values[p[2]], d = values[p[3]];
        if (((a | b | c | d) & 0x80) != 0) {
            return bad_character(p, (size_t)(p - start), err);
        }
        o[0] = (uint8_t)((a << 2) | (b >> 4));
        o[1] = (uint8_t)((b << 4) | (c >> 2));
        o[2] = (uint8_t)((c << 6) | d);
    }
    /* read before written: out may be the text itself */
    uint8_t group[4];
    memcpy(group, last, sizeof(group));
    uint8_t tail[3];
    size_t n = last_group(group, tail);
    if (n == 0) {
        return nr_fail(err, NARU_INVALID,
                       "base64: the last group (position %zu) is broken or not all its bits behind "
                       "the last byte are 0",
                       text.len - 4);
    }
    memcpy(o, tail, n);
    *ret_len = len;
    return NARU_OK;
}

bool nr_base64_data_url(struct nr_str text, struct nr_str *ret_payload, struct nr_str *ret_media)
{
    if (text.len < 5 || !nr_str_eq_nocase((struct nr_str){text.ptr, 5}, NR_STR("data:"))) {
        return false;
    }
    text.ptr += 5;
    text.len -= 5;
    struct nr_str payload;
    struct nr_str head = nr_str_cut(text, ',', &payload);
    if (payload.ptr == NULL || head.len < 7 ||
        !nr_str_eq_nocase((struct nr_str){head.ptr + head.len - 7, 7}, NR_STR(";base64"))) {
        return false;
    }
    head.len -= 7;
    struct nr_str parameters;
    *ret_media = nr_str_cut(head, ';', &parameters);
    *ret_payload = payload;
    return true;
}
