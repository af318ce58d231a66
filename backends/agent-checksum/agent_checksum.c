/* The checksum agent: a model is loaded only when its files are those that its configuration names.
 *
 *   model_repository_agents { agents [ { name: "checksum"
 *     parameters { key: "MD5:1/model.onnx"    value: "32 hexadecimal digits" }      as Triton's
 *     parameters { key: "SHA256:1/model.onnx" value: "64" }
 *     parameters { key: "XXH3:labels.txt"     value: "16, or 32 for 128 bits" }
 *     parameters { key: "all"                 value: "true" } } ] }
 *
 * DESIGN. Files are read once, in order, by 1 MiB; nothing is kept between loads. What is hashed is what is
 * opened: the server looks whether files changed between the plan and the end of the load, so a file
 * that is exchanged in between fails the load there.
 *
 * With `all` every file of the folder must be listed, but for config.pbtxt and configs/, which hold
 * the list and cannot hold their own sums: whoever may write them may write the sums. MD5 and XXH3 find
 * accidents; against people only SHA256 does.
 *
 * Threads: no state of its own.
 */
#include <errno.h>
#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "naru/agent.h"
#include "naru/helper.h"

#define READ_BYTES ((size_t)1 << 20)
#define MAX_SUM 32 /* bytes */

enum kind {
    KIND_MD5,
    KIND_SHA256,
    KIND_XXH3,
    KINDS
};
static const char *const prefixes[KINDS] = {"MD5:", "SHA256:", "XXH3:"};

struct entry { /* one file that is listed */
    enum kind kind;
    const char *path; /* borrowed from the call */
    uint8_t want[MAX_SUM];
    size_t bytes;
};

struct list {
    struct entry *entries; /* by path, once read */
    size_t n;
    int all;
};

/* --- parameters ------------------------------------------------------------------------------- */

static int digit_of(char c)
{
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                  : -1;
}

/* Bytes of a sum of that kind written in n digits, 0: none has so many. */
static size_t sum_bytes(enum kind kind, size_t digits)
{
    static const size_t bytes[KINDS] = {16, 32, 8};
    return digits == 2 * bytes[kind]                ? bytes[kind]
           : kind == KIND_XXH3 && digits == 2 * 16u ? 16
                                                    : 0;
}

static naru_status read_entry(struct entry *e, const naru_option *o, naru_text *err)
{
    size_t digits = strlen(o->value);
    e->bytes = sum_bytes(e->kind, digits);
    int good = e->bytes > 0;
    for (size_t i = 0; i < digits && good; i++) {
        int d = digit_of(o->value[i]);
        good = d >= 0;
        e->want[i / 2] = (uint8_t)(e->want[i / 2] << 4 | (good ? d : 0));
    }
    if (!good) {
        return naru_fail(err, NARU_INVALID,
                         "\"%.200s\" is \"%.80s\": %s hexadecimal digits are expected", o->key,
                         o->value,
                         e->kind == KIND_MD5      ? "32"
                         : e->kind == KIND_SHA256 ? "64"
                                                  : "16 or 32");
    }
    return NARU_OK;
}

static int by_path(const void *a, const void *b)
{
    return strcmp(((const struct entry *)a)->path, ((const struct entry *)b)->path);
}

static naru_status read_list(struct list *l, const naru_agent_call *call, naru_text *err)
{
    naru_status st = naru_option_bool(call->options, call->n_options, "all", &l->all, err);
    l->entries = calloc((size_t)call->n_options + 1, sizeof *l->entries);
    if (!l->entries) {
        return naru_fail(err, NARU_NOMEM, "no memory for %u sums", call->n_options);
    }
    for (uint32_t i = 0; i < call->n_options && st == NARU_OK; i++) {
        const naru_option *o = &call->options[i];
        enum kind kind = KIND_MD5;
        while (kind < KINDS && strncmp(o->key, prefixes[kind], strlen(prefixes[kind])) != 0) {
            kind++;
        }
        if (kind < KINDS) {
            struct entry *e = &l->entries[l->n++];
            e->kind = kind;
            e->path = o->key + strlen(prefixes[kind]);
            st = read_entry(e, o, err);
        } else if (strcmp(o->key, "all") != 0) {
            st = naru_fail(
                err, NARU_INVALID,
                "unknown parameter \"%.200s\": MD5:PATH, SHA256:PATH, XXH3:PATH and all are "
                "known",
                o->key);
        }
    }
    qsort(l->entries, l->n, sizeof *l->entries, by_path);
    return st;
}

/* --- sums ------------------------------------------------------------------------------------- */

/* Whichever of the two is in use. */
struct sum {
    EVP_MD_CTX *evp;
    XXH3_state_t xxh;
    const struct entry *entry;
};

static int sum_begin(struct sum *s, const struct entry *e)
{
    s->entry = e;
    s->evp = NULL;
    if (e->kind == KIND_XXH3) {
        return (e->bytes == 16 ? XXH3_128bits_reset(&s->xxh) : XXH3_64bits_reset(&s->xxh)) ==
               XXH_OK;
    }
    s->evp = EVP_MD_CTX_new();
    return s->evp &&
           EVP_DigestInit_ex(s->evp, e->kind == KIND_MD5 ? EVP_md5() : EVP_sha256(), NULL) == 1;
}

static int sum_add(struct sum *s, const void *data, size_t n)
{
    if (s->evp) {
        return EVP_DigestUpdate(s->evp, data, n) == 1;
    }
    return (s->entry->bytes == 16 ? XXH3_128bits_update(&s->xxh, data, n)
                                  : XXH3_64bits_update(&s->xxh, data, n)) == XXH_OK;
}

static int sum_end(struct sum *s, uint8_t *to)
{
    unsigned n = 0;
    uint8_t sum[EVP_MAX_MD_SIZE] = {0};
    if (s->evp) {
        int good = EVP_DigestFinal_ex(s->evp, sum, &n) == 1 && n == s->entry->bytes;
        memcpy(to, sum, s->entry->bytes);
        return good;
    }
    if (s->entry->bytes == 16) {
        XXH128_canonicalFromHash((XXH128_canonical_t *)(void *)to, XXH3_128bits_digest(&s->xxh));
    } else {
        XXH64_canonicalFromHash((XXH64_canonical_t *)(void *)to, XXH3_64bits_digest(&s->xxh));
    }
    return 1;
}

static naru_status read_through(const naru_agent_host *host, const naru_agent_call *call, int fd,
                                struct sum *s, void *buf, naru_text *err)
{
    for (;;) {
        ssize_t n = read(fd, buf, READ_BYTES);
        if (n == 0) {
            return NARU_OK;
        }
        if (n < 0 && errno != EINTR) {
            return naru_fail(err, NARU_IO, "%.300s cannot be read: %s", s->entry->path,
                             strerrorname_np(errno));
        }
        if (n > 0 && !sum_add(s, buf, (size_t)n)) {
            return naru_fail(err, NARU_INTERNAL, "%.300s: the sum cannot be computed",
                             s->entry->path);
        }
        if (host->stopped(call)) {
            return NARU_CANCELLED;
        }
    }
}

static void hex_of(const uint8_t *sum, size_t bytes, char *to)
{
    for (size_t i = 0; i < bytes; i++) {
        to[2 * i] = "0123456789abcdef"[sum[i] >> 4];
        to[2 * i + 1] = "0123456789abcdef"[sum[i] & 15];
    }
    to[2 * bytes] = '\0';
}

static naru_status check_file(const naru_agent_host *host, const naru_agent_call *call,
                              const struct entry *e, void *buf, naru_text *err)
{
    struct sum s = {0};
    int32_t fd = -1;
    uint8_t got[MAX_SUM] = {0};
    naru_status st = host->file_open(call, e->path, &fd, err);
    if (st != NARU_OK) {
        return st;
    }
    if (!sum_begin(&s, e)) {
        st = naru_fail(err, NARU_UNSUPPORTED, "%.*s is not to be had from this machine's libcrypto",
                       (int)strlen(prefixes[e->kind]) - 1, prefixes[e->kind]);
    }
    if (st == NARU_OK) {
        st = read_through(host, call, fd, &s, buf, err);
    }
    if (st == NARU_OK && !sum_end(&s, got)) {
        st = naru_fail(err, NARU_INTERNAL, "%.300s: the sum cannot be computed", e->path);
    }
    if (st == NARU_OK && memcmp(got, e->want, e->bytes) != 0) {
        char want_hex[2 * MAX_SUM + 1], got_hex[2 * MAX_SUM + 1];
        hex_of(e->want, e->bytes, want_hex);
        hex_of(got, e->bytes, got_hex);
        st = naru_fail(err, NARU_PRECONDITION,
                       "%.200s is not the file that was meant: %.*s expected %s, got %s", e->path,
                       (int)strlen(prefixes[e->kind]) - 1, prefixes[e->kind], want_hex, got_hex);
    }
    EVP_MD_CTX_free(s.evp);
    (void)close(fd);
    return st;
}

/* --- the agent -------------------------------------------------------------------------------- */

struct visit {
    const struct list *list;
    naru_text *err;
};

static naru_status must_be_listed(void *arg, const char *rel, uint64_t bytes)
{
    const struct visit *v = arg;
    const struct entry key = {.path = rel};
    (void)bytes;
    if (strcmp(rel, "config.pbtxt") == 0 || strncmp(rel, "configs/", 8) == 0 ||
        bsearch(&key, v->list->entries, v->list->n, sizeof key, by_path)) {
        return NARU_OK;
    }
    return naru_fail(v->err, NARU_PRECONDITION,
                     "%.300s has no sum in the list, and \"all\" is \"true\": list it or remove it",
                     rel);
}

static naru_status act(const naru_agent_host *host, naru_agent_model *model,
                       const naru_agent_call *call, naru_text *err)
{
    struct list l = {0};
    (void)model;
    if (call->action != NARU_AGENT_LOAD) {
        return NARU_OK;
    }
    void *buf = malloc(READ_BYTES);
    naru_status st = buf ? read_list(&l, call, err) : NARU_NOMEM;
    struct visit v = {.list = &l, .err = err};
    if (st == NARU_OK && l.all) {
        st = host->file_each(call, must_be_listed, &v, err);
    }
    for (size_t i = 0; i < l.n && st == NARU_OK; i++) {
        st = check_file(host, call, &l.entries[i], buf, err);
    }
    free(l.entries);
    free(buf);
    return st;
}

static const naru_agent agent = {.struct_size = sizeof agent,
                                 .abi_major = NARU_AGENT_ABI_MAJOR,
                                 .abi_minor = NARU_AGENT_ABI_MINOR,
                                 .name = "checksum",
                                 .version = "1.0",
                                 .act = act};

NARU_EXPORT const naru_agent *naru_agent_entry(void);
const naru_agent *naru_agent_entry(void)
{
    return &agent;
}
