/* naru-backend-check PLUGIN.so: does this plug-in keep to its interface, one of include/naru/? Which one it
 * is (backend.h, agent.h, batching.h), the symbol that it exports says.
 *
 * One child process per check (check.h says why), which reports through a pipe: nothing and exit 0
 * when it passed, a text and exit 1 or 2 when it failed or was skipped. A child that dies of a
 * signal or outlives its time has failed. This process never opens the plug-in itself.
 *
 * Exit code: 0 all passed, 1 some failed, 2 wrong arguments.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "backend-check/check.h"
#include "base/clock.h"
#include "base/mem.h"
#include "base/str.h"
#include "host/shelf.h"

#define DEFAULT_SECONDS 60
#define TEXT_MAX 1024

struct check_cfg check_cfg = {.dir = "", .file = ""};
static int report_fd = -1;
static bool died; /* the last child, of a signal or its time */
static uint64_t seconds = DEFAULT_SECONDS;
static const char *only;

static _Noreturn void report(int code, const char *fmt, va_list ap) nr_printf(2, 0);
static _Noreturn void report(int code, const char *fmt, va_list ap)
{
    char text[TEXT_MAX];
    int n = vsnprintf(text, sizeof text, fmt, ap);
    size_t len = n < 0 ? 0 : NR_MIN((size_t)n, sizeof text - 1);
    if (report_fd >= 0 && write(report_fd, text, len) < 0) {
        code = 1;
    }
    _exit(code);
}

void fail(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    report(1, fmt, ap);
}

void skip(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    report(2, fmt, ap);
}

/* Runs one check in a child. Returns 0 passed, 1 failed, 2 skipped, with a text. */
static int run_check(const struct check *c, char *text, size_t size)
{
    int fds[2], status = 0;
    text[0] = 0;
    if (pipe2(fds, O_CLOEXEC) != 0) {
        (void)snprintf(text, size, "no pipe: %m");
        return 1;
    }
    (void)fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        report_fd = fds[1];
        (void)alarm((unsigned)seconds);
        c->run();
        _exit(0);
    }
    close(fds[1]);
    size_t len = 0;
    for (ssize_t n; len < size - 1; len += (size_t)n) {
        n = read(fds[0], text + len, size - 1 - len);
        if (n < 0 && errno == EINTR) {
            n = 0;
        } else if (n <= 0) {
            break;
        }
    }
    text[len] = 0;
    close(fds[0]);
    if (pid < 0 || waitpid(pid, &status, 0) != pid) {
        (void)snprintf(text, size, "no child process");
        return 1;
    }
    died = WIFSIGNALED(status);
    if (died) {
        int sig = WTERMSIG(status);
        (void)snprintf(text, size,
                       sig == SIGALRM ? "it did not end within %llu s (signal %d)"
                                      : "it crashed within %llu s (signal %d)",
                       (unsigned long long)seconds, sig);
        return 1;
    }
    int code = WEXITSTATUS(status);
    if (code != 0 && code != 1 && code != 2) {
        (void)snprintf(text, size, "the plug-in ended the process with code %d", code);
        return 1;
    }
    return code;
}

/* What the plug-in is, found out in a child: loading it runs code. */
static enum nr_shelf_kind kind_of_plugin(void)
{
    int status = 0;
    (void)fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        (void)alarm((unsigned)seconds);
        _exit(10 + (int)nr_shelf_kind_of(check_cfg.plugin));
    }
    bool known = pid > 0 && waitpid(pid, &status, 0) == pid && WIFEXITED(status) &&
                 WEXITSTATUS(status) >= 10 && WEXITSTATUS(status) < 10 + NR_SHELF_KINDS;
    /* the checks of a backend say what is wrong with what is none */
    return known ? (enum nr_shelf_kind)(WEXITSTATUS(status) - 10) : NR_SHELF_BACKEND;
}

static int run_all(enum nr_shelf_kind kind)
{
    const struct check *list = kind == NR_SHELF_AGENT      ? agent_checks
                               : kind == NR_SHELF_BATCHING ? batching_checks
                                                           : check_list;
    unsigned n = kind == NR_SHELF_AGENT      ? agent_check_count
                 : kind == NR_SHELF_BATCHING ? batching_check_count
                                             : check_count;
    unsigned count[3] = {0};
    for (unsigned i = 0; i < n; i++) {
        const struct check *c = &list[i];
        char text[TEXT_MAX];
        if (only && strcmp(only, c->name) != 0) {
            continue;
        }
        int64_t begin = nr_clock_now();
        int code = run_check(c, text, sizeof text);
        int64_t ms = (nr_clock_now() - begin) / NR_MS_NS;
        static const char *const words[] = {"ok", "FAILED", "skipped"};
        printf("%-8s %-16s %s (%lld ms)%s%s\n", words[code], c->name, c->what, (long long)ms,
               text[0] ? ": " : "", text);
        count[code]++;
    }
    printf("%u passed, %u failed, %u skipped\n", count[0], count[1], count[2]);
    return count[1] > 0 || count[0] == 0;
}

static void open_only_plugin(void)
{
    struct opened o;
    open_plugin(&o);
}

static void open_and_model(void)
{
    struct opened o;
    open_plugin(&o);
    open_model(&o);
}

/* Nobody said which model: a plug-in that opens none without a file is not wrong, it wants to be told. */
static bool wants_model(void)
{
    static const struct check plugin = {"plugin", "it opens", open_only_plugin};
    static const struct check model = {"model", "a model without a file", open_and_model};
    char text[TEXT_MAX];
    if (run_check(&plugin, text, sizeof text) != 0 || run_check(&model, text, sizeof text) != 1 ||
        died) {
        return false; /* what is wrong with it shows in the checks */
    }
    fprintf(stderr,
            "naru-backend-check: %s opens no model without a file (%s); name one with --model "
            "FILE|DIR, or "
            "say what it needs with --option and --io\n",
            check_cfg.plugin, text);
    return true;
}

static _Noreturn void usage(const char *why, const char *what)
{
    if (why) {
        fprintf(stderr, "naru-backend-check: %s%s\n", why, what);
    }
    fprintf(
        why ? stderr : stdout,
        "naru-backend-check PLUGIN.so [option...]\n"
        "checks that a plug-in (a backend, a repository agent or a batching strategy) keeps to\n"
        "naru's interface, one line per check\n\n"
        "  --model FILE|DIR       the model to open (in DIR: model.onnx); of an agent the "
        "model's folder\n"
        "  --option KEY=VALUE     a parameter of the model (several)\n"
        "  --backend-option K=V   an option of the library (several)\n"
        "  --io \"FP32[-1,16];…\"   configured inputs and outputs, one pair each: IN0, OUT0 …\n"
        "  --rows-depend          rows of a batch influence each other\n"
        "  --varies               outputs differ from run to run\n"
        "  --only CHECK           this check alone\n"
        "  --seconds N            time for one check (%d)\n",
        DEFAULT_SECONDS);
    exit(why ? 2 : 0);
}

static void add_option(naru_option *list, uint32_t *n, const char *text)
{
    struct nr_str value, key = nr_str_cut(nr_str_from(text), '=', &value);
    if (*n == CHECK_MAX_OPTIONS || !value.ptr || key.len == 0) {
        usage("KEY=VALUE is expected, not ", text);
    }
    list[(*n)++] = (naru_option){.key = nr_format(NR_STR_FMT, NR_STR_ARG(key)), .value = value.ptr};
}

/* "FP32[-1,16]" as input and output number n. */
static void add_io(struct nr_str spec, const char *all)
{
    struct nr_str dims, name = nr_str_cut(spec, '[', &dims);
    int64_t *shape = nr_new_array(int64_t, NARU_MAX_RANK);
    int32_t dtype = NARU_DTYPE_NONE;
    for (int32_t d = NARU_DTYPE_NONE + 1; d < NARU_DTYPE_END; d++) {
        dtype = nr_str_is(name, naru_dtype_name(d)) ? d : dtype;
    }
    uint32_t rank = 0, n = check_cfg.n_io;
    bool ok = dtype != NARU_DTYPE_NONE && dims.ptr && dims.len > 0 &&
              dims.ptr[dims.len - 1] == ']' && n < CHECK_MAX_IO;
    for (dims.len = ok ? dims.len - 1 : 0; ok && dims.ptr && dims.len > 0;) {
        struct nr_str one = nr_str_cut(dims, ',', &dims);
        ok = rank < NARU_MAX_RANK && nr_str_to_i64(one, &shape[rank]);
        rank += ok;
    }
    if (!ok) {
        usage("--io: \"FP32[-1,16];BYTES[-1,1]\" is a form it takes, not ", all);
    }
    check_cfg.ins[n] =
        (naru_io){.name = nr_format("IN%u", n), .shape = shape, .rank = rank, .dtype = dtype};
    check_cfg.outs[n] = check_cfg.ins[n];
    check_cfg.outs[n].name = nr_format("OUT%u", n);
    check_cfg.n_io++;
}

static void set_model(const char *path)
{
    struct stat st;
    if (stat(path, &st) != 0) {
        usage("no such model: ", path);
    }
    if (S_ISDIR(st.st_mode)) {
        check_cfg.dir = path;
        check_cfg.file = "model.onnx";
        return;
    }
    const char *slash = strrchr(path, '/');
    check_cfg.file = slash ? slash + 1 : path;
    check_cfg.dir = slash ? nr_format("%.*s", (int)(slash - path + 1), path) : ".";
}

/* One option with its value; false: not known. */
static bool set_value(const char *name, const char *value)
{
    if (strcmp(name, "--model") == 0) {
        set_model(value);
    } else if (strcmp(name, "--option") == 0) {
        add_option(check_cfg.options, &check_cfg.n_options, value);
    } else if (strcmp(name, "--backend-option") == 0) {
        add_option(check_cfg.lib_options, &check_cfg.n_lib_options, value);
    } else if (strcmp(name, "--io") == 0) {
        struct nr_str rest = nr_str_from(value);
        while (rest.ptr) {
            struct nr_str one = nr_str_cut(rest, ';', &rest);
            add_io(one, value);
        }
    } else if (strcmp(name, "--only") == 0) {
        only = value;
    } else if (strcmp(name, "--seconds") == 0) {
        if (!nr_str_to_u64(nr_str_from(value), &seconds) || seconds == 0 || seconds > 3600) {
            usage("--seconds: 1 to 3600, not ", value);
        }
    } else {
        return false;
    }
    return true;
}

int main(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--help") == 0) {
            usage(NULL, "");
        } else if (strcmp(argv[i], "--rows-depend") == 0) {
            check_cfg.rows_depend = true;
        } else if (strcmp(argv[i], "--varies") == 0) {
            check_cfg.varies = true;
        } else if (argv[i][0] != '-' && !check_cfg.plugin) {
            check_cfg.plugin = argv[i];
        } else if (i + 1 >= argc || !set_value(argv[i], argv[i + 1])) {
            usage("unknown option or missing value: ", argv[i]);
        } else {
            i++;
        }
    }
    if (!check_cfg.plugin) {
        usage("which plug-in?", "");
    }
    enum nr_shelf_kind kind = kind_of_plugin();
    if (kind == NR_SHELF_BACKEND && check_cfg.n_io == 0 && check_cfg.n_options == 0 &&
        check_cfg.file[0] == '\0') {
        printf("no --model, --io or --option: trying it with --io \"FP32[-1,16]\"\n");
        add_io(NR_STR("FP32[-1,16]"), "");
        if (wants_model()) {
            return 2;
        }
    }
    return run_all(kind);
}
