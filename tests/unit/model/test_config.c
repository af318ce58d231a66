/* Configuration: rules, which backend and file, completion from the model, derived fields. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"
#include "codec/pbwrite.h"
#include "io/file.h"
#include "model/config.h"

static struct nr_err err;
static struct nr_model_config *config;
static const struct nr_config_opts on = {.auto_complete = true};
static const struct nr_config_opts off = {.auto_complete = false};

static int teardown(void **state)
{
    (void)state;
    nr_mem_fail_after(0, false);
    nr_config_free(config);
    config = NULL;
    memset(&err, 0, sizeof err);
    return 0;
}

static nr_status load(const char *text)
{
    nr_config_free(config);
    config = NULL;
    memset(&err, 0, sizeof err);
    return nr_config_parse("m", text, text ? strlen(text) : 0, "config.pbtxt", &config, &err);
}
static void assert_error(nr_status st, nr_status want, const char *part)
{
    if (st != want || !strstr(err.text, part)) {
        print_message(" got: %d %s\nwant: %d %s\n", st, err.text, want, part);
        fail();
    }
}

/* A model's own view: IO("x", NARU_FP32, -1, 16). */
struct model {
    naru_io in[3], out[3];
    naru_model_info info;
};
static int64_t shapes[16][4];
static unsigned n_shapes;
#define IO(name_, type_, ...) \
    io_make(name_, type_, (int64_t[]){__VA_ARGS__}, sizeof((int64_t[]){__VA_ARGS__}) / 8)
static naru_io io_make(const char *name, int32_t dtype, const int64_t *shape, size_t rank)
{
    int64_t *copy = shapes[n_shapes++ % 16];
    memcpy(copy, shape, rank * sizeof *shape);
    return (naru_io){.name = name, .dtype = dtype, .rank = (uint32_t)rank, .shape = copy};
}
static naru_io scalar_io(const char *name, int32_t dtype)
{
    return (naru_io){.name = name, .dtype = dtype, .rank = 0, .shape = shapes[0]};
}
static const naru_model_info *model_of(struct model *m, uint32_t n_in, uint32_t n_out)
{
    m->info = (naru_model_info){.struct_size = sizeof m->info,
                                .n_inputs = n_in,
                                .n_outputs = n_out,
                                .inputs = m->in,
                                .outputs = m->out,
                                .platform = "onnxruntime_onnx"};
    return &m->info;
}
static struct model batchable(void)
{
    return (struct model){.in = {IO("x", NARU_FP32, -1, 16)}, .out = {IO("y", NARU_FP32, -1, 4)}};
}

/* --- rules of the text ------------------------------------------------------------------------ */

static void test_rules(void **state)
{
    (void)state;
#define GOOD "input { name: 'x' data_type: TYPE_FP32 dims: [ 4 ] } "
    static const struct {
        const char *text, *part;
        nr_status st;
    } cases[] = {
        {"name: 'other'", "says name: \"other\", but the model's folder is \"m\"", NARU_INVALID},
        {"max_batch_size: -1", "max_batch_size must be from 0 to", NARU_INVALID},
        {"max_batch_size: 1000000", "found 1000000", NARU_INVALID},
        {"input { data_type: TYPE_FP32 dims: 1 }", "input number 1 has no name", NARU_INVALID},
        {"input { name: 'x' dims: 1 }", "input \"x\" has no data_type", NARU_INVALID},
        {"output { name: 'x' data_type: TYPE_FP32 }", "output \"x\" has no dims", NARU_INVALID},
        {"input { name: 'x' data_type: TYPE_FP32 dims: [3, 0] }", "dims [3,0] has 0", NARU_INVALID},
        {"input { name: 'x' data_type: TYPE_FP32 dims: -2 }", "has -2", NARU_INVALID},
        {"input { name: 'x' data_type: TYPE_FP32 dims: 3000000000 }", "has 3000000000",
         NARU_INVALID},
        {"input { name: 'x' data_type: TYPE_FP32 dims: [1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1] }",
         "dims has 16 entries, at most 15", NARU_INVALID},
        {GOOD GOOD, "input \"x\" is listed twice", NARU_INVALID},
        {"input { name: 'x' data_type: TYPE_FP32 dims: 4 reshape { shape: [ 2, 3 ] } }",
         "reshape [2,3] does not hold as many elements as dims [4]", NARU_INVALID},
        {"input { name: 'x' data_type: TYPE_FP32 dims: [ -1, 2 ] reshape { shape: [ 2, -1 ] } }",
         "does not hold as many", NARU_INVALID},
        {"input { name: 'x' data_type: TYPE_FP32 dims: [ -1 ] reshape { shape: [ 4 ] } }",
         "does not hold as many", NARU_INVALID},
        {"input { name: 'x' data_type: TYPE_FP32 dims: 4 reshape { shape: [ 0 ] } }",
         "reshape [0] has 0", NARU_INVALID},
        {"max_batch_size: 0 input { name: 'x' data_type: TYPE_FP32 dims: 1 reshape { } }",
         "an empty reshape needs a batch dimension", NARU_INVALID},
        {"platform: 'onnx'", "unknown platform \"onnx\"", NARU_INVALID},
        {"platform: 'onnxruntime_onnx' backend: 'pytorch'", "belongs to backend \"onnxruntime\"",
         NARU_INVALID},
        {"backend: '../evil'", "backend \"../evil\" is no name", NARU_INVALID},
        {"model_repository_agents { agents { name: '../evil' } }",
         "\"../evil\" is no name of an agent", NARU_INVALID},
        {"model_repository_agents { agents { } }", "\"\" is no name of an agent", NARU_INVALID},
        {"model_repository_agents { agents [ { name: 'a' }, { name: 'a' }, { name: 'a' }, "
         "{ name: 'a' }, { name: 'a' }, { name: 'a' }, { name: 'a' }, { name: 'a' }, { name: 'a' "
         "}, "
         "{ name: 'a' }, { name: 'a' }, { name: 'a' }, { name: 'a' }, { name: 'a' }, { name: 'a' "
         "}, "
         "{ name: 'a' }, { name: 'a' } ] }",
         "lists 17 agents, at most 16", NARU_INVALID},
        {"instance_group { count: -1 }", "count must be 1 or more, found -1", NARU_INVALID},
        {"instance_group { kind: KIND_CPU gpus: 0 }", "KIND_CPU takes no gpus", NARU_INVALID},
        {"instance_group { gpus: -3 }", "gpus has -3", NARU_INVALID},
        {"instance_group { count: 2000 }", "asks for 2000 instances", NARU_INVALID},
        {"instance_group { count: 2147483647 gpus: [0,1] } instance_group { count: 2147483647 }",
         "instances, at most", NARU_INVALID},
        {"version_policy { latest { } }", "latest needs num_versions", NARU_INVALID},
        {"version_policy { specific { } }", "specific lists no versions", NARU_INVALID},
        {"version_policy { specific { versions: [ 1, 0 ] } }", "specific has 0", NARU_INVALID},
        {"max_batch: 3", "config.pbtxt:1:1: ModelConfig has no field", NARU_INVALID},
    };
    for (size_t i = 0; i < NR_COUNT(cases); i++) {
        assert_error(load(cases[i].text), cases[i].st, cases[i].part);
        assert_null(config);
    }
}

static void test_reshapes_that_fit(void **state)
{
    (void)state;
    static const char *const good[] = {
        "dims: [ 4 ] reshape { shape: [ 2, 2 ] }",
        "dims: [ 2, -1, 6 ] reshape { shape: [ 1, 2, -1, 3, 2 ] }",
        "dims: [ -1 ] reshape { shape: [ -1, 1 ] }",
        "dims: [ 1 ] reshape { shape: [ ] }",
        "dims: [ 1, 1 ] reshape { }",
        "dims: [ -1, -1 ] reshape { shape: [ 1, -1, 1, -1 ] }",
    };
    for (size_t i = 0; i < NR_COUNT(good); i++) {
        char text[256];
        (void)snprintf(text, sizeof text,
                       "max_batch_size: 2 input { name: 'x' data_type: TYPE_INT8 %s }", good[i]);
        assert_int_equal(load(text), NARU_OK);
    }
}

/* --- backend and file ------------------------------------------------------------------------- */

static int folder_with(const char *const *files, char path[64])
{
    (void)snprintf(path, 64, "/tmp/naru-config-XXXXXX");
    assert_non_null(mkdtemp(path));
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    assert_true(fd >= 0);
    for (size_t i = 0; files && files[i]; i++) {
        int file = openat(fd, files[i], O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
        assert_true(file >= 0);
        (void)close(file);
    }
    return fd;
}
static void folder_end(int fd, const char *path, const char *const *files)
{
    for (size_t i = 0; files && files[i]; i++) {
        (void)unlinkat(fd, files[i], 0);
    }
    (void)close(fd);
    assert_int_equal(rmdir(path), 0);
}

static void test_backend_and_file(void **state)
{
    (void)state;
    static const struct {
        const char *files[3], *text, *backend, *platform, *file, *error;
    } cases[] = {
        {{"model.onnx"}, NULL, "onnxruntime", "onnxruntime_onnx", "model.onnx", NULL},
        {{"model.onnx"},
         "platform: 'onnxruntime_onnx'",
         "onnxruntime",
         "onnxruntime_onnx",
         "model.onnx",
         NULL},
        {{"model.onnx"},
         "backend: 'onnxruntime'",
         "onnxruntime",
         "onnxruntime_onnx",
         "model.onnx",
         NULL},
        {{"net.onnx", "notes.txt"}, NULL, "onnxruntime", "onnxruntime_onnx", "net.onnx", NULL},
        {{"net.onnx"},
         "backend: 'onnxruntime'",
         "onnxruntime",
         "onnxruntime_onnx",
         "net.onnx",
         NULL},
        {{"a.onnx", "b.onnx"},
         "default_model_filename: 'b.onnx' backend: 'onnxruntime'",
         "onnxruntime",
         "onnxruntime_onnx",
         "b.onnx",
         NULL},
        {{"a.onnx", "model.onnx"},
         "default_model_filename: 'a.onnx'",
         "onnxruntime",
         "onnxruntime_onnx",
         "a.onnx",
         NULL},
        {{"model.onnx"}, "default_model_filename: 'x.onnx'", NULL, NULL, NULL, "has no x.onnx"},
        {{"model.onnx"}, "default_model_filename: '../1'", NULL, NULL, NULL, "must lie within"},
        {{"model.onnx", "w.bin"},
         "default_model_filename: 'w.bin'",
         NULL,
         NULL,
         NULL,
         "no file that a backend is known for"},
        {{"model.pt"}, "backend: 'pytorch'", "pytorch", "pytorch_libtorch", "model.pt", NULL},
        {{"model.pt2"}, NULL, "pytorch", "torch_aoti", "model.pt2", NULL},
        {{"model.py"}, NULL, "python", "", "model.py", NULL},
        {{"model.graphdef"}, NULL, "tensorflow", "tensorflow_graphdef", "model.graphdef", NULL},
        {{NULL}, "backend: 'identity'", "identity", "", "", NULL},
        {{"w.bin"}, "backend: 'mine' default_model_filename: 'w.bin'", "mine", "", "w.bin", NULL},
        {{NULL}, NULL, NULL, NULL, NULL, "no file that a backend is known for"},
        {{"a.onnx", "b.onnx"}, NULL, NULL, NULL, NULL, "it has: a.onnx, b.onnx"},
        {{"other.py"}, NULL, NULL, NULL, NULL, "it has: other.py"},
        {{"model.pt"},
         "backend: 'onnxruntime'",
         NULL,
         NULL,
         NULL,
         "has no model.onnx; it has: model.pt"},
        {{"model.onnx"},
         "backend: 'onnxruntime' default_model_filename: 'x.onnx'",
         NULL,
         NULL,
         NULL,
         "has no x.onnx"},
        {{NULL},
         "backend: 'identity' default_model_filename: '../../etc/passwd'",
         NULL,
         NULL,
         NULL,
         "must lie within"},
        {{NULL},
         "backend: 'identity' default_model_filename: '/etc/passwd'",
         NULL,
         NULL,
         NULL,
         "must lie within"},
    };
    for (size_t i = 0; i < NR_COUNT(cases); i++) {
        char path[64];
        int fd = folder_with(cases[i].files, path);
        assert_int_equal(load(cases[i].text), NARU_OK);
        nr_status st = nr_config_files(config, fd, NULL, &err);
        if (cases[i].error) {
            assert_true(st == NARU_NOT_FOUND || st == NARU_INVALID);
            assert_error(st, st, cases[i].error);
        } else {
            if (st != NARU_OK) {
                print_message("case %zu: %s\n", i, err.text);
            }
            assert_int_equal(st, NARU_OK);
            assert_string_equal(config->backend, cases[i].backend);
            assert_string_equal(config->platform, cases[i].platform);
            assert_string_equal(config->file, cases[i].file);
            assert_string_equal(config->pb->backend, cases[i].backend);
            assert_string_equal(config->pb->default_model_filename, cases[i].file);
        }
        folder_end(fd, path, cases[i].files);
    }
}

static void test_backend_in_name_and_bare_file(void **state)
{
    (void)state;
    char path[64];
    int fd = folder_with(NULL, path);
    assert_int_equal(nr_config_parse("resize.identity", NULL, 0, "-", &config, &err), NARU_OK);
    assert_int_equal(nr_config_files(config, fd, NULL, &err), NARU_OK);
    assert_string_equal(config->backend, "identity");
    assert_int_equal(load(NULL), NARU_OK);
    assert_int_equal(nr_config_files(config, fd, "anything.onnx", &err), NARU_OK);
    assert_string_equal(config->backend, "onnxruntime");
    assert_string_equal(config->file, "anything.onnx");
    folder_end(fd, path, NULL);
}

static void test_options_and_args(void **state)
{
    (void)state;
    char path[64];
    int fd = folder_with(NULL, path);
    assert_int_equal(
        load("backend: 'identity' max_batch_size: 8 "
             "input { name: 'x' data_type: TYPE_FP32 dims: 4 reshape { shape: [ 2, 2 ] } optional: "
             "true } "
             "output { name: 'y' data_type: TYPE_STRING dims: -1 } "
             "parameters { key: 'b' value { string_value: '2' } } parameters { key: 'a' } "
             "optimization { graph { level: 1 } priority: PRIORITY_MIN cuda { graphs: true } "
             "execution_accelerators { gpu_execution_accelerator { name: 'tensorrt' parameters { "
             "key: "
             "'p' value: 'FP16' } parameters { key: 'q' value: '1' } } "
             "cpu_execution_accelerator { name: 'openvino' } } }"),
        NARU_OK);
    assert_int_equal(nr_config_files(config, fd, NULL, &err), NARU_OK);
    static const char *const want[][2] = {
        {"b", "2"},
        {"a", ""},
        {"naru.opt.graph.level", "1"},
        {"naru.opt.priority", "PRIORITY_MIN"},
        {"naru.opt.cuda.graphs", "true"},
        {"naru.opt.execution_accelerators.gpu_execution_accelerator.0.name", "tensorrt"},
        {"naru.opt.execution_accelerators.gpu_execution_accelerator.0.parameters.p", "FP16"},
        {"naru.opt.execution_accelerators.gpu_execution_accelerator.0.parameters.q", "1"},
        {"naru.opt.execution_accelerators.cpu_execution_accelerator.0.name", "openvino"},
    };
    assert_int_equal(config->n_options, NR_COUNT(want));
    for (size_t i = 0; i < NR_COUNT(want); i++) {
        assert_string_equal(config->options[i].key, want[i][0]);
        assert_string_equal(config->options[i].value, want[i][1]);
    }
    assert_int_equal(config->n_args_inputs, 1);
    assert_int_equal(config->args_inputs[0].rank, 3);
    assert_int_equal(config->args_inputs[0].shape[0], -1);
    assert_int_equal(config->args_inputs[0].shape[2], 2);
    assert_int_equal(config->args_inputs[0].optional, 1);
    assert_int_equal(config->args_outputs[0].dtype, NARU_BYTES);
    assert_int_equal(config->args_outputs[0].rank, 2);
    folder_end(fd, path, NULL);
}

/* --- completion ------------------------------------------------------------------------------- */

static void test_complete_without_configuration(void **state)
{
    (void)state;
    struct model m = batchable();
    assert_int_equal(load(NULL), NARU_OK);
    assert_int_equal(nr_config_complete(config, model_of(&m, 1, 1), &on, &err), NARU_OK);
    const Inference__ModelConfig *pb = config->pb;
    assert_int_equal(pb->max_batch_size, 64);
    assert_int_equal(pb->input[0]->n_dims, 1);
    assert_int_equal(pb->input[0]->dims[0], 16);
    assert_int_equal(pb->dynamic_batching->preferred_batch_size[0], 64);
    assert_int_equal(pb->n_instance_group, 1);
    assert_string_equal(pb->instance_group[0]->name, "m");
    assert_int_equal(pb->instance_group[0]->count, 1);
    assert_int_equal(pb->instance_group[0]->kind, INFERENCE__MODEL_INSTANCE_GROUP__KIND__KIND_CPU);
    assert_int_equal(pb->version_policy->latest->num_versions, 1);
    assert_true(pb->optimization->input_pinned_memory->enable);
    assert_true(config->batched && config->dynamic_batching);
    assert_int_equal(config->n_instances, 1);
    const struct nr_io_spec *x = &config->sig.inputs[0];
    assert_true(nr_str_is(x->name, "x"));
    assert_int_equal(x->rank, 2);
    assert_int_equal(x->shape[0], -1);
    assert_int_equal(x->shape[1], 16);
    assert_int_equal(x->row_bytes, 64);
    assert_int_equal(x->backend_rank, 2);
    assert_false(x->reshaped);
    assert_int_equal(config->sig.max_batch_size, 64);
    assert_string_equal(config->label_files[0], "");
}

/* Names of dimensions: what is left of them for request code. */
static void test_shared_dimensions(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        const char *symbols[3][3];
        const char *want; /* "name:input.dim,…" */
        const char *error;
    } cases[] = {
        {"max_batch_size: 0",
         {{"N", "L"}, {"N", "M"}, {"L", "M"}},
         "L:0.1,L:2.0,M:1.1,M:2.1,N:0.0,N:1.0,",
         NULL},
        {NULL, {{"N", "L"}, {"N", "L"}, {"N", "K"}}, "L:0.1,L:1.1,", NULL}, /* N is the batch */
        {NULL, {{"N", "a"}, {"N", "b"}, {"N", "c"}}, "", NULL},
        {"max_batch_size: 0", {{NULL, ""}, {"", NULL}, {NULL, NULL}}, "", NULL},
        {"max_batch_size: 0", {{"d", "d"}, {"e", "e"}, {"f", "d"}}, "d:0.0,d:2.1,", NULL},
        {"max_batch_size: 0", {{"d", "d"}, {"e", "e"}, {"f", "f"}}, "", NULL}, /* one input alone */
        {"input [ { name: 'a' data_type: TYPE_FP32 dims: [2, 3] }, "
         "{ name: 'b' data_type: TYPE_FP32 dims: [-1, 3] }, "
         "{ name: 'c' data_type: TYPE_FP32 dims: [-1, -1] } ] max_batch_size: 0 "
         "output { name: 'y' data_type: TYPE_FP32 dims: [-1, -1] }",
         {{"N", "L"}, {"N", "L"}, {"K", "P"}},
         "N:0.0,N:1.0,",
         NULL}, /* both L are 3 */
        {"input [ { name: 'a' data_type: TYPE_FP32 dims: [2, 3] }, "
         "{ name: 'b' data_type: TYPE_FP32 dims: [2, 4] }, "
         "{ name: 'c' data_type: TYPE_FP32 dims: [-1, -1] } ] max_batch_size: 0 "
         "output { name: 'y' data_type: TYPE_FP32 dims: [-1, -1] }",
         {{"N", "L"}, {"N", "L"}, {"K", "P"}},
         NULL,
         "inputs \"a\" and \"b\" are configured as [2,3] and [2,4], but the model calls dimension "
         "1 "
         "of the one and dimension 1 of the other \"L\""},
        {"input [ { name: 'c' data_type: TYPE_FP32 dims: [-1, -1] }, "
         "{ name: 'b' data_type: TYPE_FP32 dims: [-1] reshape { shape: [-1, 1] } }, "
         "{ name: 'a' data_type: TYPE_FP32 dims: [-1, -1] } ] max_batch_size: 0 "
         "output { name: 'y' data_type: TYPE_FP32 dims: [-1, -1] }",
         {{"N", "L"}, {"N", "L"}, {"N", "L"}},
         "L:0.1,L:2.1,N:0.0,N:2.0,",
         NULL},
    };
    for (size_t i = 0; i < NR_COUNT(cases); i++) {
        struct model m = {.in = {IO("a", NARU_FP32, -1, -1), IO("b", NARU_FP32, -1, -1),
                                 IO("c", NARU_FP32, -1, -1)},
                          .out = {IO("y", NARU_FP32, -1, -1)}};
        const char *symbols[3 * NARU_MAX_RANK] = {0};
        for (size_t n = 0; n < 3; n++) {
            memcpy(&symbols[n * NARU_MAX_RANK], cases[i].symbols[n], sizeof cases[i].symbols[n]);
        }
        const naru_model_info *info = model_of(&m, 3, 1);
        m.info.input_symbols = symbols;
        assert_int_equal(load(cases[i].text), NARU_OK);
        nr_status st = nr_config_complete(config, info, &on, &err);
        if (cases[i].error) {
            assert_error(st, NARU_INVALID, cases[i].error);
            continue;
        }
        assert_int_equal(st, NARU_OK);
        char got[256] = "";
        struct nr_text t;
        nr_text_init_at(&t, got, sizeof got);
        for (unsigned k = 0; k < config->sig.n_shared; k++) {
            const struct nr_shared_dim *d = &config->sig.shared[k];
            nr_text_fmt(&t, "%s:%u.%u,", d->symbol, d->input, d->dim);
            assert_int_equal(d->first, k == 0 || strcmp(d->symbol, d[-1].symbol) != 0);
        }
        assert_string_equal(got, cases[i].want);
        m.info.struct_size = offsetof(naru_model_info, input_symbols); /* a plug-in of 1.0 */
        assert_int_equal(load(cases[i].text), NARU_OK);
        assert_int_equal(nr_config_complete(config, info, &on, &err), NARU_OK);
        assert_int_equal(config->sig.n_shared, 0);
    }
}

static void test_default_batch_sizes(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        struct nr_config_opts opts;
        int32_t want;
    } cases[] = {
        {NULL, {.auto_complete = true}, 64},
        {"", {.auto_complete = true}, 4}, /* a configuration that leaves it open: as Triton */
        {"max_batch_size: 0", {.auto_complete = true}, 0}, /* said: no batching */
        {"max_batch_size: 3", {.auto_complete = true}, 3},
        {NULL, {.auto_complete = true, .default_batch = 7}, 7},
        {NULL, {.auto_complete = true, .default_batch = -1}, 0},
        {"", {.auto_complete = true, .default_batch_open = 9}, 9},
        {"", {.auto_complete = true, .default_batch_open = -1}, 0},
        {"output { name: 'y' data_type: TYPE_FP32 dims: 4 }", {.auto_complete = true}, 4},
        {"input { name: 'x' data_type: TYPE_FP32 dims: [-1,16] } "
         "output { name: 'y' data_type: TYPE_FP32 dims: [-1,4] }",
         {.auto_complete = true},
         0}, /* both lists given: nothing is inferred */
    };
    for (size_t i = 0; i < NR_COUNT(cases); i++) {
        struct model m = batchable();
        assert_int_equal(load(cases[i].text), NARU_OK);
        nr_status st = nr_config_complete(config, model_of(&m, 1, 1), &cases[i].opts, &err);
        if (st != NARU_OK) {
            print_message("case %zu: %s\n", i, err.text);
        }
        assert_int_equal(st, NARU_OK);
        assert_int_equal(config->max_batch_size, cases[i].want);
        assert_int_equal(config->sig.inputs[0].rank, 2); /* the same to a client in every case */
        /* dynamic batching is added only where the size was inferred */
        bool inferred = cases[i].want > 1 && cases[i].want != 3;
        assert_int_equal(config->dynamic_batching, inferred);
    }
}

static void test_default_batch_by_memory(void **state)
{
    (void)state;
    struct model m = {.in = {IO("x", NARU_FP32, -1, 3, 1024, 1024)},
                      .out = {IO("y", NARU_FP32, -1, 3, 1024, 1024)}};
    assert_int_equal(load(NULL), NARU_OK);
    assert_int_equal(nr_config_complete(config, model_of(&m, 1, 1), &on, &err), NARU_OK);
    assert_int_equal(config->max_batch_size, 8); /* 25.2 MB a row, 256 MiB allowed: 10 fit */
    m = (struct model){.in = {IO("x", NARU_FP64, -1, INT32_MAX, INT32_MAX, 2)},
                       .out = {IO("y", NARU_FP32, -1, 1)}};
    assert_int_equal(load(NULL), NARU_OK);
    nr_status st = nr_config_complete(config, model_of(&m, 1, 1), &on, &err);
    assert_error(st, NARU_TOO_LARGE, "holds more than 2^63 bytes");
    m = (struct model){.in = {IO("x", NARU_FP32, -1, -1)}, .out = {IO("y", NARU_BYTES, -1, 1)}};
    assert_int_equal(load(NULL), NARU_OK);
    assert_int_equal(nr_config_complete(config, model_of(&m, 1, 1), &on, &err), NARU_OK);
    assert_int_equal(config->max_batch_size, 64); /* sizes unknown: nothing to go by */
    assert_int_equal(config->sig.inputs[0].row_bytes, -1);
    assert_int_equal(config->sig.outputs[0].row_bytes, -1);
}

static void test_not_batchable(void **state)
{
    (void)state;
    struct model m = {.in = {IO("x", NARU_FP32, -1, 16), IO("k", NARU_INT64, 1)},
                      .out = {IO("y", NARU_FP32, -1, 4)}};
    assert_int_equal(load(NULL), NARU_OK);
    assert_int_equal(nr_config_complete(config, model_of(&m, 2, 1), &on, &err), NARU_OK);
    assert_int_equal(config->max_batch_size, 0);
    assert_false(config->batched || config->dynamic_batching);
    assert_int_equal(config->pb->scheduling_choice_case,
                     INFERENCE__MODEL_CONFIG__SCHEDULING_CHOICE__NOT_SET);
    assert_int_equal(config->sig.inputs[0].shape[0], -1);
    assert_false(config->sig.inputs[0].batched);
    assert_int_equal(config->sig.inputs[1].row_bytes, 8);

    assert_int_equal(load("max_batch_size: 8"), NARU_OK);
    assert_error(nr_config_complete(config, model_of(&m, 2, 1), &on, &err), NARU_INVALID,
                 "the first dimension of \"k\" is not free");
    assert_non_null(strstr(err.text, "\"x\" FP32 [-1,16], \"k\" INT64 [1]"));
    /* also when both lists are given */
    assert_int_equal(load("max_batch_size: 8 "
                          "input { name: 'x' data_type: TYPE_FP32 dims: 16 } "
                          "input { name: 'k' data_type: TYPE_INT64 dims: 1 } "
                          "output { name: 'y' data_type: TYPE_FP32 dims: 4 }"),
                     NARU_OK);
    assert_error(nr_config_complete(config, model_of(&m, 2, 1), &on, &err), NARU_INVALID,
                 "input \"k\" is configured as shape [-1,1] (batch dimension in front");
}

static void test_scalars_become_dims_1(void **state)
{
    (void)state;
    struct model m = {.in = {IO("x", NARU_FP32, -1)}, .out = {IO("y", NARU_FP32, -1)}};
    assert_int_equal(load(NULL), NARU_OK);
    assert_int_equal(nr_config_complete(config, model_of(&m, 1, 1), &on, &err), NARU_OK);
    assert_int_equal(config->max_batch_size, 64);
    assert_int_equal(config->pb->input[0]->dims[0], 1);
    assert_int_equal(config->pb->input[0]->reshape->n_shape, 0);
    assert_int_equal(config->sig.inputs[0].rank, 2);
    assert_int_equal(config->sig.inputs[0].backend_rank, 1);
    assert_true(config->sig.inputs[0].reshaped);
    assert_int_equal(config->sig.inputs[0].row_bytes, 4);

    m = (struct model){.in = {scalar_io("x", NARU_INT8)}, .out = {scalar_io("y", NARU_INT8)}};
    assert_int_equal(load(NULL), NARU_OK);
    assert_int_equal(nr_config_complete(config, model_of(&m, 1, 1), &on, &err), NARU_OK);
    assert_int_equal(config->max_batch_size, 0);
    assert_int_equal(config->sig.inputs[0].rank, 1);
    assert_int_equal(config->sig.inputs[0].backend_rank, 0);
}

static void test_mismatches(void **state)
{
    (void)state;
#define XY                                                                                       \
    "input { name: 'x' data_type: TYPE_FP32 dims: 16 } output { name: 'y' data_type: TYPE_FP32 " \
    "dims: 4 } "
    static const struct {
        const char *text, *part;
    } cases[] = {
        {"max_batch_size: 2 input { name: 'z' data_type: TYPE_FP32 dims: 16 }",
         "input \"z\" is configured, but the model has none of that name; the model's inputs: "
         "\"x\" "
         "FP32 [-1,16]"},
        {"max_batch_size: 2 output { name: 'Y' data_type: TYPE_FP32 dims: 4 }",
         "output \"Y\" is configured"},
        {"max_batch_size: 2 input { name: 'x' data_type: TYPE_FP16 dims: 16 }",
         "input \"x\" is configured as FP16"},
        {"max_batch_size: 2 input { name: 'x' data_type: TYPE_FP32 dims: 15 }",
         "configured as shape [-1,15] (batch dimension"},
        {"max_batch_size: 2 input { name: 'x' data_type: TYPE_FP32 dims: -1 }", "shape [-1,-1]"},
        {"max_batch_size: 2 input { name: 'x' data_type: TYPE_FP32 dims: [16, 1] }",
         "does not fit"},
        {"max_batch_size: 2 input { name: 'x' data_type: TYPE_FP32 dims: 16 reshape { shape: [4,4] "
         "} }",
         "[-1,4,4] (batch dimension in front, for max_batch_size is above 0) after reshape"},
        {XY, "configured as shape [16], which does not fit"},
        {"max_batch_size: 2 dynamic_batching { preferred_batch_size: [ 1, 3 ] }",
         "preferred_batch_size has 3, allowed is 1 to max_batch_size, which is 2"},
        {"max_batch_size: 2 dynamic_batching { preferred_batch_size: 0 }", "has 0"},
        {"max_batch_size: 2 dynamic_batching { priority_levels: 2 }",
         "default_priority_level must"},
        {"max_batch_size: 2 dynamic_batching { priority_levels: 2 default_priority_level: 3 }",
         "found 3"},
        {"max_batch_size: 2 dynamic_batching { priority_queue_policy { key: 1 } }",
         "is for level 1, but priority_levels is 0"},
        {"max_batch_size: 2 dynamic_batching { preserve_ordering: true priority_levels: 2 "
         "default_priority_level: 1 }",
         "preserve_ordering excludes more than one"},
        {"max_batch_size: 2 dynamic_batching { preserve_ordering: true default_queue_policy { "
         "timeout_action: DELAY } }",
         "preserve_ordering excludes timeout_action DELAY"},
        {"max_batch_size: 2 dynamic_batching { preserve_ordering: true priority_levels: 1 "
         "default_priority_level: 1 priority_queue_policy { key: 1 value { timeout_action: DELAY } "
         "} }",
         "preserve_ordering excludes timeout_action DELAY"},
        {"max_batch_size: 2 batch_input { }", "batch_input needs a target_name"},
        {"max_batch_size: 2 batch_output { target_name: 'y' source_input: ['x', 'x'] }",
         "exactly one source_input, found 1 and 2"},
        {"max_batch_size: 2 dynamic_batching { preserve_ordering: true } model_transaction_policy "
         "{ "
         "decoupled: true }",
         "preserve_ordering excludes decoupled"},
        {"max_batch_size: 2 dynamic_batching { priority_levels: 257 default_priority_level: 1 }",
         "at most 256"},
        {"max_batch_size: 2 dynamic_batching { max_queue_delay_microseconds: 18446744073709551615 "
         "}",
         "above an hour"},
        {"max_batch_size: 2 model_warmup { name: 'w' inputs { key: 'q' } }",
         "model_warmup \"w\": the model has no input \"q\""},
        {"max_batch_size: 2 model_warmup { inputs { key: 'x' } }", "a model_warmup has no name"},
        {"max_batch_size: 2 model_warmup { name: 'w' }", "input \"x\" is missing"},
        {"max_batch_size: 2 model_warmup { name: 'w' batch_size: 3 }", "batch_size 3 is above 2"},
        {"max_batch_size: 2 model_warmup { name: 'w' inputs { key: 'x' value { data_type: "
         "TYPE_FP32 "
         "dims: 17 zero_data: true } } }",
         "has dims [17], the model takes [16]"},
        {"max_batch_size: 2 model_warmup { name: 'w' inputs { key: 'x' value { data_type: "
         "TYPE_INT8 "
         "dims: 16 zero_data: true } } }",
         "input \"x\" is FP32"},
        {"max_batch_size: 2 model_warmup { name: 'w' inputs { key: 'x' value { data_type: "
         "TYPE_FP32 "
         "dims: 16 } } }",
         "needs zero_data, random_data or input_data_file"},
    };
    for (size_t i = 0; i < NR_COUNT(cases); i++) {
        struct model m = batchable();
        assert_int_equal(load(cases[i].text), NARU_OK);
        assert_error(nr_config_complete(config, model_of(&m, 1, 1), &on, &err), NARU_INVALID,
                     cases[i].part);
    }
    /* an input that the configuration leaves out: wrong unless it is optional */
    struct model m = {.in = {IO("x", NARU_FP32, -1, 16), IO("k", NARU_FP32, -1, 1)},
                      .out = {IO("y", NARU_FP32, -1, 4)}};
    assert_int_equal(load("max_batch_size: 2 " XY), NARU_OK);
    assert_error(nr_config_complete(config, model_of(&m, 2, 1), &on, &err), NARU_INVALID,
                 "input \"k\" of the model is not configured");
    m.in[1].optional = 1;
    assert_int_equal(load("max_batch_size: 2 " XY), NARU_OK);
    assert_int_equal(nr_config_complete(config, model_of(&m, 2, 1), &on, &err), NARU_OK);
}

static void test_order_and_maps(void **state)
{
    (void)state;
    struct model m = {
        .in = {IO("a", NARU_FP32, -1, 1), IO("b", NARU_FP32, -1, 2), IO("c", NARU_FP32, -1, 3)},
        .out = {IO("p", NARU_FP32, -1, 1), IO("q", NARU_FP32, -1, 2)}};
    assert_int_equal(load("max_batch_size: 2 input { name: 'c' data_type: TYPE_FP32 dims: 3 } "
                          "input { name: 'a' data_type: TYPE_FP32 dims: 1 } "
                          "input { name: 'b' data_type: TYPE_FP32 dims: 2 } "
                          "output { name: 'q' data_type: TYPE_FP32 dims: 2 }"),
                     NARU_OK);
    assert_int_equal(nr_config_complete(config, model_of(&m, 3, 2), &on, &err), NARU_OK);
    assert_int_equal(config->sig.n_outputs, 1);
    assert_int_equal(config->input_map[0], 2);
    assert_int_equal(config->input_map[1], 0);
    assert_int_equal(config->input_map[2], 1);
    assert_int_equal(config->output_map[0], 1);
}

static void test_without_model_info(void **state)
{
    (void)state;
    assert_int_equal(load("max_batch_size: 4 " XY), NARU_OK);
    assert_int_equal(nr_config_complete(config, NULL, &on, &err), NARU_OK);
    assert_int_equal(config->input_map[0], 0);
    assert_int_equal(load("max_batch_size: 4"), NARU_OK);
    assert_error(nr_config_complete(config, NULL, &on, &err), NARU_INVALID,
                 "lists no inputs, and the backend cannot tell them");
    struct model m = batchable();
    const naru_model_info *info = model_of(&m, 1, 1);
    assert_int_equal(load(NULL), NARU_OK);
    assert_error(nr_config_complete(config, info, &off, &err), NARU_INVALID, "is switched off");
    m.info.flags = NARU_MODEL_IO_UNKNOWN;
    assert_int_equal(load(NULL), NARU_OK);
    assert_error(nr_config_complete(config, info, &on, &err), NARU_INVALID, "cannot tell them");
    /* a model that has inputs only is complete when it says so */
    assert_int_equal(load("input { name: 'x' data_type: TYPE_FP32 dims: [-1, 16] }"), NARU_OK);
    assert_int_equal(nr_config_complete(config, model_of(&m, 1, 0), &off, &err), NARU_OK);
}

static void test_groups_and_queue(void **state)
{
    (void)state;
    struct model m = batchable();
    assert_int_equal(
        load("max_batch_size: 8 instance_group [ { count: 3 }, { name: 'g' kind: KIND_GPU gpus: "
             "[0,1] "
             "count: 2 }, { gpus: 4 }, { count: 5 passive: true } ] "
             "dynamic_batching { preferred_batch_size: [ 8, 2, 4 ] max_queue_delay_microseconds: "
             "250 "
             "default_queue_policy { timeout_action: DELAY default_timeout_microseconds: 7 "
             "allow_timeout_override: true max_queue_size: 9 } } "
             "response_cache { enable: true }"),
        NARU_OK);
    assert_int_equal(nr_config_complete(config, model_of(&m, 1, 1), &on, &err), NARU_OK);
    assert_int_equal(config->n_groups, 4);
    assert_string_equal(config->groups[0].name, "m_0");
    assert_int_equal(config->groups[0].kind, NR_INSTANCE_CPU);
    assert_string_equal(config->groups[1].name, "g");
    assert_int_equal(config->groups[1].kind, NR_INSTANCE_GPU);
    assert_int_equal(config->groups[2].kind, NR_INSTANCE_GPU); /* AUTO with gpus */
    assert_true(config->groups[3].passive);
    assert_int_equal(config->n_instances, 3 + 2 * 2 + 1);
    assert_int_equal(config->n_preferred, 3);
    assert_int_equal(config->preferred[0], 2);
    assert_int_equal(config->preferred[2], 8);
    assert_int_equal(config->max_queue_delay_ns, 250000);
    assert_int_equal(config->n_levels, 1);
    assert_true(config->levels[0].allow_override);
    assert_true(config->levels[0].delays);
    assert_int_equal(config->levels[0].max_queue_size, 9);
    assert_int_equal(config->levels[0].default_timeout_ns, 7000);
    assert_string_equal(config->ignored, "instance_group on more than one device");
    assert_true(config->response_cache);
}

/* A level has its own policy or the default one. */
static void test_levels(void **state)
{
    (void)state;
    struct model m = batchable();
    assert_int_equal(
        load("max_batch_size: 8 dynamic_batching { priority_levels: 3 default_priority_level: 2 "
             "default_queue_policy { max_queue_size: 9 } "
             "priority_queue_policy { key: 3 value { timeout_action: DELAY max_queue_size: 1 "
             "default_timeout_microseconds: 5 } } }"),
        NARU_OK);
    assert_int_equal(nr_config_complete(config, model_of(&m, 1, 1), &on, &err), NARU_OK);
    assert_int_equal(config->n_levels, 3);
    assert_int_equal(config->default_level, 1);
    assert_int_equal(config->levels[0].max_queue_size, 9);
    assert_int_equal(config->levels[1].max_queue_size, 9);
    assert_false(config->levels[1].delays);
    assert_int_equal(config->levels[2].max_queue_size, 1);
    assert_int_equal(config->levels[2].default_timeout_ns, 5000);
    assert_true(config->levels[2].delays);
    assert_string_equal(config->ignored, "");
}

/* What has no effect is named, each on its own; what has none to name is not. */
static void test_ignored(void **state)
{
    (void)state;
    static const struct {
        const char *text, *ignored;
    } cases[] = {
        {"model_warmup { name: 'w' inputs { key: 'x' value { data_type: TYPE_FP32 dims: 16 "
         "zero_data: true } } }",
         ""},
        {"response_cache { enable: true }", ""},
        {"response_cache { }", ""},
        {"dynamic_batching { priority_levels: 2 default_priority_level: 1 }", ""},
        {"dynamic_batching { preserve_ordering: true }", ""},
        {"dynamic_batching { default_queue_policy { timeout_action: DELAY } }", ""},
        {"instance_group { rate_limiter { resources { name: 'r' count: 1 } } }", "rate_limiter"},
        {"instance_group { secondary_devices { kind: KIND_NVDLA device_id: 1 } }",
         "secondary_devices"},
        {"instance_group { host_policy: 'p' }", "host_policy"},
        {"metric_tags { key: 'a' value: 'b' }", "metric_tags"},
        {"model_metrics { }", "model_metrics"},
        {"response_cache { enable: true } instance_group { rate_limiter { } }", "rate_limiter"},
        {"runtime: 'librt.so'", "runtime"},
        {"cc_model_filenames { key: '8.6' value: 'a.onnx' }", "cc_model_filenames"},
        {"model_operations { op_library_filename: 'ops.so' }", "model_operations"},
        {"model_operations { }", ""},
        {"dynamic_batching { default_priority_level: 3 }", "default_priority_level"},
        {"dynamic_batching { priority_levels: 1 default_priority_level: 1 priority_queue_policy { "
         "key: 1 "
         "value { } } }",
         ""},
        {"dynamic_batching { preferred_batch_size: [1,2,1,2,1,2,1,2,1,2,1,2,1,2,1,2] }", ""},
        {"dynamic_batching { preferred_batch_size: [1,2,1,2,1,2,1,2,1,2,1,2,1,2,1,2,2] }",
         "preferred_batch_size above the 16 smallest"},
        {"instance_group { profile: '1' }", "profile"},
        {"instance_group { kind: KIND_GPU gpus: [0] } instance_group { gpus: 0 passive: true }",
         ""},
        {"instance_group { kind: KIND_GPU gpus: [0, 1] }",
         "instance_group on more than one device"},
        {"instance_group { kind: KIND_CPU } instance_group { kind: KIND_GPU }",
         "instance_group on more than one device"},
        {"instance_group { kind: KIND_CPU } instance_group { kind: KIND_GPU passive: true }", ""},
        {"input { name: 'x' data_type: TYPE_FP32 dims: 16 format: FORMAT_NHWC is_shape_tensor: "
         "true "
         "is_non_linear_format_io: true }",
         "is_shape_tensor, is_non_linear_format_io"},
        {"output { name: 'y' data_type: TYPE_FP32 dims: 4 is_shape_tensor: true }",
         "is_shape_tensor"},
        {"optimization { }", ""},
        {"optimization { graph { level: 1 } }", ""}, /* the model says that it reads this */
        {"optimization { priority: PRIORITY_MAX }", "optimization.priority"},
        {"optimization { priority: PRIORITY_DEFAULT cuda { graphs: false } eager_batching: false }",
         ""},
        {"optimization { cuda { graphs: true busy_wait_events: true output_copy_stream: true "
         "graph_spec { } } }",
         "optimization.cuda.graphs, optimization.cuda.busy_wait_events, "
         "optimization.cuda.output_copy_stream, optimization.cuda.graph_spec"},
        {"optimization { execution_accelerators { gpu_execution_accelerator [ { name: 'tensorrt' "
         "parameters { key: 'p' value: 'FP16' } }, { name: 'cuda' } ] } }",
         "optimization.execution_accelerators.gpu_execution_accelerator"},
        {"optimization { execution_accelerators { cpu_execution_accelerator { name: 'openvino' } "
         "gpu_execution_accelerator { name: 'cuda' } } }",
         "optimization.execution_accelerators.gpu_execution_accelerator, "
         "optimization.execution_accelerators.cpu_execution_accelerator"},
        {"optimization { input_pinned_memory { enable: true } output_pinned_memory { } "
         "gather_kernel_buffer_threshold: 1 eager_batching: true }",
         "optimization.input_pinned_memory, optimization.output_pinned_memory, "
         "optimization.gather_kernel_buffer_threshold"},
    };
    static const char *const used[] = {"naru.opt.graph.level", NULL};
    char path[64];
    int fd = folder_with(NULL, path);
    for (size_t i = 0; i < NR_COUNT(cases); i++) {
        struct model m = batchable();
        char text[512];
        (void)snprintf(text, sizeof(text), "max_batch_size: 2 backend: 'identity' %s",
                       cases[i].text);
        assert_int_equal(load(text), NARU_OK);
        assert_int_equal(nr_config_files(config, fd, NULL, &err), NARU_OK);
        const naru_model_info *info = model_of(&m, 1, 1);
        m.info.used_options = used;
        assert_int_equal(nr_config_complete(config, info, &on, &err), NARU_OK);
        assert_string_equal(config->ignored, cases[i].ignored);
    }
    folder_end(fd, path, NULL);
}

/* A plug-in decides which options of `optimization` have an effect; whole groups too. */
static void test_used_options(void **state)
{
    (void)state;
    static const char *const some[] = {
        "naru.opt.cuda.graphs", "naru.opt.execution_accelerators.gpu_execution_accelerator.", NULL};
    static const char *const none[] = {NULL};
    static const struct {
        const char *const *used;
        const char *ignored;
    } cases[] = {
        {some, "optimization.graph.level"},
        {none, "optimization.graph.level, optimization.cuda.graphs, "
               "optimization.execution_accelerators.gpu_execution_accelerator"},
        {NULL, "optimization.graph.level, optimization.cuda.graphs, "
               "optimization.execution_accelerators.gpu_execution_accelerator"},
    };
    char path[64];
    int fd = folder_with(NULL, path);
    for (size_t i = 0; i < NR_COUNT(cases); i++) {
        struct model m = batchable();
        assert_int_equal(
            load("backend: 'identity' optimization { graph { level: 1 } cuda { graphs: "
                 "true } execution_accelerators { gpu_execution_accelerator { name: "
                 "'cuda' parameters { key: 'x' value: '1' } } } }"),
            NARU_OK);
        assert_int_equal(nr_config_files(config, fd, NULL, &err), NARU_OK);
        const naru_model_info *info = model_of(&m, 1, 1);
        m.info.used_options = cases[i].used;
        assert_int_equal(nr_config_complete(config, info, &on, &err), NARU_OK);
        assert_string_equal(config->ignored, cases[i].ignored);
    }
    folder_end(fd, path, NULL);
}

/* What is reported is a configuration again, and completing that one changes nothing. */
static void test_printed_config_is_stable(void **state)
{
    (void)state;
    struct model m = batchable();
    assert_int_equal(load(NULL), NARU_OK);
    assert_int_equal(nr_config_complete(config, model_of(&m, 1, 1), &on, &err), NARU_OK);
    struct nr_text text, json, again;
    nr_text_init(&text, 1 << 20);
    nr_text_init(&json, 1 << 20);
    nr_text_init(&again, 1 << 20);
    nr_pbwrite_text(&config->pb->base, &text);
    nr_config_json(config, &json);
    assert_int_equal(load(text.data), NARU_OK);
    assert_int_equal(nr_config_complete(config, model_of(&m, 1, 1), &on, &err), NARU_OK);
    nr_config_json(config, &again);
    assert_string_equal(json.data, again.data);
    nr_text_done(&text);
    nr_text_done(&json);
    nr_text_done(&again);
}

static void test_no_memory(void **state)
{
    (void)state;
    unsigned failures = 0;
    nr_status st = NARU_NOMEM;
    for (uint64_t n = 1; st != NARU_OK; n++) {
        struct model m = batchable();
        nr_arena_thread_done();
        nr_mem_fail_after(n, true);
        st = load("max_batch_size: 4 parameters { key: 'a' value { string_value: 'b' } }");
        if (st == NARU_OK) {
            st = nr_config_complete(config, model_of(&m, 1, 1), &on, &err);
        }
        nr_mem_fail_after(0, false);
        assert_true(st == NARU_OK || st == NARU_NOMEM);
        failures += st == NARU_NOMEM;
        assert_true(n < 1000);
    }
    assert_true(failures > 0);
}

static void test_backend_of(void **state)
{
    (void)state;
    assert_string_equal(nr_config_backend_of("a.onnx"), "onnxruntime");
    assert_string_equal(nr_config_backend_of("model.py"), "python");
    assert_null(nr_config_backend_of("setup.py"));
    assert_null(nr_config_backend_of("pom.xml"));
    assert_null(nr_config_backend_of("README.md"));
    assert_null(nr_config_backend_of(""));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_rules, teardown),
        cmocka_unit_test_teardown(test_reshapes_that_fit, teardown),
        cmocka_unit_test_teardown(test_backend_and_file, teardown),
        cmocka_unit_test_teardown(test_backend_in_name_and_bare_file, teardown),
        cmocka_unit_test_teardown(test_options_and_args, teardown),
        cmocka_unit_test_teardown(test_complete_without_configuration, teardown),
        cmocka_unit_test_teardown(test_shared_dimensions, teardown),
        cmocka_unit_test_teardown(test_default_batch_sizes, teardown),
        cmocka_unit_test_teardown(test_default_batch_by_memory, teardown),
        cmocka_unit_test_teardown(test_not_batchable, teardown),
        cmocka_unit_test_teardown(test_scalars_become_dims_1, teardown),
        cmocka_unit_test_teardown(test_mismatches, teardown),
        cmocka_unit_test_teardown(test_order_and_maps, teardown),
        cmocka_unit_test_teardown(test_without_model_info, teardown),
        cmocka_unit_test_teardown(test_groups_and_queue, teardown),
        cmocka_unit_test_teardown(test_levels, teardown),
        cmocka_unit_test_teardown(test_ignored, teardown),
        cmocka_unit_test_teardown(test_used_options, teardown),
        cmocka_unit_test_teardown(test_printed_config_is_stable, teardown),
        cmocka_unit_test_teardown(test_no_memory, teardown),
        cmocka_unit_test_teardown(test_backend_of, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
