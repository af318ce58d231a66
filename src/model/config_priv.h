/* Parts of the configuration that only src/model/config*.c share. */
#ifndef NR_MODEL_CONFIG_PRIV_H
#define NR_MODEL_CONFIG_PRIV_H

#include "codec/tensor.h"
#include "model/config.h"

/* Options for the plug-in that come from `optimization`; no parameter may look like one. */
#define NR_CONFIG_OPT_PREFIX "naru.opt."
/* Parameter "true" (default) or "false": whether dimensions of one name must be equal. */
#define NR_CONFIG_CHECK_SYMBOLS "naru.check_symbols"

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
