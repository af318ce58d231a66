/* Batch slots: memory in which an input of requests that will probably run together lies side by
 * side, so that the batch is there when it is formed and nothing is gathered.
 *
 * A slot is one row. Who receives or decodes an input takes slots for its rows first; nr_batch sees
 * that the requests' bytes are adjacent and hands them to the plug-in as they lie. Nothing depends on
 * that: a request whose client is slow or gone, a hole, a wrap only make that one batch gather.
 * So slots are taken when the first byte comes, and a slow uploader holds nobody.
 *
 *   take … take  ┌──── batch A, runs ────┬──── next batch ───▶      ┐ one slab of
 *   slots        │ 0   1   2   3   4   5 │ 6   7   8   .   .   .    │ of up to 2 × max_batch_size
 *                └───────────────────────┴─────────────────────     ┘ rows and 64 MiB
 *   sealed: the next batch begins behind this one, or before it where as many rows are free.
 *
 * Any thread. The slab is made by the first take, and goes back by nr_slots_trim or with the last
 * reference; it counts against the budget of base/buf.h.
 */
#ifndef NR_HOST_SLOTS_H
#define NR_HOST_SLOTS_H

#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"

struct nr_slots;

/* Rows smaller than this are gathered: copying them is cheaper than the bookkeeping. */
#define NR_SLOTS_MIN_ROW_BYTES ((size_t)4096)

/* For rows of row_bytes in batches of up to max_rows. NULL: a batch of two would not fit into the
 * largest slab, or rows are too small to be worth it. */
struct nr_slots *nr_slots_new(size_t row_bytes, size_t max_rows);
/* The owner's reference; buffers that are still out keep the slab. Accepts NULL. */
void nr_slots_release(struct nr_slots *s);

/* A buffer of `bytes` (whole rows), next to that of the take before where that is free. One
 * reference for the caller. NULL: no room, no whole rows, no memory: take any other buffer. */
struct nr_buf *nr_slots_take(struct nr_slots *s, size_t bytes);
/* A batch was formed: what is taken from now on belongs to the next one. Accepts NULL. */
void nr_slots_sealed(struct nr_slots *s);
/* Gives the slab back when nothing of it is taken. Returns its bytes. Accepts NULL. */
size_t nr_slots_trim(struct nr_slots *s);

#endif
