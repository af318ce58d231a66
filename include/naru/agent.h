/* Repository agents, interface 1.0: what looks at a model's files, or puts others in their place,
 * before the server opens them, and is told what becomes of the model.
 *
 * An agent is a shared object naru-agent-NAME.so that exports one symbol, naru_agent_entry. It
 * includes nothing but include/naru/. A model names its agents in config.pbtxt
 * (model_repository_agents); they are a chain:
 *
 *   LOAD            in order, each sees the folder that the one before it left. One that fails ends the
 *                   load of the model with its text
 *   LOAD_COMPLETE   in reverse order, when at least one version of that load serves
 *   LOAD_FAIL       in reverse order, when none does; of a chain whose LOAD failed in the middle: those
 *                   before it. An agent whose own LOAD failed has undone it and is told nothing more
 *   UNLOAD          in order, when the last version that was opened from that load begins to close
 *   UNLOAD_COMPLETE in reverse order, when it is closed and the folder is not used any more
 *
 * Each of them comes once for one load, a reload is a load of its own beside the old one, and
 * nothing but LOAD can fail: what the others return is noted in the log and changes nothing.
 *
 * Rules
 *  - Tables begin with struct_size, abi_major, abi_minor; slots are only appended (naru/plugin.h).
 *    Structs reached by pointer begin with struct_size and may grow at their end.
 *  - Everything passed in is borrowed until the call returns: strings, options, descriptors.
 *  - On error a function owns nothing, leaves *ret untouched, and may fill *err, which is never NULL.
 *  - Threads: calls come on threads of their own, never on one that serves requests, one call of a
 *    model at a time; different models at once. A call that does not end within the server's
 *    --agent-timeout fails the load and is left alone: host->stopped says so, return soon then.
 *  - An agent must not call exit, abort, or change signal handlers, the locale or the directory.
 */
#ifndef NARU_AGENT_H
#define NARU_AGENT_H

#include "naru/plugin.h"

#ifdef __cplusplus
extern "C" {
#endif

#define NARU_AGENT_ABI_MAJOR 1
#define NARU_AGENT_ABI_MINOR 0
#define NARU_AGENT_ENTRY_SYMBOL "naru_agent_entry"

enum naru_agent_action {
    NARU_AGENT_LOAD = 1,
    NARU_AGENT_LOAD_COMPLETE = 2,
    NARU_AGENT_LOAD_FAIL = 3,
    NARU_AGENT_UNLOAD = 4,
    NARU_AGENT_UNLOAD_COMPLETE = 5
};

enum naru_agent_folder {
    NARU_AGENT_FOLDER_SECRET =
        1u << 0 /* only in memory: an error where the server has no such place */
};

typedef struct naru_agent_model naru_agent_model; /* the agent's own, of one load of a model */

typedef struct naru_agent_call {
    uint32_t struct_size;
    int32_t action;             /* enum naru_agent_action */
    const char *model;          /* its name */
    const naru_option *options; /* `parameters` of this agent in config.pbtxt, in file order */
    uint32_t n_options;
    int32_t dir_fd;   /* the model's folder as this agent found it at LOAD */
    const char *path; /* the same as text, for libraries and people */
    void *host;       /* the server's own */
} naru_agent_call;

typedef struct naru_agent_host {
    uint32_t struct_size;
    uint16_t abi_major;
    uint16_t abi_minor;
    /* Log line at level 0 debug, 1 info, 2 warning, 3 error. Required. Any thread. */
    void (*log)(int32_t level, const char *msg);
    /* Opens a regular file of the folder to be read. rel: relative path; no "..", no symbolic link
     * anywhere. *ret_fd is the agent's to close. Required. */
    naru_status (*file_open)(const naru_agent_call *call, const char *rel, int32_t *ret_fd,
                             naru_text *err);
    /* Calls visit for each regular file of the folder and the folders in it, by name. It ends with the
     * first that does not return NARU_OK, and returns that. NARU_DENIED: something is neither a file
     * nor a folder (a symbolic link). Required. */
    naru_status (*file_each)(const naru_agent_call *call,
                             naru_status (*visit)(void *arg, const char *rel, uint64_t bytes),
                             void *arg, naru_text *err);
    /* Makes a private folder, empty, in memory where the server has a place for that. When LOAD returns
     * NARU_OK the folder stands in the model's place: for the next agent and for the load. The server
     * removes it after UNLOAD_COMPLETE, and when the load fails. flags: enum naru_agent_folder. Once,
     * during LOAD: else NARU_INVALID. Required. */
    naru_status (*folder_new)(const naru_agent_call *call, uint32_t flags, naru_text *err);
    /* Makes a file in that folder, with the folders on its way, to be written. It must not be there
     * (NARU_EXISTS). *ret_fd is the agent's to close. During LOAD. Required. */
    naru_status (*file_create)(const naru_agent_call *call, const char *rel, int32_t *ret_fd,
                               naru_text *err);
    /* 1 when nobody waits for this call any more: it took too long. Required. Any thread. */
    int32_t (*stopped)(const naru_agent_call *call);
} naru_agent_host;

typedef struct naru_agent {
    uint32_t struct_size;
    uint16_t abi_major;
    uint16_t abi_minor;
    const char *name;    /* "checksum": the file is naru-agent-checksum.so */
    const char *version; /* of the agent and its library */
    /* Something to keep from LOAD to UNLOAD_COMPLETE, made right before LOAD; call->action is LOAD.
     * `host` lives as long as the process. Optional, with model_close; else `model` is NULL. */
    naru_status (*model_open)(const naru_agent_host *host, const naru_agent_call *call,
                              naru_agent_model **ret, naru_text *err);
    /* After the last action, on any thread. Accepts NULL. Optional. */
    void (*model_close)(naru_agent_model *model);
    /* One action. An action that the agent does not know: NARU_OK. Required. */
    naru_status (*act)(const naru_agent_host *host, naru_agent_model *model,
                       const naru_agent_call *call, naru_text *err);
} naru_agent;

/* The one exported symbol. Borrowed constant; never NULL. */
typedef const naru_agent *(*naru_agent_entry_fn)(void);

#ifdef __cplusplus
}
#endif
#endif
