/* The watchdog: one thread that looks at the lanes of all versions.
 *
 * DESIGN. A run says nothing to anybody when it begins or ends but by a store into its own lane, so
 * watching costs a run nothing. The thread sleeps until the first moment at which a run that is under
 * way now could be too long, or one that begins now (a limit from now), and looks again every
 * LOOK_STUCK_NS while something is stuck. An idle server is looked at once in a limit.
 *
 * What a change sets off (the queue is refused, a new snapshot without the version, a line in the log)
 * is done without the lock; the watch is marked as in use meanwhile, and nr_runwatch_free waits for it.
 *
 * INVARIANTS
 *  1. lane.stuck and watch.counters are the thread's (or that of the one who calls nr_watchdog_look).
 *  2. d->lock is held by nobody who takes another lock but to read clocks; a watch with `used` set is
 *     not freed.
 *
 * THREADS. d->lock guards the list of watches, their round and `used`, and stopping.
 */
#include "sched/watchdog.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/mem.h"
#include "model/repository.h"
#include "sched/counters.h"
#include "sched/exec.h"
#include "sched/sched.h"

#define LOOK_STUCK_NS (100 * NR_MS_NS)
#define TIMES_P999 20
/* One run that was stuck and came back is the percentile of the few that a model may have had: it must
 * not make the watchdog blind. */
#define MOST_TIMES_LIMIT 10

struct nr_runwatch {
    struct nr_watchdog *dog;
    struct nr_version *version;
    const struct nr_counters *counters;
    int64_t limit_ns;
    bool exact;
    struct nr_list lanes;
    struct nr_list node; /* of d->watches, when started */
    uint64_t round;      /* in which it was looked at last */
    bool used;           /* the watchdog is at it, without the lock */
    _Atomic unsigned n_stuck;
    unsigned n_lanes;
};

struct nr_watchdog {
    pthread_mutex_t lock;
    pthread_cond_t wake;    /* the list changed, or stopping */
    pthread_cond_t idle;    /* a watch is not in use any more */
    struct nr_list watches; /* those looked at in this round are behind the others */
    uint64_t round;
    bool fresh; /* a watch was added since the last look */
    struct nr_exec *exec;
    pthread_t thread;
    bool started, stopping;
    _Atomic unsigned n_stuck;
};

/* --- looking ---------------------------------------------------------------------------------- */

/* The limit of runs now. The percentile is asked for only when the stated limit has passed. */
static int64_t limit_now(const struct nr_runwatch *w)
{
    if (w->exact) {
        return w->limit_ns;
    }
    struct nr_arena a;
    struct nr_counts n;
    nr_arena_init(&a, 0);
    nr_counters_read(w->counters, &a, &n);
    uint64_t p999 = nr_hist_coarse_quantile(&n.stage[NR_STAGE_INFER], 0.999);
    nr_arena_done(&a);
    int64_t most_ns =
        w->limit_ns > INT64_MAX / MOST_TIMES_LIMIT ? INT64_MAX : w->limit_ns * MOST_TIMES_LIMIT;
    return NR_MAX(w->limit_ns, NR_MIN((int64_t)p999 * TIMES_P999, most_ns));
}

struct seen {
    bool changed;
    unsigned n_stuck;
    int64_t oldest_ns; /* the stuck run that began first */
    int64_t next_ns;
};

static struct seen look(struct nr_runwatch *w, int64_t now_ns)
{
    struct seen s = {.oldest_ns = INT64_MAX, .next_ns = now_ns + w->limit_ns};
    int64_t limit_ns = w->limit_ns;
    bool asked = false;
    if (limit_ns == 0) { /* only its name is wanted, when the process ends */
        s.next_ns = INT64_MAX;
        return s;
    }
    NR_LIST_FOREACH (node, &w->lanes) {
        struct nr_watched *l = nr_container_of(node, struct nr_watched, node);
        int64_t since_ns = atomic_load_explicit(&l->since_ns, memory_order_acquire);
        bool stuck = since_ns != 0 && now_ns - since_ns >= limit_ns;
        if (stuck && !asked) {
            asked = true;
            limit_ns = limit_now(w);
            stuck = now_ns - since_ns >= limit_ns;
        }
        if (since_ns != 0 && !stuck) {
            s.next_ns = NR_MIN(s.next_ns, since_ns + limit_ns);
        }
        s.changed = s.changed || stuck != l->stuck;
        l->stuck = stuck;
        s.n_stuck += stuck;
        s.oldest_ns = stuck ? NR_MIN(s.oldest_ns, since_ns) : s.oldest_ns;
    }
    if (s.n_stuck > 0) {
        s.next_ns = NR_MIN(s.next_ns, now_ns + LOOK_STUCK_NS);
    }
    return s;
}

/* --- telling ---------------------------------------------------------------------------------- */

/* Schedulers of which every lane is stuck refuse; the threads of stuck runs are written off. */
static void tell_schedulers(struct nr_runwatch *w)
{
    NR_LIST_FOREACH (node, &w->lanes) {
        const struct nr_watched *l = nr_container_of(node, struct nr_watched, node);
        bool all = true, first = true, before = true;
        NR_LIST_FOREACH (other, &w->lanes) {
            const struct nr_watched *o = nr_container_of(other, struct nr_watched, node);
            before = before && o != l;
            first = first && !(before && o->sched == l->sched);
            all = all && (o->sched != l->sched || o->stuck);
        }
        if (first) {
            nr_sched_set_stuck(l->sched, all);
        }
        if (l->stuck && w->dog->exec != NULL) {
            nr_exec_give_up(w->dog->exec, atomic_load_explicit(&l->thread, memory_order_relaxed),
                            atomic_load_explicit(&l->since_ns, memory_order_relaxed));
        }
    }
}

static void tell(struct nr_runwatch *w, const struct seen *s, int64_t now_ns)
{
    char text[200] = "", since[25];
    tell_schedulers(w);
    if (s->n_stuck > 0) {
        nr_clock_format(nr_clock_wall() - (now_ns - s->oldest_ns), since);
        snprintf(text, sizeof(text),
                 "stuck: %u of %u instances, a run that began at %s has not returned", s->n_stuck,
                 w->n_lanes, since);
    }
    nr_version_set_stuck(w->version, s->n_stuck == w->n_lanes, text);
}

int64_t nr_watchdog_look(struct nr_watchdog *d, int64_t now_ns)
{
    int64_t next_ns = INT64_MAX;
    pthread_mutex_lock(&d->lock);
    d->round++;
    d->fresh = false;
    while (!nr_list_empty(&d->watches)) {
        struct nr_runwatch *w = nr_container_of(d->watches.next, struct nr_runwatch, node);
        if (w->round == d->round) {
            break;
        }
        w->round = d->round;
        nr_list_remove(&w->node);
        nr_list_append(&d->watches, &w->node);
        struct seen s = look(w, now_ns);
        next_ns = NR_MIN(next_ns, s.next_ns);
        if (!s.changed) {
            continue;
        }
        unsigned before = atomic_load_explicit(&w->n_stuck, memory_order_relaxed);
        atomic_store_explicit(&w->n_stuck, s.n_stuck, memory_order_relaxed);
        atomic_fetch_add_explicit(&d->n_stuck, s.n_stuck - before, memory_order_relaxed);
        w->used = true;
        pthread_mutex_unlock(&d->lock);
        tell(w, &s, now_ns);
        pthread_mutex_lock(&d->lock);
        w->used = false;
        pthread_cond_broadcast(&d->idle);
    }
    pthread_mutex_unlock(&d->lock);
    return next_ns;
}

static void *watch_main(void *arg)
{
    struct nr_watchdog *d = arg;
    for (;;) {
        int64_t next_ns = nr_watchdog_look(d, nr_clock_now());
        struct timespec ts = {.tv_sec = next_ns / NR_S_NS, .tv_nsec = next_ns % NR_S_NS};
        pthread_mutex_lock(&d->lock);
        if (!d->stopping && !d->fresh) {
            (void)(next_ns == INT64_MAX ? pthread_cond_wait(&d->wake, &d->lock)
                                        : pthread_cond_timedwait(&d->wake, &d->lock, &ts));
        }
        bool stopping = d->stopping;
        pthread_mutex_unlock(&d->lock);
        if (stopping) {
            return NULL;
        }
    }
}

unsigned nr_watchdog_stuck(const struct nr_watchdog *d)
{
    return atomic_load_explicit(&d->n_stuck, memory_order_relaxed);
}

unsigned nr_watchdog_names(struct nr_watchdog *d, int64_t since_ns, struct nr_text *t)
{
    unsigned n = 0;
    pthread_mutex_lock(&d->lock);
    NR_LIST_FOREACH (node, &d->watches) {
        const struct nr_runwatch *w = nr_container_of(node, struct nr_runwatch, node);
        bool runs = false;
        NR_LIST_FOREACH (l, &w->lanes) {
            int64_t began_ns = atomic_load_explicit(
                &nr_container_of(l, struct nr_watched, node)->since_ns, memory_order_relaxed);
            runs = runs || (began_ns != 0 && began_ns < since_ns);
        }
        if (runs) {
            nr_text_fmt(t, "%smodel %s version %lld", n > 0 ? ", " : "", w->version->name,
                        (long long)w->version->number);
            n++;
        }
    }
    pthread_mutex_unlock(&d->lock);
    return n;
}

/* --- life ------------------------------------------------------------------------------------- */

struct nr_watchdog *nr_watchdog_new(void)
{
    struct nr_watchdog *d = nr_new(struct nr_watchdog);
    pthread_mutex_init(&d->lock, NULL);
    nr_clock_cond_init(&d->wake);
    nr_clock_cond_init(&d->idle);
    nr_list_init(&d->watches);
    return d;
}

bool nr_watchdog_start(struct nr_watchdog *d, struct nr_exec *exec)
{
    d->exec = exec;
    d->started = pthread_create(&d->thread, NULL, watch_main, d) == 0;
    if (d->started) {
        pthread_setname_np(d->thread, "naru-watch");
    }
    return d->started;
}

void nr_watchdog_free(struct nr_watchdog *d)
{
    if (d == NULL) {
        return;
    }
    if (d->started) {
        pthread_mutex_lock(&d->lock);
        d->stopping = true;
        pthread_cond_signal(&d->wake);
        pthread_mutex_unlock(&d->lock);
        pthread_join(d->thread, NULL);
    }
    NR_ASSERT(nr_list_empty(&d->watches));
    pthread_cond_destroy(&d->wake);
    pthread_cond_destroy(&d->idle);
    pthread_mutex_destroy(&d->lock);
    nr_free(d);
}

struct nr_runwatch *nr_runwatch_new(struct nr_watchdog *d, struct nr_version *v, int64_t limit_ns,
                                    bool exact)
{
    struct nr_runwatch *w = nr_new(struct nr_runwatch);
    w->dog = d;
    w->version = v;
    w->limit_ns = limit_ns;
    w->exact = exact;
    nr_list_init(&w->lanes);
    nr_list_init(&w->node);
    return w;
}

void nr_runwatch_add(struct nr_runwatch *w, struct nr_watched *l, struct nr_sched *s)
{
    l->sched = s;
    nr_list_init(&l->node);
    nr_list_append(&w->lanes, &l->node);
    w->n_lanes++;
}

void nr_runwatch_start(struct nr_runwatch *w, const struct nr_counters *counters)
{
    w->counters = counters;
    if (w->dog == NULL || w->n_lanes == 0) {
        return;
    }
    pthread_mutex_lock(&w->dog->lock);
    nr_list_append(&w->dog->watches, &w->node);
    w->dog->fresh = true;
    pthread_cond_signal(&w->dog->wake);
    pthread_mutex_unlock(&w->dog->lock);
}

void nr_runwatch_free(struct nr_runwatch *w)
{
    if (w == NULL) {
        return;
    }
    if (w->dog != NULL) {
        pthread_mutex_lock(&w->dog->lock);
        while (w->used) {
            pthread_cond_wait(&w->dog->idle, &w->dog->lock);
        }
        nr_list_remove(&w->node);
        atomic_fetch_sub_explicit(&w->dog->n_stuck,
                                  atomic_load_explicit(&w->n_stuck, memory_order_relaxed),
                                  memory_order_relaxed);
        pthread_mutex_unlock(&w->dog->lock);
    }
    nr_free(w);
}

unsigned nr_runwatch_stuck(const struct nr_runwatch *w)
{
    return w != NULL ? atomic_load_explicit(&w->n_stuck, memory_order_relaxed) : 0;
}
