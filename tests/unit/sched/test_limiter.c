/* The rate limiter: units, order, priorities, who is woken; scenarios, then random ones whose seed is
 * printed (NR_TEST_SEED replays). Nobody runs here: an executor without work counts the wakes. */
#include "sched/limiter.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/mem.h"

#define MOST 12

struct one {
    struct nr_runnable runnable;
    struct nr_instance_resource resources[3];
    struct nr_instance_group group;
    struct nr_limit_user *user;
    _Atomic unsigned woken;
    bool holds, waits;
    unsigned runs, passed; /* by others while it waits */
};

static struct nr_limiter *limiter;
static struct nr_exec *exec;
static struct one all[MOST];
static struct nr_err err;

static bool on_run(struct nr_runnable *r)
{
    struct one *o = nr_container_of(r, struct one, runnable);
    atomic_fetch_add(&o->woken, 1);
    return false;
}

static void begin(const char *const *given, unsigned n)
{
    memset(&err, 0, sizeof(err));
    exec = nr_exec_new(1, 2);
    if (nr_limiter_new(given, n, &limiter, &err) != NARU_OK) {
        fail_msg("%s", err.text);
    }
    for (unsigned i = 0; i < MOST; i++) {
        memset(&all[i], 0, sizeof(all[i]));
        nr_exec_init(&all[i].runnable, on_run);
    }
}

static void end(void)
{
    for (unsigned i = 0; i < MOST; i++) {
        if (all[i].holds) {
            nr_limiter_release(all[i].user);
        }
        nr_limiter_remove(all[i].user);
    }
    for (unsigned i = 0; i < MOST; i++) {
        nr_exec_retire(exec, &all[i].runnable);
    }
    nr_limiter_free(limiter);
    nr_exec_free(exec);
}

/* needs: "R:2,G*:1": two of R on the instance's device, one of G, which is global. */
static nr_status add(unsigned i, const char *needs, uint32_t priority, int32_t device)
{
    struct one *o = &all[i];
    static char names[MOST][3][16];
    o->group = (struct nr_instance_group){.priority = priority, .resources = o->resources};
    struct nr_str rest = nr_str_from(needs);
    while (rest.ptr != NULL && rest.len > 0) {
        struct nr_str count, name = nr_str_cut(nr_str_cut(rest, ',', &rest), ':', &count);
        uint64_t n;
        assert_true(nr_str_to_u64(count, &n));
        struct nr_instance_resource *r = &o->resources[o->group.n_resources];
        r->global = nr_str_ends(name, NR_STR("*"));
        snprintf(names[i][o->group.n_resources], 16, "%.*s", (int)name.len - (r->global ? 1 : 0),
                 name.ptr);
        r->name = names[i][o->group.n_resources++];
        r->count = (uint32_t)n;
    }
    memset(&err, 0, sizeof(err));
    return nr_limiter_add(limiter, &o->group, device, exec, &o->runnable, &o->user, &err);
}

static bool try(unsigned i)
{
    struct one *o = &all[i];
    o->holds = nr_limiter_try(o->user);
    o->waits = !o->holds;
    o->runs += o->holds;
    return o->holds;
}

static void release(unsigned i)
{
    assert_true(all[i].holds);
    all[i].holds = false;
    nr_limiter_release(all[i].user);
}

/* Wakes are on their way through the executor: after this they have come. */
static unsigned wakes(unsigned i)
{
    struct one *o = &all[i];
    int64_t until_ns = nr_clock_now() + 10 * NR_S_NS;
    while (atomic_load(&o->woken) == 0 && nr_clock_now() < until_ns) {
    }
    return atomic_exchange(&o->woken, 0);
}

static void never_woken(unsigned i)
{
    nr_exec_retire(exec, &all[i].runnable); /* takes away a wake, but waits for one that runs */
    assert_int_equal(atomic_load(&all[i].woken), 0);
}

struct figures {
    const char *name;
    int32_t device;
    struct nr_limit_state s;
    bool found;
};

static void on_state(void *arg, const struct nr_limit_state *s)
{
    struct figures *f = arg;
    if (strcmp(s->name, f->name) == 0 && s->device == f->device) {
        f->s = *s;
        f->found = true;
    }
}

static struct nr_limit_state state_of(const char *name, int32_t device)
{
    struct figures f = {.name = name, .device = device};
    nr_limiter_read(limiter, on_state, &f);
    return f.s;
}

/* --- how many there are ------------------------------------------------------------------------ */

static void test_as_many_as_the_neediest_wants(void **state)
{
    (void)state;
    begin(NULL, 0);
    assert_int_equal(add(0, "R:3", 1, -1), NARU_OK);
    assert_int_equal(add(1, "R:5", 1, -1), NARU_OK);
    assert_int_equal(state_of("R", 0).units, 5); /* the CPU counts as device 0 */
    assert_true(try(0));
    assert_false(try(1));
    assert_int_equal(state_of("R", 0).in_use, 3);
    assert_int_equal(state_of("R", 0).waiting, 1);
    nr_limiter_leave(all[1].user);
    nr_limiter_remove(all[1].user);
    all[1].user = NULL;
    assert_int_equal(state_of("R", 0).units, 3);
    end();
}

static void test_a_load_may_add_units(void **state)
{
    (void)state;
    begin(NULL, 0);
    add(0, "R:2", 1, -1);
    add(1, "R:2", 1, -1);
    assert_true(try(0));
    assert_false(try(1));
    add(2, "R:4", 1, -1); /* now there are four */
    assert_true(wakes(1) > 0);
    assert_true(try(1));
    end();
}

static void test_devices_have_their_own_and_global_is_one(void **state)
{
    (void)state;
    begin(NULL, 0);
    add(0, "R:1", 1, -1);
    add(1, "R:1", 1, 0); /* GPU 0 and the CPU: one store, as Triton has it */
    add(2, "R:1", 1, 1);
    add(3, "G*:1", 1, 0);
    add(4, "G*:1", 1, 1);
    assert_true(try(0));
    assert_false(try(1));
    assert_true(try(2));
    assert_true(try(3));
    assert_false(try(4));
    assert_int_equal(state_of("G", NR_LIMIT_GLOBAL).in_use, 1);
    end();
}

static void test_given_numbers_hold(void **state)
{
    (void)state;
    static const char *const given[] = {"R:4", "R:8:1", "G:2:7", "G:3"};
    begin(given, 4);
    assert_int_equal(add(0, "R:4", 1, -1), NARU_OK);
    assert_int_equal(add(1, "R:8", 1, 1), NARU_OK); /* the larger of every and that device */
    assert_int_equal(add(2, "G*:3", 1, 0), NARU_OK);
    assert_int_equal(state_of("G", NR_LIMIT_GLOBAL).units, 3);
    struct {
        const char *needs, *says;
        int32_t device;
    } wrong[] = {
        {"R:5", "needs 5 of resource \"R\" on device 0, and there are 4", -1},
        {"R:5", "on device 2, and there are 4", 2},
        {"R:9", "on device 1, and there are 8", 1},
        {"G*:4", "needs 4 of resource \"G\", and there are 3", 0},
        {"S:1", "--rate-limit-resource does not name it", 0},
        {"G:1", "is global in one configuration and of a device in another", 0},
    };
    for (unsigned i = 0; i < NR_COUNT(wrong); i++) {
        assert_int_equal(add(5, wrong[i].needs, 1, wrong[i].device), NARU_INVALID);
        if (strstr(err.text, wrong[i].says) == NULL) {
            fail_msg("%s", err.text);
        }
        assert_null(all[5].user);
        memset(&all[5].group, 0, sizeof(all[5].group));
    }
    assert_int_equal(state_of("S", 0).units, 0); /* nothing of it is left */
    end();
}

static void test_what_needs_nothing_never_asks(void **state)
{
    (void)state;
    begin(NULL, 0);
    assert_int_equal(add(0, "", 5, -1), NARU_OK);
    assert_null(all[0].user);
    assert_int_equal(add(1, "R:0", 5, -1), NARU_OK);
    assert_null(all[1].user);
    end();
}

static void test_texts_of_the_command_line(void **state)
{
    (void)state;
    static const char *const wrong[] = {"",     "R",     ":1",     "R:",      "R:x",         "R:-1",
                                        "R:1:", "R:1:x", "R:1:-2", "R:1:2:3", "R:4294967296"};
    for (unsigned i = 0; i < NR_COUNT(wrong); i++) {
        struct nr_limiter *l = NULL;
        assert_int_equal(nr_limiter_new(&wrong[i], 1, &l, &err), NARU_INVALID);
        assert_non_null(strstr(err.text, "expected NAME:COUNT"));
    }
    char long_name[200];
    memset(long_name, 'a', sizeof(long_name));
    memcpy(long_name + 150, ":1", 3);
    const char *text = long_name;
    struct nr_limiter *l = NULL;
    assert_int_equal(nr_limiter_new(&text, 1, &l, &err), NARU_INVALID);
}

/* --- who is next ------------------------------------------------------------------------------- */

static void test_in_turn(void **state)
{
    (void)state;
    begin(NULL, 0);
    for (unsigned i = 0; i < 3; i++) {
        add(i, "R:1", 1, -1);
    }
    assert_true(try(0));
    assert_false(try(1));
    assert_false(try(2));
    release(0);
    assert_true(wakes(1) > 0);
    never_woken(2);
    assert_false(try(0)); /* it is not its turn, though the unit is free */
    assert_false(try(2));
    assert_true(try(1));
    release(1);
    assert_true(wakes(2) > 0);
    never_woken(0);
    assert_true(try(2));
    end();
}

static void test_the_woken_one_may_decline(void **state)
{
    (void)state;
    begin(NULL, 0);
    for (unsigned i = 0; i < 3; i++) {
        add(i, "R:1", 1, -1);
    }
    assert_true(try(0));
    assert_false(try(1));
    assert_false(try(2));
    release(0);
    assert_true(wakes(1) > 0);
    nr_limiter_leave(all[1].user);
    assert_true(wakes(2) > 0);
    assert_true(try(2));
    nr_limiter_leave(all[1].user); /* twice is as once */
    end();
}

static void test_removing_one_that_waits_lets_others_on(void **state)
{
    (void)state;
    begin(NULL, 0);
    add(0, "R:3", 1, -1);
    add(1, "R:3", 1, -1);
    add(2, "R:2", 1, -1);
    add(3, "R:1", 1, -1);
    assert_true(try(2)); /* one unit is left */
    assert_false(try(1));
    assert_false(try(3)); /* would fit, but is behind one that does not */
    nr_limiter_remove(all[1].user);
    all[1].user = NULL;
    assert_true(wakes(3) > 0);
    assert_true(try(3));
    end();
}

static void test_large_needs_do_not_starve(void **state)
{
    (void)state;
    begin(NULL, 0);
    add(0, "R:4", 1, -1);
    for (unsigned i = 1; i < 5; i++) {
        add(i, "R:1", 1, -1);
        assert_true(try(i));
    }
    assert_false(try(0));
    for (unsigned i = 1; i < 4; i++) { /* small ones come and go, but do not get past it */
        release(i);
        assert_false(try(i));
    }
    never_woken(0);
    release(4);
    assert_true(wakes(0) > 0);
    assert_true(try(0));
    end();
}

static void test_other_resources_go_on(void **state)
{
    (void)state;
    begin(NULL, 0);
    add(0, "A:1,B:1", 1, -1);
    add(1, "A:1", 1, -1);
    add(2, "C:1", 1, -1);
    add(3, "B:1", 1, -1);
    assert_true(try(1));
    assert_false(try(0));
    assert_true(try(2));
    assert_false(try(3)); /* B is free, but spoken for */
    end();
}

/* Everyone always has work: runs within `rounds` releases. */
static void play(unsigned n, unsigned rounds)
{
    unsigned turn = 0;
    for (unsigned i = 0; i < n; i++) {
        if (!all[i].holds) {
            (void)try(i);
        }
    }
    for (unsigned r = 0; r < rounds; r++) {
        while (!all[turn % n].holds) {
            turn++;
        }
        release(turn++ % n);
        for (unsigned i = 0; i < n; i++) { /* whoever was woken tries; so may the others */
            if (!all[(i + r) % n].holds) {
                (void)try((i + r) % n);
            }
        }
    }
}

static void test_priorities_are_weights(void **state)
{
    (void)state;
    begin(NULL, 0);
    add(0, "R:1", 1, -1);
    add(1, "R:1", 2, -1);
    add(2, "R:1", 4, -1);
    add(3, "R:1", 0, -1); /* 0 is 1 */
    play(4, 1100);
    assert_in_range(all[0].runs, 395, 405);
    assert_in_range(all[1].runs, 195, 205);
    assert_in_range(all[2].runs, 95, 105);
    assert_in_range(all[3].runs, 395, 405);
    end();
}

static void test_a_newcomer_does_not_catch_up(void **state)
{
    (void)state;
    begin(NULL, 0);
    add(0, "R:1", 1, -1);
    add(1, "R:1", 1, -1);
    play(2, 1000);
    add(2, "R:1", 1, -1);
    unsigned before = all[0].runs + all[1].runs;
    play(3, 30);
    assert_in_range(all[2].runs, 9, 11);
    assert_in_range(all[0].runs + all[1].runs - before, 19, 21);
    end();
}

/* --- random ------------------------------------------------------------------------------------ */

static void check_sums(void)
{
    static const char *const names[] = {"A", "B", "C"};
    for (unsigned k = 0; k < 3; k++) {
        for (int32_t device = NR_LIMIT_GLOBAL; device <= 1; device++) {
            uint64_t sum = 0;
            for (unsigned i = 0; i < MOST; i++) {
                for (unsigned r = 0; all[i].holds && r < all[i].group.n_resources; r++) {
                    const struct nr_instance_resource *need = &all[i].resources[r];
                    int32_t where = need->global ? NR_LIMIT_GLOBAL : (int32_t)(i % 2);
                    sum += strcmp(need->name, names[k]) == 0 && where == device ? need->count : 0;
                }
            }
            struct nr_limit_state s = state_of(names[k], device);
            assert_int_equal(s.in_use, sum);
            assert_true(s.in_use <= s.units);
        }
    }
}

/* Random instances try, release and leave. Never more in use than there is; when nobody holds
 * anything, somebody who waits can run; nobody is passed by the others for ever. */
static void test_random(void **state)
{
    (void)state;
    const char *given = getenv("NR_TEST_SEED");
    unsigned seed = (unsigned)time(NULL);
    if (given != NULL) {
        seed = (unsigned)strtoul(given, NULL, 10);
    }
    print_message("NR_TEST_SEED=%u\n", seed);
    for (unsigned round = 0; round < 40; round++) {
        begin(NULL, 0);
        for (unsigned i = 0; i < MOST; i++) {
            char needs[64];
            snprintf(needs, sizeof(needs), "A:%d,B:%d,C*:%d", 1 + rand_r(&seed) % 4,
                     rand_r(&seed) % 3, rand_r(&seed) % 2);
            assert_int_equal(add(i, needs, 1 + (uint32_t)rand_r(&seed) % 4, (int32_t)(i % 2)),
                             NARU_OK);
        }
        for (unsigned step = 0; step < 2000; step++) {
            unsigned i = (unsigned)rand_r(&seed) % MOST;
            struct one *o = &all[i];
            if (o->holds) {
                release(i);
            } else if (rand_r(&seed) % 16 == 0) {
                nr_limiter_leave(o->user);
                o->waits = false;
                o->passed = 0;
            } else if (try(i)) {
                o->passed = 0;
                for (unsigned k = 0; k < MOST; k++) {
                    all[k].passed += all[k].waits;
                    /* 12 instances of priorities up to 4, and some steps until it tries */
                    assert_true(all[k].passed < 1500);
                }
            }
            check_sums();
        }
        for (unsigned i = 0; i < MOST; i++) {
            if (all[i].holds) {
                release(i);
            }
        }
        bool waits = false, some = false;
        for (unsigned i = 0; i < MOST; i++) {
            waits = waits || all[i].waits;
        }
        for (unsigned i = 0; i < MOST && !some; i++) {
            some = all[i].waits && try(i);
        }
        assert_int_equal(some, waits);
        end();
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_as_many_as_the_neediest_wants),
        cmocka_unit_test(test_a_load_may_add_units),
        cmocka_unit_test(test_devices_have_their_own_and_global_is_one),
        cmocka_unit_test(test_given_numbers_hold),
        cmocka_unit_test(test_what_needs_nothing_never_asks),
        cmocka_unit_test(test_texts_of_the_command_line),
        cmocka_unit_test(test_in_turn),
        cmocka_unit_test(test_the_woken_one_may_decline),
        cmocka_unit_test(test_removing_one_that_waits_lets_others_on),
        cmocka_unit_test(test_large_needs_do_not_starve),
        cmocka_unit_test(test_other_resources_go_on),
        cmocka_unit_test(test_priorities_are_weights),
        cmocka_unit_test(test_a_newcomer_does_not_catch_up),
        cmocka_unit_test(test_random),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
