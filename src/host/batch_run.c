/* One run of a batch: from nr_batch_run to exactly one end, and the functions that plug-ins call.
 *
 * Why so: the answer of a run may come as the return value of execute(), from another thread while
 * execute() is still inside, or long after. All of them meet in one counter of holds:
 *
 *   nr_batch_run            holds = 2 (execute, answer)
 *   execute returns         drops 1; and the answer's as well unless it said NARU_PENDING
 *   host->batch_done        drops the answer's
 *   any other host call, nr_batch_cancel      take one, drop one
 *
 * Whoever drops the last ends the run. When that is nr_batch_run itself the run is over on return,
 * else on_done tells the owner (or wakes it, when it has no on_done).
 *
 * Invariants
 *  1. view->answered goes 0 → 1 once per run; only who moved it writes b->status and b->text.
 *  2. holds never leaves 0 but in nr_batch_run: a call that finds 0 touches nothing of the batch.
 *  3. A view is used again only after NR_BATCH_VIEWS - 1 other runs of its batch, and by another
 *     batch only after resting behind REST others.
 *
 * Threads: host functions come from any thread of a plug-in. b->lock covers outputs and failures
 * of single requests while the batch runs; it is a leaf, nothing is called under it.
 */
#include "host/batch.h"

#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "host/batch_priv.h"
#include "host/plugin.h"

#define REST 64

/* ---- views ------------------------------------------------------------------------------------- */

static struct {
    pthread_mutex_t lock;
    struct nr_batch_view *first, *last;
    unsigned n;
} resting = {.lock = PTHREAD_MUTEX_INITIALIZER};

static _Atomic uint64_t late_calls; /* statistics only: relaxed */

struct nr_batch_view *nr_batch_view_new(struct nr_batch *owner)
{
    struct nr_batch_view *v = NULL;
    pthread_mutex_lock(&resting.lock);
    if (resting.n > REST) {
        v = resting.first;
        resting.first = v->next;
        resting.n--;
    }
    pthread_mutex_unlock(&resting.lock);
    if (!v) {
        v = nr_new(struct nr_batch_view);
        atomic_init(&v->answered, 1);
    }
    v->next = NULL;
    v->owner = owner;
    return v;
}

void nr_batch_view_retire(struct nr_batch_view *view)
{
    pthread_mutex_lock(&resting.lock);
    view->owner = NULL;
    view->next = NULL;
    if (resting.first) {
        resting.last->next = view;
    } else {
        resting.first = view;
    }
    resting.last = view;
    resting.n++;
    pthread_mutex_unlock(&resting.lock);
}

uint64_t nr_batch_late(void)
{
    return atomic_load_explicit(&late_calls, memory_order_relaxed);
}

static void late(const char *what)
{
    atomic_fetch_add_explicit(&late_calls, 1, memory_order_relaxed);
    nr_log(NR_LOG_DEBUG, "host", "a plug-in called for a batch that is over",
           NR_KV_TEXT("call", what));
}

static struct nr_batch_view *view_of(const naru_batch *batch)
{
    return batch->host;
}

/* Takes a hold of a run that is not over. The acquire pairs with the release of nr_batch_run. */
static bool hold(struct nr_batch_view *v)
{
    uint32_t n = atomic_load_explicit(&v->holds, memory_order_relaxed);
    while (n != 0) {
        if (atomic_compare_exchange_weak_explicit(&v->holds, &n, n + 1, memory_order_acquire,
                                                  memory_order_relaxed)) {
            return true;
        }
    }
    return false;
}

/* True for the one that ends the run; it then sees everything that others did before their drop. */
static bool drop(struct nr_batch_view *v, uint32_t n)
{
    return atomic_fetch_sub_explicit(&v->holds, n, memory_order_acq_rel) == n;
}

bool nr_batch_has_outputs(const struct nr_batch *b)
{
    if (!b->cfg.on_response) {
        return true;
    }
    for (uint32_t o = 0; o < b->n_out_tensors; o++) {
        if (b->out_tensors[o].n_segments != 0) {
            return true;
        }
    }
    return false;
}

/* Outputs that the plug-in left out, once the batch is answered. */
static void check_outputs(struct nr_batch *b)
{
    if (b->status != NARU_OK || !nr_batch_has_outputs(b)) {
        return;
    }
    for (uint32_t o = 0; o < b->n_out_tensors; o++) {
        if (b->out_tensors[o].n_segments != 0) {
            continue;
        }
        b->status = NARU_INTERNAL;
        snprintf(b->text, sizeof b->text, "backend \"%s\" did not produce output \"%s\"",
                 b->cfg.plugin->name, b->out_tensors[o].name);
        return;
    }
}

static void end(struct nr_batch *b)
{
    check_outputs(b);
    atomic_store_explicit(&b->view, NULL, memory_order_relaxed);
}

/* Drops holds of a run from outside nr_batch_run. */
static void drop_outside(struct nr_batch_view *v, uint32_t n)
{
    struct nr_batch *b = v->owner;
    if (!drop(v, n)) {
        return;
    }
    end(b);
    if (b->cfg.on_done) {
        b->cfg.on_done(b, b->cfg.on_done_arg);
        return;
    }
    pthread_mutex_lock(&b->lock);
    b->over = true;
    pthread_cond_signal(&b->ended);
    pthread_mutex_unlock(&b->lock);
}

static void answer(struct nr_batch *b, nr_status st, const char *text)
{
    if (st > 0 || st == NARU_PENDING || st < NARU_NOT_ACCEPTABLE) {
        st = NARU_INTERNAL;
    }
    b->status = st;
    if (st != NARU_OK) {
        if (!text || !text[0]) {
            text = nr_status_text(st);
        }
        snprintf(b->text, sizeof b->text, "%s", text);
    }
}

nr_status nr_batch_run(struct nr_batch *b, struct nr_plugin_instance *instance)
{
    NR_ASSERT(b->n_requests > 0 && !atomic_load_explicit(&b->view, memory_order_relaxed));
    NR_DCHECK(instance->model->plugin == b->cfg.plugin);
    struct nr_batch_view *v = b->views[b->next_view++ % NR_BATCH_VIEWS];
    b->stats.runs++;
    b->instance = instance;
    b->over = false;
    b->status = nr_batch_seal(b, v);
    if (b->status != NARU_OK) {
        return NARU_OK;
    }
    b->text[0] = 0;
    atomic_store_explicit(&v->answered, 0, memory_order_relaxed);
    atomic_store_explicit(&v->holds, 2, memory_order_release);
    atomic_store_explicit(&b->view, v, memory_order_release);

    char text[NR_ERR_TEXT_MAX]; /* not b->text: batch_done may write that at the same time */
    text[0] = 0;
    naru_text out = {.struct_size = sizeof out, .capacity = sizeof text, .data = text};
    nr_status st = nr_plugin_execute(instance, &v->abi, &out);
    uint32_t mine = 1;
    if (st != NARU_PENDING) {
        if (atomic_exchange_explicit(&v->answered, 1, memory_order_acq_rel) == 0) {
            answer(b, st, text);
            mine = 2;
        } else {
            late("execute returned after batch_done");
        }
    }
    bool waits = !b->cfg.on_done; /* b may be gone or busy again after the drop */
    if (drop(v, mine)) {
        end(b);
        return NARU_OK;
    }
    if (!waits) {
        return NARU_PENDING;
    }
    pthread_mutex_lock(&b->lock);
    while (!b->over) {
        pthread_cond_wait(&b->ended, &b->lock);
    }
    pthread_mutex_unlock(&b->lock);
    return NARU_OK;
}

void nr_batch_cancel(struct nr_batch *b, uint32_t request)
{
    struct nr_batch_view *v = atomic_load_explicit(&b->view, memory_order_acquire);
    if (!v || !hold(v)) {
        return;
    }
    const naru_backend *api = b->cfg.plugin->api;
    if (request < v->abi.n_requests && NARU_HAS(api, naru_backend, cancel)) {
        api->cancel(b->instance->handle, &v->abi, request);
    }
    drop_outside(v, 1);
}

/* ---- the table --------------------------------------------------------------------------------- */

nr_status nr_batch_output_check(const struct nr_batch *b, const naru_io *io, int64_t rows,
                                int32_t dtype, uint32_t rank, const int64_t *shape, uint64_t bytes,
                                size_t *ret)
{
    if (dtype != io->dtype || rank != io->rank || (rank > 0 && !shape)) {
        return NARU_INVALID;
    }
    bool by_rows = b->cfg.max_rows > 0 && !nr_batch_scatter_of(b, (uint32_t)(io - b->cfg.outputs));
    for (uint32_t d = 0; d < rank; d++) {
        int64_t want = d == 0 && by_rows ? rows : io->shape[d];
        if (shape[d] < 0 || (want >= 0 && shape[d] != want)) {
            return NARU_INVALID;
        }
    }
    size_t need;
    if (dtype == NARU_BYTES) {
        need = bytes;
    } else if (!nr_batch_shape_bytes(dtype, rank, shape, &need)) {
        return NARU_TOO_LARGE;
    }
    if (need > b->cfg.max_output_bytes) {
        return NARU_TOO_LARGE;
    }
    *ret = need;
    return NARU_OK;
}

static naru_status alloc_locked(struct nr_batch *b, uint32_t index, int32_t dtype, uint32_t rank,
                                const int64_t *shape, uint64_t bytes, const naru_tensor **ret)
{
    if (index >= b->n_out_tensors) {
        return NARU_INVALID;
    }
    naru_tensor *t = &b->out_tensors[index];
    struct nr_batch_out *out = &b->outs[t->index];
    size_t need;
    nr_status st = nr_batch_output_check(b, &b->cfg.outputs[t->index], b->rows, dtype, rank, shape,
                                         bytes, &need);
    if (st != NARU_OK) {
        return st;
    }
    if (t->n_segments != 0) { /* placed before: the same again, or a change of mind */
        if (t->bytes == need && memcmp(out->shape, shape, rank * sizeof *shape) == 0) {
            *ret = t;
            return NARU_OK;
        }
        return NARU_INVALID;
    }
    if (!nr_batch_out_buf(b, out, need)) {
        return NARU_NOMEM;
    }
    if (rank > 0) {
        memcpy(out->shape, shape, rank * sizeof *shape);
    }
    nr_batch_out_place(b, out, rank, need);
    *ret = t;
    return NARU_OK;
}

static naru_status on_output_alloc(naru_batch *batch, uint32_t index, int32_t dtype, uint32_t rank,
                                   const int64_t *shape, uint64_t bytes, const naru_tensor **ret)
{
    struct nr_batch_view *v = view_of(batch);
    if (!hold(v)) {
        late("output_alloc");
        return NARU_PRECONDITION;
    }
    struct nr_batch *b = v->owner;
    naru_status st = NARU_PRECONDITION;
    pthread_mutex_lock(&b->lock);
    if (atomic_load_explicit(&v->answered, memory_order_acquire) == 0) {
        st = alloc_locked(b, index, dtype, rank, shape, bytes, ret);
    } else {
        late("output_alloc");
    }
    pthread_mutex_unlock(&b->lock);
    drop_outside(v, 1);
    return st;
}

static void on_request_fail(naru_batch *batch, uint32_t request, naru_status status,
                            const char *msg)
{
    struct nr_batch_view *v = view_of(batch);
    if (!hold(v)) {
        late("request_fail");
        return;
    }
    struct nr_batch *b = v->owner;
    if (status >= 0 || status == NARU_PENDING || status < NARU_NOT_ACCEPTABLE) {
        status = NARU_INTERNAL;
    }
    pthread_mutex_lock(&b->lock);
    if (atomic_load_explicit(&v->answered, memory_order_acquire) != 0 || request >= b->n_requests) {
        late("request_fail");
    } else if (b->members[request].status == NARU_OK) { /* the first reason stays */
        struct nr_str text = nr_str_from(msg && msg[0] ? msg : nr_status_text(status));
        text.len = NR_MIN(text.len, (size_t)NR_ERR_TEXT_MAX - 1);
        b->members[request].text = nr_arena_str(&b->arena, text);
        b->members[request].status = status;
    }
    pthread_mutex_unlock(&b->lock);
    drop_outside(v, 1);
}

static naru_status on_request_again(naru_batch *batch, uint32_t request)
{
    struct nr_batch_view *v = view_of(batch);
    if (!hold(v)) {
        late("request_again");
        return NARU_INVALID;
    }
    struct nr_batch *b = v->owner;
    naru_status st = NARU_OK;
    pthread_mutex_lock(&b->lock);
    if (!b->cfg.may_repeat) {
        st = NARU_UNSUPPORTED;
    } else if (atomic_load_explicit(&v->answered, memory_order_acquire) != 0 ||
               request >= b->n_requests) {
        late("request_again");
        st = NARU_INVALID;
    } else {
        b->members[request].again = true;
    }
    pthread_mutex_unlock(&b->lock);
    drop_outside(v, 1);
    return st;
}

static int32_t on_request_cancelled(const naru_batch *batch, uint32_t request)
{
    struct nr_batch_view *v = view_of(batch);
    if (!hold(v)) {
        late("request_cancelled");
        return 1;
    }
    struct nr_batch *b = v->owner;
    int32_t gone = 1;
    if (request < b->n_requests) {
        const _Atomic uint32_t *flag = b->members[request].cancelled;
        int64_t deadline = b->requests[request].deadline_ns;
        gone = (flag && atomic_load_explicit(flag, memory_order_relaxed) != 0) ||
               (deadline != 0 && nr_clock_now() >= deadline);
    }
    drop_outside(v, 1);
    return gone;
}

static void on_batch_done(naru_batch *batch, naru_status status, const char *msg)
{
    struct nr_batch_view *v = view_of(batch);
    if (!hold(v)) {
        late("batch_done");
        return;
    }
    if (atomic_exchange_explicit(&v->answered, 1, memory_order_acq_rel) != 0) {
        late("batch_done");
        drop_outside(v, 1);
        return;
    }
    answer(v->owner, status, msg);
    drop_outside(v, 2); /* this call's and the answer's */
}

static naru_status on_response_alloc(naru_batch *batch, uint32_t request, uint32_t index,
                                     int32_t dtype, uint32_t rank, const int64_t *shape,
                                     uint64_t bytes, const naru_tensor **ret)
{
    struct nr_batch_view *v = view_of(batch);
    if (!hold(v)) {
        late("response_alloc");
        return NARU_PRECONDITION;
    }
    struct nr_batch *b = v->owner;
    naru_status st = NARU_PRECONDITION;
    pthread_mutex_lock(&b->lock);
    if (atomic_load_explicit(&v->answered, memory_order_acquire) == 0) {
        st = nr_batch_response_alloc(b, request, index, dtype, rank, shape, bytes, ret);
    } else {
        late("response_alloc");
    }
    pthread_mutex_unlock(&b->lock);
    drop_outside(v, 1);
    return st;
}

static naru_status on_response_send(naru_batch *batch, uint32_t request, int32_t final)
{
    struct nr_batch_view *v = view_of(batch);
    if (!hold(v)) {
        late("response_send");
        return NARU_PRECONDITION;
    }
    naru_status st = NARU_PRECONDITION;
    if (atomic_load_explicit(&v->answered, memory_order_acquire) == 0) {
        st = nr_batch_response_send(v->owner, request, final != 0);
    } else {
        late("response_send");
    }
    drop_outside(v, 1);
    return st;
}

static naru_status on_response_wait(naru_batch *batch, uint32_t request, int64_t timeout_ns)
{
    struct nr_batch_view *v = view_of(batch);
    if (!hold(v)) {
        late("response_wait");
        return NARU_PRECONDITION;
    }
    naru_status st = nr_batch_response_wait(v->owner, request, timeout_ns);
    drop_outside(v, 1);
    return st;
}

static void on_log(int32_t level, const char *msg)
{
    /* The plug-in's own words at its own level: it stands at the edge to a foreign library, and
     * nobody above could log them. */
    static const nr_log_level levels[] = {NR_LOG_DEBUG, NR_LOG_INFO, NR_LOG_WARN, NR_LOG_ERROR};
    nr_log_level to = level >= 0 && level <= 3 ? levels[level] : NR_LOG_ERROR;
    nr_log(to, "plugin", msg ? msg : "");
}

const naru_host nr_host_table = {
    .struct_size = sizeof(naru_host),
    .abi_major = NARU_ABI_MAJOR,
    .abi_minor = NARU_ABI_MINOR,
    .output_alloc = on_output_alloc,
    .request_fail = on_request_fail,
    .request_cancelled = on_request_cancelled,
    .batch_done = on_batch_done,
    .response_send = on_response_send,
    .log = on_log,
    .response_alloc = on_response_alloc,
    .response_wait = on_response_wait,
    .request_again = on_request_again,
};
