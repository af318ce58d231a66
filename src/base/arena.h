/* Arena: all small memory of one request, freed at once.
 *
 * Blocks come from a per-thread free list, so a request in steady state costs no malloc. One block
 * is kept over nr_arena_clear. Memory is 16-byte aligned. Not thread safe: an arena has one owner
 * at a time (handing it over with a message is fine).
 * Cleanup handlers run in reverse order at clear and done (links to shared buffers, mostly), while
 * the arena's memory is still there; they must not allocate from it.
 */
#ifndef NR_BASE_ARENA_H
#define NR_BASE_ARENA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/mem.h"
#include "base/str.h"

#define NR_ARENA_BLOCK_BYTES 4096
#define NR_ARENA_ALIGN 16

struct nr_arena_block;
struct nr_arena_cleanup;
struct nr_buf;

struct nr_arena {
    char *at;                         /* free memory of the current block: next byte … */
    char *end;                        /* … and behind its last one */
    struct nr_arena_block *block;     /* current one; the others hang behind it */
    struct nr_arena_cleanup *cleanup; /* newest first */
    size_t total_bytes;               /* of all its blocks */
    size_t limit_bytes;               /* nr_arena_try_* fail beyond; 0: none */
};

/* limit_bytes bounds what nr_arena_try_* may take, in whole blocks (the first block is always
 * granted to a request no larger than the limit); nr_arena_alloc and friends are not bounded. */
void nr_arena_init(struct nr_arena *a, size_t limit_bytes);
void nr_arena_done(
    struct nr_arena *a); /* runs cleanups, gives all blocks back; a is as after init */
void nr_arena_clear(struct nr_arena *a); /* runs cleanups, keeps one block */

void *nr_arena_alloc_slow(struct nr_arena *a, size_t bytes) __attribute__((returns_nonnull));

/* For sizes fixed in the program; not zeroed; aborts without memory. 0 bytes give a valid pointer. */
static inline __attribute__((returns_nonnull)) void *nr_arena_alloc(struct nr_arena *a,
                                                                    size_t bytes)
{
    /* bytes - 1: 0 wraps to the largest size and goes the slow way, like what does not fit. at and
     * end are both aligned, so what fits unrounded fits rounded. */
    if (NR_UNLIKELY(bytes - 1 >= (size_t)(a->end - a->at))) {
        return nr_arena_alloc_slow(a, bytes);
    }
    char *p = a->at;
    a->at = p + ((bytes + NR_ARENA_ALIGN - 1) & ~(size_t)(NR_ARENA_ALIGN - 1));
    nr_asan_unpoison(p, bytes);
    return p;
}
void *nr_arena_zalloc(struct nr_arena *a, size_t bytes) __attribute__((returns_nonnull));
/* For sizes a peer or a model chooses: NULL over the limit or out of memory. Not zeroed. */
void *nr_arena_try_alloc(struct nr_arena *a, size_t bytes);
#define nr_arena_new(a, type) ((type *)nr_arena_zalloc((a), sizeof(type)))
/* n * size checked; NULL on overflow, limit or failure. Zeroed. */
void *nr_arena_try_array(struct nr_arena *a, size_t n, size_t size);
/* Copies; the result is NUL-terminated as well. Abort without memory: for texts of bounded size. */
struct nr_str nr_arena_str(struct nr_arena *a, struct nr_str s);
char *nr_arena_strz(struct nr_arena *a, struct nr_str s);
struct nr_str nr_arena_fmt(struct nr_arena *a, const char *fmt, ...) nr_printf(2, 3);
void nr_arena_defer(struct nr_arena *a, void (*fn)(void *), void *arg);
/* Ties a reference of buf to the arena: takes over the caller's reference. */
void nr_arena_link(struct nr_arena *a, struct nr_buf *buf);
/* Returns the blocks kept by this thread to the system; done by itself when a thread ends. */
void nr_arena_thread_done(void);

#endif
