/* Batch slots: neighbours, turns of two batches on one slab, holes, growth, life beyond the owner. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/buf.h"
#include "base/mem.h"
#include "base/status.h"
#include "host/slots.h"

#define ROW ((size_t)4096)

static void test_which_rows(void **state)
{
    (void)state;
    const struct {
        size_t row_bytes, max_rows;
        bool worth;
    } cases[] = {{4096, 8, true},
                 {4095, 8, false},
                 {602112, 64, true},
                 {602112, 1, false},
                 {4096, 0, false},
                 {(size_t)32 << 20, 64, true},
                 {(size_t)33 << 20, 64, false},
                 {SIZE_MAX, SIZE_MAX, false},
                 {4096, SIZE_MAX, true}};
    for (unsigned i = 0; i < NR_COUNT(cases); i++) {
        struct nr_slots *s = nr_slots_new(cases[i].row_bytes, cases[i].max_rows);
        assert_int_equal(s != NULL, cases[i].worth);
        nr_slots_release(s);
    }
    nr_slots_release(NULL);
    nr_slots_sealed(NULL);
    assert_int_equal(nr_slots_trim(NULL), 0);
}

static void test_odd_sizes(void **state)
{
    (void)state;
    struct nr_slots *s = nr_slots_new(ROW, 8);
    assert_null(nr_slots_take(s, 0));
    assert_null(nr_slots_take(s, ROW - 1));
    assert_null(nr_slots_take(s, ROW + 1));
    assert_null(nr_slots_take(s, 9 * ROW)); /* more than a batch */
    assert_null(nr_slots_take(s, SIZE_MAX / ROW * ROW));
    struct nr_buf *b = nr_slots_take(s, 8 * ROW);
    assert_non_null(b);
    assert_int_equal(nr_buf_bytes(b), 8 * ROW);
    assert_int_equal((uintptr_t)nr_buf_data(b) % NR_BUF_ALIGN, 0);
    nr_buf_unref(b);
    nr_slots_release(s);
}

/* Two batches that take turns, as under a steady load: each of one piece, both on the same rows. */
static void test_two_batches_take_turns(void **state)
{
    (void)state;
    struct nr_slots *s = nr_slots_new(ROW, 64);
    struct nr_buf *runs[4] = {NULL}, *next[4];
    uint8_t *first[2] = {NULL, NULL};
    for (unsigned round = 0; round < 50; round++) {
        for (unsigned i = 0; i < 4; i++) {
            next[i] = nr_slots_take(s, ROW);
            assert_non_null(next[i]);
            memset(nr_buf_data(next[i]), (int)round, ROW);
            assert_true(i == 0 || nr_buf_data(next[i]) == nr_buf_data(next[i - 1]) + ROW);
        }
        for (unsigned i = 0; i < 4; i++) { /* the batch before has ended: one by one */
            nr_buf_unref(runs[i]);
            runs[i] = next[i];
        }
        nr_slots_sealed(s);
        if (round < 2) {
            first[round] = nr_buf_data(runs[0]);
        } else {
            assert_ptr_equal(nr_buf_data(runs[0]), first[round % 2]);
        }
    }
    for (unsigned i = 0; i < 4; i++) {
        nr_buf_unref(runs[i]);
    }
    nr_slots_release(s);
}

/* A slow client's row stays where it is; others go round it. */
static void test_a_hole_holds_nobody(void **state)
{
    (void)state;
    struct nr_slots *s = nr_slots_new(ROW, 4);
    struct nr_buf *slow = nr_slots_take(s, ROW);
    for (unsigned round = 0; round < 20; round++) {
        struct nr_buf *a = nr_slots_take(s, 2 * ROW), *b = nr_slots_take(s, ROW);
        assert_non_null(a);
        assert_ptr_equal(nr_buf_data(b), nr_buf_data(a) + 2 * ROW);
        assert_true(nr_buf_data(a) != nr_buf_data(slow));
        nr_slots_sealed(s);
        nr_buf_unref(a);
        nr_buf_unref(b);
    }
    nr_buf_unref(slow);
    nr_slots_release(s);
}

/* More than a slab holds: a larger one comes, what was taken stays valid, and in the end all is
 * given back. */
static void test_growth(void **state)
{
    (void)state;
    uint64_t before = nr_buf_live_bytes();
    struct nr_slots *s = nr_slots_new((size_t)1 << 17, 32);
    struct nr_buf *all[80];
    unsigned n = 0, adjacent = 0;
    while (n < 80 && (all[n] = nr_slots_take(s, (size_t)1 << 17)) != NULL) {
        memset(nr_buf_data(all[n]), (int)n, (size_t)1 << 17);
        adjacent += n > 0 && nr_buf_data(all[n]) == nr_buf_data(all[n - 1]) + ((size_t)1 << 17);
        n++;
    }
    assert_int_equal(n, 80); /* 8 + 16 + 32 + 64, each on a slab of its own */
    assert_true(adjacent >= n - 4);
    for (unsigned i = 0; i < n; i++) {
        assert_int_equal(nr_buf_data(all[i])[(1 << 17) - 1], i);
        nr_buf_unref(all[i]);
    }
    assert_int_equal(nr_buf_live_bytes() - before, (uint64_t)64 << 17);
    assert_int_equal(nr_slots_trim(s), (size_t)64 << 17);
    assert_int_equal(nr_buf_live_bytes(), before);
    assert_int_equal(nr_slots_trim(s), 0);
    nr_slots_release(s);
}

static void test_full(void **state)
{
    (void)state;
    struct nr_slots *s = nr_slots_new(ROW, 2);
    struct nr_buf *all[4];
    for (unsigned i = 0; i < 4; i++) {
        all[i] = nr_slots_take(s, ROW);
        assert_non_null(all[i]);
    }
    assert_null(nr_slots_take(s, ROW)); /* twice the largest batch */
    nr_buf_unref(all[2]);
    assert_null(nr_slots_take(s, 2 * ROW));
    all[2] = nr_slots_take(s, ROW);
    assert_ptr_equal(nr_buf_data(all[2]), nr_buf_data(all[1]) + ROW);
    for (unsigned i = 0; i < 4; i++) {
        nr_buf_unref(all[i]);
    }
    nr_slots_release(s);
}

/* The version is gone, a response is still being sent. */
static void test_buffers_outlive_their_owner(void **state)
{
    (void)state;
    uint64_t before = nr_buf_live_bytes();
    struct nr_slots *s = nr_slots_new((size_t)1 << 20, 8);
    struct nr_buf *a = nr_slots_take(s, (size_t)1 << 20), *b = nr_slots_take(s, (size_t)2 << 20);
    assert_int_equal(nr_slots_trim(s), 0);
    nr_slots_release(s);
    memset(nr_buf_data(a), 1, nr_buf_bytes(a));
    memset(nr_buf_data(b), 2, nr_buf_bytes(b));
    nr_buf_unref(nr_buf_ref(a));
    nr_buf_unref(a);
    nr_buf_unref(b);
    assert_int_equal(nr_buf_live_bytes(), before);
}

static void test_no_memory(void **state)
{
    (void)state;
    struct nr_slots *s = nr_slots_new((size_t)1 << 20, 8);
    nr_buf_set_budget(1 << 20);
    assert_null(nr_slots_take(s, (size_t)1 << 20));
    nr_buf_set_budget(0);
    for (uint64_t n = 1; n < 4; n++) {
        nr_mem_fail_after(n, true);
        struct nr_buf *b = nr_slots_take(s, (size_t)1 << 20);
        nr_mem_fail_after(0, false);
        nr_buf_unref(b);
        (void)nr_slots_trim(s);
    }
    struct nr_buf *b = nr_slots_take(s, (size_t)1 << 20);
    assert_non_null(b);
    nr_buf_unref(b);
    nr_slots_release(s);
}

/* Random takes and returns from several threads: no row belongs to two. */
struct worker {
    struct nr_slots *slots;
    unsigned seed;
    bool clash;
};

static void *work(void *arg)
{
    struct worker *w = arg;
    struct nr_buf *held[6] = {NULL};
    for (unsigned i = 0; i < 20000; i++) {
        unsigned at = (unsigned)rand_r(&w->seed) % 6;
        if (held[at] != NULL) {
            const uint8_t *d = nr_buf_data(held[at]);
            for (size_t k = 0; k < nr_buf_bytes(held[at]); k += 512) {
                w->clash |= d[k] != d[0];
            }
            nr_buf_unref(NR_TAKE(held[at]));
        } else {
            held[at] = nr_slots_take(w->slots, ROW * (1 + (unsigned)rand_r(&w->seed) % 3));
            if (held[at] != NULL) {
                memset(nr_buf_data(held[at]), rand_r(&w->seed) & 0xff, nr_buf_bytes(held[at]));
            }
        }
        if (i % 7 == 0) {
            nr_slots_sealed(w->slots);
        }
        if (i % 501 == 0) {
            (void)nr_slots_trim(w->slots);
        }
    }
    for (unsigned i = 0; i < 6; i++) {
        nr_buf_unref(held[i]);
    }
    return NULL;
}

static void test_threads(void **state)
{
    (void)state;
    struct nr_slots *s = nr_slots_new(ROW, 16);
    pthread_t threads[3];
    struct worker workers[3];
    for (unsigned i = 0; i < 3; i++) {
        workers[i] = (struct worker){.slots = s, .seed = 1000 + i};
        assert_int_equal(pthread_create(&threads[i], NULL, work, &workers[i]), 0);
    }
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(pthread_join(threads[i], NULL), 0);
        assert_false(workers[i].clash);
    }
    nr_slots_release(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_which_rows),
        cmocka_unit_test(test_odd_sizes),
        cmocka_unit_test(test_two_batches_take_turns),
        cmocka_unit_test(test_a_hole_holds_nobody),
        cmocka_unit_test(test_growth),
        cmocka_unit_test(test_full),
        cmocka_unit_test(test_buffers_outlive_their_owner),
        cmocka_unit_test(test_no_memory),
        cmocka_unit_test(test_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
