/* A library to preload: counts the calls of malloc and its family in a process, by who called.
 *
 * Counts lie in the file that NARU_MALLOC_COUNT names, mapped and shared, so that whoever watches
 * reads them at any moment without asking the process: struct malloc_counts below, four uint64.
 *   own      the program itself and its plug-ins (naru-*.so)
 *   library  libraries that work for it (nghttp2, the C library, …)
 *   runtime  libonnxruntime, and libstdc++, which only that uses here
 *   freed    calls of free with a pointer, whoever called
 *
 * The caller is told by the return address, looked up with _dl_find_object, which takes no lock and
 * allocates nothing (glibc 2.35). The real functions are glibc's own names for them, so nothing is
 * looked up and no allocation can come before the counter is ready.
 *
 * Threads: counters are relaxed atomics.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <malloc.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

void *__libc_malloc(size_t bytes);
void *__libc_calloc(size_t n, size_t bytes);
void *__libc_realloc(void *ptr, size_t bytes);
void *__libc_memalign(size_t align, size_t bytes);
void __libc_free(void *ptr);

struct malloc_counts {
    _Atomic uint64_t own, library, runtime, freed;
};
static struct malloc_counts until_ready;
static struct malloc_counts *counts = &until_ready;

__attribute__((constructor)) static void open_counts(void)
{
    const char *path = getenv("NARU_MALLOC_COUNT");
    int fd = path != NULL ? open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600) : -1;
    if (fd >= 0 && ftruncate(fd, sizeof(*counts)) == 0) {
        void *shared = mmap(NULL, sizeof(*counts), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (shared != MAP_FAILED) {
            counts = shared;
        }
    }
    if (fd >= 0) {
        close(fd);
    }
}

static void count(void *caller)
{
    struct dl_find_object found;
    _Atomic uint64_t *which = &counts->library;
    if (_dl_find_object(caller, &found) == 0) {
        const char *path = found.dlfo_link_map->l_name;
        const char *slash = strrchr(path, '/');
        const char *name = slash != NULL ? slash + 1 : path;
        if (name[0] == '\0' || strncmp(name, "naru", 4) == 0) {
            which = &counts->own;
        } else if (strncmp(name, "libonnxruntime", 14) == 0 || strncmp(name, "libstdc++", 9) == 0) {
            which = &counts->runtime;
        }
    }
    atomic_fetch_add_explicit(which, 1, memory_order_relaxed);
}

EXPORT void *malloc(size_t bytes)
{
    count(__builtin_return_address(0));
    return __libc_malloc(bytes);
}

EXPORT void *calloc(size_t n, size_t bytes)
{
    count(__builtin_return_address(0));
    return __libc_calloc(n, bytes);
}

EXPORT void *realloc(void *ptr, size_t bytes)
{
    count(__builtin_return_address(0));
    return __libc_realloc(ptr, bytes);
}

EXPORT void *memalign(size_t align, size_t bytes)
{
    count(__builtin_return_address(0));
    return __libc_memalign(align, bytes);
}

EXPORT void *aligned_alloc(size_t align, size_t bytes)
{
    count(__builtin_return_address(0));
    return __libc_memalign(align, bytes);
}

EXPORT int posix_memalign(void **ret, size_t align, size_t bytes)
{
    count(__builtin_return_address(0));
    void *ptr = __libc_memalign(align, bytes);
    if (ptr == NULL) {
        return ENOMEM;
    }
    *ret = ptr;
    return 0;
}

EXPORT void free(void *ptr)
{
    if (ptr != NULL) {
        atomic_fetch_add_explicit(&counts->freed, 1, memory_order_relaxed);
    }
    __libc_free(ptr);
}
