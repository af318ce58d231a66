/* The gallery on disk.
 *
 * DESIGN. The folder is the database: at open it is listed once into an array of entries in order
 * of their ids, which are times, so age, order and quota need no other file. An entry's JSON is
 * written last and removed first: whatever has no JSON is a leftover of a crash and goes at open.
 * What is found there is believed as little as a request: names must be ours, sizes are those of
 * the files, an entry that lacks a file is no entry.
 *
 * INVARIANTS
 *  1. entries[] is strictly ascending by id and holds exactly what has a readable JSON on disk.
 *  2. total_bytes is the sum of in_bytes + out_bytes of entries[], which are the files' sizes.
 *  3. After every add both are within the quota.
 *  4. Ids never repeat while the folder is open, nor go back when the clock does.
 *
 * LOCKS. One mutex, held over file access too: this is people's speed, not a data path. The folder
 * itself is locked by flock(2), since two writers could not keep a quota, and one would take the
 * other's half-written entries for leftovers.
 */
#include "store/gallery.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>
#include <yyjson.h>

#include "base/clock.h"
#include "base/mem.h"
#include "io/file.h"

#define JSON_MAX 4096
#define FILE_MAX (256u << 20)
#define MAX_FILES 4000000
#define ID_LEN 16
#define WALL_MAX (INT64_MAX / 2) /* year 2116: later times are not ours */

struct stored {
    char id[NR_GALLERY_ID_MAX];
    char model[136], in_type[16], out_type[16];
    uint64_t in_bytes, out_bytes;
    int64_t wall_ns;
    uint32_t took_us;
};

struct nr_gallery {
    struct nr_gallery_cfg cfg;
    int dir_fd;
    pthread_mutex_t lock;
    struct stored *entries;
    unsigned n, capacity;
    uint64_t total_bytes;
    int64_t last_id_ns;
    bool owned; /* the folder is locked by us, and scanned */
};

void nr_gallery_cfg_default(struct nr_gallery_cfg *cfg)
{
    *cfg = (struct nr_gallery_cfg){.max_bytes = 256u << 20,
                                   .max_entries = 500,
                                   .max_age_ns = INT64_C(30) * 24 * 3600 * NR_S_NS};
}

static const char *extension(const char *type)
{
    return strcmp(type, "image/jpeg") == 0   ? "jpg"
           : strcmp(type, "image/webp") == 0 ? "webp"
           : strcmp(type, "image/png") == 0  ? "png"
                                             : NULL;
}

static void file_name(const struct stored *e, bool input, char out[64])
{
    snprintf(out, 64, "%s-%s.%s", e->id, input ? "in" : "out",
             extension(input ? e->in_type : e->out_type));
}

static void json_name(const char *id, char out[64])
{
    snprintf(out, 64, "%s.json", id);
}

static void remove_files(struct nr_gallery *g, const struct stored *e)
{
    char name[64];
    json_name(e->id, name);
    unlinkat(g->dir_fd, name, 0);
    file_name(e, true, name);
    unlinkat(g->dir_fd, name, 0);
    file_name(e, false, name);
    unlinkat(g->dir_fd, name, 0);
}

static void remove_at(struct nr_gallery *g, unsigned at)
{
    struct stored *e = &g->entries[at];
    remove_files(g, e);
    g->total_bytes -= e->in_bytes + e->out_bytes;
    memmove(e, e + 1, (g->n - at - 1) * sizeof(*e));
    g->n--;
}

static void append(struct nr_gallery *g, const struct stored *e)
{
    if (g->n == g->capacity) {
        g->capacity = NR_MAX(64u, g->capacity * 2);
        g->entries = nr_realloc(g->entries, g->capacity * sizeof(*e));
    }
    g->entries[g->n++] = *e;
    g->total_bytes += e->in_bytes + e->out_bytes;
}

static void drop_aged(struct nr_gallery *g)
{
    int64_t oldest_ns = nr_clock_wall() - g->cfg.max_age_ns;
    unsigned kept = 0;
    if (g->cfg.max_age_ns <= 0) {
        return;
    }
    for (unsigned i = 0; i < g->n; i++) {
        struct stored *e = &g->entries[i];
        if (e->wall_ns < oldest_ns) {
            remove_files(g, e);
            g->total_bytes -= e->in_bytes + e->out_bytes;
        } else {
            g->entries[kept++] = *e;
        }
    }
    g->n = kept;
}

/* Drops what is too old, then the oldest until `entries` more of `more` bytes have room. */
static void enforce(struct nr_gallery *g, uint64_t more, unsigned entries)
{
    drop_aged(g);
    while (g->n > 0 && (g->n + entries > g->cfg.max_entries || g->total_bytes > g->cfg.max_bytes ||
                        more > g->cfg.max_bytes - g->total_bytes)) {
        remove_at(g, 0);
    }
}

/* --- opening ---------------------------------------------------------------------------------- */

static bool copy_text(yyjson_val *obj, const char *key, char *out, size_t cap)
{
    yyjson_val *v = yyjson_obj_get(obj, key);
    size_t len = yyjson_get_len(v);
    if (!yyjson_is_str(v) || len >= cap) {
        return false;
    }
    memcpy(out, yyjson_get_str(v), len);
    out[len] = '\0';
    return true;
}

/* An id as we make them: a time in nanoseconds, 16 lower-case hexadecimal digits. */
static bool id_parse(struct nr_str id, int64_t *ret)
{
    uint64_t v = 0;
    if (id.len != ID_LEN) {
        return false;
    }
    for (size_t i = 0; i < id.len; i++) {
        char c = id.ptr[i];
        bool digit = c >= '0' && c <= '9', letter = c >= 'a' && c <= 'f';
        if (!digit && !letter) {
            return false;
        }
        v = v << 4 | (uint64_t)(digit ? c - '0' : c - 'a' + 10);
    }
    *ret = (int64_t)v;
    return v <= WALL_MAX;
}

struct listing {
    const struct nr_dir_entry *files; /* by name */
    size_t n;
};

static int compare_name(const void *key, const void *entry)
{
    return strcmp(key, ((const struct nr_dir_entry *)entry)->name);
}

/* Size of one of the entry's files as it stands in the folder; 0: it is not there or cannot be. */
static uint64_t file_bytes(const struct listing *l, const struct stored *e, bool input)
{
    char name[64];
    file_name(e, input, name);
    const struct nr_dir_entry *f = bsearch(name, l->files, l->n, sizeof(*f), compare_name);
    return f != NULL && !f->is_dir && f->bytes <= FILE_MAX ? f->bytes : 0;
}

static bool read_entry(struct nr_gallery *g, const struct listing *l, const char *name,
                       struct stored *e)
{
    nr_autofree char *text = NULL;
    size_t len;
    int64_t id_ns;
    struct nr_str id = {name, strlen(name) - strlen(".json")};
    if (!id_parse(id, &id_ns) ||
        nr_file_read_at(g->dir_fd, name, JSON_MAX, &text, &len, NULL) != NARU_OK) {
        return false;
    }
    memset(e, 0, sizeof(*e));
    memcpy(e->id, id.ptr, id.len);
    yyjson_doc *doc = yyjson_read(text, len, 0);
    yyjson_val *root = yyjson_doc_get_root(doc);
    uint64_t wall_ns = yyjson_get_uint(yyjson_obj_get(root, "wall_ns"));
    bool ok = copy_text(root, "model", e->model, sizeof(e->model)) &&
              copy_text(root, "in_type", e->in_type, sizeof(e->in_type)) &&
              copy_text(root, "out_type", e->out_type, sizeof(e->out_type)) &&
              nr_name_valid(nr_str_from(e->model)) && extension(e->in_type) != NULL &&
              extension(e->out_type) != NULL && wall_ns <= WALL_MAX;
    e->wall_ns = (int64_t)wall_ns;
    e->took_us = (uint32_t)yyjson_get_uint(yyjson_obj_get(root, "took_us"));
    yyjson_doc_free(doc);
    if (ok) {
        e->in_bytes = file_bytes(l, e, true);
        e->out_bytes = file_bytes(l, e, false);
        g->last_id_ns = id_ns; /* ascending: the last one stays */
    }
    return ok && e->in_bytes > 0 && e->out_bytes > 0;
}

static int compare_id(const void *key, const void *entry)
{
    return memcmp(key, ((const struct stored *)entry)->id, ID_LEN);
}

static int find(const struct nr_gallery *g, struct nr_str id)
{
    if (id.len != ID_LEN || g->n == 0) {
        return -1;
    }
    const struct stored *e = bsearch(id.ptr, g->entries, g->n, sizeof(*e), compare_id);
    return e != NULL ? (int)(e - g->entries) : -1;
}

/* Our own files without an entry, and temporary files of an interrupted write; anything else in the
 * folder is not ours and stays. */
static void remove_leftovers(struct nr_gallery *g, const struct listing *l)
{
    for (size_t i = 0; i < l->n; i++) {
        struct nr_str name = nr_str_from(l->files[i].name);
        struct nr_str id = {name.ptr, NR_MIN(name.len, (size_t)ID_LEN)};
        struct nr_str rest = {name.ptr + id.len, name.len - id.len};
        int64_t id_ns;
        bool ours = id_parse(id, &id_ns) &&
                    (nr_str_starts(rest, NR_STR("-in.")) || nr_str_starts(rest, NR_STR("-out.")) ||
                     nr_str_is(rest, ".json"));
        bool temporary = nr_str_starts(name, NR_STR(".naru-")) && nr_str_ends(name, NR_STR(".tmp"));
        if (temporary || (ours && find(g, id) < 0)) {
            unlinkat(g->dir_fd, l->files[i].name, 0); /* refuses folders */
        }
    }
}

static nr_status scan(struct nr_gallery *g, struct nr_err *err)
{
    nr_autofree struct nr_dir_entry *files = NULL;
    struct listing l = {0};
    nr_status st = nr_dir_list(g->dir_fd, MAX_FILES, &files, &l.n, err);
    if (st != NARU_OK) {
        return st;
    }
    l.files = files;
    for (size_t i = 0; i < l.n; i++) { /* sorted by name, hence by id */
        struct stored e;
        if (nr_str_ends(nr_str_from(files[i].name), NR_STR(".json")) &&
            read_entry(g, &l, files[i].name, &e)) {
            append(g, &e);
        }
    }
    remove_leftovers(g, &l);
    enforce(g, 0, 0);
    return NARU_OK;
}

/* One process at a time. File systems that cannot lock folders are taken as they are. */
static nr_status take_folder(struct nr_gallery *g, struct nr_err *err)
{
    if (flock(g->dir_fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
        return NARU_EXISTS;
    }
    nr_status st = scan(g, err);
    g->owned = st == NARU_OK;
    return st;
}

/* Under the lock, before anything that looks at the folder: a patient one asks whether it is free. */
static bool have_folder(struct nr_gallery *g)
{
    struct nr_err err = {0};
    return g->owned || take_folder(g, &err) == NARU_OK;
}

nr_status nr_gallery_open(const struct nr_gallery_cfg *cfg, struct nr_gallery **ret,
                          struct nr_err *err)
{
    if (mkdir(cfg->path, 0700) != 0 && errno != EEXIST) {
        return nr_fail(err, NARU_IO, "cannot make the gallery's folder %s: %s", cfg->path,
                       strerrordesc_np(errno));
    }
    struct nr_gallery *g = nr_new(struct nr_gallery);
    g->cfg = *cfg;
    g->cfg.path = NULL; /* borrowed, not needed any more */
    pthread_mutex_init(&g->lock, NULL);
    nr_status st = nr_dir_open_root(cfg->path, &g->dir_fd, err);
    if (st != NARU_OK) {
        g->dir_fd = -1;
    } else {
        st = take_folder(g, err);
    }
    if (st == NARU_EXISTS && cfg->patient) {
        st = NARU_OK;
    } else if (st == NARU_EXISTS) {
        st = nr_fail(
            err, NARU_EXISTS,
            "the gallery's folder %s is in use by another process; give each server its own",
            cfg->path);
    }
    if (st != NARU_OK) {
        nr_gallery_close(g);
        return st;
    }
    *ret = g;
    return NARU_OK;
}

void nr_gallery_close(struct nr_gallery *g)
{
    if (g != NULL) {
        nr_close(g->dir_fd);
        pthread_mutex_destroy(&g->lock);
        nr_free(g->entries);
        nr_free(g);
    }
}

/* --- adding, listing, reading ----------------------------------------------------------------- */

static nr_status write_all(struct nr_gallery *g, const struct stored *e, struct nr_str in,
                           struct nr_str out, struct nr_err *err)
{
    char name[64], json[JSON_MAX];
    file_name(e, true, name);
    nr_status st = nr_file_write_at(g->dir_fd, name, in.ptr, in.len, err);
    if (st == NARU_OK) {
        file_name(e, false, name);
        st = nr_file_write_at(g->dir_fd, name, out.ptr, out.len, err);
    }
    if (st == NARU_OK) {
        /* model names are [A-Za-z0-9._-], types are ours: nothing to escape */
        int len =
            snprintf(json, sizeof(json),
                     "{\"model\":\"%s\",\"in_type\":\"%s\",\"out_type\":\"%s\",\"in_bytes\":%llu,"
                     "\"out_bytes\":%llu,\"wall_ns\":%lld,\"took_us\":%u}\n",
                     e->model, e->in_type, e->out_type, (unsigned long long)e->in_bytes,
                     (unsigned long long)e->out_bytes, (long long)e->wall_ns, e->took_us);
        json_name(e->id, name);
        st = nr_file_write_at(g->dir_fd, name, json, (size_t)len, err);
    }
    if (st != NARU_OK) {
        remove_files(g, e);
    }
    return st;
}

nr_status nr_gallery_add(struct nr_gallery *g, struct nr_gallery_entry *entry, struct nr_str in,
                         struct nr_str out, struct nr_err *err)
{
    struct stored e = {.in_bytes = in.len, .out_bytes = out.len, .took_us = entry->took_us};
    if (in.len == 0 || out.len == 0 || in.len > FILE_MAX || out.len > FILE_MAX ||
        in.len + out.len > g->cfg.max_bytes) {
        return nr_fail(err, NARU_TOO_LARGE,
                       "the pictures have %zu and %zu bytes, the gallery may hold %llu", in.len,
                       out.len, (unsigned long long)g->cfg.max_bytes);
    }
    snprintf(e.model, sizeof(e.model), NR_STR_FMT, NR_STR_ARG(entry->model));
    snprintf(e.in_type, sizeof(e.in_type), NR_STR_FMT, NR_STR_ARG(entry->in_type));
    snprintf(e.out_type, sizeof(e.out_type), NR_STR_FMT, NR_STR_ARG(entry->out_type));
    if (extension(e.in_type) == NULL || extension(e.out_type) == NULL ||
        !nr_name_valid(entry->model)) {
        return nr_fail(err, NARU_INVALID,
                       "the gallery keeps JPEG, PNG and WebP of named models only");
    }
    pthread_mutex_lock(&g->lock);
    if (!have_folder(g)) {
        pthread_mutex_unlock(&g->lock);
        return nr_fail(err, NARU_UNAVAILABLE,
                       "the server whose place this one takes still has the gallery");
    }
    e.wall_ns = nr_clock_wall();
    g->last_id_ns = NR_MAX(e.wall_ns, g->last_id_ns + 1); /* the clock may have gone back */
    snprintf(e.id, sizeof(e.id), "%016llx", (unsigned long long)g->last_id_ns);
    enforce(g, in.len + out.len, 1);
    nr_status st = write_all(g, &e, in, out, err);
    if (st == NARU_OK) {
        append(g, &e);
        memcpy(entry->id, e.id, sizeof(e.id));
        entry->wall_ns = e.wall_ns;
    }
    pthread_mutex_unlock(&g->lock);
    return st;
}

void nr_gallery_usage(struct nr_gallery *g, struct nr_gallery_usage *ret)
{
    pthread_mutex_lock(&g->lock);
    (void)have_folder(g);
    *ret = (struct nr_gallery_usage){.bytes = g->total_bytes,
                                     .max_bytes = g->cfg.max_bytes,
                                     .entries = g->n,
                                     .max_entries = g->cfg.max_entries,
                                     .max_age_ns = g->cfg.max_age_ns};
    pthread_mutex_unlock(&g->lock);
}

static void export_entry(const struct stored *e, struct nr_arena *a, struct nr_gallery_entry *ret)
{
    *ret = (struct nr_gallery_entry){.model = nr_arena_str(a, nr_str_from(e->model)),
                                     .in_type = nr_arena_str(a, nr_str_from(e->in_type)),
                                     .out_type = nr_arena_str(a, nr_str_from(e->out_type)),
                                     .in_bytes = e->in_bytes,
                                     .out_bytes = e->out_bytes,
                                     .wall_ns = e->wall_ns,
                                     .took_us = e->took_us};
    memcpy(ret->id, e->id, sizeof(ret->id));
}

nr_status nr_gallery_list(struct nr_gallery *g, struct nr_arena *a, unsigned max,
                          const struct nr_gallery_entry **ret, unsigned *ret_n, struct nr_err *err)
{
    pthread_mutex_lock(&g->lock);
    if (have_folder(g)) {
        enforce(g, 0, 0); /* age */
    }
    unsigned n = NR_MIN(max, g->n);
    struct nr_gallery_entry *list = nr_arena_try_array(a, n + 1, sizeof(*list));
    for (unsigned i = 0; list != NULL && i < n; i++) {
        export_entry(&g->entries[g->n - 1 - i], a, &list[i]);
    }
    pthread_mutex_unlock(&g->lock);
    if (list == NULL) {
        return nr_fail(err, NARU_NOMEM, "no memory for a list of %u pictures", n);
    }
    *ret = list;
    *ret_n = n;
    return NARU_OK;
}

nr_status nr_gallery_read(struct nr_gallery *g, struct nr_arena *a, struct nr_str id, bool input,
                          struct nr_str *ret, struct nr_str *ret_type, struct nr_err *err)
{
    nr_status st = NARU_NOT_FOUND;
    char name[64], *text = NULL;
    size_t len = 0;
    pthread_mutex_lock(&g->lock);
    int at = have_folder(g) ? find(g, id) : -1;
    if (at >= 0) {
        const struct stored *e = &g->entries[at];
        file_name(e, input, name);
        *ret_type = nr_arena_str(a, nr_str_from(input ? e->in_type : e->out_type));
        st = nr_file_read_at(g->dir_fd, name, FILE_MAX, &text, &len, err);
    }
    pthread_mutex_unlock(&g->lock);
    if (at < 0) {
        return nr_fail(err, NARU_NOT_FOUND, "no picture '" NR_STR_FMT "' is kept (any more)",
                       NR_STR_ARG(id));
    }
    if (st == NARU_OK) {
        nr_arena_defer(a, nr_free, text);
        *ret = (struct nr_str){text, len};
    }
    return st;
}

nr_status nr_gallery_remove(struct nr_gallery *g, struct nr_str id, struct nr_err *err)
{
    pthread_mutex_lock(&g->lock);
    int at = have_folder(g) ? find(g, id) : -1;
    if (at >= 0) {
        remove_at(g, (unsigned)at);
    }
    pthread_mutex_unlock(&g->lock);
    return at >= 0 ? NARU_OK
                   : nr_fail(err, NARU_NOT_FOUND, "no picture '" NR_STR_FMT "' is kept (any more)",
                             NR_STR_ARG(id));
}
