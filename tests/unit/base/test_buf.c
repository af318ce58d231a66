/* Buffers: classes, alignment, budget, wrapping, pools over threads, failing allocations. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>

#include "base/buf.h"
#include "base/mem.h"

static const size_t sizes[] = {0,     1,      255,     256,     257,     4096,    65535,  65536,
                               65537, 500000, 1048575, 1048576, 1048577, 9000001, 100000, 3};

static void test_every_size(void **state)
{
    (void)state;
    uint64_t before = nr_buf_live_bytes();
    struct nr_buf *b[NR_COUNT(sizes)];
    size_t sum = 0;
    for (size_t i = 0; i < NR_COUNT(sizes); i++) {
        b[i] = nr_buf_try_new(sizes[i]);
        assert_non_null(b[i]);
        assert_int_equal(nr_buf_bytes(b[i]), sizes[i]);
        assert_int_equal((uintptr_t)nr_buf_data(b[i]) % NR_BUF_ALIGN, 0);
        assert_int_equal(b[i]->region.struct_size, sizeof(naru_region));
        assert_int_equal(b[i]->region.fd, -1);
        assert_int_equal(b[i]->region.mem_type, NARU_MEM_HOST);
        memset(nr_buf_data(b[i]), (int)i, sizes[i]);
        sum += sizes[i];
    }
    assert_true(nr_buf_live_bytes() >= before + sum);
    assert_true(nr_buf_live_bytes() <= before + 2 * sum + 16 * 256);
    for (size_t i = 0; i < NR_COUNT(sizes); i++) {
        if (sizes[i] > 0) {
            assert_int_equal(nr_buf_data(b[i])[0], i);
            assert_int_equal(nr_buf_data(b[i])[sizes[i] - 1], i);
        }
        nr_buf_unref(b[i]);
    }
    assert_int_equal(nr_buf_live_bytes(), before);
}

static void test_steady_state_costs_no_malloc(void **state)
{
    (void)state;
    struct nr_buf *b[32];
    uint64_t before = 0;
    for (int round = 0; round < 20; round++) {
        if (round == 1) {
            before = nr_mem_allocs();
        }
        for (size_t i = 0; i < 32; i++) { /* what 32 connections hold: 2 MiB would be 31 of these */
            b[i] = nr_buf_try_new(i % 2 ? 60000 : 700);
        }
        for (size_t i = 0; i < 32; i++) {
            nr_buf_unref(b[i]);
        }
    }
    assert_int_equal(nr_mem_allocs(), before);
}

static void test_pool_is_bounded(void **state)
{
    (void)state;
    static struct nr_buf *b[200];
    for (size_t i = 0; i < NR_COUNT(b); i++) {
        b[i] = nr_buf_try_new(65536);
    }
    for (size_t i = 0; i < NR_COUNT(b); i++) {
        nr_buf_unref(b[i]);
    }
    uint64_t before = nr_mem_allocs();
    for (size_t i = 0; i < NR_COUNT(b); i++) {
        b[i] = nr_buf_try_new(65536);
    }
    assert_in_range(nr_mem_allocs() - before, 200 - 32, 200 - 16); /* 2 MiB were kept */
    for (size_t i = 0; i < NR_COUNT(b); i++) {
        nr_buf_unref(b[i]);
    }
    nr_buf_thread_done();
}

static void test_refs(void **state)
{
    (void)state;
    uint64_t before = nr_buf_live_bytes();
    struct nr_buf *b = nr_buf_try_new(100);
    assert_ptr_equal(nr_buf_ref(b), b);
    nr_buf_unref(b);
    nr_buf_data(b)[0] = 1;
    nr_buf_unref(b);
    nr_buf_unref(NULL);
    assert_int_equal(nr_buf_live_bytes(), before);
}

static int destroyed;
static void destroy(struct nr_buf *b)
{
    assert_ptr_equal(b->owner, &destroyed);
    assert_int_equal(nr_buf_bytes(b), 3);
    destroyed++;
}

static void test_wrap(void **state)
{
    (void)state;
    char foreign[3] = "ab";
    uint64_t before = nr_buf_live_bytes();
    struct nr_buf *b = nr_buf_try_wrap(foreign, sizeof(foreign), destroy, &destroyed);
    assert_ptr_equal(nr_buf_data(b), foreign);
    assert_int_equal(nr_buf_live_bytes(), before);
    nr_buf_unref(nr_buf_ref(b));
    assert_int_equal(destroyed, 0);
    nr_buf_unref(b);
    assert_int_equal(destroyed, 1);
    b = nr_buf_try_wrap(foreign, sizeof(foreign), NULL, NULL);
    nr_buf_unref(b);
}

static void test_hostile_sizes(void **state)
{
    (void)state;
    uint64_t before = nr_buf_live_bytes();
    for (size_t back = 0; back < 10000; back += 111) {
        assert_null(nr_buf_try_new(SIZE_MAX - back));
    }
    assert_null(nr_buf_try_new(SIZE_MAX / 2));
    assert_null(nr_buf_try_new(SIZE_MAX / 4)); /* more than the address space */
    assert_int_equal(nr_buf_live_bytes(), before);
}

static void test_budget(void **state)
{
    (void)state;
    uint64_t base = nr_buf_live_bytes();
    nr_buf_set_budget(base + (4 << 20));
    struct nr_buf *large = nr_buf_try_new(3 << 20);
    assert_non_null(large);
    assert_true(nr_buf_scarce());
    assert_null(nr_buf_try_new(2 << 20));
    struct nr_buf *rest = nr_buf_try_new(1 << 20); /* exactly the rest */
    assert_non_null(rest);
    assert_null(nr_buf_try_new(1)); /* small ones see the budget too */
    nr_buf_unref(rest);
    static struct nr_buf *small[5000];
    size_t n = 0;
    while (n < NR_COUNT(small) && (small[n] = nr_buf_try_new(1000)) != NULL) {
        n++;
    }
    assert_int_equal(n, 1024); /* 1 KiB each of the 1 MiB: exact within a thread */
    while (n > 0) {
        nr_buf_unref(small[--n]);
    }
    nr_buf_unref(large);
    assert_int_equal(nr_buf_live_bytes(), base);
    assert_false(nr_buf_scarce());
    nr_buf_set_budget(0);
    large = nr_buf_try_new(8 << 20);
    assert_non_null(large);
    nr_buf_unref(large);
}

static void test_without_memory(void **state)
{
    (void)state;
    uint64_t before = nr_buf_live_bytes();
    for (size_t i = 0; i < NR_COUNT(sizes); i++) {
        for (uint64_t n = 1;; n++) {
            nr_mem_fail_after(n, false);
            struct nr_buf *b = nr_buf_try_new(sizes[i]);
            nr_mem_fail_after(0, false);
            bool failed = b == NULL;
            nr_buf_unref(b);
            assert_int_equal(nr_buf_live_bytes(), before);
            if (!failed) {
                assert_true(n >= 2);
                break;
            }
        }
    }
    nr_mem_fail_after(1, false);
    assert_null(nr_buf_try_wrap(&before, 8, NULL, NULL));
    nr_mem_fail_after(0, false);
}

#define N_THREADS 4
#define N_ROUNDS 3000
static struct nr_buf *_Atomic mailbox[8];
static struct nr_buf *shared;

/* Threads pass buffers on by a mailbox, so most are freed where they were not made, and all of
 * them take references of one. */
static void *exchange(void *arg)
{
    unsigned seed = (unsigned)(uintptr_t)arg;
    for (int i = 0; i < N_ROUNDS; i++) {
        seed = seed * 1103515245u + 12345u;
        struct nr_buf *b = nr_buf_try_new((seed >> 8) % 70000);
        NR_ASSERT(b != NULL);
        if (nr_buf_bytes(b) > 0) {
            nr_buf_data(b)[0] = (uint8_t)i;
        }
        nr_buf_unref(atomic_exchange(&mailbox[seed >> 28 & 7], b));
        nr_buf_unref(nr_buf_ref(shared));
    }
    nr_buf_unref(shared);
    return NULL;
}

static void test_threads(void **state)
{
    (void)state;
    uint64_t before = nr_buf_live_bytes();
    pthread_t t[N_THREADS];
    shared = nr_buf_try_new(1000);
    for (size_t i = 0; i < N_THREADS; i++) {
        nr_buf_ref(shared);
        assert_int_equal(pthread_create(&t[i], NULL, exchange, (void *)(i + 1)), 0);
    }
    nr_buf_unref(shared);
    for (size_t i = 0; i < N_THREADS; i++) {
        pthread_join(t[i], NULL);
    }
    for (size_t i = 0; i < NR_COUNT(mailbox); i++) {
        nr_buf_unref(atomic_load(&mailbox[i]));
    }
    assert_int_equal(nr_buf_live_bytes(), before); /* exact again: the threads have ended */
}

static unsigned n_offered;
static bool take_over;
static bool unmap_later(void *memory, size_t bytes)
{
    n_offered++;
    assert_true(bytes >= NR_BUF_SLOW_UNMAP_BYTES);
    memset(memory, 0xff, 64); /* the beginning is free for a node */
    if (take_over) {
        assert_int_equal(munmap(memory, bytes), 0);
    }
    return take_over;
}

/* Large mappings are offered to another thread, small ones are not; nobody has to take them. */
static void test_unmapping_elsewhere(void **state)
{
    (void)state;
    uint64_t before = nr_buf_live_bytes();
    nr_buf_set_unmap(unmap_later);
    for (unsigned i = 0; i < 4; i++) {
        take_over = i % 2 == 0;
        nr_buf_unref(nr_buf_try_new(NR_BUF_SLOW_UNMAP_BYTES));
        assert_int_equal(n_offered, i + 1);
        nr_buf_unref(nr_buf_try_new(NR_BUF_SLOW_UNMAP_BYTES / 2));
        assert_int_equal(n_offered, i + 1);
    }
    nr_buf_set_unmap(NULL);
    nr_buf_unref(nr_buf_try_new(NR_BUF_SLOW_UNMAP_BYTES));
    assert_int_equal(n_offered, 4);
    assert_int_equal(nr_buf_live_bytes(), before);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_size),
        cmocka_unit_test(test_steady_state_costs_no_malloc),
        cmocka_unit_test(test_pool_is_bounded),
        cmocka_unit_test(test_refs),
        cmocka_unit_test(test_wrap),
        cmocka_unit_test(test_hostile_sizes),
        cmocka_unit_test(test_budget),
        cmocka_unit_test(test_without_memory),
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_unmapping_elsewhere),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
