/* What protobuf-c's descriptors say about a message in memory.
 *
 * DESIGN. Descriptors list fields by number; the struct behind them is laid out in the order of the
 * .proto, but for oneofs, whose union protoc-c puts at the end. The JSON form of a configuration
 * prints fields in declaration order, so nr_pbfield_order sorts by offset and moves the oneofs of
 * the few messages in which one stands in front of other fields to where the .proto has it.
 *
 * INVARIANTS
 *  1. Only proto3 messages: a singular scalar has no presence of its own.
 *  2. No function allocates or fails.
 */
#include "codec/pbfield.h"

#include <string.h>

#include "base/status.h"

/* Messages whose oneof is declared in front of other fields: its members go before `before`. */
static const struct {
    const char *message;
    const char *before;
} oneof_places[] = {
    {"inference.ModelConfig", "instance_group"},
    {"inference.ModelSequenceBatching", "max_sequence_idle_microseconds"},
    {"inference.ModelSequenceBatching.InitialState", "name"},
};

size_t nr_pbfield_size(const ProtobufCFieldDescriptor *f)
{
    switch (f->type) {
    case PROTOBUF_C_TYPE_INT32:
    case PROTOBUF_C_TYPE_SINT32:
    case PROTOBUF_C_TYPE_SFIXED32:
    case PROTOBUF_C_TYPE_UINT32:
    case PROTOBUF_C_TYPE_FIXED32:
    case PROTOBUF_C_TYPE_FLOAT:
    case PROTOBUF_C_TYPE_ENUM:
        return sizeof(uint32_t);
    case PROTOBUF_C_TYPE_INT64:
    case PROTOBUF_C_TYPE_SINT64:
    case PROTOBUF_C_TYPE_SFIXED64:
    case PROTOBUF_C_TYPE_UINT64:
    case PROTOBUF_C_TYPE_FIXED64:
    case PROTOBUF_C_TYPE_DOUBLE:
        return sizeof(uint64_t);
    case PROTOBUF_C_TYPE_BOOL:
        return sizeof(protobuf_c_boolean);
    case PROTOBUF_C_TYPE_BYTES:
        return sizeof(ProtobufCBinaryData);
    case PROTOBUF_C_TYPE_STRING:
    case PROTOBUF_C_TYPE_MESSAGE:
        break;
    }
    return sizeof(void *);
}

bool nr_pbfield_is_map(const ProtobufCFieldDescriptor *f)
{
    if (f->label != PROTOBUF_C_LABEL_REPEATED || f->type != PROTOBUF_C_TYPE_MESSAGE) {
        return false;
    }
    /* the compiler names the entry of map `foo_bar` FooBarEntry; nobody else may use that shape */
    const ProtobufCMessageDescriptor *d = f->descriptor;
    size_t len = strlen(d->short_name);
    return d->n_fields == 2 && len > 5 && strcmp(d->short_name + len - 5, "Entry") == 0 &&
           strcmp(d->fields[0].name, "key") == 0 && strcmp(d->fields[1].name, "value") == 0;
}

void *nr_pbfield_at(const ProtobufCMessage *m, const ProtobufCFieldDescriptor *f)
{
    return (char *)(uintptr_t)m + f->offset;
}

static uint32_t quantifier(const ProtobufCMessage *m, const ProtobufCFieldDescriptor *f)
{
    uint32_t n;
    memcpy(&n, (const char *)m + f->quantifier_offset, sizeof n);
    return n;
}

size_t nr_pbfield_count(const ProtobufCMessage *m, const ProtobufCFieldDescriptor *f)
{
    if (f->label == PROTOBUF_C_LABEL_REPEATED) {
        size_t n;
        memcpy(&n, (const char *)m + f->quantifier_offset, sizeof n);
        return n;
    }
    if ((f->flags & PROTOBUF_C_FIELD_FLAG_ONEOF) != 0 && quantifier(m, f) != f->id) {
        return 0;
    }
    if (f->type == PROTOBUF_C_TYPE_MESSAGE) {
        return *(void **)nr_pbfield_at(m, f) != NULL;
    }
    return 1;
}

const void *nr_pbfield_get(const ProtobufCMessage *m, const ProtobufCFieldDescriptor *f, size_t i)
{
    void *at = nr_pbfield_at(m, f);
    if (f->label != PROTOBUF_C_LABEL_REPEATED) {
        return at;
    }
    return *(char **)at + i * nr_pbfield_size(f);
}

bool nr_pbfield_is_default(const ProtobufCMessage *m, const ProtobufCFieldDescriptor *f)
{
    if (f->label == PROTOBUF_C_LABEL_REPEATED || f->type == PROTOBUF_C_TYPE_MESSAGE ||
        (f->flags & PROTOBUF_C_FIELD_FLAG_ONEOF) != 0) {
        return nr_pbfield_count(m, f) == 0;
    }
    const void *at = nr_pbfield_at(m, f);
    if (f->type == PROTOBUF_C_TYPE_STRING) {
        const char *text = *(char *const *)at;
        return text == NULL || text[0] == '\0';
    }
    if (f->type == PROTOBUF_C_TYPE_BYTES) {
        return ((const ProtobufCBinaryData *)at)->len == 0;
    }
    static const uint64_t zero;
    return memcmp(at, &zero, nr_pbfield_size(f)) == 0;
}

/* Sort key: declaration order. Members of a oneof share an offset and keep the order of numbers. */
static unsigned place(const ProtobufCMessageDescriptor *d, const ProtobufCFieldDescriptor *f)
{
    if ((f->flags & PROTOBUF_C_FIELD_FLAG_ONEOF) != 0) {
        for (size_t i = 0; i < NR_COUNT(oneof_places); i++) {
            if (strcmp(oneof_places[i].message, d->name) == 0) {
                const ProtobufCFieldDescriptor *before =
                    protobuf_c_message_descriptor_get_field_by_name(d, oneof_places[i].before);
                NR_ASSERT(before != NULL);
                /* behind the field in front: its own offset at least one less; a repeated field's
                 * array is preceded by its count, which nobody sorts by */
                return before->offset - 1;
            }
        }
    }
    return f->offset;
}

void nr_pbfield_order(const ProtobufCMessageDescriptor *d, uint8_t order[NR_PBFIELD_MAX])
{
    NR_ASSERT(d->n_fields <= NR_PBFIELD_MAX);
    for (unsigned i = 0; i < d->n_fields; i++) {
        unsigned at = i;
        unsigned key = place(d, &d->fields[i]);
        while (at > 0 && place(d, &d->fields[order[at - 1]]) > key) {
            order[at] = order[at - 1];
            at--;
        }
        order[at] = (uint8_t)i;
    }
}
