/* Arena blocks and their per-thread pool.
 *
 * The bump allocation is inline in the header; here is what happens every few kilobytes. Blocks
 * are all of one size so that any block serves any request; what does not fit a block gets a
 * malloc'ed one of its own, which is given back at clear. A new small block becomes current only
 * if it has more room left than the old one, so a run of middling sizes does not waste both.
 *
 * Invariants
 * 1. a->block is the current block: at and end lie in it (or both are NULL).
 * 2. Every block of the list is charged in total_bytes; blocks of NR_ARENA_BLOCK_BYTES, and only
 *    they, go to the pool.
 * 3. A pool holds at most POOL_MAX blocks (1 MiB) and belongs to one thread; a block may end in
 *    another thread's pool than it began.
 * Threads: an arena has one owner at a time; pools need no lock.
 */
#include "base/arena.h"

#include <stdarg.h>
#include <stdio.h>

#include "base/buf.h"
#include "base/mem.h"

#define POOL_MAX 256

struct nr_arena_block {
    struct nr_arena_block *prev;
    size_t bytes; /* with this header */
};
#define HEADER_BYTES sizeof(struct nr_arena_block)
_Static_assert(sizeof(struct nr_arena_block) % NR_ARENA_ALIGN == 0, "data stays aligned");

struct nr_arena_cleanup {
    struct nr_arena_cleanup *next;
    void (*fn)(void *);
    void *arg;
};

static _Thread_local struct nr_arena_block *pool_head;
static _Thread_local unsigned pool_n;

static void block_free(struct nr_arena_block *b)
{
    char *data = (char *)b + HEADER_BYTES;
    if (b->bytes != NR_ARENA_BLOCK_BYTES || pool_n >= POOL_MAX) {
        nr_asan_unpoison(data, b->bytes - HEADER_BYTES);
        nr_free(b);
        return;
    }
    if (pool_head == NULL) {
        nr_mem_at_thread_end(nr_arena_thread_done);
    }
    nr_asan_poison(data, b->bytes - HEADER_BYTES);
    b->prev = pool_head;
    pool_head = b;
    pool_n++;
}

void nr_arena_thread_done(void)
{
    while (pool_head != NULL) {
        struct nr_arena_block *b = pool_head;
        pool_head = b->prev;
        pool_n--;
        nr_asan_unpoison((char *)b + HEADER_BYTES, b->bytes - HEADER_BYTES);
        nr_free(b);
    }
}

/* A block with its data poisoned; NULL without memory. */
static struct nr_arena_block *block_new(size_t bytes, bool may_fail)
{
    struct nr_arena_block *b = NULL;
    if (bytes == NR_ARENA_BLOCK_BYTES && pool_head != NULL) {
        /* A pooled block must be able to fail as well, or tests would depend on the pool. */
        if (may_fail && nr_mem_must_fail()) {
            return NULL;
        }
        b = pool_head;
        pool_head = b->prev;
        pool_n--;
        return b;
    }
    /* 16-byte alignment is what malloc gives; no zeroing, unlike nr_alloc. */
    b = may_fail ? nr_try_realloc(NULL, bytes) : nr_realloc(NULL, bytes);
    if (b != NULL) {
        b->bytes = bytes;
        nr_asan_poison((char *)b + HEADER_BYTES, bytes - HEADER_BYTES);
    }
    return b;
}

void nr_arena_init(struct nr_arena *a, size_t limit_bytes)
{
    *a = (struct nr_arena){.limit_bytes = limit_bytes};
}

static void run_cleanups(struct nr_arena *a)
{
    while (a->cleanup != NULL) {
        struct nr_arena_cleanup *c = a->cleanup;
        a->cleanup = c->next;
        c->fn(c->arg);
    }
}

void nr_arena_clear(struct nr_arena *a)
{
    run_cleanups(a);
    struct nr_arena_block *keep = NULL;
    for (struct nr_arena_block *b = a->block, *prev; b != NULL; b = prev) {
        prev = b->prev;
        if (keep == NULL && b->bytes == NR_ARENA_BLOCK_BYTES) {
            keep = b;
        } else {
            block_free(b);
        }
    }
    *a = (struct nr_arena){.limit_bytes = a->limit_bytes};
    if (keep != NULL) {
        nr_asan_poison((char *)keep + HEADER_BYTES, keep->bytes - HEADER_BYTES);
        keep->prev = NULL;
        a->block = keep;
        a->at = (char *)keep + HEADER_BYTES;
        a->end = (char *)keep + keep->bytes;
        a->total_bytes = keep->bytes;
    }
}

void nr_arena_done(struct nr_arena *a)
{
    nr_arena_clear(a);
    if (a->block != NULL) {
        block_free(a->block);
    }
    *a = (struct nr_arena){.limit_bytes = a->limit_bytes};
}

/* Adds a block with room for `bytes` and takes them from it. */
static void *grow(struct nr_arena *a, size_t bytes, bool may_fail)
{
    size_t total = NR_ARENA_BLOCK_BYTES;
    size_t rounded = (bytes + (bytes == 0) + NR_ARENA_ALIGN - 1) & ~(size_t)(NR_ARENA_ALIGN - 1);
    if (bytes > NR_ARENA_BLOCK_BYTES - HEADER_BYTES && !nr_add(rounded, HEADER_BYTES, &total)) {
        return NULL;
    }
    struct nr_arena_block *b = block_new(total, may_fail);
    if (b == NULL) {
        return NULL;
    }
    a->total_bytes += total;
    char *data = (char *)b + HEADER_BYTES;
    nr_asan_unpoison(data, bytes);
    size_t rest = total - HEADER_BYTES - rounded;
    if (a->block != NULL && (size_t)(a->end - a->at) >= rest) {
        b->prev = a->block->prev;
        a->block->prev = b;
    } else {
        b->prev = a->block;
        a->block = b;
        a->at = data + rounded;
        a->end = (char *)b + total;
    }
    return data;
}

void *nr_arena_alloc_slow(struct nr_arena *a, size_t bytes)
{
    /* Sizes are fixed and small here, so what cannot be had or added up is our own mistake. */
    NR_ASSERT(bytes <= SIZE_MAX / 2);
    if (bytes == 0 && a->at != a->end) {
        return nr_arena_alloc(a, 1);
    }
    void *p = grow(a, bytes, false);
    NR_ASSERT(p != NULL);
    return p;
}

void *nr_arena_try_alloc(struct nr_arena *a, size_t bytes)
{
    bytes += bytes == 0;
    if (bytes <= (size_t)(a->end - a->at)) {
        return nr_arena_alloc(a, bytes);
    }
    if (bytes > SIZE_MAX / 2) {
        return NULL;
    }
    size_t limit = a->limit_bytes;
    size_t need = NR_MAX(bytes + HEADER_BYTES, (size_t)NR_ARENA_BLOCK_BYTES);
    bool is_first = a->total_bytes == 0 && bytes <= limit && need == NR_ARENA_BLOCK_BYTES;
    if (limit != 0 && !is_first && (a->total_bytes >= limit || need > limit - a->total_bytes)) {
        return NULL;
    }
    return grow(a, bytes, true);
}

void *nr_arena_zalloc(struct nr_arena *a, size_t bytes)
{
    return memset(nr_arena_alloc(a, bytes), 0, bytes);
}

void *nr_arena_try_array(struct nr_arena *a, size_t n, size_t size)
{
    size_t bytes;
    if (!nr_mul(n, size, &bytes)) {
        return NULL;
    }
    void *p = nr_arena_try_alloc(a, bytes);
    return p != NULL ? memset(p, 0, bytes) : NULL;
}

char *nr_arena_strz(struct nr_arena *a, struct nr_str s)
{
    char *copy = nr_arena_alloc(a, s.len + 1);
    if (s.len > 0) {
        memcpy(copy, s.ptr, s.len);
    }
    copy[s.len] = '\0';
    return copy;
}

struct nr_str nr_arena_str(struct nr_arena *a, struct nr_str s)
{
    return (struct nr_str){nr_arena_strz(a, s), s.len};
}

struct nr_str nr_arena_fmt(struct nr_arena *a, const char *fmt, ...)
{
    nr_uninit char small[256]; /* most texts need no second pass */
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(small, sizeof(small), fmt, args);
    va_end(args);
    NR_ASSERT(n >= 0);
    if ((size_t)n < sizeof(small)) {
        return nr_arena_str(a, (struct nr_str){small, (size_t)n});
    }
    char *text = nr_arena_alloc(a, (size_t)n + 1);
    va_start(args, fmt);
    vsnprintf(text, (size_t)n + 1, fmt, args);
    va_end(args);
    return (struct nr_str){text, (size_t)n};
}

void nr_arena_defer(struct nr_arena *a, void (*fn)(void *), void *arg)
{
    struct nr_arena_cleanup *c = nr_arena_alloc(a, sizeof(*c));
    *c = (struct nr_arena_cleanup){.next = a->cleanup, .fn = fn, .arg = arg};
    a->cleanup = c;
}

static void unref_buf(void *buf)
{
    nr_buf_unref(buf);
}

void nr_arena_link(struct nr_arena *a, struct nr_buf *buf)
{
    nr_arena_defer(a, unref_buf, buf);
}
