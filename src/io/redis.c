/* A Redis client for values nobody misses; see the header for the rules.
 *
 * DESIGN. hiredis in its blocking form on threads of a pool of our own: a lookup is two system calls and
 * some hundred microseconds of waiting, which is nothing beside the inference it may save, and nobody
 * else waits for it. A job takes a connection that lies idle (there are as many as threads), or makes
 * one, and gives it back unless it failed.
 *
 * INVARIANTS
 *  1. A job is on `jobs` from its making to its end, under the lock, so that the end of the client
 *     finds those whose message no loop ran.
 *  2. Nothing of the caller is touched after nr_redis_forget: the job has copies of all it needs.
 *  3. secret is written once, before has_secret is set (release), and never changes.
 *
 * THREADS. Any; `forgotten` and `done` belong to the loop of the lookup.
 */
#include "io/redis.h"

#include <hiredis/hiredis.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/random.h>

#include "base/clock.h"
#include "base/mem.h"
#include "io/pool.h"

#define KEY_MAX 128
#define MAX_PAUSE_NS (30 * NR_S_NS)
#define SECRET_KEY "naru:secret"

typedef enum job_kind {
    JOB_GET,
    JOB_PUT,
    JOB_HELLO /* connects and gets the secret */
} job_kind;

struct nr_redis_get { /* a job */
    struct nr_job job;
    struct nr_msg msg;
    struct nr_list node; /* of jobs */
    struct nr_redis *redis;
    job_kind kind;
    size_t key_len;
    char key[KEY_MAX];
    struct nr_buf *value; /* found, or to be stored */
    struct nr_loop *loop;
    void (*done)(void *arg, struct nr_buf *value);
    void *arg;
    bool forgotten;
};

struct nr_redis {
    struct nr_redis_cfg cfg;
    struct nr_pool *pool;
    pthread_mutex_t lock;
    redisContext **idle; /* [connections]; n_idle of them */
    unsigned n_idle;
    struct nr_list jobs;
    struct nr_redis_stats stats;
    int64_t pause_ns;              /* the next one */
    _Atomic int64_t closed_until;  /* nothing is asked before */
    _Atomic bool has_secret, asks; /* asks: a hello is under way */
    uint8_t secret[NR_REDIS_SECRET_BYTES];
};

void nr_redis_cfg_default(struct nr_redis_cfg *cfg)
{
    *cfg = (struct nr_redis_cfg){.port = 6379,
                                 .connections = 4,
                                 .connect_ns = NR_S_NS / 10,
                                 .answer_ns = NR_S_NS / 20,
                                 .ttl_s = 86400,
                                 .max_waiting = 256,
                                 .first_pause_ns = NR_S_NS};
}

struct nr_redis *nr_redis_new(const struct nr_redis_cfg *cfg)
{
    struct nr_redis *r = nr_new(struct nr_redis);
    r->cfg = *cfg;
    r->pause_ns = cfg->first_pause_ns;
    r->idle = nr_new_array(redisContext *, cfg->connections);
    pthread_mutex_init(&r->lock, NULL);
    nr_list_init(&r->jobs);
    r->pool = nr_pool_new("naru-redis", cfg->connections, cfg->max_waiting);
    (void)nr_redis_secret(r); /* begins to look for it */
    return r;
}

/* --- connections (pool threads) ---------------------------------------------------------------- */

static struct timeval time_of(int64_t ns)
{
    return (struct timeval){.tv_sec = ns / NR_S_NS, .tv_usec = ns % NR_S_NS / 1000};
}

/* True when the command was answered, and not with an error. */
static bool is_good(redisReply *reply)
{
    bool good = reply != NULL && reply->type != REDIS_REPLY_ERROR;
    freeReplyObject(reply);
    return good;
}

static bool greet(const struct nr_redis_cfg *cfg, redisContext *c)
{
    if (cfg->user != NULL && cfg->password != NULL &&
        !is_good(redisCommand(c, "AUTH %s %s", cfg->user, cfg->password))) {
        return false;
    }
    if (cfg->user == NULL && cfg->password != NULL &&
        !is_good(redisCommand(c, "AUTH %s", cfg->password))) {
        return false;
    }
    return cfg->db == 0 || is_good(redisCommand(c, "SELECT %u", cfg->db));
}

static redisContext *connection_new(const struct nr_redis_cfg *cfg)
{
    const struct timeval limit = time_of(cfg->connect_ns);
    redisContext *c = cfg->unix_path != NULL
                          ? redisConnectUnixWithTimeout(cfg->unix_path, limit)
                          : redisConnectWithTimeout(cfg->host, (int)cfg->port, limit);
    if (c != NULL && (c->err != 0 || redisSetTimeout(c, time_of(cfg->answer_ns)) != REDIS_OK ||
                      !greet(cfg, c))) {
        redisFree(c);
        c = NULL;
    }
    return c;
}

static redisContext *connection_take(struct nr_redis *r)
{
    pthread_mutex_lock(&r->lock);
    redisContext *c = r->n_idle > 0 ? r->idle[--r->n_idle] : NULL;
    pthread_mutex_unlock(&r->lock);
    return c != NULL ? c : connection_new(&r->cfg);
}

/* After a command. c may be NULL. */
static void connection_give(struct nr_redis *r, redisContext *c, bool worked)
{
    pthread_mutex_lock(&r->lock);
    r->stats.up = worked;
    if (worked) {
        r->idle[r->n_idle++] = NR_TAKE(c);
        r->pause_ns = r->cfg.first_pause_ns;
    } else {
        r->stats.errors++;
        atomic_store_explicit(&r->closed_until, nr_clock_now() + r->pause_ns, memory_order_relaxed);
        r->pause_ns = NR_MIN(2 * r->pause_ns, MAX_PAUSE_NS);
    }
    pthread_mutex_unlock(&r->lock);
    redisFree(c);
}

static bool is_closed(struct nr_redis *r)
{
    return nr_clock_now() < atomic_load_explicit(&r->closed_until, memory_order_relaxed);
}

/* --- commands (pool threads) ------------------------------------------------------------------- */

/* *ret: the value, NULL when there is none. False: the server did not answer as it should. */
static bool get_value(redisContext *c, const struct nr_redis_get *g, struct nr_buf **ret)
{
    redisReply *reply = redisCommand(c, "GET %b", g->key, g->key_len);
    bool good =
        reply != NULL && (reply->type == REDIS_REPLY_STRING || reply->type == REDIS_REPLY_NIL);
    if (good && reply->type == REDIS_REPLY_STRING && reply->len <= NR_REDIS_MAX_VALUE_BYTES) {
        *ret = nr_buf_try_new(reply->len);
        if (*ret != NULL) {
            memcpy(nr_buf_data(*ret), reply->str, reply->len);
        }
    }
    freeReplyObject(reply);
    return good;
}

static bool put_value(redisContext *c, const struct nr_redis *r, const struct nr_redis_get *g)
{
    const void *data = nr_buf_data(g->value);
    size_t len = nr_buf_bytes(g->value);
    return is_good(r->cfg.ttl_s > 0 ? redisCommand(c, "SET %b %b EX %u", g->key, g->key_len, data,
                                                   len, r->cfg.ttl_s)
                                    : redisCommand(c, "SET %b %b", g->key, g->key_len, data, len));
}

/* The first process to ask makes it; everybody takes what is there then. */
static bool get_secret(redisContext *c, struct nr_redis *r)
{
    uint8_t fresh[NR_REDIS_SECRET_BYTES];
    if (getrandom(fresh, sizeof fresh, 0) != (ssize_t)sizeof fresh ||
        !is_good(redisCommand(c, "SET " SECRET_KEY " %b NX", fresh, sizeof fresh))) {
        return false;
    }
    redisReply *reply = redisCommand(c, "GET " SECRET_KEY);
    bool good = reply != NULL && reply->type == REDIS_REPLY_STRING && reply->len == sizeof fresh;
    if (good) {
        memcpy(r->secret, reply->str, sizeof r->secret);
        atomic_store_explicit(&r->has_secret, true, memory_order_release);
    }
    freeReplyObject(reply);
    return good;
}

static void job_end(struct nr_redis_get *g)
{
    struct nr_redis *r = g->redis;
    pthread_mutex_lock(&r->lock);
    nr_list_remove(&g->node);
    pthread_mutex_unlock(&r->lock);
    nr_buf_unref(g->value);
    nr_free(g);
}

static void on_loop(struct nr_msg *m)
{
    struct nr_redis_get *g = nr_container_of(m, struct nr_redis_get, msg);
    struct nr_buf *value = NR_TAKE(g->value);
    if (g->forgotten) {
        nr_buf_unref(value);
    } else {
        g->done(g->arg, value);
    }
    job_end(g);
}

static bool do_command(struct nr_redis_get *g, redisContext *c)
{
    struct nr_redis *r = g->redis;
    switch (g->kind) {
    case JOB_GET:
        return get_value(c, g, &g->value);
    case JOB_PUT:
        return put_value(c, r, g);
    default:
        return get_secret(c, r);
    }
}

static void run(struct nr_job *j)
{
    struct nr_redis_get *g = nr_container_of(j, struct nr_redis_get, job);
    struct nr_redis *r = g->redis;
    job_kind kind = g->kind;
    bool worked = false;
    if (!is_closed(r)) { /* what waited while another one failed does not try again */
        redisContext *c = connection_take(r);
        worked = c != NULL && do_command(g, c);
        connection_give(r, c, worked);
    }
    pthread_mutex_lock(&r->lock);
    r->stats.hits += kind == JOB_GET && g->value != NULL;
    r->stats.misses += kind == JOB_GET && g->value == NULL;
    r->stats.stored += kind == JOB_PUT && worked;
    pthread_mutex_unlock(&r->lock);
    if (kind == JOB_HELLO) {
        atomic_store_explicit(&r->asks, false, memory_order_release);
    }
    if (kind == JOB_GET) {
        g->msg.run = on_loop;
        nr_loop_post(g->loop, &g->msg);
    } else {
        job_end(g);
    }
}

/* --- callers ----------------------------------------------------------------------------------- */

static struct nr_redis_get *job_new(struct nr_redis *r, job_kind kind, struct nr_str key)
{
    NR_ASSERT(key.len <= KEY_MAX);
    struct nr_redis_get *g = nr_try_alloc(sizeof *g);
    if (g == NULL) {
        return NULL;
    }
    g->job.run = run;
    g->redis = r;
    g->kind = kind;
    g->key_len = key.len;
    memcpy(g->key, key.len > 0 ? key.ptr : "", key.len);
    pthread_mutex_lock(&r->lock);
    nr_list_append(&r->jobs, &g->node);
    pthread_mutex_unlock(&r->lock);
    return g;
}

/* False: it could not be given to a thread, and is gone. */
static bool job_start(struct nr_redis_get *g)
{
    struct nr_redis *r = g->redis;
    if (nr_pool_submit(r->pool, &g->job) == NARU_OK) {
        return true;
    }
    pthread_mutex_lock(&r->lock);
    r->stats.dropped++;
    pthread_mutex_unlock(&r->lock);
    job_end(g);
    return false;
}

const uint8_t *nr_redis_secret(struct nr_redis *r)
{
    if (is_closed(r)) {
        return NULL;
    }
    if (NR_LIKELY(atomic_load_explicit(&r->has_secret, memory_order_acquire))) {
        return r->secret;
    }
    if (!atomic_exchange_explicit(&r->asks, true, memory_order_acq_rel)) {
        struct nr_redis_get *g = job_new(r, JOB_HELLO, (struct nr_str){0});
        if (g == NULL || !job_start(g)) {
            atomic_store_explicit(&r->asks, false, memory_order_release);
        }
    }
    return NULL;
}

struct nr_redis_get *nr_redis_get(struct nr_redis *r, struct nr_str key, struct nr_loop *loop,
                                  void (*done)(void *arg, struct nr_buf *value), void *arg)
{
    struct nr_redis_get *g = job_new(r, JOB_GET, key);
    if (g == NULL) {
        return NULL;
    }
    g->loop = loop;
    g->done = done;
    g->arg = arg;
    return job_start(g) ? g : NULL;
}

void nr_redis_forget(struct nr_redis_get *get)
{
    get->forgotten = true;
}

void nr_redis_put(struct nr_redis *r, struct nr_str key, struct nr_buf *value)
{
    struct nr_redis_get *g =
        nr_buf_bytes(value) <= NR_REDIS_MAX_VALUE_BYTES ? job_new(r, JOB_PUT, key) : NULL;
    if (g == NULL) {
        nr_buf_unref(value);
        return;
    }
    g->value = value;
    (void)job_start(g);
}

void nr_redis_stats_get(struct nr_redis *r, struct nr_redis_stats *ret)
{
    *ret = (struct nr_redis_stats){0};
    if (r != NULL) {
        pthread_mutex_lock(&r->lock);
        *ret = r->stats;
        pthread_mutex_unlock(&r->lock);
    }
}

void nr_redis_free(struct nr_redis *r)
{
    if (r == NULL) {
        return;
    }
    nr_pool_free(r->pool);
    while (!nr_list_empty(&r->jobs)) {
        job_end(nr_container_of(r->jobs.next, struct nr_redis_get, node));
    }
    while (r->n_idle > 0) {
        redisFree(r->idle[--r->n_idle]);
    }
    nr_free(r->idle);
    pthread_mutex_destroy(&r->lock);
    nr_free(r);
}
