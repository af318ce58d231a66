/* Dimensions that the model gives one name: which of them a request can get wrong.
 *
 * DESIGN. ONNX names the dimensions that vary ("N"), and what has one name has one size. Found out
 * here, once, the rule costs a request of most models one comparison (there are no such names), and
 * the client reads which inputs disagree instead of an operator's complaint from inside the model.
 * A name means something between inputs only: exports call height and width of one picture alike and
 * mean nothing by it, so of each input only the first dimension of a name counts.
 *
 * INVARIANTS
 *  1. Every name in sig.shared is there for two inputs or more, one of which leaves its size open.
 *  2. Entries of one name are neighbours, the first marked, in the order of the inputs.
 *
 * Threads: as config.c.
 */
#include "model/config_priv.h"

#include <stdlib.h>

#include "naru/helper.h"

static int by_symbol(const void *a, const void *b)
{
    const struct nr_shared_dim *x = a, *y = b;
    int order = strcmp(x->symbol, y->symbol);
    return order ? order : (x->input > y->input) - (x->input < y->input);
}

/* The dimensions with names, the first of each name and input. Left out: a reshaped input, whose
 * dimensions are not the model's, and the batch dimension, whose equality is a rule of its own. */
static size_t list_symbols(const struct nr_model_config *c, const naru_model_info *info,
                           struct nr_shared_dim *all)
{
    size_t n = 0;
    for (uint32_t i = 0; i < c->sig.n_inputs; i++) {
        const struct nr_io_spec *spec = &c->sig.inputs[i];
        uint32_t at = c->input_map[i];
        const char *const *symbols = &info->input_symbols[(size_t)at * NARU_MAX_RANK];
        size_t mine = n;
        for (uint32_t d = spec->batched; d < info->inputs[at].rank && !spec->reshaped; d++) {
            bool named = info->inputs[at].shape[d] == -1 && symbols[d] && symbols[d][0] != '\0';
            for (size_t k = mine; k < n && named; k++) {
                named = strcmp(all[k].symbol, symbols[d]) != 0;
            }
            if (named) {
                all[n++] = (struct nr_shared_dim){.input = i, .dim = d, .symbol = symbols[d]};
            }
        }
    }
    return n;
}

/* dims[n] are all dimensions of one name: keeps them when a request can get them wrong. */
static nr_status keep_group(struct nr_model_config *c, const struct nr_shared_dim *dims, size_t n,
                            struct nr_shared_dim *ret, unsigned *ret_n, struct nr_err *err)
{
    const struct nr_shared_dim *fixed = NULL;
    bool open = false;
    for (size_t i = 0; i < n; i++) {
        const struct nr_io_spec *spec = &c->sig.inputs[dims[i].input];
        int64_t size = spec->shape[dims[i].dim];
        open = open || size < 0;
        if (fixed && size >= 0 && c->sig.inputs[fixed->input].shape[fixed->dim] != size) {
            const struct nr_io_spec *other = &c->sig.inputs[fixed->input];
            return nr_fail(err, NARU_INVALID,
                           "inputs \"%.100s\" and \"%.100s\" are configured as %s and %s, but the "
                           "model calls dimension %u of the one and dimension %u of the other "
                           "\"%.64s\": they must be equal",
                           other->name.ptr, spec->name.ptr, SHAPE_TEXT(other->shape, other->rank),
                           SHAPE_TEXT(spec->shape, spec->rank), fixed->dim, dims[i].dim,
                           dims[i].symbol);
        }
        fixed = size >= 0 ? &dims[i] : fixed;
    }
    char *symbol = n > 1 && open ? nr_config_copy(c, dims[0].symbol) : NULL;
    if (n > 1 && open && !symbol) {
        return nr_config_nomem(err);
    }
    for (size_t i = 0; i < n && symbol; i++) {
        ret[*ret_n] = dims[i];
        ret[*ret_n].first = i == 0;
        ret[(*ret_n)++].symbol = symbol;
    }
    return NARU_OK;
}

nr_status nr_config_derive_shared(struct nr_model_config *c, const naru_model_info *info,
                                  struct nr_err *err)
{
    int check = 1;
    naru_text text = {.struct_size = sizeof text};
    char why[NR_ERR_TEXT_MAX] = "";
    text.data = why;
    text.capacity = sizeof why;
    nr_status st =
        naru_option_bool(c->options, c->n_options, NR_CONFIG_CHECK_SYMBOLS, &check, &text);
    if (st != NARU_OK) {
        return nr_fail(err, st, "%s", why);
    }
    if (!check || !info || !NARU_HAS(info, naru_model_info, input_symbols)) {
        return NARU_OK;
    }
    size_t most = 0;
    for (uint32_t i = 0; i < info->n_inputs; i++) {
        most += info->inputs[i].rank;
    }
    struct nr_shared_dim *all = nr_config_array(c, most, sizeof *all);
    struct nr_shared_dim *kept = nr_config_array(c, most, sizeof *kept);
    if (!all || !kept) {
        return nr_config_nomem(err);
    }
    size_t n = list_symbols(c, info, all);
    qsort(all, n, sizeof *all, by_symbol);
    unsigned n_kept = 0;
    for (size_t i = 0, end; i < n && st == NARU_OK; i = end) {
        for (end = i + 1; end < n && strcmp(all[end].symbol, all[i].symbol) == 0;) {
            end++;
        }
        st = keep_group(c, &all[i], end - i, kept, &n_kept, err);
    }
    c->sig.shared = kept;
    c->sig.n_shared = n_kept;
    return st;
}
