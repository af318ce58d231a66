/* The checks. Each runs in a process of its own (check_main.c); the order is that of the report, from
 * what everything else needs to what is rare.
 */
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "backend-check/check.h"
#include "base/clock.h"
#include "base/mem.h"
#include "io/file.h"

static void check_load(void)
{
    struct opened o;
    open_plugin(&o); /* entry, versions, required slots, name */
    EXPECT(o.plugin->version[0] != 0, "the version is empty");
    nr_plugin_unref(o.plugin);
    nr_plugins_free(o.set);
}

static void check_null(void)
{
    struct opened o;
    open_plugin(&o);
    o.plugin->api->instance_close(NULL);
    o.plugin->api->model_close(NULL);
    nr_plugin_unref(o.plugin);
    o.plugin->api->lib_close(NULL);
    nr_plugins_free(o.set);
}

static void check_reopen(void)
{
    for (int i = 0; i < 3; i++) {
        struct opened o;
        open_all(&o);
        struct answer a = run_alone(&o, 1, 1, 3, PLACE_GUARDED);
        nr_free(a.data);
        close_all(&o);
    }
}

static void check_info(void)
{
    struct opened o;
    open_all(&o); /* the host has looked at names, datatypes and ranks */
    const naru_model_info *info = o.model->info;
    EXPECT(info->n_outputs > 0, "the model has no output");
    EXPECT(info->platform != NULL, "platform is NULL");
    EXPECT(o.plugin->api->model_info(o.model->handle) == info, "model_info gives another pointer");
    for (uint32_t i = 0; i < info->n_inputs && NARU_HAS(info, naru_model_info, input_symbols);
         i++) {
        const char *const *symbols = &info->input_symbols[(size_t)i * NARU_MAX_RANK];
        for (uint32_t d = 0; d < info->inputs[i].rank; d++) {
            EXPECT(!symbols[d] || !symbols[d][0] || info->inputs[i].shape[d] == -1,
                   "input_symbols: dimension %u of input %u is named \"%.64s\" but fixed", d, i,
                   symbols[d]);
        }
    }
    close_all(&o);
}

/* Calls model_open itself: the host would hide what is looked for here. */
static void try_open(struct opened *o, naru_model_args *args, uint32_t capacity)
{
    char text[64];
    naru_backend_model *const untouched = (naru_backend_model *)(void *)&text;
    naru_backend_model *m = untouched;
    memset(text, 0x7e, sizeof text);
    naru_text err = {.struct_size = sizeof err, .capacity = capacity, .data = text};
    naru_status st = o->plugin->api->model_open(o->plugin->lib, args, &m, &err);
    EXPECT(st < 0 && st != NARU_PENDING, "model_open of nothing returned %d", st);
    EXPECT(m == untouched, "model_open failed, but changed *ret");
    EXPECT(memchr(text, 0, capacity) != NULL || text[0] == 0x7e, "the text has no end");
    for (uint32_t i = capacity; i < sizeof text; i++) {
        EXPECT(text[i] == 0x7e, "the text goes over its capacity of %u", capacity);
    }
}

static void check_bad_model(void)
{
    struct opened o;
    open_plugin(&o);
    int dir;
    naru_model_args args = model_args(&dir);
    args.file = "there-is-no-such-file";
    args.n_inputs = args.n_outputs = 0;
    args.n_options = 0;
    try_open(&o, &args, 64);
    try_open(&o, &args, 1);
    try_open(&o, &args, 9);
    nr_close(dir);
    nr_plugin_unref(o.plugin);
    nr_plugins_free(o.set);
}

static void check_bad_device(void)
{
    struct opened o;
    open_all(&o);
    char text[64] = "";
    naru_text err = {sizeof err, sizeof text, text};
    naru_backend_instance *const untouched = (naru_backend_instance *)(void *)&text, *i = untouched;
    naru_status st = o.plugin->api->instance_open(o.model->handle, 1, 999, &i, &err);
    EXPECT(st < 0 && st != NARU_PENDING, "an instance on device 999 was opened (%d)", st);
    EXPECT(i == untouched, "instance_open failed, but changed *ret");
    close_all(&o);
}

static void check_two_models(void)
{
    struct opened o, p;
    open_all(&o);
    p = o;
    open_model(&p);
    struct nr_err err = {0};
    EXPECT(nr_plugin_instance_open(p.model, 0, -1, &p.instance, &err) == NARU_OK, "%s", err.text);
    struct answer a = run_alone(&o, 7, 1, 3, PLACE_GUARDED);
    nr_plugin_instance_close(o.instance); /* the elder goes first */
    nr_plugin_model_close(o.model);
    struct answer b = run_alone(&p, 7, 1, 3, PLACE_GUARDED);
    expect_same(&a, &b, "a second model");
    nr_free(a.data);
    nr_free(b.data);
    close_all(&p);
}

static void check_instances(void)
{
    struct opened o;
    open_all(&o);
    struct nr_plugin_instance *all[3];
    struct nr_err err = {0};
    for (uint32_t i = 0; i < 3; i++) {
        EXPECT(nr_plugin_instance_open(o.model, i + 1, -1, &all[i], &err) == NARU_OK, "%s",
               err.text);
    }
    struct answer a = run_alone(&o, 3, 1, 3, PLACE_GUARDED);
    static const int order[] = {1, 0, 2};
    struct nr_plugin_instance *mine = o.instance;
    for (int i = 0; i < 3; i++) {
        o.instance = all[order[i]];
        struct answer b = run_alone(&o, 3, 1, 3, PLACE_GUARDED);
        expect_same(&a, &b, "another instance");
        nr_free(b.data);
        nr_plugin_instance_close(all[order[i]]);
    }
    o.instance = mine;
    nr_free(a.data);
    close_all(&o);
}

static void check_repeat(void)
{
    struct opened o;
    open_all(&o);
    struct answer a = run_alone(&o, 5, 1, 3, PLACE_GUARDED);
    for (int i = 0; i < 20; i++) {
        struct answer other = run_alone(&o, 100 + (uint64_t)i, 1, 3, PLACE_GUARDED);
        struct answer b = run_alone(&o, 5, 1, 3, PLACE_GUARDED);
        expect_same(&a, &b, "the same request again");
        nr_free(other.data);
        nr_free(b.data);
    }
    nr_free(a.data);
    close_all(&o);
}

static void need_batches(const struct opened *o)
{
    if (!o->batched) {
        skip("the model has no batch dimension");
    }
}

/* Requests of `rows` rows each, as many as fit, against the same requests alone. */
static void batch_against_alone(struct opened *o, struct nr_batch *b, const uint32_t *rows,
                                uint32_t n, uint64_t seed)
{
    struct sample *s = nr_new_array(struct sample, CHECK_MAX_ROWS);
    for (uint32_t i = 0; i < n; i++) {
        make_sample(o, &s[i], seed + i, rows[i], 3, PLACE_GUARDED);
        add_sample(b, &s[i], NULL, NULL, 0);
    }
    EXPECT(nr_batch_run(b, o->instance) == NARU_OK, "the run did not end");
    for (uint32_t i = 0; i < n; i++) {
        struct answer in = take_answer(o, b, i);
        if (!check_cfg.rows_depend) {
            struct answer alone = run_alone(o, seed + i, rows[i], 3, PLACE_GUARDED);
            char what[64];
            (void)snprintf(what, sizeof what, "request %u of %u in a batch", i, n);
            expect_same(&alone, &in, what);
            nr_free(alone.data);
        }
        nr_free(in.data);
        free_sample(o, &s[i]);
    }
    nr_free(s);
    nr_batch_clear(b);
    check_guards();
}

static void check_batches(void)
{
    struct opened o;
    open_all(&o);
    need_batches(&o);
    struct nr_batch *b = new_batch(&o, PLACE_GUARDED);
    static const uint32_t ones[CHECK_MAX_ROWS] = {1, 1, 1, 1, 1, 1, 1, 1};
    for (uint32_t n = 1; n <= CHECK_MAX_ROWS; n++) {
        batch_against_alone(&o, b, ones, n, 1000 * n);
    }
    for (uint32_t n = CHECK_MAX_ROWS; n > 0; n -= 3) { /* smaller again */
        batch_against_alone(&o, b, ones, n, 7000 * n);
        if (n < 3) {
            break;
        }
    }
    nr_batch_free(b);
    close_all(&o);
}

static void check_rows(void)
{
    struct opened o;
    open_all(&o);
    need_batches(&o);
    struct nr_batch *b = new_batch(&o, PLACE_GUARDED);
    static const uint32_t rows[][3] = {{2, 1, 5}, {1, 3, 1}, {8, 0, 0}, {3, 3, 2}};
    for (size_t i = 0; i < NR_COUNT(rows); i++) {
        batch_against_alone(&o, b, rows[i], i == 2 ? 1 : 3, 50 * (i + 1));
    }
    nr_batch_free(b);
    close_all(&o);
}

static void check_zero_rows(void)
{
    struct opened o;
    open_all(&o);
    need_batches(&o);
    struct nr_batch *b = new_batch(&o, PLACE_GUARDED);
    struct sample s;
    make_sample(&o, &s, 1, 0, 3, PLACE_GUARDED);
    add_sample(b, &s, NULL, NULL, 0);
    EXPECT(nr_batch_run(b, o.instance) == NARU_OK, "the run did not end");
    if (nr_batch_result(b, 0, NULL) == NARU_OK) { /* an error is allowed, a crash is not */
        struct answer a = take_answer(&o, b, 0);
        nr_free(a.data);
    }
    nr_batch_free(b);
    free_sample(&o, &s);
    check_guards();
    struct answer a = run_alone(&o, 1, 1, 3, PLACE_GUARDED); /* and works on */
    nr_free(a.data);
    close_all(&o);
}

static void check_shapes(void)
{
    struct opened o;
    open_all(&o);
    static const int64_t dims[] = {1, 2, 7, 64, 255, 3, 1000, 1};
    for (size_t i = 0; i < NR_COUNT(dims); i++) {
        for (uint32_t rows = 1; rows <= (o.batched ? 3u : 1u); rows++) {
            struct answer a = run_alone(&o, i, rows, dims[i], PLACE_GUARDED);
            nr_free(a.data);
        }
    }
    close_all(&o);
}

/* Lengths that do not add up must not lead out of the region; any status will do. */
static void check_broken_strings(void)
{
    struct opened o;
    open_all(&o);
    uint32_t k = 0;
    while (k < o.model->info->n_inputs && o.model->info->inputs[k].dtype != NARU_BYTES) {
        k++;
    }
    if (k == o.model->info->n_inputs) {
        skip("no input is of type BYTES");
    }
    struct nr_batch *b = new_batch(&o, PLACE_GUARDED);
    static const uint32_t lengths[] = {1, 5, 0xffffffff, 0x7fffffff, 0x10000};
    for (size_t i = 0; i < NR_COUNT(lengths); i++) {
        for (size_t cut = 0; cut < 6; cut++) {
            struct sample s;
            make_sample(&o, &s, 40 + i, 1, 3, PLACE_GUARDED);
            if (s.in[k].bytes >= sizeof lengths[i]) {
                memcpy(nr_buf_data(s.in[k].buf), &lengths[i], sizeof lengths[i]);
            }
            s.in[k].bytes -= NR_MIN(cut, s.in[k].bytes);
            /* at the end of its region, so that reading on is a crash */
            memmove(nr_buf_data(s.in[k].buf) + cut, nr_buf_data(s.in[k].buf), s.in[k].bytes);
            s.in[k].data = nr_buf_data(s.in[k].buf) + nr_buf_bytes(s.in[k].buf) - s.in[k].bytes;
            add_sample(b, &s, NULL, NULL, 0);
            EXPECT(nr_batch_run(b, o.instance) == NARU_OK, "the run did not end");
            nr_batch_clear(b);
            free_sample(&o, &s);
        }
    }
    nr_batch_free(b);
    check_guards();
    close_all(&o);
}

static void check_wanted(void)
{
    struct opened o;
    open_all(&o);
    if (o.model->info->n_outputs < 2) {
        skip("the model has one output");
    }
    struct nr_batch *b = new_batch(&o, PLACE_GUARDED);
    for (uint32_t k = 0; k < o.model->info->n_outputs; k++) {
        uint8_t wanted[CHECK_MAX_IO] = {0};
        struct sample s;
        struct nr_err err = {0};
        struct nr_batch_slice slice;
        wanted[k] = 1;
        make_sample(&o, &s, 9, 1, 3, PLACE_GUARDED);
        add_sample(b, &s, wanted, NULL, 0);
        EXPECT(nr_batch_run(b, o.instance) == NARU_OK, "the run did not end");
        EXPECT(nr_batch_result(b, 0, &err) == NARU_OK, "output %u alone: %s", k, err.text);
        EXPECT(nr_batch_output(b, k, 0, &slice) == NARU_OK, "output %u alone is not there", k);
        nr_batch_clear(b);
        free_sample(&o, &s);
    }
    nr_batch_free(b);
    close_all(&o);
}

static void check_cancelled(void)
{
    struct opened o;
    open_all(&o);
    struct nr_batch *b = new_batch(&o, PLACE_GUARDED);
    _Atomic uint32_t flag = 1;
    for (int i = 0; i < 4; i++) {
        struct sample s;
        make_sample(&o, &s, 2, 1, 3, PLACE_GUARDED);
        add_sample(b, &s, NULL, i < 2 ? &flag : NULL, i < 2 ? 0 : 1);
        EXPECT(nr_batch_run(b, o.instance) == NARU_OK, "the run did not end");
        nr_status st = nr_batch_result(b, 0, NULL);
        EXPECT(st == NARU_OK || st == NARU_CANCELLED || st == NARU_DEADLINE,
               "a cancelled request got status %d", st);
        nr_batch_clear(b);
        free_sample(&o, &s);
    }
    nr_batch_free(b);
    struct answer a = run_alone(&o, 2, 1, 3, PLACE_GUARDED); /* later ones are served */
    nr_free(a.data);
    close_all(&o);
}

static struct {
    struct nr_batch *batch;
    _Atomic uint32_t flag, stop;
} canceller;

static void *cancel_loop(void *arg)
{
    (void)arg;
    while (!atomic_load(&canceller.stop)) {
        atomic_store(&canceller.flag, 1);
        nr_batch_cancel(canceller.batch, 0);
        usleep(50);
        atomic_store(&canceller.flag, 0);
        usleep(50);
    }
    return NULL;
}

static void check_cancel_while_running(void)
{
    struct opened o;
    open_all(&o);
    struct answer a = run_alone(&o, 2, 1, 3, PLACE_GUARDED);
    struct nr_batch *b = new_batch(&o, PLACE_GUARDED);
    struct sample s;
    make_sample(&o, &s, 2, 1, 3, PLACE_GUARDED);
    canceller.batch = b;
    pthread_t t;
    EXPECT(pthread_create(&t, NULL, cancel_loop, NULL) == 0, "no thread");
    for (int i = 0; i < 300; i++) {
        add_sample(b, &s, NULL, &canceller.flag, 0);
        EXPECT(nr_batch_run(b, o.instance) == NARU_OK, "the run did not end");
        nr_status st = nr_batch_result(b, 0, NULL);
        EXPECT(st == NARU_OK || st == NARU_CANCELLED, "a cancelled request got status %d", st);
        if (st == NARU_OK) {
            struct answer c = take_answer(&o, b, 0);
            expect_same(&a, &c, "a request that was cancelled too late");
            nr_free(c.data);
        }
        nr_batch_clear(b);
    }
    atomic_store(&canceller.stop, 1);
    pthread_join(t, NULL);
    nr_batch_free(b);
    free_sample(&o, &s);
    struct answer again = run_alone(&o, 2, 1, 3, PLACE_GUARDED);
    expect_same(&a, &again, "a request after cancelled ones");
    nr_free(a.data);
    nr_free(again.data);
    close_all(&o);
}

struct worker {
    struct opened o;
    pthread_t thread;
    uint64_t seed;
    const struct answer *want;
};

static void *work(void *arg)
{
    struct worker *w = arg;
    for (int i = 0; i < 100; i++) {
        struct answer a = run_alone(&w->o, w->seed, 1, 3, PLACE_GUARDED);
        expect_same(w->want, &a, "on two threads");
        nr_free(a.data);
    }
    return NULL;
}

static void check_threads(void)
{
    struct opened o;
    struct nr_err err = {0};
    open_all(&o);
    struct worker w[2];
    struct answer want[2];
    for (int i = 0; i < 2; i++) {
        w[i] = (struct worker){.o = o, .seed = 60 + (uint64_t)i, .want = &want[i]};
        want[i] = run_alone(&o, w[i].seed, 1, 3, PLACE_GUARDED);
        EXPECT(nr_plugin_instance_open(o.model, (uint32_t)i + 1, -1, &w[i].o.instance, &err) ==
                   NARU_OK,
               "%s", err.text);
    }
    for (int i = 0; i < 2; i++) {
        EXPECT(pthread_create(&w[i].thread, NULL, work, &w[i]) == 0, "no thread");
    }
    for (int i = 0; i < 2; i++) {
        pthread_join(w[i].thread, NULL);
        nr_plugin_instance_close(w[i].o.instance);
        nr_free(want[i].data);
    }
    close_all(&o);
}

/* Memory back while the model is idle, again, and while another thread runs it. */
static void check_trim(void)
{
    struct opened o;
    struct nr_err err = {0};
    open_all(&o);
    if (!NARU_HAS(o.plugin->api, naru_backend, model_trim)) {
        skip("the plug-in has no model_trim");
    }
    struct answer a = run_alone(&o, 8, 1, 3, PLACE_GUARDED);
    for (int i = 0; i < 3; i++) {
        (void)nr_plugin_model_trim(o.model);
        struct answer b = run_alone(&o, 8, 1, 3, PLACE_GUARDED);
        expect_same(&a, &b, "a request after model_trim");
        nr_free(b.data);
    }
    struct worker w = {.o = o, .seed = 8, .want = &a};
    EXPECT(nr_plugin_instance_open(o.model, 1, -1, &w.o.instance, &err) == NARU_OK, "%s", err.text);
    EXPECT(pthread_create(&w.thread, NULL, work, &w) == 0, "no thread");
    for (int i = 0; i < 20; i++) {
        (void)nr_plugin_model_trim(o.model);
    }
    pthread_join(w.thread, NULL);
    nr_plugin_instance_close(w.o.instance);
    nr_free(a.data);
    close_all(&o);
}

/* Forms made and dropped while another thread runs the model in its first one, and things that are no form. */
static void check_forms(void)
{
    struct opened o;
    struct nr_err err = {0};
    open_all(&o);
    if (!NARU_HAS(o.plugin->api, naru_backend, model_form)) {
        skip("the plug-in has no model_form");
    }
    EXPECT(nr_plugin_model_form(o.model, NARU_FORM_WIDE, false, &err) < 0,
           "dropped its first form");
    EXPECT(nr_plugin_model_form(o.model, NARU_FORMS, true, &err) < 0, "made a form that is none");
    struct answer a = run_alone(&o, 8, 1, 3, PLACE_GUARDED);
    struct worker w = {.o = o, .seed = 8, .want = &a};
    EXPECT(nr_plugin_instance_open(o.model, 1, -1, &w.o.instance, &err) == NARU_OK, "%s", err.text);
    EXPECT(pthread_create(&w.thread, NULL, work, &w) == 0, "no thread");
    bool elastic = (o.model->info->flags & NARU_MODEL_ELASTIC) != 0;
    for (uint32_t i = 0; i < 6; i++) {
        uint32_t form = 1 + i % (NARU_FORMS - 1);
        nr_status st = nr_plugin_model_form(o.model, form, true, &err);
        EXPECT(st == NARU_OK || st == NARU_UNSUPPORTED, "form %u: %s", form, err.text);
        EXPECT(st != NARU_OK || elastic, "form %u was made of a model that is not elastic", form);
        EXPECT(nr_plugin_model_form(o.model, form, false, &err) == NARU_OK, "%s", err.text);
    }
    pthread_join(w.thread, NULL);
    nr_plugin_instance_close(w.o.instance);
    nr_free(a.data);
    close_all(&o);
}

static void check_once(void)
{
    struct opened o;
    open_all(&o);
    for (int i = 0; i < 30; i++) {
        struct answer a = run_alone(&o, 1, 1, 3, PLACE_GUARDED);
        nr_free(a.data);
    }
    usleep(50000); /* a second answer may come late */
    EXPECT(nr_batch_late() == 0, "%llu calls for batches that were over",
           (unsigned long long)nr_batch_late());
    close_all(&o);
}

static void check_memory(void)
{
#ifdef NR_ASAN
    skip("AddressSanitizer keeps what is freed");
#endif
    struct opened o;
    open_all(&o);
    struct nr_batch *b = new_batch(&o, PLACE_GUARDED);
    struct sample s;
    make_sample(&o, &s, 1, 1, 3, PLACE_GUARDED);
    int64_t before = 0;
    int64_t end = nr_clock_now() + 10 * NR_S_NS;
    for (int i = 0; i < 5000 && nr_clock_now() < end; i++) {
        if (i == 500) {
            before = resident_bytes();
        }
        add_sample(b, &s, NULL, NULL, 0);
        EXPECT(nr_batch_run(b, o.instance) == NARU_OK, "the run did not end");
        nr_batch_clear(b);
    }
    int64_t grown = before ? resident_bytes() - before : 0;
    EXPECT(grown < 8 << 20, "5000 runs took %lld bytes that were not given back", (long long)grown);
    nr_batch_free(b);
    free_sample(&o, &s);
    close_all(&o);
}

/* A worker opens the plug-in and computes in shared memory; this process, which has not touched the
 * plug-in yet, reads what it wrote, and then computes the same itself. */
static void across_fork(bool opened_before)
{
    struct opened o;
    struct answer first = {0};
    if (opened_before) {
        open_all(&o);
        first = run_alone(&o, 77, 1, 3, PLACE_SHARED);
    }
    size_t room = (size_t)64 << 20;
    uint8_t *shared = mmap(NULL, room, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    EXPECT(shared != MAP_FAILED, "no shared memory");
    pid_t pid = fork();
    EXPECT(pid >= 0, "fork failed");
    if (pid == 0) {
        struct opened w;
        open_all(&w);
        struct answer a = run_alone(&w, 77, 1, 3, PLACE_SHARED);
        EXPECT(a.bytes < room - 8, "the outputs are too large for this check");
        memcpy(shared + 8, a.data, a.bytes);
        memcpy(shared, &a.bytes, 8);
        nr_free(a.data);
        close_all(&w);
        _exit(0);
    }
    int status;
    EXPECT(waitpid(pid, &status, 0) == pid, "the child is gone");
    EXPECT(WIFEXITED(status) && WEXITSTATUS(status) == 0, "the child failed (status %d)", status);
    struct answer theirs = {.data = shared + 8};
    memcpy(&theirs.bytes, shared, 8);
    if (!opened_before) {
        open_all(&o);
        first = run_alone(&o, 77, 1, 3, PLACE_SHARED);
    }
    expect_same(&first, &theirs, "a child process");
    nr_free(first.data);
    munmap(shared, room);
    close_all(&o);
}

static void check_fork(void)
{
    across_fork(false);
}

static void check_fork_after_open(void)
{
#if defined(__SANITIZE_THREAD__)
    skip("ThreadSanitizer allows no threads after a fork");
#endif
    struct opened o;
    open_plugin(&o);
    bool safe = (o.plugin->caps & NARU_CAP_FORK_SAFE) != 0;
    nr_plugin_unref(o.plugin);
    nr_plugins_free(o.set);
    if (!safe) {
        skip("the plug-in is not marked NARU_CAP_FORK_SAFE");
    }
    across_fork(true);
}

const struct check check_list[] = {
    {"load", "entry, versions, required slots, name", check_load},
    {"null", "close functions take NULL", check_null},
    {"info", "names, datatypes, shapes", check_info},
    {"reopen", "opens, runs and closes three times", check_reopen},
    {"bad-model", "a model that is not there: error, *ret untouched, text within bounds",
     check_bad_model},
    {"bad-device", "a device that is not there: error, *ret untouched", check_bad_device},
    {"repeat", "the same request gives the same answer", check_repeat},
    {"two-models", "two models at once, the elder closed first", check_two_models},
    {"instances", "several instances, closed in another order", check_instances},
    {"batches", "batches of 1 to 8 requests, against the same alone", check_batches},
    {"rows", "requests of several rows, against the same alone", check_rows},
    {"zero-rows", "a request of no rows", check_zero_rows},
    {"shapes", "many sizes of the dimensions that vary", check_shapes},
    {"wanted", "each output asked for alone", check_wanted},
    {"broken-strings", "lengths that do not add up stay within the region", check_broken_strings},
    {"cancelled", "requests that are cancelled before they run", check_cancelled},
    {"cancel-running", "requests cancelled from another thread", check_cancel_while_running},
    {"threads", "two instances on two threads", check_threads},
    {"trim", "memory given back between and during runs", check_trim},
    {"forms", "forms made and dropped beside runs", check_forms},
    {"once", "every batch is answered exactly once", check_once},
    {"memory", "5000 runs without growing", check_memory},
    {"fork", "the same in a child process, tensors in shared memory", check_fork},
    {"fork-after-open", "the same after this process has opened it", check_fork_after_open},
};
const unsigned check_count = NR_COUNT(check_list);
