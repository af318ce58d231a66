/* Plug-ins: find naru-<name>.so, load it, check its table, open models and instances through it.
 *
 * Three handles, each keeps the one above it open: plug-in (the library, one per process and
 * name) → model (opened files) → instance (runs one batch at a time; see host/batch.h).
 *
 *   struct nr_plugins *set = nr_plugins_new();
 *   nr_plugins_add_dir(set, "/opt/naru/backends");            --backend-directory, first one wins
 *   nr_plugins_set_option(set, "onnxruntime", "library", …);  --backend-config=onnxruntime,library=…
 *   nr_plugin_open(set, NR_STR("onnxruntime"), &plugin, &err);
 *   nr_plugin_model_open(plugin, &args, &model, &err);        blocks; call it on the pool
 *   nr_plugin_unref(plugin);                                  the model keeps it
 *   nr_plugin_instance_open(model, 0, -1, &instance, &err);
 *
 * The library state (naru_backend::lib_open) is made by the first nr_plugin_open and closed when the
 * last reference goes; the shared object itself stays mapped, since frameworks leave threads and
 * thread-local destructors behind.
 *
 * Threads: all functions may be called from any thread, but the set's options and directories must
 * be complete before the first nr_plugin_open, and one handle is closed once, by its last user.
 * A plug-in with NARU_CAP_ONE_THREAD is called under a lock of its own.
 * Errors: texts name the plug-in, the field or slot that is wrong and what to do; a text of the
 * plug-in itself is passed on behind "model NAME: ".
 */
#ifndef NR_HOST_PLUGIN_H
#define NR_HOST_PLUGIN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "base/str.h"
#include "naru/backend.h"

struct nr_plugins;

struct nr_plugin { /* read only for users */
    const naru_backend *api;
    const char *name;      /* as asked for: "onnxruntime" */
    const char *path;      /* of the shared object, absolute */
    const char *version;   /* of the plug-in and its library */
    uint64_t caps;         /* enum naru_cap */
    naru_backend_lib *lib; /* made by lib_open; NULL while nobody has the plug-in open */
    uint64_t once_bytes;   /* what the process grew by when it was loaded and opened, about: its
                              library's own memory, whatever models it will hold */
};

struct nr_plugin_model { /* read only for users */
    struct nr_plugin *plugin;
    naru_backend_model *handle;
    const naru_model_info
        *info; /* checked: names, datatypes, ranks and pointers can be relied on */
    const char *name;
};

struct nr_plugin_instance { /* read only for users */
    struct nr_plugin_model *model;
    naru_backend_instance *handle;
    uint32_t index;
    int32_t device;
};

/* Searched in this order: directories added by nr_plugins_add_dir, "backends" beside the running
 * binary, the installed library directory. */
struct nr_plugins *nr_plugins_new(void);
void nr_plugins_free(struct nr_plugins *set); /* every plug-in must have been given back before */
void nr_plugins_add_dir(struct nr_plugins *set, const char *path); /* copied */
/* An option of the backend library, given to its lib_open; a later value replaces an earlier. */
void nr_plugins_set_option(struct nr_plugins *set, const char *backend, const char *key,
                           const char *value);

/* *ret is a reference for the caller. NARU_INVALID (bad name), NARU_NOT_FOUND (no such file; the
 * text lists what there is), NARU_UNSUPPORTED (the table does not fit this server), or what the
 * plug-in's lib_open said. On error nothing stays open. */
nr_nodiscard nr_status nr_plugin_open(struct nr_plugins *set, struct nr_str name,
                                      struct nr_plugin **ret, struct nr_err *err);
/* The same for a path, for programs that check a plug-in. */
nr_nodiscard nr_status nr_plugin_open_path(struct nr_plugins *set, const char *path,
                                           struct nr_plugin **ret, struct nr_err *err);
void nr_plugin_unref(struct nr_plugin *plugin); /* accepts NULL */
/* The i-th of those that are open now, NULL behind the last; borrowed, for banners. */
const struct nr_plugin *nr_plugins_opened(struct nr_plugins *set, unsigned i);

/* Numbers of the GPUs that the library can use, at most `most` of them; returns how many. A plug-in that
 * names no devices at all: 0, and *ret_tells false. */
unsigned nr_plugin_gpus(struct nr_plugin *plugin, int32_t *ret, unsigned most, bool *ret_tells);

/* Opens the model's files and reads its inputs and outputs. args->struct_size is set here; all of
 * args is borrowed for the call. The model holds a reference of the plug-in. */
nr_nodiscard nr_status nr_plugin_model_open(struct nr_plugin *plugin, const naru_model_args *args,
                                            struct nr_plugin_model **ret, struct nr_err *err);
void nr_plugin_model_close(struct nr_plugin_model *model); /* accepts NULL; after its instances */
uint64_t nr_plugin_model_memory(struct nr_plugin_model *model); /* bytes held now; 0: not known */
/* Gives back what an idle model keeps for its next execution; the bytes, about. May take long. */
uint64_t nr_plugin_model_trim(struct nr_plugin_model *model);
/* Makes (want) or drops a form of an elastic model (enum naru_form), see naru_backend::model_form. One call at
 * a time for a model; may take long. */
nr_nodiscard nr_status nr_plugin_model_form(struct nr_plugin_model *model, uint32_t form, bool want,
                                            struct nr_err *err);
/* Thread budget of later executions; NARU_UNSUPPORTED when the plug-in has no such slot. */
nr_nodiscard nr_status nr_plugin_model_threads(struct nr_plugin_model *model, int32_t threads);

/* device: -1 CPU. The model must outlive the instance. */
nr_nodiscard nr_status nr_plugin_instance_open(struct nr_plugin_model *model, uint32_t index,
                                               int32_t device, struct nr_plugin_instance **ret,
                                               struct nr_err *err);
void nr_plugin_instance_close(struct nr_plugin_instance *instance); /* accepts NULL */
/* One execution; for host/batch.c, which owns the batch. */
naru_status nr_plugin_execute(struct nr_plugin_instance *instance, naru_batch *batch,
                              naru_text *text);

/* Checks a table against this server (sizes, versions, required slots), naming what is wrong. */
nr_nodiscard nr_status nr_plugin_table_check(const naru_backend *api, struct nr_err *err);

#endif
