/* The onnxruntime plug-in through the host, in a tight loop: what naru adds to a bare Run (ort_raw).
 *
 *   ort_plugin BACKEND-DIR MODEL-DIR MODEL-FILE REQUESTS ROWS SECONDS [key=value …]
 *
 * Each round forms a batch of REQUESTS requests of ROWS rows (zeros), runs it, reads its outputs and
 * clears it. Prints one line of JSON: rounds, median and mean nanoseconds per round, bytes copied,
 * allocations of naru's own per round, resident memory.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/hist.h"
#include "base/mem.h"
#include "base/str.h"
#include "host/batch.h"
#include "host/plugin.h"

#define MAX_IO 16

static void check(nr_status st, const struct nr_err *err)
{
    if (st != NARU_OK) {
        fprintf(stderr, "%s\n", err->text);
        exit(1);
    }
}

static uint64_t number(const char *text)
{
    uint64_t n = 0;
    if (!nr_str_to_u64(nr_str_from(text), &n) || n == 0) {
        fprintf(stderr, "a number above 0 is expected, not %s\n", text);
        exit(2);
    }
    return n;
}

int main(int argc, char **argv)
{
    if (argc < 7) {
        fprintf(stderr, "see the head of tests/perf/ort_plugin.c\n");
        return 2;
    }
    struct nr_err err = {0};
    struct nr_plugins *set = nr_plugins_new();
    struct nr_plugin *plugin;
    struct nr_plugin_model *model;
    struct nr_plugin_instance *instance;
    struct nr_batch *b;
    nr_plugins_add_dir(set, argv[1]);
    check(nr_plugin_open(set, NR_STR("onnxruntime"), &plugin, &err), &err);
    naru_option options[16];
    uint32_t n_options = 0;
    for (int i = 7; i < argc && n_options < 16; i++) {
        struct nr_str value, key = nr_str_cut(nr_str_from(argv[i]), '=', &value);
        options[n_options++] =
            (naru_option){nr_format(NR_STR_FMT, NR_STR_ARG(key)), value.ptr ? value.ptr : ""};
    }
    naru_model_args args = {.dir_fd = open(argv[2], O_RDONLY | O_DIRECTORY | O_CLOEXEC),
                            .name = "bench",
                            .file = argv[3],
                            .path = argv[2],
                            .options = options,
                            .n_options = n_options,
                            .device = -1,
                            .max_batch_size = -1};
    check(nr_plugin_model_open(plugin, &args, &model, &err), &err);
    check(nr_plugin_instance_open(model, 0, -1, &instance, &err), &err);
    const naru_model_info *info = model->info;
    uint64_t n = number(argv[4]), rows = number(argv[5]);
    bool batched = info->inputs[0].rank > 0 && info->inputs[0].shape[0] < 0;
    struct nr_batch_cfg cfg = {.plugin = plugin,
                               .inputs = info->inputs,
                               .outputs = info->outputs,
                               .n_inputs = info->n_inputs,
                               .n_outputs = info->n_outputs,
                               .max_rows = batched ? (uint32_t)(n * rows) : 0};
    check(nr_batch_new(&cfg, &b, &err), &err);
    struct nr_batch_input in[MAX_IO];
    int64_t shapes[MAX_IO][NARU_MAX_RANK];
    for (uint32_t k = 0; k < info->n_inputs && k < MAX_IO; k++) {
        size_t bytes = naru_dtype_bytes(info->inputs[k].dtype);
        for (uint32_t d = 0; d < info->inputs[k].rank; d++) {
            int64_t dim = info->inputs[k].shape[d];
            shapes[k][d] = dim >= 0 ? dim : d == 0 ? (int64_t)rows : 1;
            bytes *= (size_t)shapes[k][d];
        }
        struct nr_buf *buf = nr_buf_try_new(bytes);
        memset(nr_buf_data(buf), 0, bytes);
        in[k] = (struct nr_batch_input){.data = nr_buf_data(buf),
                                        .bytes = bytes,
                                        .buf = buf,
                                        .shape = shapes[k],
                                        .rank = info->inputs[k].rank};
    }
    struct nr_hist *hist = nr_hist_new();
    struct nr_batch_request r = {.inputs = in, .rows = batched ? (uint32_t)rows : 1};
    uint64_t allocs = 0;
    int64_t now = nr_clock_now(), end = now + (int64_t)number(argv[6]) * NR_S_NS;
    for (uint64_t round = 0; now < end; round++) {
        for (uint64_t i = 0; i < n; i++) {
            check(nr_batch_add(b, &r, &err), &err);
        }
        check(nr_batch_run(b, instance), &err);
        for (uint32_t i = 0; i < n; i++) {
            struct nr_batch_slice slice;
            check(nr_batch_result(b, i, &err), &err);
            for (uint32_t o = 0; o < info->n_outputs; o++) {
                check(nr_batch_output(b, o, i, &slice), &err);
            }
        }
        nr_batch_clear(b);
        int64_t then = nr_clock_now();
        if (round >= 10) {
            nr_hist_add(hist, (uint64_t)(then - now), 1);
        } else {
            allocs = nr_mem_allocs();
        }
        now = then;
    }
    struct nr_batch_stats s;
    nr_batch_stats_get(b, &s);
    uint64_t rounds = nr_hist_count(hist);
    printf("{\"rounds\":%llu,\"rows_per_s\":%.2f,\"p50_ns\":%llu,\"mean_ns\":%.0f,\"bytes_copied\":"
           "%llu,\"allocs\":%llu}\n",
           (unsigned long long)rounds, (double)(n * rows) * 1e9 / nr_hist_mean(hist),
           (unsigned long long)nr_hist_quantile(hist, 0.5), nr_hist_mean(hist),
           (unsigned long long)s.bytes_copied, (unsigned long long)(nr_mem_allocs() - allocs));
    nr_batch_free(b);
    nr_plugin_instance_close(instance);
    nr_plugin_model_close(model);
    nr_plugin_unref(plugin);
    nr_plugins_free(set);
    return 0;
}
