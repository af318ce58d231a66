/* Hash map from byte strings to pointers: open addressing, seeded hash (SipHash-1-3), so that
 * hostile keys cannot make it slow. Keys are copied. Not thread safe; concurrent reads are fine
 * while nobody writes. Iteration order is the order of insertion. */
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
void nr_map_done(struct nr_map *m); /* values are the caller's */
void *nr_map_get(const struct nr_map *m, struct nr_str key); /* NULL when absent */
void *nr_map_put(struct nr_map *m, struct nr_str key, void *value); /* returns the replaced value */
void *nr_map_remove(struct nr_map *m, struct nr_str key);
uint64_t nr_hash(const void *data, size_t len); /* seeded per process */

#endif
