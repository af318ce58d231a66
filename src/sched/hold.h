/* Should a batch wait a moment for the requests that are about to come back?
 *
 * Clients that wait for their answers send the next request soon after a batch ends. A batch that is
 * taken before they have done so is smaller than it could be, and it stays so: the clients fall into
 * groups that wait for each other's batches, and each group pays the fixed cost of a batch. Waiting
 * for as many rows as the batch that just ended had, for a fraction of that fixed cost, brings them
 * together again.
 *
 * Whether it does is measured. Each wait has a price, the time that a place stood still, and a yield,
 * the part of the fixed cost that the rows which came meanwhile would have paid in a batch of their
 * own. While yields are below prices nothing is held, but for some tries after a back-off. Nothing
 * is held either when no batch has just ended: a model that was idle never waits.
 *
 * Pure logic on given times; the caller holds its lock.
 */
#ifndef NR_SCHED_HOLD_H
#define NR_SCHED_HOLD_H

#include <stdbool.h>
#include <stdint.h>

struct nr_hold {
    int64_t ended_ns;      /* of the last batch; 0 none */
    int64_t expected_rows; /* that will be waiting when its clients are back */
    int64_t since_ns;      /* a batch has been held since then; 0: none is */
    int64_t since_rows;    /* that waited then */
    int64_t score_ns;      /* smoothed yield less price */
    unsigned tries;        /* waits since holding was tried (again) */
    int64_t retry_ns;      /* nothing is held before */
    int64_t backoff_ns;
};
void nr_hold_init(struct nr_hold *h);
/* A batch of `rows` ended while `waiting` rows were queued. */
void nr_hold_ended(struct nr_hold *h, int64_t rows, int64_t waiting, int64_t now_ns);
/* Rows that may be waiting soon, at least `waiting`: a batch of that size is worth planning. */
int64_t nr_hold_rows(const struct nr_hold *h, int64_t waiting, int64_t fixed_ns, int64_t now_ns);
/* 0: take what waits; else: look again then, or when another request comes. fixed_ns: the part of a
 * batch's time that does not depend on its rows. */
int64_t nr_hold_until(struct nr_hold *h, int64_t waiting, int64_t fixed_ns, int64_t now_ns);
/* A batch of `rows` was taken. */
void nr_hold_took(struct nr_hold *h, int64_t rows, int64_t fixed_ns, int64_t now_ns);

#endif
