/* A plug-in opened for a check: inputs made up from its own description, memory with guards.
 *
 * Why so: nothing is known of a plug-in but what it says, so inputs come from model_info and a
 * seed, and an answer is compared with another answer of the same plug-in (alone against in a batch,
 * this instance against that, this process against a child).
 *
 * Guards. Every region ends at a page that cannot be touched; what is left between the begin of its
 * page and its first byte, and behind its last because of alignment, holds a pattern that is
 * compared afterwards. So writing behind a region is a crash or a change seen here, before it a
 * change. A region in shared memory is laid out likewise in its own memfd.
 *
 * Threads: the list of regions is under a lock, since instances on two threads allocate.
 */
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "backend-check/check.h"
#include "base/mem.h"
#include "base/str.h"
#include "io/file.h"

#define PATTERN 0xa5

struct region {
    uint8_t *map, *data;
    size_t mapped, bytes, page;
    struct region *next;
};

static struct {
    pthread_mutex_t lock;
    struct region *first;
} regions = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* ---- memory ------------------------------------------------------------------------------------ */

static void check_region(const struct region *r)
{
    const uint8_t *end = r->map + r->mapped - r->page;
    for (const uint8_t *p = r->map; p < r->data; p++) {
        EXPECT(*p == PATTERN, "a byte %td before a region of %zu was changed", r->data - p,
               r->bytes);
    }
    for (const uint8_t *p = r->data + r->bytes; p < end; p++) {
        EXPECT(*p == PATTERN, "a byte %td behind a region of %zu was changed",
               p - (r->data + r->bytes), r->bytes);
    }
}

void check_guards(void)
{
    pthread_mutex_lock(&regions.lock);
    for (struct region *r = regions.first; r; r = r->next) {
        check_region(r);
    }
    pthread_mutex_unlock(&regions.lock);
}

static void region_free(struct nr_buf *b)
{
    struct region *r = b->owner;
    pthread_mutex_lock(&regions.lock);
    check_region(r);
    for (struct region **at = &regions.first; *at; at = &(*at)->next) {
        if (*at == r) {
            *at = r->next;
            break;
        }
    }
    pthread_mutex_unlock(&regions.lock);
    if (b->region.fd >= 0) {
        nr_close(b->region.fd);
    }
    munmap(r->map, r->mapped);
    nr_free(r);
}

static struct nr_buf *region_new(size_t bytes, place where)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), body = (bytes + 63) & ~(size_t)63;
    size_t pages = (body + page - 1) / page * page;
    int fd = where == PLACE_SHARED ? memfd_create("naru-check", MFD_CLOEXEC) : -1;
    EXPECT(where != PLACE_SHARED || (fd >= 0 && ftruncate(fd, (off_t)(pages + page)) == 0),
           "no shared memory of %zu bytes", pages);
    uint8_t *map = mmap(NULL, pages + page, PROT_READ | PROT_WRITE,
                        fd >= 0 ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS, fd, 0);
    EXPECT(map != MAP_FAILED && mprotect(map + pages, page, PROT_NONE) == 0,
           "no memory of %zu bytes", pages);
    memset(map, PATTERN, pages);
    struct region *r = nr_new(struct region);
    *r = (struct region){.map = map,
                         .data = map + pages - body,
                         .mapped = pages + page,
                         .bytes = bytes,
                         .page = page};
    struct nr_buf *b = nr_buf_try_wrap(r->data, bytes, region_free, r);
    EXPECT(b != NULL, "no memory");
    b->region.fd = fd;
    b->region.mem_type = fd >= 0 ? NARU_MEM_SHARED : NARU_MEM_HOST;
    pthread_mutex_lock(&regions.lock);
    r->next = regions.first;
    regions.first = r;
    pthread_mutex_unlock(&regions.lock);
    return b;
}

static struct nr_buf *alloc_guarded(void *arg, size_t bytes)
{
    (void)arg;
    return region_new(bytes, PLACE_GUARDED);
}

static struct nr_buf *alloc_shared(void *arg, size_t bytes)
{
    (void)arg;
    return region_new(bytes, PLACE_SHARED);
}

int64_t resident_bytes(void)
{
    char text[128];
    int fd = open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
    ssize_t n = fd >= 0 ? read(fd, text, sizeof text - 1) : -1;
    nr_close(fd);
    text[n > 0 ? n : 0] = 0;
    struct nr_str rest, all = nr_str_cut(nr_str_from(text), ' ', &rest);
    uint64_t pages = 0;
    (void)all;
    EXPECT(rest.ptr && nr_str_to_u64(nr_str_cut(rest, ' ', &rest), &pages), "no /proc/self/statm");
    return (int64_t)pages * sysconf(_SC_PAGESIZE);
}

/* ---- opening ----------------------------------------------------------------------------------- */

naru_model_args model_args(int *ret_dir)
{
    struct nr_err err = {0};
    *ret_dir = -1;
    if (check_cfg.dir[0]) {
        EXPECT(nr_dir_open_root(check_cfg.dir, ret_dir, &err) == NARU_OK, "%s", err.text);
    }
    return (naru_model_args){.struct_size = sizeof(naru_model_args),
                             .dir_fd = *ret_dir,
                             .name = "check",
                             .file = check_cfg.file,
                             .path = check_cfg.dir,
                             .version = 1,
                             .options = check_cfg.options,
                             .n_options = check_cfg.n_options,
                             .device = -1,
                             .max_batch_size = -1,
                             .inputs = check_cfg.ins,
                             .outputs = check_cfg.outs,
                             .n_inputs = check_cfg.n_io,
                             .n_outputs = check_cfg.n_io};
}

void open_plugin(struct opened *o)
{
    struct nr_err err = {0};
    *o = (struct opened){.set = nr_plugins_new()};
    struct nr_str file = nr_str_from(strrchr(check_cfg.plugin, '/'));
    file = file.ptr ? file : nr_str_from(check_cfg.plugin);
    for (uint32_t i = 0; i < check_cfg.n_lib_options; i++) {
        struct nr_str name = file;
        while (name.len > 0 && (name.ptr[0] == '/' || name.ptr[0] == '.')) {
            name = (struct nr_str){name.ptr + 1, name.len - 1};
        }
        nr_autofree char *backend =
            name.len > 8 ? nr_format("%.*s", (int)name.len - 8, name.ptr + 5) : nr_strdup("");
        nr_plugins_set_option(o->set, backend, check_cfg.lib_options[i].key,
                              check_cfg.lib_options[i].value);
    }
    EXPECT(nr_plugin_open_path(o->set, check_cfg.plugin, &o->plugin, &err) == NARU_OK, "%s",
           err.text);
}

void open_model(struct opened *o)
{
    struct nr_err err = {0};
    int dir;
    naru_model_args args = model_args(&dir);
    nr_status st = nr_plugin_model_open(o->plugin, &args, &o->model, &err);
    nr_close(dir);
    EXPECT(st == NARU_OK, "%s", err.text);
    const naru_model_info *info = o->model->info;
    EXPECT(info->n_inputs <= CHECK_MAX_IO && info->n_outputs <= CHECK_MAX_IO,
           "%u inputs and %u outputs: this program takes %d", info->n_inputs, info->n_outputs,
           CHECK_MAX_IO);
    o->batched = true;
    for (uint32_t i = 0; i < info->n_inputs; i++) {
        o->batched &= info->inputs[i].rank > 0 && info->inputs[i].shape[0] == -1;
    }
    for (uint32_t i = 0; i < info->n_outputs; i++) {
        o->batched &= info->outputs[i].rank > 0 && info->outputs[i].shape[0] == -1;
    }
    o->max_rows = o->batched ? CHECK_MAX_ROWS : 0;
}

void open_all(struct opened *o)
{
    struct nr_err err = {0};
    open_plugin(o);
    open_model(o);
    EXPECT(nr_plugin_instance_open(o->model, 0, -1, &o->instance, &err) == NARU_OK, "%s", err.text);
}

void close_all(struct opened *o)
{
    nr_plugin_instance_close(o->instance);
    nr_plugin_model_close(o->model);
    nr_plugin_unref(o->plugin);
    nr_plugins_free(o->set);
}

struct nr_batch *new_batch(struct opened *o, place where)
{
    struct nr_err err = {0};
    struct nr_batch *b = NULL;
    struct nr_batch_cfg cfg = {.plugin = o->plugin,
                               .inputs = o->model->info->inputs,
                               .outputs = o->model->info->outputs,
                               .n_inputs = o->model->info->n_inputs,
                               .n_outputs = o->model->info->n_outputs,
                               .max_rows = o->max_rows,
                               .alloc = where == PLACE_SHARED ? alloc_shared : alloc_guarded};
    EXPECT(nr_batch_new(&cfg, &b, &err) == NARU_OK, "%s", err.text);
    return b;
}

/* ---- inputs ------------------------------------------------------------------------------------ */

static uint64_t random_next(uint64_t *state)
{
    uint64_t z = (*state += UINT64_C(0x9e3779b97f4a7c15)); /* splitmix64 */
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

/* Small numbers that every model can take: floats of [-1, 1), integers 0 and 1 (indexes). */
static void put_element(uint8_t *to, int32_t dtype, uint64_t random)
{
    float f = (float)(int64_t)(random >> 40) / (float)(1 << 23) - 1.0f;
    double d = f;
    uint16_t half = (uint16_t)(0x3800 | (random & 0x3ff)); /* FP16 in [0.5, 1) */
    uint16_t brain = (uint16_t)(0x3f00 | (random & 0x7f)); /* BF16 in [0.5, 1) */
    uint64_t small = random >> 63;
    switch (dtype) {
    case NARU_FP32:
        memcpy(to, &f, sizeof f);
        break;
    case NARU_FP64:
        memcpy(to, &d, sizeof d);
        break;
    case NARU_FP16:
        memcpy(to, &half, sizeof half);
        break;
    case NARU_BF16:
        memcpy(to, &brain, sizeof brain);
        break;
    default:
        memcpy(to, &small, naru_dtype_bytes(dtype));
    }
}

/* Strings: empty ones, zero bytes, bytes that are no UTF-8, and a long one now and then. */
static size_t string_bytes(uint64_t random)
{
    return random % 5 == 0 ? 0 : random % 97 == 1 ? 5000 : random % 23;
}

static size_t strings_size(size_t n, uint64_t state)
{
    size_t bytes = 0;
    for (size_t i = 0; i < n; i++) {
        bytes += 4 + string_bytes(random_next(&state));
    }
    return bytes;
}

static void put_strings(uint8_t *to, size_t n, uint64_t state)
{
    for (size_t i = 0; i < n; i++) {
        uint64_t random = random_next(&state);
        uint32_t len = (uint32_t)string_bytes(random);
        memcpy(to, &len, sizeof len);
        to += sizeof len;
        for (uint32_t k = 0; k < len; k++) {
            *to++ = (uint8_t)(random >> (k % 56)) & (k % 7 == 3 ? 0 : 0xff);
        }
    }
}

void make_sample(const struct opened *o, struct sample *s, uint64_t seed, uint32_t rows,
                 int64_t dim, place where)
{
    s->rows = o->batched ? rows : 1;
    for (uint32_t k = 0; k < o->model->info->n_inputs; k++) {
        const naru_io *io = &o->model->info->inputs[k];
        size_t elements = 1;
        for (uint32_t d = 0; d < io->rank; d++) {
            s->shapes[k][d] = d == 0 && o->batched ? rows : io->shape[d] < 0 ? dim : io->shape[d];
            elements *= (size_t)s->shapes[k][d];
        }
        uint64_t state = seed * 1000 + k;
        size_t element = naru_dtype_bytes(io->dtype);
        size_t bytes = element ? elements * element : strings_size(elements, state);
        struct nr_buf *buf = region_new(bytes, where);
        if (element) {
            for (size_t i = 0; i < elements; i++) {
                put_element(nr_buf_data(buf) + i * element, io->dtype, random_next(&state));
            }
        } else {
            put_strings(nr_buf_data(buf), elements, state);
        }
        s->in[k] = (struct nr_batch_input){.data = nr_buf_data(buf),
                                           .bytes = bytes,
                                           .buf = buf,
                                           .shape = s->shapes[k],
                                           .rank = io->rank};
    }
}

void free_sample(const struct opened *o, struct sample *s)
{
    for (uint32_t k = 0; k < o->model->info->n_inputs; k++) {
        nr_buf_unref(s->in[k].buf);
    }
}

void add_sample(struct nr_batch *b, const struct sample *s, const uint8_t *wanted,
                const _Atomic uint32_t *cancelled, int64_t deadline_ns)
{
    struct nr_err err = {0};
    struct nr_batch_request r = {.inputs = s->in,
                                 .wanted = wanted,
                                 .rows = s->rows,
                                 .id = "check",
                                 .cancelled = cancelled,
                                 .deadline_ns = deadline_ns};
    EXPECT(nr_batch_add(b, &r, &err) == NARU_OK, "%s", err.text);
}

/* ---- answers ----------------------------------------------------------------------------------- */

static void append(struct answer *a, const void *data, size_t bytes)
{
    a->data = nr_realloc(a->data, a->bytes + bytes + 1);
    if (bytes > 0) {
        memcpy(a->data + a->bytes, data, bytes);
    }
    a->bytes += bytes;
}

struct answer take_answer(const struct opened *o, struct nr_batch *b, uint32_t request)
{
    struct answer a = {0};
    struct nr_err err = {0};
    EXPECT(nr_batch_result(b, request, &err) == NARU_OK, "request %u failed: %s", request,
           err.text);
    for (uint32_t k = 0; k < o->model->info->n_outputs; k++) {
        struct nr_batch_slice s;
        nr_status st = nr_batch_output(b, k, request, &s);
        EXPECT(st == NARU_OK, "output %u of request %u cannot be read: %s", k, request,
               nr_status_text(st));
        int64_t head[] = {s.dtype, s.rank, (int64_t)s.bytes};
        append(&a, head, sizeof head);
        append(&a, s.shape, s.rank * sizeof *s.shape);
        append(&a, s.data, s.bytes);
    }
    return a;
}

struct answer run_alone(struct opened *o, uint64_t seed, uint32_t rows, int64_t dim, place where)
{
    struct sample s;
    struct nr_batch *b = new_batch(o, where);
    make_sample(o, &s, seed, rows, dim, where);
    add_sample(b, &s, NULL, NULL, 0);
    EXPECT(nr_batch_run(b, o->instance) == NARU_OK, "the run did not end");
    struct answer a = take_answer(o, b, 0);
    nr_batch_free(b);
    free_sample(o, &s);
    check_guards();
    return a;
}

/* Floating numbers may differ by the order of summation: batches take other kernels. */
static bool close_enough(const uint8_t *a, const uint8_t *b, size_t bytes, int64_t dtype)
{
    size_t element = dtype == NARU_FP32 ? 4 : dtype == NARU_FP64 ? 8 : 0;
    for (size_t i = 0; element && i + element <= bytes; i += element) {
        double x, y;
        if (element == 4) {
            float fx, fy;
            memcpy(&fx, a + i, 4);
            memcpy(&fy, b + i, 4);
            x = fx;
            y = fy;
        } else {
            memcpy(&x, a + i, 8);
            memcpy(&y, b + i, 8);
        }
        double size = 1 + (x < 0 ? -x : x), apart = x > y ? x - y : y - x;
        if (!(apart <= 1e-4 * size)) {
            return memcmp(a + i, b + i, element) == 0; /* equal NaN and infinities */
        }
    }
    return element != 0;
}

void expect_same(const struct answer *a, const struct answer *b, const char *what)
{
    if (check_cfg.varies) {
        return;
    }
    EXPECT(a->bytes == b->bytes, "%s: outputs of %zu bytes instead of %zu", what, b->bytes,
           a->bytes);
    for (size_t at = 0; at < a->bytes;) {
        int64_t head[3];
        memcpy(head, a->data + at, sizeof head);
        size_t dims = sizeof head + (size_t)head[1] * 8, bytes = (size_t)head[2];
        EXPECT(memcmp(a->data + at, b->data + at, dims) == 0, "%s: another shape", what);
        at += dims;
        EXPECT(memcmp(a->data + at, b->data + at, bytes) == 0 ||
                   close_enough(a->data + at, b->data + at, bytes, head[0]),
               "%s: other values", what);
        at += bytes;
    }
}
