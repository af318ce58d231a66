/* How much memory each model holds.
 *
 * Why so: ONNX Runtime tells of its arenas only; weights that were repacked, graphs and kernels lie
 * elsewhere, and a file of a few kilobytes can become a session of a hundred megabytes. So a session is
 * measured: by what the heap grows while it is made. For that to be its own and no other's,
 *   - the library sets up what its first session brings (1.3 MiB) with one of ours, when it is opened;
 *   - one session is made at a time, whichever threads load. Nothing is lost by that: two sessions
 *     at once take as long as one after the other, since both wait for the kernel's pages;
 *   - what the other models gain or lose meanwhile (their arenas while they run, a session that is closed) is
 *     taken off, since it is in the books.
 * What is left is what else in the process takes from the heap at that moment: buffers of requests.
 *
 * What a model holds is its session, further ones that were made of the same weights (without what their arenas grow
 * by), what its arena has grown by since, and weights that are mapped from
 * files beside the model, where the heap has not taken them over. Arenas that all sessions share
 * (shared_arena) belong to none.
 *
 * Invariants
 *  1. A model is in the list exactly while entry.listed, which changes under books->lock; its session
 *     lives as long.
 *  2. books->making is taken before books->lock.
 *
 * Threads: any. books->making is held while a session is made, which may take seconds: nothing that
 * serves waits for it.
 */
#include <malloc.h>
#include <stdlib.h>

#include "ort.h"

/* Beyond so many models the arenas of the others are not looked at: it would take too long for each
 * new one, and so many are small. */
#define MAX_ARENAS 64u

/* An arena keeps a table of 8 bytes for each 256 that it holds, which its figures leave out. */
#define ARENA_TABLE_SHARE 32

struct ort_books {
    pthread_mutex_t making; /* one session at a time */
    pthread_mutex_t lock;
    naru_backend_model *first;
    unsigned n;
    uint64_t session_bytes; /* of all in the list */
};

static size_t heap_bytes(void)
{
    struct mallinfo2 m = mallinfo2();
    return m.uordblks + m.hblkhd;
}

struct ort_books *ort_books_new(void)
{
    struct ort_books *b = calloc(1, sizeof *b);
    if (b) {
        pthread_mutex_init(&b->making, NULL);
        pthread_mutex_init(&b->lock, NULL);
    }
    return b;
}

void ort_books_free(struct ort_books *b)
{
    if (b) {
        pthread_mutex_destroy(&b->making);
        pthread_mutex_destroy(&b->lock);
        free(b);
    }
}

static uint64_t stat_of(const OrtApi *a, const OrtKeyValuePairs *all, const char *key)
{
    const char *text = a->GetKeyValue(all, key);
    int64_t value = 0;
    return text && naru_parse_i64(text, &value) && value > 0 ? (uint64_t)value : 0;
}

struct ort_arena ort_arena_get(const naru_backend_model *m)
{
    const OrtApi *a = m->lib->api;
    OrtAllocator *arena = NULL;
    OrtKeyValuePairs *all = NULL;
    struct ort_arena ret = {0};
    OrtStatus *s = a->CreateAllocator(m->session, m->lib->cpu_memory, &arena);
    if (!s && arena->GetStats) {
        s = arena->GetStats(arena, &all);
    }
    if (!s && all) {
        ret.held = stat_of(a, all, "TotalAllocated");
        ret.used = stat_of(a, all, "InUse");
    }
    if (all) {
        a->ReleaseKeyValuePairs(all);
    }
    if (arena) {
        a->ReleaseAllocator(arena);
    }
    (void)ort_status(m->lib, s, NULL, 0, NULL);
    return ret;
}

/* What the session's own arena has gained since the session was made; a trim can make it less. */
static int64_t arena_growth(const naru_backend_model *m)
{
    if (m->lib->shared_arena || m->device >= 0) {
        return 0;
    }
    int64_t grown = (int64_t)ort_arena_get(m).held - (int64_t)m->entry.arena_bytes;
    return grown + grown / ARENA_TABLE_SHARE;
}

/* What the books say that all models hold of the heap. */
static int64_t booked(struct ort_books *b)
{
    pthread_mutex_lock(&b->lock);
    int64_t sum = (int64_t)b->session_bytes;
    unsigned n = 0;
    for (const naru_backend_model *m = b->first; m && n < MAX_ARENAS; m = m->entry.next, n++) {
        sum += b->n <= MAX_ARENAS ? arena_growth(m) : 0;
    }
    pthread_mutex_unlock(&b->lock);
    return sum;
}

static void add(struct ort_books *b, naru_backend_model *m, int64_t grown, uint64_t external_bytes)
{
    struct ort_entry *e = &m->entry;
    e->session_bytes = grown > 0 ? (uint64_t)grown : 0;
    if (m->store) {
        external_bytes = e->session_bytes + ort_store_bytes(m->store);
    }
    e->outside_bytes = external_bytes > e->session_bytes ? external_bytes - e->session_bytes : 0;
    e->arena_bytes = m->lib->shared_arena || m->device >= 0 ? 0 : ort_arena_get(m).held;
    pthread_mutex_lock(&b->lock);
    e->next = b->first;
    e->previous = NULL;
    if (e->next) {
        e->next->entry.previous = m;
    }
    b->first = m;
    b->n++;
    b->session_bytes += e->session_bytes;
    e->listed = true;
    pthread_mutex_unlock(&b->lock);
}

OrtStatus *ort_books_create(naru_backend_model *m, const char *path, const OrtSessionOptions *so,
                            uint64_t external_bytes)
{
    struct ort_books *b = m->lib->books;
    pthread_mutex_lock(&b->making);
    int64_t others = booked(b);
    size_t before = heap_bytes();
    OrtStatus *s = m->store ? ort_store_session(m->lib, m->store, so, &m->session)
                            : m->lib->api->CreateSession(m->lib->env, path, so, &m->session);
    if (!s) {
        int64_t grown = (int64_t)heap_bytes() - (int64_t)before;
        add(b, m, grown - (booked(b) - others), external_bytes);
    }
    pthread_mutex_unlock(&b->making);
    return s;
}

void ort_books_begin(struct ort_books *b)
{
    pthread_mutex_lock(&b->making);
}

void ort_books_end(struct ort_books *b)
{
    pthread_mutex_unlock(&b->making);
}

static void set_form(struct ort_books *b, struct ort_entry *e, uint32_t form, uint64_t bytes)
{
    pthread_mutex_lock(&b->lock);
    b->session_bytes += bytes - e->form_bytes[form];
    e->form_bytes[form] = bytes;
    pthread_mutex_unlock(&b->lock);
}

OrtStatus *ort_books_form_create(naru_backend_model *m, uint32_t form, const OrtSessionOptions *so)
{
    struct ort_books *b = m->lib->books;
    pthread_mutex_lock(&b->making);
    int64_t others = booked(b);
    size_t before = heap_bytes();
    OrtStatus *s = ort_store_session(m->lib, m->store, so, &m->forms[form]);
    int64_t grown = (int64_t)heap_bytes() - (int64_t)before - (booked(b) - others);
    set_form(b, &m->entry, form, !s && grown > 0 ? (uint64_t)grown : 0);
    pthread_mutex_unlock(&b->making);
    return s;
}

void ort_books_form_remove(naru_backend_model *m, uint32_t form)
{
    set_form(m->lib->books, &m->entry, form, 0);
    if (m->forms[form]) {
        m->lib->api->ReleaseSession(m->forms[form]);
        m->forms[form] = NULL;
    }
}

void ort_books_remove(naru_backend_model *m)
{
    struct ort_books *b = m->lib->books;
    struct ort_entry *e = &m->entry;
    pthread_mutex_lock(&b->lock);
    for (uint32_t f = 0; f < NARU_FORMS; f++) {
        b->session_bytes -= e->form_bytes[f];
        e->form_bytes[f] = 0;
    }
    if (e->listed) {
        *(e->previous ? &e->previous->entry.next : &b->first) = e->next;
        if (e->next) {
            e->next->entry.previous = e->previous;
        }
        b->n--;
        b->session_bytes -= e->session_bytes;
        e->listed = false;
    }
    pthread_mutex_unlock(&b->lock);
}

uint64_t ort_model_memory(naru_backend_model *model)
{
    const struct ort_entry *e = &model->entry;
    int64_t held = (int64_t)(e->session_bytes + e->outside_bytes) + arena_growth(model);
    pthread_mutex_lock(&model->lib->books->lock);
    for (uint32_t f = 0; f < NARU_FORMS; f++) {
        held += (int64_t)e->form_bytes[f];
    }
    pthread_mutex_unlock(&model->lib->books->lock);
    return held > 0 ? (uint64_t)held : 0;
}

naru_status ort_books_prime(naru_backend_lib *lib, naru_text *err)
{
    /* onnx.proto3, ModelProto: y = Identity(x), both FLOAT [1] */
    static const uint8_t model[] = {
        0x08, 8,                                              /* ir_version */
        0x42, 2,  0x10, 13,                                   /* opset_import { version } */
        0x3a, 55,                                             /* graph */
        0x0a, 16,                                             /* node */
        0x0a, 1,  'x',  0x12, 1,    'y',                      /* input, output */
        0x22, 8,  'I',  'd',  'e',  'n', 't',  'i', 't', 'y', /* op_type */
        0x12, 1,  'g',                                        /* name */
        0x5a, 15,                                             /* input */
        0x0a, 1,  'x',                                        /* name */
        0x12, 10, 0x0a, 8,                                    /* type { tensor_type */
        0x08, 1,  0x12, 4,    0x0a, 2,   0x08, 1,             /* elem_type, shape { dim } } */
        0x62, 15,                                             /* output */
        0x0a, 1,  'y',                                        /* name */
        0x12, 10, 0x0a, 8,                                    /* type { tensor_type */
        0x08, 1,  0x12, 4,    0x0a, 2,   0x08, 1,             /* elem_type, shape { dim } } */
    };
    const OrtApi *a = lib->api;
    OrtSessionOptions *so = NULL;
    OrtSession *session = NULL;
    OrtStatus *s = a->CreateSessionOptions(&so);
    s = s ? s : a->DisablePerSessionThreads(so);
    s = s ? s : a->CreateSessionFromArray(lib->env, model, sizeof model, so, &session);
    if (session) {
        a->ReleaseSession(session);
    }
    if (so) {
        a->ReleaseSessionOptions(so);
    }
    return ort_status(lib, s, NULL, 0, err);
}
