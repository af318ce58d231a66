/* Text-format protobuf → message, for any message that protoc-c generated (config.pbtxt, mostly).
 *
 * Accepted: `name: value`, `name { … }`, `name: { … }`, `<…>` for `{…}`, lists `name: [a, b]` for
 * repeated fields of every kind, one `,` or `;` after a field, # comments, maps as repeated entries
 * (a later entry of the same key replaces the earlier one), enum values by name or number, integers
 * in decimal, octal and hex, floats with or without `f`, inf and nan, strings in either quote with
 * all C escapes, \u and \U, adjacent literals joined.
 * Refused, with line and column: unknown fields (the nearest name is suggested), a singular field
 * given twice, two members of one oneof, numbers out of range, strings that are not UTF-8 or hold
 * a NUL, extensions and Any, nesting deeper than NR_PBTXT_MAX_DEPTH.
 *
 * Grammar: protobuf.dev, "Text Format Language Specification".
 * Pure; any thread; no recursion.
 */
#ifndef NR_CODEC_PBTXT_H
#define NR_CODEC_PBTXT_H

#include <protobuf-c/protobuf-c.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/arena.h"
#include "base/status.h"
#include "base/str.h"

#define NR_PBTXT_MAX_DEPTH 64
#define NR_PBTXT_MAX_MAP 1024 /* entries of one map */

/* Parses text into a new message of type `desc` (at most 64 fields). Message and everything below it
 * live in `a` and are freed with it: never call protobuf-c's free on it. `origin` ("config.pbtxt")
 * begins every error text. given (may be NULL): bit i is set when fields[i] of desc is in the text.
 * Errors: NARU_INVALID with "origin:line:column: …"; NARU_TOO_LARGE for too deep nesting or too
 * large maps; NARU_NOMEM when the arena gives no more. */
nr_nodiscard nr_status nr_pbtxt_parse(const ProtobufCMessageDescriptor *desc, struct nr_str text,
                                      const char *origin, struct nr_arena *a,
                                      ProtobufCMessage **ret, uint64_t *given, struct nr_err *err);

/* Whether the bit of the field `name` is set in `given`. */
bool nr_pbtxt_given(const ProtobufCMessageDescriptor *desc, uint64_t given, const char *name);

#endif
