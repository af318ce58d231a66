/* Prints the defaults of the modules behind `naru serve`, in the form of its --print-config, so that
 * a test can compare the two: options.c states each default once more, as text for people.
 *
 *   naru-default-limits      "max-chunks: 65536", one a line; times in nanoseconds
 */
#include <stdio.h>

#include "api/node.h"
#include "codec/image.h"
#include "http/server.h"
#include "store/gallery.h"

static void say(const char *name, uint64_t value)
{
    printf("%s: %llu\n", name, (unsigned long long)value);
}

static void say_http(const struct nr_http_limits *l)
{
    say("max-connections", l->max_connections);
    say("max-connections-per-address", l->max_connections_per_addr);
    say("max-request-line", l->max_request_line_bytes);
    say("max-header-field", l->max_field_bytes);
    say("max-header", l->max_head_bytes);
    say("max-header-fields", l->max_fields);
    say("header-timeout", l->head_timeout_ns);
    say("body-timeout", l->body_idle_ns);
    say("body-min-rate", l->body_min_rate_bytes);
    say("write-timeout", l->write_stall_ns);
    say("keep-alive", l->keep_alive_ns);
    say("first-byte-timeout", l->detect_timeout_ns);
    say("max-body", l->max_body_bytes);
    say("max-chunks", l->max_chunks);
    say("max-pipelined", l->max_pipelined);
    say("h2-max-streams", l->h2_max_streams);
    say("h2-stream-window", l->h2_stream_window_bytes);
    say("h2-connection-window", l->h2_conn_window_bytes);
    say("h2-resets", l->h2_reset_burst);
    say("h2-reset-rate", l->h2_reset_rate);
    say("h2-glitches", l->h2_glitch_burst);
    say("h2-glitch-rate", l->h2_glitch_rate);
    say("h2-control-queue", l->h2_max_control_queue);
    say("half-close", l->half_close);
}

int main(void)
{
    struct nr_node_cfg cfg;
    struct nr_gallery_cfg gallery;
    const struct nr_image_limits image = NR_IMAGE_LIMITS_DEFAULT;
    nr_node_cfg_default(&cfg);
    nr_gallery_cfg_default(&gallery);
    say_http(&cfg.http);
    say("io-threads", cfg.io_threads);
    say("exec-threads", cfg.exec_threads);
    say("max-exec-threads", cfg.max_exec_threads);
    say("pool-threads", cfg.pool_threads);
    say("pool-queue", cfg.pool_queue);
    say("max-instances", cfg.max_instances);
    say("memory-budget", cfg.memory_budget_bytes);
    say("idle-trim", NR_MIN(cfg.http.idle_trim_ns, (uint64_t)cfg.queue.idle_trim_ns));
    say("cache-size", cfg.cache_bytes);
    say("queue-max-requests", cfg.queue.max_queue_requests);
    say("queue-max-bytes", cfg.queue.max_queue_bytes);
    say("queue-max-wait", (uint64_t)cfg.queue.max_wait_ns);
    say("watchdog-timeout", (uint64_t)cfg.watchdog_ns);
    say("inline", cfg.placement.allowed);
    say("inline-short", (uint64_t)cfg.placement.short_ns);
    say("inline-slow", (uint64_t)cfg.placement.slow_ns);
    say("inline-budget", (uint64_t)cfg.placement.budget_ns);
    say("inline-json", cfg.api.inline_json_bytes);
    say("max-image-pixels", cfg.api.max_image_pixels);
    say("max-image-side", cfg.api.max_image_side);
    if (image.max_pixels != cfg.api.max_image_pixels || image.max_side != cfg.api.max_image_side ||
        cfg.api.max_body_bytes != cfg.http.max_body_bytes) {
        fprintf(stderr, "two modules disagree about a default\n");
        return 1;
    }
    say("gallery-max-bytes", gallery.max_bytes);
    say("gallery-max-entries", gallery.max_entries);
    say("gallery-max-age", (uint64_t)gallery.max_age_ns);
    return 0;
}
