/* The catalog: immutable snapshots of what can be run, and how threads hold on to them.
 *
 * DESIGN. Looking up a model is on the path of every request, changes come once in minutes. So a
 * snapshot is built whole, under the repository's lock, and published by a new generation number;
 * a reader compares that number with the one it has (a shared cache line that is only read) and
 * takes the lock only when it differs. Readers count their own requests in a view without atomics,
 * because a request begins and ends on the loop that read it. The alternatives, a count per request
 * on the version or epochs, cost a shared write per request or more code. A view that retires while
 * requests run keeps the versions of those requests and lets the snapshot go: a request that takes
 * a minute holds its own model, not every model that was there when it came.
 *
 * INVARIANTS
 *  1. A snapshot holds a reference of every version that is READY in it. A current view holds its
 *     snapshot; a retired one a reference of each version that is pinned in it, or the snapshot when
 *     one of them is an ensemble.
 *  2. A view belongs to the thread of its reader; it is freed when it is neither current nor pinned.
 *  3. reader.generation is that of the view's snapshot.
 *  4. Members of an ensemble that is READY in a snapshot are READY in it: no reference of their own.
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

/* Labels point to versions of this snapshot, so a move is seen as a whole or not at all. */
static void fill_labels(struct nr_catalog *c, struct nr_catalog_model *to, struct nr_model *m)
{
    uint32_t n = m->traffic.n, *weights = NULL;
    struct nr_catalog_label *labels = nr_arena_zalloc(&c->arena, NR_MAX(n, 1u) * sizeof *labels);
    for (uint32_t i = 0; i < n; i++) {
        const struct nr_traffic_rule *rule = &m->traffic.rules[i];
        labels[i].label = nr_model_label(m, nr_str_from(rule->name));
        labels[i].number = rule->version;
        for (uint32_t k = 0; k < to->n_versions; k++) {
            if (to->versions[k].number == rule->version) {
                labels[i].version = to->versions[k].version;
            }
        }
        if (rule->shadow > 0) {
            to->shadow = &labels[i];
            to->shadow_percent = rule->shadow;
        }
        if (rule->weight > 0) {
            weights = weights ? weights : nr_arena_zalloc(&c->arena, n * sizeof *weights);
            weights[i] = rule->weight;
        }
    }
    to->labels = labels;
    to->n_labels = n;
    to->weights = weights;
}

/* In explicit mode and with a budget, a model that nobody wants loaded does not make the server
 * unready. */
static bool counts(const struct nr_repository_cfg *cfg, const struct nr_catalog_version *v)
{
    return (cfg->mode != NR_CONTROL_EXPLICIT && cfg->budget_bytes == 0) ||
           !(v->state == NR_VERSION_UNKNOWN || v->state == NR_VERSION_UNLOADING ||
             (v->state == NR_VERSION_UNAVAILABLE && strcmp(v->reason, "unloaded") == 0));
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
        bool stuck = v->stuck && state == NR_VERSION_READY;
        bool ready = state == NR_VERSION_READY && !stuck;
        bool ensemble = ready && v->config->ensemble;
        versions[i] = (struct nr_catalog_version){
            .number = v->number,
            .state = stuck ? NR_VERSION_UNAVAILABLE : state,
            .reason = copy_text(&c->arena, stuck && v->trouble ? v->trouble : v->reason),
            .stuck = stuck ? nr_version_ref(v) : NULL,
            .passes = stuck,
            .version = ready && !ensemble ? nr_version_ref(v) : NULL,
            .open = ensemble ? v : NULL,
            .decoupled = ready && !ensemble && v->config->decoupled,
            .stateful = ready && !ensemble && v->config->sequence,
            .identity = ready ? v->serial : 0};
    }
    to->versions = versions;
    to->n_versions = (uint32_t)m->n_slots;
}

/* When all versions are settled: which one is the default, or why none is. */
static void finish_model(const struct nr_repository *r, struct nr_catalog *c,
                         struct nr_catalog_model *to, struct nr_model *m)
{
    for (uint32_t i = 0; i < to->n_versions; i++) {
        to->best = to->versions[i].version ? to->versions[i].version : to->best;
        c->all_ready =
            c->all_ready && (to->versions[i].version || !counts(&r->cfg, &to->versions[i]));
    }
    fill_labels(c, to, m);
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
    c->n_index = r->n_index;
    for (size_t i = 0; i < r->n_models; i++) {
        if (r->models[i]->shown) {
            struct nr_catalog_model *to = &models[c->n_models++];
            fill_model(c, to, r->models[i]);
            (void)nr_map_put(&c->by_name, nr_str_from(to->name), to);
        }
    }
    c->models = models;
    c->models = models;
    nr_catalog_settle(c);
    for (size_t i = 0, n = 0; i < r->n_models; i++) {
        if (r->models[i]->shown) {
            finish_model(r, c, &models[n++], r->models[i]);
        }
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
            nr_version_unref(c->models[i].versions[k].stuck);
        }
    }
    nr_map_done(&c->by_name);
    nr_arena_done(&c->arena);
    nr_free(c);
}

/* --- readers ---------------------------------------------------------------------------------- */

static bool pins_ensemble(const struct nr_catalog_view *view)
{
    const struct nr_catalog *c = view->catalog;
    for (uint32_t i = 0; i < c->n_models; i++) {
        for (uint32_t k = 0; k < c->models[i].n_versions; k++) {
            const struct nr_version *v = c->models[i].versions[k].version;
            if (v && view->pins[v->index] > 0 && v->config->ensemble) {
                return true;
            }
        }
    }
    return false;
}

/* No request will be found in it any more: keeps what is pinned, lets the snapshot go. An ensemble
 * runs the members that the snapshot binds it to, so it keeps all of it. */
static void view_retire(struct nr_catalog_view *view)
{
    if (!view) {
        return;
    }
    view->current = false;
    if (view->n_pins > 0 && pins_ensemble(view)) {
        return;
    }
    struct nr_catalog *c = NR_TAKE(view->catalog);
    for (uint32_t i = 0; i < c->n_models && view->n_pins > 0; i++) {
        for (uint32_t k = 0; k < c->models[i].n_versions; k++) {
            struct nr_version *v = c->models[i].versions[k].version;
            if (v && view->pins[v->index] > 0) {
                (void)nr_version_ref(v);
            }
        }
    }
    nr_catalog_unref(c);
    if (view->n_pins == 0) {
        nr_free(view);
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
    (void)pthread_mutex_lock(&r->lock);
    struct nr_catalog *c = r->catalog;
    (void)atomic_fetch_add_explicit(&c->refs, 1, memory_order_relaxed);
    (void)pthread_mutex_unlock(&r->lock);
    struct nr_catalog_view *view = nr_alloc(sizeof *view + c->n_index * sizeof(view->pins[0]));
    view->catalog = c;
    view->current = true;
    view_retire(rd->view);
    rd->view = view;
    rd->generation = view->catalog->generation;
}

const struct nr_catalog *nr_catalog_get(struct nr_catalog_reader *rd)
{
    nr_catalog_refresh(rd);
    return rd->view->catalog;
}

struct nr_catalog_view *nr_catalog_pin(struct nr_catalog_reader *rd, const struct nr_version *v)
{
    NR_DCHECK(rd->view != NULL && v->index < rd->view->catalog->n_index);
    rd->view->pins[v->index]++;
    rd->view->n_pins++;
    return rd->view;
}

void nr_catalog_unpin(struct nr_catalog_view *view, struct nr_version *v)
{
    NR_DCHECK(view->n_pins > 0 && view->pins[v->index] > 0);
    view->n_pins--;
    bool last = --view->pins[v->index] == 0;
    if (view->current) {
        return;
    }
    if (last && !view->catalog) {
        nr_version_unref(v);
    }
    if (view->n_pins == 0) {
        nr_catalog_unref(view->catalog);
        nr_free(view);
    }
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

bool nr_catalog_decoupled(const struct nr_catalog *c, const struct nr_version *v)
{
    if (!v->config->ensemble) {
        return v->config->decoupled;
    }
    const struct nr_catalog_version *entry = nr_catalog_version(c, nr_str_from(v->name), v->number);
    return entry && entry->decoupled;
}

/* v NULL: the model has no versions, for `reason`. */
static nr_status fail_state(struct nr_err *err, const char *model, const char *which,
                            const struct nr_catalog_version *v, const char *reason)
{
    nr_version_state state = v ? v->state : NR_VERSION_UNAVAILABLE;
    switch (state) {
    case NR_VERSION_LOADING:
    case NR_VERSION_UNLOADING:
        return nr_fail(err, NARU_UNAVAILABLE, "model \"%s\"%s is %s now: try again later", model,
                       which, state == NR_VERSION_LOADING ? "being loaded" : "being unloaded");
    case NR_VERSION_UNAVAILABLE:
        return nr_fail(err, v && v->passes ? NARU_UNAVAILABLE : NARU_NOT_FOUND,
                       "model \"%s\"%s is not available: %s", model, which, reason);
    case NR_VERSION_UNKNOWN:
    case NR_VERSION_READY:
        break;
    }
    return nr_fail(err, NARU_NOT_FOUND, "model \"%s\"%s is not loaded", model, which);
}

static const struct nr_catalog_label *find_label(const struct nr_catalog_model *m,
                                                 struct nr_str name)
{
    for (uint32_t i = 0; i < m->n_labels; i++) {
        if (nr_str_is(name, m->labels[i].label->name)) {
            return &m->labels[i];
        }
    }
    return NULL;
}

static nr_status lookup_label(const struct nr_catalog_model *m, struct nr_str name,
                              struct nr_version **ret, struct nr_err *err)
{
    const struct nr_catalog_label *l = find_label(m, name);
    if (!l) {
        return nr_fail(err, NARU_NOT_FOUND,
                       "version \"" NR_STR_FMT "\" is no version and no label of model \"%s\"",
                       NR_STR_ARG(name), m->name);
    }
    for (uint32_t i = 0; i < m->n_versions; i++) {
        const struct nr_catalog_version *v = &m->versions[i];
        if (v->number == l->number && v->passes) {
            char which[96];
            (void)snprintf(which, sizeof which, " version %lld (\"%s\")", (long long)v->number,
                           l->label->name);
            return fail_state(err, m->name, which, v, v->reason);
        }
    }
    *ret = l->version;
    return l->version ? NARU_OK
                      : nr_fail(err, NARU_NOT_FOUND,
                                "label \"%s\" of model \"%s\" points to version %lld, which is not "
                                "ready: move the label",
                                l->label->name, m->name, (long long)l->number);
}

static nr_status lookup_version(const struct nr_catalog_model *m, struct nr_str version,
                                struct nr_version **ret, struct nr_err *err)
{
    uint64_t number;
    if (nr_label_valid(version)) {
        return lookup_label(m, version, ret, err);
    }
    if (!nr_str_to_u64(version, &number) || number > INT64_MAX) {
        return nr_fail(err, NARU_INVALID,
                       "version \"" NR_STR_FMT
                       "\" is no version: expected a number from 1 on, or a label",
                       NR_STR_ARG(version));
    }
    char which[48];
    (void)snprintf(which, sizeof which, " version %lld", (long long)number);
    for (uint32_t i = 0; i < m->n_versions; i++) {
        const struct nr_catalog_version *v = &m->versions[i];
        if (v->number == (int64_t)number) {
            *ret = v->version;
            return v->version ? NARU_OK : fail_state(err, m->name, which, v, v->reason);
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

/* m may be NULL: there is no such model. */
static nr_status lookup_in(const struct nr_catalog_model *m, struct nr_str name,
                           struct nr_str version, struct nr_version **ret, struct nr_err *err)
{
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
    return fail_state(err, m->name, "", m->n_versions > 0 ? &m->versions[m->n_versions - 1] : NULL,
                      m->reason);
}

nr_status nr_catalog_lookup(const struct nr_catalog *c, struct nr_str name, struct nr_str version,
                            struct nr_version **ret, struct nr_err *err)
{
    return lookup_in(nr_catalog_find(c, name), name, version, ret, err);
}

nr_status nr_catalog_route(struct nr_catalog_reader *rd, struct nr_str name, struct nr_str version,
                           struct nr_version **ret, bool *ret_shadow, struct nr_err *err)
{
    const struct nr_catalog_model *m = nr_catalog_find(rd->view->catalog, name);
    *ret_shadow = false;
    if (NR_LIKELY(!m || m->n_labels == 0)) {
        return lookup_in(m, name, version, ret, err);
    }
    const struct nr_catalog_label *l = NULL;
    if (version.len > 0) {
        l = find_label(m, version);
    } else if (m->weights) {
        l = &m->labels[nr_traffic_pick(m->weights, m->n_labels, rd->turn++)];
    }
    if (version.len == 0 && m->shadow) {
        const uint32_t parts[] = {m->shadow_percent, 100 - m->shadow_percent};
        *ret_shadow = nr_traffic_pick(parts, 2, rd->shadow_turn++) == 0;
    }
    if (l) {
        nr_label_add(l->label, NR_LABEL_REQUESTS, rd->slot);
    }
    if (l && l->version) {
        *ret = l->version;
        return NARU_OK;
    }
    return lookup_in(m, name, version, ret, err); /* a share without a version: the default */
}
