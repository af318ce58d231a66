/* naru-backend-check for repository agents: what any agent must keep to (include/naru/agent.h).
 *
 * Why so: an agent's own business (sums, keys) is its tests' matter. Here it is only led through lives of a
 * model, alone and beside another, and must leave nothing behind: no descriptor, no file, no change
 * of the model's folder. The folder is that of --model, or one made up; --option gives parameters. An
 * agent that refuses the made-up folder without any parameters cannot be led further: skipped.
 */
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backend-check/check.h"
#include "base/map.h"
#include "base/mem.h"
#include "host/agent.h"
#include "io/file.h"
#include "io/memdir.h"

#define LIVES 20

struct stage { /* a model's folder, and a place for private ones */
    struct nr_agents *set;
    struct nr_memdir folder, place;
    int dir_fd;
    const char *path;
    struct nr_str name;
    const naru_option *options;
    uint32_t n_options;
};

static void open_stage(struct stage *s)
{
    struct nr_err err = {0};
    *s = (struct stage){.set = nr_agents_new(),
                        .folder = NR_MEMDIR_NONE,
                        .place = NR_MEMDIR_NONE,
                        .dir_fd = -1,
                        .options = check_cfg.options,
                        .n_options = check_cfg.n_options};
    EXPECT(nr_agents_find_path(s->set, check_cfg.plugin, &s->name, &err) == NARU_OK, "%s",
           err.text);
    const char *slash = strrchr(check_cfg.plugin, '/');
    nr_autofree char *dir =
        slash ? nr_format("%.*s", (int)(slash - check_cfg.plugin + 1), check_cfg.plugin)
              : nr_strdup(".");
    nr_agents_add_dir(s->set, dir);
    EXPECT(nr_memdir_new(NULL, false, &s->place, &err) == NARU_OK &&
               nr_memdir_new(NULL, false, &s->folder, &err) == NARU_OK,
           "%s", err.text);
    nr_agents_set_folder(s->set, s->place.path);
    s->dir_fd = s->folder.fd;
    s->path = s->folder.path;
    if (check_cfg.dir[0] != '\0') {
        s->path = check_cfg.dir;
        EXPECT(nr_dir_open_root(check_cfg.dir, &s->dir_fd, &err) == NARU_OK, "%s", err.text);
    } else {
        EXPECT(nr_dir_make_at(s->dir_fd, "1", &err) == NARU_OK &&
                   nr_file_write_at(s->dir_fd, "1/model.bin", "weights", 7, &err) == NARU_OK &&
                   nr_file_write_at(s->dir_fd, "config.pbtxt", "", 0, &err) == NARU_OK,
               "%s", err.text);
    }
}

static unsigned entries_of(int dir_fd)
{
    nr_autofree struct nr_dir_entry *entries = NULL;
    size_t n = 0;
    EXPECT(nr_dir_list(dir_fd, 10000, &entries, &n, NULL) == NARU_OK, "a folder cannot be listed");
    return (unsigned)n;
}

static void close_stage(struct stage *s)
{
    EXPECT(entries_of(s->place.fd) == 0, "a private folder is left");
    if (s->dir_fd != s->folder.fd) {
        nr_close(s->dir_fd);
    }
    nr_memdir_free(&s->folder);
    nr_memdir_free(&s->place);
    nr_agents_free(s->set);
}

static struct nr_agent_chain *new_chain(const struct stage *s)
{
    struct nr_err err = {0};
    struct nr_agent_chain *c = NULL;
    const struct nr_agent_spec spec = {s->name, s->options, s->n_options};
    struct nr_agent_chain_cfg cfg = {.agents = s->set,
                                     .model = "check",
                                     .path = s->path,
                                     .dir_fd = s->dir_fd,
                                     .specs = &spec,
                                     .n_specs = 1};
    EXPECT(nr_agent_chain_new(&cfg, &c, &err) == NARU_OK, "%s", err.text);
    return c;
}

/* LOAD of a new chain. Without parameters an agent may refuse everything. */
static struct nr_agent_chain *load_chain(const struct stage *s)
{
    struct nr_err err = {0};
    struct nr_agent_chain *c = new_chain(s);
    if (nr_agent_chain_load(c, &err) != NARU_OK) {
        nr_agent_chain_free(c);
        if (check_cfg.n_options == 0) {
            skip("LOAD needs more than this (--option, --model): %s", err.text);
        }
        fail("%s", err.text);
    }
    return c;
}

static void end_chain(struct nr_agent_chain *c)
{
    nr_agent_chain_unload(c);
    nr_agent_chain_unloaded(c);
    nr_agent_chain_free(c);
}

static void live(const struct stage *s)
{
    struct nr_agent_chain *c = load_chain(s);
    nr_agent_chain_loaded(c, true);
    end_chain(c);
}

/* --- checks ----------------------------------------------------------------------------------- */

static void check_load(void)
{
    struct stage s;
    open_stage(&s);
    close_stage(&s);
}

static void check_lives(void)
{
    struct stage s;
    open_stage(&s);
    for (int i = 0; i < 3; i++) {
        live(&s);
    }
    struct nr_agent_chain *c = load_chain(&s);
    nr_agent_chain_loaded(c, false); /* LOAD_FAIL is the end */
    nr_agent_chain_free(c);
    nr_agent_chain_free(new_chain(&s)); /* one that was never loaded */
    close_stage(&s);
}

static void check_beside(void)
{
    struct stage s;
    open_stage(&s);
    struct nr_agent_chain *old = load_chain(&s), *fresh = load_chain(&s);
    nr_agent_chain_loaded(fresh, true);
    nr_agent_chain_loaded(old, true);
    end_chain(old);
    end_chain(fresh);
    close_stage(&s);
}

static void *live_often(void *arg)
{
    for (int i = 0; i < LIVES; i++) {
        live(arg);
    }
    return NULL;
}

static void check_threads(void)
{
    struct stage s;
    pthread_t threads[3];
    open_stage(&s);
    live(&s); /* skips here when it must, not on a thread */
    for (size_t i = 0; i < NR_COUNT(threads); i++) {
        EXPECT(pthread_create(&threads[i], NULL, live_often, &s) == 0, "no thread");
    }
    for (size_t i = 0; i < NR_COUNT(threads); i++) {
        (void)pthread_join(threads[i], NULL);
    }
    close_stage(&s);
}

/* Parameters that nobody meant: an answer is wanted, whichever. */
static void check_options(void)
{
    struct stage s;
    char *large = nr_alloc(100001);
    memset(large, 'x', 100000);
    const naru_option wild[] = {{"", ""},           {"no.such.parameter", "%s%n"},
                                {large, "1"},       {"a", large},
                                {"\xff\xfe", "\n"}, {"../..", "/"}};
    open_stage(&s);
    for (size_t i = 0; i < NR_COUNT(wild); i++) {
        struct nr_err err = {0};
        s.options = &wild[i];
        s.n_options = 1;
        struct nr_agent_chain *c = new_chain(&s);
        nr_status st = nr_agent_chain_load(c, &err);
        EXPECT(st == NARU_OK || strlen(err.text) > sizeof "agent : " + s.name.len,
               "LOAD fails without a text (parameter %zu)", i);
        nr_agent_chain_free(c);
    }
    close_stage(&s);
    nr_free(large);
}

static unsigned open_files(void)
{
    unsigned n = 0;
    DIR *d = opendir("/proc/self/fd");
    while (d && readdir(d)) {
        n++;
    }
    EXPECT(d != NULL, "/proc is not there");
    closedir(d);
    return n;
}

static nr_status mix(void *arg, struct nr_dir_visit *v, struct nr_err *err)
{
    uint64_t *hash = arg;
    const uint64_t parts[] = {*hash, nr_hash(v->rel, strlen(v->rel)), v->entry->bytes,
                              v->entry->inode, (uint64_t)v->entry->mtime_ns};
    (void)err;
    *hash = nr_hash(parts, sizeof parts);
    return NARU_OK;
}

static uint64_t look_of(int dir_fd)
{
    uint64_t hash = 0;
    struct nr_err err = {0};
    EXPECT(nr_dir_walk(dir_fd, 16, 100000, mix, &hash, &err) == NARU_OK, "%s", err.text);
    return hash;
}

static void check_leaves_nothing(void)
{
    struct stage s;
    open_stage(&s);
    live(&s); /* what a library keeps for good is there now */
    unsigned before = open_files();
    uint64_t look = look_of(s.dir_fd);
    for (int i = 0; i < LIVES; i++) {
        live(&s);
        EXPECT(entries_of(s.place.fd) == 0, "a private folder is left");
    }
    EXPECT(open_files() == before, "%u descriptors before, %u after %d lives", before, open_files(),
           LIVES);
    EXPECT(look_of(s.dir_fd) == look, "the model's own folder was changed");
    close_stage(&s);
}

static void check_memory(void)
{
#ifdef NR_ASAN
    skip("AddressSanitizer keeps what is freed");
#endif
    struct stage s;
    open_stage(&s);
    for (int i = 0; i < 2 * LIVES; i++) {
        live(&s);
    }
    int64_t before = resident_bytes();
    for (int i = 0; i < 10 * LIVES; i++) {
        live(&s);
    }
    int64_t grown = resident_bytes() - before;
    EXPECT(grown < 2 << 20, "%d lives grew by %lld KiB", 10 * LIVES, (long long)(grown >> 10));
    close_stage(&s);
}

const struct check agent_checks[] = {
    {"load", "entry, versions, required slots, name", check_load},
    {"lives", "LOAD to UNLOAD_COMPLETE, LOAD_FAIL, and a load that never was", check_lives},
    {"beside", "a reload beside the old load", check_beside},
    {"threads", "several models at once", check_threads},
    {"options", "parameters that nobody meant", check_options},
    {"leaves-nothing", "no descriptor, no folder, no change to the model's own",
     check_leaves_nothing},
    {"memory", "many lives without growing", check_memory},
};
const unsigned agent_check_count = NR_COUNT(agent_checks);
