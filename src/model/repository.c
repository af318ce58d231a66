/* The repository: states of all versions, loading and closing them, publishing snapshots.
 *
 * DESIGN. States change under one lock, work happens outside of it: a load job runs on the pool
 * with the version in LOADING, which nobody else touches; the outcome is written under the lock
 * together with a new snapshot. So at every moment index, catalog and states agree. Jobs of
 * different versions run in parallel; those of one version never do, because each state lets only
 * one job start:
 *
 *   UNKNOWN ──start_load──▶ LOADING ──job_load──▶ READY ──begin_unload──▶ UNLOADING ──(refs 0)──▶
 *                               └──▶ UNAVAILABLE ◀──────────────── job_close ◀────────────────────┘
 *
 * INVARIANTS
 *  1. n_busy counts the ways from LOADING and from UNLOADING that have not ended yet, callbacks
 *     included; `rest` is signalled when one ends.
 *  2. The repository's own reference of a version exists exactly while it is READY.
 *  3. A version's config, labels and dir_fd are set while LOADING, READY or UNLOADING only, and are
 *     touched by its job or by holders of references.
 *  4. The lock is never held over ops, callbacks, file access, or a release that may free.
 *
 * Threads: public functions from any thread; the lock is a leaf but for the pool's own.
 */
#include "model/repository.h"

#include <fcntl.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/cpu.h"
#include "base/mem.h"
#include "io/file.h"
#include "model/repository_priv.h"

#define DEFAULT_THREADS 4

static void lock(struct nr_repository *r)
{
    NR_ASSERT(pthread_mutex_lock(&r->lock) == 0);
}
static void unlock(struct nr_repository *r)
{
    NR_ASSERT(pthread_mutex_unlock(&r->lock) == 0);
}

/* --- states, under the lock ------------------------------------------------------------------- */

static bool is_busy(nr_version_state s)
{
    return s == NR_VERSION_LOADING || s == NR_VERSION_UNLOADING;
}

static void set_state(struct nr_repository *r, struct nr_version *v, nr_version_state to,
                      const char *reason)
{
    r->n_busy += (size_t)is_busy(to); /* job_done counts down */
    nr_free(v->reason);
    v->reason = nr_strdup(reason);
    atomic_store_explicit(&v->state, (int)to, memory_order_release);
}

struct nr_catalog *nr_repository_publish(struct nr_repository *r)
{
    uint64_t generation = atomic_load_explicit(&r->generation, memory_order_relaxed) + 1;
    struct nr_catalog *old = r->catalog;
    r->catalog = nr_catalog_make(r, generation);
    /* release: partner of the acquire in nr_catalog_refresh */
    atomic_store_explicit(&r->generation, generation, memory_order_release);
    return old;
}

/* --- outside the lock ------------------------------------------------------------------------- */

static void published(struct nr_repository *r, struct nr_catalog *old)
{
    nr_catalog_unref(old);
    if (r->cfg.on_publish) {
        r->cfg.on_publish(r->cfg.event_ctx);
    }
}

static void tell(struct nr_repository *r, const struct nr_version *v, nr_version_state state,
                 const char *reason)
{
    if (r->cfg.on_state) {
        r->cfg.on_state(r->cfg.event_ctx, v, state, reason);
    }
}

/* What clients see of a version: an ensemble that is open may lack members. Under the lock. */
static struct nr_catalog_version shown(const struct nr_repository *r, const struct nr_version *v)
{
    const struct nr_catalog_version *c =
        nr_catalog_version(r->catalog, nr_str_from(v->name), v->number);
    return c ? *c
             : (struct nr_catalog_version){.state = nr_version_state_of(v), .reason = v->reason};
}

static bool is_open_ensemble(const struct nr_version *v)
{
    return nr_version_state_of(v) == NR_VERSION_READY && v->config->ensemble;
}

/* One ensemble that came to rest in another way than on_state was told last, or NULL: held, with its
 * state and a copy of its reason. */
static struct nr_version *next_news(struct nr_repository *r, nr_version_state *ret_state,
                                    char **ret_reason)
{
    struct nr_version *found = NULL;
    lock(r);
    for (size_t i = 0; i < r->n_models && !found; i++) {
        for (size_t k = 0; k < r->models[i]->n_slots && !found; k++) {
            struct nr_slot *s = r->models[i]->slots[k];
            if (!is_open_ensemble(&s->v)) {
                continue;
            }
            struct nr_catalog_version now = shown(r, &s->v);
            uint64_t told = nr_hash(now.reason, strlen(now.reason)) + (uint64_t)now.state;
            if (!is_busy(now.state) && told != s->told) {
                s->told = told;
                found = nr_version_ref(&s->v);
                *ret_state = now.state;
                *ret_reason = nr_strdup(now.reason);
            }
        }
    }
    unlock(r);
    return found;
}

/* After any change of state: ensembles follow their members. */
static void tell_ensembles(struct nr_repository *r)
{
    nr_version_state state;
    char *reason;
    struct nr_version *v;
    while ((v = next_news(r, &state, &reason)) != NULL) {
        tell(r, v, state, reason);
        nr_free(reason);
        nr_version_unref(v);
    }
}

/* v comes to rest in UNAVAILABLE; its job has cleared it. The job's last act. */
static void rest_unavailable(struct nr_repository *r, struct nr_version *v, const char *reason)
{
    lock(r);
    set_state(r, v, NR_VERSION_UNAVAILABLE, reason);
    struct nr_catalog *old = nr_repository_publish(r);
    unlock(r);
    published(r, old);
    tell(r, v, NR_VERSION_UNAVAILABLE, reason);
    tell_ensembles(r);
}

/* The end of what a busy state began, after the callbacks: whoever waited for it may free what they
 * use. */
static void job_done(struct nr_repository *r)
{
    lock(r);
    if (r->n_busy == 1 && r->cfg.on_rest) {
        unlock(r);
        r->cfg.on_rest(r->cfg.event_ctx);
        lock(r);
    }
    r->n_busy--;
    (void)pthread_cond_broadcast(&r->rest);
    unlock(r);
}

/* --- unloading -------------------------------------------------------------------------------- */

static void job_close(struct nr_job *j)
{
    struct nr_slot *s = nr_container_of(j, struct nr_slot, close);
    struct nr_repository *r = s->v.repository;
    r->cfg.ops.close(r->cfg.ops_ctx, &s->v);
    nr_version_clear(&s->v);
    rest_unavailable(r, &s->v, "unloaded");
    job_done(r);
}

void nr_repository_version_idle(struct nr_version *v)
{
    struct nr_slot *s = nr_container_of(v, struct nr_slot, v);
    NR_ASSERT(nr_version_state_of(v) == NR_VERSION_UNLOADING);
    s->close = (struct nr_job){.run = job_close};
    if (nr_pool_submit(v->repository->pool, &s->close) != NARU_OK) {
        job_close(&s->close); /* no thread can be had: better a pause here than a leak */
    }
}

/* READY versions → UNLOADING; the references to drop after unlocking go to `drop`. Under the lock. */
static size_t begin_unload(struct nr_repository *r, struct nr_model *m, struct nr_version **drop)
{
    size_t n = 0;
    for (size_t i = 0; i < m->n_slots; i++) {
        struct nr_slot *s = m->slots[i];
        nr_version_state state = nr_version_state_of(&s->v);
        s->unload_wanted = state == NR_VERSION_LOADING;
        if (state == NR_VERSION_READY) {
            set_state(r, &s->v, NR_VERSION_UNLOADING, "");
            drop[n++] = &s->v;
        }
    }
    return n;
}

nr_status nr_repository_unload(struct nr_repository *r, const char *name, struct nr_err *err)
{
    struct nr_model *only = name ? nr_map_get(&r->by_name, nr_str_from(name)) : NULL;
    if (name && !only) {
        return nr_fail(err, NARU_NOT_FOUND, "there is no model \"%.128s\"", name);
    }
    size_t n_slots = 0, n = 0;
    for (size_t i = 0; i < r->n_models; i++) {
        n_slots += r->models[i]->n_slots;
    }
    nr_autofree struct nr_version **drop = nr_new_array(struct nr_version *, n_slots + 1);
    lock(r);
    for (size_t i = 0; i < r->n_models; i++) {
        if (!only || r->models[i] == only) {
            n += begin_unload(r, r->models[i], drop + n);
        }
    }
    struct nr_catalog *old = n > 0 ? nr_repository_publish(r) : NULL;
    unlock(r);
    if (n > 0) {
        published(r, old);
        tell_ensembles(r);
    }
    for (size_t i = 0; i < n; i++) {
        nr_version_unref(drop[i]);
    }
    return NARU_OK;
}

/* --- loading ---------------------------------------------------------------------------------- */

static nr_status load(struct nr_slot *s, struct nr_err *err)
{
    struct nr_repository *r = s->v.repository;
    nr_status st =
        nr_dir_open_at(s->model->fd, s->folder, O_RDONLY | O_DIRECTORY, 0, &s->v.dir_fd, err);
    if (st == NARU_OK) {
        st = nr_version_prepare(&s->v, r->config_name, err);
    }
    return st == NARU_OK ? r->cfg.ops.open(r->cfg.ops_ctx, &s->v, err) : st;
}

static void job_load(struct nr_job *j)
{
    struct nr_slot *s = nr_container_of(j, struct nr_slot, load);
    struct nr_repository *r = s->v.repository;
    struct nr_err err = {0};
    lock(r);
    bool skip = s->unload_wanted;
    unlock(r);
    int64_t begin = nr_clock_now();
    nr_status st = skip ? nr_fail(&err, NARU_CANCELLED, "unloaded") : load(s, &err);
    s->v.load_ns = (uint64_t)(nr_clock_now() - begin);
    if (st != NARU_OK) {
        nr_version_clear(&s->v);
        rest_unavailable(r, &s->v, err.text);
        job_done(r);
        return;
    }
    lock(r);
    atomic_store_explicit(&s->v.refs, 2, memory_order_relaxed); /* ours until the end of this job */
    bool unload = s->unload_wanted, ensemble = s->v.config->ensemble != NULL;
    s->told = 0;
    set_state(r, &s->v, unload ? NR_VERSION_UNLOADING : NR_VERSION_READY, "");
    struct nr_catalog *old = nr_repository_publish(r);
    unlock(r);
    published(r, old);
    if (unload) {
        nr_version_unref(&s->v);
    } else if (!ensemble) {
        tell(r, &s->v, NR_VERSION_READY, "");
    }
    tell_ensembles(r);
    nr_version_unref(&s->v);
    job_done(r);
}

void nr_repository_load_all(struct nr_repository *r)
{
    struct nr_catalog *old;
    size_t n = 0, n_slots = 0;
    for (size_t i = 0; i < r->n_models; i++) {
        n_slots += r->models[i]->n_slots;
    }
    nr_autofree struct nr_slot **start = nr_new_array(struct nr_slot *, n_slots + 1);
    lock(r);
    for (size_t i = 0; i < r->n_models; i++) {
        for (size_t k = 0; k < r->models[i]->n_slots; k++) {
            struct nr_slot *s = r->models[i]->slots[k];
            if (nr_version_state_of(&s->v) == NR_VERSION_UNKNOWN) {
                set_state(r, &s->v, NR_VERSION_LOADING, "");
                start[n++] = s;
            }
        }
    }
    old = nr_repository_publish(r);
    unlock(r);
    published(r, old);
    for (size_t i = 0; i < r->n_models; i++) {
        if (r->models[i]->n_slots == 0) {
            tell(r, &r->models[i]->whole, NR_VERSION_UNAVAILABLE, r->models[i]->reason);
        }
    }
    for (size_t i = 0; i < n; i++) {
        start[i]->load = (struct nr_job){.run = job_load};
        if (nr_pool_submit(r->pool, &start[i]->load) != NARU_OK) {
            job_load(&start[i]->load); /* no thread can be had: load here */
        }
    }
}

bool nr_repository_wait(struct nr_repository *r, int64_t deadline_ns)
{
    struct timespec ts = {.tv_sec = deadline_ns / NR_S_NS, .tv_nsec = deadline_ns % NR_S_NS};
    int rc = 0;
    lock(r);
    while (r->n_busy > 0 && rc == 0) {
        rc = deadline_ns ? pthread_cond_timedwait(&r->rest, &r->lock, &ts)
                         : pthread_cond_wait(&r->rest, &r->lock);
    }
    bool rests = r->n_busy == 0;
    unlock(r);
    return rests;
}

/* --- listing ---------------------------------------------------------------------------------- */

void nr_repository_index(struct nr_repository *r, bool ready_only, struct nr_arena *a,
                         const struct nr_index_entry **ret, uint32_t *ret_n)
{
    size_t max = 0;
    uint32_t n = 0;
    for (size_t i = 0; i < r->n_models; i++) {
        max += NR_MAX(r->models[i]->n_slots, (size_t)1);
    }
    struct nr_index_entry *all = nr_arena_zalloc(a, NR_MAX(max, (size_t)1) * sizeof *all);
    lock(r);
    for (size_t i = 0; i < r->n_models; i++) {
        const struct nr_model *m = r->models[i];
        if (m->n_slots == 0 && !ready_only) {
            all[n++] = (struct nr_index_entry){.name = nr_arena_strz(a, nr_str_from(m->name)),
                                               .version = -1,
                                               .state = NR_VERSION_UNAVAILABLE,
                                               .reason = nr_arena_strz(a, nr_str_from(m->reason))};
        }
        for (size_t k = 0; k < m->n_slots; k++) {
            const struct nr_version *v = &m->slots[k]->v;
            struct nr_catalog_version now = shown(r, v);
            nr_version_state state = now.state;
            if (!ready_only || state == NR_VERSION_READY) {
                all[n++] =
                    (struct nr_index_entry){.name = nr_arena_strz(a, nr_str_from(m->name)),
                                            .version = v->number,
                                            .state = state,
                                            .reason = nr_arena_strz(a, nr_str_from(now.reason)),
                                            .load_ns = is_busy(state) ? 0 : v->load_ns};
            }
        }
    }
    unlock(r);
    *ret = all;
    *ret_n = n;
}

struct nr_repository_counts nr_repository_count(struct nr_repository *r)
{
    struct nr_repository_counts c = {.models = (uint32_t)r->n_models};
    lock(r);
    for (size_t i = 0; i < r->n_models; i++) {
        const struct nr_model *m = r->models[i];
        c.unavailable += m->n_slots == 0;
        for (size_t k = 0; k < m->n_slots; k++) {
            nr_version_state state = shown(r, &m->slots[k]->v).state;
            c.ready += state == NR_VERSION_READY;
            c.unavailable += state == NR_VERSION_UNAVAILABLE;
        }
    }
    unlock(r);
    return c;
}

/* --- begin and end ---------------------------------------------------------------------------- */

static int by_name(const void *a, const void *b)
{
    const struct nr_model *const *x = a, *const *y = b;
    return strcmp((*x)->name, (*y)->name);
}

static void init_sync(struct nr_repository *r)
{
    NR_ASSERT(pthread_mutex_init(&r->lock, NULL) == 0);
    nr_clock_cond_init(&r->rest);
}

static void repository_free(struct nr_repository *r)
{
    nr_pool_free(r->pool);
    nr_catalog_unref(r->catalog);
    for (size_t i = 0; i < r->n_models; i++) {
        nr_model_free(r->models[i]);
    }
    nr_free(r->models);
    nr_map_done(&r->by_name);
    nr_free(r->config_name);
    (void)pthread_cond_destroy(&r->rest);
    (void)pthread_mutex_destroy(&r->lock);
    nr_free(r);
}

nr_status nr_repository_new(const struct nr_repository_cfg *cfg, struct nr_repository **ret,
                            struct nr_err *err)
{
    struct nr_repository *r = nr_new(struct nr_repository);
    r->cfg = *cfg;
    r->cfg.paths = NULL; /* borrowed for this call only */
    r->cfg.config_name = NULL;
    r->config_name = cfg->config_name ? nr_strdup(cfg->config_name) : NULL;
    nr_map_init(&r->by_name);
    init_sync(r);
    nr_status st = NARU_OK;
    for (uint32_t i = 0; i < cfg->n_paths && st == NARU_OK; i++) {
        st = nr_repository_scan(r, cfg->paths[i], err);
    }
    if (st != NARU_OK) {
        repository_free(r);
        return st;
    }
    size_t n_slots = 0;
    for (size_t i = 0; i < r->n_models; i++) {
        n_slots += r->models[i]->n_slots;
    }
    if (r->n_models > 0) {
        qsort(r->models, r->n_models, sizeof *r->models, by_name);
    }
    unsigned threads = cfg->load_threads;
    if (threads == 0) {
        threads = NR_MIN(nr_cpu_usable(), (unsigned)DEFAULT_THREADS);
    }
    /* every version has at most one job in the queue */
    r->pool = nr_pool_new("load", threads, (unsigned)n_slots + 1);
    lock(r);
    (void)nr_repository_publish(r); /* generation 1, nothing READY */
    unlock(r);
    *ret = r;
    return NARU_OK;
}

void nr_repository_free(struct nr_repository *r)
{
    if (!r) {
        return;
    }
    NR_ASSERT(nr_repository_unload(r, NULL, NULL) == NARU_OK);
    (void)nr_repository_wait(r, 0);
    repository_free(r);
}
