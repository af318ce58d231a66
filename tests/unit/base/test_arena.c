/* Arenas: alignment, limits, block reuse, cleanups, the pool, hostile sizes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <pthread.h>
#include <string.h>

#include "base/arena.h"
#include "base/buf.h"
#include "base/mem.h"

static void test_alignment_and_contents(void **state)
{
    (void)state;
    struct nr_arena a;
    nr_arena_init(&a, 0);
    unsigned char *p[600];
    for (size_t i = 0; i < NR_COUNT(p); i++) {
        size_t n = i * 7 % 131;
        p[i] = nr_arena_alloc(&a, n);
        assert_int_equal((uintptr_t)p[i] % NR_ARENA_ALIGN, 0);
        memset(p[i], (int)(i & 0xff), n);
    }
    for (size_t i = 0; i < NR_COUNT(p); i++) {
        for (size_t k = 0; k < i * 7 % 131; k++) {
            assert_int_equal(p[i][k], i & 0xff);
        }
    }
    nr_arena_done(&a);
}

static void test_sizes_at_the_edges(void **state)
{
    (void)state;
    static const size_t sizes[] = {0,    1,    15,   16,   17,    4079,  4080, 4081,
                                   4096, 4097, 8000, 1000, 20000, 65536, 0,    1};
    struct nr_arena a;
    nr_arena_init(&a, 0);
    for (int round = 0; round < 3; round++) {
        for (size_t i = 0; i < NR_COUNT(sizes); i++) {
            char *p = nr_arena_zalloc(&a, sizes[i]);
            assert_non_null(p);
            assert_int_equal((uintptr_t)p % NR_ARENA_ALIGN, 0);
            memset(p, 1, sizes[i]);
        }
        nr_arena_clear(&a);
    }
    nr_arena_done(&a);
    nr_arena_done(&a); /* as after init */
}

static void test_large_blocks_do_not_end_the_current_one(void **state)
{
    (void)state;
    struct nr_arena a;
    nr_arena_init(&a, 0);
    char *first = nr_arena_alloc(&a, 16);
    nr_arena_alloc(&a, 100000);
    nr_arena_alloc(&a, 4080); /* a whole block: less room than the current one has left */
    char *second = nr_arena_alloc(&a, 16);
    assert_ptr_equal(second, first + 16);
    assert_int_equal(a.total_bytes, 4096 + 100016 + 4096);
    nr_arena_done(&a);
}

static void test_clear_keeps_a_block_and_costs_no_malloc(void **state)
{
    (void)state;
    struct nr_arena a;
    nr_arena_init(&a, 0);
    char *first = nr_arena_alloc(&a, 100);
    nr_arena_clear(&a);
    assert_ptr_equal(nr_arena_alloc(&a, 100), first);
    for (int i = 0; i < 100; i++) {
        nr_arena_alloc(&a, 1000);
    }
    nr_arena_clear(&a);
    uint64_t before = nr_mem_allocs();
    for (int round = 0; round < 50; round++) {
        for (int i = 0; i < 100; i++) {
            nr_arena_alloc(&a, 1000);
        }
        nr_arena_fmt(&a, "request %d", round);
        nr_arena_clear(&a);
    }
    nr_arena_done(&a);
    nr_arena_init(&a, 0);
    nr_arena_alloc(&a, 1);
    nr_arena_done(&a);
    assert_int_equal(nr_mem_allocs(), before);
}

static void test_limit(void **state)
{
    (void)state;
    struct nr_arena a;
    nr_arena_init(&a, 10000);
    assert_non_null(nr_arena_try_alloc(&a, 4000));
    assert_non_null(nr_arena_try_alloc(&a, 4000));
    assert_null(nr_arena_try_alloc(&a, 4000));   /* a third block would be 12,288 */
    assert_non_null(nr_arena_try_alloc(&a, 64)); /* but there is room in the second */
    assert_non_null(nr_arena_alloc(&a, 4000));   /* fixed sizes are not bounded */
    assert_null(nr_arena_try_alloc(&a, 4000));
    nr_arena_clear(&a);
    assert_null(nr_arena_try_alloc(&a, 10001));
    assert_non_null(nr_arena_try_alloc(&a, 4000));
    nr_arena_done(&a);

    nr_arena_init(&a, 100); /* below one block */
    assert_null(nr_arena_try_alloc(&a, 101));
    assert_non_null(nr_arena_try_alloc(&a, 100));
    nr_arena_done(&a);
}

static void test_hostile_sizes(void **state)
{
    (void)state;
    struct nr_arena a;
    nr_arena_init(&a, 0);
    for (int round = 0; round < 2; round++) {
        for (size_t back = 0; back < 40; back++) {
            assert_null(nr_arena_try_alloc(&a, SIZE_MAX - back));
        }
        assert_null(nr_arena_try_alloc(&a, SIZE_MAX / 2));
        assert_null(nr_arena_try_array(&a, SIZE_MAX / 2, 3));
        assert_null(nr_arena_try_array(&a, SIZE_MAX, SIZE_MAX));
        assert_non_null(nr_arena_try_array(&a, 0, SIZE_MAX));
        nr_arena_alloc(&a, 1);
    }
    char *array = nr_arena_try_array(&a, 100, 50);
    for (int i = 0; i < 5000; i++) {
        assert_int_equal(array[i], 0);
    }
    nr_arena_done(&a);
}

static void test_without_memory(void **state)
{
    (void)state;
    for (int round = 0; round < 2; round++) { /* with blocks in the pool, then without */
        struct nr_arena a;
        nr_arena_init(&a, 0);
        nr_mem_fail_after(1, true);
        assert_null(nr_arena_try_alloc(&a, 10));
        assert_null(nr_arena_try_array(&a, 10, 1000));
        nr_mem_fail_after(0, false);
        assert_int_equal(a.total_bytes, 0);
        assert_non_null(nr_arena_try_alloc(&a, 10));
        nr_arena_done(&a);
        nr_arena_thread_done();
    }
}

static void test_texts(void **state)
{
    (void)state;
    struct nr_arena a;
    nr_arena_init(&a, 0);
    struct nr_str s = nr_arena_str(&a, NR_STR("abc"));
    assert_string_equal(s.ptr, "abc");
    assert_int_equal(s.len, 3);
    assert_string_equal(nr_arena_strz(&a, (struct nr_str){NULL, 0}), "");
    s = nr_arena_fmt(&a, "%s-%d", "x", 5);
    assert_string_equal(s.ptr, "x-5");
    char large[5000];
    memset(large, 'l', sizeof(large) - 1);
    large[sizeof(large) - 1] = '\0';
    s = nr_arena_fmt(&a, "<%s>", large);
    assert_int_equal(s.len, 5001);
    assert_int_equal(s.ptr[5000], '>');
    assert_int_equal(strlen(s.ptr), 5001);
    nr_arena_done(&a);
}

static char order[16];
static void note(void *arg)
{
    order[strlen(order)] = *(const char *)arg; /* the rest stays zero */
}

static void test_cleanups_run_backwards(void **state)
{
    (void)state;
    struct nr_arena a;
    nr_arena_init(&a, 0);
    static char names[] = "abcd";
    nr_arena_defer(&a, note, &names[0]);
    nr_arena_defer(&a, note, &names[1]);
    nr_arena_clear(&a);
    assert_string_equal(order, "ba");
    nr_arena_clear(&a);
    assert_string_equal(order, "ba"); /* once only */
    nr_arena_defer(&a, note, &names[2]);
    nr_arena_defer(&a, note, &names[3]);
    nr_arena_done(&a);
    assert_string_equal(order, "badc");
}

static void test_links_hold_buffers(void **state)
{
    (void)state;
    struct nr_arena a;
    nr_arena_init(&a, 0);
    uint64_t before = nr_buf_live_bytes();
    struct nr_buf *b = nr_buf_try_new(1000);
    nr_arena_link(&a, nr_buf_ref(b));
    nr_arena_link(&a, b);
    memset(nr_buf_data(b), 1, 1000);
    assert_true(nr_buf_live_bytes() > before);
    nr_arena_done(&a);
    assert_int_equal(nr_buf_live_bytes(), before);
}

static void *hand_over(void *arg)
{
    struct nr_arena *a = arg;
    for (int i = 0; i < 1000; i++) {
        nr_arena_alloc(a, 500);
    }
    nr_arena_done(a); /* blocks of the first thread end in this one's pool, and it ends */
    return NULL;
}

static void test_may_change_threads(void **state)
{
    (void)state;
    struct nr_arena a;
    nr_arena_init(&a, 0);
    for (int i = 0; i < 1000; i++) {
        nr_arena_alloc(&a, 500);
    }
    pthread_t t;
    assert_int_equal(pthread_create(&t, NULL, hand_over, &a), 0);
    pthread_join(t, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_alignment_and_contents),
        cmocka_unit_test(test_sizes_at_the_edges),
        cmocka_unit_test(test_large_blocks_do_not_end_the_current_one),
        cmocka_unit_test(test_clear_keeps_a_block_and_costs_no_malloc),
        cmocka_unit_test(test_limit),
        cmocka_unit_test(test_hostile_sizes),
        cmocka_unit_test(test_without_memory),
        cmocka_unit_test(test_texts),
        cmocka_unit_test(test_cleanups_run_backwards),
        cmocka_unit_test(test_links_hold_buffers),
        cmocka_unit_test(test_may_change_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
