/* The files of web/ inside the binary; the table is made at build time by cmake/NaruEmbed.cmake. */
#ifndef NR_API_PAGE_FILE_H
#define NR_API_PAGE_FILE_H

#include <stddef.h>

#include "base/str.h"

struct nr_page_file {
    struct nr_str name; /* without a folder: "page.css" */
    struct nr_str type; /* Content-Type */
    struct nr_str etag; /* with its quotes; changes exactly when the bytes do */
    const unsigned char *data;
    size_t bytes;
};

extern const struct nr_page_file nr_page_files[]; /* by name */
extern const unsigned nr_page_n_files;

#endif
