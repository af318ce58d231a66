/* The new process of an upgrade: see upgrade.h for the talk.
 *
 * Why the old one's models are part of the offer: in explicit mode what is loaded was said to that
 * process and to nobody else, and in every mode a replacement that cannot serve what is served now
 * is no replacement. Labels that an operator moved come along for the same reason.
 *
 * How it finds the old one without a standing address: it opens a socket under a random name, and
 * sends SIGUSR2 with that name as the signal's value. Who may signal a process is the kernel's matter
 * (kill(2)); so nobody else can ask. Before that it makes sure that the process takes this signal as a
 * message: to any other it would be the end.
 *
 * INVARIANT. t->gone: the connection has ended without "failed", so the old process ended.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "api/upgrade_priv.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "io/file.h"
#include "io/pass.h"

struct moved_label {
    char *model;
    struct nr_traffic_rule rule; /* owns its name; NULL: the model has no labels */
};
struct nr_taker {
    int sock;
    pid_t from;
    bool gone;
    char **models;
    unsigned n_models, models_room;
    const char **load; /* what the configuration borrows */
    struct moved_label *labels;
    unsigned n_labels, labels_room;
};

/* Last words: when nobody hears them there is nobody to tell. */
void nr_upgrade_tell(int sock, const char *line)
{
    struct nr_err err = {0};
    nr_status st = nr_pass_send(sock, line, -1, &err);
    (void)st;
}

void nr_upgrade_fail(int sock, const char *why)
{
    nr_autofree char *line = nr_format("failed %.900s", why);
    nr_upgrade_tell(sock, line);
}

/* --- the offer -------------------------------------------------------------------------------- */

static struct nr_str word(struct nr_str *rest)
{
    return nr_str_cut(*rest, ' ', rest);
}

static char *own(struct nr_str s)
{
    return nr_format(NR_STR_FMT, NR_STR_ARG(s));
}

static void add_model(struct nr_taker *t, struct nr_str name)
{
    if (t->n_models == t->models_room) {
        t->models_room = 2 * t->models_room + 16;
        t->models = nr_realloc(t->models, t->models_room * sizeof(*t->models));
    }
    t->models[t->n_models++] = own(name);
}

static bool add_label(struct nr_taker *t, struct nr_str rest)
{
    struct nr_str model = word(&rest), name = word(&rest), version = word(&rest);
    struct nr_str weight = word(&rest), shadow = word(&rest);
    struct moved_label l = {.model = NULL};
    uint64_t w = 0, s = 0;
    if (name.len > 0 && (!nr_str_to_i64(version, &l.rule.version) || !nr_str_to_u64(weight, &w) ||
                         !nr_str_to_u64(shadow, &s) || w > UINT32_MAX || s > UINT32_MAX)) {
        return false;
    }
    l.model = own(model);
    l.rule.name = name.len > 0 ? own(name) : NULL;
    l.rule.weight = (uint32_t)w;
    l.rule.shadow = (uint32_t)s;
    if (t->n_labels == t->labels_room) {
        t->labels_room = 2 * t->labels_room + 16;
        t->labels = nr_realloc(t->labels, t->labels_room * sizeof(*t->labels));
    }
    t->labels[t->n_labels++] = l;
    return true;
}

/* "listen ADDRESS PORT WHAT" with its descriptor */
static nr_status add_socket(struct nr_given *g, struct nr_str rest, int fd, struct nr_err *err)
{
    struct nr_str address = word(&rest), port = word(&rest);
    uint64_t number;
    if (fd < 0 || !nr_str_to_u64(port, &number) || number > UINT16_MAX) {
        nr_close(fd);
        return nr_fail(err, NARU_INVALID, "a listener of the old process has no socket or no port");
    }
    return nr_given_add(g, fd, address, (uint16_t)number, rest, err);
}

/* Words that are not known are a later release's: what they say, this one does without. */
static nr_status take_line(struct nr_taker *t, struct nr_given *g, const char *line, int fd,
                           bool *ret_end, struct nr_err *err)
{
    struct nr_str rest, what = nr_str_cut(nr_str_from(line), ' ', &rest);
    if (nr_str_is(what, "listen")) {
        return add_socket(g, rest, fd, err);
    }
    nr_close(fd);
    if (nr_str_is(what, "failed")) {
        return nr_fail(err, NARU_CANCELLED, "process %d goes on serving: " NR_STR_FMT, (int)t->from,
                       NR_STR_ARG(rest));
    }
    if (nr_str_is(what, "model")) {
        add_model(t, rest);
    } else if (nr_str_is(what, "label") && !add_label(t, rest)) {
        return nr_fail(err, NARU_INVALID, "the old process sent a label that is none");
    }
    g->all = g->all || nr_str_is(what, "all");
    *ret_end = nr_str_is(what, "end");
    return NARU_OK;
}

static nr_status take_offer(struct nr_taker *t, struct nr_given *g, struct nr_err *err)
{
    char line[NR_PASS_LINE_MAX];
    bool end = false;
    *g = (struct nr_given){.n = 0};
    nr_status st = NARU_OK;
    nr_upgrade_tell(t->sock, NR_UPGRADE_HELLO); /* who has closed may have said why before */
    while (st == NARU_OK && !end) {
        int fd;
        st = nr_pass_receive(t->sock, nr_clock_now() + NR_UPGRADE_TALK_NS, line, &fd, err);
        if (st == NARU_OK) {
            st = take_line(t, g, line, fd, &end, err);
        }
    }
    if (st != NARU_OK) {
        nr_given_done(g);
    }
    return st;
}

nr_status nr_taker_inherit(int fd, struct nr_taker **ret, struct nr_given *g, struct nr_err *err)
{
    struct nr_taker *t = nr_new(struct nr_taker);
    t->sock = fd;
    t->from = getppid();
    (void)fcntl(fd, F_SETFD, FD_CLOEXEC);
    nr_status st = take_offer(t, g, err);
    if (st != NARU_OK) {
        nr_err_prefix(err, "taking over from process %d: ", (int)t->from);
        nr_taker_free(t, NULL);
        return st;
    }
    *ret = t;
    return NARU_OK;
}

/* --- asking ----------------------------------------------------------------------------------- */

/* proc(5): a bit for each signal that the main thread blocks, the lowest in the last of 16 hexadecimal
 * digits. naru's blocks this one to read it itself. */
static bool blocks_signal(pid_t pid, int number)
{
    char path[64], line[256];
    bool blocks = false;
    snprintf(path, sizeof(path), "/proc/%d/status", (int)pid);
    FILE *f = fopen(path, "re");
    while (f != NULL && fgets(line, sizeof(line), f) != NULL) {
        struct nr_str s = nr_str_from(line);
        if (nr_str_starts(s, NR_STR("SigBlk:")) && s.len > 17 && line[s.len - 1] == '\n') {
            char c = line[s.len - 2 - (size_t)(number - 1) / 4];
            int digit = c <= '9' ? c - '0' : c - 'a' + 10;
            blocks = (digit >> (number - 1) % 4 & 1) != 0;
        }
    }
    if (f != NULL) {
        fclose(f);
    }
    return blocks;
}

/* By a pidfd, so that what was looked at is what gets the signal. */
static nr_status ring(pid_t pid, uint64_t name, struct nr_err *err)
{
    siginfo_t info = {0};
    nr_autoclose int fd = (int)syscall(SYS_pidfd_open, pid, 0);
    if (fd < 0) {
        return nr_fail(err, NARU_NOT_FOUND, "there is no process %d to take over from: %m",
                       (int)pid);
    }
    if (syscall(SYS_pidfd_send_signal, fd, 0, NULL, 0) != 0) {
        return nr_fail(err, NARU_DENIED, "process %d is not this user's: %m", (int)pid);
    }
    if (!blocks_signal(pid, SIGUSR2)) {
        return nr_fail(err, NARU_NOT_FOUND,
                       "process %d is no naru server that can be taken over from", (int)pid);
    }
    info.si_signo = SIGUSR2;
    info.si_code = SI_QUEUE;
    info.si_pid = getpid();
    info.si_uid = getuid();
    memcpy(&info.si_value, &name, sizeof(name));
    if (syscall(SYS_pidfd_send_signal, fd, SIGUSR2, &info, 0) != 0) {
        return nr_fail(err, NARU_DENIED, "process %d cannot be asked: %m", (int)pid);
    }
    return NARU_OK;
}

nr_status nr_taker_ask(pid_t from, struct nr_taker **ret, struct nr_given *g, struct nr_err *err)
{
    uint64_t name;
    nr_autoclose int door = -1;
    struct nr_taker *t = nr_new(struct nr_taker);
    t->sock = -1;
    t->from = from;
    nr_status st = nr_pass_listen(&name, &door, err);
    if (st == NARU_OK) {
        st = ring(from, name, err);
    }
    if (st == NARU_OK) {
        st = nr_pass_accept(door, from, nr_clock_now() + NR_UPGRADE_TALK_NS, &t->sock, err);
    }
    if (st == NARU_OK) {
        st = take_offer(t, g, err);
    }
    if (st != NARU_OK) {
        nr_taker_free(t, NULL);
        return st;
    }
    *ret = t;
    return NARU_OK;
}

/* --- loading, serving --------------------------------------------------------------------------- */

void nr_taker_configure(struct nr_taker *t, struct nr_node_cfg *cfg)
{
    struct nr_repository_cfg *r = &cfg->repository;
    cfg->hold = true;
    if (r->mode != NR_CONTROL_EXPLICIT) {
        return;
    }
    t->load = nr_new_array(const char *, r->n_load + t->n_models + 1);
    unsigned n = 0;
    for (; n < r->n_load; n++) {
        t->load[n] = r->load[n];
    }
    for (unsigned i = 0; i < t->n_models; i++) {
        t->load[n++] = t->models[i];
    }
    r->load = t->load;
    r->n_load = n;
}

/* The next line of the old process. *ret_line "": it has gone. */
static nr_status hear(struct nr_taker *t, int64_t deadline_ns, char line[NR_PASS_LINE_MAX],
                      struct nr_err *err)
{
    int fd = -1;
    line[0] = '\0';
    nr_status st =
        t->gone ? NARU_UNAVAILABLE : nr_pass_receive(t->sock, deadline_ns, line, &fd, err);
    nr_close(fd);
    if (st == NARU_UNAVAILABLE) {
        t->gone = true;
        line[0] = '\0';
        return NARU_OK;
    }
    if (st == NARU_OK && nr_str_starts(nr_str_from(line), NR_STR("failed "))) {
        return nr_fail(err, NARU_CANCELLED, "process %d goes on serving: %s", (int)t->from,
                       line + strlen("failed "));
    }
    return st;
}

nr_status nr_taker_look(struct nr_taker *t, struct nr_err *err)
{
    char line[NR_PASS_LINE_MAX];
    nr_status st = t->gone ? NARU_OK : hear(t, 0, line, err);
    return st == NARU_TIMEOUT ? NARU_OK : st;
}

/* Every model that is served there must be served here. One that is not in the repository any more was
 * taken out by somebody (in explicit mode nr_repository_new has refused it). */
static nr_status check_models(const struct nr_taker *t, struct nr_repository *r, struct nr_err *err)
{
    const struct nr_index_entry *all;
    struct nr_arena arena;
    uint32_t n;
    nr_status st = NARU_OK;
    nr_arena_init(&arena, NR_UPGRADE_INDEX_BYTES);
    nr_repository_index(r, false, &arena, &all, &n);
    for (unsigned i = 0; i < t->n_models && st == NARU_OK; i++) {
        const struct nr_index_entry *bad = NULL;
        bool good = false;
        for (uint32_t k = 0; k < n; k++) {
            if (strcmp(all[k].name, t->models[i]) == 0) {
                good = good || all[k].state != NR_VERSION_UNAVAILABLE;
                bad = &all[k];
            }
        }
        if (bad != NULL && !good) {
            st = nr_fail(err, NARU_PRECONDITION,
                         "model '%s' is served by process %d and did not load here: %s",
                         t->models[i], (int)t->from, bad->reason);
        }
    }
    nr_arena_done(&arena);
    return st;
}

/* The labels of one model as they were there; its lines are from `at` on. */
static nr_status place_labels(const struct nr_taker *t, unsigned at, struct nr_repository *r,
                              struct nr_err *err)
{
    struct nr_label_edit edits[4 * NR_TRAFFIC_MAX_LABELS];
    static struct nr_label_counts counts[NR_TRAFFIC_MAX_LABELS]; /* not looked at */
    struct nr_traffic now;
    struct nr_str model = nr_str_from(t->labels[at].model);
    size_t n = 0;
    struct nr_err none = {0};
    if (nr_repository_labels_get(r, model, &now, counts, &none) != NARU_OK) {
        return NARU_OK; /* taken out of the repository: see check_models */
    }
    for (uint32_t i = 0; i < now.n; i++) {
        edits[n++] = (struct nr_label_edit){.label = nr_str_from(now.rules[i].name),
                                            .what = NR_LABEL_REMOVE};
    }
    for (unsigned i = at; i < t->n_labels && n + 3 <= NR_COUNT(edits); i++) {
        const struct nr_traffic_rule *rule = &t->labels[i].rule;
        if (rule->name != NULL && strcmp(t->labels[i].model, t->labels[at].model) == 0) {
            struct nr_label_edit e = {.label = nr_str_from(rule->name), .version = rule->version};
            e.what = NR_LABEL_MOVE;
            edits[n++] = e;
            e.what = NR_LABEL_WEIGHT;
            e.weight = rule->weight;
            edits[n++] = e;
            e.what = NR_LABEL_SHADOW;
            e.weight = rule->shadow;
            edits[n++] = e;
        }
    }
    nr_status st = nr_repository_labels_edit(r, model, edits, n, false, false, err);
    if (st != NARU_OK) {
        nr_err_prefix(err, "labels of model '%s' as process %d has them: ", t->labels[at].model,
                      (int)t->from);
    }
    return st;
}

nr_status nr_taker_ready(struct nr_taker *t, struct nr_node *n, struct nr_err *err)
{
    char line[NR_PASS_LINE_MAX];
    struct nr_repository *r = nr_node_repository(n);
    nr_status st = check_models(t, r, err);
    for (unsigned i = 0; i < t->n_labels && st == NARU_OK; i++) {
        if (i == 0 || strcmp(t->labels[i].model, t->labels[i - 1].model) != 0) {
            st = place_labels(t, i, r, err);
        }
    }
    if (st == NARU_OK && !t->gone) {
        nr_upgrade_tell(t->sock, "ready"); /* what it said last is heard below */
    }
    return st == NARU_OK ? hear(t, nr_clock_now() + NR_UPGRADE_TALK_NS, line, err) : st;
}

nr_status nr_taker_serving(struct nr_taker *t, struct nr_node *n, struct nr_err *err)
{
    char line[NR_PASS_LINE_MAX];
    if (!t->gone) {
        nr_upgrade_tell(t->sock, "serving");
    }
    nr_status st = hear(t, nr_clock_now() + NR_UPGRADE_TALK_NS, line, err);
    if (st == NARU_TIMEOUT) { /* it hangs, and cannot accept either */
        nr_log(NR_LOG_WARN, "upgrade", "the old process has not said that it stopped",
               NR_KV_INT("pid", t->from), NR_KV_TEXT("reason", err->text));
        *err = (struct nr_err){0};
        st = NARU_OK;
    }
    nr_server_look(nr_node_server(n));
    return st;
}

void nr_taker_free(struct nr_taker *t, const char *why)
{
    if (t == NULL) {
        return;
    }
    if (why != NULL && !t->gone && t->sock >= 0) {
        nr_upgrade_fail(t->sock, why);
    }
    nr_close(t->sock);
    for (unsigned i = 0; i < t->n_models; i++) {
        nr_free(t->models[i]);
    }
    for (unsigned i = 0; i < t->n_labels; i++) {
        nr_free(t->labels[i].model);
        char *name = NULL; /* ours, though the rule only lends it */
        memcpy(&name, &t->labels[i].rule.name, sizeof(name));
        nr_free(name);
    }
    nr_free(t->models);
    nr_free(t->load);
    nr_free(t->labels);
    nr_free(t);
}
