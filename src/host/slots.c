/* Batch slots: a slab of rows with a bit for each one.
 *
 * DESIGN. Bits instead of a free list, because what matters is which rows are neighbours. A batch starts
 * at the lowest place that has as much room in front of what is taken as the last batch needed: so
 * two batches take turns on the same few pages, which stay in the processor's cache. A slab that turns
 * out too small is replaced by one of twice the rows. Rows that nobody wrote cost no memory (base/buf.h).
 *
 * Invariants
 * 1. A bit is set exactly while a buffer of nr_slots_take covers its row; n_taken is their number.
 * 2. A slab lives while it is the current one or a bit is set; slots live while they have an owner
 *    or a slab.
 */
#include "host/slots.h"

#include <pthread.h>
#include <stdbool.h>

#include "base/mem.h"

#define MAX_SLAB_BYTES ((size_t)64 << 20)
#define MAX_ROWS 1024u
#define FIRST_ROWS 8u
#define WORD_BITS 64u

struct slab {
    struct nr_slots *slots;
    struct nr_buf *memory;
    unsigned n_rows, n_taken;
    unsigned next;  /* the next take begins here, if there is room */
    unsigned begin; /* the batch that is being collected begins here */
    uint64_t taken[MAX_ROWS / WORD_BITS];
};

struct nr_slots {
    pthread_mutex_t lock; /* a leaf */
    size_t row_bytes;
    unsigned max_rows; /* of a slab */
    unsigned want_rows;
    unsigned refs;     /* the owner and every slab */
    struct slab *slab; /* takes come from here; NULL until the first one */
};

struct nr_slots *nr_slots_new(size_t row_bytes, size_t max_rows)
{
    if (row_bytes < NR_SLOTS_MIN_ROW_BYTES || max_rows < 2 || row_bytes > MAX_SLAB_BYTES / 2) {
        return NULL;
    }
    struct nr_slots *s = nr_new(struct nr_slots);
    pthread_mutex_init(&s->lock, NULL);
    s->row_bytes = row_bytes;
    s->max_rows = (unsigned)NR_MIN(NR_MIN(max_rows, MAX_ROWS / 2) * 2, MAX_SLAB_BYTES / row_bytes);
    s->want_rows = NR_MIN(s->max_rows, FIRST_ROWS);
    s->refs = 1;
    return s;
}

static bool is_taken(const struct slab *l, unsigned row)
{
    return (l->taken[row / WORD_BITS] >> row % WORD_BITS & 1) != 0;
}

static void mark(struct slab *l, unsigned row, unsigned n, bool taken)
{
    for (unsigned i = row; i < row + n; i++) {
        uint64_t bit = UINT64_C(1) << i % WORD_BITS;
        uint64_t *word = &l->taken[i / WORD_BITS];
        *word = taken ? *word | bit : *word & ~bit;
    }
}

/* Free rows from `row` on, counted up to n. */
static unsigned room_at(const struct slab *l, unsigned row, unsigned n)
{
    unsigned have = 0;
    while (have < n && row + have < l->n_rows && !is_taken(l, row + have)) {
        have++;
    }
    return have;
}

/* The lowest n free rows side by side; l->n_rows: there are none. */
static unsigned lowest_room(const struct slab *l, unsigned n)
{
    unsigned row = 0;
    while (row < l->n_rows) {
        unsigned have = room_at(l, row, n);
        if (have == n) {
            return row;
        }
        row += have + 1; /* the row behind them is taken, or the end */
    }
    return l->n_rows;
}

/* Under the lock. The slab, in which nothing is taken, is not used any more. Returns its memory, whose
 * mapping may take long to give back: to be unreferenced without the lock. */
static struct nr_buf *slab_free(struct slab *l)
{
    struct nr_buf *memory = l->memory;
    l->slots->refs--;
    nr_free(l);
    return memory;
}

/* Under the lock. A slab of want_rows instead of the one there is, which goes with its last buffer. Returns
 * memory as slab_free, or NULL. */
static struct nr_buf *renew(struct nr_slots *s)
{
    struct slab *old = s->slab;
    struct nr_buf *memory = nr_buf_try_new(s->row_bytes * s->want_rows);
    struct slab *l = memory != NULL ? nr_try_alloc(sizeof *l) : NULL;
    if (l == NULL) {
        return memory;
    }
    *l = (struct slab){.slots = s, .memory = memory, .n_rows = s->want_rows};
    s->refs++;
    s->slab = l;
    return old != NULL && old->n_taken == 0 ? slab_free(old) : NULL;
}

static void unlock_or_free(struct nr_slots *s)
{
    bool is_over = s->refs == 0;
    pthread_mutex_unlock(&s->lock);
    if (is_over) {
        pthread_mutex_destroy(&s->lock);
        nr_free(s);
    }
}

void nr_slots_release(struct nr_slots *s)
{
    if (s == NULL) {
        return;
    }
    pthread_mutex_lock(&s->lock);
    struct slab *l = NR_TAKE(s->slab);
    struct nr_buf *memory = l != NULL && l->n_taken == 0 ? slab_free(l) : NULL;
    s->refs--;
    unlock_or_free(s);
    nr_buf_unref(memory);
}

/* The destructor of a taken buffer: its rows are free. */
static void give_back(struct nr_buf *b)
{
    struct slab *l = b->owner;
    struct nr_slots *s = l->slots;
    size_t offset = (size_t)(nr_buf_data(b) - nr_buf_data(l->memory));
    struct nr_buf *memory = NULL;
    pthread_mutex_lock(&s->lock);
    unsigned n = (unsigned)(nr_buf_bytes(b) / s->row_bytes);
    mark(l, (unsigned)(offset / s->row_bytes), n, false);
    l->n_taken -= n;
    if (l->n_taken == 0) {
        l->next = l->begin = 0;
        if (l != s->slab) {
            memory = slab_free(l);
        }
    }
    unlock_or_free(s);
    nr_buf_unref(memory);
}

/* Under the lock. Where n rows begin in the slab: behind the last ones, else as low as there is room.
 * False: it is missing or full; a larger one is asked for. */
static bool find(struct nr_slots *s, unsigned n, unsigned *ret)
{
    struct slab *l = s->slab;
    if (l == NULL) {
        return false;
    }
    *ret = room_at(l, l->next, n) == n ? l->next : lowest_room(l, n);
    if (*ret < l->n_rows) {
        return true;
    }
    s->want_rows = NR_MIN(NR_MAX(l->n_rows * 2, n), s->max_rows);
    return false;
}

struct nr_buf *nr_slots_take(struct nr_slots *s, size_t bytes)
{
    if (bytes == 0 || bytes % s->row_bytes != 0 || bytes / s->row_bytes > s->max_rows / 2) {
        return NULL;
    }
    unsigned n = (unsigned)(bytes / s->row_bytes), row = 0;
    struct nr_buf *b = NULL, *old = NULL;
    pthread_mutex_lock(&s->lock);
    bool found = find(s, n, &row);
    if (s->slab == NULL || s->slab->n_rows < s->want_rows) {
        old = renew(s);
        found = find(s, n, &row);
    }
    if (found) {
        struct slab *l = s->slab;
        b = nr_buf_try_wrap(nr_buf_data(l->memory) + s->row_bytes * row, bytes, give_back, l);
        if (b != NULL) {
            mark(l, row, n, true);
            l->next = row + n;
            l->n_taken += n;
        }
    }
    pthread_mutex_unlock(&s->lock);
    nr_buf_unref(old);
    return b;
}

void nr_slots_sealed(struct nr_slots *s)
{
    if (s == NULL) {
        return;
    }
    pthread_mutex_lock(&s->lock);
    struct slab *l = s->slab;
    if (l != NULL) {
        unsigned batch = l->next > l->begin ? l->next - l->begin : 1;
        unsigned low = lowest_room(l, batch);
        if (low == l->n_rows) { /* a batch of that size would not lie in one piece */
            s->want_rows = NR_MIN(l->n_rows * 2, s->max_rows);
        }
        l->begin = l->next = NR_MIN(l->next, low);
    }
    pthread_mutex_unlock(&s->lock);
}

size_t nr_slots_trim(struct nr_slots *s)
{
    struct nr_buf *memory = NULL;
    if (s != NULL) {
        pthread_mutex_lock(&s->lock);
        if (s->slab != NULL && s->slab->n_taken == 0) {
            memory = slab_free(NR_TAKE(s->slab));
        }
        pthread_mutex_unlock(&s->lock);
    }
    size_t bytes = memory != NULL ? nr_buf_bytes(memory) : 0;
    nr_buf_unref(memory);
    return bytes;
}
