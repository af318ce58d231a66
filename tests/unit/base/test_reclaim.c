/* Giving memory back: what is dropped comes back as it was, and what was changed is not dropped. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/reclaim.h"
#include "base/str.h"

#define HEAP_BLOCKS 512
#define HEAP_BYTES 32768

/* KiB of the line `name` of /proc/self/status. */
static int64_t status_kib(const char *name)
{
    char line[128];
    int64_t kib = -1;
    FILE *f = fopen("/proc/self/status", "re");
    while (f != NULL && fgets(line, sizeof(line), f) != NULL) {
        struct nr_str rest, word = nr_str_cut(nr_str_from(line), ':', &rest);
        if (nr_str_is(word, name)) {
            rest = nr_str_trim(rest);
            rest.len = strspn(rest.ptr, "0123456789");
            assert_true(nr_str_to_i64(rest, &kib));
        }
    }
    assert_non_null(f);
    fclose(f);
    return kib;
}

static void test_code_goes_and_comes_back(void **state)
{
    (void)state;
    char before[64], after[64];
    (void)snprintf(before, sizeof(before), "%d %.17g", 42, 0.1);
    int64_t kib = status_kib("RssFile");
    size_t dropped = nr_reclaim_code();
    if (dropped == 0) {
        skip(); /* no pagemap here */
    }
    int64_t left = status_kib("RssFile");
    (void)snprintf(after, sizeof(after), "%d %.17g", 42, 0.1);
    assert_string_equal(before, after);
    assert_true(dropped > 100000);
    assert_true(left < kib);
}

/* A page of constants of this program, changed as a debugger would change code. */
static const _Alignas(4096) volatile char constants[8192] = {'a', 'b'};

static void test_changed_pages_stay(void **state)
{
    (void)state;
    char *page = (char *)(uintptr_t)constants;
    assert_int_equal(mprotect(page, 4096, PROT_READ | PROT_WRITE), 0);
    page[1] = 'x';
    assert_int_equal(mprotect(page, 4096, PROT_READ), 0);
    (void)nr_reclaim_code();
    assert_int_equal(constants[0], 'a');
    assert_int_equal(constants[1], 'x');
}

static void test_heap_between_live_blocks(void **state)
{
    (void)state;
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || defined(NR_ASAN)
    skip(); /* their allocators keep what is freed */
#endif
    void *blocks[HEAP_BLOCKS];
    for (size_t i = 0; i < HEAP_BLOCKS; i++) {
        blocks[i] = malloc(HEAP_BYTES);
        assert_non_null(blocks[i]);
        memset(blocks[i], 1, HEAP_BYTES);
    }
    int64_t full = status_kib("RssAnon");
    for (size_t i = 0; i < HEAP_BLOCKS; i++) {
        if (i % 4 != 0) {
            free(blocks[i]);
        }
    }
    nr_reclaim_heap();
    int64_t trimmed = status_kib("RssAnon");
    assert_true(full - trimmed > HEAP_BLOCKS * HEAP_BYTES / 1024 / 2);
    for (size_t i = 0; i < HEAP_BLOCKS; i += 4) {
        assert_int_equal(((char *)blocks[i])[HEAP_BYTES - 1], 1);
        free(blocks[i]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_code_goes_and_comes_back),
        cmocka_unit_test(test_changed_pages_stay),
        cmocka_unit_test(test_heap_between_live_blocks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
