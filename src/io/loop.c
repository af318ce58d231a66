/* The event loop: epoll, a timer heap, a lock-free inbox, hooks at the end of a turn.
 *
 * Why epoll and level triggering: a session that stops reading in the middle (fairness: bounded
 * work per connection and turn) is simply told again next turn. Events are fetched 256 at a time.
 *
 * Inbox. Any thread pushes on a stack with one compare-and-swap; the loop takes the whole stack
 * with one exchange and reverses it, which gives back the order of posting. Nothing is popped one
 * by one, so there is no ABA problem, and an empty inbox costs the loop one load per turn.
 *
 * Waking. Writing an eventfd costs a system call on both sides, so it is done only when the loop
 * may be asleep:
 *     poster: push (A);  if the inbox was empty and asleep (B): asleep = false, write eventfd
 *     loop:   asleep = true (C);  if the inbox is not empty (D): do not wait
 * A to D are sequentially consistent, so of B and D at least one sees the other side's write:
 * either the poster sees `asleep`, or the loop sees the message. A poster that found the inbox
 * not empty relies on the one who made it so and has the same duty; the loop empties the inbox
 * only when it is awake. The eventfd is watched edge-triggered: every write is a new edge, so it
 * is never read.
 *
 * Invariants
 * 1. A watch is registered exactly while w->events != 0; its address is epoll's cookie. NULL is
 *    the cookie of the eventfd and of events that were unwatched while they waited.
 * 2. events[at_event + 1 .. n_events) are the events still to be delivered in this turn; outside
 *    the delivery n_events is 0.
 * 3. An armed hook is in `hooks`, in `late_hooks`, or in the list that this turn works off;
 *    h->armed says so.
 * Threads: inbox, asleep and stop are shared; everything else is the owner's.
 */
#include "io/loop.h"

#include <errno.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "io/timer.h"

#define BATCH 256
#define CACHE_LINE 64

struct nr_loop {
    int epoll_fd;
    int wake_fd;
    unsigned index;
    bool has_owner;
    bool has_pwait2; /* the kernel waits in nanoseconds (5.11) */
    pthread_t owner;
    int64_t now_ns;
    struct nr_timer_heap timers;
    int64_t due_ns; /* timers up to here run in this turn */
    bool in_timers; /* they are running: */
    bool has_late;  /* one was set for a time <= due_ns, and moved to due_ns + 1 */
    struct nr_list hooks, late_hooks;
    int n_events, at_event;
    struct epoll_event events[BATCH];

    /* Written by other threads: a line of their own, so that posting does not slow the turn. */
    _Alignas(CACHE_LINE) struct nr_msg *_Atomic inbox;
    _Atomic bool asleep;
    _Atomic bool stopped;
};

static _Thread_local struct nr_loop *current_loop;

static bool is_owner(const struct nr_loop *l)
{
    return !l->has_owner || pthread_equal(l->owner, pthread_self());
}

static void become_owner(struct nr_loop *l)
{
    l->owner = pthread_self();
    l->has_owner = true;
    current_loop = l;
}

nr_status nr_loop_new(unsigned index, struct nr_loop **ret, struct nr_err *err)
{
    struct nr_loop *l = nr_try_alloc_aligned(CACHE_LINE, sizeof(*l));
    if (l == NULL) {
        return nr_fail(err, NARU_NOMEM, "no memory for event loop %u (%zu bytes)", index,
                       sizeof(*l));
    }
    *l = (struct nr_loop){.index = index, .has_pwait2 = true};
    nr_list_init(&l->hooks);
    nr_list_init(&l->late_hooks);
    l->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    l->wake_fd = l->epoll_fd >= 0 ? eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK) : -1;
    struct epoll_event ev = {.events = EPOLLIN | EPOLLET, .data.ptr = NULL};
    if (l->wake_fd < 0 || epoll_ctl(l->epoll_fd, EPOLL_CTL_ADD, l->wake_fd, &ev) != 0) {
        nr_status status = nr_status_from_errno(errno);
        nr_fail(err, status,
                "cannot make event loop %u: %m; is the limit of open files (ulimit -n) "
                "large enough?",
                index);
        nr_loop_free(l);
        return status;
    }
    l->now_ns = nr_clock_now();
    *ret = l;
    return NARU_OK;
}

void nr_loop_free(struct nr_loop *l)
{
    if (l == NULL) {
        return;
    }
    if (l->wake_fd >= 0) {
        close(l->wake_fd);
    }
    if (l->epoll_fd >= 0) {
        close(l->epoll_fd);
    }
    nr_timer_heap_done(&l->timers);
    if (current_loop == l) {
        current_loop = NULL;
    }
    nr_free(l);
}

/* Whatever the caller stored before (a message, the stop flag) must be a sequentially consistent
 * store: see "Waking" above. */
static void wake(struct nr_loop *l)
{
    /* The plain load first: while the loop works, posters only read this line's flag. */
    if (atomic_load(&l->asleep) && atomic_exchange(&l->asleep, false)) {
        ssize_t n = write(l->wake_fd, &(uint64_t){1}, sizeof(uint64_t));
        /* EAGAIN would mean 2^64 - 2 unread wakes. */
        NR_ASSERT(n == (ssize_t)sizeof(uint64_t));
    }
}

void nr_loop_post(struct nr_loop *l, struct nr_msg *m)
{
    struct nr_msg *head = atomic_load_explicit(&l->inbox, memory_order_relaxed);
    do {
        atomic_store_explicit(&m->next, head, memory_order_relaxed);
        /* Release part pairs with the exchange in run_messages: what the poster wrote is seen. */
    } while (!atomic_compare_exchange_weak(&l->inbox, &head, m));
    if (head == NULL) {
        wake(l);
    }
}

void nr_loop_stop(struct nr_loop *l)
{
    atomic_store(&l->stopped, true);
    wake(l);
}

struct nr_loop *nr_loop_current(void)
{
    return current_loop;
}

unsigned nr_loop_index(const struct nr_loop *l)
{
    return l->index;
}

int64_t nr_loop_now(const struct nr_loop *l)
{
    return l->now_ns;
}

nr_status nr_loop_watch(struct nr_loop *l, struct nr_watch *w, uint32_t events)
{
    NR_DCHECK(is_owner(l) && w->events == 0 && w->on_event != NULL);
    struct epoll_event ev = {.events = events | EPOLLERR, .data.ptr = w};
    if (epoll_ctl(l->epoll_fd, EPOLL_CTL_ADD, w->fd, &ev) != 0) {
        return errno == EPERM ? NARU_UNSUPPORTED : nr_status_from_errno(errno);
    }
    w->events = ev.events;
    return NARU_OK;
}

void nr_loop_rewatch(struct nr_loop *l, struct nr_watch *w, uint32_t events)
{
    NR_DCHECK(is_owner(l) && w->events != 0);
    struct epoll_event ev = {.events = events | EPOLLERR, .data.ptr = w};
    if (ev.events != w->events) {
        /* Changing a registration allocates nothing; it fails only for a descriptor that was
         * closed under us. */
        NR_ASSERT(epoll_ctl(l->epoll_fd, EPOLL_CTL_MOD, w->fd, &ev) == 0);
        w->events = ev.events;
    }
}

void nr_loop_unwatch(struct nr_loop *l, struct nr_watch *w)
{
    NR_DCHECK(is_owner(l));
    if (w->events == 0) {
        return;
    }
    int rc = epoll_ctl(l->epoll_fd, EPOLL_CTL_DEL, w->fd, NULL);
    NR_DCHECK(rc == 0);
    (void)rc;
    w->events = 0;
    for (int i = l->at_event + 1; i < l->n_events; i++) {
        if (l->events[i].data.ptr == w) {
            l->events[i].data.ptr = NULL;
        }
    }
}

void nr_loop_timer_set(struct nr_loop *l, struct nr_timer *t, int64_t deadline_ns)
{
    NR_DCHECK(is_owner(l) && t->on_timer != NULL);
    if (l->in_timers && deadline_ns <= l->due_ns) {
        /* Due already, but it must wait for the next turn: else a timer that re-arms itself for
         * "now" would keep this turn for ever. */
        deadline_ns = l->due_ns + 1;
        l->has_late = true;
    }
    nr_timer_heap_set(&l->timers, t, deadline_ns);
}

void nr_loop_timer_cancel(struct nr_loop *l, struct nr_timer *t)
{
    NR_DCHECK(is_owner(l));
    nr_timer_heap_remove(&l->timers, t);
}

void nr_loop_hook_arm(struct nr_loop *l, struct nr_turn_hook *h)
{
    NR_DCHECK(is_owner(l) && h->on_turn != NULL);
    if (!h->armed) {
        h->armed = true;
        nr_list_append(h->late ? &l->late_hooks : &l->hooks, &h->node);
    }
}

/* Fetches events; wait_ns < 0: without end. */
static int wait_events(struct nr_loop *l, int64_t wait_ns)
{
#ifdef SYS_epoll_pwait2
    /* By number rather than by name: the C library has it only since glibc 2.35. */
    if (wait_ns > 0 && l->has_pwait2) {
        struct timespec t = {.tv_sec = (time_t)(wait_ns / NR_S_NS),
                             .tv_nsec = (long)(wait_ns % NR_S_NS)};
        long n = syscall(SYS_epoll_pwait2, l->epoll_fd, l->events, BATCH, &t, NULL, (size_t)0);
        if (n >= 0 || errno == EINTR) {
            return n > 0 ? (int)n : 0;
        }
        l->has_pwait2 = false; /* an older kernel, or a filter that does not know the call */
    }
#endif
    int wait_ms = -1;
    if (wait_ns >= 0) {
        /* Up, not down: waking early would spin until the deadline. */
        int64_t ms = wait_ns / NR_MS_NS + (wait_ns % NR_MS_NS != 0);
        wait_ms = ms > INT32_MAX ? INT32_MAX : (int)ms;
    }
    int n = epoll_wait(l->epoll_fd, l->events, BATCH, wait_ms);
    NR_ASSERT(n >= 0 || errno == EINTR);
    return n > 0 ? n : 0;
}

/* How long this turn may sleep, at most wait_ns (< 0: without end). */
static int64_t sleep_ns(const struct nr_loop *l, int64_t wait_ns)
{
    if (!nr_list_empty(&l->hooks) || !nr_list_empty(&l->late_hooks) || l->has_late) {
        return 0;
    }
    int64_t next = nr_timer_heap_next(&l->timers);
    if (next != INT64_MAX) {
        int64_t now = nr_clock_now();
        int64_t left = 0;
        if (next > now && __builtin_sub_overflow(next, now, &left)) {
            left = INT64_MAX;
        }
        wait_ns = wait_ns < 0 ? left : NR_MIN(wait_ns, left);
    }
    /* A fake clock moves without waking anyone: look again soon. */
    if (NR_UNLIKELY(nr_clock_is_fake()) && (wait_ns < 0 || wait_ns > NR_MS_NS)) {
        wait_ns = NR_MS_NS;
    }
    return wait_ns;
}

static void wait_turn(struct nr_loop *l, int64_t wait_ns)
{
    wait_ns = sleep_ns(l, wait_ns);
    if (wait_ns != 0) {
        atomic_store(&l->asleep, true);
        if (atomic_load(&l->inbox) != NULL || atomic_load(&l->stopped)) {
            wait_ns = 0;
        }
    }
    l->n_events = wait_events(l, wait_ns);
    l->at_event = -1;
    /* Relaxed: a poster that still sees true writes a wake that is not needed, no more. */
    if (atomic_load_explicit(&l->asleep, memory_order_relaxed)) {
        atomic_store_explicit(&l->asleep, false, memory_order_relaxed);
    }
    l->now_ns = nr_clock_now();
}

static void run_timers(struct nr_loop *l)
{
    /* Late ones of the last turn are due even if the clock (a fake one) stands still. */
    int64_t late_ns = l->has_late ? l->due_ns + 1 : INT64_MIN;
    l->due_ns = NR_MAX(l->now_ns, late_ns);
    l->has_late = false;
    l->in_timers = true;
    for (struct nr_timer *t; (t = nr_timer_heap_pop(&l->timers, l->due_ns)) != NULL;) {
        t->on_timer(t);
    }
    l->in_timers = false;
}

static void run_messages(struct nr_loop *l)
{
    if (atomic_load_explicit(&l->inbox, memory_order_relaxed) == NULL) {
        return;
    }
    struct nr_msg *m = atomic_exchange_explicit(&l->inbox, NULL, memory_order_acquire);
    struct nr_msg *first = NULL;
    while (m != NULL) {
        struct nr_msg *older = atomic_load_explicit(&m->next, memory_order_relaxed);
        atomic_store_explicit(&m->next, first, memory_order_relaxed);
        first = m;
        m = older;
    }
    while (first != NULL) {
        struct nr_msg *next = atomic_load_explicit(&first->next, memory_order_relaxed);
        first->run(first); /* may be gone now */
        first = next;
    }
}

static void run_events(struct nr_loop *l)
{
    for (l->at_event = 0; l->at_event < l->n_events; l->at_event++) {
        const struct epoll_event *ev = &l->events[l->at_event];
        struct nr_watch *w = ev->data.ptr;
        if (w == NULL) {
            continue;
        }
        uint32_t ready = ev->events & (w->events | EPOLLERR | EPOLLHUP);
        if (ready != 0) {
            w->on_event(w, ready);
        }
    }
    l->n_events = 0;
    l->at_event = 0;
}

static void run_hooks(struct nr_list *hooks)
{
    struct nr_list due;
    nr_list_init(&due);
    nr_list_splice(&due, hooks);
    for (struct nr_list *node = nr_list_pop(&due); node != NULL; node = nr_list_pop(&due)) {
        struct nr_turn_hook *h = nr_container_of(node, struct nr_turn_hook, node);
        h->armed = false;
        h->on_turn(h);
    }
}

static void turn(struct nr_loop *l, int64_t wait_ns)
{
    wait_turn(l, wait_ns);
    run_timers(l);
    run_messages(l);
    run_events(l);
    run_hooks(&l->hooks);
    run_hooks(&l->late_hooks);
}

bool nr_loop_turn(struct nr_loop *l, int64_t wait_ns)
{
    become_owner(l);
    turn(l, wait_ns);
    return !atomic_load_explicit(&l->stopped, memory_order_relaxed);
}

void nr_loop_run(struct nr_loop *l)
{
    become_owner(l);
    while (!atomic_load_explicit(&l->stopped, memory_order_relaxed)) {
        turn(l, -1);
    }
    current_loop = NULL;
    l->has_owner = false; /* who joins this thread may take apart what is left */
}
