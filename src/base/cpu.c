/* Cores by affinity: what taskset and cgroup cpusets leave us, not what the machine has. Quotas of
 * processor time are another matter: they slow threads down, but do not say how many there should be.
 * Any thread. */
#include "base/cpu.h"

#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

unsigned nr_cpu_usable(void)
{
    cpu_set_t set;
    int n = sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 1;
    return n > 0 ? (unsigned)n : 1;
}

/* As sched_setattr(2) has it; <linux/sched/types.h> and <sched.h> cannot be included together. */
struct attr {
    uint32_t size;
    uint32_t policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime_ns, deadline_ns, period_ns;
};

bool nr_cpu_slice(int64_t slice_ns)
{
    struct attr attr = {.size = sizeof(attr)};
    /* The present policy and nice value are kept; a thread that somebody made real-time stays so. */
    if (syscall(SYS_sched_getattr, 0, &attr, sizeof(attr), 0) != 0 || attr.policy != SCHED_OTHER) {
        return false;
    }
    attr.runtime_ns = (uint64_t)slice_ns;
    return syscall(SYS_sched_setattr, 0, &attr, 0) == 0;
}
