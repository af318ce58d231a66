/* KServe v2 inference over HTTP: JSON requests, the binary tensor extension, raw bodies, and the
 * response. Sources: KServe v2 protocol, Triton's binary data and classification extensions.
 *
 * Deliberate differences to Triton: every client mistake is NARU_INVALID (400), integers are
 * checked against their datatype instead of wrapped, nested data must nest as the shape says,
 * NaN and Infinity are no JSON numbers and refused in requests (RFC 8259; send them as binary).
 * Kept as Triton has it: FP16 and BF16 only as binary, and non-finite floats of a JSON response
 * are written as NaN, Infinity, -Infinity, which Python's and RapidJSON's readers take.
 *
 * Ownership: everything a decoder returns is in the arena, tied to it, or a view on the body, which
 * must live as long as the request. Everything an encoder returns is in the arena, tied to it, or a
 * view on the tensors given. All functions may be called from any thread that owns the arena.
 */
#ifndef NR_CODEC_INFER_JSON_H
#define NR_CODEC_INFER_JSON_H

#include <stdint.h>

#include "base/arena.h"
#include "base/buf.h"
#include "base/iov.h"
#include "base/status.h"
#include "base/str.h"
#include "codec/infer.h"

/* The field Inference-Header-Content-Length: 0..body_bytes, else NARU_INVALID. */
nr_nodiscard nr_status nr_infer_header_length(struct nr_str value, size_t body_bytes, size_t *ret,
                                              struct nr_err *err);

/* A body as it was received. The binary part need not stand behind the JSON. */
struct nr_infer_parts {
    struct nr_str json;   /* empty: a raw body */
    struct nr_str binary; /* tensors with binary_data_size, in the order of the inputs */
    struct nr_buf *owner; /* the buffer that `binary` lies in, or NULL; recorded in its views */
    bool in_room;         /* owner came from the signature's room */
};

/* Of a body in one piece. */
static inline struct nr_infer_parts nr_infer_parts_of(struct nr_str body, size_t json_bytes,
                                                      struct nr_buf *owner)
{
    struct nr_infer_parts parts = {.json = {body.ptr, json_bytes}, .binary = body, .owner = owner};
    nr_str_skip(&parts.binary, json_bytes);
    return parts;
}

/* Decodes JSON and what stands behind it; every byte of the binary part must belong to an input.
 * *ret is written on success only; on error nothing needs to be undone but the arena. */
nr_nodiscard nr_status nr_infer_json_decode(const struct nr_signature *sig,
                                            const struct nr_infer_parts *parts,
                                            struct nr_arena *arena, struct nr_infer_request *ret,
                                            struct nr_err *err);

/* The "id" of a request that may not be decodable, for the log: false when none is found before the
 * JSON ends or breaks. *ret is a view on json, or in the arena. */
nr_nodiscard bool nr_infer_json_id(struct nr_str json, struct nr_arena *arena, struct nr_str *ret);

/* The binary part is the one input of the model: batch 1, at most one other variable dimension,
 * which the size decides; a BYTES input becomes one element. All outputs are answered as binary. */
nr_nodiscard nr_status nr_infer_raw_decode(const struct nr_signature *sig,
                                           const struct nr_infer_parts *parts,
                                           struct nr_arena *arena, struct nr_infer_request *ret,
                                           struct nr_err *err);

struct nr_infer_body {
    const struct nr_iov *parts; /* JSON in one or more pieces, then binary outputs */
    unsigned n_parts;
    size_t bytes;      /* of all parts */
    size_t json_bytes; /* Inference-Header-Content-Length when has_binary */
    bool has_binary;   /* a non-empty binary part follows: application/octet-stream */
};

/* Errors: NARU_INVALID (FP16, BF16 or invalid UTF-8 asked for as JSON: the text suggests binary),
 * NARU_INTERNAL (a backend's BYTES output is malformed), NARU_NOMEM. */
nr_nodiscard nr_status nr_infer_json_encode(const struct nr_signature *sig,
                                            const struct nr_infer_response *response,
                                            struct nr_arena *arena, struct nr_infer_body *ret,
                                            struct nr_err *err);

/* The classification extension: the n largest values of each row as BYTES "value:index[:label]"
 * (floats with six decimals), largest first, the lower index first among equals, NaN last. Shape
 * becomes [rows, n] when `batched`, else [n]; n is cut at the values of a row. labels[n_labels] may
 * be NULL. NARU_INVALID for BOOL, FP16, BF16 and BYTES. */
nr_nodiscard nr_status nr_infer_classify(const struct nr_infer_tensor *scores, bool batched,
                                         uint32_t n, const struct nr_str *labels, size_t n_labels,
                                         struct nr_arena *arena, struct nr_infer_tensor *ret,
                                         struct nr_err *err);

#endif
