/* HTTP/1.1 sessions: whatever comes, in whatever pieces. */
#include "fuzz/http_fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    return fz_run(data, size);
}
