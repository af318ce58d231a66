/* Listening sockets made by somebody else: a predecessor's, or systemd's (sd_listen_fds(3)).
 *
 * DESIGN. A predecessor's sockets are matched with what the options ask for, so that a new release or a
 * changed configuration may listen elsewhere as well: what fits is taken over, what is missing is
 * bound, what is left is closed (and stays open in the predecessor until that ends). Socket activation
 * is the other way round: the unit file says where, and the options are not asked.
 *
 * INVARIANT. Every descriptor is in exactly one place: g->sockets[].fd, or, when that is -1, cfg->listen.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "api/upgrade_priv.h"
#include "io/file.h"

#define LISTEN_FDS_START 3 /* sd_listen_fds(3) */

static bool socket_option(int fd, int option, int want)
{
    int value = 0;
    socklen_t len = sizeof(value);
    return getsockopt(fd, SOL_SOCKET, option, &value, &len) == 0 && value == want;
}

nr_status nr_given_add(struct nr_given *g, int fd, struct nr_str address, uint16_t asked_port,
                       struct nr_str what, struct nr_err *err)
{
    struct nr_sock_addr bound;
    char text[NR_SOCK_TEXT_MAX];
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || nr_sock_local(fd, &bound) != NARU_OK ||
        (bound.addr.ss_family != AF_INET && bound.addr.ss_family != AF_INET6) ||
        !socket_option(fd, SO_TYPE, SOCK_STREAM) || !socket_option(fd, SO_ACCEPTCONN, 1)) {
        nr_close(fd);
        return nr_fail(err, NARU_UNSUPPORTED,
                       "descriptor %d is no TCP socket that listens; only such can be taken over",
                       fd);
    }
    if (g->n == NR_NODE_MAX_LISTEN) {
        nr_close(fd);
        return nr_fail(err, NARU_EXHAUSTED, "more than %d listening sockets", NR_NODE_MAX_LISTEN);
    }
    (void)fcntl(fd, F_SETFL, flags | O_NONBLOCK);
    (void)fcntl(fd, F_SETFD, FD_CLOEXEC);
    nr_sock_addr_format(&bound, text);
    *strrchr(text, ':') = '\0'; /* both families end in a port */
    g->sockets[g->n].fd = fd;
    g->sockets[g->n].asked_port = asked_port;
    g->sockets[g->n].bound = bound;
    snprintf(g->sockets[g->n].address, sizeof(g->sockets[0].address), NR_STR_FMT,
             NR_STR_ARG(address.len > 0 ? address : nr_str_from(text)));
    snprintf(g->sockets[g->n].what, sizeof(g->sockets[0].what), NR_STR_FMT, NR_STR_ARG(what));
    g->n++;
    return NARU_OK;
}

nr_status nr_given_by_systemd(struct nr_given *g, struct nr_err *err)
{
    uint64_t pid, n;
    const char *names = getenv("LISTEN_FDNAMES");
    struct nr_str rest = nr_str_from(names);
    nr_status st = NARU_OK;
    *g = (struct nr_given){.all = true};
    if (!nr_str_to_u64(nr_str_from(getenv("LISTEN_PID")), &pid) || pid != (uint64_t)getpid() ||
        !nr_str_to_u64(nr_str_from(getenv("LISTEN_FDS")), &n)) {
        return NARU_OK;
    }
    for (uint64_t i = 0; i < NR_MIN(n, (uint64_t)NR_NODE_MAX_LISTEN + 1) && st == NARU_OK; i++) {
        struct nr_str name = nr_str_cut(rest, ':', &rest);
        bool known =
            nr_str_is(name, "http") || nr_str_is(name, "grpc") || nr_str_is(name, "metrics");
        st = nr_given_add(g, LISTEN_FDS_START + (int)i, (struct nr_str){NULL, 0}, 0,
                          known ? name : NR_STR("http, grpc, metrics"), err);
    }
    if (st != NARU_OK) {
        nr_given_done(g);
        nr_err_prefix(err, "socket activation: ");
    }
    (void)unsetenv("LISTEN_PID");
    (void)unsetenv("LISTEN_FDS");
    (void)unsetenv("LISTEN_FDNAMES");
    return st;
}

static nr_status use_all(struct nr_given *g, struct nr_node_cfg *cfg, bool allow_remote,
                         struct nr_err *err)
{
    for (unsigned i = 0; i < g->n; i++) {
        if (!nr_sock_loopback(&g->sockets[i].bound) && !allow_remote) {
            return nr_fail(err, NARU_DENIED,
                           "the socket on %s that was given can be reached from other machines, "
                           "and there is neither TLS nor authentication: put a proxy in front, or "
                           "give --i-accept-insecure",
                           g->sockets[i].address);
        }
    }
    for (unsigned i = 0; i < g->n; i++) {
        cfg->listen[i] = (struct nr_node_listen){.address = g->sockets[i].address,
                                                 .what = g->sockets[i].what,
                                                 .given = true,
                                                 .fd = g->sockets[i].fd};
        g->sockets[i].fd = -1;
    }
    cfg->n_listen = g->n;
    return NARU_OK;
}

static bool fits(const struct nr_given *g, unsigned i, const struct nr_node_listen *l)
{
    struct nr_sock_addr wanted;
    struct nr_err err = {0};
    if (g->sockets[i].fd < 0) {
        return false;
    }
    if (l->port == 0) {
        return g->sockets[i].asked_port == 0 && strcmp(g->sockets[i].what, l->what) == 0 &&
               strcmp(g->sockets[i].address, l->address) == 0;
    }
    return nr_sock_addr_parse(l->address, l->port, &wanted, &err) == NARU_OK &&
           nr_sock_addr_compare(&g->sockets[i].bound, &wanted) == NR_SOCK_SAME;
}

nr_status nr_given_use(struct nr_given *g, struct nr_node_cfg *cfg, bool allow_remote,
                       struct nr_err *err)
{
    if (g->all) {
        return use_all(g, cfg, allow_remote, err);
    }
    for (unsigned k = 0; k < cfg->n_listen; k++) {
        struct nr_node_listen *l = &cfg->listen[k];
        for (unsigned i = 0; i < g->n && !l->given; i++) {
            if (fits(g, i, l)) {
                l->given = true;
                l->fd = g->sockets[i].fd;
                g->sockets[i].fd = -1;
            }
        }
    }
    nr_given_done(g);
    return NARU_OK;
}

void nr_given_done(struct nr_given *g)
{
    for (unsigned i = 0; i < g->n; i++) {
        nr_close(g->sockets[i].fd);
        g->sockets[i].fd = -1;
    }
}
