/* HTTP/2 sessions: the preface is supplied, the input is frames. */
#include "fuzz/http_fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char preface[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0";
    const size_t len = sizeof(preface) - 1;
    if (size < 2) {
        return 0;
    }
    uint8_t *all = nr_alloc(size + len);
    memcpy(all, data, 2);
    memcpy(all + 2, preface, len);
    memcpy(all + 2 + len, data + 2, size - 2);
    int rc = fz_run(all, size + len);
    nr_free(all);
    return rc;
}
