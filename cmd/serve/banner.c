/* The banner and sd_notify. The protocol of the latter: sd_notify(3), a datagram of "KEY=VALUE"
 * lines to the Unix socket in $NOTIFY_SOCKET ('@' begins an abstract name). */
#include "serve/banner.h"

#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "api/call.h"
#include "base/clock.h"
#include "base/footprint.h"
#include "codec/image_plan.h"
#include "codec/tensor.h"
#include "host/plugin.h"
#include "model/ensemble.h"
#include "sched/runtime.h"

#define ONCE_SHOWN_BYTES (UINT64_C(1) << 20) /* smaller libraries are not worth a word */

static void print_bytes(FILE *out, uint64_t bytes)
{
    if (bytes >= 1u << 30) {
        fprintf(out, "%.1f GiB", (double)bytes / (1u << 30));
    } else if (bytes >= 1u << 20) {
        fprintf(out, "%.1f MiB", (double)bytes / (1u << 20));
    } else if (bytes >= 1u << 10) {
        fprintf(out, "%.1f KiB", (double)bytes / 1024);
    } else {
        fprintf(out, "%llu byte%s", (unsigned long long)bytes, bytes == 1 ? "" : "s");
    }
}

static void print_io(FILE *out, const char *what, const struct nr_io_spec *specs, unsigned n)
{
    fprintf(out, "      %-4s", what);
    for (unsigned i = 0; i < n; i++) {
        char shape[NR_SHAPE_TEXT_MAX];
        fprintf(out, "%s " NR_STR_FMT " %s %s", i > 0 ? "," : "", NR_STR_ARG(specs[i].name),
                naru_dtype_name(specs[i].dtype),
                nr_shape_text(specs[i].shape, specs[i].rank, shape, sizeof(shape)));
    }
    fprintf(out, "\n");
}

static void print_version(FILE *out, const struct nr_version *v)
{
    const struct nr_model_config *c = v->config;
    struct nr_sched_state s;
    nr_runtime_state_get(nr_runtime_of(v), &s);
    fprintf(out, "  %s version %lld: ready in %.1f ms, %s", v->name, (long long)v->number,
            (double)v->load_ns / 1e6, c->ensemble != NULL ? c->platform : c->backend);
    if (v->memory_bytes > 0) {
        fprintf(out, ", ");
        print_bytes(out, v->memory_bytes);
    }
    fprintf(out, "\n      config %s; ",
            c->from_file ? "config.pbtxt" : "none, completed from the model");
    if (c->batched) {
        fprintf(out, "batches up to %d%s", c->max_batch_size,
                c->dynamic_batching ? " (dynamic)" : "");
    } else {
        fprintf(out, "no batching");
    }
    if (c->ensemble != NULL) {
        unsigned n = c->ensemble->n_steps;
        fprintf(out, "; %u step%s\n", n, n == 1 ? "" : "s");
    } else {
        fprintf(out, "; %u instance%s%s\n", s.places, s.places == 1 ? "" : "s",
                s.is_inline ? "; runs on the I/O threads" : "");
    }
    if (c->ignored[0] != '\0') {
        fprintf(out, "      ignored: %s\n", c->ignored);
    }
    print_io(out, "in", c->sig.inputs, c->sig.n_inputs);
    print_io(out, "out", c->sig.outputs, c->sig.n_outputs);
}

/* What the process takes, of which the models are a part. */
static void print_memory(const struct nr_node_cfg *cfg, const struct nr_catalog *catalog, FILE *out)
{
    struct nr_footprint now;
    uint64_t models = 0, share = nr_footprint_share();
    nr_footprint_get(&now);
    for (uint32_t i = 0; i < catalog->n_models; i++) {
        for (uint32_t k = 0; k < catalog->models[i].n_versions; k++) {
            const struct nr_version *v = catalog->models[i].versions[k].version;
            models += v != NULL ? v->memory_bytes : 0;
        }
    }
    fprintf(out, "memory\n  process ");
    print_bytes(out, now.resident_bytes);
    fprintf(out, " resident");
    if (share > 0) {
        fprintf(out, " (");
        print_bytes(out, share);
        fprintf(out, " where pages shared with other processes count by their part)");
    }
    fprintf(out, "\n  models ");
    print_bytes(out, models);
    const struct nr_plugin *p;
    for (unsigned i = 0; (p = nr_plugins_opened(cfg->plugins, i)) != NULL; i++) {
        if (p->once_bytes >= ONCE_SHOWN_BYTES) {
            fprintf(out, "; ");
            print_bytes(out, p->once_bytes);
            fprintf(out, " once for %s %s, whatever its models", p->name, p->version);
        }
    }
    fprintf(out, "\n");
}

static void print_models(struct nr_node *node, const struct nr_catalog *catalog, FILE *out)
{
    for (uint32_t i = 0; i < catalog->n_models; i++) {
        const struct nr_catalog_model *m = &catalog->models[i];
        for (uint32_t k = 0; k < m->n_versions; k++) {
            if (m->versions[k].version != NULL) {
                print_version(out, m->versions[k].version);
            } else if (m->versions[k].state == NR_VERSION_UNKNOWN) {
                fprintf(out, "  %s version %lld: not loaded\n", m->name,
                        (long long)m->versions[k].number);
            } else {
                fprintf(out, "  %s version %lld: NOT ready: %s\n", m->name,
                        (long long)m->versions[k].number, m->versions[k].reason);
            }
        }
        if (m->n_versions == 0) {
            fprintf(out, "  %s: NOT ready: %s\n", m->name, m->reason);
        }
    }
    struct nr_repository_counts n = nr_repository_count(nr_node_repository(node));
    if (n.models == 0) {
        fprintf(out, "  no models found\n");
    }
}

/* The first model that takes pictures, and what it makes of them; NULL: none does. */
static const struct nr_catalog_model *first_with_pictures(const struct nr_catalog *catalog,
                                                          enum nr_image_output *ret_output)
{
    const struct nr_catalog_model *found = NULL;
    for (uint32_t i = 0; i < catalog->n_models && found == NULL; i++) {
        const struct nr_catalog_model *m = &catalog->models[i];
        const struct nr_image_plan *plan;
        struct nr_err err = {0};
        if (m->best != NULL && nr_predict_plan(m->best, &plan, &err) == NARU_OK) {
            *ret_output = plan->output;
            found = m;
        }
    }
    return found;
}

static void print_next(const struct nr_node_cfg *cfg, const struct nr_catalog *catalog, FILE *out)
{
    const struct nr_catalog_model *first = NULL;
    for (uint32_t i = 0; i < catalog->n_models && first == NULL; i++) {
        first = catalog->models[i].best != NULL ? &catalog->models[i] : NULL;
    }
    const char *host = strchr(cfg->listen[0].address, ':') != NULL ? "[::1]" : "127.0.0.1";
    unsigned port = cfg->listen[0].bound_port;
    fprintf(out, "try\n  a browser at http://%s:%u/\n  curl http://%s:%u/v2\n", host, port, host,
            port);
    if (first != NULL) {
        fprintf(out, "  curl http://%s:%u/v2/models/%s\n", host, port, first->name);
    }
    enum nr_image_output output;
    const struct nr_catalog_model *sees = first_with_pictures(catalog, &output);
    if (sees != NULL) {
        fprintf(out, "  curl -T photo.jpg http://%s:%u/v2/models/%s/predict%s\n", host, port,
                sees->name, output == NR_OUTPUT_IMAGE ? " -o result.png" : "");
    }
}

void serve_banner(struct nr_node *node, int64_t since_ns, FILE *out)
{
    const struct nr_node_cfg *cfg = nr_node_cfg(node);
    struct nr_catalog_reader reader;
    nr_catalog_reader_init(&reader, nr_node_repository(node));
    const struct nr_catalog *catalog = nr_catalog_get(&reader);
    fprintf(out, "naru %s\nmodels\n", NARU_VERSION);
    print_models(node, catalog, out);
    print_memory(cfg, catalog, out);
    fprintf(out, "listening (HTTP/1.1, HTTP/2 and gRPC on each)\n");
    for (unsigned i = 0; i < cfg->n_listen; i++) {
        fprintf(out, "  %s:%u  %s\n", cfg->listen[i].address, cfg->listen[i].bound_port,
                cfg->listen[i].what);
    }
    print_next(cfg, catalog, out);
    fprintf(out, "ready after %.0f ms\n", (double)(nr_clock_now() - since_ns) / 1e6);
    fflush(out);
    nr_catalog_reader_done(&reader);
}

void serve_notify(const char *state)
{
    const char *path = getenv("NOTIFY_SOCKET");
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    size_t len = path != NULL ? strlen(path) : 0;
    if (len < 2 || len >= sizeof(to.sun_path)) {
        return;
    }
    memcpy(to.sun_path, path, len);
    if (to.sun_path[0] == '@') {
        to.sun_path[0] = '\0';
    }
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd >= 0) {
        socklen_t bytes = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len);
        ssize_t sent =
            sendto(fd, state, strlen(state), MSG_NOSIGNAL, (struct sockaddr *)&to, bytes);
        (void)sent; /* nobody to tell when the supervisor does not listen */
        close(fd);
    }
}
