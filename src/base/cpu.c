/* Cores by affinity: what taskset and cgroup cpusets leave us, not what the machine has. Quotas of
 * processor time are another matter: they slow threads down, but do not say how many there should be.
 * Any thread. */
#include "base/cpu.h"

#include <sched.h>

unsigned nr_cpu_usable(void)
{
    cpu_set_t set;
    int n = sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 1;
    return n > 0 ? (unsigned)n : 1;
}
