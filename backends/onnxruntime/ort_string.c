/* BYTES tensors of the wire and string tensors of ONNX Runtime.
 *
 * On the wire an element is a 4-byte little-endian length and its bytes; in ONNX Runtime it is a
 * std::string. So both directions copy once; nothing is NUL-terminated, zero bytes are kept.
 *
 * Way out without a buffer of our own: the library writes all contents into the last part of the
 * output, from where they are moved forward one by one while the lengths are put between them.
 * The gap that is left shrinks by 4 bytes with each element and is gone after the last, so an
 * element never moves onto one that is still to come.
 *
 * Threads: no state; scratch belongs to an instance.
 */
#include <stdlib.h>
#include <string.h>

#include "ort.h"

static bool count_elements(uint32_t rank, const int64_t *shape, size_t *ret)
{
    size_t n = 1;
    for (uint32_t d = 0; d < rank; d++) {
        if (shape[d] < 0 || __builtin_mul_overflow(n, (size_t)shape[d], &n)) {
            return false;
        }
    }
    *ret = n;
    return true;
}

static naru_status fill(const struct naru_backend_lib *lib, const naru_tensor *t, OrtValue *value,
                        naru_text *err)
{
    const uint8_t *at = naru_tensor_data(t);
    uint64_t left = t->bytes;
    size_t n;
    bool ok = count_elements(t->rank, t->shape, &n);
    for (size_t i = 0; ok && i < n; i++) {
        uint32_t len;
        ok = left >= sizeof len;
        if (!ok) {
            break;
        }
        memcpy(&len, at, sizeof len);
        at += sizeof len;
        left -= sizeof len;
        ok = left >= len;
        if (!ok) {
            break;
        }
        char *to = NULL;
        naru_status st = ort_status(
            lib, lib->api->GetResizedStringTensorElementBuffer(value, i, len, &to), NULL, 0, err);
        if (st != NARU_OK) {
            return st;
        }
        if (len > 0) {
            memcpy(to, at, len);
        }
        at += len;
        left -= len;
    }
    if (!ok || left != 0) {
        return naru_fail(err, NARU_INVALID,
                         "input \"%s\": the lengths of its strings do not add up to %llu bytes",
                         t->name, (unsigned long long)t->bytes);
    }
    return NARU_OK;
}

naru_status ort_string_in(const struct naru_backend_lib *lib, const naru_tensor *t, OrtValue **ret,
                          naru_text *err)
{
    size_t n;
    /* Four bytes per element are the least: checked before a std::string is made for each. */
    if (!count_elements(t->rank, t->shape, &n) || n > t->bytes / 4) {
        return naru_fail(err, NARU_INVALID, "input \"%s\": %llu bytes are too few for its shape",
                         t->name, (unsigned long long)t->bytes);
    }
    OrtValue *value = NULL;
    naru_status st =
        ort_status(lib,
                   lib->api->CreateTensorAsOrtValue(lib->allocator, t->shape, t->rank,
                                                    ONNX_TENSOR_ELEMENT_DATA_TYPE_STRING, &value),
                   NULL, 0, err);
    if (st == NARU_OK) {
        st = fill(lib, t, value, err);
    }
    if (st != NARU_OK) {
        if (value) {
            lib->api->ReleaseValue(value);
        }
        return st;
    }
    *ret = value;
    return NARU_OK;
}

naru_status ort_string_out(const struct naru_backend_lib *lib, const OrtValue *value,
                           naru_batch *batch, uint32_t index, uint32_t rank, const int64_t *shape,
                           struct ort_scratch *scratch, naru_text *err)
{
    size_t n, content = 0, heads;
    naru_status st =
        ort_status(lib, lib->api->GetStringTensorDataLength(value, &content), NULL, 0, err);
    if (st != NARU_OK) {
        return st;
    }
    if (!count_elements(rank, shape, &n) || __builtin_mul_overflow(n, (size_t)4, &heads)) {
        return NARU_TOO_LARGE;
    }
    if (n > scratch->capacity) {
        size_t *grown = realloc(scratch->offsets, n * sizeof *grown);
        if (!grown) {
            return NARU_NOMEM;
        }
        scratch->offsets = grown;
        scratch->capacity = n;
    }
    const naru_tensor *t = NULL;
    st = lib->host->output_alloc(batch, index, NARU_BYTES, rank, shape, heads + content, &t);
    if (st != NARU_OK || n == 0) {
        return st;
    }
    uint8_t *out = naru_tensor_data(t);
    st = ort_status(
        lib, lib->api->GetStringTensorContent(value, out + heads, content, scratch->offsets, n),
        NULL, 0, err);
    if (st != NARU_OK) {
        return st;
    }
    for (size_t i = 0; i < n; i++) {
        size_t begin = scratch->offsets[i], end = i + 1 < n ? scratch->offsets[i + 1] : content;
        if (end < begin || end - begin > UINT32_MAX) {
            return naru_fail(err, NARU_TOO_LARGE, "a string of output \"%s\" is too long", t->name);
        }
        uint32_t len = (uint32_t)(end - begin);
        memmove(out + begin + 4 * (i + 1), out + heads + begin, len);
        memcpy(out + begin + 4 * i, &len, sizeof len);
    }
    return NARU_OK;
}
