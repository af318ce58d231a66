/* The HTTP engine's inside: what a loop, a connection and an exchange hold. Private to src/http and
 * its tests; users see exchange.h and server.h.
 *
 * One struct nr_engine per event loop. Everything in it belongs to that loop's thread, but for the
 * counters (single writer, relaxed readers) and the `open` count (see server.c).
 *
 * Transport → detector → session: a connection reads and writes through struct nr_transport (plain
 * sockets, TLS later, memory in tests); the detector picks struct nr_session_ops by the first bytes.
 * A session never reads or writes by itself: it is given input, may name a destination for body
 * bytes (body_dest), and appends to the connection's output queue.
 */
#ifndef NR_HTTP_ENGINE_H
#define NR_HTTP_ENGINE_H

#include <stdatomic.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "http/abuse.h"
#include "http/server.h"
#include <llhttp.h>

#define NR_BLOCK_BYTES 16384u      /* a receive or output block with its header */
#define NR_SCRATCH_BYTES 131072u   /* shared receive buffer of a loop, for sessions that copy */
#define NR_TURN_BODY_BYTES 262144u /* at most this much body per connection and turn */
#define NR_TURN_SEND_BYTES 524288u /* at most this much output per connection and turn */
#define NR_OUT_HIGH_BYTES 262144u  /* more unsent output than this stops reading */
#define NR_COPY_MAX_BYTES 8192u    /* responses up to this size are copied next to their head */
#define NR_DRAIN_MAX_BYTES \
    65536u /* a refused body up to this size is read to keep the connection */
#define NR_LINGER_NS (2 * INT64_C(1000000000))
/* A client that sends a refused body without waiting gets its answer only when we read to the end of
 * what it sends: closing with unread bytes is a reset, which takes the answer away from it.
 * HTTP/2 answers each stream by itself; a connection that ends there has been told why before. */
#define NR_LINGER_MAX_BYTES 67108864u
#define NR_LINGER_H2_MAX_BYTES 1048576u
#define NR_NEVER INT64_MAX

/* Receive and output memory: pooled per engine, counted because exchanges keep views on it. */
struct nr_block {
    struct nr_block *next; /* free list */
    uint32_t refs;
    uint32_t cap;
    uint8_t data[];
};
#define NR_BLOCK_CAP ((uint32_t)(NR_BLOCK_BYTES - sizeof(struct nr_block)))

struct nr_seg { /* one piece of unsent output */
    const uint8_t *ptr;
    size_t len;
    struct nr_block *block; /* a reference, or NULL for memory of an exchange */
};

struct nr_transport {
    /* > 0 bytes, 0 end of stream, -1 with errno (EAGAIN: nothing now). */
    ssize_t (*recv)(struct nr_conn *c, void *buf, size_t len);
    ssize_t (*sendv)(struct nr_conn *c, const struct iovec *iov, unsigned n);
    void (*watch)(struct nr_conn *c, uint32_t events); /* EPOLLIN | EPOLLOUT | EPOLLRDHUP */
    void (*shut)(struct nr_conn *c);                   /* no more output */
    void (*close)(struct nr_conn *c);
};

struct nr_xp;
struct nr_session_ops {
    /* Bytes c->in->data[in_start, in_end) are there; consumes by advancing in_start. */
    void (*on_input)(struct nr_conn *c);
    /* Set for sessions that copy what they are given: input is received into the loop's scratch
     * memory and handed over whole, and nothing is kept per connection. */
    void (*on_scratch)(struct nr_conn *c, const uint8_t *data, size_t len);
    /* Where the next bytes should be received; false: nowhere special. */
    bool (*body_dest)(struct nr_conn *c, uint8_t **ret, size_t *ret_len);
    void (*on_body)(struct nr_conn *c, size_t len); /* so many arrived at body_dest */
    void (*on_eof)(struct nr_conn *c);
    void (*respond)(struct nr_xp *xp, const struct nr_response *r);
    void (*begin)(struct nr_xp *xp, const struct nr_response *r); /* of a response in parts */
    void (*pump)(struct nr_xp *xp);     /* xp->parts or xp->ended changed */
    void (*produce)(struct nr_conn *c); /* before output is sent; may be NULL */
    void (*on_sent)(struct nr_conn *c); /* c->out_sent advanced, or exchanges were dropped */
    bool (*wants_input)(const struct nr_conn *c);
    int64_t (*deadline)(const struct nr_conn *c); /* NR_NEVER: none */
    void (*on_deadline)(struct nr_conn *c);
    void (*resume)(struct nr_conn *c); /* asked for by nr_conn_resume, next turn */
    void (*drain)(struct nr_conn *c);  /* the server wants to end */
    /* The connection is gone: cancels what is unanswered and drops every response. */
    void (*abort)(struct nr_conn *c, nr_cancel_reason why);
    bool (*quiet)(const struct nr_conn *c); /* nothing more will be queued */
    bool (*empty)(const struct nr_conn *c); /* no exchange is left */
    void (*done)(struct nr_conn *c);
};
extern const struct nr_session_ops nr_h1_ops;
extern const struct nr_session_ops nr_h2_ops;

enum nr_conn_state {
    NR_CONN_OPEN,
    NR_CONN_CLOSING, /* no more input is parsed; closes when the output is sent */
    NR_CONN_LINGER,  /* output sent and shut; reads and discards so that the peer gets the answer */
    NR_CONN_DEAD     /* closed; waits for the app to answer its exchanges */
};

enum nr_h1_phase {
    H1_IDLE,    /* between messages */
    H1_HEAD,    /* in the head: c->in_start is its first byte */
    H1_VIEW,    /* body will be complete in the receive block */
    H1_BUF,     /* body goes to cur->x.body_buf by body_dest */
    H1_CHUNKED, /* body is decoded into cur->x.body_buf */
    H1_SKIP,    /* body of an answered request is discarded */
    H1_END      /* no further message will be read */
};

struct nr_h1 {
    llhttp_t parser;
    enum nr_h1_phase phase;
    struct nr_xp *cur;       /* the message being read, in `pipeline` */
    struct nr_list pipeline; /* exchanges in the order of requests, until their response is sent */
    unsigned n_pipeline;
    struct nr_list *next_emit; /* first node of pipeline whose response is not queued */
    uint32_t parsed;           /* bytes of the head the parser has seen */
    uint32_t url_off, url_len; /* relative to in_start, as are the spans of the fields */
    uint32_t head_bytes;       /* fields + 32 each */
    bool in_field, in_value, crlf_skipped, paused, has_dropped;
    int error;              /* HTTP status chosen by a callback, 0 none */
    const char *error_text; /* and its text */
    uint64_t body_left;     /* stated bytes of the body not yet read */
    int64_t body_start_ns;
    uint64_t body_got, chunks, framing_bytes;
};

struct nr_h2;

struct nr_conn {
    struct nr_watch watch; /* fd -1 for memory transports */
    struct nr_engine *e;
    const struct nr_transport *t;
    void *t_ctx;
    const struct nr_session_ops *ops; /* NULL while detecting */
    struct nr_list node;              /* e->conns, or e->free_conns */
    struct nr_list flush_node, resume_node, wheel_node, reap_node;
    int64_t armed_ns; /* the wheel looks at this connection then; NR_NEVER: not armed */
    enum nr_conn_state state;
    bool eof, blocked, linger, out_failed, counted_addr;
    uint32_t in_start, in_end;
    uint32_t in_want; /* the session needs only this many bytes more in this block; 0: any */
    struct nr_block *in;
    /* output queue */
    struct nr_seg *segs, seg_inline[4];
    uint32_t seg_head, seg_n, seg_cap;
    struct nr_block *out; /* block being appended to, a reference */
    uint32_t out_pos;
    uint64_t out_queued, out_sent; /* bytes, ever */
    int64_t accepted_ns, first_byte_ns, rx_ns, tx_ns, out_since_ns, closing_ns;
    uint64_t out_since_sent, linger_bytes;
    struct nr_h1 h1;
    struct nr_h2 *h2;
    struct nr_peer peer;
    uint8_t addr_key[16];
};

struct nr_span {
    uint32_t name, name_len, value, value_len;
};

/* An exchange with the engine's part behind it. */
struct nr_xp {
    struct nr_exchange x;
    struct nr_block *block; /* what head and body point into */
    struct nr_timer deadline;
    struct nr_list deadline_node;
    uint64_t out_end;    /* c->out_queued when the response was queued whole */
    struct nr_iov *held; /* response of a later pipelined request, waiting for its turn */
    unsigned n_held;
    struct nr_span *spans;
    unsigned n_spans, cap_spans;
    size_t body_off; /* of the body in x.body_buf */
    size_t body_len;
    bool exposed;    /* on_head was called */
    bool requested;  /* on_request was called */
    bool emitted;    /* response is in the output queue */
    bool held_close; /* of `held` */
    bool dropped;    /* no response of the app will be sent */
    bool cancel_told;
    bool keep_alive, expect, no_body;
    /* a response in parts */
    bool streaming;   /* begun */
    bool ended;       /* no more parts come */
    bool open;        /* HTTP/1.1: the head is in the output queue */
    bool pumping;     /* `done` of a part is being called: what it writes waits for its caller */
    bool close_after; /* HTTP/1.1: the last response of the connection */
    struct nr_list parts; /* that wait; node initialised with streaming */
    /* HTTP/2 */
    struct nr_h2_stream *stream;
};

/* Hashed wheel, 250 ms a slot: connections are re-armed only when their deadline moves to earlier
 * than armed_ns, so a request in steady state touches no timer. */
#define NR_WHEEL_SLOTS 256
#define NR_WHEEL_TICK_NS INT64_C(250000000)
struct nr_wheel {
    struct nr_list slot[NR_WHEEL_SLOTS];
    int64_t tick; /* all slots up to this one were handled */
    struct nr_timer timer;
};

struct nr_counters { /* single writer: the loop */
    _Atomic uint64_t accepted, refused, requests, bytes_in, bytes_out, parse_errors, timeouts,
        abuse_closed;
};
static inline void nr_count(_Atomic uint64_t *c, uint64_t n)
{
    atomic_store_explicit(c, atomic_load_explicit(c, memory_order_relaxed) + n,
                          memory_order_relaxed);
}

struct nr_listener_watch;
struct nr_engine {
    struct nr_loop *loop;
    struct nr_server *server; /* NULL in tests that open connections by hand */
    const struct nr_http_limits *limits;
    const struct nr_http_app *app;
    unsigned index;
    bool draining;
    bool worked; /* since the last look of idle_timer */
    struct nr_timer idle_timer;
    struct nr_turn_hook hook;
    struct nr_list conns, free_conns, flush, resume, reap, fresh_deadlines, free_exchanges;
    unsigned n_free_conns, n_free_exchanges, n_free_blocks;
    struct nr_block *free_blocks;
    uint8_t *scratch;
    struct nr_msg resume_msg;
    bool resume_posted;
    struct nr_wheel wheel;
    struct nr_counters counters;
    _Atomic unsigned open; /* connections, incremented by whoever accepted */
    uint64_t next_id;
    int64_t date_s;
    char date[40]; /* "date: …\r\n" */
    uint32_t date_len;
    struct nr_h2_pool *h2_pool;
};

/* engine.c */
void nr_engine_init(struct nr_engine *e, struct nr_loop *loop, const struct nr_http_limits *limits,
                    const struct nr_http_app *app, unsigned index);
void nr_engine_done(struct nr_engine *e);
void nr_engine_hook(struct nr_engine *e);   /* arms the end-of-turn work */
void nr_engine_retire(struct nr_engine *e); /* nr_server_retire's part */
void nr_engine_drain(struct nr_engine *e);
void nr_engine_abort(struct nr_engine *e);
struct nr_block *nr_block_try_new(struct nr_engine *e, uint32_t cap);
void nr_block_unref(struct nr_engine *e, struct nr_block *b);
void nr_wheel_arm(struct nr_engine *e, struct nr_conn *c, int64_t deadline_ns);
const char *nr_engine_date(struct nr_engine *e, uint32_t *ret_len);

/* conn.c */
/* Takes over t_ctx (closed by t->close). fd is watched for EPOLLIN when it is not -1. NULL when no
 * watch could be had; t->close was called then. */
struct nr_conn *nr_conn_open(struct nr_engine *e, const struct nr_transport *t, void *t_ctx, int fd,
                             const struct nr_peer *peer);
extern const struct nr_transport nr_transport_plain;
void nr_conn_on_event(struct nr_conn *c, uint32_t events);
void nr_conn_flush(struct nr_conn *c); /* sends what is queued */
void nr_conn_wake(struct nr_conn *c);  /* flush at the end of this turn */
void nr_conn_resume(struct nr_conn *c);
void nr_conn_settle(struct nr_conn *c); /* interest and deadline after something changed */
void nr_conn_close_soon(struct nr_conn *c, bool linger);
void nr_conn_kill(struct nr_conn *c, nr_cancel_reason why);
void nr_conn_on_wheel(struct nr_conn *c, int64_t now_ns);
bool nr_conn_reap(struct nr_conn *c); /* true: recycled */
static inline uint64_t nr_conn_pending(const struct nr_conn *c)
{
    return c->out_queued - c->out_sent;
}
/* Room for n contiguous bytes (n at most NR_BLOCK_CAP); NULL: out of memory, the connection will
 * be killed. Commit what was written. */
uint8_t *nr_conn_out_room(struct nr_conn *c, size_t n);
void nr_conn_out_commit(struct nr_conn *c, size_t n);
void nr_conn_out_copy(struct nr_conn *c, const void *data, size_t len);
/* Memory of an exchange that lives until out_sent has passed it. */
void nr_conn_out_ref(struct nr_conn *c, const void *data, size_t len);
/* Parts of a body: small ones copied, large ones referred to. */
void nr_conn_out_iov(struct nr_conn *c, const struct nr_iov *iov, unsigned n, uint64_t total);

/* detect.c */
void nr_detect(struct nr_conn *c);
void nr_h1_start(struct nr_conn *c);
void nr_h2_start(struct nr_conn *c);

/* server.c */
void nr_server_conn_gone(struct nr_conn *c); /* gives back what the address was charged */

/* h2_pool.c */
void nr_h2_pool_free(struct nr_h2_pool *p); /* accepts NULL */
size_t
nr_h2_pool_trim(struct nr_h2_pool *p); /* frees what is kept; accepts NULL; bytes given back */

/* exchange.c */
struct nr_xp *nr_xp_new(struct nr_conn *c, const struct nr_session_ops *ops);
void nr_xp_expose(struct nr_xp *xp);  /* on_head */
void nr_xp_request(struct nr_xp *xp); /* on_request */
/* The app's response will not be used; tells the app (once) when it has not answered. */
void nr_xp_drop(struct nr_xp *xp, nr_cancel_reason why);
void nr_xp_cancel(struct nr_xp *xp,
                  nr_cancel_reason why); /* tells only; a response is still sent */
void nr_xp_drop_parts(struct nr_xp *xp);
void nr_xp_message(struct nr_xp *xp); /* on_message */
/* Whether nothing is left to do: the app has answered and bytes up to out_end are gone. */
bool nr_xp_over(const struct nr_xp *xp, uint64_t out_sent);
void nr_xp_finish(struct nr_xp *xp); /* on_done, recycled */
static inline struct nr_xp *nr_xp_of(struct nr_exchange *x)
{
    return nr_container_of(x, struct nr_xp, x);
}
/* Body memory: makes x.body_buf hold `need` bytes behind body_off, aligned as the app asked. False:
 * no memory. `final` is the stated size, 0 when unknown. */
bool nr_xp_body_reserve(struct nr_xp *xp, uint64_t need, uint64_t final);
bool nr_xp_body_add(struct nr_xp *xp, const void *data, size_t len);

/* h2_send.c */
void nr_h2_end(struct nr_xp *xp, int grpc_status, struct nr_str grpc_message);

/* fields.c */
enum nr_field {
    NR_FIELD_OTHER,
    NR_FIELD_KNOWN_FIRST,
    NR_FIELD_CONTENT_TYPE = NR_FIELD_KNOWN_FIRST,
    NR_FIELD_CONTENT_ENCODING,
    NR_FIELD_ACCEPT,
    NR_FIELD_ACCEPT_ENCODING,
    NR_FIELD_HOST,
    NR_FIELD_ORIGIN,
    NR_FIELD_INFERENCE_LENGTH,
    NR_FIELD_AUTHORIZATION,
    NR_FIELD_TRACEPARENT,
    NR_FIELD_REQUEST_ID,
    NR_FIELD_USER_AGENT,
    NR_FIELD_SEC_FETCH_SITE,
    NR_FIELD_KNOWN_LAST = NR_FIELD_SEC_FETCH_SITE,
    NR_FIELD_CONTENT_LENGTH,
    NR_FIELD_TRANSFER_ENCODING,
    NR_FIELD_EXPECT,
    NR_FIELD_TE,
    NR_FIELD_COOKIE,
    NR_FIELD_GRPC_TIMEOUT,
    NR_FIELD_GRPC_ENCODING,
    NR_FIELD_HOP /* connection, keep-alive, proxy-connection, upgrade: refused by HTTP/2 */
};
enum nr_field nr_field_find(struct nr_str lower_name);
/* Files a field of a request into x->known. False when it came twice and that is ambiguous. */
bool nr_field_known(struct nr_exchange *x, enum nr_field f, struct nr_str value);
nr_method nr_method_find(struct nr_str text);
bool nr_host_valid(struct nr_str host); /* nr_host_split takes it */
/* Splits a request target in origin form ("/a?b") or "*"; false when it is neither, or has bytes
 * that no target may have. */
bool nr_target_split(struct nr_str target, nr_method method, struct nr_str *ret_path,
                     struct nr_str *ret_query);
bool nr_token_char(uint8_t ch); /* RFC 9110 section 5.6.2 */
#define NR_DATE_LINE_BYTES 37u
/* "date: Sun, 06 Nov 1994 08:49:37 GMT\r\n", not NUL-terminated; seconds since 1970, not before. */
void nr_date_line(int64_t wall_s, char out[NR_DATE_LINE_BYTES]);
const char *nr_reason(int status);
/* {"error":"…"} in the arena. text must need no JSON escapes. */
struct nr_str nr_error_body(struct nr_arena *a, const char *text);

#endif
