/* Batching strategies: the server's side of include/naru/batching.h.
 *
 * Found and loaded as other plug-ins are (shelf.h); one strategy object per version of a model. What a
 * strategy answers is checked before anybody acts on it (nr_batching_breach).
 *
 * Threads: a set is changed before its first use only; a strategy is used by one thread at a time.
 */
#ifndef NR_HOST_BATCHING_H
#define NR_HOST_BATCHING_H

#include <stdint.h>

#include "base/status.h"
#include "base/str.h"
#include "naru/batching.h"

#define NR_BATCHING_MAX_WAIT_NS (INT64_C(3600) * 1000000000)

struct nr_batchings;
struct nr_batchings *nr_batchings_new(void);
void nr_batchings_free(struct nr_batchings *set); /* after every strategy; accepts NULL */
void nr_batchings_add_dir(struct nr_batchings *set, const char *path);

struct nr_batching { /* read only for users */
    const naru_batching *api;
    naru_batching_model *model;
};
/* args->struct_size is set here; borrowed for the call. NARU_INVALID, NARU_NOT_FOUND,
 * NARU_UNSUPPORTED, or what the strategy says. */
nr_nodiscard nr_status nr_batching_open(struct nr_batchings *set, struct nr_str name,
                                        const naru_batching_args *args, struct nr_batching *ret,
                                        struct nr_err *err);
void nr_batching_close(struct nr_batching *b); /* accepts one that was never opened ({0}) */
/* The name of the strategy in that file, for programs that check one. */
nr_nodiscard nr_status nr_batchings_find_path(struct nr_batchings *set, const char *path,
                                              struct nr_str *ret_name, struct nr_err *err);
nr_nodiscard nr_status nr_batching_table_check(const naru_batching *api, struct nr_err *err);

/* What is wrong with an answer; NULL: nothing, and *ret_rows is what its batch has. */
const char *nr_batching_breach(const naru_window *w, const naru_choice *c, int64_t *ret_rows);

#endif
