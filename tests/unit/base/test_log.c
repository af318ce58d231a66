/* The log: both forms, escaping of hostile values, cutting, repeats, lost lines, threads. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/map.h"

/* The log goes into an unnamed file, from which the tests read. */
static char written[1 << 20];

static const char *read_back(int fd)
{
    ssize_t n = pread(fd, written, sizeof(written) - 1, 0);
    assert_true(n >= 0);
    written[n] = '\0';
    return written;
}

static int open_log(bool json)
{
    char name[] = "/tmp/naru-test-log-XXXXXX";
    int fd = mkostemp(name, O_APPEND | O_CLOEXEC);
    assert_true(fd >= 0);
    unlink(name);
    nr_log_init(&(struct nr_log_cfg){.level = NR_LOG_INFO, .json = json, .fd = fd});
    return fd;
}

static void close_log(int fd)
{
    nr_log_init(&(struct nr_log_cfg){.level = NR_LOG_INFO, .fd = -1});
    close(fd);
}

static size_t count_lines(const char *text)
{
    size_t n = 0;
    for (; *text != '\0'; text++) {
        n += *text == '\n';
    }
    return n;
}

/* What follows the time stamp, which is checked for its shape. */
static const char *after_time(const char *line, const char *lead)
{
    assert_int_equal(strncmp(line, lead, strlen(lead)), 0);
    line += strlen(lead);
    assert_int_equal(line[4], '-');
    assert_int_equal(line[10], 'T');
    assert_int_equal(line[23], 'Z');
    return line + 24;
}

static void test_text_form(void **state)
{
    (void)state;
    int fd = open_log(false);
    nr_log(NR_LOG_INFO, "model", "loaded", NR_KV_TEXT("model", "resnet"), NR_KV_INT("ms", -12),
           NR_KV_DBL("gb", 1.5), NR_KV_STR("empty", NR_STR("")), NR_KV_TEXT("null", NULL),
           NR_KV_TEXT("path", "a b=\"c\"\\"), NR_KV_DBL("x", (double)NAN));
    assert_string_equal(after_time(read_back(fd), "ts="),
                        " level=info module=model msg=loaded model=resnet ms=-12 gb=1.5 "
                        "empty=\"\" null=\"\" path=\"a b=\\\"c\\\"\\\\\" x=nan\n");
    nr_log(NR_LOG_WARN, "m", "no values");
    assert_non_null(strstr(read_back(fd), " level=warn module=m msg=\"no values\"\n"));
    close_log(fd);
}

static void test_json_form(void **state)
{
    (void)state;
    int fd = open_log(true);
    nr_log(NR_LOG_ERROR, "http", "bad \"head\"", NR_KV_INT("n", INT64_MIN),
           NR_KV_DBL("x", (double)INFINITY), NR_KV_STR("bytes", NR_STR("\xff\n")));
    assert_string_equal(after_time(read_back(fd), "{\"ts\":\""),
                        "\",\"level\":\"error\",\"module\":\"http\",\"msg\":\"bad \\\"head\\\"\","
                        "\"n\":-9223372036854775808,\"x\":null,\"bytes\":\"\xef\xbf\xbd\\n\"}\n");
    close_log(fd);
}

static void test_levels(void **state)
{
    (void)state;
    int fd = open_log(false);
    assert_false(nr_log_on(NR_LOG_DEBUG));
    assert_true(nr_log_on(NR_LOG_INFO));
    int built = 0;
    nr_log(NR_LOG_DEBUG, "m", "not built", NR_KV_INT("n", ++built));
    assert_int_equal(built, 0);
    nr_log_init(&(struct nr_log_cfg){.level = NR_LOG_OFF, .fd = fd});
    assert_false(nr_log_on(NR_LOG_ERROR));
    assert_false(nr_log_on(NR_LOG_OFF));
    nr_log(NR_LOG_ERROR, "m", "off");
    assert_string_equal(read_back(fd), "");
    nr_log_level level = NR_LOG_OFF;
    assert_true(nr_log_level_parse(NR_STR("Debug"), &level));
    assert_int_equal(level, NR_LOG_DEBUG);
    assert_true(nr_log_level_parse(NR_STR("off"), &level));
    assert_int_equal(level, NR_LOG_OFF);
    assert_false(nr_log_level_parse(NR_STR("warning!"), &level));
    assert_false(nr_log_level_parse(NR_STR(""), &level));
    close_log(fd);
}

/* No value, however hostile, makes a second line or a raw control character. */
static void test_hostile_values(void **state)
{
    (void)state;
    for (int json = 0; json < 2; json++) {
        int fd = open_log(json);
        for (int i = 0; i < 256; i++) {
            char value[4] = {'v', (char)i, (char)(i * 7), 'w'};
            nr_log_write_each(NR_LOG_INFO, "m", "hostile",
                              (const struct nr_kv[]){NR_KV_STR("v", ((struct nr_str){value, 4})),
                                                     {.kind = NR_KV_END}});
        }
        const char *text = read_back(fd);
        assert_int_equal(count_lines(text), 256);
        assert_true(nr_str_is_utf8(nr_str_from(text)));
        for (; *text != '\0'; text++) {
            assert_true((unsigned char)*text >= 0x20 || *text == '\n');
            assert_int_not_equal(*text, 0x7f);
        }
        close_log(fd);
    }
}

static void test_cutting(void **state)
{
    (void)state;
    static char large[100000];
    memset(large, 'x', sizeof(large));
    struct nr_str value = {large, sizeof(large)};
    for (int json = 0; json < 2; json++) {
        int fd = open_log(json);
        nr_log(NR_LOG_INFO, "m", "one", NR_KV_STR("v", value), NR_KV_INT("after", 5));
        const char *text = read_back(fd);
        assert_in_range(strlen(text), 2048, 2048 + 200);
        assert_non_null(strstr(text, "xx\xe2\x80\xa6"));
        assert_non_null(strstr(text, "after"));
        nr_log(NR_LOG_INFO, "m", "many", NR_KV_STR("a", value), NR_KV_STR("b", value),
               NR_KV_STR("c", value), NR_KV_STR("d", value), NR_KV_STR("e", value));
        const char *second = strchr(read_back(fd), '\n') + 1;
        assert_in_range(strlen(second), 4096, 8192);
        assert_non_null(strstr(second, json ? ",\"cut\":1}\n" : " cut=1\n"));
        assert_int_equal(count_lines(written), 2);
        /* Control characters grow six-fold when escaped. */
        memset(large, 1, sizeof(large));
        nr_log(NR_LOG_INFO, "m", "grows", NR_KV_STR("a", value));
        assert_int_equal(count_lines(read_back(fd)), 3);
        memset(large, 'x', sizeof(large));
        close_log(fd);
    }
}

/* Lines that end on every byte around the limit are whole: closed, with the mark when cut. */
static void test_cutting_at_every_byte(void **state)
{
    (void)state;
    static char large[2048];
    memset(large, 'x', sizeof(large));
    struct nr_str value = {large, sizeof(large)};
    for (int json = 0; json < 2; json++) {
        int n_cut = 0;
        for (size_t len = 1850; len < 2040; len++) {
            int fd = open_log(json);
            struct nr_str last = {large, len};
            nr_log_write_each(NR_LOG_INFO, "m", "edge",
                              (const struct nr_kv[]){NR_KV_STR("a", value),
                                                     NR_KV_STR("b", value),
                                                     NR_KV_STR("c", value),
                                                     NR_KV_STR("d", last),
                                                     {.kind = NR_KV_END}});
            const char *text = read_back(fd);
            size_t n = strlen(text);
            assert_in_range(n, 6000, 8191);
            assert_string_equal(text + n - (json ? 2 : 1), json ? "}\n" : "\n");
            bool is_cut = strstr(text, json ? ",\"cut\":1}" : " cut=1\n") != NULL;
            assert_true(is_cut != (strstr(text, json ? "\"d\":" : " d=") != NULL));
            n_cut += is_cut;
            close_log(fd);
        }
        assert_in_range(n_cut, 1, 189); /* both kinds were met */
    }
}

/* A message that does not fall on the same place of the table, where two kinds would share by turns:
 * the hash is seeded, so one run in 128 would meet that. */
static void other_kind(const char *msg, char out[24])
{
    for (int i = 0; i == 0 || nr_hash(out, strlen(out)) % 128 == nr_hash(msg, strlen(msg)) % 128;
         i++) {
        (void)snprintf(out, 24, "another %d", i);
    }
}

static void test_repeats_are_counted(void **state)
{
    (void)state;
    char other[24];
    other_kind("again and again", other);
    int fd = open_log(false);
    nr_clock_fake(true, 50 * NR_S_NS);
    for (int i = 0; i < 350; i++) {
        nr_log(NR_LOG_INFO, "m", "again and again", NR_KV_INT("i", i));
    }
    assert_int_equal(count_lines(read_back(fd)), 100);
    nr_log(NR_LOG_INFO, "m", other);
    assert_int_equal(count_lines(read_back(fd)), 101);
    nr_clock_fake_advance(NR_S_NS);
    nr_log(NR_LOG_INFO, "m", "again and again", NR_KV_INT("i", 350));
    assert_non_null(strstr(read_back(fd), "msg=\"again and again\" repeats=250 i=350\n"));
    nr_log(NR_LOG_INFO, "m", "again and again", NR_KV_INT("i", 351));
    assert_non_null(strstr(read_back(fd), "msg=\"again and again\" i=351\n"));
    for (int i = 0; i < 300; i++) {
        nr_log_write_each(NR_LOG_INFO, "access", "request",
                          (const struct nr_kv[]){{.kind = NR_KV_END}});
    }
    assert_int_equal(count_lines(read_back(fd)), 403);
    nr_clock_fake(false, 0);
    close_log(fd);
}

static void test_lost_lines_are_told(void **state)
{
    (void)state;
    int fd = open_log(false);
    int pipes[2];
    assert_int_equal(pipe2(pipes, O_NONBLOCK | O_CLOEXEC), 0);
    while (write(pipes[1], written, 4096) > 0) {
    }
    nr_log_init(&(struct nr_log_cfg){.level = NR_LOG_INFO, .fd = pipes[1]});
    nr_log(NR_LOG_INFO, "m", "lost"); /* EAGAIN: not waited for */
    nr_log(NR_LOG_INFO, "m", "lost");
    nr_log_init(&(struct nr_log_cfg){.level = NR_LOG_INFO, .fd = fd});
    nr_log(NR_LOG_INFO, "m", "passes");
    assert_non_null(strstr(read_back(fd), "msg=passes lost_lines=1\n"));
    close(pipes[0]);
    close(pipes[1]);
    close_log(fd);
}

static void *log_much(void *arg)
{
    for (int i = 0; i < 500; i++) {
        nr_log_write_each(NR_LOG_INFO, "thread", "line",
                          (const struct nr_kv[]){NR_KV_TEXT("who", (const char *)arg),
                                                 NR_KV_INT("i", i),
                                                 {.kind = NR_KV_END}});
        nr_log(NR_LOG_INFO, "thread", "limited", NR_KV_INT("i", i));
    }
    return NULL;
}

static void test_threads_do_not_mix_lines(void **state)
{
    (void)state;
    int fd = open_log(false);
    pthread_t t[3];
    static char names[3][4] = {"aaa", "bbb", "ccc"};
    for (int i = 0; i < 3; i++) {
        assert_int_equal(pthread_create(&t[i], NULL, log_much, names[i]), 0);
    }
    for (int i = 0; i < 3; i++) {
        pthread_join(t[i], NULL);
    }
    size_t n = 0;
    char *rest = written;
    read_back(fd);
    for (char *line = strsep(&rest, "\n"); line != NULL && *line != 0; line = strsep(&rest, "\n")) {
        after_time(line, "ts=");
        n += strstr(line, "msg=line who=") != NULL;
    }
    assert_int_equal(n, 1500);
    close_log(fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_text_form),
        cmocka_unit_test(test_json_form),
        cmocka_unit_test(test_levels),
        cmocka_unit_test(test_hostile_values),
        cmocka_unit_test(test_cutting),
        cmocka_unit_test(test_cutting_at_every_byte),
        cmocka_unit_test(test_repeats_are_counted),
        cmocka_unit_test(test_lost_lines_are_told),
        cmocka_unit_test(test_threads_do_not_mix_lines),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
