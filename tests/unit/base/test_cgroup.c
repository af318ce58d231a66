/* Memory limits of control groups, on a tree made here. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/cgroup.h"
#include "base/status.h"

static char mount[] = "/tmp/naru-cgroup-XXXXXX";

static void put(const char *folder, const char *file, const char *text)
{
    char path[256];
    (void)snprintf(path, sizeof path, "%s/%s", mount, folder);
    (void)mkdir(path, 0700);
    (void)snprintf(path, sizeof path, "%s/%s/%s", mount, folder, file);
    FILE *f = fopen(path, "we");
    assert_non_null(f);
    (void)fputs(text, f);
    assert_int_equal(fclose(f), 0);
}

static int make_tree(void **state)
{
    (void)state;
    assert_non_null(mkdtemp(mount));
    put("", "memory.max", "max\n");
    put("slice", "memory.max", "2000000\n");
    put("slice/service", "memory.max", "max\n");
    put("slice/tight", "memory.max", "500000");
    put("slice/loose", "memory.max", "9000000\n");
    put("memory", "memory.limit_in_bytes", "9223372036854771712\n");
    put("memory/docker", "memory.limit_in_bytes", "700000\n");
    put("memory/docker/a", "memory.limit_in_bytes", "9223372036854771712\n");
    put("unified", "memory.max", "max\n");
    put("unified/u", "memory.max", "600000\n");
    put("odd", "memory.max", "0\n");
    put("worse", "memory.max", "-5 bytes\n");
    return 0;
}

static int remove_tree(void **state)
{
    (void)state;
    static const char *const names[] = {"slice/service/memory.max",
                                        "slice/tight/memory.max",
                                        "slice/loose/memory.max",
                                        "slice/service",
                                        "slice/tight",
                                        "slice/loose",
                                        "slice/memory.max",
                                        "slice",
                                        "memory/docker/a/memory.limit_in_bytes",
                                        "memory/docker/a",
                                        "memory/docker/memory.limit_in_bytes",
                                        "memory/docker",
                                        "memory/memory.limit_in_bytes",
                                        "memory",
                                        "unified/u/memory.max",
                                        "unified/u",
                                        "unified/memory.max",
                                        "unified",
                                        "odd/memory.max",
                                        "odd",
                                        "worse/memory.max",
                                        "worse",
                                        "memory.max",
                                        ""};
    for (unsigned i = 0; i < NR_COUNT(names); i++) {
        char path[256];
        (void)snprintf(path, sizeof path, "%s/%s", mount, names[i]);
        assert_int_equal(remove(path), 0);
    }
    return 0;
}

static void test_limits(void **state)
{
    (void)state;
    const struct {
        const char *self;
        uint64_t limit;
    } cases[] = {
        {"0::/\n", UINT64_MAX},
        {"0::/slice/service\n", 2000000}, /* of the group above */
        {"0::/slice/tight\n", 500000},
        {"0::/slice/loose\n", 2000000},
        {"0::/slice/gone\n", 2000000},
        {"0::/u\n", 600000}, /* version 2 beside version 1 */
        {"4:memory:/docker/a\n0::/\n", 700000},
        {"12:cpu,cpuacct:/docker\n11:blkio,memory,pids:/docker\n1:name=systemd:/docker\n", 700000},
        {"4:memory:/docker/a\n0::/slice/tight", 500000},
        {"4:memoryless:/docker\n", UINT64_MAX},
        {"0::/odd\n", UINT64_MAX},
        {"0::/worse\n", UINT64_MAX},
        {"", UINT64_MAX},
        {"nonsense\n::\n0:\n0::\n", UINT64_MAX},
    };
    for (unsigned i = 0; i < NR_COUNT(cases); i++) {
        assert_int_equal(nr_cgroup_memory_limit(cases[i].self, mount), cases[i].limit);
    }
}

static void test_this_process(void **state)
{
    (void)state;
    assert_true(nr_cgroup_memory_limit(NULL, NULL) > 1 << 20);
    assert_int_equal(nr_cgroup_memory_limit(NULL, "/nowhere"), UINT64_MAX);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_limits),
                                       cmocka_unit_test(test_this_process)};
    return cmocka_run_group_tests(tests, make_tree, remove_tree);
}
