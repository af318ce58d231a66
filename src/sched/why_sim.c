/* The batcher's rules on invented time; see the header.
 *
 * DESIGN. The rules of batcher.c are repeated here on counts instead of lists, because all requests
 * are alike: a prefix is a number. The unit test holds the figures against queueing theory, the
 * end-to-end test against a server. A client comes back TURNAROUND after its answer, the clients of
 * one batch one after another, as they do over sockets: whether the second half of the clients is
 * found in the queue when the first half's batch ends decides how large batches become, and that is
 * what is asked.
 *
 * INVARIANTS
 *  1. Closed loop: clients = those on their way + queue + running.
 *  2. The heap holds at most one event per client, one per instance, one timed wake or arrival.
 */
#include "sched/why_sim.h"

#include <math.h>

#include "base/clock.h"
#include "base/mem.h"

#define TURNAROUND_NS 100000.0
#define STAGGER_NS 5000.0
#define HOLD_NS 5e6 /* at most, as in hold.c */
#define MAX_CLIENTS 1024u
#define MAX_QUEUE 4096u
#define WARM 2000u     /* answers that are not counted */
#define ANSWERS 10000u /* answers that are */
#define MAX_EVENTS 400000u

typedef enum event_kind {
    ARRIVE,
    END,
    LOOK
} event_kind;

struct event {
    double at_ns;
    event_kind kind;
    unsigned n;       /* END: requests of the batch … */
    double arrive_ns; /* … and the sum of their arrivals */
};

struct sim {
    const struct nr_why_setup *setup;
    const struct nr_why_load *load;
    struct event *heap;
    unsigned n_heap;
    double *queue; /* ring of arrivals */
    unsigned head, n_queue, idle;
    double look_ns; /* of the timed wake on the heap; 0 none */
    unsigned
        expected;   /* auto_size: requests that will wait when the clients of the last batch are */
    double hold_ns; /* back, and until when they are waited for (hold.c) */
    uint64_t random;
    unsigned answered;
    double begin_ns, sum_ns, last_ns; /* of what is counted */
};

static void push(struct sim *s, struct event e)
{
    unsigned i = s->n_heap++;
    while (i > 0 && s->heap[(i - 1) / 2].at_ns > e.at_ns) {
        s->heap[i] = s->heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    s->heap[i] = e;
}

static struct event pop(struct sim *s)
{
    struct event first = s->heap[0], last = s->heap[--s->n_heap];
    unsigned i = 0;
    for (unsigned child; (child = 2 * i + 1) < s->n_heap; i = child) {
        child += child + 1 < s->n_heap && s->heap[child + 1].at_ns < s->heap[child].at_ns;
        if (s->heap[child].at_ns >= last.at_ns) {
            break;
        }
        s->heap[i] = s->heap[child];
    }
    s->heap[i] = last;
    return first;
}

/* Exponential gap of mean 1 (xorshift64*). */
static double gap(struct sim *s)
{
    s->random ^= s->random >> 12;
    s->random ^= s->random << 25;
    s->random ^= s->random >> 27;
    uint64_t bits = (s->random * UINT64_C(2685821657736338717)) >> 11;
    return -log(((double)bits + 1) / 9007199254740993.0);
}

static bool preferred(const struct nr_batch_rules *rules, int64_t rows)
{
    for (unsigned i = 0; i < rules->n_preferred; i++) {
        if (rules->preferred[i] == rows) {
            return true;
        }
    }
    return false;
}

/* Requests that form the next batch; 0: wait until *ret_look_ns. */
static unsigned plan(const struct sim *s, double now_ns, double *ret_look_ns)
{
    const struct nr_batch_rules *rules = &s->setup->rules;
    if (!rules->batching) {
        return 1;
    }
    int64_t rows = s->load->rows;
    unsigned most = (unsigned)NR_MIN(NR_MAX(rules->max_rows / rows, 1), (int64_t)MAX_QUEUE);
    if (s->n_queue >= most) {
        return most;
    }
    if (rules->auto_size && s->n_queue < s->expected && now_ns < s->hold_ns) {
        *ret_look_ns = s->hold_ns;
        return 0;
    }
    for (unsigned n = s->n_queue; n > 0 && rules->n_preferred > 0; n--) {
        if (preferred(rules, n * rows)) {
            return n;
        }
    }
    *ret_look_ns = s->queue[s->head] + (double)rules->delay_ns;
    return now_ns >= *ret_look_ns ? s->n_queue : 0;
}

static void dispatch(struct sim *s, double now_ns)
{
    while (s->idle > 0 && s->n_queue > 0) {
        double look_ns = 0, sum_ns = 0;
        unsigned n = plan(s, now_ns, &look_ns);
        if (n == 0) {
            if (s->look_ns == 0 || look_ns < s->look_ns) {
                s->look_ns = look_ns;
                push(s, (struct event){.at_ns = look_ns, .kind = LOOK});
            }
            return;
        }
        for (unsigned i = 0; i < n; i++) {
            sum_ns += s->queue[s->head];
            s->head = (s->head + 1) % MAX_QUEUE;
        }
        s->n_queue -= n;
        s->idle--;
        double took_ns = s->setup->run_ns + s->setup->row_ns * (double)(n * s->load->rows);
        push(s,
             (struct event){.at_ns = now_ns + took_ns, .kind = END, .n = n, .arrive_ns = sum_ns});
    }
}

static void end(struct sim *s, const struct event *e)
{
    s->idle++;
    s->expected = s->n_queue + e->n;
    s->hold_ns = e->at_ns + NR_MIN(s->setup->run_ns / 2, HOLD_NS);
    if (s->answered < WARM && s->answered + e->n >= WARM) {
        s->begin_ns = e->at_ns;
        s->answered = WARM;
    } else {
        s->sum_ns += s->answered >= WARM ? e->n * e->at_ns - e->arrive_ns : 0;
        s->answered += e->n;
    }
    s->last_ns = e->at_ns;
    for (unsigned i = 0; i < e->n && s->load->clients > 0; i++) {
        push(s, (struct event){.at_ns = e->at_ns + TURNAROUND_NS + i * STAGGER_NS, .kind = ARRIVE});
    }
}

/* False when the queue is full: an open loop that nothing can serve. */
static bool arrive(struct sim *s, double now_ns)
{
    if (s->n_queue == MAX_QUEUE) {
        return false;
    }
    s->queue[(s->head + s->n_queue++) % MAX_QUEUE] = now_ns;
    if (s->load->clients == 0) {
        double next_ns = now_ns + gap(s) * 1e9 / s->load->rate_per_s;
        push(s, (struct event){.at_ns = next_ns, .kind = ARRIVE});
    }
    return true;
}

static bool play(struct sim *s)
{
    for (unsigned i = 0; i < MAX_EVENTS && s->answered < WARM + ANSWERS && s->n_heap > 0; i++) {
        struct event e = pop(s);
        if (e.kind == ARRIVE && !arrive(s, e.at_ns)) {
            return false;
        }
        if (e.kind == END) {
            end(s, &e);
        }
        if (e.kind == LOOK && e.at_ns == s->look_ns) {
            s->look_ns = 0;
        }
        dispatch(s, e.at_ns);
    }
    return true;
}

void nr_why_simulate(const struct nr_why_setup *setup, const struct nr_why_load *load,
                     struct nr_why_outcome *ret)
{
    struct nr_why_load l = *load;
    l.clients = NR_MIN(l.clients, MAX_CLIENTS);
    l.rows = NR_MAX(l.rows, 1);
    *ret = (struct nr_why_outcome){0};
    if ((l.clients == 0 && l.rate_per_s <= 0) || setup->run_ns + setup->row_ns <= 0) {
        return;
    }
    struct sim s = {.setup = setup,
                    .load = &l,
                    .idle = NR_MIN(NR_MAX(setup->instances, 1u), MAX_CLIENTS),
                    .random = UINT64_C(0x9e3779b97f4a7c15)};
    s.heap = nr_new_array(struct event, 2 * MAX_CLIENTS + 8); /* invariant 2 */
    s.queue = nr_new_array(double, MAX_QUEUE);
    for (unsigned i = 0; i < NR_MAX(l.clients, 1u); i++) {
        push(&s, (struct event){.at_ns = 1 + i * STAGGER_NS, .kind = ARRIVE});
    }
    ret->stable = play(&s);
    if (s.answered > WARM && s.last_ns > s.begin_ns) {
        ret->rate_per_s = (s.answered - WARM) / (s.last_ns - s.begin_ns) * 1e9;
        ret->latency_ns = s.sum_ns / (s.answered - WARM);
    }
    nr_free(s.heap);
    nr_free(s.queue);
}
