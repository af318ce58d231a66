/* Putting a serving process together and taking it apart in the right order.
 *
 * ORDER. Up: loops → pool → repository (scan) → edge → listeners → executors, loop threads →
 * accepting, loading. No thread runs before nr_node_start: whoever calls may give up privileges in
 * between, and every thread is without them. Down: drain → abort connections → loops end (so no request is submitted) →
 * repository unloads (schedulers free) → executors, pool → the rest. Nothing is freed while a
 * thread that could touch it lives.
 */
#include "api/node.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "api/call.h"
#include "base/cgroup.h"
#include "base/clock.h"
#include "base/cpu.h"
#include "base/mem.h"
#include "base/reclaim.h"
#include "io/loop.h"

/* Of an I/O thread's time, so that it gets in soon between executors that compute. */
#define SLICE_NS (NR_MS_NS / 10)

struct nr_node {
    struct nr_node_cfg cfg;
    struct nr_loop **loops;
    pthread_t *threads;
    unsigned n_loops, n_threads;
    struct nr_runtime_host runtime;
    struct nr_pool *pool;
    struct nr_repository *repository;
    struct nr_api *api;
    struct nr_server *server;
    bool stopped;
};

void nr_node_cfg_default(struct nr_node_cfg *cfg)
{
    *cfg = (struct nr_node_cfg){.max_exec_threads = 64,
                                .pool_queue = 256,
                                .max_instances = 64,
                                .cache_bytes = 64u << 20,
                                .warm_up = true};
    nr_redis_cfg_default(&cfg->redis);
    nr_http_limits_default(&cfg->http);
    nr_sched_limits_default(&cfg->queue);
    nr_placement_cfg_default(&cfg->placement);
    cfg->placement.allowed = true;
    cfg->repository.config.auto_complete = true;
    cfg->api = (struct nr_api_cfg){.server_name = "naru",
                                   .server_version = NARU_VERSION,
                                   .max_body_bytes = 64u << 20,
                                   .inline_json_bytes = 64u << 10,
                                   .strict_readiness = true,
                                   .check_browser = true,
                                   .max_image_pixels = 50000000,
                                   .max_image_side = 16384};
}

static void on_publish(void *ctx)
{
    struct nr_node *n = ctx;
    if (n->api != NULL) {
        nr_api_catalog_changed(n->api);
    }
}

static void on_state(void *ctx, const struct nr_version *v, nr_version_state state,
                     const char *reason)
{
    struct nr_node *n = ctx;
    if (n->cfg.on_state != NULL) {
        n->cfg.on_state(n->cfg.on_state_ctx, v, state, reason);
    }
}

/* Models were opened or closed: what only that needed goes back. */
static void on_rest(void *ctx)
{
    (void)ctx;
    (void)nr_reclaim_code();
    nr_reclaim_heap();
}

static nr_status make_loops(struct nr_node *n, struct nr_err *err)
{
    unsigned want = n->cfg.io_threads > 0 ? n->cfg.io_threads : NR_MIN(nr_cpu_usable(), 4u);
    n->loops = nr_new_array(struct nr_loop *, want);
    n->threads = nr_new_array(pthread_t, want);
    for (; n->n_loops < want; n->n_loops++) {
        nr_status st = nr_loop_new(n->n_loops, &n->loops[n->n_loops], err);
        if (st != NARU_OK) {
            return st;
        }
    }
    return NARU_OK;
}

/* 75 % of what this process may use: the smallest limit of its control groups, or the machine. */
static uint64_t default_budget(void)
{
    uint64_t all = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
    return NR_MIN(all, nr_cgroup_memory_limit(NULL, NULL)) / 4 * 3;
}

/* Large buffers that end on a loop are unmapped by the pool. The memory itself carries the job. The
 * process has one pool for it: that of the node made last. */
#define UNMAP_SLICE_BYTES ((size_t)2 << 20)
struct unmap_job {
    struct nr_job job;
    size_t bytes;
};
static struct nr_pool *_Atomic unmap_pool;

/* In slices: while the kernel frees pages, other threads that need the lock of the address space wait
 * (a heap that grows on a loop, for one). Emptied, the mapping itself is gone in a moment. */
static void run_unmap(struct nr_job *j)
{
    struct unmap_job *u = nr_container_of(j, struct unmap_job, job);
    size_t bytes = u->bytes;
    char *memory = (char *)u;
    for (size_t at = 0; at < bytes; at += UNMAP_SLICE_BYTES) {
        madvise(memory + at, NR_MIN(UNMAP_SLICE_BYTES, bytes - at), MADV_DONTNEED);
    }
    munmap(memory, bytes);
}

static bool unmap_on_pool(void *memory, size_t bytes)
{
    struct nr_pool *pool = atomic_load_explicit(&unmap_pool, memory_order_acquire);
    if (pool == NULL || nr_loop_current() == NULL) {
        return false;
    }
    struct unmap_job *u = memory;
    *u = (struct unmap_job){.job.run = run_unmap, .bytes = bytes};
    return nr_pool_submit(pool, &u->job) == NARU_OK;
}

/* Answers that are kept count against the budget of requests: a quarter of it at most. */
static struct nr_cache *make_cache(uint64_t bytes, uint64_t budget, bool is_shared)
{
    return bytes > 0 || is_shared ? nr_cache_new(NR_MIN(bytes, budget / 4)) : NULL;
}

static nr_status make_rooms(struct nr_node *n, struct nr_err *err)
{
    unsigned pool_threads = n->cfg.pool_threads > 0 ? n->cfg.pool_threads : nr_cpu_usable();
    uint64_t budget =
        n->cfg.memory_budget_bytes > 0 ? n->cfg.memory_budget_bytes : default_budget();
    bool is_shared = n->cfg.redis.host != NULL || n->cfg.redis.unix_path != NULL;
    nr_buf_set_budget(budget);
    n->pool = nr_pool_new("naru-pool", pool_threads, n->cfg.pool_queue);
    atomic_store_explicit(&unmap_pool, n->pool, memory_order_release);
    nr_buf_set_unmap(unmap_on_pool);
    n->runtime =
        (struct nr_runtime_host){.plugins = n->cfg.plugins,
                                 .batchings = n->cfg.batchings,
                                 .loops = n->loops,
                                 .n_loops = n->n_loops,
                                 .pool = n->pool,
                                 .images = NR_IMAGE_LIMITS_DEFAULT,
                                 .limits = n->cfg.queue,
                                 .placement = n->cfg.placement,
                                 .max_instances = n->cfg.max_instances,
                                 .warm_up = n->cfg.warm_up,
                                 .cache = make_cache(n->cfg.cache_bytes, budget, is_shared),
                                 .redis = is_shared ? nr_redis_new(&n->cfg.redis) : NULL,
                                 .sequences = nr_sequence_book_new()};
    n->runtime.images.max_pixels = n->cfg.api.max_image_pixels;
    n->runtime.images.max_side = n->cfg.api.max_image_side;
    struct nr_repository_cfg rc = n->cfg.repository;
    rc.ops = nr_runtime_ops;
    rc.ops_ctx = &n->runtime;
    rc.on_publish = on_publish;
    rc.on_state = on_state;
    rc.on_rest = n->cfg.http.idle_trim_ns > 0 ? on_rest : NULL;
    rc.event_ctx = n;
    nr_status st = nr_repository_new(&rc, &n->repository, err);
    if (st != NARU_OK) {
        return st;
    }
    struct nr_api_cfg ac = n->cfg.api;
    ac.repository = n->repository;
    ac.on_demand = rc.budget_bytes > 0;
    ac.runtime = &n->runtime;
    ac.pool = n->pool;
    ac.loops = n->loops;
    ac.n_loops = n->n_loops;
    return nr_api_new(&ac, &n->api, err);
}

static nr_status make_server(struct nr_node *n, struct nr_err *err)
{
    nr_status st =
        nr_server_new(n->loops, n->n_loops, &n->cfg.http, nr_api_app(n->api), &n->server);
    if (st != NARU_OK) {
        return nr_fail(err, st, "the HTTP server cannot be made: %s", nr_status_text(st));
    }
    nr_api_set_server(n->api, n->server);
    for (unsigned i = 0; i < n->cfg.n_listen; i++) {
        struct nr_node_listen *l = &n->cfg.listen[i];
        st = l->given ? nr_server_adopt(n->server, l->fd, (uint16_t)i, &l->bound_port, err)
                      : nr_server_listen(n->server, l->address, l->port, (uint16_t)i,
                                         &l->bound_port, err);
        if (st != NARU_OK) {
            return st;
        }
    }
    return NARU_OK;
}

nr_status nr_node_new(const struct nr_node_cfg *cfg, struct nr_node **ret, struct nr_err *err)
{
    struct nr_node *n = nr_new(struct nr_node);
    n->cfg = *cfg;
    nr_status st = make_loops(n, err);
    if (st == NARU_OK) {
        st = make_rooms(n, err);
    }
    if (st == NARU_OK) {
        st = make_server(n, err);
    }
    if (st != NARU_OK) {
        nr_node_free(n);
        return st;
    }
    *ret = n;
    return NARU_OK;
}

static void *loop_main(void *arg)
{
    struct nr_loop *l = arg;
    char name[16];
    snprintf(name, sizeof(name), "naru-io-%u", nr_loop_index(l) % 1000);
    pthread_setname_np(pthread_self(), name);
    (void)nr_cpu_slice(SLICE_NS); /* older kernels: executions may hold a loop up for longer */
    nr_loop_run(l);
    nr_arena_thread_done();
    nr_buf_thread_done();
    return NULL;
}

nr_status nr_node_start(struct nr_node *n, struct nr_err *err)
{
    n->runtime.exec = nr_exec_new(n->cfg.exec_threads, n->cfg.max_exec_threads);
    nr_repository_load_all(n->repository);
    for (; n->n_threads < n->n_loops; n->n_threads++) {
        if (pthread_create(&n->threads[n->n_threads], NULL, loop_main, n->loops[n->n_threads]) !=
            0) {
            return nr_fail(err, NARU_NOMEM, "cannot start I/O thread %u; lower --io-threads",
                           n->n_threads);
        }
    }
    return n->cfg.hold ? NARU_OK : nr_server_start(n->server, err);
}

nr_status nr_node_accept(struct nr_node *n, struct nr_err *err)
{
    return nr_server_start(n->server, err);
}

bool nr_node_wait_ready(struct nr_node *n, int64_t deadline_ns)
{
    return nr_repository_wait(n->repository, deadline_ns);
}

const struct nr_node_cfg *nr_node_cfg(const struct nr_node *n)
{
    return &n->cfg;
}

struct nr_repository *nr_node_repository(struct nr_node *n)
{
    return n->repository;
}

struct nr_server *nr_node_server(struct nr_node *n)
{
    return n->server;
}

static void nap(int64_t ns)
{
    struct timespec ts = {.tv_nsec = (long)ns};
    nanosleep(&ts, NULL);
}

static bool wait_connections(struct nr_node *n, int64_t deadline_ns)
{
    while (nr_server_connections(n->server) > 0 || nr_api_shadows(n->api) > 0) {
        if (nr_clock_now() >= deadline_ns) {
            return false;
        }
        nap(2 * NR_MS_NS);
    }
    return true;
}

void nr_node_unready(struct nr_node *n)
{
    nr_api_set_draining(n->api);
}

bool nr_node_drain(struct nr_node *n, int64_t deadline_ns)
{
    nr_api_set_draining(n->api);
    nr_server_drain(n->server);
    return wait_connections(n, deadline_ns);
}

bool nr_node_retire(struct nr_node *n, int64_t deadline_ns)
{
    nr_server_retire(n->server);
    while (nr_server_accepts(n->server)) {
        if (nr_clock_now() >= deadline_ns) {
            return false;
        }
        nap(NR_MS_NS / 2);
    }
    return true;
}

bool nr_node_leave(struct nr_node *n, int64_t idle_until_ns, int64_t deadline_ns)
{
    if (wait_connections(n, NR_MIN(idle_until_ns, deadline_ns))) {
        return true;
    }
    nr_server_drain(n->server);
    return wait_connections(n, deadline_ns);
}

void nr_node_stop(struct nr_node *n)
{
    if (n->stopped) {
        return;
    }
    n->stopped = true;
    if (n->server != NULL && n->n_threads > 0) {
        nr_server_abort(n->server);
        /* Running batches still complete to their loops; wait for them, not for ever. */
        wait_connections(n, nr_clock_now() + 5 * NR_S_NS);
    }
    for (unsigned i = 0; i < n->n_threads; i++) {
        nr_loop_stop(n->loops[i]);
    }
    for (unsigned i = 0; i < n->n_threads; i++) {
        pthread_join(n->threads[i], NULL);
    }
    n->n_threads = 0;
}

void nr_node_free(struct nr_node *n)
{
    if (n == NULL) {
        return;
    }
    nr_node_stop(n);
    nr_server_free(n->server);
    struct nr_pool *mine = n->pool;
    atomic_compare_exchange_strong(&unmap_pool, &mine, NULL);
    nr_pool_free(n->pool);
    nr_sequence_book_end(n->runtime.sequences);
    /* A load may still be under way, and what it publishes goes through the edge: let it end. Then
     * the readers' snapshots go first, or the repository would wait for them. */
    if (n->repository != NULL) {
        nr_repository_stop(n->repository);
    }
    nr_api_readers_done(n->api);
    nr_repository_free(n->repository);
    nr_api_free(n->api);
    nr_redis_free(n->runtime.redis);
    nr_cache_free(n->runtime.cache);
    nr_sequence_book_free(n->runtime.sequences);
    nr_exec_free(n->runtime.exec);
    for (unsigned i = 0; i < n->n_loops; i++) {
        nr_loop_free(n->loops[i]);
    }
    nr_free(n->loops);
    nr_free(n->threads);
    nr_free(n);
}
