/* What a version computes, as a number: equal on every machine that has the same files and
 * configuration. For answers that several processes share.
 */
#ifndef NR_MODEL_FINGERPRINT_H
#define NR_MODEL_FINGERPRINT_H

#include <stdint.h>

#include "base/status.h"
#include "model/version.h"

/* 128 bits of XXH3 over name, number and completed configuration of v and the names and contents of
 * all regular files of its folder (or its bare file); `with` is whatever else must be the same. Reads
 * every byte of the model: some seconds for gigabytes. Loading thread, after nr_version_complete.
 * Errors: a file that cannot be read, more than 100,000 entries in
 * one folder, folders more than NR_DIR_MAX_DEPTH deep. */
nr_nodiscard nr_status nr_version_fingerprint(const struct nr_version *v, const char *with,
                                              uint64_t ret[2], struct nr_err *err);

#endif
