/* sequence_batching: its rules, and what request code reads of it.
 *
 * DESIGN. Control and state tensors are the model's but not the clients'. They are left out of the
 * lists that clients see, and stand behind the clients' tensors in a second signature that the
 * scheduler of such a model runs with (nr_sequence_config.sig): so batching, copying and checking
 * need to know nothing of sequences. The shape of a control tensor is one element per request; how
 * many dimensions say so is the model's business.
 *
 * INVARIANTS
 *  1. A hidden name is listed neither among the inputs nor twice; a state's output may be an output
 *     for clients as well, and is then one tensor of both signatures.
 *
 * Threads: as config.c.
 */
#include <stdio.h>

#include "io/file.h"
#include "model/config_priv.h"

#define MAX_HIDDEN 1024 /* control and state tensors of a model */
#define MAX_DELAY_US (UINT64_C(3600) * 1000000)

#define KIND(name) INFERENCE__MODEL_SEQUENCE_BATCHING__CONTROL__KIND__CONTROL_SEQUENCE_##name

static const Inference__ModelSequenceBatching *sequence_of(const Inference__ModelConfig *pb)
{
    return pb->scheduling_choice_case ==
                   INFERENCE__MODEL_CONFIG__SCHEDULING_CHOICE_SEQUENCE_BATCHING
               ? pb->sequence_batching
               : NULL;
}

static bool output_listed(const Inference__ModelConfig *pb, const char *name)
{
    for (size_t i = 0; i < pb->n_output; i++) {
        if (strcmp(pb->output[i]->name, name) == 0) {
            return true;
        }
    }
    return false;
}

bool nr_config_is_hidden(const Inference__ModelConfig *pb, const char *name, bool input)
{
    const Inference__ModelSequenceBatching *s = sequence_of(pb);
    for (size_t i = 0; s && input && i < s->n_control_input; i++) {
        if (strcmp(s->control_input[i]->name, name) == 0) {
            return true;
        }
    }
    for (size_t i = 0; s && i < s->n_state; i++) {
        if (strcmp(input ? s->state[i]->input_name : s->state[i]->output_name, name) == 0) {
            return true;
        }
    }
    return false;
}

/* --- static rules ----------------------------------------------------------------------------- */

static nr_status check_control(const Inference__ModelSequenceBatching__ControlInput *in,
                               struct nr_err *err)
{
    if (in->name[0] == '\0') {
        return nr_fail(err, NARU_INVALID,
                       "sequence_batching: a control_input has no name: give the model's input");
    }
    if (in->n_control != 1) {
        return nr_fail(err, NARU_INVALID,
                       "sequence_batching: control_input \"%.100s\" has %zu controls, a tensor "
                       "carries exactly one",
                       in->name, in->n_control);
    }
    const Inference__ModelSequenceBatching__Control *c = in->control[0];
    size_t n = c->n_int32_false_true + c->n_fp32_false_true + c->n_bool_false_true;
    if (c->kind == KIND(CORRID)) {
        int32_t type = (int32_t)c->data_type;
        if (n > 0) {
            return nr_fail(err, NARU_INVALID,
                           "sequence_batching: control_input \"%.100s\" is a correlation id, which "
                           "takes data_type and no …_false_true",
                           in->name);
        }
        if (type != NARU_UINT64 && type != NARU_INT64 && type != NARU_UINT32 &&
            type != NARU_INT32 && type != NARU_BYTES) {
            return nr_fail(err, NARU_INVALID,
                           "sequence_batching: control_input \"%.100s\" is a correlation id, whose "
                           "data_type is TYPE_UINT64, TYPE_INT64, TYPE_UINT32, TYPE_INT32 or "
                           "TYPE_STRING",
                           in->name);
        }
        return NARU_OK;
    }
    bool two = n == 2 && c->n_int32_false_true != 1 && c->n_fp32_false_true != 1;
    if (!two || (int32_t)c->data_type != NARU_DTYPE_NONE) {
        return nr_fail(err, NARU_INVALID,
                       "sequence_batching: control_input \"%.100s\" needs exactly one of "
                       "int32_false_true, fp32_false_true and bool_false_true with two values, and "
                       "no data_type",
                       in->name);
    }
    return NARU_OK;
}

static nr_status check_initial(const Inference__ModelSequenceBatching__State *s, struct nr_err *err)
{
    if (s->n_initial_state == 0) {
        return NARU_OK;
    }
    const Inference__ModelSequenceBatching__InitialState *i = s->initial_state[0];
    if (s->n_initial_state > 1) {
        return nr_fail(err, NARU_INVALID,
                       "sequence_batching: state \"%.100s\" has %zu initial_state, at most one is "
                       "allowed",
                       s->input_name, s->n_initial_state);
    }
    bool fits = i->data_type == s->data_type && i->n_dims == s->n_dims;
    for (size_t k = 0; k < i->n_dims && fits; k++) {
        fits = i->dims[k] >= 1 && i->dims[k] <= NR_DIM_MAX &&
               (s->dims[k] == -1 || s->dims[k] == i->dims[k]);
    }
    if (!fits) {
        return nr_fail(err, NARU_INVALID,
                       "sequence_batching: initial_state of \"%.100s\" must have the state's "
                       "data_type, and dims within %s without any -1",
                       s->input_name, SHAPE_TEXT(s->dims, s->n_dims));
    }
    bool file = i->state_data_case ==
                INFERENCE__MODEL_SEQUENCE_BATCHING__INITIAL_STATE__STATE_DATA_DATA_FILE;
    if (i->state_data_case ==
            INFERENCE__MODEL_SEQUENCE_BATCHING__INITIAL_STATE__STATE_DATA__NOT_SET ||
        (file && !nr_name_valid(nr_str_from(i->data_file)))) {
        return nr_fail(err, NARU_INVALID,
                       "sequence_batching: initial_state of \"%.100s\" needs zero_data, or "
                       "data_file with the name of a file in the model's folder initial_state",
                       s->input_name);
    }
    return NARU_OK;
}

static nr_status check_state(const Inference__ModelSequenceBatching__State *s, struct nr_err *err)
{
    if (s->input_name[0] == '\0' || s->output_name[0] == '\0') {
        return nr_fail(err, NARU_INVALID,
                       "sequence_batching: a state needs input_name and output_name");
    }
    if ((int32_t)s->data_type == NARU_DTYPE_NONE || s->n_dims == 0 ||
        s->n_dims > NARU_MAX_RANK - 1) {
        return nr_fail(err, NARU_INVALID,
                       "sequence_batching: state \"%.100s\" needs a data_type, and dims of 1 to %d "
                       "entries",
                       s->input_name, NARU_MAX_RANK - 1);
    }
    for (size_t i = 0; i < s->n_dims; i++) {
        if ((s->dims[i] < 1 && s->dims[i] != -1) || s->dims[i] > NR_DIM_MAX) {
            return nr_fail(err, NARU_INVALID,
                           "sequence_batching: state \"%.100s\": dims %s has %lld: a dimension is "
                           "from 1 to %d, or -1 for any size",
                           s->input_name, SHAPE_TEXT(s->dims, s->n_dims), (long long)s->dims[i],
                           NR_DIM_MAX);
        }
    }
    if (s->use_growable_memory && !s->use_same_buffer_for_input_output) {
        return nr_fail(err, NARU_INVALID,
                       "sequence_batching: state \"%.100s\": use_growable_memory needs "
                       "use_same_buffer_for_input_output",
                       s->input_name);
    }
    return check_initial(s, err);
}

/* Names of hidden inputs are unique and no client's; names of state outputs are unique. */
static nr_status check_names(const Inference__ModelConfig *pb,
                             const Inference__ModelSequenceBatching *s, struct nr_err *err)
{
    size_t n_in = s->n_control_input + s->n_state;
    for (size_t i = 0; i < n_in; i++) {
        const char *name = i < s->n_control_input ? s->control_input[i]->name
                                                  : s->state[i - s->n_control_input]->input_name;
        for (size_t k = 0; k < i; k++) {
            const char *other = k < s->n_control_input
                                    ? s->control_input[k]->name
                                    : s->state[k - s->n_control_input]->input_name;
            if (strcmp(name, other) == 0) {
                return nr_fail(err, NARU_INVALID,
                               "sequence_batching: the input \"%.100s\" is named twice", name);
            }
        }
        for (size_t k = 0; k < pb->n_input; k++) {
            if (strcmp(name, pb->input[k]->name) == 0) {
                return nr_fail(err, NARU_INVALID,
                               "sequence_batching: \"%.100s\" is written by the server: leave it "
                               "out of the inputs",
                               name);
            }
        }
    }
    for (size_t i = 0; i < s->n_state; i++) {
        for (size_t k = 0; k < i; k++) {
            if (strcmp(s->state[i]->output_name, s->state[k]->output_name) == 0) {
                return nr_fail(err, NARU_INVALID,
                               "sequence_batching: the output \"%.100s\" is named twice",
                               s->state[i]->output_name);
            }
        }
    }
    return NARU_OK;
}

static nr_status check_kinds(const Inference__ModelSequenceBatching *s, struct nr_err *err)
{
    unsigned seen = 0;
    for (size_t i = 0; i < s->n_control_input; i++) {
        nr_status st = check_control(s->control_input[i], err);
        if (st != NARU_OK) {
            return st;
        }
        unsigned bit = 1u << (unsigned)s->control_input[i]->control[0]->kind;
        if (seen & bit) {
            return nr_fail(err, NARU_INVALID,
                           "sequence_batching: control_input \"%.100s\" repeats a kind of control",
                           s->control_input[i]->name);
        }
        seen |= bit;
    }
    return NARU_OK;
}

static nr_status check_strategy(const Inference__ModelSequenceBatching *s, struct nr_err *err)
{
    bool oldest =
        s->strategy_choice_case == INFERENCE__MODEL_SEQUENCE_BATCHING__STRATEGY_CHOICE_OLDEST;
    bool direct =
        s->strategy_choice_case == INFERENCE__MODEL_SEQUENCE_BATCHING__STRATEGY_CHOICE_DIRECT;
    uint64_t delay = oldest   ? s->oldest->max_queue_delay_microseconds
                     : direct ? s->direct->max_queue_delay_microseconds
                              : 0;
    if (delay > MAX_DELAY_US || s->max_sequence_idle_microseconds > UINT64_C(24) * MAX_DELAY_US) {
        return nr_fail(err, NARU_INVALID,
                       "sequence_batching: max_queue_delay_microseconds is above an hour, or "
                       "max_sequence_idle_microseconds above a day");
    }
    if (oldest && s->oldest->max_candidate_sequences < 0) {
        return nr_fail(err, NARU_INVALID,
                       "sequence_batching: max_candidate_sequences must be 1 or more, found %d",
                       s->oldest->max_candidate_sequences);
    }
    float u = direct ? s->direct->minimum_slot_utilization : 0;
    if (!(u >= 0 && u <= 1)) {
        return nr_fail(err, NARU_INVALID,
                       "sequence_batching: minimum_slot_utilization must be from 0 to 1");
    }
    return NARU_OK;
}

nr_status nr_config_check_sequence(const struct nr_model_config *c, struct nr_err *err)
{
    const Inference__ModelSequenceBatching *s = sequence_of(c->pb);
    if (!s) {
        return NARU_OK;
    }
    if (s->n_control_input + s->n_state > MAX_HIDDEN) {
        return nr_fail(err, NARU_TOO_LARGE,
                       "sequence_batching has more than %d control and state tensors", MAX_HIDDEN);
    }
    if (s->n_state > 0 && c->pb->model_transaction_policy &&
        c->pb->model_transaction_policy->decoupled) {
        return nr_fail(
            err, NARU_UNSUPPORTED,
            "sequence_batching: state of a decoupled model is not served by this version "
            "of naru: let the model keep it by itself, by its correlation id");
    }
    bool ragged = c->pb->n_batch_input > 0 || c->pb->n_batch_output > 0;
    for (size_t i = 0; i < c->pb->n_input; i++) {
        ragged = ragged || c->pb->input[i]->allow_ragged_batch;
    }
    if (ragged) {
        return nr_fail(
            err, NARU_UNSUPPORTED,
            "sequence_batching together with allow_ragged_batch, batch_input or "
            "batch_output is not served by this version of naru: without them, sequences "
            "whose requests differ in shape run one after another");
    }
    nr_status st = check_kinds(s, err);
    for (size_t i = 0; i < s->n_state && st == NARU_OK; i++) {
        st = check_state(s->state[i], err);
    }
    if (st == NARU_OK) {
        st = check_names(c->pb, s, err);
    }
    return st == NARU_OK ? check_strategy(s, err) : st;
}

/* --- what the plug-in is told ----------------------------------------------------------------- */

static int32_t control_dtype(const Inference__ModelSequenceBatching__Control *c)
{
    return c->kind == KIND(CORRID)     ? (int32_t)c->data_type
           : c->n_int32_false_true > 0 ? NARU_INT32
           : c->n_fp32_false_true > 0  ? NARU_FP32
                                       : NARU_BOOL;
}

bool nr_config_hidden_args(struct nr_model_config *c, bool input, naru_io *io, size_t *n)
{
    static const int64_t one[] = {1};
    const Inference__ModelSequenceBatching *s = sequence_of(c->pb);
    bool ok = true;
    for (size_t i = 0; s && input && i < s->n_control_input; i++) {
        const Inference__ModelSequenceBatching__ControlInput *in = s->control_input[i];
        if (io) {
            ok = ok &&
                 nr_config_make_arg(c, &io[*n], in->name, control_dtype(in->control[0]), 1, one);
        }
        (*n)++;
    }
    for (size_t i = 0; s && i < s->n_state; i++) {
        const Inference__ModelSequenceBatching__State *st = s->state[i];
        const char *name = input ? st->input_name : st->output_name;
        if (!input && output_listed(c->pb, name)) {
            continue;
        }
        if (io) {
            ok = ok &&
                 nr_config_make_arg(c, &io[*n], name, (int32_t)st->data_type, st->n_dims, st->dims);
        }
        (*n)++;
    }
    return ok;
}

/* --- defaults --------------------------------------------------------------------------------- */

bool nr_config_default_sequence(struct nr_model_config *c)
{
    if (!sequence_of(c->pb)) {
        return true;
    }
    Inference__ModelSequenceBatching *s = c->pb->sequence_batching;
    if (s->max_sequence_idle_microseconds == 0) {
        s->max_sequence_idle_microseconds = 1000000;
    }
    if (s->strategy_choice_case == INFERENCE__MODEL_SEQUENCE_BATCHING__STRATEGY_CHOICE__NOT_SET) {
        s->direct =
            nr_config_message(c, &inference__model_sequence_batching__strategy_direct__descriptor);
        s->strategy_choice_case = INFERENCE__MODEL_SEQUENCE_BATCHING__STRATEGY_CHOICE_DIRECT;
        return s->direct != NULL;
    }
    return true;
}

/* --- derived fields --------------------------------------------------------------------------- */

static const naru_io *find_io(const naru_io *ios, uint32_t n, const char *name)
{
    for (uint32_t i = 0; i < n; i++) {
        if (strcmp(ios[i].name, name) == 0) {
            return &ios[i];
        }
    }
    return NULL;
}

/* One element per request in as many dimensions as the model's input has. */
static nr_status derive_control(const struct nr_model_config *c, const naru_model_info *info,
                                const Inference__ModelSequenceBatching__ControlInput *from,
                                struct nr_sequence_control *to, struct nr_io_spec *spec,
                                struct nr_err *err)
{
    const Inference__ModelSequenceBatching__Control *control = from->control[0];
    *to = (struct nr_sequence_control){.kind = (enum nr_control_kind)control->kind,
                                       .name = from->name,
                                       .dtype = control_dtype(control)};
    for (size_t v = 0; v < 2; v++) {
        if (control->n_int32_false_true > 0) {
            memcpy(to->value[v], &control->int32_false_true[v], 4);
        } else if (control->n_fp32_false_true > 0) {
            memcpy(to->value[v], &control->fp32_false_true[v], 4);
        } else if (control->n_bool_false_true > 0) {
            to->value[v][0] = control->bool_false_true[v] != 0;
        }
    }
    int64_t ones[NARU_MAX_RANK];
    for (uint32_t i = 0; i < NARU_MAX_RANK; i++) {
        ones[i] = 1;
    }
    const naru_io *io = info ? find_io(info->inputs, info->n_inputs, from->name) : NULL;
    uint32_t rank = 1;
    if (io && io->rank >= (uint32_t)c->batched) {
        rank = io->rank - c->batched;
    }
    return nr_config_derive_io(c, spec, from->name, to->dtype, rank, ones, NULL, err);
}

static nr_status derive_state(struct nr_model_config *c,
                              const Inference__ModelSequenceBatching__State *from,
                              struct nr_sequence_state *to, struct nr_err *err)
{
    const Inference__ModelSequenceBatching__InitialState *initial =
        from->n_initial_state > 0 ? from->initial_state[0] : NULL;
    int64_t *first = nr_config_array(c, from->n_dims, sizeof *first);
    if (!first) {
        return nr_config_nomem(err);
    }
    for (size_t i = 0; i < from->n_dims; i++) {
        first[i] = initial ? initial->dims[i] : from->dims[i] == -1 ? 1 : from->dims[i];
    }
    *to = (struct nr_sequence_state){.input_name = from->input_name,
                                     .output_name = from->output_name,
                                     .dtype = (int32_t)from->data_type,
                                     .rank = (uint32_t)from->n_dims,
                                     .dims = from->dims,
                                     .first = first,
                                     .same_buffer = from->use_same_buffer_for_input_output != 0,
                                     .growable = from->use_growable_memory != 0};
    if (initial && initial->state_data_case ==
                       INFERENCE__MODEL_SEQUENCE_BATCHING__INITIAL_STATE__STATE_DATA_DATA_FILE) {
        to->file = initial->data_file;
    }
    int64_t bytes;
    if (!nr_tensor_bytes(to->dtype, first, to->rank, &bytes)) {
        return nr_fail(err, NARU_TOO_LARGE,
                       "sequence_batching: state \"%.100s\" of shape %s is too large",
                       to->input_name, SHAPE_TEXT(first, to->rank));
    }
    return NARU_OK;
}

static nr_status derive_strategy(struct nr_model_config *c,
                                 const Inference__ModelSequenceBatching *from,
                                 struct nr_sequence_config *to, struct nr_err *err)
{
    to->iterative = from->iterative_sequence != 0;
    to->idle_ns = nr_config_ns_of_us(from->max_sequence_idle_microseconds);
    to->direct =
        from->strategy_choice_case != INFERENCE__MODEL_SEQUENCE_BATCHING__STRATEGY_CHOICE_OLDEST;
    if (to->direct) {
        to->delay_ns = nr_config_ns_of_us(from->direct->max_queue_delay_microseconds);
        to->min_utilization = from->direct->minimum_slot_utilization;
        return NARU_OK;
    }
    const Inference__ModelSequenceBatching__StrategyOldest *o = from->oldest;
    for (size_t i = 0; i < o->n_preferred_batch_size; i++) {
        int32_t size = o->preferred_batch_size[i];
        if (size < 1 || size > NR_MAX(c->max_batch_size, 1)) {
            return nr_fail(err, NARU_INVALID,
                           "sequence_batching: preferred_batch_size has %d, allowed is 1 to "
                           "max_batch_size, which is %d",
                           size, c->max_batch_size);
        }
    }
    to->max_candidates = (uint32_t)o->max_candidate_sequences;
    to->delay_ns = nr_config_ns_of_us(o->max_queue_delay_microseconds);
    to->preserve_ordering = o->preserve_ordering != 0;
    to->n_preferred = (uint32_t)o->n_preferred_batch_size;
    to->preferred = nr_config_sorted(c, o->preferred_batch_size, o->n_preferred_batch_size);
    return to->preferred ? NARU_OK : nr_config_nomem(err);
}

/* The clients' outputs, then the states' that clients do not see. */
static nr_status derive_outputs(struct nr_model_config *c, struct nr_sequence_state *states,
                                uint32_t n_states, struct nr_io_spec *out, unsigned *ret_n,
                                struct nr_err *err)
{
    unsigned n = c->sig.n_outputs;
    for (uint32_t k = 0; k < n_states; k++) {
        struct nr_sequence_state *s = &states[k];
        s->output = 0;
        while (s->output < c->sig.n_outputs && !nr_str_is(out[s->output].name, s->output_name)) {
            s->output++;
        }
        if (s->output < c->sig.n_outputs) {
            if (out[s->output].reshaped) {
                return nr_fail(err, NARU_INVALID,
                               "sequence_batching: output \"%.100s\" is a state, and then takes no "
                               "reshape",
                               s->output_name);
            }
            continue;
        }
        s->output = n;
        nr_status st = nr_config_derive_io(c, &out[n++], s->output_name, s->dtype, s->rank, s->dims,
                                           NULL, err);
        if (st != NARU_OK) {
            return st;
        }
    }
    *ret_n = n;
    return NARU_OK;
}

nr_status nr_config_derive_sequence(struct nr_model_config *c, const naru_model_info *info,
                                    struct nr_err *err)
{
    const Inference__ModelSequenceBatching *from = sequence_of(c->pb);
    if (!from) {
        return NARU_OK;
    }
    unsigned n_in = c->sig.n_inputs, n_out = c->sig.n_outputs;
    struct nr_sequence_config *seq = nr_config_array(c, 1, sizeof *seq);
    struct nr_sequence_control *controls =
        nr_config_array(c, from->n_control_input, sizeof *controls);
    struct nr_sequence_state *states = nr_config_array(c, from->n_state, sizeof *states);
    struct nr_io_spec *in =
        nr_config_array(c, n_in + from->n_control_input + from->n_state, sizeof *in);
    struct nr_io_spec *out = nr_config_array(c, n_out + from->n_state, sizeof *out);
    if (!seq || !controls || !states || !in || !out) {
        return nr_config_nomem(err);
    }
    memcpy(in, c->sig.inputs, n_in * sizeof *in);
    memcpy(out, c->sig.outputs, n_out * sizeof *out);
    nr_status st = derive_strategy(c, from, seq, err);
    for (size_t i = 0; i < from->n_control_input && st == NARU_OK; i++) {
        st = derive_control(c, info, from->control_input[i], &controls[i], &in[n_in], err);
        controls[i].input = n_in++;
    }
    for (size_t i = 0; i < from->n_state && st == NARU_OK; i++) {
        st = derive_state(c, from->state[i], &states[i], err);
        states[i].input = n_in;
        if (st == NARU_OK) {
            st = nr_config_derive_io(c, &in[n_in++], states[i].input_name, states[i].dtype,
                                     states[i].rank, states[i].dims, NULL, err);
        }
    }
    if (st == NARU_OK) {
        st = derive_outputs(c, states, (uint32_t)from->n_state, out, &n_out, err);
    }
    seq->controls = controls;
    seq->n_controls = (uint32_t)from->n_control_input;
    seq->states = states;
    seq->n_states = (uint32_t)from->n_state;
    seq->sig = (struct nr_signature){.inputs = in,
                                     .outputs = out,
                                     .n_inputs = n_in,
                                     .n_outputs = n_out,
                                     .max_batch_size = c->sig.max_batch_size};
    c->sequence = seq;
    return st;
}
