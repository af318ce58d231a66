/* Chains of repository agents: order, unwinding, folders, time limits, tables. The agent is the plug-in
 * "trace", which writes down what it is told. */
#include "host/agent.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/mem.h"
#include "io/file.h"

static char dir[64], log_path[96];
static int dir_fd;
static struct nr_agents *set;

static int set_up(void **state)
{
    (void)state;
    (void)snprintf(dir, sizeof dir, "/tmp/naru-agent-test-XXXXXX");
    assert_non_null(mkdtemp(dir));
    (void)snprintf(log_path, sizeof log_path, "%s.log", dir);
    dir_fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    assert_true(dir_fd >= 0);
    assert_int_equal(nr_dir_make_at(dir_fd, "1", NULL), NARU_OK);
    assert_int_equal(nr_file_write_at(dir_fd, "1/model.bin", "weights", 7, NULL), NARU_OK);
    set = nr_agents_new();
    nr_agents_add_dir(set, NARU_BUILD_DIR "/backends");
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    nr_agents_free(set);
    (void)unlinkat(dir_fd, "1/model.bin", 0);
    (void)unlinkat(dir_fd, "1/link", 0);
    (void)unlinkat(dir_fd, "1", AT_REMOVEDIR);
    nr_close(dir_fd);
    (void)unlink(log_path);
    return rmdir(dir);
}

static const char *told(void)
{
    static char text[4096];
    int fd = open(log_path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd >= 0 ? read(fd, text, sizeof text - 1) : 0;
    text[n] = '\0';
    nr_close(fd);
    for (char *p = text; *p; p++) {
        *p = *p == '\n' ? ',' : *p;
    }
    return text;
}

/* "a fail=LOAD text=no|b folder=copy": a chain of trace agents by id, with parameters. */
static nr_status chain_of(const char *text, struct nr_agent_chain **ret, struct nr_err *err)
{
    static char copy[512];
    static naru_option options[NR_AGENTS_MAX_CHAIN][8];
    struct nr_agent_spec specs[NR_AGENTS_MAX_CHAIN];
    uint32_t n = 0;
    (void)snprintf(copy, sizeof copy, "%s", text);
    char *rest = copy;
    for (char *one; (one = strsep(&rest, "|")) != NULL; n++) {
        uint32_t k = 0;
        options[n][k++] = (naru_option){"log", log_path};
        options[n][k++] = (naru_option){"id", strsep(&one, " ")};
        for (char *key; (key = strsep(&one, " ")) != NULL;) {
            char *value = strchr(key, '=');
            *value = '\0';
            options[n][k++] = (naru_option){key, value + 1};
        }
        specs[n] =
            (struct nr_agent_spec){.name = NR_STR("trace"), .options = options[n], .n_options = k};
    }
    struct nr_agent_chain_cfg cfg = {
        .agents = set, .model = "m", .path = dir, .dir_fd = dir_fd, .specs = specs, .n_specs = n};
    return nr_agent_chain_new(&cfg, ret, err);
}

static struct nr_agent_chain *chain(const char *text)
{
    struct nr_agent_chain *c = NULL;
    struct nr_err err = {0};
    nr_status st = chain_of(text, &c, &err);
    if (st != NARU_OK) {
        fail_msg("%s", err.text);
    }
    return c;
}

static void test_a_whole_life_in_order(void **state)
{
    (void)state;
    struct nr_agent_chain *c = chain("a|b|c");
    const char *path = NULL;
    assert_string_equal(told(), ""); /* nothing runs before LOAD */
    assert_int_equal(nr_agent_chain_load(c, NULL), NARU_OK);
    assert_true(nr_agent_chain_fd(c, &path) >= 0);
    assert_string_equal(path, dir);
    nr_agent_chain_loaded(c, true);
    nr_agent_chain_unload(c);
    nr_agent_chain_unloaded(c);
    nr_agent_chain_unloaded(c); /* once each, whatever the caller does */
    nr_agent_chain_loaded(c, false);
    nr_agent_chain_free(c);
    assert_string_equal(told(), "a LOAD m,b LOAD m,c LOAD m,"
                                "c LOAD_COMPLETE m,b LOAD_COMPLETE m,a LOAD_COMPLETE m,"
                                "a UNLOAD m,b UNLOAD m,c UNLOAD m,"
                                "c UNLOAD_COMPLETE m,b UNLOAD_COMPLETE m,a UNLOAD_COMPLETE m,");
    nr_agent_chain_free(NULL);
}

static void test_a_load_that_fails_later(void **state)
{
    (void)state;
    struct nr_agent_chain *c = chain("a|b");
    assert_int_equal(nr_agent_chain_load(c, NULL), NARU_OK);
    nr_agent_chain_loaded(c, false);
    nr_agent_chain_unload(c); /* of a failed load there is nothing to unload */
    nr_agent_chain_unloaded(c);
    nr_agent_chain_free(c);
    assert_string_equal(told(), "a LOAD m,b LOAD m,b LOAD_FAIL m,a LOAD_FAIL m,");
}

static void test_failure_in_the_middle_unwinds(void **state)
{
    (void)state;
    struct nr_err err = {0};
    struct nr_agent_chain *c = chain("a folder=copy|b|c fail=LOAD text=sorry|d");
    assert_int_equal(nr_agent_chain_load(c, &err), NARU_PRECONDITION);
    assert_string_equal(err.text, "agent trace: sorry");
    assert_string_equal(told(), "a LOAD m,b LOAD m,c LOAD m,b LOAD_FAIL m,a LOAD_FAIL m,");
    const char *path = NULL;
    (void)nr_agent_chain_fd(c, &path);
    char *folder = nr_strdup(path);
    assert_int_equal(access(folder, F_OK), 0);
    nr_agent_chain_free(c);
    assert_int_not_equal(access(folder, F_OK), 0);
    nr_free(folder);
}

static void test_other_actions_cannot_fail_a_load(void **state)
{
    (void)state;
    struct nr_agent_chain *c = chain("a fail=LOAD_COMPLETE text=x|b fail=UNLOAD");
    assert_int_equal(nr_agent_chain_load(c, NULL), NARU_OK);
    nr_agent_chain_loaded(c, true);
    nr_agent_chain_unload(c);
    nr_agent_chain_unloaded(c);
    nr_agent_chain_free(c);
    assert_non_null(strstr(told(), "b UNLOAD_COMPLETE m,a UNLOAD_COMPLETE m,"));
}

static void test_folders_are_handed_on(void **state)
{
    (void)state;
    struct nr_agent_chain *c = chain("a folder=copy|b|c folder=copy|d");
    const char *path = NULL;
    char *text = NULL;
    size_t len = 0;
    struct stat sb;
    assert_int_equal(nr_agent_chain_load(c, NULL), NARU_OK);
    int fd = nr_agent_chain_fd(c, &path);
    assert_string_not_equal(path, dir);
    assert_int_equal(nr_file_read_at(fd, "1/model.bin", 100, &text, &len, NULL), NARU_OK);
    assert_string_equal(text, "weights");
    nr_free(text);
    assert_int_equal(fstatat(fd, "1/model.bin", &sb, 0), 0);
    assert_int_equal(sb.st_mode & 0777, 0600);
    char *kept = nr_strdup(path);
    nr_agent_chain_loaded(c, true);
    nr_agent_chain_unload(c);
    nr_agent_chain_unloaded(c);
    assert_int_equal(access(kept, F_OK), 0);
    nr_agent_chain_free(c);
    assert_int_not_equal(access(kept, F_OK), 0);
    nr_free(kept);
}

static void expect_failed(const char *text, nr_status st, const char *part)
{
    struct nr_err err = {0};
    struct nr_agent_chain *c = chain(text);
    nr_status got = nr_agent_chain_load(c, &err);
    nr_agent_chain_free(c);
    if (got != st || !strstr(err.text, part)) {
        fail_msg("%s: %d \"%s\", expected %d \"%s\"", text, got, err.text, st, part);
    }
}

static void test_folders_have_walls(void **state)
{
    (void)state;
    expect_failed("a folder=dots", NARU_DENIED, "'..'");
    expect_failed("a folder=twice", NARU_INVALID, "folder_new is called once");
    expect_failed("a sleep_ms=x", NARU_INVALID, "parameter \"sleep_ms\"");
    assert_int_equal(symlinkat("/etc/passwd", dir_fd, "1/link"), 0);
    expect_failed("a folder=copy", NARU_DENIED, "'1/link' is neither a file nor a folder");
    nr_agents_set_folder(set, "/proc");
    expect_failed("a folder=secret", NARU_UNAVAILABLE, "--agent-folder");
    nr_agents_set_folder(set, NULL);
}

static void test_a_call_that_does_not_end(void **state)
{
    (void)state;
    struct nr_err err = {0};
    nr_agents_set_timeout(set, 50000000);
    struct nr_agent_chain *c = chain("a|b folder=copy sleep_ms=400|c");
    assert_int_equal(nr_agent_chain_load(c, &err), NARU_DEADLINE);
    assert_non_null(
        strstr(err.text, "agent trace did not end LOAD within 50 ms (--agent-timeout)"));
    nr_agent_chain_loaded(c, true); /* nobody is told anything: the load is over */
    nr_agent_chain_free(c);         /* while b still sleeps */
    for (int i = 0; i < 500 && !strstr(told(), "b STOPPED m,"); i++) {
        (void)usleep(10000);
    }
    assert_string_equal(told(), "a LOAD m,b LOAD m,a LOAD_FAIL m,b STOPPED m,");
    (void)usleep(50000); /* its thread takes what it has with it; the leak checker looks at that */
}

static void test_names(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        nr_status st;
        const char *part;
    } cases[] = {
        {"../trace", NARU_INVALID, "no name of an agent"},
        {"", NARU_INVALID, "no name"},
        {"nobody", NARU_NOT_FOUND, "naru-agent-nobody.so"},
        {"nobody", NARU_NOT_FOUND, "--agent-directory"},
        {"nobody", NARU_NOT_FOUND, "trace"},
    };
    for (size_t i = 0; i < NR_COUNT(cases); i++) {
        const naru_agent *api = NULL;
        struct nr_err err = {0};
        nr_status st = nr_agents_find(set, nr_str_from(cases[i].name), &api, &err);
        if (st != cases[i].st || !strstr(err.text, cases[i].part)) {
            fail_msg("%s: %d %s", cases[i].name, st, err.text);
        }
        assert_null(api);
    }
    /* an agent of Triton's, where it keeps them */
    struct nr_err err = {0};
    const naru_agent *api = NULL;
    nr_agents_add_dir(set, dir);
    assert_int_equal(nr_dir_make_at(dir_fd, "old", NULL), NARU_OK);
    assert_int_equal(nr_file_write_at(dir_fd, "old/libtritonrepoagent_old.so", "x", 1, NULL), 0);
    assert_int_equal(nr_agents_find(set, NR_STR("old"), &api, &err), NARU_UNSUPPORTED);
    assert_non_null(strstr(err.text, "libtritonrepoagent_old.so is an agent for Triton"));
    (void)unlinkat(dir_fd, "old/libtritonrepoagent_old.so", 0);
    (void)unlinkat(dir_fd, "old", AT_REMOVEDIR);
}

static void check_refused(const naru_agent *api, const char *field)
{
    struct nr_err err = {0};
    assert_int_equal(nr_agent_table_check(api, &err), NARU_UNSUPPORTED);
    if (!strstr(err.text, field)) {
        fail_msg("\"%s\" does not name %s", err.text, field);
    }
}

static void test_tables(void **state)
{
    (void)state;
    const naru_agent *api = NULL;
    assert_int_equal(nr_agents_find(set, NR_STR("trace"), &api, NULL), NARU_OK);
    naru_agent t = *api;
    t.abi_minor = 99;
    t.struct_size += 64;
    assert_int_equal(nr_agent_table_check(&t, NULL), NARU_OK);
    check_refused(NULL, "NULL");
#define BREAK(change, field)      \
    do {                          \
        t = *api;                 \
        t.change;                 \
        check_refused(&t, field); \
    } while (0)
    BREAK(abi_major = 2, "abi_major is 2");
    BREAK(struct_size = 4, "struct_size is 4");
    BREAK(struct_size = offsetof(naru_agent, act), "act");
    BREAK(name = NULL, "name");
    BREAK(act = NULL, "act");
    BREAK(model_close = NULL, "model_close");
    BREAK(model_open = NULL, "model_open");
#undef BREAK
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(test_a_whole_life_in_order),
        TEST(test_a_load_that_fails_later),
        TEST(test_failure_in_the_middle_unwinds),
        TEST(test_other_actions_cannot_fail_a_load),
        TEST(test_folders_are_handed_on),
        TEST(test_folders_have_walls),
        TEST(test_a_call_that_does_not_end),
        TEST(test_names),
        TEST(test_tables),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
