/* Response cache: answers a request that was answered before without touching the scheduler.
 *
 * One nr_cache per process, bounded by bytes; a model version that asks for it (response_cache in
 * config.pbtxt) gets a nr_cached in front of its scheduler: a target like any other. Only successful
 * answers are kept. A model whose answers depend on more than its inputs (sequences, decoupled
 * models) is not cached; the configuration check refuses that.
 *
 * Key: version opened (a number never used again, so a reload forgets), names, datatypes, shapes and
 * bytes of the inputs, the outputs asked for, and the parameters that the plug-in sees. It is held
 * as the 128-bit XXH3 of all that under a secret of this process, with the number of input bytes
 * beside it; both are compared. The secret keeps clients from preparing two inputs of one key.
 *
 * Which entries stay: least recently used goes first, but a newcomer that was seen less often lately
 * than the entry it would push out is not taken in (TinyLFU: Einziger, Friedman, Manes, 2017), so a
 * scan of unique inputs leaves what is asked for again and again.
 *
 * Shared. With a Redis server (io/redis.h) several processes share answers: what is not found here is
 * looked up there while the request waits, and what was computed is stored there. The key has the
 * fingerprint of the version in place of its number, under the secret of all processes. What the server
 * gives is checked as if a client had sent it (answer.h). Whatever is wrong with it is a miss.
 *
 * THREADS. Lookup and insertion happen on the request's loop under one short lock; bytes are copied
 * outside it. Answers point into the entry's buffer, which lives as long as one of them.
 */
#ifndef NR_SCHED_CACHE_H
#define NR_SCHED_CACHE_H

#include "io/redis.h"
#include "sched/counters.h"
#include "sched/request.h"

/* Inputs beyond this are not looked up: hashing them would hold the loop up for too long. */
#define NR_CACHE_MAX_INPUT_BYTES ((size_t)4 << 20)

struct nr_cache;
struct nr_cache *nr_cache_new(uint64_t max_bytes);
void nr_cache_free(struct nr_cache *c); /* accepts NULL; every nr_cached must be gone */

struct nr_cache_stats {
    uint64_t max_bytes, bytes, entries;
    uint64_t hits, misses, evicted;
    uint64_t turned_away; /* larger than an eighth of the cache, or seen too rarely */
};
void nr_cache_stats_get(struct nr_cache *c,
                        struct nr_cache_stats *ret); /* any thread; accepts NULL */

struct nr_cached;
struct nr_cached_cfg { /* everything is borrowed and must outlive the target */
    struct nr_cache *cache;
    struct nr_target *inner;
    struct nr_counters *counters;
    const struct nr_signature *signature;
    struct nr_redis *redis;  /* NULL: answers are not shared */
    uint64_t fingerprint[2]; /* with redis: what the version computes (model/fingerprint.h) */
};
/* In front of `inner`. Never fails. */
struct nr_cached *nr_cached_new(const struct nr_cached_cfg *cfg);
void nr_cached_free(struct nr_cached *f); /* forgets the version's entries; accepts NULL */
struct nr_target *nr_cached_target(struct nr_cached *f);

#endif
