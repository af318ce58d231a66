/* The graph of an ensemble: which steps there are, what each reads and writes, in which order they
 * can run, and how they fit the models that they name.
 *
 * Made in two parts. nr_ensemble_parse sees the configuration only (step 1 of config.h): every rule
 * that the text alone can break. nr_ensemble_bind sees the members' signatures too, and is repeated
 * for each catalog snapshot (catalog.c), so that a member that was replaced by one of another shape
 * makes the ensemble unavailable with a reason instead of failing requests.
 *
 * Words. A tensor is a name that steps share: an input of the ensemble or what one step writes. A
 * step runs a model of the repository, or is one of naru's own (stepkind.h). Tensors and steps are
 * numbered; numbers are what request code uses.
 *
 * Memory: the graph lives in its configuration's arena, a binding in the arena given. Pure functions
 * but for that; a graph is read-only after nr_ensemble_parse, any thread may read it.
 * Rules and meaning: Triton's ensemble_scheduling.
 */
#ifndef NR_MODEL_ENSEMBLE_H
#define NR_MODEL_ENSEMBLE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/arena.h"
#include "base/status.h"
#include "codec/infer.h"

struct nr_model_config;
struct nr_stepkind;
struct nr_version;

#define NR_ENSEMBLE_MAX_STEPS 256
#define NR_ENSEMBLE_MAX_LINKS 4096 /* entries of all maps of one ensemble */
#define NR_ENSEMBLE_MAX_DEPTH 8    /* ensembles within ensembles */

struct nr_ensemble_link {
    struct nr_str name; /* of the step's model */
    uint32_t tensor;
};
struct nr_ensemble_step {
    const char *model;
    int64_t version;                /* -1: the highest that is ready */
    const struct nr_stepkind *kind; /* one of naru's own steps; NULL: a model */
    uint32_t n_inputs, n_outputs;
    const struct nr_ensemble_link *inputs, *outputs;
};
struct nr_ensemble_tensor {
    const char *name;
    int32_t step;            /* that writes it; -1: an input of the ensemble */
    uint32_t n_reads;        /* by steps */
    const uint32_t *readers; /* [n_reads] steps; one that reads it twice is there twice */
    int32_t output;          /* of the ensemble, by number; -1: none */
};
struct nr_ensemble {
    uint32_t n_steps, n_tensors;
    uint32_t
        max_inflight; /* of a client's request at each step behind a decoupled one; 0: not said */
    const struct nr_ensemble_step *steps;     /* as configured */
    const uint32_t *order;                    /* [n_steps] each behind those that it reads from */
    const struct nr_ensemble_tensor *tensors; /* first the ensemble's inputs, in their order */
    const uint32_t *outputs;                  /* [outputs of the ensemble] the tensor of each */
};

/* What one step is, in one snapshot. */
struct nr_bound {
    uint32_t index;  /* in the member's signature, or of naru's own step */
    uint32_t tensor; /* of the ensemble */
};
struct nr_member {
    struct nr_version *version;     /* NULL: one of naru's own */
    const struct nr_signature *sig; /* of version */
    bool decoupled;                 /* gives none, one or many answers */
    bool stateful;                  /* its answers depend on more than its inputs */
    uint32_t level;                 /* decoupled steps that it comes behind; see below */
    const struct nr_bound *inputs;  /* [n_inputs of the step] ascending by index */
    const struct nr_bound *outputs; /* [n_outputs] ascending by index */
};

/* c->pb is an ensemble: checks it and sets c->ensemble. NARU_INVALID with the step and the tensor,
 * NARU_UNSUPPORTED, NARU_NOMEM. */
nr_nodiscard nr_status nr_ensemble_parse(struct nr_model_config *c, struct nr_err *err);

/* Whether the members fit: names, datatypes, shapes, batch sizes. members[i].version, .sig,
 * .decoupled and .stateful are set for steps that run models (kind NULL); the rest is filled. c is
 * complete.
 *
 * Levels. What a decoupled step writes exists once for each of its answers, and so does everything
 * that is made from it. The level of a step says how many decoupled steps it comes behind; they come
 * one behind the other, so there is one at most in each level. Two of which neither reads what the
 * other makes are refused: nobody knows which of their answers belong together. (Triton refuses
 * them, too, and more: a step that reads from two levels.) */
nr_nodiscard nr_status nr_ensemble_bind(const struct nr_model_config *c, struct nr_arena *a,
                                        struct nr_member *members, struct nr_err *err);

#endif
