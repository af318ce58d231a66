/* Files: escapes by .., absolute paths and links (openat2 and walk), whole reads and writes, lists. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/mem.h"
#include "io/file.h"
#include "unit/io/deny_call.h"

static char root[64];
static char outside[64];
static int root_fd = -1;

static void put_file(int dir_fd, const char *name, const char *text)
{
    int fd = openat(dir_fd, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, strlen(text)), strlen(text));
    close(fd);
}

/* root/{plain, a/b/deep, link -> plain, up -> .., out -> outside, a/out -> outside, fifo} */
static int make_tree(void **state)
{
    (void)state;
    snprintf(root, sizeof(root), "/tmp/naru-test-file-XXXXXX");
    snprintf(outside, sizeof(outside), "/tmp/naru-test-out-XXXXXX");
    assert_non_null(mkdtemp(root));
    assert_non_null(mkdtemp(outside));
    struct nr_err err;
    assert_int_equal(nr_dir_open_root(root, &root_fd, &err), NARU_OK);
    assert_int_equal(mkdirat(root_fd, "a", 0755), 0);
    assert_int_equal(mkdirat(root_fd, "a/b", 0755), 0);
    put_file(root_fd, "plain", "plain text");
    put_file(root_fd, "a/b/deep", "deep text");
    assert_int_equal(symlinkat("plain", root_fd, "link"), 0);
    assert_int_equal(symlinkat("..", root_fd, "up"), 0);
    assert_int_equal(symlinkat(outside, root_fd, "out"), 0);
    assert_int_equal(symlinkat(outside, root_fd, "a/out"), 0);
    assert_int_equal(mkfifoat(root_fd, "fifo", 0644), 0);
    return 0;
}

static void remove_tree(const char *path)
{
    DIR *d = opendir(path);
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d)) != NULL;) {
        char sub[512];
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0) {
            continue;
        }
        snprintf(sub, sizeof(sub), "%s/%.300s", path, e->d_name);
        if (e->d_type == DT_DIR) {
            remove_tree(sub);
        } else {
            unlink(sub);
        }
    }
    closedir(d);
    assert_int_equal(rmdir(path), 0);
}

static int drop_tree(void **state)
{
    (void)state;
    nr_close(root_fd);
    remove_tree(root);
    remove_tree(outside);
    return 0;
}

typedef nr_status (*opener)(int, const char *, int, unsigned, int *, struct nr_err *);
static const opener openers[] = {nr_dir_open_at, nr_dir_open_walk};

static nr_status try_open(opener open_fn, const char *rel, int flags)
{
    int fd = -77;
    struct nr_err err = {0};
    nr_status status = open_fn(root_fd, rel, flags, 0644, &fd, &err);
    if (status == NARU_OK) {
        assert_true(fd >= 0);
        assert_true((fcntl(fd, F_GETFD) & FD_CLOEXEC) != 0);
        close(fd);
    } else {
        assert_int_equal(fd, -77); /* written on success only */
        assert_true(strlen(err.text) > 0);
        assert_int_equal(err.status, status);
    }
    return status;
}

static int count_fds(void)
{
    int n = 0;
    for (int fd = 0; fd < 256; fd++) {
        n += fcntl(fd, F_GETFD) >= 0;
    }
    return n;
}

static void test_escapes(void **state)
{
    (void)state;
    static const struct {
        const char *rel;
        nr_status want;
    } cases[] = {
        {"plain", NARU_OK},
        {"./plain", NARU_OK},
        {"a/b/deep", NARU_OK},
        {"a//b/./deep", NARU_OK},
        {".", NARU_OK},
        {"a/", NARU_OK},
        {"a/b/.", NARU_OK},
        {"...", NARU_NOT_FOUND}, /* an ordinary name */
        {"..plain", NARU_NOT_FOUND},
        {"none", NARU_NOT_FOUND},
        {"none/x", NARU_NOT_FOUND},
        {"plain/x", NARU_NOT_FOUND},
        {"plain/", NARU_NOT_FOUND},
        {"", NARU_INVALID},
        {"/", NARU_DENIED},
        {"/etc/passwd", NARU_DENIED},
        {"..", NARU_DENIED},
        {"../x", NARU_DENIED},
        {"a/../../x", NARU_DENIED},
        {"a/../plain", NARU_DENIED}, /* stays inside, but nobody needs it */
        {"a/..", NARU_DENIED},
        {"a//..//plain", NARU_DENIED},
        {"link", NARU_DENIED},
        {"up/plain", NARU_DENIED},
        {"out", NARU_DENIED},
        {"out/x", NARU_DENIED},
        {"a/out/x", NARU_DENIED},
        {"link/x", NARU_DENIED},
    };
    int before = count_fds();
    for (size_t o = 0; o < NR_COUNT(openers); o++) {
        for (size_t i = 0; i < NR_COUNT(cases); i++) {
            nr_status got = try_open(openers[o], cases[i].rel, O_RDONLY);
            if (got != cases[i].want) {
                print_error("opener %zu, '%s': %s\n", o, cases[i].rel, nr_status_name(got));
            }
            assert_int_equal(got, cases[i].want);
        }
        char name[400];
        memset(name, 'n', sizeof(name) - 1);
        name[sizeof(name) - 1] = '\0';
        assert_int_equal(try_open(openers[o], name, O_RDONLY), NARU_INVALID);
        memcpy(name, "a/b/", 4);
        assert_int_equal(try_open(openers[o], name, O_RDONLY), NARU_INVALID);
        name[350] = '/';
        assert_int_equal(try_open(openers[o], name, O_RDONLY), NARU_INVALID);
        /* Creating through a link is refused as well; an ordinary creation works. */
        assert_int_equal(try_open(openers[o], "out/new", O_WRONLY | O_CREAT), NARU_DENIED);
        assert_int_equal(try_open(openers[o], "a/new", O_WRONLY | O_CREAT | O_EXCL), NARU_OK);
        assert_int_equal(try_open(openers[o], "a/new", O_WRONLY | O_CREAT | O_EXCL), NARU_EXISTS);
        assert_int_equal(unlinkat(root_fd, "a/new", 0), 0);
    }
    assert_int_equal(count_fds(), before); /* no path of the walk leaks a folder */
}

/* In a child whose kernel knows no openat2 nr_dir_open_at does the same by walking. */
static int check_without_openat2(void)
{
    int fd = -1;
    if (nr_dir_open_at(root_fd, "out/x", O_RDONLY, 0, &fd, NULL) != NARU_DENIED ||
        nr_dir_open_at(root_fd, "link", O_RDONLY, 0, &fd, NULL) != NARU_DENIED ||
        nr_dir_open_at(root_fd, "none", O_RDONLY, 0, &fd, NULL) != NARU_NOT_FOUND) {
        return 1;
    }
    return nr_dir_open_at(root_fd, "a/b/deep", O_RDONLY, 0, &fd, NULL) == NARU_OK ? 0 : 2;
}

static void test_older_kernel(void **state)
{
    (void)state;
    int rc = without_call(SYS_openat2, check_without_openat2);
    if (rc == 77) {
        print_message("no system call filters here: skipped\n");
        skip();
    }
    assert_int_equal(rc, 0);
}

static void test_roots(void **state)
{
    (void)state;
    int fd = -1;
    struct nr_err err;
    char link[128];
    snprintf(link, sizeof(link), "%s/out", root);
    assert_int_equal(nr_dir_open_root(link, &fd, &err), NARU_OK); /* an operator's link is fine */
    nr_close(fd);
    assert_int_equal(nr_dir_open_root("/nonexistent/x", &fd, &err), NARU_NOT_FOUND);
    assert_non_null(strstr(err.text, "/nonexistent/x"));
    assert_int_equal(nr_dir_open_root("/dev/null", &fd, &err), NARU_NOT_FOUND);
    errno = 5;
    nr_close(-1);
    nr_close(12345);
    assert_int_equal(errno, 5);
}

static void test_read(void **state)
{
    (void)state;
    struct nr_err err;
    char *text = NULL;
    size_t len = 0;
    assert_int_equal(nr_file_read_at(root_fd, "a/b/deep", 9, &text, &len, &err), NARU_OK);
    assert_int_equal(len, 9);
    assert_string_equal(text, "deep text");
    nr_free(text);
    text = NULL;
    assert_int_equal(nr_file_read_at(root_fd, "a/b/deep", 8, &text, &len, &err), NARU_TOO_LARGE);
    assert_int_equal(nr_file_read_at(root_fd, "a", 100, &text, &len, &err), NARU_INVALID);
    assert_int_equal(nr_file_read_at(root_fd, "link", 100, &text, &len, &err), NARU_DENIED);
    assert_int_equal(nr_file_read_at(root_fd, "none", 100, &text, &len, &err), NARU_NOT_FOUND);
    assert_int_equal(nr_file_read_at(root_fd, "fifo", 100, &text, &len, &err), NARU_INVALID);
    put_file(root_fd, "empty", "");
    assert_int_equal(nr_file_read_at(root_fd, "empty", 0, &text, &len, &err), NARU_OK);
    assert_int_equal(len, 0);
    assert_string_equal(text, "");
    nr_free(text);
    nr_mem_fail_after(1, false);
    assert_int_equal(nr_file_read_at(root_fd, "plain", 100, &text, &len, &err), NARU_NOMEM);
    nr_mem_fail_after(0, false);
    assert_int_equal(nr_file_read_at(root_fd, "plain", SIZE_MAX, &text, &len, &err), NARU_OK);
    assert_int_equal(len, 10);
    nr_free(text);
}

/* Files that do not know their size: procfs says 0. */
static void test_read_of_unknown_size(void **state)
{
    (void)state;
    struct nr_err err;
    char *text = NULL;
    size_t len = 0;
    nr_autoclose int proc_fd = -1;
    assert_int_equal(nr_dir_open_root("/proc", &proc_fd, &err), NARU_OK);
    assert_int_equal(nr_file_read_at(proc_fd, "cpuinfo", 1 << 20, &text, &len, &err), NARU_OK);
    assert_true(len > 50);
    assert_int_equal(strlen(text), len);
    nr_free(text);
    assert_int_equal(nr_file_read_at(proc_fd, "cpuinfo", 20, &text, &len, &err), NARU_TOO_LARGE);
    /* "self" is a magic link's ordinary cousin, still a link */
    assert_int_equal(nr_file_read_at(proc_fd, "self/stat", 100, &text, &len, &err), NARU_DENIED);
}

static size_t count_entries(int fd)
{
    struct nr_dir_entry *e = NULL;
    size_t n = 0;
    struct nr_err err;
    assert_int_equal(nr_dir_list(fd, 1000, &e, &n, &err), NARU_OK);
    nr_free(e);
    return n;
}

static void test_write(void **state)
{
    (void)state;
    struct nr_err err;
    size_t before = count_entries(root_fd);
    assert_int_equal(nr_file_write_at(root_fd, "new", "one", 3, &err), NARU_OK);
    assert_int_equal(nr_file_write_at(root_fd, "new", "second", 6, &err), NARU_OK);
    assert_int_equal(nr_file_write_at(root_fd, "a/b/new", "", 0, &err), NARU_OK);
    char *text = NULL;
    size_t len = 0;
    assert_int_equal(nr_file_read_at(root_fd, "new", 100, &text, &len, &err), NARU_OK);
    assert_string_equal(text, "second");
    nr_free(text);
    assert_int_equal(nr_file_write_at(root_fd, "none/x", "x", 1, &err), NARU_NOT_FOUND);
    assert_int_equal(nr_file_write_at(root_fd, "out/x", "x", 1, &err), NARU_DENIED);
    assert_int_equal(nr_file_write_at(root_fd, "../x", "x", 1, &err), NARU_DENIED);
    assert_int_equal(nr_file_write_at(root_fd, "a/", "x", 1, &err), NARU_INVALID);
    assert_int_equal(nr_file_write_at(root_fd, ".", "x", 1, &err), NARU_INVALID);
    assert_int_equal(nr_file_write_at(root_fd, "a", "x", 1, &err), NARU_INVALID); /* a folder */
    /* A link is replaced, what it leads to is not written. */
    assert_int_equal(nr_file_write_at(root_fd, "link", "mine", 4, &err), NARU_OK);
    assert_int_equal(nr_file_read_at(root_fd, "plain", 100, &text, &len, &err), NARU_OK);
    assert_string_equal(text, "plain text");
    nr_free(text);
    assert_int_equal(count_entries(root_fd), before + 1); /* no temporary file is left */
}

static void test_failed_write_leaves_the_old_file(void **state)
{
    (void)state;
    struct nr_err err;
    size_t before = count_entries(root_fd);
    struct rlimit old;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    struct rlimit low = {4096, old.rlim_max};
    void (*handler)(int) = signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &low), 0);
    static char large[100000];
    nr_status status = nr_file_write_at(root_fd, "plain", large, sizeof(large), &err);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
    signal(SIGXFSZ, handler);
    assert_int_equal(status, NARU_TOO_LARGE); /* EFBIG */
    char *text = NULL;
    size_t len = 0;
    assert_int_equal(nr_file_read_at(root_fd, "plain", 100, &text, &len, &err), NARU_OK);
    assert_string_equal(text, "plain text");
    nr_free(text);
    assert_int_equal(count_entries(root_fd), before);
}

static void test_list(void **state)
{
    (void)state;
    struct nr_err err;
    struct nr_dir_entry *e = NULL;
    size_t n = 0;
    assert_int_equal(nr_dir_list(root_fd, 6, &e, &n, &err), NARU_OK);
    static const char *const names[] = {"a", "fifo", "link", "out", "plain", "up"};
    assert_int_equal(n, NR_COUNT(names));
    for (size_t i = 0; i < n; i++) {
        assert_string_equal(e[i].name, names[i]);
        assert_int_equal(e[i].is_dir, i == 0); /* links are themselves */
        assert_true(e[i].mtime_ns > INT64_C(1600000000000000000));
    }
    assert_int_equal(e[4].bytes, 10);
    nr_free(e);
    assert_int_equal(nr_dir_list(root_fd, 6, &e, &n, &err), NARU_OK); /* from the start again */
    assert_int_equal(n, 6);
    nr_free(e);
    e = NULL;
    assert_int_equal(nr_dir_list(root_fd, 5, &e, &n, &err), NARU_TOO_LARGE);
    nr_mem_fail_after(1, false);
    assert_int_equal(nr_dir_list(root_fd, 6, &e, &n, &err), NARU_NOMEM);
    nr_mem_fail_after(0, false);
    nr_autoclose int file_fd = openat(root_fd, "plain", O_RDONLY | O_CLOEXEC);
    assert_int_equal(nr_dir_list(file_fd, 6, &e, &n, &err), NARU_NOT_FOUND); /* ENOTDIR */
    nr_autoclose int out_fd = open(outside, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    assert_int_equal(nr_dir_list(out_fd, 0, &e, &n, &err), NARU_OK);
    assert_int_equal(n, 0);
    assert_null(e);
    char name[300];
    for (int i = 0; i < 100; i++) {
        memset(name, 'x', 255); /* the longest names there are */
        snprintf(name + 250, sizeof(name) - 250, "%05d", 99 - i);
        put_file(out_fd, name, "");
    }
    assert_int_equal(nr_dir_list(out_fd, 1000, &e, &n, &err), NARU_OK);
    assert_int_equal(n, 100);
    for (size_t i = 0; i < n; i++) {
        assert_int_equal(strlen(e[i].name), 255);
        char digits[24];
        snprintf(digits, sizeof(digits), "%05zu", i);
        assert_string_equal(e[i].name + 250, digits);
    }
    nr_free(e);
}

static void test_names(void **state)
{
    (void)state;
    static const char *const good[] = {"a", "resnet-50", "A_b.c-9", "1", "-x", "_", "a..b"};
    static const char *const bad[] = {"",     ".",    "..",       ".hidden", "a/b", "a b",
                                      "a\\b", "a\nb", "\xc3\xa9", "a%2e",    "a:b", "a\x7f"};
    for (size_t i = 0; i < NR_COUNT(good); i++) {
        assert_true(nr_name_valid(nr_str_from(good[i])));
    }
    for (size_t i = 0; i < NR_COUNT(bad); i++) {
        assert_false(nr_name_valid(nr_str_from(bad[i])));
    }
    assert_false(nr_name_valid(NR_STR("a\0b")));
    assert_false(nr_name_valid((struct nr_str){NULL, 0}));
    char longest[129];
    memset(longest, 'n', sizeof(longest));
    assert_true(nr_name_valid((struct nr_str){longest, 128}));
    assert_false(nr_name_valid((struct nr_str){longest, 129}));
}

#define WITH_TREE(test) cmocka_unit_test_setup_teardown(test, make_tree, drop_tree)

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_TREE(test_escapes),
        WITH_TREE(test_older_kernel),
        WITH_TREE(test_roots),
        WITH_TREE(test_read),
        cmocka_unit_test(test_read_of_unknown_size),
        WITH_TREE(test_write),
        WITH_TREE(test_failed_write_leaves_the_old_file),
        WITH_TREE(test_list),
        cmocka_unit_test(test_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
