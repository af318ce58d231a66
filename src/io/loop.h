/* Event loop: one per I/O thread, epoll underneath. A loop never blocks and owns what it watches.
 *
 * One turn: wait → timers that are due → messages of other threads → ready descriptors → turn
 * hooks → again. Turn hooks are how work that became readable in one turn is answered together
 * (batch per turn). All functions but nr_loop_post, nr_loop_stop and nr_loop_current are for the
 * owner thread only (checked in debug builds).
 * Time: nr_loop_now is read once per turn (and again after the turn hooks when asked to).
 */
#ifndef NR_IO_LOOP_H
#define NR_IO_LOOP_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/list.h"
#include "base/status.h"

struct nr_loop;

/* A watched descriptor, in its owner's storage; level-triggered. */
struct nr_watch {
    int fd;
    uint32_t events; /* EPOLLIN | EPOLLOUT | EPOLLRDHUP … as now registered */
    void (*on_event)(struct nr_watch *w, uint32_t events);
};

struct nr_timer { /* in its owner's storage; zeroed = not armed */
    int64_t deadline_ns;
    void (*on_timer)(struct nr_timer *t);
    uint32_t heap_index; /* 1-based; 0: not armed */
};

/* A message to a loop; the node lives in its sender's object until `run` is called on the loop. */
struct nr_msg {
    struct nr_msg *_Atomic next;
    void (*run)(struct nr_msg *m);
};

/* Called at the end of every turn in which it was armed with nr_loop_hook_arm. */
struct nr_turn_hook {
    struct nr_list node;
    void (*on_turn)(struct nr_turn_hook *h);
    bool armed;
};

nr_nodiscard nr_status nr_loop_new(unsigned index, struct nr_loop **ret, struct nr_err *err);
void nr_loop_free(struct nr_loop *l); /* accepts NULL; the loop must have ended */
void nr_loop_run(struct nr_loop *l);  /* on the owner thread, until nr_loop_stop */
bool nr_loop_turn(struct nr_loop *l, int64_t wait_ns); /* one turn, for tests; false after stop */
void nr_loop_stop(struct nr_loop *l); /* any thread */
struct nr_loop *nr_loop_current(void); /* the loop of this thread, or NULL */
unsigned nr_loop_index(const struct nr_loop *l);
int64_t nr_loop_now(const struct nr_loop *l);

nr_nodiscard nr_status nr_loop_watch(struct nr_loop *l, struct nr_watch *w, uint32_t events);
void nr_loop_rewatch(struct nr_loop *l, struct nr_watch *w, uint32_t events); /* no-op when equal */
void nr_loop_unwatch(struct nr_loop *l, struct nr_watch *w); /* safe inside any callback: no event
                                                                of this turn reaches it any more */
void nr_loop_timer_set(struct nr_loop *l, struct nr_timer *t, int64_t deadline_ns); /* re-arms */
void nr_loop_timer_cancel(struct nr_loop *l, struct nr_timer *t);
void nr_loop_post(struct nr_loop *l, struct nr_msg *m); /* any thread; wakes only when needed */
void nr_loop_hook_arm(struct nr_loop *l, struct nr_turn_hook *h);
bool nr_loop_busy(const struct nr_loop *l); /* more ready events wait in this turn */

#endif
