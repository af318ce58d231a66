/* Powers of ten as 128-bit fractions; see pow10.c. */
#ifndef NR_CODEC_POW10_H
#define NR_CODEC_POW10_H

#include <stdint.h>

#define NR_POW10_MIN (-342)
#define NR_POW10_MAX 324

struct nr_pow10 {
    uint64_t hi, lo;
};

extern const struct nr_pow10 nr_pow10[NR_POW10_MAX - NR_POW10_MIN + 1];

#endif
