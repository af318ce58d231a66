/* See batching.h.
 *
 * DESIGN. A strategy decides about other people's requests, so its answers are looked at like input: a
 * batch that is too large would overrun the plug-in's buffers, one that leaves the first request out could
 * do so for ever, and one that waits for nothing would stop the model.
 */
#include "host/batching.h"

#include <string.h>

#include "base/mem.h"
#include "host/shelf.h"

struct nr_batchings {
    struct nr_shelf shelf;
};

struct nr_batchings *nr_batchings_new(void)
{
    struct nr_batchings *set = nr_new(struct nr_batchings);
    nr_shelf_init(&set->shelf, NR_SHELF_BATCHING);
    return set;
}

void nr_batchings_free(struct nr_batchings *set)
{
    if (set) {
        nr_shelf_done(&set->shelf);
        nr_free(set);
    }
}

void nr_batchings_add_dir(struct nr_batchings *set, const char *path)
{
    nr_shelf_add_dir(&set->shelf, path);
}

static const void *call_entry(void *symbol)
{
    naru_batching_entry_fn entry;
    memcpy(&entry, &symbol, sizeof entry); /* ISO C has no cast from object to function */
    return entry();
}

#define SLOT(slot) {#slot, offsetof(naru_batching, slot)}
static const struct nr_table_slot required[] = {SLOT(model_open), SLOT(model_close), SLOT(plan)};
#undef SLOT
static const struct nr_table_rule batching_rule = {.kind = NR_SHELF_BATCHING,
                                                   .major = NARU_BATCHING_ABI_MAJOR,
                                                   .required = required,
                                                   .n_required = NR_COUNT(required),
                                                   .call = call_entry};

nr_status nr_batching_table_check(const naru_batching *api, struct nr_err *err)
{
    return nr_table_check(api, &batching_rule, err);
}

nr_status nr_batchings_find_path(struct nr_batchings *set, const char *path,
                                 struct nr_str *ret_name, struct nr_err *err)
{
    const void *table = NULL;
    nr_status st = nr_shelf_open_path(&set->shelf, &batching_rule, path, &table, err);
    if (st == NARU_OK) {
        *ret_name = nr_str_from(((const naru_batching *)table)->name);
    }
    return st;
}

nr_status nr_batching_open(struct nr_batchings *set, struct nr_str name,
                           const naru_batching_args *args, struct nr_batching *ret,
                           struct nr_err *err)
{
    const void *table = NULL;
    nr_status st = nr_shelf_open(&set->shelf, &batching_rule, name, &table, err);
    if (st != NARU_OK) {
        return st;
    }
    const naru_batching *api = table;
    naru_batching_args a = *args;
    a.struct_size = sizeof a;
    char buf[NR_ERR_TEXT_MAX] = "";
    naru_text text = {.struct_size = sizeof text, .capacity = sizeof buf, .data = buf};
    naru_batching_model *model = NULL;
    st = api->model_open(&a, &model, &text);
    if (st != NARU_OK) {
        st = nr_plugin_status(st);
        return nr_fail(err, st, "batching strategy %s: %s", api->name,
                       buf[0] ? buf : nr_status_text(st));
    }
    *ret = (struct nr_batching){.api = api, .model = model};
    return NARU_OK;
}

void nr_batching_close(struct nr_batching *b)
{
    if (b->api) {
        b->api->model_close(b->model);
    }
    *b = (struct nr_batching){0};
}

const char *nr_batching_breach(const naru_window *w, const naru_choice *c, int64_t *ret_rows)
{
    int64_t rows = 0;
    *ret_rows = 0;
    if (c->n > w->n) {
        return "it takes more requests than there are";
    }
    if (c->n == 0) {
        return c->wait_until_ns <= w->now_ns ? "it waits, but not until a time that is ahead"
               : c->wait_until_ns - w->now_ns > NR_BATCHING_MAX_WAIT_NS
                   ? "it waits for longer than an hour"
                   : NULL;
    }
    if (c->skip[0] != 0) {
        return "it passes the first request by";
    }
    for (uint32_t i = 0; i < c->n; i++) {
        if (c->skip[i] != 0 && (w->flags & NARU_WINDOW_IN_ORDER) != 0) {
            return "it passes a request by where order is promised";
        }
        rows += c->skip[i] != 0 ? 0 : w->requests[i].rows;
    }
    if (rows > w->max_rows) {
        return "its batch has more rows than max_batch_size";
    }
    *ret_rows = rows;
    return NULL;
}
