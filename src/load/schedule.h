/* When requests are due: arrival schedules that are fixed before the first request is sent.
 *
 * Open loop (constant, Poisson): the k-th request is due at an instant that depends on rate, seed
 * and k alone, never on answers, so a server that stalls is charged for everybody it kept waiting
 * (no coordinated omission; Tene, "How NOT to Measure Latency"). Closed loop: a request is due when
 * the connection's last answer came; there is no plan.
 *
 * Pure, no allocation, one thread at a time per object.
 */
#ifndef NR_LOAD_SCHEDULE_H
#define NR_LOAD_SCHEDULE_H

#include <stdint.h>

typedef enum nr_arrival {
    NR_ARRIVAL_CLOSED,   /* N connections, each with one request (per stream) in flight */
    NR_ARRIVAL_CONSTANT, /* every 1/rate */
    NR_ARRIVAL_POISSON,  /* exponential gaps of mean 1/rate */
} nr_arrival;

struct nr_schedule {
    nr_arrival arrival;
    double gap_ns; /* mean */
    uint64_t seed;
    uint64_t index; /* of the next arrival, from 0 */
    double at_ns;   /* of the last one given out (Poisson) */
};

/* rate_per_s > 0 for open loop; not looked at when closed. Poisson and constant alike: the first
 * arrival is one gap after the start. */
void nr_schedule_init(struct nr_schedule *s, nr_arrival arrival, double rate_per_s, uint64_t seed);
/* Offset of the next arrival from the start, in ns, never decreasing. Open loop only. Exact to
 * 1 ns for runs of up to 100 days. */
int64_t nr_schedule_next(struct nr_schedule *s);
/* The gap before arrival `index` of a Poisson schedule of mean 1; > 0, at most 36.8. A pure
 * function (counter-based generator), so that any part of a plan can be made again. */
double nr_schedule_gap(uint64_t seed, uint64_t index);

#endif
