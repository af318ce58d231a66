/* The load generator: one thread, many connections, latencies from the scheduled instant.
 *
 * Definitions (docs of the measurement method): t_sched planned instant, t_send when the request
 * was handed to the socket, t_last when the whole answer was read.
 *   response time = t_last - t_sched   (the headline: includes waiting for a free connection)
 *   service time  = t_last - t_send
 *   send delay    = t_send - t_sched   (how late the generator itself was)
 * In a closed loop t_sched = t_send.
 *
 * One run is warm-up, then a window. Rates, processor time and counts cover what was answered
 * within the window; the histograms cover requests that were due within the window, also when their
 * answer came after it. A request that times out stays in the histograms with the timeout's value.
 */
#ifndef NR_LOAD_CLIENT_H
#define NR_LOAD_CLIENT_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/hist.h"
#include "load/schedule.h"
#include "load/target.h"

#define NR_LOAD_PIDS_MAX 16

/* What can happen to a request, with the names of reports. */
#define NR_LOAD_OUTCOME_MAP(X)                                                     \
    X(NR_LOAD_GOOD, "ok")             /* 2xx; gRPC: and grpc-status 0 */           \
    X(NR_LOAD_REFUSED, "refused")     /* 429, 503; gRPC: 8, 14 */                  \
    X(NR_LOAD_STATUS, "status")       /* any other status */                       \
    X(NR_LOAD_TIMED_OUT, "timeout")   /* no whole answer within timeout_ns */      \
    X(NR_LOAD_BROKEN, "broken")       /* the connection ended before the answer */ \
    X(NR_LOAD_MALFORMED, "malformed") /* not HTTP, or framed in a way we do not read */
typedef enum nr_load_outcome {
#define NR_LOAD_ENUM(symbol, text) symbol,
    NR_LOAD_OUTCOME_MAP(NR_LOAD_ENUM)
#undef NR_LOAD_ENUM
    NR_LOAD_OUTCOMES
} nr_load_outcome;
const char *nr_load_outcome_text(nr_load_outcome o);

struct nr_load_cfg {
    const struct nr_load_target *target; /* borrowed for the run */
    unsigned connections;                /* opened before the clock starts; >= 1 */
    unsigned max_connections; /* open loop: more are opened while none is free; 0: connections */
    unsigned streams;         /* requests in flight per connection; 1 for HTTP/1.1 */
    nr_arrival arrival;
    double rate_per_s; /* open loop */
    uint64_t seed;     /* Poisson */
    int64_t warm_ns, run_ns;
    uint64_t max_requests; /* > 0: the run also ends when so many were sent, warm-up included */
    int64_t timeout_ns;    /* of one request, from sending */
    const pid_t *pids;     /* processes whose CPU time is measured over the window */
    unsigned n_pids;       /* <= NR_LOAD_PIDS_MAX */
};
/* 1 connection, 1 stream, closed loop, 1 s after 0.2 s of warm-up, timeout 10 s. */
void nr_load_cfg_default(struct nr_load_cfg *cfg);

struct nr_load_result {
    struct nr_hist *response, *service, *send_delay; /* good answers and timeouts only */
    uint64_t outcomes[NR_LOAD_OUTCOMES];             /* finished within the window */
    uint64_t answered;    /* good ones and those with another status, within the window */
    int64_t answered_ns;  /* sum of their response times: by Little's law a closed loop's rate is
                            connections x streams x answered / answered_ns, free of window edges */
    uint64_t sent;        /* over the whole run */
    uint64_t planned;     /* open loop: due within the window */
    uint64_t unanswered;  /* still in flight when the run was given up */
    uint64_t reconnects;  /* connections opened again after they ended */
    uint64_t bytes_in;    /* over the whole run */
    uint64_t max_backlog; /* requests that were due and waited for a connection, at most */
    int64_t window_ns;
    int64_t client_cpu_ns;  /* this thread's, over the window */
    int64_t watched_cpu_ns; /* of cfg.pids, over the window; 0 without any */
    bool overflowed;        /* the backlog's bound was hit: the run is not valid */
};

/* Runs on the calling thread and returns when the run is over. NARU_UNAVAILABLE: nobody listens
 * (text says where); NARU_INVALID: cfg makes no sense; NARU_NOT_FOUND: a process of cfg.pids is
 * gone. Errors of single requests are counted, not returned. On success *ret is the caller's, to be
 * ended with nr_load_result_done; on error it is untouched. */
nr_nodiscard nr_status nr_load_run(const struct nr_load_cfg *cfg, struct nr_load_result *ret,
                                   struct nr_err *err);
void nr_load_result_done(struct nr_load_result *r);

#endif
