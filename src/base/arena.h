/* Arena: all small memory of one request, freed at once.
 *
 * Blocks come from a per-thread free list, so a request in steady state costs no malloc. The first
 * block is kept over nr_arena_clear. Memory is 16-byte aligned. Not thread safe: an arena has one
 * owner at a time (handing it over with a message is fine).
 * Cleanup handlers run in reverse order at clear and done (links to shared buffers, mostly).
 */
#ifndef NR_BASE_ARENA_H
#define NR_BASE_ARENA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/str.h"

#define NR_ARENA_BLOCK_BYTES 4096

struct nr_arena_block;
struct nr_arena_cleanup;
struct nr_buf;

struct nr_arena {
    struct nr_arena_block *block;     /* newest, allocation goes here */
    struct nr_arena_cleanup *cleanup; /* newest first */
    size_t used;                      /* within block */
    size_t total_bytes;               /* taken from the system for this arena */
    size_t limit_bytes;               /* nr_arena_try_alloc fails beyond; 0: none */
};

void nr_arena_init(struct nr_arena *a, size_t limit_bytes);
void nr_arena_done(struct nr_arena *a);
void nr_arena_clear(struct nr_arena *a); /* runs cleanups, keeps one block */
void *nr_arena_alloc(struct nr_arena *a, size_t bytes) __attribute__((returns_nonnull)); /* not zeroed; aborts */
void *nr_arena_zalloc(struct nr_arena *a, size_t bytes) __attribute__((returns_nonnull));
void *nr_arena_try_alloc(struct nr_arena *a, size_t bytes); /* NULL over limit or out of memory */
#define nr_arena_new(a, type) ((type *)nr_arena_zalloc((a), sizeof(type)))
/* n * size checked; NULL on overflow, limit or failure. Zeroed. */
void *nr_arena_try_array(struct nr_arena *a, size_t n, size_t size);
/* Copies; the result is NUL-terminated as well. */
struct nr_str nr_arena_str(struct nr_arena *a, struct nr_str s);
char *nr_arena_strz(struct nr_arena *a, struct nr_str s);
struct nr_str nr_arena_fmt(struct nr_arena *a, const char *fmt, ...) nr_printf(2, 3);
void nr_arena_defer(struct nr_arena *a, void (*fn)(void *), void *arg);
/* Ties a reference of buf to the arena: takes over the caller's reference. */
void nr_arena_link(struct nr_arena *a, struct nr_buf *buf);
/* Returns the blocks kept by this thread to the system (thread end, tests). */
void nr_arena_thread_done(void);

#endif
