/* Giving memory back to the system that is only kept for speed, or was needed only once.
 *
 * Both functions work on the whole process, may be called from any thread at any time, and change
 * nothing but what a later access costs. They take from a tenth of a millisecond to some milliseconds:
 * not for a thread that must not block.
 */
#ifndef NR_BASE_RECLAIM_H
#define NR_BASE_RECLAIM_H

#include <stddef.h>

/* Unmaps the pages of code and constants of the program and its libraries: those that are still used
 * come back from the page cache when they are touched, 16 at a time. To be called when loading is
 * over: opening models touches ten times the code that serving them does. Segments of which a page was
 * changed (breakpoints, probes, text relocations) are left alone. Returns the bytes of the segments that
 * were looked at and unmapped; 0 where /proc/self/pagemap cannot be read. */
size_t nr_reclaim_code(void);

/* Free memory of the heap, also between live blocks, back to the system. */
void nr_reclaim_heap(void);

#endif
