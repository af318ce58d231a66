/* Which ensembles a snapshot can run, and with which versions of their members.
 *
 * DESIGN. An ensemble has nothing of its own to open, so it is opened like any version and at any
 * time; whether it is READY is found out for each snapshot. Ensembles are settled in rounds, those of
 * models first, then those of such ensembles; what is left when a round settles nothing contains
 * itself, or needs one that does. So a circle needs no search on the way, only in the text of the
 * refusal. A round is a few string comparisons for each tensor; changes come once in minutes.
 *
 * INVARIANTS
 *  1. An entry whose state is READY and whose version is NULL is an ensemble that is not settled.
 *  2. Members that an entry points to are READY in the same snapshot.
 *
 * Threads: under the repository's lock, on a snapshot that nobody else sees yet.
 */
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "model/ensemble.h"
#include "model/repository_priv.h"

struct candidate {
    struct nr_version *v;
    struct nr_catalog_version *entry;
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
    x->entry->reason = nr_arena_strz(&c->arena, nr_str_from(reason));
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

/* The members of x, when they are all there and fit. NULL: x is blocked, or not known in this round. */
static struct nr_member *fitting(struct nr_catalog *c, struct candidate *x)
{
    const struct nr_ensemble *e = x->v->config->ensemble;
    struct nr_member *members = nr_arena_zalloc(&c->arena, e->n_steps * sizeof *members);
    struct nr_err err = {0};
    x->entry->depth = 1;
    if (!find_members(c, x, members) || x->settled) {
        return NULL;
    }
    if (x->entry->depth > NR_ENSEMBLE_MAX_DEPTH) {
        (void)nr_fail(&err, NARU_INVALID, "ensembles are nested %u deep, at most %d are allowed",
                      x->entry->depth, NR_ENSEMBLE_MAX_DEPTH);
        block(c, x, NR_VERSION_UNAVAILABLE, err.text);
        return NULL;
    }
    if (nr_ensemble_bind(x->v->config, &c->arena, members, &err) != NARU_OK) {
        block(c, x, NR_VERSION_UNAVAILABLE, err.text);
        return NULL;
    }
    return members;
}

static void settle(struct nr_catalog *c, struct candidate *x)
{
    struct nr_member *members = fitting(c, x);
    if (members) {
        x->entry->members = members;
        x->entry->version = nr_version_ref(x->v);
        x->settled = true;
    }
}

/* Whether a version of model `name` is among what e's members run, at any depth. Each version is looked
 * at once. */
static bool runs_model(const struct nr_catalog *c, const struct nr_ensemble *e,
                       const struct nr_member *members, const char *name)
{
    nr_autofree bool *seen = nr_new_array(bool, c->n_index + 1);
    nr_autofree const struct nr_version **queue =
        nr_new_array(const struct nr_version *, c->n_index + 1);
    uint32_t n = 0, at = 0;
    for (;;) {
        for (uint32_t i = 0; i < e->n_steps; i++) {
            const struct nr_version *v = members[i].version;
            if (v && strcmp(v->name, name) == 0) {
                return true;
            }
            if (v && v->config->ensemble && !seen[v->index]) {
                seen[v->index] = true;
                queue[n++] = v;
            }
        }
        if (at == n) {
            return false;
        }
        const struct nr_version *v = queue[at++];
        e = v->config->ensemble;
        members = nr_catalog_version(c, nr_str_from(v->name), v->number)->members;
    }
}

nr_status nr_catalog_try(const struct nr_catalog *c, struct nr_version *v, struct nr_err *err)
{
    struct nr_catalog_version entry = {.number = v->number, .state = NR_VERSION_READY};
    struct candidate x = {.v = v, .entry = &entry};
    struct nr_catalog with = {.n_models = c->n_models,
                              .n_index = c->n_index,
                              .models = c->models,
                              .by_name = c->by_name}; /* with memory of its own */
    nr_status st = NARU_OK;
    nr_arena_init(&with.arena, 0);
    const struct nr_member *members = fitting(&with, &x);
    if (!members) {
        st = nr_fail(err, NARU_PRECONDITION, "%s",
                     entry.reason ? entry.reason : "a model that it needs is being loaded");
    } else if (runs_model(c, v->config->ensemble, members, v->name)) {
        st = nr_fail(err, NARU_INVALID, "it contains itself");
    }
    nr_arena_done(&with.arena);
    return st;
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
            return nr_arena_strz(&c->arena, nr_str_from(storage));
        }
    }
    nr_text_init_at(&t, storage, sizeof storage);
    nr_text_fmt(&t, "it needs model \"%s\", which contains itself", at ? at->v->name : "?");
    return nr_arena_strz(&c->arena, nr_str_from(storage));
}

/* The entries are the snapshot's own, not published yet: they may be written to. */
static struct nr_catalog_version *entry_of(const struct nr_catalog *c, uint32_t i, uint32_t k)
{
    return (struct nr_catalog_version *)(uintptr_t)&c->models[i].versions[k];
}

void nr_catalog_settle(struct nr_catalog *c)
{
    size_t n = 0, before, left, max = 0;
    for (uint32_t i = 0; i < c->n_models; i++) {
        for (uint32_t k = 0; k < c->models[i].n_versions; k++) {
            max += !is_settled(&c->models[i].versions[k]);
        }
    }
    if (max == 0) {
        return;
    }
    nr_autofree struct candidate *all = nr_new_array(struct candidate, max);
    for (uint32_t i = 0; i < c->n_models; i++) {
        for (uint32_t k = 0; k < c->models[i].n_versions; k++) {
            struct nr_catalog_version *entry = entry_of(c, i, k);
            if (!is_settled(entry)) {
                all[n++] = (struct candidate){.v = entry->open, .entry = entry};
            }
        }
    }
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

/* The graph of the newest version that is an open ensemble without its members; NULL: none is. */
static const struct nr_ensemble *blocked_ensemble(const struct nr_catalog_model *m)
{
    for (uint32_t i = m->n_versions; i > 0; i--) {
        const struct nr_catalog_version *v = &m->versions[i - 1];
        if (v->open && !v->version) {
            return v->open->config->ensemble;
        }
    }
    return NULL;
}

const struct nr_catalog_model *nr_catalog_missing(const struct nr_catalog *c,
                                                  const struct nr_catalog_model *m)
{
    const struct nr_ensemble *e;
    for (unsigned depth = 0; depth <= NR_ENSEMBLE_MAX_DEPTH; depth++) {
        const struct nr_catalog_model *next = NULL;
        e = blocked_ensemble(m);
        if (!e) {
            return m;
        }
        for (uint32_t i = 0; i < e->n_steps && !next; i++) {
            const struct nr_catalog_model *member =
                e->steps[i].kind ? NULL : nr_catalog_find(c, nr_str_from(e->steps[i].model));
            next = member && !member->best ? member : NULL;
        }
        if (!next) {
            return NULL;
        }
        m = next;
    }
    return NULL; /* it contains itself */
}
