/* What the page's routes share: answers a browser may show, with the fields that keep it safe. */
#ifndef NR_API_PAGE_H
#define NR_API_PAGE_H

#include "api/call.h"

/* 200 with body and the safety fields, or 304 when If-None-Match names etag (with its quotes). body
 * lives in the arena or is constant. Loop. */
void nr_page_respond(struct nr_call *c, struct nr_str type, struct nr_str etag, struct nr_str body);

#endif
