/* The kernel's figures follow what the process does. */
#include "base/footprint.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#define MIB ((size_t)1 << 20)

/* ThreadSanitizer keeps shadows several times the size of what is written. */
static void skip_with_shadows(void)
{
#if defined(__SANITIZE_THREAD__)
    print_message("ThreadSanitizer's shadows count as the process's own memory\n");
    skip();
#endif
}

static void test_it_grows(void **state)
{
    (void)state;
    skip_with_shadows();
    struct nr_footprint before, after, gone;
    uint64_t share = nr_footprint_share();
    nr_footprint_get(&before);
    assert_true(before.own_bytes > 0 && before.own_bytes < before.resident_bytes);
    assert_true(share > 0 && share <= before.resident_bytes + MIB);
    void *p = mmap(NULL, 64 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(p, MAP_FAILED);
    memset(p, 1, 64 * MIB);
    nr_footprint_get(&after);
    /* the kernel adds up late: at most some pages a thread */
    assert_in_range(after.own_bytes - before.own_bytes, 62 * MIB, 66 * MIB);
    assert_in_range(after.resident_bytes - before.resident_bytes, 62 * MIB, 66 * MIB);
    assert_in_range(nr_footprint_share() - share, 62 * MIB, 66 * MIB);
    munmap(p, 64 * MIB);
    nr_footprint_get(&gone);
    assert_true(gone.own_bytes < after.own_bytes - 60 * MIB);
}

/* What lies in a file is resident, but not the process's own. */
static void test_files_are_not_its_own(void **state)
{
    (void)state;
    skip_with_shadows();
    struct nr_footprint before, after;
    FILE *f = tmpfile();
    assert_non_null(f);
    assert_int_equal(ftruncate(fileno(f), 32 * MIB), 0);
    void *p = mmap(NULL, 32 * MIB, PROT_READ | PROT_WRITE, MAP_SHARED, fileno(f), 0);
    assert_ptr_not_equal(p, MAP_FAILED);
    nr_footprint_get(&before);
    memset(p, 1, 32 * MIB);
    nr_footprint_get(&after);
    assert_true(after.resident_bytes - before.resident_bytes >= 30 * MIB);
    assert_true(after.own_bytes < before.own_bytes + 4 * MIB);
    munmap(p, 32 * MIB);
    fclose(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_it_grows),
                                       cmocka_unit_test(test_files_are_not_its_own)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
