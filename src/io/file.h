/* Files: the one path resolver. Every open under a repository, cache, gallery or log root goes
 * through nr_dir_open* with a directory descriptor and openat2(RESOLVE_BENEATH |
 * RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS); where the kernel lacks openat2 the components are
 * walked one by one with O_NOFOLLOW. Roots themselves (given by the operator) may be symlinks. */
#ifndef NR_IO_FILE_H
#define NR_IO_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/status.h"
#include "base/str.h"

/* Opens an operator's path. Caller closes. */
nr_nodiscard nr_status nr_dir_open_root(const char *path, int *ret_fd, struct nr_err *err);
/* Opens `rel` beneath dir_fd with open(2) flags (O_CLOEXEC is added); mode for O_CREAT. NARU_DENIED
 * for an absolute path, a ".." component or a symbolic link anywhere on the way. "." is dir_fd's
 * own folder. Add O_NONBLOCK where a FIFO must not block the open. */
nr_nodiscard nr_status nr_dir_open_at(int dir_fd, const char *rel, int flags, unsigned mode,
                                      int *ret_fd, struct nr_err *err);
/* The same without openat2: what nr_dir_open_at does on older kernels; called by its tests. */
nr_nodiscard nr_status nr_dir_open_walk(int dir_fd, const char *rel, int flags, unsigned mode,
                                        int *ret_fd, struct nr_err *err);
/* Whole regular file beneath dir_fd, NUL added behind (not counted). *ret is nr_free'd by the caller.
 * NARU_TOO_LARGE beyond max_bytes. */
nr_nodiscard nr_status nr_file_read_at(int dir_fd, const char *rel, size_t max_bytes, char **ret,
                                       size_t *ret_len, struct nr_err *err);
/* Writes whole, mode 0644: temporary name in the same folder, fsync, rename, fsync of the folder.
 * Readers see the old file or the new one. A failed fsync is an error, never retried. */
nr_nodiscard nr_status nr_file_write_at(int dir_fd, const char *rel, const void *data, size_t len,
                                        struct nr_err *err);
struct nr_dir_entry {
    char name[256];
    bool is_dir, is_link;
    uint64_t bytes; /* st_size */
    uint64_t inode;
    int64_t mtime_ns;
};
/* Entries of dir_fd sorted by name (bytes), without "." and ".."; *ret is nr_free'd by the caller,
 * NULL when there are none. Symbolic links are listed as themselves (not is_dir). NARU_TOO_LARGE
 * beyond max_entries. */
nr_nodiscard nr_status nr_dir_list(int dir_fd, size_t max_entries, struct nr_dir_entry **ret,
                                   size_t *ret_n, struct nr_err *err);

/* One entry on a walk through a folder and what lies in it. */
struct nr_dir_visit {
    int parent_fd;   /* the folder it lies in; borrowed for the call */
    const char *rel; /* from the walk's folder: "1/model.onnx" */
    const struct nr_dir_entry *entry;
    bool leaving; /* a folder, for the second time: all of it has been visited */
    bool enter;   /* set by the visitor at a folder's first visit; true before */
};
/* Visits everything beneath dir_fd, by name within each folder, with at most max_entries in one of them.
 * Ends with the first visit that does not return NARU_OK, and returns that. NARU_TOO_LARGE: folders
 * are nested more than max_depth (at most NR_DIR_MAX_DEPTH) deep, or paths longer than
 * NR_DIR_MAX_REL. A folder that vanishes meanwhile is an error. */
#define NR_DIR_MAX_DEPTH 16
#define NR_DIR_MAX_REL 4096
nr_nodiscard nr_status nr_dir_walk(int dir_fd, unsigned max_depth, size_t max_entries,
                                   nr_status (*visit)(void *arg, struct nr_dir_visit *v,
                                                      struct nr_err *err),
                                   void *arg, struct nr_err *err);
/* Makes a folder and those on its way, mode 0700; what is there already is left as it is. */
nr_nodiscard nr_status nr_dir_make_at(int dir_fd, const char *rel, struct nr_err *err);
/* [A-Za-z0-9._-]{1,128}, no leading dot. Names of models, versions, files from clients. */
bool nr_name_valid(struct nr_str name);
void nr_close(int fd); /* accepts -1 */
static inline void nr_close_at(int *fd)
{
    nr_close(*fd);
}
#define nr_autoclose nr_cleanup(nr_close_at)

#endif
