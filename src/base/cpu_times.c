/* Reading of processor times; see the header.
 *
 * Only the cores of the affinity mask are summed: what happens on others is no neighbour's doing.
 * Threads end and begin between two readings, so who compares them looks for the same id.
 */
#include "base/cpu_times.h"

#include <dirent.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/cpu.h"

#define MAX_THREADS 1024u
#define STAT_BYTES 65536u

/* The file's first bytes, as many as fit; empty when there is none. */
static struct nr_str read_start(int dir, const char *path, char *to, size_t bytes)
{
    int fd = openat(dir, path, O_RDONLY | O_CLOEXEC);
    ssize_t n = 0, got = 0;
    while (fd >= 0 && (size_t)got < bytes && (n = read(fd, to + got, bytes - (size_t)got)) > 0) {
        got += n;
    }
    if (fd >= 0) {
        close(fd);
    }
    return (struct nr_str){to, (size_t)got};
}

static int64_t ticks_to_ns(uint64_t ticks)
{
    long per_s = sysconf(_SC_CLK_TCK);
    return (int64_t)(ticks * (uint64_t)(NR_S_NS / (per_s > 0 ? per_s : 100)));
}

/* The next number of a line of numbers and single spaces; 0 at its end. */
static uint64_t next_number(struct nr_str *rest)
{
    uint64_t value = 0;
    struct nr_str word = {0};
    while (rest->ptr != NULL && word.len == 0) {
        word = nr_str_cut(*rest, ' ', rest);
    }
    return nr_str_to_u64(word, &value) ? value : 0;
}

/* "cpu3 user nice system idle iowait irq softirq steal …" */
static int64_t busy_of(struct nr_str line)
{
    uint64_t ticks = 0;
    for (unsigned i = 0; i < 8; i++) {
        uint64_t n = next_number(&line);
        ticks += i == 3 || i == 4 ? 0 : n; /* idle, waiting for a disk */
    }
    return ticks_to_ns(ticks);
}

static int64_t read_machine(struct nr_arena *a)
{
    cpu_set_t mask;
    struct nr_str rest =
        read_start(AT_FDCWD, "/proc/stat", nr_arena_alloc(a, STAT_BYTES), STAT_BYTES);
    int64_t sum_ns = 0;
    if (sched_getaffinity(0, sizeof(mask), &mask) != 0) {
        return 0;
    }
    while (rest.ptr != NULL && nr_str_starts(rest, NR_STR("cpu"))) {
        struct nr_str numbers, line = nr_str_cut(rest, '\n', &rest);
        struct nr_str name = nr_str_cut(line, ' ', &numbers);
        uint64_t core;
        if (nr_str_to_u64((struct nr_str){name.ptr + 3, name.len - 3}, &core) &&
            core < CPU_SETSIZE && CPU_ISSET(core, &mask)) {
            sum_ns += busy_of(numbers);
        }
    }
    return sum_ns;
}

/* The number behind a name at the beginning of a line; 0 when there is none. */
static uint64_t status_number(struct nr_str text, struct nr_str name)
{
    while (text.ptr != NULL) {
        struct nr_str value, line = nr_str_cut(text, '\n', &text);
        uint64_t number;
        if (nr_str_eq(nr_str_cut(line, ':', &value), name) && value.ptr != NULL &&
            nr_str_to_u64(nr_str_trim(value), &number)) {
            return number;
        }
    }
    return 0;
}

static void read_switches(int dir, const char *id, struct nr_cpu_thread *ret)
{
    char path[32], text[4096];
    (void)snprintf(path, sizeof(path), "%.16s/status", id);
    struct nr_str s = read_start(dir, path, text, sizeof(text));
    ret->waited = status_number(s, NR_STR("voluntary_ctxt_switches"));
    ret->preempted = status_number(s, NR_STR("nonvoluntary_ctxt_switches"));
}

/* "123 (name) S …": the name may hold anything, the last ')' ends it. */
static bool read_thread(int dir, const char *id, struct nr_cpu_thread *ret)
{
    char path[32], text[512];
    uint64_t number;
    if (!nr_str_to_u64(nr_str_from(id), &number) ||
        snprintf(path, sizeof(path), "%.16s/stat", id) >= (int)sizeof(path)) {
        return false;
    }
    struct nr_str s = read_start(dir, path, text, sizeof(text));
    const char *open = memchr(s.ptr, '(', s.len), *close = memrchr(s.ptr, ')', s.len);
    if (open == NULL || close == NULL || close < open) {
        return false;
    }
    *ret = (struct nr_cpu_thread){.id = (int64_t)number};
    size_t len = NR_MIN((size_t)(close - open - 1), sizeof(ret->name) - 1);
    memcpy(ret->name, open + 1, len);
    struct nr_str rest = {close + 1, s.len - (size_t)(close + 1 - s.ptr)};
    uint64_t ticks = 0;
    for (unsigned i = 0; i < 13; i++) { /* state is the first; utime and stime the 12th and 13th */
        uint64_t n = next_number(&rest);
        ticks += i >= 11 ? n : 0;
    }
    ret->ns = ticks_to_ns(ticks);
    read_switches(dir, id, ret);
    return true;
}

static void read_threads(struct nr_arena *a, struct nr_cpu_times *ret)
{
    DIR *d = opendir("/proc/self/task");
    ret->threads = nr_arena_alloc(a, MAX_THREADS * sizeof(ret->threads[0]));
    const struct dirent *e;
    /* readdir of a stream that only this thread has */
    while (d != NULL && ret->n_threads < MAX_THREADS && (e = readdir(d)) != NULL) {
        ret->n_threads += read_thread(dirfd(d), e->d_name, &ret->threads[ret->n_threads]);
    }
    if (d != NULL) {
        closedir(d);
    }
}

void nr_cpu_sums_read(struct nr_arena *a, int64_t *ret_busy_ns, int64_t *ret_own_ns)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    *ret_own_ns = (u.ru_utime.tv_sec + u.ru_stime.tv_sec) * NR_S_NS +
                  (u.ru_utime.tv_usec + u.ru_stime.tv_usec) * NR_US_NS;
    *ret_busy_ns = read_machine(a);
}

void nr_cpu_times_read(struct nr_arena *a, struct nr_cpu_times *ret)
{
    *ret = (struct nr_cpu_times){.cores = nr_cpu_usable(), .at_ns = nr_clock_now()};
    nr_cpu_sums_read(a, &ret->busy_ns, &ret->own_ns);
    read_threads(a, ret);
}
