/* instance_group: which instances a model has, on what, with which limits.
 *
 * DESIGN. Triton's rules, with texts that say what is allowed. Three steps as everywhere: what the
 * text alone breaks is refused at once; KIND_AUTO is settled when it is known which GPUs the backend
 * can use; what is left open is completed, and the groups are laid out flat. What a group names
 * that only the server can know (resources, host policies) is checked by whoever opens the version.
 *
 * Deviations from Triton. A group of KIND_AUTO whose gpus are not there is refused with that reason (Triton
 * makes it KIND_CPU first, and then refuses a CPU that has gpus). A model of passive groups only is
 * refused, since its requests would wait for ever.
 *
 * Threads: pure functions of the configuration.
 */
#include <stdio.h>

#include "model/config_priv.h"

#define KIND(name) INFERENCE__MODEL_INSTANCE_GROUP__KIND__KIND_##name
#define MAX_NAME 128 /* of a resource or a policy */

/* --- what the text alone can break ------------------------------------------------------------- */

static nr_status check_profiles(const Inference__ModelInstanceGroup *g, struct nr_err *err)
{
    for (size_t i = 0; i < g->n_profile; i++) {
        uint64_t index;
        if (!nr_str_to_u64(nr_str_from(g->profile[i]), &index) || index > INT32_MAX) {
            return nr_fail(err, NARU_INVALID,
                           "instance_group: profile \"%.64s\" is no number from 0 on",
                           g->profile[i]);
        }
    }
    return NARU_OK;
}

/* A name that flags and metrics can carry. */
static bool is_plain(const char *name)
{
    size_t n = strlen(name);
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)name[i];
        if (c < ' ' || c == 0x7f || c == '"' || c == '\\' || c == ':') {
            return false;
        }
    }
    return n > 0 && n <= MAX_NAME;
}

static nr_status check_limiter(const Inference__ModelRateLimiter *limiter, struct nr_err *err)
{
    for (size_t i = 0; limiter && i < limiter->n_resources; i++) {
        const char *name = limiter->resources[i]->name;
        if (!is_plain(name)) {
            return nr_fail(
                err, NARU_INVALID,
                "rate_limiter: resource \"%.64s\": a name has 1 to %d characters, without "
                "quotes, colons, backslashes and control characters",
                name, MAX_NAME);
        }
        for (size_t k = 0; k < i; k++) {
            if (strcmp(limiter->resources[k]->name, name) == 0) {
                return nr_fail(err, NARU_INVALID, "rate_limiter: resource \"%s\" is listed twice",
                               name);
            }
        }
    }
    return NARU_OK;
}

static nr_status check_group(const Inference__ModelInstanceGroup *g, struct nr_err *err)
{
    if (g->count < 0) {
        return nr_fail(err, NARU_INVALID, "instance_group: count must be 1 or more, found %d",
                       g->count);
    }
    if ((g->kind == KIND(CPU) || g->kind == KIND(MODEL)) && g->n_gpus > 0) {
        return nr_fail(err, NARU_INVALID, "instance_group: KIND_%s takes no gpus",
                       g->kind == KIND(CPU) ? "CPU" : "MODEL");
    }
    for (size_t k = 0; k < g->n_gpus; k++) {
        if (g->gpus[k] < 0) {
            return nr_fail(err, NARU_INVALID, "instance_group: gpus has %d", g->gpus[k]);
        }
    }
    for (size_t k = 0; k < g->n_secondary_devices; k++) {
        if (g->secondary_devices[k]->device_id < 0) {
            return nr_fail(err, NARU_INVALID,
                           "instance_group: secondary_devices has device_id %lld",
                           (long long)g->secondary_devices[k]->device_id);
        }
    }
    if (g->host_policy[0] != '\0' && !is_plain(g->host_policy)) {
        return nr_fail(err, NARU_INVALID,
                       "instance_group: host_policy \"%.64s\" is no name of a --host-policy",
                       g->host_policy);
    }
    nr_status st = check_limiter(g->rate_limiter, err);
    return st == NARU_OK ? check_profiles(g, err) : st;
}

nr_status nr_config_check_groups(const Inference__ModelConfig *pb, struct nr_err *err)
{
    uint64_t sum = 0;
    bool active = pb->n_instance_group == 0;
    for (size_t i = 0; i < pb->n_instance_group; i++) {
        const Inference__ModelInstanceGroup *g = pb->instance_group[i];
        nr_status st = check_group(g, err);
        if (st != NARU_OK) {
            return st;
        }
        active = active || !g->passive;
        sum += (uint64_t)NR_MAX(g->count, 1) * NR_MAX(g->n_gpus, (size_t)1);
    }
    if (sum > NR_CONFIG_MAX_INSTANCES) {
        return nr_fail(err, NARU_INVALID,
                       "instance_group asks for %llu instances, at most %d are allowed",
                       (unsigned long long)sum, NR_CONFIG_MAX_INSTANCES);
    }
    return active ? NARU_OK
                  : nr_fail(err, NARU_INVALID,
                            "instance_group: every group is passive, so nothing could ever run; "
                            "leave passive out of one");
}

/* --- devices ----------------------------------------------------------------------------------- */

static bool has_gpu(const int32_t *gpus, unsigned n, int32_t wanted)
{
    for (unsigned i = 0; i < n; i++) {
        if (gpus[i] == wanted) {
            return true;
        }
    }
    return false;
}

static nr_status check_gpus(const Inference__ModelInstanceGroup *g, const int32_t *gpus, unsigned n,
                            struct nr_err *err)
{
    for (size_t k = 0; k < g->n_gpus; k++) {
        if (has_gpu(gpus, n, g->gpus[k])) {
            continue;
        }
        if (n == 0) {
            return nr_fail(
                err, NARU_INVALID,
                "instance_group: gpus has %d, but the backend can use no GPU here: leave "
                "gpus out, or use KIND_CPU",
                g->gpus[k]);
        }
        return nr_fail(
            err, NARU_INVALID,
            "instance_group: gpus has %d, but of this machine's GPUs the backend can use "
            "%u, from number %d on",
            g->gpus[k], n, gpus[0]);
    }
    return NARU_OK;
}

nr_status nr_config_resolve_kinds(struct nr_model_config *c, const int32_t *gpus, unsigned n_gpus,
                                  struct nr_err *err)
{
    for (size_t i = 0; i < c->pb->n_instance_group; i++) {
        Inference__ModelInstanceGroup *g = c->pb->instance_group[i];
        bool automatic = g->kind == KIND(AUTO);
        if (automatic) {
            g->kind = n_gpus > 0 || g->n_gpus > 0 ? KIND(GPU) : KIND(CPU);
        }
        if (g->kind != KIND(GPU)) {
            continue;
        }
        nr_status st = n_gpus > 0 || automatic ? check_gpus(g, gpus, n_gpus, err) : NARU_OK;
        if (st != NARU_OK) {
            return st;
        }
        if (g->n_gpus == 0) {
            unsigned n = NR_MAX(n_gpus, 1u);
            g->gpus = nr_config_array(c, n, sizeof *g->gpus);
            if (!g->gpus) {
                return nr_config_nomem(err);
            }
            for (unsigned k = 0; k < n_gpus; k++) {
                g->gpus[k] = gpus[k];
            }
            g->n_gpus = n; /* the first one where none is known: opening it will say why not */
        }
    }
    return NARU_OK;
}

/* --- completion -------------------------------------------------------------------------------- */

nr_status nr_config_default_groups(struct nr_model_config *c, struct nr_err *err)
{
    Inference__ModelConfig *pb = c->pb;
    if (pb->n_instance_group == 0) {
        Inference__ModelInstanceGroup *g =
            nr_config_message(c, &inference__model_instance_group__descriptor);
        pb->instance_group = nr_config_array(c, 1, sizeof *pb->instance_group);
        if (!g || !pb->instance_group) {
            return nr_config_nomem(err);
        }
        g->name = pb->name;
        g->kind = KIND(CPU);
        pb->instance_group[pb->n_instance_group++] = g;
    }
    for (size_t i = 0; i < pb->n_instance_group; i++) {
        Inference__ModelInstanceGroup *g = pb->instance_group[i];
        if (g->kind == KIND(AUTO)) { /* nobody resolved it: a backend without devices */
            g->kind = g->n_gpus > 0 ? KIND(GPU) : KIND(CPU);
        }
        g->count = NR_MAX(g->count, 1);
        if (g->name[0] == '\0') {
            char name[256];
            (void)snprintf(name, sizeof name, "%s_%zu", c->name, i);
            g->name = nr_config_copy(c, name);
            if (!g->name) {
                return nr_config_nomem(err);
            }
        }
    }
    return NARU_OK;
}

static nr_status derive_limiter(struct nr_model_config *c, const Inference__ModelRateLimiter *from,
                                struct nr_instance_group *g, struct nr_err *err)
{
    g->priority = from ? NR_MAX(from->priority, 1u) : 1;
    if (!from || from->n_resources == 0) {
        return NARU_OK;
    }
    struct nr_instance_resource *all = nr_config_array(c, from->n_resources, sizeof *all);
    if (!all) {
        return nr_config_nomem(err);
    }
    for (size_t i = 0; i < from->n_resources; i++) {
        all[i] = (struct nr_instance_resource){.name = from->resources[i]->name,
                                               .global = from->resources[i]->global != 0,
                                               .count = from->resources[i]->count};
    }
    g->resources = all;
    g->n_resources = (uint32_t)from->n_resources;
    return NARU_OK;
}

static nr_status derive_priority(struct nr_model_config *c, struct nr_err *err)
{
    for (uint32_t i = 0; i < c->n_options; i++) {
        double priority;
        if (strcmp(c->options[i].key, NR_CONFIG_PRIORITY) != 0) {
            continue;
        }
        if (!nr_str_to_double(nr_str_trim(nr_str_from(c->options[i].value)), &priority) ||
            !(priority >= 0.01 && priority <= 100)) {
            return nr_fail(err, NARU_INVALID,
                           "parameter \"" NR_CONFIG_PRIORITY "\" is \"%.64s\"; expected a number "
                           "from 0.01 to 100: a model with 2 gets half the time of one with 1",
                           c->options[i].value);
        }
        c->priority = (uint32_t)(priority * NR_CONFIG_PRIORITY_ONE + 0.5);
    }
    return NARU_OK;
}

nr_status nr_config_derive_groups(struct nr_model_config *c, struct nr_err *err)
{
    const Inference__ModelConfig *pb = c->pb;
    bool plan = c->backend && strcmp(c->backend, "tensorrt") == 0;
    struct nr_instance_group *g = nr_config_array(c, pb->n_instance_group, sizeof *g);
    if (!g) {
        return nr_config_nomem(err);
    }
    for (size_t i = 0; i < pb->n_instance_group; i++) {
        const Inference__ModelInstanceGroup *from = pb->instance_group[i];
        if (from->n_profile > 0 && !plan) {
            return nr_fail(err, NARU_INVALID,
                           "instance_group: profile is for TensorRT plans, and this model is none: "
                           "leave it out");
        }
        g[i] = (struct nr_instance_group){.name = from->name,
                                          .kind = from->kind == KIND(GPU)     ? NR_INSTANCE_GPU
                                                  : from->kind == KIND(MODEL) ? NR_INSTANCE_MODEL
                                                                              : NR_INSTANCE_CPU,
                                          .count = (uint32_t)from->count,
                                          .n_gpus = (uint32_t)from->n_gpus,
                                          .gpus = from->gpus,
                                          .passive = from->passive != 0,
                                          .host_policy = from->host_policy};
        nr_status st = derive_limiter(c, from->rate_limiter, &g[i], err);
        if (st != NARU_OK) {
            return st;
        }
        if (!g[i].passive) {
            c->n_instances += g[i].count * NR_MAX(g[i].n_gpus, 1u);
        }
    }
    c->groups = g;
    c->n_groups = (uint32_t)pb->n_instance_group;
    return derive_priority(c, err);
}
