/* From a version's directory to something that answers requests, and back.
 *
 * DESIGN. The model is opened exactly once: configuration (parsed already) → plug-in → model →
 * completed configuration → instances → scheduler → proving runs. Each step has one undo, and
 * runtime_free undoes whatever was reached, so an error at any step leaves nothing behind.
 *
 * Instances. What config.pbtxt says, that many may run at once, on the executors of their host policies.
 * Where it says nothing and the
 * session can be shared, the scheduler decides instead: one instance for the executors, and one
 * for each loop that may run the model inline, which costs a few hundred bytes each.
 *
 * THREADS. open and close run on loading threads, one at a time per version.
 */
#include "sched/runtime.h"

#include <stdatomic.h>

#include "base/cpu.h"
#include "base/mem.h"
#include "model/fingerprint.h"

#define MAX_GPUS 64 /* of a machine */
/* Executions of an elastic model that may run at once: each one needs memory of its own for what is between its
 * layers. */
#define MAX_LANES 16u

static void runtime_free(struct nr_runtime *rt)
{
    if (rt == NULL) {
        return;
    }
    nr_runwatch_free(rt->watch);
    nr_cached_free(rt->cached);
    if (rt->sequencer != NULL) {
        nr_sequencer_free(rt->sequencer); /* sched is one of its own */
    } else {
        nr_sched_free(rt->sched);
    }
    nr_strategy_free(rt->strategy);
    nr_room_free(rt->room);
    nr_pipeline_free(rt->pipeline);
    for (unsigned i = 0; i < rt->n_instances; i++) {
        nr_plugin_instance_close(rt->instances[i]);
    }
    for (unsigned i = 0; i < rt->n_loop_instances; i++) {
        nr_plugin_instance_close(rt->loop_instances[i]);
    }
    nr_plugin_model_close(rt->model);
    nr_plugin_unref(rt->plugin);
    if (rt->thread_book != NULL) {
        nr_thread_book_leave(rt->thread_book, &rt->threads);
    }
    nr_free(rt->members);
    nr_free(rt->instances);
    nr_free(rt->loop_instances);
    nr_free(rt);
}

static void runtime_free_at(struct nr_runtime **rt)
{
    runtime_free(*rt);
}

static int32_t first_device(const struct nr_model_config *c)
{
    for (uint32_t i = 0; i < c->n_groups; i++) {
        const struct nr_instance_group *g = &c->groups[i];
        if (g->kind == NR_INSTANCE_GPU) {
            return g->n_gpus > 0 ? g->gpus[0] : 0;
        }
    }
    return -1;
}

/* A GPU is asked for before the configuration is complete, hence from the message itself. */
static int32_t wanted_device(const struct nr_model_config *c)
{
    for (size_t i = 0; i < c->pb->n_instance_group; i++) {
        const Inference__ModelInstanceGroup *g = c->pb->instance_group[i];
        if (g->kind == INFERENCE__MODEL_INSTANCE_GROUP__KIND__KIND_GPU) {
            return g->n_gpus > 0 ? g->gpus[0] : 0;
        }
    }
    return -1;
}

/* AUTO becomes what the backend can use, before the model is opened on it. */
static nr_status settle_devices(const struct nr_runtime *rt, struct nr_model_config *c,
                                struct nr_err *err)
{
    int32_t gpus[MAX_GPUS];
    bool tells;
    unsigned n = nr_plugin_gpus(rt->plugin, gpus, MAX_GPUS, &tells);
    nr_status st = nr_config_resolve_kinds(c, gpus, n, err);
    if (st == NARU_OK && !tells && wanted_device(c) >= 0) {
        st = nr_fail(err, NARU_UNSUPPORTED,
                     "instance_group: KIND_GPU, but plug-in \"%s\" runs on the CPU only; use "
                     "KIND_CPU",
                     rt->plugin->name);
    }
    return st;
}

/* Cores of the one policy that all of its instances have; 0: there is none, or it binds no cores. */
static int32_t policy_cores(const struct nr_runtime_host *host, const struct nr_model_config *c)
{
    const struct nr_host_policy *same = NULL;
    for (size_t i = 0; i < c->pb->n_instance_group; i++) {
        const Inference__ModelInstanceGroup *from = c->pb->instance_group[i];
        const struct nr_host_policy *p = NULL;
        struct nr_instance_group g = {.host_policy = from->host_policy};
        if (from->kind == INFERENCE__MODEL_INSTANCE_GROUP__KIND__KIND_MODEL) {
            g.kind = NR_INSTANCE_MODEL;
        }
        if (!from->passive && nr_host_policy_of(host->policies, &g, -1, &p, NULL) == NARU_OK &&
            (p == NULL || (same != NULL && p != same))) {
            return 0;
        }
        same = from->passive ? same : p;
    }
    return same != NULL && same->binding.bound ? (int32_t)nr_cpu_count(&same->binding.cores) : 0;
}

static nr_status open_model(const struct nr_runtime_host *host, struct nr_version *v,
                            struct nr_runtime *rt, struct nr_err *err)
{
    struct nr_model_config *c = v->config;
    nr_status settled = settle_devices(rt, c, err);
    if (settled != NARU_OK) {
        return settled;
    }
    if (c->decoupled && (rt->plugin->caps & NARU_CAP_DECOUPLED) == 0) {
        return nr_fail(
            err, NARU_UNSUPPORTED,
            "model_transaction_policy: decoupled, but plug-in \"%s\" answers each request "
            "once; leave it out",
            rt->plugin->name);
    }
    naru_model_args args = {.struct_size = sizeof(args),
                            .dir_fd = v->dir_fd,
                            .name = c->name,
                            .file = c->file,
                            .path = v->path,
                            .version = v->number,
                            .options = c->options,
                            .n_options = c->n_options,
                            .threads = policy_cores(host, c),
                            .device = wanted_device(c),
                            .max_batch_size = c->gave_batch ? c->pb->max_batch_size : -1,
                            .inputs = c->args_inputs,
                            .outputs = c->args_outputs,
                            .n_inputs = c->n_args_inputs,
                            .n_outputs = c->n_args_outputs};
    return nr_plugin_model_open(rt->plugin, &args, &rt->model, err);
}

/* May how many run at once, and in which form, follow the measured times? With instances of the configuration
 * it is for one instance only, whose threads may still wait busily or not. */
static bool is_elastic(const struct nr_runtime *rt, const struct nr_model_config *c)
{
    return (rt->model->info->flags & NARU_MODEL_ELASTIC) != 0 && c->sequence == NULL &&
           !c->decoupled && !c->preserve_ordering && first_device(c) < 0 &&
           (!rt->says_instances || c->n_instances == 1);
}

/* How many instances of the plug-in a group has. Of an elastic model, unless the configuration says how
 * many, as many as may be better off side by side, but only where what is between its layers has one
 * size: tiles of large pictures side by side would be gigabytes. */
static unsigned instances_of(const struct nr_runtime_host *host, const struct nr_runtime *rt,
                             const struct nr_model_config *c, const struct nr_instance_group *g)
{
    bool sized = (rt->model->info->flags & NARU_MODEL_STATIC_GRAPH) != 0;
    if (rt->says_instances || !sized || !is_elastic(rt, c)) {
        return g->count * NR_MAX(g->n_gpus, 1u); /* bounded by the check */
    }
    return NR_MIN(NR_MIN(2 * nr_cpu_usable(), MAX_LANES), NR_MAX(host->max_instances, 1u));
}

/* Instances of one group, behind those there are. */
static nr_status open_group(const struct nr_runtime_host *host, struct nr_runtime *rt,
                            const struct nr_model_config *c, const struct nr_instance_group *g,
                            struct nr_err *err)
{
    const struct nr_host_policy *policy;
    int32_t device = first_device(c);
    nr_status st = nr_host_policy_of(host->policies, g, device, &policy, err);
    unsigned n = instances_of(host, rt, c, g);
    for (unsigned i = 0; i < n && st == NARU_OK; i++) {
        st = nr_plugin_instance_open(rt->model, rt->n_instances, device,
                                     &rt->instances[rt->n_instances], err);
        if (st == NARU_OK && !g->passive) {
            rt->members[rt->n_active++] = (struct nr_sched_member){
                .exec = policy != NULL ? policy->exec : host->exec, .group = g};
        }
        rt->n_instances += st == NARU_OK;
    }
    rt->unlimited |= host->limiter == NULL && (g->n_resources > 0 || g->priority > 1);
    rt->one_node |=
        st == NARU_OK && policy != NULL && policy->binding.node >= 0 && nr_host_policies_one_node();
    return st;
}

static nr_status open_instances(const struct nr_runtime_host *host, struct nr_runtime *rt,
                                const struct nr_model_config *c, struct nr_err *err)
{
    unsigned n = 0;
    for (uint32_t i = 0; i < c->n_groups; i++) {
        n += instances_of(host, rt, c, &c->groups[i]);
    }
    if (n > host->max_instances) {
        return nr_fail(
            err, NARU_INVALID,
            "instance_group asks for %u instances, this server allows %u (--max-instances)", n,
            host->max_instances);
    }
    rt->instances = nr_new_array(struct nr_plugin_instance *, NR_MAX(n, 1u));
    rt->members = nr_new_array(struct nr_sched_member, NR_MAX(n, 1u));
    nr_status st = NARU_OK;
    for (uint32_t i = 0; i < 2 * c->n_groups && st == NARU_OK; i++) {
        const struct nr_instance_group *g = &c->groups[i % c->n_groups];
        if (g->passive == (i >= c->n_groups)) {
            st = open_group(host, rt, c, g, err);
        }
    }
    return st;
}

/* The executors that all instances have; NULL: they differ. */
static struct nr_exec *one_exec(const struct nr_runtime *rt)
{
    for (unsigned i = 1; i < rt->n_active; i++) {
        if (rt->members[i].exec != rt->members[0].exec) {
            return NULL;
        }
    }
    return rt->members[0].exec;
}

/* Inline executions know no cores and no resources. */
static bool is_free(const struct nr_runtime_host *host, const struct nr_runtime *rt)
{
    for (unsigned i = 0; i < rt->n_active; i++) {
        if (rt->members[i].exec != host->exec ||
            (host->limiter != NULL && rt->members[i].group->n_resources > 0)) {
            return false;
        }
    }
    return true;
}

/* What its time on executors costs: naru.priority, else the most urgent of its groups. */
static uint32_t cost_of(const struct nr_runtime_host *host, const struct nr_runtime *rt,
                        const struct nr_model_config *c)
{
    _Static_assert(NR_CONFIG_PRIORITY_ONE == NR_FAIR_ONE, "priority 1 is the usual cost");
    uint32_t least = UINT32_MAX;
    for (unsigned i = 0; i < rt->n_active; i++) {
        least = NR_MIN(least, rt->members[i].group->priority);
    }
    if (c->priority > 0 || host->limiter == NULL) {
        return c->priority;
    }
    return NR_MIN(least, NR_FAIR_MOST / NR_FAIR_ONE) * NR_FAIR_ONE;
}

static nr_status open_loop_instances(struct nr_runtime *rt, unsigned n_loops, struct nr_err *err)
{
    rt->loop_instances = nr_new_array(struct nr_plugin_instance *, NR_MAX(n_loops, 1u));
    for (unsigned i = 0; i < n_loops; i++) {
        nr_status st = nr_plugin_instance_open(rt->model, rt->n_instances + i, -1,
                                               &rt->loop_instances[i], err);
        if (st != NARU_OK) {
            return st;
        }
        rt->n_loop_instances++;
    }
    return NARU_OK;
}

/* May the model ever run on an I/O thread? Then times decide. */
static bool may_inline(const struct nr_runtime_host *host, const struct nr_runtime *rt,
                       const struct nr_model_config *c)
{
    uint64_t caps = rt->model->plugin->caps;
    if (!host->placement.allowed || !is_free(host, rt) || (caps & NARU_CAP_INLINE) == 0 ||
        (caps & NARU_CAP_ONE_THREAD) != 0 || (caps & NARU_CAP_ASYNC) != 0 ||
        (rt->model->info->flags & NARU_MODEL_STATIC_GRAPH) == 0 || c->max_queue_delay_ns > 0 ||
        c->preserve_ordering || c->decoupled || c->batch_strategy != NULL || first_device(c) >= 0) {
        return false;
    }
    const struct nr_signature *sig = c->sequence != NULL ? &c->sequence->sig : &c->sig;
    if (c->sequence != NULL &&
        (c->sequence->direct || c->sequence->delay_ns > 0 || c->sequence->preserve_ordering)) {
        return false;
    }
    for (unsigned i = 0; i < sig->n_inputs; i++) {
        if (sig->inputs[i].row_bytes < 0) {
            return false; /* the time of a request would depend on its shape */
        }
    }
    return true;
}

static struct nr_batch_rules rules_of(const struct nr_runtime *rt, const struct nr_model_config *c)
{
    struct nr_batch_rules rules = {.max_rows = NR_MAX(c->max_batch_size, 1),
                                   .batching = c->batched && c->dynamic_batching,
                                   .auto_size = c->batch_strategy == NULL &&
                                                (!rt->says_batching || c->latency_target_ns > 0),
                                   .delay_ns = (int64_t)c->max_queue_delay_ns};
    const struct nr_signature *sig = c->sequence != NULL ? &c->sequence->sig : &c->sig;
    for (uint32_t i = 0; i < sig->n_inputs; i++) {
        if (sig->inputs[i].ragged) {
            rules.ragged = sig->inputs;
        }
    }
    for (uint32_t i = 0; i < c->n_preferred && rules.n_preferred < NR_BATCH_MAX_PREFERRED; i++) {
        rules.preferred[rules.n_preferred++] = c->preferred[i];
    }
    /* The default [max_batch_size] says nothing that FULL does not. */
    if (rules.n_preferred == 1 && rules.preferred[0] == rules.max_rows) {
        rules.n_preferred = 0;
    }
    return rules;
}

/* Rules of the queue's levels; a maximum above the server's limit raises that one. */
static void level_rules(const struct nr_model_config *c, struct nr_queue_rules *rules,
                        struct nr_sched_limits *limits)
{
    for (uint32_t i = 0; i < c->n_levels; i++) {
        const struct nr_queue_policy *p = &c->levels[i];
        rules[i] = (struct nr_queue_rules){
            .delays = p->delays,
            .may_override = p->allow_override,
            .max_requests = p->max_queue_size,
            .timeout_ns = (int64_t)NR_MIN(p->default_timeout_ns, (uint64_t)INT64_MAX / 4)};
        limits->max_queue_requests = NR_MAX(limits->max_queue_requests, p->max_queue_size);
    }
}

static nr_status open_strategy(const struct nr_runtime_host *host, struct nr_runtime *rt,
                               const struct nr_model_config *c, struct nr_err *err)
{
    struct nr_batching batching = {0};
    const naru_batching_args args = {.n_options = c->n_options,
                                     .options = c->options,
                                     .model = c->name,
                                     .max_rows = c->max_batch_size};
    nr_status st = host->batchings
                       ? nr_batching_open(host->batchings, nr_str_from(c->batch_strategy), &args,
                                          &batching, err)
                       : nr_fail(err, NARU_UNAVAILABLE, "this server has no batching strategies");
    if (st == NARU_OK) {
        rt->strategy = nr_strategy_new(&batching);
    }
    return st;
}

/* Batches of rows that lie side by side need no copy, unless the plug-in wants none anyway. */
static struct nr_room *open_room(const struct nr_runtime *rt, const struct nr_model_config *c)
{
    bool gathers = c->batched && c->dynamic_batching && c->sequence == NULL &&
                   (rt->model->plugin->caps & NARU_CAP_SEGMENTS) == 0;
    return gathers ? nr_room_new(&c->sig, c->eager_batching) : NULL;
}

static nr_status open_sched(const struct nr_runtime_host *host, struct nr_runtime *rt,
                            const struct nr_model_config *c, struct nr_err *err)
{
    struct nr_exec *exec = one_exec(rt);
    if (exec == NULL && c->sequence != NULL && c->sequence->direct) {
        return nr_fail(err, NARU_UNSUPPORTED,
                       "sequence_batching { direct } with groups of different host_policy is not "
                       "run by this version of naru: give all groups the same one");
    }
    struct nr_sched_cfg cfg = {.name = c->name,
                               .exec = exec != NULL ? exec : host->exec,
                               .loops = host->loops,
                               .n_loops = host->n_loops,
                               .model = rt->model,
                               .instances = rt->instances,
                               .n_instances = rt->n_active,
                               .members = rt->members,
                               .limiter = host->limiter,
                               .cost = cost_of(host, rt, c),
                               .loop_instances = rt->loop_instances,
                               .signature = &c->sig,
                               .input_map = c->input_map,
                               .output_map = c->output_map,
                               .ragged = c->ragged,
                               .room = rt->room,
                               .rules = rules_of(rt, c),
                               .placement = host->placement,
                               .limits = host->limits,
                               .watch = rt->watch,
                               .latency_target_ns = c->latency_target_ns,
                               .parallel = {.on = is_elastic(rt, c),
                                            .wish = (nr_parallelism)c->parallelism,
                                            .cores = nr_cpu_usable()},
                               .decoupled = c->decoupled,
                               .isolate = !c->decoupled && c->sequence == NULL};
    cfg.placement.allowed = may_inline(host, rt, c);
    if (c->batch_strategy != NULL) {
        nr_status opened = open_strategy(host, rt, c, err);
        if (opened != NARU_OK) {
            return opened;
        }
        cfg.strategy = rt->strategy;
    }
    struct nr_queue_rules levels[NR_CONFIG_MAX_LEVELS];
    level_rules(c, levels, &cfg.limits);
    cfg.levels = levels;
    cfg.n_levels = c->n_levels;
    cfg.default_level = c->default_level;
    cfg.preserve_ordering = c->preserve_ordering;
    if (c->sequence == NULL) {
        return nr_sched_new(&cfg, &rt->sched, err);
    }
    struct nr_sequencer_cfg sc = {.config = c->sequence,
                                  .signature = &c->sig,
                                  .version = rt->version,
                                  .model_fd = rt->version->model_fd,
                                  .shared =
                                      (rt->model->info->flags & NARU_MODEL_SHARED_SESSION) != 0,
                                  .book = host->sequences};
    nr_status st = nr_sequencer_new(&cfg, &sc, &rt->sequencer, err);
    rt->sched = st == NARU_OK ? nr_sequencer_sched(rt->sequencer) : NULL;
    return st;
}

static void prove(struct nr_runtime *rt)
{
    if (rt->sequencer != NULL) {
        nr_sequencer_prove(rt->sequencer);
        rt->target = nr_sequencer_target(rt->sequencer);
        rt->counters = nr_sequencer_counters(rt->sequencer);
    } else {
        nr_sched_prove(rt->sched);
        rt->target = nr_sched_target(rt->sched);
        rt->counters = nr_sched_counters(rt->sched);
    }
}

static nr_status warm_up(const struct nr_runtime_host *host, struct nr_runtime *rt,
                         const struct nr_version *v, struct nr_err *err)
{
    const Inference__ModelConfig *pb = v->config->pb;
    nr_status st = NARU_OK;
    if (rt->sequencer != NULL || pb->n_batch_input > 0) {
        return NARU_OK; /* its inputs are not all the client's: the proving runs must do */
    }
    if (pb->n_model_warmup == 0 && host->warm_up) {
        nr_sched_warm_auto(rt->sched);
    }
    for (size_t i = 0; i < pb->n_model_warmup && !v->config->decoupled && st == NARU_OK; i++) {
        st = nr_sched_warm(rt->sched, pb->model_warmup[i], v->model_fd, err);
    }
    return st;
}

/* The library, whose threads live as long as it does, is opened here and not in open. */
static nr_status runtime_prepare(void *ctx, struct nr_version *v, struct nr_err *err)
{
    const struct nr_runtime_host *host = ctx;
    struct nr_plugin *plugin = NULL;
    nr_status st = NARU_OK;
    if (v->config->ensemble == NULL) {
        st = nr_plugin_open(host->plugins, nr_str_from(v->config->backend), &plugin, err);
    }
    if (st == NARU_OK) {
        struct nr_runtime *rt = nr_new(struct nr_runtime);
        rt->version = v;
        rt->plugin = plugin;
        v->runtime = rt;
    }
    return st;
}

/* Answers are shared among those who run the same files with the same plug-in; not those of
 * pipelines, whose members decide. */
static nr_status open_cache(const struct nr_runtime_host *host, struct nr_runtime *rt,
                            const struct nr_version *v, struct nr_err *err)
{
    struct nr_cached_cfg cfg = {.cache = host->cache,
                                .inner = rt->target,
                                .counters = rt->counters,
                                .signature = &v->config->sig,
                                .pipeline = rt->pipeline != NULL ? v : NULL,
                                .redis = rt->pipeline != NULL ? NULL : host->redis};
    if (cfg.redis != NULL) {
        nr_status st = nr_version_fingerprint(v, rt->plugin->version, cfg.fingerprint, err);
        if (st != NARU_OK) {
            return st;
        }
    }
    rt->cached = nr_cached_new(&cfg);
    rt->target = nr_cached_target(rt->cached);
    return NARU_OK;
}

/* An ensemble has nothing to open: its members are versions of their own. */
static nr_status open_pipeline(const struct nr_runtime_host *host, struct nr_version *v,
                               struct nr_runtime *rt, struct nr_err *err)
{
    nr_status st = nr_version_complete(v, NULL, err);
    if (st != NARU_OK) {
        return st;
    }
    const struct nr_pipeline_cfg cfg = {
        .version = v, .pool = host->pool, .images = host->images, .n_loops = host->n_loops};
    rt->pipeline = nr_pipeline_new(&cfg);
    rt->target = nr_pipeline_target(rt->pipeline);
    rt->counters = nr_pipeline_counters(rt->pipeline);
    rt->signature = &v->config->sig;
    return v->config->response_cache && host->cache != NULL ? open_cache(host, rt, v, err)
                                                            : NARU_OK;
}

static void count_threads(const struct nr_runtime_host *host, struct nr_runtime *rt,
                          const struct nr_model_config *c)
{
    if (host->threads != NULL) {
        bool shared = (rt->model->info->flags & NARU_MODEL_SHARED_SESSION) != 0;
        unsigned runs = host->exec_threads > 0 ? host->exec_threads : nr_cpu_usable();
        nr_thread_entry_init(&rt->threads, c, shared, runs);
        nr_thread_book_enter(host->threads, &rt->threads);
        rt->thread_book = host->threads;
    }
}

static nr_status runtime_open(void *ctx, struct nr_version *v, struct nr_err *err)
{
    const struct nr_runtime_host *host = ctx;
    nr_cleanup(runtime_free_at) struct nr_runtime *rt = NR_TAKE(v->runtime);
    if (v->config->ensemble != NULL) {
        nr_status ended = open_pipeline(host, v, rt, err);
        v->runtime = ended == NARU_OK ? NR_TAKE(rt) : NULL;
        return ended;
    }
    rt->says_instances = v->config->pb->n_instance_group > 0;
    rt->says_batching = v->config->pb->dynamic_batching != NULL;
    nr_status st = open_model(host, v, rt, err);
    if (st != NARU_OK) {
        return st;
    }
    bool unknown = (rt->model->info->flags & NARU_MODEL_IO_UNKNOWN) != 0;
    st = nr_version_complete(v, unknown ? NULL : rt->model->info, err);
    if (st != NARU_OK) {
        return st;
    }
    const struct nr_model_config *c = v->config;
    st = open_instances(host, rt, c, err);
    if (st == NARU_OK && !rt->says_instances && may_inline(host, rt, c) &&
        (rt->model->info->flags & NARU_MODEL_SHARED_SESSION) != 0) {
        st = open_loop_instances(rt, host->n_loops, err);
    }
    if (st == NARU_OK) {
        bool says = c->watchdog_ns >= 0;
        rt->watch =
            nr_runwatch_new(host->watchdog, v, says ? c->watchdog_ns : host->watchdog_ns, says);
        rt->room = open_room(rt, c);
        v->config->sig.room = rt->room != NULL ? nr_room_inputs(rt->room) : NULL;
        st = open_sched(host, rt, c, err);
    }
    if (st != NARU_OK) {
        return st;
    }
    prove(rt);
    st = warm_up(host, rt, v, err);
    if (st != NARU_OK) {
        return st;
    }
    if (c->response_cache && host->cache != NULL) {
        st = open_cache(host, rt, v, err);
        if (st != NARU_OK) {
            return st;
        }
    }
    nr_runwatch_start(rt->watch, rt->counters);
    rt->signature = &c->sig;
    count_threads(host, rt, c);
    v->memory_bytes = nr_plugin_model_memory(rt->model);
    v->runtime = NR_TAKE(rt);
    return NARU_OK;
}

static void runtime_close(void *ctx, struct nr_version *v)
{
    (void)ctx;
    runtime_free(v->runtime);
    v->runtime = NULL;
}

static bool runtime_is_busy(void *ctx, const struct nr_version *v)
{
    struct nr_sched_state s;
    (void)ctx;
    nr_runtime_state_get(nr_runtime_of(v), &s);
    return s.queued + s.running > 0;
}

void nr_runtime_state_get(const struct nr_runtime *rt, struct nr_sched_state *ret)
{
    struct nr_sequencer_state sequences;
    if (rt->sequencer != NULL) {
        nr_sequencer_state_get(rt->sequencer, &sequences, ret);
    } else if (rt->sched != NULL) {
        nr_sched_state_get(rt->sched, ret);
    } else {
        *ret = (struct nr_sched_state){.running = nr_pipeline_running(rt->pipeline)};
    }
    ret->stuck = nr_runwatch_stuck(rt->watch);
}

void nr_runtime_notes(const struct nr_runtime *rt, struct nr_text *t)
{
    if (rt->unlimited) {
        nr_text_str(t,
                    "its rate_limiter has no effect: --rate-limit=execution_count switches it on");
    }
    if (rt->one_node) {
        nr_text_fmt(
            t, "%snuma-node of its host policy has no effect: this machine has one memory node",
            t->len > 0 ? "; " : "");
    }
    if (rt->thread_book != NULL) {
        char storage[1024];
        struct nr_text note;
        nr_text_init_at(&note, storage, sizeof(storage));
        nr_thread_book_note(rt->thread_book, &rt->threads, &note);
        if (note.len > 0) {
            nr_text_fmt(t, "%s%s", t->len > 0 ? "; " : "", storage);
        }
    }
}

bool nr_runtime_sequences_get(const struct nr_runtime *rt, struct nr_sequencer_state *ret)
{
    struct nr_sched_state state;
    if (rt->sequencer != NULL) {
        nr_sequencer_state_get(rt->sequencer, ret, &state);
    }
    return rt->sequencer != NULL;
}

const struct nr_version_ops nr_runtime_ops = {.prepare = runtime_prepare,
                                              .open = runtime_open,
                                              .close = runtime_close,
                                              .is_busy = runtime_is_busy};
