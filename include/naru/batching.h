/* Batching strategies, interface 1.0: which of the waiting requests form the next batch of a model.
 *
 * A strategy is a shared object naru-batching-NAME.so that exports one symbol,
 * naru_batching_entry. It includes nothing but include/naru/. A model chooses one by the parameter
 * naru.batch_strategy of its config.pbtxt; everything in `parameters` is given to it.
 *
 * plan() is called whenever an instance of the model is free and requests wait. It sees the window of the
 * queue that may go together at all, and what the server would do by itself, and answers with how many of them
 * go now, or until when to wait; it is asked again at that time, and whenever another request comes.
 * It decides from what it is given: it is called under a lock of the model's scheduler, so it must not
 * block, allocate or call back, and should take a microsecond at most.
 *
 * The server refuses an answer that breaks a promise of its own (more rows than max_rows, somebody passed by
 * where order is promised, the first request passed by, waiting for longer than an hour or for nothing),
 * counts it (naru_batch_strategy_refused_total) and does what it would have done by itself.
 *
 * Rules: naru/plugin.h. Everything passed in is borrowed until the call returns. One call of a model at a
 * time, on any thread; different models at once. On error nothing is owned, *ret untouched.
 */
#ifndef NARU_BATCHING_H
#define NARU_BATCHING_H

#include "naru/plugin.h"

#ifdef __cplusplus
extern "C" {
#endif

#define NARU_BATCHING_ABI_MAJOR 1
#define NARU_BATCHING_ABI_MINOR 0
#define NARU_BATCHING_ENTRY_SYMBOL "naru_batching_entry"

typedef struct naru_waiting { /* one waiting request; its size is fixed for the whole of major 1 */
    int64_t queued_ns;        /* CLOCK_MONOTONIC */
    int64_t
        deadline_ns; /* the last moment to begin and still be in time, where it is known; 0 none */
    uint64_t bytes;  /* of all its inputs */
    uint64_t elements;          /* of all its inputs */
    uint64_t shape_key;         /* equal for equal inputs and shapes, but for the batch dimension */
    const naru_option *options; /* request parameters that the server does not interpret */
    uint32_t n_options;
    uint32_t rows;  /* its share of the batch dimension */
    uint32_t level; /* of priority; 0 is the most urgent */
    uint32_t reserved;
} naru_waiting;

enum naru_window_flag {
    NARU_WINDOW_IN_ORDER = 1u << 0, /* nobody may be passed by */
    NARU_WINDOW_CUT = 1u << 1       /* others wait behind these, or beside them with other shapes */
};

typedef struct naru_window {
    uint32_t struct_size;
    uint32_t n; /* 1 or more */
    /* Those that may be in one batch with the first, in the order of service. Together they may exceed
     * max_rows. */
    const naru_waiting *requests;
    int64_t now_ns;
    int64_t max_rows;
    uint32_t flags;
    uint32_t default_n; /* the server would take so many of the first; 0: it would wait */
    int64_t default_wait_until_ns; /* with default_n 0 */
} naru_window;

typedef struct naru_choice {
    uint32_t struct_size;
    uint32_t n; /* the first n go, but those that are skipped; 0: none yet. 0 before the call */
    int64_t wait_until_ns; /* with n 0: ask again then. 0 before the call */
    uint8_t
        *skip; /* [window.n], all 0 before the call: 1 leaves one of the first n in the queue. Never
                      the first, and none with NARU_WINDOW_IN_ORDER */
} naru_choice;

typedef struct naru_batching_args {
    uint32_t struct_size;
    uint32_t n_options;
    const naru_option *options; /* config.pbtxt `parameters`, all of them */
    const char *model;
    int64_t max_rows; /* max_batch_size */
} naru_batching_args;

typedef struct naru_batching_model
    naru_batching_model; /* the strategy's own, of one version of a model */

typedef struct naru_batching {
    uint32_t struct_size;
    uint16_t abi_major;
    uint16_t abi_minor;
    const char *name; /* "volume": the file is naru-batching-volume.so */
    const char *version;
    /* Reads its parameters; an error fails the load of the model with its text. Required. */
    naru_status (*model_open)(const naru_batching_args *args, naru_batching_model **ret,
                              naru_text *err);
    void (*model_close)(naru_batching_model *model); /* accepts NULL. Required. */
    /* NARU_OK: *choice counts. Anything else: the server decides by itself, and counts a refusal. Required. */
    naru_status (*plan)(naru_batching_model *model, const naru_window *window, naru_choice *choice);
} naru_batching;

/* The one exported symbol. Borrowed constant; never NULL. */
typedef const naru_batching *(*naru_batching_entry_fn)(void);

#ifdef __cplusplus
}
#endif
#endif
