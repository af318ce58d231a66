/* The repository as a whole: its beginning and end, waiting for rest, listing.
 *
 * DESIGN. What happens to models is in repository_load.c; what their files say in
 * repository_plan.c. At the start every model is planned, whatever the mode, so that the index shows
 * what there is; which of them are loaded is the mode's matter.
 *
 * INVARIANTS
 *  1. nr_repository_wait returns when no count is above zero, that is, after the callbacks.
 *  2. After nr_repository_stop no load begins.
 *
 * Threads: public functions from any thread; repository.lock is a leaf but for the pools' own.
 */
#include "model/repository.h"

#include <limits.h>
#include <string.h>

#include "base/clock.h"
#include "base/cpu.h"
#include "base/mem.h"
#include "model/repository_priv.h"

#define DEFAULT_THREADS 4

struct nr_catalog *nr_repository_publish(struct nr_repository *r)
{
    uint64_t generation = atomic_load_explicit(&r->generation, memory_order_relaxed) + 1;
    struct nr_catalog *old = r->catalog;
    r->catalog = nr_catalog_make(r, generation);
    /* release: partner of the acquire in nr_catalog_refresh */
    atomic_store_explicit(&r->generation, generation, memory_order_release);
    return old;
}

void nr_repository_published(struct nr_repository *r, struct nr_catalog *old)
{
    nr_catalog_unref(old);
    if (r->cfg.on_publish) {
        r->cfg.on_publish(r->cfg.event_ctx);
    }
}

struct nr_catalog_version nr_repository_seen(const struct nr_repository *r,
                                             const struct nr_version *v)
{
    const struct nr_catalog_version *c =
        nr_catalog_version(r->catalog, nr_str_from(v->name), v->number);
    return c ? *c
             : (struct nr_catalog_version){.state = nr_version_state_of(v), .reason = v->reason};
}

/* --- loading at the start ----------------------------------------------------------------------- */

static bool wanted_at_start(const struct nr_repository *r, const struct nr_model *m)
{
    const char *name = m->name;
    if (r->cfg.budget_bytes > 0) {
        return m->pinned || m->n_slots == 0; /* one without versions has its reason told */
    }
    for (size_t i = 0; i < r->n_load; i++) {
        if (strcmp(r->load[i], "*") == 0 || strcmp(r->load[i], name) == 0) {
            return true;
        }
    }
    return r->cfg.mode != NR_CONTROL_EXPLICIT;
}

void nr_repository_load_all(struct nr_repository *r)
{
    nr_repository_lock(r);
    size_t n = 0;
    nr_autofree struct nr_model **models = nr_new_array(struct nr_model *, r->n_models + 1);
    for (size_t i = 0; i < r->n_models; i++) {
        if (wanted_at_start(r, r->models[i])) {
            models[n++] = r->models[i];
        }
    }
    nr_repository_unlock(r);
    nr_repository_load_known(r, models, n);
    if (r->cfg.mode == NR_CONTROL_POLL) {
        nr_repository_poll_start(r);
    }
    if (r->cfg.budget_bytes > 0) {
        nr_repository_demand_start(r);
    }
}

bool nr_repository_wait(struct nr_repository *r, int64_t deadline_ns)
{
    struct timespec ts = {.tv_sec = deadline_ns / NR_S_NS, .tv_nsec = deadline_ns % NR_S_NS};
    int rc = 0;
    nr_repository_lock(r);
    while (r->n_loading + r->n_closing + r->n_ops > 0 && rc == 0) {
        rc = deadline_ns ? pthread_cond_timedwait(&r->rest, &r->lock, &ts)
                         : pthread_cond_wait(&r->rest, &r->lock);
    }
    bool rests = r->n_loading + r->n_closing + r->n_ops == 0;
    nr_repository_unlock(r);
    return rests;
}

/* --- listing ---------------------------------------------------------------------------------- */

static bool is_busy(nr_version_state s)
{
    return s == NR_VERSION_LOADING || s == NR_VERSION_UNLOADING;
}

/* Under the lock. A model that serves in spite of a failed load says so with each version. */
static struct nr_index_entry entry_of(const struct nr_repository *r, const struct nr_model *m,
                                      const struct nr_version *v, struct nr_arena *a)
{
    struct nr_catalog_version now = nr_repository_seen(r, v);
    bool ready = now.state == NR_VERSION_READY;
    const char *note = v->trouble ? v->trouble : m->note;
    return (struct nr_index_entry){.name = m->name,
                                   .version = v->number,
                                   .state = now.state,
                                   .reason =
                                       nr_arena_strz(a, nr_str_from(ready ? note : now.reason)),
                                   .load_ns = is_busy(now.state) ? 0 : v->load_ns,
                                   .memory_bytes = ready ? v->memory_bytes : 0,
                                   .since_wall_ns = v->since_wall_ns};
}

void nr_repository_index(struct nr_repository *r, bool ready_only, struct nr_arena *a,
                         const struct nr_index_entry **ret, uint32_t *ret_n)
{
    size_t max = 1;
    uint32_t n = 0;
    nr_repository_lock(r);
    for (size_t i = 0; i < r->n_models; i++) {
        max += NR_MAX(r->models[i]->n_slots, (size_t)1);
    }
    struct nr_index_entry *all = nr_arena_zalloc(a, max * sizeof *all);
    for (size_t i = 0; i < r->n_models; i++) {
        const struct nr_model *m = r->models[i];
        if (m->n_slots == 0 && m->shown && !ready_only) {
            all[n++] = (struct nr_index_entry){.name = m->name,
                                               .version = -1,
                                               .state = NR_VERSION_UNAVAILABLE,
                                               .reason = nr_arena_strz(a, nr_str_from(m->reason))};
        }
        for (size_t k = 0; k < m->n_slots; k++) {
            const struct nr_version *v = &m->slots[k]->v;
            if (!ready_only || nr_repository_seen(r, v).state == NR_VERSION_READY) {
                all[n++] = entry_of(r, m, v, a);
            }
        }
    }
    nr_repository_unlock(r);
    *ret = all;
    *ret_n = n;
}

struct nr_repository_counts nr_repository_count(struct nr_repository *r)
{
    struct nr_repository_counts c = {0};
    nr_repository_lock(r);
    for (size_t i = 0; i < r->n_models; i++) {
        const struct nr_model *m = r->models[i];
        c.models += m->shown;
        c.unavailable += m->shown && m->n_slots == 0;
        for (size_t k = 0; k < m->n_slots; k++) {
            nr_version_state state = nr_repository_seen(r, &m->slots[k]->v).state;
            c.ready += state == NR_VERSION_READY;
            c.unavailable += state == NR_VERSION_UNAVAILABLE;
        }
    }
    nr_repository_unlock(r);
    return c;
}

/* --- begin and end ---------------------------------------------------------------------------- */

static void init_sync(struct nr_repository *r)
{
    NR_ASSERT(pthread_mutex_init(&r->lock, NULL) == 0);
    nr_clock_cond_init(&r->rest);
}

static void repository_free(struct nr_repository *r)
{
    nr_pool_free(r->control);
    nr_pool_free(r->pool);
    nr_catalog_unref(r->catalog);
    for (size_t i = 0; i < r->n_models; i++) {
        nr_model_free(r, r->models[i]);
    }
    NR_ASSERT(r->n_slots == 0);
    for (size_t i = 0; i < r->n_sources; i++) {
        nr_source_close(&r->sources[i]);
    }
    for (size_t i = 0; i < r->n_load; i++) {
        nr_free(r->load[i]);
    }
    nr_free(r->load);
    nr_free(r->sources);
    nr_free(r->models);
    nr_free(r->index_used);
    nr_map_done(&r->by_name);
    nr_free(r->config_name);
    (void)pthread_cond_destroy(&r->rest);
    (void)pthread_mutex_destroy(&r->lock);
    nr_free(r);
}

static void copy_cfg(struct nr_repository *r, const struct nr_repository_cfg *cfg)
{
    r->cfg = *cfg;
    r->cfg.paths = r->cfg.load = NULL; /* borrowed for this call only */
    r->cfg.config_name = NULL;
    r->cfg.poll_ns = cfg->poll_ns > 0 ? cfg->poll_ns : 15 * NR_S_NS;
    r->cfg.max_waiters = cfg->max_waiters > 0 ? cfg->max_waiters : 1024;
    r->cfg.demand_patience_ns =
        cfg->demand_patience_ns > 0 ? cfg->demand_patience_ns : 10 * NR_S_NS;
    r->cfg.min_resident_ns = cfg->min_resident_ns > 0 ? cfg->min_resident_ns : NR_S_NS;
    r->cfg.quiet_ns = cfg->quiet_ns > 0 ? cfg->quiet_ns : 2 * NR_S_NS;
    r->config_name = cfg->config_name ? nr_strdup(cfg->config_name) : NULL;
    r->load = nr_new_array(char *, cfg->n_load + 1);
    for (; r->n_load < cfg->n_load; r->n_load++) {
        r->load[r->n_load] = nr_strdup(cfg->load[r->n_load]);
    }
}

/* Every model there is, planned and UNKNOWN. */
static nr_status plan_all(struct nr_repository *r, struct nr_err *err)
{
    char **names;
    size_t n;
    nr_status st = nr_plan_names(r, &names, &n, err);
    for (size_t i = 0; i < n; i++) {
        struct nr_plan p;
        if (st == NARU_OK && nr_plan_make(r, names[i], &p, NULL) == NARU_OK) {
            nr_repository_lock(r);
            struct nr_model *m = nr_model_get(r, names[i]);
            m->look_print = m->tried_print = p.print;
            m->tried = true;
            nr_repository_unlock(r);
            nr_model_take_plan(r, m, &p, false, NULL);
            nr_plan_done(&p);
        }
        nr_free(names[i]);
    }
    nr_free(names);
    return st;
}

/* A name given with --load-model that does not exist is a mistake to tell at once. */
static nr_status check_load(struct nr_repository *r, struct nr_err *err)
{
    for (size_t i = 0; i < r->n_load; i++) {
        if (strcmp(r->load[i], "*") != 0 && !nr_map_get(&r->by_name, nr_str_from(r->load[i]))) {
            return nr_fail(err, NARU_NOT_FOUND, "there is no model \"%.128s\" to be loaded",
                           r->load[i]);
        }
    }
    return NARU_OK;
}

nr_status nr_repository_new(const struct nr_repository_cfg *cfg, struct nr_repository **ret,
                            struct nr_err *err)
{
    struct nr_repository *r = nr_new(struct nr_repository);
    nr_map_init(&r->by_name);
    nr_list_init(&r->demands);
    init_sync(r);
    copy_cfg(r, cfg);
    r->sources = nr_new_array(struct nr_source, cfg->n_paths + 1);
    nr_status st = NARU_OK;
    for (uint32_t i = 0; i < cfg->n_paths && st == NARU_OK; i++) {
        st = nr_source_open(&r->sources[i], cfg->paths[i], err);
        r->n_sources++; /* a half open one is closed, too */
    }
    if (st == NARU_OK && cfg->budget_bytes > 0 && cfg->mode != NR_CONTROL_NONE) {
        st = nr_fail(err, NARU_INVALID,
                     "a budget of memory loads models when they are asked for, which excludes "
                     "polling and explicit control");
    }
    if (st == NARU_OK) {
        st = plan_all(r, err);
    }
    if (st == NARU_OK) {
        st = check_load(r, err);
    }
    if (st != NARU_OK) {
        repository_free(r);
        return st;
    }
    unsigned threads = cfg->load_threads;
    if (threads == 0) {
        threads = NR_MIN(nr_cpu_usable(), (unsigned)DEFAULT_THREADS);
    }
    r->pool = nr_pool_new("load", threads, UINT_MAX);
    r->control = nr_pool_new("control", 1, UINT_MAX);
    nr_repository_lock(r);
    (void)nr_repository_publish(r); /* generation 1, nothing READY */
    nr_repository_unlock(r);
    *ret = r;
    return NARU_OK;
}

void nr_repository_stop(struct nr_repository *r)
{
    nr_repository_lock(r);
    r->stopping = true;
    (void)pthread_cond_broadcast(&r->rest);
    nr_repository_unlock(r);
    nr_repository_poll_stop(r);
    nr_repository_demand_stop(r);
    nr_repository_cancel_ops(r);
    nr_repository_lock(r);
    while (r->n_loading > 0) {
        (void)pthread_cond_wait(&r->rest, &r->lock);
    }
    nr_repository_unlock(r);
}

void nr_repository_free(struct nr_repository *r)
{
    if (!r) {
        return;
    }
    nr_repository_stop(r);
    NR_ASSERT(nr_repository_unload(r, NULL, NULL) == NARU_OK);
    (void)nr_repository_wait(r, 0);
    repository_free(r);
}
