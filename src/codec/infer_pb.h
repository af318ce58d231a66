/* inference.ModelInferRequest from the wire and ModelInferResponse to it, by hand: the request's
 * raw tensors are views on the message, the response's are parts of their own, nothing is copied.
 * Sources: the protocol buffers encoding; field numbers of proto/grpc_service.proto.
 *
 * Ownership and threads as in infer_json.h.
 */
#ifndef NR_CODEC_INFER_PB_H
#define NR_CODEC_INFER_PB_H

#include <stdint.h>

#include "base/arena.h"
#include "base/buf.h"
#include "base/iov.h"
#include "base/status.h"
#include "base/str.h"
#include "codec/infer.h"

struct nr_infer_pb_head {
    struct nr_str model_name, model_version, id; /* views on the message */
};

/* Only the outermost fields: which model is meant. Cost: a few nanoseconds per field. */
nr_nodiscard nr_status nr_infer_pb_peek(struct nr_str message, struct nr_infer_pb_head *ret,
                                        struct nr_err *err);

/* NARU_INVALID for malformed messages (groups included), invalid UTF-8 in strings, values outside
 * of their datatype, raw and typed contents in one request. Unknown fields are skipped. */
nr_nodiscard nr_status nr_infer_pb_decode(const struct nr_signature *sig, struct nr_str message,
                                          struct nr_buf *owner, struct nr_arena *arena,
                                          struct nr_infer_request *ret, struct nr_err *err);

struct nr_infer_pb_body {
    const struct nr_iov *parts;
    unsigned n_parts;
    size_t bytes;
};
/* All outputs as raw_output_contents. NARU_NOMEM, or NARU_TOO_LARGE beyond 2^31 - 1 bytes. */
nr_nodiscard nr_status nr_infer_pb_encode(const struct nr_signature *sig,
                                          const struct nr_infer_response *response,
                                          struct nr_arena *arena, struct nr_infer_pb_body *ret,
                                          struct nr_err *err);

#endif
