/* HTTP/1.1 under a load run: one request in flight per connection, sent from ready bytes.
 *
 * c->sent_bytes counts what of the request was written; it equals the request's size while nothing
 * is to be sent.
 */
#include <errno.h>
#include <sys/socket.h>

#include "base/mem.h"
#include "load/client_priv.h"

static nr_status h1_open(struct nr_load_conn *c)
{
    c->reply = nr_new(struct nr_reply);
    c->sent_bytes = nr_load_target_of(c)->wire_bytes;
    return NARU_OK;
}

static void h1_close(struct nr_load_conn *c)
{
    nr_free(NR_TAKE(c->reply));
}

static nr_status h1_fire(struct nr_load_conn *c, struct nr_load_shot *s)
{
    (void)s; /* there is only one */
    c->sent_bytes = 0;
    nr_reply_reset(c->reply);
    return NARU_OK;
}

static nr_status h1_flush(struct nr_load_conn *c)
{
    const struct nr_load_target *t = nr_load_target_of(c);
    while (c->sent_bytes < t->wire_bytes) {
        ssize_t n =
            send(c->watch.fd, t->wire + c->sent_bytes, t->wire_bytes - c->sent_bytes, MSG_NOSIGNAL);
        if (n < 0) {
            return errno == EAGAIN ? NARU_AGAIN : NARU_IO;
        }
        c->sent_bytes += (size_t)n;
    }
    return NARU_OK;
}

static nr_load_outcome judge(unsigned status)
{
    if (status / 100 == 2) {
        return NR_LOAD_GOOD;
    }
    return status == 429 || status == 503 ? NR_LOAD_REFUSED : NR_LOAD_STATUS;
}

static nr_status h1_feed(struct nr_load_conn *c, const char *data, size_t len)
{
    struct nr_load_shot *s = &c->shots[0];
    size_t used = 0;
    if (!s->busy) {
        return NARU_INVALID; /* an answer to nothing */
    }
    nr_status st = nr_reply_feed(c->reply, data, len, &used);
    if (st == NARU_AGAIN) {
        return NARU_OK;
    }
    if (st != NARU_OK || used != len) {
        return NARU_INVALID;
    }
    /* An answer that comes before the request was sent whole (413) leaves the connection useless. */
    bool closes = c->reply->closes || c->sent_bytes < nr_load_target_of(c)->wire_bytes;
    if (closes) {
        c->failed = NARU_CANCELLED;
    }
    nr_load_shot_done(c, s, judge(c->reply->status));
    return NARU_OK;
}

const struct nr_load_ops nr_load_h1_ops = {h1_open, h1_close, h1_fire, h1_flush, h1_feed};
