/* Waiting for clients that come back; see the header.
 *
 * INVARIANTS
 *  1. A wait ends MOST after the batch that it follows, however many rows are missing.
 *  2. expected_rows > waiting, or nothing is held.
 */
#include "sched/hold.h"

#include "base/clock.h"
#include "base/status.h"

#define TRIES 8u
#define SMOOTH 8
#define LEAST_NS (100 * NR_US_NS) /* a shorter wait is lost in the noise of waking threads */
#define MOST_NS (5 * NR_MS_NS)
#define BACKOFF_MIN_NS (1 * NR_S_NS)
#define BACKOFF_MAX_NS (60 * NR_S_NS)

void nr_hold_init(struct nr_hold *h)
{
    *h = (struct nr_hold){.backoff_ns = BACKOFF_MIN_NS};
}

void nr_hold_ended(struct nr_hold *h, int64_t rows, int64_t waiting, int64_t now_ns)
{
    h->ended_ns = now_ns;
    h->expected_rows = waiting + rows;
}

/* How long a wait may last after a batch; 0: not worth it. */
static int64_t longest(int64_t fixed_ns)
{
    int64_t ns = NR_MIN(fixed_ns / 2, MOST_NS);
    return ns < LEAST_NS ? 0 : ns;
}

static int64_t end_of_wait(const struct nr_hold *h, int64_t waiting, int64_t fixed_ns,
                           int64_t now_ns)
{
    int64_t end_ns = h->ended_ns + longest(fixed_ns);
    bool may = h->ended_ns != 0 && waiting > 0 && waiting < h->expected_rows &&
               now_ns >= h->retry_ns && now_ns < end_ns;
    return may ? end_ns : 0;
}

int64_t nr_hold_rows(const struct nr_hold *h, int64_t waiting, int64_t fixed_ns, int64_t now_ns)
{
    return end_of_wait(h, waiting, fixed_ns, now_ns) != 0 ? h->expected_rows : waiting;
}

int64_t nr_hold_until(struct nr_hold *h, int64_t waiting, int64_t fixed_ns, int64_t now_ns)
{
    int64_t end_ns = end_of_wait(h, waiting, fixed_ns, now_ns);
    if (end_ns != 0 && h->since_ns == 0) {
        h->since_ns = now_ns;
        h->since_rows = waiting;
    }
    return end_ns;
}

void nr_hold_took(struct nr_hold *h, int64_t rows, int64_t fixed_ns, int64_t now_ns)
{
    if (h->since_ns == 0) {
        return;
    }
    int64_t came = NR_MAX(rows - h->since_rows, 0), price_ns = now_ns - h->since_ns;
    int64_t yield_ns = fixed_ns * came / NR_MAX(rows, 1);
    h->since_ns = 0;
    h->score_ns += (yield_ns - price_ns - h->score_ns) / SMOOTH;
    h->tries++;
    if (h->tries < TRIES) {
        return;
    }
    if (h->score_ns > 0) {
        h->backoff_ns = BACKOFF_MIN_NS;
    } else {
        h->retry_ns = now_ns + h->backoff_ns;
        h->backoff_ns = NR_MIN(2 * h->backoff_ns, BACKOFF_MAX_NS);
        h->tries = 0;
        h->score_ns = 0;
    }
}
