/* What repository*.c, catalog.c and version.c share and nobody else needs.
 *
 *   repository_plan.c   what lies in the files: names, versions, fingerprints; knows no state
 *   repository_load.c   changes: plan → new slots → load jobs → switch; unloading; operations
 *   repository_agents.c the agents of a model, of each load
 *   repository_poll.c   the thread that looks at the files in NR_CONTROL_POLL
 *   repository.c        begin and end, waiting, listing
 *   repository_demand.c loading on demand within a budget of memory
 *   repository_labels.c labels of versions
 *   catalog.c           snapshots and readers
 */
#ifndef NR_MODEL_REPOSITORY_PRIV_H
#define NR_MODEL_REPOSITORY_PRIV_H

#include <pthread.h>

#include "io/pool.h"
#include "model/repository.h"

#define NR_REPOSITORY_MAX_ENTRIES 100000 /* of one folder */

struct nr_change;

struct nr_slot { /* one version as it was opened once, and its jobs */
    struct nr_version v;
    struct nr_model *model;
    struct nr_change *change; /* whose new slot it is, until it came to rest */
    struct nr_job job;
    int64_t ready_ns;       /* since when it serves */
    uint64_t closing_bytes; /* its part of the repository's */
    struct nr_op *waiter;   /* an unload that ends when this is closed */
    uint64_t told;          /* of an ensemble: hash of what on_state was told last */
    uint64_t print;         /* fingerprint of the files it is opened from */
    bool shown;             /* in model->slots */
    uint32_t n_jobs;        /* begun and not ended: one while LOADING, one while UNLOADING */
    bool unload_wanted;     /* unload came while LOADING */
    bool opened;            /* waits for the others of its change, to be switched to */
    bool has_agents;        /* its model's configuration names repository agents */
    struct nr_lease *lease; /* from its load to its close; NULL: no agents */
    char folder[24];        /* beneath the model's folder: "3", or "." when the files lie in it */
};

struct nr_change { /* from the first load job of a plan to the rest of the last one */
    struct nr_model *model;
    struct nr_slot **slots; /* what the model's shall be: kept ones and new ones, ascending */
    size_t n_slots, n_left; /* n_left: new ones that are not at rest */
    bool beside;            /* READY versions serve until all new ones are open */
    bool failed;
    struct nr_err err;      /* of the first that failed */
    struct nr_lease *lease; /* of the new slots' agents, or NULL */
};

struct nr_model {
    struct nr_version whole; /* stands for the model in on_state: name, number -1 */
    char *name;              /* constant; the struct lives as long as the repository */
    char *reason;            /* "" or why none of its versions can be tried */
    char *note;              /* "" or why the last change failed while older versions serve */
    struct nr_slot **slots;  /* ascending by number: what index and catalog show */
    size_t n_slots;
    struct nr_change *change;                      /* under way */
    struct nr_op *active;                          /* operation under way */
    struct nr_list ops;                            /* that wait for it */
    bool shown;                                    /* false: found, but not taken yet, or gone */
    struct nr_traffic traffic, before, configured; /* labels now, before the last change, as the
                                                      configuration said last */
    bool has_before;
    struct nr_label *labels[NR_TRAFFIC_MAX_LABELS]; /* every name there ever was */
    uint32_t n_labels;
    /* repository_demand.c */
    bool pinned;
    enum {
        NR_DEMAND_NONE,
        NR_DEMAND_QUEUED, /* in r->demands */
        NR_DEMAND_LOADING /* by demand_op */
    } demanded;
    struct nr_list demand_node, waiters;
    uint32_t n_waiters;
    int64_t demand_ns; /* queued at */
    struct nr_op demand_op;
    uint64_t expect_bytes; /* 0: never loaded */
    /* of the polling thread only */
    uint64_t look_print, tried_print; /* as seen last; as it was when a load was last begun */
    int64_t look_ns, look_gone_ns;    /* since when look_print is seen; since when nothing is */
    bool tried;
};

enum nr_source_kind {
    NR_SOURCE_REPOSITORY, /* a folder of models */
    NR_SOURCE_MODEL,      /* one model's folder */
    NR_SOURCE_FILE        /* one model's file */
};
struct nr_source { /* a path given at the start; constant */
    enum nr_source_kind kind;
    char *path; /* real path; of a file its folder's */
    char *name; /* of the one model; NULL for a repository */
    char *file; /* NR_SOURCE_FILE: its name */
    int fd; /* of a repository; the others are opened by path each time, for they may be replaced */
};

struct nr_repository {
    struct nr_repository_cfg cfg; /* without what is borrowed */
    char *config_name;
    struct nr_source *sources;
    size_t n_sources;
    char **load; /* cfg.load, own copies */
    size_t n_load;
    pthread_mutex_t lock;     /* everything below */
    struct nr_model **models; /* by name */
    size_t n_models;
    struct nr_map by_name;
    uint8_t *index_used; /* [n_index]: nr_version.index in use */
    uint32_t n_index;
    struct nr_pool *pool;    /* loads and closes */
    struct nr_pool *control; /* one thread: plans, in the order of submission */
    pthread_cond_t rest;     /* one of the counts went down, or stopping began */
    size_t n_loading, n_closing, n_ops, n_ready, n_slots;
    uint64_t closing_bytes; /* of versions that are UNLOADING */
    struct nr_list demands; /* models, in order of arrival */
    uint32_t n_waiters;
    uint64_t n_demand_loads, n_evictions;
    bool demands_run;
    pthread_t demander;
    bool stopping;
    bool polls;
    pthread_t poller;
    struct nr_catalog *catalog;
    _Atomic uint64_t
        generation; /* of catalog; written under the lock, partner: nr_catalog_refresh */
};

static inline void nr_repository_lock(struct nr_repository *r)
{
    NR_ASSERT(pthread_mutex_lock(&r->lock) == 0);
}
static inline void nr_repository_unlock(struct nr_repository *r)
{
    NR_ASSERT(pthread_mutex_unlock(&r->lock) == 0);
}

/* --- repository_plan.c ---------------------------------------------------------------------- */

struct nr_planned { /* a version that the model shall have */
    int64_t number;
    uint64_t print; /* of its files and of the model's own */
    char folder[24];
};
struct nr_plan { /* what the files say of one model, at one moment */
    char *name;
    char *path;   /* of its folder, for people */
    char *file;   /* bare file, or NULL */
    char *reason; /* "" or why it cannot be tried; then there are no versions */
    struct nr_planned *versions;
    size_t n_versions;
    uint64_t print;            /* of everything that belongs to the model */
    int64_t newest_wall_ns;    /* latest mtime within */
    bool pinned;               /* naru.pin */
    bool has_agents;           /* model_repository_agents */
    struct nr_traffic traffic; /* of the configuration; its names are in `names` */
    char names[NR_TRAFFIC_MAX_LABELS][65];
};
/* Finds out what lies at a path given at the start. NARU_INVALID, NARU_NOT_FOUND, NARU_IO. */
nr_nodiscard nr_status nr_source_open(struct nr_source *s, const char *path, struct nr_err *err);
void nr_source_close(struct nr_source *s);
/* Names of all models there are; each once, in no order. *ret and its strings are the caller's. */
nr_nodiscard nr_status nr_plan_names(const struct nr_repository *r, char ***ret, size_t *ret_n,
                                     struct nr_err *err);
/* NARU_NOT_FOUND: no source has it. A model that is wrong in itself is a plan with a reason. */
nr_nodiscard nr_status nr_plan_make(const struct nr_repository *r, const char *name,
                                    struct nr_plan *ret, struct nr_err *err);
/* Only print and newest_wall_ns, without reading the configuration. */
nr_nodiscard nr_status nr_plan_look(const struct nr_repository *r, const char *name,
                                    struct nr_plan *ret, struct nr_err *err);
void nr_plan_done(struct nr_plan *p);
bool nr_plan_exists(const struct nr_repository *r, const char *name); /* in any source */
/* Opens the folder of the model (of a file: the one it lies in). */
nr_nodiscard nr_status nr_plan_open(const struct nr_repository *r, const char *name, int *ret_fd,
                                    struct nr_err *err);
/* The fingerprint of one version as nr_planned has it, of the files as they are now. */
nr_nodiscard nr_status nr_plan_print(int model_fd, const char *folder, const char *file,
                                     uint64_t *ret, struct nr_err *err);

/* --- repository_load.c ---------------------------------------------------------------------- */

/* The model of that name, made when it is new (not shown then). Under the lock. */
struct nr_model *nr_model_get(struct nr_repository *r, const char *name);
void nr_model_free(struct nr_repository *r, struct nr_model *m);
/* Takes a plan for a model in which nothing is under way; load false: slots stay UNKNOWN, to be
 * loaded by nr_repository_load_known. op: ended by the change, may be NULL. Not under the lock. */
void nr_model_take_plan(struct nr_repository *r, struct nr_model *m, const struct nr_plan *p,
                        bool load, struct nr_op *op);
/* Loads what was taken with load false: all of it is LOADING in one snapshot before any begins. */
void nr_repository_load_known(struct nr_repository *r, struct nr_model *const *models, size_t n);
/* The model is gone from the files: unloads and hides it. False when something is at work on it: try again. */
bool nr_model_take_gone(struct nr_repository *r, struct nr_model *m);
/* A load that nobody waits for. */
void nr_repository_poll_load(struct nr_repository *r, const char *name);
/* Ends operations that wait, when the repository is stopping. Not under the lock. */
void nr_repository_cancel_ops(struct nr_repository *r);

/* --- repository_agents.c --------------------------------------------------------------------- */

/* What the versions opened by one load share: agents and the folder they left. None of its functions is
 * called under the repository's lock but nr_lease_new and nr_lease_ref; most accept NULL. */
struct nr_lease;
struct nr_lease *nr_lease_new(struct nr_repository *r, const char *model); /* one reference */
struct nr_lease *nr_lease_ref(struct nr_lease *l);
void nr_lease_unref(struct nr_lease *l);
/* Runs the agents, or waits for whoever does. *ret_fd, *ret_path: the folder to open the model from,
 * borrowed as long as a reference is held. path: of the model's own folder. low: see load(). */
nr_nodiscard nr_status nr_lease_load(struct nr_lease *l, int model_fd, const char *path, bool low,
                                     int *ret_fd, const char **ret_path, struct nr_err *err);
void nr_lease_opened(struct nr_lease *l); /* one of its versions is open */
/* The load is over (failed: nothing of it will serve). Takes the change's reference. */
void nr_lease_settle(struct nr_lease *l, bool failed);
void nr_lease_closing(struct nr_lease *l); /* one of its versions begins to close */

/* --- repository_labels.c --------------------------------------------------------------------- */

/* The configuration's labels, when it says something else than the last time. Under the lock. */
void nr_model_take_labels(struct nr_model *m, const struct nr_traffic *t);
struct nr_label *nr_model_label(struct nr_model *m, struct nr_str name); /* or NULL */
void nr_model_free_labels(struct nr_model *m);

/* --- repository_demand.c --------------------------------------------------------------------- */
void nr_repository_demand_start(struct nr_repository *r);
void nr_repository_demand_stop(struct nr_repository *r); /* not under the lock */
/* repository_load.c: submits m->demand_op, a load. Not under the lock. */
void nr_repository_demand_load(struct nr_repository *r, struct nr_model *m);

/* --- repository_poll.c ---------------------------------------------------------------------- */
void nr_repository_poll_start(struct nr_repository *r);
void nr_repository_poll_stop(struct nr_repository *r); /* not under the lock */

/* --- catalog.c ------------------------------------------------------------------------------ */

/* The current state of things as a snapshot with one reference. Under the lock. */
struct nr_catalog *nr_catalog_make(const struct nr_repository *r, uint64_t generation);
void nr_catalog_unref(struct nr_catalog *c); /* not under the lock */
/* settle.c: ensembles of a snapshot that is being made, after all other entries. Under the lock. */
void nr_catalog_settle(struct nr_catalog *c);
/* Whether v, an ensemble that is open, would be READY with the members that c has; otherwise the reason.
 * Under the lock. */
nr_nodiscard nr_status nr_catalog_try(const struct nr_catalog *c, struct nr_version *v,
                                      struct nr_err *err);
/* What clients see of a version: an ensemble that is open may lack members. Under the lock. */
struct nr_catalog_version nr_repository_seen(const struct nr_repository *r,
                                             const struct nr_version *v);
/* Makes and installs a new snapshot; the old one is the caller's to unref after unlocking. */
struct nr_catalog *nr_repository_publish(struct nr_repository *r);
/* After unlocking: lets the old one go and tells the readers. */
void nr_repository_published(struct nr_repository *r, struct nr_catalog *old);

/* The last reference of v is gone: close it on the loading pool. Any thread, never blocks. */
void nr_repository_version_idle(struct nr_version *v);
/* Steps 1 and 2 of the configuration of v, whose name and descriptors are set. */
nr_nodiscard nr_status nr_version_prepare(struct nr_version *v, const char *config_name,
                                          struct nr_err *err);
void nr_version_clear(
    struct nr_version *v); /* frees configuration and labels, closes descriptors */

#endif
