/* What a model would do under another setting: a small discrete-event simulation of its batcher.
 *
 * A model is what a batch of it costs (run_ns + row_ns * rows) and how its batches are formed; the
 * load is either a number of clients that each wait for their answer (closed loop) or arrivals at a
 * rate (Poisson, with a fixed seed, so that a result can be repeated). It is meant for factors:
 * outcome of the changed setting over outcome of the present one.
 *
 * Pure and bounded: at most some 40,000 events and a few hundred KiB. Any thread.
 */
#ifndef NR_SCHED_WHY_SIM_H
#define NR_SCHED_WHY_SIM_H

#include <stdbool.h>
#include <stdint.h>

#include "sched/batcher.h"

struct nr_why_setup {
    double run_ns, row_ns; /* a batch takes run_ns + row_ns * rows */
    unsigned instances;
    struct nr_batch_rules rules; /* auto_size: waits for clients that come back; max_rows counts */
};

struct nr_why_load {
    int64_t rows;      /* of every request, >= 1 */
    unsigned clients;  /* closed loop when > 0 */
    double rate_per_s; /* open loop otherwise */
};

struct nr_why_outcome {
    double rate_per_s; /* requests answered */
    double latency_ns; /* mean, from arrival to answer */
    bool stable;       /* open loop: the queue does not grow for ever */
};

void nr_why_simulate(const struct nr_why_setup *s, const struct nr_why_load *l,
                     struct nr_why_outcome *ret);

#endif
