/* 4-ary heap: half as deep as a binary one, and four slots of 16 bytes are one cache line, so the
 * extra comparisons of a level are free. Chosen over a wheel because deadlines are exact (batching
 * delays of some 100 µs), because cancelling is common, and because the loop must know the next
 * deadline to sleep until it.
 *
 * Invariants
 * 1. slots[i].timer->heap_index == i + 1 for all i < n; a timer outside has 0.
 * 2. No slot is earlier than its parent (i - 1) / 4.
 * Threads: the loop's owner only.
 */
#include "io/timer.h"

#include "base/mem.h"
#include "io/loop.h"

#define ARITY 4u

static void put(struct nr_timer_heap *h, uint32_t at, struct nr_timer_slot slot)
{
    h->slots[at] = slot;
    slot.timer->heap_index = at + 1;
}

/* Finds the place of `slot` from the hole `at` towards the root. */
static void sift_up(struct nr_timer_heap *h, uint32_t at, struct nr_timer_slot slot)
{
    while (at > 0) {
        uint32_t parent = (at - 1) / ARITY;
        if (h->slots[parent].deadline_ns <= slot.deadline_ns) {
            break;
        }
        put(h, at, h->slots[parent]);
        at = parent;
    }
    put(h, at, slot);
}

/* The same towards the leaves. */
static void sift_down(struct nr_timer_heap *h, uint32_t at, struct nr_timer_slot slot)
{
    for (;;) {
        uint64_t first = (uint64_t)at * ARITY + 1;
        if (first >= h->n) {
            break;
        }
        uint32_t best = (uint32_t)first;
        uint32_t end = (uint32_t)NR_MIN(first + ARITY, h->n);
        for (uint32_t i = best + 1; i < end; i++) {
            if (h->slots[i].deadline_ns < h->slots[best].deadline_ns) {
                best = i;
            }
        }
        if (slot.deadline_ns <= h->slots[best].deadline_ns) {
            break;
        }
        put(h, at, h->slots[best]);
        at = best;
    }
    put(h, at, slot);
}

void nr_timer_heap_done(struct nr_timer_heap *h)
{
    for (uint32_t i = 0; i < h->n; i++) {
        h->slots[i].timer->heap_index = 0;
    }
    nr_free(h->slots);
    *h = (struct nr_timer_heap){0};
}

void nr_timer_heap_set(struct nr_timer_heap *h, struct nr_timer *t, int64_t deadline_ns)
{
    struct nr_timer_slot slot = {deadline_ns, t};
    t->deadline_ns = deadline_ns;
    if (t->heap_index != 0) {
        uint32_t at = t->heap_index - 1;
        NR_DCHECK(at < h->n && h->slots[at].timer == t);
        if (deadline_ns < h->slots[at].deadline_ns) {
            sift_up(h, at, slot);
        } else {
            sift_down(h, at, slot);
        }
        return;
    }
    if (h->n == h->capacity) {
        NR_ASSERT(h->capacity < UINT32_MAX / 2);
        h->capacity = h->capacity ? h->capacity * 2 : 64;
        h->slots = nr_realloc(h->slots, h->capacity * sizeof(*h->slots));
    }
    sift_up(h, h->n++, slot);
}

void nr_timer_heap_remove(struct nr_timer_heap *h, struct nr_timer *t)
{
    if (t->heap_index == 0) {
        return;
    }
    uint32_t at = t->heap_index - 1;
    NR_DCHECK(at < h->n && h->slots[at].timer == t);
    t->heap_index = 0;
    struct nr_timer_slot last = h->slots[--h->n];
    if (at == h->n) {
        return;
    }
    if (at > 0 && last.deadline_ns < h->slots[(at - 1) / ARITY].deadline_ns) {
        sift_up(h, at, last);
    } else {
        sift_down(h, at, last);
    }
}

struct nr_timer *nr_timer_heap_pop(struct nr_timer_heap *h, int64_t now_ns)
{
    if (h->n == 0 || h->slots[0].deadline_ns > now_ns) {
        return NULL;
    }
    struct nr_timer *t = h->slots[0].timer;
    nr_timer_heap_remove(h, t);
    return t;
}
