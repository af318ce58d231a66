/* Virtual times of models; see the header.
 *
 * DESIGN. A model that is idle must not save up time, or it would keep all executors for itself when it
 * comes back; so arriving lifts it to the present. One that runs again and again is not lifted between
 * its runs: what it was charged too much, it gets back.
 *
 * INVARIANTS
 *  1. f->now never goes back, and is the virtual time of a model that was chosen.
 *  2. After begin and end a model stands by used_ns * cost later than before.
 */
#include "sched/fair.h"

#include "base/status.h"

#define SMOOTH 4

static int64_t scaled(const struct nr_share *s, int64_t ns)
{
    uint32_t cost = s->cost == 0 ? NR_FAIR_ONE : NR_MIN(s->cost, NR_FAIR_MOST);
    return ns / NR_FAIR_ONE * cost + ns % NR_FAIR_ONE * cost / NR_FAIR_ONE;
}

void nr_fair_arrive(const struct nr_fair *f, struct nr_share *s)
{
    s->at = NR_MAX(s->at, f->now);
}

int64_t nr_fair_begin(struct nr_fair *f, struct nr_share *s)
{
    f->now = NR_MAX(f->now, s->at);
    s->at += scaled(s, s->expect_ns);
    return s->expect_ns;
}

void nr_fair_end(struct nr_share *s, int64_t charged_ns, int64_t used_ns)
{
    used_ns = NR_MAX(used_ns, INT64_C(0));
    s->at += scaled(s, used_ns) - scaled(s, charged_ns);
    s->expect_ns += (used_ns - s->expect_ns) / SMOOTH;
}
