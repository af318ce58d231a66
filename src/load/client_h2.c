/* HTTP/2 with prior knowledge and gRPC unary calls under a load run, on nghttp2's client session.
 *
 * Frames are gathered in c->out and written with one send per flush, as a good client does: HEADERS
 * and DATA of one request in two segments would charge the server for the client's habits. Windows
 * are opened as far as the protocol allows, so that answers never wait for an update.
 *
 * A stream's shot is its user data in the session; a shot is settled when its stream closes.
 */
#include <errno.h>
#include <nghttp2/nghttp2.h>
#include <string.h>
#include <sys/socket.h>

#include "base/mem.h"
#include "load/client_priv.h"

#define WINDOW 0x3fffffff
#define FIXED_FIELDS 4
#define GRPC_EXHAUSTED 8
#define GRPC_UNAVAILABLE 14

static nr_load_outcome judge(const struct nr_load_conn *c, const struct nr_load_shot *s)
{
    if (s->http_status / 100 != 2) {
        return s->http_status == 429 || s->http_status == 503 ? NR_LOAD_REFUSED : NR_LOAD_STATUS;
    }
    if (nr_load_target_of(c)->proto == NR_LOAD_HTTP2 || s->grpc_status == 0) {
        return NR_LOAD_GOOD;
    }
    if (s->grpc_status < 0) {
        return NR_LOAD_MALFORMED;
    }
    return s->grpc_status == GRPC_EXHAUSTED || s->grpc_status == GRPC_UNAVAILABLE ? NR_LOAD_REFUSED
                                                                                  : NR_LOAD_STATUS;
}

static int on_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name,
                     size_t name_len, const uint8_t *value, size_t value_len, uint8_t flags,
                     void *user)
{
    (void)flags;
    (void)user;
    struct nr_load_shot *s = nghttp2_session_get_stream_user_data(session, frame->hd.stream_id);
    struct nr_str n = {(const char *)name, name_len}, v = {(const char *)value, value_len};
    uint64_t number = 0;
    if (s == NULL) {
        return 0;
    }
    if (nr_str_eq(n, NR_STR(":status")) && nr_str_to_u64(v, &number)) {
        s->http_status = (unsigned)number;
    } else if (nr_str_eq(n, NR_STR("grpc-status"))) {
        s->grpc_status = nr_str_to_u64(v, &number) && number <= 16 ? (int)number : 2;
    }
    return 0;
}

static int on_stream_close(nghttp2_session *session, int32_t stream_id, uint32_t error_code,
                           void *user)
{
    struct nr_load_conn *c = user;
    struct nr_load_shot *s = nghttp2_session_get_stream_user_data(session, stream_id);
    if (s != NULL && s->busy && s->stream_id == stream_id) {
        nr_load_shot_done(c, s, error_code == 0 ? judge(c, s) : NR_LOAD_BROKEN);
    }
    return 0;
}

static ssize_t read_body(nghttp2_session *session, int32_t stream_id, uint8_t *buf, size_t len,
                         uint32_t *flags, nghttp2_data_source *source, void *user)
{
    struct nr_load_conn *c = user;
    const struct nr_load_target *t = nr_load_target_of(c);
    struct nr_load_shot *s = source->ptr;
    (void)session;
    (void)stream_id;
    size_t n = NR_MIN(len, t->wire_bytes - s->sent_bytes);
    memcpy(buf, t->wire + s->sent_bytes, n);
    s->sent_bytes += n;
    if (s->sent_bytes == t->wire_bytes) {
        *flags |= NGHTTP2_DATA_FLAG_EOF;
    }
    return (ssize_t)n;
}

static nr_status h2_open(struct nr_load_conn *c)
{
    const nghttp2_settings_entry settings[] = {{NGHTTP2_SETTINGS_ENABLE_PUSH, 0},
                                               {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, WINDOW}};
    nghttp2_session_callbacks *callbacks;
    nghttp2_session *session = NULL;
    if (nghttp2_session_callbacks_new(&callbacks) != 0) {
        return NARU_NOMEM;
    }
    nghttp2_session_callbacks_set_on_header_callback(callbacks, on_header);
    nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, on_stream_close);
    int rv = nghttp2_session_client_new(&session, callbacks, c);
    nghttp2_session_callbacks_del(callbacks);
    c->session = session;
    c->out = nr_alloc(NR_LOAD_OUT_BYTES);
    c->out_at = c->out_len = 0;
    if (rv != 0 ||
        nghttp2_submit_settings(session, NGHTTP2_FLAG_NONE, settings, NR_COUNT(settings)) != 0 ||
        nghttp2_session_set_local_window_size(session, NGHTTP2_FLAG_NONE, 0, WINDOW) != 0) {
        return NARU_NOMEM;
    }
    return NARU_OK;
}

static void h2_close(struct nr_load_conn *c)
{
    nghttp2_session *session = NR_TAKE(c->session);
    nghttp2_session_del(session); /* calls on_stream_close for none */
    nr_free(NR_TAKE(c->out));
}

static void put(nghttp2_nv *nv, struct nr_str name, struct nr_str value)
{
    *nv = (nghttp2_nv){.name = (uint8_t *)(uintptr_t)name.ptr,
                       .namelen = name.len,
                       .value = (uint8_t *)(uintptr_t)value.ptr,
                       .valuelen = value.len,
                       .flags = NGHTTP2_NV_FLAG_NO_COPY_NAME | NGHTTP2_NV_FLAG_NO_COPY_VALUE};
}

static nr_status h2_fire(struct nr_load_conn *c, struct nr_load_shot *s)
{
    const struct nr_load_target *t = nr_load_target_of(c);
    nghttp2_nv nv[FIXED_FIELDS + 2 + NR_LOAD_FIELDS_MAX];
    size_t n = 0;
    put(&nv[n++], NR_STR(":method"), t->method);
    put(&nv[n++], NR_STR(":scheme"), NR_STR("http"));
    put(&nv[n++], NR_STR(":authority"), t->authority);
    put(&nv[n++], NR_STR(":path"), t->path);
    if (t->proto == NR_LOAD_GRPC) {
        put(&nv[n++], NR_STR("content-type"), NR_STR("application/grpc"));
        put(&nv[n++], NR_STR("te"), NR_STR("trailers"));
    }
    for (unsigned i = 0; i < t->n_fields; i++) {
        put(&nv[n++], t->fields[i].name, t->fields[i].value);
    }
    nghttp2_data_provider body = {.source.ptr = s, .read_callback = read_body};
    s->stream_id =
        nghttp2_submit_request(c->session, NULL, nv, n, t->wire_bytes > 0 ? &body : NULL, s);
    return s->stream_id > 0 ? NARU_OK : NARU_CANCELLED; /* GOAWAY, or out of stream numbers */
}

/* Writes what is gathered in c->out. */
static nr_status write_out(struct nr_load_conn *c)
{
    while (c->out_at < c->out_len) {
        ssize_t n = send(c->watch.fd, c->out + c->out_at, c->out_len - c->out_at, MSG_NOSIGNAL);
        if (n < 0) {
            return errno == EAGAIN ? NARU_AGAIN : NARU_IO;
        }
        c->out_at += (size_t)n;
    }
    c->out_at = c->out_len = 0;
    return NARU_OK;
}

static nr_status h2_flush(struct nr_load_conn *c)
{
    for (;;) {
        nr_status st = write_out(c);
        if (st != NARU_OK) {
            return st;
        }
        const uint8_t *data = NULL;
        ssize_t n;
        /* A DATA frame is at most 16 KiB + 9: as long as that much is free, any frame fits. */
        while (c->out_len + 16384 + 9 <= NR_LOAD_OUT_BYTES &&
               (n = nghttp2_session_mem_send(c->session, &data)) > 0) {
            if ((size_t)n > NR_LOAD_OUT_BYTES - c->out_len) {
                return NARU_IO;
            }
            memcpy(c->out + c->out_len, data, (size_t)n);
            c->out_len += (size_t)n;
        }
        if (c->out_len == 0) {
            return NARU_OK;
        }
    }
}

static nr_status h2_feed(struct nr_load_conn *c, const char *data, size_t len)
{
    ssize_t n = nghttp2_session_mem_recv(c->session, (const uint8_t *)data, len);
    if (n < 0 || (size_t)n != len) {
        return NARU_INVALID;
    }
    bool ended = !nghttp2_session_want_read(c->session) && !nghttp2_session_want_write(c->session);
    return ended ? NARU_CANCELLED : NARU_OK;
}

const struct nr_load_ops nr_load_h2_ops = {h2_open, h2_close, h2_fire, h2_flush, h2_feed};
