/* Cores by affinity: what taskset and cgroup cpusets leave us, not what the machine has. Quotas of
 * processor time are another matter: they slow threads down, but do not say how many there should be.
 * Any thread. */
#include "base/cpu.h"

#include <linux/mempolicy.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
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

/* --- sets of cores and memory nodes ------------------------------------------------------------- */

static bool parse_core(struct nr_str text, uint64_t *ret)
{
    return nr_str_to_u64(text, ret) && *ret < NR_CPU_MAX;
}

bool nr_cpu_parse(struct nr_str text, struct nr_cpu_set *ret)
{
    struct nr_cpu_set set = {{0}};
    struct nr_str rest = text;
    do {
        uint64_t low, high;
        struct nr_str last, first = nr_str_cut(nr_str_cut(rest, ',', &rest), '-', &last);
        if (!parse_core(first, &low)) {
            return false;
        }
        high = low;
        if (last.ptr != NULL && (!parse_core(last, &high) || high < low)) {
            return false;
        }
        for (uint64_t core = low; core <= high; core++) {
            set.bits[core / 64] |= UINT64_C(1) << (core % 64);
        }
    } while (rest.ptr != NULL);
    *ret = set;
    return true;
}

unsigned nr_cpu_count(const struct nr_cpu_set *s)
{
    unsigned n = 0;
    for (unsigned i = 0; i < NR_CPU_MAX / 64; i++) {
        n += (unsigned)__builtin_popcountll(s->bits[i]);
    }
    return n;
}

void nr_cpu_allowed(struct nr_cpu_set *ret)
{
    cpu_set_t set;
    *ret = (struct nr_cpu_set){{0}};
    if (sched_getaffinity(0, sizeof(set), &set) != 0) {
        ret->bits[0] = 1;
        return;
    }
    for (unsigned core = 0; core < NR_CPU_MAX; core++) {
        ret->bits[core / 64] |= (uint64_t)(CPU_ISSET(core, &set) != 0) << (core % 64);
    }
}

bool nr_cpu_bind(const struct nr_cpu_set *s)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    for (unsigned core = 0; core < NR_CPU_MAX; core++) {
        if (nr_cpu_has(s, core)) {
            CPU_SET(core, &set);
        }
    }
    return sched_setaffinity(0, sizeof(set), &set) == 0;
}

bool nr_cpu_nodes(struct nr_cpu_set *ret)
{
    char text[256] = "";
    FILE *f = fopen("/sys/devices/system/node/online", "re");
    size_t len = f != NULL ? fread(text, 1, sizeof(text) - 1, f) : 0;
    if (f != NULL) {
        fclose(f);
    }
    while (len > 0 && text[len - 1] == '\n') {
        len--;
    }
    bool known = nr_cpu_parse((struct nr_str){text, len}, ret);
    if (!known) {
        *ret = (struct nr_cpu_set){{1}};
    }
    return known;
}

bool nr_cpu_prefer_node(int node)
{
    struct nr_cpu_set set = {{0}};
    if (node < 0) {
        return syscall(SYS_set_mempolicy, MPOL_DEFAULT, NULL, 0) == 0;
    }
    if (node >= NR_CPU_MAX) {
        return false;
    }
    set.bits[node / 64] = UINT64_C(1) << (node % 64);
    return syscall(SYS_set_mempolicy, MPOL_PREFERRED, set.bits, (unsigned long)NR_CPU_MAX) == 0;
}
