/* Answers in the order of requests (preserve_ordering): a batch that ends before one that was
 * taken earlier waits for it.
 *
 * Requests are entered when a batch takes them, which is in their order of arrival, and leave as
 * soon as they and all before them are answered. Those that were refused or cancelled while they
 * waited never enter: they are answered at once.
 *
 * The caller holds its lock.
 */
#ifndef NR_SCHED_ORDER_H
#define NR_SCHED_ORDER_H

#include "sched/request.h"

static inline void nr_order_enter(struct nr_list *order, struct nr_request *r)
{
    r->answered = false;
    nr_list_append(order, &r->order_node);
}

static inline void nr_order_answered(struct nr_request *r)
{
    r->answered = true;
}

/* The next request whose answer may go out, NULL when there is none now. */
static inline struct nr_request *nr_order_pop(struct nr_list *order)
{
    if (nr_list_empty(order)) {
        return NULL;
    }
    struct nr_request *r = nr_container_of(order->next, struct nr_request, order_node);
    if (!r->answered) {
        return NULL;
    }
    nr_list_remove(&r->order_node);
    return r;
}

#endif
