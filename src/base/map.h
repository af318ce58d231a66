/* Hash map from byte strings to pointers: open addressing, seeded hash (SipHash-1-3), so that
 * hostile keys cannot make it slow. Keys are copied. Not thread safe; concurrent reads are fine
 * while nobody writes. Iteration order is the order of insertion (a replaced value keeps its
 * place, a key removed and put again goes to the end).
 * Aborts without memory: callers bound the number and the length of keys that peers choose.
 */
#ifndef NR_BASE_MAP_H
#define NR_BASE_MAP_H

#include <stddef.h>
#include <stdint.h>

#include "base/str.h"

struct nr_map_entry {
    struct nr_str key; /* NUL-terminated copy */
    void *value;
    uint64_t hash;
};
struct nr_map {
    struct nr_map_entry *entries; /* in order of insertion; removed ones have key.ptr NULL */
    uint32_t *slots;
    size_t n_entries, n_live, capacity, n_slots;
};
void nr_map_init(struct nr_map *m);
void nr_map_done(struct nr_map *m); /* values are the caller's; m is empty and usable afterwards */
void *nr_map_get(const struct nr_map *m, struct nr_str key);        /* NULL when absent */
void *nr_map_put(struct nr_map *m, struct nr_str key, void *value); /* returns the replaced value */
void *nr_map_remove(struct nr_map *m, struct nr_str key); /* returns the value, NULL when absent */
/* Live entries in order: NR_MAP_FOREACH(e, &map) { use(e->key, e->value); }
 * The body may remove entries; it must not put new keys. */
#define NR_MAP_FOREACH(entry, m)                                               \
    for (struct nr_map_entry *entry = (m)->entries,                            \
                             *nr_end_ = entry ? entry + (m)->n_entries : NULL; \
         entry != nr_end_; entry++)                                            \
        if (entry->key.ptr == NULL) {                                          \
        } else

uint64_t nr_hash(const void *data, size_t len); /* seeded per process */
/* The same with a key of the caller's: SipHash-1-3 (Aumasson and Bernstein, 2012). */
uint64_t nr_hash_keyed(const uint64_t key[2], const void *data, size_t len);

#endif
