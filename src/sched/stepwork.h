/* What naru's own pipeline steps do (model/stepkind.h says which there are): tensors in, tensors out.
 *
 * Blocking work of microseconds (if, either, most splits) or milliseconds (pictures); the caller asks
 * nr_stepwork_is_short before it runs one on a loop. A work belongs to one thread at a time.
 */
#ifndef NR_SCHED_STEPWORK_H
#define NR_SCHED_STEPWORK_H

#include "base/arena.h"
#include "base/status.h"
#include "codec/image.h"
#include "codec/infer.h"
#include "model/stepkind.h"

struct nr_stepwork {
    const struct nr_stepkind *kind;
    const struct nr_image_limits *limits;    /* of pictures that are decoded */
    const struct nr_infer_tensor *const *in; /* [inputs of the kind]; NULL: absent, `either` only */
    struct nr_infer_tensor *out; /* [outputs of the kind]; dtype NARU_DTYPE_NONE: none */
    struct nr_arena *arena; /* owns what `out` points to; nothing refers to the inputs' arenas */
};

/* Few enough microseconds for an I/O thread. */
bool nr_stepwork_is_short(const struct nr_stepwork *w);
/* Fills w->out. NARU_INVALID (tensors or pictures that the kind cannot take), NARU_MEDIA_TYPE,
 * NARU_TOO_LARGE, NARU_NOMEM. */
nr_nodiscard nr_status nr_stepwork_run(const struct nr_stepwork *w, struct nr_err *err);

#endif
