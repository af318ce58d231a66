/* A strict pull scanner for JSON (RFC 8259) over one contiguous text: no tree, no recursion, no
 * allocation but for strings with escapes.
 *
 * The caller asks for what it expects and the scanner answers or fails with the position and what
 * was expected; nothing is read twice. Objects and arrays are walked like this:
 *
 *     bool more;
 *     st = nr_json_object(j);
 *     while (st == NARU_OK && (st = nr_json_member(j, &more, &key)) == NARU_OK && more) { value }
 *
 * Limits: depth NR_JSON_DEPTH_MAX; NR_JSON_KEYS_MAX members per object. Duplicate keys are refused
 * by callers that keep the keys (struct nr_json_members). Strings must be valid UTF-8 and escapes
 * valid Unicode (no lone surrogates). One thread at a time.
 */
#ifndef NR_CODEC_JSON_SCAN_H
#define NR_CODEC_JSON_SCAN_H

#include <stdbool.h>
#include <stdint.h>

#include "base/arena.h"
#include "base/status.h"
#include "base/str.h"

#define NR_JSON_DEPTH_MAX 64
#define NR_JSON_KEYS_MAX 1024

struct nr_json {
    const char *start, *p, *end;
    struct nr_arena *arena; /* for strings with escapes */
    struct nr_err *err;
    unsigned depth;
    bool first; /* nothing of the innermost container was read yet */
    bool
        nonfinite; /* nr_json_skip takes NaN and infinities too (nr_nonfinite_scan): false at first */
    uint16_t members[NR_JSON_DEPTH_MAX]; /* of each open object */
};

void nr_json_init(struct nr_json *j, struct nr_str text, struct nr_arena *arena,
                  struct nr_err *err);

/* NARU_INVALID: "invalid JSON at byte N: expected …, got …". */
nr_nodiscard nr_status nr_json_fail(struct nr_json *j, const char *expected);
/* The same for a value that is well-formed but not what is wanted, begun at `at`. */
nr_nodiscard nr_status nr_json_fail_at(struct nr_json *j, const char *at, const char *expected);

static inline void nr_json_space(struct nr_json *j)
{
    const char *p = j->p;
    while (p < j->end && (*p == ' ' || *p == '\n' || *p == '\r' || *p == '\t')) {
        p++;
    }
    j->p = p;
}

/* The first character of the next value, '\0' at the end of the text. Does not consume it. */
static inline char nr_json_peek(struct nr_json *j)
{
    nr_json_space(j);
    return j->p < j->end ? *j->p : '\0';
}

nr_nodiscard nr_status nr_json_object(struct nr_json *j); /* enters one */
nr_nodiscard nr_status nr_json_array(struct nr_json *j);
/* The next key and its colon, or *more = false and the object is left. */
nr_nodiscard nr_status nr_json_member(struct nr_json *j, bool *more, struct nr_str *key);
/* Stands before the next element, or *more = false and the array is left. */
nr_nodiscard nr_status nr_json_element(struct nr_json *j, bool *more);
/* A string's characters: a view on the text, or in the arena when it has escapes. */
nr_nodiscard nr_status nr_json_string(struct nr_json *j, struct nr_str *ret);
nr_nodiscard nr_status nr_json_bool(struct nr_json *j, bool *ret);
nr_nodiscard nr_status nr_json_u64(struct nr_json *j, uint64_t *ret);
nr_nodiscard nr_status nr_json_i64(struct nr_json *j, int64_t *ret);
nr_nodiscard nr_status nr_json_double(struct nr_json *j, double *ret);
/* Any value, checked; *ret (may be NULL) is its text. */
nr_nodiscard nr_status nr_json_skip(struct nr_json *j, struct nr_str *ret);
/* Nothing but white space may follow. */
nr_nodiscard nr_status nr_json_done(struct nr_json *j);

/* Walks over a string from behind its opening quote: *n_escaped (bytes that escapes take beyond
 * what they stand for) says how much shorter the characters are. *at: behind the closing quote. */
nr_nodiscard nr_status nr_json_string_scan(struct nr_json *j, const char **at, size_t *n_escaped);
/* Unescapes a scanned string's inside [from, to) to out; returns the end. */
char *nr_json_unescape(const char *from, const char *to, char *out);

/* The keys of one object, to find duplicates in constant time each. */
#define NR_JSON_KEYS_FEW 8
struct nr_json_keys {
    unsigned n, capacity;
    struct nr_str *keys;
    uint16_t *slots; /* hash table of index + 1, once there are more than a few */
    struct nr_str few[NR_JSON_KEYS_FEW];
};
static inline void nr_json_keys_init(struct nr_json_keys *k)
{
    k->n = 0;
    k->capacity = NR_JSON_KEYS_FEW;
    k->keys = k->few;
    k->slots = NULL;
}
/* NARU_INVALID when key was there already, NARU_NOMEM. At most NR_JSON_KEYS_MAX keys. */
nr_nodiscard nr_status nr_json_keys_add(struct nr_json_keys *k, struct nr_json *j,
                                        struct nr_str key);

/* A walk over the members of an object whose keys may not repeat:
 *     nr_uninit struct nr_json_members m;
 *     nr_status st = nr_json_members_begin(&m, j);
 *     while (nr_json_members_next(&m, j, &st)) { read the value of m.key, its status into st }
 * It ends behind the object, or with what went wrong in st. */
struct nr_json_members {
    struct nr_str key;
    struct nr_json_keys keys;
};
nr_nodiscard static inline nr_status nr_json_members_begin(struct nr_json_members *m,
                                                           struct nr_json *j)
{
    nr_json_keys_init(&m->keys);
    return nr_json_object(j);
}
static inline bool nr_json_members_next(struct nr_json_members *m, struct nr_json *j, nr_status *st)
{
    bool more = false;
    if (*st == NARU_OK) {
        *st = nr_json_member(j, &more, &m->key);
    }
    if (*st == NARU_OK && more) {
        *st = nr_json_keys_add(&m->keys, j, m->key);
    }
    return *st == NARU_OK && more;
}

#endif
