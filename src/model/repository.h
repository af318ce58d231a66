/* The model repositories: what is there, what is loaded, and the catalog request code looks up.
 *
 * Paths given at start may be any mix of
 *   a repository      a folder of model folders: <repo>/<model>/{config.pbtxt, 1/, 2/, …}
 *   a model's folder  has config.pbtxt, a numeric folder or a model file; its name is the model's
 *   a bare file       model.onnx; the model's name is the file's name without its ending
 * A model of the same name in two places is unavailable in both, with that reason. Everything below
 * the given path is opened beneath its descriptor (io/file.h): no symlinks, no "..".
 * A version directory is a decimal number without leading zero; others are ignored.
 *
 * Catalog: an immutable snapshot name → model → versions, replaced as a whole at every change of
 * state. A thread that looks up keeps a `nr_catalog_reader`; looking whether there is a newer
 * snapshot is one load of a counter that is written only at changes. A request in flight pins the
 * view it was found in, which is a plain count owned by the reader's thread: no shared cache line
 * is written per request, and no version closes under a request. Old snapshots go when the last
 * view of them is unpinned and every reader has moved on; `on_publish` exists so that idle loops
 * are told to move on too (post them a message that calls nr_catalog_refresh).
 *
 * Ensembles (ensemble.h) are opened like any other version, but are READY in a snapshot only with
 * their members: while one is LOADING so is the ensemble, and while one is missing or does not fit
 * the ensemble is UNAVAILABLE with that reason. It comes back by itself with the member.
 *
 * Locks: repository.lock guards states, reasons and the current snapshot. It is a leaf but for the
 * pool's own lock, and is never held while ops, on_publish or file access run.
 */
#ifndef NR_MODEL_REPOSITORY_H
#define NR_MODEL_REPOSITORY_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/arena.h"
#include "base/map.h"
#include "base/status.h"
#include "model/version.h"

struct nr_repository;

struct nr_catalog_version {
    int64_t number;
    nr_version_state state;
    const char *reason;         /* "" when READY */
    struct nr_version *version; /* not NULL exactly when READY */
    /* of a READY ensemble: [its n_steps] the members that it runs, all of this snapshot */
    const struct nr_member *members;
    struct nr_version
        *open;      /* an ensemble that is open, whether or not it is READY here; not held */
    uint32_t depth; /* of a READY ensemble: 1, or 1 more than its deepest member; else 0 */
};
struct nr_catalog_model {
    const char *name;
    struct nr_version *best; /* highest READY version, or NULL */
    const char *reason;      /* why best is NULL: the newest reason; "" otherwise */
    uint32_t n_versions;
    const struct nr_catalog_version *versions; /* ascending; those the version policy selects */
};
struct nr_catalog {
    _Atomic uint32_t refs;
    uint64_t generation;
    bool all_ready; /* every selected version of every model is READY */
    uint32_t n_models;
    const struct nr_catalog_model *models; /* by name */
    struct nr_map by_name;
    struct nr_arena arena;
};

struct nr_repository_cfg {
    const char *const *paths;
    uint32_t n_paths;
    uint32_t load_threads;        /* 0: min(cores, 4) */
    const char *config_name;      /* --model-config-name; NULL none */
    struct nr_config_opts config; /* auto_complete false switches it off: set it */
    struct nr_version_ops ops;
    void *ops_ctx;
    void (*on_publish)(
        void *ctx); /* after each new snapshot, on whatever thread made it; may be NULL */
    /* A version came to rest: READY or UNAVAILABLE with a reason (for the edge's one log line). v is
     * held for the call; its number is -1 for a model as a whole that cannot even be tried (bad
     * configuration, no versions, two places), then nothing but its name is set. On a loading
     * thread, or within nr_repository_load_all for whole models; without locks. May be NULL. */
    void (*on_state)(void *ctx, const struct nr_version *v, nr_version_state state,
                     const char *reason);
    /* No load and no unload is under way any more, and nr_repository_wait has not returned yet. On the
     * thread of the last one, without locks; may be NULL. */
    void (*on_rest)(void *ctx);
    void *event_ctx; /* of the three above */
};

/* Opens and scans the paths; loads nothing. cfg's strings are copied. A path that cannot be opened,
 * or holds no model at all in the case of a file, is an error; a bad model is not. */
nr_nodiscard nr_status nr_repository_new(const struct nr_repository_cfg *cfg,
                                         struct nr_repository **ret, struct nr_err *err);
/* Starts loading every selected version; returns at once. */
void nr_repository_load_all(struct nr_repository *r);
/* Until nothing is LOADING or UNLOADING, or deadline_ns (CLOCK_MONOTONIC, 0: none) has passed: then
 * false. */
bool nr_repository_wait(struct nr_repository *r, int64_t deadline_ns);
/* READY versions of the model (NULL name: of all) go to UNLOADING; they close when unused. A
 * version that is LOADING is unloaded as soon as it is READY. */
nr_nodiscard nr_status nr_repository_unload(struct nr_repository *r, const char *name,
                                            struct nr_err *err);
/* Unloads all, waits, frees. Every reader must be done. Accepts NULL. */
void nr_repository_free(struct nr_repository *r);

struct nr_index_entry {
    const char *name;
    int64_t version; /* -1: the model has none to show */
    nr_version_state state;
    const char *reason;
    uint64_t load_ns;
};
/* Everything known, by name and version, into the caller's arena. Any thread. */
void nr_repository_index(struct nr_repository *r, bool ready_only, struct nr_arena *a,
                         const struct nr_index_entry **ret, uint32_t *ret_n);
/* Counts for banners and exit codes: models (with at least one selected version or a reason),
 * versions READY, versions or models UNAVAILABLE. */
struct nr_repository_counts {
    uint32_t models, ready, unavailable;
};
struct nr_repository_counts nr_repository_count(struct nr_repository *r);

/* --- lookup ------------------------------------------------------------------------------- */

/* One snapshot as one thread sees it: catalog reference plus that thread's plain count. */
struct nr_catalog_view {
    struct nr_catalog *catalog;
    uint32_t pins;
    bool current;
};
struct nr_catalog_reader { /* one per I/O loop or other looking thread; owner thread only */
    struct nr_repository *repository;
    struct nr_catalog_view *view;
    uint64_t generation;
};
void nr_catalog_reader_init(struct nr_catalog_reader *rd, struct nr_repository *r);
void nr_catalog_reader_done(struct nr_catalog_reader *rd); /* pinned views live on until unpinned */
/* Takes the newest snapshot if there is a newer one. */
void nr_catalog_refresh(struct nr_catalog_reader *rd);
/* The newest snapshot; valid until the next refresh or get by this thread unless pinned. */
const struct nr_catalog *nr_catalog_get(struct nr_catalog_reader *rd);
/* Keeps the view that the last nr_catalog_get returned. Owner thread; unpin on the same thread. */
struct nr_catalog_view *nr_catalog_pin(struct nr_catalog_reader *rd);
void nr_catalog_unpin(struct nr_catalog_view *view);

const struct nr_catalog_model *nr_catalog_find(const struct nr_catalog *c, struct nr_str name);
/* A version of a model by its number; NULL when there is none. */
const struct nr_catalog_version *nr_catalog_version(const struct nr_catalog *c, struct nr_str name,
                                                    int64_t number);
/* The version to run: `version` is decimal text, empty for the default (the highest READY one).
 * *ret is held by the snapshot. NARU_NOT_FOUND: unknown model or version, or one that failed to
 * load or was unloaded (as Triton answers; the text says what there is, or the reason);
 * NARU_UNAVAILABLE: loading or unloading now, a later try may succeed; NARU_INVALID: version is no
 * number. */
nr_nodiscard nr_status nr_catalog_lookup(const struct nr_catalog *c, struct nr_str name,
                                         struct nr_str version, struct nr_version **ret,
                                         struct nr_err *err);

#endif
