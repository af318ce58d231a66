/* A version that runs other models, and naru's own steps, one after another and side by side: the
 * target of an ensemble.
 *
 * A request to it becomes one request per step to the target of the step's model, submitted on the
 * same loop as soon as everything that the step reads is there. So each step is queued, batched with
 * whatever else comes to that model, limited and counted as any request is. Tensors go from step to
 * step by reference.
 *
 * Members are those of the catalog snapshot with which the request came (request.catalog): the next
 * request after a reload sees the new member, a request under way keeps the old one.
 * Each answer of a decoupled member runs what comes behind it; the pipeline's answers, in the order of
 * the member's, go to nr_request.on_answer. At most max_inflight of them (NR_ANSWER_WINDOW when the
 * configuration does not say) are under way or not ended by the consumer in each level.
 * A step's request carries id, priority, time-outs, deadline, sequence flags and parameters of the
 * pipeline's; a cancel reaches the steps under way. The first step that fails, in the order of the
 * answers, ends the request: its status, its text with the step's name in front.
 */
#ifndef NR_SCHED_PIPELINE_H
#define NR_SCHED_PIPELINE_H

#include "base/status.h"
#include "codec/image.h"
#include "io/pool.h"
#include "model/version.h"
#include "sched/counters.h"
#include "sched/request.h"

struct nr_pipeline;

struct nr_pipeline_cfg {
    const struct nr_version *version; /* complete, an ensemble; borrowed for the pipeline's life */
    struct nr_pool *pool;             /* for steps of naru's own that take long */
    struct nr_image_limits images;
    unsigned n_loops;
};
struct nr_pipeline *nr_pipeline_new(const struct nr_pipeline_cfg *cfg);
/* No request may be in flight. Accepts NULL. */
void nr_pipeline_free(struct nr_pipeline *p);
struct nr_target *nr_pipeline_target(struct nr_pipeline *p);
struct nr_counters *nr_pipeline_counters(struct nr_pipeline *p);
unsigned nr_pipeline_running(const struct nr_pipeline *p); /* requests in flight; any thread */

#endif
