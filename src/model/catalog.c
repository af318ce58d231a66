/* The catalog: immutable snapshots of what can be run, and how threads hold on to them.
 *
 * DESIGN. Looking up a model is on the path of every request, changes come once in minutes. So a
 * snapshot is built whole, under the repository's lock, and published by a new generation number;
 * a reader compares that number with the one it has (a shared cache line that is only read) and
 * takes the lock only when it differs. Readers count their own requests in a view without atomics,
 * because a request begins and ends on the loop that read it. The alternatives, a count per request
 * on the version or epochs, cost a shared write per request or more code.
 *
 * INVARIANTS
 *  1. A snapshot holds a reference of every version that is READY in it; while a view of it is
 *     pinned or current, none of them closes.
 *  2. A view belongs to the thread of its reader; it is freed when it is neither current nor pinned.
 *  3. reader.generation is that of the view's snapshot.
 *  4. Members of an ensemble that is READY in a snapshot are READY in it: no reference of their own.
 *
 * Ensembles are settled in rounds, those of models first, then those of such ensembles; what is
 * left when a round settles nothing contains itself, or needs one that does. So a circle needs no
 * search on the way, only in the text of the refusal.
 */
#include <stdio.h>

#include "base/mem.h"
#include "model/ensemble.h"
#include "model/repository_priv.h"

/* --- snapshots -------------------------------------------------------------------------------- */

static const char *copy_text(struct nr_arena *a, const char *text)
{
    return text[0] == '\0' ? "" : nr_arena_strz(a, nr_str_from(text));
}

static void fill_model(struct nr_catalog *c, struct nr_catalog_model *to, const struct nr_model *m)
{
    struct nr_catalog_version *versions =
        nr_arena_zalloc(&c->arena, NR_MAX(m->n_slots, (size_t)1) * sizeof *versions);
    to->name = m->name;
    to->reason = copy_text(&c->arena, m->reason);
    for (size_t i = 0; i < m->n_slots; i++) {
        struct nr_version *v = &m->slots[i]->v;
        nr_version_state state = nr_version_state_of(v);
        bool ready = state == NR_VERSION_READY && v->config->ensemble == NULL;
        versions[i] = (struct nr_catalog_version){.number = v->number,
                                                  .state = state,
                                                  .reason = copy_text(&c->arena, v->reason),
                                                  .version = ready ? nr_version_ref(v) : NULL};
    }
    to->versions = versions;
    to->n_versions = (uint32_t)m->n_slots;
}

/* When all versions are settled: which one is the default, or why none is. */
static void finish_model(struct nr_catalog *c, struct nr_catalog_model *to)
{
    for (uint32_t i = 0; i < to->n_versions; i++) {
        to->best = to->versions[i].version ? to->versions[i].version : to->best;
        c->all_ready = c->all_ready && to->versions[i].version;
    }
    if (to->best) {
        to->reason = "";
    } else if (to->n_versions > 0) {
        to->reason = to->versions[to->n_versions - 1].reason;
    } else {
        c->all_ready = false;
    }
}

/* --- ensembles -------------------------------------------------------------------------------- */

/* An ensemble that is open: it is not settled while its state is READY and it has no version. */
struct candidate {
    struct nr_version *v;
    struct nr_catalog_version *entry;
    struct nr_catalog_model *model;
    bool settled;
};

static bool is_settled(const struct nr_catalog_version *v)
{
    return v->state != NR_VERSION_READY || v->version != NULL;
}

static void block(struct nr_catalog *c, struct candidate *x, nr_version_state state,
                  const char *reason)
{
    x->entry->state = state;
    x->entry->reason = copy_text(&c->arena, reason);
    x->settled = true;
}

/* The entry that step s runs: of the wanted number, or the highest READY one, or, when none is, the
 * one that is nearest to it. NULL: there is no such version. *ret_wait: not known in this round. */
static const struct nr_catalog_version *
find_member(const struct nr_catalog_model *m, const struct nr_ensemble_step *s, bool *ret_wait)
{
    const struct nr_catalog_version *found = NULL;
    for (uint32_t i = m->n_versions; i > 0; i--) {
        const struct nr_catalog_version *v = &m->versions[i - 1];
        if (s->version > 0 && v->number != s->version) {
            continue;
        }
        if (!is_settled(v)) {
            *ret_wait = true;
            return v;
        }
        if (v->version) {
            return v;
        }
        found = found && found->state == NR_VERSION_LOADING ? found : v;
    }
    return found;
}

/* Finds the members of x. True when x is settled or all are there. */
static bool find_members(struct nr_catalog *c, struct candidate *x, struct nr_member *members)
{
    const struct nr_ensemble *e = x->v->config->ensemble;
    char text[NR_ERR_TEXT_MAX + 256];
    for (uint32_t i = 0; i < e->n_steps; i++) {
        const struct nr_ensemble_step *s = &e->steps[i];
        if (s->kind) {
            continue;
        }
        bool wait = false;
        const struct nr_catalog_model *m = nr_catalog_find(c, nr_str_from(s->model));
        const struct nr_catalog_version *v = m ? find_member(m, s, &wait) : NULL;
        if (wait) {
            return false;
        }
        if (v && v->version) {
            members[i].version = v->version;
            members[i].sig = &v->version->config->sig;
            x->entry->depth = NR_MAX(x->entry->depth, v->depth + 1);
            continue;
        }
        if (v && v->state == NR_VERSION_LOADING) {
            block(c, x, NR_VERSION_LOADING, "");
            return true;
        }
        char which[48] = "";
        if (s->version > 0) {
            (void)snprintf(which, sizeof which, " version %lld", (long long)s->version);
        }
        (void)snprintf(text, sizeof text, "step %u needs model \"%.128s\"%s, which %s%.300s", i,
                       s->model, which,
                       !m || (m->n_versions > 0 && !v) ? "does not exist" : "is not ready: ",
                       !m || (m->n_versions > 0 && !v)  ? ""
                       : !v                             ? m->reason
                       : v->reason[0] != '\0'           ? v->reason
                       : v->state == NR_VERSION_UNKNOWN ? "it is not loaded"
                                                        : "it is being unloaded");
        block(c, x, NR_VERSION_UNAVAILABLE, text);
        return true;
    }
    return true;
}

static void settle(struct nr_catalog *c, struct candidate *x)
{
    const struct nr_ensemble *e = x->v->config->ensemble;
    struct nr_member *members = nr_arena_zalloc(&c->arena, e->n_steps * sizeof *members);
    struct nr_err err = {0};
    x->entry->depth = 1;
    if (!find_members(c, x, members) || x->settled) {
        return;
    }
    if (x->entry->depth > NR_ENSEMBLE_MAX_DEPTH) {
        (void)nr_fail(&err, NARU_INVALID, "ensembles are nested %u deep, at most %d are allowed",
                      x->entry->depth, NR_ENSEMBLE_MAX_DEPTH);
        block(c, x, NR_VERSION_UNAVAILABLE, err.text);
        return;
    }
    if (nr_ensemble_bind(x->v->config, &c->arena, members, &err) != NARU_OK) {
        block(c, x, NR_VERSION_UNAVAILABLE, err.text);
        return;
    }
    x->entry->members = members;
    x->entry->version = nr_version_ref(x->v);
    x->settled = true;
}

/* The ensemble among `all` whose member keeps x from being settled. */
static struct candidate *waits_for(struct nr_catalog *c, const struct candidate *x,
                                   struct candidate *all, size_t n)
{
    const struct nr_ensemble *e = x->v->config->ensemble;
    for (uint32_t i = 0; i < e->n_steps; i++) {
        bool wait = false;
        const struct nr_catalog_model *m =
            e->steps[i].kind ? NULL : nr_catalog_find(c, nr_str_from(e->steps[i].model));
        const struct nr_catalog_version *v = m ? find_member(m, &e->steps[i], &wait) : NULL;
        for (size_t k = 0; wait && k < n; k++) {
            if (all[k].entry == v) {
                return &all[k];
            }
        }
    }
    return NULL;
}

/* "a → b → a", or whose circle it needs. Reads only: states change after all texts are made. */
static const char *why_left(struct nr_catalog *c, struct candidate *x, struct candidate *all,
                            size_t n)
{
    struct nr_text t;
    char storage[400];
    nr_text_init_at(&t, storage, sizeof storage);
    nr_text_fmt(&t, "it contains itself: %s", x->v->name);
    struct candidate *at = x;
    for (size_t steps = 0; steps < n && at; steps++) {
        at = waits_for(c, at, all, n);
        nr_text_fmt(&t, " → %s", at ? at->v->name : "?");
        if (at == x) {
            return copy_text(&c->arena, storage);
        }
    }
    nr_text_init_at(&t, storage, sizeof storage);
    nr_text_fmt(&t, "it needs model \"%s\", which contains itself", at ? at->v->name : "?");
    return copy_text(&c->arena, storage);
}

static void settle_ensembles(struct nr_catalog *c, const struct nr_repository *r,
                             struct nr_catalog_model *models)
{
    size_t n = 0, left, max = 0;
    for (size_t i = 0; i < r->n_models; i++) {
        for (size_t k = 0; k < r->models[i]->n_slots; k++) {
            max += !is_settled(&models[i].versions[k]);
        }
    }
    if (max == 0) {
        return;
    }
    nr_autofree struct candidate *all = nr_new_array(struct candidate, max);
    for (size_t i = 0; i < r->n_models; i++) {
        for (size_t k = 0; k < r->models[i]->n_slots; k++) {
            if (!is_settled(&models[i].versions[k])) {
                all[n++] = (struct candidate){
                    .v = &r->models[i]->slots[k]->v,
                    .entry = (struct nr_catalog_version *)(uintptr_t)&models[i].versions[k],
                    .model = &models[i]};
            }
        }
    }
    size_t before;
    left = n;
    do {
        before = left;
        for (size_t i = 0; i < n; i++) {
            if (!all[i].settled) {
                settle(c, &all[i]);
                left -= all[i].settled;
            }
        }
    } while (left > 0 && left < before);
    for (size_t i = 0; i < n && left > 0; i++) {
        all[i].entry->reason = all[i].settled ? all[i].entry->reason : why_left(c, &all[i], all, n);
    }
    for (size_t i = 0; i < n && left > 0; i++) {
        all[i].entry->state = all[i].settled ? all[i].entry->state : NR_VERSION_UNAVAILABLE;
    }
}

struct nr_catalog *nr_catalog_make(const struct nr_repository *r, uint64_t generation)
{
    struct nr_catalog *c = nr_new(struct nr_catalog);
    atomic_init(&c->refs, 1);
    c->generation = generation;
    c->all_ready = true;
    nr_arena_init(&c->arena, 0);
    nr_map_init(&c->by_name);
    struct nr_catalog_model *models =
        nr_arena_zalloc(&c->arena, NR_MAX(r->n_models, (size_t)1) * sizeof *models);
    for (size_t i = 0; i < r->n_models; i++) {
        fill_model(c, &models[i], r->models[i]);
        (void)nr_map_put(&c->by_name, nr_str_from(models[i].name), &models[i]);
    }
    settle_ensembles(c, r, models);
    for (size_t i = 0; i < r->n_models; i++) {
        finish_model(c, &models[i]);
    }
    c->models = models;
    c->n_models = (uint32_t)r->n_models;
    return c;
}

void nr_catalog_unref(struct nr_catalog *c)
{
    /* release: our reads are over; acquire: everybody's are, before the versions are let go */
    if (!c || atomic_fetch_sub_explicit(&c->refs, 1, memory_order_acq_rel) != 1) {
        return;
    }
    for (uint32_t i = 0; i < c->n_models; i++) {
        for (uint32_t k = 0; k < c->models[i].n_versions; k++) {
            nr_version_unref(c->models[i].versions[k].version);
        }
    }
    nr_map_done(&c->by_name);
    nr_arena_done(&c->arena);
    nr_free(c);
}

/* --- readers ---------------------------------------------------------------------------------- */

static void view_release(struct nr_catalog_view *view)
{
    if (view && !view->current && view->pins == 0) {
        nr_catalog_unref(view->catalog);
        nr_free(view);
    }
}

static void view_retire(struct nr_catalog_view *view)
{
    if (view) {
        view->current = false;
        view_release(view);
    }
}

void nr_catalog_reader_init(struct nr_catalog_reader *rd, struct nr_repository *r)
{
    *rd = (struct nr_catalog_reader){.repository = r};
}

void nr_catalog_reader_done(struct nr_catalog_reader *rd)
{
    view_retire(NR_TAKE(rd->view));
    rd->generation = 0;
}

void nr_catalog_refresh(struct nr_catalog_reader *rd)
{
    struct nr_repository *r = rd->repository;
    /* acquire: partner of the release in nr_repository_publish; the snapshot itself is read under
     * the lock, so this load only has to notice the change */
    if (NR_LIKELY(rd->view != NULL &&
                  rd->generation == atomic_load_explicit(&r->generation, memory_order_acquire))) {
        return;
    }
    struct nr_catalog_view *view = nr_new(struct nr_catalog_view);
    view->current = true;
    (void)pthread_mutex_lock(&r->lock);
    view->catalog = r->catalog;
    (void)atomic_fetch_add_explicit(&r->catalog->refs, 1, memory_order_relaxed);
    (void)pthread_mutex_unlock(&r->lock);
    view_retire(rd->view);
    rd->view = view;
    rd->generation = view->catalog->generation;
}

const struct nr_catalog *nr_catalog_get(struct nr_catalog_reader *rd)
{
    nr_catalog_refresh(rd);
    return rd->view->catalog;
}

struct nr_catalog_view *nr_catalog_pin(struct nr_catalog_reader *rd)
{
    NR_DCHECK(rd->view != NULL);
    rd->view->pins++;
    return rd->view;
}

void nr_catalog_unpin(struct nr_catalog_view *view)
{
    NR_DCHECK(view->pins > 0);
    view->pins--;
    view_release(view);
}

/* --- lookup ----------------------------------------------------------------------------------- */

const struct nr_catalog_model *nr_catalog_find(const struct nr_catalog *c, struct nr_str name)
{
    return nr_map_get(&c->by_name, name);
}

const struct nr_catalog_version *nr_catalog_version(const struct nr_catalog *c, struct nr_str name,
                                                    int64_t number)
{
    const struct nr_catalog_model *m = nr_catalog_find(c, name);
    for (uint32_t i = 0; m && i < m->n_versions; i++) {
        if (m->versions[i].number == number) {
            return &m->versions[i];
        }
    }
    return NULL;
}

static nr_status fail_state(struct nr_err *err, const char *model, const char *which,
                            nr_version_state state, const char *reason)
{
    switch (state) {
    case NR_VERSION_LOADING:
    case NR_VERSION_UNLOADING:
        return nr_fail(err, NARU_UNAVAILABLE, "model \"%s\"%s is %s now: try again later", model,
                       which, state == NR_VERSION_LOADING ? "being loaded" : "being unloaded");
    case NR_VERSION_UNAVAILABLE:
        return nr_fail(err, NARU_NOT_FOUND, "model \"%s\"%s is not available: %s", model, which,
                       reason);
    case NR_VERSION_UNKNOWN:
    case NR_VERSION_READY:
        break;
    }
    return nr_fail(err, NARU_NOT_FOUND, "model \"%s\"%s is not loaded", model, which);
}

static nr_status lookup_version(const struct nr_catalog_model *m, struct nr_str version,
                                struct nr_version **ret, struct nr_err *err)
{
    uint64_t number;
    if (!nr_str_to_u64(version, &number) || number > INT64_MAX) {
        return nr_fail(err, NARU_INVALID,
                       "version \"" NR_STR_FMT "\" is no version: expected a number from 1 on",
                       NR_STR_ARG(version));
    }
    char which[48];
    (void)snprintf(which, sizeof which, " version %lld", (long long)number);
    for (uint32_t i = 0; i < m->n_versions; i++) {
        const struct nr_catalog_version *v = &m->versions[i];
        if (v->number == (int64_t)number) {
            *ret = v->version;
            return v->version ? NARU_OK : fail_state(err, m->name, which, v->state, v->reason);
        }
    }
    char list[160] = "";
    size_t at = 0;
    for (uint32_t i = 0; i < m->n_versions && at + 24 < sizeof list; i++) {
        at += (size_t)snprintf(list + at, sizeof list - at, "%s%lld", i ? ", " : "",
                               (long long)m->versions[i].number);
    }
    return nr_fail(err, NARU_NOT_FOUND, "model \"%s\" has no version %lld; served are: %s", m->name,
                   (long long)number, at > 0 ? list : "none");
}

nr_status nr_catalog_lookup(const struct nr_catalog *c, struct nr_str name, struct nr_str version,
                            struct nr_version **ret, struct nr_err *err)
{
    const struct nr_catalog_model *m = nr_catalog_find(c, name);
    if (!m) {
        return nr_fail(err, NARU_NOT_FOUND,
                       "unknown model \"%.*s\"; POST /v2/repository/index lists the models",
                       (int)NR_MIN(name.len, (size_t)128), name.ptr ? name.ptr : "");
    }
    if (version.len > 0) {
        return lookup_version(m, version, ret, err);
    }
    if (m->best) {
        *ret = m->best;
        return NARU_OK;
    }
    nr_version_state state =
        m->n_versions > 0 ? m->versions[m->n_versions - 1].state : NR_VERSION_UNAVAILABLE;
    return fail_state(err, m->name, "", state, m->reason);
}
