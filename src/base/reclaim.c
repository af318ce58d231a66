/* Memory back to the system.
 *
 * Code. Opening a framework and its first model runs through many megabytes of code (registries,
 * parsers, optimizers) that no request needs again, but pages of files stay in the resident size of a
 * process until memory is short. MADV_DONTNEED drops them from the page table; they stay in the page
 * cache, so that coming back is a minor fault of about a microsecond. Of ONNX Runtime's 27 MB, 18 are
 * dropped and 4 come back when a small model serves.
 *
 * That is safe for pages which are what the file says. A private mapping may hold changed copies (a
 * debugger's breakpoint, a probe, a relocation in a text segment), and dropping those would undo the
 * change. /proc/self/pagemap tells them apart: bit 63 present, 62 swapped, 61 page of a file (Linux
 * Documentation/admin-guide/mm/pagemap.rst). Segments that are writable or were made read-only after
 * relocation are marked writable in their program header, and are not looked at.
 *
 * Invariants
 *  1. A segment with a page that is not the file's own is never dropped. A page that is changed between
 *     the look and the drop would be: who writes to text while models load has a debugger, and can wait.
 *
 * Threads: none of this has state.
 */
#include "base/reclaim.h"

#include <fcntl.h>
#include <link.h>
#include <malloc.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/status.h"

#define PRESENT (UINT64_C(1) << 63)
#define SWAPPED (UINT64_C(1) << 62)
#define OF_A_FILE (UINT64_C(1) << 61)
#define ENTRIES 512 /* read at once */

struct walk {
    int pagemap;
    uintptr_t page_bytes;
    size_t dropped_bytes;
};

/* Every page of [begin, end) that has a copy in memory is the file's. */
static bool is_unchanged(const struct walk *w, uintptr_t begin, uintptr_t end)
{
    uint64_t entries[ENTRIES];
    uintptr_t at = begin / w->page_bytes, last = end / w->page_bytes;
    while (at < last) {
        size_t n = NR_MIN((size_t)(last - at), (size_t)ENTRIES);
        ssize_t got =
            pread(w->pagemap, entries, n * sizeof(entries[0]), (off_t)(at * sizeof(entries[0])));
        if (got <= 0 || (size_t)got % sizeof(entries[0]) != 0) {
            return false;
        }
        n = (size_t)got / sizeof(entries[0]);
        for (size_t i = 0; i < n; i++) {
            bool is_copy = (entries[i] & PRESENT) != 0 && (entries[i] & OF_A_FILE) == 0;
            if (is_copy || (entries[i] & SWAPPED) != 0) {
                return false;
            }
        }
        at += n;
    }
    return true;
}

static int drop_object(struct dl_phdr_info *info, size_t size, void *arg)
{
    struct walk *w = arg;
    (void)size;
    for (unsigned i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *p = &info->dlpi_phdr[i];
        if (p->p_type != PT_LOAD || (p->p_flags & PF_W) != 0) {
            continue;
        }
        uintptr_t begin = (uintptr_t)info->dlpi_addr + p->p_vaddr;
        uintptr_t end = begin + p->p_memsz + w->page_bytes - 1;
        begin &= ~(w->page_bytes - 1);
        end &= ~(w->page_bytes - 1);
        void *at =
            (void *)begin; /* NOLINT(performance-no-int-to-ptr): an address of the loader's */
        if (is_unchanged(w, begin, end) && madvise(at, end - begin, MADV_DONTNEED) == 0) {
            w->dropped_bytes += end - begin;
        }
    }
    return 0;
}

size_t nr_reclaim_code(void)
{
    struct walk w = {.pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC),
                     .page_bytes = (uintptr_t)sysconf(_SC_PAGESIZE)};
    if (w.pagemap < 0) {
        return 0;
    }
    (void)dl_iterate_phdr(drop_object, &w);
    (void)close(w.pagemap);
    return w.dropped_bytes;
}

void nr_reclaim_heap(void)
{
#ifdef __GLIBC__
    (void)malloc_trim(0);
#endif
}
