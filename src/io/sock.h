/* Sockets: addresses, listening, accepting. TCP over IPv4 and IPv6, non-blocking, close-on-exec.
 *
 * Names are not resolved here (that blocks): hosts are numeric addresses or "localhost".
 */
#ifndef NR_IO_SOCK_H
#define NR_IO_SOCK_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

#include "base/status.h"

/* "[ffff:…:255.255.255.255%interface]:65535" and its NUL. */
#define NR_SOCK_TEXT_MAX 80

struct nr_sock_addr {
    struct sockaddr_storage addr;
    socklen_t len;
};

/* host: NULL, "" or "localhost": 127.0.0.1; "*": every address of IPv4 and, where the machine has
 * it, IPv6; a numeric IPv4 or IPv6 address, the latter with or without brackets. */
nr_nodiscard nr_status nr_sock_addr_parse(const char *host, uint16_t port, struct nr_sock_addr *ret,
                                          struct nr_err *err);
/* "127.0.0.1:8000", "[::1]:8000"; an IPv4 client of an IPv6 socket reads as IPv4; "unix". */
void nr_sock_addr_format(const struct nr_sock_addr *a, char out[NR_SOCK_TEXT_MAX]);
uint16_t nr_sock_addr_port(const struct nr_sock_addr *a); /* 0 for other families */
/* True when the peer is on this machine: 127.0.0.0/8, ::1, those mapped, and Unix sockets. */
bool nr_sock_loopback(const struct nr_sock_addr *a);

/* How two addresses to listen on stand to each other: NR_SOCK_SAME is one listener, and of two that
 * overlap ("*" and 127.0.0.1) the second cannot be bound. Port 0 is always a port of its own. */
typedef enum nr_sock_common {
    NR_SOCK_APART,
    NR_SOCK_OVERLAP,
    NR_SOCK_SAME
} nr_sock_common;
nr_sock_common nr_sock_addr_compare(const struct nr_sock_addr *a, const struct nr_sock_addr *b);

struct nr_sock_listen {
    const char *host; /* as in nr_sock_addr_parse: loopback unless told otherwise */
    uint16_t port;    /* 0: a free one, see nr_sock_local */
    bool reuse_port;  /* several sockets on one address, one per loop (SO_REUSEPORT) */
};
/* Listening socket with SO_REUSEADDR, TCP_NODELAY (which accepted sockets inherit) and a backlog
 * of 1,024. "::" serves IPv4 as well. The caller closes *ret_fd. NARU_EXISTS: the address is taken. */
nr_nodiscard nr_status nr_sock_listen(const struct nr_sock_listen *cfg, int *ret_fd,
                                      struct nr_err *err);
nr_nodiscard nr_status nr_sock_local(int fd, struct nr_sock_addr *ret); /* address it is bound to */

/* Accepting when descriptors run out. A connection that cannot be accepted stays in the backlog
 * and keeps the listening socket readable, so the loop would spin. One descriptor is held in
 * reserve: it is given up to accept the connection and close it at once, and taken again.
 * One acceptor per listening loop; not thread safe. */
struct nr_sock_acceptor {
    int reserve_fd; /* -1: lost to another thread, taken again when possible */
};
void nr_sock_acceptor_init(struct nr_sock_acceptor *a);
void nr_sock_acceptor_done(struct nr_sock_acceptor *a);
/* Accepts one connection. NARU_OK: *ret_fd is the caller's, *ret_peer is who it is. NARU_AGAIN:
 * none waits. NARU_EXHAUSTED: out of descriptors, one connection was turned away (if even that was
 * impossible, also NARU_EXHAUSTED: stop watching the listener for a moment). NARU_NOMEM: the
 * kernel is out of memory. NARU_IO: the listening socket is broken. */
nr_nodiscard nr_status nr_sock_accept(struct nr_sock_acceptor *a, int listen_fd, int *ret_fd,
                                      struct nr_sock_addr *ret_peer);

#endif
