/* One version of one model: where its files are, its configuration, its state, who holds it.
 *
 *            load job             ops.open ok            unload              last reference gone
 *   UNKNOWN ───────────▶ LOADING ─────────────▶ READY ──────────▶ UNLOADING ────────────────────▶
 *                           │ any error                                       UNAVAILABLE "unloaded"
 *                           └──────────────────▶ UNAVAILABLE (reason)
 *
 * Reference counts: the repository holds one while the version is READY; every catalog snapshot
 * (repository.h) in which it is READY holds one; anybody else who keeps a pointer beyond the life of
 * a snapshot takes one. READY → UNLOADING takes the version out of the next snapshot and gives the
 * repository's reference back; when the snapshots and users are gone too, ops.close runs on the
 * loading pool, never on the thread that dropped the last reference. Request code takes no
 * reference at all: it pins the version in its thread's view (nr_catalog_pin). The struct lives
 * until it is closed and its place in the model is taken by a newer one; its name lives as long as
 * the repository.
 *
 * Threads: fields above the line are constant once the version is READY. `state`, `reason` are
 * written under the repository's lock; state may be read by anyone.
 */
#ifndef NR_MODEL_VERSION_H
#define NR_MODEL_VERSION_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "base/str.h"
#include "codec/image_plan.h"
#include "codec/labels.h"
#include "model/config.h"

struct nr_repository;
struct nr_version;

typedef enum nr_version_state {
    NR_VERSION_UNKNOWN,
    NR_VERSION_LOADING,
    NR_VERSION_READY,
    NR_VERSION_UNLOADING,
    NR_VERSION_UNAVAILABLE
} nr_version_state;

/* What opens and closes a version: host, plug-in, scheduler. Called on pool threads, at most one
 * call per version at a time, different versions in parallel; all may block.
 * prepare: before open, always at the process's own priority, while open may run on a thread of low
 *   priority (a model is served meanwhile); so whatever starts threads that outlive the load does it
 *   here. NULL: nothing to do. What it leaves is undone by open on error, or by close.
 * open: config has gone through nr_config_files. It opens the model, calls nr_version_complete with
 *   the model's info, opens instances, warms up, sets v->runtime (and memory_bytes). On error it
 *   has undone everything and close is not called.
 * is_busy: of a READY version: requests wait or run. Called under the repository's lock, must not block
 *   but for leaf locks. NULL: never.
 * close: after the last reference is gone; stops what open started. v->config is still there. */
struct nr_version_ops {
    nr_status (*prepare)(void *ctx, struct nr_version *v, struct nr_err *err);
    nr_status (*open)(void *ctx, struct nr_version *v, struct nr_err *err);
    void (*close)(void *ctx, struct nr_version *v);
    bool (*is_busy)(void *ctx, const struct nr_version *v);
};

struct nr_version {
    const char *name;      /* of the model */
    int64_t number;        /* 1.. */
    uint32_t index;        /* small, its own while the struct lives: for arrays of counts */
    uint64_t serial;       /* of its load: a number that no other load in this process has */
    int dir_fd;            /* directory of the version, open from its load to its close */
    int model_fd;          /* directory of the model (labels, warm-up data), open while it is
                              loading; -1 for a bare file */
    const char *path;      /* of the version's directory, for people and for libraries */
    const char *bare_file; /* file given on the command line, else NULL */
    struct nr_model_config *config;
    struct nr_labels *labels;      /* [config->sig.n_outputs]; n_items 0: none */
    struct nr_image_plan *picture; /* what is done with a picture; NULL: it takes none */
    const char *no_picture;        /* and why not */
    void *runtime;                 /* whoever supplied ops; set by open, cleared by close */
    void *stats;                   /* likewise */
    uint64_t memory_bytes;         /* set by open, for banners and budgets; 0 unknown */
    uint64_t load_ns;              /* how long the load took, from the job's start to READY */
    struct nr_repository *repository;
    /* --- */
    _Atomic uint32_t refs;
    _Atomic int state;       /* nr_version_state */
    char *reason;            /* "" or why it is not ready; under the repository's lock */
    int64_t since_wall_ns;   /* of the state; under the repository's lock */
    bool stuck;              /* READY, but no run returns: not shown as READY. Likewise */
    char *trouble;           /* NULL, or what is wrong with runs of it. Likewise */
    _Atomic int64_t used_ns; /* about when a request last came; see nr_version_used */
};

/* Step 3 of the configuration, the label files, and what the parameters naru.* say; for ops.open.
 * info may be NULL. */
nr_nodiscard nr_status nr_version_complete(struct nr_version *v, const naru_model_info *info,
                                           struct nr_err *err);
/* What the runs of an open version say of its health: stuck: it cannot serve now, until this is called
 * with false; text: what is wrong ("" nothing), shown in the index and told by on_state. Any thread,
 * without locks; v is open until this returns. */
void nr_version_set_stuck(struct nr_version *v, bool stuck, const char *text);
struct nr_version *nr_version_ref(struct nr_version *v); /* any thread; v must be held already */
void nr_version_unref(struct nr_version *v); /* any thread, never blocks; accepts NULL */
#define NR_VERSION_USED_NS 100000000
/* Any thread. Writes a shared line ten times a second at most, however many requests come. */
static inline void nr_version_used(struct nr_version *v, int64_t now_ns)
{
    if (now_ns - atomic_load_explicit(&v->used_ns, memory_order_relaxed) > NR_VERSION_USED_NS) {
        atomic_store_explicit(&v->used_ns, now_ns, memory_order_relaxed);
    }
}
static inline nr_version_state nr_version_state_of(const struct nr_version *v)
{
    return (nr_version_state)atomic_load_explicit(&v->state, memory_order_acquire);
}
const char *nr_version_state_text(nr_version_state s); /* "READY", as the index reports it */

#endif
