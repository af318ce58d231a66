/* --cache-config NAME,KEY=VALUE, as Triton has it: once for each key. NAME is "local" or "redis". A value
 * reaches to the end, commas and all, and is borrowed from the option. The password may come from NARU_REDIS_PASSWORD instead, where ps does not
 * show it.
 */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/status.h"
#include "serve/options.h"

typedef enum value_kind {
    VALUE_TEXT,
    VALUE_NUMBER,
    VALUE_MS
} value_kind;

struct redis_key {
    const char *name;
    value_kind kind;
    size_t offset; /* in struct nr_redis_cfg */
    uint64_t min, max;
};

#define R(field) offsetof(struct nr_redis_cfg, field)
static const struct redis_key redis_keys[] = {
    {"host", VALUE_TEXT, R(host), 0, 0},
    {"port", VALUE_NUMBER, R(port), 1, 65535},
    {"unix", VALUE_TEXT, R(unix_path), 0, 0},
    {"user", VALUE_TEXT, R(user), 0, 0},
    {"password", VALUE_TEXT, R(password), 0, 0},
    {"db", VALUE_NUMBER, R(db), 0, 65535},
    {"pool_size", VALUE_NUMBER, R(connections), 1, 64},
    {"ttl", VALUE_NUMBER, R(ttl_s), 0, 31536000},
    {"connect_timeout", VALUE_MS, R(connect_ns), 1, 10000},
    {"socket_timeout", VALUE_MS, R(answer_ns), 1, 10000},
};

static nr_status set_redis(struct nr_redis_cfg *cfg, struct nr_str key, struct nr_str value,
                           struct nr_err *err)
{
    for (unsigned i = 0; i < NR_COUNT(redis_keys); i++) {
        const struct redis_key *k = &redis_keys[i];
        char *at = (char *)cfg + k->offset;
        uint64_t n;
        if (!nr_str_is(key, k->name)) {
            continue;
        }
        if (k->kind == VALUE_TEXT) {
            if (value.len == 0) {
                return nr_fail(err, NARU_INVALID, "--cache-config redis,%s= needs a value",
                               k->name);
            }
            memcpy(at, &value.ptr, sizeof value.ptr); /* ends where the option ends */
            return NARU_OK;
        }
        if (!nr_str_to_u64(value, &n) || n < k->min || n > k->max) {
            return nr_fail(err, NARU_INVALID,
                           "--cache-config redis,%s=" NR_STR_FMT ": expected a number from %llu to "
                           "%llu%s",
                           k->name, NR_STR_ARG(value), (unsigned long long)k->min,
                           (unsigned long long)k->max, k->kind == VALUE_MS ? " (ms)" : "");
        }
        if (k->kind == VALUE_MS) {
            int64_t ns = (int64_t)n * (NR_S_NS / 1000);
            memcpy(at, &ns, sizeof ns);
        } else {
            uint32_t small = (uint32_t)n;
            memcpy(at, &small, sizeof small);
        }
        return NARU_OK;
    }
    return nr_fail(err, NARU_INVALID,
                   "--cache-config redis,'" NR_STR_FMT "' is unknown: host, port, unix, user, "
                   "password, db, pool_size, ttl, connect_timeout and socket_timeout are known",
                   NR_STR_ARG(key));
}

static nr_status set(struct nr_node_cfg *cfg, const char *text, struct nr_err *err)
{
    struct nr_str rest;
    struct nr_str name = nr_str_cut(nr_str_from(text), ',', &rest);
    bool is_redis = nr_str_is(name, "redis");
    if (!is_redis && !nr_str_is(name, "local")) {
        return nr_fail(
            err, NARU_INVALID,
            "--cache-config '%s': there are \"local,size=BYTES\" and \"redis,host=NAME\"", text);
    }
    struct nr_str value, key = nr_str_cut(rest, '=', &value);
    if (is_redis) {
        return set_redis(&cfg->redis, key, value, err);
    }
    if (!nr_str_is(key, "size") || !nr_str_to_u64(value, &cfg->cache_bytes)) {
        return nr_fail(err, NARU_INVALID, "--cache-config '%s': expected local,size=BYTES", text);
    }
    return NARU_OK;
}

nr_status serve_configure_cache(const struct option_list *given, struct nr_node_cfg *cfg,
                                struct nr_err *err)
{
    struct nr_redis_cfg *redis = &cfg->redis;
    bool wants_redis = false;
    for (unsigned i = 0; i < given->n; i++) {
        nr_status st = set(cfg, given->items[i], err);
        if (st != NARU_OK) {
            return st;
        }
        wants_redis |= strncmp(given->items[i], "redis,", 6) == 0;
    }
    if (wants_redis && (redis->host == NULL) == (redis->unix_path == NULL)) {
        return nr_fail(err, NARU_INVALID,
                       "--cache-config redis,… needs either host=NAME or unix=PATH");
    }
    if (wants_redis && redis->password == NULL) {
        redis->password = getenv("NARU_REDIS_PASSWORD");
    }
    return NARU_OK;
}
