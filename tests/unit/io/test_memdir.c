/* Private folders in memory, and walking: what is removed, what is not, what a dead process leaves. */
#include "io/memdir.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/mem.h"
#include "io/file.h"

static char base[64];

static int set_up(void **state)
{
    (void)state;
    (void)snprintf(base, sizeof base, "/tmp/naru-memdir-XXXXXX");
    return mkdtemp(base) ? 0 : -1;
}
static int tear_down(void **state)
{
    (void)state;
    return rmdir(base); /* fails when a test leaves something */
}

static bool exists(const char *path)
{
    return access(path, F_OK) == 0;
}

static void put(int dir_fd, const char *rel)
{
    struct nr_err err;
    int fd = -1;
    assert_int_equal(nr_dir_open_at(dir_fd, rel, O_WRONLY | O_CREAT | O_EXCL, 0600, &fd, &err), 0);
    assert_int_equal(write(fd, "secret", 6), 6);
    nr_close(fd);
}

static void test_a_folder_and_all_in_it_goes(void **state)
{
    (void)state;
    struct nr_memdir d = NR_MEMDIR_NONE;
    struct nr_err err = {0};
    struct stat sb;
    assert_int_equal(nr_memdir_new(base, false, &d, &err), NARU_OK);
    assert_int_equal(fstat(d.fd, &sb), 0);
    assert_int_equal(sb.st_mode & 0777, 0700);
    assert_int_equal(nr_dir_make_at(d.fd, "a/b/c", &err), NARU_OK);
    assert_int_equal(nr_dir_make_at(d.fd, "a/b/c", &err), NARU_OK); /* there already */
    put(d.fd, "a/b/c/x");
    put(d.fd, "y");
    assert_int_equal(symlinkat("/etc/passwd", d.fd, "link"), 0);
    char *path = nr_strdup(d.path);
    assert_true(exists(path));
    nr_memdir_free(&d);
    assert_false(exists(path));
    assert_true(exists("/etc/passwd")); /* the link went, not what it led to */
    assert_int_equal(d.fd, -1);
    nr_memdir_free(&d); /* again: nothing */
    nr_free(path);
}

static void test_paths_stay_within(void **state)
{
    (void)state;
    struct nr_memdir d = NR_MEMDIR_NONE;
    struct nr_err err = {0};
    assert_int_equal(nr_memdir_new(base, false, &d, &err), NARU_OK);
    assert_int_equal(nr_dir_make_at(d.fd, "../x", &err), NARU_DENIED);
    assert_int_equal(nr_dir_make_at(d.fd, "/x", &err), NARU_DENIED);
    assert_int_equal(nr_dir_make_at(d.fd, "", &err), NARU_INVALID);
    assert_int_equal(symlinkat("/tmp", d.fd, "out"), 0);
    assert_int_equal(nr_dir_make_at(d.fd, "out/escaped", &err), NARU_DENIED);
    assert_false(exists("/tmp/escaped"));
    nr_memdir_free(&d);
}

static void test_only_in_memory(void **state)
{
    (void)state;
    struct nr_memdir d = NR_MEMDIR_NONE;
    struct nr_err err = {0};
    assert_int_equal(nr_memdir_new("/proc", true, &d, &err), NARU_UNAVAILABLE);
    assert_non_null(strstr(err.text, "/proc does not lie in memory"));
    assert_true(nr_memdir_new("/nowhere/at/all", false, &d, &err) != NARU_OK);
    assert_int_equal(d.fd, -1);
    if (exists("/dev/shm")) {
        assert_int_equal(nr_memdir_new(NULL, true, &d, &err), NARU_OK);
        nr_memdir_free(&d);
    }
}

static void test_only_the_dead_are_swept(void **state)
{
    (void)state;
    struct nr_memdir mine = NR_MEMDIR_NONE;
    struct nr_err err = {0};
    assert_int_equal(nr_memdir_new(base, false, &mine, &err), NARU_OK);
    put(mine.fd, "x");
    pid_t pid = fork();
    if (pid == 0) { /* dies with a folder of its own */
        struct nr_memdir d = NR_MEMDIR_NONE;
        bool made = nr_memdir_new(base, false, &d, NULL) == NARU_OK &&
                    nr_dir_make_at(d.fd, "1", NULL) == NARU_OK;
        int fd = openat(d.fd, "1/model.onnx", O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
        _exit(made && fd >= 0 && write(fd, "plain", 5) == 5 ? 0 : 1);
    }
    int status = -1;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    char other[96];
    (void)snprintf(other, sizeof other, "%s/naru-memory", base);
    assert_int_equal(mkdir(other, 0700), 0);
    assert_int_equal(nr_memdir_sweep(base), 1);
    assert_int_equal(nr_memdir_sweep(base), 0);
    assert_true(exists(mine.path));
    assert_true(exists(other)); /* not one of ours by its name */
    assert_int_equal(rmdir(other), 0);
    nr_memdir_free(&mine);
}

struct seen {
    char text[512];
    unsigned stop_at, n;
};

static nr_status note(void *arg, struct nr_dir_visit *v, struct nr_err *err)
{
    struct seen *s = arg;
    size_t at = strlen(s->text);
    (void)snprintf(s->text + at, sizeof s->text - at, "%s%s ", v->leaving ? "-" : "", v->rel);
    v->enter = strcmp(v->entry->name, "shut") != 0;
    return ++s->n == s->stop_at ? nr_fail(err, NARU_EXISTS, "stop") : NARU_OK;
}

static void test_walks(void **state)
{
    (void)state;
    struct nr_memdir d = NR_MEMDIR_NONE;
    struct nr_err err = {0};
    struct seen s = {0};
    assert_int_equal(nr_memdir_new(base, false, &d, &err), NARU_OK);
    assert_int_equal(nr_dir_walk(d.fd, 4, 10, note, &s, &err), NARU_OK);
    assert_string_equal(s.text, "");
    assert_int_equal(nr_dir_make_at(d.fd, "b/d", &err), NARU_OK);
    assert_int_equal(nr_dir_make_at(d.fd, "shut/up", &err), NARU_OK);
    put(d.fd, "a");
    put(d.fd, "b/c");
    put(d.fd, "b/d/e");
    assert_int_equal(nr_dir_walk(d.fd, 4, 10, note, &s, &err), NARU_OK);
    assert_string_equal(s.text, "a b b/c b/d b/d/e -b/d -b shut ");
    s = (struct seen){.stop_at = 5};
    assert_int_equal(nr_dir_walk(d.fd, 4, 10, note, &s, &err), NARU_EXISTS);
    assert_string_equal(s.text, "a b b/c b/d b/d/e ");
    s = (struct seen){0};
    assert_int_equal(nr_dir_walk(d.fd, 2, 10, note, &s, &err), NARU_TOO_LARGE);
    assert_int_equal(nr_dir_walk(d.fd, 4, 1, note, &s, &err), NARU_TOO_LARGE);
    nr_memdir_free(&d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_a_folder_and_all_in_it_goes, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_paths_stay_within, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_only_in_memory, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_only_the_dead_are_swept, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_walks, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
