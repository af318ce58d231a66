/* What client.c (connections, schedule, statistics) and the protocols under it share.
 *
 *   client.c   fires a shot ──▶ protocol queues it ──▶ flush writes
 *              read ──▶ protocol's feed ──▶ nr_load_shot_done ──▶ client.c may fire the next one
 *
 * Everything runs on the thread of nr_load_run.
 */
#ifndef NR_LOAD_CLIENT_PRIV_H
#define NR_LOAD_CLIENT_PRIV_H

#include "base/list.h"
#include "io/loop.h"
#include "load/client.h"
#include "load/reply.h"

struct nr_load;

struct nr_load_shot { /* one request in flight */
    int64_t sched_ns, send_ns;
    bool busy;
    int32_t stream_id;    /* HTTP/2 */
    unsigned http_status; /* HTTP/2: of the answer so far */
    int grpc_status;      /* -1: none came */
    size_t sent_bytes;    /* HTTP/2: of the body */
};

typedef enum nr_load_conn_state {
    NR_LOAD_CLOSED,
    NR_LOAD_CONNECTING,
    NR_LOAD_OPEN
} nr_load_conn_state;

struct nr_load_conn {
    struct nr_watch watch;
    struct nr_load *load;
    struct nr_list node; /* in load->idle while a shot is free and the connection is open */
    nr_load_conn_state state;
    bool was_open; /* once; a further opening is a reconnect */
    unsigned n_busy;
    nr_status failed;           /* a request could not be queued: ends at the next flush */
    struct nr_load_shot *shots; /* [cfg.streams] */
    struct nr_timer retry;
    /* HTTP/1.1 */
    size_t sent_bytes;
    struct nr_reply *reply;
    /* HTTP/2 */
    void *session;
    unsigned char *out; /* NR_LOAD_OUT_BYTES of frames, from out_at to out_len not written yet */
    size_t out_at, out_len;
};
#define NR_LOAD_OUT_BYTES 65536u

struct nr_load_ops {
    nr_status (*open)(struct nr_load_conn *c); /* connected: set up */
    void (*close)(struct nr_load_conn *c);     /* also after a failed open */
    nr_status (*fire)(struct nr_load_conn *c, struct nr_load_shot *s); /* queue, do not write */
    /* Write what is queued. NARU_OK: all; NARU_AGAIN: wait until writable; else: broken. */
    nr_status (*flush)(struct nr_load_conn *c);
    /* Bytes that came. Ends shots by nr_load_shot_done. An error closes the connection:
     * NARU_IO as broken, others as malformed; NARU_CANCELLED: closed in order. */
    nr_status (*feed)(struct nr_load_conn *c, const char *data, size_t len);
};
extern const struct nr_load_ops nr_load_h1_ops, nr_load_h2_ops;

const struct nr_load_target *nr_load_target_of(const struct nr_load_conn *c);
/* The answer of s is whole. May fire the next request on c. */
void nr_load_shot_done(struct nr_load_conn *c, struct nr_load_shot *s, nr_load_outcome outcome);

#endif
