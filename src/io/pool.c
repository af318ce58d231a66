/* The blocking pool: one mutex, one queue, one condition.
 *
 * A lock is right here: jobs take longer than a thread switch, or they would run on the loop. A
 * thread is started only when more jobs wait than threads are idle or starting, so a pool of 16
 * that is used by one request at a time has one thread, two at most; idle threads leave, so that
 * a server with 33 loaded models does not keep the threads that loaded them.
 *
 * Invariants (under lock)
 * 1. n_queued > 0 implies a thread that is awake or has been signalled: a thread leaves only when
 *    the queue is empty, and a submit fails when there is no thread and none can be started.
 * 2. A worker place is FREE, RUNNING, or ENDED (its thread has left and waits to be joined by the
 *    next start or by nr_pool_free).
 * Threads: everything in struct nr_pool but the constants is under lock.
 */
#include "io/pool.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <time.h>

#include "base/clock.h"
#include "base/mem.h"

#define IDLE_NS (10 * NR_S_NS)

typedef enum worker_state {
    WORKER_FREE,
    WORKER_RUNNING,
    WORKER_ENDED
} worker_state;

struct worker {
    struct nr_pool *pool;
    pthread_t thread;
    worker_state state;
};

struct nr_pool {
    pthread_mutex_t lock;
    pthread_cond_t wanted; /* a job came, or the pool ends */
    struct nr_list queue;
    unsigned n_queued, max_queue;
    unsigned n_idle, n_running;
    unsigned n_starting; /* running, but have not looked at the queue yet */
    unsigned n_places;   /* constant */
    int64_t idle_ns;
    bool ending;
    char name[11]; /* constant */
    struct worker *workers;
};

struct nr_pool *nr_pool_new(const char *name, unsigned threads, unsigned max_queue)
{
    struct nr_pool *p = nr_new(struct nr_pool);
    nr_list_init(&p->queue);
    p->n_places = NR_MAX(threads, 1u);
    p->max_queue = max_queue;
    p->idle_ns = IDLE_NS;
    snprintf(p->name, sizeof(p->name), "%s", name);
    p->workers = nr_new_array(struct worker, p->n_places);
    for (unsigned i = 0; i < p->n_places; i++) {
        p->workers[i].pool = p;
    }
    pthread_mutex_init(&p->lock, NULL);
    nr_clock_cond_init(&p->wanted); /* when an idle thread ends changes no result */
    return p;
}

/* Waits for a job. False: idle for too long. Under lock. */
static bool wait_for_job(struct nr_pool *p)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until); /* lint: allow clock_gettime: the condition's clock */
    int64_t nsec = until.tv_nsec + p->idle_ns % NR_S_NS;
    until.tv_sec += (time_t)(p->idle_ns / NR_S_NS + nsec / NR_S_NS);
    until.tv_nsec = (long)(nsec % NR_S_NS);
    int rc = 0;
    p->n_idle++;
    while (p->n_queued == 0 && !p->ending && rc == 0) {
        rc = pthread_cond_timedwait(&p->wanted, &p->lock, &until);
    }
    p->n_idle--;
    return p->n_queued > 0;
}

static void *work(void *arg)
{
    struct worker *w = arg;
    struct nr_pool *p = w->pool;
    pthread_mutex_lock(&p->lock);
    p->n_starting--;
    while (p->n_queued > 0 || wait_for_job(p)) {
        struct nr_list *node = nr_list_pop(&p->queue);
        p->n_queued--;
        pthread_mutex_unlock(&p->lock);
        struct nr_job *j = nr_container_of(node, struct nr_job, node);
        j->run(j); /* j may be gone now */
        pthread_mutex_lock(&p->lock);
    }
    w->state = WORKER_ENDED;
    p->n_running--;
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

/* Starts a thread in a place without one. Under lock; false when the system refuses. */
static bool start_worker(struct nr_pool *p)
{
    struct worker *w = p->workers;
    while (w->state == WORKER_RUNNING) {
        w++;
    }
    if (w->state == WORKER_ENDED) {
        pthread_join(w->thread, NULL); /* it holds no lock and is on its last instructions */
        w->state = WORKER_FREE;
    }
    /* Signals are for the main thread; the mask is inherited. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int rc = pthread_create(&w->thread, NULL, work, w);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (rc != 0) {
        return false;
    }
    char name[16];
    snprintf(name, sizeof(name), "%s-%u", p->name, (unsigned)(w - p->workers) % 1000);
    pthread_setname_np(w->thread, name);
    w->state = WORKER_RUNNING;
    p->n_running++;
    p->n_starting++;
    return true;
}

nr_status nr_pool_submit(struct nr_pool *p, struct nr_job *j)
{
    nr_status status = NARU_OK;
    pthread_mutex_lock(&p->lock);
    NR_DCHECK(!p->ending);
    if (p->n_queued >= p->max_queue) {
        status = NARU_UNAVAILABLE;
    } else {
        nr_list_append(&p->queue, &j->node);
        p->n_queued++;
        bool is_short = p->n_queued > p->n_idle + p->n_starting && p->n_running < p->n_places;
        if (is_short && !start_worker(p) && p->n_running == 0) {
            nr_list_remove(&j->node);
            p->n_queued--;
            status = NARU_EXHAUSTED;
        } else {
            pthread_cond_signal(&p->wanted);
        }
    }
    pthread_mutex_unlock(&p->lock);
    return status;
}

void nr_pool_free(struct nr_pool *p)
{
    if (p == NULL) {
        return;
    }
    pthread_mutex_lock(&p->lock);
    p->ending = true;
    pthread_cond_broadcast(&p->wanted);
    pthread_mutex_unlock(&p->lock);
    /* No place changes from FREE any more, so states other than RUNNING/ENDED need no lock; the
     * join orders the rest. */
    for (unsigned i = 0; i < p->n_places; i++) {
        pthread_mutex_lock(&p->lock);
        bool has_thread = p->workers[i].state != WORKER_FREE;
        pthread_mutex_unlock(&p->lock);
        if (has_thread) {
            pthread_join(p->workers[i].thread, NULL);
        }
    }
    NR_ASSERT(p->n_queued == 0);
    pthread_cond_destroy(&p->wanted);
    pthread_mutex_destroy(&p->lock);
    nr_free(p->workers);
    nr_free(p);
}

unsigned nr_pool_depth(struct nr_pool *p)
{
    pthread_mutex_lock(&p->lock);
    unsigned n = p->n_queued;
    pthread_mutex_unlock(&p->lock);
    return n;
}

unsigned nr_pool_threads(struct nr_pool *p)
{
    pthread_mutex_lock(&p->lock);
    unsigned n = p->n_running;
    pthread_mutex_unlock(&p->lock);
    return n;
}

void nr_pool_set_idle(struct nr_pool *p, int64_t idle_ns)
{
    pthread_mutex_lock(&p->lock);
    p->idle_ns = NR_MAX(idle_ns, 0);
    pthread_mutex_unlock(&p->lock);
}
