/* The program beside itself: see rebirth.h.
 *
 * DESIGN. posix_spawn(3) and not fork: the process has threads, and memory that a fork would have to
 * copy the page tables of. Descriptors are closed in the child from NR_REBIRTH_FD + 1 on, since
 * libraries that plug-ins bring do not all open theirs close-on-exec.
 *
 * INVARIANT. What is noted is never written again; so starting is safe on any thread.
 */
#include "io/rebirth.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/str.h"
#include "io/file.h"

#define COMMAND_LINE_MAX (2u << 20) /* what the kernel allows all of it */

struct nr_rebirth {
    char *text; /* the arguments, each with its NUL */
    char **argv;
    char *path; /* absolute, or a name for $PATH */
};

static bool read_command_line(struct nr_text *t)
{
    nr_autoclose int fd = open("/proc/self/cmdline", O_RDONLY | O_CLOEXEC);
    char piece[4096];
    ssize_t n = -1;
    while (fd >= 0 && (n = read(fd, piece, sizeof(piece))) > 0) {
        nr_text_add(t, piece, (size_t)n);
    }
    return n == 0 && !t->failed && t->len > 0 && t->data[t->len - 1] == '\0';
}

static void split(struct nr_rebirth *r, size_t len)
{
    unsigned n = 0;
    for (size_t at = 0; at < len; at += strlen(r->text + at) + 1) {
        n++;
    }
    r->argv = nr_new_array(char *, n + 1);
    n = 0;
    for (size_t at = 0; at < len; at += strlen(r->text + at) + 1) {
        r->argv[n++] = r->text + at;
    }
}

nr_status nr_rebirth_note(struct nr_rebirth **ret, struct nr_err *err)
{
    char folder[PATH_MAX];
    struct nr_text t;
    nr_text_init(&t, COMMAND_LINE_MAX);
    if (!read_command_line(&t)) {
        nr_text_done(&t);
        return nr_fail(err, NARU_IO, "the command line cannot be read from /proc");
    }
    struct nr_rebirth *r = nr_new(struct nr_rebirth);
    size_t len = t.len;
    r->text = nr_text_take(&t);
    split(r, len);
    bool relative = r->argv[0][0] != '/' && strchr(r->argv[0], '/') != NULL;
    if (relative && getcwd(folder, sizeof(folder)) == NULL) {
        nr_rebirth_free(r);
        return nr_fail(err, nr_status_from_errno(errno), "the working folder is not known: %m");
    }
    r->path = relative ? nr_format("%s/%s", folder, r->argv[0]) : nr_strdup(r->argv[0]);
    *ret = r;
    return NARU_OK;
}

void nr_rebirth_free(struct nr_rebirth *r)
{
    if (r != NULL) {
        nr_free(r->text);
        nr_free(r->argv);
        nr_free(r->path);
        nr_free(r);
    }
}

const char *nr_rebirth_path(const struct nr_rebirth *r)
{
    return r->path;
}

static bool is_variable(const char *entry, const char *name)
{
    size_t len = strlen(name);
    return strncmp(entry, name, len) == 0 && entry[len] == '=';
}

/* Borrows environ's strings; `own` is the last one. */
static char **environment(const char *variable, char *own)
{
    unsigned n = 0, kept = 0;
    while (environ[n] != NULL) {
        n++;
    }
    char **env = nr_new_array(char *, n + 2);
    for (unsigned i = 0; i < n; i++) {
        if (!is_variable(environ[i], variable) && !is_variable(environ[i], "LISTEN_PID") &&
            !is_variable(environ[i], "LISTEN_FDS") && !is_variable(environ[i], "LISTEN_FDNAMES")) {
            env[kept++] = environ[i];
        }
    }
    env[kept] = own;
    return env;
}

static int spawn(const struct nr_rebirth *r, int fd, char **env, pid_t *ret_pid)
{
    posix_spawn_file_actions_t files;
    posix_spawnattr_t attr;
    sigset_t none, all;
    sigemptyset(&none);
    sigfillset(&all);
    int e = posix_spawn_file_actions_init(&files);
    if (e != 0) {
        return e;
    }
    e = posix_spawnattr_init(&attr);
    if (e == 0) {
        (void)posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
        (void)posix_spawnattr_setsigmask(&attr, &none);
        (void)posix_spawnattr_setsigdefault(&attr, &all);
        /* dup2 onto itself would keep close-on-exec; glibc's spawn clears it then (POSIX.1-2024). */
        e = posix_spawn_file_actions_adddup2(&files, fd, NR_REBIRTH_FD);
        if (e == 0) {
            e = posix_spawn_file_actions_addclosefrom_np(&files, NR_REBIRTH_FD + 1);
        }
        if (e == 0) {
            e = posix_spawnp(ret_pid, r->path, &files, &attr, r->argv, env);
        }
        posix_spawnattr_destroy(&attr);
    }
    posix_spawn_file_actions_destroy(&files);
    return e;
}

nr_status nr_rebirth_start(const struct nr_rebirth *r, int fd, const char *variable, pid_t *ret_pid,
                           struct nr_err *err)
{
    nr_autofree char *own = nr_format("%s=%d", variable, NR_REBIRTH_FD);
    nr_autofree char **env = environment(variable, own);
    int e = spawn(r, fd, env, ret_pid);
    if (e != 0) {
        return nr_fail(err, nr_status_from_errno(e), "cannot start %s: %s", r->path,
                       strerrordesc_np(e));
    }
    return NARU_OK;
}
