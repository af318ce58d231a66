/* The old process of an upgrade: see upgrade.h for the talk.
 *
 * DESIGN. Nothing here changes what the node does: sockets are shared by sending copies of their
 * descriptors, and the caller retires the node when the new process has said that it serves. A
 * connection is accepted by whichever of the two comes first in between; both serve.
 *
 * INVARIANT. A child that we started is waited for unless it serves: nr_giver_free ends it. One that
 * serves outlives us.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "api/upgrade_priv.h"
#include "base/arena.h"
#include "base/clock.h"
#include "base/mem.h"
#include "io/file.h"
#include "io/pass.h"

#define LAST_WORDS_NS NR_S_NS /* for the exit code of a child whose connection has ended */

struct nr_giver {
    struct nr_giver_cfg cfg;
    int sock;
    pid_t pid;
    bool is_child; /* ours, and not waited for yet */
    enum {
        BEGUN,   /* nothing said yet */
        OFFERED, /* it loads */
        GOING,   /* it was told to accept */
        OVER     /* it serves, or the talk has ended */
    } phase;
};

static struct nr_giver *make(const struct nr_giver_cfg *cfg)
{
    struct nr_giver *g = nr_new(struct nr_giver);
    g->cfg = *cfg;
    g->sock = -1;
    return g;
}

nr_status nr_giver_start(const struct nr_giver_cfg *cfg, const struct nr_rebirth *r,
                         struct nr_giver **ret, struct nr_err *err)
{
    int pair[2];
    nr_status st = nr_pass_pair(pair, err);
    if (st != NARU_OK) {
        return st;
    }
    struct nr_giver *g = make(cfg);
    g->sock = pair[0];
    st = nr_rebirth_start(r, pair[1], NR_UPGRADE_VARIABLE, &g->pid, err);
    nr_close(pair[1]); /* so that its end is seen here */
    if (st != NARU_OK) {
        nr_giver_free(g, NULL);
        return st;
    }
    g->is_child = true;
    *ret = g;
    return NARU_OK;
}

nr_status nr_giver_meet(const struct nr_giver_cfg *cfg, uint64_t name, struct nr_giver **ret,
                        struct nr_err *err)
{
    struct nr_giver *g = make(cfg);
    nr_status st = nr_pass_connect(name, &g->sock, &g->pid, err);
    if (st != NARU_OK) {
        nr_giver_free(g, NULL);
        return st;
    }
    *ret = g;
    return NARU_OK;
}

void nr_giver_refuse(uint64_t name, const char *why)
{
    struct nr_err err = {0};
    pid_t pid;
    nr_autoclose int sock = -1;
    if (nr_pass_connect(name, &sock, &pid, &err) == NARU_OK) {
        nr_upgrade_fail(sock, why);
    }
}

int nr_giver_fd(const struct nr_giver *g)
{
    return g->sock;
}

int64_t nr_giver_wait_ns(const struct nr_giver *g)
{
    return NR_MAX(g->cfg.deadline_ns - nr_clock_now(), 0);
}

pid_t nr_giver_pid(const struct nr_giver *g)
{
    return g->pid;
}

/* --- the offer -------------------------------------------------------------------------------- */

static nr_status send_listeners(const struct nr_giver *g, struct nr_err *err)
{
    const struct nr_node_cfg *c = nr_node_cfg(g->cfg.node);
    nr_status st = g->cfg.all ? nr_pass_send(g->sock, "all", -1, err) : NARU_OK;
    for (unsigned i = 0; i < c->n_listen && st == NARU_OK; i++) {
        nr_autofree char *line = nr_format("listen %s %u %s", c->listen[i].address,
                                           c->listen[i].port, c->listen[i].what);
        st = nr_pass_send(g->sock, line, nr_server_listener(nr_node_server(g->cfg.node), i), err);
    }
    return st;
}

static nr_status send_labels(const struct nr_giver *g, const char *model, struct nr_err *err)
{
    struct nr_traffic t;
    if (!nr_repository_labels_moved(nr_node_repository(g->cfg.node), nr_str_from(model), &t)) {
        return NARU_OK;
    }
    nr_autofree char *head = nr_format("label %s", model);
    nr_status st = nr_pass_send(g->sock, head, -1, err);
    for (uint32_t i = 0; i < t.n && st == NARU_OK; i++) {
        const struct nr_traffic_rule *r = &t.rules[i];
        nr_autofree char *line = nr_format("label %s %s %lld %u %u", model, r->name,
                                           (long long)r->version, r->weight, r->shadow);
        st = nr_pass_send(g->sock, line, -1, err);
    }
    return st;
}

static nr_status send_models(const struct nr_giver *g, struct nr_err *err)
{
    const struct nr_index_entry *ready;
    struct nr_arena arena;
    uint32_t n;
    nr_status st = NARU_OK;
    nr_arena_init(&arena, NR_UPGRADE_INDEX_BYTES);
    nr_repository_index(nr_node_repository(g->cfg.node), true, &arena, &ready, &n);
    for (uint32_t i = 0; i < n && st == NARU_OK; i++) {
        if (i > 0 && strcmp(ready[i].name, ready[i - 1].name) == 0) {
            continue; /* another version */
        }
        nr_autofree char *line = nr_format("model %s", ready[i].name);
        st = nr_pass_send(g->sock, line, -1, err);
        if (st == NARU_OK) {
            st = send_labels(g, ready[i].name, err);
        }
    }
    nr_arena_done(&arena);
    return st;
}

static nr_status send_offer(const struct nr_giver *g, struct nr_err *err)
{
    nr_status st = send_listeners(g, err);
    if (st == NARU_OK) {
        st = send_models(g, err);
    }
    return st == NARU_OK ? nr_pass_send(g->sock, "end", -1, err) : st;
}

/* --- the talk ----------------------------------------------------------------------------------- */

static bool wait_child(struct nr_giver *g, int *ret_status, int options)
{
    pid_t pid;
    while ((pid = waitpid(g->pid, ret_status, options)) < 0 && errno == EINTR) {
    }
    if (pid != 0) {
        g->is_child = false;
    }
    return pid == g->pid;
}

/* The connection has ended: how did the process? */
static void explain_end(struct nr_giver *g, struct nr_err *err)
{
    int64_t until_ns = nr_clock_now() + LAST_WORDS_NS;
    int status = 0;
    bool ended = false;
    while (g->is_child && !(ended = wait_child(g, &status, WNOHANG)) && nr_clock_now() < until_ns) {
        nanosleep(&(struct timespec){.tv_nsec = 5 * NR_MS_NS}, NULL);
    }
    if (ended && WIFSIGNALED(status)) {
        (void)nr_fail(err, NARU_UNAVAILABLE, "the new process ended by signal %d (%s)",
                      WTERMSIG(status), sigabbrev_np(WTERMSIG(status)));
    } else if (ended) {
        (void)nr_fail(err, NARU_UNAVAILABLE,
                      "the new process ended with exit code %d; what it said stands above",
                      WEXITSTATUS(status));
    } else {
        (void)nr_fail(err, NARU_UNAVAILABLE, "the new process has closed the connection");
    }
}

static nr_status answer(struct nr_giver *g, const char *line, struct nr_err *err)
{
    if (g->phase == BEGUN && strcmp(line, NR_UPGRADE_HELLO) == 0) {
        g->phase = OFFERED;
        return send_offer(g, err);
    }
    if (g->phase == OFFERED && strcmp(line, "ready") == 0) {
        g->phase = GOING; /* what is left is a moment's: not the time to give up */
        g->cfg.deadline_ns = NR_MAX(g->cfg.deadline_ns, nr_clock_now() + NR_UPGRADE_TALK_NS);
        return nr_pass_send(g->sock, "go", -1, err);
    }
    if (g->phase == GOING && strcmp(line, "serving") == 0) {
        g->phase = OVER;
        return NARU_OK;
    }
    if (nr_str_starts(nr_str_from(line), NR_STR("failed "))) {
        return nr_fail(err, NARU_UNAVAILABLE, "%s", line + strlen("failed "));
    }
    return nr_fail(err, NARU_INVALID, "the new process said '%.100s', which is not its turn", line);
}

nr_giver_state nr_giver_step(struct nr_giver *g, struct nr_err *err)
{
    char line[NR_PASS_LINE_MAX];
    int fd = -1;
    nr_status st = nr_pass_receive(g->sock, 0, line, &fd, err);
    nr_close(fd);
    if (st == NARU_TIMEOUT && nr_giver_wait_ns(g) > 0) {
        return NR_GIVER_WAITS;
    }
    if (st == NARU_TIMEOUT) {
        (void)nr_fail(err, NARU_TIMEOUT, "the new process was not ready within --upgrade-timeout");
        return NR_GIVER_FAILED;
    }
    if (st == NARU_UNAVAILABLE) {
        explain_end(g, err);
        return NR_GIVER_FAILED;
    }
    if (st == NARU_OK) {
        st = answer(g, line, err);
    }
    if (st != NARU_OK) {
        return NR_GIVER_FAILED;
    }
    return g->phase == OVER ? NR_GIVER_SERVES : NR_GIVER_WAITS;
}

void nr_giver_free(struct nr_giver *g, const char *why)
{
    int status;
    if (g->phase == OVER && why == NULL) {
        nr_upgrade_tell(g->sock, "stopped");
    } else {
        if (why != NULL) {
            nr_upgrade_fail(g->sock, why);
        }
        if (g->is_child) { /* what it holds nobody else has seen: it need not be gentle */
            (void)kill(g->pid, SIGKILL);
            (void)wait_child(g, &status, 0);
        }
    }
    nr_close(g->sock);
    nr_free(g);
}
