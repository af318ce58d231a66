/* The timer heap against a sorted model: random sets, moves, removals, equal deadlines. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "io/loop.h"
#include "io/timer.h"

#define N 500

static void check_heap(const struct nr_timer_heap *h)
{
    for (uint32_t i = 0; i < h->n; i++) {
        assert_int_equal(h->slots[i].timer->heap_index, i + 1);
        assert_true(h->slots[i].timer->deadline_ns == h->slots[i].deadline_ns);
        if (i > 0) {
            assert_true(h->slots[(i - 1) / 4].deadline_ns <= h->slots[i].deadline_ns);
        }
    }
}

static void test_random_walk(void **state)
{
    (void)state;
    static struct nr_timer timers[N];
    struct nr_timer_heap h = {0};
    srand(5);
    uint32_t armed = 0;
    for (int step = 0; step < 50000; step++) {
        struct nr_timer *t = &timers[rand() % N];
        if (rand() % 4 != 0) {
            armed += t->heap_index == 0;
            nr_timer_heap_set(&h, t, rand() % 1000 - 200); /* many ties, some negative */
        } else {
            armed -= t->heap_index != 0;
            nr_timer_heap_remove(&h, t);
            assert_int_equal(t->heap_index, 0);
        }
        assert_int_equal(h.n, armed);
        if (step % 50 == 0) {
            check_heap(&h);
        }
    }
    /* All come out in order. */
    int64_t last = INT64_MIN;
    for (struct nr_timer *t; (t = nr_timer_heap_pop(&h, INT64_MAX)) != NULL; armed--) {
        assert_true(t->deadline_ns >= last);
        assert_int_equal(t->heap_index, 0);
        last = t->deadline_ns;
    }
    assert_int_equal(armed, 0);
    nr_timer_heap_done(&h);
}

static void test_due_only(void **state)
{
    (void)state;
    struct nr_timer_heap h = {0};
    struct nr_timer a = {0};
    struct nr_timer b = {0};
    assert_true(nr_timer_heap_next(&h) == INT64_MAX);
    assert_null(nr_timer_heap_pop(&h, INT64_MAX));
    nr_timer_heap_remove(&h, &a); /* not armed */
    nr_timer_heap_set(&h, &a, 100);
    nr_timer_heap_set(&h, &b, 50);
    assert_int_equal(nr_timer_heap_next(&h), 50);
    assert_null(nr_timer_heap_pop(&h, 49));
    assert_ptr_equal(nr_timer_heap_pop(&h, 50), &b);
    assert_null(nr_timer_heap_pop(&h, 99));
    nr_timer_heap_set(&h, &a, 99); /* earlier */
    assert_ptr_equal(nr_timer_heap_pop(&h, 99), &a);
    nr_timer_heap_set(&h, &a, 1);
    nr_timer_heap_done(&h);
    assert_int_equal(a.heap_index, 0); /* disarmed, so that its owner may use it again */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_walk),
        cmocka_unit_test(test_due_only),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
