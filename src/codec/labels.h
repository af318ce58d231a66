/* Class labels: the labels file, and a score tensor → the k best with their names.
 * Pure, any thread. */
#ifndef NR_CODEC_LABELS_H
#define NR_CODEC_LABELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "base/str.h"

#define NR_LABELS_MAX 1000            /* top_k at most */
#define NR_LABELS_MAX_CLASSES 1000000 /* lines of a file */

/* One label per line, line n names class n (Triton's label_filename): LF or CR LF, spaces at the
 * ends dropped, empty lines count but those at the end do not. */
struct nr_labels {
    char *text; /* own copy that items point into */
    struct nr_str *items;
    size_t n_items;
};
nr_nodiscard nr_status nr_labels_parse(struct nr_str file, struct nr_labels *ret,
                                       struct nr_err *err);
void nr_labels_done(struct nr_labels *l); /* accepts {0} */
/* The name, or an empty string when the class has none. l may be NULL. */
struct nr_str nr_labels_get(const struct nr_labels *l, uint32_t index);

struct nr_label_score {
    uint32_t index;
    float score;
};
/* The k largest of n scores (dtype FP32, FP16, BF16, FP64 or an integer type; bytes must be n
 * elements), largest first, the lower index first among equals; NaN comes last. softmax turns all
 * scores into probabilities first (in double, shifted by the maximum). top[k] is the caller's;
 * *ret_n = min(k, n). No allocation. */
nr_nodiscard nr_status nr_labels_top(int32_t dtype, const void *scores, size_t bytes, bool softmax,
                                     uint32_t k, struct nr_label_score *top, uint32_t *ret_n,
                                     struct nr_err *err);

#endif
