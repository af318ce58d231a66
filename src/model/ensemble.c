/* The graph of an ensemble: from the configuration's maps to numbers, and against its members.
 *
 * DESIGN. Names are looked up here, once; request code walks arrays of numbers. The order of the
 * steps is found by taking, again and again, those whose tensors are all written (Kahn, 1962); what
 * is left over lies on a cycle or reads something that nobody writes. Both are told apart, because
 * the second is by far the more usual mistake.
 * What needs the members is separate and cheap (a few string comparisons for each tensor): it runs
 * for every snapshot of the catalog, so an ensemble is ready exactly while its members are there
 * and fit.
 *
 * INVARIANTS
 *  1. Tensor t < (inputs of the configuration) is input t; others are written by exactly one step.
 *  2. Every tensor is read by a step or is an output; every step is behind, in `order`, those that
 *     write what it reads.
 *
 * Threads: pure functions of the configuration.
 */
#include "model/ensemble.h"

#include <stdio.h>
#include <stdlib.h>

#include "base/map.h"
#include "model/config_priv.h"
#include "model/stepkind.h"
#include "model/version.h"

/* The proto's map entries are messages of their own types with the same two fields. */
struct pair {
    const char *key, *value;
};

struct graph {
    struct nr_model_config *c;
    const Inference__ModelEnsembling *pb;
    struct nr_ensemble *e;
    struct nr_ensemble_step *steps;
    struct nr_ensemble_tensor *tensors;
    struct nr_map by_name; /* tensor number + 1 */
    uint32_t *order;
    uint32_t *outputs;
};

#define STEP_FMT "step %u (%s \"%.100s\")"
#define STEP_ARG(i, s) (i), (s)->kind ? "own step" : "model", (s)->model

/* --- names to numbers ------------------------------------------------------------------------- */

static struct nr_ensemble_tensor *tensor_of(struct graph *g, const char *name, uint32_t *ret)
{
    struct nr_ensemble_tensor *t = nr_map_get(&g->by_name, nr_str_from(name));
    if (!t) {
        t = &g->tensors[g->e->n_tensors++];
        *t = (struct nr_ensemble_tensor){.name = name, .step = -2, .output = -1};
        (void)nr_map_put(&g->by_name, nr_str_from(name), t);
    }
    *ret = (uint32_t)(t - g->tensors);
    return t;
}

static struct pair pair_of(const Inference__ModelEnsembling__Step *s, bool output, size_t i)
{
    return output ? (struct pair){s->output_map[i]->key, s->output_map[i]->value}
                  : (struct pair){s->input_map[i]->key, s->input_map[i]->value};
}

/* One map of a step. */
static nr_status link_map(struct graph *g, uint32_t i, bool output,
                          const struct nr_ensemble_link **ret, uint32_t *ret_n, struct nr_err *err)
{
    const Inference__ModelEnsembling__Step *pb = g->pb->step[i];
    const struct nr_ensemble_step *s = &g->steps[i];
    const char *map = output ? "output_map" : "input_map";
    size_t n = output ? pb->n_output_map : pb->n_input_map;
    struct nr_ensemble_link *links = nr_config_array(g->c, n, sizeof *links);
    if (!links) {
        return nr_config_nomem(err);
    }
    if (n == 0) {
        return nr_fail(err, NARU_INVALID, STEP_FMT " has no %s: say which tensor %s",
                       STEP_ARG(i, s), map,
                       output ? "each of its outputs becomes" : "each of its inputs gets");
    }
    for (size_t k = 0; k < n; k++) { /* keys are unique: the parser keeps the last of each */
        struct pair p = pair_of(pb, output, k);
        if (p.key[0] == '\0' || p.value[0] == '\0') {
            return nr_fail(err, NARU_INVALID, STEP_FMT ": %s has an empty name", STEP_ARG(i, s),
                           map);
        }
        links[k].name = nr_str_from(p.key);
        struct nr_ensemble_tensor *t = tensor_of(g, p.value, &links[k].tensor);
        if (!output) {
            t->n_reads++;
        } else if (t->step == -1) {
            return nr_fail(err, NARU_INVALID,
                           STEP_FMT " writes tensor \"%.100s\", which is an input of the ensemble",
                           STEP_ARG(i, s), p.value);
        } else if (t->step >= 0) {
            return nr_fail(err, NARU_INVALID,
                           STEP_FMT " writes tensor \"%.100s\", which step %d writes already: a "
                                    "tensor is written once",
                           STEP_ARG(i, s), p.value, t->step);
        } else {
            t->step = (int32_t)i;
        }
    }
    *ret = links;
    *ret_n = (uint32_t)n;
    return NARU_OK;
}

/* Maps of naru's own steps name tensors that the kind has; all inputs, at least one output. */
static nr_status check_own(const struct nr_ensemble_step *s, uint32_t i, struct nr_err *err)
{
    uint32_t n = nr_stepkind_n_inputs(s->kind);
    for (uint32_t k = 0; k < s->n_inputs; k++) {
        if (nr_stepkind_input(s->kind, s->inputs[k].name) < 0) {
            return nr_fail(err, NARU_INVALID,
                           STEP_FMT " has no input \"" NR_STR_FMT "\"; it reads %s", STEP_ARG(i, s),
                           NR_STR_ARG(s->inputs[k].name), nr_stepkind_names(s->kind, false));
        }
    }
    for (uint32_t k = 0; k < s->n_outputs; k++) {
        if (nr_stepkind_output(s->kind, s->outputs[k].name) < 0) {
            return nr_fail(
                err, NARU_INVALID, STEP_FMT " has no output \"" NR_STR_FMT "\"; it writes %s",
                STEP_ARG(i, s), NR_STR_ARG(s->outputs[k].name), nr_stepkind_names(s->kind, true));
        }
    }
    return s->n_inputs == n
               ? NARU_OK
               : nr_fail(err, NARU_INVALID, STEP_FMT " gets %u inputs, it reads %u: %s",
                         STEP_ARG(i, s), s->n_inputs, n, nr_stepkind_names(s->kind, false));
}

static nr_status read_step(struct graph *g, uint32_t i, struct nr_err *err)
{
    const Inference__ModelEnsembling__Step *pb = g->pb->step[i];
    struct nr_ensemble_step *s = &g->steps[i];
    s->model = pb->model_name;
    /* proto3 cannot tell 0 from "not given", and there is no version 0 */
    s->version = pb->model_version == 0 ? -1 : pb->model_version;
    if (pb->model_name[0] == '\0') {
        return nr_fail(err, NARU_INVALID, "step %u has no model_name", i);
    }
    if (s->version < -1) {
        return nr_fail(err, NARU_INVALID,
                       STEP_FMT ": model_version is %lld, give a version from 1 on, or -1 for the "
                                "highest",
                       STEP_ARG(i, s), (long long)s->version);
    }
    if (pb->model_namespace[0] != '\0') {
        return nr_fail(err, NARU_UNSUPPORTED,
                       STEP_FMT ": model_namespace is not served by this version of naru: names of "
                                "models are unique over all repositories; leave it out",
                       STEP_ARG(i, s));
    }
    nr_status st = NARU_OK;
    if (nr_str_starts(nr_str_from(s->model), NR_STR(NR_STEP_PREFIX))) {
        st = nr_stepkind_make(g->c, i, s->model, (uint32_t)NR_MIN(pb->n_input_map, 65535u),
                              (uint32_t)NR_MIN(pb->n_output_map, 65535u), &s->kind, err);
        if (st != NARU_OK) {
            nr_err_prefix(err, "step %u", i);
            return st;
        }
    }
    st = link_map(g, i, false, &s->inputs, &s->n_inputs, err);
    if (st == NARU_OK) {
        st = link_map(g, i, true, &s->outputs, &s->n_outputs, err);
    }
    return st == NARU_OK && s->kind ? check_own(s, i, err) : st;
}

/* --- the order of the steps ------------------------------------------------------------------- */

/* Whether what step i reads is written by steps marked in done, or comes in. */
static bool is_next(const struct graph *g, uint32_t i, const bool *done)
{
    const struct nr_ensemble_step *s = &g->steps[i];
    for (uint32_t k = 0; k < s->n_inputs; k++) {
        int32_t from = g->tensors[s->inputs[k].tensor].step;
        if (from >= 0 && !done[from]) {
            return false;
        }
    }
    return true;
}

/* From a step that never came next, along what it waits for, until a step comes again. */
static nr_status fail_cycle(const struct graph *g, const bool *done, struct nr_err *err)
{
    struct nr_text t;
    char storage[320];
    bool seen[NR_ENSEMBLE_MAX_STEPS] = {false};
    uint32_t at = 0;
    nr_text_init_at(&t, storage, sizeof storage);
    while (done[at]) {
        at++;
    }
    for (int rounds = 0; rounds < 2;
         rounds++) { /* the first finds the circle, the second tells it */
        uint32_t first = at;
        do {
            seen[at] = true;
            if (rounds == 1) {
                nr_text_fmt(&t, "%u → ", at);
            }
            const struct nr_ensemble_step *s = &g->steps[at];
            for (uint32_t k = 0; k < s->n_inputs; k++) {
                int32_t from = g->tensors[s->inputs[k].tensor].step;
                if (from >= 0 && !done[from]) {
                    at = (uint32_t)from;
                    break;
                }
            }
        } while (rounds == 0 ? !seen[at] : at != first);
    }
    return nr_fail(err, NARU_INVALID, "the steps wait for each other in a circle: step %s%u",
                   storage, at);
}

static nr_status find_order(struct graph *g, struct nr_err *err)
{
    bool done[NR_ENSEMBLE_MAX_STEPS] = {false};
    uint32_t n = 0, before;
    do {
        before = n;
        for (uint32_t i = 0; i < g->e->n_steps; i++) {
            if (!done[i] && is_next(g, i, done)) {
                done[i] = true;
                g->order[n++] = i;
            }
        }
    } while (n > before);
    return n == g->e->n_steps ? NARU_OK : fail_cycle(g, done, err);
}

/* --- the configuration's own rules ------------------------------------------------------------ */

static nr_status check_fields(const Inference__ModelConfig *pb, struct nr_err *err)
{
    const char *what = NULL;
    if (pb->backend[0] != '\0') {
        what = "backend";
    } else if (pb->n_instance_group > 0) {
        what = "instance_group";
    } else if (pb->optimization) {
        what = "optimization";
    } else if (pb->n_model_warmup > 0) {
        what = "model_warmup";
    } else if (pb->default_model_filename[0] != '\0') {
        what = "default_model_filename";
    }
    if (what) {
        return nr_fail(err, NARU_INVALID,
                       "an ensemble has no %s: it runs its members, which have their own", what);
    }
    for (size_t i = 0; i < pb->n_input + pb->n_output; i++) {
        bool in = i < pb->n_input;
        size_t k = in ? i : i - pb->n_input;
        if (in ? pb->input[k]->reshape != NULL : pb->output[k]->reshape != NULL) {
            return nr_fail(err, NARU_INVALID,
                           "%s \"%.100s\": an ensemble cannot reshape; let the member do it",
                           in ? "input" : "output", in ? pb->input[k]->name : pb->output[k]->name);
        }
    }
    return NARU_OK;
}

static nr_status check_size(const Inference__ModelConfig *pb, struct nr_err *err)
{
    const Inference__ModelEnsembling *e = pb->ensemble_scheduling;
    size_t n = 0;
    if (e->n_step == 0) {
        return nr_fail(err, NARU_INVALID, "ensemble_scheduling has no step");
    }
    if (e->n_step > NR_ENSEMBLE_MAX_STEPS) {
        return nr_fail(err, NARU_TOO_LARGE,
                       "ensemble_scheduling has %zu steps, at most %d are "
                       "allowed",
                       e->n_step, NR_ENSEMBLE_MAX_STEPS);
    }
    for (size_t i = 0; i < e->n_step; i++) {
        n += e->step[i]->n_input_map + e->step[i]->n_output_map;
    }
    if (n > NR_ENSEMBLE_MAX_LINKS) {
        return nr_fail(err, NARU_TOO_LARGE,
                       "the maps of ensemble_scheduling have %zu entries, at "
                       "most %d are allowed",
                       n, NR_ENSEMBLE_MAX_LINKS);
    }
    if (pb->n_input == 0 || pb->n_output == 0) {
        return nr_fail(err, NARU_INVALID,
                       "an ensemble lists its %s, as %s [ { name: \"x\" data_type: TYPE_FP32 "
                       "dims: [ 3 ] } ]",
                       pb->n_input == 0 ? "inputs" : "outputs",
                       pb->n_input == 0 ? "input" : "output");
    }
    return NARU_OK;
}

/* Everything that is written is used, everything that is used is written. */
static nr_status check_tensors(struct graph *g, struct nr_err *err)
{
    const Inference__ModelConfig *pb = g->c->pb;
    for (uint32_t i = 0; i < g->e->n_steps; i++) {
        for (uint32_t k = 0; k < g->steps[i].n_inputs; k++) {
            const struct nr_ensemble_tensor *t = &g->tensors[g->steps[i].inputs[k].tensor];
            if (t->step == -2) {
                return nr_fail(err, NARU_INVALID,
                               STEP_FMT " reads tensor \"%.100s\", which is no input of the "
                                        "ensemble and which no step writes",
                               STEP_ARG(i, &g->steps[i]), t->name);
            }
        }
    }
    for (size_t i = 0; i < pb->n_output; i++) {
        struct nr_ensemble_tensor *t = nr_map_get(&g->by_name, nr_str_from(pb->output[i]->name));
        if (!t || t->step < 0) {
            return nr_fail(err, NARU_INVALID,
                           "output \"%.100s\" of the ensemble is written by no step%s",
                           pb->output[i]->name, t ? ", it is an input" : "");
        }
        t->output = (int32_t)i;
        g->outputs[i] = (uint32_t)(t - g->tensors);
    }
    for (uint32_t i = 0; i < g->e->n_tensors; i++) {
        const struct nr_ensemble_tensor *t = &g->tensors[i];
        if (t->n_reads == 0 && t->output < 0) {
            return t->step < 0
                       ? nr_fail(err, NARU_INVALID,
                                 "input \"%.100s\" of the ensemble is used by no step", t->name)
                       : nr_fail(err, NARU_INVALID,
                                 "tensor \"%.100s\", which step %d writes, is used by no "
                                 "step and is no output",
                                 t->name, t->step);
        }
    }
    return NARU_OK;
}

/* Parameters of steps that do not exist, or that run models. */
static nr_status check_params(const struct graph *g, struct nr_err *err)
{
    for (size_t i = 0; i < g->c->pb->n_parameters; i++) {
        struct nr_str key = nr_str_from(g->c->pb->parameters[i]->key), rest;
        uint64_t step;
        const size_t len = sizeof NR_STEP_PARAM_PREFIX - 1;
        if (!nr_str_starts(key, NR_STR(NR_STEP_PARAM_PREFIX))) {
            continue;
        }
        struct nr_str number =
            nr_str_cut((struct nr_str){key.ptr + len, key.len - len}, '.', &rest);
        if (!nr_str_to_u64(number, &step) || step >= g->e->n_steps || !g->steps[step].kind) {
            return nr_fail(err, NARU_INVALID,
                           "parameter \"%.150s\": there is no such step of naru's own; steps are "
                           "numbered from 0, as in naru.step.0.size",
                           key.ptr);
        }
    }
    return NARU_OK;
}

static nr_status list_readers(struct graph *g, struct nr_err *err)
{
    uint32_t sum = 0;
    for (uint32_t i = 0; i < g->e->n_tensors; i++) {
        sum += g->tensors[i].n_reads;
    }
    uint32_t *all = nr_config_array(g->c, sum, sizeof *all);
    uint32_t *n = nr_config_array(g->c, g->e->n_tensors, sizeof *n);
    if (!all || !n) {
        return nr_config_nomem(err);
    }
    for (uint32_t i = 0, at = 0; i < g->e->n_tensors; at += g->tensors[i++].n_reads) {
        g->tensors[i].readers = all + at;
        n[i] = at;
    }
    for (uint32_t i = 0; i < g->e->n_steps; i++) {
        for (uint32_t k = 0; k < g->steps[i].n_inputs; k++) {
            all[n[g->steps[i].inputs[k].tensor]++] = i;
        }
    }
    return NARU_OK;
}

static nr_status fill(struct graph *g, struct nr_err *err)
{
    const Inference__ModelConfig *pb = g->c->pb;
    nr_status st = NARU_OK;
    for (size_t i = 0; i < pb->n_input; i++) {
        uint32_t at;
        tensor_of(g, pb->input[i]->name, &at)->step = -1;
    }
    for (uint32_t i = 0; i < g->e->n_steps && st == NARU_OK; i++) {
        st = read_step(g, i, err);
    }
    if (st == NARU_OK) {
        st = check_tensors(g, err);
    }
    if (st == NARU_OK) {
        st = check_params(g, err);
    }
    if (st == NARU_OK) {
        st = list_readers(g, err);
    }
    return st == NARU_OK ? find_order(g, err) : st;
}

nr_status nr_ensemble_parse(struct nr_model_config *c, struct nr_err *err)
{
    const Inference__ModelConfig *pb = c->pb;
    nr_status st = check_fields(pb, err);
    if (st == NARU_OK) {
        st = check_size(pb, err);
    }
    if (st != NARU_OK) {
        return st;
    }
    struct graph g = {.c = c, .pb = pb->ensemble_scheduling};
    size_t n_links = pb->n_input, n_steps = g.pb->n_step;
    for (size_t i = 0; i < n_steps; i++) {
        n_links += g.pb->step[i]->n_input_map + g.pb->step[i]->n_output_map;
    }
    g.e = nr_config_array(c, 1, sizeof *g.e);
    g.steps = nr_config_array(c, n_steps, sizeof *g.steps);
    g.tensors = nr_config_array(c, n_links, sizeof *g.tensors);
    g.order = nr_config_array(c, n_steps, sizeof *g.order);
    g.outputs = nr_config_array(c, pb->n_output, sizeof *g.outputs);
    if (!g.e || !g.steps || !g.tensors || !g.order || !g.outputs) {
        return nr_config_nomem(err);
    }
    g.e->n_steps = (uint32_t)n_steps;
    g.e->max_inflight = g.pb->max_inflight_requests;
    g.e->steps = g.steps;
    g.e->order = g.order;
    g.e->tensors = g.tensors;
    g.e->outputs = g.outputs;
    nr_map_init(&g.by_name);
    st = fill(&g, err);
    nr_map_done(&g.by_name);
    c->ensemble = st == NARU_OK ? g.e : NULL;
    return st;
}

/* --- against the members ---------------------------------------------------------------------- */

struct binding {
    const struct nr_model_config *c;
    const struct nr_ensemble *e;
    struct nr_step_spec *known; /* [n_tensors] as written */
    uint32_t *levels;           /* [n_tensors] */
    int32_t *decoupled;         /* [n_steps] of each level: the decoupled step, or -1 */
    struct nr_arena *arena;     /* for the time of the binding */
};

static struct nr_step_spec spec_of(const struct nr_io_spec *io)
{
    struct nr_step_spec s = {.dtype = io->dtype, .rank = io->rank};
    memcpy(s.shape, io->shape, io->rank * sizeof s.shape[0]);
    return s;
}

static bool fits(const struct nr_step_spec *a, const struct nr_step_spec *b)
{
    if (a->dtype != b->dtype || a->rank != b->rank) {
        return false;
    }
    for (uint32_t i = 0; i < a->rank; i++) {
        if (a->shape[i] != b->shape[i] && a->shape[i] != -1 && b->shape[i] != -1) {
            return false;
        }
    }
    return true;
}

static int32_t find_io(const struct nr_io_spec *ios, unsigned n, struct nr_str name)
{
    for (unsigned i = 0; i < n; i++) {
        if (nr_str_eq(ios[i].name, name)) {
            return (int32_t)i;
        }
    }
    return -1;
}

static nr_status fail_io(uint32_t i, const struct nr_ensemble_step *s, const char *kind,
                         struct nr_str name, const struct nr_io_spec *ios, unsigned n,
                         struct nr_err *err)
{
    struct nr_text t;
    char storage[200];
    nr_text_init_at(&t, storage, sizeof storage);
    for (unsigned k = 0; k < n && t.len < 120; k++) {
        nr_text_fmt(&t, "%s%.60s", k > 0 ? ", " : "", ios[k].name.ptr);
    }
    return nr_fail(err, NARU_INVALID, STEP_FMT " has no %s \"" NR_STR_FMT "\"; the model's %ss: %s",
                   STEP_ARG(i, s), kind, NR_STR_ARG(name), kind, storage);
}

static int by_index(const void *a, const void *b)
{
    uint32_t x = ((const struct nr_bound *)a)->index, y = ((const struct nr_bound *)b)->index;
    return (x > y) - (x < y);
}

static nr_status fail_fit(const struct binding *b, uint32_t i, const char *kind, struct nr_str name,
                          const struct nr_step_spec *wants, uint32_t tensor, struct nr_err *err)
{
    const struct nr_ensemble_step *s = &b->e->steps[i];
    const struct nr_ensemble_tensor *t = &b->e->tensors[tensor];
    const struct nr_step_spec *has = &b->known[tensor];
    char from[48] = "the ensemble's input";
    if (t->step >= 0) {
        (void)snprintf(from, sizeof from, "step %d writes it as", t->step);
    }
    return nr_fail(err, NARU_INVALID,
                   STEP_FMT ": %s \"" NR_STR_FMT "\" is %s %s, but tensor \"%.100s\" is %s %s (%s)",
                   STEP_ARG(i, s), kind, NR_STR_ARG(name), naru_dtype_name(wants->dtype),
                   SHAPE_TEXT(wants->shape, wants->rank), t->name, naru_dtype_name(has->dtype),
                   SHAPE_TEXT(has->shape, has->rank), from);
}

/* A step that runs a model: its inputs against what is written, its outputs into `known`. */
static nr_status bind_model(struct binding *b, uint32_t i, struct nr_member *m, struct nr_bound *in,
                            struct nr_bound *out, struct nr_err *err)
{
    const struct nr_ensemble_step *s = &b->e->steps[i];
    const struct nr_signature *sig = m->sig;
    int64_t batch = NR_MAX(b->c->max_batch_size, 1);
    if (batch > 1 && batch > NR_MAX(sig->max_batch_size, 1)) {
        return nr_fail(err, NARU_INVALID,
                       STEP_FMT " takes at most %lld rows (max_batch_size %lld), the ensemble "
                                "allows %lld",
                       STEP_ARG(i, s), (long long)NR_MAX(sig->max_batch_size, 1),
                       (long long)sig->max_batch_size, (long long)batch);
    }
    for (uint32_t k = 0; k < s->n_inputs; k++) {
        int32_t at = find_io(sig->inputs, sig->n_inputs, s->inputs[k].name);
        uint32_t tensor = s->inputs[k].tensor;
        if (at < 0) {
            return fail_io(i, s, "input", s->inputs[k].name, sig->inputs, sig->n_inputs, err);
        }
        struct nr_step_spec wants = spec_of(&sig->inputs[at]);
        if (!fits(&wants, &b->known[tensor])) {
            return fail_fit(b, i, "input", s->inputs[k].name, &wants, tensor, err);
        }
        if (b->e->tensors[tensor].step < 0 && b->c->sig.inputs[tensor].optional &&
            !sig->inputs[at].optional) {
            return nr_fail(err, NARU_INVALID,
                           STEP_FMT " must have input \"" NR_STR_FMT "\", but the ensemble's input "
                                    "\"%.100s\" is optional",
                           STEP_ARG(i, s), NR_STR_ARG(s->inputs[k].name),
                           b->e->tensors[tensor].name);
        }
        in[k] = (struct nr_bound){(uint32_t)at, tensor};
    }
    for (unsigned k = 0; k < sig->n_inputs; k++) {
        bool there = sig->inputs[k].optional;
        for (uint32_t n = 0; n < s->n_inputs && !there; n++) {
            there = in[n].index == k;
        }
        if (!there) {
            return nr_fail(err, NARU_INVALID,
                           STEP_FMT ": input \"" NR_STR_FMT "\" of the model is not in input_map",
                           STEP_ARG(i, s), NR_STR_ARG(sig->inputs[k].name));
        }
    }
    for (uint32_t k = 0; k < s->n_outputs; k++) {
        int32_t at = find_io(sig->outputs, sig->n_outputs, s->outputs[k].name);
        if (at < 0) {
            return fail_io(i, s, "output", s->outputs[k].name, sig->outputs, sig->n_outputs, err);
        }
        out[k] = (struct nr_bound){(uint32_t)at, s->outputs[k].tensor};
        b->known[s->outputs[k].tensor] = spec_of(&sig->outputs[at]);
    }
    return NARU_OK;
}

static nr_status bind_own(struct binding *b, uint32_t i, struct nr_bound *in, struct nr_bound *out,
                          struct nr_err *err)
{
    const struct nr_ensemble_step *s = &b->e->steps[i];
    struct nr_step_spec *specs = nr_arena_try_array(
        b->arena, s->n_inputs + nr_stepkind_n_outputs(s->kind) + 1, sizeof *specs);
    if (!specs) {
        return nr_config_nomem(err);
    }
    struct nr_step_spec *writes = specs + s->n_inputs;
    for (uint32_t k = 0; k < s->n_inputs; k++) {
        in[k] = (struct nr_bound){(uint32_t)nr_stepkind_input(s->kind, s->inputs[k].name),
                                  s->inputs[k].tensor};
        specs[in[k].index] = b->known[in[k].tensor];
    }
    nr_status st = nr_stepkind_infer(s->kind, specs, writes, err);
    if (st != NARU_OK) {
        nr_err_prefix(err, "step %u", i);
        return st;
    }
    for (uint32_t k = 0; k < s->n_outputs; k++) {
        out[k] = (struct nr_bound){(uint32_t)nr_stepkind_output(s->kind, s->outputs[k].name),
                                   s->outputs[k].tensor};
        b->known[out[k].tensor] = writes[out[k].index];
    }
    return NARU_OK;
}

/* The level of step i and of what it writes; whoever writes its inputs has been here. */
static nr_status bind_level(struct binding *b, uint32_t i, struct nr_member *m, struct nr_err *err)
{
    const struct nr_ensemble_step *s = &b->e->steps[i];
    if (b->c->response_cache && (m->decoupled || m->stateful)) {
        return nr_fail(err, NARU_INVALID,
                       "response_cache cannot be enabled for an ensemble with " STEP_FMT
                       ", which %s: answers would depend on more than the inputs",
                       STEP_ARG(i, s), m->decoupled ? "is decoupled" : "keeps sequences");
    }
    m->level = 0;
    for (uint32_t k = 0; k < s->n_inputs; k++) {
        m->level = NR_MAX(m->level, b->levels[s->inputs[k].tensor]);
    }
    if (m->decoupled) {
        int32_t other = b->decoupled[m->level];
        if (other >= 0) {
            return nr_fail(err, NARU_INVALID,
                           STEP_FMT " and " STEP_FMT
                                    " are both decoupled and neither reads what the other makes: "
                                    "nobody knows which of their answers belong together; put "
                                    "one behind the other",
                           STEP_ARG((uint32_t)other, &b->e->steps[other]), STEP_ARG(i, s));
        }
        b->decoupled[m->level] = (int32_t)i;
    }
    for (uint32_t k = 0; k < s->n_outputs; k++) {
        b->levels[s->outputs[k].tensor] = m->level + m->decoupled;
    }
    return NARU_OK;
}

static nr_status bind_all(struct binding *b, struct nr_arena *a, struct nr_member *members,
                          struct nr_err *err)
{
    const struct nr_model_config *c = b->c;
    const struct nr_ensemble *e = c->ensemble;
    b->known = nr_arena_try_array(b->arena, e->n_tensors, sizeof *b->known);
    b->levels = nr_arena_try_array(b->arena, e->n_tensors, sizeof *b->levels);
    b->decoupled = nr_arena_try_array(b->arena, e->n_steps, sizeof *b->decoupled);
    if (!b->known || !b->levels || !b->decoupled) {
        return nr_config_nomem(err);
    }
    memset(b->decoupled, -1, e->n_steps * sizeof *b->decoupled);
    for (unsigned i = 0; i < c->sig.n_inputs; i++) {
        b->known[i] = spec_of(&c->sig.inputs[i]);
    }
    for (uint32_t n = 0; n < e->n_steps; n++) {
        uint32_t i = e->order[n];
        const struct nr_ensemble_step *s = &e->steps[i];
        struct nr_bound *in = nr_arena_try_array(a, s->n_inputs, sizeof *in);
        struct nr_bound *out = nr_arena_try_array(a, s->n_outputs, sizeof *out);
        if (!in || !out) {
            return nr_config_nomem(err);
        }
        nr_status st =
            s->kind ? bind_own(b, i, in, out, err) : bind_model(b, i, &members[i], in, out, err);
        if (st == NARU_OK) {
            st = bind_level(b, i, &members[i], err);
        }
        if (st != NARU_OK) {
            return st;
        }
        qsort(in, s->n_inputs, sizeof *in, by_index);
        qsort(out, s->n_outputs, sizeof *out, by_index);
        members[i].inputs = in;
        members[i].outputs = out;
    }
    for (unsigned i = 0; i < c->sig.n_outputs; i++) {
        struct nr_step_spec says = spec_of(&c->sig.outputs[i]);
        const struct nr_step_spec *is = &b->known[e->outputs[i]];
        if (!fits(&says, is)) {
            const struct nr_ensemble_tensor *t = &e->tensors[e->outputs[i]];
            return nr_fail(err, NARU_INVALID,
                           "output \"%.100s\" of the ensemble is configured as %s %s, but " STEP_FMT
                           " writes %s %s",
                           t->name, naru_dtype_name(says.dtype), SHAPE_TEXT(says.shape, says.rank),
                           STEP_ARG((unsigned)t->step, &e->steps[t->step]),
                           naru_dtype_name(is->dtype), SHAPE_TEXT(is->shape, is->rank));
        }
    }
    return NARU_OK;
}

nr_status nr_ensemble_bind(const struct nr_model_config *c, struct nr_arena *a,
                           struct nr_member *members, struct nr_err *err)
{
    struct nr_arena scratch;
    nr_arena_init(&scratch, 0);
    struct binding b = {.c = c, .e = c->ensemble, .arena = &scratch};
    nr_status st = bind_all(&b, a, members, err);
    nr_arena_done(&scratch);
    return st;
}
