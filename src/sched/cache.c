/* The response cache: key, table, least recently used, admission; see the header for the rules.
 *
 * DESIGN. A miss changes the request in one place only: its on_complete is replaced by ours, which
 * stores the answer and gives the request back as it was. The lock covers the table and its lists,
 * never a copy of bytes: an entry is made outside it and inserted complete, a hit takes a reference
 * and leaves.
 *
 * INVARIANTS
 *  1. bytes is the sum of cost() of the entries in the table, and never above max_bytes.
 *  2. An entry is in the table exactly while it is on the list; it never changes after insertion.
 *  3. The newest entry that was used stands at the end of the list.
 */
#include "sched/cache.h"

#include <pthread.h>
#include <string.h>
#include <sys/random.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/map.h"
#include "base/mem.h"

#define SECRET_BYTES 192 /* what XXH3 recommends */
#define SKETCH_ROWS 4
#define SKETCH_COLUMNS 8192 /* a power of two */
#define SKETCH_MOST 255
#define ALIGN_OUT ((size_t)64) /* of each output within an entry */

struct key {
    uint64_t low, high; /* of the hash */
    uint64_t owner;     /* the version */
    uint64_t bytes;     /* of the inputs */
};

struct entry {
    struct nr_list node;
    struct key key;
    struct nr_buf *buf; /* all outputs */
    unsigned n_outputs;
    struct nr_infer_tensor outputs[]; /* data points into buf */
};

struct nr_cache {
    uint64_t max_bytes;
    uint8_t secret[SECRET_BYTES];
    _Atomic uint64_t n_owners; /* relaxed: numbers only have to differ */
    pthread_mutex_t lock;
    struct nr_map table;
    struct nr_list used; /* least recently used first */
    struct nr_cache_stats stats;
    /* How often keys were asked for lately: counts that may be too high, never too low, halved now
     * and then. */
    uint8_t sketch[SKETCH_ROWS][SKETCH_COLUMNS];
    unsigned n_counted;
};

struct nr_cached {
    struct nr_target target;
    struct nr_cache *cache;
    struct nr_target *inner;
    struct nr_counters *counters;
    uint64_t owner;
};

struct miss { /* a request on its way through the inner target; in its arena */
    struct nr_cached *front;
    struct key key;
    void (*on_complete)(struct nr_request *r);
    void *previous;
    int64_t lookup_ns;
};

struct nr_cache *nr_cache_new(uint64_t max_bytes)
{
    struct nr_cache *c = nr_new(struct nr_cache);
    c->max_bytes = c->stats.max_bytes = max_bytes;
    /* Never fails for so few bytes once the system is up; a weak secret is no reason to stop. */
    if (getrandom(c->secret, sizeof(c->secret), 0) != (ssize_t)sizeof(c->secret)) {
        int64_t now_ns = nr_clock_wall();
        memcpy(c->secret, &now_ns, sizeof(now_ns));
    }
    pthread_mutex_init(&c->lock, NULL);
    nr_map_init(&c->table);
    nr_list_init(&c->used);
    return c;
}

/* --- the table; under the lock ---------------------------------------------------------------- */

static struct entry *entry_of(struct nr_list *node)
{
    return nr_container_of(node, struct entry, node);
}

static struct nr_str key_text(const struct key *k)
{
    return (struct nr_str){(const char *)k, sizeof(*k)};
}

static uint64_t cost(const struct entry *e)
{
    /* What the table and the list take beside it, roughly. */
    return nr_buf_bytes(e->buf) + sizeof(*e) + e->n_outputs * sizeof(e->outputs[0]) + 128;
}

static void entry_free(struct entry *e)
{
    nr_buf_unref(e->buf);
    nr_free(e);
}

static void drop(struct nr_cache *c, struct entry *e)
{
    nr_list_remove(&e->node);
    (void)nr_map_remove(&c->table, key_text(&e->key));
    c->stats.bytes -= cost(e);
    c->stats.entries--;
    entry_free(e);
}

static uint8_t *cell(struct nr_cache *c, const struct key *k, unsigned row)
{
    uint64_t mixed = k->low + row * (k->high | 1); /* double hashing: rows differ */
    return &c->sketch[row][(mixed >> 16) % SKETCH_COLUMNS];
}

static unsigned seen(struct nr_cache *c, const struct key *k)
{
    unsigned least = SKETCH_MOST;
    for (unsigned i = 0; i < SKETCH_ROWS; i++) {
        least = NR_MIN(least, *cell(c, k, i));
    }
    return least;
}

static void count(struct nr_cache *c, const struct key *k)
{
    unsigned least = seen(c, k);
    for (unsigned i = 0; i < SKETCH_ROWS; i++) {
        uint8_t *at = cell(c, k, i);
        if (*at == least && least < SKETCH_MOST) { /* conservative update */
            (*at)++;
        }
    }
    if (++c->n_counted < 10u * SKETCH_COLUMNS) {
        return;
    }
    c->n_counted /= 2;
    for (unsigned i = 0; i < SKETCH_ROWS; i++) {
        for (unsigned k2 = 0; k2 < SKETCH_COLUMNS; k2++) {
            c->sketch[i][k2] /= 2;
        }
    }
}

/* Makes room for `e`, unless those that would have to go are asked for more often. */
static bool admit(struct nr_cache *c, const struct entry *e)
{
    uint64_t need = cost(e);
    if (need > c->max_bytes / 8 && need > c->max_bytes - NR_MIN(c->stats.bytes, c->max_bytes)) {
        return false;
    }
    unsigned rank = seen(c, &e->key);
    while (c->stats.bytes + need > c->max_bytes) {
        struct entry *oldest = entry_of(c->used.next);
        if (seen(c, &oldest->key) > rank) {
            return false;
        }
        drop(c, oldest);
        c->stats.evicted++;
    }
    return true;
}

static void insert(struct nr_cache *c, struct entry *e)
{
    pthread_mutex_lock(&c->lock);
    while (nr_buf_scarce() && !nr_list_empty(&c->used)) { /* requests need the memory more */
        drop(c, entry_of(c->used.next));
        c->stats.evicted++;
    }
    const struct entry *same = nr_map_get(&c->table, key_text(&e->key));
    bool taken = same == NULL && cost(e) <= c->max_bytes && admit(c, e);
    if (taken) {
        (void)nr_map_put(&c->table, key_text(&e->key), e);
        nr_list_append(&c->used, &e->node);
        c->stats.bytes += cost(e);
        c->stats.entries++;
    }
    c->stats.turned_away += !taken && same == NULL;
    pthread_mutex_unlock(&c->lock);
    if (!taken) {
        entry_free(e);
    }
}

/* --- the key ---------------------------------------------------------------------------------- */

static size_t aligned(size_t bytes)
{
    return (bytes + ALIGN_OUT - 1) & ~(ALIGN_OUT - 1);
}

static bool key_of(const struct nr_cached *f, const struct nr_request *r, struct key *ret)
{
    const struct nr_infer_request *in = r->in;
    uint64_t bytes = 0;
    for (unsigned i = 0; i < in->n_inputs; i++) {
        bytes += in->inputs[i].bytes;
    }
    if (bytes > NR_CACHE_MAX_INPUT_BYTES) {
        return false;
    }
    /* Not on the stack, where gcc 12 with its address sanitizer does not keep an alignment of 64. */
    static _Thread_local XXH3_state_t h;
    XXH3_128bits_reset_withSecret(&h, f->cache->secret, sizeof(f->cache->secret));
    const uint64_t what[] = {f->owner, in->n_inputs, in->n_outputs, r->n_options};
    XXH3_128bits_update(&h, what, sizeof(what));
    for (unsigned i = 0; i < in->n_inputs; i++) {
        const struct nr_infer_tensor *t = &in->inputs[i];
        const uint64_t head[] = {t->index, (uint64_t)t->dtype, t->rank, t->bytes};
        XXH3_128bits_update(&h, head, sizeof(head));
        XXH3_128bits_update(&h, t->shape, t->rank * sizeof(t->shape[0]));
        XXH3_128bits_update(&h, t->data, t->bytes);
    }
    for (unsigned i = 0; i < in->n_outputs; i++) {
        XXH3_128bits_update(&h, &in->outputs[i].index, sizeof(in->outputs[i].index));
    }
    for (unsigned i = 0; i < r->n_options; i++) {
        XXH3_128bits_update(&h, r->options[i].key, strlen(r->options[i].key) + 1);
        XXH3_128bits_update(&h, r->options[i].value, strlen(r->options[i].value) + 1);
    }
    XXH128_hash_t hash = XXH3_128bits_digest(&h);
    *ret = (struct key){.low = hash.low64, .high = hash.high64, .owner = f->owner, .bytes = bytes};
    return true;
}

/* --- a miss ----------------------------------------------------------------------------------- */

/* The answer as an entry; NULL: no memory for it. */
static struct entry *entry_new(const struct nr_request *r, const struct key *key)
{
    size_t bytes = 0;
    for (unsigned i = 0; i < r->n_outputs; i++) {
        bytes = aligned(bytes) + r->outputs[i].bytes; /* they exist: no overflow */
    }
    struct entry *e = nr_try_alloc(sizeof(*e) + r->n_outputs * sizeof(e->outputs[0]));
    struct nr_buf *buf = e != NULL ? nr_buf_try_new(bytes) : NULL;
    if (buf == NULL) {
        nr_free(e);
        return NULL;
    }
    e->key = *key;
    e->buf = buf;
    e->n_outputs = r->n_outputs;
    size_t at = 0;
    for (unsigned i = 0; i < r->n_outputs; i++) {
        const struct nr_infer_tensor *t = &r->outputs[i];
        at = aligned(at);
        memcpy(nr_buf_data(buf) + at, t->data, t->bytes);
        e->outputs[i] = *t;
        e->outputs[i].data = nr_buf_data(buf) + at;
        e->outputs[i].buf = buf;
        at += t->bytes;
    }
    return e;
}

static void on_complete(struct nr_request *r)
{
    struct miss *m = r->front;
    struct nr_cached *f = m->front;
    int64_t begin_ns = nr_clock_now();
    r->front = m->previous;
    r->on_complete = m->on_complete;
    struct entry *e = r->status == NARU_OK ? entry_new(r, &m->key) : NULL;
    if (e != NULL) {
        insert(f->cache, e);
    }
    nr_counters_cache_miss(f->counters, nr_loop_index(r->loop),
                           m->lookup_ns + nr_clock_now() - begin_ns);
    r->on_complete(r);
}

/* --- the target ------------------------------------------------------------------------------- */

/* Under no lock: e is held by the reference that find() took for buf, and its struct by a copy. */
static void answer(struct nr_cached *f, struct nr_request *r, int64_t begin_ns)
{
    r->status = NARU_OK;
    r->error = (struct nr_str){0};
    r->queued_ns = r->begin_ns = r->infer_begin_ns = r->infer_end_ns = begin_ns;
    r->end_ns = nr_clock_now();
    r->batch_rows = (uint32_t)r->in->rows;
    r->ran_inline = true;
    atomic_store_explicit(&r->state, NR_REQUEST_DONE, memory_order_relaxed);
    nr_counters_cache_hit(f->counters, nr_loop_index(r->loop), r, r->end_ns - begin_ns);
    r->on_complete(r);
}

/* True: the request's outputs are those of the entry, which is the newest now. */
static bool find(struct nr_cached *f, struct nr_request *r, const struct key *key)
{
    struct nr_cache *c = f->cache;
    pthread_mutex_lock(&c->lock);
    count(c, key);
    struct entry *e = nr_map_get(&c->table, key_text(key));
    c->stats.hits += e != NULL;
    c->stats.misses += e == NULL;
    if (e != NULL) {
        nr_list_remove(&e->node);
        nr_list_append(&c->used, &e->node);
        r->n_outputs = e->n_outputs;
        r->outputs = nr_arena_alloc(r->arena, NR_MAX(e->n_outputs, 1u) * sizeof(r->outputs[0]));
        memcpy(r->outputs, e->outputs, e->n_outputs * sizeof(r->outputs[0]));
        nr_arena_link(r->arena, nr_buf_ref(e->buf));
    }
    pthread_mutex_unlock(&c->lock);
    return e != NULL;
}

static void submit(struct nr_target *t, struct nr_request *r)
{
    struct nr_cached *f = nr_container_of(t, struct nr_cached, target);
    int64_t begin_ns = nr_clock_now();
    struct key key;
    r->target = f->inner;
    if (!key_of(f, r, &key)) {
        nr_request_submit(r);
        return;
    }
    if (find(f, r, &key)) {
        answer(f, r, begin_ns);
        return;
    }
    struct miss *m = nr_arena_new(r->arena, struct miss);
    *m = (struct miss){.front = f,
                       .key = key,
                       .on_complete = r->on_complete,
                       .previous = r->front,
                       .lookup_ns = nr_clock_now() - begin_ns};
    r->front = m;
    r->on_complete = on_complete;
    nr_request_submit(r);
}

/* A hit completes within submit and a miss belongs to the inner target: nothing is ours. */
static void cancel(struct nr_target *t, struct nr_request *r, nr_status status, bool running_too)
{
    (void)t;
    (void)r;
    (void)status;
    (void)running_too;
}

struct nr_cached *nr_cached_new(struct nr_cache *c, struct nr_target *inner,
                                struct nr_counters *counters)
{
    struct nr_cached *f = nr_new(struct nr_cached);
    *f = (struct nr_cached){.target = {.submit = submit, .cancel = cancel},
                            .cache = c,
                            .inner = inner,
                            .counters = counters,
                            .owner =
                                atomic_fetch_add_explicit(&c->n_owners, 1, memory_order_relaxed)};
    return f;
}

void nr_cached_free(struct nr_cached *f)
{
    if (f == NULL) {
        return;
    }
    struct nr_cache *c = f->cache;
    pthread_mutex_lock(&c->lock);
    struct nr_list *next;
    for (struct nr_list *node = c->used.next; node != &c->used; node = next) {
        next = node->next;
        if (entry_of(node)->key.owner == f->owner) {
            drop(c, entry_of(node));
        }
    }
    pthread_mutex_unlock(&c->lock);
    nr_free(f);
}

struct nr_target *nr_cached_target(struct nr_cached *f)
{
    return &f->target;
}

void nr_cache_stats_get(struct nr_cache *c, struct nr_cache_stats *ret)
{
    *ret = (struct nr_cache_stats){0};
    if (c != NULL) {
        pthread_mutex_lock(&c->lock);
        *ret = c->stats;
        pthread_mutex_unlock(&c->lock);
    }
}

void nr_cache_free(struct nr_cache *c)
{
    if (c == NULL) {
        return;
    }
    struct nr_list *node;
    while ((node = nr_list_pop(&c->used)) != NULL) {
        entry_free(entry_of(node));
    }
    nr_map_done(&c->table);
    pthread_mutex_destroy(&c->lock);
    nr_free(c);
}
