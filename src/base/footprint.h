/* What this process takes of the machine's memory, as the kernel counts it. Any thread. */
#ifndef NR_BASE_FOOTPRINT_H
#define NR_BASE_FOOTPRINT_H

#include <stdint.h>

struct nr_footprint {        /* bytes; all 0 where /proc cannot be read */
    uint64_t resident_bytes; /* RSS: files that are mapped, shared or not, included */
    uint64_t own_bytes;      /* of that, what no file stands behind: heap, stacks, changed data */
};
/* Some microseconds. /proc/self/statm, whose figures may lag some pages of each thread behind. */
void nr_footprint_get(struct nr_footprint *ret);

/* PSS: pages that several processes share are counted by their part. 0 where the kernel does not tell.
 * It walks the page tables, which takes some hundred microseconds. /proc/self/smaps_rollup. */
uint64_t nr_footprint_share(void);

#endif
