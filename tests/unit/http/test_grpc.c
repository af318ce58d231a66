/* gRPC framing, timeouts and messages: the reader in pieces of every size, hostile prefixes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "http/grpc.h"

static void test_content_type(void **state)
{
    (void)state;
    assert_true(nr_grpc_is(NR_STR("application/grpc")));
    assert_true(nr_grpc_is(NR_STR("Application/gRPC+proto")));
    assert_true(nr_grpc_is(NR_STR("application/grpc;charset=x")));
    assert_false(nr_grpc_is(NR_STR("application/grpcx")));
    assert_false(nr_grpc_is(NR_STR("application/grp")));
    assert_false(nr_grpc_is(NR_STR("application/grpc-web")));
    assert_false(nr_grpc_is((struct nr_str){NULL, 0}));
}

static void test_timeout(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        int64_t ns;
    } good[] = {{"1n", 1},
                {"1u", 1000},
                {"20m", 20000000},
                {"3S", INT64_C(3000000000)},
                {"2M", INT64_C(120000000000)},
                {"1H", INT64_C(3600000000000)},
                {"0n", 0},
                {"99999999m", INT64_C(99999999000000)},
                {"99999999H", INT64_MAX}};
    static const char *const bad[] = {"",    "S",    "1",   "1s",         "1x",  "-1S",
                                      "+1S", "1.5S", " 1S", "123456789S", "1S ", "S1"};
    int64_t ns;
    for (size_t i = 0; i < NR_COUNT(good); i++) {
        assert_true(nr_grpc_timeout(nr_str_from(good[i].text), &ns));
        assert_true(ns == good[i].ns);
    }
    for (size_t i = 0; i < NR_COUNT(bad); i++) {
        assert_false(nr_grpc_timeout(nr_str_from(bad[i]), &ns));
    }
}

static void test_message(void **state)
{
    (void)state;
    char out[64];
    struct nr_str s = NR_STR("a%b\n\xc3\xa4~ \x7f");
    size_t n = nr_grpc_message(out, s);
    assert_true(nr_str_eq((struct nr_str){out, n}, NR_STR("a%25b%0A%C3%A4~ %7F")));
    assert_int_equal(nr_grpc_message(out, (struct nr_str){NULL, 0}), 0);
}

static void test_reader(void **state)
{
    (void)state;
    static const char wire[] = "\0\0\0\0\x0bhello world";
    const size_t len = sizeof(wire) - 1;
    for (size_t piece = 1; piece <= len; piece++) {
        struct nr_grpc_reader r = {0};
        char got[32];
        size_t n = 0;
        for (size_t at = 0; at < len; at += piece) {
            struct nr_str part;
            size_t k = piece < len - at ? piece : len - at;
            assert_false(nr_grpc_complete(&r));
            assert_int_equal(nr_grpc_read(&r, wire + at, k, 11, &part), NR_GRPC_MORE);
            if (part.len) {
                memcpy(got + n, part.ptr, part.len);
            }
            n += part.len;
        }
        assert_true(nr_grpc_complete(&r));
        assert_int_equal(n, 11);
        assert_memory_equal(got, "hello world", 11);
        struct nr_str part;
        assert_int_equal(nr_grpc_read(&r, wire, 1, 11, &part), NR_GRPC_SECOND);
        assert_int_equal(nr_grpc_read(&r, wire, 0, 11, &part), NR_GRPC_MORE);
    }
    struct nr_grpc_reader r = {0};
    struct nr_str part;
    assert_int_equal(nr_grpc_read(&r, "\0\0\0\0\0", 5, 0, &part), NR_GRPC_MORE);
    assert_true(nr_grpc_complete(&r)); /* an empty message is one */
    r = (struct nr_grpc_reader){0};
    assert_int_equal(nr_grpc_read(&r, wire, len, 10, &part), NR_GRPC_TOO_LARGE);
    r = (struct nr_grpc_reader){0};
    assert_int_equal(nr_grpc_read(&r, "\0\xff\xff\xff\xff", 5, UINT32_MAX, &part), NR_GRPC_MORE);
    assert_false(nr_grpc_complete(&r));
    r = (struct nr_grpc_reader){0};
    assert_int_equal(nr_grpc_read(&r, "\1\0\0\0\1x", 6, 10, &part), NR_GRPC_COMPRESSED);
    r = (struct nr_grpc_reader){0};
    assert_int_equal(nr_grpc_read(&r, "\2\0\0\0\1x", 6, 10, &part), NR_GRPC_BAD_FLAG);
    uint8_t prefix[NR_GRPC_PREFIX_BYTES];
    nr_grpc_prefix(prefix, 0x01020304);
    assert_memory_equal(prefix, "\0\1\2\3\4", 5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_content_type),
        cmocka_unit_test(test_timeout),
        cmocka_unit_test(test_message),
        cmocka_unit_test(test_reader),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
