/* Heap access on top of malloc, with counting and failure injection.
 *
 * Why a layer at all: the two kinds of allocation (abort, or answer an error) must be told apart
 * by name, so that a reader sees which sizes a peer controls; and every place that can fail must
 * be made to fail by a test. The layer adds no header to a block: nr_free is free.
 *
 * Invariants
 * 1. Functions without `try` in their name never return NULL.
 * 2. Every allocation of the layer raises this thread's counter, injected failures included.
 * 3. Injection touches no shared memory while it is off but one read of a line nobody writes.
 * Threads: the counter is per thread, the injection process-wide (tests of one thread use it).
 */
#include "base/mem.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

/* No heap block of ours is that large (tensors of such a size are mapped, see buf.c); an allocator
 * need not be asked, and those of the sanitizers would end the process. */
#define TRY_MAX_BYTES ((size_t)1 << 39)

static _Thread_local uint64_t thread_allocs;

/* Allocations left until the failing one, which is at 1; 0: off. */
static _Atomic uint64_t fail_countdown;
static _Atomic bool fail_forever;

_Noreturn static void out_of_memory(size_t bytes)
{
    fprintf(stderr, "naru: out of memory: %zu bytes for a small fixed need\n", bytes);
    abort();
}

bool nr_mem_must_fail(void)
{
    uint64_t left = atomic_load_explicit(&fail_countdown, memory_order_relaxed);
    if (NR_LIKELY(left == 0)) {
        return false;
    }
    for (;;) {
        if (left == 0) {
            return false;
        }
        bool is_forever = atomic_load_explicit(&fail_forever, memory_order_relaxed);
        uint64_t next = left == 1 && is_forever ? 1 : left - 1;
        if (atomic_compare_exchange_weak_explicit(&fail_countdown, &left, next,
                                                  memory_order_relaxed, memory_order_relaxed)) {
            return left == 1;
        }
    }
}

void nr_mem_fail_after(uint64_t n, bool forever)
{
    atomic_store_explicit(&fail_forever, forever, memory_order_relaxed);
    atomic_store_explicit(&fail_countdown, n, memory_order_relaxed);
}

uint64_t nr_mem_allocs(void)
{
    return thread_allocs;
}

void *nr_alloc(size_t bytes)
{
    thread_allocs++;
    void *p = calloc(1, bytes ? bytes : 1);
    if (NR_UNLIKELY(p == NULL)) {
        out_of_memory(bytes);
    }
    return p;
}

void *nr_alloc_array(size_t n, size_t size)
{
    size_t bytes;
    if (NR_UNLIKELY(!nr_mul(n, size, &bytes))) {
        out_of_memory(SIZE_MAX);
    }
    return nr_alloc(bytes);
}

void *nr_realloc(void *ptr, size_t bytes)
{
    thread_allocs++;
    void *p = realloc(ptr, bytes ? bytes : 1);
    if (NR_UNLIKELY(p == NULL)) {
        out_of_memory(bytes);
    }
    return p;
}

char *nr_strdup(const char *text)
{
    size_t bytes = strlen(text) + 1;
    return memcpy(nr_realloc(NULL, bytes), text, bytes);
}

char *nr_format(const char *fmt, ...)
{
    char *text = NULL;
    va_list args;
    va_start(args, fmt);
    thread_allocs++;
    int n = vasprintf(&text, fmt, args);
    va_end(args);
    if (NR_UNLIKELY(n < 0 || text == NULL)) {
        out_of_memory(0);
    }
    return text;
}

/* Counts a fallible allocation; false when it must fail. */
static bool may_try(size_t bytes)
{
    thread_allocs++;
    return !nr_mem_must_fail() && bytes <= TRY_MAX_BYTES;
}

void *nr_try_alloc(size_t bytes)
{
    return may_try(bytes) ? calloc(1, bytes ? bytes : 1) : NULL;
}

void *nr_try_realloc(void *ptr, size_t bytes)
{
    return may_try(bytes) ? realloc(ptr, bytes ? bytes : 1) : NULL;
}

void *nr_try_alloc_aligned(size_t align, size_t bytes)
{
    void *p = NULL;
    if (!may_try(bytes) || posix_memalign(&p, align, bytes ? bytes : 1) != 0) {
        return NULL;
    }
    return p;
}

void nr_free(void *ptr)
{
    free(ptr);
}

/* Thread-end hooks. The array is in thread storage; the key's value only makes pthread call us.
 * A hook that runs may lead to new registrations (a destructor of another library frees a buffer
 * into a pool): pthread calls again, PTHREAD_DESTRUCTOR_ITERATIONS times at most. */
static pthread_key_t end_key;
static pthread_once_t end_once = PTHREAD_ONCE_INIT;
static _Thread_local void (*end_hooks[NR_MEM_THREAD_HOOKS])(void);

static void run_end_hooks(void *hooks)
{
    void (**fns)(void) = hooks;
    for (size_t i = 0; i < NR_MEM_THREAD_HOOKS; i++) {
        if (fns[i] != NULL) {
            void (*fn)(void) = fns[i];
            fns[i] = NULL;
            fn();
        }
    }
}

static void make_end_key(void)
{
    NR_ASSERT(pthread_key_create(&end_key, run_end_hooks) == 0);
}

void nr_mem_at_thread_end(void (*fn)(void))
{
    pthread_once(&end_once, make_end_key);
    for (size_t i = 0; i < NR_MEM_THREAD_HOOKS; i++) {
        if (end_hooks[i] == fn) {
            return;
        }
        if (end_hooks[i] == NULL) {
            end_hooks[i] = fn;
            NR_ASSERT(pthread_setspecific(end_key, end_hooks) == 0);
            return;
        }
    }
    NR_ASSERT(false && "NR_MEM_THREAD_HOOKS is large enough");
}
