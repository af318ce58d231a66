/* The loop: order of a turn, watches removed in callbacks, timers, posts of many threads, stop. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "io/loop.h"
#include "unit/io/deny_call.h"

static struct nr_loop *make_loop(void)
{
    struct nr_loop *l = NULL;
    struct nr_err err = {0};
    assert_int_equal(nr_loop_new(3, &l, &err), NARU_OK);
    return l;
}

/* What happened, one letter each. */
static char trace[256];
static void note(char c)
{
    size_t n = strlen(trace);
    assert_true(n + 1 < sizeof(trace));
    trace[n] = c;
    trace[n + 1] = '\0';
}
static int reset_trace(void **state)
{
    (void)state;
    trace[0] = '\0';
    nr_clock_fake(false, 0);
    return 0;
}

struct pair { /* one end is watched, the other one is written */
    struct nr_watch watch;
    int other;
    char letter;
    struct pair *victim; /* unwatched and closed by this one's callback */
};

static void pair_open(struct pair *p, char letter, void (*on_event)(struct nr_watch *, uint32_t))
{
    int fds[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds), 0);
    *p = (struct pair){
        .watch = {.fd = fds[0], .on_event = on_event}, .other = fds[1], .letter = letter};
}
static void pair_close(struct pair *p)
{
    close(p->watch.fd);
    close(p->other);
}
static void pair_send(struct pair *p)
{
    assert_int_equal(write(p->other, "x", 1), 1);
}
static void on_readable(struct nr_watch *w, uint32_t events)
{
    struct pair *p = nr_container_of(w, struct pair, watch);
    char c;
    if (events & EPOLLIN) {
        (void)!read(w->fd, &c, 1);
    }
    note(p->letter);
    if (p->victim != NULL) {
        nr_loop_unwatch(nr_loop_current(), &p->victim->watch);
        memset(&p->victim->watch, 0xff, sizeof(p->victim->watch)); /* as if freed */
        p->victim = NULL;
    }
}

static void test_new_and_free(void **state)
{
    (void)state;
    nr_loop_free(NULL);
    assert_null(nr_loop_current());
    struct nr_loop *l = make_loop();
    assert_int_equal(nr_loop_index(l), 3);
    assert_true(nr_loop_turn(l, 0));
    assert_ptr_equal(nr_loop_current(), l);
    assert_true(nr_loop_now(l) <= nr_clock_now());
    nr_loop_free(l);
    assert_null(nr_loop_current());
}

static void test_new_fails_cleanly(void **state)
{
    (void)state;
    struct nr_loop *l = NULL;
    struct nr_err err = {0};
    nr_mem_fail_after(1, false);
    assert_int_equal(nr_loop_new(0, &l, &err), NARU_NOMEM);
    nr_mem_fail_after(0, false);
    struct rlimit before;
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
    for (rlim_t extra = 0; extra < 2; extra++) { /* neither epoll nor eventfd, then epoll only */
        int probe = dup(0);
        assert_true(probe >= 0);
        close(probe);
        struct rlimit low = {(rlim_t)probe + extra, before.rlim_max};
        assert_int_equal(setrlimit(RLIMIT_NOFILE, &low), 0);
        nr_status status = nr_loop_new(0, &l, &err);
        assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
        assert_int_equal(status, NARU_EXHAUSTED);
        assert_non_null(strstr(err.text, "ulimit"));
        assert_null(l);
        int again = dup(0); /* nothing leaked */
        assert_int_equal(again, probe);
        close(again);
    }
}

static void on_timer_note(struct nr_timer *t)
{
    (void)t;
    note('t');
}
static void on_message_note(struct nr_msg *m)
{
    (void)m;
    note('m');
}
static void on_hook_note(struct nr_turn_hook *h)
{
    (void)h;
    note('h');
}

static void test_order_of_a_turn(void **state)
{
    (void)state;
    struct nr_loop *l = make_loop();
    struct pair p;
    pair_open(&p, 'e', on_readable);
    struct nr_timer t = {.on_timer = on_timer_note};
    struct nr_msg m = {.run = on_message_note};
    struct nr_turn_hook h = {.on_turn = on_hook_note};
    assert_int_equal(nr_loop_watch(l, &p.watch, EPOLLIN), NARU_OK);
    pair_send(&p);
    nr_loop_hook_arm(l, &h);
    nr_loop_hook_arm(l, &h); /* once */
    nr_loop_post(l, &m);
    nr_loop_timer_set(l, &t, nr_loop_now(l));
    assert_true(nr_loop_turn(l, -1));
    assert_string_equal(trace, "tmeh");
    assert_false(h.armed);
    nr_loop_turn(l, 0);
    assert_string_equal(trace, "tmeh");
    nr_loop_unwatch(l, &p.watch);
    nr_loop_unwatch(l, &p.watch); /* no-op */
    pair_close(&p);
    nr_loop_free(l);
}

/* All parts add work to themselves for ever: each turn still ends and runs each once. */
static void on_timer_again(struct nr_timer *t)
{
    note('t');
    nr_loop_timer_set(nr_loop_current(), t, nr_loop_now(nr_loop_current()) - 5);
}
static void on_message_again(struct nr_msg *m)
{
    note('m');
    nr_loop_post(nr_loop_current(), m);
}
static void on_hook_again(struct nr_turn_hook *h)
{
    note('h');
    nr_loop_hook_arm(nr_loop_current(), h);
}

static void test_new_work_waits_a_turn(void **state)
{
    (void)state;
    for (int faked = 0; faked < 2; faked++) {
        nr_clock_fake(faked, 1000); /* a clock that stands still must not hold timers back */
        trace[0] = '\0';
        struct nr_loop *l = make_loop();
        struct nr_timer t = {.on_timer = on_timer_again};
        struct nr_msg m = {.run = on_message_again};
        struct nr_turn_hook h = {.on_turn = on_hook_again};
        nr_loop_timer_set(l, &t, 0);
        nr_loop_post(l, &m);
        nr_loop_hook_arm(l, &h);
        for (int i = 0; i < 4; i++) {
            nr_loop_turn(l, -1); /* does not sleep either */
        }
        assert_string_equal(trace, "tmhtmhtmhtmh");
        nr_loop_timer_cancel(l, &t);
        nr_loop_timer_cancel(l, &t); /* no-op */
        h.on_turn = on_hook_note;
        m.run = on_message_note;
        nr_loop_turn(l, 0);
        assert_string_equal(trace, "tmhtmhtmhtmhmh");
        nr_loop_free(l);
    }
}

/* A late hook armed by another hook, or before it, runs in the same turn and behind all others. */
static struct nr_turn_hook *late_hook;
static void on_hook_arms_late(struct nr_turn_hook *h)
{
    (void)h;
    note('h');
    nr_loop_hook_arm(nr_loop_current(), late_hook);
}
static void on_hook_late(struct nr_turn_hook *h)
{
    (void)h;
    note('l');
}

static void test_late_hook(void **state)
{
    (void)state;
    struct nr_loop *l = make_loop();
    struct nr_turn_hook h = {.on_turn = on_hook_arms_late};
    struct nr_turn_hook late = {.on_turn = on_hook_late, .late = true};
    late_hook = &late;
    nr_loop_hook_arm(l, &h);
    nr_loop_turn(l, -1);
    assert_string_equal(trace, "hl");
    nr_loop_hook_arm(l, &late);
    nr_loop_hook_arm(l, &h);
    nr_loop_turn(l, -1); /* does not sleep for a late hook either */
    assert_string_equal(trace, "hlhl");
    nr_loop_free(l);
}

/* The first callback of a turn unwatches all others, whose events were already fetched. */
static struct pair many[300];
static int n_called;
static void on_event_unwatch_all(struct nr_watch *w, uint32_t events)
{
    (void)events;
    n_called++;
    for (size_t i = 0; i < NR_COUNT(many); i++) {
        struct nr_watch *other = &many[i].watch;
        nr_loop_unwatch(nr_loop_current(), other);
        other->on_event = NULL; /* a late delivery would crash */
    }
    assert_int_equal(w->events, 0);
}

static void test_unwatch_in_a_callback(void **state)
{
    (void)state;
    struct nr_loop *l = make_loop();
    for (size_t i = 0; i < NR_COUNT(many); i++) {
        pair_open(&many[i], 'x', on_event_unwatch_all);
        assert_int_equal(nr_loop_watch(l, &many[i].watch, EPOLLIN), NARU_OK);
        pair_send(&many[i]);
    }
    nr_loop_turn(l, -1);
    nr_loop_turn(l, 0);
    assert_int_equal(n_called, 1);
    for (size_t i = 0; i < NR_COUNT(many); i++) {
        pair_close(&many[i]);
    }
    nr_loop_free(l);
}

/* Each of two ready watches unwatches the other: exactly one runs. */
static void test_unwatch_each_other(void **state)
{
    (void)state;
    struct nr_loop *l = make_loop();
    struct pair a;
    struct pair b;
    pair_open(&a, 'a', on_readable);
    pair_open(&b, 'b', on_readable);
    int fds[2] = {a.watch.fd, b.watch.fd};
    a.victim = &b;
    b.victim = &a;
    assert_int_equal(nr_loop_watch(l, &a.watch, EPOLLIN), NARU_OK);
    assert_int_equal(nr_loop_watch(l, &b.watch, EPOLLIN), NARU_OK);
    pair_send(&a);
    pair_send(&b);
    nr_loop_turn(l, -1);
    assert_int_equal(strlen(trace), 1);
    struct pair *left = trace[0] == 'a' ? &a : &b;
    nr_loop_unwatch(l, &left->watch);
    close(fds[0]);
    close(fds[1]);
    close(a.other);
    close(b.other);
    nr_loop_free(l);
}

static struct pair timer_pair;
static void on_timer_unwatch(struct nr_timer *t)
{
    (void)t;
    note('t');
    nr_loop_unwatch(nr_loop_current(), &timer_pair.watch);
}

static void test_unwatch_in_a_timer(void **state)
{
    (void)state;
    struct nr_loop *l = make_loop();
    pair_open(&timer_pair, 'x', on_readable);
    assert_int_equal(nr_loop_watch(l, &timer_pair.watch, EPOLLIN), NARU_OK);
    pair_send(&timer_pair);
    struct nr_timer t = {.on_timer = on_timer_unwatch};
    nr_loop_timer_set(l, &t, nr_loop_now(l));
    nr_loop_turn(l, -1);
    nr_loop_turn(l, 0);
    assert_string_equal(trace, "t");
    pair_close(&timer_pair);
    nr_loop_free(l);
}

static void on_any(struct nr_watch *w, uint32_t events)
{
    (void)w;
    note(events & EPOLLIN ? 'i' : '-');
    note(events & EPOLLOUT ? 'o' : '-');
    note(events & EPOLLHUP ? 'h' : '-');
}

static void test_rewatch(void **state)
{
    (void)state;
    struct nr_loop *l = make_loop();
    struct pair p;
    pair_open(&p, 'x', on_any);
    assert_int_equal(nr_loop_watch(l, &p.watch, EPOLLIN | EPOLLOUT), NARU_OK);
    pair_send(&p);
    nr_loop_turn(l, -1);
    assert_string_equal(trace, "io-");
    nr_loop_turn(l, -1); /* level-triggered */
    assert_string_equal(trace, "io-io-");
    nr_loop_rewatch(l, &p.watch, EPOLLOUT);
    nr_loop_turn(l, -1);
    assert_string_equal(trace, "io-io--o-");
    nr_loop_rewatch(l, &p.watch, 0);
    nr_loop_turn(l, 0);
    assert_string_equal(trace, "io-io--o-");
    close(p.other);
    nr_loop_turn(l, -1); /* a hang-up is always told */
    assert_string_equal(trace, "io-io--o---h");
    nr_loop_unwatch(l, &p.watch);
    close(p.watch.fd);
    nr_loop_free(l);
}

/* The first of two ready watches stops the other from reading: its event, fetched already, is not
 * delivered, and it stays watched. */
static struct pair held[2];
static void on_event_hold(struct nr_watch *w, uint32_t events)
{
    (void)events;
    note('x');
    nr_loop_rewatch(nr_loop_current(), w == &held[0].watch ? &held[1].watch : &held[0].watch, 0);
}

static void test_rewatch_in_a_callback(void **state)
{
    (void)state;
    struct nr_loop *l = make_loop();
    for (int i = 0; i < 2; i++) {
        pair_open(&held[i], 'x', on_event_hold);
        assert_int_equal(nr_loop_watch(l, &held[i].watch, EPOLLIN), NARU_OK);
        pair_send(&held[i]);
    }
    nr_loop_turn(l, -1);
    assert_string_equal(trace, "x");
    for (int i = 0; i < 2; i++) {
        assert_true(held[i].watch.events != 0);
        nr_loop_unwatch(l, &held[i].watch);
        pair_close(&held[i]);
    }
    nr_loop_free(l);
}

static void test_watch_errors(void **state)
{
    (void)state;
    struct nr_loop *l = make_loop();
    struct nr_watch w = {.fd = open(NARU_SOURCE_DIR "/CMakeLists.txt", O_RDONLY | O_CLOEXEC),
                         .on_event = on_any};
    assert_int_equal(nr_loop_watch(l, &w, EPOLLIN), NARU_UNSUPPORTED);
    assert_int_equal(w.events, 0);
    close(w.fd);
    assert_int_equal(nr_loop_watch(l, &w, EPOLLIN), NARU_IO); /* closed */
    struct pair p;
    pair_open(&p, 'x', on_any);
    assert_int_equal(nr_loop_watch(l, &p.watch, EPOLLIN), NARU_OK);
    w.fd = p.watch.fd;
    assert_int_equal(nr_loop_watch(l, &w, EPOLLIN), NARU_EXISTS);
    nr_loop_unwatch(l, &p.watch);
    pair_close(&p);
    nr_loop_free(l);
}

static void test_real_timers_are_exact(void **state)
{
    (void)state;
    struct nr_loop *l = make_loop();
    struct nr_timer t = {.on_timer = on_timer_note};
    for (int64_t delay = 100 * NR_US_NS; delay <= 20 * NR_MS_NS; delay *= 4) {
        trace[0] = '\0';
        int64_t deadline = nr_clock_now() + delay;
        nr_loop_timer_set(l, &t, deadline);
        int turns = 0;
        while (trace[0] == '\0') {
            nr_loop_turn(l, -1);
            turns++;
        }
        assert_true(nr_loop_now(l) >= deadline); /* never early */
        assert_true(turns <= 3);                 /* it slept, it did not spin */
    }
    /* wait_ns bounds the sleep although a timer is far away. */
    nr_loop_timer_set(l, &t, INT64_MAX);
    nr_loop_turn(l, NR_MS_NS);
    nr_loop_timer_cancel(l, &t);
    nr_loop_free(l);
}

/* In a child whose kernel knows no epoll_pwait2: whole milliseconds, rounded up, never early, and
 * without spinning through the last one. */
static int check_coarse_wait(void)
{
    struct nr_loop *l = NULL;
    struct nr_timer t = {.on_timer = on_timer_note};
    if (nr_loop_new(0, &l, NULL) != NARU_OK) {
        return 1;
    }
    for (int i = 0; i < 20; i++) {
        trace[0] = '\0';
        int64_t deadline = nr_clock_now() + 700 * NR_US_NS;
        nr_loop_timer_set(l, &t, deadline);
        int turns = 0;
        while (trace[0] == '\0') {
            nr_loop_turn(l, -1);
            turns++;
        }
        if (nr_loop_now(l) < deadline || turns > 3) {
            return 2;
        }
    }
    nr_loop_free(l);
    return 0;
}

static void test_timers_on_an_older_kernel(void **state)
{
    (void)state;
    int rc = without_call(SYS_epoll_pwait2, check_coarse_wait);
    if (rc == 77) {
        print_message("no system call filters here: skipped\n");
        skip();
    }
    assert_int_equal(rc, 0);
}

static void test_timers_on_the_fake_clock(void **state)
{
    (void)state;
    nr_clock_fake(true, 0);
    struct nr_loop *l = make_loop();
    struct nr_timer t[3] = {
        {.on_timer = on_timer_note}, {.on_timer = on_timer_note}, {.on_timer = on_timer_note}};
    nr_loop_timer_set(l, &t[0], 3 * NR_S_NS);
    nr_loop_timer_set(l, &t[1], NR_S_NS);
    nr_loop_timer_set(l, &t[2], 2 * NR_S_NS);
    nr_loop_turn(l, -1); /* comes back although nobody wakes it: the fake clock is polled */
    assert_string_equal(trace, "");
    nr_clock_fake_advance(NR_S_NS - 1);
    nr_loop_turn(l, 0);
    assert_string_equal(trace, "");
    nr_clock_fake_advance(1);
    nr_loop_turn(l, 0);
    assert_string_equal(trace, "t");
    nr_loop_timer_set(l, &t[0], NR_S_NS + 1); /* moved forward */
    nr_loop_timer_cancel(l, &t[2]);
    nr_clock_fake_advance(10 * NR_S_NS);
    assert_true(nr_loop_now(l) == NR_S_NS); /* read once per turn */
    nr_loop_turn(l, 0);
    assert_string_equal(trace, "tt");
    nr_loop_free(l);
}

static void *run_loop(void *arg)
{
    nr_loop_run(arg);
    NR_ASSERT(nr_loop_current() == NULL);
    return NULL;
}

#define N_THREADS 4
#define N_POSTS 20000

struct poster {
    struct nr_loop *loop;
    int id;
    struct post {
        struct nr_msg msg;
        struct poster *from;
        int number;
        int value; /* written before the post, read by run: TSan watches */
    } *posts;
    int seen;            /* loop thread only */
    unsigned sleep_mask; /* pauses, so that the loop falls asleep in between */
};
static int n_seen; /* loop thread only */

static void on_post(struct nr_msg *m)
{
    struct post *p = nr_container_of(m, struct post, msg);
    NR_ASSERT(p->value == p->number * 3);
    NR_ASSERT(p->number == p->from->seen); /* in order for each poster */
    p->from->seen++;
    if (++n_seen == N_THREADS * N_POSTS) {
        nr_loop_stop(nr_loop_current());
    }
}

static void *post_all(void *arg)
{
    struct poster *p = arg;
    for (int i = 0; i < N_POSTS; i++) {
        p->posts[i] = (struct post){.msg.run = on_post, .from = p, .number = i, .value = i * 3};
        nr_loop_post(p->loop, &p->posts[i].msg);
        if (p->sleep_mask != 0 && ((unsigned)i & p->sleep_mask) == 0) {
            usleep(50);
        }
    }
    return NULL;
}

/* A wake that is lost would hang the test. */
static void test_posts_of_many_threads(void **state)
{
    (void)state;
    struct nr_loop *l = make_loop();
    n_seen = 0;
    static struct poster posters[N_THREADS];
    pthread_t loop_thread;
    pthread_t t[N_THREADS];
    assert_int_equal(pthread_create(&loop_thread, NULL, run_loop, l), 0);
    for (int i = 0; i < N_THREADS; i++) {
        static const unsigned masks[N_THREADS] = {0, 15, 63, 255};
        posters[i] = (struct poster){.loop = l,
                                     .id = i,
                                     .posts = nr_new_array(struct post, N_POSTS),
                                     .sleep_mask = masks[i]};
        assert_int_equal(pthread_create(&t[i], NULL, post_all, &posters[i]), 0);
    }
    for (int i = 0; i < N_THREADS; i++) {
        pthread_join(t[i], NULL);
    }
    pthread_join(loop_thread, NULL);
    for (int i = 0; i < N_THREADS; i++) {
        assert_int_equal(posters[i].seen, N_POSTS);
        nr_free(posters[i].posts);
    }
    nr_loop_free(l);
}

/* Two loops play ball with one message: every hop is a post to a loop that is about to sleep. */
static struct nr_loop *players[2];
static int hops;
static void on_ball(struct nr_msg *m)
{
    if (++hops == 20000) {
        nr_loop_stop(players[0]);
        nr_loop_stop(players[1]);
        return;
    }
    nr_loop_post(players[nr_loop_current() == players[0]], m);
}

static void test_ping_pong(void **state)
{
    (void)state;
    pthread_t t[2];
    struct nr_msg ball = {.run = on_ball};
    for (int i = 0; i < 2; i++) {
        players[i] = make_loop();
        assert_int_equal(pthread_create(&t[i], NULL, run_loop, players[i]), 0);
    }
    nr_loop_post(players[0], &ball);
    for (int i = 0; i < 2; i++) {
        pthread_join(t[i], NULL);
    }
    for (int i = 0; i < 2; i++) {
        nr_loop_free(players[i]);
    }
    assert_int_equal(hops, 20000);
}

static void test_stop(void **state)
{
    (void)state;
    for (int i = 0; i < 200; i++) { /* asleep or not yet begun */
        struct nr_loop *l = make_loop();
        pthread_t t;
        assert_int_equal(pthread_create(&t, NULL, run_loop, l), 0);
        if (i % 2) {
            usleep(100);
        }
        nr_loop_stop(l);
        pthread_join(t, NULL);
        nr_loop_free(l);
    }
    struct nr_loop *l = make_loop();
    nr_loop_stop(l);
    assert_false(nr_loop_turn(l, -1)); /* does not sleep */
    nr_loop_run(l);                    /* returns at once */
    nr_loop_free(l);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_new_and_free, reset_trace),
        cmocka_unit_test_setup(test_new_fails_cleanly, reset_trace),
        cmocka_unit_test_setup(test_order_of_a_turn, reset_trace),
        cmocka_unit_test_setup(test_new_work_waits_a_turn, reset_trace),
        cmocka_unit_test_setup(test_late_hook, reset_trace),
        cmocka_unit_test_setup(test_unwatch_in_a_callback, reset_trace),
        cmocka_unit_test_setup(test_unwatch_each_other, reset_trace),
        cmocka_unit_test_setup(test_unwatch_in_a_timer, reset_trace),
        cmocka_unit_test_setup(test_rewatch, reset_trace),
        cmocka_unit_test_setup(test_rewatch_in_a_callback, reset_trace),
        cmocka_unit_test_setup(test_watch_errors, reset_trace),
        cmocka_unit_test_setup(test_real_timers_are_exact, reset_trace),
        cmocka_unit_test_setup(test_timers_on_an_older_kernel, reset_trace),
        cmocka_unit_test_setup(test_timers_on_the_fake_clock, reset_trace),
        cmocka_unit_test_setup(test_posts_of_many_threads, reset_trace),
        cmocka_unit_test_setup(test_ping_pong, reset_trace),
        cmocka_unit_test_setup(test_stop, reset_trace),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
