/* What repository*.c, catalog.c and version.c share and nobody else needs. */
#ifndef NR_MODEL_REPOSITORY_PRIV_H
#define NR_MODEL_REPOSITORY_PRIV_H

#include <pthread.h>

#include "io/pool.h"
#include "model/repository.h"

#define NR_REPOSITORY_MAX_ENTRIES 100000 /* of one folder */

struct nr_slot { /* one version and its jobs */
    struct nr_version v;
    struct nr_model *model;
    struct nr_job load, close;
    bool unload_wanted; /* under the lock: unload came while LOADING */
    uint64_t told;      /* of an ensemble: hash of what on_state was told last; under the lock */
    char folder[24];    /* beneath the model's folder: "3", or "." when the files lie in it */
};

struct nr_model {
    struct nr_version whole; /* stands for the model in on_state: name, number -1 */
    char *name;
    char *path;
    char *reason; /* "" or why none of its versions can be tried; constant after the scan */
    char *bare_file;
    int fd; /* its folder; of a bare file the folder it lies in; -1 when it cannot be opened */
    struct nr_slot **slots; /* ascending by number */
    size_t n_slots;
};

struct nr_repository {
    struct nr_repository_cfg cfg; /* paths and config_name are own copies */
    char *config_name;
    struct nr_model **models; /* by name; constant after nr_repository_new */
    size_t n_models;
    struct nr_map by_name;
    struct nr_pool *pool;
    pthread_mutex_t lock; /* states, reasons, catalog, n_busy */
    pthread_cond_t rest;  /* n_busy went down */
    size_t n_busy;        /* loads and unloads under way */
    struct nr_catalog *catalog;
    _Atomic uint64_t
        generation; /* of catalog; written under the lock, partner: nr_catalog_refresh */
};

/* Finds the models of one path given at start. */
nr_nodiscard nr_status nr_repository_scan(struct nr_repository *r, const char *path,
                                          struct nr_err *err);
void nr_model_free(struct nr_model *m);

/* The current state of things as a snapshot with one reference. Under the lock. */
struct nr_catalog *nr_catalog_make(const struct nr_repository *r, uint64_t generation);
void nr_catalog_unref(struct nr_catalog *c); /* not under the lock */
/* settle.c: ensembles of a snapshot that is being made, after all other entries. Under the lock. */
void nr_catalog_settle(struct nr_catalog *c);
/* Makes and installs a new snapshot; the old one is the caller's to unref after unlocking. */
struct nr_catalog *nr_repository_publish(struct nr_repository *r);

/* The last reference of v is gone: close it on the loading pool. Any thread, never blocks. */
void nr_repository_version_idle(struct nr_version *v);
/* Steps 1 and 2 of the configuration of v, whose name and descriptors are set. */
nr_nodiscard nr_status nr_version_prepare(struct nr_version *v, const char *config_name,
                                          struct nr_err *err);
void nr_version_clear(struct nr_version *v); /* frees configuration and labels, closes dir_fd */

#endif
