/* The server: one engine per loop, listeners, limits on connections, drain and abort.
 *
 * Invariants
 *  1. A connection counts in `open` of its engine from the moment it was accepted until its last
 *     exchange is over; nr_server_connections is the sum.
 *  2. Addresses are counted under one lock, taken once when a connection that is not from this
 *     machine comes and once when it goes; requests never take it.
 *  3. drain and abort may be called by any thread, any number of times: they post one message to
 *     each loop, once each.
 *  4. Sockets that another process watches too (nr_server_retire) are never shut down here, and no
 *     connection that was accepted is closed unserved: connections on their way from one loop to
 *     another have arrived before the loops are told to say good-bye, since the last loop that stops
 *     accepting tells them, behind those messages.
 *
 * Threads: as said in server.h. */
#include "http/server.h"

#include <pthread.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/map.h"
#include "base/mem.h"
#include "http/listen.h"

#define MAX_LISTENERS 16u
#define RESERVED_FDS 64u

struct nr_loop_part {
    struct nr_engine e;
    struct nr_server *server;
    struct nr_acceptor acceptors[MAX_LISTENERS];
    struct nr_msg start_msg, drain_msg, abort_msg, stop_msg, retire_msg, look_msg;
};

struct nr_server {
    struct nr_http_limits limits;
    struct nr_http_app app;
    struct nr_loop_part **parts;
    unsigned n_parts;
    struct {
        int fd;
        uint16_t tag;
    } listeners[MAX_LISTENERS];
    unsigned n_listeners;
    unsigned max_connections;
    _Atomic unsigned next; /* ties between equally loaded loops go round */
    atomic_flag drained, aborted, started, looked, retired;
    _Atomic bool shared;        /* another process has the sockets too */
    _Atomic unsigned accepting; /* loops that have not been told to stop yet */
    pthread_mutex_t addr_lock;  /* guards addrs; a leaf: nothing is locked under it */
    struct nr_map addrs;        /* 16 bytes of address → count */
};

/* --- connections ---------------------------------------------------------------------------- */

static struct nr_str key_str(const uint8_t key[16])
{
    return (struct nr_str){(const char *)key, 16};
}

static bool addr_charge(struct nr_server *s, const uint8_t key[16])
{
    (void)pthread_mutex_lock(&s->addr_lock);
    uintptr_t n = (uintptr_t)nr_map_get(&s->addrs, key_str(key));
    bool ok = n < s->limits.max_connections_per_addr;
    if (ok) {
        (void)nr_map_put(&s->addrs, key_str(key), (void *)(n + 1));
    }
    (void)pthread_mutex_unlock(&s->addr_lock);
    return ok;
}

static void addr_release(struct nr_server *s, const uint8_t key[16])
{
    (void)pthread_mutex_lock(&s->addr_lock);
    uintptr_t n = (uintptr_t)nr_map_get(&s->addrs, key_str(key));
    if (n > 1) {
        (void)nr_map_put(&s->addrs, key_str(key), (void *)(n - 1));
    } else {
        (void)nr_map_remove(&s->addrs, key_str(key));
    }
    (void)pthread_mutex_unlock(&s->addr_lock);
}

void nr_server_conn_gone(struct nr_conn *c)
{
    if (c->counted_addr) {
        addr_release(c->e->server, c->addr_key);
    }
}

struct handover {
    struct nr_msg msg;
    struct nr_engine *e;
    int fd;
    bool counted;
    uint8_t key[16];
    struct nr_peer peer;
};

static void adopt(struct nr_engine *e, int fd, const struct nr_peer *peer, const uint8_t key[16],
                  bool counted)
{
    if (e->draining) {
        (void)close(fd);
        if (counted) {
            addr_release(e->server, key);
        }
        atomic_fetch_sub_explicit(&e->open, 1, memory_order_relaxed);
        return;
    }
    struct nr_conn *c = nr_conn_open(e, &nr_transport_plain, NULL, fd, peer);
    if (c) {
        c->counted_addr = counted;
        memcpy(c->addr_key, key, 16);
    } else if (counted) {
        addr_release(e->server, key);
    }
}

static void on_handover(struct nr_msg *m)
{
    struct handover *h = nr_container_of(m, struct handover, msg);
    adopt(h->e, h->fd, &h->peer, h->key, h->counted);
    nr_free(h);
}

/* The loop with the fewest connections; its count is raised here. */
static struct nr_engine *choose(struct nr_server *s)
{
    unsigned start = atomic_fetch_add_explicit(&s->next, 1, memory_order_relaxed);
    struct nr_engine *best = NULL;
    unsigned least = 0;
    for (unsigned i = 0; i < s->n_parts; i++) {
        struct nr_engine *e = &s->parts[(start + i) % s->n_parts]->e;
        unsigned n = atomic_load_explicit(&e->open, memory_order_relaxed);
        if (!best || n < least) {
            best = e;
            least = n;
        }
    }
    atomic_fetch_add_explicit(&best->open, 1, memory_order_relaxed);
    return best;
}

void nr_server_accepted(struct nr_engine *e, int fd, const struct nr_peer *peer,
                        const uint8_t key[16])
{
    struct nr_server *s = e->server;
    bool counted = !peer->loopback && s->limits.max_connections_per_addr > 0;
    if (nr_server_connections(s) >= s->max_connections || (counted && !addr_charge(s, key))) {
        nr_count(&e->counters.refused, 1);
        (void)close(fd);
        return;
    }
    nr_count(&e->counters.accepted, 1);
    struct nr_engine *target = choose(s);
    if (target == e) {
        adopt(e, fd, peer, key, counted);
        return;
    }
    struct handover *h = nr_new(struct handover);
    h->msg.run = on_handover;
    h->e = target;
    h->fd = fd;
    h->counted = counted;
    h->peer = *peer;
    memcpy(h->key, key, 16);
    nr_loop_post(target->loop, &h->msg);
}

/* --- messages to the loops ------------------------------------------------------------------ */

static void on_start(struct nr_msg *m)
{
    struct nr_loop_part *p = nr_container_of(m, struct nr_loop_part, start_msg);
    for (unsigned i = 0; i < p->server->n_listeners && !p->e.draining; i++) {
        nr_status st = nr_acceptor_start(&p->acceptors[i], &p->e, p->server->listeners[i].fd,
                                         p->server->listeners[i].tag);
        NR_ASSERT(st == NARU_OK); /* a fresh loop and an open socket */
    }
}

static void on_drain(struct nr_msg *m)
{
    struct nr_loop_part *p = nr_container_of(m, struct nr_loop_part, drain_msg);
    for (unsigned i = 0; i < p->server->n_listeners; i++) {
        nr_acceptor_stop(&p->acceptors[i]);
    }
    nr_engine_drain(&p->e);
}

static void on_abort(struct nr_msg *m)
{
    struct nr_loop_part *p = nr_container_of(m, struct nr_loop_part, abort_msg);
    nr_engine_abort(&p->e);
}

static void on_retire(struct nr_msg *m)
{
    struct nr_loop_part *p = nr_container_of(m, struct nr_loop_part, retire_msg);
    nr_engine_retire(&p->e);
}

static void on_stop(struct nr_msg *m)
{
    struct nr_loop_part *p = nr_container_of(m, struct nr_loop_part, stop_msg);
    struct nr_server *s = p->server;
    for (unsigned i = 0; i < s->n_listeners; i++) {
        nr_acceptor_stop(&p->acceptors[i]);
    }
    if (atomic_fetch_sub(&s->accepting, 1) == 1) {
        for (unsigned i = 0; i < s->n_parts; i++) {
            nr_loop_post(s->parts[i]->e.loop, &s->parts[i]->retire_msg);
        }
    }
}

void nr_server_retire(struct nr_server *s)
{
    if (!atomic_flag_test_and_set(&s->retired)) {
        atomic_store(&s->shared, true);
        for (unsigned i = 0; i < s->n_parts; i++) {
            nr_loop_post(s->parts[i]->e.loop, &s->parts[i]->stop_msg);
        }
    }
}

bool nr_server_accepts(const struct nr_server *s)
{
    return atomic_load(&s->accepting) > 0;
}

static void on_look(struct nr_msg *m)
{
    struct nr_loop_part *p = nr_container_of(m, struct nr_loop_part, look_msg);
    for (unsigned i = 0; i < p->server->n_listeners; i++) {
        nr_acceptor_look(&p->acceptors[i]);
    }
}

void nr_server_look(struct nr_server *s)
{
    if (!atomic_flag_test_and_set(&s->looked)) {
        for (unsigned i = 0; i < s->n_parts; i++) {
            nr_loop_post(s->parts[i]->e.loop, &s->parts[i]->look_msg);
        }
    }
}

void nr_server_drain(struct nr_server *s)
{
    if (!atomic_flag_test_and_set(&s->drained)) {
        /* First the sockets, for all loops at once: a connection that the kernel still took after a
         * loop stopped looking would hang until the process ends. Closed they are in _free, when no
         * loop can have them in its set. Not those that another process watches: it would be shut
         * for both. */
        for (unsigned i = 0; i < s->n_listeners && !atomic_load(&s->shared); i++) {
            (void)shutdown(s->listeners[i].fd, SHUT_RDWR);
        }
        for (unsigned i = 0; i < s->n_parts; i++) {
            nr_loop_post(s->parts[i]->e.loop, &s->parts[i]->drain_msg);
        }
    }
}

void nr_server_abort(struct nr_server *s)
{
    nr_server_drain(s);
    if (!atomic_flag_test_and_set(&s->aborted)) {
        for (unsigned i = 0; i < s->n_parts; i++) {
            nr_loop_post(s->parts[i]->e.loop, &s->parts[i]->abort_msg);
        }
    }
}

/* --- life ----------------------------------------------------------------------------------- */

static unsigned connection_limit(unsigned asked)
{
    struct rlimit r;
    unsigned most = 1024 - RESERVED_FDS;
    if (getrlimit(RLIMIT_NOFILE, &r) == 0 && r.rlim_cur != RLIM_INFINITY) {
        uint64_t fds = NR_MIN((uint64_t)r.rlim_cur, (uint64_t)INT32_MAX);
        most = fds > 2 * RESERVED_FDS ? (unsigned)fds - RESERVED_FDS : (unsigned)fds / 2;
    } else {
        most = INT32_MAX;
    }
    return asked ? NR_MIN(asked, most) : most;
}

nr_status nr_server_new(struct nr_loop *const *loops, unsigned n_loops,
                        const struct nr_http_limits *limits, const struct nr_http_app *app,
                        struct nr_server **ret)
{
    if (n_loops == 0) {
        return NARU_INVALID;
    }
    struct nr_server *s = nr_new(struct nr_server);
    s->limits = *limits;
    s->app = *app;
    s->max_connections = connection_limit(limits->max_connections);
    s->n_parts = n_loops;
    s->parts = nr_new_array(struct nr_loop_part *, n_loops);
    atomic_flag_clear(&s->drained);
    atomic_flag_clear(&s->aborted);
    atomic_flag_clear(&s->started);
    atomic_flag_clear(&s->looked);
    atomic_flag_clear(&s->retired);
    atomic_init(&s->accepting, n_loops);
    NR_ASSERT(pthread_mutex_init(&s->addr_lock, NULL) == 0);
    nr_map_init(&s->addrs);
    for (unsigned i = 0; i < n_loops; i++) {
        struct nr_loop_part *p = s->parts[i] = nr_new(struct nr_loop_part);
        nr_engine_init(&p->e, loops[i], &s->limits, &s->app, i);
        p->e.server = s;
        p->server = s;
        p->start_msg.run = on_start;
        p->drain_msg.run = on_drain;
        p->abort_msg.run = on_abort;
        p->stop_msg.run = on_stop;
        p->retire_msg.run = on_retire;
        p->look_msg.run = on_look;
    }
    *ret = s;
    return NARU_OK;
}

/* Takes fd, also on error. */
static nr_status add_listener(struct nr_server *s, int fd, uint16_t listener, uint16_t *ret_port,
                              struct nr_err *err)
{
    struct nr_sock_addr bound;
    if (s->n_listeners == MAX_LISTENERS) {
        (void)close(fd);
        return nr_fail(err, NARU_EXHAUSTED, "more than %u listeners", MAX_LISTENERS);
    }
    nr_status st = nr_sock_local(fd, &bound);
    if (st != NARU_OK) {
        (void)close(fd);
        return nr_fail(err, st, "cannot read the address of a socket that listens");
    }
    s->listeners[s->n_listeners].fd = fd;
    s->listeners[s->n_listeners].tag = listener;
    s->n_listeners++;
    if (ret_port) {
        *ret_port = nr_sock_addr_port(&bound);
    }
    return NARU_OK;
}

nr_status nr_server_listen(struct nr_server *s, const char *address, uint16_t port,
                           uint16_t listener, uint16_t *ret_port, struct nr_err *err)
{
    int fd;
    struct nr_sock_listen cfg = {.host = address, .port = port};
    nr_status st = nr_sock_listen(&cfg, &fd, err);
    return st == NARU_OK ? add_listener(s, fd, listener, ret_port, err) : st;
}

nr_status nr_server_adopt(struct nr_server *s, int fd, uint16_t listener, uint16_t *ret_port,
                          struct nr_err *err)
{
    atomic_store(&s->shared, true);
    return add_listener(s, fd, listener, ret_port, err);
}

void nr_server_own(struct nr_server *s)
{
    atomic_store(&s->shared, false);
}

int nr_server_listener(const struct nr_server *s, unsigned i)
{
    NR_ASSERT(i < s->n_listeners);
    return s->listeners[i].fd;
}

nr_status nr_server_start(struct nr_server *s, struct nr_err *err)
{
    if (atomic_flag_test_and_set(&s->started)) {
        return nr_fail(err, NARU_PRECONDITION, "the server was started before");
    }
    for (unsigned i = 0; i < s->n_parts; i++) {
        nr_loop_post(s->parts[i]->e.loop, &s->parts[i]->start_msg);
    }
    return NARU_OK;
}

unsigned nr_server_connections(const struct nr_server *s)
{
    unsigned n = 0;
    for (unsigned i = 0; i < s->n_parts; i++) {
        n += atomic_load_explicit(&s->parts[i]->e.open, memory_order_relaxed);
    }
    return n;
}

static uint64_t counter(const _Atomic uint64_t *c)
{
    return atomic_load_explicit(c, memory_order_relaxed);
}

void nr_server_stats(const struct nr_server *s, struct nr_http_stats *ret)
{
    *ret = (struct nr_http_stats){.open = nr_server_connections(s)};
    for (unsigned i = 0; i < s->n_parts; i++) {
        const struct nr_counters *c = &s->parts[i]->e.counters;
        ret->accepted += counter(&c->accepted);
        ret->refused += counter(&c->refused);
        ret->requests += counter(&c->requests);
        ret->bytes_in += counter(&c->bytes_in);
        ret->bytes_out += counter(&c->bytes_out);
        ret->parse_errors += counter(&c->parse_errors);
        ret->timeouts += counter(&c->timeouts);
        ret->abuse_closed += counter(&c->abuse_closed);
    }
}

void nr_server_free(struct nr_server *s)
{
    if (!s) {
        return;
    }
    /* A loop may have stopped before it read what ends its part. */
    for (unsigned i = 0; i < s->n_parts; i++) {
        for (unsigned k = 0; k < s->n_listeners; k++) {
            nr_acceptor_stop(&s->parts[i]->acceptors[k]);
        }
    }
    for (unsigned i = 0; i < s->n_listeners; i++) {
        (void)close(s->listeners[i].fd);
    }
    for (unsigned i = 0; i < s->n_parts; i++) {
        nr_engine_done(&s->parts[i]->e);
        nr_free(s->parts[i]);
    }
    nr_free(s->parts);
    nr_map_done(&s->addrs);
    (void)pthread_mutex_destroy(&s->addr_lock);
    nr_free(s);
}
