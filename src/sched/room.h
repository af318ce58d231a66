/* Room for the inputs of a version's requests: batch slots (host/slots.h) for those whose rows have a
 * fixed size, given to decoders and receivers as struct nr_input_room.
 */
#ifndef NR_SCHED_ROOM_H
#define NR_SCHED_ROOM_H

#include <stdbool.h>
#include <stddef.h>

#include "codec/infer.h"

struct nr_room;

/* For a version that forms batches of up to max_batch_size. NULL: no input has rows that are worth
 * it. sig is borrowed. */
struct nr_room *nr_room_new(const struct nr_signature *sig, bool eager);
void nr_room_free(struct nr_room *room); /* accepts NULL; what was taken may still be in use */
const struct nr_input_room *nr_room_inputs(const struct nr_room *room); /* lives as long */
void nr_room_sealed(struct nr_room *room);                              /* a batch was formed */
size_t nr_room_trim(struct nr_room *room); /* accepts NULL; returns the bytes given back */

#endif
