/* Labels: names from a text file, and the best of a score tensor.
 *
 * The k best are kept in a small sorted array while the scores pass by once; k is a handful, so
 * that beats a heap, and nothing is allocated per request.
 * Invariant: top[0..n) is sorted by `comes_before` at every step.
 * Threads: pure functions; a labels value is read-only after parsing.
 */
#include "codec/labels.h"

#include <math.h>

#include "base/mem.h"
#include "codec/element.h"

#define PIECE 256

nr_status nr_labels_parse(struct nr_str file, struct nr_labels *ret, struct nr_err *err)
{
    *ret = (struct nr_labels){0};
    if (!nr_str_is_utf8(file)) {
        return nr_fail(err, NARU_INVALID, "the labels file is not UTF-8 text");
    }
    if (nr_str_starts(file, NR_STR("\xef\xbb\xbf"))) { /* byte order mark of Windows editors */
        file.ptr += 3;
        file.len -= 3;
    }
    while (file.len > 0 && strchr("\n\r \t", file.ptr[file.len - 1]) != NULL) {
        file.len--;
    }
    size_t n = file.len > 0 ? 1 : 0;
    for (size_t i = 0; i < file.len; i++) {
        n += file.ptr[i] == '\n';
    }
    if (n > NR_LABELS_MAX_CLASSES) {
        return nr_fail(err, NARU_TOO_LARGE, "the labels file has %zu lines, the limit is %d", n,
                       NR_LABELS_MAX_CLASSES);
    }
    struct nr_labels l = {.text = nr_try_alloc(file.len),
                          .items = nr_try_alloc(n * sizeof *l.items)};
    if (l.text == NULL || l.items == NULL) {
        nr_labels_done(&l);
        return nr_fail(err, NARU_NOMEM, "no memory for a labels file of %zu bytes", file.len);
    }
    if (file.len > 0) {
        memcpy(l.text, file.ptr, file.len);
    }
    struct nr_str rest = {n > 0 ? l.text : NULL, file.len};
    while (rest.ptr != NULL) {
        struct nr_str line = nr_str_cut(rest, '\n', &rest);
        if (line.len > 0 && line.ptr[line.len - 1] == '\r') {
            line.len--;
        }
        l.items[l.n_items++] = nr_str_trim(line);
    }
    *ret = l;
    return NARU_OK;
}

void nr_labels_done(struct nr_labels *l)
{
    nr_free(l->text);
    nr_free(l->items);
    *l = (struct nr_labels){0};
}

struct nr_str nr_labels_get(const struct nr_labels *l, uint32_t index)
{
    return l != NULL && index < l->n_items ? l->items[index] : (struct nr_str){"", 0};
}

/* Equal scores keep the order in which they came: the lower index first. NaN is below all. */
static bool comes_before(float a, float b)
{
    return a > b || (isnan(b) && !isnan(a));
}

static uint32_t top_insert(struct nr_label_score *top, uint32_t n, uint32_t k, uint32_t index,
                           float score)
{
    if (n == k && !comes_before(score, top[n - 1].score)) {
        return n;
    }
    uint32_t at = n == k ? n - 1 : n;
    while (at > 0 && comes_before(score, top[at - 1].score)) {
        top[at] = top[at - 1];
        at--;
    }
    top[at] = (struct nr_label_score){index, score};
    return n == k ? n : n + 1;
}

/* Sum of exp(score - max) over all scores that are numbers. */
static double exp_sum(int32_t dtype, const uint8_t *scores, size_t n, float max)
{
    float v[PIECE];
    double sum = 0;
    for (size_t at = 0; at < n; at += PIECE) {
        size_t m = NR_MIN(n - at, (size_t)PIECE);
        nr_elements_to_float(dtype, scores + at * naru_dtype_bytes(dtype), m, v);
        for (size_t i = 0; i < m; i++) {
            sum += isnan(v[i]) ? 0 : v[i] == max ? 1 : exp((double)v[i] - (double)max);
        }
    }
    return sum;
}

nr_status nr_labels_top(int32_t dtype, const void *scores, size_t bytes, bool softmax, uint32_t k,
                        struct nr_label_score *top, uint32_t *ret_n, struct nr_err *err)
{
    *ret_n = 0;
    size_t size = naru_dtype_bytes(dtype);
    if (size == 0 || bytes % size != 0 || bytes / size > UINT32_MAX) {
        const char *name = naru_dtype_name(dtype);
        return nr_fail(err, NARU_INVALID, "%zu bytes of %s hold no scores: expected numbers", bytes,
                       name != NULL ? name : "an unknown type");
    }
    size_t n = bytes / size;
    float v[PIECE];
    uint32_t found = 0;
    for (size_t at = 0; at < n && k > 0; at += PIECE) {
        size_t m = NR_MIN(n - at, (size_t)PIECE);
        nr_elements_to_float(dtype, (const uint8_t *)scores + at * size, m, v);
        for (size_t i = 0; i < m; i++) {
            found = top_insert(top, found, k, (uint32_t)(at + i), v[i]);
        }
    }
    if (softmax && found > 0) {
        const float max = top[0].score;
        double sum = exp_sum(dtype, scores, n, max);
        for (uint32_t i = 0; i < found; i++) {
            float x = top[i].score;
            top[i].score =
                x == max ? (float)(1 / sum) : (float)(exp((double)x - (double)max) / sum);
        }
    }
    *ret_n = found;
    return NARU_OK;
}
