/* A request's outputs as one block of bytes, for caches: every tensor at an aligned place of one
 * buffer, with a head that says what they are. The block may come from elsewhere (a shared cache), so
 * reading checks all of it.
 *
 *   u32 magic, u32 outputs, u64 bytes of all, for each output: u32 index, i32 dtype, u32 rank, u32 0,
 *   u64 bytes, i64 shape[rank]; then, each at the next multiple of 64, their bytes. Little endian, as
 *   the tensors.
 */
#ifndef NR_SCHED_ANSWER_H
#define NR_SCHED_ANSWER_H

#include "base/buf.h"
#include "codec/infer.h"

/* One reference for the caller; NULL: no memory. */
struct nr_buf *nr_answer_pack(const struct nr_infer_tensor *outputs, unsigned n);

/* Outputs that point into block, which must outlive them: ret[n_outputs of in], in its order. False:
 * it is no block, or not an answer to this request by a model of this signature. */
bool nr_answer_unpack(struct nr_buf *block, const struct nr_signature *sig,
                      const struct nr_infer_request *in, struct nr_infer_tensor *ret);

#endif
