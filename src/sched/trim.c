/* A model that has been idle for a while gives back what it keeps for its next execution.
 *
 * DESIGN. Every execution on an executor notes when it ended; the first one also arms a timed wake, which
 * looks whether the model has been idle since, and else arms the next: one wake in idle_trim_ns, however
 * many executions there are. A second runnable has it, because a wake of the first takes its timed
 * wake away. What goes back: the buffers of the batches, what the plug-in keeps (arenas), and then, if
 * that was much, free memory of the heap. Models that run on I/O threads are small and are left alone.
 *
 * While the batches are trimmed no place is idle. A request that comes then waits some microseconds in the
 * queue, and the executor is woken for it afterwards. The plug-in's part may run beside executions.
 *
 * Invariants: sched_priv.h. trim_armed is true exactly while the trimmer's wake is pending or it runs.
 */
#include "base/buf.h"
#include "base/clock.h"
#include "base/reclaim.h"
#include "sched/sched_priv.h"

#define HEAP_BYTES ((uint64_t)1 << 20) /* given back: worth a look at the heap */

void nr_trim_arm(struct nr_sched *s)
{
    int64_t idle_ns = s->cfg.limits.idle_trim_ns;
    s->used_ns = nr_clock_now();
    if (!s->trim_armed && idle_ns > 0) {
        s->trim_armed = true;
        nr_exec_wake_at(s->cfg.exec, &s->trimmer, s->used_ns + idle_ns);
    }
}

/* Under the lock. False: it was used meanwhile, and the next look is arranged. */
static bool is_idle(struct nr_sched *s)
{
    int64_t idle_ns = s->cfg.limits.idle_trim_ns;
    int64_t now_ns = nr_clock_now(), due_ns = s->used_ns + idle_ns;
    if (s->n_running == 0 && now_ns >= due_ns) {
        s->trim_armed = false;
        return true;
    }
    nr_exec_wake_at(s->cfg.exec, &s->trimmer, now_ns < due_ns ? due_ns : now_ns + idle_ns);
    return false;
}

bool nr_trim_run(struct nr_runnable *runnable)
{
    struct nr_sched *s = nr_container_of(runnable, struct nr_sched, trimmer);
    struct nr_list idle;
    uint64_t bytes = 0;
    nr_list_init(&idle);
    pthread_mutex_lock(&s->lock);
    bool go = is_idle(s);
    if (go) {
        nr_list_splice(&idle, &s->idle);
        nr_form_idle(s);
    }
    pthread_mutex_unlock(&s->lock);
    if (!go) {
        return false;
    }
    NR_LIST_FOREACH (node, &idle) {
        bytes += nr_batch_trim(nr_container_of(node, struct nr_place, node)->batch);
    }
    pthread_mutex_lock(&s->lock);
    nr_list_splice(&s->idle, &idle);
    bool wanted = s->queue.n > 0;
    pthread_mutex_unlock(&s->lock);
    if (wanted) {
        nr_sched_wake(s);
    }
    bytes += nr_room_trim(s->cfg.room);
    bytes += nr_plugin_model_trim(s->cfg.model);
    if (bytes >= HEAP_BYTES) {
        nr_buf_thread_done(); /* the buffers above may lie in this thread's pool now */
        nr_reclaim_heap();
    }
    return false;
}
