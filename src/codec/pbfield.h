/* Reflection over protobuf-c messages: the few questions that reading and writing text and JSON
 * have in common. Pure; any thread. */
#ifndef NR_CODEC_PBFIELD_H
#define NR_CODEC_PBFIELD_H

#include <protobuf-c/protobuf-c.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define NR_PBFIELD_MAX 64 /* fields of one message type */

/* Bytes of one element of the field in memory (a pointer for strings and messages). */
size_t nr_pbfield_size(const ProtobufCFieldDescriptor *f);
/* The field as a repeated entry message with `key` and `value`: a map. */
bool nr_pbfield_is_map(const ProtobufCFieldDescriptor *f);
/* Where the field lies in m: the element itself, or for repeated fields the pointer to the array. */
void *nr_pbfield_at(const ProtobufCMessage *m, const ProtobufCFieldDescriptor *f);
/* Elements that are there: n of a repeated field; 1 or 0 for a message or a oneof member that is
 * set or not; always 1 for other singular fields. */
size_t nr_pbfield_count(const ProtobufCMessage *m, const ProtobufCFieldDescriptor *f);
/* Address of element i < count. */
const void *nr_pbfield_get(const ProtobufCMessage *m, const ProtobufCFieldDescriptor *f, size_t i);
/* A singular field outside a oneof that has its default value, or a repeated one without elements:
 * what the text form leaves out. */
bool nr_pbfield_is_default(const ProtobufCMessage *m, const ProtobufCFieldDescriptor *f);
/* Indexes of d's fields in the order of their declaration in the .proto; order[d->n_fields]. */
void nr_pbfield_order(const ProtobufCMessageDescriptor *d, uint8_t order[NR_PBFIELD_MAX]);
/* True when the fields belong to the same oneof. */
static inline bool nr_pbfield_same_oneof(const ProtobufCFieldDescriptor *a,
                                         const ProtobufCFieldDescriptor *b)
{
    return (a->flags & b->flags & PROTOBUF_C_FIELD_FLAG_ONEOF) != 0 &&
           a->quantifier_offset == b->quantifier_offset;
}

#endif
