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

void *nr_alloc(size_t bytes) __attribute__((malloc, returns_nonnull)); /* zeroed; aborts */
void *nr_realloc(void *ptr, size_t bytes) __attribute__((returns_nonnull));
char *nr_strdup(const char *text) __attribute__((returns_nonnull));
char *nr_format(const char *fmt, ...) nr_printf(1, 2) __attribute__((returns_nonnull));
void *nr_try_alloc(size_t bytes);              /* zeroed, NULL on failure; bytes 0 gives 1 byte */
void *nr_try_realloc(void *ptr, size_t bytes); /* NULL on failure, ptr stays valid */
void *nr_try_alloc_aligned(size_t align, size_t bytes); /* not zeroed; freed by nr_free */
void nr_free(void *ptr);

#define nr_new(type) ((type *)nr_alloc(sizeof(type)))
#define nr_new_array(type, n) ((type *)nr_alloc_array((n), sizeof(type)))
void *nr_alloc_array(size_t n, size_t size) __attribute__((returns_nonnull)); /* overflow aborts */

void nr_mem_fail_after(uint64_t n, bool forever); /* 0 switches it off */
uint64_t nr_mem_allocs(void);

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
