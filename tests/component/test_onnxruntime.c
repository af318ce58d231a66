/* The onnxruntime plug-in through the host: values that are known beforehand, options, errors, what
 * the model says of itself. Models: tests/data/onnx. Skips when the plug-in was not built. */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/mem.h"
#include "host/batch.h"
#include "host/plugin.h"

#define MODELS NARU_SOURCE_DIR "/tests/data/onnx"

static struct nr_plugins *set;
static struct nr_plugin *plugin;

static int setup(void **state)
{
    (void)state;
    set = nr_plugins_new();
    nr_plugins_add_dir(set, NARU_BUILD_DIR "/backends");
    if (access(NARU_BUILD_DIR "/backends/naru-onnxruntime.so", R_OK) != 0) {
        return 0;
    }
    struct nr_err err = {0};
    if (nr_plugin_open(set, NR_STR("onnxruntime"), &plugin, &err) != NARU_OK) {
        fprintf(stderr, "%s\n", err.text);
        return -1;
    }
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    nr_plugin_unref(plugin);
    nr_plugins_free(set);
    return 0;
}

static nr_status open_with(const char *file, const naru_option *options, uint32_t n, int device,
                           struct nr_plugin_model **ret, struct nr_err *err)
{
    if (!plugin) {
        print_message("SKIP: the onnxruntime plug-in was not built\n");
        skip();
    }
    int dir = open(MODELS, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    assert_true(dir >= 0);
    naru_model_args args = {.dir_fd = dir,
                            .name = "m",
                            .file = file,
                            .path = MODELS,
                            .version = 1,
                            .options = options,
                            .n_options = n,
                            .device = device,
                            .max_batch_size = -1};
    nr_status st = nr_plugin_model_open(plugin, &args, ret, err);
    close(dir); /* the model needs it no longer */
    return st;
}

static struct nr_plugin_model *open_ok(const char *file)
{
    struct nr_plugin_model *m = NULL;
    struct nr_err err = {0};
    if (open_with(file, NULL, 0, -1, &m, &err) != NARU_OK) {
        fail_msg("%s", err.text);
    }
    return m;
}

struct run {
    struct nr_plugin_model *model;
    struct nr_plugin_instance *instance;
    struct nr_batch *batch;
    struct nr_batch_slice slice;
};

static void run_open(struct run *r, const char *file, uint32_t max_rows)
{
    *r = (struct run){.model = open_ok(file)};
    struct nr_err err = {0};
    assert_int_equal(nr_plugin_instance_open(r->model, 0, -1, &r->instance, &err), NARU_OK);
    struct nr_batch_cfg cfg = {.plugin = plugin,
                               .inputs = r->model->info->inputs,
                               .outputs = r->model->info->outputs,
                               .n_inputs = r->model->info->n_inputs,
                               .n_outputs = r->model->info->n_outputs,
                               .max_rows = max_rows};
    assert_int_equal(nr_batch_new(&cfg, &r->batch, &err), NARU_OK);
}

static void run_close(struct run *r)
{
    nr_batch_free(r->batch);
    nr_plugin_instance_close(r->instance);
    nr_plugin_model_close(r->model);
}

/* Runs one request of n inputs that all have the same bytes and shape. */
static nr_status run_one(struct run *r, const void *data, size_t bytes, const int64_t *shape,
                         uint32_t rank, uint32_t rows, struct nr_err *err)
{
    struct nr_batch_input in[4];
    for (uint32_t i = 0; i < r->model->info->n_inputs && i < 4; i++) {
        in[i] = (struct nr_batch_input){.data = data, .bytes = bytes, .shape = shape, .rank = rank};
    }
    struct nr_batch_request q = {.inputs = in, .rows = rows};
    nr_batch_clear(r->batch);
    nr_status st = nr_batch_add(r->batch, &q, err);
    if (st != NARU_OK) {
        return st;
    }
    assert_int_equal(nr_batch_run(r->batch, r->instance), NARU_OK);
    return nr_batch_result(r->batch, 0, err);
}

static void test_add_sub(void **state)
{
    (void)state;
    struct run r;
    run_open(&r, "add_sub.onnx", 8);
    assert_string_equal(r.model->info->platform, "onnxruntime_onnx");
    assert_string_equal(r.model->info->inputs[1].name, "INPUT1");
    assert_int_equal(r.model->info->inputs[0].rank, 2);
    assert_int_equal(r.model->info->inputs[0].shape[0], -1);
    assert_int_equal(r.model->info->inputs[0].shape[1], 16);
    assert_int_equal(r.model->info->flags & NARU_MODEL_STATIC_GRAPH, NARU_MODEL_STATIC_GRAPH);
    assert_non_null(strstr(plugin->version, "ONNX Runtime 1."));
    float a[16], b[16], more[32];
    for (int i = 0; i < 16; i++) {
        a[i] = (float)i;
        b[i] = 1.5f;
        more[i] = more[16 + i] = (float)(100 + i);
    }
    int64_t one[] = {1, 16}, two[] = {2, 16};
    struct nr_batch_input first[] = {{.data = a, .bytes = 64, .shape = one, .rank = 2},
                                     {.data = b, .bytes = 64, .shape = one, .rank = 2}};
    struct nr_batch_input second[] = {{.data = more, .bytes = 128, .shape = two, .rank = 2},
                                      {.data = more, .bytes = 128, .shape = two, .rank = 2}};
    struct nr_batch_request q1 = {.inputs = first, .rows = 1}, q2 = {.inputs = second, .rows = 2};
    for (int round = 0; round < 3; round++) {
        assert_int_equal(nr_batch_add(r.batch, &q1, NULL), NARU_OK);
        assert_int_equal(nr_batch_add(r.batch, &q2, NULL), NARU_OK);
        assert_int_equal(nr_batch_run(r.batch, r.instance), NARU_OK);
        for (uint32_t o = 0; o < 2; o++) {
            float got[32];
            assert_int_equal(nr_batch_output(r.batch, o, 0, &r.slice), NARU_OK);
            assert_int_equal(r.slice.bytes, 64);
            memcpy(got, r.slice.data, 64);
            for (int i = 0; i < 16; i++) {
                assert_true(got[i] == (o == 0 ? a[i] + b[i] : a[i] - b[i]));
            }
            assert_int_equal(nr_batch_output(r.batch, o, 1, &r.slice), NARU_OK);
            assert_int_equal(r.slice.bytes, 128);
            assert_int_equal(r.slice.shape[0], 2);
            memcpy(got, r.slice.data, 128);
            for (int i = 0; i < 32; i++) {
                assert_true(got[i] == (o == 0 ? 2 * more[i] : 0.0f));
            }
        }
        nr_batch_clear(r.batch);
        q1.rows = 1;
    }
    run_close(&r);
}

static void test_strings(void **state)
{
    (void)state;
    struct run r;
    run_open(&r, "identity_bytes.onnx", 8);
    assert_int_equal(r.model->info->inputs[0].dtype, NARU_BYTES);
    static const char text[] = "\5\0\0\0he\0lo\0\0\0\0\3\0\0\0\377\376\375\1\0\0\0x";
    int64_t shape[] = {2, 2};
    struct nr_err err = {0};
    for (int round = 0; round < 3; round++) {
        assert_int_equal(run_one(&r, text, 25, shape, 2, 2, &err), NARU_OK);
        assert_int_equal(nr_batch_output(r.batch, 0, 0, &r.slice), NARU_OK);
        assert_int_equal(r.slice.bytes, 25);
        assert_memory_equal(r.slice.data, text, 25);
    }
    assert_int_equal(run_one(&r, text, 24, shape, 2, 2, &err), NARU_INVALID);
    assert_non_null(strstr(err.text, "do not add up"));
    assert_int_equal(run_one(&r, "\0\0\0\0", 4, (int64_t[]){1, INT64_C(1) << 40}, 2, 1, &err),
                     NARU_INVALID);
    run_close(&r);
}

static void test_shape_known_after_the_run(void **state)
{
    (void)state;
    struct run r;
    run_open(&r, "nonzero.onnx", 0);
    assert_int_equal(r.model->info->outputs[0].shape[0], -1);
    static const float x[] = {0, 1, 0, 2, 3};
    static const int64_t want[] = {1, 3, 4};
    struct nr_err err = {0};
    assert_int_equal(run_one(&r, x, sizeof x, (int64_t[]){5}, 1, 1, &err), NARU_OK);
    assert_int_equal(nr_batch_output(r.batch, 0, 0, &r.slice), NARU_OK);
    assert_int_equal(r.slice.shape[0], 3);
    assert_int_equal(r.slice.shape[1], 1);
    assert_memory_equal(r.slice.data, want, sizeof want);
    assert_int_equal(run_one(&r, x, 4, (int64_t[]){1}, 1, 1, &err), NARU_OK); /* none at all */
    assert_int_equal(nr_batch_output(r.batch, 0, 0, &r.slice), NARU_OK);
    assert_int_equal(r.slice.bytes, 0);
    run_close(&r);
    /* served as if it had a batch dimension, its output does not fit the batch */
    run_open(&r, "nonzero.onnx", 8);
    assert_int_equal(run_one(&r, x, sizeof x, (int64_t[]){5}, 1, 5, &err), NARU_INTERNAL);
    assert_non_null(strstr(err.text, "output 'Y'"));
    run_close(&r);
}

static void test_what_models_say(void **state)
{
    (void)state;
    static const struct {
        const char *file;
        bool is_static;
        uint64_t weight_bytes;
        uint32_t n_outputs;
    } models[] = {{"add_sub.onnx", true, 0, 2},  {"fixed.onnx", true, 0, 1},
                  {"branch.onnx", false, 4, 1},  {"external.onnx", true, 256, 1},
                  {"nonzero.onnx", true, 0, 1},  {"identity_fp32.onnx", false, 0, 1},
                  {"sequence.onnx", true, 0, 1}, {"conv.onnx", true, 36, 1}};
    for (size_t i = 0; i < NR_COUNT(models); i++) {
        struct nr_plugin_model *m = open_ok(models[i].file);
        bool is_static = (m->info->flags & NARU_MODEL_STATIC_GRAPH) != 0;
        if (is_static != models[i].is_static || m->info->weight_bytes != models[i].weight_bytes ||
            m->info->n_outputs != models[i].n_outputs) {
            fail_msg("%s: static %d, %llu bytes, %u outputs", models[i].file, is_static,
                     (unsigned long long)m->info->weight_bytes, m->info->n_outputs);
        }
        assert_true((m->info->flags & NARU_MODEL_SHARED_SESSION) != 0);
        assert_true((m->info->flags & NARU_MODEL_IO_UNKNOWN) == 0);
        nr_plugin_model_close(m);
    }
}

static void test_external_weights(void **state)
{
    (void)state;
    struct run r;
    run_open(&r, "external.onnx", 4);
    float x[16] = {0};
    x[3] = 2; /* row 3 of the weights, twice */
    static const float want[] = {24, 26, 28, 30};
    struct nr_err err = {0};
    assert_int_equal(run_one(&r, x, sizeof x, (int64_t[]){1, 16}, 2, 1, &err), NARU_OK);
    assert_int_equal(nr_batch_output(r.batch, 0, 0, &r.slice), NARU_OK);
    assert_memory_equal(r.slice.data, want, sizeof want);
    run_close(&r);
}

static void test_errors_of_runs(void **state)
{
    (void)state;
    struct run r;
    run_open(&r, "gather.onnx", 4);
    struct nr_err err = {0};
    static const int64_t good = 1, bad = 7;
    assert_int_equal(run_one(&r, &bad, 8, (int64_t[]){1, 1}, 2, 1, &err), NARU_INVALID);
    assert_non_null(strstr(err.text, "onnxruntime: "));
    assert_non_null(strstr(err.text, "out of"));
    assert_int_equal(run_one(&r, &good, 8, (int64_t[]){1, 1}, 2, 1, &err), NARU_OK);
    static const float want[] = {3, 4};
    assert_int_equal(nr_batch_output(r.batch, 0, 0, &r.slice), NARU_OK);
    assert_memory_equal(r.slice.data, want, sizeof want);
    run_close(&r);
}

static void check_refused(const char *file, const naru_option *o, uint32_t n, int device,
                          nr_status want, const char *says)
{
    struct nr_plugin_model *m = NULL;
    struct nr_err err = {0};
    nr_status st = open_with(file, o, n, device, &m, &err);
    if (st != want || !strstr(err.text, says) || m) {
        fail_msg("%s: %d, \"%s\" does not say %s", file, st, err.text, says);
    }
    if (strstr(err.text, NARU_SOURCE_DIR) || strstr(err.text, "/proc/")) {
        fail_msg("\"%s\" shows a path of the server", err.text);
    }
}

static void test_errors_of_opening(void **state)
{
    (void)state;
    check_refused("none.onnx", NULL, 0, -1, NARU_NOT_FOUND, "there is no file \"none.onnx\"");
    check_refused("", NULL, 0, -1, NARU_INVALID, "no model file");
    check_refused("broken.onnx", NULL, 0, -1, NARU_INVALID, "onnxruntime: ");
    check_refused("external.weights", NULL, 0, -1, NARU_INVALID, "onnxruntime: ");
    check_refused("add_sub.onnx", NULL, 0, 0, NARU_UNSUPPORTED, "KIND_GPU");
    check_refused("add_sub.onnx", (naru_option[]){{"intra_op_thread_count", "-1"}}, 1, -1,
                  NARU_INVALID, "intra_op_thread_count");
    check_refused("add_sub.onnx", (naru_option[]){{"execution_mode", "fast"}}, 1, -1, NARU_INVALID,
                  "execution_mode");
    check_refused("add_sub.onnx", (naru_option[]){{"enable_mem_arena", "maybe"}}, 1, -1,
                  NARU_INVALID, "enable_mem_arena");
    check_refused("add_sub.onnx", (naru_option[]){{"naru.opt.graph.level", "x"}}, 1, -1,
                  NARU_INVALID, "graph.level");
}

static void test_options(void **state)
{
    (void)state;
    static const naru_option sets[][3] = {
        {{"intra_op_thread_count", "2"}, {"inter_op_thread_count", "2"}, {"execution_mode", "1"}},
        {{"enable_mem_arena", "0"}, {"enable_mem_pattern", "0"}, {"naru.opt.graph.level", "-1"}},
        {{"memory.enable_memory_arena_shrinkage", "cpu:0"},
         {"naru.opt.graph.level", "2"},
         {"session.use_deterministic_compute", "1"}},
        {{"intra_op_thread_count", "1"}, {"unknown", "x"}, {"naru.opt.graph.level", "1"}}};
    for (size_t i = 0; i < NR_COUNT(sets); i++) {
        struct nr_plugin_model *m = NULL;
        struct nr_err err = {0};
        if (open_with("conv.onnx", sets[i], 3, -1, &m, &err) != NARU_OK) {
            fail_msg("set %zu: %s", i, err.text);
        }
        nr_plugin_model_close(m);
    }
}

/* Every form gives the same answers, over one copy of the weights. */
static void test_forms(void **state)
{
    (void)state;
    struct run r;
    struct nr_err err = {0};
    run_open(&r, "../../../examples/models/derain/1/model.onnx", 8);
    if ((r.model->info->flags & NARU_MODEL_ELASTIC) == 0) {
        run_close(&r);
        skip(); /* one core */
    }
    enum {
        SIDE = 64,
        N = 3 * SIDE * SIDE
    };
    float *in = nr_new_array(float, N), *want = nr_new_array(float, N);
    for (int i = 0; i < N; i++) {
        in[i] = (float)(i % 251) / 251.0f;
    }
    int64_t shape[] = {1, 3, SIDE, SIDE};
    for (uint32_t round = 0; round < 3; round++) {
        for (uint32_t form = 0; form < NARU_FORMS;
             form++) { /* in the first round one that is not there */
            nr_batch_form_set(r.batch, form);
            assert_int_equal(run_one(&r, in, N * sizeof(float), shape, 4, 1, &err), NARU_OK);
            assert_int_equal(nr_batch_output(r.batch, 0, 0, &r.slice), NARU_OK);
            assert_int_equal(r.slice.bytes, N * sizeof(float));
            if (round == 0 && form == 0) {
                memcpy(want, r.slice.data, N * sizeof(float));
            }
            assert_memory_equal(r.slice.data, want, N * sizeof(float));
            if (form > 0) {
                assert_int_equal(nr_plugin_model_form(r.model, form, round < 2, &err), NARU_OK);
            }
        }
    }
    assert_int_equal(nr_plugin_model_form(r.model, NARU_FORM_NARROW, false, &err), NARU_OK);
    assert_int_equal(nr_plugin_model_form(r.model, NARU_FORM_WIDE, false, &err), NARU_INVALID);
    assert_int_equal(nr_plugin_model_form(r.model, NARU_FORMS, true, &err), NARU_INVALID);
    nr_free(in);
    nr_free(want);
    run_close(&r);
}

/* Threads that the configuration fixes, and models that are not worth it, have one form. */
static void test_one_form(void **state)
{
    (void)state;
    static const struct {
        const char *file;
        naru_option option;
    } all[] = {{"conv.onnx", {"intra_op_thread_count", "2"}},
               {"conv.onnx", {"inter_op_thread_count", "2"}},
               {"conv.onnx", {"session.intra_op.allow_spinning", "1"}},
               {"add_sub.onnx", {"other", "1"}}};
    for (size_t i = 0; i < NR_COUNT(all); i++) {
        struct nr_plugin_model *m = NULL;
        struct nr_err err = {0};
        assert_int_equal(open_with(all[i].file, &all[i].option, 1, -1, &m, &err), NARU_OK);
        assert_false(m->info->flags & NARU_MODEL_ELASTIC);
        assert_int_equal(nr_plugin_model_form(m, NARU_FORM_NARROW, true, &err), NARU_UNSUPPORTED);
        assert_non_null(strstr(err.text, "fixed"));
        nr_plugin_model_close(m);
    }
}

/* A large run leaves an arena of many megabytes; it goes back, small ones stay, and answers do not
 * change. */
static void test_trim(void **state)
{
    (void)state;
    struct run r;
    run_open(&r, "../../../examples/models/derain/1/model.onnx", 8);
    enum {
        SIDE = 512,
        N = 3 * SIDE * SIDE
    };
    float *in = nr_new_array(float, N), *want = nr_new_array(float, N);
    for (int i = 0; i < N; i++) {
        in[i] = (float)(i % 251) / 251.0f;
    }
    assert_int_equal(nr_plugin_model_trim(r.model), 0); /* nothing has run */
    int64_t shape[] = {1, 3, SIDE, SIDE};
    for (int round = 0; round < 3; round++) {
        struct nr_err err = {0};
        assert_int_equal(run_one(&r, in, N * sizeof(float), shape, 4, 1, &err), NARU_OK);
        assert_int_equal(nr_batch_output(r.batch, 0, 0, &r.slice), NARU_OK);
        assert_int_equal(r.slice.bytes, N * sizeof(float));
        if (round == 0) {
            memcpy(want, r.slice.data, N * sizeof(float));
        }
        assert_memory_equal(r.slice.data, want, N * sizeof(float));
        assert_true(nr_plugin_model_trim(r.model) > (uint64_t)32 << 20);
        assert_int_equal(nr_plugin_model_trim(r.model), 0);
    }
    nr_free(in);
    nr_free(want);
    run_close(&r);
}

static void test_damaged_files(void **state)
{
    (void)state;
    char dir[] = "/tmp/naru-onnx-XXXXXX", path[64];
    assert_non_null(mkdtemp(dir));
    (void)snprintf(path, sizeof path, "%s/model.onnx", dir);
    uint8_t data[512];
    int in = open(MODELS "/branch.onnx", O_RDONLY | O_CLOEXEC);
    ssize_t len = read(in, data, sizeof data);
    close(in);
    assert_true(len > 100);
    if (!plugin) {
        skip();
    }
    for (ssize_t i = 0; i < 2 * len; i += 3) {
        uint8_t changed[512];
        size_t bytes = (size_t)(i < len ? i : len);
        memcpy(changed, data, (size_t)len);
        if (i >= len) {
            changed[i - len] ^= 0x55;
        }
        int out = open(path, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0600);
        assert_int_equal(write(out, changed, bytes), bytes);
        close(out);
        int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        naru_model_args args = {
            .dir_fd = fd, .name = "m", .file = "model.onnx", .path = dir, .device = -1};
        struct nr_plugin_model *m = NULL;
        struct nr_err err = {0};
        if (nr_plugin_model_open(plugin, &args, &m, &err) != NARU_OK) {
            assert_true(err.text[0] != 0);
        }
        nr_plugin_model_close(m);
        close(fd);
    }
    unlink(path);
    rmdir(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_add_sub),
        cmocka_unit_test(test_strings),
        cmocka_unit_test(test_shape_known_after_the_run),
        cmocka_unit_test(test_what_models_say),
        cmocka_unit_test(test_external_weights),
        cmocka_unit_test(test_errors_of_runs),
        cmocka_unit_test(test_errors_of_opening),
        cmocka_unit_test(test_options),
        cmocka_unit_test(test_trim),
        cmocka_unit_test(test_forms),
        cmocka_unit_test(test_one_form),
        cmocka_unit_test(test_damaged_files),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
