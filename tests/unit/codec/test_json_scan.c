/* The JSON scanner: what RFC 8259 allows and nothing else, positions in errors, limits, linear time. */
#include "unit/codec/infer_kit.h"

#include <time.h>

#include "codec/json_scan.h"

/* Skips one value and expects the end; from memory of exactly this size. */
static nr_status scan(const char *text, size_t len, struct nr_err *err)
{
    char *copy = malloc(len + (len == 0));
    struct nr_arena arena;
    struct nr_json j;
    memcpy(copy, text, len);
    nr_arena_init(&arena, 0);
    *err = (struct nr_err){0};
    nr_json_init(&j, (struct nr_str){copy, len}, &arena, err);
    nr_status st = nr_json_skip(&j, NULL);
    st = st == NARU_OK ? nr_json_done(&j) : st;
    assert_int_equal(j.depth == 0 || st != NARU_OK, 1);
    nr_arena_done(&arena);
    free(copy);
    return st;
}

static void test_valid(void **state)
{
    (void)state;
    static const char *const texts[] = {"null",
                                        " true ",
                                        "false",
                                        "0",
                                        "-0",
                                        "1.5e+10",
                                        "1E5",
                                        "1e400",
                                        "\"\"",
                                        "\"a\"",
                                        "[]",
                                        "{}",
                                        "[1,2,3]",
                                        "[[],{},[{}]]",
                                        "{\"a\":1,\"b\":[true,null]}",
                                        "\t\n\r [ 1 , 2 ] ",
                                        "\"\\\"\\\\\\/\\b\\f\\n\\r\\t\\u0041\\uD83D\\ude00\"",
                                        "\"\xc3\xa9\xf0\x9f\x98\x80\x7f\"",
                                        "{\"\":{\"\":{}}}",
                                        "123456789012345678901234567890",
                                        "\"01234567890123456789 \\u00e9 x\""};
    struct nr_err err;
    for (size_t i = 0; i < NR_COUNT(texts); i++) {
        if (scan(texts[i], strlen(texts[i]), &err) != NARU_OK) {
            fail_msg("%s: %s", texts[i], err.text);
        }
    }
}

static void test_invalid(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        int at; /* the byte that the error names */
    } cases[] = {{"", 0},
                 {"}", 0},
                 {"{]", 1},
                 {"[1,]", 3},
                 {"[,1]", 1},
                 {"[1 2]", 3},
                 {"[1", 2},
                 {"[", 1},
                 {"{\"a\":1,}", 7},
                 {"{\"a\" 1}", 5},
                 {"{\"a\":}", 5},
                 {"{a:1}", 1},
                 {"{'a':1}", 1},
                 {"{1:1}", 1},
                 {"tru", 0},
                 {"nul", 0},
                 {"True", 0},
                 {"01", 1},
                 {"-", 1},
                 {"+1", 0},
                 {".5", 0},
                 {"1.", 2},
                 {"1e", 2},
                 {"0x10", 1},
                 {"NaN", 0},
                 {"Infinity", 0},
                 {"-Infinity", 1},
                 {"\"a", 2},
                 {"\"\\", 1},
                 {"\"\\x\"", 1},
                 {"\"\\u12\"", 1},
                 {"\"\\u12g4\"", 1},
                 {"\"\\ud800\"", 1},
                 {"\"\\ud800\\u0041\"", 1},
                 {"\"\\udc00\"", 1},
                 {"\"a\nb\"", 2},
                 {"\"\x01\"", 1},
                 {"\"\xff\"", 1},
                 {"\"\xc0\x80\"", 1},
                 {"\"\xed\xa0\x80\"", 1},
                 {"\"abcdefgh\xc3\"", 1},
                 {"\xef\xbb\xbf{}", 0},
                 {"1 2", 2},
                 {"[] x", 3},
                 {"// c\n1", 0},
                 {"[1//c\n]", 2}};
    struct nr_err err;
    for (size_t i = 0; i < NR_COUNT(cases); i++) {
        char where[64];
        assert_int_equal(scan(cases[i].text, strlen(cases[i].text), &err), NARU_INVALID);
        snprintf(where, sizeof(where), "invalid JSON at byte %d: ", cases[i].at);
        if (strncmp(err.text, where, strlen(where)) != 0) {
            fail_msg("%s: \"%s\", expected byte %d", cases[i].text, err.text, cases[i].at);
        }
    }
    assert_int_equal(scan("{}\0", 3, &err), NARU_INVALID);
    assert_non_null(strstr(err.text, "expected nothing behind the value, got byte 0x00"));
    assert_int_equal(scan("[1", 2, &err), NARU_INVALID);
    assert_non_null(strstr(err.text, "expected ',' or ']', but the text ends there"));
}

static void test_strings(void **state)
{
    (void)state;
    struct nr_arena arena;
    struct nr_json j;
    struct nr_str s;
    struct nr_err err = {0};
    nr_arena_init(&arena, 0);
    struct nr_str text =
        NR_STR("\"plain text, a view\" \"\\u00e9\\ud83d\\ude00\\n\\u0000\\/\" \"\"");
    nr_json_init(&j, text, &arena, &err);
    assert_int_equal(nr_json_string(&j, &s), NARU_OK);
    assert_ptr_equal(s.ptr, text.ptr + 1);
    assert_int_equal(s.len, 18);
    assert_int_equal(nr_json_string(&j, &s), NARU_OK);
    assert_int_equal(s.len, 9);
    assert_memory_equal(s.ptr, "\xc3\xa9\xf0\x9f\x98\x80\n\0/", 9);
    assert_int_equal(nr_json_string(&j, &s), NARU_OK);
    assert_int_equal(s.len, 0);
    assert_int_equal(nr_json_done(&j), NARU_OK);
    nr_arena_done(&arena);
}

/* A text of n opening brackets and as many closing ones. */
static char *nest(size_t n, const char *open, const char *middle, const char *close)
{
    size_t a = strlen(open);
    size_t b = strlen(close);
    char *text = malloc(n * (a + b) + strlen(middle) + 1);
    char *p = text;
    for (size_t i = 0; i < n; i++, p += a) {
        memcpy(p, open, a);
    }
    memcpy(p, middle, strlen(middle));
    p += strlen(middle);
    for (size_t i = 0; i < n; i++, p += b) {
        memcpy(p, close, b);
    }
    *p = '\0';
    return text;
}

static void test_limits(void **state)
{
    (void)state;
    struct nr_err err;
    for (int objects = 0; objects < 2; objects++) {
        for (size_t n = 63; n <= 250000; n = n < 65 ? n + 1 : n * 60) {
            char *text = objects ? nest(n, "{\"a\":", "1", "}") : nest(n, "[", "", "]");
            nr_status st = scan(text, strlen(text), &err);
            assert_int_equal(st, n <= NR_JSON_DEPTH_MAX ? NARU_OK : NARU_INVALID);
            assert_true(st == NARU_OK || strstr(err.text, "nested deeper than 64 levels"));
            free(text);
        }
    }
    for (int n = 1023; n <= 1025; n++) {
        char *text = malloc((size_t)n * 12 + 8);
        size_t at = 1;
        text[0] = '{';
        for (int i = 0; i < n; i++) {
            at += (size_t)snprintf(text + at, 13, "%s\"k%d\":0", i ? "," : "", i);
        }
        memcpy(text + at, "}", 2);
        assert_int_equal(scan(text, at + 1, &err), n <= NR_JSON_KEYS_MAX ? NARU_OK : NARU_INVALID);
        assert_true(n <= NR_JSON_KEYS_MAX || strstr(err.text, "more than 1024 keys"));
        free(text);
    }
}

static void test_keys(void **state)
{
    (void)state;
    struct nr_arena arena;
    struct nr_json j;
    struct nr_err err = {0};
    struct nr_json_keys keys;
    static char names[NR_JSON_KEYS_MAX][8];
    nr_arena_init(&arena, 0);
    nr_json_init(&j, NR_STR(""), &arena, &err);
    nr_json_keys_init(&keys);
    for (int i = 0; i < NR_JSON_KEYS_MAX; i++) {
        snprintf(names[i], sizeof(names[i]), "k%d", i);
        assert_int_equal(nr_json_keys_add(&keys, &j, nr_str_from(names[i])), NARU_OK);
        int again = i / 2;
        assert_int_equal(nr_json_keys_add(&keys, &j, nr_str_from(names[again])), NARU_INVALID);
    }
    assert_non_null(strstr(err.text, "key \"k511\" came before in the same object"));
    nr_arena_done(&arena);
}

/* Seconds for n repetitions of a piece, the least of three tries. */
static double time_of(const char *open, const char *piece, const char *close, size_t n)
{
    char *text = nest(n, piece, "", "");
    size_t len = strlen(open) + n * strlen(piece) + strlen(close);
    char *all = malloc(len + 1);
    snprintf(all, len + 1, "%s%s%s", open, text, close);
    double least = 1e9;
    for (int i = 0; i < 3; i++) {
        struct nr_err err;
        struct timespec a;
        struct timespec b;
        (void)clock_gettime(CLOCK_THREAD_CPUTIME_ID, &a);
        (void)scan(all, len, &err);
        (void)clock_gettime(CLOCK_THREAD_CPUTIME_ID, &b);
        double took = (double)(b.tv_sec - a.tv_sec) + (double)(b.tv_nsec - a.tv_nsec) * 1e-9;
        least = took < least ? took : least;
    }
    free(text);
    free(all);
    return least;
}

/* Four times the text takes about four times as long, whatever the text: quadratic work would take
 * sixteen times. */
static void test_linear_time(void **state)
{
    (void)state;
    static const char *const shapes[][3] = {{"[", "0,", "0]"},
                                            {"[", "\"\\u0041\",", "0]"},
                                            {"\"", "\xc3\xa9", "\""},
                                            {"\"", "\\n", "\""},
                                            {"", "9", ""},
                                            {"0.", "0", "1"},
                                            {"1e", "9", ""},
                                            {"", " ", "1"},
                                            {"[", "{\"a\":[{}]},", "0]"}};
    for (size_t i = 0; i < NR_COUNT(shapes); i++) {
        double once = time_of(shapes[i][0], shapes[i][1], shapes[i][2], 500000);
        double four = time_of(shapes[i][0], shapes[i][1], shapes[i][2], 2000000);
        if (four > 10 * once + 0.002) {
            fail_msg("\"%s\": %.3f ms, four times as much %.3f ms", shapes[i][1], once * 1e3,
                     four * 1e3);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_valid),   cmocka_unit_test(test_invalid),
        cmocka_unit_test(test_strings), cmocka_unit_test(test_limits),
        cmocka_unit_test(test_keys),    cmocka_unit_test(test_linear_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
