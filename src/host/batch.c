/* Forming a batch of requests, placing its memory, and cutting its outputs into slices.
 *
 * Why so: requests are appended one by one while the instance is still busy, so everything about
 * one input of the batch (running shape, bytes, where the next row would go) is kept beside it and
 * sealing touches each input once. Arrays grow by doubling and stay; buffers of outputs are kept
 * in a small ring, because a response may hold the last one or two while the next batch runs, and
 * because a pooled buffer freed by an I/O thread would not come back to the thread that allocates.
 *
 * Invariants
 *  1. refs[i * n_inputs + k] of request i lies in the caller's memory, never in ins[k].gather.
 *  2. All members have the same set of inputs and the same shapes behind the batch dimension.
 *  3. An output buffer is written only while its sole reference is the ring's.
 *  4. Between nr_batch_clear and the first nr_batch_add no pointer of a caller is kept.
 *
 * Threads: the owner's; see batch.h. batch_run.c calls nr_batch_out_buf under b->lock.
 */
#include "host/batch.h"

#include <string.h>

#include "base/mem.h"
#include "host/batch_priv.h"

#define DEFAULT_MAX_OUTPUT ((uint64_t)1 << 30)
#define FIRST_CAPACITY 4
#define BIG_BYTES ((size_t)1 << 20) /* buffers that are worth giving back */

static struct nr_buf *default_alloc(void *arg, size_t bytes)
{
    (void)arg;
    return nr_buf_try_new(bytes);
}

bool nr_batch_shape_bytes(int32_t dtype, uint32_t rank, const int64_t *shape, size_t *ret)
{
    size_t bytes = naru_dtype_bytes(dtype);
    bool zero = false;
    for (uint32_t d = 0; d < rank; d++) {
        if (shape[d] < 0) {
            return false;
        }
        if (shape[d] == 0) { /* [huge, huge, 0] is empty, not an overflow */
            zero = true;
        } else if (!nr_mul(bytes, (size_t)shape[d], &bytes)) {
            return false;
        }
    }
    *ret = zero ? 0 : bytes;
    return true;
}

/* ---- life -------------------------------------------------------------------------------------- */

nr_status nr_batch_new(const struct nr_batch_cfg *cfg, struct nr_batch **ret, struct nr_err *err)
{
    struct nr_batch *b = nr_new(struct nr_batch);
    b->cfg = *cfg;
    if (!b->cfg.alloc) {
        b->cfg.alloc = default_alloc;
    }
    if (b->cfg.max_output_bytes == 0) {
        b->cfg.max_output_bytes = DEFAULT_MAX_OUTPUT;
    }
    pthread_mutex_init(&b->lock, NULL);
    pthread_cond_init(&b->ended, NULL);
    nr_arena_init(&b->arena, 0);
    for (unsigned i = 0; i < NR_BATCH_VIEWS; i++) {
        b->views[i] = nr_batch_view_new(b);
    }
    /* Sized by the model, so they may fail. One more than needed: 0 is a valid number. */
    b->ins = nr_try_alloc((cfg->n_inputs + (size_t)1) * sizeof *b->ins);
    b->outs = nr_try_alloc((cfg->n_outputs + (size_t)1) * sizeof *b->outs);
    b->in_tensors = nr_try_alloc((cfg->n_inputs + (size_t)1) * sizeof *b->in_tensors);
    b->out_tensors = nr_try_alloc((cfg->n_outputs + (size_t)1) * sizeof *b->out_tensors);
    if (!b->ins || !b->outs || !b->in_tensors || !b->out_tensors) {
        nr_batch_free(b);
        return nr_fail(err, NARU_NOMEM, "no memory for a batch of %u inputs and %u outputs",
                       cfg->n_inputs, cfg->n_outputs);
    }
    for (uint32_t k = 0; k < cfg->n_inputs; k++) {
        b->in_tensors[k] = (naru_tensor){.name = cfg->inputs[k].name,
                                         .index = k,
                                         .dtype = cfg->inputs[k].dtype,
                                         .rank = cfg->inputs[k].rank,
                                         .shape = b->ins[k].shape};
    }
    *ret = b;
    return NARU_OK;
}

void nr_batch_free(struct nr_batch *b)
{
    if (!b) {
        return;
    }
    NR_ASSERT(atomic_load_explicit(&b->view, memory_order_relaxed) == NULL);
    for (unsigned i = 0; i < NR_BATCH_VIEWS; i++) {
        nr_batch_view_retire(b->views[i]);
    }
    if (b->ins && b->outs) {
        nr_batch_trim(b);
        for (uint32_t k = 0; k < b->cfg.n_inputs; k++) {
            nr_buf_unref(b->ins[k].gather);
        }
        for (uint32_t o = 0; o < b->cfg.n_outputs; o++) {
            for (unsigned i = 0; i < NR_BATCH_KEEP; i++) {
                nr_buf_unref(b->outs[o].kept[i]);
            }
        }
    }
    nr_arena_done(&b->arena);
    pthread_cond_destroy(&b->ended);
    pthread_mutex_destroy(&b->lock);
    nr_free(b->requests);
    nr_free(b->members);
    nr_free(b->refs);
    nr_free(b->regions);
    nr_free(b->segments);
    nr_free(b->ins);
    nr_free(b->outs);
    nr_free(b->in_tensors);
    nr_free(b->out_tensors);
    nr_free(b);
}

void nr_batch_clear(struct nr_batch *b)
{
    NR_ASSERT(atomic_load_explicit(&b->view, memory_order_relaxed) == NULL);
    for (uint32_t k = 0; k < b->cfg.n_inputs; k++) {
        b->ins[k].bytes = 0;
        b->ins[k].present = false;
    }
    for (uint32_t o = 0; o < b->cfg.n_outputs; o++) {
        b->outs[o].buf = NULL;
        b->outs[o].wanted = false;
        b->outs[o].ends = NULL;
    }
    for (uint32_t i = 0; b->cfg.on_response && i < b->n_requests; i++) {
        nr_batch_response_free(b->members[i].open); /* allocated, never sent */
    }
    b->n_requests = 0;
    b->rows = 0;
    b->n_out_tensors = 0;
    b->status = NARU_OK;
    b->text[0] = 0;
    nr_arena_clear(&b->arena);
}

/* Drops the reference in *at and returns the buffer's bytes. */
static size_t drop_kept(struct nr_buf **at)
{
    struct nr_buf *buf = NR_TAKE(*at);
    size_t bytes = buf ? nr_buf_bytes(buf) : 0;
    nr_buf_unref(buf);
    return bytes;
}

size_t nr_batch_trim(struct nr_batch *b)
{
    size_t bytes = 0;
    NR_ASSERT(atomic_load_explicit(&b->view, memory_order_relaxed) == NULL);
    for (uint32_t k = 0; k < b->cfg.n_inputs; k++) {
        if (b->n_requests == 0) {
            bytes += drop_kept(&b->ins[k].gather);
        }
    }
    for (uint32_t o = 0; o < b->cfg.n_outputs; o++) {
        for (unsigned i = 0; i < NR_BATCH_KEEP; i++) {
            if (b->outs[o].kept[i] != b->outs[o].buf) {
                bytes += drop_kept(&b->outs[o].kept[i]);
            }
        }
    }
    return bytes;
}

/* ---- adding requests --------------------------------------------------------------------------- */

static nr_status check_input(const struct nr_batch *b, const struct nr_batch_request *r, uint32_t k,
                             struct nr_err *err)
{
    const naru_io *io = &b->cfg.inputs[k];
    const struct nr_batch_input *in = &r->inputs[k];
    bool ragged = nr_batch_is_ragged(b, k);
    if (!in->data) {
        return io->optional || nr_batch_is_made(b, k)
                   ? NARU_OK
                   : nr_fail(err, NARU_INVALID, "input \"%s\" is missing", io->name);
    }
    if (ragged ? in->rank == 0 : in->rank != io->rank) {
        return nr_fail(err, NARU_INVALID, "input \"%s\" has %u dimensions, the model takes %u",
                       io->name, in->rank, io->rank);
    }
    for (uint32_t d = 0; d < in->rank; d++) {
        bool is_rows = d == 0 && b->cfg.max_rows > 0;
        if (is_rows ? in->shape[0] != r->rows
                    : in->shape[d] < 0 ||
                          (!ragged && io->shape[d] >= 0 && in->shape[d] != io->shape[d])) {
            return nr_fail(err, NARU_INVALID, "input \"%s\": dimension %u is %lld, expected %lld",
                           io->name, d, (long long)in->shape[d],
                           (long long)(is_rows  ? (int64_t)r->rows
                                       : ragged ? -1
                                                : io->shape[d]));
        }
    }
    size_t need;
    if (io->dtype != NARU_BYTES &&
        (!nr_batch_shape_bytes(io->dtype, in->rank, in->shape, &need) || need != in->bytes)) {
        return nr_fail(err, NARU_INVALID, "input \"%s\": %zu bytes do not fill its shape", io->name,
                       in->bytes);
    }
    return NARU_OK;
}

bool nr_batch_fits(const struct nr_batch *b, const struct nr_batch_request *r)
{
    if (b->n_requests == 0) {
        return true;
    }
    if (b->cfg.max_rows == 0 || b->rows + r->rows > b->cfg.max_rows ||
        b->n_requests >= b->cfg.max_rows) {
        return false;
    }
    for (uint32_t k = 0; k < b->cfg.n_inputs; k++) {
        const struct nr_batch_input *in = &r->inputs[k];
        if (b->ins[k].present != (in->data != NULL)) {
            return false;
        }
        if (in->data && !nr_batch_is_ragged(b, k) &&
            (in->rank != b->cfg.inputs[k].rank ||
             (in->rank > 1 && memcmp(in->shape + 1, b->ins[k].shape + 1,
                                     (in->rank - 1) * sizeof *in->shape) != 0))) {
            return false;
        }
    }
    return true;
}

/* One array of the batch at its new capacity; the rest stays as it was when one of them fails. */
#define GROW(array, n)                                                 \
    ({                                                                 \
        void *grown_ = nr_try_realloc((array), (n) * sizeof *(array)); \
        if (grown_) {                                                  \
            (array) = grown_;                                          \
        }                                                              \
        grown_ != NULL;                                                \
    })

static nr_status grow(struct nr_batch *b, struct nr_err *err)
{
    size_t n = b->capacity ? (size_t)b->capacity * 2 : FIRST_CAPACITY;
    size_t cells;
    if (!nr_mul(n, b->cfg.n_inputs + (size_t)1, &cells) || !GROW(b->requests, n) ||
        !GROW(b->members, n) || !GROW(b->refs, cells) ||
        ((b->cfg.plugin->caps & NARU_CAP_SEGMENTS) &&
         (!GROW(b->regions, cells) || !GROW(b->segments, cells)))) {
        return nr_fail(err, NARU_NOMEM, "no memory for a batch of %zu requests", n);
    }
    b->capacity = (uint32_t)n;
    return NARU_OK;
}

/* Extends the batch's inputs by those of request r, which is checked. */
static void add_inputs(struct nr_batch *b, const struct nr_batch_request *r)
{
    for (uint32_t k = 0; k < b->cfg.n_inputs; k++) {
        const struct nr_batch_input *in = &r->inputs[k];
        struct nr_batch_in *to = &b->ins[k];
        b->refs[(size_t)b->n_requests * b->cfg.n_inputs + k] = *in;
        if (!in->data) {
            continue;
        }
        if (nr_batch_is_ragged(b, k)) {
            to->shape[0] = (to->present ? to->shape[0] : 0) + (int64_t)nr_batch_elements(in);
            to->present = true;
        } else if (!to->present) {
            to->present = true;
            memcpy(to->shape, in->shape, in->rank * sizeof *in->shape);
        } else {
            to->shape[0] += r->rows;
        }
        to->bytes += in->bytes;
    }
}

nr_status nr_batch_add(struct nr_batch *b, const struct nr_batch_request *r, struct nr_err *err)
{
    if (b->cfg.max_rows == 0 ? r->rows != 1 : r->rows > b->cfg.max_rows) {
        return nr_fail(err, NARU_INVALID, "a request of %u rows; the model takes at most %u",
                       r->rows, NR_MAX(b->cfg.max_rows, 1u));
    }
    for (uint32_t k = 0; k < b->cfg.n_inputs; k++) {
        nr_status st = check_input(b, r, k, err);
        if (st != NARU_OK) {
            return st;
        }
        size_t sum;
        if (!nr_add(b->ins[k].bytes, r->inputs[k].bytes, &sum)) {
            return nr_fail(err, NARU_TOO_LARGE, "input \"%s\" is too large", b->cfg.inputs[k].name);
        }
    }
    if (!nr_batch_fits(b, r)) {
        return nr_fail(err, NARU_INVALID,
                       "the request does not fit into the batch: %lld of %u rows "
                       "are taken, or shapes differ",
                       (long long)b->rows, b->cfg.max_rows);
    }
    if (b->n_requests == b->capacity) {
        nr_status st = grow(b, err);
        if (st != NARU_OK) {
            return st;
        }
    }
    add_inputs(b, r);
    for (uint32_t o = 0; o < b->cfg.n_outputs; o++) {
        b->outs[o].wanted |= !r->wanted || r->wanted[o];
    }
    b->requests[b->n_requests] = (naru_request){.id = r->id ? r->id : "",
                                                .deadline_ns = r->deadline_ns,
                                                .sequence_id = r->sequence_id,
                                                .options = r->options,
                                                .n_options = r->n_options,
                                                .sequence_flags = r->sequence_flags,
                                                .rows = r->rows};
    b->members[b->n_requests] = (struct nr_batch_member){
        .rows = r->rows, .row0 = b->rows, .cancelled = r->cancelled, .user = r->user};
    b->rows += r->rows;
    b->n_requests++;
    return NARU_OK;
}

/* ---- gathering --------------------------------------------------------------------------------- */

/* Makes room for `need` bytes in the gather buffer of input k; its contents are lost. */
bool nr_batch_gather_reserve(struct nr_batch *b, uint32_t k, size_t need)
{
    struct nr_batch_in *in = &b->ins[k];
    if (in->gather && nr_buf_bytes(in->gather) >= need) {
        return true;
    }
    /* One allocation for the whole life where a full batch is small, else doubling. */
    size_t row_bytes, full = 0;
    const naru_io *io = &b->cfg.inputs[k];
    if (b->cfg.max_rows > 0 && io->dtype != NARU_BYTES && io->rank > 0 &&
        nr_batch_shape_bytes(io->dtype, io->rank - 1, io->shape + 1, &row_bytes) &&
        nr_mul(row_bytes, b->cfg.max_rows, &full) && full > NR_BUF_POOL_BYTES) {
        full = 0;
    }
    size_t twice = in->gather ? NR_MIN(nr_buf_bytes(in->gather), SIZE_MAX / 2) * 2 : 0;
    size_t want = NR_MAX(need, NR_MAX(full, twice));
    struct nr_buf *buf = b->cfg.alloc(b->cfg.alloc_arg, want);
    if (!buf && want > need) {
        buf = b->cfg.alloc(b->cfg.alloc_arg, need);
    }
    if (!buf) {
        return false;
    }
    b->stats.buffers_made++;
    nr_buf_unref(in->gather);
    in->gather = buf;
    return true;
}

/* Region and offset of bytes of a caller: within its buffer, or a region of its own. */
static naru_segment segment_of(const struct nr_batch_input *ref, naru_region *own, uint32_t request)
{
    naru_segment s = {.bytes = ref->bytes, .request = request};
    if (ref->buf) {
        s.region = &ref->buf->region;
        s.offset = (uint64_t)((const uint8_t *)ref->data - nr_buf_data(ref->buf));
    } else {
        *own = (naru_region){.struct_size = sizeof *own,
                             .mem_type = NARU_MEM_HOST,
                             .fd = -1,
                             .base = (void *)(uintptr_t)ref->data,
                             .bytes = ref->bytes};
        s.region = own;
    }
    return s;
}

/* The requests' bytes one behind the other in the gather buffer. False: no memory. */
static bool gather(struct nr_batch *b, uint32_t k)
{
    struct nr_batch_in *in = &b->ins[k];
    if (!nr_batch_gather_reserve(b, k, NR_MAX(in->bytes, (size_t)1))) {
        return false;
    }
    uint8_t *to = nr_buf_data(in->gather);
    for (uint32_t i = 0; i < b->n_requests; i++) {
        const struct nr_batch_input *ref = &b->refs[(size_t)i * b->cfg.n_inputs + k];
        if (ref->bytes > 0) {
            memcpy(to, ref->data, ref->bytes);
            to += ref->bytes;
        }
    }
    b->stats.bytes_copied += in->bytes;
    in->segment = (naru_segment){.region = &in->gather->region,
                                 .bytes = in->bytes,
                                 .request = b->n_requests == 1 ? 0 : UINT32_MAX};
    return true;
}

/* True when the requests' bytes lie one behind the other as they are (slots.h; or by chance, which
 * is as good). */
static bool is_adjacent(const struct nr_batch *b, uint32_t k)
{
    const struct nr_batch_input *ref = &b->refs[k];
    for (uint32_t i = 1; i < b->n_requests; i++) {
        const uint8_t *end = (const uint8_t *)ref->data + ref->bytes;
        ref += b->cfg.n_inputs;
        if (ref->data != end) {
            return false;
        }
    }
    return true;
}

static bool seal_input(struct nr_batch *b, uint32_t k)
{
    struct nr_batch_in *in = &b->ins[k];
    naru_tensor *t = &b->in_tensors[k];
    t->bytes = in->bytes;
    t->n_segments = 1;
    t->segments = &in->segment;
    if (!in->present) {
        t->n_segments = 0;
        t->segments = NULL;
        return true;
    }
    const struct nr_batch_input *first = &b->refs[k];
    uint32_t element = naru_dtype_bytes(t->dtype);
    bool aligned = element == 0 || (uintptr_t)first->data % element == 0;
    if (b->n_requests == 1 && aligned) {
        in->segment = segment_of(first, &in->region, 0);
        b->stats.bytes_in_place += in->bytes;
        return true;
    }
    bool takes_segments = (b->cfg.plugin->caps & NARU_CAP_SEGMENTS) != 0;
    if (!takes_segments && aligned && is_adjacent(b, k)) {
        const struct nr_batch_input all = {.data = first->data, .bytes = in->bytes};
        in->segment = segment_of(&all, &in->region, UINT32_MAX);
        b->stats.bytes_in_place += in->bytes;
        return true;
    }
    if (!takes_segments) {
        return gather(b, k);
    }
    size_t base = (size_t)k * b->capacity;
    for (uint32_t i = 0; i < b->n_requests; i++) {
        b->segments[base + i] =
            segment_of(&b->refs[(size_t)i * b->cfg.n_inputs + k], &b->regions[base + i], i);
    }
    t->n_segments = b->n_requests;
    t->segments = &b->segments[base];
    b->stats.bytes_in_place += in->bytes;
    return true;
}

/* ---- outputs ----------------------------------------------------------------------------------- */

struct nr_buf *nr_batch_out_buf(struct nr_batch *b, struct nr_batch_out *out, size_t bytes)
{
    size_t need = NR_MAX(bytes, (size_t)1);
    unsigned places = need >= BIG_BYTES ? NR_BATCH_KEEP / 2 : NR_BATCH_KEEP;
    unsigned victim = 0;
    for (unsigned i = 0; i < places; i++) {
        struct nr_buf *kept = out->kept[i];
        if (!kept) {
            victim = i;
            continue;
        }
        /* Pairs with the release in nr_buf_unref: the last reader's reads are before our writes. */
        if (atomic_load_explicit(&kept->refs, memory_order_acquire) != 1) {
            continue;
        }
        size_t have = nr_buf_bytes(kept);
        if (have >= need && (have < BIG_BYTES || have / 4 <= need)) {
            out->buf = kept;
            return kept;
        }
        victim = i; /* free, but of the wrong size */
    }
    struct nr_buf *buf = b->cfg.alloc(b->cfg.alloc_arg, need);
    if (!buf) {
        return NULL;
    }
    b->stats.buffers_made++;
    nr_buf_unref(out->kept[victim]); /* still held by its reader, if it has one */
    out->kept[victim] = buf;
    out->buf = buf;
    return buf;
}

void nr_batch_out_place(struct nr_batch *b, struct nr_batch_out *out, uint32_t rank, size_t bytes)
{
    out->segment =
        (naru_segment){.region = &out->buf->region, .bytes = bytes, .request = UINT32_MAX};
    naru_tensor *t = &b->out_tensors[out->at];
    t->rank = rank;
    t->shape = out->shape;
    t->segments = &out->segment;
    t->bytes = bytes;
    t->n_segments = 1;
}

/* Places output o where its shape follows from the rows. */
static nr_status seal_output(struct nr_batch *b, uint32_t o)
{
    struct nr_batch_out *out = &b->outs[o];
    const naru_io *io = &b->cfg.outputs[o];
    out->at = b->n_out_tensors++;
    memcpy(out->shape, io->shape, io->rank * sizeof *io->shape);
    b->out_tensors[out->at] = (naru_tensor){
        .name = io->name, .index = o, .dtype = io->dtype, .rank = io->rank, .shape = out->shape};
    if (nr_batch_scatter_of(b, o)) {
        return NARU_OK;
    }
    if (b->cfg.max_rows > 0 && io->rank > 0) {
        out->shape[0] = b->rows;
    }
    size_t bytes;
    if (io->dtype == NARU_BYTES || b->cfg.on_response) {
        return NARU_OK;
    }
    for (uint32_t d = 0; d < io->rank; d++) {
        if (out->shape[d] < 0) {
            return NARU_OK; /* the plug-in asks when it knows */
        }
    }
    if (!nr_batch_shape_bytes(io->dtype, io->rank, out->shape, &bytes) ||
        bytes > b->cfg.max_output_bytes) {
        return NARU_TOO_LARGE;
    }
    if (!nr_batch_out_buf(b, out, bytes)) {
        return NARU_NOMEM;
    }
    nr_batch_out_place(b, out, io->rank, bytes);
    return NARU_OK;
}

nr_status nr_batch_seal(struct nr_batch *b, struct nr_batch_view *view)
{
    struct nr_err err = {.status = NARU_OK};
    for (uint32_t k = 0; k < b->cfg.n_inputs && err.status == NARU_OK; k++) {
        if (!seal_input(b, k)) {
            err.status = nr_fail(&err, NARU_NOMEM, "no memory for input \"%s\" of %zu bytes",
                                 b->cfg.inputs[k].name, b->ins[k].bytes);
        }
    }
    for (uint32_t i = 0; b->cfg.ragged && i < b->cfg.ragged->n_made && err.status == NARU_OK; i++) {
        nr_status st = nr_batch_made_seal(b, &b->cfg.ragged->made[i]);
        if (st != NARU_OK) {
            err.status =
                nr_fail(&err, st, "input \"%s\" cannot be made of the batch's shapes: %s",
                        b->cfg.inputs[b->cfg.ragged->made[i].input].name, nr_status_text(st));
        }
    }
    b->n_out_tensors = 0;
    for (uint32_t o = 0; o < b->cfg.n_outputs && err.status == NARU_OK; o++) {
        nr_status st = b->outs[o].wanted ? seal_output(b, o) : NARU_OK;
        if (st != NARU_OK) {
            err.status = nr_fail(&err, st, "no memory for output \"%s\" of %lld rows",
                                 b->cfg.outputs[o].name, (long long)b->rows);
        }
    }
    memcpy(b->text, err.text, sizeof b->text);
    view->abi = (naru_batch){.struct_size = sizeof view->abi,
                             .n_requests = b->n_requests,
                             .n_inputs = b->cfg.n_inputs,
                             .n_outputs = b->n_out_tensors,
                             .rows = b->rows,
                             .requests = b->requests,
                             .inputs = b->in_tensors,
                             .outputs = b->out_tensors,
                             .host = view,
                             .form = b->form};
    return err.status;
}

void nr_batch_form_set(struct nr_batch *b, uint32_t form)
{
    b->form = form;
}

/* ---- reading ----------------------------------------------------------------------------------- */

uint32_t nr_batch_requests(const struct nr_batch *b)
{
    return b->n_requests;
}

void nr_batch_stats_get(const struct nr_batch *b, struct nr_batch_stats *ret)
{
    *ret = b->stats;
}

nr_status nr_batch_result(const struct nr_batch *b, uint32_t request, struct nr_err *err)
{
    NR_DCHECK(request < b->n_requests);
    const struct nr_batch_member *m = &b->members[request];
    if (m->status != NARU_OK) {
        return nr_fail(err, m->status, NR_STR_FMT, NR_STR_ARG(m->text));
    }
    if (b->status != NARU_OK) {
        return nr_fail(err, b->status, "%s", b->text);
    }
    return NARU_OK;
}

nr_status nr_batch_failed(const struct nr_batch *b)
{
    return b->status;
}

bool nr_batch_again(const struct nr_batch *b, uint32_t request)
{
    NR_DCHECK(request < b->n_requests);
    return b->members[request].again;
}

/* Ends of the requests' shares of a BYTES output, by walking the lengths. NULL: they do not add up. */
static const uint64_t *bytes_ends(struct nr_batch *b, struct nr_batch_out *out,
                                  const naru_tensor *t)
{
    if (out->ends) {
        return out->ends;
    }
    size_t per_row = 1;
    for (uint32_t d = 1; d < t->rank; d++) {
        if (!nr_mul(per_row, (size_t)t->shape[d], &per_row)) {
            return NULL;
        }
    }
    uint64_t *ends = nr_arena_try_array(&b->arena, b->n_requests, sizeof *ends);
    if (!ends) {
        return NULL;
    }
    const uint8_t *data = nr_buf_data(out->buf);
    uint64_t at = 0;
    for (uint32_t i = 0; i < b->n_requests; i++) {
        size_t elements;
        if (!nr_mul(per_row, b->members[i].rows, &elements)) {
            return NULL;
        }
        for (size_t e = 0; e < elements; e++) {
            uint32_t len;
            if (t->bytes - at < sizeof len) {
                return NULL;
            }
            memcpy(&len, data + at, sizeof len);
            at += sizeof len;
            if (t->bytes - at < len) {
                return NULL;
            }
            at += len;
        }
        ends[i] = at;
    }
    out->ends = at == t->bytes ? ends : NULL;
    return out->ends;
}

nr_status nr_batch_output(struct nr_batch *b, uint32_t output, uint32_t request,
                          struct nr_batch_slice *ret)
{
    NR_DCHECK(output < b->cfg.n_outputs && request < b->n_requests);
    struct nr_batch_out *out = &b->outs[output];
    if (!out->wanted || !out->buf) {
        return NARU_NOT_FOUND;
    }
    const struct nr_batch_scatter *scatter = nr_batch_scatter_of(b, output);
    if (scatter) {
        return nr_batch_scatter_cut(b, scatter, out, request, ret);
    }
    const naru_tensor *t = &b->out_tensors[out->at];
    const struct nr_batch_member *m = &b->members[request];
    uint64_t begin = 0, end = t->bytes;
    bool split = b->cfg.max_rows > 0 && t->rank > 0;
    if (split && b->n_requests > 1) {
        if (t->dtype == NARU_BYTES) {
            const uint64_t *ends = bytes_ends(b, out, t);
            if (!ends) {
                return NARU_INTERNAL;
            }
            begin = request == 0 ? 0 : ends[request - 1];
            end = ends[request];
        } else {
            uint64_t row_bytes = b->rows > 0 ? t->bytes / (uint64_t)b->rows : 0;
            begin = row_bytes * (uint64_t)m->row0;
            end = begin + row_bytes * m->rows;
        }
    }
    ret->data = nr_buf_data(out->buf) + begin;
    ret->bytes = end - begin;
    ret->buf = out->buf;
    ret->dtype = t->dtype;
    ret->rank = t->rank;
    memcpy(ret->shape, out->shape, t->rank * sizeof *ret->shape);
    if (split) {
        ret->shape[0] = m->rows;
    }
    return NARU_OK;
}
