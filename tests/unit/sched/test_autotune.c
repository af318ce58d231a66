/* What the scheduler decides where nobody said: sizes (batchsize.c) and waiting for clients that come
 * back (hold.c), against the best of a sweep of fixed settings, on invented time.
 *
 * The clients of a closed loop come back RETURN after their answer, one after another, as long as the
 * traffic wants them. Default and fixed settings are played by the same loop, which does what
 * take_batch and release_place of sched.c do. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/status.h"
#include "sched/batchsize.h"
#include "sched/hold.h"

#define RETURN_NS (100 * NR_US_NS)
#define STAGGER_NS (5 * NR_US_NS)
#define CLIENTS_MAX 64u

/* Clients that ask at a time. */
typedef unsigned (*traffic)(int64_t now_ns, unsigned clients);

struct world {
    traffic traffic;
    int64_t max_rows, delay_ns; /* a fixed setting; max_rows 0: the default */
    struct nr_batchsize size;
    struct nr_hold hold;
    int64_t fixed_ns, row_ns, now_ns;
    unsigned n_clients;
    int64_t back_ns[CLIENTS_MAX]; /* of a client on its way; INT64_MAX: queued or running */
    int64_t queued_ns[CLIENTS_MAX];
    unsigned n_queued;
    int64_t end_ns; /* of the batch that runs; INT64_MAX: none */
    unsigned rows;
    uint64_t answered, n_late;
};

static unsigned steady(int64_t now_ns, unsigned clients)
{
    (void)now_ns;
    return clients;
}

static unsigned bursts(int64_t now_ns, unsigned clients) /* 1 s of all, half a second of none */
{
    return now_ns % (1500 * NR_MS_NS) < NR_S_NS ? clients : 0;
}

static unsigned ramps(int64_t now_ns, unsigned clients) /* up and down within 4 s */
{
    int64_t at_ns = now_ns % (4 * NR_S_NS);
    at_ns = at_ns < 2 * NR_S_NS ? at_ns : 4 * NR_S_NS - at_ns;
    return 1 + (unsigned)(((clients - 1) * at_ns + NR_S_NS) / (2 * NR_S_NS));
}

static void start(struct world *w, traffic t, unsigned n_clients, double fixed_ms, double row_ms)
{
    memset(w, 0, sizeof(*w));
    w->traffic = t;
    w->n_clients = n_clients;
    w->fixed_ns = (int64_t)(fixed_ms * 1e6);
    w->row_ns = (int64_t)(row_ms * 1e6);
    w->now_ns = NR_S_NS;
    w->end_ns = INT64_MAX;
    nr_batchsize_init(&w->size, 64, 0);
    nr_hold_init(&w->hold);
    for (unsigned i = 0; i < CLIENTS_MAX; i++) {
        w->back_ns[i] = i < n_clients ? w->now_ns + (int64_t)i * STAGGER_NS : INT64_MAX;
    }
}

/* Rows of the next batch of a fixed setting; 0: *ret_look_ns. */
static unsigned plan_fixed(const struct world *w, int64_t *ret_look_ns)
{
    if (w->n_queued < w->max_rows && w->now_ns < w->queued_ns[0] + w->delay_ns) {
        *ret_look_ns = w->queued_ns[0] + w->delay_ns;
        return 0;
    }
    return (unsigned)NR_MIN((int64_t)w->n_queued, w->max_rows);
}

static unsigned plan_default(struct world *w, int64_t *ret_look_ns)
{
    int64_t waited_ns = w->now_ns - w->queued_ns[0];
    int64_t fixed_ns = nr_batchsize_fixed(&w->size, waited_ns);
    int64_t soon = nr_hold_rows(&w->hold, w->n_queued, fixed_ns, w->now_ns);
    int64_t limit = nr_batchsize_limit(&w->size, soon, waited_ns, w->now_ns);
    if (w->n_queued < limit) {
        *ret_look_ns = nr_hold_until(&w->hold, w->n_queued, fixed_ns, w->now_ns);
        if (*ret_look_ns != 0) {
            return 0;
        }
    }
    unsigned n = (unsigned)NR_MIN((int64_t)w->n_queued, limit);
    nr_hold_took(&w->hold, n, fixed_ns, w->now_ns);
    return n;
}

/* As take_batch. When to look again, INT64_MAX: when something happens. */
static int64_t take(struct world *w)
{
    int64_t look_ns = INT64_MAX;
    if (w->n_queued == 0 || w->end_ns != INT64_MAX) {
        return look_ns;
    }
    unsigned n = w->max_rows > 0 ? plan_fixed(w, &look_ns) : plan_default(w, &look_ns);
    if (n > 0) {
        w->rows = n;
        w->end_ns = w->now_ns + w->fixed_ns + n * w->row_ns;
        for (unsigned i = 0; i < n; i++) {
            w->n_late += w->size.target_ns > 0 && w->end_ns - w->queued_ns[i] > w->size.target_ns;
        }
        w->n_queued -= n;
        memmove(w->queued_ns, w->queued_ns + n, w->n_queued * sizeof(w->queued_ns[0]));
        return INT64_MAX;
    }
    return look_ns;
}

static void end(struct world *w)
{
    int64_t run_ns = w->fixed_ns + w->rows * w->row_ns;
    nr_batchsize_observe(&w->size, w->rows, run_ns, w->now_ns);
    nr_hold_ended(&w->hold, w->rows, w->n_queued, w->now_ns);
    w->end_ns = INT64_MAX;
    w->answered += w->rows;
    for (unsigned i = 0, sent = 0; i < w->n_clients && sent < w->rows; i++) {
        if (w->back_ns[i] == INT64_MAX) { /* which client it is does not matter */
            w->back_ns[i] = w->now_ns + RETURN_NS + (int64_t)sent++ * STAGGER_NS;
        }
    }
}

static void arrivals(struct world *w)
{
    unsigned wanted = w->traffic(w->now_ns, w->n_clients);
    for (unsigned i = 0; i < w->n_clients; i++) {
        if (w->back_ns[i] > w->now_ns) {
            continue;
        }
        if (i >= wanted) { /* rests */
            w->back_ns[i] = w->now_ns + 5 * NR_MS_NS + (int64_t)i * STAGGER_NS;
            continue;
        }
        w->back_ns[i] = INT64_MAX;
        w->queued_ns[w->n_queued++] = w->now_ns;
    }
}

/* Plays for so long; requests a second. */
static double play(struct world *w, int64_t for_ns)
{
    int64_t until_ns = w->now_ns + for_ns;
    uint64_t before = w->answered;
    while (w->now_ns < until_ns) {
        int64_t next_ns = NR_MIN(until_ns, take(w));
        next_ns = NR_MIN(next_ns, w->end_ns);
        for (unsigned i = 0; i < w->n_clients; i++) {
            next_ns = NR_MIN(next_ns, w->back_ns[i]);
        }
        w->now_ns = next_ns;
        if (w->end_ns <= w->now_ns) {
            end(w);
        }
        arrivals(w);
    }
    return (double)(w->answered - before) / (double)for_ns * 1e9;
}

static const struct cost {
    double fixed_ms, row_ms;
} costs[] = {{10, 1}, {20, 0.2}, {4, 4}, {0, 5}, {2, 0.5}};

static double best_fixed(traffic t, unsigned clients, const struct cost *c)
{
    static const int64_t delays_us[] = {0, 200, 500, 1000, 2000, 5000};
    double best = 0;
    for (int64_t rows = 1; rows <= 64; rows *= 2) {
        for (size_t i = 0; i < NR_COUNT(delays_us); i++) {
            struct world w;
            start(&w, t, clients, c->fixed_ms, c->row_ms);
            w.max_rows = rows;
            w.delay_ns = delays_us[i] * NR_US_NS;
            best = NR_MAX(best, play(&w, 4 * NR_S_NS));
        }
    }
    return best;
}

static void compare(traffic t, const char *name)
{
    static const unsigned clients[] = {1, 2, 3, 6, 8, 12, 16, 24, 48, 64};
    unsigned below = 0;
    for (size_t k = 0; k < NR_COUNT(costs); k++) {
        for (size_t i = 0; i < NR_COUNT(clients); i++) {
            struct world w;
            start(&w, t, clients[i], costs[k].fixed_ms, costs[k].row_ms);
            play(&w, 8 * NR_S_NS); /* learns */
            double rate = play(&w, 20 * NR_S_NS), best = best_fixed(t, clients[i], &costs[k]);
            if (rate < 0.95 * best) {
                print_message("%s, %.1f + %.1f ms, %u clients: %.1f/s of %.1f/s (%.2f), size %d\n",
                              name, costs[k].fixed_ms, costs[k].row_ms, clients[i], rate, best,
                              rate / best, 1 << w.size.step);
                below++;
            }
        }
    }
    assert_int_equal(below, 0);
}

static void test_steady(void **state)
{
    (void)state;
    compare(steady, "steady");
}

static void test_bursts(void **state)
{
    (void)state;
    compare(bursts, "bursts");
}

static void test_ramps(void **state)
{
    (void)state;
    compare(ramps, "ramps");
}

/* Share of answers that come too late, and the rate. */
static double play_target(unsigned clients, int64_t target_ms, double *ret_rate)
{
    struct world w;
    start(&w, steady, clients, 10, 1);
    w.size.target_ns = target_ms * NR_MS_NS;
    play(&w, 8 * NR_S_NS);
    uint64_t before = w.answered;
    w.n_late = 0;
    *ret_rate = play(&w, 20 * NR_S_NS);
    return (double)w.n_late / (double)(w.answered - before);
}

static void test_latency_target(void **state)
{
    (void)state;
    double rate;
    assert_true(play_target(8, 30, &rate) < 0.01); /* all together: 18 ms */
    assert_true(rate > 0.95 * 8 / 0.0181);
    assert_true(play_target(8, 1000, &rate) == 0);
    assert_true(rate > 0.95 * 8 / 0.0181);
    /* 18 ms are too long: some are answered in time instead of none */
    assert_true(play_target(8, 17, &rate) < 0.7);
    /* far out of reach: as if there were none */
    assert_true(play_target(48, 15, &rate) > 0.5);
    assert_true(rate > 0.7 * 48 / 0.058);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_steady),
        cmocka_unit_test(test_bursts),
        cmocka_unit_test(test_ramps),
        cmocka_unit_test(test_latency_target),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
