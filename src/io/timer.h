/* Timer heap of a loop: a 4-ary heap of deadlines. Used by loop.c only; not thread safe.
 *
 * Timers with the same deadline come in no particular order. Aborts without memory: a timer is
 * 16 bytes here and belongs to an object that was already accepted.
 */
#ifndef NR_IO_TIMER_H
#define NR_IO_TIMER_H

#include <stdint.h>

struct nr_timer;

/* The deadline is kept beside the pointer, so that comparing touches no timer. */
struct nr_timer_slot {
    int64_t deadline_ns;
    struct nr_timer *timer;
};

struct nr_timer_heap { /* zeroed: empty */
    struct nr_timer_slot *slots;
    uint32_t n, capacity;
};

void nr_timer_heap_done(struct nr_timer_heap *h);
/* Adds the timer or, when it is armed, moves it to its new deadline. */
void nr_timer_heap_set(struct nr_timer_heap *h, struct nr_timer *t, int64_t deadline_ns);
void nr_timer_heap_remove(struct nr_timer_heap *h, struct nr_timer *t); /* no-op when not armed */
/* Takes out the earliest timer if it is due at now_ns, else NULL. */
struct nr_timer *nr_timer_heap_pop(struct nr_timer_heap *h, int64_t now_ns);
/* Earliest deadline; INT64_MAX when empty. */
static inline int64_t nr_timer_heap_next(const struct nr_timer_heap *h)
{
    return h->n > 0 ? h->slots[0].deadline_ns : INT64_MAX;
}

#endif
