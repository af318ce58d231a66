/* Values in a Redis server, for what several processes share and nobody misses: lookups and stores
 * that never block a loop and never fail a request.
 *
 * A few threads have a connection each (hiredis) and do one command at a time. Whatever goes wrong (no
 * server, a time-out, a full queue) is a miss; after an error nothing is asked for a while (1 s, doubled
 * up to 30 s), so that a server that is away costs one time-out and not one for every request.
 *
 * Every process that uses the same server shares a secret, made by the first one and kept there under
 * "naru:secret"; keys should be hashed under it, so that clients cannot prepare two of one hash.
 */
#ifndef NR_IO_REDIS_H
#define NR_IO_REDIS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/list.h"
#include "base/status.h"
#include "base/str.h"
#include "io/loop.h"

#define NR_REDIS_SECRET_BYTES 192 /* what XXH3 recommends */
#define NR_REDIS_MAX_VALUE_BYTES ((size_t)8 << 20)

/* Strings are borrowed for the client's life. */
struct nr_redis_cfg {
    const char *host; /* name or address; NULL with unix_path */
    const char *unix_path;
    const char *user, *password; /* NULL: none; a password alone is that of "default" */
    uint32_t port;
    uint32_t db;
    uint32_t connections;   /* threads, each with one */
    int64_t connect_ns;     /* time-out */
    int64_t answer_ns;      /* time-out of one command */
    uint32_t ttl_s;         /* of what is stored; 0: for ever */
    unsigned max_waiting;   /* lookups and stores that wait for a connection; more are dropped */
    int64_t first_pause_ns; /* after an error */
};
void nr_redis_cfg_default(struct nr_redis_cfg *cfg);

struct nr_redis;
/* Never fails: a server that is not there may come later. */
struct nr_redis *nr_redis_new(const struct nr_redis_cfg *cfg);
/* Waits for the command under way; answers that no loop took are freed. Loops must not run any
 * more. Accepts NULL. */
void nr_redis_free(struct nr_redis *r);

/* The shared secret, NR_REDIS_SECRET_BYTES; NULL: not known yet, or the server is taken for away, and
 * nothing should be asked. Asking makes the client look for it. Any thread. */
const uint8_t *nr_redis_secret(struct nr_redis *r);

/* One lookup. In the client's memory; the caller keeps the pointer only to forget it. */
struct nr_redis_get;
/* On the loop, later: value is what was found, one reference for the callee, or NULL. Not after
 * nr_redis_forget. NULL is returned when too much waits already, and nothing is called. */
struct nr_redis_get *nr_redis_get(struct nr_redis *r, struct nr_str key, struct nr_loop *loop,
                                  void (*done)(void *arg, struct nr_buf *value), void *arg);
void nr_redis_forget(struct nr_redis_get *get); /* that loop; done will not be called */
/* Stores and forgets. value: one reference is taken over. Any thread. */
void nr_redis_put(struct nr_redis *r, struct nr_str key, struct nr_buf *value);

struct nr_redis_stats {
    uint64_t hits, misses, errors, stored, dropped;
    bool up; /* the last command worked */
};
void nr_redis_stats_get(struct nr_redis *r,
                        struct nr_redis_stats *ret); /* any thread; accepts NULL */

#endif
