/* Memory limits of control groups: the group's own file and those of all groups above it, since each
 * of them ends the process as well as the nearest. In a container with a namespace of its own the path
 * is "/", and the limit is at the root of the mount; with systemd it is some levels deep. Any thread.
 */
#include "base/cgroup.h"

#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "base/str.h"

#define SELF_MAX 4096

/* The whole of a small file, NUL at its end; empty when it cannot be read. */
static struct nr_str read_small(const char *path, char *at, size_t size)
{
    FILE *f = fopen(path, "re");
    size_t len = f != NULL ? fread(at, 1, size - 1, f) : 0;
    if (f != NULL) {
        fclose(f);
    }
    at[len] = '\0';
    return (struct nr_str){at, len};
}

static uint64_t limit_of(const char *mount, const char *tree, struct nr_str group, const char *file)
{
    char path[PATH_MAX], text[32];
    struct nr_str rest;
    uint64_t bytes;
    int n =
        snprintf(path, sizeof path, "%s%s" NR_STR_FMT "/%s", mount, tree, NR_STR_ARG(group), file);
    if (n < 0 || (size_t)n >= sizeof path) {
        return UINT64_MAX;
    }
    struct nr_str line = nr_str_cut(read_small(path, text, sizeof text), '\n', &rest);
    return nr_str_to_u64(line, &bytes) && bytes > 0 ? bytes : UINT64_MAX;
}

static uint64_t limit_upwards(const char *mount, const char *tree, struct nr_str group,
                              const char *file)
{
    uint64_t least = UINT64_MAX;
    for (;;) {
        while (group.len > 0 && group.ptr[group.len - 1] == '/') {
            group.len--;
        }
        least = NR_MIN(least, limit_of(mount, tree, group, file));
        if (group.len == 0) {
            return least;
        }
        while (group.len > 0 && group.ptr[group.len - 1] != '/') {
            group.len--;
        }
    }
}

static bool lists(struct nr_str controllers, const char *name)
{
    while (controllers.len > 0) {
        if (nr_str_is(nr_str_cut(controllers, ',', &controllers), name)) {
            return true;
        }
    }
    return false;
}

uint64_t nr_cgroup_memory_limit(const char *self, const char *mount)
{
    char text[SELF_MAX];
    struct nr_str all =
        self != NULL ? nr_str_from(self) : read_small("/proc/self/cgroup", text, sizeof text);
    uint64_t least = UINT64_MAX;
    mount = mount != NULL ? mount : "/sys/fs/cgroup";
    while (all.len > 0) { /* hierarchy:controllers:/path */
        struct nr_str group, controllers = {0};
        struct nr_str id = nr_str_cut(nr_str_cut(all, '\n', &all), ':', &group);
        controllers = nr_str_cut(group, ':', &group);
        if (nr_str_is(id, "0") && controllers.len == 0) {
            least = NR_MIN(least, limit_upwards(mount, "", group, "memory.max"));
            least = NR_MIN(least, limit_upwards(mount, "/unified", group, "memory.max"));
        } else if (lists(controllers, "memory")) {
            least = NR_MIN(least, limit_upwards(mount, "/memory", group, "memory.limit_in_bytes"));
        }
    }
    return least;
}
