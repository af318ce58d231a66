/* Who used the processors: this process, each of its threads, and the rest of the machine.
 *
 * Source: proc(5), /proc/stat and /proc/self/task/TID/stat and status, in ticks of 10 ms; the process as a whole
 * by getrusage(2). Two readings are compared; one says nothing.
 */
#ifndef NR_BASE_CPU_TIMES_H
#define NR_BASE_CPU_TIMES_H

#include <stdint.h>

#include "base/arena.h"

struct nr_cpu_thread {
    int64_t id;                 /* of the kernel */
    char name[16];              /* as in ps; "" when it cannot be read */
    int64_t ns;                 /* processor time since it began */
    uint64_t preempted, waited; /* switches to another thread: against its wish, and by it */
};

struct nr_cpu_times {
    unsigned cores;  /* that this process may use */
    int64_t at_ns;   /* nr_clock_now */
    int64_t busy_ns; /* of those cores, whoever used them; stolen by a hypervisor counts, too */
    int64_t own_ns;  /* this process */
    unsigned n_threads;
    struct nr_cpu_thread *threads; /* in the arena */
};

/* Reads files of /proc, some 10 µs per thread: not for I/O loops. What cannot be read is 0. */
void nr_cpu_times_read(struct nr_arena *a, struct nr_cpu_times *ret);

/* busy_ns and own_ns alone: one file. */
void nr_cpu_sums_read(struct nr_arena *a, int64_t *ret_busy_ns, int64_t *ret_own_ns);

#endif
