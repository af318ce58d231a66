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
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/map.h"
#include "base/mem.h"
#include "sched/answer.h"

#define SECRET_BYTES 192 /* what XXH3 recommends */
#define SKETCH_ROWS 4
#define SKETCH_COLUMNS 8192 /* a power of two */
#define SKETCH_MOST 255

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
    struct nr_cached_cfg cfg;
    uint64_t owner;
};

#define SHARED_KEY_BYTES 64

/* A request that was not found: it waits for the shared cache, then it is on its way through the inner
 * target. In its arena. */
struct miss {
    struct nr_cached *front;
    struct nr_request *request;
    struct key key;
    struct nr_redis_get *get; /* under way */
    size_t shared_len;        /* 0: the shared cache is not asked */
    char shared[SHARED_KEY_BYTES];
    void (*on_complete)(struct nr_request *r);
    void *previous;
    int64_t begin_ns, lookup_ns;
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

/* Everything that the answer depends on, but for the version. */
static XXH128_hash_t hash_of(const struct nr_request *r, const uint8_t *secret,
                             const uint64_t version[2])
{
    const struct nr_infer_request *in = r->in;
    /* Not on the stack, where gcc 12 with its address sanitizer does not keep an alignment of 64. */
    static _Thread_local XXH3_state_t h;
    XXH3_128bits_reset_withSecret(&h, secret, SECRET_BYTES);
    const uint64_t what[] = {version[0], version[1], in->n_inputs, in->n_outputs, r->n_options};
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
    return XXH3_128bits_digest(&h);
}

static bool key_of(const struct nr_cached *f, const struct nr_request *r, struct key *ret)
{
    const uint64_t version[2] = {f->owner, 0};
    uint64_t bytes = 0;
    for (unsigned i = 0; i < r->in->n_inputs; i++) {
        bytes += r->in->inputs[i].bytes;
    }
    if (bytes > NR_CACHE_MAX_INPUT_BYTES) {
        return false;
    }
    XXH128_hash_t hash = hash_of(r, f->cfg.cache->secret, version);
    *ret = (struct key){.low = hash.low64, .high = hash.high64, .owner = f->owner, .bytes = bytes};
    return true;
}

/* --- a miss ----------------------------------------------------------------------------------- */

/* Outputs that point into block as an entry, which takes a reference. NULL: no memory. */
static struct entry *entry_new(const struct key *key, struct nr_buf *block,
                               const struct nr_infer_tensor *outputs, unsigned n)
{
    struct entry *e = nr_try_alloc(sizeof(*e) + n * sizeof(e->outputs[0]));
    if (e != NULL) {
        e->key = *key;
        e->buf = nr_buf_ref(block);
        e->n_outputs = n;
        memcpy(e->outputs, outputs, n * sizeof(e->outputs[0]));
    }
    return e;
}

static void keep(struct nr_cached *f, const struct key *key, struct nr_buf *block,
                 const struct nr_infer_tensor *outputs, unsigned n)
{
    struct entry *e = entry_new(key, block, outputs, n);
    if (e != NULL) {
        insert(f->cfg.cache, e);
    }
}

/* The answer of a model into both caches. What it cannot be read back from is not kept. */
static void store(const struct miss *m, struct nr_request *r)
{
    struct nr_cached *f = m->front;
    struct nr_buf *block = nr_answer_pack(r->outputs, r->n_outputs);
    struct nr_infer_tensor *outputs =
        nr_arena_alloc(r->arena, NR_MAX(r->n_outputs, 1u) * sizeof(*outputs));
    if (block != NULL && r->n_outputs == r->in->n_outputs &&
        nr_answer_unpack(block, f->cfg.signature, r->in, outputs)) {
        keep(f, &m->key, block, outputs, r->n_outputs);
        if (m->shared_len > 0) {
            nr_redis_put(f->cfg.redis, (struct nr_str){m->shared, m->shared_len},
                         nr_buf_ref(block));
        }
    }
    nr_buf_unref(block);
}

static void on_complete(struct nr_request *r)
{
    struct miss *m = r->front;
    struct nr_cached *f = m->front;
    int64_t begin_ns = nr_clock_now();
    r->front = m->previous;
    r->on_complete = m->on_complete;
    if (r->status == NARU_OK) {
        store(m, r);
    }
    nr_counters_cache_miss(f->cfg.counters, nr_loop_index(r->loop),
                           m->lookup_ns + nr_clock_now() - begin_ns);
    r->on_complete(r);
}

/* Not found anywhere: the model is asked. */
static void ask_inner(struct miss *m)
{
    struct nr_request *r = m->request;
    m->lookup_ns = nr_clock_now() - m->begin_ns;
    r->target = m->front->cfg.inner;
    r->front = m;
    r->on_complete = on_complete;
    nr_request_submit(r);
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
    nr_counters_cache_hit(f->cfg.counters, nr_loop_index(r->loop), r, r->end_ns - begin_ns);
    r->on_complete(r);
}

/* True: the request's outputs are those of the entry, which is the newest now. */
static bool find(struct nr_cached *f, struct nr_request *r, const struct key *key)
{
    struct nr_cache *c = f->cfg.cache;
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

/* --- the shared cache --------------------------------------------------------------------------- */

/* The shared cache has answered. value: one reference, or NULL. */
static void on_shared(void *arg, struct nr_buf *value)
{
    struct miss *m = arg;
    struct nr_request *r = m->request;
    struct nr_cached *f = m->front;
    unsigned n = r->in->n_outputs;
    struct nr_infer_tensor *outputs = nr_arena_alloc(r->arena, NR_MAX(n, 1u) * sizeof(*outputs));
    r->front = m->previous;
    if (value == NULL || !nr_answer_unpack(value, f->cfg.signature, r->in, outputs)) {
        nr_buf_unref(value);
        ask_inner(m);
        return;
    }
    keep(f, &m->key, value, outputs, n);
    r->outputs = outputs;
    r->n_outputs = n;
    nr_arena_link(r->arena, value);
    answer(f, r, m->begin_ns);
}

/* True: the request waits for the shared cache. */
static bool ask_shared(struct miss *m)
{
    struct nr_cached *f = m->front;
    struct nr_request *r = m->request;
    const uint8_t *secret = f->cfg.redis != NULL ? nr_redis_secret(f->cfg.redis) : NULL;
    if (secret == NULL) {
        return false;
    }
    XXH128_hash_t hash = hash_of(r, secret, f->cfg.fingerprint);
    int len = snprintf(m->shared, sizeof m->shared, "naru:1:%016llx%016llx:%llx",
                       (unsigned long long)hash.high64, (unsigned long long)hash.low64,
                       (unsigned long long)m->key.bytes);
    m->shared_len = (size_t)len;
    r->target = &f->target;
    r->front = m;
    m->get = nr_redis_get(f->cfg.redis, (struct nr_str){m->shared, m->shared_len}, r->loop,
                          on_shared, m);
    return m->get != NULL;
}

/* --- submitting -------------------------------------------------------------------------------- */

static void submit(struct nr_target *t, struct nr_request *r)
{
    struct nr_cached *f = nr_container_of(t, struct nr_cached, target);
    int64_t begin_ns = nr_clock_now();
    struct key key;
    if (!key_of(f, r, &key)) {
        r->target = f->cfg.inner;
        nr_request_submit(r);
        return;
    }
    if (find(f, r, &key)) {
        answer(f, r, begin_ns);
        return;
    }
    struct miss *m = nr_arena_new(r->arena, struct miss);
    *m = (struct miss){.front = f,
                       .request = r,
                       .key = key,
                       .on_complete = r->on_complete,
                       .previous = r->front,
                       .begin_ns = begin_ns};
    if (!ask_shared(m)) {
        ask_inner(m);
    }
}

/* Only while it waits for the shared cache is a request ours; a hit completes within submit. */
static void cancel(struct nr_target *t, struct nr_request *r, nr_status status, bool running_too)
{
    (void)running_too;
    struct nr_cached *f = nr_container_of(t, struct nr_cached, target);
    struct miss *m = r->front;
    if (atomic_load_explicit(&r->state, memory_order_relaxed) == NR_REQUEST_DONE) {
        return;
    }
    nr_redis_forget(m->get);
    r->front = m->previous;
    r->status = status;
    r->error = NR_STR("the request was cancelled, or its time was over, before it ran");
    atomic_store_explicit(&r->state, NR_REQUEST_DONE, memory_order_relaxed);
    nr_counters_failure(f->cfg.counters, nr_loop_index(r->loop), NR_FAIL_CANCELED,
                        nr_clock_now() - r->arrival_ns);
    r->on_complete(r);
}

struct nr_cached *nr_cached_new(const struct nr_cached_cfg *cfg)
{
    struct nr_cached *f = nr_new(struct nr_cached);
    *f = (struct nr_cached){
        .target = {.submit = submit, .cancel = cancel},
        .cfg = *cfg,
        .owner = atomic_fetch_add_explicit(&cfg->cache->n_owners, 1, memory_order_relaxed)};
    return f;
}

void nr_cached_free(struct nr_cached *f)
{
    if (f == NULL) {
        return;
    }
    struct nr_cache *c = f->cfg.cache;
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
