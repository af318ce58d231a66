/* The ONNX Runtime plug-in, shared by its files:
 *   onnxruntime.c  the table; finding and opening the library
 *   ort_model.c    a session and what it says of its inputs and outputs
 *   ort_options.c  config.pbtxt parameters → session options
 *   ort_graph.c    a look into the model file, without loading it
 *   ort_run.c      instances and execution
 *   ort_string.c   BYTES ↔ string tensors
 *   ort_gpu.c      GPUs of the machine
 *   ort_threads.c  makes the threads of sessions' own pools
 *   ort_trim.c     memory back from an idle session
 *   ort_forms.c    several sessions of one model over one copy of its weights
 *   ort_books.c    how much memory each session holds
 */
#ifndef NR_BACKENDS_ONNXRUNTIME_ORT_H
#define NR_BACKENDS_ONNXRUNTIME_ORT_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include <onnxruntime_c_api.h>

#include "naru/backend.h"
#include "naru/helper.h"

#define ORT_MAX_PATH 4096
#define ORT_MAX_TEXT 400 /* of what the library says, in bytes */

struct ort_spawner;

struct naru_backend_lib {
    const naru_host *host;
    const OrtApi *api;
    OrtEnv *env;
    OrtMemoryInfo *cpu_memory; /* describes memory of the host for tensors over it */
    OrtAllocator *allocator;   /* the library's default one; never released */
    char version[32];          /* "1.31.1" */
    char **providers;          /* GetAvailableProviders */
    int n_providers;
    int cores;         /* threads of the global pool, the caller's included */
    int spin_us;       /* of pools of single sessions; 0: do not spin */
    bool shared_arena; /* sessions allocate from one arena */
    struct ort_spawner *spawner;
    _Atomic int pool_threads; /* started for pools of single sessions */
    struct ort_books *books;  /* what each model holds */
};

/* What ort_graph_read finds. Zeroed where the file could not be read: then nothing is promised. */
struct ort_graph {
    bool known;              /* the whole file was understood */
    bool control_flow;       /* If, Loop, Scan, SequenceMap, or a function of the model's own */
    uint64_t weight_bytes;   /* initializers, external data included */
    uint64_t external_bytes; /* of them, those in other files */
    uint32_t n_nodes;
    uint32_t n_convolutions; /* and recurrent layers: many operations per weight */
    bool convolves;          /* some of those are convolutions */
};

/* How a session is to run, from parameters and the graph. */
struct ort_threads {
    int intra;    /* threads of an own pool, the caller's included; 0: the global pool */
    int charged;  /* added to lib->pool_threads, to be given back */
    bool elastic; /* a model that computes for long, and nobody said how many threads it has */
};

/* What a model has in the books; written under their lock. */
struct ort_entry {
    naru_backend_model *next, *previous;
    bool listed;
    uint64_t session_bytes; /* of the heap, since the session was made */
    uint64_t outside_bytes; /* weights that are mapped from files, or the store */
    uint64_t form_bytes[NARU_FORMS];
    uint64_t arena_bytes; /* of the arena when the session was made: part of session_bytes */
};

struct ort_value_io { /* one input or output */
    const char *name;
    ONNXTensorElementDataType type;
    int32_t dtype;
    uint32_t rank;
};

struct naru_backend_model {
    struct naru_backend_lib *lib;
    OrtSession *session;
    OrtSession *
        forms[NARU_FORMS]; /* enum naru_form; NULL: not made. That of NARU_FORM_WIDE is `session` */
    struct ort_store *store; /* what they are made from; NULL: there is one form only */
    naru_model_info info;
    struct ort_value_io *ins, *outs;
    naru_io *ios;       /* inputs, then outputs */
    int64_t *dims;      /* of all shapes */
    char **symbols;     /* names of the inputs' dimensions, as naru_model_info has them */
    char *shrink_arena; /* run option memory.enable_memory_arena_shrinkage, or NULL */
    struct ort_threads threads;
    bool open_shapes; /* requests may bring shapes of their own */
    struct ort_entry entry;
    int32_t device;
};

/* Releases st (which may be NULL: NARU_OK) and turns it into a status and a text, from which the
 * server's paths are taken out (`hide`, may be NULL). */
naru_status ort_status(const struct naru_backend_lib *lib, OrtStatus *st, const char *const *hide,
                       unsigned n_hide, naru_text *err);

/* The same for the status of a run, not NULL. Shapes that operators refuse are the client's mistake
 * (NARU_INVALID) where the model leaves any open; the text has the batch's inputs and their shapes. */
naru_status ort_run_status(const naru_backend_model *m, const naru_batch *batch, OrtStatus *st,
                           naru_text *err);

bool ort_has_provider(const struct naru_backend_lib *lib, const char *name);

/* Reads the model file `path` (relative to dir_fd). Never fails: see struct ort_graph. */
void ort_graph_read(int dir_fd, const char *path, struct ort_graph *ret);

/* Options without threads. optimise: as the configuration wants it; false: the graph is run as it is.
 * *ret is the caller's to release. */
naru_status ort_options_plain(struct naru_backend_lib *lib, const naru_model_args *args,
                              bool optimise, OrtSessionOptions **ret, naru_text *err);
/* Threads of the form that is always there; charges lib->pool_threads. */
naru_status ort_options_threads(struct naru_backend_lib *lib, const naru_model_args *args,
                                const struct ort_graph *graph, OrtSessionOptions *so,
                                struct ort_threads *ret, naru_text *err);

/* The optimised model in memory, for several sessions. */
struct ort_store;
bool ort_store_wanted(const struct naru_backend_lib *lib, const naru_model_args *args,
                      const struct ort_graph *graph);
/* Computes for long on several cores of the processor, and nobody said with how many threads. */
bool ort_options_elastic(const struct naru_backend_lib *lib, const naru_model_args *args,
                         const struct ort_graph *graph);
/* *ret is the caller's to free, after all sessions of it. */
naru_status ort_store_open(struct naru_backend_lib *lib, const naru_model_args *args,
                           const char *path, struct ort_store **ret, naru_text *err);
void ort_store_free(const struct naru_backend_lib *lib, struct ort_store *s); /* accepts NULL */
/* Is it an input of the model, or a weight that an old format lists among them? */
bool ort_store_has_input(const struct ort_store *s, const char *name);
uint64_t ort_store_bytes(const struct ort_store *s); /* accepts NULL */
OrtStatus *ort_store_options(const struct naru_backend_lib *lib, const struct ort_store *store,
                             OrtSessionOptions **ret);
OrtStatus *ort_store_session(const struct naru_backend_lib *lib, const struct ort_store *store,
                             const OrtSessionOptions *so, OrtSession **ret);
/* Is what a session of m holds beside the store little enough to have several? */
bool ort_store_shares(const naru_backend_model *m, uint64_t own_bytes);

/* The thread that makes threads; NULL when none can be had. Free accepts NULL, after all sessions. */
struct ort_spawner *ort_spawner_new(void);
void ort_spawner_free(struct ort_spawner *s);
/* Sessions made with `so` get their threads from it. */
OrtStatus *ort_spawner_use(struct ort_spawner *s, const OrtApi *a, OrtSessionOptions *so);
/* Which of naru.opt.* it reads: naru_model_info::used_options. */
const char *const *ort_options_used(const naru_model_args *args);

/* GPUs seen through the driver; 0 where there is none. */
uint32_t ort_gpu_count(void);
naru_status ort_gpu_get(uint32_t index, naru_device_info *ret);

/* ort_model.c, ort_run.c: slots of the table. */
naru_status ort_model_open(naru_backend_lib *lib, const naru_model_args *args,
                           naru_backend_model **ret, naru_text *err);
void ort_model_close(naru_backend_model *model);
const naru_model_info *ort_model_info(naru_backend_model *model);

/* ort_books.c. New: NULL without memory. Free accepts NULL; no model may be left. */
struct ort_books *ort_books_new(void);
void ort_books_free(struct ort_books *b);
/* Makes and forgets a session of nothing, so that what the library sets up with its first one is in
 * nobody's books but its own. */
naru_status ort_books_prime(naru_backend_lib *lib, naru_text *err);
/* A session of m's store, where it has one, else of the file: into m->session and the books. */
OrtStatus *ort_books_create(naru_backend_model *m, const char *path, const OrtSessionOptions *so,
                            uint64_t external_bytes);
/* One of m's other forms: into or out of the books. Not beside itself for one model. */
OrtStatus *ort_books_form_create(naru_backend_model *m, uint32_t form, const OrtSessionOptions *so);
void ort_books_form_remove(naru_backend_model *m, uint32_t form); /* releases it, too */
/* For what takes much of the heap for a while and leaves nothing there: nobody measures meanwhile. */
void ort_books_begin(struct ort_books *b);
void ort_books_end(struct ort_books *b);
void ort_books_remove(naru_backend_model *m); /* before the session is released */
uint64_t ort_model_memory(naru_backend_model *model);
struct ort_arena { /* bytes of a session's arena; 0 where it has none */
    uint64_t held, used;
};
struct ort_arena ort_arena_get(const naru_backend_model *m);
uint64_t ort_model_trim(naru_backend_model *model);
naru_status ort_model_form(naru_backend_model *model, uint32_t form, int32_t want, naru_text *err);
naru_status ort_instance_open(naru_backend_model *model, uint32_t index, int32_t device,
                              naru_backend_instance **ret, naru_text *err);
void ort_instance_close(naru_backend_instance *instance);
naru_status ort_execute(naru_backend_instance *instance, naru_batch *batch, naru_text *err);
void ort_cancel(naru_backend_instance *instance, naru_batch *batch, uint32_t request);

/* A new string tensor of the elements of `t`. NARU_INVALID when their lengths do not add up. */
naru_status ort_string_in(const struct naru_backend_lib *lib, const naru_tensor *t, OrtValue **ret,
                          naru_text *err);
struct ort_scratch { /* kept by an instance between runs */
    size_t *offsets;
    size_t capacity;
};
/* Places output `index` of the batch and writes the elements of `value` there. */
naru_status ort_string_out(const struct naru_backend_lib *lib, const OrtValue *value,
                           naru_batch *batch, uint32_t index, uint32_t rank, const int64_t *shape,
                           struct ort_scratch *scratch, naru_text *err);

#endif
