/* What the files say: which models there are, which versions, and whether anything has changed.
 *
 * DESIGN. A plan is made from directory listings and the model's config.pbtxt (its version policy says
 * which versions there are); it opens no model and knows nothing of what is loaded. A model that is
 * wrong in itself is a plan with a reason and without versions, so that index and clients learn why.
 *
 * Whether something changed is told by a fingerprint: name, size, mtime and inode of every file of
 * a version, and of the model's own files beside the versions (configuration, labels, warm-up data),
 * which belong to each of them. Names with a leading dot are left out: that is how copying programs
 * name what is not complete. Contents are not read: a model may have gigabytes.
 *
 * INVARIANTS
 *  1. Beneath the operator's path only descriptors are used; `path` is for people and libraries.
 *  2. Sources are opened anew for each plan but for a repository's own folder: a model's folder may
 *     be replaced by another one of its name.
 *
 * Threads: any; nothing is written but *ret.
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

#define MAX_DEPTH 8 /* of folders within a version */

/* --- fingerprints ----------------------------------------------------------------------------- */

struct look {
    uint64_t print;
    int64_t newest_wall_ns;
};

static void mix_entry(struct look *l, const struct nr_dir_entry *e)
{
    const uint64_t parts[] = {l->print,
                              nr_hash(e->name, strlen(e->name)),
                              e->is_dir,
                              e->is_dir ? 0 : e->bytes,
                              e->is_dir ? 0 : (uint64_t)e->mtime_ns,
                              e->is_dir ? 0 : e->inode};
    l->print = nr_hash(parts, sizeof parts);
    if (!e->is_dir) {
        l->newest_wall_ns = NR_MAX(l->newest_wall_ns, e->mtime_ns);
    }
}

static nr_status mix_visit(void *arg, struct nr_dir_visit *v, struct nr_err *err)
{
    (void)err;
    v->enter = v->entry->name[0] != '.';
    if (v->enter && !v->leaving) {
        mix_entry(arg, v->entry);
    }
    return NARU_OK;
}

/* All that lies beneath dir_fd/folder. A folder that vanishes meanwhile is an error: look again. */
static nr_status mix_tree(struct look *l, int dir_fd, const char *folder, struct nr_err *err)
{
    nr_autoclose int fd = -1;
    nr_status st = nr_dir_open_at(dir_fd, folder, O_RDONLY | O_DIRECTORY, 0, &fd, err);
    return st == NARU_OK ? nr_dir_walk(fd, MAX_DEPTH, NR_REPOSITORY_MAX_ENTRIES, mix_visit, l, err)
                         : st;
}

/* "3" → 3; 0 for names that are no version: not decimal, leading zero, beyond 63 bits. */
static int64_t version_number(const char *name)
{
    uint64_t number = 0;
    if (name[0] == '0' || !nr_str_to_u64(nr_str_from(name), &number) || number > INT64_MAX) {
        return 0;
    }
    return (int64_t)number;
}

static nr_status mix_file(struct look *l, int dir_fd, const char *file, struct nr_err *err)
{
    struct stat sb;
    if (fstatat(dir_fd, file, &sb, AT_SYMLINK_NOFOLLOW) != 0) {
        return nr_fail(err, nr_status_from_errno(errno), "cannot look at '%s': %m", file);
    }
    struct nr_dir_entry e = {.bytes = (uint64_t)sb.st_size,
                             .inode = (uint64_t)sb.st_ino,
                             .mtime_ns =
                                 (int64_t)sb.st_mtim.tv_sec * 1000000000 + sb.st_mtim.tv_nsec};
    (void)snprintf(e.name, sizeof e.name, "%s", file);
    mix_entry(l, &e);
    return NARU_OK;
}

/* The model's own files: all but its versions. */
static nr_status mix_own(struct look *l, int model_fd, const struct nr_dir_entry *entries, size_t n,
                         struct nr_err *err)
{
    nr_status st = NARU_OK;
    for (size_t i = 0; i < n && st == NARU_OK; i++) {
        const struct nr_dir_entry *e = &entries[i];
        if (e->name[0] == '.' || (e->is_dir && version_number(e->name) > 0)) {
            continue;
        }
        mix_entry(l, e);
        if (e->is_dir) {
            st = mix_tree(l, model_fd, e->name, err);
        }
    }
    return st;
}

nr_status nr_plan_print(int model_fd, const char *folder, const char *file, uint64_t *ret,
                        struct nr_err *err)
{
    struct look l = {0};
    nr_autofree struct nr_dir_entry *entries = NULL;
    size_t n = 0;
    if (file) {
        nr_status st = mix_file(&l, model_fd, file, err);
        *ret = l.print;
        return st;
    }
    nr_status st = nr_dir_list(model_fd, NR_REPOSITORY_MAX_ENTRIES, &entries, &n, err);
    if (st == NARU_OK) {
        st = mix_own(&l, model_fd, entries, n, err);
    }
    if (st == NARU_OK && strcmp(folder, ".") != 0) {
        st = mix_tree(&l, model_fd, folder, err);
    }
    *ret = l.print;
    return st;
}

/* --- sources ---------------------------------------------------------------------------------- */

static struct nr_str base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return nr_str_from(slash ? slash + 1 : path);
}

/* config.pbtxt, a version or a model's file make a folder a model's own. */
static bool is_model_folder(const struct nr_dir_entry *entries, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (strcmp(entries[i].name, "config.pbtxt") == 0 ||
            ((entries[i].is_dir || entries[i].is_link) && version_number(entries[i].name) > 0) ||
            nr_config_backend_of(entries[i].name)) {
            return true;
        }
    }
    return false;
}

static char *copy(struct nr_str s)
{
    char *to = nr_alloc(s.len + 1);
    memcpy(to, s.ptr, s.len);
    return to;
}

static nr_status open_file_source(struct nr_source *s, const char *real, struct nr_err *err)
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
    s->kind = NR_SOURCE_FILE;
    s->name = copy((struct nr_str){file.ptr, dot > file.ptr ? (size_t)(dot - file.ptr) : file.len});
    s->file = copy(file);
    s->path = nr_strdup(real);
    s->path[NR_MAX(file.ptr - real - 1, 1)] = '\0';
    return NARU_OK;
}

nr_status nr_source_open(struct nr_source *s, const char *path, struct nr_err *err)
{
    struct stat sb;
    char real[PATH_MAX]; /* the operator's path: symlinks allowed */
    *s = (struct nr_source){.fd = -1};
    if (!realpath(path, real) || stat(real, &sb) != 0) {
        bool missing = errno == ENOENT;
        return nr_fail(err, missing ? NARU_NOT_FOUND : NARU_IO, "%s: %s", path,
                       missing ? "there is no such file or folder" : "cannot be opened");
    }
    if (!S_ISDIR(sb.st_mode)) {
        return open_file_source(s, real, err);
    }
    nr_autoclose int fd = -1;
    nr_autofree struct nr_dir_entry *entries = NULL;
    size_t n = 0;
    nr_status st = nr_dir_open_root(real, &fd, err);
    if (st == NARU_OK) {
        st = nr_dir_list(fd, NR_REPOSITORY_MAX_ENTRIES, &entries, &n, err);
    }
    if (st != NARU_OK) {
        return st;
    }
    s->path = nr_strdup(real);
    s->kind = is_model_folder(entries, n) ? NR_SOURCE_MODEL : NR_SOURCE_REPOSITORY;
    if (s->kind == NR_SOURCE_MODEL) {
        s->name = copy(base_name(real));
    } else {
        s->fd = fd;
        fd = -1;
    }
    return NARU_OK;
}

void nr_source_close(struct nr_source *s)
{
    nr_close(s->fd);
    nr_free(s->path);
    nr_free(s->name);
    nr_free(s->file);
}

/* Whether the source may have the model, and its folder's descriptor or why it cannot be had. */
static bool source_has(const struct nr_source *s, const char *name, int *ret_fd, nr_status *ret_st,
                       struct nr_err *err)
{
    *ret_fd = -1;
    if (s->kind == NR_SOURCE_REPOSITORY) {
        struct stat sb;
        if (fstatat(s->fd, name, &sb, AT_SYMLINK_NOFOLLOW) != 0 || !S_ISDIR(sb.st_mode)) {
            return false;
        }
        *ret_st = nr_dir_open_at(s->fd, name, O_RDONLY | O_DIRECTORY, 0, ret_fd, err);
        return true;
    }
    if (strcmp(s->name, name) != 0) {
        return false;
    }
    *ret_st = nr_dir_open_root(s->path, ret_fd, err);
    if (*ret_st == NARU_OK && s->kind == NR_SOURCE_FILE) {
        struct stat sb;
        if (fstatat(*ret_fd, s->file, &sb, AT_SYMLINK_NOFOLLOW) != 0) {
            nr_close(*ret_fd);
            *ret_fd = -1;
            return false;
        }
    }
    return *ret_st != NARU_NOT_FOUND;
}

static char *model_path(const struct nr_source *s, const char *name)
{
    return s->kind == NR_SOURCE_REPOSITORY
               ? nr_format("%s/%s", strcmp(s->path, "/") == 0 ? "" : s->path, name)
               : nr_strdup(s->path);
}

static void add_name(struct nr_map *seen, char ***names, size_t *n, struct nr_str name)
{
    if (nr_map_get(seen, name)) {
        return;
    }
    (void)nr_map_put(seen, name, seen);
    *names = nr_realloc(*names, (*n + 1) * sizeof(char *));
    (*names)[(*n)++] = copy(name);
}

nr_status nr_plan_names(const struct nr_repository *r, char ***ret, size_t *ret_n,
                        struct nr_err *err)
{
    struct nr_map seen;
    nr_status st = NARU_OK;
    *ret = NULL;
    *ret_n = 0;
    nr_map_init(&seen);
    for (size_t i = 0; i < r->n_sources && st == NARU_OK; i++) {
        const struct nr_source *s = &r->sources[i];
        nr_autofree struct nr_dir_entry *entries = NULL;
        size_t n = 0;
        if (s->kind != NR_SOURCE_REPOSITORY) {
            add_name(&seen, ret, ret_n, nr_str_from(s->name));
            continue;
        }
        st = nr_dir_list(s->fd, NR_REPOSITORY_MAX_ENTRIES, &entries, &n, err);
        for (size_t k = 0; k < n; k++) {
            if (entries[k].is_dir && entries[k].name[0] != '.') {
                add_name(&seen, ret, ret_n, nr_str_from(entries[k].name));
            }
        }
    }
    nr_map_done(&seen);
    return st;
}

/* --- plans ------------------------------------------------------------------------------------ */

void nr_plan_done(struct nr_plan *p)
{
    nr_free(p->name);
    nr_free(p->path);
    nr_free(p->file);
    nr_free(p->reason);
    nr_free(p->versions);
    *p = (struct nr_plan){0};
}

static void set_reason(struct nr_plan *p, char *reason)
{
    nr_free(p->reason);
    p->reason = reason;
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

static void add_version(struct nr_plan *p, int64_t number, const char *folder)
{
    p->versions = nr_realloc(p->versions, (p->n_versions + 1) * sizeof *p->versions);
    struct nr_planned *v = &p->versions[p->n_versions++];
    *v = (struct nr_planned){.number = number};
    (void)snprintf(v->folder, sizeof v->folder, "%s", folder);
}

/* Chooses the versions out of the folder's entries. */
static void select_versions(struct nr_plan *p, const struct nr_model_config *c,
                            const struct nr_dir_entry *entries, size_t n_entries)
{
    nr_autofree int64_t *numbers = nr_new_array(int64_t, n_entries + 1);
    size_t n = 0;
    bool flat = false;
    const char *link = NULL; /* a version's name that is a link: not followed, but worth a word */
    for (size_t i = 0; i < n_entries; i++) {
        int64_t number = entries[i].is_dir ? version_number(entries[i].name) : 0;
        link = entries[i].is_link && version_number(entries[i].name) > 0 ? entries[i].name : link;
        if (number > 0) {
            numbers[n++] = number;
        }
        flat = flat || nr_config_backend_of(entries[i].name);
    }
    if (n == 0 && (flat || c->ensemble)) { /* git keeps no empty folders */
        add_version(p, 1, ".");
        return;
    }
    if (n == 0 && link != NULL) {
        set_reason(
            p, nr_format("the version's folder %s is a symbolic link, which is not followed: copy "
                         "or bind-mount the folder",
                         link));
        return;
    }
    if (n == 0) {
        set_reason(p, nr_strdup("the model's folder has no version: put the model's file into a "
                                "folder named 1"));
        return;
    }
    qsort(numbers, n, sizeof *numbers, by_number);
    for (size_t i = 0; i < n; i++) {
        if (policy_takes(c->pb->version_policy, numbers, n, i)) {
            char folder[24];
            (void)snprintf(folder, sizeof folder, "%lld", (long long)numbers[i]);
            add_version(p, numbers[i], folder);
        }
    }
    if (p->n_versions == 0) {
        set_reason(p, nr_strdup("version_policy selects none of the model's versions"));
    }
}

static bool is_pinned(const Inference__ModelConfig *pb)
{
    for (size_t i = 0; i < pb->n_parameters; i++) {
        if (strcmp(pb->parameters[i]->key, "naru.pin") == 0) {
            return pb->parameters[i]->value &&
                   strcmp(pb->parameters[i]->value->string_value, "true") == 0;
        }
    }
    return false;
}

static nr_status find_versions(const struct nr_repository *r, struct nr_plan *p, int fd,
                               struct nr_err *err)
{
    struct nr_model_config *c = NULL;
    nr_autofree struct nr_dir_entry *entries = NULL;
    size_t n = 0;
    struct nr_config_source src = {.name = p->name, .model_fd = fd, .config_name = r->config_name};
    nr_status st = nr_config_load(&src, &c, err);
    if (st == NARU_OK) {
        st = nr_dir_list(fd, NR_REPOSITORY_MAX_ENTRIES, &entries, &n, err);
    }
    if (st == NARU_OK) {
        select_versions(p, c, entries, n);
        st = nr_traffic_read(c->pb, &p->traffic, err);
        p->pinned = is_pinned(c->pb);
        p->has_agents =
            c->pb->model_repository_agents && c->pb->model_repository_agents->n_agents > 0;
        for (uint32_t i = 0; i < p->traffic.n; i++) { /* the message goes, the names stay */
            (void)snprintf(p->names[i], sizeof p->names[i], "%s", p->traffic.rules[i].name);
            p->traffic.rules[i].name = p->names[i];
        }
    }
    nr_config_free(c);
    for (size_t i = 0; i < p->n_versions && st == NARU_OK; i++) {
        st = nr_plan_print(fd, p->versions[i].folder, NULL, &p->versions[i].print, err);
    }
    return st;
}

/* The one source that has the model. More than one: a plan with that reason. */
static nr_status find_source(const struct nr_repository *r, struct nr_plan *p, int *ret_fd,
                             const struct nr_source **ret, struct nr_err *err)
{
    nr_status st = NARU_OK;
    *ret_fd = -1;
    *ret = NULL;
    for (size_t i = 0; i < r->n_sources; i++) {
        int fd;
        nr_status one;
        struct nr_err why = {0};
        if (!source_has(&r->sources[i], p->name, &fd, &one, &why)) {
            continue;
        }
        nr_autofree char *path = model_path(&r->sources[i], p->name);
        if (*ret) {
            nr_close(fd);
            nr_close(*ret_fd);
            *ret_fd = -1;
            set_reason(p, nr_format("there are two models of this name, in %s and in %s: rename "
                                    "one or serve one",
                                    p->path, path));
            return NARU_OK;
        }
        *ret = &r->sources[i];
        *ret_fd = fd;
        st = one;
        p->path = NR_TAKE(path);
        if (st != NARU_OK) {
            set_reason(p, nr_strdup(why.text));
        }
    }
    return *ret ? NARU_OK
                : nr_fail(err, NARU_NOT_FOUND, "there is no model \"%.128s\" in the repository",
                          p->name);
}

static nr_status look_at(const struct nr_source *s, struct nr_plan *p, int fd, struct nr_err *err)
{
    struct look l = {0};
    nr_status st =
        s->kind == NR_SOURCE_FILE ? mix_file(&l, fd, s->file, err) : mix_tree(&l, fd, ".", err);
    p->print = l.print;
    p->newest_wall_ns = l.newest_wall_ns;
    return st;
}

static nr_status begin_plan(const struct nr_repository *r, const char *name, struct nr_plan *p,
                            int *ret_fd, const struct nr_source **ret, struct nr_err *err)
{
    *p = (struct nr_plan){.name = nr_strdup(name), .reason = nr_strdup("")};
    nr_status st = find_source(r, p, ret_fd, ret, err);
    if (st != NARU_OK) {
        nr_plan_done(p);
    }
    return st;
}

nr_status nr_plan_make(const struct nr_repository *r, const char *name, struct nr_plan *ret,
                       struct nr_err *err)
{
    nr_autoclose int fd = -1;
    const struct nr_source *s;
    struct nr_err why = {0};
    nr_status st = begin_plan(r, name, ret, &fd, &s, err);
    if (st != NARU_OK || ret->reason[0] != '\0') {
        return st;
    }
    if (!nr_name_valid(nr_str_from(name))) {
        set_reason(ret, nr_strdup("the name must be 1 to 128 letters, digits, '.', '_' or '-', and "
                                  "not begin with a dot"));
        return NARU_OK;
    }
    st = look_at(s, ret, fd, &why);
    if (st == NARU_OK && s->kind == NR_SOURCE_FILE) {
        ret->file = nr_strdup(s->file);
        add_version(ret, 1, ".");
        st = nr_plan_print(fd, ".", s->file, &ret->versions[0].print, &why);
    } else if (st == NARU_OK) {
        st = find_versions(r, ret, fd, &why);
    }
    if (st != NARU_OK) {
        ret->n_versions = 0;
        set_reason(ret, nr_strdup(why.text));
    }
    return NARU_OK;
}

nr_status nr_plan_look(const struct nr_repository *r, const char *name, struct nr_plan *ret,
                       struct nr_err *err)
{
    nr_autoclose int fd = -1;
    const struct nr_source *s;
    nr_status st = begin_plan(r, name, ret, &fd, &s, err);
    if (st == NARU_OK && fd >= 0) {
        st = look_at(s, ret, fd, err);
        if (st != NARU_OK) {
            nr_plan_done(ret);
        }
    } else if (st == NARU_OK) {
        ret->print = nr_hash(ret->reason, strlen(ret->reason));
    }
    return st;
}

bool nr_plan_exists(const struct nr_repository *r, const char *name)
{
    bool found = false;
    for (size_t i = 0; i < r->n_sources && !found; i++) {
        nr_status st;
        int fd;
        found = source_has(&r->sources[i], name, &fd, &st, NULL);
        nr_close(fd);
    }
    return found;
}

nr_status nr_plan_open(const struct nr_repository *r, const char *name, int *ret_fd,
                       struct nr_err *err)
{
    for (size_t i = 0; i < r->n_sources; i++) {
        nr_status st;
        if (source_has(&r->sources[i], name, ret_fd, &st, err)) {
            return st;
        }
    }
    return nr_fail(err, NARU_NOT_FOUND, "the model's folder is gone");
}
