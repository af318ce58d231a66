/* Hash map: an array of entries in order of insertion, and a table of indices into it.
 *
 * Two arrays rather than one: iteration is a walk over dense memory in a predictable order, and a
 * probe touches 4-byte slots. The stored hash is compared before the key, so a probe reads foreign
 * key bytes about once. SipHash-1-3 with a key drawn at start: names come from clients (sequence
 * ids, headers), and one who cannot guess the key cannot make collisions.
 *
 * Invariants
 * 1. slots holds EMPTY, GONE, or index + 1 of an entry; n_slots = 2 * capacity, a power of two.
 * 2. Every GONE slot stands for a removed entry that is still in the array, and both vanish when
 *    the array is full and rebuilt: used slots <= n_entries <= capacity = n_slots / 2, so a probe
 *    always meets an EMPTY one.
 * 3. A removed entry has key.ptr NULL; live keys are never NULL, the empty key included.
 * Threads: the hash key is made once; a map is its owner's.
 */
#include "base/map.h"

#include <pthread.h>
#include <sys/random.h>

#include "base/clock.h"
#include "base/mem.h"

#define EMPTY 0u
#define GONE UINT32_MAX

static inline uint64_t rotate(uint64_t x, int by)
{
    return (x << by) | (x >> (64 - by));
}

static inline void sip_round(uint64_t v[4])
{
    v[0] += v[1];
    v[2] += v[3];
    v[1] = rotate(v[1], 13) ^ v[0];
    v[3] = rotate(v[3], 16) ^ v[2];
    v[0] = rotate(v[0], 32);
    v[2] += v[1];
    v[0] += v[3];
    v[1] = rotate(v[1], 17) ^ v[2];
    v[3] = rotate(v[3], 21) ^ v[0];
    v[2] = rotate(v[2], 32);
}

/* Eight bytes, little-endian. */
static inline uint64_t load_word(const unsigned char *p)
{
    uint64_t word;
    memcpy(&word, p, sizeof(word));
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    word = __builtin_bswap64(word);
#endif
    return word;
}

uint64_t nr_hash_keyed(const uint64_t key[2], const void *data, size_t len)
{
    const unsigned char *p = data;
    uint64_t v[4] = {key[0] ^ UINT64_C(0x736f6d6570736575), key[1] ^ UINT64_C(0x646f72616e646f6d),
                     key[0] ^ UINT64_C(0x6c7967656e657261), key[1] ^ UINT64_C(0x7465646279746573)};
    size_t at = 0;
    for (; len - at >= 8; at += 8) {
        uint64_t word = load_word(p + at);
        v[3] ^= word;
        sip_round(v);
        v[0] ^= word;
    }
    uint64_t last = (uint64_t)len << 56;
    for (size_t i = 0; at + i < len; i++) {
        last |= (uint64_t)p[at + i] << (8 * i);
    }
    v[3] ^= last;
    sip_round(v);
    v[0] ^= last;
    v[2] ^= 0xff;
    sip_round(v);
    sip_round(v);
    sip_round(v);
    return v[0] ^ v[1] ^ v[2] ^ v[3];
}

static uint64_t process_key[2];
static pthread_once_t key_once = PTHREAD_ONCE_INIT;

static void make_key(void)
{
    if (getrandom(process_key, sizeof(process_key), 0) == (ssize_t)sizeof(process_key)) {
        return;
    }
    /* Only a kernel older than 3.17 or a filter gets here; addresses and time are second best. */
    process_key[0] = (uint64_t)nr_clock_wall() ^ (uint64_t)(uintptr_t)&process_key;
    process_key[1] = (uint64_t)nr_clock_now() ^ (uint64_t)(uintptr_t)__builtin_frame_address(0);
}

uint64_t nr_hash(const void *data, size_t len)
{
    pthread_once(&key_once, make_key);
    return nr_hash_keyed(process_key, data, len);
}

void nr_map_init(struct nr_map *m)
{
    *m = (struct nr_map){0};
}

void nr_map_done(struct nr_map *m)
{
    for (size_t i = 0; i < m->n_entries; i++) {
        nr_free((void *)(uintptr_t)m->entries[i].key.ptr);
    }
    nr_free(m->entries);
    nr_free(m->slots);
    nr_map_init(m);
}

/* Slot that holds the key, or SIZE_MAX. */
static size_t find_slot(const struct nr_map *m, struct nr_str key, uint64_t hash)
{
    if (m->n_live == 0) {
        return SIZE_MAX;
    }
    for (size_t at = hash & (m->n_slots - 1);; at = (at + 1) & (m->n_slots - 1)) {
        uint32_t slot = m->slots[at];
        if (slot == EMPTY) {
            return SIZE_MAX;
        }
        if (slot != GONE) {
            const struct nr_map_entry *e = &m->entries[slot - 1];
            if (e->hash == hash && nr_str_eq(e->key, key)) {
                return at;
            }
        }
    }
}

/* Puts the entry's index into the first slot of its probe that holds none. */
static void link_entry(struct nr_map *m, size_t index)
{
    size_t at = m->entries[index].hash & (m->n_slots - 1);
    while (m->slots[at] != EMPTY && m->slots[at] != GONE) {
        at = (at + 1) & (m->n_slots - 1);
    }
    m->slots[at] = (uint32_t)index + 1;
}

/* Makes room for one more entry: drops removed ones, and doubles when less than a quarter of the
 * array came free (so that the cost is paid by at least capacity / 4 insertions). */
static void rebuild(struct nr_map *m)
{
    size_t kept = 0;
    for (size_t i = 0; i < m->n_entries; i++) {
        if (m->entries[i].key.ptr != NULL) {
            m->entries[kept++] = m->entries[i];
        }
    }
    m->n_entries = kept;
    if (kept >= m->capacity - m->capacity / 4) {
        m->capacity = m->capacity ? m->capacity * 2 : 8;
        NR_ASSERT(m->capacity < GONE / 2);
        m->entries = nr_realloc(m->entries, m->capacity * sizeof(*m->entries));
        m->n_slots = 2 * m->capacity;
        nr_free(m->slots);
        m->slots = nr_new_array(uint32_t, m->n_slots);
    } else {
        memset(m->slots, 0, m->n_slots * sizeof(*m->slots));
    }
    for (size_t i = 0; i < kept; i++) {
        link_entry(m, i);
    }
}

void *nr_map_get(const struct nr_map *m, struct nr_str key)
{
    if (m->n_live == 0) {
        return NULL; /* spares the hash */
    }
    size_t at = find_slot(m, key, nr_hash(key.ptr, key.len));
    return at != SIZE_MAX ? m->entries[m->slots[at] - 1].value : NULL;
}

void *nr_map_put(struct nr_map *m, struct nr_str key, void *value)
{
    uint64_t hash = nr_hash(key.ptr, key.len);
    size_t at = find_slot(m, key, hash);
    if (at != SIZE_MAX) {
        struct nr_map_entry *e = &m->entries[m->slots[at] - 1];
        void *old = e->value;
        e->value = value;
        return old;
    }
    if (m->n_entries == m->capacity) {
        rebuild(m);
    }
    char *copy = nr_alloc(key.len + 1);
    if (key.len > 0) {
        memcpy(copy, key.ptr, key.len);
    }
    m->entries[m->n_entries] =
        (struct nr_map_entry){.key = {copy, key.len}, .value = value, .hash = hash};
    link_entry(m, m->n_entries);
    m->n_entries++;
    m->n_live++;
    return NULL;
}

void *nr_map_remove(struct nr_map *m, struct nr_str key)
{
    if (m->n_live == 0) {
        return NULL;
    }
    size_t at = find_slot(m, key, nr_hash(key.ptr, key.len));
    if (at == SIZE_MAX) {
        return NULL;
    }
    struct nr_map_entry *e = &m->entries[m->slots[at] - 1];
    void *value = e->value;
    nr_free((void *)(uintptr_t)e->key.ptr);
    *e = (struct nr_map_entry){0};
    m->slots[at] = GONE;
    m->n_live--;
    return value;
}
