/* Two processes of one user that hand open descriptors to each other: lines of text over a Unix socket,
 * each with at most one descriptor.
 *
 * SOCK_SEQPACKET: a line is a packet, so nothing has to be put together again, and a line and its
 * descriptor cannot part. They meet either because one started the other (nr_pass_pair) or by a name
 * that only the kernel's signal could have told (nr_pass_listen, nr_pass_connect): an abstract
 * address made of 64 random bits, which leaves no file behind and stands only while an upgrade runs.
 * Whoever meets that way looks at who the other is, as the kernel says it (SO_PEERCRED, unix(7)).
 */
#ifndef NR_IO_PASS_H
#define NR_IO_PASS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/status.h"

#define NR_PASS_LINE_MAX 1024

/* ret[0] stays here; both are close-on-exec. */
nr_nodiscard nr_status nr_pass_pair(int ret[2], struct nr_err *err);
/* A fresh random name, and a socket that waits for one peer. */
nr_nodiscard nr_status nr_pass_listen(uint64_t *ret_name, int *ret_fd, struct nr_err *err);
/* Of those who come until deadline_ns (monotonic) takes the process `from`, and turns others away.
 * NARU_TIMEOUT. */
nr_nodiscard nr_status nr_pass_accept(int listen_fd, pid_t from, int64_t deadline_ns, int *ret_fd,
                                      struct nr_err *err);
/* NARU_DENIED: who waits there belongs to another user (root is never another). *ret_pid: who it is. */
nr_nodiscard nr_status nr_pass_connect(uint64_t name, int *ret_fd, pid_t *ret_pid,
                                       struct nr_err *err);

/* fd -1: none; it stays the caller's. Waits up to 5 s while the other's queue is full.
 * NARU_UNAVAILABLE: nobody reads there any more. */
nr_nodiscard nr_status nr_pass_send(int sock, const char *line, int fd, struct nr_err *err);
/* The next line, with a NUL; *ret_fd is the caller's, -1 when none came with it. NARU_TIMEOUT:
 * nothing came until deadline_ns (monotonic; 0: look once). NARU_UNAVAILABLE: the other has closed. */
nr_nodiscard nr_status nr_pass_receive(int sock, int64_t deadline_ns, char line[NR_PASS_LINE_MAX],
                                       int *ret_fd, struct nr_err *err);

#endif
