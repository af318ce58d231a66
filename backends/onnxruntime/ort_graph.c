/* A look into a model file without loading it: is there control flow, how much does it weigh, how
 * much does it compute?
 *
 * Why so: ONNX Runtime's C API tells inputs and outputs but nothing of the nodes, and what is asked
 * here must be known before the session is made (its threads) or decides whether the model may
 * ever run on an I/O thread. The file is a protobuf message; fields are walked on the wire, and
 * large ones (weights) are stepped over without being read, so a file of gigabytes costs the reads
 * of its headers. Source: onnx.proto3 of the ONNX project (field numbers), protobuf's encoding
 * guide.
 *
 * Invariants
 *  1. Nothing here trusts a length: a field that reaches over the end of its message ends the walk
 *     with known = false, which the callers take as "may do anything".
 *  2. The levels are model → graph or function → node → attribute, one function each, no recursion:
 *     a node with a graph inside is control flow already, whatever stands in it.
 *
 * Threads: no state.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ort.h"

#define MAX_NODES 10000000u
#define OP_MAX 24        /* names looked for are shorter */
#define N_CONVOLUTIONS 5 /* of the heavy ones, at their beginning */

struct reader {
    int fd;
    bool failed;
    uint64_t at; /* in the file */
    uint64_t buffer_at;
    size_t buffered;
    uint8_t buffer[4096];
};

static uint8_t byte(struct reader *r)
{
    if (r->at < r->buffer_at || r->at - r->buffer_at >= r->buffered) {
        ssize_t n;
        do {
            n = pread(r->fd, r->buffer, sizeof r->buffer, (off_t)r->at);
        } while (n < 0 && errno == EINTR);
        if (n <= 0) {
            r->failed = true;
            return 0;
        }
        r->buffer_at = r->at;
        r->buffered = (size_t)n;
    }
    return r->buffer[r->at++ - r->buffer_at];
}

static uint64_t varint(struct reader *r)
{
    uint64_t value = 0;
    for (unsigned shift = 0; shift < 64; shift += 7) {
        uint8_t b = byte(r);
        value |= (uint64_t)(b & 0x7f) << shift;
        if (!(b & 0x80)) {
            return value;
        }
    }
    r->failed = true;
    return 0;
}

struct field {
    uint32_t number;
    unsigned wire;
    uint64_t value; /* of a varint */
    uint64_t end;   /* of a length-delimited one; r->at is its begin */
};

/* The next field before `end`; false at the end and after an error. Other wire types are skipped. */
static bool next(struct reader *r, uint64_t end, struct field *f)
{
    while (!r->failed && r->at < end) {
        uint64_t key = varint(r);
        *f = (struct field){.number = (uint32_t)(key >> 3), .wire = key & 7, .end = r->at};
        switch (f->wire) {
        case 0:
            f->value = varint(r);
            f->end = r->at;
            return !r->failed && r->at <= end;
        case 1:
            r->at += 8;
            break;
        case 2: {
            uint64_t len = varint(r);
            if (r->failed || r->at > end || len > end - r->at) {
                r->failed = true;
                return false;
            }
            f->end = r->at + len;
            return true;
        }
        case 5:
            r->at += 4;
            break;
        default:
            r->failed = true;
        }
    }
    return false;
}

static bool op_in(const char *op, const char *const *list, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (strcmp(op, list[i]) == 0) {
            return true;
        }
    }
    return false;
}

/* NodeProto: op_type = 4, attribute = 5; AttributeProto: g = 6, graphs = 11. */
static void read_node(struct reader *r, uint64_t end, struct ort_graph *g)
{
    static const char *const flow[] = {"If", "Loop", "Scan", "SequenceMap"};
    static const char *const heavy[] = {"Conv",        "ConvTranspose", "ConvInteger",
                                        "QLinearConv", "DeformConv",    "LSTM",
                                        "GRU",         "RNN",           "Attention"};
    struct field f;
    while (next(r, end, &f)) {
        if (f.number == 4 && f.wire == 2) {
            char op[OP_MAX] = "";
            for (size_t i = 0; i < sizeof op - 1 && r->at < f.end; i++) {
                op[i] = (char)byte(r);
            }
            op[r->at < f.end ? 0 : OP_MAX - 1] = 0; /* a longer name is none of them */
            g->control_flow |= op_in(op, flow, sizeof flow / sizeof flow[0]);
            g->n_convolutions += op_in(op, heavy, sizeof heavy / sizeof heavy[0]);
            g->convolves |= op_in(op, heavy, N_CONVOLUTIONS);
        } else if (f.number == 5 && f.wire == 2) {
            struct field a;
            while (next(r, f.end, &a)) {
                g->control_flow |= (a.number == 6 || a.number == 11) && a.wire == 2;
                r->at = a.end;
            }
        }
        r->at = f.end;
    }
    if (++g->n_nodes > MAX_NODES) {
        r->failed = true;
    }
}

static unsigned bits_of(uint64_t type)
{
    /* TensorProto.DataType */
    static const uint8_t bits[] = {0,  32, 8,  8,   16, 16, 32, 64, 64, 8, 16, 64,
                                   32, 64, 64, 128, 16, 8,  8,  8,  8,  4, 4,  4};
    return type < sizeof bits ? bits[type] : 8;
}

/* TensorProto: dims = 1 (packed or not), data_type = 2, data_location = 14 (1: another file). */
static void read_tensor(struct reader *r, uint64_t end, struct ort_graph *g)
{
    uint64_t elements = 1, type = 0, location = 0;
    struct field f;
    while (next(r, end, &f)) {
        if (f.number == 1) {
            while (!r->failed && (f.wire == 0 || r->at < f.end)) {
                uint64_t dim = f.wire == 0 ? f.value : varint(r);
                if (__builtin_mul_overflow(elements, dim, &elements)) {
                    elements = 0;
                }
                if (f.wire == 0) {
                    break;
                }
            }
        } else if (f.number == 2 && f.wire == 0) {
            type = f.value;
        } else if (f.number == 14 && f.wire == 0) {
            location = f.value;
        }
        r->at = f.end;
    }
    uint64_t bits;
    if (!__builtin_mul_overflow(elements, (uint64_t)bits_of(type), &bits)) {
        (void)__builtin_add_overflow(g->weight_bytes, bits / 8, &g->weight_bytes);
        uint64_t external = location == 1 ? bits / 8 : 0;
        (void)__builtin_add_overflow(g->external_bytes, external, &g->external_bytes);
    }
}

/* GraphProto: node = 1, initializer = 5; FunctionProto: node = 7. */
static void read_graph(struct reader *r, uint64_t end, bool function, struct ort_graph *g)
{
    struct field f;
    while (next(r, end, &f)) {
        if (f.wire == 2 && f.number == (function ? 7u : 1u)) {
            read_node(r, f.end, g);
        } else if (f.wire == 2 && !function && f.number == 5) {
            read_tensor(r, f.end, g);
        }
        r->at = f.end;
    }
}

void ort_graph_read(int dir_fd, const char *path, struct ort_graph *ret)
{
    *ret = (struct ort_graph){.known = false};
    struct reader r = {.fd = openat(dir_fd, path, O_RDONLY | O_CLOEXEC)};
    struct stat st;
    if (r.fd < 0) {
        return;
    }
    if (fstat(r.fd, &st) == 0 && S_ISREG(st.st_mode)) {
        uint64_t end = (uint64_t)st.st_size;
        bool graph = false;
        struct field f;
        while (next(&r, end, &f)) { /* ModelProto: graph = 7, functions = 25 */
            if (f.wire == 2 && (f.number == 7 || f.number == 25)) {
                read_graph(&r, f.end, f.number == 25, ret);
                graph |= f.number == 7;
            }
            r.at = f.end;
        }
        ret->known = graph && !r.failed;
    }
    close(r.fd);
}
