/* Several responses to one request: from the plug-in's thread to the loop that owns the client, no
 * faster than the client reads.
 *
 * DESIGN. A response is a message to the request's loop. Each request has a window of responses that
 * its consumer has not ended; while it is full the model is told NARU_AGAIN, or waits. So the memory
 * behind a slow reader is bounded by the window, whatever the model would like to produce. Who
 * wants one answer only (on_answer NULL) gets the first one as an ordinary result.
 *
 * THREADS. nr_flow_on_response and nr_flow_on_room run on threads of the plug-in; the rest on the
 * request's loop. Messages of one thread arrive in order, and the plug-in sends from one thread at a
 * time, so responses stay in order and completion comes last.
 */
#include <errno.h>
#include <string.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/mem.h"
#include "sched/sched_priv.h"

const char nr_flow_too_many[] =
    "the model gave several responses to this request and it asked for one: use a method that "
    "streams";

static void take_only(struct nr_request *r, struct nr_answer *answer)
{
    if (r->only == NULL && answer->n_outputs > 0) {
        r->only = answer;
        return;
    }
    if (answer->n_outputs > 0) {
        r->too_many = true;
        nr_request_cancel(r, NARU_CANCELLED, true); /* the rest is not wanted */
    }
    nr_answer_done(answer);
}

static void on_msg(struct nr_msg *m)
{
    struct nr_answer *answer = nr_container_of(m, struct nr_answer, msg);
    struct nr_request *r = answer->request;
    if (r->on_answer != NULL) {
        r->on_answer(r, answer);
    } else {
        take_only(r, answer);
    }
}

static uint32_t signature_index(const struct nr_sched *s, uint32_t output)
{
    uint32_t i = 0;
    while (i + 1 < s->cfg.signature->n_outputs && s->cfg.output_map[i] != output) {
        i++;
    }
    return i;
}

static void view_output(const struct nr_sched *s, const struct nr_batch_response_output *from,
                        struct nr_infer_tensor *t)
{
    uint32_t index = signature_index(s, from->output);
    const struct nr_io_spec *spec = &s->cfg.signature->outputs[index];
    *t = (struct nr_infer_tensor){.index = index,
                                  .dtype = from->tensor.dtype,
                                  .rank = from->tensor.rank,
                                  .data = nr_buf_data(from->buf),
                                  .bytes = (size_t)from->tensor.bytes,
                                  .buf = from->buf};
    memcpy(t->shape, from->shape, from->tensor.rank * sizeof(t->shape[0]));
    if (spec->reshaped) {
        t->rank = nr_place_map_shape(from->tensor.rank, spec->backend_shape, from->shape,
                                     spec->rank, spec->shape, t->shape);
    }
    t->elements = 1;
    for (uint32_t d = 0; d < t->rank; d++) {
        t->elements *= t->shape[d]; /* cannot overflow: the bytes exist */
    }
}

static void done(struct nr_answer *answer)
{
    struct nr_request *r = answer->request;
    struct nr_sched *s = r->sched;
    nr_batch_response_free(answer->memory);
    nr_free(answer);
    pthread_mutex_lock(&s->flow_lock);
    atomic_fetch_sub_explicit(&r->n_answers, 1, memory_order_release);
    pthread_cond_broadcast(&s->flow_room);
    pthread_mutex_unlock(&s->flow_lock);
}

nr_status nr_flow_on_response(void *arg, void *user, struct nr_batch_response *from)
{
    struct nr_sched *s = ((struct nr_place *)arg)->sched;
    struct nr_request *r = user;
    /* Pairs with the release in done(). */
    if (atomic_load_explicit(&r->n_answers, memory_order_acquire) >= NR_ANSWER_WINDOW) {
        return NARU_AGAIN;
    }
    struct nr_answer *answer =
        nr_try_alloc(sizeof(*answer) + from->n_outputs * sizeof(answer->outputs[0]));
    if (answer == NULL) {
        return NARU_NOMEM;
    }
    answer->done = done;
    answer->request = r;
    answer->outputs = (struct nr_infer_tensor *)(answer + 1);
    answer->n_outputs = from->n_outputs;
    answer->final = from->final;
    answer->memory = from;
    answer->msg.run = on_msg;
    nr_list_init(&answer->node);
    for (uint32_t i = 0; i < from->n_outputs; i++) {
        view_output(s, &from->outputs[i], &answer->outputs[i]);
    }
    atomic_fetch_add_explicit(&r->n_answers, 1, memory_order_relaxed);
    nr_loop_post(r->loop, &answer->msg);
    return NARU_OK;
}

void nr_flow_cancelled(struct nr_sched *s)
{
    pthread_mutex_lock(&s->flow_lock);
    pthread_cond_broadcast(&s->flow_room);
    pthread_mutex_unlock(&s->flow_lock);
}

nr_status nr_flow_on_room(void *arg, void *user, int64_t timeout_ns)
{
    struct nr_sched *s = ((struct nr_place *)arg)->sched;
    struct nr_request *r = user;
    int64_t now_ns = nr_clock_now(), until_ns;
    if (__builtin_add_overflow(now_ns, NR_MAX(timeout_ns, 0), &until_ns)) {
        until_ns = INT64_MAX;
    }
    if (r->deadline_ns != 0) {
        until_ns = NR_MIN(until_ns, r->deadline_ns);
    }
    struct timespec at = {.tv_sec = until_ns / NR_S_NS, .tv_nsec = until_ns % NR_S_NS};
    nr_status st = NARU_OK;
    pthread_mutex_lock(&s->flow_lock);
    for (int waited = 0;;) {
        if (atomic_load_explicit(&r->cancelled, memory_order_relaxed) != 0 ||
            (r->deadline_ns != 0 && nr_clock_now() >= r->deadline_ns)) {
            st = NARU_CANCELLED;
            break;
        }
        if (atomic_load_explicit(&r->n_answers, memory_order_acquire) < NR_ANSWER_WINDOW) {
            break;
        }
        if (waited == ETIMEDOUT) {
            st = NARU_TIMEOUT;
            break;
        }
        waited = pthread_cond_timedwait(&s->flow_room, &s->flow_lock, &at);
    }
    pthread_mutex_unlock(&s->flow_lock);
    return st;
}

/* The first response as an ordinary result; its bytes are the arena's from here on. */
static void adopt(struct nr_request *r)
{
    struct nr_answer *only = r->only;
    r->outputs = nr_arena_alloc(r->arena, NR_MAX(only->n_outputs, 1u) * sizeof(r->outputs[0]));
    r->n_outputs = only->n_outputs;
    for (unsigned i = 0; i < only->n_outputs; i++) {
        r->outputs[i] = only->outputs[i];
        nr_arena_link(r->arena, nr_buf_ref(only->outputs[i].buf));
    }
}

void nr_flow_settle(struct nr_request *r)
{
    if (r->too_many) {
        nr_request_fail(r, NARU_INVALID, nr_flow_too_many);
    } else if (r->status == NARU_OK && r->only != NULL) {
        adopt(r);
    }
    if (r->only != NULL) {
        nr_answer_done(NR_TAKE(r->only));
    }
}
