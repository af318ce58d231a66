/* Opening backends (shelf.h finds and loads them), and the handles of models and instances.
 *
 * Why so: what a plug-in says of a model is checked here when it is said, so that the rest of the
 * server can rely on it.
 *
 * Invariants
 *  1. entry->pub.lib is set exactly while entry->refs > 0; both change under set->lock only.
 *  2. A shared object is opened once and never closed: frameworks leave threads, thread-local
 *     destructors and exit handlers behind that would run into unmapped memory.
 *
 * Threads: set->lock covers the list of entries and lib_open/lib_close (opening the same library
 * twice at once would give two states). entry->call serialises calls of NARU_CAP_ONE_THREAD
 * plug-ins; it is taken after set->lock, never before it.
 */
#include "host/plugin.h"

#include <limits.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/footprint.h"
#include "base/map.h"
#include "base/mem.h"
#include "host/batch.h"
#include "host/shelf.h"

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
    struct nr_shelf shelf;
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

struct nr_plugins *nr_plugins_new(void)
{
    struct nr_plugins *set = nr_new(struct nr_plugins);
    pthread_mutex_init(&set->lock, NULL);
    nr_shelf_init(&set->shelf, NR_SHELF_BACKEND);
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
    for (size_t i = 0; i < set->n_options; i++) {
        nr_free(set->options[i].backend);
        nr_free(set->options[i].key);
        nr_free(set->options[i].value);
    }
    nr_shelf_done(&set->shelf);
    nr_free(set->options);
    pthread_mutex_destroy(&set->lock);
    nr_free(set);
}

void nr_plugins_add_dir(struct nr_plugins *set, const char *path)
{
    nr_shelf_add_dir(&set->shelf, path);
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

#define SLOT(slot) {#slot, offsetof(naru_backend, slot)}
static const struct nr_table_slot required[] = {
    SLOT(lib_open),   SLOT(lib_close),     SLOT(model_open),     SLOT(model_close),
    SLOT(model_info), SLOT(instance_open), SLOT(instance_close), SLOT(execute),
};
#undef SLOT

static const void *call_entry(void *symbol)
{
    naru_backend_entry_fn entry;
    memcpy(&entry, &symbol, sizeof entry); /* ISO C has no cast from object to function */
    return entry();
}

static const struct nr_table_rule backend_rule = {.kind = NR_SHELF_BACKEND,
                                                  .major = NARU_ABI_MAJOR,
                                                  .required = required,
                                                  .n_required = NR_COUNT(required),
                                                  .call = call_entry};

nr_status nr_plugin_table_check(const naru_backend *api, struct nr_err *err)
{
    return nr_table_check(api, &backend_rule, err);
}

static nr_status plugin_error(struct nr_err *err, nr_status st, const char *prefix,
                              const char *name, const char *text)
{
    st = nr_plugin_status(st);
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
        const void *table = NULL;
        nr_status st = nr_shelf_load(&backend_rule, path, name, &table, err);
        if (st != NARU_OK) {
            return st;
        }
        const naru_backend *api = table;
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
    nr_autofree char *path = NULL;
    nr_status st = nr_shelf_find(&set->shelf, name, &path, err);
    if (st != NARU_OK) {
        return st;
    }
    nr_autofree char *text = nr_format(NR_STR_FMT, NR_STR_ARG(name));
    pthread_mutex_lock(&set->lock);
    st = open_locked(set, text, path, ret, err);
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
    struct nr_str found;
    if (!nr_shelf_name_of(NR_SHELF_BACKEND, nr_str_from(slash ? slash + 1 : real), &found)) {
        return nr_fail(err, NARU_INVALID, "%s: a plug-in's file is named naru-<backend>.so", path);
    }
    nr_autofree char *name = nr_format(NR_STR_FMT, NR_STR_ARG(found));
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

unsigned nr_plugin_gpus(struct nr_plugin *plugin, int32_t *ret, unsigned most, bool *ret_tells)
{
    const naru_backend *api = plugin->api;
    unsigned n = 0;
    *ret_tells =
        NARU_HAS(api, naru_backend, device_count) && NARU_HAS(api, naru_backend, device_get);
    if (!*ret_tells) {
        return 0;
    }
    call_begin(plugin);
    uint32_t all = api->device_count(plugin->lib);
    for (uint32_t i = 0; i < all && n < most; i++) {
        naru_device_info info = {.struct_size = sizeof info};
        if (api->device_get(plugin->lib, i, &info) == NARU_OK && info.kind == 1) {
            ret[n++] = info.id;
        }
    }
    call_end(plugin);
    return n;
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
    return nr_plugin_status(st);
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
