/* Messages as JSON and as text-format protobuf, for any message that protoc-c generated.
 *
 * JSON as Triton prints ModelConfig: field names of the .proto in order of declaration, enums by
 * name, 64-bit integers as numbers, every scalar and every repeated field also when it has its
 * default, messages and oneof members only when set, maps as objects; NaN and infinities as the
 * strings of protobuf's JSON form.
 * Text: what nr_pbtxt_parse reads back to an equal message; defaults are left out, maps are sorted
 * as they are stored.
 * Appends to `out`; running over its cap shows in out->failed. Messages nested deeper than 64
 * levels end the writing with out->failed set. Pure; any thread; no recursion.
 */
#ifndef NR_CODEC_PBWRITE_H
#define NR_CODEC_PBWRITE_H

#include <protobuf-c/protobuf-c.h>

#include "base/str.h"

void nr_pbwrite_json(const ProtobufCMessage *m, struct nr_text *out);
void nr_pbwrite_text(const ProtobufCMessage *m, struct nr_text *out);

#endif
