/* Connections, schedule and statistics of a load run; the protocols are client_h1.c, client_h2.c.
 *
 * DESIGN. One thread on the project's own event loop. The cost that counts is the generator's own:
 * it shares the machine with the server, so a request costs one send, one recv and two reads of the
 * clock. A closed loop sends the next request in the same callback that read the answer. An open
 * loop sleeps in the kernel until SPIN_NS before the next instant and then polls, since a timer of
 * the kernel alone is 50 µs late.
 *
 *   connection:  CLOSED ─connect_start─▶ CONNECTING ─on_connected─▶ OPEN ─conn_end─▶ CLOSED
 *                                            └──────conn_end, again after RETRY_NS─────┘
 *   run:         WARM ─open_window─▶ WINDOW ─close_window─▶ DRAIN (what is in flight may finish)
 *
 * INVARIANTS
 * 1. A connection is in `idle` exactly when it is OPEN and has a free shot.
 * 2. n_busy of the load is the sum over its connections; the backlog holds instants that are due
 *    and not sent, oldest first, never thrown away.
 * 3. conn_end is never called below a protocol's feed or fire: both may be in the middle of the
 *    session that it would free. They report by return value, or leave c->failed behind.
 */
#include "load/client.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "load/client_priv.h"

#define SCRATCH_BYTES (256u << 10)
#define SPIN_NS (50 * NR_US_NS)
#define SWEEP_NS (50 * NR_MS_NS)
#define RETRY_NS (10 * NR_MS_NS)
#define CONNECT_NS (5 * NR_S_NS)
#define BACKLOG_MAX ((size_t)1 << 24)

typedef enum load_phase {
    CONNECT,
    WARM,
    WINDOW,
    DRAIN
} load_phase;

struct nr_load {
    const struct nr_load_cfg *cfg;
    const struct nr_load_ops *ops;
    struct nr_loop *loop;
    struct nr_load_conn **conns; /* [max_conns], n_conns made */
    unsigned n_conns, max_conns, n_open, n_connecting, n_busy;
    struct nr_list idle;
    load_phase phase;
    int last_errno; /* of a connection that could not be made */

    struct nr_schedule schedule;
    int64_t start_ns, due_ns; /* due_ns: of the next arrival, absolute */
    int64_t from_ns, to_ns;   /* the window as planned */
    int64_t opened_ns, drain_ns, sweep_ns;
    int64_t client_cpu_ns, watched_cpu_ns; /* at the window's opening */
    int64_t *backlog;                      /* ring */
    size_t backlog_cap, backlog_at, backlog_n;
    struct nr_load_result r;
    char *scratch;
};

const char *nr_load_outcome_text(nr_load_outcome o)
{
    static const char *const texts[] = {
#define TEXT(symbol, text) [symbol] = (text),
        NR_LOAD_OUTCOME_MAP(TEXT)
#undef TEXT
    };
    return o < NR_LOAD_OUTCOMES ? texts[o] : "unknown";
}

const struct nr_load_target *nr_load_target_of(const struct nr_load_conn *c)
{
    return c->load->cfg->target;
}

/* --- backlog ---------------------------------------------------------------------------------- */

static void backlog_push(struct nr_load *l, int64_t due_ns)
{
    if (l->backlog_n == l->backlog_cap) {
        size_t cap = l->backlog_cap > 0 ? l->backlog_cap * 2 : 1024;
        int64_t *ring = cap <= BACKLOG_MAX ? nr_try_alloc(cap * sizeof(*ring)) : NULL;
        if (ring == NULL) {
            l->r.overflowed = true;
            return;
        }
        for (size_t i = 0; i < l->backlog_n; i++) {
            ring[i] = l->backlog[(l->backlog_at + i) % l->backlog_cap];
        }
        nr_free(l->backlog);
        l->backlog = ring;
        l->backlog_cap = cap;
        l->backlog_at = 0;
    }
    l->backlog[(l->backlog_at + l->backlog_n++) % l->backlog_cap] = due_ns;
    l->r.max_backlog = NR_MAX(l->r.max_backlog, (uint64_t)l->backlog_n);
}

static int64_t backlog_pop(struct nr_load *l)
{
    int64_t due_ns = l->backlog[l->backlog_at];
    l->backlog_at = (l->backlog_at + 1) % l->backlog_cap;
    l->backlog_n--;
    return due_ns;
}

/* --- shots ------------------------------------------------------------------------------------ */

static bool may_send(const struct nr_load *l)
{
    return (l->phase == WARM || l->phase == WINDOW) &&
           (l->cfg->max_requests == 0 || l->r.sent < l->cfg->max_requests);
}

static void list_idle(struct nr_load_conn *c)
{
    bool free_shot = c->state == NR_LOAD_OPEN && c->n_busy < c->load->cfg->streams;
    if (free_shot && nr_list_empty(&c->node)) {
        nr_list_append(&c->load->idle, &c->node);
    } else if (!free_shot) {
        nr_list_remove(&c->node);
    }
}

static void fire(struct nr_load_conn *c, struct nr_load_shot *s, int64_t sched_ns, int64_t now_ns)
{
    struct nr_load *l = c->load;
    *s = (struct nr_load_shot){
        .sched_ns = sched_ns, .send_ns = now_ns, .busy = true, .grpc_status = -1};
    c->n_busy++;
    l->n_busy++;
    l->r.sent++;
    nr_status st = l->ops->fire(c, s);
    if (st != NARU_OK && c->failed == NARU_OK) {
        c->failed = st;
    }
}

/* A request has ended: counted, and its shot is free. */
static void settle(struct nr_load_conn *c, struct nr_load_shot *s, nr_load_outcome outcome,
                   int64_t now_ns)
{
    struct nr_load *l = c->load;
    s->busy = false;
    c->n_busy--;
    l->n_busy--;
    if (l->phase == WINDOW) {
        l->r.outcomes[outcome]++;
        if (outcome <= NR_LOAD_STATUS) {
            l->r.answered++;
            l->r.answered_ns += now_ns - s->sched_ns;
        }
    }
    if ((outcome == NR_LOAD_GOOD || outcome == NR_LOAD_TIMED_OUT) && s->sched_ns >= l->from_ns &&
        s->sched_ns < l->to_ns) {
        nr_hist_add(l->r.response, (uint64_t)(now_ns - s->sched_ns), 1);
        nr_hist_add(l->r.service, (uint64_t)(now_ns - s->send_ns), 1);
        nr_hist_add(l->r.send_delay, (uint64_t)(s->send_ns - s->sched_ns), 1);
    }
}

void nr_load_shot_done(struct nr_load_conn *c, struct nr_load_shot *s, nr_load_outcome outcome)
{
    struct nr_load *l = c->load;
    int64_t now_ns = nr_clock_now();
    settle(c, s, outcome, now_ns);
    if (c->failed != NARU_OK) {
        return; /* nothing more can be sent here */
    }
    if (l->cfg->arrival == NR_ARRIVAL_CLOSED) {
        if (may_send(l)) {
            fire(c, s, now_ns, now_ns);
        }
    } else if (l->backlog_n > 0) {
        fire(c, s, backlog_pop(l), now_ns);
    }
}

static struct nr_load_shot *free_shot(struct nr_load_conn *c)
{
    for (unsigned i = 0; i < c->load->cfg->streams; i++) {
        if (!c->shots[i].busy) {
            return &c->shots[i];
        }
    }
    return NULL;
}

/* --- connections ------------------------------------------------------------------------------ */

static void on_event(struct nr_watch *w, uint32_t events);
static void connect_start(struct nr_load_conn *c);

static void on_retry(struct nr_timer *t)
{
    struct nr_load_conn *c = nr_container_of(t, struct nr_load_conn, retry);
    connect_start(c);
}

static void conn_close(struct nr_load_conn *c)
{
    struct nr_load *l = c->load;
    if (c->state == NR_LOAD_CLOSED) {
        return;
    }
    if (c->state == NR_LOAD_OPEN) {
        l->n_open--;
    } else {
        l->n_connecting--;
    }
    c->state = NR_LOAD_CLOSED;
    list_idle(c);
    l->ops->close(c);
    nr_loop_unwatch(l->loop, &c->watch);
    (void)close(c->watch.fd);
    c->failed = NARU_OK;
}

/* The connection is over: what was in flight has this outcome, and it is opened again. */
static void conn_end(struct nr_load_conn *c, nr_load_outcome outcome)
{
    struct nr_load *l = c->load;
    bool was_open = c->state == NR_LOAD_OPEN;
    int64_t now_ns = nr_clock_now();
    conn_close(c);
    for (unsigned i = 0; i < l->cfg->streams; i++) {
        if (c->shots[i].busy) {
            settle(c, &c->shots[i], outcome, now_ns);
        }
    }
    if (may_send(l) || l->backlog_n > 0) {
        nr_loop_timer_set(l->loop, &c->retry, now_ns + (was_open ? 0 : RETRY_NS));
    }
}

static void flush(struct nr_load_conn *c)
{
    nr_status st = c->failed != NARU_OK ? c->failed : c->load->ops->flush(c);
    if (st != NARU_OK && st != NARU_AGAIN) {
        conn_end(c, NR_LOAD_BROKEN);
        return;
    }
    nr_loop_rewatch(c->load->loop, &c->watch, st == NARU_OK ? EPOLLIN : EPOLLIN | EPOLLOUT);
    list_idle(c);
}

/* Sends what waits, or starts closed-loop work, on a connection that is open. */
static void fill(struct nr_load_conn *c)
{
    struct nr_load *l = c->load;
    struct nr_load_shot *s;
    bool closed = l->cfg->arrival == NR_ARRIVAL_CLOSED;
    unsigned fired = 0;
    while (c->state == NR_LOAD_OPEN && (closed ? may_send(l) : l->backlog_n > 0) &&
           (s = free_shot(c)) != NULL) {
        int64_t now_ns = nr_clock_now();
        fire(c, s, closed ? now_ns : backlog_pop(l), now_ns);
        fired++;
    }
    if (fired > 0) {
        flush(c);
    }
}

static void on_connected(struct nr_load_conn *c)
{
    struct nr_load *l = c->load;
    int e = 0;
    socklen_t len = sizeof(e);
    if (getsockopt(c->watch.fd, SOL_SOCKET, SO_ERROR, &e, &len) != 0 || e != 0) {
        l->last_errno = e;
        conn_end(c, NR_LOAD_BROKEN);
        return;
    }
    l->n_connecting--;
    l->n_open++;
    l->r.reconnects += c->was_open;
    c->was_open = true;
    c->state = NR_LOAD_OPEN;
    if (l->ops->open(c) != NARU_OK) {
        conn_end(c, NR_LOAD_BROKEN);
        return;
    }
    flush(c); /* HTTP/2: the preface */
    if (c->state == NR_LOAD_OPEN) {
        fill(c);
    }
}

static void on_readable(struct nr_load_conn *c)
{
    struct nr_load *l = c->load;
    ssize_t n;
    do {
        n = recv(c->watch.fd, l->scratch, SCRATCH_BYTES, 0);
        if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
            break;
        }
        nr_status st = NARU_IO;
        if (n > 0) {
            l->r.bytes_in += (uint64_t)n;
            st = l->ops->feed(c, l->scratch, (size_t)n);
        }
        if (st != NARU_OK) {
            bool broken = st == NARU_IO || st == NARU_CANCELLED;
            conn_end(c, broken ? NR_LOAD_BROKEN : NR_LOAD_MALFORMED);
            return;
        }
    } while (n == SCRATCH_BYTES);
    flush(c);
}

static void on_event(struct nr_watch *w, uint32_t events)
{
    struct nr_load_conn *c = nr_container_of(w, struct nr_load_conn, watch);
    if (c->state == NR_LOAD_CONNECTING) {
        on_connected(c);
    } else if ((events & (EPOLLIN | EPOLLERR | EPOLLHUP)) != 0) {
        on_readable(c);
    } else {
        flush(c);
    }
}

static void connect_start(struct nr_load_conn *c)
{
    struct nr_load *l = c->load;
    const struct nr_sock_addr *a = &l->cfg->target->addr;
    int one = 1;
    int fd = socket(a->addr.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        l->last_errno = errno;
        nr_loop_timer_set(l->loop, &c->retry, nr_clock_now() + RETRY_NS);
        return;
    }
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    c->watch = (struct nr_watch){.fd = fd, .on_event = on_event};
    int failed = connect(fd, (const struct sockaddr *)&a->addr, a->len);
    if ((failed != 0 && errno != EINPROGRESS) ||
        nr_loop_watch(l->loop, &c->watch, EPOLLOUT) != NARU_OK) {
        l->last_errno = errno;
        (void)close(fd);
        nr_loop_timer_set(l->loop, &c->retry, nr_clock_now() + RETRY_NS);
        return;
    }
    c->state = NR_LOAD_CONNECTING;
    l->n_connecting++;
}

static void conn_new(struct nr_load *l)
{
    struct nr_load_conn *c = nr_new(struct nr_load_conn);
    c->load = l;
    nr_list_init(&c->node);
    c->shots = nr_new_array(struct nr_load_shot, l->cfg->streams);
    c->retry.on_timer = on_retry;
    l->conns[l->n_conns++] = c;
    connect_start(c);
}

/* --- the run ---------------------------------------------------------------------------------- */

/* CPU time of other processes: the clock of a process counts in nanoseconds what utime and stime
 * show in ticks, threads that have ended included. */
static nr_status watched_cpu(const struct nr_load_cfg *cfg, int64_t *ret_ns, struct nr_err *err)
{
    int64_t sum_ns = 0;
    for (unsigned i = 0; i < cfg->n_pids; i++) {
        clockid_t clock;
        struct timespec t;
        /* lint: allow clock_gettime: another process's CPU time */
        if (clock_getcpuclockid(cfg->pids[i], &clock) != 0 || clock_gettime(clock, &t) != 0) {
            return nr_fail(err, NARU_NOT_FOUND, "no process %d to measure", (int)cfg->pids[i]);
        }
        sum_ns += (int64_t)t.tv_sec * NR_S_NS + t.tv_nsec;
    }
    *ret_ns = sum_ns;
    return NARU_OK;
}

static nr_status open_window(struct nr_load *l, struct nr_err *err)
{
    nr_status st = watched_cpu(l->cfg, &l->watched_cpu_ns, err);
    l->client_cpu_ns = nr_clock_thread_cpu();
    l->opened_ns = nr_clock_now();
    if (l->cfg->arrival == NR_ARRIVAL_CLOSED) { /* nothing was planned: a late opening moves it */
        l->from_ns = l->opened_ns;
        l->to_ns = l->opened_ns + l->cfg->run_ns;
    }
    l->phase = WINDOW;
    return st;
}

static nr_status close_window(struct nr_load *l, struct nr_err *err)
{
    int64_t now_ns = nr_clock_now(), cpu_ns = 0;
    nr_status st = watched_cpu(l->cfg, &cpu_ns, err);
    if (l->phase == WINDOW) {
        l->r.window_ns = now_ns - l->opened_ns;
        l->r.client_cpu_ns = nr_clock_thread_cpu() - l->client_cpu_ns;
        l->r.watched_cpu_ns = cpu_ns - l->watched_cpu_ns;
    }
    l->phase = DRAIN;
    l->drain_ns = now_ns;
    return st;
}

/* Takes arrivals that are due into the backlog and sends what can be sent. */
static void arrive(struct nr_load *l, int64_t now_ns)
{
    while (l->due_ns <= now_ns && l->due_ns < l->to_ns && may_send(l) &&
           (l->cfg->max_requests == 0 || l->r.sent + l->backlog_n < l->cfg->max_requests)) {
        l->r.planned += l->due_ns >= l->from_ns;
        backlog_push(l, l->due_ns);
        l->due_ns = l->start_ns + nr_schedule_next(&l->schedule);
    }
    while (l->backlog_n > 0 && !nr_list_empty(&l->idle)) {
        fill(nr_container_of(l->idle.next, struct nr_load_conn, node));
    }
    while (l->backlog_n > l->n_connecting && l->n_conns < l->max_conns) {
        conn_new(l);
    }
}

static void sweep(struct nr_load *l, int64_t now_ns)
{
    for (unsigned i = 0; i < l->n_conns; i++) {
        struct nr_load_conn *c = l->conns[i];
        bool late = false;
        for (unsigned s = 0; s < l->cfg->streams && c->n_busy > 0; s++) {
            late |= c->shots[s].busy && now_ns - c->shots[s].send_ns > l->cfg->timeout_ns;
        }
        if (late) {
            conn_end(c, NR_LOAD_TIMED_OUT);
        }
    }
    l->sweep_ns = now_ns + SWEEP_NS;
}

static nr_status connect_all(struct nr_load *l, struct nr_err *err)
{
    int64_t give_up_ns = nr_clock_now() + CONNECT_NS;
    for (unsigned i = 0; i < l->cfg->connections; i++) {
        conn_new(l);
    }
    while (l->n_open < l->cfg->connections) {
        if (l->last_errno != 0 || nr_clock_now() > give_up_ns) {
            char text[NR_SOCK_TEXT_MAX];
            nr_sock_addr_format(&l->cfg->target->addr, text);
            return nr_fail(err, NARU_UNAVAILABLE, "cannot connect to %s: %s", text,
                           l->last_errno != 0 ? strerrordesc_np(l->last_errno)
                                              : "no answer within 5 s");
        }
        nr_loop_turn(l->loop, SWEEP_NS);
    }
    return NARU_OK;
}

static int64_t wait_ns(const struct nr_load *l, int64_t now_ns)
{
    int64_t until_ns = l->sweep_ns;
    if (l->phase == WARM) {
        until_ns = NR_MIN(until_ns, l->from_ns);
    } else if (l->phase == WINDOW) {
        until_ns = NR_MIN(until_ns, l->to_ns);
    }
    if (l->cfg->arrival != NR_ARRIVAL_CLOSED && may_send(l)) {
        until_ns = NR_MIN(until_ns, l->due_ns - SPIN_NS);
    }
    return NR_MAX(until_ns - now_ns, INT64_C(0));
}

static bool is_over(const struct nr_load *l, int64_t now_ns)
{
    bool quiet = l->n_busy == 0 && l->backlog_n == 0;
    return l->phase == DRAIN && (quiet || now_ns - l->drain_ns > l->cfg->timeout_ns + NR_S_NS);
}

static nr_status run(struct nr_load *l, struct nr_err *err)
{
    const struct nr_load_cfg *cfg = l->cfg;
    nr_status st = connect_all(l, err);
    if (st != NARU_OK) {
        return st;
    }
    l->start_ns = nr_clock_now();
    l->from_ns = l->start_ns + cfg->warm_ns;
    l->to_ns = l->from_ns + cfg->run_ns;
    l->sweep_ns = l->start_ns + SWEEP_NS;
    l->phase = WARM;
    nr_schedule_init(&l->schedule, cfg->arrival, cfg->rate_per_s, cfg->seed);
    if (cfg->arrival != NR_ARRIVAL_CLOSED) {
        l->due_ns = l->start_ns + nr_schedule_next(&l->schedule);
    } else if (cfg->warm_ns > 0) {
        for (unsigned i = 0; i < l->n_conns; i++) {
            fill(l->conns[i]);
        }
    }
    for (int64_t now_ns = l->start_ns; st == NARU_OK && !is_over(l, now_ns);
         now_ns = nr_clock_now()) {
        if (l->phase == WARM && now_ns >= l->from_ns) {
            st = open_window(l, err);
            for (unsigned i = 0; cfg->arrival == NR_ARRIVAL_CLOSED && i < l->n_conns; i++) {
                fill(l->conns[i]);
            }
        }
        if (cfg->arrival != NR_ARRIVAL_CLOSED) {
            arrive(l, now_ns); /* also what was due before the window closes below */
        }
        bool all_sent = cfg->max_requests > 0 && l->r.sent >= cfg->max_requests;
        if (l->phase != DRAIN &&
            (now_ns >= l->to_ns || (all_sent && l->n_busy == 0 && l->backlog_n == 0))) {
            st = close_window(l, err);
            continue;
        }
        if (now_ns >= l->sweep_ns) {
            sweep(l, now_ns);
        }
        nr_loop_turn(l->loop, wait_ns(l, nr_clock_now()));
    }
    l->r.unanswered = l->n_busy + l->backlog_n;
    return st;
}

static nr_status check(const struct nr_load_cfg *cfg, struct nr_err *err)
{
    if (cfg->connections == 0 || cfg->streams == 0 || cfg->n_pids > NR_LOAD_PIDS_MAX ||
        cfg->warm_ns < 0 || cfg->run_ns <= 0 || cfg->timeout_ns <= 0) {
        return nr_fail(err, NARU_INVALID,
                       "connections, streams, the run and the time-out must be above zero");
    }
    if (cfg->streams > 1 && cfg->target->proto == NR_LOAD_HTTP1) {
        return nr_fail(err, NARU_INVALID,
                       "HTTP/1.1 carries one request at a time on a connection, not %u",
                       cfg->streams);
    }
    if (cfg->arrival != NR_ARRIVAL_CLOSED && !(cfg->rate_per_s > 0 && cfg->rate_per_s <= 1e9)) {
        return nr_fail(err, NARU_INVALID,
                       "an open loop needs a rate above 0 and up to 1e9 a second");
    }
    return NARU_OK;
}

void nr_load_cfg_default(struct nr_load_cfg *cfg)
{
    *cfg = (struct nr_load_cfg){.connections = 1,
                                .streams = 1,
                                .warm_ns = NR_S_NS / 5,
                                .run_ns = NR_S_NS,
                                .timeout_ns = 10 * NR_S_NS};
}

nr_status nr_load_run(const struct nr_load_cfg *cfg, struct nr_load_result *ret, struct nr_err *err)
{
    nr_status st = check(cfg, err);
    if (st != NARU_OK) {
        return st;
    }
    struct nr_load l = {.cfg = cfg};
    st = nr_loop_new(0, &l.loop, err);
    if (st != NARU_OK) {
        return st;
    }
    nr_list_init(&l.idle);
    l.ops = cfg->target->proto == NR_LOAD_HTTP1 ? &nr_load_h1_ops : &nr_load_h2_ops;
    l.max_conns = NR_MAX(cfg->connections, cfg->max_connections);
    l.conns = nr_new_array(struct nr_load_conn *, l.max_conns);
    l.scratch = nr_alloc(SCRATCH_BYTES);
    l.r.response = nr_hist_new();
    l.r.service = nr_hist_new();
    l.r.send_delay = nr_hist_new();
    st = run(&l, err);
    for (unsigned i = 0; i < l.n_conns; i++) {
        nr_loop_timer_cancel(l.loop, &l.conns[i]->retry);
        conn_close(l.conns[i]);
        nr_free(l.conns[i]->shots);
        nr_free(l.conns[i]);
    }
    nr_loop_free(l.loop);
    nr_free(l.conns);
    nr_free(l.scratch);
    nr_free(l.backlog);
    if (st == NARU_OK) {
        *ret = l.r;
    } else {
        nr_load_result_done(&l.r);
    }
    return st;
}

void nr_load_result_done(struct nr_load_result *r)
{
    nr_hist_free(r->response);
    nr_hist_free(r->service);
    nr_hist_free(r->send_delay);
    *r = (struct nr_load_result){0};
}
