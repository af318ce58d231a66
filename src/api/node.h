/* A serving node: loops, executors, repository, edge and listeners of one process, put together,
 * run, drained and taken apart. cmd/serve and tests give it a configuration and nothing else.
 *
 *   nr_node_new → nr_node_start (listens, loads) → nr_node_wait_ready → … → nr_node_drain →
 *   nr_node_stop → nr_node_free
 */
#ifndef NR_API_NODE_H
#define NR_API_NODE_H

#include "api/api.h"
#include "http/server.h"
#include "model/repository.h"

#define NR_NODE_MAX_LISTEN 16

struct nr_node_listen {
    const char *address;
    uint16_t port; /* 0: a free one */
    const char
        *what; /* "http", "grpc", "metrics": for the banner only, every listener speaks all */
    uint16_t bound_port; /* filled by nr_node_new */
    bool given;          /* fd listens already: see api/upgrade.h; nr_node_new takes it over */
    int fd;
};

struct nr_node_cfg {
    struct nr_node_listen listen[NR_NODE_MAX_LISTEN];
    unsigned n_listen;
    unsigned io_threads;   /* 0: usable cores, 4 at most */
    unsigned exec_threads; /* 0: usable cores */
    unsigned max_exec_threads;
    unsigned pool_threads; /* 0: usable cores */
    unsigned pool_queue;
    uint64_t
        memory_budget_bytes; /* of tensor and body buffers; 0: 75 % of the machine's or cgroup's */
    uint64_t cache_bytes;    /* of the response cache; 0: none */
    struct nr_redis_cfg
        redis; /* shares answers with other processes; host and unix_path NULL: none */
    struct nr_http_limits http;
    struct nr_repository_cfg repository; /* ops, ctx and callbacks are filled by the node */
    struct nr_plugins *plugins;          /* borrowed */
    struct nr_batchings *batchings; /* borrowed; NULL: models that name a strategy do not load */
    struct nr_sched_limits queue;
    struct nr_placement_cfg placement;
    unsigned max_instances;
    bool warm_up;          /* see nr_runtime_host */
    bool hold;             /* nr_node_start does not accept yet: nr_node_accept does */
    struct nr_api_cfg api; /* repository, runtime, pool, loops are filled by the node */
    /* A version came to rest (see nr_repository_cfg); may be NULL. */
    void (*on_state)(void *ctx, const struct nr_version *v, nr_version_state state,
                     const char *reason);
    void *on_state_ctx;
};
void nr_node_cfg_default(struct nr_node_cfg *cfg);

struct nr_node;
/* Opens the repository (bad paths fail here), makes threads' objects but no threads, binds all
 * listeners. Borrowed parts of cfg must outlive the node. */
nr_nodiscard nr_status nr_node_new(const struct nr_node_cfg *cfg, struct nr_node **ret,
                                   struct nr_err *err);
/* Starts threads, loading and, unless cfg.hold, accepting. */
nr_nodiscard nr_status nr_node_start(struct nr_node *n, struct nr_err *err);
nr_nodiscard nr_status nr_node_accept(struct nr_node *n, struct nr_err *err);
/* Until every model came to rest; false when deadline_ns (monotonic, 0 none) passed first. */
bool nr_node_wait_ready(struct nr_node *n, int64_t deadline_ns);
const struct nr_node_cfg *nr_node_cfg(const struct nr_node *n); /* with bound ports */
struct nr_repository *nr_node_repository(struct nr_node *n);
struct nr_server *nr_node_server(struct nr_node *n);
/* Readiness is no from here on; everything is served as before. Any thread. */
void nr_node_unready(struct nr_node *n);
/* Stops accepting, answers what is there; true when no connection is left before deadline_ns.
 * Any thread but a loop. */
bool nr_node_drain(struct nr_node *n, int64_t deadline_ns);
/* Another process accepts from the same sockets (api/upgrade.h): this one stops; true once every loop
 * has, false when deadline_ns passed first. Readiness stays as it is: it is the service's. */
bool nr_node_retire(struct nr_node *n, int64_t deadline_ns);
/* After that: answers what is there. Idle connections may send one more request until idle_until_ns,
 * then they are closed. True when no connection is left before deadline_ns. Any thread but a loop. */
bool nr_node_leave(struct nr_node *n, int64_t idle_until_ns, int64_t deadline_ns);
/* Cuts what is left, ends loops and threads, unloads. */
void nr_node_stop(struct nr_node *n);
void nr_node_free(struct nr_node *n); /* stops if need be; accepts NULL */

#endif
