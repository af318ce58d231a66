/* See agent.h: the set of agents, and one model's chain of them.
 *
 * DESIGN. An agent is code that reads, hashes or decrypts gigabytes, or hangs on a key server; nothing in
 * this process may wait for it without a limit, and a thread cannot be ended from outside. So each
 * call gets a thread, and a chain counts its users: its owner, and the thread that runs. Who comes last
 * frees it, so a call that nobody waits for any more finds everything it was given where it was.
 *
 * INVARIANTS
 *  1. At most one call of a chain runs; a link that is stuck is called no more.
 *  2. link->loaded is set exactly while LOAD_COMPLETE, LOAD_FAIL or UNLOAD… may come to it.
 *  3. Private folders are removed by chain_drop, after model_close, and nowhere else.
 *
 * Threads: chain->lock guards link->job and, while a call runs, link->stuck; everything else belongs to
 * the caller, or to the thread of a call while that runs. It is held over nothing. The set is not
 * used by a call's thread, which may outlive it.
 */
#include "host/agent.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/arena.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "host/shelf.h"
#include "io/file.h"
#include "io/memdir.h"

#define MAX_FILES 100000 /* of one folder */
#define MAX_DEPTH 8      /* of folders of a model, as the repository has it */

struct nr_agents {
    struct nr_shelf shelf;
    char *folder;
    int64_t timeout_ns;
};

struct link {
    struct nr_agent_chain *chain;
    const naru_agent *api;
    naru_agent_model *model;
    naru_agent_call call;
    struct nr_memdir folder;
    bool loaded, opened;
    _Atomic bool stuck; /* nobody waits for its call any more */
    struct {            /* of its last call; under the lock */
        bool done;
        nr_status status;
        char text[NR_ERR_TEXT_MAX];
    } job;
};

struct nr_agent_chain {
    const char *folder;
    int64_t timeout_ns;
    _Atomic uint32_t users; /* the owner, and each call that runs */
    pthread_mutex_t lock;
    pthread_cond_t ended;
    bool low;
    int dir_fd;
    uint32_t n_links;
    struct link links[NR_AGENTS_MAX_CHAIN];
    struct nr_arena arena; /* copies of texts */
};

/* --- the set ---------------------------------------------------------------------------------- */

struct nr_agents *nr_agents_new(void)
{
    struct nr_agents *set = nr_new(struct nr_agents);
    nr_shelf_init(&set->shelf, NR_SHELF_AGENT);
    return set;
}

void nr_agents_free(struct nr_agents *set)
{
    if (!set) {
        return;
    }
    nr_shelf_done(&set->shelf);
    nr_free(set->folder);
    nr_free(set);
}

void nr_agents_add_dir(struct nr_agents *set, const char *path)
{
    nr_shelf_add_dir(&set->shelf, path);
}

void nr_agents_set_folder(struct nr_agents *set, const char *path)
{
    nr_free(set->folder);
    set->folder = path ? nr_strdup(path) : NULL;
}

void nr_agents_set_timeout(struct nr_agents *set, int64_t timeout_ns)
{
    set->timeout_ns = timeout_ns;
}

void nr_agents_sweep(struct nr_agents *set)
{
    (void)nr_memdir_sweep(set->folder);
}

static const void *call_entry(void *symbol)
{
    naru_agent_entry_fn entry;
    memcpy(&entry, &symbol, sizeof entry); /* ISO C has no cast from object to function */
    return entry();
}

static nr_status check_pair(const void *table, struct nr_err *err)
{
    const naru_agent *api = table;
    return !api->model_open == !api->model_close
               ? NARU_OK
               : nr_fail(
                     err, NARU_UNSUPPORTED,
                     "one of the fields model_open and model_close is NULL: set both or neither");
}

static const struct nr_table_slot required[] = {{"act", offsetof(naru_agent, act)}};
static const struct nr_table_rule agent_rule = {.kind = NR_SHELF_AGENT,
                                                .major = NARU_AGENT_ABI_MAJOR,
                                                .required = required,
                                                .n_required = NR_COUNT(required),
                                                .call = call_entry,
                                                .check = check_pair};

nr_status nr_agent_table_check(const naru_agent *api, struct nr_err *err)
{
    return nr_table_check(api, &agent_rule, err);
}

nr_status nr_agents_find(struct nr_agents *set, struct nr_str name, const naru_agent **ret,
                         struct nr_err *err)
{
    const void *table = NULL;
    nr_status st = nr_shelf_open(&set->shelf, &agent_rule, name, &table, err);
    if (st == NARU_OK) {
        *ret = table;
    }
    return st;
}

nr_status nr_agents_find_path(struct nr_agents *set, const char *path, struct nr_str *ret_name,
                              struct nr_err *err)
{
    const void *table = NULL;
    nr_status st = nr_shelf_open_path(&set->shelf, &agent_rule, path, &table, err);
    if (st == NARU_OK) {
        *ret_name = nr_str_from(((const naru_agent *)table)->name);
    }
    return st;
}

/* --- what agents call ------------------------------------------------------------------------- */

static struct link *link_of(const naru_agent_call *call)
{
    return call->host;
}

/* Tells the agent what the server says. */
static naru_status told(nr_status st, const struct nr_err *why, naru_text *err)
{
    if (st != NARU_OK && err && err->data && err->capacity > 0) {
        size_t n = NR_MIN(strlen(why->text), (size_t)err->capacity - 1);
        memcpy(err->data, why->text, n);
        err->data[n] = '\0';
    }
    return st;
}

static void host_log(int32_t level, const char *msg)
{
    static const nr_log_level levels[] = {NR_LOG_DEBUG, NR_LOG_INFO, NR_LOG_WARN, NR_LOG_ERROR};
    int32_t i = NR_MIN(NR_MAX(level, 0), (int32_t)NR_COUNT(levels) - 1);
    nr_log(levels[i], "agent", "agent", NR_KV_TEXT("text", msg));
}

static naru_status host_file_open(const naru_agent_call *call, const char *rel, int32_t *ret_fd,
                                  naru_text *err)
{
    struct nr_err why = {0};
    nr_autoclose int fd = -1;
    struct stat sb;
    nr_status st = nr_dir_open_at(call->dir_fd, rel, O_RDONLY | O_NONBLOCK, 0, &fd, &why);
    if (st == NARU_OK && (fstat(fd, &sb) != 0 || !S_ISREG(sb.st_mode))) {
        st = nr_fail(&why, NARU_INVALID, "'%s' is not a regular file", rel);
    }
    if (st == NARU_OK) {
        *ret_fd = fd;
        fd = -1;
    }
    return told(st, &why, err);
}

struct each {
    naru_status (*visit)(void *arg, const char *rel, uint64_t bytes);
    void *arg;
};

static nr_status each_visit(void *arg, struct nr_dir_visit *v, struct nr_err *err)
{
    const struct each *e = arg;
    struct stat sb;
    if (v->entry->is_dir) {
        return NARU_OK;
    }
    if (fstatat(v->parent_fd, v->entry->name, &sb, AT_SYMLINK_NOFOLLOW) != 0 ||
        !S_ISREG(sb.st_mode)) {
        return nr_fail(err, NARU_DENIED,
                       "'%.300s' is neither a file nor a folder; symbolic links are not followed",
                       v->rel);
    }
    return e->visit(e->arg, v->rel, v->entry->bytes);
}

static naru_status host_file_each(const naru_agent_call *call,
                                  naru_status (*visit)(void *arg, const char *rel, uint64_t bytes),
                                  void *arg, naru_text *err)
{
    struct nr_err why = {0};
    struct each e = {.visit = visit, .arg = arg};
    nr_status st = nr_dir_walk(call->dir_fd, MAX_DEPTH, MAX_FILES, each_visit, &e, &why);
    return why.status != NARU_OK ? told(st, &why, err) : st; /* the visitor's own text stays */
}

static naru_status host_folder_new(const naru_agent_call *call, uint32_t flags, naru_text *err)
{
    struct nr_err why = {0};
    struct link *l = link_of(call);
    nr_status st;
    if (call->action != NARU_AGENT_LOAD || l->folder.fd >= 0) {
        st = nr_fail(&why, NARU_INVALID, "folder_new is called once, during LOAD");
    } else {
        st = nr_memdir_new(l->chain->folder, (flags & NARU_AGENT_FOLDER_SECRET) != 0, &l->folder,
                           &why);
        if (st != NARU_OK) {
            nr_err_prefix(&why, "--agent-folder");
        }
    }
    return told(st, &why, err);
}

static naru_status host_file_create(const naru_agent_call *call, const char *rel, int32_t *ret_fd,
                                    naru_text *err)
{
    struct nr_err why = {0};
    struct link *l = link_of(call);
    const char *slash = strrchr(rel, '/');
    nr_status st = NARU_OK;
    if (call->action != NARU_AGENT_LOAD || l->folder.fd < 0) {
        st = nr_fail(&why, NARU_INVALID, "file_create needs a folder_new of the same LOAD");
    }
    if (st == NARU_OK && slash) {
        nr_autofree char *parent = nr_format("%.*s", (int)NR_MIN(slash - rel, INT_MAX), rel);
        st = nr_dir_make_at(l->folder.fd, parent, &why);
    }
    if (st == NARU_OK) {
        st = nr_dir_open_at(l->folder.fd, rel, O_WRONLY | O_CREAT | O_EXCL, 0600, ret_fd, &why);
    }
    return told(st, &why, err);
}

static int32_t host_stopped(const naru_agent_call *call)
{
    /* relaxed: a hint, nothing is published by it */
    return atomic_load_explicit(&link_of(call)->stuck, memory_order_relaxed);
}

static const naru_agent_host host_table = {.struct_size = sizeof host_table,
                                           .abi_major = NARU_AGENT_ABI_MAJOR,
                                           .abi_minor = NARU_AGENT_ABI_MINOR,
                                           .log = host_log,
                                           .file_open = host_file_open,
                                           .file_each = host_file_each,
                                           .folder_new = host_folder_new,
                                           .file_create = host_file_create,
                                           .stopped = host_stopped};

/* --- one call --------------------------------------------------------------------------------- */

static void chain_drop(struct nr_agent_chain *c)
{
    /* acq_rel: what the other user did is over before this frees it */
    if (atomic_fetch_sub_explicit(&c->users, 1, memory_order_acq_rel) != 1) {
        return;
    }
    for (uint32_t i = c->n_links; i-- > 0;) {
        struct link *l = &c->links[i];
        if (l->opened) {
            l->api->model_close(l->model);
        }
        nr_memdir_free(&l->folder);
    }
    nr_close(c->dir_fd);
    nr_arena_done(&c->arena);
    pthread_mutex_destroy(&c->lock);
    pthread_cond_destroy(&c->ended);
    nr_free(c);
}

static void run_call(struct link *l)
{
    struct nr_agent_chain *c = l->chain;
    char buf[NR_ERR_TEXT_MAX] = "";
    naru_text text = {.struct_size = sizeof text, .capacity = sizeof buf, .data = buf};
    nr_status st = NARU_OK;
    if (l->call.action == NARU_AGENT_LOAD && NARU_HAS(l->api, naru_agent, model_open)) {
        st = l->api->model_open(&host_table, &l->call, &l->model, &text);
        l->opened = st == NARU_OK;
    }
    if (st == NARU_OK) {
        st = l->api->act(&host_table, l->model, &l->call, &text);
    }
    pthread_mutex_lock(&c->lock);
    l->job.status = nr_plugin_status(st);
    memcpy(l->job.text, buf, sizeof l->job.text);
    l->job.done = true;
    bool left_alone = l->stuck;
    if (!left_alone) { /* the owner waits, so this is not the last use */
        (void)atomic_fetch_sub_explicit(&c->users, 1, memory_order_acq_rel);
        pthread_cond_broadcast(&c->ended);
    }
    pthread_mutex_unlock(&c->lock);
    if (left_alone) {
        chain_drop(c);
    }
}

static void *call_main(void *arg)
{
    struct link *l = arg;
    if (l->chain->low) {
        (void)setpriority(PRIO_PROCESS, 0, NR_LOW_NICE); /* of this thread only, on Linux */
    }
    run_call(l);
    nr_arena_thread_done();
    return NULL;
}

/* On a thread of its own, which signals do not reach; here when none can be had. */
static void start_call(struct link *l)
{
    pthread_attr_t attr;
    pthread_t thread;
    sigset_t all, before;
    (void)atomic_fetch_add_explicit(&l->chain->users, 1, memory_order_relaxed);
    pthread_attr_init(&attr);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    sigfillset(&all); /* the mask is inherited */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    bool started = pthread_create(&thread, &attr, call_main, l) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attr);
    if (!started) {
        run_call(l);
    }
}

static const char *action_text(int32_t action)
{
    static const char *const texts[] = {"?",         "LOAD",   "LOAD_COMPLETE",
                                        "LOAD_FAIL", "UNLOAD", "UNLOAD_COMPLETE"};
    return texts[action];
}

static nr_status call_link(struct link *l, int32_t action, struct nr_err *err)
{
    struct nr_agent_chain *c = l->chain;
    int64_t limit_ns = c->timeout_ns;
    int64_t until_ns = nr_clock_now() + NR_MIN(limit_ns, INT64_MAX / 4);
    struct timespec ts = {.tv_sec = until_ns / NR_S_NS, .tv_nsec = until_ns % NR_S_NS};
    int rc = 0;
    l->call.action = action;
    l->job.done = false;
    start_call(l);
    pthread_mutex_lock(&c->lock);
    while (!l->job.done && rc == 0) {
        rc = limit_ns > 0 ? pthread_cond_timedwait(&c->ended, &c->lock, &ts)
                          : pthread_cond_wait(&c->ended, &c->lock);
    }
    l->stuck = !l->job.done;
    pthread_mutex_unlock(&c->lock);
    if (l->stuck) {
        return nr_fail(err, NARU_DEADLINE,
                       "agent %s did not end %s within %lld ms (--agent-timeout)", l->api->name,
                       action_text(action), (long long)(limit_ns / NR_MS_NS));
    }
    return l->job.status == NARU_OK
               ? NARU_OK
               : nr_fail(err, l->job.status, "agent %s: %s", l->api->name,
                         l->job.text[0] ? l->job.text : nr_status_text(l->job.status));
}

/* --- the chain -------------------------------------------------------------------------------- */

static char *copy(struct nr_agent_chain *c, const char *text)
{
    return nr_arena_strz(&c->arena, nr_str_from(text));
}

static void copy_options(struct nr_agent_chain *c, struct link *l, const struct nr_agent_spec *spec)
{
    naru_option *to = nr_arena_zalloc(&c->arena, NR_MAX(spec->n_options, 1u) * sizeof(naru_option));
    for (uint32_t i = 0; i < spec->n_options; i++) {
        to[i] = (naru_option){.key = copy(c, spec->options[i].key),
                              .value = copy(c, spec->options[i].value)};
    }
    l->call.options = to;
    l->call.n_options = spec->n_options;
}

nr_status nr_agent_chain_new(const struct nr_agent_chain_cfg *cfg, struct nr_agent_chain **ret,
                             struct nr_err *err)
{
    NR_ASSERT(cfg->n_specs <= NR_AGENTS_MAX_CHAIN);
    struct nr_agent_chain *c = nr_new(struct nr_agent_chain);
    c->low = cfg->low;
    c->timeout_ns = cfg->agents->timeout_ns;
    atomic_init(&c->users, 1);
    pthread_mutex_init(&c->lock, NULL);
    nr_clock_cond_init(&c->ended);
    nr_arena_init(&c->arena, 0);
    c->folder = cfg->agents->folder ? copy(c, cfg->agents->folder) : NULL;
    c->dir_fd = fcntl(cfg->dir_fd, F_DUPFD_CLOEXEC, 0);
    nr_status st = c->dir_fd >= 0
                       ? NARU_OK
                       : nr_fail(err, nr_status_from_errno(errno), "no descriptor is left: %m");
    for (uint32_t i = 0; i < cfg->n_specs && st == NARU_OK; i++) {
        struct link *l = &c->links[i];
        st = nr_agents_find(cfg->agents, cfg->specs[i].name, &l->api, err);
        if (st == NARU_OK) {
            l->chain = c;
            l->folder = NR_MEMDIR_NONE;
            l->call = (naru_agent_call){.struct_size = sizeof l->call,
                                        .model = copy(c, cfg->model),
                                        .dir_fd = c->dir_fd,
                                        .path = copy(c, cfg->path),
                                        .host = l};
            copy_options(c, l, &cfg->specs[i]);
            c->n_links++;
        }
    }
    if (st != NARU_OK) {
        chain_drop(c);
        return st;
    }
    *ret = c;
    return NARU_OK;
}

int nr_agent_chain_fd(const struct nr_agent_chain *c, const char **ret_path)
{
    int fd = c->dir_fd;
    *ret_path = c->links[0].call.path;
    for (uint32_t i = 0; i < c->n_links; i++) {
        if (c->links[i].folder.fd >= 0) {
            fd = c->links[i].folder.fd;
            *ret_path = c->links[i].folder.path;
        }
    }
    return fd;
}

/* Tells one link, when it has anything to expect. */
static void tell(struct link *l, int32_t action, bool last)
{
    struct nr_err err = {0};
    if (!l->loaded || l->stuck) {
        return;
    }
    l->loaded = !last;
    if (call_link(l, action, &err) != NARU_OK) {
        nr_log(NR_LOG_DEBUG, "agent", "an action failed", NR_KV_TEXT("model", l->call.model),
               NR_KV_TEXT("action", action_text(action)), NR_KV_TEXT("reason", err.text));
    }
}

static void tell_in_reverse(struct nr_agent_chain *c, int32_t action, bool last)
{
    for (uint32_t i = c->n_links; i-- > 0;) {
        tell(&c->links[i], action, last);
    }
}

nr_status nr_agent_chain_load(struct nr_agent_chain *c, struct nr_err *err)
{
    nr_status st = NARU_OK;
    for (uint32_t i = 0; i < c->n_links && st == NARU_OK; i++) {
        struct link *l = &c->links[i];
        st = call_link(l, NARU_AGENT_LOAD, err);
        l->loaded = st == NARU_OK;
        for (uint32_t k = i + 1; k < c->n_links && l->loaded && l->folder.fd >= 0; k++) {
            c->links[k].call.dir_fd = l->folder.fd;
            c->links[k].call.path = l->folder.path;
        }
    }
    if (st != NARU_OK) {
        tell_in_reverse(c, NARU_AGENT_LOAD_FAIL, true);
    }
    return st;
}

void nr_agent_chain_loaded(struct nr_agent_chain *c, bool serves)
{
    tell_in_reverse(c, serves ? NARU_AGENT_LOAD_COMPLETE : NARU_AGENT_LOAD_FAIL, !serves);
}

void nr_agent_chain_unload(struct nr_agent_chain *c)
{
    for (uint32_t i = 0; i < c->n_links; i++) {
        tell(&c->links[i], NARU_AGENT_UNLOAD, false);
    }
}

void nr_agent_chain_unloaded(struct nr_agent_chain *c)
{
    tell_in_reverse(c, NARU_AGENT_UNLOAD_COMPLETE, true);
}

void nr_agent_chain_free(struct nr_agent_chain *c)
{
    if (c) {
        chain_drop(c);
    }
}
