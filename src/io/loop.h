/* Event loop: one per I/O thread, epoll underneath. A loop never blocks and owns what it watches.
 *
 * One turn: wait → timers that are due → messages of other threads → ready descriptors → turn
 * hooks → again. Turn hooks are how work that became readable in one turn is answered together
 * (batch per turn). Each part takes what was there when it began: a timer, message or hook that a
 * callback adds runs in the next turn (which then does not wait), so no part can starve another.
 * All functions but nr_loop_post, nr_loop_stop, nr_loop_current and nr_loop_index are for the
 * owner thread only (checked in debug builds). The owner is the thread that called nr_loop_run or
 * nr_loop_turn last; before the first call the thread that made the loop may set things up.
 * Time: nr_loop_now is read once per turn, after the wait.
 */
#ifndef NR_IO_LOOP_H
#define NR_IO_LOOP_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/list.h"
#include "base/status.h"

struct nr_loop;

/* A watched descriptor, in its owner's storage; level-triggered. Unwatch before closing fd. */
struct nr_watch {
    int fd;
    uint32_t events; /* EPOLLIN | EPOLLOUT | EPOLLRDHUP … as now registered, with EPOLLERR, which
                        epoll always reports; 0: not watched. Set by the loop */
    void (*on_event)(struct nr_watch *w, uint32_t events); /* what is ready of those asked for,
                                                              and EPOLLERR, EPOLLHUP */
};

struct nr_timer { /* in its owner's storage; zeroed = not armed */
    int64_t deadline_ns;
    void (*on_timer)(struct nr_timer *t); /* not armed any more when called; may free or re-arm t */
    uint32_t heap_index;                  /* 1-based; 0: not armed */
};

/* A message to a loop; the node lives in its sender's object until `run` is called on the loop. */
struct nr_msg {
    struct nr_msg *_Atomic next;
    void (*run)(struct nr_msg *m); /* may free or post m again */
};

/* Called at the end of every turn in which it was armed with nr_loop_hook_arm. Late hooks run
 * behind all others, also when one of those armed them in the same turn: what a batch hook answers
 * is sent by the late hook of the connections without waiting for another turn. */
struct nr_turn_hook {
    struct nr_list node;
    void (*on_turn)(struct nr_turn_hook *h); /* disarmed when called; may free or re-arm h */
    bool armed;
    bool late;
};

nr_nodiscard nr_status nr_loop_new(unsigned index, struct nr_loop **ret, struct nr_err *err);
/* Accepts NULL. The loop must have ended, no thread may still post. Watches, timers and messages
 * that are left are forgotten, not called: who needs them run ends its work before the loop. */
void nr_loop_free(struct nr_loop *l);
/* On the owner thread, until nr_loop_stop; afterwards the loop belongs to who joins that thread. */
void nr_loop_run(struct nr_loop *l);
/* One turn that waits at most wait_ns (0: not at all, < 0: without end); false after stop. */
bool nr_loop_turn(struct nr_loop *l, int64_t wait_ns);
/* Any thread. The turn under way is finished; then run returns, for good. */
void nr_loop_stop(struct nr_loop *l);
/* The loop of this thread (the one it runs, or turned last), or NULL. */
struct nr_loop *nr_loop_current(void);
unsigned nr_loop_index(const struct nr_loop *l);
int64_t nr_loop_now(const struct nr_loop *l);

/* w->fd and w->on_event are set by the caller. NARU_EXHAUSTED: the user's limit of watches;
 * NARU_UNSUPPORTED: a regular file; NARU_EXISTS: the descriptor is already watched. */
nr_nodiscard nr_status nr_loop_watch(struct nr_loop *l, struct nr_watch *w, uint32_t events);
/* Changes what is asked for (no-op when equal); 0 leaves only EPOLLERR and EPOLLHUP. Events that
 * were ready before the change are filtered by what is asked for when they are delivered. */
void nr_loop_rewatch(struct nr_loop *l, struct nr_watch *w, uint32_t events);
/* Safe inside any callback: no event of this turn reaches w any more, it may be freed at once.
 * No-op when w is not watched. */
void nr_loop_unwatch(struct nr_loop *l, struct nr_watch *w);
void nr_loop_timer_set(struct nr_loop *l, struct nr_timer *t, int64_t deadline_ns); /* re-arms */
void nr_loop_timer_cancel(struct nr_loop *l, struct nr_timer *t); /* no-op when not armed */
/* Any thread, the owner included; wakes the loop only when it may be asleep. Messages of one
 * thread run in the order in which it posted them. What was written before the post is seen by
 * m->run. m must not be touched afterwards: it may have run and be gone. */
void nr_loop_post(struct nr_loop *l, struct nr_msg *m);
void nr_loop_hook_arm(struct nr_loop *l, struct nr_turn_hook *h); /* no-op when armed */

#endif
