/* Finding, loading and checking plug-ins, and the handles of models and instances.
 *
 * Why so: a plug-in is foreign code behind a C table. Everything that it says once (table, model
 * information) is checked here when it is said, so that the rest of the server can rely on it: a
 * wrong table is refused with the name of the field instead of crashing at the first request.
 *
 * Invariants
 *  1. entry->pub.lib is set exactly while entry->refs > 0; both change under set->lock only.
 *  2. A shared object is opened once and never closed: frameworks leave threads, thread-local
 *     destructors and exit handlers behind that would run into unmapped memory.
 *  3. dlopen gets absolute paths only, so neither LD_LIBRARY_PATH nor the current directory decide
 *     which file is loaded.
 *
 * Threads: set->lock covers the list of entries and lib_open/lib_close (opening the same library
 * twice at once would give two states). entry->call serialises calls of NARU_CAP_ONE_THREAD
 * plug-ins; it is taken after set->lock, never before it.
 */
#include "host/plugin.h"

#include <dirent.h>
#include <dlfcn.h>
#include <limits.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/footprint.h"
#include "base/map.h"
#include "base/mem.h"
#include "host/batch.h"
#include "io/file.h"

/* From the folder of the binary to that of the plug-ins once installed; CMake says it exactly. */
#ifndef NR_BACKENDS_FROM_BINARY
#define NR_BACKENDS_FROM_BINARY "../lib/naru/backends"
#endif

#define MAX_IO 4096 /* inputs or outputs of one model; more is taken for a broken table */

struct entry {
    struct nr_plugin pub;
    struct nr_plugins *set;
    struct entry *next;
    unsigned refs;
    pthread_mutex_t call;
};

struct option {
    char *backend, *key, *value;
};

struct nr_plugins {
    pthread_mutex_t lock;
    const char **dirs; /* given ones first, then the two built-in places */
    size_t n_dirs, n_given;
    struct option *options;
    size_t n_options;
    struct entry *entries;
};

static struct entry *entry_of(struct nr_plugin *plugin)
{
    return nr_container_of(plugin, struct entry, pub);
}

/* Serialises calls of plug-ins that ask for it. */
static void call_begin(struct nr_plugin *plugin)
{
    if (plugin->caps & NARU_CAP_ONE_THREAD) {
        pthread_mutex_lock(&entry_of(plugin)->call);
    }
}

static void call_end(struct nr_plugin *plugin)
{
    if (plugin->caps & NARU_CAP_ONE_THREAD) {
        pthread_mutex_unlock(&entry_of(plugin)->call);
    }
}

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

static void dir_insert(struct nr_plugins *set, size_t at, char *path)
{
    set->dirs = nr_realloc(set->dirs, (set->n_dirs + 1) * sizeof *set->dirs);
    memmove(set->dirs + at + 1, set->dirs + at, (set->n_dirs - at) * sizeof *set->dirs);
    set->dirs[at] = path;
    set->n_dirs++;
}

struct nr_plugins *nr_plugins_new(void)
{
    struct nr_plugins *set = nr_new(struct nr_plugins);
    pthread_mutex_init(&set->lock, NULL);
    static const char *const places[] = {"backends", NR_BACKENDS_FROM_BINARY};
    for (size_t i = 0; i < NR_COUNT(places); i++) {
        char *dir = from_binary(places[i]);
        if (dir) {
            dir_insert(set, set->n_dirs, dir);
        }
    }
    return set;
}

void nr_plugins_free(struct nr_plugins *set)
{
    if (!set) {
        return;
    }
    while (set->entries) {
        struct entry *e = set->entries;
        NR_ASSERT(e->refs == 0);
        set->entries = e->next;
        pthread_mutex_destroy(&e->call);
        nr_free((void *)(uintptr_t)e->pub.name);
        nr_free((void *)(uintptr_t)e->pub.path);
        nr_free(e);
    }
    for (size_t i = 0; i < set->n_dirs; i++) {
        nr_free((void *)(uintptr_t)set->dirs[i]);
    }
    for (size_t i = 0; i < set->n_options; i++) {
        nr_free(set->options[i].backend);
        nr_free(set->options[i].key);
        nr_free(set->options[i].value);
    }
    nr_free(set->dirs);
    nr_free(set->options);
    pthread_mutex_destroy(&set->lock);
    nr_free(set);
}

void nr_plugins_add_dir(struct nr_plugins *set, const char *path)
{
    char real[PATH_MAX];
    /* A directory that is not there (yet) stays in the list as given, so that messages name it. */
    dir_insert(set, set->n_given, nr_strdup(realpath(path, real) ? real : path));
    set->n_given++;
}

void nr_plugins_set_option(struct nr_plugins *set, const char *backend, const char *key,
                           const char *value)
{
    for (size_t i = 0; i < set->n_options; i++) {
        struct option *o = &set->options[i];
        if (strcmp(o->backend, backend) == 0 && strcmp(o->key, key) == 0) {
            nr_free(o->value);
            o->value = nr_strdup(value);
            return;
        }
    }
    set->options = nr_realloc(set->options, (set->n_options + 1) * sizeof *set->options);
    set->options[set->n_options++] = (struct option){
        .backend = nr_strdup(backend), .key = nr_strdup(key), .value = nr_strdup(value)};
}

/* ---- checking what a plug-in says -------------------------------------------------------------- */

#define REQUIRED_SLOTS(X) \
    X(lib_open)           \
    X(lib_close)          \
    X(model_open)         \
    X(model_close)        \
    X(model_info)         \
    X(instance_open)      \
    X(instance_close)     \
    X(execute)

nr_status nr_plugin_table_check(const naru_backend *api, struct nr_err *err)
{
    if (!api) {
        return nr_fail(err, NARU_UNSUPPORTED, "%s returned NULL instead of a table",
                       NARU_ENTRY_SYMBOL);
    }
    if (api->struct_size < offsetof(naru_backend, name)) {
        return nr_fail(err, NARU_UNSUPPORTED,
                       "field struct_size is %u: too small to hold even the version fields",
                       api->struct_size);
    }
    if (api->abi_major != NARU_ABI_MAJOR) {
        return nr_fail(err, NARU_UNSUPPORTED,
                       "field abi_major is %u, this server needs %u: build the plug-in against "
                       "this server's include/naru",
                       api->abi_major, NARU_ABI_MAJOR);
    }
#define CHECK_SLOT(slot)                                                                        \
    if (api->struct_size < offsetof(naru_backend, slot) + sizeof api->slot) {                   \
        return nr_fail(err, NARU_UNSUPPORTED,                                                   \
                       "field struct_size is %u: the required slot " #slot " is not within it", \
                       api->struct_size);                                                       \
    }                                                                                           \
    if (!api->slot) {                                                                           \
        return nr_fail(err, NARU_UNSUPPORTED, "the required field " #slot " is NULL");          \
    }
    CHECK_SLOT(name)
    CHECK_SLOT(version)
    REQUIRED_SLOTS(CHECK_SLOT)
#undef CHECK_SLOT
    return NARU_OK;
}

/* A status that a plug-in may return from here; anything else is its mistake. */
static nr_status status_check(nr_status st)
{
    return st > 0 || st == NARU_PENDING || st < NARU_NOT_ACCEPTABLE ? NARU_INTERNAL : st;
}

static nr_status plugin_error(struct nr_err *err, nr_status st, const char *prefix,
                              const char *name, const char *text)
{
    st = status_check(st);
    return nr_fail(err, st, "%s%s: %s", prefix, name, text[0] ? text : nr_status_text(st));
}

static nr_status io_check(const naru_io *io, uint32_t n, const char *what, struct nr_err *err)
{
    if (n > MAX_IO || (n > 0 && !io)) {
        return nr_fail(err, NARU_UNSUPPORTED, "model_info: n_%ss is %u with %s list", what, n,
                       io ? "a" : "no");
    }
    nr_status st = NARU_OK;
    struct nr_map seen;
    nr_map_init(&seen);
    for (uint32_t i = 0; i < n && st == NARU_OK; i++) {
        const char *name = io[i].name;
        if (!name || !name[0]) {
            st = nr_fail(err, NARU_UNSUPPORTED, "model_info: %s %u has no name", what, i);
        } else if (nr_map_put(&seen, nr_str_from(name), &seen)) {
            st = nr_fail(err, NARU_UNSUPPORTED, "model_info: two %ss are named \"%s\"", what, name);
        } else if (!naru_dtype_name(io[i].dtype)) {
            st =
                nr_fail(err, NARU_UNSUPPORTED, "%s \"%s\" has datatype %d, which this server lacks",
                        what, name, io[i].dtype);
        } else if (io[i].rank > NARU_MAX_RANK || (io[i].rank > 0 && !io[i].shape)) {
            st =
                nr_fail(err, NARU_UNSUPPORTED, "%s \"%s\" has %u dimensions; at most %d are served",
                        what, name, io[i].rank, NARU_MAX_RANK);
        }
        for (uint32_t d = 0; st == NARU_OK && d < io[i].rank; d++) {
            if (io[i].shape[d] < -1) {
                st = nr_fail(err, NARU_UNSUPPORTED, "%s \"%s\": dimension %u is %lld", what, name,
                             d, (long long)io[i].shape[d]);
            }
        }
    }
    nr_map_done(&seen);
    return st;
}

static nr_status info_check(const naru_model_info *info, struct nr_err *err)
{
    if (!info) {
        return nr_fail(err, NARU_UNSUPPORTED, "model_info returned NULL");
    }
    size_t need = offsetof(naru_model_info, weight_bytes) + sizeof info->weight_bytes;
    if (info->struct_size < need) {
        return nr_fail(err, NARU_UNSUPPORTED,
                       "model_info: field struct_size is %u, at least %zu expected",
                       info->struct_size, need);
    }
    nr_status st = io_check(info->inputs, info->n_inputs, "input", err);
    return st == NARU_OK ? io_check(info->outputs, info->n_outputs, "output", err) : st;
}

/* ---- finding and loading ----------------------------------------------------------------------- */

/* Adds the names of the plug-ins found in the search path to t: "delay, identity". */
static void names_list(const struct nr_plugins *set, struct nr_text *t)
{
    struct nr_map seen;
    nr_map_init(&seen);
    for (size_t i = 0; i < set->n_dirs; i++) {
        DIR *d = opendir(set->dirs[i]);
        if (!d) {
            continue;
        }
        for (struct dirent *e; (e = readdir(d)) != NULL;) {
            struct nr_str s = nr_str_from(e->d_name);
            if (!nr_str_starts(s, NR_STR("naru-")) || !nr_str_ends(s, NR_STR(".so")) ||
                s.len <= 8) {
                continue;
            }
            struct nr_str name = {s.ptr + 5, s.len - 8};
            if (!nr_map_put(&seen, name, &seen)) {
                nr_text_fmt(t, "%s" NR_STR_FMT, t->len ? ", " : "", NR_STR_ARG(name));
            }
        }
        closedir(d);
    }
    nr_map_done(&seen);
}

static nr_status not_found(const struct nr_plugins *set, const char *name, struct nr_err *err)
{
    /* The text reaches clients in the repository index: names, but none of our directories. */
    struct nr_text found;
    nr_text_init(&found, 200);
    names_list(set, &found);
    nr_status st =
        nr_fail(err, NARU_NOT_FOUND,
                "no backend \"%s\": naru-%s.so is in none of the %zu plug-in directories "
                "(there: %s); --backend-directory adds one",
                name, name, set->n_dirs, found.len ? found.data : "none");
    nr_text_done(&found);
    return st;
}

/* Full path of naru-<name>.so, nr_free'd by the caller, or NULL. */
static char *find(const struct nr_plugins *set, const char *name)
{
    for (size_t i = 0; i < set->n_dirs; i++) {
        char *path = nr_format("%s/naru-%s.so", set->dirs[i], name);
        char *real = realpath(path, NULL);
        nr_free(path);
        if (real) {
            path = nr_strdup(real);
            free(real); /* lint: allow free: of libc, not ours */
            return path;
        }
    }
    return NULL;
}

static nr_status load(const char *path, const char *name, const naru_backend **ret,
                      struct nr_err *err)
{
    void *so = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!so) {
        const char *why = dlerror(); /* NOLINT(concurrency-mt-unsafe): per thread in glibc */
        return nr_fail(err, NARU_UNSUPPORTED, "cannot load backend \"%s\": %s", name,
                       why ? why : "dlopen failed");
    }
    void *symbol = dlsym(so, NARU_ENTRY_SYMBOL);
    nr_status st;
    if (!symbol) {
        st = nr_fail(err, NARU_UNSUPPORTED, "%s is no plug-in of naru: it does not export %s", path,
                     NARU_ENTRY_SYMBOL);
    } else {
        naru_backend_entry_fn entry;
        memcpy(&entry, &symbol, sizeof entry); /* ISO C has no cast from object to function */
        const naru_backend *api = entry();
        st = nr_plugin_table_check(api, err);
        if (st == NARU_OK && strcmp(api->name, name) != 0) {
            st = nr_fail(err, NARU_UNSUPPORTED,
                         "field name says \"%s\", so the file must be naru-%s.so", api->name,
                         api->name);
        }
        if (st == NARU_OK) {
            *ret = api;
            return NARU_OK;
        }
        nr_err_prefix(err, "plug-in %s", path);
    }
    dlclose(so); /* nothing of it has run but the entry */
    return st;
}

static nr_status lib_open(struct nr_plugins *set, struct entry *e, struct nr_err *err)
{
    nr_autofree naru_option *options = nr_new_array(naru_option, set->n_options + 1);
    uint32_t n = 0;
    for (size_t i = 0; i < set->n_options; i++) {
        struct option *o = &set->options[i];
        if (strcmp(o->backend, e->pub.name) == 0) {
            options[n++] = (naru_option){.key = o->key, .value = o->value};
        }
    }
    char buf[NR_ERR_TEXT_MAX] = "";
    naru_text text = {.struct_size = sizeof text, .capacity = sizeof buf, .data = buf};
    naru_backend_lib *lib = NULL;
    nr_status st = e->pub.api->lib_open(&nr_host_table, options, n, &lib, &text);
    if (st != NARU_OK) {
        return plugin_error(err, st, "backend ", e->pub.name, buf);
    }
    e->pub.lib = lib;
    e->pub.version = e->pub.api->version; /* may be known only now */
    return NARU_OK;
}

static nr_status open_locked(struct nr_plugins *set, const char *name, const char *path,
                             struct nr_plugin **ret, struct nr_err *err)
{
    struct nr_footprint before, after;
    nr_footprint_get(&before);
    struct entry *e = set->entries;
    while (e && strcmp(e->pub.path, path) != 0) {
        e = e->next;
    }
    if (!e) {
        const naru_backend *api = NULL;
        nr_status st = load(path, name, &api, err);
        if (st != NARU_OK) {
            return st;
        }
        e = nr_new(struct entry);
        e->pub = (struct nr_plugin){.api = api,
                                    .name = nr_strdup(name),
                                    .path = nr_strdup(path),
                                    .version = api->version,
                                    .caps = api->caps};
        e->set = set;
        pthread_mutex_init(&e->call, NULL);
        e->next = set->entries;
        set->entries = e;
    }
    if (e->refs == 0) {
        nr_status st = lib_open(set, e, err);
        if (st != NARU_OK) {
            return st;
        }
        nr_footprint_get(&after);
        uint64_t grown =
            after.own_bytes > before.own_bytes ? after.own_bytes - before.own_bytes : 0;
        e->pub.once_bytes =
            NR_MAX(e->pub.once_bytes, grown); /* a library that was closed stays mapped */
    }
    e->refs++;
    *ret = &e->pub;
    return NARU_OK;
}

const struct nr_plugin *nr_plugins_opened(struct nr_plugins *set, unsigned i)
{
    pthread_mutex_lock(&set->lock);
    const struct entry *e = set->entries;
    while (e && (e->refs == 0 || i-- > 0)) {
        e = e->next;
    }
    pthread_mutex_unlock(&set->lock);
    return e ? &e->pub : NULL;
}

nr_status nr_plugin_open(struct nr_plugins *set, struct nr_str name, struct nr_plugin **ret,
                         struct nr_err *err)
{
    if (!nr_name_valid(name)) {
        return nr_fail(err, NARU_INVALID,
                       "\"" NR_STR_FMT "\" is no name of a backend: letters, digits, '.', '_' and "
                       "'-' are allowed",
                       NR_STR_ARG(name));
    }
    nr_autofree char *text = nr_format(NR_STR_FMT, NR_STR_ARG(name));
    nr_autofree char *path = find(set, text);
    if (!path) {
        return not_found(set, text, err);
    }
    pthread_mutex_lock(&set->lock);
    nr_status st = open_locked(set, text, path, ret, err);
    pthread_mutex_unlock(&set->lock);
    return st;
}

nr_status nr_plugin_open_path(struct nr_plugins *set, const char *path, struct nr_plugin **ret,
                              struct nr_err *err)
{
    char real[PATH_MAX];
    if (!realpath(path, real)) {
        return nr_fail(err, NARU_NOT_FOUND, "no plug-in at %s", path);
    }
    const char *slash = strrchr(real, '/');
    struct nr_str file = nr_str_from(slash ? slash + 1 : real);
    if (!nr_str_starts(file, NR_STR("naru-")) || !nr_str_ends(file, NR_STR(".so")) ||
        file.len <= 8) {
        return nr_fail(err, NARU_INVALID, "%s: a plug-in's file is named naru-<backend>.so", path);
    }
    nr_autofree char *name = nr_format("%.*s", (int)(file.len - 8), file.ptr + 5);
    pthread_mutex_lock(&set->lock);
    nr_status st = open_locked(set, name, real, ret, err);
    pthread_mutex_unlock(&set->lock);
    return st;
}

static void plugin_ref(struct nr_plugin *plugin)
{
    struct entry *e = entry_of(plugin);
    pthread_mutex_lock(&e->set->lock);
    NR_ASSERT(e->refs > 0);
    e->refs++;
    pthread_mutex_unlock(&e->set->lock);
}

void nr_plugin_unref(struct nr_plugin *plugin)
{
    if (!plugin) {
        return;
    }
    struct entry *e = entry_of(plugin);
    pthread_mutex_lock(&e->set->lock);
    NR_ASSERT(e->refs > 0);
    if (--e->refs == 0) {
        plugin->api->lib_close(plugin->lib);
        plugin->lib = NULL;
    }
    pthread_mutex_unlock(&e->set->lock);
}

/* ---- models and instances ---------------------------------------------------------------------- */

nr_status nr_plugin_model_open(struct nr_plugin *plugin, const naru_model_args *args,
                               struct nr_plugin_model **ret, struct nr_err *err)
{
    naru_model_args a = *args;
    a.struct_size = sizeof a;
    char buf[NR_ERR_TEXT_MAX] = "";
    naru_text text = {.struct_size = sizeof text, .capacity = sizeof buf, .data = buf};
    naru_backend_model *handle = NULL;
    call_begin(plugin);
    nr_status st = plugin->api->model_open(plugin->lib, &a, &handle, &text);
    call_end(plugin);
    if (st != NARU_OK) {
        return plugin_error(err, st, "model ", a.name, buf);
    }
    call_begin(plugin);
    const naru_model_info *info = plugin->api->model_info(handle);
    st = info_check(info, err);
    if (st != NARU_OK) {
        plugin->api->model_close(handle);
        call_end(plugin);
        nr_err_prefix(err, "model %s, backend %s", a.name, plugin->name);
        return st;
    }
    call_end(plugin);
    plugin_ref(plugin);
    struct nr_plugin_model *m = nr_new(struct nr_plugin_model);
    *m = (struct nr_plugin_model){
        .plugin = plugin, .handle = handle, .info = info, .name = nr_strdup(a.name)};
    *ret = m;
    return NARU_OK;
}

void nr_plugin_model_close(struct nr_plugin_model *model)
{
    if (!model) {
        return;
    }
    call_begin(model->plugin);
    model->plugin->api->model_close(model->handle);
    call_end(model->plugin);
    nr_plugin_unref(model->plugin);
    nr_free((void *)(uintptr_t)model->name);
    nr_free(model);
}

uint64_t nr_plugin_model_memory(struct nr_plugin_model *model)
{
    const naru_backend *api = model->plugin->api;
    if (!NARU_HAS(api, naru_backend, model_memory)) {
        return 0;
    }
    call_begin(model->plugin);
    uint64_t bytes = api->model_memory(model->handle);
    call_end(model->plugin);
    return bytes;
}

uint64_t nr_plugin_model_trim(struct nr_plugin_model *model)
{
    const naru_backend *api = model->plugin->api;
    if (!NARU_HAS(api, naru_backend, model_trim)) {
        return 0;
    }
    call_begin(model->plugin);
    uint64_t bytes = api->model_trim(model->handle);
    call_end(model->plugin);
    return bytes;
}

nr_status nr_plugin_model_form(struct nr_plugin_model *model, uint32_t form, bool want,
                               struct nr_err *err)
{
    const naru_backend *api = model->plugin->api;
    char buf[NR_ERR_TEXT_MAX] = "";
    naru_text text = {.struct_size = sizeof text, .capacity = sizeof buf, .data = buf};
    if (!NARU_HAS(api, naru_backend, model_form)) {
        return nr_fail(err, NARU_UNSUPPORTED, "the plug-in knows one form of a model only");
    }
    call_begin(model->plugin);
    nr_status st = api->model_form(model->handle, form, want, &text);
    call_end(model->plugin);
    return st == NARU_OK ? st : plugin_error(err, st, "model ", model->name, buf);
}

nr_status nr_plugin_model_threads(struct nr_plugin_model *model, int32_t threads)
{
    const naru_backend *api = model->plugin->api;
    if (!NARU_HAS(api, naru_backend, thread_budget)) {
        return NARU_UNSUPPORTED;
    }
    call_begin(model->plugin);
    nr_status st = api->thread_budget(model->handle, threads);
    call_end(model->plugin);
    return status_check(st);
}

nr_status nr_plugin_instance_open(struct nr_plugin_model *model, uint32_t index, int32_t device,
                                  struct nr_plugin_instance **ret, struct nr_err *err)
{
    struct nr_plugin *plugin = model->plugin;
    char buf[NR_ERR_TEXT_MAX] = "";
    naru_text text = {.struct_size = sizeof text, .capacity = sizeof buf, .data = buf};
    naru_backend_instance *handle = NULL;
    call_begin(plugin);
    nr_status st = plugin->api->instance_open(model->handle, index, device, &handle, &text);
    call_end(plugin);
    if (st != NARU_OK) {
        return plugin_error(err, st, "model ", model->name, buf);
    }
    struct nr_plugin_instance *i = nr_new(struct nr_plugin_instance);
    *i = (struct nr_plugin_instance){
        .model = model, .handle = handle, .index = index, .device = device};
    *ret = i;
    return NARU_OK;
}

void nr_plugin_instance_close(struct nr_plugin_instance *instance)
{
    if (!instance) {
        return;
    }
    struct nr_plugin *plugin = instance->model->plugin;
    call_begin(plugin);
    plugin->api->instance_close(instance->handle);
    call_end(plugin);
    nr_free(instance);
}

naru_status nr_plugin_execute(struct nr_plugin_instance *instance, naru_batch *batch,
                              naru_text *text)
{
    struct nr_plugin *plugin = instance->model->plugin;
    call_begin(plugin);
    naru_status st = plugin->api->execute(instance->handle, batch, text);
    call_end(plugin);
    return st;
}
