/* Memory and set-up of HTTP/2 sessions of one loop.
 *
 * nghttp2 takes about six pieces of memory for every request (stream, outbound items, header
 * copies). Its allocator is pointed here: pieces of up to 4 KiB come from free lists by size class,
 * so that a request in steady state costs no malloc. A piece carries its class in front of it.
 *
 * Invariant: a piece returns to the pool it came from; sessions and pool belong to one loop. */
#include "base/mem.h"
#include "http/h2.h"

#define CLASS_MIN_SHIFT 6u /* 64 bytes */
#define N_CLASSES 7u       /* … 4 KiB */
#define FREE_MAX 256u
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
    unsigned i = 0;
    while (i < N_CLASSES && ((size_t)1 << (CLASS_MIN_SHIFT + i)) < bytes) {
        i++;
    }
    return i < N_CLASSES ? i : CLASS_LARGE;
}

static void *pool_malloc(size_t bytes, void *user)
{
    struct nr_h2_pool *p = user;
    unsigned i = class_of(bytes);
    struct nr_h2_chunk *k;
    if (bytes > UINT32_MAX) {
        return NULL;
    }
    if (i == CLASS_LARGE) {
        k = nr_try_alloc_aligned(16, sizeof(*k) + bytes);
    } else if (p->free[i]) {
        k = p->free[i];
        p->free[i] = k->u.next;
        p->n_free[i]--;
    } else {
        k = nr_try_alloc_aligned(16, sizeof(*k) + ((size_t)1 << (CLASS_MIN_SHIFT + i)));
    }
    if (!k) {
        return NULL;
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
    if (i == CLASS_LARGE || p->n_free[i] >= FREE_MAX) {
        nr_free(k);
        return;
    }
    k->u.next = p->free[i];
    p->free[i] = k;
    p->n_free[i]++;
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
    return p;
}

void nr_h2_pool_free(struct nr_h2_pool *p)
{
    if (!p) {
        return;
    }
    nghttp2_session_callbacks_del(p->callbacks);
    nghttp2_option_del(p->option);
    for (unsigned i = 0; i < N_CLASSES; i++) {
        while (p->free[i]) {
            struct nr_h2_chunk *k = p->free[i];
            p->free[i] = k->u.next;
            nr_free(k);
        }
    }
    nr_free(p);
}
