/* naru-load: the load generator of src/load on the command line, for scripts/bench and tests/perf.
 * Prints one line of figures, or a JSON object with --json. Exit code 0: the run took place (look
 * at the outcomes), 1: it could not, 2: bad usage. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "load/client.h"

#define FIELDS_MAX NR_LOAD_FIELDS_MAX

struct options {
    const char *url, *body_path;
    const char *fields[FIELDS_MAX];
    unsigned n_fields;
    struct nr_load_cfg cfg;
    pid_t pids[NR_LOAD_PIDS_MAX];
    bool json;
};

static const char usage[] =
    "usage: naru-load --url URL [options]\n"
    "  --url URL           http://HOST:PORT/PATH, h2c://… (HTTP/2), "
    "grpc://HOST:PORT/Service/Method\n"
    "  --body FILE         what is sent; for grpc:// the message without its prefix\n"
    "  --header 'N: V'     may be repeated\n"
    "  --connections N     opened before the clock starts [1]\n"
    "  --max-connections N open loop: more may be opened while none is free [connections]\n"
    "  --streams N         requests in flight on an HTTP/2 connection [1]\n"
    "  --rate R            open loop, R requests a second at equal gaps; without it a closed loop\n"
    "  --poisson           … at exponential gaps\n"
    "  --seed N            of those [1]\n"
    "  --seconds S         length of the window [1]\n"
    "  --warm S            before it [0.2]\n"
    "  --requests N        end after N requests, warm-up included\n"
    "  --timeout S         of one request [10]\n"
    "  --pid PID           measure its CPU time over the window; may be repeated\n"
    "  --json              an object instead of a line\n";

static bool to_seconds(const char *text, int64_t *ret_ns)
{
    double s;
    if (!nr_str_to_double(nr_str_from(text), &s) || s < 0 || s > 1e6) {
        return false;
    }
    *ret_ns = (int64_t)(s * 1e9);
    return true;
}

static bool to_number(const char *text, uint64_t most, uint64_t *ret)
{
    return nr_str_to_u64(nr_str_from(text), ret) && *ret <= most;
}

/* Options without a value; true when `name` was one. */
static bool take_flag(struct options *o, const char *name)
{
    if (strcmp(name, "--poisson") == 0) {
        o->cfg.arrival = NR_ARRIVAL_POISSON;
    } else if (strcmp(name, "--json") == 0) {
        o->json = true;
    } else {
        return false;
    }
    return true;
}

static bool take_count(struct options *o, const char *name, const char *value)
{
    uint64_t n = 0;
    if (!to_number(value, strcmp(name, "--seed") == 0 ? UINT64_MAX : 1u << 30, &n)) {
        return false;
    }
    if (strcmp(name, "--connections") == 0) {
        o->cfg.connections = (unsigned)n;
    } else if (strcmp(name, "--max-connections") == 0) {
        o->cfg.max_connections = (unsigned)n;
    } else if (strcmp(name, "--streams") == 0) {
        o->cfg.streams = (unsigned)n;
    } else if (strcmp(name, "--seed") == 0) {
        o->cfg.seed = n;
    } else if (strcmp(name, "--requests") == 0) {
        o->cfg.max_requests = n;
    } else if (strcmp(name, "--pid") == 0 && o->cfg.n_pids < NR_LOAD_PIDS_MAX) {
        o->pids[o->cfg.n_pids++] = (pid_t)n;
    } else {
        return false;
    }
    return true;
}

static bool take_value(struct options *o, const char *name, const char *value)
{
    if (strcmp(name, "--url") == 0) {
        o->url = value;
    } else if (strcmp(name, "--body") == 0) {
        o->body_path = value;
    } else if (strcmp(name, "--header") == 0 && o->n_fields < FIELDS_MAX) {
        o->fields[o->n_fields++] = value;
    } else if (strcmp(name, "--rate") == 0) {
        if (o->cfg.arrival == NR_ARRIVAL_CLOSED) {
            o->cfg.arrival = NR_ARRIVAL_CONSTANT;
        }
        return nr_str_to_double(nr_str_from(value), &o->cfg.rate_per_s);
    } else if (strcmp(name, "--seconds") == 0) {
        return to_seconds(value, &o->cfg.run_ns);
    } else if (strcmp(name, "--warm") == 0) {
        return to_seconds(value, &o->cfg.warm_ns);
    } else if (strcmp(name, "--timeout") == 0) {
        return to_seconds(value, &o->cfg.timeout_ns);
    } else {
        return take_count(o, name, value);
    }
    return true;
}

static bool parse(struct options *o, int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        if (take_flag(o, argv[i])) {
            continue;
        }
        if (i + 1 >= argc || !take_value(o, argv[i], argv[i + 1])) {
            (void)fprintf(stderr, "naru-load: what is meant by '%s%s%s'?\n", argv[i],
                          i + 1 < argc ? " " : "", i + 1 < argc ? argv[i + 1] : "");
            return false;
        }
        i++;
    }
    if (o->url == NULL) {
        (void)fprintf(stderr, "naru-load: --url is missing\n");
    }
    return o->url != NULL;
}

/* Any path that the caller names, so not the server's resolver of untrusted paths. */
static nr_status read_body(const char *path, struct nr_text *ret, struct nr_err *err)
{
    char piece[8192];
    size_t n;
    FILE *f = fopen(path, "re");
    if (f == NULL) {
        return nr_fail(err, NARU_NOT_FOUND, "cannot open %s: %s", path, strerrordesc_np(errno));
    }
    while ((n = fread(piece, 1, sizeof(piece), f)) > 0) {
        nr_text_add(ret, piece, n);
    }
    bool failed = ferror(f) != 0 || ret->failed;
    (void)fclose(f);
    return failed ? nr_fail(err, NARU_IO, "cannot read all of %s", path) : NARU_OK;
}

static void print_hist(const char *name, const struct nr_hist *h)
{
    static const struct {
        const char *name;
        double q;
    } qs[] = {{"p50", 0.5}, {"p90", 0.9}, {"p99", 0.99}, {"p999", 0.999}, {"max", 1}};
    (void)printf(", \"%s_us\": {\"count\": %llu, \"mean\": %.3f", name,
                 (unsigned long long)nr_hist_count(h), nr_hist_mean(h) / 1e3);
    for (unsigned i = 0; i < NR_COUNT(qs); i++) {
        (void)printf(", \"%s\": %.3f", qs[i].name, (double)nr_hist_quantile(h, qs[i].q) / 1e3);
    }
    (void)printf("}");
}

static void print_json(const struct nr_load_result *r)
{
    double window_s = (double)r->window_ns / 1e9;
    (void)printf("{\"window_s\": %.6f, \"answered\": %llu, \"rate\": %.3f", window_s,
                 (unsigned long long)r->answered,
                 window_s > 0 ? (double)r->answered / window_s : 0);
    (void)printf(", \"answered_s\": %.6f", (double)r->answered_ns / 1e9);
    (void)printf(", \"sent\": %llu, \"planned\": %llu, \"unanswered\": %llu, \"reconnects\": %llu",
                 (unsigned long long)r->sent, (unsigned long long)r->planned,
                 (unsigned long long)r->unanswered, (unsigned long long)r->reconnects);
    (void)printf(", \"bytes_in\": %llu, \"max_backlog\": %llu, \"overflowed\": %s",
                 (unsigned long long)r->bytes_in, (unsigned long long)r->max_backlog,
                 r->overflowed ? "true" : "false");
    (void)printf(", \"client_cpu_ns\": %lld, \"watched_cpu_ns\": %lld", (long long)r->client_cpu_ns,
                 (long long)r->watched_cpu_ns);
    (void)printf(", \"outcomes\": {");
    for (unsigned i = 0; i < NR_LOAD_OUTCOMES; i++) {
        (void)printf("%s\"%s\": %llu", i > 0 ? ", " : "", nr_load_outcome_text((nr_load_outcome)i),
                     (unsigned long long)r->outcomes[i]);
    }
    (void)printf("}");
    print_hist("response", r->response);
    print_hist("service", r->service);
    print_hist("send_delay", r->send_delay);
    (void)printf("}\n");
}

static void print_line(const struct nr_load_result *r)
{
    double n = r->answered > 0 ? (double)r->answered : 1;
    (void)printf("%llu answered, %.0f/s, response p50 %.1f us p99 %.1f us, send delay p99 %.1f us, "
                 "client %.2f us each",
                 (unsigned long long)r->answered, (double)r->answered * 1e9 / (double)r->window_ns,
                 (double)nr_hist_quantile(r->response, 0.5) / 1e3,
                 (double)nr_hist_quantile(r->response, 0.99) / 1e3,
                 (double)nr_hist_quantile(r->send_delay, 0.99) / 1e3,
                 (double)r->client_cpu_ns / n / 1e3);
    if (r->watched_cpu_ns > 0) {
        (void)printf(", server %.2f us each", (double)r->watched_cpu_ns / n / 1e3);
    }
    for (unsigned i = NR_LOAD_GOOD + 1; i < NR_LOAD_OUTCOMES; i++) {
        if (r->outcomes[i] > 0) {
            (void)printf(", %llu %s", (unsigned long long)r->outcomes[i],
                         nr_load_outcome_text((nr_load_outcome)i));
        }
    }
    (void)printf("\n");
}

int main(int argc, char **argv)
{
    struct options o = {0};
    struct nr_err err = {0};
    struct nr_load_target target;
    struct nr_load_result r;
    struct nr_text body;
    if (argc == 2 && strcmp(argv[1], "--help") == 0) {
        (void)fputs(usage, stdout);
        return 0;
    }
    nr_load_cfg_default(&o.cfg);
    o.cfg.seed = 1;
    o.cfg.pids = o.pids;
    if (!parse(&o, argc, argv)) {
        (void)fputs(usage, stderr);
        return 2;
    }
    nr_status st = NARU_OK;
    nr_text_init(&body, (size_t)1 << 30);
    if (o.body_path != NULL) {
        st = read_body(o.body_path, &body, &err);
    }
    if (st == NARU_OK) {
        st = nr_load_target_init(&target, o.url, o.fields, o.n_fields, body.data, body.len, &err);
    }
    nr_text_done(&body);
    if (st == NARU_OK) {
        o.cfg.target = &target;
        st = nr_load_run(&o.cfg, &r, &err);
        nr_load_target_done(&target);
    }
    if (st != NARU_OK) {
        (void)fprintf(stderr, "naru-load: %s\n", err.text);
        return 1;
    }
    if (o.json) {
        print_json(&r);
    } else {
        print_line(&r);
    }
    nr_load_result_done(&r);
    return 0;
}
