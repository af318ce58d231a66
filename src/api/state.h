/* The edge's own state; private to src/api. */
#ifndef NR_API_STATE_H
#define NR_API_STATE_H

#include "api/api.h"

struct nr_router;

struct nr_catalog_msg { /* tells one loop that there is a new catalog; posted at most once */
    struct nr_msg msg;
    struct nr_api *api;
    unsigned loop;
    _Atomic bool posted;
};

struct nr_api {
    struct nr_api_cfg cfg;
    struct nr_http_app app;
    struct nr_router *router;
    struct nr_catalog_reader *readers; /* [n_loops], each its loop's */
    struct nr_catalog_msg *catalog_msgs;
    struct nr_server *server;
    _Atomic bool draining;
    _Atomic bool access_log;
    _Atomic unsigned n_shadows;   /* requests of shadow.c under way */
    _Atomic unsigned n_abandoned; /* requests that were answered and still run */
    _Atomic uint64_t abandoned;   /* ever */
    struct nr_job trim;
    _Atomic bool trim_queued; /* whoever sets it owns `trim` until it runs */
    int64_t start_wall_ns;
    struct nr_job gallery_check;
    _Atomic bool gallery_checks; /* as trim_queued */
    _Atomic int64_t gallery_checked_ns;
};

#endif
