/* Looking at the files (NR_CONTROL_POLL): what is new, changed or gone.
 *
 * DESIGN. Files come from copying programs that know nothing of us, so a look may find half a model. A
 * change is taken only when two looks, quiet_ns apart, see the same fingerprint (name, size, mtime,
 * inode of everything) and no file is younger than quiet_ns. While something moves, looks are
 * quiet_ns apart instead of poll_ns. The load itself compares the fingerprint once more before and
 * after (repository_load.c). What failed is tried again when its files change, not before.
 *
 * A repository whose path is gone (renamed away, not mounted) says nothing about its models: they serve on,
 * and nr_repository_trouble tells. Under another folder of the same name it goes on there. The paths are
 * looked at every PATH_LOOK_NS, whatever poll_ns.
 *
 * A copy that pauses for longer than quiet_ns in the middle of a file cannot be told from one that
 * has ended; names with a leading dot are not looked at, so a program that copies under such a name
 * and renames is safe at any speed.
 *
 * Threads: the folder behind a source's descriptor is replaced by this thread alone. look_print, tried_print and look_ns of a model belong to this thread.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "io/file.h"
#include "model/repository_priv.h"

#define PATH_LOOK_NS (500 * NR_MS_NS)

/* NULL, or why the folder of a repository cannot be had under its path. */
static const char *look_at_path(struct nr_source *s)
{
    struct stat now, had;
    if (stat(s->path, &now) != 0) {
        return strerrordesc_np(errno);
    }
    if (fstat(s->fd, &had) == 0 && now.st_dev == had.st_dev && now.st_ino == had.st_ino) {
        return NULL;
    }
    struct nr_err err = {0};
    nr_autoclose int fd = -1;
    if (nr_dir_open_root(s->path, &fd, &err) != NARU_OK) {
        return "its folder cannot be opened";
    }
    /* the number stays: who uses it sees the one or the other */
    return dup3(fd, s->fd, O_CLOEXEC) == s->fd ? NULL : strerrordesc_np(errno);
}

/* False: one of the repositories is not there. */
static bool look_at_paths(struct nr_repository *r)
{
    char trouble[NR_ERR_TEXT_MAX] = "";
    for (size_t i = 0; i < r->n_sources && trouble[0] == '\0'; i++) {
        struct nr_source *s = &r->sources[i];
        const char *why = s->kind == NR_SOURCE_REPOSITORY ? look_at_path(s) : NULL;
        if (why != NULL) {
            (void)snprintf(
                trouble, sizeof trouble,
                "model repository %zu of %zu cannot be read: %s; what is loaded serves on", i + 1,
                r->n_sources, why);
        }
    }
    nr_repository_lock(r);
    memcpy(r->trouble, trouble, sizeof trouble);
    nr_repository_unlock(r);
    return trouble[0] == '\0';
}

bool nr_repository_trouble(struct nr_repository *r, char *text, size_t bytes)
{
    nr_repository_lock(r);
    (void)snprintf(text, bytes, "%s", r->trouble);
    nr_repository_unlock(r);
    return text[0] != '\0';
}

/* The model under the name; a new one is not shown: nobody waits for half a model. */
static struct nr_model *get(struct nr_repository *r, const char *name)
{
    nr_repository_lock(r);
    struct nr_model *m = nr_model_get(r, name);
    nr_repository_unlock(r);
    return m;
}

/* One look at one model; true while it is not known whether it changes. */
static bool look(struct nr_repository *r, const char *name, int64_t now_ns)
{
    struct nr_plan p;
    if (nr_plan_look(r, name, &p, NULL) != NARU_OK) {
        return true; /* it came or went under our eyes */
    }
    uint64_t print = p.print;
    int64_t age_ns = nr_clock_wall() - p.newest_wall_ns;
    nr_plan_done(&p);
    struct nr_model *m = get(r, name);
    m->look_gone_ns = 0;
    if (m->look_print != print) {
        m->look_print = print;
        m->look_ns = now_ns;
    }
    if (m->tried && m->tried_print == print) {
        return false;
    }
    /* a clock that was wrong when the files were written must not stop us: only a past age counts */
    bool young = age_ns >= 0 && age_ns < r->cfg.quiet_ns;
    if (young || now_ns - m->look_ns < r->cfg.quiet_ns) {
        return true;
    }
    m->tried = true;
    m->tried_print = print;
    nr_repository_poll_load(r, name);
    return false;
}

/* A model that was there and is in no listing now; true while it may come back. */
static bool look_gone(struct nr_repository *r, struct nr_model *m, int64_t now_ns)
{
    if (m->look_gone_ns == 0) {
        m->look_gone_ns = now_ns;
    }
    if (now_ns - m->look_gone_ns < r->cfg.quiet_ns) {
        return true;
    }
    m->tried = false;
    return !nr_model_take_gone(r, m);
}

static bool look_at_missing(struct nr_repository *r, struct nr_map *seen, int64_t now_ns)
{
    bool moves = false;
    nr_repository_lock(r);
    size_t n = 0;
    nr_autofree struct nr_model **missing = nr_new_array(struct nr_model *, r->n_models + 1);
    for (size_t i = 0; i < r->n_models; i++) {
        if (r->models[i]->shown && !nr_map_get(seen, nr_str_from(r->models[i]->name))) {
            missing[n++] = r->models[i];
        }
    }
    nr_repository_unlock(r);
    for (size_t i = 0; i < n; i++) {
        moves = look_gone(r, missing[i], now_ns) || moves;
    }
    return moves;
}

/* True while something moves. */
static bool look_at_all(struct nr_repository *r)
{
    char **names;
    size_t n;
    bool moves = false;
    int64_t now_ns = nr_clock_now();
    struct nr_map seen;
    nr_map_init(&seen);
    nr_status st = nr_plan_names(r, &names, &n, NULL);
    for (size_t i = 0; i < n; i++) {
        if (st == NARU_OK && nr_name_valid(nr_str_from(names[i])) && nr_plan_exists(r, names[i])) {
            (void)nr_map_put(&seen, nr_str_from(names[i]), r);
            moves = look(r, names[i], now_ns) || moves;
        }
        nr_free(names[i]);
    }
    nr_free(names);
    if (st == NARU_OK) { /* a listing that failed says nothing about what is gone */
        moves = look_at_missing(r, &seen, now_ns) || moves;
    }
    nr_map_done(&seen);
    return moves;
}

static void *poll_main(void *arg)
{
    struct nr_repository *r = arg;
    int64_t due_ns = nr_clock_now() + r->cfg.poll_ns;
    (void)pthread_setname_np(pthread_self(), "naru-poll");
    nr_repository_lock(r);
    while (!r->stopping) {
        int64_t until_ns = NR_MIN(due_ns, nr_clock_now() + PATH_LOOK_NS);
        struct timespec ts = {.tv_sec = until_ns / NR_S_NS, .tv_nsec = until_ns % NR_S_NS};
        int rc = 0;
        while (!r->stopping && rc == 0) {
            rc = pthread_cond_timedwait(&r->rest, &r->lock, &ts);
        }
        if (r->stopping) {
            break;
        }
        nr_repository_unlock(r);
        if (look_at_paths(r) && nr_clock_now() >= due_ns) {
            bool moves = look_at_all(r);
            due_ns =
                nr_clock_now() + (moves ? NR_MIN(r->cfg.quiet_ns, r->cfg.poll_ns) : r->cfg.poll_ns);
        }
        nr_repository_lock(r);
    }
    nr_repository_unlock(r);
    nr_arena_thread_done();
    return NULL;
}

void nr_repository_poll_start(struct nr_repository *r)
{
    /* Signals are for the main thread; the mask is inherited. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    r->polls = pthread_create(&r->poller, NULL, poll_main, r) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

void nr_repository_poll_stop(struct nr_repository *r)
{
    if (r->polls) {
        (void)pthread_join(r->poller, NULL);
        r->polls = false;
    }
}
