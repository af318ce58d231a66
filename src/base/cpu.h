/* Cores and turns on them: how many this process may use, and how soon a thread gets one. */
#ifndef NR_BASE_CPU_H
#define NR_BASE_CPU_H

#include <stdbool.h>
#include <stdint.h>

#include "base/str.h"

/* Cores in the affinity mask of the calling thread (taskset, cpusets); at least 1. */
unsigned nr_cpu_usable(void);

/* Asks for short slices of processor time for the calling thread: it runs sooner after waking, and
 * gives way sooner, while its share stays the same. slice_ns: 0.1 to 100 ms. Linux 6.12 and later
 * (EEVDF, sched_setattr(2)); false where the kernel knows no such wish, which harms nothing. */
bool nr_cpu_slice(int64_t slice_ns);

#define NR_CPU_MAX 1024

struct nr_cpu_set { /* of cores, by the system's numbers */
    uint64_t bits[NR_CPU_MAX / 64];
};

/* "0-3,8,10-11". False: it is none, is empty, or has a number from NR_CPU_MAX on. */
nr_nodiscard bool nr_cpu_parse(struct nr_str text, struct nr_cpu_set *ret);
static inline bool nr_cpu_has(const struct nr_cpu_set *s, unsigned core)
{
    return core < NR_CPU_MAX && (s->bits[core / 64] >> (core % 64) & 1) != 0;
}
unsigned nr_cpu_count(const struct nr_cpu_set *s);
/* The calling thread's, as nr_cpu_usable counts them. */
void nr_cpu_allowed(struct nr_cpu_set *ret);
/* The calling thread runs on these only, sched_setaffinity(2). False: the system refused. */
bool nr_cpu_bind(const struct nr_cpu_set *s);

/* Memory nodes that are online; false where the system does not tell (then there is one, 0). */
bool nr_cpu_nodes(struct nr_cpu_set *ret);
/* Memory that the calling thread touches first comes from this node while it has some,
 * set_mempolicy(2). False: the system refused, or knows no nodes. -1: anywhere again. */
bool nr_cpu_prefer_node(int node);

#endif
