/* A place of the scheduler: requests into its batch, results back to them, their completion.
 *
 * DESIGN. What a model sees (backend shapes, plug-in order, the batch) meets what a request says
 * (its own shapes, signature order) here and nowhere else, the same for executors and loops.
 *
 * THREADS. A place belongs to one thread at a time (invariant 3 of sched_priv.h). Completion happens
 * on the request's loop: at once when that loop ran it, else by a message.
 */
#include <string.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/mem.h"
#include "sched/sched_priv.h"

/* Outputs up to this size are copied to the request's arena, so that the batch keeps its buffer and
 * the next round allocates nothing; larger ones are passed on by reference. */
#define COPY_OUT_BYTES 4096

#define SORT_MAX 128u

/* --- completion -------------------------------------------------------------------------------- */

nr_fail_reason nr_request_fail_reason(const struct nr_request *r)
{
    switch (r->status) {
    case NARU_CANCELLED:
        return NR_FAIL_CANCELED;
    case NARU_DEADLINE:
        return r->begin_ns == 0 ? NR_FAIL_REJECTED : NR_FAIL_CANCELED;
    case NARU_UNAVAILABLE:
    case NARU_EXHAUSTED:
        return r->begin_ns == 0 ? NR_FAIL_REJECTED : NR_FAIL_BACKEND;
    default:
        return r->begin_ns == 0 ? NR_FAIL_OTHER : NR_FAIL_BACKEND;
    }
}

void nr_request_fail(struct nr_request *r, nr_status status, const char *text)
{
    r->status = status;
    r->error = nr_arena_str(r->arena, nr_str_from(text));
}

void nr_request_complete(struct nr_request *r)
{
    struct nr_sched *s = r->sched;
    unsigned loop = nr_loop_index(r->loop);
    nr_loop_timer_cancel(r->loop, &r->timer);
    if (NR_UNLIKELY(r->again)) {
        nr_counters_round(s->counters, loop, r, r->leads);
        r->on_complete(r);
        return;
    }
    if (s->cfg.decoupled) {
        nr_flow_settle(r);
    }
    if (r->status == NARU_CANCELLED && r->begin_ns != 0 && r->deadline_ns != 0 &&
        r->deadline_ns <= nr_clock_now()) {
        nr_request_fail(r, NARU_DEADLINE, "the request's time limit passed while it ran");
    }
    atomic_store_explicit(&r->state, NR_REQUEST_DONE, memory_order_relaxed);
    if (r->status == NARU_OK) {
        nr_counters_success(s->counters, loop, r, r->leads);
    } else {
        nr_counters_failure(s->counters, loop, nr_request_fail_reason(r),
                            nr_clock_now() - r->arrival_ns);
    }
    r->on_complete(r);
}

void nr_request_on_msg(struct nr_msg *m)
{
    nr_request_complete(nr_container_of(m, struct nr_request, msg));
}

void nr_request_refuse(struct nr_request *r, nr_status status, const char *text, unsigned retry_s)
{
    nr_request_fail(r, status, text);
    r->retry_after_s = retry_s;
    nr_request_complete(r);
}

/* --- requests into the batch ------------------------------------------------------------------- */

uint32_t nr_place_map_shape(uint32_t rank, const int64_t *spec, const int64_t *value,
                            uint32_t to_rank, const int64_t *to_spec, int64_t *to)
{
    uint32_t from = 0;
    for (uint32_t i = 0; i < to_rank; i++) {
        to[i] = to_spec[i];
        if (to_spec[i] < 0) {
            while (from < rank && spec[from] >= 0) {
                from++;
            }
            to[i] = from < rank ? value[from++] : 1;
        }
    }
    return to_rank;
}

nr_status nr_place_add(struct nr_place *p, struct nr_request *r, struct nr_err *err)
{
    struct nr_sched *s = p->sched;
    const struct nr_signature *sig = s->cfg.signature;
    const naru_model_info *info = s->cfg.model->info;
    memset(p->inputs, 0, info->n_inputs * sizeof(p->inputs[0]));
    for (unsigned i = 0; i < r->in->n_inputs; i++) {
        const struct nr_infer_tensor *t = &r->in->inputs[i];
        const struct nr_io_spec *spec = &sig->inputs[t->index];
        uint32_t at = s->cfg.input_map[t->index];
        p->inputs[at] = (struct nr_batch_input){.data = t->bytes > 0 ? t->data : (const void *)"",
                                                .bytes = t->bytes,
                                                .buf = t->buf,
                                                .shape = t->shape,
                                                .rank = t->rank};
        if (spec->reshaped) {
            p->inputs[at].rank =
                nr_place_map_shape(t->rank, spec->shape, t->shape, spec->backend_rank,
                                   spec->backend_shape, p->shapes[at]);
            p->inputs[at].shape = p->shapes[at];
        }
    }
    memset(p->wanted, 0, info->n_outputs);
    for (unsigned i = 0; i < r->in->n_outputs; i++) {
        p->wanted[s->cfg.output_map[r->in->outputs[i].index]] = 1;
    }
    struct nr_batch_request q = {.inputs = p->inputs,
                                 .wanted = p->wanted,
                                 .rows = (uint32_t)r->in->rows,
                                 .id = r->in->has_id ? r->in->id.ptr : NULL,
                                 .deadline_ns = r->deadline_ns,
                                 .sequence_id = r->in->sequence_id,
                                 .sequence_flags = (r->in->sequence_start ? 1u : 0u) |
                                                   (r->in->sequence_end ? 2u : 0u),
                                 .options = r->options,
                                 .n_options = r->n_options,
                                 .cancelled = &r->cancelled,
                                 .user = r};
    return nr_batch_add(p->batch, &q, err);
}

/* Requests whose bodies were complete in another order than they began to come: neighbours again.
 * They nearly are in order; where they are so many that sorting would cost, it is left. */
static void sort_by_address(struct nr_request **all, unsigned n)
{
    for (unsigned i = 1; i < n && n <= SORT_MAX; i++) {
        struct nr_request *r = all[i];
        unsigned at = i;
        for (; at > 0 && all[at - 1]->in->inputs[0].data > r->in->inputs[0].data; at--) {
            all[at] = all[at - 1];
        }
        all[at] = r;
    }
}

void nr_place_fill(struct nr_place *p, struct nr_list *list, unsigned n, struct nr_list *refused)
{
    if (p->n_taken + n > p->taken_capacity) {
        p->taken_capacity = NR_MAX(p->n_taken + n, 2 * p->taken_capacity);
        p->taken = nr_realloc(p->taken, p->taken_capacity * sizeof(struct nr_request *));
    }
    struct nr_request **all = p->taken + p->n_taken;
    for (unsigned i = 0; i < n; i++) {
        all[i] = nr_request_of(nr_list_pop(list));
    }
    if (p->sched->cfg.room != NULL) {
        nr_room_sealed(p->sched->cfg.room);
        sort_by_address(all, n);
    }
    for (unsigned i = 0; i < n; i++) { /* taken[n_taken] is all[i] or before it */
        struct nr_request *r = all[i];
        struct nr_err err = {0};
        nr_status st = nr_place_add(p, r, &err);
        if (st != NARU_OK) {
            nr_request_fail(r, st, err.text);
            nr_list_append(refused, &r->node);
            continue;
        }
        r->place_index = nr_batch_requests(p->batch) - 1;
        p->taken[p->n_taken++] = r;
        atomic_store_explicit(&r->state, NR_REQUEST_RUNNING, memory_order_release);
    }
}

/* --- results back ------------------------------------------------------------------------------ */

/* Output k of request i from the batch into the request. */
static nr_status take_output(struct nr_place *p, struct nr_request *r, unsigned i, unsigned k)
{
    struct nr_sched *s = p->sched;
    uint32_t index = r->in->outputs[k].index;
    const struct nr_io_spec *spec = &s->cfg.signature->outputs[index];
    struct nr_batch_slice slice;
    nr_status st = nr_batch_output(p->batch, s->cfg.output_map[index], i, &slice);
    if (st != NARU_OK) {
        return st;
    }
    struct nr_infer_tensor *t = &r->outputs[k];
    *t = (struct nr_infer_tensor){
        .index = index, .dtype = slice.dtype, .rank = slice.rank, .bytes = slice.bytes};
    memcpy(t->shape, slice.shape, slice.rank * sizeof(t->shape[0]));
    if (spec->reshaped) {
        t->rank = nr_place_map_shape(slice.rank, spec->backend_shape, slice.shape, spec->rank,
                                     spec->shape, t->shape);
    }
    t->elements = 1;
    for (uint32_t d = 0; d < t->rank; d++) {
        t->elements *= t->shape[d]; /* cannot overflow: the bytes exist */
    }
    if (slice.bytes <= COPY_OUT_BYTES) {
        uint8_t *copy = nr_arena_alloc(r->arena, slice.bytes + 1);
        memcpy(copy, slice.data, slice.bytes);
        t->data = copy;
    } else {
        t->data = slice.data;
        t->buf = slice.buf;
        nr_arena_link(r->arena, nr_buf_ref(slice.buf));
    }
    return NARU_OK;
}

static void take_result(struct nr_place *p, struct nr_request *r, unsigned i)
{
    struct nr_err err = {0};
    r->begin_ns = p->begin_ns;
    r->infer_begin_ns = p->infer_begin_ns;
    r->infer_end_ns = p->infer_end_ns;
    r->ran_inline = p->is_inline;
    r->batch_rows = (uint32_t)p->rows;
    r->status = nr_batch_result(p->batch, i, &err);
    r->again = r->status == NARU_OK && nr_batch_again(p->batch, i);
    if (r->status == NARU_OK && p->sched->cfg.decoupled && !nr_batch_has_outputs(p->batch)) {
        return; /* its responses, if any, went their own way */
    }
    for (unsigned k = 0; k < r->in->n_outputs && r->status == NARU_OK; k++) {
        r->status = take_output(p, r, i, k);
        if (r->again && r->status == NARU_NOT_FOUND) {
            r->status = NARU_OK; /* only states count now */
        } else if (r->status != NARU_OK) {
            r->again = false;
            nr_fail(&err, r->status, "model %s gave no output '" NR_STR_FMT "'", p->sched->cfg.name,
                    NR_STR_ARG(p->sched->cfg.signature->outputs[r->in->outputs[k].index].name));
        }
    }
    if (r->status != NARU_OK) {
        r->error = nr_arena_str(r->arena, nr_str_from(err.text));
    } else {
        r->n_outputs = r->in->n_outputs;
    }
}

void nr_place_deliver(struct nr_place *p)
{
    bool leads = true;
    for (unsigned i = 0; i < p->n_taken; i++) {
        struct nr_request *r = p->taken[i];
        take_result(p, r, r->place_index);
        if (r->status == NARU_OK) {
            r->leads = leads;
            leads = false;
        }
    }
    int64_t end_ns = nr_clock_now();
    bool is_inline = p->is_inline; /* p is reused only after the caller released it */
    for (unsigned i = 0; i < p->n_taken; i++) {
        struct nr_request *r = p->taken[i];
        r->end_ns = end_ns;
        r->msg.run = nr_request_on_msg;
        /* From here on a cancel finds nothing to do; pairs with cancel() of sched.c. */
        atomic_store_explicit(&r->state, NR_REQUEST_DONE, memory_order_release);
        if (is_inline) {
            nr_request_complete(r);
        }
    }
    if (!is_inline) {
        nr_sched_answer(p->sched, p->taken, p->n_taken);
    }
    p->n_taken = 0;
    nr_batch_clear(p->batch);
}

/* --- life -------------------------------------------------------------------------------------- */

void nr_place_rest(struct nr_place *p)
{
    if (NR_UNLIKELY(nr_buf_scarce())) {
        nr_batch_trim(p->batch);
    }
}

nr_status nr_place_init(struct nr_place *p, struct nr_sched *s, struct nr_plugin_instance *instance,
                        void (*on_done)(struct nr_batch *b, void *place), struct nr_err *err)
{
    const naru_model_info *info = s->cfg.model->info;
    struct nr_batch_cfg cfg = {.plugin = s->cfg.model->plugin,
                               .inputs = info->inputs,
                               .outputs = info->outputs,
                               .n_inputs = info->n_inputs,
                               .n_outputs = info->n_outputs,
                               .ragged = s->cfg.ragged,
                               .max_rows = (uint32_t)s->cfg.signature->max_batch_size,
                               .on_done = on_done,
                               .on_done_arg = p,
                               .on_response = s->cfg.decoupled ? nr_flow_on_response : NULL,
                               .on_room = nr_flow_on_room,
                               .response_arg = p,
                               .may_repeat = s->cfg.iterative};
    p->sched = s;
    p->instance = instance;
    nr_list_init(&p->node);
    p->inputs = nr_new_array(struct nr_batch_input, NR_MAX(info->n_inputs, 1u));
    p->shapes = nr_alloc_array(NR_MAX(info->n_inputs, 1u), sizeof(p->shapes[0]));
    p->wanted = nr_alloc(NR_MAX(info->n_outputs, 1u));
    return nr_batch_new(&cfg, &p->batch, err);
}

void nr_place_done(struct nr_place *p)
{
    nr_batch_free(p->batch);
    nr_free(p->inputs);
    nr_free(p->shapes);
    nr_free(p->wanted);
    nr_free(p->taken);
}
