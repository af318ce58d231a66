/* Cores and turns on them: how many this process may use, and how soon a thread gets one. */
#ifndef NR_BASE_CPU_H
#define NR_BASE_CPU_H

#include <stdbool.h>
#include <stdint.h>

/* Cores in the affinity mask of the calling thread (taskset, cpusets); at least 1. */
unsigned nr_cpu_usable(void);

/* Asks for short slices of processor time for the calling thread: it runs sooner after waking, and
 * gives way sooner, while its share stays the same. slice_ns: 0.1 to 100 ms. Linux 6.12 and later
 * (EEVDF, sched_setattr(2)); false where the kernel knows no such wish, which harms nothing. */
bool nr_cpu_slice(int64_t slice_ns);

#endif
