/* multipart/form-data (RFC 7578, framing of RFC 2046 section 5.1) over a whole body in memory.
 *
 * Nothing is copied: parts are views into the body, names and file names as they stand between the
 * quotes (browsers write %22 for a quote; nothing here decodes it, names are only compared).
 * Pure, any thread, no allocation. Errors are NARU_INVALID or NARU_TOO_LARGE (parts, header bytes).
 */
#ifndef NR_CODEC_MULTIPART_H
#define NR_CODEC_MULTIPART_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "base/str.h"

#define NR_MULTIPART_MAX_PARTS 64
#define NR_MULTIPART_MAX_HEADER_BYTES 8192 /* of one part */
#define NR_MULTIPART_MAX_BOUNDARY 70       /* RFC 2046 */

struct nr_multipart_part {
    struct nr_str name;     /* of the form's field; empty when none */
    struct nr_str filename; /* ptr NULL when the part is no file */
    struct nr_str type;     /* Content-Type; empty when none */
    struct nr_str data;
};

struct nr_multipart {
    struct nr_multipart_part parts[NR_MULTIPART_MAX_PARTS];
    size_t n_parts;
};

/* The boundary parameter of a Content-Type value whose type is multipart/form-data. */
nr_nodiscard nr_status nr_multipart_boundary(struct nr_str content_type, struct nr_str *ret,
                                             struct nr_err *err);

/* Splits body. ret is filled as far as parsed, even on error. A body without the closing
 * delimiter is an error (cut short). */
nr_nodiscard nr_status nr_multipart_parse(struct nr_str body, struct nr_str boundary,
                                          struct nr_multipart *ret, struct nr_err *err);

/* First part with a file name, else the first whose type begins with "image/"; NULL when none. */
const struct nr_multipart_part *nr_multipart_file(const struct nr_multipart *m);

#endif
