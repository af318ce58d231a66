/* Resources of the rate limiter and who waits for them; the contract is in the header.
 *
 * DESIGN. Nobody is given resources for later: they are free or held by an instance that runs. When some
 * become free, those who wait are looked at in their order; whoever could run then is woken, tries
 * again, and takes them. While the woken one is on its way its units count as spoken for (plan below),
 * so nobody behind it takes them. One that finds nothing to do any more says so (leave), and the others
 * are looked at again.
 *
 * The order is that of start-time fair queueing, as in fair.h, with a run as the unit: `at` grows by the
 * priority, whoever comes after a pause begins at the present. Triton compares the number of
 * executions since the load instead, so that a model loaded later has all resources until it has caught
 * up; the shares in the long run are the same.
 *
 * No starvation: a user that does not fit closes its resources for everyone behind it. They can only
 * become free then, so it runs after a finite number of releases; and since whoever runs moves on, a
 * finite number of others get in front of it.
 *
 * INVARIANTS
 *  1. in_use of a resource is the sum over the users that hold it.
 *  2. A user is in `waiting` (sorted by at, then by arrival), holds, or neither.
 *  3. units of a resource is at least what any user asks for: everyone who waits can run once nothing
 *     else does.
 *
 * LOCKS. l->lock, then the executors'.
 */
#include "sched/limiter.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "base/list.h"
#include "base/mem.h"

#define EVERY_DEVICE (-1)

struct given { /* by the operator */
    char name[129];
    uint32_t count;
    int32_t device; /* or EVERY_DEVICE */
};

struct resource {
    struct nr_list node;
    char *name;
    int32_t device;
    uint64_t units, in_use;
    unsigned users;
    /* Of one look at those who wait (plan). */
    uint64_t look, planned;
    bool closed;
};

struct need {
    struct resource *resource;
    uint64_t count;
};

struct nr_limit_user {
    struct nr_limiter *limiter;
    struct nr_list node;      /* of all */
    struct nr_list wait_node; /* of waiting */
    bool waits, holds;
    bool woken; /* while it waits: it has been told to try */
    uint64_t at;
    uint32_t priority;
    struct nr_exec *exec;
    struct nr_runnable *runnable;
    unsigned n_needs;
    struct need needs[];
};

struct nr_limiter {
    pthread_mutex_t lock;
    struct nr_list resources, users, waiting;
    uint64_t now, looks;
    struct given *given;
    unsigned n_given;
};

static struct nr_limit_user *waiting_user(struct nr_list *node)
{
    return nr_container_of(node, struct nr_limit_user, wait_node);
}

/* --- how many units there are ------------------------------------------------------------------ */

static nr_status parse(const char *text, struct given *ret, struct nr_err *err)
{
    struct nr_str rest, more;
    struct nr_str name = nr_str_cut(nr_str_from(text), ':', &rest);
    struct nr_str count = nr_str_cut(rest, ':', &more);
    uint64_t n = 0, device = 0;
    bool ok = name.len > 0 && name.len < sizeof(ret->name) && nr_str_to_u64(count, &n) &&
              n <= UINT32_MAX &&
              (more.ptr == NULL || (nr_str_to_u64(more, &device) && device <= INT32_MAX));
    if (!ok) {
        return nr_fail(err, NARU_INVALID,
                       "--rate-limit-resource '%.200s': expected NAME:COUNT or NAME:COUNT:DEVICE",
                       text);
    }
    *ret = (struct given){.count = (uint32_t)n,
                          .device = more.ptr == NULL ? EVERY_DEVICE : (int32_t)device};
    memcpy(ret->name, name.ptr, name.len);
    return NARU_OK;
}

/* Of what the operator gave: a global resource takes the largest number, whatever device stands
 * there. *ret_named: the name is among them at all. */
static uint64_t given_units(const struct nr_limiter *l, const struct resource *r, bool *ret_named)
{
    uint64_t units = 0;
    *ret_named = false;
    for (unsigned i = 0; i < l->n_given; i++) {
        const struct given *g = &l->given[i];
        if (strcmp(g->name, r->name) == 0) {
            *ret_named = true;
            if (r->device == NR_LIMIT_GLOBAL || g->device == r->device ||
                g->device == EVERY_DEVICE) {
                units = NR_MAX(units, (uint64_t)g->count);
            }
        }
    }
    return units;
}

/* With nothing given: the largest need. */
static void count_units(struct nr_limiter *l)
{
    if (l->n_given > 0) {
        return; /* set once, when the resource was made */
    }
    NR_LIST_FOREACH (node, &l->resources) {
        nr_container_of(node, struct resource, node)->units = 0;
    }
    NR_LIST_FOREACH (node, &l->users) {
        struct nr_limit_user *u = nr_container_of(node, struct nr_limit_user, node);
        for (unsigned i = 0; i < u->n_needs; i++) {
            struct resource *r = u->needs[i].resource;
            r->units = NR_MAX(r->units, u->needs[i].count);
        }
    }
}

static void put_resource(struct resource *r)
{
    if (--r->users == 0) {
        nr_list_remove(&r->node);
        nr_free(r->name);
        nr_free(r);
    }
}

/* Counts the caller as one of its users. */
static nr_status get_resource(struct nr_limiter *l, const char *name, int32_t device,
                              struct resource **ret, struct nr_err *err)
{
    struct resource *found = NULL;
    NR_LIST_FOREACH (node, &l->resources) {
        struct resource *r = nr_container_of(node, struct resource, node);
        if (strcmp(r->name, name) != 0) {
            continue;
        }
        if ((r->device == NR_LIMIT_GLOBAL) != (device == NR_LIMIT_GLOBAL)) {
            return nr_fail(err, NARU_INVALID,
                           "rate_limiter: resource \"%s\" is global in one configuration and of a "
                           "device in another: say the same in all of them",
                           name);
        }
        found = r->device == device ? r : found;
    }
    if (found == NULL) {
        bool named;
        found = nr_new(struct resource);
        found->name = nr_strdup(name);
        found->device = device;
        found->units = given_units(l, found, &named);
        nr_list_append(&l->resources, &found->node);
    }
    found->users++;
    *ret = found;
    return NARU_OK;
}

static nr_status check_units(const struct nr_limiter *l, const struct need *need,
                             struct nr_err *err)
{
    const struct resource *r = need->resource;
    bool named;
    if (l->n_given == 0 || need->count <= r->units) {
        return NARU_OK;
    }
    (void)given_units(l, r, &named);
    char where[32] = "";
    if (r->device != NR_LIMIT_GLOBAL) {
        (void)snprintf(where, sizeof(where), " on device %d", r->device);
    }
    return nr_fail(err, NARU_INVALID,
                   "rate_limiter: an instance needs %llu of resource \"%s\"%s, and there are %llu "
                   "(--rate-limit-resource%s): it could never run",
                   (unsigned long long)need->count, r->name, where, (unsigned long long)r->units,
                   named ? "" : " does not name it");
}

/* --- who is next; under the lock ------------------------------------------------------------------ */

/* Whether u could run once those before it, seen earlier in this look, have what they want. Takes
 * its part of the plan, or closes its resources for those behind. */
static bool plan(struct nr_limit_user *u, uint64_t look)
{
    bool fits = true;
    for (unsigned i = 0; i < u->n_needs; i++) {
        struct resource *r = u->needs[i].resource;
        if (r->look != look) {
            r->look = look;
            r->planned = 0;
            r->closed = false;
        }
        fits = fits && !r->closed && r->in_use + r->planned + u->needs[i].count <= r->units;
    }
    for (unsigned i = 0; i < u->n_needs; i++) {
        if (fits) {
            u->needs[i].resource->planned += u->needs[i].count;
        } else {
            u->needs[i].resource->closed = true;
        }
    }
    return fits;
}

/* Wakes everyone who could run now. */
static void look(struct nr_limiter *l)
{
    uint64_t this_look = ++l->looks;
    NR_LIST_FOREACH (node, &l->waiting) {
        struct nr_limit_user *u = waiting_user(node);
        bool fits = plan(u, this_look);
        if (fits && !u->woken) {
            nr_exec_wake(u->exec, u->runnable);
        }
        u->woken = fits;
    }
}

/* Behind all that stand at the same point or before. */
static void wait_in_order(struct nr_limiter *l, struct nr_limit_user *u)
{
    struct nr_list *at = &l->waiting;
    u->at = NR_MAX(u->at, l->now);
    while (at->prev != &l->waiting && waiting_user(at->prev)->at > u->at) {
        at = at->prev;
    }
    nr_list_insert_before(at, &u->wait_node);
    u->waits = true;
    u->woken = false;
}

static void stop_waiting(struct nr_limit_user *u)
{
    nr_list_remove(&u->wait_node);
    u->waits = false;
    u->woken = false;
}

bool nr_limiter_try(struct nr_limit_user *u)
{
    struct nr_limiter *l = u->limiter;
    pthread_mutex_lock(&l->lock);
    NR_ASSERT(!u->holds);
    if (!u->waits) {
        wait_in_order(l, u);
    }
    uint64_t this_look = ++l->looks;
    bool fits = false;
    NR_LIST_FOREACH (node, &l->waiting) {
        fits = plan(waiting_user(node), this_look);
        if (waiting_user(node) == u) {
            break;
        }
    }
    if (fits) {
        stop_waiting(u);
        u->holds = true;
        l->now = NR_MAX(l->now, u->at);
        u->at += u->priority;
        for (unsigned i = 0; i < u->n_needs; i++) {
            u->needs[i].resource->in_use += u->needs[i].count;
        }
    } else {
        u->woken = false; /* it has just seen that it cannot: to be told again */
    }
    pthread_mutex_unlock(&l->lock);
    return fits;
}

void nr_limiter_leave(struct nr_limit_user *u)
{
    struct nr_limiter *l = u->limiter;
    pthread_mutex_lock(&l->lock);
    if (u->waits) {
        stop_waiting(u);
        look(l);
    }
    pthread_mutex_unlock(&l->lock);
}

void nr_limiter_release(struct nr_limit_user *u)
{
    struct nr_limiter *l = u->limiter;
    pthread_mutex_lock(&l->lock);
    NR_ASSERT(u->holds);
    u->holds = false;
    for (unsigned i = 0; i < u->n_needs; i++) {
        u->needs[i].resource->in_use -= u->needs[i].count;
    }
    look(l);
    pthread_mutex_unlock(&l->lock);
}

/* --- life -------------------------------------------------------------------------------------- */

nr_status nr_limiter_new(const char *const *given, unsigned n, struct nr_limiter **ret,
                         struct nr_err *err)
{
    struct nr_limiter *l = nr_new(struct nr_limiter);
    pthread_mutex_init(&l->lock, NULL);
    nr_list_init(&l->resources);
    nr_list_init(&l->users);
    nr_list_init(&l->waiting);
    l->given = nr_new_array(struct given, NR_MAX(n, 1u));
    for (; l->n_given < n; l->n_given++) {
        nr_status st = parse(given[l->n_given], &l->given[l->n_given], err);
        if (st != NARU_OK) {
            nr_limiter_free(l);
            return st;
        }
    }
    *ret = l;
    return NARU_OK;
}

void nr_limiter_free(struct nr_limiter *l)
{
    if (l == NULL) {
        return;
    }
    NR_ASSERT(nr_list_empty(&l->users) && nr_list_empty(&l->resources));
    pthread_mutex_destroy(&l->lock);
    nr_free(l->given);
    nr_free(l);
}

/* Under the lock: without it again, whatever it had. */
static void forget(struct nr_limit_user *u)
{
    for (unsigned i = 0; i < u->n_needs; i++) {
        put_resource(u->needs[i].resource);
    }
    nr_free(u);
}

nr_status nr_limiter_add(struct nr_limiter *l, const struct nr_instance_group *group,
                         int32_t device, struct nr_exec *exec, struct nr_runnable *r,
                         struct nr_limit_user **ret, struct nr_err *err)
{
    nr_status st = NARU_OK;
    struct nr_limit_user *u =
        nr_alloc(sizeof(*u) + NR_MAX(group->n_resources, 1u) * sizeof(u->needs[0]));
    *u = (struct nr_limit_user){
        .limiter = l, .priority = NR_MAX(group->priority, 1u), .exec = exec, .runnable = r};
    pthread_mutex_lock(&l->lock);
    for (unsigned i = 0; i < group->n_resources && st == NARU_OK; i++) {
        const struct nr_instance_resource *from = &group->resources[i];
        int32_t where = from->global ? NR_LIMIT_GLOBAL : NR_MAX(device, 0);
        struct need *need = &u->needs[u->n_needs];
        if (from->count == 0) {
            continue;
        }
        st = get_resource(l, from->name, where, &need->resource, err);
        if (st == NARU_OK) {
            need->count = from->count;
            u->n_needs++;
            st = check_units(l, need, err);
        }
    }
    if (st == NARU_OK && u->n_needs > 0) {
        u->at = l->now;
        nr_list_append(&l->users, &u->node);
        count_units(l);
        look(l); /* there may be more units now */
        *ret = u;
    } else {
        *ret = NULL;
        forget(u);
    }
    pthread_mutex_unlock(&l->lock);
    return st;
}

void nr_limiter_remove(struct nr_limit_user *u)
{
    if (u == NULL) {
        return;
    }
    struct nr_limiter *l = u->limiter;
    pthread_mutex_lock(&l->lock);
    NR_ASSERT(!u->holds);
    if (u->waits) {
        stop_waiting(u);
    }
    nr_list_remove(&u->node);
    forget(u);
    count_units(l);
    look(l);
    pthread_mutex_unlock(&l->lock);
}

void nr_limiter_read(struct nr_limiter *l,
                     void (*each)(void *arg, const struct nr_limit_state *state), void *arg)
{
    pthread_mutex_lock(&l->lock);
    NR_LIST_FOREACH (node, &l->resources) {
        const struct resource *r = nr_container_of(node, struct resource, node);
        struct nr_limit_state s = {
            .name = r->name, .device = r->device, .units = r->units, .in_use = r->in_use};
        NR_LIST_FOREACH (at, &l->waiting) {
            const struct nr_limit_user *u = waiting_user(at);
            for (unsigned i = 0; i < u->n_needs; i++) {
                s.waiting += u->needs[i].resource == r;
            }
        }
        each(arg, &s);
    }
    pthread_mutex_unlock(&l->lock);
}
