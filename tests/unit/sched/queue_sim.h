/* A model's queue, batcher and admission on invented time, driven by a script.
 *
 * Rules, separated by blanks ("L2:" before one applies it to that level only):
 *   max=8 rows  nobatch  order (preserve_ordering)  ragged  delay=µs  pref=2,4
 *   levels=3 def=2  size=2 (max_queue_size)  timeout=µs  override  delays (timeout_action DELAY)
 *   count=4 bytes=100 wait=µs (the server's limits)  places=2
 * Script:
 *   a:r3,p1     request a (a … z) comes: r rows, w width of its rows, i its inputs (bits), p priority,
 *               t own time-out µs, d deadline at µs, c client, b bytes
 *   @500        it is 500 µs now          T     timers go off
 *   !           a place is free           R200  the batch that ran took 200 µs
 *   xa          a is cancelled
 * What happens, in the same notation everywhere:
 *   [ab full]   a and b run as one batch, sealed for that reason
 *   ~1500       nothing yet: look again at 1,500 µs        -   nothing waits
 *   a?wait      a is refused as it comes, and why          a!timeout   it leaves without having run
 */
#ifndef NR_TESTS_QUEUE_SIM_H
#define NR_TESTS_QUEUE_SIM_H

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/str.h"
#include "sched/admit.h"
#include "sched/batcher.h"

#define SIM_REQUESTS 26
#define SIM_INPUTS 3

struct sim {
    struct nr_queue queue;
    struct nr_admit admit;
    struct nr_sched_limits limits;
    struct nr_batch_rules rules;
    struct nr_io_spec inputs[SIM_INPUTS];
    struct nr_request requests[SIM_REQUESTS];
    struct nr_infer_request in[SIM_REQUESTS];
    struct nr_infer_tensor tensors[SIM_REQUESTS][SIM_INPUTS];
    bool waiting[SIM_REQUESTS];
    int64_t now_ns, ran_rows;
    bool running;
    struct nr_text out;
    char text[1024];
};

static inline unsigned sim_name(const struct nr_request *r, const struct sim *s)
{
    return (unsigned)(r - s->requests);
}

static inline int64_t sim_number(struct nr_str text)
{
    uint64_t n = 0;
    if (!nr_str_to_u64(text, &n)) {
        fail_msg("no number: " NR_STR_FMT, NR_STR_ARG(text));
    }
    return (int64_t)n;
}

static inline void sim_says(struct sim *s, unsigned name, char how, nr_refusal why)
{
    nr_text_fmt(&s->out, "%s%c%c%s", s->out.len > 0 ? " " : "", (int)('a' + name), how,
                nr_refusal_text(why));
}

static inline void sim_level_rule(struct nr_queue_rules *l, struct nr_str key, struct nr_str value)
{
    if (nr_str_is(key, "size")) {
        l->max_requests = (unsigned)sim_number(value);
    } else if (nr_str_is(key, "timeout")) {
        l->timeout_ns = sim_number(value) * NR_US_NS;
    } else if (nr_str_is(key, "override")) {
        l->may_override = true;
    } else if (nr_str_is(key, "delays")) {
        l->delays = true;
    } else {
        fail_msg("no rule: " NR_STR_FMT, NR_STR_ARG(key));
    }
}

static inline void sim_preferred(struct nr_batch_rules *rules, struct nr_str value)
{
    while (value.ptr != NULL) {
        rules->preferred[rules->n_preferred++] = sim_number(nr_str_cut(value, ',', &value));
    }
}

static inline void sim_init(struct sim *s, const char *text)
{
    struct nr_queue_rules levels[8] = {0};
    unsigned n_levels = 1, def = 0, places = 1;
    memset(s, 0, sizeof(*s));
    nr_text_init_at(&s->out, s->text, sizeof(s->text));
    s->rules = (struct nr_batch_rules){.max_rows = 8, .batching = true};
    s->limits = (struct nr_sched_limits){
        .max_queue_requests = 1000, .max_queue_bytes = 1 << 30, .max_wait_ns = 1000 * NR_S_NS};
    struct nr_str rest = nr_str_from(text);
    while (rest.len > 0) {
        struct nr_str value, key = nr_str_cut(nr_str_cut(rest, ' ', &rest), '=', &value);
        if (key.len > 3 && key.ptr[0] == 'L' && key.ptr[2] == ':') {
            struct nr_str own = {key.ptr + 3, key.len - 3};
            sim_level_rule(&levels[key.ptr[1] - '1'], own, value);
        } else if (nr_str_is(key, "max")) {
            s->rules.max_rows = sim_number(value);
        } else if (nr_str_is(key, "nobatch")) {
            s->rules.batching = false;
        } else if (nr_str_is(key, "order")) {
            s->rules.in_order = true;
        } else if (nr_str_is(key, "ragged")) {
            s->rules.ragged = s->inputs;
            s->inputs[0].ragged = true;
        } else if (nr_str_is(key, "delay")) {
            s->rules.delay_ns = sim_number(value) * NR_US_NS;
        } else if (nr_str_is(key, "pref")) {
            sim_preferred(&s->rules, value);
        } else if (nr_str_is(key, "levels")) {
            n_levels = (unsigned)sim_number(value);
        } else if (nr_str_is(key, "def")) {
            def = (unsigned)sim_number(value) - 1;
        } else if (nr_str_is(key, "count")) {
            s->limits.max_queue_requests = (unsigned)sim_number(value);
        } else if (nr_str_is(key, "bytes")) {
            s->limits.max_queue_bytes = (uint64_t)sim_number(value);
        } else if (nr_str_is(key, "wait")) {
            s->limits.max_wait_ns = sim_number(value) * NR_US_NS;
        } else if (nr_str_is(key, "places")) {
            places = (unsigned)sim_number(value);
        } else {
            for (unsigned i = 0; i < NR_COUNT(levels); i++) {
                sim_level_rule(&levels[i], key, value);
            }
        }
    }
    nr_queue_init(&s->queue, levels, n_levels, def, s->rules.in_order);
    nr_admit_init(&s->admit, places, s->rules.batching ? s->rules.max_rows : 1);
}

static inline void sim_done(struct sim *s)
{
    for (unsigned i = 0; i < SIM_REQUESTS; i++) {
        if (s->waiting[i]) {
            nr_queue_remove(&s->queue, &s->requests[i]);
        }
    }
    nr_queue_done(&s->queue);
}

static inline void sim_expire(struct sim *s)
{
    struct nr_request *r;
    while ((r = nr_queue_expire(&s->queue, s->now_ns)) != NULL) {
        bool late = r->leaves_ns != 0 && r->leaves_ns <= s->now_ns;
        s->waiting[sim_name(r, s)] = false;
        sim_says(s, sim_name(r, s), '!', late ? NR_REFUSAL_DEADLINE : NR_REFUSAL_TIMEOUT);
    }
}

/* name[:attributes] */
static inline void sim_put(struct sim *s, struct nr_str how)
{
    unsigned n = (unsigned)(how.ptr[0] - 'a');
    struct nr_request *r = &s->requests[n], *victim;
    int64_t rows = 1, width = 4, inputs = 1, own_us = 0, deadline_us = 0, priority = 0;
    *r = (struct nr_request){.queued_ns = s->now_ns, .client = 1, .bytes = 10, .in = &s->in[n]};
    struct nr_str one;
    (void)nr_str_cut(how, ':', &how);
    while (how.len > 0) {
        one = nr_str_cut(how, ',', &how);
        int64_t value = sim_number((struct nr_str){one.ptr + 1, one.len - 1});
        switch (one.ptr[0]) {
        case 'r':
            rows = value;
            break;
        case 'w':
            width = value;
            break;
        case 'i':
            inputs = value;
            break;
        case 'p':
            priority = value;
            break;
        case 't':
            own_us = value;
            break;
        case 'd':
            deadline_us = value;
            break;
        case 'c':
            r->client = (uint64_t)value;
            break;
        case 'b':
            r->bytes = (size_t)value;
            break;
        default:
            fail_msg("no attribute: %c", one.ptr[0]);
        }
    }
    s->in[n] = (struct nr_infer_request){.rows = rows, .inputs = s->tensors[n]};
    for (unsigned i = 0; i < SIM_INPUTS; i++) {
        if ((inputs >> i & 1) != 0) {
            s->tensors[n][s->in[n].n_inputs++] = (struct nr_infer_tensor){
                .index = i, .dtype = NARU_FP32, .rank = 2, .shape = {rows, width}};
        }
    }
    r->level = nr_queue_level_of(&s->queue, (uint64_t)priority);
    int64_t timeout_ns = nr_queue_timeout(&s->queue, r->level, (uint64_t)own_us);
    r->expires_ns = timeout_ns > 0 ? s->now_ns + timeout_ns : 0;
    r->deadline_ns = deadline_us * NR_US_NS;
    sim_expire(s);
    nr_refusal why =
        nr_admit_put(&s->admit, &s->limits, &s->queue, r, !s->running, s->now_ns, &victim);
    if (victim != NULL) {
        s->waiting[sim_name(victim, s)] = false;
        sim_says(s, sim_name(victim, s), '!', NR_REFUSAL_SHARE);
    }
    s->waiting[n] = why == NR_REFUSAL_NONE;
    if (why != NR_REFUSAL_NONE) {
        sim_says(s, n, '?', why);
    }
}

static inline void sim_take(struct sim *s)
{
    struct nr_list batch;
    nr_list_init(&batch);
    sim_expire(s);
    struct nr_batch_plan plan = nr_batcher_plan(&s->rules, &s->queue.order, s->now_ns);
    nr_text_str(&s->out, s->out.len > 0 ? " " : "");
    if (plan.n_requests == 0) {
        if (plan.wait_until_ns == 0) {
            nr_text_str(&s->out, "-");
        } else {
            nr_text_fmt(&s->out, "~%lld", (long long)(plan.wait_until_ns / NR_US_NS));
        }
        return;
    }
    nr_batcher_take(&s->rules, &plan, &s->queue, &batch);
    nr_admit_took(&s->admit, plan.rows, s->queue.rows, s->now_ns);
    nr_text_str(&s->out, "[");
    int64_t rows = 0;
    struct nr_list *node;
    while ((node = nr_list_pop(&batch)) != NULL) {
        struct nr_request *r = nr_container_of(node, struct nr_request, node);
        s->waiting[sim_name(r, s)] = false;
        nr_text_fmt(&s->out, "%c", (int)('a' + sim_name(r, s)));
        rows += r->in->rows;
    }
    nr_text_fmt(&s->out, " %s]", nr_seal_text(plan.why));
    assert_int_equal(rows, plan.rows);
    s->ran_rows = rows;
    s->running = true;
}

static inline void sim_run(struct sim *s, const char *script)
{
    struct nr_str rest = nr_str_from(script);
    while (rest.len > 0) {
        struct nr_str word = nr_str_cut(rest, ' ', &rest);
        struct nr_str value = {word.ptr + 1, word.len > 0 ? word.len - 1 : 0};
        switch (word.len > 0 ? word.ptr[0] : ' ') {
        case ' ':
            break;
        case '@':
            s->now_ns = sim_number(value) * NR_US_NS;
            break;
        case 'T':
            sim_expire(s);
            break;
        case '!':
            sim_take(s);
            break;
        case 'R':
            nr_admit_ran(&s->admit, s->ran_rows, sim_number(value) * NR_US_NS);
            s->running = false;
            break;
        case 'x':
            if (value.len == 1) {
                unsigned n = (unsigned)(value.ptr[0] - 'a');
                assert_true(s->waiting[n]);
                s->waiting[n] = false;
                nr_queue_remove(&s->queue, &s->requests[n]);
                break;
            }
            sim_put(s, word);
            break;
        default:
            sim_put(s, word);
        }
    }
}

#endif
