/* The contract between the HTTP engine and whoever answers: one exchange = one request and its
 * response, on HTTP/1.1, HTTP/2 or gRPC alike.
 *
 * Life of an exchange (all on the loop that owns the connection):
 *
 *   head complete ──▶ app->on_head ──▶ body bytes ──▶ app->on_request ──▶ nr_exchange_respond
 *                        │ (may respond at once: the body is then drained or the connection closed)
 *   peer gone, reset, deadline ──▶ app->on_cancel, once, only between on_head and respond
 *   response sent or dropped ──▶ app->on_done, always, exactly once; then the exchange is recycled
 *
 * Instead of one response the app may begin a stream, write parts and end it; ending is the answer
 * then, and on_cancel may come until it is given. A call whose x->many_messages the app set in on_head
 * (gRPC, client or bidirectional streaming) gives its messages to on_message one by one, and
 * on_request, without a body, says that the client has sent its last.
 *
 * Invariants
 *  1. After on_head the app answers exactly once, with nr_exchange_respond or nr_exchange_end,
 *     cancelled or not. The
 *     engine drops the response of a cancelled exchange; it never frees an unanswered exchange.
 *  2. Everything a response points to lives in x->arena or is tied to it (nr_arena_link): the
 *     engine clears the arena after the last byte was written or dropped.
 *  3. The body handed to on_request is contiguous. A small HTTP/1.1 body is a view on the receive
 *     buffer (body_buf NULL, valid until the response was given); otherwise body_buf owns it.
 *  4. Bytes are charged before they are buffered: content-length beyond body_limit is refused with
 *     413 / RESOURCE_EXHAUSTED before reading; chunked bodies when they pass it.
 *  5. For gRPC the engine checks the framing, strips it and hands over the one message of a unary
 *     call; it writes prefix, headers and trailers.
 *  6. Responses given within one loop turn are written together at the end of the turn.
 */
#ifndef NR_HTTP_EXCHANGE_H
#define NR_HTTP_EXCHANGE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/arena.h"
#include "base/buf.h"
#include "base/iov.h"
#include "base/list.h"
#include "base/status.h"
#include "base/str.h"
#include "io/loop.h"

typedef enum nr_method {
    NR_GET,
    NR_HEAD,
    NR_POST,
    NR_PUT,
    NR_DELETE,
    NR_OPTIONS,
    NR_PATCH,
    NR_METHOD_OTHER
} nr_method;

typedef enum nr_protocol {
    NR_HTTP_1_0,
    NR_HTTP_1_1,
    NR_HTTP_2,
    NR_GRPC
} nr_protocol;

struct nr_header {
    struct nr_str name; /* lower case in requests */
    struct nr_str value;
};

/* Headers that the engine finds while parsing, so that nobody searches for them. Empty when absent
 * (ptr NULL); a field that came twice is refused by the engine where that is ambiguous. */
#define NR_REQUEST_ID_MAX \
    128u /* bytes of request_id; a longer one, or one with other bytes than printable
                                  ASCII, is as if it had not come. Every response has it back. */
struct nr_known_headers {
    struct nr_str content_type, content_encoding, accept, accept_encoding, host, origin;
    struct nr_str inference_header_content_length, authorization, traceparent, request_id;
    struct nr_str user_agent, sec_fetch_site;
};

struct nr_conn;
struct nr_exchange;
struct nr_session_ops; /* the engine's: HTTP/1.1 or HTTP/2 */

struct nr_peer {
    char text[80];   /* "127.0.0.1:53211" (NR_SOCK_TEXT_MAX) */
    uint64_t client; /* whom fairness counts it to: its address; on 127.0.0.1, ::1 and sockets
                        without an address, where everybody has the same one, its connection */
    bool loopback;
    uint16_t listener; /* index given to nr_server_listen */
};

typedef enum nr_cancel_reason {
    NR_CANCEL_RESET,      /* RST, RST_STREAM, GOAWAY, write error: nobody can read an answer */
    NR_CANCEL_HALF_CLOSE, /* FIN with the request unanswered: cancel what has not begun */
    NR_CANCEL_DEADLINE,   /* the request's deadline passed */
    NR_CANCEL_SHUTDOWN,   /* second SIGTERM */
    NR_CANCEL_REFUSED     /* the engine answered by itself: body too large, malformed, too slow */
} nr_cancel_reason;

struct nr_exchange {
    struct nr_arena arena;
    struct nr_loop *loop;
    struct nr_conn *conn;
    const struct nr_session_ops *ops;
    const struct nr_peer *peer;
    struct nr_list node; /* the session's */
    uint64_t id;         /* unique in the process; shown in logs as hex */

    /* request head; strings live in the arena or in the receive buffer until on_done */
    nr_method method;
    nr_protocol protocol;
    struct nr_str method_text;
    struct nr_str path;  /* as sent, up to '?' */
    struct nr_str query; /* behind '?', empty when absent */
    struct nr_header *headers;
    unsigned n_headers;
    struct nr_known_headers known;
    int64_t content_length; /* -1: not stated */
    int64_t start_ns;       /* first byte of the head was read */
    int64_t head_ns;        /* head complete */
    int64_t body_ns;        /* body complete */
    int64_t deadline_ns;    /* from grpc-timeout; 0 none. The app may set it in on_head */

    /* set by the app in on_head */
    void *app;            /* the app's own */
    uint64_t body_limit;  /* bytes; preset to the server's default */
    size_t body_align_at; /* this offset of the body should be 64-byte aligned (binary tensors) */
    struct nr_buf *tail_buf; /* the app's wish: what follows body_align_at bytes of a body of stated
                                length goes here and fills it. The reference is the exchange's,
                                which makes it body_buf, or drops it where that would not pay */
    uint8_t forwarded;       /* the app's: unused by the engine */
    bool many_messages;      /* gRPC: the client may send more than one; each goes to on_message */

    /* the body, complete at on_request */
    struct nr_str body;
    struct nr_buf *body_buf; /* owner of body, or NULL (see invariant 3); one reference is the
                                exchange's: take one with nr_buf_ref to keep it longer */
    struct nr_str tail;      /* the app's wish was granted: body ends at body_align_at, and this
                                follows, in body_buf. Else empty, ptr NULL */

    /* the engine's; read-only for the app */
    bool responded;
    bool cancelled;
    int response_status;     /* HTTP status or, for gRPC, the grpc-status: for the access log */
    uint64_t response_bytes; /* of the body */
    void *session_data[4];   /* the session's */
};

struct nr_response {
    int status;                      /* HTTP; ignored for gRPC (always 200) */
    struct nr_str content_type;      /* empty: no body type. gRPC: ignored */
    const struct nr_header *headers; /* more fields, names in lower case; borrowed until return */
    unsigned n_headers;
    const struct nr_iov
        *body; /* parts in order; the array is borrowed, the bytes see invariant 2 */
    unsigned n_body;
    bool close;      /* close the connection after this response (HTTP/1.1) */
    int grpc_status; /* gRPC: status of the trailers; 0 with a message */
    struct nr_str grpc_message;
};

/* Answers. Loop thread. For gRPC with grpc_status != 0 the body is ignored (trailers only). */
void nr_exchange_respond(struct nr_exchange *x, const struct nr_response *r);

/* --- a response in parts (loop thread) ---
 * HTTP/1.1 sends them as chunks, HTTP/1.0 as they are with the end of the connection behind them,
 * HTTP/2 as DATA; for gRPC each part is one message. Parts are held until the peer has room for
 * them: who writes waits for `done` before it writes much more. */
struct nr_part {
    const void *data;
    size_t len;                      /* gRPC: at most UINT32_MAX */
    void (*done)(struct nr_part *p); /* its bytes are copied or dropped: p is the writer's again */
    struct nr_list node;             /* the engine's */
    size_t at;
    uint8_t prefix[5];
};
/* The head; r->body must be empty. Not before on_request, but for x->many_messages. */
void nr_exchange_begin(struct nr_exchange *x, const struct nr_response *r);
/* Takes p over until p->done, which may be called before this returns. */
void nr_exchange_write(struct nr_exchange *x, struct nr_part *p);
/* No more parts. The status is for gRPC; HTTP has said its own. */
void nr_exchange_end(struct nr_exchange *x, int grpc_status, struct nr_str grpc_message);

/* 100-continue is sent by the engine when the body is wanted. */

/* host [":" port] without userinfo (RFC 3986 section 3.2), of a Host field or an Origin: *ret_name is what
 * stands before the port, brackets of an IPv6 address included. False when it is not that: a name with
 * other bytes than names have, brackets that do not close, a port that is no number up to 65535, a port
 * without a name. No port behind the colon stands for the default one; nothing at all is legal. */
nr_nodiscard bool nr_host_split(struct nr_str host, struct nr_str *ret_name);

struct nr_http_app {
    void *ctx;
    /* Head complete. Sets body_limit, body_align_at, app; may respond at once. */
    void (*on_head)(void *ctx, struct nr_exchange *x);
    /* Body complete (also for requests without one). */
    void (*on_request)(void *ctx, struct nr_exchange *x);
    void (*on_cancel)(void *ctx, struct nr_exchange *x, nr_cancel_reason why);
    /* Response sent (or dropped): for the access log and the app's own clean-up. */
    void (*on_done)(void *ctx, struct nr_exchange *x);
    /* x->many_messages: one message is in x->body; body_buf, if any, is kept by nr_buf_ref. */
    void (*on_message)(void *ctx, struct nr_exchange *x);
    /* A loop had no work for idle_trim_ns and has given its pools back to the heap. On that loop; may
     * be NULL. */
    void (*on_idle)(void *ctx);
};

#endif
