/* Starting this program anew beside itself: the same command line, environment and standard streams, one
 * descriptor more.
 *
 * The path is the one it was started by, not the file it runs: a binary that was replaced, or a link
 * that was moved to another version, is what should start. So a command line "naru …" is looked up
 * in $PATH again, "./naru" in the folder of that time.
 */
#ifndef NR_IO_REBIRTH_H
#define NR_IO_REBIRTH_H

#include <sys/types.h>

#include "base/status.h"

#define NR_REBIRTH_FD 3 /* where the child finds the descriptor */

struct nr_rebirth;

/* Early, by the main thread: notes the command line and the folder. */
nr_nodiscard nr_status nr_rebirth_note(struct nr_rebirth **ret, struct nr_err *err);
void nr_rebirth_free(struct nr_rebirth *r); /* accepts NULL */
const char *nr_rebirth_path(const struct nr_rebirth *r);
/* fd becomes NR_REBIRTH_FD there, and `variable` is set to that number; of the rest only the standard
 * streams are handed on. Signals are as a fresh process has them. LISTEN_* of systemd are taken out:
 * they spoke of this process. *ret_pid is the caller's to wait for. Any thread. */
nr_nodiscard nr_status nr_rebirth_start(const struct nr_rebirth *r, int fd, const char *variable,
                                        pid_t *ret_pid, struct nr_err *err);

#endif
