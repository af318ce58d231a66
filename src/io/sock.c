/* Sockets as the server needs them: see sock.h for the contracts.
 *
 * Options are set on the listening socket where Linux lets accepted ones inherit them, so that a
 * connection costs one system call (accept4) and not three.
 *
 * Invariants
 * 1. Every descriptor made here is non-blocking and close-on-exec from the call that makes it.
 * 2. After nr_sock_accept the reserve is held again, unless another thread took the last
 *    descriptor in between; the next call tries again.
 * Threads: no state; an acceptor belongs to its loop.
 */
#include "io/sock.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/str.h"
#include "io/file.h"

#define BACKLOG 1024
#define ACCEPT_TRIES 64 /* broken connections passed over in one call */

static struct sockaddr_in *as_v4(struct nr_sock_addr *a)
{
    return (struct sockaddr_in *)(void *)&a->addr;
}

static struct sockaddr_in6 *as_v6(struct nr_sock_addr *a)
{
    return (struct sockaddr_in6 *)(void *)&a->addr;
}

/* A kernel without IPv6 (or with it switched off at boot) refuses the socket itself. */
static bool has_ipv6(void)
{
    int fd = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
    nr_close(fd);
    return fd >= 0;
}

static void set_v4(struct nr_sock_addr *a, struct in_addr ip, uint16_t port)
{
    *a = (struct nr_sock_addr){.len = sizeof(struct sockaddr_in)};
    *as_v4(a) =
        (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(port), .sin_addr = ip};
}

static void set_v6(struct nr_sock_addr *a, struct in6_addr ip, uint16_t port)
{
    *a = (struct nr_sock_addr){.len = sizeof(struct sockaddr_in6)};
    *as_v6(a) =
        (struct sockaddr_in6){.sin6_family = AF_INET6, .sin6_port = htons(port), .sin6_addr = ip};
}

nr_status nr_sock_addr_parse(const char *host, uint16_t port, struct nr_sock_addr *ret,
                             struct nr_err *err)
{
    struct in_addr v4 = {.s_addr = htonl(INADDR_LOOPBACK)};
    struct in6_addr v6 = in6addr_any;
    struct nr_str text = nr_str_from(host);
    if (text.len == 0 || nr_str_eq_nocase(text, NR_STR("localhost"))) {
        set_v4(ret, v4, port);
        return NARU_OK;
    }
    if (nr_str_is(text, "*")) {
        v4.s_addr = htonl(INADDR_ANY);
        if (has_ipv6()) {
            set_v6(ret, v6, port);
        } else {
            set_v4(ret, v4, port);
        }
        return NARU_OK;
    }
    if (text.len > 2 && text.ptr[0] == '[' && text.ptr[text.len - 1] == ']') {
        text = (struct nr_str){text.ptr + 1, text.len - 2};
    }
    /* inet_pton wants a NUL; it accepts complete dotted quads only, unlike inet_aton ("127.1"). */
    char name[INET6_ADDRSTRLEN];
    if (text.len < sizeof(name)) {
        memcpy(name, text.ptr, text.len);
        name[text.len] = '\0';
        if (inet_pton(AF_INET, name, &v4) == 1) {
            set_v4(ret, v4, port);
            return NARU_OK;
        }
        if (inet_pton(AF_INET6, name, &v6) == 1) {
            set_v6(ret, v6, port);
            return NARU_OK;
        }
    }
    return nr_fail(err, NARU_INVALID,
                   "'%.100s' is not a numeric address: give an IPv4 or IPv6 address of this "
                   "machine, 'localhost', or '*' for all",
                   host);
}

void nr_sock_addr_format(const struct nr_sock_addr *a, char out[NR_SOCK_TEXT_MAX])
{
    char ip[INET6_ADDRSTRLEN] = "?";
    struct nr_sock_addr copy = *a;
    if (a->addr.ss_family == AF_INET) {
        inet_ntop(AF_INET, &as_v4(&copy)->sin_addr, ip, sizeof(ip));
        snprintf(out, NR_SOCK_TEXT_MAX, "%s:%u", ip, nr_sock_addr_port(a));
    } else if (a->addr.ss_family == AF_INET6) {
        const struct in6_addr *v6 = &as_v6(&copy)->sin6_addr;
        if (IN6_IS_ADDR_V4MAPPED(v6)) {
            inet_ntop(AF_INET, &v6->s6_addr[12], ip, sizeof(ip));
            snprintf(out, NR_SOCK_TEXT_MAX, "%s:%u", ip, nr_sock_addr_port(a));
        } else {
            inet_ntop(AF_INET6, v6, ip, sizeof(ip));
            snprintf(out, NR_SOCK_TEXT_MAX, "[%s]:%u", ip, nr_sock_addr_port(a));
        }
    } else {
        snprintf(out, NR_SOCK_TEXT_MAX, "%s", a->addr.ss_family == AF_UNIX ? "unix" : "?");
    }
}

uint16_t nr_sock_addr_port(const struct nr_sock_addr *a)
{
    struct nr_sock_addr copy = *a;
    if (a->addr.ss_family == AF_INET) {
        return ntohs(as_v4(&copy)->sin_port);
    }
    return a->addr.ss_family == AF_INET6 ? ntohs(as_v6(&copy)->sin6_port) : 0;
}

bool nr_sock_loopback(const struct nr_sock_addr *a)
{
    struct nr_sock_addr copy = *a;
    switch (a->addr.ss_family) {
    case AF_INET:
        return ntohl(as_v4(&copy)->sin_addr.s_addr) >> 24 == 127;
    case AF_INET6: {
        const struct in6_addr *v6 = &as_v6(&copy)->sin6_addr;
        return IN6_IS_ADDR_LOOPBACK(v6) || (IN6_IS_ADDR_V4MAPPED(v6) && v6->s6_addr[12] == 127);
    }
    default:
        return a->addr.ss_family == AF_UNIX;
    }
}

/* The address as IPv6; false for other families. */
static bool as_ipv6(const struct nr_sock_addr *a, struct in6_addr *ret)
{
    struct nr_sock_addr copy = *a;
    *ret = (struct in6_addr){.s6_addr = {[10] = 0xff, [11] = 0xff}};
    if (a->addr.ss_family == AF_INET) {
        memcpy(&ret->s6_addr[12], &as_v4(&copy)->sin_addr, 4);
    } else if (a->addr.ss_family == AF_INET6) {
        *ret = as_v6(&copy)->sin6_addr;
    }
    return a->addr.ss_family == AF_INET || a->addr.ss_family == AF_INET6;
}

/* Whether a listener on `all` would take what is sent to `one`. */
static bool includes(const struct in6_addr *all, const struct in6_addr *one)
{
    static const uint8_t zero[4];
    return IN6_IS_ADDR_UNSPECIFIED(all) ||
           (IN6_IS_ADDR_V4MAPPED(all) && memcmp(&all->s6_addr[12], zero, 4) == 0 &&
            IN6_IS_ADDR_V4MAPPED(one));
}

nr_sock_common nr_sock_addr_compare(const struct nr_sock_addr *a, const struct nr_sock_addr *b)
{
    struct in6_addr x, y;
    uint16_t port = nr_sock_addr_port(a);
    if (!as_ipv6(a, &x) || !as_ipv6(b, &y) || port == 0 || port != nr_sock_addr_port(b)) {
        return NR_SOCK_APART;
    }
    if (memcmp(&x, &y, sizeof(x)) == 0) {
        return NR_SOCK_SAME;
    }
    return includes(&x, &y) || includes(&y, &x) ? NR_SOCK_OVERLAP : NR_SOCK_APART;
}

static bool set_flag(int fd, int level, int option, int value)
{
    return setsockopt(fd, level, option, &value, sizeof(value)) == 0;
}

/* The address in the text is the resolved one: the operator sees what "*" or "localhost" meant. */
static nr_status listen_failed(const struct nr_sock_addr *a, struct nr_err *err)
{
    int error = errno;
    char text[NR_SOCK_TEXT_MAX];
    nr_sock_addr_format(a, text);
    switch (error) {
    case EADDRINUSE:
        return nr_fail(err, NARU_EXISTS,
                       "cannot listen on %s: another program does (see `ss -ltnp`); end it or "
                       "choose another port",
                       text);
    case EACCES:
    case EPERM:
        return nr_fail(err, NARU_DENIED,
                       "cannot listen on %s: not permitted; ports below 1024 need root or the "
                       "capability CAP_NET_BIND_SERVICE",
                       text);
    case EADDRNOTAVAIL:
        return nr_fail(err, NARU_NOT_FOUND,
                       "cannot listen on %s: no interface of this machine has the address", text);
    case EAFNOSUPPORT:
        return nr_fail(err, NARU_UNSUPPORTED,
                       "cannot listen on %s: this machine has no such protocol", text);
    default:
        errno = error;
        return nr_fail(err, nr_status_from_errno(error), "cannot listen on %s: %m", text);
    }
}

nr_status nr_sock_listen(const struct nr_sock_listen *cfg, int *ret_fd, struct nr_err *err)
{
    struct nr_sock_addr a;
    nr_status status = nr_sock_addr_parse(cfg->host, cfg->port, &a, err);
    if (status != NARU_OK) {
        return status;
    }
    nr_autoclose int fd = socket(a.addr.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) {
        return listen_failed(&a, err);
    }
    /* The system's default for V6ONLY differs; said here so that "::" means the same everywhere. */
    if (!set_flag(fd, SOL_SOCKET, SO_REUSEADDR, 1) ||
        (cfg->reuse_port && !set_flag(fd, SOL_SOCKET, SO_REUSEPORT, 1)) ||
        (a.addr.ss_family == AF_INET6 && !set_flag(fd, IPPROTO_IPV6, IPV6_V6ONLY, 0)) ||
        !set_flag(fd, IPPROTO_TCP, TCP_NODELAY, 1) ||
        bind(fd, (struct sockaddr *)&a.addr, a.len) != 0 || listen(fd, BACKLOG) != 0) {
        return listen_failed(&a, err);
    }
    *ret_fd = fd;
    fd = -1;
    return NARU_OK;
}

nr_status nr_sock_local(int fd, struct nr_sock_addr *ret)
{
    struct nr_sock_addr a = {.len = sizeof(a.addr)};
    if (getsockname(fd, (struct sockaddr *)&a.addr, &a.len) != 0) {
        return nr_status_from_errno(errno);
    }
    *ret = a;
    return NARU_OK;
}

static void take_reserve(struct nr_sock_acceptor *a)
{
    if (a->reserve_fd < 0) {
        a->reserve_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    }
}

void nr_sock_acceptor_init(struct nr_sock_acceptor *a)
{
    a->reserve_fd = -1;
    take_reserve(a);
}

void nr_sock_acceptor_done(struct nr_sock_acceptor *a)
{
    nr_close(a->reserve_fd);
    a->reserve_fd = -1;
}

/* Spends the reserve on one waiting connection, whose client sees an end of stream at once rather
 * than a time-out. Another thread may take the free descriptor in between: then the connection
 * stays in the backlog and the next turn tries again. */
static void turn_away(struct nr_sock_acceptor *a, int listen_fd)
{
    nr_close(a->reserve_fd);
    a->reserve_fd = -1;
    nr_close(accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK));
    take_reserve(a);
}

nr_status nr_sock_accept(struct nr_sock_acceptor *a, int listen_fd, int *ret_fd,
                         struct nr_sock_addr *ret_peer)
{
    take_reserve(a);
    for (int tries = 0; tries < ACCEPT_TRIES; tries++) {
        struct nr_sock_addr peer = {.len = sizeof(peer.addr)};
        int fd = accept4(listen_fd, (struct sockaddr *)&peer.addr, &peer.len,
                         SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd >= 0) {
            *ret_fd = fd;
            *ret_peer = peer;
            return NARU_OK;
        }
        switch (errno) {
        case EAGAIN:
            return NARU_AGAIN;
        case EMFILE:
        case ENFILE:
            turn_away(a, listen_fd);
            return NARU_EXHAUSTED;
        case ENOMEM:
        case ENOBUFS:
            return NARU_NOMEM;
        case EBADF:
        case EINVAL:
        case ENOTSOCK:
        case EFAULT:
            return NARU_IO;
        default:
            /* EINTR, ECONNABORTED, and errors of the network that accept(2) on Linux hands on
             * from the new connection: they concern that one only. */
            break;
        }
    }
    return NARU_AGAIN; /* level-triggered: the next turn goes on */
}
