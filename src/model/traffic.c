/* Labels and weights as values: reading them from a configuration, picking by them.
 *
 * DESIGN. The pick is a function of a counter and not of chance: a canary of 1 % gets ten of a
 * thousand requests, not four or seventeen, so its figures can be read early. The counter is a
 * loop's own, so nothing shared is written.
 *
 * Threads: pure functions, but for the counts.
 */
#include "model/traffic.h"

#include <string.h>

#include "base/str.h"

bool nr_label_valid(struct nr_str name)
{
    if (name.len == 0 || name.len > 64) {
        return false;
    }
    for (size_t i = 0; i < name.len; i++) {
        char c = name.ptr[i], lower = (char)(c | 0x20);
        bool letter = lower >= 'a' && lower <= 'z';
        bool other = (c >= '0' && c <= '9') || c == '.' || c == '_' || c == '-';
        if (!letter && (i == 0 || !other)) {
            return false;
        }
    }
    return true;
}

struct nr_traffic_rule *nr_traffic_find(struct nr_traffic *t, struct nr_str name)
{
    for (uint32_t i = 0; i < t->n; i++) {
        if (nr_str_is(name, t->rules[i].name)) {
            return &t->rules[i];
        }
    }
    return NULL;
}

bool nr_traffic_same(const struct nr_traffic *a, const struct nr_traffic *b)
{
    bool same = a->n == b->n;
    for (uint32_t i = 0; i < a->n && same; i++) {
        same = strcmp(a->rules[i].name, b->rules[i].name) == 0 &&
               a->rules[i].version == b->rules[i].version &&
               a->rules[i].weight == b->rules[i].weight && a->rules[i].shadow == b->rules[i].shadow;
    }
    return same;
}

static nr_status read_label(const char *name, const char *value, struct nr_traffic *t,
                            struct nr_err *err)
{
    uint64_t version;
    if (!nr_label_valid(nr_str_from(name))) {
        return nr_fail(err, NARU_INVALID,
                       "naru.label.%.100s: a label begins with a letter and has letters, digits, "
                       "'.', '_' and '-' only, 64 at most",
                       name);
    }
    if (!nr_str_to_u64(nr_str_from(value), &version) || version == 0 || version > INT64_MAX) {
        return nr_fail(err, NARU_INVALID,
                       "naru.label.%.64s: \"%.64s\" is no version, expected a number from 1 on",
                       name, value);
    }
    if (t->n == NR_TRAFFIC_MAX_LABELS) {
        return nr_fail(err, NARU_INVALID, "naru.label.%.64s: a model has %d labels at most", name,
                       NR_TRAFFIC_MAX_LABELS);
    }
    t->rules[t->n++] = (struct nr_traffic_rule){.name = name, .version = (int64_t)version};
    return NARU_OK;
}

nr_status nr_traffic_check_sum(uint64_t sum, struct nr_err *err)
{
    return sum > 0
               ? NARU_OK
               : nr_fail(err, NARU_INVALID,
                         "all weights are 0, so no label would get a request: give one of them a "
                         "weight, or no weights at all, and the highest version gets them");
}

/* "stable=95,canary=5" */
static nr_status read_shares(struct nr_str text, const char *key, uint64_t most, bool shadow,
                             struct nr_traffic *t, struct nr_err *err)
{
    bool any = text.len > 0;
    uint64_t sum = 0;
    while (text.ptr != NULL && text.len > 0) {
        struct nr_str value, part = nr_str_cut(text, ',', &text);
        struct nr_str name = nr_str_cut(part, '=', &value);
        struct nr_traffic_rule *rule = nr_traffic_find(t, name);
        uint64_t share;
        if (rule == NULL || !nr_str_to_u64(value, &share) || share > most) {
            return nr_fail(err, NARU_INVALID,
                           "%s: \"" NR_STR_FMT
                           "\": expected LABEL=%s of labels given by naru.label.LABEL, from 0 to "
                           "%llu",
                           key, NR_STR_ARG(part), shadow ? "PERCENT" : "WEIGHT",
                           (unsigned long long)most);
        }
        *(shadow ? &rule->shadow : &rule->weight) = (uint32_t)share;
        sum += share;
    }
    return any && !shadow ? nr_traffic_check_sum(sum, err) : NARU_OK;
}

nr_status nr_traffic_check(const struct nr_traffic *t, struct nr_err *err)
{
    unsigned shadows = 0;
    for (uint32_t i = 0; i < t->n; i++) {
        shadows += t->rules[i].shadow > 0;
    }
    return shadows <= 1
               ? NARU_OK
               : nr_fail(err, NARU_INVALID,
                         "%u labels have a shadow, one of a model at most may have", shadows);
}

nr_status nr_traffic_read(const Inference__ModelConfig *pb, struct nr_traffic *ret,
                          struct nr_err *err)
{
    static const char prefix[] = "naru.label.";
    const char *weights = "", *shadow = "";
    nr_status st = NARU_OK;
    *ret = (struct nr_traffic){0};
    for (size_t i = 0; i < pb->n_parameters && st == NARU_OK; i++) {
        const char *key = pb->parameters[i]->key;
        const char *value =
            pb->parameters[i]->value != NULL ? pb->parameters[i]->value->string_value : "";
        if (strncmp(key, prefix, sizeof(prefix) - 1) == 0) {
            st = read_label(key + sizeof(prefix) - 1, value, ret, err);
        } else if (strcmp(key, "naru.traffic") == 0) {
            weights = value;
        } else if (strcmp(key, "naru.shadow") == 0) {
            shadow = value;
        }
    }
    if (st == NARU_OK) {
        st = read_shares(nr_str_from(weights), "naru.traffic", NR_TRAFFIC_MAX_WEIGHT, false, ret,
                         err);
    }
    if (st == NARU_OK) {
        st = read_shares(nr_str_from(shadow), "naru.shadow", 100, true, ret, err);
    }
    return st == NARU_OK ? nr_traffic_check(ret, err) : st;
}

uint32_t nr_traffic_pick(const uint32_t *weights, uint32_t n, uint64_t k)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < n; i++) {
        sum += weights[i];
    }
    /* 2^64 / golden ratio; the upper half of the product is the fraction, in 32 bits */
    uint64_t fraction = (k * UINT64_C(0x9e3779b97f4a7c15)) >> 32;
    uint64_t at = (fraction * sum) >> 32; /* sum is below 2^25 */
    uint32_t i = 0;
    while (i + 1 < n && at >= weights[i]) {
        at -= weights[i++];
    }
    return i;
}

uint64_t nr_label_count(const struct nr_label *l, nr_label_event what)
{
    uint64_t sum = 0;
    for (unsigned i = 0; i < NR_TRAFFIC_SLOTS; i++) {
        sum += atomic_load_explicit(&l->counts[i].events[what], memory_order_relaxed);
    }
    return sum;
}
