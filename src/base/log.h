/* Structured log: one line per event, text (logfmt) or JSON, to stderr or a file opened at start.
 *
 * Library folders do not log above debug; the edge (api, cmd) logs once, with the request id.
 * Values are escaped, so client text can never begin a line of its own; values are cut at 2 KiB and
 * lines at 8 KiB. Lines are written by one write(2) each. A line kind (module and message) that
 * repeats more than 100 times a second is counted, not written; its next line carries repeats=N.
 * Before nr_log_init: text, level info, stderr. Thread safe; errors of the descriptor are counted
 * and told by the next line that can be written (lost_lines=N).
 */
#ifndef NR_BASE_LOG_H
#define NR_BASE_LOG_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "base/str.h"

typedef enum nr_log_level {
    NR_LOG_DEBUG,
    NR_LOG_INFO,
    NR_LOG_WARN,
    NR_LOG_ERROR,
    NR_LOG_OFF /* as a level to set: nothing is written; never the level of a line */
} nr_log_level;

struct nr_log_cfg {
    nr_log_level level;
    bool json;
    int fd; /* borrowed; -1 means stderr */
};

/* One key (plain ASCII, the program's own) and its value; build with NR_KV_* inside nr_log. */
struct nr_kv {
    const char *key;
    enum {
        NR_KV_END,
        NR_KV_STR_,
        NR_KV_INT_,
        NR_KV_DBL_
    } kind;
    struct nr_str str;
    int64_t num;
    double dbl;
};
#define NR_KV_TEXT(k, text) \
    ((struct nr_kv){.key = (k), .kind = NR_KV_STR_, .str = nr_str_from(text)})
#define NR_KV_STR(k, s) ((struct nr_kv){.key = (k), .kind = NR_KV_STR_, .str = (s)})
#define NR_KV_INT(k, n) ((struct nr_kv){.key = (k), .kind = NR_KV_INT_, .num = (int64_t)(n)})
#define NR_KV_DBL(k, x) ((struct nr_kv){.key = (k), .kind = NR_KV_DBL_, .dbl = (x)})

void nr_log_init(const struct nr_log_cfg *cfg); /* again at any time: another level, another file */
bool nr_log_on(nr_log_level level);             /* cheap; test before building values */
/* "debug" … "off", any letter case. */
bool nr_log_level_parse(struct nr_str s, nr_log_level *ret);
/* nr_log(NR_LOG_INFO, "model", "loaded", NR_KV_TEXT("model", name), NR_KV_INT("ms", 12)); */
#define nr_log(level, module, msg, ...)                                                     \
    do {                                                                                    \
        if (nr_log_on(level)) {                                                             \
            const struct nr_kv nr_kvs_[] = {__VA_ARGS__ __VA_OPT__(, ){.kind = NR_KV_END}}; \
            nr_log_write((level), (module), (msg), nr_kvs_);                                \
        }                                                                                   \
    } while (0)
/* Writes without looking at the configured level; kvs ends with NR_KV_END. */
void nr_log_write(nr_log_level level, const char *module, const char *msg, const struct nr_kv *kvs);
/* The same without the limit on repeats: for the access log. */
void nr_log_write_each(nr_log_level level, const char *module, const char *msg,
                       const struct nr_kv *kvs);

#endif
