/* Threads of sessions that have a pool of their own, at the server's ordinary priority.
 *
 * Why so: while models serve, the server opens another one on a thread of low priority, and a thread
 * inherits its priority from the one that makes it and cannot raise it without privilege. A session
 * made there would compute at low priority for ever. So pools are made by a thread of ours, which
 * is as old as the library state and does nothing else.
 *
 * Invariants
 *  1. `order` is set by one maker at a time (makers queue at `free`) and taken by the spawner.
 *
 * Threads: everything in struct ort_spawner is under its lock.
 */
#include <stdlib.h>

#include "ort.h"

struct order {
    OrtThreadWorkerFn run;
    void *arg;
    pthread_t *ret;
    int rc, done;
};

struct ort_spawner {
    pthread_mutex_t lock;
    pthread_cond_t changed; /* order or stop was set, an order was done, or the place is free */
    pthread_t thread;
    struct order *order;
    int stop;
};

struct worker { /* what runs in the new thread */
    OrtThreadWorkerFn run;
    void *arg;
};

static void *worker_main(void *arg)
{
    struct worker w = *(struct worker *)arg;
    free(arg);
    w.run(w.arg);
    return NULL;
}

static int make(const struct order *o)
{
    struct worker *w = malloc(sizeof *w);
    if (!w) {
        return 1;
    }
    *w = (struct worker){o->run, o->arg};
    int rc = pthread_create(o->ret, NULL, worker_main, w);
    if (rc != 0) {
        free(w);
    }
    return rc;
}

static void *spawner_main(void *arg)
{
    struct ort_spawner *s = arg;
    pthread_mutex_lock(&s->lock);
    while (!s->stop) {
        if (s->order && !s->order->done) {
            s->order->rc = make(s->order);
            s->order->done = 1;
            pthread_cond_broadcast(&s->changed);
        }
        pthread_cond_wait(&s->changed, &s->lock);
    }
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

struct ort_spawner *ort_spawner_new(void)
{
    struct ort_spawner *s = calloc(1, sizeof *s);
    if (!s) {
        return NULL;
    }
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->changed, NULL);
    if (pthread_create(&s->thread, NULL, spawner_main, s) != 0) {
        free(s);
        return NULL;
    }
    return s;
}

void ort_spawner_free(struct ort_spawner *s)
{
    if (!s) {
        return;
    }
    pthread_mutex_lock(&s->lock);
    s->stop = 1;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
    pthread_join(s->thread, NULL);
    pthread_mutex_destroy(&s->lock);
    pthread_cond_destroy(&s->changed);
    free(s);
}

/* NULL tells ONNX Runtime that there is no thread; it fails the session with a text of its own. */
static OrtCustomThreadHandle create_thread(void *options, OrtThreadWorkerFn run, void *arg)
{
    struct ort_spawner *s = options;
    pthread_t *thread = malloc(sizeof *thread);
    if (!thread) {
        return NULL;
    }
    struct order o = {.run = run, .arg = arg, .ret = thread};
    pthread_mutex_lock(&s->lock);
    while (s->order) {
        pthread_cond_wait(&s->changed, &s->lock);
    }
    s->order = &o;
    pthread_cond_broadcast(&s->changed);
    while (!o.done) {
        pthread_cond_wait(&s->changed, &s->lock);
    }
    s->order = NULL;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
    if (o.rc != 0) {
        free(thread);
        return NULL;
    }
    return (OrtCustomThreadHandle)(void *)thread;
}

static void join_thread(OrtCustomThreadHandle handle)
{
    pthread_t *thread = (void *)(uintptr_t)handle;
    pthread_join(*thread, NULL);
    free(thread);
}

OrtStatus *ort_spawner_use(struct ort_spawner *s, const OrtApi *a, OrtSessionOptions *so)
{
    if (!s) {
        return NULL; /* no thread could be had: the session makes its own */
    }
    OrtStatus *st = a->SessionOptionsSetCustomCreateThreadFn(so, create_thread);
    st = st ? st : a->SessionOptionsSetCustomThreadCreationOptions(so, s);
    return st ? st : a->SessionOptionsSetCustomJoinThreadFn(so, join_thread);
}
