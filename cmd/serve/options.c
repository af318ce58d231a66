/* naru serve: the table of options, and what they mean for a node.
 *
 * Triton's names stand as names or aliases where the meaning is the same. Defaults that are limits
 * of the HTTP engine, the scheduler or the gallery stand here once more, as text, so that --help
 * shows them; tests/unit compares them with the modules' own.
 */
#include "serve/options.h"

#include <string.h>

#include "base/clock.h"
#include "host/agent.h"
#include "host/batching.h"
#include "io/sock.h"

#define O(field) offsetof(struct serve_options, field)
#define MS UINT64_C(1000000)
#define S UINT64_C(1000000000)

static const struct option_def defs[] = {
    {.group = "Models",
     .name = "model-repository",
     .alias = "model-store",
     .kind = OPTION_LIST,
     .offset = O(repositories),
     .arg = "PATH",
     .help = "a Triton model repository, one model's folder or a model file; may be repeated, and "
             "is the same as naming it without an option"},
    {.name = "model-config-name",
     .kind = OPTION_TEXT,
     .offset = O(config_name),
     .arg = "NAME",
     .help = "read configs/NAME.pbtxt of each model, where there is one, instead of config.pbtxt"},
    {.name = "model-control-mode",
     .kind = OPTION_CHOICE,
     .offset = O(control_mode),
     .preset = "none",
     .choices = "none|poll|explicit",
     .help =
         "none: all models are loaded once at the start; poll: the files are looked at, what is "
         "new, changed or gone is loaded or unloaded; explicit: by --load-model and the "
         "repository API"},
    {.name = "load-model",
     .kind = OPTION_LIST,
     .offset = O(load_models),
     .arg = "NAME",
     .help = "in explicit mode, load this model at the start; may be repeated, * alone: all"},
    {.name = "repository-poll-secs",
     .alias = "repository-poll",
     .kind = OPTION_DURATION,
     .offset = O(poll_ns),
     .preset = "15s",
     .arg = "TIME",
     .unit_ns = S,
     .help = "in poll mode, time between two looks at the files"},
    {.name = "repository-quiet",
     .kind = OPTION_DURATION,
     .offset = O(quiet_ns),
     .preset = "2s",
     .arg = "TIME",
     .unit_ns = S,
     .help = "in poll mode, files must have rested for so long before a change is taken"},
    {.name = "model-memory-budget",
     .kind = OPTION_BYTES,
     .offset = O(model_budget),
     .preset = "0",
     .arg = "BYTES",
     .help =
         "for loaded models; above 0 they are loaded when asked for, and the one used longest ago "
         "is closed when another needs the room (naru.pin keeps one); 0: all at the start"},
    {.name = "model-wait-max",
     .kind = OPTION_UINT,
     .offset = O(model_waiters),
     .preset = "1024",
     .arg = "N",
     .min = 1,
     .help = "with a budget, requests that may wait for their model to be loaded"},
    {.name = "model-wait",
     .kind = OPTION_DURATION,
     .offset = O(model_wait_ns),
     .preset = "10s",
     .arg = "TIME",
     .unit_ns = S,
     .help = "and how long, while no other model can go"},
    {.name = "model-resident-min",
     .kind = OPTION_DURATION,
     .offset = O(model_resident_ns),
     .preset = "1s",
     .arg = "TIME",
     .unit_ns = S,
     .help = "with a budget, a model that was loaded stays at least so long"},
    {.name = "exit-on-error",
     .kind = OPTION_BOOL,
     .offset = O(exit_on_error),
     .preset = "false",
     .help = "end with an error when a model does not load at the start; otherwise the others are "
             "served"},
    {.name = "strict-readiness",
     .kind = OPTION_BOOL,
     .offset = O(strict_readiness),
     .preset = "true",
     .help = "/v2/health/ready answers yes only when every model is ready"},
    {.name = "disable-auto-complete-config",
     .kind = OPTION_BOOL,
     .offset = O(disable_auto_complete),
     .preset = "false",
     .help = "config.pbtxt must say everything; nothing is read from the model files"},
    {.name = "model-load-thread-count",
     .kind = OPTION_UINT,
     .offset = O(load_threads),
     .preset = "0",
     .arg = "N",
     .max = 64,
     .help = "models loaded at the same time; 0: as many as cores, 4 at most"},
    {.name = "warm-up",
     .kind = OPTION_BOOL,
     .offset = O(warm_up),
     .preset = "true",
     .help =
         "run a model on zeros before it serves, where its first runs are slower than later ones "
         "(300 ms at most); model_warmup of a configuration is always done"},
    {.name = "backend-directory",
     .kind = OPTION_LIST,
     .offset = O(backend_dirs),
     .arg = "DIR",
     .help = "look for plug-ins (naru-NAME.so) here first; may be repeated"},
    {.name = "backend-config",
     .kind = OPTION_LIST,
     .offset = O(backend_config),
     .arg = "NAME,KEY=VALUE",
     .help = "option of a plug-in; without NAME: default-max-batch-size=N for models whose "
             "configuration leaves it open"},
    {.name = "agent-directory",
     .alias = "repoagent-directory",
     .kind = OPTION_LIST,
     .offset = O(agent_dirs),
     .arg = "DIR",
     .help = "look for repository agents (naru-agent-NAME.so) here first; may be repeated"},
    {.name = "agent-timeout",
     .kind = OPTION_DURATION,
     .offset = O(agent_timeout_ns),
     .preset = "300s",
     .arg = "TIME",
     .unit_ns = S,
     .help = "one call of a repository agent may take so long, else the load fails; 0: for ever"},
    {.name = "agent-folder",
     .kind = OPTION_TEXT,
     .offset = O(agent_folder),
     .arg = "DIR",
     .help = "where agents may put files in a model's place, a tmpfs for decrypted ones; default: "
             "/dev/shm"},
    {.name = "batching-directory",
     .kind = OPTION_LIST,
     .offset = O(batching_dirs),
     .arg = "DIR",
     .help = "look for batching strategies (naru-batching-NAME.so) here first; may be repeated"},
    {.name = "cache-config",
     .kind = OPTION_LIST,
     .offset = O(cache_config),
     .arg = "NAME,KEY=VALUE",
     .help = "local,size=N (as --cache-size); redis,host=H and others share answers with other "
             "servers (docs/cache.md)"},

    {.group = "Listening (every port speaks HTTP/1.1, HTTP/2 and gRPC)",
     .name = "port",
     .kind = OPTION_UINT,
     .offset = O(port),
     .preset = "0",
     .arg = "N",
     .max = 65535,
     .help = "one port for everything instead of the three below"},
    {.name = "http-port",
     .kind = OPTION_UINT,
     .offset = O(http_port),
     .preset = "8000",
     .arg = "N",
     .max = 65535,
     .help = "0: a free port, printed at the start; the same number twice is one listener"},
    {.name = "grpc-port",
     .kind = OPTION_UINT,
     .offset = O(grpc_port),
     .preset = "8001",
     .arg = "N",
     .max = 65535,
     .help = ""},
    {.name = "metrics-port",
     .kind = OPTION_UINT,
     .offset = O(metrics_port),
     .preset = "8002",
     .arg = "N",
     .max = 65535,
     .help = ""},
    {.name = "address",
     .kind = OPTION_TEXT,
     .offset = O(address),
     .preset = "127.0.0.1",
     .arg = "ADDRESS",
     .help = "address of all ports; * for every address of the machine"},
    {.name = "http-address",
     .kind = OPTION_TEXT,
     .offset = O(http_address),
     .arg = "ADDRESS",
     .help = "another address for this port alone"},
    {.name = "grpc-address",
     .kind = OPTION_TEXT,
     .offset = O(grpc_address),
     .arg = "ADDRESS",
     .help = ""},
    {.name = "metrics-address",
     .kind = OPTION_TEXT,
     .offset = O(metrics_address),
     .arg = "ADDRESS",
     .help = ""},
    {.name = "allow-http",
     .kind = OPTION_BOOL,
     .offset = O(allow_http),
     .preset = "true",
     .help = "listen on the HTTP port"},
    {.name = "allow-grpc",
     .kind = OPTION_BOOL,
     .offset = O(allow_grpc),
     .preset = "true",
     .help = ""},
    {.name = "allow-metrics",
     .kind = OPTION_BOOL,
     .offset = O(allow_metrics),
     .preset = "true",
     .help = ""},
    {.name = "i-accept-insecure",
     .kind = OPTION_BOOL,
     .offset = O(insecure),
     .preset = "false",
     .help = "needed to listen beyond this machine while there is neither TLS nor authentication"},
    {.name = "check-browser",
     .kind = OPTION_BOOL,
     .offset = O(check_browser),
     .preset = "true",
     .help = "on loopback, refuse requests that pages of other sites make (Host, Origin)"},
    {.name = "allow-host",
     .kind = OPTION_LIST,
     .offset = O(allow_hosts),
     .arg = "NAME",
     .help = "another name under which browsers may reach a loopback port"},

    {.group = "Threads and memory",
     .name = "io-threads",
     .alias = "http-thread-count",
     .kind = OPTION_UINT,
     .offset = O(io_threads),
     .preset = "0",
     .arg = "N",
     .max = 64,
     .help = "threads that read and write connections; 0: as many as cores, 4 at most"},
    {.name = "exec-threads",
     .kind = OPTION_UINT,
     .offset = O(exec_threads),
     .preset = "0",
     .arg = "N",
     .max = 255,
     .help = "threads that run models; 0: as many as cores"},
    {.name = "max-exec-threads",
     .kind = OPTION_UINT,
     .offset = O(max_exec_threads),
     .preset = "64",
     .arg = "N",
     .min = 1,
     .max = 256,
     .help = "more threads are made up to this number while models block instead of computing"},
    {.name = "pool-threads",
     .kind = OPTION_UINT,
     .offset = O(pool_threads),
     .preset = "0",
     .arg = "N",
     .max = 255,
     .help = "threads for pictures and large JSON; 0: as many as cores"},
    {.name = "pool-queue",
     .kind = OPTION_UINT,
     .offset = O(pool_queue),
     .preset = "256",
     .arg = "N",
     .min = 1,
     .help = "pictures and large bodies that may wait for those threads"},
    {.name = "max-instances",
     .kind = OPTION_UINT,
     .offset = O(max_instances),
     .preset = "64",
     .arg = "N",
     .min = 1,
     .max = 1024,
     .help = "instances that one model may ask for"},
    {.name = "memory-budget",
     .kind = OPTION_BYTES,
     .offset = O(memory_budget),
     .preset = "0",
     .arg = "BYTES",
     .help = "for bodies and tensors; 0: three quarters of what this process may use"},
    {.name = "idle-trim",
     .kind = OPTION_DURATION,
     .offset = O(idle_trim_ns),
     .preset = "1s",
     .arg = "TIME",
     .unit_ns = S,
     .help = "idle threads and models give back memory kept for speed; 0: never"},

    {.name = "cache-size",
     .alias = "response-cache-byte-size",
     .kind = OPTION_BYTES,
     .offset = O(cache_size),
     .preset = "64MiB",
     .arg = "BYTES",
     .help = "of answers kept for models with response_cache; 0: none"},

    {.group = "Scheduling",
     .name = "queue-max-requests",
     .kind = OPTION_UINT,
     .offset = O(queue_requests),
     .preset = "4096",
     .arg = "N",
     .min = 1,
     .help = "requests that may wait for a model"},
    {.name = "queue-max-bytes",
     .kind = OPTION_BYTES,
     .offset = O(queue_bytes),
     .preset = "256MiB",
     .arg = "BYTES",
     .min = 1,
     .help = "and their inputs"},
    {.name = "queue-max-wait",
     .kind = OPTION_DURATION,
     .offset = O(queue_wait_ns),
     .preset = "5s",
     .arg = "TIME",
     .unit_ns = S,
     .help = "refuse when the queue holds more work than this at the measured speed"},
    {.name = "inline",
     .kind = OPTION_BOOL,
     .offset = O(inline_models),
     .preset = "true",
     .help = "run models that are shorter than a thread hop where their requests were read"},
    {.name = "inline-short",
     .kind = OPTION_DURATION,
     .offset = O(inline_short_ns),
     .preset = "30us",
     .arg = "TIME",
     .unit_ns = 1000,
     .help = "an execution up to this long counts as short"},
    {.name = "inline-slow",
     .kind = OPTION_DURATION,
     .offset = O(inline_slow_ns),
     .preset = "1ms",
     .arg = "TIME",
     .unit_ns = 1000,
     .help = "one execution longer than this moves the model to the executors"},
    {.name = "inline-budget",
     .kind = OPTION_DURATION,
     .offset = O(inline_budget_ns),
     .preset = "100us",
     .arg = "TIME",
     .unit_ns = 1000,
     .help = "of executions in one turn of an I/O thread"},

    {.group = "Limits",
     .name = "max-body",
     .alias = "http-max-input-size",
     .kind = OPTION_BYTES,
     .offset = O(max_body),
     .preset = "64MiB",
     .arg = "BYTES",
     .min = 1024,
     .help = "request body; a model with fixed shapes has a smaller limit of its own"},
    {.name = "max-connections",
     .kind = OPTION_UINT,
     .offset = O(max_connections),
     .preset = "0",
     .arg = "N",
     .help = "0: what the descriptor limit allows"},
    {.name = "max-connections-per-address",
     .kind = OPTION_UINT,
     .offset = O(max_connections_per_address),
     .preset = "1024",
     .arg = "N",
     .help = "loopback left out; 0: no limit"},
    {.name = "max-request-line",
     .kind = OPTION_UINT,
     .offset = O(max_request_line),
     .preset = "8192",
     .arg = "BYTES",
     .min = 256,
     .max = 1048576,
     .help = ""},
    {.name = "max-header-field",
     .kind = OPTION_UINT,
     .offset = O(max_field),
     .preset = "8192",
     .arg = "BYTES",
     .min = 256,
     .max = 1048576,
     .help = "one field"},
    {.name = "max-header",
     .kind = OPTION_UINT,
     .offset = O(max_head),
     .preset = "32768",
     .arg = "BYTES",
     .min = 1024,
     .max = 1048576,
     .help = "all fields, 32 more bytes counted for each"},
    {.name = "max-header-fields",
     .kind = OPTION_UINT,
     .offset = O(max_fields),
     .preset = "100",
     .arg = "N",
     .min = 8,
     .max = 10000,
     .help = ""},
    {.name = "header-timeout",
     .kind = OPTION_DURATION,
     .offset = O(head_timeout_ns),
     .preset = "10s",
     .arg = "TIME",
     .unit_ns = S,
     .help = "from the first byte to the end of the header"},
    {.name = "body-timeout",
     .kind = OPTION_DURATION,
     .offset = O(body_idle_ns),
     .preset = "10s",
     .arg = "TIME",
     .unit_ns = S,
     .help = "without a byte of the body"},
    {.name = "body-min-rate",
     .kind = OPTION_UINT,
     .offset = O(body_min_rate),
     .preset = "1024",
     .arg = "BYTES",
     .help = "a second, on average after 10 s; 0: none"},
    {.name = "write-timeout",
     .kind = OPTION_DURATION,
     .offset = O(write_stall_ns),
     .preset = "30s",
     .arg = "TIME",
     .unit_ns = S,
     .help = "a client that takes nothing of its answer is cut off"},
    {.name = "keep-alive",
     .kind = OPTION_DURATION,
     .offset = O(keep_alive_ns),
     .preset = "60s",
     .arg = "TIME",
     .unit_ns = S,
     .help = "idle connections are closed"},
    {.name = "first-byte-timeout",
     .kind = OPTION_DURATION,
     .offset = O(detect_timeout_ns),
     .preset = "10s",
     .arg = "TIME",
     .unit_ns = S,
     .help = "a new connection must say something"},
    {.name = "max-chunks",
     .kind = OPTION_UINT,
     .offset = O(max_chunks),
     .preset = "65536",
     .arg = "N",
     .min = 16,
     .help = "of one chunked body"},
    {.name = "max-pipelined",
     .kind = OPTION_UINT,
     .offset = O(max_pipelined),
     .preset = "64",
     .arg = "N",
     .min = 1,
     .help = "unanswered requests of one HTTP/1.1 connection"},
    {.name = "half-close",
     .kind = OPTION_BOOL,
     .offset = O(half_close),
     .preset = "false",
     .help = "a client that closes its sending side still gets answers to requests that wait"},
    {.name = "h2-max-streams",
     .kind = OPTION_UINT,
     .offset = O(h2_streams),
     .preset = "100",
     .arg = "N",
     .min = 1,
     .max = 10000,
     .help = "at once on one HTTP/2 connection"},
    {.name = "h2-stream-window",
     .kind = OPTION_UINT,
     .offset = O(h2_stream_window),
     .preset = "65536",
     .arg = "BYTES",
     .min = 65535,
     .max = 1073741824,
     .help = ""},
    {.name = "h2-connection-window",
     .kind = OPTION_UINT,
     .offset = O(h2_conn_window),
     .preset = "4194304",
     .arg = "BYTES",
     .min = 65535,
     .max = 1073741824,
     .help = ""},
    {.name = "h2-resets",
     .kind = OPTION_UINT,
     .offset = O(h2_resets),
     .preset = "200",
     .arg = "N",
     .help = "stream resets in either direction at once; over it the connection ends"},
    {.name = "h2-reset-rate",
     .kind = OPTION_UINT,
     .offset = O(h2_reset_rate),
     .preset = "20",
     .arg = "N",
     .help = "and a second"},
    {.name = "h2-glitches",
     .kind = OPTION_UINT,
     .offset = O(h2_glitches),
     .preset = "1000",
     .arg = "N",
     .help = "odd but legal frames at once"},
    {.name = "h2-glitch-rate",
     .kind = OPTION_UINT,
     .offset = O(h2_glitch_rate),
     .preset = "100",
     .arg = "N",
     .help = "and a second"},
    {.name = "h2-control-queue",
     .kind = OPTION_UINT,
     .offset = O(h2_control_queue),
     .preset = "1000",
     .arg = "N",
     .min = 16,
     .help = "control frames that may wait to be sent"},
    {.name = "inline-json",
     .kind = OPTION_BYTES,
     .offset = O(inline_json),
     .preset = "64KiB",
     .arg = "BYTES",
     .help = "larger JSON is read and written off the I/O threads"},
    {.name = "max-image-pixels",
     .kind = OPTION_BYTES,
     .offset = O(max_image_pixels),
     .preset = "50000000",
     .arg = "N",
     .min = 1,
     .help = "of a picture, checked before it is decoded"},
    {.name = "max-image-side",
     .kind = OPTION_UINT,
     .offset = O(max_image_side),
     .preset = "16384",
     .arg = "N",
     .min = 1,
     .max = 65535,
     .help = ""},

    {.group = "Logs",
     .name = "log-level",
     .kind = OPTION_CHOICE,
     .offset = O(log_level),
     .preset = "info",
     .choices = "debug|info|warn|error|off",
     .help = ""},
    {.name = "log-verbose",
     .kind = OPTION_UINT,
     .offset = O(log_verbose),
     .preset = "0",
     .arg = "N",
     .help = "above 0 the same as --log-level debug"},
    {.name = "log-format",
     .kind = OPTION_CHOICE,
     .offset = O(log_format),
     .preset = "text",
     .choices = "text|json|default",
     .help = ""},
    {.name = "log-file",
     .kind = OPTION_TEXT,
     .offset = O(log_file),
     .arg = "FILE",
     .help = "instead of standard error; opened again on SIGHUP"},
    {.name = "access-log",
     .kind = OPTION_BOOL,
     .offset = O(access_log),
     .preset = "false",
     .help = "one line for every request"},

    {.group = "Pictures that people send through the page",
     .name = "gallery",
     .kind = OPTION_TEXT,
     .offset = O(gallery),
     .arg = "DIR",
     .help = "where they are kept; default: naru/gallery in $XDG_STATE_HOME or ~/.local/state"},
    {.name = "keep-gallery",
     .kind = OPTION_BOOL,
     .offset = O(keep_gallery),
     .preset = "true",
     .help = "--no-keep-gallery stores nothing"},
    {.name = "gallery-max-bytes",
     .kind = OPTION_BYTES,
     .offset = O(gallery_bytes),
     .preset = "256MiB",
     .arg = "BYTES",
     .min = 1024,
     .help = "the oldest go first"},
    {.name = "gallery-max-entries",
     .kind = OPTION_UINT,
     .offset = O(gallery_entries),
     .preset = "500",
     .arg = "N",
     .min = 1,
     .max = 1000000,
     .help = ""},
    {.name = "gallery-max-age",
     .kind = OPTION_DURATION,
     .offset = O(gallery_age_ns),
     .preset = "720h",
     .arg = "TIME",
     .unit_ns = S,
     .help = "0: for ever"},

    {.group = "Other",
     .name = "id",
     .kind = OPTION_TEXT,
     .offset = O(id),
     .preset = "naru",
     .arg = "NAME",
     .help = "name that /v2 reports"},
    {.name = "exit-timeout",
     .alias = "exit-timeout-secs",
     .kind = OPTION_DURATION,
     .offset = O(exit_timeout_ns),
     .preset = "30s",
     .arg = "TIME",
     .unit_ns = S,
     .help = "how long requests may finish after SIGTERM; a second SIGTERM ends at once"},
    {.name = "lame-duck",
     .kind = OPTION_DURATION,
     .offset = O(lame_duck_ns),
     .preset = "0",
     .arg = "TIME",
     .unit_ns = S,
     .help = "after SIGTERM, not ready but still serving, until balancers have seen it"},

    {.group = "Upgrades (SIGUSR2 starts the program anew and gives it the sockets)",
     .name = "upgrade-from",
     .kind = OPTION_UINT,
     .offset = O(upgrade_from),
     .preset = "0",
     .arg = "PID",
     .max = 4194304,
     .help = "take the sockets of that running server, which ends once this one serves"},
    {.name = "upgrade-timeout",
     .kind = OPTION_DURATION,
     .offset = O(upgrade_timeout_ns),
     .preset = "5m",
     .arg = "TIME",
     .unit_ns = S,
     .help = "within which the new server must be ready; otherwise this one goes on"},
    {.name = "upgrade-linger",
     .kind = OPTION_DURATION,
     .offset = O(upgrade_linger_ns),
     .preset = "5s",
     .arg = "TIME",
     .unit_ns = S,
     .help = "how long idle connections to the old server may still ask; the answer ends them"},
};

const struct option_table serve_table = {
    .command = "serve",
    .synopsis = "MODEL|DIR|REPOSITORY…",
    .operands = "model-repository",
    .summary = "serve models over HTTP and gRPC",
    .examples = "  naru serve model.onnx                 one file; the model's name is the file's\n"
                "  naru serve models/resnet50            one model's folder\n"
                "  naru serve models                     a Triton model repository, as it is\n"
                "  naru serve models --port 9000 --access-log\n",
    .defs = defs,
    .n_defs = NR_COUNT(defs),
};

/* What a listener is meant for, by bits: who reads the banner looks for these words. */
enum {
    FOR_HTTP = 1,
    FOR_GRPC = 2,
    FOR_METRICS = 4
};
static const char *const purposes[] = {[FOR_HTTP] = "http",
                                       [FOR_GRPC] = "grpc",
                                       [FOR_HTTP | FOR_GRPC] = "http, grpc",
                                       [FOR_METRICS] = "metrics",
                                       [FOR_HTTP | FOR_METRICS] = "http, metrics",
                                       [FOR_GRPC | FOR_METRICS] = "grpc, metrics",
                                       [FOR_HTTP | FOR_GRPC | FOR_METRICS] = "http, grpc, metrics"};

struct listening { /* what was added so far, beside cfg->listen */
    struct nr_sock_addr at[NR_NODE_MAX_LISTEN];
    unsigned purpose[NR_NODE_MAX_LISTEN];
};

/* Every listener speaks every protocol, so one that was asked for twice is one listener. */
static nr_status add_listen(const struct serve_options *o, struct nr_node_cfg *cfg,
                            struct listening *seen, const char *address, unsigned port,
                            unsigned purpose, struct nr_err *err)
{
    struct nr_sock_addr parsed;
    const char *at = address != NULL && address[0] != '\0' ? address : o->address;
    nr_status st = nr_sock_addr_parse(at, (uint16_t)port, &parsed, err);
    if (st != NARU_OK) {
        return st;
    }
    if (!nr_sock_loopback(&parsed) && !o->insecure) {
        return nr_fail(
            err, NARU_DENIED,
            "address '%s' can be reached from other machines, and there is neither TLS nor "
            "authentication: put a proxy in front, or give --i-accept-insecure",
            at);
    }
    for (unsigned i = 0; i < cfg->n_listen; i++) {
        nr_sock_common common = nr_sock_addr_compare(&seen->at[i], &parsed);
        if (common == NR_SOCK_SAME) {
            seen->purpose[i] |= purpose;
            cfg->listen[i].what = purposes[seen->purpose[i]];
            return NARU_OK;
        }
        if (common == NR_SOCK_OVERLAP) {
            return nr_fail(err, NARU_INVALID,
                           "port %u is wanted for %s on '%s' and for %s on '%s', and one of these "
                           "addresses includes the other: give both the same address, or two ports",
                           port, cfg->listen[i].what, cfg->listen[i].address, purposes[purpose],
                           at);
        }
    }
    seen->at[cfg->n_listen] = parsed;
    seen->purpose[cfg->n_listen] = purpose;
    cfg->listen[cfg->n_listen++] =
        (struct nr_node_listen){.address = at, .port = (uint16_t)port, .what = purposes[purpose]};
    return NARU_OK;
}

static nr_status configure_listen(const struct serve_options *o, struct nr_node_cfg *cfg,
                                  struct nr_err *err)
{
    const struct {
        bool on;
        const char *address;
        unsigned port, purpose;
    } ports[] = {{o->allow_http, o->http_address, o->http_port, FOR_HTTP},
                 {o->allow_grpc, o->grpc_address, o->grpc_port, FOR_GRPC},
                 {o->allow_metrics, o->metrics_address, o->metrics_port, FOR_METRICS}};
    struct listening seen = {0};
    if (o->port > 0) {
        return add_listen(o, cfg, &seen, o->http_address, o->port,
                          FOR_HTTP | FOR_GRPC | FOR_METRICS, err);
    }
    for (unsigned i = 0; i < NR_COUNT(ports); i++) {
        if (ports[i].on) {
            nr_status st =
                add_listen(o, cfg, &seen, ports[i].address, ports[i].port, ports[i].purpose, err);
            if (st != NARU_OK) {
                return st;
            }
        }
    }
    return cfg->n_listen > 0 ? NARU_OK : nr_fail(err, NARU_INVALID, "no port is left to listen on");
}

/* "NAME,KEY=VALUE" or "KEY=VALUE" */
static nr_status configure_backend(const char *text, struct nr_plugins *plugins,
                                   struct nr_node_cfg *cfg, struct nr_err *err)
{
    struct nr_str value, rest, head = nr_str_cut(nr_str_from(text), '=', &value);
    struct nr_str name = nr_str_cut(head, ',', &rest);
    if (value.ptr == NULL) {
        return nr_fail(err, NARU_INVALID,
                       "--backend-config '%s': expected NAME,KEY=VALUE or KEY=VALUE", text);
    }
    if (nr_str_is(rest.ptr != NULL ? rest : name, "default-max-batch-size")) {
        uint64_t n;
        if (!nr_str_to_u64(value, &n) || n == 0 || n > NR_CONFIG_MAX_BATCH) {
            return nr_fail(err, NARU_INVALID,
                           "--backend-config '%s': the batch size must be 1 to %d", text,
                           NR_CONFIG_MAX_BATCH);
        }
        cfg->repository.config.default_batch = (int32_t)n;
        cfg->repository.config.default_batch_open = (int32_t)n;
        return NARU_OK;
    }
    char backend[64], key[128], val[512];
    if (rest.ptr == NULL || name.len >= sizeof(backend) || rest.len >= sizeof(key) ||
        value.len >= sizeof(val)) {
        return nr_fail(err, NARU_INVALID, "--backend-config '%s': expected NAME,KEY=VALUE", text);
    }
    snprintf(backend, sizeof(backend), NR_STR_FMT, NR_STR_ARG(name));
    snprintf(key, sizeof(key), NR_STR_FMT, NR_STR_ARG(rest));
    snprintf(val, sizeof(val), NR_STR_FMT, NR_STR_ARG(value));
    nr_plugins_set_option(plugins, backend, key, val);
    return NARU_OK;
}

static void configure_limits(const struct serve_options *o, struct nr_http_limits *l)
{
    l->max_connections = o->max_connections;
    l->max_connections_per_addr = o->max_connections_per_address;
    l->max_request_line_bytes = o->max_request_line;
    l->max_field_bytes = o->max_field;
    l->max_head_bytes = o->max_head;
    l->max_fields = o->max_fields;
    l->head_timeout_ns = o->head_timeout_ns;
    l->body_idle_ns = o->body_idle_ns;
    l->body_min_rate_bytes = o->body_min_rate;
    l->write_stall_ns = o->write_stall_ns;
    l->keep_alive_ns = o->keep_alive_ns;
    l->detect_timeout_ns = o->detect_timeout_ns;
    l->max_body_bytes = o->max_body;
    l->max_chunks = o->max_chunks;
    l->max_pipelined = o->max_pipelined;
    l->h2_max_streams = o->h2_streams;
    l->h2_stream_window_bytes = o->h2_stream_window;
    l->h2_conn_window_bytes = o->h2_conn_window;
    l->h2_reset_burst = o->h2_resets;
    l->h2_reset_rate = o->h2_reset_rate;
    l->h2_glitch_burst = o->h2_glitches;
    l->h2_glitch_rate = o->h2_glitch_rate;
    l->h2_max_control_queue = o->h2_control_queue;
    l->half_close = o->half_close;
    l->idle_trim_ns = NR_MIN(o->idle_trim_ns, (uint64_t)INT64_MAX / 4);
}

static void configure_rest(const struct serve_options *o, struct nr_node_cfg *cfg)
{
    cfg->io_threads = o->io_threads;
    cfg->exec_threads = o->exec_threads;
    cfg->max_exec_threads = o->max_exec_threads;
    cfg->pool_threads = o->pool_threads;
    cfg->pool_queue = o->pool_queue;
    cfg->max_instances = o->max_instances;
    cfg->warm_up = o->warm_up;
    cfg->memory_budget_bytes = o->memory_budget;
    cfg->cache_bytes = o->cache_size;
    cfg->queue.max_queue_requests = o->queue_requests;
    cfg->queue.max_queue_bytes = o->queue_bytes;
    cfg->queue.max_wait_ns = (int64_t)o->queue_wait_ns;
    cfg->queue.idle_trim_ns = (int64_t)cfg->http.idle_trim_ns;
    cfg->placement.allowed = o->inline_models;
    cfg->placement.short_ns = (int64_t)o->inline_short_ns;
    cfg->placement.slow_ns = (int64_t)o->inline_slow_ns;
    cfg->placement.budget_ns = (int64_t)o->inline_budget_ns;
    cfg->repository.config_name = o->config_name;
    cfg->repository.mode = strcmp(o->control_mode, "poll") == 0       ? NR_CONTROL_POLL
                           : strcmp(o->control_mode, "explicit") == 0 ? NR_CONTROL_EXPLICIT
                                                                      : NR_CONTROL_NONE;
    cfg->repository.load = o->load_models.items;
    cfg->repository.n_load = o->load_models.n;
    cfg->repository.poll_ns = (int64_t)o->poll_ns;
    cfg->repository.quiet_ns = (int64_t)o->quiet_ns;
    cfg->repository.budget_bytes = o->model_budget;
    cfg->repository.max_waiters = o->model_waiters;
    cfg->repository.demand_patience_ns = (int64_t)o->model_wait_ns;
    cfg->repository.min_resident_ns = (int64_t)o->model_resident_ns;
    cfg->repository.load_threads = o->load_threads;
    cfg->repository.config.auto_complete = !o->disable_auto_complete;
    cfg->api.server_name = o->id;
    cfg->api.max_body_bytes = o->max_body;
    cfg->api.inline_json_bytes = o->inline_json;
    cfg->api.strict_readiness = o->strict_readiness;
    cfg->api.access_log = o->access_log;
    cfg->api.check_browser = o->check_browser;
    cfg->api.allowed_hosts = o->allow_hosts.items;
    cfg->api.max_image_pixels = o->max_image_pixels;
    cfg->api.max_image_side = o->max_image_side;
}

static void configure_shelves(const struct serve_options *o, const struct serve_shelves *shelves)
{
    for (unsigned i = 0; i < o->agent_dirs.n; i++) {
        nr_agents_add_dir(shelves->agents, o->agent_dirs.items[i]);
    }
    for (unsigned i = 0; i < o->batching_dirs.n; i++) {
        nr_batchings_add_dir(shelves->batchings, o->batching_dirs.items[i]);
    }
    nr_agents_set_folder(shelves->agents, o->agent_folder);
    nr_agents_set_timeout(shelves->agents,
                          (int64_t)NR_MIN(o->agent_timeout_ns, (uint64_t)INT64_MAX / 4));
    nr_agents_sweep(shelves->agents);
}

nr_status serve_configure(const struct serve_options *o, const struct serve_shelves *shelves,
                          struct nr_node_cfg *cfg, struct nr_err *err)
{
    nr_node_cfg_default(cfg);
    cfg->plugins = shelves->plugins;
    cfg->batchings = shelves->batchings;
    cfg->repository.agents = shelves->agents;
    const struct option_list *paths = &o->repositories;
    if (paths->n == 0) {
        return nr_fail(err, NARU_INVALID,
                       "no model: give a model file, a model's folder or a repository, e.g. naru "
                       "serve model.onnx");
    }
    if (o->load_models.n > 0 && strcmp(o->control_mode, "explicit") != 0) {
        return nr_fail(err, NARU_INVALID, "--load-model needs --model-control-mode=explicit");
    }
    cfg->repository.paths = paths->items;
    cfg->repository.n_paths = paths->n;
    for (unsigned i = 0; i < o->backend_dirs.n; i++) {
        nr_plugins_add_dir(shelves->plugins, o->backend_dirs.items[i]);
    }
    configure_shelves(o, shelves);
    for (unsigned i = 0; i < o->backend_config.n; i++) {
        nr_status st = configure_backend(o->backend_config.items[i], shelves->plugins, cfg, err);
        if (st != NARU_OK) {
            return st;
        }
    }
    configure_limits(o, &cfg->http);
    configure_rest(o, cfg);
    nr_status st = serve_configure_cache(&o->cache_config, cfg, err);
    if (st != NARU_OK) {
        return st;
    }
    return configure_listen(o, cfg, err);
}
