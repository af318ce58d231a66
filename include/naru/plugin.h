/* What all interfaces for plug-ins share: backends (backend.h), repository agents (agent.h) and
 * batching strategies (batching.h).
 *
 * Each of them is a table that the plug-in gives and, where it calls back, one that the server
 * gives. Every table begins with struct_size, abi_major, abi_minor, name, version (those of the
 * server without the last two). Major must be equal; slots are only appended, so a slot exists when
 * struct_size covers it and it is not NULL (NARU_HAS).
 */
#ifndef NARU_PLUGIN_H
#define NARU_PLUGIN_H

#include <stddef.h>
#include <stdint.h>

#include "naru/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* True when table `t` (struct type `type`) reaches as far as slot `slot` and the slot is set. */
#define NARU_HAS(t, type, slot) \
    ((t)->struct_size >= offsetof(type, slot) + sizeof((t)->slot) && (t)->slot)

typedef struct naru_text { /* text for people; the plug-in copies into it, cut at the end */
    uint32_t struct_size;
    uint32_t capacity;
    char *data; /* capacity bytes of the caller's; NUL-terminated on return */
} naru_text;

typedef struct naru_option {
    const char *key;
    const char *value;
} naru_option;

#if defined(__GNUC__)
#define NARU_EXPORT __attribute__((visibility("default")))
#else
#define NARU_EXPORT
#endif

#ifdef __cplusplus
}
#endif
#endif
