/* The path resolver, and whole files read and written through it.
 *
 * Every name that comes from a client, a model's configuration or a download ends here. Checking a
 * path as text and opening it afterwards loses a race against whoever can write in the folder;
 * the kernel resolves and checks in one step with openat2. Before it, ".." components are refused
 * as text as well: no caller needs them, and the fallback (a walk with O_NOFOLLOW, one component
 * at a time, which loses no race either because it holds each folder open) then means the same.
 *
 * Invariants
 * 1. No descriptor returned lies outside dir_fd's tree, and none was reached over a symbolic link.
 * 2. A written file is either the old one or the whole new one, also after a crash.
 * 3. No open here can block: O_NONBLOCK is added for reading whole files (a FIFO in a repository).
 * Threads: no state but two atomics.
 */
#include "io/file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"

static _Atomic bool no_openat2;
static _Atomic unsigned temp_counter;

void nr_close(int fd)
{
    if (fd >= 0) {
        int saved = errno; /* runs on the way out of functions that report errno */
        close(fd);         /* not repeated on EINTR: Linux has closed it by then */
        errno = saved;
    }
}

nr_status nr_dir_open_root(const char *path, int *ret_fd, struct nr_err *err)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) {
        return nr_fail(err, nr_status_from_errno(errno), "cannot open the folder '%s': %m", path);
    }
    *ret_fd = fd;
    return NARU_OK;
}

/* Refuses what no caller means: empty, absolute, or with a ".." component. */
static nr_status check_rel(const char *rel, struct nr_err *err)
{
    if (rel[0] == '\0' || rel[0] == '/') {
        return nr_fail(err, rel[0] == '/' ? NARU_DENIED : NARU_INVALID,
                       "'%s' is not a path below its folder: give a relative path", rel);
    }
    struct nr_str rest = nr_str_from(rel);
    while (rest.ptr != NULL) {
        struct nr_str part = nr_str_cut(rest, '/', &rest);
        if (nr_str_is(part, "..")) {
            return nr_fail(err, NARU_DENIED, "'%s' contains '..', which is not allowed", rel);
        }
    }
    return NARU_OK;
}

/* The error of an open, from errno. */
static nr_status open_failed(const char *rel, struct nr_err *err)
{
    int error = errno;
    if (error == ELOOP || error == EXDEV) {
        return nr_fail(err, NARU_DENIED,
                       "'%s' leads over a symbolic link, which is not allowed here", rel);
    }
    errno = error;
    return nr_fail(err, nr_status_from_errno(error), "cannot open '%s': %m", rel);
}

/* Opens one component of a walk below fd, which it closes unless it is the caller's. */
static int step(int fd, int caller_fd, const char *part, int flags, unsigned mode)
{
    int next = openat(fd, part, flags | O_NOFOLLOW | O_CLOEXEC, mode);
    struct stat st;
    /* O_DIRECTORY is looked at before O_NOFOLLOW, so a link reads as "not a folder": say which. */
    if (next < 0 && errno == ENOTDIR) {
        bool is_link = fstatat(fd, part, &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISLNK(st.st_mode);
        errno = is_link ? ELOOP : ENOTDIR;
    }
    if (fd != caller_fd) {
        nr_close(fd);
    }
    return next;
}

nr_status nr_dir_open_walk(int dir_fd, const char *rel, int flags, unsigned mode, int *ret_fd,
                           struct nr_err *err)
{
    nr_status status = check_rel(rel, err);
    if (status != NARU_OK) {
        return status;
    }
    /* All parts but the last are folders, opened with O_PATH, which needs search permission only,
     * as a path given to the kernel as a whole would. */
    int fd = dir_fd;
    struct nr_str rest = nr_str_from(rel);
    struct nr_str part = nr_str_cut(rest, '/', &rest);
    while (rest.ptr != NULL) {
        char name[256];
        if (part.len >= sizeof(name)) {
            if (fd != dir_fd) {
                nr_close(fd);
            }
            errno = ENAMETOOLONG;
            return open_failed(rel, err);
        }
        if (part.len > 0 && !nr_str_is(part, ".")) {
            memcpy(name, part.ptr, part.len);
            name[part.len] = '\0';
            fd = step(fd, dir_fd, name, O_PATH | O_DIRECTORY, 0);
            if (fd < 0) {
                return open_failed(rel, err);
            }
        }
        part = nr_str_cut(rest, '/', &rest);
    }
    /* "a/" names the folder a: an empty last part is ".". */
    fd = step(fd, dir_fd, part.len > 0 ? part.ptr : ".", flags, mode);
    if (fd < 0) {
        return open_failed(rel, err);
    }
    *ret_fd = fd;
    return NARU_OK;
}

nr_status nr_dir_open_at(int dir_fd, const char *rel, int flags, unsigned mode, int *ret_fd,
                         struct nr_err *err)
{
    nr_status status = check_rel(rel, err);
    if (status != NARU_OK) {
        return status;
    }
    /* openat2 is strict: a mode without a creating flag is EINVAL. */
    bool takes_mode = (flags & O_CREAT) != 0 || (flags & O_TMPFILE) == O_TMPFILE;
    struct open_how how = {
        .flags = (uint64_t)(unsigned)(flags | O_CLOEXEC),
        .mode = takes_mode ? mode & 07777u : 0,
        .resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS,
    };
    /* EAGAIN: something was renamed while the kernel looked; a few times at most. */
    for (int tries = 0; tries < 8; tries++) {
        if (atomic_load_explicit(&no_openat2, memory_order_relaxed)) {
            break;
        }
        long fd = syscall(SYS_openat2, dir_fd, rel, &how, sizeof(how));
        if (fd >= 0) {
            *ret_fd = (int)fd;
            return NARU_OK;
        }
        if (errno == ENOSYS) {
            atomic_store_explicit(&no_openat2, true, memory_order_relaxed);
        } else if (errno == EPERM) {
            break; /* perhaps a filter that does not know the call: let the walk find out */
        } else if (errno != EAGAIN && errno != EINTR) {
            return open_failed(rel, err);
        }
    }
    return nr_dir_open_walk(dir_fd, rel, flags, mode, ret_fd, err);
}

/* Reads fd to its end, at most max_bytes; capacity is a first guess that holds the NUL too. */
static nr_status read_all(int fd, size_t capacity, size_t max_bytes, char **ret, size_t *ret_len,
                          const char *rel, struct nr_err *err)
{
    nr_autofree char *data = NULL;
    size_t len = 0;
    size_t have = 0;
    for (;;) {
        if (len == have) {
            /* Doubles only for files that grow, or (in /proc) do not know their size. */
            have = have == 0 ? capacity : (have > max_bytes / 2 ? max_bytes + 1 : have * 2);
            char *more = nr_try_realloc(data, have);
            if (more == NULL) {
                return nr_fail(err, NARU_NOMEM, "no memory to read '%s' (%zu bytes)", rel, have);
            }
            data = more;
        }
        ssize_t n = read(fd, data + len, have - len);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return nr_fail(err, nr_status_from_errno(errno), "cannot read '%s': %m", rel);
        }
        if (n == 0) {
            break;
        }
        len += (size_t)n;
        if (len > max_bytes) {
            return nr_fail(err, NARU_TOO_LARGE, "'%s' is larger than the allowed %zu bytes", rel,
                           max_bytes);
        }
    }
    data[len] = '\0'; /* len < have: a full buffer was grown before the read that met the end */
    *ret = NR_TAKE(data);
    *ret_len = len;
    return NARU_OK;
}

nr_status nr_file_read_at(int dir_fd, const char *rel, size_t max_bytes, char **ret,
                          size_t *ret_len, struct nr_err *err)
{
    nr_autoclose int fd = -1;
    nr_status status = nr_dir_open_at(dir_fd, rel, O_RDONLY | O_NONBLOCK, 0, &fd, err);
    if (status != NARU_OK) {
        return status;
    }
    struct stat st;
    if (fstat(fd, &st) != 0) {
        return nr_fail(err, nr_status_from_errno(errno), "cannot look at '%s': %m", rel);
    }
    if (!S_ISREG(st.st_mode)) {
        return nr_fail(err, NARU_INVALID, "'%s' is not a regular file", rel);
    }
    max_bytes = NR_MIN(max_bytes, SIZE_MAX / 4);
    if ((uint64_t)st.st_size > max_bytes) {
        return nr_fail(err, NARU_TOO_LARGE, "'%s' has %lld bytes, allowed are %zu", rel,
                       (long long)st.st_size, max_bytes);
    }
    return read_all(fd, (size_t)st.st_size + 1, max_bytes, ret, ret_len, rel, err);
}

/* All of it, then to the disk. */
static bool write_and_sync(int fd, const char *data, size_t len)
{
    while (len > 0) {
        ssize_t n = write(fd, data, len);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return false;
        }
        data += n;
        len -= (size_t)n;
    }
    return fsync(fd) == 0;
}

/* Makes a new file in the folder; its name goes into `name`. The time in it keeps a file that a
 * crashed process with our number left behind from being in the way; the leading dot keeps it out
 * of nr_name_valid, so no client can name it. */
static int make_temp(int parent_fd, char name[64])
{
    int fd;
    do {
        unsigned n = atomic_fetch_add_explicit(&temp_counter, 1, memory_order_relaxed);
        snprintf(name, 64, ".naru-%d-%u-%llx.tmp", (int)getpid(), n,
                 (unsigned long long)nr_clock_wall());
        fd = openat(parent_fd, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0644);
    } while (fd < 0 && errno == EEXIST);
    return fd;
}

/* The folder of rel, and the name in it (a pointer into rel). */
static nr_status open_parent(int dir_fd, const char *rel, int *ret_fd, const char **ret_name,
                             struct nr_err *err)
{
    nr_status status = check_rel(rel, err);
    if (status != NARU_OK) {
        return status;
    }
    const char *slash = strrchr(rel, '/');
    const char *name = slash != NULL ? slash + 1 : rel;
    if (name[0] == '\0' || strcmp(name, ".") == 0) {
        return nr_fail(err, NARU_INVALID, "'%s' names a folder, not a file", rel);
    }
    char parent[4096] = ".";
    if (slash != NULL) {
        size_t len = (size_t)(slash - rel);
        if (len >= sizeof(parent)) {
            return nr_fail(err, NARU_INVALID, "the path is too long: %zu bytes, allowed are %zu",
                           len, sizeof(parent) - 1);
        }
        memcpy(parent, rel, len);
        parent[len] = '\0';
    }
    *ret_name = name;
    return nr_dir_open_at(dir_fd, parent, O_RDONLY | O_DIRECTORY, 0, ret_fd, err);
}

nr_status nr_file_write_at(int dir_fd, const char *rel, const void *data, size_t len,
                           struct nr_err *err)
{
    nr_autoclose int parent_fd = -1;
    const char *name;
    nr_status status = open_parent(dir_fd, rel, &parent_fd, &name, err);
    if (status != NARU_OK) {
        return status;
    }
    char temp[64];
    nr_autoclose int fd = make_temp(parent_fd, temp);
    if (fd < 0) {
        return nr_fail(err, nr_status_from_errno(errno), "cannot make a file beside '%s': %m", rel);
    }
    /* The folder is synced after the rename, or the new name may be lost in a crash. After a
     * failed fsync the kernel has dropped the pages: trying again would report success. */
    if (write_and_sync(fd, data, len) && renameat(parent_fd, temp, parent_fd, name) == 0) {
        if (fsync(parent_fd) == 0) {
            return NARU_OK;
        }
        return nr_fail(err, nr_status_from_errno(errno), "cannot sync the folder of '%s': %m", rel);
    }
    int error = errno;
    unlinkat(parent_fd, temp, 0);
    errno = error;
    return nr_fail(err, nr_status_from_errno(error), "cannot write '%s': %m", rel);
}

static int compare_entries(const void *a, const void *b)
{
    const struct nr_dir_entry *x = a;
    const struct nr_dir_entry *y = b;
    return strcmp(x->name, y->name);
}

/* Fills an entry; false when it has vanished since. */
static bool fill_entry(int fd, const char *name, struct nr_dir_entry *e)
{
    struct stat st;
    if (fstatat(fd, name, &st, AT_SYMLINK_NOFOLLOW) != 0) {
        return false;
    }
    *e = (struct nr_dir_entry){
        .is_dir = S_ISDIR(st.st_mode),
        .is_link = S_ISLNK(st.st_mode),
        .bytes = st.st_size > 0 ? (uint64_t)st.st_size : 0,
        .inode = (uint64_t)st.st_ino,
        .mtime_ns = (int64_t)st.st_mtim.tv_sec * NR_S_NS + st.st_mtim.tv_nsec,
    };
    size_t len = strnlen(name, sizeof(e->name) - 1);
    memcpy(e->name, name, len);
    e->name[len] = '\0';
    return true;
}

static void close_stream(DIR **d)
{
    if (*d != NULL) {
        closedir(*d);
    }
}

nr_status nr_dir_list(int dir_fd, size_t max_entries, struct nr_dir_entry **ret, size_t *ret_n,
                      struct nr_err *err)
{
    /* A descriptor of our own: the position is shared by duplicates, and closedir closes it. */
    int fd = openat(dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    nr_cleanup(close_stream) DIR *d = fd >= 0 ? fdopendir(fd) : NULL;
    if (d == NULL) {
        nr_status status = nr_fail(err, nr_status_from_errno(errno), "cannot list a folder: %m");
        nr_close(fd);
        return status;
    }
    nr_autofree struct nr_dir_entry *entries = NULL;
    size_t n = 0;
    size_t capacity = 0;
    for (;;) {
        errno = 0;
        const struct dirent *item = readdir(d); /* one stream, one thread: safe in glibc */
        if (item == NULL) {
            break;
        }
        if (strcmp(item->d_name, ".") == 0 || strcmp(item->d_name, "..") == 0) {
            continue;
        }
        if (n == max_entries) {
            return nr_fail(err, NARU_TOO_LARGE, "the folder has more than the allowed %zu entries",
                           max_entries);
        }
        if (n == capacity) {
            size_t bytes;
            capacity = capacity ? capacity * 2 : 16;
            struct nr_dir_entry *more =
                nr_mul(capacity, sizeof(*more), &bytes) ? nr_try_realloc(entries, bytes) : NULL;
            if (more == NULL) {
                return nr_fail(err, NARU_NOMEM, "no memory for a folder of %zu entries", capacity);
            }
            entries = more;
        }
        n += fill_entry(fd, item->d_name, &entries[n]);
    }
    if (errno != 0) {
        return nr_fail(err, nr_status_from_errno(errno), "cannot list a folder: %m");
    }
    if (n > 0) {
        qsort(entries, n, sizeof(*entries), compare_entries);
    }
    *ret = NR_TAKE(entries);
    *ret_n = n;
    return NARU_OK;
}

/* --- walking ---------------------------------------------------------------------------------- */

struct level { /* one folder on the way down */
    int fd;
    struct nr_dir_entry *entries;
    size_t n, i;
    size_t rel_len; /* of the folder's own path */
};

static nr_status level_open(struct level *to, int dir_fd, const char *folder, size_t max_entries,
                            struct nr_err *err)
{
    *to = (struct level){.fd = -1};
    nr_status st = nr_dir_open_at(dir_fd, folder, O_RDONLY | O_DIRECTORY, 0, &to->fd, err);
    if (st == NARU_OK) {
        st = nr_dir_list(to->fd, max_entries, &to->entries, &to->n, err);
    }
    return st;
}

static void level_close(struct level *l)
{
    nr_close(l->fd);
    nr_free(l->entries);
}

nr_status nr_dir_walk(int dir_fd, unsigned max_depth, size_t max_entries,
                      nr_status (*visit)(void *arg, struct nr_dir_visit *v, struct nr_err *err),
                      void *arg, struct nr_err *err)
{
    struct level levels[NR_DIR_MAX_DEPTH];
    char rel[NR_DIR_MAX_REL];
    unsigned depth = 1;
    max_depth = NR_MIN(max_depth, (unsigned)NR_DIR_MAX_DEPTH);
    nr_status st = level_open(&levels[0], dir_fd, ".", max_entries, err);
    while (depth > 0 && st == NARU_OK) {
        struct level *at = &levels[depth - 1];
        if (at->i == at->n) {
            level_close(at);
            if (--depth == 0) {
                break;
            }
            struct level *up = &levels[depth - 1];
            rel[at->rel_len] = '\0';
            struct nr_dir_visit v = {
                .parent_fd = up->fd, .rel = rel, .entry = &up->entries[up->i - 1], .leaving = true};
            st = visit(arg, &v, err);
            continue;
        }
        const struct nr_dir_entry *e = &at->entries[at->i++];
        int n = snprintf(rel + at->rel_len, sizeof rel - at->rel_len, "%s%s",
                         at->rel_len > 0 ? "/" : "", e->name);
        if (n < 0 || (size_t)n >= sizeof rel - at->rel_len) {
            st = nr_fail(err, NARU_TOO_LARGE, "a path is longer than %zu bytes", sizeof rel - 1);
            break;
        }
        struct nr_dir_visit v = {.parent_fd = at->fd, .rel = rel, .entry = e, .enter = e->is_dir};
        st = visit(arg, &v, err);
        if (st != NARU_OK || !e->is_dir || !v.enter) {
            continue;
        }
        if (depth == max_depth) {
            st = nr_fail(err, NARU_TOO_LARGE, "folders are nested more than %u deep", max_depth);
        } else {
            size_t rel_len = at->rel_len + (size_t)n;
            st = level_open(&levels[depth++], at->fd, e->name, max_entries, err);
            levels[depth - 1].rel_len = rel_len;
        }
    }
    while (depth > 0) {
        level_close(&levels[--depth]);
    }
    return st;
}

nr_status nr_dir_make_at(int dir_fd, const char *rel, struct nr_err *err)
{
    char path[NR_DIR_MAX_REL];
    nr_status st = check_rel(rel, err);
    size_t len = strlen(rel);
    if (st != NARU_OK) {
        return st;
    }
    if (len >= sizeof path) {
        return nr_fail(err, NARU_TOO_LARGE, "a path is longer than %zu bytes", sizeof path - 1);
    }
    /* each part beneath the descriptor of the one before: no link is followed on the way */
    for (size_t end = 1; end <= len && st == NARU_OK; end++) {
        if (rel[end] != '/' && rel[end] != '\0') {
            continue;
        }
        memcpy(path, rel, end);
        path[end] = '\0';
        nr_autoclose int parent_fd = -1;
        const char *name = NULL;
        st = open_parent(dir_fd, path, &parent_fd, &name, err);
        if (st == NARU_OK && mkdirat(parent_fd, name, 0700) != 0 && errno != EEXIST) {
            st = nr_fail(err, nr_status_from_errno(errno), "cannot make the folder '%s': %m", path);
        }
    }
    return st;
}

bool nr_name_valid(struct nr_str name)
{
    if (name.len == 0 || name.len > 128 || name.ptr[0] == '.') {
        return false;
    }
    for (size_t i = 0; i < name.len; i++) {
        char c = name.ptr[i];
        bool is_letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
        if (!is_letter && !(c >= '0' && c <= '9') && c != '.' && c != '_' && c != '-') {
            return false;
        }
    }
    return true;
}
