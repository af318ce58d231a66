/* Listening sockets: binding, accepting, spreading connections over the loops.
 *
 * Why not SO_REUSEPORT: the kernel picks a socket by a hash, so 8 connections on 4 loops often
 * leave one loop idle and give another four. Here every loop watches the same listening sockets
 * (EPOLLEXCLUSIVE: one is woken), and whoever accepts hands the descriptor to the loop with the
 * fewest connections. A hand-over costs one message per connection, nothing per request.
 *
 * Invariants
 *  1. `open` of the target loop is raised by the acceptor before the hand-over, so a burst of
 *     accepts in one turn is spread as evenly as a slow trickle.
 *  2. Out of descriptors: the listeners of this loop rest for 100 ms; the loop never spins on a
 *     connection that it cannot accept.
 *
 * Threads: accept callbacks on their loops; nr_listen_open before the loops run. */
#include "http/listen.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"

#define BACKLOG 4096
#define ACCEPTS_PER_TURN 64
#define REST_NS (100 * NR_MS_NS)

static nr_status parse_address(const char *address, uint16_t port, struct sockaddr_storage *ret,
                               socklen_t *ret_len, struct nr_err *err)
{
    memset(ret, 0, sizeof(*ret));
    struct sockaddr_in *v4 = (struct sockaddr_in *)ret;
    struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)ret;
    if (inet_pton(AF_INET, address, &v4->sin_addr) == 1) {
        v4->sin_family = AF_INET;
        v4->sin_port = htons(port);
        *ret_len = sizeof(*v4);
        return NARU_OK;
    }
    if (inet_pton(AF_INET6, address, &v6->sin6_addr) == 1) {
        v6->sin6_family = AF_INET6;
        v6->sin6_port = htons(port);
        *ret_len = sizeof(*v6);
        return NARU_OK;
    }
    return nr_fail(err, NARU_INVALID,
                   "cannot listen on \"%s\": expected a numeric IPv4 or IPv6 address, for example "
                   "127.0.0.1 or ::1",
                   address);
}

nr_status nr_listen_open(const char *address, uint16_t port, int *ret_fd, uint16_t *ret_port,
                         struct nr_err *err)
{
    struct sockaddr_storage sa;
    socklen_t len;
    nr_status st = parse_address(address, port, &sa, &len, err);
    if (st != NARU_OK) {
        return st;
    }
    int fd = socket(sa.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        return nr_fail(err, NARU_IO, "cannot listen on %s: %s", address, strerrordesc_np(errno));
    }
    /* Accepted sockets inherit both, which saves a call for each. */
    const int on = 1;
    (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    (void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
    if (sa.ss_family == AF_INET6) {
        (void)setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof(on));
    }
    if (bind(fd, (struct sockaddr *)&sa, len) != 0 || listen(fd, BACKLOG) != 0) {
        int why = errno;
        (void)close(fd);
        if (why == EADDRINUSE) {
            return nr_fail(err, NARU_EXISTS,
                           "cannot listen on %s port %u: another program uses it; choose another "
                           "port or stop that program",
                           address, (unsigned)port);
        }
        return nr_fail(err, why == EACCES ? NARU_DENIED : NARU_IO,
                       "cannot listen on %s port %u: %s", address, (unsigned)port,
                       strerrordesc_np(why));
    }
    len = sizeof(sa);
    if (getsockname(fd, (struct sockaddr *)&sa, &len) != 0) {
        int why = errno;
        (void)close(fd);
        return nr_fail(err, NARU_IO, "cannot read the port of %s: %s", address,
                       strerrordesc_np(why));
    }
    *ret_port = ntohs(sa.ss_family == AF_INET ? ((struct sockaddr_in *)&sa)->sin_port
                                              : ((struct sockaddr_in6 *)&sa)->sin6_port);
    *ret_fd = fd;
    return NARU_OK;
}

/* Text and class of a peer's address; key is what the count per address goes by. */
static void peer_of(const struct sockaddr_storage *sa, struct nr_peer *peer, uint8_t key[16])
{
    static const uint8_t mapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
    char ip[INET6_ADDRSTRLEN] = "?";
    unsigned port = 0;
    memset(key, 0, 16);
    if (sa->ss_family == AF_INET) {
        const struct sockaddr_in *v4 = (const struct sockaddr_in *)sa;
        memcpy(key, mapped, 12);
        memcpy(key + 12, &v4->sin_addr, 4);
        port = ntohs(v4->sin_port);
        (void)inet_ntop(AF_INET, &v4->sin_addr, ip, sizeof(ip));
        (void)snprintf(peer->text, sizeof(peer->text), "%s:%u", ip, port);
    } else if (sa->ss_family == AF_INET6) {
        const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)sa;
        memcpy(key, &v6->sin6_addr, 16);
        port = ntohs(v6->sin6_port);
        (void)inet_ntop(AF_INET6, &v6->sin6_addr, ip, sizeof(ip));
        (void)snprintf(peer->text, sizeof(peer->text), "[%s]:%u", ip, port);
    }
    static const uint8_t loop6[16] = {[15] = 1};
    peer->loopback = (memcmp(key, mapped, 12) == 0 && key[12] == 127) ||
                     memcmp(key, loop6, 16) == 0;
}

static void rest(struct nr_acceptor *a)
{
    if (a->watch.events) {
        nr_loop_unwatch(a->e->loop, &a->watch);
    }
    nr_loop_timer_set(a->e->loop, &a->rest, nr_loop_now(a->e->loop) + REST_NS);
}

static void on_rest(struct nr_timer *t)
{
    struct nr_acceptor *a = nr_container_of(t, struct nr_acceptor, rest);
    if (!a->e->draining &&
        nr_loop_watch(a->e->loop, &a->watch, EPOLLIN | EPOLLEXCLUSIVE) != NARU_OK) {
        nr_loop_timer_set(a->e->loop, t, nr_loop_now(a->e->loop) + REST_NS);
    }
}

static void on_accept(struct nr_watch *w, uint32_t events)
{
    (void)events;
    struct nr_acceptor *a = nr_container_of(w, struct nr_acceptor, watch);
    for (int i = 0; i < ACCEPTS_PER_TURN; i++) {
        struct sockaddr_storage sa = {0};
        socklen_t len = sizeof(sa);
        int fd = accept4(w->fd, (struct sockaddr *)&sa, &len, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) {
            if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
                nr_count(&a->e->counters.refused, 1);
                rest(a);
                return;
            }
            if (errno == EAGAIN || errno == EINVAL) {
                return;
            }
            continue; /* ECONNABORTED and network errors belong to that one connection */
        }
        struct nr_peer peer = {.listener = a->listener};
        uint8_t key[16];
        peer_of(&sa, &peer, key);
        nr_server_accepted(a->e, fd, &peer, key);
    }
}

nr_status nr_acceptor_start(struct nr_acceptor *a, struct nr_engine *e, int fd, uint16_t listener)
{
    *a = (struct nr_acceptor){.e = e, .listener = listener};
    a->watch.fd = fd;
    a->watch.on_event = on_accept;
    a->rest.on_timer = on_rest;
    return nr_loop_watch(e->loop, &a->watch, EPOLLIN | EPOLLEXCLUSIVE);
}

void nr_acceptor_stop(struct nr_acceptor *a)
{
    if (a->e && a->watch.events) {
        nr_loop_unwatch(a->e->loop, &a->watch);
    }
    if (a->e && a->rest.heap_index) {
        nr_loop_timer_cancel(a->e->loop, &a->rest);
    }
}
