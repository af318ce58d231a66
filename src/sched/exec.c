/* Executor threads.
 *
 * DESIGN. One lock, one queue of runnables (schedulers, not requests: it is short), one list of
 * timed wakes. A thread takes the head of the queue and calls its run(), which forms and executes
 * one batch. `base` threads wait for anything; one more thread, the spare, sleeps until the oldest
 * runnable has waited SPARE_WAIT_NS and fewer than `base` threads are really computing (their CPU
 * clocks say so). It then works like the others and starts the next spare. So a plug-in that
 * blocks for seconds delays other models by milliseconds, and computing models never get more
 * threads than cores, unless one says that they are better off with twice as many (parallel.h).
 *
 * INVARIANTS
 *  1. A runnable is in the queue at most once (queued). A wake during run() queues it again, so no
 *     wake is lost.
 *  2. e->n_threads counts threads that have not decided to end; a thread decides under the lock.
 *  3. There is exactly one spare while n_threads < max_threads. It looks at the queue only when it
 *     was told that no idle worker is left, and then until the queue is empty.
 *
 * LOCKS. e->lock is a leaf for callers: run() is called without it. Rank: see docs/locks.md.
 */
#include "sched/exec.h"

#include <errno.h>
#include <pthread.h>
#include <time.h>

#include "base/clock.h"
#include "base/cpu.h"
#include "base/mem.h"

#define SPARE_WAIT_NS (5 * NR_MS_NS)
#define IDLE_END_NS (10 * NR_S_NS)
#define MAX_THREADS_CAP 256

struct worker {
    struct nr_exec *exec;
    struct nr_list node;
    pthread_t thread;
    bool extra; /* begins as the spare, and ends when idle for long */
    bool busy;
    int64_t begin_ns, begin_cpu_ns; /* of the run() it is in */
};

struct nr_exec {
    pthread_mutex_t lock;
    pthread_cond_t work;    /* idle workers: the queue or the timed list changed */
    pthread_cond_t spare;   /* the spare: all workers are taken and something waits */
    pthread_cond_t retired; /* a run() returned, or a thread ended */
    struct nr_list queue;   /* nr_runnable.node, oldest first */
    struct nr_list timed;   /* nr_runnable.timed_node, unordered: one per delayed model */
    struct nr_list workers;
    unsigned base, max_threads, n_threads;
    unsigned n_crowds;  /* who wants more threads to compute than there are cores */
    unsigned n_idle;    /* waiting workers that no wake has claimed */
    unsigned n_claimed; /* wakes signalled to workers that have not woken yet */
    bool stopping;
};

/* Absolute CLOCK_MONOTONIC wait; the lock is held. */
static void wait_until(struct nr_exec *e, pthread_cond_t *cond, int64_t at_ns)
{
    if (at_ns == INT64_MAX) {
        pthread_cond_wait(cond, &e->lock);
        return;
    }
    struct timespec ts = {.tv_sec = at_ns / NR_S_NS, .tv_nsec = at_ns % NR_S_NS};
    pthread_cond_timedwait(cond, &e->lock, &ts);
}

static void enqueue(struct nr_exec *e, struct nr_runnable *r, int64_t now_ns)
{
    if (r->at_ns != 0) {
        r->at_ns = 0;
        nr_list_remove(&r->timed_node);
    }
    if (!r->queued) {
        r->queued = true;
        r->since_ns = now_ns;
        nr_list_append(&e->queue, &r->node);
    }
}

/* Moves what is due to the queue; returns when the next timed wake is, or INT64_MAX. */
static int64_t collect_due(struct nr_exec *e, int64_t now_ns)
{
    int64_t next = INT64_MAX;
    NR_LIST_FOREACH_SAFE (node, tmp, &e->timed) {
        struct nr_runnable *r = nr_container_of(node, struct nr_runnable, timed_node);
        if (r->at_ns <= now_ns) {
            enqueue(e, r, now_ns);
        } else {
            next = NR_MIN(next, r->at_ns);
        }
    }
    return next;
}

/* Threads inside run() that have used the CPU for at least half of the time. */
static unsigned computing(struct nr_exec *e, int64_t now_ns)
{
    unsigned n = 0;
    NR_LIST_FOREACH (node, &e->workers) {
        struct worker *w = nr_container_of(node, struct worker, node);
        clockid_t id;
        struct timespec ts;
        /* lint: allow clock_gettime: that thread's CPU time, not the time of day */
        if (!w->busy || pthread_getcpuclockid(w->thread, &id) != 0 || clock_gettime(id, &ts) != 0) {
            continue;
        }
        int64_t cpu_ns = ts.tv_sec * NR_S_NS + ts.tv_nsec - w->begin_cpu_ns;
        n += cpu_ns * 2 >= now_ns - w->begin_ns;
    }
    return n;
}

static void *worker_main(void *arg);

static void spawn(struct nr_exec *e, bool extra)
{
    struct worker *w = nr_new(struct worker);
    w->exec = e;
    w->extra = extra;
    nr_list_append(&e->workers, &w->node);
    e->n_threads++;
    if (pthread_create(&w->thread, NULL, worker_main, w) != 0) {
        e->n_threads--; /* the threads there are go on; the next need tries again */
        nr_list_remove(&w->node);
        nr_free(w);
        return;
    }
    pthread_setname_np(w->thread, "naru-exec");
    pthread_detach(w->thread);
}

static void run_head(struct nr_exec *e, struct worker *w)
{
    struct nr_runnable *r = nr_container_of(nr_list_pop(&e->queue), struct nr_runnable, node);
    r->queued = false;
    r->running++;
    w->busy = true;
    w->begin_ns = nr_clock_now();
    w->begin_cpu_ns = nr_clock_thread_cpu();
    pthread_mutex_unlock(&e->lock);
    bool again = r->run(r);
    pthread_mutex_lock(&e->lock);
    w->busy = false;
    r->running--;
    if (again) {
        enqueue(e, r, nr_clock_now());
    }
    if (r->running == 0 || e->stopping) {
        pthread_cond_broadcast(&e->retired);
    }
}

/* True when the spare is needed as a worker; else *ret_look_ns says when to look again. */
static bool spare_needed(struct nr_exec *e, int64_t now_ns, int64_t *ret_look_ns)
{
    *ret_look_ns = collect_due(e, now_ns);
    if (nr_list_empty(&e->queue)) {
        return false;
    }
    const struct nr_runnable *oldest = nr_container_of(e->queue.next, struct nr_runnable, node);
    int64_t due_ns = oldest->since_ns + SPARE_WAIT_NS;
    unsigned most = e->n_crowds > 0 ? 2 * e->base : e->base;
    if (now_ns >= due_ns && computing(e, now_ns) < most) {
        return true;
    }
    *ret_look_ns = NR_MIN(*ret_look_ns, NR_MAX(due_ns, now_ns + SPARE_WAIT_NS / 5));
    return false;
}

static void be_spare(struct nr_exec *e)
{
    int64_t look_ns;
    while (!e->stopping && !spare_needed(e, nr_clock_now(), &look_ns)) {
        wait_until(e, &e->spare, look_ns);
    }
    if (!e->stopping && e->n_threads < e->max_threads) {
        spawn(e, true);
    }
}

/* An idle worker's wait. A wake claims a worker by taking it off n_idle and adding to n_claimed;
 * whoever wakes first, signalled or not, takes the claim. */
static void be_idle(struct nr_exec *e, int64_t until_ns)
{
    e->n_idle++;
    wait_until(e, &e->work, until_ns);
    if (e->n_claimed > 0) {
        e->n_claimed--;
    } else {
        e->n_idle--;
    }
}

static void *worker_main(void *arg)
{
    struct worker *w = arg;
    struct nr_exec *e = w->exec;
    pthread_mutex_lock(&e->lock);
    if (w->extra) {
        be_spare(e);
    }
    int64_t idle_since_ns = nr_clock_now();
    while (!e->stopping) {
        int64_t now_ns = nr_clock_now();
        int64_t next_ns = collect_due(e, now_ns);
        if (!nr_list_empty(&e->queue)) {
            run_head(e, w);
            idle_since_ns = nr_clock_now();
            continue;
        }
        int64_t end_ns = w->extra ? idle_since_ns + IDLE_END_NS : INT64_MAX;
        if (now_ns >= end_ns) {
            break;
        }
        be_idle(e, NR_MIN(next_ns, end_ns));
    }
    e->n_threads--;
    nr_list_remove(&w->node);
    pthread_cond_broadcast(&e->retired);
    pthread_mutex_unlock(&e->lock);
    nr_free(w);
    return NULL;
}

struct nr_exec *nr_exec_new(unsigned threads, unsigned max_threads)
{
    struct nr_exec *e = nr_new(struct nr_exec);
    pthread_mutex_init(&e->lock, NULL);
    nr_clock_cond_init(&e->work);
    nr_clock_cond_init(&e->spare);
    nr_clock_cond_init(&e->retired);
    nr_list_init(&e->queue);
    nr_list_init(&e->timed);
    nr_list_init(&e->workers);
    e->base = threads > 0 ? NR_MIN(threads, MAX_THREADS_CAP - 1u) : nr_cpu_usable();
    e->max_threads = NR_MIN(NR_MAX(max_threads, e->base + 1), (unsigned)MAX_THREADS_CAP);
    pthread_mutex_lock(&e->lock);
    for (unsigned i = 0; i < e->base; i++) {
        spawn(e, false);
    }
    NR_ASSERT(e->n_threads > 0); /* no thread at all: nothing could ever run */
    spawn(e, true);
    pthread_mutex_unlock(&e->lock);
    return e;
}

void nr_exec_free(struct nr_exec *e)
{
    if (e == NULL) {
        return;
    }
    pthread_mutex_lock(&e->lock);
    e->stopping = true;
    pthread_cond_broadcast(&e->work);
    pthread_cond_broadcast(&e->spare);
    while (e->n_threads > 0) {
        pthread_cond_wait(&e->retired, &e->lock);
    }
    pthread_mutex_unlock(&e->lock);
    pthread_cond_destroy(&e->work);
    pthread_cond_destroy(&e->spare);
    pthread_cond_destroy(&e->retired);
    pthread_mutex_destroy(&e->lock);
    nr_free(e);
}

void nr_exec_init(struct nr_runnable *r, bool (*run)(struct nr_runnable *r))
{
    *r = (struct nr_runnable){.run = run};
    nr_list_init(&r->node);
    nr_list_init(&r->timed_node);
}

/* Calls somebody for a runnable that was just queued; the lock is held. */
static void call_worker(struct nr_exec *e)
{
    if (e->n_idle > 0) {
        e->n_idle--;
        e->n_claimed++;
        pthread_cond_signal(&e->work);
    } else {
        pthread_cond_signal(&e->spare);
    }
}

void nr_exec_wake(struct nr_exec *e, struct nr_runnable *r)
{
    pthread_mutex_lock(&e->lock);
    bool first = !r->queued;
    enqueue(e, r, nr_clock_now());
    if (first) {
        call_worker(e);
    }
    pthread_mutex_unlock(&e->lock);
}

void nr_exec_wake_at(struct nr_exec *e, struct nr_runnable *r, int64_t at_ns)
{
    pthread_mutex_lock(&e->lock);
    if (!r->queued && (r->at_ns == 0 || at_ns < r->at_ns)) {
        if (r->at_ns == 0) {
            nr_list_append(&e->timed, &r->timed_node);
        }
        r->at_ns = at_ns;
        pthread_cond_broadcast(&e->work); /* every waiter must learn the new time */
        pthread_cond_signal(&e->spare);
    }
    pthread_mutex_unlock(&e->lock);
}

void nr_exec_crowd(struct nr_exec *e, bool wanted)
{
    pthread_mutex_lock(&e->lock);
    if (wanted) {
        e->n_crowds++;
    } else {
        e->n_crowds--;
    }
    pthread_mutex_unlock(&e->lock);
}

void nr_exec_retire(struct nr_exec *e, struct nr_runnable *r)
{
    pthread_mutex_lock(&e->lock);
    for (;;) {
        if (r->queued) {
            r->queued = false;
            nr_list_remove(&r->node);
        }
        if (r->at_ns != 0) {
            r->at_ns = 0;
            nr_list_remove(&r->timed_node);
        }
        if (r->running == 0) {
            break;
        }
        pthread_cond_wait(&e->retired, &e->lock);
    }
    pthread_mutex_unlock(&e->lock);
}

unsigned nr_exec_threads(struct nr_exec *e)
{
    pthread_mutex_lock(&e->lock);
    unsigned n = e->n_threads;
    pthread_mutex_unlock(&e->lock);
    return n;
}
