/* What lies at the paths given at start: repositories, a model's folder, a bare file.
 *
 * DESIGN. The scan reads directory listings and each model's config.pbtxt (its name and version
 * policy say which versions there are); it opens no model. A model that is wrong in itself is kept,
 * with its reason and without versions, so that the index and the clients learn why.
 *
 * INVARIANTS
 *  1. Beneath the operator's path only descriptors are used; `path` is for people and libraries.
 *  2. Names are unique; the second appearance of a name makes the model unavailable.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"
#include "io/file.h"
#include "model/repository_priv.h"

void nr_model_free(struct nr_model *m)
{
    for (size_t i = 0; i < m->n_slots; i++) {
        NR_ASSERT(m->slots[i]->v.config == NULL);
        nr_free((char *)(uintptr_t)m->slots[i]->v.path);
        nr_free(m->slots[i]->v.reason);
        nr_free(m->slots[i]);
    }
    nr_free(m->slots);
    nr_close(m->fd);
    nr_free(m->name);
    nr_free(m->path);
    nr_free(m->reason);
    nr_free(m->bare_file);
    nr_free(m);
}

/* --- versions of one model -------------------------------------------------------------------- */

/* "3" → 3; 0 for names that are no version: not decimal, leading zero, beyond 63 bits. */
static int64_t version_number(const char *name)
{
    uint64_t number = 0;
    if (name[0] == '0' || !nr_str_to_u64(nr_str_from(name), &number) || number > INT64_MAX) {
        return 0;
    }
    return (int64_t)number;
}

static void add_slot(struct nr_repository *r, struct nr_model *m, int64_t number,
                     const char *folder)
{
    struct nr_slot *s = nr_new(struct nr_slot);
    bool flat = strcmp(folder, ".") == 0;
    s->model = m;
    (void)snprintf(s->folder, sizeof s->folder, "%s", folder);
    s->v =
        (struct nr_version){.name = m->name,
                            .number = number,
                            .dir_fd = -1,
                            .model_fd = m->bare_file ? -1 : m->fd,
                            .path = flat ? nr_strdup(m->path) : nr_format("%s/%s", m->path, folder),
                            .bare_file = m->bare_file,
                            .repository = r,
                            .reason = nr_strdup("")};
    m->slots = nr_realloc(m->slots, (m->n_slots + 1) * sizeof(struct nr_slot *));
    m->slots[m->n_slots++] = s;
}

static int by_number(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

/* Whether the policy takes numbers[i] of n ascending ones. */
static bool policy_takes(const Inference__ModelVersionPolicy *p, const int64_t *numbers, size_t n,
                         size_t i)
{
    if (!p) {
        return i + 1 == n;
    }
    switch (p->policy_choice_case) {
    case INFERENCE__MODEL_VERSION_POLICY__POLICY_CHOICE_ALL:
        return true;
    case INFERENCE__MODEL_VERSION_POLICY__POLICY_CHOICE_LATEST:
        return n - i <= p->latest->num_versions;
    case INFERENCE__MODEL_VERSION_POLICY__POLICY_CHOICE_SPECIFIC:
        for (size_t k = 0; k < p->specific->n_versions; k++) {
            if (p->specific->versions[k] == numbers[i]) {
                return true;
            }
        }
        return false;
    default:
        return i + 1 == n;
    }
}

static void set_reason(struct nr_model *m, const char *reason)
{
    nr_free(m->reason);
    m->reason = nr_strdup(reason);
}

/* Chooses the versions out of the folder's entries. */
static void select_versions(struct nr_repository *r, struct nr_model *m,
                            const struct nr_model_config *c, const struct nr_dir_entry *entries,
                            size_t n_entries)
{
    nr_autofree int64_t *numbers = nr_new_array(int64_t, n_entries + 1);
    size_t n = 0;
    bool flat = false;
    for (size_t i = 0; i < n_entries; i++) {
        int64_t number = entries[i].is_dir ? version_number(entries[i].name) : 0;
        if (number > 0) {
            numbers[n++] = number;
        }
        flat = flat || nr_config_backend_of(entries[i].name);
    }
    if (n == 0 && (flat || c->ensemble)) { /* git keeps no empty folders */
        add_slot(r, m, 1, ".");
        return;
    }
    if (n == 0) {
        set_reason(m,
                   "the model's folder has no version: put the model's file into a folder named 1");
        return;
    }
    qsort(numbers, n, sizeof *numbers, by_number);
    for (size_t i = 0; i < n; i++) {
        if (policy_takes(c->pb->version_policy, numbers, n, i)) {
            char folder[24];
            (void)snprintf(folder, sizeof folder, "%lld", (long long)numbers[i]);
            add_slot(r, m, numbers[i], folder);
        }
    }
    if (m->n_slots == 0) {
        set_reason(m, "version_policy selects none of the model's versions");
    }
}

static void find_versions(struct nr_repository *r, struct nr_model *m)
{
    struct nr_err err = {0};
    struct nr_model_config *c = NULL;
    nr_autofree struct nr_dir_entry *entries = NULL;
    size_t n = 0;
    struct nr_config_source src = {
        .name = m->name, .model_fd = m->fd, .config_name = r->config_name};
    nr_status st = nr_config_load(&src, &c, &err);
    if (st == NARU_OK) {
        st = nr_dir_list(m->fd, NR_REPOSITORY_MAX_ENTRIES, &entries, &n, &err);
    }
    if (st != NARU_OK) {
        set_reason(m, err.text);
    } else {
        select_versions(r, m, c, entries, n);
    }
    nr_config_free(c);
}

/* --- models ----------------------------------------------------------------------------------- */

/* Takes fd over (-1: `problem` says why). bare_file: NULL for a folder. */
static void add_model(struct nr_repository *r, struct nr_str name, int fd, const char *path,
                      const char *bare_file, const char *problem)
{
    struct nr_model *old = nr_map_get(&r->by_name, name);
    if (old) {
        nr_autofree char *reason =
            nr_format("there are two models of this name, in %s and in %s: rename one or serve one",
                      old->path, path);
        /* none of the two is tried; the first one's versions go (nothing was loaded yet) */
        for (size_t i = 0; i < old->n_slots; i++) {
            nr_free((char *)(uintptr_t)old->slots[i]->v.path);
            nr_free(old->slots[i]->v.reason);
            nr_free(old->slots[i]);
        }
        old->n_slots = 0;
        set_reason(old, reason);
        nr_close(fd);
        return;
    }
    struct nr_model *m = nr_new(struct nr_model);
    m->name = nr_alloc(name.len + 1);
    memcpy(m->name, name.ptr, name.len);
    m->path = nr_strdup(path);
    m->reason = nr_strdup(problem);
    m->bare_file = bare_file ? nr_strdup(bare_file) : NULL;
    m->fd = fd;
    m->whole = (struct nr_version){.name = m->name, .number = -1, .dir_fd = -1, .model_fd = -1};
    (void)nr_map_put(&r->by_name, name, m);
    r->models = nr_realloc(r->models, (r->n_models + 1) * sizeof(struct nr_model *));
    r->models[r->n_models++] = m;
    if (fd < 0) {
        return;
    }
    if (!nr_name_valid(name)) {
        set_reason(m, "the name must be 1 to 128 letters, digits, '.', '_' or '-', and not begin "
                      "with a dot");
    } else if (bare_file) {
        add_slot(r, m, 1, ".");
    } else {
        find_versions(r, m);
    }
}

static struct nr_str base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return nr_str_from(slash ? slash + 1 : path);
}

static nr_status scan_file(struct nr_repository *r, const char *real, struct nr_err *err)
{
    struct nr_str file = base_name(real);
    if (!nr_config_backend_of(file.ptr)) {
        return nr_fail(err, NARU_INVALID,
                       "%s: no backend is known for this file; known endings are .onnx, .pt, .pt2, "
                       ".plan, .graphdef. Put it into a model's folder with a config.pbtxt that "
                       "names the backend",
                       real);
    }
    const char *dot = strrchr(file.ptr, '.');
    struct nr_str name = {file.ptr, dot > file.ptr ? (size_t)(dot - file.ptr) : file.len};
    nr_autofree char *folder = nr_strdup(real);
    folder[NR_MAX(file.ptr - real - 1, 1)] = '\0';
    int fd = -1;
    nr_status st = nr_dir_open_root(folder, &fd, err);
    if (st == NARU_OK) {
        add_model(r, name, fd, folder, file.ptr, "");
    }
    return st;
}

/* config.pbtxt, a version or a model's file make a folder a model's own. */
static bool is_model_folder(const struct nr_dir_entry *entries, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (strcmp(entries[i].name, "config.pbtxt") == 0 ||
            (entries[i].is_dir && version_number(entries[i].name) > 0) ||
            nr_config_backend_of(entries[i].name)) {
            return true;
        }
    }
    return false;
}

static void scan_repository(struct nr_repository *r, int fd, const char *real,
                            const struct nr_dir_entry *entries, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (!entries[i].is_dir || entries[i].name[0] == '.') {
            continue;
        }
        int model_fd = -1;
        struct nr_err err = {0};
        if (nr_dir_open_at(fd, entries[i].name, O_RDONLY | O_DIRECTORY, 0, &model_fd, &err) !=
            NARU_OK) {
            model_fd = -1; /* the model is listed with err.text */
        }
        nr_autofree char *path =
            nr_format("%s/%s", strcmp(real, "/") == 0 ? "" : real, entries[i].name);
        add_model(r, nr_str_from(entries[i].name), model_fd, path, NULL, err.text);
    }
}

nr_status nr_repository_scan(struct nr_repository *r, const char *path, struct nr_err *err)
{
    struct stat sb;
    char real[PATH_MAX]; /* the operator's path: symlinks allowed */
    if (!realpath(path, real) || stat(real, &sb) != 0) {
        bool missing = errno == ENOENT;
        return nr_fail(err, missing ? NARU_NOT_FOUND : NARU_IO, "%s: %s", path,
                       missing ? "there is no such file or folder" : "cannot be opened");
    }
    if (!S_ISDIR(sb.st_mode)) {
        return scan_file(r, real, err);
    }
    int fd = -1;
    nr_autofree struct nr_dir_entry *entries = NULL;
    size_t n = 0;
    nr_status st = nr_dir_open_root(real, &fd, err);
    if (st == NARU_OK) {
        st = nr_dir_list(fd, NR_REPOSITORY_MAX_ENTRIES, &entries, &n, err);
    }
    if (st == NARU_OK && is_model_folder(entries, n)) {
        add_model(r, base_name(real), fd, real, NULL, "");
        return NARU_OK;
    }
    if (st == NARU_OK) {
        scan_repository(r, fd, real, entries, n);
    }
    nr_close(fd);
    return st;
}
