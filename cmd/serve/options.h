/* The options of naru serve, as parsed; see the table in options.c. */
#ifndef NARU_SERVE_OPTIONS_H
#define NARU_SERVE_OPTIONS_H

#include "api/node.h"
#include "naru/option.h"
#include "store/gallery.h"

struct serve_options {
    /* models */
    struct option_list repositories;
    const char *config_name, *control_mode;
    struct option_list load_models;
    uint64_t poll_ns, quiet_ns;
    uint64_t model_budget, model_wait_ns, model_resident_ns;
    unsigned model_waiters;
    bool exit_on_error, strict_readiness, disable_auto_complete, warm_up;
    unsigned load_threads;
    struct option_list backend_dirs, backend_config, agent_dirs, batching_dirs;
    const char *agent_folder;
    uint64_t agent_timeout_ns;
    /* listening */
    unsigned port, http_port, grpc_port, metrics_port;
    const char *address, *http_address, *grpc_address, *metrics_address;
    bool allow_http, allow_grpc, allow_metrics, insecure, check_browser;
    struct option_list allow_hosts;
    /* threads and memory */
    unsigned io_threads, exec_threads, max_exec_threads, pool_threads, pool_queue, max_instances;
    uint64_t memory_budget;
    uint64_t idle_trim_ns;
    uint64_t cache_size;
    struct option_list cache_config;
    /* scheduling */
    unsigned queue_requests;
    uint64_t queue_bytes, queue_wait_ns;
    bool inline_models;
    uint64_t inline_short_ns, inline_slow_ns, inline_budget_ns;
    /* limits */
    unsigned max_connections, max_connections_per_address, max_request_line, max_field, max_head,
        max_fields, body_min_rate, max_chunks, max_pipelined, h2_streams, h2_stream_window,
        h2_conn_window, h2_resets, h2_reset_rate, h2_glitches, h2_glitch_rate, h2_control_queue;
    uint64_t max_body, head_timeout_ns, body_idle_ns, write_stall_ns, keep_alive_ns,
        detect_timeout_ns;
    bool half_close;
    uint64_t inline_json;
    uint64_t max_image_pixels;
    unsigned max_image_side;
    /* logs */
    const char *log_level, *log_format, *log_file;
    bool access_log;
    unsigned log_verbose;
    /* gallery */
    const char *gallery;
    bool keep_gallery;
    uint64_t gallery_bytes, gallery_age_ns;
    unsigned gallery_entries;
    /* other */
    const char *id;
    uint64_t exit_timeout_ns, lame_duck_ns;
    unsigned upgrade_from;
    uint64_t upgrade_timeout_ns, upgrade_linger_ns;
};

extern const struct option_table serve_table;

/* Where plug-ins of each kind are found; made before the options are read. */
struct serve_shelves {
    struct nr_plugins *plugins;
    struct nr_agents *agents;
    struct nr_batchings *batchings;
};

/* --cache-config; strings are borrowed. */
nr_nodiscard nr_status serve_configure_cache(const struct option_list *given,
                                             struct nr_node_cfg *cfg, struct nr_err *err);

/* Options → node configuration. Strings are borrowed from o. shelves get directories and options.
 * Errors: addresses that need --i-accept-insecure, unsupported modes, malformed --backend-config. */
nr_nodiscard nr_status serve_configure(const struct serve_options *o,
                                       const struct serve_shelves *shelves, struct nr_node_cfg *cfg,
                                       struct nr_err *err);

#endif
