/* Who gets an executor next when several models wait for one: fair by the time they use.
 *
 * Start-time fair queueing (Goyal, Vin, Cheng, SIGCOMM 1996) over executions whose length is known
 * only afterwards. Each model has a virtual time, which grows by the processor time that it uses, times
 * its cost; the one that is least far goes first. So a model of 5 ms runs twenty times while one of
 * 100 ms runs once, whoever asks more often, and a model with twice the cost gets half the time.
 *
 *   arrive   it wants to run, having wanted nothing: what it did not use while idle is forgotten
 *   begin    it runs: charged with what its runs took of late, so that a second executor does not
 *            take it again at once
 *   end      charged with what it took instead
 *
 * Nobody starves: whoever waits keeps his virtual time, all who run move on. A model that sleeps
 * instead of computing uses nothing and goes first, which costs the others nothing.
 *
 * Pure functions of given times; the caller holds its lock.
 */
#ifndef NR_SCHED_FAIR_H
#define NR_SCHED_FAIR_H

#include <stdbool.h>
#include <stdint.h>

#define NR_FAIR_ONE 1000u     /* the usual cost of a model's time */
#define NR_FAIR_MOST 1000000u /* larger ones are taken for this */

struct nr_fair {
    int64_t now; /* virtual: of the one that began last, never back */
};

struct nr_share { /* of one model; zeroed: the usual cost */
    uint32_t cost;
    int64_t at;        /* virtual time */
    int64_t expect_ns; /* of a run, smoothed */
};

void nr_fair_arrive(const struct nr_fair *f, struct nr_share *s);
/* Returns what was charged, for nr_fair_end. */
int64_t nr_fair_begin(struct nr_fair *f, struct nr_share *s);
void nr_fair_end(struct nr_share *s, int64_t charged_ns, int64_t used_ns);
/* a goes before b. False when they are equal: then the one that waits longer goes first. */
static inline bool nr_fair_before(const struct nr_share *a, const struct nr_share *b)
{
    return a->at < b->at;
}

#endif
