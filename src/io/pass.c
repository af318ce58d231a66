/* Lines and descriptors between two processes: see pass.h for the contracts.
 *
 * DESIGN. Blocking calls behind poll(2) with a limit: this is the main thread's business of an upgrade,
 * a few dozen lines in all, never a loop's.
 *
 * INVARIANTS
 *  1. Every descriptor made or received here is close-on-exec from the call that makes it.
 *  2. A packet that is longer than a line, or carries more than one descriptor, is refused whole and
 *     nothing of it stays open.
 *
 * Threads: no state.
 */
#include "io/pass.h"

#include <errno.h>
#include <poll.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/clock.h"
#include "io/file.h"

#define SEND_NS (5 * NR_S_NS)

nr_status nr_pass_pair(int ret[2], struct nr_err *err)
{
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ret) != 0) {
        return nr_fail(err, nr_status_from_errno(errno), "cannot make a pair of sockets: %m");
    }
    return NARU_OK;
}

/* Abstract: the first byte is 0 (unix(7)). */
static socklen_t address_of(uint64_t name, struct sockaddr_un *ret)
{
    *ret = (struct sockaddr_un){.sun_family = AF_UNIX};
    int len = snprintf(ret->sun_path + 1, sizeof(ret->sun_path) - 1, "naru-upgrade-%016llx",
                       (unsigned long long)name);
    return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)len);
}

nr_status nr_pass_listen(uint64_t *ret_name, int *ret_fd, struct nr_err *err)
{
    struct sockaddr_un at;
    nr_autoclose int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (fd < 0 || getrandom(ret_name, sizeof(*ret_name), 0) != sizeof(*ret_name)) {
        return nr_fail(err, nr_status_from_errno(errno), "cannot make a socket to meet at: %m");
    }
    socklen_t len = address_of(*ret_name, &at);
    if (bind(fd, (struct sockaddr *)&at, len) != 0 || listen(fd, 1) != 0) {
        return nr_fail(err, nr_status_from_errno(errno), "cannot make a socket to meet at: %m");
    }
    *ret_fd = fd;
    fd = -1;
    return NARU_OK;
}

/* Waits for `events`; deadline_ns 0: looks once. */
static bool wait_for(int fd, short events, int64_t deadline_ns)
{
    for (;;) {
        int64_t left_ns = deadline_ns - nr_clock_now();
        struct pollfd p = {.fd = fd, .events = events};
        int64_t ms = left_ns > 0 && deadline_ns > 0 ? left_ns / NR_MS_NS + 1 : 0;
        int n = poll(&p, 1, (int)NR_MIN(ms, (int64_t)60000));
        if (n > 0) {
            return true;
        }
        if ((n < 0 && errno != EINTR) || left_ns <= 0 || deadline_ns == 0) {
            return false;
        }
    }
}

static bool peer_of(int fd, struct ucred *ret)
{
    socklen_t len = sizeof(*ret);
    return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, ret, &len) == 0;
}

nr_status nr_pass_accept(int listen_fd, pid_t from, int64_t deadline_ns, int *ret_fd,
                         struct nr_err *err)
{
    while (wait_for(listen_fd, POLLIN, deadline_ns)) {
        struct ucred peer;
        int fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC);
        if (fd >= 0 && peer_of(fd, &peer) && peer.pid == from) {
            *ret_fd = fd;
            return NARU_OK;
        }
        nr_close(fd); /* whoever guessed 64 bits */
    }
    return nr_fail(err, NARU_TIMEOUT, "process %d did not answer", (int)from);
}

nr_status nr_pass_connect(uint64_t name, int *ret_fd, pid_t *ret_pid, struct nr_err *err)
{
    struct sockaddr_un at;
    struct ucred peer;
    socklen_t len = address_of(name, &at);
    nr_autoclose int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&at, len) != 0 || !peer_of(fd, &peer)) {
        return nr_fail(err, NARU_UNAVAILABLE, "nobody waits where the signal said: %m");
    }
    /* Of a socket that was connected: who listened there, when it began to. */
    if (peer.uid != geteuid() && peer.uid != 0) {
        return nr_fail(err, NARU_DENIED,
                       "process %d belongs to user %u, and this server to user %u: sockets are "
                       "given to one's own only",
                       (int)peer.pid, (unsigned)peer.uid, (unsigned)geteuid());
    }
    *ret_pid = peer.pid;
    *ret_fd = fd;
    fd = -1;
    return NARU_OK;
}

union rights { /* aligned as cmsg(3) wants it */
    struct cmsghdr head;
    char room[CMSG_SPACE(sizeof(int))];
};

nr_status nr_pass_send(int sock, const char *line, int fd, struct nr_err *err)
{
    union rights control = {.room = {0}};
    char copy[NR_PASS_LINE_MAX];
    size_t len = strlen(line);
    if (len == 0 || len >= sizeof(copy)) {
        return nr_fail(err, NARU_TOO_LARGE, "a line of %zu bytes", len);
    }
    memcpy(copy, line, len); /* sendmsg(2) wants it writable */
    struct iovec iov = {copy, len};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
    if (fd >= 0) {
        msg.msg_control = control.room;
        msg.msg_controllen = sizeof(control.room);
        struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
        *c = (struct cmsghdr){
            .cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
        memcpy(CMSG_DATA(c), &fd, sizeof(fd));
    }
    for (;;) {
        if (sendmsg(sock, &msg, MSG_NOSIGNAL | MSG_DONTWAIT) == (ssize_t)len) {
            return NARU_OK;
        }
        if (errno == EAGAIN && wait_for(sock, POLLOUT, nr_clock_now() + SEND_NS)) {
            continue;
        }
        if (errno != EINTR) {
            return nr_fail(err, NARU_UNAVAILABLE, "the other process does not listen: %m");
        }
    }
}

/* What came with the packet; all but the first are closed. False: not one of ours. */
static bool take_rights(struct msghdr *msg, int *ret_fd)
{
    unsigned n = 0;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c != NULL; c = CMSG_NXTHDR(msg, c)) {
        size_t bytes = c->cmsg_len - CMSG_LEN(0);
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) {
            continue;
        }
        for (size_t at = 0; at + sizeof(int) <= bytes; at += sizeof(int), n++) {
            int fd;
            memcpy(&fd, CMSG_DATA(c) + at, sizeof(fd));
            if (n == 0) {
                *ret_fd = fd;
            } else {
                nr_close(fd);
            }
        }
    }
    if (n <= 1 && (msg->msg_flags & (MSG_TRUNC | MSG_CTRUNC)) == 0) {
        return true;
    }
    nr_close(*ret_fd);
    *ret_fd = -1;
    return false;
}

nr_status nr_pass_receive(int sock, int64_t deadline_ns, char line[NR_PASS_LINE_MAX], int *ret_fd,
                          struct nr_err *err)
{
    union rights control = {.room = {0}};
    struct iovec iov = {line, NR_PASS_LINE_MAX - 1};
    struct msghdr msg = {.msg_iov = &iov,
                         .msg_iovlen = 1,
                         .msg_control = control.room,
                         .msg_controllen = sizeof(control.room)};
    *ret_fd = -1;
    if (!wait_for(sock, POLLIN, deadline_ns)) {
        return nr_fail(err, NARU_TIMEOUT, "the other process said nothing in time");
    }
    /* A peer that closed before it read all of ours leaves ECONNRESET, once, in front of its last
     * words (net/unix: unix_release_sock). */
    ssize_t n;
    bool reset = false;
    do {
        n = recvmsg(sock, &msg, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
        if (n < 0 && errno == ECONNRESET && !reset) {
            reset = true;
            errno = EINTR;
        }
    } while (n < 0 && errno == EINTR);
    if (n <= 0) {
        return nr_fail(err, NARU_UNAVAILABLE, "the other process has closed the connection");
    }
    line[n] = '\0';
    if (!take_rights(&msg, ret_fd)) {
        return nr_fail(err, NARU_INVALID, "the other process sent what is no line of an upgrade");
    }
    return NARU_OK;
}
