/* Tensor data as JSON: array text → typed array. Used by infer_json.c; the writing side is
 * infer_json_write.c. One thread at a time. */
#ifndef NR_CODEC_TENSOR_JSON_H
#define NR_CODEC_TENSOR_JSON_H

#include "base/status.h"
#include "codec/infer_build.h"
#include "codec/json_scan.h"

/* Reads the array at the scanner's position, flat or nested as the tensor's shape says, into new
 * memory of the tensor (nr_infer_build_alloc). Memory is taken only when the rest of the text is
 * long enough for the elements. */
nr_nodiscard nr_status nr_tensor_json_read(struct nr_json *j, struct nr_infer_build *b,
                                           struct nr_infer_tensor *t);

#endif
