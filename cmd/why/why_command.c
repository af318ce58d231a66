/* naru why: asks a running server why a model is as fast as it is, for people or as JSON.
 *
 * Thin: options → GET /v2/models/M/why → what came. Exit codes: 0 answered, 1 not, 2 bad usage.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/arena.h"
#include "base/clock.h"
#include "http/http_client.h"
#include "naru/command.h"

struct why_options {
    const char *url, *seconds;
    uint64_t timeout_ns;
    unsigned version;
    bool json;
};

#define O(field) offsetof(struct why_options, field)

static const struct option_def defs[] = {
    {.group = "Options",
     .name = "url",
     .kind = OPTION_TEXT,
     .offset = O(url),
     .preset = "http://127.0.0.1:8000",
     .arg = "URL",
     .help = "the server's HTTP port"},
    {.name = "seconds",
     .kind = OPTION_TEXT,
     .offset = O(seconds),
     .preset = "1",
     .arg = "S",
     .help = "how long to watch, 0.1 to 60 (seconds, or a time like 500ms)"},
    {.name = "model-version",
     .kind = OPTION_UINT,
     .offset = O(version),
     .preset = "0",
     .arg = "N",
     .help = "a version of the model; 0: the one that is served"},
    {.name = "json", .kind = OPTION_BOOL, .offset = O(json), .preset = "false", .help = "JSON"},
    {.name = "timeout",
     .kind = OPTION_DURATION,
     .offset = O(timeout_ns),
     .preset = "10s",
     .arg = "TIME",
     .unit_ns = UINT64_C(1000000000),
     .help = "how long the server may take beyond that"},
};

static const struct option_table table = {
    .command = "why",
    .synopsis = "MODEL",
    .summary = "what keeps a model from being faster, and what would change it",
    .examples = "naru why resnet50\n"
                "naru why resnet50 --seconds 10 --url http://127.0.0.1:8000\n"
                "naru why resnet50 --json\n",
    .defs = defs,
    .n_defs = sizeof(defs) / sizeof(defs[0])};

/* Model names are [A-Za-z0-9._-]; whatever else was typed must not change the path. */
static void add_name(struct nr_text *t, const char *name)
{
    for (; *name != '\0'; name++) {
        unsigned char c = (unsigned char)*name;
        bool plain = (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') ||
                     strchr("-._~", c) != NULL;
        nr_text_fmt(t, plain ? "%c" : "%%%02X", c);
    }
}

static int print_answer(const struct nr_http_answer *r)
{
    if (r->status == 200) {
        size_t n = fwrite(r->body.ptr, 1, r->body.len, stdout);
        return n == r->body.len && fflush(stdout) == 0 ? 0 : 1;
    }
    /* {"error":"…"} as it is: the text says what is wrong */
    fprintf(stderr, "naru why: the server answers %u: " NR_STR_FMT "\n", r->status,
            NR_STR_ARG(nr_str_trim(r->body)));
    return 1;
}

/* "2", "0.5" or "500ms". */
static bool read_seconds(const struct why_options *o, uint64_t *ret_ns)
{
    double s;
    if (nr_str_to_double(nr_str_from(o->seconds), &s) && s >= 0 && s <= 1e6) {
        *ret_ns = (uint64_t)(s * 1e9);
        return true;
    }
    return nr_str_to_duration(nr_str_from(o->seconds), 1, ret_ns);
}

static int ask(const struct why_options *o, const char *model)
{
    struct nr_err err = {0};
    uint64_t window_ns;
    if (!read_seconds(o, &window_ns) || window_ns < 100000000u || window_ns > 60000000000u) {
        fprintf(stderr, "naru why: --seconds: '%s' is not from 0.1 to 60 seconds\n", o->seconds);
        return 2;
    }
    struct nr_http_answer answer;
    struct nr_arena a;
    struct nr_text url;
    const struct nr_header accept = {NR_STR("Accept"),
                                     o->json ? NR_STR("application/json") : NR_STR("text/plain")};
    struct nr_http_ask q = {
        .headers = &accept, .n_headers = 1, .timeout_ns = (int64_t)(window_ns + o->timeout_ns)};
    struct nr_str base = nr_str_from(o->url);
    base.len -= base.len > 0 && base.ptr[base.len - 1] == '/';
    nr_text_init(&url, 8192);
    nr_text_add(&url, base.ptr, base.len);
    nr_text_str(&url, "/v2/models/");
    add_name(&url, model);
    if (o->version > 0) {
        nr_text_fmt(&url, "/versions/%u", o->version);
    }
    nr_text_fmt(&url, "/why?seconds=%" PRIu64 ".%03" PRIu64, window_ns / 1000000000u,
                window_ns / 1000000u % 1000u);
    nr_arena_init(&a, 0);
    nr_status st = url.failed ? nr_fail(&err, NARU_INVALID, "the name of the model is too long")
                              : nr_http_url_parse((struct nr_str){url.data, url.len}, &q.url, &err);
    if (st == NARU_OK) {
        st = nr_http_fetch(&q, &a, &answer, &err);
    }
    int code = st == NARU_OK ? print_answer(&answer) : st == NARU_INVALID ? 2 : 1;
    if (st != NARU_OK) {
        fprintf(stderr, "naru why: %s%s\n", err.text,
                st == NARU_UNAVAILABLE
                    ? "; start one with 'naru serve' or say where it is with --url"
                    : "");
    }
    nr_text_done(&url);
    nr_arena_done(&a);
    return code;
}

/* A request for a text about the command itself; -1: there is none. */
static int about(const struct option_values *v)
{
    if (v->help) {
        option_help(&table, stdout);
    } else if (v->print_man) {
        option_man(&table, stdout);
    } else if (v->version) {
        printf("naru %s\n", NARU_VERSION);
    } else if (v->print_config) {
        option_print_config(v, stdout);
    } else {
        return -1;
    }
    return 0;
}

static int run(int argc, char **argv)
{
    struct why_options o = {0};
    struct option_values values;
    struct nr_err err = {0};
    int code;
    if (option_parse(&table, &o, argc, argv, &values, &err) != NARU_OK) {
        fprintf(stderr, "naru why: %s\n", err.text);
        code = 2;
    } else if ((code = about(&values)) < 0) {
        if (values.positional.n == 1) {
            code = ask(&o, values.positional.items[0]);
        } else {
            fprintf(stderr, "naru why: %s; usage: naru why MODEL [--seconds S] [--url URL]\n",
                    values.positional.n == 0 ? "which model?" : "one model at a time");
            code = 2;
        }
    }
    option_done(&values);
    return code;
}

const struct command command_why = {"why", "what keeps a model from being faster", run, &table};
