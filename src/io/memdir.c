/* See memdir.h.
 *
 * DESIGN. A mount of our own (which a dying process would take with it) needs privileges, and a
 * memory file has no folder, which libraries want that open several files. So: a folder of a tmpfs, and a
 * lock on its descriptor that tells the living from the dead.
 *
 * INVARIANTS
 *  1. A folder that somebody uses is locked; whoever holds the lock may remove it.
 *  2. Between making a folder and locking it a sweep may take it for a dead one: the maker looks
 *     whether it is still there once it has the lock, and makes another one if not.
 *  3. Only folders of this user are looked at, and no link is followed.
 */
#include "io/memdir.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "base/mem.h"
#include "io/file.h"

#define PREFIX "naru-mem-"
#define MAX_ENTRIES 1000000 /* of one folder, when it is removed */
#define MAX_TRIES 8

static const char *const bases[] = {"/dev/shm", "/tmp"};

static bool is_memory(int fd)
{
    struct statfs fs;
    return fstatfs(fd, &fs) == 0 &&
           ((unsigned long)fs.f_type == TMPFS_MAGIC || (unsigned long)fs.f_type == RAMFS_MAGIC);
}

/* --- removing --------------------------------------------------------------------------------- */

static nr_status remove_visit(void *arg, struct nr_dir_visit *v, struct nr_err *err)
{
    (void)arg;
    (void)err;
    if (!v->entry->is_dir || v->leaving) {
        (void)unlinkat(v->parent_fd, v->entry->name, v->entry->is_dir ? AT_REMOVEDIR : 0);
    }
    return NARU_OK;
}

static bool remove_folder(int base_fd, const char *name, int fd)
{
    struct nr_err err;
    return nr_dir_walk(fd, NR_DIR_MAX_DEPTH, MAX_ENTRIES, remove_visit, NULL, &err) == NARU_OK &&
           unlinkat(base_fd, name, AT_REMOVEDIR) == 0;
}

void nr_memdir_free(struct nr_memdir *d)
{
    if (d->fd >= 0) {
        const char *slash = strrchr(d->path, '/');
        (void)remove_folder(d->base_fd, slash + 1, d->fd);
    }
    nr_close(d->fd);
    nr_close(d->base_fd);
    nr_free(d->path);
    *d = NR_MEMDIR_NONE;
}

/* --- making ----------------------------------------------------------------------------------- */

/* Whether the folder open as fd is still what the base has under the name. */
static bool is_there(int base_fd, const char *name, int fd)
{
    struct stat a, b;
    return fstat(fd, &a) == 0 && fstatat(base_fd, name, &b, AT_SYMLINK_NOFOLLOW) == 0 &&
           a.st_ino == b.st_ino && a.st_dev == b.st_dev;
}

static nr_status make_in(const char *base, int base_fd, struct nr_memdir *ret, struct nr_err *err)
{
    for (int i = 0; i < MAX_TRIES; i++) {
        nr_autofree char *path = nr_format("%s/" PREFIX "XXXXXX", base);
        if (!mkdtemp(path)) {
            return nr_fail(err, nr_status_from_errno(errno), "cannot make a folder in %s: %m",
                           base);
        }
        const char *name = strrchr(path, '/') + 1;
        int fd = openat(base_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) == 0 && is_there(base_fd, name, fd)) {
            *ret = (struct nr_memdir){
                .fd = fd, .path = NR_TAKE(path), .base_fd = fcntl(base_fd, F_DUPFD_CLOEXEC, 0)};
            return NARU_OK;
        }
        nr_close(fd);
    }
    return nr_fail(err, NARU_IO, "cannot keep a folder in %s: something removes or locks it", base);
}

nr_status nr_memdir_new(const char *base, bool in_memory, struct nr_memdir *ret, struct nr_err *err)
{
    struct nr_err why = {0};
    for (size_t i = 0; i < (base ? 1 : NR_COUNT(bases)); i++) {
        const char *path = base ? base : bases[i];
        nr_autoclose int fd = -1;
        nr_status st = nr_dir_open_root(path, &fd, &why);
        if (st == NARU_OK && in_memory && !is_memory(fd)) {
            st = nr_fail(&why, NARU_UNAVAILABLE, "%s does not lie in memory", path);
        }
        if (st == NARU_OK && make_in(path, fd, ret, &why) == NARU_OK) {
            return NARU_OK;
        }
    }
    return nr_fail(err, why.status, "there is no place for a private folder%s: %s",
                   in_memory ? " in memory" : "", why.text);
}

/* One folder of a process that is gone, maybe. */
static bool sweep_one(int base_fd, const char *name)
{
    struct stat sb;
    nr_autoclose int fd = openat(base_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    return fd >= 0 && fstat(fd, &sb) == 0 && sb.st_uid == geteuid() &&
           flock(fd, LOCK_EX | LOCK_NB) == 0 && remove_folder(base_fd, name, fd);
}

unsigned nr_memdir_sweep(const char *base)
{
    unsigned n_gone = 0;
    for (size_t i = 0; i < (base ? 1 : NR_COUNT(bases)); i++) {
        DIR *d =
            opendir(base ? base : bases[i]); /* by name only: there may be many others' files */
        for (const struct dirent *e; d && (e = readdir(d)) != NULL;) {
            if (nr_str_starts(nr_str_from(e->d_name), NR_STR(PREFIX))) {
                n_gone += sweep_one(dirfd(d), e->d_name);
            }
        }
        if (d) {
            closedir(d);
        }
    }
    return n_gone;
}
