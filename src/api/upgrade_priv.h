/* What the files of an upgrade share; private to src/api. */
#ifndef NR_API_UPGRADE_PRIV_H
#define NR_API_UPGRADE_PRIV_H

#include "api/upgrade.h"

#define NR_UPGRADE_HELLO "naru-upgrade 1"
#define NR_UPGRADE_INDEX_BYTES (256u << 20) /* of the list of models, far more than there are */
#define NR_UPGRADE_TALK_NS (10 * NR_S_NS) /* for an answer that only a hung process is late with */

/* Takes fd, also on error. An empty address: the bound one. */
nr_nodiscard nr_status nr_given_add(struct nr_given *g, int fd, struct nr_str address,
                                    uint16_t asked_port, struct nr_str what, struct nr_err *err);

/* taker.c: the last line of a talk, and the same when it failed. */
void nr_upgrade_tell(int sock, const char *line);
void nr_upgrade_fail(int sock, const char *why);

#endif
