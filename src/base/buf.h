/* Refcounted buffers for tensor bytes and bodies: data, capacity, memory type, destructor.
 *
 * A buffer may be shared by threads; the count is atomic. Small ones (up to NR_BUF_POOL_BYTES)
 * come from a per-thread pool so that steady state costs no malloc. Data starts at a 64-byte
 * boundary. Bytes of live buffers are counted (nr_buf_live_bytes) against a process-wide budget
 * (nr_buf_set_budget): beyond it nr_buf_try_new returns NULL, callers answer NARU_NOMEM. The count
 * is exact for buffers above NR_BUF_POOL_BYTES; of smaller ones each thread keeps up to 256 KiB to
 * itself, so that a tiny request writes no shared cache line (exact again when a thread ends).
 * Large buffers (1 MiB and more) are mapped, so that bytes not yet written cost no memory.
 */
#ifndef NR_BASE_BUF_H
#define NR_BASE_BUF_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "naru/tensor.h"

#define NR_BUF_ALIGN 64
#define NR_BUF_POOL_BYTES 65536

struct nr_buf {
    naru_region region; /* base, bytes (as asked for; 0 is allowed), memory type */
    _Atomic uint32_t refs;
    uint8_t pool_class;                /* which free list it returns to; 0xff none */
    void (*destroy)(struct nr_buf *b); /* for foreign memory; NULL for our own */
    void *owner;                       /* the destructor's */
    size_t charged_bytes;              /* against the budget: size class or whole pages */
    struct nr_buf *next;               /* free list */
};

/* One reference for the caller; contents undefined. NULL: out of memory or over the budget. */
struct nr_buf *nr_buf_try_new(size_t bytes);
/* Wraps memory that `destroy` releases (the header is not its business); `destroy` runs on the
 * thread of the last unref and may be NULL. Not charged. NULL when the header cannot be had: the
 * memory is then still the caller's. */
struct nr_buf *nr_buf_try_wrap(void *data, size_t bytes, void (*destroy)(struct nr_buf *),
                               void *owner);
struct nr_buf *nr_buf_ref(struct nr_buf *b);
void nr_buf_unref(struct nr_buf *b); /* accepts NULL */
static inline uint8_t *nr_buf_data(const struct nr_buf *b)
{
    return (uint8_t *)b->region.base;
}
static inline size_t nr_buf_bytes(const struct nr_buf *b)
{
    return (size_t)b->region.bytes;
}
uint64_t nr_buf_live_bytes(void);
void nr_buf_set_budget(uint64_t bytes); /* 0: none */
uint64_t nr_buf_budget(void);
/* Giving a mapping back takes the kernel 0.1 ms per MiB, too long for a thread that must not block.
 * Mappings of NR_BUF_SLOW_UNMAP_BYTES and more are offered to `unmap` (any thread; NULL: nobody,
 * the default): true when it has taken over the duty to munmap(memory, bytes), at whose begin it may
 * write a node of its own; false: the caller of nr_buf_unref does it. */
#define NR_BUF_SLOW_UNMAP_BYTES ((size_t)4 << 20)
void nr_buf_set_unmap(bool (*unmap)(void *memory, size_t bytes));
/* More than half of the budget is in use: who keeps buffers for later should let them go. */
bool nr_buf_scarce(void);
/* Gives this thread's pool back to the system; done by itself when a thread ends. */
void nr_buf_thread_done(void);

#endif
