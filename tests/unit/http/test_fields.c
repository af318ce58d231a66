/* Known fields, targets, hosts, dates and token buckets: pure functions at their edges. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#include <cmocka.h>

#include "base/clock.h"
#include "http/engine.h"

static void test_find(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        enum nr_field id;
    } names[] = {
        {"content-type", NR_FIELD_CONTENT_TYPE},
        {"content-encoding", NR_FIELD_CONTENT_ENCODING},
        {"accept", NR_FIELD_ACCEPT},
        {"accept-encoding", NR_FIELD_ACCEPT_ENCODING},
        {"host", NR_FIELD_HOST},
        {"origin", NR_FIELD_ORIGIN},
        {"inference-header-content-length", NR_FIELD_INFERENCE_LENGTH},
        {"authorization", NR_FIELD_AUTHORIZATION},
        {"traceparent", NR_FIELD_TRACEPARENT},
        {"x-request-id", NR_FIELD_REQUEST_ID},
        {"user-agent", NR_FIELD_USER_AGENT},
        {"sec-fetch-site", NR_FIELD_SEC_FETCH_SITE},
        {"content-length", NR_FIELD_CONTENT_LENGTH},
        {"transfer-encoding", NR_FIELD_TRANSFER_ENCODING},
        {"expect", NR_FIELD_EXPECT},
        {"te", NR_FIELD_TE},
        {"cookie", NR_FIELD_COOKIE},
        {"grpc-timeout", NR_FIELD_GRPC_TIMEOUT},
        {"grpc-encoding", NR_FIELD_GRPC_ENCODING},
        {"connection", NR_FIELD_HOP},
        {"keep-alive", NR_FIELD_HOP},
        {"proxy-connection", NR_FIELD_HOP},
        {"upgrade", NR_FIELD_HOP},
        {"", NR_FIELD_OTHER},
        {"hosT", NR_FIELD_OTHER},
        {"content-typf", NR_FIELD_OTHER},
        {"inference-header-content-lengti", NR_FIELD_OTHER},
        {"x", NR_FIELD_OTHER},
    };
    for (size_t i = 0; i < NR_COUNT(names); i++) {
        assert_int_equal(nr_field_find(nr_str_from(names[i].name)), names[i].id);
    }
}

static void test_known(void **state)
{
    (void)state;
    struct nr_exchange x = {0};
    nr_arena_init(&x.arena, 0);
    for (int f = NR_FIELD_KNOWN_FIRST; f <= NR_FIELD_KNOWN_LAST; f++) {
        char text[2] = {(char)('A' + f), '\0'};
        struct nr_str v = nr_arena_str(&x.arena, nr_str_from(text));
        assert_true(nr_field_known(&x, (enum nr_field)f, v));
    }
    assert_true(nr_str_is(x.known.content_type, "B"));
    assert_true(nr_str_is(x.known.sec_fetch_site, "M"));
    assert_true(nr_field_known(&x, NR_FIELD_ACCEPT, NR_STR("z")));
    assert_true(nr_str_is(x.known.accept, "D, z")); /* lines of a list are one list */
    assert_true(nr_field_known(&x, NR_FIELD_USER_AGENT, NR_STR("z")));
    assert_true(nr_str_is(x.known.user_agent, "L"));
    assert_false(nr_field_known(&x, NR_FIELD_HOST, NR_STR("H")));
    assert_false(nr_field_known(&x, NR_FIELD_CONTENT_TYPE, NR_STR("")));
    nr_arena_done(&x.arena);
    nr_arena_thread_done();
}

static void test_target(void **state)
{
    (void)state;
    struct nr_str path, query;
    assert_true(nr_target_split(NR_STR("/a/b?c=d?e"), NR_GET, &path, &query));
    assert_true(nr_str_is(path, "/a/b") && nr_str_is(query, "c=d?e"));
    assert_true(nr_target_split(NR_STR("/?"), NR_GET, &path, &query));
    assert_true(nr_str_is(path, "/") && query.ptr && query.len == 0);
    assert_true(nr_target_split(NR_STR("/a"), NR_GET, &path, &query));
    assert_null(query.ptr);
    assert_true(nr_target_split(NR_STR("*"), NR_OPTIONS, &path, &query));
    static const char *const bad[] = {"",     "*",   "**",    "a",     "?",
                                      "/a b", "/a#", "/\x7f", "/\x80", "/\n"};
    for (size_t i = 0; i < NR_COUNT(bad); i++) {
        assert_false(nr_target_split(nr_str_from(bad[i]), NR_GET, &path, &query));
    }
    assert_false(nr_target_split((struct nr_str){"/\0", 2}, NR_GET, &path, &query));
}

static void test_host(void **state)
{
    (void)state;
    static const struct {
        const char *host, *name; /* NULL: refused */
    } rows[] = {
        {"", ""},
        {"localhost", "localhost"},
        {"a-b.example:80", "a-b.example"},
        {"a_b:65535", "a_b"},
        {"a:", "a"}, /* RFC 3986: the default port */
        {"a:00080", "a"},
        {"127.0.0.1:18020", "127.0.0.1"},
        {"[::1]", "[::1]"},
        {"[::1]:", "[::1]"},
        {"[::1]:8000", "[::1]"},
        {"[fe80::1%25eth0]:1", "[fe80::1%25eth0]"},
        {"[::ffff:127.0.0.1]", "[::ffff:127.0.0.1]"},
        {"127.0.0.1:18020.evil.com", NULL},
        {"127.0.0.1:80:80", NULL},
        {"localhost:8000evil", NULL},
        {"localhost:+80", NULL},
        {"localhost:-1", NULL},
        {"localhost:0x50", NULL},
        {"localhost:65536", NULL},
        {"localhost:4294967376", NULL}, /* 2^32 + 80 */
        {"localhost:99999999999999999999", NULL},
        {":80", NULL},
        {":", NULL},
        {"u@localhost", NULL},
        {"localhost:80@evil.com", NULL},
        {"u:p@localhost", NULL},
        {"::1", NULL},
        {"[::1", NULL},
        {"::1]", NULL},
        {"[]", NULL},
        {"[:]", NULL},
        {"[]:80", NULL},
        {"[::1]80", NULL},
        {"[::1].evil.com", NULL},
        {"[::1]:80.evil.com", NULL},
        {"[::1]]", NULL},
        {"[[::1]]", NULL},
        {"[localhost]", NULL},
        {"[v1.a]", NULL},
        {"a[::1]", NULL},
        {"a b", NULL},
        {"a/b", NULL},
        {"a\\b", NULL},
        {"\xc3\xa4", NULL},
        {"a\"", NULL},
        {"a?", NULL},
        {"a#", NULL},
        {"[::1%25a b]", NULL},
    };
    for (size_t i = 0; i < NR_COUNT(rows); i++) {
        struct nr_str name = {0}, host = nr_str_from(rows[i].host);
        bool good = nr_host_split(host, &name);
        if (good != (rows[i].name != NULL) || good != nr_host_valid(host)) {
            fail_msg("'%s' is taken: %d", rows[i].host, good);
        }
        if (good) {
            assert_true(nr_str_is(name, rows[i].name));
        }
    }
    assert_false(nr_host_valid((struct nr_str){"a\0b", 3}));
    assert_false(nr_host_valid((struct nr_str){"[::\0]", 5}));
}

/* Bounded and printable, or as if it had not come; the first one stands. */
static void test_request_id(void **state)
{
    (void)state;
    char longest[NR_REQUEST_ID_MAX + 2];
    memset(longest, 'x', sizeof(longest) - 1);
    longest[sizeof(longest) - 1] = '\0';
    struct nr_exchange x = {0};
    static const char *const bad[] = {"", "a\tb", "a\x7f", "\xc3\xa4", "\x1b[31m"};
    for (size_t i = 0; i < NR_COUNT(bad); i++) {
        assert_true(nr_field_known(&x, NR_FIELD_REQUEST_ID, nr_str_from(bad[i])));
        assert_null(x.known.request_id.ptr);
    }
    assert_true(nr_field_known(&x, NR_FIELD_REQUEST_ID, nr_str_from(longest)));
    assert_null(x.known.request_id.ptr);
    assert_true(nr_field_known(&x, NR_FIELD_REQUEST_ID, nr_str_from(longest + 1)));
    assert_int_equal(x.known.request_id.len, NR_REQUEST_ID_MAX);
    assert_true(nr_field_known(&x, NR_FIELD_REQUEST_ID, NR_STR("second")));
    assert_int_equal(x.known.request_id.len, NR_REQUEST_ID_MAX);
}

/* Every byte at every place of targets of many lengths, beside bytes that are just allowed. */
static void test_bytes_of_targets(void **state)
{
    (void)state;
    static const char edges[] = {'!', '~', '"', '$', 'a'};
    for (size_t len = 1; len <= 27; len++) {
        for (size_t at = 1; at < len; at++) {
            for (unsigned byte = 0; byte < 256; byte++) {
                char text[32];
                struct nr_str path, query;
                memset(text, edges[(len + at) % sizeof(edges)], sizeof(text));
                text[0] = '/';
                text[at] = (char)byte;
                bool ok = byte > 0x20 && byte < 0x7f && byte != '#';
                struct nr_str target = {text, len};
                assert_int_equal(nr_target_split(target, NR_GET, &path, &query), ok);
                assert_true(!ok || path.len == (byte == '?' ? at : len));
                assert_true(!ok || byte != '?' || query.len == len - at - 1);
            }
        }
    }
}

static void test_date(void **state)
{
    (void)state;
    char got[NR_DATE_LINE_BYTES + 1] = {0}, expected[64];
    nr_date_line(784111777, got);
    assert_string_equal(got, "date: Sun, 06 Nov 1994 08:49:37 GMT\r\n");
    for (int64_t s = 0; s < INT64_C(253402300800); s += INT64_C(7654321) * 3) { /* to 9999 */
        time_t t = (time_t)s;
        struct tm tm;
        assert_non_null(gmtime_r(&t, &tm));
        assert_true(
            strftime(expected, sizeof(expected), "date: %a, %d %b %Y %H:%M:%S GMT\r\n", &tm) > 0);
        nr_date_line(s, got);
        assert_string_equal(got, expected);
    }
    nr_date_line(951782400, got); /* leap day of a century */
    assert_string_equal(got, "date: Tue, 29 Feb 2000 00:00:00 GMT\r\n");
}

static void test_bucket(void **state)
{
    (void)state;
    struct nr_bucket b;
    nr_bucket_init(&b, 10, 5, 0);
    for (int i = 0; i < 10; i++) {
        assert_true(nr_bucket_take(&b, 1, 0));
    }
    assert_false(nr_bucket_take(&b, 1, 0));
    assert_false(nr_bucket_take(&b, 1, 199 * NR_MS_NS));
    assert_true(nr_bucket_take(&b, 1, 200 * NR_MS_NS));
    assert_false(nr_bucket_take(&b, 1, 399 * NR_MS_NS)); /* fractions are kept, not given twice */
    assert_true(nr_bucket_take(&b, 1, 400 * NR_MS_NS));
    assert_true(nr_bucket_take(&b, 10, 100 * NR_S_NS)); /* never more than the burst */
    assert_false(nr_bucket_take(&b, 1, 100 * NR_S_NS));
    assert_false(nr_bucket_take(&b, 1, 50 * NR_S_NS)); /* time that stands still or goes back */
    nr_bucket_init(&b, 10, 5, 0);
    assert_true(nr_bucket_take(&b, 5, 0));
    assert_true(nr_bucket_take(&b, 5, 99 * NR_S_NS)); /* refilled on the way: 5 are left */
    assert_true(nr_bucket_take(&b, 5, 99 * NR_S_NS));
    assert_false(nr_bucket_take(&b, 1, 99 * NR_S_NS));
    nr_bucket_init(&b, UINT32_MAX, UINT32_MAX, 0);
    assert_true(nr_bucket_take(&b, UINT32_MAX, 0));
    assert_true(nr_bucket_take(&b, UINT32_MAX, INT64_MAX / 2));
    nr_bucket_init(&b, 2, 0, 0);
    assert_true(nr_bucket_take(&b, 2, 0));
    assert_false(nr_bucket_take(&b, 1, INT64_MAX));
    assert_false(nr_bucket_take(&b, 3, INT64_MAX));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_find),   cmocka_unit_test(test_known),
        cmocka_unit_test(test_target), cmocka_unit_test(test_bytes_of_targets),
        cmocka_unit_test(test_host),   cmocka_unit_test(test_request_id),
        cmocka_unit_test(test_date),   cmocka_unit_test(test_bucket),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
