/* Heap access: two kinds of allocation, and a way to make the second kind fail in tests.
 *
 * nr_new and friends are for fixed, small sizes and abort when memory is gone. nr_try_* are for
 * sizes that a peer or a model chooses and return NULL; callers answer with NARU_NOMEM.
 * nr_mem_fail_after(n) makes the n-th nr_try_* from now on return NULL (for ever when `forever`),
 * for the failing-allocation loops of the tests. nr_mem_allocs() counts all calls of this thread.
 */
#ifndef NR_BASE_MEM_H
#define NR_BASE_MEM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include "base/status.h"

void *nr_alloc(size_t bytes) __attribute__((malloc, returns_nonnull));      /* zeroed; aborts */
void *nr_realloc(void *ptr, size_t bytes) __attribute__((returns_nonnull)); /* growth not zeroed */
char *nr_strdup(const char *text) __attribute__((returns_nonnull));
char *nr_format(const char *fmt, ...) nr_printf(1, 2) __attribute__((returns_nonnull));
void *nr_try_alloc(size_t bytes);              /* zeroed, NULL on failure; bytes 0 gives 1 byte */
void *nr_try_realloc(void *ptr, size_t bytes); /* NULL on failure, ptr stays valid */
void *nr_try_alloc_aligned(size_t align, size_t bytes); /* not zeroed; freed by nr_free */
void nr_free(void *ptr);

#define nr_new(type) ((type *)nr_alloc(sizeof(type)))
#define nr_new_array(type, n) ((type *)nr_alloc_array((n), sizeof(type)))
void *nr_alloc_array(size_t n, size_t size) __attribute__((returns_nonnull)); /* overflow aborts */

void nr_mem_fail_after(uint64_t n, bool forever); /* 0 switches it off; process-wide */
uint64_t nr_mem_allocs(void);
/* For allocators built on others (buffers, arenas): counts as one nr_try_* for nr_mem_fail_after;
 * true when this one must fail. */
bool nr_mem_must_fail(void);
/* Runs fn once at the end of the calling thread (per-thread pools give their memory back so).
 * Registering the same fn again before the thread ends does nothing. At most
 * NR_MEM_THREAD_HOOKS different ones. Not run for the main thread at exit(). */
#define NR_MEM_THREAD_HOOKS 8
void nr_mem_at_thread_end(void (*fn)(void));

/* Under AddressSanitizer pools mark the memory they hold, so that a stale pointer into a pooled
 * object is found as it would be after free(). Nothing otherwise. */
#if defined(__SANITIZE_ADDRESS__)
#define NR_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define NR_ASAN 1
#endif
#endif
#ifdef NR_ASAN
void __asan_poison_memory_region(void const volatile *addr, size_t size);
void __asan_unpoison_memory_region(void const volatile *addr, size_t size);
#define nr_asan_poison(ptr, bytes) __asan_poison_memory_region((ptr), (bytes))
#define nr_asan_unpoison(ptr, bytes) __asan_unpoison_memory_region((ptr), (bytes))
#else
#define nr_asan_poison(ptr, bytes) ((void)(ptr), (void)(bytes))
#define nr_asan_unpoison(ptr, bytes) ((void)(ptr), (void)(bytes))
#endif

/* Scope cleanup: nr_autofree char *p = …; */
static inline void nr_free_at(void *p)
{
    nr_free(*(void **)p);
}
#define nr_autofree nr_cleanup(nr_free_at)

/* Overflow-checked arithmetic for sizes that come from outside; true on success. */
static inline bool nr_mul(size_t a, size_t b, size_t *ret)
{
    return !__builtin_mul_overflow(a, b, ret);
}
static inline bool nr_add(size_t a, size_t b, size_t *ret)
{
    return !__builtin_add_overflow(a, b, ret);
}

#endif
