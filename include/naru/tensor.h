/* Tensors as the server and its plug-ins exchange them: region + offset + memory type.
 *
 * A tensor never carries a bare pointer that outlives a call: it names a region, and a region is
 * mapped wherever the plug-in runs (this process or a worker), so the same plug-in serves both.
 * Data is row-major, little-endian, densely packed. BYTES elements are a 4-byte little-endian
 * length and that many bytes, one after another. BOOL is one byte, 0 or 1. FP16 and BF16 are
 * two bytes. Datatype numbers are those of inference.DataType in Triton's model_config.proto.
 *
 * Growth: naru_segment and naru_tensor are handed over in arrays, so their size is fixed for the
 * whole of ABI major 1; what comes later goes into `reserved` (0 until then). naru_region is always
 * reached by pointer and may grow at its end (struct_size).
 */
#ifndef NARU_TENSOR_H
#define NARU_TENSOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define NARU_MAX_RANK 16

/*      symbol     number  bytes (0: variable)  KServe name  config name */
#define NARU_DTYPE_MAP(X)                         \
    X(NARU_BOOL, 1, 1, "BOOL", "TYPE_BOOL")       \
    X(NARU_UINT8, 2, 1, "UINT8", "TYPE_UINT8")    \
    X(NARU_UINT16, 3, 2, "UINT16", "TYPE_UINT16") \
    X(NARU_UINT32, 4, 4, "UINT32", "TYPE_UINT32") \
    X(NARU_UINT64, 5, 8, "UINT64", "TYPE_UINT64") \
    X(NARU_INT8, 6, 1, "INT8", "TYPE_INT8")       \
    X(NARU_INT16, 7, 2, "INT16", "TYPE_INT16")    \
    X(NARU_INT32, 8, 4, "INT32", "TYPE_INT32")    \
    X(NARU_INT64, 9, 8, "INT64", "TYPE_INT64")    \
    X(NARU_FP16, 10, 2, "FP16", "TYPE_FP16")      \
    X(NARU_FP32, 11, 4, "FP32", "TYPE_FP32")      \
    X(NARU_FP64, 12, 8, "FP64", "TYPE_FP64")      \
    X(NARU_BYTES, 13, 0, "BYTES", "TYPE_STRING")  \
    X(NARU_BF16, 14, 2, "BF16", "TYPE_BF16")

enum naru_dtype_code {
    NARU_DTYPE_NONE = 0,
#define NARU_DTYPE_ENUM(symbol, number, bytes, name, config) symbol = (number),
    NARU_DTYPE_MAP(NARU_DTYPE_ENUM)
#undef NARU_DTYPE_ENUM
    NARU_DTYPE_END
};

enum naru_memory_code {
    NARU_MEM_HOST = 0,   /* pageable memory of this machine */
    NARU_MEM_PINNED = 1, /* page-locked host memory */
    NARU_MEM_DEVICE = 2, /* memory of device `mem_id` */
    NARU_MEM_SHARED = 3  /* host memory that other processes map too (a sealed memfd) */
};

/* A piece of memory that tensors point into. The host owns regions; a plug-in borrows them for
 * the duration of a batch (until it completes it). */
typedef struct naru_region {
    uint32_t struct_size;
    int32_t mem_type; /* enum naru_memory_code */
    int32_t mem_id;   /* device index, 0 for host memory */
    int32_t fd;       /* descriptor of shared memory, -1 otherwise */
    void *base;       /* where it is mapped in the calling process */
    uint64_t bytes;
} naru_region;

typedef struct naru_segment {
    const naru_region *region;
    uint64_t offset; /* of the first byte within the region */
    uint64_t bytes;
    uint32_t
        request; /* index of the request in the batch that it belongs to, or UINT32_MAX: several */
    uint32_t reserved;
} naru_segment;

typedef struct naru_tensor {
    const char *name;     /* borrowed for the batch */
    uint32_t index;       /* which input or output of naru_model_info it is */
    int32_t dtype;        /* enum naru_dtype_code */
    const int64_t *shape; /* [rank], the whole batch's shape, batch dimension first */
    uint32_t rank;        /* <= NARU_MAX_RANK */
    uint32_t n_segments;  /* 1: contiguous. More only for plug-ins with NARU_CAP_SEGMENTS. 0: not
                             there yet (an output before naru_host::output_alloc) or an optional
                             input that every request left out */
    const naru_segment *segments; /* the first byte of a contiguous tensor is aligned to the size of
                                     its elements; what the host allocates, to 64 bytes */
    uint64_t bytes;               /* sum of the segments */
    uint64_t reserved;
} naru_tensor;

/* The first byte of a contiguous tensor in this process. */
static inline void *naru_tensor_data(const naru_tensor *t)
{
    return t->n_segments == 0
               ? (void *)0
               : (void *)((char *)t->segments[0].region->base + t->segments[0].offset);
}

/* Bytes of one element; 0 for BYTES and for numbers that are no datatype. */
static inline uint32_t naru_dtype_bytes(int32_t dtype)
{
    switch (dtype) {
#define NARU_DTYPE_SIZE(symbol, number, bytes, name, config) \
    case number:                                             \
        return bytes;
        NARU_DTYPE_MAP(NARU_DTYPE_SIZE)
#undef NARU_DTYPE_SIZE
    default:
        return 0;
    }
}

/* KServe name ("FP32"), or NULL for a number that is no datatype. */
static inline const char *naru_dtype_name(int32_t dtype)
{
    switch (dtype) {
#define NARU_DTYPE_NAME(symbol, number, bytes, name, config) \
    case number:                                             \
        return name;
        NARU_DTYPE_MAP(NARU_DTYPE_NAME)
#undef NARU_DTYPE_NAME
    default:
        return (const char *)0;
    }
}

#ifdef __cplusplus
}
#endif
#endif
