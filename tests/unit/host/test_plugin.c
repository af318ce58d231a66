/* Finding, loading and checking plug-ins. Uses the test plug-ins of the build. */
#include "host/plugin.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/mem.h"
#include "host/batch.h"

static struct nr_plugins *set_new(void)
{
    struct nr_plugins *set = nr_plugins_new();
    nr_plugins_add_dir(set, NARU_BUILD_DIR "/backends");
    return set;
}

static const int64_t shape_16[] = {-1, 16};
static const naru_io io_in[] = {{.name = "IN", .shape = shape_16, .rank = 2, .dtype = NARU_FP32}};
static const naru_io io_out[] = {{.name = "OUT", .shape = shape_16, .rank = 2, .dtype = NARU_FP32}};

static naru_model_args args_of(const naru_option *options, uint32_t n)
{
    return (naru_model_args){.dir_fd = -1,
                             .name = "m",
                             .file = "",
                             .path = "",
                             .version = 1,
                             .options = options,
                             .n_options = n,
                             .device = -1,
                             .max_batch_size = 8,
                             .inputs = io_in,
                             .outputs = io_out,
                             .n_inputs = 1,
                             .n_outputs = 1};
}

static void test_open_and_close(void **state)
{
    (void)state;
    struct nr_plugins *set = set_new();
    struct nr_err err = {0};
    struct nr_plugin *a = NULL, *b = NULL;
    assert_int_equal(nr_plugin_open(set, NR_STR("identity"), &a, &err), NARU_OK);
    assert_int_equal(nr_plugin_open(set, NR_STR("identity"), &b, &err), NARU_OK);
    assert_ptr_equal(a, b); /* one library per process */
    assert_string_equal(a->name, "identity");
    assert_string_equal(a->version, "1.0");
    assert_true(a->path[0] == '/');
    assert_true((a->caps & NARU_CAP_INLINE) != 0);
    nr_plugin_unref(b);

    naru_model_args args = args_of(NULL, 0);
    struct nr_plugin_model *m = NULL;
    assert_int_equal(nr_plugin_model_open(a, &args, &m, &err), NARU_OK);
    nr_plugin_unref(a); /* the model keeps the library open */
    assert_int_equal(m->info->n_inputs, 1);
    assert_string_equal(m->info->inputs[0].name, "IN");
    assert_ptr_not_equal(m->info->inputs, io_in);
    assert_int_equal(m->info->inputs[0].shape[1], 16);
    assert_true((m->info->flags & NARU_MODEL_IO_UNKNOWN) != 0);

    struct nr_plugin_instance *i = NULL, *gpu = NULL;
    assert_int_equal(nr_plugin_instance_open(m, 0, -1, &i, &err), NARU_OK);
    assert_int_equal(nr_plugin_instance_open(m, 1, 0, &gpu, &err), NARU_UNSUPPORTED);
    assert_null(gpu);
    assert_non_null(strstr(err.text, "model m: "));
    assert_non_null(strstr(err.text, "KIND_GPU"));
    assert_int_equal(nr_plugin_model_memory(m), 0);
    assert_int_equal(nr_plugin_model_threads(m, 2), NARU_UNSUPPORTED);
    nr_plugin_instance_close(i);
    nr_plugin_model_close(m);

    /* closed by its last user; opens again */
    assert_int_equal(nr_plugin_open(set, NR_STR("identity"), &a, &err), NARU_OK);
    nr_plugin_unref(a);
    nr_plugin_unref(NULL);
    nr_plugin_model_close(NULL);
    nr_plugin_instance_close(NULL);
    nr_plugins_free(set);
    nr_plugins_free(NULL);
}

static void test_names(void **state)
{
    (void)state;
    struct nr_plugins *set = set_new();
    struct nr_plugin *p = NULL;
    static const char *const bad[] = {"", "../identity", "a/b", ".x", "a b", "x\n", "%s"};
    for (size_t i = 0; i < NR_COUNT(bad); i++) {
        struct nr_err err = {0};
        assert_int_equal(nr_plugin_open(set, nr_str_from(bad[i]), &p, &err), NARU_INVALID);
        assert_true(err.text[0] != 0);
    }
    struct nr_err err = {0};
    assert_int_equal(nr_plugin_open(set, NR_STR("tensorrt"), &p, &err), NARU_NOT_FOUND);
    assert_non_null(strstr(err.text, "naru-tensorrt.so"));
    assert_non_null(strstr(err.text, "identity")); /* what there is */
    assert_non_null(strstr(err.text, "--backend-directory"));
    assert_null(p);
    nr_plugins_free(set);
}

/* Writes a file of a temporary directory; returns its path, freed by the caller. */
static char *put_file(const char *dir, const char *name, const char *from)
{
    char *path = nr_format("%s/%s", dir, name);
    int out = open(path, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0600);
    assert_true(out >= 0);
    if (from) {
        int in = open(from, O_RDONLY | O_CLOEXEC);
        assert_true(in >= 0);
        char buf[8192];
        for (ssize_t n; (n = read(in, buf, sizeof buf)) > 0;) {
            assert_int_equal(write(out, buf, (size_t)n), n);
        }
        close(in);
    } else {
        assert_int_equal(write(out, "no library", 10), 10);
    }
    close(out);
    return path;
}

static void test_files_that_are_no_plugins(void **state)
{
    (void)state;
    char dir[] = "/tmp/naru-plugin-XXXXXX";
    assert_non_null(mkdtemp(dir));
    char *text = put_file(dir, "naru-text.so", NULL);
    char *other = put_file(dir, "naru-other.so", NARU_BUILD_DIR "/backends/naru-identity.so");
    struct nr_plugins *set = nr_plugins_new();
    nr_plugins_add_dir(set, dir);

    struct nr_plugin *p = NULL;
    struct nr_err err = {0};
    assert_int_equal(nr_plugin_open(set, NR_STR("text"), &p, &err), NARU_UNSUPPORTED);
    assert_non_null(strstr(err.text, "cannot load backend \"text\""));
    assert_int_equal(nr_plugin_open(set, NR_STR("other"), &p, &err), NARU_UNSUPPORTED);
    assert_non_null(strstr(err.text, "field name says \"identity\""));
    assert_int_equal(nr_plugin_open_path(set, "/nowhere/naru-x.so", &p, &err), NARU_NOT_FOUND);
    assert_int_equal(nr_plugin_open_path(set, "/proc/self/exe", &p, &err), NARU_INVALID);
    assert_int_equal(nr_plugin_open_path(set, NARU_BUILD_DIR "/backends/naru-delay.so", &p, &err),
                     NARU_OK);
    nr_plugin_unref(p);
    nr_plugins_free(set);
    unlink(text);
    unlink(other);
    rmdir(dir);
    nr_free(text);
    nr_free(other);
}

static void check_refused(const naru_backend *api, const char *field)
{
    struct nr_err err = {0};
    assert_int_equal(nr_plugin_table_check(api, &err), NARU_UNSUPPORTED);
    if (!strstr(err.text, field)) {
        fail_msg("\"%s\" does not name %s", err.text, field);
    }
}

static void test_tables(void **state)
{
    (void)state;
    struct nr_plugins *set = set_new();
    struct nr_plugin *p = NULL;
    assert_int_equal(nr_plugin_open(set, NR_STR("identity"), &p, NULL), NARU_OK);
    naru_backend t = *p->api;
    struct nr_err err = {0};
    assert_int_equal(nr_plugin_table_check(&t, &err), NARU_OK);
    t.abi_minor = 999; /* newer slots are not looked at */
    t.struct_size += 80;
    assert_int_equal(nr_plugin_table_check(&t, &err), NARU_OK);
    check_refused(NULL, "NULL");
#define BREAK(change, field)      \
    do {                          \
        t = *p->api;              \
        t.change;                 \
        check_refused(&t, field); \
    } while (0)
    BREAK(abi_major = 2, "abi_major is 2");
    BREAK(abi_major = 0, "abi_major is 0");
    BREAK(struct_size = 4, "struct_size is 4");
    BREAK(struct_size = offsetof(naru_backend, execute), "execute");
    BREAK(name = NULL, "name");
    BREAK(version = NULL, "version");
    BREAK(lib_open = NULL, "lib_open");
    BREAK(lib_close = NULL, "lib_close");
    BREAK(model_open = NULL, "model_open");
    BREAK(model_close = NULL, "model_close");
    BREAK(model_info = NULL, "model_info");
    BREAK(instance_open = NULL, "instance_open");
    BREAK(instance_close = NULL, "instance_close");
    BREAK(execute = NULL, "execute");
#undef BREAK
    nr_plugin_unref(p);
    nr_plugins_free(set);
}

static nr_status open_with(const char *backend, const naru_option *o, uint32_t n,
                           struct nr_err *err)
{
    struct nr_plugins *set = set_new();
    struct nr_plugin *p = NULL;
    assert_int_equal(nr_plugin_open(set, nr_str_from(backend), &p, err), NARU_OK);
    naru_model_args args = args_of(o, n);
    struct nr_plugin_model *m = NULL;
    nr_status st = nr_plugin_model_open(p, &args, &m, err);
    assert_true((st == NARU_OK) == (m != NULL));
    nr_plugin_model_close(m);
    nr_plugin_unref(p);
    nr_plugins_free(set);
    return st;
}

static void test_model_errors(void **state)
{
    (void)state;
    struct nr_err err = {0};
    assert_int_equal(open_with("fault", (const naru_option[]){{"fault", "open_error"}}, 1, &err),
                     NARU_INTERNAL);
    assert_non_null(strstr(err.text, "model m: fault: the model does not open"));
    assert_int_equal(open_with("fault", (const naru_option[]){{"fault", "xyz"}}, 1, &err),
                     NARU_INVALID);
    assert_int_equal(open_with("delay", (const naru_option[]){{"spin_us", "-1"}}, 1, &err),
                     NARU_INVALID);
    assert_non_null(strstr(err.text, "\"spin_us\" is \"-1\""));
    assert_int_equal(open_with("delay", (const naru_option[]){{"per", "day"}}, 1, &err),
                     NARU_INVALID);
    assert_int_equal(
        open_with("delay", (const naru_option[]){{"spin_us", "7"}, {"per", "row"}}, 2, &err),
        NARU_OK);
    static const char *const bad_io[] = {"",
                                         "FP32",
                                         "FP32[",
                                         "FP32[1",
                                         "X[1]",
                                         "FP32[1];",
                                         "FP32[a]",
                                         "FP32[-2]",
                                         "[1]",
                                         "FP32[1]x",
                                         "FP32[1,,2]",
                                         "FP32[1 ]",
                                         "FP32[99999999999999999999]"};
    for (size_t i = 0; i < NR_COUNT(bad_io); i++) {
        naru_option o = {"io", bad_io[i]};
        assert_int_equal(open_with("identity", &o, 1, &err), NARU_INVALID);
    }
    assert_int_equal(
        open_with("identity", (const naru_option[]){{"io", "FP32[-1,4];BYTES[]"}}, 1, &err),
        NARU_OK);
}

/* A library that is wrong about its model: the host must not believe it. */
static naru_model_info wrong;

static naru_status wrong_open(naru_backend_lib *lib, const naru_model_args *args,
                              naru_backend_model **ret, naru_text *err)
{
    (void)lib;
    (void)args;
    (void)err;
    *ret = (naru_backend_model *)(void *)&wrong;
    return NARU_OK;
}

static int closed;
static void wrong_close(naru_backend_model *model)
{
    (void)model;
    closed++;
}

static const naru_model_info *wrong_info(naru_backend_model *model)
{
    (void)model;
    return &wrong;
}

static void test_model_info_is_checked(void **state)
{
    (void)state;
    struct nr_plugins *set = set_new();
    struct nr_plugin *p = NULL;
    assert_int_equal(nr_plugin_open(set, NR_STR("identity"), &p, NULL), NARU_OK);
    const naru_backend *real = p->api;
    naru_backend t = *real;
    t.model_open = wrong_open;
    t.model_close = wrong_close;
    t.model_info = wrong_info;
    p->api = &t;
    static const int64_t bad_shape[] = {-1, -2};
    naru_io io[2] = {io_in[0], io_in[0]};
    io[1].name = "IN2";
    naru_model_args args = args_of(NULL, 0);
#define TRY(change, says)                                                              \
    do {                                                                               \
        io[0] = io[1] = io_in[0];                                                      \
        io[1].name = "IN2";                                                            \
        wrong = (naru_model_info){                                                     \
            .struct_size = sizeof wrong, .n_inputs = 2, .inputs = io, .platform = ""}; \
        change;                                                                        \
        struct nr_err err = {0};                                                       \
        struct nr_plugin_model *m = NULL;                                              \
        int before = closed;                                                           \
        assert_int_equal(nr_plugin_model_open(p, &args, &m, &err), NARU_UNSUPPORTED);  \
        assert_null(m);                                                                \
        assert_int_equal(closed, before + 1);                                          \
        if (!strstr(err.text, says)) {                                                 \
            fail_msg("\"%s\" does not say %s", err.text, says);                        \
        }                                                                              \
    } while (0)
    TRY(wrong.struct_size = 8, "struct_size is 8");
    TRY(wrong.inputs = NULL, "n_inputs is 2 with no list");
    TRY(wrong.n_outputs = 100000, "n_outputs is 100000");
    TRY(io[1].name = NULL, "input 1 has no name");
    TRY(io[0].name = "", "input 0 has no name");
    TRY(io[1].name = "IN", "two inputs are named");
    TRY(io[0].dtype = 0, "datatype 0");
    TRY(io[0].dtype = 99, "datatype 99");
    TRY(io[0].rank = 17, "17 dimensions");
    TRY(io[0].shape = NULL, "dimensions");
    TRY(io[0].shape = bad_shape, "dimension 1 is -2");
#undef TRY
    p->api = real;
    nr_plugin_unref(p);
    nr_plugins_free(set);
}

static void test_options(void **state)
{
    (void)state;
    struct nr_plugins *set = set_new();
    nr_plugins_set_option(set, "identity", "a", "1");
    nr_plugins_set_option(set, "identity", "a", "2"); /* replaces */
    nr_plugins_set_option(set, "delay", "a", "3");
    struct nr_plugin *p = NULL;
    assert_int_equal(nr_plugin_open(set, NR_STR("identity"), &p, NULL), NARU_OK);
    nr_plugin_unref(p);
    nr_plugins_free(set);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_open_and_close),
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_files_that_are_no_plugins),
        cmocka_unit_test(test_tables),
        cmocka_unit_test(test_model_errors),
        cmocka_unit_test(test_model_info_is_checked),
        cmocka_unit_test(test_options),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
