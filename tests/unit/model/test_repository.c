/* Repositories: layouts, which versions, states, snapshots, loading in parallel, unloading under
 * use. The plug-in is a stub of this file; folders are made under /tmp. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "io/file.h"
#include "model/ensemble.h"
#include "model/repository.h"

/* --- folders ---------------------------------------------------------------------------------- */

static char root[64];

static void put(const char *rel, const char *text)
{
    char path[512];
    (void)snprintf(path, sizeof path, "%s/%s", root, rel);
    for (char *p = path + strlen(root) + 1; (p = strchr(p, '/')) != NULL; p++) {
        *p = '\0';
        (void)mkdir(path, 0700);
        *p = '/';
    }
    if (path[strlen(path) - 1] == '/') {
        return;
    }
    int fd = open(path, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, strlen(text)), (ssize_t)strlen(text));
    (void)close(fd);
}

/* Removes everything below the open folder; folders of tests are shallow. */
static void empty(int dir_fd, int depth)
{
    struct nr_dir_entry *entries = NULL;
    size_t n = 0;
    struct nr_err err;
    assert_true(depth < 6);
    assert_int_equal(nr_dir_list(dir_fd, 1000, &entries, &n, &err), NARU_OK);
    for (size_t i = 0; i < n; i++) {
        if (entries[i].is_dir) {
            int fd = openat(dir_fd, entries[i].name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
            assert_true(fd >= 0);
            empty(fd, depth + 1);
            (void)close(fd);
            (void)unlinkat(dir_fd, entries[i].name, AT_REMOVEDIR);
        } else {
            (void)unlinkat(dir_fd, entries[i].name, 0);
        }
    }
    nr_free(entries);
}

/* --- the stub that opens versions ------------------------------------------------------------- */

static struct {
    pthread_mutex_t lock;
    _Atomic unsigned opened, closed, running, most_running, published;
    _Atomic int hold;      /* while set, opens wait */
    int64_t good_versions; /* of a model named bad…: those up to it can be opened */
    int n_states;          /* under the lock; below 0: not kept */
    char states[64][160];
} stub = {.lock = PTHREAD_MUTEX_INITIALIZER};

static const int64_t x_shape[] = {-1, 4}, y_shape[] = {-1, 2};
static const naru_io x_io = {.name = "x", .dtype = NARU_FP32, .rank = 2, .shape = x_shape};
static const naru_io y_io = {.name = "y", .dtype = NARU_FP32, .rank = 2, .shape = y_shape};
static const naru_model_info info = {.struct_size = sizeof info,
                                     .n_inputs = 1,
                                     .n_outputs = 1,
                                     .inputs = &x_io,
                                     .outputs = &y_io,
                                     .platform = ""};

static nr_status stub_open(void *ctx, struct nr_version *v, struct nr_err *err)
{
    assert_ptr_equal(ctx, &stub);
    unsigned now = atomic_fetch_add(&stub.running, 1) + 1;
    for (unsigned most = atomic_load(&stub.most_running);
         now > most && !atomic_compare_exchange_weak(&stub.most_running, &most, now);) {
    }
    const naru_model_info *known = v->config->ensemble ? NULL : &info;
    while (known && atomic_load(&stub.hold)) {
        (void)usleep(1000);
    }
    nr_status st = strncmp(v->name, "bad", 3) == 0 && v->number > stub.good_versions
                       ? nr_fail(err, NARU_INVALID, "the stub cannot open %s", v->name)
                       : nr_version_complete(v, known, err);
    if (st == NARU_OK) {
        v->runtime = &stub;
        v->memory_bytes = 1000;
        (void)atomic_fetch_add(&stub.opened, 1);
    }
    (void)atomic_fetch_sub(&stub.running, 1);
    return st;
}
static void stub_close(void *ctx, struct nr_version *v)
{
    assert_ptr_equal(ctx, &stub);
    assert_ptr_equal(v->runtime, &stub);
    assert_non_null(v->config);
    v->runtime = NULL;
    (void)atomic_fetch_add(&stub.closed, 1);
}
static void on_publish(void *ctx)
{
    (void)ctx;
    (void)atomic_fetch_add(&stub.published, 1);
}
static void on_state(void *ctx, const struct nr_version *v, nr_version_state state,
                     const char *reason)
{
    (void)ctx;
    (void)pthread_mutex_lock(&stub.lock);
    if (stub.n_states < 0) {
        (void)pthread_mutex_unlock(&stub.lock);
        return;
    }
    assert_true(stub.n_states < (int)NR_COUNT(stub.states));
    (void)snprintf(stub.states[stub.n_states++], sizeof stub.states[0], "%s %lld %s %s", v->name,
                   (long long)v->number, nr_version_state_text(state), reason);
    (void)pthread_mutex_unlock(&stub.lock);
}
static bool told(const char *part)
{
    bool found = false;
    (void)pthread_mutex_lock(&stub.lock);
    for (int i = 0; i < stub.n_states; i++) {
        found = found || strstr(stub.states[i], part);
    }
    (void)pthread_mutex_unlock(&stub.lock);
    return found;
}

static enum nr_control_mode control_mode; /* of the repository that open_at makes */

static int setup(void **state)
{
    (void)state;
    (void)snprintf(root, sizeof root, "/tmp/naru-repo-XXXXXX");
    assert_non_null(mkdtemp(root));
    stub.opened = stub.closed = stub.running = stub.most_running = stub.published = 0;
    stub.hold = 0;
    stub.n_states = 0;
    stub.good_versions = 0;
    control_mode = NR_CONTROL_NONE;
    return 0;
}
static int teardown(void **state)
{
    (void)state;
    int fd = open(root, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    empty(fd, 0);
    (void)close(fd);
    return rmdir(root);
}

/* rel: up to three paths below root, NULL ends. */
static struct nr_repository *open_at(const char *a, const char *b, struct nr_err *err)
{
    char paths[2][256];
    const char *list[2] = {paths[0], paths[1]};
    (void)snprintf(paths[0], sizeof paths[0], "%s/%s", root, a);
    (void)snprintf(paths[1], sizeof paths[1], "%s/%s", root, b ? b : "");
    struct nr_repository_cfg cfg = {.paths = list,
                                    .n_paths = b ? 2 : 1,
                                    .load_threads = 4,
                                    .mode = control_mode,
                                    .config = {.auto_complete = true},
                                    .ops = {.open = stub_open, .close = stub_close},
                                    .ops_ctx = &stub,
                                    .on_publish = on_publish,
                                    .on_state = on_state};
    struct nr_repository *r = NULL;
    struct nr_err local = {0};
    if (nr_repository_new(&cfg, &r, err ? err : &local) != NARU_OK && !err) {
        print_message("%s\n", local.text);
        fail();
    }
    return r;
}
static struct nr_repository *load_at(const char *a, const char *b)
{
    struct nr_repository *r = open_at(a, b, NULL);
    nr_repository_load_all(r);
    assert_true(nr_repository_wait(r, nr_clock_now() + 30 * NR_S_NS));
    return r;
}

/* "a/1 READY;b UNAVAILABLE why;" */
static const char *index_text(struct nr_repository *r, bool ready_only)
{
    static char text[4096];
    struct nr_arena a;
    const struct nr_index_entry *e;
    uint32_t n;
    nr_arena_init(&a, 0);
    nr_repository_index(r, ready_only, &a, &e, &n);
    size_t at = 0;
    text[0] = '\0';
    for (uint32_t i = 0; i < n; i++) {
        char number[32] = "";
        if (e[i].version >= 0) {
            (void)snprintf(number, sizeof number, "/%lld", (long long)e[i].version);
        }
        at += (size_t)snprintf(text + at, sizeof text - at, "%s%s %s%s%s;", e[i].name, number,
                               nr_version_state_text(e[i].state), e[i].reason[0] ? " " : "",
                               e[i].reason);
    }
    nr_arena_done(&a);
    return text;
}
static void assert_has(const char *text, const char *part)
{
    if (!strstr(text, part)) {
        print_message(" got: %s\nwant: %s\n", text, part);
        fail();
    }
}

#define CONFIG_X "backend: 'identity' max_batch_size: 8 "

/* --- layouts ---------------------------------------------------------------------------------- */

static void test_repository_layout(void **state)
{
    (void)state;
    put("a/config.pbtxt", CONFIG_X);
    put("a/1/", "");
    put("b/1/model.onnx", "x");
    put("b/2/model.onnx", "x");
    put("b/10/model.onnx", "x");
    put("b/03/model.onnx", "x");                   /* leading zero: no version */
    put("b/0/model.onnx", "x");                    /* nor this */
    put("b/v4/model.onnx", "x");                   /* nor this */
    put("b/99999999999999999999/model.onnx", "x"); /* nor this */
    put("flat/model.onnx", "x");
    put("m.identity/1/", "");
    put("README.md", "not a model");
    put(".git/config", "nor this");
    struct nr_repository *r = load_at("", NULL);
    assert_string_equal(index_text(r, false),
                        "a/1 READY;b/10 READY;flat/1 READY;m.identity/1 READY;");
    struct nr_repository_counts c = nr_repository_count(r);
    assert_int_equal(c.models, 4);
    assert_int_equal(c.ready, 4);
    assert_int_equal(c.unavailable, 0);
    assert_int_equal(stub.opened, 4);
    nr_repository_free(r);
    assert_int_equal(stub.closed, 4);
}

static void test_version_policies(void **state)
{
    (void)state;
    static const char *const numbers[] = {"1", "2", "3", "10"};
    static const struct {
        const char *name, *policy;
    } models[] = {{"all", "all { }"},
                  {"last2", "latest { num_versions: 2 }"},
                  {"last9", "latest { num_versions: 9 }"},
                  {"none", "specific { versions: [ 7 ] }"},
                  {"some", "specific { versions: [ 3, 1, 99 ] }"}};
    for (size_t m = 0; m < NR_COUNT(models); m++) {
        char rel[64], text[128];
        (void)snprintf(rel, sizeof rel, "%s/config.pbtxt", models[m].name);
        (void)snprintf(text, sizeof text, CONFIG_X "version_policy { %s }", models[m].policy);
        put(rel, text);
        for (size_t i = 0; i < NR_COUNT(numbers); i++) {
            (void)snprintf(rel, sizeof rel, "%s/%s/", models[m].name, numbers[i]);
            put(rel, "");
        }
    }
    struct nr_repository *r = load_at("", NULL);
    assert_string_equal(
        index_text(r, false),
        "all/1 READY;all/2 READY;all/3 READY;all/10 READY;last2/3 READY;last2/10 READY;"
        "last9/1 READY;last9/2 READY;last9/3 READY;last9/10 READY;"
        "none UNAVAILABLE version_policy selects none of the model's versions;"
        "some/1 READY;some/3 READY;");
    struct nr_catalog_reader rd;
    nr_catalog_reader_init(&rd, r);
    const struct nr_catalog *c = nr_catalog_get(&rd);
    assert_int_equal(nr_catalog_find(c, NR_STR("some"))->best->number, 3);
    assert_int_equal(nr_catalog_find(c, NR_STR("all"))->best->number, 10);
    assert_false(c->all_ready);
    nr_catalog_reader_done(&rd);
    nr_repository_free(r);
}

static void test_model_folder_and_bare_file(void **state)
{
    (void)state;
    put("one/config.pbtxt", CONFIG_X);
    put("one/1/", "");
    put("numeric/7/model.onnx", "x");
    put("flat/net.onnx", "x");
    put("files/my-model.v2.onnx", "x");
    static const struct {
        const char *path, *want;
    } cases[] = {
        {"one", "one/1 READY;"},           {"one/", "one/1 READY;"},
        {"flat/../one/.", "one/1 READY;"}, {"numeric", "numeric/7 READY;"},
        {"flat", "flat/1 READY;"},         {"files/my-model.v2.onnx", "my-model.v2/1 READY;"}};
    for (size_t i = 0; i < NR_COUNT(cases); i++) {
        struct nr_repository *r = load_at(cases[i].path, NULL);
        assert_string_equal(index_text(r, false), cases[i].want);
        nr_repository_free(r);
    }
    struct nr_repository *r = load_at("files/my-model.v2.onnx", "one");
    assert_string_equal(index_text(r, false), "my-model.v2/1 READY;one/1 READY;");
    struct nr_catalog_reader rd;
    struct nr_version *v;
    struct nr_err err;
    nr_catalog_reader_init(&rd, r);
    assert_int_equal(
        nr_catalog_lookup(nr_catalog_get(&rd), NR_STR("my-model.v2"), NR_STR("1"), &v, &err),
        NARU_OK);
    assert_string_equal(v->config->file, "my-model.v2.onnx");
    assert_string_equal(v->config->backend, "onnxruntime");
    assert_int_equal(v->config->max_batch_size, 64);
    assert_true(v->dir_fd >= 0);
    assert_int_equal(faccessat(v->dir_fd, v->config->file, R_OK, 0), 0);
    assert_has(v->path, "/files");
    nr_catalog_reader_done(&rd);
    nr_repository_free(r);
}

static void test_bad_paths(void **state)
{
    (void)state;
    struct nr_err err = {0};
    assert_null(open_at("missing", NULL, &err));
    assert_has(err.text, "there is no such file or folder");
    assert_int_equal(err.status, NARU_NOT_FOUND);
    put("notes.txt", "x");
    assert_null(open_at("notes.txt", NULL, &err));
    assert_has(err.text, "no backend is known for this file");
    put("empty/", "");
    struct nr_repository *r = load_at("empty", NULL); /* an empty repository is one */
    assert_string_equal(index_text(r, false), "");
    struct nr_catalog_reader rd;
    nr_catalog_reader_init(&rd, r);
    assert_true(nr_catalog_get(&rd)->all_ready);
    nr_catalog_reader_done(&rd);
    nr_repository_free(r);
}

static void test_failures_stop_nobody(void **state)
{
    (void)state;
    put("good/1/model.onnx", "x");
    put("bad_open/1/model.onnx", "x");
    put("broken/config.pbtxt", "name: 'broken'\nno_such_field: 1");
    put("broken/1/model.onnx", "x");
    put("wrong_name/config.pbtxt", "name: 'other'");
    put("wrong_name/1/model.onnx", "x");
    put("no_version/config.pbtxt", CONFIG_X);
    put("no_file/config.pbtxt", "backend: 'onnxruntime'");
    put("no_file/1/", "");
    put("two words/1/model.onnx", "x");
    put("mismatch/config.pbtxt",
        "max_batch_size: 2 input { name: 'q' data_type: TYPE_FP32 dims: 4 }");
    put("mismatch/1/model.onnx", "x");
    put("labels/config.pbtxt", CONFIG_X "output { name: 'y' data_type: TYPE_FP32 dims: 2 "
                                        "label_filename: 'none.txt' }");
    put("labels/1/", "");
    struct nr_repository *r = load_at("", NULL);
    const char *text = index_text(r, false);
    assert_has(text, "good/1 READY;");
    assert_has(text, "bad_open/1 UNAVAILABLE the stub cannot open bad_open;");
    assert_has(text,
               "broken UNAVAILABLE config.pbtxt:2:1: ModelConfig has no field 'no_such_field'");
    assert_has(text, "wrong_name UNAVAILABLE config.pbtxt says name: \"other\"");
    assert_has(text, "no_version UNAVAILABLE the model's folder has no version");
    assert_has(text,
               "no_file/1 UNAVAILABLE the version's folder has no model.onnx; it has: nothing;");
    assert_has(text, "two words UNAVAILABLE the name must be");
    assert_has(text, "mismatch/1 UNAVAILABLE input \"q\" is configured");
    assert_has(text, "labels/1 UNAVAILABLE label_filename \"none.txt\" of output \"y\": ");
    assert_string_equal(index_text(r, true), "good/1 READY;");
    assert_true(told("good 1 READY "));
    assert_true(told("bad_open 1 UNAVAILABLE the stub"));
    assert_true(told("broken -1 UNAVAILABLE config.pbtxt:2:1"));
    assert_int_equal(stub.n_states, 9);
    struct nr_repository_counts c = nr_repository_count(r);
    assert_int_equal(c.models, 9);
    assert_int_equal(c.ready, 1);
    assert_int_equal(c.unavailable, 8);
    nr_repository_free(r);
    assert_int_equal(stub.closed, 1); /* what failed to open is not closed */
}

static void test_same_name_twice(void **state)
{
    (void)state;
    put("r1/m/1/model.onnx", "x");
    put("r1/n/1/model.onnx", "x");
    put("r2/m/1/model.onnx", "x");
    put("r2/m/2/model.onnx", "x");
    struct nr_repository *r = load_at("r1", "r2");
    const char *text = index_text(r, false);
    assert_has(text, "m UNAVAILABLE there are two models of this name, in ");
    assert_has(text, "/r2/m: rename one or serve one;n/1 READY;");
    assert_int_equal(stub.opened, 1);
    nr_repository_free(r);
    r = load_at("r1", "r1"); /* the same place twice */
    assert_has(index_text(r, false), "n UNAVAILABLE there are two models");
    nr_repository_free(r);
}

/* Nothing below the root is reached through a symbolic link. */
static void test_no_symlinks(void **state)
{
    (void)state;
    char path[128];
    put("outside/model.onnx", "x");
    put("repo/m/config.pbtxt", "backend: 'onnxruntime'");
    put("repo/m/1/", "");
    (void)snprintf(path, sizeof path, "%s/repo/m/1/model.onnx", root);
    assert_int_equal(symlink("../../../outside/model.onnx", path), 0);
    (void)snprintf(path, sizeof path, "%s/repo/linked", root);
    assert_int_equal(symlink("../outside", path), 0);
    put("repo/v/config.pbtxt", "backend: 'onnxruntime'");
    (void)snprintf(path, sizeof path, "%s/repo/v/7", root);
    assert_int_equal(symlink("../../outside", path), 0);
    struct nr_repository *r = load_at("repo", NULL);
    assert_has(index_text(r, false), "v UNAVAILABLE the version's folder 7 is a symbolic link");
    assert_has(index_text(r, false), "m/1 UNAVAILABLE ");
    assert_has(index_text(r, false), "symbolic link");
    assert_null(strstr(index_text(r, false), "READY"));
    nr_repository_free(r);
    r = load_at("repo/v", NULL); /* the model's folder itself */
    assert_has(index_text(r, false), "v UNAVAILABLE the version's folder 7 is a symbolic link");
    nr_repository_free(r);
}

static void test_config_name(void **state)
{
    (void)state;
    put("m/config.pbtxt", CONFIG_X);
    put("m/configs/big.pbtxt", "backend: 'identity' max_batch_size: 32");
    put("m/1/", "");
    char path[128];
    const char *list[] = {path};
    (void)snprintf(path, sizeof path, "%s", root);
    static const struct {
        const char *name;
        int32_t want;
    } cases[] = {{NULL, 8}, {"big", 32}, {"absent", 8}};
    for (size_t i = 0; i < NR_COUNT(cases); i++) {
        struct nr_repository_cfg cfg = {.paths = list,
                                        .n_paths = 1,
                                        .config_name = cases[i].name,
                                        .config = {.auto_complete = true},
                                        .ops = {.open = stub_open, .close = stub_close},
                                        .ops_ctx = &stub};
        struct nr_repository *r;
        struct nr_err err;
        assert_int_equal(nr_repository_new(&cfg, &r, &err), NARU_OK);
        nr_repository_load_all(r);
        assert_true(nr_repository_wait(r, 0));
        struct nr_catalog_reader rd;
        nr_catalog_reader_init(&rd, r);
        assert_int_equal(nr_catalog_get(&rd)->models[0].best->config->max_batch_size,
                         cases[i].want);
        nr_catalog_reader_done(&rd);
        nr_repository_free(r);
    }
}

static void test_labels(void **state)
{
    (void)state;
    put("m/config.pbtxt",
        CONFIG_X "output { name: 'y' data_type: TYPE_FP32 dims: 2 label_filename: 'labels.txt' }");
    put("m/labels.txt", "cat\r\ndog\n");
    put("m/1/", "");
    struct nr_repository *r = load_at("", NULL);
    struct nr_catalog_reader rd;
    nr_catalog_reader_init(&rd, r);
    const struct nr_version *v = nr_catalog_get(&rd)->models[0].best;
    assert_non_null(v);
    assert_int_equal(v->labels[0].n_items, 2);
    assert_true(nr_str_is(nr_labels_get(&v->labels[0], 1), "dog"));
    nr_catalog_reader_done(&rd);
    nr_repository_free(r);
}

/* --- lookup ----------------------------------------------------------------------------------- */

static void test_lookup(void **state)
{
    (void)state;
    put("m/config.pbtxt", CONFIG_X "version_policy { all { } }");
    put("m/1/", "");
    put("m/3/", "");
    put("bad/1/model.onnx", "x");
    struct nr_repository *r = load_at("", NULL);
    struct nr_catalog_reader rd;
    nr_catalog_reader_init(&rd, r);
    const struct nr_catalog *c = nr_catalog_get(&rd);
    static const struct {
        const char *name, *version, *part;
        nr_status st;
        int64_t number;
    } cases[] = {
        {"m", "", NULL, NARU_OK, 3},
        {"m", "1", NULL, NARU_OK, 1},
        {"m", "3", NULL, NARU_OK, 3},
        {"m", "2", "model \"m\" has no version 2; served are: 1, 3", NARU_NOT_FOUND, 0},
        {"m", "0", "has no version 0", NARU_NOT_FOUND, 0},
        {"m", "4294967297", "has no version 4294967297", NARU_NOT_FOUND, 0},
        {"m", "99999999999999999999", "is no version", NARU_INVALID, 0},
        {"m", "-1", "is no version", NARU_INVALID, 0},
        {"m", "one", "version \"one\" is no version and no label", NARU_NOT_FOUND, 0},
        {"m", "1x", "version \"1x\" is no version", NARU_INVALID, 0},
        {"M", "", "unknown model \"M\"", NARU_NOT_FOUND, 0},
        {"", "", "unknown model \"\"", NARU_NOT_FOUND, 0},
        {"m ", "1", "unknown model \"m \"", NARU_NOT_FOUND, 0},
        {"bad", "", "model \"bad\" is not available: the stub cannot open bad", NARU_NOT_FOUND, 0},
        {"bad", "1", "model \"bad\" version 1 is not available: the stub", NARU_NOT_FOUND, 0},
    };
    for (size_t i = 0; i < NR_COUNT(cases); i++) {
        struct nr_version *v = NULL;
        struct nr_err err = {0};
        assert_int_equal(nr_catalog_lookup(c, nr_str_from(cases[i].name),
                                           nr_str_from(cases[i].version), &v, &err),
                         cases[i].st);
        if (cases[i].st == NARU_OK) {
            assert_int_equal(v->number, cases[i].number);
        } else {
            assert_has(err.text, cases[i].part);
            assert_null(v);
        }
    }
    nr_catalog_reader_done(&rd);
    nr_repository_free(r);
}

/* While a load is held, the rest of the world sees LOADING, and the reader that asks again later
 * sees READY. */
static void test_states_while_loading(void **state)
{
    (void)state;
    for (int i = 0; i < 6; i++) {
        char rel[32];
        (void)snprintf(rel, sizeof rel, "m%d/1/model.onnx", i);
        put(rel, "x");
    }
    stub.hold = 1;
    struct nr_repository *r = open_at("", NULL, NULL);
    assert_has(index_text(r, false), "m0/1 UNKNOWN;");
    struct nr_catalog_reader rd;
    nr_catalog_reader_init(&rd, r);
    struct nr_version *v = NULL;
    struct nr_err err;
    assert_int_equal(nr_catalog_lookup(nr_catalog_get(&rd), NR_STR("m0"), NR_STR(""), &v, &err),
                     NARU_NOT_FOUND);
    assert_has(err.text, "is not loaded");
    nr_repository_load_all(r);
    nr_repository_load_all(r); /* nothing is loaded twice */
    assert_int_equal(nr_catalog_lookup(nr_catalog_get(&rd), NR_STR("m0"), NR_STR(""), &v, &err),
                     NARU_UNAVAILABLE);
    assert_has(err.text, "is being loaded now: try again later");
    assert_false(nr_repository_wait(r, nr_clock_now() + 20 * NR_MS_NS));
    assert_has(index_text(r, false), "m5/1 LOADING;");
    while (atomic_load(&stub.running) < 2) { /* side by side */
        (void)usleep(1000);
    }
    stub.hold = 0;
    assert_true(nr_repository_wait(r, 0));
    assert_int_equal(stub.opened, 6);
    assert_in_range(stub.most_running, 2, 4); /* on no more threads than asked for */
    assert_int_equal(nr_catalog_lookup(nr_catalog_get(&rd), NR_STR("m0"), NR_STR(""), &v, &err),
                     NARU_OK);
    assert_true(v->load_ns > 0);
    assert_true(nr_catalog_get(&rd)->all_ready);
    nr_catalog_reader_done(&rd);
    nr_repository_free(r);
}

/* --- unloading -------------------------------------------------------------------------------- */

static void test_unload_waits_for_pins(void **state)
{
    (void)state;
    put("a/1/model.onnx", "x");
    put("b/1/model.onnx", "x");
    struct nr_repository *r = load_at("", NULL);
    struct nr_catalog_reader rd;
    struct nr_version *v, *other = NULL;
    struct nr_err err;
    nr_catalog_reader_init(&rd, r);
    assert_int_equal(nr_catalog_lookup(nr_catalog_get(&rd), NR_STR("a"), NR_STR(""), &v, &err),
                     NARU_OK);
    struct nr_catalog_view *pin = nr_catalog_pin(&rd, v);
    assert_ptr_equal(pin, nr_catalog_pin(&rd, v)); /* two requests of one snapshot */
    assert_int_equal(nr_repository_unload(r, "nobody", &err), NARU_NOT_FOUND);
    assert_int_equal(nr_repository_unload(r, "a", &err), NARU_OK);
    assert_has(index_text(r, false), "a/1 UNLOADING;b/1 READY;");
    /* new requests do not get it, the running ones keep it */
    assert_int_equal(nr_catalog_lookup(nr_catalog_get(&rd), NR_STR("a"), NR_STR(""), &other, &err),
                     NARU_UNAVAILABLE);
    assert_has(err.text, "being unloaded");
    assert_false(nr_repository_wait(r, nr_clock_now() + 20 * NR_MS_NS));
    assert_non_null(v->config);
    nr_catalog_unpin(pin, v);
    assert_false(nr_repository_wait(r, nr_clock_now() + 20 * NR_MS_NS));
    assert_int_equal(stub.closed, 0);
    nr_catalog_unpin(pin, v);
    assert_true(nr_repository_wait(r, 0));
    assert_int_equal(stub.closed, 1);
    assert_has(index_text(r, false), "a/1 UNAVAILABLE unloaded;b/1 READY;");
    assert_true(told("a 1 UNAVAILABLE unloaded"));
    nr_catalog_reader_done(&rd);
    nr_repository_free(r);
    assert_int_equal(stub.closed, 2);
}

static void test_unload_waits_for_references(void **state)
{
    (void)state;
    put("a/1/model.onnx", "x");
    struct nr_repository *r = load_at("", NULL);
    struct nr_catalog_reader rd;
    nr_catalog_reader_init(&rd, r);
    struct nr_version *v = nr_version_ref(nr_catalog_get(&rd)->models[0].best);
    nr_catalog_reader_done(&rd);
    assert_int_equal(nr_repository_unload(r, NULL, NULL), NARU_OK);
    assert_false(nr_repository_wait(r, nr_clock_now() + 20 * NR_MS_NS));
    nr_version_unref(v);
    assert_true(nr_repository_wait(r, 0));
    assert_int_equal(nr_repository_unload(r, NULL, NULL), NARU_OK); /* nothing left: no effect */
    nr_repository_free(r);
    assert_int_equal(stub.closed, 1);
}

static void test_unload_while_loading(void **state)
{
    (void)state;
    for (int i = 0; i < 8; i++) {
        char rel[32];
        (void)snprintf(rel, sizeof rel, "m%d/1/model.onnx", i);
        put(rel, "x");
    }
    stub.hold = 1;
    struct nr_repository *r = open_at("", NULL, NULL);
    nr_repository_load_all(r);
    while (atomic_load(&stub.running) < 4) { /* four begun, four queued */
        (void)usleep(1000);
    }
    assert_int_equal(nr_repository_unload(r, NULL, NULL), NARU_OK);
    stub.hold = 0;
    assert_true(nr_repository_wait(r, 0));
    assert_int_equal(stub.opened, 4); /* those that had not begun never did */
    assert_int_equal(stub.closed, 4);
    assert_has(index_text(r, false), "m0/1 UNAVAILABLE unloaded;");
    assert_has(index_text(r, false), "m7/1 UNAVAILABLE unloaded;");
    nr_repository_free(r);
}

/* Free in the middle of loading, with a reader gone. */
static void test_free_while_loading(void **state)
{
    (void)state;
    for (int i = 0; i < 8; i++) {
        char rel[32];
        (void)snprintf(rel, sizeof rel, "m%d/1/model.onnx", i);
        put(rel, "x");
    }
    for (int round = 0; round < 20; round++) {
        struct nr_repository *r = open_at("", NULL, NULL);
        nr_repository_load_all(r);
        (void)usleep((useconds_t)(round * 50));
        nr_repository_free(r);
        assert_int_equal(stub.opened, stub.closed);
        stub.n_states = 0;
    }
    nr_repository_free(NULL);
}

/* Readers on threads of their own look up, pin and unpin while everything is unloaded. */
struct looker {
    pthread_t thread;
    struct nr_repository *r;
    _Atomic bool *stop;
    unsigned found;
};
static void *look(void *arg)
{
    struct looker *l = arg;
    struct nr_catalog_reader rd;
    nr_catalog_reader_init(&rd, l->r);
    struct nr_catalog_view *pins[8] = {NULL};
    struct nr_version *held[8] = {NULL};
    for (unsigned i = 0; !atomic_load(l->stop); i++) {
        struct nr_version *v;
        struct nr_err err;
        const struct nr_catalog *c = nr_catalog_get(&rd);
        if (pins[i % 8]) {
            nr_catalog_unpin(pins[i % 8], held[i % 8]);
            pins[i % 8] = NULL;
        }
        if (nr_catalog_lookup(c, i % 2 ? NR_STR("m1") : NR_STR("m2"), NR_STR(""), &v, &err) ==
            NARU_OK) {
            pins[i % 8] = nr_catalog_pin(&rd, v);
            held[i % 8] = v;
            l->found += v->config->max_batch_size == 64 && v->runtime == &stub;
        }
    }
    for (int i = 0; i < 8; i++) {
        if (pins[i]) {
            nr_catalog_unpin(pins[i], held[i]);
        }
    }
    nr_catalog_reader_done(&rd);
    nr_arena_thread_done();
    return NULL;
}

static void test_readers_and_unload(void **state)
{
    (void)state;
    put("m1/1/model.onnx", "x");
    put("m2/1/model.onnx", "x");
    for (int round = 0; round < 10; round++) {
        struct nr_repository *r = load_at("", NULL);
        _Atomic bool stop = false;
        struct looker l[3];
        for (size_t i = 0; i < NR_COUNT(l); i++) {
            l[i] = (struct looker){.r = r, .stop = &stop};
            assert_int_equal(pthread_create(&l[i].thread, NULL, look, &l[i]), 0);
        }
        (void)usleep(2000);
        assert_int_equal(nr_repository_unload(r, "m1", NULL), NARU_OK);
        (void)usleep(1000);
        assert_int_equal(nr_repository_unload(r, "m2", NULL), NARU_OK);
        /* the lookers move on by themselves, so it comes to rest while they run */
        assert_true(nr_repository_wait(r, nr_clock_now() + 30 * NR_S_NS));
        atomic_store(&stop, true);
        for (size_t i = 0; i < NR_COUNT(l); i++) {
            assert_int_equal(pthread_join(l[i].thread, NULL), 0);
        }
        assert_int_equal(stub.opened, stub.closed);
        nr_repository_free(r);
        stub.n_states = 0;
    }
}

/* --- changes ---------------------------------------------------------------------------------- */

struct waited_op {
    struct nr_op op;
    _Atomic bool ended;
};
static void on_op_done(struct nr_op *op)
{
    struct waited_op *w = nr_container_of(op, struct waited_op, op);
    atomic_store(&w->ended, true);
}
static void begin_op(struct nr_repository *r, struct waited_op *w, enum nr_op_kind kind,
                     const char *name)
{
    *w = (struct waited_op){.op = {.kind = kind, .done = on_op_done}};
    nr_repository_submit(r, nr_str_from(name), &w->op);
}
static nr_status end_op(struct waited_op *w)
{
    while (!atomic_load(&w->ended)) {
        (void)usleep(500);
    }
    return w->op.err.status;
}
static nr_status do_op(struct nr_repository *r, enum nr_op_kind kind, const char *name)
{
    struct waited_op w;
    begin_op(r, &w, kind, name);
    return end_op(&w);
}

/* A change beside what serves: invisible until all of it is open, then all at once. */
static void test_change_beside(void **state)
{
    (void)state;
    put("m/config.pbtxt", CONFIG_X "version_policy { all { } }");
    put("m/1/", "");
    control_mode = NR_CONTROL_EXPLICIT;
    struct nr_repository *r = open_at("", NULL, NULL);
    nr_repository_load_all(r);
    assert_int_equal(stub.opened, 0);
    assert_int_equal(do_op(r, NR_OP_LOAD, "m"), NARU_OK);
    assert_int_equal(do_op(r, NR_OP_LOAD, "m"), NARU_OK); /* as it is loaded: nothing */
    assert_int_equal(stub.opened, 1);
    put("m/2/", "");
    put("m/3/", "");
    struct waited_op load, unload, again;
    stub.hold = 1;
    begin_op(r, &load, NR_OP_LOAD, "m");
    while (atomic_load(&stub.running) < 2) { /* version 1 has not changed */
        (void)usleep(500);
    }
    begin_op(r, &unload, NR_OP_UNLOAD, "m");
    begin_op(r, &again, NR_OP_LOAD, "m");
    assert_string_equal(index_text(r, false), "m/1 READY;");
    stub.hold = 0;
    assert_int_equal(end_op(&load), NARU_OK);
    assert_int_equal(end_op(&unload), NARU_OK);
    assert_int_equal(end_op(&again), NARU_OK);
    assert_true(nr_repository_wait(r, 0));
    assert_string_equal(index_text(r, false), "m/1 READY;m/2 READY;m/3 READY;");
    assert_int_equal(stub.opened, 6);
    assert_int_equal(stub.closed, 3);
    nr_repository_free(r);
    assert_int_equal(stub.closed, 6);
}

/* One of several new versions fails: none of them is switched to, the old ones go on. */
static void test_change_fails_as_a_whole(void **state)
{
    (void)state;
    put("bad_if/config.pbtxt", CONFIG_X "version_policy { all { } }");
    put("bad_if/1/", "");
    control_mode = NR_CONTROL_EXPLICIT;
    stub.good_versions = 2;
    struct nr_repository *r = open_at("", NULL, NULL);
    assert_int_equal(do_op(r, NR_OP_LOAD, "bad_if"), NARU_OK);
    put("bad_if/2/", "");
    put("bad_if/3/", "");
    assert_int_equal(do_op(r, NR_OP_LOAD, "bad_if"), NARU_INVALID);
    assert_true(nr_repository_wait(r, 0));
    assert_has(index_text(r, false),
               "bad_if/1 READY the last load failed, the versions from before serve: the stub");
    assert_int_equal(stub.closed, 1); /* version 2 was open */
    assert_int_equal(do_op(r, NR_OP_LOAD, "nobody"), NARU_NOT_FOUND);
    assert_int_equal(do_op(r, NR_OP_UNLOAD, "nobody"), NARU_OK);
    assert_int_equal(do_op(r, NR_OP_LOAD, "../x"), NARU_INVALID);
    nr_repository_free(r);
}

/* Files that change while they are read are not served. */
static void test_change_under_our_eyes(void **state)
{
    (void)state;
    put("m/1/model.onnx", "x");
    control_mode = NR_CONTROL_EXPLICIT;
    struct nr_repository *r = open_at("", NULL, NULL);
    struct waited_op load;
    stub.hold = 1;
    begin_op(r, &load, NR_OP_LOAD, "m");
    while (atomic_load(&stub.running) < 1) {
        (void)usleep(500);
    }
    put("m/1/model.onnx", "xyz");
    stub.hold = 0;
    assert_int_equal(end_op(&load), NARU_UNAVAILABLE);
    assert_has(load.op.err.text, "changed while they were loaded");
    assert_int_equal(stub.opened, stub.closed);
    assert_int_equal(do_op(r, NR_OP_LOAD, "m"), NARU_OK);
    nr_repository_free(r);
}

static void *command(void *arg)
{
    struct nr_repository *r = arg;
    for (int i = 0; i < 40; i++) {
        (void)do_op(r, i % 3 ? NR_OP_LOAD : NR_OP_UNLOAD, i % 2 ? "m1" : "m2");
    }
    return NULL;
}

/* Loads, unloads, changed files, lookups and listings from several threads; at the end the last
 * command holds. */
static void test_commands_and_readers(void **state)
{
    (void)state;
    put("m1/1/model.onnx", "x");
    put("m2/1/model.onnx", "x");
    control_mode = NR_CONTROL_EXPLICIT;
    struct nr_repository *r = open_at("", NULL, NULL);
    _Atomic bool stop = false;
    struct looker l[2];
    pthread_t commanders[3];
    stub.n_states = -1000000; /* too many to keep */
    for (size_t i = 0; i < NR_COUNT(l); i++) {
        l[i] = (struct looker){.r = r, .stop = &stop};
        assert_int_equal(pthread_create(&l[i].thread, NULL, look, &l[i]), 0);
    }
    for (size_t i = 0; i < NR_COUNT(commanders); i++) {
        assert_int_equal(pthread_create(&commanders[i], NULL, command, r), 0);
    }
    for (int i = 0; i < 20; i++) {
        put("m1/1/model.onnx", i % 2 ? "x" : "xy");
        (void)index_text(r, false);
        (void)usleep(1000);
    }
    for (size_t i = 0; i < NR_COUNT(commanders); i++) {
        assert_int_equal(pthread_join(commanders[i], NULL), 0);
    }
    assert_int_equal(do_op(r, NR_OP_LOAD, "m1"), NARU_OK);
    assert_int_equal(do_op(r, NR_OP_UNLOAD, "m2"), NARU_OK);
    assert_string_equal(index_text(r, true), "m1/1 READY;");
    atomic_store(&stop, true);
    for (size_t i = 0; i < NR_COUNT(l); i++) {
        assert_int_equal(pthread_join(l[i].thread, NULL), 0);
    }
    nr_repository_free(r);
    assert_int_equal(stub.opened, stub.closed);
}

/* A request holds its own version only, not every model of its snapshot. */
static void test_pin_holds_one_version(void **state)
{
    (void)state;
    put("a/1/model.onnx", "x");
    put("b/1/model.onnx", "x");
    struct nr_repository *r = load_at("", NULL);
    struct nr_catalog_reader rd;
    struct nr_version *v;
    struct nr_err err;
    nr_catalog_reader_init(&rd, r);
    assert_int_equal(nr_catalog_lookup(nr_catalog_get(&rd), NR_STR("a"), NR_STR(""), &v, &err),
                     NARU_OK);
    struct nr_catalog_view *pin = nr_catalog_pin(&rd, v);
    assert_int_equal(nr_repository_unload(r, NULL, &err), NARU_OK);
    nr_catalog_refresh(&rd);
    while (!told("b 1 UNAVAILABLE unloaded")) {
        (void)usleep(500);
    }
    assert_int_equal(stub.closed, 1);
    assert_non_null(v->config);
    nr_catalog_unpin(pin, v);
    assert_true(nr_repository_wait(r, 0));
    assert_int_equal(stub.closed, 2);
    nr_catalog_reader_done(&rd);
    nr_repository_free(r);
}

static void test_publish_is_told(void **state)
{
    (void)state;
    put("a/1/model.onnx", "x");
    struct nr_repository *r = load_at("", NULL);
    unsigned loaded = stub.published;
    assert_true(loaded >= 2); /* LOADING, READY */
    struct nr_catalog_reader rd;
    nr_catalog_reader_init(&rd, r);
    uint64_t generation = nr_catalog_get(&rd)->generation;
    assert_ptr_equal(nr_catalog_get(&rd), nr_catalog_get(&rd)); /* nothing new: the same one */
    assert_int_equal(nr_repository_unload(r, "a", NULL), NARU_OK);
    assert_true(stub.published > loaded);
    nr_catalog_refresh(&rd);
    assert_true(nr_catalog_get(&rd)->generation > generation);
    nr_catalog_reader_done(&rd);
    nr_repository_free(r);
}

/* --- ensembles -------------------------------------------------------------------------------- */

#define ENSEMBLE(member)                                                                        \
    "platform: 'ensemble' max_batch_size: 8 input { name: 'in' data_type: TYPE_FP32 dims: 4 } " \
    "output { name: 'out' data_type: TYPE_FP32 dims: 2 } ensemble_scheduling { step { "         \
    "model_name: '" member "' input_map { key: 'x' value: 'in' } output_map { key: 'y' value: " \
    "'out' } } }"

/* Open before its member, an ensemble is LOADING until that is READY; nobody is told before. */
static void test_ensemble_waits_for_its_member(void **state)
{
    (void)state;
    put("early/config.pbtxt", ENSEMBLE("late")); /* no version folder: version 1 */
    put("lame/config.pbtxt", ENSEMBLE("bad"));
    put("lame/1/", "");
    put("late/config.pbtxt", CONFIG_X);
    put("late/1/", "");
    put("bad/config.pbtxt", CONFIG_X);
    put("bad/1/", "");
    stub.hold = 1;
    struct nr_repository *r = open_at("", NULL, NULL);
    nr_repository_load_all(r);
    while (atomic_load(&stub.opened) < 2) { /* both ensembles */
        (void)usleep(1000);
    }
    (void)usleep(20000);
    assert_has(index_text(r, false), "early/1 LOADING;");
    assert_has(index_text(r, false), "lame/1 LOADING;");
    struct nr_catalog_reader rd;
    struct nr_version *v = NULL;
    struct nr_err err = {0};
    nr_catalog_reader_init(&rd, r);
    assert_int_equal(nr_catalog_lookup(nr_catalog_get(&rd), NR_STR("early"), NR_STR(""), &v, &err),
                     NARU_UNAVAILABLE);
    assert_has(err.text, "is being loaded now");
    assert_false(told("early"));
    stub.hold = 0;
    assert_true(nr_repository_wait(r, 0));
    assert_has(index_text(r, false), "early/1 READY;");
    assert_has(index_text(r, false),
               "lame/1 UNAVAILABLE step 0 needs model \"bad\", which is not ready: the stub cannot "
               "open bad;");
    assert_true(told("late 1 READY") && told("early 1 READY"));
    assert_true(told("bad 1 UNAVAILABLE") && told("lame 1 UNAVAILABLE step 0"));
    assert_int_equal(stub.n_states, 4); /* each once */
    assert_int_equal(nr_catalog_lookup(nr_catalog_get(&rd), NR_STR("early"), NR_STR("1"), &v, &err),
                     NARU_OK);
    const struct nr_catalog_version *entry =
        nr_catalog_version(nr_catalog_get(&rd), NR_STR("early"), 1);
    assert_non_null(entry->members);
    assert_string_equal(entry->members[0].version->name, "late");
    assert_int_equal(entry->depth, 1);
    assert_null(nr_catalog_version(nr_catalog_get(&rd), NR_STR("early"), 2));
    /* unloaded itself, it is gone for its own sake */
    assert_int_equal(nr_repository_unload(r, "early", &err), NARU_OK);
    nr_catalog_refresh(&rd);
    assert_true(nr_repository_wait(r, 0));
    assert_has(index_text(r, false), "early/1 UNAVAILABLE unloaded;");
    nr_catalog_reader_done(&rd);
    nr_repository_free(r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_repository_layout, setup, teardown),
        cmocka_unit_test_setup_teardown(test_version_policies, setup, teardown),
        cmocka_unit_test_setup_teardown(test_model_folder_and_bare_file, setup, teardown),
        cmocka_unit_test_setup_teardown(test_bad_paths, setup, teardown),
        cmocka_unit_test_setup_teardown(test_failures_stop_nobody, setup, teardown),
        cmocka_unit_test_setup_teardown(test_same_name_twice, setup, teardown),
        cmocka_unit_test_setup_teardown(test_no_symlinks, setup, teardown),
        cmocka_unit_test_setup_teardown(test_config_name, setup, teardown),
        cmocka_unit_test_setup_teardown(test_labels, setup, teardown),
        cmocka_unit_test_setup_teardown(test_lookup, setup, teardown),
        cmocka_unit_test_setup_teardown(test_states_while_loading, setup, teardown),
        cmocka_unit_test_setup_teardown(test_unload_waits_for_pins, setup, teardown),
        cmocka_unit_test_setup_teardown(test_unload_waits_for_references, setup, teardown),
        cmocka_unit_test_setup_teardown(test_unload_while_loading, setup, teardown),
        cmocka_unit_test_setup_teardown(test_free_while_loading, setup, teardown),
        cmocka_unit_test_setup_teardown(test_readers_and_unload, setup, teardown),
        cmocka_unit_test_setup_teardown(test_change_beside, setup, teardown),
        cmocka_unit_test_setup_teardown(test_change_fails_as_a_whole, setup, teardown),
        cmocka_unit_test_setup_teardown(test_change_under_our_eyes, setup, teardown),
        cmocka_unit_test_setup_teardown(test_commands_and_readers, setup, teardown),
        cmocka_unit_test_setup_teardown(test_pin_holds_one_version, setup, teardown),
        cmocka_unit_test_setup_teardown(test_publish_is_told, setup, teardown),
        cmocka_unit_test_setup_teardown(test_ensemble_waits_for_its_member, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
