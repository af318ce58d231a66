/* What version.c and repository.c share and nobody else needs. */
#ifndef NR_MODEL_VERSION_PRIV_H
#define NR_MODEL_VERSION_PRIV_H

#include "model/repository.h"

/* The last reference of v is gone: close it on the loading pool. Any thread, never blocks. */
void nr_repository_version_idle(struct nr_version *v);
const struct nr_config_opts *nr_repository_config_opts(const struct nr_repository *r);
/* Steps 1 and 2 of the configuration of v, whose name, numbers and descriptors are set. */
nr_nodiscard nr_status nr_version_prepare(struct nr_version *v, const char *config_name,
                                          struct nr_err *err);
void nr_version_clear(struct nr_version *v); /* frees configuration and labels, closes dir_fd */

#endif
