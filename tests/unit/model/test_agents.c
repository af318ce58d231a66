/* Repository agents in the life of a model: each action comes exactly once, whatever becomes of the versions.
 * Versions are opened by a stub; the agents are the plug-in "trace". */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "host/agent.h"
#include "io/file.h"
#include "model/repository.h"

static char root[64], log_path[96];
static int root_fd;
static struct nr_agents *agents;
static struct {
    _Atomic int64_t bad;   /* this version cannot be opened */
    _Atomic int64_t holds; /* nor this one before it is 0 */
    pthread_mutex_t lock;
    char path[256]; /* of the version opened last */
} stub;

static void put(const char *rel, const char *text)
{
    struct nr_err err = {0};
    const char *slash = strrchr(rel, '/');
    nr_autofree char *parent = nr_format("%.*s", slash ? (int)(slash - rel) : 0, rel);
    nr_status st = parent[0] ? nr_dir_make_at(root_fd, parent, &err) : NARU_OK;
    if (st == NARU_OK && rel[strlen(rel) - 1] != '/') {
        st = nr_file_write_at(root_fd, rel, text, strlen(text), &err);
    }
    if (st != NARU_OK) {
        fail_msg("%s: %s", rel, err.text);
    }
}

static nr_status remove_visit(void *arg, struct nr_dir_visit *v, struct nr_err *err)
{
    (void)arg;
    (void)err;
    if (!v->entry->is_dir || v->leaving) {
        (void)unlinkat(v->parent_fd, v->entry->name, v->entry->is_dir ? AT_REMOVEDIR : 0);
    }
    return NARU_OK;
}

static const char *told(void)
{
    static char text[8192];
    int fd = open(log_path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd >= 0 ? read(fd, text, sizeof text - 1) : 0;
    text[n] = '\0';
    nr_close(fd);
    char *to = text;
    for (char *p = text; *p; p++) { /* "x LOAD m\n" → "LOAD," */
        if (strncmp(p, " m\n", 3) == 0) {
            *to++ = ',';
            p += 2;
        } else if (*p != 'x' && *p != ' ') {
            *to++ = *p;
        }
    }
    *to = '\0';
    return text;
}
static void forget(void)
{
    (void)unlink(log_path);
}

static nr_status stub_open(void *ctx, struct nr_version *v, struct nr_err *err)
{
    static const int64_t shape[] = {-1, 4};
    static const naru_io io = {.name = "x", .dtype = NARU_FP32, .rank = 2, .shape = shape};
    static const naru_model_info info = {.struct_size = sizeof info,
                                         .n_inputs = 1,
                                         .n_outputs = 1,
                                         .inputs = &io,
                                         .outputs = &io,
                                         .platform = ""};
    while (stub.holds == v->number) {
        (void)usleep(1000);
    }
    (void)pthread_mutex_lock(&stub.lock);
    (void)snprintf(stub.path, sizeof stub.path, "%s", v->path);
    (void)pthread_mutex_unlock(&stub.lock);
    if (v->number == stub.bad) {
        return nr_fail(err, NARU_INVALID, "the stub cannot open it");
    }
    nr_status st = nr_version_complete(v, &info, err);
    v->runtime = st == NARU_OK ? ctx : NULL;
    return st;
}
static void stub_close(void *ctx, struct nr_version *v)
{
    (void)ctx;
    v->runtime = NULL;
}

static int set_up(void **state)
{
    (void)state;
    memset(&stub, 0, sizeof stub);
    (void)pthread_mutex_init(&stub.lock, NULL);
    (void)snprintf(root, sizeof root, "/tmp/naru-model-agents-XXXXXX");
    assert_non_null(mkdtemp(root));
    (void)snprintf(log_path, sizeof log_path, "%s.log", root);
    root_fd = open(root, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    agents = nr_agents_new();
    nr_agents_add_dir(agents, NARU_BUILD_DIR "/backends");
    return 0;
}
static int tear_down(void **state)
{
    (void)state;
    nr_agents_free(agents);
    assert_int_equal(nr_dir_walk(root_fd, 8, 1000, remove_visit, NULL, NULL), NARU_OK);
    nr_close(root_fd);
    forget();
    return rmdir(root);
}

static void put_config(const char *parameters)
{
    nr_autofree char *text =
        nr_format("backend: 'identity' max_batch_size: 8 version_policy { all { } } "
                  "model_repository_agents { "
                  "agents { name: 'trace' parameters { key: 'log' value: '%s' } "
                  "parameters { key: 'id' value: 'x' } %s } }",
                  log_path, parameters);
    put("m/config.pbtxt", text);
}

static struct nr_repository *open_repository(struct nr_agents *with)
{
    const char *path = root;
    struct nr_repository_cfg cfg = {.paths = &path,
                                    .n_paths = 1,
                                    .load_threads = 4,
                                    .mode = NR_CONTROL_EXPLICIT,
                                    .agents = with,
                                    .config = {.auto_complete = true},
                                    .ops = {.open = stub_open, .close = stub_close},
                                    .ops_ctx = &stub};
    struct nr_repository *r = NULL;
    struct nr_err err = {0};
    if (nr_repository_new(&cfg, &r, &err) != NARU_OK) {
        fail_msg("%s", err.text);
    }
    return r;
}

struct waiting {
    struct nr_op op;
    sem_t done;
};
static void on_done(struct nr_op *op)
{
    (void)sem_post(&nr_container_of(op, struct waiting, op)->done);
}
static void begin(struct nr_repository *r, struct waiting *w, enum nr_op_kind kind)
{
    *w = (struct waiting){.op = {.kind = kind, .done = on_done}};
    (void)sem_init(&w->done, 0, 0);
    nr_repository_submit(r, NR_STR("m"), &w->op);
}
static nr_status end(struct waiting *w, struct nr_err *err)
{
    while (sem_wait(&w->done) != 0) {
    }
    (void)sem_destroy(&w->done);
    if (err) {
        *err = w->op.err;
    }
    return w->op.err.status;
}
static nr_status operate(struct nr_repository *r, enum nr_op_kind kind, struct nr_err *err)
{
    struct waiting w;
    begin(r, &w, kind);
    return end(&w, err);
}

#define LIFE "LOAD,LOAD_COMPLETE,"
#define DEATH "UNLOAD,UNLOAD_COMPLETE,"

static void test_several_versions_are_one_load(void **state)
{
    (void)state;
    put_config("");
    put("m/1/", "");
    put("m/2/", "");
    put("m/7/", "");
    struct nr_repository *r = open_repository(agents);
    assert_string_equal(told(), "");
    assert_int_equal(operate(r, NR_OP_LOAD, NULL), NARU_OK);
    assert_string_equal(told(), LIFE);
    assert_int_equal(operate(r, NR_OP_LOAD, NULL), NARU_OK); /* nothing changed: nothing happens */
    assert_string_equal(told(), LIFE);
    assert_int_equal(operate(r, NR_OP_UNLOAD, NULL), NARU_OK);
    assert_string_equal(told(), LIFE DEATH);
    assert_int_equal(operate(r, NR_OP_LOAD, NULL), NARU_OK);
    nr_repository_free(r); /* the end of the server unloads as an operator does */
    assert_string_equal(told(), LIFE DEATH LIFE DEATH);
}

static void test_a_reload_is_a_load_beside(void **state)
{
    (void)state;
    put_config("");
    put("m/1/f", "a");
    struct nr_repository *r = open_repository(agents);
    assert_int_equal(operate(r, NR_OP_LOAD, NULL), NARU_OK);
    put("m/1/f", "other");
    assert_int_equal(operate(r, NR_OP_LOAD, NULL), NARU_OK);
    assert_true(nr_repository_wait(r, nr_clock_now() + 30 * NR_S_NS));
    assert_string_equal(told(), LIFE LIFE DEATH);
    forget();
    stub.bad = 1; /* a reload that fails leaves the old one alone */
    put("m/1/f", "and another");
    struct nr_err err = {0};
    assert_int_equal(operate(r, NR_OP_LOAD, &err), NARU_INVALID);
    assert_string_equal(told(), "LOAD,LOAD_FAIL,");
    nr_repository_free(r);
    assert_string_equal(told(), "LOAD,LOAD_FAIL," DEATH);
}

static void test_one_version_of_two_fails(void **state)
{
    (void)state;
    put_config("parameters { key: 'folder' value: 'copy' }");
    put("m/1/", "");
    put("m/1/f", "a");
    put("m/2/f", "a");
    stub.bad = 2;
    struct nr_repository *r = open_repository(agents);
    assert_int_equal(operate(r, NR_OP_LOAD, NULL), NARU_INVALID);
    assert_string_equal(told(), LIFE); /* version 1 serves */
    assert_int_equal(operate(r, NR_OP_UNLOAD, NULL), NARU_OK);
    assert_string_equal(told(), LIFE DEATH);
    forget();
    /* beside a version that serves, a load is all or nothing */
    stub.bad = 0;
    put("m/2/f", "b");
    assert_int_equal(operate(r, NR_OP_LOAD, NULL), NARU_OK);
    stub.bad = 2;
    put("m/1/f", "changed");
    put("m/2/f", "changed");
    assert_int_equal(operate(r, NR_OP_LOAD, NULL), NARU_INVALID);
    assert_true(nr_repository_wait(r, nr_clock_now() + 30 * NR_S_NS));
    assert_string_equal(told(), LIFE "LOAD,LOAD_FAIL,");
    nr_repository_free(r);
    assert_string_equal(told(), LIFE "LOAD,LOAD_FAIL," DEATH);
}

static void test_unloaded_while_another_version_opens(void **state)
{
    (void)state;
    struct waiting load;
    put_config("");
    put("m/1/", "");
    put("m/2/", "");
    stub.holds = 2;
    struct nr_repository *r = open_repository(agents);
    begin(r, &load, NR_OP_LOAD);
    struct nr_catalog_reader rd;
    nr_catalog_reader_init(&rd, r);
    for (bool ready = false; !ready;
         (void)usleep(1000)) { /* version 1 serves before the load ends */
        const struct nr_catalog_version *v =
            nr_catalog_version(nr_catalog_get(&rd), NR_STR("m"), 1);
        ready = v && v->state == NR_VERSION_READY;
    }
    nr_catalog_reader_done(&rd);
    assert_int_equal(nr_repository_unload(r, "m", NULL), NARU_OK);
    assert_string_equal(told(), "LOAD,");
    stub.holds = 0;
    (void)end(&load, NULL);
    assert_true(nr_repository_wait(r, nr_clock_now() + 30 * NR_S_NS));
    assert_string_equal(told(), LIFE DEATH);
    nr_repository_free(r);
    assert_string_equal(told(), LIFE DEATH);
}

static void test_agents_that_fail(void **state)
{
    (void)state;
    struct nr_err err = {0};
    put_config(
        "parameters { key: 'fail' value: 'LOAD' } parameters { key: 'text' value: 'bad moon' }");
    put("m/1/", "");
    put("m/2/", "");
    struct nr_repository *r = open_repository(agents);
    assert_int_equal(operate(r, NR_OP_LOAD, &err), NARU_PRECONDITION);
    assert_string_equal(err.text, "agent trace: bad moon");
    assert_string_equal(told(), "LOAD,"); /* once, and undone by the agent itself */
    put_config("");
    assert_int_equal(operate(r, NR_OP_LOAD, &err), NARU_OK);
    nr_repository_free(r);
    assert_string_equal(told(), "LOAD," LIFE DEATH);
}

static void test_a_server_without_agents(void **state)
{
    (void)state;
    struct nr_err err = {0};
    put_config("");
    put("m/1/", "");
    struct nr_repository *r = open_repository(NULL);
    assert_int_equal(operate(r, NR_OP_LOAD, &err), NARU_UNAVAILABLE);
    assert_string_equal(told(), "");
    nr_repository_free(r);
}

static void test_another_folder_in_place(void **state)
{
    (void)state;
    struct nr_err err = {0};
    put_config("parameters { key: 'folder' value: 'copy' }");
    put("m/1/f", "a");
    struct nr_repository *r = open_repository(agents);
    assert_int_equal(operate(r, NR_OP_LOAD, &err), NARU_OK);
    assert_null(strstr(stub.path, root)); /* opened elsewhere */
    char *folder = nr_strdup(stub.path);
    assert_int_equal(access(folder, F_OK), 0);
    assert_int_equal(operate(r, NR_OP_UNLOAD, &err), NARU_OK);
    assert_int_not_equal(access(folder, F_OK), 0);
    nr_free(folder);
    /* a folder without the version */
    put_config("parameters { key: 'folder' value: 'empty' }");
    assert_true(operate(r, NR_OP_LOAD, &err) != NARU_OK);
    assert_non_null(strstr(err.text, "'1'"));
    nr_repository_free(r);
    assert_string_equal(told(), LIFE DEATH "LOAD,LOAD_FAIL,");
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(test_several_versions_are_one_load),
        TEST(test_a_reload_is_a_load_beside),
        TEST(test_one_version_of_two_fails),
        TEST(test_unloaded_while_another_version_opens),
        TEST(test_agents_that_fail),
        TEST(test_a_server_without_agents),
        TEST(test_another_folder_in_place),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
