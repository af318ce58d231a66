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
 */
#include <stdio.h>

#include "base/mem.h"
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
        bool ready = state == NR_VERSION_READY;
        bool ensemble = ready && v->config->ensemble;
        versions[i] =
            (struct nr_catalog_version){.number = v->number,
                                        .state = state,
                                        .reason = copy_text(&c->arena, v->reason),
                                        .version = ready && !ensemble ? nr_version_ref(v) : NULL,
                                        .open = ensemble ? v : NULL};
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
    c->models = models;
    c->n_models = (uint32_t)r->n_models;
    nr_catalog_settle(c);
    for (size_t i = 0; i < r->n_models; i++) {
        finish_model(c, &models[i]);
    }
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
