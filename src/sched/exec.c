/* Executor threads.
 *
 * DESIGN. One lock, one list of runnables (schedulers, not requests: it is short), one list of
 * timed wakes. A thread takes the runnable that has used the least time (fair.h; it looks at all that
 * wait, as many as there are models that have work) and calls its run(), which forms and executes one
 * batch. The time is that of the thread's processor clock, one system call for each run. `base` threads wait for anything; one more thread, the spare, sleeps until the oldest
 * runnable has waited SPARE_WAIT_NS and fewer than `base` threads are really computing. It then works
 * like the others and starts the next spare. So a plug-in that blocks for seconds delays other models
 * by milliseconds, and computing models never get more threads than cores: neither when they compute
 * (their processor clocks say so) nor when other processes have the cores and they only want to (the
 * system says whether a thread sleeps). One that says that it is better off so gets twice as many
 * (parallel.h).
 *
 * INVARIANTS
 *  1. A runnable is in the queue at most once (queued). A wake during run() queues it again, so no
 *     wake is lost.
 *  2. e->n_threads counts threads that have not decided to end; a thread decides under the lock.
 *  3. There is exactly one spare while n_threads - n_lost < max_threads. It looks at the queue only when it
 *     was told that no idle worker is left, and then until the queue is empty.
 *
 * LOCKS. e->lock is a leaf for callers: run() is called without it. Rank: see docs/locks.md.
 */
#include "sched/exec.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

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
    pid_t tid;  /* 0 until it runs */
    bool extra; /* begins as the spare, and ends when idle for long */
    bool busy;
    bool lost;        /* nr_exec_give_up */
    int64_t begin_ns; /* of the run() it is in */
    int64_t cpu_ns;   /* its processor clock at the end of the last one */
};

struct nr_exec {
    pthread_mutex_t lock;
    pthread_cond_t work;    /* idle workers: the queue or the timed list changed */
    pthread_cond_t spare;   /* the spare: all workers are taken and something waits */
    pthread_cond_t retired; /* a run() returned, or a thread ended */
    struct nr_list queue;   /* nr_runnable.node, oldest first */
    struct nr_fair fair;    /* who of them is next */
    struct nr_list timed;   /* nr_runnable.timed_node, unordered: one per delayed model */
    struct nr_list workers;
    unsigned base, max_threads, n_threads, n_lost;
    bool has_spare;
    unsigned n_crowds;      /* who wants more threads to compute than there are cores */
    unsigned n_idle;        /* waiting workers that no wake has claimed */
    unsigned n_claimed;     /* wakes signalled to workers that have not woken yet */
    int64_t short_since_ns; /* the spare's: too few threads compute; 0: enough */
    bool stopping;
    char name[16]; /* of the threads */
    struct nr_exec_binding binding;
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

static void enqueue(struct nr_exec *e, struct nr_runnable *r, bool again, int64_t now_ns)
{
    if (r->at_ns != 0) {
        r->at_ns = 0;
        nr_list_remove(&r->timed_node);
    }
    if (!r->queued) {
        if (!again && r->running == 0) {
            nr_fair_arrive(&e->fair, &r->share);
        }
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
            enqueue(e, r, false, now_ns);
        } else {
            next = NR_MIN(next, r->at_ns);
        }
    }
    return next;
}

/* On a processor or waiting for one, rather than asleep: the letter behind the name, proc(5). */
static bool wants_core(pid_t tid)
{
    char path[48], text[128] = "";
    (void)snprintf(path, sizeof(path), "/proc/self/task/%d/stat", (int)tid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd >= 0 ? read(fd, text, sizeof(text) - 1) : -1;
    if (fd >= 0) {
        close(fd);
    }
    const char *at = n > 0 ? strrchr(text, ')') : NULL;
    return at != NULL && at[1] == ' ' && at[2] == 'R';
}

/* Threads inside run() that have used the CPU for at least half of the time; the others are in quiet. */
static unsigned computing(struct nr_exec *e, int64_t now_ns, pid_t quiet[MAX_THREADS_CAP],
                          unsigned *ret_quiet)
{
    unsigned n = 0;
    *ret_quiet = 0;
    NR_LIST_FOREACH (node, &e->workers) {
        struct worker *w = nr_container_of(node, struct worker, node);
        clockid_t id;
        struct timespec ts;
        /* lint: allow clock_gettime: that thread's CPU time, not the time of day */
        if (!w->busy || w->lost || pthread_getcpuclockid(w->thread, &id) != 0 ||
            clock_gettime(id, &ts) != 0) {
            continue;
        }
        int64_t cpu_ns = ts.tv_sec * NR_S_NS + ts.tv_nsec - w->cpu_ns;
        if (cpu_ns * 2 >= now_ns - w->begin_ns) {
            n++;
        } else if (*ret_quiet < MAX_THREADS_CAP) {
            quiet[(*ret_quiet)++] = w->tid;
        }
    }
    return n;
}

/* Fewer threads than `base` compute, or want to, or are on their way to the queue. Lets go of the lock in between. */
static bool too_few(struct nr_exec *e, int64_t now_ns)
{
    pid_t quiet[MAX_THREADS_CAP];
    unsigned n_quiet, n = computing(e, now_ns, quiet, &n_quiet) + e->n_claimed;
    unsigned most = e->n_crowds > 0 ? 2 * e->base : e->base;
    if (n < most && n_quiet > 0) { /* who waits for the lock would seem to sleep */
        pthread_mutex_unlock(&e->lock);
        for (unsigned i = 0; i < n_quiet && n < most; i++) {
            n += wants_core(quiet[i]);
        }
        pthread_mutex_lock(&e->lock);
    }
    return n < most;
}

static void *worker_main(void *arg);
static _Thread_local const struct worker *self;

static void spawn(struct nr_exec *e, bool extra)
{
    struct worker *w = nr_new(struct worker);
    w->exec = e;
    w->extra = extra;
    nr_list_append(&e->workers, &w->node);
    e->n_threads++;
    e->has_spare |= extra;
    if (pthread_create(&w->thread, NULL, worker_main, w) != 0) {
        e->has_spare &= !extra;
        e->n_threads--; /* the threads there are go on; the next need tries again */
        nr_list_remove(&w->node);
        nr_free(w);
        return;
    }
    pthread_setname_np(w->thread, e->name);
    pthread_detach(w->thread);
}

/* Takes the next one from the queue, which is not empty. */
static struct nr_runnable *take_next(struct nr_exec *e)
{
    struct nr_runnable *best = nr_container_of(e->queue.next, struct nr_runnable, node);
    NR_LIST_FOREACH (node, &e->queue) {
        struct nr_runnable *r = nr_container_of(node, struct nr_runnable, node);
        if (nr_fair_before(&r->share, &best->share)) {
            best = r;
        }
    }
    nr_list_remove(&best->node);
    best->queued = false;
    return best;
}

static void run_next(struct nr_exec *e, struct worker *w)
{
    struct nr_runnable *r = take_next(e);
    int64_t charged_ns = nr_fair_begin(&e->fair, &r->share);
    r->running++;
    w->busy = true;
    w->begin_ns = nr_clock_now();
    pthread_mutex_unlock(&e->lock);
    bool again = r->run(r);
    int64_t cpu_ns = nr_clock_thread_cpu();
    pthread_mutex_lock(&e->lock);
    nr_fair_end(&r->share, charged_ns, cpu_ns - w->cpu_ns);
    w->cpu_ns = cpu_ns;
    w->busy = false;
    e->n_lost -= w->lost;
    w->lost = false;
    r->running--;
    if (again) {
        enqueue(e, r, true, nr_clock_now());
    }
    if (r->running == 0 || e->stopping) {
        pthread_cond_broadcast(&e->retired);
    }
}

/* True when the spare is needed as a worker; else *ret_look_ns says when to look again. It is when too few
 * threads compute in two looks in a row: one that is seen asleep once may have waited for a lock. */
static bool spare_needed(struct nr_exec *e, int64_t now_ns, int64_t *ret_look_ns)
{
    *ret_look_ns = collect_due(e, now_ns);
    if (nr_list_empty(&e->queue)) {
        e->short_since_ns = 0;
        return false;
    }
    const struct nr_runnable *oldest = nr_container_of(e->queue.next, struct nr_runnable, node);
    int64_t first_ns = oldest->since_ns + SPARE_WAIT_NS / 2;
    *ret_look_ns = NR_MIN(*ret_look_ns, NR_MAX(first_ns, now_ns + SPARE_WAIT_NS / 2));
    if (now_ns < first_ns || !too_few(e, now_ns) || nr_list_empty(&e->queue)) {
        e->short_since_ns = 0;
        return false;
    }
    if (e->short_since_ns == 0) {
        e->short_since_ns = now_ns;
    }
    return now_ns - e->short_since_ns >= SPARE_WAIT_NS / 2;
}

/* Where there is none and one may be had. */
static void spawn_spare(struct nr_exec *e)
{
    if (!e->stopping && !e->has_spare && e->n_threads - e->n_lost < e->max_threads &&
        e->n_threads < MAX_THREADS_CAP) {
        spawn(e, true);
    }
}

static void be_spare(struct nr_exec *e)
{
    int64_t look_ns;
    e->short_since_ns = 0;
    while (!e->stopping && !spare_needed(e, nr_clock_now(), &look_ns)) {
        wait_until(e, &e->spare, look_ns);
    }
    e->has_spare = false;
    spawn_spare(e);
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
    self = w;
    if (e->binding
            .bound) { /* cores that were taken from this process meanwhile: it runs anywhere */
        (void)nr_cpu_bind(&e->binding.cores);
    }
    if (e->binding.node >= 0) {
        (void)nr_cpu_prefer_node(e->binding.node);
    }
    pthread_mutex_lock(&e->lock);
    w->tid = gettid();
    if (w->extra) {
        be_spare(e);
    }
    w->cpu_ns = nr_clock_thread_cpu();
    int64_t idle_since_ns = nr_clock_now();
    while (!e->stopping) {
        int64_t now_ns = nr_clock_now();
        int64_t next_ns = collect_due(e, now_ns);
        if (!nr_list_empty(&e->queue)) {
            run_next(e, w);
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
    return nr_exec_new_bound(threads, max_threads, &(struct nr_exec_binding){.node = -1});
}

struct nr_exec *nr_exec_new_bound(unsigned threads, unsigned max_threads,
                                  const struct nr_exec_binding *binding)
{
    struct nr_exec *e = nr_new(struct nr_exec);
    e->binding = *binding;
    e->binding.name = NULL;
    (void)snprintf(e->name, sizeof(e->name), "naru-exec%s%s", binding->name != NULL ? ":" : "",
                   binding->name != NULL ? binding->name : "");
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
    enqueue(e, r, false, nr_clock_now());
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

const void *nr_exec_self(void)
{
    return self;
}

void nr_exec_give_up(struct nr_exec *e, const void *thread, int64_t since_ns)
{
    pthread_mutex_lock(&e->lock);
    NR_LIST_FOREACH (node, &e->workers) {
        struct worker *w = nr_container_of(node, struct worker, node);
        /* begun earlier than the run in it: not another run() of the thread */
        if (w == thread && w->busy && !w->lost && w->begin_ns <= since_ns) {
            w->lost = true;
            e->n_lost++;
        }
    }
    spawn_spare(e);
    pthread_cond_signal(&e->spare); /* something may have waited for that thread */
    pthread_mutex_unlock(&e->lock);
}

unsigned nr_exec_threads(struct nr_exec *e)
{
    pthread_mutex_lock(&e->lock);
    unsigned n = e->n_threads;
    pthread_mutex_unlock(&e->lock);
    return n;
}
