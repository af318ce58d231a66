/* Parsing of --host-policy, and the executors of each policy.
 *
 * DESIGN. Cores are a matter of threads, so a policy has executors of its own, as many as it has
 * cores: binding and unbinding a shared thread for each execution would cost two system calls and
 * move it about. They sleep while no model of theirs has work. A node without cores binds memory
 * only, as in Triton; "preferred", not "bound", so that a full node costs time and not an execution.
 *
 * Threads: see the header.
 */
#include "sched/hostpolicy.h"

#include <stdio.h>
#include <string.h>

#include "base/mem.h"

struct nr_host_policies {
    unsigned n;
    struct nr_host_policy all[];
};

static nr_status parse_cores(const char *text, struct nr_str value, struct nr_host_policy *p,
                             struct nr_err *err)
{
    struct nr_cpu_set allowed;
    nr_cpu_allowed(&allowed);
    if (!nr_cpu_parse(value, &p->binding.cores)) {
        return nr_fail(err, NARU_INVALID,
                       "--host-policy '%.200s': cpu-cores has ranges of cores, as 0-3 or 0-1,4",
                       text);
    }
    p->binding.bound = true;
    for (unsigned core = 0; core < NR_CPU_MAX; core++) {
        if (nr_cpu_has(&p->binding.cores, core) && !nr_cpu_has(&allowed, core)) {
            return nr_fail(err, NARU_INVALID,
                           "--host-policy '%.200s': core %u is none that this process may use (it "
                           "may use %u)",
                           text, core, nr_cpu_count(&allowed));
        }
    }
    return NARU_OK;
}

static nr_status parse_node(const char *text, struct nr_str value, struct nr_host_policy *p,
                            struct nr_err *err)
{
    struct nr_cpu_set nodes;
    uint64_t node;
    (void)nr_cpu_nodes(&nodes);
    if (!nr_str_to_u64(value, &node) || node >= NR_CPU_MAX) {
        return nr_fail(err, NARU_INVALID, "--host-policy '%.200s': numa-node is a number", text);
    }
    if (!nr_cpu_has(&nodes, (unsigned)node)) {
        return nr_fail(err, NARU_INVALID,
                       "--host-policy '%.200s': this machine has no memory node %u (%u in all)",
                       text, (unsigned)node, nr_cpu_count(&nodes));
    }
    p->binding.node = (int)node;
    return NARU_OK;
}

static struct nr_host_policy *find(struct nr_host_policies *all, struct nr_str name)
{
    for (unsigned i = 0; i < all->n; i++) {
        if (nr_str_is(name, all->all[i].name)) {
            return &all->all[i];
        }
    }
    return NULL;
}

static nr_status parse(struct nr_host_policies *all, const char *text, struct nr_err *err)
{
    struct nr_str rest, value;
    struct nr_str name = nr_str_cut(nr_str_from(text), ',', &rest);
    struct nr_str key = nr_str_cut(rest, '=', &value);
    if (name.len == 0 || name.len >= sizeof(all->all[0].name) || value.ptr == NULL) {
        return nr_fail(err, NARU_INVALID,
                       "--host-policy '%.200s': expected NAME,cpu-cores=RANGES or NAME,numa-node=N",
                       text);
    }
    struct nr_host_policy *p = find(all, name);
    if (p == NULL) {
        p = &all->all[all->n++];
        memcpy(p->name, name.ptr, name.len);
        p->binding = (struct nr_exec_binding){.name = p->name, .node = -1};
    }
    if (nr_str_is(key, "cpu-cores")) {
        return parse_cores(text, value, p, err);
    }
    if (nr_str_is(key, "numa-node")) {
        return parse_node(text, value, p, err);
    }
    return nr_fail(err, NARU_INVALID,
                   "--host-policy '%.200s': setting \"" NR_STR_FMT
                   "\" is not known; cpu-cores and numa-node are",
                   text, NR_STR_ARG(key));
}

nr_status nr_host_policies_new(const char *const *texts, unsigned n, struct nr_host_policies **ret,
                               struct nr_err *err)
{
    *ret = NULL;
    if (n == 0) {
        return NARU_OK;
    }
    struct nr_host_policies *all = nr_alloc(sizeof(*all) + n * sizeof(all->all[0]));
    nr_status st = NARU_OK;
    for (unsigned i = 0; i < n && st == NARU_OK; i++) {
        st = parse(all, texts[i], err);
    }
    if (st != NARU_OK) {
        nr_host_policies_free(all);
        return st;
    }
    *ret = all;
    return NARU_OK;
}

void nr_host_policies_free(struct nr_host_policies *all)
{
    for (unsigned i = 0; all != NULL && i < all->n; i++) {
        nr_exec_free(all->all[i].exec);
    }
    nr_free(all);
}

void nr_host_policies_start(struct nr_host_policies *all, unsigned max_threads)
{
    for (unsigned i = 0; all != NULL && i < all->n; i++) {
        struct nr_host_policy *p = &all->all[i];
        unsigned threads = p->binding.bound ? nr_cpu_count(&p->binding.cores) : 0;
        p->exec = nr_exec_new_bound(threads, max_threads, &p->binding);
    }
}

bool nr_host_policies_one_node(void)
{
    struct nr_cpu_set nodes;
    (void)nr_cpu_nodes(&nodes);
    return nr_cpu_count(&nodes) <= 1;
}

nr_status nr_host_policy_of(const struct nr_host_policies *all,
                            const struct nr_instance_group *group, int32_t device,
                            const struct nr_host_policy **ret, struct nr_err *err)
{
    char usual[32];
    bool named = group->host_policy[0] != '\0';
    if (group->kind == NR_INSTANCE_GPU) {
        (void)snprintf(usual, sizeof(usual), "gpu_%d", NR_MAX(device, 0));
    } else {
        (void)snprintf(usual, sizeof(usual), "%s",
                       group->kind == NR_INSTANCE_MODEL ? "model" : "cpu");
    }
    const char *name = named ? group->host_policy : usual;
    struct nr_text known;
    char storage[256];
    nr_text_init_at(&known, storage, sizeof(storage));
    *ret = NULL;
    for (unsigned i = 0; all != NULL && i < all->n; i++) {
        if (strcmp(all->all[i].name, name) == 0) {
            *ret = &all->all[i];
            return NARU_OK;
        }
        if (known.len + strlen(all->all[i].name) + 3 < sizeof(storage)) {
            nr_text_fmt(&known, "%s%s", known.len > 0 ? ", " : "", all->all[i].name);
        }
    }
    if (!named) {
        return NARU_OK;
    }
    return nr_fail(
        err, NARU_INVALID,
        "instance_group: there is no host policy \"%.100s\": the server was started with "
        "%s%s (--host-policy=NAME,cpu-cores=0-1)",
        name, known.len > 0 ? "" : "none", known.len > 0 ? storage : "");
}
