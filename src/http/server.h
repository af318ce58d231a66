/* HTTP server: listeners and connections on the loops it is given.
 *
 * Every listener speaks HTTP/1.1 and HTTP/2 (prior knowledge) by looking at the first bytes, with a
 * deadline. A connection belongs to the loop that accepted it for its whole life.
 * Transport → detector → session: TLS and the PROXY protocol will be transports (struct
 * nr_transport); sessions never call read or write themselves.
 */
#ifndef NR_HTTP_SERVER_H
#define NR_HTTP_SERVER_H

#include "http/exchange.h"

/* Defaults: nr_http_limits_default. Sources: docs/limits.md. 0 switches a time or count off where
 * the comment says so. */
struct nr_http_limits {
    unsigned max_connections;          /* 0: the descriptor limit less a reserve of 64 */
    unsigned max_connections_per_addr; /* 1,024; loopback left out; 0 none */
    unsigned max_request_line_bytes;   /* 8 KiB */
    unsigned max_field_bytes;          /* 8 KiB, one header field */
    unsigned max_head_bytes;           /* 32 KiB, all fields, each +32 */
    unsigned max_fields;               /* 100 */
    uint64_t head_timeout_ns;          /* 10 s from the first byte */
    uint64_t body_idle_ns;             /* 10 s without a byte */
    unsigned body_min_rate_bytes;      /* 1,024 a second, averaged after 10 s; 0 off */
    uint64_t write_stall_ns;           /* 30 s without the peer taking payload */
    uint64_t keep_alive_ns;            /* 60 s idle */
    uint64_t detect_timeout_ns;        /* 10 s for the first byte */
    uint64_t max_body_bytes;           /* 64 MiB */
    unsigned max_chunks;               /* 65,536 and an average of 64 bytes after the first 1,024 */
    unsigned max_pipelined;            /* 64 unanswered requests of one HTTP/1.1 connection */
    unsigned h2_max_streams;           /* 100 */
    unsigned h2_stream_window_bytes;   /* 64 KiB, grown to 1 MiB */
    unsigned h2_conn_window_bytes;     /* 4 MiB */
    unsigned h2_reset_burst;           /* 200 resets, either direction … */
    unsigned h2_reset_rate;            /* … refilled at 20 a second */
    unsigned h2_glitch_burst;          /* 1,000 odd but legal frames … */
    unsigned h2_glitch_rate;           /* … refilled at 100 a second */
    unsigned h2_max_control_queue;     /* 1,000 outbound control frames */
    bool half_close;                   /* a FIN cancels nothing */
    uint64_t idle_trim_ns;             /* 1 s: after so long without work a loop gives back what
                                          it keeps for the next requests; 0 never */
};
void nr_http_limits_default(struct nr_http_limits *l);

struct nr_http_stats { /* summed over loops when read */
    uint64_t accepted, refused, open, requests, bytes_in, bytes_out, parse_errors, timeouts,
        abuse_closed;
};

struct nr_server;

/* `loops` and `app` are borrowed and outlive the server. Nothing listens yet. */
nr_nodiscard nr_status nr_server_new(struct nr_loop *const *loops, unsigned n_loops,
                                     const struct nr_http_limits *limits,
                                     const struct nr_http_app *app, struct nr_server **ret);
/* Binds and listens ("127.0.0.1", 8000; port 0 picks a free one, *ret_port says which). Before the
 * loops run. `listener` shows up in nr_peer. */
nr_nodiscard nr_status nr_server_listen(struct nr_server *s, const char *address, uint16_t port,
                                        uint16_t listener, uint16_t *ret_port, struct nr_err *err);
/* A socket that listens already, made by another process; taken over also on error. The port goes to
 * *ret_port unless that is NULL. Since the other may still have it, draining does not shut the sockets
 * of this server down until nr_server_own was called: they are ours alone. */
nr_nodiscard nr_status nr_server_adopt(struct nr_server *s, int fd, uint16_t listener,
                                       uint16_t *ret_port, struct nr_err *err);
void nr_server_own(struct nr_server *s); /* any thread */
/* The descriptor of the i-th listener, borrowed, to be handed to another process. */
int nr_server_listener(const struct nr_server *s, unsigned i);
nr_nodiscard nr_status nr_server_start(struct nr_server *s,
                                       struct nr_err *err); /* begins to accept */
/* Stops accepting; idle connections close, HTTP/2 gets GOAWAY, responses say "connection: close".
 * Any thread. */
void nr_server_drain(struct nr_server *s);
/* Another process accepts from the same sockets: this one stops, and the sockets stay open. Nobody is
 * turned away: an idle HTTP/1.1 connection may send one more request, whose answer says
 * "connection: close"; HTTP/2 gets GOAWAY in its two steps. nr_server_drain afterwards closes what is
 * still idle. Any thread. */
void nr_server_retire(struct nr_server *s);
bool nr_server_accepts(const struct nr_server *s); /* false once every loop has stopped for good */
/* For the process that goes on: the kernel wakes one of those who watch a socket for each connection,
 * and one that has stopped since may have been it. All loops look once by themselves. Once in a
 * server's life; any thread. */
void nr_server_look(struct nr_server *s);
unsigned nr_server_connections(const struct nr_server *s); /* open now; any thread */
void nr_server_stats(const struct nr_server *s, struct nr_http_stats *ret);
/* Cuts what is left (NR_CANCEL_SHUTDOWN). Posts to the loops; connections are gone when
 * nr_server_connections is 0. Any thread. */
void nr_server_abort(struct nr_server *s);
/* After the loops have ended, before they are freed. With connections left (no abort, or not waited
 * for) their memory is not given back. */
void nr_server_free(struct nr_server *s);

#endif
