/* naru-backend-check: what any plug-in must keep to. Shared by its files:
 *   check_main.c   arguments, one process per check, the report
 *   check_list.c   the checks of backends
 *   check_agent.c, check_batching.c   those of repository agents and batching strategies
 *   check_run.c    a backend opened for a check: inputs made up, regions with guards, reference
 *
 * A check runs in a child of its own that opens the plug-in from nothing, so that a crash, a hang
 * or a state left behind costs one line of the report. It returns when it has passed; otherwise it
 * calls fail() or skip(), which end the child.
 */
#ifndef NARU_BACKEND_CHECK_CHECK_H
#define NARU_BACKEND_CHECK_CHECK_H

#include "host/batch.h"
#include "host/plugin.h"

#define CHECK_MAX_IO 32
#define CHECK_MAX_OPTIONS 32
#define CHECK_MAX_ROWS 8 /* max_rows of batchable models */

struct check_cfg { /* of the command line; read only */
    const char *plugin;
    naru_option options[CHECK_MAX_OPTIONS]; /* of the model */
    uint32_t n_options;
    naru_option lib_options[CHECK_MAX_OPTIONS];
    uint32_t n_lib_options;
    const char *dir, *file;                        /* of the model; "" none */
    naru_io ins[CHECK_MAX_IO], outs[CHECK_MAX_IO]; /* configured by --io */
    uint32_t n_io;
    bool rows_depend; /* rows of a batch influence each other: no comparison with single runs */
    bool varies;      /* outputs of one input differ from run to run */
};
extern struct check_cfg check_cfg;

struct check {
    const char *name;
    const char *what;
    void (*run)(void);
};
extern const struct check check_list[];
extern const unsigned check_count;
extern const struct check agent_checks[];
extern const unsigned agent_check_count;
extern const struct check batching_checks[];
extern const unsigned batching_check_count;

_Noreturn void fail(const char *fmt, ...) nr_printf(1, 2);
_Noreturn void skip(const char *fmt, ...) nr_printf(1, 2);
#define EXPECT(cond, ...)      \
    do {                       \
        if (!(cond)) {         \
            fail(__VA_ARGS__); \
        }                      \
    } while (0)

/* ---- check_run.c ---- */

struct opened { /* a plug-in, a model and an instance */
    struct nr_plugins *set;
    struct nr_plugin *plugin;
    struct nr_plugin_model *model;
    struct nr_plugin_instance *instance;
    bool batched;
    uint32_t max_rows; /* 0: no batch dimension */
};
void open_plugin(struct opened *o); /* set and plugin only */
void open_model(struct opened *o);  /* model only, the plug-in is open */
void open_all(struct opened *o);    /* everything; fails the check when it cannot */
void close_all(struct opened *o);
naru_model_args model_args(int *ret_dir); /* *ret_dir is to be closed */

/* Where tensors of a check lie: between guards, in private memory or in a memfd. */
typedef enum place {
    PLACE_GUARDED,
    PLACE_SHARED
} place;
struct nr_batch *new_batch(struct opened *o, place where);
/* Fails the check when a guard byte around a region has changed. */
void check_guards(void);

/* One made-up request: inputs are the same for the same seed, rows and dim. */
struct sample {
    struct nr_batch_input in[CHECK_MAX_IO];
    int64_t shapes[CHECK_MAX_IO][NARU_MAX_RANK];
    uint32_t rows;
};
/* dim: value of dimensions that vary (behind the batch). where: memory of the inputs. */
void make_sample(const struct opened *o, struct sample *s, uint64_t seed, uint32_t rows,
                 int64_t dim, place where);
void free_sample(const struct opened *o, struct sample *s);
void add_sample(struct nr_batch *b, const struct sample *s, const uint8_t *wanted,
                const _Atomic uint32_t *cancelled, int64_t deadline_ns);

/* Bytes of all outputs of a request, one after another, with their shapes; nr_free'd. */
struct answer {
    uint8_t *data;
    size_t bytes;
};
struct answer take_answer(const struct opened *o, struct nr_batch *b, uint32_t request);
/* The answer to one sample run alone. */
struct answer run_alone(struct opened *o, uint64_t seed, uint32_t rows, int64_t dim, place where);
/* Equal but for rounding: bytes, or numbers of one floating type within 1e-4 of each other. */
void expect_same(const struct answer *a, const struct answer *b, const char *what);
int64_t resident_bytes(void);

#endif
