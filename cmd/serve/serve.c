/* naru serve: models over HTTP and gRPC.
 *
 * Thin: options → node → banner → signals. SIGTERM and SIGINT drain and end with 0; a second one
 * ends at once; SIGHUP opens the log file again and rereads the log options of --config.
 * Exit codes: 1 it could not start, 2 the command line or file cannot be read, 78 (EX_CONFIG) what
 * they say is refused, so that a supervisor need not try again.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sysexits.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "naru/command.h"
#include "serve/banner.h"
#include "serve/options.h"

struct serve {
    struct serve_options o;
    struct option_values values;
    struct nr_node_cfg cfg;
    struct nr_plugins *plugins;
    struct nr_gallery *gallery;
    struct nr_node *node;
    int log_fd;
    int64_t since_ns;
    _Atomic bool serving; /* between banner and drain; read by on_state on loading threads */
    sigset_t signals;
};

#define LOOK_NS (100 * NR_MS_NS) /* for signals, while models load */
#define STUCK_AFTER_S 10         /* of taking apart, once draining is over */

/* Asked twice: the kernel frees faster than we do. */
static void on_second_signal(int sig)
{
    (void)sig;
    _exit(0);
}

/* A plug-in that never answers must not keep the process. Async-signal-safe calls only. */
static void on_stuck(int sig)
{
    static const char text[] =
        "naru serve: a plug-in did not answer; the process ends without it\n";
    (void)sig;
    ssize_t written = write(STDERR_FILENO, text, sizeof(text) - 1);
    (void)written;
    _exit(1);
}

/* Without the limit on repeats: hundreds of models may load within a second, each line is another's. */
static void log_each(nr_log_level level, const char *msg, const struct nr_kv *kvs)
{
    if (nr_log_on(level)) {
        nr_log_write_each(level, "model", msg, kvs);
    }
}

static void on_state(void *ctx, const struct nr_version *v, nr_version_state state,
                     const char *reason)
{
    const struct serve *s = ctx;
    bool ready = state == NR_VERSION_READY, unloaded = strcmp(reason, "unloaded") == 0;
    const char *what = ready ? "loaded" : unloaded ? "unloaded" : "not loaded";
    /* At the start and the end the banner and the operator know; in between it is news. */
    bool news = atomic_load_explicit(&s->serving, memory_order_relaxed);
    nr_log_level calm = news ? NR_LOG_INFO : NR_LOG_DEBUG;
    log_each(ready || unloaded ? calm : NR_LOG_ERROR, what,
             (struct nr_kv[]){NR_KV_TEXT("model", v->name),
                              NR_KV_INT("version", v->number), /* -1: the model as a whole */
                              NR_KV_DBL("ms", (double)v->load_ns / 1e6),
                              NR_KV_TEXT("reason", reason),
                              {.kind = NR_KV_END}});
    if (ready && v->config->ignored[0] != '\0') {
        log_each(NR_LOG_WARN, "fields of the configuration without effect",
                 (struct nr_kv[]){NR_KV_TEXT("model", v->name),
                                  NR_KV_INT("version", v->number),
                                  NR_KV_TEXT("ignored", v->config->ignored),
                                  {.kind = NR_KV_END}});
    }
}

/* --- logs ------------------------------------------------------------------------------------- */

static nr_status open_log(struct serve *s, struct nr_err *err)
{
    nr_log_level level = NR_LOG_INFO;
    if (!nr_log_level_parse(nr_str_from(s->o.log_level), &level)) {
        return nr_fail(err, NARU_INVALID, "--log-level: '%s' is no level", s->o.log_level);
    }
    if (s->o.log_verbose > 0) {
        level = NR_LOG_DEBUG;
    }
    int fd = -1;
    if (s->o.log_file != NULL && s->o.log_file[0] != '\0') {
        fd = open(s->o.log_file, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        if (fd < 0) {
            return nr_fail(err, NARU_IO, "--log-file: cannot open %s: %s", s->o.log_file,
                           strerrordesc_np(errno));
        }
    }
    nr_log_init(&(struct nr_log_cfg){
        .level = level, .json = strcmp(s->o.log_format, "json") == 0, .fd = fd});
    if (s->log_fd >= 0) {
        close(s->log_fd);
    }
    s->log_fd = fd;
    return NARU_OK;
}

static void on_hangup(struct serve *s)
{
    struct nr_err err = {0};
    if (option_reread(&s->values, &err) != NARU_OK || open_log(s, &err) != NARU_OK) {
        nr_log(NR_LOG_ERROR, "serve", "reread failed, options are as before",
               NR_KV_TEXT("reason", err.text));
        return;
    }
    nr_log(NR_LOG_INFO, "serve", "log options reread");
}

/* --- start ------------------------------------------------------------------------------------ */

static nr_status make_folders(char *path, struct nr_err *err)
{
    for (char *p = path + 1;; p++) {
        char kept = *p;
        if (kept != '/' && kept != '\0') {
            continue;
        }
        *p = '\0';
        bool made = mkdir(path, 0700) == 0 || errno == EEXIST;
        *p = kept;
        if (!made) {
            return nr_fail(
                err, NARU_IO,
                "--gallery: cannot make %s: %s; name another folder or give --no-keep-gallery",
                path, strerrordesc_np(errno));
        }
        if (kept == '\0') {
            return NARU_OK;
        }
    }
}

static nr_status open_gallery(struct serve *s, struct nr_err *err)
{
    const char *state = getenv("XDG_STATE_HOME"), *home = getenv("HOME");
    struct nr_gallery_cfg cfg;
    nr_autofree char *path = NULL;
    bool named = s->o.gallery != NULL && s->o.gallery[0] != '\0';
    if (!s->o.keep_gallery) {
        return NARU_OK;
    }
    if (named) {
        path = nr_strdup(s->o.gallery);
    } else if (state != NULL && state[0] == '/') {
        path = nr_format("%s/naru/gallery", state);
    } else if (home != NULL && home[0] == '/') {
        path = nr_format("%s/.local/state/naru/gallery", home);
    } else {
        return NARU_OK; /* nowhere to keep anything */
    }
    nr_gallery_cfg_default(&cfg);
    cfg.path = path;
    cfg.max_bytes = s->o.gallery_bytes;
    cfg.max_entries = s->o.gallery_entries;
    cfg.max_age_ns = (int64_t)s->o.gallery_age_ns;
    nr_status st = make_folders(path, err);
    if (st == NARU_OK) {
        st = nr_gallery_open(&cfg, &s->gallery, err);
    }
    if (st != NARU_OK && !named) {
        nr_log(NR_LOG_WARN, "serve", "pictures are not kept", NR_KV_TEXT("reason", err->text));
        return NARU_OK; /* a default that cannot be had (read-only home) does not stop a server */
    }
    return st;
}

static void raise_descriptor_limit(void)
{
    struct rlimit r;
    if (getrlimit(RLIMIT_NOFILE, &r) == 0 && r.rlim_cur < r.rlim_max) {
        r.rlim_cur = NR_MIN(r.rlim_max, (rlim_t)1048576);
        setrlimit(RLIMIT_NOFILE, &r);
    }
}

/* Once the ports are bound nothing needs root any more; before the first thread, since capabilities
 * are each thread's own. capset(2), prctl(2). */
static void give_up_privileges(void)
{
    struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct had[_LINUX_CAPABILITY_U32S_3] = {{0}};
    const struct __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3] = {{0}};
    bool any = syscall(SYS_capget, &head, had) == 0 && (had[0].permitted | had[1].permitted) != 0;
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    for (unsigned long cap = 0; any && prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) == 0;) {
        cap++;
    }
    if (!any) {
        return;
    }
    if (syscall(SYS_capset, &head, none) != 0) {
        nr_log(NR_LOG_WARN, "serve", "privileges could not be given up",
               NR_KV_TEXT("reason", strerrordesc_np(errno)));
        return;
    }
    nr_log(NR_LOG_INFO, "serve",
           "privileges given up: files of other users must be readable without them");
}

static nr_status start(struct serve *s, struct nr_err *err)
{
    nr_status st = open_gallery(s, err);
    if (st != NARU_OK) {
        return st;
    }
    s->cfg.api.gallery = s->gallery;
    s->cfg.on_state = on_state;
    s->cfg.on_state_ctx = s;
    st = nr_node_new(&s->cfg, &s->node, err);
    if (st != NARU_OK) {
        return st;
    }
    give_up_privileges();
    return nr_node_start(s->node, err);
}

/* Blocked in every thread from here on; the main thread waits for them. */
static void block_signals(struct serve *s)
{
    sigemptyset(&s->signals);
    sigaddset(&s->signals, SIGTERM);
    sigaddset(&s->signals, SIGINT);
    sigaddset(&s->signals, SIGHUP);
    pthread_sigmask(SIG_BLOCK, &s->signals, NULL);
    sigaction(SIGPIPE, &(struct sigaction){.sa_handler = SIG_IGN}, NULL);
}

/* Until every model came to rest. False: somebody wants the end before that. */
static bool wait_ready(struct serve *s)
{
    const struct timespec at_once = {0};
    while (!nr_node_wait_ready(s->node, nr_clock_now() + LOOK_NS)) {
        int sig = sigtimedwait(&s->signals, NULL, &at_once);
        if (sig == SIGTERM || sig == SIGINT) {
            return false;
        }
        if (sig == SIGHUP) {
            on_hangup(s);
        }
    }
    return true;
}

static void wait_for_end(struct serve *s)
{
    int sig = 0;
    while (sigwait(&s->signals, &sig) == 0 && sig == SIGHUP) {
        on_hangup(s);
    }
}

static void serve_until_end(struct serve *s)
{
    serve_notify("READY=1");
    atomic_store(&s->serving, true);
    wait_for_end(s);
    atomic_store(&s->serving, false);
}

static void drain(struct serve *s)
{
    struct sigaction act = {.sa_handler = on_second_signal};
    sigset_t again;
    sigaction(SIGTERM, &act, NULL);
    sigaction(SIGINT, &act, NULL);
    sigemptyset(&again);
    sigaddset(&again, SIGTERM);
    sigaddset(&again, SIGINT);
    pthread_sigmask(SIG_UNBLOCK, &again, NULL);
    serve_notify("STOPPING=1");
    nr_log(NR_LOG_INFO, "serve", "draining",
           NR_KV_INT("connections", nr_server_connections(nr_node_server(s->node))));
    int64_t limit_ns = NR_MIN((int64_t)s->o.exit_timeout_ns, INT64_MAX / 2);
    if (!nr_node_drain(s->node, nr_clock_now() + limit_ns)) {
        nr_log(NR_LOG_WARN, "serve", "not all requests were answered within --exit-timeout",
               NR_KV_INT("connections", nr_server_connections(nr_node_server(s->node))));
    }
    act.sa_handler = on_stuck;
    sigaction(SIGALRM, &act, NULL);
    alarm(STUCK_AFTER_S);
}

static int failed(const struct nr_err *err, int code)
{
    fprintf(stderr, "naru serve: %s\n", err->text);
    return code;
}

static int serve(struct serve *s)
{
    struct nr_err err = {0};
    if (open_log(s, &err) != NARU_OK) {
        return failed(&err, err.status == NARU_INVALID ? EX_CONFIG : EXIT_FAILURE);
    }
    for (unsigned i = 0; i < s->values.strangers.n; i++) {
        nr_log(NR_LOG_WARN, "serve", "an environment variable has no effect",
               NR_KV_TEXT("reason", s->values.strangers.items[i]));
    }
    if (serve_configure(&s->o, s->plugins, &s->cfg, &err) != NARU_OK) {
        return failed(&err, EX_CONFIG);
    }
    if (start(s, &err) != NARU_OK) {
        return failed(&err, EXIT_FAILURE);
    }
    if (!wait_ready(s)) {
        drain(s);
        return 0;
    }
    struct nr_repository_counts n = nr_repository_count(nr_node_repository(s->node));
    serve_banner(s->node, s->since_ns, stdout);
    if (s->o.exit_on_error && n.unavailable > 0) {
        fprintf(stderr, "naru serve: %u of %u models did not load (--exit-on-error)\n",
                n.unavailable, n.models);
        return 1;
    }
    serve_until_end(s);
    drain(s);
    return 0;
}

static void done(struct serve *s)
{
    nr_node_free(s->node);
    nr_gallery_close(s->gallery);
    nr_plugins_free(s->plugins);
    option_done(&s->values);
    if (s->log_fd >= 0) {
        close(s->log_fd);
    }
}

static int run(int argc, char **argv)
{
    struct serve s = {.log_fd = -1, .since_ns = nr_clock_now()};
    struct nr_err err = {0};
    block_signals(&s);
    raise_descriptor_limit();
    if (option_parse(&serve_table, &s.o, argc, argv, &s.values, &err) != NARU_OK) {
        fprintf(stderr, "naru serve: %s\n", err.text);
        option_done(&s.values);
        return 2;
    }
    if (s.values.help || s.values.print_man || s.values.print_config || s.values.version) {
        if (s.values.help) {
            option_help(&serve_table, stdout);
        } else if (s.values.print_man) {
            option_man(&serve_table, stdout);
        } else if (s.values.version) {
            printf("naru %s\n", NARU_VERSION);
        } else {
            option_print_config(&s.values, stdout);
        }
        option_done(&s.values);
        return 0;
    }
    s.plugins = nr_plugins_new();
    int code = serve(&s);
    done(&s);
    return code;
}

const struct command command_serve = {"serve", "serve models over HTTP and gRPC", run,
                                      &serve_table};
