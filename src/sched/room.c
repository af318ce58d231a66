/* Slots for each input of a version.
 *
 * DESIGN. All inputs of a request take their slots one after the other, so the rings of all inputs turn
 * alike, and a batch that is adjacent in one is so in all. Inputs that may be left out or differ in shape
 * have no slots: a request without one would leave no hole in the others.
 *
 * THREADS. Any: the slots have a lock of their own; everything else is constant.
 */
#include "sched/room.h"

#include "base/mem.h"
#include "host/slots.h"

struct nr_room {
    struct nr_input_room iface;
    unsigned n;
    struct nr_slots *slots[]; /* [n] by input of the signature; NULL: none */
};

static struct nr_buf *take(void *arg, uint32_t input, size_t bytes)
{
    struct nr_room *room = arg;
    return room->slots[input] != NULL ? nr_slots_take(room->slots[input], bytes) : NULL;
}

struct nr_room *nr_room_new(const struct nr_signature *sig, bool eager)
{
    struct nr_room *room = nr_alloc(sizeof *room + sig->n_inputs * sizeof room->slots[0]);
    bool any = false;
    room->iface = (struct nr_input_room){.take = take, .arg = room, .eager = eager};
    room->n = sig->n_inputs;
    for (unsigned i = 0; i < room->n; i++) {
        const struct nr_io_spec *io = &sig->inputs[i];
        if (io->batched && !io->ragged && !io->optional && io->row_bytes > 0) {
            room->slots[i] = nr_slots_new((size_t)io->row_bytes, (size_t)sig->max_batch_size);
            any |= room->slots[i] != NULL;
        }
    }
    if (!any) {
        nr_free(room);
        return NULL;
    }
    return room;
}

void nr_room_free(struct nr_room *room)
{
    for (unsigned i = 0; room != NULL && i < room->n; i++) {
        nr_slots_release(room->slots[i]);
    }
    nr_free(room);
}

const struct nr_input_room *nr_room_inputs(const struct nr_room *room)
{
    return &room->iface;
}

void nr_room_sealed(struct nr_room *room)
{
    for (unsigned i = 0; i < room->n; i++) {
        nr_slots_sealed(room->slots[i]);
    }
}

size_t nr_room_trim(struct nr_room *room)
{
    size_t bytes = 0;
    for (unsigned i = 0; room != NULL && i < room->n; i++) {
        bytes += nr_slots_trim(room->slots[i]);
    }
    return bytes;
}
