/* Host policies: names for cores and a memory node, given by --host-policy and used by instance_group.
 *
 * Triton's flag: --host-policy=NAME,cpu-cores=0-1 and --host-policy=NAME,numa-node=N, which may be given
 * both for one name. Instances of a group that names a policy run on executors of its own: threads
 * bound to the cores, whose memory comes from the node. A group that names none uses the policy
 * "cpu" (or "gpu_<number>", "model", by its kind) where it exists.
 *
 * Threads: policies are complete before the first model; afterwards they are only read.
 */
#ifndef NR_SCHED_HOSTPOLICY_H
#define NR_SCHED_HOSTPOLICY_H

#include "base/status.h"
#include "model/config.h"
#include "sched/exec.h"

struct nr_host_policy {
    char name[129];
    struct nr_exec_binding binding;
    struct nr_exec *exec;
};

struct nr_host_policies; /* NULL: there are none */

/* texts: [n] "NAME,SETTING=VALUE". NARU_INVALID with a text: another form, cores that this process may not
 * use, a node that the machine does not have. *ret is NULL when n is 0. */
nr_nodiscard nr_status nr_host_policies_new(const char *const *texts, unsigned n,
                                            struct nr_host_policies **ret, struct nr_err *err);
void nr_host_policies_free(struct nr_host_policies *all); /* ends their threads; accepts NULL */
/* Starts the executors, as nr_exec_new; without a number of threads there are as many as cores. */
void nr_host_policies_start(struct nr_host_policies *all, unsigned max_threads);
/* True: there is one memory node, so that numa-node changes nothing. */
bool nr_host_policies_one_node(void);

/* The policy of an instance of the group on `device` (-1 the CPU): *ret is NULL when none applies.
 * NARU_INVALID: the group names one that does not exist; the text lists those that do. */
nr_nodiscard nr_status nr_host_policy_of(const struct nr_host_policies *all,
                                         const struct nr_instance_group *group, int32_t device,
                                         const struct nr_host_policy **ret, struct nr_err *err);

#endif
