/* Where plug-ins of one kind are looked for, and how a file becomes a table.
 *
 *   kind       file                     exports               --…-directory
 *   backend    naru-NAME.so             naru_backend_entry    backend
 *   agent      naru-agent-NAME.so       naru_agent_entry      agent
 *   batching   naru-batching-NAME.so    naru_batching_entry   batching
 *
 * Searched in this order: directories that were added, "backends" beside the running binary, the
 * installed library directory. A shared object is opened once and never closed: libraries leave
 * threads, thread-local destructors and exit handlers behind.
 *
 * Threads: a shelf is changed before its first use only; everything else from any thread.
 */
#ifndef NR_HOST_SHELF_H
#define NR_HOST_SHELF_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>

#include "base/status.h"
#include "base/str.h"

enum nr_shelf_kind {
    NR_SHELF_BACKEND,
    NR_SHELF_AGENT,
    NR_SHELF_BATCHING,
    NR_SHELF_KINDS
};

struct nr_shelf_book;
struct nr_shelf {
    enum nr_shelf_kind kind;
    const char **dirs; /* given ones first, then the two built-in places */
    size_t n_dirs, n_given;
    pthread_mutex_t lock;        /* books; held over dlopen and the entry */
    struct nr_shelf_book *books; /* what nr_shelf_open has loaded */
};

void nr_shelf_init(struct nr_shelf *s, enum nr_shelf_kind kind);
void nr_shelf_done(struct nr_shelf *s);
void nr_shelf_add_dir(struct nr_shelf *s, const char *path); /* copied */
/* Full path of the plug-in's file, nr_free'd by the caller. NARU_INVALID (bad name), NARU_NOT_FOUND:
 * the text lists what there is. */
nr_nodiscard nr_status nr_shelf_find(const struct nr_shelf *s, struct nr_str name, char **ret,
                                     struct nr_err *err);
/* The name within a file's name, e.g. "checksum" of "naru-agent-checksum.so"; false: no plug-in of
 * this kind is named so. */
bool nr_shelf_name_of(enum nr_shelf_kind kind, struct nr_str file, struct nr_str *ret);

/* A table as all kinds have it: sizes, version, and slots that must be set. */
struct nr_table_slot {
    const char *name;
    size_t offset; /* of a pointer */
};
struct nr_table_rule { /* what makes a plug-in of one kind */
    enum nr_shelf_kind kind;
    unsigned major;
    const struct nr_table_slot *required;
    size_t n_required;
    /* Calls the entry at that address by its own type. */
    const void *(*call)(void *entry);
    nr_status (*check)(const void *table, struct nr_err *err); /* and what else; may be NULL */
};
/* NARU_UNSUPPORTED, naming the field that is wrong. table may be NULL. */
nr_nodiscard nr_status nr_table_check(const void *table, const struct nr_table_rule *rule,
                                      struct nr_err *err);
/* Loads the file and checks its table. NARU_UNSUPPORTED. */
nr_nodiscard nr_status nr_shelf_load(const struct nr_table_rule *rule, const char *path,
                                     const char *name, const void **ret, struct nr_err *err);
/* The table of the plug-in of that name, loaded at its first use. Errors of the two above. */
nr_nodiscard nr_status nr_shelf_open(struct nr_shelf *s, const struct nr_table_rule *rule,
                                     struct nr_str name, const void **ret, struct nr_err *err);
/* The same for a file, for programs that check plug-ins. NARU_INVALID: a name of another kind. */
nr_nodiscard nr_status nr_shelf_open_path(struct nr_shelf *s, const struct nr_table_rule *rule,
                                          const char *path, const void **ret, struct nr_err *err);
/* What the file at `path` exports; NR_SHELF_KINDS: nothing of naru, or it cannot be loaded. Runs what
 * the library does when it is loaded. */
enum nr_shelf_kind nr_shelf_kind_of(const char *path);

/* A status that a plug-in may return; NARU_INTERNAL for all others. */
nr_status nr_plugin_status(nr_status st);

#endif
