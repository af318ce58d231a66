/* Batching strategies: what they are shown, what they may answer, and that everything else is refused and
 * the default plan carried out. */
#include "sched/strategy.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "base/mem.h"

#define N 26

static struct nr_batchings *set;
static struct nr_queue queue;
static struct nr_request requests[N];
static struct nr_infer_request in[N];
static struct nr_infer_tensor tensors[N];
static unsigned n_requests;

static int set_up(void **state)
{
    (void)state;
    static const struct nr_queue_rules rules;
    set = nr_batchings_new();
    nr_batchings_add_dir(set, NARU_BUILD_DIR "/backends");
    nr_queue_init(&queue, &rules, 1, 0, false);
    n_requests = 0;
    return 0;
}
static int tear_down(void **state)
{
    (void)state;
    while (!nr_list_empty(&queue.order)) {
        nr_queue_remove(&queue, nr_container_of(queue.order.next, struct nr_request, node));
    }
    nr_queue_done(&queue);
    nr_batchings_free(set);
    return 0;
}

static void put(int64_t rows, int64_t width, int64_t queued_ns)
{
    unsigned i = n_requests++;
    uint64_t bytes = (uint64_t)(rows * width) * 4;
    tensors[i] = (struct nr_infer_tensor){.dtype = NARU_FP32,
                                          .rank = 2,
                                          .shape = {rows, width},
                                          .elements = rows * width,
                                          .bytes = bytes};
    in[i] = (struct nr_infer_request){.rows = rows, .inputs = &tensors[i], .n_inputs = 1};
    requests[i] = (struct nr_request){.in = &in[i], .queued_ns = queued_ns, .bytes = bytes};
    (void)nr_queue_put(&queue, &requests[i]);
}

static nr_status try_open(const char *name, const naru_option *options, uint32_t n,
                          struct nr_strategy **ret, struct nr_err *err)
{
    struct nr_batching b = {0};
    const naru_batching_args args = {
        .n_options = n, .options = options, .model = "m", .max_rows = 8};
    nr_status st = nr_batching_open(set, nr_str_from(name), &args, &b, err);
    if (st == NARU_OK) {
        *ret = nr_strategy_new(&b);
    }
    return st;
}
static struct nr_strategy *open_wild(const char *what)
{
    struct nr_strategy *s = NULL;
    const naru_option options[] = {{"naru.batch_strategy", "wild"},
                                   {"naru.batch_strategy.do", what},
                                   {"naru.batch_strategy.wait_ms", "2"}};
    assert_int_equal(try_open("wild", options, NR_COUNT(options), &s, NULL), NARU_OK);
    return s;
}

/* Plans and takes; what is taken as letters, "a" the first request. why NR_SEAL_COUNT: any. */
static const char *taken(struct nr_strategy *s, const struct nr_batch_rules *rules, int64_t now_ns,
                         nr_seal why)
{
    static char text[N + 1];
    struct nr_list batch;
    size_t n = 0;
    struct nr_batch_plan p = nr_strategy_plan(s, rules, &queue.order, now_ns);
    nr_list_init(&batch);
    if (p.n_requests > 0) {
        nr_strategy_take(s, rules, &p, &queue, &batch);
        assert_true(why == NR_SEAL_COUNT || p.why == why);
    }
    int64_t rows = 0;
    NR_LIST_FOREACH (node, &batch) {
        struct nr_request *r = nr_container_of(node, struct nr_request, node);
        text[n++] = (char)('a' + (r - requests));
        rows += r->in->rows;
    }
    assert_int_equal(n, p.n_requests);
    assert_int_equal(rows, p.rows);
    assert_true(rows <= rules->max_rows);
    text[n] = '\0';
    return text;
}

static const struct nr_batch_rules plain = {.max_rows = 8, .batching = true};

static void test_broken_promises_are_refused(void **state)
{
    (void)state;
    static const char *const wild[] = {"too_many", "skip_first", "past",
                                       "forever",  "error",      "rows"};
    for (size_t i = 0; i < NR_COUNT(wild); i++) {
        struct nr_strategy *s = open_wild(wild[i]);
        n_requests = 0;
        put(5, 4, 0);
        put(3, 4, 0);
        put(6, 4, 0);
        assert_string_equal(taken(s, &plain, 10, NR_SEAL_FULL), "ab");
        assert_int_equal(nr_strategy_refused(s), 1);
        nr_strategy_free(s);
        s = open_wild("");
        assert_string_equal(taken(s, &plain, 10, NR_SEAL_STRATEGY), "c");
        nr_strategy_free(s);
    }
}

static void test_order_that_is_promised_is_kept(void **state)
{
    (void)state;
    struct nr_batch_rules in_order = plain;
    struct nr_strategy *s = open_wild("skip_last");
    in_order.in_order = true;
    put(1, 4, 0);
    put(1, 4, 0);
    put(1, 4, 0);
    assert_string_equal(taken(s, &in_order, 10, NR_SEAL_IDLE), "abc");
    assert_int_equal(nr_strategy_refused(s), 1);
    put(1, 4, 0);
    put(1, 4, 0);
    put(1, 4, 0);
    assert_string_equal(taken(s, &plain, 10, NR_SEAL_STRATEGY), "de");
    assert_string_equal(taken(s, &plain, 10, NR_SEAL_STRATEGY), "f");
    assert_int_equal(nr_strategy_refused(s), 1);
    nr_strategy_free(s);
}

static void test_passing_by_within_the_window(void **state)
{
    (void)state;
    struct nr_strategy *s = open_wild("last_wins");
    put(1, 4, 0);
    put(2, 4, 0);
    put(1, 9, 0); /* another shape: not in the window */
    put(2, 4, 0);
    put(3, 4, 0);
    assert_string_equal(taken(s, &plain, 10, NR_SEAL_STRATEGY), "ae");
    assert_string_equal(taken(s, &plain, 10, NR_SEAL_STRATEGY), "bd");
    assert_string_equal(taken(s, &plain, 10, NR_SEAL_STRATEGY), "c");
    nr_strategy_free(s);
}

static void test_waiting(void **state)
{
    (void)state;
    struct nr_strategy *s = open_wild("wait");
    put(1, 4, 1000);
    struct nr_batch_plan p = nr_strategy_plan(s, &plain, &queue.order, 2000);
    assert_int_equal(p.n_requests, 0);
    assert_int_equal(p.wait_until_ns, 1000 + 2000000);
    assert_string_equal(taken(s, &plain, 1000 + 2000000, NR_SEAL_STRATEGY), "a");
    assert_int_equal(nr_strategy_refused(s), 0);
    nr_strategy_free(s);
}

static void test_single(void **state)
{
    (void)state;
    struct nr_strategy *s = NULL;
    const naru_option other = {"naru.batch_strategy.max_bytes", "1"};
    struct nr_err err = {0};
    assert_int_equal(try_open("single", &other, 1, &s, &err), NARU_INVALID);
    assert_non_null(strstr(err.text, "it takes none"));
    assert_int_equal(try_open("single", NULL, 0, &s, NULL), NARU_OK);
    put(3, 4, 0);
    put(8, 4, 0);
    assert_string_equal(taken(s, &plain, 10, NR_SEAL_STRATEGY), "a");
    assert_string_equal(taken(s, &plain, 10, NR_SEAL_STRATEGY), "b");
    nr_strategy_free(s);
}

static struct nr_strategy *open_volume(const char *key, const char *value)
{
    struct nr_strategy *s = NULL;
    const naru_option o = {key, value};
    assert_int_equal(try_open("volume", &o, 1, &s, NULL), NARU_OK);
    return s;
}

static void test_volume(void **state)
{
    (void)state;
    struct nr_batch_rules waits = plain;
    waits.delay_ns = 1000;
    struct nr_strategy *s = open_volume("naru.batch_strategy.max_bytes", "100");
    put(1, 10, 0); /* 40 bytes each */
    put(1, 10, 0);
    put(1, 10, 0);
    put(1, 10, 0);
    put(1, 10, 0);
    assert_string_equal(taken(s, &waits, 10, NR_SEAL_STRATEGY), "ab"); /* no more would fit */
    assert_string_equal(taken(s, &waits, 10, NR_SEAL_STRATEGY), "cd");
    assert_string_equal(taken(s, &waits, 10, NR_SEAL_STRATEGY),
                        ""); /* 40 of 100: the default waits */
    assert_string_equal(taken(s, &waits, 1000, NR_SEAL_STRATEGY), "e");
    put(1, 100, 0); /* too large by itself: alone, and at once */
    put(1, 100, 0);
    assert_string_equal(taken(s, &waits, 10, NR_SEAL_STRATEGY), "f");
    assert_string_equal(taken(s, &waits, 10, NR_SEAL_STRATEGY), "g");
    nr_strategy_free(s);
    s = open_volume("naru.batch_strategy.max_elements", "25");
    put(1, 10, 0);
    put(1, 10, 0);
    put(1, 10, 0);
    assert_string_equal(taken(s, &waits, 10, NR_SEAL_STRATEGY), "hi");
    nr_strategy_free(s);
    s = open_volume("MAX_BATCH_VOLUME_BYTES", "96"); /* Triton's name */
    assert_string_equal(taken(s, &plain, 10, NR_SEAL_STRATEGY), "j");
    nr_strategy_free(s);
}

static void test_hostile_parameters(void **state)
{
    (void)state;
    static const struct {
        const char *key, *value, *part;
    } cases[] = {
        {"naru.batch_strategy.max_bytes", "0", "1 to"},
        {"naru.batch_strategy.max_bytes", "-5", "1 to"},
        {"naru.batch_strategy.max_bytes", "99999999999999999999", "1 to"},
        {"naru.batch_strategy.max_bytes", "", "1 to"},
        {"naru.batch_strategy.max_bytes", "1e3", "1 to"},
        {"naru.batch_strategy.max_byte", "1", "unknown parameter"},
        {"naru.batch_strategy.", "1", "unknown parameter"},
        {"other", "1", "it needs a limit"},
    };
    for (size_t i = 0; i < NR_COUNT(cases); i++) {
        struct nr_strategy *s = NULL;
        struct nr_err err = {0};
        const naru_option o = {cases[i].key, cases[i].value};
        assert_int_equal(try_open("volume", &o, 1, &s, &err), NARU_INVALID);
        if (!strstr(err.text, cases[i].part) || !strstr(err.text, "batching strategy volume: ")) {
            fail_msg("%s: %s", cases[i].value, err.text);
        }
        assert_null(s);
    }
    struct nr_strategy *s = NULL;
    struct nr_err err = {0};
    assert_int_equal(try_open("none", NULL, 0, &s, &err), NARU_NOT_FOUND);
    assert_non_null(strstr(err.text, "single"));
    assert_non_null(strstr(err.text, "--batching-directory"));
    assert_int_equal(try_open("../volume", NULL, 0, &s, &err), NARU_INVALID);
}

static void test_tables(void **state)
{
    (void)state;
    struct nr_batching b = {0};
    const naru_batching_args args = {.model = "m", .max_rows = 8};
    struct nr_err err = {0};
    assert_int_equal(nr_batching_open(set, NR_STR("single"), &args, &b, NULL), NARU_OK);
    naru_batching t = *b.api;
    t.struct_size += 64;
    assert_int_equal(nr_batching_table_check(&t, &err), NARU_OK);
    t.plan = NULL;
    assert_int_equal(nr_batching_table_check(&t, &err), NARU_UNSUPPORTED);
    assert_non_null(strstr(err.text, "plan is NULL"));
    t = *b.api;
    t.struct_size = offsetof(naru_batching, plan);
    assert_int_equal(nr_batching_table_check(&t, &err), NARU_UNSUPPORTED);
    t = *b.api;
    t.abi_major = 9;
    assert_int_equal(nr_batching_table_check(&t, &err), NARU_UNSUPPORTED);
    nr_batching_close(&b);
    nr_batching_close(&b);
}

/* Whatever comes, batches are legal, everybody is taken once, and nobody waits for ever. */
static void test_random_queues(void **state)
{
    (void)state;
    const char *given = getenv("NARU_SEED");
    unsigned seed = given ? (unsigned)strtoul(given, NULL, 10) : (unsigned)time(NULL);
    static const char *const wild[] = {"",          "too_many",  "rows",  "skip_first", "past",
                                       "last_wins", "skip_last", "error", "forever"};
    print_message("NARU_SEED=%u\n", seed);
    for (unsigned round = 0; round < 300; round++) {
        struct nr_strategy *s = open_wild(wild[(unsigned)rand_r(&seed) % NR_COUNT(wild)]);
        struct nr_batch_rules rules = plain;
        bool seen[N] = {false};
        unsigned left = N;
        rules.in_order = rand_r(&seed) % 2;
        n_requests = 0;
        for (unsigned i = 0; i < N; i++) {
            put(1 + rand_r(&seed) % 8, 4 + rand_r(&seed) % 2, 0);
        }
        for (unsigned turns = 0; left > 0; turns++) {
            const char *text = taken(s, &rules, 10, NR_SEAL_COUNT);
            assert_true(turns < 2 * N);
            for (; *text; text++, left--) {
                assert_false(seen[*text - 'a']);
                seen[*text - 'a'] = true;
            }
        }
        nr_strategy_free(s);
    }
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(test_broken_promises_are_refused),
        TEST(test_order_that_is_promised_is_kept),
        TEST(test_passing_by_within_the_window),
        TEST(test_waiting),
        TEST(test_single),
        TEST(test_volume),
        TEST(test_hostile_parameters),
        TEST(test_tables),
        TEST(test_random_queues),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
