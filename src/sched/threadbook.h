/* How many threads models were told to compute with, and what that is on this machine's cores.
 *
 * Without a word in the configuration the server and the backend divide the cores. A configuration may
 * say a number of threads for one execution (intra_op_thread_count); with several instances, and several
 * such models, these add up, and what computes on more threads than there are cores only waits for
 * itself. The book keeps the sum, and says so.
 *
 * Threads: any; one lock, a leaf.
 */
#ifndef NR_SCHED_THREADBOOK_H
#define NR_SCHED_THREADBOOK_H

#include "base/list.h"
#include "base/str.h"
#include "model/config.h"

struct nr_thread_book;

struct nr_thread_entry { /* of one version; the owner's memory */
    struct nr_list node;
    const char *model;
    unsigned instances;   /* that run at once */
    unsigned per_run;     /* threads of an execution, as configured; 0: not configured */
    unsigned threads;     /* that may compute at once for it; 0 when per_run is 0 or 1 */
    const char *per_what; /* the parameter that says so */
};

struct nr_thread_book *nr_thread_book_new(unsigned cores); /* 0: those this process may use */
void nr_thread_book_free(struct nr_thread_book *b);        /* nobody is in it; accepts NULL */

/* What the configuration says. shared: instances use the threads of one session. runs: executions
 * that the server starts at once, at most. */
void nr_thread_entry_init(struct nr_thread_entry *e, const struct nr_model_config *c, bool shared,
                          unsigned runs);
void nr_thread_book_enter(struct nr_thread_book *b, struct nr_thread_entry *e);
void nr_thread_book_leave(struct nr_thread_book *b, struct nr_thread_entry *e);
/* Appends what is wrong with it, with the numbers; nothing when nothing is. */
void nr_thread_book_note(struct nr_thread_book *b, const struct nr_thread_entry *e,
                         struct nr_text *t);

#endif
