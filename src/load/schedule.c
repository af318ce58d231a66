/* Arrival schedules.
 *
 * The random numbers are those of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): its state is a plain
 * counter times an odd constant, which makes it counter-based: number k is a function of seed and k.
 * 53 bits of it, moved by half a step away from 0 and 1, go through the inverse of the exponential
 * distribution.
 *
 * Constant arrivals are computed as (k + 1) * gap, not summed: no drift. Poisson arrivals are sums
 * of doubles; 2^53 ns are 104 days.
 */
#include "load/schedule.h"

#include <math.h>

#include "base/status.h"

static uint64_t split_mix(uint64_t seed, uint64_t index)
{
    uint64_t x = seed + (index + 1) * UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return x ^ (x >> 31);
}

double nr_schedule_gap(uint64_t seed, uint64_t index)
{
    /* Neighbouring seeds must not give shifted copies of one sequence: the seed is mixed first. */
    double u = ((double)(split_mix(split_mix(seed, 0), index) >> 11) + 0.5) * 0x1p-53;
    return -log(u);
}

void nr_schedule_init(struct nr_schedule *s, nr_arrival arrival, double rate_per_s, uint64_t seed)
{
    *s = (struct nr_schedule){.arrival = arrival, .seed = seed};
    if (arrival != NR_ARRIVAL_CLOSED) {
        NR_ASSERT(rate_per_s > 0);
        s->gap_ns = 1e9 / rate_per_s;
    }
}

int64_t nr_schedule_next(struct nr_schedule *s)
{
    NR_ASSERT(s->arrival != NR_ARRIVAL_CLOSED);
    uint64_t index = s->index++;
    if (s->arrival == NR_ARRIVAL_CONSTANT) {
        return (int64_t)((double)(index + 1) * s->gap_ns);
    }
    s->at_ns += nr_schedule_gap(s->seed, index) * s->gap_ns;
    return (int64_t)s->at_ns;
}
