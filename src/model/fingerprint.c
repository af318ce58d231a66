/* The fingerprint of a version: a walk through its folder in the order of names. Links and special files are
 * not read, as nothing that loads a model follows them (io/file.h). Loading threads.
 */
#include "model/fingerprint.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "base/mem.h"
#include "io/file.h"

#define MAX_ENTRIES 100000u
#define CHUNK_BYTES ((size_t)1 << 20)

struct reader {
    XXH3_state_t *hash;
    void *chunk; /* [CHUNK_BYTES] */
};

static void add_text(struct reader *r, const char *text)
{
    XXH3_128bits_update(r->hash, text, strlen(text) + 1);
}

/* A file named `name` in the folder, which the fingerprint calls `rel`. */
static nr_status add_file(struct reader *r, int folder_fd, const char *name, const char *rel,
                          struct nr_err *err)
{
    nr_autoclose int fd = -1;
    struct stat st;
    nr_status status = nr_dir_open_at(folder_fd, name, O_RDONLY | O_NONBLOCK, 0, &fd, err);
    if (status != NARU_OK) {
        return status;
    }
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) {
        return NARU_OK;
    }
    add_text(r, rel);
    XXH3_128bits_update(r->hash, &st.st_size, sizeof st.st_size);
    for (;;) {
        ssize_t n = read(fd, r->chunk, CHUNK_BYTES);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return n == 0 ? NARU_OK
                          : nr_fail(err, NARU_IO, "%s: cannot be read: %s", rel, strerror(errno));
        }
        XXH3_128bits_update(r->hash, r->chunk, (size_t)n);
    }
}

static nr_status visit(void *arg, struct nr_dir_visit *v, struct nr_err *err)
{
    return v->entry->is_dir || v->entry->is_link
               ? NARU_OK
               : add_file(arg, v->parent_fd, v->entry->name, v->rel, err);
}

nr_status nr_version_fingerprint(const struct nr_version *v, const char *with, uint64_t ret[2],
                                 struct nr_err *err)
{
    struct reader r = {.hash = XXH3_createState(), .chunk = nr_try_alloc(CHUNK_BYTES)};
    struct nr_text config;
    nr_status st;
    if (r.chunk == NULL || r.hash == NULL) {
        nr_free(r.chunk);
        XXH3_freeState(r.hash);
        return nr_fail(err, NARU_NOMEM, "no memory to read the model's files");
    }
    XXH3_128bits_reset(r.hash);
    nr_text_init(&config, SIZE_MAX);
    nr_config_json(v->config, &config);
    XXH3_128bits_update(r.hash, config.data, config.len);
    nr_text_done(&config);
    add_text(&r, with);
    add_text(&r, v->name);
    XXH3_128bits_update(r.hash, &v->number, sizeof v->number);
    if (v->bare_file != NULL) {
        st = add_file(&r, v->dir_fd, v->bare_file, v->bare_file, err);
    } else {
        st = nr_dir_walk(v->dir_fd, NR_DIR_MAX_DEPTH, MAX_ENTRIES, visit, &r, err);
    }
    XXH128_hash_t hash = XXH3_128bits_digest(r.hash);
    ret[0] = hash.low64;
    ret[1] = hash.high64;
    nr_free(r.chunk);
    XXH3_freeState(r.hash);
    return st;
}
