/* HTTP/2 sessions: what the three halves share. h2.c owns the session and its accounting,
 * h2_recv.c turns frames into requests, h2_send.c turns responses into frames. */
#ifndef NR_HTTP_H2_H
#define NR_HTTP_H2_H

#include <nghttp2/nghttp2.h>

#include "http/engine.h"
#include "http/grpc.h"

/* Per loop: nghttp2's callbacks and options, and memory that it takes and gives back for every
 * stream, kept in free lists by size. */
struct nr_h2_pool {
    nghttp2_session_callbacks *callbacks;
    nghttp2_option *option;
    nghttp2_mem mem;
    size_t held_bytes; /* in the free lists */
    struct nr_h2_chunk *free[16];
};
struct nr_h2_pool *nr_h2_pool_new(void);

/* Streams that ended lately: nghttp2 forgets them at once (it would keep 100 a connection, for
 * priorities that nobody uses), but what HEADERS on one of them mean depends on how it ended. */
#define NR_H2_ENDED 64u /* a power of two */

struct nr_h2 {
    nghttp2_session *s;
    struct nr_conn *c;
    struct nr_list open;        /* exchanges whose stream is open */
    struct nr_list closed;      /* … closed: wait for the app's answer or for their last bytes */
    unsigned n_open, n_zombies; /* zombies: closed, but the app still works on them */
    unsigned n_receiving;       /* streams whose request is incomplete */
    unsigned n_sending;         /* streams whose response was begun and is not queued whole */
    struct nr_bucket resets, glitches;
    uint32_t drip_credit; /* small WINDOW_UPDATEs that messages have paid for: gRPC's C core sends
                             two of 5 bytes for each one that it gets */
    bool ping_credit;     /* data or headers were sent since the last PING: it is not a glitch */
    bool in_block;        /* between HEADERS and END_HEADERS */
    bool ended;           /* no more input is read: error, abuse, or end of stream */
    bool draining, goaway;
    int32_t highest_id; /* of the peer's streams */
    uint32_t block_bytes, block_frames;
    int64_t block_since_ns, sweep_ns, drain_ns;
    uint32_t n_ended;
    int32_t ended_ids[NR_H2_ENDED]; /* ring; negative: reset before the peer had sent all of it */
};

/* The HTTP/2 side of an exchange, in its arena. */
struct nr_h2_stream {
    int32_t id;
    bool closed; /* the stream is */
    bool grpc;
    bool received; /* request complete, or no longer wanted */
    bool begun;    /* response submitted */
    bool finished; /* its END_STREAM was queued */
    bool small;    /* body is collected in the arena */
    bool trailers; /* gRPC: grpc-status goes into trailers */
    bool zombie;
    bool waits; /* a response in parts: for the app's next one */
    bool cut;   /* … ended by the engine */
    unsigned cap_headers;
    uint32_t head_bytes, n_fields;
    int refuse_status; /* found while reading the head: the answer to give */
    const char *refuse_text;
    struct nr_str authority;
    struct nr_grpc_reader frame;
    char *small_body;
    int64_t rx_ns, rx_since_ns; /* last byte and beginning of the request's body */
    int64_t tx_ns, tx_since_ns; /* … of the response */
    uint64_t rx_bytes, tx_bytes;
    const struct nr_iov *iov; /* the response's body, not sent yet */
    unsigned n_iov;
    size_t iov_off;
    uint64_t left;
    int grpc_status;
    struct nr_str grpc_message; /* percent-encoded */
    uint8_t prefix[NR_GRPC_PREFIX_BYTES];
};

/* h2.c */
void nr_h2_charge_reset(struct nr_h2 *h);
void nr_h2_charge_glitch(struct nr_h2 *h);
/* A request, a message of one, or a whole part of a response: the peer may say so in its windows. */
void nr_h2_credit_message(struct nr_h2 *h);
void nr_h2_terminate(struct nr_h2 *h, uint32_t error);  /* GOAWAY, then close */
void nr_h2_received(struct nr_h2 *h, struct nr_xp *xp); /* the request is complete or unwanted */
static inline int64_t nr_h2_now(const struct nr_h2 *h)
{
    return nr_loop_now(h->c->e->loop);
}

/* h2_recv.c */
void nr_h2_recv_callbacks(nghttp2_session_callbacks *cb);

/* h2_send.c */
void nr_h2_send_callbacks(nghttp2_session_callbacks *cb);
void nr_h2_respond(struct nr_xp *xp, const struct nr_response *r);
void nr_h2_begin(struct nr_xp *xp, const struct nr_response *r);
void nr_h2_pump(struct nr_xp *xp);
/* An answer of the engine itself: JSON for HTTP, trailers for gRPC. Tells the app when it knows the
 * exchange. `text` needs no JSON escapes. */
void nr_h2_refuse(struct nr_xp *xp, int http_status, int grpc_status, const char *text);

#endif
