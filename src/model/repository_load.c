/* Changes: from a plan to versions that serve, from versions that serve to memory given back, and
 * the operations that ask for either.
 *
 * DESIGN. States change under one lock, work happens outside of it. A plan (repository_plan.c) is
 * compared with the model's slots: a version whose files are as they were keeps its slot, every
 * other one gets a new slot, in which it is opened by a job of the loading pool. Where nothing of the
 * model serves, the new slots are shown at once and each becomes READY by itself. Where something
 * serves, they stay beside it until all are open; then one snapshot switches, or, when one failed,
 * none does. Slots that were replaced drain, close and are freed.
 *
 *   UNKNOWN ──▶ LOADING ──job_load──▶ READY ──replaced, unloaded──▶ UNLOADING ──(refs 0) job_close──▶
 *                  └──▶ UNAVAILABLE ◀────────────────────────────────────────────────────────────┘
 *
 * An operation (nr_op) is planned on the control thread. While one is at work on a model the next
 * ones wait in model->ops, so each sees what the one before it left.
 *
 * Opening a model beside others that serve happens on a thread of low priority of its own: what a
 * plug-in computes then (optimising, packing weights) must not slow their requests. A thread cannot
 * be raised again without privilege, so it is not one of the pool's. No lock of ours is held on it.
 *
 * INVARIANTS
 *  1. At most one change and one active operation per model.
 *  2. The repository's own reference of a version exists exactly while it is READY.
 *  3. A slot is freed when it is not shown, in no change, and none of its jobs is under way.
 *  4. n_loading, n_closing and n_ops count down after the callbacks of what they count.
 *  5. The lock is never held over ops, callbacks, file access, or a release that may close.
 */
#include <fcntl.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "base/clock.h"
#include "base/mem.h"
#include "io/file.h"
#include "model/repository_priv.h"

/* --- states and slots, under the lock ----------------------------------------------------------- */

static bool is_busy(nr_version_state s)
{
    return s == NR_VERSION_LOADING || s == NR_VERSION_UNLOADING;
}

static void set_state(struct nr_repository *r, struct nr_version *v, nr_version_state to,
                      const char *reason)
{
    struct nr_slot *s = nr_container_of(v, struct nr_slot, v);
    bool computes = !v->config || !v->config->ensemble; /* an ensemble is nothing by itself */
    r->n_ready -= computes && nr_version_state_of(v) == NR_VERSION_READY;
    r->n_ready += computes && to == NR_VERSION_READY;
    r->n_loading += to == NR_VERSION_LOADING;
    r->n_closing += to == NR_VERSION_UNLOADING;
    s->n_jobs += is_busy(to);
    if (to == NR_VERSION_READY) {
        s->ready_ns = nr_clock_now();
        atomic_store_explicit(&v->used_ns, s->ready_ns, memory_order_relaxed);
    } else if (to == NR_VERSION_UNLOADING) {
        s->closing_bytes = NR_MAX(v->memory_bytes, (uint64_t)1);
        r->closing_bytes += s->closing_bytes;
    }
    nr_free(v->reason);
    v->reason = nr_strdup(reason);
    v->since_wall_ns = nr_clock_wall();
    atomic_store_explicit(&v->state, (int)to, memory_order_release);
}

static uint32_t take_index(struct nr_repository *r)
{
    for (uint32_t i = 0; i < r->n_index; i++) {
        if (!r->index_used[i]) {
            r->index_used[i] = 1;
            return i;
        }
    }
    r->index_used = nr_realloc(r->index_used, r->n_index + 1);
    r->index_used[r->n_index] = 1;
    return r->n_index++;
}

static struct nr_slot *slot_new(struct nr_repository *r, struct nr_model *m,
                                const struct nr_plan *p, const struct nr_planned *from)
{
    struct nr_slot *s = nr_new(struct nr_slot);
    bool flat = strcmp(from->folder, ".") == 0;
    s->model = m;
    s->print = from->print;
    s->has_agents = p->has_agents;
    memcpy(s->folder, from->folder, sizeof s->folder);
    s->v = (struct nr_version){.name = m->name,
                               .number = from->number,
                               .index = take_index(r),
                               .dir_fd = -1,
                               .model_fd = -1,
                               .path = flat ? nr_strdup(p->path)
                                            : nr_format("%s/%s", p->path, from->folder),
                               .bare_file = p->file ? nr_strdup(p->file) : NULL,
                               .repository = r,
                               .reason = nr_strdup(""),
                               .since_wall_ns = nr_clock_wall()};
    r->n_slots++;
    return s;
}

static void slot_free(struct nr_repository *r, struct nr_slot *s)
{
    NR_ASSERT(s->v.config == NULL && s->n_jobs == 0 && s->lease == NULL);
    r->index_used[s->v.index] = 0;
    r->n_slots--;
    nr_free((char *)(uintptr_t)s->v.path);
    nr_free((char *)(uintptr_t)s->v.bare_file);
    nr_free(s->v.reason);
    nr_free(s);
}

static void slot_free_if_done(struct nr_repository *r, struct nr_slot *s)
{
    nr_version_state state = nr_version_state_of(&s->v);
    if (!s->shown && !s->change && s->n_jobs == 0 && !is_busy(state) && state != NR_VERSION_READY) {
        slot_free(r, s);
    }
}

/* Versions whose reference is to be dropped after unlocking. */
struct drops {
    struct nr_version **all;
    size_t n;
};

static void drop_later(struct drops *d, struct nr_version *v)
{
    d->all = nr_realloc(d->all, (d->n + 1) * sizeof(struct nr_version *));
    d->all[d->n++] = v;
}

static void drop_now(struct drops *d)
{
    for (size_t i = 0; i < d->n; i++) {
        nr_version_unref(d->all[i]);
    }
    nr_free(d->all);
}

static void slot_retire(struct nr_repository *r, struct nr_slot *s, struct drops *d)
{
    s->shown = false;
    if (nr_version_state_of(&s->v) == NR_VERSION_READY) {
        set_state(r, &s->v, NR_VERSION_UNLOADING, "");
        drop_later(d, &s->v);
    } else {
        slot_free_if_done(r, s);
    }
}

/* Shows these slots (an own copy is made) and retires those that are not among them. */
static void show_slots(struct nr_repository *r, struct nr_model *m, struct nr_slot *const *slots,
                       size_t n, struct drops *d)
{
    struct nr_slot **old = m->slots;
    size_t n_old = m->n_slots;
    m->slots = nr_new_array(struct nr_slot *, n + 1);
    m->n_slots = n;
    for (size_t i = 0; i < n_old; i++) {
        old[i]->shown = false;
    }
    for (size_t i = 0; i < n; i++) {
        m->slots[i] = slots[i];
        slots[i]->shown = true;
    }
    for (size_t i = 0; i < n_old; i++) {
        if (!old[i]->shown) {
            slot_retire(r, old[i], d);
        }
    }
    nr_free(old);
}

static bool has_ready(const struct nr_model *m)
{
    for (size_t i = 0; i < m->n_slots; i++) {
        if (nr_version_state_of(&m->slots[i]->v) == NR_VERSION_READY) {
            return true;
        }
    }
    return false;
}

static void set_text(char **to, const char *text)
{
    char *fresh = nr_strdup(text);
    nr_free(*to);
    *to = fresh;
}

/* Under the lock: what the index says beside READY. */
static void note_failed(struct nr_model *m, const char *reason)
{
    nr_autofree char *note =
        nr_format("the last load failed, the versions from before serve: %s", reason);
    set_text(&m->note, note);
}

/* --- models ----------------------------------------------------------------------------------- */

struct nr_model *nr_model_get(struct nr_repository *r, const char *name)
{
    struct nr_model *m = nr_map_get(&r->by_name, nr_str_from(name));
    if (m) {
        return m;
    }
    m = nr_new(struct nr_model);
    m->name = nr_strdup(name);
    m->reason = nr_strdup("");
    m->note = nr_strdup("");
    m->whole = (struct nr_version){.name = m->name, .number = -1, .dir_fd = -1, .model_fd = -1};
    nr_list_init(&m->ops);
    nr_list_init(&m->waiters);
    nr_list_init(&m->demand_node);
    (void)nr_map_put(&r->by_name, nr_str_from(name), m);
    r->models = nr_realloc(r->models, (r->n_models + 1) * sizeof(struct nr_model *));
    size_t at = r->n_models++;
    for (; at > 0 && strcmp(r->models[at - 1]->name, name) > 0; at--) {
        r->models[at] = r->models[at - 1];
    }
    r->models[at] = m;
    return m;
}

void nr_model_free(struct nr_repository *r, struct nr_model *m)
{
    for (size_t i = 0; i < m->n_slots; i++) {
        slot_free(r, m->slots[i]);
    }
    nr_model_free_labels(m);
    nr_free(m->slots);
    nr_free(m->name);
    nr_free(m->reason);
    nr_free(m->note);
    nr_free(m);
}

/* --- outside the lock ------------------------------------------------------------------------- */

static void tell(struct nr_repository *r, const struct nr_version *v, nr_version_state state,
                 const char *reason)
{
    if (r->cfg.on_state) {
        r->cfg.on_state(r->cfg.event_ctx, v, state, reason);
    }
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
    nr_repository_lock(r);
    for (size_t i = 0; i < r->n_models && !found; i++) {
        for (size_t k = 0; k < r->models[i]->n_slots && !found; k++) {
            struct nr_slot *s = r->models[i]->slots[k];
            if (!is_open_ensemble(&s->v)) {
                continue;
            }
            struct nr_catalog_version now = nr_repository_seen(r, &s->v);
            uint64_t told = nr_hash(now.reason, strlen(now.reason)) + (uint64_t)now.state;
            if (!is_busy(now.state) && told != s->told) {
                s->told = told;
                found = nr_version_ref(&s->v);
                *ret_state = now.state;
                *ret_reason = nr_strdup(now.reason);
            }
        }
    }
    nr_repository_unlock(r);
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

static void run_op(struct nr_job *j);

/* Under the lock: makes the model's next operation the active one, when the model is free for it.
 * The caller starts it after unlocking. */
static struct nr_op *next_op(struct nr_model *m)
{
    if (m->active || m->change || nr_list_empty(&m->ops)) {
        return NULL;
    }
    m->active = nr_container_of(nr_list_pop(&m->ops), struct nr_op, node);
    return m->active;
}

static void start_op(struct nr_repository *r, struct nr_op *op)
{
    if (!op) {
        return;
    }
    op->job = (struct nr_job){.run = run_op};
    if (nr_pool_submit(r->control, &op->job) != NARU_OK) {
        run_op(&op->job); /* no thread can be had */
    }
}

/* op is its submitter's again. */
static void op_done(struct nr_repository *r, struct nr_op *op)
{
    op->done(op);
    nr_repository_lock(r);
    r->n_ops--;
    (void)pthread_cond_broadcast(&r->rest);
    nr_repository_unlock(r);
}

/* The model is free for the next operation; the one that was at work (may be NULL) has ended. */
static void op_end(struct nr_repository *r, struct nr_model *m, struct nr_op *op)
{
    if (m) {
        nr_repository_lock(r);
        if (op) { /* a load at the start has none, and another may be at work already */
            NR_DCHECK(m->active == op);
            m->active = NULL;
        }
        struct nr_op *next = next_op(m);
        nr_repository_unlock(r);
        start_op(r, next);
    }
    if (op) {
        op_done(r, op);
    }
}

/* --- closing ---------------------------------------------------------------------------------- */

/* Under the lock, as a job's last act. */
static void job_end(struct nr_repository *r, struct nr_slot *s, size_t *count)
{
    if (r->n_loading + r->n_closing == 1 && r->cfg.on_rest) {
        nr_repository_unlock(r);
        r->cfg.on_rest(r->cfg.event_ctx);
        nr_repository_lock(r);
    }
    s->n_jobs--;
    (*count)--;
    slot_free_if_done(r, s);
    (void)pthread_cond_broadcast(&r->rest);
}

static void job_close(struct nr_job *j)
{
    struct nr_slot *s = nr_container_of(j, struct nr_slot, job);
    struct nr_repository *r = s->v.repository;
    struct nr_catalog *old = NULL;
    nr_lease_closing(s->lease);
    r->cfg.ops.close(r->cfg.ops_ctx, &s->v);
    nr_version_clear(&s->v);
    nr_lease_unref(NR_TAKE(s->lease));
    nr_repository_lock(r);
    bool shown = s->shown, last = r->n_closing == 1 && r->n_loading == 0;
    r->closing_bytes -= s->closing_bytes;
    set_state(r, &s->v, NR_VERSION_UNAVAILABLE, "unloaded");
    if (shown) {
        old = nr_repository_publish(r);
    }
    nr_repository_unlock(r);
    if (shown) {
        nr_repository_published(r, old);
    }
    if (last) {
        (void)malloc_trim(
            0); /* what the model held goes back to the system, whoever allocated it */
    }
    tell(r, &s->v, NR_VERSION_UNAVAILABLE, "unloaded");
    tell_ensembles(r);
    nr_repository_lock(r);
    struct nr_op *op = NR_TAKE(s->waiter);
    if (op && --op->n_closing > 0) {
        op = NULL;
    }
    job_end(r, s, &r->n_closing);
    nr_repository_unlock(r);
    if (op) {
        op_done(r, op);
    }
}

void nr_repository_version_idle(struct nr_version *v)
{
    struct nr_slot *s = nr_container_of(v, struct nr_slot, v);
    NR_ASSERT(nr_version_state_of(v) == NR_VERSION_UNLOADING);
    s->job = (struct nr_job){.run = job_close};
    if (nr_pool_submit(v->repository->pool, &s->job) != NARU_OK) {
        job_close(&s->job); /* no thread can be had: better a pause here than a leak */
    }
}

/* READY versions → UNLOADING. A change under way ends as if it had failed. Under the lock. */
static bool begin_unload(struct nr_repository *r, struct nr_model *m, struct nr_op *op,
                         struct drops *d)
{
    bool any = false;
    for (size_t i = 0; i < m->n_slots; i++) {
        struct nr_slot *s = m->slots[i];
        nr_version_state state = nr_version_state_of(&s->v);
        s->unload_wanted = state == NR_VERSION_LOADING;
        if (state == NR_VERSION_READY) {
            set_state(r, &s->v, NR_VERSION_UNLOADING, "");
            drop_later(d, &s->v);
            any = true;
            s->waiter = op;
            if (op) {
                op->n_closing++;
            }
        }
    }
    struct nr_change *c = m->change;
    for (size_t i = 0; c && c->beside && i < c->n_slots; i++) {
        c->slots[i]->unload_wanted = c->slots[i]->change == c;
    }
    if (c && c->beside && !c->failed) {
        c->failed = true;
        (void)nr_fail(&c->err, NARU_CANCELLED, "unloaded");
    }
    set_text(&m->note, "");
    return any;
}

nr_status nr_repository_unload(struct nr_repository *r, const char *name, struct nr_err *err)
{
    struct drops d = {0};
    bool any = false;
    nr_repository_lock(r);
    struct nr_model *only = name ? nr_map_get(&r->by_name, nr_str_from(name)) : NULL;
    for (size_t i = 0; i < r->n_models && (only || !name); i++) {
        if (!only || r->models[i] == only) {
            any = begin_unload(r, r->models[i], NULL, &d) || any;
        }
    }
    struct nr_catalog *old = any ? nr_repository_publish(r) : NULL;
    nr_repository_unlock(r);
    if (any) {
        nr_repository_published(r, old);
        tell_ensembles(r);
    }
    drop_now(&d);
    return name && !only ? nr_fail(err, NARU_NOT_FOUND, "there is no model \"%.128s\"", name)
                         : NARU_OK;
}

/* --- the end of a change ---------------------------------------------------------------------- */

/* Under the lock. An ensemble that serves is not replaced by one that could not: by an operator's load,
 * that is, who can load its members first. While files are polled both may come in any order, so the
 * ensemble waits for its members. */
static void try_ensembles(struct nr_repository *r, struct nr_change *c)
{
    const struct nr_model *m = c->model;
    bool serves = false;
    for (size_t i = 0; i < m->n_slots; i++) {
        const struct nr_version *v = &m->slots[i]->v;
        serves = serves || (nr_version_state_of(v) == NR_VERSION_READY && is_open_ensemble(v) &&
                            nr_repository_seen(r, v).state == NR_VERSION_READY);
    }
    for (size_t i = 0; i < c->n_slots && serves && c->beside && !c->failed; i++) {
        struct nr_slot *s = c->slots[i];
        c->failed = s->change == c && s->v.config->ensemble &&
                    nr_catalog_try(r->catalog, &s->v, &c->err) != NARU_OK;
    }
}

/* Under the lock. All new versions are open, or not all of them: switch, or close the new ones.
 * `ready` gets those that serve from now on. */
static void change_finish(struct nr_repository *r, struct nr_change *c, struct drops *d,
                          struct drops *ready)
{
    struct nr_model *m = c->model;
    m->change = NULL;
    if (c->beside && !c->failed) {
        for (size_t i = 0; i < c->n_slots; i++) {
            struct nr_slot *s = c->slots[i];
            if (s->change == c) {
                atomic_store_explicit(&s->v.refs, 1, memory_order_relaxed);
                set_state(r, &s->v, NR_VERSION_READY, "");
                drop_later(ready, nr_version_ref(&s->v));
            }
        }
        show_slots(r, m, c->slots, c->n_slots, d);
    } else if (c->beside && has_ready(m)) {
        note_failed(m, c->err.text);
    }
    if (!c->failed) {
        set_text(&m->note, "");
    }
    for (size_t i = 0; i < c->n_slots; i++) {
        struct nr_slot *s = c->slots[i];
        if (s->change != c) {
            continue;
        }
        s->change = NULL;
        if (c->beside && c->failed && s->opened) {
            atomic_store_explicit(&s->v.refs, 1, memory_order_relaxed);
            set_state(r, &s->v, NR_VERSION_UNLOADING, "");
            drop_later(d, &s->v);
        }
        s->opened = false;
        slot_free_if_done(r, s);
    }
}

/* After unlocking: who serves now is told. */
static void change_told(struct nr_repository *r, struct drops *ready)
{
    for (size_t i = 0; i < ready->n; i++) {
        if (!ready->all[i]->config->ensemble) {
            tell(r, ready->all[i], NR_VERSION_READY, "");
        }
    }
    drop_now(ready);
    tell_ensembles(r);
}

/* The change's last act: the operation ends. */
/* Who loads an ensemble is told what keeps it from being ready. Not under the lock. */
static void check_members(struct nr_repository *r, const struct nr_model *m, struct nr_err *err)
{
    nr_repository_lock(r);
    for (size_t i = 0; i < m->n_slots && err->status == NARU_OK; i++) {
        const struct nr_version *v = &m->slots[i]->v;
        struct nr_catalog_version now = nr_repository_seen(r, v);
        if (is_open_ensemble(v) && now.state == NR_VERSION_UNAVAILABLE) {
            (void)nr_fail(err, NARU_PRECONDITION,
                          "%s; the ensemble is loaded and becomes ready with its members",
                          now.reason);
        }
    }
    nr_repository_unlock(r);
}

static void change_done(struct nr_repository *r, struct nr_change *c, struct nr_op *op)
{
    if (op) {
        op->err = c->err;
        check_members(r, c->model, &op->err);
    }
    op_end(r, c->model, op);
    nr_free(c->slots);
    nr_free(c);
}

/* --- loading ---------------------------------------------------------------------------------- */

struct low_open { /* ops.open on a thread of low priority */
    struct nr_version *v;
    struct nr_err *err;
    nr_status st;
};

static void *open_low(void *arg)
{
    struct low_open *o = arg;
    struct nr_repository *r = o->v->repository;
    (void)setpriority(PRIO_PROCESS, 0, NR_LOW_NICE); /* of this thread only, on Linux */
    o->st = r->cfg.ops.open(r->cfg.ops_ctx, o->v, o->err);
    nr_arena_thread_done();
    return NULL;
}

static nr_status open_version(struct nr_version *v, bool low, struct nr_err *err)
{
    struct nr_repository *r = v->repository;
    struct low_open o = {.v = v, .err = err};
    pthread_t thread;
    if (r->cfg.ops.prepare) {
        nr_status st = r->cfg.ops.prepare(r->cfg.ops_ctx, v, err);
        if (st != NARU_OK) {
            return st;
        }
    }
    if (!low || pthread_create(&thread, NULL, open_low, &o) != 0) {
        return r->cfg.ops.open(r->cfg.ops_ctx, v, err);
    }
    (void)pthread_join(thread, NULL);
    return o.st;
}

/* Lets the model's agents look at its folder first. *fd: of the model's own folder; when they put another
 * one in its place the version is opened from there, and *fd is that one, borrowed. */
static nr_status run_agents(struct nr_slot *s, bool low, int *fd, struct nr_err *err)
{
    struct nr_version *v = &s->v;
    bool flat = strcmp(s->folder, ".") == 0;
    const char *path = v->path;
    nr_autofree char *own =
        flat ? nr_strdup(path)
             : nr_format("%.*s", (int)(strlen(path) - strlen(s->folder) - 1), path);
    int fresh_fd = *fd;
    nr_status st = nr_lease_load(s->lease, *fd, own, low, &fresh_fd, &path, err);
    if (st != NARU_OK || strcmp(path, own) == 0) {
        return st;
    }
    nr_close(v->dir_fd);
    v->dir_fd = -1;
    *fd = fresh_fd;
    nr_free((char *)(uintptr_t)v->path);
    v->path = flat ? nr_strdup(path) : nr_format("%s/%s", path, s->folder);
    return nr_dir_open_at(fresh_fd, s->folder, O_RDONLY | O_DIRECTORY, 0, &v->dir_fd, err);
}

static nr_status load(struct nr_slot *s, bool low, struct nr_err *err)
{
    struct nr_repository *r = s->v.repository;
    nr_autoclose int model_fd = -1;
    uint64_t before, after;
    nr_status st = nr_plan_open(r, s->model->name, &model_fd, err);
    if (st == NARU_OK) {
        st = nr_dir_open_at(model_fd, s->folder, O_RDONLY | O_DIRECTORY, 0, &s->v.dir_fd, err);
    }
    if (st == NARU_OK) {
        st = nr_plan_print(model_fd, s->folder, s->v.bare_file, &before, err);
    }
    if (st != NARU_OK) {
        return st;
    }
    int files_fd = model_fd; /* where its files are */
    if (s->lease) {
        st = run_agents(s, low, &files_fd, err);
    }
    s->v.model_fd = s->v.bare_file ? -1 : files_fd;
    if (st == NARU_OK) {
        st = nr_version_prepare(&s->v, r->config_name, err);
    }
    if (st == NARU_OK) {
        st = open_version(&s->v, low, err);
    }
    s->v.model_fd = -1;
    if (st != NARU_OK) {
        return st;
    }
    /* What is served must be what lay there as a whole, not the beginning of one file and the end of
     * another. */
    st = nr_plan_print(model_fd, s->folder, s->v.bare_file, &after, err);
    if (st == NARU_OK && (before != s->print || after != s->print)) {
        st = nr_fail(err, NARU_UNAVAILABLE,
                     "the files of the model changed while they were loaded: load it again when "
                     "they are complete");
    }
    if (st != NARU_OK) {
        r->cfg.ops.close(r->cfg.ops_ctx, &s->v);
    }
    return st;
}

/* Under the lock: the outcome of a load job. Whether what clients see has changed. */
static bool loaded(struct nr_repository *r, struct nr_slot *s, const struct nr_err *err)
{
    struct nr_change *c = s->change;
    if (err->status != NARU_OK) {
        set_state(r, &s->v, NR_VERSION_UNAVAILABLE, err->text);
        if (!c->failed) {
            c->failed = true;
            c->err = *err;
        }
        return s->shown;
    }
    if (c->beside) {
        s->opened = true;
        return false;
    }
    /* one until the end of this job, one while it is READY */
    atomic_store_explicit(&s->v.refs, s->unload_wanted ? 1 : 2, memory_order_relaxed);
    set_state(r, &s->v, s->unload_wanted ? NR_VERSION_UNLOADING : NR_VERSION_READY, "");
    return true;
}

static void job_load(struct nr_job *j)
{
    struct nr_slot *s = nr_container_of(j, struct nr_slot, job);
    struct nr_repository *r = s->v.repository;
    struct nr_change *c = s->change;
    struct nr_err err = {0};
    struct drops d = {0}, ready = {0};
    struct nr_op *op = NULL;
    struct nr_catalog *old = NULL;
    bool refused = false;
    nr_repository_lock(r);
    bool skip = s->unload_wanted || r->stopping || (c->beside && c->failed), low = r->n_ready > 0;
    nr_repository_unlock(r);
    int64_t begin = nr_clock_now();
    nr_status st = skip ? nr_fail(&err, NARU_CANCELLED, "unloaded") : load(s, low, &err);
    s->v.load_ns = (uint64_t)(nr_clock_now() - begin);
    if (st != NARU_OK) {
        nr_version_clear(&s->v);
        nr_lease_unref(NR_TAKE(s->lease));
    } else {
        nr_lease_opened(s->lease);
        err = (struct nr_err){0}; /* a step may have looked for something that need not be there */
    }
    err.status = st;
    nr_repository_lock(r);
    bool seen = loaded(r, s, &err);
    bool own = nr_version_state_of(&s->v) == NR_VERSION_READY ||
               nr_version_state_of(&s->v) == NR_VERSION_UNLOADING;
    bool told = st != NARU_OK ||
                (nr_version_state_of(&s->v) == NR_VERSION_READY && s->v.config->ensemble == NULL);
    bool last = --c->n_left == 0;
    if (last) {
        op = c->model->active;
        if (r->cfg.mode == NR_CONTROL_EXPLICIT && !c->failed) {
            try_ensembles(r, c);
            refused = c->failed;
        }
        change_finish(r, c, &d, &ready);
    }
    if (seen || (last && c->beside)) {
        old = nr_repository_publish(r);
    }
    nr_repository_unlock(r);
    if (old) {
        nr_repository_published(r, old);
    }
    if (told) {
        tell(r, &s->v, st == NARU_OK ? NR_VERSION_READY : NR_VERSION_UNAVAILABLE, err.text);
    }
    if (refused) {
        tell(r, &s->v, NR_VERSION_UNAVAILABLE, c->err.text);
    }
    tell_ensembles(r);
    if (last) {
        nr_lease_settle(NR_TAKE(c->lease), c->beside && c->failed);
    }
    drop_now(&d);
    if (own) {
        nr_version_unref(&s->v);
    }
    if (last) {
        change_told(r, &ready);
    }
    if (last && !op) {
        change_done(r, c, NULL);
    }
    nr_repository_lock(r);
    job_end(r, s, &r->n_loading);
    nr_repository_unlock(r);
    if (op) { /* it holds the repository; whoever waited for it finds no load under way */
        change_done(r, c, op);
    }
}

static void submit_loads(struct nr_repository *r, struct nr_slot **start, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        start[i]->job = (struct nr_job){.run = job_load};
        if (nr_pool_submit(r->pool, &start[i]->job) != NARU_OK) {
            job_load(&start[i]->job); /* no thread can be had: load here */
        }
    }
}

/* The model cannot be tried. What serves goes on. */
static void take_reason(struct nr_repository *r, struct nr_model *m, const struct nr_plan *p,
                        bool load, struct nr_op *op)
{
    struct drops d = {0};
    nr_repository_lock(r);
    m->shown = true;
    if (has_ready(m)) {
        note_failed(m, p->reason);
    } else {
        show_slots(r, m, NULL, 0, &d);
        set_text(&m->reason, p->reason);
    }
    if (!load) {
        nr_repository_unlock(r);
        return;
    }
    struct nr_catalog *old = nr_repository_publish(r);
    nr_repository_unlock(r);
    nr_repository_published(r, old);
    drop_now(&d);
    tell(r, &m->whole, NR_VERSION_UNAVAILABLE, p->reason);
    if (op) {
        (void)nr_fail(&op->err, NARU_INVALID, "%s", p->reason);
    }
    op_end(r, m, op);
}

/* Under the lock: kept slots and new ones. Returns how many are new. */
static size_t plan_slots(struct nr_repository *r, struct nr_model *m, const struct nr_plan *p,
                         struct nr_change *c)
{
    size_t n_new = 0;
    c->slots = nr_new_array(struct nr_slot *, p->n_versions + 1);
    c->n_slots = p->n_versions;
    for (size_t i = 0; i < p->n_versions; i++) {
        for (size_t k = 0; k < m->n_slots; k++) {
            struct nr_slot *s = m->slots[k];
            if (s->v.number == p->versions[i].number && s->print == p->versions[i].print &&
                nr_version_state_of(&s->v) == NR_VERSION_READY) {
                c->slots[i] = s;
            }
        }
        if (!c->slots[i]) {
            c->slots[i] = slot_new(r, m, p, &p->versions[i]);
            c->slots[i]->change = c;
            n_new++;
        }
    }
    return n_new;
}

/* Under the lock: new slots of the change go to LOADING. The caller submits them after unlocking. */
static struct nr_slot **begin_loads(struct nr_repository *r, struct nr_change *c)
{
    struct nr_slot **start = nr_new_array(struct nr_slot *, c->n_slots + 1);
    size_t n = 0;
    c->model->change = c;
    for (size_t i = 0; i < c->n_slots; i++) {
        if (c->slots[i]->change == c && c->slots[i]->has_agents) {
            c->lease = c->lease ? c->lease : nr_lease_new(r, c->model->name);
            c->slots[i]->lease = nr_lease_ref(c->lease);
        }
        if (c->slots[i]->change == c) {
            set_state(r, &c->slots[i]->v, NR_VERSION_LOADING, "");
            start[n++] = c->slots[i];
        }
    }
    return start;
}

void nr_model_take_plan(struct nr_repository *r, struct nr_model *m, const struct nr_plan *p,
                        bool load, struct nr_op *op)
{
    struct drops d = {0}, ready = {0};
    nr_autofree struct nr_slot **start = NULL;
    if (p->reason[0] != '\0') {
        take_reason(r, m, p, load, op);
        return;
    }
    struct nr_change *c = nr_new(struct nr_change);
    nr_repository_lock(r);
    set_text(&m->reason, "");
    m->shown = true;
    nr_model_take_labels(m, &p->traffic);
    m->pinned = p->pinned;
    c->model = m;
    c->beside = has_ready(m);
    size_t n_new = c->n_left = plan_slots(r, m, p, c);
    if (!load) {
        for (size_t i = 0; i < c->n_slots; i++) {
            c->slots[i]->change = NULL;
        }
        show_slots(r, m, c->slots, c->n_slots, &d);
    } else if (n_new > 0) {
        if (!c->beside) {
            show_slots(r, m, c->slots, c->n_slots, &d);
        }
        start = begin_loads(r, c);
    } else {
        change_finish(r, c, &d, &ready); /* some go, or nothing has changed */
    }
    struct nr_catalog *old = load ? nr_repository_publish(r) : NULL;
    nr_repository_unlock(r);
    if (load) {
        nr_repository_published(r, old);
    }
    drop_now(&d);
    if (start) {
        submit_loads(r, start, n_new); /* the last of them ends change and operation */
    } else {
        change_told(r, &ready);
        change_done(r, c, op);
    }
}

/* Under the lock: UNKNOWN slots of the model go to LOADING and are appended to start. */
static size_t begin_known(struct nr_repository *r, struct nr_model *m, struct nr_slot **start)
{
    bool known = m->n_slots > 0 && !m->change && !m->active;
    for (size_t i = 0; i < m->n_slots && known; i++) {
        known = nr_version_state_of(&m->slots[i]->v) == NR_VERSION_UNKNOWN;
    }
    if (!known) {
        return 0;
    }
    struct nr_change *c = nr_new(struct nr_change);
    c->model = m;
    c->slots = nr_new_array(struct nr_slot *, m->n_slots);
    c->n_slots = c->n_left = m->n_slots;
    for (size_t i = 0; i < m->n_slots; i++) {
        c->slots[i] = m->slots[i];
        m->slots[i]->change = c;
    }
    nr_autofree struct nr_slot **mine = begin_loads(r, c);
    memcpy(start, mine, m->n_slots * sizeof(struct nr_slot *));
    return m->n_slots;
}

void nr_repository_load_known(struct nr_repository *r, struct nr_model *const *models, size_t n)
{
    size_t n_start = 0;
    nr_repository_lock(r);
    nr_autofree struct nr_slot **start = nr_new_array(struct nr_slot *, r->n_slots + 1);
    for (size_t i = 0; i < n; i++) {
        n_start += begin_known(r, models[i], start + n_start);
    }
    struct nr_catalog *old = nr_repository_publish(r);
    nr_repository_unlock(r);
    nr_repository_published(r, old);
    for (size_t i = 0; i < n; i++) {
        if (models[i]->n_slots == 0) { /* nothing else changes it: no operation is taken yet */
            tell(r, &models[i]->whole, NR_VERSION_UNAVAILABLE, models[i]->reason);
        }
    }
    submit_loads(r, start, n_start);
}

bool nr_model_take_gone(struct nr_repository *r, struct nr_model *m)
{
    struct drops d = {0};
    nr_repository_lock(r);
    bool free_now = !m->active && !m->change && nr_list_empty(&m->ops) && m->shown;
    struct nr_catalog *old = NULL;
    if (free_now) {
        m->shown = false;
        show_slots(r, m, NULL, 0, &d);
        old = nr_repository_publish(r);
    }
    nr_repository_unlock(r);
    if (free_now) {
        nr_repository_published(r, old);
        drop_now(&d);
    }
    return free_now;
}

/* --- operations ------------------------------------------------------------------------------- */

static void op_fail(struct nr_op *op, nr_status st, const char *text)
{
    (void)nr_fail(&op->err, st, "%s", text);
}

static void run_unload(struct nr_repository *r, struct nr_model *m, struct nr_op *op)
{
    struct drops d = {0};
    nr_repository_lock(r);
    m->active = NULL; /* what closes needs no turn: the next load opens new slots */
    op->n_closing = 1;
    bool any = begin_unload(r, m, op, &d);
    struct nr_catalog *old = any ? nr_repository_publish(r) : NULL;
    struct nr_op *next = next_op(m);
    nr_repository_unlock(r);
    if (any) {
        nr_repository_published(r, old);
        tell_ensembles(r);
    }
    drop_now(&d);
    start_op(r, next);
    nr_repository_lock(r);
    bool ended = --op->n_closing == 0;
    nr_repository_unlock(r);
    if (ended) {
        op_done(r, op);
    }
}

/* The model of an operation whose name was unknown when it came. False: another operation is at work
 * on it, this one waits. */
static bool take_model(struct nr_repository *r, struct nr_op *op)
{
    nr_repository_lock(r);
    struct nr_model *m = op->model = nr_model_get(r, op->name);
    bool mine = !m->active && !m->change && nr_list_empty(&m->ops);
    if (mine) {
        m->active = op;
    } else {
        nr_list_append(&m->ops, &op->node);
    }
    nr_repository_unlock(r);
    return mine;
}

static void run_op(struct nr_job *j)
{
    struct nr_op *op = nr_container_of(j, struct nr_op, job);
    struct nr_repository *r = op->repository;
    struct nr_plan p;
    nr_repository_lock(r);
    bool stopping = r->stopping;
    if (!op->model && nr_map_get(&r->by_name, nr_str_from(op->name))) {
        nr_repository_unlock(r);
        if (!take_model(r, op)) {
            return;
        }
    } else {
        nr_repository_unlock(r);
    }
    if (stopping) {
        op_fail(op, NARU_CANCELLED, "the server ends");
        op_end(r, op->model, op);
        return;
    }
    if (op->kind == NR_OP_UNLOAD) {
        if (op->model) {
            run_unload(r, op->model, op);
        } else {
            op_end(r, NULL, op); /* unknown: nothing to unload, as Triton answers */
        }
        return;
    }
    if (nr_plan_make(r, op->name, &p, &op->err) != NARU_OK) {
        nr_repository_lock(r);
        if (op->model && has_ready(op->model)) {
            note_failed(op->model, op->err.text);
        }
        nr_repository_unlock(r);
        op_end(r, op->model, op);
        return;
    }
    if (op->model || take_model(r, op)) {
        nr_model_take_plan(r, op->model, &p, true, op);
    }
    nr_plan_done(&p);
}

static void submit_op(struct nr_repository *r, struct nr_op *op)
{
    op->repository = r;
    op->model = NULL;
    op->err = (struct nr_err){0};
    nr_list_init(&op->node);
    nr_repository_lock(r);
    r->n_ops++;
    struct nr_model *m = nr_map_get(&r->by_name, nr_str_from(op->name));
    op->model = m;
    bool waits = m && (m->active || m->change || !nr_list_empty(&m->ops));
    if (waits) {
        nr_list_append(&m->ops, &op->node);
    } else if (m) {
        m->active = op;
    }
    nr_repository_unlock(r);
    start_op(r, waits ? NULL : op);
}

void nr_repository_submit(struct nr_repository *r, struct nr_str name, struct nr_op *op)
{
    op->err = (struct nr_err){0};
    if (r->cfg.mode != NR_CONTROL_EXPLICIT) {
        (void)nr_fail(&op->err, NARU_UNAVAILABLE,
                      "explicit model load / unload is not allowed if polling is enabled or all "
                      "models are loaded at the start: start with --model-control-mode=explicit");
    } else if (!nr_name_valid(name)) {
        (void)nr_fail(&op->err, NARU_INVALID,
                      "a model's name has 1 to 128 letters, digits, '.', '_' or '-', and does not "
                      "begin with a dot");
    }
    if (op->err.status != NARU_OK) {
        op->done(op);
        return;
    }
    (void)snprintf(op->name, sizeof op->name, NR_STR_FMT, NR_STR_ARG(name));
    submit_op(r, op);
}

void nr_repository_demand_load(struct nr_repository *r, struct nr_model *m)
{
    (void)snprintf(m->demand_op.name, sizeof m->demand_op.name, "%s", m->name);
    submit_op(r, &m->demand_op);
}

static void free_op(struct nr_op *op)
{
    nr_free(op);
}

void nr_repository_poll_load(struct nr_repository *r, const char *name)
{
    struct nr_op *op = nr_new(struct nr_op);
    op->kind = NR_OP_LOAD;
    op->done = free_op;
    (void)snprintf(op->name, sizeof op->name, "%s", name);
    submit_op(r, op);
}

void nr_repository_cancel_ops(struct nr_repository *r)
{
    struct nr_list all;
    struct nr_list *node;
    nr_list_init(&all);
    nr_repository_lock(r);
    for (size_t i = 0; i < r->n_models; i++) {
        nr_list_splice(&all, &r->models[i]->ops);
    }
    nr_repository_unlock(r);
    while ((node = nr_list_pop(&all)) != NULL) {
        struct nr_op *op = nr_container_of(node, struct nr_op, node);
        op_fail(op, NARU_CANCELLED, "the server ends");
        op_done(r, op);
    }
}
