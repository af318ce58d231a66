/* Labels and weights: names, configuration, the split. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#include "model/config.h"
#include "model/traffic.h"

static void test_names(void **state)
{
    (void)state;
    static const char *const good[] = {"stable", "a", "A1._-z", "v2", "canary-2026.11"};
    static const char *const bad[] = {"",   "1",   "1a",  "-a",  ".a",
                                      "_a", "a b", "a/b", "a\n", "\xc3\xa4"};
    for (size_t i = 0; i < NR_COUNT(good); i++) {
        assert_true(nr_label_valid(nr_str_from(good[i])));
    }
    for (size_t i = 0; i < NR_COUNT(bad); i++) {
        assert_false(nr_label_valid(nr_str_from(bad[i])));
    }
    char longest[66];
    memset(longest, 'a', sizeof longest);
    assert_true(nr_label_valid((struct nr_str){longest, 64}));
    assert_false(nr_label_valid((struct nr_str){longest, 65}));
}

static nr_status read(const char *text, struct nr_traffic *t, struct nr_model_config **c,
                      struct nr_err *err)
{
    assert_int_equal(nr_config_parse("m", text, strlen(text), "test", c, err), NARU_OK);
    return nr_traffic_read((*c)->pb, t, err);
}

#define LABEL(name, version) \
    "parameters { key: 'naru.label." name "' value { string_value: '" version "' } }"
#define TRAFFIC(text) "parameters { key: 'naru.traffic' value { string_value: '" text "' } }"

#define SHADOW(text) "parameters { key: 'naru.shadow' value { string_value: '" text "' } }"

static void test_configuration(void **state)
{
    (void)state;
    struct nr_model_config *c = NULL;
    struct nr_traffic t, u;
    struct nr_err err = {0};
    assert_int_equal(
        read(TRAFFIC("stable=95,canary=5") LABEL("stable", "3") LABEL("canary", "4"), &t, &c, &err),
        NARU_OK);
    assert_int_equal(t.n, 2);
    struct nr_traffic_rule *canary = nr_traffic_find(&t, NR_STR("canary"));
    assert_int_equal(canary->version, 4);
    assert_int_equal(canary->weight, 5);
    assert_int_equal(nr_traffic_find(&t, NR_STR("stable"))->weight, 95);
    assert_null(nr_traffic_find(&t, NR_STR("other")));
    u = t;
    assert_true(nr_traffic_same(&t, &u));
    u.rules[0].weight++;
    assert_false(nr_traffic_same(&t, &u));
    nr_config_free(c);
    static const struct {
        const char *text, *part;
    } bad[] = {{LABEL("1x", "3"), "naru.label.1x: a label begins with a letter"},
               {LABEL("a", "0"), "\"0\" is no version"},
               {LABEL("a", "x"), "\"x\" is no version"},
               {LABEL("a", "99999999999999999999"), "is no version"},
               {TRAFFIC("a=1"), "naru.traffic: \"a=1\": expected LABEL=WEIGHT of labels given"},
               {LABEL("a", "1") TRAFFIC("a"), "\"a\": expected"},
               {LABEL("a", "1") TRAFFIC("a=-1"), "\"a=-1\": expected"},
               {LABEL("a", "1") TRAFFIC("a=1000001"), "from 0 to 1000000"},
               {LABEL("a", "1") LABEL("b", "2") TRAFFIC("a=0,b=0"), "all weights are 0"},
               {LABEL("a", "1") TRAFFIC("a=0"), "all weights are 0"},
               {LABEL("a", "1") SHADOW("a=101"), "naru.shadow: \"a=101\": expected LABEL=PERCENT"},
               {LABEL("a", "1") LABEL("b", "1") SHADOW("a=1,b=1"), "2 labels have a shadow"},
               {LABEL("a", "1") TRAFFIC(",a=1"), "\"\": expected"}};
    for (size_t i = 0; i < NR_COUNT(bad); i++) {
        c = NULL;
        assert_int_equal(read(bad[i].text, &t, &c, &err), NARU_INVALID);
        assert_non_null(strstr(err.text, bad[i].part));
        nr_config_free(c);
    }
}

/* Any window of requests has its shares, however the counter is strided by other models' requests. */
static void test_split(void **state)
{
    (void)state;
    static const uint32_t weights[][4] = {
        {95, 5},     {1, 1}, {0, 1}, {1, 0}, {1, 99}, {50, 30, 19, 1}, {1000000, 1, 1, 1},
        {0, 0, 1, 0}};
    for (size_t w = 0; w < NR_COUNT(weights); w++) {
        uint64_t sum = 0;
        for (int i = 0; i < 4; i++) {
            sum += weights[w][i];
        }
        for (uint64_t stride = 1; stride <= 7; stride++) {
            for (uint64_t start = 0; start < 5000000000u; start += 999999937u) {
                unsigned got[4] = {0}, n = 1000;
                for (unsigned k = 0; k < n; k++) {
                    got[nr_traffic_pick(weights[w], 4, start + k * stride)]++;
                }
                for (int i = 0; i < 4; i++) {
                    double want = (double)n * weights[w][i] / (double)sum;
                    assert_true(got[i] > want - 10 && got[i] < want + 10); /* 1 % of 1,000 */
                    assert_true(weights[w][i] > 0 || got[i] == 0);
                }
            }
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_configuration),
        cmocka_unit_test(test_split),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
