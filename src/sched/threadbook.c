/* The sum of configured threads; see the header.
 *
 * DESIGN. Only models with a number of their own above 1 are in the sum: executions of one thread are never
 * more than there are executors, and those are as many as cores. The caller of an execution is one of
 * its threads, so instances that share a session of T threads compute on runs + T - 1 of them, and
 * instances with sessions of their own on runs * T.
 */
#include "sched/threadbook.h"

#include <pthread.h>
#include <string.h>
#include <strings.h>

#include "base/cpu.h"
#include "base/mem.h"

#define MOST_NAMED 4 /* models, in a text */

struct nr_thread_book {
    pthread_mutex_t lock;
    struct nr_list entries;
    unsigned cores;
};

struct nr_thread_book *nr_thread_book_new(unsigned cores)
{
    struct nr_thread_book *b = nr_new(struct nr_thread_book);
    pthread_mutex_init(&b->lock, NULL);
    nr_list_init(&b->entries);
    b->cores = cores > 0 ? cores : nr_cpu_usable();
    return b;
}

void nr_thread_book_free(struct nr_thread_book *b)
{
    if (b == NULL) {
        return;
    }
    NR_ASSERT(nr_list_empty(&b->entries));
    pthread_mutex_destroy(&b->lock);
    nr_free(b);
}

void nr_thread_entry_init(struct nr_thread_entry *e, const struct nr_model_config *c, bool shared,
                          unsigned runs)
{
    *e = (struct nr_thread_entry){.model = c->name, .instances = c->n_instances};
    nr_list_init(&e->node);
    for (uint32_t i = 0; i < c->n_options; i++) {
        uint64_t n;
        const naru_option *o = &c->options[i];
        /* backends write it in small or in capital letters */
        if (strcasecmp(o->key, "intra_op_thread_count") == 0 &&
            nr_str_to_u64(nr_str_trim(nr_str_from(o->value)), &n) && n <= 4096) {
            e->per_run = (unsigned)n;
            e->per_what = o->key;
        }
    }
    if (e->per_run > 1) {
        unsigned at_once = NR_MIN(e->instances, NR_MAX(runs, 1u));
        e->threads = shared ? at_once + e->per_run - 1 : at_once * e->per_run;
    }
}

void nr_thread_book_enter(struct nr_thread_book *b, struct nr_thread_entry *e)
{
    pthread_mutex_lock(&b->lock);
    nr_list_append(&b->entries, &e->node);
    pthread_mutex_unlock(&b->lock);
}

void nr_thread_book_leave(struct nr_thread_book *b, struct nr_thread_entry *e)
{
    pthread_mutex_lock(&b->lock);
    nr_list_remove(&e->node);
    pthread_mutex_unlock(&b->lock);
}

/* Under the lock: "a (8), b (4)". */
static unsigned sum_up(const struct nr_thread_book *b, struct nr_text *ret_names, unsigned *ret_n)
{
    unsigned sum = 0;
    *ret_n = 0;
    NR_LIST_FOREACH (node, &b->entries) {
        const struct nr_thread_entry *one = nr_container_of(node, struct nr_thread_entry, node);
        if (one->threads == 0) {
            continue;
        }
        sum += one->threads;
        if (++*ret_n <= MOST_NAMED) {
            nr_text_fmt(ret_names, "%s%.60s (%u)", *ret_n > 1 ? ", " : "", one->model,
                        one->threads);
        } else if (*ret_n == MOST_NAMED + 1) {
            nr_text_str(ret_names, ", …");
        }
    }
    return sum;
}

void nr_thread_book_note(struct nr_thread_book *b, const struct nr_thread_entry *e,
                         struct nr_text *t)
{
    struct nr_text names;
    char storage[512];
    unsigned n;
    if (e->threads == 0) {
        return;
    }
    nr_text_init_at(&names, storage, sizeof(storage));
    pthread_mutex_lock(&b->lock);
    unsigned sum = sum_up(b, &names, &n);
    pthread_mutex_unlock(&b->lock);
    if (e->threads > b->cores) {
        nr_text_fmt(t,
                    "%u threads may compute at once (%u instance%s, %s %u) on %u core%s: lower "
                    "one of the two, or leave %s out and the cores are divided by themselves",
                    e->threads, e->instances, e->instances == 1 ? "" : "s", e->per_what, e->per_run,
                    b->cores, b->cores == 1 ? "" : "s", e->per_what);
    }
    if (n > 1 && sum > b->cores) {
        nr_text_fmt(t,
                    "%s%u threads may compute at once for the models that say how many (%s) on %u "
                    "core%s",
                    t->len > 0 ? "; " : "", sum, storage, b->cores, b->cores == 1 ? "" : "s");
    }
}
