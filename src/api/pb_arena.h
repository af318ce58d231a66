/* protobuf-c with memory from an arena: what it unpacks goes with the request, nothing is freed. */
#ifndef NR_API_PB_ARENA_H
#define NR_API_PB_ARENA_H

#include <protobuf-c/protobuf-c.h>

#include "base/arena.h"

/* The allocator lives in the arena too. Requests over the arena's limit fail, as unpack reports. */
static inline void *nr_pb_arena_alloc(void *arena, size_t bytes)
{
    return nr_arena_try_alloc(arena, bytes);
}
static inline void nr_pb_arena_free(void *arena, void *ptr)
{
    (void)arena;
    (void)ptr;
}
static inline ProtobufCAllocator *nr_pb_arena(struct nr_arena *a)
{
    ProtobufCAllocator *allocator = nr_arena_new(a, ProtobufCAllocator);
    *allocator = (ProtobufCAllocator){nr_pb_arena_alloc, nr_pb_arena_free, a};
    return allocator;
}

#endif
