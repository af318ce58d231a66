/* Forms of an elastic model: made when parallel.h wants them, dropped when nobody does.
 *
 * DESIGN. Making a form takes the plug-in milliseconds to seconds, so it is work of its own for an executor, and
 * no request waits for it: until it is there the model runs as before. Whether other processes want the cores is
 * read from /proc by whoever has just ended an execution, three times a second, without the lock.
 *
 * THREADS. s->forming makes the former run once at a time; the plug-in wants that. parallel is under s->lock.
 */
#include "base/arena.h"
#include "base/clock.h"
#include "base/cpu_times.h"
#include "base/log.h"
#include "sched/sched_priv.h"

void nr_form_ended(struct nr_place *p, bool ran)
{
    struct nr_sched *s = p->sched;
    p->beside = 1000;
    if (!s->parallel.cfg.on) {
        return;
    }
    nr_batch_form_set(p->batch, NARU_FORM_WIDE); /* on an I/O thread there is no other */
    int64_t run_ns = p->infer_end_ns - p->begin_ns;
    pthread_mutex_lock(&s->lock);
    p->beside = nr_parallel_beside(&s->parallel, &p->run, run_ns, p->infer_end_ns);
    nr_parallel_end(&s->parallel, &p->run, ran ? p->rows : 0, run_ns, s->queue.n, p->infer_end_ns);
    pthread_mutex_unlock(&s->lock);
}

bool nr_form_may_begin(struct nr_sched *s, int64_t now_ns)
{
    return !nr_list_empty(&s->idle) && s->queue.n > 0 &&
           nr_parallel_choose(&s->parallel, s->queue.n, now_ns) != NR_WAY_NONE;
}

/* Under the lock: more executors where more executions than cores are to run. */
static void call_crowd(struct nr_sched *s, bool wanted)
{
    if (s->crowded != wanted) {
        s->crowded = wanted;
        nr_exec_crowd(s->cfg.exec, wanted);
    }
}

static void look(struct nr_sched *s)
{
    struct nr_arena a;
    int64_t busy_ns, own_ns;
    s->looking = true;
    pthread_mutex_unlock(&s->lock);
    nr_arena_init(&a, 0);
    nr_cpu_sums_read(&a, &busy_ns, &own_ns);
    nr_arena_done(&a);
    pthread_mutex_lock(&s->lock);
    s->looking = false;
    nr_parallel_look(&s->parallel, busy_ns, own_ns, nr_clock_now());
}

void nr_form_tend(struct nr_sched *s, int64_t now_ns)
{
    if (!s->parallel.cfg.on) {
        return;
    }
    if (!s->looking && nr_parallel_looks(&s->parallel, now_ns)) {
        look(s);
    }
    call_crowd(s, nr_parallel_crowds(&s->parallel));
    if (nr_parallel_has_job(&s->parallel, now_ns)) {
        nr_exec_wake(s->cfg.exec, &s->former);
    }
}

void nr_form_idle(struct nr_sched *s)
{
    if (s->parallel.cfg.on) {
        int64_t at_ns = nr_parallel_unused_ns(&s->parallel);
        call_crowd(s, false);
        if (at_ns != 0) {
            nr_exec_wake_at(s->cfg.exec, &s->former, at_ns);
        }
    }
}

bool nr_form_run(struct nr_runnable *runnable)
{
    struct nr_sched *s = nr_container_of(runnable, struct nr_sched, former);
    uint32_t form;
    bool make;
    pthread_mutex_lock(&s->lock);
    if (s->forming) {
        pthread_mutex_unlock(&s->lock);
        return false; /* the other one sees what there is to do */
    }
    s->forming = true;
    while ((form = nr_parallel_job(&s->parallel, nr_clock_now(), &make)) != 0) {
        struct nr_err err = {0};
        pthread_mutex_unlock(&s->lock);
        nr_status st = nr_plugin_model_form(s->cfg.model, form, make, &err);
        if (st != NARU_OK) {
            nr_log(NR_LOG_DEBUG, "sched", err.text, NR_KV_TEXT("model", s->cfg.name));
        }
        pthread_mutex_lock(&s->lock);
        if (make) {
            nr_parallel_made(&s->parallel, form, st == NARU_OK, nr_clock_now());
        }
    }
    s->forming = false;
    bool wanted = nr_form_may_begin(s, nr_clock_now());
    pthread_mutex_unlock(&s->lock);
    if (wanted) {
        nr_sched_wake(s);
    }
    return false;
}
