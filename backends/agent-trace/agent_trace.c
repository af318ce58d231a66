/* An agent for tests: writes down what it is told, and misbehaves on request.
 *
 *   log      a file, to which every action appends one line "ID ACTION MODEL" (ID: parameter id)
 *   fail     "LOAD", "LOAD_COMPLETE", …: that action returns an error
 *   text     its text
 *   sleep_ms so long does LOAD take, whatever the server says meanwhile
 *   crash    "true": LOAD ends the process after it has made its folder
 *   folder   "empty", "copy" (of all files), "secret" (a copy, in memory only), "twice" (asks for a
 *            second one), "dots" (a path with ".."): what LOAD puts in place
 *
 * Threads: no state but the log, which is appended to by one write each.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "naru/agent.h"
#include "naru/helper.h"

struct naru_agent_model {
    uint32_t actions; /* told so far: an action without a LOAD before it is seen in the log */
};

static const char *const names[] = {"?",         "LOAD",   "LOAD_COMPLETE",
                                    "LOAD_FAIL", "UNLOAD", "UNLOAD_COMPLETE"};

static const char *get(const naru_agent_call *call, const char *key)
{
    const char *value = naru_option_get(call->options, call->n_options, key);
    return value ? value : "";
}

static void note(const naru_agent_call *call, const char *what)
{
    char line[512];
    int n = snprintf(line, sizeof line, "%s %s %s\n", get(call, "id"), what, call->model);
    int fd = get(call, "log")[0]
                 ? open(get(call, "log"), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600)
                 : -1;
    if (fd >= 0 && write(fd, line, (size_t)n) != n) {
        abort();
    }
    if (fd >= 0) {
        (void)close(fd);
    }
}

/* --- folders ---------------------------------------------------------------------------------- */

struct copying {
    const naru_agent_host *host;
    const naru_agent_call *call;
    naru_text *err;
};

static naru_status copy_file(void *arg, const char *rel, uint64_t bytes)
{
    const struct copying *c = arg;
    char buf[8192];
    int32_t in = -1, out = -1;
    (void)bytes;
    naru_status st = c->host->file_open(c->call, rel, &in, c->err);
    if (st == NARU_OK) {
        st = c->host->file_create(c->call, rel, &out, c->err);
    }
    for (ssize_t n; st == NARU_OK && (n = read(in, buf, sizeof buf)) > 0;) {
        st = write(out, buf, (size_t)n) == n ? NARU_OK : NARU_IO;
    }
    if (in >= 0) {
        (void)close(in);
    }
    if (out >= 0) {
        (void)close(out);
    }
    return st;
}

static naru_status put_folder(const naru_agent_host *host, const naru_agent_call *call,
                              naru_text *err)
{
    const char *kind = get(call, "folder");
    struct copying c = {.host = host, .call = call, .err = err};
    int32_t fd = -1;
    if (kind[0] == '\0') {
        return NARU_OK;
    }
    naru_status st =
        host->folder_new(call, strcmp(kind, "secret") == 0 ? NARU_AGENT_FOLDER_SECRET : 0, err);
    if (st != NARU_OK) {
        return st;
    }
    if (strcmp(kind, "twice") == 0) {
        return host->folder_new(call, 0, err);
    }
    if (strcmp(kind, "dots") == 0) {
        return host->file_create(call, "a/../../escaped", &fd, err);
    }
    return strcmp(kind, "empty") == 0 ? NARU_OK : host->file_each(call, copy_file, &c, err);
}

/* --- the agent -------------------------------------------------------------------------------- */

static naru_status model_open(const naru_agent_host *host, const naru_agent_call *call,
                              naru_agent_model **ret, naru_text *err)
{
    (void)host;
    (void)call;
    naru_agent_model *m = calloc(1, sizeof *m);
    if (!m) {
        return naru_fail(err, NARU_NOMEM, "no memory");
    }
    *ret = m;
    return NARU_OK;
}

static void model_close(naru_agent_model *model)
{
    free(model);
}

static naru_status act(const naru_agent_host *host, naru_agent_model *model,
                       const naru_agent_call *call, naru_text *err)
{
    int64_t sleep_ms = 0;
    naru_status st = NARU_OK;
    const char *name = call->action > 0 && call->action < 6 ? names[call->action] : names[0];
    note(call, model->actions++ == 0 && call->action != NARU_AGENT_LOAD ? "UNEXPECTED" : name);
    if (call->action == NARU_AGENT_LOAD) {
        st = naru_option_i64(call->options, call->n_options, "sleep_ms", 0, 600000, &sleep_ms, err);
        if (st == NARU_OK) {
            st = put_folder(host, call, err);
        }
        const struct timespec ts = {.tv_sec = sleep_ms / 1000,
                                    .tv_nsec = sleep_ms % 1000 * 1000000};
        (void)nanosleep(&ts, NULL);
        if (sleep_ms > 0 && host->stopped(call)) {
            note(call, "STOPPED");
        }
        if (strcmp(get(call, "crash"), "true") == 0) {
            _exit(99);
        }
    }
    if (st == NARU_OK && strcmp(get(call, "fail"), name) == 0) {
        st = naru_fail(err, NARU_PRECONDITION, "%s", get(call, "text"));
    }
    return st;
}

static const naru_agent agent = {.struct_size = sizeof agent,
                                 .abi_major = NARU_AGENT_ABI_MAJOR,
                                 .abi_minor = NARU_AGENT_ABI_MINOR,
                                 .name = "trace",
                                 .version = "1.0",
                                 .model_open = model_open,
                                 .model_close = model_close,
                                 .act = act};

NARU_EXPORT const naru_agent *naru_agent_entry(void);
const naru_agent *naru_agent_entry(void)
{
    return &agent;
}
