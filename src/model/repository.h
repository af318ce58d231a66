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
 * Changes. A load of a model (at the start, by an operator, by polling) looks at its files, compares
 * them with what is loaded (mtime, size and inode of every file) and opens what is new. While a
 * model has READY versions the new ones are opened beside them; when all of them are open, one
 * snapshot switches to them and the old ones drain. When one fails, all of the new ones are closed
 * and the old ones go on; the index says why. Files that changed while they were read count as a
 * failure: what is served is what lay there. Operations on one model run one after another, in the
 * order of their submission.
 *
 * Catalog: an immutable snapshot name → model → versions, replaced as a whole at every change of
 * state. A thread that looks up keeps a `nr_catalog_reader`; looking whether there is a newer
 * snapshot is one load of a counter that is written only at changes. A request in flight pins its
 * version in its thread's view, which is a plain count owned by that thread: no shared cache line
 * is written per request, and no version closes under a request. An old snapshot goes when every
 * reader has moved on; versions that are still pinned then are held one by one. `on_publish` exists
 * so that idle loops are told to move on too (post them a message that calls nr_catalog_refresh).
 *
 * Ensembles (ensemble.h) are opened like any other version, but are READY in a snapshot only with
 * their members: while one is LOADING so is the ensemble, and while one is missing or does not fit
 * the ensemble is UNAVAILABLE with that reason. It comes back by itself with the member.
 *
 * Locks: repository.lock guards models, states, reasons and the current snapshot. It is a leaf but
 * for the pools' own locks, and is never held while ops, callbacks or file access run.
 */
#ifndef NR_MODEL_REPOSITORY_H
#define NR_MODEL_REPOSITORY_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/arena.h"
#include "base/list.h"
#include "base/map.h"
#include "base/status.h"
#include "host/agent.h"
#include "io/pool.h"
#include "model/traffic.h"
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
struct nr_catalog_label {
    struct nr_label *label;
    int64_t number;
    struct nr_version *version; /* NULL: that version is not READY */
};
struct nr_catalog_model {
    const char *name;
    struct nr_version *best; /* highest READY version, or NULL */
    const char *reason;      /* why best is NULL: the newest reason; "" otherwise */
    uint32_t n_versions;
    const struct nr_catalog_version *versions; /* ascending; those the version policy selects */
    uint32_t n_labels;
    const struct nr_catalog_label *labels;
    const uint32_t *weights; /* [n_labels] of requests without a version; NULL: all go to best */
    const struct nr_catalog_label *shadow; /* has copies of shadow_percent of those; NULL: none */
    uint32_t shadow_percent;
};
struct nr_catalog {
    _Atomic uint32_t refs;
    uint64_t generation;
    bool all_ready; /* every selected version of every model is READY; in NR_CONTROL_EXPLICIT those
                       that nobody asked to load, or that were unloaded, do not count */
    uint32_t n_models, n_index;            /* every nr_version.index is below n_index */
    const struct nr_catalog_model *models; /* by name */
    struct nr_map by_name;
    struct nr_arena arena;
};

enum nr_control_mode {
    NR_CONTROL_NONE,     /* everything is loaded at the start, nothing afterwards */
    NR_CONTROL_POLL,     /* the files decide, looked at every poll_ns */
    NR_CONTROL_EXPLICIT, /* what `load` names at the start, then by nr_repository_submit */
};

struct nr_repository_cfg {
    const char *const *paths;
    uint32_t n_paths;
    enum nr_control_mode mode;
    const char *const *load; /* NR_CONTROL_EXPLICIT: names; "*" alone means all; borrowed for new */
    uint32_t n_load;
    int64_t poll_ns; /* 15 s when 0 */
    /* Models are loaded when asked for and closed when others need the room (NR_CONTROL_NONE only);
     * 0: all are loaded at the start. naru.pin of a configuration keeps a model loaded. */
    uint64_t budget_bytes;
    uint32_t max_waiters;       /* requests for models that are being loaded; 1,024 when 0 */
    int64_t demand_patience_ns; /* of such a request, while nothing can go; 10 s when 0 */
    int64_t min_resident_ns;    /* a loaded model stays at least so long; 1 s when 0 */
    int64_t quiet_ns; /* polling takes a change when nothing has moved for so long; 2 s when 0 */
    uint32_t load_threads;        /* 0: min(cores, 4) */
    struct nr_agents *agents;     /* borrowed; NULL: models with agents are not loaded */
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
/* Starts loading every selected version (NR_CONTROL_EXPLICIT: of the models that cfg.load names), and
 * polling; returns at once. */
void nr_repository_load_all(struct nr_repository *r);
/* Until nothing is LOADING or UNLOADING and no operation waits, or deadline_ns (CLOCK_MONOTONIC, 0:
 * none) has passed: then false. */
bool nr_repository_wait(struct nr_repository *r, int64_t deadline_ns);
/* READY versions of the model (NULL name: of all) go to UNLOADING; they close when unused. A
 * version that is LOADING is unloaded as soon as it is READY. Takes effect at once, before
 * operations that wait. */
nr_nodiscard nr_status nr_repository_unload(struct nr_repository *r, const char *name,
                                            struct nr_err *err);
/* No load begins any more, operations that wait end with NARU_CANCELLED, polling stops; returns when
 * no load is under way. Closing may still wait for readers. */
void nr_repository_stop(struct nr_repository *r);
/* Stops, unloads all, waits, frees. Every reader must be done. Accepts NULL. */
void nr_repository_free(struct nr_repository *r);

/* One operation of an operator on one model. In its submitter's storage until `done`. */
enum nr_op_kind {
    NR_OP_LOAD, /* ends when the new versions serve, or with the reason why they do not. A model that
                    is loaded as its files are: NARU_OK, nothing happens */
    NR_OP_UNLOAD /* ends when the versions are closed and their memory is given back */
};
struct nr_op {
    enum nr_op_kind kind;
    void (*done)(struct nr_op *op); /* exactly once, on any thread, without locks */
    struct nr_err err;              /* status NARU_OK, or what went wrong */
    /* The repository's. */
    struct nr_repository *repository;
    struct nr_model *model;
    struct nr_list node;
    struct nr_job job;
    uint32_t n_closing; /* NR_OP_UNLOAD: versions not closed yet */
    char name[129];
};
/* Takes op (kind and done are set) over. Never blocks. A name that is unknown: NARU_NOT_FOUND for a
 * load, NARU_OK for an unload, as Triton answers. NARU_UNAVAILABLE outside NR_CONTROL_EXPLICIT. Any
 * thread. */
void nr_repository_submit(struct nr_repository *r, struct nr_str name, struct nr_op *op);

/* One request for a model that is not loaded (cfg.budget_bytes). In its owner's storage until done. */
struct nr_waiter {
    void (*done)(struct nr_waiter *w); /* exactly once, any thread, no locks */
    struct nr_err err;                 /* NARU_OK: it was loaded, look it up again */
    struct nr_list node;
};
typedef enum nr_demand {
    NR_DEMAND_LEAVE, /* the model is not one to be loaded; w was not taken */
    NR_DEMAND_WAITS, /* w->done will be called */
    NR_DEMAND_FULL   /* too many wait; w was not taken */
} nr_demand;
/* Any thread; never blocks. */
nr_demand nr_repository_demand(struct nr_repository *r, struct nr_str name, struct nr_waiter *w);
struct nr_residency {
    uint64_t budget_bytes, used_bytes, loads,
        evictions; /* used: open models, closing ones included */
    uint32_t waiters;
};
void nr_repository_residency(struct nr_repository *r, struct nr_residency *ret); /* any thread */

struct nr_index_entry {
    const char *name;
    int64_t version; /* -1: the model has none to show */
    nr_version_state state;
    const char *reason; /* READY with a reason: the last reload failed, with this text */
    uint64_t load_ns, memory_bytes;
    int64_t since_wall_ns; /* when it came to this state */
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

/* One snapshot as one thread sees it: catalog reference plus that thread's plain counts. */
struct nr_catalog_view {
    struct nr_catalog *catalog; /* NULL when retired, but for ensembles; then it holds the pinned
                                   versions itself */
    uint32_t n_pins;
    bool current;
    uint32_t pins[]; /* by nr_version.index */
};
struct nr_catalog_reader { /* one per I/O loop or other looking thread; owner thread only */
    struct nr_repository *repository;
    struct nr_catalog_view *view;
    uint64_t generation;
    uint64_t turn, shadow_turn; /* of splits by weight */
    unsigned slot;              /* of the labels' counts: different for each reader that routes */
};
void nr_catalog_reader_init(struct nr_catalog_reader *rd, struct nr_repository *r);
void nr_catalog_reader_done(struct nr_catalog_reader *rd); /* pinned views live on until unpinned */
/* Takes the newest snapshot if there is a newer one. */
void nr_catalog_refresh(struct nr_catalog_reader *rd);
/* The newest snapshot; valid until the next refresh or get by this thread. */
const struct nr_catalog *nr_catalog_get(struct nr_catalog_reader *rd);
/* Keeps v, a version of the snapshot that the last nr_catalog_get returned, from closing. Owner
 * thread; unpin with the same version on the same thread. */
struct nr_catalog_view *nr_catalog_pin(struct nr_catalog_reader *rd, const struct nr_version *v);
void nr_catalog_unpin(struct nr_catalog_view *view, struct nr_version *v);

const struct nr_catalog_model *nr_catalog_find(const struct nr_catalog *c, struct nr_str name);
/* What must be loaded before m can be READY: m itself, or, of an ensemble that is open, a member that
 * is not loaded. NULL: no load would help. */
const struct nr_catalog_model *nr_catalog_missing(const struct nr_catalog *c,
                                                  const struct nr_catalog_model *m);
/* A version of a model by its number; NULL when there is none. */
const struct nr_catalog_version *nr_catalog_version(const struct nr_catalog *c, struct nr_str name,
                                                    int64_t number);
/* The version to run: `version` is decimal text or a label, empty for the default (the highest READY
 * one). *ret is held by the snapshot. NARU_NOT_FOUND: unknown model or version, or one that failed to
 * load or was unloaded (as Triton answers; the text says what there is, or the reason);
 * NARU_UNAVAILABLE: loading or unloading now, a later try may succeed; NARU_INVALID: version is neither
 * a number nor can it be a label. */
nr_nodiscard nr_status nr_catalog_lookup(const struct nr_catalog *c, struct nr_str name,
                                         struct nr_str version, struct nr_version **ret,
                                         struct nr_err *err);

/* The same for a request that will run: without a version it goes where the weights of the labels
 * send it, and labels count it; *ret_shadow: the model's shadow shall have a copy. Of the snapshot that the last nr_catalog_get returned. Owner thread. */
nr_nodiscard nr_status nr_catalog_route(struct nr_catalog_reader *rd, struct nr_str name,
                                        struct nr_str version, struct nr_version **ret,
                                        bool *ret_shadow, struct nr_err *err);

/* --- labels --------------------------------------------------------------------------------- */

struct nr_label_edit {
    struct nr_str label;
    enum {
        NR_LABEL_MOVE,   /* to `version`, which must be READY; a new one has weight 0 */
        NR_LABEL_REMOVE, /* NARU_NOT_FOUND when there is none */
        NR_LABEL_WEIGHT, /* gets `weight`; its label must be there, maybe by an edit before */
        NR_LABEL_SHADOW  /* gets `weight` percent of copies; likewise */
    } what;
    int64_t version;
    uint32_t weight;
};
/* All edits at once or none. clear_weights, clear_shadow: before the edits, every weight (every shadow)
 * becomes 0. NARU_NOT_FOUND (model, version or label), NARU_INVALID. Any thread. */
nr_nodiscard nr_status nr_repository_labels_edit(struct nr_repository *r, struct nr_str model,
                                                 const struct nr_label_edit *edits, size_t n,
                                                 bool clear_weights, bool clear_shadow,
                                                 struct nr_err *err);
/* Back to what the labels were before the last change (and forth when called again).
 * NARU_PRECONDITION: there was none. */
nr_nodiscard nr_status nr_repository_labels_rollback(struct nr_repository *r, struct nr_str model,
                                                     struct nr_err *err);
/* Whether an operator's labels are other than the configuration's: then *ret has them, with names that
 * live as long as the repository. */
bool nr_repository_labels_moved(struct nr_repository *r, struct nr_str model,
                                struct nr_traffic *ret);
struct nr_label_counts {
    uint64_t events[NR_LABEL_EVENTS];
};
/* Copies: *ret's names live as long as the repository. counts[i] of the i-th rule. */
nr_nodiscard nr_status
nr_repository_labels_get(struct nr_repository *r, struct nr_str model, struct nr_traffic *ret,
                         struct nr_label_counts counts[NR_TRAFFIC_MAX_LABELS], struct nr_err *err);

#endif
