/* ModelStreamInfer: many inferences over one gRPC call.
 *
 * DESIGN. A stream is a list of items, one for each message, each with an arena of its own, since the
 * exchange's would grow as long as the stream lives. Messages are decoded and submitted in the order in which they
 * came (sequences need it), one at a time when decoding is work for the pool. Ordinary models answer
 * in that order, too; items of decoupled models answer as their responses come. An error is an answer
 * like any other, unless the client sent "triton_grpc_error: true": then the first one ends the call.
 *
 * Back-pressure. An answer of a decoupled model is ended (nr_answer_done) when its bytes are in the
 * connection's output, so a client that does not read holds the model, and nobody else.
 *
 * INVARIANTS
 *  1. An item is on s->items until it is freed; it is freed when its request is complete (or was never
 *     submitted), all its answers are written, and it is not in s->order.
 *  2. s->order holds the items of ordinary models whose answer was not written, oldest first; only the first one
 *     writes.
 *  3. The call is ended exactly once: when the client has sent its last message, or was cancelled,
 *     or an error is to end it; and no item's request is under way.
 *
 * THREADS. The call's loop, but for decode_job.
 */
#include <stdio.h>
#include <string.h>

#include "api/call.h"
#include "api/state.h"
#include "api/v2.h"
#include "base/mem.h"
#include "codec/infer_pb.h"
#include "proto/grpc_service.pb-c.h"

struct stream {
    struct nr_call *c;
    struct nr_list items, order, backlog;
    unsigned n_running; /* submitted and not complete */
    bool decoding;      /* an item is with the pool, or waits for its model to be loaded */
    bool closed;        /* nothing more comes from the client, or is wanted */
    bool ended;
    bool errors_end; /* triton_grpc_error */
    nr_status end_status;
    struct nr_str end_text;
};

struct item {
    struct stream *s;
    struct nr_list node, order_node, backlog_node;
    struct nr_list ready; /* struct answer: written when the item is first in the order */
    struct nr_arena arena;
    struct nr_str message;
    struct nr_buf *owner; /* of message; a reference */
    struct nr_infer_pb_head head;
    struct nr_catalog_view *pin;
    struct nr_version *version;
    struct nr_infer_request in;
    struct nr_request request;
    struct nr_err err;
    struct nr_job job;
    struct nr_msg msg;
    struct nr_waiter waiter;
    unsigned n_unwritten; /* answers given to the engine or in `ready` */
    bool decoupled, running, complete, final_sent, wants_empty_final;
};

struct answer {
    struct nr_part part;
    struct nr_list node; /* item->ready */
    struct item *item;
    struct nr_answer *from; /* of a decoupled model: ended when the bytes are written */
    uint8_t bytes[];
};

static void advance(struct stream *s);
static void begin(struct item *it);

/* --- ends ------------------------------------------------------------------------------------- */

static void try_end(struct stream *s)
{
    if (s->closed && !s->ended && s->n_running == 0 && !s->decoding && nr_list_empty(&s->order) &&
        nr_list_empty(&s->backlog)) {
        s->ended = true;
        s->c->err.status = s->end_status; /* for the access log */
        snprintf(s->c->err.text, sizeof(s->c->err.text), NR_STR_FMT, NR_STR_ARG(s->end_text));
        nr_exchange_end(s->c->x, nr_status_grpc(s->end_status), s->end_text);
    }
}

static void try_free(struct item *it)
{
    if (!it->complete || it->n_unwritten > 0 || !nr_list_empty(&it->order_node)) {
        return;
    }
    nr_list_remove(&it->node);
    if (it->pin != NULL) {
        nr_catalog_unpin(it->pin, it->version);
    }
    nr_arena_done(&it->arena);
    nr_buf_unref(it->owner);
    nr_free(it);
}

/* A request that is cancelled may complete at once, which may free its item and others. */
static void cancel_running(struct stream *s)
{
    unsigned n = 0;
    NR_LIST_FOREACH (node, &s->items) {
        n++;
    }
    for (; n > 0 && !nr_list_empty(&s->items); n--) {
        struct item *it = nr_container_of(nr_list_pop(&s->items), struct item, node);
        nr_list_append(&s->items, &it->node);
        if (it->running) {
            nr_request_cancel(&it->request, NARU_CANCELLED, true);
        }
    }
}

/* Nothing more is wanted: what waits is dropped, what runs is cancelled. */
static void close_stream(struct stream *s, nr_status why, struct nr_str text)
{
    if (s->closed && s->end_status != NARU_OK) {
        return;
    }
    s->closed = true;
    s->end_status = why;
    s->end_text = nr_arena_str(&s->c->x->arena, text);
    struct nr_list *n;
    while ((n = nr_list_pop(&s->backlog)) != NULL) {
        struct item *it = nr_container_of(n, struct item, backlog_node);
        it->complete = true;
        try_free(it);
    }
    cancel_running(s);
    try_end(s);
}

/* --- answers ---------------------------------------------------------------------------------- */

static void on_written(struct nr_part *p)
{
    struct answer *a = nr_container_of(p, struct answer, part);
    struct item *it = a->item;
    if (a->from != NULL) {
        nr_answer_done(a->from);
    }
    nr_free(a);
    it->n_unwritten--;
    try_free(it);
}

static void write_ready(struct item *it)
{
    struct nr_list *n;
    it->n_unwritten++; /* it stays while we look at it */
    while ((n = nr_list_pop(&it->ready)) != NULL) {
        nr_exchange_write(it->s->c->x, &nr_container_of(n, struct answer, node)->part);
    }
    it->n_unwritten--;
}

/* Writes what may be written: the answer of the first in order, and of those behind it. */
static void write_in_order(struct stream *s)
{
    while (!nr_list_empty(&s->order)) {
        struct item *it = nr_container_of(s->order.next, struct item, order_node);
        if (!it->complete) {
            return;
        }
        write_ready(it);
        nr_list_remove(&it->order_node);
        try_free(it);
    }
}

/* Room for an answer of `bytes`; NULL: no memory, and the stream ends. */
static struct answer *answer_new(struct item *it, size_t bytes)
{
    struct answer *a = nr_try_alloc(sizeof(*a) + bytes);
    if (a == NULL) {
        close_stream(it->s, NARU_NOMEM, NR_STR("no memory for an answer"));
        return NULL;
    }
    a->item = it;
    a->part = (struct nr_part){.data = a->bytes, .len = bytes, .done = on_written};
    nr_list_append(&it->ready, &a->node);
    it->n_unwritten++;
    return a;
}

static void answer_error(struct item *it, nr_status status, struct nr_str text)
{
    struct stream *s = it->s;
    nr_call_log_item(s->c, it->head.id, it->head.model_name, status, text);
    if (s->errors_end) {
        close_stream(s, status, text);
        return;
    }
    Inference__ModelStreamInferResponse m;
    Inference__ModelInferResponse r;
    inference__model_stream_infer_response__init(&m);
    inference__model_infer_response__init(&r);
    m.error_message = nr_arena_strz(&it->arena, text);
    r.id = nr_arena_strz(&it->arena, it->head.id);
    r.model_name = nr_arena_strz(&it->arena, it->head.model_name);
    m.infer_response = &r;
    struct answer *a = answer_new(it, inference__model_stream_infer_response__get_packed_size(&m));
    if (a != NULL) {
        inference__model_stream_infer_response__pack(&m, a->bytes);
    }
}

/* ModelInferResponse.parameters["triton_final_response"], as protobuf writes it: field 4, an entry of
 * key (field 1) and InferParameter (field 2) with bool_param (field 1). */
#define FINAL_KEY "triton_final_response"
#define FINAL_BYTES (2 + 2 + sizeof(FINAL_KEY) - 1 + 2 + 2)
static void put_final(uint8_t *at, bool final)
{
    *at++ = 4 << 3 | 2;
    *at++ = FINAL_BYTES - 2;
    *at++ = 1 << 3 | 2;
    *at++ = sizeof(FINAL_KEY) - 1;
    memcpy(at, FINAL_KEY, sizeof(FINAL_KEY) - 1);
    at += sizeof(FINAL_KEY) - 1;
    *at++ = 2 << 3 | 2;
    *at++ = 2;
    *at++ = 1 << 3;
    *at++ = final;
}

/* ModelStreamInferResponse.infer_response (field 2) around the encoded outputs. Takes over `from`.
 * scratch: cleared by the caller, since an item may have any number of answers. */
static void answer_outputs(struct item *it, const struct nr_infer_tensor *outputs, unsigned n,
                           bool final, struct nr_answer *from, struct nr_arena *scratch)
{
    const struct nr_v2_result w = {.version = it->version,
                                   .ran_version = it->request.ran_version,
                                   .in = &it->in,
                                   .how = nr_call_match_outputs(&it->in, outputs, n, scratch),
                                   .outputs = outputs,
                                   .n_outputs = n,
                                   .arena = scratch};
    struct nr_infer_response resp;
    struct nr_infer_pb_body body = {0};
    struct nr_err err = {0};
    nr_status st = nr_v2_response_of(&w, &resp, &err);
    if (st == NARU_OK) {
        st = nr_infer_pb_encode(&it->version->config->sig, &resp, scratch, &body, &err);
    }
    uint8_t length[10];
    size_t inner = body.bytes + FINAL_BYTES, n_length = 0;
    for (size_t left = inner; left > 0 || n_length == 0; left >>= 7) {
        length[n_length++] = (uint8_t)((left & 127) | (left > 127 ? 128 : 0));
    }
    struct answer *a = st == NARU_OK ? answer_new(it, 1 + n_length + inner) : NULL;
    if (a == NULL) {
        if (st != NARU_OK) {
            answer_error(it, st, nr_str_from(err.text));
        }
        if (from != NULL) {
            nr_answer_done(from);
        }
        return;
    }
    uint8_t *at = a->bytes;
    *at++ = 2 << 3 | 2;
    memcpy(at, length, n_length);
    at += n_length;
    for (unsigned i = 0; i < body.n_parts; i++) {
        memcpy(at, body.parts[i].ptr, body.parts[i].len);
        at += body.parts[i].len;
    }
    put_final(at, final);
    a->from = from;
    it->final_sent = it->final_sent || final;
}

/* --- inferences ------------------------------------------------------------------------------- */

static void on_answer(struct nr_request *r, struct nr_answer *from)
{
    struct item *it = nr_container_of(r, struct item, request);
    if (it->s->end_status != NARU_OK || (from->n_outputs == 0 && !it->wants_empty_final)) {
        it->final_sent = it->final_sent || from->final;
        nr_answer_done(from);
        return;
    }
    struct nr_arena scratch;
    nr_arena_init(&scratch, 0);
    answer_outputs(it, from->outputs, from->n_outputs, from->final, from, &scratch);
    nr_arena_done(&scratch);
    write_ready(it);
}

static void on_complete(struct nr_request *r)
{
    struct item *it = nr_container_of(r, struct item, request);
    struct stream *s = it->s;
    it->n_unwritten++; /* it stays until the end of this function */
    it->running = false;
    it->complete = true;
    s->n_running--;
    if (s->end_status != NARU_OK) {
        nr_list_remove(&it->order_node); /* nobody waits for its answer */
    } else if (r->status != NARU_OK) {
        answer_error(it, r->status,
                     nr_v2_run_error(it->version, &it->in, r->status, r->error, &it->arena));
    } else if (!it->decoupled) {
        answer_outputs(it, r->outputs, r->n_outputs, true, NULL, &it->arena);
    } else if (it->wants_empty_final && !it->final_sent) {
        answer_outputs(it, NULL, 0, true, NULL, &it->arena);
    }
    if (it->decoupled) {
        write_ready(it);
    }
    write_in_order(s);
    it->n_unwritten--;
    try_free(it);
    try_end(s);
}

/* An item that never ran. */
static void fail_item(struct item *it, nr_status status, struct nr_str text)
{
    struct stream *s = it->s;
    it->n_unwritten++; /* see on_complete */
    it->complete = true;
    answer_error(it, status, text);
    write_in_order(s);
    it->n_unwritten--;
    try_free(it);
    try_end(s);
}

static void submit(struct item *it)
{
    struct stream *s = it->s;
    struct nr_exchange *x = s->c->x;
    it->request = (struct nr_request){.target = nr_runtime_of(it->version)->target,
                                      .loop = x->loop,
                                      .arena = &it->arena,
                                      .in = &it->in,
                                      .catalog = it->pin->catalog,
                                      .arrival_ns = nr_loop_now(x->loop),
                                      .deadline_ns = x->deadline_ns,
                                      .client = x->peer->client,
                                      .on_complete = on_complete};
    for (unsigned i = 0; i < it->in.n_params; i++) {
        const struct nr_infer_param *p = &it->in.params[i];
        if (nr_str_is(p->name, "triton_enable_empty_final_response")) {
            it->wants_empty_final = p->kind == NR_PARAM_BOOL && p->b;
        }
    }
    nr_call_options(&it->in, &it->arena, &it->request);
    if (it->decoupled) {
        it->request.on_answer = on_answer;
        nr_list_remove(&it->order_node);
    }
    it->running = true;
    s->n_running++;
    nr_request_submit(&it->request);
}

static void decode(struct item *it)
{
    it->err.status = nr_infer_pb_decode(&it->version->config->sig, it->message, it->owner,
                                        &it->arena, &it->in, &it->err);
}

static void submit_decoded(struct item *it)
{
    if (it->s->end_status != NARU_OK) {
        nr_list_remove(&it->order_node);
        it->complete = true;
        try_free(it);
    } else if (it->err.status != NARU_OK) {
        fail_item(it, it->err.status, nr_str_from(it->err.text));
    } else {
        submit(it);
    }
}

static void after_decode(struct nr_msg *m)
{
    struct item *it = nr_container_of(m, struct item, msg);
    struct stream *s = it->s;
    s->decoding = false;
    submit_decoded(it);
    advance(s);
    try_end(s);
}

static void decode_job(struct nr_job *j)
{
    struct item *it = nr_container_of(j, struct item, job);
    decode(it);
    it->msg.run = after_decode;
    nr_loop_post(it->s->c->x->loop, &it->msg);
}

static nr_status look_up(struct item *it, struct nr_err *err)
{
    struct nr_api *api = it->s->c->api;
    struct nr_catalog_reader *reader = &api->readers[nr_loop_index(it->s->c->x->loop)];
    nr_status st = nr_infer_pb_peek(it->message, &it->head, err);
    if (st == NARU_OK) {
        bool shadow; /* requests of a stream have none: each may depend on the one before */
        nr_catalog_refresh(reader);
        st = nr_catalog_route(reader, it->head.model_name, it->head.model_version, &it->version,
                              &shadow, err);
    }
    if (st == NARU_OK) {
        it->pin = nr_catalog_pin(reader, it->version);
        it->decoupled = it->version->config->decoupled;
    }
    return st;
}

/* The model was loaded, or could not be, which its state in the catalog says. */
static void after_load(struct nr_msg *m)
{
    struct item *it = nr_container_of(m, struct item, msg);
    struct stream *s = it->s;
    s->decoding = false;
    if (s->end_status != NARU_OK) {
        it->complete = true;
        try_free(it);
    } else if (it->waiter.err.status == NARU_UNAVAILABLE) {
        nr_list_append(&s->order, &it->order_node);
        fail_item(it, NARU_UNAVAILABLE, nr_str_from(it->waiter.err.text));
    } else {
        begin(it); /* one that was evicted again waits again */
    }
    advance(s);
    try_end(s);
}

static void on_loaded(struct nr_waiter *w)
{
    struct item *it = nr_container_of(w, struct item, waiter);
    it->msg.run = after_load;
    nr_loop_post(it->s->c->x->loop, &it->msg);
}

/* True: the item waits for its model, and all messages behind it wait with it. */
static bool demand(struct item *it, struct nr_err *err)
{
    struct nr_api *api = it->s->c->api;
    if (NR_LIKELY(!api->cfg.on_demand) ||
        nr_infer_pb_peek(it->message, &it->head, err) != NARU_OK) {
        return false;
    }
    it->waiter = (struct nr_waiter){.done = on_loaded};
    it->s->decoding = true;
    if (nr_demand_model(api, nr_call_catalog(it->s->c), it->head.model_name, &it->waiter, err)) {
        return true;
    }
    it->s->decoding = false;
    return false;
}

/* Begins the item: done with, under way, or with the pool. */
static void begin(struct item *it)
{
    struct stream *s = it->s;
    struct nr_api *api = s->c->api;
    struct nr_err err = {0};
    if (demand(it, &err)) {
        return;
    }
    nr_list_append(&s->order, &it->order_node);
    nr_status st = err.status == NARU_OK ? look_up(it, &err) : err.status;
    if (st != NARU_OK) {
        fail_item(it, st, nr_str_from(err.text));
        return;
    }
    if (it->message.len <= api->cfg.inline_json_bytes) {
        decode(it);
        submit_decoded(it);
        return;
    }
    it->job.run = decode_job;
    s->decoding = true;
    if (nr_pool_submit(api->cfg.pool, &it->job) != NARU_OK) {
        s->decoding = false;
        fail_item(it, NARU_UNAVAILABLE,
                  NR_STR("too many large requests are being decoded; try again later"));
    }
}

static void advance(struct stream *s)
{
    while (!s->decoding && !nr_list_empty(&s->backlog)) {
        begin(nr_container_of(nr_list_pop(&s->backlog), struct item, backlog_node));
    }
}

/* --- the call --------------------------------------------------------------------------------- */

static void on_message(struct nr_call *c)
{
    struct stream *s = c->data;
    if (s->closed) {
        return;
    }
    struct item *it = nr_new(struct item);
    it->s = s;
    it->message = c->x->body;
    it->owner = c->x->body_buf != NULL ? nr_buf_ref(c->x->body_buf) : NULL;
    nr_arena_init(&it->arena, 0);
    nr_list_init(&it->ready);
    nr_list_init(&it->order_node);
    nr_list_append(&s->items, &it->node);
    nr_list_append(&s->backlog, &it->backlog_node);
    advance(s);
}

static void on_last(struct nr_call *c)
{
    struct stream *s = c->data;
    s->closed = true;
    try_end(s);
}

static void on_cancel(struct nr_call *c, nr_status why)
{
    struct stream *s = c->data;
    close_stream(s, why,
                 why == NARU_DEADLINE ? NR_STR("the call's time limit has passed")
                                      : NR_STR("the client has gone"));
}

static const struct nr_stream_ops ops = {
    .message = on_message, .last = on_last, .cancel = on_cancel};

static void handle_stream(struct nr_call *c)
{
    struct nr_exchange *x = c->x;
    struct stream *s = nr_arena_new(&x->arena, struct stream);
    s->c = c;
    nr_list_init(&s->items);
    nr_list_init(&s->order);
    nr_list_init(&s->backlog);
    for (unsigned i = 0; i < x->n_headers; i++) {
        s->errors_end = s->errors_end || (nr_str_is(x->headers[i].name, "triton_grpc_error") &&
                                          nr_str_is(x->headers[i].value, "true"));
    }
    c->data = s;
    c->stream = &ops;
    const struct nr_response head = {.status = 200};
    nr_exchange_begin(x, &head);
}

const struct nr_route nr_routes_v2_stream[] = {
    {.pattern = "/inference.GRPCInferenceService/ModelStreamInfer",
     .scope = NR_SCOPE_INFER,
     .kind = NR_ROUTE_GRPC_STREAM,
     .handle = handle_stream,
     .action = "stream_infer"},
    {0},
};
