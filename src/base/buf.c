/* Refcounted buffers: size classes pooled per thread, a header in front of the data, mappings for
 * the large ones, and a budget that tiny requests do not pay for.
 *
 *   size              memory                                   freed to
 *   <= 64 KiB         header + data in one block of a power     the freeing thread's pool
 *                     of two (256 B … 64 KiB) of data
 *   < 1 MiB           header + data in one malloc'ed block      malloc
 *   >= 1 MiB          header (pooled) + mapping                 the system at once, or by another
 *                                                             thread (nr_buf_set_unmap)
 *   wrapped           header (pooled)                           destroy(), then the pool
 *
 * A block freed by another thread stays with that thread: no lock, no shared free list. Where one
 * thread only allocates and another only frees, the second one's pool fills to its bound and the
 * rest goes through malloc, which is what would happen without a pool.
 *
 * Accounting. live = shared_live + every thread's unflushed delta. Buffers above 64 KiB change
 * shared_live at once (one relaxed atomic beside hundreds of page writes); pooled sizes change a
 * thread-local delta which is flushed when it leaves ±FLUSH_BYTES and when the thread ends. So a
 * tiny request writes no shared line, and the total is wrong by at most FLUSH_BYTES per thread.
 *
 * Invariants
 * 1. charged_bytes is added exactly once when a buffer is made and taken off when it is freed.
 * 2. refs is 0 only while a block lies in a pool.
 * 3. Data of a pooled block is 64-byte aligned because the header is 128 bytes and the block is.
 * 4. Pool bounds: small classes (<= 4 KiB, and headers) 1 MiB per thread together, others 2 MiB.
 */
#include "base/buf.h"

#include <stdbool.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/mem.h"

#define MIN_SHIFT 8
#define MAX_SHIFT 16
#define N_DATA_CLASSES (MAX_SHIFT - MIN_SHIFT + 1)
#define HEADER_CLASS N_DATA_CLASSES /* a header alone */
#define N_CLASSES (N_DATA_CLASSES + 1)
#define NO_CLASS 0xff
#define HEADER_BYTES ((size_t)128)
#define MAP_BYTES ((size_t)1 << 20)
#define FLUSH_BYTES ((int64_t)256 << 10)
#define SMALL_SHIFT 12
_Static_assert(sizeof(struct nr_buf) <= HEADER_BYTES, "the header fits in front of the data");
_Static_assert((1u << MAX_SHIFT) == NR_BUF_POOL_BYTES, "the largest class is the pool's promise");

static const size_t pool_bound[2] = {(size_t)2 << 20, (size_t)1 << 20}; /* [is_small] */

struct pool {
    struct nr_buf *free[N_CLASSES];
    size_t held[2]; /* bytes in the free lists, [is_small] */
    int64_t delta;  /* live bytes not yet in shared_live */
    bool has_hook;
};
static _Thread_local struct pool pool;

/* Written together only by large buffers and flushes. Signed: a thread that only frees flushes
 * its negative delta before the allocating thread flushes its positive one. */
static _Atomic int64_t shared_live;
static _Atomic uint64_t budget; /* 0: none; read often, written at start */
static bool (*_Atomic unmap_elsewhere)(void *memory, size_t bytes); /* the same */

static size_t class_bytes(unsigned class)
{
    return class == HEADER_CLASS ? HEADER_BYTES : HEADER_BYTES + ((size_t)1 << (class + MIN_SHIFT));
}

static bool class_is_small(unsigned class)
{
    return class == HEADER_CLASS || class + MIN_SHIFT <= SMALL_SHIFT;
}

static unsigned class_of(size_t bytes)
{
    if (bytes <= (size_t)1 << MIN_SHIFT) {
        return 0;
    }
    return 64u - (unsigned)__builtin_clzll(bytes - 1) - MIN_SHIFT;
}

static void flush_delta(void)
{
    atomic_fetch_add_explicit(&shared_live, pool.delta, memory_order_relaxed);
    pool.delta = 0;
}

static void ensure_hook(void)
{
    if (NR_UNLIKELY(!pool.has_hook)) {
        pool.has_hook = true;
        nr_mem_at_thread_end(nr_buf_thread_done);
    }
}

/* False when the budget does not allow it. Relaxed is enough: the figure guards memory, it orders
 * nothing. */
static bool charge(size_t bytes)
{
    uint64_t allowed = atomic_load_explicit(&budget, memory_order_relaxed);
    if (bytes > INT64_MAX / 2) {
        return false;
    }
    int64_t more = (int64_t)bytes;
    if (bytes <= NR_BUF_POOL_BYTES) {
        int64_t live = atomic_load_explicit(&shared_live, memory_order_relaxed) + pool.delta;
        if (allowed != 0 && live + more > (int64_t)allowed) {
            return false;
        }
        pool.delta += more;
        if (pool.delta > FLUSH_BYTES) {
            flush_delta();
        }
        return true;
    }
    int64_t live = atomic_fetch_add_explicit(&shared_live, more, memory_order_relaxed) + more;
    if (allowed != 0 && live + pool.delta > (int64_t)allowed) {
        atomic_fetch_sub_explicit(&shared_live, more, memory_order_relaxed);
        return false;
    }
    return true;
}

static void discharge(size_t bytes)
{
    if (bytes <= NR_BUF_POOL_BYTES) {
        pool.delta -= (int64_t)bytes;
        if (pool.delta < -FLUSH_BYTES) {
            flush_delta();
        }
    } else {
        atomic_fetch_sub_explicit(&shared_live, (int64_t)bytes, memory_order_relaxed);
    }
}

static struct nr_buf *pool_take(unsigned class)
{
    ensure_hook();
    struct nr_buf *b = pool.free[class];
    if (b == NULL) {
        return nr_try_alloc_aligned(NR_BUF_ALIGN, class_bytes(class));
    }
    if (nr_mem_must_fail()) {
        return NULL;
    }
    nr_asan_unpoison(b, class_bytes(class));
    pool.free[class] = b->next;
    pool.held[class_is_small(class)] -= class_bytes(class);
    return b;
}

static void pool_give(struct nr_buf *b, unsigned class)
{
    size_t bytes = class_bytes(class);
    size_t *held = &pool.held[class_is_small(class)];
    nr_asan_unpoison(b, bytes);
    if (*held + bytes > pool_bound[class_is_small(class)]) {
        nr_free(b);
        return;
    }
    ensure_hook();
    *held += bytes;
    b->next = pool.free[class];
    pool.free[class] = b;
    /* All but the link: the leak checker follows no pointer in poisoned memory. */
    nr_asan_poison(b, offsetof(struct nr_buf, next));
    nr_asan_poison(b + 1, bytes - sizeof(*b));
}

void nr_buf_thread_done(void)
{
    for (unsigned class = 0; class < N_CLASSES; class ++) {
        while (pool.free[class] != NULL) {
            struct nr_buf *b = pool.free[class];
            nr_asan_unpoison(b, class_bytes(class));
            pool.free[class] = b->next;
            nr_free(b);
        }
    }
    pool.held[0] = pool.held[1] = 0;
    pool.has_hook = false;
    flush_delta();
}

static void header_init(struct nr_buf *b, void *data, size_t bytes, uint8_t class, size_t charged)
{
    *b = (struct nr_buf){
        .region = {.struct_size = sizeof(naru_region),
                   .mem_type = NARU_MEM_HOST,
                   .fd = -1,
                   .base = data,
                   .bytes = bytes},
        .pool_class = class,
        .charged_bytes = charged,
    };
    atomic_init(&b->refs, 1);
}

static struct nr_buf *new_mapped(size_t bytes, size_t charged)
{
    struct nr_buf *b = pool_take(HEADER_CLASS);
    if (b == NULL) {
        return NULL;
    }
    void *data = MAP_FAILED;
    if (!nr_mem_must_fail()) {
        data = mmap(NULL, charged, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    }
    if (data == MAP_FAILED) {
        pool_give(b, HEADER_CLASS);
        return NULL;
    }
    header_init(b, data, bytes, HEADER_CLASS, charged);
    return b;
}

struct nr_buf *nr_buf_try_new(size_t bytes)
{
    size_t charged;
    if (bytes <= NR_BUF_POOL_BYTES) {
        charged = (size_t)1 << (class_of(bytes) + MIN_SHIFT);
    } else if (!nr_add(bytes, 4095, &charged)) {
        return NULL;
    } else {
        charged &= ~(size_t)4095;
    }
    if (!charge(charged)) {
        return NULL;
    }
    struct nr_buf *b;
    if (bytes >= MAP_BYTES) {
        b = new_mapped(bytes, charged);
    } else {
        bool is_pooled = bytes <= NR_BUF_POOL_BYTES;
        b = is_pooled ? pool_take(class_of(bytes))
                      : nr_try_alloc_aligned(NR_BUF_ALIGN, HEADER_BYTES + bytes);
        if (b != NULL) {
            uint8_t *data = (uint8_t *)b + HEADER_BYTES;
            header_init(b, data, bytes, is_pooled ? (uint8_t)class_of(bytes) : NO_CLASS, charged);
            if (is_pooled) {
                nr_asan_poison(data + bytes, charged - bytes);
            }
        }
    }
    if (b == NULL) {
        discharge(charged);
    }
    return b;
}

struct nr_buf *nr_buf_try_wrap(void *data, size_t bytes, void (*destroy)(struct nr_buf *),
                               void *owner)
{
    struct nr_buf *b = pool_take(HEADER_CLASS);
    if (b != NULL) {
        header_init(b, data, bytes, HEADER_CLASS, 0);
        b->destroy = destroy;
        b->owner = owner;
    }
    return b;
}

struct nr_buf *nr_buf_ref(struct nr_buf *b)
{
    /* Relaxed: the caller already holds a reference, so nothing can be freed meanwhile. */
    uint32_t before = atomic_fetch_add_explicit(&b->refs, 1, memory_order_relaxed);
    NR_DCHECK(before > 0 && before < UINT32_MAX);
    (void)before;
    return b;
}

static void unmap(void *memory, size_t bytes)
{
    bool (*elsewhere)(void *, size_t) =
        atomic_load_explicit(&unmap_elsewhere, memory_order_acquire);
    if (bytes < NR_BUF_SLOW_UNMAP_BYTES || elsewhere == NULL || !elsewhere(memory, bytes)) {
        munmap(memory, bytes);
    }
}

void nr_buf_unref(struct nr_buf *b)
{
    if (b == NULL) {
        return;
    }
    /* A count of 1 can only be ours, and nobody can raise it: no locked instruction is needed.
     * The acquire load pairs with the release half of the other holders' fetch_sub. */
    if (atomic_load_explicit(&b->refs, memory_order_acquire) != 1) {
        uint32_t before = atomic_fetch_sub_explicit(&b->refs, 1, memory_order_acq_rel);
        NR_DCHECK(before > 0);
        if (before != 1) {
            return;
        }
    }
    atomic_store_explicit(&b->refs, 0, memory_order_relaxed);
    discharge(b->charged_bytes);
    if (b->destroy != NULL) {
        b->destroy(b);
    } else if (b->pool_class == HEADER_CLASS && b->charged_bytes > 0) {
        unmap(b->region.base, b->charged_bytes);
    }
    if (b->pool_class == NO_CLASS) {
        nr_free(b);
    } else {
        pool_give(b, b->pool_class);
    }
}

uint64_t nr_buf_live_bytes(void)
{
    int64_t live = atomic_load_explicit(&shared_live, memory_order_relaxed) + pool.delta;
    return live > 0 ? (uint64_t)live : 0;
}

bool nr_buf_scarce(void)
{
    uint64_t allowed = nr_buf_budget();
    return allowed != 0 && nr_buf_live_bytes() > allowed / 2;
}

void nr_buf_set_unmap(bool (*fn)(void *memory, size_t bytes))
{
    atomic_store_explicit(&unmap_elsewhere, fn, memory_order_release);
}

void nr_buf_set_budget(uint64_t bytes)
{
    atomic_store_explicit(&budget, NR_MIN(bytes, (uint64_t)INT64_MAX), memory_order_relaxed);
}

uint64_t nr_buf_budget(void)
{
    return atomic_load_explicit(&budget, memory_order_relaxed);
}
