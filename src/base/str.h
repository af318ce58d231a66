/* Borrowed strings, number parsing, and one growable text buffer with a hard cap.
 *
 * struct nr_str is a view: pointer and length, not NUL-terminated. The one integer parser and the
 * one float parser of the project live here; strtol and friends are not used.
 */
#ifndef NR_BASE_STR_H
#define NR_BASE_STR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "base/status.h"

struct nr_arena;

struct nr_str {
    const char *ptr;
    size_t len;
};

#define NR_STR(literal) ((struct nr_str){"" literal, sizeof(literal) - 1})
#define NR_STR_INIT(literal) {"" literal, sizeof(literal) - 1}
#define NR_STR_FMT "%.*s"
#define NR_STR_ARG(s) (int)((s).len > 1024 ? 1024 : (s).len), (s).ptr ? (s).ptr : ""

static inline struct nr_str nr_str_from(const char *text)
{
    return (struct nr_str){text, text ? strlen(text) : 0};
}
static inline bool nr_str_eq(struct nr_str a, struct nr_str b)
{
    return a.len == b.len && (a.len == 0 || memcmp(a.ptr, b.ptr, a.len) == 0);
}
static inline bool nr_str_is(struct nr_str a, const char *text)
{
    return nr_str_eq(a, nr_str_from(text));
}
/* Takes the first n bytes off, n at most s->len. */
static inline void nr_str_skip(struct nr_str *s, size_t n)
{
    s->ptr = n > 0 ? s->ptr + n : s->ptr;
    s->len -= n;
}
bool nr_str_eq_nocase(struct nr_str a, struct nr_str b); /* ASCII only */
bool nr_str_starts(struct nr_str s, struct nr_str prefix);
bool nr_str_ends(struct nr_str s, struct nr_str suffix);
struct nr_str nr_str_trim(struct nr_str s); /* spaces and tabs at both ends */
/* Cuts s at the first `sep`: returns what is before it, leaves what is after it in *rest. When
 * there is none returns all and leaves rest->ptr NULL. */
struct nr_str nr_str_cut(struct nr_str s, char sep, struct nr_str *rest);
int64_t nr_str_find(struct nr_str s, char c); /* index or -1 */

/* All parsers: the whole string must match, no spaces around it; *ret is written on success only.
 * Integers: decimal digits in range; no sign for u64, "-" allowed for i64. */
nr_nodiscard bool nr_str_to_u64(struct nr_str s, uint64_t *ret);
nr_nodiscard bool nr_str_to_i64(struct nr_str s, int64_t *ret);
/* [-]digits[.digits][e[+-]digits], one of the two digit groups may be empty; correctly rounded;
 * false when the value is not finite or the text is longer than 1,023 bytes. For configuration. */
nr_nodiscard bool nr_str_to_double(struct nr_str s, double *ret);
/* "64MiB", "10k", "1.5GB", "4096": bytes. k, M, G, T (and kB …) are powers of 1000; Ki, Mi, Gi,
 * Ti (and KiB …) powers of 1024; letter case is not looked at. A fraction needs a unit and is
 * rounded down to whole bytes. */
nr_nodiscard bool nr_str_to_bytes(struct nr_str s, uint64_t *ret);
/* "5s", "250ms", "100us", "1h", "1.5s" (ns us ms s m min h d): nanoseconds. A bare whole number is
 * taken in `unit_ns`. */
nr_nodiscard bool nr_str_to_duration(struct nr_str s, uint64_t unit_ns, uint64_t *ret_ns);
/* RFC 3629: no overlong forms, no surrogates, nothing above U+10FFFF. */
bool nr_str_is_utf8(struct nr_str s);
/* The largest length <= max_bytes at which s can be cut without cutting a UTF-8 character. */
size_t nr_str_utf8_fit(struct nr_str s, size_t max_bytes);
/* Edit distance (Levenshtein) for "did you mean"; names of up to 63 bytes, else UINT_MAX. */
unsigned nr_str_distance(struct nr_str a, struct nr_str b);

/* Growable text with a cap. After an overflow or a failed allocation `failed` stays set, further
 * appends do nothing, so one check at the end suffices. Data is NUL-terminated unless empty. */
struct nr_text {
    char *data;
    size_t len;
    size_t capacity;
    size_t cap; /* most bytes of text, without the NUL */
    bool failed;
};
void nr_text_init(struct nr_text *t, size_t cap_bytes);
/* On the caller's storage, which must outlive it: never allocates, holds bytes - 1. Neither
 * nr_text_done nor nr_text_take may be called on it. */
void nr_text_init_at(struct nr_text *t, char *storage, size_t bytes);
void nr_text_done(struct nr_text *t);
void nr_text_clear(struct nr_text *t); /* keeps memory, resets failed */
/* Room for more_bytes, to be filled behind data + len (and len raised, NUL put) by the caller.
 * False, with `failed` set, beyond the cap or without memory. */
bool nr_text_reserve(struct nr_text *t, size_t more_bytes);
void nr_text_add(struct nr_text *t, const void *data, size_t len);
void nr_text_str(struct nr_text *t, const char *text);
void nr_text_fmt(struct nr_text *t, const char *fmt, ...) nr_printf(2, 3);
/* A JSON string with its quotes. Control characters (C0, DEL, C1), U+2028 and U+2029 are escaped,
 * so the result is safe in a log line and in a script; each piece of invalid UTF-8 → U+FFFD. */
void nr_text_json(struct nr_text *t, struct nr_str s);
/* The text, freed by the caller with nr_free; never NULL ("" when empty). Look at `failed` first.
 * t is empty afterwards and can be used again. */
char *nr_text_take(struct nr_text *t);

#endif
