/* The rate limiter: instances hold resources while they run (Triton's --rate-limit=execution_count).
 *
 * A resource is a name with a number of units: one store for each device, or one for all when it is
 * `global`. An instance runs only while it holds what its configuration asks for. Who waits is
 * served by virtual time: each run moves an instance on by its priority, so that one with priority
 * 2 runs half as often as one with priority 1 as long as both wait.
 *
 *            nr_limiter_try: true
 *   IDLE ───────────────────────────▶ HOLDS ──nr_limiter_release──▶ IDLE
 *     │ false                           ▲
 *     └────────▶ WAITS ──try: true──────┘     its runnable is woken when trying may help;
 *                  └────nr_limiter_leave──▶ IDLE
 *
 * How many units there are: with nothing given, of each resource as many as the neediest instance that
 * is registered asks for; with anything given, only what is given. The CPU counts as device 0, as
 * Triton has it.
 *
 * Threads: any; one lock, below a scheduler's and above the executors'. Nothing blocks.
 */
#ifndef NR_SCHED_LIMITER_H
#define NR_SCHED_LIMITER_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "model/config.h"
#include "sched/exec.h"

#define NR_LIMIT_GLOBAL (-2) /* a device, where none is meant */

struct nr_limiter;
struct nr_limit_user; /* one instance */

/* given: [n] texts "NAME:COUNT" or "NAME:COUNT:DEVICE". NARU_INVALID: one is of another form. */
nr_nodiscard nr_status nr_limiter_new(const char *const *given, unsigned n, struct nr_limiter **ret,
                                      struct nr_err *err);
void nr_limiter_free(struct nr_limiter *l); /* no user is left; accepts NULL */

/* Registers an instance of `group` on `device` (-1: the CPU) that runs on r, which must outlive the
 * user. *ret is NULL when it asks for nothing: then it need not ask. NARU_INVALID: there will never be
 * as many units, or a resource would be global and of a device. */
nr_nodiscard nr_status nr_limiter_add(struct nr_limiter *l, const struct nr_instance_group *group,
                                      int32_t device, struct nr_exec *exec, struct nr_runnable *r,
                                      struct nr_limit_user **ret, struct nr_err *err);
void nr_limiter_remove(struct nr_limit_user *u); /* accepts NULL; holds nothing; may wait */

/* True: it holds its resources until nr_limiter_release. False: it waits. Not while it holds. */
nr_nodiscard bool nr_limiter_try(struct nr_limit_user *u);
void nr_limiter_leave(struct nr_limit_user *u); /* has nothing to run any more; accepts any state */
void nr_limiter_release(struct nr_limit_user *u);

struct nr_limit_state {
    const char *name;
    int32_t device; /* or NR_LIMIT_GLOBAL */
    uint64_t units, in_use;
    unsigned waiting; /* instances that wait for it, maybe for others too */
};
/* Each resource that an instance asks for, in the order of their registration. Under the limiter's lock:
 * `each` must not call into it. */
void nr_limiter_read(struct nr_limiter *l,
                     void (*each)(void *arg, const struct nr_limit_state *state), void *arg);

#endif
