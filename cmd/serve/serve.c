/* naru serve: models over HTTP and gRPC. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/node.h"
#include "base/clock.h"
#include "base/log.h"
#include "naru/command.h"

static void on_state(void *ctx, const struct nr_version *v, nr_version_state state,
                     const char *reason)
{
    (void)ctx;
    nr_log(state == NR_VERSION_READY ? NR_LOG_INFO : NR_LOG_ERROR, "model",
           nr_version_state_text(state), NR_KV_TEXT("model", v->name),
           NR_KV_INT("version", v->number), NR_KV_DBL("ms", (double)v->load_ns / 1e6),
           NR_KV_TEXT("reason", reason));
}

static int run(int argc, char **argv)
{
    struct nr_node_cfg cfg;
    struct nr_err err = {0};
    struct nr_node *node;
    sigset_t set;
    int sig;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);
    nr_log_init(&(struct nr_log_cfg){.level = NR_LOG_INFO, .fd = -1});
    nr_node_cfg_default(&cfg);
    const char *paths[1] = {argc > 1 ? argv[1] : "."};
    cfg.repository.paths = paths;
    cfg.repository.n_paths = 1;
    cfg.plugins = nr_plugins_new();
    cfg.listen[0] = (struct nr_node_listen){"127.0.0.1", 8000, "http", 0};
    cfg.listen[1] = (struct nr_node_listen){"127.0.0.1", 8001, "grpc", 0};
    cfg.listen[2] = (struct nr_node_listen){"127.0.0.1", 8002, "metrics", 0};
    cfg.n_listen = 3;
    cfg.on_state = on_state;
    if (nr_node_new(&cfg, &node, &err) != NARU_OK || nr_node_start(node, &err) != NARU_OK) {
        fprintf(stderr, "naru serve: %s\n", err.text);
        return 1;
    }
    nr_node_wait_ready(node, 0);
    sigwait(&set, &sig);
    nr_node_drain(node, nr_clock_now() + 5 * NR_S_NS, NULL);
    nr_node_free(node);
    nr_plugins_free(cfg.plugins);
    return 0;
}

const struct command command_serve = {"serve", "serve models over HTTP and gRPC", run};
