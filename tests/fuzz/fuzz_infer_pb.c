/* ModelInferRequest from the wire against protobuf-c: see infer_pb_check.h. */
#include "fuzz/infer_pb_check.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    (void)pb_check(data, size);
    return 0;
}
