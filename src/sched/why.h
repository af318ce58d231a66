/* Why a model is as fast as it is: facts of a window of time → findings, the weightiest first.
 *
 * A request's time has three parts: before it was queued (upload, decoding), waiting, running. Each
 * finding names one cause and the share of the mean request's time that it explains; requests that
 * were refused count by their own share. What another setting would do is simulated (why_sim.h)
 * with the measured cost of a batch, fixed + per row, and given as a factor on what was measured.
 *
 * Pure; any thread.
 */
#ifndef NR_SCHED_WHY_H
#define NR_SCHED_WHY_H

#include "sched/batcher.h"
#include "sched/counters.h"

/* name: in answers, part of the interface. */
#define NR_WHY_MAP(X)                                                                              \
    X(NR_WHY_NO_TRAFFIC, "no_traffic")    /* nothing was asked */                                  \
    X(NR_WHY_QUEUE_FULL, "queue_full")    /* refused: no room in the queue */                      \
    X(NR_WHY_DEADLINES, "deadlines")      /* their time passed in the queue */                     \
    X(NR_WHY_MAX_BATCH, "max_batch_size") /* batches are full, and larger ones would pay */        \
    X(NR_WHY_DELAY, "delay")              /* held back for max_queue_delay */                      \
    X(NR_WHY_PREFERRED, "preferred_size") /* held back for a preferred size that is not reached */ \
    X(NR_WHY_SHAPES, "shapes")            /* neighbours in the queue do not match */               \
    X(NR_WHY_ROWS, "rows")                /* the next request's rows would not fit any more */     \
    X(NR_WHY_BATCHING_OFF, "batching_off") /* one request at a time although batches would pay */  \
    X(NR_WHY_STRATEGY, "strategy")         /* the batching strategy makes small batches */         \
    X(NR_WHY_INSTANCES, "instances")       /* every instance is busy */                            \
    X(NR_WHY_CORES, "cores")               /* the machine has no more cores for it */              \
    X(NR_WHY_NEIGHBOURS, "neighbours")     /* other processes have the cores */                    \
    X(NR_WHY_IO_LOOP, "io_loop")           /* the I/O threads are busy all the time */             \
    X(NR_WHY_DECODING, "decoding")         /* reading requests costs more than running them */     \
    X(NR_WHY_UPLOADS, "uploads")           /* bodies come in slowly */                             \
    X(NR_WHY_LOAD, "load") /* too little is asked at a time: the rest is the model's own time */
typedef enum nr_why_cause {
#define NR_WHY_ENUM(symbol, name) symbol,
    NR_WHY_MAP(NR_WHY_ENUM)
#undef NR_WHY_ENUM
    NR_WHY_CAUSES
} nr_why_cause;
const char *nr_why_cause_text(nr_why_cause c);

/* What the version is set to. */
struct nr_why_settings {
    int64_t max_batch_size; /* 0: the model has no batch dimension */
    bool batching;          /* dynamic batching is on */
    bool auto_size;         /* nobody asked for sizes */
    int64_t delay_ns;
    unsigned n_preferred;
    int64_t preferred[NR_BATCH_MAX_PREFERRED];
    unsigned instances;
    unsigned max_queue_requests;
};

/* All counts and times are of the window, but for `ever`. */
struct nr_why_facts {
    struct nr_why_settings set;
    int64_t window_ns;
    uint64_t requests; /* answered with success */
    uint64_t rows, executions, inline_executions;
    uint64_t request_ns, queue_ns, run_ns; /* sums over requests; run: input, infer, output */
    int64_t total_p50_ns, total_p99_ns, wait_p50_ns, wait_p99_ns;
    uint64_t seals[NR_SEAL_COUNT];
    uint64_t refused_full, refused_late, cancelled, failed;
    const struct nr_batch_count *sizes, *ever; /* ascending by rows; ever: since it was loaded */
    unsigned n_sizes, n_ever;
    /* The machine: processor time. */
    unsigned cores, n_loops;
    int64_t own_ns;      /* this process */
    int64_t others_ns;   /* other processes of the machine */
    int64_t loops_ns;    /* its I/O threads … */
    int64_t loop_max_ns; /* … and the busiest of them */
    int64_t pool_ns;     /* its threads for pictures and large JSON */
    uint64_t
        preempted;   /* how often one of the others, which run models, lost its core to another … */
    uint64_t waited; /* … and how often it had nothing to compute */
};

#define NR_WHY_TEXT 320
#define NR_WHY_MAX_EFFECTS 8

struct nr_why_effect {
    const char *setting; /* "max_batch_size", "max_queue_delay_microseconds", "instances", … */
    char from[24], to[24];
    double throughput;     /* factor, with as many requests in flight as now; 0: not known */
    double requests_per_s; /* what that would be */
    double latency; /* factor on the mean time if as many came a second, at random; 0: not known */
    double latency_ns; /* what that would be */
};

struct nr_why_finding {
    nr_why_cause cause;
    double share; /* 0..1 */
    char text[NR_WHY_TEXT], advice[NR_WHY_TEXT];
    int effect; /* index into the report's effects, -1: none */
};

struct nr_why_report {
    double in_flight;    /* mean number of requests in the server (Little's law) */
    double rate_per_s;   /* requests */
    double request_rows; /* mean */
    double mean_ns, before_ns, wait_ns, run_ns;  /* of a request */
    double instance_use, loop_use, loop_max_use; /* 0..1 */
    bool cost_known;                             /* a batch's time: fixed + row * rows */
    bool cost_split;                             /* several sizes were seen: both are known */
    double fixed_ns, row_ns;
    double model_error; /* simulated rate of the present setting over the measured one, less 1 */
    unsigned n_findings, n_effects;
    struct nr_why_finding findings[NR_WHY_CAUSES];
    struct nr_why_effect effects[NR_WHY_MAX_EFFECTS];
};

void nr_why_explain(const struct nr_why_facts *f, struct nr_why_report *ret);

#endif
