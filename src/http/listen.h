/* Acceptors: one per loop and listener. */
#ifndef NR_HTTP_LISTEN_H
#define NR_HTTP_LISTEN_H

#include "http/engine.h"
#include "io/sock.h"

struct nr_acceptor {
    struct nr_watch watch; /* fd borrowed from the server */
    struct nr_timer rest;
    struct nr_sock_acceptor sock;
    struct nr_engine *e; /* NULL: not running */
    uint16_t listener;
};

/* Both on the loop's thread; stop may be called on one that was never started (zeroed). */
nr_nodiscard nr_status nr_acceptor_start(struct nr_acceptor *a, struct nr_engine *e, int fd,
                                         uint16_t listener);
void nr_acceptor_stop(struct nr_acceptor *a);
/* Accepts what waits, whether or not the loop was told of it; a stopped one does nothing. */
void nr_acceptor_look(struct nr_acceptor *a);

/* server.c: takes over fd. */
void nr_server_accepted(struct nr_engine *e, int fd, const struct nr_peer *peer,
                        const uint8_t key[16]);

#endif
