/* Sockets: addresses and their text, listening, inherited options, running out of descriptors. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "io/file.h"
#include "io/sock.h"

static void test_parse_and_format(void **state)
{
    (void)state;
    static const struct {
        const char *host;
        const char *text; /* NULL: not accepted */
        bool is_loopback;
    } cases[] = {
        {NULL, "127.0.0.1:80", true},
        {"", "127.0.0.1:80", true},
        {"LocalHost", "127.0.0.1:80", true},
        {"127.8.9.10", "127.8.9.10:80", true},
        {"0.0.0.0", "0.0.0.0:80", false},
        {"128.0.0.1", "128.0.0.1:80", false},
        {"::1", "[::1]:80", true},
        {"[::1]", "[::1]:80", true},
        {"::", "[::]:80", false},
        {"::ffff:127.0.0.1", "127.0.0.1:80", true},
        {"::ffff:10.0.0.1", "10.0.0.1:80", false},
        {"::2", "[::2]:80", false},
        {"2001:db8:1111:2222:3333:4444:5555:6666", "[2001:db8:1111:2222:3333:4444:5555:6666]:80",
         false},
        {"example.invalid", NULL, false},
        {"127.1", NULL, false},
        {"127.0.0.1 ", NULL, false},
        {"300.0.0.1", NULL, false},
        {"[::1", NULL, false},
        {"[]", NULL, false},
        {"0000000000000000000000000000000000000000000000000000000127.0.0.1", NULL, false},
    };
    for (size_t i = 0; i < NR_COUNT(cases); i++) {
        struct nr_sock_addr a;
        struct nr_err err = {0};
        nr_status status = nr_sock_addr_parse(cases[i].host, 80, &a, &err);
        if (cases[i].text == NULL) {
            assert_int_equal(status, NARU_INVALID);
            assert_true(strlen(err.text) > 0);
            continue;
        }
        assert_int_equal(status, NARU_OK);
        char text[NR_SOCK_TEXT_MAX];
        nr_sock_addr_format(&a, text);
        assert_string_equal(text, cases[i].text);
        assert_int_equal(nr_sock_loopback(&a), cases[i].is_loopback);
        assert_int_equal(nr_sock_addr_port(&a), 80);
    }
    struct nr_sock_addr local = {.addr.ss_family = AF_UNIX, .len = 2};
    char text[NR_SOCK_TEXT_MAX];
    nr_sock_addr_format(&local, text);
    assert_string_equal(text, "unix");
    assert_true(nr_sock_loopback(&local));
    assert_int_equal(nr_sock_addr_port(&local), 0);
    local.addr.ss_family = AF_UNSPEC;
    assert_false(nr_sock_loopback(&local));
}

static int listen_on(const char *host, uint16_t port, bool reuse_port, struct nr_sock_addr *at)
{
    int fd = -1;
    struct nr_err err = {0};
    struct nr_sock_listen cfg = {.host = host, .port = port, .reuse_port = reuse_port};
    assert_int_equal(nr_sock_listen(&cfg, &fd, &err), NARU_OK);
    assert_int_equal(nr_sock_local(fd, at), NARU_OK);
    return fd;
}

static int connect_to(const struct nr_sock_addr *a)
{
    int fd = socket(a->addr.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    assert_int_equal(connect(fd, (const struct sockaddr *)&a->addr, a->len), 0);
    return fd;
}

static int option(int fd, int level, int name)
{
    int value = -1;
    socklen_t len = sizeof(value);
    assert_int_equal(getsockopt(fd, level, name, &value, &len), 0);
    return value;
}

static void test_accept(void **state)
{
    (void)state;
    struct nr_sock_addr at;
    nr_autoclose int listener = listen_on(NULL, 0, false, &at);
    assert_true(nr_sock_loopback(&at)); /* unless told otherwise */
    assert_true(nr_sock_addr_port(&at) != 0);
    assert_true((fcntl(listener, F_GETFL) & O_NONBLOCK) != 0);
    assert_true((fcntl(listener, F_GETFD) & FD_CLOEXEC) != 0);
    assert_true(option(listener, SOL_SOCKET, SO_REUSEADDR) != 0);
    assert_int_equal(option(listener, SOL_SOCKET, SO_REUSEPORT), 0);

    struct nr_sock_acceptor acceptor;
    nr_sock_acceptor_init(&acceptor);
    int fd = -1;
    struct nr_sock_addr peer;
    assert_int_equal(nr_sock_accept(&acceptor, listener, &fd, &peer), NARU_AGAIN);
    nr_autoclose int client = connect_to(&at);
    assert_int_equal(nr_sock_accept(&acceptor, listener, &fd, &peer), NARU_OK);
    assert_true((fcntl(fd, F_GETFL) & O_NONBLOCK) != 0);
    assert_true((fcntl(fd, F_GETFD) & FD_CLOEXEC) != 0);
    assert_true(option(fd, IPPROTO_TCP, TCP_NODELAY) != 0); /* inherited */
    struct nr_sock_addr client_at;
    assert_int_equal(nr_sock_local(client, &client_at), NARU_OK);
    char want[NR_SOCK_TEXT_MAX];
    char got[NR_SOCK_TEXT_MAX];
    nr_sock_addr_format(&client_at, want);
    nr_sock_addr_format(&peer, got);
    assert_string_equal(got, want);
    nr_close(fd);
    assert_int_equal(nr_sock_accept(&acceptor, client, &fd, &peer), NARU_IO); /* no listener */
    nr_sock_acceptor_done(&acceptor);
    nr_sock_acceptor_done(&acceptor);
    assert_int_equal(nr_sock_local(-1, &peer), NARU_IO);
}

static void test_ipv6_and_both(void **state)
{
    (void)state;
    int probe = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in6 one = {.sin6_family = AF_INET6, .sin6_addr = in6addr_loopback};
    bool has = probe >= 0 && bind(probe, (struct sockaddr *)&one, sizeof(one)) == 0;
    nr_close(probe);
    if (!has) {
        print_message("no IPv6 loopback on this machine: skipped\n");
        skip();
    }
    struct nr_sock_addr at;
    nr_autoclose int v6 = listen_on("::1", 0, false, &at);
    nr_autoclose int client = connect_to(&at);
    assert_true(nr_sock_loopback(&at));
    /* "*" serves IPv4 clients too, who read as IPv4. */
    nr_autoclose int both = listen_on("*", 0, false, &at);
    struct nr_sock_addr v4;
    assert_int_equal(nr_sock_addr_parse(NULL, nr_sock_addr_port(&at), &v4, NULL), NARU_OK);
    nr_autoclose int client4 = connect_to(&v4);
    struct nr_sock_acceptor acceptor;
    nr_sock_acceptor_init(&acceptor);
    int fd = -1;
    struct nr_sock_addr peer;
    assert_int_equal(nr_sock_accept(&acceptor, both, &fd, &peer), NARU_OK);
    char text[NR_SOCK_TEXT_MAX];
    nr_sock_addr_format(&peer, text);
    assert_int_equal(strncmp(text, "127.0.0.1:", 10), 0);
    assert_true(nr_sock_loopback(&peer));
    nr_close(fd);
    nr_sock_acceptor_done(&acceptor);
}

static void test_listen_errors(void **state)
{
    (void)state;
    struct nr_sock_addr at;
    nr_autoclose int first = listen_on(NULL, 0, false, &at);
    uint16_t port = nr_sock_addr_port(&at);
    int fd = -1;
    struct nr_err err = {0};
    assert_int_equal(nr_sock_listen(&(struct nr_sock_listen){.port = port}, &fd, &err),
                     NARU_EXISTS);
    assert_non_null(strstr(err.text, "127.0.0.1:"));
    assert_non_null(strstr(err.text, "choose another port"));
    assert_int_equal(fd, -1);
    /* An address of a documentation network, which no interface has. */
    assert_int_equal(nr_sock_listen(&(struct nr_sock_listen){.host = "192.0.2.1"}, &fd, &err),
                     NARU_NOT_FOUND);
    assert_int_equal(nr_sock_listen(&(struct nr_sock_listen){.host = "nowhere"}, &fd, &err),
                     NARU_INVALID);
    /* Two sockets of one loop each share an address when both ask for it. */
    nr_autoclose int a = listen_on(NULL, 0, true, &at);
    nr_autoclose int b = listen_on(NULL, nr_sock_addr_port(&at), true, &at);
    assert_true(a >= 0 && b >= 0);
}

/* With no descriptor left a client is turned away at once instead of making the loop spin. */
static void test_out_of_descriptors(void **state)
{
    (void)state;
    struct nr_sock_addr at;
    nr_autoclose int listener = listen_on(NULL, 0, false, &at);
    struct nr_sock_acceptor acceptor;
    nr_sock_acceptor_init(&acceptor);
    int clients[3];
    for (int i = 0; i < 3; i++) {
        clients[i] = connect_to(&at);
    }
    struct rlimit before;
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
    int next = dup(0);
    nr_close(next);
    struct rlimit low = {(rlim_t)next, before.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &low), 0);
    int fd = -1;
    struct nr_sock_addr peer;
    nr_status first = nr_sock_accept(&acceptor, listener, &fd, &peer);
    nr_status second = nr_sock_accept(&acceptor, listener, &fd, &peer);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
    assert_int_equal(first, NARU_EXHAUSTED);
    assert_int_equal(second, NARU_EXHAUSTED);
    assert_int_equal(fd, -1);
    assert_true(acceptor.reserve_fd >= 0); /* held again */
    for (int i = 0; i < 2; i++) {          /* turned away: end of stream or a reset */
        struct pollfd p = {.fd = clients[i], .events = POLLIN};
        assert_int_equal(poll(&p, 1, 5000), 1);
        char c;
        assert_true(read(clients[i], &c, 1) <= 0);
    }
    assert_int_equal(nr_sock_accept(&acceptor, listener, &fd, &peer), NARU_OK); /* the third */
    nr_close(fd);
    for (int i = 0; i < 3; i++) {
        nr_close(clients[i]);
    }
    nr_sock_acceptor_done(&acceptor);
}

static void test_compare(void **state)
{
    (void)state;
    static const struct {
        const char *a;
        uint16_t a_port;
        const char *b;
        uint16_t b_port;
        nr_sock_common want;
    } cases[] = {
        {"127.0.0.1", 80, "localhost", 80, NR_SOCK_SAME},
        {"127.0.0.1", 80, "127.0.0.1", 81, NR_SOCK_APART},
        {"127.0.0.1", 0, "127.0.0.1", 0, NR_SOCK_APART},
        {"127.0.0.1", 80, "127.0.0.2", 80, NR_SOCK_APART},
        {"127.0.0.1", 80, "::1", 80, NR_SOCK_APART},
        {"127.0.0.1", 80, "::ffff:127.0.0.1", 80, NR_SOCK_SAME},
        {"::1", 80, "[::1]", 80, NR_SOCK_SAME},
        {"0.0.0.0", 80, "127.0.0.1", 80, NR_SOCK_OVERLAP},
        {"0.0.0.0", 80, "::1", 80, NR_SOCK_APART},
        {"0.0.0.0", 80, "0.0.0.0", 80, NR_SOCK_SAME},
        {"::", 80, "127.0.0.1", 80, NR_SOCK_OVERLAP},
        {"::", 80, "::1", 80, NR_SOCK_OVERLAP},
        {"::", 80, "0.0.0.0", 80, NR_SOCK_OVERLAP},
        {"*", 80, "10.0.0.1", 80, NR_SOCK_OVERLAP},
        {"*", 80, "10.0.0.1", 81, NR_SOCK_APART},
    };
    for (size_t i = 0; i < NR_COUNT(cases); i++) {
        struct nr_sock_addr a, b;
        assert_int_equal(nr_sock_addr_parse(cases[i].a, cases[i].a_port, &a, NULL), NARU_OK);
        assert_int_equal(nr_sock_addr_parse(cases[i].b, cases[i].b_port, &b, NULL), NARU_OK);
        assert_int_equal(nr_sock_addr_compare(&a, &b), cases[i].want);
        assert_int_equal(nr_sock_addr_compare(&b, &a), cases[i].want);
    }
    struct nr_sock_addr local = {.addr.ss_family = AF_UNIX};
    assert_int_equal(nr_sock_addr_compare(&local, &local), NR_SOCK_APART);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_compare),       cmocka_unit_test(test_parse_and_format),
        cmocka_unit_test(test_accept),        cmocka_unit_test(test_ipv6_and_both),
        cmocka_unit_test(test_listen_errors), cmocka_unit_test(test_out_of_descriptors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
