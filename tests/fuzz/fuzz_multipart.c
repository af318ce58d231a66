/* multipart/form-data: the first line is the Content-Type value, the rest the body. Whatever is
 * taken lies within the body, in order and without overlap. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "codec/multipart.h"

#define CHECK(cond)    \
    do {               \
        if (!(cond)) { \
            abort();   \
        }              \
    } while (0)

static bool is_within(struct nr_str part, const char *from, const char *to)
{
    return part.len == 0 || (part.ptr >= from && part.ptr + part.len <= to);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct nr_str body, boundary;
    struct nr_str type = nr_str_cut((struct nr_str){(const char *)data, size}, '\n', &body);
    struct nr_err err = {0};
    if (body.ptr == NULL || nr_multipart_boundary(type, &boundary, &err) != NARU_OK) {
        CHECK(body.ptr == NULL || err.text[0] != '\0');
        return 0;
    }
    static struct nr_multipart m;
    nr_status st = nr_multipart_parse(body, boundary, &m, &err);
    CHECK(st == NARU_OK || err.text[0] != '\0');
    const char *from = body.ptr, *end = body.ptr + body.len;
    for (size_t i = 0; i < m.n_parts; i++) {
        const struct nr_multipart_part *p = &m.parts[i];
        CHECK(p->data.ptr >= from && p->data.ptr + p->data.len <= end);
        CHECK(is_within(p->name, from, p->data.ptr) && is_within(p->type, from, p->data.ptr));
        CHECK(is_within(p->filename, from, p->data.ptr));
        from = p->data.ptr + p->data.len;
    }
    const struct nr_multipart_part *file = nr_multipart_file(&m);
    CHECK(file == NULL || file->filename.ptr != NULL || file->type.len > 6);
    return 0;
}
