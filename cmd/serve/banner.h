/* What naru serve prints at its start, and systemd's notifications. */
#ifndef NARU_SERVE_BANNER_H
#define NARU_SERVE_BANNER_H

#include <stdio.h>

#include "api/node.h"

/* Models with their effective configuration, load time and memory; addresses; what a client would
 * type next. since_ns: when the process began (monotonic). */
void serve_banner(struct nr_node *node, int64_t since_ns, FILE *out);

/* sd_notify without libsystemd: one datagram to $NOTIFY_SOCKET; nothing when that is not set. */
void serve_notify(const char *state);

#endif
