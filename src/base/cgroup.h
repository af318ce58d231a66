/* What control groups leave this process of the machine's memory. */
#ifndef NR_BASE_CGROUP_H
#define NR_BASE_CGROUP_H

#include <stdint.h>

/* The smallest memory limit of the process's control group and those above it, version 2
 * (memory.max) and 1 (memory.limit_in_bytes), in bytes; UINT64_MAX: none that can be read.
 * self: the text of /proc/self/cgroup, mount: where the groups are; both NULL but in tests.
 * Source: cgroups(7), Documentation/admin-guide/cgroup-v2.rst. Any thread. */
uint64_t nr_cgroup_memory_limit(const char *self, const char *mount);

#endif
