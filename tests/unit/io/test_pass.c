/* Lines and descriptors between two processes: what arrives, what is refused, who may meet; and the program
 * started beside itself. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "io/file.h"
#include "io/pass.h"
#include "io/rebirth.h"

#define VARIABLE "NARU_TEST_PASS_FD"

static int64_t soon(void)
{
    return nr_clock_now() + 60 * NR_S_NS;
}

static unsigned n_fds(void)
{
    DIR *d = opendir("/proc/self/fd");
    unsigned n = 0;
    assert_non_null(d);
    while (readdir(d) != NULL) {
        n++;
    }
    closedir(d);
    return n;
}

static void test_lines(void **state)
{
    (void)state;
    int pair[2], fd;
    char line[NR_PASS_LINE_MAX], longest[NR_PASS_LINE_MAX + 1];
    struct nr_err err = {0};
    assert_int_equal(nr_pass_pair(pair, &err), NARU_OK);
    assert_int_equal(nr_pass_receive(pair[0], 0, line, &fd, &err), NARU_TIMEOUT);
    assert_int_equal(nr_pass_receive(pair[0], nr_clock_now() + NR_MS_NS, line, &fd, &err),
                     NARU_TIMEOUT);
    assert_int_equal(nr_pass_send(pair[1], "one", -1, &err), NARU_OK);
    assert_int_equal(nr_pass_send(pair[1], "two", STDERR_FILENO, &err), NARU_OK);
    memset(longest, 'x', sizeof(longest) - 1);
    longest[sizeof(longest) - 1] = '\0';
    assert_int_equal(nr_pass_send(pair[1], longest, -1, &err), NARU_TOO_LARGE);
    assert_int_equal(nr_pass_send(pair[1], "", -1, &err), NARU_TOO_LARGE);
    longest[NR_PASS_LINE_MAX - 1] = '\0';
    assert_int_equal(nr_pass_send(pair[1], longest, -1, &err), NARU_OK);
    assert_int_equal(nr_pass_receive(pair[0], 0, line, &fd, &err), NARU_OK);
    assert_string_equal(line, "one");
    assert_int_equal(fd, -1);
    assert_int_equal(nr_pass_receive(pair[0], 0, line, &fd, &err), NARU_OK);
    assert_string_equal(line, "two");
    assert_true(fd > 2);
    assert_int_equal(fcntl(fd, F_GETFD), FD_CLOEXEC);
    nr_close(fd);
    assert_int_equal(nr_pass_receive(pair[0], 0, line, &fd, &err), NARU_OK);
    assert_string_equal(line, longest);
    nr_close(pair[1]);
    assert_int_equal(nr_pass_receive(pair[0], soon(), line, &fd, &err), NARU_UNAVAILABLE);
    assert_int_equal(nr_pass_send(pair[0], "x", -1, &err), NARU_UNAVAILABLE); /* and no signal */
    nr_close(pair[0]);
}

/* What one said before it closed is heard, though it had not read what the other said. */
static void test_last_words(void **state)
{
    (void)state;
    int pair[2], fd;
    char line[NR_PASS_LINE_MAX];
    struct nr_err err = {0};
    assert_int_equal(nr_pass_pair(pair, &err), NARU_OK);
    assert_int_equal(nr_pass_send(pair[0], "hello", -1, &err), NARU_OK);
    assert_int_equal(nr_pass_send(pair[1], "failed not now", -1, &err), NARU_OK);
    nr_close(pair[1]);
    assert_int_equal(nr_pass_receive(pair[0], soon(), line, &fd, &err), NARU_OK);
    assert_string_equal(line, "failed not now");
    assert_int_equal(nr_pass_receive(pair[0], soon(), line, &fd, &err), NARU_UNAVAILABLE);
    nr_close(pair[0]);
}

static void send_raw(int sock, size_t bytes, unsigned n)
{
    static char data[4096];
    int fds[4] = {0, 1, 2, 0};
    union {
        struct cmsghdr head;
        char room[CMSG_SPACE(sizeof(fds))];
    } control = {.room = {0}};
    struct iovec iov = {data, bytes};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
    memset(data, 'y', sizeof(data));
    if (n > 0) {
        msg.msg_control = control.room;
        msg.msg_controllen = CMSG_SPACE(n * sizeof(int));
        *CMSG_FIRSTHDR(&msg) = (struct cmsghdr){.cmsg_len = CMSG_LEN(n * sizeof(int)),
                                                .cmsg_level = SOL_SOCKET,
                                                .cmsg_type = SCM_RIGHTS};
        memcpy(CMSG_DATA(CMSG_FIRSTHDR(&msg)), fds, n * sizeof(int));
    }
    assert_int_equal(sendmsg(sock, &msg, 0), bytes);
}

static void test_packets_that_are_none_of_ours(void **state)
{
    (void)state;
    int pair[2], fd;
    char line[NR_PASS_LINE_MAX];
    struct nr_err err = {0};
    assert_int_equal(nr_pass_pair(pair, &err), NARU_OK);
    unsigned before = n_fds();
    const struct {
        size_t bytes;
        unsigned fds;
    } bad[] = {{NR_PASS_LINE_MAX, 0}, {4096, 1}, {3, 2}, {3, 4}};
    for (size_t i = 0; i < NR_COUNT(bad); i++) {
        send_raw(pair[1], bad[i].bytes, bad[i].fds);
        assert_int_equal(nr_pass_receive(pair[0], soon(), line, &fd, &err), NARU_INVALID);
        assert_int_equal(fd, -1);
    }
    assert_int_equal(n_fds(), before);
    nr_close(pair[0]);
    nr_close(pair[1]);
}

static void test_meeting(void **state)
{
    (void)state;
    uint64_t name, other;
    int door, second, here, there, fd;
    pid_t who = 0;
    char line[NR_PASS_LINE_MAX];
    struct nr_err err = {0};
    assert_int_equal(nr_pass_listen(&name, &door, &err), NARU_OK);
    assert_int_equal(nr_pass_listen(&other, &second, &err), NARU_OK);
    assert_int_not_equal(name, other);
    nr_close(second);
    assert_int_equal(nr_pass_connect(other, &fd, &who, &err), NARU_UNAVAILABLE);
    assert_int_equal(nr_pass_accept(door, getpid(), nr_clock_now() + NR_MS_NS, &fd, &err),
                     NARU_TIMEOUT);
    assert_int_equal(nr_pass_connect(name, &there, &who, &err), NARU_OK);
    assert_int_equal(who, getpid());
    assert_int_equal(nr_pass_accept(door, getpid(), soon(), &here, &err), NARU_OK);
    assert_int_equal(nr_pass_send(there, "x", door, &err), NARU_OK);
    assert_int_equal(nr_pass_receive(here, soon(), line, &fd, &err), NARU_OK);
    nr_close(fd);
    nr_close(here);
    nr_close(there);
    /* Somebody else came: turned away. */
    assert_int_equal(nr_pass_connect(name, &there, &who, &err), NARU_OK);
    assert_int_equal(nr_pass_accept(door, 1, nr_clock_now() + 5 * NR_MS_NS, &here, &err),
                     NARU_TIMEOUT);
    assert_int_equal(nr_pass_receive(there, soon(), line, &fd, &err), NARU_UNAVAILABLE);
    nr_close(there);
    nr_close(door);
}

static void test_socket_of_another_user(void **state)
{
    (void)state;
    int pair[2], fd;
    pid_t who;
    uint64_t name = 0;
    struct nr_err err = {0};
    if (getuid() != 0) {
        skip();
    }
    assert_int_equal(pipe2(pair, O_CLOEXEC), 0);
    pid_t child = fork();
    if (child == 0) {
        struct nr_err e = {0};
        uint64_t n = 0;
        bool ok = setuid(65534) == 0 && nr_pass_listen(&n, &fd, &e) == NARU_OK &&
                  write(pair[1], &n, sizeof(n)) == sizeof(n);
        if (ok) {
            (void)pause(); /* until it is killed */
        }
        _exit(1);
    }
    assert_int_equal(read(pair[0], &name, sizeof(name)), sizeof(name));
    assert_int_equal(nr_pass_connect(name, &fd, &who, &err), NARU_DENIED);
    assert_non_null(strstr(err.text, "user 65534"));
    (void)kill(child, SIGKILL);
    assert_int_equal(waitpid(child, NULL, 0), child);
    nr_close(pair[0]);
    nr_close(pair[1]);
}

/* This program again, which tells the other end what it finds (see main). */
static void test_rebirth(void **state)
{
    (void)state;
    struct nr_rebirth *r = NULL;
    struct nr_err err = {0};
    int pair[2], fd, status;
    pid_t pid;
    char line[NR_PASS_LINE_MAX];
    setenv("LISTEN_PID", "1", 1);
    setenv("LISTEN_FDS", "1", 1);
    int leak = open("/dev/null", O_RDONLY); /* NOLINT: not close-on-exec, as some library's */
    assert_true(leak >= 0);
    assert_int_equal(nr_rebirth_note(&r, &err), NARU_OK);
    assert_non_null(strstr(nr_rebirth_path(r), "test_pass"));
    assert_int_equal(nr_pass_pair(pair, &err), NARU_OK);
    sigset_t blocked;
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGTERM);
    sigprocmask(SIG_BLOCK, &blocked, NULL);
    assert_int_equal(nr_rebirth_start(r, pair[1], VARIABLE, &pid, &err), NARU_OK);
    sigprocmask(SIG_UNBLOCK, &blocked, NULL);
    nr_close(pair[1]);
    assert_int_equal(nr_pass_receive(pair[0], soon(), line, &fd, &err), NARU_OK);
    assert_string_equal(line, "fd 3, 0 others, LISTEN_FDS none, SIGTERM free");
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    nr_close(pair[0]);
    nr_close(leak);
    nr_rebirth_free(r);
}

static int reborn(const char *number)
{
    char line[256];
    struct nr_err err = {0};
    sigset_t mask;
    unsigned others = 0;
    for (int fd = NR_REBIRTH_FD + 1; fd < 1024; fd++) {
        others += fcntl(fd, F_GETFD) >= 0;
    }
    sigprocmask(SIG_BLOCK, NULL, &mask);
    snprintf(line, sizeof(line), "fd %s, %u others, LISTEN_FDS %s, SIGTERM %s", number, others,
             getenv("LISTEN_FDS") == NULL && getenv("LISTEN_PID") == NULL ? "none" : "there",
             sigismember(&mask, SIGTERM) ? "blocked" : "free");
    return nr_pass_send(NR_REBIRTH_FD, line, -1, &err) == NARU_OK ? 0 : 1;
}

int main(void)
{
    const char *number = getenv(VARIABLE);
    if (number != NULL) {
        return reborn(number);
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lines),
        cmocka_unit_test(test_last_words),
        cmocka_unit_test(test_packets_that_are_none_of_ours),
        cmocka_unit_test(test_meeting),
        cmocka_unit_test(test_socket_of_another_user),
        cmocka_unit_test(test_rebirth),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
