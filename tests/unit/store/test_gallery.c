/* The gallery: what is stored is there after a restart, quotas and ages, leftovers of a crash,
 * hostile files in its folder, two processes, many threads. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "store/gallery.h"

struct fixture {
    char root[64], path[96];
    struct nr_gallery_cfg cfg;
    struct nr_gallery *g;
    struct nr_arena a;
    struct nr_err err;
};

static int set_up(void **state)
{
    struct fixture *f = nr_new(struct fixture);
    snprintf(f->root, sizeof(f->root), "/tmp/naru-test-gallery-XXXXXX");
    assert_non_null(mkdtemp(f->root));
    snprintf(f->path, sizeof(f->path), "%s/gallery", f->root);
    nr_gallery_cfg_default(&f->cfg);
    f->cfg.path = f->path;
    nr_arena_init(&f->a, 0);
    *state = f;
    return 0;
}

static unsigned count_files(const struct fixture *f)
{
    DIR *d = opendir(f->path);
    unsigned n = 0;
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d)) != NULL;) {
        n += strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0;
    }
    closedir(d);
    return n;
}

static void remove_all(const char *path)
{
    DIR *d = opendir(path);
    for (struct dirent *e; d != NULL && (e = readdir(d)) != NULL;) {
        char sub[512];
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0) {
            continue;
        }
        snprintf(sub, sizeof(sub), "%s/%.255s", path, e->d_name);
        if (unlink(sub) != 0) {
            remove_all(sub);
        }
    }
    if (d != NULL) {
        closedir(d);
    }
    rmdir(path);
}

static int tear_down(void **state)
{
    struct fixture *f = *state;
    nr_gallery_close(f->g);
    nr_arena_done(&f->a);
    remove_all(f->root);
    nr_free(f);
    return 0;
}

static void reopen(struct fixture *f)
{
    nr_gallery_close(f->g);
    f->g = NULL;
    assert_int_equal(nr_gallery_open(&f->cfg, &f->g, &f->err), NARU_OK);
}

/* Adds a pair; the id into id when not NULL. */
static nr_status add(struct fixture *f, const char *model, struct nr_str in, struct nr_str out,
                     char *id)
{
    struct nr_gallery_entry e = {.model = nr_str_from(model),
                                 .in_type = NR_STR("image/jpeg"),
                                 .out_type = NR_STR("image/png"),
                                 .took_us = 41000};
    nr_status st = nr_gallery_add(f->g, &e, in, out, &f->err);
    if (st == NARU_OK && id != NULL) {
        memcpy(id, e.id, sizeof(e.id));
    }
    return st;
}

static void add_small(struct fixture *f, char *id)
{
    assert_int_equal(add(f, "derain", NR_STR("rain"), NR_STR("no rain"), id), NARU_OK);
}

static unsigned list(struct fixture *f, const struct nr_gallery_entry **ret)
{
    unsigned n = 0;
    assert_int_equal(nr_gallery_list(f->g, &f->a, 1000, ret, &n, &f->err), NARU_OK);
    return n;
}

static void put_file(const struct fixture *f, const char *name, const char *text)
{
    char path[512];
    snprintf(path, sizeof(path), "%s/%s", f->path, name);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, strlen(text)), strlen(text));
    close(fd);
}

static bool has_file(const struct fixture *f, const char *name)
{
    char path[512];
    struct stat st;
    snprintf(path, sizeof(path), "%s/%s", f->path, name);
    return lstat(path, &st) == 0;
}

/* An entry's three files, written by hand. */
static void put_entry(const struct fixture *f, const char *id, int64_t wall_ns)
{
    char name[64], json[512];
    snprintf(name, sizeof(name), "%s-in.jpg", id);
    put_file(f, name, "in");
    snprintf(name, sizeof(name), "%s-out.png", id);
    put_file(f, name, "out");
    snprintf(name, sizeof(name), "%s.json", id);
    snprintf(json, sizeof(json),
             "{\"model\":\"derain\",\"in_type\":\"image/jpeg\",\"out_type\":\"image/png\","
             "\"in_bytes\":999999999,\"out_bytes\":0,\"wall_ns\":%lld,\"took_us\":5}",
             (long long)wall_ns);
    put_file(f, name, json);
}

static void test_kept_over_restart(void **state)
{
    struct fixture *f = *state;
    const struct nr_gallery_entry *e;
    char ids[3][NR_GALLERY_ID_MAX];
    reopen(f);
    assert_int_equal(list(f, &e), 0);
    for (unsigned i = 0; i < 3; i++) {
        char in[16];
        snprintf(in, sizeof(in), "input %u", i);
        assert_int_equal(add(f, "derain", nr_str_from(in), NR_STR("\0out\xff"), ids[i]), NARU_OK);
    }
    for (unsigned round = 0; round < 2; round++) {
        assert_int_equal(list(f, &e), 3);
        for (unsigned i = 0; i < 3; i++) { /* newest first */
            assert_string_equal(e[i].id, ids[2 - i]);
            assert_true(nr_str_is(e[i].model, "derain"));
            assert_true(nr_str_is(e[i].in_type, "image/jpeg"));
            assert_true(nr_str_is(e[i].out_type, "image/png"));
            assert_int_equal(e[i].in_bytes, 7);
            assert_int_equal(e[i].out_bytes, 5);
            assert_int_equal(e[i].took_us, 41000);
            assert_true(e[i].wall_ns > 0 && e[i].wall_ns <= nr_clock_wall());
        }
        struct nr_str body, type;
        assert_int_equal(
            nr_gallery_read(f->g, &f->a, nr_str_from(ids[1]), true, &body, &type, &f->err),
            NARU_OK);
        assert_true(nr_str_is(body, "input 1"));
        assert_true(nr_str_is(type, "image/jpeg"));
        assert_int_equal(
            nr_gallery_read(f->g, &f->a, nr_str_from(ids[1]), false, &body, &type, &f->err),
            NARU_OK);
        assert_true(nr_str_eq(body, NR_STR("\0out\xff")));
        assert_true(nr_str_is(type, "image/png"));
        reopen(f);
    }
    struct stat st;
    assert_int_equal(stat(f->path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0700);
}

static void test_list_is_limited(void **state)
{
    struct fixture *f = *state;
    const struct nr_gallery_entry *e;
    char newest[NR_GALLERY_ID_MAX];
    unsigned n;
    reopen(f);
    for (unsigned i = 0; i < 5; i++) {
        add_small(f, newest);
    }
    assert_int_equal(nr_gallery_list(f->g, &f->a, 2, &e, &n, &f->err), NARU_OK);
    assert_int_equal(n, 2);
    assert_string_equal(e[0].id, newest);
    assert_int_equal(nr_gallery_list(f->g, &f->a, 0, &e, &n, &f->err), NARU_OK);
    assert_int_equal(n, 0);
}

static void test_removal(void **state)
{
    struct fixture *f = *state;
    const struct nr_gallery_entry *e;
    char a[NR_GALLERY_ID_MAX], b[NR_GALLERY_ID_MAX];
    struct nr_str body, type;
    struct nr_gallery_usage u;
    reopen(f);
    add_small(f, a);
    add_small(f, b);
    assert_int_equal(nr_gallery_remove(f->g, nr_str_from(a), &f->err), NARU_OK);
    assert_int_equal(nr_gallery_remove(f->g, nr_str_from(a), &f->err), NARU_NOT_FOUND);
    assert_int_equal(nr_gallery_read(f->g, &f->a, nr_str_from(a), true, &body, &type, &f->err),
                     NARU_NOT_FOUND);
    assert_int_equal(list(f, &e), 1);
    assert_string_equal(e[0].id, b);
    assert_int_equal(count_files(f), 3);
    nr_gallery_usage(f->g, &u);
    assert_int_equal(u.entries, 1);
    assert_int_equal(u.bytes, 11);
    static const char *const bad[] = {
        "", ".", "..", "../x", "0123456789abcdef0", "0123456789ABCDEF"};
    for (unsigned i = 0; i < NR_COUNT(bad); i++) {
        assert_int_equal(nr_gallery_remove(f->g, nr_str_from(bad[i]), &f->err), NARU_NOT_FOUND);
        assert_int_equal(
            nr_gallery_read(f->g, &f->a, nr_str_from(bad[i]), true, &body, &type, &f->err),
            NARU_NOT_FOUND);
    }
}

static void test_quota_of_entries(void **state)
{
    struct fixture *f = *state;
    const struct nr_gallery_entry *e;
    char ids[5][NR_GALLERY_ID_MAX];
    f->cfg.max_entries = 3;
    reopen(f);
    for (unsigned i = 0; i < 5; i++) {
        add_small(f, ids[i]);
    }
    assert_int_equal(list(f, &e), 3);
    assert_string_equal(e[0].id, ids[4]);
    assert_string_equal(e[2].id, ids[2]);
    assert_int_equal(count_files(f), 9);
    f->cfg.max_entries = 1; /* a smaller quota than before is kept from the start */
    reopen(f);
    assert_int_equal(list(f, &e), 1);
    assert_string_equal(e[0].id, ids[4]);
    assert_int_equal(count_files(f), 3);
}

static void test_quota_of_bytes(void **state)
{
    struct fixture *f = *state;
    const struct nr_gallery_entry *e;
    struct nr_gallery_usage u;
    nr_autofree char *big = nr_new_array(char, 1000);
    char ids[4][NR_GALLERY_ID_MAX];
    f->cfg.max_bytes = 1000;
    reopen(f);
    for (unsigned i = 0; i < 4; i++) { /* 300 bytes each: three fit */
        assert_int_equal(add(f, "m", (struct nr_str){big, 100}, (struct nr_str){big, 200}, ids[i]),
                         NARU_OK);
    }
    assert_int_equal(list(f, &e), 3);
    assert_string_equal(e[2].id, ids[1]);
    nr_gallery_usage(f->g, &u);
    assert_int_equal(u.bytes, 900);
    assert_int_equal(u.max_bytes, 1000);
    /* more than everything: refused, and nothing goes for it */
    assert_int_equal(add(f, "m", (struct nr_str){big, 1}, (struct nr_str){big, 1000}, NULL),
                     NARU_TOO_LARGE);
    assert_int_equal(list(f, &e), 3);
    /* exactly everything: fits, and all others go */
    assert_int_equal(add(f, "m", (struct nr_str){big, 1}, (struct nr_str){big, 999}, NULL),
                     NARU_OK);
    assert_int_equal(list(f, &e), 1);
    assert_int_equal(count_files(f), 3);
}

static void test_age(void **state)
{
    struct fixture *f = *state;
    const struct nr_gallery_entry *e;
    int64_t now = nr_clock_wall();
    reopen(f); /* makes the folder */
    put_entry(f, "0000000000000001", now - 31 * 24 * 3600 * NR_S_NS);
    put_entry(f, "0000000000000002", now - 29 * 24 * 3600 * NR_S_NS);
    put_entry(f, "0000000000000003", now - 32 * 24 * 3600 * NR_S_NS); /* the clock went back once */
    reopen(f);
    assert_int_equal(list(f, &e), 1);
    assert_string_equal(e[0].id, "0000000000000002");
    assert_int_equal(count_files(f), 3);
    f->cfg.max_age_ns = 0; /* for ever */
    put_entry(f, "0000000000000001", 0);
    reopen(f);
    assert_int_equal(list(f, &e), 2);
    f->cfg.max_age_ns = NR_S_NS; /* goes while the server runs */
    reopen(f);
    now = nr_clock_wall();
    add_small(f, NULL);
    assert_true(list(f, &e) == 1 || nr_clock_wall() - now >= NR_S_NS);
    for (unsigned tries = 0; tries < 1200 && list(f, &e) != 0; tries++) {
        nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL);
    }
    assert_int_equal(list(f, &e), 0);
    assert_int_equal(count_files(f), 0);
}

static void test_leftovers(void **state)
{
    struct fixture *f = *state;
    const struct nr_gallery_entry *e;
    char id[NR_GALLERY_ID_MAX];
    reopen(f);
    add_small(f, id);
    /* a crash after the first file, after the second, in the middle of a write, of a removal */
    put_file(f, "00000000000000aa-in.jpg", "x");
    put_file(f, "00000000000000ab-in.jpg", "x");
    put_file(f, "00000000000000ab-out.png", "x");
    put_file(f, ".naru-1-2-3.tmp", "half");
    put_entry(f, "00000000000000ac", nr_clock_wall());
    put_file(f, "00000000000000ac-in.jpg", "");
    put_file(f, "00000000000000ad.json", "{\"model\":\"der");
    put_file(f, "00000000000000ad-in.jpg", "x");
    /* not ours */
    put_file(f, "README", "mine");
    put_file(f, "00000000000000AA-in.jpg", "x");
    put_file(f, "photo-in.jpg", "x");
    put_file(f, "settings.json", "{}");
    reopen(f);
    assert_int_equal(list(f, &e), 1);
    assert_string_equal(e[0].id, id);
    assert_int_equal(count_files(f), 3 + 4);
    assert_true(has_file(f, "README"));
    assert_true(has_file(f, "settings.json"));
}

static void test_hostile_folder(void **state)
{
    struct fixture *f = *state;
    const struct nr_gallery_entry *e;
    static const struct {
        const char *name, *text;
    } files[] = {
        {".json", "{}"},
        {"..json", "{}"},
        {"0000000000000001.json", "[[[[[[[["},
        {"0000000000000002.json", "{\"model\":\"../../etc\",\"in_type\":\"image/png\",\"out_type\":"
                                  "\"image/png\",\"wall_ns\":1}"},
        {"0000000000000003.json", "{\"model\":\"m\",\"in_type\":\"text/html\",\"out_type\":"
                                  "\"image/png\",\"wall_ns\":1}"},
        {"0000000000000004.json", "{\"model\":\"m\",\"in_type\":\"image/png\",\"out_type\":"
                                  "\"image/png\",\"wall_ns\":18446744073709551615}"},
        {"0000000000000005.json", "{\"model\":7,\"in_type\":[],\"out_type\":null}"},
        {"0000000000000006.json", ""},
        {"0000000000000007.json", "\xff\xfe\x00"},
        {"ffffffffffffffff.json", "{\"model\":\"m\",\"in_type\":\"image/png\",\"out_type\":"
                                  "\"image/png\",\"wall_ns\":1}"},
    };
    reopen(f);
    for (unsigned i = 0; i < NR_COUNT(files); i++) {
        put_file(f, files[i].name, files[i].text);
    }
    for (unsigned i = 1; i < 8; i++) { /* the pictures are there, so only the JSON is at fault */
        char name[64];
        snprintf(name, sizeof(name), "000000000000000%u-in.png", i);
        put_file(f, name, "x");
        snprintf(name, sizeof(name), "000000000000000%u-out.png", i);
        put_file(f, name, "x");
    }
    char path[512];
    snprintf(path, sizeof(path), "%s/0000000000000009.json", f->path);
    assert_int_equal(mkdir(path, 0700), 0); /* a folder by the name of an entry */
    snprintf(path, sizeof(path), "%s/0000000000000008.json", f->path);
    assert_int_equal(symlink("/etc/hostname", path), 0);
    reopen(f);
    assert_int_equal(list(f, &e), 0);
    /* an id of the future must not keep new ones from being made, nor from coming first */
    put_entry(f, "3fffffffffffffff", 1);
    f->cfg.max_age_ns = 0;
    reopen(f);
    char id[NR_GALLERY_ID_MAX];
    add_small(f, id);
    assert_string_equal(id, "4000000000000000");
    assert_int_equal(list(f, &e), 2);
    assert_string_equal(e[0].id, id);
    assert_true(e[0].wall_ns <= nr_clock_wall());
}

static void test_link_is_not_followed(void **state)
{
    struct fixture *f = *state;
    struct nr_str body, type;
    char path[512];
    reopen(f);
    put_entry(f, "0000000000000001", nr_clock_wall());
    snprintf(path, sizeof(path), "%s/0000000000000001-in.jpg", f->path);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(symlink("/etc/passwd", path), 0);
    reopen(f);
    assert_int_not_equal(
        nr_gallery_read(f->g, &f->a, NR_STR("0000000000000001"), true, &body, &type, &f->err),
        NARU_OK);
    assert_int_equal(
        nr_gallery_read(f->g, &f->a, NR_STR("0000000000000001"), false, &body, &type, &f->err),
        NARU_OK);
}

static void test_refused_input(void **state)
{
    struct fixture *f = *state;
    reopen(f);
    assert_int_equal(add(f, "a/b", NR_STR("x"), NR_STR("y"), NULL), NARU_INVALID);
    assert_int_equal(add(f, "", NR_STR("x"), NR_STR("y"), NULL), NARU_INVALID);
    assert_int_equal(add(f, "m\"", NR_STR("x"), NR_STR("y"), NULL), NARU_INVALID);
    assert_int_not_equal(add(f, "m", NR_STR(""), NR_STR("y"), NULL), NARU_OK);
    struct nr_gallery_entry e = {
        .model = NR_STR("m"), .in_type = NR_STR("image/gif"), .out_type = NR_STR("image/png")};
    assert_int_equal(nr_gallery_add(f->g, &e, NR_STR("x"), NR_STR("y"), &f->err), NARU_INVALID);
    assert_int_equal(count_files(f), 0);
}

static void test_no_room_on_disk(void **state)
{
    struct fixture *f = *state;
    const struct nr_gallery_entry *e;
    reopen(f);
    add_small(f, NULL);
    if (geteuid() == 0) { /* root writes everywhere: take the folder away instead */
        remove_all(f->path);
        assert_int_not_equal(add(f, "m", NR_STR("x"), NR_STR("y"), NULL), NARU_OK);
    } else {
        assert_int_equal(chmod(f->path, 0500), 0);
        assert_int_not_equal(add(f, "m", NR_STR("x"), NR_STR("y"), NULL), NARU_OK);
        assert_int_equal(chmod(f->path, 0700), 0);
        assert_int_equal(count_files(f), 3);
    }
    assert_true(strlen(f->err.text) > 0);
    assert_int_equal(list(f, &e), 1);
}

static void test_one_process(void **state)
{
    struct fixture *f = *state;
    struct nr_gallery *second = NULL;
    reopen(f);
    assert_int_equal(nr_gallery_open(&f->cfg, &second, &f->err), NARU_EXISTS);
    assert_non_null(strstr(f->err.text, f->path));
    reopen(f); /* and is free again when closed */
}

/* A server that takes the place of another: the folder is its own from the other's end on, with what
 * that one kept until then. */
static void test_patient(void **state)
{
    struct fixture *f = *state;
    struct nr_gallery *old;
    const struct nr_gallery_entry *e;
    char id[NR_GALLERY_ID_MAX];
    reopen(f);
    old = f->g;
    f->cfg.patient = true;
    assert_int_equal(nr_gallery_open(&f->cfg, &f->g, &f->err), NARU_OK);
    assert_int_equal(add(f, "m", NR_STR("x"), NR_STR("y"), NULL), NARU_UNAVAILABLE);
    assert_int_equal(list(f, &e), 0);
    struct nr_gallery *patient = f->g;
    f->g = old;
    add_small(f, id);
    f->g = patient;
    struct nr_str data, type;
    assert_int_equal(nr_gallery_read(f->g, &f->a, nr_str_from(id), true, &data, &type, &f->err),
                     NARU_NOT_FOUND);
    assert_int_equal(nr_gallery_remove(f->g, nr_str_from(id), &f->err), NARU_NOT_FOUND);
    nr_gallery_close(old);
    assert_int_equal(list(f, &e), 1);
    assert_string_equal(e[0].id, id);
    add_small(f, NULL);
    assert_int_equal(list(f, &e), 2);
}

static void test_bad_path(void **state)
{
    struct fixture *f = *state;
    struct nr_gallery *g = NULL;
    f->cfg.path = "/proc/no/such/place";
    assert_int_not_equal(nr_gallery_open(&f->cfg, &g, &f->err), NARU_OK);
    assert_non_null(strstr(f->err.text, "/proc/no/such/place"));
    char path[128];
    snprintf(path, sizeof(path), "%s/file", f->root);
    close(open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
    f->cfg.path = path;
    assert_int_not_equal(nr_gallery_open(&f->cfg, &g, &f->err), NARU_OK);
    assert_null(g);
}

static void *worker(void *arg)
{
    struct fixture *f = arg;
    struct nr_arena a;
    struct nr_err err;
    nr_arena_init(&a, 0);
    for (unsigned i = 0; i < 20; i++) {
        struct nr_gallery_entry e = {.model = NR_STR("m"),
                                     .in_type = NR_STR("image/webp"),
                                     .out_type = NR_STR("image/jpeg")};
        const struct nr_gallery_entry *seen;
        struct nr_str body, type;
        unsigned n;
        assert_int_equal(nr_gallery_add(f->g, &e, NR_STR("abc"), NR_STR("d"), &err), NARU_OK);
        assert_int_equal(nr_gallery_list(f->g, &a, 100, &seen, &n, &err), NARU_OK);
        assert_true(n >= 1 && n <= 10);
        for (unsigned k = 1; k < n; k++) {
            assert_true(strcmp(seen[k - 1].id, seen[k].id) > 0);
        }
        nr_status st =
            nr_gallery_read(f->g, &a, nr_str_from(seen[n - 1].id), true, &body, &type, &err);
        assert_true(st == NARU_OK || st == NARU_NOT_FOUND);
        nr_arena_clear(&a);
    }
    nr_arena_done(&a);
    return NULL;
}

static void test_threads(void **state)
{
    struct fixture *f = *state;
    const struct nr_gallery_entry *e;
    pthread_t t[4];
    f->cfg.max_entries = 10;
    reopen(f);
    for (unsigned i = 0; i < 4; i++) {
        assert_int_equal(pthread_create(&t[i], NULL, worker, f), 0);
    }
    for (unsigned i = 0; i < 4; i++) {
        pthread_join(t[i], NULL);
    }
    assert_int_equal(list(f, &e), 10);
    assert_int_equal(count_files(f), 30);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        T(test_kept_over_restart), T(test_list_is_limited), T(test_removal),
        T(test_quota_of_entries),  T(test_quota_of_bytes),  T(test_age),
        T(test_leftovers),         T(test_hostile_folder),  T(test_link_is_not_followed),
        T(test_refused_input),     T(test_no_room_on_disk), T(test_one_process),
        T(test_patient),           T(test_bad_path),        T(test_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
