/* Reading /proc/self. The files are one line or a few, so they are read in one go: stdio would
 * allocate a buffer, which is part of what is measured. */
#include "base/footprint.h"

#include <fcntl.h>
#include <unistd.h>

#include "base/str.h"

/* The beginning of a file, as much as fits. */
static struct nr_str read_start(const char *path, char *buf, size_t size)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd >= 0 ? read(fd, buf, size) : -1;
    if (fd >= 0) {
        close(fd);
    }
    return (struct nr_str){buf, n > 0 ? (size_t)n : 0};
}

void nr_footprint_get(struct nr_footprint *ret)
{
    char buf[256];
    struct nr_str rest = read_start("/proc/self/statm", buf, sizeof(buf));
    uint64_t resident = 0, of_files = 0, page = (uint64_t)sysconf(_SC_PAGESIZE);
    (void)nr_str_cut(rest, ' ', &rest); /* address space */
    *ret = (struct nr_footprint){0};
    if (nr_str_to_u64(nr_str_cut(rest, ' ', &rest), &resident) &&
        nr_str_to_u64(nr_str_cut(rest, ' ', &rest), &of_files)) {
        ret->resident_bytes = resident * page;
        ret->own_bytes = resident > of_files ? (resident - of_files) * page : 0;
    }
}

uint64_t nr_footprint_share(void)
{
    char buf[2048];
    struct nr_str rest = read_start("/proc/self/smaps_rollup", buf, sizeof(buf));
    while (rest.ptr != NULL) { /* "Pss:               1234 kB" */
        struct nr_str line = nr_str_cut(rest, '\n', &rest), value;
        uint64_t kib;
        if (nr_str_is(nr_str_cut(line, ':', &value), "Pss")) {
            value = nr_str_cut(nr_str_trim(value), ' ', &line);
            return nr_str_to_u64(value, &kib) ? kib * 1024 : 0;
        }
    }
    return 0;
}
