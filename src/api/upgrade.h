/* One server takes the place of another: the sockets go from the old process to the new one, and no
 * connection is refused meanwhile.
 *
 *   old (nr_giver)                                new (nr_taker)
 *   starts the new one, or is asked by it         says "naru-upgrade 1"
 *   listeners, loaded models, labels, "end"  →    loads; does not accept yet
 *                                            ←    "ready", when it could serve all of that
 *   "go"                                     →    accepts, beside the old one
 *                                            ←    "serving"
 *   stops accepting, then says "stopped"     →    looks once for what only the old one was told of
 *   answers what it has (nr_node_leave), ends     serves
 *
 * Until "serving" nothing has changed for the old one: whatever ends the talk earlier (a line "failed
 * WHY" from either, the end of the connection, the deadline) leaves it as it was. A new one that has
 * said "ready" and finds the old one gone serves: nobody else would. Lines: io/pass.h.
 *
 * Threads: the main thread of each process; calls block for moments, those with a deadline until then.
 */
#ifndef NR_API_UPGRADE_H
#define NR_API_UPGRADE_H

#include "api/node.h"
#include "io/rebirth.h"
#include "io/sock.h"

/* The variable that names the connection in a process that its predecessor started. */
#define NR_UPGRADE_VARIABLE "NARU_UPGRADE_FD"

/* --- listening sockets made by somebody else --- */

struct nr_given {
    struct {
        int fd; /* -1: taken into a configuration */
        uint16_t asked_port;
        char address[NR_SOCK_TEXT_MAX], what[32];
        struct nr_sock_addr bound;
    } sockets[NR_NODE_MAX_LISTEN];
    unsigned n;
    bool all; /* these are the listeners, whatever the options say (socket activation) */
};
/* sd_listen_fds(3): LISTEN_PID, LISTEN_FDS, LISTEN_FDNAMES, which are taken out of the environment. n
 * stays 0 when nothing was given to this process. */
nr_nodiscard nr_status nr_given_by_systemd(struct nr_given *g, struct nr_err *err);
/* cfg->listen gets those that it wants, by address and port (a port 0 by what it was for); all of them
 * when g->all. cfg borrows from g. The others are closed. NARU_DENIED: g->all, and one can be reached
 * from other machines without allow_remote. */
nr_nodiscard nr_status nr_given_use(struct nr_given *g, struct nr_node_cfg *cfg, bool allow_remote,
                                    struct nr_err *err);
void nr_given_done(struct nr_given *g); /* closes what nobody took */

/* --- the new process --- */

struct nr_taker;
/* On the connection that a predecessor left in this process; fd is taken. *g: the sockets. */
nr_nodiscard nr_status nr_taker_inherit(int fd, struct nr_taker **ret, struct nr_given *g,
                                        struct nr_err *err);
/* Asks the process `from`. NARU_NOT_FOUND: no such process, or no server that takes the signal;
 * NARU_DENIED: it belongs to another user; NARU_CANCELLED: it refuses, with its reason. */
nr_nodiscard nr_status nr_taker_ask(pid_t from, struct nr_taker **ret, struct nr_given *g,
                                    struct nr_err *err);
/* Explicit mode: what the old one has loaded is loaded here. cfg borrows. */
void nr_taker_configure(struct nr_taker *t, struct nr_node_cfg *cfg);
/* While models load. NARU_CANCELLED: the old one does not want to be replaced any more. */
nr_nodiscard nr_status nr_taker_look(struct nr_taker *t, struct nr_err *err);
/* Every model is at rest. Gives labels their places; NARU_PRECONDITION: a model that the old one
 * serves is not ready here. Says "ready" and waits for "go". */
nr_nodiscard nr_status nr_taker_ready(struct nr_taker *t, struct nr_node *n, struct nr_err *err);
/* n accepts. Waits until the old one has stopped, and looks for what was left over. NARU_CANCELLED: it
 * was told to end just now. */
nr_nodiscard nr_status nr_taker_serving(struct nr_taker *t, struct nr_node *n, struct nr_err *err);
/* why NULL: nothing is to be told. Accepts t NULL. */
void nr_taker_free(struct nr_taker *t, const char *why);

/* --- the old process --- */

struct nr_giver;
struct nr_giver_cfg {
    struct nr_node *node;
    bool all; /* the sockets came from socket activation */
    int64_t deadline_ns;
};
/* Starts the program anew; see io/rebirth.h. */
nr_nodiscard nr_status nr_giver_start(const struct nr_giver_cfg *cfg, const struct nr_rebirth *r,
                                      struct nr_giver **ret, struct nr_err *err);
/* Meets the one whose signal carried `name`. */
nr_nodiscard nr_status nr_giver_meet(const struct nr_giver_cfg *cfg, uint64_t name,
                                     struct nr_giver **ret, struct nr_err *err);
/* Tells such a one why not. */
void nr_giver_refuse(uint64_t name, const char *why);
int nr_giver_fd(const struct nr_giver *g);          /* to be watched for reading */
int64_t nr_giver_wait_ns(const struct nr_giver *g); /* until the deadline */
pid_t nr_giver_pid(const struct nr_giver *g);
typedef enum nr_giver_state {
    NR_GIVER_WAITS,
    NR_GIVER_SERVES, /* the new one accepts: stop, then nr_giver_free with why NULL */
    NR_GIVER_FAILED  /* *err says why: nr_giver_free with that */
} nr_giver_state;
/* When nr_giver_fd can be read, or the deadline has passed. */
nr_giver_state nr_giver_step(struct nr_giver *g, struct nr_err *err);
/* why NULL: "stopped" is told. Otherwise the new process is told why, and ended if we started it. */
void nr_giver_free(struct nr_giver *g, const char *why);

#endif
