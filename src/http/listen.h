/* Listening sockets and acceptors: one struct nr_acceptor per loop and listener. */
#ifndef NR_HTTP_LISTEN_H
#define NR_HTTP_LISTEN_H

#include "http/engine.h"

struct nr_acceptor {
    struct nr_watch watch; /* fd borrowed from the server */
    struct nr_timer rest;
    struct nr_engine *e;
    uint16_t listener;
};

/* Numeric address; port 0 picks one. Caller closes *ret_fd. */
nr_nodiscard nr_status nr_listen_open(const char *address, uint16_t port, int *ret_fd,
                                      uint16_t *ret_port, struct nr_err *err);
/* On the loop's thread. */
nr_nodiscard nr_status nr_acceptor_start(struct nr_acceptor *a, struct nr_engine *e, int fd,
                                         uint16_t listener);
void nr_acceptor_stop(struct nr_acceptor *a);

/* server.c: takes over fd. */
void nr_server_accepted(struct nr_engine *e, int fd, const struct nr_peer *peer,
                        const uint8_t key[16]);

#endif
