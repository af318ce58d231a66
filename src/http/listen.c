/* Acceptors: every loop watches every listening socket and spreads what it accepts.
 *
 * Why not SO_REUSEPORT: the kernel picks a socket by a hash, so 8 connections on 4 loops often
 * leave one loop idle and give another four. Here every loop watches the same listening sockets
 * (EPOLLEXCLUSIVE: one is woken), and whoever accepts hands the descriptor to the loop with the
 * fewest connections. A hand-over costs one message per connection, nothing per request.
 *
 * Invariants
 *  1. `open` of the target loop is raised by the acceptor before the hand-over (nr_server_accepted),
 *     so a burst of accepts in one turn is spread as evenly as a slow trickle.
 *  2. Out of descriptors or memory: the listener rests for 100 ms on this loop, which never spins
 *     on a connection that it cannot accept.
 *
 * Threads: the loop's. */
#include "http/listen.h"

#include <errno.h>
#include <netinet/in.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/map.h"

#define ACCEPTS_PER_TURN 64
#define REST_NS (100 * NR_MS_NS)

/* What the count per address goes by: the address in IPv6 form, without the port. */
static void key_of(const struct nr_sock_addr *a, uint8_t key[16])
{
    memset(key, 0, 16);
    if (a->addr.ss_family == AF_INET) {
        struct sockaddr_in v4;
        memcpy(&v4, &a->addr, sizeof(v4));
        memset(key + 10, 0xff, 2);
        memcpy(key + 12, &v4.sin_addr, 4);
    } else if (a->addr.ss_family == AF_INET6) {
        struct sockaddr_in6 v6;
        memcpy(&v6, &a->addr, sizeof(v6));
        memcpy(key, &v6.sin6_addr, 16);
    }
}

/* See nr_peer.client. fd tells open connections apart. */
static uint64_t client_of(const struct nr_sock_addr *a, const uint8_t key[16], int fd)
{
    static const uint8_t one[] = {127, 0, 0, 1}, loopback6[16] = {[15] = 1};
    uint8_t id[16 + sizeof(fd)] = {0};
    bool mapped = a->addr.ss_family == AF_INET || (key[10] == 0xff && key[11] == 0xff);
    bool shared = (a->addr.ss_family != AF_INET && a->addr.ss_family != AF_INET6) ||
                  (mapped && memcmp(key + 12, one, 4) == 0) || memcmp(key, loopback6, 16) == 0;
    memcpy(id, key, mapped || shared ? 16 : 8); /* IPv6: one /64 is one client */
    if (shared) {
        memcpy(id + 16, &fd, sizeof(fd));
    }
    return nr_hash(id, sizeof(id));
}

static void start_rest(struct nr_acceptor *a)
{
    nr_loop_unwatch(a->e->loop, &a->watch);
    nr_loop_timer_set(a->e->loop, &a->rest, nr_loop_now(a->e->loop) + REST_NS);
}

static void on_rest(struct nr_timer *t)
{
    struct nr_acceptor *a = nr_container_of(t, struct nr_acceptor, rest);
    if (nr_loop_watch(a->e->loop, &a->watch, EPOLLIN | EPOLLEXCLUSIVE) != NARU_OK) {
        nr_loop_timer_set(a->e->loop, t, nr_loop_now(a->e->loop) + REST_NS);
    }
}

static void on_accept(struct nr_watch *w, uint32_t events)
{
    (void)events;
    struct nr_acceptor *a = nr_container_of(w, struct nr_acceptor, watch);
    for (int i = 0; i < ACCEPTS_PER_TURN; i++) {
        struct nr_sock_addr from;
        int fd;
        nr_status st = nr_sock_accept(&a->sock, w->fd, &fd, &from);
        if (st == NARU_AGAIN) {
            return;
        }
        if (st != NARU_OK) {
            nr_count(&a->e->counters.refused, 1);
            start_rest(a);
            return;
        }
        struct nr_peer peer = {.listener = a->listener, .loopback = nr_sock_loopback(&from)};
        nr_sock_addr_format(&from, peer.text);
        uint8_t key[16];
        key_of(&from, key);
        peer.client = client_of(&from, key, fd);
        nr_server_accepted(a->e, fd, &peer, key);
    }
}

nr_status nr_acceptor_start(struct nr_acceptor *a, struct nr_engine *e, int fd, uint16_t listener)
{
    *a = (struct nr_acceptor){.e = e, .listener = listener};
    a->watch.fd = fd;
    a->watch.on_event = on_accept;
    a->rest.on_timer = on_rest;
    nr_sock_acceptor_init(&a->sock);
    return nr_loop_watch(e->loop, &a->watch, EPOLLIN | EPOLLEXCLUSIVE);
}

void nr_acceptor_look(struct nr_acceptor *a)
{
    if (a->e && a->watch.events != 0) { /* not while it rests */
        on_accept(&a->watch, EPOLLIN);
    }
}

void nr_acceptor_stop(struct nr_acceptor *a)
{
    if (a->e) {
        nr_loop_unwatch(a->e->loop, &a->watch);
        nr_loop_timer_cancel(a->e->loop, &a->rest);
        nr_sock_acceptor_done(&a->sock);
        a->e = NULL;
    }
}
