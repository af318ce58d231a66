/* Finding and loading plug-ins of all kinds, and the checks that their tables have in common.
 *
 * DESIGN. A plug-in is foreign code behind a C table. Everything that it says once is checked here
 * when it is said, so that the rest of the server can rely on it: a wrong table is refused with the name of
 * the field instead of crashing at the first request. Tables of all kinds begin alike
 * (naru/plugin.h), so one function checks them, given the offsets of the slots that must be set.
 *
 * INVARIANTS
 *  1. dlopen gets absolute paths only, so neither LD_LIBRARY_PATH nor the current directory decide
 *     which file is loaded.
 *  2. Names that come from a configuration are valid names before they become part of a path.
 */
#include "host/shelf.h"

#include <dirent.h>
#include <dlfcn.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/map.h"
#include "base/mem.h"
#include "io/file.h"
#include "naru/agent.h"
#include "naru/backend.h"
#include "naru/batching.h"

/* From the folder of the binary to that of the plug-ins once installed; CMake says it exactly. */
#ifndef NR_BACKENDS_FROM_BINARY
#define NR_BACKENDS_FROM_BINARY "../lib/naru/backends"
#endif

struct nr_shelf_book { /* one that was loaded; its library stays for the life of the process */
    const void *table;
    char *path;
    struct nr_shelf_book *next;
};

/* How all tables begin. */
struct head {
    uint32_t struct_size;
    uint16_t abi_major;
    uint16_t abi_minor;
    const char *name;
    const char *version;
};
_Static_assert(offsetof(naru_backend, version) == offsetof(struct head, version),
               "tables begin alike");
_Static_assert(offsetof(naru_agent, version) == offsetof(struct head, version),
               "tables begin alike");
_Static_assert(offsetof(naru_batching, version) == offsetof(struct head, version),
               "tables begin alike");

static const struct {
    const char *what, *one, *prefix, *symbol, *option;
} kinds[NR_SHELF_KINDS] = {
    [NR_SHELF_BACKEND] = {"backend", "a backend", "naru-", NARU_ENTRY_SYMBOL,
                          "--backend-directory"},
    [NR_SHELF_AGENT] = {"agent", "an agent", "naru-agent-", NARU_AGENT_ENTRY_SYMBOL,
                        "--agent-directory"},
    [NR_SHELF_BATCHING] = {"batching strategy", "a batching strategy", "naru-batching-",
                           NARU_BATCHING_ENTRY_SYMBOL, "--batching-directory"},
};

/* "<directory of the running binary>/<to>": an installed tree may be moved as a whole. */
static char *from_binary(const char *to)
{
    char path[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", path, sizeof path - 1);
    if (n <= 0) {
        return NULL;
    }
    path[n] = 0;
    char *slash = strrchr(path, '/');
    if (!slash) {
        return NULL;
    }
    *slash = 0;
    return nr_format("%s/%s", path, to);
}

static void dir_insert(struct nr_shelf *s, size_t at, char *path)
{
    s->dirs = nr_realloc(s->dirs, (s->n_dirs + 1) * sizeof *s->dirs);
    memmove(s->dirs + at + 1, s->dirs + at, (s->n_dirs - at) * sizeof *s->dirs);
    s->dirs[at] = path;
    s->n_dirs++;
}

void nr_shelf_init(struct nr_shelf *s, enum nr_shelf_kind kind)
{
    static const char *const places[] = {"backends", NR_BACKENDS_FROM_BINARY};
    *s = (struct nr_shelf){.kind = kind};
    pthread_mutex_init(&s->lock, NULL);
    for (size_t i = 0; i < NR_COUNT(places); i++) {
        char *dir = from_binary(places[i]);
        if (dir) {
            dir_insert(s, s->n_dirs, dir);
        }
    }
}

void nr_shelf_done(struct nr_shelf *s)
{
    while (s->books) {
        struct nr_shelf_book *b = s->books;
        s->books = b->next;
        nr_free(b->path);
        nr_free(b);
    }
    pthread_mutex_destroy(&s->lock);
    for (size_t i = 0; i < s->n_dirs; i++) {
        nr_free((void *)(uintptr_t)s->dirs[i]);
    }
    nr_free(s->dirs);
    *s = (struct nr_shelf){.kind = s->kind};
}

void nr_shelf_add_dir(struct nr_shelf *s, const char *path)
{
    char real[PATH_MAX];
    /* A directory that is not there (yet) stays in the list as given, so that messages name it. */
    dir_insert(s, s->n_given, nr_strdup(realpath(path, real) ? real : path));
    s->n_given++;
}

/* --- finding ---------------------------------------------------------------------------------- */

bool nr_shelf_name_of(enum nr_shelf_kind kind, struct nr_str file, struct nr_str *ret)
{
    size_t own = strlen(kinds[kind].prefix);
    if (!nr_str_starts(file, nr_str_from(kinds[kind].prefix)) ||
        !nr_str_ends(file, NR_STR(".so")) || file.len <= own + 3) {
        return false;
    }
    /* of two prefixes that fit, the longer one says what it is */
    for (int k = 0; k < NR_SHELF_KINDS; k++) {
        if (strlen(kinds[k].prefix) > own && nr_str_starts(file, nr_str_from(kinds[k].prefix))) {
            return false;
        }
    }
    *ret = (struct nr_str){file.ptr + own, file.len - own - 3};
    return true;
}

/* Adds the names of the plug-ins found in the search path to t: "delay, identity". */
static void names_list(const struct nr_shelf *s, struct nr_text *t)
{
    struct nr_map seen;
    nr_map_init(&seen);
    for (size_t i = 0; i < s->n_dirs; i++) {
        DIR *d = opendir(s->dirs[i]);
        if (!d) {
            continue;
        }
        for (struct dirent *e; (e = readdir(d)) != NULL;) {
            struct nr_str name;
            if (nr_shelf_name_of(s->kind, nr_str_from(e->d_name), &name) &&
                !nr_map_put(&seen, name, &seen)) {
                nr_text_fmt(t, "%s" NR_STR_FMT, t->len ? ", " : "", NR_STR_ARG(name));
            }
        }
        closedir(d);
    }
    nr_map_done(&seen);
}

/* A plug-in of Triton of that name, where one would look for ours: people who come from there. */
static bool is_triton_agent(const struct nr_shelf *s, const char *name)
{
    bool found = false;
    for (size_t i = 0; i < s->n_dirs && s->kind == NR_SHELF_AGENT && !found; i++) {
        nr_autofree char *deep =
            nr_format("%s/%s/libtritonrepoagent_%s.so", s->dirs[i], name, name);
        nr_autofree char *flat = nr_format("%s/libtritonrepoagent_%s.so", s->dirs[i], name);
        found = access(deep, F_OK) == 0 || access(flat, F_OK) == 0;
    }
    return found;
}

static nr_status not_found(const struct nr_shelf *s, const char *name, struct nr_err *err)
{
    const char *what = kinds[s->kind].what;
    if (is_triton_agent(s, name)) {
        return nr_fail(
            err, NARU_UNSUPPORTED,
            "libtritonrepoagent_%s.so is an agent for Triton, whose interface this server "
            "does not have: build it as naru-agent-%s.so against include/naru/agent.h",
            name, name);
    }
    /* The text reaches clients in the repository index: names, but none of our directories. */
    struct nr_text found;
    nr_text_init(&found, 200);
    names_list(s, &found);
    nr_status st = nr_fail(err, NARU_NOT_FOUND,
                           "no %s \"%s\": %s%s.so is in none of the %zu plug-in directories "
                           "(there: %s); %s adds one",
                           what, name, kinds[s->kind].prefix, name, s->n_dirs,
                           found.len ? found.data : "none", kinds[s->kind].option);
    nr_text_done(&found);
    return st;
}

nr_status nr_shelf_find(const struct nr_shelf *s, struct nr_str name, char **ret,
                        struct nr_err *err)
{
    if (!nr_name_valid(name)) {
        return nr_fail(err, NARU_INVALID,
                       "\"%.*s\" is no name of %s: letters, digits, '.', '_' and '-' are allowed",
                       (int)NR_MIN(name.len, (size_t)128), name.ptr, kinds[s->kind].one);
    }
    nr_autofree char *text = nr_format(NR_STR_FMT, NR_STR_ARG(name));
    for (size_t i = 0; i < s->n_dirs; i++) {
        nr_autofree char *path = nr_format("%s/%s%s.so", s->dirs[i], kinds[s->kind].prefix, text);
        char *real = realpath(path, NULL);
        if (real) {
            *ret = nr_strdup(real);
            free(real); /* lint: allow free: of libc, not ours */
            return NARU_OK;
        }
    }
    return not_found(s, text, err);
}

/* --- tables ----------------------------------------------------------------------------------- */

static const void *pointer_at(const void *table, size_t offset)
{
    const void *p;
    memcpy(&p, (const char *)table + offset, sizeof p); /* functions and strings alike */
    return p;
}

static nr_status check_slot(const struct head *h, const char *name, size_t offset,
                            struct nr_err *err)
{
    if (h->struct_size < offset + sizeof(void *)) {
        return nr_fail(err, NARU_UNSUPPORTED,
                       "field struct_size is %u: the required slot %s is not within it",
                       h->struct_size, name);
    }
    return pointer_at(h, offset)
               ? NARU_OK
               : nr_fail(err, NARU_UNSUPPORTED, "the required field %s is NULL", name);
}

nr_status nr_table_check(const void *table, const struct nr_table_rule *rule, struct nr_err *err)
{
    const struct head *h = table;
    if (!h) {
        return nr_fail(err, NARU_UNSUPPORTED, "%s returned NULL instead of a table",
                       kinds[rule->kind].symbol);
    }
    if (h->struct_size < offsetof(struct head, name)) {
        return nr_fail(err, NARU_UNSUPPORTED,
                       "field struct_size is %u: too small to hold even the version fields",
                       h->struct_size);
    }
    if (h->abi_major != rule->major) {
        return nr_fail(err, NARU_UNSUPPORTED,
                       "field abi_major is %u, this server needs %u: build the plug-in against "
                       "this server's include/naru",
                       h->abi_major, rule->major);
    }
    nr_status st = check_slot(h, "name", offsetof(struct head, name), err);
    if (st == NARU_OK) {
        st = check_slot(h, "version", offsetof(struct head, version), err);
    }
    for (size_t i = 0; i < rule->n_required && st == NARU_OK; i++) {
        st = check_slot(h, rule->required[i].name, rule->required[i].offset, err);
    }
    return st == NARU_OK && rule->check ? rule->check(table, err) : st;
}

/* --- loading ---------------------------------------------------------------------------------- */

nr_status nr_shelf_load(const struct nr_table_rule *rule, const char *path, const char *name,
                        const void **ret, struct nr_err *err)
{
    enum nr_shelf_kind kind = rule->kind;
    void *so = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!so) {
        const char *why = dlerror(); /* NOLINT(concurrency-mt-unsafe): per thread in glibc */
        return nr_fail(err, NARU_UNSUPPORTED, "cannot load %s \"%s\": %s", kinds[kind].what, name,
                       why ? why : "dlopen failed");
    }
    void *symbol = dlsym(so, kinds[kind].symbol);
    if (!symbol) {
        dlclose(so);
        return nr_fail(err, NARU_UNSUPPORTED, "%s is no %s of naru: it does not export %s", path,
                       kind == NR_SHELF_BACKEND ? "plug-in" : kinds[kind].what, kinds[kind].symbol);
    }
    const void *table = rule->call(symbol);
    nr_status st = nr_table_check(table, rule, err);
    const struct head *h = table;
    if (st == NARU_OK && strcmp(h->name, name) != 0) {
        st = nr_fail(err, NARU_UNSUPPORTED, "field name says \"%s\", so the file must be %s%s.so",
                     h->name, kinds[kind].prefix, h->name);
    }
    if (st != NARU_OK) {
        nr_err_prefix(err, "plug-in %s", path);
        dlclose(so); /* nothing of it has run but the entry */
        return st;
    }
    *ret = table;
    return NARU_OK;
}

static nr_status open_path(struct nr_shelf *s, const struct nr_table_rule *rule, const char *path,
                           const char *name, const void **ret, struct nr_err *err)
{
    nr_status st = NARU_OK;
    pthread_mutex_lock(&s->lock);
    struct nr_shelf_book *b = s->books;
    while (b && strcmp(b->path, path) != 0) {
        b = b->next;
    }
    if (!b) {
        const void *table = NULL;
        st = nr_shelf_load(rule, path, name, &table, err);
        if (st == NARU_OK) {
            b = nr_new(struct nr_shelf_book);
            *b = (struct nr_shelf_book){.table = table, .path = nr_strdup(path), .next = s->books};
            s->books = b;
        }
    }
    pthread_mutex_unlock(&s->lock);
    if (b) {
        *ret = b->table;
    }
    return st;
}

nr_status nr_shelf_open(struct nr_shelf *s, const struct nr_table_rule *rule, struct nr_str name,
                        const void **ret, struct nr_err *err)
{
    nr_autofree char *path = NULL;
    nr_status st = nr_shelf_find(s, name, &path, err);
    if (st != NARU_OK) {
        return st;
    }
    nr_autofree char *text = nr_format(NR_STR_FMT, NR_STR_ARG(name));
    return open_path(s, rule, path, text, ret, err);
}

nr_status nr_shelf_open_path(struct nr_shelf *s, const struct nr_table_rule *rule, const char *path,
                             const void **ret, struct nr_err *err)
{
    char real[PATH_MAX];
    struct nr_str found;
    if (!realpath(path, real)) {
        return nr_fail(err, NARU_NOT_FOUND, "no %s at %s", kinds[s->kind].what, path);
    }
    const char *slash = strrchr(real, '/');
    if (!nr_shelf_name_of(s->kind, nr_str_from(slash ? slash + 1 : real), &found)) {
        return nr_fail(err, NARU_INVALID, "%s: the file of %s is named %s<name>.so", path,
                       kinds[s->kind].one, kinds[s->kind].prefix);
    }
    nr_autofree char *name = nr_format(NR_STR_FMT, NR_STR_ARG(found));
    return open_path(s, rule, real, name, ret, err);
}

enum nr_shelf_kind nr_shelf_kind_of(const char *path)
{
    int kind = NR_SHELF_KINDS;
    void *so = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    for (int k = 0; so && k < NR_SHELF_KINDS; k++) {
        kind = dlsym(so, kinds[k].symbol) ? k : kind;
    }
    if (so) {
        dlclose(so);
    }
    return (enum nr_shelf_kind)kind;
}

nr_status nr_plugin_status(nr_status st)
{
    return st > 0 || st == NARU_PENDING || st < NARU_NOT_ACCEPTABLE ? NARU_INTERNAL : st;
}
