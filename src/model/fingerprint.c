/* The fingerprint of a version: a walk through its folder in the order of names, without recursion.
 * Folders that are still to be read stand in a list by their path; links and special files are not
 * read, as nothing that loads a model follows them (io/file.h). Loading threads.
 */
#include "model/fingerprint.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "base/list.h"
#include "base/mem.h"
#include "io/file.h"

#define MAX_ENTRIES 100000u
#define CHUNK_BYTES ((size_t)1 << 20)
#define PATH_BYTES 4096

struct folder {
    struct nr_list node;
    char path[];
};

struct walk {
    int root;
    XXH3_state_t *hash;
    struct nr_list left; /* folders to be read */
    size_t n_entries;
    void *chunk;
};

static void add_text(struct walk *w, const char *text)
{
    XXH3_128bits_update(w->hash, text, strlen(text) + 1);
}

static nr_status add_file(struct walk *w, const char *path, struct nr_err *err)
{
    nr_autoclose int fd = -1;
    struct stat st;
    nr_status status = nr_dir_open_at(w->root, path, O_RDONLY | O_NONBLOCK, 0, &fd, err);
    if (status != NARU_OK) {
        return status;
    }
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) {
        return NARU_OK;
    }
    add_text(w, path);
    XXH3_128bits_update(w->hash, &st.st_size, sizeof st.st_size);
    for (;;) {
        ssize_t n = read(fd, w->chunk, CHUNK_BYTES);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return n == 0 ? NARU_OK
                          : nr_fail(err, NARU_IO, "%s: cannot be read: %s", path, strerror(errno));
        }
        XXH3_128bits_update(w->hash, w->chunk, (size_t)n);
    }
}

static nr_status add_folder(struct walk *w, const char *path, struct nr_err *err)
{
    nr_autoclose int fd = -1;
    struct nr_dir_entry *entries = NULL;
    size_t n = 0;
    nr_status st = nr_dir_open_at(w->root, path, O_RDONLY | O_DIRECTORY, 0, &fd, err);
    if (st == NARU_OK) {
        st = nr_dir_list(fd, MAX_ENTRIES - w->n_entries, &entries, &n, err);
    }
    w->n_entries += n;
    for (size_t i = 0; i < n && st == NARU_OK; i++) {
        char below[PATH_BYTES];
        int len = snprintf(below, sizeof below, "%s/%s", path, entries[i].name);
        if (len < 0 || (size_t)len >= sizeof below) {
            st = nr_fail(err, NARU_TOO_LARGE, "%s: its path is longer than %d bytes", path,
                         PATH_BYTES);
        } else if (entries[i].is_dir) {
            struct folder *f = nr_alloc(sizeof *f + (size_t)len + 1);
            memcpy(f->path, below, (size_t)len + 1);
            nr_list_append(&w->left, &f->node);
        } else {
            struct nr_err why = {0};
            st = add_file(w, below, &why);
            if (st == NARU_DENIED) {
                st = NARU_OK; /* a symbolic link */
            } else if (st != NARU_OK && err != NULL) {
                *err = why;
            }
        }
    }
    nr_free(entries);
    return st;
}

nr_status nr_version_fingerprint(const struct nr_version *v, const char *with, uint64_t ret[2],
                                 struct nr_err *err)
{
    struct walk w = {.root = v->dir_fd, .chunk = nr_try_alloc(CHUNK_BYTES)};
    struct nr_text config;
    nr_status st = NARU_OK;
    w.hash = XXH3_createState();
    if (w.chunk == NULL || w.hash == NULL) {
        nr_free(w.chunk);
        XXH3_freeState(w.hash);
        return nr_fail(err, NARU_NOMEM, "no memory to read the model's files");
    }
    nr_list_init(&w.left);
    XXH3_128bits_reset(w.hash);
    nr_text_init(&config, SIZE_MAX);
    nr_config_json(v->config, &config);
    XXH3_128bits_update(w.hash, config.data, config.len);
    nr_text_done(&config);
    add_text(&w, with);
    add_text(&w, v->name);
    XXH3_128bits_update(w.hash, &v->number, sizeof v->number);
    st = v->bare_file != NULL ? add_file(&w, v->bare_file, err) : add_folder(&w, ".", err);
    struct nr_list *node;
    while ((node = nr_list_pop(&w.left)) != NULL) {
        struct folder *f = nr_container_of(node, struct folder, node);
        st = st == NARU_OK ? add_folder(&w, f->path, err) : st;
        nr_free(f);
    }
    XXH128_hash_t hash = XXH3_128bits_digest(w.hash);
    ret[0] = hash.low64;
    ret[1] = hash.high64;
    nr_free(w.chunk);
    XXH3_freeState(w.hash);
    return st;
}
