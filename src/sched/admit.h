/* What a queue may hold: the limits, and how long a request that joins it would wait.
 *
 * The limit that adapts is one of time: a queue holds as many rows as the model takes away within
 * max_wait_ns, at the pace measured now. The pace is that of the queue's end, not of one run: while
 * rows wait, the time from one batch taken to the next, so places that share cores, neighbours and
 * batches that grow are all in it.
 *
 * Pure logic on given times; the caller holds its lock.
 */
#ifndef NR_SCHED_ADMIT_H
#define NR_SCHED_ADMIT_H

#include "sched/queue.h"

struct nr_sched_limits {
    unsigned max_queue_requests; /* 4,096 */
    uint64_t max_queue_bytes;    /* 256 MiB of inputs */
    int64_t max_wait_ns;         /* 5 s of work at the measured pace */
    int64_t idle_trim_ns; /* 1 s: so long after its last execution on an executor a model gives back
                             what it keeps for the next one; 0 never */
};

#define NR_REFUSAL_MAP(X)                                                        \
    X(NR_REFUSAL_NONE, "none")                                                   \
    X(NR_REFUSAL_POLICY, "queue_size") /* max_queue_size of the configuration */ \
    X(NR_REFUSAL_COUNT, "requests")    /* max_queue_requests */                  \
    X(NR_REFUSAL_BYTES, "bytes")       /* max_queue_bytes */                     \
    X(NR_REFUSAL_WAIT, "wait")         /* max_wait_ns */                         \
    X(NR_REFUSAL_HOPELESS, "hopeless") /* its time would pass before its turn */ \
    X(NR_REFUSAL_SHARE, "share")       /* it gave way to a client with less */   \
    X(NR_REFUSAL_TIMEOUT, "timeout")   /* the queue's time-out passed */         \
    X(NR_REFUSAL_DEADLINE, "deadline") /* the client's deadline passed */        \
    X(NR_REFUSAL_STUCK, "stuck")       /* no run returns (watchdog.h) */
typedef enum nr_refusal {
#define NR_REFUSAL_ENUM(symbol, text) symbol,
    NR_REFUSAL_MAP(NR_REFUSAL_ENUM)
#undef NR_REFUSAL_ENUM
    NR_REFUSAL_KINDS
} nr_refusal;
const char *nr_refusal_text(nr_refusal why);

struct nr_admit {
    unsigned n_places;
    int64_t max_rows; /* of a batch */
    int64_t run_ns;   /* smoothed time of one batch */
    int64_t row_ns;   /* smoothed, of a batch by its rows */
    int64_t pace_ns;  /* between two rows leaving a queue that never empties; 0 not known */
    int64_t took_ns;  /* when the last batch was taken while others waited behind it; 0 none */
    int64_t took_rows;
    int64_t window_ns, window_rows; /* of the sample that is being collected */
    unsigned window_n;
};

void nr_admit_init(struct nr_admit *a, unsigned n_places, int64_t max_rows);
/* A batch of `rows` left the queue; `waiting` rows stay behind. */
void nr_admit_took(struct nr_admit *a, int64_t rows, int64_t waiting, int64_t now_ns);
/* A batch of `rows` took run_ns. */
void nr_admit_ran(struct nr_admit *a, int64_t rows, int64_t run_ns);
/* How long a request waits that has `rows` before it. 0 when nothing is known yet. */
int64_t nr_admit_wait(const struct nr_admit *a, int64_t rows);
/* Rows that the queue may hold by max_wait_ns now; INT64_MAX when nothing is known yet. */
int64_t nr_admit_rows(const struct nr_admit *a, int64_t max_wait_ns, int64_t now_ns);
/* Puts r into q, or says why not. It gets the place of another one where that one's client has more
 * in the queue, or it is less urgent: *ret_victim is that one, out of the queue then, else NULL.
 * Sets r->leaves_ns. idle: nothing of the model runs. */
nr_refusal nr_admit_put(const struct nr_admit *a, const struct nr_sched_limits *l,
                        struct nr_queue *q, struct nr_request *r, bool idle, int64_t now_ns,
                        struct nr_request **ret_victim);

#endif
