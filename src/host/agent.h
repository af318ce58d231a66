/* Repository agents: the server's side of include/naru/agent.h.
 *
 *   struct nr_agents *set = nr_agents_new();
 *   nr_agents_add_dir(set, "/opt/agents");                          --agent-directory
 *   nr_agent_chain_new(&cfg, &chain, &err);                         opens the agents that a model names
 *   nr_agent_chain_load(chain, &err)                                LOAD, in order
 *     … the model is opened from nr_agent_chain_fd(chain) …
 *   nr_agent_chain_loaded(chain, true)                              LOAD_COMPLETE (false: LOAD_FAIL)
 *   nr_agent_chain_unload(chain) … closed … nr_agent_chain_unloaded(chain)
 *   nr_agent_chain_free(chain)                                      private folders go
 *
 * Every call of an agent runs on a thread of its own, with a time limit. One that outlives it is left
 * alone: it keeps what it may still touch (descriptors, options, private folders) alive until it
 * returns, and is told nothing more.
 *
 * Threads: a set is changed before its first use only. A chain is used by one thread at a time; all
 * of its functions may block for the time limit.
 */
#ifndef NR_HOST_AGENT_H
#define NR_HOST_AGENT_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "base/str.h"
#include "naru/agent.h"

#define NR_AGENTS_MAX_CHAIN 16       /* agents of one model */
#define NR_AGENTS_MAX_OPTIONS 100000 /* parameters of one agent: a file each, perhaps */

struct nr_agents;
struct nr_agents *nr_agents_new(void);
void nr_agents_free(struct nr_agents *set); /* after every chain; accepts NULL */
void nr_agents_add_dir(struct nr_agents *set, const char *path);
/* Where private folders are made; NULL: see io/memdir.h. Copied. */
void nr_agents_set_folder(struct nr_agents *set, const char *path);
void nr_agents_set_timeout(struct nr_agents *set, int64_t timeout_ns); /* of one call; 0 none */
/* Removes private folders that processes which are gone have left behind. */
void nr_agents_sweep(struct nr_agents *set);

/* Checks a table against this server, naming what is wrong. */
nr_nodiscard nr_status nr_agent_table_check(const naru_agent *api, struct nr_err *err);
/* Loads the agent of that file or name. NARU_INVALID, NARU_NOT_FOUND, NARU_UNSUPPORTED. */
nr_nodiscard nr_status nr_agents_find(struct nr_agents *set, struct nr_str name,
                                      const naru_agent **ret, struct nr_err *err);
/* The name of the agent in that file, for programs that check one: its folder is to be added. */
nr_nodiscard nr_status nr_agents_find_path(struct nr_agents *set, const char *path,
                                           struct nr_str *ret_name, struct nr_err *err);

struct nr_agent_spec { /* one agent of a model */
    struct nr_str name;
    const naru_option *options;
    uint32_t n_options;
};
struct nr_agent_chain_cfg {
    struct nr_agents *agents;
    const char *model;
    const char *path; /* of the model's folder */
    int dir_fd;       /* likewise; duplicated */
    const struct nr_agent_spec *specs;
    uint32_t n_specs; /* at most NR_AGENTS_MAX_CHAIN */
    bool low;         /* at low priority: others serve */
};
struct nr_agent_chain;
/* Everything of cfg is copied. Nothing of an agent runs yet. Errors as nr_agents_find. */
nr_nodiscard nr_status nr_agent_chain_new(const struct nr_agent_chain_cfg *cfg,
                                          struct nr_agent_chain **ret, struct nr_err *err);
/* An error: those that were done have been told LOAD_FAIL, in reverse order. Once. */
nr_nodiscard nr_status nr_agent_chain_load(struct nr_agent_chain *c, struct nr_err *err);
/* The folder that the last agent left, after a good load; borrowed. *ret_path likewise. */
int nr_agent_chain_fd(const struct nr_agent_chain *c, const char **ret_path);
/* Each at most once and in this order, after a good load. What agents return is logged at debug. */
void nr_agent_chain_loaded(struct nr_agent_chain *c, bool serves);
void nr_agent_chain_unload(struct nr_agent_chain *c);
void nr_agent_chain_unloaded(struct nr_agent_chain *c);
void nr_agent_chain_free(struct nr_agent_chain *c); /* accepts NULL */

/* Priority of what is done for a model beside others that serve, as nice(2) has it. */
#define NR_LOW_NICE 15 /* a thirtieth of a core that others want, all of one that they do not */

#endif
