/* Parts of the configuration that only src/model/config*.c share. */
#ifndef NR_MODEL_CONFIG_PRIV_H
#define NR_MODEL_CONFIG_PRIV_H

#include "codec/tensor.h"
#include "model/config.h"

/* Options for the plug-in that come from `optimization`; no parameter may look like one. */
#define NR_CONFIG_OPT_PREFIX "naru.opt."
/* Parameter "true" (default) or "false": whether dimensions of one name must be equal. */
#define NR_CONFIG_CHECK_SYMBOLS "naru.check_symbols"
#define NR_CONFIG_LATENCY_TARGET "naru.latency_target_ms"
/* Parameter "auto" (default), "wide" or "narrow": how executions share the cores. */
#define NR_CONFIG_PARALLELISM "naru.parallelism"
/* Name of a plug-in that plans the batches; its own parameters begin with the second one. */
#define NR_CONFIG_BATCH_STRATEGY "naru.batch_strategy"
#define NR_CONFIG_BATCH_STRATEGY_PREFIX "naru.batch_strategy."
#define NR_CONFIG_WATCHDOG "naru.watchdog_ms"

/* Rules that the text alone can break: names, types, dims, reshapes, schedulers, instances.
 * NARU_INVALID, or NARU_UNSUPPORTED for features that this version does not serve. */
nr_nodiscard nr_status nr_config_check(const struct nr_model_config *c, struct nr_err *err);
/* Rules that need the final max_batch_size, inputs and outputs: batch sizes, priorities, warm-up. */
nr_nodiscard nr_status nr_config_check_final(const struct nr_model_config *c, struct nr_err *err);

/* Fills c->sig.shared from the names of the model's dimensions (info may be NULL). After the
 * signature and input_map. NARU_INVALID when configured sizes disagree; NARU_NOMEM. */
nr_nodiscard nr_status nr_config_derive_shared(struct nr_model_config *c,
                                               const naru_model_info *info, struct nr_err *err);

/* Fills c->ignored, before anything is completed: what the file says counts. info: whose options have
 * an effect; may be NULL. NARU_NOMEM. */
nr_nodiscard nr_status nr_config_list_ignored(struct nr_model_config *c,
                                              const naru_model_info *info, struct nr_err *err);

/* Whether it runs other models: then config.ensemble is set after step 1. */
static inline bool nr_config_is_ensemble(const Inference__ModelConfig *pb)
{
    return pb->scheduling_choice_case ==
           INFERENCE__MODEL_CONFIG__SCHEDULING_CHOICE_ENSEMBLE_SCHEDULING;
}

/* --- config_groups.c --- */

/* Rules of instance_group that the text alone can break. */
nr_nodiscard nr_status nr_config_check_groups(const Inference__ModelConfig *pb, struct nr_err *err);
/* Writes what instance_group leaves open into the message. NARU_NOMEM. */
nr_nodiscard nr_status nr_config_default_groups(struct nr_model_config *c, struct nr_err *err);
/* groups, n_instances and priority from the message. */
nr_nodiscard nr_status nr_config_derive_groups(struct nr_model_config *c, struct nr_err *err);

/* --- config_sequence.c --- */

/* Static rules of sequence_batching; NARU_OK when the configuration has none. */
nr_nodiscard nr_status nr_config_check_sequence(const struct nr_model_config *c,
                                                struct nr_err *err);
/* An input (else an output) that clients do not see: a control or state tensor. An output that is
 * listed as one all the same is not meant. */
bool nr_config_is_hidden(const Inference__ModelConfig *pb, const char *name, bool input);
/* Hidden tensors as the plug-in is told of them, appended to io, batch dimension in front when
 * there is one: inputs (else outputs). *n goes up; io NULL counts only. False: no memory. */
bool nr_config_hidden_args(struct nr_model_config *c, bool input, naru_io *io, size_t *n);
/* Writes what sequence_batching leaves open into the message. False: no memory. */
bool nr_config_default_sequence(struct nr_model_config *c);
/* c->sequence from the message, but for its maps. info as in nr_config_complete. */
nr_nodiscard nr_status nr_config_derive_sequence(struct nr_model_config *c,
                                                 const naru_model_info *info, struct nr_err *err);

/* One configured input or output as the plug-in sees it: after reshape, batch dimension in front. */
bool nr_config_make_arg(struct nr_model_config *c, naru_io *io, const char *name, int32_t dtype,
                        size_t rank, const int64_t *dims);
/* A spec of the signature; shapes as configured, the batch dimension is added. */
nr_nodiscard nr_status nr_config_derive_io(const struct nr_model_config *c, struct nr_io_spec *s,
                                           const char *name, int32_t dtype, size_t n_dims,
                                           const int64_t *dims,
                                           const Inference__ModelTensorReshape *reshape,
                                           struct nr_err *err);
/* Ascending copy of preferred_batch_size; NULL: no memory. */
const int32_t *nr_config_sorted(struct nr_model_config *c, const int32_t *sizes, size_t n);
static inline uint64_t nr_config_ns_of_us(uint64_t us)
{
    return us > UINT64_MAX / 1000 ? UINT64_MAX : us * 1000;
}

/* Backend of a platform name, NULL for names that are none. */
const char *nr_config_platform_backend(const char *platform);

/* Memory of the configuration, zeroed; NULL when its limit is reached. */
void *nr_config_array(struct nr_model_config *c, size_t n, size_t size);
/* A copy of text in the configuration's memory; NULL likewise. */
char *nr_config_copy(struct nr_model_config *c, const char *text);
/* A new message of the type; NULL likewise. */
void *nr_config_message(struct nr_model_config *c, const ProtobufCMessageDescriptor *type);
nr_status nr_config_nomem(struct nr_err *err);

/* "[-1,3,224,224]" for an error text; lives to the end of the enclosing block. */
#define SHAPE_TEXT(shape, rank) \
    nr_shape_text((shape), (uint32_t)(rank), (char[NR_SHAPE_TEXT_MAX]){0}, NR_SHAPE_TEXT_MAX)

/* config_ragged.c. After the maps are made: fills c->ragged. */
nr_nodiscard nr_status nr_config_ragged(struct nr_model_config *c, const naru_model_info *info,
                                        struct nr_err *err);
bool nr_config_is_made(const Inference__ModelConfig *pb, const char *name);
bool nr_config_is_scattered(const Inference__ModelConfig *pb, const char *name);
uint32_t nr_config_made_rank(const Inference__BatchInput *in);

#endif
