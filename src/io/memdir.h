/* Private folders in memory: for what must be a file for a while and should never be on a disk.
 *
 * A folder lies beneath a base, mode 0700, named naru-mem-…, and is removed with everything in it by
 * nr_memdir_free. While it is in use its descriptor holds a lock (flock), which ends with the process
 * however that ends; so what a crash left behind is known, and the next process removes it
 * (nr_memdir_sweep). Nothing of it reaches a disk where the base is a tmpfs, but for swap space.
 *
 * Threads: one folder belongs to one thread at a time; nr_memdir_new and _sweep from any thread.
 */
#ifndef NR_IO_MEMDIR_H
#define NR_IO_MEMDIR_H

#include <stdbool.h>

#include "base/status.h"

struct nr_memdir {
    int fd; /* of the folder; -1: none */
    char *path;
    int base_fd;
};
#define NR_MEMDIR_NONE ((struct nr_memdir){.fd = -1, .base_fd = -1})

/* base: a folder, or NULL for the first of /dev/shm and /tmp that can be written. in_memory: the base
 * must be a tmpfs (NARU_UNAVAILABLE when it is none; without a base /tmp is tried too). */
nr_nodiscard nr_status nr_memdir_new(const char *base, bool in_memory, struct nr_memdir *ret,
                                     struct nr_err *err);
/* Removes the folder. Accepts NR_MEMDIR_NONE; *d is that afterwards. */
void nr_memdir_free(struct nr_memdir *d);
/* Removes what processes of this user that are gone have left beneath base (NULL: both of the above).
 * Returns how many folders went. */
unsigned nr_memdir_sweep(const char *base);

#endif
