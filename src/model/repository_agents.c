/* Repository agents in the life of a model: one chain of agents (host/agent.h) for each load.
 *
 * DESIGN. A load opens several versions from one folder, in parallel, and they close at different
 * times. What they share is a lease: the chain, made and run by whichever load job comes first while
 * the others wait for it, and the folder that the chain left. The change holds it until it is settled, each
 * version until it is closed. Models without agents have none, and none of this costs them anything.
 *
 *   NEW ──first job──▶ LOADED ──settled, one serves──▶ SERVES ──last one closes──▶ ENDED ──▶ freed
 *             │                └──settled, none serves──▶ FAILED ────────────────────────────▶ freed
 *             └──an agent fails──▶ FAILED
 *
 * Which agents there are is read from the model's own folder; everything else, the configuration
 * included, from the folder that the last agent leaves. The fingerprint is that of the model's own.
 *
 * INVARIANTS
 *  1. LOAD is answered by exactly one of LOAD_COMPLETE and LOAD_FAIL, LOAD_COMPLETE by one UNLOAD and
 *     one UNLOAD_COMPLETE, in this order.
 *  2. The folder stays until nobody has a descriptor of it open on our side: refs.
 *
 * Threads: lease->lock is held over agents' calls, so that the jobs of one load wait for each other
 * and for nobody else. It is taken with no other lock held.
 */
#include "base/mem.h"
#include "model/repository_priv.h"

struct nr_lease {
    struct nr_repository *repository;
    const char *model;
    pthread_mutex_t lock;
    unsigned refs;             /* the change, and each version that is loading, open or closing */
    unsigned n_open, n_opened; /* versions now; ever */
    bool settled;
    enum {
        NEW,
        LOADED,
        SERVES,
        ENDED,
        FAILED
    } state;
    struct nr_err err; /* FAILED by an agent */
    struct nr_agent_chain *chain;
};

struct nr_lease *nr_lease_new(struct nr_repository *r, const char *model)
{
    struct nr_lease *l = nr_new(struct nr_lease);
    l->repository = r;
    l->model = model;
    l->refs = 1;
    (void)pthread_mutex_init(&l->lock, NULL);
    return l;
}

struct nr_lease *nr_lease_ref(struct nr_lease *l)
{
    if (l) {
        (void)pthread_mutex_lock(&l->lock);
        l->refs++;
        (void)pthread_mutex_unlock(&l->lock);
    }
    return l;
}

void nr_lease_unref(struct nr_lease *l)
{
    if (!l) {
        return;
    }
    (void)pthread_mutex_lock(&l->lock);
    bool last = --l->refs == 0;
    (void)pthread_mutex_unlock(&l->lock);
    if (!last) {
        return;
    }
    if (l->state == ENDED) {
        nr_agent_chain_unloaded(l->chain);
    }
    nr_agent_chain_free(l->chain);
    (void)pthread_mutex_destroy(&l->lock);
    nr_free(l);
}

/* --- loading ---------------------------------------------------------------------------------- */

static nr_status make_chain(struct nr_lease *l, const struct nr_model_config *c, int model_fd,
                            const char *path, bool low, struct nr_err *err)
{
    struct nr_agents *agents = l->repository->cfg.agents;
    const Inference__ModelRepositoryAgents *list = c->pb->model_repository_agents;
    struct nr_agent_spec specs[NR_AGENTS_MAX_CHAIN];
    naru_option *options[NR_AGENTS_MAX_CHAIN] = {0};
    size_t n = list ? list->n_agents : 0;
    if (!agents || n == 0 || n > NR_AGENTS_MAX_CHAIN) {
        return nr_fail(err, NARU_UNAVAILABLE,
                       n == 0 ? "the model's agents have gone from its configuration: load it again"
                              : "this server runs no repository agents");
    }
    for (size_t i = 0; i < n; i++) {
        const Inference__ModelRepositoryAgents__Agent *a = list->agents[i];
        options[i] = nr_new_array(naru_option, a->n_parameters + 1);
        for (size_t k = 0; k < a->n_parameters; k++) {
            options[i][k] = (naru_option){a->parameters[k]->key, a->parameters[k]->value};
        }
        specs[i] = (struct nr_agent_spec){.name = nr_str_from(a->name),
                                          .options = options[i],
                                          .n_options = (uint32_t)a->n_parameters};
    }
    struct nr_agent_chain_cfg cfg = {.agents = agents,
                                     .model = l->model,
                                     .path = path,
                                     .dir_fd = model_fd,
                                     .specs = specs,
                                     .n_specs = (uint32_t)n,
                                     .low = low};
    nr_status st = nr_agent_chain_new(&cfg, &l->chain, err);
    for (size_t i = 0; i < n; i++) {
        nr_free(options[i]);
    }
    return st;
}

/* Under the lease's lock. */
static nr_status run_chain(struct nr_lease *l, int model_fd, const char *path, bool low,
                           struct nr_err *err)
{
    struct nr_model_config *c = NULL;
    struct nr_config_source src = {
        .name = l->model, .model_fd = model_fd, .config_name = l->repository->config_name};
    nr_status st = nr_config_load(&src, &c, err);
    if (st == NARU_OK) {
        st = make_chain(l, c, model_fd, path, low, err);
    }
    nr_config_free(c);
    return st == NARU_OK ? nr_agent_chain_load(l->chain, err) : st;
}

nr_status nr_lease_load(struct nr_lease *l, int model_fd, const char *path, bool low, int *ret_fd,
                        const char **ret_path, struct nr_err *err)
{
    (void)pthread_mutex_lock(&l->lock);
    if (l->state == NEW) {
        l->err.status = run_chain(l, model_fd, path, low, &l->err);
        l->state = l->err.status == NARU_OK ? LOADED : FAILED;
    }
    nr_status st = l->state == FAILED ? nr_fail(err, l->err.status, "%s", l->err.text) : NARU_OK;
    (void)pthread_mutex_unlock(&l->lock);
    if (st == NARU_OK) {
        *ret_fd = nr_agent_chain_fd(l->chain, ret_path);
    }
    return st;
}

void nr_lease_opened(struct nr_lease *l)
{
    if (l) {
        (void)pthread_mutex_lock(&l->lock);
        l->n_open++;
        l->n_opened++;
        (void)pthread_mutex_unlock(&l->lock);
    }
}

/* --- settling and closing ----------------------------------------------------------------------- */

/* Under the lease's lock. */
static void end_if_unused(struct nr_lease *l)
{
    if (l->settled && l->n_open == 0 && l->state == SERVES) {
        nr_agent_chain_unload(l->chain);
        l->state = ENDED;
    }
}

void nr_lease_settle(struct nr_lease *l, bool failed)
{
    if (!l) {
        return;
    }
    (void)pthread_mutex_lock(&l->lock);
    bool serves = !failed && l->n_opened > 0;
    l->settled = true;
    if (l->state == LOADED) {
        nr_agent_chain_loaded(l->chain, serves);
        l->state = serves ? SERVES : FAILED;
    }
    end_if_unused(l); /* unloaded while other versions of the load were still being opened */
    (void)pthread_mutex_unlock(&l->lock);
    nr_lease_unref(l);
}

void nr_lease_closing(struct nr_lease *l)
{
    if (l) {
        (void)pthread_mutex_lock(&l->lock);
        l->n_open--;
        end_if_unused(l);
        (void)pthread_mutex_unlock(&l->lock);
    }
}
