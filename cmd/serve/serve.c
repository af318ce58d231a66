/* naru serve: models over HTTP and gRPC.
 *
 * Thin: options → node → banner → signals. SIGTERM and SIGINT drain and end with 0; a second one
 * ends at once; SIGHUP opens the log file again and rereads the log options of --config; SIGUSR2
 * starts the program anew and gives it the sockets (docs/upgrade.md), or, with a value, gives them to
 * the process that asks for them with --upgrade-from.
 * Exit codes: 1 it could not start, 2 the command line or file cannot be read, 78 (EX_CONFIG) what
 * they say is refused, so that a supervisor need not try again.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sysexits.h>
#include <time.h>
#include <unistd.h>

#include "api/upgrade.h"
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
    struct serve_shelves shelves;
    struct nr_gallery *gallery;
    struct nr_node *node;
    struct nr_given given;      /* sockets that somebody else made */
    struct nr_taker *taker;     /* from whom, while this one gets ready */
    struct nr_giver *giver;     /* to whom, while that one gets ready */
    struct nr_rebirth *rebirth; /* NULL: this command line cannot be started again */
    bool handed;                /* another process serves in our place */
    int log_fd;
    int64_t since_ns;
    _Atomic bool serving; /* between banner and drain; read by on_state on loading threads */
    sigset_t signals;
};

#define LOOK_NS (100 * NR_MS_NS) /* for signals, while models load */
#define STUCK_AFTER_S 10         /* of taking apart, once draining is over */
#define RETIRE_NS (5 * NR_S_NS)  /* for the loops to stop accepting: a turn of each */

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
    cfg.patient = s->taker != NULL; /* our predecessor has it until it ends */
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
    sigaddset(&s->signals, SIGUSR2);
    pthread_sigmask(SIG_BLOCK, &s->signals, NULL);
    sigaction(SIGPIPE, &(struct sigaction){.sa_handler = SIG_IGN}, NULL);
}

/* --- being replaced ------------------------------------------------------------------------------ */

static void refuse_upgrade(uint64_t name, const char *why)
{
    if (name != 0) {
        nr_giver_refuse(name, why);
    }
    nr_log(NR_LOG_ERROR, "serve", "no upgrade now, this server goes on", NR_KV_TEXT("reason", why));
}

/* SIGUSR2. name: of the socket where somebody waits for us; 0: nobody does, a new process is ours to
 * start. */
static void begin_upgrade(struct serve *s, uint64_t name)
{
    struct nr_err err = {0};
    struct nr_giver_cfg cfg = {.node = s->node, .all = s->given.all && s->given.n > 0};
    cfg.deadline_ns =
        nr_clock_now() + (int64_t)NR_MIN(s->o.upgrade_timeout_ns, (uint64_t)INT64_MAX / 2);
    if (getpid() == 1) {
        refuse_upgrade(name, "this is process 1 of its container, which ends with it: replace the "
                             "container");
        return;
    }
    if (s->giver != NULL) {
        refuse_upgrade(name, "another upgrade is under way");
        return;
    }
    if (name == 0 && s->rebirth == NULL) {
        refuse_upgrade(name, "its own command line is not known; use --upgrade-from");
        return;
    }
    nr_status st = name != 0 ? nr_giver_meet(&cfg, name, &s->giver, &err)
                             : nr_giver_start(&cfg, s->rebirth, &s->giver, &err);
    if (st != NARU_OK) {
        s->giver = NULL;
        refuse_upgrade(0, err.text);
        return;
    }
    nr_log(NR_LOG_INFO, "serve", "upgrade begins", NR_KV_INT("pid", nr_giver_pid(s->giver)),
           NR_KV_TEXT("program", name == 0 ? nr_rebirth_path(s->rebirth) : "--upgrade-from"));
    nr_autofree char *text =
        nr_format("RELOADING=1\nMONOTONIC_USEC=%lld", (long long)(nr_clock_now() / NR_US_NS));
    serve_notify(text);
}

static void end_upgrade(struct serve *s, const char *why)
{
    nr_log(NR_LOG_ERROR, "serve", "upgrade failed, this server goes on", NR_KV_TEXT("reason", why));
    nr_giver_free(s->giver, why);
    s->giver = NULL;
    serve_notify("READY=1");
}

/* The new process accepts: it is the main process now. */
static void hand_over(struct serve *s)
{
    pid_t pid = nr_giver_pid(s->giver);
    nr_autofree char *text = nr_format("MAINPID=%d\nREADY=1", (int)pid);
    serve_notify(text);
    s->handed = true;
    atomic_store(&s->serving, false);
    if (!nr_node_retire(s->node, nr_clock_now() + RETIRE_NS)) {
        nr_log(NR_LOG_WARN, "serve", "an I/O thread has not stopped accepting yet");
    }
    nr_giver_free(s->giver, NULL);
    s->giver = NULL;
    nr_log(NR_LOG_INFO, "serve", "upgrade done, another process serves", NR_KV_INT("pid", pid),
           NR_KV_INT("connections", nr_server_connections(nr_node_server(s->node))));
}

static void step_upgrade(struct serve *s)
{
    struct nr_err err = {0};
    switch (nr_giver_step(s->giver, &err)) {
    case NR_GIVER_SERVES:
        hand_over(s);
        break;
    case NR_GIVER_FAILED:
        end_upgrade(s, err.text);
        break;
    case NR_GIVER_WAITS:
        break;
    }
}

/* --- taking over ------------------------------------------------------------------------------- */

/* The connection that our predecessor left us, by number; -1: none did. */
static int inherited(void)
{
    uint64_t fd;
    bool is = nr_str_to_u64(nr_str_from(getenv(NR_UPGRADE_VARIABLE)), &fd) && fd == NR_REBIRTH_FD;
    (void)unsetenv(NR_UPGRADE_VARIABLE);
    return is ? NR_REBIRTH_FD : -1;
}

/* A predecessor that started us is one to take over from, whatever --upgrade-from said to it. */
static nr_status take_over(struct serve *s, int connection, struct nr_err *err)
{
    nr_status st = NARU_OK;
    if (connection >= 0) {
        st = nr_taker_inherit(connection, &s->taker, &s->given, err);
    } else if (s->o.upgrade_from > 0) {
        st = nr_taker_ask((pid_t)s->o.upgrade_from, &s->taker, &s->given, err);
    } else {
        st = nr_given_by_systemd(&s->given, err);
    }
    if (st != NARU_OK || (s->given.n == 0 && s->taker == NULL)) {
        return st;
    }
    st = nr_given_use(&s->given, &s->cfg, s->o.insecure, err);
    if (st == NARU_OK && s->taker != NULL) {
        nr_taker_configure(s->taker, &s->cfg);
    }
    return st;
}

/* Models are loaded: from here on the service is ours, or everything stays as it was. */
static nr_status replace(struct serve *s, struct nr_err *err)
{
    nr_status st = nr_taker_ready(s->taker, s->node, err);
    if (st == NARU_OK) {
        st = nr_node_accept(s->node, err);
    }
    if (st == NARU_OK) {
        st = nr_taker_serving(s->taker, s->node, err);
    }
    if (st == NARU_OK) {
        nr_taker_free(s->taker, NULL);
        s->taker = NULL;
        if (!s->given.all) { /* otherwise systemd has them too */
            nr_server_own(nr_node_server(s->node));
        }
    }
    return st;
}

/* --- signals --------------------------------------------------------------------------------------- */

/* Until every model came to rest. NARU_CANCELLED without a text: somebody wants the end before that;
 * with one: our predecessor does not want to be replaced any more. */
static nr_status wait_ready(struct serve *s, struct nr_err *err)
{
    const struct timespec at_once = {0};
    nr_status st = NARU_OK;
    while (st == NARU_OK && !nr_node_wait_ready(s->node, nr_clock_now() + LOOK_NS)) {
        siginfo_t info = {0};
        int sig = sigtimedwait(&s->signals, &info, &at_once);
        if (sig == SIGTERM || sig == SIGINT) {
            return NARU_CANCELLED;
        }
        if (sig == SIGHUP) {
            on_hangup(s);
        } else if (sig == SIGUSR2) {
            refuse_upgrade(info.si_code == SI_QUEUE ? (uint64_t)(uintptr_t)info.si_ptr : 0,
                           "models are still being loaded");
        }
        st = s->taker != NULL ? nr_taker_look(s->taker, err) : NARU_OK;
    }
    return st;
}

/* True: it asks for the end. */
static bool on_signal(struct serve *s, const struct signalfd_siginfo *info)
{
    if (info->ssi_signo == SIGHUP) {
        on_hangup(s);
    } else if (info->ssi_signo == SIGUSR2) {
        begin_upgrade(s, info->ssi_code == SI_QUEUE ? info->ssi_ptr : 0);
    }
    return info->ssi_signo == SIGTERM || info->ssi_signo == SIGINT;
}

static void wait_for_end(struct serve *s)
{
    struct signalfd_siginfo info;
    int fd = signalfd(-1, &s->signals, SFD_CLOEXEC | SFD_NONBLOCK);
    NR_ASSERT(fd >= 0); /* before any connection could have taken the last descriptor */
    for (bool end = false; !end && !s->handed;) {
        struct pollfd p[] = {{.fd = fd, .events = POLLIN}, {.fd = -1, .events = POLLIN}};
        int64_t wait_ns = -1;
        if (s->giver != NULL) {
            p[1].fd = nr_giver_fd(s->giver);
            wait_ns = NR_MIN(nr_giver_wait_ns(s->giver), 60 * NR_S_NS);
        }
        int n = poll(p, NR_COUNT(p), wait_ns < 0 ? -1 : (int)(wait_ns / NR_MS_NS) + 1);
        if (n > 0 && p[0].revents != 0 && read(fd, &info, sizeof(info)) == sizeof(info)) {
            end = on_signal(s, &info);
        } else if (s->giver != NULL) {
            step_upgrade(s);
        }
    }
    close(fd);
    if (s->giver != NULL) {
        end_upgrade(s, "this server was told to end");
    }
}

static void serve_until_end(struct serve *s)
{
    serve_notify("READY=1");
    atomic_store(&s->serving, true);
    wait_for_end(s);
    atomic_store(&s->serving, false);
}

static void end_at_second_signal(void)
{
    struct sigaction act = {.sa_handler = on_second_signal};
    sigset_t again;
    sigaction(SIGTERM, &act, NULL);
    sigaction(SIGINT, &act, NULL);
    sigemptyset(&again);
    sigaddset(&again, SIGTERM);
    sigaddset(&again, SIGINT);
    pthread_sigmask(SIG_UNBLOCK, &again, NULL);
}

static void lame_duck(struct serve *s)
{
    nr_log(NR_LOG_INFO, "serve", "not ready any more, still serving",
           NR_KV_DBL("seconds", (double)s->o.lame_duck_ns / 1e9));
    nr_node_unready(s->node);
    struct timespec left = {.tv_sec = (time_t)(s->o.lame_duck_ns / NR_S_NS),
                            .tv_nsec = (long)(s->o.lame_duck_ns % NR_S_NS)};
    while (nanosleep(&left, &left) != 0 && errno == EINTR) {
    }
}

static bool answer_the_rest(struct serve *s)
{
    int64_t now_ns = nr_clock_now(),
            limit_ns = NR_MIN((int64_t)s->o.exit_timeout_ns, INT64_MAX / 2);
    int64_t linger_ns = NR_MIN((int64_t)s->o.upgrade_linger_ns, INT64_MAX / 2);
    return s->handed ? nr_node_leave(s->node, now_ns + linger_ns, now_ns + limit_ns)
                     : nr_node_drain(s->node, now_ns + limit_ns);
}

static void drain(struct serve *s)
{
    end_at_second_signal();
    if (!s->handed) { /* else these would speak of the other process */
        serve_notify("STOPPING=1");
    }
    if (s->o.lame_duck_ns > 0 && !s->handed) {
        lame_duck(s);
    }
    nr_log(NR_LOG_INFO, "serve", "draining",
           NR_KV_INT("connections", nr_server_connections(nr_node_server(s->node))));
    if (!answer_the_rest(s)) {
        nr_log(NR_LOG_WARN, "serve", "not all requests were answered within --exit-timeout",
               NR_KV_INT("connections", nr_server_connections(nr_node_server(s->node))));
    }
    struct sigaction act = {.sa_handler = on_stuck};
    sigaction(SIGALRM, &act, NULL);
    alarm(STUCK_AFTER_S);
}

static int failed(const struct nr_err *err, int code)
{
    fprintf(stderr, "naru serve: %s\n", err->text);
    return code;
}

/* Every model is at rest: is that a start, or the end? */
static nr_status begin(struct serve *s, struct nr_err *err)
{
    struct nr_repository_counts n = nr_repository_count(nr_node_repository(s->node));
    if (s->o.exit_on_error && n.unavailable > 0) {
        serve_banner(s->node, s->since_ns, stdout);
        return nr_fail(err, NARU_PRECONDITION, "%u of %u models did not load (--exit-on-error)",
                       n.unavailable, n.models);
    }
    return s->taker != NULL ? replace(s, err) : NARU_OK;
}

static int cannot_begin(struct serve *s, const struct nr_err *err, int code)
{
    nr_taker_free(s->taker, err->text);
    s->taker = NULL;
    return failed(err, code);
}

static int serve_models(struct serve *s)
{
    struct nr_err err = {0};
    if (wait_ready(s, &err) != NARU_OK) {
        drain(s);
        return err.text[0] != '\0' ? cannot_begin(s, &err, EXIT_FAILURE) : 0;
    }
    if (begin(s, &err) != NARU_OK) {
        return cannot_begin(s, &err, EXIT_FAILURE);
    }
    serve_banner(s->node, s->since_ns, stdout);
    serve_until_end(s);
    drain(s);
    return 0;
}

/* connection: see inherited. */
static int serve(struct serve *s, int connection)
{
    struct nr_err err = {0};
    if (open_log(s, &err) != NARU_OK) {
        return failed(&err, err.status == NARU_INVALID ? EX_CONFIG : EXIT_FAILURE);
    }
    for (unsigned i = 0; i < s->values.strangers.n; i++) {
        nr_log(NR_LOG_WARN, "serve", "an environment variable has no effect",
               NR_KV_TEXT("reason", s->values.strangers.items[i]));
    }
    if (serve_configure(&s->o, &s->shelves, &s->cfg, &err) != NARU_OK) {
        return failed(&err, EX_CONFIG);
    }
    if (take_over(s, connection, &err) != NARU_OK) {
        return cannot_begin(s, &err, err.status == NARU_DENIED ? EX_CONFIG : EXIT_FAILURE);
    }
    if (start(s, &err) != NARU_OK) {
        return cannot_begin(s, &err, EXIT_FAILURE);
    }
    return serve_models(s);
}

static void done(struct serve *s)
{
    nr_taker_free(s->taker, "it was told to end");
    nr_node_free(s->node);
    nr_given_done(&s->given);
    nr_gallery_close(s->gallery);
    nr_plugins_free(s->shelves.plugins);
    nr_agents_free(s->shelves.agents);
    nr_batchings_free(s->shelves.batchings);
    nr_rebirth_free(s->rebirth);
    option_done(&s->values);
    if (s->log_fd >= 0) {
        close(s->log_fd);
    }
}

static int run(int argc, char **argv)
{
    struct serve s = {.log_fd = -1, .since_ns = nr_clock_now()};
    struct nr_err err = {0};
    int connection = inherited(); /* before the options look for variables that they do not know */
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
    s.shelves = (struct serve_shelves){
        .plugins = nr_plugins_new(), .agents = nr_agents_new(), .batchings = nr_batchings_new()};
    if (nr_rebirth_note(&s.rebirth, &err) != NARU_OK) {
        s.rebirth = NULL; /* told when it is needed */
    }
    int code = serve(&s, connection);
    done(&s);
    return code;
}

const struct command command_serve = {"serve", "serve models over HTTP and gRPC", run,
                                      &serve_table};
