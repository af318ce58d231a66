/* More models than memory: loaded when asked for, closed when others need the room.
 *
 * DESIGN. With a budget (cfg.budget_bytes) nothing is loaded at the start but pinned models. A request
 * for a cold model waits here (a bounded room); one thread serves the demands in order of arrival, so
 * a large model is not overtaken for ever by small ones. To make room it closes the READY model
 * that was used longest ago, of those that are idle, not pinned, and resident for min_resident_ns at
 * least: a set of models that is wanted and does not fit cannot chase itself in and out faster than
 * that, which bounds the rate of loads. When nothing can go, the demand waits until something can or
 * its patience ends.
 *
 * An ensemble needs all its members at once and asks for one after the other. Each request has a
 * ticket, the time at which it first asked: demands are served in that order, and what was loaded for a
 * request is not closed for a later one before it was used. So two ensembles that do not fit together
 * take turns, the older request first, instead of closing each other's members for ever.
 *
 * What a version takes is what its plug-in says (nr_version.memory_bytes), or 1 MiB when it does not. Before a model's first load
 * it is guessed: the mean of those that were loaded. Versions that are closing count until they are
 * closed, so the budget holds while old requests drain, too. One model larger than the budget is
 * loaded when it is alone.
 *
 * When it was used last is written by request code at most ten times a second (nr_version_used), so
 * no shared cache line is written per request.
 *
 * Threads: the demand thread; everything under the repository's lock but loads and callbacks.
 */
#include <signal.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "model/repository_priv.h"

#define UNKNOWN_BYTES ((uint64_t)1 << 20) /* of a version whose plug-in does not say */
#define KEPT_NS NR_S_NS                   /* see is_kept */
#define LOOK_NS (20 * NR_MS_NS) /* while waiting for room: models become idle without telling */

/* --- what there is, under the lock -------------------------------------------------------------- */

static nr_version_state best_state(const struct nr_model *m)
{
    nr_version_state best = NR_VERSION_UNAVAILABLE;
    for (size_t i = 0; i < m->n_slots; i++) {
        nr_version_state s = nr_version_state_of(&m->slots[i]->v);
        if (s == NR_VERSION_READY) {
            return s;
        }
        bool gone = s == NR_VERSION_UNAVAILABLE && strcmp(m->slots[i]->v.reason, "unloaded") != 0;
        best = gone ? best : NR_VERSION_UNKNOWN;
    }
    return best;
}

static uint64_t bytes_of(const struct nr_version *v)
{
    if (v->config && v->config->ensemble) {
        return 0; /* nothing by itself */
    }
    return v->memory_bytes > 0 ? v->memory_bytes : UNKNOWN_BYTES;
}

/* Memory of every open version, and how many there are. */
static uint64_t used_bytes(const struct nr_repository *r, uint64_t *ret_n)
{
    uint64_t sum = r->closing_bytes;
    *ret_n = 0;
    for (size_t i = 0; i < r->n_models; i++) {
        const struct nr_model *m = r->models[i];
        for (size_t k = 0; k < m->n_slots; k++) {
            if (nr_version_state_of(&m->slots[k]->v) == NR_VERSION_READY) {
                sum += bytes_of(&m->slots[k]->v);
                (*ret_n)++;
            }
        }
        sum += m->demanded == NR_DEMAND_LOADING ? m->expect_bytes : 0;
    }
    return sum;
}

static uint64_t expect_bytes(const struct nr_model *m, uint64_t used, uint64_t n)
{
    return m->expect_bytes > 0 ? m->expect_bytes : n > 0 ? used / n : 0;
}

/* True while those for whom m was loaded, and nobody has used it since, may still wait for another
 * model: for a moment they are on their way here, afterwards they are waiters of one. */
static bool is_kept(const struct nr_repository *r, const struct nr_model *m, int64_t ready_ns,
                    int64_t now_ns)
{
    if (now_ns - ready_ns < KEPT_NS) {
        return true;
    }
    for (size_t i = 0; i < r->n_models; i++) {
        const struct nr_model *other = r->models[i];
        if (other->demanded != NR_DEMAND_NONE && other->first_ticket <= m->kept_last &&
            other->last_ticket >= m->kept_first) {
            return true;
        }
    }
    return false;
}

/* Whether all of the model may be closed now for a request of this ticket; *ret_used_ns: when it was
 * used last. */
static bool may_go(const struct nr_repository *r, const struct nr_model *m, int64_t ticket,
                   int64_t now_ns, int64_t *ret_used_ns)
{
    bool any = false, used = false;
    int64_t ready_ns = 0;
    *ret_used_ns = 0;
    if (m->pinned || m->change || m->active || m->demanded != NR_DEMAND_NONE) {
        return false;
    }
    for (size_t i = 0; i < m->n_slots; i++) {
        struct nr_version *v = &m->slots[i]->v;
        if (nr_version_state_of(v) != NR_VERSION_READY) {
            continue;
        }
        if (now_ns - m->slots[i]->ready_ns < r->cfg.min_resident_ns ||
            (r->cfg.ops.is_busy && r->cfg.ops.is_busy(r->cfg.ops_ctx, v))) {
            return false;
        }
        any = true;
        int64_t used_ns = atomic_load_explicit(&v->used_ns, memory_order_relaxed);
        used |= used_ns >= m->slots[i]->ready_ns;
        ready_ns = NR_MAX(ready_ns, m->slots[i]->ready_ns);
        *ret_used_ns = NR_MAX(*ret_used_ns, used_ns);
    }
    bool for_older = m->kept_first != 0 && m->kept_first <= ticket && !used;
    return any && !(for_older && is_kept(r, m, ready_ns, now_ns));
}

static struct nr_model *least_recent(const struct nr_repository *r, int64_t ticket, int64_t now_ns)
{
    struct nr_model *found = NULL;
    int64_t oldest_ns = INT64_MAX;
    for (size_t i = 0; i < r->n_models; i++) {
        int64_t used_ns;
        if (may_go(r, r->models[i], ticket, now_ns, &used_ns) && used_ns < oldest_ns) {
            oldest_ns = used_ns;
            found = r->models[i];
        }
    }
    return found;
}

/* --- demands ------------------------------------------------------------------------------------ */

/* Under the lock: takes the model's waiters off. */
static void take_waiters(struct nr_repository *r, struct nr_model *m, struct nr_list *ret)
{
    nr_list_init(ret);
    r->n_waiters -= m->n_waiters;
    m->n_waiters = 0;
    m->demanded = NR_DEMAND_NONE;
    nr_list_splice(ret, &m->waiters);
}

static void answer(struct nr_list *waiters, const struct nr_err *err)
{
    struct nr_list *node;
    while ((node = nr_list_pop(waiters)) != NULL) {
        struct nr_waiter *w = nr_container_of(node, struct nr_waiter, node);
        w->err = *err;
        w->done(w);
    }
}

static void on_loaded(struct nr_op *op)
{
    struct nr_model *m = nr_container_of(op, struct nr_model, demand_op);
    struct nr_repository *r = op->repository;
    struct nr_list waiters;
    struct nr_err err = op->err;
    nr_repository_lock(r);
    m->expect_bytes = 0;
    for (size_t i = 0; i < m->n_slots; i++) {
        m->expect_bytes += bytes_of(&m->slots[i]->v);
    }
    r->n_demand_loads++;
    m->kept_first = m->first_ticket;
    m->kept_last = m->last_ticket;
    take_waiters(r, m, &waiters);
    (void)pthread_cond_broadcast(&r->rest);
    nr_repository_unlock(r);
    answer(&waiters, &err);
}

/* Under the lock: the model's place among the demands, by its oldest waiter. */
static void sort_in(struct nr_repository *r, struct nr_model *m)
{
    nr_list_remove(&m->demand_node);
    struct nr_list *at = r->demands.next;
    while (at != &r->demands &&
           nr_container_of(at, struct nr_model, demand_node)->first_ticket <= m->first_ticket) {
        at = at->next;
    }
    nr_list_insert_before(at, &m->demand_node);
}

nr_demand nr_repository_demand(struct nr_repository *r, struct nr_str name, struct nr_waiter *w)
{
    nr_demand ret = NR_DEMAND_LEAVE;
    nr_repository_lock(r);
    struct nr_model *m = nr_map_get(&r->by_name, name);
    if (m && m->shown && !r->stopping && best_state(m) == NR_VERSION_UNKNOWN) {
        ret = r->n_waiters < r->cfg.max_waiters ? NR_DEMAND_WAITS : NR_DEMAND_FULL;
    }
    if (ret == NR_DEMAND_WAITS) {
        int64_t now_ns = nr_clock_now();
        w->ticket = w->ticket != 0 ? w->ticket : now_ns;
        bool is_first = m->n_waiters == 0;
        m->first_ticket = is_first ? w->ticket : NR_MIN(m->first_ticket, w->ticket);
        m->last_ticket = is_first ? w->ticket : NR_MAX(m->last_ticket, w->ticket);
        nr_list_append(&m->waiters, &w->node);
        m->n_waiters++;
        r->n_waiters++;
        if (m->demanded == NR_DEMAND_NONE) {
            m->demanded = NR_DEMAND_QUEUED;
            m->demand_ns = now_ns;
            (void)pthread_cond_broadcast(&r->rest);
        }
        if (m->demanded == NR_DEMAND_QUEUED) {
            sort_in(r, m);
        }
    }
    nr_repository_unlock(r);
    return ret;
}

/* --- the thread --------------------------------------------------------------------------------- */

/* Under the lock, which it gives up for a moment: one model closes. */
static void evict(struct nr_repository *r, struct nr_model *m)
{
    r->n_evictions++;
    nr_repository_unlock(r);
    NR_ASSERT(nr_repository_unload(r, m->name, NULL) == NARU_OK);
    nr_repository_lock(r);
}

/* Under the lock: makes room for the first demand. True: it was taken off. */
static bool serve_first(struct nr_repository *r, int64_t now_ns)
{
    struct nr_model *m = nr_container_of(r->demands.next, struct nr_model, demand_node);
    uint64_t n, used = used_bytes(r, &n), expect = expect_bytes(m, used, n);
    bool fits = used + expect <= r->cfg.budget_bytes || used == 0;
    if (fits && !m->change && !m->active) {
        nr_list_remove(&m->demand_node);
        m->demanded = NR_DEMAND_LOADING;
        m->expect_bytes = expect;
        m->demand_op = (struct nr_op){.kind = NR_OP_LOAD, .done = on_loaded};
        nr_repository_unlock(r);
        nr_repository_demand_load(r, m);
        nr_repository_lock(r);
        return true;
    }
    struct nr_model *old =
        fits || r->closing_bytes > 0 ? NULL : least_recent(r, m->first_ticket, now_ns);
    if (old) {
        evict(r, old);
        return false;
    }
    if (now_ns - m->demand_ns > r->cfg.demand_patience_ns) {
        struct nr_list waiters;
        struct nr_err err;
        (void)nr_fail(&err, NARU_UNAVAILABLE,
                      "model \"%s\" is not loaded, and the models that are loaded use all of "
                      "--model-memory-budget and are busy or new; try again later",
                      m->name);
        nr_list_remove(&m->demand_node);
        take_waiters(r, m, &waiters);
        nr_repository_unlock(r);
        answer(&waiters, &err);
        nr_repository_lock(r);
        return true;
    }
    return false;
}

static void cancel_all(struct nr_repository *r)
{
    struct nr_err err;
    (void)nr_fail(&err, NARU_UNAVAILABLE, "the server ends");
    while (!nr_list_empty(&r->demands)) {
        struct nr_list waiters;
        struct nr_model *m = nr_container_of(r->demands.next, struct nr_model, demand_node);
        nr_list_remove(&m->demand_node);
        take_waiters(r, m, &waiters);
        nr_repository_unlock(r);
        answer(&waiters, &err);
        nr_repository_lock(r);
    }
}

static void *demand_main(void *arg)
{
    struct nr_repository *r = arg;
    (void)pthread_setname_np(pthread_self(), "naru-demand");
    nr_repository_lock(r);
    while (!r->stopping) {
        if (nr_list_empty(&r->demands)) {
            (void)pthread_cond_wait(&r->rest, &r->lock);
        } else if (!serve_first(r, nr_clock_now())) {
            int64_t until_ns = nr_clock_now() + LOOK_NS;
            struct timespec ts = {.tv_sec = until_ns / NR_S_NS, .tv_nsec = until_ns % NR_S_NS};
            (void)pthread_cond_timedwait(&r->rest, &r->lock, &ts);
        }
    }
    cancel_all(r);
    nr_repository_unlock(r);
    nr_arena_thread_done();
    return NULL;
}

void nr_repository_demand_start(struct nr_repository *r)
{
    /* Signals are for the main thread; the mask is inherited. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    r->demands_run = pthread_create(&r->demander, NULL, demand_main, r) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

void nr_repository_demand_stop(struct nr_repository *r)
{
    if (r->demands_run) {
        (void)pthread_join(r->demander, NULL);
        r->demands_run = false;
    }
}

void nr_repository_residency(struct nr_repository *r, struct nr_residency *ret)
{
    uint64_t n;
    nr_repository_lock(r);
    *ret = (struct nr_residency){.budget_bytes = r->cfg.budget_bytes,
                                 .used_bytes = used_bytes(r, &n),
                                 .waiters = r->n_waiters,
                                 .loads = r->n_demand_loads,
                                 .evictions = r->n_evictions};
    nr_repository_unlock(r);
}
