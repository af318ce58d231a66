/* The edge: joins HTTP exchanges with the scheduler. One table of routes with scopes; protocol
 * adapters translate, and nothing else in the project knows both sides.
 *
 * Files: route.c (table and matching), api.c (life of a call), call.h (what adapters share),
 * v2_http.c and v2_grpc.c (KServe v2), predict.c (pictures), metrics.c, gallery.c, page.c.
 */
#ifndef NR_API_API_H
#define NR_API_API_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/str.h"
#include "http/exchange.h"
#include "http/server.h"
#include "io/pool.h"
#include "model/repository.h"
#include "sched/runtime.h"

struct nr_gallery;

struct nr_api_cfg {
    const char *server_name;    /* /v2 reports it: "naru" or --id */
    const char *server_version; /* "0.1.0" */
    struct nr_repository *repository;
    struct nr_runtime_host *runtime;
    struct nr_pool *pool; /* image decoding and large JSON bodies */
    struct nr_loop *const *loops;
    unsigned n_loops;
    struct nr_gallery *gallery; /* NULL: nothing is stored */
    uint64_t max_body_bytes;    /* when the model's signature does not say */
    size_t inline_json_bytes;   /* larger JSON is parsed and written on the pool; 64 KiB */
    bool on_demand;             /* models are loaded when asked for: the repository has a budget */
    bool strict_readiness;      /* ready only when every model is */
    bool access_log;            /* at the start; nr_api_set_access_log */
    bool check_browser;         /* Host and Origin on loopback listeners */
    const char *const
        *allowed_hosts; /* more names that Host may have there; NULL-terminated or NULL */
    uint64_t max_image_pixels;
    unsigned max_image_side;
};

struct nr_api;

nr_nodiscard nr_status nr_api_new(const struct nr_api_cfg *cfg, struct nr_api **ret,
                                  struct nr_err *err);
/* After the loops have ended, in this order around the end of the repository: the first gives the
 * catalog's snapshots back, the second frees. Both accept NULL. */
void nr_api_readers_done(struct nr_api *a);
void nr_api_free(struct nr_api *a);
const struct nr_http_app *nr_api_app(struct nr_api *a);
/* For metrics and drain; set once, before traffic. */
void nr_api_set_server(struct nr_api *a, struct nr_server *server);
/* A line in the log for every request from now on, or no longer. Any thread. */
void nr_api_set_access_log(struct nr_api *a, bool on);
/* /v2/health/ready answers "no" from now on. Any thread. */
void nr_api_set_draining(struct nr_api *a);
/* Shadow requests under way, which no connection waits for. Any thread. */
unsigned nr_api_shadows(const struct nr_api *a);
/* Requests that were answered although a plug-in still runs them; no connection waits for them either.
 * Any thread. */
unsigned nr_api_abandoned(const struct nr_api *a);
/* Calls on_publish of the repository's configuration: tells every loop to look at the new catalog. */
void nr_api_catalog_changed(struct nr_api *a);

#endif
