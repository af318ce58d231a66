/* Which protocol does this connection speak? Decided by the first bytes, on every listener.
 *
 *   "PRI * HTTP/2.0 …" (24 bytes, RFC 9113 section 3.4)   HTTP/2 with prior knowledge, gRPC
 *   0x16 0x03 …                                            a TLS ClientHello: told, closed
 *   anything else                                          HTTP/1.1, whose parser refuses what it is not
 *
 * As long as what came is a proper prefix of the preface nothing is decided ("P" may be POST); the
 * connection's head deadline runs from the first byte, so nobody sits here for long. */
#include "http/engine.h"

static const char preface[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

static void refuse_tls(struct nr_conn *c)
{
    static const char text[] =
        "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: 69\r\n"
        "connection: close\r\n\r\n"
        "{\"error\":\"this port speaks plain HTTP: use http:// instead of https\"}";
    _Static_assert(sizeof("{\"error\":\"this port speaks plain HTTP: use http:// instead of "
                          "https\"}") == 70,
                   "content-length above");
    nr_count(&c->e->counters.parse_errors, 1);
    c->in_start = c->in_end;
    nr_conn_out_copy(c, text, sizeof(text) - 1);
    nr_conn_close_soon(c, true);
}

void nr_detect(struct nr_conn *c)
{
    const uint8_t *data = c->in->data + c->in_start;
    size_t have = c->in_end - c->in_start, n = NR_MIN(have, sizeof(preface) - 1);
    if (memcmp(data, preface, n) == 0) {
        if (n < sizeof(preface) - 1) {
            return;
        }
        nr_h2_start(c);
    } else if (data[0] == 0x16) {
        refuse_tls(c);
    } else {
        nr_h1_start(c);
        c->ops->on_input(c);
    }
}
