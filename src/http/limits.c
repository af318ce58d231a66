/* Default limits of the server. The table with reasons and flags is in README.md; tests check each
 * one at its value and one beyond. */
#include "base/clock.h"
#include "http/server.h"

void nr_http_limits_default(struct nr_http_limits *l)
{
    *l = (struct nr_http_limits){
        .max_connections = 0,
        .max_connections_per_addr = 1024,
        .max_request_line_bytes = 8u << 10,
        .max_field_bytes = 8u << 10,
        .max_head_bytes = 32u << 10,
        .max_fields = 100,
        .head_timeout_ns = 10 * (uint64_t)NR_S_NS,
        .body_idle_ns = 10 * (uint64_t)NR_S_NS,
        .body_min_rate_bytes = 1024,
        .write_stall_ns = 30 * (uint64_t)NR_S_NS,
        .keep_alive_ns = 60 * (uint64_t)NR_S_NS,
        .detect_timeout_ns = 10 * (uint64_t)NR_S_NS,
        .max_body_bytes = UINT64_C(64) << 20,
        .max_chunks = 65536,
        .max_pipelined = 64,
        .h2_max_streams = 100,
        .h2_stream_window_bytes = 64u << 10,
        .h2_conn_window_bytes = 4u << 20,
        .h2_reset_burst = 200,
        .h2_reset_rate = 20,
        .h2_glitch_burst = 1000,
        .h2_glitch_rate = 100,
        .h2_max_control_queue = 1000,
        .half_close = false,
        .idle_trim_ns = (uint64_t)NR_S_NS,
    };
}
