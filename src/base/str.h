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
bool nr_str_eq_nocase(struct nr_str a, struct nr_str b); /* ASCII only */
bool nr_str_starts(struct nr_str s, struct nr_str prefix);
bool nr_str_ends(struct nr_str s, struct nr_str suffix);
struct nr_str nr_str_trim(struct nr_str s); /* spaces and tabs at both ends */
/* Cuts s at the first `sep`: returns what is before it, leaves what is after it in *rest. When
 * there is none returns all and leaves rest->ptr NULL. */
struct nr_str nr_str_cut(struct nr_str s, char sep, struct nr_str *rest);
int64_t nr_str_find(struct nr_str s, char c); /* index or -1 */

/* Whole string must be a decimal number in range; no sign for u64, "-" allowed for i64. */
nr_nodiscard bool nr_str_to_u64(struct nr_str s, uint64_t *ret);
nr_nodiscard bool nr_str_to_i64(struct nr_str s, int64_t *ret);
nr_nodiscard bool nr_str_to_double(struct nr_str s, double *ret); /* finite, C locale */
/* "64MiB", "10k", "1.5GB", "4096": bytes. */
nr_nodiscard bool nr_str_to_bytes(struct nr_str s, uint64_t *ret);
/* "5s", "250ms", "100us", "1h": nanoseconds. A bare number is taken in `unit_ns`. */
nr_nodiscard bool nr_str_to_duration(struct nr_str s, uint64_t unit_ns, uint64_t *ret_ns);
bool nr_str_is_utf8(struct nr_str s);
/* Edit distance (Levenshtein) for "did you mean"; names of up to 63 bytes, else a large number. */
unsigned nr_str_distance(struct nr_str a, struct nr_str b);

/* Growable text with a cap. After an overflow or a failed allocation `failed` stays set, further
 * appends do nothing, so one check at the end suffices. Data is NUL-terminated unless empty. */
struct nr_text {
    char *data;
    size_t len;
    size_t capacity;
    size_t cap;
    bool failed;
};
void nr_text_init(struct nr_text *t, size_t cap_bytes);
void nr_text_done(struct nr_text *t);
void nr_text_clear(struct nr_text *t); /* keeps memory, resets failed */
bool nr_text_reserve(struct nr_text *t, size_t more_bytes);
void nr_text_add(struct nr_text *t, const void *data, size_t len);
void nr_text_str(struct nr_text *t, const char *text);
void nr_text_fmt(struct nr_text *t, const char *fmt, ...) nr_printf(2, 3);
void nr_text_json(struct nr_text *t, struct nr_str s); /* quoted and escaped; invalid UTF-8 → U+FFFD */
char *nr_text_take(struct nr_text *t); /* caller frees by nr_free; never NULL ("" when empty) */

#endif
