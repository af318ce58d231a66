/* gRPC message framing: the reader in pieces agrees with the reader in one go, never hands out more
 * than was stated, and never reads beyond its input. */
#include <stdlib.h>

#include "http/grpc.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2) {
        return 0;
    }
    size_t piece = data[0] ? data[0] : 1;
    uint64_t limit = (uint64_t)data[1] * 16;
    data += 2;
    size -= 2;
    struct nr_grpc_reader whole = {0}, parts = {0};
    struct nr_str all, part;
    enum nr_grpc_event expected = nr_grpc_read(&whole, data, size, limit, &all);
    enum nr_grpc_event got = NR_GRPC_MORE;
    size_t n = 0;
    for (size_t at = 0; at < size && got == NR_GRPC_MORE; at += piece) {
        got = nr_grpc_read(&parts, data + at, piece < size - at ? piece : size - at, limit, &part);
        if (part.len && memcmp(part.ptr, all.ptr + n, part.len) != 0) {
            abort();
        }
        n += part.len;
    }
    if (got != expected || n != all.len || n > limit ||
        nr_grpc_complete(&whole) != nr_grpc_complete(&parts)) {
        abort();
    }
    int64_t ns;
    char *out = malloc(3 * size + 1);
    if (nr_grpc_timeout((struct nr_str){(const char *)data, size}, &ns) && ns < 0) {
        abort();
    }
    if (!out || nr_grpc_message(out, (struct nr_str){(const char *)data, size}) > 3 * size) {
        abort();
    }
    free(out);
    (void)nr_grpc_is((struct nr_str){(const char *)data, size});
    return 0;
}
