/* The log: builds a whole line in a buffer on the stack and writes it with one write(2).
 *
 * No memory is allocated and no lock is held while formatting or writing, so a thread that logs
 * never waits for another's slow terminal. Lines longer than LINE_BYTES lose pairs at their end and
 * say so ("cut"); a value longer than VALUE_BYTES is cut with "…". Lines that the descriptor
 * refuses (full pipe, full disk) are lost and counted; the next line that passes carries the count.
 *
 * Repeats: kinds are told apart by module and message. Each kind may write REPEATS_MAX lines per
 * second; what is over is counted, and the kind's first line of a later second carries
 * repeats=<count>. The table has a fixed size; two kinds that fall on one place share it by turns,
 * which can only let more lines through, never fewer.
 *
 * Invariants
 * 1. A line is one line: every byte of a message or value below 0x20 is escaped.
 * 2. Configuration is read with relaxed atomics: a line under way may still use the old one.
 * Threads: all functions may be called by any thread; repeat_lock is held for a few instructions.
 */
#include "base/log.h"

#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/map.h"

#define LINE_BYTES 8192
#define VALUE_BYTES 2048
#define REPEATS_MAX 100
#define N_KINDS 128
#define TAIL_BYTES 32 /* kept free for the end of a cut line */

static _Atomic int log_level = NR_LOG_INFO;
static _Atomic bool log_json;
static _Atomic int log_fd = STDERR_FILENO;
static _Atomic uint64_t lost_lines;

struct kind {
    uint64_t hash;
    int64_t second;   /* of the current window */
    uint32_t written; /* in the window */
    uint64_t held;    /* counted, not yet reported */
};
static pthread_mutex_t repeat_lock = PTHREAD_MUTEX_INITIALIZER;
static struct kind kinds[N_KINDS]; /* under repeat_lock */

static const char *const level_names[] = {"debug", "info", "warn", "error", "off"};

void nr_log_init(const struct nr_log_cfg *cfg)
{
    atomic_store_explicit(&log_level, (int)cfg->level, memory_order_relaxed);
    atomic_store_explicit(&log_json, cfg->json, memory_order_relaxed);
    atomic_store_explicit(&log_fd, cfg->fd >= 0 ? cfg->fd : STDERR_FILENO, memory_order_relaxed);
}

bool nr_log_on(nr_log_level level)
{
    return level < NR_LOG_OFF &&
           (int)level >= atomic_load_explicit(&log_level, memory_order_relaxed);
}

bool nr_log_level_parse(struct nr_str s, nr_log_level *ret)
{
    for (size_t i = 0; i < NR_COUNT(level_names); i++) {
        if (nr_str_eq_nocase(s, nr_str_from(level_names[i]))) {
            *ret = (nr_log_level)i;
            return true;
        }
    }
    return false;
}

/* Text that needs no quotes in logfmt. */
static bool is_bare(struct nr_str s)
{
    for (size_t i = 0; i < s.len; i++) {
        unsigned char c = (unsigned char)s.ptr[i];
        if (c <= ' ' || c >= 0x7f || c == '"' || c == '=' || c == '\\') {
            return false;
        }
    }
    return s.len > 0;
}

static void put_text(struct nr_text *t, struct nr_str s, bool json)
{
    if (s.len > VALUE_BYTES) {
        nr_uninit char cut[VALUE_BYTES + 4];
        size_t n = nr_str_utf8_fit(s, VALUE_BYTES);
        memcpy(cut, s.ptr, n);
        memcpy(cut + n, "\xe2\x80\xa6", 3); /* … */
        nr_text_json(t, (struct nr_str){cut, n + 3});
    } else if (json || !is_bare(s)) {
        nr_text_json(t, s);
    } else {
        nr_text_add(t, s.ptr, s.len);
    }
}

static void put_double(struct nr_text *t, double x, bool json)
{
    if (!isfinite(x)) {
        nr_text_str(t, json ? "null" : isnan(x) ? "nan" : x > 0 ? "inf" : "-inf");
        return;
    }
    char digits[32];
    int n = snprintf(digits, sizeof(digits), "%.9g", x);
    for (int i = 0; i < n; i++) {
        if (digits[i] == ',') { /* an embedding program may have set a locale */
            digits[i] = '.';
        }
    }
    nr_text_str(t, digits);
}

/* Appends one pair whole or not at all; false when the line is full. */
static bool put_pair(struct nr_text *t, bool json, const struct nr_kv *kv)
{
    size_t before = t->len;
    /* Piece by piece: printf would be most of the cost of an access log's line. */
    if (json) {
        nr_text_str(t, before > 1 ? ",\"" : "\"");
        nr_text_str(t, kv->key);
        nr_text_str(t, "\":");
    } else {
        nr_text_str(t, before > 0 ? " " : "");
        nr_text_str(t, kv->key);
        nr_text_str(t, "=");
    }
    switch (kv->kind) {
    case NR_KV_STR_:
        put_text(t, kv->str, json);
        break;
    case NR_KV_INT_:
        nr_text_fmt(t, "%lld", (long long)kv->num);
        break;
    case NR_KV_DBL_:
        put_double(t, kv->dbl, json);
        break;
    case NR_KV_END:
        break;
    }
    if (!t->failed && t->len + TAIL_BYTES <= t->cap) {
        return true;
    }
    t->failed = false;
    t->len = before;
    t->data[before] = '\0';
    return false;
}

static void write_whole(int fd, const char *data, size_t len)
{
    while (len > 0) {
        ssize_t n = write(fd, data, len);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            atomic_fetch_add_explicit(&lost_lines, 1, memory_order_relaxed);
            return;
        }
        /* A partial write happens on a disk that fills up; the rest is tried once more. */
        data += n;
        len -= (size_t)n;
    }
}

static void write_line(nr_log_level level, const char *module, const char *msg,
                       const struct nr_kv *kvs, uint64_t repeats)
{
    nr_uninit char storage[LINE_BYTES];
    struct nr_text t;
    nr_text_init_at(&t, storage, sizeof(storage));
    bool json = atomic_load_explicit(&log_json, memory_order_relaxed);
    char time[25];
    nr_clock_format(nr_clock_wall(), time);
    uint64_t lost = atomic_exchange_explicit(&lost_lines, 0, memory_order_relaxed);
    const struct nr_kv head[] = {
        NR_KV_TEXT("ts", time),        NR_KV_TEXT("level", level_names[level]),
        NR_KV_TEXT("module", module),  NR_KV_TEXT("msg", msg),
        NR_KV_INT("repeats", repeats), NR_KV_INT("lost_lines", lost),
    };
    if (json) {
        nr_text_str(&t, "{");
    }
    bool fits = true;
    for (size_t i = 0; i < NR_COUNT(head); i++) {
        if (head[i].kind != NR_KV_INT_ || head[i].num != 0) {
            fits = put_pair(&t, json, &head[i]) && fits;
        }
    }
    for (; kvs->kind != NR_KV_END && fits; kvs++) {
        fits = put_pair(&t, json, kvs);
    }
    if (!fits) {
        nr_text_str(&t, json ? ",\"cut\":1" : " cut=1");
    }
    nr_text_str(&t, json ? "}\n" : "\n");
    write_whole(atomic_load_explicit(&log_fd, memory_order_relaxed), t.data, t.len);
}

/* False when the kind has used up its second. *ret_held: lines held back that are due to be
 * reported with this one. */
static bool may_write(const char *module, const char *msg, uint64_t *ret_held)
{
    uint64_t hash = nr_hash(msg, strlen(msg)) ^ (nr_hash(module, strlen(module)) >> 1);
    int64_t second = nr_clock_now() / NR_S_NS;
    bool may = true;
    *ret_held = 0;
    pthread_mutex_lock(&repeat_lock);
    struct kind *k = &kinds[hash % N_KINDS];
    if (k->hash != hash) {
        *k = (struct kind){.hash = hash, .second = second};
    }
    if (k->second != second) {
        *ret_held = k->held;
        k->second = second;
        k->written = 0;
        k->held = 0;
    }
    if (k->written < REPEATS_MAX) {
        k->written++;
    } else {
        k->held++;
        may = false;
    }
    pthread_mutex_unlock(&repeat_lock);
    return may;
}

void nr_log_write(nr_log_level level, const char *module, const char *msg, const struct nr_kv *kvs)
{
    uint64_t held;
    if (level < NR_LOG_OFF && may_write(module, msg, &held)) {
        write_line(level, module, msg, kvs, held);
    }
}

void nr_log_write_each(nr_log_level level, const char *module, const char *msg,
                       const struct nr_kv *kvs)
{
    if (level < NR_LOG_OFF) {
        write_line(level, module, msg, kvs, 0);
    }
}
