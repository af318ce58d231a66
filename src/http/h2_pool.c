/* Memory and set-up of HTTP/2 sessions of one loop.
 *
 * nghttp2 takes about six pieces of memory for every request (stream, outbound items, header
 * copies). Its allocator is pointed here: pieces of up to 4 KiB come from free lists by size class,
 * so that a request in steady state costs no malloc. A piece carries its class in front of it.
 * The lists are bounded by bytes, not by count: 32 connections with 10 streams each have some thousand
 * small pieces in the air, and a bound that they pass would cost malloc and free for each of them.
 *
 * Invariants
 *  1. A piece returns to the pool it came from; sessions and pool belong to one loop.
 *  2. held_bytes is the sum over the free lists, without the chunks' heads. */
#include "base/mem.h"
#include "http/h2.h"

#define CLASS_MIN_SHIFT 6u /* 64 bytes */
#define N_CLASSES 7u       /* … 4 KiB */
#define CLASS_BYTES(i) ((size_t)1 << (CLASS_MIN_SHIFT + (i)))
#define HELD_MAX_BYTES ((size_t)2 << 20)
#define CLASS_LARGE 0xffu

struct nr_h2_chunk {
    union {
        struct nr_h2_chunk *next; /* while free */
        struct {
            uint32_t class_index;
            uint32_t bytes;
        } used;
    } u;
    size_t reserved_; /* keeps what follows 16-byte aligned */
    uint8_t data[];
};

static unsigned class_of(size_t bytes)
{
    if (bytes <= CLASS_BYTES(0)) {
        return 0;
    }
    unsigned i = 64u - (unsigned)__builtin_clzll(bytes - 1) - CLASS_MIN_SHIFT;
    return i < N_CLASSES ? i : CLASS_LARGE;
}

static __attribute__((noinline)) struct nr_h2_chunk *chunk_new(unsigned i, size_t bytes)
{
    size_t room = i == CLASS_LARGE ? bytes : CLASS_BYTES(i);
    return bytes <= UINT32_MAX ? nr_try_alloc_aligned(16, sizeof(struct nr_h2_chunk) + room) : NULL;
}

static void *pool_malloc(size_t bytes, void *user)
{
    struct nr_h2_pool *p = user;
    unsigned i = class_of(bytes);
    struct nr_h2_chunk *k = i != CLASS_LARGE ? p->free[i] : NULL;
    if (NR_LIKELY(k != NULL)) {
        p->free[i] = k->u.next;
        p->held_bytes -= CLASS_BYTES(i);
    } else {
        k = chunk_new(i, bytes);
        if (!k) {
            return NULL;
        }
    }
    k->u.used.class_index = i;
    k->u.used.bytes = (uint32_t)bytes;
    return k->data;
}

static void pool_free(void *ptr, void *user)
{
    struct nr_h2_pool *p = user;
    if (!ptr) {
        return;
    }
    struct nr_h2_chunk *k = nr_container_of(ptr, struct nr_h2_chunk, data);
    unsigned i = k->u.used.class_index;
    if (i == CLASS_LARGE || p->held_bytes >= HELD_MAX_BYTES) {
        nr_free(k);
        return;
    }
    p->held_bytes += CLASS_BYTES(i);
    k->u.next = p->free[i];
    p->free[i] = k;
}

static void *pool_calloc(size_t n, size_t size, void *user)
{
    size_t bytes;
    void *ptr = nr_mul(n, size, &bytes) ? pool_malloc(bytes, user) : NULL;
    return ptr ? memset(ptr, 0, bytes) : NULL;
}

static void *pool_realloc(void *ptr, size_t bytes, void *user)
{
    if (!ptr) {
        return pool_malloc(bytes, user);
    }
    struct nr_h2_chunk *k = nr_container_of(ptr, struct nr_h2_chunk, data);
    void *more = pool_malloc(bytes, user);
    if (more) {
        memcpy(more, ptr, NR_MIN((size_t)k->u.used.bytes, bytes));
        pool_free(ptr, user);
    }
    return more;
}

struct nr_h2_pool *nr_h2_pool_new(void)
{
    struct nr_h2_pool *p = nr_new(struct nr_h2_pool);
    p->mem = (nghttp2_mem){p, pool_malloc, pool_free, pool_calloc, pool_realloc};
    NR_ASSERT(nghttp2_session_callbacks_new(&p->callbacks) == 0);
    nr_h2_recv_callbacks(p->callbacks);
    nr_h2_send_callbacks(p->callbacks);
    NR_ASSERT(nghttp2_option_new(&p->option) == 0);
    nghttp2_option_set_max_settings(p->option, 32);
    nghttp2_option_set_no_closed_streams(p->option, 1); /* see nr_h2.ended_ids */
    return p;
}

size_t nr_h2_pool_trim(struct nr_h2_pool *p)
{
    size_t bytes = p ? p->held_bytes : 0;
    for (unsigned i = 0; bytes > 0 && i < N_CLASSES; i++) {
        while (p->free[i]) {
            struct nr_h2_chunk *k = p->free[i];
            p->free[i] = k->u.next;
            nr_free(k);
        }
    }
    if (p) {
        p->held_bytes = 0;
    }
    return bytes;
}

void nr_h2_pool_free(struct nr_h2_pool *p)
{
    if (!p) {
        return;
    }
    nghttp2_session_callbacks_del(p->callbacks);
    nghttp2_option_del(p->option);
    (void)nr_h2_pool_trim(p);
    nr_free(p);
}
