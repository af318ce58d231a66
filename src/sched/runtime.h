/* Opens and closes model versions: plug-in, model, configuration, instances, scheduler.
 *
 * The repository calls nr_runtime_ops on its loading threads; afterwards version->runtime is a
 * struct nr_runtime, which request code reads. One nr_runtime_host per process holds what all
 * versions share.
 */
#ifndef NR_SCHED_RUNTIME_H
#define NR_SCHED_RUNTIME_H

#include "host/plugin.h"
#include "model/version.h"
#include "sched/cache.h"
#include "sched/hostpolicy.h"
#include "sched/limiter.h"
#include "sched/pipeline.h"
#include "sched/sched.h"
#include "sched/sequence.h"
#include "sched/threadbook.h"

struct nr_runtime_host {
    struct nr_plugins *plugins;
    struct nr_batchings *batchings; /* NULL: models that name a batching strategy do not load */
    struct nr_exec *exec;
    struct nr_loop *const *loops;
    unsigned n_loops;
    struct nr_pool *pool; /* of pipelines' own steps */
    struct nr_image_limits images;
    struct nr_sched_limits limits;
    struct nr_placement_cfg placement; /* allowed: the operator's switch for inline execution */
    struct nr_watchdog *watchdog;      /* NULL: runs are not watched */
    int64_t watchdog_ns;               /* of models that do not say; 0: not watched */
    unsigned max_instances;            /* over all groups of a model */
    struct nr_limiter *limiter;        /* NULL: --rate-limit=off */
    const struct nr_host_policies *policies; /* NULL: none */
    struct nr_thread_book *threads;          /* NULL: nobody counts */
    unsigned exec_threads;                   /* 0: as many as cores */
    bool warm_up;                            /* models without model_warmup, where it pays */
    struct nr_cache *cache;                  /* for models that ask for it; NULL: none */
    struct nr_redis *redis;                  /* with cache: shares its answers; NULL: nobody does */
    struct nr_sequence_book *sequences;      /* NULL: sequences do not outlive a reload */
};

struct nr_runtime {
    struct nr_version *version; /* back pointer; the version owns the runtime */
    struct nr_target *target;   /* where requests of the version go */
    struct nr_counters *counters;
    struct nr_plugin *plugin; /* opened before the model: see nr_version_ops.prepare; NULL for an
                                 ensemble */
    struct nr_plugin_model *model;  /* NULL for an ensemble */
    struct nr_sched *sched;         /* runs the model's batches; with a sequencer: its first one;
                                       NULL for an ensemble */
    struct nr_strategy *strategy;   /* of its batches; NULL: the server's own */
    struct nr_sequencer *sequencer; /* NULL: the configuration asks for none */
    struct nr_pipeline *pipeline;   /* of an ensemble, else NULL */
    struct nr_runwatch *watch;      /* NULL for an ensemble */
    struct nr_cached
        *cached; /* in front of sched or pipeline; NULL: the configuration asks for none */
    const struct nr_signature *signature;
    struct nr_room *room; /* of the signature's inputs; NULL: they may lie anywhere */
    struct nr_plugin_instance **instances; /* [n_instances], the passive ones last */
    unsigned n_instances, n_active;
    struct nr_sched_member *members; /* [n_active] */
    struct nr_thread_entry threads;
    struct nr_thread_book *thread_book; /* that threads is in, or NULL */
    bool unlimited; /* the configuration has a rate_limiter, and --rate-limit is off */
    bool one_node;  /* a host policy names the memory node, and there is one only */
    struct nr_plugin_instance **loop_instances; /* NULL when executions share `instances` */
    unsigned n_loop_instances;
    bool says_instances; /* the user's configuration says how many instances */
    bool says_batching;  /* the user's configuration asks for dynamic batching */
};

/* ctx of the ops is the struct nr_runtime_host. */
extern const struct nr_version_ops nr_runtime_ops;

void nr_runtime_state_get(const struct nr_runtime *rt, struct nr_sched_state *ret); /* any thread */
/* Appends what its owner should know of how it is set up, now: settings that together do not do what
 * they say. Nothing when all is well. Any thread. */
void nr_runtime_notes(const struct nr_runtime *rt, struct nr_text *t);
/* False: the version serves no sequences. Any thread. */
bool nr_runtime_sequences_get(const struct nr_runtime *rt, struct nr_sequencer_state *ret);

static inline struct nr_runtime *nr_runtime_of(const struct nr_version *v)
{
    return v->runtime;
}

#endif
