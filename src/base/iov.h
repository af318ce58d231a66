/* One piece of a message that is written in pieces (a borrowed view, like struct iovec but const):
 * what encoders produce and what connections write. */
#ifndef NR_BASE_IOV_H
#define NR_BASE_IOV_H

#include <stddef.h>

struct nr_iov {
    const void *ptr;
    size_t len;
};

#endif
