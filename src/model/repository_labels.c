/* Labels of versions: changing them, and what the configuration says of them.
 *
 * DESIGN. A model's labels are one value (struct nr_traffic); a change is made on a copy, checked as a
 * whole, and put in place together with a new snapshot. An operator's labels outlive reloads; those
 * of the configuration are taken when the configuration says something new, not each time it is
 * read, or a reload would undo what an operator moved.
 *
 * INVARIANT. A name in traffic, before or configured is that of an nr_label of the model, which is never
 * freed before the model.
 *
 * Threads: any; everything under the repository's lock.
 */
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "model/repository_priv.h"

struct nr_label *nr_model_label(struct nr_model *m, struct nr_str name)
{
    for (uint32_t i = 0; i < m->n_labels; i++) {
        if (nr_str_is(name, m->labels[i]->name)) {
            return m->labels[i];
        }
    }
    return NULL;
}

void nr_model_free_labels(struct nr_model *m)
{
    for (uint32_t i = 0; i < m->n_labels; i++) {
        nr_free(m->labels[i]);
    }
}

/* The label of that name, made when it is new; NULL: there were too many names. */
static struct nr_label *label_of(struct nr_model *m, struct nr_str name)
{
    struct nr_label *l = nr_model_label(m, name);
    if (l || m->n_labels == NR_TRAFFIC_MAX_LABELS) {
        return l;
    }
    l = nr_try_alloc_aligned(64, sizeof *l);
    if (l) {
        memset(l, 0, sizeof *l);
        (void)snprintf(l->name, sizeof l->name, NR_STR_FMT, NR_STR_ARG(name));
        m->labels[m->n_labels++] = l;
    }
    return l;
}

/* Names that outlive `t`'s own. False: too many. */
static bool own_names(struct nr_model *m, struct nr_traffic *t)
{
    for (uint32_t i = 0; i < t->n; i++) {
        struct nr_label *l = label_of(m, nr_str_from(t->rules[i].name));
        if (!l) {
            return false;
        }
        t->rules[i].name = l->name;
    }
    return true;
}

static void put(struct nr_model *m, const struct nr_traffic *t)
{
    m->before = m->traffic;
    m->has_before = true;
    m->traffic = *t;
}

void nr_model_take_labels(struct nr_model *m, const struct nr_traffic *t)
{
    struct nr_traffic own = *t;
    if (!nr_traffic_same(&m->configured, &own) && own_names(m, &own)) {
        m->configured = own;
        put(m, &own);
    }
}

/* Under the lock. */
static struct nr_model *find(struct nr_repository *r, struct nr_str name, struct nr_err *err)
{
    struct nr_model *m = nr_map_get(&r->by_name, name);
    if (!m || !m->shown) {
        (void)nr_fail(err, NARU_NOT_FOUND, "unknown model \"%.*s\"",
                      (int)NR_MIN(name.len, (size_t)128), name.ptr);
        return NULL;
    }
    return m;
}

static bool is_ready(const struct nr_model *m, int64_t version)
{
    for (size_t i = 0; i < m->n_slots; i++) {
        if (m->slots[i]->v.number == version) {
            return nr_version_state_of(&m->slots[i]->v) == NR_VERSION_READY;
        }
    }
    return false;
}

static nr_status move(const struct nr_model *m, struct nr_traffic *t, const struct nr_label_edit *e,
                      const char *name, struct nr_err *err)
{
    struct nr_traffic_rule *rule = nr_traffic_find(t, e->label);
    if (!is_ready(m, e->version)) {
        return nr_fail(err, NARU_NOT_FOUND,
                       "label \"%s\": version %lld of model \"%s\" is not ready, so nothing would "
                       "answer its requests",
                       name, (long long)e->version, m->name);
    }
    if (!rule && t->n == NR_TRAFFIC_MAX_LABELS) {
        return nr_fail(err, NARU_INVALID, "a model has %d labels at most", NR_TRAFFIC_MAX_LABELS);
    }
    if (!rule) {
        rule = &t->rules[t->n++];
        *rule = (struct nr_traffic_rule){.name = name};
    }
    rule->version = e->version;
    return NARU_OK;
}

static nr_status edit(struct nr_model *m, struct nr_traffic *t, const struct nr_label_edit *e,
                      struct nr_err *err)
{
    if (!nr_label_valid(e->label)) {
        return nr_fail(err, NARU_INVALID,
                       "\"%.*s\" cannot be a label: it begins with a letter and has letters, "
                       "digits, '.', '_' and '-' only, 64 at most",
                       (int)NR_MIN(e->label.len, (size_t)100), e->label.ptr);
    }
    struct nr_traffic_rule *rule = nr_traffic_find(t, e->label);
    if (e->what == NR_LABEL_MOVE) {
        struct nr_label *l = label_of(m, e->label);
        return l ? move(m, t, e, l->name, err)
                 : nr_fail(err, NARU_INVALID, "a model has had %d names of labels at most",
                           NR_TRAFFIC_MAX_LABELS);
    }
    if (!rule) {
        return nr_fail(err, NARU_NOT_FOUND, "model \"%s\" has no label \"" NR_STR_FMT "\"", m->name,
                       NR_STR_ARG(e->label));
    }
    if (e->what == NR_LABEL_REMOVE) {
        *rule = t->rules[--t->n];
    } else if (e->what == NR_LABEL_SHADOW && e->weight > 100) {
        return nr_fail(err, NARU_INVALID, "a shadow has from 0 to 100 percent");
    } else if (e->what == NR_LABEL_SHADOW) {
        rule->shadow = e->weight;
    } else if (e->weight > NR_TRAFFIC_MAX_WEIGHT) {
        return nr_fail(err, NARU_INVALID, "a weight is from 0 to %d", NR_TRAFFIC_MAX_WEIGHT);
    } else {
        rule->weight = e->weight;
    }
    return NARU_OK;
}

/* Unlocks, with a new snapshot when st is NARU_OK. */
static nr_status finish(struct nr_repository *r, nr_status st)
{
    struct nr_catalog *old = st == NARU_OK ? nr_repository_publish(r) : NULL;
    nr_repository_unlock(r);
    if (st == NARU_OK) {
        nr_repository_published(r, old);
    }
    return st;
}

static bool gives_weights(const struct nr_label_edit *edits, size_t n)
{
    bool any = false;
    for (size_t i = 0; i < n; i++) {
        any = any || edits[i].what == NR_LABEL_WEIGHT;
    }
    return any;
}

nr_status nr_repository_labels_edit(struct nr_repository *r, struct nr_str model,
                                    const struct nr_label_edit *edits, size_t n, bool clear_weights,
                                    bool clear_shadow, struct nr_err *err)
{
    nr_repository_lock(r);
    struct nr_model *m = find(r, model, err);
    nr_status st = m ? NARU_OK : NARU_NOT_FOUND;
    struct nr_traffic t = m ? m->traffic : (struct nr_traffic){0};
    for (uint32_t i = 0; i < t.n; i++) {
        t.rules[i].weight = clear_weights ? 0 : t.rules[i].weight;
        t.rules[i].shadow = clear_shadow ? 0 : t.rules[i].shadow;
    }
    for (size_t i = 0; i < n && st == NARU_OK; i++) {
        st = edit(m, &t, &edits[i], err);
    }
    st = st == NARU_OK ? nr_traffic_check(&t, err) : st;
    if (st == NARU_OK && gives_weights(edits, n)) {
        uint64_t sum = 0;
        for (uint32_t i = 0; i < t.n; i++) {
            sum += t.rules[i].weight;
        }
        st = nr_traffic_check_sum(sum, err);
    }
    if (st == NARU_OK) {
        put(m, &t);
    }
    return finish(r, st);
}

nr_status nr_repository_labels_rollback(struct nr_repository *r, struct nr_str model,
                                        struct nr_err *err)
{
    nr_repository_lock(r);
    struct nr_model *m = find(r, model, err);
    nr_status st = m ? NARU_OK : NARU_NOT_FOUND;
    if (m && !m->has_before) {
        st = nr_fail(err, NARU_PRECONDITION,
                     "the labels of model \"%s\" have not changed: there is nothing to go back to",
                     m->name);
    }
    if (st == NARU_OK) {
        struct nr_traffic before = m->before;
        put(m, &before);
    }
    return finish(r, st);
}

bool nr_repository_labels_moved(struct nr_repository *r, struct nr_str model,
                                struct nr_traffic *ret)
{
    struct nr_err err = {0};
    nr_repository_lock(r);
    const struct nr_model *m = find(r, model, &err);
    bool moved = m && !nr_traffic_same(&m->traffic, &m->configured);
    *ret = m ? m->traffic : (struct nr_traffic){0};
    nr_repository_unlock(r);
    return moved;
}

nr_status nr_repository_labels_get(struct nr_repository *r, struct nr_str model,
                                   struct nr_traffic *ret,
                                   struct nr_label_counts counts[NR_TRAFFIC_MAX_LABELS],
                                   struct nr_err *err)
{
    nr_repository_lock(r);
    struct nr_model *m = find(r, model, err);
    *ret = m ? m->traffic : (struct nr_traffic){0};
    for (uint32_t i = 0; i < ret->n; i++) {
        const struct nr_label *l = nr_model_label(m, nr_str_from(ret->rules[i].name));
        for (int k = 0; k < NR_LABEL_EVENTS; k++) {
            counts[i].events[k] = nr_label_count(l, (nr_label_event)k);
        }
    }
    nr_repository_unlock(r);
    return m ? NARU_OK : NARU_NOT_FOUND;
}
