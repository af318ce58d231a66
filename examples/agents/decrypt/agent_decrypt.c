/* A repository agent that opens sealed files (sealed.h) into memory, as an example of one that puts another
 * folder in a model's place.
 *
 *   model_repository_agents { agents [ { name: "decrypt"
 *     parameters { key: "key_file" value: "/run/secrets/model.key" } } ] }    or key_env: a variable's name
 *
 * Files named NAME.sealed become NAME, all others are copied as they are, so that the model loads as if it had
 * never been sealed: config.pbtxt is not sealed, for it says how to open the rest. The folder lies in
 * memory (the load fails where there is no such place) and goes when the model does.
 *
 * DESIGN. One file at a time, chunk by chunk; nothing is written that was not authenticated. Texts name files,
 * chunks and parameters, never what is in them. The key exists on this stack while LOAD runs.
 *
 * Threads: no state of its own.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "naru/agent.h"
#include "naru/helper.h"
#include "sealed.h"

#define ENDING ".sealed"
#define MAX_KEY_FILE 4096
#define COPY_BYTES 8192

struct opening {
    const naru_agent_host *host;
    const naru_agent_call *call;
    naru_text *err;
    uint8_t key[SEALED_KEY_BYTES];
    unsigned n_sealed;
};

/* --- the key ---------------------------------------------------------------------------------- */

static naru_status read_key_file(struct opening *o, const char *path)
{
    char text[MAX_KEY_FILE];
    struct stat sb;
    int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC); /* the operator's path: may be a link */
    ssize_t n = -1;
    if (fd >= 0 && fstat(fd, &sb) == 0 && S_ISREG(sb.st_mode)) {
        n = read(fd, text, sizeof text);
    }
    if (fd >= 0) {
        (void)close(fd);
    }
    naru_status st = NARU_OK;
    if (n < 0) {
        st = naru_fail(o->err, NARU_INVALID, "key_file \"%.200s\" cannot be read", path);
    } else if (!sealed_key_parse(text, (size_t)n, o->key)) {
        st = naru_fail(
            o->err, NARU_INVALID,
            "key_file \"%.200s\" holds no key: 64 hexadecimal digits or 32 bytes are expected",
            path);
    }
    sealed_forget(text, sizeof text);
    return st;
}

static naru_status read_key(struct opening *o)
{
    const naru_option *options = o->call->options;
    const char *file = NULL, *env = NULL;
    for (uint32_t i = 0; i < o->call->n_options; i++) {
        if (strcmp(options[i].key, "key_file") == 0) {
            file = options[i].value;
        } else if (strcmp(options[i].key, "key_env") == 0) {
            env = options[i].value;
        } else {
            return naru_fail(o->err, NARU_INVALID,
                             "unknown parameter \"%.200s\": key_file and key_env are known",
                             options[i].key);
        }
    }
    if (!file == !env) {
        return naru_fail(o->err, NARU_INVALID,
                         "one of the parameters key_file and key_env must say where the key is");
    }
    if (file) {
        return read_key_file(o, file);
    }
    const char *text =
        getenv(env); /* NOLINT(concurrency-mt-unsafe): nobody changes the environment */
    if (!text || !sealed_key_parse(text, strlen(text), o->key)) {
        return naru_fail(o->err, NARU_INVALID, "key_env \"%.200s\": the variable %s", env,
                         text ? "holds no key: 64 hexadecimal digits are expected" : "is not set");
    }
    return NARU_OK;
}

/* --- files ------------------------------------------------------------------------------------ */

static int stopped(const void *arg)
{
    const struct opening *o = arg;
    return o->host->stopped(o->call) != 0;
}

static naru_status copy(const struct opening *o, const char *rel, int in, int out)
{
    char buf[COPY_BYTES];
    for (;;) {
        ssize_t n = read(in, buf, sizeof buf);
        if (n == 0) {
            return NARU_OK;
        }
        if (n < 0 || write(out, buf, (size_t)n) != n) {
            return naru_fail(o->err, NARU_IO, "%.300s cannot be %s: %s", rel,
                             n < 0 ? "read" : "copied", strerrorname_np(errno));
        }
        if (stopped(o)) {
            return NARU_CANCELLED;
        }
    }
}

static naru_status unseal(const struct opening *o, const char *rel, const char *name, int in,
                          int out)
{
    uint32_t chunk = 0;
    switch (sealed_read(o->key, name, in, out, stopped, o, &chunk)) {
    case SEALED_OK:
        return NARU_OK;
    case SEALED_NO_FILE:
        return naru_fail(o->err, NARU_PRECONDITION, "%.300s is no sealed file: its header is none",
                         rel);
    case SEALED_BAD_CHUNK:
        return naru_fail(
            o->err, NARU_PRECONDITION,
            "%.300s does not open at chunk %u: it was sealed with another key or under "
            "another name, or it was changed, cut or put together from parts",
            rel, chunk);
    case SEALED_READ:
        return naru_fail(o->err, NARU_IO, "%.300s cannot be read: %s", rel, strerrorname_np(errno));
    case SEALED_WRITE:
        return naru_fail(o->err, NARU_EXHAUSTED,
                         "%.300s does not fit the folder in memory (--agent-folder): %s", rel,
                         strerrorname_np(errno));
    case SEALED_STOPPED:
        return NARU_CANCELLED;
    case SEALED_MEMORY:
        break;
    }
    return naru_fail(o->err, NARU_NOMEM, "%.300s: no memory, or no AES-256-GCM", rel);
}

static naru_status put_file(void *arg, const char *rel, uint64_t bytes)
{
    struct opening *o = arg;
    size_t len = strlen(rel), ending = sizeof ENDING - 1;
    int32_t in = -1, out = -1;
    (void)bytes;
    int sealed = len > ending && strcmp(rel + len - ending, ENDING) == 0;
    char *name = strndup(rel, sealed ? len - ending : len);
    naru_status st = name ? o->host->file_open(o->call, rel, &in, o->err) : NARU_NOMEM;
    if (st == NARU_OK) {
        st = o->host->file_create(o->call, name, &out, o->err);
    }
    if (st == NARU_OK) {
        o->n_sealed += sealed != 0;
        st = sealed ? unseal(o, rel, name, in, out) : copy(o, rel, in, out);
    }
    if (in >= 0) {
        (void)close(in);
    }
    if (out >= 0) {
        (void)close(out);
    }
    free(name);
    return st;
}

/* --- the agent -------------------------------------------------------------------------------- */

static naru_status act(const naru_agent_host *host, naru_agent_model *model,
                       const naru_agent_call *call, naru_text *err)
{
    struct opening o = {.host = host, .call = call, .err = err};
    (void)model;
    if (call->action != NARU_AGENT_LOAD) {
        return NARU_OK; /* the server removes the folder */
    }
    naru_status st = read_key(&o);
    if (st == NARU_OK) {
        st = host->folder_new(call, NARU_AGENT_FOLDER_SECRET, err);
    }
    if (st == NARU_OK) {
        st = host->file_each(call, put_file, &o, err);
    }
    if (st == NARU_OK && o.n_sealed == 0) {
        st = naru_fail(err, NARU_PRECONDITION, "the model's folder has no file named *" ENDING);
    }
    sealed_forget(o.key, sizeof o.key);
    return st;
}

static const naru_agent agent = {.struct_size = sizeof agent,
                                 .abi_major = NARU_AGENT_ABI_MAJOR,
                                 .abi_minor = NARU_AGENT_ABI_MINOR,
                                 .name = "decrypt",
                                 .version = "1.0",
                                 .act = act};

NARU_EXPORT const naru_agent *naru_agent_entry(void);
const naru_agent *naru_agent_entry(void)
{
    return &agent;
}
