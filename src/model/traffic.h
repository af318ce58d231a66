/* Labels: names of versions ("stable", "canary") that move, and the split of requests among them.
 *
 * A label stands wherever a version is given. Labels with a weight share the requests that give no
 * version; without weights those go to the highest version, as ever. A model's labels change as a
 * whole: one catalog snapshot has the state before, the next one the state after. The state before the
 * last change is kept for one call to go back to it. Nothing of this survives the process; what
 * shall be there at the start stands in config.pbtxt:
 *
 *   parameters { key: "naru.label.stable" value { string_value: "3" } }
 *   parameters { key: "naru.traffic" value { string_value: "stable=95,canary=5" } }
 *   parameters { key: "naru.shadow" value { string_value: "next=10" } }
 *
 * Shadow. One label of a model may have a copy of a share of the requests, whose answers nobody sees.
 *
 * Split. The k-th request of a loop takes the label in whose share the fractional part of
 * k × (golden ratio) falls: any run of n requests has its share of each label but for about log n
 * requests, whatever other models' requests lie between (Weyl's equidistribution; Knuth 6.4).
 *
 * Threads: struct nr_traffic is a value, guarded by the repository's lock; counts are each written by
 * one loop and read by anyone.
 */
#ifndef NR_MODEL_TRAFFIC_H
#define NR_MODEL_TRAFFIC_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "base/str.h"
#include "proto/model_config.pb-c.h"

#define NR_TRAFFIC_MAX_LABELS 16 /* of a model */
#define NR_TRAFFIC_MAX_WEIGHT 1000000
#define NR_TRAFFIC_SLOTS 64 /* one for each loop, modulo */

typedef enum nr_label_event {
    NR_LABEL_REQUESTS,       /* addressed to it, or got by its weight */
    NR_LABEL_SHADOWS,        /* copies sent */
    NR_LABEL_SHADOW_FAILED,  /* of these, not answered well */
    NR_LABEL_SHADOW_SKIPPED, /* not sent: see api/shadow.c */
    NR_LABEL_EVENTS
} nr_label_event;
struct nr_label_count { /* a cache line for each loop */
    _Alignas(64) _Atomic uint64_t events[NR_LABEL_EVENTS];
};
struct nr_label { /* lives as long as the repository */
    char name[65];
    struct nr_label_count counts[NR_TRAFFIC_SLOTS];
};
struct nr_traffic_rule {
    const char *name; /* of the label; in nr_traffic the nr_label's */
    int64_t version;
    uint32_t weight; /* 0: no share of requests without a version */
    uint32_t shadow; /* percent of requests without a version that are copied to it */
};
struct nr_traffic {
    uint32_t n;
    struct nr_traffic_rule rules[NR_TRAFFIC_MAX_LABELS];
};

/* A letter, then letters, digits, '.', '_', '-'; 64 at most. So no label reads as a number. */
bool nr_label_valid(struct nr_str name);
/* Reads naru.label.*, naru.traffic and naru.shadow. Names point into the message. NARU_INVALID. */
nr_nodiscard nr_status nr_traffic_read(const Inference__ModelConfig *pb, struct nr_traffic *ret,
                                       struct nr_err *err);
bool nr_traffic_same(const struct nr_traffic *a, const struct nr_traffic *b);
struct nr_traffic_rule *nr_traffic_find(struct nr_traffic *t, struct nr_str name); /* or NULL */
/* NARU_INVALID: more than one label has a shadow. */
nr_nodiscard nr_status nr_traffic_check(const struct nr_traffic *t, struct nr_err *err);
/* Of weights that somebody gave: NARU_INVALID when their sum is 0. */
nr_nodiscard nr_status nr_traffic_check_sum(uint64_t sum, struct nr_err *err);
/* Which rule the k-th request takes, of weights whose sum is above 0. */
uint32_t nr_traffic_pick(const uint32_t *weights, uint32_t n, uint64_t k);

uint64_t nr_label_count(const struct nr_label *l, nr_label_event what); /* of all loops */
/* On the loop whose slot it is. */
static inline void nr_label_add(struct nr_label *l, nr_label_event what, unsigned slot)
{
    _Atomic uint64_t *n = &l->counts[slot % NR_TRAFFIC_SLOTS].events[what];
    atomic_store_explicit(n, atomic_load_explicit(n, memory_order_relaxed) + 1,
                          memory_order_relaxed);
}

#endif
