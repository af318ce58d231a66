/* naru-backend-check for batching strategies: what any strategy must keep to (include/naru/batching.h).
 *
 * Why so: which batches are good is the strategy's own matter. Here it is shown windows that nobody would
 * invent (made up from a seed), and every answer must be one that the server accepts, stay within
 * its memory, and empty a queue in the end. --option gives parameters, with the names that config.pbtxt has.
 */
#include <stdio.h>
#include <stdlib.h>

#include "backend-check/check.h"
#include "base/clock.h"
#include "base/mem.h"
#include "host/batching.h"

#define MAX_WINDOW 1024
#define GUARD 64
#define PATTERN 0xa5
#define ROUNDS 3000

struct stage {
    struct nr_batchings *set;
    struct nr_batching b;
};

static nr_status try_stage(struct stage *s, const naru_option *options, uint32_t n,
                           struct nr_err *err)
{
    struct nr_str name;
    *s = (struct stage){.set = nr_batchings_new()};
    EXPECT(nr_batchings_find_path(s->set, check_cfg.plugin, &name, err) == NARU_OK, "%s",
           err->text);
    const char *slash = strrchr(check_cfg.plugin, '/');
    nr_autofree char *dir =
        slash ? nr_format("%.*s", (int)(slash - check_cfg.plugin + 1), check_cfg.plugin)
              : nr_strdup(".");
    nr_batchings_add_dir(s->set, dir);
    const naru_batching_args args = {
        .n_options = n, .options = options, .model = "check", .max_rows = CHECK_MAX_ROWS};
    return nr_batching_open(s->set, name, &args, &s->b, err);
}

static void open_stage(struct stage *s)
{
    struct nr_err err = {0};
    if (try_stage(s, check_cfg.options, check_cfg.n_options, &err) != NARU_OK) {
        if (check_cfg.n_options == 0) {
            skip("it needs parameters (--option): %s", err.text);
        }
        fail("%s", err.text);
    }
}

static void close_stage(struct stage *s)
{
    nr_batching_close(&s->b);
    nr_batchings_free(s->set);
}

/* --- windows ---------------------------------------------------------------------------------- */

struct scene {
    naru_waiting requests[MAX_WINDOW];
    naru_window w;
    uint8_t skip[GUARD + MAX_WINDOW + GUARD];
};

static uint64_t next(uint64_t *seed) /* xorshift */
{
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    return *seed;
}

/* Mostly small numbers, now and then those at the ends of their types. */
static uint64_t odd(uint64_t *seed, uint64_t most)
{
    uint64_t r = next(seed);
    return r % 16 == 0 ? most : r % 16 == 1 ? 0 : (r >> 8) % 1000;
}

/* What the server would do: the first that fit, or, now and then, wait. */
static void set_default(struct scene *s, bool waits)
{
    int64_t rows = 0;
    s->w.default_n = 0;
    s->w.default_wait_until_ns = waits ? s->w.now_ns + 1000000 : 0;
    while (!waits && s->w.default_n < s->w.n &&
           rows + s->requests[s->w.default_n].rows <= s->w.max_rows) {
        rows += s->requests[s->w.default_n++].rows;
    }
}

static void make_scene(struct scene *s, uint64_t *seed, uint32_t n)
{
    s->w = (naru_window){.struct_size = sizeof s->w,
                         .n = n,
                         .requests = s->requests,
                         .now_ns = 1000000000 + (int64_t)(next(seed) % 1000000),
                         .max_rows = CHECK_MAX_ROWS,
                         .flags = (uint32_t)next(seed) % 4};
    for (uint32_t i = 0; i < n; i++) {
        s->requests[i] = (naru_waiting){.queued_ns = s->w.now_ns - (int64_t)odd(seed, 1000000000),
                                        .deadline_ns = (int64_t)odd(seed, INT64_MAX),
                                        .bytes = odd(seed, UINT64_MAX),
                                        .elements = odd(seed, UINT64_MAX),
                                        .rows = 1 + (uint32_t)next(seed) % CHECK_MAX_ROWS,
                                        .level = (uint32_t)odd(seed, 255)};
    }
    set_default(s, next(seed) % 4 == 0);
}

/* One answer, which must be legal. Returns it, with the rows it takes. */
static naru_choice ask(const struct stage *t, struct scene *s, int64_t *ret_rows)
{
    memset(s->skip, PATTERN, sizeof s->skip);
    memset(s->skip + GUARD, 0, s->w.n);
    naru_choice c = {.struct_size = sizeof c, .skip = s->skip + GUARD};
    nr_status st = t->b.api->plan(t->b.model, &s->w, &c);
    EXPECT(st == NARU_OK, "plan failed (%d) for a window of %u", st, s->w.n);
    EXPECT(c.skip == s->skip + GUARD && c.struct_size == sizeof c, "plan moved what it was lent");
    for (size_t i = 0; i < sizeof s->skip; i++) {
        EXPECT((i >= GUARD && i < GUARD + s->w.n) || s->skip[i] == PATTERN,
               "plan wrote outside of skip, %td behind its begin", (ptrdiff_t)i - GUARD);
    }
    const char *breach = nr_batching_breach(&s->w, &c, ret_rows);
    EXPECT(breach == NULL, "an answer to a window of %u (default %u, flags %u): %s", s->w.n,
           s->w.default_n, s->w.flags, breach);
    return c;
}

/* --- checks ----------------------------------------------------------------------------------- */

static void check_load(void)
{
    struct stage t;
    struct nr_err err = {0};
    (void)try_stage(&t, check_cfg.options, check_cfg.n_options, &err);
    close_stage(&t);
}

static void check_null(void)
{
    struct stage t;
    open_stage(&t);
    t.b.api->model_close(NULL);
    close_stage(&t);
}

static void check_answers(void)
{
    struct stage t;
    struct scene *s = nr_new(struct scene);
    uint64_t seed = 88172645463325252u;
    int64_t rows;
    open_stage(&t);
    for (uint32_t i = 0; i < ROUNDS; i++) {
        make_scene(s, &seed, 1 + (uint32_t)(next(&seed) % (i % 50 == 0 ? MAX_WINDOW : 40)));
        (void)ask(&t, s, &rows);
    }
    close_stage(&t);
    nr_free(s);
}

/* A queue is asked about until it is empty, time going on as the strategy wants. */
static void check_progress(void)
{
    struct stage t;
    struct scene *s = nr_new(struct scene);
    uint64_t seed = 2463534242u;
    open_stage(&t);
    for (int round = 0; round < 200; round++) {
        make_scene(s, &seed, 1 + (uint32_t)(next(&seed) % 40));
        for (uint32_t asked = 0; s->w.n > 0; asked++) {
            int64_t rows;
            EXPECT(asked < 1000, "a queue was not empty after 1000 answers");
            naru_choice c = ask(&t, s, &rows);
            if (c.n == 0) {
                s->w.now_ns = c.wait_until_ns;
                set_default(s, false); /* the server would not wait for ever */
                continue;
            }
            uint32_t left = 0;
            for (uint32_t i = 0; i < s->w.n; i++) {
                s->requests[left] = s->requests[i];
                left += i >= c.n || c.skip[i] != 0;
            }
            s->w.n = left;
            set_default(s, next(&seed) % 4 == 0);
        }
    }
    close_stage(&t);
    nr_free(s);
}

static void check_quick(void)
{
    struct stage t;
    struct scene *s = nr_new(struct scene);
    uint64_t seed = 99;
    int64_t rows, best_ns = INT64_MAX;
    open_stage(&t);
    make_scene(s, &seed, MAX_WINDOW);
    for (int i = 0; i < 200; i++) {
        int64_t begin_ns = nr_clock_now();
        (void)ask(&t, s, &rows);
        best_ns = NR_MIN(best_ns, nr_clock_now() - begin_ns);
    }
    EXPECT(best_ns < 1000000, "an answer to a window of %d took %lld us at best", MAX_WINDOW,
           (long long)(best_ns / 1000));
    close_stage(&t);
    nr_free(s);
}

static void check_options(void)
{
    static const naru_option wild[] = {{"", ""},
                                       {"naru.batch_strategy.", "%s%n"},
                                       {"naru.batch_strategy.no_such", "1"},
                                       {"other", "99999999999999999999999"}};
    for (size_t i = 0; i < NR_COUNT(wild); i++) {
        struct stage t;
        struct nr_err err = {0};
        if (try_stage(&t, &wild[i], 1, &err) != NARU_OK) {
            EXPECT(strlen(err.text) > sizeof "batching strategy : ",
                   "model_open fails without a text (parameter %zu)", i);
        }
        close_stage(&t);
    }
}

static void check_memory(void)
{
#ifdef NR_ASAN
    skip("AddressSanitizer keeps what is freed");
#endif
    struct stage t;
    struct scene *s = nr_new(struct scene);
    uint64_t seed = 7;
    int64_t rows, before = 0;
    open_stage(&t);
    make_scene(s, &seed, 40);
    for (int i = 0; i < 200000; i++) {
        (void)ask(&t, s, &rows);
        before = i == 1000 ? resident_bytes() : before;
    }
    EXPECT(resident_bytes() - before < 1 << 20, "200000 answers grew by %lld KiB",
           (long long)((resident_bytes() - before) >> 10));
    close_stage(&t);
    nr_free(s);
}

const struct check batching_checks[] = {
    {"load", "entry, versions, required slots, name", check_load},
    {"null", "close takes NULL", check_null},
    {"answers", "every answer to made-up windows is one the server takes", check_answers},
    {"progress", "a queue is empty in the end", check_progress},
    {"quick", "no answer takes a millisecond", check_quick},
    {"options", "parameters that nobody meant", check_options},
    {"memory", "200000 answers without growing", check_memory},
};
const unsigned batching_check_count = NR_COUNT(batching_checks);
