/* How many cores this process may use. */
#ifndef NR_BASE_CPU_H
#define NR_BASE_CPU_H

/* Cores in the affinity mask of the calling thread (taskset, cpusets); at least 1. */
unsigned nr_cpu_usable(void);

#endif
