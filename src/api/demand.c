/* Requests for models that are not loaded yet: they wait, then go on as if nothing had been.
 *
 * Only inference loads a model; metadata, statistics, health and metrics look at what there is. The body
 * is complete when a request begins to wait, so it holds no connection up but its own.
 *
 * Threads: loops; `on_loaded` comes on a loading thread and posts.
 */
#include "api/call.h"
#include "api/state.h"
#include "codec/infer_pb.h"

/* The model a call names, before its handler has read the request. */
static struct nr_str name_of(struct nr_call *c)
{
    struct nr_infer_pb_head head;
    if (c->model_name.len > 0 || c->x->protocol != NR_GRPC) {
        return c->model_name;
    }
    return nr_infer_pb_peek(c->x->body, &head, NULL) == NARU_OK ? head.model_name
                                                                : (struct nr_str){0};
}

static void go_on(struct nr_msg *m)
{
    struct nr_call *c = nr_container_of(m, struct nr_call, msg);
    if (c->waiter.err.status == NARU_UNAVAILABLE || c->cancelled) {
        nr_call_fail(c, c->cancelled ? c->cancel_status : NARU_UNAVAILABLE,
                     c->cancelled ? NR_STR("the request ended before its model was loaded")
                                  : nr_str_from(c->waiter.err.text),
                     1);
        return;
    }
    /* a load that failed has its reason in the catalog; one that was evicted again waits again */
    if (!nr_call_demand(c)) {
        c->route->handle(c);
    }
}

static void on_loaded(struct nr_waiter *w)
{
    struct nr_call *c = nr_container_of(w, struct nr_call, waiter);
    c->msg.run = go_on;
    nr_loop_post(c->x->loop, &c->msg);
}

bool nr_demand_model(struct nr_api *a, const struct nr_catalog *catalog, struct nr_str name,
                     struct nr_waiter *w, struct nr_err *err)
{
    const struct nr_catalog_model *m = name.len > 0 ? nr_catalog_find(catalog, name) : NULL;
    if (m == NULL || m->best != NULL) {
        return false;
    }
    /* an ensemble waits for one member after the other */
    m = nr_catalog_missing(catalog, m);
    if (m == NULL) {
        return false;
    }
    switch (nr_repository_demand(a->cfg.repository, nr_str_from(m->name), w)) {
    case NR_DEMAND_WAITS:
        return true;
    case NR_DEMAND_FULL:
        (void)nr_fail(err, NARU_UNAVAILABLE,
                      "too many requests wait for models to be loaded (--model-wait-max); "
                      "try again later");
        break;
    case NR_DEMAND_LEAVE:
        break;
    }
    return false;
}

bool nr_call_demand(struct nr_call *c)
{
    struct nr_str name = c->route->scope == NR_SCOPE_INFER ? name_of(c) : (struct nr_str){0};
    struct nr_err err = {0};
    c->waiter = (struct nr_waiter){.done = on_loaded};
    if (nr_demand_model(c->api, nr_call_catalog(c), name, &c->waiter, &err)) {
        return true;
    }
    if (err.status != NARU_OK) {
        nr_call_fail(c, err.status, nr_str_from(err.text), 1);
    }
    return err.status != NARU_OK;
}
